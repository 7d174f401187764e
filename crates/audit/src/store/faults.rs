//! The store on disks that fail: each operation in turn, power cuts, flipped bits, and keys that are changed meanwhile.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use epigraph_core::{Clock, SourceKey, UnixMillis};
use epigraph_event::chain::Tip;
use epigraph_event::decode::{Context, cloudtrail};
use epigraph_event::{Batch, Collected};
use epigraph_store::file::fault::{Fault, FaultDir, Operation, Outcome};
use epigraph_store::file::memory::{MemoryDir, by_seed};
use epigraph_store::file::{Dir, File};
use redb::{Database, StorageBackend};
use zeroize::Zeroizing;

use super::rekey::{Rekeyed, in_database};
use super::{EventName, Store, StoreError};
use crate::keeper::{Keeper, MIN_FREE_BYTES, NotTaken};
use crate::tests::Counting;
use crate::vault::{KEY_BYTES, LocalWrapper, WrapError};

pub(super) const NOW: UnixMillis = UnixMillis(1_790_000_000_000);

const FILE: &str = "events.redb";

/// A disk in memory with one file of redb, which fails as it is told.
#[derive(Clone)]
pub(super) struct Disk {
    memory: MemoryDir,
    pub(super) faults: FaultDir,
    /// The file's length as it was last set, and as it was last synced: a `File` of the store cannot be cut.
    length: Arc<(AtomicU64, AtomicU64)>,
}

/// The file as redb sees it.
struct Backend {
    disk: Disk,
    file: Mutex<Box<dyn File>>,
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Backend")
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.length.0.load(Ordering::Relaxed))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let file = self.file.lock().unwrap();
        let there = file.length()?;
        out.fill(0);
        let end = (offset + out.len() as u64).min(there);
        let there = usize::try_from(end.saturating_sub(offset)).unwrap();
        if there == 0 { Ok(()) } else { file.read_at(offset, &mut out[..there]) }
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let (file, before) = (self.file.lock().unwrap(), self.len()?);
        let stale = file.length()?.min(length);
        // What was cut off is zero when the file grows again.
        if before < stale {
            file.write_at(before, &vec![0; usize::try_from(stale - before).unwrap()])?;
        }
        if length > before {
            // Growing takes space.
            file.write_at(length - 1, &[0])?;
        }
        self.disk.length.0.store(length, Ordering::Relaxed);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.lock().unwrap().sync()?;
        self.disk.length.1.store(self.len()?, Ordering::Relaxed);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.lock().unwrap().write_at(offset, data)
    }
}

impl Disk {
    pub(super) fn new() -> Disk {
        let memory = MemoryDir::new();
        let faults = FaultDir::new(Arc::new(memory.clone()));
        let disk = Disk { memory, faults, length: Arc::default() };
        disk.faults.create(FILE).unwrap();
        disk.faults.sync().unwrap();
        Store::fill(&disk.database().unwrap(), &wrapper(1), &Counting::default()).unwrap();
        disk
    }

    /// As it is, under another plan of faults.
    pub(super) fn copy(&self) -> Disk {
        let memory = self.memory.duplicate();
        let faults = FaultDir::new(Arc::new(memory.clone()));
        let length = |length: &AtomicU64| AtomicU64::new(length.load(Ordering::Relaxed));
        let length = Arc::new((length(&self.length.0), length(&self.length.1)));
        Disk { memory, faults, length }
    }

    pub(super) fn database(&self) -> Result<Database, StoreError> {
        let opened = self.faults.open(FILE).map_err(super::disk("opened"))?;
        let backend = Backend { disk: self.clone(), file: Mutex::new(opened) };
        super::carefully(|| super::builder().create_with_backend(backend))
    }

    pub(super) fn open(&self, key: u8) -> Result<Store, StoreError> {
        Store::over(self.database()?, Arc::new(wrapper(key)), Arc::new(Counting::default()))
    }

    /// Nothing fails any more, and of what was not synced something is there.
    pub(super) fn power_cut(&self, seed: u64) {
        self.faults.heal();
        self.memory.power_cut(by_seed(seed));
        let (now, synced) = (self.length.0.load(Ordering::Relaxed), self.length.1.load(Ordering::Relaxed));
        self.length.0.store(if seed.is_multiple_of(2) { now } else { synced }, Ordering::Relaxed);
    }
}

