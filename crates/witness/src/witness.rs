//! A running witness, as the rest of the process calls it. Plain methods; [`crate::service`] puts them on the wire, and the
//! keeper's thread decides.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use epigraph_core::checkpoint::{CheckpointError, LogSigned, encode_text};
use epigraph_core::note::{Parsed, SignatureLine};
use epigraph_core::progress::{Conflict, Held, Proposal};
use epigraph_core::{Clock, Hash, Origin, TreeSize, UnixMillis, VKey};
use epigraph_rpc::rate::{Rates, TooFast};
use epigraph_store::file::Dir;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};

use crate::evidence;
use crate::gate::{Passage, sighting};
use crate::keeper::{AdmitError, Answer, Cosigned, Fatal, Keeper, Refused};
use crate::list::{self, Changes, ListError, Listed};
use crate::status::{Counters, HeldLog, Status};
use crate::thread::{self, Message};

/// How long a proposal waits for the log to answer the gate: less than its own deadline.
const GATE_WAIT: Duration = Duration::from_secs(5);

/// Signature lines of the log's key in one proposal: a log signs once, and each line costs a verification.
pub const MAX_LOG_LINES: usize = 2;

/// How the witness asks a log what it shows.
pub trait AskLog: Send + Sync {
    /// The notes that the log shows: its newest published one, and those of `above` entries and more that it lists. None of
    /// them need be valid. An error where it did not answer.
    fn notes<'a>(&'a self, origin: &'a Origin, above: TreeSize) -> Notes<'a>;
}

/// What a log shows, or why it did not answer.
pub type Notes<'a> = Pin<Box<dyn Future<Output = Result<Vec<Bytes>, String>> + Send + 'a>>;

/// How a witness is set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Proposals a second of one caller.
    pub caller_per_second: u32,
    /// Proposals a second for one log.
    pub log_per_second: u32,
    /// Whether a log that does not answer the gate is let through. Then an older copy of the state may not be noticed.
    pub pass_unreachable: bool,
}

/// Why a proposal was not answered.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum AddError {
    /// Not on the list.
    #[error("this witness has no log {0:?} on its list")]
    UnknownLog(Origin),
    /// No longer on the list.
    #[error("this witness has taken {0:?} off its list: it keeps what it holds, and cosigns nothing more")]
    Removed(Origin),
    /// The list has another key than before.
    #[error(
        "the list of this witness has another key for {0:?} than before, and it cosigns for neither; its messages say more"
    )]
    Rekeyed(Origin),
    /// The note is no checkpoint of this log with its signature.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Text that would be cosigned but says more than a tree head.
    #[error("the checkpoint has extension lines, or is not written as others write it: leave them out")]
    NotPlain,
    /// More than [`MAX_LOG_LINES`].
    #[error("the checkpoint has more than {MAX_LOG_LINES} signature lines of the log's key: one is enough")]
    Repeated,
    /// Too many of one caller.
    #[error("this caller makes {0}")]
    CallerQuota(TooFast),
    /// Too many for one log.
    #[error("there are, for this log, {0}")]
    LogQuota(TooFast),
    /// The log did not answer the gate.
    #[error(
        "this witness cosigns for {origin} when it has seen the log's published checkpoint, and the log does not show it: {why}"
    )]
    LogSilent {
        /// The log.
        origin: Origin,
        /// What was tried.
        why: String,
    },
    /// Another proposal is waiting for the log's answer.
    #[error("this witness is asking the log {0} what it has published; try again")]
    Asking(Origin),
    /// The keeper refused.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The keeper's queue is full.
    #[error("too many proposals wait for this witness's disk")]
    Overloaded,
    /// The keeper is gone.
    #[error("a fault has stopped this witness; its messages say which")]
    Stopped,
}

