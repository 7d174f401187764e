use super::*;
use crate::file::fault::{Fault, FaultDir, Operation, Outcome};
use crate::file::memory::{MemoryDir, Survival, by_seed};

fn note(n: u64) -> Vec<u8> {
    // Longer than a sector, so that it can be torn.
    format!("example.org/log\n{n}\n").repeat(40).into_bytes()
}

fn open(dir: &MemoryDir) -> Result<(PublishedStore, Option<Repaired>), PublishedError> {
    PublishedStore::open(Arc::new(dir.clone()))
}

/// A synced directory in which the notes 1 to `stored` were stored.
fn stored(stored: u64) -> MemoryDir {
    let dir = MemoryDir::new();
    let mut published = PublishedStore::create(Arc::new(dir.clone())).unwrap();
    (1..=stored).for_each(|n| published.store(&note(n)).unwrap());
    dir
}

#[test]
fn nothing_published_is_said_and_not_guessed() {
    let dir = stored(0);
    assert_eq!(open(&dir).unwrap().0.current(), None);
    assert!(matches!(open(&MemoryDir::new()), Err(PublishedError::Missing)));
    assert!(matches!(PublishedStore::create(Arc::new(dir)), Err(PublishedError::Exists("current-a"))));
}

#[test]
fn the_newest_note_is_found_again_verbatim() {
    let dir = stored(2);
    let (mut published, _) = open(&dir).unwrap();
    for newest in [note(3), vec![0xff; MAX_NOTE_BYTES], b"x".to_vec()] {
        published.store(&newest).unwrap();
        dir.duplicate().power_cut(|_| Survival::Lost);
        let (again, repaired) = open(&dir).unwrap();
        assert_eq!((again.current(), repaired), (Some(&*newest), None));
    }
    for length in [0, MAX_NOTE_BYTES + 1] {
        assert!(matches!(published.store(&vec![1; length]), Err(PublishedError::NoteLength(_))));
    }
}

#[test]
fn every_fault_of_a_store_leaves_the_old_note_or_the_new_and_ends_the_store() {
    let base = stored(2);
    let mut outcomes = vec![Outcome::NotApplied, Outcome::Applied, Outcome::NoSpace];
    outcomes.extend((1..=note(3).len() / 512).map(|sectors| Outcome::Torn(sectors * 512)));
    for outcome in outcomes {
        for (crash, nth) in [false, true].into_iter().flat_map(|crash| (0..4).map(move |nth| (crash, nth))) {
            let what = format!("{outcome:?} at operation {nth}, crash {crash}");
            let memory = base.duplicate();
            let dir = FaultDir::new(Arc::new(memory.clone()));
            let (mut published, _) = PublishedStore::open(Arc::new(dir.clone())).unwrap();
            dir.inject(Fault { operation: None, nth, outcome, crash });
            assert!(matches!(published.store(&note(3)), Err(PublishedError::Fatal(_))), "{what}");
            dir.heal();
            assert!(matches!(published.store(&note(3)), Err(PublishedError::Failed)), "{what}");
            for seed in 0..4 {
                let cut = memory.duplicate();
                cut.power_cut(by_seed(seed));
                let (again, _) = open(&cut).unwrap_or_else(|error| panic!("{what}: {error}"));
                let got = again.current().unwrap();
                assert!(got == note(2) || got == note(3), "{what}");
            }
        }
    }
    let dir = FaultDir::new(Arc::new(base.clone()));
    let (mut published, _) = PublishedStore::open(Arc::new(dir.clone())).unwrap();
    published.store(&note(3)).unwrap();
    assert_eq!(dir.points(), [CRASH_POINTS[0].0; 2]);
    base.power_cut(|_| Survival::Lost);
    assert_eq!(open(&base).unwrap().0.current(), Some(&*note(3)));
}

#[test]
fn damage_of_one_copy_is_repaired_and_of_both_refused() {
    let base = stored(2);
    let used = FIXED + note(2).len();
    for (copy, at) in [0, 1].into_iter().flat_map(|copy| (0..used).step_by(3).map(move |at| (copy, at))) {
        let dir = base.duplicate();
        let flip = |copy: usize| {
            let was = dir.content(NAMES[copy]).unwrap()[at];
            dir.damage(NAMES[copy], at, &[was ^ 0x40]).unwrap();
        };
        flip(copy);
        let (published, repaired) = open(&dir).unwrap();
        assert_eq!(published.current(), Some(&*note(2)), "byte {at}");
        assert_eq!(repaired.map(|repaired| repaired.name), Some(NAMES[copy]), "byte {at}");
        assert_eq!(open(&dir).unwrap().1, None, "byte {at}");
        flip(0);
        flip(1);
        assert!(matches!(open(&dir), Err(PublishedError::Damaged { .. })), "byte {at}");
    }
}

#[test]
fn a_missing_or_short_copy_is_made_again() {
    for copy in [0, 1] {
        let dir = stored(2);
        dir.remove(NAMES[copy]).unwrap();
        Dir::sync(&dir).unwrap();
        let repaired = |bad| Some(Repaired { name: NAMES[copy], bad });
        assert_eq!(open(&dir).unwrap().1, repaired(BadCopy::Missing));
        dir.power_cut(|_| Survival::Lost);
        assert_eq!(open(&dir).unwrap().1, None);
        dir.remove(NAMES[copy]).unwrap();
        dir.create(NAMES[copy]).unwrap().write_at(0, MAGIC).unwrap();
        let (published, bad) = open(&dir).unwrap();
        assert_eq!((published.current(), bad), (Some(&*note(2)), repaired(BadCopy::Short)));
        dir.remove(NAMES[copy]).unwrap();
        dir.damage(NAMES[1 - copy], 0, b"x").unwrap();
        assert!(matches!(open(&dir), Err(PublishedError::Damaged { .. })));
    }
}

