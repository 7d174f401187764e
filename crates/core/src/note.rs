//! Signed notes (C2SP `signed-note`): a text, an empty line, and signature lines.
//!
//! Parsing trusts nothing. [`Parsed::verify`] tells which of the given keys signed the text.

use std::fmt::{self, Write as _};

use thiserror::Error;

use crate::base64;
use crate::key::{KeyId, KeyName, VKey};

/// The largest note in bytes: [`MAX_SIGNATURES`] lines with post-quantum signatures and the text fit.
pub const MAX_NOTE_BYTES: usize = 512 * 1024;

/// The most signature lines; a verifier must accept at least 16, Go's accepts 100.
pub const MAX_SIGNATURES: usize = 100;

const LINE_START: &str = "\u{2014} ";

/// A note taken apart. Nothing about it is trusted yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parsed<'a> {
    text: &'a str,
    signatures: Vec<SignatureLine>,
}

/// One signature line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SignatureLine {
    /// The name that the line claims.
    pub name: String,
    /// The key id that the line claims.
    pub key_id: KeyId,
    /// The signature bytes after the key id; their length depends on the key's type.
    pub signature: Vec<u8>,
}

/// Why bytes are not a signed note, or not one that may be believed.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum NoteError {
    /// More than [`MAX_NOTE_BYTES`].
    #[error("a signed note has at most {MAX_NOTE_BYTES} bytes, this one has {0}")]
    TooLong(usize),
    /// Not text.
    #[error("a signed note is UTF-8 text without control characters")]
    NotText,
    /// There is no empty line with signatures behind it.
    #[error("the signed note is cut off: no empty line with signature lines after it")]
    NoSignatures,
    /// More than [`MAX_SIGNATURES`].
    #[error("a signed note has at most {MAX_SIGNATURES} signatures, this one has more")]
    TooManySignatures,
    /// A line behind the empty line is not `— <name> <base64>`.
    #[error("signature line {0} of the note is malformed")]
    MalformedSignature(usize),
    /// A key that is known by name and id, but its signature does not fit the text: the note was changed.
    #[error(
        "the signature of {name} (key {key_id}) does not match the text: the note was changed after signing"
    )]
    BadSignature {
        /// The signer's name.
        name: String,
        /// The signer's key id.
        key_id: KeyId,
    },
}

impl<'a> Parsed<'a> {
    /// Takes a note apart. The text ends at the *last* empty line and keeps its final LF.
    pub fn parse(bytes: &'a [u8]) -> Result<Parsed<'a>, NoteError> {
        if bytes.len() > MAX_NOTE_BYTES {
            return Err(NoteError::TooLong(bytes.len()));
        }
        let note = std::str::from_utf8(bytes).map_err(|_| NoteError::NotText)?;
        if note.bytes().any(|byte| byte < 0x20 && byte != b'\n') {
            return Err(NoteError::NotText);
        }
        let split = note.rfind("\n\n").ok_or(NoteError::NoSignatures)? + 1;
        let (text, lines) = (&note[..split], &note[split + 1..]);
        Ok(Parsed { text, signatures: parse_lines(lines)? })
    }

    /// The text that was signed, with its final LF.
    pub fn text(&self) -> &'a str {
        self.text
    }

    /// All signature lines, trusted or not.
    pub fn signatures(&self) -> &[SignatureLine] {
        &self.signatures
    }

    /// The signature lines that `keys` really made. A line of an unknown key is passed over; a line of a known
    /// one that does not fit the text condemns the note (C2SP `signed-note`). Each key is there once, with its first
    /// line, however often it signed: whoever counts signers can count what comes back.
    pub fn verify<'s>(
        &'s self,
        keys: impl Fn(&str, KeyId) -> Option<&'s VKey>,
    ) -> Result<Vec<(&'s VKey, &'s SignatureLine)>, NoteError> {
        let mut verified: Vec<(&VKey, &SignatureLine)> = Vec::new();
        for line in &self.signatures {
            let Some(key) = keys(&line.name, line.key_id) else { continue };
            if !key.verify(self.text, &line.signature) {
                return Err(NoteError::BadSignature { name: line.name.clone(), key_id: line.key_id });
            }
            if !verified.iter().any(|(other, _)| *other == key) {
                verified.push((key, line));
            }
        }
        Ok(verified)
    }
}

impl SignatureLine {
    fn parse(line: &str) -> Option<SignatureLine> {
        let (name, blob) = line.strip_prefix(LINE_START)?.split_once(' ')?;
        KeyName::new(name).ok()?;
        let blob = base64::decode(blob)?;
        let (key_id, signature) = blob.split_first_chunk::<{ KeyId::LEN }>()?;
        if signature.is_empty() {
            return None;
        }
        Some(SignatureLine {
            name: name.to_owned(),
            key_id: KeyId::from_bytes(*key_id),
            signature: signature.to_vec(),
        })
    }
}

impl fmt::Display for SignatureLine {
    /// The line as it stands in a note, without its LF.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let blob = [self.key_id.as_bytes().as_slice(), &self.signature].concat();
        write!(f, "{LINE_START}{} {}", self.name, base64::encode(&blob))
    }
}

/// Reads signature lines that travel without their text, as a witness answers them: one or more, each ended by LF.
pub fn parse_signatures(bytes: &[u8]) -> Result<Vec<SignatureLine>, NoteError> {
    if bytes.len() > MAX_NOTE_BYTES {
        return Err(NoteError::TooLong(bytes.len()));
    }
    parse_lines(std::str::from_utf8(bytes).map_err(|_| NoteError::NotText)?)
}

fn parse_lines(lines: &str) -> Result<Vec<SignatureLine>, NoteError> {
    let lines = lines.strip_suffix('\n').ok_or(NoteError::NoSignatures)?;
    let mut signatures = Vec::new();
    for (number, line) in lines.split('\n').enumerate() {
        if number == MAX_SIGNATURES {
            return Err(NoteError::TooManySignatures);
        }
        signatures.push(SignatureLine::parse(line).ok_or(NoteError::MalformedSignature(number + 1))?);
    }
    Ok(signatures)
}

/// Puts a note together: the text, which must end in LF, an empty line, and the signature lines.
pub fn encode<'a>(text: &str, signatures: impl IntoIterator<Item = &'a SignatureLine>) -> String {
    let mut note = format!("{text}\n");
    for line in signatures {
        // Writing to a String cannot fail.
        let _ = writeln!(note, "{line}");
    }
    note
}
