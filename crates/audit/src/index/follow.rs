//! Fills the indexes from the store, behind everything else: nobody who hands in an event waits for it, and what is not in yet is said.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use epigraph_core::LeafIndex;
use thiserror::Error;
use tokio::sync::watch;

use super::{Entry, Index, IndexError};
use crate::keeper::{Ended, Keeper};
use crate::query::Row;
use crate::store::{Follow, Placed, Reader, StoreError};

/// Events that are taken in at a time: some megabytes of rows at the most, and a transaction of some tens of milliseconds.
pub const STEP: u64 = 2_048;

/// So many steps are made durable together: what a crash takes is filled in again in a second. Pages that were replaced are used again only
/// after that, so more of them make a larger file.
pub const STEPS_A_SYNC: u32 = 4;

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
    /// A step was not done to its end.
    #[error("the audit index is damaged, or there is a fault of the program: a step has ended in its middle")]
    Stopped,
}

/// Takes in what is next: newer events first, then those that an index lacks which was added later. Answers how many there were.
pub fn step(index: &Index, reader: &Reader, durable: bool) -> Result<u64, FollowError> {
    let mut follow = reader.follow()?;
    let next = index.next()?;
    let mut taken = fill(index, &mut follow, next..next.saturating_add(STEP), durable)?;
    let behind: Vec<_> = index.progress()?.into_iter().map(|(_, progress)| progress.next).collect();
    let next = index.next()?;
    if let Some(first) = behind.iter().copied().filter(|at| *at < next).min() {
        // Up to where the next one stands: from there on they go together.
        let end =
            behind.into_iter().filter(|at| *at > first).min().unwrap_or(next).min(first + STEP).min(next);
        taken += fill(index, &mut follow, first..end, durable)?;
    }
    Ok(taken)
}

fn fill(
    index: &Index,
    follow: &mut Follow,
    slots: std::ops::Range<u64>,
    durable: bool,
) -> Result<u64, FollowError> {
    let mut entries = Vec::new();
    let mut texts = HashSet::<Arc<str>>::new();
    for slot in slots {
        let Some(placed) = follow.event(slot)? else { break };
        entries.push(entry(placed, slot, follow, &mut texts)?);
    }
    index.fill(&entries, durable)?;
    Ok(entries.len() as u64)
}

fn entry(
    placed: Placed,
    slot: u64,
    follow: &mut Follow,
    texts: &mut HashSet<Arc<str>>,
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
    let row = core.map(|core| Row::of((leaf, slot, ingested_s), &core, identity.as_ref(), follow, intern));
    Ok(Entry { row: row.transpose()?, slot, leaf: leaf.get(), name })
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

/// Follows the store until the process ends. It ends nothing else: whatever is wrong with the indexes, events are taken in and given back,
/// and questions that need an index are answered with why there is none.
pub async fn run(path: PathBuf, keeper: Keeper, following: Following) -> std::convert::Infallible {
    let mut is_damaged = false;
    loop {
        let Err(error) = follow(path.clone(), is_damaged, &keeper, &following).await;
        tracing::error!(%error, "the audit index does not follow");
        // The library ends a thread over pages of its own that were changed.
        is_damaged = match &error {
            FollowError::Index(error) => error.is_damage(),
            FollowError::Stopped => true,
            FollowError::Store(_) | FollowError::Ended(_) => false,
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
) -> Result<std::convert::Infallible, FollowError> {
    let mut placed = keeper.placed();
    let reader = keeper.reader().clone();
    let opened = blocking(move || open(&path, is_damaged, &reader)).await?;
    let index = Arc::new(opened);
    following.change(|state| (state.index, state.trouble) = (Some(Arc::clone(&index)), None));
    let mut steps = 0_u32;
    loop {
        let (index, reader) = (Arc::clone(&index), keeper.reader().clone());
        placed.mark_unchanged();
        steps = steps.wrapping_add(1);
        let durable = steps.is_multiple_of(STEPS_A_SYNC);
        let stepped = blocking(move || Ok((step(&index, &reader, durable)?, index.next()?)));
        let (taken, next) = stepped.await?;
        following.change(|state| state.next = next);
        if taken == 0 {
            placed.changed().await.map_err(|_| Ended)?;
        }
    }
}

/// Runs what waits for the disk where it holds up nobody else.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FollowError> + Send + 'static,
) -> Result<T, FollowError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| FollowError::Stopped)?
}

#[cfg(test)]
mod tests;
