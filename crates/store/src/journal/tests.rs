//! Promises of the journal, under faults, power cuts and rot.

mod faults;
mod inspect;
mod layout;
mod live;
mod producers;
mod rot;
mod torn;

use std::sync::atomic::{AtomicU64, Ordering};

use epigraph_core::hash::{leaf_hash, sha256};
use epigraph_core::{LeafIndex, bundle};

use super::*;
use crate::file::memory::MemoryDir;

const ORIGIN: Hash = Hash::from_bytes([0xa5; 32]);
const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

/// Segments of 8 KiB, so that a few batches fill one.
fn config() -> Config {
    Config::new(8_192, 2_048).unwrap()
}

/// Different bytes at each call, the same ones in each run.
#[derive(Default)]
struct Counter(AtomicU64);

impl Entropy for Counter {
    fn fill(&self, bytes: &mut [u8]) {
        let hash = sha256(&self.0.fetch_add(1, Ordering::Relaxed).to_le_bytes());
        bytes.copy_from_slice(&hash.as_bytes()[..bytes.len()]);
    }
}

/// The entry that every test puts at `index`.
fn entry(index: u64) -> Vec<u8> {
    let length = (index * 97 % 300) as usize;
    (0..length).map(|at| (index as usize * 31 + at % 7 + 1) as u8 | 1).collect()
}

fn batch_of(frontier: &Frontier, entries: &[Vec<u8>]) -> Batch {
    let (mut after, mut bytes) = (frontier.clone(), Vec::new());
    for entry in entries {
        after.push(leaf_hash(entry)).unwrap();
        bundle::push(&mut bytes, entry).unwrap();
    }
    Batch { before: frontier.head(), after, time: NOW, marks: Vec::new(), entries: bytes }
}

/// The next `count` entries after `frontier`.
fn batch(frontier: &Frontier, count: u64) -> Batch {
    let from = frontier.size().get();
    batch_of(frontier, &(from..from + count).map(entry).collect::<Vec<_>>())
}

