//! Drives [`super::witnesses`]: asks, rests, keeps evidence, and makes what is published durable before it is served.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use epigraph_core::backoff::spread_wait;
use epigraph_core::checkpoint::LogSigned;
use epigraph_core::note::SignatureLine;
use epigraph_core::policy::WitnessSet;
use epigraph_core::policy::explain::Answer;
use epigraph_core::progress::Proposal;
use epigraph_core::{
    Checkpoint, Clock, Entropy, Evidence, Hash, Origin, Policy, TreeHead, TreeSize, Verified,
};
use epigraph_store::evidence;
use epigraph_store::file::Dir;
use epigraph_store::history::History;
use epigraph_store::published::PublishedStore;
use epigraph_store::witness_sizes::{Sizes, WitnessSizes};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tracing::Instrument;

use super::ask::{AskWitness, Reply};
use super::convict::{convict, keep};
use super::witnesses::{Effect, Event, Judged, NotTaken, Status, Witnesses};
use super::{AskError, Prove, PublishError, Published};

/// How long a witness has for its answer. It waits for its disk, and perhaps for this log's own published checkpoint; a witness
/// that needs longer is of no use to whoever waits for a receipt.
pub const WITNESS_DEADLINE: Duration = Duration::from_secs(10);

/// After the first failure: a witness that is being restarted is back in less.
const FIRST_REST: Duration = Duration::from_millis(200);

/// So long after a witness is back, at most, it is asked again: publication that waits for it resumes by itself.
const LONGEST_REST: Duration = Duration::from_secs(5);

/// The root of the log's own tree at a size.
pub type RootAt = dyn Fn(TreeSize) -> Result<Hash, String> + Send + Sync;

/// The newest head that the log signed, published or not.
pub type Pending = watch::Sender<Option<Arc<LogSigned>>>;

/// What a witness handed in by itself.
pub struct Handed {
    /// The size of the head that it was shown.
    pub size: TreeSize,
    /// What it says to it.
    pub what: HandedIn,
    /// Hears whether they were taken.
    pub answer: oneshot::Sender<Result<(), NotTaken>>,
}

/// What a witness says to a head by itself.
#[derive(Debug)]
pub enum HandedIn {
    /// Signature lines.
    Cosignatures(Vec<SignatureLine>),
    /// The witness at this place of the policy holds a head under the log's signature that this one does not extend: its note.
    Conflict(usize, Vec<u8>),
}

/// A witness that is asked.
pub struct Dialled<W> {
    /// Its place in the policy.
    pub place: usize,
    /// How it is reached.
    pub witness: Arc<W>,
    /// The size that it holds, as far as is known.
    pub held: TreeSize,
}

/// What the publisher needs for its witnesses.
pub struct Witnessing<W> {
    /// Those that are asked.
    pub dialled: Vec<Dialled<W>>,
    /// What others hand in.
    pub handed: mpsc::Receiver<Handed>,
    /// Where the newest signed head is shown.
    pub pending: Pending,
    /// Where it is shown how they are doing.
    pub status: watch::Sender<Status>,
    /// Where evidence against whoever signs with the log's key is kept.
    pub evidence: Arc<dyn Dir>,
    /// The log's own tree.
    pub root_at: Arc<RootAt>,
    /// For the jitter of rests.
    pub entropy: Arc<dyn Entropy>,
    /// For cosignatures from the future.
    pub clock: Arc<dyn Clock>,
    /// Where the sizes that they hold are kept, as a hint for the next start.
    pub sizes: Option<WitnessSizes>,
}

impl<W> Witnessing<W> {
    /// Takes over what the gate has learned.
    pub fn are_known_to_hold(&mut self, held: &super::gate::Held) {
        for dialled in &mut self.dialled {
            if let Some(held) = held.get(&dialled.place) {
                dialled.held = held.map_or(TreeSize::ZERO, |head| head.size);
            }
        }
    }
}

/// What the rest of the publisher lends.
pub(super) struct Surroundings {
    pub(super) origin: Origin,
    pub(super) policy: Policy,
    pub(super) prove: Arc<Prove>,
    pub(super) store: PublishedStore,
    pub(super) history: Option<Arc<History>>,
    pub(super) published: Published,
}

