//! A log that does not grow: what is published is cosigned again before anybody finds it old, and nothing else changes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use epigraph_core::checkpoint::encode_text;
use epigraph_core::cosignature::CosignedAt;
use epigraph_core::note::{self, Parsed, SignatureLine};
use epigraph_core::policy::explain::Age;
use epigraph_core::progress::Proposal;
use epigraph_core::{Checkpoint, Clock, Origin, TreeHead, UnixMillis};
use epigraph_signer::publish::ask::{AskWitness, Reply};
use epigraph_signer::publish::witnesses::{Effect, Event, MAX_PENDING_HEADS};
use epigraph_signer::publish::{Dialled, Handed, HandedIn, Witnessing};
use epigraph_store::file::memory::MemoryDir;
use epigraph_store::published::PublishedStore;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};

use crate::support::*;

/// The clock of everybody here, which goes as the test's timers do.
#[derive(Clone, Copy)]
struct Together(Instant);

impl Clock for Together {
    fn now(&self) -> UnixMillis {
        UnixMillis(NOW.0 + self.0.elapsed().as_millis() as u64)
    }
}

/// Cosigns growth and repeats, at its time.
struct Model {
    place: usize,
    clock: Together,
    held: Mutex<TreeHead>,
    absent: AtomicBool,
    /// Says ever again what it said first.
    stands_still: AtomicBool,
    asked: AtomicU64,
}

impl Model {
    fn new(place: usize, clock: Together) -> Arc<Model> {
        let (held, asked) = (Mutex::new(TreeHead::EMPTY), AtomicU64::new(0));
        let (absent, stands_still) = (AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(Model { place, clock, held, absent, stands_still, asked })
    }
}

impl AskWitness for Model {
    async fn add_checkpoint(&self, origin: &Origin, proposal: Proposal) -> Reply {
        if self.absent.load(Ordering::Relaxed) {
            return Reply::Unavailable("absent".into());
        }
        self.asked.fetch_add(1, Ordering::Relaxed);
        let mut held = self.held.lock().unwrap();
        if proposal.old_size != held.size {
            return Reply::Stale { held: *held, note: Some(note_of(&key(), origin, &held).into_bytes()) };
        }
        *held = proposal.head;
        let now = if self.stands_still.load(Ordering::Relaxed) { NOW } else { self.clock.now() };
        Reply::Cosigned(vec![line(self.place, &held, now)])
    }

    async fn newest(&self, _: &Origin) -> Result<Option<Vec<u8>>, String> {
        panic!("the gate is over")
    }
}

fn line(place: usize, head: &TreeHead, at: UnixMillis) -> SignatureLine {
    witness_key(place).cosign_assertion(&encode_text(&origin(), head), CosignedAt::of(at).unwrap())
}

/// A log of 5 entries, three of four witnesses, and nothing more to publish.
struct Idle {
    clock: Together,
    models: Vec<Arc<Model>>,
    hand: mpsc::Sender<Handed>,
    running: Publishing,
}

impl Idle {
    fn start(dir: &MemoryDir, clock: Together, models: Vec<Arc<Model>>, leaves: u64) -> Idle {
        let tree = Arc::new(tree(20, 20, 1));
        let held = |model: &Arc<Model>| model.held.lock().unwrap().size;
        let dialled = models.iter().map(|model| Dialled {
            place: model.place,
            witness: Arc::clone(model),
            held: held(model),
        });
        let (hand, handed) = mpsc::channel(1);
        let witnesses = Witnessing { handed, clock: Arc::new(clock), ..witnessing(&tree, dialled.collect()) };
        let store = PublishedStore::open(Arc::new(dir.clone())).unwrap().0;
        let running = Publishing::start(&tree, quorum(4, 3), store, witnesses, leaves);
        Idle { clock, models, hand, running }
    }

    fn new() -> (Idle, MemoryDir) {
        let dir = MemoryDir::new();
        drop(PublishedStore::create(Arc::new(dir.clone())).unwrap());
        let clock = Together(Instant::now());
        let models = (0..4).map(|place| Model::new(place, clock)).collect();
        (Idle::start(&dir, clock, models, 5), dir)
    }

