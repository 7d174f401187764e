//! Audit events from files to proofs: a log, an audit service and a collector as processes, killed and started again.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;

use crate::support::{Ended, House, Serving, command, epigraph};

const COLLECTOR: &str = "spiffe://epigraph.quickstart/epigraph/collector/cluster";

/// A house with a log, an audit service and an enrolled collector.
pub struct Audited {
    pub house: House,
    log: Serving,
    pub audit: Option<Serving>,
}

impl Audited {
    pub fn new() -> Audited {
        let house = House::new();
        let issue = |purpose: &str, spiffe: &str, out: &str| {
            let out = house.path(out);
            fs::create_dir_all(out.parent().unwrap()).unwrap();
            epigraph(&[
                &"pki",
                &"issue",
                &"--ca",
                &house.path("pki"),
                &purpose,
                &"--spiffe",
                &spiffe,
                &"--out",
                &out,
                &"--ip",
                &"127.0.0.1",
            ])
            .succeeded(&[]);
        };
        let audit = "spiffe://epigraph.quickstart/epigraph/audit/quickstart";
        issue("--server", audit, "pki/audit/server");
        issue("--client", audit, "pki/audit/client");
        issue("--client", COLLECTOR, "pki/collector/client");
        let origin = house.origin();
        let log_toml = fs::read_to_string(house.path("log.toml")).unwrap();
        fs::write(
            house.path("log.toml"),
            format!(
                "{log_toml}\n[[authorize]]\nspiffe = \"{audit}\"\nroles = [\"appender\", \"reader\"]\nlogs = [\"*\"]\n"
            ),
        )
        .unwrap();
        let log = house.serve();
        let own = |stem: &str| format!("certificate = \"pki/{stem}.pem\"\nkey = \"pki/{stem}.key\"\n");
        let trust = "trust_bundle = \"pki/ca.pem\"\ntrust_domain = \"epigraph.quickstart\"\n";
        let config = format!(
            "name = \"reads.example\"\ndirectory = \"audit\"\n[listen]\naddress = \"127.0.0.1:0\"\n\
             [tls]\n{}{trust}[tls.client]\n{}\
             [log]\norigin = \"{origin}\"\naddress = \"{}\"\n\
             server = \"spiffe://epigraph.quickstart/epigraph/log/quickstart\"\npolicy = \"policy\"\n\
             [[authorize]]\nspiffe = \"{COLLECTOR}\"\nroles = [\"collector\"]\nlogs = [\"*\"]\n\
             [[authorize]]\nspiffe = \"spiffe://epigraph.quickstart/epigraph/appender/quickstart\"\n\
             roles = [\"reader\", \"auditor\"]\nlogs = [\"*\"]\n",
            own("audit/server"),
            own("audit/client"),
            log.address,
        );
        fs::write(house.path("audit.toml"), config).unwrap();
        let config = format!(
            "name = \"cluster.example\"\ndirectory = \"collector\"\norigin = \"{origin}\"\npolicy = \"policy\"\n\
             [audit]\naddress = \"127.0.0.1:1\"\nserver = \"{audit}\"\n[tls]\n{}{trust}",
            own("collector/client"),
        );
        fs::write(house.path("collector.toml"), config).unwrap();
        epigraph(&[&"init", &"audit", &"--config", &house.path("audit.toml")]).succeeded(&[]);
        epigraph(&[&"init", &"collector", &"--config", &house.path("collector.toml")])
            .succeeded(&["initialised the collector cluster.example"]);
        let vkey = fs::read_to_string(house.path("collector/keys/collector.vkey")).unwrap();
        fs::write(house.path("sources"), &vkey).unwrap();
        epigraph(&[
            &"audit",
            &"enrol",
            &"--config",
            &house.path("audit.toml"),
            &"--vkey",
            &vkey.trim(),
            &"--owner",
            &"platform",
            &"--collector",
            &COLLECTOR,
        ])
        .succeeded(&["enrolled cluster.example"]);
        house.edit(
            "client.toml",
            "[tls]",
            &format!(
                "sources = \"sources\"\n[audit]\naddress = \"127.0.0.1:1\"\nserver = \"{audit}\"\n\
             [collector]\ndirectory = \"collector\"\n{}[tls]",
                own("collector/client"),
            ),
        );
        let mut audited = Audited { house, log, audit: None };
        audited.serve();
        audited
    }

    pub fn serve(&mut self) {
        let audit = self.house.start("audit", "audit.toml");
        let audit = audit.unwrap_or_else(|ended| panic!("the audit service did not start: {ended}"));
        for file in ["client.toml", "collector.toml"] {
            let text = fs::read_to_string(self.house.path(file)).unwrap();
            let table = text.find("[audit]").unwrap();
            let at = table + text[table..].find("address = \"").unwrap() + "address = \"".len();
            let end = at + text[at..].find('"').unwrap();
            fs::write(self.house.path(file), format!("{}{}{}", &text[..at], audit.address, &text[end..]))
                .unwrap();
        }
        self.audit = Some(audit);
    }

    pub fn stop_service(&mut self) {
        self.audit.take().unwrap().stop();
    }

    fn collect(&self, args: &[&str]) -> Ended {
        let mut all: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"--json", &"--once"];
        all.extend(args.iter().map(|arg| arg as &dyn AsRef<std::ffi::OsStr>));
        self.house.call("collect", &all)
    }

    /// The same, for people.
    fn tell(&self, args: &[&str]) -> Ended {
        let mut all: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"--once"];
        all.extend(args.iter().map(|arg| arg as &dyn AsRef<std::ffi::OsStr>));
        self.house.call("collect", &all)
    }

    /// What the service says of the one source.
    pub fn status(&self) -> Value {
        let ended = self.house.call("audit", &[&"status", &"--json"]);
        let object = ended.succeeded(&[]).object();
        let sources = object["sources"].as_array().unwrap();
        sources.iter().find(|source| source["name"] == "cluster.example").unwrap().clone()
    }

    fn file(&self, name: &str, lines: &str) -> PathBuf {
        let path = self.house.outside(name);
        fs::write(&path, lines).unwrap();
        path
    }
}

