//! Who gets a connection, and who does not (RELIABILITY T1, T3, N1, N2, A9).

use epigraph_rpc::accept::{HANDSHAKE_TIMEOUT, MAX_CONNECTIONS_PER_IDENTITY, MAX_HANDSHAKES_PER_ADDRESS};
use epigraph_rpc::peer::Log;
use epigraph_rpc::{CallError, ClientTls, ServerTls, TlsError, Usage};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::*;

/// Shows the certificate and expects the server to refuse it for this reason, and to say so with an alert.
async fn check_refused(params: CertificateParams, issuer: Option<&Ca>, reason: &str) {
    let ca = Ca::new();
    let own = issuer.unwrap_or(&ca).issue(params);
    check_shown(&ca, own, reason).await;
}

async fn check_shown(ca: &Ca, own: Issued, reason: &str) {
    let mut server = Server::start(ca).await;
    let mut stream = server.connect(&ca.raw(Some(&own), &TLS13)).await.unwrap();
    let error = stream.read_u8().await.unwrap_err();
    assert!(error.to_string().contains("received fatal alert"), "{error}");
    drop(stream);
    let refusal = server.refusal().await;
    assert!(refusal.contains(reason), "{refusal}");
    // The refusal of one is nobody else's harm.
    let log = server.log(&ca.client(READER));
    assert_eq!(log.checkpoint(ORIGIN).await.unwrap(), CHECKPOINT);
    assert!(server.no_refusal());
}

#[tokio::test]
async fn a_certificate_from_another_ca_is_refused() {
    check_refused(client_leaf(READER), Some(&Ca::named("other CA")), "UnknownIssuer").await;
    check_refused(client_leaf(READER), Some(&Ca::new()), "BadSignature").await;
}

/// T1. Broken to see it fail: the CA vouches for it.
#[tokio::test]
async fn a_certificate_that_vouches_for_itself_is_refused() {
    let key = KeyPair::generate().unwrap();
    let chain = client_leaf(READER).self_signed(&key).unwrap().pem();
    check_shown(&Ca::new(), Issued { chain, key: key.serialize_pem() }, "UnknownIssuer").await;
}

#[tokio::test]
async fn a_certificate_without_a_spiffe_name_is_refused() {
    check_refused(leaf(&[], ExtendedKeyUsagePurpose::ClientAuth), None, "exactly one URI").await;
}

#[tokio::test]
async fn a_certificate_with_two_spiffe_names_is_refused() {
    check_refused(leaf(&[READER, APPENDER], ExtendedKeyUsagePurpose::ClientAuth), None, "this one carries 2")
        .await;
}

#[tokio::test]
async fn a_certificate_with_another_uri_is_refused() {
    check_refused(client_leaf("https://test.example/epigraph/reader/r"), None, "starts with spiffe://").await;
}

#[tokio::test]
async fn a_name_of_another_form_is_refused() {
    check_refused(client_leaf("spiffe://test.example/epigraph/reader"), None, "has not the form").await;
}

#[tokio::test]
async fn a_name_of_another_trust_domain_is_refused() {
    let name = "spiffe://other.example/epigraph/reader/r";
    check_refused(client_leaf(name), None, "is not of the trust domain test.example").await;
}

#[tokio::test]
async fn a_server_certificate_is_no_client_certificate() {
    check_refused(server_leaf(READER), None, "does not allow extended key usage for client authentication")
        .await;
}

#[tokio::test]
async fn a_certificate_without_extended_key_usage_is_refused() {
    let mut params = client_leaf(READER);
    params.extended_key_usages.clear();
    check_refused(params, None, "lacks the extended key usage clientAuth").await;
}

#[tokio::test]
async fn the_certificate_of_a_ca_is_no_leaf() {
    let mut params = client_leaf(READER);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    check_refused(params, None, "CaUsedAsEndEntity").await;
}

#[tokio::test]
async fn a_leaf_that_may_sign_certificates_is_refused() {
    let mut params = client_leaf(READER);
    params.key_usages.push(KeyUsagePurpose::KeyCertSign);
    check_refused(params, None, "may sign other certificates").await;
}

#[tokio::test]
async fn an_expired_certificate_is_refused_by_the_clock_of_the_server() {
    let mut params = client_leaf(READER);
    params.not_after = date_time_ymd(2029, 12, 31);
    check_refused(params, None, "certificate expired").await;
}

