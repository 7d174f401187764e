//! Outgoing calls in the types of the core, each with a deadline. Answers have the right shape; whether they are true
//! is for the caller to verify.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use epigraph_core::bundle::MAX_ENTRY_BYTES;
use epigraph_core::{Hash, LeafIndex, TreeSize};
use tonic::{Request, Response, Status};

use crate::channel::{Channel, channel};
use crate::convert::{ConvertError, Producer, Wait, leaf_index, proof, read_entries};
use crate::identity::SpiffeId;
use crate::limits::{CALL_DEADLINE, MAX_READ_BYTES, MAX_RESPONSE_BYTES, MAX_WAIT};
use crate::status::CallError;
use crate::tls::{ClientTls, TlsError};
use crate::v1::log_service_client::LogServiceClient;
use crate::v1::{self, get_proof_request::Target};

/// What a log says to an append.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AppendAnswer {
    /// The index of the first entry; the others follow.
    pub first_index: LeafIndex,
    /// How far the entries have come.
    pub reached: Wait,
    /// The signed note of a published checkpoint that covers the entries: with [`Wait::Published`], and only then.
    pub checkpoint: Option<Bytes>,
    /// With [`Wait::Published`] one inclusion proof per entry; else none.
    pub proofs: Vec<Vec<Hash>>,
}

/// An inclusion proof and what it is a proof for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProofAnswer {
    /// The index of the entry.
    pub leaf_index: LeafIndex,
    /// The sibling hashes, the leaf's own first.
    pub hashes: Vec<Hash>,
    /// The signed note of the checkpoint that the proof leads to.
    pub checkpoint: Bytes,
}

/// A log, seen by those who call it. Cheap to clone; clones share the connection.
#[derive(Clone, Debug)]
pub struct Log {
    client: LogServiceClient<Channel>,
}

impl Log {
    /// Prepares the connection to the log's process at `address` (`host:port`), which must prove to be `server`; the
    /// first call makes it. Must be called within a tokio runtime.
    pub fn new(address: &str, tls: &ClientTls, server: &SpiffeId) -> Result<Log, TlsError> {
        Ok(Log::over(channel(address, tls, server)?))
    }

    /// The same over a connection that was prepared before.
    pub fn over(channel: Channel) -> Log {
        Log { client: LogServiceClient::new(channel).max_decoding_message_size(MAX_RESPONSE_BYTES) }
    }

    /// Appends the entries, all or none. `wait_for` bounds the wait for [`Wait::Published`], up to [`MAX_WAIT`]; `None`
    /// leaves it to the server.
    pub async fn append(
        &self,
        origin: &str,
        entries: Vec<Bytes>,
        wait: Wait,
        wait_for: Option<Duration>,
        producer: Option<Producer>,
    ) -> Result<AppendAnswer, CallError> {
        let want = entries.len() as u64;
        // 0 on the wire means "the server's default", so a wait of less than a millisecond is one.
        let wait_ms = wait_for.map_or(0, |wait| u32::try_from(wait.as_millis()).unwrap_or(u32::MAX).max(1));
        let request = v1::AppendRequest {
            origin: origin.into(),
            entries,
            wait: wait.to_wire(),
            wait_ms,
            producer: producer.map(v1::Producer::from),
        };
        let deadline = match wait {
            Wait::Durable => CALL_DEADLINE,
            Wait::Published => CALL_DEADLINE + wait_for.unwrap_or(MAX_WAIT).min(MAX_WAIT),
        };
        let mut client = self.client.clone();
        let answer = call(request, deadline, |request| client.append(request)).await?;

        let reached = Wait::reached(answer.reached)?;
        expect("count", want, u64::from(answer.count))?;
        let first_index = leaf_index(answer.first_index)?;
        if let Some(more) = want.checked_sub(1) {
            first_index.checked_add(more).ok_or(ConvertError::IndexTooLarge(answer.first_index))?;
        }
        let checkpoint = match reached {
            Wait::Durable => None,
            Wait::Published => Some(present("checkpoint", answer.checkpoint)?),
        };
        expect("proofs", if reached == Wait::Published { want } else { 0 }, answer.proofs.len() as u64)?;
        let proofs =
            answer.proofs.iter().map(|inclusion| proof(&inclusion.hashes)).collect::<Result<_, _>>()?;
        Ok(AppendAnswer { first_index, reached, checkpoint, proofs })
    }

