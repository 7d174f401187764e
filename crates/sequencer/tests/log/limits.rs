//! What is refused before it costs anything, and that what was taken is given back.

use std::time::Duration;

use bytes::Bytes;
use epigraph_core::bundle::MAX_ENTRY_BYTES;
use epigraph_rpc::limits::{MAX_APPEND_BYTES, MAX_APPEND_ENTRIES};
use epigraph_sequencer::log::{AppendError, MAX_WAITING_ENTRIES, Wait};
use epigraph_sequencer::machine::{Limits, Refused};
use epigraph_store::file::memory::MemoryDir;
use epigraph_store::journal::Config;

use crate::support::*;

/// One of the largest calls.
fn largest() -> Vec<Bytes> {
    let entry = Bytes::from(vec![7; MAX_ENTRY_BYTES]);
    vec![entry; MAX_APPEND_BYTES / MAX_ENTRY_BYTES]
}

#[tokio::test]
async fn a_call_beyond_its_limits_is_refused_by_name_and_appends_nothing() {
    let options = Options { config: Config::QUICKSTART, ..Options::default() };
    let running = create(&MemoryDir::new(), options);
    let big = Bytes::from(vec![0; MAX_ENTRY_BYTES + 1]);
    let too_many = MAX_APPEND_ENTRIES + 1;
    let mut too_large = largest();
    too_large.push(Bytes::from(vec![0; 100]));
    let bytes = too_large.iter().map(Bytes::len).sum();
    for (sent, want) in [
        (vec![], AppendError::NoEntries),
        (vec![Bytes::new(); too_many], AppendError::TooManyEntries(too_many)),
        (vec![Bytes::new(), big], AppendError::EntryTooLarge { position: 1, bytes: MAX_ENTRY_BYTES + 1 }),
        (too_large, AppendError::CallTooLarge(bytes)),
    ] {
        assert_eq!(running.log.append(sent, PUBLISHED).await, Err(want));
    }
    let sent = largest();
    let answer = running.log.append(sent.clone(), PUBLISHED).await.unwrap();
    assert_eq!(answer.first_index.get(), 0);
    verify(&answer, &sent);
    running.stop().await.unwrap();
}

#[tokio::test]
async fn what_waits_for_publication_is_bounded_and_given_back_when_callers_hang_up() {
    let options = Options { config: Config::QUICKSTART, publishes: false, ..Options::default() };
    let running = create(&MemoryDir::new(), options);
    let call = || vec![Bytes::new(); MAX_APPEND_ENTRIES];
    let mut offered = running.offered.clone();
    let mut waiting = Vec::new();
    for calls in 1..=MAX_WAITING_ENTRIES / MAX_APPEND_ENTRIES {
        let (log, call) = (running.log.clone(), call());
        waiting.push(tokio::spawn(async move { log.append(call, PUBLISHED).await }));
        let taken = size((calls * MAX_APPEND_ENTRIES) as u64);
        offered.wait_for(|head| head.size == taken).await.unwrap();
    }
    let one_more = running.log.append(entries(&["a"]), Wait::Published(Duration::ZERO)).await;
    assert_eq!(one_more, Err(AppendError::TooManyWaiters));
    assert!(running.log.append(entries(&["a"]), Wait::Durable).await.is_ok());

    let gone = waiting.pop().unwrap();
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    let log = running.log.clone();
    let next = tokio::spawn(async move { log.append(call(), PUBLISHED).await });
    let all = size((MAX_WAITING_ENTRIES + 1 + MAX_APPEND_ENTRIES) as u64);
    let head = *offered.wait_for(|head| head.size == all).await.unwrap();
    running.publish.send_replace(Some(std::sync::Arc::new(signed(head))));
    for answered in waiting.into_iter().chain([next]) {
        verify(&answered.await.unwrap().unwrap(), &vec![Bytes::new(); MAX_APPEND_ENTRIES]);
    }
}

#[tokio::test]
async fn a_caller_that_hangs_up_does_not_free_memory_that_its_entries_still_take() {
    let options = Options { config: Config::QUICKSTART, ..Options::default() };
    let running = create(&MemoryDir::new(), options);
    // The driver has no turn while these are asked and dropped.
    let mut taken = 0;
    while poll_times(running.log.append(largest(), Wait::Durable), 1).await.is_none() {
        taken += 1;
        assert!(taken <= 16, "callers that hang up fill the memory");
    }
    assert_eq!(taken, 15);
    let refused = running.log.append(largest(), Wait::Durable).await;
    assert_eq!(refused, Err(AppendError::Refused(Refused::Overloaded)));
    // Now it has: those that fit in a batch are on the disk, the others were refused, and there is room again.
    let mut offered = running.offered.clone();
    offered.wait_for(|head| head.size > size(0)).await.unwrap();
    running.log.append(largest(), Wait::Durable).await.unwrap();
}

#[tokio::test]
async fn it_stops_taking_when_publication_falls_behind_and_goes_on_when_it_catches_up() {
    let limits = Limits { unpublished_max_entries: 3, ..LIMITS };
    let running = create(&MemoryDir::new(), Options { limits, publishes: false, ..Options::default() });
    running.durable(&["a", "b", "c"]).await;
    let refused = running.log.append(entries(&["d"]), Wait::Durable).await;
    assert_eq!(refused, Err(AppendError::Refused(Refused::Backlog(3))));
    let mut offered = running.offered.clone();
    let head = *offered.wait_for(|head| head.size == size(3)).await.unwrap();
    running.publish.send_replace(Some(std::sync::Arc::new(signed(head))));
    assert_eq!(running.durable(&["d"]).await, 3);
}