/// Why a list was not taken.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// The list itself.
    #[error(transparent)]
    List(#[from] ListError),
    /// The store.
    #[error(transparent)]
    Admit(#[from] AdmitError),
    /// The keeper is gone.
    #[error("a fault has stopped this witness")]
    Stopped,
}

/// One log of a witness.
#[derive(Debug)]
struct Log {
    listed: Listed,
    on_list: AtomicBool,
    /// Whether the list has another key than this one.
    rekeyed: AtomicBool,
    /// Whether this key is not the one that signed what is held: only a start with the right one puts it right.
    wrong_key: bool,
    newest: watch::Sender<Option<Arc<Cosigned>>>,
    /// Held while the log is being asked.
    asking: tokio::sync::Mutex<()>,
    gate: Mutex<Gate>,
    /// Whether it is known that evidence against its key is kept.
    evidence_kept: AtomicBool,
    /// What was held when the log was taken in.
    first: Seen,
}

/// Where a log stands with the gate.
#[derive(Clone, Copy, Debug)]
struct Gate {
    /// Whether there is somebody to ask, by the newest list.
    can_ask: bool,
    passage: Passage,
}

/// What of a head is shown.
#[derive(Clone, Copy, Debug)]
struct Seen {
    size: TreeSize,
    /// `None`: it was never cosigned.
    cosigned_at: Option<UnixMillis>,
}

impl Seen {
    fn of(held: &Held) -> Seen {
        let cosigned = !held.note.is_empty();
        Seen { size: held.head.size, cosigned_at: cosigned.then_some(held.time) }
    }
}

/// A log as it is listed to others.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shown {
    /// The log.
    pub origin: Origin,
    /// Its key.
    pub vkey: VKey,
    /// The size that is held.
    pub size: TreeSize,
    /// When it was last cosigned, in POSIX seconds; 0 if never.
    pub cosigned_at: u64,
}

/// A running witness.
pub struct Witness {
    vkey: VKey,
    settings: Settings,
    clock: Arc<dyn Clock>,
    ask: Arc<dyn AskLog>,
    logs: RwLock<BTreeMap<Origin, Arc<Log>>>,
    messages: mpsc::Sender<Message>,
    callers: Mutex<Rates<String>>,
    log_quotas: Mutex<Rates<Origin>>,
    counters: Counters,
    draining: watch::Sender<bool>,
    evidence: Arc<dyn Dir>,
}

impl Witness {
    /// Starts the keeper's thread. The list must have been [`prepare`]d with the keeper. The second value tells when the
    /// witness cannot go on, and why; the process must end then. In `evidence` it keeps what convicts a log, one file for each.
    pub fn start(
        keeper: Keeper,
        prepared: Prepared,
        settings: Settings,
        clock: Arc<dyn Clock>,
        ask: Arc<dyn AskLog>,
        evidence: Arc<dyn Dir>,
    ) -> io::Result<(Witness, oneshot::Receiver<Fatal>)> {
        let vkey = keeper.vkey().clone();
        let (messages, failure) = thread::spawn(keeper, Arc::clone(&clock))?;
        let logs = prepared.0.into_iter().map(|log| (log.listed.origin.clone(), Arc::new(log))).collect();
        let witness = Witness {
            vkey,
            settings,
            clock,
            ask,
            logs: RwLock::new(logs),
            messages,
            callers: Mutex::new(Rates::new(settings.caller_per_second)),
            log_quotas: Mutex::new(Rates::new(settings.log_per_second)),
            counters: Counters::default(),
            draining: watch::Sender::new(false),
            evidence,
        };
        Ok((witness, failure))
    }

    /// Ends what would not end by itself: the streams of [`Witness::watch`].
    pub fn drain(&self) {
        self.draining.send_replace(true);
    }

    /// Completes when the witness is about to stop.
    pub fn drained(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut draining = self.draining.subscribe();
        async move { drop(draining.wait_for(|draining| *draining).await) }
    }

    /// The public key.
    pub fn vkey(&self) -> &VKey {
        &self.vkey
    }

    /// The only log here, if there is one alone.
    pub fn only_log(&self) -> Option<Origin> {
        let logs = self.logs.read().unwrap_or_else(PoisonError::into_inner);
        match logs.first_key_value() {
            Some((only, _)) if logs.len() == 1 => Some(only.clone()),
            _ => None,
        }
    }

    /// Counts a proposal of a caller, before anything about it is looked at.
    pub fn count_caller(&self, caller: &str) -> Result<(), AddError> {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = callers.take(&caller.to_owned(), self.clock.now()).map_err(AddError::CallerQuota);
        taken.inspect_err(|error| self.counters.count_error(error))
    }

    /// Takes a proposal for a log.
    pub async fn add_checkpoint(
        &self,
        origin: &Origin,
        old_size: TreeSize,
        checkpoint: &[u8],
        proof: Vec<Hash>,
    ) -> Result<Answer, AddError> {
        let answer = self.try_add(origin, old_size, checkpoint, proof).await;
        self.counters.count(&answer);
        answer
    }

