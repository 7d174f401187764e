//! What a monitor knows, in one place: a machine for each log, the book of findings, and the directory under them.
//!
//! What was found is on the disk before anybody is told: first its evidence, then the sinks' own queues, then the book. A crash in
//! between tells somebody twice and loses nothing. It knows no vantage point and makes no call.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use epigraph_core::{Clock, Frontier, Origin, Policy, SigningKey, TreeHead, TreeSize, UnixMillis};
use tokio::sync::broadcast;

use crate::book::{AcknowledgeError, Book};
use crate::compare::Machine;
use crate::disk::{Disk, DiskError};
use crate::drill::{NO_LOG, Rehearsal};
use crate::event::{Claim, Effect, Event, Vantage};
use crate::finding::{Clear, EvidenceId, Finding, FindingId, Notice, Trigger};
use crate::heads::Seen;
use crate::monitor::{LogStatus, VantageStatus};
use crate::progress::{Audited, Progress};
use crate::run::OnNotice;
use crate::standing::{Condition, Standing, THE_ENTRIES};
use crate::statement::{self, NotStated};
use crate::vantage::{Come, Message};

/// Notices that a subscriber may be behind. One that is further behind is told so.
pub(crate) const MAX_BEHIND: usize = 1_024;

/// How often a book that only counted is stored, and what is due is told of.
const TIDY_EVERY_MS: u64 = 10_000;

pub(crate) struct State {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) book: Book,
    pub(crate) disk: Disk,
    pub(crate) logs: Vec<LogState>,
    pub(crate) key: SigningKey,
    pub(crate) on_notice: OnNotice,
    pub(crate) notices: broadcast::Sender<Notice>,
    /// Whether the book has counted something that is not stored.
    pub(crate) counted: bool,
    pub(crate) tidied: UnixMillis,
    /// The drill that is going on.
    pub(crate) drill: Option<Rehearsal>,
    /// What is to be done, and the loop was not told yet.
    pub(crate) asks: Vec<(usize, Ask)>,
}

pub(crate) struct LogState {
    pub(crate) machine: Machine,
    pub(crate) policy: Policy,
    pub(crate) progress: Progress,
    pub(crate) full_audit_every_ms: u64,
    pub(crate) points: BTreeMap<String, VantageStatus>,
    /// What stands on the word of whoever reports.
    pub(crate) standing: Standing,
    /// As far as the order of entries was looked at since the start.
    pub(crate) ordered: TreeSize,
    /// Readers under which everything was to be read again, and when there was last a sign of it.
    pub(crate) again: BTreeMap<String, UnixMillis>,
}

/// What the loop is to do: ask, or read.
#[derive(Debug)]
pub(crate) enum Ask {
    Effect(Effect),
    Again { vantage: String, upto: TreeHead, heads: Vec<TreeHead>, from: (Frontier, String) },
}

/// A full audit that shows no progress for this long is begun again, under another reader first.
const AGAIN_LOST_MS: u64 = 60 * 60 * 1000;

impl State {
    /// Takes what a vantage point of a log said; says what is to be done.
    pub(crate) fn heard(&mut self, log: usize, message: Message) -> Result<Vec<Ask>, DiskError> {
        if log == NO_LOG {
            return self.rehearsed(message).map(|()| Vec::new());
        }
        let Some(state) = self.logs.get_mut(log) else { return Ok(Vec::new()) };
        match message {
            Message::Event(event) => {
                state.watch(&event);
                let effects = state.machine.step(event);
                self.carry_out(log, effects)
            }
            Message::Order { upto, conditions } => {
                if state.is_newest(upto) {
                    self.report(log, THE_ENTRIES, conditions)?;
                }
                Ok(Vec::new())
            }
            Message::Audit { vantage, come } => {
                state.come(&vantage, come, self.clock.now());
                let origin = state.machine.origin().clone();
                self.disk.keep_progress(&origin, &state.progress)?;
                Ok(Vec::new())
            }
        }
    }

    /// Takes all that somebody has to say of what stands in a log.
    pub(crate) fn report(
        &mut self,
        log: usize,
        reporter: &str,
        conditions: Vec<Condition>,
    ) -> Result<(), DiskError> {
        let at = self.clock.now();
        let Some(state) = self.logs.get_mut(log) else { return Ok(()) };
        let about = (&self.book, state.machine.origin(), at);
        let (triggers, clears) = state.standing.report(reporter, conditions, about);
        triggers.into_iter().try_for_each(|trigger| self.trigger(trigger))?;
        clears.iter().try_for_each(|clear| self.clear(clear))
    }

    fn clear(&mut self, clear: &Clear) -> Result<(), DiskError> {
        let notice = self.book.clear(clear);
        self.tell(notice.into_iter().collect())
    }

