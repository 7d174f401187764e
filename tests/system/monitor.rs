//! A monitor as a process of its own: it reads a log under two identities, says over mutual TLS what it knows, and tells a webhook
//! what it finds.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use epigraph_core::LeafIndex;
use epigraph_rpc::peer::Monitor;
use epigraph_rpc::peer::monitor::{FindingChange, FindingClass, VantageKind};
use epigraph_rpc::{CallError, Reason};
use serde_json::Value;
use tokio::time::timeout;

use crate::metrics::are_documented;
use crate::metrics::get;
use crate::support::{Ended, House, Serving, block_on, epigraph, leaf};

pub const SERVER: &str = "spiffe://epigraph.quickstart/epigraph/monitor/m1";

/// Nothing that is tested takes so long.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub fn issue(house: &House, name: &str, side: &str, out: &str) {
    let (ca, out) = (house.path("pki"), house.path(out));
    fs::create_dir_all(out.parent().unwrap()).unwrap();
    let spiffe = format!("spiffe://epigraph.quickstart/epigraph/{name}");
    let mut args: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"pki", &"issue", &"--ca", &ca];
    args.extend([&"--spiffe" as &dyn AsRef<std::ffi::OsStr>, &spiffe, &side, &"--out", &out]);
    if side == "--server" {
        args.extend([&"--ip" as &dyn AsRef<std::ffi::OsStr>, &"127.0.0.1"]);
    }
    epigraph(&args).succeeded(&[]);
}

/// A quickstart's log, and everything that a monitor of it needs but its state.
pub fn house() -> House {
    let house = House::new();
    issue(&house, "monitor/m1", "--server", "pki/m1/server");
    issue(&house, "reader/a", "--client", "pki/a/client");
    issue(&house, "operator/o", "--client", "pki/o/client");
    issue(&house, "monitor/m2", "--client", "pki/m2/client");
    let grant = "[[authorize]]\nspiffe = \"spiffe://epigraph.quickstart/epigraph/reader/*\"\nroles = [\"reader\"]\nlogs = [\"*\"]\n\n[[authorize]]";
    house.edit("log.toml", "[[authorize]]", grant);
    fs::create_dir(house.path("inbox")).unwrap();
    house
}

pub fn configure(house: &House, log: &Serving, more: &str) {
    let (origin, address, server) = (house.origin(), &log.address, crate::support::SERVER);
    let config = format!(
        r#"name = "monitor.example/m1"
directory = "m1"
poll_ms = 200
published_within_ms = 1000
heartbeat_ms = 1000
listen = {{ address = "127.0.0.1:0" }}
metrics = {{ address = "127.0.0.1:0" }}
tls = {{ certificate = "pki/m1/server.pem", key = "pki/m1/server.key", trust_bundle = "pki/ca.pem", trust_domain = "epigraph.quickstart", client = {{ certificate = "pki/client/client.pem", key = "pki/client/client.key" }} }}

[[log]]
origin = "{origin}"
policy = "policy"
inbox = "inbox"
[[log.reader]]
name = "one"
address = "{address}"
server = "{server}"
[[log.reader]]
name = "two"
address = "{address}"
server = "{server}"
client = {{ certificate = "pki/a/client.pem", key = "pki/a/client.key" }}

{more}
[[authorize]]
spiffe = "spiffe://epigraph.quickstart/epigraph/appender/*"
roles = ["appender"]
logs = ["*"]
[[authorize]]
spiffe = "spiffe://epigraph.quickstart/epigraph/operator/*"
roles = ["operator"]
logs = ["*"]
[[authorize]]
spiffe = "spiffe://epigraph.quickstart/epigraph/monitor/*"
roles = ["monitor"]
logs = ["*"]
"#
    );
    fs::write(house.path("m1.toml"), config).unwrap();
}

pub fn init(house: &House) -> Ended {
    epigraph(&[&"init", &"monitor", &"--config", &house.path("m1.toml")])
}

#[track_caller]
pub fn serve(house: &House) -> Serving {
    house.start("monitor", "m1.toml").unwrap_or_else(|ended| panic!("the monitor did not start: {ended}"))
}

pub fn monitor(house: &House, serving: &Serving, identity: &str) -> Monitor {
    Monitor::new(&serving.address, &house.tls_of(identity), &SERVER.parse().unwrap()).unwrap()
}

fn reason<T: std::fmt::Debug>(answer: Result<T, CallError>) -> Reason {
    match answer {
        Err(CallError::Refused(refusal)) => refusal.reason(),
        other => panic!("{other:?}"),
    }
}

