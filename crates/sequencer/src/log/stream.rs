//! Streams: published checkpoints and entries, for as long as somebody reads them.
//!
//! A stream is pulled: a thread reads ahead of its reader by a few events and no more, so that one that does not read costs
//! no thread, and memory only so much. It ends by itself when its connection's time has come and when the log drains, with the place from
//! which to go on. It does not know how events travel.

use std::sync::Arc;

use epigraph_core::checkpoint::LogSigned;
use epigraph_core::{Checkpoint, LeafIndex, TreeSize, Verified};
use epigraph_rpc::entries::Entries;
use epigraph_rpc::limits::MAX_READ_ENTRIES;
use epigraph_rpc::{Exceeded, Share, SpiffeId};
use thiserror::Error;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::read::read_entries;
use super::{Log, PublishedReceiver, ReadError, SignedReceiver};
use crate::machine::Condition;

/// Streams of one log at one time. Each may hold [`FOLLOW_BYTES`] four times until its reader takes them, `EVENTS_AHEAD` as
/// read, one on its way and one as encoded: 128 MiB if nobody reads.
pub const MAX_STREAMS: usize = 128;

/// The same for one identity: a fleet of readers under one name, and room for three others.
pub const MAX_STREAMS_PER_IDENTITY: usize = 32;

/// Bytes of entries in one event: four of the largest entries, so that each event has at least one, and large enough that
/// asking the disk costs less than hashing what it gives.
pub const FOLLOW_BYTES: usize = 256 * 1024;

/// Memory for one event: before each of its entries go two bytes, or three if it has 128 and more.
const EVENT_CAPACITY: usize = FOLLOW_BYTES + 3 * MAX_READ_ENTRIES as usize;

/// Reads of followers at one time; the others wait their turn, without a thread. A few are enough to keep a disk busy, and
/// [`MAX_ENTRY_READS`](super::MAX_ENTRY_READS) of other callers are not held up.
const MAX_FOLLOW_READS: usize = 4;

/// Events that are read before they are asked for: while one is taken the thread reads the next, and does not wait to be told.
const EVENTS_AHEAD: usize = 2;

/// Events that one stream reads before it is the turn of others.
const EVENTS_PER_TURN: usize = 16;

/// All streams are in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("this log has too many streams: {0}; end one, or try again later")]
pub struct TooManyStreams(#[from] Exceeded);

/// What streams of one log share.
pub(super) struct Streams {
    open: Arc<epigraph_rpc::Quota<SpiffeId>>,
    reads: Arc<Semaphore>,
}

impl Streams {
    pub(super) fn new() -> Streams {
        Streams {
            open: epigraph_rpc::Quota::new(MAX_STREAMS, MAX_STREAMS_PER_IDENTITY),
            reads: Arc::new(Semaphore::new(MAX_FOLLOW_READS)),
        }
    }
}

/// Until when a stream may go on, and its place among the streams.
struct Life {
    leave_by: Instant,
    condition: watch::Receiver<Condition>,
    _share: Share<SpiffeId>,
}

impl Life {
    /// Completes when the stream has to end.
    async fn over(&mut self) {
        tokio::select! {
            () = sleep_until(self.leave_by) => {}
            // An error means that the log has ended already.
            _ = self.condition.wait_for(|condition| condition.draining) => {}
        }
    }
}

/// An event of [`Follow`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Followed {
    /// The newest published checkpoint. The entries that it covers follow.
    Checkpoint(Arc<Verified<Checkpoint>>),
    /// Entries without gaps from those before; one at least, together at most [`FOLLOW_BYTES`].
    Entries {
        /// The index of the first one.
        first_index: LeafIndex,
        /// Their bytes, each compared with the tree.
        entries: Entries,
    },
    /// The last event: the index after the last entry.
    End(LeafIndex),
}

/// Published entries in order, and those that follow.
pub struct Follow {
    log: Arc<Log>,
    life: Life,
    published: PublishedReceiver,
    next: LeafIndex,
    /// The size of the checkpoint that was given out last.
    announced: TreeSize,
    /// Entries from `next` on, as a thread reads them.
    ahead: Option<mpsc::Receiver<Read>>,
    /// What stands behind the entries that were given out last.
    failed: Option<ReadError>,
    ended: bool,
}