pub(super) struct Gatherer<W> {
    machine: Witnesses,
    asked: BTreeMap<usize, Arc<W>>,
    /// Open questions and rests. Ended with the publisher.
    open: JoinSet<Event>,
    pending: Pending,
    status: watch::Sender<Status>,
    evidence: Arc<dyn Dir>,
    root_at: Arc<RootAt>,
    entropy: Arc<dyn Entropy>,
    clock: Arc<dyn Clock>,
    origin: Origin,
    policy: Policy,
    prove: Arc<Prove>,
    store: Arc<Mutex<PublishedStore>>,
    sizes: Arc<Mutex<Option<WitnessSizes>>>,
    history: Option<Arc<History>>,
    published: Published,
    /// The newest checkpoint on its way into the history: whoever waits for the next head does not wait for it.
    keeping: Option<JoinHandle<()>>,
    /// The proofs to one size: witnesses that hold the same size share one.
    proofs: (TreeSize, BTreeMap<TreeSize, Vec<Hash>>),
    late: bool,
    evidence_files: usize,
}

impl<W: AskWitness> Gatherer<W> {
    /// With what others hand in.
    pub(super) fn new(
        witnessing: Witnessing<W>,
        surroundings: Surroundings,
    ) -> (Gatherer<W>, mpsc::Receiver<Handed>) {
        let Witnessing { dialled, handed, pending, status, evidence, root_at, entropy, clock, sizes } =
            witnessing;
        let Surroundings { origin, policy, prove, store, history, published } = surroundings;
        let already = published.borrow().as_ref().map(|checkpoint| checkpoint.head());
        let held = dialled.iter().map(|dialled| (dialled.place, dialled.held));
        let machine = Witnesses::new(policy.clone(), already, held);
        // Shown, and nothing else depends on it.
        let evidence_files = evidence.list().map_or(0, |names| evidence::count(&names));
        let gatherer = Gatherer {
            machine,
            asked: dialled.into_iter().map(|dialled| (dialled.place, dialled.witness)).collect(),
            open: JoinSet::new(),
            pending,
            status,
            evidence,
            root_at,
            entropy,
            clock,
            origin,
            policy,
            prove,
            store: Arc::new(Mutex::new(store)),
            sizes: Arc::new(Mutex::new(sizes)),
            history,
            published,
            keeping: None,
            proofs: (TreeSize::ZERO, BTreeMap::new()),
            late: false,
            evidence_files,
        };
        gatherer.show();
        (gatherer, handed)
    }

    /// Gathers cosignatures for a head that the log signed. Here and below: the newest head that was published by it.
    pub(super) async fn signed(&mut self, signed: LogSigned) -> Result<Option<TreeHead>, PublishError> {
        self.pending.send_replace(Some(Arc::new(signed.clone())));
        self.take(Event::Signed(signed)).await
    }

    /// Has the published head cosigned again: nobody who asks for young cosignatures is to be turned away because nothing is
    /// appended. Witnesses that dial in are shown the head again.
    pub(super) async fn refresh(&mut self) -> Result<Option<TreeHead>, PublishError> {
        let Some(published) = self.published.borrow().clone() else { return Ok(None) };
        let signed = Checkpoint::open_log_signed(published.note(), &self.policy)?;
        let newest = self.pending.borrow().as_ref().map(|pending| pending.head());
        if newest.is_none_or(|newest| newest == signed.head()) {
            self.pending.send_replace(Some(Arc::new(signed)));
        }
        self.take(Event::Refresh(Box::new((*published).clone()))).await
    }

    /// How long a quorum under what is published is still younger than this. With nothing published there is nothing old.
    pub(super) fn young_for(&self, at_most: Duration) -> Duration {
        let published = self.published.borrow();
        let Some(published) = published.as_ref() else { return at_most };
        let explained = Checkpoint::explain(published.note(), &self.policy, None);
        let witnesses = explained.map(|explained| explained.witnesses).unwrap_or_default();
        let mut times: Vec<(u64, usize)> = (0..)
            .zip(&witnesses)
            .filter_map(|(place, witness)| match witness.answer {
                Answer::Signed(at) => Some((at.seconds(), place)),
                _ => None,
            })
            .collect();
        times.sort_unstable_by(|one, other| other.cmp(one));
        let mut young = WitnessSet::EMPTY;
        let met = times.into_iter().find(|(_, place)| {
            young = young.union([*place].into_iter().collect());
            self.policy.is_met_by(young)
        });
        let age = met.map_or(Duration::MAX, |(at, _)| {
            Duration::from_millis(self.clock.now().0.saturating_sub(at.saturating_mul(1_000)))
        });
        at_most.saturating_sub(age)
    }

