//! The one mapping between what went wrong and what the wire says about it: a [`Refusal`] becomes a
//! `google.rpc.Status` with `ErrorInfo` here, and nowhere else; a status becomes a [`CallError`] here, and nowhere
//! else.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::time::Duration;

use thiserror::Error;
use tonic::{Code, Status, TimeoutExpired};
use tonic_types::{ErrorDetails, StatusExt};

use crate::convert::ConvertError;
use crate::limits::MAX_MESSAGE_CHARS;
use crate::request_id::RequestId;
use crate::tls::identity_error;

/// The domain of every `ErrorInfo` that Epigraph sends.
pub const DOMAIN: &str = "epigraph";

/// Declares the reasons with their text and their gRPC code, so that none can lack either.
macro_rules! reasons {
    ($($(#[$doc:meta])+ $reason:ident $text:literal $code:ident,)+) => {
        /// Why a call was refused: the stable vocabulary that a program may decide by. Texts may change, these not.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Reason { $($(#[$doc])+ $reason,)+ }

        impl Reason {
            /// Every reason.
            pub const ALL: &[Reason] = &[$(Reason::$reason,)+];

            /// The reason as it stands in `ErrorInfo`.
            pub fn as_str(self) -> &'static str {
                match self { $(Reason::$reason => $text,)+ }
            }

            fn code(self) -> Code {
                match self { $(Reason::$reason => Code::$code,)+ }
            }

            fn parse(text: &str) -> Option<Reason> {
                match text { $($text => Some(Reason::$reason),)+ _ => None }
            }
        }
    };
}

reasons! {
    /// No log of this origin is here.
    UnknownOrigin "UNKNOWN_ORIGIN" NotFound,
    /// The monitor has no such finding of this log, or no file that goes with it.
    FindingNotFound "FINDING_NOT_FOUND" NotFound,
    /// No source of this key id is enrolled, or the caller may not ask about it.
    UnknownSource "UNKNOWN_SOURCE" NotFound,
    /// No event of this id, index or number was taken.
    EventNotFound "EVENT_NOT_FOUND" NotFound,
    /// No question of this id is being answered that the caller may end.
    QueryNotFound "QUERY_NOT_FOUND" NotFound,
    /// No plan of this id waits that the caller may decide.
    ApprovalNotFound "APPROVAL_NOT_FOUND" NotFound,
    /// The finding is over.
    FindingResolved "FINDING_RESOLVED" FailedPrecondition,
    /// No leaf with this hash is known here, which proves nothing.
    LeafNotFound "LEAF_NOT_FOUND" NotFound,
    /// The log does not reach this far.
    BeyondTree "BEYOND_TREE" OutOfRange,
    /// Durable, but no published checkpoint covers it yet.
    NotYetPublished "NOT_YET_PUBLISHED" Unavailable,
    /// The sequence number is too far ahead of the lowest missing one.
    SequenceGap "SEQUENCE_GAP" FailedPrecondition,
    /// The sequence number stands for another entry.
    SequenceReused "SEQUENCE_REUSED" FailedPrecondition,
    /// The sequence number lies before the window in which repeats are recognised.
    AlreadyCommitted "ALREADY_COMMITTED" AlreadyExists,
    /// A newer run of the producer has taken over.
    StaleEpoch "STALE_EPOCH" FailedPrecondition,
    /// The proof does not prove what it is said to.
    BadProof "BAD_PROOF" InvalidArgument,
    /// A later term was opened at the signer: another log process has taken over.
    Fenced "FENCED" FailedPrecondition,
    /// The signer has opened no such term: its state is older than the caller's.
    TermNotOpened "TERM_NOT_OPENED" FailedPrecondition,
    /// No signature is a valid one of a witness that counts.
    BadCosignature "BAD_COSIGNATURE" InvalidArgument,
    /// The checkpoint does not carry the log's own signature.
    BadLogSignature "BAD_LOG_SIGNATURE" InvalidArgument,
    /// An append without entries.
    NoEntries "NO_ENTRIES" InvalidArgument,
    /// An append with more entries than one call may bring.
    TooManyEntries "TOO_MANY_ENTRIES" InvalidArgument,
    /// An entry above 65,535 bytes.
    EntryTooLarge "ENTRY_TOO_LARGE" InvalidArgument,
    /// A request with more bytes than one call may bring.
    BatchTooLarge "BATCH_TOO_LARGE" OutOfRange,
    /// Tree sizes that do not go together, or beyond 2^63 - 1.
    BadSize "BAD_SIZE" InvalidArgument,
    /// The bytes are not a message of this call, or a field has an impossible value.
    Malformed "MALFORMED" InvalidArgument,
    /// The log keeps the numbers of as many producers as it can.
    ProducersFull "PRODUCERS_FULL" ResourceExhausted,
    /// This server does not have this call.
    UnknownRpc "UNKNOWN_RPC" Unimplemented,
    /// The caller is known and may not do this.
    PermissionDenied "PERMISSION_DENIED" PermissionDenied,
    /// The caller is not known.
    Unauthenticated "UNAUTHENTICATED" Unauthenticated,
    /// A limit on what is under way at once is reached.
    Overloaded "OVERLOADED" ResourceExhausted,
    /// The log's disk has no room for more entries.
    NoSpace "NO_SPACE" ResourceExhausted,
    /// The server is about to stop.
    Draining "DRAINING" Unavailable,
    /// The log has not finished the checks of its start.
    Gated "GATED" Unavailable,
    /// Too many requests of one caller, or for one log.
    RateLimited "RATE_LIMITED" ResourceExhausted,
    /// The state of a witness is older than what it has signed.
    RolledBack "ROLLED_BACK" FailedPrecondition,
    /// The clock of the server cannot be right.
    ClockSkew "CLOCK_SKEW" Unavailable,
    /// A fault has stopped this log; the process may serve others.
    LogStopped "LOG_STOPPED" Unavailable,
    /// Too many entries wait for publication.
    UnpublishedBacklog "UNPUBLISHED_BACKLOG" Unavailable,
    /// The server took too long.
    DeadlineExceeded "DEADLINE_EXCEEDED" DeadlineExceeded,
    /// The disk gave other bytes than were written to it.
    DataLoss "DATA_LOSS" DataLoss,
    /// A fault of the server.
    Internal "INTERNAL" Internal,
    /// A refusal in words that this version does not know; never sent.
    Other "OTHER" Unknown,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A refused call: a reason for programs, a message for people.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{message} ({reason}{})", Request(request.as_ref()))]
pub struct Refusal {
    reason: Reason,
    message: String,
    field: Option<String>,
    retry_after: Option<Duration>,
    request: Option<RequestId>,
}

/// The end of a refusal that came from a server: what to ask for in its messages.
struct Request<'a>(Option<&'a RequestId>);

impl fmt::Display for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |id| write!(f, ", request {id}"))
    }
}

