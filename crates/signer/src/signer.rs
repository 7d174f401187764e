//! The signer: it holds the private keys of its logs and, for each log, the newest head it is bound to.
//!
//! It trusts nobody: whatever the sequencer proposes is checked against the head it last signed, the outcome is
//! durable before the signature exists, and a restart changes none of it.

use std::collections::HashMap;

use epigraph_core::progress::{self, Committed, Conflict, Decision, Held, Proposal, Reject};
use epigraph_core::{Origin, SigningKey, TreeHead, UnixMillis};
use epigraph_store::head::{HeadError, HeadStore};
use thiserror::Error;

/// The signer of one or several logs.
pub struct Signer {
    keys: HashMap<Origin, SigningKey>,
    heads: HeadStore,
}

/// What the signer answers to a proposed head.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The checkpoint, as a signed note. It may have been signed before.
    Signed(String),
    /// It holds another head than the proposer thinks: propose again from there.
    Stale(TreeHead),
    /// The proposed head does not extend what was signed before. Nothing was signed.
    Conflict(Conflict),
    /// The proposal is malformed or its proof does not hold. Nothing was signed.
    Reject(Reject),
}

/// Why the signer could not answer. Nothing was signed.
#[derive(Debug, Error)]
pub enum SignerError {
    /// It has no key for this log.
    #[error("the signer has no key for the log {0}")]
    UnknownLog(Origin),
    /// The head store.
    #[error(transparent)]
    Store(#[from] HeadError),
    /// The key cannot sign for the log.
    #[error(transparent)]
    WrongKey(#[from] progress::WrongKey),
}

impl Signer {
    /// A signer over an open head store. Each key signs for the log that is named like it.
    pub fn new(keys: Vec<SigningKey>, heads: HeadStore) -> Signer {
        let keys = keys.into_iter().map(|key| (key.vkey().name().to_origin(), key)).collect();
        Signer { keys, heads }
    }

    /// The head it is bound to.
    pub fn held(&self, origin: &Origin) -> Result<&Held, SignerError> {
        Ok(self.heads.get(origin)?)
    }

    /// Signs the proposed head if it extends the one held, after making it durable.
    pub fn sign_checkpoint(
        &mut self,
        origin: &Origin,
        proposal: Proposal,
        now: UnixMillis,
    ) -> Result<Answer, SignerError> {
        let key = self.keys.get(origin).ok_or_else(|| SignerError::UnknownLog(origin.clone()))?;
        let step = match progress::decide(origin, self.heads.get(origin)?, proposal, now) {
            Decision::Step(step) => step,
            Decision::Stale(held) => return Ok(Answer::Stale(held)),
            Decision::Conflict(conflict) => return Ok(Answer::Conflict(conflict)),
            Decision::Reject(reject) => return Ok(Answer::Reject(reject)),
        };
        // A crash before the commit: nothing happened. After it, before the signature left: the head is held, the
        // proposer asks again and gets the same text signed.
        let committed: Vec<Committed> = progress::commit(vec![step], &mut self.heads)?;
        let signed =
            committed.into_iter().map(|committed| committed.sign(key)).collect::<Result<String, _>>()?;
        Ok(Answer::Signed(signed))
    }
}
