//! Keys of event sources: what a collector signs its batches of audit events with.
//!
//! Ed25519 in the text forms of C2SP `signed-note`, under a type of our own: 0xff, which that page leaves to longer
//! names, and the name [`TYPE`] behind it. So the key of a source is no key of a log or a witness in any text, and none
//! of theirs is a source's. This module does not know what a source signs: `event` does.

use std::fmt;
use std::str::FromStr;

use ed25519_dalek::Signer as _;
use zeroize::Zeroizing;

use crate::base64;
use crate::hash::{Hash, sha256};
use crate::key::{KeyError, KeyId, KeyName, PRIVATE_PREFIX, fields, public_key};

/// What stands in front of the key in its text form, where the keys of logs and witnesses have one byte.
pub const TYPE: &[u8] = b"\xffepigraph-source-v1";

const VKEY_SHAPE: KeyError = KeyError::Shape {
    expected: "source's verifier key: it reads <name>+<8 hex digits>+<base64>, made by `epigraph keygen`",
};
const SKEY_SHAPE: KeyError =
    KeyError::Shape { expected: "source's signing key: it reads PRIVATE+KEY+<name>+<8 hex digits>+<base64>" };

/// The public half of a source's key, in text `name+hex8(key id)+base64(TYPE || key)`.
#[derive(Clone, PartialEq, Eq)]
pub struct SourceVKey {
    name: KeyName,
    id: Hash,
    key: ed25519_dalek::VerifyingKey,
}

impl SourceVKey {
    fn new(name: KeyName, key: ed25519_dalek::VerifyingKey) -> SourceVKey {
        let typed_key = [TYPE, key.as_bytes()].concat();
        let id = sha256(&[name.as_str().as_bytes(), b"\n", &typed_key].concat());
        SourceVKey { name, id, key }
    }

    /// The key's name.
    pub fn name(&self) -> &KeyName {
        &self.name
    }

    /// `SHA-256(name || 0x0A || TYPE || public key)`, whole. A signature line shows its first four bytes only; who
    /// chooses keys can make two of them meet in those.
    pub fn id(&self) -> Hash {
        self.id
    }

    fn short_id(&self) -> KeyId {
        let [a, b, c, d, ..] = *self.id.as_bytes();
        KeyId::from_bytes([a, b, c, d])
    }

    /// Whether `signature` is this key's over exactly these bytes. Strict: refuses non-canonical encodings.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        ed25519_dalek::Signature::from_slice(signature)
            .is_ok_and(|signature| self.key.verify_strict(message, &signature).is_ok())
    }
}

impl FromStr for SourceVKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<SourceVKey, KeyError> {
        let (name, written, typed_key) = fields(text).ok_or(VKEY_SHAPE)?;
        let name = KeyName::new(name)?;
        let typed_key = base64::decode(typed_key).ok_or(VKEY_SHAPE)?;
        let key = typed_key.strip_prefix(TYPE).ok_or(VKEY_SHAPE)?;
        let vkey = SourceVKey::new(name, public_key(key)?);
        let computed = vkey.short_id();
        if written == computed { Ok(vkey) } else { Err(KeyError::IdMismatch { written, computed }) }
    }
}

impl fmt::Display for SourceVKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let typed_key = base64::encode(&[TYPE, self.key.as_bytes()].concat());
        write!(f, "{}+{}+{typed_key}", self.name, self.short_id())
    }
}

impl fmt::Debug for SourceVKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A source's private key. Zeroised when dropped; neither `Clone` nor printable: [`fmt::Debug`] shows the vkey.
pub struct SourceKey {
    vkey: SourceVKey,
    key: ed25519_dalek::SigningKey,
}

impl SourceKey {
    /// A key from 32 bytes of seed, which must be unpredictable.
    pub fn from_seed(name: KeyName, seed: &Zeroizing<[u8; 32]>) -> SourceKey {
        let key = ed25519_dalek::SigningKey::from_bytes(seed);
        SourceKey { vkey: SourceVKey::new(name, key.verifying_key()), key }
    }

