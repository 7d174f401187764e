//! The rules of sequence numbers, which a log that appends and a journal that is opened share: what a call's numbers are
//! to the table, and what the table is after it. Pure.
//!
//! What is kept of a producer: its highest epoch; the lowest number that is not committed; and ranges, each contiguous in
//! numbers and in leaf indices, of committed numbers from [`SEQUENCE_WINDOW`] below the lowest missing one to as far
//! above it, merged where they touch in both. Below the lowest missing number only the newest [`MAX_RANGES_BEHIND`] ranges
//! are kept. So a number below the lowest missing one is committed, whether or not it is still known where; one above
//! it is committed only if a range says so. A higher epoch counts from its first new number on.

use epigraph_core::{Hash, LeafIndex, TreeSize};
use thiserror::Error;

use super::{
    MAX_PRODUCERS, MAX_RANGES_AHEAD, MAX_RANGES_BEHIND, Producer, ProducerKey, ProducerMark, ProducerTable,
    Run, SEQUENCE_WINDOW,
};

/// Numbers that a producer gives to entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Claim {
    /// Who.
    pub producer: ProducerKey,
    /// Which of its runs: a lower one than was seen is fenced.
    pub epoch: u64,
    /// The number of the first entry; the others follow.
    pub first_sequence: u64,
    /// Entries; at least 1.
    pub count: u32,
}

/// What numbers are that the table does not object to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// None of them is committed.
    New,
    /// All of them are, at the indices from this one on.
    Repeat(LeafIndex),
}

/// Why numbers are neither new nor a repeat that can be answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Objection {
    /// A newer run of the producer has taken over.
    #[error(
        "a newer run of this producer has taken over with epoch {seen}: this one must stop, or ask GetProducer and begin \
         anew with a higher epoch"
    )]
    StaleEpoch {
        /// The highest epoch seen.
        seen: u64,
    },
    /// Too far ahead.
    #[error(
        "the lowest number that is missing is {next}, and numbers are taken up to {SEQUENCE_WINDOW} beyond it: send the \
         missing ones first"
    )]
    Gap {
        /// The lowest missing number.
        next: u64,
    },
    /// Committed so long ago that it is not known where.
    #[error(
        "these numbers are committed, all below {next} are, but so long ago that the log no longer knows at which indexes: \
         do not send them again"
    )]
    AlreadyCommitted {
        /// The lowest missing number.
        next: u64,
    },
    /// Committed in several calls, not one behind the other.
    #[error(
        "these numbers are committed, but not at consecutive indexes, so one answer cannot say where: repeat the calls as \
         they were, or do not send them again"
    )]
    Scattered,
    /// Some are committed and some are not.
    #[error(
        "some of these numbers are committed and some are not: repeat the calls as they were; the lowest number that is \
         missing is {next}"
    )]
    Mixed {
        /// The lowest missing number.
        next: u64,
    },
    /// No room for another producer.
    #[error(
        "the log keeps the numbers of at most {MAX_PRODUCERS} producers, and has that many: use a producer id that it \
         knows, or leave `producer` out"
    )]
    Full,
    /// No room for more numbers out of order.
    #[error(
        "the log keeps too many numbers that came out of order: send the lowest missing number first, which is {next}"
    )]
    Fragmented {
        /// The lowest missing number.
        next: u64,
    },
}

impl ProducerTable {
    /// What is known of a producer; `None` if nothing of it was ever committed.
    pub fn get(&self, producer: &ProducerKey) -> Option<&Producer> {
        self.producers.get(producer)
    }

    /// How many producers send under an identity.
    pub fn count_of(&self, identity: &Hash) -> usize {
        let [first, last] = [0, u8::MAX].map(|byte| ProducerKey { identity: *identity, id: [byte; 16] });
        self.producers.range(first..=last).count()
    }

    /// What the numbers of a claim are.
    pub fn judge(&self, claim: &Claim) -> Result<Standing, Objection> {
        let none = Producer::default();
        let known = self.producers.get(&claim.producer);
        let standing = known.unwrap_or(&none).judge(claim)?;
        if standing == Standing::New {
            let next = known.map_or(0, |producer| producer.next_sequence);
            if known.is_none() && self.producers.len() >= MAX_PRODUCERS {
                return Err(Objection::Full);
            }
            if claim.first_sequence != next && self.ahead >= MAX_RANGES_AHEAD {
                return Err(Objection::Fragmented { next });
            }
        }
        Ok(standing)
    }

    /// Judges a claim and, if its numbers are new, commits them at `index` and behind it.
    pub fn take(&mut self, claim: &Claim, index: LeafIndex) -> Result<Standing, Objection> {
        let standing = self.judge(claim)?;
        if standing == Standing::New {
            let producer = self.producers.entry(claim.producer).or_default();
            let before = producer.ahead();
            producer.epoch = claim.epoch;
            producer.commit(claim.first_sequence, Run { index, count: claim.count });
            self.ahead = self.ahead + producer.ahead() - before;
        }
        Ok(standing)
    }

