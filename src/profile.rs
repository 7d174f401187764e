//! A client's directory: `client.toml`, the policy it names, and its state. What every command that calls a log uses.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use epigraph_client::pin::{Pin, PinError};
use epigraph_client::{Client, ClientError};
use epigraph_core::{Origin, Policy, SourceVKey};
use epigraph_rpc::channel::channel;
use epigraph_rpc::{CallError, ClientTls, Credentials, RequestIds, SpiffeId, TrustBundle, Usage, peer};
use serde::Deserialize;

use crate::cli::audit::read_sources;
use crate::cli::collect::CollectorPlace;
use crate::cli::verify::read_policy;
use crate::config::{RawTls, load_toml};
use crate::failure::{Failure, Kind, Outcome};
use crate::observe;
use crate::runtime;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawProfile {
    origin: String,
    address: String,
    server: String,
    policy: PathBuf,
    state: PathBuf,
    /// A file with the public keys of the sources of audit events, if there is an audit service.
    sources: Option<PathBuf>,
    audit: Option<RawAudit>,
    collector: Option<RawCollector>,
    tls: RawTls,
    #[serde(default)]
    witness: Vec<RawWitness>,
    monitor: Option<RawMonitor>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawWitness {
    name: String,
    address: String,
    server: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMonitor {
    address: String,
    server: String,
}

/// Where a witness of the policy is asked.
#[derive(Clone)]
pub struct KnownWitness {
    /// What its vkey is called.
    pub name: String,
    /// `host:port`.
    pub address: String,
    /// Who it must prove to be.
    pub server: SpiffeId,
}

/// The audit service over the log.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAudit {
    address: String,
    server: String,
}

/// Where the monitor is asked.
pub struct KnownMonitor {
    /// `host:port`.
    pub address: String,
    /// Who it must prove to be.
    pub server: SpiffeId,
}

/// A collector that is run by hand.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCollector {
    directory: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

/// A checked client directory.
pub struct Profile {
    pub origin: Origin,
    pub policy: Policy,
    /// Whose audit events are believed.
    pub sources: Vec<SourceVKey>,
    audit: Option<(String, SpiffeId)>,
    /// Where witnesses are asked what they hold. Whether the policy names them is found out then.
    pub witnesses: Vec<KnownWitness>,
    /// Where a monitor is asked what it found.
    pub monitor: Option<KnownMonitor>,
    address: String,
    server: SpiffeId,
    state: PathBuf,
    tls: RawTls,
    /// The collector's directory, and who it proves to be.
    collector: Option<(PathBuf, RawTls)>,
}

impl Profile {
    /// Reads and checks `client.toml` in `dir`.
    pub fn load(dir: &Path) -> Outcome<Profile> {
        let path = dir.join("client.toml");
        if !fs::exists(&path).unwrap_or(true) {
            return Err(Failure::usage(format!(
                "{} is no client directory: it has no client.toml. `epigraph quickstart` makes one to look at",
                dir.display()
            )));
        }
        let raw: RawProfile = load_toml(&path)?;
        let bad = |what: &str, why: &dyn std::fmt::Display| {
            Failure::usage(format!("{}: {what}: {why}", path.display()))
        };
        let policy = read_policy(&dir.join(&raw.policy))?;
        let origin = Origin::new(raw.origin).map_err(|error| bad("origin", &error))?;
        if !policy.logs().iter().any(|log| log.name().as_str() == origin.as_str()) {
            return Err(bad(
                "policy",
                &format_args!("it has no `log` line for {origin}, so nothing could be verified"),
            ));
        }
        let witness = |RawWitness { name, address, server }: RawWitness| {
            let server =
                server.parse().map_err(|error| bad(&format!("[[witness]] {name}: server"), &error))?;
            Ok(KnownWitness { name, address, server })
        };
        let monitor = |RawMonitor { address, server }: RawMonitor| -> Outcome<KnownMonitor> {
            let server = server.parse().map_err(|error| bad("[monitor] server", &error))?;
            Ok(KnownMonitor { address, server })
        };
        Ok(Profile {
            monitor: raw.monitor.map(monitor).transpose()?,
            origin,
            policy,
            sources: match raw.sources {
                Some(sources) => read_sources(&dir.join(sources))?,
                None => Vec::new(),
            },
            audit: match raw.audit {
                Some(RawAudit { address, server }) => {
                    Some((address, server.parse().map_err(|error| bad("[audit]: server", &error))?))
                }
                None => None,
            },
            witnesses: raw.witness.into_iter().map(witness).collect::<Outcome<_>>()?,
            address: raw.address,
            server: raw.server.parse().map_err(|error| bad("server", &error))?,
            state: dir.join(raw.state),
            collector: raw.collector.map(|collector| {
                let RawTls { trust_bundle, trust_domain, .. } = &raw.tls;
                let tls = RawTls {
                    certificate: collector.certificate,
                    key: collector.key,
                    trust_bundle: trust_bundle.clone(),
                    trust_domain: trust_domain.clone(),
                };
                (dir.join(collector.directory), tls.relative_to(dir))
            }),
            tls: raw.tls.relative_to(dir),
        })
    }

    /// A connection to the log, which verifies nothing that it is told. Must be called within a tokio runtime.
    pub fn log(&self) -> Outcome<peer::Log> {
        let channel = channel(&self.address, &self.tls()?, &self.server);
        let channel = channel.map_err(Failure::usage)?;
        let ids = Arc::new(RequestIds::new(&*runtime::entropy()));
        Ok(peer::Log::over(channel.with_request_ids(ids).with_trace(Arc::new(observe::of_environment))))
    }

    /// The audit service. Must be called within a tokio runtime.
    pub fn audit(&self) -> Outcome<peer::Audit> {
        let (address, server) = self.audit.as_ref().ok_or_else(|| {
            Failure::usage("this client directory names no audit service: client.toml has no table [audit]")
        })?;
        peer::Audit::new(address, &self.tls()?, server).map_err(Failure::usage)
    }

    /// The collector of this directory; so many bytes may wait in its spool.
    pub fn collector(self, spool_bytes: u64) -> Outcome<CollectorPlace> {
        let (Some((address, server)), Some((directory, tls))) = (self.audit, self.collector) else {
            return Err(Failure::usage(
                "this client directory has no collector: client.toml needs the tables [audit] and [collector]",
            ));
        };
        let tls = client_tls(&tls)?;
        let (origin, policy) = (self.origin, self.policy);
        Ok(CollectorPlace { directory, spool_bytes, origin, policy, address, server, tls })
    }

    /// Who this client proves to be, and whom it trusts.
    pub fn tls(&self) -> Outcome<ClientTls> {
        client_tls(&self.tls)
    }

    /// The verifying client of the log. Must be called within a tokio runtime.
    pub fn client(self) -> Outcome<Client> {
        let log = self.log()?;
        let pin = Pin::new(&self.state, &self.origin)
            .map_err(|error| Failure::state(PinError::to_string(&error)))?;
        Ok(Client::new(log, self.origin, self.policy, pin))
    }
}

/// A client's certificate, and whom it trusts.
pub fn client_tls(tls: &RawTls) -> Outcome<ClientTls> {
    let clock = runtime::clock();
    let own = Credentials::from_files(&tls.certificate, &tls.key, Usage::Client, clock.now());
    let trust = TrustBundle::from_file(&tls.trust_domain, &tls.trust_bundle);
    ClientTls::new(own.map_err(Failure::usage)?, trust.map_err(Failure::usage)?, clock)
        .map_err(Failure::usage)
}

/// How a command ends whose call to the log failed.
pub fn of_call(error: &CallError) -> Failure {
    of_call_with(error, "is the log running, and are `address` and [tls] in client.toml right?")
}

/// The same for a call to somebody whose address was said otherwise.
pub fn of_call_to(error: &CallError, whom: &str) -> Failure {
    of_call_with(
        error,
        &format!("is the {whom} running, and are its address, its name and the certificates right?"),
    )
}

fn of_call_with(error: &CallError, hint: &str) -> Failure {
    match error {
        CallError::Refused(_) => Failure::new(Kind::Refused, error),
        CallError::Unreachable(_) => Failure::unreachable(format_args!("{error} ({hint})")),
        _ => Failure::unreachable(error),
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        match &error {
            ClientError::Call(error) => of_call(error),
            ClientError::Pin(_) => Failure::state(error),
            ClientError::NoProof { .. } => Failure::new(Kind::Refused, error),
            _ => Failure::no(error),
        }
    }
}
