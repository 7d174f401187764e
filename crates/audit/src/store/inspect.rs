//! Looking at a whole store without changing it: every event opened and compared with its leaf, every batch with its source's signature
//! and with the one before it, every table with the others. It goes on behind a flaw. Whether the leaves are in the log is asked
//! elsewhere.

use std::collections::{HashMap, HashSet};

use epigraph_core::{Hash, LeafIndex, SourceVKey};
use epigraph_event::Leaf;
use epigraph_event::batch::{Signed, path};
use epigraph_event::chain::{Link, Tip};
use redb::{ReadOnlyTable, ReadTransaction, ReadableTable};

use super::read::{block_of, next_collision, run_at, slot_of};
use super::{
    BATCHES, EVENTS, EventName, Id, KEYS, LEAVES, MAX_OPEN_KEYS, META, PLACED, Reader, SEQUENCES, SOURCES,
    StoreError, disk,
};
use crate::record::{BatchRecord, Block, Sealed};
use crate::seal::{self, OpenError};
use crate::source::{Gap, State};
use crate::vault::{DataKey, KeyName};

/// Flaws that are listed one by one. A disk that fails has no end of them, and nobody reads more.
pub const MAX_FLAWS: usize = 1_000;

/// What was found.
#[derive(Debug, Default)]
pub struct Inspection {
    /// Sources that sent something.
    pub sources: u64,
    /// Batches.
    pub batches: u64,
    /// Events, opened and compared with their leaves as far as they were not erased.
    pub events: u64,
    /// Segments of them that were erased.
    pub erased: u64,
    /// Events whose leaves are not known to be in the log yet.
    pub unplaced: u64,
    /// Everything that is wrong; beyond [`MAX_FLAWS`] it is only counted that there is more.
    pub flaws: Vec<Flaw>,
    /// Whether there are more flaws than are listed.
    pub more: bool,
}

/// One flaw.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Flaw {
    /// The index in the log of the leaf that it concerns, if it is about one event whose leaf is known to be there.
    pub index: Option<LeafIndex>,
    /// What is wrong, and with what.
    pub message: String,
}