impl Refusal {
    /// The message is cut at [`MAX_MESSAGE_CHARS`] and freed of control characters: it may quote what a stranger
    /// sent, and ends in headers, logs and terminals.
    pub fn new(reason: Reason, message: impl AsRef<str>) -> Refusal {
        Refusal {
            reason,
            message: printable(message.as_ref()),
            field: None,
            retry_after: None,
            request: None,
        }
    }

    /// Names the field of the request that is at fault.
    pub fn at(self, field: &str) -> Refusal {
        Refusal { field: Some(printable(field)), ..self }
    }

    /// Says after how long trying again makes sense.
    pub fn retry_after(self, delay: Duration) -> Refusal {
        Refusal { retry_after: Some(delay), ..self }
    }

    /// The reason.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// What went wrong, and what to do about it.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The field of the request that is at fault.
    pub fn field(&self) -> Option<&str> {
        self.field.as_deref()
    }

    /// How long to wait before trying again; `None` where that is no use.
    pub fn retry_delay(&self) -> Option<Duration> {
        self.retry_after
    }

    /// The id of the refused call, by which whoever runs the server finds what it said of it; `None` on the server's
    /// side, and where a server gave none.
    pub fn request(&self) -> Option<&RequestId> {
        self.request.as_ref()
    }

    /// Reads back what [`Status::from`] wrote; `None` if the status does not come from Epigraph.
    pub fn from_status(status: &Status) -> Option<Refusal> {
        let details = status.get_error_details();
        let info = details.error_info().filter(|info| info.domain == DOMAIN)?;
        let refusal = match Reason::parse(&info.reason) {
            Some(reason) => Refusal::new(reason, status.message()),
            None => Refusal::new(Reason::Other, format!("{} ({})", status.message(), info.reason)),
        };
        Some(Refusal {
            field: details
                .bad_request()
                .and_then(|bad| bad.field_violations.first())
                .map(|violation| printable(&violation.field)),
            retry_after: details.retry_info().and_then(|retry| retry.retry_delay),
            request: RequestId::of(status.metadata().as_ref()),
            ..refusal
        })
    }

