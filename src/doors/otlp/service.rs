//! The door that speaks OTLP: `LogsService/Export` of OpenTelemetry over gRPC, which its Collector, its libraries, Vector and Fluent
//! Bit send to. A message is taken as the bytes that it is: what nobody here knows in it is kept.

use std::convert::Infallible;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use epigraph_event::decode::otlp;
use epigraph_rpc::connection::{
    CONNECTION_AGE, CONNECTION_GRACE, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, MAX_ERROR_RESETS,
    MAX_HEADER_BYTES, MAX_PENDING_RESETS,
};
use epigraph_rpc::guests::Guest;
use epigraph_rpc::{Reason, Refusal, Share};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsPartialSuccess, ExportLogsServiceResponse};
use prost::Message;
use tokio::time::{sleep, timeout};
use tonic::Status;
use tonic::codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{Grpc, UnaryService};

use crate::doors::desk::{Answer, Desk, RETRY_AFTER};

/// The one call.
const EXPORT: &str = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";

/// The largest message, unpacked: what servers of gRPC take where nothing else is said, and senders are made for.
const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// Calls under way on one connection; what is above waits on the sender's side.
const MAX_STREAMS: u32 = 16;

/// From the header of a call to its answer: reading four megabytes, and making them durable.
const CALL_TIME: Duration = Duration::from_secs(30);

/// Serves one connection.
pub async fn attend(guest: Guest, desk: Arc<Desk>) {
    let Guest { stream, name, mut stopping, .. } = guest;
    let service = service_fn(move |request| {
        let (desk, name) = (Arc::clone(&desk), name.clone());
        async move { Ok::<_, Infallible>(answer(desk, name, request).await) }
    });
    let serving = Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .max_header_list_size(MAX_HEADER_BYTES)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(MAX_ERROR_RESETS)
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = pin!(serving);
    tokio::select! {
        _ = &mut serving => return,
        () = sleep(CONNECTION_AGE) => {}
        _ = stopping.wait_for(|stopping| *stopping) => {}
    }
    serving.as_mut().graceful_shutdown();
    let _ = timeout(CONNECTION_GRACE, serving).await;
}

async fn answer(
    desk: Arc<Desk>,
    sender: Option<Arc<str>>,
    request: Request<Incoming>,
) -> Response<tonic::body::Body> {
    let refused = |refusal: Refusal| Status::from(refusal).into_http();
    let path = request.uri().path();
    if path != EXPORT {
        let text = format!("there is no call {path:?} here: logs are sent with {EXPORT}");
        return refused(Refusal::new(Reason::UnknownRpc, text));
    }
    // What a packed message becomes is not known before it is unpacked.
    let is_packed = request.headers().get("grpc-encoding").is_some_and(|encoding| encoding != "identity");
    let Some(share) = desk.hold(if is_packed { MAX_MESSAGE_BYTES } else { 0 }) else {
        desk.counts().pushed_back.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        return refused(full());
    };
    let counts = Arc::clone(desk.counts());
    let request = request.map(|body| Metered { body, share });
    let mut grpc = Grpc::new(Verbatim)
        .accept_compressed(CompressionEncoding::Gzip)
        .max_decoding_message_size(MAX_MESSAGE_BYTES);
    let called = timeout(CALL_TIME, grpc.unary(Export { desk, sender }, request)).await;
    let response = called.unwrap_or_else(|_| {
        let text = format!("the call was not over in {CALL_TIME:?}; send it again");
        refused(Refusal::new(Reason::DeadlineExceeded, text))
    });
    // What is refused before the handler is reached is counted here.
    if let Some(status) = response.headers().get("grpc-status").and_then(|status| status.to_str().ok())
        && !response.headers().contains_key("grpc-status-details-bin")
        && status != "0"
    {
        counts.reject("BAD_CALL");
    }
    response
}

fn full() -> Refusal {
    let text = "the collector is full and took nothing of it; send it again";
    Refusal::new(Reason::Overloaded, text).retry_after(RETRY_AFTER)
}

/// The handler of one call.
struct Export {
    desk: Arc<Desk>,
    sender: Option<Arc<str>>,
}

impl UnaryService<Bytes> for Export {
    type Response = Vec<u8>;
    type Future = Pin<Box<dyn Future<Output = Result<tonic::Response<Vec<u8>>, Status>> + Send>>;

    fn call(&mut self, request: tonic::Request<Bytes>) -> Self::Future {
        let (desk, sender) = (Arc::clone(&self.desk), self.sender.clone());
        Box::pin(async move {
            let message = request.into_inner();
            // The body that held its share is gone.
            let Some(_share) = desk.hold(message.len()) else { return Err(full().into()) };
            let answer = desk.take(sender, false, move |context| otlp::decode(&message, context)).await;
            match answer {
                Answer::Taken { events: 0, why: Some(why), .. } => {
                    let text =
                        format!("nothing in it could be understood ({why}); it is kept in the quarantine");
                    Err(Refusal::new(Reason::Malformed, text).into())
                }
                Answer::Taken { rejected, why, .. } => Ok(tonic::Response::new(response(rejected, why))),
                Answer::Full => Err(full().into()),
                Answer::Late => {
                    let text = "the collector's disk is slow or full; it is not known whether the records will be kept, so send them \
                                again";
                    Err(Refusal::new(Reason::Draining, text).retry_after(RETRY_AFTER).into())
                }
            }
        })
    }
}

/// What the protocol wants to be said of records that were not understood; they are not to be sent again.
fn response(rejected: u64, why: Option<&str>) -> Vec<u8> {
    let partial_success = why.map(|why| ExportLogsPartialSuccess {
        rejected_log_records: i64::try_from(rejected).unwrap_or(i64::MAX),
        error_message: format!(
            "{rejected} records could not be understood and are kept in the quarantine; the first: {why}"
        ),
    });
    ExportLogsServiceResponse { partial_success }.encode_to_vec()
}

/// A request's body, which holds its share of what may be held.
struct Metered {
    body: Incoming,
    share: Share<usize>,
}

impl Body for Metered {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let Some(frame) = ready!(Pin::new(&mut this.body).poll_frame(cx)) else { return Poll::Ready(None) };
        let frame = frame.map_err(|error| Status::from_error(error.into()));
        Poll::Ready(Some(frame.and_then(|frame| {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            this.share.grow(bytes).map_err(|_| Status::from(full()))?;
            Ok(frame)
        })))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Messages as bytes.
struct Verbatim;

impl Codec for Verbatim {
    type Encode = Vec<u8>;
    type Decode = Bytes;
    type Encoder = Verbatim;
    type Decoder = Verbatim;

    fn encoder(&mut self) -> Verbatim {
        Verbatim
    }

    fn decoder(&mut self) -> Verbatim {
        Verbatim
    }
}

impl Encoder for Verbatim {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Verbatim {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
