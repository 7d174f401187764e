//! What ties the messages of a call together: its request id, on both sides and in the answer, and the trace of the
//! caller that it belongs to (W3C Trace Context). It does not know who keeps traces.
//!
//! Both come from whoever calls. They help to find things and prove nothing: nothing may be decided by them.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use epigraph_core::Entropy;
use http::{HeaderMap, HeaderValue};

/// The metadata key of a request id, in requests and answers.
pub const REQUEST_ID: &str = "x-request-id";

/// The metadata key of a trace (W3C Trace Context, section 3.2).
pub const TRACEPARENT: &str = "traceparent";

/// Characters of a request id: a UUID, a trace id or a ULID with a prefix. It stands in every message of its call.
pub const MAX_REQUEST_ID: usize = 64;

/// A request id: 1 to [`MAX_REQUEST_ID`] ASCII letters, digits and `-`, `_`, `.`, so that no log, terminal or query
/// takes it for anything else. Clones share the text.
#[derive(Clone, PartialEq, Eq)]
pub struct RequestId(HeaderValue);

impl RequestId {
    /// The id in these headers, if there is one and it is well formed.
    pub fn of(headers: &HeaderMap) -> Option<RequestId> {
        let value = headers.get(REQUEST_ID)?;
        let safe = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let well_formed = (1..=MAX_REQUEST_ID).contains(&value.len()) && value.as_bytes().iter().all(safe);
        well_formed.then(|| RequestId(value.clone()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    pub(crate) fn put(self, headers: &mut HeaderMap) {
        let mut value = self.0;
        // Not because it is secret: what is marked so stays out of the table of header compression (RFC 7541 section 7.1.3), where
        // ids that never come again push out everything that does, and are compared with each new one.
        value.set_sensitive(true);
        headers.insert(REQUEST_ID, value);
    }

    fn of_trace(trace: &TraceParent) -> RequestId {
        RequestId(header(format!("{:032x}", trace.trace_id)))
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Digits and dashes are always a header's value.
fn header(text: String) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("0"))
}

/// Makes request ids of 16 hexadecimal digits: numbers that follow each other from a random one. Unpredictable they need not
/// be, and asking for randomness at every call would cost more than the id.
#[derive(Debug)]
pub struct RequestIds {
    next: AtomicU64,
}

impl RequestIds {
    /// Ids that no other process has, in all likelihood.
    pub fn new(entropy: &dyn Entropy) -> RequestIds {
        let mut start = [0; 8];
        entropy.fill(&mut start);
        RequestIds::starting_at(u64::from_be_bytes(start))
    }

    /// Ids from this number on.
    pub fn starting_at(first: u64) -> RequestIds {
        RequestIds { next: AtomicU64::new(first) }
    }

    pub(crate) fn make(&self) -> RequestId {
        RequestId(header(format!("{:016x}", self.next.fetch_add(1, Ordering::Relaxed))))
    }

    /// The id that a caller sent, else that of its trace, else a new one.
    pub(crate) fn of_call(&self, headers: &HeaderMap, trace: Option<&TraceParent>) -> RequestId {
        RequestId::of(headers).or_else(|| trace.map(RequestId::of_trace)).unwrap_or_else(|| self.make())
    }
}

/// A place in a trace: what a `traceparent` says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TraceParent {
    /// The trace; never 0.
    pub trace_id: u128,
    /// The span that calls; never 0.
    pub span_id: u64,
    /// Whether the caller keeps the trace.
    pub sampled: bool,
}

impl TraceParent {
    /// The trace in these headers, if there is one and it is well formed.
    pub fn of(headers: &HeaderMap) -> Option<TraceParent> {
        TraceParent::parse(headers.get(TRACEPARENT)?.to_str().ok()?)
    }

    /// Reads a `traceparent` (W3C Trace Context, section 3.2.2): version 0 exactly, of later versions what they have in
    /// common with it.
    pub fn parse(text: &str) -> Option<TraceParent> {
        let mut parts = text.split('-');
        let version = hex(parts.next()?, 2)?;
        let trace_id = hex(parts.next()?, 32)?;
        let span_id = u64::try_from(hex(parts.next()?, 16)?).ok()?;
        let flags = hex(parts.next()?, 2)?;
        let more = parts.next().is_some();
        let unusable = version == 0xff || (version == 0 && more) || trace_id == 0 || span_id == 0;
        (!unusable).then_some(TraceParent { trace_id, span_id, sampled: flags & 1 == 1 })
    }

    pub(crate) fn put(self, headers: &mut HeaderMap) {
        let TraceParent { trace_id, span_id, sampled } = self;
        headers.insert(
            TRACEPARENT,
            header(format!("00-{trace_id:032x}-{span_id:016x}-{:02x}", u8::from(sampled))),
        );
    }
}

/// Exactly so many lower-case hexadecimal digits.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let fits = text.len() == digits && text.as_bytes().iter().all(is_digit);
    fits.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name.parse().unwrap(), HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn an_id_is_taken_only_if_it_can_stand_anywhere() {
        let check = |value: &str, taken: bool| {
            let id = RequestId::of(&headers(REQUEST_ID, value));
            assert_eq!(id.map(|id| id.to_string()), taken.then(|| value.to_owned()), "{value:?}");
        };
        check("1a2b", true);
        check("0197b7a4-7c1e-7d0a-8000-2f1e5a3c9b11", true);
        check("Job_7.retry-2", true);
        check(&"x".repeat(MAX_REQUEST_ID), true);
        check(&"x".repeat(MAX_REQUEST_ID + 1), false);
        for value in ["", " ", "a b", "a\"b", "a=b", "a{b", "a\tb", "é", "../x"] {
            check(value, false);
        }
    }

    #[test]
    fn made_ids_are_sixteen_digits_and_all_different() {
        let ids = RequestIds::starting_at(u64::MAX);
        let made: Vec<String> = (0..3).map(|_| ids.make().to_string()).collect();
        assert_eq!(made, ["ffffffffffffffff", "0000000000000000", "0000000000000001"]);
    }

    #[test]
    fn the_caller_s_id_comes_before_its_trace_and_its_trace_before_a_new_one() {
        let ids = RequestIds::starting_at(7);
        let trace = TraceParent { trace_id: 0xabc, span_id: 1, sampled: true };
        let check = |sent: &str, trace: Option<&TraceParent>, expected: &str| {
            assert_eq!(ids.of_call(&headers(REQUEST_ID, sent), trace).as_str(), expected);
        };
        check("mine", Some(&trace), "mine");
        check("not mine", Some(&trace), "00000000000000000000000000000abc");
        check("not mine", None, "0000000000000007");
    }

    /// Examples and rules of the W3C recommendation (trace-context-1, sections 3.2.2 and 4.3).
    #[test]
    fn traces_are_read_as_the_recommendation_says() {
        let check = |value: &str, expected: Option<bool>| {
            let parsed = TraceParent::of(&headers(TRACEPARENT, value));
            assert_eq!(parsed.map(|trace| trace.sampled), expected, "{value}");
            if let Some(trace) = parsed {
                assert_eq!(trace.trace_id, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
                assert_eq!(trace.span_id, 0x00f0_67aa_0ba9_02b7);
            }
        };
        check("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", Some(true));
        check("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00", Some(false));
        check("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-the-future-holds", Some(true));
        for value in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            check(value, None);
        }
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let mut written = HeaderMap::new();
        TraceParent::of(&headers(TRACEPARENT, text)).unwrap().put(&mut written);
        assert_eq!(written, headers(TRACEPARENT, text));
    }
}
