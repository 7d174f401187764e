//! The logs of a process on the wire: finds the log that is meant and may be used, calls [`Log`], maps errors. Nothing
//! is decided here.

mod append;
mod append_stream;
mod read;
mod stream;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use epigraph_core::Origin;
use epigraph_rpc::v1::log_service_server::LogService;
use epigraph_rpc::{Authorized, Caller, ConvertError, Reason, Refusal, Role, v1};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use crate::log::{Log, Reach};

/// When to try again if the log is busy.
const RETRY_SOON: Duration = Duration::from_millis(100);
/// When to try again if somebody has to make room or wait for witnesses first.
const RETRY_LATER: Duration = Duration::from_secs(5);

/// The logs of this process. Clones share them.
#[derive(Clone)]
pub struct LogServer {
    /// `None`: it could not be opened.
    logs: Arc<BTreeMap<Origin, Option<Arc<Log>>>>,
}

impl LogServer {
    /// Serves these logs, each under its own origin, and says of the `stopped` ones that they are.
    pub fn new(
        logs: impl IntoIterator<Item = Arc<Log>>,
        stopped: impl IntoIterator<Item = Origin>,
    ) -> LogServer {
        let running = logs.into_iter().map(|log| (log.origin().clone(), Some(log)));
        let logs = stopped.into_iter().map(|origin| (origin, None)).chain(running).collect();
        LogServer { logs: Arc::new(logs) }
    }

    /// The log that the request names and its caller may use.
    fn log<T>(&self, request: &Request<T>, origin: &str) -> Result<Arc<Log>, Refusal> {
        self.find(Caller::of(request)?, origin)
    }

    /// The log of this name, which the caller may use; an empty name means the only one here. Authorization comes first:
    /// whoever may use no log learns nothing about which ones there are.
    fn find(&self, caller: &Caller, origin: &str) -> Result<Arc<Log>, Refusal> {
        let only = match self.logs.first_key_value() {
            Some((only, _)) if origin.is_empty() && self.logs.len() == 1 => only.as_str(),
            _ => origin,
        };
        self.authorized(&caller.authorize(only)?)
    }

    fn authorized(&self, origin: &Authorized<Origin>) -> Result<Arc<Log>, Refusal> {
        let unknown = || {
            let message = format!("there is no log {:?} here", origin.get().as_str());
            Refusal::new(Reason::UnknownOrigin, message).at("origin")
        };
        self.logs.get(origin.get()).ok_or_else(unknown)?.clone().ok_or_else(log_stopped)
    }
}

/// How far the caller may read in this log, which it may use.
fn reach<T>(request: &Request<T>, log: &Log) -> Result<Reach, Refusal> {
    let caller = Caller::of(request)?;
    let origin = caller.authorize(log.origin().as_str())?;
    let links = [Role::Witness, Role::Monitor].into_iter().any(|role| caller.has_role(role, &origin));
    Ok(if links { Reach::Signed } else { Reach::Published })
}

