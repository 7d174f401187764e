//! What each reader has read today, and how many of its queries run. What is planned counts until it is known what it really read.

use std::collections::BTreeMap;

use epigraph_core::UnixMillis;

use super::limits::Limits;
use super::refusal::{Code, Refusal};

/// The most readers who read on one day. Beyond them nobody new reads: forgetting one would give it a new quota.
pub const MAX_READERS: usize = 100_000;

const DAY_MS: u64 = 86_400_000;

/// Where a reader stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Standing {
    /// The bytes that it has read today, and those that its running queries may still read.
    pub bytes_today: u64,
    /// How many of its queries run.
    pub running: u32,
}

impl Standing {
    /// Whether one more query of so many bytes may run.
    pub fn allows(&self, bytes: u64, limits: &Limits) -> Result<(), Refusal> {
        if self.running >= limits.running {
            return Err(Refusal::new(
                Code::TooManyRunning,
                format!("{} of your queries run, and {} may", self.running, limits.running),
                "Wait for one of them, or cancel it: `epigraph query running` lists them.",
            ));
        }
        let left = limits.day_bytes.saturating_sub(self.bytes_today);
        if bytes > left { Err(spent(bytes, left, limits)) } else { Ok(()) }
    }
}

fn spent(bytes: u64, left: u64, limits: &Limits) -> Refusal {
    Refusal::new(
        Code::QuotaSpent,
        format!("it may read {bytes} bytes, and of today's {} there are {left} left", limits.day_bytes),
        "Ask for a shorter window, or again after 00:00 UTC.",
    )
}

/// Of all readers. Whoever plans a query holds it until the query is counted in it: two that are planned at once must not both find the
/// same bytes left.
#[derive(Debug, Default)]
pub struct Ledger {
    day: u64,
    standings: BTreeMap<String, Standing>,
}

/// A query that is counted. To be given back to [`Ledger::settle`].
#[derive(PartialEq, Eq, Debug)]
#[must_use = "a query that is never settled runs for ever"]
pub struct Counted {
    reader: String,
    day: u64,
    bytes: u64,
}

impl Ledger {
    /// Where a reader stands now.
    pub fn standing(&mut self, reader: &str, now: UnixMillis) -> Standing {
        self.turn(now);
        self.standings.get(reader).copied().unwrap_or_default()
    }

    /// Counts a query that may read so many bytes, or says why it must not run.
    pub fn count(
        &mut self,
        reader: &str,
        bytes: u64,
        limits: &Limits,
        now: UnixMillis,
    ) -> Result<Counted, Refusal> {
        self.standing(reader, now).allows(bytes, limits)?;
        if self.standings.len() >= MAX_READERS && !self.standings.contains_key(reader) {
            return Err(Refusal::new(
                Code::TooManyRunning,
                format!("{MAX_READERS} readers have read today, and a service counts no more"),
                "Ask again after 00:00 UTC.",
            ));
        }
        let standing = self.standings.entry(reader.to_owned()).or_default();
        standing.bytes_today = standing.bytes_today.saturating_add(bytes);
        standing.running += 1;
        Ok(Counted { reader: reader.to_owned(), day: self.day, bytes })
    }

    /// Adds what a reader is known to have read today: at start, from what the log says of it.
    pub fn add(&mut self, reader: &str, bytes: u64, now: UnixMillis) {
        self.turn(now);
        let standing = self.standings.entry(reader.to_owned()).or_default();
        standing.bytes_today = standing.bytes_today.saturating_add(bytes);
    }

    /// Counts so many bytes more for a query that has no end: of the day on which they are read.
    pub fn grow(
        &mut self,
        counted: &mut Counted,
        bytes: u64,
        limits: &Limits,
        now: UnixMillis,
    ) -> Result<(), Refusal> {
        let left = limits.day_bytes.saturating_sub(self.standing(&counted.reader, now).bytes_today);
        if bytes > left {
            return Err(spent(bytes, left, limits));
        }
        if counted.day != self.day {
            (counted.day, counted.bytes) = (self.day, 0);
        }
        counted.bytes = counted.bytes.saturating_add(bytes);
        let standing = self.standings.entry(counted.reader.clone()).or_default();
        standing.bytes_today = standing.bytes_today.saturating_add(bytes);
        Ok(())
    }

