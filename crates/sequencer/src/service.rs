//! The log on the wire: converts, calls [`Log`], maps errors. Nothing is decided here.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use epigraph_rpc::v1::get_proof_request::Target;
use epigraph_rpc::v1::log_service_server::LogService;
use epigraph_rpc::{Authorized, Caller, ConvertError, Reason, Refusal, convert, v1};
use tonic::{Request, Response, Status};

use crate::log::{AppendError, Appended, Log, ReadError, Wait};
use crate::machine::Refused;

/// When to try again if the log is busy.
const RETRY_SOON: Duration = Duration::from_millis(100);
/// When to try again if somebody has to make room or wait for witnesses first.
const RETRY_LATER: Duration = Duration::from_secs(5);

/// The log of this process.
pub struct LogServer {
    log: Arc<Log>,
}

impl LogServer {
    /// Serves one log.
    pub fn new(log: Arc<Log>) -> LogServer {
        LogServer { log }
    }

    /// The log that the request names and its caller may use. Authorization comes first: whoever may use no log learns
    /// nothing about which ones there are.
    fn resolve<T>(&self, request: &Request<T>, origin: &str) -> Result<Authorized, Refusal> {
        let own = self.log.origin().as_str();
        let authorized = Caller::of(request)?.authorize(if origin.is_empty() { own } else { origin })?;
        if authorized.origin() != own {
            let message = format!("there is no log {origin:?} here");
            return Err(Refusal::new(Reason::UnknownOrigin, message).at("origin"));
        }
        Ok(authorized)
    }
}

#[tonic::async_trait]
impl LogService for LogServer {
    async fn append(
        &self,
        request: Request<v1::AppendRequest>,
    ) -> Result<Response<v1::AppendResponse>, Status> {
        self.resolve(&request, &request.get_ref().origin)?;
        let request = request.into_inner();
        if request.producer.is_some() {
            let message = "this log does not number the entries of producers yet: leave `producer` out";
            return Err(Refusal::new(Reason::ProducersNotSupported, message).at("producer").into());
        }
        let wait = match convert::Wait::asked(request.wait).map_err(malformed)? {
            convert::Wait::Durable => Wait::Durable,
            convert::Wait::Published => Wait::Published(convert::wait_for(request.wait_ms)),
        };
        let Appended { first_index, count, published } =
            self.log.append(request.entries, wait).await.map_err(append_refusal)?;
        let (reached, checkpoint, proofs) = match published {
            None => (convert::Wait::Durable, Bytes::new(), Vec::new()),
            Some((checkpoint, proofs)) => {
                let proofs = proofs
                    .iter()
                    .map(|proof| v1::InclusionProof { hashes: convert::proof_to_wire(&proof.hashes) });
                (convert::Wait::Published, Bytes::copy_from_slice(checkpoint.note()), proofs.collect())
            }
        };
        let reached = reached.to_wire();
        Ok(Response::new(v1::AppendResponse {
            first_index: first_index.get(),
            count,
            reached,
            checkpoint,
            proofs,
        }))
    }

    async fn get_proof(
        &self,
        request: Request<v1::GetProofRequest>,
    ) -> Result<Response<v1::GetProofResponse>, Status> {
        self.resolve(&request, &request.get_ref().origin)?;
        let Some(Target::LeafIndex(index)) = request.get_ref().target else {
            return Err(malformed(ConvertError::Missing("target")).into());
        };
        let out_of_range =
            |error: ConvertError| Refusal::new(Reason::BeyondTree, error.to_string()).at("leaf_index");
        let index = convert::leaf_index(index).map_err(out_of_range)?;
        let proven = self.log.prove(index).await.map_err(read_refusal)?;
        Ok(Response::new(v1::GetProofResponse {
            leaf_index: index.get(),
            hashes: convert::proof_to_wire(&proven.proof.hashes),
            checkpoint: Bytes::copy_from_slice(proven.checkpoint.note()),
        }))
    }

