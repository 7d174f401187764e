//! The configuration of a witness's process, and the list of its logs, which is a file of its own because it grows while
//! the witness runs.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use epigraph_core::{KeyName, Origin, VKey};
use epigraph_rpc::{Grant, SpiffeId};
use epigraph_witness::list::Listed;
use epigraph_witness::witness::Settings;
use serde::Deserialize;

use super::tls::ProcessTls;
use super::{MAX_CONFIG_BYTES, RawDoor, RawGrant, RawListen, load_toml, load_toml_of};
use crate::failure::{Failure, Outcome};
use crate::observe::{RawTracing, Tracing};

/// The list of logs, in the witness's directory.
pub const LOGS_FILE: &str = "logs.toml";

/// 16,384 logs with the longest names and addresses.
const MAX_LIST_BYTES: u64 = 16 * MAX_CONFIG_BYTES;

const MS_PER_DAY: u64 = 24 * 60 * 60 * 1_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    name: String,
    directory: PathBuf,
    key: Option<PathBuf>,
    listen: RawDoor,
    metrics: Option<RawListen>,
    #[serde(default)]
    tracing: RawTracing,
    tls: ProcessTls,
    #[serde(default)]
    limits: RawLimits,
    #[serde(default)]
    gate: RawGate,
    authorize: Vec<RawGrant>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawLimits {
    caller_per_second: u32,
    log_per_second: u32,
    max_idle_days: u64,
}

impl Default for RawLimits {
    fn default() -> RawLimits {
        RawLimits { caller_per_second: 2_000, log_per_second: 1_000, max_idle_days: 366 }
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawGate {
    unreachable: Unreachable,
}

#[derive(Deserialize, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Unreachable {
    #[default]
    Refuse,
    Pass,
}

/// The checked configuration of a witness's process.
pub struct WitnessConfig {
    /// The witness's name, which is the name of its key.
    pub name: KeyName,
    /// Where its state is.
    pub directory: PathBuf,
    /// Its key file.
    pub key: PathBuf,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Whether it says which calls there are.
    pub reflection: bool,
    /// Where health, readiness and metrics are, without TLS; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// How it wants to be heard.
    pub tracing: Tracing,
    /// Certificate, key and the CAs that it trusts; the certificate for its own calls to logs, without which it makes none.
    pub tls: ProcessTls,
    /// How far the clock may lie ahead of what it said last.
    pub max_idle_ms: u64,
    /// Quotas, and what the gate does with a silent log.
    pub settings: Settings,
    /// Who may do what.
    pub grants: Vec<Grant>,
}

impl WitnessConfig {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Outcome<WitnessConfig> {
        let raw: RawConfig = load_toml(path)?;
        let bad = |what: String| Failure::usage(format!("{}: {what}", path.display()));
        let base = path.parent().unwrap_or(Path::new(""));
        let grant = |grant: RawGrant| grant.check().map_err(|error| bad(format!("[[authorize]]: {error}")));
        let RawLimits { caller_per_second, log_per_second, max_idle_days } = raw.limits;
        if caller_per_second == 0 || log_per_second == 0 {
            return Err(bad("[limits]: caller_per_second and log_per_second are at least 1".into()));
        }
        if !(1..=36_500).contains(&max_idle_days) {
            return Err(bad("[limits]: max_idle_days is 1 to 36500".into()));
        }
        let name = KeyName::new(raw.name).map_err(|error| bad(format!("name: {error}")))?;
        let directory = base.join(raw.directory);
        let tls = raw.tls.relative_to(base).map_err(bad)?;
        Ok(WitnessConfig {
            key: raw.key.map_or_else(|| directory.join("keys/witness.key"), |key| base.join(key)),
            name,
            directory,
            listen: raw.listen.address,
            reflection: raw.listen.reflection,
            metrics: raw.metrics.map(|metrics| metrics.address),
            tracing: raw.tracing.check().map_err(bad)?,
            tls,
            max_idle_ms: max_idle_days * MS_PER_DAY,
            settings: Settings {
                caller_per_second,
                log_per_second,
                pass_unreachable: raw.gate.unreachable == Unreachable::Pass,
            },
            grants: raw.authorize.into_iter().map(grant).collect::<Outcome<_>>()?,
        })
    }

