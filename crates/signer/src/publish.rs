//! The publisher: it takes the tree heads that the sequencer offers, one in flight at a time, has them signed, and
//! publishes them.
//!
//! [`machine`] decides which head is signed next, [`witnesses`] who cosigns it and when it is published; both are pure, and
//! [`Publisher::run`] drives them. The publisher has no key: it re-opens whatever the signer returns, verifies each
//! cosignature, and serves a checkpoint only under the policy's quorum, after it is on disk. [`gate`] decides after a start
//! whether the witnesses' heads allow the log to go on.

pub mod ask;
pub mod convict;
pub mod gate;
mod gather;
pub mod machine;
pub mod witnesses;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use epigraph_core::checkpoint::{CheckpointError, LogSigned, encode_text};
use epigraph_core::progress::Proposal;
use epigraph_core::{Checkpoint, Hash, Origin, Policy, TreeHead, TreeSize, Verified};
use epigraph_rpc::peer::{OpenTermAnswer, SignerHead};
use epigraph_store::history::History;
use epigraph_store::published::{PublishedError, PublishedStore};
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, Sleep};
use tracing::Instrument;

use crate::backoff::Backoff;
use crate::signer::{Answer, Request};
use ask::AskWitness;
pub use gather::{Dialled, Handed, HandedIn, Pending, RootAt, WITNESS_DEADLINE, Witnessing};
use gather::{Gatherer, Surroundings};
use machine::{Effect, Event, Machine};

/// How long the next head waits for the one in flight. Witnesses that are up answer in less; where too few are up, this is how
/// often a newer head is signed, so that the one that is published at last is not an old one.
pub const HEAD_DEADLINE: Duration = Duration::from_secs(5);

/// How the signer is reached, in this process or another.
pub trait AskSigner: Send + Sync {
    /// What it is bound to.
    fn head(&self, origin: &Origin) -> impl Future<Output = Result<SignerHead, AskError>> + Send;

    /// Opens a term, if it is still bound to this.
    fn open_term(
        &self,
        origin: &Origin,
        expected: SignerHead,
    ) -> impl Future<Output = Result<OpenTermAnswer, AskError>> + Send;

    /// Proposes a head in a term.
    fn sign_checkpoint(&self, request: Request) -> impl Future<Output = Result<Answer, AskError>> + Send;
}

/// Why there was no answer.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum AskError {
    /// It did not answer this time; asking again later may help.
    #[error("the signer did not answer: {0}")]
    Unavailable(String),
    /// The term is not the one that is open: another log process has taken over, or the signer's state is an older one.
    #[error("{0}")]
    Fenced(String),
    /// It will not answer again.
    #[error("the signer cannot sign: {0}")]
    Fatal(String),
}

/// Makes the consistency proof between two sizes of the log's own tree.
pub type Prove = dyn Fn(TreeSize, TreeSize) -> Result<Vec<Hash>, String> + Send + Sync;

/// Hears that the signer or too many witnesses do not answer, and `None` when they do again.
pub type OnTrouble = dyn Fn(Option<NotPublishing>) + Send + Sync;

/// Why nothing is published.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NotPublishing {
    /// For whoever appends: who is waited for, and not where they are.
    pub waits_for: String,
    /// For whoever runs the log.
    pub why: String,
}

/// Where the rest of the process sees what is published.
pub type Published = watch::Sender<Option<Arc<Verified<Checkpoint>>>>;

/// Why the publisher ended; the process must end with it.
#[derive(Debug, Error)]
pub enum PublishError {
    /// The signer cannot go on.
    #[error(transparent)]
    Signer(AskError),
    /// Another tree was signed before, or by another sequencer, or another sequencer is the one that may go on.
    #[error(
        "the signer refuses this log's tree: {0}. Another sequencer may be running with a copy of this log; nothing was published. Find it and stop it, or restore the log's directory"
    )]
    Diverged(String),
    /// What came back is not the checkpoint that was asked for.
    #[error("the signer answered with something else than the checkpoint it was asked for: {0}")]
    WrongAnswer(String),
    /// The tree could not prove its own growth.
    #[error("the tree cannot prove its growth from {old} to {new}: {why}")]
    NoProof {
        /// The signer's size.
        old: TreeSize,
        /// The size to be signed.
        new: TreeSize,
        /// What the tree said.
        why: String,
    },
    /// The published checkpoint could not be made durable.
    #[error(transparent)]
    Store(#[from] PublishedError),
}