    async fn get_entries(
        &self,
        request: Request<v1::GetEntriesRequest>,
    ) -> Result<Response<v1::GetEntriesResponse>, Status> {
        self.resolve(&request, &request.get_ref().origin)?;
        let v1::GetEntriesRequest { first_index, max_entries, .. } = request.into_inner();
        let out_of_range =
            |error: ConvertError| Refusal::new(Reason::BeyondTree, error.to_string()).at("first_index");
        let first = convert::leaf_index(first_index).map_err(out_of_range)?;
        let entries =
            self.log.entries(first, convert::read_entries(max_entries)).await.map_err(read_refusal)?;
        Ok(Response::new(v1::GetEntriesResponse { first_index, entries }))
    }

    async fn get_consistency_proof(
        &self,
        request: Request<v1::GetConsistencyProofRequest>,
    ) -> Result<Response<v1::GetConsistencyProofResponse>, Status> {
        self.resolve(&request, &request.get_ref().origin)?;
        let bad_size = |error: ConvertError| Refusal::new(Reason::BadSize, error.to_string());
        let old = convert::tree_size("old_size", request.get_ref().old_size).map_err(bad_size)?;
        let new = convert::tree_size("new_size", request.get_ref().new_size).map_err(bad_size)?;
        let proof = self.log.prove_consistency(old, new).await.map_err(read_refusal)?;
        let hashes = convert::proof_to_wire(&proof.hashes);
        Ok(Response::new(v1::GetConsistencyProofResponse { hashes }))
    }

    async fn get_checkpoint(
        &self,
        request: Request<v1::GetCheckpointRequest>,
    ) -> Result<Response<v1::GetCheckpointResponse>, Status> {
        self.resolve(&request, &request.get_ref().origin)?;
        let checkpoint = self.log.checkpoint().map_err(read_refusal)?;
        Ok(Response::new(v1::GetCheckpointResponse { checkpoint: Bytes::copy_from_slice(checkpoint.note()) }))
    }
}

fn malformed(error: ConvertError) -> Refusal {
    Refusal::new(Reason::Malformed, error.to_string())
}

fn append_refusal(error: AppendError) -> Refusal {
    let refusal = |reason| Refusal::new(reason, error.to_string());
    match &error {
        AppendError::NoEntries => refusal(Reason::NoEntries).at("entries"),
        AppendError::TooManyEntries(_) => refusal(Reason::TooManyEntries).at("entries"),
        AppendError::EntryTooLarge { position, .. } => {
            refusal(Reason::EntryTooLarge).at(&format!("entries[{position}]"))
        }
        AppendError::CallTooLarge(_) => refusal(Reason::BatchTooLarge).at("entries"),
        AppendError::TooManyWaiters => refusal(Reason::Overloaded).retry_after(RETRY_SOON),
        AppendError::Refused(Refused::Overloaded) => refusal(Reason::Overloaded).retry_after(RETRY_SOON),
        AppendError::Refused(Refused::NoSpace) => refusal(Reason::NoSpace).retry_after(RETRY_LATER),
        AppendError::Refused(Refused::Backlog(_)) => {
            refusal(Reason::UnpublishedBacklog).retry_after(RETRY_LATER)
        }
        AppendError::Refused(Refused::Draining) => refusal(Reason::Draining).retry_after(RETRY_SOON),
        AppendError::Refused(Refused::LogFull) => refusal(Reason::NoSpace),
        // Not DRAINING, which promises that nothing was appended.
        AppendError::Stopped => refusal(Reason::Internal),
    }
}

fn read_refusal(error: ReadError) -> Refusal {
    let refusal = |reason| Refusal::new(reason, error.to_string());
    match &error {
        ReadError::NothingPublished | ReadError::NotYetPublished { .. } => {
            refusal(Reason::NotYetPublished).retry_after(RETRY_SOON)
        }
        ReadError::Building(_) => refusal(Reason::Gated).retry_after(RETRY_SOON),
        ReadError::TooManyReads => refusal(Reason::Overloaded).retry_after(RETRY_SOON),
        ReadError::BeyondTree { .. } => refusal(Reason::BeyondTree),
        ReadError::BadSizes { .. } => refusal(Reason::BadSize),
        ReadError::Damaged(_) => refusal(Reason::DataLoss),
    }
}
