//! A log that is followed and lies on the stream, breaks off, and is silent.

use std::sync::Arc;

use bytes::Bytes;
use epigraph_client::follow::Follower;
use epigraph_client::{Client, ClientError};
use epigraph_core::LeafIndex;
use epigraph_rpc::{CallError, Reason, Refusal};
use tonic::Status;

use crate::support::*;

async fn follow(client: &Client, first: u64) -> Follower<'_> {
    client.follow(LeafIndex::new(first).unwrap(), Arc::new(NotRandom)).await.unwrap()
}

/// Reads up to an index, or to the first error; what came before it, and the error.
async fn read(follower: &mut Follower<'_>, end: u64) -> (Vec<Bytes>, Option<ClientError>) {
    let mut read = Vec::new();
    while follower.cursor().get() < end {
        let expected = follower.cursor();
        match follower.next().await {
            Ok(batch) => {
                assert_eq!(batch.first_index, expected);
                let end = batch.first_index.get() + batch.entries.len() as u64;
                assert!(end <= batch.checkpoint.head().size.get());
                read.extend(batch.entries);
            }
            Err(error) => return (read, Some(error)),
        }
    }
    (read, None)
}

fn honest(range: std::ops::Range<u64>) -> Vec<Bytes> {
    range.map(|index| entry(index, 0)).collect()
}

#[tokio::test]
async fn a_log_is_followed_from_anywhere_as_it_grows_and_over_the_ends_of_streams() {
    for first in [0, 1, 3, 4] {
        let liar = Liar::start().await;
        let client = liar.client();
        let mut follower = follow(&client, first).await;
        let mut all = Vec::new();
        for leaves in [5, 6, 16, 17] {
            liar.grow_to(leaves);
            let (read, error) = read(&mut follower, leaves).await;
            assert!(error.is_none(), "{first} of {leaves}: {error:?}");
            all.extend(read);
        }
        assert_eq!(all, honest(first..17), "{first}");
        assert_eq!(liar.pinned(), note_of(&key(), &head(&tree(17, 17, 0), 17)).into_bytes());
    }
}

/// A stream that was cut, or refused for a while, is opened again at the cursor. Fails if the stream is opened where it began.
#[tokio::test]
async fn a_stream_that_breaks_is_taken_up_where_it_broke() {
    let breaks: [fn() -> Status; 3] = [
        || Status::unavailable("gone"),
        || Refusal::new(Reason::Draining, "later").into(),
        || Refusal::new(Reason::Overloaded, "later").into(),
    ];
    for status in breaks {
        let liar = Liar::start().await;
        liar.grow_to(13);
        let mut streams = 0;
        liar.twist(move |answer| {
            if let Answer::Follow(events) = answer {
                streams += 1;
                // The first breaks after its first entries, the second before any.
                match streams {
                    1 => events.truncate(2),
                    2 => events.truncate(1),
                    _ => return,
                }
                events.push(Err(status()));
            }
        });
        let client = liar.client();
        let (read, error) = read(&mut follow(&client, 2).await, 13).await;
        assert!(error.is_none(), "{error:?}");
        assert_eq!(read, honest(2..13));
    }
}

/// Another process goes on from a cursor that was stored. Fails if nothing is verified to the left of it.
#[tokio::test]
async fn a_stored_cursor_goes_on_in_another_process_and_is_verified_there() {
    let liar = Liar::start().await;
    liar.grow_to(13);
    let client = liar.client();
    let mut follower = follow(&client, 0).await;
    follower.next().await.unwrap();
    let cursor = follower.cursor().get();
    drop(follower);
    let other = liar.client();
    assert_eq!(read(&mut follow(&other, cursor).await, 13).await.0, honest(cursor..13));
}

type Lie = fn(&mut Events);

/// Tells a lie on the first stream, of entries from 2 on of a log of 17, and checks that nothing wrong came out.
async fn check(what: &str, lie: Lie, expected: fn(&ClientError) -> bool) {
    for before in [false, true] {
        let liar = Liar::start().await;
        let client = liar.client();
        let mut follower = follow(&client, 2).await;
        if before {
            // Something true came before, so that the tree is known.
            let (read, error) = read(&mut follower, 5).await;
            assert!(error.is_none() && read == honest(2..5), "{what}: {error:?}");
        }
        liar.grow_to(17);
        liar.twist(move |answer| {
            if let Answer::Follow(events) = answer {
                lie(events);
            }
        });
        if !before {
            follower = follow(&client, 2).await;
        }
        let from = follower.cursor().get();
        let (read, error) = read(&mut follower, 17).await;
        assert_eq!(read, honest(from..from + read.len() as u64), "{what}");
        let error = error.unwrap_or_else(|| panic!("{what}: it was believed"));
        assert!(expected(&error), "{what}: {error:?}");
        // What did come is what the cursor says.
        assert_eq!(follower.cursor().get(), from + read.len() as u64, "{what}");
    }
}

