//! What the audit service keeps on disk: sealed events, the batches they came in, where each source stands, which leaf is whose, and
//! the wrapped keys. One file of redb.
//!
//! A group of batches is one transaction: events, leaves and the source's new state are durable together or not at all, before the log
//! is given a leaf. Nothing is ever changed: an event that is there is not written again, and a batch is new, the same, or refused.
//! Each event has a *slot*, counted over all sources: under this number the log is given its leaf, so that a leaf that was sent
//! and never confirmed is sent again as the same entry. No library of ours serves here: the journal keeps entries of one size
//! class in one order and finds nothing by name, sled does not sync.

#[cfg(test)]
mod faults;
mod follow;
#[cfg(test)]
mod hostile;
pub mod inspect;
mod rekey;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use epigraph_core::{Entropy, Hash, LeafIndex, UnixMillis};
use epigraph_event::leaf::LEAF_BYTES;
use epigraph_event::{Batch, Collected, Leaf, Segment};
use redb::{
    Builder, Database, DatabaseError, MultimapTableDefinition, ReadOnlyDatabase, ReadTransaction,
    ReadableDatabase, ReadableMultimapTable, ReadableTable, TableDefinition, WriteTransaction,
};
use thiserror::Error;

use crate::record::{BatchRecord, decode_leaf, decode_sealed, encode_sealed};
use crate::seal::{self, OpenError, Opened, Sealed};
use crate::source::{Kind, Refused, State, Verdict, is_skewed, judge};
use crate::vault::{DataKey, KeyName, KeyWrapper, Names, SealError, WrapError};

pub use follow::{Follow, Placed};
pub use rekey::{Rekeyed, rekey};

type Id = [u8; 32];

/// JSON of [`State`], by source.
const SOURCES: TableDefinition<&Id, &[u8]> = TableDefinition::new("sources");
/// [`BatchRecord`], by source, epoch and number.
const BATCHES: TableDefinition<(&Id, u64, u64), &[u8]> = TableDefinition::new("batches");
/// [`Sealed`], by source, epoch and sequence number.
const EVENTS: TableDefinition<(&Id, u64, u64), &[u8]> = TableDefinition::new("events");
/// Whose a slot is: source, epoch, sequence number.
const SLOTS: TableDefinition<u64, (&Id, u64, u64)> = TableDefinition::new("slots");
/// First slot of a run: how long it is, and the leaf index of the first.
const PLACED: TableDefinition<u64, (u64, u64)> = TableDefinition::new("placed");
/// First leaf index of a run: how long it is, and the slot of the first.
const LEAVES: TableDefinition<u64, (u64, u64)> = TableDefinition::new("leaves");
/// Slots, by the keyed name of the event's id.
const IDS: MultimapTableDefinition<&[u8; KeyName::LEN], u64> = MultimapTableDefinition::new("ids");
/// Wrapped keys, by name.
const KEYS: TableDefinition<&[u8; KeyName::LEN], &[u8]> = TableDefinition::new("keys");
/// What the asking side remembers: see [`crate::ask::desk`].
const KEPT: TableDefinition<&str, &[u8]> = TableDefinition::new("kept");
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");

const FORMAT: &[u8] = b"epigraph-audit-store/v1";

/// The cache of the file's pages, in bytes: the newest events are what is read, and the trees' inner pages.
const CACHE_BYTES: usize = 64 << 20;

/// Data keys that are kept open: the days and subjects of the moment. When there are more, all are closed and opened again as needed.
const MAX_OPEN_KEYS: usize = 4_096;

