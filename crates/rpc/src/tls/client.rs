//! The client's side of TLS.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use epigraph_core::Clock;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::trust::{MAX_TRUST_DOMAINS, TrustBundle, listed};
use super::{ALPN, Credentials, TlsClock, TlsError, only_tls13, provider, refused};
use crate::identity::{IdentityError, SpiffeId, Usage, inspect};

/// The client's side of TLS: who we are and whom we trust. Each connection adds the one name it expects.
pub struct ClientTls {
    own: Credentials,
    trust: Vec<TrustBundle>,
    clock: Arc<dyn Clock>,
}

impl ClientTls {
    /// `trust` is one bundle, or one for each trust domain that servers are called in. Our own name must be of one of
    /// them.
    pub fn new(
        own: Credentials,
        trust: impl Into<Vec<TrustBundle>>,
        clock: Arc<dyn Clock>,
    ) -> Result<ClientTls, TlsError> {
        let trust = trust.into();
        if bundle_of(own.spiffe(), &trust).is_none() {
            let want = listed(trust.iter().map(TrustBundle::domain));
            return Err(IdentityError::TrustDomain { name: own.spiffe().clone(), want }.into());
        }
        let mut domains = BTreeSet::new();
        if let Some(twice) = trust.iter().find(|bundle| !domains.insert(bundle.domain())) {
            return Err(TlsError::DomainTwice(twice.domain().into()));
        }
        if trust.len() > MAX_TRUST_DOMAINS {
            return Err(TlsError::TooManyDomains(trust.len()));
        }
        own.for_usage(Usage::Client)?;
        Ok(ClientTls { own, trust, clock })
    }

    /// A configuration that speaks to the holder of exactly this name, and to nobody else.
    pub(crate) fn config(&self, server: &SpiffeId) -> Result<Arc<ClientConfig>, TlsError> {
        let provider = provider();
        let bundle = bundle_of(server, &self.trust).ok_or_else(|| TlsError::NoBundle {
            name: server.clone(),
            domains: listed(self.trust.iter().map(TrustBundle::domain)),
        })?;
        let verifier = VerifyServer {
            roots: Arc::clone(bundle.roots()),
            name: server.clone(),
            algorithms: provider.signature_verification_algorithms,
        };
        let mut config =
            ClientConfig::builder_with_details(provider, Arc::new(TlsClock(Arc::clone(&self.clock))))
                .with_protocol_versions(&[&TLS13])?
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(verifier))
                .with_client_cert_resolver(self.own.for_usage(Usage::Client)?);
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").field("own", &self.own).finish_non_exhaustive()
    }
}

/// The bundle that vouches for the name, and no other does.
fn bundle_of<'a>(name: &SpiffeId, trust: &'a [TrustBundle]) -> Option<&'a TrustBundle> {
    trust.iter().find(|bundle| bundle.domain() == name.trust_domain())
}

/// The chain up to the trust bundle of the name's domain, then the exact name. The DNS name or address that was dialled plays no part: it
/// says where a server is, not who it is.
#[derive(Debug)]
struct VerifyServer {
    roots: Arc<RootCertStore>,
    name: SpiffeId,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for VerifyServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _dialled: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        let leaf = inspect(end_entity, Usage::Server).map_err(refused)?;
        if leaf.spiffe != self.name {
            return Err(refused(IdentityError::OtherServer { got: leaf.spiffe, want: self.name.clone() }));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