    /// What is wrong with the next request of a stream.
    pub fn of_request(status: &Status) -> Refusal {
        Refusal::from_status(status).unwrap_or_else(|| Refusal::of_library(status))
    }

    /// What a status of the gRPC library says in our words. It raises them before a handler is reached: a request
    /// over the limit, bytes that are no message, an unknown path.
    pub(crate) fn of_library(status: &Status) -> Refusal {
        let reason = match status.code() {
            Code::OutOfRange => Reason::BatchTooLarge,
            Code::Internal | Code::InvalidArgument => Reason::Malformed,
            Code::Unimplemented => Reason::UnknownRpc,
            Code::ResourceExhausted => Reason::Overloaded,
            Code::Cancelled | Code::DeadlineExceeded => Reason::DeadlineExceeded,
            _ => Reason::Internal,
        };
        Refusal::new(reason, status.message())
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Status {
        let mut details = ErrorDetails::with_error_info(refusal.reason.as_str(), DOMAIN, HashMap::new());
        if let Some(field) = &refusal.field {
            details.add_bad_request_violation(field, &refusal.message);
        }
        if let Some(delay) = refusal.retry_after {
            details.set_retry_info(Some(delay));
        }
        Status::with_error_details(refusal.reason.code(), refusal.message, details)
    }
}

/// Why a call brought no answer. The three kinds ask for different reactions, and have different exit codes.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum CallError {
    /// The server understood the call and refused it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// There was no connection, or it broke: the call may or may not have been carried out.
    #[error("the server cannot be reached: {0}")]
    Unreachable(String),
    /// No answer came in time: the call may or may not have been carried out.
    #[error("no answer came in time; the call may or may not have been carried out")]
    TimedOut,
    /// An answer came that is not one.
    #[error("the server's answer cannot be used: {0}")]
    Garbled(#[from] ConvertError),
}

impl From<Status> for CallError {
    fn from(status: Status) -> CallError {
        if let Some(refusal) = Refusal::from_status(&status) {
            return CallError::Refused(refusal);
        }
        // A status with a source was made on this side, of a transport error.
        if let Some(source) = status.source() {
            return transport_failure(source);
        }
        match status.code() {
            // tonic's server answers Cancelled where the caller's own deadline has passed.
            Code::DeadlineExceeded | Code::Cancelled => CallError::TimedOut,
            Code::Unavailable => CallError::Unreachable(printable(status.message())),
            code => {
                CallError::Refused(Refusal::new(Reason::Other, format!("{} ({code:?})", status.message())))
            }
        }
    }
}

fn transport_failure(error: &(dyn StdError + 'static)) -> CallError {
    let chain: Vec<_> = std::iter::successors(Some(error), |&error| cause(error)).collect();
    if chain.iter().any(|error| error.is::<TimeoutExpired>()) {
        return CallError::TimedOut;
    }
    let mut text = String::new();
    // tonic's own layer says no more than "transport error".
    let telling = chain.iter().filter(|error| !error.is::<tonic::transport::Error>() || chain.len() == 1);
    for error in telling {
        let identity = error.downcast_ref().and_then(identity_error);
        let message = identity.map_or_else(|| error.to_string(), ToString::to_string);
        if !text.ends_with(&message) {
            text.push_str(if text.is_empty() { "" } else { ": " });
            text.push_str(&message);
        }
    }
    // In TLS 1.3 the client has finished its handshake before the server looks at the client's certificate: a refusal
    // arrives as an alert, or as a closed connection, in place of the first answer.
    let connected = !chain.iter().any(|error| error.is::<tonic::ConnectError>());
    if connected {
        text.push_str(REFUSED_CERTIFICATE_HINT);
    }
    CallError::Unreachable(printable(&text))
}

/// What is behind an error. An `io::Error` passes over the error that it was made of.
fn cause<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)> {
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => Some(inner),
        None => error.source(),
    }
}

