use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::file::memory::MemoryDir;

/// An hour passes at each look.
#[derive(Default)]
struct Hourly(AtomicU64);

impl Clock for Hourly {
    fn now(&self) -> UnixMillis {
        UnixMillis(self.0.fetch_add(3_600_000, Ordering::Relaxed))
    }
}

/// No time passes.
struct Still;

impl Clock for Still {
    fn now(&self) -> UnixMillis {
        UnixMillis(1)
    }
}

fn size(leaves: u64) -> TreeSize {
    TreeSize::new(leaves).unwrap()
}

fn note(n: u64) -> Vec<u8> {
    format!("checkpoint of size {n}").into_bytes()
}

fn open(dir: &MemoryDir) -> (History, Found) {
    History::open(Arc::new(dir.clone()), Arc::new(Still)).unwrap()
}

fn filled(dir: &MemoryDir, sizes: Range<u64>) -> History {
    let (history, _) = open(dir);
    sizes.for_each(|n| history.append(size(n), &note(n)).unwrap());
    history
}

/// The sizes that it has; each note must be the one of its size.
fn sizes(history: &History) -> Vec<u64> {
    let page = history.page(TreeSize::ZERO, usize::MAX, usize::MAX).unwrap();
    page.notes.iter().for_each(|(size, found)| assert_eq!(*found, note(size.get())));
    page.notes.iter().map(|(size, _)| size.get()).collect()
}

#[test]
fn what_was_added_is_there_after_opening_again_in_order_and_once() {
    let dir = MemoryDir::new();
    let history = filled(&dir, 1..4);
    for again in [3, 2, 1] {
        history.append(size(again), b"another of this size").unwrap();
    }
    drop(history);
    let (history, found) = open(&dir);
    assert_eq!((sizes(&history), found), (vec![1, 2, 3], Found::default()));
    history.append(size(9), &note(9)).unwrap();
    assert_eq!(sizes(&history), [1, 2, 3, 9]);
    for length in [0, MAX_NOTE + 1] {
        assert!(matches!(history.append(size(10), &vec![7; length]), Err(HistoryError::NoteLength(_))));
    }
}

#[test]
fn pages_end_where_they_should() {
    let history = filled(&MemoryDir::new(), 1..11);
    let check = |from: u64, most: usize, most_bytes: usize, expected: Range<u64>, next: Option<u64>| {
        let page = history.page(size(from), most, most_bytes).unwrap();
        let got: Vec<_> = page.notes.iter().map(|(size, _)| size.get()).collect();
        assert_eq!((got, page.next), (expected.collect(), next.map(size)), "{from} {most} {most_bytes}");
    };
    let one = note(1).len();
    check(0, 100, 10_000, 1..11, None);
    check(0, 3, 10_000, 1..4, Some(4));
    check(4, 7, 10_000, 4..11, None);
    check(4, 6, 10_000, 4..10, Some(10));
    check(11, 6, 10_000, 11..11, None);
    check(2, 100, one * 2, 2..4, Some(4));
    check(2, 100, 0, 2..3, Some(3));
}

/// B5. Fails if the checksum is left out, or if the search for the next record is.
#[test]
fn a_damaged_record_is_left_out_and_kept_aside_and_the_others_are_served() {
    let whole = MemoryDir::new();
    filled(&whole, 1..6);
    let bytes = whole.content(NAME).unwrap();
    let record = bytes.len() / 5;
    for at in 0..bytes.len() {
        let dir = whole.duplicate();
        // While it is open: served never, and the others still.
        let (history, _) = open(&dir);
        dir.damage(NAME, at, &[bytes[at] ^ 1]).unwrap();
        let hit = (at / record) as u64 + 1;
        let others: Vec<_> = (1..6).filter(|n| *n != hit).collect();
        assert_eq!(history.page(size(0), 9, 9_999).unwrap().damaged, 1);
        assert_eq!(sizes(&history), others);
        drop(history);
        let (history, found) = open(&dir);
        assert_eq!(sizes(&history), others, "byte {at}");
        // Damage to the last one cannot be told from a record that was never completely written.
        let kept = (hit < 5).then(|| "history.damaged-1".to_owned());
        assert_eq!(found, Found { damaged: usize::from(hit < 5), kept_aside: kept.clone() }, "byte {at}");
        if let Some(kept) = kept {
            assert_eq!(dir.content(&kept).unwrap().len(), bytes.len());
        }
        drop(history);
        assert_eq!(open(&dir).1, Found::default(), "made good");
    }
}