    async fn try_add(
        &self,
        origin: &Origin,
        old_size: TreeSize,
        checkpoint: &[u8],
        proof: Vec<Hash>,
    ) -> Result<Answer, AddError> {
        let log = self.log(origin)?;
        if !log.on_list.load(Ordering::Relaxed) {
            return Err(AddError::Removed(origin.clone()));
        }
        if log.rekeyed.load(Ordering::Relaxed) {
            return Err(AddError::Rekeyed(origin.clone()));
        }
        let vkey = &log.listed.vkey;
        let named = |line: &&SignatureLine| line.key_id == vkey.id() && line.name == vkey.name().as_str();
        let lines = Parsed::parse(checkpoint).map(|note| note.signatures().iter().filter(named).count());
        if lines.map_err(CheckpointError::from)? > MAX_LOG_LINES {
            return Err(AddError::Repeated);
        }
        let signed = LogSigned::open(checkpoint, origin, std::slice::from_ref(&log.listed.vkey))?;
        // What is cosigned is what was understood, and nothing else.
        let plain = encode_text(origin, &signed.head());
        let is_plain = Parsed::parse(signed.note().as_bytes()).is_ok_and(|parsed| parsed.text() == plain);
        if !is_plain {
            return Err(AddError::NotPlain);
        }
        self.log_quotas
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take(origin, self.clock.now())
            .map_err(AddError::LogQuota)?;
        self.pass_gate(&log).await?;

        let proposal =
            Proposal { old_size, head: signed.head(), proof, note: signed.note().as_bytes().to_vec() };
        let (answer, answered) = oneshot::channel();
        self.send(Message::Propose(origin.clone(), proposal, answer))?;
        let answer = answered.await.map_err(|_| AddError::Stopped)??;
        match &answer {
            Answer::Cosigned(cosigned) => show(&log, Arc::clone(cosigned)),
            Answer::Stale(_) => {}
            Answer::Conflict { heads, held, proposed, proof } => {
                tracing::error!(log = %origin, %heads, "a log signed two histories; both notes are in the answer");
                self.keep_evidence(&log, *heads, held.clone(), proposed.clone(), proof.clone()).await;
            }
        }
        Ok(answer)
    }

    /// Keeps two notes of a log as evidence against it, once: more would show no more. That it cannot be kept changes nothing
    /// for whoever asked.
    async fn keep_evidence(
        &self,
        log: &Log,
        heads: Conflict,
        held: Vec<u8>,
        proposed: Vec<u8>,
        proof: Vec<Hash>,
    ) {
        if log.evidence_kept.load(Ordering::Relaxed) {
            return;
        }
        let (key, dir) = (log.listed.vkey.clone(), Arc::clone(&self.evidence));
        let keeping =
            tokio::task::spawn_blocking(move || evidence::keep(&*dir, &key, heads, &held, &proposed, proof));
        let origin = &log.listed.origin;
        match keeping.await.map_err(|error| error.to_string()).and_then(|kept| kept) {
            Ok(file) => {
                log.evidence_kept.store(true, Ordering::Relaxed);
                tracing::error!(log = %origin, %file, "evidence against the holder of the log's key");
            }
            Err(why) => {
                tracing::error!(log = %origin, %why, "evidence against the holder of the log's key was not kept")
            }
        }
    }

    /// Before the first cosignature for a log after a start: does the log show a cosignature of ours that is newer than
    /// what we hold?
    async fn pass_gate(&self, log: &Log) -> Result<(), AddError> {
        if log.gate().passage != Passage::Closed {
            return Ok(());
        }
        let origin = &log.listed.origin;
        let Ok(_asking) = log.asking.try_lock() else { return Err(AddError::Asking(origin.clone())) };
        let Gate { can_ask, passage } = *log.gate();
        if passage != Passage::Closed {
            return Ok(());
        }
        let sightings = if can_ask {
            let notes = tokio::time::timeout(GATE_WAIT, self.ask.notes(origin, log.seen().size)).await;
            match notes.unwrap_or_else(|_| Err("no answer in time".into())) {
                Ok(notes) => {
                    Some(notes.iter().filter_map(|note| sighting(note, origin, &self.vkey)).collect())
                }
                Err(why) if self.settings.pass_unreachable => {
                    tracing::warn!(log = %origin, %why, "the log does not answer; cosigning without knowing what it has published");
                    None
                }
                Err(why) => return Err(AddError::LogSilent { origin: origin.clone(), why }),
            }
        } else {
            None
        };
        let (answer, answered) = oneshot::channel();
        self.send(Message::Pass(origin.clone(), sightings, answer))?;
        let passage = answered.await.map_err(|_| AddError::Stopped)??;
        let mut gate = log.gate();
        if gate.can_ask && !can_ask {
            // A list that says where the log is was taken in meanwhile: now it must be asked.
            return Err(AddError::Asking(origin.clone()));
        }
        gate.passage = passage;
        Ok(())
    }

