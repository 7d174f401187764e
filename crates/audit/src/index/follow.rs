//! Fills the indexes from the store, behind everything else: nobody who hands in an event waits for it, and what is not in yet is said.

use std::collections::HashSet;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use epigraph_core::LeafIndex;
use thiserror::Error;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::worker::{Gone, Worker};
use super::{Entry, Index, IndexError, Repeat};
use crate::keeper::{Ended, Keeper};
use crate::query::Row;
use crate::store::{Collision, Follow, Placed, Reader, StoreError};

/// Events that are taken in at a time at the most: a hundred megabytes of rows and pages, and a transaction of a second or two. The more there are,
/// the more of their rows share a page.
pub const STEP: u64 = 65_536;

/// Bytes of events, without their records, after which a step ends: their rows and keys take several times as much, most of all where one event
/// names many things.
const STEP_BYTES: usize = 32 << 20;

/// So many events are made durable together: what a crash takes is filled in again in a second or two.
pub const SYNC: u64 = 65_536;

/// How long nothing has to come before what came is taken in, as long as nobody asks about it: a step of a few events costs each of them much
/// more than a step of many, and whoever hands in a burst waits for the disk that the indexes would write to.
const GATHER: Duration = Duration::from_millis(200);

/// How long they gather if there is no such pause. They gather no longer either than until a whole step is there.
const LONGEST_GATHER: Duration = Duration::from_secs(2);

/// The pause after an error, and before the next try.
const PAUSE: Duration = Duration::from_secs(30);

/// Why the indexes do not follow.
#[derive(Debug, Error)]
pub enum FollowError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The indexes.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The store's thread.
    #[error(transparent)]
    Ended(#[from] Ended),
    /// A thread of its own.
    #[error("the system gives no thread to fill the audit index on: {0}")]
    NoThread(io::Error),
    /// A step was not done to its end.
    #[error("the audit index is damaged, or there is a fault of the program: a step has ended in its middle")]
    Stopped,
}

/// Fills indexes from their store, step by step.
pub struct Filler {
    index: Arc<Index>,
    reader: Reader,
    /// Makes durable which events carry an id that came before with other bytes.
    count: Box<dyn FnMut(Vec<Collision>) -> Result<(), Ended> + Send>,
    /// Events that were taken in since the last sync.
    unsynced: u64,
}

impl Filler {
    /// Fills these indexes from this store. `count` makes durable which events carry an id that came before with other bytes, each once, as
    /// [`Keeper::count_collisions`] does.
    pub fn new(
        index: Arc<Index>,
        reader: Reader,
        count: impl FnMut(Vec<Collision>) -> Result<(), Ended> + Send + 'static,
    ) -> Filler {
        Filler { index, reader, count: Box::new(count), unsynced: 0 }
    }

    /// Takes in what is next: newer events first, then those that an index lacks which was added later. Answers how many there were.
    pub fn step(&mut self) -> Result<u64, FollowError> {
        let index = &self.index;
        let next = index.next()?;
        let entries = read(index, &self.reader, next..next.saturating_add(STEP))?;
        let durable = self.unsynced.saturating_add(entries.len() as u64) >= SYNC;
        let found = collisions(index, &self.reader, &entries)?;
        // Before the indexes have the events: a crash in between lets them be found again, and none be forgotten.
        if !found.is_empty() {
            (self.count)(found)?;
        }
        index.fill(&entries, durable)?;
        let mut taken = entries.len() as u64;
        let behind: Vec<_> = index.progress()?.into_iter().map(|(_, progress)| progress.next).collect();
        let next = index.next()?;
        if let Some(first) = behind.iter().copied().filter(|at| *at < next).min() {
            // Up to where the next one stands: from there on they go together.
            let end =
                behind.into_iter().filter(|at| *at > first).min().unwrap_or(next).min(first + STEP).min(next);
            taken += fill(index, &self.reader, first..end, durable)?;
        }
        self.unsynced = if durable && taken > 0 { 0 } else { self.unsynced.saturating_add(taken) };
        Ok(taken)
    }

    /// Whether an index lacks events before this one.
    fn is_behind(&self, next: u64) -> Result<bool, FollowError> {
        Ok(self.index.progress()?.into_iter().any(|(_, progress)| progress.next < next))
    }
}

