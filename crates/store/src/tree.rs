//! The Merkle tree of a log: complete tiles in a [`TileStore`], the right edge in memory.
//!
//! Any number of threads read while one [`crate::follow::Follower`] appends. Nothing that a store gives is believed:
//! a tile must hash to the hash that the level above has of it, up to the right edge, which the follower computed
//! from the journal. A tile that does not, or is missing, is rebuilt from the journal and stored again. It does not
//! know signatures, or what is published.

mod cache;
mod edge;
mod memory;
mod open;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard};

use epigraph_core::hash::{leaf_hash, leaf_hashes};
use epigraph_core::proof::Nodes;
use epigraph_core::{Frontier, Hash, LeafIndex, TreeHead, TreeSize};
use thiserror::Error;

use crate::file::Dir;
use crate::journal::{Entries, EntryReader, JournalError, Run};
use crate::tile::{LEVELS, TILE_HEIGHT, Tile, TileId, TileStore, WIDTH, locate};
use cache::Cache;
pub(crate) use edge::{Edge, Full};
pub use memory::{MemoryTree, NoSuchNode, NotNext, Staged};
#[cfg(test)]
pub(crate) use open::attach;
pub use open::{
    MAX_SUSPECTS, Notice, OpenError, Place, Preflight, Report, compare, open, open_in_memory, preflight,
};
pub(crate) use writer::TileWriter;

/// Memory for expanded tiles: all level-0 tiles of 2^20 entries, so that uniform reads of such a log hash nothing.
pub const CACHE_BYTES: usize = 72 << 20;

/// Entries that are hashed in one go, while they are near the processor.
const COMPARED_AT_ONCE: usize = 64;

/// Rebuilt tiles that wait to be stored again; one that finds no place is rebuilt at its next cold read.
const MAX_REPAIRS: usize = 256;

/// Why a hash of the tree could not be had.
#[derive(Debug, Error)]
pub enum TreeError {
    /// The tree has not been built that far. Entries are durable before they are in the tree.
    #[error(
        "the tree is built up to {size} entries, and the subtree of height {height} at position {index} lies beyond; it \
         follows the journal, try again shortly"
    )]
    NotYet {
        /// The height, 0 for a leaf.
        height: u32,
        /// The position among the subtrees of that height.
        index: u64,
        /// The size the tree has.
        size: TreeSize,
    },
    /// What the journal holds does not hash to the tree any more.
    #[error(
        "the entries that tile {tile} is made of do not give its hash {wanted} any more, but {found}; the journal is \
         damaged there: restore the segment that holds them from a backup or a mirror"
    )]
    DataLoss {
        /// The tile.
        tile: TileId,
        /// Its hash in the level above.
        wanted: Hash,
        /// The hash that its entries give now.
        found: Hash,
    },
    /// The journal could not be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// Why an entry was not given out.
#[derive(Debug, Error)]
pub enum EntryError {
    /// Its bytes are not those that the tree committed to.
    #[error(
        "entry {index} does not hash to its leaf {wanted} any more: the journal is damaged there; restore the segment \
         that holds it from a backup or a mirror"
    )]
    DataLoss {
        /// The entry.
        index: LeafIndex,
        /// Its leaf hash in the tree.
        wanted: Hash,
    },
    /// Its leaf hash could not be had.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The journal could not be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// What went wrong with stored tiles since the start, and was made good.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Tiles that the store did not have.
    pub missing: u64,
    /// Tiles that the store could not read.
    pub unreadable: u64,
    /// Tiles that did not hash to the level above.
    pub wrong: u64,
    /// Tiles that were rebuilt from the journal.
    pub rebuilt: u64,
    /// Batches that the store could not write at the first attempt.
    pub write_failures: u64,
}

#[derive(Default)]
struct Tally {
    missing: AtomicU64,
    unreadable: AtomicU64,
    wrong: AtomicU64,
    rebuilt: AtomicU64,
    write_failures: AtomicU64,
}

/// The tree of one log.
pub struct Tree {
    state: RwLock<State>,
    store: OnceLock<Arc<dyn TileStore>>,
    cache: Cache,
    entries: EntryReader,
    repairs: Mutex<Full>,
    /// Held while a tile is rebuilt, so that many readers of one lost tile hash its entries once.
    rebuilding: Mutex<()>,
    tally: Tally,
}

/// Entries in order, each compared with its leaf hash in the tree before it is given out.
pub struct Reading<'a> {
    tree: &'a Tree,
    entries: Entries<'a>,
    /// The tile of the leaf that was compared last.
    held: Option<(TileId, Arc<Tile>)>,
}

