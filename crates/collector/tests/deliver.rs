//! Delivery to a service that lies, forgets, refuses and hangs up: nothing leaves the spool without a proof.
#![expect(clippy::unwrap_used, reason = "a test ends where its promise is broken")]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, mpsc};

use bytes::Bytes;
use epigraph_collector::deliver::{Answers, DeliverError, Delivery, Sending, Sink};
use epigraph_collector::intake::Command;
use epigraph_collector::position::Positions;
use epigraph_collector::spool::fresh::{Fresh, Freshest};
use epigraph_collector::spool::{Limits, Progress, Spool};
use epigraph_core::checkpoint::encode_text;
use epigraph_core::{
    Entropy, Hash, KeyName, LeafIndex, Policy, SigningKey, SourceKey, TreeHead, TreeSize, UnixMillis, note,
};
use epigraph_event::batch::Encoded;
use epigraph_event::decode::{Context, mapped};
use epigraph_event::{Batch, Event};
use epigraph_rpc::CallError;
use epigraph_rpc::peer::audit::{BatchName, BatchRefusal, SourceState, Submitted};
use epigraph_store::file::memory::MemoryDir;
use tokio::sync::watch;
use zeroize::Zeroizing;

struct Zeros;

impl Entropy for Zeros {
    fn fill(&self, bytes: &mut [u8]) {
        bytes.fill(7);
    }
}

fn log() -> SigningKey {
    SigningKey::from_seed(KeyName::new("log.example").unwrap(), &Zeroizing::new([9; 32]))
}

fn source() -> SourceKey {
    SourceKey::from_seed(KeyName::new("source.example").unwrap(), &Zeroizing::new([7; 32]))
}

/// What the service answers on each stream, and what it says of the source.
struct Service {
    streams: Mutex<VecDeque<Vec<Submitted>>>,
    state: Option<SourceState>,
    sent: Arc<Mutex<u32>>,
}

struct Counting(Arc<Mutex<u32>>);
struct Script(VecDeque<Submitted>);

impl Sink for Service {
    type Sending = Counting;
    type Answers = Script;

    async fn submit(&self) -> Result<(Counting, Script), CallError> {
        let answers = self.streams.lock().unwrap().pop_front().ok_or(CallError::TimedOut)?;
        Ok((Counting(Arc::clone(&self.sent)), Script(answers.into())))
    }

    async fn source(&self, _: &Hash) -> Result<Option<SourceState>, CallError> {
        Ok(self.state.clone())
    }
}

impl Sending for Counting {
    async fn send(&mut self, _: Bytes) -> bool {
        *self.0.lock().unwrap() += 1;
        true
    }
}

impl Answers for Script {
    async fn next(&mut self) -> Result<Option<Submitted>, CallError> {
        // Whatever is to be sent is sent first.
        tokio::task::yield_now().await;
        Ok(self.0.pop_front())
    }
}

/// A spool with one batch of one event; the batch, signed and as it became durable.
fn spooled() -> (Arc<MemoryDir>, Progress, Batch, Fresh) {
    let dir = Arc::new(MemoryDir::new());
    let (id, limits) = (source().vkey().id(), Limits::of(1 << 30));
    Spool::create(dir.clone(), id, limits.files, UnixMillis(1), Arc::new(Zeros)).unwrap();
    let (mut spool, _) = Spool::open(dir.clone(), id, limits, Arc::new(Zeros)).unwrap();
    let decoded = mapped::decode(b"{\"n\":1}", &mapped::Mapping::default(), &Context::default());
    let event: Event = decoded.into_iter().next().unwrap().unwrap();
    let events = vec![event.seal(&Zeros).unwrap()];
    let batch = Batch::sign(&source(), spool.tip(), events, UnixMillis(2)).unwrap();
    let encoded = Encoded { roll: batch.roll(), bytes: batch.encode().into() };
    let fresh = spool.append(&encoded, &Positions::new(), UnixMillis(2)).unwrap();
    (dir, Progress { ended: true, ..spool.progress() }, batch, fresh)
}

const INGESTED: u64 = 1_800_000_000;

fn accepted(batch: &Batch) -> Submitted {
    Submitted::Accepted {
        batch: name(batch),
        first_index: LeafIndex::new(0).unwrap(),
        ingest_time: INGESTED,
        repeated: false,
    }
}

fn name(batch: &Batch) -> BatchName {
    let envelope = batch.signed().envelope();
    BatchName { source: envelope.source, epoch: envelope.epoch, number: envelope.number }
}

/// That a log of one leaf has this root; the proofs of its only leaf are empty.
fn published(batch: &Batch, root: Hash, key: &SigningKey) -> Submitted {
    let head = TreeHead { size: TreeSize::new(1).unwrap(), root };
    let text = encode_text(&log().vkey().name().to_origin(), &head);
    let checkpoint = note::encode(&text, [&key.sign_assertion(&text)]).into();
    Submitted::Published { batch: name(batch), checkpoint, proofs: Some([Vec::new(), Vec::new()]) }
}

/// How delivery ends, what was delivered, and how often a batch was sent.
async fn deliver(
    streams: impl FnOnce(&Batch) -> Vec<Vec<Submitted>>,
    state: Option<SourceState>,
) -> (Result<(), DeliverError>, Vec<u64>, u32) {
    let (dir, progress, batch, _) = spooled();
    deliver_from(dir, Freshest::default(), (progress, batch), streams, state).await
}