    /// The newest checkpoint that was cosigned for a log.
    pub async fn checkpoint(&self, origin: &Origin) -> Result<Option<Arc<Cosigned>>, AddError> {
        let log = self.log(origin)?;
        self.made_again(&log).await
    }

    /// Follows what is cosigned for a log. The newest is there at once.
    pub async fn watch(&self, origin: &Origin) -> Result<watch::Receiver<Option<Arc<Cosigned>>>, AddError> {
        let log = self.log(origin)?;
        let receiver = log.newest.subscribe();
        self.made_again(&log).await?;
        Ok(receiver)
    }

    /// What was cosigned before the start is signed again when it is first asked for. Where a newer head may have been lost, the
    /// gate decides first: a log that waits to hear what its witnesses hold proposes nothing before.
    async fn made_again(&self, log: &Log) -> Result<Option<Arc<Cosigned>>, AddError> {
        if let Some(newest) = log.newest.borrow().clone() {
            return Ok(Some(newest));
        }
        let newest = match self.newest(log).await {
            Err(AddError::Refused(Refused::Gated(_))) => {
                self.pass_gate(log).await?;
                self.newest(log).await?
            }
            newest => newest?,
        };
        if let Some(cosigned) = newest {
            show(log, cosigned);
        }
        Ok(log.newest.borrow().clone())
    }

    async fn newest(&self, log: &Log) -> Result<Option<Arc<Cosigned>>, AddError> {
        let (answer, answered) = oneshot::channel();
        self.send(Message::Newest(log.listed.origin.clone(), answer))?;
        Ok(answered.await.map_err(|_| AddError::Stopped)??)
    }

    /// The logs on the list after `after` in the order of their origins, those of them that `may_see`, at most `most`.
    pub async fn list(
        &self,
        after: Option<&Origin>,
        most: usize,
        may_see: impl Fn(&Origin) -> bool,
    ) -> Vec<Shown> {
        let logs: Vec<Arc<Log>> = {
            let logs = self.logs.read().unwrap_or_else(PoisonError::into_inner);
            let served = |log: &&Arc<Log>| log.on_list.load(Ordering::Relaxed);
            logs.iter()
                .filter(|(origin, _)| after.is_none_or(|after| *origin > after))
                .map(|(_, log)| log)
                .filter(served)
                .filter(|log| may_see(&log.listed.origin))
                .take(most)
                .cloned()
                .collect()
        };
        let mut shown = Vec::with_capacity(logs.len());
        for log in logs {
            // A log that cannot be shown as it is, because a newer head may have been lost, is shown as one that has none.
            let newest = self.made_again(&log).await.ok().flatten();
            let held = newest.map(|newest| (newest.held.head.size, newest.held.time.0 / 1_000));
            let (size, cosigned_at) = held.unwrap_or((TreeSize::ZERO, 0));
            let Listed { origin, vkey, .. } = log.listed.clone();
            shown.push(Shown { origin, vkey, size, cosigned_at });
        }
        shown
    }

    /// Takes a new list: adds what is new, and refuses from now on what is gone or has another key. Says what it came to.
    pub async fn apply(&self, list: Vec<Listed>) -> Result<Changes, ApplyError> {
        list::check(&list)?;
        let known = {
            let logs = self.logs.read().unwrap_or_else(PoisonError::into_inner);
            let known = |(origin, log): (&Origin, &Arc<Log>)| {
                (origin.clone(), (log.listed.vkey.clone(), log.on_list.load(Ordering::Relaxed)))
            };
            logs.iter().map(known).collect()
        };
        let reachable: BTreeMap<Origin, bool> =
            list.iter().map(|log| (log.origin.clone(), log.can_ask)).collect();
        let mut changes = list::compare(&known, list);
        let new: Vec<Origin> = changes.added.iter().map(|log| log.origin.clone()).collect();
        let mut held = Vec::new();
        if !new.is_empty() {
            let (answer, answered) = oneshot::channel();
            self.messages.send(Message::Admit(new, answer)).await.map_err(|_| ApplyError::Stopped)?;
            held = answered.await.map_err(|_| ApplyError::Stopped)??;
        }
        let mut logs = self.logs.write().unwrap_or_else(PoisonError::into_inner);
        for (listed, held) in changes.added.iter().zip(&held) {
            logs.insert(listed.origin.clone(), Arc::new(Log::new(listed.clone(), held)));
        }
        let set = |origin: &Origin, on_list| {
            logs.get(origin).iter().for_each(|log| log.on_list.store(on_list, Ordering::Relaxed));
        };
        changes.removed.iter().for_each(|origin| set(origin, false));
        changes.returned.iter().for_each(|origin| set(origin, true));
        for (origin, log) in logs.iter() {
            let rekeyed = changes.rekeyed.iter().any(|other| other.origin == *origin);
            log.rekeyed.store(rekeyed || log.wrong_key, Ordering::Relaxed);
            if reachable.get(origin).is_some_and(|can_ask| !rekeyed && log.reach(*can_ask)) {
                changes.reachable.push(origin.clone());
            }
        }
        Ok(changes)
    }

