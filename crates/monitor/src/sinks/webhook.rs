//! A webhook: one signed JSON message for each change of a finding, from a queue on disk, until the receiver has it; and a sign of
//! life that is not queued. docs/webhook.md describes it for whoever writes a receiver. It does not know the network.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::http::{HeaderName, HeaderValue};
use bytes::Bytes;
use epigraph_core::backoff::spread_wait;
use epigraph_core::hash::sha256;
use epigraph_core::{Clock, Entropy, UnixMillis};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::http::{Post, PostError, Transport};
use super::queue::{Queue, QueueError, Queued};
use super::secret::Secret;
use super::{Alive, Deliveries, FIRST_WAIT, LONGEST_WAIT, Life, Sink, SinkStatus, severity_word};
use crate::finding::{Class, Finding, FindingId, Notice, Severity, State};

const SIGNATURE: HeaderName = HeaderName::from_static("epigraph-signature");
const DELIVERY: HeaderName = HeaderName::from_static("epigraph-delivery");

/// The version of the messages.
const VERSION: u64 = 1;

/// What a webhook is made of.
pub struct Settings {
    /// Its name in the configuration.
    pub name: String,
    /// The name of the monitor's key.
    pub monitor: String,
    /// What is less severe is not sent.
    pub least: Severity,
    /// With which messages are signed.
    pub secret: Secret,
}

/// A webhook.
pub struct Webhook {
    settings: Settings,
    transport: Box<dyn Transport>,
    queue: Mutex<Queue>,
    waiting: Notify,
    deliveries: Deliveries,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
}

impl Webhook {
    /// What still waits in the queue is delivered first.
    pub fn new(
        settings: Settings,
        transport: Box<dyn Transport>,
        queue: Queue,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Webhook {
        let (waiting, deliveries) = (Notify::new(), Deliveries::default());
        Webhook { settings, transport, queue: Mutex::new(queue), waiting, deliveries, clock, entropy }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // The queue keeps its own order at each step, and the files say what is in it.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what waits. A message that is refused goes behind the others, so that one which the receiver cannot take holds up none;
    /// nothing is given up but for room.
    async fn deliver(&self) {
        let (mut from, mut failures) = (0, 0);
        loop {
            let told = self.tell_dropped().await;
            let outcome = match told {
                Ok(()) => self.deliver_next(&mut from).await,
                Err(error) => Err(error),
            };
            match outcome {
                Ok(true) => failures = 0,
                Ok(false) => self.waiting.notified().await,
                Err(error) => {
                    failures += 1;
                    if self.deliveries.failed(&error.to_string()) {
                        let (sink, queued) = (&self.settings.name, self.queue().len());
                        tracing::warn!(sink, queued, %error, "a webhook does not take messages; they wait on disk");
                    }
                    sleep(spread_wait(FIRST_WAIT, LONGEST_WAIT, failures, &*self.entropy)).await;
                }
            }
        }
    }

    /// Whether there was one.
    async fn deliver_next(&self, from: &mut u64) -> Result<bool, PostError> {
        let next = self.queue().next_from(*from);
        let Queued { number, body } = match next {
            Ok(Some(queued)) => queued,
            Ok(None) => return Ok(false),
            // It is out of the queue, and counted.
            Err(error) => {
                self.lost(&error);
                return Ok(true);
            }
        };
        *from = number.saturating_add(1);
        self.post(body.clone()).await?;
        self.deliveries.delivered(self.clock.now());
        self.arrived(&body);
        let removed = self.queue().remove(number);
        self.noted(removed);
        Ok(true)
    }

    /// That messages were given up is a message itself, before all others.
    async fn tell_dropped(&self) -> Result<(), PostError> {
        let count = self.queue().dropped();
        if count == 0 {
            return Ok(());
        }
        self.post(self.message("dropped", json!({ "count": count }))).await?;
        self.deliveries.delivered(self.clock.now());
        let told = self.queue().told_dropped(count);
        self.noted(told);
        Ok(())
    }

    async fn beat(&self, mut life: Life) {
        let mut beats = interval(life.every());
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            beats.tick().await;
            let Some(Alive { open, .. }) = life.since_last() else { continue };
            let every = u64::try_from(life.every().as_millis()).unwrap_or(u64::MAX);
            let body = self.message("heartbeat", json!({ "every_ms": every, "open_findings": open }));
            match self.post(body).await {
                Ok(()) => self.deliveries.beat(self.clock.now()),
                Err(error) => drop(self.deliveries.failed(&error.to_string())),
            }
        }
    }

    /// Signed at the moment that it is sent: the receiver takes no old signatures.
    async fn post(&self, body: Bytes) -> Result<(), PostError> {
        let signature = self.settings.secret.sign(self.clock.now().0 / 1_000, &body);
        // The same for every attempt.
        let delivery = sha256(&body).to_string()[..32].to_owned();
        let headers = [(SIGNATURE, signature), (DELIVERY, delivery)]
            .into_iter()
            .filter_map(|(name, value)| Some((name, HeaderValue::try_from(value).ok()?)));
        self.transport.post(Post { body, headers: headers.collect() }).await
    }

    fn message(&self, kind: &str, more: Value) -> Bytes {
        let mut message = json!({
            "version": VERSION,
            "kind": kind,
            "monitor": self.settings.monitor,
            "at_ms": self.clock.now().0,
        });
        if let (Value::Object(message), Value::Object(more)) = (&mut message, more) {
            message.extend(more);
        }
        message.to_string().into()
    }

    fn lost(&self, error: &QueueError) {
        self.deliveries.dropped(1);
        tracing::error!(sink = self.settings.name, %error, "a message for a webhook is lost; the finding is not");
    }

    /// What the disk does not take back is delivered again after the next start, and that is all.
    fn noted(&self, result: Result<(), QueueError>) {
        if let Err(error) = result {
            let sink = &self.settings.name;
            tracing::warn!(sink, %error, "a delivered message stays in the queue, and may be delivered again");
        }
    }
}

impl Webhook {
    /// Whether it is what is expected. The queue keeps messages as they are sent.
    fn arrived(&self, body: &[u8]) {
        let Some(expected) = self.deliveries.expected() else { return };
        let Ok(message) = serde_json::from_slice::<Value>(body) else { return };
        let finding = &message["finding"];
        let is_it = finding["id"].as_str().and_then(FindingId::from_hex) == Some(expected);
        if let (true, Value::Null, Some(first_at)) =
            (is_it, &finding["resolved_at_ms"], finding["first_at_ms"].as_u64())
        {
            self.deliveries.arrived(expected, UnixMillis(first_at));
        }
    }
}

impl Sink for Webhook {
    fn name(&self) -> &str {
        &self.settings.name
    }