    /// A query has ended and has read so many bytes less than it was counted for.
    pub fn release(&mut self, counted: Counted, unread: u64, now: UnixMillis) {
        let read = counted.bytes.saturating_sub(unread);
        self.settle(counted, read, now);
    }

    /// A query has ended and has read so many bytes.
    pub fn settle(&mut self, counted: Counted, read: u64, now: UnixMillis) {
        self.turn(now);
        let Some(standing) = self.standings.get_mut(&counted.reader) else { return };
        standing.running = standing.running.saturating_sub(1);
        // What was counted yesterday went with yesterday.
        if counted.day == self.day {
            standing.bytes_today = standing.bytes_today.saturating_sub(counted.bytes).saturating_add(read);
        }
    }

    fn turn(&mut self, now: UnixMillis) {
        let day = now.0 / DAY_MS;
        // A clock that goes back gives nobody a second quota.
        if day > self.day {
            self.day = day;
            self.standings.retain(|_, standing| {
                standing.bytes_today = 0;
                standing.running > 0
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { day_bytes: 100, running: 2, ..Limits::NONE };
    const NOON: UnixMillis = UnixMillis(DAY_MS * 3 + DAY_MS / 2);

    fn code(counted: Result<Counted, Refusal>) -> Option<Code> {
        counted.err().map(|refusal| refusal.code)
    }

    #[test]
    fn what_is_planned_counts_until_it_is_known_what_was_read() {
        let mut ledger = Ledger::default();
        let first = ledger.count("ann", 60, &LIMITS, NOON).unwrap();
        assert_eq!(code(ledger.count("ann", 41, &LIMITS, NOON)), Some(Code::QuotaSpent));
        assert!(ledger.count("bob", 100, &LIMITS, NOON).is_ok());
        ledger.settle(first, 10, NOON);
        assert_eq!(ledger.standing("ann", NOON), Standing { bytes_today: 10, running: 0 });
        let _one = ledger.count("ann", 90, &LIMITS, NOON).unwrap();
        let _two = ledger.count("ann", 0, &LIMITS, NOON).unwrap();
        assert_eq!(code(ledger.count("ann", 0, &LIMITS, NOON)), Some(Code::TooManyRunning));
    }

    #[test]
    fn a_query_without_an_end_is_counted_as_it_goes_on_each_day_for_itself() {
        let mut ledger = Ledger::default();
        let mut tail = ledger.count("ann", 40, &LIMITS, NOON).unwrap();
        ledger.grow(&mut tail, 40, &LIMITS, NOON).unwrap();
        assert_eq!(ledger.grow(&mut tail, 40, &LIMITS, NOON).unwrap_err().code, Code::QuotaSpent);
        let tomorrow = UnixMillis(NOON.0 + DAY_MS);
        ledger.grow(&mut tail, 40, &LIMITS, tomorrow).unwrap();
        assert_eq!(ledger.standing("ann", tomorrow), Standing { bytes_today: 40, running: 1 });
        ledger.release(tail, 15, tomorrow);
        assert_eq!(ledger.standing("ann", tomorrow), Standing { bytes_today: 25, running: 0 });
    }

    #[test]
    fn a_new_day_is_a_new_quota_and_a_clock_that_goes_back_is_not() {
        let mut ledger = Ledger::default();
        let late = ledger.count("ann", 100, &LIMITS, NOON).unwrap();
        let yesterday = UnixMillis(NOON.0 - DAY_MS);
        assert_eq!(ledger.standing("ann", yesterday).bytes_today, 100);
        let tomorrow = UnixMillis(NOON.0 + DAY_MS);
        assert_eq!(ledger.standing("ann", tomorrow), Standing { bytes_today: 0, running: 1 });
        ledger.settle(late, 100, tomorrow);
        assert_eq!(ledger.standing("ann", tomorrow), Standing::default());
    }
}
