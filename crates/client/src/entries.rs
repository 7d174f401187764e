//! Entries read back in order, each page verified before it is given out.
//!
//! A log serves entries without proofs. A page is verified by two receipts at most, whatever its length: that of the first
//! entry ever read gives the tree to the left of it, onto which every entry is hashed; that of a page's last entry has in
//! its path, to the left, the same roots of subtrees as the tree that was hashed, and they are compared. Every entry of the
//! page, and its position, is in one of these roots or is the last entry itself (RFC 6962 section 2.1.1).

use bytes::Bytes;
use epigraph_core::hash::leaf_hash;
use epigraph_core::{Checkpoint, Frontier, Hash, LeafIndex, TreeSize, Verified};
use epigraph_rpc::limits::MAX_READ_ENTRIES;

use crate::{Client, ClientError};

/// Consecutive entries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page {
    /// The index of the first one; the others follow.
    pub first_index: LeafIndex,
    /// Their bytes; at least one entry, and at most 4 MiB together.
    pub entries: Vec<Bytes>,
}

/// A range of entries, read page by page. After an error, start anew.
pub struct Entries<'a> {
    client: &'a Client,
    next: LeafIndex,
    end: TreeSize,
    /// The tree up to `next`; `None` before the first page.
    tree: Option<Frontier>,
}

impl Client {
    /// Reads the entries from `first` up to the tree size `end`; without it, up to the newest published checkpoint, and
    /// at least one entry, which the log then refuses if it is not there.
    pub async fn entries(&self, first: LeafIndex, end: Option<TreeSize>) -> Result<Entries<'_>, ClientError> {
        let end = match end {
            Some(end) => end,
            None => self.checkpoint().await?.head().size.max(first.size_after()),
        };
        Ok(Entries { client: self, next: first, end, tree: None })
    }

    /// The tree of the entries before this one, from the entry's verified receipt: under this checkpoint, or the newest.
    pub(crate) async fn left_of(
        &self,
        index: LeafIndex,
        leaf: &Hash,
        under: Option<&Verified<Checkpoint>>,
    ) -> Result<Frontier, ClientError> {
        let (receipt, size) = match under {
            Some(checkpoint) => (self.receipt_under(index, leaf, checkpoint).await?, checkpoint.head().size),
            None => self.proven(index, leaf).await?,
        };
        let index = index.get();
        // Below this height the path has a sibling at every step, on the side that the index says; from there on the
        // path is at the tree's right edge, and every sibling lies to the left.
        let edge = u64::BITS - (index ^ (size.get() - 1)).leading_zeros();
        let left = |height: u32| height >= edge || index >> height & 1 == 1;
        let mut hashes: Vec<Hash> =
            (0..).zip(receipt.hashes).filter(|(height, _)| left(*height)).map(|(_, hash)| hash).collect();
        hashes.reverse();
        let before = TreeSize::new(index).ok_or(IMPOSSIBLE)?;
        // A path that verified has one sibling to the left for each set bit of the index.
        Frontier::from_parts(before, hashes).map_err(|_| IMPOSSIBLE)
    }
}

impl Entries<'_> {
    /// The next entries, verified; `None` after the last one of the range.
    pub async fn next_page(&mut self) -> Result<Option<Page>, ClientError> {
        let first_index = self.next;
        let left = self.end.get().saturating_sub(first_index.get());
        if left == 0 {
            return Ok(None);
        }
        let most = u32::try_from(left).unwrap_or(u32::MAX).min(MAX_READ_ENTRIES);
        let entries = self.client.log.entries(self.client.origin.as_str(), first_index, most).await?;
        let Some((last, others)) = entries.split_last() else {
            return Err(ClientError::WrongAnswer("without entries"));
        };
        let mut tree = match self.tree.take() {
            Some(tree) => tree,
            None => {
                let leaf = leaf_hash(others.first().unwrap_or(last));
                self.client.left_of(first_index, &leaf, None).await?
            }
        };
        for entry in others {
            push(&mut tree, leaf_hash(entry))?;
        }
        let index = tree.size().next_index().ok_or(IMPOSSIBLE)?;
        let leaf = leaf_hash(last);
        if self.client.left_of(index, &leaf, None).await? != tree {
            return Err(ClientError::OtherEntries { first: first_index, last: index });
        }
        push(&mut tree, leaf)?;
        self.next = match tree.size().next_index() {
            Some(next) => next,
            None => return Err(IMPOSSIBLE),
        };
        self.tree = Some(tree);
        Ok(Some(Page { first_index, entries }))
    }
}

pub(crate) const IMPOSSIBLE: ClientError = ClientError::WrongAnswer("with an impossible index");

pub(crate) fn push(tree: &mut Frontier, leaf: Hash) -> Result<(), ClientError> {
    tree.push(leaf).map_err(|_| IMPOSSIBLE)
}
