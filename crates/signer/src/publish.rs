//! The publisher: it takes the tree heads that the sequencer offers, one in flight at a time, has them signed, and
//! publishes them.
//!
//! [`machine`] decides what comes next and is pure; [`Publisher::run`] drives it. The publisher has no key: it re-opens whatever
//! the signer returns, and serves a checkpoint only after it is on disk. Policy so far: the log's signature alone.

pub mod machine;

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use epigraph_core::checkpoint::{CheckpointError, encode_text};
use epigraph_core::progress::Proposal;
use epigraph_core::{Checkpoint, Hash, Origin, Policy, TreeHead, TreeSize, Verified};
use epigraph_rpc::peer::{OpenTermAnswer, SignerHead};
use epigraph_store::published::{PublishedError, PublishedStore};
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, Sleep};

use crate::backoff::Backoff;
use crate::signer::{Answer, Request};
use machine::{Effect, Event, Machine};

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

/// Hears that the signer does not answer, and `None` when it does again.
pub type OnTrouble = dyn Fn(Option<&str>) + Send + Sync;

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
pub struct Publisher<S> {
    /// The log.
    pub origin: Origin,
    /// What a published checkpoint must satisfy.
    pub policy: Policy,
    /// How long a head may wait when nobody waits for it.
    pub checkpoint_interval: Duration,
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
    /// Where it is served from.
    pub published: Published,
}

impl<S: AskSigner> Publisher<S> {
    /// Runs until `offered` is closed, then publishes the last head and returns.
    ///
    /// `offered` carries the newest head whose tree was checked; `wanted` the size up to which somebody waits.
    pub async fn run(
        self,
        mut offered: watch::Receiver<TreeHead>,
        mut wanted: watch::Receiver<TreeSize>,
    ) -> Result<(), PublishError> {
        let already = self.published.borrow().as_ref().map(|checkpoint| checkpoint.head());
        let mut machine = Machine::new(already);
        let store = Arc::new(Mutex::new(self.store));
        let mut ticks = tokio::time::interval(self.checkpoint_interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut event = Event::Offered(*offered.borrow_and_update());
        let mut draining = false;
        let mut backoff = Backoff::new();
        // Until then the signer is left alone.
        let mut rested: Option<Pin<Box<Sleep>>> = None;
        loop {
            let mut effect = machine.step(event);
            while let Some(todo) = effect {
                let outcome = match todo {
                    Effect::Ask { old, head } => {
                        let proof = (self.prove)(old, head.size);
                        let proof =
                            proof.map_err(|why| PublishError::NoProof { old, new: head.size, why })?;
                        let proposal = Proposal { old_size: old, head, proof, note: Vec::new() };
                        let request = Request { origin: self.origin.clone(), term: self.term, proposal };
                        match self.signer.sign_checkpoint(request).await {
                            Ok(answer) => {
                                backoff = Backoff::new();
                                (self.on_trouble)(None);
                                Event::Answered(answer)
                            }
                            Err(AskError::Unavailable(why)) => {
                                let pause = backoff.pause();
                                rested = Some(Box::pin(tokio::time::sleep(pause)));
                                tracing::warn!(log = %self.origin, %why, again_in = ?pause, "nothing can be published");
                                (self.on_trouble)(Some(&why));
                                Event::NoAnswer
                            }
                            Err(fatal) => return Err(fatal.into()),
                        }
                    }
                    Effect::Publish { head, note } => {
                        let checkpoint = Checkpoint::open(note.as_bytes(), &self.policy)?;
                        check_answer(&note, &checkpoint, &encode_text(&self.origin, &head))?;
                        let store = Arc::clone(&store);
                        // A crash before this is durable: nobody saw the checkpoint. After it: it is served at the start.
                        let write = move || {
                            store.lock().unwrap_or_else(PoisonError::into_inner).store(note.as_bytes())
                        };
                        match tokio::task::spawn_blocking(write).await {
                            Ok(written) => written?,
                            Err(error) => return Err(AskError::Fatal(error.to_string()).into()),
                        }
                        self.published.send_replace(Some(Arc::new(checkpoint)));
                        Event::Published
                    }
                    Effect::Stop(why) => return Err(PublishError::Diverged(why)),
                };
                effect = machine.step(outcome);
            }
            if draining {
                return Ok(());
            }
            event = tokio::select! {
                biased;
                changed = offered.changed() => match changed {
                    Ok(()) => Event::Offered(*offered.borrow_and_update()),
                    // The last head is tried whether or not the signer was there a moment ago.
                    Err(_) => {
                        draining = true;
                        Event::Rested
                    }
                },
                () = over(&mut rested), if rested.is_some() => {
                    rested = None;
                    Event::Rested
                }
                Ok(()) = wanted.changed() => Event::Wanted(*wanted.borrow_and_update()),
                _ = ticks.tick() => Event::Due,
            };
        }
    }
}

/// Completes when the time is over, if there is one.
async fn over(time: &mut Option<Pin<Box<Sleep>>>) {
    match time {
        Some(time) => time.as_mut().await,
        None => std::future::pending().await,
    }
}

/// Only what was asked for and verified is published: this text, without extension lines, under the log's signature and
/// no other.
fn check_answer(note: &str, checkpoint: &Checkpoint, asked: &str) -> Result<(), PublishError> {
    if !note.strip_prefix(asked).is_some_and(|rest| rest.starts_with('\n')) {
        return Err(PublishError::WrongAnswer("it is of another head".into()));
    }
    if checkpoint.log_signed() != note {
        return Err(PublishError::WrongAnswer("it carries signatures that nobody can check".into()));
    }
    Ok(())
}
