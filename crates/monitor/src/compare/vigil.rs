//! The vigil: what should happen and does not. Vantage points that go back, stand still or stay away; witnesses that fall
//! silent or behind; quorums that are lost; clocks that are wrong.
//!
//! Each is a condition that holds or does not, told of when it begins and when it ends. Durations are counted by
//! [`super::time`]; times in signatures are compared with the clock only while it is not suspect.

use std::collections::BTreeMap;

use epigraph_core::policy::WitnessSet;
use epigraph_core::{Hash, TreeHead, TreeSize};

use super::audits::Audit;
use super::time::{Elapsed, Lag};
use super::{Machine, THE_LOG};
use crate::event::{Found, Vantage, VantageKind};
use crate::finding::Code;
use crate::heads::Seen;
use crate::lines::number;
use crate::said::of_seconds;

/// What a finding about the monitor's own clock is about.
pub const THIS_MONITOR: &str = "this monitor";

/// A vantage point has gone back when it shows this many smaller heads in a row,
const SMALLER_IN_A_ROW: u32 = 3;

/// and did not show the larger one for this long: several times the deadline of a call, so that answers which overtake each
/// other are no rollback.
const SMALLER_FOR_MS: u64 = 60_000;

/// After a jump of the clock, and without witnesses whose times could speak for it, it is believed again.
const BELIEVED_AGAIN_MS: u64 = 10 * 60 * 1000;

/// How long after a restart a clock that was told of as wrong is not called right again.
const SKEW_STANDS_MS: u64 = 60_000;

/// How long things may take until they are findings, in milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tuning {
    /// Without a newer head or a newer quorum of cosignatures, and for one vantage point to be behind the others.
    pub stale_after_ms: u64,
    /// Without the monitor's quorum for what is published.
    pub quorum_after_ms: u64,
    /// That a witness is behind the others.
    pub silent_after_ms: u64,
    /// That the time in a cosignature may lie ahead.
    pub skew_ms: u64,
    /// Without an answer.
    pub unreachable_after_ms: u64,
    /// That the full audit is behind the newest head.
    pub behind_after_ms: u64,
}

impl Default for Tuning {
    /// For a log that grows all day: an hour without anything new is worth a call, five minutes are what synchronised clocks
    /// never differ by, two minutes without an answer are no restart any more.
    fn default() -> Tuning {
        const MINUTE: u64 = 60_000;
        Tuning {
            stale_after_ms: 60 * MINUTE,
            quorum_after_ms: 60 * MINUTE,
            silent_after_ms: 60 * MINUTE,
            skew_ms: 5 * MINUTE,
            unreachable_after_ms: 2 * MINUTE,
            behind_after_ms: 15 * MINUTE,
        }
    }
}

/// What is known of a vantage point.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Point {
    pub(super) kind: VantageKind,
    /// The largest head that it showed.
    pub(super) largest: Option<TreeHead>,
    /// The branch of the last head that it showed.
    pub(super) branch: Option<usize>,
    largest_at: Elapsed,
    newest: TreeSize,
    smaller: u32,
    went_back: Option<TreeHead>,
    /// Since when it does not answer, and why. At the start nobody has answered yet.
    silent_since: Option<Elapsed>,
    why: String,
    lag: Lag,
    pub(super) audit: Audit,
}

/// What is known of a witness of the policy.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct WitnessState {
    /// The newest time that it cosigned at, in POSIX seconds.
    newest: Option<u64>,
    /// The largest head that it cosigned.
    size: TreeSize,
    lag: Lag,
}

/// How far the log has come, as its signatures say.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Progress {
    /// The newest time at which a quorum stood behind a head, in POSIX seconds.
    fresh: Option<u64>,
    /// The largest head that a quorum stands behind.
    vouched: TreeSize,
    /// The largest head that anybody showed.
    largest: TreeSize,
    /// When there was last something new.
    at: Elapsed,
    quorum: Lag,
    /// Who was missing when the quorum last was.
    missing: String,
    jumped_at: Elapsed,
}

impl Point {
    pub(super) fn new(kind: VantageKind) -> Point {
        // Nobody answers for a directory of files.
        let silent_since = if kind == VantageKind::File { None } else { Some(0) };
        Point {
            kind,
            largest: None,
            branch: None,
            largest_at: 0,
            newest: TreeSize::ZERO,
            smaller: 0,
            went_back: None,
            silent_since,
            why: "it has not answered yet".to_owned(),
            lag: Lag::default(),
            audit: Audit::default(),
        }
    }

