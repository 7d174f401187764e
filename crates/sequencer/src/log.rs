//! One log as the rest of the process calls it: append, prove, read. Plain methods; [`crate::service`] puts them on
//! the wire, and the driver in [`crate::run`] does the work behind [`Log::append`].

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use epigraph_core::bundle::MAX_ENTRY_BYTES;
use epigraph_core::hash::leaf_hash;
use epigraph_core::proof::{
    ConsistencyProof, InclusionProof, ProofError, prove_consistency, prove_inclusion,
};
use epigraph_core::{Checkpoint, Hash, LeafIndex, Origin, TreeHead, TreeSize, UnixMillis, Verified};
use epigraph_rpc::limits::{MAX_APPEND_BYTES, MAX_APPEND_ENTRIES, MAX_READ_BYTES};
use epigraph_store::tree::{EntryError, Tree, TreeError, WarmError};
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::timeout;

use crate::machine::{Condition, Event, Limits, Refused, Submission};
use crate::status::{self, Status};

/// Entries that wait for publication at one time. One checkpoint can answer all of them at once, and each answer is a
/// proof: 2 KiB in the largest tree, half of that in one of a billion entries.
pub const MAX_WAITING_ENTRIES: usize = 256 * 1024;

/// Bytes of entries that are on their way to the disk: eight full batches, so that whoever comes after waits about as
/// long as eight syncs take, or is told to.
const MAX_IN_FLIGHT_BYTES: usize = 64 * 1024 * 1024;

/// What an entry takes in memory beside its bytes: its handle and its leaf hash.
const ENTRY_OVERHEAD_BYTES: usize = 64;

/// Proofs that are made before other tasks get their turn.
const PROOFS_PER_TURN: usize = 256;

/// Entries appended since the start that the tree may lag behind: what it hashes in a few seconds. More than that
/// means that its store does not keep up, and then the log must not run away from what it can prove.
const MAX_TREE_LAG_ENTRIES: u64 = 4 << 20;

/// Reads of entries at one time: each occupies a thread that waits for the disk, and up to [`MAX_READ_BYTES`].
pub const MAX_ENTRY_READS: usize = 16;

/// How long a read waits for the tree to reach the size it asks for.
const TREE_WAIT: Duration = Duration::from_secs(2);

/// Where the driver answers a submission. It keeps the submission's room in memory until then, whether or not the caller
/// is still there.
pub(crate) struct Ticket {
    caller: oneshot::Sender<Result<LeafIndex, Refused>>,
    _in_flight: OwnedSemaphorePermit,
}

impl Ticket {
    /// A caller that hung up gets no answer.
    pub(crate) fn answer(self, answer: Result<LeafIndex, Refused>) {
        let _ = self.caller.send(answer);
    }
}

/// The newest published checkpoint, if there is one.
pub type PublishedReceiver = watch::Receiver<Option<Arc<Verified<Checkpoint>>>>;

/// What a caller waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// The entries are on this log's disk and have their indexes: a promise.
    Durable,
    /// A published checkpoint covers them, or this time is over.
    Published(Duration),
}

/// What a call reached. The entries are on disk in either case.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Appended {
    /// The index of the first entry; the others follow without gaps.
    pub first_index: LeafIndex,
    /// How many entries.
    pub count: u32,
    /// The checkpoint that covers them and one proof for each, if that was waited for and reached.
    pub published: Option<(Arc<Verified<Checkpoint>>, Vec<InclusionProof>)>,
}

/// Why nothing was appended.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum AppendError {
    /// An empty list.
    #[error("the call has no entries: send 1 to {MAX_APPEND_ENTRIES}")]
    NoEntries,
    /// Too many at once.
    #[error("the call has {0} entries: send at most {MAX_APPEND_ENTRIES} in one call")]
    TooManyEntries(usize),
    /// One entry is too long.
    #[error("entry {position} of the call has {bytes} bytes: an entry has at most {MAX_ENTRY_BYTES}")]
    EntryTooLarge {
        /// Its position in the call, from 0.
        position: usize,
        /// Its length.
        bytes: usize,
    },
    /// All entries together.
    #[error("the call has {0} bytes of entries: send at most {MAX_APPEND_BYTES} in one call")]
    CallTooLarge(usize),
    /// Too many entries wait for publication.
    #[error("too many entries wait for publication; try again shortly, or wait for DURABLE")]
    TooManyWaiters,
    /// The sequencer did not take them.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The sequencer ended before it answered. The entries may or may not be on disk.
    #[error("the log stopped before it could say whether the entries are on disk: ask again when it is back")]
    Stopped,
}

