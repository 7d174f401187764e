//! Witnesses that nobody can call: what they hand in and hold goes on to whoever publishes, on channels that the process
//! connects. Nothing is verified here.

use epigraph_core::TreeSize;
use epigraph_core::note::SignatureLine;
use epigraph_rpc::SpiffeId;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use super::Log;

/// What a witness says to a pending head.
#[derive(Debug)]
pub struct HandedIn {
    /// The head's size.
    pub size: TreeSize,
    /// What it says.
    pub what: Said,
    /// Hears whether it was taken.
    pub answer: oneshot::Sender<Result<(), CosignError>>,
}

/// A witness's word on a head.
#[derive(Debug)]
pub enum Said {
    /// Signature lines.
    Cosignatures(Vec<SignatureLine>),
    /// Who says so holds another history: the note of it.
    Conflict(SpiffeId, Vec<u8>),
}

/// Why it was not taken.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum CosignError {
    /// The gate of the start is not passed, or the log has ended: nobody gathers cosignatures.
    #[error("the log has not finished the checks of its start and gathers no cosignatures yet; try again")]
    Gated,
    /// Too many wait.
    #[error("too many cosignatures are being looked at; try again shortly")]
    TooMany,
    /// No such head.
    #[error("{0}")]
    NoSuchHead(String),
    /// None of a witness that counts.
    #[error("{0}")]
    Bad(String),
    /// Nothing that shows another history.
    #[error("{0}")]
    NoConflict(String),
    /// Not by this name.
    #[error(
        "the log's configuration has no [[log.witness]] whose `server` is {0}, and does not hear it as a witness"
    )]
    Unknown(SpiffeId),
}

/// Where they go.
#[derive(Clone, Debug)]
pub struct Witnessing {
    /// Cosignatures, and conflicts.
    pub handed_in: mpsc::Sender<HandedIn>,
    /// What callers say they hold as witnesses, for the gate of the start: who, and a note, or none if they never cosigned one.
    pub held: mpsc::Sender<(SpiffeId, Option<Vec<u8>>)>,
}

impl Log {
    /// Hands in what a witness says to the pending head of this size, and waits until it was looked at.
    pub async fn hand_in(&self, size: TreeSize, what: Said) -> Result<(), CosignError> {
        if self.gated() {
            return Err(CosignError::Gated);
        }
        let (answer, taken) = oneshot::channel();
        let sent = self.witnessing.handed_in.try_send(HandedIn { size, what, answer });
        sent.map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => CosignError::TooMany,
            mpsc::error::TrySendError::Closed(_) => CosignError::Gated,
        })?;
        taken.await.unwrap_or(Err(CosignError::Gated))
    }

    /// A witness says what it holds. Only the gate of the start listens; what it has no room for, the witness says again when it
    /// connects again.
    pub fn witness_holds(&self, who: SpiffeId, note: Option<Vec<u8>>) {
        let _ = self.witnessing.held.try_send((who, note));
    }
}
