//! `epigraph quickstart` on real input, on odd input, a second time, and where it cannot work.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tempfile::TempDir;

use crate::support::{Ended, House, command, epigraph};

/// Runs it with `--json` on a new directory; the object must account for every line.
fn check_whole(input: &Path, lines: u64) {
    let dir = TempDir::new().unwrap();
    let home = dir.path().join("home");
    let ended = epigraph(&[&"quickstart", &"--once", &"--json", &"--dir", &home, &"--input", &input]);
    let object = ended.succeeded(&[]).object();
    for (key, expected) in [("appended", lines), ("first_index", 0), ("last_index", lines - 1)] {
        assert_eq!(object[key], expected, "{key}: {object}");
    }
    assert_eq!(
        (&object["receipts_verified"], &object["receipts_kept"]),
        (&lines.into(), &lines.min(100).into())
    );
    let text = fs::read(input).unwrap();
    for (index, line) in text.split(|byte| *byte == b'\n').take(lines.min(100) as usize).enumerate() {
        assert_eq!(fs::read(home.join(format!("receipts/{index:06}.entry"))).unwrap(), line, "entry {index}");
    }
    let last = lines.min(100) - 1;
    epigraph(&[&"verify", &home.join(format!("receipts/{last:06}.tlog-proof")), &"--profile", &home])
        .succeeded(&[&format!("entry {last} is in the log")]);
}

/// A file of real audit events, where they are kept beside the project.
fn shared(name: &str) -> Option<PathBuf> {
    let Some(shared) = env::var_os("EPIGRAPH_SHARED") else {
        println!("skipped: EPIGRAPH_SHARED is not set, so there is no {name}");
        return None;
    };
    let path = Path::new(&shared).join("data").join(name);
    assert!(path.is_file(), "EPIGRAPH_SHARED is set, and {} is missing", path.display());
    Some(path)
}

#[test]
fn cloudtrail_events_all_get_receipts() {
    if let Some(path) = shared("cloudtrail.jsonl") {
        check_whole(&path, 211);
    }
}

#[test]
fn kubernetes_audit_events_all_get_receipts() {
    if let Some(path) = shared("k8s-audit.jsonl") {
        check_whole(&path, 36);
    }
}

#[test]
fn twenty_thousand_lines_all_get_receipts() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("lines");
    let lines: String = (0..20_000).map(|n| format!("{n}{}\n", " words".repeat(n % 40))).collect();
    fs::write(&path, lines).unwrap();
    check_whole(&path, 20_000);
}

