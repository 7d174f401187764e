//! The machine that compares: every two heads of a log must be provably of one history.
//!
//! `(state, event) -> effects`, without clock, disk or network. It decides which proof is asked for, of whom, what an answer
//! shows, and what is found. Two rules keep it from crying wolf: only a note with the log's own signature says anything about
//! the log, and a proof that fails says nothing about anybody but whom it was asked of. What it holds is bounded whatever a log
//! shows. Parts: `questions` asks and judges, `convict` makes evidence, `perjury` looks at what witnesses vouch for alone, `vigil`
//! watches vantage points, witnesses and clocks, `audits` has the entries read, `claims` looks for acknowledged entries. One machine knows one log; it does not
//! know how anything is fetched or kept.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use epigraph_core::{Hash, Origin, Policy, TreeHead, TreeSize, UnixMillis};

use crate::event::{Effect, Event, Vantage, VantageKind};
use crate::finding::{Clear, Code, Trigger};
use crate::heads::{self, Garbage, Heads, Noted, Seen};
pub use crate::lines::StateError;

mod audits;
mod claims;
mod convict;
mod perjury;
mod questions;
mod time;
mod vigil;

pub use audits::THE_AUDIT;
pub use claims::{MAX_CLAIMS, MAX_CLAIMS_OF_ONE};
pub use vigil::{THIS_MONITOR, Tuning};

use claims::Awaited;
use convict::Convictions;
use perjury::Perjuries;
use questions::{Doubt, Question};
use time::{Elapsed, Time};
use vigil::{Point, Progress, WitnessState};

/// What a finding about the log as a whole is about.
pub const THE_LOG: &str = "log";

/// The most vantage points of one log: every witness of a large policy, and as many others again.
pub const MAX_VANTAGES: usize = 128;

/// How often one vantage point's garbage is told of: the book counts, this only keeps it from being written all the time.
const GARBAGE_EVERY_MS: u64 = 60_000;

/// After this long without garbage a vantage point is clean again.
const QUIET_MS: u64 = 10 * 60 * 1000;

/// A head as a key: the two things that tell heads of one log apart.
type Key = (TreeSize, Hash);

fn key(head: &TreeHead) -> Key {
    (head.size, head.root)
}

/// What a monitor knows of one log.
pub struct Machine {
    origin: Origin,
    policy: Policy,
    tuning: Tuning,
    time: Time,
    heads: Heads,
    points: BTreeMap<String, Point>,
    witnesses: Vec<WitnessState>,
    progress: Progress,
    questions: Vec<Question>,
    doubts: BTreeMap<Key, Doubt>,
    convictions: Convictions,
    perjuries: Perjuries,
    claims: Vec<Awaited>,
    /// Which conditions hold, as far as was told.
    standing: BTreeMap<(Code, String), bool>,
    /// When garbage was last told of.
    grumbled: BTreeMap<(Code, String), Elapsed>,
    changed: bool,
    out: Vec<Effect>,
}

impl Machine {
    /// A machine that has seen nothing of the log `origin`. `policy` is the monitor's own: it names the log's keys, and its
    /// quorum is the monitor's, stricter than a reader's. `vantages` are those of the configuration.
    pub fn new(origin: Origin, policy: Policy, vantages: &[Vantage], tuning: Tuning) -> Machine {
        let points = vantages.iter().take(MAX_VANTAGES).map(Vantage::cleaned);
        Machine {
            points: points.map(|vantage| (vantage.name, Point::new(vantage.kind))).collect(),
            witnesses: policy.witnesses().iter().map(|_| WitnessState::default()).collect(),
            origin,
            policy,
            tuning,
            time: Time::default(),
            heads: Heads::default(),
            progress: Progress::default(),
            questions: Vec::new(),
            doubts: BTreeMap::new(),
            convictions: Convictions::default(),
            perjuries: Perjuries::new(),
            claims: Vec::new(),
            standing: BTreeMap::new(),
            grumbled: BTreeMap::new(),
            changed: false,
            out: Vec::new(),
        }
    }

    /// The log.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The heads that are kept.
    pub fn heads(&self) -> &Heads {
        &self.heads
    }

    /// What the machine must not forget, as a file: heads, the largest that each vantage point showed, and claims.
    pub fn encode(&self) -> Vec<u8> {
        let mut file = heads::writer();
        self.heads.write(&mut file);
        for (name, point) in &self.points {
            if let Some(largest) = point.largest {
                file.line("largest", format_args!("{} {} {name}", largest.size, largest.root));
            }
        }
        self.claims.iter().for_each(|awaited| awaited.write(&mut file));
        file.finish()
    }