/// Changes the entries of an event.
fn edit(event: &mut Result<epigraph_rpc::v1::FollowEvent, Status>, edit: impl FnOnce(&mut Vec<Bytes>)) {
    match event.as_mut().unwrap().event.as_mut().unwrap() {
        epigraph_rpc::v1::follow_event::Event::Entries(event) => {
            let mut entries = std::mem::take(&mut event.entries).into_bytes();
            edit(&mut entries);
            event.entries = entries.iter().collect();
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn entries_that_are_not_the_logs_do_not_come_out() {
    let other: fn(&ClientError) -> bool =
        |error| matches!(error, ClientError::OtherEntries { .. } | ClientError::Receipt(_));
    check("the first changed", |events| edit(&mut events[1], |all| all[0] = entry(9, 1)), other).await;
    check("one changed", |events| edit(&mut events[1], |all| all[2] = entry(9, 1)), other).await;
    check("the last of the first changed", |events| edit(&mut events[1], |all| all[4] = entry(9, 1)), other)
        .await;
    check("one changed later", |events| edit(&mut events[2], |all| all[1] = entry(9, 1)), other).await;
    check(
        "the last of all changed",
        |events| edit(&mut events[3], |all| *all.last_mut().unwrap() = entry(9, 1)),
        other,
    )
    .await;
    check("one missing", |events| edit(&mut events[1], |all| drop(all.remove(1))), other).await;
    check("two swapped", |events| edit(&mut events[2], |all| all.swap(1, 2)), other).await;
    check("one twice", |events| edit(&mut events[1], |all| all[3] = all[2].clone()), other).await;
    let added: Lie = |events| {
        edit(&mut events[1], |all| {
            all.insert(1, Bytes::new());
            all.pop();
        });
    };
    check("one added, one dropped", added, other).await;
}

#[tokio::test]
async fn a_stream_that_skips_repeats_or_says_more_than_its_checkpoint_is_not_believed() {
    let garbled: fn(&ClientError) -> bool = |error| matches!(error, ClientError::Call(CallError::Garbled(_)));
    let wrong: fn(&ClientError) -> bool = |error| matches!(error, ClientError::WrongAnswer(_));
    check("an event skipped", |events| drop(events.remove(1)), garbled).await;
    check("events swapped", |events| events.swap(1, 2), garbled).await;
    check("an event twice", |events| events.insert(2, events[1].clone()), garbled).await;
    check("an event without entries", |events| edit(&mut events[1], Vec::clear), garbled).await;
    check("too long an entry", |events| edit(&mut events[1], |all| all[0] = vec![0; 65_536].into()), garbled)
        .await;
    check("ended too early", |events| events.insert(2, end_event(3)), garbled).await;
    check("ended too late", |events| events.insert(2, end_event(17)), garbled).await;
    check("ended nowhere", |events| events.insert(2, end_event(u64::MAX)), garbled).await;
    check("an empty checkpoint", |events| events[0] = checkpoint_event(""), garbled).await;
    let nothing: Lie = |events| events[1] = Ok(epigraph_rpc::v1::FollowEvent { event: None });
    check("no event", nothing, garbled).await;
    check("entries before their checkpoint", |events| drop(events.remove(0)), wrong).await;
    check("the checkpoint twice", |events| events.insert(2, events[0].clone()), wrong).await;
    let short: Lie = |events| events[0] = checkpoint_event(note_of(&key(), &head(&tree(17, 17, 0), 6)));
    check("more entries than the checkpoint covers", short, wrong).await;
}

#[tokio::test]
async fn a_checkpoint_that_does_not_extend_what_was_seen_ends_it() {
    let forked: Lie = |events| events[0] = checkpoint_event(note_of(&key(), &head(&tree(17, 1, 1), 17)));
    // Without a pin it may be believed; the entries are not those that it signed, then.
    let unfit: fn(&ClientError) -> bool =
        |error| matches!(error, ClientError::NotProven { .. } | ClientError::Receipt(_));
    check("another history", forked, unfit).await;
    let of_5: Lie = |events| events[0] = checkpoint_event(note_of(&key(), &head(&tree(17, 1, 1), 5)));
    let two: fn(&ClientError) -> bool = |error| {
        matches!(
            error,
            ClientError::TwoHistories { .. } | ClientError::OtherEntries { .. } | ClientError::Receipt(_)
        )
    };
    let liar = Liar::start().await;
    let client = liar.client();
    client.checkpoint().await.unwrap();
    liar.twist(move |answer| {
        if let Answer::Follow(events) = answer {
            of_5(events);
        }
    });
    let (read, error) = read(&mut follow(&client, 2).await, 5).await;
    assert!(read.is_empty() && error.as_ref().is_some_and(two), "{error:?}");
    let foreign: Lie = |events| {
        events[0] = checkpoint_event(note_of(&key_of("log.example", 8), &head(&tree(17, 17, 0), 17)));
    };
    check("another key", foreign, |error| matches!(error, ClientError::Checkpoint(_))).await;
}

#[tokio::test]
async fn a_log_that_goes_back_between_two_streams_is_told() {
    let liar = Liar::start().await;
    liar.grow_to(12);
    let client = liar.client();
    let mut follower = follow(&client, 3).await;
    // It breaks off after the first five entries, and comes back with an older checkpoint.
    let mut streams = 0;
    liar.twist(move |answer| {
        if let Answer::Follow(events) = answer {
            streams += 1;
            match streams {
                1 => events.truncate(2),
                _ => events[0] = checkpoint_event(note_of(&key(), &head(&tree(12, 12, 0), 10))),
            }
            events.push(Err(Status::unavailable("gone")));
        }
    });
    drop(follower);
    follower = follow(&client, 3).await;
    let (read, error) = read(&mut follower, 12).await;
    assert_eq!(read, honest(3..8));
    assert!(matches!(error, Some(ClientError::RolledBack { .. })), "{error:?}");
}

/// Idle is legal: the follower waits, and goes on when something comes.
#[tokio::test]
async fn silence_is_no_lie() {
    let liar = Liar::start().await;
    let client = liar.client();
    let mut follower = follow(&client, 5).await;
    let waited = tokio::time::timeout(std::time::Duration::from_millis(1), follower.next()).await;
    assert!(waited.is_err());
    assert_eq!(follower.cursor().get(), 5);
}

/// What the log says is wrong with its own disk is not asked for again and again.
#[tokio::test]
async fn damage_is_told_after_what_is_good() {
    let liar = Liar::start().await;
    liar.grow_to(12);
    liar.twist(|answer| {
        if let Answer::Follow(events) = answer {
            events.truncate(2);
            events.push(Err(Refusal::new(Reason::DataLoss, "the journal is damaged").into()));
        }
    });
    let client = liar.client();
    let (read, error) = read(&mut follow(&client, 2).await, 12).await;
    assert_eq!(read, honest(2..7));
    let refused = matches!(&error, Some(ClientError::Call(CallError::Refused(refusal))) if refusal.reason() == Reason::DataLoss);
    assert!(refused, "{error:?}");
}

#[tokio::test]
async fn watched_checkpoints_grow_and_are_of_one_history() {
    let liar = Liar::start().await;
    let client = liar.client();
    let mut watch = client.watch(Arc::new(NotRandom)).await.unwrap();
    for leaves in [5, 6, 9] {
        liar.grow_to(leaves);
        assert_eq!(watch.next().await.unwrap().head().size, size(leaves));
    }
    liar.grow_to(12);
    liar.serve_note(note_of(&key(), &head(&tree(12, 12, 0), 9)));
    let again = watch.next().await;
    assert!(matches!(again, Err(ClientError::WrongAnswer(_))), "{again:?}");
    liar.serve_note(note_of(&key(), &head(&tree(12, 12, 0), 8)));
    let back = watch.next().await;
    assert!(matches!(back, Err(ClientError::RolledBack { .. })), "{back:?}");
    liar.serve_note(note_of(&key(), &head(&tree(12, 3, 1), 12)));
    let forked = watch.next().await;
    assert!(matches!(forked, Err(ClientError::NotProven { .. })), "{forked:?}");
    liar.be_honest();
    assert_eq!(watch.next().await.unwrap().head().size, size(12));
}
