//! Outgoing calls in the types of the core, each with a deadline. Answers have the right shape; whether they are true
//! is for the caller to verify.

mod append;
pub mod audit;
pub mod monitor;
mod read;
mod signer;
mod stream;
mod witness;

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use epigraph_core::bundle::MAX_ENTRY_BYTES;
use epigraph_core::{Hash, LeafIndex};
use tonic::{Request, Response, Status};

pub use append::{AppendAnswers, AppendSender, ProducerState};

use crate::channel::{Channel, channel};
use crate::convert::{ConvertError, Producer, Wait};
use crate::identity::SpiffeId;
use crate::limits::{MAX_READ_BYTES, MAX_RESPONSE_BYTES};
use crate::status::CallError;
use crate::tls::{ClientTls, TlsError};
use crate::v1;
use crate::v1::log_service_client::LogServiceClient;

pub use audit::Audit;
pub use monitor::Monitor;
pub use read::{CheckpointPage, ProofAnswer, Tree, Which};
pub use stream::{Follow, FollowEvent, Watch};

pub use signer::{OpenTermAnswer, SignAnswer, Signer, SignerHead};
pub use witness::{Proposed, Watched, Witness, WitnessedLog};

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
    /// Why they are not published, if that was waited for and the log says so: a stranger's words, of
    /// [`MAX_REASON_CHARS`](crate::limits::MAX_REASON_CHARS) at most.
    pub unpublished_because: Option<String>,
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

    /// Appends the entries, all or none. `wait_for` bounds the wait for [`Wait::Published`], up to [`MAX_WAIT`](crate::limits::MAX_WAIT); `None`
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
        let wait_ms = append::wait_ms(wait_for);
        let request = v1::AppendRequest {
            origin: origin.into(),
            entries,
            wait: wait.to_wire(),
            wait_ms,
            producer: producer.map(v1::Producer::from),
        };
        let deadline = append::deadline(wait, wait_for);
        let mut client = self.client.clone();
        let answer = call(request, deadline, |request| client.append(request)).await?;

        Ok(append::taken(want, &answer)?)
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

/// Entries as one answer may have them: one at least, none too long, not too many bytes together, and at indexes that exist.
/// Returns how many.
fn check_entries<'a>(
    first: LeafIndex,
    entries: impl Iterator<Item = &'a [u8]> + Clone,
) -> Result<u64, ConvertError> {
    let count = entries.clone().count() as u64;
    let more = count.checked_sub(1).ok_or(ConvertError::Missing("entries"))?;
    first.checked_add(more).ok_or(ConvertError::IndexTooLarge(first.get()))?;
    let lengths = entries.map(<[u8]>::len);
    let longest = lengths.clone().max().unwrap_or(0);
    at_most("bytes of an entry", MAX_ENTRY_BYTES as u64, longest as u64)?;
    let bytes = lengths.sum::<usize>();
    at_most("bytes of entries", MAX_READ_BYTES as u64, bytes as u64)?;
    Ok(count)
}