/// Why a read was refused.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ReadError {
    /// The log has not published its first checkpoint.
    #[error("the log has not published a checkpoint yet; try again shortly")]
    NothingPublished,
    /// On disk, but no published checkpoint covers it yet.
    #[error(
        "{what} is on disk but not published yet: the newest checkpoint has {published} entries; try again shortly"
    )]
    NotYetPublished {
        /// The entry or size asked for.
        what: String,
        /// The published size.
        published: TreeSize,
    },
    /// Not in the log.
    #[error("{what} is beyond the log, which has {durable} entries")]
    BeyondTree {
        /// The entry or size asked for.
        what: String,
        /// The durable size.
        durable: TreeSize,
    },
    /// Sizes that no proof connects.
    #[error(
        "no consistency proof from size {old} to size {new}: sizes start at 1 and the old one is not the larger"
    )]
    BadSizes {
        /// The old size.
        old: TreeSize,
        /// The new size.
        new: TreeSize,
    },
    /// The tree is still being built that far, after a start.
    #[error(
        "the log is still building its tree from its journal, and has not reached size {0}; try again shortly"
    )]
    Building(TreeSize),
    /// [`MAX_ENTRY_READS`] are under way.
    #[error("{MAX_ENTRY_READS} reads of entries are under way, and no more at one time; try again shortly")]
    TooManyReads,
    /// A stored hash is missing: this log is damaged.
    #[error("the log cannot read its own tree: {0}")]
    Damaged(String),
}

/// A leaf's proof under the newest published checkpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proven {
    /// The proof.
    pub proof: InclusionProof,
    /// The checkpoint that it leads to.
    pub checkpoint: Arc<Verified<Checkpoint>>,
}

/// What a log shares with its driver.
pub(crate) struct Parts {
    pub(crate) origin: Origin,
    pub(crate) limits: Limits,
    pub(crate) events: mpsc::Sender<Event<Ticket>>,
    pub(crate) wanted: watch::Sender<TreeSize>,
    pub(crate) durable: watch::Receiver<TreeHead>,
    pub(crate) condition: watch::Receiver<Condition>,
    pub(crate) published: PublishedReceiver,
    /// Not marked as seen by anybody: it has changed once the tree has caught up.
    pub(crate) built: watch::Receiver<TreeHead>,
    pub(crate) tree: Arc<Tree>,
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
    /// The newest head of the tree since it caught up with the journal after the start.
    built: watch::Receiver<TreeHead>,
    tree: Arc<Tree>,
    /// The durable size at the start.
    started_at: TreeSize,
    waiters: Semaphore,
    in_flight: Arc<Semaphore>,
    entry_reads: Arc<Semaphore>,
}

impl Log {
    pub(crate) fn new(parts: Parts) -> Log {
        let Parts { origin, limits, events, wanted, durable, condition, published, built, tree } = parts;
        let started_at = durable.borrow().size;
        Log {
            origin,
            limits,
            events,
            wanted,
            durable,
            condition,
            published,
            built,
            tree,
            started_at,
            waiters: Semaphore::new(MAX_WAITING_ENTRIES),
            in_flight: Arc::new(Semaphore::new(MAX_IN_FLIGHT_BYTES)),
            entry_reads: Arc::new(Semaphore::new(MAX_ENTRY_READS)),
        }
    }

