//! Batches that are signed while the one before is written: nothing is told, given away or answered before it is durable, in order.
#![expect(clippy::unwrap_used, reason = "a test ends where its promise is broken")]

mod support;

use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use epigraph_collector::intake::{self, Command, From, Input, Intake, IntakeError, Pushed, Setup, Taken};
use epigraph_collector::pack::Kind;
use epigraph_collector::spool::fresh::Freshest;
use epigraph_collector::spool::{Limits, Progress, Spool, SpoolReader};
use epigraph_core::{Entropy, TreeSize, UnixMillis};
use epigraph_event::Context;
use epigraph_event::batch::MAX_EVENTS;
use epigraph_event::decode::mapped::{self, Mapping};
use epigraph_event::sensitive::{ALL, Detectors, TokenKey};
use epigraph_store::file::fault::{Fault, FaultDir, Outcome};
use epigraph_store::file::memory::{MemoryDir, Survival, by_seed};
use epigraph_store::file::{Dir, File};
use epigraph_store::journal::Config;
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use support::{Still, key};

/// What a test waits at most for what has to come: it ends there if it does not.
const PATIENCE: Duration = Duration::from_secs(60);

/// Batches of the file that is read.
const BATCHES: usize = 12;

/// Events that the random bytes of one asking are enough for.
const EVENTS_AHEAD: usize = 8 * 1024 / (16 + 4 * 32);

/// Never twice the same; it counts how often it was asked.
#[derive(Default)]
struct Counting(Mutex<usize>, Condvar);

impl Counting {
    fn asked(&self) -> usize {
        *self.0.lock().unwrap()
    }

    /// Waits until it was asked for so many events.
    fn wait_for(&self, events: usize) {
        let few = |asked: &mut usize| *asked * EVENTS_AHEAD < events;
        let asked = self.0.lock().unwrap();
        let (asked, late) = self.1.wait_timeout_while(asked, PATIENCE, few).unwrap();
        assert!(!late.timed_out(), "{asked} askings for {events} events");
    }
}

impl Entropy for Counting {
    fn fill(&self, bytes: &mut [u8]) {
        let mut asked = self.0.lock().unwrap();
        *asked += 1;
        for (place, eight) in bytes.chunks_mut(8).enumerate() {
            eight.copy_from_slice(&((*asked << 16) + place).to_be_bytes()[..eight.len()]);
        }
        self.1.notify_all();
    }
}

/// A few batches a file, so that files come and go.
fn limits() -> Limits {
    Limits { waiting_bytes: 64 << 20, files: Config::new(192 << 10, 160 << 10).unwrap().reserved() }
}

fn open(dir: Arc<dyn Dir>) -> Spool {
    Spool::open(dir, key().vkey().id(), limits(), Arc::new(Counting::default())).unwrap().0
}

fn disk() -> MemoryDir {
    let (disk, files) = (MemoryDir::new(), limits().files);
    let entropy = Arc::new(Counting(Mutex::new(1 << 20), Condvar::new()));
    Spool::create(Arc::new(disk.clone()), key().vkey().id(), files, UnixMillis(1), entropy).unwrap();
    disk
}

/// Reads a file to its end.
fn started(spool: Spool, file: Option<&Path>, entropy: Arc<dyn Entropy>) -> Intake {
    let input = |path: &Path| Input {
        from: From::File(path.to_owned()),
        kind: Kind::Json(Box::default()),
        tenant: String::new(),
    };
    let setup = Setup {
        key: key(),
        detectors: Detectors::new(TokenKey::from_bytes(Zeroizing::new([3; 32])), &ALL),
        inputs: file.map(input).into_iter().collect(),
        pushing: vec!["door".into()],
        once: true,
        heartbeat: None,
        clock: Arc::new(Still),
        entropy,
    };
    intake::start(setup, spool).unwrap()
}

fn file() -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    for line in 0..BATCHES * MAX_EVENTS {
        writeln!(file, "{{\"n\":{line}}}").unwrap();
    }
    file
}

/// A disk of memory whose syncs a test can hold up, and which can be full.
#[derive(Clone)]
struct Held {
    inner: MemoryDir,
    is_full: Arc<AtomicBool>,
    holds: Arc<AtomicBool>,
    /// Hears of each file that could not be made, and of each sync that is held up.
    tell: Sender<()>,
    /// Says that a sync may go on, and whether it succeeds.
    go: Arc<Mutex<Receiver<bool>>>,
}

