//! The publisher's loop: what is published, when, and what stops it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use epigraph_core::progress::{Conflict, Proposal};
use epigraph_core::proof::{ConsistencyProof, prove_consistency};
use epigraph_core::{Checkpoint, Origin, TreeHead, TreeSize, Verified, note};
use epigraph_rpc::peer::{OpenTermAnswer, SignerHead};
use epigraph_signer::handle::SignerHandle;
use epigraph_signer::publish::{AskError, AskSigner, PublishError, Publisher};
use epigraph_signer::signer::{Answer, Request};
use epigraph_store::file::Dir;
use epigraph_store::file::fault::{Fault, FaultDir, Operation, Outcome};
use epigraph_store::file::memory::MemoryDir;
use epigraph_store::published::{PublishedError, PublishedStore};
use epigraph_store::tree::MemoryTree;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::support::*;

const INTERVAL: Duration = Duration::from_secs(10);

type Script = dyn Fn(usize, &Proposal) -> Result<Answer, AskError> + Send + Sync;

/// A signer that answers by a script, and remembers what it was asked and when.
#[derive(Clone)]
struct Scripted {
    script: Arc<Script>,
    asked: Arc<Mutex<Vec<(Instant, Proposal)>>>,
}

impl Scripted {
    fn new(
        script: impl Fn(usize, &Proposal) -> Result<Answer, AskError> + Send + Sync + 'static,
    ) -> Scripted {
        Scripted { script: Arc::new(script), asked: Arc::default() }
    }

    fn honest() -> Scripted {
        Scripted::new(|_, proposal| Ok(signed(&proposal.head)))
    }

    fn asked(&self) -> Vec<(Instant, Proposal)> {
        self.asked.lock().unwrap().clone()
    }
}

impl AskSigner for Scripted {
    async fn head(&self, _: &Origin) -> Result<SignerHead, AskError> {
        panic!("the publisher only has heads signed")
    }

    async fn open_term(&self, _: &Origin, _: SignerHead) -> Result<OpenTermAnswer, AskError> {
        panic!("the publisher only has heads signed")
    }

    async fn sign_checkpoint(&self, request: Request) -> Result<Answer, AskError> {
        let Request { term, proposal, .. } = request;
        assert_eq!(term, TERM);
        let number = {
            let mut asked = self.asked.lock().unwrap();
            asked.push((Instant::now(), proposal.clone()));
            asked.len() - 1
        };
        (self.script)(number, &proposal)
    }
}

fn signed(head: &TreeHead) -> Answer {
    Answer::Signed(note_of(&key(), &origin(), head))
}

async fn in_time(task: JoinHandle<Result<(), PublishError>>) -> Result<(), PublishError> {
    tokio::time::timeout(20 * INTERVAL, task).await.unwrap().unwrap()
}

struct Running {
    offered: watch::Sender<TreeHead>,
    wanted: watch::Sender<TreeSize>,
    published: watch::Receiver<Option<Arc<Verified<Checkpoint>>>>,
    troubled: watch::Receiver<Option<String>>,
    task: JoinHandle<Result<(), PublishError>>,
    tree: Arc<MemoryTree>,
}

