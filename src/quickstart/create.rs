//! A new quickstart directory: ports, a throw-away CA, configurations with comments for a newcomer, and initialised state.
//! Everything goes through the same code as `init` does.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;

use anyhow::Context as _;
use epigraph_core::{Entropy, Policy, UnixMillis, VKey};

use super::directory::TRUST_DOMAIN;
use super::role::{FAULTY, Role, THRESHOLD, client_spiffe};
use crate::config::ProcessConfig;
use crate::config::signer::SignerProcessConfig;
use crate::config::witness::WitnessConfig;
use crate::failure::Failure;
use crate::pki::{Authority, Purpose, Subject, write_new};
use crate::runtime::{self, SystemEntropy};
use crate::state;

/// The CA outlives every certificate that it renews.
const CA_DAYS: u32 = 3650;
pub const VALID_DAYS: u32 = 365;

/// Written last, so that a run which was cut off is not taken for a whole one.
pub const COMPLETE: &str = "README.txt";

const README: &str = "\
This directory was made by `epigraph quickstart`. Everything in it is THROW-AWAY: the CA, the certificates and all private
keys lie here in the open. Use it to try things out, never in production, and delete it when done.

  client.toml policy state/   what every client command can use: --profile <this directory>
  receipts/                   entries with their offline receipts: epigraph verify receipts/000003.tlog-proof
";

const README_ALONE: &str = "\
  log.toml log/ signer/       the log's configuration, its journal, and its signer
";

const README_ALL: &str = "\
  log.toml log/               the log's configuration, and its journal
  signer.toml signer/         the signer's: the log's key, and the newest head that it signed
  witness-1.toml witness-1/   a witness's: its key, and the newest head that it cosigned; of four
";

const README_END: &str = "\
  pki/                        the throw-away CA and the certificates it issued
  run/                        address, process id and messages of each running process
";

/// A certificate of this directory.
pub struct Certificate {
    /// Its file below `pki/`, without the extension.
    pub stem: String,
    spiffe: String,
    purpose: Purpose,
}

/// Everybody accepts connections, and who is not alone opens some. The client is nobody's server.
pub fn certificates(alone: bool) -> Vec<Certificate> {
    let roles = Role::of(alone);
    let of = |role: &Role, file, purpose| Certificate {
        stem: format!("{role}/{file}"),
        spiffe: role.spiffe(),
        purpose,
    };
    let servers = roles.iter().map(|role| of(role, "server", Purpose::Server));
    let callers = roles.iter().filter(|_| !alone).map(|role| of(role, "client", Purpose::Client));
    let client =
        Certificate { stem: "client/client".into(), spiffe: client_spiffe(), purpose: Purpose::Client };
    servers.chain(callers).chain([client]).collect()
}

/// What a new directory is made of.
struct Plan<'a> {
    dir: &'a Path,
    origin: String,
    /// Of each process, as [`Role::of`] orders them, and where it shows how it is doing.
    addresses: Vec<(Role, SocketAddr, SocketAddr)>,
    now: UnixMillis,
}

/// Fills an empty directory.
pub fn create(dir: &Path, alone: bool) -> anyhow::Result<()> {
    let mut random = [0; 4];
    SystemEntropy.fill(&mut random);
    let name = format!("{:08x}", u32::from_be_bytes(random));
    let roles = Role::of(alone);
    let mut addresses = free_addresses(roles.len() * 2)?;
    let metrics = addresses.split_off(roles.len());
    let addresses = roles.into_iter().zip(addresses).zip(metrics);
    let plan = Plan {
        dir,
        origin: format!("{TRUST_DOMAIN}/{name}"),
        addresses: addresses.map(|((role, address), metrics)| (role, address, metrics)).collect(),
        now: runtime::clock().now(),
    };
    plan.issue_certificates(&name, alone)?;
    fs::create_dir(dir.join("run"))?;
    let policy = dir.join("policy");
    if alone {
        let vkey = plan.init_log(&plan.log_alone()?)?;
        write_new(&policy, 0o644, &Policy::of_log(vkey).to_text())?;
    } else {
        // The log's configuration names the key that its signer makes, and the policy.
        let vkey = plan.init_signer()?;
        write_new(&policy, 0o644, &plan.init_witnesses(&vkey)?)?;
        plan.init_log(&plan.log_with_others()?)?;
    }
    plan.write("client.toml", &plan.client()?)?;
    let roles = if alone { README_ALONE } else { README_ALL };
    write_new(&dir.join(COMPLETE), 0o644, &[README, roles, README_END].concat())
}

/// Addresses on loopback whose ports the system chooses once; from then on they are this directory's. All are held until the
/// last is chosen, so that they differ.
fn free_addresses(count: usize) -> io::Result<Vec<SocketAddr>> {
    let held: Vec<_> =
        (0..count).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect::<io::Result<_>>()?;
    held.iter().map(TcpListener::local_addr).collect()
}

/// A failure as the errors of this module carry it.
fn failed(failure: Failure) -> anyhow::Error {
    anyhow::anyhow!("{failure}")
}

