//! What callers get: indexes without gaps, durable when they hear of them, proofs of their own bytes.

use std::time::Duration;

use epigraph_core::hash::leaf_hash;
use epigraph_core::{LeafIndex, TreeHead};
use epigraph_sequencer::log::{AppendError, Reach, ReadError, Wait};
use epigraph_sequencer::machine::Refused;
use epigraph_sequencer::status::NotReady;
use epigraph_store::file::memory::{MemoryDir, Survival};
use tokio::task::JoinSet;

use crate::support::*;

#[tokio::test]
async fn what_was_acknowledged_survives_a_power_cut_right_after() {
    let dir = MemoryDir::new();
    let running = create(&dir, Options::default());
    let mut acknowledged: Vec<Vec<u8>> = Vec::new();
    for n in 0..60u8 {
        let texts = [format!("{n}").repeat(900), String::new()];
        assert_eq!(running.durable(&[&texts[0], &texts[1]]).await, acknowledged.len() as u64);
        acknowledged.extend(texts.map(String::into_bytes));
        let cut = dir.duplicate();
        cut.power_cut(|_| Survival::Lost);
        assert_eq!(on_disk(&cut, small()), acknowledged, "after append {n}");
    }
    running.stop().await.unwrap();
}

#[tokio::test]
async fn a_published_answer_is_a_receipt_for_each_entry() {
    let running = create(&MemoryDir::new(), Options::default());
    for count in [1, 2, 3, 255, 700] {
        let sent: Vec<_> = (0..count).map(|n| format!("{count}/{n}").into()).collect();
        let answer = running.log.append(sent.clone(), PUBLISHED).await.unwrap();
        verify(&answer, &sent);
    }
    running.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_is_over_says_durable_and_is_no_error() {
    let running = create(&MemoryDir::new(), Options { publishes: false, ..Options::default() });
    let start = tokio::time::Instant::now();
    let wait = Wait::Published(Duration::from_secs(3));
    let answer = running.log.append(entries(&["a", "b"]), wait).await.unwrap();
    assert_eq!((answer.first_index.get(), answer.count, answer.published), (0, 2, None));
    assert_eq!(start.elapsed(), Duration::from_secs(3));
    assert_eq!(running.durable(&["c"]).await, 2);
}

#[tokio::test]
async fn a_thousand_callers_at_once_get_indexes_without_gaps_and_proofs_of_their_own_bytes() {
    let running = create(&MemoryDir::new(), Options::default());
    let mut callers = JoinSet::new();
    for caller in 0..1_000 {
        let log = running.log.clone();
        callers.spawn(async move {
            let sent: Vec<_> = (0..caller % 3 + 1).map(|n| format!("{caller}.{n}").into()).collect();
            let answer = log.append(sent.clone(), PUBLISHED).await.unwrap();
            verify(&answer, &sent);
            (answer.first_index.get(), u64::from(answer.count))
        });
    }
    let mut ranges = callers.join_all().await;
    ranges.sort_unstable();
    let end = ranges.iter().fold(0, |next, (first, count)| {
        assert_eq!(*first, next);
        next + count
    });
    assert_eq!(running.log.checkpoint().unwrap().head().size, size(end));
    running.stop().await.unwrap();
}

#[tokio::test]
async fn a_caller_that_hangs_up_at_any_point_keeps_its_entries_and_disturbs_nobody() {
    for polls in 0.. {
        let running = create(&MemoryDir::new(), Options::default());
        let sent: Vec<_> = (0..600).map(|n| format!("{n}").into()).collect();
        let answer = poll_times(running.log.append(sent.clone(), PUBLISHED), polls).await;
        let done = answer.is_some();
        if let Some(answer) = answer {
            verify(&answer.unwrap(), &sent);
        }
        let other = entries(&["other"]);
        let answer = running.log.append(other.clone(), PUBLISHED).await.unwrap();
        verify(&answer, &other);
        // Before the first poll nothing was asked for.
        assert_eq!(answer.first_index.get(), if polls == 0 { 0 } else { 600 }, "{polls} polls");
        if polls > 0 {
            let proven = running.log.prove(LeafIndex::new(599).unwrap()).await.unwrap();
            proven.proof.verify(&leaf_hash(b"599"), &proven.checkpoint.head().root).unwrap();
        }
        running.stop().await.unwrap();
        if done {
            // The ticket is answered on this thread later, and the proofs give way to others twice.
            assert!(polls > 2, "the await points of ticket and proofs were tried");
            break;
        }
    }
}

#[tokio::test]
async fn draining_answers_what_was_taken_refuses_the_rest_and_ends_though_callers_stay() {
    let mut running = create(&MemoryDir::new(), Options::default());
    let log = running.log.clone();
    let sent = entries(&["taken"]);
    // In this order, before the driver sees any of them.
    let (taken, (), late) = tokio::join!(
        log.append(sent.clone(), PUBLISHED),
        log.drain(),
        log.append(entries(&["late"]), PUBLISHED)
    );
    verify(&taken.unwrap(), &sent);
    assert_eq!(log.status(NOW).ready, Err(NotReady::Draining));
    assert_eq!(late, Err(AppendError::Refused(Refused::Draining)));
    ended(running.driver).await.unwrap();
    // The last head is offered before the channel closes.
    assert_eq!(running.offered.borrow_and_update().size, size(1));
    assert!(running.offered.changed().await.is_err());
    let later = log.append(entries(&["later"]), Wait::Durable).await;
    assert_eq!(later, Err(AppendError::Refused(Refused::Draining)));
    assert!(log.prove(LeafIndex::new(0).unwrap()).await.is_ok(), "reads go on");
    log.drain().await;
}

#[tokio::test]
async fn a_restart_continues_the_same_tree() {
    let dir = MemoryDir::new();
    let mut all: Vec<String> = Vec::new();
    let mut before = TreeHead::EMPTY;
    for round in 0..5 {
        let running =
            if round == 0 { create(&dir, Options::default()) } else { open(&dir, Options::default()) };
        // Nothing is offered before the tree has caught up; then what was there before is.
        let first = *running.offered.clone().wait_for(|head| head.size >= before.size).await.unwrap();
        assert_eq!(first, before, "round {round}");
        for n in 0..20 {
            let text = format!("{round}/{n}").repeat(200);
            assert_eq!(running.durable(&[&text]).await, all.len() as u64);
            all.push(text);
        }
        let mut offered = running.offered.clone();
        running.stop().await.unwrap();
        before = *offered.borrow_and_update();
    }
    let mut frontier = epigraph_core::Frontier::new();
    all.iter().for_each(|text| frontier.push(leaf_hash(text.as_bytes())).unwrap());
    assert_eq!(before, frontier.head());
}

#[tokio::test]
async fn reads_beyond_what_is_published_are_refused_by_name() {
    let running = create(&MemoryDir::new(), Options { publishes: false, ..Options::default() });
    let log = &running.log;
    let index = |index| LeafIndex::new(index).unwrap();
    assert_eq!(log.prove(index(0)).await, Err(ReadError::NothingPublished));
    assert_eq!(
        log.prove_consistency(Reach::Published, size(1), size(1)).await,
        Err(ReadError::NothingPublished)
    );
    let mut offered = running.offered.clone();
    running.durable(&["a", "b", "c"]).await;
    let published = *offered.wait_for(|head| head.size == size(3)).await.unwrap();
    running.publish.send_replace(Some(std::sync::Arc::new(signed(published))));
    running.durable(&["d", "e"]).await;

    let proven = log.prove(index(2)).await.unwrap();
    proven.proof.verify(&leaf_hash(b"c"), &published.root).unwrap();
    let not_yet = |what: &str| ReadError::NotYetPublished { what: what.into(), published: size(3) };
    let beyond = |what: &str| ReadError::BeyondTree { what: what.into(), durable: size(5) };
    for (at, want) in [(3, not_yet("entry 3")), (4, not_yet("entry 4")), (5, beyond("entry 5"))] {
        assert_eq!(log.prove(index(at)).await, Err(want));
    }
    let far = LeafIndex::new(epigraph_core::TreeSize::MAX.get() - 1).unwrap();
    assert_eq!(log.prove(far).await, Err(beyond(&format!("entry {far}"))));

    let bad = |old, new| ReadError::BadSizes { old: size(old), new: size(new) };
    for (old, new, want) in [
        (0, 3, bad(0, 3)),
        (0, 0, bad(0, 0)),
        (3, 2, bad(3, 2)),
        (9, 2, bad(9, 2)),
        (1, 4, not_yet("size 4")),
        (5, 5, not_yet("size 5")),
        (1, 6, beyond("size 6")),
    ] {
        assert_eq!(
            log.prove_consistency(Reach::Published, size(old), size(new)).await,
            Err(want),
            "{old} to {new}"
        );
    }
    assert_eq!(log.prove_consistency(Reach::Published, size(3), size(3)).await.unwrap().hashes, []);
    let one = leaf_hash(b"a");
    log.prove_consistency(Reach::Published, size(1), size(3))
        .await
        .unwrap()
        .verify(&one, &published.root)
        .unwrap();
}
