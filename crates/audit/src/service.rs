//! The audit service on the wire: finds out who calls and what they may, calls [`Audit`], maps errors. Nothing is decided here.

pub mod query;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use epigraph_client::ClientError;
use epigraph_core::{Hash, LeafIndex, Origin, UnixMillis};
use epigraph_event::Batch;
use epigraph_event::batch::Envelope;
use epigraph_rpc::limits::{DEFAULT_SOURCES_PAGE, MAX_LISTED_GAPS, MAX_PURPOSE_BYTES, MAX_SOURCES_PAGE};
use epigraph_rpc::v1::audit_service_server::AuditService;
use epigraph_rpc::v1::get_event_request::Which as WireWhich;
use epigraph_rpc::v1::submit_batches_response::Outcome;
use epigraph_rpc::{Authorized, CallError, Caller, Quota, Reason, Refusal, Role, SpiffeId, convert, v1};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::ask::Asker;
use crate::audit::{Audit, ReadError, Which};
use crate::keeper::{Ended, NotTaken};
use crate::source::{Enrolled, Refused, State};
use crate::store::{EventName, Taken};

/// When to try again if it is only a matter of a moment.
const RETRY_SOON: Duration = Duration::from_millis(200);

/// When to try again if somebody has to do something first.
const RETRY_LATER: Duration = Duration::from_secs(10);

/// Streams of batches at one time: each may hold 8 batches of 2 MiB.
pub const MAX_STREAMS: usize = 64;

/// Of these, streams of one collector: one that works, and those that it has lost and the server has not noticed yet.
pub const MAX_STREAMS_PER_IDENTITY: usize = 8;

/// Batches of one stream between reading them and their first answer: those that are written under one sync, and as many before them on
/// their way into the log. Each may have 2 MiB.
const UNDER_WAY: usize = 16;

/// Batches of one stream that were accepted and wait for publication: names and numbers only.
const UNPUBLISHED: usize = 4_096;

/// Answers that wait for the reader of a stream.
const ANSWERS: usize = 16;

type Answer = Result<v1::SubmitBatchesResponse, Status>;

/// The audit service of this process.
pub struct AuditServer {
    audit: Arc<Audit>,
    asker: Arc<Asker>,
    streams: Arc<Quota<SpiffeId>>,
}

/// A batch on its way, in the order in which it came.
struct Arrived {
    claim: Option<Envelope>,
    fate: Fate,
}

enum Fate {
    Refused(Refused),
    Submitted(oneshot::Receiver<Result<Taken, Refused>>),
}

impl AuditServer {
    /// Serves this.
    pub fn new(asker: Arc<Asker>) -> AuditServer {
        AuditServer {
            audit: Arc::clone(asker.audit()),
            asker,
            streams: Quota::new(MAX_STREAMS, MAX_STREAMS_PER_IDENTITY),
        }
    }

    fn authorize(&self, caller: &Caller, origin: &str) -> Result<Authorized<Origin>, Refusal> {
        authorize(&self.audit, caller, origin)
    }
}

fn authorize(audit: &Audit, caller: &Caller, origin: &str) -> Result<Authorized<Origin>, Refusal> {
    let only = audit.origin().as_str();
    let origin = if origin.is_empty() { only } else { origin };
    let authorized = caller.authorize(origin)?;
    if origin != only {
        let message = format!("this audit service puts its leaves into {only}, and into no other log");
        return Err(Refusal::new(Reason::UnknownOrigin, message).at("origin"));
    }
    Ok(authorized)
}

#[tonic::async_trait]
impl AuditService for AuditServer {
    type SubmitBatchesStream = Pin<Box<dyn Stream<Item = Answer> + Send>>;

