//! A client's connection to one server that it knows by name.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use http::{HeaderMap, Request, Response, Uri};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::body::Body;
use tonic::transport::Endpoint;
use tower::Service;
use tower::util::service_fn;

use crate::gate::GRPC_STATUS_DETAILS;
use crate::identity::SpiffeId;
use crate::request_id::{RequestId, RequestIds, TraceParent};
use crate::tls::{ClientTls, TlsError};

/// Until TCP and TLS are up.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How often the server is asked whether it is there, also while nothing is asked of it. Without this a connection
/// that a network cut in two hangs for ever: the next call would go into it, and the one after.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// A server that does not answer within this time is gone; the next call connects anew.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// The largest frame that a server may send: with the library's 16 KiB a stream of entries comes in sixteen times as many pieces,
/// each with a TLS record for the nine bytes of its header. A connection holds one frame until it is complete.
const MAX_FRAME_BYTES: u32 = 256 * 1024;

/// Bytes that are taken from the socket at once, four TLS records: the TLS library by itself takes a quarter of a record.
const READ_BYTES: usize = 64 * 1024;

/// The trace that is under way where it is called, if there is one.
pub type CurrentTrace = Arc<dyn Fn() -> Option<TraceParent> + Send + Sync>;

/// A connection that makes itself at the first call, and anew after each loss. Clones share it.
#[derive(Clone)]
pub struct Channel {
    inner: tonic::transport::Channel,
    request_ids: Option<Arc<RequestIds>>,
    trace: Option<CurrentTrace>,
}

impl Channel {
    /// Gives each call an id of its own. Without this the server makes one.
    pub fn with_request_ids(self, request_ids: Arc<RequestIds>) -> Channel {
        Channel { request_ids: Some(request_ids), ..self }
    }

    /// Sends the trace along that a call is made in.
    pub fn with_trace(self, trace: CurrentTrace) -> Channel {
        Channel { trace: Some(trace), ..self }
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Channel").field(&self.inner).finish()
    }
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Body>;
    type Error = tonic::transport::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, tonic::transport::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), tonic::transport::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let id = self.request_ids.as_ref().map(|ids| ids.make());
        if let Some(id) = id.clone() {
            id.put(request.headers_mut());
        }
        if let Some(trace) = self.trace.as_ref().and_then(|trace| trace()) {
            trace.put(request.headers_mut());
        }
        let answer = self.inner.call(request);
        Box::pin(async move { Ok(made_safe(answer.await?, id)) })
    }
}

/// Prepares the connection to `address` (`host:port`), where a server must prove to be `server`. Must be called
/// within a tokio runtime.
pub fn channel(address: &str, tls: &ClientTls, server: &SpiffeId) -> Result<Channel, TlsError> {
    let bad_address = || TlsError::Address(address.into());
    // The scheme is the transport library's switch for its own TLS, which has no say here; the requests say https.
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|_| bad_address())?;
    let origin: Uri = format!("https://{address}").parse().map_err(|_| bad_address())?;
    let (host, port) = origin.host().zip(origin.port_u16()).ok_or_else(bad_address)?;
    if format!("{host}:{port}") != address {
        return Err(bad_address());
    }
    let dialled = host.trim_start_matches('[').trim_end_matches(']').to_string();
    let name = ServerName::try_from(dialled.clone()).map_err(|_| bad_address())?;

    let tls = TlsConnector::from(tls.config(server)?);
    let connector = service_fn(move |_: Uri| {
        let (tls, dialled, name) = (tls.clone(), dialled.clone(), name.clone());
        async move {
            let cannot = |error: io::Error| {
                io::Error::new(error.kind(), format!("cannot connect to {dialled}:{port}: {error}"))
            };
            let stream = TcpStream::connect((dialled.as_str(), port)).await.map_err(cannot)?;
            stream.set_nodelay(true)?;
            let stream = BufReader::with_capacity(READ_BYTES, stream);
            Ok::<_, io::Error>(TokioIo::new(tls.connect(name, stream).await?))
        }
    });
    let inner = endpoint
        .origin(origin)
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .max_frame_size(MAX_FRAME_BYTES)
        .connect_with_connector_lazy(connector);
    Ok(Channel { inner, request_ids: None, trace: None })
}

/// tonic 0.14 panics if the details of a status are not base64, in headers and in trailers alike. A server must not be
/// able to do that to its client, so such details are dropped before tonic sees them.
///
/// A refusal after the first message has only its trailers: the id of its call is put there if it is known here.
fn made_safe(mut response: Response<Body>, id: Option<RequestId>) -> Response<Body> {
    drop_broken_details(response.headers_mut());
    response.map(|body| {
        Body::new(body.map_frame(move |mut frame| {
            if let Some(trailers) = frame.trailers_mut() {
                drop_broken_details(trailers);
                if let Some(id) = id.clone() {
                    id.put(trailers);
                }
            }
            frame
        }))
    })
}

/// As tonic decodes them.
const DETAILS: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

fn drop_broken_details(headers: &mut HeaderMap) {
    let broken =
        headers.get(GRPC_STATUS_DETAILS).is_some_and(|value| DETAILS.decode(value.as_bytes()).is_err());
    if broken {
        headers.remove(GRPC_STATUS_DETAILS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Status;

    #[test]
    fn details_that_tonic_would_panic_on_are_dropped() {
        for (details, kept) in
            [("CAU", true), ("CAU=", true), ("", true), ("!", false), ("CAU==", false), ("C", false)]
        {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-status", "5".parse().unwrap());
            headers.insert(GRPC_STATUS_DETAILS, details.parse().unwrap());
            drop_broken_details(&mut headers);
            assert_eq!(headers.contains_key(GRPC_STATUS_DETAILS), kept, "{details}");
            assert!(Status::from_header_map(&headers).is_some());
        }
    }
}
