//! The deny list: who is refused although the CA vouches for them, without waiting for the CA's next revocation list.
//!
//! Entries match what a CA has signed: name, serial number and key. The fingerprint of a whole certificate would be no
//! good here: an ECDSA signature can be turned into another valid one by anybody, and the fingerprint with it.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;

use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::TlsError;
use super::credentials::{MAX_PEM_BYTES, read_limited};
use crate::authorize::SpiffePattern;
use crate::identity::{IdentityError, Leaf};

/// Entries of a deny list. It is for the days until a revocation list says the same.
pub const MAX_DENIED: usize = 4_096;

/// Octets of a serial number (RFC 5280 section 4.1.2.2).
const MAX_SERIAL_OCTETS: usize = 20;

/// Names, serial numbers and keys that are refused.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct DenyList {
    names: Vec<SpiffePattern>,
    serials: BTreeSet<Vec<u8>>,
    keys: BTreeSet<[u8; 32]>,
}

impl DenyList {
    /// Reads a text file with one entry a line: a SPIFFE name, or one that ends in `/*` for all below it; `serial:` and
    /// a certificate's serial number in hexadecimal, whichever CA gave it; `key-sha256:` and the SHA-256 of a public key
    /// (its SubjectPublicKeyInfo, DER) in hexadecimal, of a leaf or of a CA in between. Empty lines and lines that start
    /// with `#` say nothing.
    pub fn from_file(path: &Path) -> Result<DenyList, TlsError> {
        let bytes = read_limited(path, File::open(path), MAX_PEM_BYTES)?;
        let text = str::from_utf8(&bytes).map_err(|_| TlsError::DenyListText(path.into()))?;
        DenyList::parse(text).map_err(|(line, text)| TlsError::DenyList { path: path.into(), line, text })
    }

    /// As [`DenyList::from_file`], from memory. The error is the number of the line, from 1, and its text.
    pub fn parse(text: &str) -> Result<DenyList, (usize, String)> {
        let mut list = DenyList::default();
        let lines = text.lines().map(str::trim).enumerate();
        for (at, line) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
            let known = if let Some(text) = line.strip_prefix("serial:") {
                serial_number(text).map(|serial| list.serials.insert(serial)).is_some()
            } else if let Some(text) = line.strip_prefix("key-sha256:") {
                let key = hex(text).and_then(|key| key.try_into().ok());
                key.map(|key| list.keys.insert(key)).is_some()
            } else {
                line.parse().map(|name| list.names.push(name)).is_ok()
            };
            if !known || list.len() > MAX_DENIED {
                return Err((at + 1, line.into()));
            }
        }
        Ok(list)
    }

    fn len(&self) -> usize {
        self.names.len() + self.serials.len() + self.keys.len()
    }

    /// `leaf` is what `end_entity` says.
    pub(super) fn check(
        &self,
        leaf: &Leaf,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Result<(), IdentityError> {
        if self.len() == 0 {
            return Ok(());
        }
        let denied = |what| Err(IdentityError::Denied { name: leaf.spiffe.clone(), what });
        if self.names.iter().any(|pattern| pattern.matches(&leaf.spiffe)) {
            return denied("its name");
        }
        for (place, certificate) in std::iter::once(end_entity).chain(intermediates).enumerate() {
            let (_, certificate) = X509Certificate::from_der(certificate)
                .map_err(|error| IdentityError::Malformed(error.to_string()))?;
            // Serial numbers of leaves are random and do not clash; those of CAs may be 1.
            if place == 0 && self.serials.contains(without_zeros(certificate.raw_serial())) {
                return denied("its serial number");
            }
            let key: [u8; 32] = Sha256::digest(certificate.public_key().raw).into();
            if self.keys.contains(&key) {
                return denied(if place == 0 { "its key" } else { "the key of a CA that vouches for it" });
            }
        }
        Ok(())
    }
}

/// With or without colons between the octets.
fn serial_number(text: &str) -> Option<Vec<u8>> {
    let digits = text.replace(':', "");
    let padded = if digits.len().is_multiple_of(2) { digits } else { format!("0{digits}") };
    let serial = hex(&padded)?;
    let serial = without_zeros(&serial);
    (1..=MAX_SERIAL_OCTETS).contains(&serial.len()).then(|| serial.to_vec())
}

/// A serial number that is zero is none, and is refused as an entry.
fn without_zeros(serial: &[u8]) -> &[u8] {
    &serial[serial.iter().take_while(|octet| **octet == 0).count()..]
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.chars().map(|digit| digit.to_digit(16).map(|digit| digit as u8));
    let digits: Vec<u8> = digits.collect::<Option<_>>()?;
    let pairs = digits.chunks_exact(2);
    pairs.remainder().is_empty().then(|| pairs.map(|pair| pair[0] << 4 | pair[1]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_understood_or_the_list_is_refused() {
        let key = "ab".repeat(32);
        let text = format!(
            "# why\n\nspiffe://td/epigraph/x/1\n  spiffe://td/epigraph/y/*\r\nserial:00:Ab:1\nkey-sha256:{key}\n"
        );
        let list = DenyList::parse(&text).unwrap();
        assert_eq!((list.names.len(), list.len()), (2, 4));
        assert!(list.serials.contains(&[0x0a, 0xb1][..]) && list.keys.contains(&[0xab; 32]));

        let check = |line: &str| {
            let text = format!("spiffe://td/epigraph/x/1\n\n{line}");
            assert_eq!(DenyList::parse(&text), Err((3, line.to_string())), "{line}");
        };
        for line in
            ["spiffe://td", "x", "serial:", "serial:0", "serial:xy", "serial: 1", "sha256:00", "serial:é"]
        {
            check(line);
        }
        check(&format!("serial:{}", "11".repeat(21)));
        check(&format!("key-sha256:{}", &key[1..]));
        check(&format!("key-sha256:{key}ab"));
    }

    #[test]
    fn there_are_at_most_4096_entries() {
        let lines = |count| "spiffe://td/epigraph/x/1\n".repeat(count);
        assert!(DenyList::parse(&lines(4_096)).is_ok());
        assert_eq!(DenyList::parse(&lines(4_097)).unwrap_err().0, 4_097);
    }
}
