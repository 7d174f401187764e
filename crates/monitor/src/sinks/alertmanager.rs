//! Prometheus Alertmanager, by its API v2: every open finding is an alert, sent again and again for as long as it lasts, as
//! Prometheus does it. An Alertmanager that lost its memory, or was away, so has all of it after one interval; what waits for it is in
//! the monitor's book, and needs no queue of its own. It does not know the network.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use epigraph_core::backoff::spread_wait;
use epigraph_core::{Clock, Entropy, UnixMillis};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::sleep;

use super::http::{Post, PostError, Transport};
use super::{Alive, Deliveries, FIRST_WAIT, LONGEST_WAIT, Life, Sink, SinkStatus, severity_word};
use crate::finding::{Class, Code, Finding, FindingId, Notice, Severity, State};
use crate::said::rfc3339;

/// What is added to the URL of an Alertmanager.
pub const PATH: &str = "/api/v2/alerts";

/// Alerts in one request: below a megabyte with the longest texts.
const MAX_ALERTS: usize = 64;

/// An alert ends by itself when it was not repeated so often, as those of Prometheus do.
const REPEATS: u32 = 4;

/// But not one that is proven: a monitor that was silenced must not look as if all were well again.
const PROVEN: Duration = Duration::from_secs(365 * 86_400);

/// An alert of a drill ends by itself after this long, and its end is not told before: an Alertmanager waits (`group_wait`) before it tells
/// anybody, and would tell nobody of what has ended meanwhile.
const DRILL: Duration = Duration::from_secs(300);

/// The alert that is always there while the monitor lives.
const ALIVE: &str = "EpigraphMonitorAlive";

/// What an Alertmanager is made of.
pub struct Settings {
    /// Its name in the configuration.
    pub name: String,
    /// The name of the monitor's key.
    pub monitor: String,
    /// What is less severe is not sent.
    pub least: Severity,
}

/// An Alertmanager.
pub struct Alertmanager {
    settings: Settings,
    transport: Box<dyn Transport>,
    /// What it is told: all that is open, and what has ended since it was last told.
    alerts: Mutex<BTreeMap<FindingId, Finding>>,
    changed: Notify,
    deliveries: Deliveries,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
}

