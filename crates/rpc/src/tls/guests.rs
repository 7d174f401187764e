//! TLS for senders that do not speak our protocol: an API server, a log shipper. Their certificates come from a CA of their own
//! and name them as that CA likes; a door lets in whom its list names, and nobody else.
//!
//! Our own side is as everywhere: TLS 1.3, one certificate, read again when its file changes.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use epigraph_core::Clock;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme};
use sha2::{Digest, Sha256};

use super::credentials::{MAX_PEM_BYTES, certificates, read_limited};
use super::{Credentials, Reload, TlsClock, TlsError, only_tls13, provider, refused};
use crate::identity::{IdentityError, Usage, guest_names};

/// Names in the list of one door: whoever has more of them issues their certificates below one path.
pub const MAX_GUEST_PATTERNS: usize = 64;

/// Whom a door lets in: a name as it stands in the certificate (a URI, a DNS name or the subject's common name), all names below
/// a URI (`spiffe://example.org/senders/*`), or everybody whom the CA vouches for (`*`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum GuestPattern {
    /// Everybody.
    Anyone,
    /// This name.
    Named(String),
    /// Names that begin with this text, which ends in a slash.
    Below(String),
}

impl GuestPattern {
    fn matches(&self, name: &str) -> bool {
        match self {
            GuestPattern::Anyone => true,
            GuestPattern::Named(exact) => exact == name,
            GuestPattern::Below(base) => name.len() > base.len() && name.starts_with(base.as_str()),
        }
    }
}

impl FromStr for GuestPattern {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<GuestPattern, Self::Err> {
        Ok(match text.strip_suffix('*') {
            Some("") => GuestPattern::Anyone,
            Some(base) if base.ends_with('/') => GuestPattern::Below(base.to_owned()),
            _ => GuestPattern::Named(text.to_owned()),
        })
    }
}

/// The files and the list of one door.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GuestFiles {
    /// Our certificate and those between it and the CA, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM, readable for its owner alone.
    pub key: PathBuf,
    /// The CA that vouches for the senders, PEM.
    pub client_ca: PathBuf,
    /// Which of them are let in.
    pub clients: Vec<GuestPattern>,
    /// What the application protocol is called in TLS; none where senders name none.
    pub protocol: Option<&'static [u8]>,
}

impl GuestFiles {
    fn digest(&self) -> Result<[u8; 32], TlsError> {
        let mut digest = Sha256::new();
        for path in [&self.certificate, &self.key, &self.client_ca] {
            digest.update(Sha256::digest(read_limited(path, std::fs::File::open(path), MAX_PEM_BYTES)?));
        }
        Ok(digest.finalize().into())
    }

    fn load(&self, clock: &Arc<dyn Clock>) -> Result<ServerConfig, TlsError> {
        let own = Credentials::from_files(&self.certificate, &self.key, Usage::Server, clock.now())?;
        let pem = read_limited(&self.client_ca, std::fs::File::open(&self.client_ca), MAX_PEM_BYTES)?;
        let mut roots = RootCertStore::empty();
        for certificate in certificates("client CA", &pem)? {
            roots.add(certificate)?;
        }
        let chain = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build()?;
        let verifier = VerifyGuest { chain, clients: self.clients.clone() };
        let mut config =
            ServerConfig::builder_with_details(provider(), Arc::new(TlsClock(Arc::clone(clock))))
                .with_protocol_versions(&[&TLS13])?
                .with_client_cert_verifier(Arc::new(verifier))
                .with_cert_resolver(own.for_usage(Usage::Server)?);
        config.alpn_protocols = self.protocol.map(<[u8]>::to_vec).into_iter().collect();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

/// The TLS of one door, kept to what is in its files.
pub struct GuestTls {
    files: GuestFiles,
    clock: Arc<dyn Clock>,
    in_force: Mutex<([u8; 32], Arc<ServerConfig>)>,
}

impl GuestTls {
    /// Loads the files.
    pub fn open(files: GuestFiles, clock: Arc<dyn Clock>) -> Result<GuestTls, TlsError> {
        // Before the files are read: what changes in between is found to have changed, and is read once more.
        let digest = files.digest()?;
        let config = Arc::new(files.load(&clock)?);
        Ok(GuestTls { files, clock, in_force: Mutex::new((digest, config)) })
    }

    /// Looks at the files, and puts what has changed in force for handshakes from now on; after an error what was in force stays.
    /// Reads files.
    pub fn reload(&self) -> Result<Reload, TlsError> {
        let digest = self.files.digest()?;
        if self.in_force.lock().unwrap_or_else(PoisonError::into_inner).0 == digest {
            return Ok(Reload::Unchanged);
        }
        let config = Arc::new(self.files.load(&self.clock)?);
        *self.in_force.lock().unwrap_or_else(PoisonError::into_inner) = (digest, config);
        Ok(Reload::Replaced)
    }

    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.in_force.lock().unwrap_or_else(PoisonError::into_inner).1)
    }

    /// The name under which whoever showed this chain was let in.
    pub(crate) fn name(&self, chain: Option<&[CertificateDer<'static>]>) -> Result<String, IdentityError> {
        let leaf = chain.and_then(<[_]>::first).ok_or(IdentityError::NoCertificate)?;
        admitted(leaf, &self.files.clients)
    }
}

impl fmt::Debug for GuestTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestTls").field("files", &self.files).finish_non_exhaustive()
    }
}

fn admitted(leaf: &CertificateDer<'_>, clients: &[GuestPattern]) -> Result<String, IdentityError> {
    let names = guest_names(leaf)?;
    let is_listed = |name: &&String| clients.iter().any(|pattern| pattern.matches(name));
    match names.iter().find(is_listed) {
        Some(name) => Ok(name.clone()),
        None => Err(IdentityError::NotListed(names.join(", "))),
    }
}

/// Judges a sender's certificate within the handshake: its chain, and whether it is on the list.
#[derive(Debug)]
struct VerifyGuest {
    chain: Arc<dyn ClientCertVerifier>,
    clients: Vec<GuestPattern>,
}

impl ClientCertVerifier for VerifyGuest {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        admitted(end_entity, &self.clients).map_err(refused)?;
        Ok(verified)
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
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_names_whom_it_lets_in() {
        let check = |pattern: &str, name: &str, expected: bool| {
            let pattern: GuestPattern = pattern.parse().unwrap();
            assert_eq!(pattern.matches(name), expected, "{pattern:?} {name}");
        };
        check("kube-apiserver-audit", "kube-apiserver-audit", true);
        check("kube-apiserver-audit", "kube-apiserver-audit-2", false);
        check("spiffe://td/senders/*", "spiffe://td/senders/a", true);
        check("spiffe://td/senders/*", "spiffe://td/senders/", false);
        check("spiffe://td/senders/*", "spiffe://td/senders-2/a", false);
        // A star elsewhere is a letter, not a pattern.
        check("kube*", "kubelet", false);
        check("*", "anybody", true);
    }
}
