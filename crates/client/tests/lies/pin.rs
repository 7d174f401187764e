//! The pin on disk: what damages it, who shares it, and what a crash leaves of it.

use std::fs;
use std::path::Path;

use epigraph_client::ClientError;
use epigraph_client::pin::{Pin, PinError};
use epigraph_core::{Checkpoint, Policy, TreeHead};
use epigraph_rpc::Wait;
use tokio::task::JoinSet;

use crate::support::*;

/// A client with a pin; then something happens to the file. No call is answered, and nothing is put in its place.
async fn check(what: &str, policy: Option<&str>, damage: impl Fn(&Path), expected: fn(&PinError) -> bool) {
    let liar = Liar::start().await;
    let policy = policy.map_or_else(|| Policy::of_log(key().vkey().clone()), |text| text.parse().unwrap());
    let client = liar.client_trusting(policy);
    client.checkpoint().await.unwrap();
    liar.grow_to(8);
    let path = liar.pin_file();
    damage(&path);
    let left = fs::read(&path).ok();
    let errors = [
        client.checkpoint().await.map(drop).unwrap_err(),
        client.append(&[entry(8, 0)], Wait::Published).await.map(drop).unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(&error, ClientError::Pin(error) if expected(error)), "{what}: {error:?}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{what}: {error}");
    }
    assert!(fs::read(&path).ok() == left, "{what}: a damaged pin was replaced");
}

#[tokio::test]
async fn a_pin_that_cannot_be_read_or_does_not_verify_is_never_a_fresh_start() {
    let invalid: fn(&PinError) -> bool = |error| matches!(error, PinError::Invalid { .. });
    let rewrite = |change: fn(&mut Vec<u8>)| {
        move |path: &Path| {
            let mut bytes = fs::read(path).unwrap();
            change(&mut bytes);
            fs::write(path, bytes).unwrap();
        }
    };
    check("empty", None, rewrite(Vec::clear), invalid).await;
    check("cut short", None, rewrite(|bytes| bytes.truncate(bytes.len() / 2)), invalid).await;
    check("the last byte lost", None, rewrite(|bytes| bytes.truncate(bytes.len() - 1)), invalid).await;
    check("another size", None, rewrite(|bytes| bytes[12] = b'1'), invalid).await;
    check("far too long", None, rewrite(|bytes| bytes.resize(1 << 20, b'x')), invalid).await;
    let replace = |path: &Path, seed| {
        fs::write(path, note_of(&key_of("log.example", seed), &TreeHead::EMPTY)).unwrap();
    };
    check("signed by another key", None, move |path| replace(path, 8), invalid).await;
    let unreadable = |path: &Path| {
        fs::remove_file(path).unwrap();
        fs::create_dir(path).unwrap();
    };
    check("no file", None, unreadable, |error| matches!(error, PinError::Io { .. })).await;

    let other = key_of("other.example", 9);
    let other_note = note_of(&other, &TreeHead::EMPTY);
    let both = format!("log {}\nlog {}\nquorum none\n", key().vkey(), other.vkey());
    let swap = |path: &Path| fs::write(path, &other_note).unwrap();
    check("of another log", None, swap, invalid).await;
    let other_log: fn(&PinError) -> bool = |error| matches!(error, PinError::OtherLog { .. });
    check("of another log that is trusted too", Some(&both), swap, other_log).await;
}

#[tokio::test]
async fn a_state_directory_that_is_gone_is_no_fresh_start() {
    let liar = Liar::start().await;
    let client = liar.client();
    client.checkpoint().await.unwrap();
    fs::remove_dir_all(liar.state.path()).unwrap();
    let error = client.checkpoint().await.unwrap_err();
    assert!(matches!(error, ClientError::Pin(PinError::Io { .. })), "{error:?}");
}

#[tokio::test]
async fn a_crash_between_writing_and_renaming_leaves_the_old_pin() {
    for left in [note_of(&key(), &head(&tree(8, 8, 0), 8)), "half a no".to_owned(), String::new()] {
        let liar = Liar::start().await;
        liar.client().checkpoint().await.unwrap();
        let old = liar.pinned();
        fs::write(liar.pin_file().with_extension("new"), left).unwrap();
        let pin = Pin::new(liar.state.path(), &origin()).unwrap();
        let read = pin.lock().unwrap().read(liar.client().policy()).unwrap().unwrap();
        assert_eq!(read.note(), old);
        liar.grow_to(8);
        assert_eq!(liar.client().checkpoint().await.unwrap().head().size, size(8));
        assert_eq!(liar.pinned(), note_of(&key(), &head(&tree(8, 8, 0), 8)).into_bytes());
    }
}

#[tokio::test]
async fn clients_that_share_a_pin_never_move_it_back() {
    let liar = Liar::start().await;
    liar.client().checkpoint().await.unwrap();
    let mut clients = JoinSet::new();
    for caller in 0..4 {
        let client = liar.client();
        clients.spawn(async move {
            for round in 0..20 {
                if caller % 2 == 0 {
                    client.append(&[entry(round, caller)], Wait::Published).await.unwrap();
                } else {
                    client.checkpoint().await.unwrap();
                }
            }
        });
    }
    let policy = Policy::of_log(key().vkey().clone());
    let mut newest = size(5);
    while !clients.is_empty() {
        // Between any two steps of any client.
        let pinned = Checkpoint::open(&liar.pinned(), &policy).unwrap().head().size;
        assert!(pinned >= newest, "the pin went from {newest} back to {pinned}");
        newest = pinned;
        tokio::task::yield_now().await;
        while let Some(ended) = clients.try_join_next() {
            ended.unwrap();
        }
    }
    assert_eq!(Checkpoint::open(&liar.pinned(), &policy).unwrap().head().size, size(45));
}

#[tokio::test]
async fn an_answer_that_was_overtaken_by_a_newer_one_is_no_rollback() {
    let liar = Liar::start().await;
    let (slow, quick) = (liar.client(), liar.client());
    slow.checkpoint().await.unwrap();
    let release = liar.hold(Hold::Checkpoint);
    let overtaken = tokio::spawn(async move { slow.checkpoint().await });
    liar.holding().await;
    liar.grow_to(8);
    assert_eq!(quick.checkpoint().await.unwrap().head().size, size(8));
    let pinned = liar.pinned();
    release.notify_one();
    assert_eq!(overtaken.await.unwrap().unwrap().head().size, size(5));
    assert_eq!(liar.pinned(), pinned);
}

#[tokio::test]
async fn a_pin_that_somebody_moved_on_during_a_call_is_looked_at_again_and_not_moved_back() {
    let liar = Liar::start().await;
    let (slow, quick) = (liar.client(), liar.client());
    slow.checkpoint().await.unwrap();
    liar.grow_to(8);
    let release = liar.hold(Hold::Consistency);
    let overtaken = tokio::spawn(async move { slow.checkpoint().await });
    liar.holding().await;
    liar.grow_to(11);
    assert_eq!(quick.checkpoint().await.unwrap().head().size, size(11));
    let pinned = liar.pinned();
    release.notify_one();
    assert_eq!(overtaken.await.unwrap().unwrap().head().size, size(8));
    assert_eq!(liar.pinned(), pinned);
}
