//! Marks and tables of producers: over segments, restarts, faults and power cuts.

use super::*;
use crate::file::fault::{Fault, FaultDir, Outcome};
use crate::file::memory::{Survival, by_seed};

fn claim(id: u8, first_sequence: u64, count: u32) -> Claim {
    Claim { producer: ProducerKey { identity: ORIGIN, id: [id; 16] }, epoch: 4, first_sequence, count }
}

/// Who sends the entry at `index`, under which number: producer 1 sends two of three, and producer 2 one of six, its
/// numbers in pairs that change places. The others come from nobody.
fn sender(index: u64) -> Option<(u8, u64)> {
    match index % 6 {
        0 | 1 | 3 | 4 => Some((1, index / 3 * 2 + index % 3)),
        2 => Some((2, (index / 6) ^ 1)),
        _ => None,
    }
}

/// The next `count` entries after `frontier`, with a mark for each that has a sender.
fn numbered(frontier: &Frontier, count: u64) -> Batch {
    let from = frontier.size().get();
    let mark = |offset: u64| {
        let (id, number) = sender(from + offset)?;
        Some(ProducerMark { claim: claim(id, number, 1), offset: offset as u32 })
    };
    Batch { marks: (0..count).filter_map(mark).collect(), ..batch(frontier, count) }
}

/// What a log of `size` entries knows, one entry after the other.
fn expected(size: TreeSize) -> ProducerTable {
    let mut table = ProducerTable::default();
    for index in 0..size.get() {
        if let Some((id, number)) = sender(index) {
            let taken = table.take(&claim(id, number, 1), LeafIndex::new(index).unwrap());
            assert_eq!(taken, Ok(Standing::New));
        }
    }
    table
}

fn fill_numbered(journal: &mut Journal, size: u64) -> Result<(), AppendError> {
    while journal.head().size.get() < size {
        let next = journal.head().size.get();
        journal.append(&numbered(&journal.frontier().clone(), (next % 4 + 1).min(size - next)))?;
    }
    Ok(())
}

fn written_numbered(size: u64) -> MemoryDir {
    let dir = MemoryDir::new();
    fill_numbered(&mut create(&dir).unwrap(), size).unwrap();
    dir
}

/// C1, C2, C3. Seen to fail with the table not folded at open, with the next segment begun with an empty one, and with
/// marks left out of frames.
#[test]
fn the_table_of_a_reopened_journal_is_what_its_frames_say() {
    let dir = MemoryDir::new();
    drop(create(&dir).unwrap());
    for size in (0..130).step_by(7) {
        let (mut journal, opened) = open(&dir).unwrap();
        assert_eq!(opened.producers, expected(opened.head().size));
        assert_eq!(journal.producers(), &opened.producers);
        fill_numbered(&mut journal, size).unwrap();
        assert_eq!(journal.producers(), &expected(journal.head().size));
    }
    assert!(segments(&dir).len() > 3);
    let found = inspect(&dir, ORIGIN, &[], &mut |_| ());
    assert!(found.flaws.is_empty(), "{found:?}");
}

/// C1, C2, C3. Seen to fail with the next segment begun with an empty table.
#[test]
fn whatever_fails_the_table_is_what_the_durable_frames_say() {
    let before = written_numbered(24);
    let work = |dir: &FaultDir| {
        let (mut journal, _) = open(dir).ok()?;
        let _ = fill_numbered(&mut journal, 70);
        Some(journal.head().size)
    };
    let check = |memory: &MemoryDir, acknowledged: Option<TreeSize>, what: &str| {
        for number in 0..4 {
            let memory = memory.duplicate();
            match number {
                0 => memory.power_cut(|_| Survival::Lost),
                1 => memory.power_cut(|_| Survival::Kept),
                2 => {}
                seed => memory.power_cut(by_seed(seed)),
            }
            let (mut journal, opened) = open(&memory).unwrap();
            let size = opened.head().size;
            assert!(acknowledged.is_none_or(|acknowledged| size >= acknowledged), "{what}, cut {number}");
            assert_eq!(opened.producers, expected(size), "{what}, cut {number}");
            fill_numbered(&mut journal, size.get() + 5).unwrap();
        }
    };
    let trial = FaultDir::new(Arc::new(before.duplicate()));
    work(&trial);
    for nth in 0..trial.operations().len() {
        for outcome in [Outcome::NotApplied, Outcome::Applied, Outcome::Torn(512), Outcome::NoSpace] {
            let memory = before.duplicate();
            let dir = FaultDir::new(Arc::new(memory.clone()));
            dir.inject(Fault { operation: None, nth, outcome, crash: true });
            let acknowledged = work(&dir);
            check(&memory, acknowledged, &format!("operation {nth} {outcome:?}"));
        }
    }
    for (name, nth) in CRASH_POINTS.iter().flat_map(|(name, _)| [(name, 0), (name, 1)]) {
        let memory = before.duplicate();
        let dir = FaultDir::new(Arc::new(memory.clone()));
        dir.crash_at(name, nth);
        let acknowledged = work(&dir);
        check(&memory, acknowledged, name);
    }
}

