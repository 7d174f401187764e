//! From the wire to the types of the core and back. What comes out of here has the right shape; whether a proof
//! proves anything is for the core to say.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use epigraph_core::tile::TILE_WIDTH;
use epigraph_core::{Hash, LeafIndex, TreeHead, TreeSize};
use thiserror::Error;

use crate::limits::{
    DEFAULT_LIST_CHECKPOINTS, DEFAULT_READ_ENTRIES, DEFAULT_WAIT, MAX_LIST_CHECKPOINTS, MAX_PROOF_HASHES,
    MAX_READ_ENTRIES, MAX_WAIT,
};
use crate::status::{Reason, Refusal};
use crate::v1;

/// Bytes in a producer id.
pub const PRODUCER_ID_BYTES: usize = 16;

/// Why a message is not what it should be.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ConvertError {
    /// A field that must be there is not.
    #[error("`{0}` is missing")]
    Missing(&'static str),
    /// A field of fixed length has another one.
    #[error("`{field}` has {want} bytes, this one has {got}")]
    Length {
        /// The field.
        field: &'static str,
        /// Its length in bytes.
        want: usize,
        /// The length of what came.
        got: usize,
    },
    /// A proof with more hashes than the largest tree is high.
    #[error("a proof has at most {MAX_PROOF_HASHES} hashes, this one has {0}")]
    ProofTooLong(usize),
    /// An index that no tree could contain.
    #[error("no tree is large enough to have a leaf with index {0}")]
    IndexTooLarge(u64),
    /// A tree size above 2^63 - 1.
    #[error("`{field}` is {got}, and a tree has at most {} leaves", TreeSize::MAX)]
    SizeTooLarge {
        /// The field.
        field: &'static str,
        /// Its value.
        got: u64,
    },
    /// A value that this version does not know.
    #[error("`{field}` has the value {got}, which this version does not know")]
    UnknownValue {
        /// The field.
        field: &'static str,
        /// Its value.
        got: i32,
    },
    /// More in an answer than the request calls for, or than any may have.
    #[error("`{field}` are {got} in the answer, at most {most} go with the request")]
    TooMany {
        /// The field, or what of it.
        field: &'static str,
        /// The largest number.
        most: u64,
        /// The number that came.
        got: u64,
    },
    /// An answer that does not go with its request.
    #[error("`{field}` is {got} in the answer, the request calls for {want}")]
    Unexpected {
        /// The field.
        field: &'static str,
        /// The only value that goes with the request.
        want: u64,
        /// The value that came.
        got: u64,
    },
}

impl ConvertError {
    fn field(&self) -> &'static str {
        match self {
            ConvertError::Missing(field)
            | ConvertError::Length { field, .. }
            | ConvertError::SizeTooLarge { field, .. }
            | ConvertError::UnknownValue { field, .. }
            | ConvertError::TooMany { field, .. }
            | ConvertError::Unexpected { field, .. } => field,
            ConvertError::ProofTooLong(_) => "hashes",
            ConvertError::IndexTooLarge(_) => "leaf_index",
        }
    }
}

impl From<ConvertError> for Refusal {
    fn from(error: ConvertError) -> Refusal {
        let reason = match &error {
            ConvertError::ProofTooLong(_) => Reason::BadProof,
            ConvertError::IndexTooLarge(_) => Reason::BeyondTree,
            ConvertError::SizeTooLarge { .. } => Reason::BadSize,
            _ => Reason::Malformed,
        };
        Refusal::new(reason, error.to_string()).at(error.field())
    }
}

/// Takes a hash, which must have 32 bytes.
pub fn hash(field: &'static str, bytes: &[u8]) -> Result<Hash, ConvertError> {
    Hash::from_slice(bytes).ok_or(ConvertError::Length { field, want: Hash::LEN, got: bytes.len() })
}

/// Takes a proof: at most [`MAX_PROOF_HASHES`] hashes.
pub fn proof(hashes: &[Bytes]) -> Result<Vec<Hash>, ConvertError> {
    if hashes.len() > MAX_PROOF_HASHES {
        return Err(ConvertError::ProofTooLong(hashes.len()));
    }
    hashes.iter().map(|bytes| hash("hashes", bytes)).collect()
}

