//! What the journal keeps of producers, for exactly-once appends: a mark in each frame, a table in each segment.
//!
//! The table is what the marks of all frames give, one after the other; [`rules`] says how. Here are the bytes.

mod rules;

use std::collections::BTreeMap;

use epigraph_core::{Hash, LeafIndex, TreeSize};

pub use rules::{Claim, Objection, Standing};

use super::format::MAX_STATE_BYTES;
use crate::fields::Fields;

/// Bytes of an encoded [`ProducerMark`].
pub const MARK_BYTES: usize = 16 + 32 + 8 + 8 + 4 + 4;

/// Producers in the table of one log: a full table refuses new ones (DESIGN section 5).
pub const MAX_PRODUCERS: usize = 1_024;

/// How far the numbers that are taken reach beyond the lowest missing one, and how far behind it a repeat is given its
/// first answer at most (DESIGN section 5).
pub const SEQUENCE_WINDOW: u64 = 16_384;

/// Ranges kept behind the lowest missing number of one producer: a repeat is given its first answer as long as so few
/// calls came after it, which is more than a producer has under way.
pub const MAX_RANGES_BEHIND: usize = 128;

/// Ranges kept beyond the lowest missing numbers of all producers together. When there are more, only calls are taken that
/// begin at the lowest missing number: these need no room.
pub const MAX_RANGES_AHEAD: usize = 65_536;

const PRODUCER_BYTES: usize = 32 + 16 + 8 + 8 + 4;
const RANGE_BYTES: usize = 8 + 8 + 4;

// The fullest table and the largest frontier fit into a segment's header, so that no append can stop a journal by making
// the table too large.
const _: () = assert!(
    63 * Hash::LEN
        + MAX_PRODUCERS * (PRODUCER_BYTES + MAX_RANGES_BEHIND * RANGE_BYTES)
        + MAX_RANGES_AHEAD * RANGE_BYTES
        <= MAX_STATE_BYTES
);

/// Which producer: an id under an identity. Ordered as in the table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ProducerKey {
    /// SHA-256 of the identity under which it sends.
    pub identity: Hash,
    /// Chosen by the producer.
    pub id: [u8; 16],
}

/// A run of entries in one frame that one producer sent under contiguous sequence numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProducerMark {
    /// Whose entries, under which numbers.
    pub claim: Claim,
    /// Where the run starts in the frame, counted in entries from 0.
    pub offset: u32,
}

/// What is committed of every producer.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ProducerTable {
    producers: BTreeMap<ProducerKey, Producer>,
    /// Ranges beyond the lowest missing numbers, of all producers.
    ahead: usize,
}

/// What is committed of one producer.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Producer {
    epoch: u64,
    next_sequence: u64,
    /// By first sequence number, without overlap.
    ranges: BTreeMap<u64, Run>,
    /// How many of the ranges are below `next_sequence`.
    behind: usize,
}

/// Contiguous sequence numbers at contiguous leaf indices.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Run {
    index: LeafIndex,
    /// At least 1.
    count: u32,
}

impl ProducerMark {
    pub(super) fn encode(&self, bytes: &mut Vec<u8>) {
        let Claim { producer, epoch, first_sequence, count } = &self.claim;
        bytes.extend_from_slice(&producer.id);
        bytes.extend_from_slice(producer.identity.as_bytes());
        bytes.extend_from_slice(&epoch.to_le_bytes());
        bytes.extend_from_slice(&first_sequence.to_le_bytes());
        bytes.extend_from_slice(&self.offset.to_le_bytes());
        bytes.extend_from_slice(&count.to_le_bytes());
    }

    pub(super) fn decode(fields: &mut Fields<'_>) -> Option<ProducerMark> {
        let id = fields.array()?;
        let producer = ProducerKey { identity: fields.array().map(Hash::from_bytes)?, id };
        let (epoch, first_sequence) = (fields.u64()?, fields.u64()?);
        let (offset, count) = (fields.u32()?, fields.u32()?);
        Some(ProducerMark { claim: Claim { producer, epoch, first_sequence, count }, offset })
    }
}

impl ProducerTable {
    pub(super) fn count(&self) -> u32 {
        u32::try_from(self.producers.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn encode(&self, bytes: &mut Vec<u8>) {
        for (key, producer) in &self.producers {
            bytes.extend_from_slice(key.identity.as_bytes());
            bytes.extend_from_slice(&key.id);
            bytes.extend_from_slice(&producer.epoch.to_le_bytes());
            bytes.extend_from_slice(&producer.next_sequence.to_le_bytes());
            bytes.extend_from_slice(&u32::try_from(producer.ranges.len()).unwrap_or(u32::MAX).to_le_bytes());
            for (first, run) in &producer.ranges {
                bytes.extend_from_slice(&first.to_le_bytes());
                bytes.extend_from_slice(&run.index.get().to_le_bytes());
                bytes.extend_from_slice(&run.count.to_le_bytes());
            }
        }
    }

    /// Takes `count` producers; `None` if that is no table that marks of `size` entries can give.
    pub(super) fn decode(fields: &mut Fields<'_>, count: u32, size: TreeSize) -> Option<ProducerTable> {
        if count as usize > MAX_PRODUCERS {
            return None;
        }
        let mut table = ProducerTable::default();
        for _ in 0..count {
            let identity = fields.array().map(Hash::from_bytes)?;
            let key = ProducerKey { identity, id: fields.array()? };
            let producer = Producer::decode(fields, size)?;
            if table.producers.last_key_value().is_some_and(|(last, _)| *last >= key) {
                return None;
            }
            table.ahead += producer.ahead();
            table.producers.insert(key, producer);
        }
        (table.ahead <= MAX_RANGES_AHEAD).then_some(table)
    }
}

impl Producer {
    /// The highest epoch seen.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The lowest number that is not committed.
    pub fn next_sequence(&self) -> u64 {
        self.next_sequence
    }

    fn ahead(&self) -> usize {
        self.ranges.len() - self.behind
    }

    fn decode(fields: &mut Fields<'_>, size: TreeSize) -> Option<Producer> {
        let (epoch, next_sequence, count) = (fields.u64()?, fields.u64()?, fields.u32()?);
        if count as usize > MAX_RANGES_BEHIND + SEQUENCE_WINDOW as usize {
            return None;
        }
        let mut producer = Producer { epoch, next_sequence, ..Producer::default() };
        let mut end = None;
        for _ in 0..count {
            let (first, index) = (fields.u64()?, LeafIndex::new(fields.u64()?)?);
            let run = Run { index, count: fields.u32()? };
            if end.is_some_and(|end| first < end) {
                return None;
            }
            end = Some(first.checked_add(u64::from(run.count))?);
            producer.behind += usize::from(first < next_sequence);
            producer.ranges.insert(first, run);
        }
        producer.is_well_formed(size).then_some(producer)
    }
}

#[cfg(test)]
mod tests;
