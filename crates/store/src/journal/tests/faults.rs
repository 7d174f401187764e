//! Every operation fails in every way, then the power goes, then the journal is opened again.

use proptest::prelude::*;

use super::*;
use crate::file::fault::{Fault, FaultDir, Operation, Outcome};
use crate::file::memory::{Survival, by_seed};

/// What a torn write leaves is a whole number of sectors, or one end of a header.
const OUTCOMES: [Outcome; 6] = [
    Outcome::NotApplied,
    Outcome::Applied,
    Outcome::Torn(64),
    Outcome::Torn(512),
    Outcome::Torn(1_024),
    Outcome::NoSpace,
];

/// Opens (or creates) and appends until something fails; returns the acknowledged size.
fn work(
    dir: &FaultDir,
    start: impl FnOnce(&FaultDir) -> Result<Journal, JournalError>,
    to: u64,
) -> Option<TreeSize> {
    let mut journal = start(dir).ok()?;
    while journal.head().size.get() < to {
        let batch = batch(&journal.frontier().clone(), journal.head().size.get() % 5 + 1);
        match journal.append(&batch) {
            Ok(()) => assert_eq!(journal.head(), batch.after.head()),
            Err(AppendError::NoSpace(_)) => assert_eq!(journal.head(), batch.before),
            Err(AppendError::Fatal(_)) => {
                assert!(matches!(journal.append(&batch), Err(AppendError::Fatal(_))), "stopped for good");
                break;
            }
            Err(refused) => panic!("{refused}"),
        }
    }
    Some(journal.head().size)
}

/// Nothing unsynced survives, everything does, only the process ended, or what the seed says.
fn cut_power(dir: &MemoryDir, choice: u64) {
    match choice {
        0 => dir.power_cut(|_| Survival::Lost),
        1 => dir.power_cut(|_| Survival::Kept),
        2 => {}
        seed => dir.power_cut(by_seed(seed)),
    }
}

/// A journal of two segments with a torn frame at its end, of which only the second half arrived.
fn torn() -> (MemoryDir, TreeSize) {
    let dir = (20..).map(written).find(|dir| open(&dir.duplicate()).unwrap().0.cursor.end < 4_096).unwrap();
    let (journal, opened) = open(&dir.duplicate()).unwrap();
    let at = usize::try_from(journal.cursor.end).unwrap();
    dir.damage(&segments(&dir).pop().unwrap(), at + 512, &[7; 1_000]).unwrap();
    assert_eq!(open(&dir.duplicate()).unwrap().1.cut.unwrap().bytes, 512 + 1_024);
    (dir, opened.head().size)
}

/// After any power cut the journal opens, holds at least `acknowledged`, and goes on.
fn assert_recovers(dir: &MemoryDir, acknowledged: TreeSize, what: &str) {
    for number in 0..6 {
        let dir = dir.duplicate();
        cut_power(&dir, number);
        let (mut journal, opened) =
            open(&dir).unwrap_or_else(|error| panic!("{what}, cut {number}: {error}"));
        assert!(opened.head().size >= acknowledged, "{what}, cut {number}: an acknowledged entry is gone");
        let sealed = segments(&dir).into_iter().rev().skip(1);
        assert!(sealed.into_iter().all(|name| dir.is_protected(&name).unwrap()), "{what}, cut {number}");
        let again = dir.duplicate();
        again.power_cut(|_| Survival::Lost);
        assert_eq!(
            open(&again).unwrap().1.head(),
            opened.head(),
            "{what}, cut {number}: not durable when opened"
        );
        let more = opened.head().size.get() + 3;
        fill(&mut journal, more);
        drop(journal);
        dir.power_cut(|_| Survival::Lost);
        assert_eq!(open(&dir).unwrap().1.head().size.get(), more, "{what}");
        assert_holds(&dir, TreeSize::new(more).unwrap());
    }
}

type Start = fn(&FaultDir) -> Result<Journal, JournalError>;

