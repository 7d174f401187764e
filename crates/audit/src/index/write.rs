//! Rows into the indexes: a run of slots at a time, with their counts, their symbols and how far it has come, in one transaction.

use std::collections::{BTreeMap, HashSet};
use std::ops::Bound;
use std::sync::PoisonError;

use epigraph_core::Hash;
use redb::{CursorError, Durability, ReadableTable, Table as Writing, WriteTransaction};

use super::counts::{Counts, Met, met};
use super::ids::{IdName, insert_ids};
use super::key::{self, Key, Kind};
use super::value::{Symbol, encode, words};
use super::word::{Known, Word};
use super::{
    COUNTS, Index, IndexError, LAST, META, NUMBERS, Progress, ROW, ROWS, SOURCES, SYMBOL, SYMBOLS, TENANTS,
    damaged, disk, last_of, numbers_of, progress_of,
};
use crate::query::Row;
use crate::store::EventName;
use crate::vault::Cover;

/// An event as the indexes take it in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// What is held of it; none if what happened was erased: then its source and number are all that is known.
    pub row: Option<Row>,
    /// Its slot.
    pub slot: u64,
    /// Where its leaf is.
    pub leaf: u64,
    /// Its source, epoch and sequence number.
    pub name: EventName,
    /// Under which id it is found; none if it has none, or if what happened was erased.
    pub id: Option<IdName>,
}

/// The dictionary as a step needs it: every word of its rows has a number in it.
struct Numbers<'n> {
    cover: &'n Cover,
    known: &'n mut Known,
}

/// Where the rows of one index go.
struct Target {
    kind: Kind,
    progress: Progress,
    /// Each with the place of its row.
    keys: Vec<(Key, usize)>,
}

/// So many rows that lie side by side are written as a run, of which each page is written once.
const RUN: usize = 8;

impl Index {
    /// Takes events in that follow, slot by slot, what the indexes have: those of them that have come to exactly this place. `durable` says
    /// whether this and all before it must outlive a crash; whatever did not is taken in again.
    pub fn fill(&self, entries: &[Entry], durable: bool) -> Result<(), IndexError> {
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return Ok(()) };
        let mut transaction = self.database.begin_write().map_err(disk("written"))?;
        if durable {
            // Without it the first opening after a crash reads the whole file.
            transaction.set_quick_repair(true);
        } else {
            let kept = transaction.set_durability(Durability::None);
            kept.map_err(|_| damaged("how a transaction is to be kept"))?;
        }
        let mut known = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        let filled = fill(&transaction, (&self.cover, &mut known), entries, (first.slot, last));
        let done = filled.and_then(|()| transaction.commit().map_err(disk("written")));
        if done.is_err() {
            // They may have numbers that were never written.
            *known = Known::default();
        }
        done
    }
}

fn fill(
    transaction: &WriteTransaction,
    (cover, known): (&Cover, &mut Known),
    entries: &[Entry],
    (first, last): (u64, &Entry),
) -> Result<(), IndexError> {
    let mut meta = transaction.open_table(META).map_err(disk("written"))?;
    let next = last_of(&meta)?.map_or(0, |(slot, _, _)| slot.saturating_add(1));
    let is_new = next == first;
    let mut targets = Vec::new();
    for kind in Kind::ALL {
        if let Some(progress) = progress_of(&meta, kind)?
            && progress.next == first
        {
            targets.push(Target { kind, progress, keys: Vec::new() });
        }
    }
    if !(is_new || last.slot < next) || entries.iter().zip(first..).any(|(entry, slot)| entry.slot != slot) {
        return Err(damaged(format!("the order of slots at {first}")));
    }
    known.settle();
    let mut numbers = Numbers { cover, known };
    // Only whoever is the first to meet an event gives numbers.
    numbers.learn(transaction, entries, is_new)?;
    let mut values = Vec::new();
    for row in entries.iter().filter_map(|entry| entry.row.as_ref()) {
        let tenant = numbers.of(Word::Text(&row.tenant))?;
        let value = encode(row, |word| numbers.of(word))?;
        let place = key::of_row(tenant, row.occurred_at_ns);
        let value = cover.seal((ROW, row.leaf.get()), &place, &value).map_err(|_| damaged("a row"))?;
        for target in &mut targets {
            target.take(row, tenant, values.len(), &mut numbers)?;
        }
        values.push(value);
    }
    if is_new {
        count_tenants(transaction, &mut numbers, entries)?;
        count_sources(transaction, entries)?;
        insert_ids(transaction, entries)?;
        let EventName { source, epoch, sequence } = last.name;
        let numbers = [epoch, sequence, last.slot, last.leaf].map(u64::to_be_bytes).concat();
        let value = [source.as_bytes(), numbers.as_slice()].concat();
        meta.insert(&LAST[..], value.as_slice()).map_err(disk("written"))?;
    }
    for mut target in targets {
        target.write(transaction, &values)?;
        target.progress.next = last.slot.saturating_add(1);
        let progress = target.progress.encode();
        meta.insert(target.kind.as_str().as_bytes(), &progress[..]).map_err(disk("written"))?;
    }
    Ok(())
}

