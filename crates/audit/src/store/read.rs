//! Reading what is kept: events by their numbers, slots and leaves, and everything about them.

use std::path::Path;
use std::sync::Arc;

use epigraph_core::{Hash, LeafIndex};
use epigraph_event::Leaf;
use epigraph_event::leaf::LEAF_BYTES;
use redb::{
    AccessGuard, Database, DatabaseError, Range, ReadOnlyDatabase, ReadTransaction, ReadableDatabase,
    ReadableTable,
};

use super::{
    BATCHES, CACHE_BYTES, EVENTS, EventName, FORMAT, Id, KEPT, KEYS, LEAVES, META, NEXT_COLLISION, PLACED,
    Reader, SEQUENCES, StoreError, disk,
};
use crate::record::{BatchRecord, Block, Sealed};
use crate::seal::{self, OpenError, Opened};
use crate::vault::{DataKey, KeyName, KeyWrapper, Names};

impl Reader {
    pub(super) fn over(
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

    pub(super) fn begin(&self) -> Result<ReadTransaction, StoreError> {
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
        let events = self.begin()?.open_table(EVENTS).map_err(disk("read"))?;
        let damaged = |slot: u64| StoreError::Damaged(format!("the event in slot {slot}"));
        let (mut leaves, mut of, mut whole) = (Vec::new(), None, 0);
        let mut slot = first;
        while let Some(stored) = block_of(&events, slot)? {
            let block = stored.get()?;
            if block.end() <= slot {
                break;
            }
            let batch = block.leaf(slot).and_then(|leaf| Leaf::parse(leaf).ok());
            let batch = Some(batch.ok_or_else(|| damaged(slot))?.batch);
            if batch != of {
                (of, whole) = (batch, leaves.len());
            }
            for of_block in slot..block.end() {
                // One more than is wanted shows whether the last one ends its batch.
                if leaves.len() == most {
                    leaves.truncate(whole);
                    return Ok(leaves);
                }
                leaves.push(*block.leaf(of_block).ok_or_else(|| damaged(of_block))?);
            }
            slot = block.end();
        }
        if end_of(&events)? > slot { Err(damaged(slot)) } else { Ok(leaves) }
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
        let leaf = self.stored_leaf(slot)?.ok_or_else(damaged)?;
        Leaf::parse(&leaf).map_err(|_| damaged())
    }

    /// The leaf in a slot as it is stored; none if nothing is there that has one.
    pub fn stored_leaf(&self, slot: u64) -> Result<Option<[u8; LEAF_BYTES]>, StoreError> {
        let events = self.begin()?.open_table(EVENTS).map_err(disk("read"))?;
        let Some(block) = block_of(&events, slot)? else { return Ok(None) };
        Ok(block.get()?.leaf(slot).copied())
    }

    /// The event of this name, compared with its leaf; none if it was never taken.
    pub fn event(&self, name: &EventName) -> Result<Option<(Sealed, Opened)>, StoreError> {
        let transaction = self.begin()?;
        let sequences = transaction.open_table(SEQUENCES).map_err(disk("read"))?;
        let Some(slot) = slot_of(&sequences, name)? else { return Ok(None) };
        let events = transaction.open_table(EVENTS).map_err(disk("read"))?;
        let keys = transaction.open_table(KEYS).map_err(disk("read"))?;
        let wrong = || name.is(OpenError::Leaf);
        let block = block_of(&events, slot)?.ok_or_else(wrong)?;
        let sealed = block.get()?.event(slot).ok_or_else(wrong)?;
        let key = |name: &KeyName| key_named(&keys, &*self.wrapper, name).map_err(OpenOrStore::Store);
        let opened = seal::open(&sealed, key).map_err(|error| error.of(name))?;
        if EventName::of(&opened.leaf) != *name {
            return Err(wrong());
        }
        Ok(Some((sealed.to_owned(), opened)))
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
        let events = self.begin()?.open_table(EVENTS).map_err(disk("read"))?;
        match block_of(&events, slot)? {
            Some(block) if block.has(slot)? => {
                let leaf = block.get()?.leaf(slot).and_then(|leaf| Leaf::parse(leaf).ok());
                let damaged = || StoreError::Damaged(format!("the event in slot {slot}"));
                leaf.as_ref().map(EventName::of).map(Some).ok_or_else(damaged)
            }
            _ => Ok(None),
        }
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
        end_of(&transaction.open_table(EVENTS).map_err(disk("read"))?)
    }

    /// The index in the log of a slot's leaf; none as long as it is not known.
    pub fn leaf_of_slot(&self, slot: u64) -> Result<Option<LeafIndex>, StoreError> {
        let placed = self.begin()?.open_table(PLACED).map_err(disk("read"))?;
        Ok(run_at(&placed, slot)?.and_then(LeafIndex::new))
    }
}

/// A block as it is stored.
pub(super) struct Stored<'t> {
    first_slot: u64,
    bytes: AccessGuard<'t, &'static [u8]>,
}

impl Stored<'_> {
    /// The block; an error if there is something else.
    pub(super) fn get(&self) -> Result<Block<'_>, StoreError> {
        let first = self.first_slot;
        let damaged = || StoreError::Damaged(format!("the block of events from slot {first} on"));
        Block::decode(first, self.bytes.value()).ok_or_else(damaged)
    }

    /// Whether a slot is in it.
    pub(super) fn has(&self, slot: u64) -> Result<bool, StoreError> {
        Ok((self.first_slot..self.get()?.end()).contains(&slot))
    }
}