impl Plan<'_> {
    fn address(&self, role: Role) -> anyhow::Result<SocketAddr> {
        Ok(self.addresses_of(role)?.0)
    }

    fn addresses_of(&self, role: Role) -> anyhow::Result<(SocketAddr, SocketAddr)> {
        let found = self.addresses.iter().find(|(of, ..)| *of == role);
        found
            .map(|(_, address, metrics)| (*address, *metrics))
            .with_context(|| format!("no address for the {role}"))
    }

    fn issue_certificates(&self, name: &str, alone: bool) -> anyhow::Result<()> {
        let pki = self.dir.join("pki");
        fs::create_dir(&pki)?;
        let authority = Authority::create(&pki, &format!("Epigraph quickstart {name}"), CA_DAYS, self.now)?;
        for Certificate { stem, spiffe, purpose } in certificates(alone) {
            let (dns, ip) = match purpose {
                Purpose::Server => (vec!["localhost".to_owned()], vec![Ipv4Addr::LOCALHOST.into()]),
                Purpose::Client => (Vec::new(), Vec::new()),
            };
            let spiffe = &spiffe.parse()?;
            let subject = Subject { spiffe, purpose, dns: &dns, ip: &ip, days: VALID_DAYS };
            authority.issue(&pki.join(stem), &subject, false)?;
        }
        Ok(())
    }

    fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        write_new(&self.dir.join(name), 0o600, text)
    }

    fn init_log(&self, text: &str) -> anyhow::Result<VKey> {
        self.write("log.toml", text)?;
        let config = ProcessConfig::load(&self.dir.join("log.toml")).map_err(failed)?;
        let mut created = state::init(&config, self.now, &runtime::entropy()).map_err(failed)?;
        Ok(created.pop().context("no log was created")?.vkey)
    }

    fn init_signer(&self) -> anyhow::Result<VKey> {
        self.write("signer.toml", &self.signer()?)?;
        let config = SignerProcessConfig::load(&self.dir.join("signer.toml")).map_err(failed)?;
        let (new, entropy) = (state::signer::Start::New, runtime::entropy());
        let mut created = state::signer::init(&config, None, &new, self.now, &entropy).map_err(failed)?;
        Ok(created.pop().context("no signer was created")?.vkey)
    }

    /// Returns the policy: the log, and how many of its witnesses must cosign.
    fn init_witnesses(&self, log: &VKey) -> anyhow::Result<String> {
        let (mut witnesses, mut names) = (String::new(), String::new());
        for role in Role::witnesses() {
            let file = format!("{role}.toml");
            self.write(&file, &self.witness(role)?)?;
            let config = WitnessConfig::load(&self.dir.join(&file)).map_err(failed)?;
            let vkey = state::witness::init(&config, &*runtime::entropy()).map_err(failed)?;
            let listed = format!(
                "\n[[log]]\norigin = \"{}\"\nvkey = \"{log}\"\naddress = \"{}\"\nserver = \"{}\"\n",
                self.origin,
                self.address(Role::Log)?,
                Role::Log.spiffe()
            );
            OpenOptions::new().append(true).open(config.list())?.write_all(listed.as_bytes())?;
            witnesses += &format!("witness {role} {vkey}\n");
            names += &format!(" {role}");
        }
        Ok(format!("log {log}\n{witnesses}group witnesses {THRESHOLD}{names}\nquorum witnesses\n"))
    }

    /// The beginning of every configuration of a process that serves.
    fn serving(&self, role: Role) -> anyhow::Result<String> {
        let (address, metrics) = self.addresses_of(role)?;
        Ok(format!(
            "[listen]\naddress = \"{address}\"\n# Plain HTTP: /healthz, /readyz, /metrics.\n[metrics]\naddress = \"{metrics}\"\n"
        ))
    }

    fn log_alone(&self) -> anyhow::Result<String> {
        let signer = "signer = { directory = \"signer\", key = \"signer/keys/log.key\" }\n";
        self.log(&tls(Role::Log, false), signer, "")
    }

    fn log_with_others(&self) -> anyhow::Result<String> {
        let mut others = format!(
            "\
# The signer is a process of its own: it has the log's private key, and signs only what extends the last thing it signed.
signer = {{ address = \"{}\", server = \"{}\", vkey_file = \"signer/keys/log.vkey\" }}
# Nothing is published before so many witnesses have cosigned as this file says.
policy = \"policy\"
# So many of the witnesses may lie: after a start the log asks enough of them to find out if its own disk was put back.
faulty = {FAULTY}
",
            self.address(Role::Signer)?,
            Role::Signer.spiffe()
        );
        let mut grants = grant(
            "The signer asks what is published, after each of its starts.",
            &Role::Signer.spiffe(),
            "signer",
            &self.origin,
        );
        others += &self.asked_witnesses()?;
        for role in Role::witnesses() {
            grants += &grant("So does this witness.", &role.spiffe(), "witness", &self.origin);
        }
        self.log(&tls(Role::Log, true), &others, &grants)
    }

    /// A table for each witness.
    fn asked_witnesses(&self) -> anyhow::Result<String> {
        let table = |role: Role| {
            let (name, address, server) = (self.witness_name(role), self.address(role)?, role.spiffe());
            Ok(format!(
                "\n[[log.witness]]\nname = \"{name}\"\naddress = \"{address}\"\nserver = \"{server}\"\n"
            ))
        };
        Role::witnesses().map(table).collect()
    }

    fn log(&self, tls: &str, others: &str, grants: &str) -> anyhow::Result<String> {
        let origin = &self.origin;
        let (listen, client) = (self.serving(Role::Log)?, client_spiffe());
        Ok(format!(
            r#"# The log of this quickstart: what `epigraph serve log --config log.toml` reads. Paths are relative to this file.
directory = "log"

{listen}
{tls}
[[log]]
origin = "{origin}"
# A grown tree is signed at once while somebody waits for it, else after this long.
checkpoint_interval_ms = 1000
# The journal's segment files are written with zeros before they are used; 64 in production.
segment_mib = 16
{others}
# Who may do what. Nobody may do anything that no table allows.
[[authorize]]
spiffe = "{client}"
roles = ["appender", "reader"]
logs = ["{origin}"]
{grants}"#
        ))
    }

    fn signer(&self) -> anyhow::Result<String> {
        let (listen, tls, origin) = (self.serving(Role::Signer)?, tls(Role::Signer, true), &self.origin);
        let (address, server) = (self.address(Role::Log)?, Role::Log.spiffe());
        let grant = grant("Nobody but the log has anything signed.", &server, "log", origin);
        let witnesses = self.asked_witnesses()?;
        Ok(format!(
            r#"# The signer of this quickstart: what `epigraph serve signer --config signer.toml` reads. Paths are relative to this file.
# In earnest it runs on another machine than the log, so that whoever takes over the log's machine has no key.
directory = "signer"

{listen}
{tls}
[[log]]
origin = "{origin}"
key = "signer/keys/log.key"
# The log, which is asked after each start what it has published: a signer whose directory was put back finds out.
address = "{address}"
server = "{server}"
# And so are the witnesses of this policy, of which so many may lie: then nobody can put back the signer and the log together.
policy = "policy"
faulty = {FAULTY}
{witnesses}{grant}"#
        ))
    }

    fn witness_name(&self, role: Role) -> String {
        format!("{}/{role}", self.origin)
    }

    fn witness(&self, role: Role) -> anyhow::Result<String> {
        let (listen, tls, name) = (self.serving(role)?, tls(role, true), self.witness_name(role));
        let grants = [
            grant("The log has its checkpoints cosigned.", &Role::Log.spiffe(), "log", &self.origin),
            grant(
                "The signer asks what was cosigned, after each of its starts.",
                &Role::Signer.spiffe(),
                "signer",
                &self.origin,
            ),
            grant("The client may ask what was cosigned.", &client_spiffe(), "reader", &self.origin),
        ];
        Ok(format!(
            r#"# A witness of this quickstart: what `epigraph serve witness --config {role}.toml` reads. Paths are relative to this file.
# In earnest each witness is run by somebody else. Its logs are listed in {role}/logs.toml.
name = "{name}"
directory = "{role}"

{listen}
{tls}{}"#,
            grants.concat()
        ))
    }

    fn client(&self) -> anyhow::Result<String> {
        let (origin, address, server) = (&self.origin, self.address(Role::Log)?, Role::Log.spiffe());
        let mut witnesses = String::new();
        for role in Role::witnesses().filter(|role| self.address(*role).is_ok()) {
            witnesses += &format!(
                "\n[[witness]]\nname = \"{}\"\naddress = \"{}\"\nserver = \"{}\"\n",
                self.witness_name(role),
                self.address(role)?,
                role.spiffe()
            );
        }
        if !witnesses.is_empty() {
            witnesses.insert_str(0, "\n# Where `witness status` asks what the witnesses hold.");
        }
        Ok(format!(
            r#"# A client of the log of this quickstart: what every command with `--profile` reads. Paths are relative to this file.
origin = "{origin}"
address = "{address}"
server = "{server}"
policy = "policy"
state = "state"

[tls]
certificate = "pki/client/client.pem"
key = "pki/client/client.key"
trust_bundle = "pki/ca.pem"
trust_domain = "{TRUST_DOMAIN}"
{witnesses}"#
        ))
    }
}

/// The `[tls]` table of a process, and what it opens connections with.
fn tls(role: Role, calls: bool) -> String {
    let table = format!(
        r#"[tls]
certificate = "pki/{role}/server.pem"
key = "pki/{role}/server.key"
trust_bundle = "pki/ca.pem"
trust_domain = "{TRUST_DOMAIN}"
"#
    );
    if !calls {
        return table;
    }
    format!(
        r#"{table}
# For the connections that it opens itself.
[tls.client]
certificate = "pki/{role}/client.pem"
key = "pki/{role}/client.key"
"#
    )
}

fn grant(why: &str, spiffe: &str, role: &str, origin: &str) -> String {
    format!("\n# {why}\n[[authorize]]\nspiffe = \"{spiffe}\"\nroles = [\"{role}\"]\nlogs = [\"{origin}\"]\n")
}
