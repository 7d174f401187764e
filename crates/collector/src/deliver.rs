//! Delivery: what is in the spool goes to the audit service, in order, until each batch is proven to be in the log. Exactly
//! once: a batch whose answer was lost is sent again with the same bytes, and the service answers as the first time.
//!
//! Nobody is trusted: a batch leaves the spool only once the leaves that were made here are shown to be under a
//! checkpoint that the policy accepts.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use bytes::Bytes;
use epigraph_core::backoff::spread_wait;
use epigraph_core::checkpoint::CheckpointError;
use epigraph_core::proof::{ProofError, verify_run};
use epigraph_core::{Checkpoint, Entropy, Hash, LeafIndex, Origin, Policy, SourceVKey, TreeSize};
use epigraph_event::batch::{BatchError, Roll, Unverified};
use epigraph_rpc::CallError;
use epigraph_rpc::peer::audit::{
    Audit, BatchAnswers, BatchName, BatchRefusal, BatchSender, SourceState, Submitted,
};
use epigraph_store::file::Dir;
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::intake::Command;
use crate::spool::fresh::Freshest;
use crate::spool::{Progress, SpoolError, SpoolReader};

/// Batches that are sent and not proven yet.
const MAX_IN_FLIGHT: usize = 64;

/// The bytes of them: what delivery holds in memory.
const MAX_IN_FLIGHT_BYTES: usize = 16 << 20;

/// The first wait after a failure, and the longest.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// How long there may be no answer while there should be one, before the connection is given up: publication takes seconds
/// where all is well.
const STALL: Duration = Duration::from_secs(120);

/// An audit service, as far as a collector needs it.
pub trait Sink {
    /// Takes batches.
    type Sending: Sending + Send;
    /// Gives answers.
    type Answers: Answers + Send;
    /// Opens a stream.
    fn submit(&self) -> impl Future<Output = Result<(Self::Sending, Self::Answers), CallError>> + Send;
    /// Where this source stands there.
    fn source(&self, source: &Hash) -> impl Future<Output = Result<Option<SourceState>, CallError>> + Send;
}

/// The sending half.
pub trait Sending {
    /// Sends an encoded batch; false if the stream has ended. If it is not awaited to its end nothing was sent.
    fn send(&mut self, batch: Bytes) -> impl Future<Output = bool> + Send;
}

/// The receiving half.
pub trait Answers {
    /// The next answer; none once the service wants its caller to connect anew.
    fn next(&mut self) -> impl Future<Output = Result<Option<Submitted>, CallError>> + Send;
}

/// An audit service over the network.
pub struct Service {
    /// The service.
    pub audit: Audit,
    /// The log that it puts leaves into.
    pub origin: Origin,
}

impl Sink for Service {
    type Sending = BatchSender;
    type Answers = BatchAnswers;

    async fn submit(&self) -> Result<(BatchSender, BatchAnswers), CallError> {
        self.audit.submit(self.origin.as_str()).await
    }

    async fn source(&self, source: &Hash) -> Result<Option<SourceState>, CallError> {
        self.audit.source(self.origin.as_str(), source).await
    }
}

impl Sending for BatchSender {
    async fn send(&mut self, batch: Bytes) -> bool {
        BatchSender::send(self, batch).await
    }
}

impl Answers for BatchAnswers {
    async fn next(&mut self) -> Result<Option<Submitted>, CallError> {
        BatchAnswers::next(self).await
    }
}

/// Why nothing is delivered any more. What is in the spool stays there.
#[derive(Debug, Error)]
pub enum DeliverError {
    /// The service could not be reached, or refused the call.
    #[error("{0}")]
    Call(#[from] CallError),
    /// The service took nothing of a batch.
    #[error("the audit service refused batch {number}: {message}. It stays in the spool")]
    Refused {
        /// Which.
        number: u64,
        /// Why, for programs.
        refusal: BatchRefusal,
        /// Why, for people.
        message: String,
    },
    /// The spool is older than what the service has.
    #[error(
        "the audit service has batches of this source up to {theirs}, and the spool ends before {ours}: the collector's directory \
         is an old copy, or another collector has the same key. Put the newest copy back; if there is none, make a new \
         directory with a new key and retire this one"
    )]
    OldCopy {
        /// The number after the last batch there.
        theirs: u64,
        /// The number of the next batch here.
        ours: u64,
    },
    /// The service has less than was proven.
    #[error(
        "batches of this source before {ours} were delivered, and the audit service has none from {theirs} on: its state was set \
         back. Nothing is sent until it is put right there"
    )]
    Forgotten {
        /// The number after the last batch there.
        theirs: u64,
        /// The number of the first batch that was not delivered.
        ours: u64,
    },
    /// The spool cannot be read.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// A batch in the spool is not what was signed.
    #[error("a batch in the collector's spool is not what was signed: {0}")]
    Batch(#[from] BatchError),
    /// The checkpoint is not one.
    #[error(
        "the audit service says that batch {number} is published, and its checkpoint does not show it: {source}"
    )]
    Checkpoint {
        /// Which.
        number: u64,
        /// What is wrong.
        source: CheckpointError,
    },
    /// The proof is none.
    #[error("the audit service says that batch {number} is in the log, and does not prove it: {source}")]
    NotProven {
        /// Which.
        number: u64,
        /// What is wrong.
        source: ProofError,
    },
    /// The answer fits nothing.
    #[error("the audit service answered what nobody asked: {0}")]
    OutOfTurn(&'static str),
    /// The thread that owns the spool has ended, and says why itself.
    #[error("the intake of the collector has ended")]
    Ended,
}

