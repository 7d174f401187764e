//! What the journal keeps of producers, for exactly-once appends: a mark in each frame, a table in each segment.
//!
//! The formats are final; no producer appends yet, so frames carry no marks and tables are empty. Which sequence
//! numbers are accepted is the sequencer's business.

use epigraph_core::{Hash, LeafIndex};

use crate::fields::Fields;

/// Bytes of an encoded [`ProducerMark`].
pub(super) const MARK_BYTES: usize = 16 + 32 + 8 + 8 + 4 + 4;

/// Producers in the table of one log: a full table refuses new ones (DESIGN section 5).
pub const MAX_PRODUCERS: usize = 1_024;

/// Ranges kept of one producer: the window of sequence numbers, should each stand alone.
pub const MAX_RANGES: usize = 16_384;

/// A run of entries in one frame that one producer sent under contiguous sequence numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProducerMark {
    /// Chosen by the producer.
    pub producer: [u8; 16],
    /// SHA-256 of the identity under which it sends.
    pub identity: Hash,
    /// A lower one is fenced.
    pub epoch: u64,
    /// The sequence number of the run's first entry.
    pub first_sequence: u64,
    /// Where the run starts in the frame, counted in entries from 0.
    pub offset: u32,
    /// Entries in the run.
    pub count: u32,
}

/// What is committed of every producer, in ascending order of (identity hash, producer id).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ProducerTable(Vec<Producer>);

/// What is committed of one producer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Producer {
    /// SHA-256 of the identity under which it sends.
    pub identity: Hash,
    /// Chosen by the producer.
    pub producer: [u8; 16],
    /// The highest epoch seen.
    pub epoch: u64,
    /// Ascending by sequence number, without overlap.
    pub ranges: Vec<CommittedRange>,
}

/// Contiguous sequence numbers at contiguous leaf indices.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CommittedRange {
    /// The first sequence number.
    pub first_sequence: u64,
    /// The leaf index of that entry.
    pub first_index: LeafIndex,
    /// How many; at least 1.
    pub count: u32,
}

impl ProducerMark {
    pub(super) fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.producer);
        bytes.extend_from_slice(self.identity.as_bytes());
        bytes.extend_from_slice(&self.epoch.to_le_bytes());
        bytes.extend_from_slice(&self.first_sequence.to_le_bytes());
        bytes.extend_from_slice(&self.offset.to_le_bytes());
        bytes.extend_from_slice(&self.count.to_le_bytes());
    }

    pub(super) fn decode(fields: &mut Fields<'_>) -> Option<ProducerMark> {
        Some(ProducerMark {
            producer: fields.array()?,
            identity: fields.array().map(Hash::from_bytes)?,
            epoch: fields.u64()?,
            first_sequence: fields.u64()?,
            offset: fields.u32()?,
            count: fields.u32()?,
        })
    }
}

impl ProducerTable {
    /// Takes producers in canonical order; `None` if order, ranges or a limit is violated.
    pub fn new(producers: Vec<Producer>) -> Option<ProducerTable> {
        let ascending = producers.is_sorted_by(|a, b| (a.identity, a.producer) < (b.identity, b.producer));
        let well_formed = producers.iter().all(|producer| is_well_formed(&producer.ranges));
        (ascending && well_formed && producers.len() <= MAX_PRODUCERS).then_some(ProducerTable(producers))
    }

    /// The producers, in canonical order.
    pub fn producers(&self) -> &[Producer] {
        &self.0
    }

