//! One history of a log: its entries, the tree over them, and what of it was published. In memory and without any haste: a demo
//! has a few hundred entries. It does not know that there may be another history.

use bytes::Bytes;
use epigraph_core::hash::{leaf_hash, node_hash};
use epigraph_core::proof::{
    ConsistencyProof, InclusionProof, Nodes, prove_consistency, prove_inclusion, root_at,
};
use epigraph_core::tile::TILE_WIDTH;
use epigraph_core::{Hash, LeafIndex, TreeHead, TreeSize};

/// Entries that it takes: nobody needs more to see a lie, and proofs are made by hashing everything again.
pub const MAX_ENTRIES: usize = 4_096;

/// There is no such leaf.
#[derive(Debug)]
pub struct Missing;

/// A published head.
#[derive(Clone)]
pub struct Published {
    pub size: TreeSize,
    pub note: Bytes,
}

/// Entries in order, and the heads that were published of them, in the order of their sizes.
#[derive(Clone, Default)]
pub struct History {
    entries: Vec<Bytes>,
    leaves: Vec<Hash>,
    published: Vec<Published>,
}

impl Nodes for History {
    type Error = Missing;

    fn node(&self, height: u32, index: u64) -> Result<Hash, Missing> {
        if height == 0 {
            return usize::try_from(index).ok().and_then(|at| self.leaves.get(at)).copied().ok_or(Missing);
        }
        Ok(node_hash(&self.node(height - 1, 2 * index)?, &self.node(height - 1, 2 * index + 1)?))
    }
}

impl History {
    pub fn push(&mut self, entry: Bytes) {
        self.leaves.push(leaf_hash(&entry));
        self.entries.push(entry);
    }

    pub fn size(&self) -> u64 {
        self.entries.len() as u64
    }

    /// The head over everything, if it has not been published yet.
    pub fn unpublished(&self) -> Option<TreeHead> {
        let size = TreeSize::new(self.size())?;
        if self.newest().is_some_and(|newest| newest.size >= size) || size == TreeSize::ZERO {
            return None;
        }
        Some(TreeHead { size, root: root_at(self, size).ok()? })
    }

    pub fn publish(&mut self, size: TreeSize, note: Bytes) {
        self.published.push(Published { size, note });
    }

    pub fn newest(&self) -> Option<&Published> {
        self.published.last()
    }

    pub fn published(&self) -> &[Published] {
        &self.published
    }

    pub fn entry(&self, index: u64) -> Option<&Bytes> {
        self.entries.get(usize::try_from(index).ok()?)
    }

    pub fn find(&self, leaf: &Hash) -> Option<LeafIndex> {
        LeafIndex::new(self.leaves.iter().position(|held| held == leaf)? as u64)
    }

    pub fn inclusion(&self, index: LeafIndex, size: TreeSize) -> Option<InclusionProof> {
        prove_inclusion(self, index, size).ok()?.ok()
    }

    pub fn consistency(&self, old: TreeSize, new: TreeSize) -> Option<ConsistencyProof> {
        prove_consistency(self, old, new).ok()?.ok()
    }

    /// The hashes of a tile, if all of them are of complete subtrees.
    pub fn tile(&self, level: u32, index: u64, width: u32) -> Option<Vec<Hash>> {
        let (height, first) = (level.checked_mul(8)?, index.checked_mul(TILE_WIDTH.into())?);
        let last = first.checked_add(width.into())?.checked_shl(height)?;
        if height >= 64 || width > TILE_WIDTH.into() || last > self.size() {
            return None;
        }
        (first..first + u64::from(width)).map(|node| self.node(height, node).ok()).collect()
    }
}