#[test]
fn a_copy_whose_write_was_lost_never_wins() {
    for copy in [0, 1] {
        let dir = stored(2);
        dir.damage(NAMES[copy], 0, &encode(&Content { sequence: 1, note: note(1) })).unwrap();
        let (published, bad) = open(&dir).unwrap();
        let repaired = Some(Repaired { name: NAMES[copy], bad: BadCopy::Behind });
        assert_eq!((published.current(), bad), (Some(&*note(2)), repaired));
        assert_eq!(open(&dir).unwrap().1, None);
    }
}

#[test]
fn contradicting_copies_and_other_versions_are_refused() {
    let dir = stored(2);
    dir.damage(NAMES[1], 0, &encode(&Content { sequence: 2, note: note(7) })).unwrap();
    assert!(matches!(open(&dir), Err(PublishedError::CopiesDiffer)));
    let dir = stored(2);
    let mut bytes = encode(&Content { sequence: 3, note: note(3) });
    bytes[8] = 2;
    let crc = checksum(&bytes);
    bytes[CRC].copy_from_slice(&crc.to_le_bytes());
    dir.damage(NAMES[0], 0, &bytes).unwrap();
    assert!(matches!(open(&dir), Err(PublishedError::Version { name: "current-a", version: 2 })));
}

#[test]
fn a_crash_while_creating_or_opening_is_harmless() {
    let broken = stored(2);
    broken.damage(NAMES[0], 0, b"x").unwrap();
    let lost = stored(2);
    lost.remove(NAMES[1]).unwrap();
    Dir::sync(&lost).unwrap();
    for (base, want) in [(MemoryDir::new(), None), (broken, Some(note(2))), (lost, Some(note(2)))] {
        for nth in 0.. {
            let memory = base.duplicate();
            let dir = FaultDir::new(Arc::new(memory.clone()));
            dir.inject(Fault { operation: None, nth, outcome: Outcome::Applied, crash: true });
            let ended = match want {
                None => PublishedStore::create(Arc::new(dir)).is_ok(),
                Some(_) => PublishedStore::open(Arc::new(dir)).is_ok(),
            };
            if ended {
                break;
            }
            for seed in 0..4 {
                let cut = memory.duplicate();
                cut.power_cut(by_seed(seed));
                match open(&cut) {
                    Ok((published, _)) => assert_eq!(published.current(), want.as_deref()),
                    Err(PublishedError::Missing) if want.is_none() => {
                        PublishedStore::create(Arc::new(cut)).unwrap();
                    }
                    Err(other) => panic!("operation {nth}, power cut {seed}: {other}"),
                }
            }
        }
    }
}

#[test]
fn a_failed_read_is_an_error_and_not_a_bad_copy() {
    for nth in 0..2 {
        let dir = FaultDir::new(Arc::new(stored(2)));
        let operation = Some(Operation::Read);
        dir.inject(Fault { operation, nth, outcome: Outcome::NotApplied, crash: false });
        assert!(matches!(
            PublishedStore::open(Arc::new(dir)),
            Err(PublishedError::Io { action: "read", .. })
        ));
    }
}

/// Reads a file by the offsets of docs/formats/published.md and nothing else.
#[test]
fn the_files_are_as_documented() {
    let dir = stored(2);
    for name in ["current-a", "current-b"] {
        let bytes = dir.content(name).unwrap();
        assert_eq!(bytes.len(), 28 + 524_288);
        assert_eq!(&bytes[..8], b"EPGPUBLD");
        assert_eq!(bytes[8..12], 1u32.to_le_bytes());
        let end = 28 + note(2).len();
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..end]);
        assert_eq!(bytes[12..16], crc.to_le_bytes());
        assert_eq!(bytes[16..24], 2u64.to_le_bytes());
        assert_eq!(bytes[24..28], (note(2).len() as u32).to_le_bytes());
        assert_eq!(bytes[28..end], note(2));
    }
}

#[test]
fn an_inspection_sees_what_opening_sees_and_changes_nothing() {
    for copy in NAMES {
        let dir = stored(2);
        let sound = NAMES.map(|name| dir.content(name).unwrap());
        assert_eq!(inspect(&dir).unwrap(), (Some(note(2)), None));
        dir.damage(copy, 40, &[0xff]).unwrap();
        let damaged = NAMES.map(|name| dir.content(name).unwrap());
        let repaired = Repaired { name: copy, bad: BadCopy::Checksum };
        assert_eq!(inspect(&dir).unwrap(), (Some(note(2)), Some(repaired)));
        assert_eq!(NAMES.map(|name| dir.content(name).unwrap()), damaged);
        assert_eq!(open(&dir).unwrap().1, Some(repaired));
        assert_eq!(NAMES.map(|name| dir.content(name).unwrap()), sound);
    }
    assert_eq!(inspect(&stored(0)).unwrap(), (None, None));
    assert!(matches!(inspect(&MemoryDir::new()), Err(PublishedError::Missing)));
}