/// The tables, as of one moment.
struct Tables {
    events: ReadOnlyTable<u64, &'static [u8]>,
    sequences: ReadOnlyTable<(&'static Id, u64, u64), (u64, u32)>,
    batches: ReadOnlyTable<(&'static Id, u64, u64), &'static [u8]>,
    placed: ReadOnlyTable<u64, (u64, u64)>,
    leaves: ReadOnlyTable<u64, (u64, u64)>,
    sources: ReadOnlyTable<&'static Id, &'static [u8]>,
    keys: ReadOnlyTable<&'static [u8; KeyName::LEN], &'static [u8]>,
    meta: ReadOnlyTable<&'static str, &'static [u8]>,
}

impl Tables {
    fn of(transaction: &ReadTransaction) -> Result<Tables, StoreError> {
        Ok(Tables {
            events: transaction.open_table(EVENTS).map_err(disk("read"))?,
            batches: transaction.open_table(BATCHES).map_err(disk("read"))?,
            sequences: transaction.open_table(SEQUENCES).map_err(disk("read"))?,
            placed: transaction.open_table(PLACED).map_err(disk("read"))?,
            leaves: transaction.open_table(LEAVES).map_err(disk("read"))?,
            sources: transaction.open_table(SOURCES).map_err(disk("read"))?,
            keys: transaction.open_table(KEYS).map_err(disk("read"))?,
            meta: transaction.open_table(META).map_err(disk("read"))?,
        })
    }
}

impl Inspection {
    fn flaw(&mut self, index: Option<LeafIndex>, message: impl Into<String>) {
        match self.flaws.len() < MAX_FLAWS {
            true => self.flaws.push(Flaw { index, message: message.into() }),
            false => self.more = true,
        }
    }
}

impl Reader {
    /// Looks at everything. `key_of` knows the public keys of the sources; `progress` hears how many events were opened.
    pub fn inspect(
        &self,
        key_of: &dyn Fn(&Hash) -> Option<SourceVKey>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Inspection, StoreError> {
        let tables = Tables::of(&self.begin()?)?;
        let mut found = Inspection::default();
        self.inspect_keys(&tables, &mut found)?;
        let end = self.inspect_events(&tables, progress, &mut found)?;
        inspect_places(&tables, end, &mut found)?;
        inspect_sequences(&tables, &mut found)?;
        let ends = inspect_batches(&tables, key_of, &mut found)?;
        inspect_sources(&tables, &ends, &mut found)?;
        Ok(found)
    }

    /// The runs of leaves that the log has confirmed: the index of the first, how many, and the slot of the first.
    pub fn runs(&self) -> Result<Vec<(LeafIndex, u64, u64)>, StoreError> {
        let tables = Tables::of(&self.begin()?)?;
        let mut runs = Vec::new();
        for row in tables.leaves.iter().map_err(disk("read"))? {
            let (first, run) = row.map_err(disk("read"))?;
            let (count, slot) = run.value();
            let first = LeafIndex::new(first.value());
            runs.push((first.ok_or_else(|| StoreError::Damaged("the list of leaves".into()))?, count, slot));
        }
        Ok(runs)
    }

    fn inspect_keys(&self, tables: &Tables, found: &mut Inspection) -> Result<(), StoreError> {
        for row in tables.keys.iter().map_err(disk("read"))? {
            let (name, wrapped) = row.map_err(disk("read"))?;
            let unwrapped =
                KeyName::from_slice(name.value()).map(|name| self.wrapper.unwrap(&name, wrapped.value()));
            if let Some(Err(error)) = unwrapped {
                found.flaw(
                    None,
                    format!("a wrapped key: {error}; what lies under it cannot be opened any more"),
                );
            }
        }
        Ok(())
    }

    /// Returns the slot behind the last event.
    fn inspect_events(
        &self,
        tables: &Tables,
        progress: &mut dyn FnMut(u64),
        found: &mut Inspection,
    ) -> Result<u64, StoreError> {
        let mut open: HashMap<KeyName, Option<DataKey>> = HashMap::new();
        let mut end = 0;
        for row in tables.events.iter().map_err(disk("read"))? {
            let (first, stored) = row.map_err(disk("read"))?;
            let first = first.value();
            if first != end {
                found.flaw(
                    None,
                    format!("the list of slots has a hole: {end} is expected, and {first} is there"),
                );
            }
            let Some(block) = Block::decode(first, stored.value()) else {
                found
                    .flaw(None, format!("the events from slot {first} on cannot be read: they were changed"));
                end = first.saturating_add(1);
                continue;
            };
            end = block.end();
            for slot in first..end {
                found.events += 1;
                progress(found.events);
                let index = run_at(&tables.placed, slot)?.and_then(LeafIndex::new);
                let event =
                    block.event(slot).and_then(|sealed| Some((Leaf::parse(&sealed.leaf).ok()?, sealed)));
                let Some((leaf, sealed)) = event else {
                    found.flaw(index, format!("the event in slot {slot} cannot be read: it was changed"));
                    continue;
                };
                if let Err(why) =
                    self.inspect_event(tables, (&EventName::of(&leaf), &sealed), &mut open, found)?
                {
                    let Leaf { source, epoch, sequence, .. } = leaf;
                    found.flaw(index, format!("event {sequence} of epoch {epoch} of source {source}{why}"));
                }
            }
        }
        Ok(end)
    }

    /// Opens one event; says what is wrong with it.
    fn inspect_event(
        &self,
        tables: &Tables,
        (name, sealed): (&EventName, &Sealed<&[u8]>),
        open: &mut HashMap<KeyName, Option<DataKey>>,
        found: &mut Inspection,
    ) -> Result<Result<(), String>, StoreError> {
        if slot_of(&tables.sequences, name)? != Some(sealed.slot) {
            return Ok(Err(format!(" lies where another event belongs, in slot {}", sealed.slot)));
        }
        if open.len() > MAX_OPEN_KEYS {
            open.clear();
        }
        for (name, _) in &sealed.seals {
            if !open.contains_key(name) {
                let wrapped = tables.keys.get(name.as_bytes()).map_err(disk("read"))?;
                // Of one that cannot be unwrapped it is said where the keys are looked at.
                open.insert(
                    *name,
                    wrapped.and_then(|wrapped| self.wrapper.unwrap(name, wrapped.value()).ok()),
                );
            }
        }
        let opened =
            seal::open::<OpenError, _, _>(sealed, |name| Ok(open.get(name).and_then(Option::as_ref)));
        Ok(match opened {
            Ok(opened) => {
                found.erased += opened.segments.iter().filter(|segment| segment.is_none()).count() as u64;
                Ok(())
            }
            Err(why) => Err(format!(": {why}")),
        })
    }
}

/// Numbers are used once, and all that were taken are there.
fn inspect_sequences(tables: &Tables, found: &mut Inspection) -> Result<(), StoreError> {
    let (mut taken, mut last) = (0_u64, None);
    for row in tables.sequences.iter().map_err(disk("read"))? {
        let (name, run) = row.map_err(disk("read"))?;
        let ((source, epoch, first), (_, count)) = (name.value(), run.value());
        if last.is_some_and(|(of, in_epoch, end)| (of, in_epoch) == (*source, epoch) && first < end) {
            let id = Hash::from_bytes(*source);
            found.flaw(
                None,
                format!("the list of numbers has event {first} of epoch {epoch} of source {id} twice"),
            );
        }
        taken = taken.saturating_add(u64::from(count));
        last = Some((*source, epoch, first.saturating_add(u64::from(count))));
    }
    if taken != found.events {
        found.flaw(None, format!("{taken} events were taken, and {} are there", found.events));
    }
    Ok(())
}

/// What the log confirmed is listed in both directions, and nothing was compared that is not there. `slots` is how many there are.
fn inspect_places(tables: &Tables, slots: u64, found: &mut Inspection) -> Result<(), StoreError> {
    let mut end = 0;
    for row in tables.placed.iter().map_err(disk("read"))? {
        let (slot, run) = row.map_err(disk("read"))?;
        let (slot, (count, index)) = (slot.value(), run.value());
        let back = tables.leaves.get(index).map_err(disk("read"))?.map(|back| back.value());
        if slot != end || back != Some((count, slot)) {
            found.flaw(None, format!("the list of leaves contradicts itself at slot {slot}"));
        }
        end = slot.saturating_add(count);
    }
    if end > slots {
        found.flaw(None, format!("the list of slots ends at {slots}, and that of leaves at {end}"));
    }
    found.unplaced = slots.saturating_sub(end);
    match next_collision(&tables.meta) {
        Ok(next) if next <= slots => {}
        Ok(next) => found.flaw(
            None,
            format!("the ids of events are said to be compared up to slot {next}, and there are {slots}"),
        ),
        Err(error @ StoreError::Damaged(_)) => found.flaw(None, error.to_string()),
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Where the chains end: of each source its newest batch, how many events its batches have, and which are missing.
#[derive(Default)]
struct Ends {
    of: HashMap<Id, (Tip, u64, Vec<Gap>)>,
    /// Of these a batch could not be read or believed, so that nothing follows from the others.
    unsure: HashSet<Id>,
}

fn inspect_batches(
    tables: &Tables,
    key_of: &dyn Fn(&Hash) -> Option<SourceVKey>,
    found: &mut Inspection,
) -> Result<Ends, StoreError> {
    let mut ends = Ends::default();
    for row in tables.batches.iter().map_err(disk("read"))? {
        let (name, stored) = row.map_err(disk("read"))?;
        let (source, epoch, number) = name.value();
        found.batches += 1;
        let id = Hash::from_bytes(*source);
        let what = format!("batch {number} of epoch {epoch} of source {id}");
        let Some(record) = BatchRecord::decode(stored.value()) else {
            found.flaw(None, format!("{what} cannot be read: it was changed"));
            ends.unsure.insert(*source);
            continue;
        };
        let Some(key) = key_of(&id) else {
            found.flaw(
                None,
                format!("{what}: its source is not in the list of sources any more; put it back"),
            );
            ends.unsure.insert(*source);
            continue;
        };
        let signed = match Signed::open(&record.signed, &key) {
            Ok(signed) => signed,
            Err(error) => {
                found.flaw(None, format!("{what}: {error}"));
                ends.unsure.insert(*source);
                continue;
            }
        };
        let envelope = signed.envelope();
        if (envelope.epoch, envelope.number, envelope.count) != (epoch, number, record.count)
            || signed.hash() != record.hash
        {
            found.flaw(None, format!("{what} is another one than is written beside it"));
        }
        match leaves_of(tables, &record)? {
            Some(leaves) => {
                if let Err(why) = are_of(&leaves, &signed, &record) {
                    found.flaw(None, format!("{what}: {why}"));
                }
            }
            None => found.flaw(None, format!("{what}: an event of it is missing or cannot be read")),
        }
        match ends.of.get_mut(source) {
            // What a source did before its first batch here is not known.
            None => {
                ends.of.insert(*source, (Tip::after(&signed), u64::from(envelope.count), Vec::new()));
            }
            Some((tip, events, gaps)) => {
                match tip.link(&signed) {
                    Link::Next | Link::NewEpoch { .. } => {}
                    Link::Gap { epoch, from, to } if from < to => {
                        gaps.push(Gap { epoch, first: from, end: to })
                    }
                    Link::Gap { .. } => {}
                    Link::Earlier | Link::Fork => {
                        found.flaw(None, format!("{what} does not follow the batch before it"));
                    }
                }
                (*tip, *events) = (Tip::after(&signed), events.saturating_add(u64::from(envelope.count)));
            }
        }
    }
    Ok(ends)
}

fn leaves_of(tables: &Tables, record: &BatchRecord) -> Result<Option<Vec<Leaf>>, StoreError> {
    let (mut leaves, mut slot) = (Vec::new(), record.first_slot);
    let end = slot.saturating_add(u64::from(record.count));
    while slot < end {
        let Some(stored) = block_of(&tables.events, slot)? else { return Ok(None) };
        // Of one that cannot be read it is said where the events are looked at.
        let Ok(block) = stored.get() else { return Ok(None) };
        let Some(leaf) = block.leaf(slot).and_then(|leaf| Leaf::parse(leaf).ok()) else { return Ok(None) };
        leaves.push(leaf);
        slot += 1;
    }
    Ok(Some(leaves))
}

/// Whether the leaves are those of the batch, all of them, in order: the path of one event leads to the root over all.
fn are_of(leaves: &[Leaf], signed: &Signed, record: &BatchRecord) -> Result<(), String> {
    let envelope = signed.envelope();
    for (leaf, place) in leaves.iter().zip(0_u64..) {
        let sequence = envelope.first_sequence.saturating_add(place);
        if (leaf.source, leaf.epoch, leaf.sequence) != (envelope.source, envelope.epoch, sequence)
            || (leaf.batch, leaf.ingested) != (signed.hash(), record.ingested)
        {
            return Err(format!("the leaf in the place of event {sequence} is another one's"));
        }
    }
    let Some(first) = leaves.first() else { return Ok(()) };
    let path = path(leaves, 0).ok_or("it has more events than a batch has")?;
    signed
        .verify_path(first.sequence, first.reference, &first.commitments, &path)
        .map_err(|error| error.to_string())
}

/// What is written of each source must be what its batches say.
fn inspect_sources(tables: &Tables, ends: &Ends, found: &mut Inspection) -> Result<(), StoreError> {
    for row in tables.sources.iter().map_err(disk("read"))? {
        let (source, json) = row.map_err(disk("read"))?;
        let id = Hash::from_bytes(*source.value());
        let Ok(state) = serde_json::from_slice::<State>(json.value()) else {
            found.flaw(None, format!("the state of source {id} cannot be read: it was changed"));
            continue;
        };
        found.sources += u64::from(state.seen);
        if ends.unsure.contains(source.value()) {
            continue;
        }
        let Some((tip, events, gaps)) = ends.of.get(source.value()) else {
            if state.seen {
                found.flaw(None, format!("source {id} has sent batches, and none is there"));
            }
            continue;
        };
        if state.tip() != *tip || state.events != *events {
            let State { events: said, next_number, epoch, .. } = state;
            found.flaw(
                None,
                format!(
                    "source {id}: by what is written of it {said} events came, the next batch is {next_number} of epoch {epoch}; by its batches {events}, and {} of epoch {}",
                    tip.number, tip.epoch
                ),
            );
        }
        let unlisted = gaps.iter().find(|gap| state.unlisted_gaps == 0 && !state.gaps.contains(gap));
        if let Some(Gap { epoch, first, end }) = unlisted {
            found.flaw(
                None,
                format!(
                    "source {id}: events {first} to {} of epoch {epoch} are missing, and the list of gaps does not say so",
                    end.saturating_sub(1)
                ),
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use epigraph_core::{SourceKey, UnixMillis};
    use epigraph_event::Batch;
    use epigraph_event::decode::{Context, k8s};
    use epigraph_event::leaf::LEAF_BYTES;
    use redb::{Database, WriteTransaction};
    use zeroize::Zeroizing;

    use super::super::{NEXT_COLLISION, Store};
    use super::*;
    use crate::tests::Counting;
    use crate::vault::{KeyWrapper, LocalWrapper};

    /// A store of two batches of two events, whose leaves are in the log, and one of one event whose leaf is not.
    struct Kept {
        _dir: tempfile::TempDir,
        path: PathBuf,
        wrapper: Arc<dyn KeyWrapper>,
        key: SourceKey,
    }

    impl Kept {
        fn new() -> Kept {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("events.redb");
            let entropy = Arc::new(Counting::default());
            let wrapper: Arc<dyn KeyWrapper> = Arc::new(LocalWrapper::new(Zeroizing::new([3; 32])));
            Store::create(&path, &*wrapper, &*entropy).unwrap();
            let mut store = Store::open(&path, Arc::clone(&wrapper), entropy.clone()).unwrap();
            let key = SourceKey::from_seed("a-source".parse().unwrap(), &Zeroizing::new([7; 32]));
            let context = Context { observed_at: UnixMillis(1_790_000_000_000), ..Context::default() };
            let mut tip = Tip::default();
            for count in [2, 2, 1] {
                let event = || {
                    let decoded = k8s::decode(br#"{"kind":0}"#, &context).remove(0);
                    decoded.unwrap_or_else(|rejected| rejected.into_event(&context)).seal(&*entropy).unwrap()
                };
                let events = (0..count).map(|_| event()).collect();
                let batch = Batch::sign(&key, &tip, events, context.observed_at).unwrap();
                tip = Tip::after(batch.signed());
                assert!(store.take(&[batch], context.observed_at).unwrap().iter().all(Result::is_ok));
            }
            store.placed(0, 4, LeafIndex::new(10).unwrap()).unwrap();
            Kept { _dir: dir, path, wrapper, key }
        }

        fn inspect(&self) -> Inspection {
            let reader = Reader::of_stopped(&self.path, Arc::clone(&self.wrapper)).unwrap();
            let key_of = |id: &Hash| (*id == self.key.vkey().id()).then(|| self.key.vkey().clone());
            reader.inspect(&key_of, &mut |_| {}).unwrap()
        }

        fn change(&self, change: impl FnOnce(&WriteTransaction, &Id)) {
            let transaction = Database::open(&self.path).unwrap().begin_write().unwrap();
            change(&transaction, self.key.vkey().id().as_bytes());
            transaction.commit().unwrap();
        }
    }

    /// Each table is compared with the others. Broken to see it fail: each comparison left out in turn makes one of these pass unnamed.
    #[test]
    fn whatever_is_changed_in_a_table_is_named() {
        let sound = Kept::new().inspect();
        assert_eq!((sound.flaws, sound.more), (Vec::new(), false));
        assert_eq!((sound.sources, sound.batches, sound.events, sound.unplaced), (1, 3, 5, 1));
        type Change = Box<dyn FnOnce(&WriteTransaction, &Id)>;
        let check = |says: &str, change: Change| {
            let kept = Kept::new();
            kept.change(change);
            let flaws = kept.inspect().flaws;
            assert!(flaws.iter().any(|flaw| flaw.message.contains(says)), "{says}: {flaws:?}");
        };
        let block = |change: fn(&mut Vec<u8>)| -> Change {
            Box::new(move |all, _| {
                let mut events = all.open_table(EVENTS).unwrap();
                let mut block = events.get(2).unwrap().unwrap().value().to_vec();
                change(&mut block);
                events.insert(2, block.as_slice()).unwrap();
            })
        };
        for says in ["5 events were taken, and 3 are there", "an event of it is missing", "has a hole: 2 is"]
        {
            check(says, Box::new(|all, _| drop(all.open_table(EVENTS).unwrap().remove(2).unwrap())));
        }
        check("the events from slot 2 on cannot be read", block(|block| block.truncate(block.len() - 1)));
        check(
            "the event in slot 3 cannot be read",
            block(|block| {
                let at = block.len() - 12 - 8;
                block[at] -= 1;
            }),
        );
        check("event 2 of epoch 0 of source", block(|block| block[LEAF_BYTES + KeyName::LEN + 4 + 30] ^= 1));
        // One event in the place of another.
        check(
            "lies where another event belongs, in slot 2",
            Box::new(|all, _| {
                let mut events = all.open_table(EVENTS).unwrap();
                let other = events.get(0).unwrap().unwrap().value().to_vec();
                events.insert(2, other.as_slice()).unwrap();
            }),
        );
        check(
            "lies where another event belongs",
            Box::new(|all, id| drop(all.open_table(SEQUENCES).unwrap().insert((id, 0, 2), (3, 2)).unwrap())),
        );
        check(
            "the list of numbers has event 1 of epoch 0",
            Box::new(|all, id| drop(all.open_table(SEQUENCES).unwrap().insert((id, 0, 1), (3, 1)).unwrap())),
        );
        check(
            "does not follow the batch before it",
            Box::new(|all, id| {
                let mut batches = all.open_table(BATCHES).unwrap();
                let other = batches.get((id, 0, 2)).unwrap().unwrap().value().to_vec();
                batches.insert((id, 0, 3), other.as_slice()).unwrap();
            }),
        );
        check(
            "by its batches 3",
            Box::new(|all, id| drop(all.open_table(BATCHES).unwrap().remove((id, 0, 1)).unwrap())),
        );
        check(
            "events 2 to 3 of epoch 0 are missing, and the list of gaps does not say so",
            Box::new(|all, id| drop(all.open_table(BATCHES).unwrap().remove((id, 0, 1)).unwrap())),
        );
        let record = |change: fn(&mut Vec<u8>)| -> Change {
            Box::new(move |all, id| {
                let mut batches = all.open_table(BATCHES).unwrap();
                let mut record = batches.get((id, 0, 0)).unwrap().unwrap().value().to_vec();
                change(&mut record);
                batches.insert((id, 0, 0), record.as_slice()).unwrap();
            })
        };
        check("cannot be read: it was changed", record(|record| record.truncate(record.len() - 1)));
        // Of a record: its hash, then the time in its leaves; the signature is at the end.
        check("is another one than is written beside it", record(|record| record[0] ^= 1));
        check("the leaf in the place of event 0 is another one's", record(|record| record[32] ^= 1));
        check("signature", record(|record| *record.last_mut().unwrap() ^= 1));
        check(
            "is not in the list of sources any more",
            Box::new(|all, id| {
                let mut batches = all.open_table(BATCHES).unwrap();
                let one = batches.get((id, 0, 0)).unwrap().unwrap().value().to_vec();
                batches.insert((&[9; 32], 0, 0), one.as_slice()).unwrap();
            }),
        );
        check(
            "has sent batches, and none is there",
            Box::new(|all, _| all.open_table(BATCHES).unwrap().retain(|_, _| false).unwrap()),
        );
        check(
            "the list of slots ends at 5, and that of leaves at 13",
            Box::new(|all, _| {
                all.open_table(PLACED).unwrap().insert(4, (9, 14)).unwrap();
                all.open_table(LEAVES).unwrap().insert(14, (9, 4)).unwrap();
            }),
        );
        check(
            "the list of leaves contradicts itself",
            Box::new(|all, _| drop(all.open_table(LEAVES).unwrap().insert(10, (4, 1)).unwrap())),
        );
        let collision = |next: &'static [u8]| -> Change {
            Box::new(move |all, _| drop(all.open_table(META).unwrap().insert(NEXT_COLLISION, next).unwrap()))
        };
        check("compared up to slot 6, and there are 5", collision(&[6, 0, 0, 0, 0, 0, 0, 0]));
        check("the slot of the newest collision of ids cannot be read", collision(&[1]));
        check(
            "a wrapped key",
            Box::new(|all, _| {
                let mut keys = all.open_table(KEYS).unwrap();
                let (name, mut wrapped) = {
                    let last = keys.last().unwrap().unwrap();
                    (*last.0.value(), last.1.value().to_vec())
                };
                wrapped[30] ^= 1;
                keys.insert(&name, wrapped.as_slice()).unwrap();
            }),
        );
        check(
            "the state of source",
            Box::new(|all, id| {
                drop(all.open_table(SOURCES).unwrap().insert(id, b"{".as_slice()).unwrap());
            }),
        );
    }
}
