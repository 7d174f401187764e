//! The quickstart's directory: made once, found again by every later run.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use epigraph_core::{Entropy, Policy};
use epigraph_store::lock::DirLock;

use crate::config::ProcessConfig;
use crate::failure::{Failure, Kind, Outcome};
use crate::pki::{Authority, Names, Purpose, Subject, write_new};
use crate::profile::Profile;
use crate::runtime::{self, SystemEntropy};
use crate::state;

/// The CA outlives every certificate that it renews.
const CA_DAYS: u32 = 3650;
const VALID_DAYS: u32 = 365;

/// A certificate is renewed when it is valid for less than this.
const RENEW_DAYS: u32 = 30;

const TRUST_DOMAIN: &str = "epigraph.quickstart";

/// Written last, so that a run which was cut off is not taken for a whole one.
const COMPLETE: &str = "README.txt";

const README: &str = "\
This directory was made by `epigraph quickstart`. Everything in it is THROW-AWAY: the CA, the certificates and the
log's signing key lie here in the open. Use it to try things out, never in production, and delete it when done.

  client.toml policy state/   what every client command can use: --profile <this directory>
  receipts/                   entries with their offline receipts: epigraph verify receipts/000003.tlog-proof
  log.toml log/ signer/       the log's configuration, its journal, and its signer
  pki/                        the throw-away CA and the certificates it issued
  run/                        address, process id and messages of the running log
";

/// A prepared directory, locked against a second quickstart.
pub struct Directory {
    pub path: PathBuf,
    pub origin: String,
    pub vkey: String,
    pub is_new: bool,
    _lock: DirLock,
}

impl Directory {
    /// Finds the directory, or makes it with keys, certificates, configuration and an initialised log.
    pub fn prepare(path: &Path) -> Outcome<Directory> {
        let exists = fs::exists(path).map_err(|error| cannot_use(path, &error))?;
        let empty = || fs::read_dir(path).map(|mut entries| entries.next().is_none());
        let is_new = !exists || empty().map_err(|error| cannot_use(path, &error))?;
        if !is_new && !path.join(COMPLETE).exists() {
            return Err(Failure::usage(format!(
                "{} is not a quickstart directory, or it was not made to the end: choose another with --dir, or delete it",
                path.display()
            )));
        }
        if is_new {
            let create = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
            create.map_err(|error| cannot_use(path, &error))?;
        }
        let lock = DirLock::acquire(path).map_err(|error| {
            Failure::state(format!(
                "a quickstart is already running here: {error}. Stop it, or choose another --dir"
            ))
        })?;
        if is_new {
            create(path).map_err(|error| Failure::new(Kind::State, format_args!("{error:#}")))?;
        }
        if !is_new {
            renew(path).map_err(|error| {
                Failure::new(Kind::State, format_args!("cannot renew the certificates: {error:#}"))
            })?;
        }
        let Profile { origin, policy, .. } = Profile::load(path)?;
        let vkey = policy.logs().first().map(ToString::to_string).unwrap_or_default();
        Ok(Directory { path: path.to_owned(), origin: origin.as_str().to_owned(), vkey, is_new, _lock: lock })
    }

    /// The configuration of the log's process.
    pub fn log_config(&self) -> PathBuf {
        self.path.join("log.toml")
    }

    /// Where the log's address, process id and messages are kept.
    pub fn run_file(&self, extension: &str) -> PathBuf {
        self.path.join("run").join(format!("log.{extension}"))
    }
}

fn cannot_use(path: &Path, error: &std::io::Error) -> Failure {
    Failure::usage(format!("cannot use the directory {}: {error}. Choose another with --dir", path.display()))
}

/// A certificate for loopback.
fn issue(
    authority: &Authority,
    stem: &Path,
    spiffe: &str,
    purpose: Purpose,
    replace: bool,
) -> anyhow::Result<()> {
    let (dns, ip) = match purpose {
        Purpose::Server => (vec!["localhost".to_owned()], vec![[127, 0, 0, 1].into()]),
        Purpose::Client => (Vec::new(), Vec::new()),
    };
    let subject = Subject { spiffe: &spiffe.parse()?, purpose, dns: &dns, ip: &ip, days: VALID_DAYS };
    authority.issue(stem, &subject, replace)
}

