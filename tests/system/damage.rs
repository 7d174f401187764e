//! What a start does with files that are not as they were left: it repairs what it can prove, refuses everything else,
//! says which file and what to do, and changes nothing when it refuses.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use epigraph_core::SigningKey;
use epigraph_core::key::KeyName;
use zeroize::Zeroizing;

use crate::support::{House, epigraph, find, flip, overwrite};

/// What starts each frame of the journal, and each segment (docs/formats/journal.md).
pub const FRAME: &[u8] = b"epigfrm\n";
pub const SECTOR: u64 = 512;

/// Lines of 60,000 bytes: with 16 MiB segments, 300 of them fill one and begin another.
pub fn large_lines(count: usize) -> Vec<u8> {
    (0..count).flat_map(|n| format!("{n:060000}\n").into_bytes()).collect()
}

/// The bytes of every file of log and signer, but for the lock files, which name the last process, and the journal's spare,
/// which is made anew at each start.
pub fn all_files(house: &House) -> BTreeMap<PathBuf, Vec<u8>> {
    fn walk(directory: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, files);
            } else if !path.ends_with("LOCK") && !path.ends_with("spare.tmp") {
                files.insert(path.clone(), fs::read(&path).unwrap());
            }
        }
    }
    let mut files = BTreeMap::new();
    walk(&house.path("log"), &mut files);
    walk(&house.path("signer"), &mut files);
    files
}

/// The log refuses to start, twice in the same words, and leaves every byte as it was.
#[track_caller]
fn check_refused(house: &House, code: i32, says: &[&str]) {
    let before = all_files(house);
    house.serve_refused(code, says);
    house.serve_refused(code, says);
    assert!(before == all_files(house), "a refused start changed something");
}

/// The log starts with this many entries, and each of the house's own has its receipt still.
#[track_caller]
fn check_serves(house: &House, entries: u64) -> String {
    let serving = house.serve();
    assert_eq!(serving.entries, entries);
    house.call("checkpoint", &[]).succeeded(&["verified"]);
    let messages = serving.messages();
    serving.stop();
    messages
}

#[test]
fn a_missing_segment_is_named_and_refused() {
    let house = House::with_lines(&large_lines(300));
    let segments = house.segments();
    assert_eq!(segments.len(), 2);
    for segment in &segments {
        let name = segment.file_name().unwrap().to_str().unwrap();
        let aside = house.outside(name);
        fs::rename(segment, &aside).unwrap();
        check_refused(&house, 5, &[name, "is missing", "restore it from a backup"]);
        fs::rename(&aside, segment).unwrap();
    }
    for segment in &segments {
        fs::rename(segment, house.outside(segment.file_name().unwrap().to_str().unwrap())).unwrap();
    }
    check_refused(&house, 5, &["there is no journal here"]);
    for segment in &segments {
        fs::rename(house.outside(segment.file_name().unwrap().to_str().unwrap()), segment).unwrap();
    }
    check_serves(&house, 300);
}

/// Where the start looks, at a segment's header and its last frame's, it refuses; the rest is read again soon after the
/// start, and then the log stops.
#[test]
fn a_flipped_bit_in_a_sealed_segment_stops_the_log_and_is_named() {
    let house = House::with_lines(&large_lines(300));
    let segments = house.segments();
    let sealed = &segments[0];
    assert_eq!(
        fs::metadata(sealed).unwrap().permissions().mode() & 0o222,
        0,
        "a sealed segment is read-only"
    );
    let frame = find(sealed, FRAME);
    let says = ["00000000000000000000.seg", "is damaged at byte", "restore this segment"];
    for offset in [8, frame, frame + 40, frame + SECTOR + 5, frame + SECTOR + 1_000_000] {
        flip(sealed, offset);
        if offset == 8 {
            check_refused(&house, 5, &says);
        } else {
            house.serve().ended().refused(5, &says);
        }
        flip(sealed, offset);
    }
    check_serves(&house, 300);
}

#[test]
fn a_flipped_bit_in_the_tail_frame_is_rot_and_refused() {
    let house = House::new();
    let segment = &house.segments()[0];
    let frame = find(segment, FRAME);
    for offset in [frame, frame + 16, frame + 60, frame + SECTOR - 1, frame + SECTOR + 2] {
        flip(segment, offset);
        check_refused(&house, 5, &["is damaged at byte", "nothing was changed"]);
        flip(segment, offset);
    }
    check_serves(&house, 3);
}

