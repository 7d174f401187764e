//! What a policy withstands and what it says, as people are told before they rely on it.

use std::fs;

use crate::paper::{ORIGIN, Paper, THEN, two_entries};
use crate::support::{House, epigraph};

#[test]
fn a_policy_is_checked_for_liars_and_for_witnesses_that_are_down() {
    let paper = Paper::new();
    let check = |rest: &str, faulty: usize, code: i32, says: &[&str]| {
        let policy = paper.policy("policy", rest);
        let ended = epigraph(&[&"policy", &"check", &policy, &"--faulty", &faulty.to_string()]);
        assert_eq!(ended.code, Some(code), "{rest}{ended}");
        let told = format!("{}{}", ended.out, ended.err);
        says.iter().for_each(|text| assert!(told.contains(text), "{text:?} is missing: {ended}"));
    };
    // DESIGN section 6: two quorums of k of n meet in 2k - n witnesses.
    let three_of_four = "group g 3 w1 w2 w3 w4\nquorum g\n";
    let good = ["3 of 4 witnesses", "any 1 may lie", "any 1 may be down", "single points of failure: none"];
    check(three_of_four, 1, 0, &good);
    check(three_of_four, 2, 1, &["does not withstand 2 lying witnesses", "w1, w2 together suffice"]);
    check("group g 2 w1 w2 w3\nquorum g\n", 1, 1, &["w1 alone", "nobody may lie", "any 1 may be down"]);
    check("group g 2 w1 w2 w3\nquorum g\n", 0, 0, &["yes: the policy withstands 0"]);
    check("group g 2 w1 w2 w3 w4\nquorum g\n", 0, 1, &["though no witness lies"]);
    let one_each = "group a 2 w1 w2 w3\ngroup b any w4\ngroup q all a b\nquorum q\n";
    check(one_each, 1, 0, &["single points of failure: w4", "(w1", "some must never be down"]);
    check("quorum w5\n", 1, 1, &["single points of failure: w5", "w5 together suffice"]);
    check("quorum none\n", 0, 1, &["the log alone can show two people two histories"]);
}

#[test]
fn what_is_checked_without_a_number_is_one_liar_and_scripts_read_the_same() {
    let paper = Paper::new();
    let ended = epigraph(&[&"policy", &"check", &paper.three_of_four(), &"--json"]);
    let object = ended.succeeded(&[]).object();
    assert_eq!((&object["withstands"], &object["faulty"]), (&true.into(), &1.into()), "{object}");
    assert_eq!((&object["may_lie"], &object["may_miss"]), (&1.into(), &1.into()), "{object}");
    assert_eq!(object["may_be_down_count"], 4, "{object}");
    assert_eq!(object["may_be_down"].as_array().unwrap().len(), 4, "{object}");

    let none = paper.policy("none", "quorum none\n");
    let ended = epigraph(&[&"policy", &"check", &none, &"--json"]);
    assert_eq!(ended.code, Some(1), "{ended}");
    assert_eq!(ended.object()["withstands"], false);
    assert_eq!(ended.object()["may_lie"], serde_json::Value::Null);
}

#[test]
fn what_is_no_policy_is_refused_with_the_line() {
    let paper = Paper::new();
    let check = |rest: &str, says: &[&str]| {
        let policy = paper.policy("policy", rest);
        for command in ["check", "explain"] {
            epigraph(&[&"policy", &command, &policy]).refused(2, says);
        }
        epigraph(&[&"policy", &"check", &paper.three_of_four(), &policy]).refused(2, says);
    };
    check("group g 5 w1 w2 w3 w4\nquorum g\n", &["line 11 of the policy"]);
    check("group g 1 w1\nquorum h\n", &["line 12 of the policy", "\"h\""]);
    check("quorum none # of them\n", &["line 11 of the policy does not read"]);
    check("", &["quorum"]);
    epigraph(&[&"policy", &"check", &paper.path("gone")]).refused(2, &["cannot read", "gone"]);
}

