//! What whoever runs a server may watch of it: the span of each call, and hooks. It measures nothing itself: what time is,
//! and what is counted or kept, is up to the hooks.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body as _, Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};
use tracing::Span;
use tracing::field::Empty;

use crate::accept::{OnRefused, PeerIdentity};
use crate::request_id::{RequestId, RequestIds, TraceParent};

/// The name that a call goes by if there is no such RPC: what a stranger sends is no label.
pub const UNKNOWN_RPC: &str = "unknown";

/// Told of every call when its header is there, with the name of its RPC (`epigraph.v1.LogService/Append`). What it
/// returns is told how the call was answered; it is dropped untold if the caller hangs up before.
pub type OnCall = Arc<dyn Fn(&'static str) -> OnAnswer + Send + Sync>;

/// Told of an answer, with the name of its gRPC status (`OK`, `INVALID_ARGUMENT`); says how long the call took.
pub type OnAnswer = Box<dyn FnOnce(&'static str) -> Duration + Send>;

/// Told of a call's span, before anything happens in it, if the caller named the trace that it belongs to.
pub type OnTrace = Arc<dyn Fn(&Span, TraceParent) + Send + Sync>;

/// Told why no connection could be accepted, before a pause: file descriptors have run out, most of all.
pub type OnAcceptPaused = Arc<dyn Fn(&io::Error) + Send + Sync>;

/// Told how many connections are open, whenever it changes.
pub type OnConnections = Arc<dyn Fn(usize) + Send + Sync>;

/// The hooks of one server.
#[derive(Clone)]
pub struct Hooks {
    /// Refused connections.
    pub on_refused: OnRefused,
    /// Calls.
    pub on_call: OnCall,
    /// Pauses in accepting.
    pub on_accept_paused: OnAcceptPaused,
    /// Open connections.
    pub on_connections: OnConnections,
    /// Calls within a trace.
    pub on_trace: OnTrace,
    /// Names calls that come without a name.
    pub request_ids: Arc<RequestIds>,
}

/// Nobody watches anything else, and calls are numbered.
impl From<OnRefused> for Hooks {
    fn from(on_refused: OnRefused) -> Hooks {
        Hooks {
            on_refused,
            on_call: Arc::new(|_| Box::new(|_| Duration::ZERO)),
            on_accept_paused: Arc::new(|_| ()),
            on_connections: Arc::new(|_| ()),
            on_trace: Arc::new(|_, _| ()),
            request_ids: Arc::new(RequestIds::starting_at(0)),
        }
    }
}

/// A call that is being watched.
pub(crate) struct Watched {
    id: RequestId,
    span: Span,
    answered: OnAnswer,
}

impl Watched {
    /// The call of this header.
    pub(crate) fn begin<B>(hooks: &Hooks, request: &Request<B>, rpc: &'static str) -> Watched {
        let answered = (hooks.on_call)(rpc);
        let trace = TraceParent::of(request.headers());
        let id = hooks.request_ids.of_call(request.headers(), trace.as_ref());
        let peer = request.extensions().get::<Arc<PeerIdentity>>();
        // At the highest level, so that it is there whenever any message is.
        let span = tracing::error_span!(
            "call",
            request_id = %id,
            rpc,
            peer = peer.map(|peer| display(&peer.spiffe)),
            code = Empty,
            duration_ms = Empty,
        );
        if let Some(trace) = trace {
            (hooks.on_trace)(&span, trace);
        }
        Watched { id, span, answered }
    }

    /// What is said in it is said while this call was handled.
    pub(crate) fn span(&self) -> &Span {
        &self.span
    }

    /// The answer, under the call's id; a stream of answers stays in the call's span to its end.
    pub(crate) fn answer(self, mut response: Response<Body>) -> Response<Body> {
        let Watched { id, span, answered } = self;
        let code = code_of(response.headers());
        let took = answered(code);
        // Whoever hears less has nobody to tell, and writing both into the span costs as much as the span.
        if tracing::span_enabled!(tracing::Level::DEBUG) {
            span.record("code", code).record("duration_ms", took.as_secs_f64() * 1000.0);
            tracing::debug!(parent: &span, "answered");
        }
        id.put(response.headers_mut());
        if response.body().is_end_stream() {
            return response;
        }
        response.map(|body| Body::new(Spanned { body, span }))
    }
}

/// The body of an answer, sent within a call's span.
struct Spanned {
    body: Body,
    span: Span,
}

impl http_body::Body for Spanned {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Spanned { body, span } = &mut *self;
        let _within = span.enter();
        Pin::new(body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The name of the status in an answer's header. An answer without one there is a message.
pub(crate) fn code_of(headers: &HeaderMap) -> &'static str {
    match headers.get(Status::GRPC_STATUS).map_or(Code::Ok, |status| Code::from_bytes(status.as_bytes())) {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
