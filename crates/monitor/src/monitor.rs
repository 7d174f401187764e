//! The monitor as those see it who ask: what it knows and found, and what can be handed in. Plain values; how calls travel is
//! the business of the service.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use epigraph_core::{Hash, LeafIndex, Origin, TreeHead, TreeSize, UnixMillis};
use thiserror::Error;
use tokio::sync::{broadcast, mpsc};
use tokio::task::spawn_blocking;

use crate::book::AcknowledgeError;
use crate::disk::DiskError;
use crate::drill::Ground;
use crate::event::{Claim, Event, Vantage, VantageKind};
use crate::finding::{EvidenceId, Finding, FindingId, Notice};
use crate::heads::{Seen, Sighting};
use crate::standing::Condition;
use crate::state::State;
use crate::vantage::Message;

/// How long a log has to publish an entry that it acknowledged, unless it is configured otherwise.
pub const PUBLISHED_WITHIN_MS: u64 = 60_000;

/// A monitor that runs. Clones are the same monitor.
#[derive(Clone)]
pub struct Monitor {
    pub(crate) state: Arc<Mutex<State>>,
    pub(crate) inbox: mpsc::Sender<(usize, Message)>,
    pub(crate) published_within_ms: u64,
    pub(crate) ground: Ground,
}

/// How the monitor stands with one log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogStatus {
    /// The log.
    pub origin: Origin,
    /// The size of the newest head that is proven to be of one history with those before.
    pub consistent: TreeSize,
    /// The size up to which every entry was read under some vantage point.
    pub audited: TreeSize,
    /// When an audit from the first entry on last ended.
    pub last_full_audit: Option<UnixMillis>,
    /// Findings that are open.
    pub open: usize,
    /// Of these, those that nobody has taken on.
    pub unacknowledged: usize,
    /// The vantage points of the configuration, by their names.
    pub vantages: Vec<VantageStatus>,
}

/// What was last seen at a vantage point.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VantageStatus {
    /// Which.
    pub vantage: Vantage,
    /// The head that it showed last.
    pub head: Option<TreeHead>,
    /// The newest time in a cosignature on that head.
    pub head_at: Option<UnixMillis>,
    /// When it last answered.
    pub reached: Option<UnixMillis>,
    /// Why it does not answer; empty if it does.
    pub trouble: String,
    /// As far as its entries were read.
    pub audited: TreeSize,
    /// When all of its entries were last read from the first one on.
    pub full_at: Option<UnixMillis>,
}

/// A head, and who showed it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SeenHead {
    /// Size and root.
    pub head: TreeHead,
    /// The log's signature and what was valid beside it.
    pub note: Bytes,
    /// Who showed it, and when.
    pub sightings: Vec<Sighting>,
}

/// Why a monitor did not do what it was asked for.
#[derive(Debug, Error)]
pub enum MonitorError {
    /// It does not watch this log.
    #[error("this monitor does not watch the log {0}")]
    UnknownOrigin(Origin),
    /// The finding cannot be taken on.
    #[error(transparent)]
    Acknowledge(#[from] AcknowledgeError),
    /// What was handed in is no head of the log. It says nothing about the log.
    #[error("this is no head of the log: {0}")]
    NotTheLogs(String),
    /// So much was handed in that it could not be taken.
    #[error("the monitor is busy with what it was told before: try again later")]
    Busy,
    /// It waits for as many claims as it can, of this claimant or of all.
    #[error(
        "the monitor waits for as many promises as it remembers: ask the log for a proof of the entry yourself, or try again later"
    )]
    Full,
    /// Its disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// It has ended.
    #[error("the monitor has ended")]
    Ended,
}

impl Monitor {
    /// The logs, in the order of the configuration.
    pub fn origins(&self) -> Vec<Origin> {
        self.lock().logs.iter().map(|log| log.machine.origin().clone()).collect()
    }

    /// How it stands with one log.
    pub fn status(&self, origin: &Origin) -> Option<LogStatus> {
        let state = self.lock();
        state.log(origin).map(|log| log.status(&state.book))
    }

    /// All findings of all logs, open and resolved, in the order of their ids.
    pub fn findings(&self) -> Vec<Finding> {
        self.lock().book.findings().cloned().collect()
    }

    /// What was found in the drill that is going on, or in the last one.
    pub fn last_drill(&self) -> Option<Finding> {
        self.lock().book.findings().find(|finding| finding.is_drill()).cloned()
    }

    /// How many findings had no room in the book.
    pub fn lost_findings(&self) -> u64 {
        self.lock().book.lost()
    }

    /// One finding.
    pub fn finding(&self, id: FindingId) -> Option<Finding> {
        self.lock().book.get(id).cloned()
    }