#[tokio::test]
async fn a_certificate_of_the_future_is_refused_by_the_clock_of_the_server() {
    let mut params = client_leaf(READER);
    params.not_before = date_time_ymd(2030, 1, 2);
    check_refused(params, None, "certificate not valid yet").await;
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let ca = Ca::new();
    let mut server = Server::start(&ca).await;
    let mut stream = server.connect(&ca.raw(None, &TLS13)).await.unwrap();
    assert!(stream.read_u8().await.is_err());
    drop(stream);
    assert!(server.refusal().await.contains("no certificates"), "the reason names the missing certificate");
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let ca = Ca::new();
    let mut server = Server::start(&ca).await;
    let own = ca.issue(client_leaf(READER));
    let error = server.connect(&ca.raw(Some(&own), &TLS12)).await.unwrap_err();
    assert!(error.to_string().contains("ProtocolVersion"), "{error}");
    assert!(server.refusal().await.contains("handshake failed"));
}

#[tokio::test]
async fn a_client_in_the_clear_is_refused() {
    let ca = Ca::new();
    let mut server = Server::start(&ca).await;
    let mut stream = TcpStream::connect(&server.address).await.unwrap();
    // More than the server reads to see that this is no TLS: what it leaves unread must not cost the client the alert.
    stream.write_all(&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".repeat(2_000)).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    // One TLS record with an alert (type 21, two bytes), and the end: not a byte of HTTP/2.
    assert_eq!((answer.first(), answer.len()), (Some(&21), 7), "{answer:?}");
    drop(stream);
    assert!(server.refusal().await.contains("handshake failed"));
}

#[tokio::test]
async fn no_session_can_be_resumed() {
    let ca = Ca::new();
    let server = Server::start(&ca).await;
    let own = ca.issue(client_leaf(READER));
    let connector = ca.raw(Some(&own), &TLS13);
    for _ in 0..2 {
        let mut stream = server.connect(&connector).await.unwrap();
        // The server's first bytes prove that its handshake is over and tickets, if any, have come.
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        stream.read_u8().await.unwrap();
        let session = stream.get_ref().1;
        assert_eq!(session.tls13_tickets_received(), 0);
        assert_eq!(session.handshake_kind(), Some(rustls::HandshakeKind::Full));
    }
}

#[tokio::test]
async fn a_client_refuses_every_server_but_the_one_it_called() {
    let ca = Ca::new();
    let mut server = Server::start(&ca).await;
    let client = ca.client(READER);
    let other = name("spiffe://test.example/epigraph/log/other");
    let log = Log::new(&server.address, &client, &other).unwrap();
    let Err(CallError::Unreachable(text)) = log.checkpoint(ORIGIN).await else {
        panic!("a call to a stranger")
    };
    assert!(text.contains(&format!("this is {SERVER}, not {other}")), "{text}");
    server.refusal().await;

    // A stranger who has the right name from a CA of his own.
    let stranger = Ca::named("other CA");
    let own = ca.issue(client_leaf(READER)).load(Usage::Client).unwrap();
    let client = ClientTls::new(own, stranger.trust(), clock()).unwrap();
    let Err(CallError::Unreachable(text)) = server.log(&client).checkpoint(ORIGIN).await else { panic!() };
    assert!(text.contains("UnknownIssuer"), "{text}");
}

#[tokio::test]
async fn a_refused_client_is_told_where_to_look() {
    let (ca, other) = (Ca::new(), Ca::new());
    let server = Server::start(&ca).await;
    let own = other.issue(client_leaf(READER)).load(Usage::Client).unwrap();
    let client = ClientTls::new(own, ca.trust(), clock()).unwrap();
    let Err(CallError::Unreachable(text)) = server.log(&client).checkpoint(ORIGIN).await else { panic!() };
    assert!(text.contains("is the client certificate from the CA that the server trusts"), "{text}");
}

#[tokio::test]
async fn nobody_there_is_unreachable() {
    let ca = Ca::new();
    let mut server = Server::start(&ca).await;
    server.stop();
    (&mut server.task).await.unwrap();
    let Err(CallError::Unreachable(text)) = server.log(&ca.client(READER)).checkpoint(ORIGIN).await else {
        panic!()
    };
    assert!(text.contains("Connection refused") && !text.contains("client certificate"), "{text}");
}

#[tokio::test]
async fn silent_clients_do_not_keep_others_out() {
    let ca = Ca::new();
    let mut server = Server::start(&ca).await;
    let mut silent = Vec::new();
    for _ in 0..=MAX_HANDSHAKES_PER_ADDRESS {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        silent.push(socket.connect(server.address.parse().unwrap()).await.unwrap());
    }
    assert!(server.refusal().await.contains("too many handshakes from this address"));
    assert_eq!(server.log(&ca.client(READER)).checkpoint(ORIGIN).await.unwrap(), CHECKPOINT);
}

/// The clock of the runtime stands still until everybody waits, then jumps to the next timer.
#[tokio::test(start_paused = true)]
async fn a_silent_client_is_cut_off() {
    let ca = Ca::new();
    let mut server = Server::start(&ca).await;
    let start = tokio::time::Instant::now();
    let _silent = TcpStream::connect(&server.address).await.unwrap();
    assert_eq!(server.refusal().await, "the TLS handshake took longer than 5 s");
    let took = start.elapsed();
    assert!(took >= HANDSHAKE_TIMEOUT && took < HANDSHAKE_TIMEOUT * 2, "{took:?}");
}

#[tokio::test]
async fn one_identity_has_32_connections_and_leaves_the_others_theirs() {
    let ca = Ca::new();
    let mut server = Server::start(&ca).await;
    let own = ca.issue(client_leaf(APPENDER));
    let connector = ca.raw(Some(&own), &TLS13);
    let mut held = Vec::new();
    for _ in 0..MAX_CONNECTIONS_PER_IDENTITY {
        let mut stream = server.connect(&connector).await.unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        stream.read_u8().await.unwrap();
        held.push(stream);
    }
    assert!(server.no_refusal());
    held.push(server.connect(&connector).await.unwrap());
    let refusal = server.refusal().await;
    assert!(refusal.contains(&format!("too many connections for {APPENDER}: all 32")), "{refusal}");
    assert_eq!(server.log(&ca.client(READER)).checkpoint(ORIGIN).await.unwrap(), CHECKPOINT);
}

#[tokio::test]
async fn a_replaced_certificate_is_shown_to_the_next_client_and_disturbs_nobody() {
    let ca = Ca::new();
    let server = Server::start(&ca).await;
    let (client, renamed) = (ca.client(READER), name("spiffe://test.example/epigraph/log/renamed"));
    let before = server.log(&client);
    before.checkpoint(ORIGIN).await.unwrap();
    server.tls.replace(&ca.server(renamed.as_str()), &ca.trust()).unwrap();
    let after = Log::new(&server.address, &client, &renamed).unwrap();
    assert_eq!(after.checkpoint(ORIGIN).await.unwrap(), CHECKPOINT);
    assert_eq!(before.checkpoint(ORIGIN).await.unwrap(), CHECKPOINT, "the open connection lives on");
}

#[test]
fn our_own_certificate_is_checked_before_anybody_sees_it() {
    let ca = Ca::new();
    let check = |params: CertificateParams, usage: Usage, expected: &str| {
        let error = ca.issue(params).load(usage).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(client_leaf(SERVER), Usage::Server, "lacks the extended key usage serverAuth");
    check(server_leaf(READER), Usage::Client, "lacks the extended key usage clientAuth");
    check(leaf(&[], ExtendedKeyUsagePurpose::ServerAuth), Usage::Server, "exactly one URI");
    let mut expired = server_leaf(SERVER);
    expired.not_after = date_time_ymd(2029, 12, 31);
    check(expired, Usage::Server, "issue a new one");
    let mut early = server_leaf(SERVER);
    early.not_before = date_time_ymd(2030, 1, 2);
    check(early, Usage::Server, "is valid from 1893542400");

    let foreign =
        ca.issue(client_leaf("spiffe://other.example/epigraph/reader/r")).load(Usage::Client).unwrap();
    assert!(matches!(ClientTls::new(foreign, ca.trust(), clock()), Err(TlsError::Identity(_))));
    let foreign = ca.server("spiffe://other.example/epigraph/log/main");
    assert!(matches!(ServerTls::new(&foreign, &ca.trust(), clock()), Err(TlsError::Identity(_))));
    let [mut one, other] = [ca.issue(server_leaf(SERVER)), ca.issue(server_leaf(SERVER))];
    one.key = other.key;
    assert!(matches!(one.load(Usage::Server), Err(TlsError::Rustls(rustls::Error::InconsistentKeys(_)))));
}

#[cfg(unix)]
#[test]
fn a_key_that_others_can_read_is_refused() {
    use epigraph_core::Clock;
    use epigraph_rpc::Credentials;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    let dir = tempfile::tempdir().unwrap();
    let [chain, key] = ["server.pem", "server.key"].map(|name| dir.path().join(name));
    let issued = Ca::new().issue(server_leaf(SERVER));
    fs::write(&chain, &issued.chain).unwrap();
    fs::write(&key, &issued.key).unwrap();
    let load = |mode| {
        fs::set_permissions(&key, Permissions::from_mode(mode)).unwrap();
        Credentials::from_files(&chain, &key, Usage::Server, Fixed.now())
    };
    for mode in [0o604, 0o640, 0o620, 0o601, 0o777] {
        let error = load(mode).unwrap_err().to_string();
        assert!(error.ends_with(&format!("run: chmod 600 {}", key.display())), "{error}");
    }
    let own = load(0o600).unwrap();
    assert_eq!(own.spiffe(), &name(SERVER));
    let secret: String = issued.key.lines().nth(1).unwrap().into();
    assert!(!format!("{own:?}").contains(&secret));
}