/// Slots of one event id that are listed: whoever reuses an id more often than that has no use for a list.
pub const MAX_SAME_ID: usize = 100;

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
    /// Another kind of file, or a later version of this one.
    #[error("this file is no audit store of a version that is known here")]
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
            transaction.open_table(SLOTS).map_err(disk("written"))?;
            transaction.open_table(PLACED).map_err(disk("written"))?;
            transaction.open_table(LEAVES).map_err(disk("written"))?;
            transaction.open_multimap_table(IDS).map_err(disk("written"))?;
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
        let slots = transaction.open_table(SLOTS).map_err(disk("read"))?;
        let next_slot = slots.last().map_err(disk("read"))?.map_or(0, |(slot, _)| slot.value() + 1);
        let placed = transaction.open_table(PLACED).map_err(disk("read"))?;
        let next_unplaced =
            placed.last().map_err(disk("read"))?.map_or(0, |(slot, run)| slot.value() + run.value().0);
        Ok(Store { database, reader, entropy, states, open_keys: HashMap::new(), next_slot, next_unplaced })
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

    /// Takes batches in, all that are new under one sync. The error is of the store: then none was taken, and it is not known what is on
    /// the disk.
    pub fn take(
        &mut self,
        batches: &[Batch],
        now: UnixMillis,
    ) -> Result<Vec<Result<Taken, Refused>>, StoreError> {
        if self.open_keys.len() > MAX_OPEN_KEYS {
            self.open_keys.clear();
        }
        let transaction = self.database.begin_write().map_err(disk("written"))?;
        let mut answers = Vec::with_capacity(batches.len());
        let mut states = HashMap::new();
        let mut next_slot = self.next_slot;
        for batch in batches {
            let source = *batch.signed().envelope().source.as_bytes();
            let state =
                states.entry(source).or_insert_with(|| self.states.get(&source).cloned().unwrap_or_default());
            let taken = take_one(
                &transaction,
                &self.reader,
                (&mut self.open_keys, &*self.entropy),
                batch,
                state,
                (&mut next_slot, now),
            )?;
            if let Err(Refused { trouble: Some(kind), .. }) = &taken {
                state.note(*kind, now);
            }
            answers.push(taken);
        }
        {
            let mut sources = transaction.open_table(SOURCES).map_err(disk("written"))?;
            for (source, state) in &states {
                let json =
                    serde_json::to_vec(state).map_err(|error| StoreError::Damaged(error.to_string()))?;
                sources.insert(source, json.as_slice()).map_err(disk("written"))?;
            }
        }
        transaction.commit().map_err(disk("written"))?;
        self.states.extend(states);
        self.next_slot = next_slot;
        Ok(answers)
    }

    /// Remembers that something was wrong with a source that none of its batches shows.
    pub fn note(&mut self, source: &Hash, kind: Kind, now: UnixMillis) -> Result<(), StoreError> {
        let mut state = self.state(source).cloned().unwrap_or_default();
        state.note(kind, now);
        let transaction = self.database.begin_write().map_err(disk("written"))?;
        {
            let mut sources = transaction.open_table(SOURCES).map_err(disk("written"))?;
            let json = serde_json::to_vec(&state).map_err(|error| StoreError::Damaged(error.to_string()))?;
            sources.insert(source.as_bytes(), json.as_slice()).map_err(disk("written"))?;
        }
        transaction.commit().map_err(disk("written"))?;
        self.states.insert(*source.as_bytes(), state);
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

    /// Remembers where the leaves of a run of slots are in the log. The run begins at the first one that was not placed.
    pub fn placed(&mut self, first_slot: u64, count: u64, first_index: LeafIndex) -> Result<(), StoreError> {
        let transaction = self.database.begin_write().map_err(disk("written"))?;
        {
            let mut placed = transaction.open_table(PLACED).map_err(disk("written"))?;
            placed.insert(first_slot, (count, first_index.get())).map_err(disk("written"))?;
            let mut leaves = transaction.open_table(LEAVES).map_err(disk("written"))?;
            leaves.insert(first_index.get(), (count, first_slot)).map_err(disk("written"))?;
        }
        transaction.commit().map_err(disk("written"))?;
        self.next_unplaced = self.next_unplaced.max(first_slot.saturating_add(count));
        Ok(())
    }
}

