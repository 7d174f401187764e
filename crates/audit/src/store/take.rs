//! Taking batches in: each judged, its events sealed into blocks, everything about it written in one transaction.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use epigraph_core::{Entropy, LeafIndex, UnixMillis};
use epigraph_event::{Batch, Collected, Leaf};
use redb::{ReadableTable, Table, WriteTransaction};

use super::read::{key_named, run_of};
use super::{
    BATCHES, EVENTS, EventName, Id, KEYS, LEAVES, MAX_OPEN_KEYS, PLACED, Reader, SEQUENCES, SOURCES, Store,
    StoreError, Taken, disk,
};
use crate::record::{BatchRecord, NewBlock};
use crate::seal;
use crate::source::{Kind, Refused, State, Verdict, is_skewed, judge};
use crate::vault::{DataKey, KeyName, Nonces};

/// Where the leaves of a run of slots are in the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// The slot of the first.
    pub first_slot: u64,
    /// How many there are.
    pub count: u64,
    /// The index of the first.
    pub first_index: LeafIndex,
}

impl Store {
    /// Takes batches in, all that are new under one sync. The error is of the store: then none was taken, and it is not known what is on
    /// the disk.
    pub fn take(
        &mut self,
        batches: &[Batch],
        now: UnixMillis,
    ) -> Result<Vec<Result<Taken, Refused>>, StoreError> {
        self.write(batches, &[], now)
    }

    /// Remembers where the leaves of a run of slots are in the log. The run begins at the first one that was not placed.
    pub fn placed(&mut self, first_slot: u64, count: u64, first_index: LeafIndex) -> Result<(), StoreError> {
        self.write(&[], &[Run { first_slot, count, first_index }], UnixMillis(0)).map(drop)
    }

    /// Both, under one sync.
    pub fn write(
        &mut self,
        batches: &[Batch],
        placed: &[Run],
        now: UnixMillis,
    ) -> Result<Vec<Result<Taken, Refused>>, StoreError> {
        if self.open_keys.len() > MAX_OPEN_KEYS {
            self.open_keys.clear();
        }
        let transaction = self.database.begin_write().map_err(disk("written"))?;
        let mut answers = Vec::with_capacity(batches.len());
        let mut states: HashMap<Id, State> = HashMap::new();
        let mut next_slot = self.next_slot;
        if !batches.is_empty() {
            let mut taking = Taking {
                tables: Tables::of(&transaction)?,
                reader: &self.reader,
                open_keys: &mut self.open_keys,
                entropy: &*self.entropy,
                nonces: Nonces::new(&*self.entropy),
                block: NewBlock::default(),
                subjects: HashMap::new(),
                next_slot,
                now,
            };
            for batch in batches {
                let source = *batch.signed().envelope().source.as_bytes();
                let known = || self.states.get(&source).cloned().unwrap_or_default();
                let state = states.entry(source).or_insert_with(known);
                let taken = taking.take(batch, state)?;
                if let Err(Refused { trouble: Some(kind), .. }) = &taken {
                    state.note(*kind, now);
                }
                answers.push(taken);
            }
            next_slot = taking.next_slot;
        }
        write_states(&transaction, &states)?;
        write_runs(&transaction, placed)?;
        transaction.commit().map_err(disk("written"))?;
        self.states.extend(states);
        self.next_slot = next_slot;
        for run in placed {
            self.next_unplaced = self.next_unplaced.max(run.first_slot.saturating_add(run.count));
        }
        Ok(answers)
    }
}

/// Writes where sources stand.
pub(super) fn write_states<'s>(
    transaction: &WriteTransaction,
    states: impl IntoIterator<Item = (&'s Id, &'s State)>,
) -> Result<(), StoreError> {
    let mut sources = transaction.open_table(SOURCES).map_err(disk("written"))?;
    for (source, state) in states {
        let json = serde_json::to_vec(state).map_err(|error| StoreError::Damaged(error.to_string()))?;
        sources.insert(source, json.as_slice()).map_err(disk("written"))?;
    }
    Ok(())
}