    /// The machine as it was when it wrote this file, under the policy and for the vantage points of today.
    pub fn decode(
        bytes: &[u8],
        origin: Origin,
        policy: Policy,
        vantages: &[Vantage],
        tuning: Tuning,
    ) -> Result<Machine, StateError> {
        let mut machine = Machine::new(origin, policy, vantages, tuning);
        let mut file = heads::reader(bytes)?;
        machine.heads = Heads::read(&mut file, &machine.origin, &machine.policy)?;
        while let Some((largest, name)) = file.maybe("largest", vigil::parse_largest)? {
            // A vantage point that the configuration let go of is of no concern any more.
            if let Some(point) = machine.points.get_mut(name) {
                point.largest = Some(largest);
            }
        }
        while let Some(awaited) = file.maybe("claim", Awaited::parse)? {
            machine.claims.push(awaited);
        }
        if !file.is_empty() || machine.claims.len() > MAX_CLAIMS {
            return Err(file.bad());
        }
        Ok(machine)
    }

    /// Takes one event. [`Effect::KeepHeads`] is the first effect if it is among them.
    pub fn step(&mut self, event: Event) -> Vec<Effect> {
        self.time.read(event.at());
        match event {
            Event::Head { vantage, note, at } => self.head(&vantage.cleaned(), &note, at),
            Event::Proof { old, new, hashes, candidates, vantage, .. } => {
                self.proof((old, new), &hashes, &candidates, &vantage);
            }
            Event::NoProof { old, new, vantage, why, .. } => self.no_proof((old, new), &vantage, &why),
            Event::Audited { head, vantage, .. } => self.audited(head, &vantage),
            Event::AuditFound { found, vantage, .. } => self.audit_found(found, &vantage),
            Event::NotAudited { head, vantage, .. } => self.not_audited(head, &vantage),
            Event::Unreachable { vantage, why, .. } => self.unreachable(&vantage.cleaned(), why),
            Event::Reached { vantage, .. } => self.reached(&vantage.cleaned()),
            Event::Receipt { claim, at } => self.claimed(claim, at),
            Event::Inclusion { index, size, hashes, vantage, .. } => {
                self.inclusion(index, size, hashes, &vantage);
            }
            Event::NoInclusion { index, size, vantage, why, .. } => {
                self.no_inclusion(index, size, &vantage, &why);
            }
            Event::Tick { .. } => self.tick(),
        }
        self.try_perjuries();
        self.advance();
        self.next_audits();
        self.evaluate();
        let mut effects = std::mem::take(&mut self.out);
        if std::mem::take(&mut self.changed) {
            effects.insert(0, Effect::KeepHeads);
        }
        effects
    }

    fn tick(&mut self) {
        let now = self.time.elapsed;
        let over = |last: Elapsed| now.saturating_sub(last) >= QUIET_MS;
        let quiet: Vec<_> =
            self.grumbled.iter().filter(|(_, last)| over(**last)).map(|(about, _)| about.clone()).collect();
        for about in quiet {
            self.grumbled.remove(&about);
            // A head that was too long to compare stays one.
            if about.0 != Code::InconsistentHead {
                self.clear(about.0, &about.1);
            }
        }
        self.tick_questions();
        self.tick_claims();
        self.cross_examine();
    }

    /// The vantage point's state. `None` if it is one too many.
    fn point(&mut self, vantage: &Vantage) -> Option<&mut Point> {
        if !self.points.contains_key(&vantage.name) {
            if self.points.len() >= MAX_VANTAGES {
                return None;
            }
            self.points.insert(vantage.name.clone(), Point::new(vantage.kind.clone()));
        }
        self.points.get_mut(&vantage.name)
    }

    fn head(&mut self, vantage: &Vantage, note: &Bytes, at: UnixMillis) {
        self.reached(vantage);
        let (seen, complaints) = match Seen::open(note, &self.origin, &self.policy) {
            Ok(opened) => opened,
            Err(garbage) if self.is_perjury(vantage, note, &garbage) => return,
            Err(garbage) => return self.garbage(vantage, &garbage),
        };
        complaints.iter().take(1).for_each(|garbage| self.garbage(vantage, garbage));
        let head = seen.head();
        // What strangers added to the note does not count.
        let note = Bytes::from(seen.note());
        let length = note.len();
        if length > heads::MAX_KEPT_NOTE_BYTES {
            let detail = format!(
                "{} showed a head of size {} that the log signed in a note of {length} bytes: it is too long to be kept and \
                 compared",
                vantage.name, head.size
            );
            return self.grumble(Code::InconsistentHead, &vantage.name, &detail);
        }
        self.shown(vantage, &seen);
        if head.size == TreeSize::ZERO {
            // The empty tree is the beginning of every tree, and has one root.
            return;
        }
        let noted = self.heads.note(seen, &vantage.name, at);
        // Witnesses show their own cosignature each: what a quorum stands behind is known when they are put together.
        if let Some(together) = self.heads.get(&head).cloned() {
            self.note_signatures(&together);
        }
        match noted {
            Noted::Known { branch, grew } => {
                if let (Some(_), Some(point)) = (branch, self.points.get_mut(&vantage.name)) {
                    point.branch = branch;
                }
                if branch.is_none() && vantage.kind == VantageKind::Log {
                    self.published_now(&head);
                }
                if grew {
                    self.changed = true;
                    self.cosigned_later(&head);
                }
            }
            Noted::First(branch) => {
                self.changed = true;
                self.joined(&head, branch);
            }
            Noted::Waits => {
                // Its size is compared with others when it is asked about.
                self.changed = true;
            }
            Noted::NoRoom => {
                // No room to wait for a proof; but two roots of one size need none.
                self.same_size(&head, &note);
                let detail = format!(
                    "{} shows more heads than proofs come for: the head of size {} was not kept",
                    vantage.name, head.size
                );
                self.grumble(Code::MonitorBehind, &vantage.name, &detail);
            }
        }
    }