/// Judges one batch, and writes what is new of it.
fn take_one(
    transaction: &WriteTransaction,
    reader: &Reader,
    (open_keys, entropy): (&mut HashMap<KeyName, DataKey>, &dyn Entropy),
    batch: &Batch,
    state: &mut State,
    (next_slot, now): (&mut u64, UnixMillis),
) -> Result<Result<Taken, Refused>, StoreError> {
    let (signed, envelope) = (batch.signed(), batch.signed().envelope());
    let source = envelope.source.as_bytes();
    let name = (source, envelope.epoch, envelope.number);
    let mut batches = transaction.open_table(BATCHES).map_err(disk("written"))?;
    let known = batches.get(name).map_err(disk("read"))?.map(|record| BatchRecord::decode(record.value()));
    let known = known.map(|known| known.ok_or_else(|| StoreError::Damaged("a batch".into()))).transpose()?;
    let place = match judge(state, signed, known.as_ref().map(|known| known.hash)) {
        Err(refused) => return Ok(Err(refused)),
        Ok(Verdict::New(place)) => place,
        Ok(Verdict::Repeated) => {
            let known = known.ok_or_else(|| StoreError::Damaged("a batch".into()))?;
            let BatchRecord { first_slot, count, ingested, .. } = known;
            return Ok(Ok(Taken { first_slot, count, ingested, repeated: true }));
        }
    };
    let ingested = now.0 / 1_000;
    let taken = Taken { first_slot: *next_slot, count: envelope.count, ingested, repeated: false };
    state.take(signed, place, now);
    let record = BatchRecord {
        hash: signed.hash(),
        ingested,
        first_slot: taken.first_slot,
        count: taken.count,
        signed: signed.to_wire(),
    };
    batches.insert(name, record.encode().as_slice()).map_err(disk("written"))?;
    let mut events = transaction.open_table(EVENTS).map_err(disk("written"))?;
    let mut slots = transaction.open_table(SLOTS).map_err(disk("written"))?;
    let mut ids = transaction.open_multimap_table(IDS).map_err(disk("written"))?;
    let mut keys = transaction.open_table(KEYS).map_err(disk("written"))?;
    for (at, event) in batch.events().iter().enumerate() {
        let leaf = batch.leaf(at, ingested).ok_or_else(|| StoreError::Damaged("a batch".into()))?;
        let content = event.core_and_identity().ok();
        let (wanted, behind) = seal::key_names(&reader.names, batch, content.as_ref(), ingested);
        for name in wanted.into_iter().chain(behind) {
            let Entry::Vacant(vacant) = open_keys.entry(name) else { continue };
            let stored = keys.get(name.as_bytes()).map_err(disk("read"))?.map(|key| key.value().to_vec());
            vacant.insert(match stored {
                Some(wrapped) => reader.wrapper.unwrap(&name, &wrapped)?,
                None => {
                    let key = DataKey::draw(entropy);
                    let wrapped = reader.wrapper.wrap(&name, &key, entropy)?;
                    keys.insert(name.as_bytes(), wrapped.as_slice()).map_err(disk("written"))?;
                    key
                }
            });
        }
        let key = |name: &KeyName| open_keys.get(name).ok_or(StoreError::NoSecret);
        let sealed = seal::seal((&leaf, event), (envelope.number, *next_slot), wanted, key, entropy)?;
        let name = (source, envelope.epoch, leaf.sequence);
        // `judge` lets no number through that was used; this makes sure of it.
        if events.insert(name, encode_sealed(&sealed).as_slice()).map_err(disk("written"))?.is_some() {
            return Err(StoreError::Damaged(
                "the list of what is missing: it names an event that is there".into(),
            ));
        }
        slots.insert(*next_slot, name).map_err(disk("written"))?;
        if let Some((core, _)) = &content {
            if !core.event_id.is_empty() {
                let id = reader.names.of_event_id(&core.event_id);
                let before = ids.get(id.as_bytes()).map_err(disk("read"))?.next_back();
                let before = before.transpose().map_err(disk("read"))?.map(|slot| slot.value());
                if let Some(slot) = before
                    && is_other(&slots, &events, &keys, reader, slot, event)?
                {
                    state.note(Kind::IdCollision, now);
                }
                ids.insert(id.as_bytes(), *next_slot).map_err(disk("written"))?;
            }
            let now_ms = i64::try_from(now.0).unwrap_or(i64::MAX);
            state.lag_ms = now_ms.saturating_sub(core.occurred_at_ns / 1_000_000);
            if is_skewed(core.occurred_at_ns / 1_000_000, core.observed_at_ns / 1_000_000, now_ms) {
                state.note(Kind::ClockSkew, now);
            }
        }
        *next_slot = next_slot.checked_add(1).ok_or_else(|| StoreError::Damaged("the last slot".into()))?;
    }
    Ok(Ok(taken))
}

