//! What is known of a source: who may send for it, where its chain of batches stands, what is missing, and what was wrong. Pure.
//!
//! [`judge`] decides what a batch is to the source that it claims: new, known, or not to be taken. A gap is taken and remembered,
//! never refused: an event that is lost must be seen, and refusing what comes after it would only lose more.

use std::fmt;

use epigraph_core::{Hash, SourceVKey, UnixMillis};
use epigraph_event::Batch;
use epigraph_event::batch::{BatchError, Signed, Unverified};
use epigraph_event::chain::{Link, Tip};
use epigraph_rpc::peer::audit::BatchRefusal;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Gaps of one source that are remembered one by one: beyond them they are counted, and cannot be filled one by one any more.
pub const MAX_GAPS: usize = 4_096;

/// How far two clocks may be apart before that is a trouble of the source: minutes of drift are common, an hour is a time zone.
pub const MAX_SKEW_MS: u64 = 10 * 60 * 1_000;

/// How long an event may be on its way from its collector, which keeps it while nobody takes it: somebody mends a log within a week.
pub const MAX_DELAY_MS: u64 = 7 * 24 * 60 * 60 * 1_000;

/// A source as it was enrolled.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Enrolled {
    /// Its public key.
    pub vkey: SourceVKey,
    /// Who answers for it.
    pub owner: String,
    /// The SPIFFE name of the collector that may send for it.
    pub collector: String,
    /// Since when.
    pub enrolled_at: UnixMillis,
    /// From when on nothing that it makes is taken.
    pub retired_at: Option<UnixMillis>,
    /// It says at least this often that it is alive.
    pub heartbeat_ms: u64,
}

/// Sequence numbers of which no event came: from `first` up to but without `end`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Gap {
    /// In this epoch.
    pub epoch: u64,
    /// The first number that is missing.
    pub first: u64,
    /// The first one after it that is not.
    pub end: u64,
}

/// What can be wrong with a source. The order is that of the words.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A signature that is not by its key, or events that were not signed.
    BadSignature,
    /// A batch that does not follow the one before it.
    BrokenChain,
    /// An event whose times contradict each other or the service's: see [`is_skewed`].
    ClockSkew,
    /// An event id that came before with other bytes. Both are kept: ids are chosen by sources and their callers.
    IdCollision,
    /// A batch made after its key was retired.
    RetiredKey,
    /// Numbers that were used before for something else.
    ReusedSequence,
    /// A batch of an epoch that is over.
    StaleEpoch,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 7] = [
        Kind::BadSignature,
        Kind::BrokenChain,
        Kind::ClockSkew,
        Kind::IdCollision,
        Kind::RetiredKey,
        Kind::ReusedSequence,
        Kind::StaleEpoch,
    ];

    /// The word for it, which does not change.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::BadSignature => "bad-signature",
            Kind::BrokenChain => "broken-chain",
            Kind::ClockSkew => "clock-skew",
            Kind::IdCollision => "id-collision",
            Kind::RetiredKey => "retired-key",
            Kind::ReusedSequence => "reused-sequence",
            Kind::StaleEpoch => "stale-epoch",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How often something was wrong, and when last.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Trouble {
    /// What.
    pub kind: Kind,
    /// How often.
    pub count: u64,
    /// When last, in milliseconds.
    pub last_at_ms: u64,
}

/// Where a source stands.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// Whether any batch of it was taken.
    pub seen: bool,
    /// Its newest epoch.
    pub epoch: u64,
    /// The number after the highest one there.
    pub next_number: u64,
    /// The lowest sequence number there.
    pub first_sequence: u64,
    /// The sequence number after the highest one there.
    pub next_sequence: u64,
    /// The hash of the batch of the highest number.
    pub last_batch: Option<[u8; 32]>,
    /// Events taken, in all epochs.
    pub events: u64,
    /// When the last batch came.
    pub last_seen_ms: u64,
    /// How long after it happened the newest event came.
    pub lag_ms: i64,
    /// What is missing, in order.
    pub gaps: Vec<Gap>,
    /// Gaps beyond [`MAX_GAPS`], which are no longer known one by one.
    pub unlisted_gaps: u64,
    /// What was wrong, each kind once, in order.
    pub troubles: Vec<Trouble>,
}

/// What a batch is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// New: taken, and the source then stands as [`State::take`] makes it.
    New(Place),
    /// Taken before, the same.
    Repeated,
}

/// Where a new batch belongs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// At the end of the chain.
    End {
        /// The events missing before it.
        missing: Option<Gap>,
        /// Whether it names another batch before it than the last one that came.
        broken: bool,
    },
    /// In a gap.
    Gap,
}

/// Every reason for which a batch is not taken, each with the word for it.
pub const REFUSALS: [(BatchRefusal, &str); 7] = [
    (BatchRefusal::Malformed, "malformed"),
    (BatchRefusal::UnknownSource, "unknown-source"),
    (BatchRefusal::RetiredSource, "retired-source"),
    (BatchRefusal::BadSignature, "bad-signature"),
    (BatchRefusal::Reused, "reused"),
    (BatchRefusal::StaleEpoch, "stale-epoch"),
    (BatchRefusal::BrokenChain, "broken-chain"),
];

