//! Proofs, entries and checkpoints on the wire.

use bytes::Bytes;
use epigraph_core::TreeSize;
use epigraph_core::note::parse_signatures;
use epigraph_rpc::v1::get_proof_request::Target;
use epigraph_rpc::{ConvertError, Reason, Refusal, SpiffeId, convert, v1};

use super::{RETRY_SOON, malformed};
use crate::log::{CosignError, InTree, ListError, Log, Reach, ReadError, Said};

pub(super) async fn get_proof(
    log: &Log,
    request: v1::GetProofRequest,
) -> Result<v1::GetProofResponse, Refusal> {
    let index = match &request.target {
        Some(Target::LeafIndex(index)) => {
            let out_of_range =
                |error: ConvertError| Refusal::new(Reason::BeyondTree, error.to_string()).at("leaf_index");
            convert::leaf_index(*index).map_err(out_of_range)?
        }
        Some(Target::LeafHash(leaf)) => {
            let leaf = convert::hash("leaf_hash", leaf)?;
            log.index_of(leaf).await.map_err(refusal)?
        }
        None => return Err(malformed(ConvertError::Missing("target"))),
    };
    let tree = InTree {
        size: size_or_none("tree_size", request.tree_size)?,
        consistent_from: size_or_none("consistent_from", request.consistent_from)?,
    };
    let proven = log.prove_in(index, tree).await.map_err(refusal)?;
    let checkpoint = if proven.proof.size == proven.checkpoint.head().size {
        Bytes::copy_from_slice(proven.checkpoint.note())
    } else {
        Bytes::new()
    };
    let consistency = proven.consistency.map_or_else(Vec::new, |proof| convert::proof_to_wire(&proof.hashes));
    Ok(v1::GetProofResponse {
        leaf_index: index.get(),
        hashes: convert::proof_to_wire(&proven.proof.hashes),
        checkpoint,
        consistency,
    })
}

/// A size that 0 leaves out.
fn size_or_none(field: &'static str, size: u64) -> Result<Option<TreeSize>, Refusal> {
    Ok(Some(convert::tree_size(field, size)?).filter(|size| *size != TreeSize::ZERO))
}

pub(super) async fn get_tile(
    log: &Log,
    reach: Reach,
    request: v1::GetTileRequest,
) -> Result<v1::GetTileResponse, Refusal> {
    let hashes = log.tile(reach, request.level, request.index, convert::tile_width(request.width)).await;
    let hashes = hashes.map_err(refusal)?;
    let bytes: Vec<u8> = hashes.iter().flat_map(|hash| *hash.as_bytes()).collect();
    Ok(v1::GetTileResponse { hashes: bytes.into() })
}

pub(super) async fn get_entries(
    log: &Log,
    reach: Reach,
    request: v1::GetEntriesRequest,
) -> Result<v1::GetEntriesResponse, Refusal> {
    let v1::GetEntriesRequest { first_index, max_entries, .. } = request;
    let out_of_range =
        |error: ConvertError| Refusal::new(Reason::BeyondTree, error.to_string()).at("first_index");
    let first = convert::leaf_index(first_index).map_err(out_of_range)?;
    let entries = log.entries(reach, first, convert::read_entries(max_entries)).await.map_err(refusal)?;
    Ok(v1::GetEntriesResponse { first_index, entries })
}

pub(super) async fn get_consistency_proof(
    log: &Log,
    reach: Reach,
    request: v1::GetConsistencyProofRequest,
) -> Result<v1::GetConsistencyProofResponse, Refusal> {
    let bad_size = |error: ConvertError| Refusal::new(Reason::BadSize, error.to_string());
    let old = convert::tree_size("old_size", request.old_size).map_err(bad_size)?;
    let new = convert::tree_size("new_size", request.new_size).map_err(bad_size)?;
    let proof = log.prove_consistency(reach, old, new).await.map_err(refusal)?;
    Ok(v1::GetConsistencyProofResponse { hashes: convert::proof_to_wire(&proof.hashes) })
}

