//! How many rows lie under one stem on one day, hour by hour, and how many bytes: what an estimate is made of. Every row that a scan can
//! meet is counted here, in the transaction that wrote it, or is the only one of its stem, so that an estimate is never below what the scan
//! costs.

use super::value::{put, take};
use super::{Bytes, IndexError, disk, key};

/// Hours of a day.
const HOURS: usize = 24;

/// The length of an hour in nanoseconds.
const HOUR_NS: u64 = 3_600 * 1_000_000_000;

/// Rows and bytes of one stem and day.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Counts {
    /// The longest entry, in bytes.
    pub(super) longest: u64,
    hours: [(u64, u64); HOURS],
}

impl Counts {
    /// Counts an entry of this length at a time of the day.
    pub(super) fn add(&mut self, rest_ns: u64, bytes: usize) {
        self.longest = self.longest.max(bytes as u64);
        let hour = usize::try_from(rest_ns / HOUR_NS).unwrap_or(usize::MAX).min(HOURS - 1);
        let (rows, sum) = &mut self.hours[hour];
        *rows = rows.saturating_add(1);
        *sum = sum.saturating_add(bytes as u64);
    }

    /// Both together.
    pub(super) fn merge(&mut self, other: &Counts) {
        self.longest = self.longest.max(other.longest);
        for (mine, theirs) in self.hours.iter_mut().zip(other.hours) {
            *mine = (mine.0.saturating_add(theirs.0), mine.1.saturating_add(theirs.1));
        }
    }

    /// Rows and bytes of the hours that a span of the day touches, without its end.
    pub(super) fn within(&self, from_ns: u64, to_ns: u64) -> (u64, u64) {
        let hours = self.hours.iter().zip(0_u64..);
        hours
            .filter(|(_, hour)| hour * HOUR_NS < to_ns && from_ns < (hour + 1) * HOUR_NS)
            .fold((0, 0), |sum, (count, _)| (sum.0 + count.0, sum.1 + count.1))
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16);
        put(&mut out, self.longest);
        for ((rows, bytes), hour) in self.hours.iter().zip(0_u8..).filter(|((rows, _), _)| *rows > 0) {
            out.push(hour);
            put(&mut out, *rows);
            put(&mut out, *bytes);
        }
        out
    }

    pub(super) fn decode(mut rest: &[u8]) -> Option<Counts> {
        let mut counts = Counts { longest: take(&mut rest)?, ..Counts::default() };
        while let Some((hour, left)) = rest.split_first() {
            rest = left;
            *counts.hours.get_mut(usize::from(*hour))? = (take(&mut rest)?, take(&mut rest)?);
        }
        Some(counts)
    }
}

/// What rows say of a stem that may not be counted.
pub(super) enum Met {
    /// It has no row.
    None,
    /// It has one, which is not counted: the nanoseconds of its day, and its length.
    One(u64, usize),
    /// It has several, which are counted.
    More,
}

/// Looks for rows of a stem, and at no more of them than keys and a length.
pub(super) fn met(rows: &impl Bytes, stem: &[u8]) -> Result<Met, IndexError> {
    let mut met = Met::None;
    for row in rows.range::<&[u8]>(stem..).map_err(disk("read"))?.take(2) {
        let (key, value) = row.map_err(disk("read"))?;
        let (key, value) = (key.value(), value.value());
        let Some(rest_ns) = key::rest_of(key, stem) else { break };
        if matches!(met, Met::One(..)) {
            return Ok(Met::More);
        }
        met = Met::One(rest_ns, key.len() + value.len());
    }
    Ok(met)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_come_back_and_cover_every_hour_that_a_span_touches() {
        let mut counts = Counts::default();
        for (hour, bytes) in [(0, 10), (0, 20), (5, 300), (23, 1)] {
            counts.add(hour * HOUR_NS + 1, bytes);
        }
        assert_eq!(Counts::decode(&counts.encode()), Some(counts.clone()));
        assert_eq!(counts.longest, 300);
        for (from, to, expected) in [
            (0, 24 * HOUR_NS, (4, 331)),
            (0, 1, (2, 30)),
            (HOUR_NS - 1, HOUR_NS, (2, 30)),
            (HOUR_NS, 5 * HOUR_NS, (0, 0)),
            (HOUR_NS, 5 * HOUR_NS + 1, (1, 300)),
            (24 * HOUR_NS - 1, 24 * HOUR_NS, (1, 1)),
        ] {
            assert_eq!(counts.within(from, to), expected, "{from}..{to}");
        }
        let mut twice = counts.clone();
        twice.merge(&counts);
        assert_eq!(twice.within(0, 24 * HOUR_NS), (8, 662));
    }
}
