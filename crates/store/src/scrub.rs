//! The scrubber: reads everything again, slowly, so that rot is found while there is still a copy to restore from.
//!
//! One pass re-reads each frame of the journal, hashes its entries, compares the root, and compares every tile that
//! they complete with the stored one. A tile that differs is stored again; damage to the journal is reported and
//! never repaired. It does not know time: whoever drives it decides how many bytes when.

use std::sync::Arc;

use epigraph_core::hash::leaf_hashes;
use epigraph_core::tree::LogFull;
use epigraph_core::{Hash, TreeHead, TreeSize};
use thiserror::Error;

use crate::file::Dir;
use crate::journal::{JournalError, OwnedFrame, Reader};
use crate::tile::WIDTH;
use crate::tree::{Edge, Full, Tree};

/// What the scrubber found. The next step starts a new pass.
#[derive(Debug, Error)]
pub enum ScrubError {
    /// The journal cannot be read there.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The entries do not lead to the recorded root any more.
    #[error(
        "the batch that starts at index {first} is recorded with root {}, but its entries give {} now; restore the \
         segment that holds it from a backup or a mirror", recorded.root, computed.root
    )]
    WrongRoot {
        /// Index of the batch's first entry.
        first: TreeSize,
        /// What the entries lead to.
        computed: TreeHead,
        /// What the frame says.
        recorded: TreeHead,
    },
    /// More entries than a log has.
    #[error(transparent)]
    Full(#[from] LogFull),
}

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Entries that the present pass has checked.
    pub checked: TreeSize,
    /// Full passes since it was made.
    pub passes: u64,
    /// The size that the last full pass covered; `None` before the first.
    pub last_full_pass: Option<TreeSize>,
    /// Stored tiles that were missing or wrong, in all passes.
    pub repaired: u64,
}

/// Checks one log, again and again.
pub struct Scrubber {
    dir: Arc<dyn Dir>,
    origin_hash: Hash,
    tree: Arc<Tree>,
    reader: Reader,
    edge: Edge,
    progress: Progress,
}

impl Scrubber {
    /// For the journal in `dir` and the tree built from it.
    pub fn new(dir: Arc<dyn Dir>, origin_hash: Hash, tree: Arc<Tree>) -> Scrubber {
        let reader = Reader::new(dir.clone(), origin_hash);
        Scrubber { dir, origin_hash, tree, reader, edge: Edge::default(), progress: Progress::default() }
    }

    /// Reads about `budget` bytes, a frame at least, and stops at the end of a pass. The end is the tree's size when
    /// the end is reached.
    pub fn step(&mut self, budget: u64) -> Result<Progress, ScrubError> {
        let stepped = self.try_step(budget);
        if stepped.is_err() {
            self.restart();
        }
        stepped
    }

    fn try_step(&mut self, budget: u64) -> Result<Progress, ScrubError> {
        let mut read = 0;
        while read < budget.max(1) {
            let Some(frame) = self.reader.next_frame(self.tree.size())? else {
                self.progress.last_full_pass = Some(self.edge.size());
                self.progress.passes += 1;
                self.restart();
                break;
            };
            read += self.check(&frame)?;
            self.progress.checked = self.edge.size();
        }
        Ok(self.progress)
    }

    /// Returns the bytes that were read for it.
    fn check(&mut self, frame: &OwnedFrame) -> Result<u64, ScrubError> {
        let first = self.edge.size();
        let mut full = Full::new();
        for leaf in leaf_hashes(frame.entries()) {
            self.edge.push(leaf, &mut full)?;
        }
        let (computed, recorded) = (self.edge.head(), frame.after());
        if computed != recorded {
            return Err(ScrubError::WrongRoot { first, computed, recorded });
        }
        let wrong = full.iter().filter(|(id, tile)| !self.tree.check_stored(*id, tile)).count();
        self.progress.repaired += wrong as u64;
        Ok((frame.bundle().len() + full.len() * WIDTH * Hash::LEN) as u64)
    }

    fn restart(&mut self) {
        self.reader = Reader::new(self.dir.clone(), self.origin_hash);
        self.edge = Edge::default();
        self.progress.checked = TreeSize::ZERO;
    }
}