pub(super) async fn add_cosignature(
    log: &Log,
    who: &SpiffeId,
    request: &v1::AddCosignatureRequest,
) -> Result<(), Refusal> {
    let v1::AddCosignatureRequest { size, signatures, held, .. } = request;
    let size = convert::tree_size("size", *size)?;
    let malformed = |why: &dyn ToString, field| Refusal::new(Reason::Malformed, why.to_string()).at(field);
    let what = match (signatures.is_empty(), held.is_empty()) {
        (true, false) => Said::Conflict(who.clone(), held.to_vec()),
        (false, false) => {
            return Err(malformed(&"a head is cosigned or conflicts with what is held, not both", "held"));
        }
        _ => {
            Said::Cosignatures(parse_signatures(signatures).map_err(|error| malformed(&error, "signatures"))?)
        }
    };
    log.hand_in(size, what).await.map_err(|error| {
        let refusal = |reason| Refusal::new(reason, error.to_string());
        match error {
            CosignError::Gated => refusal(Reason::Gated).retry_after(RETRY_SOON),
            CosignError::TooMany => refusal(Reason::Overloaded).retry_after(RETRY_SOON),
            CosignError::NoSuchHead(_) => refusal(Reason::NotYetPublished).at("size"),
            CosignError::Bad(_) => refusal(Reason::BadCosignature).at("signatures"),
            CosignError::NoConflict(_) => refusal(Reason::BadCosignature).at("held"),
            CosignError::Unknown(_) => refusal(Reason::PermissionDenied).at("held"),
        }
    })
}

pub(super) fn get_checkpoint(log: &Log) -> Result<v1::GetCheckpointResponse, Refusal> {
    let checkpoint = log.checkpoint().map_err(refusal)?;
    Ok(v1::GetCheckpointResponse { checkpoint: Bytes::copy_from_slice(checkpoint.note()) })
}

pub(super) async fn list_checkpoints(
    log: &Log,
    request: v1::ListCheckpointsRequest,
) -> Result<v1::ListCheckpointsResponse, Refusal> {
    let min_size = convert::tree_size("min_size", request.min_size)?;
    let page_size = convert::list_page(request.page_size);
    let listed = log.list_checkpoints(min_size, page_size, &request.page_token).await;
    let listed = listed.map_err(|error| match error {
        ListError::Token => Refusal::new(Reason::Malformed, error.to_string()).at("page_token"),
        ListError::Read(error) => refusal(error),
    })?;
    let notes = listed.checkpoints.iter().map(|checkpoint| Bytes::copy_from_slice(checkpoint.note()));
    Ok(v1::ListCheckpointsResponse {
        checkpoints: notes.collect(),
        next_page_token: listed.next.unwrap_or_default(),
    })
}

pub(super) fn refusal(error: ReadError) -> Refusal {
    let refusal = |reason| Refusal::new(reason, error.to_string());
    match &error {
        ReadError::NothingPublished | ReadError::NotYetPublished { .. } => {
            refusal(Reason::NotYetPublished).retry_after(RETRY_SOON)
        }
        ReadError::Building(_) => refusal(Reason::Gated).retry_after(RETRY_SOON),
        ReadError::TooManyReads => refusal(Reason::Overloaded).retry_after(RETRY_SOON),
        ReadError::BeyondTree { .. } => refusal(Reason::BeyondTree),
        ReadError::BadSizes { .. } | ReadError::NotInTree { .. } => refusal(Reason::BadSize),
        ReadError::LeafNotFound { behind: true } => refusal(Reason::LeafNotFound).retry_after(RETRY_SOON),
        ReadError::LeafNotFound { behind: false } => refusal(Reason::LeafNotFound),
        ReadError::NoSuchTile { .. } => refusal(Reason::Malformed),
        ReadError::Damaged(_) => refusal(Reason::DataLoss),
    }
}