    async fn submit_batches(
        &self,
        request: Request<Streaming<v1::SubmitBatchesRequest>>,
    ) -> Result<Response<Self::SubmitBatchesStream>, Status> {
        let caller = Caller::of(&request)?.clone();
        let share = self.streams.take(caller.identity().clone(), 1).map_err(|exceeded| {
            let message = format!("too many streams of batches are open: {exceeded}");
            Refusal::new(Reason::Overloaded, message).retry_after(RETRY_SOON)
        })?;
        let batches = request.into_inner();
        let (answers, answered) = mpsc::channel(ANSWERS);
        let (arrived, arriving) = mpsc::channel(UNDER_WAY);
        let (accepted, accepting) = mpsc::channel(UNPUBLISHED);
        let server = AuditServer {
            audit: Arc::clone(&self.audit),
            asker: Arc::clone(&self.asker),
            streams: Arc::clone(&self.streams),
        };
        let (reading, judging, publishing) = (answers.clone(), answers.clone(), answers);
        tokio::spawn(async move {
            // Whichever ends first ends the stream: what is not answered then is sent again.
            let _share = share;
            let (audit, leave_by) = (&server.audit, caller.leave_by());
            // The answer begins before the first batch has come: a client that waits for the one before it sends the other waits for ever.
            let read = read(&server, &caller, batches, arrived);
            let judge = judge((audit, caller.identity().as_str()), arriving, accepted, &judging);
            let publish = publish(audit, accepting, (&publishing, leave_by));
            let ended = tokio::try_join!(read, judge, publish);
            if let Err(refusal) = ended {
                let _ = reading.send(Err(refusal.into())).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answered))))
    }

    async fn get_source(
        &self,
        request: Request<v1::GetSourceRequest>,
    ) -> Result<Response<v1::GetSourceResponse>, Status> {
        let caller = Caller::of(&request)?;
        let origin = self.authorize(caller, &request.get_ref().origin)?;
        let source = hash("source_key_id", &request.get_ref().source_key_id)?;
        let looks_at_all = [Role::Auditor, Role::Operator];
        let looks_at_all = looks_at_all.into_iter().any(|role| caller.has_role(role, &origin));
        let collector = (!looks_at_all).then(|| caller.identity().as_str());
        let state = self.audit.state(&source, collector).await.map_err(ended)?;
        let state = state.ok_or_else(|| {
            Refusal::new(
                Reason::UnknownSource,
                format!("no source of the key {source} is enrolled for this caller"),
            )
        })?;
        Ok(Response::new(v1::GetSourceResponse {
            seen: state.seen,
            epoch: state.epoch,
            next_number: state.next_number,
            next_sequence: state.next_sequence,
            last_batch: state.last_batch.map(|hash| Bytes::copy_from_slice(&hash)).unwrap_or_default(),
        }))
    }

    async fn get_event(
        &self,
        request: Request<v1::GetEventRequest>,
    ) -> Result<Response<v1::GetEventResponse>, Status> {
        let caller = Caller::of(&request)?;
        self.authorize(caller, &request.get_ref().origin)?;
        let caller = caller.identity().clone();
        let v1::GetEventRequest { which, purpose, page_token, .. } = request.into_inner();
        let malformed = |message: &str| Refusal::new(Reason::Malformed, message);
        if purpose.len() > MAX_PURPOSE_BYTES {
            return Err(malformed("the purpose of a read has at most 256 bytes").at("purpose").into());
        }
        let which = match which.ok_or_else(|| malformed("say which event is meant").at("which"))? {
            WireWhich::EventId(id) if id.is_empty() => {
                return Err(malformed("an event id is not empty").at("event_id").into());
            }
            WireWhich::EventId(id) => Which::Id(id),
            WireWhich::LeafIndex(index) => Which::Leaf(convert::leaf_index(index).map_err(Refusal::from)?),
            WireWhich::Sequence(v1::SourceSequence { source_key_id, epoch, sequence }) => {
                let source = hash("source_key_id", &source_key_id)?;
                Which::Sequence(EventName { source, epoch, sequence })
            }
        };
        let from = match page_token.as_str() {
            "" => 0,
            token => token.parse().map_err(|_| malformed("no page has this token").at("page_token"))?,
        };
        let asker = Arc::clone(&self.asker);
        // To its end, also if the caller hangs up: what was begun is settled.
        let asked = tokio::spawn(async move { asker.events(&caller, &which, &purpose, from).await });
        let (bundles, next) =
            asked.await.map_err(|_| ended(Ended))?.map_err(query::failed)?.map_err(query::not_given)?;
        Ok(Response::new(v1::GetEventResponse {
            bundles: bundles.iter().map(|bundle| bundle.encode().into()).collect(),
            next_page_token: next.map(|slot| slot.to_string()).unwrap_or_default(),
        }))
    }

    async fn list_sources(
        &self,
        request: Request<v1::ListSourcesRequest>,
    ) -> Result<Response<v1::ListSourcesResponse>, Status> {
        self.authorize(Caller::of(&request)?, &request.get_ref().origin)?;
        let v1::ListSourcesRequest { page_size, page_token, .. } = request.into_inner();
        let most = if page_size == 0 { DEFAULT_SOURCES_PAGE } else { page_size.min(MAX_SOURCES_PAGE) };
        let after =
            match page_token.as_str() {
                "" => None,
                token => Some(Hash::from_hex(token).ok_or_else(|| {
                    Refusal::new(Reason::Malformed, "no page has this token").at("page_token")
                })?),
            };
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let sources = self.audit.sources(after.as_ref(), most).await.map_err(ended)?;
        let last = sources.last().filter(|_| sources.len() == most).map(|(source, _)| source.vkey.id());
        let now = self.audit.now();
        Ok(Response::new(v1::ListSourcesResponse {
            sources: sources.iter().map(|(source, state)| status(source, state, now)).collect(),
            next_page_token: last.map(|id| id.to_string()).unwrap_or_default(),
        }))
    }
}

