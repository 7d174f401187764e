//! The `[tls]` table of a process that accepts connections, and may open some: one shape for all roles.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use epigraph_core::Clock;
use epigraph_rpc::tls::{DomainFiles, Reloader, TlsFiles};
use epigraph_rpc::{ClientTls, Credentials, SpiffeId, TrustBundle, Usage};
use serde::Deserialize;

use crate::failure::{Failure, Outcome};

/// The table as it stands in a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessTls {
    certificate: PathBuf,
    key: PathBuf,
    trust_bundle: PathBuf,
    trust_domain: String,
    #[serde(default)]
    revocation_lists: Vec<PathBuf>,
    #[serde(default)]
    domain: Vec<RawDomain>,
    deny_list: Option<PathBuf>,
    #[serde(default = "default_reload")]
    reload_interval_ms: u64,
    /// The certificate with which it opens connections.
    pub client: Option<ClientCertificate>,
}

/// `[[tls.domain]]`: one more trust domain whose clients are let in.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDomain {
    trust_domain: String,
    trust_bundle: PathBuf,
    #[serde(default)]
    revocation_lists: Vec<PathBuf>,
}

/// The `[tls.client]` table, and wherever else a process has an identity to call with.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientCertificate {
    certificate: PathBuf,
    key: PathBuf,
}

/// A renewed certificate is served within five seconds.
fn default_reload() -> u64 {
    2_000
}

impl ClientCertificate {
    /// Resolves the paths against the directory of the file they stand in.
    pub fn relative_to(self, base: &Path) -> ClientCertificate {
        ClientCertificate { certificate: base.join(self.certificate), key: base.join(self.key) }
    }
}

impl ProcessTls {
    /// Checks what can be checked without the files, and resolves the paths against the directory of the file they stand in.
    pub fn relative_to(self, base: &Path) -> Result<ProcessTls, String> {
        if !(100..=3_600_000).contains(&self.reload_interval_ms) {
            return Err("[tls] reload_interval_ms is 100 to 3600000".into());
        }
        let join = |path: PathBuf| base.join(path);
        let join_all = |paths: Vec<PathBuf>| paths.into_iter().map(join).collect();
        let domain = |domain: RawDomain| RawDomain {
            trust_domain: domain.trust_domain,
            trust_bundle: join(domain.trust_bundle),
            revocation_lists: join_all(domain.revocation_lists),
        };
        Ok(ProcessTls {
            certificate: join(self.certificate),
            key: join(self.key),
            trust_bundle: join(self.trust_bundle),
            trust_domain: self.trust_domain,
            revocation_lists: join_all(self.revocation_lists),
            domain: self.domain.into_iter().map(domain).collect(),
            deny_list: self.deny_list.map(join),
            reload_interval_ms: self.reload_interval_ms,
            client: self.client.map(|client| client.relative_to(base)),
        })
    }

    /// Reads the files for the connections that are accepted; what comes back reads them again when they change.
    pub fn accepting(&self, clock: Arc<dyn Clock>) -> Outcome<Reloader> {
        let own = DomainFiles {
            domain: self.trust_domain.clone(),
            bundle: self.trust_bundle.clone(),
            revocation_lists: self.revocation_lists.clone(),
        };
        let others = self.domain.iter().map(|domain| DomainFiles {
            domain: domain.trust_domain.clone(),
            bundle: domain.trust_bundle.clone(),
            revocation_lists: domain.revocation_lists.clone(),
        });
        let files = TlsFiles {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            domains: std::iter::once(own).chain(others).collect(),
            denied: self.deny_list.clone(),
        };
        Reloader::open(files, clock).map_err(Failure::usage)
    }

    /// How often the files are looked at.
    pub fn reload_interval(&self) -> Duration {
        Duration::from_millis(self.reload_interval_ms)
    }

    /// The name that callers ask this process for.
    pub fn server_name(&self, clock: &dyn Clock) -> Outcome<SpiffeId> {
        let own = Credentials::from_files(&self.certificate, &self.key, Usage::Server, clock.now());
        Ok(own.map_err(Failure::usage)?.spiffe().clone())
    }

    /// For the connections that the process opens, if it does.
    pub fn calling(&self, clock: Arc<dyn Clock>) -> Outcome<Option<ClientTls>> {
        self.client.as_ref().map(|client| self.calling_as(client, clock)).transpose()
    }

    /// The same under another identity than that of `[tls.client]`.
    pub fn calling_as(&self, client: &ClientCertificate, clock: Arc<dyn Clock>) -> Outcome<ClientTls> {
        let own = Credentials::from_files(&client.certificate, &client.key, Usage::Client, clock.now());
        let mut trust =
            vec![TrustBundle::from_file(&self.trust_domain, &self.trust_bundle).map_err(Failure::usage)?];
        for domain in &self.domain {
            trust.push(
                TrustBundle::from_file(&domain.trust_domain, &domain.trust_bundle).map_err(Failure::usage)?,
            );
        }
        ClientTls::new(own.map_err(Failure::usage)?, trust, clock).map_err(Failure::usage)
    }
}
