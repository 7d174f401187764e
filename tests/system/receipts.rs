//! A receipt verifies offline from public keys alone, whichever way they and the entry are named, and nothing that was
//! changed verifies. The independent verifier in Python agrees.

use std::fs;

use crate::python::Python;
use crate::support::{House, epigraph, flip, leaf};

#[test]
fn a_receipt_verifies_with_every_way_to_name_the_entry_and_the_keys() {
    let house = House::new();
    let (receipt, entry, vkey) = (house.receipt(1), house.path("receipts/000001.entry"), house.vkey());
    let (profile, policy) = (house.path(""), house.path("policy"));
    let yes =
        format!("verified: entry 1 is in the log {}, under its signed checkpoint of size 3", house.origin());
    epigraph(&[&"verify", &receipt, &"--vkey", &vkey]).succeeded(&[&yes]);
    epigraph(&[&"verify", &receipt, &"--policy", &policy]).succeeded(&[&yes]);
    epigraph(&[&"verify", &receipt, &"--profile", &profile]).succeeded(&[&yes]);
    epigraph(&[&"verify", &receipt, &"--vkey", &vkey, &"--entry", &entry]).succeeded(&[&yes]);
    let hash = leaf(b"two").to_string();
    epigraph(&[&"verify", &receipt, &"--vkey", &vkey, &"--leaf-hash", &hash]).succeeded(&[&yes]);

    let ended = epigraph(&[&"verify", &receipt, &"--vkey", &vkey, &"--json"]);
    let object = ended.succeeded(&[]).object();
    assert_eq!(object["verified"], true);
    assert_eq!(object["origin"], house.origin().as_str());
    assert_eq!(object["index"], 1);
    assert_eq!(object["leaf_hash"], hash);
    assert_eq!(object["checkpoint"]["size"], 3);
}

#[test]
fn a_refusal_in_json_is_one_object_on_standard_error() {
    let house = House::new();
    let ended =
        epigraph(&[&"verify", &house.receipt(0), &"--json", &"--vkey", &house.vkey(), &"--leaf-hash", &"00"]);
    assert_eq!((ended.code, ended.out.as_str()), (Some(2), ""));
    let object: serde_json::Value = serde_json::from_str(&ended.err).unwrap();
    assert_eq!(object["error"]["exit_code"], 2);
    assert!(object["error"]["message"].as_str().unwrap().contains("--leaf-hash"), "{object}");
}

#[test]
fn verifying_needs_no_state_and_leaves_none() {
    let house = House::new();
    for gone in ["log", "signer", "state", "pki"] {
        fs::remove_dir_all(house.path(gone)).unwrap();
    }
    epigraph(&[&"verify", &house.receipt(0), &"--profile", &house.path("")]).succeeded(&["entry 0"]);
    assert!(!house.path("state").exists());
}

#[test]
fn one_changed_byte_of_the_entry_is_refused_with_the_index_and_the_reason() {
    let house = House::new();
    let entry = house.path("receipts/000002.entry");
    for offset in 0..fs::metadata(&entry).unwrap().len() {
        flip(&entry, offset);
        epigraph(&[&"verify", &house.receipt(2), &"--vkey", &house.vkey()])
            .refused(1, &["entry 2 is not proven", "another root"]);
        flip(&entry, offset);
    }
    epigraph(&[&"verify", &house.receipt(2), &"--vkey", &house.vkey()]).succeeded(&[]);
}