/// Asks until both identities were shown a head of this size, and every entry was read.
pub async fn audited(monitor: &Monitor, size: u64) -> epigraph_rpc::peer::monitor::MonitorStatus {
    let mut last = None;
    let reading = async {
        loop {
            let status = monitor.status("").await.unwrap();
            last = Some(status.clone());
            let log = &status.logs[0];
            let readers = log.vantages.iter().filter(|seen| seen.vantage.kind == VantageKind::Log);
            let showed = readers.filter(|seen| seen.head.is_some_and(|head| head.size.get() == size));
            if log.audited.get() == size && showed.count() == 2 {
                return status;
            }
            tokio::task::yield_now().await;
        }
    };
    match timeout(PATIENCE, reading).await {
        Ok(status) => status,
        Err(_) => panic!("the entries are not audited: {last:#?}"),
    }
}

/// The headers and the body of a message.
pub type Told = (BTreeMap<String, String>, Value);

/// A receiver of webhooks: its port, and what it was sent.
pub fn receiver() -> (u16, mpsc::Receiver<Told>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, received) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let mut headers = BTreeMap::new();
            let mut line = String::new();
            while stream.read_line(&mut line).unwrap() > 2 {
                if let Some((name, value)) = line.trim_end().split_once(": ") {
                    headers.insert(name.to_ascii_lowercase(), value.to_owned());
                }
                line.clear();
            }
            let mut body = vec![0; headers["content-length"].parse().unwrap()];
            stream.read_exact(&mut body).unwrap();
            stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
            if sender.send((headers, serde_json::from_slice(&body).unwrap())).is_err() {
                return;
            }
        }
    });
    (port, received)
}

pub fn webhook(house: &House, port: u16) -> String {
    let secret = house.path("secret");
    fs::write(&secret, [b'k'; 32]).unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    format!(
        "[[webhook]]\nname = \"hook\"\nurl = \"http://127.0.0.1:{port}/x\"\nsecret = \"secret\"\nallow_networks = [\"127.0.0.0/8\"]\n"
    )
}

