//! Entries read back on the command line: exactly the bytes that were appended.

use std::fs;
use std::process::Stdio;

use serde_json::json;

use crate::support::{House, Serving, command, leaf};

/// Empty entries, carriage returns, bytes that are no text.
const LINES: &[u8] = b"one\r\n\n\xff\0\x1b[31m\nfour\n\n";
const ENTRIES: [&[u8]; 5] = [b"one\r", b"", b"\xff\0\x1b[31m", b"four", b""];

fn served() -> (House, Serving) {
    let house = House::with_lines(LINES);
    let serving = house.serve();
    (house, serving)
}

/// What the command prints, byte for byte.
fn printed(house: &House, args: &[&str]) -> Vec<u8> {
    let profile = house.path("");
    let output = command(&[&"entries", &"--profile", &profile]).args(args).stderr(Stdio::inherit()).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{args:?}");
    output.stdout
}

#[test]
fn entries_are_printed_byte_for_byte_one_a_line() {
    let (house, _serving) = served();
    assert_eq!(printed(&house, &["0"]), LINES);
    let check = |args: &[&str], entries: &[&[u8]]| {
        let lines: Vec<u8> = entries.iter().flat_map(|entry| [entry, b"\n".as_slice()].concat()).collect();
        assert_eq!(printed(&house, args), lines, "{args:?}");
    };
    check(&["2"], &ENTRIES[2..]);
    check(&["1", "1"], &ENTRIES[1..2]);
    check(&["1", "3"], &ENTRIES[1..4]);
    check(&["3", "--count", "2"], &ENTRIES[3..]);
}

#[test]
fn files_hold_the_entries_and_nothing_else() {
    let (house, _serving) = served();
    let out = house.outside("read");
    house.call("entries", &[&"0", &"--out", &out]).succeeded(&["verified:", "5 entries from index 0 on"]);
    assert_eq!(fs::read_dir(&out).unwrap().count(), 5);
    for (index, entry) in ENTRIES.iter().enumerate() {
        assert_eq!(fs::read(out.join(format!("{index:06}.entry"))).unwrap(), *entry, "{index}");
    }
    let object = house.call("entries", &[&"1", &"2", &"--json", &"--out", &out]).object();
    let expected = json!({ "verified": true, "origin": house.origin().as_str(), "first_index": 1, "count": 2,
        "bytes": 7, "directory": out });
    assert_eq!(object, expected);
}

#[test]
fn json_is_one_object_with_a_list_of_entries() {
    let (house, _serving) = served();
    let object = house.call("entries", &[&"1", &"2", &"--json"]).succeeded(&[]).object();
    let expected = json!({ "verified": true, "origin": house.origin().as_str(), "first_index": 1, "count": 2,
        "bytes": 7, "entries": [
            { "index": 1, "leaf_hash": leaf(b"").to_string(), "base64": "" },
            { "index": 2, "leaf_hash": leaf(ENTRIES[2]).to_string(), "base64": "/wAbWzMxbQ==" },
        ] });
    assert_eq!(object, expected);
}

#[test]
fn a_range_that_is_not_there_or_none_is_refused() {
    let (house, serving) = served();
    house.call("entries", &[&"5"]).refused(3, &["entry 5 is beyond the log", "BEYOND_TREE"]);
    house.call("entries", &[&"3", &"5"]).refused(3, &["entry 5 is beyond the log", "BEYOND_TREE"]);
    house.call("entries", &[&"9223372036854775807"]).refused(2, &["no log has an entry with this index"]);
    house.call("entries", &[&"2", &"1"]).refused(2, &["LAST is 1, which is before FIRST, 2"]);
    house.call("entries", &[&"2", &"3", &"--count", &"1"]).refused_by_usage("--count");
    house.call("entries", &[&"2", &"--count", &"0"]).refused_by_usage("--count");
    serving.stop();
    house.call("entries", &[&"0"]).refused(4, &["cannot be reached"]);
}
