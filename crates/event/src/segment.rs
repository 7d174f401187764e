//! The three segments of an event and the salted commitments to them.
//!
//! A commitment is `SHA-256("epigraph-segment/v1\n" || segment || salt || bytes)`: without the salt nobody can find out
//! by guessing what was committed to, not even what has two possible values. A segment is erased by erasing its bytes
//! and its salt. Byte by byte: docs/formats/event-leaf.md.

use std::fmt;

use epigraph_core::hash::{Hash, sha256_of};

/// The largest core or identity segment in bytes. Cut fields, labels and names stay far below it.
pub const MAX_FIELDS_BYTES: usize = 64 * 1024;

/// The largest record that stands in its event, in bytes. A larger one lies beside it: a batch of ordinary events is
/// read in one piece.
pub const MAX_INLINE_BYTES: usize = 256 * 1024;

/// The largest record of an event, in bytes. Beyond it a record is refused by name.
pub const MAX_RECORD_BYTES: usize = 1024 * 1024;

/// The largest body segment in bytes: a record, and what is said about it.
pub const MAX_BODY_BYTES: usize = MAX_INLINE_BYTES + 64 * 1024;

const TAG: &[u8] = b"epigraph-segment/v1\n";

/// What stands for the segment where the digest of a record beside its event is computed.
const RECORD: u8 = 4;

/// A segment of an event.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Segment {
    /// What happened, without saying who did it. Stays.
    Core,
    /// Who did it, from where, to which thing by name. Can be erased.
    Identity,
    /// The record as the source wrote it. Can be erased.
    Body,
}

impl Segment {
    /// All three, in their order.
    pub const ALL: [Segment; 3] = [Segment::Core, Segment::Identity, Segment::Body];

    /// The byte that stands for it in commitments.
    pub const fn byte(self) -> u8 {
        match self {
            Segment::Core => 1,
            Segment::Identity => 2,
            Segment::Body => 3,
        }
    }

    /// Its place in [`Segment::ALL`] and in every array of three.
    pub const fn place(self) -> usize {
        self.byte() as usize - 1
    }

    /// The most bytes that it has.
    pub const fn max_bytes(self) -> usize {
        match self {
            Segment::Core | Segment::Identity => MAX_FIELDS_BYTES,
            Segment::Body => MAX_BODY_BYTES,
        }
    }
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Segment::Core => "core",
            Segment::Identity => "identity",
            Segment::Body => "body",
        })
    }
}

/// 32 random bytes, used once. Whoever has a salt can test guesses about what it salts, so it is stored where that is.
#[derive(Clone, PartialEq, Eq)]
pub struct Salt([u8; Salt::LEN]);

impl Salt {
    /// Length in bytes.
    pub const LEN: usize = 32;

    /// Takes the bytes, which must be unpredictable.
    pub const fn from_bytes(bytes: [u8; Salt::LEN]) -> Salt {
        Salt(bytes)
    }

    /// Takes a slice that must be exactly 32 bytes long.
    pub fn from_slice(bytes: &[u8]) -> Option<Salt> {
        Some(Salt(bytes.try_into().ok()?))
    }

    /// The bytes.
    pub const fn as_bytes(&self) -> &[u8; Salt::LEN] {
        &self.0
    }
}

impl fmt::Debug for Salt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Salt(..)")
    }
}

/// The commitment to a segment's bytes.
pub fn commitment(segment: Segment, salt: &Salt, bytes: &[u8]) -> Hash {
    sha256_of(&[TAG, &[segment.byte()], &salt.0, bytes])
}

/// The digest of a record that lies beside its event.
pub fn record_digest(salt: &Salt, record: &[u8]) -> Hash {
    sha256_of(&[TAG, &[RECORD], &salt.0, record])
}