fn wrapper(key: u8) -> LocalWrapper {
    LocalWrapper::new(Zeroizing::new([key; KEY_BYTES]))
}

pub(super) fn source() -> SourceKey {
    SourceKey::from_seed("a-source".parse().unwrap(), &Zeroizing::new([7; 32]))
}

/// An event whose record says its number.
fn event(number: u64) -> Collected {
    let context = Context {
        observed_at: NOW,
        tenant: "a-tenant".into(),
        source: "a-source".into(),
        instance: String::new(),
    };
    let record = format!(
        r#"{{"eventVersion":"1.08","userIdentity":{{"type":"IAMUser","arn":"arn:{0}","userName":"user-{0}"}},"eventTime":"2026-09-21T13:46:40Z","eventSource":"iam.amazonaws.com","eventName":"CreateUser","awsRegion":"us-east-1","sourceIPAddress":"10.0.0.1","userAgent":"x","eventID":"id-{number}","eventType":"AwsApiCall","recipientAccountId":"1"}}"#,
        number % 5,
    );
    let event = cloudtrail::decode(record.as_bytes(), &context).remove(0);
    event.unwrap_or_else(|rejected| rejected.into_event(&context)).seal(&Counting::default()).unwrap()
}

/// A clock that stands.
pub(super) struct Still;

impl Clock for Still {
    fn now(&self) -> UnixMillis {
        NOW
    }
}

/// Batches of three events, one behind the other.
fn batches(count: u64) -> Vec<Batch> {
    let mut tip = Tip::default();
    let mut batches = Vec::new();
    for number in 0..count {
        let events = (0..3).map(|n| event(number * 3 + n)).collect();
        let batch = Batch::sign(&source(), &tip, events, NOW).unwrap();
        tip = Tip::after(batch.signed());
        batches.push(batch);
    }
    batches
}

/// How many events there are, each the one that was signed and in its slot; anything else is a failed test.
fn whole(store: &Store, batches: &[Batch]) -> Result<u64, StoreError> {
    let reader = store.reader();
    let end = store.slots().0;
    for slot in 0..end {
        let name = EventName { source: source().vkey().id(), epoch: 0, sequence: slot };
        assert_eq!(reader.in_slot(slot)?, Some(name));
        let (sealed, opened) = reader.event(&name)?.unwrap_or_else(|| panic!("event {slot} is gone"));
        assert_eq!(sealed.slot, slot);
        let signed = &batches[slot as usize / 3].events()[slot as usize % 3];
        for (segment, opened) in epigraph_event::Segment::ALL.into_iter().zip(&opened.segments) {
            assert_eq!(opened.as_ref().unwrap().1, signed.bytes(segment), "{segment} of event {slot}");
        }
    }
    assert_eq!(reader.in_slot(end)?, None);
    assert_eq!(store.state(&source().vkey().id()).map_or(0, |state| state.events), end);
    Ok(end)
}

/// Takes batches one after the other until one fails; how many were acknowledged, and the error.
fn take_all(store: &mut Store, batches: &[Batch]) -> (u64, Option<StoreError>) {
    for (taken, batch) in (0..).zip(batches) {
        match store.take(std::slice::from_ref(batch), NOW) {
            Ok(answers) => assert!(answers[0].is_ok(), "{answers:?}"),
            Err(error) => return (taken, Some(error)),
        }
    }
    (batches.len() as u64, None)
}