/// Reads batches, believes them, and hands them in, in order; waits while too many are under way. Ends when the client has sent its
/// last one, or when the connection is asked to leave.
async fn read(
    server: &AuditServer,
    caller: &Caller,
    mut batches: Streaming<v1::SubmitBatchesRequest>,
    arrived: mpsc::Sender<Arrived>,
) -> Result<(), Refusal> {
    let audit = &server.audit;
    let mut next = next_batch(&mut batches, caller).await?;
    server.authorize(caller, next.as_ref().map_or("", |first| &first.origin))?;
    while let Some(v1::SubmitBatchesRequest { batch, .. }) = next {
        let (audit, collector) = (Arc::clone(audit), caller.identity().as_str().to_owned());
        let reading = Arc::clone(&audit);
        let believed = tokio::task::spawn_blocking(move || reading.believe(&collector, batch)).await;
        let (claim, believed): (Option<Envelope>, Result<Batch, Refused>) =
            believed.map_err(|_| ended(Ended))?;
        let fate = match believed {
            Ok(batch) => Fate::Submitted(audit.submit(batch).await.map_err(not_taken)?),
            Err(refused) => {
                if let Some(claim) = &claim {
                    audit.note(claim.source, &refused).await.map_err(ended)?;
                }
                Fate::Refused(refused)
            }
        };
        if arrived.send(Arrived { claim, fate }).await.is_err() {
            return Ok(());
        }
        next = next_batch(&mut batches, caller).await?;
    }
    Ok(())
}

/// The next batch; none when the client has sent its last one, or is asked to leave.
async fn next_batch(
    batches: &mut Streaming<v1::SubmitBatchesRequest>,
    caller: &Caller,
) -> Result<Option<v1::SubmitBatchesRequest>, Refusal> {
    tokio::select! {
        message = batches.message() => message.map_err(|error| match CallError::from(error) {
            CallError::Refused(refusal) => refusal,
            error => Refusal::new(Reason::Malformed, error.to_string()),
        }),
        () = tokio::time::sleep_until(caller.leave_by()) => Ok(None),
    }
}

/// Gives each batch its first answer, in the order in which they came.
async fn judge(
    (audit, collector): (&Audit, &str),
    mut arriving: mpsc::Receiver<Arrived>,
    accepted: mpsc::Sender<(Envelope, Taken, Option<LeafIndex>)>,
    answers: &mpsc::Sender<Answer>,
) -> Result<(), Refusal> {
    while let Some(Arrived { claim, fate }) = arriving.recv().await {
        let taken = match fate {
            Fate::Refused(refused) => Err(refused),
            Fate::Submitted(taken) => taken.await.map_err(|_| ended(Ended))?,
        };
        let (outcome, placed) = match taken {
            Err(refused) => {
                audit.refuse(collector, claim.as_ref(), &refused).await;
                let Refused { refusal, message, .. } = refused;
                (Outcome::Refused(v1::BatchRefused { refusal: refusal.into(), message }), None)
            }
            Ok(taken) => {
                let index = audit.placed(&taken).await.map_err(refusal)?;
                let accepted = v1::BatchAccepted {
                    first_leaf_index: index.map_or(0, |index| index.get()),
                    ingest_time_s: taken.ingested,
                    repeated: taken.repeated,
                };
                (Outcome::Accepted(accepted), Some((taken, index)))
            }
        };
        if answers.send(Ok(answer(claim.as_ref(), outcome))).await.is_err() {
            return Ok(());
        }
        // Only after its first answer, so that the second never comes before it.
        if let (Some(claim), Some((taken, index))) = (claim, placed)
            && accepted.send((claim, taken, index)).await.is_err()
        {
            return Ok(());
        }
    }
    Ok(())
}

