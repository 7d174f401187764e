//! The key that wraps all keys of an audit service, replaced by a new one while the service is stopped.
//!
//! Three files and one transaction: the new key is on the disk before anything is wrapped under it, the store changes as a whole, and only
//! then the new key takes the place of the old one, which is kept under another name. Whenever it is cut off, one of the files opens the
//! store, and doing it again ends it.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use epigraph_audit::store::{self, Rekeyed};
use epigraph_audit::vault::LocalWrapper;
use epigraph_core::Entropy;
use epigraph_signer::keys;
use epigraph_store::lock::{FormatFile, Kind};

use super::audit::{STORE, load_wrapper, there, wrapper_in};
use super::lock_directory;
use crate::config::audit::AuditConfig;
use crate::failure::{Failure, Outcome};

/// What was done.
pub struct Done {
    /// How many data keys are wrapped under the new key.
    pub keys: u64,
    /// Whether an earlier run that was cut off had wrapped them.
    pub before: bool,
    /// Where the old key is kept.
    pub old: PathBuf,
}

/// Where the new key is until it takes its place.
pub fn new_key(config: &AuditConfig) -> PathBuf {
    beside(&config.wrapping_key, ".new")
}

/// Where the old key is kept.
fn old_key(config: &AuditConfig) -> PathBuf {
    beside(&config.wrapping_key, ".old")
}

fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(end);
    name.into()
}

/// Replaces the key, or ends what an earlier run began.
pub fn rekey(config: &AuditConfig, entropy: &dyn Entropy) -> Outcome<Done> {
    let directory = &config.directory;
    FormatFile::of(Kind::Audit).check(directory).map_err(Failure::state)?;
    let _lock = lock_directory(directory)?;
    let (key, new, old) = (&config.wrapping_key, new_key(config), old_key(config));
    let wrapper = load_wrapper(config)?;
    if !there(&new)? {
        if there(&old)? {
            return Err(Failure::usage(format!(
                "{} is there: the key that an earlier `audit rekey` replaced. Old copies of the store open with it: move it to where they \
                 are kept, or delete it if there are none. Nothing was changed",
                old.display()
            )));
        }
        keys::create_text(&new, 0o600, &LocalWrapper::draw(entropy)).map_err(Failure::state)?;
        sync_directory(&new)?;
    }
    let next = wrapper_in(&new).map_err(|failure| {
        Failure::state(format!(
            "{failure}. If writing it was cut off, nothing is wrapped under it yet: delete {} and start again",
            new.display()
        ))
    })?;
    let path = directory.join(STORE);
    let Rekeyed { keys, before } = store::rekey(&path, (&wrapper, &next), entropy).map_err(|error| {
        Failure::state(format!("{}: {error}. The store opens with {}", path.display(), key.display()))
    })?;
    let cannot = |what: &str, error: &dyn std::fmt::Display| {
        Failure::state(format!(
            "the store opens with {}, which cannot take the place of {}: {what}: {error}. Run `epigraph audit rekey` again",
            new.display(),
            key.display()
        ))
    };
    if !there(&old)? {
        fs::hard_link(key, &old).map_err(|error| cannot("the old key cannot be kept", &error))?;
    }
    sync_directory(&old)?;
    fs::rename(&new, key).map_err(|error| cannot("it cannot be renamed", &error))?;
    sync_directory(key)?;
    Ok(Done { keys, before, old })
}

fn sync_directory(of: &Path) -> Outcome {
    let dir = of.parent().unwrap_or(Path::new("."));
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| {
        Failure::state(format!("cannot sync {}: {error}; run `epigraph audit rekey` again", dir.display()))
    })
}
