//! Proofs in named trees and tiles: compared with hashes that the definitions of RFC 6962 give, computed here.

use std::sync::Arc;

use epigraph_core::hash::{leaf_hash, node_hash};
use epigraph_core::{Hash, LeafIndex, TreeSize};
use epigraph_sequencer::log::{InTree, Reach, ReadError};
use epigraph_store::file::memory::MemoryDir;

use crate::support::*;

const ENTRIES: u64 = 600;

fn at(index: u64) -> LeafIndex {
    LeafIndex::new(index).unwrap()
}

fn leaves() -> Vec<Hash> {
    (0..ENTRIES).map(|n| leaf_hash(format!("{n}").as_bytes())).collect()
}

/// RFC 6962 section 2.1, word by word.
fn root(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => Hash::EMPTY_ROOT,
        [leaf] => *leaf,
        _ => {
            let (left, right) = leaves.split_at(1 << (leaves.len() - 1).ilog2());
            node_hash(&root(left), &root(right))
        }
    }
}

/// A log of 600 published entries.
async fn log_of_600() -> Running {
    let running = create(&MemoryDir::new(), Options::default());
    let sent: Vec<_> = (0..ENTRIES).map(|n| format!("{n}").into()).collect();
    running.log.append(sent, PUBLISHED).await.unwrap();
    running
}

/// Fails if the proof is made for the newest size whatever was asked.
#[tokio::test]
async fn an_entry_is_proven_in_every_published_tree_that_has_it_and_the_tree_to_any_before_it() {
    let running = log_of_600().await;
    let leaves = leaves();
    for in_size in [1, 2, 3, 255, 256, 257, 511, 512, 513, 599, 600] {
        let want = root(&leaves[..in_size as usize]);
        for index in [0, 1, 2, 254, 255, 256, 511, 512, 598, 599].into_iter().filter(|i| *i < in_size) {
            for from in [1, 2, 256, 300, 512, 600].into_iter().filter(|from| *from <= in_size) {
                let tree = InTree { size: Some(size(in_size)), consistent_from: Some(size(from)) };
                let proven = running.log.prove_in(at(index), tree).await.unwrap();
                proven.proof.verify(&leaves[index as usize], &want).unwrap();
                assert_eq!(proven.checkpoint.head().size, size(ENTRIES));
                let consistency = proven.consistency.unwrap();
                consistency.verify(&root(&leaves[..from as usize]), &want).unwrap();
            }
        }
    }
}

/// N6. Fails if a named size is not compared with the published one.
#[tokio::test]
async fn sizes_that_do_not_go_together_are_refused_by_name() {
    let running = log_of_600().await;
    let check = async |index: u64, in_size: Option<u64>, from: Option<u64>, want: ReadError| {
        let tree = InTree { size: in_size.map(size), consistent_from: from.map(size) };
        assert_eq!(running.log.prove_in(at(index), tree).await, Err(want), "{index} {in_size:?} {from:?}");
    };
    let beyond = |what: &str| ReadError::BeyondTree { what: what.into(), durable: size(600) };
    let max = TreeSize::MAX.get();
    check(0, Some(601), None, beyond("size 601")).await;
    check(0, Some(max), None, beyond(&format!("size {max}"))).await;
    check(600, None, None, beyond("entry 600")).await;
    check(5, Some(5), None, ReadError::NotInTree { index: at(5), size: size(5) }).await;
    check(5, Some(1), Some(1), ReadError::NotInTree { index: at(5), size: size(1) }).await;
    let bad = |old, new| ReadError::BadSizes { old: size(old), new: size(new) };
    check(5, Some(6), Some(7), bad(7, 6)).await;
    check(5, None, Some(601), bad(601, 600)).await;
    check(5, None, Some(max), bad(max, 600)).await;
}