    /// The next answer, or the end of a rest. May be dropped and asked anew.
    pub(super) async fn next(&mut self) -> Event {
        loop {
            match self.open.join_next().await {
                Some(Ok(event)) => return event,
                // Only a fault of the program ends a task so: its witness is not asked again, and is named as missing.
                Some(Err(error)) => {
                    tracing::error!(log = %self.origin, %error, "a question to a witness was lost")
                }
                None => std::future::pending().await,
            }
        }
    }

    pub(super) async fn take(&mut self, event: Event) -> Result<Option<TreeHead>, PublishError> {
        let effects = self.machine.at(self.clock.now()).step(event);
        self.carry_out(effects).await
    }

    pub(super) async fn handed(&mut self, handed: Handed) -> Result<Option<TreeHead>, PublishError> {
        let machine = self.machine.at(self.clock.now());
        let (effects, taken) = match handed.what {
            HandedIn::Cosignatures(lines) => machine.handed(handed.size, &lines),
            HandedIn::Conflict(place, held) => machine.handed_conflict(place, handed.size, &held),
        };
        let published = self.carry_out(effects).await?;
        // Whoever handed it in may have gone.
        let _ = handed.answer.send(taken);
        Ok(published)
    }

    /// The newest signed head waits too long. Says whose cosignatures it lacks, by name, and with what is known of why.
    pub(super) fn late(&mut self) -> (String, String) {
        self.late = true;
        self.show();
        (self.machine.missing(), self.machine.lacking())
    }

    async fn carry_out(&mut self, effects: Vec<Effect>) -> Result<Option<TreeHead>, PublishError> {
        let mut published = None;
        let before = self.published.borrow().as_ref().map(|checkpoint| checkpoint.head().size);
        let mut effects = VecDeque::from(effects);
        while let Some(effect) = effects.pop_front() {
            match effect {
                Effect::Ask { place, old, head, note } => self.ask(place, old, head, note),
                Effect::Rest { place, failures } => {
                    let rest = self.rest(failures);
                    self.open.spawn(async move {
                        sleep(rest).await;
                        Event::Rested(place)
                    });
                }
                Effect::Publish(checkpoint) => {
                    published = Some(checkpoint.head());
                    self.publish(checkpoint).await?;
                }
                Effect::Tell { place, trouble } => {
                    let witness = self.policy.witnesses().get(place).map_or("", |witness| &witness.name);
                    tracing::warn!(log = %self.origin, %witness, kind = trouble.kind(), %trouble, "a witness");
                }
                Effect::Judge { place, held, ours } => {
                    let judged = self.judge(held, ours).await;
                    effects.extend(self.machine.step(Event::Judged(place, judged)));
                }
                Effect::Stop(why) => return Err(PublishError::Diverged(why)),
            }
        }
        // One more cosignature under what is published helps nobody who waits.
        self.late &= published.is_none_or(|head| Some(head.size) <= before);
        self.show();
        Ok(published)
    }

    fn show(&self) {
        let (late, evidence_files) = (self.late, self.evidence_files);
        let status = Status { late, evidence_files, ..self.machine.status() };
        self.status.send_if_modified(|shown| {
            let changed = *shown != status;
            *shown = status;
            changed
        });
    }

    fn ask(&mut self, place: usize, old: TreeSize, head: TreeHead, note: String) {
        let Some(witness) = self.asked.get(&place).map(Arc::clone) else { return };
        let proof = match self.proof(old, head.size) {
            Ok(proof) => proof,
            Err(why) => {
                let why = format!("the tree cannot prove its growth from {old} to {}: {why}", head.size);
                self.open.spawn(async move { Event::Replied(place, Reply::Unavailable(why)) });
                return;
            }
        };
        let proposal = Proposal { old_size: old, head, proof, note: note.into_bytes() };
        let origin = self.origin.clone();
        self.open.spawn(async move {
            // In a task of its own: whatever becomes of it, there is an answer.
            let asked = tokio::spawn(async move {
                match witness.add_checkpoint(&origin, proposal).await {
                    Reply::BadProof { why, held: None } => {
                        Reply::BadProof { why, held: witness.newest(&origin).await.ok().flatten() }
                    }
                    reply => reply,
                }
            });
            let abort = asked.abort_handle();
            let reply = match timeout(WITNESS_DEADLINE, asked).await {
                Ok(Ok(reply)) => reply,
                Ok(Err(error)) => Reply::Unavailable(error.to_string()),
                Err(_) => {
                    abort.abort();
                    Reply::Unavailable(format!("nothing came within {} s", WITNESS_DEADLINE.as_secs()))
                }
            };
            Event::Replied(place, reply)
        });
    }