/// The last block that begins in a slot or before it: the one in which the slot is, if there is one.
pub(super) fn block_of<'t>(
    events: &'t impl ReadableTable<u64, &'static [u8]>,
    slot: u64,
) -> Result<Option<Stored<'t>>, StoreError> {
    last_of(events.range(..=slot).map_err(disk("read"))?)
}

/// The last block of these.
pub(super) fn last_of<'t>(
    mut blocks: Range<'t, u64, &'static [u8]>,
) -> Result<Option<Stored<'t>>, StoreError> {
    let row = blocks.next_back().transpose().map_err(disk("read"))?;
    Ok(row.map(|(first, bytes)| Stored { first_slot: first.value(), bytes }))
}

/// The slot behind the last event.
pub(super) fn end_of(events: &impl ReadableTable<u64, &'static [u8]>) -> Result<u64, StoreError> {
    block_of(events, u64::MAX)?.map_or(Ok(0), |block| Ok(block.get()?.end()))
}

/// The slot behind the newest event that was counted as a [`super::Collision`].
pub(super) fn next_collision(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
) -> Result<u64, StoreError> {
    let Some(slot) = meta.get(NEXT_COLLISION).map_err(disk("read"))? else { return Ok(0) };
    let damaged = |_| StoreError::Damaged("the slot of the newest collision of ids".into());
    slot.value().try_into().map(u64::from_le_bytes).map_err(damaged)
}

/// Events of one source and epoch whose numbers and slots follow each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Sequences {
    /// The number of the first.
    pub(super) first: u64,
    /// The number behind that of the last.
    pub(super) end: u64,
    /// The slot of the first.
    pub(super) first_slot: u64,
}

/// The last run of an event's source and epoch that begins with its number or before it: the one in which the event is, if it was taken.
pub(super) fn run_of(
    sequences: &impl ReadableTable<(&'static Id, u64, u64), (u64, u32)>,
    name: &EventName,
) -> Result<Option<Sequences>, StoreError> {
    let first = EventName { sequence: 0, ..*name };
    let row = sequences.range(first.key()..=name.key()).map_err(disk("read"))?.next_back();
    let Some((key, run)) = row.transpose().map_err(disk("read"))? else { return Ok(None) };
    let ((_, _, first), (first_slot, count)) = (key.value(), run.value());
    Ok(Some(Sequences { first, end: first.saturating_add(u64::from(count)), first_slot }))
}

/// The slot of the event of this name; none if it was never taken.
pub(super) fn slot_of(
    sequences: &impl ReadableTable<(&'static Id, u64, u64), (u64, u32)>,
    name: &EventName,
) -> Result<Option<u64>, StoreError> {
    let run = run_of(sequences, name)?.filter(|run| name.sequence < run.end);
    Ok(run.map(|run| run.first_slot.saturating_add(name.sequence - run.first)))
}

/// The data key of this name; none if it was never drawn, or was destroyed.
pub(super) fn key_named(
    keys: &impl ReadableTable<&'static [u8; KeyName::LEN], &'static [u8]>,
    wrapper: &dyn KeyWrapper,
    name: &KeyName,
) -> Result<Option<DataKey>, StoreError> {
    let wrapped = keys.get(name.as_bytes()).map_err(disk("read"))?;
    Ok(wrapped.map(|key| wrapper.unwrap(name, key.value())).transpose()?)
}

/// In a table of runs: what stands for `at`, which is in the run that begins there or before.
pub(super) fn run_at(
    table: &impl ReadableTable<u64, (u64, u64)>,
    at: u64,
) -> Result<Option<u64>, StoreError> {
    let Some(row) = table.range(..=at).map_err(disk("read"))?.next_back() else { return Ok(None) };
    let (first, run) = row.map_err(disk("read"))?;
    let (count, to) = run.value();
    let offset = at - first.value();
    Ok((offset < count).then(|| to.saturating_add(offset)))
}

/// Why an event was not opened: by itself, or because its keys could not be read.
pub(super) enum OpenOrStore {
    Open(OpenError),
    Store(StoreError),
}

impl From<OpenError> for OpenOrStore {
    fn from(error: OpenError) -> OpenOrStore {
        OpenOrStore::Open(error)
    }
}

impl OpenOrStore {
    /// Said of an event.
    pub(super) fn of(self, name: &EventName) -> StoreError {
        match self {
            OpenOrStore::Open(why) => name.is(why),
            OpenOrStore::Store(error) => error,
        }
    }
}

impl EventName {
    /// The one that a leaf names.
    pub(super) fn of(leaf: &Leaf) -> EventName {
        EventName { source: leaf.source, epoch: leaf.epoch, sequence: leaf.sequence }
    }

    /// As it stands in tables.
    pub(super) fn key(&self) -> (&Id, u64, u64) {
        (self.source.as_bytes(), self.epoch, self.sequence)
    }

    /// Why it cannot be given back.
    fn is(&self, why: OpenError) -> StoreError {
        StoreError::Event { source_id: self.source, epoch: self.epoch, sequence: self.sequence, why }
    }
}