/// Runs `work` on copies of `before` with each operation failing in each way.
fn check(before: &MemoryDir, start: Start, to: u64) {
    let trial = FaultDir::new(Arc::new(before.duplicate()));
    assert!(work(&trial, start, to).is_some_and(|size| size.get() >= to));
    for nth in 0..trial.operations().len() {
        for (outcome, crash) in OUTCOMES.into_iter().flat_map(|outcome| [(outcome, false), (outcome, true)]) {
            let what = format!("operation {nth} ({:?}) {outcome:?}, crash {crash}", trial.operations()[nth]);
            let memory = before.duplicate();
            let dir = FaultDir::new(Arc::new(memory.clone()));
            dir.inject(Fault { operation: None, nth, outcome, crash });
            let acknowledged = work(&dir, start, to);
            assert!(dir.fired(), "{what}");
            match acknowledged {
                Some(size) => assert_recovers(&memory, size, &what),
                None if segments(before).is_empty() => {
                    memory.power_cut(by_seed(nth as u64));
                    assert!(open(&memory).is_ok() || create(&memory).is_ok(), "{what}");
                }
                None => assert_recovers(&memory, TreeSize::ZERO, &what),
            }
        }
    }
}

#[test]
fn creating_survives_every_fault() {
    check(&MemoryDir::new(), create, 2);
}

#[test]
fn opening_and_appending_over_segments_survives_every_fault() {
    check(&written(20), |dir| open(dir).map(|(journal, _)| journal), 75);
}

fn open_reserved(dir: &FaultDir) -> Result<Journal, JournalError> {
    let entropy = Arc::new(Counter(1_000.into()));
    Journal::open(Arc::new(dir.clone()), ORIGIN, config().reserved(), entropy).map(|(journal, _)| journal)
}

