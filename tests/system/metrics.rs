//! Looking inside a running log: health, readiness and metrics, and that their documentation says what is served.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use epigraph_rpc::v1;

use crate::support::{House, Serving, block_on};

/// Nothing that is tested takes so long; a listener that hangs fails the test instead of stopping it.
const PATIENCE: Duration = Duration::from_secs(60);

/// More than the listener takes at one time.
const CROWD: usize = 20;

/// Where the log said that it can be looked into.
fn address(serving: &Serving) -> Option<String> {
    let messages = serving.messages();
    let line = messages.lines().find(|line| line.contains("health, readiness and metrics are served"))?;
    line.split_once("address=").map(|(_, address)| address.to_owned())
}

fn connect(serving: &Serving) -> TcpStream {
    let stream = TcpStream::connect(address(serving).unwrap()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends bytes; returns the status line's code, if an answer came, and the answer.
fn ask(serving: &Serving, request: &[u8]) -> (Option<u16>, String) {
    let mut stream = connect(serving);
    // A server that has seen enough closes while the rest is still being sent.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).unwrap();
    let code = answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
    (code, answer)
}

/// The status and the body of a page.
pub fn get_any(serving: &Serving, path: &str) -> (u16, String) {
    let (code, answer) = ask(serving, format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
    (code.unwrap(), answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

/// The body of a page, which must have this status.
#[track_caller]
pub fn get(serving: &Serving, path: &str, expected: u16) -> String {
    let (code, answer) = ask(serving, format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
    assert_eq!(code, Some(expected), "{path}: {answer}");
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// The value of the one sample whose name and labels begin and go on so.
#[track_caller]
pub fn sample(text: &str, name: &str, label: &str) -> f64 {
    let mut found = text.lines().filter(|line| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']) && rest.contains(label))
    });
    let line = found.next().unwrap_or_else(|| panic!("no {name} {label} in\n{text}"));
    assert_eq!(found.next(), None, "{name} {label}");
    line.rsplit_once(' ').unwrap().1.parse().unwrap()
}

#[test]
fn it_is_healthy_and_ready_and_what_it_counts_moves_with_what_it_does() {
    let house = House::new();
    let serving = house.serve();
    assert_eq!(get(&serving, "/healthz", 200), "alive\n");
    let before = get(&serving, "/metrics", 200);
    assert!(before.ends_with("# EOF\n"), "{before}");
    let append = |count: usize| {
        block_on(async {
            let entries = vec![b"x".as_slice().into(); count];
            let wait = v1::Wait::Published.into();
            let request = v1::AppendRequest { entries, wait, ..Default::default() };
            house.raw_client(&serving).append(request).await.map(|_| ())
        })
    };
    append(5).unwrap();
    append(0).unwrap_err();
    append(1).unwrap();
    assert_eq!(get(&serving, "/readyz", 200), "ready\n");

    let after = get(&serving, "/metrics", 200);
    let check = |name: &str, label: &str, from: f64, to: f64| {
        // A series with a code begins when there is one.
        let first = if from == 0.0 && label.contains("code") { 0.0 } else { sample(&before, name, label) };
        assert_eq!((first, sample(&after, name, label)), (from, to), "{name} {label}");
    };
    let origin = format!("origin=\"{}\"", house.origin());
    check("epigraph_log_durable_entries", &origin, 3.0, 9.0);
    check("epigraph_log_published_entries", &origin, 3.0, 9.0);
    check("epigraph_calls_total", "rpc=\"epigraph.v1.LogService/Append\",code=\"OK\"", 0.0, 2.0);
    check("epigraph_calls_total", "code=\"INVALID_ARGUMENT\"", 0.0, 1.0);
    assert_eq!(sample(&after, "epigraph_call_duration_seconds_count", "Append"), 3.0);
    assert_eq!(sample(&after, "epigraph_log_tree_lag_entries", &origin), 0.0);
    assert_eq!(sample(&after, "epigraph_log_ready", &origin), 1.0);
    assert_eq!(sample(&before, "epigraph_refused_connections_total", "handshake\""), 0.0);
    let expiry = sample(&after, "epigraph_server_certificate_expiry_timestamp_seconds", "");
    let started = sample(&after, "epigraph_start_timestamp_seconds", "");
    assert!((364.0..=366.0).contains(&((expiry - started) / 86_400.0)), "{expiry} {started}");
    serving.stop();
}

#[test]
fn a_refused_connection_is_counted_by_its_kind() {
    let house = House::new();
    let serving = house.serve();
    let mut stranger = TcpStream::connect(&serving.address).unwrap();
    stranger.set_read_timeout(Some(PATIENCE)).unwrap();
    stranger.write_all(b"no TLS at all, this\r\n\r\n").unwrap();
    stranger.shutdown(std::net::Shutdown::Write).unwrap();
    // The refusal is over when the connection is.
    let _ = stranger.read_to_end(&mut Vec::new());
    let text = get(&serving, "/metrics", 200);
    assert_eq!(sample(&text, "epigraph_refused_connections_total", "kind=\"handshake\""), 1.0);
    assert_eq!(sample(&text, "epigraph_refused_connections_total", "kind=\"identity\""), 0.0);
}

#[test]
fn a_log_that_would_refuse_entries_is_healthy_and_not_ready_and_says_why() {
    let house = House::new();
    house.edit("log.toml", "[[log]]", "[limits]\nunpublished_max_entries = 0\n\n[[log]]");
    let serving = house.serve();
    get(&serving, "/healthz", 200);
    // It catches up first; both are reasons.
    let mut why = get(&serving, "/readyz", 503);
    while why.starts_with("catching up: ") {
        why = get(&serving, "/readyz", 503);
    }
    assert_eq!(why, "publication is behind: 0 entries wait, without progress for 0 s\n");
    assert_eq!(sample(&get(&serving, "/metrics", 200), "epigraph_log_ready", ""), 0.0);
}

#[test]
fn without_the_table_nothing_listens() {
    let house = House::new();
    house.edit("log.toml", "[metrics]\naddress = \"127.0.0.1:0\"\n", "");
    assert_eq!(address(&house.serve()), None);
}

#[test]
fn other_paths_methods_and_garbage_are_refused_and_hurt_nobody() {
    let house = House::new();
    let serving = house.serve();
    let check = |request: &str, expected: Option<u16>| {
        let (code, answer) = ask(&serving, request.as_bytes());
        assert_eq!(code, expected, "{:.80}: {answer}", request);
        get(&serving, "/healthz", 200);
        answer
    };
    for path in ["/", "/metrics/", "/Metrics", "//metrics", "/healthz/../metrics", "/%6detrics"] {
        check(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"), Some(404));
    }
    for method in ["POST", "PUT", "DELETE", "HEAD", "OPTIONS"] {
        let request = format!("{method} /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
        let answer = check(&request, Some(405)).to_lowercase();
        assert!(answer.contains("\r\nallow: get\r\n"), "{answer}");
    }
    check("\0\u{1}\u{2} garbage\r\n\r\n", Some(400));
    check("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", None);
    let many: String = (0..40).map(|n| format!("X-{n}: y\r\n")).collect();
    check(&format!("GET /healthz HTTP/1.1\r\n{many}\r\n"), Some(431));
    let long = "y".repeat(64 * 1024);
    check(&format!("GET /healthz HTTP/1.1\r\nX: {long}\r\n\r\n"), Some(431));
    // One request a connection.
    let twice = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n".repeat(2);
    assert_eq!(check(&twice, Some(200)).matches("alive").count(), 1);
    serving.stop();
}

#[test]
fn silent_clients_lose_their_places_and_hold_up_nobody_for_long() {
    let house = House::new();
    let serving = house.serve();
    let mut silent: Vec<_> = (0..CROWD / 2).map(|_| connect(&serving)).collect();
    silent[0].write_all(b"GET /healthz HT").unwrap();
    get(&serving, "/healthz", 200);
    silent.extend((0..CROWD / 2).map(|_| connect(&serving)));
    get(&serving, "/healthz", 200);
    for stream in &mut silent {
        assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0, "it was answered");
    }
    serving.stop();
}

fn file(path: &str) -> String {
    fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// The tables of what is told by all, and by all that serve calls of ours.
const EVERY: &str = "Every process";
const EVERY_SERVER: &str = "Every process but a collector";

/// Name, type and unit of each row of all tables.
pub fn documented() -> BTreeSet<(String, String, String)> {
    [EVERY, EVERY_SERVER, "A log", "A signer", "A witness", "A monitor", "An audit service", "A collector"]
        .iter()
        .flat_map(|title| documented_under(title))
        .collect()
}

/// The same for the table under one title.
pub fn documented_under(title: &str) -> BTreeSet<(String, String, String)> {
    let text = file("docs/metrics.md");
    let section = text.split("\n### ").find(|section| section.lines().next() == Some(title)).unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `epigraph_"));
    rows.map(|row| {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        assert!(!cells[4].is_empty(), "{row}");
        (cells[1].trim_matches('`').to_owned(), cells[2].to_owned(), cells[3].to_owned())
    })
    .collect()
}

#[test]
fn the_documented_metrics_are_those_that_are_served() {
    let house = House::new();
    let serving = house.serve();
    house.call("checkpoint", &[]).succeeded(&[]);
    are_documented(&get(&serving, "/metrics", 200), "A log");
}

/// What is served is what is documented of every process and of this one.
#[track_caller]
pub fn are_documented(text: &str, process: &str) {
    let unit = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("# UNIT {name} ")));
        line.unwrap_or_default().to_owned()
    };
    let served = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).map(|line| {
        let (name, kind) = line.split_once(' ').unwrap();
        let suffix = match kind {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        (format!("{name}{suffix}"), kind.to_owned(), unit(name))
    });
    let mut documented = documented_under(EVERY);
    documented.extend(documented_under(process));
    if process != "A collector" {
        documented.extend(documented_under(EVERY_SERVER));
    }
    let served: BTreeSet<_> = served.collect();
    assert_eq!(documented, served);
}