    pub(super) fn count(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn encode(&self, bytes: &mut Vec<u8>) {
        for producer in &self.0 {
            bytes.extend_from_slice(producer.identity.as_bytes());
            bytes.extend_from_slice(&producer.producer);
            bytes.extend_from_slice(&producer.epoch.to_le_bytes());
            bytes.extend_from_slice(&u32::try_from(producer.ranges.len()).unwrap_or(u32::MAX).to_le_bytes());
            for range in &producer.ranges {
                bytes.extend_from_slice(&range.first_sequence.to_le_bytes());
                bytes.extend_from_slice(&range.first_index.get().to_le_bytes());
                bytes.extend_from_slice(&range.count.to_le_bytes());
            }
        }
    }

    pub(super) fn decode(fields: &mut Fields<'_>, count: u32) -> Option<ProducerTable> {
        if count as usize > MAX_PRODUCERS {
            return None;
        }
        let producers = (0..count).map(|_| Producer::decode(fields)).collect::<Option<Vec<_>>>()?;
        ProducerTable::new(producers)
    }
}

impl Producer {
    fn decode(fields: &mut Fields<'_>) -> Option<Producer> {
        let identity = fields.array().map(Hash::from_bytes)?;
        let (producer, epoch, count) = (fields.array()?, fields.u64()?, fields.u32()?);
        if count as usize > MAX_RANGES {
            return None;
        }
        let range = |_| {
            let (first_sequence, first_index) = (fields.u64()?, LeafIndex::new(fields.u64()?)?);
            Some(CommittedRange { first_sequence, first_index, count: fields.u32()? })
        };
        let ranges = (0..count).map(range).collect::<Option<Vec<_>>>()?;
        Some(Producer { identity, producer, epoch, ranges })
    }
}

fn is_well_formed(ranges: &[CommittedRange]) -> bool {
    let end = |range: &CommittedRange| range.first_sequence.checked_add(u64::from(range.count));
    ranges.len() <= MAX_RANGES
        && ranges.iter().all(|range| range.count > 0 && end(range).is_some())
        && ranges.is_sorted_by(|a, b| end(a).is_some_and(|end| end <= b.first_sequence))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn producer(identity: u8, id: u8, ranges: &[(u64, u64, u32)]) -> Producer {
        let range = |&(first_sequence, index, count): &(u64, u64, u32)| CommittedRange {
            first_sequence,
            first_index: LeafIndex::new(index).unwrap(),
            count,
        };
        let ranges = ranges.iter().map(range).collect();
        Producer { identity: Hash::from_bytes([identity; 32]), producer: [id; 16], epoch: 7, ranges }
    }

    #[test]
    fn marks_and_tables_round_trip_and_a_cut_one_is_refused() {
        let mark = ProducerMark {
            producer: [1; 16],
            identity: Hash::from_bytes([2; 32]),
            epoch: 3,
            first_sequence: 4,
            offset: 5,
            count: 6,
        };
        let mut bytes = Vec::new();
        mark.encode(&mut bytes);
        assert_eq!(bytes.len(), MARK_BYTES);
        assert_eq!(ProducerMark::decode(&mut Fields(&bytes)), Some(mark));

        let all = (0..MAX_PRODUCERS)
            .map(|n| producer((n / 256) as u8, n as u8, &[(0, 9, 2), (2, 40, 1), (5, 41, 3)]));
        for table in [ProducerTable::default(), ProducerTable::new(all.collect()).unwrap()] {
            let mut bytes = Vec::new();
            table.encode(&mut bytes);
            assert_eq!(ProducerTable::decode(&mut Fields(&bytes), table.count()), Some(table.clone()));
            if let Some(last) = bytes.len().checked_sub(1) {
                assert_eq!(ProducerTable::decode(&mut Fields(&bytes[..last]), table.count()), None);
            }
        }
    }

    #[test]
    fn a_table_out_of_order_or_beyond_its_limits_is_refused() {
        let check = |producers: Vec<Producer>, accepted: bool| {
            assert_eq!(ProducerTable::new(producers.clone()).is_some(), accepted, "{producers:?}");
        };
        check(vec![producer(1, 1, &[]), producer(1, 2, &[(u64::MAX - 1, 0, 1)])], true);
        check(vec![producer(1, 2, &[]), producer(1, 1, &[])], false);
        check(vec![producer(1, 1, &[]), producer(1, 1, &[])], false);
        check(vec![producer(1, 1, &[(0, 0, 0)])], false);
        check(vec![producer(1, 1, &[(0, 0, 2), (1, 9, 1)])], false);
        check(vec![producer(1, 1, &[(u64::MAX, 0, 1)])], false);
        assert!(
            ProducerTable::new(
                (0..=MAX_PRODUCERS).map(|n| producer((n / 256) as u8, n as u8, &[])).collect()
            )
            .is_none()
        );
        assert_eq!(ProducerTable::decode(&mut Fields(&[]), u32::MAX), None);
    }
}
