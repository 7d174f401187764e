//! Evidence: two statements of one key that cannot both be true, in a file that convinces whoever knows the key.
//!
//! The accused is a log, by its signatures, or a witness, by its cosignatures. Three contradictions count:
//!
//! - **two roots**: two heads of one size with different roots;
//! - **old root**: a consistency proof that leads to the newer head's root, but from another old tree than the older
//!   head's. The root of the old subtree is always carried as the first hash; where the old size is a power of two the
//!   RFC leaves it out, and a fork would look like a proof that merely fails;
//! - **two leaves**: two different leaves proven at one index, each under a signed root.
//!
//! Each needs a collision of SHA-256 if the heads are of one growing tree. A proof that fails is none: anybody can make
//! one. An [`Evidence`] that exists proves something; whether about a key that the reader knows is the reader's to say,
//! in [`verify`]. This module does not know how the heads were found. File: docs/formats/evidence.md.

use std::fmt;

use thiserror::Error;

use crate::checkpoint::{TextError, decode_text};
use crate::hash::Hash;
use crate::key::{KeyType, Origin, VKey};
use crate::note::{self, MAX_NOTE_BYTES, NoteError, Parsed};
use crate::position::{LeafIndex, TreeSize};
use crate::proof::{ConsistencyProof, InclusionProof, MAX_PROOF_HASHES, ProofError};
use crate::tree::TreeHead;

mod drill;
mod file;

pub use drill::{DRILL_ORIGIN, Fork};
pub use file::FileError;

/// The largest evidence file in bytes: two notes, and two proofs with room to spare.
pub const MAX_EVIDENCE_BYTES: usize = 2 * MAX_NOTE_BYTES + 16 * 1024;

/// Two statements of one key that cannot both be true. Checked when it was made, whether from notes or from a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Evidence {
    accused: VKey,
    contradiction: Contradiction,
    first: Statement,
    second: Statement,
}

/// In what the two statements contradict each other.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Contradiction {
    TwoRoots,
    /// The hashes of the consistency proof, the old subtree's root first.
    OldRoot(Vec<Hash>),
    /// For each head the leaf hash and the hashes of its inclusion proof.
    TwoLeaves(LeafIndex, [(Hash, Vec<Hash>); 2]),
}

/// A head that the accused signed.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Statement {
    origin: Origin,
    head: TreeHead,
    /// Its text and one signature line, the accused's.
    note: String,
}

/// Why notes and proofs are no evidence. Nothing is shown about anybody.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum NoEvidence {
    /// A note cannot be read, or the accused's signature in it is bad.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// The text of a note is not a checkpoint's.
    #[error("a note is not a checkpoint: {0}")]
    Text(#[from] TextError),
    /// A note does not carry the accused's signature.
    #[error("no signature of {0} is in one of the two notes")]
    NotSigned(String),
    /// A log's key signs the log of its own name only (C2SP `tlog-policy`).
    #[error("the key {key} is not of the log {origin}: it proves nothing about that log")]
    OtherLog {
        /// The key's name.
        key: String,
        /// The log of the notes.
        origin: Origin,
    },
    /// The heads are of two logs.
    #[error("the two heads are of different logs, {0} and {1}: they do not contradict each other")]
    TwoLogs(Origin, Origin),
    /// One head, signed twice.
    #[error("the two heads are the same: to sign one head again is allowed")]
    SameHead,
    /// The heads have two sizes, and no proof connects them.
    #[error("the two heads differ in size, and without a proof that connects them they may both be true")]
    NoProof,
    /// The heads have one size, or the older one is empty; a proof has nothing to say about them.
    #[error("a consistency proof is evidence only from an older head that is not empty to a larger one")]
    NotGrowing,
    /// The proof fails. Anybody can make such a proof.
    #[error("the proof does not hold ({0}): a proof that fails says nothing about the heads")]
    Proof(#[from] ProofError),
    /// The proof holds, and the heads are of one tree.
    #[error("the proof shows that the older head is the beginning of the newer one: nothing is wrong")]
    Consistent,
    /// Both proofs lead to one leaf.
    #[error("the two leaves are the same: nothing is wrong")]
    SameLeaf,
}

/// Why a file convinces this reader of nothing.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum NotProven {
    /// The file cannot be read, or what it says does not hold.
    #[error("the evidence proves nothing: {0}")]
    File(#[from] FileError),
    /// It is about a key that the reader did not name.
    #[error(
        "the evidence is about the key {0}, which is none of those given: if that key is known from elsewhere to be \
         the log's or witness's, name it"
    )]
    UnknownKey(Box<VKey>),
}