/// Fails if the tile's height is taken for its level.
#[tokio::test]
async fn a_tile_has_the_hashes_of_its_level_up_to_the_width_asked_for() {
    let running = log_of_600().await;
    let leaves = leaves();
    let level_1: Vec<_> = leaves.chunks_exact(256).map(root).collect();
    for (level, index, width, want) in [
        (0, 0, 256, &leaves[..256]),
        (0, 0, 1, &leaves[..1]),
        (0, 1, 255, &leaves[256..511]),
        (0, 2, 88, &leaves[512..]),
        (0, 2, 5, &leaves[512..517]),
        (1, 0, 2, &level_1[..]),
        (1, 0, 1, &level_1[..1]),
    ] {
        assert_eq!(
            running.log.tile(Reach::Published, level, index, width).await.unwrap(),
            want,
            "{level} {index} {width}"
        );
    }
    for (level, index, width) in [
        (0, 2, 89),
        (0, 2, 256),
        (0, 3, 1),
        (1, 0, 3),
        (1, 1, 1),
        (2, 0, 1),
        (7, 0, 1),
        (7, 0, 256),
        (0, u64::MAX, 1),
        (0, u64::MAX >> 8, 256),
        (7, 1 << 55, 1),
        (7, u64::MAX, 256),
    ] {
        let refused = running.log.tile(Reach::Published, level, index, width).await;
        assert!(matches!(refused, Err(ReadError::BeyondTree { .. })), "{level} {index} {width}: {refused:?}");
    }
    for (level, width) in [(8, 1), (u32::MAX, 1), (0, 0), (0, 257), (0, u32::MAX)] {
        let refused = running.log.tile(Reach::Published, level, 0, width).await;
        assert_eq!(refused, Err(ReadError::NoSuchTile { level, width }));
    }
}

#[tokio::test]
async fn a_tile_that_is_durable_and_not_published_is_not_served() {
    let running = create(&MemoryDir::new(), Options { publishes: false, ..Options::default() });
    assert_eq!(running.log.tile(Reach::Published, 0, 0, 1).await, Err(ReadError::NothingPublished));
    running.durable(&["a", "b"]).await;
    let head = *running.offered.clone().wait_for(|head| head.size == size(2)).await.unwrap();
    running.publish.send_replace(Some(std::sync::Arc::new(signed(head))));
    running.durable(&["c"]).await;
    assert_eq!(
        running.log.tile(Reach::Published, 0, 0, 2).await.unwrap(),
        [leaf_hash(b"a"), leaf_hash(b"b")]
    );
    let not_yet = running.log.tile(Reach::Published, 0, 0, 3).await;
    assert!(matches!(not_yet, Err(ReadError::NotYetPublished { .. })), "{not_yet:?}");
}

/// What was signed can be linked before it is published, by those who may. Seen to fail with `end_of` looking at the published
/// checkpoint alone.
#[tokio::test]
async fn a_signed_head_can_be_linked_before_it_is_published() {
    let running = create(&MemoryDir::new(), Options { publishes: false, ..Options::default() });
    running.durable(&["a", "b", "c"]).await;
    let mut offered = running.offered.clone();
    let head = *offered.wait_for(|head| head.size == size(3)).await.unwrap();
    let reach =
        |end| (running.log.prove_consistency(end, size(2), size(3)), running.log.entries(end, at(2), 10));
    let (proof, entry) = reach(Reach::Signed);
    let nothing = ReadError::NothingPublished;
    assert_eq!((proof.await, entry.await), (Err(nothing.clone()), Err(nothing.clone())));
    running.sign.send_replace(Some(Arc::new(log_signed(head))));
    let (proof, entry) = reach(Reach::Signed);
    let old = node_hash(&leaf_hash(b"a"), &leaf_hash(b"b"));
    proof.await.unwrap().verify(&old, &head.root).unwrap();
    assert_eq!(entry.await.unwrap(), entries(&["c"]));
    assert_eq!(running.log.tile(Reach::Signed, 0, 0, 3).await.unwrap().len(), 3);
    let (proof, entry) = reach(Reach::Published);
    assert_eq!((proof.await, entry.await), (Err(nothing.clone()), Err(nothing)));
}