    /// The public half.
    pub fn vkey(&self) -> &SourceVKey {
        &self.vkey
    }

    /// The text form, `PRIVATE+KEY+name+hex8(key id)+base64(TYPE || seed)`, for the key file alone.
    pub fn to_text(&self) -> Zeroizing<String> {
        let seed = Zeroizing::new(self.key.to_bytes());
        let typed_seed = Zeroizing::new([TYPE, seed.as_slice()].concat());
        let encoded = Zeroizing::new(base64::encode(&typed_seed));
        Zeroizing::new(format!("{PRIVATE_PREFIX}{}+{}+{}", self.vkey.name, self.vkey.short_id(), *encoded))
    }

    /// Signs the bytes as they are. They must say what they are, as a pre-authentication encoding does.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.key.sign(message).to_bytes().to_vec()
    }
}

impl FromStr for SourceKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<SourceKey, KeyError> {
        let (name, written, typed_seed) =
            text.strip_prefix(PRIVATE_PREFIX).and_then(fields).ok_or(SKEY_SHAPE)?;
        let name = KeyName::new(name)?;
        let typed_seed = Zeroizing::new(base64::decode(typed_seed).ok_or(SKEY_SHAPE)?);
        let seed = typed_seed.strip_prefix(TYPE).and_then(|seed| <[u8; 32]>::try_from(seed).ok());
        let key = SourceKey::from_seed(name, &Zeroizing::new(seed.ok_or(SKEY_SHAPE)?));
        let computed = key.vkey.short_id();
        if written == computed { Ok(key) } else { Err(KeyError::IdMismatch { written, computed }) }
    }
}

impl fmt::Debug for SourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SourceKey({})", self.vkey)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cosignature::CosigningKey;
    use crate::{SigningKey, VKey};

    fn seed() -> Zeroizing<[u8; 32]> {
        Zeroizing::new([7; 32])
    }

    fn name() -> KeyName {
        KeyName::new("api-server.example").unwrap()
    }

    #[test]
    fn keys_read_back_and_only_untouched() {
        let key = SourceKey::from_seed(name(), &seed());
        let text = key.vkey().to_string();
        assert_eq!(text.parse::<SourceVKey>().unwrap(), *key.vkey());
        assert_eq!(key.to_text().parse::<SourceKey>().unwrap().vkey(), key.vkey());
        let renamed = text.replacen("api", "apj", 1);
        assert!(matches!(renamed.parse::<SourceVKey>(), Err(KeyError::IdMismatch { .. })));
        let renamed = key.to_text().replacen("api", "apj", 1);
        assert!(matches!(renamed.parse::<SourceKey>(), Err(KeyError::IdMismatch { .. })));
        assert!(!format!("{key:?}").contains("PRIVATE"));
    }

    #[test]
    fn a_key_has_one_role_in_every_text() {
        let source = SourceKey::from_seed(name(), &seed());
        assert_eq!(source.vkey().to_string().parse::<VKey>(), Err(KeyError::Unsupported(0xff)));
        assert!(matches!(source.to_text().parse::<SigningKey>(), Err(KeyError::Unsupported(0xff))));
        assert!(matches!(source.to_text().parse::<CosigningKey>(), Err(KeyError::Unsupported(0xff))));
        let log = SigningKey::from_seed(name(), &seed());
        assert!(log.vkey().to_string().parse::<SourceVKey>().is_err());
        assert!(log.to_text().parse::<SourceKey>().is_err());
    }

    #[test]
    fn a_signature_is_over_every_byte() {
        let key = SourceKey::from_seed(name(), &seed());
        let signature = key.sign(b"message");
        assert!(key.vkey().verify(b"message", &signature));
        assert!(!key.vkey().verify(b"messagf", &signature));
        for at in 0..signature.len() {
            let mut flipped = signature.clone();
            flipped[at] ^= 1;
            assert!(!key.vkey().verify(b"message", &flipped), "byte {at}");
        }
        assert!(!key.vkey().verify(b"message", &signature[..63]));
    }
}
