//! Events in blocks: given back whatever their size and however their batches came, and no two in one place.

use epigraph_core::LeafIndex;
use epigraph_event::chain::Tip;
use epigraph_event::v1::BodySegment;
use epigraph_event::{Batch, Collected, Event, Segment};
use epigraph_store::file::fault::{Fault, Operation, Outcome};
use redb::{ReadableDatabase, ReadableTable, ReadableTableMetadata};

use super::faults::{Disk, NOW, source};
use super::{EVENTS, EventName, META, Run, Store, StoreError};
use crate::record::MAX_BLOCK_BYTES;
use crate::source::Gap;
use crate::tests::Counting;

/// An event whose record has so many bytes.
fn event(bytes: usize) -> Collected {
    let body = BodySegment { record: vec![7; bytes], ..BodySegment::default() };
    Event { body, ..Event::default() }.seal(&Counting::default()).unwrap()
}

/// Batches of events of these sizes, one behind the other.
fn batches(sizes: &[&[usize]]) -> Vec<Batch> {
    let mut tip = Tip::default();
    let sign = |sizes: &&[usize]| {
        let events = sizes.iter().map(|size| event(*size)).collect();
        let batch = Batch::sign(&source(), &tip, events, NOW).unwrap();
        tip = Tip::after(batch.signed());
        batch
    };
    sizes.iter().map(sign).collect()
}

fn take(store: &mut Store, batch: &Batch) -> u64 {
    store.take(std::slice::from_ref(batch), NOW).unwrap().remove(0).unwrap().first_slot
}

fn name(sequence: u64) -> EventName {
    EventName { source: source().vkey().id(), epoch: 0, sequence }
}

/// Small, as large as a block, larger, with the record beside the event, and batches of none, one and several blocks, in an order in which
/// a gap is filled. Broken to see it fail: the block of an event that does not fit written one slot later, the last block of a batch not
/// written, a block's end looked for in the next one.
#[test]
fn events_of_every_size_are_given_back_from_their_blocks() {
    let many = [3_000; 40];
    let sizes: [&[usize]; 6] = [
        &[10, 60_000, 10],
        &[],
        &many,
        &[70_000, 300_000, 1, 300_000],
        &[64_000, 64_000, 2_000, 2_000],
        &[5],
    ];
    let batches = batches(&sizes);
    let mut store = Disk::new().open(1).unwrap();
    let mut slots = Vec::new();
    let mut leaves = Vec::new();
    for at in [0, 1, 4, 3, 2, 5] {
        let (batch, first) = (&batches[at], take(&mut store, &batches[at]));
        let envelope = batch.signed().envelope();
        for (place, event) in batch.events().iter().enumerate() {
            slots.push((first + place as u64, envelope.first_sequence + place as u64, event));
            leaves.push((at, batch.leaf(place, NOW.0 / 1_000).unwrap().encode()));
        }
    }
    let reader = store.reader();
    assert_eq!(store.slots().0, slots.len() as u64);
    for (slot, sequence, event) in &slots {
        assert_eq!(reader.in_slot(*slot).unwrap(), Some(name(*sequence)));
        let (sealed, opened) = reader.event(&name(*sequence)).unwrap().unwrap();
        assert_eq!((sealed.slot, opened.record.as_deref()), (*slot, event.record()));
        for (segment, opened) in Segment::ALL.into_iter().zip(&opened.segments) {
            assert_eq!(opened.as_ref().unwrap().1, event.bytes(segment), "{segment} of event {sequence}");
        }
    }
    let end = slots.len() as u64;
    assert_eq!((reader.in_slot(end).unwrap(), reader.event(&name(end)).unwrap()), (None, None));
    // Leaves by any number, of whole batches.
    for first in 0..=leaves.len() {
        for most in 0..=leaves.len() + 1 {
            let mut expected = &leaves[first..];
            if let Some((next, _)) = expected.get(most) {
                expected = &expected[..most];
                while expected.last().is_some_and(|(batch, _)| batch == next) {
                    expected = &expected[..expected.len() - 1];
                }
            }
            let expected: Vec<_> = expected.iter().map(|(_, leaf)| *leaf).collect();
            assert_eq!(reader.leaves(first as u64, most).unwrap(), expected, "{most} from {first}");
        }
    }
    // Whoever follows gets them in the order of slots.
    store.placed(0, end, LeafIndex::new(7).unwrap()).unwrap();
    let mut follow = reader.follow().unwrap();
    for (slot, sequence, event) in &slots {
        let placed = follow.event(*slot).unwrap().unwrap();
        assert_eq!((placed.leaf.get(), placed.name.sequence), (slot + 7, *sequence));
        assert_eq!(placed.core.as_ref(), Some(event.core()));
    }
    // What is stored is what was counted on.
    let transaction = store.database.begin_read().unwrap();
    let blocks = transaction.open_table(EVENTS).unwrap();
    let mut lengths: Vec<_> = blocks.iter().unwrap().map(|row| row.unwrap().1.value().len()).collect();
    lengths.retain(|length| *length > MAX_BLOCK_BYTES);
    assert_eq!(lengths.len(), 3, "{lengths:?}");
    assert!(blocks.len().unwrap() > 9);
}

