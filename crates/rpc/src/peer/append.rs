//! Appending as a stream, and what the log knows of a producer.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Streaming};

use super::{AppendAnswer, Log, call, expect, present};
use crate::convert::{ConvertError, PRODUCER_ID_BYTES, Producer, Wait, leaf_index, proof};
use crate::limits::{CALL_DEADLINE, MAX_REASON_CHARS, MAX_WAIT};
use crate::status::CallError;
use crate::v1;

/// Requests that wait for the connection; a sender with more waits for it.
const QUEUED_REQUESTS: usize = 1;

/// What a log knows of a producer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProducerState {
    /// The highest epoch that it has used; `None` if it never appended.
    pub epoch: Option<u64>,
    /// The lowest number that is not in the log.
    pub next_sequence: u64,
}

/// The sending half of a stream of appends. Dropping it says that nothing more comes; what was sent is still answered.
#[derive(Debug)]
pub struct AppendSender {
    requests: mpsc::Sender<v1::AppendRequest>,
    counts: mpsc::UnboundedSender<u64>,
    /// What the first request says, until it is sent.
    first: v1::AppendRequest,
}

/// The receiving half of a stream of appends.
#[derive(Debug)]
pub struct AppendAnswers {
    answers: Streaming<v1::AppendResponse>,
    /// The entries of each request that is not answered.
    counts: mpsc::UnboundedReceiver<u64>,
    deadline: Duration,
}

impl Log {
    /// Begins a stream of appends, under the conditions of [`Log::append`]; the numbers of a producer run on from request
    /// to request.
    pub async fn append_stream(
        &self,
        origin: &str,
        wait: Wait,
        wait_for: Option<Duration>,
        producer: Option<Producer>,
    ) -> Result<(AppendSender, AppendAnswers), CallError> {
        let first = v1::AppendRequest {
            origin: origin.into(),
            entries: Vec::new(),
            wait: wait.to_wire(),
            wait_ms: wait_ms(wait_for),
            producer: producer.map(v1::Producer::from),
        };
        let (requests, queue) = mpsc::channel(QUEUED_REQUESTS);
        let (counts, unanswered) = mpsc::unbounded_channel();
        let mut client = self.client.clone();
        // Without a deadline on the wire: it would be one for the whole stream.
        let opened = client.append_stream(Request::new(ReceiverStream::new(queue)));
        let opened = timeout(CALL_DEADLINE, opened).await.map_err(|_| CallError::TimedOut)?;
        let answers = opened?.into_inner();
        let sender = AppendSender { requests, counts, first };
        Ok((sender, AppendAnswers { answers, counts: unanswered, deadline: deadline(wait, wait_for) }))
    }

    /// Asks what the log knows of one of the caller's producers.
    pub async fn producer(
        &self,
        origin: &str,
        id: [u8; PRODUCER_ID_BYTES],
    ) -> Result<ProducerState, CallError> {
        let id = Bytes::copy_from_slice(&id);
        let request = v1::GetProducerRequest { origin: origin.into(), id };
        let mut client = self.client.clone();
        let answer = call(request, CALL_DEADLINE, |request| client.get_producer(request)).await?;
        Ok(ProducerState { epoch: answer.epoch, next_sequence: answer.next_sequence })
    }
}

impl AppendSender {
    /// Sends one request; waits while the log has enough to do. Returns `false` if the stream has ended: the answers say
    /// why, and this request was not sent.
    pub async fn send(&mut self, entries: Vec<Bytes>) -> bool {
        let Ok(place) = self.requests.reserve().await else { return false };
        // Before the request, so that no answer comes without it.
        let counted = self.counts.send(entries.len() as u64).is_ok();
        place.send(v1::AppendRequest { entries, ..std::mem::take(&mut self.first) });
        counted
    }
}

impl AppendAnswers {
    /// The answer to the next request; `None` once the log has ended the stream. What has no answer then was not appended by
    /// this stream, or can be sent again under the same numbers. Waits as long as an answer may take, so call it only
    /// if one is to come.
    pub async fn next(&mut self) -> Result<Option<AppendAnswer>, CallError> {
        let answer = timeout(self.deadline, self.answers.message());
        let Some(answer) = answer.await.map_err(|_| CallError::TimedOut)?? else { return Ok(None) };
        let want = self.counts.try_recv().map_err(|_| ConvertError::Missing("request"))?;
        Ok(Some(taken(want, &answer)?))
    }
}

/// 0 on the wire means "the server's default", so a wait of less than a millisecond is one.
pub(super) fn wait_ms(wait_for: Option<Duration>) -> u32 {
    wait_for.map_or(0, |wait| u32::try_from(wait.as_millis()).unwrap_or(u32::MAX).max(1))
}

/// How long an answer may take.
pub(super) fn deadline(wait: Wait, wait_for: Option<Duration>) -> Duration {
    match wait {
        Wait::Durable => CALL_DEADLINE,
        Wait::Published => CALL_DEADLINE + wait_for.unwrap_or(MAX_WAIT).min(MAX_WAIT),
    }
}

/// The answer to a request with `want` entries.
pub(super) fn taken(want: u64, answer: &v1::AppendResponse) -> Result<AppendAnswer, ConvertError> {
    let reached = Wait::reached(answer.reached)?;
    expect("count", want, u64::from(answer.count))?;
    let first_index = leaf_index(answer.first_index)?;
    if let Some(more) = want.checked_sub(1) {
        first_index.checked_add(more).ok_or(ConvertError::IndexTooLarge(answer.first_index))?;
    }
    let checkpoint = match reached {
        Wait::Durable => None,
        Wait::Published => Some(present("checkpoint", answer.checkpoint.clone())?),
    };
    expect("proofs", if reached == Wait::Published { want } else { 0 }, answer.proofs.len() as u64)?;
    let proofs = answer.proofs.iter().map(|inclusion| proof(&inclusion.hashes)).collect::<Result<_, _>>()?;
    let why: String = answer.unpublished_because.chars().take(MAX_REASON_CHARS).collect();
    let unpublished_because = Some(why).filter(|why| reached == Wait::Durable && !why.is_empty());
    Ok(AppendAnswer { first_index, reached, checkpoint, proofs, unpublished_because })
}
