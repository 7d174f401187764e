//! Entries read back from a log that serves others than it signed.

use bytes::Bytes;
use epigraph_client::{Client, ClientError};
use epigraph_core::LeafIndex;
use epigraph_rpc::{CallError, Reason, v1};

use crate::support::*;

/// Reads a range to its end, or to the first error: what came before it, and the error.
async fn read(client: &Client, first: u64, end: Option<u64>) -> (Vec<Bytes>, Option<ClientError>) {
    let mut read = Vec::new();
    let mut pages = client.entries(LeafIndex::new(first).unwrap(), end.map(size)).await.unwrap();
    loop {
        match pages.next_page().await {
            Ok(Some(page)) => {
                assert_eq!(page.first_index.get(), first + read.len() as u64);
                read.extend(page.entries);
            }
            Ok(None) => return (read, None),
            Err(error) => return (read, Some(error)),
        }
    }
}

fn beyond_tree(error: &Option<ClientError>) -> bool {
    matches!(error, Some(ClientError::Call(CallError::Refused(refusal))) if refusal.reason() == Reason::BeyondTree)
}

fn honest(first: u64, end: u64) -> Vec<Bytes> {
    (first..end).map(|index| entry(index, 0)).collect()
}

#[tokio::test]
async fn every_range_of_trees_of_every_shape_verifies() {
    let liar = Liar::start().await;
    let client = liar.client();
    for leaves in [5, 7, 8, 13, 16, 17] {
        liar.grow_to(leaves);
        for first in 0..leaves {
            let (read, error) = read(&client, first, None).await;
            assert!(error.is_none(), "{first} of {leaves}: {error:?}");
            assert_eq!(read, honest(first, leaves));
        }
    }
    for (first, end) in [(0, 1), (3, 3), (4, 12), (16, 17)] {
        assert_eq!(read(&client, first, Some(end)).await.0, honest(first, end));
    }
}

#[tokio::test]
async fn a_log_that_grows_while_it_is_read_is_no_lie() {
    let liar = Liar::start().await;
    let client = liar.client();
    liar.grow_to(12);
    let mut pages = client.entries(LeafIndex::new(1).unwrap(), None).await.unwrap();
    let mut read = Vec::new();
    for grown in 13.. {
        let Some(page) = pages.next_page().await.unwrap() else { break };
        read.extend(page.entries);
        liar.grow_to(grown);
    }
    assert_eq!(read, honest(1, 12));
}

#[tokio::test]
async fn entries_that_are_not_there_are_refused_and_not_made_up() {
    let liar = Liar::start().await;
    let (read, error) = read(&liar.client(), 0, Some(6)).await;
    assert_eq!(read, honest(0, 5));
    assert!(beyond_tree(&error), "{error:?}");
}

#[tokio::test]
async fn a_page_with_a_changed_missing_added_or_moved_entry_is_not_given_out() {
    type Lie = fn(&mut v1::GetEntriesResponse);
    let lies: [(&str, Lie); 8] = [
        ("the first changed", |page| page.entries[0] = entry(0, 1)),
        ("one changed", |page| page.entries[2] = entry(2, 1)),
        ("the last changed", |page| page.entries[4] = entry(2, 1)),
        ("one missing", |page| drop(page.entries.remove(1))),
        ("the first missing", |page| drop(page.entries.remove(0))),
        ("two swapped", |page| page.entries.swap(1, 2)),
        ("one twice", |page| page.entries[3] = page.entries[2].clone()),
        ("one added, the last dropped", |page| {
            page.entries.insert(1, Bytes::new());
            page.entries.pop();
        }),
    ];
    for (what, lie) in lies {
        // In the first page, and in the one after it.
        for (first, honest_pages) in [(0, 0), (3, 0), (0, 1), (3, 1)] {
            let liar = Liar::start().await;
            liar.grow_to(17);
            let mut pages = 0;
            liar.twist(move |answer| {
                if let Answer::Entries(page) = answer {
                    if pages == honest_pages {
                        lie(page);
                    }
                    pages += 1;
                }
            });
            let (read, error) = read(&liar.client(), first, None).await;
            assert_eq!(read, honest(first, first + honest_pages * u64::from(PAGE)), "{what}, {first}");
            let refused = matches!(error, Some(ClientError::OtherEntries { .. } | ClientError::Receipt(_)));
            assert!(refused, "{what}, {first}, {honest_pages}: {error:?}");
        }
    }
}

#[tokio::test]
async fn a_start_beyond_the_log_is_what_the_log_says_it_is() {
    let liar = Liar::start().await;
    let (read, error) = read(&liar.client(), 9, None).await;
    assert!(read.is_empty());
    assert!(beyond_tree(&error), "{error:?}");
}
