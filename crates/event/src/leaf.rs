//! The record of an event in the log: 208 bytes of fixed layout, the Merkle entry. docs/formats/event-leaf.md.
//!
//! It is public: witnesses, monitors and mirrors may read it for ever, and it is never erased. So it holds random
//! bytes, numbers and salted commitments, and nothing of the event. Big-endian, as C2SP's own fields are, so that the
//! leaves of one source sort by epoch and sequence number as bytes.

use std::fmt;

use epigraph_core::hash::{Hash, leaf_hash};
use thiserror::Error;

use crate::segment::Segment;

/// The length of every leaf in bytes.
pub const LEAF_BYTES: usize = 208;

/// What every leaf begins with.
const MAGIC: &[u8; 7] = b"EPGLEAF";

const VERSION: u8 = 1;

/// 16 random bytes that name an event. They say nothing about it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference([u8; Reference::LEN]);

impl Reference {
    /// Length in bytes.
    pub const LEN: usize = 16;

    /// Takes the bytes, which must be unpredictable.
    pub const fn from_bytes(bytes: [u8; Reference::LEN]) -> Reference {
        Reference(bytes)
    }

    /// Takes a slice that must be exactly 16 bytes long.
    pub fn from_slice(bytes: &[u8]) -> Option<Reference> {
        Some(Reference(bytes.try_into().ok()?))
    }

    /// Parses 32 lower-case hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Reference> {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        let number =
            u128::from_str_radix(text, 16).ok().filter(|_| digits && text.len() == 2 * Reference::LEN);
        Some(Reference(number?.to_be_bytes()))
    }

    /// The bytes.
    pub const fn as_bytes(&self) -> &[u8; Reference::LEN] {
        &self.0
    }
}

impl fmt::Display for Reference {
    /// 32 lower-case hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A leaf taken apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// The event's random name.
    pub reference: Reference,
    /// The key that signed the event's batch ([`epigraph_core::SourceVKey::id`]).
    pub source: Hash,
    /// The source's epoch.
    pub epoch: u64,
    /// The event's sequence number in the epoch.
    pub sequence: u64,
    /// When the audit service took it in: seconds since 1970-01-01T00:00:00Z.
    pub ingested: u64,
    /// The commitments to the segments, in the order of [`Segment::ALL`].
    pub commitments: [Hash; 3],
    /// The hash of the event's batch ([`crate::batch`]).
    pub batch: Hash,
}

/// Why an entry is not the leaf of an event.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum LeafError {
    /// Another entry: the log holds other things too.
    #[error("the entry is not an event's: it does not begin as an event's leaf does")]
    NotALeaf,
    /// Written by a later version.
    #[error(
        "the event's leaf has version {0}, and only version {VERSION} is known here: use a newer epigraph"
    )]
    Version(u8),
    /// Cut off or longer.
    #[error("an event's leaf has {LEAF_BYTES} bytes, this one has {0}: it was changed")]
    Length(usize),
}

impl Leaf {
    /// Whether an entry claims to be the leaf of an event, of any version.
    pub fn recognise(entry: &[u8]) -> bool {
        entry.starts_with(MAGIC)
    }

    /// Takes a leaf apart. [`Leaf::encode`] gives the same bytes again.
    pub fn parse(entry: &[u8]) -> Result<Leaf, LeafError> {
        let rest = entry.strip_prefix(MAGIC).ok_or(LeafError::NotALeaf)?;
        let (&version, _) = rest.split_first().ok_or(LeafError::Length(entry.len()))?;
        if version != VERSION {
            return Err(LeafError::Version(version));
        }
        let bytes: &[u8; LEAF_BYTES] = entry.try_into().map_err(|_| LeafError::Length(entry.len()))?;
        let number = |at: usize| u64::from_be_bytes(field(bytes, at));
        let hash = |at: usize| Hash::from_bytes(field(bytes, at));
        Ok(Leaf {
            reference: Reference(field(bytes, 8)),
            source: hash(24),
            epoch: number(56),
            sequence: number(64),
            ingested: number(72),
            commitments: [hash(80), hash(112), hash(144)],
            batch: hash(176),
        })
    }

    /// The leaf's bytes: the log's entry.
    pub fn encode(&self) -> [u8; LEAF_BYTES] {
        let mut bytes = [0; LEAF_BYTES];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(MAGIC);
        put(&[VERSION]);
        put(&self.reference.0);
        put(self.source.as_bytes());
        [self.epoch, self.sequence, self.ingested].iter().for_each(|number| put(&number.to_be_bytes()));
        self.commitments.iter().for_each(|hash| put(hash.as_bytes()));
        put(self.batch.as_bytes());
        bytes
    }

    /// The Merkle leaf hash of [`Leaf::encode`].
    pub fn hash(&self) -> Hash {
        leaf_hash(&self.encode())
    }

    /// The commitment to one segment.
    pub fn commitment(&self, segment: Segment) -> Hash {
        self.commitments[segment.place()]
    }
}

fn field<const N: usize>(bytes: &[u8; LEAF_BYTES], at: usize) -> [u8; N] {
    std::array::from_fn(|place| bytes[at + place])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf() -> Leaf {
        let hash = |byte| Hash::from_bytes([byte; 32]);
        Leaf {
            reference: Reference::from_bytes([1; 16]),
            source: hash(2),
            epoch: 3,
            sequence: u64::MAX,
            ingested: 5,
            commitments: [hash(6), hash(7), hash(8)],
            batch: hash(9),
        }
    }

    #[test]
    fn a_leaf_reads_back_and_every_byte_counts() {
        let bytes = leaf().encode();
        assert_eq!(Leaf::parse(&bytes), Ok(leaf()));
        for at in 0..LEAF_BYTES {
            let mut flipped = bytes;
            flipped[at] ^= 0x80;
            match Leaf::parse(&flipped) {
                Ok(other) => assert_ne!(other, leaf(), "byte {at}"),
                Err(error) => assert!(at < 8, "byte {at}: {error}"),
            }
        }
    }

    #[test]
    fn what_is_no_leaf_is_named() {
        let bytes = leaf().encode();
        let check = |entry: &[u8], expected| assert_eq!(Leaf::parse(entry), Err(expected));
        check(b"", LeafError::NotALeaf);
        check(b"{\"a\":1}", LeafError::NotALeaf);
        check(MAGIC, LeafError::Length(7));
        check(&bytes[..207], LeafError::Length(207));
        check(&[&bytes[..], &[0]].concat(), LeafError::Length(209));
        check(b"EPGLEAF\x02 and whatever version 2 has", LeafError::Version(2));
    }

    #[test]
    fn references_read_back_in_one_spelling() {
        let reference = Reference::from_bytes([0x0a; 16]);
        assert_eq!(Reference::from_hex(&reference.to_string()), Some(reference));
        let good = "0a".repeat(16);
        for bad in ["", &good[1..], &good.to_uppercase(), &format!("+{}", &good[1..]), &format!("{good}0")] {
            assert_eq!(Reference::from_hex(bad), None, "{bad}");
        }
    }
}