    /// Takes a claim, durably; says by when the entry must be published. `None`: there is no room for more.
    pub(crate) fn claimed(&mut self, log: usize, claim: Claim) -> Result<Option<UnixMillis>, DiskError> {
        let (index, leaf, at) = (claim.index, claim.leaf, self.clock.now());
        let asks = self.heard(log, Message::Event(Event::Receipt { claim, at }))?;
        self.asks.extend(asks.into_iter().map(|ask| (log, ask)));
        Ok(self.logs.get(log).and_then(|log| log.machine.claimed_by(index, leaf)))
    }

    /// Lets time pass for every log.
    pub(crate) fn tick(&mut self) -> Result<Vec<(usize, Ask)>, DiskError> {
        let at = self.clock.now();
        let mut asks = Vec::new();
        for log in 0..self.logs.len() {
            let Some(state) = self.logs.get_mut(log) else { continue };
            let due = state.due(at);
            let effects = state.machine.step(Event::Tick { at });
            let asked = self.carry_out(log, effects)?;
            asks.extend(asked.into_iter().chain(due).map(|ask| (log, ask)));
        }
        if at.0.abs_diff(self.tidied.0) >= TIDY_EVERY_MS {
            self.tidied = at;
            let notices = self.book.tick(at);
            let counted = std::mem::take(&mut self.counted);
            if counted && notices.is_empty() {
                self.disk.keep_book(&self.book)?;
            }
            self.tell(notices)?;
            self.disk.forget_evidence(&self.book)?;
        }
        Ok(asks)
    }

    /// Takes one on for somebody.
    pub(crate) fn acknowledge(
        &mut self,
        id: FindingId,
        by: &str,
        why: &str,
    ) -> Result<Result<Finding, AcknowledgeError>, DiskError> {
        let notice = match self.book.acknowledge(id, by, why, self.clock.now()) {
            Ok(notice) => notice,
            Err(error) => return Ok(Err(error)),
        };
        let finding = notice.finding.clone();
        self.tell(vec![notice])?;
        Ok(Ok(finding))
    }

    pub(crate) fn log(&self, origin: &Origin) -> Option<&LogState> {
        self.logs.iter().find(|log| log.machine.origin() == origin)
    }

    fn carry_out(&mut self, log: usize, effects: Vec<Effect>) -> Result<Vec<Ask>, DiskError> {
        let mut asks = Vec::new();
        for effect in effects {
            match effect {
                Effect::KeepHeads => {
                    let Some(state) = self.logs.get(log) else { continue };
                    self.disk.keep_heads(state.machine.origin(), &state.machine.encode())?;
                }
                Effect::Trigger(trigger) => self.trigger(trigger)?,
                Effect::Clear(clear) => self.clear(&clear)?,
                ask => asks.push(Ask::Effect(ask)),
            }
        }
        Ok(asks)
    }

    /// Files a trigger. A disk that takes no more must not silence the alarm: whoever is told is told all the same, and then the
    /// monitor ends.
    pub(crate) fn trigger(&mut self, mut trigger: Trigger) -> Result<(), DiskError> {
        let mut kept = Ok(());
        if self.book.wants_evidence(&trigger) {
            trigger.evidence = trigger.evidence.take().or_else(|| self.statement(&trigger));
            kept = trigger.evidence.iter().try_for_each(|file| self.disk.keep_evidence(file).map(|_| ()));
        }
        let notice = self.book.trigger(trigger);
        self.counted |= notice.is_none();
        let told = self.tell(notice.into_iter().collect());
        kept.and(told)
    }

    /// The signed statement of an observation. What is proven has its evidence, or had it when it was first found.
    fn statement(&self, trigger: &Trigger) -> Option<Bytes> {
        match statement::state(trigger, &self.key) {
            Ok(file) => Some(file),
            Err(NotStated::Proven(_)) => None,
            Err(error) => {
                tracing::error!(code = %trigger.code, %error, "an observation is told without a signed statement");
                None
            }
        }
    }

    pub(crate) fn tell(&mut self, notices: Vec<Notice>) -> Result<(), DiskError> {
        if notices.is_empty() {
            return Ok(());
        }
        notices.iter().for_each(&self.on_notice);
        self.counted = false;
        let kept = self.disk.keep_book(&self.book);
        for notice in notices {
            // Nobody may be listening.
            let _ = self.notices.send(notice);
        }
        kept
    }

    pub(crate) fn evidence(&self, id: EvidenceId) -> Result<Option<Bytes>, DiskError> {
        self.disk.evidence(id)
    }
}

