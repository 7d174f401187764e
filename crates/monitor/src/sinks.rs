//! Where findings go: the process's messages, webhooks, Alertmanagers; and the sign of life by whose absence a dead monitor is
//! noticed.
//!
//! Each sink is for itself: it has its own queue, its own waits and its own trouble, and one that hangs holds up no other. Sinks
//! know what a finding is. They do not know how it was found, or whether somebody is told twice: that is the book's.

pub mod address;
pub mod alertmanager;
pub mod http;
pub mod log;
pub mod queue;
pub mod secret;
pub mod webhook;

use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use epigraph_core::UnixMillis;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::finding::{FindingId, Notice, Severity};

/// Sinks of one monitor: two channels to people, a few tools.
pub const MAX_SINKS: usize = 16;

/// The first wait after a failed delivery.
pub(crate) const FIRST_WAIT: Duration = Duration::from_secs(1);

/// The longest: a receiver that is back hears within a minute what it missed.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Somewhere that findings go.
pub trait Sink: Send + Sync {
    /// Its name in the configuration.
    fn name(&self) -> &str;

    /// Takes a notice. When it returns, the notice outlives the process, as far as the sink's disk took it. Never waits for the
    /// network.
    fn notify(&self, notice: &Notice);

    /// From now on the status says whether this finding, opened at this time or later, was delivered.
    fn expect(&self, id: FindingId, since: UnixMillis);

    /// Delivers what was taken, and the sign of life, for as long as it is polled.
    fn run(self: Arc<Self>, life: Life) -> Pin<Box<dyn Future<Output = ()> + Send>>;

    /// How it does.
    fn status(&self) -> SinkStatus;
}

/// How a sink does.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SinkStatus {
    /// Its name in the configuration.
    pub name: String,
    /// Messages that wait.
    pub queued: u64,
    /// Messages that were given up since the start.
    pub dropped: u64,
    /// Messages that were delivered since the start.
    pub delivered: u64,
    /// Attempts that failed since the start.
    pub failed: u64,
    /// When it last took something.
    pub delivered_at: Option<UnixMillis>,
    /// When it last took a sign of life.
    pub beat_at: Option<UnixMillis>,
    /// Why the last attempt failed; empty if it did not.
    pub trouble: String,
    /// Whether the finding that was last expected was delivered.
    pub expected_arrived: bool,
}

/// What the monitor says of itself while it lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Alive {
    /// By its clock.
    pub at: UnixMillis,
    /// Findings that are open.
    pub open: u64,
}

/// The sign of life as the sinks see it: how often it is sent, and the newest. No sign is sent that the monitor's own loop did not give:
/// a process whose loop hangs is dead.
#[derive(Clone, Debug)]
pub struct Life {
    every: Duration,
    newest: watch::Receiver<Option<Alive>>,
}

impl Life {
    /// How often it is sent.
    pub fn every(&self) -> Duration {
        self.every
    }

    /// The newest sign, if there was one since this was asked last.
    pub(crate) fn since_last(&mut self) -> Option<Alive> {
        let changed = self.newest.has_changed().unwrap_or(false);
        let newest = *self.newest.borrow_and_update();
        newest.filter(|_| changed)
    }
}

/// All sinks of a monitor.
pub struct Sinks {
    sinks: Vec<Arc<dyn Sink>>,
    alive: watch::Sender<Option<Alive>>,
    every: Duration,
}

impl Sinks {
    /// Takes the sinks, and how often they are sent a sign of life.
    pub fn new(sinks: Vec<Arc<dyn Sink>>, every: Duration) -> Sinks {
        Sinks { sinks, alive: watch::Sender::new(None), every }
    }

    /// Tells every sink, in its own time. Call it before the book that the notice comes from is saved: a crash between the two then
    /// repeats a notice, and loses none.
    pub fn notify(&self, notice: &Notice) {
        self.sinks.iter().for_each(|sink| sink.notify(notice));
    }

    /// See [`Sink::expect`].
    pub(crate) fn expect(&self, id: FindingId, since: UnixMillis) {
        self.sinks.iter().for_each(|sink| sink.expect(id, since));
    }

    /// The monitor's loop has come round.
    pub fn alive(&self, alive: Alive) {
        self.alive.send_replace(Some(alive));
    }

    /// How the sinks do, in the order of the configuration.
    pub fn status(&self) -> Vec<SinkStatus> {
        self.sinks.iter().map(|sink| sink.status()).collect()
    }

    /// Delivers, for as long as it is polled. What is under way when it is dropped is delivered again by the next process.
    pub async fn run(&self) {
        let mut running = JoinSet::new();
        for sink in &self.sinks {
            let mut life = Life { every: self.every, newest: self.alive.subscribe() };
            // The loop may have come round before.
            life.newest.mark_changed();
            running.spawn(Arc::clone(sink).run(life));
        }
        while let Some(ended) = running.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a sink has ended; this is a fault of the program, and its messages wait for the next start");
            }
        }
        pending().await
    }
}

/// What a sink counts about its deliveries.
#[derive(Debug, Default)]
pub(crate) struct Deliveries(Mutex<Counted>);

#[derive(Debug, Default)]
struct Counted {
    status: SinkStatus,
    /// A finding, opened at this time or later.
    expected: Option<(FindingId, UnixMillis)>,
}

impl Deliveries {
    pub(crate) fn status(&self) -> SinkStatus {
        self.lock().status.clone()
    }

    /// See [`Sink::expect`].
    pub(crate) fn expect(&self, id: FindingId, since: UnixMillis) {
        let mut counted = self.lock();
        (counted.expected, counted.status.expected_arrived) = (Some((id, since)), false);
    }

    /// What is expected, if it has not arrived.
    pub(crate) fn expected(&self) -> Option<FindingId> {
        let counted = self.lock();
        counted.expected.filter(|_| !counted.status.expected_arrived).map(|(id, _)| id)
    }

    /// A finding was delivered, as open since then.
    pub(crate) fn arrived(&self, id: FindingId, first_at: UnixMillis) {
        let mut counted = self.lock();
        let expected = counted.expected.is_some_and(|(awaited, since)| awaited == id && first_at >= since);
        counted.status.expected_arrived |= expected;
    }

    /// Something was taken.
    pub(crate) fn delivered(&self, at: UnixMillis) {
        let status = &mut self.lock().status;
        status.delivered += 1;
        status.delivered_at = Some(at);
        status.trouble.clear();
    }

    /// A sign of life was taken.
    pub(crate) fn beat(&self, at: UnixMillis) {
        let status = &mut self.lock().status;
        status.beat_at = Some(at);
        status.delivered_at = Some(at);
        status.trouble.clear();
    }

    /// Something was not taken. Returns whether that is news.
    pub(crate) fn failed(&self, why: &str) -> bool {
        let status = &mut self.lock().status;
        status.failed += 1;
        let is_news = status.trouble.is_empty();
        status.trouble = why.into();
        is_news
    }

    /// So many were given up.
    pub(crate) fn dropped(&self, count: u64) {
        self.lock().status.dropped += count;
    }

    fn lock(&self) -> MutexGuard<'_, Counted> {
        // Every change under the lock is made of steps that cannot panic half way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The word for a severity, the one that deploy/alerts.yml uses.
pub(crate) fn severity_word(severity: Severity) -> &'static str {
    match severity {
        Severity::Page => "page",
        Severity::Warn => "ticket",
    }
}
