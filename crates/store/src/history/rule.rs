//! Which checkpoints stay in the history. A rule over times and sizes, and nothing else.

use epigraph_core::{TreeSize, UnixMillis};

/// The newest checkpoints all stay: what somebody who holds a fresh receipt asks for.
pub const RECENT: usize = 1_024;

/// Of those before, the first of each hour stays for so many days.
pub const DAYS_OF_HOURS: u64 = 30;

/// Of those before the newest ones, at most so many stay: hours of a month and days of twenty years. A clock that jumps cannot
/// make it more.
pub const MAX_OLD: usize = 8_192;

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;

/// When a checkpoint was published, and its size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    /// By the log's clock.
    pub time: UnixMillis,
    /// The tree's size.
    pub size: TreeSize,
}

/// The positions of those that stay, in ascending order. `stamps` are in the order of publication. Ages are counted from the
/// newest one, not from now: a log that stands still forgets nothing.
pub fn thinned(stamps: &[Stamp]) -> Vec<usize> {
    let newest = stamps.last().map_or(0, |stamp| stamp.time.0);
    let recent = stamps.len().saturating_sub(RECENT);
    let mut last = None;
    let mut old: Vec<usize> = Vec::new();
    for (at, stamp) in stamps.iter().enumerate().take(recent) {
        let time = stamp.time.0;
        let hourly = newest.saturating_sub(time) < DAYS_OF_HOURS * DAY;
        let stretch = (hourly, time / if hourly { HOUR } else { DAY });
        if last != Some(stretch) {
            old.push(at);
            last = Some(stretch);
        }
    }
    old.drain(..old.len().saturating_sub(MAX_OLD));
    old.extend(recent..stamps.len());
    old
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 19_000 * DAY;

    /// A checkpoint so many milliseconds after the start, for each of them.
    fn stamps(times: impl IntoIterator<Item = u64>) -> Vec<Stamp> {
        let at = |(size, time)| Stamp { time: UnixMillis(START + time), size: TreeSize::new(size).unwrap() };
        (1..).zip(times).map(at).collect()
    }

    /// The times that stay, in milliseconds after the start, without the newest ones.
    fn check(times: &[u64], expected: &[u64]) {
        let all = stamps(times.iter().copied().chain(std::iter::repeat_n(*times.last().unwrap(), RECENT)));
        let kept = thinned(&all);
        let old: Vec<_> = kept.iter().filter(|at| **at < times.len()).map(|at| times[*at]).collect();
        assert_eq!(old, expected);
        let recent: Vec<_> = (times.len()..times.len() + RECENT).collect();
        assert_eq!(kept[old.len()..], recent);
        // What was thinned stays as it is.
        let again: Vec<_> = kept.iter().map(|at| all[*at]).collect();
        assert_eq!(thinned(&again).len(), again.len());
    }

    #[test]
    fn the_newest_all_stay() {
        for count in [0, 1, RECENT] {
            assert_eq!(thinned(&stamps(std::iter::repeat_n(0, count))).len(), count);
        }
        assert_eq!(thinned(&stamps(std::iter::repeat_n(0, RECENT + 2))).len(), RECENT + 1);
    }

    #[test]
    fn the_first_of_each_hour_stays_for_a_month_and_then_the_first_of_each_day() {
        check(&[0, 1, HOUR - 1, HOUR, HOUR + 5, 3 * HOUR], &[0, HOUR, 3 * HOUR]);
        let month = DAYS_OF_HOURS * DAY;
        check(&[0, HOUR, 2 * HOUR, DAY, month + 2 * DAY], &[0, DAY, month + 2 * DAY]);
        check(&[0, HOUR, month - 1 + HOUR], &[0, HOUR, month - 1 + HOUR]);
    }

    #[test]
    fn a_clock_that_jumps_makes_no_more_of_them_than_fit() {
        let jumping = (0..3 * MAX_OLD as u64).map(|n| n % 2 * DAY);
        let kept = thinned(&stamps(jumping));
        assert_eq!(kept.len(), MAX_OLD + RECENT);
        assert_eq!(kept[0], 2 * MAX_OLD - RECENT, "the oldest go first");
        assert!(kept.is_sorted());
    }
}
