//! Positions in a log as types: an index is not a size, and neither is a bare number.

use std::fmt;

/// How many leaves a tree has. At most 2^63 - 1, so that it survives every signed 64-bit reader.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct TreeSize(u64);

/// The position of a leaf, counted from 0. Always smaller than some [`TreeSize`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct LeafIndex(u64);

impl TreeSize {
    /// The size of the empty tree.
    pub const ZERO: TreeSize = TreeSize(0);
    /// The largest size that any part of Epigraph accepts: 2^63 - 1.
    pub const MAX: TreeSize = TreeSize((1 << 63) - 1);

    /// `None` above [`TreeSize::MAX`].
    pub const fn new(leaves: u64) -> Option<TreeSize> {
        if leaves <= TreeSize::MAX.0 { Some(TreeSize(leaves)) } else { None }
    }

    /// The number of leaves.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The size after `leaves` more; `None` beyond [`TreeSize::MAX`].
    pub const fn checked_add(self, leaves: u64) -> Option<TreeSize> {
        match self.0.checked_add(leaves) {
            Some(sum) => TreeSize::new(sum),
            None => None,
        }
    }

    /// The index that the next leaf gets; `None` if the log is full.
    pub const fn next_index(self) -> Option<LeafIndex> {
        LeafIndex::new(self.0)
    }

    /// The index of the newest leaf; `None` in an empty tree.
    pub const fn last_index(self) -> Option<LeafIndex> {
        match self.0.checked_sub(1) {
            Some(index) => Some(LeafIndex(index)),
            None => None,
        }
    }

    /// Whether a leaf with this index is in a tree of this size.
    pub const fn contains(self, index: LeafIndex) -> bool {
        index.0 < self.0
    }
}

impl LeafIndex {
    /// `None` where no tree size could contain the index.
    pub const fn new(index: u64) -> Option<LeafIndex> {
        if index < TreeSize::MAX.0 { Some(LeafIndex(index)) } else { None }
    }

    /// The number, counted from 0.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The smallest tree that contains this leaf: one larger than the index.
    pub const fn size_after(self) -> TreeSize {
        TreeSize(self.0 + 1)
    }

    /// The index `count` further on; `None` beyond the largest index.
    pub const fn checked_add(self, count: u64) -> Option<LeafIndex> {
        match self.0.checked_add(count) {
            Some(sum) => LeafIndex::new(sum),
            None => None,
        }
    }
}

impl fmt::Display for TreeSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for LeafIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_of_the_range() {
        let max = TreeSize::MAX;
        assert_eq!(TreeSize::new(1 << 63), None);
        assert_eq!(max.checked_add(1), None);
        assert_eq!(max.checked_add(u64::MAX), None);
        assert_eq!(max.next_index(), None);
        assert_eq!(max.last_index().map(LeafIndex::size_after), Some(max));
        assert_eq!(TreeSize::ZERO.last_index(), None);
        assert_eq!(LeafIndex::new(max.get()), None);
        assert_eq!(LeafIndex::new(u64::MAX), None);
        assert!(!TreeSize::ZERO.contains(LeafIndex(0)));
    }
}
