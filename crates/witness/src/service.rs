//! The witness on the wire: finds out who calls and what they may, calls [`Witness`], maps errors. Nothing is decided here.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use epigraph_core::Origin;
use epigraph_core::checkpoint::CheckpointError;
use epigraph_core::progress::Reject;
use epigraph_rpc::limits::{DEFAULT_LOGS_PAGE, MAX_LOGS_PAGE};
use epigraph_rpc::v1::add_checkpoint_response::Outcome;
use epigraph_rpc::v1::witness_service_server::WitnessService;
use epigraph_rpc::{Authorized, Caller, Quota, Reason, Refusal, SpiffeId, convert, v1};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::keeper::{Answer, Refused};
use crate::witness::{AddError, Witness};

/// When to try again if the witness is busy.
const RETRY_SOON: Duration = Duration::from_millis(100);
/// When to try again if somebody else has to act first.
const RETRY_LATER: Duration = Duration::from_secs(2);

/// Streams of cosigned checkpoints at one time: each holds a task and one note.
pub const MAX_WATCHERS: usize = 1_024;

/// Of these, streams of one caller: a monitor follows many logs, and must not take them all.
pub const MAX_WATCHERS_PER_IDENTITY: usize = 256;

/// The witness of this process.
pub struct WitnessServer {
    witness: Arc<Witness>,
    watchers: Arc<Quota<SpiffeId>>,
}

impl WitnessServer {
    /// Serves this witness.
    pub fn new(witness: Arc<Witness>) -> WitnessServer {
        WitnessServer { witness, watchers: Quota::new(MAX_WATCHERS, MAX_WATCHERS_PER_IDENTITY) }
    }

    /// The log that the request names, an empty name meaning the only one here, if the caller may use it.
    fn authorize(&self, caller: &Caller, origin: &str) -> Result<Authorized<Origin>, Refusal> {
        match self.witness.only_log().filter(|_| origin.is_empty()) {
            Some(only) => caller.authorize(only.as_str()),
            None => caller.authorize(origin),
        }
    }
}

#[tonic::async_trait]
impl WitnessService for WitnessServer {
    async fn add_checkpoint(
        &self,
        request: Request<v1::AddCheckpointRequest>,
    ) -> Result<Response<v1::AddCheckpointResponse>, Status> {
        let caller = Caller::of(&request)?;
        // Before the log is looked at, so that nobody spends what is another's.
        self.witness.count_caller(caller.identity().as_str()).map_err(refusal)?;
        let origin = self.authorize(caller, &request.get_ref().origin)?;
        let v1::AddCheckpointRequest { old_size, checkpoint, proof, .. } = request.into_inner();
        let old_size = convert::tree_size("old_size", old_size).map_err(Refusal::from)?;
        let proof = convert::proof(&proof).map_err(Refusal::from)?;
        let answer = self.witness.add_checkpoint(origin.get(), old_size, &checkpoint, proof).await;
        let outcome = outcome(answer.map_err(refusal)?);
        Ok(Response::new(v1::AddCheckpointResponse { outcome: Some(outcome) }))
    }

    async fn get_checkpoint(
        &self,
        request: Request<v1::GetCosignedCheckpointRequest>,
    ) -> Result<Response<v1::GetCosignedCheckpointResponse>, Status> {
        let origin = self.authorize(Caller::of(&request)?, &request.get_ref().origin)?;
        let newest = self.witness.checkpoint(origin.get()).await.map_err(refusal)?;
        let newest = newest.ok_or_else(|| {
            let message = format!("this witness has not yet cosigned a checkpoint of {}", origin.get());
            Refusal::new(Reason::NotYetPublished, message).retry_after(RETRY_LATER)
        })?;
        Ok(Response::new(v1::GetCosignedCheckpointResponse { checkpoint: newest.note().into() }))
    }

    type WatchCheckpointsStream =
        Pin<Box<dyn Stream<Item = Result<v1::WatchCosignedCheckpointsResponse, Status>> + Send>>;

