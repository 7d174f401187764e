//! The configuration of an audit service's process, and the list of its sources, which is a file of its own because it grows while
//! the service runs.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use epigraph_audit::source::Enrolled;
use epigraph_core::{KeyName, Origin, Policy, SourceVKey, UnixMillis};
use epigraph_rpc::{Grant, SpiffeId};
use serde::Deserialize;

use super::questions::{Questions, RawQuestions, RawReader};
use super::tls::ProcessTls;
use super::{MAX_CONFIG_BYTES, RawDoor, RawGrant, RawListen, load_toml, load_toml_of};
use crate::cli::verify::read_policy;
use crate::failure::{Failure, Outcome};
use crate::observe::{RawTracing, Tracing};

/// The list of sources, in the service's directory.
pub const SOURCES_FILE: &str = "sources.toml";

/// 10,000 sources with the longest names.
const MAX_LIST_BYTES: u64 = 16 * MAX_CONFIG_BYTES;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    name: String,
    directory: PathBuf,
    key: Option<PathBuf>,
    wrapping_key: Option<PathBuf>,
    listen: RawDoor,
    metrics: Option<RawListen>,
    #[serde(default)]
    tracing: RawTracing,
    tls: ProcessTls,
    log: RawLog,
    authorize: Vec<RawGrant>,
    #[serde(default)]
    questions: RawQuestions,
    #[serde(default)]
    reader: Vec<RawReader>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLog {
    origin: String,
    address: String,
    server: String,
    policy: PathBuf,
}

/// The checked configuration of an audit service's process.
pub struct AuditConfig {
    /// The file that it was read from.
    pub file: PathBuf,
    /// The service's name, which is the name of the key under which it records reads.
    pub name: KeyName,
    /// Where its state is.
    pub directory: PathBuf,
    /// Its key file.
    pub key: PathBuf,
    /// The file with the key that wraps all others.
    pub wrapping_key: PathBuf,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Whether it says which calls there are.
    pub reflection: bool,
    /// Where health, readiness and metrics are, without TLS; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// How it wants to be heard.
    pub tracing: Tracing,
    /// Certificate, key and the CAs that it trusts; the certificate with which it calls the log.
    pub tls: ProcessTls,
    /// The log that the leaves go into.
    pub origin: Origin,
    /// Where the log is.
    pub log_address: String,
    /// Who must be there.
    pub log_server: SpiffeId,
    /// What the service asks of the log's checkpoints.
    pub policy: Policy,
    /// Who may do what.
    pub grants: Vec<Grant>,
    /// Who may ask about events, and under which rules.
    pub questions: Questions,
}

impl AuditConfig {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Outcome<AuditConfig> {
        let raw: RawConfig = load_toml(path)?;
        let bad = |what: String| Failure::usage(format!("{}: {what}", path.display()));
        let base = path.parent().unwrap_or(Path::new(""));
        let grant = |grant: RawGrant| grant.check().map_err(|error| bad(format!("[[authorize]]: {error}")));
        let name = KeyName::new(raw.name).map_err(|error| bad(format!("name: {error}")))?;
        let directory = base.join(raw.directory);
        let in_keys = |file: &str| directory.join("keys").join(file);
        let tls = raw.tls.relative_to(base).map_err(bad)?;
        let origin = Origin::new(raw.log.origin).map_err(|error| bad(format!("[log]: origin: {error}")))?;
        let policy = read_policy(&base.join(raw.log.policy))?;
        if !policy.logs().iter().any(|log| log.name().as_str() == origin.as_str()) {
            return Err(bad(format!("[log]: the policy has no `log` line for {origin}")));
        }
        Ok(AuditConfig {
            file: path.to_owned(),
            key: raw.key.map_or_else(|| in_keys("audit.key"), |key| base.join(key)),
            wrapping_key: raw.wrapping_key.map_or_else(|| in_keys("wrapping.key"), |key| base.join(key)),
            name,
            directory,
            listen: raw.listen.address,
            reflection: raw.listen.reflection,
            metrics: raw.metrics.map(|metrics| metrics.address),
            tracing: raw.tracing.check().map_err(bad)?,
            tls,
            origin,
            log_address: raw.log.address,
            log_server: raw.log.server.parse().map_err(|error| bad(format!("[log]: server: {error}")))?,
            policy,
            questions: Questions::check(raw.questions, raw.reader, base).map_err(bad)?,
            grants: raw.authorize.into_iter().map(grant).collect::<Outcome<_>>()?,
        })
    }

