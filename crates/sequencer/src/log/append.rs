//! Appending: from a caller's entries to the sequencer's task and back, and the wait for publication.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use epigraph_core::bundle::MAX_ENTRY_BYTES;
use epigraph_core::hash::{leaf_hashes, sha256};
use epigraph_core::proof::{InclusionProof, Nodes, prove_inclusion};
use epigraph_core::{Checkpoint, Hash, LeafIndex, TreeSize, Verified};
use epigraph_rpc::Share;
use epigraph_rpc::limits::{MAX_APPEND_BYTES, MAX_APPEND_ENTRIES};
use epigraph_store::journal::ProducerKey;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::{Log, MAX_TREE_LAG_ENTRIES, ReadError};
use crate::machine::{Cut, Event, Line, Numbers, Refused, Submission};

/// What an entry takes in memory beside its bytes: its handle and its leaf hash.
const ENTRY_OVERHEAD_BYTES: usize = 64;

/// Proofs that are made before other tasks get their turn.
const PROOFS_PER_TURN: usize = 256;

/// What a call or a question about a producer takes in memory beside its entries: its task, its stream, its place in the
/// queue to the sequencer, which no identity can fill alone in this way.
const CALL_BYTES: usize = 4 * 1024;

const _: () = assert!(super::MAX_IN_FLIGHT_BYTES / CALL_BYTES <= crate::run::EVENT_QUEUE);

/// Where the driver answers a submission. It keeps the submission's room in memory until then, whether or not the caller
/// is still there.
pub(crate) struct Ticket {
    caller: oneshot::Sender<Result<Answer, Refused>>,
    _in_flight: Share<Hash>,
}

/// What the sequencer says to a caller.
pub(crate) enum Answer {
    /// The entries are durable, from this index on; of calls that came together, those before the cut.
    Durable { first_index: LeafIndex, cut: Option<Cut> },
    /// The numbers were used before, from this index on: for the same entries if they have these hashes.
    Compare { first_index: LeafIndex, leaves: Vec<Hash> },
    /// To a question about a producer.
    Producer(ProducerState),
}

impl Ticket {
    /// A caller that hung up gets no answer.
    pub(crate) fn answer(self, answer: Result<Answer, Refused>) {
        let _ = self.caller.send(answer);
    }
}

/// What the log knows of a producer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProducerState {
    /// The highest epoch it has used; `None` if nothing of it is in the log.
    pub epoch: Option<u64>,
    /// The lowest number that is not in the log.
    pub next_sequence: u64,
}

/// Entries to append, and how.
#[derive(Clone, Debug)]
pub struct Call {
    /// The entries.
    pub entries: Vec<Bytes>,
    /// What to wait for.
    pub wait: Wait,
    /// Under which numbers; without them they are appended at each call.
    pub numbers: Option<Numbers>,
    /// The calls that it must not overtake, if there are any.
    pub line: Option<Line>,
    /// SHA-256 of the name of whoever calls, who gets no more than a share of what all callers have.
    pub identity: Hash,
}

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
    /// Whether an earlier call had appended them, and not this one.
    pub repeated: bool,
    /// The checkpoint that covers them and one proof for each, if that was waited for and reached.
    pub published: Option<(Arc<Verified<Checkpoint>>, Vec<InclusionProof>)>,
    /// Why not, if that was waited for and it is known.
    pub unpublished_because: Option<String>,
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
    /// The checks of the start are not over.
    #[error("the log has not finished the checks of its start and takes no entries yet; try again")]
    Gated,
    /// Too many entries wait for publication.
    #[error("too many entries wait for publication; try again shortly, or wait for DURABLE")]
    TooManyWaiters,
    /// The sequencer did not take them.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// A repeat cannot be compared with what it repeats, now or at all.
    #[error("whether these entries are those that have these numbers cannot be said: {0}")]
    NotCompared(ReadError),
    /// The sequencer ended before it answered. The entries may or may not be on disk.
    #[error("the log stopped before it could say whether the entries are on disk: ask again when it is back")]
    Stopped,
}

/// Calls that the sequencer has: their entries may be in the log from now on, whether or not the answer is waited for.
#[must_use]
pub(super) struct Submitted {
    answer: oneshot::Receiver<Result<Answer, Refused>>,
    count: usize,
    first_sequence: u64,
    wait: Wait,
    _waiting: Option<Share<Hash>>,
}

impl Log {
    /// Appends entries for this process itself, as [`Log::call`] does for those who call it.
    pub async fn append(&self, entries: Vec<Bytes>, wait: Wait) -> Result<Appended, AppendError> {
        self.call(Call { entries, wait, numbers: None, line: None, identity: sha256(b"") }).await
    }

    /// Appends entries: all or none, without gaps between them, in the order given. A caller that gives up waiting does
    /// not take its entries back.
    pub async fn call(&self, call: Call) -> Result<Appended, AppendError> {
        check_call(&call.entries)?;
        let submitted = self.submit(call, Vec::new())?;
        Ok(self.answer(submitted).await?.0)
    }

