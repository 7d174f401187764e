//! The signer on the wire: finds the log that is meant and may be used, asks the signer's thread, maps errors. Nothing is
//! decided here.

use std::collections::BTreeSet;
use std::time::Duration;

use epigraph_core::Origin;
use epigraph_core::progress::Proposal;
use epigraph_rpc::convert::{proof, tree_head, tree_head_to_wire, tree_size};
use epigraph_rpc::peer::{OpenTermAnswer, SignerHead};
use epigraph_rpc::v1::signer_service_server::SignerService;
use epigraph_rpc::v1::{self, open_term_response, sign_checkpoint_response};
use epigraph_rpc::{Caller, Reason, Refusal};
use tonic::{Status, async_trait};

use crate::handle::SignerHandle;
use crate::signer::{Answer, Request, SignerError};

/// When to try again while the gate is not passed: the log that asks may be the one that has to answer first.
const RETRY_SOON: Duration = Duration::from_millis(200);

/// The logs of this signer.
pub struct SignerServer {
    signer: SignerHandle,
    logs: BTreeSet<Origin>,
}

impl SignerServer {
    /// Serves these logs, for which the signer has keys.
    pub fn new(signer: SignerHandle, logs: impl IntoIterator<Item = Origin>) -> SignerServer {
        SignerServer { signer, logs: logs.into_iter().collect() }
    }

    /// The log that the request names and its caller may use; an empty name means the only one here.
    fn log<T>(&self, request: &tonic::Request<T>, origin: &str) -> Result<Origin, Refusal> {
        let only = match self.logs.first() {
            Some(only) if origin.is_empty() && self.logs.len() == 1 => only.as_str(),
            _ => origin,
        };
        let authorized = Caller::of(request)?.authorize(only)?;
        let unknown = || unknown(authorized.get());
        self.logs.get(authorized.get()).cloned().ok_or_else(unknown)
    }
}

#[async_trait]
impl SignerService for SignerServer {
    async fn get_head(
        &self,
        request: tonic::Request<v1::GetHeadRequest>,
    ) -> Result<tonic::Response<v1::GetHeadResponse>, Status> {
        let origin = self.log(&request, &request.get_ref().origin)?;
        let held = self.signer.head(&origin).await.map_err(refusal)?;
        Ok(tonic::Response::new(v1::GetHeadResponse { held: Some(held.to_wire()) }))
    }

    async fn open_term(
        &self,
        request: tonic::Request<v1::OpenTermRequest>,
    ) -> Result<tonic::Response<v1::OpenTermResponse>, Status> {
        let origin = self.log(&request, &request.get_ref().origin)?;
        let expected = SignerHead::of_wire("expected", request.get_ref().expected.as_ref());
        let expected = expected.map_err(Refusal::from)?;
        let outcome = match self.signer.open_term(&origin, expected).await.map_err(refusal)? {
            OpenTermAnswer::Opened(term) => open_term_response::Outcome::Opened(term),
            OpenTermAnswer::Changed(held) => open_term_response::Outcome::Changed(held.to_wire()),
        };
        Ok(tonic::Response::new(v1::OpenTermResponse { outcome: Some(outcome) }))
    }

    async fn sign_checkpoint(
        &self,
        request: tonic::Request<v1::SignCheckpointRequest>,
    ) -> Result<tonic::Response<v1::SignCheckpointResponse>, Status> {
        let origin = self.log(&request, &request.get_ref().origin)?;
        let message = request.into_inner();
        let proposal = Proposal {
            old_size: tree_size("old_size", message.old_size).map_err(Refusal::from)?,
            head: tree_head("head", message.head.as_ref()).map_err(Refusal::from)?,
            proof: proof(&message.proof).map_err(Refusal::from)?,
            note: Vec::new(),
        };
        let request = Request { origin, term: message.term, proposal };
        use sign_checkpoint_response::Outcome;
        let outcome = match self.signer.sign_checkpoint(request).await.map_err(refusal)? {
            Answer::Signed(note) => Outcome::Checkpoint(note.into()),
            Answer::Stale(held) => Outcome::Stale(tree_head_to_wire(&held)),
            Answer::Conflict(conflict) => Outcome::Conflict(tree_head_to_wire(&conflict.held)),
            Answer::Reject(why) => Outcome::Rejected(why),
        };
        Ok(tonic::Response::new(v1::SignCheckpointResponse { outcome: Some(outcome) }))
    }
}

fn unknown(origin: &Origin) -> Refusal {
    Refusal::new(Reason::UnknownOrigin, format!("this signer has no log {:?}", origin.as_str())).at("origin")
}

fn refusal(error: SignerError) -> Refusal {
    let refusal = |reason| Refusal::new(reason, error.to_string());
    match &error {
        SignerError::UnknownLog(origin) => unknown(origin),
        SignerError::Gated(_) => refusal(Reason::Gated).retry_after(RETRY_SOON),
        SignerError::WentBack(_) => refusal(Reason::LogStopped),
        SignerError::Fenced { .. } => refusal(Reason::Fenced),
        SignerError::TermNotOpened { .. } => refusal(Reason::TermNotOpened),
        SignerError::ClockAhead { .. } => refusal(Reason::ClockSkew).retry_after(RETRY_SOON),
        // What is wrong with its disk or its keys is for whoever runs it, not for whoever calls.
        SignerError::NoTermLeft(_)
        | SignerError::Store(_)
        | SignerError::WrongKey(_)
        | SignerError::Ended => {
            tracing::error!(%error, "a call could not be answered");
            Refusal::new(Reason::Internal, "the signer cannot sign; its messages say why")
        }
    }
}