    /// Takes the marks of a frame of `count` entries that starts at size `before`. After an error, which says what is
    /// wrong with them, the table is of no use any more.
    pub fn fold(&mut self, before: TreeSize, count: u32, marks: &[ProducerMark]) -> Result<(), String> {
        let mut free = 0;
        for mark in marks {
            let end = u64::from(mark.offset) + u64::from(mark.claim.count);
            if mark.claim.count == 0 || u64::from(mark.offset) < free || end > u64::from(count) {
                return Err("the frame's producer marks are not runs of its entries".to_owned());
            }
            free = end;
            let index = before.checked_add(u64::from(mark.offset)).and_then(TreeSize::next_index);
            let index = index.ok_or("a producer mark lies beyond the largest index")?;
            match self.take(&mark.claim, index) {
                Ok(Standing::New) => {}
                Ok(Standing::Repeat(first)) => {
                    let (number, again) = (mark.claim.first_sequence, index);
                    return Err(format!(
                        "number {number} of a producer is at index {first}, and again at {again}"
                    ));
                }
                Err(objection) => return Err(format!("a producer's numbers do not follow: {objection}")),
            }
        }
        Ok(())
    }
}

impl Run {
    fn end(&self, first: u64) -> u64 {
        first.saturating_add(u64::from(self.count))
    }

    fn index_after(&self) -> Option<LeafIndex> {
        self.index.checked_add(u64::from(self.count))
    }
}

impl Producer {
    fn judge(&self, claim: &Claim) -> Result<Standing, Objection> {
        let next = self.next_sequence;
        if claim.epoch < self.epoch {
            return Err(Objection::StaleEpoch { seen: self.epoch });
        }
        let first = claim.first_sequence;
        let end = first.checked_add(u64::from(claim.count)).ok_or(Objection::Gap { next })?;
        if let Some((at, run)) = self.ranges.range(..=first).next_back()
            && end <= run.end(*at)
            && let Some(index) = run.index.checked_add(first - at)
        {
            return Ok(Standing::Repeat(index));
        }
        if end <= next {
            let known_from = self.ranges.first_key_value().map_or(next, |(first, _)| *first);
            let scattered = first >= known_from;
            return Err(if scattered { Objection::Scattered } else { Objection::AlreadyCommitted { next } });
        }
        if first < next {
            return Err(Objection::Mixed { next });
        }
        match self.committed_within(first, end) {
            0 if end - next > SEQUENCE_WINDOW => Err(Objection::Gap { next }),
            0 => Ok(Standing::New),
            committed if committed == end - first => Err(Objection::Scattered),
            _ => Err(Objection::Mixed { next }),
        }
    }

    /// How many of the numbers from `first`, which is not below the lowest missing one, to `end` are committed.
    fn committed_within(&self, first: u64, end: u64) -> u64 {
        let before = self.ranges.range(..first).next_back();
        let within = self.ranges.range(first..end);
        let overlap = |(at, run): (&u64, &Run)| run.end(*at).min(end).saturating_sub((*at).max(first));
        before.into_iter().chain(within).map(overlap).sum()
    }

    /// Commits numbers that are new.
    fn commit(&mut self, mut first: u64, mut run: Run) {
        if let Some((&at, before)) = self.ranges.range(..first).next_back()
            && before.end(at) == first
            && before.index_after() == Some(run.index)
        {
            run = Run { index: before.index, count: before.count + run.count };
            self.ranges.remove(&at);
            self.behind -= usize::from(at < self.next_sequence);
            first = at;
        }
        let end = run.end(first);
        if let Some(after) = self.ranges.get(&end)
            && run.index_after() == Some(after.index)
        {
            run.count += after.count;
            self.ranges.remove(&end);
        }
        self.ranges.insert(first, run);
        self.behind += usize::from(first < self.next_sequence);
        if first <= self.next_sequence {
            self.behind += usize::from(first == self.next_sequence);
            self.next_sequence = run.end(first);
            while let Some(run) = self.ranges.get(&self.next_sequence) {
                self.next_sequence = run.end(self.next_sequence);
                self.behind += 1;
            }
            self.forget();
        }
    }

    /// Drops what lies too far behind the lowest missing number.
    fn forget(&mut self) {
        let floor = self.next_sequence.saturating_sub(SEQUENCE_WINDOW);
        while let Some((&first, &run)) = self.ranges.first_key_value() {
            let outside = run.end(first) <= floor;
            if !outside && self.behind <= MAX_RANGES_BEHIND {
                let cut = floor.saturating_sub(first);
                if cut > 0
                    && let Some(index) = run.index.checked_add(cut)
                {
                    self.ranges.remove(&first);
                    let count = u32::try_from(run.end(first) - floor).unwrap_or(u32::MAX);
                    self.ranges.insert(floor, Run { index, count });
                }
                return;
            }
            self.ranges.remove(&first);
            self.behind -= 1;
        }
    }

    /// Whether marks of `size` entries can give this.
    pub(super) fn is_well_formed(&self, size: TreeSize) -> bool {
        let next = self.next_sequence;
        let mut last: Option<(u64, Run)> = None;
        for (&first, &run) in &self.ranges {
            let in_log = run.index_after().is_some_and(|end| end.get() <= size.get());
            let separate = last.is_none_or(|(at, before)| {
                before.end(at) < first || (before.end(at) == first && before.index_after() != Some(run.index))
            });
            // Below the lowest missing number nothing is missing.
            let gapless = first >= next
                || (run.end(first) <= next && last.is_none_or(|(at, before)| before.end(at) == first));
            let within = first.saturating_add(SEQUENCE_WINDOW) >= next
                && run.end(first).saturating_sub(next) <= SEQUENCE_WINDOW;
            if run.count == 0 || !in_log || !separate || !gapless || !within || first == next {
                return false;
            }
            last = Some((first, run));
        }
        let newest_behind = self.ranges.range(..next).next_back().map(|(first, run)| run.end(*first));
        !self.ranges.is_empty()
            && self.behind <= MAX_RANGES_BEHIND
            && newest_behind == (next > 0).then_some(next)
    }
}
