//! Under which ids events are found, each id by its keyed name, so that nobody reads from the file which ones are in it. An event may carry the id of
//! another: ids are chosen by sources and by those who call them. What these events are to each other is not known here.

use std::ops::Bound;

use redb::WriteTransaction;

use super::write::insert;
use super::{Bytes, Entry, IDS, Index, IndexError, damaged, disk};
use crate::vault::Cover;

/// Stands for an event id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct IdName([u8; NAME_BYTES]);

const NAME_BYTES: usize = 16;

/// The name, and the slot of an event that carries the id.
const KEY_BYTES: usize = NAME_BYTES + 8;

impl IdName {
    /// That of an id; none for an event that has none.
    pub(super) fn of(cover: &Cover, id: &str) -> Option<IdName> {
        (!id.is_empty()).then(|| IdName(cover.name(&[b"id\n", id.as_bytes()].concat())))
    }

    fn key(self, slot: u64) -> [u8; KEY_BYTES] {
        let mut key = [0; KEY_BYTES];
        key[..NAME_BYTES].copy_from_slice(&self.0);
        key[NAME_BYTES..].copy_from_slice(&slot.to_be_bytes());
        key
    }
}

/// An event whose id came before.
#[derive(Clone, Copy, Debug)]
pub struct Repeat<'e> {
    /// The event.
    pub entry: &'e Entry,
    /// The slot of the newest one before it that carries the id.
    pub before: u64,
}

impl Index {
    /// Stands for an event id; none for an event that has none.
    pub fn name_of_id(&self, id: &str) -> Option<IdName> {
        IdName::of(&self.cover, id)
    }

    /// The slots of the events that carry this id, in order: at most so many, from one slot on.
    pub fn with_id(&self, id: &str, first: u64, most: usize) -> Result<Vec<u64>, IndexError> {
        let Some(name) = self.name_of_id(id) else { return Ok(Vec::new()) };
        let ids = self.begin()?.open_table(IDS).map_err(disk("read"))?;
        let (first, last) = (name.key(first), name.key(u64::MAX));
        let rows = ids.range::<&[u8]>(&first[..]..=&last[..]).map_err(disk("read"))?;
        rows.take(most).map(|row| slot_of(row.map_err(disk("read"))?.0.value())).collect()
    }

    /// Which of the events that are taken in next carry an id that came before, in the indexes or among themselves; in the order of slots.
    pub fn repeats<'e>(&self, entries: &'e [Entry]) -> Result<Vec<Repeat<'e>>, IndexError> {
        let ids = self.begin()?.open_table(IDS).map_err(disk("read"))?;
        let named = entries.iter().filter_map(|entry| Some((entry.id?, entry.slot, entry)));
        let mut named: Vec<_> = named.collect();
        named.sort_unstable_by_key(|(name, slot, _)| (*name, *slot));
        let (mut repeats, mut last) = (Vec::new(), None);
        for (name, slot, entry) in named {
            let before = match last {
                Some((same, before)) if same == name => Some(before),
                _ => newest(&ids, name, slot)?,
            };
            repeats.extend(before.map(|before| Repeat { entry, before }));
            last = Some((name, slot));
        }
        repeats.sort_unstable_by_key(|repeat| repeat.entry.slot);
        Ok(repeats)
    }
}

/// The slot of the newest event before one that carries this id.
fn newest(ids: &impl Bytes, name: IdName, before: u64) -> Result<Option<u64>, IndexError> {
    let end = name.key(before);
    let mut cursor = ids.upper_bound(Bound::Excluded(&end[..])).map_err(disk("read"))?;
    let Some((key, _)) = cursor.peek_prev().map_err(disk("read"))? else { return Ok(None) };
    let key = key.value();
    key.starts_with(&name.0).then(|| slot_of(key)).transpose()
}

fn slot_of(key: &[u8]) -> Result<u64, IndexError> {
    let key: &[u8; KEY_BYTES] = key.try_into().map_err(|_| damaged("the list of ids"))?;
    Ok(key[NAME_BYTES..].iter().fold(0, |slot, byte| slot << 8 | u64::from(*byte)))
}

/// Lists the ids of events.
pub(super) fn insert_ids(transaction: &WriteTransaction, entries: &[Entry]) -> Result<(), IndexError> {
    let mut keys: Vec<_> = entries.iter().filter_map(|entry| Some(entry.id?.key(entry.slot))).collect();
    keys.sort_unstable();
    let rows: Vec<(&[u8], &[u8])> = keys.iter().map(|key| (&key[..], &[][..])).collect();
    insert(&mut transaction.open_table(IDS).map_err(disk("written"))?, &rows)
}