#[test]
fn standard_input_is_an_input() {
    let dir = TempDir::new().unwrap();
    let home = dir.path().join("home");
    let mut child = command(&[&"quickstart", &"--once", &"--dir", &home, &"--input", &"-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"from a pipe, without a line feed at the end").unwrap();
    let ended = Ended::from(child.wait_with_output().unwrap());
    ended.succeeded(&["1 entries, indexes 0 to 0", "1 of 1, offline"]);
}

#[test]
fn json_is_one_object_with_the_documented_keys() {
    let dir = TempDir::new().unwrap();
    let run = |name: &str, mode: &[&str]| {
        let home = dir.path().join(name);
        let mut command = command(&[&"quickstart", &"--once", &"--json", &"--dir", &home]);
        let ended: Ended = command.args(mode).output().unwrap().into();
        assert_eq!(ended.succeeded(&[]).err, "");
        let object = ended.object();
        let keys: BTreeSet<_> = object.as_object().unwrap().keys().cloned().collect();
        assert_eq!(keys, documented());
        let phases = object["phases"].as_array().unwrap();
        assert!(phases.iter().all(|phase| phase["ms"].is_u64()));
        assert_eq!((&object["continued"], &object["skipped_lines"]), (&false.into(), &serde_json::json!([])));
        assert!(object["tampering_refused"].as_str().unwrap().contains("entry 3 is not proven"));
        let texts = |list: &str, key: &str| {
            let list = object[list].as_array().unwrap();
            list.iter().map(|item| item[key].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        (texts("phases", "name"), texts("processes", "role"))
    };
    let (phases, roles) = run("alone", &["--alone"]);
    assert_eq!(phases, ["keys and certificates", "log is serving", "entries appended", "receipts verified"]);
    assert_eq!(roles, ["log"]);
    let (phases, roles) = run("home", &[]);
    assert_eq!(phases[1..3], ["signer is serving", "witness-1 is serving"]);
    assert_eq!(phases[6..10], ["audit is serving", "log is serving", "monitor is serving", "all agree"]);
    assert_eq!(phases.last().unwrap(), "the monitor looked");
    assert_eq!(
        roles,
        ["monitor", "audit", "log", "signer", "witness-1", "witness-2", "witness-3", "witness-4"]
    );
}

/// The table of docs/json.md below this command's heading names each field between backquotes in its first column.
fn documented() -> BTreeSet<String> {
    let documentation = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/json.md")).unwrap();
    let table = documentation.split("\n## ").find(|section| section.starts_with("quickstart\n")).unwrap();
    let fields = table.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |"));
    fields.flat_map(|(fields, _)| fields.split("`, `")).map(ToOwned::to_owned).collect()
}

#[test]
fn blank_lines_carriage_returns_and_duplicates_are_entries_byte_for_byte() {
    let house = House::with_lines(b"a\r\n\n\nsame\nsame\n\xff\0\n\r\nno line feed");
    let entries: [&[u8]; 8] = [b"a\r", b"", b"", b"same", b"same", b"\xff\0", b"\r", b"no line feed"];
    for (index, entry) in (0..).zip(entries) {
        assert_eq!(fs::read(house.path(&format!("receipts/{index:06}.entry"))).unwrap(), entry);
        epigraph(&[&"verify", &house.receipt(index), &"--vkey", &house.vkey()])
            .succeeded(&[&format!("entry {index} is in the log")]);
    }
    assert!(!house.receipt(8).exists());
}

#[test]
fn a_line_too_long_for_an_entry_is_named_and_all_others_are_appended() {
    let dir = TempDir::new().unwrap();
    let (home, input) = (dir.path().join("home"), dir.path().join("input"));
    let lines = [b"first".to_vec(), vec![b'x'; 65_536], vec![b'y'; 65_535], b"last".to_vec()];
    fs::write(&input, lines.join(&b'\n')).unwrap();
    let ended = epigraph(&[&"quickstart", &"--once", &"--dir", &home, &"--input", &input]);
    ended.refused(2, &["line 2;", "at most 65535 bytes", "all others are in the log"]);
    assert!(ended.err.contains("line 2 has 65536 bytes"), "{ended}");
    assert!(ended.out.contains("3 of 3, offline"), "{ended}");
    for (index, line) in [(0, &lines[0]), (1, &lines[2]), (2, &lines[3])] {
        assert_eq!(&fs::read(home.join(format!("receipts/{index:06}.entry"))).unwrap(), line);
    }
    let ended = epigraph(&[&"quickstart", &"--once", &"--json", &"--dir", &home, &"--input", &input]);
    assert_eq!((ended.code, &ended.object()["skipped_lines"]), (Some(2), &serde_json::json!([2])));
}

#[test]
fn an_input_without_lines_or_without_a_file_is_a_usage_error() {
    let dir = TempDir::new().unwrap();
    let (home, input) = (dir.path().join("home"), dir.path().join("input"));
    let run = || epigraph(&[&"quickstart", &"--once", &"--dir", &home, &"--input", &input]);
    run().refused(2, &["cannot read", "input"]);
    assert!(!home.exists());
    fs::write(&input, "").unwrap();
    run().refused(2, &["the input has no lines"]);
}

#[test]
fn a_second_run_continues_the_same_log_and_says_so() {
    for mode in ["--color=auto", "--alone"] {
        let dir = TempDir::new().unwrap();
        let home = dir.path().join("home");
        let run = |json: &str| epigraph(&[&"quickstart", &"--once", &mode, &"--dir", &home, &json]);
        let first = run("--json").succeeded(&[]).object();
        let second = run("--json").succeeded(&[]).object();
        assert_eq!((&first["continued"], &second["continued"]), (&false.into(), &true.into()));
        assert_eq!((&second["origin"], &second["address"]), (&first["origin"], &first["address"]));
        let addresses = |object: &serde_json::Value| {
            let processes = object["processes"].as_array().unwrap();
            processes.iter().map(|process| process["address"].clone()).collect::<Vec<_>>()
        };
        assert_eq!(addresses(&first), addresses(&second));
        assert_eq!(second["first_index"].as_u64().unwrap(), first["last_index"].as_u64().unwrap() + 1);
        let third = epigraph(&[&"quickstart", &"--once", &"--dir", &home]);
        third.succeeded(&["directory found", "continues with 96 entries", "indexes 96 to 143"]);
        assert_eq!(third.out.contains("was made without witnesses"), mode == "--alone", "{third}");
        epigraph(&[&"verify", &home.join("receipts/000050.tlog-proof"), &"--profile", &home]).succeeded(&[]);
    }
}

#[test]
fn a_taken_port_is_refused_with_one_sentence_and_a_way_out() {
    let house = House::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    house.edit("log.toml", "127.0.0.1:0", &address);
    epigraph(&[&"quickstart", &"--once", &"--dir", &house.path("")])
        .refused(2, &[&format!("cannot listen on {address}"), "Stop the program that uses it, or"]);
}

#[test]
fn a_directory_that_cannot_be_used_is_refused_with_one_sentence_and_a_way_out() {
    let dir = TempDir::new().unwrap();
    let run = |home: &Path| epigraph(&[&"quickstart", &"--once", &"--dir", &home]);
    let file = dir.path().join("file");
    fs::write(&file, "not a directory").unwrap();
    run(&file.join("below")).refused(2, &["cannot use the directory", "Choose another with --dir"]);
    run(&file).refused(2, &["cannot use the directory", "Choose another with --dir"]);
    // Neither somebody's own directory nor half of a quickstart is taken for one.
    run(dir.path()).refused(2, &["is not a quickstart directory", "choose another with --dir"]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}