/// Puts a proof on the wire: one allocation for all its hashes.
pub fn proof_to_wire(proof: &[Hash]) -> Vec<Bytes> {
    let mut bytes = BytesMut::with_capacity(proof.len() * Hash::LEN);
    proof.iter().for_each(|hash| bytes.extend_from_slice(hash.as_bytes()));
    let mut rest = bytes.freeze();
    proof.iter().map(|_| rest.split_to(Hash::LEN)).collect()
}

/// Takes a leaf index.
pub fn leaf_index(index: u64) -> Result<LeafIndex, ConvertError> {
    LeafIndex::new(index).ok_or(ConvertError::IndexTooLarge(index))
}

/// Takes a tree size.
pub fn tree_size(field: &'static str, size: u64) -> Result<TreeSize, ConvertError> {
    TreeSize::new(size).ok_or(ConvertError::SizeTooLarge { field, got: size })
}

/// Takes a tree head, which must be there.
pub fn tree_head(field: &'static str, head: Option<&v1::TreeHead>) -> Result<TreeHead, ConvertError> {
    let head = head.ok_or(ConvertError::Missing(field))?;
    Ok(TreeHead { size: tree_size("size", head.size)?, root: hash("root", &head.root)? })
}

/// Puts a tree head on the wire.
pub fn tree_head_to_wire(head: &TreeHead) -> v1::TreeHead {
    v1::TreeHead { size: head.size.get(), root: Bytes::copy_from_slice(head.root.as_bytes()) }
}

/// How far entries have come, or are to come before the answer; each step includes those before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Wait {
    /// On the log's disk, with their indexes.
    #[default]
    Durable,
    /// Covered by a published checkpoint.
    Published,
}

impl Wait {
    /// What a request asks for; unset is [`Wait::Durable`].
    pub fn asked(wire: i32) -> Result<Wait, ConvertError> {
        match v1::Wait::try_from(wire) {
            Ok(v1::Wait::Unspecified | v1::Wait::Durable) => Ok(Wait::Durable),
            Ok(v1::Wait::Published) => Ok(Wait::Published),
            Err(_) => Err(ConvertError::UnknownValue { field: "wait", got: wire }),
        }
    }

    /// What an answer says was reached; unset is an error.
    pub fn reached(wire: i32) -> Result<Wait, ConvertError> {
        match v1::Wait::try_from(wire) {
            Ok(v1::Wait::Durable) => Ok(Wait::Durable),
            Ok(v1::Wait::Published) => Ok(Wait::Published),
            Ok(v1::Wait::Unspecified) => Err(ConvertError::Missing("reached")),
            Err(_) => Err(ConvertError::UnknownValue { field: "reached", got: wire }),
        }
    }

    /// The value on the wire.
    pub fn to_wire(self) -> i32 {
        i32::from(match self {
            Wait::Durable => v1::Wait::Durable,
            Wait::Published => v1::Wait::Published,
        })
    }
}

/// How long an append waits for publication, by the `wait_ms` of its request: 0 is [`DEFAULT_WAIT`], and nothing is
/// longer than [`MAX_WAIT`].
pub fn wait_for(wait_ms: u32) -> Duration {
    match wait_ms {
        0 => DEFAULT_WAIT,
        ms => MAX_WAIT.min(Duration::from_millis(ms.into())),
    }
}

/// How many entries an answer may have, by the `max_entries` of its request: 0 is [`DEFAULT_READ_ENTRIES`], and nothing
/// is more than [`MAX_READ_ENTRIES`].
pub fn read_entries(max_entries: u32) -> u32 {
    match max_entries {
        0 => DEFAULT_READ_ENTRIES,
        entries => entries.min(MAX_READ_ENTRIES),
    }
}

/// Takes the id of a producer, which must have 16 bytes.
pub fn producer_id(field: &'static str, bytes: &[u8]) -> Result<[u8; PRODUCER_ID_BYTES], ConvertError> {
    let length = |_| ConvertError::Length { field, want: PRODUCER_ID_BYTES, got: bytes.len() };
    bytes.try_into().map_err(length)
}

/// How many checkpoints a page may have, by the `page_size` of its request: 0 is [`DEFAULT_LIST_CHECKPOINTS`], and nothing is
/// more than [`MAX_LIST_CHECKPOINTS`].
pub fn list_page(page_size: u32) -> u32 {
    match page_size {
        0 => DEFAULT_LIST_CHECKPOINTS,
        checkpoints => checkpoints.min(MAX_LIST_CHECKPOINTS),
    }
}

