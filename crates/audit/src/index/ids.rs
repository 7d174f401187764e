//! Under which ids events are found, each id by its keyed name, so that nobody reads from the file which ones are in it. An event may carry the id of
//! another: ids are chosen by sources and by those who call them. What these events are to each other is not known here.
//!
//! Names lie in the order of nothing. In a large table each has a page to itself, which is written for it alone, so the newest are kept in a small table,
//! until they are so many that in the large one neighbours share a page.

use std::ops::Bound;

use redb::{ReadableTable, WriteTransaction};

use super::write::insert;
use super::{Bytes, Definition, Entry, IDS, Index, IndexError, NEW_IDS, damaged, disk};
use crate::vault::Cover;

/// Stands for an event id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct IdName([u8; NAME_BYTES]);

const NAME_BYTES: usize = 16;

/// Slots whose ids are put into the large table together: the small one has some ten megabytes then, and the step that empties it takes some twenty
/// times as long as others.
pub(super) const GATHERED: u64 = 1 << 18;

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
        let transaction = self.begin()?;
        let (first, last) = (name.key(first), name.key(u64::MAX));
        let mut slots = Vec::new();
        // All of one are before all of the other.
        for table in [IDS, NEW_IDS] {
            let ids = transaction.open_table(table).map_err(disk("read"))?;
            let rows = ids.range::<&[u8]>(&first[..]..=&last[..]).map_err(disk("read"))?;
            for row in rows.take(most - slots.len()) {
                slots.push(slot_of(row.map_err(disk("read"))?.0.value())?);
            }
        }
        Ok(slots)
    }

    /// Which of the events that are taken in next carry an id that came before, in the indexes or among themselves; in the order of slots.
    pub fn repeats<'e>(&self, entries: &'e [Entry]) -> Result<Vec<Repeat<'e>>, IndexError> {
        let transaction = self.begin()?;
        let ids = transaction.open_table(IDS).map_err(disk("read"))?;
        let new_ids = transaction.open_table(NEW_IDS).map_err(disk("read"))?;
        let named = entries.iter().filter_map(|entry| Some((entry.id?, entry.slot, entry)));
        let mut named: Vec<_> = named.collect();
        named.sort_unstable_by_key(|(name, slot, _)| (*name, *slot));
        let (mut repeats, mut last) = (Vec::new(), None);
        for (name, slot, entry) in named {
            let before = match last {
                Some((same, before)) if same == name => Some(before),
                _ => match newest(&new_ids, name, slot)? {
                    None => newest(&ids, name, slot)?,
                    before => before,
                },
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

/// Lists the ids of events that follow those which are listed.
pub(super) fn insert_ids(transaction: &WriteTransaction, entries: &[Entry]) -> Result<(), IndexError> {
    let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return Ok(()) };
    let mut new: Vec<_> = entries.iter().filter_map(|entry| Some(entry.id?.key(entry.slot))).collect();
    let gathered = last.slot.saturating_add(1) / GATHERED * GATHERED;
    if first.slot < gathered {
        let mut all = Vec::new();
        let table = transaction.open_table(NEW_IDS).map_err(disk("read"))?;
        for row in table.range::<&[u8]>(..).map_err(disk("read"))? {
            let key = row.map_err(disk("read"))?.0;
            all.push(key.value().try_into().map_err(|_| damaged("the list of ids"))?);
        }
        drop(table);
        transaction.delete_table(NEW_IDS).map_err(disk("written"))?;
        for key in std::mem::take(&mut new) {
            if slot_of(&key)? < gathered { all.push(key) } else { new.push(key) }
        }
        insert_keys(transaction, IDS, all)?;
    }
    insert_keys(transaction, NEW_IDS, new)
}

fn insert_keys(
    transaction: &WriteTransaction,
    table: Definition,
    mut keys: Vec<[u8; KEY_BYTES]>,
) -> Result<(), IndexError> {
    keys.sort_unstable();
    let rows: Vec<(&[u8], &[u8])> = keys.iter().map(|key| (&key[..], &[][..])).collect();
    insert(&mut transaction.open_table(table).map_err(disk("written"))?, &rows)
}