const REFUSED_CERTIFICATE_HINT: &str = "; the server closed the connection: if this is the first call, is the \
     client certificate from the CA that the server trusts, is it valid, and does it carry one SPIFFE name?";

fn printable(text: &str) -> String {
    text.chars().take(MAX_MESSAGE_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_survives_the_wire() {
        for reason in Reason::ALL {
            let plain = Refusal::new(*reason, "no such thing");
            let full = plain.clone().at("origin").retry_after(Duration::from_millis(1_500));
            for refusal in [plain, full] {
                let status = Status::from(refusal.clone());
                assert_eq!(Refusal::from_status(&status), Some(refusal), "{reason}");
            }
        }
    }

    #[test]
    fn a_refusal_shows_the_id_that_came_with_it() {
        let check = |id: Option<&str>, expected: &str| {
            let mut status = Status::from(Refusal::new(Reason::BadSize, "too small"));
            if let Some(id) = id {
                status.metadata_mut().insert("x-request-id", id.parse().unwrap());
            }
            assert_eq!(CallError::from(status).to_string(), expected);
        };
        check(None, "too small (BAD_SIZE)");
        check(Some("1a2b"), "too small (BAD_SIZE, request 1a2b)");
        check(Some("1a2b) all is well ("), "too small (BAD_SIZE)");
    }

    #[test]
    fn a_reason_from_the_future_keeps_its_name() {
        let details = ErrorDetails::with_error_info("MOON_PHASE", DOMAIN, HashMap::new());
        let status = Status::with_error_details(Code::Aborted, "wait", details);
        assert_eq!(Refusal::from_status(&status).unwrap(), Refusal::new(Reason::Other, "wait (MOON_PHASE)"));
    }

    #[test]
    fn a_message_is_cut_and_carries_no_control_characters() {
        let refusal = Refusal::new(Reason::UnknownOrigin, format!("\u{1b}[31m\n{}", "ü".repeat(5_000)));
        assert_eq!(refusal.message().chars().count(), MAX_MESSAGE_CHARS);
        assert!(refusal.message().starts_with(" [31m ü"));
    }

    #[test]
    fn a_status_of_someone_else_is_sorted_by_its_code() {
        let check = |status: Status, expected: CallError| assert_eq!(CallError::from(status), expected);
        check(Status::deadline_exceeded("x"), CallError::TimedOut);
        check(Status::cancelled("Timeout expired"), CallError::TimedOut);
        check(Status::unavailable("x"), CallError::Unreachable("x".into()));
        check(Status::aborted("x"), CallError::Refused(Refusal::new(Reason::Other, "x (Aborted)")));
        let foreign = ErrorDetails::with_error_info("GATED", "elsewhere.example", HashMap::new());
        let status = Status::with_error_details(Code::Aborted, "x", foreign);
        check(status, CallError::Refused(Refusal::new(Reason::Other, "x (Aborted)")));
    }
}
