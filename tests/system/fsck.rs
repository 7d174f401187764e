//! `epigraph fsck`: one run names everything that is wrong, and changes nothing.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::damage::{FRAME, SECTOR, all_files, large_lines, slots, with_an_unsigned_tail_frame};
use crate::signer::Pair;
use crate::support::{Ended, House, epigraph, find, flip, overwrite};
use crate::waiting::wait_until_ready;

/// Runs the check, which must leave every file as it is.
fn fsck(house: &House, json: bool) -> Ended {
    let before = all_files(house);
    let config = house.path("log.toml");
    let mut args: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"fsck", &"--config", &config];
    args.extend(json.then_some(&"--json" as &dyn AsRef<std::ffi::OsStr>));
    let ended = epigraph(&args);
    assert!(before == all_files(house), "the check changed something");
    ended
}

/// The findings of one kind: the ends of their files' names, and their messages.
fn findings(object: &Value, kind: &str) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let found =
        object["logs"][0]["findings"].as_array().unwrap().iter().filter(|finding| finding["kind"] == kind);
    found
        .map(|finding| {
            let name = text(&finding["file"]);
            (Path::new(&name).file_name().unwrap().to_str().unwrap().to_owned(), text(&finding["message"]))
        })
        .collect()
}

#[test]
fn a_sound_log_is_clean_and_its_size_and_root_are_told() {
    let house = House::with_lines(&large_lines(300));
    let ended = fsck(&house, false);
    ended.succeeded(&["clean: 300 entries in 2 segments", "journal, published checkpoint and signer agree"]);
    let whole = fsck(&house, true).succeeded(&[]).object();
    assert_eq!((&whole["clean"], whole["logs"].as_array().unwrap().len()), (&json!(true), 1));
    let object = &whole["logs"][0];
    assert_eq!(
        (&object["clean"], &object["entries"], &object["segments"], &object["findings"]),
        (&json!(true), &json!(300), &json!(2), &json!([]))
    );
    assert_eq!((&object["published"], &object["signer"]), (&json!(300), &json!(300)));
    let keys: Vec<_> = object.as_object().unwrap().keys().map(String::as_str).collect();
    let documentation = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/json.md")).unwrap();
    let table = documentation.split("\n## ").find(|section| section.starts_with("fsck\n")).unwrap();
    keys.iter().for_each(|key| assert!(table.contains(&format!("`{key}`")), "{key} is not documented"));
}

/// Fails if any kind of file is not read, or if the check ends with its first finding.
#[test]
fn one_flipped_bit_in_each_kind_of_file_is_found_and_named_in_one_run() {
    let house = House::with_lines(&large_lines(300));
    let segments = house.segments();
    let sealed = find(&segments[0], FRAME) + SECTOR + 5;
    let header = find(&segments[1], FRAME) + 40;
    let heads = house.path("signer/heads");
    let log_file = house.log("log.toml");
    let vkey = find(&log_file, house.vkey().as_bytes()) + house.vkey().len() as u64 - 4;
    let places = [
        (segments[0].clone(), sealed),
        (segments[1].clone(), header),
        (house.log("checkpoints/current-a"), 100),
        (heads, 8192 + 50),
        (log_file, vkey),
    ];
    let check = |expected: &[&Path]| {
        let ended = fsck(&house, true);
        assert_eq!(ended.code, Some(5), "{ended}");
        let object = ended.object();
        assert_eq!(object["clean"], false);
        let mut found: Vec<_> = findings(&object, "damaged").into_iter().map(|(name, _)| name).collect();
        found.sort();
        found.dedup();
        let mut names: Vec<_> =
            expected.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
        names.sort_unstable();
        assert_eq!(found, names, "{object}");
        object
    };
    for (path, offset) in &places {
        flip(path, *offset);
        let object = check(&[path]);
        if path == &segments[0] {
            assert_eq!(object["logs"][0]["findings"][0]["offset"], sealed - SECTOR - 5, "{object}");
        }
        flip(path, *offset);
    }
    places.iter().for_each(|(path, offset)| flip(path, *offset));
    check(&places.each_ref().map(|(path, _)| path.as_path()));
    fsck(&house, false).refused(5, &["is damaged", "nothing was changed"]);
    places.iter().for_each(|(path, offset)| flip(path, *offset));
    fsck(&house, false).succeeded(&["clean"]);
}

