//! One verb judges receipts, checkpoints, evidence and observations, offline, under policies with witnesses; and says exactly what
//! failed. The independent verifier in Python agrees on every file.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use epigraph_core::hash::node_hash;
use epigraph_core::observation::Observation;
use epigraph_core::{Evidence, Hash, SigningKey, UnixMillis, note};

use crate::paper::{ENTRY, ORIGIN, Paper, THEN, base64, head, two_entries};
use crate::python::Python;
use crate::support::{Ended, epigraph, leaf};

const THREE: [(usize, u64); 3] = [(1, THEN), (2, THEN), (4, THEN)];

fn verify(file: &Path, trust: &str, value: &dyn AsRef<OsStr>) -> Ended {
    epigraph(&[&"verify", &file, &trust, value])
}

#[test]
fn a_receipt_verifies_under_a_quorum_and_under_nothing_less() {
    // RELIABILITY A6 (a stolen log key signs, and no quorum does) and A21 (two verifiers); seen to fail with the log's
    // keys alone taken from the policy.
    let paper = Paper::new();
    let policy = paper.three_of_four();
    let python = Python::find();
    let agrees = |file: &Path, code: i32| {
        if let Some(python) = &python {
            let ended = python.verify(&policy, file, &paper.path("r.entry"));
            assert_eq!(ended.code, Some(code), "{ended}");
        }
    };
    let check = |cosigned: &[(usize, u64)], says: Option<&[&str]>| {
        let receipt = paper.receipt("r", cosigned);
        let note = paper.write("note", paper.note(&two_entries(b"two"), cosigned));
        for file in [&receipt, &note] {
            let ended = verify(file, "--policy", &policy);
            match says {
                None => ended.succeeded(&["verified:", ORIGIN, "quorum four is met", "w1 (at 1767225600)"]),
                Some(says) => ended.refused(1, says),
            };
        }
        agrees(&receipt, if says.is_none() { 0 } else { 1 });
    };
    check(&THREE, None);
    check(&[(4, THEN), (3, THEN), (2, THEN), (1, THEN)], None);
    check(&THREE[..2], Some(&["four has 2 of the 3 it needs", "cosigned by w1", "missing: w3, w4"]));
    check(&[], Some(&["cosigned by nobody"]));
    // One witness three times, and one that is in no group, are no quorum.
    check(&[(1, THEN), (1, THEN + 1), (1, THEN + 2)], Some(&["four has 1 of the 3"]));
    check(&[(1, THEN), (2, THEN), (5, THEN), (6, THEN)], Some(&["four has 2 of the 3"]));

    let receipt = paper.receipt("r", &THREE);
    let object = epigraph(&[&"verify", &receipt, &"--policy", &policy, &"--json"]).object();
    assert_eq!((&object["kind"], &object["index"]), (&"receipt".into(), &0.into()), "{object}");
    assert_eq!(object["policy"]["satisfied"], true, "{object}");
    assert_eq!(object["policy"]["witnesses"][1]["cosigned_at_ms"], THEN * 1000, "{object}");
}

#[test]
fn what_failed_is_named_the_signature_the_line_the_origin_or_the_policy() {
    let paper = Paper::new();
    let (policy, receipt) = (paper.three_of_four(), paper.receipt("r", &THREE));
    let good = fs::read_to_string(&receipt).unwrap();
    let python = Python::find();
    let check = |content: &str, policy: &Path, says: &[&str]| {
        let file = paper.write("r.tlog-proof", content);
        verify(&file, "--policy", &policy).refused(1, says);
        if let Some(python) = &python {
            let ended = python.verify(policy, &file, &paper.path("r.entry"));
            assert_eq!(ended.code, Some(1), "{ended}\n{content}");
        }
    };
    // Header, index, hash, empty; origin, size, root, empty; the log, w1, w2, w4.
    let lines: Vec<_> = good.lines().collect();
    assert_eq!(lines.len(), 12);
    let with = |number: usize, line: &str| {
        let mut lines = lines.clone();
        lines[number] = line;
        lines.join("\n") + "\n"
    };
    // Each witness's own line on another witness's signature, and with its time changed.
    for (number, name) in [(9, "w1.example"), (10, "w2.example"), (11, "w4.example")] {
        let (start, blob) = lines[number].rsplit_once(' ').unwrap();
        let changed = format!("{start} {}{}{}", &blob[..20], other(&blob[20..21]), &blob[21..]);
        check(
            &with(number, &changed),
            &policy,
            &[&format!("the signature of {name}"), "changed after signing"],
        );
    }
    check(&with(5, "3"), &policy, &["the note was changed after signing"]);
    check(&with(4, "other.example"), &policy, &["of the log \"other.example\"", "trusts log.example"]);
    check(&with(1, "index x"), &policy, &["line 2 of the receipt is malformed"]);
    check(&with(10, "\u{2014} w2.example"), &policy, &["signature line 3 of the note is malformed"]);
    check(&with(2, &base64(leaf(b"three"))), &policy, &["entry 0 is not proven", "another root"]);
    for (at, _) in good.match_indices('\n') {
        if at + 1 < good.len() {
            check(&good[..=at], &policy, &[]);
            check(&good[..at], &policy, &[]);
        }
    }
    // Another policy: its witnesses are asked, and those who signed instead are named.
    let others = format!(
        "log {}\nwitness a {}\nwitness b {}\ngroup g all a b\nquorum g\n",
        paper.log.vkey(),
        paper.witnesses[6].vkey(),
        paper.witnesses[7].vkey()
    );
    let others = paper.write("others", others);
    check(
        &good,
        &others,
        &["missing: a, b", "in the name of w1.example, w2.example, w4.example", "made for another policy"],
    );
    paper.write("r.tlog-proof", &good);
    verify(&receipt, "--policy", &policy).succeeded(&[]);
}

