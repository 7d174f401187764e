//! Reading: proofs, entries and checkpoints, up to what is published.

use std::sync::Arc;

use bytes::Bytes;
use epigraph_core::proof::{
    ConsistencyProof, InclusionProof, ProofError, prove_consistency, prove_inclusion,
};
use epigraph_core::{Checkpoint, LeafIndex, TreeSize, Verified};
use epigraph_rpc::limits::MAX_READ_BYTES;
use epigraph_store::tree::{EntryError, Tree, TreeError, WarmError};
use std::time::Duration;
use thiserror::Error;
use tokio::time::timeout;

use super::{Log, MAX_ENTRY_READS};

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

/// A leaf's proof under the newest published checkpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proven {
    /// The proof.
    pub proof: InclusionProof,
    /// The checkpoint that it leads to.
    pub checkpoint: Arc<Verified<Checkpoint>>,
}

impl Log {
    /// The newest published checkpoint.
    pub fn checkpoint(&self) -> Result<Arc<Verified<Checkpoint>>, ReadError> {
        self.published.borrow().clone().ok_or(ReadError::NothingPublished)
    }

    /// Proves a leaf under the newest published checkpoint.
    pub async fn prove(&self, index: LeafIndex) -> Result<Proven, ReadError> {
        let checkpoint = self.checkpoint()?;
        self.check_published(&checkpoint, index.size_after(), || format!("entry {index}"))?;
        let size = checkpoint.head().size;
        self.wait_built(size).await?;
        let proof = match prove_inclusion(&self.tree.warm(), index, size) {
            Err(WarmError::Cold(_)) => {
                self.off_thread(move |tree| prove_inclusion(tree, index, size)).await?
            }
            Err(WarmError::Tree(error)) => read(Err(error))?,
            Ok(proof) => read(Ok(proof))?,
        };
        Ok(Proven { proof, checkpoint })
    }

    /// The entries from `first` on that are published, at least one: at most `max`, which is at least 1, and together at
    /// most [`MAX_READ_BYTES`]. Each was compared with the tree.
    pub async fn entries(&self, first: LeafIndex, max: u32) -> Result<Vec<Bytes>, ReadError> {
        let checkpoint = self.checkpoint()?;
        self.check_published(&checkpoint, first.size_after(), || format!("entry {first}"))?;
        let published = checkpoint.head().size;
        let last = first.checked_add(u64::from(max).saturating_sub(1));
        let end = last.map_or(published, |last| last.size_after().min(published));
        self.wait_built(end).await?;
        let permit =
            Arc::clone(&self.entry_reads).try_acquire_owned().map_err(|_| ReadError::TooManyReads)?;
        let tree = Arc::clone(&self.tree);
        let read = tokio::task::spawn_blocking(move || {
            // Until the thread is done, whether or not the caller is still there.
            let _permit = permit;
            read_entries(&tree, first, end)
        });
        read.await.map_err(|error| ReadError::Damaged(error.to_string()))?
    }

    /// Proves that the tree of `old` entries is the beginning of that of `new` entries, both published.
    pub async fn prove_consistency(
        &self,
        old: TreeSize,
        new: TreeSize,
    ) -> Result<ConsistencyProof, ReadError> {
        if old == TreeSize::ZERO || old > new {
            return Err(ReadError::BadSizes { old, new });
        }
        self.check_published(&*self.checkpoint()?, new, || format!("size {new}"))?;
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

    fn check_published(
        &self,
        checkpoint: &Checkpoint,
        size: TreeSize,
        what: impl FnOnce() -> String,
    ) -> Result<(), ReadError> {
        let (published, durable) = (checkpoint.head().size, self.durable.borrow().size);
        if size <= published {
            Ok(())
        } else if size <= durable {
            Err(ReadError::NotYetPublished { what: what(), published })
        } else {
            Err(ReadError::BeyondTree { what: what(), durable })
        }
    }
}

/// As many of the entries from `first` up to `end` as one answer may have.
fn read_entries(tree: &Tree, first: LeafIndex, end: TreeSize) -> Result<Vec<Bytes>, ReadError> {
    let mut entries = Vec::new();
    let (mut size, mut bytes) = (first.get(), 0);
    for entry in tree.entries(first, end) {
        let (index, entry) = entry.map_err(|error| match error {
            EntryError::Tree(TreeError::NotYet { size, .. }) => ReadError::Building(size),
            error => ReadError::Damaged(error.to_string()),
        })?;
        bytes += entry.len();
        if bytes > MAX_READ_BYTES {
            return Ok(entries);
        }
        if index.get() != size {
            return Err(ReadError::Damaged(format!("entry {index} came in place of entry {size}")));
        }
        size += 1;
        entries.push(Bytes::from(entry));
    }
    // An answer that ends early would look like one that was full.
    if size == end.get() {
        Ok(entries)
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
