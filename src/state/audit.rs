//! The directory of an audit service: created once by `init`, opened and checked by `serve`; its list of sources, to which one is
//! added.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use epigraph_audit::keeper::Room;
use epigraph_audit::source::Enrolled;
use epigraph_audit::store::{Store, StoreError};
use epigraph_audit::vault::{KeyWrapper, LocalWrapper, WrapError};
use epigraph_core::{Entropy, SourceKey, SourceVKey};
use epigraph_signer::keys;
use epigraph_store::lock::{FormatFile, Kind};
use serde::Serialize;
use zeroize::Zeroizing;

use super::{create_dir, keep, lock_directory, rekey, write_durably};
use crate::config::audit::{AuditConfig, load_sources};
use crate::failure::{Failure, Outcome};
use crate::runtime;

/// Events and everything about them.
pub const STORE: &str = "events.redb";
/// What finds events: made of the store, and made again if it is not there.
const INDEX: &str = "index.redb";
/// The newest checkpoint of the log that the service has accepted.
const PIN: &str = "pin";

const NO_SOURCES: &str = "\
# The sources that this audit service takes events from. Read again when it changes: sources are added while the service runs, by
# `epigraph audit enrol` or by hand. None is ever taken out; to take nothing more from one, give it a `retired_at_ms`.
#
# [[source]]
# The public key under which the source signs.
# vkey = \"payments-cluster+01234567+/2VwaWdyYXBo...\"
# Who answers for it: a team, and how to reach it.
# owner = \"payments, payments-oncall@audit.example\"
# The SPIFFE name of the one collector that may send for it.
# collector = \"spiffe://audit.example/epigraph/collector/payments\"
# When it was enrolled, and from when on nothing that it signs is taken any more: milliseconds since 1970.
# enrolled_at_ms = 1790000000000
# retired_at_ms = 1790000000000
# It says at least this often that it is alive; twice that time without a word is an alert. 0: it is run by hand or by a timer.
# heartbeat_ms = 60000
";

/// An audit service's directory, locked, checked and open.
pub struct AuditState {
    /// What it keeps.
    pub store: Store,
    /// With it the service records reads.
    pub key: SourceKey,
}

/// Creates the state of an audit service, its key, and the key that wraps all others.
pub fn init(config: &AuditConfig, entropy: &dyn Entropy) -> Outcome<SourceVKey> {
    let directory = &config.directory;
    for path in [&directory.join("format"), &directory.join(STORE), &config.key, &config.wrapping_key] {
        if there(path)? {
            return Err(Failure::state(format!(
                "{} is there already: an audit service is initialised once, and its keys are made with it. Choose another directory, \
                 or put back what belongs to these keys. Nothing was changed",
                path.display()
            )));
        }
    }
    create_dir(directory)?;
    let _lock = lock_directory(directory)?;
    create_dir(&directory.join(PIN))?;
    for file in [&config.key, &config.wrapping_key] {
        if let Some(dir) = file.parent() {
            create_dir(dir)?;
        }
    }
    let wrapping = LocalWrapper::draw(entropy);
    keys::create_text(&config.wrapping_key, 0o600, &wrapping).map_err(Failure::state)?;
    let wrapper: LocalWrapper = wrapping.parse().map_err(Failure::state)?;
    Store::create(&directory.join(STORE), &wrapper, entropy).map_err(Failure::state)?;
    let mut seed = Zeroizing::new([0; 32]);
    entropy.fill(&mut *seed);
    let key = SourceKey::from_seed(config.name.clone(), &seed);
    keys::create_source(&config.key, &key).map_err(Failure::state)?;
    let list = config.list();
    write_durably(&list, NO_SOURCES)
        .map_err(|error| Failure::state(format!("cannot write {}: {error}", list.display())))?;
    // Last: a directory without it was not initialised to the end.
    FormatFile::of(Kind::Audit).create(directory).map_err(Failure::state)?;
    Ok(key.vkey().clone())
}

pub fn there(path: &Path) -> Outcome<bool> {
    fs::exists(path).map_err(|error| Failure::state(format!("cannot look for {}: {error}", path.display())))
}

/// Opens what `init` created. A missing piece is a refusal, never a fresh start.
pub fn open(config: &AuditConfig) -> Outcome<AuditState> {
    let directory = &config.directory;
    FormatFile::of(Kind::Audit).check(directory).map_err(Failure::state)?;
    keep(lock_directory(directory)?);
    let key = load_key(config)?;
    let wrapper: Arc<dyn KeyWrapper> = Arc::new(load_wrapper(config)?);
    let store = directory.join(STORE);
    let store = Store::open(&store, wrapper, runtime::entropy()).map_err(|error| {
        Failure::state(format!("{}: {error}{}", store.display(), cut_off(config, &error)))
    })?;
    Ok(AuditState { store, key })
}

