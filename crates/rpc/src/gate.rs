//! The gate in front of every handler: who calls, may they, how long may it take, how much may they send and leave unread. It runs
//! before the body is decoded, and answers in the words of [`Refusal`] also where the gRPC library refuses.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};
use tracing::Instrument;

use crate::accept::PeerIdentity;
use crate::authorize::{Authorizer, Caller, RULES, Rule, unauthenticated};
use crate::identity::SpiffeId;
use crate::observe::{Hooks, UNKNOWN_RPC, Watched};
use crate::quota::{Exceeded, Quota, Share};
use crate::sending::Sending;
use crate::status::{Reason, Refusal};
use crate::tls::why;

/// Bytes of requests that are being received, in all: the gRPC library holds each until it is complete.
pub const MAX_RECEIVING_BYTES: usize = 256 << 20;

/// The same for one identity: sixteen of the largest appends at once.
pub const MAX_RECEIVING_BYTES_PER_IDENTITY: usize = 64 << 20;

/// How long to wait after [`Reason::Overloaded`]: the time in which some of the requests under way will be complete.
const OVERLOADED_RETRY: Duration = Duration::from_millis(500);

/// Puts a [`Gate`] in front of a service.
#[derive(Clone)]
pub(crate) struct GateLayer {
    authorizer: Authorizer,
    receiving: Arc<Quota<SpiffeId>>,
    sending: Sending,
    hooks: Hooks,
}

impl GateLayer {
    pub(crate) fn new(authorizer: Authorizer, hooks: Hooks) -> GateLayer {
        let receiving = Quota::new(MAX_RECEIVING_BYTES, MAX_RECEIVING_BYTES_PER_IDENTITY);
        GateLayer { authorizer, receiving, sending: Sending::new(), hooks }
    }

    fn admit(
        &self,
        request: &Request<Body>,
        rule: Option<&'static Rule>,
    ) -> Result<(&'static Rule, Caller, Share<SpiffeId>), Refusal> {
        let peer: &Arc<PeerIdentity> = request.extensions().get().ok_or_else(unauthenticated)?;
        // The connection is being cut if this is so; a call that is faster must not get through.
        peer.standing.check().map_err(|error| revoked(peer, &error))?;
        let path = request.uri().path();
        let rule =
            rule.ok_or_else(|| Refusal::new(Reason::UnknownRpc, format!("there is no call {path:?} here")))?;
        let caller = self.authorizer.check(Arc::clone(peer), rule)?;
        self.sending.check(&peer.spiffe).map_err(|exceeded| unread(&exceeded))?;
        let share = self.receiving.take(peer.spiffe.clone(), 0).map_err(|exceeded| overloaded(&exceeded))?;
        Ok((rule, caller, share))
    }
}

fn revoked(peer: &PeerIdentity, error: &rustls::Error) -> Refusal {
    let text =
        format!("the certificate of {} is no longer accepted: {}; get a new one", peer.spiffe, why(error));
    Refusal::new(Reason::Unauthenticated, text)
}

fn overloaded(exceeded: &Exceeded) -> Refusal {
    Refusal::new(Reason::Overloaded, format!("too many bytes of requests are on their way: {exceeded}"))
        .retry_after(OVERLOADED_RETRY)
}

fn unread(exceeded: &Exceeded) -> Refusal {
    let text = format!("too many bytes of answers wait to be read: {exceeded}; read them");
    Refusal::new(Reason::Overloaded, text).retry_after(OVERLOADED_RETRY)
}

impl<S> Layer<S> for GateLayer {
    type Service = Gate<S>;

    fn layer(&self, inner: S) -> Gate<S> {
        Gate { layer: self.clone(), inner }
    }
}

/// See the module.
#[derive(Clone)]
pub(crate) struct Gate<S> {
    layer: GateLayer,
    inner: S,
}

impl<S> Service<Request<Body>> for Gate<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        let rule = RULES.iter().find(|rule| rule.path == path);
        let rpc = rule.map_or(UNKNOWN_RPC, |rule| rule.path.trim_start_matches('/'));
        let watched = Watched::begin(&self.layer.hooks, &request, rpc);
        let (rule, caller, share) = match self.layer.admit(&request, rule) {
            Ok(admitted) => admitted,
            Err(refusal) => {
                let path = request.uri().path();
                tracing::info!(parent: watched.span(), path, %refusal, "call refused");
                let response = watched.answer(Status::from(refusal).into_http());
                return Box::pin(async { Ok(response) });
            }
        };
        let deadline = rule.deadline.min(asked_timeout(request.headers()).unwrap_or(Duration::MAX));
        let (sending, holder) = (self.layer.sending.clone(), caller.identity().clone());
        request.extensions_mut().insert(caller);
        let span = watched.span().clone();
        let answer = self
            .inner
            .call(request.map(|body| Body::new(Metered { body, share, messages: Messages::default() })));
        let handled = async move {
            let response = match tokio::time::timeout(deadline, answer).await {
                Ok(response) => in_our_words(response?),
                Err(_) => {
                    let text = format!("the call was not over in {deadline:?}");
                    Status::from(Refusal::new(Reason::DeadlineExceeded, text)).into_http()
                }
            };
            Ok(watched.answer(response.map(|body| sending.count(holder, body))))
        };
        Box::pin(handled.instrument(span))
    }
}