#[test]
fn cosignatures_can_be_required_to_be_young() {
    // RELIABILITY A3 and A19 (an old cosigned head served for ever); seen to fail with the bound not handed on.
    let paper = Paper::new();
    let (policy, now) = (paper.three_of_four(), paper.now());
    let check = |times: [u64; 3], max_age: &str, says: Option<&[&str]>| {
        let receipt = paper.receipt("r", &[(1, times[0]), (2, times[1]), (3, times[2])]);
        let note = paper
            .write("note", paper.note(&two_entries(b"two"), &[(1, times[0]), (2, times[1]), (3, times[2])]));
        for file in [&receipt, &note] {
            let ended = epigraph(&[&"verify", file, &"--policy", &policy, &"--max-age", &max_age]);
            match says {
                None => ended.succeeded(&["verified:"]),
                Some(says) => ended.refused(1, says),
            };
        }
    };
    let year = 365 * 86_400;
    check([now, now, now], "86400", None);
    let outside = |name: &str| format!("{name} (outside the age bound: at ");
    check([now, now - year, now], "86400", Some(&[&outside("w2"), "has 2 of the 3"]));
    check([now, now, now + 10 * year], "86400", Some(&[&outside("w3"), "has 2 of the 3"]));
    check([now, now - year, now], "40000000", None);

    let receipt = paper.receipt("r", &[]);
    let vkey = paper.log.vkey().to_string();
    epigraph(&[&"verify", &receipt, &"--vkey", &vkey, &"--max-age", &"60"])
        .refused(2, &["a log's own signature carries no time"]);
    let stale = paper.receipt("r", &[(1, now), (2, now - year), (3, now)]);
    let explain: [&dyn AsRef<OsStr>; 7] =
        [&"policy", &"explain", &policy, &"--on", &stale, &"--max-age", &"86400"];
    let ended = epigraph(&explain);
    ended.refused(1, &["outside the age bound"]);
    assert!(ended.out.contains("outside the age that was asked for"), "{ended}");
}

#[test]
fn with_the_logs_key_alone_it_is_said_that_no_witness_was_asked() {
    let paper = Paper::new();
    let vkey = paper.log.vkey().to_string();
    for cosigned in [&[][..], &THREE] {
        let receipt = paper.receipt("r", cosigned);
        verify(&receipt, "--vkey", &vkey).succeeded(&["verified:", "no witness was asked"]);
    }
    let note = paper.write("note", paper.note(&two_entries(b"two"), &[]));
    verify(&note, "--vkey", &vkey)
        .succeeded(&["a checkpoint of the log log.example, of size 2", "no witness was"]);
    let witness = paper.witnesses[0].vkey().to_string();
    verify(&note, "--vkey", &witness)
        .refused(2, &["the key of the witness w1.example", "give the log's key"]);
}