fn events(from: usize, to: usize) -> String {
    (from..to).map(|n| format!("{{\"n\":{n},\"who\":\"user-{n}\"}}\n")).collect()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn shared(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(std::env::var_os("EPIGRAPH_SHARED")?).join("data").join(name);
    path.exists().then_some(path)
}

#[test]
fn files_go_in_once_and_every_event_is_proven() {
    let audited = Audited::new();
    let file = audited.file("app.jsonl", &(events(0, 700) + "no json\n{\"who\":\"eve@example.com\"}"));
    let ended = audited.collect(&["--jsonl", text(&file)]);
    let object = ended.succeeded(&[]).object();
    let input = &object["inputs"][0];
    assert_eq!((input["records"].as_u64(), input["events"].as_u64()), (Some(702), Some(702)));
    assert_eq!(input["rejected"]["NOT_JSON"], 1);
    assert_eq!(input["tokenised"][0]["kind"], "email");
    assert!(!ended.out.contains("eve@example.com") && !ended.err.contains("eve@example.com"));
    assert_eq!(object["waiting_batches"], 0);
    // Again: nothing is there that was not read.
    let again = audited.collect(&["--jsonl", text(&file)]);
    assert_eq!(again.succeeded(&[]).object()["inputs"][0]["records"], 0);
    let status = audited.status();
    assert_eq!((status["events"].as_u64(), status["gap_count"].as_u64()), (Some(702), Some(0)));
    assert_eq!(status["next_sequence"], 702);
}

#[test]
fn what_cannot_be_delivered_waits_in_the_spool_and_goes_in_once() {
    let mut audited = Audited::new();
    let file = audited.file("app.jsonl", &events(0, 600));
    audited.stop_service();
    audited.tell(&["--jsonl", text(&file)]).refused(4, &["3 batches wait in the spool"]);
    audited.serve();
    fs::write(&file, events(0, 900)).unwrap();
    let object = audited.collect(&["--jsonl", text(&file)]).succeeded(&[]).object();
    assert_eq!(object["inputs"][0]["records"], 300);
    let status = audited.status();
    assert_eq!((status["events"].as_u64(), status["gap_count"].as_u64()), (Some(900), Some(0)));
}

#[test]
fn a_collector_that_is_killed_anywhere_loses_and_doubles_nothing() {
    let mut audited = Audited::new();
    let file = audited.file("app.jsonl", "");
    let mut written = 0;
    for round in 0..6 {
        let mut collector = command(&[&"collect", &"--jsonl", &file, &"--profile", &audited.house.path("")])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(collector.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("collecting as"), "{line}");
        let more = events(written, written + 500);
        written += 500;
        // Not written anew: a reader that looks while it is empty is right to begin again.
        fs::File::options().append(true).open(&file).unwrap().write_all(more.as_bytes()).unwrap();
        if round % 2 == 1 {
            // The service goes away in the middle of it too.
            audited.audit.take().unwrap().kill();
            audited.serve();
        } else {
            // As long as another process takes: the collector is somewhere on the way.
            audited.status();
        }
        collector.kill().unwrap();
        collector.wait().unwrap();
    }
    let object = audited.collect(&["--jsonl", text(&file)]).succeeded(&[]).object();
    assert_eq!(object["waiting_batches"], 0);
    let status = audited.status();
    assert_eq!((status["events"].as_u64(), status["gap_count"].as_u64()), (Some(written as u64), Some(0)));
    assert_eq!(status["troubles"].as_array().unwrap().len(), 0, "{status}");
}

#[test]
fn real_events_are_found_again_by_their_ids_and_proven_offline() {
    let (Some(cloudtrail), Some(k8s)) = (shared("cloudtrail.jsonl"), shared("k8s-audit.jsonl")) else {
        println!("skipped: EPIGRAPH_SHARED has no recorded events");
        return;
    };
    let audited = Audited::new();
    let ended = audited.collect(&["--cloudtrail", text(&cloudtrail), "--k8s-audit", text(&k8s)]);
    let object = ended.succeeded(&[]).object();
    assert_eq!(object["inputs"][1]["rejected"]["NOT_AN_EVENT"], 1, "{object}");
    let line = fs::read_to_string(&cloudtrail).unwrap();
    let record: Value = serde_json::from_str(line.lines().next().unwrap()).unwrap();
    let id = record["eventID"].as_str().unwrap();
    let out = audited.house.outside("out");
    audited.house.call("events", &[&"get", &id, &"--proof", &out]).succeeded(&["verified:"]);
    epigraph(&[&"verify", &"--profile", &audited.house.path(""), &out]).succeeded(&[]);
    drop(audited.log);
}

#[test]
fn a_flipped_bit_in_the_spool_is_named_and_nothing_is_sent() {
    let mut audited = Audited::new();
    let file = audited.file("app.jsonl", &events(0, 600));
    audited.stop_service();
    audited.tell(&["--jsonl", text(&file)]).refused(4, &[]);
    audited.serve();
    let segment = fs::read_dir(audited.house.path("collector/spool"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|extension| extension == "seg"))
        .unwrap();
    crate::support::flip(&segment, 3_000);
    audited.tell(&["--jsonl", text(&file)]).refused(5, &["is damaged at byte"]);
    assert_eq!(audited.status()["events"], 0);
}