impl LogState {
    /// Whether nobody has looked at the order of more entries, also before the start: one identity may be behind another.
    fn is_newest(&mut self, upto: TreeSize) -> bool {
        let read = self.progress.all().map(|(_, audited)| audited.read.size());
        let known = read.max().unwrap_or_default().max(self.ordered);
        self.ordered = known.max(upto);
        upto >= known
    }

    /// Notes what people want to see of a vantage point.
    fn watch(&mut self, event: &Event) {
        let (vantage, at) = match event {
            Event::Head { vantage, at, .. } | Event::Reached { vantage, at } => (vantage, *at),
            Event::Unreachable { vantage, why, .. } => {
                if let Some(point) = self.point(vantage) {
                    point.trouble.clone_from(why);
                }
                return;
            }
            Event::Audited { head, vantage, .. } => {
                if let Some(point) = self.point(vantage) {
                    point.audited = point.audited.max(head.size);
                }
                return;
            }
            _ => return,
        };
        let seen = match event {
            Event::Head { note, .. } => self.read(note),
            _ => None,
        };
        let Some(point) = self.point(vantage) else { return };
        point.reached = Some(at);
        point.trouble.clear();
        if let Some((head, head_at)) = seen {
            (point.head, point.head_at) = (Some(head), head_at);
        }
    }

    /// The head in a note that the log signed, and the newest time at which a witness cosigned it.
    pub(crate) fn read(&self, note: &[u8]) -> Option<(TreeHead, Option<UnixMillis>)> {
        let (seen, _) = Seen::open(note, self.machine.origin(), &self.policy).ok()?;
        let times = seen.witnesses().iter().filter_map(|place| seen.cosigned_at(place));
        let newest = times.map(|at| at.seconds()).max();
        Some((seen.head(), newest.map(|seconds| UnixMillis(seconds.saturating_mul(1000)))))
    }

    /// Those of the configuration; whoever else reports is not listed.
    fn point(&mut self, vantage: &Vantage) -> Option<&mut VantageStatus> {
        self.points.get_mut(&vantage.name)
    }

    fn come(&mut self, vantage: &str, come: Come, now: UnixMillis) {
        let mut audited = self.progress.of(vantage);
        match come {
            Come::Read(read, rules) => (audited.read, audited.rules) = (read, rules),
            Come::Again(again, rules) => {
                audited.again = Some((again, rules));
                self.again.insert(vantage.to_owned(), now);
            }
            Come::Full { at } => {
                (audited.full_at, audited.again) = (Some(at), None);
                self.again.remove(vantage);
            }
        }
        self.progress.set(vantage, audited);
    }

    /// What is to be read again from the first entry on now: once in each interval everything, under the reader whose turn was the longest
    /// ago. So the log sends all of its entries once in an interval, however many read it; and one that serves a reader nothing
    /// is read under the next.
    fn due(&mut self, at: UnixMillis) -> Option<Ask> {
        let since = |then: UnixMillis| at.0.saturating_sub(then.0);
        let read = |(name, audited): (&str, &Audited)| audited.full_at.map(|full| (full, name.to_owned()));
        let (newest, _) = self.progress.all().filter_map(read).max()?;
        if since(newest) < self.full_audit_every_ms
            || self.again.values().any(|sign| since(*sign) < AGAIN_LOST_MS)
        {
            return None;
        }
        let turn = |(full, name): (UnixMillis, String)| {
            let upto = self.machine.shown_at(&name)?;
            let tried = self.again.get(&name).copied().unwrap_or_default();
            Some((full.max(tried), name, upto))
        };
        let turns = self.progress.all().filter_map(read).filter_map(turn);
        let (_, vantage, upto) = turns.min_by_key(|(last, ..)| *last)?;
        self.again.insert(vantage.clone(), at);
        let heads = self.machine.heads();
        let waiting = heads.waiting().iter().map(|waiting| &waiting.seen);
        let kept = heads.branches().iter().flat_map(|branch| branch.heads()).chain(waiting);
        let heads = kept.map(Seen::head).collect();
        let from = self.progress.of(&vantage).again.unwrap_or_default();
        Some(Ask::Again { vantage, upto, heads, from })
    }

    pub(crate) fn status(&self, book: &Book) -> LogStatus {
        let open = || {
            let origin = self.machine.origin();
            book.findings().filter(move |finding| finding.origin == *origin && finding.is_open())
        };
        let consistent = self.machine.heads().branches().first().and_then(|branch| branch.tip());
        let points = self.points.iter().map(|(name, point)| {
            let audited = self.progress.of(name);
            let read = point.audited.max(audited.read.size());
            VantageStatus { audited: read, full_at: audited.full_at, ..point.clone() }
        });
        let points: Vec<_> = points.collect();
        LogStatus {
            origin: self.machine.origin().clone(),
            consistent: consistent.map(|seen| seen.head().size).unwrap_or_default(),
            audited: points.iter().map(|point| point.audited).max().unwrap_or_default(),
            last_full_audit: points.iter().filter_map(|point| point.full_at).max(),
            open: open().count(),
            unacknowledged: open().filter(|finding| finding.acknowledged.is_none()).count(),
            vantages: points,
        }
    }
}