/// The disk, who hears of it, and who lets it go on.
fn held() -> (Held, Receiver<()>, Sender<bool>) {
    let ((tell, told), (let_go, go)) = (channel(), channel());
    let go = Arc::new(Mutex::new(go));
    (Held { inner: disk(), is_full: Arc::default(), holds: Arc::default(), tell, go }, told, let_go)
}

struct HeldFile(Box<dyn File>, Held);

impl Dir for Held {
    fn open(&self, name: &str) -> io::Result<Box<dyn File>> {
        Ok(Box::new(HeldFile(self.inner.open(name)?, self.clone())))
    }
    fn open_read_only(&self, name: &str) -> io::Result<Box<dyn File>> {
        self.inner.open_read_only(name)
    }
    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        if self.is_full.load(Ordering::SeqCst) {
            let _ = self.tell.send(());
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(Box::new(HeldFile(self.inner.create(name)?, self.clone())))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.inner.remove(name)
    }
    fn protect(&self, name: &str) -> io::Result<()> {
        self.inner.protect(name)
    }
    fn is_protected(&self, name: &str) -> io::Result<bool> {
        self.inner.is_protected(name)
    }
    fn list(&self) -> io::Result<Vec<String>> {
        self.inner.list()
    }
    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }
}

impl File for HeldFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buffer)
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, bytes)
    }
    fn sync(&self) -> io::Result<()> {
        if self.1.holds.load(Ordering::SeqCst) {
            let _ = self.1.tell.send(());
            if !self.1.go.lock().unwrap().recv().unwrap_or(false) {
                return Err(io::Error::other("a sync that a test let fail"));
            }
        }
        self.0.sync()
    }
    fn reserve(&self, length: u64) -> io::Result<()> {
        self.0.reserve(length)
    }
    fn length(&self) -> io::Result<u64> {
        self.0.length()
    }
}

/// What comes, if it comes in time.
fn within<T>(coming: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, coming).await.unwrap() })
}

/// Reads the whole file into the spool on this disk: whether it came to the end, how it ended, what may be sent, and what was told.
fn read(dir: Arc<dyn Dir>, file: &Path) -> (bool, Result<(), IntakeError>, Freshest, Progress) {
    let intake = started(open(dir), Some(file), Arc::new(Counting::default()));
    let mut progress = intake.progress.clone();
    // It ends early where something fails.
    let whole = within(progress.wait_for(|progress| progress.ended)).is_ok();
    let _ = intake.commands.send(Command::Stop);
    let result = within(intake.ended).unwrap().map(drop);
    let told = *intake.progress.borrow();
    (whole, result, intake.fresh, told)
}

/// Pushes one event, named by a number; who waits hears what became of it.
fn push(commands: &Sender<Command>, number: usize) -> oneshot::Receiver<Taken> {
    let context = Context::default();
    let events = mapped::decode(format!("{{\"n\":{number}}}").as_bytes(), &Mapping::default(), &context);
    let (durable, is_durable) = oneshot::channel();
    commands.send(Command::Push(Pushed { events, context, door: 0, repeats: true, durable })).unwrap();
    is_durable
}

/// Broken by hand: a batch that is handed over only once the one before is durable is waited for in vain; without a bound on those that
/// are on their way, the whole file is read.
#[test]
fn batches_are_made_while_the_one_before_is_written_and_only_a_few() {
    let (disk, told, go) = held();
    let (entropy, file) = (Arc::new(Counting::default()), file());
    let spool = open(Arc::new(disk.clone()));
    disk.holds.store(true, Ordering::SeqCst);
    let intake = started(spool, Some(file.path()), entropy.clone());
    told.recv_timeout(PATIENCE).unwrap();
    // The first is written, the second handed over, the third read and not signed.
    entropy.wait_for(2 * MAX_EVENTS + 1);
    assert_eq!(intake.progress.borrow().durable, TreeSize::ZERO);
    assert!(intake.fresh.take(TreeSize::ZERO).is_none());
    entropy.wait_for(3 * MAX_EVENTS);
    // Time enough to read all of it.
    assert!(read(Arc::new(self::disk()), file.path()).0);
    let most = (3 * MAX_EVENTS).div_ceil(EVENTS_AHEAD);
    assert!(entropy.asked() <= most, "{} askings", entropy.asked());
    disk.holds.store(false, Ordering::SeqCst);
    go.send(true).unwrap();
    let mut progress = intake.progress.clone();
    let all = within(progress.wait_for(|progress| progress.ended)).unwrap().tip.sequence;
    assert_eq!(all, (BATCHES * MAX_EVENTS) as u64);
}

