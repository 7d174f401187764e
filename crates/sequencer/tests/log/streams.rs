//! Streams: each entry once and in order, after the checkpoint that covers it, for readers of any speed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use epigraph_core::LeafIndex;
use epigraph_core::bundle::MAX_ENTRY_BYTES;
use epigraph_rpc::SpiffeId;
use epigraph_rpc::limits::MAX_APPEND_ENTRIES;
use epigraph_sequencer::log::{
    FOLLOW_BYTES, Follow, Followed, MAX_STREAMS, MAX_STREAMS_PER_IDENTITY, ReadError, Wait,
};
use epigraph_store::file::Dir;
use epigraph_store::file::memory::MemoryDir;
use epigraph_store::journal::Config;
use tokio::time::Instant;

use crate::support::*;

fn reader(name: &str) -> SpiffeId {
    format!("spiffe://td/epigraph/reader/{name}").parse().unwrap()
}

/// A follower that may stay.
fn follow(running: &Running, first: u64) -> Follow {
    running.log.follow(LeafIndex::new(first).unwrap(), reader("a"), Instant::now() + LONG).unwrap()
}

/// Reads up to an index, and checks on the way that nothing comes before its checkpoint, twice, or out of order.
async fn read_to(follow: &mut Follow, first: u64, end: u64) -> Vec<Bytes> {
    let (mut read, mut covered) = (Vec::new(), 0);
    while first + (read.len() as u64) < end {
        match follow.next().await.unwrap().unwrap() {
            Followed::Checkpoint(checkpoint) => {
                let size = checkpoint.head().size.get();
                assert!(size > covered, "{size} after {covered}");
                assert!(covered == 0 || first + read.len() as u64 == covered, "all that {covered} covers");
                covered = size;
            }
            Followed::Entries { first_index, entries } => {
                assert_eq!(first_index.get(), first + read.len() as u64);
                let bytes = entries.iter().map(<[u8]>::len).sum::<usize>();
                assert!(bytes <= FOLLOW_BYTES && !entries.is_empty());
                read.extend(entries.into_bytes());
                assert!(first + read.len() as u64 <= covered, "more than the checkpoint of {covered}");
            }
            Followed::End(next) => panic!("it ended at {next}"),
        }
    }
    read
}

fn numbered(range: std::ops::Range<u64>) -> Vec<Bytes> {
    range.map(|n| format!("entry {n}").into()).collect()
}

/// The entries of the largest call, in as many as it takes. Fails if an event's end is taken for the next one's start.
#[tokio::test]
async fn a_hundred_thousand_entries_come_once_each_and_in_order() {
    const ENTRIES: u64 = 100_000;
    let options = Options { config: Config::QUICKSTART, ..Options::default() };
    let running = create(&MemoryDir::new(), options);
    let mut early = follow(&running, 0);
    let log = running.log.clone();
    let appending = tokio::spawn(async move {
        for batch in numbered(0..ENTRIES).chunks(MAX_APPEND_ENTRIES) {
            log.append(batch.to_vec(), Wait::Durable).await.unwrap();
        }
    });
    assert_eq!(read_to(&mut early, 0, ENTRIES).await, numbered(0..ENTRIES));
    appending.await.unwrap();
    let mut late = follow(&running, ENTRIES - 7);
    assert_eq!(read_to(&mut late, ENTRIES - 7, ENTRIES).await, numbered(ENTRIES - 7..ENTRIES));
}

#[tokio::test]
async fn a_follower_waits_for_entries_that_are_not_there_yet() {
    let running = create(&MemoryDir::new(), Options::default());
    running.log.append(numbered(0..2), PUBLISHED).await.unwrap();
    let mut far = follow(&running, 5);
    assert!(poll_times(far.next(), 1).await.is_none());
    running.log.append(numbered(2..5), PUBLISHED).await.unwrap();
    // A checkpoint that covers nothing of what was asked for says nothing to it.
    assert!(poll_times(far.next(), 1).await.is_none());
    running.log.append(numbered(5..8), PUBLISHED).await.unwrap();
    assert_eq!(read_to(&mut far, 5, 8).await, numbered(5..8));
    assert!(poll_times(far.next(), 1).await.is_none());
}

