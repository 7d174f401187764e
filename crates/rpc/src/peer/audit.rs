//! An audit service, seen by collectors that hand in batches and by those who read events.

use bytes::Bytes;
use epigraph_core::{Hash, LeafIndex, UnixMillis};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Streaming};

use super::{at_most, call, present};
use crate::channel::{Channel, channel};
use crate::convert::{ConvertError, hash, leaf_index, proof};
use crate::identity::SpiffeId;
use crate::limits::{
    CALL_DEADLINE, MAX_LISTED_GAPS, MAX_MESSAGE_CHARS, MAX_RESPONSE_BYTES, MAX_SOURCES_PAGE,
};
use crate::status::CallError;
use crate::tls::{ClientTls, TlsError};
use crate::v1;
use crate::v1::audit_service_client::AuditServiceClient;
use crate::v1::get_event_request::Which;
use crate::v1::submit_batches_response::Outcome;

pub use crate::v1::BatchRefusal;

/// Batches that wait for the connection; a sender with more waits for it.
const QUEUED_BATCHES: usize = 1;

/// Bundles in one page of `GetEvent`.
const MAX_BUNDLES: u64 = 100;

/// Kinds of trouble that a source can have had; a service that lists more is not one of ours.
const MAX_TROUBLES: u64 = 64;

/// An audit service. Cheap to clone; clones share the connection.
#[derive(Clone, Debug)]
pub struct Audit {
    client: AuditServiceClient<Channel>,
}

/// Which batch: of which source, in which epoch, with which number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BatchName {
    /// The id of the key that signed it.
    pub source: Hash,
    /// Its epoch.
    pub epoch: u64,
    /// Its number there.
    pub number: u64,
}

/// What an audit service says to a batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Submitted {
    /// Its events are durable, and their leaves are durable in the log.
    Accepted {
        /// Which batch.
        batch: BatchName,
        /// The index of the first leaf; without a meaning for a batch that has no events.
        first_index: LeafIndex,
        /// The time that stands in each leaf, in seconds.
        ingest_time: u64,
        /// Whether it was taken before.
        repeated: bool,
    },
    /// Its leaves are under a published checkpoint.
    Published {
        /// Which batch.
        batch: BatchName,
        /// The signed note.
        checkpoint: Bytes,
        /// The inclusion proofs of its first and its last leaf (`epigraph_core::proof::verify_run`); none if it has no events.
        proofs: Option<[Vec<Hash>; 2]>,
    },
    /// Nothing of it was taken.
    Refused {
        /// Which batch, if it could be read.
        batch: Option<BatchName>,
        /// Why, for programs.
        refusal: BatchRefusal,
        /// Why, and what to do, for people.
        message: String,
    },
}

/// The sending half of a stream of batches. Dropping it says that nothing more comes.
#[derive(Debug)]
pub struct BatchSender {
    requests: mpsc::Sender<v1::SubmitBatchesRequest>,
    /// What the first request says, until it is sent.
    origin: String,
}

/// The receiving half of a stream of batches.
#[derive(Debug)]
pub struct BatchAnswers(Streaming<v1::SubmitBatchesResponse>);

/// Where a source stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SourceState {
    /// Its newest epoch.
    pub epoch: u64,
    /// The number after the highest one taken there.
    pub next_number: u64,
    /// The sequence number after the highest one taken there.
    pub next_sequence: u64,
    /// The hash of the batch of the highest number.
    pub last_batch: Hash,
}

/// Which event is meant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WhichEvent {
    /// All that carry this id.
    Id(String),
    /// That of this leaf.
    Leaf(LeafIndex),
    /// That of this number.
    Sequence {
        /// The id of the source's key.
        source: Hash,
        /// The epoch.
        epoch: u64,
        /// The number.
        sequence: u64,
    },
}

/// A page of events.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EventPage {
    /// Encoded event bundles. Nothing of them is verified.
    pub bundles: Vec<Bytes>,
    /// For the next page, if there is one.
    pub next: Option<String>,
}

