//! Inclusion and consistency proofs (RFC 9162 section 2.1): made from stored nodes, verified from hashes alone.

mod run;

use thiserror::Error;

use crate::hash::{Hash, node_hash};
use crate::position::{LeafIndex, TreeSize};

pub use run::verify_run;

/// The most hashes in a proof: the height of the largest tree.
pub const MAX_PROOF_HASHES: usize = 63;

/// Where stored hashes come from: the roots of the *perfect* subtrees of a tree.
pub trait Nodes {
    /// Why a hash could not be had.
    type Error;

    /// The root of the perfect subtree of `2^height` leaves that starts at leaf `index * 2^height`.
    fn node(&self, height: u32, index: u64) -> Result<Hash, Self::Error>;
}

/// Proof that a leaf is in a tree, at one index.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InclusionProof {
    /// The leaf's index.
    pub index: LeafIndex,
    /// The tree's size.
    pub size: TreeSize,
    /// Sibling hashes, from the leaf to the root.
    pub hashes: Vec<Hash>,
}

/// Proof that a tree is the beginning of a larger one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConsistencyProof {
    /// The size of the smaller tree.
    pub old: TreeSize,
    /// The size of the larger tree, or the same size.
    pub new: TreeSize,
    /// The hashes of RFC 9162 section 2.1.4.
    pub hashes: Vec<Hash>,
}

/// Why a proof was not accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum ProofError {
    /// The leaf cannot be in the tree.
    #[error("leaf {index} is not in a tree of {size} leaves")]
    IndexBeyondTree {
        /// The leaf's index.
        index: LeafIndex,
        /// The tree's size.
        size: TreeSize,
    },
    /// A tree does not shrink.
    #[error("a tree of {old} leaves is not the beginning of one of {new}: it is larger")]
    OldBeyondNew {
        /// The old size.
        old: TreeSize,
        /// The new size.
        new: TreeSize,
    },
    /// Too few or too many hashes for index and size.
    #[error("the proof has the wrong number of hashes")]
    WrongLength,
    /// The hashes lead to another root.
    #[error("the hashes lead to another root than the signed one")]
    RootMismatch,
}

/// The root of the tree of the first `size` leaves.
pub fn root_at<N: Nodes>(nodes: &N, size: TreeSize) -> Result<Hash, N::Error> {
    range_root(nodes, 0, size.get())
}

/// Makes the proof that leaf `index` is in the tree of the first `size` leaves.
pub fn prove_inclusion<N: Nodes>(
    nodes: &N,
    index: LeafIndex,
    size: TreeSize,
) -> Result<Result<InclusionProof, ProofError>, N::Error> {
    if !size.contains(index) {
        return Ok(Err(ProofError::IndexBeyondTree { index, size }));
    }
    // RFC 9162 section 2.1.3.1, PATH, as a walk from the root; the siblings come out last to first.
    let (mut start, mut end) = (0, size.get());
    let mut hashes = Vec::new();
    while end - start > 1 {
        let middle = start + split(end - start);
        if index.get() < middle {
            hashes.push(range_root(nodes, middle, end)?);
            end = middle;
        } else {
            hashes.push(range_root(nodes, start, middle)?);
            start = middle;
        }
    }
    hashes.reverse();
    Ok(Ok(InclusionProof { index, size, hashes }))
}

/// Makes the proof that the tree of `old` leaves is the beginning of the tree of `new` leaves. From size 0 and
/// between equal sizes there is nothing to show: the proof is empty.
pub fn prove_consistency<N: Nodes>(
    nodes: &N,
    old: TreeSize,
    new: TreeSize,
) -> Result<Result<ConsistencyProof, ProofError>, N::Error> {
    if old > new {
        return Ok(Err(ProofError::OldBeyondNew { old, new }));
    }
    let mut hashes = Vec::new();
    if old != TreeSize::ZERO {
        // RFC 9162 section 2.1.4.1, SUBPROOF, as a walk along the right edge of the old tree.
        let (mut start, mut end) = (0, new.get());
        while old.get() != end {
            let middle = start + split(end - start);
            if old.get() <= middle {
                hashes.push(range_root(nodes, middle, end)?);
                end = middle;
            } else {
                hashes.push(range_root(nodes, start, middle)?);
                start = middle;
            }
        }
        if start != 0 {
            hashes.push(range_root(nodes, start, end)?);
        }
        hashes.reverse();
    }
    Ok(Ok(ConsistencyProof { old, new, hashes }))
}

/// The largest power of two smaller than `leaves`, which is at least 2.
fn split(leaves: u64) -> u64 {
    1 << (leaves - 1).ilog2()
}