#[test]
fn a_receipt_with_any_line_changed_or_cut_off_is_refused_and_python_agrees() {
    let house = House::new();
    let receipt = house.outside("changed.tlog-proof");
    let entry = house.path("receipts/000000.entry");
    let good = fs::read_to_string(house.receipt(0)).unwrap();
    let python = Python::find();
    let check = |text: &str, reason: &str| {
        fs::write(&receipt, text).unwrap();
        epigraph(&[&"verify", &receipt, &"--entry", &entry, &"--vkey", &house.vkey()]).refused(1, &[reason]);
        if let Some(python) = &python {
            let ended = python.verify(house.vkey(), &receipt, &entry);
            assert_eq!(ended.code, Some(1), "{ended}\n{text}");
        }
    };
    if let Some(python) = &python {
        for index in 0..3 {
            let entry = house.path(&format!("receipts/{index:06}.entry"));
            python
                .verify(house.vkey(), &house.receipt(index), &entry)
                .succeeded(&["verified: this is entry"]);
        }
    }

    // Header, index, two hashes, empty line; then origin, size, root, empty line, signature.
    let lines: Vec<_> = good.lines().collect();
    assert_eq!((lines.len(), lines[4], lines[8]), (10, "", ""));
    let with = |number: usize, line: &str| {
        let mut lines = lines.clone();
        lines[number] = line;
        lines.join("\n") + "\n"
    };
    let other_hash = with_first_character_changed(lines[2]);
    check(&with(0, "c2sp.org/tlog-proof@v2"), "not a receipt");
    check(&with(1, "index 1"), "entry 1 is not proven");
    check(&with(1, "index 3"), "entry 3 is not proven: leaf 3 is not in a tree of 3 leaves");
    check(&with(1, "index 00"), "line 2 of the receipt is malformed");
    check(&with(2, &other_hash), "another root");
    check(&with(3, &other_hash), "another root");
    check(&with(3, "AAAA"), "line 4 of the receipt is malformed");
    check(&good.replacen(&format!("{}\n", lines[3]), "", 1), "entry 0 is not proven");
    check(&with(5, "elsewhere.example"), "the checkpoint is of the log \"elsewhere.example\"");
    check(&with(6, "4"), "the note was changed after signing");
    check(&with(6, "03"), "size line");
    check(&with(7, &other_hash), "the note was changed after signing");
    let (name, signature) = lines[9].rsplit_once(' ').unwrap();
    let (id, rest) = signature.split_at(8);
    let changed = format!("{name} {id}{}", with_first_character_changed(rest));
    check(&with(9, &changed), "the note was changed after signing");
    let of_another_key = format!("{name} {}", with_first_character_changed(signature));
    check(&with(9, &of_another_key), "no key that the policy trusts for it signed it");

    for (end, _) in good.char_indices().filter(|(at, _)| *at == 0 || good.as_bytes()[at - 1] == b'\n') {
        check(&good[..end], "");
    }
}

#[test]
fn another_logs_key_is_refused_and_both_logs_are_named() {
    let (ours, theirs) = (House::new(), House::new());
    epigraph(&[&"verify", &ours.receipt(0), &"--vkey", &theirs.vkey()])
        .refused(1, &[ours.origin().as_str(), theirs.origin().as_str()]);
}

#[test]
fn what_is_not_a_key_an_entry_or_a_receipt_is_a_usage_error_with_the_way_out() {
    let house = House::new();
    let (receipt, vkey) = (house.receipt(0), house.vkey());
    let check = |vkey: &str, says: &[&str]| {
        epigraph(&[&"verify", &receipt, &"--vkey", &vkey]).refused(2, says);
    };
    check("log.example", &["--vkey: not a"]);
    // A key id that is not the key's: the text was changed, and no signature could ever fit.
    let (name, rest) = vkey.split_once('+').unwrap();
    let (id, key) = rest.split_once('+').unwrap();
    let other = format!("{name}+{}+{key}", if id == "00000000" { "00000001" } else { "00000000" });
    check(&other, &["--vkey: the key id 00000000 is not that of this name and key", id]);

    fs::remove_file(house.path("receipts/000000.entry")).unwrap();
    check(&vkey, &["000000.entry", "Name the entry with --entry FILE or --leaf-hash HEX"]);
    epigraph(&[&"verify", &receipt, &"--vkey", &vkey, &"--leaf-hash", &"12"])
        .refused(2, &["--leaf-hash takes 64 hexadecimal digits"]);
    epigraph(&[&"verify", &house.path("receipts/000009.tlog-proof"), &"--vkey", &vkey])
        .refused(2, &["000009.tlog-proof"]);
    fs::write(house.path("policy"), "log nobody\nquorum none\n").unwrap();
    epigraph(&[&"verify", &receipt, &"--policy", &house.path("policy")])
        .refused(2, &["line 1 of the policy"]);
    // The command line itself is refused with its own words, and the same exit code.
    assert_eq!(epigraph(&[&"verify", &receipt]).code, Some(2));
}

fn with_first_character_changed(text: &str) -> String {
    format!("{}{}", if text.starts_with('A') { 'B' } else { 'A' }, &text[1..])
}