    /// Hands the entries to the sequencer; [`Log::answer`] waits for what comes of them. They are those of one call, or of
    /// several of one line, of which all but the last end after so many entries. Each is within the limits of a call.
    pub(super) fn submit(&self, call: Call, ends: Vec<usize>) -> Result<Submitted, AppendError> {
        let Call { entries, wait, numbers, line, identity } = call;
        if self.gated() {
            return Err(AppendError::Gated);
        }
        let durable = self.durable.borrow().size;
        if self.tree.lag(durable).min(durable.get() - self.started_at.get()) > MAX_TREE_LAG_ENTRIES {
            return Err(Refused::Overloaded.into());
        }
        let count = entries.len();
        let waiting = match wait {
            Wait::Durable => None,
            Wait::Published(_) => {
                Some(self.waiters.take(identity, count).map_err(|_| AppendError::TooManyWaiters)?)
            }
        };
        let bytes = entries.iter().map(|entry| entry.len() + ENTRY_OVERHEAD_BYTES).sum();
        let (ticket, answer) = self.ticket(identity, bytes)?;
        let leaves: Vec<Hash> = leaf_hashes(entries.iter().map(AsRef::as_ref)).collect();
        self.send(Event::Submit(Submission { entries, leaves, ends, numbers, line, identity, ticket }))?;
        let first_sequence = numbers.map_or(0, |numbers| numbers.first_sequence);
        Ok(Submitted { answer, count, first_sequence, wait, _waiting: waiting })
    }

    /// Waits until the entries are as far as the call wanted. What few calls wait for is put elsewhere: every call would carry
    /// its kilobyte. Of calls that were submitted together it says why not all of
    /// them were taken, if so.
    pub(super) async fn answer(
        &self,
        submitted: Submitted,
    ) -> Result<(Appended, Option<Refused>), AppendError> {
        let Submitted { answer, count, first_sequence, wait, _waiting } = submitted;
        let (first_index, repeated, cut) = match answer.await.map_err(|_| AppendError::Stopped)?? {
            Answer::Durable { first_index, cut } => (first_index, false, cut),
            Answer::Compare { first_index, leaves } => {
                let differs = Box::pin(self.differs(first_index, leaves));
                match differs.await.map_err(AppendError::NotCompared)? {
                    None => (first_index, true, None),
                    Some(position) => {
                        return Err(Refused::Reused(first_sequence.saturating_add(position)).into());
                    }
                }
            }
            Answer::Producer(_) => return Err(AppendError::Stopped),
        };
        let count = cut.map_or(count, |cut| cut.entries) as u32;
        let published = match wait {
            Wait::Durable => None,
            Wait::Published(time) => Box::pin(self.wait_published(first_index, count, time)).await,
        };
        let waited = matches!(wait, Wait::Published(_)) && published.is_none();
        let unpublished_because = waited.then(|| self.not_publishing()).flatten();
        let appended = Appended { first_index, count, repeated, published, unpublished_because };
        Ok((appended, cut.map(|cut| cut.why)))
    }

    /// What is durable of a producer, once nothing of it is on its way to the disk.
    pub async fn producer(&self, producer: ProducerKey) -> Result<ProducerState, AppendError> {
        let (ticket, answer) = self.ticket(producer.identity, 0)?;
        self.send(Event::Ask(producer, ticket))?;
        match answer.await.map_err(|_| AppendError::Stopped)?? {
            Answer::Producer(state) => Ok(state),
            Answer::Durable { .. } | Answer::Compare { .. } => Err(AppendError::Stopped),
        }
    }

    fn ticket(
        &self,
        identity: Hash,
        bytes: usize,
    ) -> Result<(Ticket, oneshot::Receiver<Result<Answer, Refused>>), Refused> {
        let in_flight = self.in_flight.take(identity, CALL_BYTES + bytes).map_err(|_| Refused::Overloaded)?;
        let (caller, answer) = oneshot::channel();
        Ok((Ticket { caller, _in_flight: in_flight }, answer))
    }

    fn send(&self, event: Event<Ticket>) -> Result<(), Refused> {
        self.events.try_send(event).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Refused::Overloaded,
            mpsc::error::TrySendError::Closed(_) if self.stopped.load(Ordering::Relaxed) => Refused::Stopped,
            mpsc::error::TrySendError::Closed(_) => Refused::Draining,
        })
    }

    /// The position of the first of these leaves that is not the one in the tree, from `first_index` on.
    async fn differs(&self, first_index: LeafIndex, leaves: Vec<Hash>) -> Result<Option<u64>, ReadError> {
        let last = first_index.checked_add((leaves.len() as u64).saturating_sub(1));
        self.wait_built(last.map_or(TreeSize::MAX, LeafIndex::size_after)).await?;
        // It is never closed.
        let _permit = self.comparisons.acquire().await.map_err(|_| ReadError::TooManyReads)?;
        self.off_thread(move |tree| {
            for (leaf, position) in leaves.iter().zip(0..) {
                let index = first_index.get().saturating_add(position);
                if tree.node(0, index)? != *leaf {
                    return Ok(Ok(Some(position)));
                }
            }
            Ok(Ok(None))
        })
        .await
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
}

fn unproven<T>(index: LeafIndex, error: &dyn std::fmt::Display) -> Option<T> {
    tracing::error!(%index, %error, "a published entry cannot be proven: the tree cannot be read");
    None
}

/// The limits of one call.
pub(super) fn check_call(entries: &[Bytes]) -> Result<(), AppendError> {
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
    if bytes > MAX_APPEND_BYTES { Err(AppendError::CallTooLarge(bytes)) } else { Ok(()) }
}