/// A source, as the service tells of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SourceStatus {
    /// Its public key, as text.
    pub vkey: String,
    /// The id of this key.
    pub id: Hash,
    /// Who answers for it.
    pub owner: String,
    /// The SPIFFE name of the collector that may send for it.
    pub collector: String,
    /// When it was enrolled.
    pub enrolled_at: UnixMillis,
    /// Since when nothing is taken from it.
    pub retired_at: Option<UnixMillis>,
    /// Events taken, in all epochs.
    pub events: u64,
    /// The newest epoch.
    pub epoch: u64,
    /// The lowest sequence number seen there.
    pub first_sequence: u64,
    /// The one after the highest.
    pub next_sequence: u64,
    /// When the last batch came.
    pub last_seen: Option<UnixMillis>,
    /// How long after it happened the newest event was taken, in milliseconds.
    pub lag_ms: i64,
    /// How often it says that it is alive, in milliseconds.
    pub heartbeat_ms: u64,
    /// Whether it has been silent for longer than twice that.
    pub silent: bool,
    /// The first gaps.
    pub gaps: Vec<Gap>,
    /// How many there are.
    pub gap_count: u64,
    /// What was wrong with it.
    pub troubles: Vec<Trouble>,
}

/// Sequence numbers of which no event came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gap {
    /// In this epoch,
    pub epoch: u64,
    /// from this one on,
    pub first: u64,
    /// up to but without this one.
    pub end: u64,
}

/// What was wrong with a source.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trouble {
    /// A word, such as `bad-signature`.
    pub kind: String,
    /// How often.
    pub count: u64,
    /// When last.
    pub last_at: UnixMillis,
}

/// A page of sources.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SourcePage {
    /// In the order of their ids.
    pub sources: Vec<SourceStatus>,
    /// For the next page, if there is one.
    pub next: Option<String>,
}

impl Audit {
    /// Prepares the connection to the service at `address` (`host:port`), which must prove to be `server`; the first call makes
    /// it. Must be called within a tokio runtime.
    pub fn new(address: &str, tls: &ClientTls, server: &SpiffeId) -> Result<Audit, TlsError> {
        let client = AuditServiceClient::new(channel(address, tls, server)?)
            .max_decoding_message_size(MAX_RESPONSE_BYTES);
        Ok(Audit { client })
    }

    /// Begins a stream of batches. Each is answered in the order of sending, accepted or refused, and each that is accepted is
    /// answered a second time when it is published.
    pub async fn submit(&self, origin: &str) -> Result<(BatchSender, BatchAnswers), CallError> {
        let (requests, queue) = mpsc::channel(QUEUED_BATCHES);
        let mut client = self.client.clone();
        // Without a deadline on the wire: it would be one for the whole stream.
        let opened = client.submit_batches(Request::new(ReceiverStream::new(queue)));
        let opened = timeout(CALL_DEADLINE, opened).await.map_err(|_| CallError::TimedOut)?;
        Ok((BatchSender { requests, origin: origin.into() }, BatchAnswers(opened?.into_inner())))
    }

    /// Asks where a source stands; `None` if no batch of it was ever taken.
    pub async fn source(&self, origin: &str, source: &Hash) -> Result<Option<SourceState>, CallError> {
        let source_key_id = Bytes::copy_from_slice(source.as_bytes());
        let request = v1::GetSourceRequest { origin: origin.into(), source_key_id };
        let mut client = self.client.clone();
        let answer = call(request, CALL_DEADLINE, |request| client.get_source(request)).await?;
        if !answer.seen {
            return Ok(None);
        }
        Ok(Some(SourceState {
            epoch: answer.epoch,
            next_number: answer.next_number,
            next_sequence: answer.next_sequence,
            last_batch: hash("last_batch", &answer.last_batch)?,
        }))
    }

    /// Asks for events; `purpose` goes into the record of this read.
    pub async fn event(
        &self,
        origin: &str,
        which: &WhichEvent,
        purpose: &str,
        page_token: &str,
    ) -> Result<EventPage, CallError> {
        let which = match which {
            WhichEvent::Id(id) => Which::EventId(id.clone()),
            WhichEvent::Leaf(index) => Which::LeafIndex(index.get()),
            WhichEvent::Sequence { source, epoch, sequence } => Which::Sequence(v1::SourceSequence {
                source_key_id: Bytes::copy_from_slice(source.as_bytes()),
                epoch: *epoch,
                sequence: *sequence,
            }),
        };
        let request = v1::GetEventRequest {
            origin: origin.into(),
            which: Some(which),
            purpose: purpose.into(),
            page_token: page_token.into(),
        };
        let mut client = self.client.clone();
        let answer = call(request, CALL_DEADLINE, |request| client.get_event(request)).await?;
        at_most("bundles", MAX_BUNDLES, answer.bundles.len() as u64)?;
        Ok(EventPage { bundles: answer.bundles, next: token(answer.next_page_token) })
    }