async fn deliver_from(
    spool: Arc<MemoryDir>,
    fresh: Freshest,
    (progress, batch): (Progress, Batch),
    streams: impl FnOnce(&Batch) -> Vec<Vec<Submitted>>,
    state: Option<SourceState>,
) -> (Result<(), DeliverError>, Vec<u64>, u32) {
    let sent = Arc::default();
    let (commands, told) = mpsc::channel();
    let (_tell, progress) = watch::channel(progress);
    let streams = Mutex::new(streams(&batch).into());
    let delivery = Delivery {
        sink: Service { streams, state, sent: Arc::clone(&sent) },
        source: source().vkey().clone(),
        policy: Policy::of_log(log().vkey().clone()),
        origin: log().vkey().name().to_origin(),
        spool,
        fresh,
        progress,
        commands,
        entropy: Arc::new(Zeros),
    };
    let ended = delivery.run(Some(3)).await;
    let delivered = told.try_iter().map(|command| match command {
        Command::Delivered(next) => next,
        _ => u64::MAX,
    });
    let sent = *sent.lock().unwrap();
    (ended, delivered.collect(), sent)
}

fn root(batch: &Batch) -> Hash {
    batch.leaf(0, INGESTED).unwrap().hash()
}

#[tokio::test(start_paused = true)]
async fn what_is_proven_leaves_the_spool() {
    let (ended, delivered, sent) =
        deliver(|batch| vec![vec![accepted(batch), published(batch, root(batch), &log())]], None).await;
    assert!(ended.is_ok(), "{ended:?}");
    assert_eq!((delivered, sent), (vec![1], 1));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_lost_is_asked_for_again() {
    let streams = |batch: &Batch| {
        vec![vec![], vec![accepted(batch)], vec![accepted(batch), published(batch, root(batch), &log())]]
    };
    let (ended, delivered, sent) = deliver(streams, None).await;
    assert!(ended.is_ok(), "{ended:?}");
    assert_eq!((delivered, sent), (vec![1], 3));
}

/// Broken by hand: always read from the disk, the first fails; never read from it, the second.
#[tokio::test(start_paused = true)]
async fn what_became_durable_a_moment_ago_is_not_read_back_unless_it_is_sent_again() {
    let (_, progress, batch, kept) = spooled();
    let fresh = Freshest::default();
    fresh.keep(kept);
    let streams = |batch: &Batch| vec![vec![accepted(batch), published(batch, root(batch), &log())]];
    let nothing = Arc::new(MemoryDir::new());
    let (ended, delivered, sent) = deliver_from(nothing, fresh, (progress, batch), streams, None).await;
    assert!(ended.is_ok(), "{ended:?}");
    assert_eq!((delivered, sent), (vec![1], 1));

    let (dir, progress, batch, kept) = spooled();
    let fresh = Freshest::default();
    fresh.keep(kept);
    let streams = |batch: &Batch| {
        vec![vec![accepted(batch)], vec![accepted(batch), published(batch, root(batch), &log())]]
    };
    let (ended, delivered, sent) = deliver_from(dir, fresh, (progress, batch), streams, None).await;
    assert!(ended.is_ok(), "{ended:?}");
    assert_eq!((delivered, sent), (vec![1], 2));
}

/// Broken by hand: with `verify` answering `Ok` each of these leaves the spool.
#[tokio::test(start_paused = true)]
async fn what_is_not_proven_stays() {
    let other = SigningKey::from_seed(KeyName::new("log.example").unwrap(), &Zeroizing::new([1; 32]));
    let no = |ended: Result<(), DeliverError>, delivered: Vec<u64>| {
        assert!(delivered.is_empty());
        ended.unwrap_err()
    };
    let not_there = deliver(
        |batch| vec![vec![accepted(batch), published(batch, Hash::from_bytes([1; 32]), &log())]],
        None,
    );
    let (ended, delivered, _) = not_there.await;
    assert!(matches!(no(ended, delivered), DeliverError::NotProven { number: 0, .. }));
    let forged = deliver(|batch| vec![vec![accepted(batch), published(batch, root(batch), &other)]], None);
    let (ended, delivered, _) = forged.await;
    assert!(matches!(no(ended, delivered), DeliverError::Checkpoint { number: 0, .. }));
    let unaccepted = deliver(|batch| vec![vec![published(batch, root(batch), &log())]], None);
    let (ended, delivered, _) = unaccepted.await;
    assert!(matches!(no(ended, delivered), DeliverError::OutOfTurn(_)));
    let refused = |batch: &Batch| Submitted::Refused {
        batch: Some(name(batch)),
        refusal: BatchRefusal::Reused,
        message: "another one".into(),
    };
    let (ended, delivered, _) = deliver(|batch| vec![vec![refused(batch)]], None).await;
    assert!(matches!(no(ended, delivered), DeliverError::Refused { .. }));
}

/// Broken by hand: without `compare` an old copy of a spool gives its numbers a second time.
#[tokio::test(start_paused = true)]
async fn an_old_copy_of_a_spool_sends_nothing() {
    let newer =
        SourceState { epoch: 1, next_number: 2, next_sequence: 9, last_batch: Hash::from_bytes([3; 32]) };
    let (ended, delivered, sent) = deliver(|_| vec![vec![]], Some(newer)).await;
    assert!(matches!(ended, Err(DeliverError::OldCopy { theirs: 2, ours: 1 })), "{ended:?}");
    assert_eq!((delivered, sent), (vec![], 0));
}
