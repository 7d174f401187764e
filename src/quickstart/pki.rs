//! A throw-away CA and the certificates that it issues: P-256, one SPIFFE name each, one extended key usage each.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Context as _;
use epigraph_core::UnixMillis;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};

/// The CA and its certificates are valid this long: long enough to come back to a trial, short enough to forget.
const VALID: Duration = Duration::days(365);

/// A machine whose clock is a little behind must accept certificates that were made just now.
const BACKDATED: Duration = Duration::hours(1);

/// Whether a certificate is for accepting or for opening connections.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Server,
    Client,
}

/// The CA while it still has its key in memory.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    now: OffsetDateTime,
}

impl Authority {
    /// Makes a CA and writes `ca.pem` and `ca.key`.
    pub fn create(dir: &Path, name: &str, now: UnixMillis) -> anyhow::Result<Authority> {
        let now = OffsetDateTime::from_unix_timestamp(i64::try_from(now.0 / 1000)?)?;
        let mut params = params(name, now)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        write_new(&dir.join("ca.pem"), 0o644, &certificate.pem())?;
        write_new(&dir.join("ca.key"), 0o600, &key.serialize_pem())?;
        Ok(Authority { issuer: Issuer::new(params, key), now })
    }

    /// Issues a certificate with the SPIFFE name `spiffe` and writes `<stem>.pem` and `<stem>.key`.
    pub fn issue(&self, stem: &Path, spiffe: &str, purpose: Purpose) -> anyhow::Result<()> {
        let mut params = params(spiffe.rsplit('/').next().unwrap_or(spiffe), self.now)?;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.subject_alt_names = vec![SanType::URI(spiffe.try_into()?)];
        params.extended_key_usages = match purpose {
            Purpose::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Purpose::Server => {
                // Our clients check the SPIFFE name; stock clients check these.
                params.subject_alt_names.push(SanType::DnsName("localhost".try_into()?));
                params.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
                vec![ExtendedKeyUsagePurpose::ServerAuth]
            }
        };
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        write_new(&stem.with_extension("pem"), 0o644, &certificate.pem())?;
        write_new(&stem.with_extension("key"), 0o600, &key.serialize_pem())
    }
}

fn params(common_name: &str, now: OffsetDateTime) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Epigraph quickstart (throw-away)");
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = now - BACKDATED;
    params.not_after = now + VALID;
    Ok(params)
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
