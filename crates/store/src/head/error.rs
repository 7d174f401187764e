//! What the head store found wrong at opening, and why it refuses.

use std::{fmt, io};

use epigraph_core::{Origin, TreeHead};
use thiserror::Error;

use super::FILE;
use super::layout::{Bad, MAX_HELD_NOTE_BYTES, MAX_LOGS};

/// Something that was wrong at opening and that the store dealt with, or, where it is suspect, did not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Warning {
    /// A copy of the file header was bad and was written again from the other.
    HeaderRepaired {
        /// Where it starts.
        offset: u64,
        /// What was wrong with it.
        bad: Bad,
    },
    /// A copy of a log's newest head was bad and was written again from the other.
    CopyRepaired {
        /// Which log.
        origin: Origin,
        /// Where the slot starts.
        offset: u64,
        /// What was wrong with it.
        bad: Bad,
    },
    /// A slot beside the newest head is bad: the next commit writes it anew. A crash during a commit leaves this.
    Torn {
        /// Which log.
        origin: Origin,
        /// Where the slot starts.
        offset: u64,
        /// What was wrong with it.
        bad: Bad,
    },
    /// A newer head may have been lost; see [`super::HeadStore::suspects`].
    Suspect {
        /// Which log.
        origin: Origin,
        /// The head fallen back to.
        head: TreeHead,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::HeaderRepaired { offset, bad } => {
                write!(f, "{FILE}: the header at byte {offset} was repaired from its copy: {bad}")
            }
            Warning::CopyRepaired { origin, offset, bad } => {
                write!(f, "{FILE}: the head of {origin} at byte {offset} was repaired from its copy: {bad}")
            }
            Warning::Torn { origin, offset, bad } => {
                write!(f, "{FILE}: an older slot of {origin} at byte {offset} is of no use: {bad}")
            }
            Warning::Suspect { origin, head } => write!(
                f,
                "{FILE}: a head of {origin} newer than size {} may have been lost; nothing is signed for it \
                 before the gate found that nobody holds a newer one",
                head.size
            ),
        }
    }
}

/// Why the head store refused. After [`HeadError::Fatal`] the process must end.
#[derive(Debug, Error)]
pub enum HeadError {
    /// The file is not there.
    #[error(
        "the file `{FILE}` is missing, and with it what was signed before; state is created by `init` only. If \
         it was there once, restore no old copy: a signer is initialised anew from a quorum-cosigned \
         checkpoint, a witness retires its key"
    )]
    Missing,
    /// `create` found a file.
    #[error("the file `{FILE}` exists already; to start anew choose an empty directory")]
    Exists,
    /// Something in the file does not check and no copy of it does.
    #[error(
        "`{FILE}` is damaged at byte {offset}: {why}. Keep the file and restore no old copy: a signer is \
         initialised anew from a quorum-cosigned checkpoint, a witness retires its key"
    )]
    Damaged {
        /// Where in the file.
        offset: u64,
        /// What is wrong there.
        why: String,
    },
    /// Another version of the format.
    #[error("`{FILE}` at byte {offset} has version {version}; use the release of Epigraph that wrote it")]
    Version {
        /// Where in the file.
        offset: u64,
        /// The version found.
        version: u32,
    },
    /// The file system failed while the store was created or opened. Nothing was acknowledged.
    #[error("cannot {action} `{FILE}`: {source}; check the disk and its permissions, then start again")]
    Io {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A write or sync failed, so nobody knows what is on the disk.
    #[error("writing `{FILE}` failed: {source}; the process must end, and starting again checks the disk")]
    Fatal {
        /// What the system said.
        source: io::Error,
    },
    /// An earlier write failed.
    #[error("an earlier write of `{FILE}` failed; the process must end, and starting again checks the disk")]
    Failed,
    /// No such log. This is not damage: the store was read, and the log never added.
    #[error("no log {0:?} here; `init` adds it")]
    UnknownOrigin(Origin),
    /// `init_log` for a log that is held.
    #[error("the log {0:?} is held already; its state is never created a second time")]
    OriginExists(Origin),
    /// Longer than a slot can hold.
    #[error("the held note has at most {MAX_HELD_NOTE_BYTES} bytes, this one has {0}")]
    NoteTooLong(usize),
    /// The room is bounded.
    #[error("a head store has room for at most {MAX_LOGS} logs; use another process for more")]
    TooManyLogs,
    /// Something else is held than the decision was based on. Nothing was written.
    #[error("the head of {0:?} is not the expected one any more; decide again on what is held now")]
    Changed(Origin),
    /// One commit names one log twice. Nothing was written.
    #[error("one commit has two updates of {0:?}; commit them one after the other")]
    Twice(Origin),
    /// A newer head may have been lost, and the gate has not cleared this yet.
    #[error("a newer head of {0:?} may have been lost; nothing is signed for it before the gate clears it")]
    Suspect(Origin),
}