/// P2. Fails if what is torn is not written over.
#[test]
fn a_record_that_was_torn_is_cut_off_and_the_next_one_takes_its_place() {
    let whole = MemoryDir::new();
    filled(&whole, 1..4);
    let bytes = whole.content(NAME).unwrap();
    for length in 2 * bytes.len() / 3..bytes.len() {
        let dir = MemoryDir::new();
        dir.create(NAME).unwrap().write_at(0, &bytes[..length]).unwrap();
        let (history, found) = open(&dir);
        assert_eq!((sizes(&history), found), (vec![1, 2], Found::default()), "{length} bytes");
        history.append(size(3), &note(3)).unwrap();
        history.append(size(4), &note(4)).unwrap();
        drop(history);
        assert_eq!(sizes(&open(&dir).0), [1, 2, 3, 4], "{length} bytes");
    }
}

/// Fails if it is never thinned, or thinned without the rule.
#[test]
fn years_of_checkpoints_take_bounded_space() {
    let dir = MemoryDir::new();
    let clock = Arc::new(Hourly::default());
    let (history, _) = History::open(Arc::new(dir.clone()), clock.clone()).unwrap();
    let published = 30_000;
    for n in 1..=published {
        history.append(size(n), &note(n)).unwrap();
    }
    let kept = sizes(&history);
    let newest: Vec<_> = (published - RECENT as u64 + 1..=published).collect();
    assert_eq!(kept[kept.len() - RECENT..], newest);
    assert!(kept.len() < 4_500, "{} of {published}", kept.len());
    // The first of each day is still there: the first day began with the first one.
    assert_eq!(kept[..3], [1, 25, 49]);
    drop(history);
    assert_eq!(sizes(&open(&dir).0), kept);
}

/// Reading alone finds what opening finds, and changes nothing. Broken to see it fail: a torn end counts as damage.
#[test]
fn inspecting_finds_what_opening_would_and_changes_nothing() {
    let dir = MemoryDir::new();
    assert_eq!(inspect(&dir).unwrap(), Inspection::default());
    filled(&dir, 1..4);
    let whole = dir.content(NAME).unwrap();
    let record = whole.len() / 3;
    let check = |bytes: &[u8], sizes: &[u64], damaged: &[Range<u64>], torn: Option<u64>| {
        dir.remove(NAME).unwrap();
        dir.create(NAME).unwrap().write_at(0, bytes).unwrap();
        let found = inspect(&dir).unwrap();
        let found_sizes: Vec<_> = found.notes.iter().map(|(size, _)| size.get()).collect();
        assert_eq!((found_sizes.as_slice(), found.damaged.as_slice(), found.torn), (sizes, damaged, torn));
        found.notes.iter().for_each(|(size, found)| assert_eq!(*found, note(size.get())));
        assert_eq!(dir.content(NAME).unwrap(), bytes);
    };
    let end = whole.len() as u64;
    check(&whole, &[1, 2, 3], &[], None);
    check(&whole[..whole.len() - 1], &[1, 2], &[], Some(2 * record as u64));
    let mut flipped = whole.clone();
    flipped[record + 20] ^= 1;
    check(&flipped, &[1, 3], std::slice::from_ref(&(record as u64..2 * record as u64)), None);
    check(&[whole.as_slice(), b"more"].concat(), &[1, 2, 3], &[], Some(end));
}
