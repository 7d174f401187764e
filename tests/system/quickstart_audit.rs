//! Audit events in a quickstart: the commands that a newcomer is shown, as they stand, from files to proofs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use epigraph_core::{Clock as _, SourceKey};
use epigraph_event::batch::Batch;
use epigraph_event::chain::Tip;
use epigraph_rpc::peer::audit::{Audit, Submitted};
use serde_json::Value;
use tempfile::TempDir;

use crate::audit::{Counting, collected};
use crate::drill::is_documented;
use crate::first_minute::{Quickstart, proposed, run_in};
use crate::support::{Ended, Then, block_on, epigraph, signal, tls_in};
use crate::waiting::until;

const COLLECTING: &str =
    "Collect audit events, signed before they go anywhere; find one again, and prove it offline:";

/// Runs a command in a shell that finds the program by its name.
fn shell(dir: &Path, command: &str) -> Ended {
    let program = Path::new(env!("CARGO_BIN_EXE_epigraph")).parent().unwrap();
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).current_dir(dir).env("PATH", path).env_remove("EPIGRAPH_PROFILE");
    shell.output().unwrap().into()
}

/// A recorded file, or a few made-up records in its place.
fn recorded(dir: &Path, name: &str, otherwise: &str) -> PathBuf {
    let path = dir.join(name);
    let shared =
        std::env::var_os("EPIGRAPH_SHARED").map(|shared| PathBuf::from(shared).join("data").join(name));
    match shared.filter(|shared| shared.exists()) {
        Some(shared) => drop(fs::copy(shared, &path).unwrap()),
        None => fs::write(&path, otherwise).unwrap(),
    }
    path
}

/// The bytes of a record as they were collected: what lies between the tokens.
fn without_tokens(shown: &str) -> impl Iterator<Item = &str> {
    let mut pieces = shown.split("[email:").flat_map(|piece| piece.split("[access-key:"));
    let first = pieces.next();
    first.into_iter().chain(pieces.map(|piece| piece.split_once(']').unwrap().1))
}

fn sources(home: &Path) -> Vec<Value> {
    let object = epigraph(&[&"audit", &"status", &"--json", &"--profile", &home]).succeeded(&[]).object();
    object["sources"].as_array().unwrap().clone()
}

/// Broken to see it fail: a collector that is not enrolled; `--profile` without a default.
#[test]
fn the_three_commands_work_as_they_are_written() {
    let dir = TempDir::new().unwrap();
    let home = dir.path().join("epigraph-quickstart");
    let _quickstart = Quickstart::start(dir.path(), "epigraph-quickstart");
    let sample = fs::read_to_string(home.join("cloudtrail-sample.jsonl")).unwrap();
    recorded(dir.path(), "cloudtrail.jsonl", &sample);
    let event = r#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Metadata","auditID":"0c1f-a","stage":"ResponseComplete","requestURI":"/api","verb":"get","user":{"username":"anna"},"sourceIPs":["192.0.2.1"],"requestReceivedTimestamp":"2026-01-05T08:00:00.000000Z","stageTimestamp":"2026-01-05T08:00:00.100000Z"}"#;
    recorded(dir.path(), "k8s-audit.jsonl", &format!("{event}\n{{\"kind\":0}}\n"));
    let collected = shell(
        dir.path(),
        "epigraph collect --cloudtrail cloudtrail.jsonl --k8s-audit k8s-audit.jsonl --once --profile epigraph-quickstart",
    );
    collected.succeeded(&["everything is proven to be in the log", "1 kept in the quarantine: NOT_AN_EVENT"]);
    // The next command, as it was printed.
    let next = collected.out.lines().find(|line| line.starts_with("  epigraph events get ")).unwrap().trim();
    assert!(next.ends_with("--proof out/"), "{next}");
    let id = next.split(' ').nth(3).unwrap();
    let record = fs::read_to_string(dir.path().join("cloudtrail.jsonl")).unwrap();
    let record = record.lines().find(|line| line.contains(id)).unwrap();
    let got = shell(dir.path(), next);
    got.succeeded(&["verified:", "1 events with their proofs"]);
    let shown = got.out.lines().find(|line| line.starts_with('{') && line.contains(id)).unwrap();
    assert!(without_tokens(shown).all(|piece| record.contains(piece)), "{got}");
    shell(dir.path(), "epigraph verify --profile epigraph-quickstart out/")
        .succeeded(&["verified: 1 events, offline, with public keys alone"]);
    shell(dir.path(), "epigraph audit status").succeeded(&["source", "lag", "0 gaps"]);
    let of = |name: &str| {
        sources(&home).into_iter().find(|source| source["name"].as_str().unwrap().ends_with(name))
    };
    let source = of("/collector").unwrap();
    assert_eq!((&source["events"], &source["gap_count"]), (&source["next_sequence"], &0.into()), "{source}");
    assert_eq!((&source["silent"], &source["troubles"]), (&false.into(), &serde_json::json!([])), "{source}");
    assert_eq!(of("/audit").unwrap()["events"], 1);
    is_documented("audit status, events get", &source);
    let got = epigraph(&[&"events", &"get", &id, &"--json", &"--profile", &home]).succeeded(&[]).object();
    is_documented("audit status, events get", &got["events"][0]);
    // Again: nothing is doubled.
    let again = shell(
        dir.path(),
        "epigraph collect --json --cloudtrail cloudtrail.jsonl --once --profile epigraph-quickstart",
    );
    let object = again.succeeded(&[]).object();
    is_documented("collect", &object);
    is_documented("collect", &object["inputs"][0]);
    assert_eq!(of("/collector").unwrap()["events"], source["events"]);
}

