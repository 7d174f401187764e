//! Where an entry is in the log, by its leaf hash: sorted runs of keys, filled from the tree behind
//! everything else.
//!
//! A key is the beginning of a leaf hash, and what is found under it is a candidate: the tree must have that
//! hash at that index, or it is not answered. Of equal entries the first is found. Absence is a hint and
//! proves nothing: the newest entries may not be in yet. All of it is derived; a run that is damaged, another
//! log's or ahead of the journal is set aside and made again from the tree. It does not know entries, proofs,
//! or what is published.
//!
//! Own files and not a library, by measurement (docs/formats/lookup.md): the tree keeps the hashes already,
//! so there is no log to write and nothing to recover, and keys are random, so there is no index to hold. At
//! 10 million entries they fill 1.5 to 1.9 times as fast as fjall 3 and nine times as redb 4, reading the
//! tree included, in at most 0.6 and 0.35 of the disk and about a tenth of the memory or less; an absent hash
//! takes up to three times as long, some 5 µs.

mod inspect;
mod recover;
mod run;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use epigraph_core::proof::Nodes;
use epigraph_core::{Hash, LeafIndex, TreeSize};
use thiserror::Error;

use crate::file::Dir;
use crate::tile::{TileId, WIDTH};
use crate::tree::{Tree, TreeError};
pub use inspect::{Inspected, inspect};
use run::{KEY_BYTES, Key, NEW_NAME, Records, Run, RunWriter, Span};

/// A run is first written with `2^16` leaves: 1 MiB. Fewer wait in memory, in about 2 MiB, and are read again
/// from the tree after a start: 256 tiles.
const FIRST_HEIGHT: u32 = 16;

/// So many runs of one size become one, up to `2^32` leaves. At most three of each size below that are left,
/// so that a lookup reads few files: 24, and one more for every `2^32` entries. A key is written nine times
/// at most.
const FAN_IN: usize = 4;
const FAN_IN_HEIGHT: u32 = FAN_IN.ilog2();

/// Every crash point of the lookup, and what a crash there leaves.
pub const CRASH_POINTS: [(&str, &str); 3] = [
    ("lookup.run.synced", "A whole run under a temporary name. The next open removes it."),
    ("lookup.run.renamed", "Perhaps a run more. Open takes it if it is there."),
    ("lookup.run.merged", "A merged run, and some of those it was made of. The next open removes these."),
];

/// Why a leaf hash was not looked up, or the lookup was not filled. Nothing but the lookup is touched.
#[derive(Debug, Error)]
pub enum LookupError {
    /// The tree cannot say which hash a leaf has.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// A file is not what was written. [`Lookup::catch_up`] sets it aside.
    #[error(
        "the lookup file {name} cannot be used: {why}; it is set aside as `suspect` and made again from the tree, \
         after which the lookup answers again"
    )]
    Unusable {
        /// The file.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// The system refused an operation.
    #[error(
        "cannot {what} in the directory of the lookup by leaf hash: {source}; entries are safe and proven by \
         index, but until this works the newest are not found by their hash. Check the volume and its permissions"
    )]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl LookupError {
    fn io(what: &'static str) -> impl FnOnce(io::Error) -> LookupError {
        move |source| LookupError::Io { what, source }
    }
}

/// A run that [`Lookup::open`] did not trust, and set aside.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SetAside {
    /// The name it had; now it is `suspect`, in the place of an older one.
    pub name: String,
    /// Why.
    pub why: String,
}

/// The lookup of one log. Any number of threads find while one catches up.
pub struct Lookup {
    tree: Arc<Tree>,
    dir: Arc<dyn Dir>,
    origin_hash: Hash,
    /// Of the smallest runs. A merge asks whether to go on after so many keys as one has.
    first_height: u32,
    /// Changed by the holder of `filling` alone.
    state: RwLock<State>,
    filling: Mutex<Filling>,
    /// A run that a reader found damaged, and how.
    damaged: Mutex<Option<(Span, String)>>,
}

/// What readers see at one moment.
struct State {
    /// Each begins where the one before ends.
    runs: Vec<Arc<Run>>,
    /// The keys after the last run, with their offset from its end.
    tail: BTreeMap<Key, u32>,
    size: u64,
}

