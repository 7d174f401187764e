//! A Merkle tree all in memory: the root of every perfect subtree, 64 bytes an entry. Simple enough to judge the
//! stored tree by.
//!
//! Any number of threads read while one appends. The hashing is done outside the lock, and a batch becomes
//! visible at once, or, if its root is not the expected one, never.

use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use epigraph_core::proof::Nodes;
use epigraph_core::tree::LogFull;
use epigraph_core::{Frontier, Hash, TreeHead, TreeSize};
use thiserror::Error;

/// The tree.
#[derive(Debug, Default)]
pub struct MemoryTree {
    state: RwLock<State>,
}

/// Each list only grows, and what is in it never changes; so what a reader finds at one size is right for
/// every proof up to that size, whatever was appended since.
#[derive(Debug, Default)]
struct State {
    frontier: Frontier,
    /// By height, then by position among the perfect subtrees of that height.
    levels: Vec<Vec<Hash>>,
}

/// A batch that was hashed but not appended.
#[derive(Debug)]
pub struct Staged {
    base: TreeSize,
    frontier: Frontier,
    /// Height and root of each subtree that the batch completes, in the order of completion.
    completed: Vec<(u32, Hash)>,
}

/// The batch was hashed for a tree of another size: somebody else appended in between.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error(
    "the batch was hashed for a tree of {staged} leaves, but the tree has {actual}; a tree has one writer"
)]
pub struct NotNext {
    /// The size that the batch follows.
    pub staged: TreeSize,
    /// The size the tree has.
    pub actual: TreeSize,
}

/// The tree has no such perfect subtree, or not yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("the tree has no complete subtree of height {height} at position {index}; it ends at {size} leaves")]
pub struct NoSuchNode {
    /// The height, 0 for a leaf.
    pub height: u32,
    /// The position among the subtrees of that height.
    pub index: u64,
    /// The size the tree has.
    pub size: TreeSize,
}

impl MemoryTree {
    /// The empty tree.
    pub fn new() -> MemoryTree {
        MemoryTree::default()
    }

    /// Hashes a batch of leaf hashes onto the tree as it is, without changing it.
    pub fn stage(&self, leaves: impl IntoIterator<Item = Hash>) -> Result<Staged, LogFull> {
        let mut frontier = self.frontier();
        let base = frontier.size();
        let mut completed = Vec::new();
        for leaf in leaves {
            frontier.push_with(leaf, |height, _, hash| completed.push((height, hash)))?;
        }
        Ok(Staged { base, frontier, completed })
    }

    /// Appends a staged batch under one short lock.
    pub fn apply(&self, staged: Staged) -> Result<TreeHead, NotNext> {
        let head = staged.head();
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let actual = state.frontier.size();
        if actual != staged.base {
            return Err(NotNext { staged: staged.base, actual });
        }
        let levels = staged.frontier.size().get().checked_ilog2().map_or(0, |top| top as usize + 1);
        state.levels.resize_with(levels, Vec::new);
        for (height, hash) in staged.completed {
            // Heights below the top one alone are completed, so the list is there.
            if let Some(level) = state.levels.get_mut(height as usize) {
                level.push(hash);
            }
        }
        state.frontier = staged.frontier;
        Ok(head)
    }

    /// The root of the perfect subtree of `2^height` leaves that starts at leaf `index * 2^height`.
    pub fn node(&self, height: u32, index: u64) -> Option<Hash> {
        let index = usize::try_from(index).ok()?;
        self.read().levels.get(height as usize)?.get(index).copied()
    }

    /// Size and root.
    pub fn head(&self) -> TreeHead {
        self.read().frontier.head()
    }

    /// The right edge.
    pub fn frontier(&self) -> Frontier {
        self.read().frontier.clone()
    }

    /// A writer that panicked under the lock would have left subtrees without their leaf count, which nobody
    /// asks for; so a poisoned lock can be read.
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Staged {
    /// The head that the tree has once this is applied.
    pub fn head(&self) -> TreeHead {
        self.frontier.head()
    }
}

impl Nodes for MemoryTree {
    type Error = NoSuchNode;

