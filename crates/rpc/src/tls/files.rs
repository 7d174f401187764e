//! What TLS is made of, as files that somebody renews while the server runs.
//!
//! Files are compared by what is in them and not by their times: a renewal may keep the time, and a copy may change it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use epigraph_core::{Clock, UnixMillis};
use sha2::{Digest, Sha256};

use super::credentials::{MAX_PEM_BYTES, read_limited};
use super::crl::MAX_CRL_BYTES;
use super::trust::{ClientTrust, TrustBundle};
use super::{Credentials, CrlProblem, DenyList, RevocationLists, ServerTls, TlsError};
use crate::identity::Usage;

/// The files of a server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsFiles {
    /// Our certificate and those between it and the CA, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM, readable for its owner alone.
    pub key: PathBuf,
    /// Whom to trust; our own trust domain must be among them.
    pub domains: Vec<DomainFiles>,
    /// The deny list ([`DenyList::from_file`]), if there is one.
    pub denied: Option<PathBuf>,
}

/// The files of one trust domain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DomainFiles {
    /// The trust domain.
    pub domain: String,
    /// The certificates of its CAs, PEM.
    pub bundle: PathBuf,
    /// Revocation lists, PEM or DER. With none, nobody asks whether a certificate is revoked.
    pub revocation_lists: Vec<PathBuf>,
}

impl TlsFiles {
    /// Reads and checks them all.
    pub fn load(&self, now: UnixMillis) -> Result<(Credentials, ClientTrust), TlsError> {
        let own = Credentials::from_files(&self.certificate, &self.key, Usage::Server, now)?;
        let denied = self.denied.as_deref().map(DenyList::from_file).transpose()?.unwrap_or_default();
        let mut trust = ClientTrust::new(denied);
        for DomainFiles { domain, bundle, revocation_lists } in &self.domains {
            let bundle = TrustBundle::from_file(domain, bundle)?;
            let lists = match revocation_lists.as_slice() {
                [] => None,
                paths => Some(RevocationLists::from_files(&bundle, paths, now)?),
            };
            trust = trust.trusting(bundle, lists)?;
        }
        Ok((own, trust))
    }

    /// One value for everything that is in the files.
    fn digest(&self) -> Result<[u8; 32], TlsError> {
        let mut digest = Sha256::new();
        let small = [&self.certificate, &self.key].into_iter().chain(&self.denied);
        let small = small.chain(self.domains.iter().map(|domain| &domain.bundle));
        let lists = self.domains.iter().flat_map(|domain| &domain.revocation_lists);
        for (path, limit) in
            small.map(|path| (path, MAX_PEM_BYTES)).chain(lists.map(|path| (path, MAX_CRL_BYTES)))
        {
            digest.update(Sha256::digest(read_limited(path, std::fs::File::open(path), limit)?));
        }
        Ok(digest.finalize().into())
    }
}

/// What came of looking at the files again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reload {
    /// They are what is in force.
    Unchanged,
    /// They had changed, and are in force now.
    Replaced,
}

/// Keeps a server's TLS to what is in its files.
pub struct Reloader {
    files: TlsFiles,
    tls: Arc<ServerTls>,
    clock: Arc<dyn Clock>,
    /// Of what is in force.
    digest: [u8; 32],
}

impl fmt::Debug for Reloader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloader").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Reloader {
    /// Loads the files for a server that starts.
    pub fn open(files: TlsFiles, clock: Arc<dyn Clock>) -> Result<Reloader, TlsError> {
        // Before the files are read: what changes in between is found to have changed, and is read once more.
        let digest = files.digest()?;
        let (own, trust) = files.load(clock.now())?;
        let tls = Arc::new(ServerTls::new(&own, trust, Arc::clone(&clock))?);
        Ok(Reloader { files, tls, clock, digest })
    }

    /// What is in force.
    pub fn tls(&self) -> &Arc<ServerTls> {
        &self.tls
    }

    /// Looks at the files, and puts what has changed in force, all of it or nothing: after an error what was in force is
    /// in force still. That it has expired by now is an error, too.
    pub fn reload(&mut self) -> Result<Reload, TlsError> {
        let digest = self.files.digest()?;
        let now = self.clock.now();
        if digest == self.digest {
            return self.still_valid(now).map(|()| Reload::Unchanged);
        }
        let (own, trust) = self.files.load(now)?;
        self.tls.replace(&own, trust)?;
        self.digest = digest;
        Ok(Reload::Replaced)
    }

    fn still_valid(&self, now: UnixMillis) -> Result<(), TlsError> {
        if now.0 / 1_000 > self.tls.not_after().0 / 1_000 {
            return Err(TlsError::Expired { not_after: self.tls.not_after().0 / 1_000, now: now.0 / 1_000 });
        }
        match self.tls.revocation_lists_expire() {
            Some(expires) if now >= expires => {
                let problem = CrlProblem::Expired { next_update: expires.0 / 1_000, now: now.0 / 1_000 };
                Err(TlsError::Crl { file: "a revocation list in force".into(), problem })
            }
            _ => Ok(()),
        }
    }

    /// Looks at the files every `interval`, for ever, and tells each time what came of it. An error is told each time,
    /// too: it stays true until somebody does something about it.
    pub async fn run(mut self, interval: Duration, mut told: impl FnMut(Result<Reload, TlsError>)) {
        loop {
            tokio::time::sleep(interval).await;
            // A disk or a network file system may take its time; the calls that are served must not.
            let looking = tokio::task::spawn_blocking(move || {
                let result = self.reload();
                (self, result)
            });
            let Ok((reloader, result)) = looking.await else { return };
            self = reloader;
            told(result);
        }
    }
}
