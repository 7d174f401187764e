//! The verifying client: it appends, reads, and returns nothing that it did not check.
//!
//! It trusts the public keys in its policy and its own pin, and no server. It does not know how calls travel; that is
//! `epigraph-rpc`'s.

mod backoff;
pub mod conflict;
pub mod entries;
pub mod follow;
mod history;
pub mod pin;
pub mod producer;
pub mod repin;

use bytes::Bytes;
use conflict::Kept;
use epigraph_core::checkpoint::CheckpointError;
use epigraph_core::hash::leaf_hash;
use epigraph_core::proof::{ConsistencyProof, ProofError};
use epigraph_core::tlog_proof::{Receipt, VerifyError};
use epigraph_core::{Checkpoint, Hash, LeafIndex, Origin, Policy, TreeHead, TreeSize, Verified};
use epigraph_rpc::peer::{Tree, Which};
use epigraph_rpc::{CallError, Reason, Refusal, Wait, convert, peer};
pub use history::Checkpoints;
use pin::{Pin, PinError};
use thiserror::Error;

/// A client of one log.
pub struct Client {
    log: peer::Log,
    origin: Origin,
    policy: Policy,
    pin: Pin,
}

/// What became of appended entries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Appended {
    /// The index of the first entry; the others follow.
    pub first_index: LeafIndex,
    /// A verified receipt for each entry if they were published in time; else none: the log *says* that they are on its
    /// disk, which nobody can check yet.
    pub receipts: Option<Vec<Receipt>>,
    /// Why there are none although they were waited for, in the log's own words, if it has any.
    pub unpublished_because: Option<String>,
}

/// Why there is no verified result.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The call itself.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The client's own state.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The served checkpoint.
    #[error("the log served a checkpoint that is not valid: {0}")]
    Checkpoint(#[from] CheckpointError),
    /// The served proof.
    #[error("the log served a receipt that does not verify: {0}")]
    Receipt(#[from] VerifyError),
    /// The log answered with less than it has shown before.
    #[error(
        "the log went back: it served a checkpoint of size {}, but it has shown size {} before. It was put back to an older \
         state, or it serves old answers; do not trust it before you know which", served.size, pinned.size
    )]
    RolledBack {
        /// What was served.
        served: TreeHead,
        /// What the client holds.
        pinned: TreeHead,
    },
    /// What is published under the new policy is older than what was accepted under the old one.
    #[error(
        "the newest checkpoint that satisfies the policy has size {}, and size {} was accepted under the old policy: it is of the \
         same history, but the pin does not go back. Try again when the log has published more under the new policy",
        served.size, pinned.size
    )]
    Behind {
        /// What was served.
        served: TreeHead,
        /// What the client holds.
        pinned: TreeHead,
    },
    /// Two signed checkpoints that cannot be of one history: of one size with two roots, or of two sizes with a proof under
    /// the newer one that its beginning is another.
    #[error(
        "two histories: this log signed {} entries with root {} and {} entries with root {}, and the one is not the \
         beginning of the other. {kept}", pinned.size, pinned.root, served.size, served.root
    )]
    TwoHistories {
        /// What was served.
        served: TreeHead,
        /// What the client holds.
        pinned: TreeHead,
        /// What was kept of it.
        kept: Box<Kept>,
    },
    /// The log did not prove that its signed checkpoints are of one history.
    #[error(
        "the log did not prove that its checkpoints of size {} and {} are of one history ({why}). Do not trust it before it \
         does. {kept}. To be evidence the two lack a consistency proof between their sizes that leads to the larger one's \
         root", pinned.size, served.size
    )]
    NotProven {
        /// What was served.
        served: TreeHead,
        /// What the client holds.
        pinned: TreeHead,
        /// What failed.
        why: ProofError,
        /// What was kept of it.
        kept: Box<Kept>,
    },
    /// The log refused to prove that its signed checkpoints are of one history.
    #[error(
        "the log refused to prove that its checkpoints of size {} and {} are of one history: {refusal}. Do not trust it \
         before it does. {kept}. Without that proof nobody can say whether there are two histories", pinned.size, served.size
    )]
    NoProof {
        /// What was served.
        served: TreeHead,
        /// What the client holds.
        pinned: TreeHead,
        /// What it said.
        refusal: Box<Refusal>,
        /// What was kept of it.
        kept: Box<Kept>,
    },
    /// Entries that are not those of the log's own proofs.
    #[error(
        "the log served entries {first} to {last} otherwise than its signed checkpoint says: one at least is changed, missing          or out of place. Do not use what it served"
    )]
    OtherEntries {
        /// The first of them.
        first: LeafIndex,
        /// The last of them.
        last: LeafIndex,
    },
    /// An answer that contradicts the question.
    #[error("the log answered {0}")]
    WrongAnswer(&'static str),
}