    fn node(&self, height: u32, index: u64) -> Result<Hash, NoSuchNode> {
        MemoryTree::node(self, height, index).ok_or_else(|| NoSuchNode {
            height,
            index,
            size: self.head().size,
        })
    }
}

#[cfg(test)]
mod tests {
    use epigraph_core::LeafIndex;
    use epigraph_core::hash::{leaf_hash, node_hash};
    use epigraph_core::proof::{prove_consistency, prove_inclusion};

    use super::*;

    fn leaf(index: u64) -> Hash {
        leaf_hash(&index.to_be_bytes())
    }

    /// RFC 6962 section 2.1, word for word.
    fn root(leaves: std::ops::Range<u64>) -> Hash {
        match leaves.end - leaves.start {
            0 => Hash::EMPTY_ROOT,
            1 => leaf(leaves.start),
            count => {
                let middle = leaves.start + (1 << (count - 1).ilog2());
                node_hash(&root(leaves.start..middle), &root(middle..leaves.end))
            }
        }
    }

    #[test]
    fn heads_and_nodes_are_those_of_the_rfc_however_the_leaves_are_batched() {
        for batch in [1, 3, 7, 64, 130] {
            let tree = MemoryTree::new();
            assert_eq!(tree.head(), TreeHead::EMPTY);
            for start in (0..130).step_by(batch) {
                let end = 130.min(start + batch as u64);
                let head = tree.apply(tree.stage((start..end).map(leaf)).unwrap()).unwrap();
                assert_eq!((head.size.get(), head.root), (end, root(0..end)));
                assert_eq!(head, tree.head());
            }
            for height in 0..9 {
                for index in 0..132 {
                    let leaves = index << height..(index + 1) << height;
                    let want = (leaves.end <= 130).then(|| root(leaves));
                    assert_eq!(
                        MemoryTree::node(&tree, height, index),
                        want,
                        "height {height}, index {index}"
                    );
                }
            }
        }
    }

    #[test]
    fn proofs_for_every_size_come_from_the_largest_tree() {
        let tree = MemoryTree::new();
        tree.apply(tree.stage((0..40).map(leaf)).unwrap()).unwrap();
        for size in 1..=40 {
            let at = TreeSize::new(size).unwrap();
            for old in 0..=size {
                let proof = prove_consistency(&tree, TreeSize::new(old).unwrap(), at).unwrap().unwrap();
                proof.verify(&root(0..old), &root(0..size)).unwrap();
            }
            for index in 0..size {
                let proof = prove_inclusion(&tree, LeafIndex::new(index).unwrap(), at).unwrap().unwrap();
                proof.verify(&leaf(index), &root(0..size)).unwrap();
            }
        }
        let beyond = prove_consistency(&tree, TreeSize::new(3).unwrap(), TreeSize::new(41).unwrap());
        assert_eq!(beyond.unwrap_err().size.get(), 40);
    }

    #[test]
    fn a_batch_that_does_not_follow_is_refused() {
        let tree = MemoryTree::new();
        let (first, second) = (tree.stage([leaf(0)]).unwrap(), tree.stage([leaf(1)]).unwrap());
        let head = tree.apply(first).unwrap();
        let error = tree.apply(second).unwrap_err();
        assert_eq!((error.staged.get(), error.actual.get()), (0, 1));
        assert_eq!(tree.head(), head);
    }

    #[test]
    fn readers_see_whole_batches_while_one_writer_appends() {
        let tree = MemoryTree::new();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                while tree.head().size.get() < 500 {
                    let frontier = tree.frontier();
                    assert_eq!(frontier.size().get() % 5, 0);
                    let Some(last) = frontier.size().last_index() else { continue };
                    assert_eq!(MemoryTree::node(&tree, 0, last.get()), Some(leaf(last.get())));
                }
            });
            for start in (0..500).step_by(5) {
                tree.apply(tree.stage((start..start + 5).map(leaf)).unwrap()).unwrap();
            }
            reader.join().unwrap();
        });
    }
}
