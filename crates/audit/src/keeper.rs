//! The thread that owns the store's writing end, because it waits for its disk. While one sync is under way the next batches gather;
//! all that wait then share the next one.

use std::io;
use std::sync::Arc;
use std::thread;

use epigraph_core::{Clock, Hash, LeafIndex};
use epigraph_event::Batch;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};

use crate::source::{Kind, Refused, State};
use crate::store::{Collision, Reader, Run, Store, StoreError, Taken};

/// Batches that wait for the thread: each may have 2 MiB. Whoever has one more waits.
const QUEUE: usize = 32;

/// Below so many free bytes nothing is taken any more: what waits for the thread at most, several times over, because a page is written
/// anew with all that lead to it. A store that has no room to write in the middle of it has to be started again.
pub const MIN_FREE_BYTES: u64 = 256 << 20;

/// Says how many bytes are free where the store is.
pub type Room = Box<dyn Fn() -> io::Result<u64> + Send + Sync>;

/// Why a batch was not taken in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum NotTaken {
    /// The disk.
    #[error(
        "the disk of the audit store is nearly full: less than {} MiB are free, and nothing is taken until there is more. What is there can \
         be read",
        MIN_FREE_BYTES >> 20
    )]
    NoSpace,
    /// The thread.
    #[error(transparent)]
    Ended(#[from] Ended),
}

enum Message {
    Take(Box<Batch>, oneshot::Sender<Result<Taken, Refused>>),
    Note(Hash, Kind),
    Collided(Vec<Collision>, oneshot::Sender<()>),
    Placed(Run, oneshot::Sender<()>),
    State(Hash, oneshot::Sender<Option<State>>),
    Keep(String, Option<Vec<u8>>, oneshot::Sender<()>),
}

/// The store has failed, and the thread has ended: what is on the disk is found out by the next start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("the audit store has failed: nothing is taken until the service was started again")]
pub struct Ended;

/// What the rest of the process calls. Cheap to clone.
#[derive(Clone)]
pub struct Keeper {
    messages: mpsc::Sender<Message>,
    /// The slot after the last event that is durable.
    durable: watch::Receiver<u64>,
    /// The slot after the last one whose leaf is known to be in the log.
    placed: watch::Receiver<u64>,
    reader: Reader,
    room: Arc<Room>,
}

impl Keeper {
    /// Starts the thread. It ends when the last clone is dropped, or with the error that it met; the receiver then hears that the store is
    /// closed, by an error or by nothing.
    pub fn start(
        store: Store,
        clock: Arc<dyn Clock>,
        room: Room,
    ) -> io::Result<(Keeper, oneshot::Receiver<StoreError>)> {
        let (messages, inbox) = mpsc::channel(QUEUE);
        let (failed, failure) = oneshot::channel();
        let (next, unplaced) = store.slots();
        let (durable, placed) = (watch::Sender::new(next), watch::Sender::new(unplaced));
        let keeper = Keeper {
            messages,
            durable: durable.subscribe(),
            placed: placed.subscribe(),
            reader: store.reader(),
            room: Arc::new(room),
        };
        let mut thread = Thread { store, clock, inbox, durable, placed };
        thread::Builder::new().name("audit".into()).spawn(move || {
            let ended = thread.run();
            drop(thread);
            if let Err(error) = ended {
                let _ = failed.send(error);
            }
        })?;
        Ok((keeper, failure))
    }

    /// Hands in a batch that was believed, and waits while too many are waiting. What comes back is answered when it is durable;
    /// batches are judged in the order in which they were handed in.
    pub async fn submit(&self, batch: Batch) -> Result<oneshot::Receiver<Result<Taken, Refused>>, NotTaken> {
        if !self.has_room() {
            return Err(NotTaken::NoSpace);
        }
        let (answer, answered) = oneshot::channel();
        self.messages.send(Message::Take(Box::new(batch), answer)).await.map_err(|_| Ended)?;
        Ok(answered)
    }

    /// Whether there is room for more. A disk that does not say has none.
    pub fn has_room(&self) -> bool {
        match (self.room)() {
            Ok(free) => free >= MIN_FREE_BYTES,
            Err(error) => {
                tracing::error!(%error, "the disk of the audit store does not say how much of it is free");
                false
            }
        }
    }

    /// Remembers that something was wrong with a source.
    pub async fn note(&self, source: Hash, kind: Kind) -> Result<(), Ended> {
        self.messages.send(Message::Note(source, kind)).await.map_err(|_| Ended)
    }

