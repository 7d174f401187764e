//! Mutual TLS: key and certificate from files, the trust bundle, and the two configurations made of them.
//!
//! TLS 1.3 only, HTTP/2 only, no resumption in either direction: a resumed session would carry a certificate that
//! nobody looked at again. Names are SPIFFE names, checked inside the handshake, so that a stranger is refused before
//! a byte of HTTP/2 is read.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use epigraph_core::{Clock, UnixMillis};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore,
    ServerConfig, SignatureScheme,
};
use thiserror::Error;

use crate::identity::{IdentityError, Leaf, SpiffeId, Usage, inspect, inspect_in, is_trust_domain};

/// The largest PEM file. A chain of ten certificates has about 20 KiB.
pub const MAX_PEM_BYTES: u64 = 256 * 1024;

/// Certificates in one file: more are no chain, and no trust bundle that anyone could oversee.
pub const MAX_CERTIFICATES: usize = 32;

/// What the one application protocol is called in TLS.
const ALPN: &[u8] = b"h2";

/// Why TLS cannot be set up.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{path}: {error}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A file is larger than [`MAX_PEM_BYTES`].
    #[error("{0}: more than {MAX_PEM_BYTES} bytes; this is no certificate and no key")]
    TooLarge(PathBuf),
    /// Others than the owner may read a key.
    #[error("{0}: others than its owner may read this private key; run: chmod 600 {0}")]
    ExposedKey(PathBuf),
    /// Not PEM.
    #[error("{what}: {error}")]
    Pem {
        /// Certificate or key.
        what: &'static str,
        /// What is wrong with it.
        error: rustls::pki_types::pem::Error,
    },
    /// None or too many.
    #[error("{what}: 1 to {MAX_CERTIFICATES} certificates are expected, there are {got}")]
    Count {
        /// Chain or bundle.
        what: &'static str,
        /// How many there are.
        got: usize,
    },
    /// Not yet or no longer valid.
    #[error(
        "the certificate of {name} is valid from {not_before} to {not_after} and it is {now}, in seconds since 1970; \
         issue a new one"
    )]
    NotValid {
        /// Whose certificate.
        name: SpiffeId,
        /// Seconds.
        not_before: u64,
        /// Seconds.
        not_after: u64,
        /// Seconds.
        now: u64,
    },
    /// The certificate does not name its holder, or is for something else.
    #[error("our own certificate is refused: {0}")]
    Identity(#[from] IdentityError),
    /// Not a trust domain.
    #[error("{0:?} is no trust domain")]
    TrustDomain(String),
    /// Not `host:port`.
    #[error("{0:?} is no address; write host:port")]
    Address(String),
    /// What the TLS library says.
    #[error("TLS: {0}")]
    Rustls(#[from] rustls::Error),
    /// What the verifier says of the trust bundle.
    #[error("the trust bundle is refused: {0}")]
    Bundle(#[from] rustls::server::VerifierBuilderError),
}

/// A private key and the certificate chain for it. The key cannot be had out of it.
#[derive(Clone)]
pub struct Credentials {
    key: Arc<CertifiedKey>,
    leaf: Leaf,
    usage: Usage,
}

impl Credentials {
    /// Reads both from PEM files. The key's file must be readable for its owner alone, the certificate valid at `now`
    /// and good for `usage`: a server does not check its own certificate, and one that has expired would start
    /// cleanly and serve nobody.
    pub fn from_files(
        chain: &Path,
        key: &Path,
        usage: Usage,
        now: UnixMillis,
    ) -> Result<Credentials, TlsError> {
        let chain = read_limited(chain, File::open(chain))?;
        let file = File::open(key).map_err(|error| TlsError::Read { path: key.into(), error })?;
        refuse_exposed(key, &file)?;
        Credentials::from_pem(&chain, &read_limited(key, Ok(file))?, usage, now)
    }

    /// As [`Credentials::from_files`], from memory.
    pub fn from_pem(
        chain: &[u8],
        key: &[u8],
        usage: Usage,
        now: UnixMillis,
    ) -> Result<Credentials, TlsError> {
        let chain = certificates("certificate chain", chain)?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| TlsError::Pem { what: "private key", error })?;
        let leaf = inspect(chain.first().ok_or(IdentityError::NoCertificate)?, usage)?;
        // A certificate is valid to the end of its last second.
        if now < leaf.not_before || now.0 / 1_000 > leaf.not_after.0 / 1_000 {
            return Err(TlsError::NotValid {
                not_before: leaf.not_before.0 / 1_000,
                not_after: leaf.not_after.0 / 1_000,
                now: now.0 / 1_000,
                name: leaf.spiffe,
            });
        }
        let key = Arc::new(CertifiedKey::from_der(chain, key, &provider())?);
        Ok(Credentials { key, leaf, usage })
    }

    /// The name in the certificate.
    pub fn spiffe(&self) -> &SpiffeId {
        &self.leaf.spiffe
    }

    /// When the certificate ends.
    pub fn not_after(&self) -> UnixMillis {
        self.leaf.not_after
    }

    fn for_usage(&self, usage: Usage) -> Result<Arc<SingleCertAndKey>, TlsError> {
        if self.usage != usage {
            return Err(IdentityError::Usage { name: self.leaf.spiffe.clone(), usage }.into());
        }
        Ok(Arc::new(SingleCertAndKey::from(Arc::clone(&self.key))))
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("leaf", &self.leaf)
            .field("usage", &self.usage)
            .finish_non_exhaustive()
    }
}

/// The CAs of one trust domain. They vouch for names of this domain and for no others.
#[derive(Clone, Debug)]
pub struct TrustBundle {
    domain: String,
    roots: Arc<RootCertStore>,
}

impl TrustBundle {
    /// Reads the CA certificates from a PEM file.
    pub fn from_file(domain: &str, path: &Path) -> Result<TrustBundle, TlsError> {
        TrustBundle::from_pem(domain, &read_limited(path, File::open(path))?)
    }

    /// As [`TrustBundle::from_file`], from memory.
    pub fn from_pem(domain: &str, pem: &[u8]) -> Result<TrustBundle, TlsError> {
        if !is_trust_domain(domain) {
            return Err(TlsError::TrustDomain(domain.into()));
        }
        let mut roots = RootCertStore::empty();
        for certificate in certificates("trust bundle", pem)? {
            roots.add(certificate)?;
        }
        Ok(TrustBundle { domain: domain.into(), roots: Arc::new(roots) })
    }

    /// The trust domain.
    pub fn domain(&self) -> &str {
        &self.domain
    }
}

fn read_limited(path: &Path, file: io::Result<File>) -> Result<Vec<u8>, TlsError> {
    let mut bytes = Vec::new();
    let read = file.and_then(|file| file.take(MAX_PEM_BYTES + 1).read_to_end(&mut bytes));
    match read {
        Ok(length) if length as u64 <= MAX_PEM_BYTES => Ok(bytes),
        Ok(_) => Err(TlsError::TooLarge(path.into())),
        Err(error) => Err(TlsError::Read { path: path.into(), error }),
    }
}

/// Asks the open file and not its path, which could lead elsewhere a moment later.
#[cfg(unix)]
fn refuse_exposed(path: &Path, file: &File) -> Result<(), TlsError> {
    use std::os::unix::fs::PermissionsExt;
    let metadata = file.metadata().map_err(|error| TlsError::Read { path: path.into(), error })?;
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(TlsError::ExposedKey(path.into()));
    }
    Ok(())
}