/// Seen to fail when the sinks were not told, when they were not run, and when findings of all logs were kept from whoever named none.
#[test]
fn what_a_log_broke_is_found_told_and_taken_note_of() {
    let house = house();
    let log = house.serve();
    let (port, received) = receiver();
    configure(&house, &log, &webhook(&house, port));
    init(&house).succeeded(&["monitor.example/m1+"]);
    init(&house).refused(5, &["initialised already"]);
    let serving = serve(&house);
    let origin = house.origin().to_string();
    let vkey = block_on(async {
        let [operator, appender, other] = ["pki/o/client", "pki/client/client", "pki/m2/client"]
            .map(|stem| monitor(&house, &serving, stem));
        let status = audited(&operator, 3).await;
        assert_eq!((status.logs[0].open, status.logs[0].consistent.get()), (0, 3), "{status:?}");
        assert!(status.vkey.starts_with("monitor.example/m1+"));
        assert_eq!(operator.findings("", true, "").await.unwrap(), (vec![], None));

        let (heads, next) = other.checkpoints(&origin, "").await.unwrap();
        assert_eq!((heads.len(), next), (1, None));
        let mut seen: Vec<&str> = heads[0].sightings.iter().map(|seen| seen.vantage.as_str()).collect();
        seen.sort_unstable();
        assert_eq!(seen, ["one", "two"]);
        other.report(&origin, heads[0].note.clone()).await.unwrap();
        let forged = [&heads[0].note[..heads[0].note.len() - 9], b"AAAAAAA=\n"].concat();
        for garbage in [Bytes::from(forged), Bytes::from_static(b"x"), Bytes::new()] {
            assert_eq!(reason(other.report(&origin, garbage).await), Reason::BadLogSignature);
        }
        // Roles and names.
        assert_eq!(reason(appender.status("").await), Reason::PermissionDenied);
        assert_eq!(reason(other.findings("", false, "").await), Reason::PermissionDenied);
        assert_eq!(reason(operator.report(&origin, heads[0].note.clone()).await), Reason::PermissionDenied);
        assert_eq!(reason(operator.status("elsewhere.example").await), Reason::UnknownOrigin);
        assert_eq!(reason(operator.findings("", false, "x").await), Reason::Malformed);
        assert_eq!(reason(other.checkpoints(&origin, "x").await), Reason::Malformed);

        // What is there is no finding; what is not is one, and names the claimant.
        let mut watching = operator.watch_findings("").await.unwrap();
        let index = |index| LeafIndex::new(index).unwrap();
        appender.submit_receipt(&origin, index(1), leaf(b"two")).await.unwrap();
        appender.submit_receipt(&origin, index(2), leaf(b"never")).await.unwrap();
        let (change, found) =
            timeout(PATIENCE, watching.next()).await.expect("nothing is found").unwrap().unwrap();
        assert_eq!(
            (change, found.code.as_str(), found.class),
            (FindingChange::Opened, "missing-entry", FindingClass::Observation)
        );
        assert!(found.detail.contains("appender/quickstart"), "{found:?}");

        let (headers, body) = loop {
            let (headers, body) = received.recv_timeout(PATIENCE).expect("nobody is told");
            if body["kind"] == "finding" {
                break (headers, body);
            }
            assert_eq!(body["kind"], "heartbeat");
        };
        assert_eq!((&body["finding"]["id"], &body["change"]), (&found.id.clone().into(), &"opened".into()));
        assert!(headers["epigraph-signature"].starts_with("t="), "{headers:?}");

        assert_eq!(reason(operator.acknowledge(&origin, &found.id, "").await), Reason::Malformed);
        assert_eq!(reason(operator.acknowledge(&origin, "00", "seen").await), Reason::FindingNotFound);
        let taken = operator.acknowledge(&origin, &found.id, "seen").await.unwrap();
        assert!(
            taken.acknowledged.as_ref().is_some_and(|taken| taken.by.ends_with("/operator/o")),
            "{taken:?}"
        );
        let (change, _) = timeout(PATIENCE, watching.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(change, FindingChange::Acknowledged);
        // Whoever comes later is shown what is open.
        let mut later = operator.watch_findings(&origin).await.unwrap();
        let (change, standing) = timeout(PATIENCE, later.next()).await.unwrap().unwrap().unwrap();
        assert_eq!((change, &standing), (FindingChange::Standing, &taken));
        let status = operator.status(&origin).await.unwrap();
        assert_eq!((status.logs[0].open, status.logs[0].unacknowledged), (1, 0));
        assert_eq!(reason(operator.evidence(&origin, &"0".repeat(64)).await), Reason::FindingNotFound);
        let file = operator.evidence(&origin, &found.evidence.unwrap()).await.unwrap();
        fs::write(house.path("found"), file).unwrap();
        status.vkey
    });
    serving.stop();
    // The monitor's word, for anybody who has its key.
    epigraph(&[&"verify", &house.path("found"), &"--vkey", &vkey]).succeeded(&["missing-entry"]);
    epigraph(&[&"verify", &house.path("found"), &"--vkey", &house.vkey()]).refused(1, &[]);

    // M5: what was found and read is there after a start, and nothing is said twice of it.
    let serving = serve(&house);
    block_on(async {
        let operator = monitor(&house, &serving, "pki/o/client");
        let (findings, _) = operator.findings("", false, "").await.unwrap();
        assert!(findings.len() == 1 && findings[0].acknowledged.is_some(), "{findings:?}");
        assert_eq!(audited(&operator, 3).await.logs[0].open, 1);
    });
    serving.stop();
}

#[test]
fn the_documented_metrics_are_those_that_are_served() {
    let house = house();
    let log = house.serve();
    configure(&house, &log, "");
    init(&house).succeeded(&[]);
    let serving = serve(&house);
    // A call, so that calls are counted.
    block_on(async { audited(&monitor(&house, &serving, "pki/o/client"), 3).await });
    let text = get(&serving, "/metrics", 200);
    are_documented(&text, "A monitor");
    assert_eq!(get(&serving, "/readyz", 200), "ready\n");
    assert!(text.contains("epigraph_monitor_open_findings{origin="), "{text}");
    serving.stop();
}

/// Seen to fail when a missing queue was made at the start.
#[test]
fn what_is_new_in_the_configuration_is_added_by_init_and_nothing_by_serve() {
    let house = house();
    let log = house.serve();
    configure(&house, &log, "");
    init(&house).succeeded(&[]);
    let vkey = fs::read(house.path("m1/keys/monitor.vkey")).unwrap();
    configure(&house, &log, &webhook(&house, 9));
    let refused = |says: &str| match house.start("monitor", "m1.toml") {
        Ok(_) => panic!("it serves"),
        Err(ended) => drop(ended.refused(5, &[says, "init monitor"])),
    };
    refused("has no queue");
    init(&house).succeeded(&[]);
    house.edit("m1.toml", &format!("origin = \"{}\"", house.origin()), "origin = \"other.example\"");
    refused("holds nothing of the log");
    house.edit("m1.toml", "origin = \"other.example\"", &format!("origin = \"{}\"", house.origin()));
    serve(&house).stop();
    assert_eq!(fs::read(house.path("m1/keys/monitor.vkey")).unwrap(), vkey);

    epigraph(&[&"config", &"check", &"--role", &"monitor", &house.path("m1.toml")])
        .succeeded(&["describes the monitor"]);
    fs::set_permissions(house.path("secret"), fs::Permissions::from_mode(0o640)).unwrap();
    epigraph(&[&"config", &"check", &"--role", &"monitor", &house.path("m1.toml")])
        .refused(2, &["[[webhook]] hook", "chmod 600"]);
}
