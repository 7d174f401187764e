//! A witness that no log can call, because it is behind a firewall, calls the log: it follows the heads that the log signs,
//! published or not, and hands in its cosignatures (DESIGN section 5). What it cosigns is decided where every proposal is
//! decided; a log that is followed gets nothing that it would not have got by asking.
//!
//! Whatever goes wrong ends one connection and is tried again after a while: the log shows its newest head to whoever
//! connects, and a cosignature that was lost on its way is given again.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use epigraph_core::backoff::spread_wait;
use epigraph_core::checkpoint::decode_text;
use epigraph_core::note::{Parsed, SignatureLine};
use epigraph_core::progress::Reject;
use epigraph_core::{Entropy, Hash, Origin, TreeSize};
use thiserror::Error;
use tokio::time::sleep;

use crate::keeper::{Answer, Refused};
use crate::witness::{AddError, Witness};

/// The longest first rest. A log that is being restarted is back in less.
const FIRST_REST: Duration = Duration::from_millis(200);

/// So long after a log is back, at most, it gets cosignatures again.
const LONGEST_REST: Duration = Duration::from_secs(5);

/// How a witness calls a log.
pub trait DialLog: Send + Sync {
    /// The heads that it follows.
    type Heads: Heads;

    /// Asks to be told of heads when they are signed. `held` is the cosigned note that the witness holds, empty if it holds none;
    /// `None` where it does not know that.
    fn follow(
        &self,
        origin: &Origin,
        held: Option<Bytes>,
    ) -> impl Future<Output = Result<Self::Heads, String>> + Send;

    /// Asks for a consistency proof.
    fn prove(
        &self,
        origin: &Origin,
        old: TreeSize,
        new: TreeSize,
    ) -> impl Future<Output = Result<Vec<Hash>, String>> + Send;

    /// Hands in a cosignature of the head of this size.
    fn hand_in(
        &self,
        origin: &Origin,
        size: TreeSize,
        line: &SignatureLine,
    ) -> impl Future<Output = Result<HandedIn, String>> + Send;

    /// Tells that the head of this size does not extend the one that is held, whose note this is: somebody else signs with the
    /// log's key.
    fn report(
        &self,
        origin: &Origin,
        size: TreeSize,
        held: Bytes,
    ) -> impl Future<Output = Result<HandedIn, String>> + Send;
}

/// Heads as a log signs them.
pub trait Heads: Send {
    /// The next note, of which nothing was verified; `None` when the log wants to be called anew.
    fn next(&mut self) -> impl Future<Output = Result<Option<Bytes>, String>> + Send;
}

/// What a log says to a cosignature.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HandedIn {
    /// It was taken, or was there already.
    Taken,
    /// The log no longer waits for it: it has published a larger head.
    TooLate,
}

/// Why following a log came to an end.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum DialError {
    /// The log did not answer, or refused.
    #[error("the log {did}: {why}")]
    Log {
        /// What it did not do.
        did: &'static str,
        /// What it said.
        why: String,
    },
    /// The note is none.
    #[error("what the log shows as a head cannot be read: {0}")]
    Unreadable(String),
    /// The witness refused.
    #[error("the head of the log is not cosigned: {0}")]
    Refused(#[from] AddError),
    /// The witness holds something else, whatever it is asked from.
    #[error("the head of size {0} was signed before the one that is held, or another proposal came between")]
    Stale(TreeSize),
}

/// Follows one log for as long as it is polled.
pub async fn follow<L: DialLog>(witness: &Witness, origin: &Origin, log: &L, entropy: &dyn Entropy) {
    let mut failures = 0;
    loop {
        match session(witness, origin, log, &mut failures).await {
            Ok(()) => failures = 0,
            Err(error) => {
                failures += 1;
                tracing::warn!(log = %origin, %error, "following a log");
            }
        }
        sleep(spread_wait(FIRST_REST, LONGEST_REST, failures, entropy)).await;
    }
}

