//! Whom a server takes as clients: for each trust domain its CAs and its revocation lists, and above all the deny list.
//!
//! The name in a certificate says by whose CAs it is judged, so that a CA is worth nothing outside of its own trust
//! domain, whatever names it signs.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use epigraph_core::UnixMillis;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};

use super::credentials::{MAX_PEM_BYTES, certificates, read_limited};
use super::{DenyList, RevocationLists, TlsError, only_tls13, provider, refused};
use crate::identity::{IdentityError, Usage, inspect, is_trust_domain, name_of};

/// Trust domains of one server or client: each is somebody whose CA is believed.
pub const MAX_TRUST_DOMAINS: usize = 16;

/// The CAs of one trust domain. They vouch for names of this domain and for no others.
#[derive(Clone, Debug)]
pub struct TrustBundle {
    domain: String,
    roots: Arc<RootCertStore>,
    pub(super) cas: Vec<CertificateDer<'static>>,
}

impl TrustBundle {
    /// Reads the CA certificates from a PEM file.
    pub fn from_file(domain: &str, path: &Path) -> Result<TrustBundle, TlsError> {
        TrustBundle::from_pem(domain, &read_limited(path, File::open(path), MAX_PEM_BYTES)?)
    }

    /// As [`TrustBundle::from_file`], from memory.
    pub fn from_pem(domain: &str, pem: &[u8]) -> Result<TrustBundle, TlsError> {
        if !is_trust_domain(domain) {
            return Err(TlsError::TrustDomain(domain.into()));
        }
        let cas = certificates("trust bundle", pem)?;
        let mut roots = RootCertStore::empty();
        for certificate in &cas {
            roots.add(certificate.clone())?;
        }
        Ok(TrustBundle { domain: domain.into(), roots: Arc::new(roots), cas })
    }

    /// The trust domain.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    pub(super) fn roots(&self) -> &Arc<RootCertStore> {
        &self.roots
    }
}

/// One bundle is as good as a list of one.
impl From<TrustBundle> for Vec<TrustBundle> {
    fn from(bundle: TrustBundle) -> Vec<TrustBundle> {
        vec![bundle]
    }
}

/// Whose certificates a server accepts.
#[derive(Clone, Debug, Default)]
pub struct ClientTrust {
    domains: BTreeMap<String, (TrustBundle, Option<RevocationLists>)>,
    denied: DenyList,
}

impl ClientTrust {
    /// Nobody but those of `denied` is refused outright, and nobody is trusted yet.
    pub fn new(denied: DenyList) -> ClientTrust {
        ClientTrust { domains: BTreeMap::new(), denied }
    }

    /// Trusts the CAs of one more domain. With revocation lists, a certificate of the domain is taken only if it is
    /// known that neither it nor a CA between it and the bundle is revoked; without, nobody asks.
    pub fn trusting(
        mut self,
        bundle: TrustBundle,
        lists: Option<RevocationLists>,
    ) -> Result<ClientTrust, TlsError> {
        let domain = bundle.domain.clone();
        if self.domains.insert(domain.clone(), (bundle, lists)).is_some() {
            return Err(TlsError::DomainTwice(domain));
        }
        if self.domains.len() > MAX_TRUST_DOMAINS {
            return Err(TlsError::TooManyDomains(self.domains.len()));
        }
        Ok(self)
    }

    pub(super) fn domains(&self) -> String {
        listed(self.domains.keys().map(String::as_str))
    }

    pub(super) fn has_domain(&self, domain: &str) -> bool {
        self.domains.contains_key(domain)
    }

    /// When the first of the revocation lists expires.
    pub(super) fn lists_expire(&self) -> Option<UnixMillis> {
        let lists = self.domains.values().filter_map(|(_, lists)| lists.as_ref());
        lists.map(RevocationLists::next_update).min()
    }
}

/// One bundle, no revocation lists, nobody denied.
impl From<&TrustBundle> for ClientTrust {
    fn from(bundle: &TrustBundle) -> ClientTrust {
        let domains = BTreeMap::from([(bundle.domain.clone(), (bundle.clone(), None))]);
        ClientTrust { domains, denied: DenyList::default() }
    }
}

pub(super) fn listed<'a>(domains: impl Iterator<Item = &'a str>) -> String {
    domains.collect::<Vec<_>>().join(" or ")
}

/// Judges the certificates of clients: at the handshake, and again when the rules have changed meanwhile.
#[derive(Debug)]
pub(super) struct VerifyClient {
    /// The library's verification of chain, time and revocation, by trust domain.
    chains: BTreeMap<String, Arc<dyn ClientCertVerifier>>,
    denied: DenyList,
    root_hints: Vec<DistinguishedName>,
    provider: Arc<rustls::crypto::CryptoProvider>,
}

impl VerifyClient {
    pub(super) fn new(trust: &ClientTrust) -> Result<VerifyClient, TlsError> {
        let provider = provider();
        let mut chains = BTreeMap::new();
        let mut root_hints = Vec::new();
        for (domain, (bundle, lists)) in &trust.domains {
            root_hints.extend(bundle.roots.subjects());
            let roots = Arc::clone(&bundle.roots);
            let mut chain = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider));
            if let Some(lists) = lists {
                // The library's defaults are kept: the whole chain is asked about, and who is on no list is refused.
                chain = chain.with_crls(lists.ders().iter().cloned()).enforce_revocation_expiration();
            }
            chains.insert(domain.clone(), chain.build()?);
        }
        Ok(VerifyClient { chains, denied: trust.denied.clone(), root_hints, provider })
    }

    pub(super) fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let name = name_of(end_entity).map_err(refused)?;
        let Some(chain) = self.chains.get(name.trust_domain()) else {
            return Err(refused(IdentityError::TrustDomain {
                name,
                want: listed(self.chains.keys().map(String::as_str)),
            }));
        };
        let verified = chain.verify_client_cert(end_entity, intermediates, now)?;
        let leaf = inspect(end_entity, Usage::Client).map_err(refused)?;
        self.denied.check(&leaf, end_entity, intermediates).map_err(refused)?;
        Ok(verified)
    }
}

impl ClientCertVerifier for VerifyClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.root_hints
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now)
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
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