#[test]
fn both_copies_of_a_head_or_a_checkpoint_gone_bad_are_damage() {
    let house = House::new();
    let heads = house.path("signer/heads");
    for copy in ["checkpoints/current-a", "checkpoints/current-b"] {
        flip(&house.log(copy), 100);
    }
    let newest = slots(&heads);
    newest.iter().for_each(|slot| flip(&heads, slot + 200));
    let object = fsck(&house, true).object();
    let damaged = findings(&object, "damaged");
    let says = |file: &str, text: &str| damaged.iter().any(|(name, why)| name == file && why.contains(text));
    assert!(says("checkpoints", "both copies of the published checkpoint are damaged"), "{object}");
    assert!(says("heads", "may have been lost"), "{object}");
}

#[test]
fn a_journal_or_a_signer_that_went_back_is_noticed() {
    let house = House::new();
    let (old_log, old_signer) = (house.save(house.log("journal")), house.save(house.path("signer")));
    let serving = house.serve();
    let entry = house.path("policy");
    house.call("append", &[&entry]).succeeded(&["published"]);
    serving.stop();
    old_log.put_back();
    let object = fsck(&house, true).object();
    let damaged = findings(&object, "damaged");
    assert!(damaged.iter().any(|(_, why)| why.contains("the journal went back: it has 3")), "{object}");
    old_signer.put_back();
    let ended = fsck(&house, false);
    assert!(ended.code == Some(5) && ended.out.contains("the signer went back"), "{ended}");
}

#[test]
fn a_torn_tail_is_unfinished_and_not_damage() {
    let (house, tail) = with_an_unsigned_tail_frame();
    let segment = house.segments().remove(0);
    overwrite(&segment, tail + 40 * SECTOR, &vec![0; 80 * SECTOR as usize]);
    let ended = fsck(&house, false);
    ended.succeeded(&["unfinished, will be cut", &format!("byte {tail}"), "clean: 3 entries"]);
    let object = fsck(&house, true).object();
    assert_eq!(findings(&object, "unfinished").len(), 1, "{object}");
}

#[test]
fn a_bad_tree_is_a_warning() {
    let lines: Vec<String> = (0..600).map(|n| format!("entry {n}")).collect();
    let house = House::with_lines(lines.join("\n").as_bytes());
    let db = house.log("tree/db");
    assert_eq!(fsck(&house, true).succeeded(&[]).object()["logs"][0]["findings"], json!([]));
    for offset in (0..fs::metadata(&db).unwrap().len()).step_by(4096) {
        overwrite(&db, offset, &[0x5a; 64]);
    }
    let object = fsck(&house, true).succeeded(&[]).object();
    let warnings = findings(&object, "warning");
    assert!(warnings.len() == 1 && warnings[0].1.contains("is derived"), "{object}");
}

#[test]
fn a_running_log_is_refused_and_named() {
    let house = House::new();
    let serving = house.serve();
    let pid = format!("process {}", serving.pid());
    let config = house.path("log.toml");
    epigraph(&[&"fsck", &"--config", &config]).refused(5, &["is in use by", &pid]);
    house.call("checkpoint", &[]).succeeded(&["verified"]);
    serving.stop();
}