#[test]
fn a_change_of_policy_is_checked_by_what_all_quorums_have_in_common() {
    let paper = Paper::new();
    let check = |old: &str, new: &str, faulty: usize, code: i32, says: &[&str]| {
        let (old, new) = (paper.policy("old", old), paper.policy("new", new));
        let ended = epigraph(&[&"policy", &"check", &old, &new, &"--faulty", &faulty.to_string()]);
        assert_eq!(ended.code, Some(code), "{ended}");
        let told = format!("{}{}", ended.out, ended.err);
        says.iter().for_each(|text| assert!(told.contains(text), "{text:?} is missing: {ended}"));
    };
    let three_of_four = "group g 3 w1 w2 w3 w4\nquorum g\n";
    check(three_of_four, three_of_four, 1, 0, &["2 witnesses or more in common"]);
    // 3 of w1..w4 and 4 of w1..w5 have two in common at least, 3 of w2..w5 only one.
    check(three_of_four, "group g 4 w1 w2 w3 w4 w5\nquorum g\n", 1, 0, &["yes:"]);
    let replaced = "group g 3 w2 w3 w4 w5\nquorum g\n";
    check(
        three_of_four,
        replaced,
        1,
        1,
        &["the old quorum (w1, ", "w5) have w", "shown two histories. Change fewer"],
    );
    check(three_of_four, replaced, 0, 0, &["1 witness or more in common"]);
    let nested = "group a 2 w1 w2 w3\ngroup b 2 w4 w5 w6\ngroup q all a b\nquorum q\n";
    let other = "group a 2 w1 w2 w3\ngroup b 2 w7 w8 w9\ngroup q all a b\nquorum q\n";
    check(nested, other, 0, 0, &["1 witness or more in common"]);
    check(nested, other, 1, 1, &["does not withstand 1 lying witness"]);
    check("quorum none\n", three_of_four, 0, 1, &["have nobody in common"]);
}

#[test]
fn a_policy_is_explained_in_words_from_the_quorum_down() {
    let paper = Paper::new();
    let rest = "group a 2 w1 w2 w3\ngroup b any w4 w5\ngroup q all a b\nquorum q\n";
    let policy = paper.policy("policy", rest);
    let ended = epigraph(&[&"policy", &"explain", &policy]);
    let vkey = paper.witnesses[3].vkey().to_string();
    let log = paper.log.vkey().to_string();
    ended.succeeded(&[&log, "  q: 2 of these 2", "    a: 2 of these 3", "    b: 1 of these 2", &vkey]);
    ended.succeeded(&["Named, but of no consequence: w6, w7, w8, w9"]);
    let none = paper.policy("none", "quorum none\n");
    epigraph(&[&"policy", &"explain", &none]).succeeded(&["No witness is asked"]);
    let object = epigraph(&[&"policy", &"explain", &policy, &"--json"]).object();
    assert_eq!(object["groups"][1]["members"], serde_json::json!(["w4", "w5"]));
    assert_eq!((&object["quorum"], &object["groups"][2]["need"]), (&"q".into(), &2.into()));
}

#[test]
fn a_name_that_a_terminal_would_obey_is_shown_escaped() {
    let paper = Paper::new();
    // The format forbids control characters of one byte only; CSI is one of two in UTF-8.
    let text = format!(
        "log {}\nwitness w\u{9b}2J {}\nquorum w\u{9b}2J\n",
        paper.log.vkey(),
        paper.witnesses[0].vkey()
    );
    let policy = paper.write("policy", text);
    let on = paper.write("note", paper.note(&two_entries(b"two"), &[]));
    for ended in [
        epigraph(&[&"policy", &"check", &policy]),
        epigraph(&[&"policy", &"explain", &policy]),
        epigraph(&[&"policy", &"explain", &policy, &"--on", &on]),
    ] {
        let told = format!("{}{}", ended.out, ended.err);
        assert!(told.contains("w\\u{9b}2J") && !told.contains('\u{9b}'), "{ended}");
    }
}

