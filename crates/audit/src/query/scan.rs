//! A question to an index, what it may cost, and what it did cost.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use epigraph_core::LeafIndex;
use epigraph_event::v1::Result as Outcome;
use thiserror::Error;

use super::row::{Column, Pseudonym, Row, Value, word};

/// The length of a day in nanoseconds.
pub const DAY_NS: i64 = 86_400 * 1_000_000_000;

/// The pseudonyms that one scan may look for at once: one person in each of so many tenants.
pub const MAX_SUBJECTS: usize = 256;

/// The values that one clause of a filter may list: what a person writes down.
pub const MAX_VALUES: usize = 64;

/// A span of time by the clocks of sources, in nanoseconds since 1970-01-01T00:00:00Z. It has a beginning and an end.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Window {
    from_ns: i64,
    to_ns: i64,
}

/// Not a window.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error(
    "a window ends after it begins: give a `from` that lies before `to`; `to` itself is not in the window"
)]
pub struct NoWindow;

impl Window {
    /// From `from_ns` on, up to and without `to_ns`.
    pub const fn new(from_ns: i64, to_ns: i64) -> Result<Window, NoWindow> {
        if from_ns < to_ns { Ok(Window { from_ns, to_ns }) } else { Err(NoWindow) }
    }

    /// Its first nanosecond.
    pub const fn from_ns(&self) -> i64 {
        self.from_ns
    }

    /// The nanosecond after its last.
    pub const fn to_ns(&self) -> i64 {
        self.to_ns
    }

    /// How long it is, in nanoseconds.
    pub const fn length_ns(&self) -> u64 {
        self.to_ns.abs_diff(self.from_ns)
    }

    /// Whether a time lies in it.
    pub const fn contains(&self, at_ns: i64) -> bool {
        self.from_ns <= at_ns && at_ns < self.to_ns
    }

    /// The days that it touches, counted from 1970-01-01 in UTC.
    pub fn days(&self) -> Range<i32> {
        // 2^63 nanoseconds are less than 2^17 days.
        let day = |ns: i64| ns.div_euclid(DAY_NS) as i32;
        day(self.from_ns)..day(self.to_ns - 1) + 1
    }
}

/// By which index rows are found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Access {
    /// All in the window.
    Time,
    /// In which one of these acted, was acted for, or was the credential.
    Actor(Vec<Pseudonym>),
    /// In which one of these was acted on.
    Resource(Vec<Pseudonym>),
    /// Of one request, or of one trace.
    Request(String),
    /// That ended like this.
    Outcome {
        /// How they ended.
        result: Outcome,
        /// What was done; none for anything.
        action: Option<String>,
    },
}

/// One condition on a column: that it has one of these values.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Clause {
    /// The column.
    pub column: Column,
    /// The values, at least one.
    pub any_of: Vec<Value>,
}

/// Conditions that all hold. There are no patterns: what is asked for is said exactly.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Filter(pub Vec<Clause>);

impl Filter {
    /// Whether a row meets every condition.
    pub fn takes(&self, row: &Row) -> bool {
        self.0.iter().all(|clause| clause.any_of.iter().any(|value| row.has(clause.column, value)))
    }
}

/// A question to an index.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Scan {
    /// Of which kind of source: `k8s`, `cloudtrail`; none for every kind.
    pub stream: Option<String>,
    /// Whose events; none for everybody's.
    pub tenant: Option<String>,
    /// By which index.
    pub access: Access,
    /// When it happened.
    pub window: Window,
    /// What else must hold.
    pub filter: Filter,
    /// The newest first, or the oldest.
    pub newest_first: bool,
    /// The most rows that are wanted.
    pub limit: u64,
    /// Only what comes behind this place, in the order of the answer: [`Row::place`] of the last row of the page before.
    pub after: Option<(i64, LeafIndex)>,
}

impl Scan {
    /// What finds the same rows by time alone; none where that reads of everybody what is asked about somebody.
    pub fn by_time(&self) -> Option<Scan> {
        let Access::Outcome { result, action: None } = self.access else { return None };
        let mut scan = Scan { access: Access::Time, ..self.clone() };
        scan.filter.0.push(Clause { column: Column::Result, any_of: vec![Value::Text(word(result))] });
        Some(scan)
    }

