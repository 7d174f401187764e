//! The growing tree seen from its right edge: a [`Frontier`] appends leaves and knows the root, nothing more.

use thiserror::Error;

use crate::hash::{Hash, node_hash};
use crate::position::TreeSize;

/// A tree head as this process computed it: plain data, signed by nobody.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TreeHead {
    /// Number of leaves.
    pub size: TreeSize,
    /// Root hash over them (RFC 6962 section 2.1).
    pub root: Hash,
}

impl TreeHead {
    /// The head of the tree without leaves.
    pub const EMPTY: TreeHead = TreeHead { size: TreeSize::ZERO, root: Hash::EMPTY_ROOT };
}

/// The roots of the perfect subtrees that make up a tree, the largest (leftmost) first: one for each set bit of
/// the size. Enough to append leaves and to compute every later root.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Frontier {
    size: TreeSize,
    hashes: Vec<Hash>,
}

/// Why a frontier was not accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum FrontierError {
    /// The number of hashes is not the number of set bits of the size.
    #[error("a frontier of size {size} has {want} hashes, not {got}")]
    WrongCount {
        /// The tree's size.
        size: TreeSize,
        /// Hashes that the size calls for.
        want: u32,
        /// Hashes that were given.
        got: usize,
    },
}

/// The log cannot hold another entry: 2^63 - 1 are in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("the log is full: it holds {} entries", TreeSize::MAX)]
pub struct LogFull;

impl Frontier {
    /// The frontier of the empty tree.
    pub fn new() -> Frontier {
        Frontier::default()
    }

    /// Rebuilds a frontier from its stored parts. Only the shape is checked; compare [`Frontier::root`] with a
    /// root that is trusted.
    pub fn from_parts(size: TreeSize, hashes: Vec<Hash>) -> Result<Frontier, FrontierError> {
        let want = size.get().count_ones();
        if hashes.len() != want as usize {
            return Err(FrontierError::WrongCount { size, want, got: hashes.len() });
        }
        Ok(Frontier { size, hashes })
    }

    /// Number of leaves.
    pub fn size(&self) -> TreeSize {
        self.size
    }

    /// The subtree roots, the largest first; as many as the size has set bits.
    pub fn hashes(&self) -> &[Hash] {
        &self.hashes
    }

    /// Appends one leaf by its leaf hash.
    pub fn push(&mut self, leaf: Hash) -> Result<(), LogFull> {
        self.push_with(leaf, |_, _, _| ())
    }

    /// Appends one leaf and reports each perfect subtree that it completes, the leaf itself first: its height
    /// (0 for a leaf), its position among the subtrees of that height, and its root.
    pub fn push_with(
        &mut self,
        leaf: Hash,
        mut completed: impl FnMut(u32, u64, Hash),
    ) -> Result<(), LogFull> {
        let before = self.size.get();
        self.size = self.size.checked_add(1).ok_or(LogFull)?;
        let mut hash = leaf;
        completed(0, before, hash);
        // Adding a leaf is a binary increment: each trailing one carries into the subtree one height up.
        let kept = self.hashes.len().saturating_sub(before.trailing_ones() as usize);
        for (height, left) in (1..).zip(self.hashes.drain(kept..).rev()) {
            hash = node_hash(&left, &hash);
            completed(height, before >> height, hash);
        }
        self.hashes.push(hash);
        Ok(())
    }

    /// The root hash (RFC 6962 section 2.1).
    pub fn root(&self) -> Hash {
        let mut smaller_first = self.hashes.iter().rev();
        let Some(smallest) = smaller_first.next() else { return Hash::EMPTY_ROOT };
        smaller_first.fold(*smallest, |right, left| node_hash(left, &right))
    }

    /// Size and root.
    pub fn head(&self) -> TreeHead {
        TreeHead { size: self.size, root: self.root() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::leaf_hash;

    #[test]
    fn a_frontier_of_another_shape_is_refused() {
        let mut frontier = Frontier::new();
        for n in 0..13u8 {
            frontier.push(leaf_hash(&[n])).unwrap();
        }
        let parts = (frontier.size(), frontier.hashes().to_vec());
        assert_eq!(Frontier::from_parts(parts.0, parts.1.clone()), Ok(frontier));
        let error = Frontier::from_parts(parts.0, parts.1[1..].to_vec()).unwrap_err();
        assert_eq!(error.to_string(), "a frontier of size 13 has 3 hashes, not 2");
    }

    #[test]
    fn a_full_log_takes_no_leaf() {
        let hashes = vec![leaf_hash(b""); 63];
        let mut frontier = Frontier::from_parts(TreeSize::MAX, hashes).unwrap();
        assert_eq!(frontier.push(leaf_hash(b"")), Err(LogFull));
    }
}
