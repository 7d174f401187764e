//! What whoever runs a server may watch of it. It measures nothing itself: what time is, and what is counted, is up to
//! the hooks.

use std::io;
use std::sync::Arc;

use tonic::{Code, Status};

use crate::accept::OnRefused;

/// The name that a call goes by if there is no such RPC: what a stranger sends is no label.
pub const UNKNOWN_RPC: &str = "unknown";

/// Told of every call when its header is there, with the name of its RPC (`epigraph.v1.LogService/Append`). What it
/// returns is told how the call was answered; it is dropped untold if the caller hangs up before.
pub type OnCall = Arc<dyn Fn(&'static str) -> OnAnswer + Send + Sync>;

/// Told of an answer, with the name of its gRPC status (`OK`, `INVALID_ARGUMENT`).
pub type OnAnswer = Box<dyn FnOnce(&'static str) + Send>;

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
}

/// Nobody watches anything else.
impl From<OnRefused> for Hooks {
    fn from(on_refused: OnRefused) -> Hooks {
        Hooks {
            on_refused,
            on_call: Arc::new(|_| Box::new(|_| ())),
            on_accept_paused: Arc::new(|_| ()),
            on_connections: Arc::new(|_| ()),
        }
    }
}

/// The name of the status in an answer's header. An answer without one there is a message.
pub(crate) fn code_of(headers: &http::HeaderMap) -> &'static str {
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
