//! What the audit service keeps on disk: sealed events, the batches they came in, where each source stands, which leaf is whose, and
//! the wrapped keys. One file of redb.
//!
//! A group of batches is one transaction: events, leaves and the source's new state are durable together or not at all, before the log
//! is given a leaf. Nothing is ever changed: an event that is there is not written again, and a batch is new, the same, or refused.
//! Each event has a *slot*, counted over all sources: under this number the log is given its leaf, so that a leaf that was sent
//! and never confirmed is sent again as the same entry. Events lie in *blocks*, one behind the other in the order of their slots: a
//! row for each would cost more than to seal it. No library of ours serves here: the journal keeps entries of one size class in one
//! order and finds nothing by name, sled does not sync.

#[cfg(test)]
mod blocks;
#[cfg(test)]
mod faults;
mod follow;
#[cfg(test)]
mod hostile;
pub mod inspect;
mod read;
mod rekey;
mod take;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use epigraph_core::{Entropy, Hash, UnixMillis};
use redb::{Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};
use thiserror::Error;

use crate::seal::OpenError;
use crate::source::{Kind, State};
use crate::vault::{DataKey, KeyName, KeyWrapper, Names, SealError, WrapError};

pub use follow::{Follow, Placed};
pub use rekey::{Rekeyed, rekey};
pub use take::Run;

use read::{end_of, next_collision};
use take::write_states;

type Id = [u8; 32];

/// JSON of [`State`], by source.
const SOURCES: TableDefinition<&Id, &[u8]> = TableDefinition::new("sources");
/// A [`crate::record::BatchRecord`], by source, epoch and number.
const BATCHES: TableDefinition<(&Id, u64, u64), &[u8]> = TableDefinition::new("batches");
/// A [`crate::record::Block`], by the slot of its first event.
const EVENTS: TableDefinition<u64, &[u8]> = TableDefinition::new("events");
/// Source, epoch and sequence number of the first event of a run: its slot, and how long the run is.
const SEQUENCES: TableDefinition<(&Id, u64, u64), (u64, u32)> = TableDefinition::new("sequences");
/// First slot of a run: how long it is, and the leaf index of the first.
const PLACED: TableDefinition<u64, (u64, u64)> = TableDefinition::new("placed");
/// First leaf index of a run: how long it is, and the slot of the first.
const LEAVES: TableDefinition<u64, (u64, u64)> = TableDefinition::new("leaves");
/// Wrapped keys, by name.
const KEYS: TableDefinition<&[u8; KeyName::LEN], &[u8]> = TableDefinition::new("keys");
/// What the asking side remembers: see [`crate::ask::desk`].
const KEPT: TableDefinition<&str, &[u8]> = TableDefinition::new("kept");
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");

/// In [`META`]: the slot behind the newest event that was counted for an id that came before with other bytes.
const NEXT_COLLISION: &str = "next-collision";

/// Version 1 had a row for each event, version 2 found events by their ids. Nothing that was released ever wrote them.
const FORMAT: &[u8] = b"epigraph-audit-store/v3";

/// The cache of the file's pages, in bytes: the newest events are what is read, and the trees' inner pages.
const CACHE_BYTES: usize = 64 << 20;

/// Data keys that are kept open, in some megabytes: the days and subjects of the moment. When there are more, all are closed and opened again
/// as needed.
const MAX_OPEN_KEYS: usize = 65_536;

/// Why the store did not do what it was asked to.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The file.
    #[error(
        "the audit store cannot be {action}: {source}. Nothing was acknowledged that is not in it; look at the disk before the service is started again"
    )]
    Disk {
        /// What was tried.
        action: &'static str,
        /// What the library said.
        source: Box<redb::Error>,
    },
    /// A record in it.
    #[error("the audit store is damaged: {0} cannot be read")]
    Damaged(String),
    /// The file was not closed.
    #[error(
        "the audit store was not closed by whoever wrote it last; the next start of the service puts that in order"
    )]
    NotClosed,
    /// Another kind of file, or another version of this one.
    #[error(
        "this file is no audit store of version 3, which alone is known here: a later version is for a newer epigraph; one of version 1 or 2 was \
         written before the first release, and there is no way from it to this one: collect its events anew, into a new audit service"
    )]
    Format,
    /// The keys.
    #[error(transparent)]
    Wrap(#[from] WrapError),
    /// A data key is not there that must be.
    #[error("the secret of the audit store is missing: the file was not made by `init audit`")]
    NoSecret,
    /// A segment was not sealed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// A stored event is not what was committed to.
    #[error("event {sequence} of epoch {epoch} of source {source_id}: {why}")]
    Event {
        /// The source.
        source_id: Hash,
        /// The epoch.
        epoch: u64,
        /// The sequence number.
        sequence: u64,
        /// What is wrong.
        why: OpenError,
    },
}

