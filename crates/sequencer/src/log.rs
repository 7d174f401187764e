//! One log as the rest of the process calls it. Plain methods; [`crate::service`] puts them on the wire, and the driver in
//! [`crate::run`] does the work behind [`Log::append`].

mod append;
mod append_stream;
mod cosign;
mod list;
mod read;
mod stream;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use epigraph_core::checkpoint::LogSigned;
use epigraph_core::{Checkpoint, Hash, Origin, Policy, TreeHead, TreeSize, UnixMillis, Verified};
use epigraph_rpc::Quota;
use epigraph_store::history::History;
use epigraph_store::tree::Tree;
use tokio::sync::{Semaphore, mpsc, watch};

use crate::lookup;
use crate::machine::{Condition, Event, Limits, share};
use crate::status::{self, LookupStatus, NotReady, Status};

pub(crate) use append::{Answer, Ticket};
pub use append::{AppendError, Appended, Call, ProducerState, Wait};
pub use append_stream::{MAX_AHEAD, MAX_AHEAD_BYTES, StreamError};
pub use cosign::{CosignError, HandedIn, Said, Witnessing};
pub use list::{ListError, Listed};
pub use read::{InTree, Proven, Reach, ReadError};
use stream::Streams;
pub use stream::{
    FOLLOW_BYTES, Follow, Followed, MAX_STREAMS, MAX_STREAMS_PER_IDENTITY, TooManyStreams, Watch,
    WatchPending,
};

/// Entries that wait for publication at one time. One checkpoint can answer all of them at once, and each answer is a
/// proof: 2 KiB in the largest tree, half of that in one of a billion entries.
pub const MAX_WAITING_ENTRIES: usize = 256 * 1024;

/// The same of one identity, so that others can wait beside it (A11).
pub const MAX_WAITING_ENTRIES_PER_IDENTITY: usize = share(MAX_WAITING_ENTRIES);

/// Bytes of entries that are on their way to the disk: eight full batches, so that whoever comes after waits about as
/// long as eight syncs take, or is told to.
const MAX_IN_FLIGHT_BYTES: usize = 64 * 1024 * 1024;

/// The same of one identity: eleven of the largest calls, and room for four of others beside them (A11).
const MAX_IN_FLIGHT_BYTES_PER_IDENTITY: usize = share(MAX_IN_FLIGHT_BYTES);

/// Entries appended since the start that the tree may lag behind: what it hashes in a few seconds. More than that
/// means that its store does not keep up, and then the log must not run away from what it can prove.
const MAX_TREE_LAG_ENTRIES: u64 = 4 << 20;

/// Reads of entries at one time: each occupies a thread that waits for the disk, and up to [`MAX_READ_BYTES`](epigraph_rpc::limits::MAX_READ_BYTES).
pub const MAX_ENTRY_READS: usize = 16;

/// Repeats that are compared with the tree at one time: each occupies a thread that may wait for the disk. Others wait.
const MAX_COMPARISONS: usize = 16;

/// The newest published checkpoint, if there is one.
pub type PublishedReceiver = watch::Receiver<Option<Arc<Verified<Checkpoint>>>>;

/// The newest head that the log signed, published or not; `None` before the first one after a start.
pub type SignedReceiver = watch::Receiver<Option<Arc<LogSigned>>>;

/// What a log shares with its driver.
pub(crate) struct Parts {
    pub(crate) origin: Origin,
    pub(crate) limits: Limits,
    pub(crate) events: mpsc::Sender<Event<Ticket>>,
    pub(crate) wanted: watch::Sender<TreeSize>,
    pub(crate) durable: watch::Receiver<TreeHead>,
    pub(crate) condition: watch::Receiver<Condition>,
    pub(crate) published: PublishedReceiver,
    pub(crate) signed: SignedReceiver,
    pub(crate) witnessing: Witnessing,
    /// Not marked as seen by anybody: it has changed once the tree has caught up.
    pub(crate) built: watch::Receiver<TreeHead>,
    pub(crate) tree: Arc<Tree>,
    pub(crate) history: Option<Arc<History>>,
    pub(crate) policy: Policy,
    pub(crate) lookup: lookup::Shared,
}

/// A running log.
pub struct Log {
    origin: Origin,
    limits: Limits,
    events: mpsc::Sender<Event<Ticket>>,
    wanted: watch::Sender<TreeSize>,
    durable: watch::Receiver<TreeHead>,
    condition: watch::Receiver<Condition>,
    published: PublishedReceiver,
    signed: SignedReceiver,
    witnessing: Witnessing,
    /// The newest head of the tree since it caught up with the journal after the start.
    built: watch::Receiver<TreeHead>,
    tree: Arc<Tree>,
    history: Option<Arc<History>>,
    policy: Policy,
    lookup: lookup::Shared,
    /// The durable size at the start.
    started_at: TreeSize,
    /// In entries, by identity.
    waiters: Arc<Quota<Hash>>,
    /// In bytes, by identity.
    in_flight: Arc<Quota<Hash>>,
    entry_reads: Arc<Semaphore>,
    stopped: AtomicBool,
    comparisons: Semaphore,
    streams: Streams,
    hindrance: Mutex<Option<Hindrance>>,
}