fn certificates(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .take(MAX_CERTIFICATES + 1)
        .collect::<Result<_, _>>()
        .map_err(|error| TlsError::Pem { what, error })?;
    match certificates.len() {
        1..=MAX_CERTIFICATES => Ok(certificates),
        got => Err(TlsError::Count { what, got }),
    }
}

/// Passed by hand wherever it is needed: a provider installed for the whole process would be a hidden global.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The time by which certificates are judged.
struct TlsClock(Arc<dyn Clock>);

impl TimeProvider for TlsClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(self.0.now().0)))
    }
}

impl fmt::Debug for TlsClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsClock")
    }
}

/// The server's side of TLS. Handshakes take the configuration of the moment: it can be replaced while the server
/// runs, and connections that are up live on.
pub struct ServerTls {
    config: RwLock<Arc<ServerConfig>>,
    domain: String,
    clock: Arc<dyn Clock>,
}

impl ServerTls {
    /// Our own name must be of the bundle's trust domain.
    pub fn new(own: &Credentials, trust: &TrustBundle, clock: Arc<dyn Clock>) -> Result<ServerTls, TlsError> {
        let config = RwLock::new(server_config(own, trust, &clock)?);
        Ok(ServerTls { config, domain: trust.domain.clone(), clock })
    }