/// Broken by hand: told of before it was appended, a batch that is given to whoever sends is not in the spool; and where the one who reads
/// does not ask how the writing ended, it says that all is well.
#[test]
fn whatever_fails_what_may_be_sent_is_there_and_nothing_behind_it() {
    let file = file();
    let clean = FaultDir::new(Arc::new(disk()));
    drop(open(Arc::new(clean.clone())));
    let from = clean.operations().len();
    let (whole, result, ..) = read(Arc::new(clean.clone()), file.path());
    assert!(whole && result.is_ok());
    // The opening itself is others' business.
    for nth in from..clean.operations().len() - from {
        for outcome in [Outcome::NotApplied, Outcome::Applied] {
            let (case, disk) = (format!("operation {nth}, {outcome:?}"), disk());
            let dir = FaultDir::new(Arc::new(disk.clone()));
            // What comes after it succeeds: nobody may try.
            dir.inject(Fault { operation: None, nth, outcome, crash: false });
            let (whole, result, fresh, told) = read(Arc::new(dir), file.path());
            assert_eq!(whole, result.is_ok(), "{case}");
            disk.power_cut(by_seed(nth as u64));
            let spool = open(Arc::new(disk.clone()));
            let kept = spool.tip();
            assert!(told.tip.number <= kept.number && kept.number <= told.tip.number + 1, "{case}: {kept:?}");
            let mut reader = SpoolReader::starting_at(Arc::new(disk), key().vkey().id(), TreeSize::ZERO);
            let mut at = TreeSize::ZERO;
            while let Some(batch) = fresh.take(at) {
                assert_eq!(reader.next(spool.progress().durable).unwrap(), Some(batch.encoded), "{case}");
                at = batch.end;
            }
            assert_eq!(at, told.durable, "{case}");
        }
    }
}

/// Broken by hand: answered when it is handed over, a push is answered that is nowhere.
#[test]
fn nobody_is_answered_for_what_is_on_its_way() {
    let (disk, told, go) = held();
    let spool = open(Arc::new(disk.clone()));
    disk.holds.store(true, Ordering::SeqCst);
    let intake = started(spool, None, Arc::new(Counting::default()));
    let first = push(&intake.commands, 1);
    told.recv_timeout(PATIENCE).unwrap();
    let others = [push(&intake.commands, 1), push(&intake.commands, 2)];
    go.send(false).unwrap();
    assert!(within(first).is_err());
    assert!(others.into_iter().all(|other| within(other).is_err()));
    assert!(within(intake.ended).unwrap().is_err());
    disk.inner.power_cut(|_| Survival::Lost);
    assert_eq!(open(Arc::new(disk.inner)).tip().sequence, 0);
}

/// Broken by hand: an order that was heard while the disk was full and not kept; pushes that are taken meanwhile.
#[test]
fn while_the_disk_is_full_nothing_is_taken_and_then_all_goes_on_in_order() {
    let (disk, told, _go) = held();
    let file = file();
    let spool = open(Arc::new(disk.clone()));
    disk.is_full.store(true, Ordering::SeqCst);
    let intake = started(spool, Some(file.path()), Arc::new(Counting::default()));
    // When it has tried twice, everybody knows.
    (0..2).for_each(|_| told.recv_timeout(PATIENCE).unwrap());
    assert!(within(push(&intake.commands, 1)).is_err());
    let before = intake.progress.borrow().tip;
    assert!(before.sequence > 0 && before.sequence < (BATCHES * MAX_EVENTS) as u64, "{before:?}");
    disk.is_full.store(false, Ordering::SeqCst);
    let mut progress = intake.progress.clone();
    within(progress.wait_for(|progress| progress.ended)).unwrap();
    intake.commands.send(Command::Stop).unwrap();
    within(intake.ended).unwrap().unwrap();
    // Opening checks that each follows the one before.
    assert_eq!(open(Arc::new(disk.inner)).tip().sequence, (BATCHES * MAX_EVENTS) as u64);
}

/// Broken by hand: where it waits for a place among those on their way, it is not heard that it should stop, and never ends.
#[test]
fn it_can_be_stopped_while_the_disk_is_full() {
    let (disk, told, _go) = held();
    let file = file();
    let spool = open(Arc::new(disk.clone()));
    disk.is_full.store(true, Ordering::SeqCst);
    let intake = started(spool, Some(file.path()), Arc::new(Counting::default()));
    told.recv_timeout(PATIENCE).unwrap();
    intake.commands.send(Command::Stop).unwrap();
    within(intake.ended).unwrap().unwrap();
    let kept = open(Arc::new(disk.inner)).tip().sequence;
    assert_eq!(kept, intake.progress.borrow().tip.sequence);
}