/// Issues what has expired, or will soon, again: somebody came back to an old trial.
fn renew(dir: &Path) -> anyhow::Result<()> {
    let now = runtime::clock().now();
    for stem in ["pki/log/server", "pki/client/client"] {
        let names = Names::of(&dir.join(stem).with_extension("pem"))?;
        if names.days_left(now) < i64::from(RENEW_DAYS) {
            Authority::load(&dir.join("pki"), now)?.issue(
                &dir.join(stem),
                &names.subject(VALID_DAYS),
                true,
            )?;
            tracing::info!(name = %names.spiffe, "the certificate was renewed");
        }
    }
    Ok(())
}

fn create(dir: &Path) -> anyhow::Result<()> {
    let mut random = [0; 4];
    SystemEntropy.fill(&mut random);
    let name = format!("{:08x}", u32::from_be_bytes(random));
    let origin = format!("{TRUST_DOMAIN}/{name}");
    // The system chooses free ports once; from then on they are this log's. Both are held, so that they differ.
    let (listen, metrics) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
    let (port, metrics_port) = (listen.local_addr()?.port(), metrics.local_addr()?.port());
    drop((listen, metrics));

    let pki = dir.join("pki");
    fs::create_dir(&pki)?;
    let now = runtime::clock().now();
    let authority = Authority::create(&pki, &format!("Epigraph quickstart {name}"), CA_DAYS, now)?;
    let spiffe = |role: &str| format!("spiffe://{TRUST_DOMAIN}/epigraph/{role}/quickstart");
    issue(&authority, &pki.join("log/server"), &spiffe("log"), Purpose::Server, false)?;
    issue(&authority, &pki.join("client/client"), &spiffe("appender"), Purpose::Client, false)?;

    fs::create_dir(dir.join("run"))?;
    write_new(
        &dir.join("log.toml"),
        0o600,
        &format!(
            r#"# The log of this quickstart: what `epigraph serve log --config log.toml` reads. Paths are relative to this file.
directory = "log"

[listen]
address = "127.0.0.1:{port}"

# Plain HTTP: /healthz, /readyz, /metrics.
[metrics]
address = "127.0.0.1:{metrics_port}"

[tls]
certificate = "pki/log/server.pem"
key = "pki/log/server.key"
trust_bundle = "pki/ca.pem"
trust_domain = "{TRUST_DOMAIN}"

[[log]]
origin = "{origin}"
# A grown tree is signed at once while somebody waits for it, else after this long.
checkpoint_interval_ms = 1000
# The journal's segment files are written with zeros before they are used; 64 in production.
segment_mib = 16
signer = {{ directory = "signer", key = "signer/keys/log.key" }}

# Who may do what. Nobody may do anything that no table allows.
[[authorize]]
spiffe = "{}"
roles = ["appender", "reader"]
logs = ["{origin}"]
"#,
            spiffe("appender")
        ),
    )?;
    let failed = |failure: Failure| anyhow::anyhow!("{failure}");
    let config = ProcessConfig::load(&dir.join("log.toml")).map_err(failed)?;
    let created = state::init(&config, now, &runtime::entropy()).map_err(failed)?;
    let [state::Created { vkey, .. }] =
        <[_; 1]>::try_from(created).map_err(|_| anyhow::anyhow!("not one log"))?;
    write_new(
        &dir.join("client.toml"),
        0o600,
        &format!(
            r#"# A client of the log of this quickstart: what every command with `--profile` reads. Paths are relative to this file.
origin = "{origin}"
address = "127.0.0.1:{port}"
server = "{}"
policy = "policy"
state = "state"

[tls]
certificate = "pki/client/client.pem"
key = "pki/client/client.key"
trust_bundle = "pki/ca.pem"
trust_domain = "{TRUST_DOMAIN}"
"#,
            spiffe("log")
        ),
    )?;
    write_new(&dir.join("policy"), 0o644, &Policy::of_log(vkey).to_text())?;
    write_new(&dir.join(COMPLETE), 0o644, README)
}