#[cfg(test)]
mod tests {
    use epigraph_core::checkpoint::encode_text;
    use epigraph_core::{TreeSize, note};
    use zeroize::Zeroizing;

    use super::*;
    use crate::compare::Tuning;
    use crate::event::VantageKind;

    const HOUR: u64 = 60 * 60 * 1000;
    const EVERY: u64 = 24 * HOUR;

    /// Two identities were shown one head and have read all, the first of them a little earlier.
    fn read_by_two() -> LogState {
        let key = SigningKey::from_seed("log.example".parse().unwrap(), &Zeroizing::new([1; 32]));
        let origin = key.vkey().name().to_origin();
        let vantages = ["one", "two"].map(|name| Vantage { name: name.into(), kind: VantageKind::Log });
        let policy = Policy::of_log(key.vkey().clone());
        let mut machine = Machine::new(origin.clone(), policy.clone(), &vantages, Tuning::default());
        let head = TreeHead { size: TreeSize::new(7).unwrap(), root: EvidenceId::of(b"root").0 };
        let text = encode_text(&origin, &head);
        let note = Bytes::from(note::encode(&text, [&key.sign_assertion(&text)]));
        let mut progress = Progress::default();
        for (full, vantage) in vantages.into_iter().enumerate() {
            let full_at = Some(UnixMillis(full as u64));
            progress.set(&vantage.name, Audited { full_at, ..Audited::default() });
            machine.step(Event::Head { vantage, note: note.clone(), at: UnixMillis(0) });
        }
        let (points, again) = (BTreeMap::new(), BTreeMap::new());
        LogState {
            machine,
            policy,
            progress,
            full_audit_every_ms: EVERY,
            points,
            standing: Standing::default(),
            ordered: TreeSize::ZERO,
            again,
        }
    }

    /// Who reads all again at this time, if anybody does.
    fn turn(log: &mut LogState, at: u64) -> Option<String> {
        log.due(UnixMillis(at)).map(|ask| match ask {
            Ask::Again { vantage, .. } => vantage,
            Ask::Effect(effect) => panic!("{effect:?}"),
        })
    }

    fn read_all(log: &mut LogState, vantage: &str, at: u64) {
        log.come(vantage, Come::Full { at: UnixMillis(at) }, UnixMillis(at));
    }

    /// In each interval everything is read once, under one identity after the other. Seen to fail with an interval for each identity, and with
    /// the turn always given to the first.
    #[test]
    fn identities_take_turns_in_reading_all_again() {
        let mut log = read_by_two();
        assert_eq!(turn(&mut log, EVERY), None);
        for (nth, name) in (1..).zip(["one", "two", "one", "two"]) {
            let at = nth * (EVERY + 1);
            assert_eq!(turn(&mut log, at).as_deref(), Some(name));
            assert_eq!(turn(&mut log, at), None);
            read_all(&mut log, name, at);
            assert_eq!(turn(&mut log, at), None);
        }
    }

    /// One that is served nothing takes nobody's turn away, and one that reads for hours is let finish. Seen to fail without the time of the
    /// last attempt in the order, and with the sign of progress not noted.
    #[test]
    fn an_identity_that_is_served_nothing_is_passed_over() {
        let mut log = read_by_two();
        let at = EVERY + 1;
        assert_eq!(turn(&mut log, at).as_deref(), Some("one"));
        assert_eq!(turn(&mut log, at + HOUR - 1), None);
        assert_eq!(turn(&mut log, at + HOUR).as_deref(), Some("two"));
        log.come("two", Come::Again(Frontier::new(), String::new()), UnixMillis(at + 2 * HOUR - 1));
        assert_eq!(turn(&mut log, at + 2 * HOUR), None);
        assert_eq!(turn(&mut log, at + 3 * HOUR).as_deref(), Some("one"));
    }

    /// What an identity saw that is behind another one brings nothing back. Seen to fail with what was read before the start not counted.
    #[test]
    fn the_order_of_fewer_entries_is_no_news() {
        let mut log = read_by_two();
        let mut five = Frontier::new();
        (0..5_u8).for_each(|n| five.push(EvidenceId::of(&[n]).0).unwrap());
        log.come("one", Come::Read(five, String::new()), UnixMillis(0));
        let newest = [4, 5, 5, 7, 6, 7].map(|upto| log.is_newest(TreeSize::new(upto).unwrap()));
        assert_eq!(newest, [false, true, true, true, false, true]);
    }
}
