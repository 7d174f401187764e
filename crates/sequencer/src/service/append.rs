//! Appends on the wire.

use bytes::Bytes;
use epigraph_core::Hash;
use epigraph_core::hash::sha256;
use epigraph_rpc::{Reason, Refusal, SpiffeId, convert, v1};
use epigraph_store::journal::{Objection, ProducerKey};

use super::{RETRY_LATER, RETRY_SOON, malformed};
use crate::log::{AppendError, Appended, Call, Log, ReadError, Wait};
use crate::machine::{Numbers, Refused};

/// Appends the entries of one call for the caller of this name.
pub(super) async fn append(
    log: &Log,
    caller: &SpiffeId,
    request: v1::AppendRequest,
) -> Result<v1::AppendResponse, Refusal> {
    let (numbers, wait) = (numbers(caller, request.producer.as_ref())?, wait(&request)?);
    let identity = identity(caller);
    let call = Call { entries: request.entries, wait, numbers, line: None, identity };
    log.call(call).await.map(to_wire).map_err(refusal)
}

/// What is in the log of one of the caller's producers.
pub(super) async fn get_producer(
    log: &Log,
    caller: &SpiffeId,
    request: &v1::GetProducerRequest,
) -> Result<v1::GetProducerResponse, Refusal> {
    let id = convert::producer_id("id", &request.id)?;
    let state = log.producer(key(caller, id)).await.map_err(refusal)?;
    Ok(v1::GetProducerResponse { epoch: state.epoch, next_sequence: state.next_sequence })
}

pub(super) fn wait(request: &v1::AppendRequest) -> Result<Wait, Refusal> {
    Ok(match convert::Wait::asked(request.wait).map_err(malformed)? {
        convert::Wait::Durable => Wait::Durable,
        convert::Wait::Published => Wait::Published(convert::wait_for(request.wait_ms)),
    })
}

pub(super) fn numbers(
    caller: &SpiffeId,
    producer: Option<&v1::Producer>,
) -> Result<Option<Numbers>, Refusal> {
    let Some(producer) = producer.map(convert::Producer::try_from).transpose()? else { return Ok(None) };
    let convert::Producer { id, epoch, first_sequence } = producer;
    Ok(Some(Numbers { producer: key(caller, id), epoch, first_sequence }))
}

/// Under its caller's name, so that nobody can use up the numbers of another one.
fn key(caller: &SpiffeId, id: [u8; convert::PRODUCER_ID_BYTES]) -> ProducerKey {
    ProducerKey { identity: identity(caller), id }
}

/// What the log tells its callers apart by.
pub(super) fn identity(caller: &SpiffeId) -> Hash {
    sha256(caller.as_str().as_bytes())
}

pub(super) fn to_wire(appended: Appended) -> v1::AppendResponse {
    let Appended { first_index, count, published, unpublished_because, .. } = appended;
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
    let (first_index, unpublished_because) = (first_index.get(), unpublished_because.unwrap_or_default());
    v1::AppendResponse { first_index, count, reached, checkpoint, proofs, unpublished_because }
}

pub(super) fn refusal(error: AppendError) -> Refusal {
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
        AppendError::Refused(Refused::Numbers(objection)) => {
            let refusal = refusal(match objection {
                Objection::StaleEpoch { .. } => Reason::StaleEpoch,
                Objection::Gap { .. } => Reason::SequenceGap,
                Objection::AlreadyCommitted { .. } | Objection::Scattered => Reason::AlreadyCommitted,
                Objection::Mixed { .. } => Reason::SequenceReused,
                Objection::Full => Reason::ProducersFull,
                Objection::Fragmented { .. } => Reason::SequenceGap,
            });
            refusal.at("producer")
        }
        AppendError::Refused(Refused::TooManyProducers) => refusal(Reason::ProducersFull).at("producer"),
        AppendError::Refused(Refused::Reused(_)) => refusal(Reason::SequenceReused).at("producer"),
        AppendError::Refused(Refused::BeingWritten) => refusal(Reason::Overloaded).retry_after(RETRY_SOON),
        // Of a stream, and it ends with the refusal before it.
        AppendError::Refused(Refused::LineBroken | Refused::RepeatInLine) => {
            refusal(Reason::Overloaded).retry_after(RETRY_SOON)
        }
        AppendError::NotCompared(ReadError::Building(_)) => refusal(Reason::Gated).retry_after(RETRY_LATER),
        AppendError::NotCompared(_) => refusal(Reason::DataLoss),
        // Not DRAINING, which promises that nothing was appended.
        AppendError::Stopped => refusal(Reason::Internal),
    }
}
