//! The configuration file of a signer process: one TOML, unknown keys refused, paths relative to the file.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use epigraph_core::{KeyName, VKey};
use epigraph_rpc::{Grant, SpiffeId};
use serde::Deserialize;

use super::tls::ProcessTls;
use super::witnessing::{self, RawWitness, WitnessingConfig};
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
    policy: Option<PathBuf>,
    faulty: Option<usize>,
    #[serde(default)]
    witness: Vec<RawWitness>,
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
    witnessing: RawWitnessing,
}

/// What is said of a log's witnesses. Not read with the rest: the policy names the log's key, which `init` may have to make first.
struct RawWitnessing {
    base: PathBuf,
    policy: Option<PathBuf>,
    faulty: Option<usize>,
    witness: Vec<RawWitness>,
}

impl SignedLog {
    /// The witnesses that are asked after a start, before anything is signed under `vkey`; `None`: only the log is.
    pub fn witnessing(&self, vkey: &VKey) -> Outcome<Option<WitnessingConfig>> {
        let RawWitnessing { base, policy, faulty, witness } = &self.witnessing;
        let bad = |what: String| Failure::usage(format!("[[log]] {}: {what}", self.origin));
        let checked = witnessing::check(base, policy.clone(), *faulty, witness.clone()).map_err(bad)?;
        let Some(config) = checked else { return Ok(None) };
        let policy = config.policy.only_for(vkey).ok_or_else(|| {
            bad(format!(
                "its policy has no line `log {vkey}`: what is published under it is not signed with this key"
            ))
        })?;
        if let Some(witness) = config.witnesses.iter().find(|witness| witness.address.is_none()) {
            return Err(bad(format!(
                "[[log.witness]] {}: it has no address, and a signer can only ask. Leave the table out",
                witness.name
            )));
        }
        Ok(Some(WitnessingConfig { policy, ..config }))
    }
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
        let RawLog { policy, faulty, witness, .. } = self;
        let witnessing = RawWitnessing { base: base.to_owned(), policy, faulty, witness };
        Ok(SignedLog { key: base.join(self.key), address: self.address, server, origin, witnessing })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use epigraph_core::{CosigningKey, SigningKey};
    use std::fs;
    use zeroize::Zeroizing;

    fn name(name: &str) -> KeyName {
        KeyName::new(name).unwrap()
    }

    #[test]
    fn the_commented_configuration_is_one() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/signer.toml");
        let config = SignerProcessConfig::load(&path).unwrap();
        let key = SigningKey::from_seed(name("audit.example/production"), &Zeroizing::new([7; 32]));
        assert!(config.logs[0].witnessing(key.vkey()).unwrap().is_none());
    }

    /// R6: a signer that could never hear enough is refused at once. Broken to see it fail: witnesses without a table count.
    #[test]
    fn what_is_said_of_its_witnesses_is_checked_against_the_policy() {
        let dir = tempfile::tempdir().unwrap();
        let key = SigningKey::from_seed(name("log"), &Zeroizing::new([7; 32]));
        let other = SigningKey::from_seed(name("log"), &Zeroizing::new([8; 32]));
        let (mut policy, mut names) = (format!("log {}\n", key.vkey()), String::new());
        for number in 0..4 {
            let witness = CosigningKey::from_seed(name(&format!("w{number}")), &Zeroizing::new([number; 32]));
            policy += &format!("witness w{number} {}\n", witness.vkey());
            names += &format!(" w{number}");
        }
        fs::write(dir.path().join("policy"), format!("{policy}group all 3{names}\nquorum all\n")).unwrap();
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/signer.toml");
        let deploy = fs::read_to_string(deploy).unwrap();
        let (before, rest) = deploy.split_once("# policy = ").unwrap();
        let (_, after) = rest.split_once("\n\n").unwrap();
        let path = dir.path().join("signer.toml");
        let check = |lines: &str, key: &SigningKey, expected: Result<usize, &str>| {
            fs::write(&path, format!("{before}{lines}\n\n{after}")).unwrap();
            let config = SignerProcessConfig::load(&path).unwrap();
            match (config.logs[0].witnessing(key.vkey()), expected) {
                (Ok(Some(config)), Ok(asked)) => assert_eq!(config.witnesses.len(), asked, "{lines}"),
                (Err(failure), Err(says)) => {
                    assert!(failure.to_string().contains(says), "{lines}: {failure}")
                }
                (got, _) => panic!("{lines}: {}", got.is_ok()),
            }
        };
        let table = |number: u8| {
            format!(
                "[[log.witness]]\nname = \"w{number}\"\naddress = \"h:1\"\nserver = \"spiffe://a/w{number}\"\n"
            )
        };
        let tables = |numbers: std::ops::Range<u8>| numbers.map(table).collect::<String>();
        let lines = |faulty: usize, tables: &str| format!("policy = \"policy\"\nfaulty = {faulty}\n{tables}");
        check(&lines(1, &tables(0..4)), &key, Ok(4));
        check(&lines(1, &tables(0..3)), &key, Ok(3));
        check(&lines(0, &tables(0..2)), &key, Ok(2));
        check(&lines(1, &tables(0..2)), &key, Err("would never be over"));
        check(&lines(4, &tables(0..4)), &key, Err("faulty = 4"));
        check(&lines(1, &tables(0..4)), &other, Err("has no line `log log+"));
        check(&tables(0..4), &key, Err("take a `policy`"));
        check(&lines(1, &tables(0..5)), &key, Err("w4: the policy has no witness"));
        let silent = tables(0..4).replacen("address = \"h:1\"\n", "", 1);
        check(&lines(1, &silent), &key, Err("w0: it has no address"));
    }
}