/// Reads an evidence file and judges it for a reader who knows `keys`. Needs nothing else.
pub fn verify(bytes: &[u8], keys: &[VKey]) -> Result<Evidence, NotProven> {
    let evidence = Evidence::decode(bytes)?;
    if keys.contains(&evidence.accused) {
        Ok(evidence)
    } else {
        Err(NotProven::UnknownKey(Box::new(evidence.accused)))
    }
}

/// Whether bytes look like an evidence file, by their first line.
pub fn recognise(bytes: &[u8]) -> bool {
    bytes.starts_with(file::HEADER.as_bytes())
}

impl Evidence {
    /// From two notes of one size with different roots that the accused signed, in either order.
    pub fn two_roots(accused: &VKey, one: &[u8], other: &[u8]) -> Result<Evidence, NoEvidence> {
        let (mut first, mut second) = (Statement::open(one, accused)?, Statement::open(other, accused)?);
        same_log(&first, &second)?;
        match (first.head.size == second.head.size, first.head.root == second.head.root) {
            (false, _) => return Err(NoEvidence::NoProof),
            (true, true) => return Err(NoEvidence::SameHead),
            (true, false) => {}
        }
        if second.head.root < first.head.root {
            std::mem::swap(&mut first, &mut second);
        }
        Ok(Evidence { accused: accused.clone(), contradiction: Contradiction::TwoRoots, first, second })
    }

    /// From an older and a newer note that the accused signed, and the newer tree's consistency proof with the old
    /// subtree's root carried first ([`ConsistencyProof::carrying`]).
    pub fn old_root(
        accused: &VKey,
        older: &[u8],
        newer: &[u8],
        carried: Vec<Hash>,
    ) -> Result<Evidence, NoEvidence> {
        let (first, second) = (Statement::open(older, accused)?, Statement::open(newer, accused)?);
        same_log(&first, &second)?;
        let (old, new) = (first.head.size, second.head.size);
        if old == TreeSize::ZERO || old >= new {
            return Err(NoEvidence::NotGrowing);
        }
        let (old_root, new_root) = carried_roots(old, new, &carried)?;
        if new_root != second.head.root {
            return Err(ProofError::RootMismatch.into());
        }
        if old_root == first.head.root {
            return Err(NoEvidence::Consistent);
        }
        Ok(Evidence {
            accused: accused.clone(),
            contradiction: Contradiction::OldRoot(carried),
            first,
            second,
        })
    }

    /// From two notes that the accused signed, and for each the leaf hash and the inclusion proof's hashes at one
    /// index, in either order.
    pub fn two_leaves(
        accused: &VKey,
        index: LeafIndex,
        one: (&[u8], Hash, Vec<Hash>),
        other: (&[u8], Hash, Vec<Hash>),
    ) -> Result<Evidence, NoEvidence> {
        let (one, other) = if other.1 < one.1 { (other, one) } else { (one, other) };
        let (first, second) = (Statement::open(one.0, accused)?, Statement::open(other.0, accused)?);
        same_log(&first, &second)?;
        if one.1 == other.1 {
            return Err(NoEvidence::SameLeaf);
        }
        let proven = |statement: &Statement, leaf: Hash, hashes: Vec<Hash>| {
            let TreeHead { size, root } = statement.head;
            let proof = InclusionProof { index, size, hashes };
            proof.verify(&leaf, &root).map(|()| (leaf, proof.hashes))
        };
        let leaves = [proven(&first, one.1, one.2)?, proven(&second, other.1, other.2)?];
        let contradiction = Contradiction::TwoLeaves(index, leaves);
        Ok(Evidence { accused: accused.clone(), contradiction, first, second })
    }