impl From<AskError> for PublishError {
    fn from(error: AskError) -> PublishError {
        match error {
            AskError::Fenced(why) => PublishError::Diverged(why),
            error => PublishError::Signer(error),
        }
    }
}

impl From<CheckpointError> for PublishError {
    fn from(error: CheckpointError) -> PublishError {
        PublishError::WrongAnswer(error.to_string())
    }
}

/// What the publisher needs.
pub struct Publisher<S, W> {
    /// The log.
    pub origin: Origin,
    /// What a published checkpoint must satisfy.
    pub policy: Policy,
    /// How long a head may wait when nobody waits for it.
    pub checkpoint_interval: Duration,
    /// How old the cosignatures of a log that does not grow may become before the witnesses are asked for younger ones.
    pub refresh_interval: Duration,
    /// The signer.
    pub signer: S,
    /// The term that was opened at it.
    pub term: u64,
    /// Told why nothing can be signed, and when that is over.
    pub on_trouble: Box<OnTrouble>,
    /// The log's own tree.
    pub prove: Arc<Prove>,
    /// The newest published checkpoint on disk.
    pub store: PublishedStore,
    /// Those before it; without it the log runs as well, but old receipts are harder to explain.
    pub history: Option<Arc<History>>,
    /// Where it is served from.
    pub published: Published,
    /// The witnesses.
    pub witnesses: Witnessing<W>,
}