/// Broken by hand: space that is taken and not synced is not there after a power cut; a volume that is full taken for one that cannot.
#[test]
fn appending_over_reserved_segments_survives_every_fault() {
    check(&written(20), open_reserved, 75);
    let clean = FaultDir::new(Arc::new(written(20)));
    work(&clean, open_reserved, 75);
    assert!(clean.operations().contains(&Operation::Reserve));
    let full = Fault { operation: Some(Operation::Reserve), nth: 0, outcome: Outcome::NoSpace, crash: false };
    let (memory, mut refused) = (written(20), 0);
    let dir = FaultDir::new(Arc::new(memory.clone()));
    dir.inject(full);
    let mut journal = open_reserved(&dir).unwrap();
    while journal.head().size.get() < 75 {
        match journal.append(&batch(&journal.frontier().clone(), 3)) {
            Ok(()) => {}
            Err(AppendError::NoSpace(_)) => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(refused, 1);
    assert_holds(&memory, journal.head().size);
}

/// Broken by hand: a file system that cannot reserve taken for a full one.
#[test]
fn where_nothing_can_be_reserved_zeros_are_written() {
    let memory = written(20);
    let dir = FaultDir::new(Arc::new(memory.clone()));
    let outcome = Outcome::Unsupported;
    dir.inject(Fault { operation: Some(Operation::Reserve), nth: 0, outcome, crash: false });
    let size = work(&dir, open_reserved, 75).unwrap();
    assert!(dir.fired());
    memory.power_cut(|_| Survival::Lost);
    assert_holds(&memory, size);
}

#[test]
fn a_repair_survives_every_fault() {
    let (dir, acknowledged) = torn();
    drop(dir.create("spare.tmp").unwrap());
    dir.sync().unwrap();
    let trial = FaultDir::new(Arc::new(dir.duplicate()));
    open(&trial).map(drop).unwrap();
    for nth in 0..trial.operations().len() {
        for outcome in OUTCOMES {
            let memory = dir.duplicate();
            let faulty = FaultDir::new(Arc::new(memory.clone()));
            faulty.inject(Fault { operation: None, nth, outcome, crash: true });
            let what = format!("operation {nth} ({:?}) {outcome:?}", trial.operations()[nth]);
            assert!(open(&faulty).is_err(), "{what}");
            assert_recovers(&memory, acknowledged, &what);
        }
    }
}

#[test]
fn a_crash_at_every_named_point_is_repaired() {
    let names: Vec<_> = CRASH_POINTS.iter().map(|(name, _)| *name).collect();
    let mut passed = Vec::new();
    for name in &names {
        for nth in 0..3 {
            let (memory, _) = torn();
            let dir = FaultDir::new(Arc::new(memory.clone()));
            dir.crash_at(name, nth);
            let acknowledged =
                work(&dir, |dir| open(dir).map(|(journal, _)| journal), 75).unwrap_or_default();
            assert_recovers(&memory, acknowledged, name);
            passed.extend(dir.points());
        }
    }
    passed.sort_unstable();
    passed.dedup();
    let mut names = names;
    names.sort_unstable();
    assert_eq!(passed, names, "the table lists the points that exist");
}

#[test]
fn without_space_for_a_segment_appends_wait_and_then_go_on() {
    for operation in [Operation::Create, Operation::Write, Operation::Sync, Operation::Rename] {
        let memory = MemoryDir::new();
        drop(create(&memory).unwrap());
        let dir = FaultDir::new(Arc::new(memory.clone()));
        let (mut journal, _) = open(&dir).unwrap();
        let next = |journal: &Journal| batch(&journal.frontier().clone(), 3);
        while !journal.needs_segment(&next(&journal)) {
            journal.append(&next(&journal)).unwrap();
        }
        let files = memory.list().unwrap();
        for _ in 0..3 {
            dir.inject(Fault { operation: Some(operation), nth: 0, outcome: Outcome::NoSpace, crash: false });
            let head = journal.head();
            assert!(matches!(journal.append(&next(&journal)), Err(AppendError::NoSpace(_))), "{operation:?}");
            assert_eq!(journal.head(), head);
            assert_eq!(
                memory.list().unwrap(),
                files,
                "{operation:?}: the half-made segment gives its space back"
            );
        }
        journal.append(&next(&journal)).unwrap();
        assert_holds(&memory, journal.head().size);
    }
}

#[test]
fn a_failed_frame_write_or_sync_stops_the_journal() {
    for (operation, outcome) in [
        (Operation::Write, Outcome::NotApplied),
        (Operation::Write, Outcome::NoSpace),
        (Operation::Sync, Outcome::NotApplied),
        (Operation::Sync, Outcome::Applied),
    ] {
        let dir = FaultDir::new(Arc::new(written(4)));
        let (mut journal, opened) = open(&dir).unwrap();
        dir.inject(Fault { operation: Some(operation), nth: 0, outcome, crash: false });
        let batch = batch(&opened.frontier, 1);
        for _ in 0..2 {
            assert!(
                matches!(journal.append(&batch), Err(AppendError::Fatal(_))),
                "{operation:?} {outcome:?}"
            );
        }
    }
}

#[test]
fn a_tail_that_the_kernel_only_pretends_to_hold_is_written_again() {
    let memory = written(4);
    let dir = FaultDir::new(Arc::new(memory.clone()));
    let (mut journal, opened) = open(&dir).unwrap();
    dir.crash_at("journal.frame.written", 0);
    assert!(journal.append(&batch(&opened.frontier, 2)).is_err());
    memory.forget_unsynced();
    assert_eq!(open(&memory).unwrap().1.head().size.get(), 6);
    memory.power_cut(|_| Survival::Lost);
    assert_eq!(open(&memory).unwrap().1.head().size.get(), 6);
}

#[test]
fn a_crash_loop_leaves_a_bounded_number_of_saved_cuts() {
    let dir = written(5);
    let name = segments(&dir)[0].clone();
    for round in 0..40 {
        let (journal, opened) = open(&dir).unwrap();
        assert_eq!(opened.head().size.get(), 5);
        let at = usize::try_from(journal.cursor.end).unwrap();
        drop(journal);
        dir.damage(&name, at, &[round + 1; 70]).unwrap();
    }
    assert_eq!(dir.list().unwrap().len(), 1 + MAX_CUT_FILES as usize);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn no_sequence_of_appends_and_power_cuts_loses_an_acknowledged_entry(
        steps in proptest::collection::vec((0u64..30, any::<u64>(), 0usize..40), 1..6)
    ) {
        let memory = MemoryDir::new();
        drop(create(&memory).unwrap());
        let mut acknowledged = TreeSize::ZERO;
        for (entries, seed, nth) in steps {
            let dir = FaultDir::new(Arc::new(memory.clone()));
            let (_, opened) = open(&memory).unwrap();
            prop_assert!(opened.head().size >= acknowledged);
            assert_holds(&memory, opened.head().size);
            let outcome = OUTCOMES[seed as usize % OUTCOMES.len()];
            dir.inject(Fault { operation: None, nth, outcome, crash: true });
            let to = opened.head().size.get() + entries;
            acknowledged = work(&dir, |dir| open(dir).map(|(journal, _)| journal), to).unwrap_or(acknowledged);
            memory.power_cut(by_seed(seed));
        }
        prop_assert!(open(&memory).unwrap().1.head().size >= acknowledged);
    }
}
