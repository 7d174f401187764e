//! A small certificate authority: P-256, one SPIFFE name a certificate, one extended key usage each.
//!
//! It is for trying out and for small installations; whoever runs a CA already keeps it, and this module shows what its
//! certificates must carry. It does not know who may do what: that is the `[[authorize]]` tables' affair.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use epigraph_core::UnixMillis;
use epigraph_rpc::SpiffeId;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};
use x509_parser::extensions::GeneralName;
use x509_parser::pem::parse_x509_pem;

/// A machine whose clock is a little behind must accept certificates that were made just now.
const BACKDATED: Duration = Duration::hours(1);

const CA_CERTIFICATE: &str = "ca.pem";
const CA_KEY: &str = "ca.key";

/// Whether a certificate is for accepting or for opening connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// Accepts connections; carries the DNS and IP names that stock clients check.
    Server,
    /// Opens connections.
    Client,
}

/// What a certificate is to say.
pub struct Subject<'a> {
    pub spiffe: &'a SpiffeId,
    pub purpose: Purpose,
    pub dns: &'a [String],
    pub ip: &'a [IpAddr],
    pub days: u32,
}

/// What an issued certificate says, read back to issue it again.
pub struct Names {
    pub spiffe: SpiffeId,
    purpose: Purpose,
    dns: Vec<String>,
    ip: Vec<IpAddr>,
    not_after: OffsetDateTime,
}

impl Names {
    /// Reads the first certificate of a PEM file, expired or not.
    pub fn of(path: &Path) -> anyhow::Result<Names> {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let (_, pem) =
            parse_x509_pem(&bytes).with_context(|| format!("{} holds no certificate", path.display()))?;
        let certificate = pem.parse_x509()?;
        let usage = certificate.extended_key_usage()?.context("the certificate has no extended key usage")?;
        let purpose = if usage.value.server_auth { Purpose::Server } else { Purpose::Client };
        let names = certificate.subject_alternative_name()?.context("the certificate names nobody")?;
        let (mut spiffe, mut dns, mut ip) = (None, Vec::new(), Vec::new());
        for name in &names.value.general_names {
            match name {
                GeneralName::URI(uri) => spiffe = Some(uri.parse()?),
                GeneralName::DNSName(name) => dns.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => {
                    let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
                    ip.push(v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from))?);
                }
                _ => {}
            }
        }
        let not_after = certificate.validity().not_after.to_datetime();
        Ok(Names {
            spiffe: spiffe.context("the certificate has no SPIFFE name")?,
            purpose,
            dns,
            ip,
            not_after,
        })
    }

    /// For how many more days the certificate is valid; negative if it has expired.
    pub fn days_left(&self, now: UnixMillis) -> i64 {
        date(now).map_or(i64::MIN, |now| (self.not_after - now).whole_days())
    }

    /// The same names for another certificate.
    pub fn subject(&self, days: u32) -> Subject<'_> {
        Subject { spiffe: &self.spiffe, purpose: self.purpose, dns: &self.dns, ip: &self.ip, days }
    }
}

/// The CA while it has its key in memory.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    now: OffsetDateTime,
}

impl Authority {
    /// Makes a CA and writes `ca.pem` and `ca.key`, which must not exist yet.
    pub fn create(dir: &Path, name: &str, days: u32, now: UnixMillis) -> anyhow::Result<Authority> {
        let now = date(now)?;
        let mut params = params(name, now, days);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        write_new(&dir.join(CA_CERTIFICATE), 0o644, &certificate.pem())?;
        write_new(&dir.join(CA_KEY), 0o600, &key.serialize_pem())?;
        Ok(Authority { issuer: Issuer::new(params, key), now })
    }

    /// Loads the CA that [`Authority::create`] wrote.
    pub fn load(dir: &Path, now: UnixMillis) -> anyhow::Result<Authority> {
        let read = |name: &str| {
            let path = dir.join(name);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let key =
            KeyPair::from_pem(&read(CA_KEY)?).with_context(|| format!("{CA_KEY} holds no usable key"))?;
        let issuer = Issuer::from_ca_cert_pem(&read(CA_CERTIFICATE)?, key)
            .with_context(|| format!("{CA_CERTIFICATE} holds no usable certificate"))?;
        Ok(Authority { issuer, now: date(now)? })
    }

    /// Issues a certificate and writes `<stem>.pem` and `<stem>.key`. With `replace` they take the place of older ones, the
    /// key first, each whole at any moment; without it they must not exist.
    pub fn issue(&self, stem: &Path, subject: &Subject, replace: bool) -> anyhow::Result<()> {
        let name = subject.spiffe.as_str();
        let mut params = params(name.rsplit('/').next().unwrap_or(name), self.now, subject.days);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.subject_alt_names = vec![SanType::URI(name.try_into()?)];
        params.extended_key_usages = match subject.purpose {
            Purpose::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Purpose::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
        };
        for dns in subject.dns {
            params.subject_alt_names.push(SanType::DnsName(dns.as_str().try_into()?));
        }
        params.subject_alt_names.extend(subject.ip.iter().copied().map(SanType::IpAddress));
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let write = if replace { replace_file } else { write_new };
        write(&with_extension(stem, "key"), 0o600, &key.serialize_pem())?;
        write(&with_extension(stem, "pem"), 0o644, &certificate.pem())
    }
}

/// `<stem>.<extension>`, whatever dots the stem has.
pub fn with_extension(stem: &Path, extension: &str) -> PathBuf {
    let mut name = stem.as_os_str().to_owned();
    name.push(".");
    name.push(extension);
    PathBuf::from(name)
}

fn date(now: UnixMillis) -> anyhow::Result<OffsetDateTime> {
    Ok(OffsetDateTime::from_unix_timestamp(i64::try_from(now.0 / 1000)?)?)
}

fn params(common_name: &str, now: OffsetDateTime, days: u32) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = now - BACKDATED;
    params.not_after = now + Duration::days(i64::from(days));
    params
}

/// Writes a file that must not exist yet.
pub fn write_new(path: &Path, mode: u32, content: &str) -> anyhow::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    }
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()
    };
    write().with_context(|| format!("cannot create {}", path.display()))
}

/// Writes a file in place of an older one, if there is one.
fn replace_file(path: &Path, mode: u32, content: &str) -> anyhow::Result<()> {
    let fresh = with_extension(path, "new");
    let _ = fs::remove_file(&fresh);
    write_new(&fresh, mode, content)?;
    fs::rename(&fresh, path).with_context(|| format!("cannot replace {}", path.display()))
}