impl Numbers<'_> {
    fn of(&mut self, word: Word<'_>) -> Result<u32, IndexError> {
        self.known.get(word).ok_or_else(|| damaged("the list of words of an event"))
    }

    /// Finds the number of each word of these events, and gives one to those that have none. All at once, because they lie far from each
    /// other in the dictionary: so they are met in its order.
    fn learn(
        &mut self,
        transaction: &WriteTransaction,
        entries: &[Entry],
        gives: bool,
    ) -> Result<(), IndexError> {
        let (mut met, mut unknown) = (HashSet::new(), Vec::new());
        for word in entries.iter().filter_map(|entry| entry.row.as_ref()).flat_map(words) {
            if self.known.get(word).is_none() && met.insert(Symbol::from(word)) {
                unknown.push(Symbol::from(word));
            }
        }
        let name = |symbol: &Symbol| self.cover.name(&symbol.word().bytes());
        let mut named: Vec<_> = unknown.iter().map(name).zip(0_usize..).collect();
        named.sort_unstable();
        let mut numbers = transaction.open_table(NUMBERS).map_err(disk("written"))?;
        let mut found = vec![None; unknown.len()];
        for (name, at) in &named {
            let number = numbers.get(&name[..]).map_err(disk("read"))?;
            found[*at] = number.map(|number| number_of(number.value())).transpose()?;
        }
        let mut symbols = transaction.open_table(SYMBOLS).map_err(disk("written"))?;
        let last = symbols.last().map_err(disk("read"))?;
        let last = last.map(|(number, _)| number_of(number.value())).transpose()?;
        let mut next = last.map_or(Some(0), |last| last.checked_add(1));
        let (mut all, mut new) = (Vec::with_capacity(found.len()), Vec::new());
        for (symbol, found) in unknown.iter().zip(&found) {
            let number = match *found {
                Some(number) => number,
                None if gives => {
                    let number = next.ok_or_else(|| damaged("the last number of the dictionary"))?;
                    next = number.checked_add(1);
                    let sealed = self.cover.seal((SYMBOL, number.into()), &[], &symbol.word().bytes());
                    new.push((
                        number.to_be_bytes(),
                        sealed.map_err(|_| damaged("a word of the dictionary"))?,
                    ));
                    number
                }
                None => return Err(damaged("the dictionary: it lacks a word of an event that was taken in")),
            };
            self.known.insert(symbol.word(), number);
            all.push(number);
        }
        let new: Vec<_> = new.iter().map(|(number, sealed)| (&number[..], sealed.as_slice())).collect();
        insert(&mut symbols, &new)?;
        for (name, at) in named.iter().filter(|(_, at)| found[*at].is_none()) {
            numbers.insert(&name[..], &all[*at].to_be_bytes()[..]).map_err(disk("written"))?;
        }
        Ok(())
    }
}

fn number_of(bytes: &[u8]) -> Result<u32, IndexError> {
    bytes.try_into().map(u32::from_be_bytes).map_err(|_| damaged("the dictionary"))
}

