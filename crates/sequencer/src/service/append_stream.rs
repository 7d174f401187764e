//! A stream of appends: reads ahead, answers in order, ends with the first refusal.
//!
//! Nothing runs beside the stream of answers: it is polled by whoever sends them, so a client that goes away takes all of it
//! along, and one that does not read its answers is not read from.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use epigraph_rpc::{Caller, Reason, Refusal, v1};
use tokio::sync::mpsc;
use tokio::time::sleep_until;
use tokio_stream::{Stream, StreamExt};

use super::LogServer;
use super::append::{numbers, refusal, to_wire, wait};
use crate::log::{AppendError, Appended, Call, Log, Wait};
use crate::machine::{Line, Numbers, Refused};

/// Requests of one stream under way: half of the ranges that are kept of a producer, so that whatever was not answered when a
/// stream broke off is still recognised.
const MAX_AHEAD: usize = 64;

/// What the entries under way may take before no more are read. With one more largest request they are below one batch, so
/// that a stream alone is never refused because the log is busy.
const MAX_AHEAD_BYTES: usize = 2 << 20;

/// What an entry counts beside its bytes: so many of the smallest are below the entries of one batch.
const ENTRY_OVERHEAD_BYTES: usize = 64;

/// Answers that are made and not sent. They hold proofs, so there is one.
const ANSWERS_AHEAD: usize = 1;

type Answer = Result<v1::AppendResponse, Refusal>;

/// Answers the requests of the caller, in their order.
pub(super) fn answers(
    server: LogServer,
    caller: Caller,
    requests: impl Stream<Item = Result<v1::AppendRequest, Refusal>> + Send + Unpin + 'static,
) -> impl Stream<Item = Answer> + Send {
    let (send, answers) = mpsc::channel(ANSWERS_AHEAD);
    let run = async move {
        if let Err(refusal) = run(&server, &caller, requests, &send).await {
            // Whoever reads the answers polls this, so it is still there.
            let _ = send.send(Err(refusal)).await;
        }
    };
    Driven { run: Some(Box::pin(run)), answers }
}

async fn run(
    server: &LogServer,
    caller: &Caller,
    mut requests: impl Stream<Item = Result<v1::AppendRequest, Refusal>> + Unpin,
    send: &mpsc::Sender<Answer>,
) -> Result<(), Refusal> {
    let mut leave = std::pin::pin!(sleep_until(caller.leave_by()));
    let first = tokio::select! {
        first = requests.next() => first,
        () = &mut leave => None,
    };
    let Some(first) = first.transpose()? else { return Ok(()) };
    let log = server.find(caller, &first.origin)?;
    let mut lane = Lane {
        wait: wait(&first)?,
        numbers: numbers(caller.identity(), first.producer.as_ref())?,
        line: first.producer.is_none().then(Line::default),
        log: Arc::clone(&log),
        under_way: VecDeque::new(),
        bytes: 0,
    };
    let mut draining = std::pin::pin!(log.draining());
    let mut reading = true;
    // Why nothing more is read; told once everything before it is answered.
    let mut end = Ok(());
    let mut next = Some(first.entries);
    while reading || !lane.under_way.is_empty() {
        if let Some(entries) = next.take() {
            match lane.submit(entries) {
                Ok(()) => {}
                Err(error) => (reading, end) = (false, ended_by(error)),
            }
        }
        tokio::select! {
            biased;
            answer = lane.answered() => match answer {
                // Nobody reads the answers any more.
                Ok(appended) => if send.send(Ok(to_wire(appended))).await.is_err() { return Ok(()) },
                Err(error) => return ended_by(error),
            },
            () = &mut leave, if reading => reading = false,
            () = &mut draining, if reading => reading = false,
            request = requests.next(), if reading && lane.has_room() => match request.map(|request| rest(request?)) {
                Some(Ok(entries)) => next = Some(entries),
                Some(Err(refusal)) => (reading, end) = (false, Err(refusal)),
                None => reading = false,
            },
        }
    }
    end
}

/// The entries of a request that is not the first.
fn rest(request: v1::AppendRequest) -> Result<Vec<bytes::Bytes>, Refusal> {
    let v1::AppendRequest { origin, entries, wait, wait_ms, producer } = request;
    if !origin.is_empty() || wait != 0 || wait_ms != 0 || producer.is_some() {
        let message = "only the first request of a stream says for which log, how and under which producer: those after \
                       it carry entries alone";
        return Err(Refusal::new(Reason::Malformed, message));
    }
    Ok(entries)
}

/// How a stream ends whose request was not appended: a client that only has to connect anew is told nothing else.
fn ended_by(error: AppendError) -> Result<(), Refusal> {
    match error {
        AppendError::Refused(Refused::Draining | Refused::RepeatInLine) => Ok(()),
        error => Err(refusal(error)),
    }
}

/// The requests of one stream that are under way.
struct Lane {
    log: Arc<Log>,
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

    fn submit(&mut self, entries: Vec<bytes::Bytes>) -> Result<(), AppendError> {
        let count = entries.len();
        let bytes = entries.iter().map(|entry| entry.len() + ENTRY_OVERHEAD_BYTES).sum();
        let (numbers, line) = (self.numbers, self.line.clone());
        let submitted = self.log.submit(Call { entries, wait: self.wait, numbers, line })?;
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

/// A future that makes items, polled by whoever takes them.
struct Driven<F, T> {
    run: Option<Pin<Box<F>>>,
    answers: mpsc::Receiver<T>,
}

impl<F: Future<Output = ()>, T> Stream for Driven<F, T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        if let Some(run) = &mut self.run
            && run.as_mut().poll(context).is_ready()
        {
            self.run = None;
        }
        self.answers.poll_recv(context)
    }
}