/// How long the caller will wait (gRPC over HTTP/2, `grpc-timeout`: at most eight digits and a unit). What is no such
/// thing is no wish.
fn asked_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&number.len()) || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = number.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3_600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// A refusal that carries no details was not made by a handler but by the gRPC library around it.
fn in_our_words(response: Response<Body>) -> Response<Body> {
    if response.headers().get(Status::GRPC_STATUS).is_none_or(|status| status == "0")
        || response.headers().contains_key(GRPC_STATUS_DETAILS)
    {
        return response;
    }
    match Status::from_header_map(response.headers()) {
        Some(status) => Status::from(Refusal::of_library(&status)).into_http(),
        None => response,
    }
}

/// The header with the encoded `google.rpc.Status`.
pub(crate) const GRPC_STATUS_DETAILS: &str = "grpc-status-details-bin";

/// A request's body, counted while it is received. Of a stream, what is decoded is given back: the gRPC library asks for
/// more only when it holds no complete message.
struct Metered {
    body: Body,
    share: Share<SpiffeId>,
    messages: Messages,
}

/// Where a body is in its messages: each is a byte, four bytes of length in big-endian order, and so many bytes (gRPC over
/// HTTP/2, "Length-Prefixed-Message").
#[derive(Default)]
struct Messages {
    prefix: [u8; 5],
    /// Bytes of the message that is not complete yet, its prefix included.
    begun: usize,
}

impl Messages {
    fn advance(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            let missing = self.prefix.len().saturating_sub(self.begun);
            let (head, rest) = data.split_at(missing.min(data.len()));
            let at = self.prefix.len() - missing;
            self.prefix[at..at + head.len()].copy_from_slice(head);
            self.begun += head.len();
            data = rest;
            if self.begun < self.prefix.len() {
                return;
            }
            let [_, length @ ..] = self.prefix;
            let whole = self.prefix.len().saturating_add(u32::from_be_bytes(length) as usize);
            let body = (whole - self.begun).min(data.len());
            self.begun += body;
            data = &data[body..];
            if self.begun == whole {
                self.begun = 0;
            }
        }
    }
}