    /// Where the list of logs is.
    pub fn list(&self) -> PathBuf {
        self.directory.join(LOGS_FILE)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawList {
    #[serde(default)]
    log: Vec<RawListed>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawListed {
    origin: String,
    vkey: String,
    address: Option<String>,
    server: Option<String>,
    #[serde(default)]
    dial: bool,
}

/// Where a log is asked what it has published.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// `host:port`.
    pub address: String,
    /// The exact name in its certificate.
    pub server: SpiffeId,
    /// Whether its heads are followed, because it cannot call this witness.
    pub dial: bool,
}

/// Reads the list of logs. `can_call`: whether the witness has a certificate to call logs with.
pub fn load_list(path: &Path, can_call: bool) -> Outcome<Vec<(Listed, Option<Address>)>> {
    let raw: RawList = load_toml_of(path, MAX_LIST_BYTES)?;
    let check = |log: RawListed| {
        let origin = Origin::new(log.origin).map_err(|error| format!("origin: {error}"))?;
        let in_log = |what: String| format!("[[log]] {origin}: {what}");
        let vkey: VKey = log.vkey.parse().map_err(|error| in_log(format!("vkey: {error}")))?;
        let address = match (log.address, log.server) {
            (None, None) if log.dial => {
                return Err(in_log("dial takes an address and a server: where the log is called".into()));
            }
            (None, None) => None,
            (Some(address), Some(server)) => {
                if !can_call {
                    return Err(in_log(
                        "its address is of use only with [tls.client] in the configuration".into(),
                    ));
                }
                let server = server.parse().map_err(|error| in_log(format!("server: {error}")))?;
                Some(Address { address, server, dial: log.dial })
            }
            _ => {
                return Err(in_log(
                    "address and server go together: where the log is, and its SPIFFE name".into(),
                ));
            }
        };
        Ok((Listed { origin, vkey, can_ask: address.is_some() }, address))
    };
    let list: Result<Vec<_>, String> = raw.log.into_iter().map(check).collect();
    list.map_err(|what| Failure::usage(format!("{}: {what}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_commented_configuration_is_one() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/witness.toml");
        let config = WitnessConfig::load(&path).unwrap();
        assert_eq!(config.key, Path::new("/var/lib/epigraph/witness/keys/witness.key"));
        let RawLimits { caller_per_second, log_per_second, max_idle_days } = RawLimits::default();
        let defaults = Settings { caller_per_second, log_per_second, pass_unreachable: false };
        assert_eq!((config.settings, config.max_idle_ms), (defaults, max_idle_days * MS_PER_DAY));
    }

    #[test]
    fn a_list_says_what_is_wrong_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(LOGS_FILE);
        let check = |text: &str, expected: Result<usize, &str>| {
            fs::write(&path, text).unwrap();
            match (load_list(&path, false), expected) {
                (Ok(list), Ok(logs)) => assert_eq!(list.len(), logs, "{text}"),
                (Err(failure), Err(says)) => assert!(failure.to_string().contains(says), "{text}: {failure}"),
                (got, _) => panic!("{text}: {}", got.is_ok()),
            }
        };
        let key = epigraph_core::SigningKey::from_seed(
            KeyName::new("a").unwrap(),
            &zeroize::Zeroizing::new([7; 32]),
        );
        let log = format!("[[log]]\norigin = \"a\"\nvkey = \"{}\"\n", key.vkey());
        check("", Ok(0));
        check(&log, Ok(1));
        check("log = 3", Err("logs.toml"));
        check("[[log]]\norigin = \"a\"", Err("vkey"));
        check("[[log]]\norigin = \"\"\nvkey = \"\"", Err("origin: a name cannot be empty"));
        check("[[log]]\norigin = \"a\"\nvkey = \"a+00000000+AQ\"", Err("[[log]] a: vkey"));
        check(&format!("{log}address = \"x:1\""), Err("address and server go together"));
        check(&format!("{log}address = \"x:1\"\nserver = \"spiffe://td/x\""), Err("[tls.client]"));
        check(&format!("{log}dial = true"), Err("dial takes an address"));
        check(&format!("{log}more = 1"), Err("more"));
    }
}
