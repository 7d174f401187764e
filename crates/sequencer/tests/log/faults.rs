//! Disks that fail, fill up or lie, and threads that end: nothing is acknowledged or offered that is not on the disk as it
//! was sent, and a log that cannot know says so by ending.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use epigraph_core::hash::leaf_hash;
use epigraph_core::{LeafIndex, TreeHead};
use epigraph_sequencer::log::{AppendError, Wait};
use epigraph_sequencer::machine::Refused;
use epigraph_sequencer::run::Fatal;
use epigraph_sequencer::status::NotReady;
use epigraph_store::file::Dir;
use epigraph_store::file::fault::{Fault, FaultDir, Operation, Outcome};
use epigraph_store::file::memory::{MemoryDir, Survival, by_seed};
use epigraph_store::journal::Config;

use crate::support::*;

/// Waits until the next segment is ready, so that the operations which follow are those of a frame.
async fn spare_ready(dir: &FaultDir, spares: usize) {
    let ready = || dir.points().iter().filter(|point| **point == "journal.spare.ready").count();
    while ready() < spares {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_frame_that_fails_is_never_acknowledged_and_ends_the_log() {
    let outcomes =
        [Outcome::NotApplied, Outcome::Applied, Outcome::Torn(512), Outcome::Torn(700), Outcome::NoSpace];
    for operation in [Operation::Write, Operation::Sync] {
        for outcome in outcomes {
            let what = format!("{operation:?} {outcome:?}");
            let memory = MemoryDir::new();
            let dir = FaultDir::new(Arc::new(memory.clone()));
            let running = create(&dir, Options::default());
            spare_ready(&dir, 2).await;
            running.durable(&["kept"]).await;
            let mut offered = running.offered.clone();
            offered.wait_for(|head| head.size == size(1)).await.unwrap();
            dir.inject(Fault { operation: Some(operation), nth: 0, outcome, crash: false });
            let unknown = running.log.append(entries(&[&"x".repeat(900)]), PUBLISHED).await;
            assert_eq!(unknown, Err(AppendError::Stopped), "{what}");
            assert!(matches!(ended(running.driver).await, Err(Fatal::Journal(_))), "{what}");
            let after = running.log.append(entries(&["y"]), Wait::Durable).await;
            assert!(after.is_err(), "{what}: nothing is taken any more");
            assert_eq!(offered.borrow_and_update().size, size(1), "{what}: nothing of it is offered");
            for seed in 0..6 {
                let cut = memory.duplicate();
                match seed {
                    0 => cut.power_cut(|_| Survival::Lost),
                    1 => cut.power_cut(|_| Survival::Kept),
                    seed => cut.power_cut(by_seed(seed)),
                }
                assert_eq!(on_disk(&cut, small())[0], b"kept", "{what}");
            }
        }
    }
}

#[tokio::test]
async fn without_space_for_a_segment_appends_are_refused_reads_go_on_and_appends_resume() {
    let dir = Tap::default();
    let running = create(&dir, Options::default());
    dir.set_full(true);
    let text = "x".repeat(12_000);
    let mut acknowledged = 0;
    let refused = loop {
        match running.log.append(entries(&[&text]), PUBLISHED).await {
            Ok(answer) => assert_eq!(answer.first_index.get(), acknowledged),
            Err(error) => break error,
        }
        acknowledged += 1;
    };
    assert_eq!(refused, AppendError::Refused(Refused::NoSpace));
    assert!(acknowledged >= 4, "what fits in the segment is taken");
    for _ in 0..3 {
        let again = running.log.append(entries(&[&text]), PUBLISHED).await;
        assert_eq!(again, Err(AppendError::Refused(Refused::NoSpace)));
        assert_eq!(running.log.status(NOW).ready, Err(NotReady::NoSpace));
        for index in 0..acknowledged {
            let proven = running.log.prove(LeafIndex::new(index).unwrap()).await.unwrap();
            proven.proof.verify(&leaf_hash(text.as_bytes()), &proven.checkpoint.head().root).unwrap();
        }
    }
    dir.set_full(false);
    let sent = entries(&[&text]);
    let answer = running.log.append(sent.clone(), PUBLISHED).await.unwrap();
    assert_eq!(answer.first_index.get(), acknowledged, "the refused ones left no trace");
    verify(&answer, &sent);
    assert_eq!(running.log.status(NOW).ready, Ok(()));
    running.stop().await.unwrap();
    assert_eq!(on_disk(&dir.memory, small()).len() as u64, acknowledged + 1);
}

/// Flips a bit of the entry `poison` on the disk as soon as its frame is there.
fn poison(dir: &Tap) {
    let memory = dir.memory.clone();
    dir.on(move |point| {
        if point != "journal.frame.synced" {
            return;
        }
        for name in memory.list().unwrap() {
            let content = memory.content(&name).unwrap();
            if let Some(at) = content.windows(6).position(|bytes| bytes == b"poison") {
                memory.damage(&name, at, b"P").unwrap();
            }
        }
    });
}

#[tokio::test]
async fn a_byte_that_flips_between_write_and_reading_again_is_never_offered_and_ends_the_log() {
    let dir = Tap::default();
    let running = create(&dir, Options::default());
    running.durable(&["good"]).await;
    let mut offered = running.offered.clone();
    let good = *offered.wait_for(|head| head.size == size(1)).await.unwrap();
    poison(&dir);
    // It was durable; whether the caller hears so or the log ends first is all the same.
    let _ = running.log.append(entries(&["poison"]), Wait::Durable).await;
    assert!(matches!(ended(running.driver).await, Err(Fatal::Tree(_))));
    assert_eq!(*offered.borrow_and_update(), good);
    assert!(offered.changed().await.is_err());
}

#[tokio::test]
async fn a_flipped_byte_in_the_last_batch_before_the_end_is_not_overlooked() {
    let dir = Tap::default();
    let running = create(&dir, Options::default());
    poison(&dir);
    running.durable(&["poison"]).await;
    assert!(matches!(running.stop().await, Err(Fatal::Tree(_))));
}

#[tokio::test]
async fn a_thread_that_panics_ends_the_log() {
    for point in ["open", "journal.frame.written"] {
        let dir = Tap::default();
        let running = create(&dir, Options::default());
        let armed = Arc::new(AtomicBool::new(true));
        dir.on(move |at| {
            // Once: the panic must not hit the thread that makes the spare as well.
            if at == point && armed.swap(false, Ordering::SeqCst) {
                panic!("a test's panic at {point}");
            }
        });
        let answer = running.log.append(entries(&["a"]), Wait::Durable).await;
        let end = ended(running.driver).await;
        match point {
            "open" => assert!(matches!(end, Err(Fatal::Tree(_))), "{end:?}"),
            _ => {
                assert_eq!(answer, Err(AppendError::Stopped));
                assert!(matches!(end, Err(Fatal::Journal(_))), "{end:?}");
            }
        }
        assert_eq!(*running.offered.borrow(), TreeHead::EMPTY, "{point}");
    }
}

/// F5: a disk that takes for ever between a write and its sync. Whoever appends meanwhile waits or is told to come back; nothing
/// is acknowledged, and what waits is bounded. Seen to fail with a pool without its bound.
#[tokio::test]
async fn a_slow_disk_holds_back_acknowledgements_and_bounds_what_waits() {
    let tap = Tap::default();
    let running = create(&tap, Options { config: Config::QUICKSTART, ..Options::default() });
    running.durable(&["before"]).await;
    let (release, held) = std::sync::mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    tap.on(move |point| {
        if point == "journal.frame.written" {
            let _ = held.lock().unwrap().recv();
        }
    });
    // Ten times what may be on its way: each call is one of the largest.
    let largest = "x".repeat(65_535);
    let call = || entries(&[largest.as_str(); 63]);
    let calls: Vec<_> = (0..160)
        .map(|_| {
            let log = Arc::clone(&running.log);
            let call = call();
            tokio::spawn(async move { log.append(call, Wait::Durable).await })
        })
        .collect();
    let refused = || calls.iter().filter(|call| call.is_finished()).count();
    // All but what the pool and the frame that is being written hold.
    while refused() < 140 {
        tokio::task::yield_now().await;
    }
    assert_eq!(running.log.status(NOW).durable, size(1));
    assert!(running.log.status(NOW).in_flight_bytes <= 64 << 20);
    drop(release);
    let (mut taken, mut told_to_wait) = (0, 0);
    for call in calls {
        match call.await.unwrap() {
            Ok(appended) => taken += u64::from(appended.count),
            Err(AppendError::Refused(Refused::Overloaded)) => told_to_wait += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(taken > 0 && told_to_wait >= 150, "{taken} entries, {told_to_wait} calls");
    assert_eq!(running.log.status(NOW).durable, size(1 + taken));
    running.stop().await.unwrap();
}