/// Entries, as many as one event may have, and why there are not more, if that is a fault.
type Read = (Entries, Result<(), ReadError>);

/// Signed heads, published or not, the newest whenever one is asked for.
pub struct WatchPending {
    life: Life,
    signed: SignedReceiver,
    /// What was given out last. The log shows a head once more when it wants it cosigned once more.
    last: Option<Arc<LogSigned>>,
}

/// Published checkpoints, the newest whenever one is asked for.
pub struct Watch {
    life: Life,
    published: PublishedReceiver,
    after: Option<TreeSize>,
}

impl Log {
    /// Entries from `first` on, as they are published, for `who`, whose connection is to end at `leave_by`.
    pub fn follow(
        self: &Arc<Self>,
        first: LeafIndex,
        who: SpiffeId,
        leave_by: Instant,
    ) -> Result<Follow, TooManyStreams> {
        Ok(Follow {
            life: self.life(who, leave_by)?,
            log: Arc::clone(self),
            published: self.published.clone(),
            next: first,
            announced: TreeSize::ZERO,
            ahead: None,
            failed: None,
            ended: false,
        })
    }

    /// Published checkpoints above the size `after`; without it, from the newest on.
    pub fn watch(
        &self,
        after: Option<TreeSize>,
        who: SpiffeId,
        leave_by: Instant,
    ) -> Result<Watch, TooManyStreams> {
        Ok(Watch { life: self.life(who, leave_by)?, published: self.published.clone(), after })
    }

    /// Signed heads, published or not: for witnesses and monitors.
    pub fn watch_pending(&self, who: SpiffeId, leave_by: Instant) -> Result<WatchPending, TooManyStreams> {
        Ok(WatchPending { life: self.life(who, leave_by)?, signed: self.signed.clone(), last: None })
    }

    fn life(&self, who: SpiffeId, leave_by: Instant) -> Result<Life, TooManyStreams> {
        let share = self.streams.open.take(who, 1)?;
        Ok(Life { leave_by, condition: self.condition.clone(), _share: share })
    }

    /// Has a thread read the entries from `first` on up to `end`, by events, until they are not taken any more or it is the
    /// turn of others. Waits until it is its turn and the tree is there.
    async fn read_ahead(&self, first: LeafIndex, end: TreeSize) -> Result<mpsc::Receiver<Read>, ReadError> {
        let mut built = self.built.clone();
        if self.tree.size() < end && built.wait_for(|head| head.size >= end).await.is_err() {
            return Err(ReadError::Building(end));
        }
        let permit = Arc::clone(&self.streams.reads).acquire_owned().await;
        let permit = permit.map_err(|_| ReadError::TooManyReads)?;
        let tree = Arc::clone(&self.tree);
        let (events, ahead) = mpsc::channel(EVENTS_AHEAD);
        tokio::task::spawn_blocking(move || {
            // Until the thread is done, whether or not the reader is still there.
            let _permit = permit;
            let mut reading = tree.read(first, end);
            for _ in 0..EVENTS_PER_TURN {
                let Ok(room) = events.try_reserve() else { return };
                let mut entries = Entries::with_capacity(EVENT_CAPACITY);
                let read = read_entries(&mut reading, end, FOLLOW_BYTES, |entry| entries.push(entry));
                let over = read.is_err() || !end.contains(reading.next_index());
                room.send((entries, read));
                if over {
                    return;
                }
            }
        });
        Ok(ahead)
    }
}

impl Follow {
    /// The next event, as soon as there is one; `None` after [`Followed::End`] and after an error. Everything that is good
    /// comes before an error. May be dropped and asked anew.
    pub async fn next(&mut self) -> Option<Result<Followed, ReadError>> {
        if self.ended {
            return None;
        }
        if let Some(error) = self.failed.take() {
            self.ended = true;
            return Some(Err(error));
        }
        tokio::select! {
            biased;
            () = self.life.over() => {
                self.ended = true;
                Some(Ok(Followed::End(self.next)))
            }
            event = advance(&self.log, &mut self.published, &mut self.ahead, self.next, self.announced) => {
                Some(self.note(event))
            }
        }
    }

