//! The store, for those who follow it: event after event in the order of slots, once its leaf is in the log, and the pseudonyms of those
//! whom events name.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use epigraph_core::{Hash, LeafIndex};
use epigraph_event::collected::message;
use epigraph_event::v1::{CoreSegment, IdentitySegment};
use epigraph_event::{Leaf, Segment};
use redb::ReadOnlyTable;

use super::read::{OpenOrStore, Stored, key_named, last_of, run_at};
use super::{EVENTS, EventName, KEYS, PLACED, Reader, SOURCES, StoreError, disk};
use crate::query::Pseudonym;
use crate::query::row::Pseudonyms;
use crate::seal::{Opened, open_segments};
use crate::source::State;
use crate::vault::{Cover, DataKey, KeyName, KeyWrapper};

/// The store as it is at one moment. It holds keys that it opened, and pseudonyms, no longer than it lives.
pub struct Follow {
    reader: Reader,
    placed: ReadOnlyTable<u64, (u64, u64)>,
    events: ReadOnlyTable<u64, &'static [u8]>,
    /// The block that was looked into last: whoever follows asks for one event after the other.
    block: Option<Stored<'static>>,
    keys: Keys,
    pseudonyms: HashMap<KeyName, Option<Pseudonym>>,
}

/// The keys, each unwrapped once: the events of a moment have few days and people.
struct Keys {
    wrapped: ReadOnlyTable<&'static [u8; KeyName::LEN], &'static [u8]>,
    wrapper: Arc<dyn KeyWrapper>,
    open: HashMap<KeyName, Option<Arc<DataKey>>>,
}

impl Keys {
    fn named(&mut self, name: &KeyName) -> Result<Option<Arc<DataKey>>, StoreError> {
        let vacant = match self.open.entry(*name) {
            Entry::Occupied(known) => return Ok(known.get().clone()),
            Entry::Vacant(vacant) => vacant,
        };
        let key = key_named(&self.wrapped, &*self.wrapper, name)?.map(Arc::new);
        Ok(vacant.insert(key).clone())
    }
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
    /// The bytes of both.
    pub bytes: usize,
}

impl Reader {
    /// The store as it is now.
    pub fn follow(&self) -> Result<Follow, StoreError> {
        let transaction = self.begin()?;
        Ok(Follow {
            reader: self.clone(),
            placed: transaction.open_table(PLACED).map_err(disk("read"))?,
            events: transaction.open_table(EVENTS).map_err(disk("read"))?,
            block: None,
            keys: Keys {
                wrapped: transaction.open_table(KEYS).map_err(disk("read"))?,
                wrapper: Arc::clone(&self.wrapper),
                open: HashMap::new(),
            },
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
    /// The event in a slot, what is given back of it compared with its leaf; none as long as it is not known where the leaf is.
    pub fn event(&mut self, slot: u64) -> Result<Option<Placed>, StoreError> {
        let Some(leaf) = run_at(&self.placed, slot)?.and_then(LeafIndex::new) else { return Ok(None) };
        let damaged = |_| StoreError::Damaged(format!("the event in slot {slot}"));
        // The record is most of an event, and hardly anybody who follows looks at it.
        let (name, opened) = self.open(slot, &[Segment::Core, Segment::Identity])?;
        let [core, identity, _] = opened.segments;
        let bytes = [&core, &identity].into_iter().flatten().map(|(_, bytes)| bytes.len()).sum();
        let core = core.map(|(_, core)| message(Segment::Core, &core)).transpose();
        let identity = identity.map(|(_, identity)| message(Segment::Identity, &identity)).transpose();
        Ok(Some(Placed {
            leaf,
            name,
            ingested_s: opened.leaf.ingested,
            core: core.map_err(damaged)?,
            identity: identity.map_err(damaged)?,
            bytes,
        }))
    }

    /// Whether the events in two slots have other bytes; what was erased of one of them can no longer be compared.
    pub fn differ(&mut self, one: u64, other: u64) -> Result<bool, StoreError> {
        let (_, one) = self.open(one, &Segment::ALL)?;
        let (_, other) = self.open(other, &Segment::ALL)?;
        let mut pairs = one.segments.iter().zip(&other.segments);
        Ok(pairs.any(|pair| matches!(pair, (Some((_, one)), Some((_, other))) if one != other)))
    }

    /// Opens these segments of the event in a slot, each compared with its leaf.
    fn open(&mut self, slot: u64, wanted: &[Segment]) -> Result<(EventName, Opened), StoreError> {
        let damaged = || StoreError::Damaged(format!("the event in slot {slot}"));
        let block = match self.block.take() {
            Some(block) if block.has(slot)? => block,
            _ => last_of(self.events.range(..=slot).map_err(disk("read"))?)?.ok_or_else(damaged)?,
        };
        let block = self.block.insert(block);
        let sealed = block.get()?.event(slot).ok_or_else(damaged)?;
        let name = EventName::of(&Leaf::parse(&sealed.leaf).map_err(|_| damaged())?);
        let keys = &mut self.keys;
        let key = |name: &KeyName| keys.named(name).map_err(OpenOrStore::Store);
        let opened = open_segments(&sealed, wanted, key).map_err(|error| error.of(&name))?;
        Ok((name, opened))
    }
}

impl Pseudonyms for Follow {
    type Error = StoreError;

    fn subject(&mut self, tenant: &str, id: &str) -> Result<Option<Pseudonym>, StoreError> {
        let name = self.reader.names.of_subject(tenant, id);
        if let Some(known) = self.pseudonyms.get(&name) {
            return Ok(*known);
        }
        let key = self.keys.named(&name)?;
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