/// The kept checkpoints are read, verified and compared with the journal. Broken to see it fail: holes are not reported; notes are
/// not opened; their roots are not compared.
#[test]
fn the_kept_checkpoints_are_checked() {
    let house = House::new();
    let beginning = [house.save(house.path("log")), house.save(house.path("signer"))];
    let publish = |line: &str| {
        fs::remove_dir_all(house.path("state")).unwrap();
        let serving = house.serve();
        fs::write(house.outside("line"), line).unwrap();
        house.call("append", &[&house.outside("line")]).succeeded(&["published"]);
        serving.stop();
    };
    publish("ours\n");
    let history = house.log("checkpoints/history");
    let bytes = fs::read(&history).unwrap();
    assert_eq!(fsck(&house, true).succeeded(&[]).object()["logs"][0]["findings"], json!([]));
    let check = |changed: &[u8], kind: &str, says: &str| {
        fs::write(&history, changed).unwrap();
        let ended = fsck(&house, true);
        assert_eq!(ended.code, Some(if kind == "damaged" { 5 } else { 0 }), "{ended}");
        let object = ended.object();
        let found = findings(&object, kind);
        assert!(found.len() == 1 && found[0].0 == "history" && found[0].1.contains(says), "{says}: {object}");
        assert_eq!(object["logs"][0]["findings"].as_array().unwrap().len(), 1, "{object}");
    };
    let flipped = |offset: usize| {
        let mut bytes = bytes.clone();
        bytes[offset] ^= 1;
        bytes
    };
    check(&flipped(40), "damaged", "bytes are no checkpoint that was kept");
    check(&flipped(bytes.len() - 1), "unfinished", "it is written over");
    check(&bytes[..bytes.len() - 7], "unfinished", "it is written over");
    fs::write(&history, &bytes).unwrap();

    beginning.iter().for_each(crate::support::Saved::put_back);
    publish("theirs\n");
    check(&bytes, "damaged", "is of another history");
}

/// What is wrong with the lookup is a warning: it is derived. Broken to see it fail: the directory is not looked at.
#[test]
fn the_lookup_is_checked() {
    let house = House::new();
    let run = house.log("lookup/00000000000000000000-16.run");
    fs::write(&run, [7; 8192]).unwrap();
    fs::write(house.log("lookup/new"), b"half").unwrap();
    let object = fsck(&house, true).succeeded(&[]).object();
    let warnings = findings(&object, "warning");
    let named = run.file_name().unwrap().to_str().unwrap();
    assert!(warnings.len() == 1 && warnings[0].0 == named && warnings[0].1.contains("derived"), "{object}");
    let unfinished = findings(&object, "unfinished");
    assert!(unfinished.len() == 1 && unfinished[0].0 == "new", "{object}");
}

/// R5, as far as a stopped log can tell: the signer in another process is asked. Broken to see it fail: a remote signer is passed
/// over.
#[test]
fn a_signer_in_another_process_is_asked() {
    let pair = Pair::new();
    let mut signer = pair.signer();
    let log = pair.log();
    wait_until_ready(&log);
    let old = pair.house.save(pair.house.path("signer"));
    pair.publish("four\n");
    log.stop();
    let check = || {
        let config = pair.house.path("log.toml");
        epigraph(&[&"fsck", &"--config", &config, &"--json"])
    };
    let object = check().succeeded(&[]).object();
    assert_eq!((&object["logs"][0]["signer"], &object["logs"][0]["findings"]), (&json!(4), &json!([])));

    signer.kill();
    let object = check().succeeded(&[]).object();
    let warnings = findings(&object, "warning");
    assert!(warnings.len() == 1 && warnings[0].1.contains("was not compared"), "{object}");
    assert_eq!(object["logs"][0]["signer"], Value::Null);
    let config = pair.house.path("log.toml");
    epigraph(&[&"fsck", &"--config", &config]).succeeded(&["the signer's head is not known"]);

    old.put_back();
    let _signer = pair.signer();
    let ended = check();
    assert_eq!(ended.code, Some(5), "{ended}");
    let object = ended.object();
    let damaged = findings(&object, "damaged");
    assert!(damaged.len() == 1 && damaged[0].1.contains("the signer went back"), "{object}");
}