    async fn watch_checkpoints(
        &self,
        request: Request<v1::WatchCosignedCheckpointsRequest>,
    ) -> Result<Response<Self::WatchCheckpointsStream>, Status> {
        let caller = Caller::of(&request)?;
        let origin = self.authorize(caller, &request.get_ref().origin)?;
        let leave_by = caller.leave_by();
        let share = self.watchers.take(caller.identity().clone(), 1).map_err(|exceeded| {
            let message = format!("too many streams of this witness are open: {exceeded}");
            Refusal::new(Reason::Overloaded, message).retry_after(RETRY_LATER)
        })?;
        let mut newest = self.witness.watch(origin.get()).await.map_err(refusal)?;
        newest.mark_changed();
        let draining = self.witness.drained();
        let (sender, receiver) = mpsc::channel(1);
        let pushing = async move {
            // Room first, then the newest: whoever reads slowly gets no old ones.
            while let Ok(room) = sender.reserve().await {
                tokio::select! {
                    changed = newest.changed() => if changed.is_err() { return },
                    () = sender.closed() => return,
                }
                let note = newest.borrow_and_update().as_ref().map(|newest| newest.note());
                if let Some(note) = note {
                    room.send(Ok(v1::WatchCosignedCheckpointsResponse { checkpoint: note.into() }));
                }
            }
        };
        tokio::spawn(async move {
            let _share = share;
            tokio::select! {
                () = pushing => {}
                () = draining => {}
                () = tokio::time::sleep_until(leave_by) => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn list_logs(
        &self,
        request: Request<v1::ListLogsRequest>,
    ) -> Result<Response<v1::ListLogsResponse>, Status> {
        let caller = Caller::of(&request)?.clone();
        let v1::ListLogsRequest { page_size, page_token } = request.into_inner();
        let most = match page_size {
            0 => DEFAULT_LOGS_PAGE,
            size => size.min(MAX_LOGS_PAGE),
        } as usize;
        let after = match page_token.as_str() {
            "" => None,
            token => Some(Origin::new(token).map_err(|_| {
                Refusal::new(
                    Reason::Malformed,
                    "this is no page token: leave it empty, or give the one of the page before",
                )
                .at("page_token")
            })?),
        };
        let may_see = |origin: &Origin| caller.authorize(origin.as_str()).is_ok();
        let shown = self.witness.list(after.as_ref(), most, may_see).await;
        let last = shown.last().filter(|_| shown.len() == most);
        let next_page_token = last.map(|log| log.origin.to_string()).unwrap_or_default();
        let logs = shown.into_iter().map(|log| v1::WitnessedLog {
            origin: log.origin.to_string(),
            vkey: log.vkey.to_string(),
            size: log.size.get(),
            cosigned_at: log.cosigned_at,
        });
        Ok(Response::new(v1::ListLogsResponse { logs: logs.collect(), next_page_token }))
    }
}

fn outcome(answer: Answer) -> Outcome {
    match answer {
        Answer::Cosigned(cosigned) => {
            Outcome::Cosigned(v1::Cosigned { signatures: format!("{}\n", cosigned.line).into() })
        }
        Answer::Stale(held) => Outcome::Stale(v1::Stale {
            size: held.head.size.get(),
            root: Bytes::copy_from_slice(held.head.root.as_bytes()),
            checkpoint: held.note.into(),
        }),
        Answer::Conflict { held, proposed, .. } => {
            Outcome::Conflict(v1::Conflict { held: held.into(), proposed: proposed.into() })
        }
    }
}

fn refusal(error: AddError) -> Refusal {
    let refusal = |reason| Refusal::new(reason, error.to_string());
    match &error {
        AddError::UnknownLog(_) | AddError::Removed(_) | AddError::Rekeyed(_) => {
            refusal(Reason::UnknownOrigin).at("origin")
        }
        AddError::Checkpoint(CheckpointError::NotSigned(_)) => {
            refusal(Reason::BadLogSignature).at("checkpoint")
        }
        AddError::Checkpoint(CheckpointError::Note(epigraph_core::note::NoteError::BadSignature {
            ..
        })) => refusal(Reason::BadLogSignature).at("checkpoint"),
        AddError::Checkpoint(_) | AddError::NotPlain | AddError::Repeated => {
            refusal(Reason::Malformed).at("checkpoint")
        }
        AddError::CallerQuota(exceeded) | AddError::LogQuota(exceeded) => {
            refusal(Reason::RateLimited).retry_after(Duration::from_millis(exceeded.retry_ms))
        }
        AddError::LogSilent { .. } => refusal(Reason::Gated).retry_after(RETRY_LATER),
        AddError::Asking(_) => refusal(Reason::Gated).retry_after(RETRY_SOON),
        AddError::Overloaded => refusal(Reason::Overloaded).retry_after(RETRY_SOON),
        AddError::Stopped => refusal(Reason::Internal),
        AddError::Refused(refused) => match refused {
            Refused::UnknownLog(_) => refusal(Reason::UnknownOrigin).at("origin"),
            Refused::Gated(_) => refusal(Reason::Gated).retry_after(RETRY_LATER),
            Refused::RolledBack(_) => refusal(Reason::RolledBack),
            Refused::Reject(Reject::OldBeyondNew { .. }) => refusal(Reason::BadSize).at("old_size"),
            Refused::Reject(Reject::EmptyRoot) => refusal(Reason::Malformed).at("checkpoint"),
            Refused::Reject(Reject::Proof(_)) => refusal(Reason::BadProof).at("proof"),
            Refused::Clock(_) => refusal(Reason::ClockSkew).retry_after(RETRY_LATER),
            Refused::NoteTooLong(_) => refusal(Reason::Malformed).at("checkpoint"),
        },
    }
}
