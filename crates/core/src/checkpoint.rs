//! Checkpoints (C2SP `tlog-checkpoint`): the text of a tree head, and the one door from bytes to trust.

use std::ops::Deref;

use thiserror::Error;

use crate::hash::Hash;
use crate::key::{NameError, Origin};
use crate::note::{self, NoteError, Parsed};
use crate::policy::Policy;
use crate::position::TreeSize;
use crate::tree::TreeHead;
use crate::{base64, decimal};

/// The most extension lines that are read. Epigraph emits none.
const MAX_EXTENSIONS: usize = 16;

/// A value that was checked against keys which the reader chose. Only this crate makes one:
///
/// ```compile_fail,E0603
/// let forged = epigraph_core::Verified("a checkpoint");
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verified<T>(pub(crate) T);

impl<T> Deref for Verified<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// A tree head and the signed note that it was read from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Checkpoint {
    origin: Origin,
    head: TreeHead,
    note: Vec<u8>,
    log_signed: String,
}

/// Why a note is not a checkpoint that satisfies the policy.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum CheckpointError {
    /// The note itself.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// The text is not a checkpoint.
    #[error("the note is not a checkpoint: {0}")]
    Text(#[from] TextError),
    /// The policy names no log of this origin.
    #[error("the checkpoint is of the log {found:?}; the policy trusts {trusted}")]
    UnknownOrigin {
        /// The origin in the checkpoint.
        found: String,
        /// The origins that the policy trusts, separated by commas.
        trusted: String,
    },
    /// The log's own signature is missing.
    #[error("the checkpoint says it is of the log {0}, but no key that the policy trusts for it signed it")]
    NotSigned(Origin),
}

/// Why a text is not that of a checkpoint.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum TextError {
    /// Lines are missing, or the last one does not end in LF.
    #[error("it needs three lines: origin, tree size, root hash")]
    TooShort,
    /// The first line.
    #[error("its origin line: {0}")]
    Origin(#[from] NameError),
    /// The second line.
    #[error("its size line is not a decimal number from 0 to {} without leading zeros", TreeSize::MAX)]
    Size,
    /// The third line.
    #[error("its root line is not the base64 of 32 bytes")]
    Root,
    /// Lines four and up.
    #[error("it has an empty extension line, or more than {MAX_EXTENSIONS}")]
    Extension,
    /// Size 0 has one root only.
    #[error("it claims a root for the empty tree that is not the empty tree's")]
    EmptyRoot,
}

impl Checkpoint {
    /// Parses a note and believes it only if the policy is satisfied: a log that it lists, under the name that
    /// the checkpoint carries, signed it.
    pub fn open(bytes: &[u8], policy: &Policy) -> Result<Verified<Checkpoint>, CheckpointError> {
        let parsed = Parsed::parse(bytes)?;
        // The origin is looked at before the rest, so that another log's checkpoint is called by its name.
        let found = parsed.text().split('\n').next().unwrap_or_default();
        if !policy.logs().iter().any(|log| log.name().as_str() == found) {
            let trusted: Vec<_> = policy.logs().iter().map(|log| log.name().as_str()).collect();
            return Err(CheckpointError::UnknownOrigin {
                found: found.chars().take(crate::key::MAX_NAME_BYTES).collect(),
                trusted: trusted.join(", "),
            });
        }
        let (origin, head) = decode_text(parsed.text())?;
        let of_log = |name: &str, id| {
            let named = name == origin.as_str();
            policy.logs().iter().find(|log| named && log.name().as_str() == name && log.id() == id)
        };
        let signatures = parsed.verify(of_log)?;
        if signatures.is_empty() {
            return Err(CheckpointError::NotSigned(origin));
        }
        let log_signed = note::encode(parsed.text(), signatures.iter().map(|(_, line)| *line));
        Ok(Verified(Checkpoint { head, note: bytes.to_vec(), log_signed, origin }))
    }

    /// The log that it is of.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Its size and root.
    pub fn head(&self) -> TreeHead {
        self.head
    }

    /// The signed note, as it was read.
    pub fn note(&self) -> &[u8] {
        &self.note
    }

    /// The text with the log signatures that were verified, and no other line: what to keep or pass on.
    pub fn log_signed(&self) -> &str {
        &self.log_signed
    }
}

/// The text of a checkpoint without extension lines: what a log signs.
pub fn encode_text(origin: &Origin, head: &TreeHead) -> String {
    format!("{origin}\n{}\n{}\n", head.size, base64::encode(head.root.as_bytes()))
}

/// Reads a checkpoint's text. Extension lines are allowed and ignored.
pub fn decode_text(text: &str) -> Result<(Origin, TreeHead), TextError> {
    let mut lines = text.strip_suffix('\n').ok_or(TextError::TooShort)?.split('\n');
    let mut line = || lines.next().ok_or(TextError::TooShort);
    let (origin, size, root) = (line()?, line()?, line()?);
    let origin = Origin::new(origin)?;
    let size = decimal::parse(size).and_then(TreeSize::new).ok_or(TextError::Size)?;
    let root = base64::decode_hash(root).ok_or(TextError::Root)?;
    let extensions: Vec<_> = lines.take(MAX_EXTENSIONS + 1).collect();
    if extensions.len() > MAX_EXTENSIONS || extensions.contains(&"") {
        return Err(TextError::Extension);
    }
    if size == TreeSize::ZERO && root != Hash::EMPTY_ROOT {
        return Err(TextError::EmptyRoot);
    }
    Ok((origin, TreeHead { size, root }))
}
