//! Entries read back: exactly what was appended, within the limits of one answer, and nothing that the disk changed.

use std::sync::{Arc, Mutex, mpsc};

use bytes::Bytes;
use epigraph_core::LeafIndex;
use epigraph_core::bundle::MAX_ENTRY_BYTES;
use epigraph_rpc::limits::MAX_READ_BYTES;
use epigraph_sequencer::log::{MAX_ENTRY_READS, Reach, ReadError, Wait};
use epigraph_store::file::Dir;
use epigraph_store::file::memory::MemoryDir;
use epigraph_store::journal::Config;

use crate::support::*;

fn at(index: u64) -> LeafIndex {
    LeafIndex::new(index).unwrap()
}

#[tokio::test]
async fn entries_come_back_byte_for_byte_across_segments_also_after_a_restart() {
    let dir = MemoryDir::new();
    let mut running = create(&dir, Options::default());
    let mut sent = vec![Bytes::new(), Bytes::from_static(b"\0\n\xff")];
    sent.extend((0..40u8).map(|n| Bytes::from(vec![n; 4_000])));
    for batch in sent.chunks(3) {
        running.log.append(batch.to_vec(), PUBLISHED).await.unwrap();
    }
    let segments = dir.list().unwrap().iter().filter(|name| name.ends_with(".seg")).count();
    assert!(segments > 2, "{segments}");
    for _ in 0..2 {
        for (first, max) in [(0, 1), (0, 4_096), (1, 2), (7, 20), (41, 1), (41, 9)] {
            let got = running.log.entries(Reach::Published, at(first), max).await.unwrap();
            let end = sent.len().min((first + u64::from(max)) as usize);
            assert_eq!(got, sent[first as usize..end], "{first}, {max}");
        }
        running.stop().await.unwrap();
        running = open(&dir, Options::default());
    }
}

#[tokio::test]
async fn an_answer_has_at_most_4_mib_of_entries() {
    let running = create(&MemoryDir::new(), Options { config: Config::QUICKSTART, ..Options::default() });
    let full = Bytes::from(vec![7; MAX_ENTRY_BYTES]);
    let fit = MAX_READ_BYTES / MAX_ENTRY_BYTES;
    // 64 bytes below the limit, to it, and one byte above.
    let rest = MAX_READ_BYTES % MAX_ENTRY_BYTES;
    for last in [vec![7; rest], vec![7; rest + 1]] {
        running.log.append(vec![full.clone(); fit], Wait::Durable).await.unwrap();
        running.log.append(vec![Bytes::from(last)], PUBLISHED).await.unwrap();
    }
    assert_eq!(running.log.entries(Reach::Published, at(0), 4_096).await.unwrap().len(), fit + 1);
    assert_eq!(running.log.entries(Reach::Published, at(fit as u64 + 1), 4_096).await.unwrap().len(), fit);
    running.stop().await.unwrap();
}

#[tokio::test]
async fn entries_are_read_up_to_the_published_size_and_no_further() {
    let running = create(&MemoryDir::new(), Options { publishes: false, ..Options::default() });
    assert_eq!(running.log.entries(Reach::Published, at(0), 1).await, Err(ReadError::NothingPublished));
    running.durable(&["a", "b"]).await;
    let head = *running.offered.clone().wait_for(|head| head.size == size(2)).await.unwrap();
    running.publish.send_replace(Some(Arc::new(signed(head))));
    running.durable(&["c"]).await;
    assert_eq!(running.log.entries(Reach::Published, at(1), 10).await.unwrap(), entries(&["b"]));
    let not_yet = running.log.entries(Reach::Published, at(2), 10).await;
    assert!(matches!(not_yet, Err(ReadError::NotYetPublished { .. })), "{not_yet:?}");
    for beyond in [3, (1 << 63) - 2] {
        let refused = running.log.entries(Reach::Published, at(beyond), 10).await;
        assert!(matches!(refused, Err(ReadError::BeyondTree { .. })), "{beyond}: {refused:?}");
    }
    running.stop().await.unwrap();
}

#[tokio::test]
async fn a_flipped_byte_is_data_loss_and_never_served() {
    let dir = MemoryDir::new();
    let running = create(&dir, Options::default());
    for text in ["first", "poison", "last"] {
        running.log.append(entries(&[text]), PUBLISHED).await.unwrap();
    }
    for name in dir.list().unwrap() {
        let content = dir.content(&name).unwrap();
        if let Some(at) = content.windows(6).position(|bytes| bytes == b"poison") {
            dir.damage(&name, at, b"P").unwrap();
        }
    }
    for (first, max) in [(0, 3), (1, 1)] {
        let refused = running.log.entries(Reach::Published, at(first), max).await;
        assert!(matches!(refused, Err(ReadError::Damaged(_))), "{first}, {max}: {refused:?}");
    }
    assert_eq!(running.log.entries(Reach::Published, at(0), 1).await.unwrap(), entries(&["first"]));
}

#[tokio::test]
async fn reads_at_one_time_are_bounded_and_a_caller_that_hangs_up_keeps_its_place_until_its_thread_is_done() {
    let dir = Tap::default();
    let running = create(&dir, Options::default());
    running.log.append(entries(&["a"]), PUBLISHED).await.unwrap();
    running.stop().await.unwrap();
    let running = open(&dir, Options::default());
    // Each read that opens the segment waits until the test lets it go on.
    let (release, held) = mpsc::channel::<()>();
    let held = Mutex::new(held);
    let (reached, reading) = mpsc::channel();
    dir.on(move |point| {
        if point == "open" {
            let _ = reached.send(());
            let _ = held.lock().unwrap().recv();
        }
    });
    for _ in 0..MAX_ENTRY_READS {
        assert!(poll_times(running.log.entries(Reach::Published, at(0), 1), 1).await.is_none());
    }
    // One thread is at its work, and nobody waits for it any more.
    reading.recv().unwrap();
    let one_more = poll_times(running.log.entries(Reach::Published, at(0), 1), 1).await;
    assert_eq!(one_more, Some(Err(ReadError::TooManyReads)));
    drop(release);
    while running.log.entries(Reach::Published, at(0), 1).await == Err(ReadError::TooManyReads) {
        tokio::task::yield_now().await;
    }
    assert_eq!(running.log.entries(Reach::Published, at(0), 1).await.unwrap(), entries(&["a"]));
}
