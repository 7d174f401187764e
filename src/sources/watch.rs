//! Asks an audit service again and again where its sources stand, takes samples of its events, and reports what is wrong.
//!
//! Before the service has answered for the first time what was found before stands. What a sample found stands until the same leaf
//! is looked at again and is right.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use epigraph_core::{Clock, Entropy, LeafIndex, Origin, Policy, UnixMillis};
use epigraph_monitor::Monitor;
use epigraph_monitor::finding::{Code, Finding};
use epigraph_monitor::standing::Condition;
use epigraph_rpc::peer;
use epigraph_rpc::peer::audit::{Audit, SourceStatus};
use tokio::time::{MissedTickBehavior, interval};

use super::sample::{Sampled, Sampler};
use super::status::{self, conditions};

/// Under this name it reports.
pub const REPORTER: &str = "audit service";

/// Pages of sources: more than an audit service has.
const MAX_PAGES: usize = 128;

/// Sources that are looked at: as many as an audit service takes.
const MAX_SOURCES: usize = 10_000;

/// The longest text about a source: several times the longest name and owner that can be enrolled.
const MAX_TEXT_BYTES: usize = 1_024;

/// Leaves whose event is not what they commit to, and which are looked at again: with all else that stands they fit into one report.
const MAX_BAD: usize = 64;

/// Entries that are looked at for one that is an event's, in a log that has others.
const TRIES: usize = 16;

/// What is looked at, and how often.
pub struct Watch {
    /// The log.
    pub origin: Origin,
    /// The monitor's policy for it.
    pub policy: Policy,
    /// The log as a reader.
    pub log: peer::Log,
    /// The service.
    pub audit: Audit,
    /// How often it is asked.
    pub poll: Duration,
    /// How often an event is asked for; `None`: never.
    pub sample_every_ms: Option<u64>,
    /// How long it may be away.
    pub unreachable_after_ms: u64,
}

/// What is known between one round and the next.
struct Known {
    /// As it was last reported, or found before.
    conditions: Vec<Condition>,
    /// Leaves whose event is not what they commit to.
    bad: BTreeMap<LeafIndex, String>,
    /// Leaves that looked so once: a moment's fault of a disk or a start is not told.
    suspect: BTreeSet<LeafIndex>,
    answered: UnixMillis,
    sampled: UnixMillis,
    /// Why samples have no answer.
    unsampled: Option<String>,
}

/// Watches as long as it is polled. An error is the monitor's disk, which ends the monitor by itself.
pub async fn run(
    watch: Watch,
    monitor: Monitor,
    (clock, entropy): (Arc<dyn Clock>, Arc<dyn Entropy>),
) -> Infallible {
    let mut known = Known::of(&monitor.findings(), &watch.origin, clock.now());
    let mut due = interval(watch.poll);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        due.tick().await;
        let listed = watch.list().await;
        let now = clock.now();
        let stands = match listed {
            Ok(sources) => {
                known.answered = now;
                let audited = monitor.status(&watch.origin).map_or(0, |status| status.audited.get());
                watch.sample(&mut known, &sources, audited, (now, &*entropy)).await;
                known.stand(conditions(&sources, now), None)
            }
            Err(error) => {
                tracing::warn!(origin = %watch.origin, %error, "the audit service does not list its sources");
                let away = now.0.saturating_sub(known.answered.0) >= watch.unreachable_after_ms;
                let before = known.conditions.clone();
                known.stand(before, away.then(|| error.to_string()))
            }
        };
        if let Err(error) = monitor.report(&watch.origin, REPORTER, stands).await {
            tracing::error!(%error, "what the audit service says could not be kept");
        }
    }
}

impl Known {
    /// What was found before the process began stands until it is known better.
    fn of(findings: &[Finding], origin: &Origin, now: UnixMillis) -> Known {
        let open = findings.iter().filter(|finding| {
            finding.is_open() && finding.origin == *origin && status::CODES.contains(&finding.code)
        });
        let (mut conditions, mut bad) = (Vec::new(), BTreeMap::new());
        for Finding { code, subject, detail, .. } in open {
            match code {
                Code::PayloadMismatch => {
                    bad.extend(leaf_of(subject).map(|index| (index, detail.clone())));
                }
                Code::AuditUnreachable => {}
                code => {
                    let (subject, detail) = (subject.clone(), detail.clone());
                    conditions.push(Condition { code: *code, subject, detail });
                }
            }
        }
        // The first sample is due when the time between two has passed: a start puts nothing on the record.
        Known { conditions, bad, suspect: BTreeSet::new(), answered: now, sampled: now, unsampled: None }
    }

    /// Everything that stands: what the sources are like, what samples found, and whether the service is away.
    fn stand(&mut self, conditions: Vec<Condition>, away: Option<String>) -> Vec<Condition> {
        self.conditions = conditions;
        let bad = self.bad.iter().map(|(index, detail)| Condition {
            code: Code::PayloadMismatch,
            subject: subject_of(*index),
            detail: detail.clone(),
        });
        let no_samples =
            self.unsampled.as_ref().map(|why| format!("no event can be compared with its leaf: {why}"));
        let away = away.or(no_samples).map(|detail| Condition {
            code: Code::AuditUnreachable,
            subject: REPORTER.into(),
            detail,
        });
        // What is about the whole and about payloads first: a report is cut at its end.
        away.into_iter().chain(bad).chain(self.conditions.iter().cloned()).collect()
    }

