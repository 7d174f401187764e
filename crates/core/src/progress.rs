//! The signing decision: may a key that signed one head sign another?
//!
//! [`decide`] is the only place where that is answered, for the log's signer and for every witness. Its `Step` can
//! be signed only after [`commit`] made it durable, so "persist before signing" is a fact of the types. Nothing
//! here reads or writes a file; the head store does, through [`Persist`].

use thiserror::Error;

use crate::checkpoint::{decode_text, encode_text};
use crate::cosignature::{CosignedAt, CosigningKey};
use crate::environment::UnixMillis;
use crate::hash::Hash;
use crate::key::{Origin, SigningKey};
use crate::note;
use crate::position::TreeSize;
use crate::proof::{ConsistencyProof, ProofError};
use crate::tree::TreeHead;

/// The newest head that a key is bound to for one log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Held {
    /// The head.
    pub head: TreeHead,
    /// When it was decided; never falls.
    pub time: UnixMillis,
    /// The sequencer term under which it was decided; a lower one is fenced off.
    pub term: u64,
    /// The head as the log signed it, if it was signed before it was held: a witness keeps it. Empty otherwise.
    pub note: Vec<u8>,
}

impl Held {
    /// What a fresh key holds: the empty tree.
    pub const EMPTY: Held = Held { head: TreeHead::EMPTY, time: UnixMillis(0), term: 0, note: Vec::new() };
}

/// A head that may be signed once it is durable. Only [`decide`] makes one:
///
/// ```compile_fail,E0451
/// use epigraph_core::progress::{Held, Step};
/// let origin = epigraph_core::Origin::new("log.example").unwrap();
/// let undecided = Step { origin, held: Held::EMPTY, next: Held::EMPTY };
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    origin: Origin,
    held: Held,
    next: Held,
}

impl Step {
    /// The log.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// What was held when it was decided: the store must still hold exactly this.
    pub fn held(&self) -> &Held {
        &self.held
    }

    /// What is to be held from now on.
    pub fn next(&self) -> &Held {
        &self.next
    }
}

/// What [`decide`] answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decision {
    /// The proposed head extends the held one, or repeats it: persist, then sign.
    Step(Step),
    /// The proposer starts from another size than the one that is held.
    Stale(TreeHead),
    /// Two different trees: the proposed head does not extend the held one, and that is certain. If both heads are
    /// signed by the log, they are evidence against it.
    Conflict(Conflict),
    /// Nothing is shown about the log; anybody can send this.
    Reject(Reject),
}

/// Two heads that cannot be of one growing tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error(
    "two histories: the held head has {} entries and root {}, the proposed one {} entries and root {}, and the second \
     does not extend the first", held.size, held.root, proposed.size, proposed.root
)]
pub struct Conflict {
    /// The head that is held.
    pub held: TreeHead,
    /// The head that was proposed.
    pub proposed: TreeHead,
}

/// Why a proposal was turned down without saying anything about the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Reject {
    /// The old size is larger than the new one.
    #[error("the old size {old} is larger than the proposed size {new}")]
    OldBeyondNew {
        /// The old size.
        old: TreeSize,
        /// The proposed size.
        new: TreeSize,
    },
    /// Size 0 has exactly one root.
    #[error("the proposed head is of the empty tree but its root is not the empty tree's")]
    EmptyRoot,
    /// The consistency proof does not reach the proposed root.
    #[error("the consistency proof does not hold: {0}")]
    Proof(#[from] ProofError),
}

/// A head that somebody wants signed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proposal {
    /// The size that the proposer believes is held.
    pub old_size: TreeSize,
    /// The proposed head.
    pub head: TreeHead,
    /// The proof of RFC 9162 section 2.1.4 from `old_size`; empty where that is 0 or the proposed size.
    pub proof: Vec<Hash>,
    /// The head as the log signed it; empty when it is the log's own key that is asked.
    pub note: Vec<u8>,
}