#[test]
fn a_file_is_taken_for_what_its_first_line_says() {
    let paper = Paper::new();
    let vkey = paper.log.vkey().to_string();
    let note = paper.write("note", paper.note(&two_entries(b"two"), &[]));
    epigraph(&[&"verify", &note, &"--vkey", &vkey, &"--leaf-hash", &"00"]).refused(2, &["go with a receipt"]);
    let check = |content: &[u8], code: i32, says: &str| {
        verify(&paper.write("x", content), "--vkey", &vkey).refused(code, &[says]);
    };
    check(
        b"",
        1,
        "not a receipt, not a checkpoint, not an event, not an evidence file and not a monitor's observation",
    );
    check(
        b"log.example\n2\n",
        1,
        "not a receipt, not a checkpoint, not an event, not an evidence file and not a monitor's observation",
    );
    check(
        &[0xff; 100],
        1,
        "not a receipt, not a checkpoint, not an event, not an evidence file and not a monitor's observation",
    );
    check(b"epigraph-evidence@v2\n", 1, "not an evidence file: its first line");
    check(b"epigraph-observation@v2\n", 1, "not an observation: its first line");
    check(&vec![b'a'; 4 << 20], 2, "is longer than");
}

#[test]
fn evidence_convinces_whoever_has_the_key_alone_and_nobody_else() {
    // RELIABILITY A1 and A7; seen to fail with the reader's keys not compared.
    let paper = Paper::new();
    let log = paper.log.vkey();
    let python = Python::find();
    let check = |file: &Path, key: &str, code: i32, says: &[&str]| {
        let ended = verify(file, "--vkey", &key);
        match code {
            0 => ended.succeeded(says),
            _ => ended.refused(code, says),
        };
        if let Some(python) = &python {
            let ended = python.judge(key, file);
            assert_eq!(ended.code, Some(code), "{ended}");
        }
    };
    // One size, two roots.
    let (here, there) = (two_entries(b"two"), two_entries(b"too"));
    let cosigned = [(3, THEN)];
    let notes = [paper.note(&here, &cosigned), paper.note(&there, &cosigned)];
    let roots = Evidence::two_roots(log, notes[0].as_bytes(), notes[1].as_bytes()).unwrap();
    let file = paper.write("roots", roots.encode());
    let (one, other) = (here.root.to_string(), there.root.to_string());
    let key = log.to_string();
    check(&file, &key, 0, &["proven:", "the log log.example signed two histories", &one, &other]);
    // One entry, and a tree of two entries that begins with another one.
    let old = paper.note(&head(1, leaf(ENTRY)), &[]);
    let new = paper.note(&head(2, node_hash(&leaf(b"uno"), &leaf(b"two"))), &[]);
    let carried = vec![leaf(b"uno"), leaf(b"two")];
    let old_root = Evidence::old_root(log, old.as_bytes(), new.as_bytes(), carried).unwrap();
    check(&paper.write("old", old_root.encode()), &key, 0, &["is not the beginning of the head of size 2"]);
    // Two leaves at one index.
    let index = epigraph_core::LeafIndex::new(1).unwrap();
    let leaves: [(&[u8], Hash, Vec<Hash>); 2] = [
        (notes[0].as_bytes(), leaf(b"two"), vec![leaf(ENTRY)]),
        (notes[1].as_bytes(), leaf(b"too"), vec![leaf(ENTRY)]),
    ];
    let [first, second] = leaves;
    let two_leaves = Evidence::two_leaves(log, index, first, second).unwrap();
    check(&paper.write("leaves", two_leaves.encode()), &key, 0, &["entry 1 has the leaf hash"]);
    // A witness that cosigned both.
    let witness = paper.witnesses[2].vkey();
    let by = Evidence::two_roots(witness, notes[0].as_bytes(), notes[1].as_bytes()).unwrap();
    let by = paper.write("witness", by.encode());
    check(
        &by,
        &witness.to_string(),
        0,
        &["the witness w3.example cosigned two histories of the log log.example"],
    );

    // A policy and a profile name the keys that are known.
    let policy = paper.three_of_four();
    for file in [&file, &by] {
        let ended = epigraph(&[&"verify", file, &"--policy", &policy, &"--json"]);
        let object = ended.succeeded(&[]).object();
        assert_eq!((&object["kind"], &object["verified"]), (&"evidence".into(), &true.into()));
        assert_eq!(object["heads"].as_array().unwrap().len(), 2, "{object}");
    }
    check(&by, &key, 1, &["about the key w3.example+", "none of those given"]);
    check(&file, &witness.to_string(), 1, &["none of those given"]);
    epigraph(&[&"verify", &file, &"--vkey", &key, &"--max-age", &"60"])
        .refused(2, &["does not go with evidence"]);

    // Every line changed, left out or doubled.
    for name in ["roots", "old", "leaves", "witness"] {
        let good = fs::read_to_string(paper.path(name)).unwrap();
        let key = if name == "witness" { witness.to_string() } else { key.clone() };
        let lines: Vec<_> = good.lines().collect();
        // Without its header it is taken for a checkpoint, and a witness's key opens none.
        for at in usize::from(name == "witness")..lines.len() {
            let mut without = lines.clone();
            let gone = without.remove(at);
            check(&paper.write("bad", without.join("\n") + "\n"), &key, 1, &[]);
            if name == "old" {
                let mut twice = lines.clone();
                twice.insert(at, gone);
                check(&paper.write("bad", twice.join("\n") + "\n"), &key, 1, &[]);
            }
            if !gone.is_empty() {
                let mut changed = lines.clone();
                let line = format!("{}{}", &gone[..gone.len() - 1], self::other(&gone[gone.len() - 1..]));
                changed[at] = &line;
                check(&paper.write("bad", changed.join("\n") + "\n"), &key, 1, &[]);
            }
        }
    }
}