/// What readers see at one moment.
#[derive(Default)]
struct State {
    edge: Edge,
    /// Complete tiles that the store may not have yet; as many as the writer's queue holds.
    pending: HashMap<TileId, Arc<Tile>>,
}

/// Where a hash is.
enum Found {
    Here(Hash),
    /// In the store, if anywhere.
    Stored {
        id: TileId,
        within: u32,
        place: usize,
    },
}

impl Tree {
    /// An empty tree of the journal in `dir`, without a store yet: [`open`] gives it one. Until then it answers
    /// [`TreeError::NotYet`].
    pub fn new(dir: Arc<dyn Dir>, origin_hash: Hash) -> Tree {
        Tree::with_cache(dir, origin_hash, CACHE_BYTES)
    }

    /// As [`Tree::new`], with another bound on the bytes of expanded tiles.
    pub fn with_cache(dir: Arc<dyn Dir>, origin_hash: Hash, cache_bytes: usize) -> Tree {
        Tree {
            state: RwLock::default(),
            store: OnceLock::new(),
            cache: Cache::new(cache_bytes),
            entries: EntryReader::new(dir, origin_hash),
            repairs: Mutex::default(),
            rebuilding: Mutex::default(),
            tally: Tally::default(),
        }
    }

    /// Size and root.
    pub fn head(&self) -> TreeHead {
        self.state().edge.head()
    }

    /// Number of leaves.
    pub fn size(&self) -> TreeSize {
        self.state().edge.size()
    }

    /// The right edge.
    pub fn frontier(&self) -> Frontier {
        self.state().edge.frontier().clone()
    }

    /// How many of the `durable` entries are not in the tree yet.
    pub fn lag(&self, durable: TreeSize) -> u64 {
        durable.get().saturating_sub(self.size().get())
    }

    /// What went wrong with stored tiles.
    pub fn counters(&self) -> Counters {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Tally { missing, unreadable, wrong, rebuilt, write_failures } = &self.tally;
        Counters {
            missing: get(missing),
            unreadable: get(unreadable),
            wrong: get(wrong),
            rebuilt: get(rebuilt),
            write_failures: get(write_failures),
        }
    }

    /// Bytes of memory that complete tiles take: those that were read, and those on their way to the store.
    pub fn tile_bytes(&self) -> usize {
        self.cache.bytes() + self.state().pending.len() * Tile::BYTES
    }

    /// Bytes that the store takes on the disk, if it can tell.
    pub fn stored_bytes(&self) -> Option<u64> {
        self.store.get()?.bytes().ok()
    }

