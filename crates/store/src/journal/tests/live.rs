//! The journal in its thread, on memory and on the real disk, with a reader behind it.

use std::os::unix::fs::PermissionsExt;
use std::sync::mpsc::channel;

use super::*;
use crate::file::fault::{Fault, FaultDir, Operation, Outcome};
use crate::file::real::RealDir;

#[test]
fn a_reader_follows_the_thread_across_segments() {
    let dir = MemoryDir::new();
    let handle = JournalHandle::spawn(create(&dir).unwrap()).unwrap();
    let (durable, sizes) = channel::<TreeSize>();
    let follower = {
        let dir: Arc<dyn Dir> = Arc::new(dir.clone());
        std::thread::spawn(move || {
            let (mut reader, mut frontier) = (Reader::new(dir, ORIGIN), Frontier::new());
            for size in sizes {
                while let Some(frame) = reader.next_frame(size).unwrap() {
                    frame.replay(&mut frontier).unwrap();
                }
                assert_eq!(frontier.size(), size);
            }
            frontier.head()
        })
    };
    let mut frontier = Frontier::new();
    for count in (0..300).map(|n| n % 7 + 1) {
        let batch = batch(&frontier, count);
        frontier = batch.after.clone();
        let (durable, size) = (durable.clone(), frontier.size());
        handle.append(
            batch,
            Box::new(move |result| {
                result.unwrap();
                durable.send(size).unwrap();
            }),
        );
    }
    handle.close();
    drop(durable);
    assert_eq!(follower.join().unwrap(), frontier.head());
    assert_eq!(open(&dir).unwrap().1.head(), frontier.head());
    assert!(!dir.list().unwrap().contains(&"spare.tmp".to_owned()), "a left-over spare is removed");
}

#[test]
fn the_thread_answers_every_batch_also_after_it_stopped() {
    let memory = written(3);
    let dir = FaultDir::new(Arc::new(memory.clone()));
    let (journal, opened) = open(&dir).unwrap();
    dir.inject(Fault {
        operation: Some(Operation::Rename),
        nth: 0,
        outcome: Outcome::NotApplied,
        crash: false,
    });
    let handle = JournalHandle::spawn(journal).unwrap();
    let (answers, results) = channel();
    let mut frontier = opened.frontier;
    for _ in 0..40 {
        let batch = batch(&frontier, 2);
        frontier = batch.after.clone();
        let answers = answers.clone();
        handle.append(batch, Box::new(move |result| answers.send(result.is_ok()).unwrap()));
    }
    drop((handle, answers));
    let results: Vec<bool> = results.iter().collect();
    assert_eq!(results.len(), 40);
    let acknowledged = results.iter().filter(|ok| **ok).count();
    assert!(
        acknowledged > 0 && acknowledged < 40 && results.is_sorted_by(|a, b| a >= b),
        "no success after the stop"
    );
    assert_eq!(open(&memory).unwrap().1.head().size.get(), 3 + 2 * acknowledged as u64);
}

/// Whoever appends is not held up by the zeros of a whole segment. Broken to see it fail: no order waited for, orders at
/// half the bytes, no order to stop; with no order given it waits for ever.
#[test]
fn the_next_segment_is_made_at_the_pace_of_the_appends() {
    let config = Config::new(8 << 20, 1 << 20).unwrap();
    let check = |batches: u64, made: usize| {
        let dir = FaultDir::new(Arc::new(MemoryDir::new()));
        let any: Arc<dyn Dir> = Arc::new(dir.clone());
        let journal = Journal::create(any, ORIGIN, config, NOW, Arc::new(Counter::default())).unwrap();
        let ready = || dir.points().iter().filter(|point| **point == "journal.spare.ready").count();
        assert_eq!(ready(), 1, "the first segment is made in one go");
        let handle = JournalHandle::spawn(journal).unwrap();
        let (answers, results) = channel();
        let mut frontier = Frontier::new();
        for _ in 0..batches {
            // A little less than 1 MiB of 8.
            let batch = batch_of(&frontier, &vec![vec![7; 65_000]; 16]);
            frontier = batch.after.clone();
            let answers = answers.clone();
            handle.append(batch, Box::new(move |result| answers.send(result.is_ok()).unwrap()));
            assert!(results.recv().unwrap());
        }
        while ready() < made {
            std::thread::yield_now();
        }
        handle.close();
        assert_eq!((ready(), dir.list().unwrap().len()), (made, batches as usize / 8 + made), "{batches}");
    };
    check(0, 1);
    check(3, 1);
    check(4, 2);
}

#[test]
fn the_same_on_the_real_disk() {
    let home = tempfile::tempdir().unwrap();
    let dir: Arc<dyn Dir> = Arc::new(RealDir::open(home.path()).unwrap());
    let entropy: Arc<dyn Entropy> = Arc::new(Counter::default());
    let mut journal = Journal::create(dir.clone(), ORIGIN, config(), NOW, entropy.clone()).unwrap();
    fill(&mut journal, 50);
    drop(journal);
    let (mut journal, opened) = Journal::open(dir.clone(), ORIGIN, config(), entropy).unwrap();
    assert_eq!(opened.head().size.get(), 50);
    fill(&mut journal, 90);
    assert_eq!(verify_all(dir.clone(), ORIGIN, journal.head().size, |_| ()).unwrap().head(), journal.head());
    let names = dir.list().unwrap();
    let mode =
        |name: &String| std::fs::metadata(home.path().join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&names[0]), mode(names.last().unwrap())), (0o400, 0o600));
}
