//! The regular audit: which entries are to be read, and under whom. Each identity under which the log is read reads every entry of
//! what it is shown, by itself: a log that changes bytes for one reader alone, behind equal heads, is seen by that reader only. A sample
//! would find one changed entry among many by luck; the price of certainty is that the log sends each entry once to each identity.
//!
//! No identity waits for another, so one that is served slowly or not at all holds up none, and is told of as behind. This module does not
//! know how entries are read.

use epigraph_core::{TreeHead, TreeSize};

use super::time::{Elapsed, Lag};
use super::vigil::{Conditions, Point, Tell};
use super::{Machine, Tuning};
use crate::event::{Effect, Vantage, VantageKind};
use crate::finding::Code;
use crate::heads::Seen;

/// What a finding about the full audit is about.
pub const THE_AUDIT: &str = "audit";

/// After this long an audit that was asked for is asked for again.
const AUDIT_AGAIN_MS: u64 = 10 * 60 * 1000;

/// How far the entries under one identity are read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Audit {
    done: TreeSize,
    asked: Option<(TreeHead, Elapsed)>,
    lag: Lag,
}

impl Machine {
    pub(super) fn audited(&mut self, head: TreeHead, vantage: &Vantage) {
        self.reached(vantage);
        let Some(Point { audit, .. }) = self.points.get_mut(&vantage.name) else { return };
        audit.done = audit.done.max(head.size);
        audit.asked = audit.asked.filter(|(asked, _)| asked.size > head.size);
    }

    /// It is asked for again, of what is shown by then.
    pub(super) fn not_audited(&mut self, head: TreeHead, vantage: &Vantage) {
        let Some(Point { audit, .. }) = self.points.get_mut(&vantage.name) else { return };
        audit.asked = audit.asked.filter(|(asked, _)| *asked != head);
    }

    /// The newest head of the first history that is shown under an identity of the log: what its entries must lead to. `None` where another
    /// history is shown by now, which has other entries.
    pub(crate) fn shown_at(&self, vantage: &str) -> Option<TreeHead> {
        let point = self.points.get(vantage)?;
        if point.kind != VantageKind::Log || point.branch.is_some_and(|branch| branch > 0) {
            return None;
        }
        let shown = |seen: &&Seen| seen.sightings().iter().any(|sighting| sighting.vantage == vantage);
        self.heads.branches().first()?.heads().rev().find(shown).map(Seen::head)
    }

    /// Asks for what is new under each identity that answers.
    pub(super) fn next_audits(&mut self) {
        let now = self.time.elapsed;
        let due = |point: &Point| {
            let running = point.audit.asked.is_some_and(|(_, at)| now.saturating_sub(at) < AUDIT_AGAIN_MS);
            point.kind == VantageKind::Log && point.answers() && !running
        };
        let due: Vec<String> =
            self.points.iter().filter(|(_, point)| due(point)).map(|(name, _)| name.clone()).collect();
        for name in due {
            let Some(upto) = self.shown_at(&name) else { continue };
            let Some(point) = self.points.get_mut(&name) else { continue };
            if upto.size > point.audit.done {
                point.audit.asked = Some((upto, now));
                self.out.push(Effect::Audit { upto, vantage: Vantage { name, kind: VantageKind::Log } });
            }
        }
    }

    /// Whether an identity is behind what it is shown. One that does not answer is told of as that.
    pub(super) fn judge_audits(&mut self, conditions: &mut Conditions) {
        let now = self.time.elapsed;
        let Tuning { behind_after_ms, unreachable_after_ms, .. } = self.tuning;
        let logs = self.points.iter().filter(|(_, point)| point.kind == VantageKind::Log);
        let shown: Vec<(String, Option<TreeHead>)> =
            logs.map(|(name, _)| (name.clone(), self.shown_at(name))).collect();
        let mut behind = Vec::new();
        for (name, shown) in shown {
            let Some(point) = self.points.get_mut(&name) else { continue };
            let away = point.away(unreachable_after_ms, now);
            let audit = &mut point.audit;
            let Some(shown) = shown.filter(|_| !away) else {
                audit.lag = Lag::default();
                continue;
            };
            audit.lag.update(audit.done, shown.size, now);
            if audit.lag.lasted(now) >= behind_after_ms {
                behind.push(format!(
                    "{name} is shown size {}, and its entries are read and proven up to {}",
                    shown.size, audit.done
                ));
            }
        }
        conditions
            .tell(Code::MonitorBehind, THE_AUDIT, behind_after_ms, !behind.is_empty(), || behind.join("; "));
    }
}
