//! How much one caller, or one log, may ask for in a second: buckets of tokens that fill with time. It knows names and the time
//! that it is told.

use std::collections::BTreeMap;

use epigraph_core::UnixMillis;
use thiserror::Error;

/// Names with a bucket of their own. More certificates than this do not call one server; when the table is full, those
/// whose bucket is full again make room.
pub const MAX_NAMES: usize = 32_768;

/// Too much was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("more than {per_second} requests a second; try again in {retry_ms} ms")]
pub struct TooFast {
    /// What is allowed.
    pub per_second: u32,
    /// When there is room again, in milliseconds.
    pub retry_ms: u64,
}

/// One bucket a name; each holds what one second gives.
#[derive(Debug)]
pub struct Rates<K> {
    per_second: u32,
    buckets: BTreeMap<K, Bucket>,
}

#[derive(Debug)]
struct Bucket {
    /// Thousandths of a token.
    left: u64,
    at: UnixMillis,
}

impl<K: Ord + Clone> Rates<K> {
    /// `per_second` requests a second for each name, at least one.
    pub fn new(per_second: u32) -> Rates<K> {
        Rates { per_second: per_second.max(1), buckets: BTreeMap::new() }
    }

    /// Takes one token of a name.
    pub fn take(&mut self, name: &K, now: UnixMillis) -> Result<(), TooFast> {
        let rate = u64::from(self.per_second);
        let full = rate * 1_000;
        if !self.buckets.contains_key(name) {
            if self.buckets.len() >= MAX_NAMES {
                self.buckets.retain(|_, bucket| now.0.saturating_sub(bucket.at.0) < 1_000);
            }
            if self.buckets.len() >= MAX_NAMES {
                return Err(TooFast { per_second: self.per_second, retry_ms: 1_000 });
            }
        }
        let bucket = self.buckets.entry(name.clone()).or_insert(Bucket { left: full, at: now });
        // A clock that was set back fills nothing, and does not lock anybody out: from here on it counts from there.
        let gone = now.0.saturating_sub(bucket.at.0).min(1_000);
        bucket.left = (bucket.left + gone * rate).min(full);
        bucket.at = now;
        match bucket.left.checked_sub(1_000) {
            Some(left) => {
                bucket.left = left;
                Ok(())
            }
            None => {
                let retry_ms = (1_000 - bucket.left).div_ceil(rate);
                Err(TooFast { per_second: self.per_second, retry_ms })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Broken to see it fail: a bucket for all names; a bucket that fills without bound.
    #[test]
    fn one_name_has_what_a_second_gives_and_takes_nothing_from_another() {
        let mut rates = Rates::new(3);
        let mut at = |name: &str, ms: u64, expected: Result<(), u64>| {
            let taken = rates.take(&name.to_string(), UnixMillis(ms)).map_err(|exceeded| exceeded.retry_ms);
            assert_eq!(taken, expected, "{name} at {ms}");
        };
        for _ in 0..3 {
            at("a", 10_000, Ok(()));
        }
        at("a", 10_000, Err(334));
        at("a", 10_333, Err(1));
        at("b", 10_333, Ok(()));
        at("a", 10_334, Ok(()));
        at("a", 10_334, Err(333));
        // After an hour there is a second's worth, not an hour's.
        for _ in 0..3 {
            at("a", 3_610_334, Ok(()));
        }
        at("a", 3_610_334, Err(334));
        // A clock that was set back.
        at("a", 5_000, Err(334));
        at("a", 5_334, Ok(()));
    }
}
