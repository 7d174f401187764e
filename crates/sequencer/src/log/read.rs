//! Reading: proofs, entries and checkpoints, up to what is published.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use epigraph_core::proof::{
    ConsistencyProof, InclusionProof, Nodes, ProofError, prove_consistency, prove_inclusion,
};
use epigraph_core::{Checkpoint, Hash, LeafIndex, TreeSize, Verified};
use epigraph_rpc::limits::{MAX_READ_BYTES, MAX_READ_ENTRIES};
use epigraph_store::lookup::LookupError;
use epigraph_store::tile::{LEVELS, TILE_HEIGHT, WIDTH};
use epigraph_store::tree::{EntryError, Reading, Tree, TreeError, WarmError};
use thiserror::Error;
use tokio::time::timeout;

use super::{FOLLOW_BYTES, Log, MAX_ENTRY_READS};

/// How long a read waits for the tree to reach the size it asks for.
const TREE_WAIT: Duration = Duration::from_secs(2);

/// Why a read was refused.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ReadError {
    /// The log has not published its first checkpoint.
    #[error("the log has not published a checkpoint yet; try again shortly")]
    NothingPublished,
    /// On disk, but no published checkpoint covers it yet.
    #[error(
        "{what} is on disk but not published yet: the newest checkpoint has {published} entries; try again shortly"
    )]
    NotYetPublished {
        /// The entry or size asked for.
        what: String,
        /// The published size.
        published: TreeSize,
    },
    /// Not in the log.
    #[error("{what} is beyond the log, which has {durable} entries")]
    BeyondTree {
        /// The entry or size asked for.
        what: String,
        /// The durable size.
        durable: TreeSize,
    },
    /// Sizes that no proof connects.
    #[error(
        "no consistency proof from size {old} to size {new}: sizes start at 1 and the old one is not the larger"
    )]
    BadSizes {
        /// The old size.
        old: TreeSize,
        /// The new size.
        new: TreeSize,
    },
    /// A tree that is named to prove an entry in and does not have it.
    #[error("entry {index} is not in the tree of size {size} that it is to be proven in: name a larger size")]
    NotInTree {
        /// The entry.
        index: LeafIndex,
        /// The size that was named.
        size: TreeSize,
    },
    /// Not found, which proves nothing.
    #[error(
        "no entry with this leaf hash is known{}; that proves nothing", if *behind { " yet: the lookup is behind the log, try again shortly" } else { "" }
    )]
    LeafNotFound {
        /// Whether the lookup is behind what is published.
        behind: bool,
    },
    /// No tile of any tree.
    #[error("no tree has a tile of level {level} with {width} hashes: levels are 0 to {}, widths 1 to {WIDTH}", LEVELS - 1)]
    NoSuchTile {
        /// The level asked for.
        level: u32,
        /// The width asked for.
        width: u32,
    },
    /// The tree is still being built that far, after a start.
    #[error(
        "the log is still building its tree from its journal, and has not reached size {0}; try again shortly"
    )]
    Building(TreeSize),
    /// [`MAX_ENTRY_READS`] are under way.
    #[error("{MAX_ENTRY_READS} reads of entries are under way, and no more at one time; try again shortly")]
    TooManyReads,
    /// A stored hash is missing: this log is damaged.
    #[error("the log cannot read its own tree: {0}")]
    Damaged(String),
}

/// How far somebody may read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach {
    /// What is published.
    Published,
    /// What was signed: for witnesses and monitors, who must be able to link every head that they hold to the next.
    Signed,
}

/// The tree in which an entry is to be proven.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct InTree {
    /// Its size; `None`: that of the newest published checkpoint.
    pub size: Option<TreeSize>,
    /// Prove as well that the tree of this size is its beginning.
    pub consistent_from: Option<TreeSize>,
}

/// A leaf's proof.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proven {
    /// The proof.
    pub proof: InclusionProof,
    /// The newest published checkpoint: the one that the proof leads to, unless another tree was named.
    pub checkpoint: Arc<Verified<Checkpoint>>,
    /// That the tree begins as the one of [`InTree::consistent_from`] does, if that was asked for.
    pub consistency: Option<ConsistencyProof>,
}

impl Log {
    /// The newest published checkpoint.
    pub fn checkpoint(&self) -> Result<Arc<Verified<Checkpoint>>, ReadError> {
        self.published.borrow().clone().ok_or(ReadError::NothingPublished)
    }

    /// Proves a leaf under the newest published checkpoint.
    pub async fn prove(&self, index: LeafIndex) -> Result<Proven, ReadError> {
        self.prove_in(index, InTree::default()).await
    }