/// Decides whether a key that is bound to `held` may sign the proposed head.
pub fn decide(origin: &Origin, held: &Held, proposal: Proposal, now: UnixMillis) -> Decision {
    let Proposal { old_size, head: proposed, proof, note } = proposal;
    let conflict = Decision::Conflict(Conflict { held: held.head, proposed });
    if proposed.size == TreeSize::ZERO && proposed.root != Hash::EMPTY_ROOT {
        return Decision::Reject(Reject::EmptyRoot);
    }
    // One size with two roots is certain whatever the proposer believes is held.
    if proposed.size == held.head.size && proposed.root != held.head.root {
        return conflict;
    }
    if old_size > proposed.size {
        return Decision::Reject(Reject::OldBeyondNew { old: old_size, new: proposed.size });
    }
    if old_size != held.head.size {
        return Decision::Stale(held.head);
    }
    let proof = ConsistencyProof { old: old_size, new: proposed.size, hashes: proof };
    match proof.roots(&held.head.root, &proposed.root) {
        Err(error) => Decision::Reject(error.into()),
        Ok((_, new)) if new != proposed.root => Decision::Reject(ProofError::RootMismatch.into()),
        // The proof does lead to the proposed root, but from another old tree than the held one.
        Ok((old, _)) if old != held.head.root => conflict,
        Ok(_) => {
            // A clock that was set back does not move the held time back.
            let next = Held { head: proposed, time: now.max(held.time), term: held.term, note };
            Decision::Step(Step { origin: origin.clone(), held: held.clone(), next })
        }
    }
}

/// A store of held heads, as [`commit`] needs it.
pub trait Persist {
    /// Why a step could not be made durable.
    type Error;

    /// For each step, compares what is stored with [`Step::held`] and replaces it by [`Step::next`]; all steps under
    /// one sync. Returns `Ok` only when every one of them is durable.
    fn persist(&mut self, steps: &[Step]) -> Result<(), Self::Error>;
}

/// A step that is durable. Only [`commit`] makes one, and [`Committed::sign`] or [`Committed::cosign`] uses it up:
///
/// ```compile_fail,E0603
/// fn skip_the_disk(step: epigraph_core::progress::Step) -> epigraph_core::progress::Committed {
///     epigraph_core::progress::Committed(step)
/// }
/// ```
///
/// ```compile_fail,E0382
/// # use epigraph_core::{SigningKey, progress::Committed};
/// fn sign_twice(committed: Committed, key: &SigningKey) {
///     let _ = committed.sign(key);
///     let _ = committed.sign(key);
/// }
/// ```
#[derive(Debug)]
pub struct Committed(Step);

/// Makes the steps durable, all under one sync.
pub fn commit<P: Persist>(steps: Vec<Step>, store: &mut P) -> Result<Vec<Committed>, P::Error> {
    store.persist(&steps)?;
    Ok(steps.into_iter().map(Committed).collect())
}

/// Why a durable head was not cosigned.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum CosignError {
    /// What is held beside the head is not a note of it.
    #[error(
        "the note that is held for {origin} is not that of the head to be cosigned: only a head that was taken \
         from a log-signed note can be cosigned"
    )]
    OtherNote {
        /// The head's log.
        origin: Origin,
    },
    /// A cosignature needs a time, and 0 is none (C2SP `tlog-witness`).
    #[error("the head of {origin} was decided before 1970-01-01T00:00:01Z: set the clock")]
    NoTime {
        /// The head's log.
        origin: Origin,
    },
}

/// The key is of another log.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("the signing key is named {key}, but the head is of the log {origin}")]
pub struct WrongKey {
    /// The key's name.
    pub key: String,
    /// The head's log.
    pub origin: Origin,
}

impl Committed {
    /// The head.
    pub fn head(&self) -> TreeHead {
        self.0.next.head
    }

    /// Signs the head as the log: the checkpoint as a signed note.
    pub fn sign(self, key: &SigningKey) -> Result<String, WrongKey> {
        let Committed(Step { origin, next, .. }) = self;
        let name = key.vkey().name().as_str();
        if name != origin.as_str() {
            return Err(WrongKey { key: name.to_owned(), origin });
        }
        let text = encode_text(&origin, &next.head);
        let line = key.sign_assertion(&text);
        Ok(note::encode(&text, [&line]))
    }

    /// Cosigns the head as a witness, at the time of the decision: the signature line for the log's note. What is
    /// signed is the text of [`Held::note`], after checking that it says this head of this log.
    pub fn cosign(self, key: &CosigningKey) -> Result<note::SignatureLine, CosignError> {
        let Committed(Step { origin, next, .. }) = self;
        let parsed = note::Parsed::parse(&next.note).ok();
        let text = parsed
            .as_ref()
            .map(note::Parsed::text)
            .filter(|text| decode_text(text).is_ok_and(|(named, head)| named == origin && head == next.head));
        let Some(text) = text else { return Err(CosignError::OtherNote { origin }) };
        match CosignedAt::of(next.time) {
            Some(time) => Ok(key.cosign_assertion(text, time)),
            None => Err(CosignError::NoTime { origin }),
        }
    }
}
