//! Where the monitor's webhook goes in a demo: a listener on loopback that takes messages whose signature is right. It does not
//! know what they mean.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use epigraph_monitor::sinks::secret::Secret;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::failure::{Failure, Outcome};

/// Where messages are posted.
pub const PATH: &str = "/alarm";

/// The longest message: a finding with the longest detail has 6 KiB.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// Messages that nobody has looked at yet. More are refused, and the monitor sends them again.
const WAITING: usize = 64;

/// From the connection to the end of the answer.
const CALL: Duration = Duration::from_secs(5);

/// A message that came.
pub struct Delivery {
    pub signature: String,
    pub message: serde_json::Value,
}

/// A listener that is there before the monitor is.
pub struct Bound {
    listener: TcpListener,
    pub address: SocketAddr,
}

/// The messages that come.
pub struct Webhook {
    pub address: SocketAddr,
    deliveries: mpsc::Receiver<Delivery>,
    serving: JoinHandle<()>,
}

impl Bound {
    pub async fn new() -> Outcome<Bound> {
        let cannot = |error| Failure::state(format!("cannot listen for the webhook: {error}"));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(cannot)?;
        let address = listener.local_addr().map_err(cannot)?;
        Ok(Bound { listener, address })
    }

    /// Takes messages that are signed with this secret.
    pub fn serve(self, secret: Secret) -> Webhook {
        let (sender, deliveries) = mpsc::channel(WAITING);
        let secret = Arc::new(secret);
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = self.listener.accept().await {
                // One caller, one call at a time: nobody else knows the address.
                converse(stream, &secret, &sender).await;
            }
        });
        Webhook { address: self.address, deliveries, serving }
    }
}

impl Webhook {
    /// The next message.
    pub async fn next(&mut self) -> Option<Delivery> {
        self.deliveries.recv().await
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn converse(stream: TcpStream, secret: &Secret, sender: &mpsc::Sender<Delivery>) {
    let service =
        service_fn(|request| async move { Ok::<_, Infallible>(take(request, secret, sender).await) });
    let serving = http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service);
    // Whoever is too slow is gone; the monitor calls again.
    let _ = timeout(CALL, serving).await;
}

async fn take(
    request: Request<Incoming>,
    secret: &Secret,
    sender: &mpsc::Sender<Delivery>,
) -> Response<Full<Bytes>> {
    let signature = request.headers().get("epigraph-signature").and_then(|value| value.to_str().ok());
    let signature = signature.unwrap_or_default().to_owned();
    if request.method() != Method::POST || request.uri().path() != PATH {
        return answer(StatusCode::NOT_FOUND);
    }
    let Ok(body) = Limited::new(request.into_body(), MAX_BODY_BYTES).collect().await else {
        return answer(StatusCode::PAYLOAD_TOO_LARGE);
    };
    let body = body.to_bytes();
    let time = signature.strip_prefix("t=").and_then(|rest| rest.split_once(',')).map(|(time, _)| time);
    let signed =
        time.and_then(|time| time.parse().ok()).is_some_and(|time| secret.sign(time, &body) == signature);
    let Ok(message) = serde_json::from_slice(&body) else { return answer(StatusCode::BAD_REQUEST) };
    if !signed {
        return answer(StatusCode::UNAUTHORIZED);
    }
    match sender.try_send(Delivery { signature, message }) {
        Ok(()) => answer(StatusCode::NO_CONTENT),
        Err(_) => answer(StatusCode::SERVICE_UNAVAILABLE),
    }
}

fn answer(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}