/// Why a batch was not taken.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{message}")]
pub struct Refused {
    /// For programs.
    pub refusal: BatchRefusal,
    /// For people.
    pub message: String,
    /// What it says of the source, if it is certain that the batch is of it or that it was meant to look so.
    pub trouble: Option<Kind>,
}

impl Refused {
    /// Because nothing can be read in it.
    pub(crate) fn malformed(error: &BatchError) -> Refused {
        Refused::new(BatchRefusal::Malformed, None, error.to_string())
    }

    fn new(refusal: BatchRefusal, trouble: Option<Kind>, message: impl Into<String>) -> Refused {
        Refused { refusal, message: message.into(), trouble }
    }
}

/// Believes a batch, or says why not. `enrolled` is the source that it claims, if there is one that the caller may send for.
pub fn believe(enrolled: Option<&Enrolled>, batch: Unverified) -> Result<Batch, Refused> {
    let claim = batch.claim().map_err(|error| Refused::malformed(&error))?;
    let Some(enrolled) = enrolled else {
        return Err(Refused::new(
            BatchRefusal::UnknownSource,
            None,
            format!(
                "no source of the key {} is enrolled for this collector: `epigraph audit enrol` adds one",
                claim.source
            ),
        ));
    };
    let batch = batch.verify(&enrolled.vkey).map_err(|error| match error {
        BatchError::BadSignature(_) | BatchError::Count { .. } | BatchError::OtherEvents => {
            Refused::new(BatchRefusal::BadSignature, Some(Kind::BadSignature), error.to_string())
        }
        error => Refused::malformed(&error),
    })?;
    let made_at = batch.signed().envelope().made_at;
    match enrolled.retired_at {
        Some(retired) if made_at >= retired => Err(Refused::new(
            BatchRefusal::RetiredSource,
            Some(Kind::RetiredKey),
            format!(
                "the key of {} was retired before this batch was made: enrol a new key",
                enrolled.vkey.name()
            ),
        )),
        _ => Ok(batch),
    }
}

/// Whether three clocks contradict each other: that of an event's source, its collector's when it saw it, and the service's. An event may be
/// older than anything (a file that is read late), and may have waited with its collector; it is not seen before it happened, and
/// nothing comes from the future.
pub fn is_skewed(occurred: i64, observed: i64, now: i64) -> bool {
    let skew = MAX_SKEW_MS as i64;
    occurred.max(observed) > now.saturating_add(skew)
        || occurred > observed.saturating_add(skew)
        || observed < now.saturating_sub(MAX_DELAY_MS as i64)
}

/// What a batch is to a source that stands here. `known` is the hash of the batch of the same number that was taken before.
pub fn judge(state: &State, batch: &Signed, known: Option<Hash>) -> Result<Verdict, Refused> {
    if let Some(known) = known {
        return if known == batch.hash() { Ok(Verdict::Repeated) } else { Err(reused(batch)) };
    }
    let envelope = batch.envelope();
    if !state.seen {
        // Whoever is enrolled may have a history: what came before its first batch here is not missing.
        return Ok(Verdict::New(Place::End { missing: None, broken: false }));
    }
    Ok(Verdict::New(match state.tip().link(batch) {
        Link::Next | Link::NewEpoch { follows: true } => Place::End { missing: None, broken: false },
        // It has forgotten what it sent. What it has now must not be lost as well.
        Link::NewEpoch { follows: false } => Place::End { missing: None, broken: true },
        Link::Gap { epoch, from, to } => {
            let missing = (from < to).then_some(Gap { epoch, first: from, end: to });
            Place::End { missing, broken: false }
        }
        Link::Earlier if state.misses(batch) => Place::Gap,
        Link::Earlier if envelope.epoch < state.epoch => {
            return Err(Refused::new(
                BatchRefusal::StaleEpoch,
                Some(Kind::StaleEpoch),
                format!(
                    "the source has begun epoch {}, and this batch is of epoch {}",
                    state.epoch, envelope.epoch
                ),
            ));
        }
        Link::Earlier => return Err(reused(batch)),
        Link::Fork => {
            return Err(Refused::new(
                BatchRefusal::BrokenChain,
                Some(Kind::BrokenChain),
                format!(
                    "batch {} of epoch {} does not follow the batch before it: the source has two histories, or two collectors use \
                     one key. Give each collector a key of its own",
                    envelope.number, envelope.epoch
                ),
            ));
        }
    }))
}

fn reused(batch: &Signed) -> Refused {
    let envelope = batch.envelope();
    Refused::new(
        BatchRefusal::Reused,
        Some(Kind::ReusedSequence),
        format!(
            "batch {} of epoch {}, or its sequence numbers, were taken before with other content: two collectors may be using one \
             key. Give each collector a key of its own",
            envelope.number, envelope.epoch
        ),
    )
}