#[test]
fn a_batch_whose_marks_do_not_follow_stops_the_journal_before_anything_is_written() {
    let dir = written_numbered(7);
    let (mut journal, opened) = open(&dir).unwrap();
    let files: Vec<_> = segments(&dir).iter().map(|name| dir.content(name).unwrap()).collect();
    let mark = ProducerMark { claim: claim(1, 0, 1), offset: 0 };
    let twice = Batch { marks: vec![mark], ..batch(&opened.frontier, 1) };
    let error = journal.append(&twice).unwrap_err();
    assert!(matches!(error, AppendError::Fatal(_)), "{error}");
    assert!(error.to_string().contains("number 0 of a producer is at index 0, and again at 7"), "{error}");
    assert!(matches!(journal.append(&batch(&opened.frontier, 1)), Err(AppendError::Fatal(_))));
    let after: Vec<_> = segments(&dir).iter().map(|name| dir.content(name).unwrap()).collect();
    assert_eq!(files, after);
}

#[test]
fn marks_and_tables_that_contradict_each_other_are_damage() {
    // A frame that gives a number again.
    let dir = written_numbered(7);
    let (mut journal, opened) = open(&dir).unwrap();
    journal.producers = ProducerTable::default();
    let mark = ProducerMark { claim: claim(1, 0, 1), offset: 0 };
    journal.append(&Batch { marks: vec![mark], ..batch(&opened.frontier, 1) }).unwrap();
    drop(journal);
    let error = open(&dir).err().unwrap().to_string();
    assert!(error.contains("damaged") && error.contains("again at 7"), "{error}");
    assert_eq!(inspect(&dir, ORIGIN, &[], &mut |_| ()).flaws.len(), 1);

    // A segment that begins with another table than the one before ends with.
    let dir = written_numbered(7);
    let (mut journal, _) = open(&dir).unwrap();
    let names = segments(&dir);
    while segments(&dir) == names {
        if journal.needs_segment(&batch(&journal.frontier().clone(), 1)) {
            journal.producers = ProducerTable::default();
        }
        let next = batch(&journal.frontier().clone(), 1);
        journal.append(&next).unwrap();
    }
    drop(journal);
    let found = inspect(&dir, ORIGIN, &[], &mut |_| ());
    assert_eq!(found.flaws.len(), 1, "{found:?}");
    assert!(found.flaws[0].error.to_string().contains("table of producers"), "{found:?}");
}

/// A second reader of marks, written from docs/formats/journal.md alone.
#[test]
fn the_documented_offsets_read_the_marks_of_a_frame() {
    let dir = MemoryDir::new();
    let mut journal = create(&dir).unwrap();
    let at = usize::try_from(journal.cursor.end).unwrap();
    journal.append(&numbered(&Frontier::new(), 5)).unwrap();
    let file = dir.content(&segments(&dir)[0]).unwrap();
    let number = |at: usize, length: usize| {
        file[at..at + length].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    };
    let marks = number(at + 44, 4) as usize;
    assert_eq!(marks, 5);
    for index in 0..marks {
        let at = at + 512 + 72 * index;
        let (id, sequence) = sender(index as u64).unwrap();
        assert_eq!(file[at..at + 16], [id; 16]);
        assert_eq!(&file[at + 16..at + 48], ORIGIN.as_bytes());
        assert_eq!((number(at + 48, 8), number(at + 56, 8)), (4, sequence));
        assert_eq!((number(at + 64, 4), number(at + 68, 4)), (index as u64, 1));
    }
    let entries = at + 512 + 72 * marks;
    assert_eq!(usize::from(file[entries]) << 8 | usize::from(file[entries + 1]), entry(0).len());
}
