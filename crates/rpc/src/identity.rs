//! Who is on the other side: SPIFFE names, and the rules by which a certificate carries one.
//!
//! It owns the shape of names (`spiffe://<trust domain>/epigraph/<role>/<name>`) and of leaf certificates (SPIFFE
//! X509-SVID section 4 and 5). It does not know which CA signed the certificate, nor what a name may do.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use epigraph_core::UnixMillis;
use thiserror::Error;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

/// The longest SPIFFE name in bytes (SPIFFE ID section 2.3).
pub const MAX_SPIFFE_BYTES: usize = 2_048;

/// The longest trust domain in bytes (SPIFFE ID section 2.1).
pub const MAX_TRUST_DOMAIN_BYTES: usize = 255;

/// Names of one certificate of somebody else's PKI that are looked at.
const MAX_GUEST_NAMES: usize = 64;

const SCHEME: &str = "spiffe://";

/// A SPIFFE name in the one spelling that is allowed: no percent signs, no port, no query, no empty segment.
/// Equal names are equal bytes. Clones share the text: every call makes some.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    text: Arc<str>,
    path_at: usize,
}

/// Why a text is no SPIFFE name.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum SpiffeError {
    /// Above [`MAX_SPIFFE_BYTES`].
    #[error("a SPIFFE name has at most {MAX_SPIFFE_BYTES} bytes, this one has {0}")]
    TooLong(usize),
    /// Another scheme, or none.
    #[error("a SPIFFE name starts with spiffe://, {0:?} does not")]
    Scheme(String),
    /// An empty trust domain, or one with other characters.
    #[error(
        "{0:?} is no trust domain: 1 to {MAX_TRUST_DOMAIN_BYTES} of a-z 0-9 . - _ between spiffe:// and the path"
    )]
    TrustDomain(String),
    /// No path, or a segment that is empty, dots alone, or has other characters.
    #[error(
        "{0:?} is no path of a SPIFFE name: /segments of A-Z a-z 0-9 . - _ that are neither empty nor . nor .."
    )]
    Path(String),
}

impl SpiffeId {
    /// The trust domain: whose CA vouches for the name.
    pub fn trust_domain(&self) -> &str {
        &self.text[SCHEME.len()..self.path_at]
    }

    /// The path, with its leading slash.
    pub fn path(&self) -> &str {
        &self.text[self.path_at..]
    }

    /// The whole name.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the path has the form `/epigraph/<role>/<name>`.
    fn is_ours(&self) -> bool {
        let mut segments = self.path().split('/').skip(1);
        segments.next() == Some("epigraph") && segments.count() == 2
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeError;

    fn from_str(text: &str) -> Result<SpiffeId, SpiffeError> {
        if text.len() > MAX_SPIFFE_BYTES {
            return Err(SpiffeError::TooLong(text.len()));
        }
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| SpiffeError::Scheme(text.into()))?;
        let (domain, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if !is_trust_domain(domain) {
            return Err(SpiffeError::TrustDomain(domain.into()));
        }
        let path_is_good = path.strip_prefix('/').is_some_and(|path| path.split('/').all(is_segment));
        if !path_is_good {
            return Err(SpiffeError::Path(path.into()));
        }
        Ok(SpiffeId { text: text.into(), path_at: SCHEME.len() + domain.len() })
    }
}

pub(crate) fn is_trust_domain(text: &str) -> bool {
    let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
    (1..=MAX_TRUST_DOMAIN_BYTES).contains(&text.len()) && text.bytes().all(allowed)
}

fn is_segment(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    !matches!(text, "" | "." | "..") && text.bytes().all(allowed)
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Which side of a connection a certificate is for. Every certificate serves one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Usage {
    /// Extended key usage serverAuth.
    Server,
    /// Extended key usage clientAuth.
    Client,
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Usage::Server => "serverAuth",
            Usage::Client => "clientAuth",
        })
    }
}

/// What a leaf certificate says about its holder. Worth nothing before the chain to a trusted CA is verified.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// The holder's name.
    pub spiffe: SpiffeId,
    /// Valid from this time on.
    pub not_before: UnixMillis,
    /// Valid up to and including this second.
    pub not_after: UnixMillis,
}