    /// How it is doing.
    pub fn status(&self) -> Status {
        let logs = self.logs.read().unwrap_or_else(PoisonError::into_inner);
        let served: Vec<Passage> =
            logs.values().filter(|log| log.is_served()).map(|log| log.gate().passage).collect();
        let count = |passage| served.iter().filter(|other| **other == passage).count();
        Status {
            logs: logs.len(),
            refused_logs: logs.len() - served.len(),
            waiting_logs: count(Passage::Closed),
            unchecked_logs: count(Passage::Unchecked),
            draining: *self.draining.borrow(),
            stopped: self.messages.is_closed(),
            ..self.counters.status()
        }
    }

    /// What it holds for each log that it serves, in the order of their origins.
    pub fn held(&self) -> Vec<HeldLog> {
        let logs = self.logs.read().unwrap_or_else(PoisonError::into_inner);
        let held = logs.iter().filter(|(_, log)| log.is_served()).map(|(origin, log)| {
            let Seen { size, cosigned_at } = log.seen();
            HeldLog { origin: origin.clone(), size, cosigned_at, passage: log.gate().passage }
        });
        held.collect()
    }

    fn log(&self, origin: &Origin) -> Result<Arc<Log>, AddError> {
        let logs = self.logs.read().unwrap_or_else(PoisonError::into_inner);
        logs.get(origin).cloned().ok_or_else(|| AddError::UnknownLog(origin.clone()))
    }

    fn send(&self, message: Message) -> Result<(), AddError> {
        self.messages.try_send(message).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => AddError::Overloaded,
            mpsc::error::TrySendError::Closed(_) => AddError::Stopped,
        })
    }
}

/// Answers may overtake one another on their way from the keeper.
fn show(log: &Log, cosigned: Arc<Cosigned>) {
    log.newest.send_if_modified(|newest| {
        let newer = newest.as_ref().is_none_or(|newest| cosigned.is_after(newest));
        if newer {
            *newest = Some(cosigned);
        }
        newer
    });
}

impl Log {
    fn new(listed: Listed, held: &Held) -> Log {
        let wrong_key =
            list::check_key(&listed, held).inspect_err(|why| tracing::error!(%why, "refused")).is_err();
        let gate = Gate { can_ask: listed.can_ask, passage: Passage::Closed };
        Log {
            listed,
            on_list: AtomicBool::new(true),
            rekeyed: AtomicBool::new(wrong_key),
            wrong_key,
            newest: watch::Sender::new(None),
            asking: tokio::sync::Mutex::new(()),
            gate: Mutex::new(gate),
            evidence_kept: AtomicBool::new(false),
            first: Seen::of(held),
        }
    }

    fn is_served(&self) -> bool {
        self.on_list.load(Ordering::Relaxed) && !self.rekeyed.load(Ordering::Relaxed)
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in whether there is somebody to ask. Says whether there is now and was not before: then what had passed unasked
    /// has to pass again.
    fn reach(&self, can_ask: bool) -> bool {
        let mut gate = self.gate();
        let newly = can_ask && !gate.can_ask;
        if newly && gate.passage == Passage::Unchecked {
            gate.passage = Passage::Closed;
        }
        gate.can_ask = can_ask;
        newly
    }

    fn seen(&self) -> Seen {
        self.newest.borrow().as_ref().map_or(self.first, |newest| Seen::of(&newest.held))
    }
}

/// The logs of a list, each with a slot in the store.
#[derive(Debug)]
pub struct Prepared(Vec<Log>);

/// Compares the list with what the store holds at a start, and adds the logs that are new. Logs that are held but not
/// listed keep their slots; a log whose head was signed with another key than the listed one is refused, and said so.
pub fn prepare(keeper: &mut Keeper, list: Vec<Listed>, clock: &dyn Clock) -> Result<Prepared, ApplyError> {
    list::check(&list)?;
    let origins: Vec<Origin> = list.iter().map(|log| log.origin.clone()).collect();
    let held = keeper.admit(&origins, clock.now())?;
    Ok(Prepared(list.into_iter().zip(&held).map(|(listed, held)| Log::new(listed, held)).collect()))
}