pub(super) fn fill(
    index: &Index,
    reader: &Reader,
    slots: Range<u64>,
    durable: bool,
) -> Result<u64, FollowError> {
    let entries = read(index, reader, slots)?;
    index.fill(&entries, durable)?;
    Ok(entries.len() as u64)
}

/// The events in these slots, as many as are taken in at a time, as far as it is known where their leaves are.
fn read(index: &Index, reader: &Reader, slots: Range<u64>) -> Result<Vec<Entry>, StoreError> {
    let mut follow = reader.follow()?;
    let mut entries = Vec::new();
    let mut texts = HashSet::<Arc<str>>::new();
    let mut bytes = 0_usize;
    for slot in slots {
        if bytes >= STEP_BYTES {
            break;
        }
        let Some(placed) = follow.event(slot)? else { break };
        bytes = bytes.saturating_add(placed.bytes);
        entries.push(entry(index, placed, slot, (&mut follow, &mut texts))?);
    }
    // What the store has replaced is not used again while it is looked at: that is not to last as long as the indexes take.
    drop(follow);
    Ok(entries)
}

/// Those of the events that are taken in next whose ids came before with other bytes. Each is compared with the newest one before it.
fn collisions(index: &Index, reader: &Reader, entries: &[Entry]) -> Result<Vec<Collision>, FollowError> {
    let repeats = index.repeats(entries)?;
    let mut found = Vec::new();
    if !repeats.is_empty() {
        let mut follow = reader.follow()?;
        for Repeat { entry, before } in repeats {
            if follow.differ(before, entry.slot)? {
                found.push(Collision { slot: entry.slot, source: entry.name.source });
            }
        }
    }
    Ok(found)
}

fn entry(
    index: &Index,
    placed: Placed,
    slot: u64,
    (follow, texts): (&mut Follow, &mut HashSet<Arc<str>>),
) -> Result<Entry, StoreError> {
    let Placed { leaf, name, ingested_s, core, identity, bytes: _ } = placed;
    let intern = |text: &str| match texts.get(text) {
        Some(text) => Arc::clone(text),
        None => {
            let new: Arc<str> = text.into();
            texts.insert(Arc::clone(&new));
            new
        }
    };
    let id = core.as_ref().and_then(|core| index.name_of_id(&core.event_id));
    let row = core.map(|core| Row::of((leaf, slot, ingested_s), &core, identity.as_ref(), follow, intern));
    Ok(Entry { row: row.transpose()?, slot, leaf: leaf.get(), name, id })
}

/// Opens the indexes of a store, or makes them. Indexes that know an event which the store has not, or has elsewhere, are of another
/// history of it, a restored copy: they are set aside. So are those of which it is known that they are damaged.
pub fn open(path: &Path, is_damaged: bool, reader: &Reader) -> Result<Index, FollowError> {
    let id = reader.producer()?;
    if is_damaged {
        return Ok(Index::renew(path, &id, Arc::new(reader.cover()))?);
    }
    let index = Index::open_or_renew(path, &id, Arc::new(reader.cover()))?;
    let Some((slot, name, leaf)) = index.last()? else { return Ok(index) };
    if reader.in_slot(slot)? == Some(name) && reader.leaf_of_slot(slot)?.map(LeafIndex::get) == Some(leaf) {
        return Ok(index);
    }
    drop(index);
    tracing::warn!("the audit index is of another history of the store: it is set aside and made again");
    Ok(Index::renew(path, &id, Arc::new(reader.cover()))?)
}

/// How the indexes are doing, for whoever asks them and whoever watches. Cheap to clone.
#[derive(Clone, Default)]
pub struct Following {
    state: Arc<watch::Sender<State>>,
    /// Somebody waits for what is not in them.
    wanted: Arc<Notify>,
}

#[derive(Default)]
struct State {
    index: Option<Arc<Index>>,
    next: u64,
    trouble: Option<String>,
}

impl Following {
    /// The indexes; none as long as they are not open.
    pub fn index(&self) -> Option<Arc<Index>> {
        self.state.borrow().index.clone()
    }

