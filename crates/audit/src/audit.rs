//! The audit service of this process, as its callers see it: batches in, events out, and where each source stands.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use epigraph_client::{Client, ClientError};
use epigraph_core::backoff::spread_wait;
use epigraph_core::tlog_proof::Receipt;
use epigraph_core::{
    Checkpoint, Clock, Entropy, Hash, LeafIndex, Origin, SourceKey, TreeSize, UnixMillis, Verified,
};
use epigraph_event::batch::{self, Unverified};
use epigraph_event::chain::Tip;
use epigraph_event::v1::Result as Outcome;
use epigraph_event::{Batch, Bundle};
use serde_json::json;
use thiserror::Error;
use tokio::sync::{Mutex, oneshot, watch};

use crate::ask::record::{By, Entry};
use crate::keeper::{Ended, Keeper, NotTaken};
use crate::registry::Registry;
use crate::source::{Enrolled, REFUSALS, Refused, State, believe};
use crate::store::{EventName, StoreError, Taken};

/// Of batches that are refused for one reason one is put on the record in this time, with how many there were since the one before: whoever
/// sends nothing else does not fill the store and the log.
const REFUSAL_RECORD_MS: u64 = 10_000;

/// The pauses while the log cannot be asked what it has published.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The newest checkpoint, as it is published.
pub type Published = watch::Receiver<Option<Arc<Verified<Checkpoint>>>>;

/// An audit service.
pub struct Audit {
    registry: Registry,
    keeper: Keeper,
    client: Arc<Client>,
    published: Published,
    /// The service's own source, for reads. One at a time signs the next batch.
    own: Mutex<SourceKey>,
    /// Batches that were refused since the start, by the places of [`REFUSALS`].
    refused: [AtomicU64; REFUSALS.len()],
    /// Of these, how many there were when one was last put on the record, and when that was.
    recorded: StdMutex<[Option<(u64, UnixMillis)>; REFUSALS.len()]>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
}

/// Which events are asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Which {
    /// All with this id.
    Id(String),
    /// That of this leaf.
    Leaf(LeafIndex),
    /// That of this number.
    Sequence(EventName),
}

