//! Names and keys in the text forms of C2SP `signed-note`: origins, verifier keys and signing keys.
//!
//! Two types so far, both Ed25519: 0x01, with which a log signs its checkpoints, and 0x04, with which a witness
//! cosigns them. One key never serves two types. Nothing outside this module and [`crate::cosignature`] may assume how
//! long a key or a signature is.

use std::fmt;
use std::str::FromStr;

use ed25519_dalek::Signer as _;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::hash::{Hash, sha256};
use crate::{base64, cosignature, note};

/// The longest key name or origin in bytes: C2SP `tlog-cosignature` gives its length one byte.
pub const MAX_NAME_BYTES: usize = 255;

/// What a key signs with, and over which bytes (the signature types of C2SP `signed-note`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum KeyType {
    /// 0x01, Ed25519 over the note's text: a log's key.
    Ed25519,
    /// 0x04, Ed25519 over the text and a time (C2SP `tlog-cosignature`): a witness's key.
    CosignatureV1,
}

impl KeyType {
    /// The byte in front of the key in its text form.
    pub const fn byte(self) -> u8 {
        match self {
            KeyType::Ed25519 => 0x01,
            KeyType::CosignatureV1 => 0x04,
        }
    }

    fn of_byte(byte: u8) -> Option<KeyType> {
        [KeyType::Ed25519, KeyType::CosignatureV1].into_iter().find(|kind| kind.byte() == byte)
    }
}

impl fmt::Display for KeyType {
    /// As in "a log's key (type 0x01)".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let owner = match self {
            KeyType::Ed25519 => "log",
            KeyType::CosignatureV1 => "witness",
        };
        write!(f, "a {owner}'s key (type 0x{:02x})", self.byte())
    }
}

pub(crate) const PRIVATE_PREFIX: &str = "PRIVATE+KEY+";

/// The name of a log: the first line of its checkpoints (C2SP `tlog-checkpoint`).
///
/// 1 to 255 bytes without control characters. Foreign logs have spaces in it (`go.sum database tree`); a log of
/// ours is named like its key, so it follows the stricter rules of [`KeyName`].
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin(String);

/// The name of a key (C2SP `signed-note`): an [`Origin`] without white space and without `+`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyName(String);

/// Why a text is not an [`Origin`] or a [`KeyName`].
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum NameError {
    /// No characters at all.
    #[error("a name cannot be empty")]
    Empty,
    /// More than [`MAX_NAME_BYTES`].
    #[error("a name has at most {MAX_NAME_BYTES} bytes, this one has {0}")]
    TooLong(usize),
    /// A character that a checkpoint or a signature line could not carry.
    #[error("a name cannot contain {0:?}")]
    Forbidden(char),
}

impl Origin {
    /// Checks the rules and takes the name.
    pub fn new(name: impl Into<String>) -> Result<Origin, NameError> {
        checked(name.into(), char::is_control).map(Origin)
    }

    /// The name as it stands in the checkpoint.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// SHA-256 of the name: how directories and storage slots refer to the log.
    pub fn hash(&self) -> Hash {
        sha256(self.0.as_bytes())
    }
}

impl KeyName {
    /// Checks the rules and takes the name.
    pub fn new(name: impl Into<String>) -> Result<KeyName, NameError> {
        checked(name.into(), |c| c.is_whitespace() || c.is_control() || c == '+').map(KeyName)
    }

    /// The name as it stands in signature lines.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The origin of the log that signs with a key of this name (C2SP `tlog-policy`).
    pub fn to_origin(&self) -> Origin {
        Origin(self.0.clone())
    }
}