impl DeliverError {
    /// Whether it may pass by itself.
    fn may_pass(&self) -> bool {
        matches!(
            self,
            DeliverError::Call(_) | DeliverError::Refused { refusal: BatchRefusal::UnknownSource, .. }
        )
    }
}

/// What delivery needs to know.
pub struct Delivery<S> {
    /// Where to.
    pub sink: S,
    /// The public key of the source.
    pub source: SourceVKey,
    /// What is believed.
    pub policy: Policy,
    /// The log.
    pub origin: Origin,
    /// The files of the spool.
    pub spool: Arc<dyn Dir>,
    /// What of it need not be read back.
    pub fresh: Freshest,
    /// What is durable.
    pub progress: watch::Receiver<Progress>,
    /// Who hears what was delivered.
    pub commands: Sender<Command>,
    /// For waits.
    pub entropy: Arc<dyn Entropy>,
}

/// A batch that was sent.
struct InFlight {
    batch: Roll,
    bytes: usize,
    accepted: Option<(LeafIndex, u64)>,
    proven: bool,
}

/// How far one connection has read the spool.
struct Reading {
    /// What is behind everything that was read.
    at: TreeSize,
    /// There, if the disk was needed last.
    reader: Option<SpoolReader>,
}

impl InFlight {
    fn number(&self) -> u64 {
        self.batch.signed().envelope().number
    }
}

impl<S: Sink> Delivery<S> {
    /// Delivers until everything was delivered and nothing more comes. Tries again for `patience` failures in a row, for ever
    /// without; what does not pass by itself ends it at once.
    pub async fn run(mut self, patience: Option<u32>) -> Result<(), DeliverError> {
        let mut failures = 0_u32;
        loop {
            let before = self.progress.borrow().delivered;
            let ended = self.session().await;
            if self.progress.borrow().delivered > before {
                failures = 0;
            }
            match ended {
                Ok(true) => return Ok(()),
                Ok(false) => failures = failures.saturating_add(1),
                Err(error) if error.may_pass() && patience.is_none_or(|patience| failures < patience) => {
                    failures = failures.saturating_add(1);
                    tracing::warn!(%error, failures, "nothing can be delivered; the spool keeps it, and it is tried again");
                }
                Err(error) => return Err(error),
            }
            sleep(spread_wait(FIRST_WAIT, LONGEST_WAIT, failures, &*self.entropy)).await;
        }
    }

    /// One connection. Whether everything was delivered.
    async fn session(&mut self) -> Result<bool, DeliverError> {
        let start = *self.progress.borrow_and_update();
        self.compare(start).await?;
        let (mut sending, mut answers) = self.sink.submit().await?;
        let mut reading = Reading { at: start.first_waiting, reader: None };
        let mut in_flight: VecDeque<InFlight> = VecDeque::new();
        let mut next: Option<(Bytes, Roll)> = None;
        loop {
            let now = *self.progress.borrow_and_update();
            let bytes: usize = in_flight.iter().map(|sent| sent.bytes).sum();
            let room = in_flight.len() < MAX_IN_FLIGHT && bytes < MAX_IN_FLIGHT_BYTES;
            if next.is_none() && room {
                next = self.read(&mut reading, &now)?;
            }
            if next.is_none() && in_flight.is_empty() && now.ended {
                return Ok(true);
            }
            let waits = !in_flight.is_empty();
            tokio::select! {
                sent = send(&mut sending, next.as_ref()), if next.is_some() => {
                    // The answers say why it ended.
                    if !sent {
                        return self.rest(&mut answers, &mut in_flight).await.map(|()| false);
                    }
                    if let Some((encoded, batch)) = next.take() {
                        in_flight.push_back(InFlight { batch, bytes: encoded.len(), accepted: None, proven: false });
                    }
                }
                answer = timeout(STALL, answers.next()) => match answer {
                    Ok(Ok(Some(answer))) => self.hear(answer, &mut in_flight)?,
                    Ok(Ok(None)) => return Ok(false),
                    Ok(Err(error)) => return Err(error.into()),
                    Err(_) if waits => return Err(CallError::TimedOut.into()),
                    Err(_) => {}
                },
                changed = self.progress.changed() => changed.map_err(|_| DeliverError::Ended)?,
            }
        }
    }

    /// Hears what is still said on a stream that takes nothing more.
    async fn rest(
        &self,
        answers: &mut S::Answers,
        in_flight: &mut VecDeque<InFlight>,
    ) -> Result<(), DeliverError> {
        while let Ok(answer) = timeout(STALL, answers.next()).await {
            match answer? {
                Some(answer) => self.hear(answer, in_flight)?,
                None => return Ok(()),
            }
        }
        Err(CallError::TimedOut.into())
    }

