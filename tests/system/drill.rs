//! F7: one byte that is changed is named by the next read, by the check of everything, and by a verification, wherever it is. And the
//! checks themselves: of an audit service and of a collector.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::first_minute::Quickstart;
use crate::support::{Ended, House, epigraph, flip, signal};
use crate::waiting::until;

/// Every file below a directory, but for the messages of processes that end.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    found
}

/// Every field of an object is in the section of docs/json.md.
#[track_caller]
pub fn is_documented(section: &str, object: &Value) {
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/json.md")).unwrap();
    let table = text.split("\n## ").find(|part| part.starts_with(&format!("{section}\n"))).unwrap();
    for key in object.as_object().unwrap().keys() {
        assert!(table.contains(&format!("`{key}`")), "{section}: {key} is not documented");
    }
}

fn tamper(home: &Path, place: &str) -> Ended {
    epigraph(&[&"drill", &"tamper", &"--where", &place, &"--json", &"--profile", &home])
}

/// The same, for people.
fn tell(home: &Path, place: &str) -> Ended {
    epigraph(&[&"drill", &"tamper", &"--where", &place, &"--profile", &home])
}

/// All three name it, each in its words, and the original is as it was.
#[track_caller]
fn check(home: &Path, place: &str, [read, scrub, verify]: [&str; 3]) {
    let before = files(home);
    let ended = tamper(home, place);
    let object = ended.succeeded(&[]).object();
    let changed: Vec<_> =
        files(home).into_iter().filter(|(path, bytes)| before.get(path) != Some(bytes)).collect();
    assert!(
        changed.iter().all(|(path, _)| path.ends_with("LOCK")),
        "{place}: {:?}",
        changed.first().map(|(path, _)| path)
    );
    for (who, says) in [("read", read), ("scrub", scrub), ("verify", verify)] {
        assert!(object[who].as_str().unwrap_or_default().contains(says), "{place}, {who}: {object}");
    }
    assert_eq!(object["where"], place);
    is_documented("drill tamper", &object);
    assert!(object["offset"].is_u64(), "{object}");
    tell(home, place).succeeded(&[
        "read    names it:",
        "scrub   names it:",
        "verify  names it:",
        "The original is as it was",
    ]);
}

/// Broken to see it fail: nothing is flipped; the reader's error is not taken for a find.
#[test]
fn a_byte_in_the_journal_and_in_a_tile_is_named_by_all() {
    let lines: String = (0..600).map(|n| format!("entry {n}\n")).collect();
    let house = House::with_lines(lines.as_bytes());
    let home = house.path("");
    let segment = "00000000000000000000.seg";
    check(&home, "journal", [segment, segment, "entry 300 is not proven"]);
    check(&home, "tile", ["what is served is right", "tree: ", "entry 1 is not proven"]);
    // Without an audit service the only index is the log's.
    for place in ["index", "lookup"] {
        tell(&home, place).refused(2, &["from 65536 entries on", "the log has 600"]);
    }
    tell(&home, "payload").refused(2, &["cannot read", "audit.toml"]);
    // A running log is named, and nothing is copied.
    let serving = house.serve();
    tell(&home, "journal").refused(5, &["is in use by", &format!("process {}", serving.pid())]);
}

/// Broken to see it fail: nothing is flipped.
#[test]
fn a_byte_in_the_lookup_is_named_by_all() {
    let house = House::new();
    let serving = house.serve();
    house
        .call(
            "hammer",
            &[
                &"--count",
                &"66000",
                &"--batch",
                &"2048",
                &"--size",
                &"40",
                &"--concurrency",
                &"4",
                &"--wait",
                &"published",
            ],
        )
        .succeeded(&[]);
    until("a run of the lookup", || house.log("lookup/00000000000000000000-16.run").exists().then_some(()));
    serving.stop();
    let run = "00000000000000000000-16.run";
    check(&house.path(""), "lookup", [run, run, "is not proven"]);
}