    /// The key that made both statements.
    pub fn accused(&self) -> &VKey {
        &self.accused
    }

    /// The log that the heads are of.
    pub fn origin(&self) -> &Origin {
        &self.first.origin
    }

    /// The two heads that cannot be of one growing tree.
    pub fn heads(&self) -> [TreeHead; 2] {
        [self.first.head, self.second.head]
    }

    /// The two notes, with the accused's signature and no other.
    pub fn notes(&self) -> [&str; 2] {
        [&self.first.note, &self.second.note]
    }
}

impl fmt::Display for Evidence {
    /// The verdict in plain words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let origin = self.origin();
        match self.accused.key_type() {
            KeyType::Ed25519 => write!(f, "the log {origin} signed two histories: ")?,
            KeyType::CosignatureV1 => {
                let witness = self.accused.name();
                write!(f, "the witness {witness} cosigned two histories of the log {origin}: ")?;
            }
        }
        let [first, second] = self.heads();
        match &self.contradiction {
            Contradiction::TwoRoots => {
                write!(
                    f,
                    "at size {} both the root {} and the root {}",
                    first.size, first.root, second.root
                )?;
            }
            Contradiction::OldRoot(_) => write!(
                f,
                "the head of size {} with root {} is not the beginning of the head of size {} with root {}, as a \
                 proof under the second one shows",
                first.size, first.root, second.size, second.root
            )?,
            Contradiction::TwoLeaves(index, [(one, _), (other, _)]) => write!(
                f,
                "entry {index} has the leaf hash {one} under the head of size {} with root {}, and {other} under the \
                 head of size {} with root {}",
                first.size, first.root, second.size, second.root
            )?,
        }
        write!(f, ". Only the holder of the private key of {} can have made both.", self.accused)
    }
}

impl Statement {
    /// Keeps of a note what the accused said in it.
    fn open(bytes: &[u8], accused: &VKey) -> Result<Statement, NoEvidence> {
        let parsed = Parsed::parse(bytes)?;
        let (origin, head) = decode_text(parsed.text())?;
        let key = accused.name().as_str();
        if accused.key_type() == KeyType::Ed25519 && key != origin.as_str() {
            return Err(NoEvidence::OtherLog { key: key.to_owned(), origin });
        }
        let find = |name: &str, id| (name == key && id == accused.id()).then_some(accused);
        let signatures = parsed.verify(find)?;
        let Some((_, line)) = signatures.first() else {
            return Err(NoEvidence::NotSigned(accused.to_string()));
        };
        Ok(Statement { note: note::encode(parsed.text(), [*line]), origin, head })
    }
}

fn same_log(first: &Statement, second: &Statement) -> Result<(), NoEvidence> {
    if first.origin == second.origin {
        return Ok(());
    }
    Err(NoEvidence::TwoLogs(first.origin.clone(), second.origin.clone()))
}

/// The roots of both trees that a consistency proof leads to, the old subtree's root carried first.
fn carried_roots(old: TreeSize, new: TreeSize, carried: &[Hash]) -> Result<(Hash, Hash), ProofError> {
    let (first, rest) = carried.split_first().ok_or(ProofError::WrongLength)?;
    let hashes = if old.get().is_power_of_two() { rest } else { carried };
    if hashes.len() > MAX_PROOF_HASHES {
        return Err(ProofError::WrongLength);
    }
    ConsistencyProof { old, new, hashes: hashes.to_vec() }.roots(first, &Hash::EMPTY_ROOT)
}