    /// The slot of the first event that is not in them: all before it are.
    pub fn next(&self) -> u64 {
        self.state.borrow().next
    }

    /// Why they do not go on, if they do not.
    pub fn trouble(&self) -> Option<String> {
        self.state.borrow().trouble.clone()
    }

    /// Waits until all events before a slot are in them.
    pub async fn reached(&self, slot: u64) {
        if self.next() < slot {
            self.wanted.notify_one();
        }
        // This sender is alive, so that it is only left when it is so.
        let _ = self.state.subscribe().wait_for(|state| state.next >= slot).await;
    }

    /// Waits until they do not go on, and why.
    pub async fn stopped(&self) -> String {
        let mut state = self.state.subscribe();
        let stopped = state.wait_for(|state| state.trouble.is_some()).await;
        stopped.ok().and_then(|state| state.trouble.clone()).unwrap_or_default()
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        self.state.send_modify(change);
    }
}

/// Follows the store until the process ends, on a thread of its own, which does `first` before anything else. It ends nothing else: whatever
/// is wrong with the indexes, events are taken in and given back, and questions that need an index are answered with why there is none.
pub async fn run(
    path: PathBuf,
    keeper: Keeper,
    following: Following,
    first: fn(),
) -> std::convert::Infallible {
    let mut is_damaged = false;
    loop {
        let Err(error) = follow(path.clone(), is_damaged, &keeper, &following, first).await;
        tracing::error!(%error, "the audit index does not follow");
        // The library ends a thread over pages of its own that were changed.
        is_damaged = match &error {
            FollowError::Index(error) => error.is_damage(),
            FollowError::Stopped => true,
            FollowError::Store(_) | FollowError::Ended(_) | FollowError::NoThread(_) => false,
        };
        following.change(|state| (state.index, state.trouble) = (None, Some(error.to_string())));
        tokio::time::sleep(PAUSE).await;
    }
}

async fn follow(
    path: PathBuf,
    is_damaged: bool,
    keeper: &Keeper,
    following: &Following,
    first: fn(),
) -> Result<std::convert::Infallible, FollowError> {
    let mut placed = keeper.placed();
    let (reader, counting) = (keeper.reader().clone(), keeper.clone());
    let worker = Worker::start(first).map_err(FollowError::NoThread)?;
    let (opened, mut filler) = worker
        .run(move || {
            let index = Arc::new(open(&path, is_damaged, &reader)?);
            let opened = State { index: Some(Arc::clone(&index)), next: index.next()?, trouble: None };
            let filler = Filler::new(index, reader, move |found| counting.count_collisions(found));
            Ok::<_, FollowError>((opened, filler))
        })
        .await??;
    following.change(|state| *state = opened);
    loop {
        let until = *placed.borrow();
        loop {
            let stepped = worker.run(move || {
                let goes_on = filler.step()? > 0;
                let next = filler.index.next()?;
                Ok::<_, FollowError>((goes_on && (next < until || filler.is_behind(next)?), next, filler))
            });
            let (goes_on, next);
            (goes_on, next, filler) = stepped.await??;
            following.change(|state| state.next = next);
            if !goes_on {
                break;
            }
        }
        let wanted = following.wanted.notified();
        tokio::select! {
            gathered = gather(&mut placed, following.next()) => gathered?,
            () = wanted => {}
        }
    }
}

/// Waits until there is something to take in, and then until it is time to.
async fn gather(placed: &mut watch::Receiver<u64>, next: u64) -> Result<(), Ended> {
    placed.wait_for(|placed| *placed > next).await.map_err(|_| Ended)?;
    let all_there = async {
        while placed.borrow_and_update().saturating_sub(next) < STEP {
            match timeout(GATHER, placed.changed()).await {
                Ok(more) => more.map_err(|_| Ended)?,
                Err(_) => break,
            }
        }
        Ok(())
    };
    timeout(LONGEST_GATHER, all_there).await.unwrap_or(Ok(()))
}

impl From<Gone> for FollowError {
    fn from(Gone: Gone) -> FollowError {
        FollowError::Stopped
    }
}

#[cfg(test)]
mod repeats;
#[cfg(test)]
mod tests;
