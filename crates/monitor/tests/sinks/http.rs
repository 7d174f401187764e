//! Deliveries over real connections on loopback, to receivers that are written by hand: good ones and others.

use std::io::ErrorKind;
use std::sync::Arc;

use epigraph_core::{Clock, UnixMillis};
use epigraph_monitor::sinks::address::Network;
use epigraph_monitor::sinks::http::{Endpoint, EndpointError, Post, PostError, Transport};
use http::{HeaderName, HeaderValue};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// A time at which the certificates of rcgen are valid.
struct At(u64);

impl Clock for At {
    fn now(&self) -> UnixMillis {
        UnixMillis(self.0)
    }
}

const IN_2026: u64 = 1_767_225_600_000;
const IN_5000: u64 = 95_617_584_000_000;

fn networks(texts: &[&str]) -> Vec<Network> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn endpoint(url: &str, cas: Option<&str>, allowed: &[&str], at: u64) -> Result<Endpoint, EndpointError> {
    Endpoint::new(url, cas.map(str::as_bytes), networks(allowed), Arc::new(At(at)))
}

fn post() -> Post {
    let header = (HeaderName::from_static("epigraph-signature"), HeaderValue::from_static("t=1,v1=00"));
    Post { body: "{\"a\":1}".into(), headers: vec![header] }
}

/// A request, up to the end of the body that `post` has.
async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut request = Vec::new();
    let mut buffer = [0; 1024];
    while !request.ends_with(b"{\"a\":1}") {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(length) => request.extend_from_slice(&buffer[..length]),
        }
    }
    String::from_utf8(request).unwrap()
}

async fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// Posts to a receiver that answers `first`, then `again` for as long as it is read. Returns what it saw, and what the poster says.
async fn converse(first: &str, again: &str) -> (String, Result<(), PostError>) {
    let (listener, port) = listen().await;
    let endpoint =
        endpoint(&format!("http://127.0.0.1:{port}/hook/secret?x=1"), None, &["127.0.0.0/8"], IN_2026)
            .unwrap();
    let receiver = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let request = read_request(&mut stream).await;
        stream.write_all(first.as_bytes()).await.unwrap();
        while !again.is_empty() && stream.write_all(again.as_bytes()).await.is_ok() {}
        request
    };
    let (request, outcome) = tokio::join!(receiver, endpoint.post(post()));
    (request, outcome)
}