/// F10, F12: whatever operation fails, and however, what was acknowledged is there after the next start, once, and what was not is there as
/// a whole or not at all. Broken to see it fail: the commit's error let go in `take`.
#[test]
fn nothing_acknowledged_is_lost_and_nothing_is_there_twice_whatever_fails() {
    let batches = batches(4);
    let clean = Disk::new();
    let healthy = clean.copy();
    let before = healthy.faults.operations().len();
    assert_eq!(take_all(&mut healthy.open(1).unwrap(), &batches).0, 4);
    let operations = healthy.faults.operations().len() - before;
    assert!(operations > 40, "{operations}");
    let outcomes = [Outcome::NotApplied, Outcome::Applied, Outcome::Torn(700), Outcome::NoSpace];
    for nth in 0..operations {
        // Two of the ways for each operation, and each way for every other one.
        for (place, outcome) in [outcomes[nth % 4], outcomes[(nth + 1) % 4]].into_iter().enumerate() {
            let disk = clean.copy();
            disk.faults.inject(Fault { operation: None, nth, outcome, crash: true });
            let taken = match disk.open(1) {
                Ok(mut store) => {
                    let (taken, error) = take_all(&mut store, &batches);
                    assert!(error.is_some() || taken == 4);
                    taken
                }
                Err(_) => 0,
            };
            let seed = (nth * 2 + place) as u64;
            disk.power_cut(seed);
            let mut store = disk.open(1).unwrap_or_else(|error| panic!("{nth} {outcome:?}: {error}"));
            let there = whole(&store, &batches).unwrap();
            assert!(there == taken * 3 || there == (taken + 1) * 3, "{nth} {outcome:?}: {taken} {there}");
            // The collector sends again what it has no answer to.
            let first = usize::try_from(taken).unwrap();
            for batch in &batches[first..] {
                let answer = store.take(std::slice::from_ref(batch), NOW).unwrap().remove(0).unwrap();
                assert_eq!(answer.first_slot, batch.signed().envelope().first_sequence);
            }
            assert_eq!(whole(&store, &batches).unwrap(), 12);
        }
    }
}

/// A write or a sync that fails ends the thread with its error, nobody is told that something was taken, and nothing more is.
#[tokio::test]
async fn a_failing_disk_ends_the_keeper_and_acknowledges_nothing() {
    let batches = batches(2);
    for operation in [Operation::Write, Operation::Sync] {
        let disk = Disk::new();
        let store = disk.open(1).unwrap();
        let (keeper, failure) = Keeper::start(store, Arc::new(Still), Box::new(|| Ok(u64::MAX))).unwrap();
        let first = keeper.submit(batches[0].clone()).await.unwrap().await.unwrap();
        assert!(first.is_ok(), "{first:?}");
        disk.faults.inject(Fault {
            operation: Some(operation),
            nth: 0,
            outcome: Outcome::NotApplied,
            crash: true,
        });
        let answer = keeper.submit(batches[1].clone()).await.unwrap().await;
        assert!(answer.is_err(), "{operation:?}: {answer:?}");
        let error = failure.await.unwrap();
        assert!(matches!(error, StoreError::Disk { .. }), "{operation:?}: {error}");
        if let Ok(answer) = keeper.submit(batches[1].clone()).await {
            assert!(answer.await.is_err(), "{operation:?}");
        }
        assert_eq!(*keeper.durable().borrow(), 3);
        drop(keeper);
        disk.power_cut(0);
        assert!(whole(&disk.open(1).unwrap(), &batches).unwrap() >= 3);
    }
}

/// Before the disk is full nothing more is taken, by name, and what is there is read; when there is room again it goes on. Broken to see it
/// fail: the question for room left out.
#[tokio::test]
async fn a_disk_that_is_nearly_full_takes_nothing_until_there_is_room() {
    let batches = batches(2);
    let disk = Disk::new();
    let free = Arc::new(AtomicU64::new(MIN_FREE_BYTES));
    let asked = Arc::clone(&free);
    let room = Box::new(move || Ok(asked.load(Ordering::Relaxed)));
    let (keeper, _failure) = Keeper::start(disk.open(1).unwrap(), Arc::new(Still), room).unwrap();
    keeper.submit(batches[0].clone()).await.unwrap().await.unwrap().unwrap();
    free.store(MIN_FREE_BYTES - 1, Ordering::Relaxed);
    assert!(!keeper.has_room());
    assert_eq!(keeper.submit(batches[1].clone()).await.err(), Some(NotTaken::NoSpace));
    let name = EventName { source: source().vkey().id(), epoch: 0, sequence: 2 };
    assert!(keeper.reader().event(&name).unwrap().is_some());
    free.store(MIN_FREE_BYTES, Ordering::Relaxed);
    keeper.submit(batches[1].clone()).await.unwrap().await.unwrap().unwrap();
    assert_eq!(*keeper.durable().borrow(), 6);
}

