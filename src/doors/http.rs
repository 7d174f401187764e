//! Doors that speak HTTP/1.1: the webhook of a Kubernetes API server's audit log, and CloudEvents. Whatever the path, a POST brings
//! events, and `200` says that they are durable.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use epigraph_event::decode::{cloudevents, k8s};
use epigraph_event::{Context, Decoded};
use epigraph_rpc::guests::{Duplex, Guest};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::body::{self, BodyError};
use super::desk::{self, Answer, Desk};

/// From one request to the next, and for the header of one. The clients of Go, the API server among them, keep a silent connection
/// for 90 s; if this side closed first, a request could fall into the gap.
const HEADER_TIME: Duration = Duration::from_secs(100);

/// A request's line and headers together: an event in binary mode has its attributes there.
const MAX_HEADER_BYTES: usize = 64 * 1024;
const MAX_HEADERS: usize = 100;

/// Then a client is asked to connect anew, and shows its certificate again.
const CONNECTION_AGE: Duration = Duration::from_secs(15 * 60);

/// What a request under way may take when the connection is to end.
const CONNECTION_GRACE: Duration = Duration::from_secs(60);

/// What is said in the requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spoken {
    /// An `EventList` of `audit.k8s.io`, or one `Event`.
    K8sWebhook,
    /// CloudEvents in structured, batched or binary mode.
    CloudEvents,
}

/// Serves one connection.
pub async fn attend(guest: Guest, desk: Arc<Desk>, spoken: Spoken) {
    let Guest { stream, name, stopping, .. } = guest;
    serve(stream, name, stopping, desk, spoken).await;
}