/// Why a read has no answer.
#[derive(Debug, Error)]
pub enum ReadError {
    /// Nothing was taken that is meant.
    #[error("no event of this id, leaf or number was taken here")]
    NotFound,
    /// It was taken, and cannot be proven yet.
    #[error("the event is durable and not yet under a published checkpoint: ask again")]
    NotYetPublished,
    /// The index by which events are found by id could not be asked, or does not have all of them.
    #[error(
        "events are found by id through the audit index: {0}. Ask again, or ask for the event by its leaf index, or by its source, epoch and \
         sequence number"
    )]
    Unindexed(String),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store's thread.
    #[error(transparent)]
    Ended(#[from] Ended),
    /// The read could not be put on the record, because there is no room for it.
    #[error("the read could not be put on the record, so nothing was read: {0}")]
    NoSpace(NotTaken),
    /// The log does not prove it.
    #[error("the log does not prove the event: {0}")]
    Log(#[from] ClientError),
    /// The read could not be put on the record, so nothing is read.
    #[error("the read could not be put on the record, so nothing was read: {0}")]
    Record(String),
}

impl Audit {
    /// Over a store whose keeper runs. `own` is the key under which reads are recorded; its source is enrolled by the service itself.
    pub fn new(
        registry: Registry,
        keeper: Keeper,
        client: Arc<Client>,
        published: Published,
        own: SourceKey,
        (clock, entropy): (Arc<dyn Clock>, Arc<dyn Entropy>),
    ) -> Audit {
        Audit {
            registry,
            keeper,
            client,
            published,
            own: Mutex::new(own),
            refused: Default::default(),
            recorded: StdMutex::default(),
            clock,
            entropy,
        }
    }

    /// The log that the leaves are in.
    pub fn origin(&self) -> &Origin {
        self.client.origin()
    }

    /// Which sources are enrolled.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// How many events are durable, and of how many the leaf is known to be in the log.
    pub fn slots(&self) -> (u64, u64) {
        let placed = *self.keeper.placed().borrow();
        (placed.max(*self.keeper.durable().borrow()), placed)
    }

    /// Counts a batch that was refused, whatever its source thinks of it, and puts it on the record: what it claimed to be, who handed it in
    /// and why it was not taken. One that cannot be put there was counted, and is refused all the same.
    pub async fn refuse(&self, collector: &str, claim: Option<&batch::Envelope>, refused: &Refused) {
        let Some(place) = REFUSALS.iter().position(|(refusal, _)| *refusal == refused.refusal) else {
            return;
        };
        let (Some(count), Some((_, word))) = (self.refused.get(place), REFUSALS.get(place)) else { return };
        let count = count.fetch_add(1, Ordering::Relaxed) + 1;
        let now = self.clock.now();
        let unrecorded = {
            let mut recorded = self.recorded.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(last) = recorded.get_mut(place) else { return };
            let (before, at) = last.unwrap_or((0, UnixMillis(0)));
            if last.is_some() && now.0.saturating_sub(at.0) < REFUSAL_RECORD_MS && now >= at {
                return;
            }
            *last = Some((count, now));
            count.saturating_sub(before + 1)
        };
        let entry = refused_entry(collector, claim, (word, refused), unrecorded);
        if let Err(error) = self.put_on_record(entry).await {
            tracing::warn!(%error, collector, "a batch was refused, and that is not on the record");
        }
    }

    /// How many batches were refused since the start, by the word for the reason.
    pub fn refused(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.refused.iter().map(|count| count.load(Ordering::Relaxed));
        REFUSALS.iter().map(|(_, word)| *word).zip(counts)
    }

    /// Whether there is room for more events.
    pub fn has_room(&self) -> bool {
        self.keeper.has_room()
    }

    /// The time now.
    pub fn now(&self) -> UnixMillis {
        self.clock.now()
    }

    /// Reads a batch that a collector sent, and believes it or says why not; with what it claims to be, if that could be read. Takes
    /// a while: signatures and hashes.
    pub fn believe(
        &self,
        collector: &str,
        bytes: Bytes,
    ) -> (Option<batch::Envelope>, Result<Batch, Refused>) {
        let unverified = match Unverified::decode(bytes) {
            Ok(unverified) => unverified,
            Err(error) => return (None, Err(Refused::malformed(&error))),
        };
        let claim = unverified.claim().ok();
        let source = claim.as_ref().and_then(|claim| self.registry.of_collector(&claim.source, collector));
        (claim, believe(source.as_deref(), unverified))
    }

    /// Hands a batch in; see [`Keeper::submit`].
    pub async fn submit(&self, batch: Batch) -> Result<oneshot::Receiver<Result<Taken, Refused>>, NotTaken> {
        self.keeper.submit(batch).await
    }

    /// Remembers that a batch was refused because of what it is.
    pub async fn note(&self, source: Hash, refused: &Refused) -> Result<(), Ended> {
        match refused.trouble {
            Some(kind) => self.keeper.note(source, kind).await,
            None => Ok(()),
        }
    }

    /// Waits until the leaves of a batch are in the log; the index of the first. None for a batch without events.
    pub async fn placed(&self, taken: &Taken) -> Result<Option<LeafIndex>, ReadError> {
        if taken.count == 0 {
            return Ok(None);
        }
        let end = taken.first_slot.saturating_add(u64::from(taken.count));
        self.keeper.placed().wait_for(|placed| *placed >= end).await.map_err(|_| Ended)?;
        let (reader, slot) = (self.keeper.reader().clone(), taken.first_slot);
        let index = blocking(move || reader.leaf_of_slot(slot)).await??;
        index.map(Some).ok_or_else(|| StoreError::Damaged("the list of leaves".into()).into())
    }

    /// Waits until the leaves of a batch are published, and fetches what proves them: the inclusion proofs of the first and the last,
    /// under the checkpoint that comes along. A batch without events has no leaf, and any checkpoint covers it.
    pub async fn proven(
        &self,
        taken: &Taken,
        first_index: Option<LeafIndex>,
    ) -> Result<(Arc<Verified<Checkpoint>>, Option<[Receipt; 2]>), ReadError> {
        let Some(first_index) = first_index else { return Ok((self.newest(|_| true).await?, None)) };
        let more = u64::from(taken.count.saturating_sub(1));
        let last_index = first_index.checked_add(more).ok_or(ReadError::NotFound)?;
        let checkpoint = self.newest(|checkpoint| checkpoint.head().size.contains(last_index)).await?;
        let reader = self.keeper.reader().clone();
        let (first_slot, last_slot) = (taken.first_slot, taken.first_slot.saturating_add(more));
        let leaves =
            blocking(move || Ok::<_, StoreError>([reader.leaf_in(first_slot)?, reader.leaf_in(last_slot)?]));
        let [first, last] = leaves.await??.map(|leaf| leaf.hash());
        let (first, last) = tokio::try_join!(
            self.client.receipt_under(first_index, &first, &checkpoint),
            self.client.receipt_under(last_index, &last, &checkpoint),
        )?;
        Ok((checkpoint, Some([first, last])))
    }

    /// The newest checkpoint as soon as it is one that will do.
    async fn newest(
        &self,
        will_do: impl Fn(&Verified<Checkpoint>) -> bool,
    ) -> Result<Arc<Verified<Checkpoint>>, ReadError> {
        let mut published = self.published.clone();
        let there = |checkpoint: &Option<Arc<Verified<Checkpoint>>>| {
            checkpoint.as_ref().is_some_and(|checkpoint| will_do(checkpoint))
        };
        let newest = published.wait_for(there).await.map_err(|_| Ended)?;
        newest.clone().ok_or(ReadError::NotYetPublished)
    }

    /// Where a source stands; none if it is not enrolled, or not for this collector.
    pub async fn state(&self, source: &Hash, collector: Option<&str>) -> Result<Option<State>, Ended> {
        let known = match collector {
            Some(collector) => self.registry.of_collector(source, collector),
            None => self.registry.get(source),
        };
        if known.is_none() {
            return Ok(None);
        }
        Ok(Some(self.keeper.state(*source).await?.unwrap_or_default()))
    }

    /// Sources behind `after`, with where they stand.
    pub async fn sources(
        &self,
        after: Option<&Hash>,
        most: usize,
    ) -> Result<Vec<(Arc<Enrolled>, State)>, Ended> {
        let mut sources = Vec::new();
        for source in self.registry.page(after, most) {
            let state = self.keeper.state(source.vkey.id()).await?.unwrap_or_default();
            sources.push((source, state));
        }
        Ok(sources)
    }

    /// Everything that proves the event in a slot, under this checkpoint.
    pub async fn bundle_under(
        &self,
        slot: u64,
        checkpoint: &Verified<Checkpoint>,
    ) -> Result<Bundle, ReadError> {
        let reader = self.keeper.reader().clone();
        let found = blocking(move || {
            let damaged = || StoreError::Damaged(format!("the event in slot {slot}"));
            let name = reader.in_slot(slot)?.ok_or_else(damaged)?;
            let (sealed, opened) = reader.event(&name)?.ok_or_else(damaged)?;
            let batch = reader.batch(&name.source, name.epoch, sealed.batch)?.ok_or_else(damaged)?;
            let leaves = reader.leaves_of(batch.first_slot, batch.count)?;
            let place = slot.checked_sub(batch.first_slot).and_then(|place| usize::try_from(place).ok());
            let path = place.and_then(|place| batch::path(&leaves, place)).ok_or_else(damaged)?;
            Ok::<_, StoreError>((opened, batch.signed, path, reader.leaf_of_slot(slot)?))
        });
        let (opened, signed, path, index) = found.await??;
        let index = index.ok_or(ReadError::NotYetPublished)?;
        if !checkpoint.head().size.contains(index) {
            return Err(ReadError::NotYetPublished);
        }
        let receipt = self.client.receipt_under(index, &opened.leaf.hash(), checkpoint).await?;
        Ok(Bundle {
            leaf: opened.leaf,
            segments: opened.segments,
            record: opened.record,
            signed,
            path,
            receipt,
        })
    }

    /// Puts what a reader did on the record: an event of the service's own source, durable here when this returns.
    pub async fn put_on_record(&self, entry: Entry) -> Result<(), ReadError> {
        let failed = |error: &dyn std::fmt::Display| ReadError::Record(error.to_string());
        let own = self.own.lock().await;
        let now = self.clock.now();
        let state = self.keeper.state(own.vkey().id()).await?.unwrap_or_default();
        let tip = if state.seen { state.tip() } else { Tip::default() };
        let event = entry.event(own.vkey().name().as_str(), now);
        let event = event.seal(&*self.entropy).map_err(|error| failed(&error))?;
        let batch = Batch::sign(&own, &tip, vec![event], now).map_err(|error| failed(&error))?;
        let taken = self.keeper.submit(batch).await.map_err(|not| match not {
            NotTaken::Ended(ended) => ReadError::Ended(ended),
            NotTaken::NoSpace => ReadError::NoSpace(not),
        })?;
        taken.await.map_err(|_| Ended)?.map_err(|refused| failed(&refused))?;
        Ok(())
    }
}

/// What is recorded of a batch that was refused.
fn refused_entry(
    collector: &str,
    claim: Option<&batch::Envelope>,
    (word, refused): (&str, &Refused),
    unrecorded: u64,
) -> Entry {
    let source = claim.map_or_else(String::new, |claim| claim.source.to_string());
    let body = json!({
        "collector": collector,
        "claims": claim.map(|claim| json!({
            "source": source,
            "epoch": claim.epoch,
            "number": claim.number,
            "first_sequence": claim.first_sequence,
            "count": claim.count,
        })),
        "why": refused.message,
        "unrecorded_before": unrecorded,
    });
    Entry {
        action: "batch.refused",
        who: collector.to_owned(),
        by: By::Service,
        result: Outcome::Denied,
        code: word.to_uppercase().replace('-', "_"),
        request: String::new(),
        body,
        about: ("source", source),
        labels: Vec::new(),
    }
}

/// Keeps [`Published`] up to date until the process ends.
pub async fn watch_published(
    client: &Client,
    entropy: Arc<dyn Entropy>,
    newest: watch::Sender<Option<Arc<Verified<Checkpoint>>>>,
) {
    let mut attempts = 0_u32;
    loop {
        let error = match client.watch(Arc::clone(&entropy)).await {
            Ok(mut watch) => loop {
                match watch.next().await {
                    Ok(checkpoint) => {
                        attempts = 0;
                        newest.send_if_modified(|newest| {
                            let size = newest.as_ref().map_or(TreeSize::ZERO, |newest| newest.head().size);
                            let grown = newest.is_none() || checkpoint.head().size > size;
                            if grown {
                                *newest = Some(Arc::new(checkpoint));
                            }
                            grown
                        });
                    }
                    Err(error) => break error,
                }
            },
            Err(error) => error,
        };
        tracing::warn!(%error, "the log does not say what it has published");
        attempts = attempts.saturating_add(1);
        tokio::time::sleep(spread_wait(FIRST_PAUSE, LONGEST_PAUSE, attempts, &*entropy)).await;
    }
}

/// Runs what waits for the disk where it holds up nobody else.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Ended> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Ended)
}