    /// Where the list of sources is.
    pub fn list(&self) -> PathBuf {
        self.directory.join(SOURCES_FILE)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawList {
    #[serde(default)]
    source: Vec<RawSource>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSource {
    vkey: String,
    owner: String,
    collector: String,
    enrolled_at_ms: u64,
    retired_at_ms: Option<u64>,
    #[serde(default = "default_heartbeat")]
    heartbeat_ms: u64,
}

fn default_heartbeat() -> u64 {
    60_000
}

/// Reads the list of sources.
pub fn load_sources(path: &Path) -> Outcome<Vec<Enrolled>> {
    let raw: RawList = load_toml_of(path, MAX_LIST_BYTES)?;
    let check = |source: RawSource| {
        let vkey: SourceVKey = source.vkey.parse().map_err(|error| format!("[[source]]: vkey: {error}"))?;
        let collector: Result<SpiffeId, _> = source.collector.parse();
        let collector =
            collector.map_err(|error| format!("[[source]] {}: collector: {error}", vkey.name()))?;
        Ok(Enrolled {
            vkey,
            owner: source.owner,
            collector: collector.as_str().to_owned(),
            enrolled_at: UnixMillis(source.enrolled_at_ms),
            retired_at: source.retired_at_ms.map(UnixMillis),
            heartbeat_ms: source.heartbeat_ms,
        })
    };
    let list: Result<Vec<_>, String> = raw.source.into_iter().map(check).collect();
    list.map_err(|what| Failure::usage(format!("{}: {what}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_commented_configuration_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/audit.toml");
        fs::copy(deploy, dir.path().join("audit.toml")).unwrap();
        let key = epigraph_core::SigningKey::from_seed(
            KeyName::new("audit.example/production").unwrap(),
            &zeroize::Zeroizing::new([7; 32]),
        );
        fs::write(dir.path().join("policy"), Policy::of_log(key.vkey().clone()).to_text()).unwrap();
        let config = AuditConfig::load(&dir.path().join("audit.toml")).unwrap();
        assert_eq!(config.key, Path::new("/var/lib/epigraph/audit/keys/audit.key"));
        assert_eq!(config.wrapping_key, Path::new("/var/lib/epigraph/audit/keys/wrapping.key"));
    }

    #[test]
    fn a_list_of_sources_says_what_is_wrong_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SOURCES_FILE);
        let key = epigraph_core::SourceKey::from_seed(
            KeyName::new("a-cluster").unwrap(),
            &zeroize::Zeroizing::new([7; 32]),
        );
        let source = format!(
            "[[source]]\nvkey = \"{}\"\nowner = \"a\"\ncollector = \"spiffe://a/b\"\nenrolled_at_ms = 1\n",
            key.vkey()
        );
        let check = |text: &str, expected: Result<usize, &str>| {
            fs::write(&path, text).unwrap();
            match (load_sources(&path), expected) {
                (Ok(list), Ok(sources)) => assert_eq!(list.len(), sources, "{text}"),
                (Err(failure), Err(says)) => assert!(failure.to_string().contains(says), "{text}: {failure}"),
                (got, _) => panic!("{text}: {}", got.is_ok()),
            }
        };
        check("", Ok(0));
        check(&source, Ok(1));
        check(&source.replace("spiffe://a/b", "somebody"), Err("collector"));
        check(&source.replace("a-cluster+", "a-cluster"), Err("vkey"));
        check(&format!("{source}more = 1"), Err("more"));
    }
}