/// One connection, until the log ends it.
async fn session<L: DialLog>(
    witness: &Witness,
    origin: &Origin,
    log: &L,
    failures: &mut u32,
) -> Result<(), DialError> {
    // For the log's own gate. Where a newer head may have been lost there is nothing to be said, which says nothing.
    let held = match witness.checkpoint(origin).await {
        Ok(newest) => Some(newest.map_or_else(Bytes::new, |newest| newest.note().into())),
        Err(error) if is_gated(&error) => None,
        Err(error) => return Err(error.into()),
    };
    let silent = |why| DialError::Log { did: "does not show its heads", why };
    let mut heads = log.follow(origin, held).await.map_err(silent)?;
    while let Some(note) = heads.next().await.map_err(silent)? {
        cosign(witness, origin, log, &note).await?;
        *failures = 0;
    }
    Ok(())
}

/// Whether a newer head may have been lost, and nobody has said yet that it was not.
fn is_gated(error: &AddError) -> bool {
    matches!(error, AddError::Refused(Refused::Gated(_)) | AddError::LogSilent { .. } | AddError::Asking(_))
}

/// Proposes the head to the witness as the log itself would, and hands in what comes of it.
async fn cosign<L: DialLog>(
    witness: &Witness,
    origin: &Origin,
    log: &L,
    note: &Bytes,
) -> Result<(), DialError> {
    // Nothing is verified yet: it says only which proof to ask for.
    let unreadable = |why: &dyn ToString| DialError::Unreadable(why.to_string());
    let text = Parsed::parse(note).map_err(|error| unreadable(&error))?;
    let (_, head) = decode_text(text.text()).map_err(|error| unreadable(&error))?;
    let held = match witness.checkpoint(origin).await {
        Ok(newest) => newest.map_or(TreeSize::ZERO, |newest| newest.held.head.size),
        // Unknown before the gate, which the proposal passes.
        Err(error) if is_gated(&error) => TreeSize::ZERO,
        Err(error) => return Err(error.into()),
    };
    let mut old = held;
    let report = async |held: Bytes| {
        let silent = |why| DialError::Log { did: "does not hear of another history under its key", why };
        log.report(origin, head.size, held).await.map(drop).map_err(silent)
    };
    // Another proposal may come between, or the gate may show what is held: once more from there.
    for _ in 0..2 {
        if old > head.size {
            // The head of a log that signs on, or of one that went back: it knows what it has signed.
            if let Ok(Some(newest)) = witness.checkpoint(origin).await {
                report(newest.held.note.clone().into()).await?;
            }
            return Err(DialError::Stale(head.size));
        }
        let proof = if old == TreeSize::ZERO || old == head.size {
            Vec::new()
        } else {
            let silent =
                |why| DialError::Log { did: "does not prove that its head extends the held one", why };
            log.prove(origin, old, head.size).await.map_err(silent)?
        };
        let answer = witness.add_checkpoint(origin, old, note, proof).await;
        if let (Err(AddError::Refused(Refused::Reject(Reject::Proof(_)))), Ok(Some(newest))) =
            (&answer, witness.checkpoint(origin).await)
        {
            // The log's own proof does not hold. Where the held size is a power of two that is all that a fork shows here; the
            // log's tree shows more.
            report(newest.held.note.clone().into()).await?;
        }
        match answer? {
            Answer::Cosigned(cosigned) => {
                let silent = |why| DialError::Log { did: "does not take a cosignature", why };
                let size = cosigned.held.head.size;
                return match log.hand_in(origin, size, &cosigned.line).await.map_err(silent)? {
                    HandedIn::Taken | HandedIn::TooLate => Ok(()),
                };
            }
            Answer::Stale(held) => old = held.head.size,
            // What is held stays as it is: the next head may be of the right history.
            Answer::Conflict { held, .. } => return report(held.into()).await,
        }
    }
    Err(DialError::Stale(head.size))
}
