//! The monitor's files under failing disks, power cuts and rot.

use std::sync::Arc;

use epigraph_core::hash::sha256;
use epigraph_core::{Origin, UnixMillis};
use epigraph_monitor::book::Book;
use epigraph_monitor::disk::{CRASH_POINTS, Disk, DiskError, MAX_EVIDENCE_FILES, add_log, create, has_log};
use epigraph_monitor::finding::{Code, EvidenceId, Trigger};
use epigraph_monitor::progress::{Audited, Progress};
use epigraph_store::file::Dir;
use epigraph_store::file::fault::{Fault, FaultDir, Outcome};
use epigraph_store::file::memory::{MemoryDir, by_seed};

fn origin() -> Origin {
    Origin::new("log.example").unwrap()
}

fn new() -> (MemoryDir, MemoryDir) {
    let (state, evidence) = (MemoryDir::new(), MemoryDir::new());
    create(Arc::new(state.clone())).unwrap();
    add_log(Arc::new(state.clone()), &origin()).unwrap();
    (state, evidence)
}

fn open(state: &MemoryDir, evidence: &MemoryDir) -> Result<(Disk, Book), DiskError> {
    Disk::open(Arc::new(state.clone()), Arc::new(evidence.clone()))
}

fn progress(at: u64) -> Progress {
    let mut progress = Progress::default();
    progress.set("log/a", Audited { full_at: Some(UnixMillis(at)), ..Audited::default() });
    progress
}

fn book(findings: u64) -> Book {
    let mut book = Book::new();
    for n in 0..findings {
        book.trigger(Trigger::new(Code::Rollback, &origin(), &format!("log/{n}"), UnixMillis(n), "seen"));
    }
    book
}

#[test]
fn what_was_kept_is_there_again() {
    let (state, evidence) = new();
    let (mut disk, empty) = open(&state, &evidence).unwrap();
    assert_eq!(empty, Book::new());
    assert_eq!(disk.log(&origin()).unwrap(), Default::default());
    disk.keep_book(&book(3)).unwrap();
    disk.keep_heads(&origin(), b"heads").unwrap();
    disk.keep_progress(&origin(), &progress(7)).unwrap();
    let id = disk.keep_evidence(b"evidence").unwrap();
    assert_eq!(id, EvidenceId::of(b"evidence"));
    let (disk, found) = open(&state, &evidence).unwrap();
    let log = disk.log(&origin()).unwrap();
    assert_eq!((found, log.heads, log.progress), (book(3), b"heads".to_vec(), progress(7)));
    assert_eq!(disk.evidence(id).unwrap().unwrap(), "evidence");
    assert_eq!(disk.evidence(EvidenceId::of(b"other")).unwrap(), None);
}

/// By docs/formats/monitor.md.
#[test]
fn the_files_are_as_documented() {
    let (state, evidence) = new();
    let (mut disk, _) = open(&state, &evidence).unwrap();
    disk.keep_heads(&origin(), b"what the machine wrote").unwrap();
    let id = disk.keep_evidence(b"evidence").unwrap();
    let hex = sha256(b"log.example").to_string();
    let mut names = ["book".to_owned(), format!("{hex}.audit"), format!("{hex}.heads")];
    names.sort();
    assert_eq!(state.list().unwrap(), names);
    let file = state.content(&format!("{hex}.heads")).unwrap();
    assert_eq!(&file[..8], b"EPGMONIT");
    assert_eq!(&file[8..12], [1, 0, 0, 0]);
    assert_eq!(&file[12..16], [22, 0, 0, 0]);
    assert_eq!(&file[16..48], sha256(b"what the machine wrote").as_bytes());
    assert_eq!(&file[48..], b"what the machine wrote");
    assert_eq!(&state.content(&format!("{hex}.audit")).unwrap()[48..], b"epigraph-audit@v1\n");
    assert_eq!(evidence.list().unwrap(), [sha256(b"evidence").to_string()]);
    assert_eq!(evidence.content(&id.to_string()).unwrap(), b"evidence");
}

/// A read error is never "no state yet". Fails if a file that is missing counts as empty.
#[test]
fn only_init_makes_files() {
    let (state, evidence) = (MemoryDir::new(), MemoryDir::new());
    assert!(matches!(open(&state, &evidence), Err(DiskError::Missing(_))));
    create(Arc::new(state.clone())).unwrap();
    assert!(matches!(create(Arc::new(state.clone())), Err(DiskError::Exists(_))));
    let (disk, _) = open(&state, &evidence).unwrap();
    assert!(matches!(disk.log(&origin()), Err(DiskError::Missing(_))));
    assert!(!has_log(&state, &origin()).unwrap());
    add_log(Arc::new(state.clone()), &origin()).unwrap();
    assert!(has_log(&state, &origin()).unwrap());
    assert!(matches!(add_log(Arc::new(state.clone()), &origin()), Err(DiskError::Exists(_))));
    for name in state.list().unwrap() {
        let other = state.duplicate();
        other.remove(&name).unwrap();
        let opened = open(&other, &evidence).and_then(|(disk, _)| disk.log(&origin()));
        assert!(matches!(opened, Err(DiskError::Missing(_))), "{name}");
    }
}