    /// Moves on past what is given out.
    fn note(&mut self, event: Advanced) -> Result<Followed, ReadError> {
        match event {
            Advanced::Checkpoint(checkpoint) => {
                self.announced = checkpoint.head().size;
                Ok(Followed::Checkpoint(checkpoint))
            }
            Advanced::Read(entries, read) => {
                self.failed = read.err();
                let first_index = self.next;
                match first_index.checked_add(entries.len() as u64) {
                    Some(next) if !entries.is_empty() => {
                        self.next = next;
                        Ok(Followed::Entries { first_index, entries })
                    }
                    _ => {
                        self.ended = true;
                        let nothing = || ReadError::Damaged(format!("no entry {first_index} came"));
                        Err(self.failed.take().unwrap_or_else(nothing))
                    }
                }
            }
            Advanced::LogEnded => {
                self.ended = true;
                Ok(Followed::End(self.next))
            }
        }
    }
}

enum Advanced {
    Checkpoint(Arc<Verified<Checkpoint>>),
    Read(Entries, Result<(), ReadError>),
    /// Nothing will be published any more.
    LogEnded,
}

async fn advance(
    log: &Log,
    published: &mut PublishedReceiver,
    ahead: &mut Option<mpsc::Receiver<Read>>,
    next: LeafIndex,
    announced: TreeSize,
) -> Advanced {
    if announced.contains(next) {
        let (entries, read) = read_next(log, ahead, next, announced)
            .await
            .unwrap_or_else(|error| (Entries::default(), Err(error)));
        return Advanced::Read(entries, read);
    }
    let more = |newest: &Option<Arc<Verified<Checkpoint>>>| {
        newest.as_ref().is_some_and(|checkpoint| checkpoint.head().size.contains(next))
    };
    let newest = match published.wait_for(more).await {
        Ok(newest) => newest.clone(),
        Err(_) => None,
    };
    newest.map_or(Advanced::LogEnded, Advanced::Checkpoint)
}

/// The entries from `next` on up to `end`, as many as one event may have.
async fn read_next(
    log: &Log,
    ahead: &mut Option<mpsc::Receiver<Read>>,
    next: LeafIndex,
    end: TreeSize,
) -> Result<Read, ReadError> {
    if let Some(events) = ahead
        && let Some(read) = events.recv().await
    {
        return Ok(read);
    }
    *ahead = None;
    let events = ahead.insert(log.read_ahead(next, end).await?);
    // Without a word it ended in a panic.
    let silent = || ReadError::Damaged(format!("entry {next} cannot be read"));
    events.recv().await.ok_or_else(silent)
}

impl WatchPending {
    /// As [`Watch::next`].
    pub async fn next(&mut self) -> Option<Arc<LogSigned>> {
        let last = self.last.clone();
        let more = move |newest: &Option<Arc<LogSigned>>| {
            newest.as_ref().is_some_and(|signed| last.as_ref().is_none_or(|last| !Arc::ptr_eq(signed, last)))
        };
        let newest = tokio::select! {
            biased;
            () = self.life.over() => None,
            newest = self.signed.wait_for(more) => newest.ok()?.clone(),
        }?;
        self.last = Some(Arc::clone(&newest));
        Some(newest)
    }
}

impl Watch {
    /// The newest checkpoint that was not given out yet, as soon as there is one; `None` when the stream has to end. May be
    /// dropped and asked anew.
    pub async fn next(&mut self) -> Option<Arc<Verified<Checkpoint>>> {
        let after = self.after;
        let more = move |newest: &Option<Arc<Verified<Checkpoint>>>| {
            newest.as_ref().is_some_and(|checkpoint| after.is_none_or(|after| checkpoint.head().size > after))
        };
        let newest = tokio::select! {
            biased;
            () = self.life.over() => None,
            newest = self.published.wait_for(more) => newest.ok()?.clone(),
        }?;
        self.after = Some(newest.head().size);
        Some(newest)
    }
}