/// Broken to see it fail: a grant of the log without `reader`.
#[test]
fn the_proposed_commands_collect_and_prove_an_event_and_its_events_outlive_the_service() {
    let dir = TempDir::new().unwrap();
    let home = dir.path().join("it's home");
    let mut quickstart = Quickstart::start(dir.path(), "it's home");
    let commands = proposed(&quickstart.text, COLLECTING);
    let ended: Vec<_> = commands.iter().map(|command| run_in(dir.path(), command)).collect();
    assert_eq!(ended.len(), 4);
    ended[0].succeeded(&["everything is proven to be in the log", "replaced by tokens: email"]);
    ended[1].succeeded(&["AttachUserPolicy", "arn:aws:iam::111122223333:user/anna"]);
    assert!(!ended[1].out.contains("bert@audit.example"), "{}", ended[1]);
    ended[2].succeeded(&["verified: 1 events"]);
    ended[3].succeeded(&["2 sources, 0 gaps"]);

    // The service ends: it is said, and the log goes on; it is started again as it was said.
    signal("KILL", fs::read_to_string(home.join("run/audit.pid")).unwrap().trim());
    let said = quickstart.says("takes no audit events any more");
    assert!(said.contains("serve audit --config"), "{said}");
    let input = dir.path().join("input");
    fs::write(&input, "one\n").unwrap();
    epigraph(&[&"append", &input, &"--profile", &home]).succeeded(&["published"]);
    let offline = run_in(dir.path(), &commands[2]);
    offline.succeeded(&["verified: 1 events"]);
    quickstart.stop().succeeded(&["Stopped."]);

    // A later run goes on with it.
    let _quickstart = Quickstart::start(dir.path(), "it's home");
    run_in(dir.path(), &commands[3]).succeeded(&["2 sources, 0 gaps"]);
    fs::remove_dir_all(home.join("event-proofs")).unwrap();
    run_in(dir.path(), &commands[1]).succeeded(&["AttachUserPolicy"]);
}

/// Hands batches in under the name of the quickstart's collector.
fn submit(home: &Path, batches: &[Batch]) {
    let config = fs::read_to_string(home.join("collector.toml")).unwrap();
    let address = config.split("[audit]\naddress = \"").nth(1).unwrap().split('"').next().unwrap();
    let server = "spiffe://epigraph.quickstart/epigraph/audit/quickstart".parse().unwrap();
    block_on(async {
        let audit = Audit::new(address, &tls_in(home, "pki/collector/client"), &server).unwrap();
        let (mut sender, mut answers) = audit.submit("").await.unwrap();
        for batch in batches {
            assert!(sender.send(batch.encode().into()).await);
            loop {
                match answers.next().await.unwrap().unwrap() {
                    Submitted::Accepted { .. } => break,
                    Submitted::Published { .. } => {}
                    other => panic!("{other:?}"),
                }
            }
        }
    });
}

/// A gap that was made on purpose is told by the monitor of the same quickstart, by source, epoch and number, and is over when it is filled.
/// Broken to see it fail: the monitor's configuration without `[log.audit]` names the gap by the log's leaves, and nobody's owner.
#[test]
fn the_monitor_of_a_quickstart_tells_of_a_gap_until_it_is_filled() {
    let dir = TempDir::new().unwrap();
    let home = dir.path().join("home");
    let _quickstart = Quickstart::start(dir.path(), "home");
    let key = fs::read_to_string(home.join("collector/keys/collector.key")).unwrap();
    let key: SourceKey = key.trim().parse().unwrap();
    let now = Then::of(&home.join("collector.toml")).now();
    let (entropy, mut tip, mut batches) = (Counting::default(), Tip::default(), Vec::new());
    for _ in 0..3 {
        let batch = Batch::sign(&key, &tip, collected(&entropy), now).unwrap();
        tip = Tip::after(batch.signed());
        batches.push(batch);
    }
    let findings = |resolved: &[&str]| {
        let mut args: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"monitor", &"findings", &"--profile", &home];
        args.extend(resolved.iter().map(|arg| arg as &dyn AsRef<std::ffi::OsStr>));
        epigraph(&args).out
    };
    submit(&home, &[batches[0].clone(), batches[2].clone()]);
    let told = until("the gap among the findings", || {
        let told = findings(&[]);
        (told.contains("source-gap") && told.contains("whoever made this quickstart")).then_some(told)
    });
    assert!(told.contains("events 2 to 3 of epoch 0"), "{told}");
    submit(&home, &batches[1..2]);
    until("the end of the gap", || (!findings(&[]).contains("source-gap")).then_some(()));
    assert!(findings(&["--all"]).contains("source-gap"));
}
