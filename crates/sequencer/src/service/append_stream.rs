//! A stream of appends on the wire.
//!
//! Nothing runs beside the stream of answers: it is polled by whoever sends them, so a client that goes away takes all of it
//! along, and one that does not read its answers is not read from.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::vec;

use bytes::Bytes;
use epigraph_rpc::{Caller, Reason, Refusal, v1};
use tokio::sync::mpsc;
use tokio::time::sleep_until;
use tokio_stream::{Stream, StreamExt};

use super::LogServer;
use super::append::{identity, numbers, refusal, to_wire, wait};
use crate::log::{Appended, StreamError};

/// Times that answers are made and not sent. They may hold proofs, so it is one.
const ANSWERS_AHEAD: usize = 1;

/// To the oldest requests; without proofs there may be many.
type Answer = Result<Vec<Appended>, StreamError<Refusal>>;

/// Answers the requests of the caller, in their order.
pub(super) fn answers(
    server: LogServer,
    caller: Caller,
    requests: impl Stream<Item = Result<v1::AppendRequest, Refusal>> + Send + Unpin + 'static,
) -> impl Stream<Item = Result<v1::AppendResponse, Refusal>> + Send {
    let (send, answers) = mpsc::channel(ANSWERS_AHEAD);
    let run = async move {
        if let Err(error) = run(&server, &caller, requests, &send).await {
            // Whoever reads the answers polls this, so it is still there.
            let _ = send.send(Err(error)).await;
        }
    };
    Driven { run: Some(Box::pin(run)), answers, ready: Vec::new().into_iter() }.map(|answer| match answer {
        Ok(appended) => Ok(to_wire(appended)),
        Err(StreamError::Append(error)) => Err(refusal(error)),
        Err(StreamError::Request(refusal)) => Err(refusal),
    })
}

async fn run(
    server: &LogServer,
    caller: &Caller,
    mut requests: impl Stream<Item = Result<v1::AppendRequest, Refusal>> + Unpin,
    answers: &mpsc::Sender<Answer>,
) -> Result<(), StreamError<Refusal>> {
    let mut leave = pin!(sleep_until(caller.leave_by()));
    let first = tokio::select! {
        first = requests.next() => first,
        () = &mut leave => None,
    };
    let Some(first) = first.transpose().map_err(StreamError::Request)? else { return Ok(()) };
    let terms = || {
        let log = server.find(caller, &first.origin)?;
        Ok((log, wait(&first)?, numbers(caller.identity(), first.producer.as_ref())?))
    };
    let (log, wait, numbers) = terms().map_err(StreamError::Request)?;
    let requests = tokio_stream::once(Ok(first.entries)).chain(requests.map(|request| rest(request?)));
    log.append_stream(identity(caller.identity()), wait, numbers, requests, leave, answers).await
}

/// The entries of a request that is not the first.
fn rest(request: v1::AppendRequest) -> Result<Vec<Bytes>, Refusal> {
    let v1::AppendRequest { origin, entries, wait, wait_ms, producer } = request;
    if !origin.is_empty() || wait != 0 || wait_ms != 0 || producer.is_some() {
        let message = "only the first request of a stream says for which log, how and under which producer: those after \
                       it carry entries alone";
        return Err(Refusal::new(Reason::Malformed, message));
    }
    Ok(entries)
}

/// A future that makes items, some at a time, polled by whoever takes them.
struct Driven<F, T, E> {
    run: Option<Pin<Box<F>>>,
    answers: mpsc::Receiver<Result<Vec<T>, E>>,
    ready: vec::IntoIter<T>,
}

impl<F: Future<Output = ()>, T: Unpin, E> Stream for Driven<F, T, E> {
    type Item = Result<T, E>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<T, E>>> {
        loop {
            if let Some(next) = self.ready.next() {
                return Poll::Ready(Some(Ok(next)));
            }
            if let Some(run) = &mut self.run
                && run.as_mut().poll(context).is_ready()
            {
                self.run = None;
            }
            match ready!(self.answers.poll_recv(context)) {
                Some(Ok(answers)) => self.ready = answers.into_iter(),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }
}
