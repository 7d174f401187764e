//! One message to one place over HTTP, and nothing more: one connection, one POST, no redirects, no proxies, no cookies.
//!
//! The name is resolved here, each address is judged, and the connection is made to one that passed: there is no second
//! resolution that could bring another. It does not know what a message says, and never prints a path: with many receivers the path
//! is the password.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use epigraph_core::Clock;
use http::header::{CONNECTION, CONTENT_TYPE, HOST, USER_AGENT};
use http::uri::Scheme;
use http::{HeaderName, HeaderValue, Method, Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::rt::{Read, Write};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, RootCertStore};
use thiserror::Error;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::address::{Network, is_public};
use crate::finding::one_line;

/// From the resolution of the name to the end of the answer.
const DELIVERY_TIME: Duration = Duration::from_secs(10);

/// Of the addresses of a name so many are tried: one that is down has another beside it, and a name with hundreds is an attack.
const MAX_ADDRESSES: usize = 4;

/// An answer's line and headers together: the least that the library allows.
const MAX_HEADER_BYTES: usize = 8 * 1024;
const MAX_HEADERS: usize = 64;

/// What is read of an answer, to say why a message was refused.
const MAX_ANSWER_BYTES: usize = 1_024;

/// What is shown of that.
const MAX_SHOWN_BYTES: usize = 200;

/// The longest URL.
const MAX_URL_BYTES: usize = 2_048;

/// Something to be delivered.
#[derive(Clone, Debug)]
pub struct Post {
    /// JSON.
    pub body: Bytes,
    /// Beside the usual ones.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// Where messages go. The one implementation beside tests is [`Endpoint`].
pub trait Transport: Send + Sync {
    /// Delivers one message: `Ok` if the receiver has taken it.
    fn post(&self, post: Post) -> Pin<Box<dyn Future<Output = Result<(), PostError>> + Send + '_>>;
}

/// An URL, and how it may be reached.
pub struct Endpoint {
    host: String,
    port: u16,
    /// As it stands in the URL.
    authority: HeaderValue,
    path: Uri,
    /// `None`: without TLS.
    tls: Option<(TlsConnector, ServerName<'static>)>,
    allowed: Vec<Network>,
}

/// Why an URL cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum EndpointError {
    /// Not one.
    #[error("this is no URL of the form https://host[:port]/path, of at most {MAX_URL_BYTES} bytes")]
    Url,
    /// A name or password before the host.
    #[error("an URL with a user name is not taken: it would be printed where URLs are printed")]
    UserInfo,
    /// No CAs, and TLS.
    #[error(
        "https takes `trust_bundle`, the CAs by which the receiver's certificate is judged; the system's own are in \
         /etc/ssl/certs/ca-certificates.crt on many systems"
    )]
    NoCas,
    /// The CAs cannot be used.
    #[error("the trust bundle holds no CA certificate that can be used (PEM)")]
    BadCas,
    /// No TLS, and no network that may be reached without.
    #[error(
        "http without TLS is for addresses in `allow_networks` alone, and there are none: use https, or name the network"
    )]
    Plain,
    /// The TLS library.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
}

/// Why a message was not taken. The receiver may have it all the same, unless it answered.
#[derive(Debug, Error)]
pub enum PostError {
    /// The name has no address.
    #[error("the name {host} cannot be resolved: {source}")]
    Resolve {
        /// The name.
        host: String,
        /// What the system said.
        source: io::Error,
    },
    /// No address may be connected to.
    #[error(
        "{host} is at {address}, which is not on the public internet; if it is meant to go there, name the network in \
         `allow_networks`"
    )]
    Forbidden {
        /// The name.
        host: String,
        /// One of its addresses; `none` if it has none.
        address: String,
    },
    /// No connection.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// The last address that was tried.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// No TLS.
    #[error("{host} does not prove to be {host}: {source}")]
    Tls {
        /// The name.
        host: String,
        /// What the library said.
        source: io::Error,
    },
    /// What was answered is not HTTP.
    #[error("the receiver's answer cannot be used: {0}")]
    Http(#[from] hyper::Error),
    /// It answered no.
    #[error("the receiver answered {status}: {text:?}{}", Redirected(*status))]
    Refused {
        /// The status.
        status: u16,
        /// The beginning of what it said.
        text: String,
    },
    /// It took too long.
    #[error("the receiver did not take it within {} s", DELIVERY_TIME.as_secs())]
    TimedOut,
}

struct Redirected(u16);

impl fmt::Display for Redirected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            300..400 => f.write_str("; redirects are not followed: write the URL where it leads"),
            _ => Ok(()),
        }
    }
}