/// Gives each batch that was accepted its second answer.
async fn publish(
    audit: &Audit,
    mut accepted: mpsc::Receiver<(Envelope, Taken, Option<LeafIndex>)>,
    (answers, leave_by): (&mpsc::Sender<Answer>, Instant),
) -> Result<(), Refusal> {
    while let Some((claim, taken, index)) = accepted.recv().await {
        let (checkpoint, proofs) = tokio::select! {
            proven = audit.proven(&taken, index) => proven.map_err(refusal)?,
            // Whoever has gone waits for nothing; whoever is asked to leave sends the batch again elsewhere.
            () = answers.closed() => return Ok(()),
            () = tokio::time::sleep_until(leave_by) => return Ok(()),
        };
        let proofs = proofs
            .iter()
            .flatten()
            .map(|receipt| v1::InclusionProof { hashes: convert::proof_to_wire(&receipt.hashes) });
        let outcome = Outcome::Published(v1::BatchPublished {
            checkpoint: Bytes::copy_from_slice(checkpoint.note()),
            proofs: proofs.collect(),
        });
        if answers.send(Ok(answer(Some(&claim), outcome))).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

fn answer(claim: Option<&Envelope>, outcome: Outcome) -> v1::SubmitBatchesResponse {
    v1::SubmitBatchesResponse {
        source_key_id: claim.map(|claim| Bytes::copy_from_slice(claim.source.as_bytes())).unwrap_or_default(),
        epoch: claim.map_or(0, |claim| claim.epoch),
        number: claim.map_or(0, |claim| claim.number),
        outcome: Some(outcome),
    }
}

fn status(source: &Enrolled, state: &State, now: UnixMillis) -> v1::SourceStatus {
    let gaps = state.gaps.iter().take(MAX_LISTED_GAPS);
    let gaps = gaps.map(|gap| v1::SequenceGap { epoch: gap.epoch, first: gap.first, end: gap.end });
    let troubles = state.troubles.iter().map(|trouble| v1::SourceTrouble {
        kind: trouble.kind.as_str().into(),
        count: trouble.count,
        last_at_ms: trouble.last_at_ms,
    });
    v1::SourceStatus {
        vkey: source.vkey.to_string(),
        source_key_id: Bytes::copy_from_slice(source.vkey.id().as_bytes()),
        owner: source.owner.clone(),
        collector: source.collector.clone(),
        enrolled_at_ms: source.enrolled_at.0,
        retired_at_ms: source.retired_at.map_or(0, |at| at.0),
        events: state.events,
        epoch: state.epoch,
        first_sequence: state.first_sequence,
        next_sequence: state.next_sequence,
        last_seen_ms: state.last_seen_ms,
        lag_ms: state.lag_ms,
        heartbeat_ms: source.heartbeat_ms,
        silent: source.heartbeat_ms > 0 && state.is_silent(source.heartbeat_ms, now),
        gaps: gaps.collect(),
        gap_count: state.gap_count(),
        troubles: troubles.collect(),
    }
}

fn hash(field: &'static str, bytes: &[u8]) -> Result<Hash, Refusal> {
    convert::hash(field, bytes).map_err(Refusal::from)
}

fn not_taken(not: NotTaken) -> Refusal {
    match not {
        NotTaken::NoSpace => Refusal::new(Reason::NoSpace, not.to_string()).retry_after(RETRY_LATER),
        NotTaken::Ended(error) => ended(error),
    }
}

fn ended(error: Ended) -> Refusal {
    Refusal::new(Reason::Internal, error.to_string())
}

fn refusal(error: ReadError) -> Refusal {
    let message = error.to_string();
    match error {
        ReadError::NotFound => Refusal::new(Reason::EventNotFound, message),
        ReadError::NotYetPublished => Refusal::new(Reason::NotYetPublished, message).retry_after(RETRY_SOON),
        ReadError::Unindexed(_) => Refusal::new(Reason::NotYetPublished, message).retry_after(RETRY_LATER),
        ReadError::NoSpace(_) => Refusal::new(Reason::NoSpace, message).retry_after(RETRY_LATER),
        ReadError::Store(_) => Refusal::new(Reason::DataLoss, message),
        ReadError::Log(ClientError::Call(CallError::Refused(refused))) => {
            Refusal::new(refused.reason(), message).retry_after(RETRY_SOON)
        }
        ReadError::Ended(_) | ReadError::Log(_) | ReadError::Record(_) => {
            Refusal::new(Reason::Internal, message)
        }
    }
}
