//! The configuration of a collector's process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use epigraph_collector::intake::{From, Input};
use epigraph_collector::pack::Kind;
use epigraph_core::{KeyName, Origin, Policy};
use epigraph_event::decode::mapped::Mapping;
use epigraph_rpc::SpiffeId;
use serde::Deserialize;

use super::doors::{self, DoorConfig, RawPushDoor};
use super::{RawListen, RawTls, load_toml};
use crate::cli::verify::read_policy;
use crate::failure::{Failure, Outcome};

/// How many bytes wait for delivery where nothing else is said, in MiB: hours of a busy cluster.
pub const DEFAULT_SPOOL_MIB: u64 = 1_024;

/// How often a collector says that it is alive where nothing else is said; what `audit enrol` expects.
const DEFAULT_HEARTBEAT_MS: u64 = 60_000;

/// The most files that one collector tails: their positions go into every frame of its spool.
const MAX_INPUTS: usize = 64;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    name: String,
    directory: PathBuf,
    origin: String,
    policy: PathBuf,
    #[serde(default = "default_spool")]
    spool_mib: u64,
    #[serde(default = "default_heartbeat")]
    heartbeat_ms: u64,
    audit: RawAudit,
    tls: RawTls,
    #[serde(default)]
    input: Vec<RawInput>,
    #[serde(default)]
    door: Vec<RawPushDoor>,
    metrics: Option<RawListen>,
}

fn default_spool() -> u64 {
    DEFAULT_SPOOL_MIB
}

fn default_heartbeat() -> u64 {
    DEFAULT_HEARTBEAT_MS
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAudit {
    address: String,
    server: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawInput {
    file: PathBuf,
    format: RawFormat,
    #[serde(default)]
    tenant: String,
    mapping: Option<Mapping>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RawFormat {
    Cloudtrail,
    K8sAudit,
    Jsonl,
}

/// The checked configuration of a collector's process.
pub struct CollectorConfig {
    /// The name of its key, which is the source's name.
    pub name: KeyName,
    /// Where its state is.
    pub directory: PathBuf,
    /// How many bytes may wait for delivery.
    pub spool_bytes: u64,
    /// How often it says that it is alive.
    pub heartbeat: Duration,
    /// The log that the events' leaves go into.
    pub origin: Origin,
    /// What is asked of the log's checkpoints.
    pub policy: Policy,
    /// Where the audit service is.
    pub audit_address: String,
    /// Who must be there.
    pub audit_server: SpiffeId,
    /// Who the collector proves to be, and whom it trusts.
    pub tls: RawTls,
    /// What it reads.
    pub inputs: Vec<Input>,
    /// Where senders push to.
    pub doors: Vec<DoorConfig>,
    /// Where health and metrics are served.
    pub metrics: Option<SocketAddr>,
}

impl CollectorConfig {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Outcome<CollectorConfig> {
        let raw: RawConfig = load_toml(path)?;
        let bad = |what: String| Failure::usage(format!("{}: {what}", path.display()));
        let base = path.parent().unwrap_or(Path::new(""));
        let origin = Origin::new(raw.origin).map_err(|error| bad(format!("origin: {error}")))?;
        let policy = read_policy(&base.join(raw.policy))?;
        if !policy.logs().iter().any(|log| log.name().as_str() == origin.as_str()) {
            return Err(bad(format!("the policy has no `log` line for {origin}: nothing could be verified")));
        }
        if !(16..=1 << 20).contains(&raw.spool_mib) {
            return Err(bad("spool_mib is 16 to 1048576".into()));
        }
        if !(1_000..=3_600_000).contains(&raw.heartbeat_ms) {
            return Err(bad("heartbeat_ms is 1000 to 3600000".into()));
        }
        if raw.input.len() > MAX_INPUTS {
            return Err(bad(format!("there are {} inputs, and {MAX_INPUTS} at most", raw.input.len())));
        }
        let inputs: Vec<Input> = raw.input.into_iter().map(|input| input.check(base)).collect();
        let is_twice = |place: usize| inputs[..place].iter().any(|input| input.from == inputs[place].from);
        if let Some(place) = (0..inputs.len()).find(|place| is_twice(*place)) {
            return Err(bad(format!("[[input]] {} is there twice", inputs[place].name())));
        }
        let doors = doors::check(raw.door, &raw.tls.trust_domain, base).map_err(bad)?;
        Ok(CollectorConfig {
            name: KeyName::new(raw.name).map_err(|error| bad(format!("name: {error}")))?,
            directory: base.join(raw.directory),
            spool_bytes: raw.spool_mib << 20,
            heartbeat: Duration::from_millis(raw.heartbeat_ms),
            origin,
            policy,
            audit_address: raw.audit.address,
            audit_server: raw
                .audit
                .server
                .parse()
                .map_err(|error| bad(format!("[audit]: server: {error}")))?,
            tls: raw.tls.relative_to(base),
            inputs,
            doors,
            metrics: raw.metrics.map(|metrics| metrics.address),
        })
    }
}

impl RawInput {
    fn check(self, base: &Path) -> Input {
        let kind = match self.format {
            RawFormat::Cloudtrail => Kind::CloudTrail,
            RawFormat::K8sAudit => Kind::K8sAudit,
            RawFormat::Jsonl => Kind::Json(Box::new(self.mapping.unwrap_or_default())),
        };
        Input { from: From::File(base.join(self.file)), kind, tenant: self.tenant }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commented_configuration_is_one() {
        let text = include_str!("../../deploy/collector.toml");
        let raw: RawConfig = toml::from_str(text).unwrap();
        assert_eq!((raw.spool_mib, raw.heartbeat_ms), (DEFAULT_SPOOL_MIB, DEFAULT_HEARTBEAT_MS));
        let kinds: Vec<Kind> = raw.input.into_iter().map(|input| input.check(Path::new("/")).kind).collect();
        assert!(matches!(kinds[..], [Kind::K8sAudit, Kind::Json(_)]));
        let doors = doors::check(raw.door, &raw.tls.trust_domain, Path::new("/")).unwrap();
        assert_eq!(doors.iter().filter(|door| door.tls.is_none()).count(), 2);
        assert!(doors.iter().all(|door| door.tls.is_some() || door.address.ip().is_loopback()));
        assert!(toml::from_str::<RawConfig>(&text.replace("spool_mib", "spool_gib")).is_err());
    }
}
