//! Events that are pushed: whoever hears that they were taken finds them in the spool, whatever became of the process and its disk.
#![expect(clippy::unwrap_used, reason = "a test ends where its promise is broken")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::Sender;

use epigraph_collector::intake::{self, Command, Pushed, Setup, Taken};
use epigraph_collector::spool::{Limits, Spool, SpoolError};
use epigraph_core::{Entropy, UnixMillis};
use epigraph_event::Context;
use epigraph_event::decode::mapped::{self, Mapping};
use epigraph_event::sensitive::{ALL, Detectors, TokenKey};
use epigraph_store::file::Dir;
use epigraph_store::file::fault::{Fault, FaultDir, Outcome};
use epigraph_store::file::memory::{MemoryDir, by_seed};
use epigraph_store::journal::Config;
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use support::{Still, key};

/// Never twice the same: the id of the spool's files must be in nothing else.
#[derive(Default)]
struct Counting(AtomicU8);

impl Entropy for Counting {
    fn fill(&self, bytes: &mut [u8]) {
        bytes.fill(self.0.fetch_add(1, Ordering::Relaxed));
    }
}

fn entropy() -> Arc<dyn Entropy> {
    Arc::new(Counting::default())
}

fn limits(waiting_bytes: u64) -> Limits {
    Limits { waiting_bytes, files: Config::new(16 * 1024, 8 * 1024).unwrap().reserved() }
}

fn open(dir: Arc<dyn Dir>, waiting_bytes: u64) -> Result<Spool, SpoolError> {
    Spool::open(dir, key().vkey().id(), limits(waiting_bytes), entropy()).map(|(spool, _)| spool)
}

fn disk() -> MemoryDir {
    let disk = MemoryDir::new();
    let files = limits(0).files;
    Spool::create(Arc::new(disk.clone()), key().vkey().id(), files, UnixMillis(1), entropy()).unwrap();
    disk
}

fn started(spool: Spool) -> intake::Intake {
    let setup = Setup {
        key: key(),
        detectors: Detectors::new(TokenKey::from_bytes(Zeroizing::new([3; 32])), &ALL),
        inputs: Vec::new(),
        pushing: vec!["door".into()],
        once: false,
        heartbeat: None,
        clock: Arc::new(Still),
        entropy: Arc::new(Counting(AtomicU8::new(100))),
    };
    intake::start(setup, spool).unwrap()
}

/// Pushes so many events, named from this number on; what became of them, unless they were not taken.
fn push(commands: &Sender<Command>, from: usize, count: usize, repeats: bool) -> Option<Taken> {
    let context = Context::default();
    let decode =
        |n: usize| mapped::decode(format!("{{\"n\":{n}}}").as_bytes(), &Mapping::default(), &context);
    let events = (from..from + count).flat_map(decode).collect();
    let (durable, is_durable) = oneshot::channel();
    commands
        .send(Command::Push(Pushed { events, context: context.clone(), door: 0, repeats, durable }))
        .ok()?;
    is_durable.blocking_recv().ok()
}

/// Broken by hand: answered before the batch was appended, an event is missing after a crash at its sync.
#[test]
fn whatever_fails_what_was_answered_is_there() {
    let story = |dir: Arc<dyn Dir>| {
        let Ok(spool) = open(dir, 1 << 20) else { return 0 };
        let intake = started(spool);
        let mut answered = 0;
        for round in 0..8 {
            match push(&intake.commands, 100 * round, 3, false) {
                Some(taken) => answered += taken.events,
                None => break,
            }
        }
        let _ = intake.commands.send(Command::Stop);
        let _ = intake.ended.blocking_recv();
        answered
    };
    let clean = FaultDir::new(Arc::new(disk()));
    assert_eq!(story(Arc::new(clean.clone())), 24);
    for nth in 0..clean.operations().len() {
        for outcome in [Outcome::NotApplied, Outcome::Applied, Outcome::Torn(512)] {
            let disk = disk();
            let dir = FaultDir::new(Arc::new(disk.clone()));
            dir.inject(Fault { operation: None, nth, outcome, crash: true });
            let answered = story(Arc::new(dir));
            disk.power_cut(by_seed(1));
            let spool = open(Arc::new(disk), 1 << 20)
                .unwrap_or_else(|error| panic!("operation {nth}, {outcome:?}: {error}"));
            let kept = spool.tip().sequence;
            assert!(kept >= answered, "operation {nth}, {outcome:?}: {kept} of {answered} events");
        }
    }
}

/// Broken by hand: without the question for room, everything is taken.
#[test]
fn a_full_spool_takes_nothing_until_something_was_delivered() {
    let intake = started(open(Arc::new(disk()), 20 * 1024).unwrap());
    let taken = (0..100).take_while(|round| push(&intake.commands, 100 * round, 3, false).is_some()).count();
    assert!((1..100).contains(&taken), "{taken}");
    assert_eq!(push(&intake.commands, 0, 1, false), None);
    let durable = intake.progress.borrow().tip;
    assert_eq!(durable.sequence, 3 * taken as u64, "nothing of what was refused is there");
    intake.commands.send(Command::Delivered(durable.number)).unwrap();
    assert_eq!(push(&intake.commands, 0, 1, false), Some(Taken { events: 1, repeated: 0 }));
}

/// Where nothing waits, even what is larger than the spool is taken: it would be refused for ever.
#[test]
fn an_empty_spool_takes_a_push_of_any_size() {
    let intake = started(open(Arc::new(disk()), 8 * 1024).unwrap());
    assert_eq!(push(&intake.commands, 0, 40, false).unwrap().events, 40);
    assert_eq!(push(&intake.commands, 0, 1, false), None);
}

/// Broken by hand: repeats not remembered.
#[test]
fn what_is_sent_again_byte_for_byte_is_the_same_event_where_the_door_says_so() {
    let intake = started(open(Arc::new(disk()), 1 << 20).unwrap());
    let check = |from, count, repeats, events, repeated| {
        assert_eq!(push(&intake.commands, from, count, repeats), Some(Taken { events, repeated }));
    };
    check(0, 5, true, 5, 0);
    check(0, 5, true, 0, 5);
    check(3, 4, true, 2, 2);
    check(0, 5, false, 5, 0);
    assert_eq!(intake.progress.borrow().tip.sequence, 12);
}