impl Target {
    /// Adds the keys of a row.
    fn take(
        &mut self,
        row: &Row,
        tenant: u32,
        place: usize,
        numbers: &mut Numbers<'_>,
    ) -> Result<(), IndexError> {
        let at = (row.occurred_at_ns, row.leaf.get());
        let mut add = |by: &[u8]| self.keys.push((Key::new(tenant, by, at), place));
        match self.kind {
            Kind::Time => add(&[]),
            Kind::Actor => {
                for actor in row.actors() {
                    add(&numbers.of(Word::Pseudonym(&actor))?.to_be_bytes());
                }
            }
            Kind::Resource => {
                for thing in row.things() {
                    add(&numbers.of(Word::Pseudonym(&thing))?.to_be_bytes());
                }
            }
            Kind::Request => {
                for id in row.requests() {
                    add(&key::of_request(numbers.cover, &id));
                }
            }
            Kind::Outcome => add(&key::of_outcome(row.result, numbers.of(Word::Text(&row.action))?)),
        }
        Ok(())
    }

    /// Writes them, in the order of their keys.
    fn write(&mut self, transaction: &WriteTransaction, values: &[Vec<u8>]) -> Result<(), IndexError> {
        self.keys.sort_unstable();
        let value = |place: &usize| values.get(*place).map_or(&[][..], Vec::as_slice);
        let mut rows = transaction.open_table(ROWS[self.kind.place()]).map_err(disk("written"))?;
        let mut counts = transaction.open_table(COUNTS[self.kind.place()]).map_err(disk("written"))?;
        let keys = std::mem::take(&mut self.keys);
        for group in keys.chunk_by(|(one, _), (other, _)| one.stem() == other.stem()) {
            let Some((first, _)) = group.first() else { continue };
            let (stem, mut new) = (first.stem(), Counts::default());
            for (key, place) in group {
                let bytes = key.bytes().len() + value(place).len();
                new.add(key.rest_ns(), bytes);
                self.progress.rows += 1;
                self.progress.bytes += bytes as u64;
            }
            let group: Vec<_> = group.iter().map(|(key, place)| (key.bytes(), value(place))).collect();
            let before = if self.kind.counts_one() { Met::More } else { met(&rows, stem)? };
            insert(&mut rows, &group)?;
            match before {
                Met::None if group.len() == 1 => {}
                Met::None => self.insert_counts(&mut counts, stem, &new)?,
                Met::One(rest_ns, bytes) => {
                    new.add(rest_ns, bytes);
                    self.insert_counts(&mut counts, stem, &new)?;
                }
                Met::More => self.count(&mut counts, stem, new)?,
            }
        }
        Ok(())
    }

    /// Adds to what is counted of a stem.
    fn count(
        &mut self,
        counts: &mut Writing<'_, &'static [u8], &'static [u8]>,
        stem: &[u8],
        mut new: Counts,
    ) -> Result<(), IndexError> {
        let Some(mut counted) = counts.get_mut(stem).map_err(disk("written"))? else {
            if !self.kind.counts_one() {
                return Err(damaged("the counts"));
            }
            return self.insert_counts(counts, stem, &new);
        };
        let before = counted.value();
        new.merge(&Counts::decode(before).ok_or_else(|| damaged("the counts"))?);
        let bytes = new.encode();
        self.progress.bytes = self.progress.bytes.saturating_sub(before.len() as u64);
        self.progress.bytes += bytes.len() as u64;
        // In its place it is written only where its page does not grow by that: a page that does is not split there.
        if bytes.len() == before.len() {
            return counted.insert(bytes.as_slice()).map_err(disk("written"));
        }
        drop(counted);
        counts.insert(stem, bytes.as_slice()).map_err(disk("written"))?;
        Ok(())
    }

    fn insert_counts(
        &mut self,
        counts: &mut Writing<'_, &'static [u8], &'static [u8]>,
        stem: &[u8],
        new: &Counts,
    ) -> Result<(), IndexError> {
        let bytes = new.encode();
        self.progress.bytes += (stem.len() + bytes.len()) as u64;
        counts.insert(stem, bytes.as_slice()).map_err(disk("written"))?;
        Ok(())
    }
}