/// The list of what is missing is believed by nobody alone: a batch whose numbers are there is not taken a second time. Broken to see it
/// fail: the question for the run that ends behind the first number, left out.
#[test]
fn a_number_that_is_there_is_not_taken_again_whatever_the_list_of_gaps_says() {
    let sent = batches(&[&[1, 1], &[1, 1, 1], &[1, 1]]);
    for (first, end) in [(0, 2), (1, 4), (2, 3), (4, 6), (6, 7)] {
        let disk = Disk::new();
        let mut store = disk.open(1).unwrap();
        for batch in &sent {
            take(&mut store, batch);
        }
        // Numbers of another chain, which are all there.
        let tip = Tip { number: 9, sequence: first, ..Tip::default() };
        let events = (first..end).map(|_| event(2)).collect();
        let again = Batch::sign(&source(), &tip, events, NOW).unwrap();
        let state = store.states.get_mut(source().vkey().id().as_bytes()).unwrap();
        state.next_number = 20;
        state.gaps.push(Gap { epoch: 0, first: 0, end: 100 });
        let taken = store.take(&[again], NOW);
        assert!(matches!(taken, Err(StoreError::Damaged(_))), "{first} to {end}: {taken:?}");
        drop(store);
        assert_eq!(disk.open(1).unwrap().slots().0, 7);
    }
}

/// Leaves are remembered with the batches that come behind them, under one sync: both or neither. Broken to see it fail: two commits.
#[test]
fn what_the_log_confirmed_and_what_comes_next_are_durable_together() {
    let sent = batches(&[&[1, 1, 1], &[1, 1, 1]]);
    let healthy = Disk::new();
    let mut store = healthy.open(1).unwrap();
    take(&mut store, &sent[0]);
    let run = Run { first_slot: 0, count: 3, first_index: LeafIndex::new(5).unwrap() };
    let write = |disk: &Disk| disk.open(1)?.write(&sent[1..], &[run], NOW).map(drop);
    let had = healthy.faults.operations().len();
    store.write(&sent[1..], &[run], NOW).unwrap();
    let operations = healthy.faults.operations();
    let syncs = operations[had..].iter().filter(|operation| **operation == Operation::Sync).count();
    assert_eq!((syncs, store.slots()), (1, (6, 3)));
    let clean = Disk::new();
    take(&mut clean.open(1).unwrap(), &sent[0]);
    let mut after = [0, 0];
    for nth in 0..healthy.faults.operations().len() {
        let disk = clean.copy();
        let outcome = [Outcome::NotApplied, Outcome::Applied, Outcome::Torn(700)][nth % 3];
        disk.faults.inject(Fault { operation: None, nth, outcome, crash: true });
        let _ = write(&disk);
        disk.power_cut(nth as u64);
        match disk.open(1).unwrap().slots() {
            (3, 0) => after[0] += 1,
            (6, 3) => after[1] += 1,
            other => panic!("{nth} {outcome:?}: {other:?}"),
        }
    }
    assert!(after.iter().all(|count| *count > 0), "{after:?}");
}

/// Where a block is missing nothing ends: whoever comes there is told. Broken to see it fail: what is behind the last block not asked for.
#[test]
fn a_block_that_is_missing_is_an_error_and_no_end() {
    let disk = Disk::new();
    let mut store = disk.open(1).unwrap();
    for batch in &batches(&[&[1, 1], &[1, 1], &[1]]) {
        take(&mut store, batch);
    }
    store.placed(0, 5, LeafIndex::new(0).unwrap()).unwrap();
    let transaction = store.database.begin_write().unwrap();
    transaction.open_table(EVENTS).unwrap().remove(2).unwrap();
    transaction.commit().unwrap();
    let reader = store.reader();
    let damaged =
        |error: Option<StoreError>| assert!(matches!(error, Some(StoreError::Damaged(_))), "{error:?}");
    for first in [0, 1, 2, 3] {
        damaged(reader.leaves(first, 100).err());
    }
    assert_eq!(reader.leaves(4, 100).unwrap().len(), 1);
    damaged(reader.follow().unwrap().event(3).err());
    damaged(reader.leaf_in(2).err());
    assert!(matches!(reader.event(&name(3)), Err(StoreError::Event { sequence: 3, .. })));
}

/// A store of a version that is not known is refused by name, and says what to do. Broken to see it fail: any format taken.
#[test]
fn a_store_of_an_earlier_version_is_refused() {
    for version in ["epigraph-audit-store/v1", "epigraph-audit-store/v2"] {
        let disk = Disk::new();
        let transaction = disk.database().unwrap().begin_write().unwrap();
        transaction.open_table(META).unwrap().insert("format", version.as_bytes()).unwrap();
        transaction.commit().unwrap();
        let refused = disk.open(1).err().unwrap();
        assert!(matches!(refused, StoreError::Format), "{refused}");
        assert!(refused.to_string().contains("one of version 1 or 2"), "{refused}");
    }
}