impl Alertmanager {
    /// `open` is what the book holds open at the start.
    pub fn new(
        settings: Settings,
        transport: Box<dyn Transport>,
        open: impl IntoIterator<Item = Finding>,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Alertmanager {
        let taken =
            open.into_iter().filter(|finding| lasts(finding) && finding.code.severity() >= settings.least);
        let alerts = Mutex::new(taken.map(|finding| (finding.id, finding)).collect());
        let (changed, deliveries) = (Notify::new(), Deliveries::default());
        Alertmanager { settings, transport, alerts, changed, deliveries, clock, entropy }
    }

    fn alerts(&self) -> MutexGuard<'_, BTreeMap<FindingId, Finding>> {
        // Every change under the lock is one insertion or removal.
        self.alerts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn repeat(&self, mut life: Life) {
        let mut failures = 0;
        loop {
            match self.send_all(&mut life).await {
                Ok(()) => {
                    failures = 0;
                    tokio::select! {
                        () = self.changed.notified() => {}
                        () = sleep(life.every()) => {}
                    }
                }
                Err(error) => {
                    failures += 1;
                    if self.deliveries.failed(&error.to_string()) {
                        let sink = &self.settings.name;
                        tracing::warn!(sink, %error, "an Alertmanager does not take alerts; it is told again");
                    }
                    sleep(spread_wait(FIRST_WAIT, LONGEST_WAIT, failures, &*self.entropy)).await;
                }
            }
        }
    }

    async fn send_all(&self, life: &mut Life) -> Result<(), PostError> {
        let now = self.clock.now();
        let ends = after(now, life.every() * REPEATS);
        let all: Vec<Finding> = self.alerts().values().cloned().collect();
        for part in all.chunks(MAX_ALERTS) {
            let alerts = part.iter().map(|finding| self.alert(finding, now, ends)).collect();
            self.send(alerts).await?;
            self.deliveries.delivered(now);
            part.iter()
                .filter(|told| lasts(told))
                .for_each(|told| self.deliveries.arrived(told.id, told.first_at));
            let mut alerts = self.alerts();
            for told in part.iter().filter(|told| !lasts(told)) {
                // Unless it is back meanwhile.
                if alerts.get(&told.id) == Some(told) {
                    alerts.remove(&told.id);
                }
            }
        }
        // Last: whoever is told that the monitor lives has heard what it found.
        if let Some(alive) = life.since_last() {
            self.send(vec![self.alive(alive, ends)]).await?;
            self.deliveries.beat(now);
        }
        Ok(())
    }

    async fn send(&self, alerts: Vec<Value>) -> Result<(), PostError> {
        let body = Value::Array(alerts).to_string().into();
        self.transport.post(Post { body, headers: Vec::new() }).await
    }

    fn alert(&self, finding: &Finding, now: UnixMillis, ends: UnixMillis) -> Value {
        let ended = match (finding.state, &finding.acknowledged) {
            (State::Resolved { at }, _) => Some(at),
            (State::Open, Some(acknowledged)) => Some(acknowledged.at),
            (State::Open, None) => None,
        };
        let ends = match (ended, finding.code.class()) {
            // An end in the future, by another clock, would be none yet.
            (Some(at), _) => at.min(now),
            (None, Class::Proof) if finding.is_drill() => after(finding.first_at, DRILL),
            (None, Class::Proof) => after(now, PROVEN),
            (None, Class::Observation) => ends,
        };
        let evidence = finding.evidence.map(|id| id.to_string()).unwrap_or_default();
        let mut alert = json!({
            "labels": {
                "alertname": alert_name(finding.code),
                "code": finding.code.as_str(),
                "finding": finding.id.to_string(),
                "monitor": self.settings.monitor,
                "origin": finding.origin.as_str(),
                "severity": severity_word(finding.code.severity()),
                "subject": finding.subject,
            },
            "annotations": {
                "count": finding.count.to_string(),
                "description": finding.detail,
                "evidence": evidence,
                "runbook": finding.code.next_step(),
                "summary": finding.code.sentence(),
            },
            "startsAt": rfc3339(finding.first_at),
            "endsAt": rfc3339(ends),
        });
        if finding.is_drill() {
            // The same name as a real one, so that it takes the same route; a route of its own is one matcher away.
            alert["labels"]["drill"] = "true".into();
            let summary = format!("This is a drill. A real one would say: {}", finding.code.sentence());
            alert["annotations"]["summary"] = summary.into();
        }
        alert
    }

    fn alive(&self, alive: Alive, ends: UnixMillis) -> Value {
        json!({
            "labels": { "alertname": ALIVE, "monitor": self.settings.monitor, "severity": "none" },
            "annotations": {
                "open_findings": alive.open.to_string(),
                "summary": "The monitor lives. Route this to something that calls when it stops.",
            },
            // Without it an Alertmanager takes the end for the beginning.
            "startsAt": rfc3339(alive.at),
            "endsAt": rfc3339(ends),
        })
    }
}

impl Sink for Alertmanager {
    fn name(&self) -> &str {
        &self.settings.name
    }

    fn notify(&self, Notice { finding, .. }: &Notice) {
        if finding.code.severity() < self.settings.least {
            return;
        }
        if finding.is_drill() && !finding.is_open() {
            self.alerts().remove(&finding.id);
            return;
        }
        self.alerts().insert(finding.id, finding.clone());
        self.changed.notify_one();
    }

    fn expect(&self, id: FindingId, since: UnixMillis) {
        self.deliveries.expect(id, since);
    }

    fn run(self: Arc<Self>, life: Life) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move { self.repeat(life).await })
    }

    fn status(&self) -> SinkStatus {
        let queued = self.alerts().values().filter(|finding| !lasts(finding)).count() as u64;
        SinkStatus { name: self.settings.name.clone(), queued, ..self.deliveries.status() }
    }
}

/// An alert that somebody has taken on says nothing new.
fn lasts(finding: &Finding) -> bool {
    finding.is_open() && finding.acknowledged.is_none()
}

/// `split-view` as `EpigraphSplitView`.
fn alert_name(code: Code) -> String {
    let mut name = String::from("Epigraph");
    for word in code.as_str().split('-') {
        let (first, rest) = word.split_at_checked(1).unwrap_or((word, ""));
        name.push_str(&first.to_ascii_uppercase());
        name.push_str(rest);
    }
    name
}

fn after(at: UnixMillis, wait: Duration) -> UnixMillis {
    UnixMillis(at.0.saturating_add(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)))
}