    /// Somebody takes a finding on, for a reason. It is on the disk when this returns.
    pub async fn acknowledge(&self, id: FindingId, by: &str, why: &str) -> Result<Finding, MonitorError> {
        let (by, why) = (by.to_owned(), why.to_owned());
        let finding = self.blocking(move |state| state.acknowledge(id, &by, &why)).await??;
        Ok(finding?)
    }

    /// The evidence or statement of this name, as it was written.
    pub async fn evidence(&self, id: EvidenceId) -> Result<Option<Bytes>, MonitorError> {
        Ok(self.blocking(move |state| state.evidence(id)).await??)
    }

    /// The heads of a log that are kept, in ascending order of their sizes.
    pub fn heads(&self, origin: &Origin) -> Option<Vec<SeenHead>> {
        let state = self.lock();
        let heads = state.log(origin)?.machine.heads();
        let waiting = heads.waiting().iter().map(|waiting| &waiting.seen);
        let kept = heads.branches().iter().flat_map(|branch| branch.heads()).chain(waiting);
        let mut all: Vec<SeenHead> = kept.map(SeenHead::of).collect();
        all.sort_by_key(|seen| (seen.head.size, seen.head.root));
        Some(all)
    }

    /// Somebody shows a head of a log. Only one with the log's own signature is taken; what comes of it is told to those who
    /// are told of findings.
    pub async fn report_checkpoint(
        &self,
        origin: &Origin,
        from: &str,
        note: Bytes,
    ) -> Result<(), MonitorError> {
        let log = self.place(origin)?;
        let at = {
            let state = self.lock();
            let known = state.log(origin).is_some_and(|log| log.read(&note).is_some());
            if !known {
                return Err(MonitorError::NotTheLogs("the log's own key did not sign it".to_owned()));
            }
            state.clock.now()
        };
        let vantage = Vantage { name: format!("reported by {from}"), kind: VantageKind::Monitor };
        self.hand_in(log, Event::Head { vantage, note, at })
    }

    /// An appender claims that the log acknowledged an entry. It is on the disk when this returns, which says when the monitor
    /// looks at the latest; of a claim that was made before, the first deadline.
    pub async fn submit_receipt(
        &self,
        origin: &Origin,
        claimant: &str,
        index: LeafIndex,
        leaf: Hash,
    ) -> Result<UnixMillis, MonitorError> {
        let log = self.place(origin)?;
        let (claimant, within) = (claimant.to_owned(), self.published_within_ms);
        let claimed = self.blocking(move |state| {
            let deadline = UnixMillis(state.clock.now().0.saturating_add(within));
            state.claimed(log, Claim { claimant, index, leaf, deadline })
        });
        claimed.await??.ok_or(MonitorError::Full)
    }

    /// Takes all that a reporter of the setup has to say of what stands in a log: what is new in it is found, and what nobody says any
    /// more is over. It is on the disk when this returns.
    pub async fn report(
        &self,
        origin: &Origin,
        reporter: &str,
        conditions: Vec<Condition>,
    ) -> Result<(), MonitorError> {
        let (log, reporter) = (self.place(origin)?, reporter.to_owned());
        Ok(self.blocking(move |state| state.report(log, &reporter, conditions)).await??)
    }

    /// Everything that is told from now on. A subscriber that is too far behind is told that it missed something.
    pub fn subscribe(&self) -> broadcast::Receiver<Notice> {
        self.lock().notices.subscribe()
    }

    fn place(&self, origin: &Origin) -> Result<usize, MonitorError> {
        let place = self.lock().logs.iter().position(|log| log.machine.origin() == origin);
        place.ok_or_else(|| MonitorError::UnknownOrigin(origin.clone()))
    }

    /// What strangers hand in never waits for room: the vantage points of the configuration come first.
    fn hand_in(&self, log: usize, event: Event) -> Result<(), MonitorError> {
        self.inbox.try_send((log, Message::Event(event))).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => MonitorError::Busy,
            mpsc::error::TrySendError::Closed(_) => MonitorError::Ended,
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // The state writes to the disk first and changes after; whoever panicked in between has ended the loop as well.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what may wait for the disk where it holds up nothing else.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut State) -> T + Send + 'static,
    ) -> Result<T, MonitorError> {
        let monitor = self.clone();
        spawn_blocking(move || work(&mut monitor.lock())).await.map_err(|_| MonitorError::Ended)
    }
}

impl SeenHead {
    fn of(seen: &Seen) -> SeenHead {
        SeenHead { head: seen.head(), note: seen.note().into(), sightings: seen.sightings().to_vec() }
    }
}
