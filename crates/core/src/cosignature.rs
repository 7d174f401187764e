//! Cosignatures (C2SP `tlog-cosignature`, version 1): what a witness says about a checkpoint, and when.
//!
//! A witness's Ed25519 key of type 0x04 signs the time and the whole text of a checkpoint; the signature line carries
//! the time in front of the signature. It does not bind the witness's name, so one key never serves two names. This
//! module also attaches cosignatures to notes. It does not know which witnesses a reader trusts; a policy does.

use std::fmt;
use std::str::FromStr;

use ed25519_dalek::Signer as _;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::environment::UnixMillis;
use crate::key::{KeyError, KeyName, KeyType, VKey, parse_secret, secret_text};
use crate::note::{self, MAX_NOTE_BYTES, MAX_SIGNATURES, NoteError, Parsed, SignatureLine};

/// Bytes of the time in front of the signature: a big-endian `u64`.
const TIME_BYTES: usize = 8;

/// When a cosignature was made: POSIX seconds, at most 2^63 - 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CosignedAt(u64);

impl CosignedAt {
    /// `None` above 2^63 - 1.
    pub const fn new(seconds: u64) -> Option<CosignedAt> {
        if seconds <= i64::MAX as u64 { Some(CosignedAt(seconds)) } else { None }
    }

    /// The second that the time falls in; `None` for the first one of 1970, which means no time at all.
    pub const fn of(time: UnixMillis) -> Option<CosignedAt> {
        match time.0 / 1000 {
            0 => None,
            seconds => Some(CosignedAt(seconds)),
        }
    }

    /// POSIX seconds.
    pub const fn seconds(self) -> u64 {
        self.0
    }
}

impl fmt::Display for CosignedAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Takes the bytes behind the key id apart: the time and the bare signature.
pub(crate) fn split(signature: &[u8]) -> Option<(CosignedAt, &[u8])> {
    let (time, signature) = signature.split_first_chunk::<TIME_BYTES>()?;
    Some((CosignedAt::new(u64::from_be_bytes(*time))?, signature))
}

/// What a witness signs.
pub(crate) fn message(text: &str, time: CosignedAt) -> String {
    format!("cosignature/v1\ntime {time}\n{text}")
}

/// A witness's private key. Zeroised when dropped; neither `Clone` nor printable: [`fmt::Debug`] shows the vkey.
pub struct CosigningKey {
    vkey: VKey,
    key: ed25519_dalek::SigningKey,
}

impl CosigningKey {
    /// A key from 32 bytes of seed, which must be unpredictable.
    pub fn from_seed(name: KeyName, seed: &Zeroizing<[u8; 32]>) -> CosigningKey {
        let key = ed25519_dalek::SigningKey::from_bytes(seed);
        CosigningKey { vkey: VKey::new(name, KeyType::CosignatureV1, key.verifying_key()), key }
    }

    /// The public half.
    pub fn vkey(&self) -> &VKey {
        &self.vkey
    }

    /// The text form, `PRIVATE+KEY+name+hex8(key id)+base64(0x04 || seed)`, for the key file alone.
    pub fn to_text(&self) -> Zeroizing<String> {
        secret_text(&self.vkey, &self.key)
    }

    /// Cosigns any checkpoint text, and asserts by its name that the caller may: nothing was decided and nothing was
    /// persisted. A witness signs through [`crate::progress::Committed::cosign`].
    pub fn cosign_assertion(&self, text: &str, time: CosignedAt) -> SignatureLine {
        let signature = self.key.sign(message(text, time).as_bytes()).to_bytes();
        SignatureLine {
            name: self.vkey.name().as_str().to_owned(),
            key_id: self.vkey.id(),
            signature: [time.0.to_be_bytes().as_slice(), &signature].concat(),
        }
    }
}

impl FromStr for CosigningKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<CosigningKey, KeyError> {
        let (name, seed) = parse_secret(text, KeyType::CosignatureV1)?;
        Ok(CosigningKey::from_seed(name, &seed))
    }
}

impl fmt::Debug for CosigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CosigningKey({})", self.vkey)
    }
}

/// Why a signature line was not attached to a note.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum CosignatureError {
    /// The note itself.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// The key that the line is to be checked with is not a witness's.
    #[error("a cosignature cannot be checked with {0}: configure the witness's vkey")]
    NotAWitness(KeyType),
    /// The line names another key.
    #[error("the signature line is of {found}, not of the witness {expected}: it was not attached")]
    OtherKey {
        /// Name and id in the line.
        found: String,
        /// The witness's name.
        expected: KeyName,
    },
    /// The signature does not fit the text.
    #[error(
        "the cosignature of {0} does not match the checkpoint: it is of another head, or was not made with \
         this witness's key"
    )]
    Bad(KeyName),
    /// The time is 0, which a witness must not answer (C2SP `tlog-witness`).
    #[error("the cosignature of {0} carries no time: the witness is broken")]
    NoTime(KeyName),
    /// No room for another line.
    #[error(
        "the note has {MAX_SIGNATURES} signatures or {MAX_NOTE_BYTES} bytes: no cosignature fits any more"
    )]
    Full,
}

/// Verifies that `line` is `witness`'s cosignature over `text`, and says when it was made.
pub fn verify(text: &str, line: &SignatureLine, witness: &VKey) -> Result<CosignedAt, CosignatureError> {
    if witness.key_type() != KeyType::CosignatureV1 {
        return Err(CosignatureError::NotAWitness(witness.key_type()));
    }
    if !witness.is_named_by(line) {
        let found = format!("{:?} (key {})", line.name, line.key_id);
        return Err(CosignatureError::OtherKey { found, expected: witness.name().clone() });
    }
    let bad = || CosignatureError::Bad(witness.name().clone());
    if !witness.verify(text, &line.signature) {
        return Err(bad());
    }
    match split(&line.signature).ok_or_else(bad)? {
        (CosignedAt(0), _) => Err(CosignatureError::NoTime(witness.name().clone())),
        (time, _) => Ok(time),
    }
}

/// When a signature line claims to have been made. Anybody can claim anything: it means something after [`verify`] alone.
pub fn claimed_time(line: &SignatureLine) -> Option<CosignedAt> {
    split(&line.signature).map(|(time, _)| time)
}

/// Attaches one verified cosignature to a note, whose text and other lines stay as they are. A witness has one line:
/// a newer cosignature takes the place of its older one, and of a line in its name that does not verify. `None` means
/// that the note already carries this cosignature or a newer one.
pub fn add_cosignature(
    note: &str,
    line: &SignatureLine,
    witness: &VKey,
) -> Result<Option<String>, CosignatureError> {
    let parsed = Parsed::parse(note.as_bytes())?;
    let time = verify(parsed.text(), line, witness)?;
    let held = |held: &SignatureLine| verify(parsed.text(), held, witness).ok();
    if parsed.signatures().iter().filter_map(held).any(|held| held >= time) {
        return Ok(None);
    }
    let mut lines: Vec<&SignatureLine> = parsed.signatures().iter().collect();
    match lines.iter().position(|held| witness.is_named_by(held)) {
        Some(first) => {
            lines[first] = line;
            let mut at = 0;
            lines.retain(|held| {
                at += 1;
                at - 1 == first || !witness.is_named_by(held)
            });
        }
        None => lines.push(line),
    }
    let merged = note::encode(parsed.text(), lines.iter().copied());
    if lines.len() > MAX_SIGNATURES || merged.len() > MAX_NOTE_BYTES {
        return Err(CosignatureError::Full);
    }
    Ok(Some(merged))
}