/// A monitor's word is believed under the monitor's key and no other, is called no proof, and nobody can change it. Seen to
/// fail with the canonical form not compared, in either verifier.
#[test]
fn an_observation_is_the_word_of_the_monitor_that_signed_it() {
    let paper = Paper::new();
    let monitor = SigningKey::from_seed("monitor.example".parse().unwrap(), &[50; 32].into());
    let key = monitor.vkey().to_string();
    let python = Python::find();
    let check = |file: &Path, key: &str, code: i32, says: &[&str]| {
        let ended = verify(file, "--vkey", &key);
        match code {
            0 => ended.succeeded(says),
            _ => ended.refused(code, says),
        };
        if let Some(python) = &python {
            let ended = python.judge(key, file);
            assert_eq!(ended.code, Some(code), "{ended}");
        }
    };
    let note = paper.note(&two_entries(b"two"), &[(3, THEN)]);
    let state = |notes: &[&str]| {
        let (origin, at) = (paper.log.vkey().name().to_origin(), UnixMillis(THEN * 1000));
        let observation =
            Observation::new("stale-head", origin, "log/1", at, "nothing new for an hour", notes);
        observation.unwrap().sign(&monitor)
    };
    let good = state(&[&note, &note]);
    let file = paper.write("observation", &good);
    check(
        &file,
        &key,
        0,
        &["signed:", "the monitor monitor.example saw stale-head about log/1 of the log log.example"],
    );
    check(
        &paper.write("short", state(&[])),
        &key,
        0,
        &["that monitor's word, and proves nothing about the log"],
    );
    let object = epigraph(&[&"verify", &file, &"--vkey", &key, &"--json"]).succeeded(&[]).object();
    assert_eq!((&object["kind"], &object["code"]), (&"observation".into(), &"stale-head".into()));
    assert_eq!(object["notes"].as_array().unwrap().len(), 2, "{object}");

    check(&file, &paper.log.vkey().to_string(), 1, &["is none of those given"]);
    epigraph(&[&"verify", &file, &"--policy", &paper.three_of_four()])
        .refused(1, &["give the monitor's own key"]);
    epigraph(&[&"verify", &file, &"--vkey", &key, &"--max-age", &"60"])
        .refused(2, &["does not go with an observation"]);

    // Every line changed, left out or doubled; a stranger's signature added; and what the monitor itself would not write.
    let lines: Vec<_> = good.lines().collect();
    for at in 0..lines.len() {
        let (mut without, mut twice, mut changed) = (lines.clone(), lines.clone(), lines.clone());
        let gone = without.remove(at);
        twice.insert(at, gone);
        let line = format!("{gone}x");
        changed[at] = &line;
        for bad in [without, twice, changed] {
            check(&paper.write("bad", bad.join("\n") + "\n"), &key, 1, &[]);
        }
    }
    check(&paper.write("bad", format!("{good}\u{2014} stranger AAAAAAAA\n")), &key, 1, &["canonical"]);
    let text = "epigraph-observation@v1\ncode a\norigin o\nsubject s\nat 5\ndetail d\n";
    for (old, new) in [
        ("", ""),
        ("at 5", "at 05"),
        ("a\n", "A\n"),
        ("d\n", "d\nnote\n"),
        ("d\n", "d\nnote\n> x\n"),
        ("at", "t"),
        ("s\n", "s\u{85}\n"),
    ] {
        let text = text.replacen(old, new, 1);
        let file = note::encode(&text, [&monitor.sign_assertion(&text)]);
        let code = i32::from(!(old.is_empty() || new.ends_with("> x\n")));
        check(&paper.write("bad", file), &key, code, &[]);
    }
}

/// Another character, of base64 and of numbers alike.
fn other(character: &str) -> &'static str {
    if character == "1" { "2" } else { "1" }
}