/// A log that was copied before its last frame was signed and after it was written: as a machine leaves it that lost
/// its power between the two. The tail frame holds one entry of 60,000 bytes.
pub fn with_an_unsigned_tail_frame() -> (House, u64) {
    let house = House::new();
    let (before, entry) =
        ([house.save(house.path("signer")), house.save(house.log("checkpoints"))], house.outside("entry"));
    fs::write(&entry, large_lines(1)).unwrap();
    let serving = house.serve();
    house.call("append", &[&entry, &"--wait", &"durable"]).succeeded(&["indexes 3 to 3"]);
    serving.stop();
    before.iter().for_each(|saved| saved.put_back());
    let tail = find(&house.segments()[0], format!("{:060000}", 0).as_bytes()) - SECTOR - 2;
    (house, tail)
}

#[test]
fn a_torn_tail_frame_that_nobody_was_told_of_is_cut_off_saved_and_reported() {
    let (house, tail) = with_an_unsigned_tail_frame();
    let segment = house.segments().remove(0);
    let whole = fs::read(&segment).unwrap();
    for (what, offset, length) in [
        ("the last sectors of the body never arrived", tail + 40 * SECTOR, 80 * SECTOR),
        ("one sector in the middle never arrived", tail + 7 * SECTOR, SECTOR),
        ("the header never arrived", tail, SECTOR),
        ("half of the header never arrived", tail + SECTOR / 2, SECTOR / 2),
    ] {
        fs::write(&segment, &whole).unwrap();
        overwrite(&segment, offset, &vec![0; length as usize]);
        let messages = check_serves(&house, 3);
        assert!(messages.contains("an unfinished frame was cut off"), "{what}: {messages}");
        assert!(messages.contains(".seg.cut-"), "{what}: {messages}");
    }
    let saved = house.log("journal/00000000000000000000.seg.cut-1");
    assert_eq!(fs::metadata(saved).unwrap().len(), 40 * SECTOR);
    // Whole, it is kept: it was durable, whether or not somebody was told.
    fs::write(&segment, &whole).unwrap();
    let messages = check_serves(&house, 4);
    assert!(!messages.contains("cut off"), "{messages}");
}

#[test]
fn a_torn_tail_frame_under_a_published_checkpoint_is_refused() {
    let house = House::with_lines(&large_lines(1));
    let segment = house.segments().remove(0);
    let tail = find(&segment, FRAME);
    overwrite(&segment, tail + 40 * SECTOR, &vec![0; 80 * SECTOR as usize]);
    // The journal's own rule would cut it off. That the checkpoint knows better makes it a lost entry.
    house.serve_refused(5, &["went back", "it has 0 entries", "the published checkpoint has 1"]);
    house.serve_refused(5, &["went back"]);
}

#[test]
fn one_damaged_copy_of_the_signers_head_is_repaired_and_two_are_refused() {
    let house = House::new();
    let heads = house.path("signer/heads");
    let sound = fs::read(&heads).unwrap();
    let both = slots(&heads);
    assert_eq!(both.len(), 2, "the newest head lies there in two copies");
    for slot in &both {
        flip(&heads, slot + 200);
    }
    house.serve_refused(5, &["the signer", "went back", "size 0", "size 3", "is published under its key"]);
    house.serve_refused(5, &["the signer", "went back"]);
    fs::write(&heads, &sound).unwrap();
    // Each start opens a term, which is a newer generation.
    for copy in [0, 1] {
        flip(&heads, slots(&heads)[copy] + 200);
        let messages = check_serves(&house, 3);
        assert!(messages.contains("was repaired from its copy"), "{messages}");
    }
    // All four slots, and nothing is left to fall back to.
    for slot in 0..4 {
        flip(&heads, 8192 + slot * 8192 + 50);
    }
    house.serve_refused(5, &["heads", "is damaged at byte", "restore no old copy"]);
    fs::write(&heads, sound).unwrap();
    check_serves(&house, 3);
}

/// Where the slots of the newest generation start.
pub fn slots(heads: &Path) -> Vec<u64> {
    let bytes = fs::read(heads).unwrap();
    let generation = |slot: &u64| {
        let at = *slot as usize + 72;
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    };
    let all: Vec<u64> = (0..4).map(|slot| 8192 + slot * 8192).collect();
    let newest = all.iter().map(generation).max();
    all.into_iter().filter(|slot| Some(generation(slot)) == newest).collect()
}

#[test]
fn missing_heads_are_never_a_fresh_start() {
    let house = House::new();
    let heads = house.path("signer/heads");
    fs::rename(&heads, house.outside("heads")).unwrap();
    check_refused(&house, 5, &["`heads` is missing", "created by `init` only"]);
    fs::write(&heads, "").unwrap();
    check_refused(&house, 5, &["`heads` is damaged"]);
    fs::rename(house.outside("heads"), &heads).unwrap();
    check_serves(&house, 3);
}

