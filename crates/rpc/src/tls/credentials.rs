//! A key and the certificate for it, from files that nobody else may read.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use epigraph_core::UnixMillis;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};

use super::{TlsError, provider};
use crate::identity::{IdentityError, Leaf, SpiffeId, Usage, inspect};

/// The largest file of certificates, or with a key. A chain of ten certificates has about 20 KiB.
pub const MAX_PEM_BYTES: u64 = 256 * 1024;

/// Certificates in one file: more are no chain, and no trust bundle that anyone could oversee.
pub const MAX_CERTIFICATES: usize = 32;

/// A private key and the certificate chain for it. The key cannot be had out of it.
#[derive(Clone)]
pub struct Credentials {
    key: Arc<CertifiedKey>,
    leaf: Leaf,
    usage: Usage,
}

impl Credentials {
    /// Reads both from PEM files. The key's file must be readable for its owner alone, the certificate valid at `now`
    /// and good for `usage`: a server does not check its own certificate, and one that has expired would start
    /// cleanly and serve nobody.
    pub fn from_files(
        chain: &Path,
        key: &Path,
        usage: Usage,
        now: UnixMillis,
    ) -> Result<Credentials, TlsError> {
        let chain = read_limited(chain, File::open(chain), MAX_PEM_BYTES)?;
        let file = File::open(key).map_err(|error| TlsError::Read { path: key.into(), error })?;
        refuse_exposed(key, &file)?;
        Credentials::from_pem(&chain, &read_limited(key, Ok(file), MAX_PEM_BYTES)?, usage, now)
    }

    /// As [`Credentials::from_files`], from memory.
    pub fn from_pem(
        chain: &[u8],
        key: &[u8],
        usage: Usage,
        now: UnixMillis,
    ) -> Result<Credentials, TlsError> {
        let chain = certificates("certificate chain", chain)?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| TlsError::Pem { what: "private key", error })?;
        let leaf = inspect(chain.first().ok_or(IdentityError::NoCertificate)?, usage)?;
        // A certificate is valid to the end of its last second.
        if now < leaf.not_before || now.0 / 1_000 > leaf.not_after.0 / 1_000 {
            return Err(TlsError::NotValid {
                not_before: leaf.not_before.0 / 1_000,
                not_after: leaf.not_after.0 / 1_000,
                now: now.0 / 1_000,
                name: leaf.spiffe,
            });
        }
        let key = Arc::new(CertifiedKey::from_der(chain, key, &provider())?);
        Ok(Credentials { key, leaf, usage })
    }

    /// The name in the certificate.
    pub fn spiffe(&self) -> &SpiffeId {
        &self.leaf.spiffe
    }

    /// When the certificate ends.
    pub fn not_after(&self) -> UnixMillis {
        self.leaf.not_after
    }

    pub(super) fn for_usage(&self, usage: Usage) -> Result<Arc<SingleCertAndKey>, TlsError> {
        if self.usage != usage {
            return Err(IdentityError::Usage { name: self.leaf.spiffe.clone(), usage }.into());
        }
        Ok(Arc::new(SingleCertAndKey::from(Arc::clone(&self.key))))
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("leaf", &self.leaf)
            .field("usage", &self.usage)
            .finish_non_exhaustive()
    }
}

pub(super) fn read_limited(path: &Path, file: io::Result<File>, limit: u64) -> Result<Vec<u8>, TlsError> {
    let mut bytes = Vec::new();
    let read = file.and_then(|file| file.take(limit + 1).read_to_end(&mut bytes));
    match read {
        Ok(length) if length as u64 <= limit => Ok(bytes),
        Ok(_) => Err(TlsError::TooLarge { path: path.into(), limit }),
        Err(error) => Err(TlsError::Read { path: path.into(), error }),
    }
}

/// Asks the open file and not its path, which could lead elsewhere a moment later.
#[cfg(unix)]
fn refuse_exposed(path: &Path, file: &File) -> Result<(), TlsError> {
    use std::os::unix::fs::PermissionsExt;
    let metadata = file.metadata().map_err(|error| TlsError::Read { path: path.into(), error })?;
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(TlsError::ExposedKey(path.into()));
    }
    Ok(())
}

pub(super) fn certificates(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .take(MAX_CERTIFICATES + 1)
        .collect::<Result<_, _>>()
        .map_err(|error| TlsError::Pem { what, error })?;
    match certificates.len() {
        1..=MAX_CERTIFICATES => Ok(certificates),
        got => Err(TlsError::Count { what, got }),
    }
}
