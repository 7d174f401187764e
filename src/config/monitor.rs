//! The configuration of a monitor's process: its logs, where each is looked at, and who is told.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use epigraph_core::{KeyName, Origin, Policy};
use epigraph_monitor::compare::Tuning;
use epigraph_monitor::finding::Severity;
use epigraph_monitor::monitor::PUBLISHED_WITHIN_MS;
use epigraph_monitor::sinks::{self, MAX_SINKS, address::Network};
use epigraph_rpc::limits::MAX_MONITORED_LOGS;
use epigraph_rpc::{Grant, SpiffeId};
use serde::Deserialize;

use super::tls::{ClientCertificate, ProcessTls};
use super::{RawDoor, RawGrant, RawListen, load_toml, not_of_drills};
use crate::cli::verify::read_policy;
use crate::failure::{Failure, Outcome};
use crate::observe::{RawTracing, Tracing};
use crate::sources::watch;

const MS_PER_HOUR: u64 = 60 * 60 * 1_000;

/// The longest name of a sink: it is the name of a directory.
const MAX_SINK_NAME_BYTES: usize = 64;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    name: String,
    directory: PathBuf,
    key: Option<PathBuf>,
    #[serde(default = "default_poll")]
    poll_ms: u64,
    #[serde(default = "default_published_within")]
    published_within_ms: u64,
    #[serde(default = "default_heartbeat")]
    heartbeat_ms: u64,
    listen: RawDoor,
    metrics: Option<RawListen>,
    #[serde(default)]
    tracing: RawTracing,
    tls: ProcessTls,
    log: Vec<RawLog>,
    #[serde(default)]
    webhook: Vec<RawWebhook>,
    #[serde(default)]
    alertmanager: Vec<RawAlertmanager>,
    authorize: Vec<RawGrant>,
}

fn default_poll() -> u64 {
    5_000
}

fn default_published_within() -> u64 {
    PUBLISHED_WITHIN_MS
}

fn default_heartbeat() -> u64 {
    60_000
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLog {
    origin: String,
    policy: PathBuf,
    #[serde(default = "default_full_audit")]
    full_audit_hours: f64,
    #[serde(default)]
    after: RawAfter,
    inbox: Option<PathBuf>,
    #[serde(default)]
    reader: Vec<RawReader>,
    #[serde(default)]
    witness: Vec<RawPeer>,
    #[serde(default)]
    monitor: Vec<RawPeer>,
    #[serde(default)]
    entries: RawEntries,
    audit: Option<RawAudit>,
}

/// What the entries of a log are.
#[derive(Deserialize, Default, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum RawEntries {
    #[default]
    Any,
    Audit,
}

/// The `[log.audit]` table.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAudit {
    address: String,
    server: String,
    #[serde(default = "default_sample_every")]
    sample_every_ms: u64,
}

fn default_sample_every() -> u64 {
    600_000
}

/// A week.
fn default_full_audit() -> f64 {
    168.0
}

/// The `[log.after]` table.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawAfter {
    stale_ms: u64,
    quorum_ms: u64,
    silent_ms: u64,
    skew_ms: u64,
    unreachable_ms: u64,
    behind_ms: u64,
}