    /// Proves a leaf in a published tree.
    pub async fn prove_in(&self, index: LeafIndex, tree: InTree) -> Result<Proven, ReadError> {
        let checkpoint = self.checkpoint()?;
        let published = checkpoint.head().size;
        self.check_within(published, index.size_after(), || format!("entry {index}"))?;
        let size = tree.size.unwrap_or(checkpoint.head().size);
        self.check_within(published, size, || format!("size {size}"))?;
        if !size.contains(index) {
            return Err(ReadError::NotInTree { index, size });
        }
        let consistency = match tree.consistent_from {
            Some(old) => Some(self.prove_consistency(Reach::Published, old, size).await?),
            None => None,
        };
        self.wait_built(size).await?;
        let proof = match prove_inclusion(&self.tree.warm(), index, size) {
            Err(WarmError::Cold(_)) => {
                self.off_thread(move |tree| prove_inclusion(tree, index, size)).await?
            }
            Err(WarmError::Tree(error)) => read(Err(error))?,
            Ok(proof) => read(Ok(proof))?,
        };
        Ok(Proven { proof, checkpoint, consistency })
    }

    /// The index of the first entry with this leaf hash, as the tree confirms it.
    pub async fn index_of(&self, leaf: Hash) -> Result<LeafIndex, ReadError> {
        let published = self.checkpoint()?.head().size;
        if self.lookup.get().is_none() {
            return Err(ReadError::LeafNotFound { behind: true });
        }
        let permit =
            Arc::clone(&self.entry_reads).try_acquire_owned().map_err(|_| ReadError::TooManyReads)?;
        let lookup = Arc::clone(&self.lookup);
        let find = move || {
            let _permit = permit;
            let Some(lookup) = lookup.get() else { return (Ok(None), TreeSize::ZERO) };
            // Before it is asked: what comes in meanwhile may be missed.
            let size = lookup.size();
            (lookup.find(&leaf), size)
        };
        let found = tokio::task::spawn_blocking(find).await;
        let (found, size) = found.map_err(|error| ReadError::Damaged(error.to_string()))?;
        match found {
            Ok(Some(index)) => Ok(index),
            Ok(None) => Err(ReadError::LeafNotFound { behind: size < published }),
            Err(LookupError::Tree(error)) => read(Err(error)),
            Err(error) => {
                // It is made again, and what it cannot say now proves nothing.
                tracing::warn!(%error, "a leaf hash could not be looked up");
                Err(ReadError::LeafNotFound { behind: true })
            }
        }
    }

    /// The size up to which `reach` goes.
    fn end_of(&self, reach: Reach) -> Result<TreeSize, ReadError> {
        let published = self.checkpoint().map(|checkpoint| checkpoint.head().size);
        let signed = self.signed.borrow().as_ref().map(|signed| signed.head().size);
        match (reach, signed) {
            (Reach::Signed, Some(signed)) => Ok(published.map_or(signed, |published| published.max(signed))),
            _ => published,
        }
    }

    /// The first `width` hashes of a tile of the published tree (C2SP `tlog-tiles`).
    pub async fn tile(
        &self,
        reach: Reach,
        level: u32,
        index: u64,
        width: u32,
    ) -> Result<Vec<Hash>, ReadError> {
        if level >= LEVELS || !(1..=WIDTH as u32).contains(&width) {
            return Err(ReadError::NoSuchTile { level, width });
        }
        let what = || format!("a tile of level {level} with index {index} and {width} hashes");
        let published = self.end_of(reach)?;
        let height = level * TILE_HEIGHT;
        let first = index.checked_mul(WIDTH as u64);
        let end = first.and_then(|first| first.checked_add(u64::from(width)));
        // A shift by so many bits loses what is too large for any tree.
        let leaves = end.filter(|end| *end <= TreeSize::MAX.get() >> height).map(|end| end << height);
        let (Some(first), Some(end), Some(size)) = (first, end, leaves.and_then(TreeSize::new)) else {
            let durable = self.durable.borrow().size;
            return Err(ReadError::BeyondTree { what: what(), durable });
        };
        self.check_within(published, size, what)?;
        self.wait_built(size).await?;
        match hashes(&self.tree.warm(), height, first..end) {
            Err(WarmError::Cold(_)) => {
                self.off_thread(move |tree| hashes(tree, height, first..end).map(Ok)).await
            }
            Err(WarmError::Tree(error)) => read(Err(error)),
            Ok(hashes) => Ok(hashes),
        }
    }