    /// Whether it answered when it was last asked.
    pub(super) fn answers(&self) -> bool {
        self.silent_since.is_none()
    }

    /// Whether it has not answered for so long that it is a finding.
    pub(super) fn away(&self, unreachable_after_ms: u64, now: Elapsed) -> bool {
        self.silent_since.is_some_and(|since| now.saturating_sub(since) >= unreachable_after_ms)
    }

    /// Whether what it shows may never be older than what it showed.
    fn goes_forward(&self) -> bool {
        matches!(self.kind, VantageKind::Log | VantageKind::Witness(_))
    }
}

/// Reads what a line of the state says of a vantage point: the largest head that it showed, and its name.
pub(super) fn parse_largest(text: &str) -> Option<(TreeHead, &str)> {
    let (size, rest) = text.split_once(' ')?;
    let (root, name) = rest.split_once(' ')?;
    let size = number(size).and_then(TreeSize::new)?;
    Some((TreeHead { size, root: Hash::from_hex(root)? }, name))
}

impl Machine {
    pub(super) fn reached(&mut self, vantage: &Vantage) {
        if let Some(point) = self.point(vantage) {
            point.silent_since = None;
        }
    }

    pub(super) fn unreachable(&mut self, vantage: &Vantage, why: String) {
        let now = self.time.elapsed;
        if let Some(point) = self.point(vantage) {
            point.silent_since.get_or_insert(now);
            point.why = why;
        }
    }

    /// Whether the log answers at any of its vantage points.
    pub(super) fn log_answers(&self) -> bool {
        self.points.values().any(|point| point.kind == VantageKind::Log && point.answers())
    }

    /// A vantage point showed a head that the log signed.
    pub(super) fn shown(&mut self, vantage: &Vantage, seen: &Seen) {
        self.note_point(vantage, seen.head());
        self.note_signatures(seen);
    }

    fn note_point(&mut self, vantage: &Vantage, head: TreeHead) {
        let now = self.time.elapsed;
        let Some(point) = self.point(vantage) else { return };
        point.newest = head.size;
        let Some(largest) = point.largest.filter(|largest| largest.size > head.size) else {
            let grown = point.largest.is_none_or(|largest| largest.size < head.size);
            (point.largest, point.largest_at, point.smaller, point.went_back) = (Some(head), now, 0, None);
            self.changed |= grown;
            return;
        };
        point.smaller = point.smaller.saturating_add(1);
        let for_long = now.saturating_sub(point.largest_at) >= SMALLER_FOR_MS;
        if point.goes_forward() && for_long && point.smaller >= SMALLER_IN_A_ROW && point.went_back.is_none()
        {
            point.went_back = Some(head);
            let notes = [largest, head].iter().filter_map(|head| self.note_of(head)).collect();
            let detail = format!(
                "{} showed size {} root {}, and now goes on showing size {} root {}",
                vantage.name, largest.size, largest.root, head.size, head.root
            );
            self.standing.insert((Code::Rollback, vantage.name.clone()), true);
            self.trigger(Code::Rollback, &vantage.name, &detail, notes);
        }
    }

    pub(super) fn note_signatures(&mut self, seen: &Seen) {
        let head = seen.head();
        let now = self.time.elapsed;
        if head.size > self.progress.largest {
            (self.progress.largest, self.progress.at) = (head.size, now);
        }
        let mut times: Vec<(u64, usize)> = Vec::new();
        for (place, state) in self.witnesses.iter_mut().enumerate() {
            let Some(at) = seen.cosigned_at(place) else { continue };
            times.push((at.seconds(), place));
            state.newest = state.newest.max(Some(at.seconds()));
            state.size = state.size.max(head.size);
        }
        times.sort_unstable_by(|one, other| other.cmp(one));
        if self.policy.quorum().is_none() {
            self.progress.vouched = self.progress.vouched.max(head.size);
            return;
        }
        // The newest time at which a quorum stood behind it: so many said so then or later. One witness with a clock of its own
        // does not make a head younger.
        let mut set = WitnessSet::EMPTY;
        for (at, place) in times {
            set = set.union([place].into_iter().collect());
            if self.policy.is_met_by(set) {
                self.progress.vouched = self.progress.vouched.max(head.size);
                self.agreed(at);
                return;
            }
        }
        if head.size > self.progress.vouched {
            let all = WitnessSet::first(self.policy.witnesses().len());
            let missing = self.policy.names(all.without(set)).join(", ");
            self.progress.missing = format!("at size {} these have not cosigned: {missing}", head.size);
        }
    }