impl From<OpenError> for StoreError {
    fn from(why: OpenError) -> StoreError {
        StoreError::Damaged(why.to_string())
    }
}

fn disk<E: Into<redb::Error>>(action: &'static str) -> impl Fn(E) -> StoreError {
    move |error| StoreError::Disk { action, source: Box::new(error.into()) }
}

/// How a database is opened: everything in it is read and checked first, because of what is changed on a disk meanwhile the library
/// would give some back as it is, and hide some.
fn builder() -> Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    builder
}

/// Opens a database. The library panics at some of the bits that a disk can flip; that is a refusal like any other.
fn carefully(open: impl FnOnce() -> Result<Database, DatabaseError>) -> Result<Database, StoreError> {
    let opened = catch_unwind(AssertUnwindSafe(open));
    let stopped = |_| StoreError::Damaged("its own table of pages".into());
    opened.map_err(stopped)?.map_err(disk("opened"))
}

/// What became of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Taken {
    /// The slot of its first event; the others follow.
    pub first_slot: u64,
    /// How many events it has.
    pub count: u32,
    /// The time in its leaves, in seconds.
    pub ingested: u64,
    /// Whether it was there before.
    pub repeated: bool,
}

/// An event whose id came before with other bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Collision {
    /// Its slot.
    pub slot: u64,
    /// The id of its source's key.
    pub source: Hash,
}

/// Which event: its source, epoch and sequence number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct EventName {
    /// The id of the source's key.
    pub source: Hash,
    /// The epoch.
    pub epoch: u64,
    /// The sequence number.
    pub sequence: u64,
}

/// The store, for the one who writes.
pub struct Store {
    database: Arc<Database>,
    reader: Reader,
    entropy: Arc<dyn Entropy>,
    states: HashMap<Id, State>,
    open_keys: HashMap<KeyName, DataKey>,
    next_slot: u64,
    next_unplaced: u64,
    next_collision: u64,
}

/// The store, for those who read. Cheap to clone.
#[derive(Clone)]
pub struct Reader {
    database: Arc<dyn ReadableDatabase + Send + Sync>,
    wrapper: Arc<dyn KeyWrapper>,
    names: Arc<Names>,
}

impl Store {
    /// Makes an empty store with a secret of its own. The file must not exist.
    pub fn create(path: &Path, wrapper: &dyn KeyWrapper, entropy: &dyn Entropy) -> Result<(), StoreError> {
        Store::fill(&Database::create(path).map_err(disk("created"))?, wrapper, entropy)
    }

    fn fill(database: &Database, wrapper: &dyn KeyWrapper, entropy: &dyn Entropy) -> Result<(), StoreError> {
        let transaction = database.begin_write().map_err(disk("written"))?;
        {
            transaction.open_table(SOURCES).map_err(disk("written"))?;
            transaction.open_table(BATCHES).map_err(disk("written"))?;
            transaction.open_table(EVENTS).map_err(disk("written"))?;
            transaction.open_table(SEQUENCES).map_err(disk("written"))?;
            transaction.open_table(PLACED).map_err(disk("written"))?;
            transaction.open_table(LEAVES).map_err(disk("written"))?;
            transaction.open_table(KEPT).map_err(disk("written"))?;
            let mut keys = transaction.open_table(KEYS).map_err(disk("written"))?;
            let secret = wrapper.wrap(&Names::OWN, &DataKey::draw(entropy), entropy)?;
            keys.insert(Names::OWN.as_bytes(), secret.as_slice()).map_err(disk("written"))?;
            let mut meta = transaction.open_table(META).map_err(disk("written"))?;
            meta.insert("format", FORMAT).map_err(disk("written"))?;
            // The log knows the service's leaves by it: see `epigraph_client::producer`.
            let mut producer = [0; 16];
            entropy.fill(&mut producer);
            meta.insert("producer", producer.as_slice()).map_err(disk("written"))?;
        }
        transaction.commit().map_err(disk("written"))
    }

