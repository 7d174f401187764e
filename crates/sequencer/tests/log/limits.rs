//! What is refused before it costs anything, and that what was taken is given back.

use std::time::Duration;

use bytes::Bytes;
use epigraph_core::bundle::MAX_ENTRY_BYTES;
use epigraph_core::hash::sha256;
use epigraph_rpc::limits::{MAX_APPEND_BYTES, MAX_APPEND_ENTRIES};
use epigraph_sequencer::log::{
    AppendError, Call, MAX_WAITING_ENTRIES, MAX_WAITING_ENTRIES_PER_IDENTITY, Wait,
};
use epigraph_sequencer::machine::{Limits, Refused};
use epigraph_store::file::memory::MemoryDir;
use epigraph_store::journal::Config;

use crate::support::*;

/// One of the largest calls.
fn largest() -> Vec<Bytes> {
    let entry = Bytes::from(vec![7; MAX_ENTRY_BYTES]);
    vec![entry; MAX_APPEND_BYTES / MAX_ENTRY_BYTES]
}

/// A call of somebody of this name.
fn call_of(name: &str, entries: Vec<Bytes>, wait: Wait) -> Call {
    Call { entries, wait, numbers: None, line: None, identity: sha256(name.as_bytes()) }
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
    let mut calls = 0;
    for (name, up_to) in [("first", MAX_WAITING_ENTRIES_PER_IDENTITY), ("second", MAX_WAITING_ENTRIES)] {
        while calls < up_to / MAX_APPEND_ENTRIES {
            calls += 1;
            let (log, call) = (running.log.clone(), call_of(name, call(), PUBLISHED));
            waiting.push(tokio::spawn(async move { log.call(call).await }));
            let taken = size((calls * MAX_APPEND_ENTRIES) as u64);
            offered.wait_for(|head| head.size == taken).await.unwrap();
        }
        // Nothing is left for this one; others have what the first may not take.
        let one_more = call_of(name, entries(&["a"]), Wait::Published(Duration::ZERO));
        assert_eq!(running.log.call(one_more).await, Err(AppendError::TooManyWaiters));
    }
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
    for (name, expected) in [("first", 11), ("second", 15)] {
        let call = || running.log.call(call_of(name, largest(), Wait::Durable));
        while poll_times(call(), 1).await.is_none() {
            taken += 1;
            assert!(taken <= 16, "callers that hang up fill the memory");
        }
        assert_eq!(taken, expected, "{name}");
        assert_eq!(call().await, Err(AppendError::Refused(Refused::Overloaded)));
    }
    // Now it has: those that fit in a batch are on the disk, the others were refused, and there is room again.
    let mut offered = running.offered.clone();
    offered.wait_for(|head| head.size > size(0)).await.unwrap();
    running.log.append(largest(), Wait::Durable).await.unwrap();
}

/// A11. Broken to see it fail: the whole batch for one caller, all bytes in flight for one caller.
#[tokio::test]
async fn a_caller_that_floods_the_log_does_not_push_out_a_modest_one() {
    let options = Options { config: Config::QUICKSTART, ..Options::default() };
    let running = create(&MemoryDir::new(), options);
    let entry = |bytes| Bytes::from(vec![7; bytes]);
    let flood = [largest(), vec![entry(65_535); 16], vec![entry(65_535)], vec![entry(1)]];
    let (mut taken, mut refused) = (0, 0);
    for _ in 0..20 {
        // Whatever is taken of each, from the largest to the smallest; nobody waits for the answers.
        for entries in &flood {
            loop {
                let call = running.log.call(call_of("flood", entries.clone(), Wait::Durable));
                match poll_times(call, 1).await {
                    None => taken += 1,
                    Some(answer) => {
                        assert_eq!(answer, Err(AppendError::Refused(Refused::Overloaded)));
                        refused += 1;
                        break;
                    }
                }
            }
        }
        let modest = call_of("modest", vec![entry(65_535); 16], PUBLISHED);
        let answer = running.log.call(modest.clone()).await.unwrap();
        verify(&answer, &modest.entries);
    }
    assert!(taken > 0 && refused > 0);
    running.stop().await.unwrap();
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
