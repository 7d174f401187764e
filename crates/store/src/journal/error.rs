//! Why a journal is not opened, not read or not appended to.

use std::io;
use std::sync::Arc;

use epigraph_core::{Hash, TreeSize};
use thiserror::Error;

/// Why the journal cannot be read or opened.
#[derive(Debug, Error)]
pub enum JournalError {
    /// There is no segment at all.
    #[error(
        "there is no journal here: a new log gets one from `epigraph init log`, once; if this log had one, restore \
         its segments from a backup or a mirror"
    )]
    NoJournal,
    /// `create` found a journal.
    #[error(
        "there is a journal here already ({segment}): open it, or create the new one in another directory"
    )]
    AlreadyThere {
        /// One of its segments.
        segment: String,
    },
    /// A segment that must be there is not.
    #[error(
        "the journal's segment {segment} is missing ({because}): restore it from a backup or a mirror; nothing was \
         changed"
    )]
    MissingSegment {
        /// Its file name.
        segment: String,
        /// What says that it must be there.
        because: String,
    },
    /// Something does not check that was once durable.
    #[error(
        "the journal's segment {segment} is damaged at byte {offset}: {found}; restore this segment from a backup or \
         a mirror; nothing was changed"
    )]
    Damaged {
        /// Its file name.
        segment: String,
        /// Where in it.
        offset: u64,
        /// What was found there.
        found: String,
    },
    /// The journal of another log.
    #[error(
        "the journal's segment {segment} belongs to the log with origin hash {found}, not {wanted}: check which \
         directory is configured for which log"
    )]
    OtherLog {
        /// Its file name.
        segment: String,
        /// SHA-256 of the origin in its header.
        found: Hash,
        /// SHA-256 of the origin that was asked for.
        wanted: Hash,
    },
    /// The system refused an operation.
    #[error("cannot {what}: {source}; check the volume, then start again")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
}

impl JournalError {
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> JournalError {
        let what = what.into();
        move |source| JournalError::Io { what, source }
    }
}

/// Why a batch was not appended.
#[derive(Clone, Debug, Error)]
pub enum AppendError {
    /// No space for the next segment. Nothing was written; the same batch can be appended once there is space.
    #[error(
        "there is no space for the journal's next segment ({0}): free some on its volume; appends then go on"
    )]
    NoSpace(Arc<io::Error>),
    /// The batch cannot follow what is in the journal. Nothing was written.
    #[error("the batch was not appended: {0}")]
    Refused(#[from] BatchError),
    /// An operation failed after which nobody knows what is on the disk. The journal accepts nothing any more:
    /// the process must end, and the next start finds out.
    #[error("the journal stopped: {0}; the process must end and check the journal when it starts again")]
    Fatal(Arc<str>),
}

/// What is wrong with a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum BatchError {
    /// It does not start where the journal ends.
    #[error("it starts at size {batch} with another root or size than the journal has at {journal}")]
    DoesNotFollow {
        /// The size at which the batch starts.
        batch: TreeSize,
        /// The journal's size.
        journal: TreeSize,
    },
    /// It holds no entry, or not as many as it says.
    #[error("its entries are {found:?}, and its sizes call for {wanted}; a batch has at least one")]
    WrongCount {
        /// Entries found; `None` if their encoding is broken.
        found: Option<u32>,
        /// Difference of the sizes after and before.
        wanted: u64,
    },
    /// It is larger than a frame may be.
    #[error("it has {bytes} bytes, and a frame has at most {limit}")]
    TooLarge {
        /// Its encoded marks and entries.
        bytes: usize,
        /// The configured limit.
        limit: u32,
    },
}