/// Broken to see it fail: nothing is flipped; the index of a copy not looked at by the check.
#[test]
fn a_byte_in_an_event_in_the_index_and_in_the_spool_is_named_by_all() {
    let dir = TempDir::new().unwrap();
    let home = dir.path().join("home");
    let quickstart = Quickstart::start(dir.path(), "home");
    let sample = home.join("cloudtrail-sample.jsonl");
    let fsck = |role: &str| {
        let config = home.join(format!("{role}.toml"));
        epigraph(&[&"fsck", &"--json", &"--role", &role, &"--config", &config])
    };
    fsck("collector").succeeded(&["\"waiting_batches\":0"]);
    tell(&home, "spool").refused(2, &["has no batch in it"]);
    epigraph(&[&"collect", &"--cloudtrail", &sample, &"--once", &"--profile", &home]).succeeded(&[]);
    tell(&home, "payload").refused(5, &["is in use by"]);
    epigraph(&[&"fsck", &"--role", &"audit", &"--config", &home.join("audit.toml")])
        .refused(5, &["is in use by"]);
    // A service that was killed: its store is looked at as it is, and its leaves are compared with the log's.
    signal("KILL", fs::read_to_string(home.join("run/audit.pid")).unwrap().trim());
    let object = until("the end of the service", || {
        let ended = fsck("audit");
        (ended.code == Some(0)).then(|| ended.object())
    });
    assert_eq!(
        (&object["events"], &object["leaves_compared"], &object["batches"]),
        (&4.into(), &4.into(), &1.into()),
        "{object}"
    );
    quickstart.stop().succeeded(&[]);

    let checked = fsck("audit").succeeded(&[]).object();
    is_documented("fsck", &checked);
    is_documented("fsck", &fsck("collector").object());
    let findings = checked["findings"].as_array().unwrap();
    let kinds: Vec<_> = findings.iter().map(|finding| finding["kind"].as_str().unwrap()).collect();
    assert!(
        kinds.contains(&"warning") && !kinds.contains(&"damaged") && checked["leaves_compared"].is_null(),
        "{checked}"
    );
    check(
        &home,
        "payload",
        ["the body of the event", "event 0 of epoch 1", "the body segment is not the one that was signed"],
    );
    check(&home, "index", ["what it answers is right", "index.redb: the row of leaf", "is not proven"]);
    check(&home, "spool", ["is damaged at byte", "00000000000000000000.seg, byte", "not"]);
    fsck("collector").succeeded(&["\"delivered_batches\":1"]);
}

/// What `fsck` says of a service whose list or key does not belong to it, and of a spool with a flipped bit. Broken to see it fail: a batch of
/// which the source is not known is passed over.
#[test]
fn the_checks_name_what_is_wrong_and_change_nothing() {
    let dir = TempDir::new().unwrap();
    let home = dir.path().join("home");
    let quickstart = Quickstart::start(dir.path(), "home");
    let sample = home.join("cloudtrail-sample.jsonl");
    epigraph(&[&"collect", &"--cloudtrail", &sample, &"--once", &"--profile", &home]).succeeded(&[]);
    quickstart.stop().succeeded(&[]);
    let fsck = |role: &str| {
        let config = home.join(format!("{role}.toml"));
        epigraph(&[&"fsck", &"--role", &role, &"--config", &config])
    };
    let ended = fsck("audit");
    ended.succeeded(&["clean: 4 events in 1 batches of 1 sources", "the log was not asked"]);
    assert!(!ended.out.contains("unfinished"), "{ended}");
    fsck("collector").succeeded(&["clean: 0 batches wait and 1 delivered ones are still there"]);
    // A source that is no longer listed: nobody can say who signed its batches.
    let list = home.join("audit/sources.toml");
    let listed = fs::read_to_string(&list).unwrap();
    fs::write(&list, &listed[..listed.find("\n[[source]]").unwrap()]).unwrap();
    let ended = fsck("audit");
    ended.refused(5, &["is damaged (findings: 1)", "nothing was changed"]);
    assert!(ended.out.contains("not in the list of sources any more"), "{ended}");
    fs::write(&list, listed).unwrap();
    // Another key that wraps.
    let key = home.join("audit/keys/wrapping.key");
    let right = fs::read(&key).unwrap();
    let digit = right.len() - 2;
    flip(&key, digit as u64);
    assert_eq!(fsck("audit").code, Some(5));
    fs::write(&key, right).unwrap();
    let segment = home.join("collector/spool/00000000000000000000.seg");
    let before = fs::read(&segment).unwrap();
    flip(&segment, 2_000);
    let ended = fsck("collector");
    ended.refused(5, &["is damaged", "nothing was changed"]);
    flip(&segment, 2_000);
    assert!(fs::read(&segment).unwrap() == before);
    let _: Value = serde_json::from_str(
        &epigraph(&[&"fsck", &"--json", &"--role", &"collector", &"--config", &home.join("collector.toml")])
            .out,
    )
    .unwrap();
}