impl Client {
    /// A client of the log `origin`, with a policy and a pin.
    pub fn new(log: peer::Log, origin: Origin, policy: Policy, pin: Pin) -> Client {
        Client { log, origin, policy, pin }
    }

    /// The log.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The policy.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Appends entries. With receipts, each of them was verified against the entry's own bytes, and the pin moved on.
    pub async fn append(&self, entries: &[Bytes], wait: Wait) -> Result<Appended, ClientError> {
        self.append_as(None, entries, wait).await
    }

    async fn append_as(
        &self,
        producer: Option<convert::Producer>,
        entries: &[Bytes],
        wait: Wait,
    ) -> Result<Appended, ClientError> {
        let answer = self.log.append(self.origin.as_str(), entries.to_vec(), wait, None, producer).await?;
        let first_index = answer.first_index;
        let receipts = match answer.checkpoint {
            None => None,
            Some(checkpoint) => {
                let checkpoint = self.accept(&checkpoint).await?;
                let mut receipts = Vec::with_capacity(entries.len());
                for ((offset, entry), hashes) in (0..).zip(entries).zip(answer.proofs) {
                    let index = first_index.checked_add(offset);
                    let index = index.ok_or(ClientError::WrongAnswer("with an impossible index"))?;
                    receipts.push(self.check(index, &leaf_hash(entry), hashes, &checkpoint)?);
                }
                Some(receipts)
            }
        };
        Ok(Appended { first_index, receipts, unpublished_because: answer.unpublished_because })
    }

    /// Fetches the receipt of the entry with this leaf hash at this index, verified.
    pub async fn receipt(&self, index: LeafIndex, leaf: &Hash) -> Result<Receipt, ClientError> {
        Ok(self.proven(index, leaf).await?.0)
    }

    /// The receipt, and the size of the tree that it is for.
    async fn proven(&self, index: LeafIndex, leaf: &Hash) -> Result<(Receipt, TreeSize), ClientError> {
        let answer = self.log.proof(self.origin.as_str(), Which::Index(index), Tree::default()).await?;
        let note = answer.checkpoint.ok_or(ClientError::WrongAnswer("without a checkpoint"))?;
        let checkpoint = self.accept(&note).await?;
        let receipt = self.check(index, leaf, answer.hashes, &checkpoint)?;
        Ok((receipt, checkpoint.head().size))
    }

    /// Fetches the receipt of the entry under a checkpoint that the caller has, verified.
    pub async fn receipt_under(
        &self,
        index: LeafIndex,
        leaf: &Hash,
        checkpoint: &Verified<Checkpoint>,
    ) -> Result<Receipt, ClientError> {
        let tree = Tree { size: Some(checkpoint.head().size), consistent_from: None };
        let answer = self.log.proof(self.origin.as_str(), Which::Index(index), tree).await?;
        self.check(index, leaf, answer.hashes, checkpoint)
    }

    /// Fetches the receipt of the first entry with this leaf hash, verified. Where there is none the log refuses, which proves
    /// nothing.
    pub async fn receipt_of(&self, leaf: &Hash) -> Result<Receipt, ClientError> {
        let which = Which::LeafHash(*leaf);
        let answer = self.log.proof(self.origin.as_str(), which, Tree::default()).await?;
        let note = answer.checkpoint.ok_or(ClientError::WrongAnswer("without a checkpoint"))?;
        let checkpoint = self.accept(&note).await?;
        self.check(answer.leaf_index, leaf, answer.hashes, &checkpoint)
    }