/// What stands outside the log in its way, for as long as it does; each says whom it waits for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Hindrance {
    /// The gate of its start is not passed: what is published is served, nothing is acknowledged.
    Gated(String),
    /// Nothing can be published at present.
    NotPublishing {
        /// For whoever appends.
        waits_for: String,
        /// For whoever runs the log.
        why: String,
    },
}

impl Log {
    pub(crate) fn new(parts: Parts) -> Log {
        let Parts {
            origin,
            limits,
            events,
            wanted,
            durable,
            condition,
            published,
            signed,
            witnessing,
            built,
            tree,
            history,
            policy,
            lookup,
        } = parts;
        let started_at = durable.borrow().size;
        Log {
            origin,
            limits,
            events,
            wanted,
            durable,
            condition,
            published,
            signed,
            witnessing,
            built,
            tree,
            history,
            policy,
            lookup,
            started_at,
            waiters: Quota::new(MAX_WAITING_ENTRIES, MAX_WAITING_ENTRIES_PER_IDENTITY),
            in_flight: Quota::new(MAX_IN_FLIGHT_BYTES, MAX_IN_FLIGHT_BYTES_PER_IDENTITY),
            entry_reads: Arc::new(Semaphore::new(MAX_ENTRY_READS)),
            stopped: AtomicBool::new(false),
            comparisons: Semaphore::new(MAX_COMPARISONS),
            streams: Streams::new(),
            hindrance: Mutex::new(None),
        }
    }

    /// The log's name.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Those who wait for publication, in entries.
    pub(crate) fn waiters(&self) -> Arc<Quota<Hash>> {
        Arc::clone(&self.waiters)
    }

    /// How it is doing.
    pub fn status(&self, now: UnixMillis) -> Status {
        let condition = *self.condition.borrow();
        let published =
            self.published.borrow().as_ref().map_or(TreeSize::ZERO, |checkpoint| checkpoint.head().size);
        let durable = self.durable.borrow().size;
        let tree_lag = self.tree.lag(durable);
        let mut status = Status {
            durable,
            published,
            tree_lag,
            publication_behind_ms: condition.behind_since.map_or(0, |since| now.0.saturating_sub(since.0)),
            in_flight_bytes: self.in_flight.in_use(),
            tile_bytes: self.tree.tile_bytes(),
            tiles: self.tree.counters(),
            lookup: self.lookup.get().map(|lookup| LookupStatus {
                size: lookup.size(),
                lag: durable.get().saturating_sub(lookup.size().get()),
                bytes: lookup.bytes(),
            }),
            ready: Ok(()),
        };
        let caught_up = self.built.has_changed().unwrap_or(false) && tree_lag <= MAX_TREE_LAG_ENTRIES;
        status.ready = if self.stopped.load(Ordering::Relaxed) {
            Err(NotReady::Stopped)
        } else {
            match (self.hindrance(), condition.draining) {
                (Some(Hindrance::Gated(why)), false) => Err(NotReady::Gated(why)),
                (hindrance, _) => {
                    let ready = status::ready(&condition, &self.limits, caught_up, &status, now);
                    match hindrance {
                        Some(Hindrance::NotPublishing { why, .. }) => {
                            ready.and(Err(NotReady::NotPublishing(why)))
                        }
                        _ => ready,
                    }
                }
            }
        };
        status
    }

    /// Its driver has failed: it takes nothing any more, and says why not. What is published can still be read.
    pub fn stopped(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Waits until it takes no new entries any more.
    pub(crate) fn draining(&self) -> impl Future<Output = ()> + use<> {
        let mut condition = self.condition.clone();
        // A sequencer that has ended takes nothing either.
        async move { drop(condition.wait_for(|condition| condition.draining).await) }
    }

    /// Says what stands in its way from now on, or that nothing does any more.
    pub fn hindered(&self, by: Option<Hindrance>) {
        *self.hindrance.lock().unwrap_or_else(PoisonError::into_inner) = by;
    }

    fn hindrance(&self) -> Option<Hindrance> {
        self.hindrance.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why nothing is published, for whoever waits for it.
    pub(crate) fn not_publishing(&self) -> Option<String> {
        match self.hindrance() {
            Some(Hindrance::NotPublishing { waits_for, .. }) => Some(waits_for),
            _ => None,
        }
    }

    /// Whether the gate of the start keeps it from taking entries.
    pub(crate) fn gated(&self) -> bool {
        matches!(self.hindrance(), Some(Hindrance::Gated(_)))
    }

    /// Takes no new entries from now on; what was taken is finished.
    pub async fn drain(&self) {
        // A closed channel means that the sequencer has ended already.
        let _ = self.events.send(Event::Drain).await;
    }
}