    /// The entries from `first` on that are published, at least one: at most `max`, which is at least 1, and together at
    /// most [`MAX_READ_BYTES`]. Each was compared with the tree.
    pub async fn entries(&self, reach: Reach, first: LeafIndex, max: u32) -> Result<Vec<Bytes>, ReadError> {
        let published = self.end_of(reach)?;
        self.check_within(published, first.size_after(), || format!("entry {first}"))?;
        let last = first.checked_add(u64::from(max).saturating_sub(1));
        let end = last.map_or(published, |last| last.size_after().min(published));
        self.wait_built(end).await?;
        let permit =
            Arc::clone(&self.entry_reads).try_acquire_owned().map_err(|_| ReadError::TooManyReads)?;
        let tree = Arc::clone(&self.tree);
        let read = tokio::task::spawn_blocking(move || {
            // Until the thread is done, whether or not the caller is still there.
            let _permit = permit;
            // All in one piece of memory, of which each entry is a part: a piece for each costs more than hashing it does.
            let (mut bytes, mut ends) = (Vec::with_capacity(FOLLOW_BYTES), vec![0]);
            read_entries(&mut tree.read(first, end), end, MAX_READ_BYTES, |entry| {
                bytes.extend_from_slice(entry);
                ends.push(bytes.len());
            })?;
            let bytes = Bytes::from(bytes);
            Ok(ends.windows(2).map(|place| bytes.slice(place[0]..place[1])).collect())
        });
        read.await.map_err(|error| ReadError::Damaged(error.to_string()))?
    }

    /// Proves that the tree of `old` entries is the beginning of that of `new` entries, both published.
    pub async fn prove_consistency(
        &self,
        reach: Reach,
        old: TreeSize,
        new: TreeSize,
    ) -> Result<ConsistencyProof, ReadError> {
        if old == TreeSize::ZERO || old > new {
            return Err(ReadError::BadSizes { old, new });
        }
        self.check_within(self.end_of(reach)?, new, || format!("size {new}"))?;
        self.wait_built(new).await?;
        match prove_consistency(&self.tree.warm(), old, new) {
            Err(WarmError::Cold(_)) => self.off_thread(move |tree| prove_consistency(tree, old, new)).await,
            Err(WarmError::Tree(error)) => read(Err(error)),
            Ok(proof) => read(Ok(proof)),
        }
    }

    /// Waits a little while the tree is behind `size`, which is durable.
    pub(super) async fn wait_built(&self, size: TreeSize) -> Result<(), ReadError> {
        if self.tree.size() >= size {
            return Ok(());
        }
        let mut built = self.built.clone();
        match timeout(TREE_WAIT, built.wait_for(|head| head.size >= size)).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(ReadError::Building(size)),
        }
    }

    /// Makes a proof that needs the disk where waiting for it holds up nobody else.
    pub(super) async fn off_thread<P: Send + 'static>(
        &self,
        make: impl FnOnce(&Tree) -> Result<Result<P, ProofError>, TreeError> + Send + 'static,
    ) -> Result<P, ReadError> {
        let tree = Arc::clone(&self.tree);
        let made = tokio::task::spawn_blocking(move || make(&tree)).await;
        read(made.map_err(|error| ReadError::Damaged(error.to_string()))?)
    }

    fn check_within(
        &self,
        published: TreeSize,
        size: TreeSize,
        what: impl FnOnce() -> String,
    ) -> Result<(), ReadError> {
        let durable = self.durable.borrow().size;
        if size <= published {
            Ok(())
        } else if size <= durable {
            Err(ReadError::NotYetPublished { what: what(), published })
        } else {
            Err(ReadError::BeyondTree { what: what(), durable })
        }
    }
}

/// Neighbouring hashes on one height.
fn hashes<N: Nodes>(nodes: &N, height: u32, range: Range<u64>) -> Result<Vec<Hash>, N::Error> {
    range.map(|index| nodes.node(height, index)).collect()
}

/// Gives out as many of the next entries up to `end` as one answer may have and `most_bytes` have room for, which is at least one.
/// What was given out before an error is good.
pub(super) fn read_entries(
    reading: &mut Reading<'_>,
    end: TreeSize,
    most_bytes: usize,
    give: impl FnMut(&[u8]),
) -> Result<(), ReadError> {
    let full = reading.take(MAX_READ_ENTRIES as usize, most_bytes, give).map_err(|error| match error {
        EntryError::Tree(TreeError::NotYet { size, .. }) => ReadError::Building(size),
        error => ReadError::Damaged(error.to_string()),
    })?;
    // An answer that ends early would look like one that was full.
    let size = reading.next_index();
    if full || !end.contains(size) {
        Ok(())
    } else {
        Err(ReadError::Damaged(format!("the journal ends at {size}, before {end}")))
    }
}

/// Sizes were checked against a published head, so whatever fails now is damage, or the tree is not there yet.
fn read<P>(result: Result<Result<P, ProofError>, TreeError>) -> Result<P, ReadError> {
    match result {
        Ok(Ok(proof)) => Ok(proof),
        Ok(Err(error)) => Err(ReadError::Damaged(error.to_string())),
        Err(TreeError::NotYet { size, .. }) => Err(ReadError::Building(size)),
        Err(error) => Err(ReadError::Damaged(error.to_string())),
    }
}
