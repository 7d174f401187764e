//! Standard base64 with padding, canonical: what decodes re-encodes to the same text.

use ::base64::Engine;
use ::base64::engine::general_purpose::STANDARD;

use crate::hash::Hash;

pub(crate) fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

pub(crate) fn decode_hash(text: &str) -> Option<Hash> {
    Hash::from_slice(&decode(text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_canonical_spelling_decodes() {
        assert_eq!(decode("AA=="), Some(vec![0]));
        for bad in ["AA", "AA=", "AB==", "A A==", "AA==\n", "_-==", "AAA"] {
            assert_eq!(decode(bad), None, "{bad:?}");
        }
    }
}