#[test]
fn a_checkpoint_is_explained_witness_by_witness() {
    let paper = Paper::new();
    let policy = paper.three_of_four();
    let enough = paper.receipt("enough", &[(1, THEN), (2, THEN + 1), (4, THEN + 2)]);
    let explain =
        |file: &dyn AsRef<std::ffi::OsStr>| epigraph(&[&"policy", &"explain", &policy, &"--on", file]);
    let ended = explain(&enough);
    let row = |kind: &str, name: &str, says: &str| format!("  {kind:<9}{name:<28} {says}\n");
    ended.succeeded(&[
        &row("log", ORIGIN, "signed"),
        &row("witness", "w1", "cosigned at 2026-01-01T00:00:00Z"),
        &row("witness", "w2", "cosigned at 2026-01-01T00:00:01Z"),
        &row("witness", "w3", "no signature"),
        &row("witness", "w4", "cosigned at 2026-01-01T00:00:02Z"),
        &row("group", "four", "met: 3 of 4, needs 3"),
        "enough: the quorum four is met",
    ]);

    // w7 signs too, but is in no group; a stranger is in no policy.
    let few = paper.write("few", paper.note(&two_entries(b"two"), &[(1, THEN), (7, THEN), (2, THEN)]));
    let ended = explain(&few);
    ended.refused(1, &["group four has 2 of the 3 it needs", "missing: w3, w4"]);
    assert!(ended.out.contains(&row("group", "four", "not met: 2 of 4, needs 3")), "{ended}");

    let text = fs::read_to_string(&few).unwrap();
    let forged = paper.write("forged", text.replacen("\n2\n", "\n3\n", 1));
    let ended = explain(&forged);
    ended.refused(1, &["the note was changed after signing"]);
    assert!(ended.out.contains(&row("witness", "w3", "no signature")), "{ended}");
    assert!(ended.out.contains("bad signature"), "{ended}");

    let ended = epigraph(&[&"policy", &"explain", &policy, &"--on", &few, &"--json"]);
    let object = ended.object();
    assert_eq!((&object["satisfied"], &object["size"]), (&false.into(), &2.into()), "{object}");
    assert_eq!(object["witnesses"][0]["answer"], "signed");
    assert_eq!(object["witnesses"][0]["cosigned_at_ms"], THEN * 1000);
    assert_eq!(object["witnesses"][3]["answer"], "not_signed");
    assert_eq!(object["groups"][0], serde_json::json!({ "name": "four", "have": 2, "need": 3, "of": 4 }));
}

#[test]
fn a_log_whose_checkpoints_no_witness_cosigned_serves_no_client_whose_policy_asks_for_witnesses() {
    let (house, paper) = (House::new(), Paper::new());
    let serving = house.serve();
    house.call("checkpoint", &[&"--explain"]).succeeded(&["signed", "enough:", "asks for no witness"]);
    let object = house.call("checkpoint", &[&"--explain", &"--json"]).object();
    assert_eq!(object["policy"]["satisfied"], true);

    let witness = paper.witnesses[0].vkey();
    let policy = format!("log {}\nwitness w1 {witness}\nquorum w1\n", house.vkey());
    fs::write(house.path("policy"), policy).unwrap();
    // What was accepted under another policy is no beginning under this one.
    house.call("checkpoint", &[]).refused(5, &["is not valid under this policy", "missing: w1"]);
    fs::remove_dir_all(house.path("state")).unwrap();
    let entry = house.path("receipts/000000.entry");
    let commands: [(&str, &[&dyn AsRef<std::ffi::OsStr>]); 4] = [
        ("checkpoint", &[&"--explain"]),
        ("entries", &[&"0"]),
        ("prove", &[&"0", &"--entry", &entry, &"--out", &house.outside("receipt")]),
        ("append", &[&entry]),
    ];
    for (command, args) in commands {
        house.call(command, args).refused(1, &["quorum w1 is not met", "missing: w1"]);
    }
    assert!(house.call("checkpoint", &[&"--explain"]).out.contains("no signature"));
    serving.stop();
}