fn create(dir: &(impl Dir + Clone + 'static)) -> Result<Journal, JournalError> {
    Journal::create(Arc::new(dir.clone()), ORIGIN, config(), NOW, Arc::new(Counter::default()))
}

fn open(dir: &(impl Dir + Clone + 'static)) -> Result<(Journal, Opened), JournalError> {
    Journal::open(Arc::new(dir.clone()), ORIGIN, config(), Arc::new(Counter(1_000.into())))
}

/// Appends batches of 1, 2, 3, 1, 2, … entries until `size` is reached.
fn fill(journal: &mut Journal, size: u64) {
    while journal.head().size.get() < size {
        let next = journal.head().size.get();
        let batch = batch(&journal.frontier().clone(), (next % 3 + 1).min(size - next));
        journal.append(&batch).unwrap();
    }
}

/// A journal of `size` entries, closed.
fn written(size: u64) -> MemoryDir {
    let dir = MemoryDir::new();
    fill(&mut create(&dir).unwrap(), size);
    dir
}

/// Reads the whole journal and compares each entry and the root with what the tests put in.
fn assert_holds(dir: &MemoryDir, size: TreeSize) {
    let frontier = verify_all(Arc::new(dir.clone()), ORIGIN, size, |_| ()).unwrap();
    assert_eq!(frontier.size(), size);
    let mut reader = Reader::new(Arc::new(dir.clone()), ORIGIN);
    let mut index = 0;
    while let Some(frame) = reader.next_frame(size).unwrap() {
        assert_eq!((frame.before().size.get(), frame.time()), (index, NOW));
        for got in frame.entries() {
            assert_eq!(got, entry(index));
            index += 1;
        }
    }
    assert_eq!(index, size.get());
}

fn segments(dir: &MemoryDir) -> Vec<String> {
    dir.list().unwrap().into_iter().filter(|name| name.ends_with(".seg")).collect()
}

#[test]
fn a_reopened_journal_goes_on_where_it_ended() {
    let dir = MemoryDir::new();
    let journal = create(&dir).unwrap();
    assert_eq!(journal.head(), TreeHead::EMPTY);
    drop(journal);
    for size in [0, 1, 7, 60, 61, 200] {
        let (mut journal, opened) = open(&dir).unwrap();
        assert_eq!((opened.head(), &opened.cut), (journal.head(), &None));
        fill(&mut journal, size);
        assert_holds(&dir, journal.head().size);
    }
    let names = segments(&dir);
    assert!(names.len() > 3 && names[0] == "00000000000000000000.seg");
    let (last, sealed) = names.split_last().unwrap();
    assert!(sealed.iter().all(|name| dir.is_protected(name).unwrap()));
    assert!(!dir.is_protected(last).unwrap());
}

#[test]
fn a_journal_is_created_once_and_never_by_opening() {
    let dir = MemoryDir::new();
    assert!(matches!(open(&dir), Err(JournalError::NoJournal)));
    assert_eq!(dir.list().unwrap(), Vec::<String>::new());
    drop(create(&dir).unwrap());
    assert!(matches!(create(&dir), Err(JournalError::AlreadyThere { .. })));
    let other = Journal::open(Arc::new(dir), sha256(b"other"), config(), Arc::new(Counter::default()));
    assert!(matches!(other, Err(JournalError::OtherLog { .. })));
}

#[test]
fn a_batch_that_does_not_follow_is_refused_and_changes_nothing() {
    let dir = written(5);
    let (mut journal, opened) = open(&dir).unwrap();
    let good = batch(&opened.frontier, 2);
    let before = dir.content(&segments(&dir)[0]).unwrap();
    let mut check = |change: &dyn Fn(&mut Batch), wanted: &str| {
        let mut bad = good.clone();
        change(&mut bad);
        let error = journal.append(&bad).unwrap_err();
        assert!(matches!(&error, AppendError::Refused(_)) && error.to_string().contains(wanted), "{error}");
    };
    check(&|bad| bad.before.size = TreeSize::new(4).unwrap(), "size 4");
    check(&|bad| bad.before.root = ORIGIN, "another root");
    check(&|bad| bad.after = opened.frontier.clone(), "its entries are Some(2)");
    check(&|bad| bad.entries.truncate(3), "its entries are");
    check(&|bad| (bad.entries, bad.after) = (Vec::new(), opened.frontier.clone()), "at least one");
    check(&|bad| bad.entries.resize(2_049, 0), "at most 2048");
    assert_eq!(dir.content(&segments(&dir)[0]).unwrap(), before);
    journal.append(&good).unwrap();
}

#[test]
fn a_missing_segment_is_named() {
    let whole = written(150);
    let (journal, _) = open(&whole).unwrap();
    drop(journal);
    let names = segments(&whole);
    assert!(names.len() >= 4);
    for gone in &names {
        let dir = whole.duplicate();
        dir.remove(gone).unwrap();
        match open(&dir).err().unwrap() {
            JournalError::MissingSegment { segment, .. } => assert_eq!(&segment, gone),
            other => panic!("{gone}: {other}"),
        }
    }
}

#[test]
fn a_reader_starts_at_any_entry_and_stops_at_the_durable_size() {
    let dir = written(100);
    for from in 0..100 {
        // Sizes that were ever durable are ends of frames; another one hides the frame that it cuts.
        let mut reader = Reader::new(Arc::new(dir.clone()), ORIGIN);
        let mut reached = TreeSize::ZERO;
        while let Some(frame) = reader.next_frame(TreeSize::new(from).unwrap()).unwrap() {
            reached = frame.after().size;
        }
        assert!(reached.get() <= from && from - reached.get() < 3);
        let mut reader = Reader::starting_at(Arc::new(dir.clone()), ORIGIN, TreeSize::new(from).unwrap());
        assert_eq!(reader.next_frame(TreeSize::new(from).unwrap()).unwrap(), None);
        let frame = reader.next_frame(TreeSize::new(100).unwrap()).unwrap().unwrap();
        assert!(frame.before().size.get() <= from && from < frame.after().size.get());
        assert!(frame.after().size.contains(LeafIndex::new(from).unwrap()));
    }
}

#[test]
fn sizes_that_do_not_fit_together_are_refused() {
    let check = |segment: u64, frame: u32, accepted: bool| {
        assert_eq!(Config::new(segment, frame).is_ok(), accepted, "{segment} {frame}");
    };
    check(Config::PRODUCTION.segment_bytes(), Config::PRODUCTION.max_frame_bytes(), true);
    check(Config::QUICKSTART.segment_bytes(), Config::QUICKSTART.max_frame_bytes(), true);
    check(5_120, 2_048, true);
    check(5_120, 2_049, false);
    check(8_193, 2_048, false);
    check(0, 0, false);
    check(MAX_SEGMENT_BYTES + 512, 2_048, false);
    check(64 << 20, MAX_FRAME_BYTES + 1, false);
}
