//! The keys of the indexes: day, tenant, what the index is by, time, leaf. As bytes they sort in that order, so that what is asked for in a
//! day lies side by side, and a day is one range.

use epigraph_core::LeafIndex;
use epigraph_event::v1::Result as Outcome;

use super::IndexError;
use crate::query::scan::DAY_NS;
use crate::vault::Cover;

/// Which index.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// By time alone.
    Time,
    /// By who acted, for whom, and by credential.
    Actor,
    /// By what was acted on.
    Resource,
    /// By the id of the request.
    Request,
    /// By how it ended and what was done.
    Outcome,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 5] = [Kind::Time, Kind::Actor, Kind::Resource, Kind::Request, Kind::Outcome];

    /// The word for it, which does not change.
    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::Time => "time",
            Kind::Actor => "actor",
            Kind::Resource => "resource",
            Kind::Request => "request",
            Kind::Outcome => "outcome",
        }
    }

    /// The index of this name.
    pub fn named(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// Whether a stem is counted that has one row only. Where most have, their rows are looked for instead: who and what is seldom met, and
    /// almost every request.
    pub(super) const fn counts_one(self) -> bool {
        match self {
            // A result is asked for with all of its actions, which are found by their counts.
            Kind::Time | Kind::Outcome => true,
            Kind::Actor | Kind::Resource | Kind::Request => false,
        }
    }

    /// Its place in [`Kind::ALL`].
    pub const fn place(self) -> usize {
        self as usize
    }
}

/// Bytes of day and tenant.
pub(super) const DAY_AND_TENANT: usize = 8;

/// Bytes of time and leaf, at the end of every key.
const PLACE: usize = 14;

/// A day, counted from 1970-01-01, so that days before it sort before it.
pub(super) fn day_bytes(day: i32) -> [u8; 4] {
    ((day as u32) ^ 0x8000_0000).to_be_bytes()
}

/// A day from a key.
pub(super) fn day_of(bytes: [u8; 4]) -> i32 {
    (u32::from_be_bytes(bytes) ^ 0x8000_0000) as i32
}

/// The day of a time, and the nanoseconds in it.
pub(super) fn day_and_rest(at_ns: i64) -> (i32, u64) {
    // 2^63 nanoseconds are less than 2^17 days.
    (at_ns.div_euclid(DAY_NS) as i32, at_ns.rem_euclid(DAY_NS) as u64)
}

/// What keys of one day and tenant begin with, up to what the index is by.
pub(super) fn stem(day: i32, tenant: u32, by: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(DAY_AND_TENANT + by.len() + PLACE);
    key.extend_from_slice(&day_bytes(day));
    key.extend_from_slice(&tenant.to_be_bytes());
    key.extend_from_slice(by);
    key
}

/// A stem with time and leaf behind it.
pub(super) fn key(stem: &[u8], rest_ns: u64, leaf: u64) -> Vec<u8> {
    let [_, _, time @ ..] = rest_ns.to_be_bytes();
    [stem, &time, &leaf.to_be_bytes()].concat()
}

/// The nanoseconds of the day in a key, if it is one of this stem.
pub(super) fn rest_of(key: &[u8], stem: &[u8]) -> Option<u64> {
    let place: &[u8; PLACE] = key.strip_prefix(stem)?.try_into().ok()?;
    Some(place.iter().take(6).fold(0, |rest, byte| rest << 8 | u64::from(*byte)))
}

/// The longest key: that of a request.
const MAX_KEY: usize = DAY_AND_TENANT + 16 + PLACE;

/// A key that is to be written.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    bytes: [u8; MAX_KEY],
    length: u8,
}

impl Key {
    /// What was done to `by`, at a time and with a leaf. What an index is by is of one length in the whole index.
    pub(super) fn new(tenant: u32, by: &[u8], (at_ns, leaf): (i64, u64)) -> Key {
        let (day, rest_ns) = day_and_rest(at_ns);
        let [_, _, time @ ..] = rest_ns.to_be_bytes();
        let mut key = Key { bytes: [0; MAX_KEY], length: 0 };
        for part in [&day_bytes(day)[..], &tenant.to_be_bytes(), by, &time, &leaf.to_be_bytes()] {
            let at = usize::from(key.length);
            if let Some(to) = key.bytes.get_mut(at..at + part.len()) {
                to.copy_from_slice(part);
                key.length += part.len() as u8;
            }
        }
        key
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    /// What stands before time and leaf.
    pub(super) fn stem(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length).saturating_sub(PLACE)]
    }

    /// Nanoseconds of the day.
    pub(super) fn rest_ns(&self) -> u64 {
        rest_of(self.bytes(), self.stem()).unwrap_or_default()
    }
}

/// The time and the leaf of a key.
pub(super) fn place(key: &[u8]) -> Result<(i64, LeafIndex), IndexError> {
    let damaged = || IndexError::Damaged("a key".into());
    let day = day_of(*key.first_chunk().ok_or_else(damaged)?);
    let at = key.len().checked_sub(PLACE).ok_or_else(damaged)?;
    let (time, leaf) = key[at..].split_at(6);
    let rest = time.iter().fold(0_i64, |rest, byte| rest << 8 | i64::from(*byte));
    let leaf = leaf.iter().fold(0_u64, |leaf, byte| leaf << 8 | u64::from(*byte));
    let at_ns = i64::from(day).checked_mul(DAY_NS).and_then(|start| start.checked_add(rest));
    // The first day of all times begins before the first nanosecond that can be said.
    let at_ns = at_ns.or_else(|| i64::from(day + 1).checked_mul(DAY_NS)?.checked_add(rest - DAY_NS));
    Ok((at_ns.ok_or_else(damaged)?, LeafIndex::new(leaf).ok_or_else(damaged)?))
}

/// What the index by request is by. Whoever finds a row compares the id: two ids may share this.
pub(super) fn of_request(cover: &Cover, id: &str) -> [u8; 16] {
    cover.name(&[b"request\n", id.as_bytes()].concat())
}

/// What a row is sealed to beside its leaf: what else stands in each of its keys.
pub(super) fn of_row(tenant: u32, occurred_at_ns: i64) -> [u8; 12] {
    let mut place = [0; 12];
    place[..4].copy_from_slice(&tenant.to_be_bytes());
    place[4..].copy_from_slice(&occurred_at_ns.to_be_bytes());
    place
}

/// What the index by outcome is by, without the action.
pub(super) fn of_result(result: Outcome) -> [u8; 1] {
    [result as u8]
}

/// What the index by outcome is by.
pub(super) fn of_outcome(result: Outcome, action: u32) -> [u8; 5] {
    let [a, b, c, d] = action.to_be_bytes();
    [result as u8, a, b, c, d]
}