impl State {
    fn runs_end(&self) -> u64 {
        self.runs.last().map_or(0, |run| run.span.end())
    }
}

/// What belongs to the one who fills.
struct Filling {
    /// How many of the runs were compared with the tree.
    confirmed: usize,
}

impl Lookup {
    /// Opens the lookup in `dir`, a directory for nothing else that may be empty. Runs that end beyond the
    /// `durable` entries of the journal, are damaged or belong to another log are set aside, and `notice`
    /// hears of each. The `tree` need not be open yet.
    pub fn open(
        dir: Arc<dyn Dir>,
        origin_hash: Hash,
        tree: Arc<Tree>,
        durable: TreeSize,
        notice: &mut dyn FnMut(SetAside),
    ) -> Result<Lookup, LookupError> {
        Lookup::with_first_height(dir, origin_hash, tree, durable, FIRST_HEIGHT, notice)
    }

    /// As [`Lookup::open`], in this directory, which is made if it is missing.
    pub fn open_at(
        directory: &Path,
        origin_hash: Hash,
        tree: Arc<Tree>,
        durable: TreeSize,
        notice: &mut dyn FnMut(SetAside),
    ) -> Result<Lookup, LookupError> {
        let dir = recover::directory(directory).map_err(LookupError::io("make or open a file"))?;
        Lookup::open(Arc::new(dir), origin_hash, tree, durable, notice)
    }

    fn with_first_height(
        dir: Arc<dyn Dir>,
        origin_hash: Hash,
        tree: Arc<Tree>,
        durable: TreeSize,
        first_height: u32,
        notice: &mut dyn FnMut(SetAside),
    ) -> Result<Lookup, LookupError> {
        let runs = recover::runs(&*dir, origin_hash, first_height, durable, notice)?;
        let mut state = State { runs, tail: BTreeMap::new(), size: 0 };
        state.size = state.runs_end();
        Ok(Lookup {
            tree,
            dir,
            origin_hash,
            first_height,
            state: RwLock::new(state),
            filling: Mutex::new(Filling { confirmed: 0 }),
            damaged: Mutex::default(),
        })
    }

    /// How many entries can be found: the first so many of the log. It falls when a run is set aside.
    pub fn size(&self) -> TreeSize {
        size_of(self.state().size)
    }

    /// How many of them are found after a crash without reading the tree again.
    pub fn durable(&self) -> TreeSize {
        size_of(self.state().runs_end())
    }

    /// Bytes that the runs take on the disk.
    pub fn bytes(&self) -> u64 {
        self.state().runs.iter().map(|run| run.bytes()).sum()
    }

    /// The first entry with this leaf hash; `None` if there is none among the first [`Lookup::size`]. After
    /// [`LookupError::Unusable`] call [`Lookup::catch_up`].
    pub fn find(&self, leaf: &Hash) -> Result<Option<LeafIndex>, LookupError> {
        let key = key_of(leaf);
        let (runs, newest) = {
            let state = self.state();
            let offset = state.tail.get(&key).copied();
            (state.runs.clone(), offset.map(|offset| state.runs_end() + u64::from(offset)))
        };
        for run in &runs {
            let candidate = run.find(&key).map_err(|why| {
                *lock(&self.damaged) = Some((run.span, why.clone()));
                LookupError::Unusable { name: run.span.name(), why }
            })?;
            if let Some(index) = self.verified(candidate, leaf)? {
                return Ok(Some(index));
            }
        }
        self.verified(newest, leaf)
    }

    /// The candidate, if the tree has the hash there.
    fn verified(&self, candidate: Option<u64>, leaf: &Hash) -> Result<Option<LeafIndex>, LookupError> {
        let Some(index) = candidate.and_then(LeafIndex::new) else { return Ok(None) };
        Ok((self.tree.node(0, index.get())? == *leaf).then_some(index))
    }