    /// Takes a renewed certificate and renewed CAs of the same trust domain for all handshakes from now on.
    pub fn replace(&self, own: &Credentials, trust: &TrustBundle) -> Result<(), TlsError> {
        if trust.domain != self.domain {
            return Err(TlsError::TrustDomain(trust.domain.clone()));
        }
        let config = server_config(own, trust, &self.clock)?;
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The name that a client showed in a handshake which has succeeded.
    pub(crate) fn client_name(
        &self,
        chain: Option<&[CertificateDer<'_>]>,
    ) -> Result<SpiffeId, IdentityError> {
        let leaf = chain.and_then(<[_]>::first).ok_or(IdentityError::NoCertificate)?;
        inspect_in(leaf, Usage::Client, &self.domain).map(|leaf| leaf.spiffe)
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").field("domain", &self.domain).finish_non_exhaustive()
    }
}

fn server_config(
    own: &Credentials,
    trust: &TrustBundle,
    clock: &Arc<dyn Clock>,
) -> Result<Arc<ServerConfig>, TlsError> {
    refuse_foreign(own, trust)?;
    let chain = WebPkiClientVerifier::builder_with_provider(Arc::clone(&trust.roots), provider()).build()?;
    let verifier = Arc::new(VerifyClient { chain, domain: trust.domain.clone() });
    let mut config = ServerConfig::builder_with_details(provider(), Arc::new(TlsClock(Arc::clone(clock))))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(own.for_usage(Usage::Server)?);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

fn refuse_foreign(own: &Credentials, trust: &TrustBundle) -> Result<(), TlsError> {
    if own.spiffe().trust_domain() != trust.domain {
        return Err(
            IdentityError::TrustDomain { name: own.spiffe().clone(), want: trust.domain.clone() }.into()
        );
    }
    Ok(())
}

/// The client's side of TLS: who we are and whom we trust. Each connection adds the one name it expects.
pub struct ClientTls {
    own: Credentials,
    trust: TrustBundle,
    clock: Arc<dyn Clock>,
}

impl ClientTls {
    /// Our own name must be of the bundle's trust domain.
    pub fn new(own: Credentials, trust: TrustBundle, clock: Arc<dyn Clock>) -> Result<ClientTls, TlsError> {
        refuse_foreign(&own, &trust)?;
        own.for_usage(Usage::Client)?;
        Ok(ClientTls { own, trust, clock })
    }

    /// A configuration that speaks to the holder of exactly this name, and to nobody else.
    pub(crate) fn config(&self, server: &SpiffeId) -> Result<Arc<ClientConfig>, TlsError> {
        let provider = provider();
        let verifier = VerifyServer {
            roots: Arc::clone(&self.trust.roots),
            domain: self.trust.domain.clone(),
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

fn refused(error: IdentityError) -> rustls::Error {
    CertificateError::Other(OtherError(Arc::new(error))).into()
}

/// Finds our own refusal in an error of the library, which hides it from its text.
pub(crate) fn identity_error(error: &rustls::Error) -> Option<&IdentityError> {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(other)) => other.0.downcast_ref(),
        _ => None,
    }
}

/// TLS 1.2 is not offered, so this is never reached; if it ever were, it must not pass.
fn only_tls13() -> rustls::Error {
    rustls::Error::General("only TLS 1.3 is spoken here".into())
}

/// The library's verification of the chain, then ours of the name.
#[derive(Debug)]
struct VerifyClient {
    chain: Arc<dyn ClientCertVerifier>,
    domain: String,
}

impl ClientCertVerifier for VerifyClient {
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
        inspect_in(end_entity, Usage::Client, &self.domain).map_err(refused)?;
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

/// The chain up to the trust bundle, then the exact name. The DNS name or address that was dialled plays no part: it
/// says where a server is, not who it is.
#[derive(Debug)]
struct VerifyServer {
    roots: Arc<RootCertStore>,
    domain: String,
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
        let leaf = inspect_in(end_entity, Usage::Server, &self.domain).map_err(refused)?;
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
