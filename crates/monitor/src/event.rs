//! What the comparing machine is told and what it asks for: events and effects, as plain data.
//!
//! The loop turns effects into calls and their answers into events; it decides nothing. This module knows no rule.

use bytes::Bytes;
use epigraph_core::{Hash, LeafIndex, TreeHead, TreeSize, UnixMillis};

use crate::finding::{Clear, MAX_SUBJECT_BYTES, Trigger, one_line};

/// A place from which the log is looked at.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Vantage {
    /// What the configuration calls it, at most [`MAX_SUBJECT_BYTES`] without control characters. One name, one vantage
    /// point.
    pub name: String,
    /// What is there.
    pub kind: VantageKind,
}

/// What is at a vantage point.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum VantageKind {
    /// The log, as a reader under one identity sees it. The only kind that proofs and entries are asked of.
    Log,
    /// A witness of the policy, by the name of its key.
    Witness(String),
    /// Another monitor. It may show old heads.
    Monitor,
    /// Files that somebody put there. They may be as old as they like.
    File,
}

/// Why an answer did not come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Why {
    /// Nobody answered, or somebody who is busy or ending: it says nothing about the log, and is tried again.
    Unreachable(String),
    /// The log answered, and it was no. An honest log has no such answer to what the machine asks.
    Refused(String),
}

/// What a full audit found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    /// The entries up to this head do not hash to its root.
    Rewritten {
        /// The signed head.
        head: TreeHead,
        /// The entry, if it could be told which.
        index: Option<LeafIndex>,
        /// What was served and what was signed, in one line.
        detail: String,
    },
    /// An entry breaks a rule for entries.
    Malformed {
        /// The entry.
        index: LeafIndex,
        /// The rule, in one line.
        detail: String,
    },
}

/// What an acknowledged entry's appender claims.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claim {
    /// Who says so: the authenticated identity.
    pub claimant: String,
    /// The index that the log gave the entry.
    pub index: LeafIndex,
    /// The entry's leaf hash.
    pub leaf: Hash,
    /// When it must be published at the latest.
    pub deadline: UnixMillis,
}

/// What the machine is told. `at` is the monitor's clock at that moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A vantage point showed a head: a signed note, verbatim, of which nothing is believed yet.
    Head {
        /// Where.
        vantage: Vantage,
        /// The note.
        note: Bytes,
        /// When.
        at: UnixMillis,
    },
    /// A consistency proof: from the log, in answer to [`Effect::AskProof`]; or made from the log's entries, in answer to
    /// [`Effect::Rehash`].
    Proof {
        /// The size of the older head.
        old: TreeSize,
        /// The size of the newer head.
        new: TreeSize,
        /// The hashes of RFC 9162 section 2.1.4. Where `old` is a power of two the root of the old subtree may stand first,
        /// which the RFC leaves out.
        hashes: Vec<Hash>,
        /// Where `old` is a power of two: hashes of which one may be the root of the old subtree as the newer tree has it,
        /// so that a fork is told from a bad proof. The inclusion proof of leaf `old` in the tree of `new` leaves has it.
        candidates: Vec<Hash>,
        /// Whose answer it is.
        vantage: Vantage,
        /// When.
        at: UnixMillis,
    },
    /// Such a proof did not come.
    NoProof {
        /// The size of the older head.
        old: TreeSize,
        /// The size of the newer head.
        new: TreeSize,
        /// Who was asked.
        vantage: Vantage,
        /// Why not.
        why: Why,
        /// When.
        at: UnixMillis,
    },
    /// All entries up to this head were read under one vantage point and hash to its root.
    Audited {
        /// The head.
        head: TreeHead,
        /// Whose entries.
        vantage: Vantage,
        /// When.
        at: UnixMillis,
    },
    /// An audit found something, and goes on if it can.
    AuditFound {
        /// What.
        found: Found,
        /// Whose entries.
        vantage: Vantage,
        /// When.
        at: UnixMillis,
    },
    /// An audit did not reach its head this time: the entries did not come, or do not lead there. It is tried again, and others
    /// may be asked meanwhile.
    NotAudited {
        /// The head.
        head: TreeHead,
        /// Whose entries.
        vantage: Vantage,
        /// When.
        at: UnixMillis,
    },
    /// A vantage point does not answer.
    Unreachable {
        /// Which.
        vantage: Vantage,
        /// What happened, in one line.
        why: String,
        /// When.
        at: UnixMillis,
    },
    /// A vantage point answers, whatever it says.
    Reached {
        /// Which.
        vantage: Vantage,
        /// When.
        at: UnixMillis,
    },
    /// Somebody claims that the log acknowledged an entry.
    Receipt {
        /// The claim.
        claim: Claim,
        /// When.
        at: UnixMillis,
    },
    /// The log's inclusion proof for a claimed entry, in answer to [`Effect::AskEntry`].
    Inclusion {
        /// The claimed index.
        index: LeafIndex,
        /// The tree's size.
        size: TreeSize,
        /// The hashes of RFC 9162 section 2.1.3.
        hashes: Vec<Hash>,
        /// Whose answer it is.
        vantage: Vantage,
        /// When.
        at: UnixMillis,
    },
    /// Such a proof did not come.
    NoInclusion {
        /// The claimed index.
        index: LeafIndex,
        /// The tree's size.
        size: TreeSize,
        /// Who was asked.
        vantage: Vantage,
        /// Why not.
        why: Why,
        /// When.
        at: UnixMillis,
    },
    /// Time passes. Comes every second or so.
    Tick {
        /// The present.
        at: UnixMillis,
    },
}