/// The root over leaves `start..end`, where `start` is a multiple of the smallest power of two that is not
/// smaller than the length; so the range falls into perfect subtrees, the largest first.
fn range_root<N: Nodes>(nodes: &N, start: u64, end: u64) -> Result<Hash, N::Error> {
    let mut subtrees = Vec::new();
    let mut at = start;
    while at < end {
        let height = (end - at).ilog2();
        subtrees.push(nodes.node(height, at >> height)?);
        at += 1 << height;
    }
    let root = subtrees.into_iter().rev().reduce(|right, left| node_hash(&left, &right));
    Ok(root.unwrap_or(Hash::EMPTY_ROOT))
}

impl InclusionProof {
    /// Checks that the leaf with this hash is at the proof's index in the tree with this root
    /// (RFC 9162 section 2.1.3.2).
    pub fn verify(&self, leaf: &Hash, root: &Hash) -> Result<(), ProofError> {
        if self.root(leaf)? == *root { Ok(()) } else { Err(ProofError::RootMismatch) }
    }

    /// The root that the proof leads to from this leaf hash.
    pub fn root(&self, leaf: &Hash) -> Result<Hash, ProofError> {
        let (index, size) = (self.index, self.size);
        if !size.contains(index) {
            return Err(ProofError::IndexBeyondTree { index, size });
        }
        let (mut node, mut last) = (index.get(), size.get() - 1);
        let mut hash = *leaf;
        for sibling in &self.hashes {
            if last == 0 {
                return Err(ProofError::WrongLength);
            }
            if node & 1 == 1 || node == last {
                hash = node_hash(sibling, &hash);
                // A node at the right edge without a sibling moves up unchanged until it is a right child.
                while node & 1 == 0 && node != 0 {
                    node >>= 1;
                    last >>= 1;
                }
            } else {
                hash = node_hash(&hash, sibling);
            }
            node >>= 1;
            last >>= 1;
        }
        if last == 0 { Ok(hash) } else { Err(ProofError::WrongLength) }
    }
}

impl ConsistencyProof {
    /// Checks that the tree with `old_root` is the beginning of the tree with `new_root`
    /// (RFC 9162 section 2.1.4.2). The empty tree is the beginning of every tree.
    pub fn verify(&self, old_root: &Hash, new_root: &Hash) -> Result<(), ProofError> {
        let (old, new) = self.roots(old_root, new_root)?;
        if old == *old_root && new == *new_root { Ok(()) } else { Err(ProofError::RootMismatch) }
    }

    /// The hashes with the root of the old subtree carried first in every case, as evidence needs them. The RFC leaves
    /// it out where the old size is a power of two; there it is `old_root`, the root of the old tree as the *new* tree
    /// has it.
    pub fn carrying(&self, old_root: &Hash) -> Vec<Hash> {
        let left_out = self.old.get().is_power_of_two().then_some(*old_root);
        left_out.into_iter().chain(self.hashes.iter().copied()).collect()
    }

    /// The old and the new root that the proof leads to.
    ///
    /// The arguments stand in where the RFC leaves a hash out: the root of an old tree that is a perfect
    /// subtree, and the roots of equal or empty trees, which take no hashes.
    pub fn roots(&self, old_root: &Hash, new_root: &Hash) -> Result<(Hash, Hash), ProofError> {
        let (old, new) = (self.old.get(), self.new.get());
        if old > new {
            return Err(ProofError::OldBeyondNew { old: self.old, new: self.new });
        }
        if old == 0 || old == new {
            let same = if old == new { *old_root } else { *new_root };
            let empty = if old == 0 { Hash::EMPTY_ROOT } else { *old_root };
            return if self.hashes.is_empty() { Ok((empty, same)) } else { Err(ProofError::WrongLength) };
        }
        let mut hashes = self.hashes.iter();
        let first =
            if old.is_power_of_two() { old_root } else { hashes.next().ok_or(ProofError::WrongLength)? };
        // Skip the levels at which the old tree's right edge is a right child: they are inside `first`.
        let skip = (old - 1).trailing_ones();
        let (mut node, mut last) = ((old - 1) >> skip, (new - 1) >> skip);
        let (mut old_hash, mut new_hash) = (*first, *first);
        for hash in hashes {
            if last == 0 {
                return Err(ProofError::WrongLength);
            }
            if node & 1 == 1 || node == last {
                old_hash = node_hash(hash, &old_hash);
                new_hash = node_hash(hash, &new_hash);
                while node & 1 == 0 && node != 0 {
                    node >>= 1;
                    last >>= 1;
                }
            } else {
                new_hash = node_hash(&new_hash, hash);
            }
            node >>= 1;
            last >>= 1;
        }
        if last == 0 { Ok((old_hash, new_hash)) } else { Err(ProofError::WrongLength) }
    }
}