/// What else there is to say of a store that does not open under its key.
fn cut_off(config: &AuditConfig, error: &StoreError) -> String {
    let new = rekey::new_key(config);
    if !matches!(error, StoreError::Wrap(WrapError::NotOpened)) || !new.exists() {
        return String::new();
    }
    format!(
        ". {} is there: `epigraph audit rekey` was cut off after the store was changed. Run it again, and it will end",
        new.display()
    )
}

/// Says how much is free where the store is.
pub fn room(config: &AuditConfig) -> Room {
    let directory = config.directory.clone();
    Box::new(move || {
        let disk = rustix::fs::statvfs(&directory)?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    })
}

/// The key under which reads are recorded.
pub fn load_key(config: &AuditConfig) -> Outcome<SourceKey> {
    let key = keys::load_source(&config.key).map_err(Failure::state)?;
    if *key.vkey().name() != config.name {
        return Err(Failure::state(format!(
            "the key in {} is named {}, but the service is {}: its key carries its name",
            config.key.display(),
            key.vkey().name(),
            config.name
        )));
    }
    Ok(key)
}

/// The key that wraps all others.
pub fn load_wrapper(config: &AuditConfig) -> Outcome<LocalWrapper> {
    wrapper_in(&config.wrapping_key)
}

/// A key that wraps others.
pub fn wrapper_in(path: &Path) -> Outcome<LocalWrapper> {
    let text = keys::load_text(path).map_err(Failure::state)?;
    text.parse().map_err(|error| Failure::state(format!("the key file {}: {error}", path.display())))
}

/// Where its events are.
pub fn store(config: &AuditConfig) -> std::path::PathBuf {
    config.directory.join(STORE)
}

/// Where the indexes are.
pub fn index(config: &AuditConfig) -> std::path::PathBuf {
    config.directory.join(INDEX)
}

/// Where the pin of the log is.
pub fn pin(config: &AuditConfig) -> std::path::PathBuf {
    config.directory.join(PIN)
}

/// One table of the list.
#[derive(Serialize)]
struct SourceTable<'a> {
    vkey: String,
    owner: &'a str,
    collector: &'a str,
    enrolled_at_ms: u64,
    heartbeat_ms: u64,
}

#[derive(Serialize)]
struct SourceTables<'a> {
    source: [SourceTable<'a>; 1],
}

/// Adds a source to the list, which a running service may be reading: behind all that is there, so that comments stay, and by rename,
/// so that nobody reads half of it.
pub fn enrol(config: &AuditConfig, source: &Enrolled) -> Outcome {
    FormatFile::of(Kind::Audit).check(&config.directory).map_err(Failure::state)?;
    let path = config.list();
    let cannot = |error: &dyn std::fmt::Display| {
        Failure::state(format!("cannot change {}: {error}; it is as it was", path.display()))
    };
    let listed = load_sources(&path)?;
    if let Some(known) = listed.iter().find(|known| known.vkey.id() == source.vkey.id()) {
        return Err(Failure::usage(format!(
            "{} is enrolled already, for {}; nothing was changed",
            known.vkey.name(),
            known.collector
        )));
    }
    let before = fs::read_to_string(&path).map_err(|error| cannot(&error))?;
    let table = SourceTable {
        vkey: source.vkey.to_string(),
        owner: &source.owner,
        collector: &source.collector,
        enrolled_at_ms: source.enrolled_at.0,
        heartbeat_ms: source.heartbeat_ms,
    };
    let added = toml::to_string(&SourceTables { source: [table] }).map_err(Failure::state)?;
    // It also keeps out a second one that would add a source at the same time.
    let new = path.with_extension("toml.new");
    let after = format!("{before}\n{added}");
    keys::create_text(&new, 0o600, after.trim_end()).map_err(|error| {
        Failure::state(format!(
            "cannot write {}: {error}. If another `enrol` was cut off, delete it. Nothing was changed",
            new.display()
        ))
    })?;
    let checked = load_sources(&new).and_then(|list| {
        let registry = epigraph_audit::registry::Registry::default();
        registry.replace(list).map_err(Failure::usage)
    });
    if let Err(failure) = checked {
        let _ = fs::remove_file(&new);
        return Err(failure);
    }
    fs::rename(&new, &path).map_err(|error| cannot(&error))?;
    fs::File::open(&config.directory).and_then(|dir| dir.sync_all()).map_err(|error| {
        Failure::state(format!(
            "{} was replaced, but may be the old one after a power cut: {error}",
            path.display()
        ))
    })
}
