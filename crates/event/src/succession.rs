//! What the leaves of sources must be to those before them, as far as the log alone shows it: whoever re-reads a log holds this
//! against the audit service that wrote it. Pure.
//!
//! Per source: numbers without a gap within an epoch, epochs that rise, the leaves of a batch side by side and of one time, times
//! that neither run back nor lie ahead. A number that is left out is a gap until a leaf fills it: gaps stand, and everything else is
//! wrong once, at its entry. Where a source is first seen its numbers may begin anywhere, as with the audit service itself. What is
//! remembered is bounded whatever a log holds, and is text that the next reading goes on from.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use epigraph_core::{Hash, LeafIndex, UnixMillis};
use thiserror::Error;

use crate::leaf::{Leaf, LeafError};

/// Sources that are followed, as many as an audit service takes: about 2 MiB.
pub const MAX_SOURCES: usize = 10_000;

/// Gaps of all sources that are known one by one. Beyond them they are counted, and can no longer be filled.
pub const MAX_GAPS: usize = 4_096;

/// What the text of a [`Succession`] begins with.
const HEADER: &str = "succession@v1\n";

/// Sequence numbers of which the log has no leaf: from `first` up to but without `end`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Gap {
    /// In this epoch.
    pub epoch: u64,
    /// The first number that is missing.
    pub first: u64,
    /// The first one after it that is not.
    pub end: u64,
}

/// What is wrong with an entry.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Wrong {
    /// Not what an audit service writes.
    #[error(transparent)]
    Leaf(#[from] LeafError),
    /// A number that another leaf has.
    #[error("event {sequence} of epoch {epoch} of source {source_id} is in the log already")]
    Repeated {
        /// The source.
        source_id: Hash,
        /// The epoch.
        epoch: u64,
        /// The number.
        sequence: u64,
    },
    /// A batch that is not in one piece.
    #[error(
        "the leaves of a batch of source {source_id} do not stand side by side, in order and with one time: event {sequence} of epoch {epoch}"
    )]
    Split {
        /// The source.
        source_id: Hash,
        /// The epoch.
        epoch: u64,
        /// The number.
        sequence: u64,
    },
    /// Taken in before the leaf before it.
    #[error("by its time an event of source {source_id} was taken in {seconds} s before the one before it")]
    Backwards {
        /// The source.
        source_id: Hash,
        /// How long.
        seconds: u64,
    },
    /// Taken in at a time that has not come.
    #[error("by its time an event of source {source_id} is taken in {seconds} s from now")]
    Ahead {
        /// The source.
        source_id: Hash,
        /// How long.
        seconds: u64,
    },
    /// More sources than are followed.
    #[error("source {0} is one more than the {MAX_SOURCES} that are followed: its numbers are not checked")]
    TooMany(Hash),
}

impl Wrong {
    /// The name of the rule, which does not change.
    pub fn rule(&self) -> &'static str {
        match self {
            Wrong::Leaf(_) => "audit-leaf",
            Wrong::Repeated { .. } => "sequence-repeated",
            Wrong::Split { .. } => "batch-split",
            Wrong::Backwards { .. } | Wrong::Ahead { .. } => "ingest-time",
            Wrong::TooMany(_) => "too-many-sources",
        }
    }
}

/// Where the sources of one log stand after its entries up to some index.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Succession {
    /// How far times may be off, in seconds.
    skew_s: u64,
    sources: BTreeMap<Hash, Source>,
    /// Gaps of all sources, counted together.
    gaps: usize,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Source {
    epoch: u64,
    /// The number after the highest in the epoch.
    next: u64,
    /// Of the last leaf.
    index: u64,
    sequence: u64,
    ingested: u64,
    batch: Hash,
    gaps: Vec<Gap>,
    /// Gaps for which there was no room.
    unlisted: u64,
}

impl Succession {
    /// Before the first entry; times may be off by so much.
    pub fn new(skew_ms: u64) -> Succession {
        Succession { skew_s: skew_ms / 1_000, sources: BTreeMap::new(), gaps: 0 }
    }