    /// Published checkpoints of at least `min_size` that the log kept, in ascending order of their sizes.
    pub fn checkpoints(&self, min_size: TreeSize) -> Checkpoints<'_> {
        Checkpoints { client: self, min_size, after: None, token: Some(String::new()) }
    }

    /// Fetches the newest published checkpoint, verified, and proven to extend everything that was accepted before the call.
    pub async fn checkpoint(&self) -> Result<Verified<Checkpoint>, ClientError> {
        // From before the question: what somebody else pins meanwhile may well be newer than the answer.
        let pinned = self.pin.lock()?.read(&self.policy)?.map(|pinned| pinned.head());
        let note = self.log.checkpoint(self.origin.as_str()).await?;
        let checkpoint = self.accept(&note).await?;
        match pinned {
            Some(pinned) if checkpoint.head().size < pinned.size => {
                self.keep_older(&checkpoint);
                Err(ClientError::RolledBack { served: checkpoint.head(), pinned })
            }
            _ => Ok(checkpoint),
        }
    }

    fn check(
        &self,
        index: LeafIndex,
        leaf: &Hash,
        hashes: Vec<Hash>,
        checkpoint: &Verified<Checkpoint>,
    ) -> Result<Receipt, ClientError> {
        let receipt = Receipt { extra: None, index, hashes, checkpoint: checkpoint.note().to_vec() };
        receipt.verify_under(leaf, checkpoint)?;
        Ok(receipt)
    }

    /// Believes a served checkpoint only if it is valid under the policy and of one history with the pin, which then moves
    /// to the larger of the two. An older one is believed too, if it is proven to be a beginning of the pinned one: answers
    /// may overtake each other.
    async fn accept(&self, note: &[u8]) -> Result<Verified<Checkpoint>, ClientError> {
        let served = Checkpoint::open(note, &self.policy).map_err(|error| self.invalid(note, error))?;
        if *served.origin() != self.origin {
            return Err(ClientError::WrongAnswer("with the checkpoint of another log"));
        }
        loop {
            let held = self.pin.lock()?.read(&self.policy)?;
            if let Some(pinned) = &held {
                self.check_consistent(&served, pinned).await?;
                if pinned.head().size >= served.head().size {
                    return Ok(served);
                }
            }
            // The lock is not held during calls; if another process moved the pin meanwhile, look again.
            let pin = self.pin.lock()?;
            if pin.read(&self.policy)? == held {
                pin.replace(&served)?;
                return Ok(served);
            }
        }
    }

    async fn check_consistent(
        &self,
        served: &Verified<Checkpoint>,
        pinned: &Verified<Checkpoint>,
    ) -> Result<(), ClientError> {
        let back = served.head().size < pinned.head().size;
        let (older, newer) = if back { (served, pinned) } else { (pinned, served) };
        let (old, new) = (older.head(), newer.head());
        if old.size == new.size {
            return if old == new { Ok(()) } else { Err(self.two_roots(served, pinned)) };
        }
        // The empty tree is the beginning of every tree; there is nothing to fetch.
        let hashes = if old.size == TreeSize::ZERO {
            Vec::new()
        } else {
            match self.log.consistency_proof(self.origin.as_str(), old.size, new.size).await {
                Ok(hashes) => hashes,
                // A log that does not know the size which it has shown before went back.
                Err(CallError::Refused(refusal))
                    if back && matches!(refusal.reason(), Reason::BeyondTree | Reason::NotYetPublished) =>
                {
                    self.keep_older(served);
                    return Err(ClientError::RolledBack { served: served.head(), pinned: pinned.head() });
                }
                Err(CallError::Refused(refusal)) if !is_passing(&refusal) => {
                    return Err(self.refused_proof(served, pinned, refusal));
                }
                Err(error) => return Err(error.into()),
            }
        };
        let proof = ConsistencyProof { old: old.size, new: new.size, hashes };
        match proof.verify(&old.root, &new.root) {
            Ok(()) => Ok(()),
            Err(why) => Err(self.not_connected(served, pinned, &proof, why).await),
        }
    }
}

/// Whether a refusal is about the moment, and the same question may be answered later.
fn is_passing(refusal: &Refusal) -> bool {
    use Reason::{DeadlineExceeded, Draining, Gated, NotYetPublished, Overloaded};
    matches!(refusal.reason(), Draining | Overloaded | Gated | NotYetPublished | DeadlineExceeded)
}