fn refused(outcome: Result<(), PostError>) -> (u16, String) {
    match outcome {
        Err(PostError::Refused { status, text }) => (status, text),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_post_is_one_request_with_its_headers() {
    let (request, outcome) = converse("HTTP/1.1 204 No Content\r\n\r\n", "").await;
    outcome.unwrap();
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    let mut lines: Vec<String> = head.lines().map(str::to_ascii_lowercase).collect();
    assert_eq!((lines.remove(0).as_str(), body), ("post /hook/secret?x=1 http/1.1", "{\"a\":1}"));
    let host = lines.iter().find(|line| line.starts_with("host: 127.0.0.1:"));
    assert!(host.is_some(), "{head}");
    for line in [
        "content-type: application/json",
        "connection: close",
        "content-length: 7",
        "epigraph-signature: t=1,v1=00",
    ] {
        assert!(lines.iter().any(|found| found == line), "{line}: {head}");
    }
}

/// Seen to fail when any answer was a success.
#[tokio::test]
async fn what_is_refused_is_told_in_few_words() {
    let check = |status: u16, text: &str, expected: &str| {
        let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{text}", text.len());
        let expected = expected.to_owned();
        async move {
            let (found, text) = refused(converse(&answer, "").await.1);
            assert_eq!((found, text), (status, expected));
        }
    };
    check(500, "\u{1b}[31mno\r\n", " [31mno  ").await;
    check(401, "", "").await;
    check(404, &"x".repeat(5_000), &"x".repeat(200)).await;
}

/// Seen to fail without the limit of what is read.
#[tokio::test]
async fn an_endless_answer_costs_little() {
    let (_, outcome) = converse("HTTP/1.1 500 X\r\ntransfer-encoding: chunked\r\n\r\n", "400\r\n").await;
    refused(outcome).1.chars().for_each(drop);
    let (_, outcome) = converse("HTTP/1.1 500 X\r\n\r\n", "endless ").await;
    assert_eq!(refused(outcome).1.len(), 200);
    let (_, outcome) = converse("HTTP/1.1 200 OK\r\n", "x: y\r\n").await;
    assert!(matches!(outcome, Err(PostError::Http(_))), "{outcome:?}");
    let (_, outcome) = converse("SSH-2.0-OpenSSH_9.2\r\n", "").await;
    assert!(matches!(outcome, Err(PostError::Http(_))), "{outcome:?}");
}

/// Seen to fail without the limit of time, by not ending.
#[tokio::test(start_paused = true)]
async fn a_silent_receiver_is_given_up() {
    let (listener, port) = listen().await;
    let endpoint = endpoint(&format!("http://127.0.0.1:{port}/"), None, &["127.0.0.0/8"], IN_2026).unwrap();
    let outcome = endpoint.post(post()).await;
    assert!(matches!(outcome, Err(PostError::TimedOut)), "{outcome:?}");
    drop(listener);
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let (listener, port) = listen().await;
    let answer = format!("HTTP/1.1 307 X\r\nlocation: http://127.0.0.1:{port}/\r\ncontent-length: 0\r\n\r\n");
    let (_, outcome) = converse(&answer, "").await;
    let message = outcome.as_ref().unwrap_err().to_string();
    assert!(refused(outcome).0 == 307 && message.contains("redirects are not followed"), "{message}");
    assert_nobody_came(listener);
}

fn assert_nobody_came(listener: TcpListener) {
    let listener = listener.into_std().unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

/// Seen to fail without the judgement, and when names were not judged by their addresses.
#[tokio::test]
async fn no_connection_is_made_to_what_is_not_public_and_not_named() {
    let ca = Ca::new();
    for (scheme, host, allowed) in [
        ("http", "127.0.0.1", "10.0.0.0/8"),
        ("http", "localhost", "10.0.0.0/8"),
        ("https", "127.0.0.1", "127.0.0.2/32"),
        ("https", "localhost", "10.0.0.0/8"),
        ("https", "[::ffff:127.0.0.1]", "10.0.0.0/8"),
        ("https", "0.0.0.0", "10.0.0.0/8"),
    ] {
        let (listener, port) = listen().await;
        let url = format!("{scheme}://{host}:{port}/");
        let outcome = endpoint(&url, Some(&ca.pem), &[allowed], IN_2026).unwrap().post(post()).await;
        assert!(matches!(outcome, Err(PostError::Forbidden { .. })), "{url}: {outcome:?}");
        assert_nobody_came(listener);
    }
    // Without TLS not even what is public.
    let outcome = endpoint("http://1.1.1.1/", None, &["10.0.0.0/8"], IN_2026).unwrap().post(post()).await;
    assert!(matches!(outcome, Err(PostError::Forbidden { .. })), "{outcome:?}");
    let message = outcome.unwrap_err().to_string();
    assert!(message.contains("1.1.1.1") && message.contains("allow_networks"), "{message}");
}

struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
    pem: String,
}

impl Ca {
    fn new() -> Ca {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Ca { pem: issuer.pem(), issuer }
    }

    fn acceptor(&self, name: &str) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

async fn answer_over_tls(listener: TcpListener, acceptor: TlsAcceptor) -> Option<String> {
    let (stream, _) = listener.accept().await.unwrap();
    let mut stream = acceptor.accept(stream).await.ok()?;
    let request = read_request(&mut stream).await;
    answer_ok(&mut stream).await;
    Some(request)
}

async fn answer_ok(stream: &mut (impl AsyncWrite + Unpin)) {
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let _ = stream.flush().await;
}

/// A9: seen to fail with a clock that stands still, and when the receiver was to prove another name than the URL's.
#[tokio::test]
async fn only_the_receiver_that_proves_its_name_by_a_named_ca_is_told_anything() {
    let (ca, other) = (Ca::new(), Ca::new());
    for (trusted, name, at, expected) in [
        (&ca, "localhost", IN_2026, true),
        (&other, "localhost", IN_2026, false),
        (&ca, "elsewhere.example", IN_2026, false),
        (&ca, "localhost", IN_5000, false),
    ] {
        let (listener, port) = listen().await;
        let receiver = tokio::spawn(answer_over_tls(listener, ca.acceptor(name)));
        let url = format!("https://localhost:{port}/hook");
        let endpoint = endpoint(&url, Some(&trusted.pem), &["127.0.0.0/8", "::1/128"], at).unwrap();
        let outcome = endpoint.post(post()).await;
        assert_eq!(outcome.is_ok(), expected, "{name} {at}: {outcome:?}");
        if !expected {
            assert!(matches!(outcome, Err(PostError::Tls { .. })), "{outcome:?}");
        }
        let request = receiver.await.unwrap();
        assert_eq!(request.is_some_and(|request| request.contains("{\"a\":1}")), expected);
    }
}

#[test]
fn an_url_is_checked_when_it_is_read() {
    let ca = Ca::new().pem;
    let check = |url: &str, cas: Option<&str>, allowed: &[&str], expected: Option<EndpointError>| {
        assert_eq!(endpoint(url, cas, allowed, IN_2026).err(), expected, "{url}");
    };
    check("https://hooks.example/x", Some(&ca), &[], None);
    check("https://[2001:db8::1]:8443", Some(&ca), &[], None);
    check("http://am:9093/", None, &["10.0.0.0/8"], None);
    check("https://hooks.example/x", None, &[], Some(EndpointError::NoCas));
    check("https://hooks.example/x", Some("no PEM"), &[], Some(EndpointError::BadCas));
    check("http://hooks.example/x", None, &[], Some(EndpointError::Plain));
    check("https://user:pw@hooks.example/", Some(&ca), &[], Some(EndpointError::UserInfo));
    let long = format!("https://hooks.example/{}", "x".repeat(2_048));
    for bad in [
        "",
        "hooks.example",
        "/x",
        "ftp://hooks.example/",
        "file:///etc/passwd",
        "https://",
        "https:///x",
        &long,
    ] {
        check(bad, Some(&ca), &["10.0.0.0/8"], Some(EndpointError::Url));
    }
}

/// With many receivers the path is the password. Seen to fail with the path in `Debug`.
#[tokio::test]
async fn the_path_is_never_printed() {
    let endpoint = endpoint("http://127.0.0.1:9/T0KEN", None, &["10.0.0.0/8"], IN_2026).unwrap();
    let error = endpoint.post(post()).await.unwrap_err();
    assert!(!format!("{endpoint:?} {error} {error:?}").contains("T0KEN"));
}