/// F7 c: a store in which a bit was flipped while it was closed is refused, unless nothing leads to that bit. A seeded sample of the
/// file's bytes, and every byte that is not zero in its first page. Broken to see it fail: opened without the check, a store
/// gave back all but one event, which did not open.
#[test]
fn a_flipped_bit_is_never_another_event() {
    let batches = batches(4);
    let disk = Disk::new();
    take_all(&mut disk.open(1).unwrap(), &batches);
    let content = disk.memory.content(FILE).unwrap();
    let used: Vec<usize> = (0..content.len()).filter(|at| content[*at] != 0).collect();
    let (mut seed, mut places) = (7_u64, used.iter().copied().filter(|at| *at < 512).collect::<Vec<_>>());
    for _ in 0..200 {
        // An LCG: places that look scattered, the same in every run.
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        places.push(used[usize::try_from(seed >> 33).unwrap() % used.len()]);
    }
    let (mut refused, mut harmless) = (0, 0);
    for at in places {
        let copy = disk.copy();
        copy.memory.damage(FILE, at, &[content[at] ^ (1 << (at % 8))]).unwrap();
        match copy.open(1) {
            Err(_) => refused += 1,
            // A page that nothing leads to.
            Ok(store) => {
                assert_eq!(whole(&store, &batches).unwrap(), 12, "byte {at}");
                harmless += 1;
            }
        }
    }
    assert!(refused > 0 && harmless > 0, "{refused} {harmless}");
}

/// F17: after a crash anywhere a store opens under exactly one of two keys, with every event; and doing it again ends it. Broken to see
/// it fail: a commit after each page of keys, with pages of one.
#[test]
fn a_change_of_keys_is_whole_or_did_not_happen() {
    let batches = batches(2);
    let clean = Disk::new();
    take_all(&mut clean.open(1).unwrap(), &batches);
    let leaves = |store: &Store| store.reader().leaves(0, 100).unwrap();
    let before = leaves(&clean.open(1).unwrap());
    let change =
        |disk: &Disk| in_database(&disk.database()?, (&wrapper(1), &wrapper(2)), &Counting::default());
    let healthy = clean.copy();
    let had = healthy.faults.operations().len();
    // The secret, a day, five users, each by its id and by its name.
    assert_eq!(change(&healthy).unwrap(), Rekeyed { keys: 12, before: false });
    assert_eq!(change(&healthy).unwrap(), Rekeyed { keys: 12, before: true });
    let operations = healthy.faults.operations().len() - had;
    let mut opened = [0, 0];
    for nth in 0..operations {
        let outcome = [Outcome::NotApplied, Outcome::Applied, Outcome::Torn(700)][nth % 3];
        let disk = clean.copy();
        disk.faults.inject(Fault { operation: None, nth, outcome, crash: true });
        let _ = change(&disk);
        disk.power_cut(nth as u64);
        let under = [1, 2].map(|key| disk.open(key).map(|store| whole(&store, &batches).unwrap()));
        match &under {
            [Ok(6), Err(StoreError::Wrap(WrapError::NotOpened))] => opened[0] += 1,
            [Err(StoreError::Wrap(WrapError::NotOpened)), Ok(6)] => opened[1] += 1,
            other => panic!("{nth} {outcome:?}: {other:?}"),
        }
        assert_eq!(change(&disk).unwrap().keys, 12);
        // Nothing that was committed to has changed.
        assert_eq!(leaves(&disk.open(2).unwrap()), before);
    }
    assert!(opened.iter().all(|count| *count > 0), "{opened:?}");
}

/// A key that is not the store's changes nothing.
#[test]
fn a_wrong_key_changes_nothing() {
    let disk = Disk::new();
    let wrong = in_database(&disk.database().unwrap(), (&wrapper(3), &wrapper(2)), &Counting::default());
    assert!(matches!(wrong, Err(StoreError::Wrap(WrapError::NotOpened))), "{wrong:?}");
    assert!(disk.open(1).is_ok());
}