    fn take(&mut self, index: LeafIndex, sampled: Sampled) {
        match sampled {
            Sampled::Good | Sampled::NotIts => {
                self.bad.remove(&index);
                self.suspect.remove(&index);
                self.unsampled = None;
            }
            Sampled::Bad(why) if self.bad.contains_key(&index) || self.suspect.remove(&index) => {
                if self.bad.len() < MAX_BAD || self.bad.contains_key(&index) {
                    self.bad.insert(index, why);
                }
                self.unsampled = None;
            }
            Sampled::Bad(_) => {
                self.suspect.insert(index);
            }
            Sampled::NoAnswer(why) => self.unsampled = Some(why),
        }
    }
}

/// Nobody is believed to send little.
fn is_bounded(source: &SourceStatus) -> bool {
    let texts = [&source.vkey, &source.owner, &source.collector];
    let kinds = source.troubles.iter().map(|trouble| &trouble.kind);
    texts.into_iter().chain(kinds).all(|text| text.len() <= MAX_TEXT_BYTES)
}

fn subject_of(index: LeafIndex) -> String {
    format!("leaf {index}")
}

fn leaf_of(subject: &str) -> Option<LeafIndex> {
    subject.strip_prefix("leaf ")?.parse().ok().and_then(LeafIndex::new)
}

impl Watch {
    async fn list(&self) -> Result<Vec<SourceStatus>, String> {
        let (mut all, mut token) = (Vec::<SourceStatus>::new(), String::new());
        for _ in 0..MAX_PAGES {
            let page = self.audit.sources(self.origin.as_str(), &token).await;
            let page = page.map_err(|error| error.to_string())?;
            if !page.sources.iter().all(is_bounded) || all.len() + page.sources.len() > MAX_SOURCES {
                return Err("it lists more than an audit service can have".into());
            }
            all.extend(page.sources);
            match page.next {
                Some(next) if next > token => token = next,
                _ => break,
            }
        }
        Ok(all)
    }

    /// Looks at an event if it is time, first at one that was wrong; at what was wrong a moment ago always.
    async fn sample(
        &self,
        known: &mut Known,
        sources: &[SourceStatus],
        audited: u64,
        (now, entropy): (UnixMillis, &dyn Entropy),
    ) {
        let Some(every) = self.sample_every_ms else { return };
        let Watch { origin, policy, log, audit, .. } = self;
        let sampler = Sampler { origin, policy, log, audit };
        let suspects: Vec<LeafIndex> = known.suspect.iter().copied().collect();
        for index in suspects {
            known.take(index, sampler.look(index, sources).await);
        }
        if now.0.saturating_sub(known.sampled.0) < every || audited == 0 {
            return;
        }
        known.sampled = now;
        let was_bad = known.bad.keys().nth(below(known.bad.len() as u64, entropy) as usize).copied();
        if let Some(index) = was_bad {
            known.take(index, sampler.look(index, sources).await);
        }
        for _ in 0..TRIES {
            let Some(index) = LeafIndex::new(below(audited, entropy)) else { continue };
            let sampled = sampler.look(index, sources).await;
            let more = sampled == Sampled::NotIts;
            known.take(index, sampled);
            if !more {
                break;
            }
        }
    }
}

/// A random number below `end`; 0 if there is none. What is skewed by the division does not show among 2^64.
fn below(end: u64, entropy: &dyn Entropy) -> u64 {
    let mut bytes = [0; 8];
    entropy.fill(&mut bytes);
    u64::from_le_bytes(bytes).checked_rem(end).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Known {
        Known::of(&[], &Origin::new("a.log").unwrap(), UnixMillis(1))
    }

    fn codes(known: &mut Known) -> Vec<Code> {
        known.stand(Vec::new(), None).iter().map(|condition| condition.code).collect()
    }

    /// Broken to see it fail: `suspect.remove` left out of the condition.
    #[test]
    fn an_event_is_bad_when_it_was_twice_and_good_when_it_is_again() {
        let mut known = known();
        let index = LeafIndex::new(7).unwrap();
        let bad = || Sampled::Bad("another".into());
        known.take(index, bad());
        assert_eq!(codes(&mut known), []);
        known.take(index, bad());
        assert_eq!(codes(&mut known), [Code::PayloadMismatch]);
        known.take(index, Sampled::NoAnswer("busy".into()));
        assert_eq!(codes(&mut known), [Code::AuditUnreachable, Code::PayloadMismatch]);
        known.take(index, Sampled::Good);
        assert_eq!(codes(&mut known), []);
        known.take(index, bad());
        known.take(index, Sampled::Good);
        known.take(index, bad());
        assert_eq!(codes(&mut known), []);
    }

    /// However much is wrong, all of it fits into one report beside what is wrong with the sources.
    #[test]
    fn what_is_remembered_of_samples_is_bounded() {
        let mut known = known();
        for index in (0..2 * MAX_BAD as u64).filter_map(LeafIndex::new) {
            known.take(index, Sampled::Bad("another".into()));
            known.take(index, Sampled::Bad("another".into()));
        }
        assert_eq!((known.bad.len(), known.suspect.len()), (MAX_BAD, 0));
        let of_sources = (status::CODES.len() - 2) * (crate::sources::MAX_NAMED + 1);
        assert!(1 + MAX_BAD + of_sources <= epigraph_monitor::standing::MAX_CONDITIONS);
    }

    #[test]
    fn a_leaf_is_found_again_in_its_findings_name() {
        let index = LeafIndex::new(123).unwrap();
        assert_eq!(leaf_of(&subject_of(index)), Some(index));
        assert_eq!(leaf_of("leaf x"), None);
    }
}
