//! Appending as a stream: reads ahead within limits, answers in order, ends with the first refusal.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use epigraph_core::Hash;
use epigraph_core::bundle::LENGTH_BYTES;
use epigraph_rpc::limits::{MAX_APPEND_BYTES, MAX_APPEND_ENTRIES};
use epigraph_store::journal::MARK_BYTES;
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt};

use super::{AppendError, Appended, Call, Log, Wait};
use crate::machine::{Line, MAX_BATCH_BYTES, MAX_BATCH_ENTRIES, Numbers, Refused, share};

/// Requests of one stream under way: half of the ranges that are kept of a producer, so that whatever was not answered when a
/// stream broke off is still recognised.
pub const MAX_AHEAD: usize = 64;

/// What the entries under way may take before no more are read. With one more largest request they are below one caller's
/// share of a batch, so that a stream alone is never refused because the log is busy.
pub const MAX_AHEAD_BYTES: usize = (2 << 20) - (16 << 10);

const _: () = assert!(
    MAX_AHEAD_BYTES + MAX_APPEND_BYTES + MAX_APPEND_ENTRIES * LENGTH_BYTES + MAX_AHEAD * MARK_BYTES
        <= share(MAX_BATCH_BYTES)
        && MAX_AHEAD_BYTES / ENTRY_OVERHEAD_BYTES + MAX_APPEND_ENTRIES <= share(MAX_BATCH_ENTRIES)
);

/// What an entry counts beside its bytes: so many of the smallest are below the entries of one batch.
const ENTRY_OVERHEAD_BYTES: usize = 64;

/// Why a stream of appends ended before its requests did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StreamError<E> {
    /// A request was not appended.
    Append(AppendError),
    /// There is no next request.
    Request(E),
}

impl<E> From<AppendError> for StreamError<E> {
    fn from(error: AppendError) -> StreamError<E> {
        StreamError::Append(error)
    }
}

impl Log {
    /// Appends the entries of each request, as [`Log::append`] does, and sends an answer for each, in their order. The
    /// numbers run on from request to request. Nothing is appended behind a request that is refused.
    ///
    /// It ends when the requests do, or the receiver is gone; and well, with all answers sent, when `leave` is over, the log
    /// drains, or a request was answered before and is to be sent first in another stream.
    pub async fn append_stream<E>(
        self: Arc<Log>,
        identity: Hash,
        wait: Wait,
        numbers: Option<Numbers>,
        mut requests: impl Stream<Item = Result<Vec<Bytes>, E>> + Unpin,
        leave: impl Future<Output = ()>,
        answers: &mpsc::Sender<Result<Appended, StreamError<E>>>,
    ) -> Result<(), StreamError<E>> {
        let mut lane = Lane {
            identity,
            wait,
            numbers,
            line: numbers.is_none().then(Line::default),
            log: Arc::clone(&self),
            under_way: VecDeque::new(),
            bytes: 0,
        };
        let (mut leave, mut draining) = (pin!(leave), pin!(self.draining()));
        let mut reading = true;
        // Why nothing more is read; told once everything before it is answered.
        let mut end = Ok(());
        while reading || !lane.under_way.is_empty() {
            let room = reading && lane.has_room();
            tokio::select! {
                biased;
                answer = lane.answered() => match answer {
                    Ok(appended) => if answers.send(Ok(appended)).await.is_err() { return Ok(()) },
                    Err(error) => return ended_by(error),
                },
                () = &mut leave, if reading => reading = false,
                () = &mut draining, if reading => reading = false,
                request = requests.next(), if room => match request {
                    Some(Ok(entries)) => if let Err(error) = lane.submit(entries) {
                        (reading, end) = (false, ended_by(error));
                    },
                    Some(Err(error)) => (reading, end) = (false, Err(StreamError::Request(error))),
                    None => reading = false,
                },
            }
        }
        end
    }
}

/// How a stream ends whose request was not appended: a client that only has to connect anew is told nothing else.
fn ended_by<E>(error: AppendError) -> Result<(), StreamError<E>> {
    match error {
        AppendError::Refused(Refused::Draining | Refused::RepeatInLine) => Ok(()),
        error => Err(error.into()),
    }
}

/// The requests of one stream that are under way.
struct Lane {
    log: Arc<Log>,
    identity: Hash,
    wait: Wait,
    /// Of the next request.
    numbers: Option<Numbers>,
    /// Under numbers, requests are sent one by one as long as they repeat what was sent before, because it takes a look at
    /// the disk to say whether they do. From the first new one on they do not wait for each other.
    line: Option<Line>,
    under_way: VecDeque<UnderWay>,
    bytes: usize,
}

struct UnderWay {
    answering: Pin<Box<dyn Future<Output = Result<Appended, AppendError>> + Send>>,
    answer: Option<Result<Appended, AppendError>>,
    bytes: usize,
}

impl Lane {
    fn has_room(&self) -> bool {
        match self.line {
            Some(_) => self.under_way.len() < MAX_AHEAD && self.bytes < MAX_AHEAD_BYTES,
            None => self.under_way.is_empty(),
        }
    }

    fn submit(&mut self, entries: Vec<Bytes>) -> Result<(), AppendError> {
        let count = entries.len();
        let bytes = entries.iter().map(|entry| entry.len() + ENTRY_OVERHEAD_BYTES).sum();
        let (numbers, line) = (self.numbers, self.line.clone());
        let submitted =
            self.log.submit(Call { entries, wait: self.wait, numbers, line, identity: self.identity })?;
        if let Some(numbers) = &mut self.numbers {
            numbers.first_sequence = numbers.first_sequence.saturating_add(count as u64);
        }
        let log = Arc::clone(&self.log);
        let answering = Box::pin(async move { log.answer(submitted).await });
        self.under_way.push_back(UnderWay { answering, answer: None, bytes });
        self.bytes += bytes;
        Ok(())
    }

    /// The answer to the oldest request; pends if there is none. All are waited for at once, so that the times for which
    /// they wait do not add up.
    async fn answered(&mut self) -> Result<Appended, AppendError> {
        let answer = poll_fn(|context| {
            for request in self.under_way.iter_mut().filter(|request| request.answer.is_none()) {
                if let Poll::Ready(answer) = request.answering.as_mut().poll(context) {
                    request.answer = Some(answer);
                }
            }
            match self.under_way.front_mut().and_then(|oldest| oldest.answer.take()) {
                Some(answer) => Poll::Ready(answer),
                None => Poll::Pending,
            }
        })
        .await;
        self.bytes -= self.under_way.pop_front().map_or(0, |oldest| oldest.bytes);
        if self.line.is_none() && answer.as_ref().is_ok_and(|appended| !appended.repeated) {
            self.line = Some(Line::default());
        }
        answer
    }
}
