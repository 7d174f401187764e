//! A log followed on the command line, its checkpoints watched and listed, and proofs under older ones.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout};

use serde_json::Value;

use crate::support::{House, command, leaf, signal};

/// A command that goes on until it is told to stop.
struct Running {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Running {
    fn start(house: &House, args: &[&dyn AsRef<OsStr>]) -> Running {
        let profile = house.path("");
        let mut all = args.to_vec();
        all.extend([&"--profile" as &dyn AsRef<OsStr>, &profile]);
        let mut child = command(&all).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Running { child, out }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line.trim_end_matches('\n').to_owned()
    }

    fn object(&mut self) -> Value {
        serde_json::from_str(&self.line()).unwrap()
    }

    /// Ctrl-C; it must end well, and say nothing more.
    fn interrupt(mut self) {
        signal("INT", &self.child.id().to_string());
        assert_eq!(self.line(), "");
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn append(house: &House, lines: &str) {
    let file = house.outside("more");
    fs::write(&file, lines).unwrap();
    house.call("append", &[&file]).succeeded(&[]);
}

#[test]
fn entries_are_followed_as_they_are_published_until_ctrl_c() {
    let house = House::new();
    let serving = house.serve();
    let mut plain = Running::start(&house, &[&"entries", &"1", &"--follow"]);
    let mut objects = Running::start(&house, &[&"entries", &"0", &"--follow", &"--json"]);
    assert_eq!([plain.line(), plain.line()], ["two", "three"]);
    for (index, text) in (0..).zip(["one", "two", "three"]) {
        let object = objects.object();
        assert_eq!(object["index"], index);
        assert_eq!(object["leaf_hash"], leaf(text.as_bytes()).to_string());
    }
    append(&house, "four\nfive\n");
    assert_eq!([plain.line(), plain.line()], ["four", "five"]);
    assert_eq!([objects.object(), objects.object()].map(|object| object["index"].clone()), [3, 4]);
    plain.interrupt();
    // Not interrupted: a log that is told to stop ends its streams and does not wait for their readers.
    let messages = serving.stop();
    assert!(!messages.err.contains("still in flight"), "{messages}");
    drop(objects);
    house.call("entries", &[&"0", &"--follow"]).refused(4, &["cannot be reached"]);
    house.call("entries", &[&"0", &"1", &"--follow"]).refused_by_usage("--follow");
}

#[test]
fn followed_entries_go_to_files_too() {
    let house = House::new();
    let _serving = house.serve();
    let directory = house.outside("followed");
    let mut following =
        Running::start(&house, &[&"entries", &"0", &"--follow", &"--json", &"--out", &directory]);
    (0..3).for_each(|index| assert_eq!(following.object()["index"], index));
    following.interrupt();
    assert_eq!(fs::read(directory.join("000002.entry")).unwrap(), b"three");
}

#[test]
fn checkpoints_are_watched_listed_and_proven_under_also_after_a_restart() {
    let house = House::new();
    let mut serving = house.serve();
    let mut watching = Running::start(&house, &[&"checkpoint", &"--watch", &"--json"]);
    let first = watching.object();
    assert_eq!(first["size"], 3);
    append(&house, "four\n");
    // Whoever is too slow gets the newest.
    let mut newest = watching.object();
    while newest["size"] != 4 {
        newest = watching.object();
    }
    watching.interrupt();

    // SIGKILL: what was published is in the list all the same.
    serving.kill();
    let _serving = house.serve();
    let listed = house.call("checkpoint", &[&"--list", &"--json"]);
    let listed: Vec<Value> = listed.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let sizes: Vec<_> = listed.iter().map(|object| object["size"].as_u64().unwrap()).collect();
    assert!(sizes.is_sorted() && sizes.ends_with(&[3, 4]), "{sizes:?}");
    assert_eq!(listed.last().unwrap()["note"], newest["note"]);
    let from = house.call("checkpoint", &[&"--list", &"--min-size", &"4"]);
    from.succeeded(&["size 4 root ", "verified: 1 kept checkpoints"]);
    assert_eq!(from.out.lines().count(), 2);

    let receipt = house.outside("old.tlog-proof");
    let leaf_hash = leaf(b"two").to_string();
    let old: [&dyn AsRef<OsStr>; 7] = [&"1", &"--size", &"3", &"--leaf-hash", &leaf_hash, &"--out", &receipt];
    house.call("prove", &old).succeeded(&["verified: entry 1 is in the log"]);
    let verified = house.call("verify", &[&receipt, &"--leaf-hash", &leaf_hash, &"--json"]).object();
    assert_eq!((&verified["index"], &verified["checkpoint"]["size"]), (&1.into(), &3.into()));
    // By its bytes: the lookup may be a moment behind, and says so.
    let entry = house.outside("four");
    fs::write(&entry, "four").unwrap();
    let by_bytes: [&dyn AsRef<OsStr>; 4] = [&"--entry", &entry, &"--out", &receipt];
    let mut ended = house.call("prove", &by_bytes);
    while ended.code == Some(3) {
        ended.refused(3, &["the lookup is behind the log", "LEAF_NOT_FOUND"]);
        ended = house.call("prove", &by_bytes);
    }
    ended.succeeded(&["verified: entry 3 is in the log"]);
    let none: [&dyn AsRef<OsStr>; 7] =
        [&"1", &"--size", &"99", &"--leaf-hash", &leaf_hash, &"--out", &receipt];
    house.call("prove", &none).refused(3, &["kept no checkpoint of size 99", "--list"]);
    house.call("checkpoint", &[&"--list", &"--watch"]).refused_by_usage("--watch");
}
