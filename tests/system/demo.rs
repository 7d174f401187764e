//! The demos: whoever cheats is caught by the shipped monitor, which is told nothing, and a monitor that cannot see is noticed.

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use crate::support::{Ended, epigraph};

/// Runs a demo in a directory of its own.
fn play(name: &str, more: &[&str]) -> (TempDir, PathBuf, Ended) {
    let dir = TempDir::new().unwrap();
    let home = dir.path().join("demo");
    let mut args: Vec<&dyn AsRef<std::ffi::OsStr>> =
        vec![&"quickstart", &"--once", &"--demo", &name, &"--dir", &home];
    args.extend(more.iter().map(|arg| arg as &dyn AsRef<std::ffi::OsStr>));
    let ended = epigraph(&args);
    (dir, home, ended)
}

/// It ends well, with its own finding and nothing else, and the line that it prints for a stranger works where it was printed. Broken
/// to see each of them fail: the adversary does not lie.
#[track_caller]
fn catches(name: &str, finding: &str, says: &[&str]) {
    let (_dir, home, ended) = play(name, &[]);
    let alarm = format!("ALARM {finding}");
    ended.succeeded(&["1. Nobody cheats", "nothing found", &alarm, "the webhook was called", "Caught:"]);
    ended.succeeded(says);
    assert!(fs::exists(home.join("demo.txt")).unwrap());
    let command = ended.out.lines().find_map(|line| line.trim_start().split_once(" verify "));
    let words: Vec<&str> = command.unwrap().1.split_whitespace().collect();
    let [file, "--vkey", vkey] = words[..] else { panic!("{words:?}") };
    epigraph(&[&"verify", &file, &"--vkey", &vkey]).succeeded(&[]);
}

#[test]
fn two_histories_are_proven_to_a_stranger() {
    catches("split-view", "split-view", &["signed two histories", "bob is handed entry 24 as"]);
}

#[test]
fn a_rewritten_entry_is_found() {
    catches("rewrite", "rewritten-entry", &["alice is handed entry 7 as", "it was appended as"]);
}

#[test]
fn readers_who_are_held_back_are_noticed() {
    catches("freeze", "stale-head", &["is not shown the other 24"]);
}

#[test]
fn a_broken_promise_is_noticed() {
    catches("drop", "missing-entry", &["hands the promise to the monitor"]);
}

#[test]
fn a_witness_with_two_histories_is_proven_to_a_stranger() {
    catches("witness-liar", "witness-equivocation", &["cosigned two histories", "witness-4 shows alice"]);
}

#[test]
fn nobody_who_is_honest_is_accused() {
    let (_dir, _home, ended) = play("honest", &["--json"]);
    let object = ended.succeeded(&[]).object();
    assert_eq!(object["verdict"]["findings"], serde_json::json!([]), "{ended}");
}

/// The demos can fail: a monitor that was given another key sees nothing of this log, and whoever watches is told. Broken to see it
/// fail: the judge neither waits for the monitor to come along nor looks at what else was found; one of the two is enough.
#[test]
fn a_monitor_that_cannot_see_is_noticed() {
    for name in ["split-view", "rewrite", "freeze", "drop", "witness-liar", "honest"] {
        let (_dir, _home, ended) = play(name, &["--blind"]);
        ended.refused(1, &["the monitor"]);
    }
}

#[test]
fn a_demo_takes_a_new_directory() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("mine"), "").unwrap();
    epigraph(&[&"quickstart", &"--once", &"--demo", &"honest", &"--dir", &dir.path()])
        .refused(2, &["is not empty"]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}