/// Why a certificate does not name anybody.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum IdentityError {
    /// The other side sent none.
    #[error("there is no certificate")]
    NoCertificate,
    /// Not DER, or an extension that is not what it should be.
    #[error("the certificate cannot be parsed ({0})")]
    Malformed(String),
    /// Zero, two or more URIs.
    #[error("a certificate carries exactly one URI as its SPIFFE name, this one carries {0}")]
    UriCount(usize),
    /// The URI is no SPIFFE name.
    #[error("the URI in the certificate is refused: {0}")]
    Spiffe(#[from] SpiffeError),
    /// A SPIFFE name of another form.
    #[error("the name {0} has not the form spiffe://<trust domain>/epigraph/<role>/<name>")]
    Form(SpiffeId),
    /// A CA must not speak for itself.
    #[error("the certificate of {0} is a CA's, a leaf must not be one")]
    IsCa(SpiffeId),
    /// keyCertSign or cRLSign in the key usage.
    #[error("the certificate of {0} may sign other certificates or revocation lists, a leaf must not")]
    MaySign(SpiffeId),
    /// The certificate is for the other side of connections, or does not say.
    #[error("the certificate of {name} lacks the extended key usage {usage}")]
    Usage {
        /// Whose certificate.
        name: SpiffeId,
        /// What it lacks.
        usage: Usage,
    },
    /// A name that this trust bundle cannot vouch for.
    #[error("{name} is not of the trust domain {want}")]
    TrustDomain {
        /// The name.
        name: SpiffeId,
        /// The trust domain of the bundle.
        want: String,
    },
    /// Not on a door's list.
    #[error("the certificate is of {0:?}, and the door's `clients` name nobody of that name")]
    NotListed(String),
    /// On the deny list.
    #[error("{name} is denied by {what}; see the deny list")]
    Denied {
        /// Who is denied.
        name: SpiffeId,
        /// What the list has.
        what: &'static str,
    },
    /// Not the server that was called.
    #[error("this is {got}, not {want}")]
    OtherServer {
        /// The name that the server shows.
        got: SpiffeId,
        /// The name that was expected.
        want: SpiffeId,
    },
}

fn malformed(error: &dyn fmt::Display) -> IdentityError {
    IdentityError::Malformed(error.to_string())
}

fn parse(certificate: &[u8]) -> Result<X509Certificate<'_>, IdentityError> {
    let (rest, leaf) = X509Certificate::from_der(certificate).map_err(|error| malformed(&error))?;
    if rest.is_empty() { Ok(leaf) } else { Err(malformed(&"bytes follow it")) }
}

/// The name that a certificate (DER) claims.
pub(crate) fn name_of(certificate: &[u8]) -> Result<SpiffeId, IdentityError> {
    name_in(&parse(certificate)?)
}

fn name_in(leaf: &X509Certificate<'_>) -> Result<SpiffeId, IdentityError> {
    let names = leaf.subject_alternative_name().map_err(|error| malformed(&error))?;
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    if names.iter().any(|name| matches!(name, GeneralName::Invalid(..))) {
        return Err(malformed(&"a name in it is invalid"));
    }
    let uris: Vec<&str> = names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    let [uri] = uris[..] else { return Err(IdentityError::UriCount(uris.len())) };
    let spiffe: SpiffeId = uri.parse()?;
    if !spiffe.is_ours() {
        return Err(IdentityError::Form(spiffe));
    }
    Ok(spiffe)
}

/// The names that a certificate (DER) of somebody else's PKI claims: its URIs, its DNS names, its common name, in this order.
pub(crate) fn guest_names(certificate: &[u8]) -> Result<Vec<String>, IdentityError> {
    let leaf = parse(certificate)?;
    let names = leaf.subject_alternative_name().map_err(|error| malformed(&error))?;
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let hosts = names.iter().filter_map(|name| match name {
        GeneralName::DNSName(host) => Some(*host),
        _ => None,
    });
    let common = leaf.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    let claimed = uris.chain(hosts).chain(common);
    // A name that cannot be printed on one line is nobody's.
    let is_name = |name: &&str| !name.is_empty() && !name.contains(char::is_control);
    Ok(claimed.filter(is_name).take(MAX_GUEST_NAMES).map(ToOwned::to_owned).collect())
}