    /// Looks at the next leaf of the log, read at `now`. What is wrong with it is said once, and it counts all the same.
    pub fn take(&mut self, index: LeafIndex, leaf: &Leaf, now: UnixMillis) -> Result<(), Wrong> {
        let source_id = leaf.source;
        let known = self.sources.len();
        let Some(source) = self.sources.get_mut(&source_id) else {
            if known >= MAX_SOURCES {
                return Err(Wrong::TooMany(source_id));
            }
            self.sources.insert(source_id, Source::beginning_with(index, leaf));
            return self.ahead(leaf, now);
        };
        let (before, room) = (source.clone_tip(), MAX_GAPS.saturating_sub(self.gaps));
        let (had, placed) = (source.gaps.len(), source.place(leaf, room));
        self.gaps = self.gaps + source.gaps.len() - had;
        source.at(index, leaf);
        let Leaf { epoch, sequence, .. } = *leaf;
        let follows = before.index.checked_add(1) == Some(index.get());
        if before.batch == leaf.batch {
            let goes_on =
                before.sequence.checked_add(1) == Some(sequence) && before.ingested == leaf.ingested;
            if !follows || !goes_on || !placed.in_epoch {
                return Err(Wrong::Split { source_id, epoch, sequence });
            }
        }
        if placed.repeated {
            return Err(Wrong::Repeated { source_id, epoch, sequence });
        }
        let back = before.ingested.saturating_sub(leaf.ingested);
        if back > self.skew_s {
            return Err(Wrong::Backwards { source_id, seconds: back });
        }
        self.ahead(leaf, now)
    }

    fn ahead(&self, leaf: &Leaf, now: UnixMillis) -> Result<(), Wrong> {
        let seconds = leaf.ingested.saturating_sub(now.0 / 1_000);
        if seconds > self.skew_s { Err(Wrong::Ahead { source_id: leaf.source, seconds }) } else { Ok(()) }
    }

    /// Every gap that stands, by source; and how many of its gaps are no longer known one by one.
    pub fn gaps(&self) -> impl Iterator<Item = (&Hash, &[Gap], u64)> {
        let with = self.sources.iter().filter(|(_, source)| !source.gaps.is_empty() || source.unlisted > 0);
        with.map(|(id, source)| (id, source.gaps.as_slice(), source.unlisted))
    }

    /// As text: of each source its key id, epoch, next number, then index, number, time and batch of its last leaf, and how many of its
    /// gaps are not listed; behind it each gap.
    pub fn write(&self) -> String {
        let mut text = HEADER.to_owned();
        for (id, source) in &self.sources {
            let Source { epoch, next, index, sequence, ingested, batch, gaps, unlisted } = source;
            // Writing to a String cannot fail.
            let _ =
                writeln!(text, "source {id} {epoch} {next} {index} {sequence} {ingested} {batch} {unlisted}");
            for gap in gaps {
                let _ = writeln!(text, "gap {} {} {}", gap.epoch, gap.first, gap.end);
            }
        }
        text
    }

    /// From such text; none if it is not what [`Succession::write`] writes.
    pub fn read(skew_ms: u64, text: &str) -> Option<Succession> {
        let mut succession = Succession::new(skew_ms);
        let mut last = None;
        for line in text.strip_prefix(HEADER)?.lines() {
            let mut words = line.split(' ');
            let number = |words: &mut std::str::Split<'_, char>| words.next()?.parse::<u64>().ok();
            match words.next()? {
                "source" => {
                    let id = Hash::from_hex(words.next()?)?;
                    let source = Source {
                        epoch: number(&mut words)?,
                        next: number(&mut words)?,
                        index: number(&mut words)?,
                        sequence: number(&mut words)?,
                        ingested: number(&mut words)?,
                        batch: Hash::from_hex(words.next()?)?,
                        unlisted: number(&mut words)?,
                        gaps: Vec::new(),
                    };
                    succession.sources.insert(id, source);
                    last = Some(id);
                }
                "gap" => {
                    let (epoch, first, end) = (number(&mut words)?, number(&mut words)?, number(&mut words)?);
                    let source = succession.sources.get_mut(&last?)?;
                    source.gaps.push(Gap { epoch, first, end });
                    succession.gaps += 1;
                }
                _ => return None,
            }
        }
        let fits = succession.sources.len() <= MAX_SOURCES && succession.gaps <= MAX_GAPS;
        (fits && succession.write() == text).then_some(succession)
    }
}

/// What a leaf's number is to its source.
struct Placed {
    repeated: bool,
    /// Whether it is of the epoch of the leaf before it.
    in_epoch: bool,
}

/// The last leaf of a source.
struct Tip {
    index: u64,
    sequence: u64,
    ingested: u64,
    batch: Hash,
}

impl Source {
    fn beginning_with(index: LeafIndex, leaf: &Leaf) -> Source {
        Source {
            epoch: leaf.epoch,
            next: leaf.sequence.saturating_add(1),
            index: index.get(),
            sequence: leaf.sequence,
            ingested: leaf.ingested,
            batch: leaf.batch,
            gaps: Vec::new(),
            unlisted: 0,
        }
    }