    /// Asks for sources; an empty `page_token` asks for the first page.
    pub async fn sources(&self, origin: &str, page_token: &str) -> Result<SourcePage, CallError> {
        let request =
            v1::ListSourcesRequest { origin: origin.into(), page_size: 0, page_token: page_token.into() };
        let mut client = self.client.clone();
        let answer = call(request, CALL_DEADLINE, |request| client.list_sources(request)).await?;
        at_most("sources", u64::from(MAX_SOURCES_PAGE), answer.sources.len() as u64)?;
        let sources = answer.sources.into_iter().map(status).collect::<Result<_, _>>()?;
        Ok(SourcePage { sources, next: token(answer.next_page_token) })
    }
}

impl BatchSender {
    /// Sends one encoded batch; waits while the service has enough to do. Returns `false` if the stream has ended: the answers say
    /// why, and this batch was not sent.
    pub async fn send(&mut self, batch: Bytes) -> bool {
        let Ok(place) = self.requests.reserve().await else { return false };
        place.send(v1::SubmitBatchesRequest { origin: std::mem::take(&mut self.origin), batch });
        true
    }
}

impl BatchAnswers {
    /// The next answer; `None` once the service wants its caller to connect anew. May wait for ever: publication takes as long as it
    /// takes.
    pub async fn next(&mut self) -> Result<Option<Submitted>, CallError> {
        let Some(answer) = self.0.message().await? else { return Ok(None) };
        let name = || -> Result<BatchName, ConvertError> {
            let source = hash("source_key_id", &answer.source_key_id)?;
            Ok(BatchName { source, epoch: answer.epoch, number: answer.number })
        };
        Ok(Some(match answer.outcome.ok_or(ConvertError::Missing("outcome"))? {
            Outcome::Accepted(accepted) => Submitted::Accepted {
                batch: name()?,
                first_index: leaf_index(accepted.first_leaf_index)?,
                ingest_time: accepted.ingest_time_s,
                repeated: accepted.repeated,
            },
            Outcome::Published(published) => {
                let proofs = match published.proofs.as_slice() {
                    [] => None,
                    [first, last] => Some([proof(&first.hashes)?, proof(&last.hashes)?]),
                    more => {
                        return Err(ConvertError::TooMany {
                            field: "proofs",
                            most: 2,
                            got: more.len() as u64,
                        }
                        .into());
                    }
                };
                Submitted::Published {
                    batch: name()?,
                    proofs,
                    checkpoint: present("checkpoint", published.checkpoint)?,
                }
            }
            Outcome::Refused(refused) => {
                let unknown = |_| ConvertError::UnknownValue { field: "refusal", got: refused.refusal };
                let printable = refused.message.chars().take(MAX_MESSAGE_CHARS);
                Submitted::Refused {
                    batch: if answer.source_key_id.is_empty() { None } else { Some(name()?) },
                    refusal: BatchRefusal::try_from(refused.refusal).map_err(unknown)?,
                    message: printable.map(|c| if c.is_control() { ' ' } else { c }).collect(),
                }
            }
        }))
    }
}

fn token(token: String) -> Option<String> {
    (!token.is_empty()).then_some(token)
}

fn status(wire: v1::SourceStatus) -> Result<SourceStatus, ConvertError> {
    let time = |at: u64| (at > 0).then_some(UnixMillis(at));
    at_most("gaps", MAX_LISTED_GAPS as u64, wire.gaps.len() as u64)?;
    at_most("troubles", MAX_TROUBLES, wire.troubles.len() as u64)?;
    let gap = |gap: &v1::SequenceGap| Gap { epoch: gap.epoch, first: gap.first, end: gap.end };
    let trouble = |trouble: v1::SourceTrouble| Trouble {
        kind: trouble.kind,
        count: trouble.count,
        last_at: UnixMillis(trouble.last_at_ms),
    };
    Ok(SourceStatus {
        vkey: wire.vkey,
        id: hash("source_key_id", &wire.source_key_id)?,
        owner: wire.owner,
        collector: wire.collector,
        enrolled_at: UnixMillis(wire.enrolled_at_ms),
        retired_at: time(wire.retired_at_ms),
        events: wire.events,
        epoch: wire.epoch,
        first_sequence: wire.first_sequence,
        next_sequence: wire.next_sequence,
        last_seen: time(wire.last_seen_ms),
        lag_ms: wire.lag_ms,
        heartbeat_ms: wire.heartbeat_ms,
        silent: wire.silent,
        gaps: wire.gaps.iter().map(gap).collect(),
        gap_count: wire.gap_count,
        troubles: wire.troubles.into_iter().map(trouble).collect(),
    })
}