    /// The hashes that are in memory, for a thread that must not wait for the disk.
    pub fn warm(&self) -> Warm<'_> {
        Warm(self)
    }

    /// The hashes of one tile, its newest width; as `row` of a complete or of the incomplete tile of a level.
    /// `None` if the tree of `size` leaves has no hash in it.
    pub fn tile(&self, id: TileId, size: TreeSize) -> Result<Option<Vec<Hash>>, TreeError> {
        if u32::from(id.level) >= LEVELS {
            return Ok(None);
        }
        let height = u32::from(id.level) * TILE_HEIGHT;
        let Some(first) = id.index.checked_mul(WIDTH as u64) else { return Ok(None) };
        let end = (size.get() >> height).min(first.saturating_add(WIDTH as u64));
        if first >= end {
            return Ok(None);
        }
        (first..end).map(|index| self.node(height, index)).collect::<Result<_, _>>().map(Some)
    }

    /// The entries from `first` on, up to `end` and the tree's size.
    pub fn read(&self, first: LeafIndex, end: TreeSize) -> Reading<'_> {
        Reading { tree: self, entries: self.entries.read(first, end, self.size()), held: None }
    }

    /// Compares entries with their leaves. How many are good before the first that is not, and what is wrong with that one.
    fn compare(&self, run: Run<'_>, held: &mut Option<(TileId, Arc<Tile>)>) -> Option<(usize, EntryError)> {
        for (leaf, good) in leaf_hashes(run.entries()).zip(0..) {
            let index = run.first.checked_add(good as u64).unwrap_or(run.first);
            match self.leaf(index, held) {
                Ok(wanted) if wanted == leaf => {}
                Ok(wanted) => {
                    self.entries.forget();
                    return Some((good, EntryError::DataLoss { index, wanted }));
                }
                Err(error) => return Some((good, error.into())),
            }
        }
        None
    }

    /// A leaf hash, from the tile that is held, or else from the tree.
    fn leaf(&self, index: LeafIndex, held: &mut Option<(TileId, Arc<Tile>)>) -> Result<Hash, TreeError> {
        let (id, within, place) = locate(0, index.get());
        if held.as_ref().is_none_or(|(held, _)| *held != id) {
            *held = self.warm_tile(id).map(|tile| (id, tile));
        }
        match held.as_ref().and_then(|(_, tile)| tile.node(within, place)) {
            Some(leaf) => Ok(leaf),
            None => self.node(0, index.get()),
        }
    }

    /// A complete tile, if it is in memory.
    fn warm_tile(&self, id: TileId) -> Option<Arc<Tile>> {
        let pending = self.state().pending.get(&id).cloned();
        pending.or_else(|| self.cache.read(id, Arc::clone))
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        // Whoever panicked under the lock left a whole edge or the one before: both are right.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, height: u32, index: u64) -> Result<Found, TreeError> {
        let (id, within, place) = locate(height, index);
        let state = self.state();
        let size = state.edge.size();
        if index >= size.get().checked_shr(height).unwrap_or(0) {
            return Err(TreeError::NotYet { height, index, size });
        }
        let here = state.edge.node(height, index);
        let here = here.or_else(|| state.pending.get(&id)?.node(within, place));
        drop(state);
        let here = here.or_else(|| self.cache.read(id, |tile| tile.node(within, place)).flatten());
        Ok(here.map_or(Found::Stored { id, within, place }, Found::Here))
    }

    /// Reads a complete tile from the store, or rebuilds it.
    fn load(&self, id: TileId) -> Result<Arc<Tile>, TreeError> {
        let wanted = self.node((u32::from(id.level) + 1) * TILE_HEIGHT, id.index)?;
        let tile = match self.stored(id, Some(wanted)) {
            Some(tile) => Arc::new(tile),
            None => self.rebuild(id, wanted)?,
        };
        self.cache.insert(id, tile.clone());
        Ok(tile)
    }

    /// A tile as the store has it; `None`, and counted, if it has it not or another one than `wanted`.
    fn stored(&self, id: TileId, wanted: Option<Hash>) -> Option<Tile> {
        let failed = match self.store.get()?.get(id) {
            Ok(Some(row)) => {
                let tile = Tile::expand(row);
                if wanted.is_none_or(|wanted| tile.root() == wanted) {
                    return Some(tile);
                }
                &self.tally.wrong
            }
            Ok(None) => &self.tally.missing,
            Err(_) => &self.tally.unreadable,
        };
        failed.fetch_add(1, Ordering::Relaxed);
        None
    }

    fn rebuild(&self, id: TileId, wanted: Hash) -> Result<Arc<Tile>, TreeError> {
        let _one = lock(&self.rebuilding);
        if let Some(tile) = self.cache.read(id, Arc::clone) {
            return Ok(tile);
        }
        let computed = self.compute_from_children(id).filter(|tile| tile.root() == wanted);
        let tile = match computed {
            Some(tile) => Arc::new(tile),
            None => self.compute_from_entries(id)?,
        };
        if tile.root() != wanted {
            return Err(TreeError::DataLoss { tile: id, wanted, found: tile.root() });
        }
        self.tally.rebuilt.fetch_add(1, Ordering::Relaxed);
        self.repair(id, &tile);
        Ok(tile)
    }

    /// A tile above level 0 from the roots of the stored tiles below it.
    fn compute_from_children(&self, id: TileId) -> Option<Tile> {
        let level = id.level.checked_sub(1)?;
        let mut row = *Tile::EMPTY.row();
        for (hash, child) in row.iter_mut().zip(0..) {
            let child = TileId { level, index: id.index * WIDTH as u64 + child };
            let root = self.cache.read(child, |tile| tile.root());
            *hash = root.or_else(|| self.stored(child, None).map(|tile| tile.root()))?;
        }
        Some(Tile::expand(row))
    }

    /// A tile from the entries below it. Fewer of them than the tree has give a tile with another root.
    fn compute_from_entries(&self, id: TileId) -> Result<Arc<Tile>, TreeError> {
        let leaves = 1u64.checked_shl((u32::from(id.level) + 1) * TILE_HEIGHT);
        let first = leaves.and_then(|leaves| LeafIndex::new(id.index.checked_mul(leaves)?));
        let last = leaves.and_then(|leaves| first?.checked_add(leaves - 1));
        // The tile's leaves begin at a multiple of their number, so they hash as if they were a tree of their own.
        let (mut edge, mut full) = (Edge::default(), Full::new());
        if let (Some(first), Some(last)) = (first, last) {
            let mut entries = self.entries.read(first, last.size_after(), self.size());
            while let Some((_, entry)) = entries.next_entry()? {
                full.clear();
                // No tile has as many leaves as a log may have.
                let _ = edge.push(leaf_hash(entry), &mut full);
            }
        }
        let tile = full.into_iter().find(|(tile, _)| tile.level == id.level);
        Ok(tile.map_or_else(|| Arc::new(Tile::EMPTY), |(_, tile)| tile))
    }

    /// Leaves a tile to the writer, to be stored again.
    fn repair(&self, id: TileId, tile: &Arc<Tile>) {
        let mut repairs = lock(&self.repairs);
        if repairs.len() < MAX_REPAIRS {
            repairs.push((id, tile.clone()));
        }
    }

    /// Lets readers see a larger tree, and the tiles that it completed.
    pub(crate) fn advance(&self, edge: &Edge, full: &[(TileId, Arc<Tile>)]) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.pending.extend(full.iter().cloned());
        state.edge.clone_from(edge);
    }

    pub(crate) fn edge(&self) -> Edge {
        self.state().edge.clone()
    }

    /// Starts with what a store holds, once.
    pub(crate) fn install(&self, store: Arc<dyn TileStore>, edge: Edge) {
        if self.store.set(store).is_ok() {
            self.state.write().unwrap_or_else(PoisonError::into_inner).edge = edge;
        }
    }

    /// Hands tiles that the store has over to the cache: what is new is read soonest.
    pub(crate) fn settle(&self, tiles: &[(TileId, Arc<Tile>)]) {
        tiles.iter().for_each(|(id, tile)| self.cache.insert(*id, tile.clone()));
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        tiles.iter().for_each(|(id, _)| drop(state.pending.remove(id)));
    }

    pub(crate) fn take_repairs(&self) -> Full {
        std::mem::take(&mut *lock(&self.repairs))
    }

    pub(crate) fn write_failed(&self) {
        self.tally.write_failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Compares a tile that was computed anew with the store; what differs is stored again. For the scrubber.
    pub(crate) fn check_stored(&self, id: TileId, tile: &Arc<Tile>) -> bool {
        if self.state().pending.contains_key(&id) || self.stored(id, Some(tile.root())).is_some() {
            return true;
        }
        self.tally.rebuilt.fetch_add(1, Ordering::Relaxed);
        self.repair(id, tile);
        false
    }
}

