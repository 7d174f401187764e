//! What lies behind every door: events are handed to the intake, and answered once they are durable. It bounds what is held in
//! memory on the way, and counts. It knows no protocol.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use epigraph_collector::intake::{Command, Pushed, Taken};
use epigraph_core::Clock;
use epigraph_event::v1::Label;
use epigraph_event::{Context, Decoded};
use epigraph_rpc::{Quota, Share};
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Bytes of requests that all doors hold together, from their first byte until they are durable. What is decoded from them takes a
/// few times as much, so this keeps a collector well below half a gigabyte.
const MAX_HELD_BYTES: usize = 64 << 20;

/// The same for one door, so that one that is flooded leaves the others open.
const MAX_HELD_BYTES_PER_DOOR: usize = 40 << 20;

/// How long a sender waits for its events to be durable. Syncs take milliseconds; a disk that is full takes until there is space,
/// and the usual senders hang up after 30 s.
const DURABLE_TIME: Duration = Duration::from_secs(20);

/// When whoever was pushed back may try again: some of what waits will have been delivered, if anything is.
pub const RETRY_AFTER: Duration = Duration::from_secs(2);

/// What all doors hold.
pub struct Held(Arc<Quota<usize>>);

impl Held {
    /// Nothing yet.
    pub fn of_all() -> Arc<Held> {
        Arc::new(Held(Quota::new(MAX_HELD_BYTES, MAX_HELD_BYTES_PER_DOOR)))
    }
}

/// What became of a request's events.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// They are durable.
    Taken {
        /// Events, also those that came before; those of the quarantine are not among them.
        events: u64,
        /// Records that could not be understood, and are kept in the quarantine.
        rejected: u64,
        /// Why the first of them was not understood.
        why: Option<&'static str>,
    },
    /// Nothing of them was taken: the spool or the memory is full, or the collector is about to stop.
    Full,
    /// It is not known yet whether they will be durable: the disk is slow or full.
    Late,
}

/// What is counted at a door, since the start.
#[derive(Default, Debug)]
pub struct Counts {
    /// Events that are durable.
    pub events: AtomicU64,
    /// Records that came before.
    pub repeated: AtomicU64,
    /// Requests and messages that were not taken for lack of room or time.
    pub pushed_back: AtomicU64,
    rejected: Mutex<BTreeMap<&'static str, u64>>,
    refused: Mutex<BTreeMap<&'static str, u64>>,
}

impl Counts {
    /// Records of the quarantine and requests that were not read, by why.
    pub fn rejected(&self) -> BTreeMap<&'static str, u64> {
        self.rejected.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Connections that were not let in, by why.
    pub fn refusals(&self) -> BTreeMap<&'static str, u64> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counts a connection.
    pub fn refused(&self, kind: &'static str) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner).entry(kind).or_default() += 1;
    }

    /// Counts a record or request that was not understood.
    pub fn reject(&self, why: &'static str) {
        *self.rejected.lock().unwrap_or_else(PoisonError::into_inner).entry(why).or_default() += 1;
    }
}

/// See the module.
pub struct Desk {
    door: usize,
    tenant: String,
    commands: Sender<Command>,
    clock: Arc<dyn Clock>,
    held: Arc<Held>,
    counts: Arc<Counts>,
}

impl Desk {
    /// Of the nth door.
    pub fn new(
        door: usize,
        tenant: String,
        commands: Sender<Command>,
        clock: Arc<dyn Clock>,
        held: Arc<Held>,
    ) -> Desk {
        Desk { door, tenant, commands, clock, held, counts: Arc::default() }
    }

    /// What is counted here.
    pub fn counts(&self) -> &Arc<Counts> {
        &self.counts
    }

    /// Holds so many bytes until it is dropped; none if too many are held already.
    pub fn hold(&self, bytes: usize) -> Option<Share<usize>> {
        self.held.0.take(self.door, bytes).ok()
    }

    /// Decodes what a request brought and has it made durable, waiting [`DURABLE_TIME`] for it.
    pub async fn take(
        &self,
        sender: Option<Arc<str>>,
        repeats: bool,
        decode: impl FnOnce(&Context) -> Vec<Decoded> + Send + 'static,
    ) -> Answer {
        let answer = timeout(DURABLE_TIME, self.take_in(sender, repeats, decode)).await;
        let answer = answer.unwrap_or(Answer::Late);
        self.count(&answer);
        answer
    }

    /// The same, waiting for as long as it takes: for senders that are told nothing.
    pub async fn take_unheard(
        &self,
        sender: Option<Arc<str>>,
        decode: impl FnOnce(&Context) -> Vec<Decoded> + Send + 'static,
    ) -> Answer {
        let answer = self.take_in(sender, false, decode).await;
        self.count(&answer);
        answer
    }

    async fn take_in(
        &self,
        sender: Option<Arc<str>>,
        repeats: bool,
        decode: impl FnOnce(&Context) -> Vec<Decoded> + Send + 'static,
    ) -> Answer {
        let context = Context {
            observed_at: self.clock.now(),
            tenant: self.tenant.clone(),
            instance: sender.as_deref().unwrap_or_default().to_owned(),
            ..Context::default()
        };
        // Decoding sixteen megabytes takes a while; whoever else is served does not wait for it.
        let decoding = tokio::task::spawn_blocking(move || {
            let mut decoded = decode(&context);
            if let Some(sender) = sender {
                decoded.iter_mut().flatten().for_each(|event| {
                    event.core.labels.push(Label { key: SENDER.to_owned(), value: sender.to_string() });
                });
            }
            (decoded, context)
        });
        let Ok((events, context)) = decoding.await else { return Answer::Full };
        let refusals: Vec<&'static str> =
            events.iter().filter_map(|decoded| decoded.as_ref().err()).map(|why| why.reason.code()).collect();
        let (durable, is_durable) = oneshot::channel();
        let pushed = Pushed { events, context, door: self.door, repeats, durable };
        if self.commands.send(Command::Push(pushed)).is_err() {
            return Answer::Full;
        }
        let Ok(Taken { events, repeated }) = is_durable.await else { return Answer::Full };
        self.counts.repeated.fetch_add(repeated, Ordering::Relaxed);
        refusals.iter().for_each(|why| self.counts.reject(why));
        let rejected = refusals.len() as u64;
        let events = (events + repeated).saturating_sub(rejected);
        Answer::Taken { events, rejected, why: refusals.first().copied() }
    }

    fn count(&self, answer: &Answer) {
        match answer {
            Answer::Taken { events, .. } => self.counts.events.fetch_add(*events, Ordering::Relaxed),
            Answer::Full | Answer::Late => self.counts.pushed_back.fetch_add(1, Ordering::Relaxed),
        };
    }
}

/// The label of an event with the name in its sender's certificate, whoever the record says that it is from.
const SENDER: &str = "sender";