    /// Asks for the proof that the entry is in the log, against the newest published checkpoint.
    pub async fn proof(&self, origin: &str, index: LeafIndex) -> Result<ProofAnswer, CallError> {
        let target = Some(Target::LeafIndex(index.get()));
        let request = v1::GetProofRequest { origin: origin.into(), target, tree_size: 0, consistent_from: 0 };
        let mut client = self.client.clone();
        let answer = call(request, CALL_DEADLINE, |request| client.get_proof(request)).await?;
        expect("leaf_index", index.get(), answer.leaf_index)?;
        let checkpoint = present("checkpoint", answer.checkpoint)?;
        Ok(ProofAnswer { leaf_index: index, hashes: proof(&answer.hashes)?, checkpoint })
    }

    /// Asks for the entries from `first` on, at most `max` of them; 0 leaves that to the server. At least one comes, and
    /// none of them is proven.
    pub async fn entries(&self, origin: &str, first: LeafIndex, max: u32) -> Result<Vec<Bytes>, CallError> {
        let first_index = first.get();
        let request = v1::GetEntriesRequest { origin: origin.into(), first_index, max_entries: max };
        let mut client = self.client.clone();
        let answer = call(request, CALL_DEADLINE, |request| client.get_entries(request)).await?;
        expect("first_index", first_index, answer.first_index)?;
        let entries = answer.entries;
        let Some(more) = (entries.len() as u64).checked_sub(1) else {
            return Err(ConvertError::Missing("entries").into());
        };
        at_most("entries", u64::from(read_entries(max)), more + 1)?;
        first.checked_add(more).ok_or(ConvertError::IndexTooLarge(first_index))?;
        let longest = entries.iter().map(Bytes::len).max().unwrap_or(0);
        at_most("bytes of an entry", MAX_ENTRY_BYTES as u64, longest as u64)?;
        let bytes = entries.iter().map(Bytes::len).sum::<usize>();
        at_most("bytes of entries", MAX_READ_BYTES as u64, bytes as u64)?;
        Ok(entries)
    }

    /// Asks for the proof that the tree of size `old` is the beginning of the tree of size `new`.
    pub async fn consistency_proof(
        &self,
        origin: &str,
        old: TreeSize,
        new: TreeSize,
    ) -> Result<Vec<Hash>, CallError> {
        let request = v1::GetConsistencyProofRequest {
            origin: origin.into(),
            old_size: old.get(),
            new_size: new.get(),
        };
        let mut client = self.client.clone();
        let answer = call(request, CALL_DEADLINE, |request| client.get_consistency_proof(request)).await?;
        Ok(proof(&answer.hashes)?)
    }

    /// Asks for the newest published checkpoint: a signed note.
    pub async fn checkpoint(&self, origin: &str) -> Result<Bytes, CallError> {
        let request = v1::GetCheckpointRequest { origin: origin.into() };
        let mut client = self.client.clone();
        let answer = call(request, CALL_DEADLINE, |request| client.get_checkpoint(request)).await?;
        Ok(present("checkpoint", answer.checkpoint)?)
    }
}

/// Makes one call. The deadline travels with it, so that the server stops as well, and holds here whatever the other
/// side does, connecting included.
async fn call<M, A, F>(
    message: M,
    deadline: Duration,
    send: impl FnOnce(Request<M>) -> F,
) -> Result<A, CallError>
where
    F: Future<Output = Result<Response<A>, Status>>,
{
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    let answer = tokio::time::timeout(deadline, send(request)).await.map_err(|_| CallError::TimedOut)?;
    Ok(answer?.into_inner())
}

fn expect(field: &'static str, want: u64, got: u64) -> Result<(), ConvertError> {
    if want == got { Ok(()) } else { Err(ConvertError::Unexpected { field, want, got }) }
}

fn at_most(field: &'static str, most: u64, got: u64) -> Result<(), ConvertError> {
    if got <= most { Ok(()) } else { Err(ConvertError::TooMany { field, most, got }) }
}

fn present(field: &'static str, bytes: Bytes) -> Result<Bytes, ConvertError> {
    if bytes.is_empty() { Err(ConvertError::Missing(field)) } else { Ok(bytes) }
}