    /// The log's name.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Appends entries: all or none, without gaps between them, in the order given. A caller that gives up waiting does
    /// not take its entries back.
    pub async fn append(&self, entries: Vec<Bytes>, wait: Wait) -> Result<Appended, AppendError> {
        let bytes = check_call(&entries)?;
        let durable = self.durable.borrow().size;
        if self.tree.lag(durable).min(durable.get() - self.started_at.get()) > MAX_TREE_LAG_ENTRIES {
            return Err(Refused::Overloaded.into());
        }
        let count = entries.len() as u32;
        let _waiting = match wait {
            Wait::Durable => None,
            Wait::Published(_) => {
                Some(self.waiters.try_acquire_many(count).map_err(|_| AppendError::TooManyWaiters)?)
            }
        };
        let in_flight = (bytes + entries.len() * ENTRY_OVERHEAD_BYTES) as u32;
        let in_flight = Arc::clone(&self.in_flight).try_acquire_many_owned(in_flight);
        let _in_flight = in_flight.map_err(|_| Refused::Overloaded)?;
        let leaves: Vec<Hash> = entries.iter().map(|entry| leaf_hash(entry)).collect();
        let (caller, answer) = oneshot::channel();
        let ticket = Ticket { caller, _in_flight };
        let submission = Event::Submit(Submission { entries, leaves, ticket });
        self.events.try_send(submission).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => AppendError::Refused(Refused::Overloaded),
            mpsc::error::TrySendError::Closed(_) => AppendError::Refused(Refused::Draining),
        })?;
        let first_index = answer.await.map_err(|_| AppendError::Stopped)??;
        let published = match wait {
            Wait::Durable => None,
            Wait::Published(time) => self.wait_published(first_index, count, time).await,
        };
        Ok(Appended { first_index, count, published })
    }

    /// Waits until a published checkpoint covers the entries; `None` if that takes too long. Never an error: the
    /// entries are on disk.
    async fn wait_published(
        &self,
        first_index: LeafIndex,
        count: u32,
        time: Duration,
    ) -> Option<(Arc<Verified<Checkpoint>>, Vec<InclusionProof>)> {
        let indexes = (0..u64::from(count)).filter_map(|offset| first_index.checked_add(offset));
        let size = indexes.clone().next_back()?.size_after();
        self.wanted.send_if_modified(|wanted| {
            let more = *wanted < size;
            *wanted = size.max(*wanted);
            more
        });
        let mut published = self.published.clone();
        let covers = |newest: &Option<Arc<Verified<Checkpoint>>>| {
            newest.as_ref().is_some_and(|checkpoint| checkpoint.head().size >= size)
        };
        let checkpoint = timeout(time, published.wait_for(covers)).await.ok()?.ok()?.clone()?;
        let mut proofs = Vec::with_capacity(count as usize);
        for index in indexes {
            if proofs.len() % PROOFS_PER_TURN == PROOFS_PER_TURN - 1 {
                tokio::task::yield_now().await;
            }
            match prove_inclusion(&*self.tree, index, checkpoint.head().size) {
                Ok(Ok(proof)) => proofs.push(proof),
                // The caller is told what is true, that its entries are on disk; whoever runs the log has to know the rest.
                Ok(Err(error)) => return unproven(index, &error),
                Err(error) => return unproven(index, &error),
            }
        }
        Some((checkpoint, proofs))
    }

    /// The newest published checkpoint.
    pub fn checkpoint(&self) -> Result<Arc<Verified<Checkpoint>>, ReadError> {
        self.published.borrow().clone().ok_or(ReadError::NothingPublished)
    }

    /// Proves a leaf under the newest published checkpoint.
    pub async fn prove(&self, index: LeafIndex) -> Result<Proven, ReadError> {
        let checkpoint = self.checkpoint()?;
        self.check_published(&checkpoint, index.size_after(), || format!("entry {index}"))?;
        let size = checkpoint.head().size;
        self.wait_built(size).await?;
        let proof = match prove_inclusion(&self.tree.warm(), index, size) {
            Err(WarmError::Cold(_)) => {
                self.off_thread(move |tree| prove_inclusion(tree, index, size)).await?
            }
            Err(WarmError::Tree(error)) => read(Err(error))?,
            Ok(proof) => read(Ok(proof))?,
        };
        Ok(Proven { proof, checkpoint })
    }

    /// The entries from `first` on that are published, at least one: at most `max`, which is at least 1, and together at
    /// most [`MAX_READ_BYTES`]. Each was compared with the tree.
    pub async fn entries(&self, first: LeafIndex, max: u32) -> Result<Vec<Bytes>, ReadError> {
        let checkpoint = self.checkpoint()?;
        self.check_published(&checkpoint, first.size_after(), || format!("entry {first}"))?;
        let published = checkpoint.head().size;
        let last = first.checked_add(u64::from(max).saturating_sub(1));
        let end = last.map_or(published, |last| last.size_after().min(published));
        self.wait_built(end).await?;
        let permit =
            Arc::clone(&self.entry_reads).try_acquire_owned().map_err(|_| ReadError::TooManyReads)?;
        let tree = Arc::clone(&self.tree);
        let read = tokio::task::spawn_blocking(move || {
            // Until the thread is done, whether or not the caller is still there.
            let _permit = permit;
            read_entries(&tree, first, end)
        });
        read.await.map_err(|error| ReadError::Damaged(error.to_string()))?
    }

    /// Proves that the tree of `old` entries is the beginning of that of `new` entries, both published.
    pub async fn prove_consistency(
        &self,
        old: TreeSize,
        new: TreeSize,
    ) -> Result<ConsistencyProof, ReadError> {
        if old == TreeSize::ZERO || old > new {
            return Err(ReadError::BadSizes { old, new });
        }
        self.check_published(&*self.checkpoint()?, new, || format!("size {new}"))?;
        self.wait_built(new).await?;
        match prove_consistency(&self.tree.warm(), old, new) {
            Err(WarmError::Cold(_)) => self.off_thread(move |tree| prove_consistency(tree, old, new)).await,
            Err(WarmError::Tree(error)) => read(Err(error)),
            Ok(proof) => read(Ok(proof)),
        }
    }

    /// Waits a little while the tree is behind `size`, which is durable.
    async fn wait_built(&self, size: TreeSize) -> Result<(), ReadError> {
        if self.tree.size() >= size {
            return Ok(());
        }
        let mut built = self.built.clone();
        match timeout(TREE_WAIT, built.wait_for(|head| head.size >= size)).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(ReadError::Building(size)),
        }
    }

    /// Makes a proof that needs the disk where waiting for it holds up nobody else.
    async fn off_thread<P: Send + 'static>(
        &self,
        make: impl FnOnce(&Tree) -> Result<Result<P, ProofError>, TreeError> + Send + 'static,
    ) -> Result<P, ReadError> {
        let tree = Arc::clone(&self.tree);
        let made = tokio::task::spawn_blocking(move || make(&tree)).await;
        read(made.map_err(|error| ReadError::Damaged(error.to_string()))?)
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
            in_flight_bytes: MAX_IN_FLIGHT_BYTES - self.in_flight.available_permits(),
            tile_bytes: self.tree.tile_bytes(),
            tiles: self.tree.counters(),
            ready: Ok(()),
        };
        let caught_up = self.built.has_changed().unwrap_or(false) && tree_lag <= MAX_TREE_LAG_ENTRIES;
        status.ready = status::ready(&condition, &self.limits, caught_up, &status, now);
        status
    }

    /// Takes no new entries from now on; what was taken is finished.
    pub async fn drain(&self) {
        // A closed channel means that the sequencer has ended already.
        let _ = self.events.send(Event::Drain).await;
    }

    fn check_published(
        &self,
        checkpoint: &Checkpoint,
        size: TreeSize,
        what: impl FnOnce() -> String,
    ) -> Result<(), ReadError> {
        let (published, durable) = (checkpoint.head().size, self.durable.borrow().size);
        if size <= published {
            Ok(())
        } else if size <= durable {
            Err(ReadError::NotYetPublished { what: what(), published })
        } else {
            Err(ReadError::BeyondTree { what: what(), durable })
        }
    }
}