impl Default for RawAfter {
    fn default() -> RawAfter {
        let tuning = Tuning::default();
        RawAfter {
            stale_ms: tuning.stale_after_ms,
            quorum_ms: tuning.quorum_after_ms,
            silent_ms: tuning.silent_after_ms,
            skew_ms: tuning.skew_ms,
            unreachable_ms: tuning.unreachable_after_ms,
            behind_ms: tuning.behind_after_ms,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawReader {
    name: String,
    address: String,
    server: String,
    client: Option<ClientCertificate>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPeer {
    name: String,
    address: String,
    server: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawWebhook {
    name: String,
    url: String,
    secret: PathBuf,
    trust_bundle: Option<PathBuf>,
    #[serde(default)]
    allow_networks: Vec<String>,
    #[serde(default)]
    least: RawSeverity,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAlertmanager {
    name: String,
    url: String,
    trust_bundle: Option<PathBuf>,
    #[serde(default)]
    allow_networks: Vec<String>,
    #[serde(default)]
    least: RawSeverity,
}

#[derive(Deserialize, Default, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum RawSeverity {
    #[default]
    Ticket,
    Page,
}

impl From<RawSeverity> for Severity {
    fn from(raw: RawSeverity) -> Severity {
        match raw {
            RawSeverity::Ticket => Severity::Warn,
            RawSeverity::Page => Severity::Page,
        }
    }
}

/// The checked configuration of a monitor's process.
pub struct MonitorConfig {
    /// The monitor's name, which is the name of its key.
    pub name: KeyName,
    /// Where its state is.
    pub directory: PathBuf,
    /// Its key file.
    pub key: PathBuf,
    /// How often each vantage point is asked.
    pub poll: Duration,
    /// How long a log has to publish what it acknowledged.
    pub published_within_ms: u64,
    /// How often the sinks are sent a sign of life.
    pub heartbeat: Duration,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Whether it says which calls there are.
    pub reflection: bool,
    /// Where health, readiness and metrics are, without TLS; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// How it wants to be heard.
    pub tracing: Tracing,
    /// Certificate, key and the CAs that it trusts; the certificate for its own calls.
    pub tls: ProcessTls,
    /// Its logs: one at least, each of another origin.
    pub logs: Vec<MonitoredLog>,
    /// Who is told beside the process's messages, each under another name.
    pub sinks: Vec<SinkConfig>,
    /// Who may do what.
    pub grants: Vec<Grant>,
}

/// One log.
pub struct MonitoredLog {
    /// Its name.
    pub origin: Origin,
    /// The monitor's own policy for it.
    pub policy: Policy,
    /// How often all is read again.
    pub full_audit_every_ms: u64,
    /// When what is late is a finding.
    pub tuning: Tuning,
    /// Where people put files.
    pub inbox: Option<PathBuf>,
    /// The log, under each identity.
    pub readers: Vec<ReaderConfig>,
    /// Its witnesses, by the names of their keys.
    pub witnesses: Vec<PeerConfig>,
    /// Other monitors.
    pub monitors: Vec<PeerConfig>,
    /// Whether its entries are the leaves of audit events, and nothing else.
    pub only_audit: bool,
    /// The audit service that puts them there.
    pub audit: Option<AuditPeer>,
}

/// An audit service that is asked.
pub struct AuditPeer {
    /// Where it is.
    pub peer: PeerConfig,
    /// How often one of its events is compared with its leaf; `None`: never.
    pub sample_every_ms: Option<u64>,
}

/// Somebody who is called.
pub struct PeerConfig {
    /// What it is called here.
    pub name: String,
    /// Where it listens, `host:port`.
    pub address: String,
    /// Who it must prove to be.
    pub server: SpiffeId,
}

/// The log, under one identity.
pub struct ReaderConfig {
    /// Where it is.
    pub peer: PeerConfig,
    /// The identity; `None`: the process's own.
    pub client: Option<ClientCertificate>,
}

/// Somebody who is told.
pub struct SinkConfig {
    /// Its name, which is a directory's.
    pub name: String,
    /// What it is.
    pub kind: SinkKind,
    /// The whole URL.
    pub url: String,
    /// The CAs of its certificate.
    pub trust_bundle: Option<PathBuf>,
    /// Networks that are not public, where it may be.
    pub allowed: Vec<Network>,
    /// What is less severe is not told.
    pub least: Severity,
}

/// What a sink is.
pub enum SinkKind {
    /// A webhook, and the file of its secret.
    Webhook(PathBuf),
    /// An Alertmanager.
    Alertmanager,
}

impl MonitorConfig {
    /// Reads and checks a file, and the policies that it names.
    pub fn load(path: &Path) -> Outcome<MonitorConfig> {
        let raw: RawConfig = load_toml(path)?;
        let bad = |what: String| Failure::usage(format!("{}: {what}", path.display()));
        let base = path.parent().unwrap_or(Path::new(""));
        let grant = |grant: RawGrant| grant.check().map_err(|error| bad(format!("[[authorize]]: {error}")));
        for (key, value, least, most) in [
            ("poll_ms", raw.poll_ms, 100, MS_PER_HOUR),
            ("published_within_ms", raw.published_within_ms, 1_000, 24 * MS_PER_HOUR),
            ("heartbeat_ms", raw.heartbeat_ms, 1_000, MS_PER_HOUR),
        ] {
            if !(least..=most).contains(&value) {
                return Err(bad(format!("{key} is {least} to {most}")));
            }
        }
        if !(1..=MAX_MONITORED_LOGS).contains(&raw.log.len()) {
            let logs = raw.log.len();
            return Err(bad(format!(
                "it has {logs} [[log]] tables; a monitor watches 1 to {MAX_MONITORED_LOGS} logs"
            )));
        }
        let logs: Vec<MonitoredLog> =
            raw.log.into_iter().map(|log| log.check(base)).collect::<Result<_, _>>().map_err(bad)?;
        let mut origins = BTreeSet::new();
        if let Some(twice) = logs.iter().find(|log| !origins.insert(log.origin.as_str())) {
            return Err(bad(format!("two [[log]] tables have the origin {}", twice.origin)));
        }
        if raw.tls.client.is_none() && logs.iter().any(MonitoredLog::calls_as_the_process) {
            return Err(bad(
                "[tls.client] is missing: the certificate and key with which the monitor calls logs, witnesses and monitors"
                    .into(),
            ));
        }
        let name = KeyName::new(raw.name).map_err(|error| bad(format!("name: {error}")))?;
        let directory = base.join(raw.directory);
        Ok(MonitorConfig {
            key: raw.key.map_or_else(|| directory.join("keys/monitor.key"), |key| base.join(key)),
            name,
            directory,
            poll: Duration::from_millis(raw.poll_ms),
            published_within_ms: raw.published_within_ms,
            heartbeat: Duration::from_millis(raw.heartbeat_ms),
            listen: raw.listen.address,
            reflection: raw.listen.reflection,
            metrics: raw.metrics.map(|metrics| metrics.address),
            tracing: raw.tracing.check().map_err(bad)?,
            tls: raw.tls.relative_to(base).map_err(bad)?,
            logs,
            sinks: check_sinks(raw.webhook, raw.alertmanager, base).map_err(bad)?,
            grants: raw.authorize.into_iter().map(grant).collect::<Outcome<_>>()?,
        })
    }
}

impl MonitoredLog {
    fn calls_as_the_process(&self) -> bool {
        let own = self.readers.iter().any(|reader| reader.client.is_none());
        own || !self.witnesses.is_empty() || !self.monitors.is_empty() || self.audit.is_some()
    }
}

impl RawLog {
    fn check(self, base: &Path) -> Result<MonitoredLog, String> {
        let origin = Origin::new(self.origin).map_err(|error| format!("origin: {error}"))?;
        not_of_drills(origin.as_str())?;
        let in_log = |what: String| format!("[[log]] {origin}: {what}");
        let policy =
            read_policy(&base.join(self.policy)).map_err(|error| in_log(format!("policy: {error}")))?;
        if self.reader.is_empty() {
            return Err(in_log(
                "it has no [[log.reader]] table: without one its entries are not read, and nothing is audited".into(),
            ));
        }
        // A second is for demos; from a hundred years on it is never.
        let full_audit_every_ms = (self.full_audit_hours * MS_PER_HOUR as f64) as u64;
        if !(1_000..=876_600 * MS_PER_HOUR).contains(&full_audit_every_ms) {
            return Err(in_log("full_audit_hours is 0.0003 to 876600".into()));
        }
        let known: BTreeSet<&str> =
            policy.witnesses().iter().map(|witness| witness.vkey.name().as_str()).collect();
        if let Some(stranger) = self.witness.iter().find(|witness| !known.contains(witness.name.as_str())) {
            return Err(in_log(format!(
                "[[log.witness]] {}: the policy has no witness whose vkey has this name",
                stranger.name
            )));
        }
        let peers = |table: &str, peers: Vec<RawPeer>| {
            let peers = peers.into_iter().map(RawPeer::check).collect::<Result<Vec<_>, _>>();
            peers.map_err(|what| in_log(format!("[[log.{table}]] {what}")))
        };
        let after = self.after;
        let audit = self.audit.map(|RawAudit { address, server, sample_every_ms }| {
            if !(sample_every_ms == 0 || (1_000..=24 * MS_PER_HOUR).contains(&sample_every_ms)) {
                return Err("sample_every_ms is 1000 to 86400000, or 0 for never".to_owned());
            }
            let peer = RawPeer { name: watch::REPORTER.into(), address, server }.check()?;
            Ok(AuditPeer { peer, sample_every_ms: (sample_every_ms > 0).then_some(sample_every_ms) })
        });
        let client = |client: ClientCertificate| client.relative_to(base);
        let reader = |reader: RawReader| {
            let RawReader { name, address, server, client: own } = reader;
            let peer = RawPeer { name, address, server }.check()?;
            Ok(ReaderConfig { peer, client: own.map(client) })
        };
        let readers = self.reader.into_iter().map(reader).collect::<Result<_, String>>();
        Ok(MonitoredLog {
            policy,
            full_audit_every_ms,
            tuning: Tuning {
                stale_after_ms: after.stale_ms,
                quorum_after_ms: after.quorum_ms,
                silent_after_ms: after.silent_ms,
                skew_ms: after.skew_ms,
                unreachable_after_ms: after.unreachable_ms,
                behind_after_ms: after.behind_ms,
            },
            inbox: self.inbox.map(|inbox| base.join(inbox)),
            readers: readers.map_err(|what| in_log(format!("[[log.reader]] {what}")))?,
            witnesses: peers("witness", self.witness)?,
            monitors: peers("monitor", self.monitor)?,
            only_audit: self.entries == RawEntries::Audit,
            audit: audit.transpose().map_err(|what| in_log(format!("[log.audit] {what}")))?,
            origin,
        })
    }
}

impl RawPeer {
    fn check(self) -> Result<PeerConfig, String> {
        let server = self.server.parse().map_err(|error| format!("{}: server: {error}", self.name))?;
        Ok(PeerConfig { name: self.name, address: self.address, server })
    }
}

fn check_sinks(
    webhooks: Vec<RawWebhook>,
    alertmanagers: Vec<RawAlertmanager>,
    base: &Path,
) -> Result<Vec<SinkConfig>, String> {
    let networks = |name: &str, networks: Vec<String>| {
        let parsed = networks.iter().map(|network| network.parse()).collect::<Result<Vec<Network>, _>>();
        parsed.map_err(|error| format!("{name}: allow_networks: {error}"))
    };
    let mut sinks = Vec::new();
    for webhook in webhooks {
        sinks.push(SinkConfig {
            kind: SinkKind::Webhook(base.join(webhook.secret)),
            url: webhook.url,
            trust_bundle: webhook.trust_bundle.map(|bundle| base.join(bundle)),
            allowed: networks(&webhook.name, webhook.allow_networks)?,
            least: webhook.least.into(),
            name: webhook.name,
        });
    }
    for alertmanager in alertmanagers {
        sinks.push(SinkConfig {
            kind: SinkKind::Alertmanager,
            url: format!("{}{}", alertmanager.url.trim_end_matches('/'), sinks::alertmanager::PATH),
            trust_bundle: alertmanager.trust_bundle.map(|bundle| base.join(bundle)),
            allowed: networks(&alertmanager.name, alertmanager.allow_networks)?,
            least: alertmanager.least.into(),
            name: alertmanager.name,
        });
    }
    // One place is that of the process's messages.
    if sinks.len() >= MAX_SINKS {
        return Err(format!(
            "it has {} webhooks and Alertmanagers, at most {} are possible",
            sinks.len(),
            MAX_SINKS - 1
        ));
    }
    let mut names = BTreeSet::from([sinks::log::NAME]);
    for SinkConfig { name, .. } in &sinks {
        let is_plain =
            name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        if !is_plain || !(1..=MAX_SINK_NAME_BYTES).contains(&name.len()) {
            return Err(format!(
                "{name:?} is no name of a webhook or Alertmanager: 1 to {MAX_SINK_NAME_BYTES} of a-z, 0-9 and -"
            ));
        }
        if !names.insert(name) {
            return Err(format!(
                "two webhooks or Alertmanagers have the name {name}, or it is that of the messages"
            ));
        }
    }
    Ok(sinks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// The commented configuration, with a policy that is there, and one text replaced by another.
    fn load(from: &str, to: &str) -> Outcome<MonitorConfig> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/monitor.toml");
        let text = fs::read_to_string(path).unwrap();
        assert!(text.contains(from), "{from}");
        let text = text.replacen(from, to, 1);
        let dir = tempfile::tempdir().unwrap();
        let log = epigraph_core::SigningKey::from_seed(
            KeyName::new("audit.example/production").unwrap(),
            &zeroize::Zeroizing::new([7; 32]),
        );
        let witness = epigraph_core::cosignature::CosigningKey::from_seed(
            KeyName::new("witness.example/w1").unwrap(),
            &zeroize::Zeroizing::new([8; 32]),
        );
        let policy = format!("log {}\nwitness w1 {}\nquorum w1\n", log.vkey(), witness.vkey());
        fs::write(dir.path().join("policy"), policy).unwrap();
        let config = dir.path().join("monitor.toml");
        fs::write(&config, text.replace("/etc/epigraph/monitor/production.policy", "policy")).unwrap();
        MonitorConfig::load(&config)
    }

    #[test]
    fn the_commented_configuration_is_one_and_has_the_defaults() {
        let config = load("", "").unwrap();
        assert_eq!(config.key, Path::new("/var/lib/epigraph/monitor/keys/monitor.key"));
        assert_eq!(config.poll, Duration::from_millis(default_poll()));
        assert_eq!(config.heartbeat, Duration::from_millis(default_heartbeat()));
        assert_eq!(config.published_within_ms, PUBLISHED_WITHIN_MS);
        let log = &config.logs[0];
        assert_eq!(log.full_audit_every_ms, 168 * MS_PER_HOUR);
        assert_eq!(log.tuning, Tuning::default());
        assert_eq!((log.readers.len(), log.witnesses.len(), log.monitors.len()), (2, 1, 1));
        assert!(!log.only_audit);
        assert_eq!(log.audit.as_ref().unwrap().sample_every_ms, Some(default_sample_every()));
        let urls: Vec<&str> = config.sinks.iter().map(|sink| sink.url.as_str()).collect();
        assert_eq!(urls, ["https://hooks.example/epigraph", "http://10.1.2.3:9093/api/v2/alerts"]);
        assert!(config.sinks.iter().all(|sink| sink.least == Severity::Warn));
    }

    #[test]
    fn a_configuration_says_what_is_wrong_with_it() {
        let check = |from: &str, to: &str, says: &str| {
            let Err(failure) = load(from, to) else { panic!("{to} was taken") };
            assert!(failure.to_string().contains(says), "{to}: {failure}");
        };
        check("poll_ms = 5000", "poll_ms = 99", "poll_ms is 100 to");
        check("heartbeat_ms = 60000", "heartbeat_ms = 0", "heartbeat_ms is 1000 to");
        check("full_audit_hours = 168", "full_audit_hours = 0", "full_audit_hours is 0.0003 to");
        check("full_audit_hours = 168", "full_audit_days = 7", "full_audit_days");
        check(
            "witness.example/w1\"\naddress",
            "w2\"\naddress",
            "[[log.witness]] w2: the policy has no witness",
        );
        check("name = \"two\"\naddress", "name = \"two\"\nadress", "adress");
        check("10.1.2.3/32", "10.1.2.3/24", "not a network");
        check("name = \"on-call\"", "name = \"../x\"", "is no name of a webhook");
        check("name = \"on-call\"", "name = \"log\"", "or it is that of the messages");
        check(
            "name = \"alertmanager\"",
            "name = \"on-call\"",
            "two webhooks or Alertmanagers have the name on-call",
        );
        check(
            "client = { certificate = \"/etc/epigraph/tls/client.pem\", key = \"/etc/epigraph/tls/client.key\" }",
            "",
            "[tls.client] is missing",
        );
        check("entries = \"any\"", "entries = \"some\"", "entries");
        check("sample_every_ms = 600000", "sample_every_ms = 999", "[log.audit] sample_every_ms is 1000 to");
        check("least = \"ticket\"", "least = \"all\"", "least");
        check("production.policy", "elsewhere.policy", "policy: ");
    }
}
