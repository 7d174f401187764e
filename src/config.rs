//! The configuration file of the log process, which may run several logs: one TOML, unknown keys refused, paths relative to the file. What is
//! read here is checked here; the rest of the program sees ready values.

pub mod audit;
pub mod collector;
pub mod doors;
pub mod monitor;
pub mod signer;
pub mod tls;
pub mod witness;
pub mod witnessing;

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use epigraph_core::evidence::DRILL_ORIGIN;
use epigraph_core::{KeyName, VKey};
use epigraph_rpc::{Grant, GrantError, Logs, SpiffeId};
use epigraph_sequencer::machine::Limits;
use serde::Deserialize;

use self::tls::ProcessTls;
use crate::failure::{Failure, Outcome};
use crate::observe::{RawTracing, Tracing};
use witnessing::{RawWitness, WitnessingConfig};

/// A configuration file has a few hundred lines at most.
const MAX_CONFIG_BYTES: u64 = 1024 * 1024;

/// Logs in one process (DESIGN section 1): each has threads, caches and a signer's directory of its own.
pub const MAX_LOGS: usize = 64;

/// The smallest segment that holds a frame of the largest batch, its header and the segment's own.
const MIN_SEGMENT_MIB: u64 = 16;
/// A segment is written with zeros before it is used: larger ones take longer without saving anything.
const MAX_SEGMENT_MIB: u64 = 1024;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    directory: PathBuf,
    listen: RawDoor,
    metrics: Option<RawListen>,
    #[serde(default)]
    tracing: RawTracing,
    tls: ProcessTls,
    #[serde(default)]
    limits: RawLimits,
    log: Vec<RawLog>,
    authorize: Vec<RawGrant>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawListen {
    address: SocketAddr,
}

/// The `[listen]` table.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDoor {
    address: SocketAddr,
    #[serde(default)]
    reflection: bool,
}

/// The `[tls]` table of clients.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawTls {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub trust_bundle: PathBuf,
    pub trust_domain: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawLimits {
    unpublished_max_entries: u64,
    unpublished_max_age_ms: u64,
}

