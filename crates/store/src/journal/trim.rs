//! Journals of which the oldest part may go: queues on disk, not logs. What was in a segment that was removed is the
//! business of whoever removed it; what is left is checked like any journal.

use std::sync::Arc;

use epigraph_core::{Entropy, Hash, TreeSize};

use super::error::JournalError;
use super::recover::{self, Beginning};
use super::{Config, Journal, Opened, segment};
use crate::file::Dir;

/// The first entry that is still there, or would be the next one, in a directory that nobody has open.
pub fn first_kept(dir: &dyn Dir) -> Result<TreeSize, JournalError> {
    segment::list(dir)?.into_iter().next().ok_or(JournalError::NoJournal)
}

impl Journal {
    /// Like [`Journal::open`], for a journal that [`Journal::trim`] may have shortened. Nothing in it can tell whether its
    /// oldest segments were trimmed or lost: its owner has to know what may be gone.
    pub fn open_trimmed(
        dir: Arc<dyn Dir>,
        origin_hash: Hash,
        config: Config,
        entropy: Arc<dyn Entropy>,
    ) -> Result<(Journal, Opened), JournalError> {
        let checked = recover::check(dir.as_ref(), origin_hash, Beginning::Anywhere)?;
        Journal::open_checked(dir, origin_hash, config, entropy, checked)
    }

    /// The first entry that is still there, or would be the next one.
    pub fn first_kept(&self) -> Result<TreeSize, JournalError> {
        first_kept(self.maker.dir.as_ref())
    }

    /// Whether [`Journal::trim`] would remove anything.
    pub fn can_trim(&self, keep: TreeSize) -> Result<bool, JournalError> {
        Ok(!self.removable(keep)?.is_empty())
    }

    /// Removes the segments in which all entries are before `keep`, the oldest first and each durably before the next, so
    /// that no crash leaves a hole; never the segment that is written to.
    pub fn trim(&mut self, keep: TreeSize) -> Result<(), JournalError> {
        let dir = &self.maker.dir;
        for first in self.removable(keep)? {
            let name = segment::name_of(first);
            dir.remove(&name)
                .and_then(|()| dir.sync())
                .map_err(JournalError::io(format!("remove {name}, of which nothing is needed any more")))?;
            dir.crash_point("journal.segment.trimmed");
        }
        Ok(())
    }

    fn removable(&self, keep: TreeSize) -> Result<Vec<TreeSize>, JournalError> {
        let firsts = segment::list(self.maker.dir.as_ref())?;
        let ends = firsts.iter().skip(1);
        Ok(firsts.iter().zip(ends).take_while(|(_, end)| **end <= keep).map(|(first, _)| *first).collect())
    }
}