    fn clone_tip(&self) -> Tip {
        Tip { index: self.index, sequence: self.sequence, ingested: self.ingested, batch: self.batch }
    }

    fn at(&mut self, index: LeafIndex, leaf: &Leaf) {
        (self.index, self.sequence) = (index.get(), leaf.sequence);
        // A time that ran back is told of once, and not for every leaf until it has caught up.
        (self.ingested, self.batch) = (leaf.ingested, leaf.batch);
    }

    /// Takes a number in; `room` is for so many more gaps.
    fn place(&mut self, leaf: &Leaf, room: usize) -> Placed {
        let Leaf { epoch, sequence, .. } = *leaf;
        let in_epoch = epoch == self.epoch;
        let (first, rises) = match epoch.cmp(&self.epoch) {
            std::cmp::Ordering::Less => (u64::MAX, false),
            std::cmp::Ordering::Equal => (self.next, false),
            std::cmp::Ordering::Greater => (0, true),
        };
        if rises || (in_epoch && sequence >= first) {
            if sequence > first {
                self.miss(Gap { epoch, first, end: sequence }, room);
            }
            (self.epoch, self.next) = (epoch, sequence.saturating_add(1));
            return Placed { repeated: false, in_epoch };
        }
        let at =
            self.gaps.iter().position(|gap| gap.epoch == epoch && (gap.first..gap.end).contains(&sequence));
        let Some(at) = at else {
            // Where gaps are no longer known one by one, nobody can tell a repeat from what fills one.
            return Placed { repeated: self.unlisted == 0, in_epoch: true };
        };
        let gap = self.gaps.remove(at);
        for (first, end) in [(gap.first, sequence), (sequence.saturating_add(1), gap.end)] {
            if first < end {
                // One gap became at most two, and one place was just given up.
                self.miss(Gap { epoch, first, end }, room.saturating_add(1));
            }
        }
        self.gaps.sort_unstable();
        Placed { repeated: false, in_epoch: true }
    }