/// What a streaming call answers with.
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl LogService for LogServer {
    async fn append(
        &self,
        request: Request<v1::AppendRequest>,
    ) -> Result<Response<v1::AppendResponse>, Status> {
        let log = self.log(&request, &request.get_ref().origin)?;
        let caller = Caller::of(&request)?.identity().clone();
        Ok(Response::new(append::append(&log, &caller, request.into_inner()).await?))
    }

    type AppendStreamStream = Answers<v1::AppendResponse>;

    async fn append_stream(
        &self,
        request: Request<Streaming<v1::AppendRequest>>,
    ) -> Result<Response<Self::AppendStreamStream>, Status> {
        let caller = Caller::of(&request)?.clone();
        let requests =
            request.into_inner().map(|request| request.map_err(|status| Refusal::of_request(&status)));
        let answers = append_stream::answers(self.clone(), caller, requests);
        Ok(Response::new(Box::pin(answers.map(|answer| answer.map_err(Status::from)))))
    }

    async fn get_producer(
        &self,
        request: Request<v1::GetProducerRequest>,
    ) -> Result<Response<v1::GetProducerResponse>, Status> {
        let log = self.log(&request, &request.get_ref().origin)?;
        let caller = Caller::of(&request)?.identity();
        Ok(Response::new(append::get_producer(&log, caller, request.get_ref()).await?))
    }

    async fn get_proof(
        &self,
        request: Request<v1::GetProofRequest>,
    ) -> Result<Response<v1::GetProofResponse>, Status> {
        let log = self.log(&request, &request.get_ref().origin)?;
        Ok(Response::new(read::get_proof(&log, request.into_inner()).await?))
    }

    async fn get_entries(
        &self,
        request: Request<v1::GetEntriesRequest>,
    ) -> Result<Response<v1::GetEntriesResponse>, Status> {
        let log = self.log(&request, &request.get_ref().origin)?;
        let reach = reach(&request, &log)?;
        Ok(Response::new(read::get_entries(&log, reach, request.into_inner()).await?))
    }

    type FollowStream = Answers<v1::FollowEvent>;

    async fn follow(
        &self,
        request: Request<v1::FollowRequest>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let log = self.log(&request, &request.get_ref().origin)?;
        let caller = Caller::of(&request)?.clone();
        Ok(Response::new(stream::follow(&log, &caller, request.into_inner())?))
    }

    async fn get_tile(
        &self,
        request: Request<v1::GetTileRequest>,
    ) -> Result<Response<v1::GetTileResponse>, Status> {
        let log = self.log(&request, &request.get_ref().origin)?;
        let reach = reach(&request, &log)?;
        Ok(Response::new(read::get_tile(&log, reach, request.into_inner()).await?))
    }

    async fn get_consistency_proof(
        &self,
        request: Request<v1::GetConsistencyProofRequest>,
    ) -> Result<Response<v1::GetConsistencyProofResponse>, Status> {
        let log = self.log(&request, &request.get_ref().origin)?;
        let reach = reach(&request, &log)?;
        Ok(Response::new(read::get_consistency_proof(&log, reach, request.into_inner()).await?))
    }

    async fn get_checkpoint(
        &self,
        request: Request<v1::GetCheckpointRequest>,
    ) -> Result<Response<v1::GetCheckpointResponse>, Status> {
        let log = self.log(&request, &request.get_ref().origin)?;
        Ok(Response::new(read::get_checkpoint(&log)?))
    }

    async fn list_checkpoints(
        &self,
        request: Request<v1::ListCheckpointsRequest>,
    ) -> Result<Response<v1::ListCheckpointsResponse>, Status> {
        let log = self.log(&request, &request.get_ref().origin)?;
        Ok(Response::new(read::list_checkpoints(&log, request.into_inner()).await?))
    }

    async fn add_cosignature(
        &self,
        request: Request<v1::AddCosignatureRequest>,
    ) -> Result<Response<v1::AddCosignatureResponse>, Status> {
        let log = self.log(&request, &request.get_ref().origin)?;
        let who = Caller::of(&request)?.identity();
        read::add_cosignature(&log, who, request.get_ref()).await?;
        Ok(Response::new(v1::AddCosignatureResponse {}))
    }

    type WatchCheckpointsStream = Answers<v1::WatchCheckpointsResponse>;

    async fn watch_checkpoints(
        &self,
        request: Request<v1::WatchCheckpointsRequest>,
    ) -> Result<Response<Self::WatchCheckpointsStream>, Status> {
        let log = self.log(&request, &request.get_ref().origin)?;
        let caller = Caller::of(&request)?.clone();
        let reach = reach(&request, &log)?;
        Ok(Response::new(stream::watch_checkpoints(&log, reach, &caller, request.into_inner())?))
    }
}

/// What is wrong is for whoever runs it, not for whoever calls.
fn log_stopped() -> Refusal {
    let message =
        "a fault has stopped this log; whoever runs it finds the reason among the messages of its process";
    Refusal::new(Reason::LogStopped, message).retry_after(RETRY_LATER)
}

fn malformed(error: ConvertError) -> Refusal {
    Refusal::new(Reason::Malformed, error.to_string())
}
