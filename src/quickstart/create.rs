//! A new quickstart directory: ports, a throw-away CA, configurations with comments for a newcomer, and initialised state.
//! Everything goes through the same code as `init` does.

mod audit;
mod files;

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::Context as _;
use epigraph_core::{Entropy, Hash, Policy, UnixMillis, VKey};
use tokio::net::TcpSocket;

pub use audit::{SAMPLE_FILE, SAMPLE_ID, SAMPLE_QUESTION};

use super::directory::TRUST_DOMAIN;
use super::role::{ASKERS, Cast, READERS, Role, THRESHOLD, client_spiffe, collector_spiffe, reader_spiffe};

use crate::config::ProcessConfig;
use crate::config::monitor::MonitorConfig;
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

/// In a demo, how long nothing new may be shown until the monitor says so: nobody wants to wait an hour.
pub const STALE_AFTER_MS: u64 = 5_000;

/// What the monitor asks of a checkpoint.
pub const MONITOR_POLICY: &str = "monitor-policy";

/// The secret that the monitor's webhook shares with its receiver.
pub const WEBHOOK_SECRET: &str = "webhook.secret";

pub const README: &str = "\
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
  monitor.toml monitor/       the monitor's: its key, what it was shown, what it found, and the evidence
  audit.toml audit/           the audit service's: its keys, and audit events, encrypted
  collector.toml collector/   a collector's: the key under which it signs events, and those not delivered yet
  sources                     the public keys of those who sign events
  developer/ responder/       client directories of two who may see less: --profile <this directory>/developer
  cloudtrail-sample.jsonl     made-up audit events, to try `epigraph collect` with
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

/// Everybody accepts connections, and who is not alone opens some; the monitor does so under several names. The client is
/// nobody's server.
pub fn certificates(roles: &[Role]) -> Vec<Certificate> {
    let client = |stem: String, spiffe| Certificate { stem, spiffe, purpose: Purpose::Client };
    let servers = roles.iter().map(|role| Certificate {
        stem: format!("{role}/server"),
        spiffe: role.spiffe(),
        purpose: Purpose::Server,
    });
    let calls = |role: &&Role| roles.len() > 1 && **role != Role::Monitor;
    let callers = roles.iter().filter(calls).map(|role| client(format!("{role}/client"), role.spiffe()));
    let readers = READERS.into_iter().filter(|_| roles.contains(&Role::Monitor));
    let readers = readers.map(|name| client(format!("monitor/{name}"), reader_spiffe(name)));
    let collector =
        roles.contains(&Role::Audit).then(|| client("collector/client".into(), collector_spiffe()));
    let askers = ASKERS.into_iter().filter(|_| roles.contains(&Role::Audit));
    let askers = askers.map(|name| client(format!("{name}/client"), reader_spiffe(name)));
    let people = collector.into_iter().chain(askers).chain([client("client/client".into(), client_spiffe())]);
    servers.chain(callers).chain(readers).chain(people).collect()
}

/// What a new directory is made of.
pub struct Plan<'a> {
    dir: &'a Path,
    /// What is random about its names.
    name: String,
    origin: String,
    cast: Cast,
    /// Of each process, as [`Cast::roles`] orders them, and where it shows how it is doing.
    addresses: Vec<(Role, SocketAddr, SocketAddr)>,
    /// Where the monitor's alarms go besides its own log.
    webhook: Option<SocketAddr>,
    now: UnixMillis,
    ports: Ports,
}

/// Ports that are kept for those who will listen there: a socket is bound to each and never listens. Whoever asks the system for any port, or
/// calls somebody from one, gets another.
pub type Ports = Vec<TcpSocket>;

/// Fills an empty directory.
pub fn create(dir: &Path, cast: Cast) -> anyhow::Result<Ports> {
    let plan = Plan::begin(dir, cast, None, &[])?;
    plan.finish(&[])?;
    if cast != Cast::Alone {
        ASKERS.iter().try_for_each(|person| plan.person(person))?;
    }
    let roles = if cast == Cast::Alone { README_ALONE } else { README_ALL };
    write_new(&dir.join(COMPLETE), 0o644, &[README, roles, README_END].concat())?;
    Ok(plan.ports)
}

/// Addresses on loopback whose ports the system chooses once; from then on they are this directory's.
fn free_addresses(count: usize) -> io::Result<(Vec<SocketAddr>, Ports)> {
    let bound = |_| {
        let socket = TcpSocket::new_v4()?;
        // Two sockets may have one address if both say so and the other does not listen.
        socket.set_reuseaddr(true)?;
        socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
        Ok(socket)
    };
    let ports: Ports = (0..count).map(bound).collect::<io::Result<_>>()?;
    Ok((ports.iter().map(TcpSocket::local_addr).collect::<io::Result<_>>()?, ports))
}

/// A failure as the errors of this module carry it.
fn failed(failure: Failure) -> anyhow::Error {
    anyhow::anyhow!("{failure}")
}