    /// Takes entries in until `to` of them, or all that the tree has, can be found, and returns how many can.
    /// `progress` hears that number every 256 entries, and while runs are merged, and may stop there. One
    /// thread at a time fills; another waits. After [`LookupError::Unusable`] the file is set aside and
    /// [`Lookup::size`] smaller: call it again. After any other error call it again later.
    pub fn catch_up(
        &self,
        to: TreeSize,
        progress: &mut dyn FnMut(TreeSize) -> ControlFlow<()>,
    ) -> Result<TreeSize, LookupError> {
        let mut filling = lock(&self.filling);
        let damaged = lock(&self.damaged).take();
        if let Some((span, why)) = damaged {
            self.distrust(&mut filling, span, why)?;
        }
        let to = to.min(self.tree.size());
        self.confirm(&mut filling)?;
        loop {
            self.write_tail(&mut filling)?;
            if self.merge(&mut filling, progress)?.is_break() {
                return Ok(self.size());
            }
            let size = self.size();
            if size >= to {
                return Ok(size);
            }
            self.take_tile(size, to)?;
            if progress(self.size()).is_break() {
                return Ok(self.size());
            }
        }
    }

    /// Adds the leaves of one tile from `size` on to the tail. A tile never reaches beyond a full tail.
    fn take_tile(&self, size: TreeSize, to: TreeSize) -> Result<(), LookupError> {
        let id = TileId { level: 0, index: size.get() / WIDTH as u64 };
        let hashes = self.tree.tile(id, to)?.unwrap_or_default();
        let taken = (size.get() % WIDTH as u64) as usize;
        let mut state = self.state_mut();
        let start = state.runs_end();
        for (hash, index) in hashes.iter().skip(taken).zip(size.get()..) {
            let offset = u32::try_from(index - start).unwrap_or(u32::MAX);
            state.tail.entry(key_of(hash)).or_insert(offset);
            state.size = index + 1;
        }
        Ok(())
    }

    /// Makes a full tail a run.
    fn write_tail(&self, filling: &mut Filling) -> Result<(), LookupError> {
        let state = self.state();
        let span = Span::starting_at(state.runs_end(), self.first_height);
        let Some(span) = span.filter(|span| span.end() == state.size) else { return Ok(()) };
        let root = self.tree.node(span.height, span.index)?;
        let write = || {
            let mut writer = RunWriter::create(&*self.dir)?;
            state.tail.iter().try_for_each(|(key, offset)| writer.push(key, *offset))?;
            writer.finish(&*self.dir, span, root, self.origin_hash)
        };
        let run = write().map_err(LookupError::io("write a run"))?;
        drop(state);
        let mut state = self.state_mut();
        state.runs.push(Arc::new(run));
        state.tail.clear();
        filling.confirmed = state.runs.len();
        Ok(())
    }