    /// What is not the log's word is a matter between the monitor and whoever showed it.
    fn garbage(&mut self, vantage: &Vantage, garbage: &Garbage) {
        let detail = format!("{} shows what is not signed as it should be: {}", vantage.name, garbage.why);
        self.grumble(garbage.code, &vantage.name, &detail);
    }

    /// A trigger that whoever feeds a vantage point can cause: told of at intervals only, and over when it has stopped.
    fn grumble(&mut self, code: Code, subject: &str, detail: &str) {
        let now = self.time.elapsed;
        let about = (code, subject.to_owned());
        if self.grumbled.get(&about).is_some_and(|last| now.saturating_sub(*last) < GARBAGE_EVERY_MS) {
            return;
        }
        // Subjects are vantage points, so there is an end to them.
        if self.points.contains_key(subject) {
            self.grumbled.insert(about, now);
        }
        self.trigger(code, subject, detail, Vec::new());
    }

    /// A head has found its place.
    fn joined(&mut self, head: &TreeHead, branch: usize) {
        self.changed = true;
        let seen = self.heads.get(head);
        let by: Vec<String> =
            seen.iter().flat_map(|seen| seen.sightings()).map(|sighting| sighting.vantage.clone()).collect();
        for name in by {
            if let Some(point) = self.points.get_mut(&name) {
                point.branch = Some(branch);
            }
        }
        self.no_doubt(head);
        if branch > 0 {
            let detail = format!("the second history goes on: {}", self.describe(head));
            self.trigger(Code::SplitView, THE_LOG, &detail, Vec::new());
        }
        self.cross_examine();
    }

    /// Who showed a head, for people.
    fn describe(&self, head: &TreeHead) -> String {
        let names: Vec<&str> = self
            .heads
            .get(head)
            .iter()
            .flat_map(|seen| seen.sightings())
            .map(|sighting| sighting.vantage.as_str())
            .take(16)
            .collect();
        let by = if names.is_empty() { "nobody here".to_owned() } else { names.join(", ") };
        format!("size {} root {}, shown by {by}", head.size, head.root)
    }

    fn trigger(&mut self, code: Code, subject: &str, detail: &str, notes: Vec<Bytes>) {
        let trigger = Trigger::new(code, &self.origin, subject, self.time.now, detail);
        self.out.push(Effect::Trigger(Trigger { notes, ..trigger }));
    }

    fn clear(&mut self, code: Code, subject: &str) {
        let (origin, subject) = (self.origin.clone(), subject.to_owned());
        self.out.push(Effect::Clear(Clear { code, origin, subject, at: self.time.now }));
    }

    /// The note of a head, if it is kept.
    fn note_of(&self, head: &TreeHead) -> Option<Bytes> {
        self.heads.get(head).map(|seen| Bytes::from(seen.note()))
    }

    /// Those that proofs and entries are asked of: the log's vantage points, first those that showed this head, then those that
    /// answer.
    fn sources(&self, head: &TreeHead) -> Vec<Vantage> {
        let showed: BTreeSet<&str> = self
            .heads
            .get(head)
            .iter()
            .flat_map(|seen| seen.sightings())
            .map(|sighting| sighting.vantage.as_str())
            .collect();
        let logs = self.points.iter().filter(|(_, point)| point.kind == VantageKind::Log);
        let mut sources: Vec<_> = logs.collect();
        sources.sort_by_key(|(name, point)| (!showed.contains(name.as_str()), !point.answers()));
        let vantage =
            |(name, point): (&String, &Point)| Vantage { name: name.clone(), kind: point.kind.clone() };
        sources.into_iter().map(vantage).collect()
    }
}
