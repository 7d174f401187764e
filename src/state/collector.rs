//! The directory of a collector: created once by `init`, opened and checked by `collect`.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use epigraph_collector::spool::{Limits, Spool};
use epigraph_core::{Entropy, Hash, KeyName, SourceKey, SourceVKey, UnixMillis};
use epigraph_event::sensitive::TokenKey;
use epigraph_signer::keys;
use epigraph_store::file::Dir;
use epigraph_store::lock::{FormatFile, Kind};
use serde_json::json;
use zeroize::Zeroizing;

use super::{create_dir, keep, lock_directory, open_dir};
use crate::config::collector::CollectorConfig;
use crate::failure::{Failure, Outcome};
use crate::profile::client_tls;
use crate::runtime;
use crate::terminal::Terminal;

/// What was read and not delivered yet.
pub const SPOOL: &str = "spool";
/// What batches are signed with.
const KEY: &str = "keys/collector.key";
/// What sensitive values are replaced with the help of.
const TOKEN_KEY: &str = "keys/token.key";

/// A collector's directory, locked, checked and open.
pub struct CollectorState {
    /// With it batches are signed.
    pub key: SourceKey,
    /// With it sensitive values are replaced.
    pub token_key: TokenKey,
    /// What waits for delivery.
    pub spool: Spool,
    /// The files of the spool.
    pub spool_dir: Arc<dyn Dir>,
}

/// Creates a collector's state and its keys. The key's name is the source's.
pub fn init(
    directory: &Path,
    name: &KeyName,
    now: UnixMillis,
    entropy: &Arc<dyn Entropy>,
) -> Outcome<SourceVKey> {
    for path in ["format", SPOOL, KEY, TOKEN_KEY].map(|path| directory.join(path)) {
        let there = fs::exists(&path)
            .map_err(|error| Failure::state(format!("cannot look for {}: {error}", path.display())))?;
        if there {
            return Err(Failure::state(format!(
                "{} is there already: a collector is initialised once, and its keys are made with it. Choose another directory. \
                 Nothing was changed",
                path.display()
            )));
        }
    }
    create_dir(directory)?;
    let _lock = lock_directory(directory)?;
    create_dir(&directory.join("keys"))?;
    let spool = directory.join(SPOOL);
    create_dir(&spool)?;
    let key = SourceKey::from_seed(name.clone(), &draw(entropy));
    keys::create_source(&directory.join(KEY), &key).map_err(Failure::state)?;
    let token_key = Zeroizing::new(Hash::from_bytes(*draw(entropy)).to_string());
    keys::create_text(&directory.join(TOKEN_KEY), 0o600, &token_key).map_err(Failure::state)?;
    Spool::create(open_dir(&spool)?, key.vkey().id(), Limits::of(0).files, now, Arc::clone(entropy))
        .map_err(Failure::state)?;
    // Last: a directory without it was not initialised to the end.
    FormatFile::of(Kind::Collector).create(directory).map_err(Failure::state)?;
    Ok(key.vkey().clone())
}

/// Reads a configuration as `collect` would, and the files that it names; opens no spool and calls nobody.
pub fn check(path: &Path, terminal: Terminal) -> Outcome {
    let config = CollectorConfig::load(path)?;
    client_tls(&config.tls)?;
    let file = config.directory.join(KEY);
    let keys = fs::exists(&file).unwrap_or(true);
    if keys && *vkey(&config.directory)?.name() != config.name {
        return Err(Failure::state(format!(
            "the key in {} has another name than {}: put the right one back, or name the source as it is called",
            file.display(),
            config.name
        )));
    }
    let note = if keys { "" } else { "; its keys are not there yet, `init` makes them" };
    terminal.line(format_args!(
        "{} describes the collector {}, of {} files, for the log {}{note}",
        path.display(),
        config.name,
        config.inputs.len(),
        config.origin
    ));
    terminal.object(&json!({
        "valid": true,
        "name": config.name.as_str(),
        "keys": keys,
        "files": config.inputs.len(),
        "log": config.origin.as_str(),
    }));
    Ok(())
}

fn draw(entropy: &Arc<dyn Entropy>) -> Zeroizing<[u8; 32]> {
    let mut drawn = Zeroizing::new([0; 32]);
    entropy.fill(&mut *drawn);
    drawn
}

/// The key under which a collector signs.
pub fn vkey(directory: &Path) -> Outcome<SourceVKey> {
    Ok(keys::load_source(&directory.join(KEY)).map_err(Failure::state)?.vkey().clone())
}

/// Opens what `init` created. A missing piece is a refusal, never a fresh start.
pub fn open(directory: &Path, spool_bytes: u64) -> Outcome<CollectorState> {
    FormatFile::of(Kind::Collector).check(directory).map_err(Failure::state)?;
    keep(lock_directory(directory)?);
    let key = keys::load_source(&directory.join(KEY)).map_err(Failure::state)?;
    let token_file = directory.join(TOKEN_KEY);
    let text = keys::load_text(&token_file).map_err(Failure::state)?;
    let token_key = Hash::from_hex(&text).ok_or_else(|| {
        Failure::state(format!(
            "the key file {} holds no usable key: it has 64 hex digits",
            token_file.display()
        ))
    })?;
    let spool_dir = open_dir(&directory.join(SPOOL))?;
    let opened =
        Spool::open(Arc::clone(&spool_dir), key.vkey().id(), Limits::of(spool_bytes), runtime::entropy());
    let (spool, cut) = opened.map_err(Failure::state)?;
    if let Some(cut) = cut {
        tracing::warn!(
            segment = cut.segment,
            offset = cut.offset,
            saved_as = cut.saved_as,
            "the spool ended in a batch that was never completely written: it was cut off, and its events are read again"
        );
    }
    let token_key = TokenKey::from_bytes(Zeroizing::new(*token_key.as_bytes()));
    Ok(CollectorState { key, token_key, spool, spool_dir })
}