impl http_body::Body for Metered {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let begun = self.messages.begun;
        self.share.shrink_to(begun);
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let bytes = match &frame {
            Some(Ok(frame)) => frame.data_ref().map_or(&[][..], |data| data.as_ref()),
            _ => &[],
        };
        self.messages.advance(bytes);
        let bytes = bytes.len();
        match self.share.grow(bytes) {
            Ok(()) => Poll::Ready(frame),
            Err(exceeded) => Poll::Ready(Some(Err(overloaded(&exceeded).into()))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authorize::{Grant, Logs, Role};
    use crate::request_id::REQUEST_ID;
    use http_body_util::BodyExt;
    use std::sync::atomic::{AtomicBool, Ordering};
    use tower::ServiceExt;
    use tower::util::service_fn;

    const APPEND: &str = "/epigraph.v1.LogService/Append";

    fn gate(role: Role) -> GateLayer {
        let spiffe = "spiffe://td/epigraph/x/*".parse().unwrap();
        let grant = Grant { spiffe, roles: [role].into(), logs: Logs::All };
        let hooks = crate::observe::Hooks::from(crate::accept::log_refused());
        GateLayer::new(Authorizer::new(vec![grant]).unwrap(), hooks)
    }

    fn request(path: &str, peer: Option<&str>, body: Body) -> Request<Body> {
        let mut request = Request::new(body);
        *request.uri_mut() = path.parse().unwrap();
        if let Some(peer) = peer {
            request.extensions_mut().insert(PeerIdentity::of_test(peer));
        }
        request
    }

    fn refusal(response: &Response<Body>) -> Refusal {
        Refusal::from_status(&Status::from_header_map(response.headers()).unwrap()).unwrap()
    }

    /// Whether the handler behind the gate was reached, and why not.
    async fn reached(role: Role, path: &str, peer: Option<&str>) -> Result<(), Reason> {
        let reached = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&reached);
        let handler = service_fn(move |request: Request<Body>| {
            assert!(request.extensions().get::<Caller>().is_some());
            seen.store(true, Ordering::SeqCst);
            async { Ok(Response::new(Body::empty())) }
        });
        let response = gate(role).layer(handler).oneshot(request(path, peer, Body::empty())).await.unwrap();
        if reached.load(Ordering::SeqCst) { Ok(()) } else { Err(refusal(&response).reason()) }
    }

    #[tokio::test]
    async fn only_who_may_reaches_the_handler() {
        let (known, unknown) = (Some("spiffe://td/epigraph/x/1"), Some("spiffe://td/epigraph/y/1"));
        assert_eq!(reached(Role::Appender, APPEND, known).await, Ok(()));
        assert_eq!(reached(Role::Appender, APPEND, None).await, Err(Reason::Unauthenticated));
        assert_eq!(reached(Role::Appender, APPEND, unknown).await, Err(Reason::PermissionDenied));
        assert_eq!(reached(Role::Reader, APPEND, known).await, Err(Reason::PermissionDenied));
        for path in
            ["/epigraph.v1.LogService/Appen", "/epigraph.v1.LogService/append", "/", &format!("{APPEND}/")]
        {
            assert_eq!(reached(Role::Appender, path, known).await, Err(Reason::UnknownRpc), "{path}");
        }
    }

    #[tokio::test]
    async fn each_call_is_watched_under_the_name_of_its_rpc_and_with_its_answer() {
        let told = Arc::new(std::sync::Mutex::new(Vec::new()));
        let tell = Arc::clone(&told);
        let mut layer = gate(Role::Reader);
        layer.hooks.on_call = Arc::new(move |rpc| {
            let tell = Arc::clone(&tell);
            Box::new(move |code| {
                tell.lock().unwrap().push((rpc, code));
                Duration::ZERO
            })
        });
        for path in ["/epigraph.v1.LogService/GetCheckpoint", APPEND, "/of/a/stranger"] {
            let fine = service_fn(|_| async { Ok(Response::new(Body::empty())) });
            let call = request(path, Some("spiffe://td/epigraph/x/1"), Body::empty());
            layer.layer(fine).oneshot(call).await.unwrap();
        }
        let expected = [
            ("epigraph.v1.LogService/GetCheckpoint", "OK"),
            ("epigraph.v1.LogService/Append", "PERMISSION_DENIED"),
            (UNKNOWN_RPC, "UNIMPLEMENTED"),
        ];
        assert_eq!(*told.lock().unwrap(), expected);
    }

    #[tokio::test]
    async fn every_answer_and_every_refusal_carries_the_id_of_its_call() {
        let check = async |path: &str, peer: Option<&str>, sent: Option<&str>, expected: &str| {
            let fine = service_fn(|_| async { Ok(Response::new(Body::empty())) });
            let mut call = request(path, peer, Body::empty());
            if let Some(sent) = sent {
                call.headers_mut().insert(REQUEST_ID, sent.parse().unwrap());
            }
            let response = gate(Role::Reader).layer(fine).oneshot(call).await.unwrap();
            let ids: Vec<_> = response.headers().get_all(REQUEST_ID).iter().collect();
            assert_eq!(ids, [expected], "{path} {sent:?}");
        };
        let (read, peer) = ("/epigraph.v1.LogService/GetCheckpoint", Some("spiffe://td/epigraph/x/1"));
        check(read, peer, Some("mine-1"), "mine-1").await;
        check(read, peer, None, "0000000000000000").await;
        check(read, peer, Some("not mine"), "0000000000000000").await;
        check(APPEND, peer, Some("mine-2"), "mine-2").await;
        check(read, None, Some("mine-3"), "mine-3").await;
        check("/of/a/stranger", peer, None, "0000000000000000").await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_handler_that_does_not_answer_is_given_up_at_the_deadline() {
        let start = tokio::time::Instant::now();
        let never = service_fn(|_| std::future::pending());
        let call =
            request("/epigraph.v1.LogService/GetCheckpoint", Some("spiffe://td/epigraph/x/1"), Body::empty());
        let response = gate(Role::Reader).layer(never).oneshot(call).await.unwrap();
        assert_eq!(refusal(&response).reason(), Reason::DeadlineExceeded);
        assert_eq!(start.elapsed(), crate::limits::CALL_DEADLINE);
    }

    /// T2: a call that is faster than the cutting of its connection. Broken to see it fail: no check in the gate.
    #[tokio::test]
    async fn a_call_with_a_certificate_that_is_revoked_by_now_does_not_reach_the_handler() {
        let mut call = request(APPEND, Some("spiffe://td/epigraph/x/1"), Body::empty());
        call.extensions_mut().get_mut::<Arc<PeerIdentity>>().unwrap().standing.lose();
        let never = service_fn(|_| async { panic!("the handler was reached") });
        let response = gate(Role::Appender).layer(never).oneshot(call).await.unwrap();
        assert_eq!(refusal(&response).reason(), Reason::Unauthenticated);
        assert!(refusal(&response).message().contains("spiffe://td/epigraph/x/1 is no longer accepted"));
    }

    #[test]
    fn a_caller_may_ask_for_less_time() {
        let check = |text: &str, expected: Option<Duration>| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            assert_eq!(asked_timeout(&headers), expected, "{text:?}");
        };
        check("2H", Some(Duration::from_secs(7_200)));
        check("99999999M", Some(Duration::from_secs(99_999_999 * 60)));
        check("3S", Some(Duration::from_secs(3)));
        check("250m", Some(Duration::from_millis(250)));
        check("7u", Some(Duration::from_micros(7)));
        check("0n", Some(Duration::ZERO));
        for text in ["", "S", "3", "3s", "+3S", "-3S", " 3S", "3 S", "100000000S", "0x3S"] {
            check(text, None);
        }
        assert_eq!(asked_timeout(&HeaderMap::new()), None);
    }

    #[test]
    fn a_body_is_cut_into_its_messages_however_it_arrives() {
        let body: Vec<u8> =
            [&[0, 0, 0, 0, 3, 1, 2, 3][..], &[0, 0, 0, 0, 0], &[1, 0, 0, 1, 0], &[9; 256]].concat();
        for step in 1..=body.len() {
            let mut messages = Messages::default();
            let mut begun = Vec::new();
            for (at, byte) in body.chunks(step).scan(0, |at, chunk| {
                *at += chunk.len();
                Some((*at, chunk))
            }) {
                messages.advance(byte);
                begun.push((at, messages.begun));
            }
            for (at, begun) in begun {
                let start = [0, 8, 13].into_iter().rfind(|start| *start <= at).unwrap();
                assert_eq!(begun, if at == body.len() { 0 } else { at - start }, "{at} in steps of {step}");
            }
        }
    }

    #[tokio::test]
    async fn a_stream_gives_back_what_was_read_of_it() {
        let layer = gate(Role::Appender);
        let name: SpiffeId = "spiffe://td/epigraph/x/1".parse().unwrap();
        // Room for one message and a half.
        let _held = layer.receiving.take(name, MAX_RECEIVING_BYTES_PER_IDENTITY - 150).unwrap();
        let reader = service_fn(|request: Request<Body>| async {
            let status = request.into_body().collect().await.err();
            Ok(status.map_or_else(|| Response::new(Body::empty()), |status| status.into_http()))
        });
        let message = Bytes::from([&[0, 0, 0, 0, 95][..], &[7; 95]].concat());
        let stream =
            tokio_stream::iter((0..1_000).map(move |_| Ok::<_, Status>(Frame::data(message.clone()))));
        let body = Body::new(http_body_util::StreamBody::new(stream));
        let call = request("/epigraph.v1.LogService/AppendStream", Some("spiffe://td/epigraph/x/1"), body);
        let response = layer.layer(reader).oneshot(call).await.unwrap();
        assert!(Status::from_header_map(response.headers()).is_none());
    }

    #[tokio::test]
    async fn one_identity_cannot_fill_the_memory_with_requests() {
        let layer = gate(Role::Appender);
        let receiving = Arc::clone(&layer.receiving);
        let reader = service_fn(|request: Request<Body>| async {
            let status = request.into_body().collect().await.err();
            Ok(status.map_or_else(|| Response::new(Body::empty()), |status| status.into_http()))
        });
        let name: SpiffeId = "spiffe://td/epigraph/x/1".parse().unwrap();
        let held = receiving.take(name.clone(), MAX_RECEIVING_BYTES_PER_IDENTITY - 10).unwrap();
        let send = |peer: &'static str, bytes: usize| {
            let body = Body::new(http_body_util::Full::new(Bytes::from(vec![0; bytes])));
            layer.layer(reader).oneshot(request(APPEND, Some(peer), body))
        };
        let response = send("spiffe://td/epigraph/x/1", 11).await.unwrap();
        assert_eq!(refusal(&response).reason(), Reason::Overloaded);
        assert!(refusal(&response).retry_delay().is_some());
        assert!(
            send("spiffe://td/epigraph/x/1", 10).await.unwrap().headers().get(Status::GRPC_STATUS).is_none()
        );
        assert!(
            send("spiffe://td/epigraph/x/2", 11).await.unwrap().headers().get(Status::GRPC_STATUS).is_none()
        );
        drop(held);
        assert!(
            receiving.take(name, MAX_RECEIVING_BYTES_PER_IDENTITY).is_ok(),
            "what was received is given back"
        );
    }
}