#[test]
fn one_damaged_copy_of_the_published_checkpoint_is_repaired_and_two_are_refused() {
    let house = House::new();
    let copies = ["checkpoints/current-a", "checkpoints/current-b"].map(|name| house.log(name));
    let sound = fs::read(&copies[0]).unwrap();
    for copy in &copies {
        flip(copy, 100);
        assert!(check_serves(&house, 3).contains("was repaired from its copy: its checksum does not match"));
        fs::remove_file(copy).unwrap();
        assert!(check_serves(&house, 3).contains("was repaired from its copy: it is missing"));
        assert_eq!(fs::read(copy).unwrap(), sound);
    }
    copies.iter().for_each(|copy| flip(copy, 100));
    check_refused(
        &house,
        5,
        &["both copies of the published checkpoint are damaged", "from a witness or a client"],
    );
    copies.iter().for_each(|copy| fs::remove_file(copy).unwrap());
    check_refused(&house, 5, &["both copies of the published checkpoint are missing"]);
    copies.iter().for_each(|copy| fs::write(copy, &sound).unwrap());
    check_serves(&house, 3);
}

#[test]
fn an_unknown_key_in_a_configuration_is_named() {
    let house = House::new();
    house.edit("log.toml", "segment_mib = 16", "segment_mib = 16\nsegment_mb = 16");
    check_refused(&house, 2, &["log.toml", "line 2", "unknown field `segment_mb`"]);
    house.edit("log.toml", "segment_mb = 16\n", "");
    house.edit("client.toml", "state = ", "stat = ");
    house.call("checkpoint", &[]).refused(2, &["client.toml", "unknown field `stat`"]);
}

#[test]
fn a_configuration_that_cannot_work_is_refused_with_its_reason() {
    let house = House::new();
    let check = |from: &str, to: &str, says: &[&str]| {
        house.edit("log.toml", from, to);
        house.serve_refused(2, says);
        house.edit("log.toml", to, from);
    };
    check(
        "directory = \"signer\"",
        "directory = \"log/signer\"",
        &["lies inside the log's", "Put it beside"],
    );
    check(
        "checkpoint_interval_ms = 1000",
        "checkpoint_interval_ms = 1",
        &["checkpoint_interval_ms is 10 to 3600000"],
    );
    check("segment_mib = 16", "refresh_interval_ms = 9999", &["refresh_interval_ms is 10000 to 86400000"]);
    check("segment_mib = 16", "segment_mib = 15", &["segment_mib is 16 to 1024"]);
    check("\"appender\", ", "\"appendeur\", ", &["there is no role \"appendeur\""]);
    let log = |origin: &str, signer: &str| {
        format!(
            "[[log]]\norigin = \"{origin}\"\nsigner = {{ directory = \"{signer}\", key = \"k\" }}\n\n[[authorize]]"
        )
    };
    let origin = house.origin();
    check(
        "[[authorize]]",
        &log(origin.as_str(), "s"),
        &["two [[log]] tables have the origin", origin.as_str()],
    );
    check("[[authorize]]", &log("two.example", "signer"), &["two [[log]] tables have the signer directory"]);
    let many: String = (0..64)
        .map(|n| log(&format!("{n}.example"), &format!("s{n}")).replace("[[authorize]]", ""))
        .collect();
    check("[[authorize]]", &(many + "[[authorize]]"), &["65 [[log]] tables", "1 to 64 logs"]);
    check_serves(&house, 3);
    // Behind a link it is inside all the same.
    fs::rename(house.path("signer"), house.path("log/signer")).unwrap();
    symlink("log/signer", house.path("signer")).unwrap();
    check_refused(&house, 2, &["lies inside the log's", "Put it beside"]);
}

