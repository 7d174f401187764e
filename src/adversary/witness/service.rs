//! The lying witness on the wire.

use std::pin::Pin;
use std::sync::Arc;

use epigraph_rpc::v1::add_checkpoint_response::Outcome;
use epigraph_rpc::v1::witness_service_server::WitnessService;
use epigraph_rpc::{Caller, Reason, Refusal, v1};
use tokio::sync::mpsc;
use tokio::time::sleep_until;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::LyingWitness;

/// The calls of the lying witness.
pub struct Service(pub Arc<LyingWitness>);

impl Service {
    fn caller<T>(&self, request: &Request<T>, origin: &str) -> Result<Caller, Refusal> {
        let caller = Caller::of(request)?;
        let own = self.0.origin.as_str();
        let origin = caller.authorize(if origin.is_empty() { own } else { origin })?;
        if origin.get().as_str() != own {
            return Err(Refusal::new(Reason::UnknownOrigin, "this log is not on the list").at("origin"));
        }
        Ok(caller.clone())
    }
}

#[tonic::async_trait]
impl WitnessService for Service {
    async fn add_checkpoint(
        &self,
        request: Request<v1::AddCheckpointRequest>,
    ) -> Result<Response<v1::AddCheckpointResponse>, Status> {
        self.caller(&request, &request.get_ref().origin)?;
        let line = self.0.cosign(&request.get_ref().checkpoint);
        let refused = || Refusal::new(Reason::BadLogSignature, "the log did not sign this").at("checkpoint");
        let signatures = format!("{}\n", line.ok_or_else(refused)?).into();
        let outcome = Some(Outcome::Cosigned(v1::Cosigned { signatures }));
        Ok(Response::new(v1::AddCheckpointResponse { outcome }))
    }

    async fn get_checkpoint(
        &self,
        request: Request<v1::GetCosignedCheckpointRequest>,
    ) -> Result<Response<v1::GetCosignedCheckpointResponse>, Status> {
        let caller = self.caller(&request, &request.get_ref().origin)?;
        let none = || Refusal::new(Reason::NotYetPublished, "nothing has been cosigned yet");
        let checkpoint = self.0.shown(caller.identity()).ok_or_else(none)?;
        Ok(Response::new(v1::GetCosignedCheckpointResponse { checkpoint }))
    }

    type WatchCheckpointsStream =
        Pin<Box<dyn Stream<Item = Result<v1::WatchCosignedCheckpointsResponse, Status>> + Send>>;

    async fn watch_checkpoints(
        &self,
        request: Request<v1::WatchCosignedCheckpointsRequest>,
    ) -> Result<Response<Self::WatchCheckpointsStream>, Status> {
        let caller = self.caller(&request, &request.get_ref().origin)?;
        let (witness, mut changes) = (Arc::clone(&self.0), self.0.changes.subscribe());
        let (answers, stream) = mpsc::channel(1);
        tokio::spawn(async move {
            loop {
                if let Some(checkpoint) = witness.shown(caller.identity())
                    && answers.send(Ok(v1::WatchCosignedCheckpointsResponse { checkpoint })).await.is_err()
                {
                    return;
                }
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() { return },
                    () = answers.closed() => return,
                    () = sleep_until(caller.leave_by()) => return,
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn list_logs(
        &self,
        request: Request<v1::ListLogsRequest>,
    ) -> Result<Response<v1::ListLogsResponse>, Status> {
        self.caller(&request, "")?;
        let size = self.0.head().map_or(0, |head| head.size.get());
        let logs = vec![v1::WitnessedLog {
            origin: self.0.origin.to_string(),
            vkey: self.0.log.to_string(),
            size,
            cosigned_at: 0,
        }];
        Ok(Response::new(v1::ListLogsResponse { logs, next_page_token: String::new() }))
    }
}
