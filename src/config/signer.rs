//! The configuration file of a signer process: one TOML, unknown keys refused, paths relative to the file.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use epigraph_core::KeyName;
use epigraph_rpc::{Grant, SpiffeId};
use serde::Deserialize;

use super::tls::ProcessTls;
use super::{MAX_LOGS, RawDoor, RawGrant, RawListen, load_toml};
use crate::failure::{Failure, Outcome};
use crate::observe::{RawTracing, Tracing};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    directory: PathBuf,
    listen: RawDoor,
    metrics: Option<RawListen>,
    #[serde(default)]
    tracing: RawTracing,
    tls: ProcessTls,
    log: Vec<RawLog>,
    authorize: Vec<RawGrant>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLog {
    origin: String,
    key: PathBuf,
    address: String,
    server: String,
}

/// The checked configuration of a signer process.
pub struct SignerProcessConfig {
    /// Its directory.
    pub directory: PathBuf,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Whether it says which calls there are.
    pub reflection: bool,
    /// Where health, readiness and metrics are, without TLS; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// How it wants to be heard.
    pub tracing: Tracing,
    /// Certificates, keys and the CAs that it trusts.
    pub tls: ProcessTls,
    /// Who may do what.
    pub grants: Vec<Grant>,
    /// The logs that it signs for: at least one, at most [`MAX_LOGS`], each of another origin.
    pub logs: Vec<SignedLog>,
}

/// A log that a signer process signs for.
pub struct SignedLog {
    /// The log's name.
    pub origin: KeyName,
    /// Its key file.
    pub key: PathBuf,
    /// Where the log process listens, `host:port`: what it has published is compared with what the signer holds.
    pub address: String,
    /// Who the log process must prove to be.
    pub server: SpiffeId,
}

impl SignerProcessConfig {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Outcome<SignerProcessConfig> {
        let raw: RawConfig = load_toml(path)?;
        let bad = |what: String| Failure::usage(format!("{}: {what}", path.display()));
        let base = path.parent().unwrap_or(Path::new(""));
        if !(1..=MAX_LOGS).contains(&raw.log.len()) {
            let message =
                format!("it has {} [[log]] tables; a process signs for 1 to {MAX_LOGS} logs", raw.log.len());
            return Err(bad(message));
        }
        if raw.tls.client.is_none() {
            return Err(bad(
                "[tls.client] is missing: the certificate and key with which the signer asks the logs what they have published"
                    .into(),
            ));
        }
        let grant = |grant: RawGrant| grant.check().map_err(|error| bad(format!("[[authorize]]: {error}")));
        let logs: Vec<SignedLog> =
            raw.log.into_iter().map(|log| log.check(base)).collect::<Result<_, _>>().map_err(bad)?;
        let mut origins = BTreeSet::new();
        if let Some(twice) = logs.iter().find(|log| !origins.insert(log.origin.as_str())) {
            return Err(bad(format!("two [[log]] tables have the origin {}", twice.origin)));
        }
        Ok(SignerProcessConfig {
            directory: base.join(raw.directory),
            listen: raw.listen.address,
            reflection: raw.listen.reflection,
            metrics: raw.metrics.map(|metrics| metrics.address),
            tracing: raw.tracing.check().map_err(bad)?,
            tls: raw.tls.relative_to(base).map_err(bad)?,
            grants: raw.authorize.into_iter().map(grant).collect::<Outcome<_>>()?,
            logs,
        })
    }
}

impl RawLog {
    fn check(self, base: &Path) -> Result<SignedLog, String> {
        let origin = KeyName::new(self.origin).map_err(|error| format!("origin: {error}"))?;
        let server = self.server.parse().map_err(|error| format!("[[log]] {origin}: server: {error}"))?;
        Ok(SignedLog { key: base.join(self.key), address: self.address, server, origin })
    }
}