impl Vantage {
    /// The vantage point with a name that fits into one line of a file.
    pub(crate) fn cleaned(&self) -> Vantage {
        Vantage { name: one_line(&self.name, MAX_SUBJECT_BYTES), kind: self.kind.clone() }
    }
}

impl Event {
    /// When it happened.
    pub fn at(&self) -> UnixMillis {
        match self {
            Event::Head { at, .. }
            | Event::Proof { at, .. }
            | Event::NoProof { at, .. }
            | Event::Audited { at, .. }
            | Event::AuditFound { at, .. }
            | Event::NotAudited { at, .. }
            | Event::Unreachable { at, .. }
            | Event::Reached { at, .. }
            | Event::Receipt { at, .. }
            | Event::Inclusion { at, .. }
            | Event::NoInclusion { at, .. }
            | Event::Tick { at } => *at,
        }
    }
}

/// What the machine asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Ask the log under this vantage point for a consistency proof. Answered by [`Event::Proof`] or [`Event::NoProof`].
    AskProof {
        /// The older head.
        old: TreeHead,
        /// The newer head.
        new: TreeHead,
        /// Whom.
        vantage: Vantage,
    },
    /// Read all entries up to the newer head under this vantage point, from the first one on, and make the consistency proof
    /// from them, old root first. Answered by [`Event::Proof`] or [`Event::NoProof`].
    Rehash {
        /// The older head.
        old: TreeHead,
        /// The newer head.
        new: TreeHead,
        /// Whose entries.
        vantage: Vantage,
    },
    /// Audit the entries up to this head. Answered by [`Event::Audited`] or [`Event::NotAudited`], in the end; what is found on
    /// the way is told by [`Event::AuditFound`].
    Audit {
        /// The head, which is consistent with all that were asked for before.
        upto: TreeHead,
        /// Whose entries.
        vantage: Vantage,
    },
    /// Ask the log under this vantage point for the inclusion proof of a claimed entry. Answered by [`Event::Inclusion`] or
    /// [`Event::NoInclusion`].
    AskEntry {
        /// The claimed index.
        index: LeafIndex,
        /// Under this head.
        head: TreeHead,
        /// Whom.
        vantage: Vantage,
    },
    /// Something was found.
    Trigger(Trigger),
    /// Something is no longer so.
    Clear(Clear),
    /// The heads have changed: keep them, before anything that follows is done.
    KeepHeads,
}
