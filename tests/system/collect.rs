//! Audit events from files to proofs: a log, an audit service and a collector as processes, killed and started again.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use serde_json::Value;

use bytes::Bytes;
use epigraph_collector::spool::SpoolReader;
use epigraph_core::{SourceVKey, TreeSize};
use epigraph_rpc::peer::audit::{Audit, Submitted};
use epigraph_store::file::Dir;
use epigraph_store::file::real::RealDir;

use crate::signer::Door;
use crate::support::{Ended, House, Serving, block_on, command, epigraph};
use crate::waiting::{ends, until};

const COLLECTOR: &str = "spiffe://epigraph.quickstart/epigraph/collector/cluster";

/// A house with a log, an audit service and an enrolled collector.
pub struct Audited {
    pub house: House,
    log: Serving,
    /// What the audit service knows as the log.
    to_log: Door,
    pub audit: Option<Serving>,
}

impl Audited {
    pub fn new() -> Audited {
        Audited::with_log_that_publishes_every(1_000)
    }

    /// With the longest time that the log lets growth wait which nobody waits for.
    fn with_log_that_publishes_every(interval_ms: u64) -> Audited {
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
        let interval = "checkpoint_interval_ms = ";
        house.edit("log.toml", &format!("{interval}1000"), &format!("{interval}{interval_ms}"));
        let log_toml = fs::read_to_string(house.path("log.toml")).unwrap();
        fs::write(
            house.path("log.toml"),
            format!(
                "{log_toml}\n[[authorize]]\nspiffe = \"{audit}\"\nroles = [\"appender\", \"reader\"]\nlogs = [\"*\"]\n"
            ),
        )
        .unwrap();
        let (log, to_log) = (house.serve(), Door::new());
        to_log.leads_to(&log);
        let own = |stem: &str| format!("certificate = \"pki/{stem}.pem\"\nkey = \"pki/{stem}.key\"\n");
        let trust = "trust_bundle = \"pki/ca.pem\"\ntrust_domain = \"epigraph.quickstart\"\n";
        let config = format!(
            "name = \"reads.example\"\ndirectory = \"audit\"\n[listen]\naddress = \"127.0.0.1:0\"\n\
             [tls]\n{}{trust}[tls.client]\n{}\
             [log]\norigin = \"{origin}\"\naddress = \"{}\"\n\
             server = \"spiffe://epigraph.quickstart/epigraph/log/quickstart\"\npolicy = \"policy\"\n\
             [[authorize]]\nspiffe = \"{COLLECTOR}\"\nroles = [\"collector\"]\nlogs = [\"*\"]\n\
             [[authorize]]\nspiffe = \"spiffe://epigraph.quickstart/epigraph/appender/quickstart\"\n\
             roles = [\"reader\", \"auditor\"]\nlogs = [\"*\"]\n\
             [[reader]]\nspiffe = \"spiffe://epigraph.quickstart/epigraph/appender/quickstart\"\n\
             kind = \"human\"\nroles = [\"auditor\"]\ntenants = [\"*\"]\n",
            own("audit/server"),
            own("audit/client"),
            to_log.address,
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
        let mut audited = Audited { house, log, to_log, audit: None };
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

/// As whoever writes a log does: at no moment is the file shorter.
fn append(file: &Path, lines: &str) {
    fs::OpenOptions::new().append(true).open(file).unwrap().write_all(lines.as_bytes()).unwrap();
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

/// Broken by hand: with nobody who waits for the last leaf, the collector waits until it is stopped.
#[test]
fn a_collector_that_has_sent_all_it_has_does_not_wait_for_the_log_s_interval() {
    let audited = Audited::with_log_that_publishes_every(3_600_000);
    for (name, to) in [("first.jsonl", 1), ("second.jsonl", 600)] {
        let file = audited.file(name, &events(0, to));
        let object = audited.collect(&["--jsonl", text(&file)]).succeeded(&[]).object();
        assert_eq!(
            (object["waiting_batches"].as_u64(), object["inputs"][0]["events"].as_u64()),
            (Some(0), Some(to as u64))
        );
    }
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
        append(&file, &events(written, written + 500));
        written += 500;
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
    // Of a Kubernetes request somebody has the auditID.
    let lines = fs::read_to_string(&k8s).unwrap();
    let record: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    let ended = audited.house.call("events", &[&"get", &record["auditID"].as_str().unwrap(), &"--json"]);
    let found = &ended.succeeded(&[]).object()["events"];
    let written: Value = serde_json::from_str(found[0]["record"].as_str().unwrap()).unwrap();
    assert_eq!(written["auditID"], record["auditID"], "{found}");
    drop(audited.log);
}

/// The log is away, for however long: the audit service goes on to take events, collector and service are killed meanwhile, and when the log is
/// back each event is in it once. Broken to see it fail: leaves that the log has not confirmed are forgotten at a start.
#[test]
fn a_log_that_is_away_while_events_come_loses_and_doubles_nothing() {
    let mut audited = Audited::new();
    let file = audited.file("app.jsonl", &events(0, 300));
    audited.collect(&["--jsonl", text(&file)]).succeeded(&[]);
    let before = audited.house.published();
    audited.log.kill();
    let mut written = 300;
    for round in 0..4 {
        let mut collector = command(&[&"collect", &"--jsonl", &file, &"--profile", &audited.house.path("")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        append(&file, &events(written, written + 400));
        written += 400;
        // In every other round what was written is known to be durable at the service, in the others it is somewhere on the way.
        if round % 2 == 0 {
            until("the events", || (audited.status()["events"] == written).then_some(()));
        }
        collector.kill().unwrap();
        collector.wait().unwrap();
        audited.audit.take().unwrap().kill();
        audited.serve();
    }
    audited.log = audited.house.serve();
    audited.to_log.leads_to(&audited.log);
    let object = audited.collect(&["--jsonl", text(&file)]).succeeded(&[]).object();
    assert_eq!(object["waiting_batches"], 0);
    let status = audited.status();
    assert_eq!((status["events"].as_u64(), status["gap_count"].as_u64()), (Some(written as u64), Some(0)));
    assert_eq!((&status["troubles"], &status["next_sequence"]), (&serde_json::json!([]), &written.into()));
    // In the log, too, each has one leaf.
    assert_eq!(audited.house.published(), before + written as u64 - 300);
}

/// Every batch that waits in a spool, as it would be sent.
fn spooled(directory: &Path, vkey: &SourceVKey) -> Vec<Bytes> {
    let dir: Arc<dyn Dir> = Arc::new(RealDir::open(directory).unwrap());
    let durable = epigraph_store::journal::inspect(dir.as_ref(), vkey.id(), &[], &mut |_| {}).head.size;
    let mut reader = SpoolReader::starting_at(dir, vkey.id(), TreeSize::ZERO);
    std::iter::from_fn(|| reader.next(durable).unwrap()).collect()
}

/// One event of those in a spool is taken out on the way: its gap is named by source, epoch and number, until the event comes. Broken to see it
/// fail: a batch in a gap is refused.
#[test]
fn an_event_that_is_removed_is_a_gap_with_a_name() {
    let mut audited = Audited::new();
    audited.stop_service();
    let file = audited.file("app.jsonl", "");
    // Each in a batch of its own.
    for n in 1..=5 {
        fs::write(&file, events(0, n)).unwrap();
        audited.tell(&["--jsonl", text(&file)]).refused(4, &[&format!("{n} batches wait in the spool")]);
    }
    let vkey = fs::read_to_string(audited.house.path("collector/keys/collector.vkey")).unwrap();
    let batches = spooled(&audited.house.path("collector/spool"), &vkey.trim().parse().unwrap());
    assert_eq!(batches.len(), 5);
    audited.serve();
    let server = "spiffe://epigraph.quickstart/epigraph/audit/quickstart".parse().unwrap();
    let tls = audited.house.tls_of("pki/collector/client");
    block_on(async {
        let peer = Audit::new(&audited.audit.as_ref().unwrap().address, &tls, &server).unwrap();
        let (mut sender, mut answers) = peer.submit("").await.unwrap();
        for (_, batch) in batches.iter().enumerate().filter(|(n, _)| *n != 2) {
            assert!(sender.send(batch.clone()).await);
            loop {
                match answers.next().await.unwrap().unwrap() {
                    Submitted::Accepted { repeated: false, .. } => break,
                    Submitted::Published { .. } => {}
                    other => panic!("{other:?}"),
                }
            }
        }
    });
    let status = audited.status();
    assert_eq!(status["gaps"], serde_json::json!([{ "epoch": 1, "first": 2, "end": 3 }]), "{status}");
    let told = audited.house.call("audit", &[&"status"]);
    told.succeeded(&["cluster.example", "missing: events 2 to 2 of epoch 1", "2 sources, 1 gaps"]);
    // The collector has it still: the gap is filled, and what is known is not taken twice.
    audited.collect(&["--jsonl", text(&file)]).succeeded(&[]);
    let status = audited.status();
    assert_eq!((&status["events"], &status["gaps"]), (&5.into(), &serde_json::json!([])), "{status}");
}

/// A service whose directory was put back from a copy takes nothing: its collector and the log know more. Broken to see it fail: the log's
/// number is not compared with the store's.
#[test]
fn an_old_copy_of_a_service_is_found_out() {
    let mut audited = Audited::new();
    let file = audited.file("app.jsonl", &events(0, 100));
    audited.collect(&["--jsonl", text(&file)]).succeeded(&[]);
    audited.stop_service();
    let old = audited.house.save(audited.house.path("audit"));
    audited.serve();
    fs::write(&file, events(0, 200)).unwrap();
    audited.collect(&["--jsonl", text(&file)]).succeeded(&[]);
    audited.stop_service();
    let newest = audited.house.save(audited.house.path("audit"));
    old.put_back();
    let mut audit = audited.house.start("audit", "audit.toml").unwrap_or_else(|ended| panic!("{ended}"));
    ends(&mut audit).refused(5, &["the log has 200 leaves", "its store has 100 events", "an old copy"]);
    newest.put_back();
    audited.serve();
    fs::write(&file, events(0, 250)).unwrap();
    audited.collect(&["--jsonl", text(&file)]).succeeded(&[]);
    assert_eq!(audited.status()["events"], 250);
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
    fs::remove_file(&segment).unwrap();
    audited.tell(&["--jsonl", text(&file)]).refused(5, &["the collector's spool are gone", "put them back"]);
    assert_eq!(audited.status()["events"], 0);
}