    /// The note, and when each witness cosigned it.
    fn note(&self) -> (Vec<u8>, Vec<Option<u64>>) {
        let note = self.running.published.borrow().as_ref().unwrap().note().to_vec();
        let explained = Checkpoint::explain(&note, &quorum(4, 3), None).unwrap();
        let at = explained.witnesses.iter().map(|witness| match witness.answer {
            epigraph_core::policy::explain::Answer::Signed(at) => Some(at.seconds()),
            _ => None,
        });
        let at = at.collect();
        (note, at)
    }

    /// Whether what is published satisfies a reader who asks for cosignatures as young as that.
    fn is_young(&self, seconds: u64) -> bool {
        let age = Age { now: self.clock.now(), seconds };
        Checkpoint::open_within(&self.note().0, &quorum(4, 3), age).is_ok()
    }

    fn absent(&self, places: &[usize], absent: bool) {
        places.iter().for_each(|place| self.models[*place].absent.store(absent, Ordering::Relaxed));
    }

    async fn end(self) -> Vec<Arc<Model>> {
        drop(self.running.offered);
        self.running.task.await.unwrap().unwrap();
        self.models
    }
}

/// Nobody appends for three hours: at each minute of them a reader who takes nothing older than the interval finds it young, under
/// the same text, and after a restart from the disk too. Seen to fail without the refresh, with `fresh` never emptied, and with a
/// restart that does not look at the time.
#[tokio::test(start_paused = true)]
async fn an_idle_log_is_never_shown_with_old_cosignatures() {
    let (idle, dir) = Idle::new();
    sleep(Duration::from_secs(30)).await;
    let (first, _) = idle.note();
    let text = |note: &[u8]| Parsed::parse(note).unwrap().text().to_owned();
    let minutes = async |idle: &Idle, minutes: u64| {
        for minute in 0..minutes {
            sleep(Duration::from_secs(60)).await;
            assert!(idle.is_young(REFRESH.as_secs() + 1), "minute {minute}: {:?}", idle.note().1);
            assert_eq!(text(&idle.note().0), text(&first));
        }
    };
    minutes(&idle, 180).await;
    let (note, at) = idle.note();
    assert_ne!(note, first);
    assert_eq!(at.iter().flatten().count(), 4, "the fourth is attached as well");
    // Once every quarter of an hour, and no more.
    assert!(idle.models.iter().all(|model| (13..=14).contains(&model.asked.load(Ordering::Relaxed))));
    let clock = idle.clock;
    // Down for ten minutes, then for half an hour: what is old at the start is asked for at once.
    let mut models = idle.end().await;
    for down in [600, 1_800] {
        sleep(Duration::from_secs(down)).await;
        let idle = Idle::start(&dir, clock, models, 5);
        sleep(Duration::from_secs(1)).await;
        minutes(&idle, 40).await;
        models = idle.end().await;
    }
}

/// W1, W6: one that is away does not matter. With two away what is published stays as it is, is no younger than it says, and gets
/// young when one is back, by itself. Seen to fail with the quorum of all cosignatures instead of the young ones, which publishes
/// each alone.
#[tokio::test(start_paused = true)]
async fn only_a_young_quorum_is_published() {
    let (idle, _dir) = Idle::new();
    sleep(Duration::from_secs(30)).await;
    idle.absent(&[0], true);
    sleep(REFRESH).await;
    assert!(idle.is_young(60));
    idle.absent(&[1], true);
    let (before, _) = idle.note();
    sleep(2 * REFRESH).await;
    assert_eq!(idle.note().0, before, "two young ones are no quorum");
    assert!(!idle.is_young(REFRESH.as_secs()));
    let status = idle.running.status.borrow().clone();
    assert_eq!((status.late, status.missing), (false, 0), "what is published has its quorum");
    idle.absent(&[1], false);
    sleep(Duration::from_secs(30)).await;
    assert!(idle.is_young(2 * REFRESH.as_secs()), "{:?}", idle.note().1);
    assert_ne!(idle.note().0, before);
    // And it goes on.
    sleep(REFRESH).await;
    assert!(idle.is_young(60));
    idle.end().await;
}

/// K1: witnesses whose clocks stand still say the same again: they are asked once in the interval, and nothing is written. Seen to
/// fail with such an answer not counted among the fresh ones: it is asked for without end.
#[tokio::test(start_paused = true)]
async fn a_repeated_cosignature_is_not_published_and_not_asked_for_again() {
    let (mut idle, _dir) = Idle::new();
    idle.models.iter().for_each(|model| model.stands_still.store(true, Ordering::Relaxed));
    sleep(Duration::from_secs(30)).await;
    let (before, _) = idle.note();
    idle.running.published.mark_unchanged();
    sleep(4 * REFRESH).await;
    assert_eq!((idle.note().0, idle.running.published.has_changed().unwrap()), (before, false));
    assert!(idle.models.iter().all(|model| model.asked.load(Ordering::Relaxed) == 5));
    idle.end().await;
}

/// A witness that dials in is shown the same head again, also after a restart of a log that has nothing new to sign, and what it
/// hands in is taken. Seen to fail with the head not shown again.
#[tokio::test(start_paused = true)]
async fn a_witness_that_dials_in_is_shown_the_head_again() {
    let (mut idle, dir) = Idle::new();
    for restart in [false, true] {
        if restart {
            let (clock, models) = (idle.clock, idle.end().await);
            idle = Idle::start(&dir, clock, models, 5);
        }
        idle.absent(&[3], true);
        sleep(Duration::from_secs(30)).await;
        idle.running.pending.mark_unchanged();
        sleep(REFRESH).await;
        assert!(idle.running.pending.has_changed().unwrap(), "restart: {restart}");
        let shown = idle.running.pending.borrow_and_update().clone().unwrap();
        let (answer, taken) = oneshot::channel();
        let at = idle.clock.now();
        let what = HandedIn::Cosignatures(vec![line(3, &shown.head(), at)]);
        idle.hand.send(Handed { size: shown.head().size, what, answer }).await.unwrap();
        taken.await.unwrap().unwrap();
        sleep(Duration::from_secs(1)).await;
        assert_eq!(idle.note().1[3], Some(at.0 / 1_000), "restart: {restart}");
    }
    idle.end().await;
}

/// While a larger head is on its way the published one is left alone: a witness that holds the larger one could not cosign it.
/// Seen to fail with the published head asked for beside it.
#[test]
fn a_larger_head_is_its_own_refresh() {
    let ours = |leaves| head(&tree(20, 20, 1), leaves);
    let policy = quorum(4, 3);
    let mut machine = asking(policy.clone(), Some(ours(5)), (0..4).map(|place| (place, size(5))));
    let text = encode_text(&origin(), &ours(5));
    let lines: Vec<_> = (0..3).map(|place| line(place, &ours(5), UnixMillis(900_000))).collect();
    let note = note::encode(&text, std::iter::once(&key().sign_assertion(&text)).chain(&lines));
    let published = Checkpoint::open(note.as_bytes(), &policy).unwrap();
    let refresh = || Event::Refresh(Box::new(published.clone()));
    let asked = machine.step(refresh());
    assert_eq!(asked.len(), 4, "{asked:?}");
    let signed = |leaves| {
        let note = note_of(&key(), &origin(), &ours(leaves));
        Event::Signed(Checkpoint::open_log_signed(note.as_bytes(), &policy).unwrap())
    };
    machine.step(signed(8));
    assert_eq!(machine.step(refresh()), []);
    // Those that were asked for the smaller one go on with the larger one.
    for place in 0..4 {
        let effects = machine.step(Event::Replied(place, Reply::Cosigned(vec![line(place, &ours(5), NOW)])));
        assert!(matches!(effects.as_slice(), [Effect::Ask { head, .. }] if *head == ours(8)), "{effects:?}");
    }
    // Nor is one that is not the published one, or no longer.
    for leaves in 9..9 + MAX_PENDING_HEADS as u64 {
        machine.step(signed(leaves));
    }
    assert_eq!(machine.step(refresh()), []);
}