    /// Asks where this source stands, before anything is sent: a spool that was put back from an old copy would give numbers twice.
    async fn compare(&self, start: Progress) -> Result<(), DeliverError> {
        let theirs = self.sink.source(&self.source.id()).await?;
        let theirs = theirs.filter(|theirs| theirs.epoch >= start.tip.epoch);
        let next = theirs.as_ref().map_or(0, |theirs| theirs.next_number);
        let newer = theirs.is_some_and(|theirs| theirs.epoch > start.tip.epoch);
        // What was appended since `start` was read cannot be there: only this task sends.
        if newer || next > start.tip.number {
            return Err(DeliverError::OldCopy { theirs: next, ours: start.tip.number });
        }
        if next < start.delivered {
            return Err(DeliverError::Forgotten { theirs: next, ours: start.delivered });
        }
        Ok(())
    }

    /// The next batch: as it was signed a moment ago, or from the disk, where it may have been changed.
    fn read(&self, reading: &mut Reading, now: &Progress) -> Result<Option<(Bytes, Roll)>, DeliverError> {
        loop {
            let (encoded, batch) = match self.fresh.take(reading.at) {
                Some(fresh) => {
                    *reading = Reading { at: fresh.end, reader: None };
                    (fresh.encoded, fresh.roll)
                }
                None if reading.at >= now.durable => return Ok(None),
                None => {
                    let files = || Arc::clone(&self.spool);
                    let start = || SpoolReader::starting_at(files(), self.source.id(), reading.at);
                    let reader = reading.reader.get_or_insert_with(start);
                    let found = reader.next(now.durable)?;
                    reading.at = reader.place();
                    let Some(encoded) = found else { return Ok(None) };
                    let batch = Unverified::decode(encoded.clone())?.verify(&self.source)?.roll();
                    (encoded, batch)
                }
            };
            // A frame may have been passed on the way to the first that waits.
            if batch.signed().envelope().number >= now.delivered {
                return Ok(Some((encoded, batch)));
            }
        }
    }

    fn hear(&self, answer: Submitted, in_flight: &mut VecDeque<InFlight>) -> Result<(), DeliverError> {
        match answer {
            Submitted::Accepted { batch, first_index, ingest_time, .. } => {
                let sent = self.find(in_flight, &batch)?;
                if sent.accepted.replace((first_index, ingest_time)).is_some() {
                    return Err(DeliverError::OutOfTurn("it accepted a batch twice on one stream"));
                }
            }
            Submitted::Published { batch, checkpoint, proofs } => {
                let sent = self.find(in_flight, &batch)?;
                self.verify(sent, &checkpoint, proofs)?;
                sent.proven = true;
            }
            Submitted::Refused { batch, refusal, message } => {
                let number = batch.map_or(0, |batch| batch.number);
                return Err(DeliverError::Refused { number, refusal, message });
            }
        }
        while let Some(sent) = in_flight.pop_front_if(|sent| sent.proven) {
            let delivered = Command::Delivered(sent.number() + 1);
            self.commands.send(delivered).map_err(|_| DeliverError::Ended)?;
        }
        Ok(())
    }

    fn find<'a>(
        &self,
        in_flight: &'a mut VecDeque<InFlight>,
        name: &BatchName,
    ) -> Result<&'a mut InFlight, DeliverError> {
        let is_meant = |sent: &&mut InFlight| {
            let envelope = sent.batch.signed().envelope();
            (envelope.source, envelope.epoch, envelope.number) == (name.source, name.epoch, name.number)
        };
        in_flight.iter_mut().find(is_meant).ok_or(DeliverError::OutOfTurn("a batch that was not sent"))
    }

    /// That the batch's leaves, made here, are in the log, under a checkpoint that the policy accepts.
    fn verify(
        &self,
        sent: &InFlight,
        checkpoint: &[u8],
        proofs: Option<[Vec<Hash>; 2]>,
    ) -> Result<(), DeliverError> {
        let number = sent.number();
        let (index, ingested) =
            sent.accepted.ok_or(DeliverError::OutOfTurn("it published a batch that it did not accept"))?;
        let opened = Checkpoint::open(checkpoint, &self.policy)
            .map_err(|source| DeliverError::Checkpoint { number, source })?;
        if opened.origin() != &self.origin {
            return Err(DeliverError::OutOfTurn("a checkpoint of another log"));
        }
        let leaves = sent.batch.leaf_hashes(ingested);
        if leaves.is_empty() {
            return Ok(());
        }
        let [first, last] = proofs.ok_or(DeliverError::OutOfTurn("events without proofs"))?;
        let head = opened.head();
        verify_run(index, &leaves, head.size, (&first, &last), &head.root)
            .map_err(|source| DeliverError::NotProven { number, source })
    }
}

async fn send<T: Sending>(sending: &mut T, next: Option<&(Bytes, Roll)>) -> bool {
    match next {
        Some((encoded, _)) => sending.send(encoded.clone()).await,
        None => true,
    }
}