fn write_runs(transaction: &WriteTransaction, runs: &[Run]) -> Result<(), StoreError> {
    let mut placed = transaction.open_table(PLACED).map_err(disk("written"))?;
    let mut leaves = transaction.open_table(LEAVES).map_err(disk("written"))?;
    for Run { first_slot, count, first_index } in runs {
        placed.insert(first_slot, (*count, first_index.get())).map_err(disk("written"))?;
        leaves.insert(first_index.get(), (*count, *first_slot)).map_err(disk("written"))?;
    }
    Ok(())
}

/// What a group of batches is written to.
struct Tables<'t> {
    batches: Table<'t, (&'static Id, u64, u64), &'static [u8]>,
    events: Table<'t, u64, &'static [u8]>,
    sequences: Table<'t, (&'static Id, u64, u64), (u64, u32)>,
    keys: Table<'t, &'static [u8; KeyName::LEN], &'static [u8]>,
}

impl<'t> Tables<'t> {
    fn of(transaction: &'t WriteTransaction) -> Result<Tables<'t>, StoreError> {
        Ok(Tables {
            batches: transaction.open_table(BATCHES).map_err(disk("written"))?,
            events: transaction.open_table(EVENTS).map_err(disk("written"))?,
            sequences: transaction.open_table(SEQUENCES).map_err(disk("written"))?,
            keys: transaction.open_table(KEYS).map_err(disk("written"))?,
        })
    }
}

/// A group of batches that is being taken in.
struct Taking<'t, 'b> {
    tables: Tables<'t>,
    reader: &'t Reader,
    open_keys: &'t mut HashMap<KeyName, DataKey>,
    entropy: &'t dyn Entropy,
    nonces: Nonces<'t>,
    block: NewBlock,
    /// Of tenants and people the names of their keys, each made once: they come again and again.
    subjects: HashMap<(&'b str, &'b str), KeyName>,
    next_slot: u64,
    now: UnixMillis,
}

impl<'b> Taking<'_, 'b> {
    /// Judges one batch, and writes what is new of it.
    fn take(&mut self, batch: &'b Batch, state: &mut State) -> Result<Result<Taken, Refused>, StoreError> {
        let (signed, envelope) = (batch.signed(), batch.signed().envelope());
        let damaged = || StoreError::Damaged("a batch".into());
        let name = (envelope.source.as_bytes(), envelope.epoch, envelope.number);
        let known = self.tables.batches.get(name).map_err(disk("read"))?;
        let known =
            known.map(|record| BatchRecord::decode(record.value()).ok_or_else(damaged)).transpose()?;
        let place = match judge(state, signed, known.as_ref().map(|known| known.hash)) {
            Err(refused) => return Ok(Err(refused)),
            Ok(Verdict::New(place)) => place,
            Ok(Verdict::Repeated) => {
                let BatchRecord { first_slot, count, ingested, .. } = known.ok_or_else(damaged)?;
                return Ok(Ok(Taken { first_slot, count, ingested, repeated: true }));
            }
        };
        let ingested = self.now.0 / 1_000;
        let taken = Taken { first_slot: self.next_slot, count: envelope.count, ingested, repeated: false };
        state.take(signed, place, self.now);
        let record = BatchRecord {
            hash: signed.hash(),
            ingested,
            first_slot: taken.first_slot,
            count: taken.count,
            signed: signed.to_wire(),
        };
        self.tables.batches.insert(name, record.encode().as_slice()).map_err(disk("written"))?;
        self.list_run(batch, &taken)?;
        let day = seal::day_name(&self.reader.names, batch, ingested);
        for (at, event) in batch.events().iter().enumerate() {
            let leaf = batch.leaf(at, ingested).ok_or_else(damaged)?;
            self.seal(batch, (&leaf, event), day)?;
            self.look_at(event, state);
        }
        self.end_block(envelope.number)?;
        Ok(Ok(taken))
    }