    /// A quorum stood behind a head at this time.
    fn agreed(&mut self, at: u64) {
        if self.progress.fresh.is_some_and(|fresh| fresh >= at) {
            return;
        }
        (self.progress.fresh, self.progress.at) = (Some(at), self.time.elapsed);
        if self.seconds().abs_diff(at) <= self.tuning.skew_ms / 1000 {
            self.time.jumped = None;
        }
    }

    fn seconds(&self) -> u64 {
        self.time.now.0 / 1000
    }

    pub(super) fn audit_found(&mut self, found: Found, vantage: &Vantage) {
        match found {
            Found::Rewritten { head, index, detail } => {
                let detail = match index {
                    Some(index) => format!("under {} entry {index} {detail}", vantage.name),
                    None => format!(
                        "under {} the entries up to size {} do not hash to the signed root {}: {detail}",
                        vantage.name, head.size, head.root
                    ),
                };
                let notes = self.note_of(&head).into_iter().collect();
                self.trigger(Code::RewrittenEntry, &vantage.name, &detail, notes);
            }
            Found::Malformed { index, detail } => {
                let detail = format!("entry {index}: {detail}");
                self.trigger(Code::MalformedEntry, "entries", &detail, Vec::new());
            }
        }
    }

    /// Tells of every condition that began or ended.
    pub(super) fn evaluate(&mut self) {
        let mut conditions = BTreeMap::new();
        self.judge_points(&mut conditions);
        self.judge_log(&mut conditions);
        self.judge_audits(&mut conditions);
        self.judge_witnesses(&mut conditions);
        self.judge_clock(&mut conditions);
        for ((code, subject), Condition { patience, holds }) in conditions {
            let held = self.standing.get(&(code, subject.clone())).copied();
            // What was told before a restart is not known, and stands until it had the time to show again.
            if holds.is_none() && held.is_none() && self.time.elapsed < patience.saturating_mul(2) {
                continue;
            }
            self.standing.insert((code, subject.clone()), holds.is_some());
            match holds {
                Some(detail) if held != Some(true) => self.trigger(code, &subject, &detail, Vec::new()),
                None if held != Some(false) => self.clear(code, &subject),
                _ => {}
            }
        }
    }

    fn judge_points(&mut self, conditions: &mut Conditions) {
        let now = self.time.elapsed;
        let Tuning { stale_after_ms, unreachable_after_ms, .. } = self.tuning;
        let of_log = |point: &&Point| point.kind == VantageKind::Log;
        let shown = self.points.values().filter(of_log).map(|point| point.newest).max().unwrap_or_default();
        let published = shown.max(self.progress.vouched);
        let long = |point: &Point| point.away(unreachable_after_ms, now);
        let logs: Vec<&Point> = self.points.values().filter(of_log).collect();
        let gone = !logs.is_empty() && logs.iter().all(|point| long(point));
        let why = logs.first().map_or("", |point| &point.why);
        conditions.tell(Code::LogUnreachable, THE_LOG, unreachable_after_ms, gone, || {
            format!("none of its {} vantage points has answered: {why}", logs.len())
        });
        for (name, point) in &mut self.points {
            point.lag.update(point.newest, published, now);
            let lags = point.lag.lasted(now);
            let is_log = point.kind == VantageKind::Log;
            if is_log {
                let stale = point.answers() && lags >= stale_after_ms;
                conditions.tell(Code::StaleHead, name, stale_after_ms, stale, || {
                    format!("{name} still shows size {}, others size {published}", point.newest)
                });
            }
            conditions.tell(
                Code::VantageUnreachable,
                name,
                unreachable_after_ms,
                long(point) && !(is_log && gone),
                || format!("{name} does not answer: {}", point.why),
            );
            if point.goes_forward() {
                // Told when it was seen, with the notes.
                conditions.tell(Code::Rollback, name, SMALLER_FOR_MS, point.went_back.is_some(), String::new);
            }
        }
    }