async fn serve(
    stream: impl Duplex,
    name: Option<Arc<str>>,
    mut stopping: watch::Receiver<bool>,
    desk: Arc<Desk>,
    spoken: Spoken,
) {
    let service = service_fn(move |request| {
        let (desk, name) = (Arc::clone(&desk), name.clone());
        async move { Ok::<_, Infallible>(answer(&desk, name, spoken, request).await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .max_buf_size(MAX_HEADER_BYTES)
        .max_headers(MAX_HEADERS)
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

/// A refused request: what is answered, the word to count it by, and what to do.
struct Refused(StatusCode, &'static str, &'static str);

impl From<BodyError> for Refused {
    fn from(error: BodyError) -> Refused {
        match error {
            BodyError::TooLarge => Refused(
                StatusCode::PAYLOAD_TOO_LARGE,
                "BODY_TOO_LARGE",
                "a body has at most 16 MiB, unpacked; send fewer events in one",
            ),
            BodyError::TooSlow => {
                Refused(StatusCode::REQUEST_TIMEOUT, "TOO_SLOW", "the body was not there in 30 s")
            }
            BodyError::Full => FULL,
            BodyError::Broken => {
                Refused(StatusCode::BAD_REQUEST, "INCOMPLETE", "the body ends before its end")
            }
            BodyError::NotGzip => {
                Refused(StatusCode::BAD_REQUEST, "NOT_GZIP", "the body is no gzip, or not all of it")
            }
        }
    }
}

const FULL: Refused = Refused(
    StatusCode::TOO_MANY_REQUESTS,
    "FULL",
    "the collector is full and took nothing of it; send it again",
);

async fn answer(
    desk: &Desk,
    sender: Option<Arc<str>>,
    spoken: Spoken,
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    match take(desk, sender, spoken, request).await {
        Ok(Answer::Taken { events: 0, rejected, why: Some(why) }) => {
            let said = "nothing in it could be understood; it is kept in the quarantine";
            say(StatusCode::BAD_REQUEST, &json!({ "error": said, "why": why, "rejected": rejected }))
        }
        Ok(Answer::Taken { events, rejected, .. }) => {
            say(StatusCode::OK, &json!({ "events": events, "rejected": rejected }))
        }
        Ok(Answer::Full) => refuse(&FULL),
        Ok(Answer::Late) => refuse(&Refused(
            StatusCode::SERVICE_UNAVAILABLE,
            "LATE",
            "the collector's disk is slow or full; it is not known whether the events will be kept, so send them again",
        )),
        Err(refused) => {
            match refused.0 {
                StatusCode::TOO_MANY_REQUESTS => {
                    desk.counts().pushed_back.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
                _ => desk.counts().reject(refused.1),
            }
            refuse(&refused)
        }
    }
}

async fn take(
    desk: &Desk,
    sender: Option<Arc<str>>,
    spoken: Spoken,
    request: Request<Incoming>,
) -> Result<Answer, Refused> {
    if request.method() != Method::POST {
        return Err(Refused(StatusCode::METHOD_NOT_ALLOWED, "METHOD", "events are sent with POST"));
    }
    let is_packed = match request.headers().get(CONTENT_ENCODING).map(HeaderValue::as_bytes) {
        None | Some(b"identity") => false,
        Some(b"gzip" | b"x-gzip") => true,
        Some(_) => {
            let said = "a body is sent as it is, or packed with gzip";
            return Err(Refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, "CONTENT_ENCODING", said));
        }
    };
    let (head, body) = request.into_parts();
    let read = match spoken {
        Spoken::K8sWebhook => Read::K8s,
        Spoken::CloudEvents => Read::of(&head.headers)?,
    };
    let mut share = desk.hold(0).ok_or(FULL)?;
    let mut bytes = body::read(body, &mut share).await?;
    if is_packed {
        let unpacking =
            tokio::task::spawn_blocking(move || body::gunzip(&bytes, &mut share).map(|bytes| (bytes, share)));
        (bytes, share) = unpacking.await.map_err(|_| FULL)??;
    }
    let repeats = spoken == Spoken::K8sWebhook;
    let answer = desk.take(sender, repeats, move |context| read.decode(&bytes, context)).await;
    drop(share);
    Ok(answer)
}

/// How a body is read.
enum Read {
    K8s,
    Structured,
    /// With the headers that say something of the event.
    Binary(Vec<(String, String)>),
}

impl Read {
    /// By its headers (CloudEvents, HTTP binding, section 3).
    fn of(headers: &HeaderMap) -> Result<Read, Refused> {
        let content_type =
            headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let media = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if media == "application/cloudevents+json" || media == "application/cloudevents-batch+json" {
            return Ok(Read::Structured);
        }
        if media.starts_with("application/cloudevents") || !headers.contains_key("ce-specversion") {
            return Err(Refused(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "CONTENT_TYPE",
                "send application/cloudevents+json, application/cloudevents-batch+json, or the attributes as ce- headers",
            ));
        }
        let is_told = |name: &str| name == "content-type" || name.starts_with("ce-");
        let told = headers.iter().filter(|(name, _)| is_told(name.as_str()));
        let texts =
            told.map(|(name, value)| Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned())));
        let texts: Option<Vec<_>> = texts.collect();
        let not_text =
            Refused(StatusCode::BAD_REQUEST, "HEADERS", "attributes in headers are printable ASCII");
        Ok(Read::Binary(texts.ok_or(not_text)?))
    }

    fn decode(&self, bytes: &[u8], context: &Context) -> Vec<Decoded> {
        match self {
            Read::K8s => k8s::decode(bytes, context),
            Read::Structured => cloudevents::decode(bytes, context),
            Read::Binary(headers) => {
                let headers: Vec<(&str, &str)> =
                    headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
                vec![cloudevents::decode_binary(&headers, bytes, context)]
            }
        }
    }
}

fn refuse(refused: &Refused) -> Response<Full<Bytes>> {
    let Refused(status, why, said) = refused;
    let mut response = say(*status, &json!({ "error": said, "why": why }));
    let headers = response.headers_mut();
    match *status {
        StatusCode::METHOD_NOT_ALLOWED => {
            headers.insert(ALLOW, HeaderValue::from_static("POST"));
        }
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            headers.insert(RETRY_AFTER, HeaderValue::from(desk::RETRY_AFTER.as_secs()));
        }
        _ => {}
    }
    response
}

fn say(status: StatusCode, said: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{said}\n"))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use epigraph_collector::intake::Command;
    use epigraph_core::{Clock, UnixMillis};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::Instant;

    use super::*;
    use crate::doors::desk::Held;

    struct Still;

    impl Clock for Still {
        fn now(&self) -> UnixMillis {
            UnixMillis(1)
        }
    }

    const EVENT: &str = r#"{"specversion":"1.0","id":"1","source":"/s","type":"t"}"#;

    fn request(length: usize) -> String {
        format!(
            "POST / HTTP/1.1\r\nHost: x\r\ncontent-type: application/cloudevents+json\r\ncontent-length: {length}\r\n\r\n"
        )
    }

    /// What is answered to somebody who says this and then nothing more, and after how many seconds the door hangs up. Of what it
    /// takes nobody says what became of it, or, without an intake, that it was not taken.
    async fn answered(says: &str, intake: bool) -> (String, u64) {
        let (commands, told): (_, Receiver<Command>) = channel();
        let told = intake.then_some(told);
        let desk = Desk::new(0, String::new(), commands, Arc::new(Still), Held::of_all());
        let (mut client, server) = duplex(64 * 1024);
        let (_stop, stopping) = watch::channel(false);
        let start = Instant::now();
        let serving = tokio::spawn(serve(server, None, stopping, Arc::new(desk), Spoken::CloudEvents));
        client.write_all(says.as_bytes()).await.unwrap();
        let mut answer = vec![0; 4096];
        let count = client.read(&mut answer).await.unwrap();
        let took = start.elapsed().as_secs();
        serving.abort();
        drop(told);
        (String::from_utf8_lossy(&answer[..count]).into_owned(), took)
    }

    /// Broken to see it fail: no deadline for a body, none for the answer of the intake.
    #[tokio::test(start_paused = true)]
    async fn nobody_holds_a_place_for_ever() {
        let check = async |says: &str, intake: bool, status: &str, seconds: u64| {
            let (answer, took) = answered(says, intake).await;
            assert!(answer.starts_with(status), "{says:?}: {answer:?}");
            assert_eq!(took, seconds, "{says:?}");
        };
        // Half a header, half a body, a disk that does not answer.
        check("POST / HTTP/1.1\r\nHos", true, "", 100).await;
        check(&(request(100) + "{"), true, "HTTP/1.1 408 ", 30).await;
        check(&(request(EVENT.len()) + EVENT), true, "HTTP/1.1 503 ", 20).await;
        check(&(request(EVENT.len()) + EVENT), false, "HTTP/1.1 429 ", 0).await;
    }
}