#[tokio::test]
async fn an_event_has_bounded_bytes_however_large_the_entries() {
    let options = Options { config: Config::QUICKSTART, ..Options::default() };
    let running = create(&MemoryDir::new(), options);
    let sent = vec![Bytes::from(vec![7; MAX_ENTRY_BYTES]); 21];
    running.log.append(sent.clone(), PUBLISHED).await.unwrap();
    assert_eq!(read_to(&mut follow(&running, 0), 0, 21).await, sent);
}

/// Fails if the end of a stream is looked at after its next event.
#[tokio::test]
async fn draining_ends_every_stream_at_once_with_its_place() {
    let running = create(&MemoryDir::new(), Options::default());
    running.log.append(numbered(0..100), PUBLISHED).await.unwrap();
    let (mut idle, mut behind, mut fresh) =
        (follow(&running, 0), follow(&running, 40), follow(&running, 200));
    let mut watch = running.log.watch(None, reader("a"), Instant::now() + LONG).unwrap();
    read_to(&mut idle, 0, 100).await;
    assert!(matches!(behind.next().await, Some(Ok(Followed::Checkpoint(_)))));
    assert_eq!(watch.next().await.unwrap().head().size, size(100));
    running.log.drain().await;
    ended(running.driver).await.unwrap();
    for (follow, place) in [(&mut idle, 100), (&mut behind, 40), (&mut fresh, 200)] {
        assert_eq!(follow.next().await, Some(Ok(Followed::End(LeafIndex::new(place).unwrap()))));
        assert_eq!(follow.next().await, None);
    }
    assert_eq!(watch.next().await, None);
}

#[tokio::test]
async fn a_stream_ends_with_its_place_when_its_connection_is_to_leave() {
    let running = create(&MemoryDir::new(), Options::default());
    running.log.append(numbered(0..3), PUBLISHED).await.unwrap();
    let leave_by = Instant::now() + Duration::from_secs(900);
    let mut follow = running.log.follow(LeafIndex::new(0).unwrap(), reader("a"), leave_by).unwrap();
    let mut watch = running.log.watch(Some(size(3)), reader("a"), leave_by).unwrap();
    read_to(&mut follow, 0, 3).await;
    // From here on nothing but time passes.
    tokio::time::pause();
    assert_eq!(follow.next().await, Some(Ok(Followed::End(LeafIndex::new(3).unwrap()))));
    assert_eq!(watch.next().await, None);
    assert!(Instant::now() >= leave_by && Instant::now() < leave_by + Duration::from_secs(1));
}

/// F4, B5. Fails if what was read before the damage is thrown away with it, or if the damaged entry is passed over.
#[tokio::test]
async fn a_damaged_entry_ends_the_stream_after_everything_good_before_it() {
    let dir = MemoryDir::new();
    let running = create(&dir, Options::default());
    for text in ["first", "second", "poison", "last"] {
        running.log.append(entries(&[text]), PUBLISHED).await.unwrap();
    }
    for name in dir.list().unwrap() {
        let content = dir.content(&name).unwrap();
        if let Some(at) = content.windows(6).position(|bytes| bytes == b"poison") {
            dir.damage(&name, at, b"P").unwrap();
        }
    }
    let mut follower = follow(&running, 0);
    assert_eq!(read_to(&mut follower, 0, 2).await, entries(&["first", "second"]));
    let damaged = follower.next().await;
    assert!(matches!(damaged, Some(Err(ReadError::Damaged(_)))), "{damaged:?}");
    assert_eq!(follower.next().await, None);
    // Asked for the damaged entry itself, nothing comes but the checkpoint and the error; what lies behind it is there.
    let mut at = follow(&running, 2);
    assert!(matches!(at.next().await, Some(Ok(Followed::Checkpoint(_)))));
    let damaged = at.next().await;
    assert!(matches!(damaged, Some(Err(ReadError::Damaged(_)))), "{damaged:?}");
    assert_eq!(read_to(&mut follow(&running, 3), 3, 4).await, entries(&["last"]));
}