    fn miss(&mut self, gap: Gap, room: usize) {
        if room > 0 {
            self.gaps.push(gap);
        } else {
            self.unlisted = self.unlisted.saturating_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::leaf::Reference;

    const NOW: UnixMillis = UnixMillis(1_790_000_000_000);

    /// Leaves of sources, at the indexes at which they come.
    struct Log {
        succession: Succession,
        next: u64,
    }

    impl Log {
        fn new() -> Log {
            Log { succession: Succession::new(60_000), next: 0 }
        }

        fn leaf(&mut self, leaf: Leaf) -> Result<(), Wrong> {
            let index = LeafIndex::new(self.next).unwrap();
            self.next += 1;
            let taken = self.succession.take(index, &leaf, NOW);
            // Whatever is remembered reads back.
            let text = self.succession.write();
            assert_eq!(Succession::read(60_000, &text).as_ref(), Some(&self.succession));
            taken
        }

        /// A batch of these numbers.
        fn batch(&mut self, source: u8, epoch: u64, batch: u8, numbers: std::ops::Range<u64>) {
            for sequence in numbers {
                self.leaf(leaf(source, epoch, sequence, batch)).unwrap();
            }
        }

        fn gaps(&self) -> Vec<(u64, u64, u64)> {
            let gaps = self.succession.gaps().flat_map(|(_, gaps, _)| gaps.to_vec());
            gaps.map(|gap| (gap.epoch, gap.first, gap.end)).collect()
        }
    }

    fn leaf(source: u8, epoch: u64, sequence: u64, batch: u8) -> Leaf {
        let hash = |byte| Hash::from_bytes([byte; 32]);
        Leaf {
            reference: Reference::from_bytes([1; 16]),
            source: hash(source),
            epoch,
            sequence,
            ingested: NOW.0 / 1_000,
            commitments: [hash(6), hash(7), hash(8)],
            batch: hash(batch),
        }
    }

    #[test]
    fn a_gap_stands_until_it_is_filled_whatever_comes_between() {
        let mut log = Log::new();
        log.batch(1, 0, 1, 5..8);
        log.batch(2, 0, 2, 0..2);
        log.batch(1, 0, 3, 12..14);
        assert_eq!(log.gaps(), [(0, 8, 12)]);
        // From the middle: what is left are two.
        log.batch(1, 0, 4, 9..10);
        assert_eq!(log.gaps(), [(0, 8, 9), (0, 10, 12)]);
        // A later epoch begins at 0, and a gap of the one before is filled all the same.
        log.batch(1, 1, 5, 2..3);
        log.batch(1, 0, 6, 10..12);
        log.batch(1, 0, 7, 8..9);
        assert_eq!(log.gaps(), [(1, 0, 2)]);
        log.batch(1, 1, 8, 0..2);
        log.batch(1, 1, 9, 3..4);
        assert_eq!(log.gaps(), []);
    }

    /// Broken to see it fail, one after the other: each comparison in `take` and `place` turned round.
    #[test]
    fn what_is_wrong_is_named_once_at_its_entry() {
        let check = |leaves: &[Leaf], rule: Option<&str>| {
            let mut log = Log::new();
            let wrong: Vec<_> = leaves.iter().filter_map(|leaf| log.leaf(leaf.clone()).err()).collect();
            assert_eq!(wrong.iter().map(Wrong::rule).collect::<Vec<_>>(), Vec::from_iter(rule), "{wrong:?}");
        };
        let later = |leaf: Leaf, seconds: i64| Leaf {
            ingested: leaf.ingested.checked_add_signed(seconds).unwrap(),
            ..leaf
        };
        let first = leaf(1, 0, 0, 1);
        let next = leaf(1, 0, 1, 1);
        let of_next_batch = leaf(1, 0, 1, 2);
        let stranger = leaf(2, 0, 0, 9);
        check(&[first.clone(), next.clone(), leaf(1, 0, 2, 2)], None);
        check(&[first.clone(), leaf(1, 0, 0, 2)], Some("sequence-repeated"));
        check(&[leaf(1, 1, 0, 1), leaf(1, 0, 7, 2)], Some("sequence-repeated"));
        check(&[first.clone(), leaf(1, 0, 2, 1)], Some("batch-split"));
        check(&[first.clone(), stranger.clone(), next.clone()], Some("batch-split"));
        check(&[first.clone(), later(next, 1)], Some("batch-split"));
        check(&[first.clone(), leaf(1, 1, 1, 1)], Some("batch-split"));
        check(&[first.clone(), later(of_next_batch.clone(), -60)], None);
        check(&[first.clone(), later(of_next_batch.clone(), -61)], Some("ingest-time"));
        check(&[first.clone(), later(of_next_batch.clone(), 60)], None);
        check(&[first, later(of_next_batch, 61)], Some("ingest-time"));
        check(&[later(stranger, 61)], Some("ingest-time"));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut log = Succession::new(60_000);
        let mut take = |index: u64, source: u64, sequence: u64| {
            let mut leaf = leaf(0, 0, sequence, 0);
            leaf.source = epigraph_core::hash::sha256(&source.to_be_bytes());
            leaf.batch = epigraph_core::hash::sha256(&index.to_be_bytes());
            log.take(LeafIndex::new(index).unwrap(), &leaf, NOW)
        };
        for source in 0..MAX_SOURCES as u64 {
            take(source, source, 0).unwrap();
        }
        let index = MAX_SOURCES as u64;
        assert_eq!(take(index, index, 0).unwrap_err().rule(), "too-many-sources");
        for n in 1..=MAX_GAPS as u64 + 3 {
            take(index + n, 7, 2 * n).unwrap();
        }
        // Nobody is called a liar for a number of which is no longer known whether it was missing.
        take(2 * index, 7, 3).unwrap();
        let unlisted: u64 = log.gaps().map(|(_, _, unlisted)| unlisted).sum();
        let listed: usize = log.gaps().map(|(_, gaps, _)| gaps.len()).sum();
        assert_eq!((listed, unlisted), (MAX_GAPS - 1, 3));
        assert_eq!(Succession::read(60_000, &log.write()), Some(log));
    }

    #[test]
    fn only_what_was_written_is_read() {
        let mut log = Log::new();
        log.batch(1, 0, 1, 0..1);
        log.batch(1, 0, 2, 3..4);
        let text = log.succession.write();
        assert!(text.contains("\ngap 0 1 3\n"), "{text}");
        for (from, to) in [
            ("gap 0 1 3", "gap 0 01 3"),
            ("gap", "gaps"),
            ("source", "sour"),
            ("\ngap", "gap"),
            (" 0\n", "\n"),
        ] {
            assert_eq!(Succession::read(60_000, &text.replacen(from, to, 1)), None, "{from} {to}");
        }
        for other in ["", "succession@v1", "succession@v1\ngap 0 1 3\n", "succession@v2\n"] {
            assert_eq!(Succession::read(60_000, other), None, "{other}");
        }
        assert_eq!(Succession::read(60_000, HEADER), Some(Succession::new(60_000)));
    }
}