fn checked(name: String, forbidden: impl Fn(char) -> bool) -> Result<String, NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > MAX_NAME_BYTES {
        return Err(NameError::TooLong(name.len()));
    }
    match name.chars().find(|c| forbidden(*c)) {
        Some(found) => Err(NameError::Forbidden(found)),
        None => Ok(name),
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl FromStr for KeyName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<KeyName, NameError> {
        KeyName::new(name)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl FromStr for Origin {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Origin, NameError> {
        Origin::new(name)
    }
}

/// The short hash that names a key in a signature line: the first four bytes of
/// `SHA-256(name || 0x0A || type || public key)` (C2SP `signed-note`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId([u8; KeyId::LEN]);

impl KeyId {
    /// Length in bytes.
    pub const LEN: usize = 4;

    /// Takes the bytes as they stand in a signature line.
    pub const fn from_bytes(bytes: [u8; KeyId::LEN]) -> KeyId {
        KeyId(bytes)
    }

    /// The bytes as they stand in a signature line.
    pub const fn as_bytes(&self) -> &[u8; KeyId::LEN] {
        &self.0
    }

    fn compute(name: &str, typed_key: &[u8]) -> KeyId {
        let digest = sha256(&[name.as_bytes(), b"\n", typed_key].concat());
        let [a, b, c, d, ..] = *digest.as_bytes();
        KeyId([a, b, c, d])
    }

    fn parse(hex: &str) -> Option<KeyId> {
        let canonical =
            hex.len() == 8 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if canonical { Some(KeyId(u32::from_str_radix(hex, 16).ok()?.to_be_bytes())) } else { None }
    }
}

impl fmt::Display for KeyId {
    /// Eight lower-case hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", u32::from_be_bytes(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not a key. Never quotes key material.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum KeyError {
    /// The fields are not there.
    #[error("not a {expected}")]
    Shape {
        /// The form that was expected.
        expected: &'static str,
    },
    /// The name part.
    #[error("the key's name is not valid: {0}")]
    Name(#[from] NameError),
    /// The written key id is not that of the name and key beside it: the text was edited or damaged.
    #[error("the key id {written} is not that of this name and key ({computed}): the key text was changed")]
    IdMismatch {
        /// What the text says.
        written: KeyId,
        /// What name and key give.
        computed: KeyId,
    },
    /// A signature type that is not supported here.
    #[error(
        "keys of type 0x{0:02x} are not supported here, only Ed25519 keys of logs (0x01) and witnesses (0x04)"
    )]
    Unsupported(u8),
    /// A key of one role where that of another belongs.
    #[error("this is {found}, but {expected} belongs here: one key never serves two roles")]
    WrongType {
        /// What the text is.
        found: KeyType,
        /// What was expected.
        expected: KeyType,
    },
    /// The bytes are not a point on the curve, or a weak one, or not the point's canonical encoding.
    #[error("the key bytes are not a valid Ed25519 public key")]
    Malformed,
}

const VKEY_SHAPE: KeyError =
    KeyError::Shape { expected: "verifier key: it reads <name>+<8 hex digits>+<base64>" };
const SKEY_SHAPE: KeyError =
    KeyError::Shape { expected: "signing key: it reads PRIVATE+KEY+<name>+<8 hex digits>+<base64>" };

/// A verifier key: the name and public key of a log or a witness, in text `name+hex8(key id)+base64(type || key)`.
#[derive(Clone, PartialEq, Eq)]
pub struct VKey {
    name: KeyName,
    id: KeyId,
    key_type: KeyType,
    key: ed25519_dalek::VerifyingKey,
}

impl VKey {
    pub(crate) fn new(name: KeyName, key_type: KeyType, key: ed25519_dalek::VerifyingKey) -> VKey {
        let id = KeyId::compute(name.as_str(), &typed(key_type, key.as_bytes()));
        VKey { name, id, key_type, key }
    }

    /// The key's name, which for a log of ours is its origin.
    pub fn name(&self) -> &KeyName {
        &self.name
    }

    /// The id that signature lines carry.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// Whether it is a log's or a witness's.
    pub fn key_type(&self) -> KeyType {
        self.key_type
    }

    /// Whether the two are one public key, whatever their names and types.
    pub fn same_public_key(&self, other: &VKey) -> bool {
        self.key == other.key
    }

    /// Whether a signature line claims to be of this key.
    pub fn is_named_by(&self, line: &note::SignatureLine) -> bool {
        self.id == line.key_id && self.name.as_str() == line.name
    }

    /// Whether `signature` (without the key id) is this key's over `text`. Strict: refuses weak keys and
    /// non-canonical encodings.
    pub(crate) fn verify(&self, text: &str, signature: &[u8]) -> bool {
        match self.key_type {
            KeyType::Ed25519 => self.verify_message(text.as_bytes(), signature),
            KeyType::CosignatureV1 => cosignature::split(signature).is_some_and(|(time, signature)| {
                self.verify_message(cosignature::message(text, time).as_bytes(), signature)
            }),
        }
    }

    fn verify_message(&self, message: &[u8], signature: &[u8]) -> bool {
        ed25519_dalek::Signature::from_slice(signature)
            .is_ok_and(|signature| self.key.verify_strict(message, &signature).is_ok())
    }
}

impl FromStr for VKey {
    type Err = KeyError;

    /// Splits at the first two `+` only: base64 may hold more of them.
    fn from_str(text: &str) -> Result<VKey, KeyError> {
        let (name, written, typed_key) = fields(text).ok_or(VKEY_SHAPE)?;
        let name = KeyName::new(name)?;
        let typed_key = base64::decode(typed_key).ok_or(VKEY_SHAPE)?;
        let (&byte, key) = typed_key.split_first().ok_or(VKEY_SHAPE)?;
        // The id is compared before the key is looked at: a damaged text is called damaged. Other types come first,
        // because not all of them compute their id in the same way.
        let key_type = KeyType::of_byte(byte).ok_or(KeyError::Unsupported(byte))?;
        let computed = KeyId::compute(name.as_str(), &typed_key);
        if written != computed {
            return Err(KeyError::IdMismatch { written, computed });
        }
        Ok(VKey::new(name, key_type, public_key(key)?))
    }
}

/// Takes 32 bytes for a public key only if they are the one encoding of a point that binds what it signs.
pub(crate) fn public_key(bytes: &[u8]) -> Result<ed25519_dalek::VerifyingKey, KeyError> {
    let bytes = <&[u8; 32]>::try_from(bytes).map_err(|_| KeyError::Malformed)?;
    let key = ed25519_dalek::VerifyingKey::from_bytes(bytes).map_err(|_| KeyError::Malformed)?;
    // dalek decompresses y >= p too and keeps the bytes as given, so that one public key could stand under two
    // texts (RFC 8032 section 5.1.3 refuses it).
    let canonical = key.to_edwards().compress().to_bytes() == *bytes;
    if canonical && !key.is_weak() { Ok(key) } else { Err(KeyError::Malformed) }
}

impl fmt::Display for VKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}+{}", self.name, self.id, base64::encode(&typed(self.key_type, self.key.as_bytes())))
    }
}