/// Fails if a stream takes its turn to read before it is asked, or keeps it after.
#[tokio::test]
async fn readers_that_do_not_read_hold_up_nobody() {
    let options = Options { config: Config::QUICKSTART, ..Options::default() };
    let running = create(&MemoryDir::new(), options);
    running.log.append(numbered(0..4_096), PUBLISHED).await.unwrap();
    let mut slow: Vec<_> = (0..MAX_STREAMS_PER_IDENTITY - 4).map(|_| follow(&running, 0)).collect();
    for follow in &mut slow {
        assert!(matches!(follow.next().await, Some(Ok(Followed::Checkpoint(_)))));
        // Half of them go away while they are being read for.
        let _ = poll_times(follow.next(), 1).await;
    }
    slow.truncate(MAX_STREAMS_PER_IDENTITY / 2);
    for _ in 0..4 {
        assert_eq!(read_to(&mut follow(&running, 0), 0, 4_096).await, numbered(0..4_096));
    }
    for follow in &mut slow {
        let next = follow.next().await;
        assert!(matches!(next, Some(Ok(Followed::Entries { first_index, .. })) if first_index.get() == 0));
    }
}

/// N6. Fails if streams are not counted, or not given back.
#[tokio::test]
async fn streams_are_limited_in_all_and_for_each_identity_and_given_back() {
    let running = create(&MemoryDir::new(), Options::default());
    let first = LeafIndex::new(0).unwrap();
    let open = |name: &str| running.log.follow(first, reader(name), Instant::now() + LONG);
    let mut held: Vec<_> = (0..MAX_STREAMS_PER_IDENTITY).map(|_| open("a").unwrap()).collect();
    let told = open("a").err().unwrap().to_string();
    assert!(told.contains(&MAX_STREAMS_PER_IDENTITY.to_string()), "{told}");
    assert!(running.log.watch(None, reader("a"), Instant::now() + LONG).is_err());
    held.extend((MAX_STREAMS_PER_IDENTITY..MAX_STREAMS).map(|n| open(&format!("b{}", n / 8)).unwrap()));
    assert!(open("c").is_err());
    held.pop();
    assert!(open("c").is_ok());
    drop(held);
    assert!(open("a").is_ok());
}

/// Fails if every checkpoint is kept for a watcher.
#[tokio::test]
async fn a_watcher_gets_the_newest_at_once_and_misses_what_it_was_too_slow_for() {
    let running = create(&MemoryDir::new(), Options { publishes: false, ..Options::default() });
    let mut watch = running.log.watch(None, reader("a"), Instant::now() + LONG).unwrap();
    let mut after = running.log.watch(Some(size(2)), reader("a"), Instant::now() + LONG).unwrap();
    assert!(poll_times(watch.next(), 1).await.is_none());
    for n in 1..=4 {
        running.durable(&["x"]).await;
        let head = *running.offered.clone().wait_for(|head| head.size == size(n)).await.unwrap();
        running.publish.send_replace(Some(Arc::new(signed(head))));
        if n <= 2 {
            assert!(poll_times(after.next(), 1).await.is_none(), "{n}");
        }
    }
    for watch in [&mut watch, &mut after] {
        assert_eq!(watch.next().await.unwrap().head().size, size(4));
        assert!(poll_times(watch.next(), 1).await.is_none());
    }
}

/// A witness that dials in is shown a head once, and once more when the log wants it cosigned once more; whoever watches what is
/// published is not. Fails if a head is told from the one before by its size.
#[tokio::test]
async fn a_head_that_is_to_be_cosigned_again_is_shown_again() {
    let running = create(&MemoryDir::new(), Options { publishes: false, ..Options::default() });
    let mut pending = running.log.watch_pending(reader("w"), Instant::now() + LONG).unwrap();
    let mut published = running.log.watch(None, reader("a"), Instant::now() + LONG).unwrap();
    running.durable(&["x"]).await;
    let head = *running.offered.clone().wait_for(|head| head.size == size(1)).await.unwrap();
    for round in 0..2 {
        running.sign.send_replace(Some(Arc::new(log_signed(head))));
        running.publish.send_replace(Some(Arc::new(signed(head))));
        let shown = poll_times(pending.next(), 1).await.flatten();
        assert_eq!(shown.map(|shown| shown.head()), Some(head), "{round}");
        assert!(poll_times(pending.next(), 1).await.is_none());
        assert_eq!(poll_times(published.next(), 1).await.is_some(), round == 0);
    }
}