/// How many hashes of a tile are meant, by the `width` of its request: 0 is a full tile.
pub fn tile_width(width: u32) -> u32 {
    match width {
        0 => TILE_WIDTH.into(),
        width => width,
    }
}

/// Who numbers the entries of an append, and from where on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Producer {
    /// Chosen at random by the producer; known under the caller's identity.
    pub id: [u8; PRODUCER_ID_BYTES],
    /// Raised at each restart of the producer.
    pub epoch: u64,
    /// The number of the first entry.
    pub first_sequence: u64,
}

impl TryFrom<&v1::Producer> for Producer {
    type Error = ConvertError;

    fn try_from(wire: &v1::Producer) -> Result<Producer, ConvertError> {
        let id = producer_id("producer.id", &wire.id)?;
        Ok(Producer { id, epoch: wire.epoch, first_sequence: wire.first_sequence })
    }
}

impl From<Producer> for v1::Producer {
    fn from(producer: Producer) -> v1::Producer {
        v1::Producer {
            id: Bytes::copy_from_slice(&producer.id),
            epoch: producer.epoch,
            first_sequence: producer.first_sequence,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use epigraph_core::hash::leaf_hash;

    #[test]
    fn a_proof_round_trips_up_to_63_hashes_and_no_further() {
        for length in [0, 1, 63] {
            let hashes: Vec<Hash> = (0..length).map(|n| leaf_hash(&[n])).collect();
            assert_eq!(proof(&proof_to_wire(&hashes)), Ok(hashes));
        }
        let hashes = vec![Hash::EMPTY_ROOT; 64];
        assert_eq!(proof(&proof_to_wire(&hashes)), Err(ConvertError::ProofTooLong(64)));
    }

    #[test]
    fn a_hash_has_32_bytes() {
        for got in [0, 31, 33, 64] {
            let error = proof(&[Bytes::from(vec![0; got])]).unwrap_err();
            assert_eq!(error, ConvertError::Length { field: "hashes", want: 32, got });
        }
    }

    #[test]
    fn positions_beyond_every_tree_are_refused() {
        assert!(tree_size("old_size", (1 << 63) - 1).is_ok());
        for got in [1 << 63, u64::MAX] {
            let refusal = Refusal::from(tree_size("old_size", got).unwrap_err());
            assert_eq!((refusal.reason(), refusal.field()), (Reason::BadSize, Some("old_size")));
        }
        for got in [(1 << 63) - 1, u64::MAX] {
            let refusal = Refusal::from(leaf_index(got).unwrap_err());
            assert_eq!((refusal.reason(), refusal.field()), (Reason::BeyondTree, Some("leaf_index")));
        }
    }

    #[test]
    fn an_unset_wait_is_durable_in_a_request_and_an_error_in_an_answer() {
        assert_eq!(Wait::asked(0), Ok(Wait::Durable));
        assert_eq!(Wait::reached(0), Err(ConvertError::Missing("reached")));
        assert!(Wait::asked(3).is_err() && Wait::asked(-1).is_err() && Wait::reached(3).is_err());
        for wait in [Wait::Durable, Wait::Published] {
            assert_eq!((Wait::asked(wait.to_wire()), Wait::reached(wait.to_wire())), (Ok(wait), Ok(wait)));
        }
    }

    #[test]
    fn the_wait_is_what_the_protocol_says() {
        for (wait_ms, expected) in
            [(0, 10_000), (1, 1), (60_000, 60_000), (60_001, 60_000), (u32::MAX, 60_000)]
        {
            assert_eq!(wait_for(wait_ms).as_millis(), expected, "{wait_ms}");
        }
    }

    #[test]
    fn the_number_of_entries_is_what_the_protocol_says() {
        for (max_entries, expected) in [(0, 1_024), (1, 1), (4_096, 4_096), (4_097, 4_096), (u32::MAX, 4_096)]
        {
            assert_eq!(read_entries(max_entries), expected, "{max_entries}");
        }
    }

    #[test]
    fn a_producer_id_has_16_bytes() {
        let producer = Producer { id: [7; 16], epoch: 1, first_sequence: u64::MAX };
        let mut wire = v1::Producer::from(producer);
        assert_eq!(Producer::try_from(&wire), Ok(producer));
        for length in [0, 15, 17] {
            wire.id = vec![0; length].into();
            assert!(Producer::try_from(&wire).is_err(), "{length}");
        }
    }
}