    /// Whether a row is one that is asked for, however it was found. Limit and place are not looked at.
    pub fn takes(&self, row: &Row) -> bool {
        let by_access = match &self.access {
            Access::Time => true,
            Access::Actor(whom) => row.actors().iter().any(|actor| whom.contains(actor)),
            Access::Resource(what) => row.things().iter().any(|thing| what.contains(thing)),
            Access::Request(id) => row.requests().iter().any(|of| **of == **id),
            Access::Outcome { result, action } => {
                row.result == *result && action.as_ref().is_none_or(|action| *row.action == **action)
            }
        };
        by_access
            && self.window.contains(row.occurred_at_ns)
            && self.tenant.as_ref().is_none_or(|tenant| *row.tenant == **tenant)
            && self.stream.as_ref().is_none_or(|stream| *row.source_kind == **stream)
            && self.filter.takes(row)
    }
}

/// What a scan costs at most. It is made from statistics alone, and no run of the same scan on the same state costs more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Estimate {
    /// Rows that are examined.
    pub rows: u64,
    /// Bytes of the index that are read.
    pub bytes: u64,
    /// Days in which there is something to read.
    pub days: u32,
}

/// What a scan did cost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cost {
    /// Rows that were looked at.
    pub rows_examined: u64,
    /// Rows that were in the answer.
    pub rows_returned: u64,
    /// Bytes of the index that were read.
    pub bytes_read: u64,
}

/// Why a scan ended before the end of its window.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Stopped {
    /// It has as many rows as were wanted.
    #[error("there are more rows than were asked for: go on from the last one")]
    Limit,
    /// Somebody cancelled it, or nobody waits for it any more.
    #[error("the query was cancelled")]
    Cancelled,
    /// It took too long.
    #[error("the query took longer than it may: ask for a shorter window")]
    Deadline,
    /// It would have read more than it may.
    #[error("the query would read more than it may: ask for a shorter window")]
    Budget,
}

/// Counts what a scan costs, and stops it: shared by who runs it, who lists it, and who cancels it.
#[derive(Debug)]
pub struct Meter {
    max_rows: u64,
    max_bytes: u64,
    examined: AtomicU64,
    returned: AtomicU64,
    bytes: AtomicU64,
    cancelled: AtomicBool,
    late: AtomicBool,
}

impl Meter {
    /// For a scan that may examine so many rows and read so many bytes.
    pub const fn new(max_rows: u64, max_bytes: u64) -> Meter {
        Meter {
            max_rows,
            max_bytes,
            examined: AtomicU64::new(0),
            returned: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            cancelled: AtomicBool::new(false),
            late: AtomicBool::new(false),
        }
    }

    /// For a scan that may cost as much as was estimated.
    pub const fn of(estimate: &Estimate) -> Meter {
        Meter::new(estimate.rows, estimate.bytes)
    }

    /// Stops the scan at its next row.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Stops the scan at its next row because its time is over.
    pub fn expire(&self) {
        self.late.store(true, Ordering::Relaxed);
    }

    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// What it has cost so far.
    pub fn cost(&self) -> Cost {
        Cost {
            rows_examined: self.examined.load(Ordering::Relaxed),
            rows_returned: self.returned.load(Ordering::Relaxed),
            bytes_read: self.bytes.load(Ordering::Relaxed),
        }
    }

    /// Counts a row before it is looked at, or says why it must not be. Called by one scan at a time.
    pub fn examine(&self, bytes: usize) -> Result<(), Stopped> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(Stopped::Cancelled);
        }
        if self.late.load(Ordering::Relaxed) {
            return Err(Stopped::Deadline);
        }
        let Cost { rows_examined, bytes_read, .. } = self.cost();
        let (rows, bytes) = (rows_examined.saturating_add(1), bytes_read.saturating_add(bytes as u64));
        if rows > self.max_rows || bytes > self.max_bytes {
            return Err(Stopped::Budget);
        }
        self.examined.store(rows, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Counts a row that is in the answer.
    pub fn answer(&self) {
        self.returned.fetch_add(1, Ordering::Relaxed);
    }
}
