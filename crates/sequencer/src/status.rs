//! How a log is doing, for whoever runs it: sizes, what is under way, and whether it would take and publish an entry.

use epigraph_core::{TreeSize, UnixMillis};
use epigraph_store::tree::Counters;
use thiserror::Error;

use crate::machine::{Condition, Limits};

/// So long after an append that found no space the log counts as full. Space is found again only by trying, and nobody
/// tries a log that says it is not ready.
const NO_SPACE_REMEMBERED_MS: u64 = 60_000;

/// A log at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    /// Entries in the journal.
    pub durable: TreeSize,
    /// Entries that the newest published checkpoint covers.
    pub published: TreeSize,
    /// Durable entries that are not in the tree yet.
    pub tree_lag: u64,
    /// Milliseconds for which publication made no progress although there was something to publish.
    pub publication_behind_ms: u64,
    /// What entries on their way to the disk take in memory, in bytes.
    pub in_flight_bytes: usize,
    /// What complete tiles take in memory, in bytes.
    pub tile_bytes: usize,
    /// What went wrong with stored tiles.
    pub tiles: Counters,
    /// The lookup by leaf hash; `None` while it is not open.
    pub lookup: Option<LookupStatus>,
    /// Whether it would acknowledge and publish an entry.
    pub ready: Result<(), NotReady>,
}

/// The lookup by leaf hash at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LookupStatus {
    /// Entries that can be found: the first so many.
    pub size: TreeSize,
    /// Durable entries that cannot be found yet.
    pub lag: u64,
    /// What it takes on the disk, in bytes.
    pub bytes: u64,
}

/// Why a log would not acknowledge and publish an entry.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum NotReady {
    /// A fault has ended it.
    #[error("stopped: a fault has ended this log; the process's messages say which")]
    Stopped,
    /// The gate of its start.
    #[error("gated: the checks of the start wait for {0}")]
    Gated(String),
    /// The signer, or too few witnesses.
    #[error("not publishing: {0}")]
    NotPublishing(String),
    /// It is stopping.
    #[error("draining: the log is shutting down")]
    Draining,
    /// Nothing is signed before the tree has caught up with the journal.
    #[error("catching up: {lag} of {durable} entries are not in the tree yet")]
    CatchingUp {
        /// Entries that the tree does not have.
        lag: u64,
        /// Entries that the journal has.
        durable: TreeSize,
    },
    /// The journal's disk.
    #[error("no space: the log's disk was full when entries were last appended; make room")]
    NoSpace,
    /// Publication.
    #[error("publication is behind: {unpublished} entries wait, without progress for {} s", behind_ms / 1000)]
    Behind {
        /// Entries that wait for it.
        unpublished: u64,
        /// For how long nothing was published, in milliseconds.
        behind_ms: u64,
    },
}

/// The first thing that stands in the way, of what lasts and not of what a retry gets over.
pub(crate) fn ready(
    condition: &Condition,
    limits: &Limits,
    caught_up: bool,
    status: &Status,
    now: UnixMillis,
) -> Result<(), NotReady> {
    let unpublished = status.durable.get().saturating_sub(status.published.get());
    let behind_ms = status.publication_behind_ms;
    let refused_lately = |at: UnixMillis| now.0.saturating_sub(at.0) <= NO_SPACE_REMEMBERED_MS;
    if condition.draining {
        Err(NotReady::Draining)
    } else if !caught_up {
        Err(NotReady::CatchingUp { lag: status.tree_lag, durable: status.durable })
    } else if condition.no_space_at.is_some_and(refused_lately) {
        Err(NotReady::NoSpace)
    } else if unpublished >= limits.unpublished_max_entries || behind_ms > limits.unpublished_max_age_ms {
        Err(NotReady::Behind { unpublished, behind_ms })
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { unpublished_max_entries: 10, unpublished_max_age_ms: 1_000 };
    const NOW: UnixMillis = UnixMillis(1_000_000);

    fn check(condition: Condition, caught_up: bool, unpublished: u64, behind_ms: u64, expected: &str) {
        let status = Status {
            durable: TreeSize::new(100).unwrap(),
            published: TreeSize::new(100 - unpublished).unwrap(),
            tree_lag: 7,
            publication_behind_ms: behind_ms,
            in_flight_bytes: 0,
            tile_bytes: 0,
            tiles: Counters::default(),
            lookup: None,
            ready: Ok(()),
        };
        let said = ready(&condition, &LIMITS, caught_up, &status, NOW);
        assert_eq!(said.map_or_else(|why| why.to_string(), |()| "ready".into()), expected);
    }

    #[test]
    fn it_is_ready_until_something_stands_in_the_way_that_lasts() {
        let fine = Condition::default();
        check(fine, true, 9, 1_000, "ready");
        check(fine, true, 10, 0, "publication is behind: 10 entries wait, without progress for 0 s");
        check(fine, true, 1, 1_001, "publication is behind: 1 entries wait, without progress for 1 s");
        check(fine, false, 0, 0, "catching up: 7 of 100 entries are not in the tree yet");
        let draining = Condition { draining: true, ..fine };
        check(draining, false, 10, 9_999, "draining: the log is shutting down");
    }

    #[test]
    fn a_full_disk_is_remembered_for_a_minute_so_that_somebody_tries_again() {
        let full = |ago| Condition { no_space_at: Some(UnixMillis(NOW.0 - ago)), ..Condition::default() };
        let says = "no space: the log's disk was full when entries were last appended; make room";
        check(full(0), true, 0, 0, says);
        check(full(NO_SPACE_REMEMBERED_MS), true, 0, 0, says);
        check(full(NO_SPACE_REMEMBERED_MS + 1), true, 0, 0, "ready");
    }
}