impl<'a> Plan<'a> {
    /// Names, ports and certificates: everybody's, and those of people who only read.
    pub fn begin(
        dir: &'a Path,
        cast: Cast,
        webhook: Option<SocketAddr>,
        people: &[&str],
    ) -> anyhow::Result<Plan<'a>> {
        let mut random = [0; 4];
        SystemEntropy.fill(&mut random);
        let name = format!("{:08x}", u32::from_be_bytes(random));
        let roles = cast.roles();
        let (mut addresses, ports) = free_addresses(roles.len() * 2)?;
        let metrics = addresses.split_off(roles.len());
        let addresses = roles.into_iter().zip(addresses).zip(metrics);
        let plan = Plan {
            dir,
            origin: format!("{TRUST_DOMAIN}/{name}"),
            name,
            cast,
            addresses: addresses.map(|((role, address), metrics)| (role, address, metrics)).collect(),
            webhook,
            now: runtime::clock().now(),
            ports,
        };
        plan.issue_certificates(people)?;
        fs::create_dir(dir.join("run"))?;
        Ok(plan)
    }

    /// Configurations and state of everybody; of those who lie, the configuration alone: what they keep, and their keys, are
    /// their own affair.
    pub fn finish(&self, liars: &[(Role, VKey)]) -> anyhow::Result<()> {
        let policy = self.dir.join("policy");
        let lying = |role| liars.iter().find(|(liar, _)| *liar == role).map(|(_, vkey)| vkey.clone());
        match (self.cast, lying(Role::Log)) {
            (Cast::Alone, _) => {
                let vkey = self.init_log(&self.log_alone()?)?;
                write_new(&policy, 0o644, &Policy::of_log(vkey).to_text())?;
            }
            (_, Some(vkey)) => {
                write_new(&policy, 0o644, &self.init_witnesses(&vkey, lying)?)?;
                self.write("log.toml", &self.log_of_a_liar()?)?;
            }
            (_, None) => {
                // The log's configuration names the key that its signer makes, and the policy.
                let vkey = self.init_signer()?;
                write_new(&policy, 0o644, &self.init_witnesses(&vkey, lying)?)?;
                self.init_log(&self.log_with_others()?)?;
            }
        }
        if self.cast != Cast::Alone {
            self.init_monitor()?;
        }
        if self.address(Role::Audit).is_ok() {
            self.init_audit()?;
        }
        self.write("client.toml", &self.client("", "client")?)
    }

    /// The directory of somebody who reads, with a state of their own.
    pub fn person(&self, name: &str) -> anyhow::Result<()> {
        self.write(&format!("{name}/client.toml"), &self.client("../", name)?)
    }

    /// Its ports, for as long as its processes run.
    pub fn into_ports(self) -> Ports {
        self.ports
    }

    pub fn origin(&self) -> &str {
        &self.origin
    }

    pub fn witness_name(&self, role: Role) -> String {
        format!("{}/{role}", self.origin)
    }

    fn address(&self, role: Role) -> anyhow::Result<SocketAddr> {
        Ok(self.addresses_of(role)?.0)
    }

    fn addresses_of(&self, role: Role) -> anyhow::Result<(SocketAddr, SocketAddr)> {
        let found = self.addresses.iter().find(|(of, ..)| *of == role);
        found
            .map(|(_, address, metrics)| (*address, *metrics))
            .with_context(|| format!("no address for the {role}"))
    }

    fn issue_certificates(&self, people: &[&str]) -> anyhow::Result<()> {
        let pki = self.dir.join("pki");
        fs::create_dir(&pki)?;
        let ca = format!("Epigraph quickstart {}", self.name);
        let authority = Authority::create(&pki, &ca, CA_DAYS, self.now)?;
        let roles: Vec<Role> = self.addresses.iter().map(|(role, ..)| *role).collect();
        let people = people.iter().map(|name| Certificate {
            stem: format!("{name}/client"),
            spiffe: reader_spiffe(name),
            purpose: Purpose::Client,
        });
        for Certificate { stem, spiffe, purpose } in certificates(&roles).into_iter().chain(people) {
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
    fn init_witnesses(&self, log: &VKey, lying: impl Fn(Role) -> Option<VKey>) -> anyhow::Result<String> {
        let (mut witnesses, mut names) = (String::new(), String::new());
        for role in Role::witnesses() {
            let file = format!("{role}.toml");
            self.write(&file, &self.witness(role)?)?;
            let config = WitnessConfig::load(&self.dir.join(&file)).map_err(failed)?;
            let vkey = match lying(role) {
                Some(vkey) => vkey,
                None => state::witness::init(&config, &*runtime::entropy()).map_err(failed)?,
            };
            let listed = format!(
                "\n[[log]]\norigin = \"{}\"\nvkey = \"{log}\"\naddress = \"{}\"\nserver = \"{}\"\n",
                self.origin,
                self.address(Role::Log)?,
                Role::Log.spiffe()
            );
            fs::create_dir_all(&config.directory)?;
            let mut list = OpenOptions::new().create(true).append(true).open(config.list())?;
            list.write_all(listed.as_bytes())?;
            witnesses += &format!("witness {role} {vkey}\n");
            names += &format!(" {role}");
        }
        Ok(format!("log {log}\n{witnesses}group witnesses {THRESHOLD}{names}\nquorum witnesses\n"))
    }

    fn init_monitor(&self) -> anyhow::Result<()> {
        // The monitor's own: it may ask for more witnesses than a reader does.
        fs::copy(self.dir.join("policy"), self.dir.join(MONITOR_POLICY))?;
        if self.webhook.is_some() {
            let mut secret = [0; 32];
            SystemEntropy.fill(&mut secret);
            self.write(WEBHOOK_SECRET, &Hash::from_slice(&secret).context("no secret")?.to_string())?;
        }
        self.write("monitor.toml", &self.monitor()?)?;
        let config = MonitorConfig::load(&self.dir.join("monitor.toml")).map_err(failed)?;
        state::monitor::init(&config, &*runtime::entropy()).map_err(failed)?;
        Ok(())
    }
}