    /// Counts events whose ids came before with other bytes, each once ([`Store::count_collisions`]). Waits until it is durable, on a thread that
    /// may wait.
    pub fn count_collisions(&self, found: Vec<Collision>) -> Result<(), Ended> {
        let (answer, answered) = oneshot::channel();
        self.messages.blocking_send(Message::Collided(found, answer)).map_err(|_| Ended)?;
        answered.blocking_recv().map_err(|_| Ended)
    }

    /// Remembers where a run of leaves is.
    pub async fn place(&self, first_slot: u64, count: u64, first_index: LeafIndex) -> Result<(), Ended> {
        let run = Run { first_slot, count, first_index };
        self.ask(|answer| Message::Placed(run, answer)).await
    }

    /// Where a source stands; none if nothing was ever taken from it.
    pub async fn state(&self, source: Hash) -> Result<Option<State>, Ended> {
        self.ask(|answer| Message::State(source, answer)).await
    }

    /// Makes something durable under a name, or forgets it: what the asking side remembers.
    pub async fn keep(&self, name: String, value: Option<Vec<u8>>) -> Result<(), Ended> {
        self.ask(|answer| Message::Keep(name, value, answer)).await
    }

    /// The slot after the last event that is durable, as it grows.
    pub fn durable(&self) -> watch::Receiver<u64> {
        self.durable.clone()
    }

    /// The slot after the last one whose leaf is known to be in the log, as it grows.
    pub fn placed(&self) -> watch::Receiver<u64> {
        self.placed.clone()
    }

    /// For those who read.
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    async fn ask<A>(&self, message: impl FnOnce(oneshot::Sender<A>) -> Message) -> Result<A, Ended> {
        let (answer, answered) = oneshot::channel();
        self.messages.send(message(answer)).await.map_err(|_| Ended)?;
        answered.await.map_err(|_| Ended)
    }
}

struct Thread {
    store: Store,
    clock: Arc<dyn Clock>,
    inbox: mpsc::Receiver<Message>,
    durable: watch::Sender<u64>,
    placed: watch::Sender<u64>,
}

impl Thread {
    fn run(&mut self) -> Result<(), StoreError> {
        let mut next = self.inbox.blocking_recv();
        while let Some(message) = next.take() {
            match message {
                Message::Take(..) | Message::Placed(..) => next = self.write(message)?,
                Message::Note(source, kind) => self.store.note(&source, kind, self.clock.now())?,
                Message::Collided(found, answer) => {
                    self.store.count_collisions(&found, self.clock.now())?;
                    let _ = answer.send(());
                }
                Message::State(source, answer) => {
                    let _ = answer.send(self.store.state(&source).cloned());
                }
                Message::Keep(name, value, answer) => {
                    self.store.keep(&name, value.as_deref())?;
                    let _ = answer.send(());
                }
            }
            if next.is_none() {
                next = self.inbox.blocking_recv();
            }
        }
        Ok(())
    }

    /// Takes batches in, and remembers where leaves are: this message and those that wait right behind it, under one sync. Returns the first
    /// message that is something else.
    fn write(&mut self, first: Message) -> Result<Option<Message>, StoreError> {
        let (mut batches, mut taking, mut runs, mut placing) = (vec![], vec![], vec![], vec![]);
        let mut next = Some(first);
        while let Some(message) = next.take() {
            match message {
                Message::Take(batch, answer) => {
                    batches.push(*batch);
                    taking.push(answer);
                }
                Message::Placed(run, answer) => {
                    runs.push(run);
                    placing.push(answer);
                }
                other => {
                    next = Some(other);
                    break;
                }
            }
            if batches.len() < QUEUE && runs.len() < QUEUE {
                next = self.inbox.try_recv().ok();
            }
        }
        let taken = self.store.write(&batches, &runs, self.clock.now())?;
        let (durable, placed) = self.store.slots();
        if !batches.is_empty() {
            self.durable.send_replace(durable);
        }
        if !runs.is_empty() {
            self.placed.send_replace(placed);
        }
        // Whoever asked may have gone; what is durable stays.
        for (answer, taken) in taking.into_iter().zip(taken) {
            let _ = answer.send(taken);
        }
        for answer in placing {
            let _ = answer.send(());
        }
        Ok(next)
    }
}
