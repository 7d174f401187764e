//! Appends on the wire.

use bytes::Bytes;
use epigraph_rpc::{Reason, Refusal, convert, v1};

use super::{RETRY_LATER, RETRY_SOON, malformed};
use crate::log::{AppendError, Appended, Log, Wait};
use crate::machine::Refused;

pub(super) async fn append(log: &Log, request: v1::AppendRequest) -> Result<v1::AppendResponse, Refusal> {
    if request.producer.is_some() {
        let message = "this log does not number the entries of producers yet: leave `producer` out";
        return Err(Refusal::new(Reason::ProducersNotSupported, message).at("producer"));
    }
    let wait = match convert::Wait::asked(request.wait).map_err(malformed)? {
        convert::Wait::Durable => Wait::Durable,
        convert::Wait::Published => Wait::Published(convert::wait_for(request.wait_ms)),
    };
    log.append(request.entries, wait).await.map(to_wire).map_err(refusal)
}

fn to_wire(appended: Appended) -> v1::AppendResponse {
    let Appended { first_index, count, published } = appended;
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
    v1::AppendResponse { first_index: first_index.get(), count, reached, checkpoint, proofs }
}

fn refusal(error: AppendError) -> Refusal {
    let refusal = |reason| Refusal::new(reason, error.to_string());
    match &error {
        AppendError::NoEntries => refusal(Reason::NoEntries).at("entries"),
        AppendError::TooManyEntries(_) => refusal(Reason::TooManyEntries).at("entries"),
        AppendError::EntryTooLarge { position, .. } => {
            refusal(Reason::EntryTooLarge).at(&format!("entries[{position}]"))
        }
        AppendError::CallTooLarge(_) => refusal(Reason::BatchTooLarge).at("entries"),
        AppendError::Gated => refusal(Reason::Gated).retry_after(RETRY_LATER),
        AppendError::TooManyWaiters => refusal(Reason::Overloaded).retry_after(RETRY_SOON),
        AppendError::Refused(Refused::Overloaded) => refusal(Reason::Overloaded).retry_after(RETRY_SOON),
        AppendError::Refused(Refused::NoSpace) => refusal(Reason::NoSpace).retry_after(RETRY_LATER),
        AppendError::Refused(Refused::Backlog(_)) => {
            refusal(Reason::UnpublishedBacklog).retry_after(RETRY_LATER)
        }
        AppendError::Refused(Refused::Draining) => refusal(Reason::Draining).retry_after(RETRY_SOON),
        AppendError::Refused(Refused::Stopped) => super::log_stopped(),
        AppendError::Refused(Refused::LogFull) => refusal(Reason::NoSpace),
        // Not DRAINING, which promises that nothing was appended.
        AppendError::Stopped => refusal(Reason::Internal),
    }
}