/// Reads a leaf certificate (DER) and checks it against the rules for `usage`. Whether the chain is good and the time
/// is right is the business of the TLS library.
pub fn inspect(certificate: &[u8], usage: Usage) -> Result<Leaf, IdentityError> {
    let leaf = parse(certificate)?;
    let spiffe = name_in(&leaf)?;

    let constraints = leaf.basic_constraints().map_err(|error| malformed(&error))?;
    if constraints.is_some_and(|extension| extension.value.ca) {
        return Err(IdentityError::IsCa(spiffe));
    }
    let key_usage = leaf.key_usage().map_err(|error| malformed(&error))?;
    if key_usage.is_some_and(|extension| extension.value.key_cert_sign() || extension.value.crl_sign()) {
        return Err(IdentityError::MaySign(spiffe));
    }
    let extended = leaf.extended_key_usage().map_err(|error| malformed(&error))?;
    let serves = extended.is_some_and(|extension| match usage {
        Usage::Server => extension.value.server_auth,
        Usage::Client => extension.value.client_auth,
    });
    if !serves {
        return Err(IdentityError::Usage { name: spiffe, usage });
    }

    let validity = leaf.validity();
    Ok(Leaf { spiffe, not_before: millis(validity.not_before), not_after: millis(validity.not_after) })
}

/// X.509 counts in seconds, and knows years before 1970.
pub(crate) fn millis(time: ASN1Time) -> UnixMillis {
    UnixMillis(u64::try_from(time.timestamp()).unwrap_or(0).saturating_mul(1_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_spelling() {
        let id: SpiffeId = "spiffe://example.org/epigraph/log/main-1".parse().unwrap();
        assert_eq!((id.trust_domain(), id.path()), ("example.org", "/epigraph/log/main-1"));
        assert_eq!(id.to_string(), "spiffe://example.org/epigraph/log/main-1");

        let check = |text: &str, expected: fn(&SpiffeError) -> bool| {
            assert!(text.parse::<SpiffeId>().as_ref().is_err_and(expected), "{text}");
        };
        for text in ["", "td/a", "https://td/a", "SPIFFE://td/a", " spiffe://td/a", "spiffe:/td/a"] {
            check(text, |error| matches!(error, SpiffeError::Scheme(_)));
        }
        let long = "d".repeat(256);
        for domain in ["", "Example.org", "td:443", "user@td", "é", &long] {
            check(&format!("spiffe://{domain}/a"), |error| matches!(error, SpiffeError::TrustDomain(_)));
        }
        for path in [
            "", "/", "//a", "/a/", "/a//b", "/.", "/a/..", "/a/./b", "/a b", "/a%20b", "/a?b", "/a#b", "/é",
            "/a\n",
        ] {
            check(&format!("spiffe://td{path}"), |error| matches!(error, SpiffeError::Path(_)));
        }
    }

    #[test]
    fn a_name_has_at_most_2048_bytes() {
        let name = |length: usize| format!("spiffe://a/{}", "x".repeat(length - "spiffe://a/".len()));
        assert!(name(2_048).parse::<SpiffeId>().is_ok());
        assert_eq!(name(2_049).parse::<SpiffeId>(), Err(SpiffeError::TooLong(2_049)));
    }

    #[test]
    fn our_names_have_three_segments() {
        let check = |path: &str, expected: bool| {
            let id: SpiffeId = format!("spiffe://a{path}").parse().unwrap();
            assert_eq!(id.is_ours(), expected, "{path}");
        };
        check("/epigraph/log/main", true);
        check("/epigraph/log", false);
        check("/epigraph/log/main/x", false);
        check("/other/log/main", false);
        check("/epigraph2/log/main", false);
    }

    /// The TLS library refuses CAs by itself in a handshake; this must not depend on it.
    #[test]
    fn a_certificate_that_may_act_as_a_ca_names_nobody() {
        use rcgen::{
            BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
            SanType,
        };
        let check =
            |is_ca: IsCa, may: Option<KeyUsagePurpose>, expected: fn(Result<Leaf, IdentityError>) -> bool| {
                let mut params = CertificateParams::default();
                let uri = "spiffe://td/epigraph/x/1".try_into().unwrap();
                params.subject_alt_names = vec![SanType::URI(uri)];
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
                params.is_ca = is_ca;
                params.key_usages.extend(may);
                let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
                assert!(expected(inspect(certificate.der(), Usage::Client)));
            };
        let is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        check(IsCa::ExplicitNoCa, Some(KeyUsagePurpose::DigitalSignature), |leaf| leaf.is_ok());
        check(is_ca, None, |leaf| matches!(leaf, Err(IdentityError::IsCa(_))));
        for may in [KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign] {
            check(IsCa::NoCa, Some(may), |leaf| matches!(leaf, Err(IdentityError::MaySign(_))));
        }
    }

    #[test]
    fn what_is_not_a_certificate_names_nobody() {
        for bytes in [&b""[..], b"\x30", b"\x30\x82\xff\xff", &[0; 64], &[0xff; 4_096]] {
            assert!(matches!(inspect(bytes, Usage::Client), Err(IdentityError::Malformed(_))));
        }
    }
}