/// Writes rows, which are in the order of their keys, and none of which is there.
pub(super) fn insert(
    rows: &mut Writing<'_, &'static [u8], &'static [u8]>,
    mut left: &[(&[u8], &[u8])],
) -> Result<(), IndexError> {
    while left.len() >= RUN {
        // Up to the next row that is there.
        let taken = insert_run(rows, left)?;
        left = &left[taken..];
        if taken < RUN {
            break;
        }
    }
    for (key, value) in left {
        if rows.insert(*key, *value).map_err(disk("written"))?.is_some() {
            return Err(damaged("the list of leaves, of words or of ids: one was taken in twice"));
        }
    }
    Ok(())
}

/// Writes rows as far as no other lies between them; how many these are.
fn insert_run(
    rows: &mut Writing<'_, &'static [u8], &'static [u8]>,
    run: &[(&[u8], &[u8])],
) -> Result<usize, IndexError> {
    let Some((first, _)) = run.first() else { return Ok(0) };
    let mut cursor = rows.lower_bound_mut(Bound::Included(*first)).map_err(disk("written"))?;
    let mut taken = 0;
    for (key, value) in run {
        match cursor.insert_before(*key, *value) {
            Ok(()) => taken += 1,
            Err(CursorError::UnorderedKey) => break,
            Err(error) => return Err(disk("written")(error)),
        }
    }
    cursor.close().map_err(disk("written"))?;
    Ok(taken)
}

/// Counts the events of each day and tenant.
fn count_tenants(
    transaction: &WriteTransaction,
    numbers: &mut Numbers<'_>,
    entries: &[Entry],
) -> Result<(), IndexError> {
    let mut new = BTreeMap::<_, u64>::new();
    for row in entries.iter().filter_map(|entry| entry.row.as_ref()) {
        let (day, _) = key::day_and_rest(row.occurred_at_ns);
        *new.entry((day, numbers.of(Word::Text(&row.tenant))?)).or_default() += 1;
    }
    let mut tenants = transaction.open_table(TENANTS).map_err(disk("written"))?;
    for ((day, tenant), count) in new {
        let stem = key::stem(day, tenant, &[]);
        let before = tenants.get(stem.as_slice()).map_err(disk("read"))?;
        let before = before.map(|before| numbers_of::<1>(before.value()));
        let [before] = before.unwrap_or(Some([0])).ok_or_else(|| damaged("the list of tenants"))?;
        let count = before.saturating_add(count).to_be_bytes();
        tenants.insert(stem.as_slice(), &count[..]).map_err(disk("written"))?;
    }
    Ok(())
}

/// Notes the first and the last sequence number of each source, epoch and day, and how many there are.
fn count_sources(transaction: &WriteTransaction, entries: &[Entry]) -> Result<(), IndexError> {
    let mut new = BTreeMap::<(i32, Hash, u64), [u64; 3]>::new();
    for entry in entries {
        let Some(row) = &entry.row else { continue };
        let (day, _) = key::day_and_rest(row.occurred_at_ns);
        let EventName { source, epoch, sequence } = entry.name;
        let [first, last, count] = new.entry((day, source, epoch)).or_insert([u64::MAX, 0, 0]);
        (*first, *last, *count) = ((*first).min(sequence), (*last).max(sequence), *count + 1);
    }
    let mut sources = transaction.open_table(SOURCES).map_err(disk("written"))?;
    for ((day, source, epoch), [first, last, count]) in new {
        let key = [&key::day_bytes(day)[..], source.as_bytes(), &epoch.to_be_bytes()].concat();
        let before = sources.get(key.as_slice()).map_err(disk("read"))?;
        let before = before.map(|before| numbers_of::<3>(before.value()));
        let before =
            before.unwrap_or(Some([u64::MAX, 0, 0])).ok_or_else(|| damaged("the list of sources"))?;
        let now = [first.min(before[0]), last.max(before[1]), count.saturating_add(before[2])];
        let now = now.map(u64::to_be_bytes).concat();
        sources.insert(key.as_slice(), now.as_slice()).map_err(disk("written"))?;
    }
    Ok(())
}