    /// Lists under which numbers the events of a batch are found.
    fn list_run(&mut self, batch: &Batch, taken: &Taken) -> Result<(), StoreError> {
        let envelope = batch.signed().envelope();
        let Some(more) = taken.count.checked_sub(1) else { return Ok(()) };
        let first =
            EventName { source: envelope.source, epoch: envelope.epoch, sequence: envelope.first_sequence };
        let last = EventName { sequence: first.sequence.saturating_add(u64::from(more)), ..first };
        // `judge` lets no number through that was used; this makes sure of it.
        if run_of(&self.tables.sequences, &last)?.is_some_and(|run| run.end > first.sequence) {
            return Err(StoreError::Damaged(
                "the list of what is missing: it names an event that is there".into(),
            ));
        }
        let run = (taken.first_slot, taken.count);
        self.tables.sequences.insert(first.key(), run).map_err(disk("written"))?;
        Ok(())
    }

    /// Seals an event of a batch.
    fn seal(
        &mut self,
        batch: &'b Batch,
        (leaf, event): (&Leaf, &'b Collected),
        day: KeyName,
    ) -> Result<(), StoreError> {
        let envelope = batch.signed().envelope();
        let (names, subjects) = (&self.reader.names, &mut self.subjects);
        let (wanted, behind) = seal::key_names(event, day, |tenant, id| {
            *subjects.entry((tenant, id)).or_insert_with(|| names.of_subject(tenant, id))
        });
        for name in wanted.iter().chain(&behind) {
            self.open_key(name)?;
        }
        if !self.block.fits(seal::sealed_bytes(event)) {
            self.end_block(envelope.number)?;
        }
        let key = |name: &KeyName| self.open_keys.get(name).ok_or(StoreError::NoSecret);
        seal::seal(&mut self.block, (leaf, event), &wanted, key, &mut self.nonces)?;
        let last = || StoreError::Damaged("the last slot".into());
        self.next_slot = self.next_slot.checked_add(1).ok_or_else(last)?;
        Ok(())
    }

    /// Compares an event's times with the service's.
    fn look_at(&self, event: &Collected, state: &mut State) {
        let core = event.core();
        let now_ms = i64::try_from(self.now.0).unwrap_or(i64::MAX);
        state.lag_ms = now_ms.saturating_sub(core.occurred_at_ns / 1_000_000);
        if is_skewed(core.occurred_at_ns / 1_000_000, core.observed_at_ns / 1_000_000, now_ms) {
            state.note(Kind::ClockSkew, self.now);
        }
    }

    /// Has the key of this name at hand; draws it if there is none yet.
    fn open_key(&mut self, name: &KeyName) -> Result<(), StoreError> {
        let Entry::Vacant(vacant) = self.open_keys.entry(*name) else { return Ok(()) };
        let wrapper = &*self.reader.wrapper;
        let key = match key_named(&self.tables.keys, wrapper, name)? {
            Some(key) => key,
            None => {
                let key = DataKey::draw(self.entropy);
                let wrapped = wrapper.wrap(name, &key, self.entropy)?;
                self.tables.keys.insert(name.as_bytes(), wrapped.as_slice()).map_err(disk("written"))?;
                key
            }
        };
        vacant.insert(key);
        Ok(())
    }

    /// Writes the block that is being made, whose last event is in the slot before the next.
    fn end_block(&mut self, batch: u64) -> Result<(), StoreError> {
        if self.block.is_empty() {
            return Ok(());
        }
        let first = self.next_slot.saturating_sub(u64::from(self.block.count()));
        let before = self.tables.events.insert(first, self.block.encode(batch)).map_err(disk("written"))?;
        if before.is_some() {
            return Err(StoreError::Damaged("the order of slots: an event is behind the last one".into()));
        }
        drop(before);
        self.block.clear();
        Ok(())
    }
}
