//! `CollectorService` on the wire: messages of events in, an answer to each once its events are durable.

use std::pin::Pin;
use std::sync::Arc;

use epigraph_event::decode::mapped::{self, Mapping};
use epigraph_rpc::limits::{MAX_COLLECT_BYTES, MAX_COLLECT_EVENTS};
use epigraph_rpc::v1::collector_service_server::CollectorService;
use epigraph_rpc::v1::{CollectRequest, CollectResponse};
use epigraph_rpc::{Caller, Quota, Reason, Refusal, SpiffeId};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, sleep_until};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::doors::desk::{Answer, Desk, RETRY_AFTER};

/// Streams at one time: each holds one message, and the gRPC library the next.
const MAX_STREAMS: usize = 64;

/// Of these, streams of one sender: one that works, and those that it has lost and the server has not noticed yet.
const MAX_STREAMS_PER_IDENTITY: usize = 8;

/// Answers that wait for the reader of a stream.
const ANSWERS: usize = 16;

type Answered = Result<CollectResponse, Status>;

/// The service of one door.
pub struct CollectorServer {
    desk: Arc<Desk>,
    mapping: Arc<Mapping>,
    closing: watch::Receiver<bool>,
    streams: Arc<Quota<SpiffeId>>,
}

impl CollectorServer {
    /// Serves this desk.
    pub fn new(desk: Arc<Desk>, mapping: Arc<Mapping>, closing: watch::Receiver<bool>) -> CollectorServer {
        CollectorServer { desk, mapping, closing, streams: Quota::new(MAX_STREAMS, MAX_STREAMS_PER_IDENTITY) }
    }
}

#[tonic::async_trait]
impl CollectorService for CollectorServer {
    type CollectStream = Pin<Box<dyn Stream<Item = Answered> + Send>>;

    async fn collect(
        &self,
        request: Request<Streaming<CollectRequest>>,
    ) -> Result<Response<Self::CollectStream>, Status> {
        let caller = Caller::of(&request)?.clone();
        let share = self.streams.take(caller.identity().clone(), 1).map_err(|exceeded| {
            let message = format!("too many streams of events are open: {exceeded}");
            Refusal::new(Reason::Overloaded, message).retry_after(RETRY_AFTER)
        })?;
        let (answers, answered) = mpsc::channel(ANSWERS);
        let taking = Taking {
            desk: Arc::clone(&self.desk),
            mapping: Arc::clone(&self.mapping),
            sender: caller.identity().as_str().into(),
            answers,
        };
        let (requests, mut closing) = (request.into_inner(), self.closing.clone());
        tokio::spawn(async move {
            let _share = share;
            // Between two messages, so that all that was read is answered.
            let leaving = async {
                tokio::select! {
                    () = sleep_until(caller.leave_by()) => {}
                    _ = closing.wait_for(|closing| *closing) => {}
                }
            };
            if let Err(refusal) = taking.run(requests, leaving).await {
                let _ = taking.answers.send(Err(refusal.into())).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answered))))
    }
}

/// One stream.
struct Taking {
    desk: Arc<Desk>,
    mapping: Arc<Mapping>,
    sender: Arc<str>,
    answers: mpsc::Sender<Answered>,
}

impl Taking {
    async fn run(
        &self,
        mut requests: Streaming<CollectRequest>,
        leaving: impl Future<Output = ()>,
    ) -> Result<(), Refusal> {
        let mut leaving = std::pin::pin!(leaving);
        loop {
            let request = tokio::select! {
                () = &mut leaving => return Ok(()),
                () = self.answers.closed() => return Ok(()),
                request = requests.message() => request.map_err(|status| Refusal::of_request(&status))?,
            };
            let Some(CollectRequest { number, events }) = request else { return Ok(()) };
            let bytes: usize = events.iter().map(bytes::Bytes::len).sum();
            if !(1..=MAX_COLLECT_EVENTS).contains(&events.len()) || bytes > MAX_COLLECT_BYTES {
                let text = format!(
                    "a message has 1 to {MAX_COLLECT_EVENTS} events of {MAX_COLLECT_BYTES} bytes in all, this one has {} of {bytes}",
                    events.len()
                );
                return Err(Refusal::new(Reason::Malformed, text).at("events"));
            }
            // While there is no room nothing more is read, and the stream holds its sender back.
            let events = Arc::new(events);
            let taken = tokio::select! {
                () = self.answers.closed() => return Ok(()),
                taken = self.take(&events, bytes, leaving.as_mut()) => taken,
            };
            let Some(answer) = taken else { return Ok(()) };
            let answer = CollectResponse { number, ..answer };
            if self.answers.send(Ok(answer)).await.is_err() {
                return Ok(());
            }
        }
    }

    /// Nothing is left half taken: it ends early only where nothing of the message is there.
    async fn take(
        &self,
        events: &Arc<Vec<bytes::Bytes>>,
        bytes: usize,
        mut leaving: Pin<&mut impl Future<Output = ()>>,
    ) -> Option<CollectResponse> {
        loop {
            if let Some(_share) = self.desk.hold(bytes) {
                let (taking, mapping) = (Arc::clone(events), Arc::clone(&self.mapping));
                let decode = move |context: &epigraph_event::Context| {
                    taking.iter().flat_map(|event| mapped::decode(event, &mapping, context)).collect()
                };
                let answer = self.desk.take_unheard(Some(Arc::clone(&self.sender)), decode).await;
                if let Answer::Taken { events, rejected, why } = answer {
                    let count = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
                    let why = why.unwrap_or_default().to_owned();
                    return Some(CollectResponse {
                        number: 0,
                        events: count(events),
                        rejected: count(rejected),
                        why,
                    });
                }
            }
            tokio::select! {
                () = &mut leaving => return None,
                () = sleep(RETRY_AFTER) => {}
            }
        }
    }
}