impl Default for RawLimits {
    fn default() -> RawLimits {
        RawLimits { unpublished_max_entries: 10_000_000, unpublished_max_age_ms: 600_000 }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLog {
    origin: String,
    #[serde(default = "default_interval")]
    checkpoint_interval_ms: u64,
    #[serde(default = "default_refresh")]
    refresh_interval_ms: u64,
    #[serde(default = "default_segment")]
    segment_mib: u64,
    unpublished_max_entries: Option<u64>,
    unpublished_max_age_ms: Option<u64>,
    signer: RawSigner,
    policy: Option<PathBuf>,
    faulty: Option<usize>,
    #[serde(default)]
    witness: Vec<RawWitness>,
}

fn default_interval() -> u64 {
    1_000
}

/// A quarter of the hour after which a monitor calls a head stale: so two rounds may fail before anybody is called.
fn default_refresh() -> u64 {
    900_000
}

fn default_segment() -> u64 {
    64
}

/// Either `directory` and `key`, or `address`, `server` and one of the last two.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSigner {
    directory: Option<PathBuf>,
    key: Option<PathBuf>,
    address: Option<String>,
    server: Option<String>,
    vkey: Option<String>,
    vkey_file: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGrant {
    spiffe: String,
    roles: Vec<String>,
    logs: Vec<String>,
}

impl RawGrant {
    /// `logs = ["*"]` means every log of this process, also those to come.
    fn check(self) -> Result<Grant, GrantError> {
        let logs = if self.logs == ["*"] { Logs::All } else { Logs::Only(self.logs.into_iter().collect()) };
        let roles = self.roles.iter().map(|role| role.parse()).collect::<Result<_, _>>()?;
        Ok(Grant { spiffe: self.spiffe.parse()?, roles, logs })
    }
}

/// The checked configuration of a log process.
pub struct ProcessConfig {
    /// Its directory.
    pub directory: PathBuf,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Whether it says which calls there are.
    pub reflection: bool,
    /// Where health, readiness and metrics are, without TLS; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// What it says while it runs, and where its traces go.
    pub tracing: Tracing,
    /// Certificate, key and the CAs that it trusts.
    pub tls: ProcessTls,
    /// Who may do what.
    pub grants: Vec<Grant>,
    /// Its logs: at least one, at most [`MAX_LOGS`], each of another origin.
    pub logs: Vec<LogConfig>,
}

/// The checked configuration of one log.
pub struct LogConfig {
    /// The log's name.
    pub origin: KeyName,
    /// Where its files are: `<directory>/<hex sha256(origin)>`.
    pub directory: PathBuf,
    /// How far it runs ahead of publication.
    pub limits: Limits,
    /// How long a head waits for publication when nobody waits for it.
    pub checkpoint_interval: Duration,
    /// How old cosignatures become before a log that does not grow asks for younger ones.
    pub refresh_interval: Duration,
    /// The size of a journal segment; taken by `init`, then read from the log's own directory.
    pub segment_bytes: u64,
    /// Who signs for it.
    pub signer: SignerConfig,
    /// Who must cosign; `None`: nobody, its own signature is enough.
    pub witnessing: Option<WitnessingConfig>,
}

impl LogConfig {
    /// How many witnesses may lie at a start.
    pub fn faulty(&self) -> usize {
        self.witnessing.as_ref().map_or(0, |witnessing| witnessing.faulty)
    }
}

/// The signer of a log.
pub enum SignerConfig {
    /// In this process.
    Embedded(EmbeddedConfig),
    /// In a process of its own.
    Remote(Box<RemoteConfig>),
}

/// A signer in the log's process.
#[derive(Clone)]
pub struct EmbeddedConfig {
    /// Its directory.
    pub directory: PathBuf,
    /// The log's key file.
    pub key: PathBuf,
}

/// A signer in a process of its own.
pub struct RemoteConfig {
    /// Where it listens, `host:port`.
    pub address: String,
    /// Who it must prove to be.
    pub server: SpiffeId,
    /// The log's public key.
    pub vkey: VKey,
}

impl ProcessConfig {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Outcome<ProcessConfig> {
        let raw: RawConfig = load_toml(path)?;
        let bad = |what: String| Failure::usage(format!("{}: {what}", path.display()));
        let base = path.parent().unwrap_or(Path::new(""));
        let grant = |grant: RawGrant| grant.check().map_err(|error| bad(format!("[[authorize]]: {error}")));
        let directory = base.join(raw.directory);
        if !(1..=MAX_LOGS).contains(&raw.log.len()) {
            let message =
                format!("it has {} [[log]] tables; a process runs 1 to {MAX_LOGS} logs", raw.log.len());
            return Err(bad(message));
        }
        let logs: Vec<LogConfig> = raw
            .log
            .into_iter()
            .map(|log| log.check(base, &directory, &raw.limits))
            .collect::<Result<_, _>>()
            .map_err(bad)?;
        all_differ(&logs).map_err(bad)?;
        let calls = |log: &&LogConfig| {
            let asks = log.witnessing.as_ref().is_some_and(WitnessingConfig::calls);
            asks || matches!(log.signer, SignerConfig::Remote(_))
        };
        if let (Some(log), None) = (logs.iter().find(calls), &raw.tls.client) {
            return Err(bad(format!(
                "[[log]] {}: its signer or witnesses are other processes, and [tls.client] is missing: the certificate and key \
                 with which this process calls them",
                log.origin
            )));
        }
        Ok(ProcessConfig {
            directory,
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

/// No log has the name that a monitor's drills are about: whatever is found of it is taken for a rehearsal.
fn not_of_drills(origin: &str) -> Result<(), String> {
    match origin {
        DRILL_ORIGIN => Err(format!(
            "origin: {DRILL_ORIGIN} is what monitors call the log of their drills: choose another"
        )),
        _ => Ok(()),
    }
}

impl RawLog {
    fn check(self, base: &Path, directory: &Path, defaults: &RawLimits) -> Result<LogConfig, String> {
        let origin = KeyName::new(self.origin).map_err(|error| format!("origin: {error}"))?;
        not_of_drills(origin.as_str())?;
        let in_log = |what: String| format!("[[log]] {origin}: {what}");
        if !(10..=3_600_000).contains(&self.checkpoint_interval_ms) {
            return Err(in_log("checkpoint_interval_ms is 10 to 3600000".into()));
        }
        // Longer than a witness repeats itself, shorter than anybody takes a log for alive.
        if !(10_000..=86_400_000).contains(&self.refresh_interval_ms) {
            return Err(in_log("refresh_interval_ms is 10000 to 86400000".into()));
        }
        if !(MIN_SEGMENT_MIB..=MAX_SEGMENT_MIB).contains(&self.segment_mib) {
            return Err(in_log(format!("segment_mib is {MIN_SEGMENT_MIB} to {MAX_SEGMENT_MIB}")));
        }
        let limits = Limits {
            unpublished_max_entries: self.unpublished_max_entries.unwrap_or(defaults.unpublished_max_entries),
            unpublished_max_age_ms: self.unpublished_max_age_ms.unwrap_or(defaults.unpublished_max_age_ms),
        };
        let signer = self.signer.check(base, &origin).map_err(in_log)?;
        if let SignerConfig::Embedded(EmbeddedConfig { directory: signer, .. }) = &signer {
            if signer.starts_with(directory) {
                return Err(in_log(signer_inside_log(signer)));
            }
            if directory.starts_with(signer) {
                return Err(in_log(log_inside_signer(directory)));
            }
        }
        let witnessing = witnessing::check(base, self.policy, self.faulty, self.witness).map_err(in_log)?;
        Ok(LogConfig {
            witnessing,
            directory: directory.join(origin.to_origin().hash().to_string()),
            limits,
            checkpoint_interval: Duration::from_millis(self.checkpoint_interval_ms),
            refresh_interval: Duration::from_millis(self.refresh_interval_ms),
            segment_bytes: self.segment_mib * 1024 * 1024,
            signer,
            origin,
        })
    }
}

impl RawSigner {
    fn check(self, base: &Path, origin: &KeyName) -> Result<SignerConfig, String> {
        let RawSigner { directory, key, address, server, vkey, vkey_file } = self;
        let (address, server, vkey) = match (directory, key, address, server, vkey, vkey_file) {
            (Some(directory), Some(key), None, None, None, None) => {
                let (directory, key) = (base.join(directory), base.join(key));
                return Ok(SignerConfig::Embedded(EmbeddedConfig { directory, key }));
            }
            (None, None, Some(address), Some(server), Some(vkey), None) => (address, server, vkey),
            (None, None, Some(address), Some(server), None, Some(file)) => {
                (address, server, read_vkey(&base.join(file))?)
            }
            _ => {
                return Err("signer has either `directory` and `key`, for one in this process, or `address`, `server` and \
                            one of `vkey` and `vkey_file`, for a signer process"
                    .into());
            }
        };
        let vkey: VKey = vkey.parse().map_err(|error| format!("signer.vkey: {error}"))?;
        if vkey.name() != origin {
            return Err(format!("signer.vkey is named {}: a log's key carries the log's name", vkey.name()));
        }
        let server = server.parse().map_err(|error| format!("signer.server: {error}"))?;
        Ok(SignerConfig::Remote(Box::new(RemoteConfig { address, server, vkey })))
    }
}

/// A `.vkey` file, as `keygen` and `init` write it: one line.
fn read_vkey(path: &Path) -> Result<String, String> {
    let cannot = |why: String| format!("cannot read the vkey from {}: {why}", path.display());
    let length = fs::metadata(path).map_err(|error| cannot(error.to_string()))?.len();
    if length > MAX_CONFIG_BYTES {
        return Err(cannot("it is too long".into()));
    }
    let text = fs::read_to_string(path).map_err(|error| cannot(error.to_string()))?;
    Ok(text.trim_end_matches('\n').to_owned())
}

/// Two logs share neither a name nor an embedded signer's directory: a store of heads has one owner.
fn all_differ(logs: &[LogConfig]) -> Result<(), String> {
    let (mut origins, mut signers) = (BTreeSet::new(), BTreeSet::new());
    for log in logs {
        if !origins.insert(log.origin.as_str()) {
            return Err(format!("two [[log]] tables have the origin {}", log.origin));
        }
        if let SignerConfig::Embedded(signer) = &log.signer
            && !signers.insert(&signer.directory)
        {
            return Err(format!(
                "two [[log]] tables have the signer directory {}: each log's embedded signer needs one of its own",
                signer.directory.display()
            ));
        }
    }
    Ok(())
}

/// Why the signer's directory must not lie in the log's, and what to do about it.
pub fn signer_inside_log(signer_directory: &Path) -> String {
    format!(
        "the signer's directory {} lies inside the log's: whoever restores an old copy of one would restore both, and \
         nobody could notice. Put it beside, best on another disk",
        signer_directory.display()
    )
}

/// Why the log's directory must not lie in the signer's.
pub fn log_inside_signer(directory: &Path) -> String {
    format!(
        "the log's directory {} lies inside the signer's: whoever restores an old copy of one would restore both, and \
         nobody could notice. Put them beside each other, best on two disks",
        directory.display()
    )
}

impl RawTls {
    /// Resolves the paths against the directory of the file they stand in.
    pub fn relative_to(self, base: &Path) -> RawTls {
        RawTls {
            certificate: base.join(self.certificate),
            key: base.join(self.key),
            trust_bundle: base.join(self.trust_bundle),
            trust_domain: self.trust_domain,
        }
    }
}

/// Reads a TOML file into its raw form.
pub fn load_toml<T: serde::de::DeserializeOwned>(path: &Path) -> Outcome<T> {
    load_toml_of(path, MAX_CONFIG_BYTES)
}

/// The same for a file that may have this many bytes.
fn load_toml_of<T: serde::de::DeserializeOwned>(path: &Path, max_bytes: u64) -> Outcome<T> {
    let cannot = |error: std::io::Error| Failure::usage(format!("cannot read {}: {error}", path.display()));
    if fs::metadata(path).map_err(cannot)?.len() > max_bytes {
        return Err(Failure::usage(format!("{} is too long for a configuration file", path.display())));
    }
    let text = fs::read_to_string(path).map_err(cannot)?;
    toml::from_str(&text)
        .map_err(|error| Failure::usage(format!("{}: {}", path.display(), error.to_string().trim_end())))
}