/// Whether the event in a slot has other bytes than this one.
fn is_other(
    slots: &impl ReadableTable<u64, (&'static Id, u64, u64)>,
    events: &impl ReadableTable<(&'static Id, u64, u64), &'static [u8]>,
    keys: &impl ReadableTable<&'static [u8; KeyName::LEN], &'static [u8]>,
    reader: &Reader,
    slot: u64,
    event: &Collected,
) -> Result<bool, StoreError> {
    let damaged = || StoreError::Damaged(format!("the event in slot {slot}"));
    let name = slots.get(slot).map_err(disk("read"))?.ok_or_else(damaged)?;
    let stored = events.get(name.value()).map_err(disk("read"))?.ok_or_else(damaged)?;
    let sealed = decode_sealed(stored.value()).ok_or_else(damaged)?;
    let opened = seal::open(&sealed, |name| {
        let wrapped = keys.get(name.as_bytes()).map_err(disk("read"))?;
        Ok::<_, StoreError>(wrapped.map(|key| reader.wrapper.unwrap(name, key.value())).transpose()?)
    })?;
    Ok(Segment::ALL.into_iter().any(|segment| {
        // What was erased can no longer be compared.
        opened.segments[segment.place()].as_ref().is_some_and(|(_, bytes)| bytes != event.bytes(segment))
    }))
}

impl Reader {
    fn over(
        database: Arc<dyn ReadableDatabase + Send + Sync>,
        wrapper: Arc<dyn KeyWrapper>,
    ) -> Result<Reader, StoreError> {
        let transaction = database.begin_read().map_err(disk("read"))?;
        let meta = transaction.open_table(META).map_err(disk("read"))?;
        let format = meta.get("format").map_err(disk("read"))?;
        if format.is_none_or(|format| format.value() != FORMAT) {
            return Err(StoreError::Format);
        }
        let keys = transaction.open_table(KEYS).map_err(disk("read"))?;
        let secret = keys.get(Names::OWN.as_bytes()).map_err(disk("read"))?.ok_or(StoreError::NoSecret)?;
        let names = Arc::new(Names::new(wrapper.unwrap(&Names::OWN, secret.value())?));
        Ok(Reader { database, wrapper, names })
    }

    /// Opens the store of a service that is stopped, and changes nothing in the file.
    pub fn of_stopped(path: &Path, wrapper: Arc<dyn KeyWrapper>) -> Result<Reader, StoreError> {
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES);
        let database: ReadOnlyDatabase = builder.open_read_only(path).map_err(|error| match error {
            DatabaseError::RepairAborted => StoreError::NotClosed,
            error => disk("opened")(error),
        })?;
        Reader::over(Arc::new(database), wrapper)
    }

    fn begin(&self) -> Result<ReadTransaction, StoreError> {
        self.database.begin_read().map_err(disk("read"))
    }

    /// The id under which the log knows the service's leaves.
    pub fn producer(&self) -> Result<[u8; 16], StoreError> {
        let meta = self.begin()?.open_table(META).map_err(disk("read"))?;
        let id = meta.get("producer").map_err(disk("read"))?;
        id.and_then(|id| id.value().try_into().ok()).ok_or(StoreError::Format)
    }

    /// What is kept under names that begin like this, in their order.
    pub fn kept(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let kept = self.begin()?.open_table(KEPT).map_err(disk("read"))?;
        let mut found = Vec::new();
        for row in kept.range(prefix..).map_err(disk("read"))? {
            let (name, value) = row.map_err(disk("read"))?;
            if !name.value().starts_with(prefix) {
                break;
            }
            found.push((name.value().to_owned(), value.value().to_vec()));
        }
        Ok(found)
    }

    /// The leaves of at most `most` slots from `first` on, in order, and of whole batches only: what is appended together is together in
    /// the log.
    pub fn leaves(&self, first: u64, most: usize) -> Result<Vec<[u8; LEAF_BYTES]>, StoreError> {
        let transaction = self.begin()?;
        let slots = transaction.open_table(SLOTS).map_err(disk("read"))?;
        let events = transaction.open_table(EVENTS).map_err(disk("read"))?;
        let (mut leaves, mut of, mut whole) = (Vec::new(), None, 0);
        // One more than is wanted shows whether the last one ends its batch.
        for (expected, row) in (first..).zip(slots.range(first..).map_err(disk("read"))?.take(most + 1)) {
            let (slot, name) = row.map_err(disk("read"))?;
            let damaged = || StoreError::Damaged(format!("the event in slot {expected}"));
            let stored = events.get(name.value()).map_err(disk("read"))?.ok_or_else(damaged)?;
            let (leaf, batch, _) =
                decode_leaf(stored.value()).filter(|_| slot.value() == expected).ok_or_else(damaged)?;
            let (source, epoch, _) = name.value();
            let batch = Some((*source, epoch, batch));
            if batch != of {
                (of, whole) = (batch, leaves.len());
            }
            leaves.push(leaf);
        }
        if leaves.len() > most {
            leaves.truncate(whole);
        }
        Ok(leaves)
    }

    /// The leaves of the batch whose events are in `count` slots from `first` on.
    pub fn leaves_of(&self, first: u64, count: u32) -> Result<Vec<Leaf>, StoreError> {
        let leaves = self.leaves(first, usize::try_from(count).unwrap_or(usize::MAX))?;
        let damaged = || StoreError::Damaged(format!("the leaves from slot {first} on"));
        if leaves.len() as u64 != u64::from(count) {
            return Err(damaged());
        }
        leaves.iter().map(|leaf| Leaf::parse(leaf).map_err(|_| damaged())).collect()
    }

    /// The leaf in a slot.
    pub fn leaf_in(&self, slot: u64) -> Result<Leaf, StoreError> {
        let damaged = || StoreError::Damaged(format!("the event in slot {slot}"));
        let name = self.in_slot(slot)?.ok_or_else(damaged)?;
        let events = self.begin()?.open_table(EVENTS).map_err(disk("read"))?;
        let stored = events.get((name.source.as_bytes(), name.epoch, name.sequence)).map_err(disk("read"))?;
        let (leaf, ..) = decode_leaf(stored.ok_or_else(damaged)?.value()).ok_or_else(damaged)?;
        Leaf::parse(&leaf).map_err(|_| damaged())
    }

    /// The event of this name, compared with its leaf; none if it was never taken.
    pub fn event(&self, name: &EventName) -> Result<Option<(Sealed, Opened)>, StoreError> {
        let transaction = self.begin()?;
        let events = transaction.open_table(EVENTS).map_err(disk("read"))?;
        let keys = transaction.open_table(KEYS).map_err(disk("read"))?;
        open_event(&events, name, |sealed| {
            seal::open(sealed, |name| key_named(&keys, &*self.wrapper, name).map_err(OpenOrStore::Store))
        })
    }

    /// The batch of this name, as its source signed it.
    pub fn batch(&self, source: &Hash, epoch: u64, number: u64) -> Result<Option<BatchRecord>, StoreError> {
        let batches = self.begin()?.open_table(BATCHES).map_err(disk("read"))?;
        let Some(record) = batches.get((source.as_bytes(), epoch, number)).map_err(disk("read"))? else {
            return Ok(None);
        };
        let damaged = || StoreError::Damaged(format!("batch {number} of epoch {epoch} of source {source}"));
        BatchRecord::decode(record.value()).map(Some).ok_or_else(damaged)
    }

    /// Whose a slot is.
    pub fn in_slot(&self, slot: u64) -> Result<Option<EventName>, StoreError> {
        let slots = self.begin()?.open_table(SLOTS).map_err(disk("read"))?;
        let name = slots.get(slot).map_err(disk("read"))?;
        Ok(name.map(|name| {
            let (source, epoch, sequence) = name.value();
            EventName { source: Hash::from_bytes(*source), epoch, sequence }
        }))
    }

    /// The slot whose leaf has this index in the log; none if it is no leaf of this service.
    pub fn slot_of_leaf(&self, index: LeafIndex) -> Result<Option<u64>, StoreError> {
        let leaves = self.begin()?.open_table(LEAVES).map_err(disk("read"))?;
        run_at(&leaves, index.get())
    }

    /// The slot of the first leaf of this service that has this index or a higher one; where the next leaf will be if there is none.
    pub fn slot_from_leaf(&self, index: LeafIndex) -> Result<u64, StoreError> {
        let transaction = self.begin()?;
        let leaves = transaction.open_table(LEAVES).map_err(disk("read"))?;
        if let Some(slot) = run_at(&leaves, index.get())? {
            return Ok(slot);
        }
        let behind =
            leaves.range(index.get()..).map_err(disk("read"))?.next().transpose().map_err(disk("read"))?;
        if let Some((_, run)) = behind {
            return Ok(run.value().1);
        }
        let slots = transaction.open_table(SLOTS).map_err(disk("read"))?;
        Ok(slots.last().map_err(disk("read"))?.map_or(0, |(slot, _)| slot.value() + 1))
    }

    /// The index in the log of a slot's leaf; none as long as it is not known.
    pub fn leaf_of_slot(&self, slot: u64) -> Result<Option<LeafIndex>, StoreError> {
        let placed = self.begin()?.open_table(PLACED).map_err(disk("read"))?;
        Ok(run_at(&placed, slot)?.and_then(LeafIndex::new))
    }

    /// The slots of the events that carry this id, in order; at most [`MAX_SAME_ID`] from `first` on.
    pub fn with_id(&self, id: &str, first: u64) -> Result<Vec<u64>, StoreError> {
        let ids = self.begin()?.open_multimap_table(IDS).map_err(disk("read"))?;
        let name = self.names.of_event_id(id);
        let mut slots = Vec::new();
        for slot in ids.get(name.as_bytes()).map_err(disk("read"))? {
            let slot = slot.map_err(disk("read"))?.value();
            if slot >= first && slots.len() < MAX_SAME_ID {
                slots.push(slot);
            }
        }
        Ok(slots)
    }
}

/// The event of this name, compared with its leaf.
fn open_event(
    events: &impl ReadableTable<(&'static Id, u64, u64), &'static [u8]>,
    name: &EventName,
    open: impl FnOnce(&Sealed) -> Result<Opened, OpenOrStore>,
) -> Result<Option<(Sealed, Opened)>, StoreError> {
    let EventName { source, epoch, sequence } = *name;
    let Some(stored) = events.get((source.as_bytes(), epoch, sequence)).map_err(disk("read"))? else {
        return Ok(None);
    };
    let wrong = |why| StoreError::Event { source_id: source, epoch, sequence, why };
    let sealed = decode_sealed(stored.value()).ok_or_else(|| wrong(OpenError::Leaf))?;
    let opened = open(&sealed).map_err(|error| match error {
        OpenOrStore::Open(why) => wrong(why),
        OpenOrStore::Store(error) => error,
    })?;
    let leaf = &opened.leaf;
    if (leaf.source, leaf.epoch, leaf.sequence) != (source, epoch, sequence) {
        return Err(wrong(OpenError::Leaf));
    }
    Ok(Some((sealed, opened)))
}

/// The data key of this name; none if it was never drawn, or was destroyed.
fn key_named(
    keys: &impl ReadableTable<&'static [u8; KeyName::LEN], &'static [u8]>,
    wrapper: &dyn KeyWrapper,
    name: &KeyName,
) -> Result<Option<DataKey>, StoreError> {
    let wrapped = keys.get(name.as_bytes()).map_err(disk("read"))?;
    Ok(wrapped.map(|key| wrapper.unwrap(name, key.value())).transpose()?)
}

/// In a table of runs: what stands for `at`, which is in the run that begins there or before.
fn run_at(table: &impl ReadableTable<u64, (u64, u64)>, at: u64) -> Result<Option<u64>, StoreError> {
    let Some(row) = table.range(..=at).map_err(disk("read"))?.next_back() else { return Ok(None) };
    let (first, run) = row.map_err(disk("read"))?;
    let (count, to) = run.value();
    let offset = at - first.value();
    Ok((offset < count).then(|| to.saturating_add(offset)))
}

/// Why an event was not opened: by itself, or because its keys could not be read.
enum OpenOrStore {
    Open(OpenError),
    Store(StoreError),
}

impl From<OpenError> for OpenOrStore {
    fn from(error: OpenError) -> OpenOrStore {
        OpenOrStore::Open(error)
    }
}