/// Every flipped byte of every file, and every cut, is a refusal. Fails without the checksum, and without the length.
#[test]
fn rot_is_refused() {
    let (state, evidence) = new();
    let (mut disk, _) = open(&state, &evidence).unwrap();
    disk.keep_book(&book(1)).unwrap();
    disk.keep_heads(&origin(), b"heads").unwrap();
    disk.keep_progress(&origin(), &progress(7)).unwrap();
    let id = disk.keep_evidence(b"evidence").unwrap();
    for name in state.list().unwrap() {
        let bytes = state.content(&name).unwrap();
        for (at, byte) in bytes.iter().enumerate() {
            let rotten = state.duplicate();
            rotten.damage(&name, at, &[byte ^ 1]).unwrap();
            let opened = open(&rotten, &evidence).and_then(|(disk, _)| disk.log(&origin()));
            assert!(
                matches!(opened, Err(DiskError::Damaged { .. } | DiskError::Version { .. })),
                "{name} {at}"
            );
        }
    }
    evidence.damage(&id.to_string(), 0, b"E").unwrap();
    assert!(matches!(disk.evidence(id), Err(DiskError::Damaged { .. })));
    // Who still has the bytes may write them again.
    assert_eq!(disk.keep_evidence(b"evidence").unwrap(), id);
    assert_eq!(disk.evidence(id).unwrap().unwrap(), "evidence");
}

/// Every operation of a replacement fails or is the last one before a crash or a power cut: the old content is there or the new
/// one, and after a failure nothing more is written. Fails if the file is written in place, and without the sync before the rename.
#[test]
fn a_replaced_file_is_the_old_one_or_the_new_one() {
    for nth in 0.. {
        for outcome in [Outcome::NotApplied, Outcome::Applied, Outcome::Torn(20), Outcome::NoSpace] {
            let (memory, evidence) = new();
            let (mut disk, _) = open(&memory, &evidence).unwrap();
            disk.keep_book(&book(1)).unwrap();
            let faulty = FaultDir::new(Arc::new(memory.clone()));
            let (mut disk, _) = Disk::open(Arc::new(faulty.clone()), Arc::new(evidence.clone())).unwrap();
            faulty.inject(Fault { operation: None, nth, outcome, crash: true });
            let kept = disk.keep_book(&book(2));
            if !faulty.fired() {
                assert!(nth > 4 && kept.is_ok());
                return;
            }
            // What is not there cannot be removed; the first operation may fail that way.
            if kept.is_err() {
                assert!(matches!(kept, Err(DiskError::Fatal { .. })), "{kept:?}");
                faulty.heal();
                assert!(matches!(disk.keep_book(&book(3)), Err(DiskError::Failed)));
                assert!(matches!(disk.keep_evidence(b"x"), Err(DiskError::Failed)));
            }
            for seed in 0..16 {
                let cut = memory.duplicate();
                cut.power_cut(by_seed(seed));
                let (_, found) = open(&cut, &evidence).unwrap();
                assert!(found == book(1) || found == book(2), "{nth} {outcome:?}");
                assert!(!cut.list().unwrap().iter().any(|name| name.ends_with(".new")));
            }
        }
    }
}

/// After `keep_book` returned, no power cut brings the old book back. Fails without the sync of the directory.
#[test]
fn what_was_acknowledged_survives_a_power_cut() {
    for seed in 0..64 {
        let (memory, evidence) = new();
        let (mut disk, _) = open(&memory, &evidence).unwrap();
        disk.keep_book(&book(2)).unwrap();
        let id = disk.keep_evidence(b"evidence").unwrap();
        memory.power_cut(by_seed(seed));
        evidence.power_cut(by_seed(seed));
        let (disk, found) = open(&memory, &evidence).unwrap();
        assert_eq!(found, book(2));
        assert!(disk.evidence(id).unwrap().is_some());
    }
}

#[test]
fn a_crash_at_each_named_point_leaves_one_of_the_two() {
    for (point, _) in CRASH_POINTS {
        let (memory, evidence) = new();
        let faulty = FaultDir::new(Arc::new(memory.clone()));
        let (mut disk, _) = Disk::open(Arc::new(faulty.clone()), Arc::new(evidence.clone())).unwrap();
        faulty.crash_at(point, 0);
        assert!(disk.keep_book(&book(2)).is_err());
        assert!(faulty.fired());
        let (_, found) = open(&memory, &evidence).unwrap();
        assert!(found == Book::new() || found == book(2));
    }
}

/// What the book names stays; of the rest there is a limit.
#[test]
fn evidence_that_nobody_names_goes_when_there_is_much() {
    let (state, evidence) = new();
    let (mut disk, mut book) = open(&state, &evidence).unwrap();
    let file = bytes::Bytes::from_static(b"named");
    let mut trigger = Trigger::new(Code::Rollback, &origin(), "log/a", UnixMillis(1), "seen");
    trigger.evidence = Some(file.clone());
    book.trigger(trigger);
    let named = disk.keep_evidence(&file).unwrap();
    for n in 0..MAX_EVIDENCE_FILES {
        disk.forget_evidence(&book).unwrap();
        disk.keep_evidence(format!("{n}").as_bytes()).unwrap();
    }
    assert_eq!(evidence.list().unwrap().len(), MAX_EVIDENCE_FILES + 1);
    disk.forget_evidence(&book).unwrap();
    assert_eq!(evidence.list().unwrap(), [named.to_string()]);
}
