//! Signed heads that an audit should pass through on its way, and the proofs that it makes by itself where it does not.
//!
//! A log with two histories refuses to prove that its heads are of one. But whoever reads all entries of the one history knows
//! its whole tree: if they lead to one signed root and past another, the consistency proof between the two sizes can be made
//! from what was read, and is evidence. Of the tree only the hashes of that proof are kept.

use std::collections::BTreeMap;

use epigraph_core::proof::{Nodes, prove_consistency};
use epigraph_core::{Frontier, Hash, TreeHead, TreeSize};

/// Heads that one audit looks at, and so proofs that it makes at once: some kilobytes each. More than one says the same about
/// the log.
pub const MAX_MILESTONES: usize = 64;

/// The root that a signed tree has at a smaller size, and the proof of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Beginning {
    /// The root.
    pub root: Hash,
    /// The consistency proof from that size, with the root of the old subtree first in every case, as evidence carries it.
    pub carried: Vec<Hash>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Milestones {
    /// In ascending order of their sizes; several of one size are possible, with several roots.
    heads: Vec<TreeHead>,
    /// How many of them lie behind.
    passed: usize,
    /// Whether proofs are made for those that were passed through as well.
    prove_all: bool,
    /// Of those behind, those that take a proof.
    proofs: Vec<Proof>,
    /// The same as it was where the tree was last proven.
    settled: Vec<Proof>,
}

/// A head, and the hashes for the proof from its size as far as they are known.
#[derive(Clone, Debug)]
struct Proof {
    head: TreeHead,
    /// The root that the entries have there.
    root: Hash,
    /// By height and position; `None` until it is complete.
    nodes: BTreeMap<(u32, u64), Option<Hash>>,
}

impl Milestones {
    pub(super) fn new(
        heads: impl IntoIterator<Item = TreeHead>,
        read: TreeSize,
        prove_all: bool,
    ) -> Milestones {
        let mut heads: Vec<TreeHead> = heads.into_iter().filter(|head| head.size > read).collect();
        heads.sort_by_key(|head| (head.size, head.root));
        heads.dedup();
        heads.truncate(MAX_MILESTONES);
        Milestones { heads, prove_all, ..Milestones::default() }
    }

    pub(super) fn is_due(&self, size: TreeSize) -> bool {
        self.heads.get(self.passed).is_some_and(|head| head.size <= size)
    }

    /// Compares the heads of this size with the tree.
    pub(super) fn pass(&mut self, tree: &Frontier, target: TreeSize) {
        while let Some(head) = self.heads.get(self.passed).filter(|head| head.size <= tree.size()) {
            self.passed += 1;
            let other = self.prove_all || head.root != tree.root();
            if head.size == tree.size() && head.size < target && other {
                self.proofs.push(Proof::new(*head, tree, target));
            }
        }
    }

    /// A perfect subtree is complete.
    pub(super) fn completed(&mut self, height: u32, position: u64, hash: Hash) {
        for proof in &mut self.proofs {
            if let Some(node) = proof.nodes.get_mut(&(height, position)) {
                *node = Some(hash);
            }
        }
    }

    pub(super) fn settle(&mut self) {
        self.settled.clone_from(&self.proofs);
    }

    /// Goes back to where the tree was last proven.
    pub(super) fn rewind(&mut self, proven: TreeSize) {
        self.proofs.clone_from(&self.settled);
        self.passed = self.heads.partition_point(|head| head.size <= proven);
    }

    pub(super) fn beginnings(&self, target: TreeSize) -> Vec<(TreeHead, Beginning)> {
        self.proofs.iter().filter_map(|proof| Some((proof.head, proof.beginning(target)?))).collect()
    }
}

impl Proof {
    fn new(head: TreeHead, tree: &Frontier, target: TreeSize) -> Proof {
        let asked = Asked::default();
        // Nothing is proven here: it is only written down which hashes the proof takes.
        let _ = prove_consistency(&asked, head.size, target);
        let mut nodes: BTreeMap<_, _> = asked.0.into_inner().into_iter().map(|node| (node, None)).collect();
        let mut start = 0;
        for hash in tree.hashes() {
            let height = (head.size.get() - start).ilog2();
            nodes.insert((height, start >> height), Some(*hash));
            start += 1 << height;
        }
        Proof { head, root: tree.root(), nodes }
    }

    fn beginning(&self, target: TreeSize) -> Option<Beginning> {
        let proof = prove_consistency(&Known(&self.nodes), self.head.size, target).ok()?.ok()?;
        Some(Beginning { root: self.root, carried: proof.carrying(&self.root) })
    }
}

/// Writes down which nodes a proof takes.
#[derive(Default)]
struct Asked(std::cell::RefCell<Vec<(u32, u64)>>);

impl Nodes for Asked {
    type Error = std::convert::Infallible;

    fn node(&self, height: u32, index: u64) -> Result<Hash, Self::Error> {
        self.0.borrow_mut().push((height, index));
        Ok(Hash::EMPTY_ROOT)
    }
}

struct Known<'a>(&'a BTreeMap<(u32, u64), Option<Hash>>);

impl Nodes for Known<'_> {
    type Error = ();

    fn node(&self, height: u32, index: u64) -> Result<Hash, ()> {
        self.0.get(&(height, index)).copied().flatten().ok_or(())
    }
}