impl fmt::Debug for VKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A log's private key. Zeroised when dropped; neither `Clone` nor printable: [`fmt::Debug`] shows the vkey.
pub struct SigningKey {
    vkey: VKey,
    key: ed25519_dalek::SigningKey,
}

impl SigningKey {
    /// A key from 32 bytes of seed, which must be unpredictable.
    pub fn from_seed(name: KeyName, seed: &Zeroizing<[u8; 32]>) -> SigningKey {
        let key = ed25519_dalek::SigningKey::from_bytes(seed);
        SigningKey { vkey: VKey::new(name, KeyType::Ed25519, key.verifying_key()), key }
    }

    /// The public half.
    pub fn vkey(&self) -> &VKey {
        &self.vkey
    }

    /// The text form, `PRIVATE+KEY+name+hex8(key id)+base64(0x01 || seed)`, for the key file alone.
    pub fn to_text(&self) -> Zeroizing<String> {
        secret_text(&self.vkey, &self.key)
    }

    /// Signs any text that is a valid note, and asserts by its name that the caller may: nothing was decided and
    /// nothing was persisted. A log signs through [`crate::progress::Committed::sign`].
    pub fn sign_assertion(&self, text: &str) -> note::SignatureLine {
        note::SignatureLine {
            name: self.vkey.name.as_str().to_owned(),
            key_id: self.vkey.id,
            signature: self.key.sign(text.as_bytes()).to_bytes().to_vec(),
        }
    }
}

impl FromStr for SigningKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<SigningKey, KeyError> {
        let (name, seed) = parse_secret(text, KeyType::Ed25519)?;
        Ok(SigningKey::from_seed(name, &seed))
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.vkey)
    }
}

pub(crate) fn fields(text: &str) -> Option<(&str, KeyId, &str)> {
    let mut fields = text.splitn(3, '+');
    let (name, id, key) = (fields.next()?, fields.next()?, fields.next()?);
    Some((name, KeyId::parse(id)?, key))
}

/// The text form of a private key.
pub(crate) fn secret_text(vkey: &VKey, key: &ed25519_dalek::SigningKey) -> Zeroizing<String> {
    let seed = Zeroizing::new(key.to_bytes());
    let typed_seed = Zeroizing::new(typed(vkey.key_type, &seed));
    let encoded = Zeroizing::new(base64::encode(&*typed_seed));
    Zeroizing::new(format!("{PRIVATE_PREFIX}{}+{}+{}", vkey.name, vkey.id, *encoded))
}

/// Reads the text form of a private key of one type.
pub(crate) fn parse_secret(
    text: &str,
    expected: KeyType,
) -> Result<(KeyName, Zeroizing<[u8; 32]>), KeyError> {
    let (name, written, typed_seed) = text.strip_prefix(PRIVATE_PREFIX).and_then(fields).ok_or(SKEY_SHAPE)?;
    let name = KeyName::new(name)?;
    let typed_seed = Zeroizing::new(base64::decode(typed_seed).ok_or(SKEY_SHAPE)?);
    let (&byte, seed) = typed_seed.split_first().ok_or(SKEY_SHAPE)?;
    let found = KeyType::of_byte(byte).ok_or(KeyError::Unsupported(byte))?;
    if found != expected {
        return Err(KeyError::WrongType { found, expected });
    }
    let seed = Zeroizing::new(<[u8; 32]>::try_from(seed).map_err(|_| SKEY_SHAPE)?);
    let public = ed25519_dalek::SigningKey::from_bytes(&seed).verifying_key();
    let computed = KeyId::compute(name.as_str(), &typed(found, public.as_bytes()));
    if written == computed { Ok((name, seed)) } else { Err(KeyError::IdMismatch { written, computed }) }
}

fn typed(key_type: KeyType, key: &[u8; 32]) -> [u8; 33] {
    let mut typed = [key_type.byte(); 33];
    typed[1..].copy_from_slice(key);
    typed
}