    /// Opens a store that is there.
    pub fn open(
        path: &Path,
        wrapper: Arc<dyn KeyWrapper>,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Store, StoreError> {
        Store::over(carefully(|| builder().open(path))?, wrapper, entropy)
    }

    fn over(
        database: Database,
        wrapper: Arc<dyn KeyWrapper>,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Store, StoreError> {
        let database = Arc::new(database);
        let reader = Reader::over(Arc::clone(&database) as Arc<_>, wrapper)?;
        let transaction = reader.begin()?;
        let mut states = HashMap::new();
        for row in transaction.open_table(SOURCES).map_err(disk("read"))?.iter().map_err(disk("read"))? {
            let (id, state) = row.map_err(disk("read"))?;
            let damaged =
                |_| StoreError::Damaged(format!("the state of source {}", Hash::from_bytes(*id.value())));
            states.insert(*id.value(), serde_json::from_slice(state.value()).map_err(damaged)?);
        }
        let next_slot = end_of(&transaction.open_table(EVENTS).map_err(disk("read"))?)?;
        let placed = transaction.open_table(PLACED).map_err(disk("read"))?;
        let next_unplaced =
            placed.last().map_err(disk("read"))?.map_or(0, |(slot, run)| slot.value() + run.value().0);
        let meta = transaction.open_table(META).map_err(disk("read"))?;
        let next_collision = next_collision(&meta)?;
        let open_keys = HashMap::new();
        Ok(Store { database, reader, entropy, states, open_keys, next_slot, next_unplaced, next_collision })
    }

    /// For those who read.
    pub fn reader(&self) -> Reader {
        self.reader.clone()
    }

    /// Where a source stands.
    pub fn state(&self, source: &Hash) -> Option<&State> {
        self.states.get(source.as_bytes())
    }

    /// The slot of the next event, and of the first one whose leaf is not known to be in the log.
    pub fn slots(&self) -> (u64, u64) {
        (self.next_slot, self.next_unplaced)
    }

    /// Remembers that something was wrong with a source that none of its batches shows.
    pub fn note(&mut self, source: &Hash, kind: Kind, now: UnixMillis) -> Result<(), StoreError> {
        let mut state = self.state(source).cloned().unwrap_or_default();
        state.note(kind, now);
        let transaction = self.database.begin_write().map_err(disk("written"))?;
        write_states(&transaction, [(source.as_bytes(), &state)])?;
        transaction.commit().map_err(disk("written"))?;
        self.states.insert(*source.as_bytes(), state);
        Ok(())
    }

    /// Counts against sources what is in slots behind everything that was counted before. It is found where the indexes are filled, and found again
    /// when they are made again: each is counted once. Whoever finds them lets the indexes go on only after that, so that none is left out.
    pub fn count_collisions(&mut self, found: &[Collision], now: UnixMillis) -> Result<(), StoreError> {
        let (mut states, mut next) = (HashMap::new(), self.next_collision);
        for Collision { slot, source } in found.iter().filter(|found| found.slot >= self.next_collision) {
            let known = || self.state(source).cloned().unwrap_or_default();
            states.entry(*source.as_bytes()).or_insert_with(known).note(Kind::IdCollision, now);
            next = next.max(slot.saturating_add(1));
        }
        if states.is_empty() {
            return Ok(());
        }
        let transaction = self.database.begin_write().map_err(disk("written"))?;
        write_states(&transaction, &states)?;
        let mut meta = transaction.open_table(META).map_err(disk("written"))?;
        meta.insert(NEXT_COLLISION, next.to_le_bytes().as_slice()).map_err(disk("written"))?;
        drop(meta);
        transaction.commit().map_err(disk("written"))?;
        self.states.extend(states);
        self.next_collision = next;
        Ok(())
    }

    /// Makes something durable under a name, or forgets it.
    pub fn keep(&mut self, name: &str, value: Option<&[u8]>) -> Result<(), StoreError> {
        let transaction = self.database.begin_write().map_err(disk("written"))?;
        {
            let mut kept = transaction.open_table(KEPT).map_err(disk("written"))?;
            match value {
                Some(value) => kept.insert(name, value).map_err(disk("written"))?,
                None => kept.remove(name).map_err(disk("written"))?,
            };
        }
        transaction.commit().map_err(disk("written"))
    }
}
