//! Who is let in no more (RELIABILITY A17, T2, T5): revocation lists, the deny list, and one trust domain's CA speaking for
//! another.

use epigraph_core::{Clock, TreeSize, UnixMillis};
use epigraph_rpc::{
    ClientTls, ClientTrust, DenyList, RevocationLists, ServerTls, TlsError, TrustBundle, Usage,
};
use rcgen::date_time_ymd;
use sha2::{Digest, Sha256};

use crate::support::*;

const OTHER: &str = "spiffe://other.example/epigraph/reader/r";

fn lists(ca: &Ca, serials: &[u64]) -> RevocationLists {
    load(ca, &[ca.crl(serials).pem().unwrap().into()]).unwrap()
}

fn load(ca: &Ca, files: &[Vec<u8>]) -> Result<RevocationLists, TlsError> {
    let files: Vec<_> =
        files.iter().enumerate().map(|(at, file)| (format!("{at}.crl"), file.clone())).collect();
    RevocationLists::from_bytes(&ca.trust(), &files, Fixed.now())
}

fn trust(ca: &Ca, lists: Option<RevocationLists>, denied: &str) -> ClientTrust {
    ClientTrust::new(DenyList::parse(denied).unwrap()).trusting(ca.trust(), lists).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn start(ca: &Ca, trust: ClientTrust) -> Server {
    Server::start_with(ServerTls::new(&ca.server(SERVER), trust, clock()).unwrap().into()).await
}

/// A new connection of a client is refused for this reason.
async fn check_refused(server: &mut Server, client: &ClientTls, reason: &str) {
    server.log(client).checkpoint(ORIGIN).await.unwrap_err();
    let refusal = server.refusal().await;
    assert!(refusal.contains(reason), "{refusal}");
}

/// T2, T5. Broken to see it fail: the lists not handed to the TLS library.
#[tokio::test]
async fn a_certificate_on_a_revocation_list_is_refused() {
    let ca = Ca::new();
    let mut server = start(&ca, trust(&ca, Some(lists(&ca, &[7, 8])), "")).await;
    check_refused(&mut server, &ca.client_with(READER, 7), "the CA's revocation list says so").await;
    assert_eq!(server.log(&ca.client_with(READER, 9)).checkpoint(ORIGIN).await.unwrap(), CHECKPOINT);
}

/// T5: the whole chain is asked about, and where nobody can say, nobody is let in. Broken to see it fail: unknown
/// status allowed; only the leaf asked about.
#[tokio::test]
async fn of_every_certificate_of_a_chain_it_is_known_that_it_is_not_revoked() {
    let ca = Ca::new();
    let below = ca.intermediate("a CA below", 77);
    let own = below.issue(client_leaf(READER)).load(Usage::Client).unwrap();
    let client = ClientTls::new(own, ca.trust(), clock()).unwrap();

    let mut server = start(&ca, trust(&ca, Some(lists(&ca, &[])), "")).await;
    check_refused(&mut server, &client, "UnknownRevocationStatus").await;

    let both = |above: &[u64]| {
        load(&ca, &[ca.crl(above).pem().unwrap().into(), below.crl(&[]).der().to_vec()]).unwrap()
    };
    let server = start(&ca, trust(&ca, Some(both(&[])), "")).await;
    assert_eq!(server.log(&client).checkpoint(ORIGIN).await.unwrap(), CHECKPOINT);

    let mut server = start(&ca, trust(&ca, Some(both(&[77])), "")).await;
    check_refused(&mut server, &client, "the CA's revocation list says so").await;

    // A CA in between is denied by its key.
    let (_, parsed) = x509_parser::parse_x509_certificate(&below.der).unwrap();
    let key = hex(&Sha256::digest(parsed.public_key().raw));
    let mut server = start(&ca, trust(&ca, Some(both(&[])), &format!("key-sha256:{key}"))).await;
    check_refused(&mut server, &client, "the key of a CA that vouches for it").await;
}

/// T5: a list whose time is over says nothing about anybody. Broken to see it fail: expiry not enforced.
#[tokio::test]
async fn a_list_that_expires_in_force_lets_nobody_in() {
    struct Later;
    impl Clock for Later {
        fn now(&self) -> UnixMillis {
            UnixMillis(Fixed.now().0 + 40 * 24 * 3_600_000)
        }
    }
    let ca = Ca::new();
    let trust = trust(&ca, Some(lists(&ca, &[])), "");
    let tls = ServerTls::new(&ca.server(SERVER), trust, std::sync::Arc::new(Later)).unwrap();
    assert_eq!(tls.revocation_lists_expire(), Some(UnixMillis(1_896_134_400_000)));
    let mut server = Server::start_with(tls.into()).await;
    check_refused(&mut server, &ca.client(READER), "certificate revocation list expired").await;
}

/// T5. Broken to see it fail: no look at bytes that follow, at the hour of expiry, at the signature, for a second list, for a CA
/// without one.
#[test]
fn a_list_of_no_use_is_not_taken() {
    let ca = Ca::new();
    let good = ca.crl(&[1]).der().to_vec();
    let pem = ca.crl(&[2]).pem().unwrap();
    assert!(load(&ca, std::slice::from_ref(&good)).is_ok() && load(&ca, &[pem.clone().into()]).is_ok());

    let check = |files: &[Vec<u8>], expected: &str| {
        let error = load(&ca, files).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(&[], "there is no revocation list of the CA \"CN=test CA\"");
    check(&[vec![]], "0.crl: this is no revocation list (there is no list in it)");
    check(&[b"-----BEGIN X509 CRL-----\nMII\n".to_vec()], "this is no revocation list");
    check(&[good[..good.len() - 1].to_vec()], "this is no revocation list");
    check(&[[&good[..], b"x"].concat()], "bytes follow the list");
    check(&[ca.pem.clone().into()], "there is no list in it");
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    check(&[flipped], "is not signed by that CA");
    // Another CA of the same name.
    check(&[Ca::new().crl(&[]).der().to_vec()], "is not signed by that CA");
    check(&[Ca::named("other CA").crl(&[]).der().to_vec()], "there is no revocation list of the CA");
    check(&[good, pem.into()], "1.crl: there is another revocation list of the same CA");
    let expired = ca.crl_until(&[], date_time_ymd(2030, 1, 1)).der().to_vec();
    check(&[expired], "the revocation list expired at 1893456000 and it is 1893456000");
}

/// T2, A17. Broken to see it fail: the deny list not asked.
#[tokio::test]
async fn the_deny_list_is_asked_at_the_handshake() {
    let ca = Ca::new();
    let own = ca.issue(serial_leaf(READER, 0xbeef));
    let client = ClientTls::new(own.load(Usage::Client).unwrap(), ca.trust(), clock()).unwrap();
    let key = rcgen::KeyPair::from_pem(&own.key).unwrap();
    let key = hex(&Sha256::digest(rcgen::PublicKeyData::subject_public_key_info(&key))).to_uppercase();
    for (denied, what) in [
        (READER.to_string(), "its name"),
        ("spiffe://test.example/epigraph/reader/*".to_string(), "its name"),
        ("serial:be:ef".to_string(), "its serial number"),
        (format!("key-sha256:{key}"), "its key"),
    ] {
        let mut server = start(&ca, trust(&ca, None, &denied)).await;
        check_refused(&mut server, &client, &format!("{READER} is denied by {what}")).await;
        assert_eq!(server.log(&ca.client_with(APPENDER, 1)).checkpoint(ORIGIN).await.unwrap(), CHECKPOINT);
    }
}

/// T2, A17: also the calls that are under way. Broken to see it fail: nobody waits for the certificate to be lost.
#[tokio::test]
async fn open_connections_are_cut_when_their_certificate_is_revoked_and_others_are_not() {
    let ca = Ca::new();
    let (bad, good) = (ca.client_with(READER, 7), ca.client_with(APPENDER, 8));
    for what in ["list", "deny", "distrust"] {
        let mut server = start(&ca, trust(&ca, Some(lists(&ca, &[])), "")).await;
        let kept = server.log(&good);
        kept.checkpoint(ORIGIN).await.unwrap();
        let log = server.log(&bad);
        let in_flight = tokio::spawn({
            let log = log.clone();
            async move { log.consistency_proof(ORIGIN, TreeSize::ZERO, TreeSize::ZERO).await }
        });
        server.waiting.notified().await;

        let own = ca.server(SERVER);
        match what {
            "list" => server.tls.replace(&own, trust(&ca, Some(lists(&ca, &[7])), "")).unwrap(),
            "deny" => server.tls.replace(&own, trust(&ca, None, READER)).unwrap(),
            _ => {
                let other =
                    TrustBundle::from_pem("test.example", Ca::named("new CA").pem.as_bytes()).unwrap();
                server.tls.replace(&own, &other).unwrap();
            }
        }
        in_flight.await.unwrap().unwrap_err();
        assert!(server.refusal().await.contains("the client certificate is revoked"), "{what}");
        log.checkpoint(ORIGIN).await.unwrap_err();
        assert!(server.refusal().await.len() > 1);
        if what != "distrust" {
            kept.checkpoint(ORIGIN).await.unwrap();
            assert!(server.no_refusal(), "{what}");
        }
    }
}

/// Broken to see it fail: chains verified against the CAs of all domains.
#[tokio::test]
async fn a_ca_vouches_for_names_of_its_own_domain_only() {
    let (ca, other) = (Ca::new(), Ca::named("CA of other.example"));
    let foreign = TrustBundle::from_pem("other.example", other.pem.as_bytes()).unwrap();
    let both = trust(&ca, None, "").trusting(foreign.clone(), None).unwrap();
    let mut server = start(&ca, both).await;
    let client = |issuer: &Ca, name: &str| {
        let own = issuer.issue(client_leaf(name)).load(Usage::Client).unwrap();
        ClientTls::new(own, vec![ca.trust(), foreign.clone()], clock()).unwrap()
    };
    assert_eq!(server.log(&client(&ca, READER)).checkpoint(ORIGIN).await.unwrap(), CHECKPOINT);
    // Taken, and known by its name: no grant covers it.
    let error = server.log(&client(&other, OTHER)).checkpoint(ORIGIN).await.unwrap_err();
    assert!(error.to_string().contains(OTHER), "{error}");
    assert!(server.no_refusal());

    check_refused(&mut server, &client(&other, READER), "UnknownIssuer").await;
    check_refused(&mut server, &client(&ca, OTHER), "UnknownIssuer").await;

    // The same on the client's side: a server of ours with a certificate from the CA of the others.
    let stranger = Server::start_with(
        ServerTls::new(&other.server(SERVER), trust(&ca, None, ""), clock()).unwrap().into(),
    )
    .await;
    let error = stranger.log(&client(&ca, READER)).checkpoint(ORIGIN).await.unwrap_err();
    assert!(error.to_string().contains("UnknownIssuer"), "{error}");
}

#[test]
fn a_domain_is_trusted_once() {
    let ca = Ca::new();
    let error = trust(&ca, None, "").trusting(ca.trust(), None).unwrap_err();
    assert!(matches!(error, TlsError::DomainTwice(_)), "{error}");
    let own = ca.issue(client_leaf(READER)).load(Usage::Client).unwrap();
    let error = ClientTls::new(own, vec![ca.trust(), ca.trust()], clock()).unwrap_err();
    assert!(matches!(error, TlsError::DomainTwice(_)), "{error}");
    let mut many = ClientTrust::default();
    for at in 0..16 {
        many = many
            .trusting(TrustBundle::from_pem(&format!("{at}.example"), ca.pem.as_bytes()).unwrap(), None)
            .unwrap();
    }
    assert!(matches!(many.trusting(ca.trust(), None), Err(TlsError::TooManyDomains(17))));
}
