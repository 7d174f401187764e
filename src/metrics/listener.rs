//! Health, readiness and metrics over plain HTTP, on a listener of their own: whoever watches needs no certificate, and
//! takes nothing from those who append. It says nothing about what entries contain.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::Metrics;

/// Connections at one time; a Prometheus or two, a prober and a person need four. The kernel's queue holds the others back.
const MAX_CONNECTIONS: usize = 16;

/// From the connection to the end of the answer, one request a connection. So long can a silent one occupy a place.
const CONNECTION_TIME: Duration = Duration::from_secs(5);

/// A request's line and headers together: the least that the library allows, and ten times what Prometheus sends.
const MAX_HEADER_BYTES: usize = 8 * 1024;
const MAX_HEADERS: usize = 32;

/// After a failed accept. Nothing but time gives file descriptors back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

const PLAIN: &str = "text/plain; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Answers until it is dropped.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>) -> Infallible {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        // It is never closed.
        let place = Arc::clone(&places).acquire_owned().await;
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let metrics = Arc::clone(&metrics);
                connections.spawn(async move {
                    // Whoever is too slow, or speaks no HTTP, is gone, and that is all there is to say.
                    let _ = timeout(CONNECTION_TIME, converse(stream, &metrics)).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept on the metrics listener");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, metrics: &Metrics) -> hyper::Result<()> {
    let service = service_fn(|request| async move { Ok::<_, Infallible>(answer(metrics, &request)) });
    http1::Builder::new()
        .keep_alive(false)
        // It needs a timer of its own; the time of the connection is bounded as a whole.
        .header_read_timeout(None)
        .max_buf_size(MAX_HEADER_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

fn answer(metrics: &Metrics, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let page: fn(&Metrics) -> Response<Full<Bytes>> = match request.uri().path() {
        // Whoever gets this answer was served by the loop that serves everybody.
        "/healthz" => |_| plain(StatusCode::OK, "alive\n"),
        "/readyz" => |metrics| match metrics.ready() {
            Ok(()) => plain(StatusCode::OK, "ready\n"),
            Err(why) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
        },
        "/metrics" => |metrics| match metrics.text() {
            Ok(text) => response(StatusCode::OK, OPEN_METRICS, text),
            Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
        _ => return plain(StatusCode::NOT_FOUND, "here are /healthz, /readyz and /metrics\n"),
    };
    if request.method() == Method::GET {
        return page(metrics);
    }
    let mut refusal = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
    refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
    refusal
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    response(status, PLAIN, text)
}

fn response(status: StatusCode, content_type: &'static str, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