    /// Makes one run of the last [`FAN_IN`] while they are of one size.
    fn merge(
        &self,
        filling: &mut Filling,
        progress: &mut dyn FnMut(TreeSize) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, LookupError> {
        while let Some((inputs, span)) = self.mergeable() {
            let root = self.tree.node(span.height, span.index)?;
            let size = self.size();
            let Some(run) = self.write_merged(filling, &inputs, span, root, &mut || progress(size))? else {
                return Ok(ControlFlow::Break(()));
            };
            let mut state = self.state_mut();
            let kept = state.runs.len() - inputs.len();
            state.runs.truncate(kept);
            state.runs.push(Arc::new(run));
            filling.confirmed = state.runs.len();
            drop(state);
            self.dir.crash_point("lookup.run.merged");
            let removed = inputs.iter().try_for_each(|run| self.dir.remove(&run.span.name()));
            removed.map_err(LookupError::io("remove a merged run"))?;
        }
        Ok(ControlFlow::Continue(()))
    }

    fn mergeable(&self) -> Option<(Vec<Arc<Run>>, Span)> {
        let state = self.state();
        let inputs = state.runs.get(state.runs.len().checked_sub(FAN_IN)?..)?;
        let first = inputs.first()?.span;
        let span = Span::starting_at(first.first(), first.height + FAN_IN_HEIGHT)?;
        inputs.iter().all(|run| run.span.height == first.height).then(|| (inputs.to_vec(), span))
    }

    /// `None` if it was told to stop.
    fn write_merged(
        &self,
        filling: &mut Filling,
        inputs: &[Arc<Run>],
        span: Span,
        root: Hash,
        go_on: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<Option<Run>, LookupError> {
        let mut merged = match Merged::new(inputs, span) {
            Ok(merged) => merged,
            Err((span, why)) => return self.distrust(filling, span, why).map(|()| None),
        };
        let refused = || LookupError::io("write a merged run");
        let mut writer = RunWriter::create(&*self.dir).map_err(refused())?;
        let mut steps = 0u64;
        loop {
            match merged.next_record() {
                Ok(Some((key, offset))) => writer.push(&key, offset).map_err(refused())?,
                Ok(None) => break,
                Err((span, why)) => return self.distrust(filling, span, why).map(|()| None),
            }
            steps += 1;
            if steps.is_multiple_of(1 << self.first_height) && go_on().is_break() {
                self.dir.remove(NEW_NAME).map_err(LookupError::io("remove a half run"))?;
                return Ok(None);
            }
        }
        writer.finish(&*self.dir, span, root, self.origin_hash).map(Some).map_err(refused())
    }

    /// Compares the runs that were there at the start with the tree, as far as it is built: a journal that was
    /// restored and went on otherwise has other leaves there.
    fn confirm(&self, filling: &mut Filling) -> Result<(), LookupError> {
        let runs = self.state().runs.clone();
        for run in runs.iter().skip(filling.confirmed) {
            if run.span.end() > self.tree.size().get() {
                return Ok(());
            }
            let root = self.tree.node(run.span.height, run.span.index)?;
            if run.root != root {
                let why =
                    format!("it was made of entries with the root {}, and the tree has {root}", run.root);
                self.distrust(filling, run.span, why)?;
            }
            filling.confirmed += 1;
        }
        Ok(())
    }

    /// Sets a run aside, and drops those after it: what can be found ends where it began. Always an error,
    /// so that somebody hears of it, unless the run is gone already.
    fn distrust(&self, filling: &mut Filling, span: Span, why: String) -> Result<(), LookupError> {
        let mut state = self.state_mut();
        let Some(place) = state.runs.iter().position(|run| run.span == span) else { return Ok(()) };
        let dropped: Vec<_> = state.runs.drain(place..).map(|run| run.span).collect();
        state.tail.clear();
        state.size = state.runs_end();
        drop(state);
        filling.confirmed = filling.confirmed.min(place);
        let name = span.name();
        recover::set_aside(&*self.dir, &name)?;
        recover::remove(&*self.dir, dropped.iter().skip(1).map(|span| span.name()))?;
        Err(LookupError::Unusable { name, why })
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        // Whoever panicked under the lock left candidates, and those are checked before they are answered.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The keys of several runs in order, with offsets in the run of all of them; of equal keys the first leaf's.
struct Merged<'a> {
    inputs: Vec<Input<'a>>,
    last: Option<Key>,
}

struct Input<'a> {
    records: Records<'a>,
    span: Span,
    /// Of its first leaf in the merged run.
    offset: u32,
    next: Option<(Key, u32)>,
}

/// Which run is damaged, and how.
type Damage = (Span, String);

impl Input<'_> {
    fn advance(&mut self) -> Result<(), Damage> {
        let next = self.records.next_record().map_err(|why| (self.span, why))?;
        self.next = next.map(|(key, offset)| (key, offset.saturating_add(self.offset)));
        Ok(())
    }
}

impl<'a> Merged<'a> {
    fn new(runs: &'a [Arc<Run>], span: Span) -> Result<Merged<'a>, Damage> {
        let mut inputs = Vec::with_capacity(runs.len());
        for run in runs {
            let offset = u32::try_from(run.span.first() - span.first()).unwrap_or(u32::MAX);
            let mut input = Input { records: run.records(), span: run.span, offset, next: None };
            input.advance()?;
            inputs.push(input);
        }
        Ok(Merged { inputs, last: None })
    }

    fn next_record(&mut self) -> Result<Option<(Key, u32)>, Damage> {
        loop {
            let least =
                self.inputs.iter_mut().filter(|input| input.next.is_some()).min_by_key(|input| input.next);
            let Some(input) = least else { return Ok(None) };
            let next = input.next;
            input.advance()?;
            let key = next.map(|(key, _)| key);
            if self.last != key {
                self.last = key;
                return Ok(next);
            }
        }
    }
}

fn key_of(leaf: &Hash) -> Key {
    leaf.as_bytes().first_chunk::<KEY_BYTES>().copied().unwrap_or_default()
}

/// Every run ends at a size that a log can have.
fn size_of(leaves: u64) -> TreeSize {
    TreeSize::new(leaves).unwrap_or(TreeSize::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