impl<S: AskSigner, W: AskWitness> Publisher<S, W> {
    /// Runs until `offered` is closed, then publishes the last head, if that can be done in time, and returns.
    ///
    /// `offered` carries the newest head whose tree was checked; `wanted` the size up to which somebody waits.
    pub async fn run(
        self,
        mut offered: watch::Receiver<TreeHead>,
        mut wanted: watch::Receiver<TreeSize>,
    ) -> Result<(), PublishError> {
        let already = self.published.borrow().as_ref().map(|checkpoint| checkpoint.head());
        let Publisher { origin, policy, checkpoint_interval, refresh_interval, .. } = self;
        let Publisher { signer, term, on_trouble, .. } = self;
        let prove = Arc::clone(&self.prove);
        let lent = Surroundings {
            origin: origin.clone(),
            policy: policy.clone(),
            prove: self.prove,
            store: self.store,
            history: self.history,
            published: self.published,
        };
        let (mut gatherer, mut handed) = Gatherer::new(self.witnesses, lent);
        let mut machine = Machine::new(already);
        let mut ticks = tokio::time::interval(checkpoint_interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut event = Some(Event::Offered(*offered.borrow_and_update()));
        let mut draining = false;
        let mut backoff = Backoff::new();
        // Until then the signer is left alone, and the next head waits for the one in flight.
        let (mut rested, mut late): (Timer, Timer) = (None, None);
        // Until then the cosignatures are young enough.
        let asks_witnesses = policy.quorum().is_some();
        let mut aged: Timer =
            asks_witnesses.then(|| Box::pin(tokio::time::sleep(gatherer.young_for(refresh_interval))));
        loop {
            while let Some(happened) = event.take() {
                if let Event::Published(_) = happened {
                    on_trouble(None);
                    aged = asks_witnesses.then(|| Box::pin(tokio::time::sleep(refresh_interval)));
                }
                event = match machine.step(happened) {
                    None => None,
                    Some(Effect::Ask { old, head }) => {
                        let proof = prove(old, head.size);
                        let proof =
                            proof.map_err(|why| PublishError::NoProof { old, new: head.size, why })?;
                        let proposal = Proposal { old_size: old, head, proof, note: Vec::new() };
                        let size = head.size.get();
                        let span = tracing::debug_span!("sign", log = %origin, from = old.get(), size);
                        let request = Request { origin: origin.clone(), term, proposal };
                        match signer.sign_checkpoint(request).instrument(span).await {
                            Ok(answer) => {
                                backoff = Backoff::new();
                                Some(Event::Answered(answer))
                            }
                            Err(AskError::Unavailable(why)) => {
                                let pause = backoff.pause();
                                rested = Some(Box::pin(tokio::time::sleep(pause)));
                                tracing::warn!(log = %origin, %why, again_in = ?pause, "nothing can be published");
                                let waits_for = "the log's signer does not answer".to_owned();
                                on_trouble(Some(NotPublishing { waits_for, why }));
                                Some(Event::NoAnswer)
                            }
                            Err(fatal) => return Err(fatal.into()),
                        }
                    }
                    Some(Effect::Gather { head, note }) => {
                        let signed = check_answer(&note, &policy, &encode_text(&origin, &head))?;
                        late = Some(Box::pin(tokio::time::sleep(HEAD_DEADLINE)));
                        gatherer.signed(signed).await?.map(Event::Published)
                    }
                    Some(Effect::Stop(why)) => return Err(PublishError::Diverged(why)),
                };
            }
            if machine.is_idle() {
                late = None;
                if draining {
                    return Ok(());
                }
            }
            event = tokio::select! {
                biased;
                changed = offered.changed(), if !draining => Some(match changed {
                    Ok(()) => Event::Offered(*offered.borrow_and_update()),
                    // The last head is tried whether or not the signer was there a moment ago.
                    Err(_) => {
                        draining = true;
                        Event::Ending
                    }
                }),
                happened = gatherer.next() => gatherer.take(happened).await?.map(Event::Published),
                Some(cosigned) = handed.recv() => gatherer.handed(cosigned).await?.map(Event::Published),
                () = over(&mut late), if late.is_some() => {
                    late = None;
                    let (names, why) = gatherer.late();
                    let [waits_for, why] =
                        [names, why].map(|whom| format!("too few witnesses have cosigned; waiting for {whom}"));
                    tracing::warn!(log = %origin, %why, "nothing can be published");
                    on_trouble(Some(NotPublishing { waits_for, why }));
                    Some(Event::Late)
                }
                () = over(&mut rested), if rested.is_some() => {
                    rested = None;
                    Some(Event::Rested)
                }
                Ok(()) = wanted.changed() => Some(Event::Wanted(*wanted.borrow_and_update())),
                _ = ticks.tick() => Some(Event::Due),
                // Last: a head that is to be signed gets young ones anyway.
                () = over(&mut aged), if aged.is_some() => {
                    aged = Some(Box::pin(tokio::time::sleep(refresh_interval)));
                    gatherer.refresh().await?.map(Event::Published)
                }
            };
        }
    }
}

type Timer = Option<Pin<Box<Sleep>>>;

/// Completes when the time is over, if there is one.
async fn over(time: &mut Timer) {
    match time {
        Some(time) => time.as_mut().await,
        None => std::future::pending().await,
    }
}

/// Only what was asked for and verified goes on: this text, without extension lines, under the log's signature and no other.
fn check_answer(note: &str, policy: &Policy, asked: &str) -> Result<LogSigned, PublishError> {
    let signed = Checkpoint::open_log_signed(note.as_bytes(), policy)?;
    if !note.strip_prefix(asked).is_some_and(|rest| rest.starts_with('\n')) {
        return Err(PublishError::WrongAnswer("it is of another head".into()));
    }
    if signed.note() != note {
        return Err(PublishError::WrongAnswer("it carries signatures that nobody can check".into()));
    }
    Ok(signed)
}
