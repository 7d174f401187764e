//! Mutual TLS: key and certificate from files, whom to trust, and the two configurations made of them.
//!
//! TLS 1.3 only, HTTP/2 only, no resumption in either direction: a resumed session would carry a certificate that
//! nobody looked at again. Names are SPIFFE names, checked inside the handshake, so that a stranger is refused before
//! a byte of HTTP/2 is read.

mod client;
mod credentials;
mod crl;
mod deny;
mod files;
mod guests;
mod server;
mod trust;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use epigraph_core::{Clock, UnixMillis};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
use rustls::{CertificateError, OtherError};
use thiserror::Error;

use crate::identity::{IdentityError, SpiffeId};

pub use client::ClientTls;
pub use credentials::{Credentials, MAX_CERTIFICATES, MAX_PEM_BYTES};
pub use crl::{MAX_CRL_BYTES, MAX_CRLS, RevocationLists};
pub use deny::{DenyList, MAX_DENIED};
pub use files::{DomainFiles, Reload, Reloader, TlsFiles};
pub use guests::{GuestFiles, GuestPattern, GuestTls, MAX_GUEST_PATTERNS};
pub use server::ServerTls;
pub(crate) use server::Standing;
pub use trust::{ClientTrust, MAX_TRUST_DOMAINS, TrustBundle};

/// What the one application protocol is called in TLS.
const ALPN: &[u8] = b"h2";

/// Why TLS cannot be set up.
#[derive(Debug, Error)]
pub enum TlsError {
    /// The server's name is of a domain that nobody here vouches for.
    #[error("there is no trust bundle for the domain of {name}; there are some for {domains}")]
    NoBundle {
        /// The server.
        name: SpiffeId,
        /// The domains with a bundle.
        domains: String,
    },
    /// A file cannot be read.
    #[error("{path}: {error}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A file is larger than [`MAX_PEM_BYTES`] or [`MAX_CRL_BYTES`].
    #[error("{path}: more than {limit} bytes; is this the right file?")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit.
        limit: u64,
    },
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
    /// A trust domain stands twice in a configuration.
    #[error("the trust domain {0} stands twice; put all of its CAs into one bundle")]
    DomainTwice(String),
    /// Above [`MAX_TRUST_DOMAINS`].
    #[error("at most {MAX_TRUST_DOMAINS} trust domains are trusted at once, these are {0}")]
    TooManyDomains(usize),
    /// Our own certificate, which was good once, has expired.
    #[error(
        "the certificate in force ended at {not_after} and it is {now}, in seconds since 1970; issue a new one"
    )]
    Expired {
        /// Seconds.
        not_after: u64,
        /// Seconds.
        now: u64,
    },
    /// A revocation list is of no use.
    #[error("{file}: {problem}; nobody is let in on a guess, so fetch the CA's newest list")]
    Crl {
        /// What file.
        file: String,
        /// Why.
        problem: CrlProblem,
    },
    /// A CA has no revocation list although its trust domain has some.
    #[error(
        "there is no revocation list of the CA {ca:?} of the trust domain {domain}, so its clients could not be told from \
         revoked ones; add its list, or take the CA out of the bundle"
    )]
    CrlMissing {
        /// The CA.
        ca: String,
        /// Its trust domain.
        domain: String,
    },
    /// The deny list is not text.
    #[error("{0}: the deny list is not UTF-8 text; nobody is let in on a guess")]
    DenyListText(PathBuf),
    /// A line of the deny list that says nothing, or one too many.
    #[error(
        "{path}, line {line}: {text:?} denies nobody; write a SPIFFE name (or one that ends in /*), serial:<hexadecimal> or \
         key-sha256:<64 digits>, in at most {MAX_DENIED} lines"
    )]
    DenyList {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What stands there.
        text: String,
    },
    /// What the TLS library says.
    #[error("TLS: {0}")]
    Rustls(#[from] rustls::Error),
    /// What the verifier says of the trust bundle.
    #[error("the trust bundle is refused: {0}")]
    Bundle(#[from] rustls::server::VerifierBuilderError),
}

/// Why a revocation list is of no use.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum CrlProblem {
    /// Neither PEM nor DER, or not by RFC 5280.
    #[error("this is no revocation list ({0})")]
    Malformed(String),
    /// A newer one is due.
    #[error("the revocation list expired at {next_update} and it is {now}, in seconds since 1970")]
    Expired {
        /// Seconds.
        next_update: u64,
        /// Seconds.
        now: u64,
    },
    /// Of a CA of the bundle by name, and not by signature.
    #[error("the revocation list of {0:?} is not signed by that CA")]
    Signature(String),
    /// Two lists of one CA: only one of them would be looked at.
    #[error("there is another revocation list of the same CA")]
    Twice,
    /// Above [`MAX_CRLS`].
    #[error("there are more than {MAX_CRLS} revocation lists")]
    TooMany,
}

/// Passed by hand wherever it is needed: a provider installed for the whole process would be a hidden global.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The time by which certificates are judged.
struct TlsClock(Arc<dyn Clock>);

impl TimeProvider for TlsClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(unix_time(self.0.now()))
    }
}

fn unix_time(now: UnixMillis) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_millis(now.0))
}

impl fmt::Debug for TlsClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsClock")
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

/// Whether the revocation list of a CA was what spoke against a certificate.
pub(crate) fn is_revoked(error: &rustls::Error) -> bool {
    matches!(error, rustls::Error::InvalidCertificate(CertificateError::Revoked))
}

/// Our own words for a refusal, if it is ours.
pub(crate) fn why(error: &rustls::Error) -> String {
    identity_error(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// TLS 1.2 is not offered, so this is never reached; if it ever were, it must not pass.
fn only_tls13() -> rustls::Error {
    rustls::Error::General("only TLS 1.3 is spoken here".into())
}
