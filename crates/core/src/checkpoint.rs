//! Checkpoints (C2SP `tlog-checkpoint`): the text of a tree head, and the one door from bytes to trust.

use std::ops::Deref;

use thiserror::Error;

use crate::hash::Hash;
use crate::key::{KeyType, NameError, Origin, VKey};
use crate::note::{self, NoteError, Parsed, SignatureLine};
use crate::policy::Policy;
use crate::policy::explain::{Age, Explanation, is_log_of};
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
    /// The log signed, but not enough witnesses did.
    #[error("{0}: get a checkpoint that more witnesses cosigned")]
    Quorum(Box<Explanation>),
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
    /// the checkpoint carries, signed it, and so did a quorum of witnesses.
    pub fn open(bytes: &[u8], policy: &Policy) -> Result<Verified<Checkpoint>, CheckpointError> {
        Checkpoint::open_at(bytes, policy, None)
    }

    /// Like [`Checkpoint::open`], where only cosignatures of this age count towards the quorum.
    pub fn open_within(
        bytes: &[u8],
        policy: &Policy,
        age: Age,
    ) -> Result<Verified<Checkpoint>, CheckpointError> {
        Checkpoint::open_at(bytes, policy, Some(age))
    }

    fn open_at(
        bytes: &[u8],
        policy: &Policy,
        age: Option<Age>,
    ) -> Result<Verified<Checkpoint>, CheckpointError> {
        let (parsed, origin, head) = read(bytes, policy)?;
        let explanation = Explanation::new(&parsed, origin, head, policy, age);
        explanation.verdict()?;
        let mut of_log: Vec<&SignatureLine> = Vec::new();
        for line in parsed.signatures() {
            let repeated = of_log.iter().any(|kept| kept.name == line.name && kept.key_id == line.key_id);
            if !repeated && explanation.is_log_signature(line) {
                of_log.push(line);
            }
        }
        let log_signed = note::encode(parsed.text(), of_log);
        let Explanation { origin, head, .. } = explanation;
        Ok(Verified(Checkpoint { head, note: bytes.to_vec(), log_signed, origin }))
    }

    /// Parses a note and looks at the log's own signature alone: the head is the log's, but it is not published.
    pub fn open_log_signed(bytes: &[u8], policy: &Policy) -> Result<LogSigned, CheckpointError> {
        let (parsed, origin, head) = read(bytes, policy)?;
        let keys = policy.logs().iter().filter(|log| is_log_of(log, &origin)).collect();
        LogSigned::signed_by(&parsed, origin, head, keys)
    }

    /// Says what the policy makes of a note, satisfied or not. Fails only if the note cannot be read, or is of a log
    /// that the policy does not trust.
    pub fn explain(bytes: &[u8], policy: &Policy, age: Option<Age>) -> Result<Explanation, CheckpointError> {
        let (parsed, origin, head) = read(bytes, policy)?;
        Ok(Explanation::new(&parsed, origin, head, policy, age))
    }

    /// A log-signed head, and its note with more lines.
    pub(crate) fn of_parts(signed: &LogSigned, note: &[u8]) -> Checkpoint {
        let LogSigned { origin, head, note: log_signed, .. } = signed.clone();
        Checkpoint { origin, head, note: note.to_vec(), log_signed }
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

/// Takes a note apart, and refuses another log's checkpoint before the rest is looked at, so that it is called by its
/// name.
fn read<'a>(bytes: &'a [u8], policy: &Policy) -> Result<(Parsed<'a>, Origin, TreeHead), CheckpointError> {
    let parsed = Parsed::parse(bytes)?;
    let trusted: Vec<_> = policy.logs().iter().map(|log| log.name().as_str()).collect();
    let (origin, head) = read_of(&parsed, &trusted)?;
    Ok((parsed, origin, head))
}

fn read_of(parsed: &Parsed<'_>, trusted: &[&str]) -> Result<(Origin, TreeHead), CheckpointError> {
    let found = parsed.text().split('\n').next().unwrap_or_default();
    if !trusted.contains(&found) {
        return Err(CheckpointError::UnknownOrigin {
            found: found.chars().take(crate::key::MAX_NAME_BYTES).collect(),
            trusted: trusted.join(", "),
        });
    }
    Ok(decode_text(parsed.text())?)
}

/// A head with the log's own signature and no more: what a witness is asked to cosign, and what the log has pending
/// until the quorum is met. Never a [`Verified`] checkpoint: nothing that a reader is shown is made from it.
///
/// ```compile_fail,E0308
/// use epigraph_core::{Checkpoint, Policy, Verified, checkpoint::LogSigned};
/// fn publish(_: Verified<Checkpoint>) {}
/// fn below_quorum(pending: LogSigned) { publish(pending) }
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogSigned {
    origin: Origin,
    head: TreeHead,
    note: String,
    signers: Vec<VKey>,
}

impl LogSigned {
    /// Opens a note of one log whose origin and keys were configured apart, as foreign logs need it: there the key's
    /// name is not always the origin.
    pub fn open(bytes: &[u8], expected: &Origin, keys: &[VKey]) -> Result<LogSigned, CheckpointError> {
        let parsed = Parsed::parse(bytes)?;
        let (origin, head) = read_of(&parsed, &[expected.as_str()])?;
        let keys = keys.iter().filter(|key| key.key_type() == KeyType::Ed25519).collect();
        LogSigned::signed_by(&parsed, origin, head, keys)
    }

    fn signed_by(
        parsed: &Parsed<'_>,
        origin: Origin,
        head: TreeHead,
        keys: Vec<&VKey>,
    ) -> Result<LogSigned, CheckpointError> {
        let find =
            |name: &str, id| keys.iter().copied().find(|key| key.name().as_str() == name && key.id() == id);
        let signatures = parsed.verify(find)?;
        if signatures.is_empty() {
            return Err(CheckpointError::NotSigned(origin));
        }
        let note = note::encode(parsed.text(), signatures.iter().map(|(_, line)| *line));
        let signers = signatures.iter().map(|(key, _)| (*key).clone()).collect();
        Ok(LogSigned { origin, head, note, signers })
    }

    /// The log that it is of.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Its size and root.
    pub fn head(&self) -> TreeHead {
        self.head
    }

    /// The text with the log signatures that were verified, and no other line.
    pub fn note(&self) -> &str {
        &self.note
    }

    /// The keys that made them: one at least.
    pub fn signers(&self) -> &[VKey] {
        &self.signers
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
