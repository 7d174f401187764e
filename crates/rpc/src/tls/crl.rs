//! Certificate revocation lists (RFC 5280 section 5): which certificates of a CA are worth nothing any more.
//!
//! What can be found wrong with a list is found when it is read, so that a server never takes a list by which it would
//! refuse everybody. Looking certificates up is the TLS library's business.

use std::fs::File;
use std::path::PathBuf;

use epigraph_core::UnixMillis;
use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use super::credentials::read_limited;
use super::trust::TrustBundle;
use super::{CrlProblem, TlsError};
use crate::identity::millis;

/// The largest file with a revocation list: room for a hundred thousand certificates.
pub const MAX_CRL_BYTES: u64 = 4 << 20;

/// Revocation lists of one trust domain: one for each CA of the bundle, and for each CA between them and the leaves.
pub const MAX_CRLS: usize = 64;

/// The revocation lists of one trust domain.
#[derive(Clone, Debug)]
pub struct RevocationLists {
    lists: Vec<CertificateRevocationListDer<'static>>,
    next_update: UnixMillis,
}

impl RevocationLists {
    /// Reads lists from files, PEM (with one list or several) or DER, for the CAs of `bundle`. Each of these CAs must have
    /// one; a list of theirs must be signed by them, and none may have expired at `now`.
    pub fn from_files(
        bundle: &TrustBundle,
        paths: &[PathBuf],
        now: UnixMillis,
    ) -> Result<RevocationLists, TlsError> {
        let mut files = Vec::new();
        for path in paths {
            files.push((path.display().to_string(), read_limited(path, File::open(path), MAX_CRL_BYTES)?));
        }
        RevocationLists::from_bytes(bundle, &files, now)
    }

    /// As [`RevocationLists::from_files`], from memory: pairs of what to call a file in errors and its bytes.
    pub fn from_bytes(
        bundle: &TrustBundle,
        files: &[(String, Vec<u8>)],
        now: UnixMillis,
    ) -> Result<RevocationLists, TlsError> {
        let mut lists = Vec::new();
        let mut issuers: Vec<Vec<u8>> = Vec::new();
        let mut next_update = UnixMillis(u64::MAX);
        for (file, bytes) in files {
            let refuse = |problem| TlsError::Crl { file: file.clone(), problem };
            for der in split(bytes).map_err(refuse)? {
                let (issuer, expires) = check(bundle, &der, now).map_err(refuse)?;
                if issuers.contains(&issuer) {
                    return Err(refuse(CrlProblem::Twice));
                }
                issuers.push(issuer);
                next_update = next_update.min(expires);
                lists.push(der);
                if lists.len() > MAX_CRLS {
                    return Err(refuse(CrlProblem::TooMany));
                }
            }
        }
        for ca in &bundle.cas {
            let (_, ca) = X509Certificate::from_der(ca).map_err(|error| TlsError::CrlMissing {
                ca: error.to_string(),
                domain: bundle.domain().into(),
            })?;
            if !issuers.iter().any(|issuer| issuer == ca.subject().as_raw()) {
                let domain = bundle.domain().into();
                return Err(TlsError::CrlMissing { ca: ca.subject().to_string(), domain });
            }
        }
        Ok(RevocationLists { lists, next_update })
    }

    /// When the first of the lists expires. From then on nobody whose CA it is of is let in.
    pub fn next_update(&self) -> UnixMillis {
        self.next_update
    }

    pub(super) fn ders(&self) -> &[CertificateRevocationListDer<'static>] {
        &self.lists
    }
}

fn split(bytes: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, CrlProblem> {
    // DER begins with the tag of a sequence, which is the digit 0: no PEM file begins so.
    if bytes.first() == Some(&0x30) {
        return Ok(vec![bytes.to_vec().into()]);
    }
    let lists: Vec<_> = CertificateRevocationListDer::pem_slice_iter(bytes)
        .take(MAX_CRLS + 1)
        .collect::<Result<_, _>>()
        .map_err(|error| CrlProblem::Malformed(error.to_string()))?;
    if lists.is_empty() {
        return Err(CrlProblem::Malformed("there is no list in it".into()));
    }
    Ok(lists)
}

/// Who issued the list, and when it expires.
fn check(
    bundle: &TrustBundle,
    der: &CertificateRevocationListDer<'_>,
    now: UnixMillis,
) -> Result<(Vec<u8>, UnixMillis), CrlProblem> {
    let malformed = |error: &dyn std::fmt::Display| CrlProblem::Malformed(error.to_string());
    let (rest, list) = CertificateRevocationList::from_der(der).map_err(|error| malformed(&error))?;
    if !rest.is_empty() {
        return Err(malformed(&"bytes follow the list"));
    }
    let expires = millis(list.next_update().ok_or_else(|| malformed(&"it does not say when it expires"))?);
    if now >= expires {
        return Err(CrlProblem::Expired { next_update: expires.0 / 1_000, now: now.0 / 1_000 });
    }
    // The list of a CA that is not in the bundle itself is judged when a chain leads through that CA.
    let issuer = list.issuer().as_raw();
    for ca in &bundle.cas {
        let (_, ca) = X509Certificate::from_der(ca).map_err(|error| malformed(&error))?;
        if ca.subject().as_raw() == issuer && list.verify_signature(ca.public_key()).is_err() {
            return Err(CrlProblem::Signature(list.issuer().to_string()));
        }
    }
    Ok((issuer.to_vec(), expires))
}
