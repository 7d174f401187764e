//! The store, for those who follow it: event after event in the order of slots, once its leaf is in the log, and the pseudonyms of those
//! whom events name.

use std::collections::HashMap;

use epigraph_core::{Hash, LeafIndex};
use epigraph_event::Segment;
use epigraph_event::collected::message;
use epigraph_event::v1::{CoreSegment, IdentitySegment};
use redb::ReadOnlyTable;

use super::{
    EVENTS, EventName, Id, KEYS, PLACED, Reader, SLOTS, SOURCES, StoreError, disk, key_named, open_event,
    run_at,
};
use crate::query::Pseudonym;
use crate::query::row::Pseudonyms;
use crate::source::State;
use crate::vault::{Cover, KeyName};

/// The store as it is at one moment. It holds no key, and pseudonyms no longer than it lives.
pub struct Follow {
    reader: Reader,
    slots: ReadOnlyTable<u64, (&'static Id, u64, u64)>,
    placed: ReadOnlyTable<u64, (u64, u64)>,
    events: ReadOnlyTable<(&'static Id, u64, u64), &'static [u8]>,
    keys: ReadOnlyTable<&'static [u8; KeyName::LEN], &'static [u8]>,
    pseudonyms: HashMap<KeyName, Option<Pseudonym>>,
}

/// An event whose leaf is in the log.
pub struct Placed {
    /// Where its leaf is.
    pub leaf: LeafIndex,
    /// Its source, epoch and sequence number.
    pub name: EventName,
    /// When it was taken, in seconds.
    pub ingested_s: u64,
    /// What happened; none if its day was erased.
    pub core: Option<CoreSegment>,
    /// Who it was; none if that was erased.
    pub identity: Option<IdentitySegment>,
}

impl Reader {
    /// The store as it is now.
    pub fn follow(&self) -> Result<Follow, StoreError> {
        let transaction = self.begin()?;
        Ok(Follow {
            reader: self.clone(),
            slots: transaction.open_table(SLOTS).map_err(disk("read"))?,
            placed: transaction.open_table(PLACED).map_err(disk("read"))?,
            events: transaction.open_table(EVENTS).map_err(disk("read"))?,
            keys: transaction.open_table(KEYS).map_err(disk("read"))?,
            pseudonyms: HashMap::new(),
        })
    }

    /// What covers the indexes that are made of this store.
    pub fn cover(&self) -> Cover {
        self.names.cover()
    }

    /// Where a source stands; none if nothing was ever taken from it.
    pub fn state(&self, source: &Hash) -> Result<Option<State>, StoreError> {
        let sources = self.begin()?.open_table(SOURCES).map_err(disk("read"))?;
        let Some(state) = sources.get(source.as_bytes()).map_err(disk("read"))? else { return Ok(None) };
        let damaged = |_| StoreError::Damaged(format!("the state of source {source}"));
        serde_json::from_slice(state.value()).map(Some).map_err(damaged)
    }
}

impl Follow {
    /// The event in a slot, compared with its leaf; none as long as it is not known where the leaf is.
    pub fn event(&self, slot: u64) -> Result<Option<Placed>, StoreError> {
        let Some(leaf) = run_at(&self.placed, slot)?.and_then(LeafIndex::new) else { return Ok(None) };
        let damaged = || StoreError::Damaged(format!("the event in slot {slot}"));
        let name = self.slots.get(slot).map_err(disk("read"))?.ok_or_else(damaged)?;
        let (source, epoch, sequence) = name.value();
        let name = EventName { source: Hash::from_bytes(*source), epoch, sequence };
        let (_, opened) =
            open_event(&self.events, &self.keys, &*self.reader.wrapper, &name)?.ok_or_else(damaged)?;
        let [core, identity, _] = opened.segments;
        let core = core.map(|(_, core)| message(Segment::Core, &core)).transpose();
        let identity = identity.map(|(_, identity)| message(Segment::Identity, &identity)).transpose();
        Ok(Some(Placed {
            leaf,
            name,
            ingested_s: opened.leaf.ingested,
            core: core.map_err(|_| damaged())?,
            identity: identity.map_err(|_| damaged())?,
        }))
    }
}

impl Pseudonyms for Follow {
    type Error = StoreError;

    fn subject(&mut self, tenant: &str, id: &str) -> Result<Option<Pseudonym>, StoreError> {
        let name = self.reader.names.of_subject(tenant, id);
        if let Some(known) = self.pseudonyms.get(&name) {
            return Ok(*known);
        }
        let key = key_named(&self.keys, &*self.reader.wrapper, &name)?;
        let pseudonym = key.map(|key| key.pseudonym());
        self.pseudonyms.insert(name, pseudonym);
        Ok(pseudonym)
    }

    fn thing(&mut self, tenant: &str, id: &str) -> Result<Option<Pseudonym>, StoreError> {
        Ok(Some(self.reader.names.thing(tenant, id)))
    }

    fn address(&mut self, address: &str) -> Result<Option<Pseudonym>, StoreError> {
        Ok(Some(self.reader.names.address(address)))
    }
}