impl Running {
    /// A publisher over a tree of 20 leaves, which was offered `offered` of them and has published what `store` holds.
    fn start(signer: impl AskSigner + 'static, store: PublishedStore, offered: u64) -> Running {
        let tree = Arc::new(tree(20, 20, 1));
        let newest = store.current().map(|note| Arc::new(Checkpoint::open(note, &policy()).unwrap()));
        let (publish, published) = watch::channel(newest);
        let (trouble, troubled) = watch::channel(None);
        let (offer, offered) = watch::channel(head(&tree, offered));
        let (want, wanted) = watch::channel(TreeSize::ZERO);
        let proving = Arc::clone(&tree);
        let prove = move |old, new| match prove_consistency(&*proving, old, new) {
            Ok(Ok(proof)) => Ok(proof.hashes),
            Ok(Err(error)) => Err(error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let publisher = Publisher {
            history: None,
            origin: origin(),
            policy: policy(),
            checkpoint_interval: INTERVAL,
            refresh_interval: 90 * INTERVAL,
            signer,
            term: TERM,
            on_trouble: Box::new(move |why| drop(trouble.send_replace(why.map(|trouble| trouble.why)))),
            prove: Arc::new(prove),
            store,
            published: publish,
            witnesses: alone(&tree),
        };
        let task = tokio::spawn(publisher.run(offered, wanted));
        Running { offered: offer, wanted: want, published, troubled, task, tree }
    }

    fn offer(&self, leaves: u64) {
        self.offered.send_replace(head(&self.tree, leaves));
    }

    /// Waits until this size is published, and says how long that took.
    async fn published(&mut self, leaves: u64) -> Duration {
        let start = Instant::now();
        let want = head(&self.tree, leaves);
        let is =
            |newest: &Option<Arc<Verified<Checkpoint>>>| newest.as_ref().is_some_and(|c| c.head() == want);
        self.published.wait_for(is).await.unwrap();
        start.elapsed()
    }

    /// Lets the publisher end, as the log does when it stops.
    async fn end(self) -> Result<(), PublishError> {
        drop(self.offered);
        in_time(self.task).await
    }

    /// Waits until the publisher ends by itself.
    async fn ended(self) -> Result<(), PublishError> {
        in_time(self.task).await
    }
}

/// A store that has published this size, or nothing.
fn store_of(dir: Arc<dyn Dir>, published: Option<u64>) -> PublishedStore {
    let mut store = PublishedStore::create(dir).unwrap();
    if let Some(leaves) = published {
        let note = note_of(&key(), &origin(), &head(&tree(20, 20, 1), leaves));
        store.store(note.as_bytes()).unwrap();
    }
    store
}

fn memory_store(published: Option<u64>) -> PublishedStore {
    store_of(Arc::new(MemoryDir::new()), published)
}

#[tokio::test(start_paused = true)]
async fn a_new_log_publishes_its_empty_tree_at_once() {
    let mut running = Running::start(Scripted::honest(), memory_store(None), 0);
    assert_eq!(running.published(0).await, Duration::ZERO);
    running.end().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn growth_is_published_every_interval_and_back_to_back_while_somebody_waits() {
    let signer = Scripted::honest();
    let mut running = Running::start(signer.clone(), memory_store(None), 0);
    running.published(0).await;
    // The first tick of an interval is at its start.
    tokio::task::yield_now().await;
    running.offer(3);
    assert_eq!(running.published(3).await, INTERVAL);
    running.offer(4);
    running.wanted.send_replace(size(9));
    for leaves in [4, 6, 9] {
        running.offer(leaves);
        assert_eq!(running.published(leaves).await, Duration::ZERO, "{leaves}");
    }
    running.offer(12);
    assert_eq!(running.published(12).await, INTERVAL);
    // Each was proven to grow from the one before.
    for pair in signer.asked().windows(2) {
        let ([(_, old), (_, new)], want) = (pair, pair[0].1.head.size) else { panic!() };
        assert_eq!(new.old_size, want);
        let proof = ConsistencyProof { old: old.head.size, new: new.head.size, hashes: new.proof.clone() };
        proof.verify(&old.head.root, &new.head.root).unwrap();
    }
    running.end().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_wish_that_comes_before_the_growth_is_not_lost() {
    let mut running = Running::start(Scripted::honest(), memory_store(Some(2)), 2);
    running.wanted.send_replace(size(5));
    tokio::task::yield_now().await;
    running.offer(5);
    assert_eq!(running.published(5).await, Duration::ZERO);
    running.end().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_last_head_is_published_when_no_more_are_offered() {
    for leaves in [5, 9] {
        let dir = MemoryDir::new();
        let running = Running::start(Scripted::honest(), store_of(Arc::new(dir.clone()), Some(5)), 5);
        running.offer(leaves);
        let published = running.published.clone();
        running.end().await.unwrap();
        assert_eq!(published.borrow().as_ref().unwrap().head().size, size(leaves));
        let (store, _) = PublishedStore::open(Arc::new(dir)).unwrap();
        let kept = Checkpoint::open(store.current().unwrap(), &policy()).unwrap();
        assert_eq!(kept.head().size, size(leaves));
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_not_the_checkpoint_asked_for_stops_it_and_publishes_nothing() {
    let asked = head(&tree(20, 20, 1), 8);
    let good = note_of(&key(), &origin(), &asked);
    let (text, _) = good.split_once("\n\n").unwrap();
    let extended = format!("{text}\nextension\n");
    let stranger = key_of("stranger.example", 3);
    let mut changed = good.clone().into_bytes();
    let at = changed.len() - 10;
    changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
    let log_text = format!("{text}\n");
    let answers = [
        ("another size", note_of(&key(), &origin(), &head(&tree(20, 20, 1), 7))),
        ("another root", note_of(&key(), &origin(), &head(&tree(20, 2, 2), 8))),
        (
            "another origin",
            note_of(&key_of("other.example", 7), &Origin::new("other.example").unwrap(), &asked),
        ),
        ("another origin under this key", note_of(&key(), &Origin::new("other.example").unwrap(), &asked)),
        ("another key of this name", note_of(&key_of("log.example", 8), &origin(), &asked)),
        ("a changed signature", String::from_utf8(changed).unwrap()),
        ("no signature", format!("{text}\n\n")),
        ("an extension line", note::encode(&extended, [&key().sign_assertion(&extended)])),
        (
            "a stranger's signature beside",
            note::encode(&log_text, [&key().sign_assertion(&log_text), &stranger.sign_assertion(&log_text)]),
        ),
        ("garbage", "garbage".into()),
        ("nothing", String::new()),
        ("too much", "x".repeat(1 << 20)),
    ];
    for (what, answer) in answers {
        let dir = MemoryDir::new();
        let store = store_of(Arc::new(dir.clone()), Some(5));
        let signer = Scripted::new(move |_, _| Ok(Answer::Signed(answer.clone())));
        let running = Running::start(signer, store, 8);
        let published = running.published.clone();
        let ended = running.ended().await;
        assert!(matches!(ended, Err(PublishError::WrongAnswer(_))), "{what}: {ended:?}");
        assert_eq!(published.borrow().as_ref().unwrap().head().size, size(5), "{what}");
        let (store, _) = PublishedStore::open(Arc::new(dir)).unwrap();
        assert_eq!(store.current().unwrap(), published.borrow().as_ref().unwrap().note(), "{what}");
    }
    let mut running = Running::start(Scripted::honest(), memory_store(Some(5)), 8);
    running.published(8).await;
}

#[tokio::test(start_paused = true)]
async fn another_history_at_the_signer_stops_it_for_good() {
    let (ours, theirs) = (head(&tree(20, 20, 1), 8), head(&tree(20, 2, 2), 8));
    for answer in [
        Answer::Conflict(Conflict { held: theirs, proposed: ours }),
        Answer::Reject("no".into()),
        Answer::Stale(head(&tree(20, 20, 1), 9)),
        // It says that it holds something else each time it is asked.
        Answer::Stale(head(&tree(20, 20, 1), 3)),
    ] {
        let signer = Scripted::new({
            let answer = answer.clone();
            move |_, _| Ok(answer.clone())
        });
        let running = Running::start(signer.clone(), memory_store(Some(5)), 8);
        let published = running.published.clone();
        let ended = running.ended().await;
        assert!(matches!(ended, Err(PublishError::Diverged(_))), "{answer:?}: {ended:?}");
        assert_eq!(published.borrow().as_ref().unwrap().head().size, size(5));
        assert!(signer.asked().len() <= 4, "it does not ask for ever");
    }
}

#[tokio::test(start_paused = true)]
async fn a_signer_that_is_away_is_asked_again_ever_more_rarely_and_one_that_is_gone_stops_it() {
    let away = Scripted::new(|number, proposal| match number {
        0..=7 => Err(AskError::Unavailable("away".into())),
        _ => Ok(signed(&proposal.head)),
    });
    let start = Instant::now();
    let mut running = Running::start(away.clone(), memory_store(None), 0);
    assert!(running.troubled.wait_for(|why| why.as_deref() == Some("away")).await.is_ok());
    running.published(0).await;
    assert!(running.troubled.borrow().is_none(), "it is said when the signer is back");
    let times: Vec<_> = away.asked().iter().map(|(at, _)| (*at - start).as_millis()).collect();
    assert_eq!(times, [0, 100, 300, 700, 1_500, 3_100, 6_300, 11_300, 16_300]);
    running.end().await.unwrap();

    let gone = Scripted::new(|_, _| Err(AskError::Fatal("gone".into())));
    let running = Running::start(gone, memory_store(None), 0);
    let published = running.published.clone();
    assert!(matches!(running.ended().await, Err(PublishError::Signer(AskError::Fatal(_)))));
    assert!(published.borrow().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_that_could_not_be_kept_is_not_served_and_stops_it() {
    for operation in [Operation::Write, Operation::Sync] {
        for nth in [0, 1] {
            for outcome in [Outcome::NotApplied, Outcome::Applied, Outcome::Torn(20), Outcome::NoSpace] {
                let what = format!("{operation:?} {nth} {outcome:?}");
                let memory = MemoryDir::new();
                let dir = FaultDir::new(Arc::new(memory.clone()));
                let store = store_of(Arc::new(dir.clone()), Some(5));
                dir.inject(Fault { operation: Some(operation), nth, outcome, crash: false });
                let running = Running::start(Scripted::honest(), store, 8);
                let published = running.published.clone();
                let ended = running.ended().await;
                assert!(
                    matches!(ended, Err(PublishError::Store(PublishedError::Fatal(_)))),
                    "{what}: {ended:?}"
                );
                assert_eq!(published.borrow().as_ref().unwrap().head().size, size(5), "{what}");
                let (store, _) = PublishedStore::open(Arc::new(memory)).unwrap();
                let kept = Checkpoint::open(store.current().unwrap(), &policy()).unwrap();
                assert!([size(5), size(8)].contains(&kept.head().size), "{what}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_tree_that_cannot_prove_its_growth_stops_it() {
    let running = Running::start(Scripted::honest(), memory_store(Some(5)), 5);
    running.offered.send_replace(TreeHead { size: size(50), ..head(&running.tree, 20) });
    let published = running.published.clone();
    let ended = running.ended().await;
    assert!(matches!(ended, Err(PublishError::NoProof { .. })), "{ended:?}");
    assert_eq!(published.borrow().as_ref().unwrap().head().size, size(5));
}

/// The process ended after the signer had signed and before the checkpoint was published.
#[tokio::test]
async fn a_signer_that_is_ahead_of_what_was_published_catches_the_log_up() {
    struct Fixed;
    impl epigraph_core::Clock for Fixed {
        fn now(&self) -> epigraph_core::UnixMillis {
            NOW
        }
    }
    let ours = tree(20, 20, 1);
    for (published, held, offered) in
        [(None, 5, 5), (None, 5, 9), (Some(3), 5, 5), (Some(3), 5, 9), (Some(0), 9, 9)]
    {
        let mut signer = open(Arc::new(store())).unwrap();
        let signed = signer.sign_checkpoint(in_term(proposal(&ours, 0, held)), NOW).unwrap();
        assert!(matches!(signed, Answer::Signed(_)));
        let (signer, _) = SignerHandle::spawn(signer, Arc::new(Fixed)).unwrap();
        let mut running = Running::start(signer, memory_store(published), offered);
        running.published(offered).await;
        running.end().await.unwrap();
    }
    // But not if it holds what this log never had.
    let mut signer = open(Arc::new(store())).unwrap();
    signer.sign_checkpoint(in_term(proposal(&tree(20, 2, 2), 0, 9)), NOW).unwrap();
    let (signer, _) = SignerHandle::spawn(signer, Arc::new(Fixed)).unwrap();
    let running = Running::start(signer, memory_store(Some(3)), 12);
    let published = running.published.clone();
    assert!(matches!(running.ended().await, Err(PublishError::Diverged(_))));
    assert_eq!(published.borrow().as_ref().unwrap().head().size, size(3));
}