impl State {
    /// Where the next batch belongs.
    pub fn tip(&self) -> Tip {
        Tip {
            epoch: self.epoch,
            number: self.next_number,
            sequence: self.next_sequence,
            last: self.last_batch.map(Hash::from_bytes),
        }
    }

    /// Whether the events of a batch are all missing; a batch without events is never in the way.
    fn misses(&self, batch: &Signed) -> bool {
        let envelope = batch.envelope();
        let end = envelope.first_sequence.saturating_add(u64::from(envelope.count));
        let within =
            |gap: &Gap| gap.epoch == envelope.epoch && gap.first <= envelope.first_sequence && end <= gap.end;
        envelope.count == 0 || self.gaps.iter().any(within)
    }

    /// Takes a batch in, at the place that [`judge`] gave it.
    pub fn take(&mut self, batch: &Signed, place: Place, now: UnixMillis) {
        let envelope = batch.envelope();
        match place {
            Place::End { missing, broken } => {
                if !self.seen || envelope.epoch > self.epoch {
                    self.first_sequence = envelope.first_sequence;
                }
                let tip = Tip::after(batch);
                self.seen = true;
                self.epoch = tip.epoch;
                self.next_number = tip.number;
                self.next_sequence = tip.sequence;
                self.last_batch = tip.last.map(|hash| *hash.as_bytes());
                if let Some(gap) = missing {
                    if self.gaps.len() < MAX_GAPS {
                        self.gaps.push(gap);
                    } else {
                        self.unlisted_gaps = self.unlisted_gaps.saturating_add(1);
                    }
                }
                if broken {
                    self.note(Kind::BrokenChain, now);
                }
            }
            Place::Gap => self.fill(envelope.epoch, envelope.first_sequence, envelope.count),
        }
        self.events = self.events.saturating_add(u64::from(envelope.count));
        self.last_seen_ms = self.last_seen_ms.max(now.0);
    }

    fn fill(&mut self, epoch: u64, first: u64, count: u32) {
        let end = first.saturating_add(u64::from(count));
        let mut left = Vec::with_capacity(self.gaps.len() + 1);
        for gap in self.gaps.drain(..) {
            if gap.epoch != epoch || end <= gap.first || gap.end <= first || count == 0 {
                left.push(gap);
                continue;
            }
            left.extend(
                [(gap.first, first), (end, gap.end)]
                    .into_iter()
                    .filter(|(first, end)| first < end)
                    .map(|(first, end)| Gap { epoch, first, end }),
            );
        }
        self.gaps = left;
    }

    /// Remembers that something was wrong.
    pub fn note(&mut self, kind: Kind, now: UnixMillis) {
        match self.troubles.binary_search_by_key(&kind, |trouble| trouble.kind) {
            Ok(at) => {
                let trouble = &mut self.troubles[at];
                trouble.count = trouble.count.saturating_add(1);
                trouble.last_at_ms = now.0;
            }
            Err(at) => self.troubles.insert(at, Trouble { kind, count: 1, last_at_ms: now.0 }),
        }
    }

    /// Gaps in all, also those that are not known one by one.
    pub fn gap_count(&self) -> u64 {
        (self.gaps.len() as u64).saturating_add(self.unlisted_gaps)
    }

    /// Whether it has been silent for longer than twice the time after which it should have said something.
    pub fn is_silent(&self, heartbeat_ms: u64, now: UnixMillis) -> bool {
        self.seen && now.0.saturating_sub(self.last_seen_ms) > heartbeat_ms.saturating_mul(2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// F8: three clocks. Broken to see it fail: each of the three comparisons left out in turn; the allowance left out.
    #[test]
    fn a_clock_that_is_wrong_is_told_from_an_event_that_is_old() {
        const NOW: i64 = 1_790_000_000_000;
        const MINUTE: i64 = 60_000;
        const YEAR: i64 = 365 * 24 * 60 * MINUTE;
        let check = |occurred: i64, observed: i64, skewed: bool| {
            assert_eq!(is_skewed(NOW + occurred, NOW + observed, NOW), skewed, "{occurred}, {observed}");
        };
        check(0, 0, false);
        check(10 * MINUTE, 10 * MINUTE, false);
        check(10 * MINUTE + 1, 0, true);
        check(0, 10 * MINUTE + 1, true);
        check(YEAR, YEAR, true);
        // A file of last year; an hour and a weekend without a log.
        check(-YEAR, 0, false);
        check(-60 * MINUTE, -60 * MINUTE, false);
        check(-YEAR, -3 * 24 * 60 * MINUTE, false);
        // A source an hour ahead, found even if what it says comes an hour late; a collector an hour behind.
        check(0, -60 * MINUTE, true);
        check(9 * MINUTE, 0, false);
        // Source and collector are one machine, a year behind.
        check(-YEAR, -YEAR, true);
        check(0, -YEAR, true);
        assert!(
            !is_skewed(i64::MIN, NOW, NOW) && is_skewed(i64::MAX, NOW, NOW) && is_skewed(0, i64::MIN, NOW)
        );
    }
}