    fn proof(&mut self, old: TreeSize, new: TreeSize) -> Result<Vec<Hash>, String> {
        // From the empty tree, and to the same one, there is nothing to prove.
        if old == TreeSize::ZERO || old == new {
            return Ok(Vec::new());
        }
        if self.proofs.0 != new {
            self.proofs = (new, BTreeMap::new());
        }
        if let Some(proof) = self.proofs.1.get(&old) {
            return Ok(proof.clone());
        }
        let proof = (self.prove)(old, new)?;
        self.proofs.1.insert(old, proof.clone());
        Ok(proof)
    }

    fn rest(&self, failures: u32) -> Duration {
        spread_wait(FIRST_REST, LONGEST_REST, failures, &*self.entropy)
    }

    async fn publish(&mut self, checkpoint: Verified<Checkpoint>) -> Result<(), PublishError> {
        let checkpoint = Arc::new(checkpoint);
        let written = Arc::clone(&checkpoint);
        let (store, kept, sizes) = (Arc::clone(&self.store), Arc::clone(&self.sizes), self.machine.sizes());
        // A crash before this is durable: nobody saw the checkpoint. After it: it is served at the start.
        let write = move || {
            keep_sizes(&mut kept.lock().unwrap_or_else(PoisonError::into_inner), sizes);
            store.lock().unwrap_or_else(PoisonError::into_inner).store(written.note())
        };
        let (origin, size) = (checkpoint.origin(), checkpoint.head().size.get());
        let span = tracing::debug_span!("publish", log = %origin, size);
        match tokio::task::spawn_blocking(write).instrument(span).await {
            Ok(written) => written?,
            Err(error) => return Err(AskError::Fatal(error.to_string()).into()),
        }
        let before = self.published.send_replace(Some(Arc::clone(&checkpoint)));
        // After it is served. A crash before: the next start adds it. A late cosignature is not worth a second entry.
        if before.is_none_or(|before| before.head() != checkpoint.head()) {
            // They stay in order, and one is under way at most.
            if let Some(before) = self.keeping.take() {
                drop(before.await);
            }
            self.keeping = Some(tokio::spawn(keep_in_history(self.history.clone(), checkpoint)));
        }
        Ok(())
    }

    /// Judges by the log's own tree what a witness holds, and keeps what convicts the holder of its key. That it cannot be kept
    /// does not change what it is.
    async fn judge(&mut self, held: String, ours: String) -> Judged {
        let (policy, prove, root_at) =
            (self.policy.clone(), Arc::clone(&self.prove), Arc::clone(&self.root_at));
        let dir = Arc::clone(&self.evidence);
        let judging = tokio::task::spawn_blocking(move || {
            let Some(found) = convict(&policy, &held, &ours, &*prove, &*root_at)? else { return Ok(None) };
            Ok(Some((keep(&*dir, &found), found)))
        });
        let judged = judging.await.map_err(|error| error.to_string()).and_then(|judged| judged);
        let (file, evidence): (Result<String, String>, Evidence) = match judged {
            Ok(Some(found)) => found,
            Ok(None) => return Judged::OneHistory,
            Err(why) => return Judged::Unknown(why),
        };
        match file {
            Ok(file) => {
                let names = self.evidence.list();
                self.evidence_files = names.map_or(self.evidence_files, |names| evidence::count(&names));
                tracing::error!(log = %self.origin, %file, %evidence, "evidence against the holder of this log's key");
            }
            Err(why) => {
                tracing::error!(log = %self.origin, %why, %evidence, "evidence against the holder of this log's key was not kept");
            }
        }
        let [held, ours] = evidence.heads();
        Judged::TwoHistories { held, ours }
    }
}

/// A late cosignature comes here too, so that the hint is of everybody who answers. One that cannot be written is given up.
fn keep_sizes(kept: &mut Option<WitnessSizes>, sizes: Sizes) {
    let written = kept.as_mut().map_or(Ok(()), |kept| kept.store(sizes));
    if let Err(error) = written {
        tracing::warn!(%error, "the sizes that the witnesses hold are not kept: after the next start each may be asked twice");
        *kept = None;
    }
}

/// Keeps a checkpoint in the history, durably. Failing that stops nothing.
async fn keep_in_history(history: Option<Arc<History>>, checkpoint: Arc<Verified<Checkpoint>>) {
    let Some(history) = history else { return };
    let append = move || history.append(checkpoint.head().size, checkpoint.note());
    match tokio::task::spawn_blocking(append).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "a published checkpoint is not in the history"),
        Err(error) => tracing::warn!(%error, "a published checkpoint is not in the history"),
    }
}