    fn notify(&self, Notice { change, finding }: &Notice) {
        let severity = finding.code.severity();
        if severity < self.settings.least {
            return;
        }
        let more = json!({ "change": change.as_str(), "finding": finding_json(finding) });
        let body = self.message("finding", more);
        let mut queue = self.queue();
        let before = queue.dropped();
        let put = queue.put(severity, body);
        let dropped = queue.dropped().saturating_sub(before);
        drop(queue);
        let sink = &self.settings.name;
        if let Err(error) = put {
            tracing::error!(sink, %error, "a message for a webhook waits in memory only: it is lost if the monitor ends now");
        }
        if dropped > 0 {
            self.deliveries.dropped(dropped);
            tracing::error!(
                sink,
                dropped,
                "a webhook's queue is full: the oldest of the least severe messages are given up"
            );
        }
        self.waiting.notify_one();
    }

    fn expect(&self, id: FindingId, since: UnixMillis) {
        self.deliveries.expect(id, since);
    }

    fn run(self: Arc<Self>, life: Life) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            tokio::join!(self.deliver(), self.beat(life));
        })
    }

    fn status(&self) -> SinkStatus {
        let queued = self.queue().len() as u64;
        SinkStatus { name: self.settings.name.clone(), queued, ..self.deliveries.status() }
    }
}

/// A finding in JSON, as docs/webhook.md describes it.
fn finding_json(finding: &Finding) -> Value {
    let class = match finding.code.class() {
        Class::Proof => "proof",
        Class::Observation => "observation",
    };
    let resolved_at = match finding.state {
        State::Open => None,
        State::Resolved { at } => Some(at.0),
    };
    let acknowledged = finding.acknowledged.as_ref().map(|by| {
        let UnixMillis(at) = by.at;
        json!({ "by": by.by, "why": by.why, "at_ms": at })
    });
    json!({
        "id": finding.id.to_string(),
        "code": finding.code.as_str(),
        "class": class,
        "severity": severity_word(finding.code.severity()),
        "origin": finding.origin.as_str(),
        "drill": finding.is_drill(),
        "subject": finding.subject,
        "first_at_ms": finding.first_at.0,
        "last_at_ms": finding.last_at.0,
        "count": finding.count,
        "detail": finding.detail,
        "meaning": finding.code.sentence(),
        "next_step": finding.code.next_step(),
        "evidence_id": finding.evidence.map(|id| id.to_string()),
        "resolved_at_ms": resolved_at,
        "acknowledged": acknowledged,
    })
}