#[test]
fn the_signing_key_is_refused_if_others_can_read_it_or_if_it_is_another() {
    let house = House::new();
    let key = house.path("signer/keys/log.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    check_refused(&house, 5, &["log.key can be read by others (mode 644)", "chmod 600"]);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let ours = fs::read(&key).unwrap();

    let name = KeyName::new(house.origin().as_str()).unwrap();
    let namesake = SigningKey::from_seed(name, &Zeroizing::new([9; 32]));
    fs::write(&key, &*namesake.to_text()).unwrap();
    check_refused(&house, 5, &[&house.vkey(), &namesake.vkey().to_string(), "Nothing was signed"]);
    let stranger = SigningKey::from_seed(KeyName::new("stranger.example").unwrap(), &Zeroizing::new([9; 32]));
    fs::write(&key, &*stranger.to_text()).unwrap();
    check_refused(&house, 5, &["is named stranger.example", "a log's key carries the log's name"]);
    fs::write(&key, "PRIVATE").unwrap();
    check_refused(&house, 5, &["log.key holds no usable key"]);
    fs::remove_file(&key).unwrap();
    check_refused(&house, 5, &["log.key"]);

    fs::write(&key, ours).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    check_serves(&house, 3);
}

#[test]
fn a_vkey_that_is_not_the_keys_is_refused() {
    let house = House::new();
    let name = KeyName::new(house.origin().as_str()).unwrap();
    let other = SigningKey::from_seed(name, &Zeroizing::new([9; 32])).vkey().to_string();
    let file = house.log("log.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace(&house.vkey(), &other)).unwrap();
    check_refused(&house, 5, &["is not the log's", &house.vkey(), &other]);
    fs::write(&file, text).unwrap();
    check_serves(&house, 3);
}

#[test]
fn only_init_creates_state_and_only_once() {
    let house = House::new();
    let config = house.path("log.toml");
    let init = || epigraph(&[&"init", &"log", &"--config", &config]);
    init().refused(5, &["is initialised already", "nothing was changed"]);
    check_serves(&house, 3);

    for directory in ["log", "signer"] {
        let aside = house.outside(directory);
        fs::rename(house.path(directory), &aside).unwrap();
        house.serve_refused(5, &[directory, "was never initialised", "Run `init`"]);
        // Nor does `init` put an empty log before a signer that has signed, or the other way round.
        init().refused(5, &["is initialised,", "is not", "put its newest copy back"]);
        assert!(!house.path(directory).exists(), "what was refused created something");
        fs::rename(aside, house.path(directory)).unwrap();
    }
    check_serves(&house, 3);

    fs::rename(house.path("log"), house.outside("log")).unwrap();
    fs::rename(house.path("signer"), house.outside("signer")).unwrap();
    let vkey = init().succeeded(&["initialised the log"]).out.lines().last().unwrap().to_owned();
    assert!(vkey.contains(house.origin().as_str()) && !vkey.contains(&house.vkey()));
    assert_eq!(house.serve().entries, 0);
}

/// D1. Seen to fail with a lock that is not asked for.
#[test]
fn a_second_process_on_the_same_directory_is_refused_and_the_first_is_named() {
    let house = House::new();
    let serving = house.serve();
    house.serve_refused(
        5,
        &["is in use by", &format!("process {}", serving.pid()), "would write two histories"],
    );
    epigraph(&[&"init", &"log", &"--config", &house.path("log.toml")]).refused(5, &["initialised already"]);
    let entry = house.path("policy");
    house.call("append", &[&entry]).succeeded(&["indexes 3 to"]);
    // The lock goes with the process, however that ends; what it says of the process may stay.
    let mut serving = serving;
    serving.kill();
    house.serve();
}

#[test]
fn state_of_a_newer_version_is_not_touched() {
    let house = House::new();
    for directory in ["log", "signer"] {
        let format = house.path(directory).join("format");
        let text = fs::read_to_string(&format).unwrap();
        fs::write(&format, text.replace("v1", "v2")).unwrap();
        check_refused(&house, 5, &["v2", "v1", "use the release of Epigraph that wrote it"]);
        fs::write(&format, text).unwrap();
    }
    check_serves(&house, 3);
}

#[test]
fn a_log_that_loses_its_journal_while_it_runs_ends_and_what_it_acknowledged_is_there() {
    let house = House::new();
    let input = house.outside("large");
    fs::write(&input, large_lines(200)).unwrap();
    let mut serving = house.serve();
    house.call("append", &[&input, &"--wait", &"durable"]).succeeded(&["indexes 3 to 202"]);
    // The open segment can still be written, so the loss shows when the next one is to be put in place.
    fs::rename(house.log("journal"), house.outside("journal")).unwrap();
    let appended = house.call("append", &[&input, &"--wait", &"durable"]);
    assert!(matches!(appended.code, Some(3 | 4)), "{appended}");
    serving.ended().refused(5, &["the journal stopped", "the process must end"]);
    fs::rename(house.outside("journal"), house.log("journal")).unwrap();
    let serving = house.serve();
    assert!(serving.entries >= 203, "{}", serving.entries);
    house.call("checkpoint", &[]).succeeded(&["verified"]);
}