impl Nodes for Tree {
    type Error = TreeError;

    fn node(&self, height: u32, index: u64) -> Result<Hash, TreeError> {
        match self.find(height, index)? {
            Found::Here(hash) => Ok(hash),
            Found::Stored { id, within, place } => {
                let tile = self.load(id)?;
                tile.node(within, place).ok_or(TreeError::NotYet { height, index, size: self.size() })
            }
        }
    }
}

impl Reading<'_> {
    /// The index of the next entry.
    pub fn next_index(&self) -> LeafIndex {
        self.entries.next_index()
    }

    /// Gives out the next entries, at most so many of them and so many bytes together; whether there is no room for the next.
    /// What was given out before an error is good, and nothing may be asked for after it.
    pub fn take(
        &mut self,
        mut most: usize,
        mut most_bytes: usize,
        mut give: impl FnMut(&[u8]),
    ) -> Result<bool, EntryError> {
        while let Some(run) = self.entries.next_run(most.min(COMPARED_AT_ONCE), most_bytes)? {
            if run.count == 0 {
                return Ok(true);
            }
            let wrong = self.tree.compare(run, &mut self.held);
            let good = wrong.as_ref().map_or(run.count, |(good, _)| *good);
            for entry in run.entries().take(good) {
                most_bytes -= entry.len();
                give(entry);
            }
            if let Some((_, error)) = wrong {
                return Err(error);
            }
            most -= run.count;
        }
        Ok(false)
    }
}

/// The part of a tree that is in memory.
#[derive(Clone, Copy)]
pub struct Warm<'a>(&'a Tree);

/// Why [`Warm`] has no answer.
#[derive(Debug, Error)]
pub enum WarmError {
    /// It must be read from the store: ask the tree itself, where waiting for the disk is allowed.
    #[error("tile {0} is not in memory")]
    Cold(TileId),
    /// The tree has not been built that far.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

impl Nodes for Warm<'_> {
    type Error = WarmError;

    fn node(&self, height: u32, index: u64) -> Result<Hash, WarmError> {
        match self.0.find(height, index)? {
            Found::Here(hash) => Ok(hash),
            Found::Stored { id, .. } => Err(WarmError::Cold(id)),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