fn unproven<T>(index: LeafIndex, error: &dyn std::fmt::Display) -> Option<T> {
    tracing::error!(%index, %error, "a published entry cannot be proven: the tree cannot be read");
    None
}

/// The limits of one call; returns its bytes.
fn check_call(entries: &[Bytes]) -> Result<usize, AppendError> {
    if entries.is_empty() {
        return Err(AppendError::NoEntries);
    }
    if entries.len() > MAX_APPEND_ENTRIES {
        return Err(AppendError::TooManyEntries(entries.len()));
    }
    if let Some(position) = entries.iter().position(|entry| entry.len() > MAX_ENTRY_BYTES) {
        return Err(AppendError::EntryTooLarge { position, bytes: entries[position].len() });
    }
    let bytes = entries.iter().map(Bytes::len).sum();
    if bytes > MAX_APPEND_BYTES { Err(AppendError::CallTooLarge(bytes)) } else { Ok(bytes) }
}

/// As many of the entries from `first` up to `end` as one answer may have.
fn read_entries(tree: &Tree, first: LeafIndex, end: TreeSize) -> Result<Vec<Bytes>, ReadError> {
    let mut entries = Vec::new();
    let (mut size, mut bytes) = (first.get(), 0);
    for entry in tree.entries(first, end) {
        let (index, entry) = entry.map_err(|error| match error {
            EntryError::Tree(TreeError::NotYet { size, .. }) => ReadError::Building(size),
            error => ReadError::Damaged(error.to_string()),
        })?;
        bytes += entry.len();
        if bytes > MAX_READ_BYTES {
            return Ok(entries);
        }
        if index.get() != size {
            return Err(ReadError::Damaged(format!("entry {index} came in place of entry {size}")));
        }
        size += 1;
        entries.push(Bytes::from(entry));
    }
    // An answer that ends early would look like one that was full.
    if size == end.get() {
        Ok(entries)
    } else {
        Err(ReadError::Damaged(format!("the journal ends at {size}, before {end}")))
    }
}

/// Sizes were checked against a published head, so whatever fails now is damage, or the tree is not there yet.
fn read<P>(result: Result<Result<P, ProofError>, TreeError>) -> Result<P, ReadError> {
    match result {
        Ok(Ok(proof)) => Ok(proof),
        Ok(Err(error)) => Err(ReadError::Damaged(error.to_string())),
        Err(TreeError::NotYet { size, .. }) => Err(ReadError::Building(size)),
        Err(error) => Err(ReadError::Damaged(error.to_string())),
    }
}