    fn judge_log(&mut self, conditions: &mut Conditions) {
        let now = self.time.elapsed;
        let seconds = self.seconds();
        let Tuning { stale_after_ms, quorum_after_ms, .. } = self.tuning;
        let progress = &mut self.progress;
        let suspect = self.time.jumped.is_some();
        let old = progress.fresh.map_or(0, |fresh| seconds.saturating_sub(fresh));
        let stands = now.saturating_sub(progress.at);
        let stale = stands >= stale_after_ms || !suspect && old.saturating_mul(1000) >= stale_after_ms;
        let answers = self.points.values().any(|point| point.kind == VantageKind::Log && point.answers());
        conditions.tell(Code::StaleHead, THE_LOG, stale_after_ms, stale && answers, || {
            let size = progress.largest;
            format!(
                "the newest head has size {size}; its quorum is {old} s old; nothing new for {} s",
                stands / 1000
            )
        });
        progress.quorum.update(progress.vouched, progress.largest, now);
        let lost = progress.quorum.lasted(now) >= quorum_after_ms;
        conditions.tell(Code::QuorumLost, THE_LOG, quorum_after_ms, lost, || progress.missing.clone());
    }

    fn judge_witnesses(&mut self, conditions: &mut Conditions) {
        let now = self.time.elapsed;
        let Tuning { silent_after_ms, .. } = self.tuning;
        let seconds = self.seconds();
        let ahead = self.ahead();
        let ours = self.policy.quorum().is_some() && self.policy.is_met_by(ahead);
        for (place, state) in self.witnesses.iter_mut().enumerate() {
            state.lag.update(state.size, self.progress.vouched, now);
            let Some(witness) = self.policy.witnesses().get(place) else { continue };
            let name = witness.vkey.name().as_str();
            let behind = self.progress.fresh.is_some_and(|fresh| match state.newest {
                Some(newest) => fresh.saturating_sub(newest).saturating_mul(1000) >= silent_after_ms,
                None => now >= silent_after_ms,
            });
            // One that is kept in the dark may still say every minute that it has seen nothing newer.
            let lags = state.lag.lasted(now) >= silent_after_ms;
            conditions.tell(Code::WitnessSilent, name, silent_after_ms, behind || lags, || {
                let newest =
                    state.newest.map_or_else(|| "never".to_owned(), |at| format!("at {}", of_seconds(at)));
                format!(
                    "{name} last cosigned {newest}, up to size {}; others up to size {}",
                    state.size, self.progress.vouched
                )
            });
            let skewed = ahead.contains(place) && !ours && self.time.jumped.is_none();
            conditions.tell(Code::ClockSkew, name, SKEW_STANDS_MS, skewed, || {
                let newest = state.newest.unwrap_or_default();
                format!(
                    "{name} cosigned at {}, which is {} s ahead of this monitor's clock",
                    of_seconds(newest),
                    newest.saturating_sub(seconds)
                )
            });
        }
    }

    /// The witnesses whose newest time lies ahead.
    fn ahead(&self) -> WitnessSet {
        let latest = self.seconds().saturating_add(self.tuning.skew_ms / 1000);
        let ahead = |state: &WitnessState| state.newest.is_some_and(|newest| newest > latest);
        self.witnesses.iter().enumerate().filter(|(_, state)| ahead(state)).map(|(place, _)| place).collect()
    }

    fn judge_clock(&mut self, conditions: &mut Conditions) {
        let now = self.time.elapsed;
        if self.time.jumped.is_none() {
            self.progress.jumped_at = now;
        } else if self.policy.quorum().is_none()
            && self.time.since(self.progress.jumped_at) >= BELIEVED_AGAIN_MS
        {
            self.time.jumped = None;
        }
        let ahead = self.policy.quorum().is_some() && self.policy.is_met_by(self.ahead());
        let jumped = self.time.jumped.as_deref();
        conditions.tell(Code::ClockSkew, THIS_MONITOR, SKEW_STANDS_MS, jumped.is_some() || ahead, || {
            match jumped {
                Some(how) => format!("this monitor's clock jumped: {how}"),
                None => {
                    "a whole quorum of witnesses has signed times that this monitor's clock has not reached"
                        .to_owned()
                }
            }
        });
    }
}

/// What holds now and what does not.
pub(super) type Conditions = BTreeMap<(Code, String), Condition>;

pub(super) struct Condition {
    /// How long it must last to hold.
    patience: u64,
    /// The particulars, if it does.
    holds: Option<String>,
}

pub(super) trait Tell {
    fn tell(
        &mut self,
        code: Code,
        subject: &str,
        patience: u64,
        holds: bool,
        detail: impl FnOnce() -> String,
    );
}

impl Tell for Conditions {
    fn tell(
        &mut self,
        code: Code,
        subject: &str,
        patience: u64,
        holds: bool,
        detail: impl FnOnce() -> String,
    ) {
        let holds = holds.then(detail);
        self.insert((code, subject.to_owned()), Condition { patience, holds });
    }
}
