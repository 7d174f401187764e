//! Witnesses that nobody can call: what they hand in and hold goes on to whoever publishes, on channels that the process
//! connects. Nothing is verified here.

use epigraph_core::TreeSize;
use epigraph_core::note::SignatureLine;
use epigraph_rpc::SpiffeId;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use super::Log;

/// Cosignatures of a pending head.
#[derive(Debug)]
pub struct Cosignatures {
    /// The head's size.
    pub size: TreeSize,
    /// The signature lines.
    pub lines: Vec<SignatureLine>,
    /// Hears whether they were taken.
    pub answer: oneshot::Sender<Result<(), CosignError>>,
}

/// Why cosignatures were not taken.
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
}

/// Where they go.
#[derive(Clone, Debug)]
pub struct Witnessing {
    /// Cosignatures.
    pub cosignatures: mpsc::Sender<Cosignatures>,
    /// What callers say they hold as witnesses, for the gate of the start: who, and a note, or none if they never cosigned one.
    pub held: mpsc::Sender<(SpiffeId, Option<Vec<u8>>)>,
}

impl Log {
    /// Hands in cosignatures, and waits until they were looked at.
    pub async fn add_cosignatures(
        &self,
        size: TreeSize,
        lines: Vec<SignatureLine>,
    ) -> Result<(), CosignError> {
        if self.gated() {
            return Err(CosignError::Gated);
        }
        let (answer, taken) = oneshot::channel();
        let sent = self.witnessing.cosignatures.try_send(Cosignatures { size, lines, answer });
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