impl Endpoint {
    /// Takes an URL. `cas`, PEM, are for `https`, by the clock that is given; `allowed` are the networks beside the public internet that
    /// may be connected to, and the only ones for `http`.
    pub fn new(
        url: &str,
        cas: Option<&[u8]>,
        allowed: Vec<Network>,
        clock: Arc<dyn Clock>,
    ) -> Result<Endpoint, EndpointError> {
        let uri: Uri = match url.len() {
            0..=MAX_URL_BYTES => url.parse().map_err(|_| EndpointError::Url)?,
            _ => return Err(EndpointError::Url),
        };
        let (scheme, authority) = uri.scheme().zip(uri.authority()).ok_or(EndpointError::Url)?;
        if authority.as_str().contains('@') {
            return Err(EndpointError::UserInfo);
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let server = ServerName::try_from(host.clone()).map_err(|_| EndpointError::Url)?;
        let (tls, port) = if *scheme == Scheme::HTTPS {
            let config = tls_config(cas.ok_or(EndpointError::NoCas)?, clock)?;
            (Some((TlsConnector::from(Arc::new(config)), server)), 443)
        } else if *scheme != Scheme::HTTP {
            return Err(EndpointError::Url);
        } else if allowed.is_empty() {
            return Err(EndpointError::Plain);
        } else {
            (None, 80)
        };
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(Endpoint {
            port: authority.port_u16().unwrap_or(port),
            authority: HeaderValue::from_str(authority.as_str()).map_err(|_| EndpointError::Url)?,
            path: path.parse().map_err(|_| EndpointError::Url)?,
            host,
            tls,
            allowed,
        })
    }

    fn may_reach(&self, address: IpAddr) -> bool {
        let named = self.allowed.iter().any(|network| network.contains(address));
        named || (self.tls.is_some() && is_public(address))
    }

    async fn connect(&self) -> Result<TcpStream, PostError> {
        let resolved = match self.host.parse::<IpAddr>() {
            Ok(address) => vec![SocketAddr::new(address, self.port)],
            Err(_) => lookup_host((self.host.as_str(), self.port))
                .await
                .map_err(|source| PostError::Resolve { host: self.host.clone(), source })?
                .collect(),
        };
        let mut last = PostError::Forbidden {
            host: self.host.clone(),
            address: resolved.first().map_or("no address".into(), |address| address.ip().to_string()),
        };
        let allowed = resolved.into_iter().filter(|address| self.may_reach(address.ip()));
        for address in allowed.take(MAX_ADDRESSES) {
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(source) => last = PostError::Connect { address, source },
            }
        }
        Err(last)
    }

    async fn deliver(&self, post: Post) -> Result<(), PostError> {
        let stream = self.connect().await?;
        match &self.tls {
            None => self.speak(TokioIo::new(stream), post).await,
            Some((connector, server)) => {
                let refused = |source| PostError::Tls { host: self.host.clone(), source };
                let stream = connector.connect(server.clone(), stream).await.map_err(refused)?;
                self.speak(TokioIo::new(stream), post).await
            }
        }
    }

    async fn speak(&self, io: impl Read + Write + Unpin, post: Post) -> Result<(), PostError> {
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEADER_BYTES)
            .max_headers(MAX_HEADERS)
            .handshake(io)
            .await?;
        let mut request = Request::new(Full::new(post.body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.path.clone();
        let headers = request.headers_mut();
        headers.insert(HOST, self.authority.clone());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(USER_AGENT, HeaderValue::from_static("epigraph-monitor"));
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        headers.extend(post.headers);
        let mut answering = std::pin::pin!(async { judge(sender.send_request(request).await?).await });
        tokio::select! {
            answer = &mut answering => return answer,
            // Done with its part; what it has read is still to be looked at.
            ended = connection => ended?,
        }
        answering.await
    }
}

/// A receiver has taken a message if it says so with any success.
async fn judge(answer: Response<Incoming>) -> Result<(), PostError> {
    let (status, mut body) = (answer.status(), answer.into_body());
    if status.is_success() {
        return Ok(());
    }
    let mut text = Vec::new();
    while text.len() < MAX_ANSWER_BYTES {
        // A body that breaks off says no less.
        let Some(Ok(frame)) = body.frame().await else { break };
        if let Some(data) = frame.data_ref() {
            text.extend_from_slice(&data[..data.len().min(MAX_ANSWER_BYTES - text.len())]);
        }
    }
    let text = one_line(&String::from_utf8_lossy(&text), MAX_SHOWN_BYTES);
    Err(PostError::Refused { status: status.as_u16(), text })
}

impl Transport for Endpoint {
    fn post(&self, post: Post) -> Pin<Box<dyn Future<Output = Result<(), PostError>> + Send + '_>> {
        Box::pin(async {
            timeout(DELIVERY_TIME, self.deliver(post)).await.unwrap_or(Err(PostError::TimedOut))
        })
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

/// Whether a certificate is valid now is a question about the time, too.
struct TlsTime(Arc<dyn Clock>);

impl fmt::Debug for TlsTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsTime")
    }
}

impl TimeProvider for TlsTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(self.0.now().0)))
    }
}

/// TLS 1.3 with the CAs that the configuration names: what a monitor believes stands in its configuration, and is not what
/// came with the machine or was compiled in when the program was made.
fn tls_config(cas: &[u8], clock: Arc<dyn Clock>) -> Result<ClientConfig, EndpointError> {
    let certificates: Vec<_> =
        CertificateDer::pem_slice_iter(cas).collect::<Result<_, _>>().map_err(|_| EndpointError::BadCas)?;
    let mut roots = RootCertStore::empty();
    // A system's bundle has old ones that the library does not take.
    if roots.add_parsable_certificates(certificates).0 == 0 {
        return Err(EndpointError::BadCas);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_details(provider, Arc::new(TlsTime(clock)))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| EndpointError::Tls(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
