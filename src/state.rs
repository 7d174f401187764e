//! The directories of the log process: created once by `init`, opened and checked by `serve`. One for the process, with
//! one inside it for each log, and beside it one for each log's embedded signer. [`signer`] is the same for a signer process.

pub mod audit;
pub mod collector;
pub mod monitor;
pub mod rekey;
pub mod signer;
pub mod witness;

use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use epigraph_core::progress::Held;
use epigraph_core::{Entropy, KeyName, Origin, Policy, SigningKey, UnixMillis, VKey};
use epigraph_signer::keys;
use epigraph_store::file::Dir;
use epigraph_store::file::real::RealDir;
use epigraph_store::head::HeadStore;
use epigraph_store::history::{Found, History};
use epigraph_store::journal::{Config, Journal, MAX_FRAME_BYTES};
use epigraph_store::lock::{DirLock, FormatFile, Kind};
use epigraph_store::published::PublishedStore;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::config::{
    EmbeddedConfig, LogConfig, ProcessConfig, SignerConfig, load_toml, log_inside_signer, signer_inside_log,
};
use crate::failure::{Failure, Outcome};
use crate::runtime;

/// In a log's own directory: what never changes about it.
const LOG_FILE: &str = "log.toml";

/// [`LOG_FILE`]: what never changes about it, written once by `init`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LogFile {
    origin: String,
    vkey: String,
    segment_bytes: u64,
}

/// The log's directory and the signer's, locked, checked, and open.
pub struct LogState {
    pub origin: Origin,
    pub policy: Policy,
    /// The embedded signer's key and heads; `None` if the signer is another process.
    pub signer: Option<(SigningKey, HeadStore)>,
    pub published: PublishedStore,
    /// Where published checkpoints are, and evidence.
    pub checkpoints: Arc<dyn Dir>,
    /// Earlier published checkpoints; `None` if they cannot be read, which stops nothing.
    pub history: Option<Arc<History>>,
    pub journal: Journal,
    pub journal_dir: Arc<dyn Dir>,
    /// Where the stored tree is, or will be. It may be deleted.
    pub tree_directory: PathBuf,
}

/// A log that `init` created.
pub struct Created {
    pub origin: KeyName,
    pub directory: PathBuf,
    pub vkey: VKey,
}

/// Creates the state of those logs that have none yet, and of their embedded signers. A log that is there is left as it is.
pub fn init(config: &ProcessConfig, now: UnixMillis, entropy: &Arc<dyn Entropy>) -> Outcome<Vec<Created>> {
    let mut missing = Vec::new();
    for log in &config.logs {
        let made = log.directory.join(LOG_FILE).exists();
        let SignerConfig::Embedded(EmbeddedConfig { directory: signer, .. }) = &log.signer else {
            if !made {
                missing.push(log);
            }
            continue;
        };
        match (made, signer.join("format").exists()) {
            (false, false) => missing.push(log),
            (true, true) => {}
            (one, _) => {
                let log = &log.directory;
                let (whole, not) = if one { (log, signer) } else { (signer, log) };
                return Err(Failure::state(format!(
                    "{} is initialised, {} is not. If a directory was lost, put its newest copy back: a fresh one could sign a \
                     second history. If an earlier `init` was cut off and nothing was ever served, delete both and run it \
                     again. Nothing was changed",
                    whole.display(),
                    not.display()
                )));
            }
        }
    }
    if missing.is_empty() {
        let message = format!("{} is initialised already; nothing was changed", config.directory.display());
        return Err(Failure::state(message));
    }
    create_dir(&config.directory)?;
    let _lock = lock_directory(&config.directory)?;
    let mut created = Vec::new();
    for log in missing {
        let vkey = init_log(config, log, now, entropy)?;
        created.push(Created { origin: log.origin.clone(), directory: log.directory.clone(), vkey });
    }
    let format = FormatFile::of(Kind::Log);
    if !config.directory.join("format").exists() {
        format.create(&config.directory).map_err(Failure::state)?;
    }
    Ok(created)
}

fn init_log(
    process: &ProcessConfig,
    config: &LogConfig,
    now: UnixMillis,
    entropy: &Arc<dyn Entropy>,
) -> Outcome<VKey> {
    let origin = config.origin.to_origin();
    let vkey = match &config.signer {
        SignerConfig::Embedded(signer) => init_signer(process, config, signer, &origin, entropy)?,
        SignerConfig::Remote(signer) => signer.vkey.clone(),
    };

    let log = &config.directory;
    let (journal, checkpoints) = (log.join("journal"), log.join("checkpoints"));
    create_dir(&journal)?;
    create_dir(&checkpoints)?;
    PublishedStore::create(open_dir(&checkpoints)?).map_err(Failure::state)?;
    let sizes = journal_config(config.segment_bytes)?;
    Journal::create(open_dir(&journal)?, origin.hash(), sizes, now, Arc::clone(entropy))
        .map_err(Failure::state)?;
    let file = LogFile {
        origin: origin.as_str().into(),
        vkey: vkey.to_string(),
        segment_bytes: config.segment_bytes,
    };
    let text = toml::to_string(&file).map_err(Failure::state)?;
    // Last: a directory without it was not initialised to the end.
    let path = log.join(LOG_FILE);
    write_durably(&path, &text)
        .map_err(|error| Failure::state(format!("cannot write {}: {error}", path.display())))?;
    Ok(vkey)
}

/// Creates the embedded signer of a new log. Returns the vkey of its key, which is made if it is not there.
fn init_signer(
    process: &ProcessConfig,
    config: &LogConfig,
    signer: &EmbeddedConfig,
    origin: &Origin,
    entropy: &Arc<dyn Entropy>,
) -> Outcome<VKey> {
    create_dir(&signer.directory)?;
    let _lock = lock_signer(process, signer)?;
    let vkey = load_or_create_key(&signer.key, &config.origin, entropy)?;
    let mut heads = HeadStore::create(open_dir(&signer.directory)?, 1, &**entropy).map_err(Failure::state)?;
    heads.init_log(origin, Held::EMPTY).map_err(Failure::state)?;
    FormatFile::of(Kind::Signer).create(&signer.directory).map_err(Failure::state)?;
    Ok(vkey)
}

/// The public half of the key in the file, which carries the log's name; the key is made if the file is not there.
fn load_or_create_key(path: &Path, origin: &KeyName, entropy: &Arc<dyn Entropy>) -> Outcome<VKey> {
    if path.exists() {
        return Ok(load_key(path, origin)?.vkey().clone());
    }
    let mut seed = Zeroizing::new([0; 32]);
    entropy.fill(&mut *seed);
    let key = SigningKey::from_seed(origin.clone(), &seed);
    if let Some(dir) = path.parent() {
        create_dir(dir)?;
    }
    keys::create(path, &key).map_err(Failure::state)?;
    Ok(key.vkey().clone())
}

fn load_key(path: &Path, origin: &KeyName) -> Outcome<SigningKey> {
    let key = keys::load(path).map_err(Failure::state)?;
    if key.vkey().name() == origin {
        return Ok(key);
    }
    Err(Failure::state(format!(
        "the key in {} is named {}, but the log is {origin}: a log's key carries the log's name",
        path.display(),
        key.vkey().name(),
    )))
}

/// Checks and locks the directory of the process, until the process ends.
pub fn open_process(config: &ProcessConfig) -> Outcome {
    FormatFile::of(Kind::Log).check(&config.directory).map_err(Failure::state)?;
    keep(lock_directory(&config.directory)?);
    Ok(())
}

/// The system gives a lock up with the process, and nobody sooner: a thread that is still writing when the log fails must
/// not meet a second process.
fn keep(lock: DirLock) {
    std::mem::forget(lock);
}

/// Opens what `init` created for one log. A missing piece is a refusal, never a fresh start.
pub fn open(process: &ProcessConfig, config: &LogConfig, entropy: &Arc<dyn Entropy>) -> Outcome<LogState> {
    if let SignerConfig::Embedded(signer) = &config.signer {
        FormatFile::of(Kind::Signer).check(&signer.directory).map_err(Failure::state)?;
        keep(lock_signer(process, signer)?);
    }
    let log = &config.directory;
    let origin = config.origin.to_origin();
    let (file, vkey) = read_log_file(config)?;
    let signer = match &config.signer {
        SignerConfig::Embedded(signer) => {
            let key = load_key(&signer.key, &config.origin)?;
            same_key(config, &signer.key.display(), key.vkey(), &vkey)?;
            Some((key, open_heads(&signer.directory)?))
        }
        SignerConfig::Remote(signer) => {
            same_key(config, &"the configuration", &signer.vkey, &vkey)?;
            None
        }
    };
    let checkpoints = log.join("checkpoints");
    let checkpoints_dir = open_dir(&checkpoints)?;
    let (published, repaired) = PublishedStore::open(Arc::clone(&checkpoints_dir))
        .map_err(|error| Failure::state(format!("{}: {error}", checkpoints.display())))?;
    if let Some(repaired) = repaired {
        tracing::warn!(directory = %checkpoints.display(), %repaired, "the published checkpoint");
    }
    let history = open_history(&checkpoints)?;
    let journal_path = log.join("journal");
    let journal_dir = open_dir(&journal_path)?;
    let sizes = journal_config(file.segment_bytes)?;
    let (journal, opened) =
        Journal::open(Arc::clone(&journal_dir), origin.hash(), sizes, Arc::clone(entropy))
            .map_err(|error| Failure::state(format!("{}: {error}", journal_path.display())))?;
    if let Some(cut) = opened.cut {
        tracing::warn!(directory = %journal_path.display(), ?cut, "an unfinished frame was cut off; it was never acknowledged");
    }
    let policy = policy(config, vkey)?;
    let tree_directory = log.join("tree");
    Ok(LogState {
        origin,
        policy,
        signer,
        published,
        checkpoints: checkpoints_dir,
        history,
        journal,
        journal_dir,
        tree_directory,
    })
}

/// Whatever is wrong with the history is told and stops nothing.
fn open_history(checkpoints: &Path) -> Outcome<Option<Arc<History>>> {
    match History::open(open_dir(checkpoints)?, runtime::clock()) {
        Ok((history, Found { damaged, kept_aside })) => {
            if damaged > 0 {
                let kept_aside = kept_aside.as_deref().unwrap_or("nowhere: too many are kept already");
                tracing::warn!(directory = %checkpoints.display(), damaged, kept_aside, "the history of checkpoints was damaged");
            }
            Ok(Some(Arc::new(history)))
        }
        Err(error) => {
            tracing::warn!(directory = %checkpoints.display(), %error, "the log runs without the history of its checkpoints");
            Ok(None)
        }
    }
}

/// What this log's checkpoints must satisfy. Other logs of the policy are left out: a witness that shows one of theirs shows
/// nothing of ours.
pub fn policy(config: &LogConfig, vkey: VKey) -> Outcome<Policy> {
    let Some(witnessing) = &config.witnessing else { return Ok(Policy::of_log(vkey)) };
    witnessing.policy.only_for(&vkey).ok_or_else(|| {
        Failure::usage(format!(
            "the policy of {} has no line `log {vkey}`: without it nobody who has this policy would believe the log's checkpoints",
            config.origin
        ))
    })
}

fn same_key(config: &LogConfig, of: &dyn Display, vkey: &VKey, of_log: &VKey) -> Outcome {
    if vkey == of_log {
        return Ok(());
    }
    Err(Failure::state(format!(
        "the key in {of} is not the log's: its vkey is {vkey}, and {} says {of_log}. Nothing was signed; put the log's own key \
         back",
        config.directory.join(LOG_FILE).display()
    )))
}

fn open_heads(directory: &Path) -> Outcome<HeadStore> {
    let (heads, warnings) = HeadStore::open(open_dir(directory)?)
        .map_err(|error| Failure::state(format!("{}: {error}", directory.display())))?;
    for warning in warnings {
        tracing::warn!(directory = %directory.display(), %warning, "the signer's state");
    }
    Ok(heads)
}

fn read_log_file(config: &LogConfig) -> Outcome<(LogFile, VKey)> {
    let path = config.directory.join(LOG_FILE);
    let file: LogFile = load_toml(&path).map_err(|error| {
        Failure::state(format!(
            "{error}. There is no log of the origin {}, or its directory lost this file: check `origin` and \
             `directory`, and if the log is a new one, run `init log` first",
            config.origin
        ))
    })?;
    let vkey: VKey =
        file.vkey.parse().map_err(|error| Failure::state(format!("{}: {error}", path.display())))?;
    if file.origin != config.origin.as_str() || vkey.name() != &config.origin {
        let message = format!("{} is of the log {}, not of {}", path.display(), file.origin, config.origin);
        return Err(Failure::state(message));
    }
    Ok((file, vkey))
}

/// The directories of a log process that is not running, locked so that it stays so. Nothing in them is opened or changed.
pub struct Stopped {
    _locks: Vec<DirLock>,
}

/// Locks all directories. Refused if the process runs, or if they are not what `init` created.
pub fn lock_stopped(config: &ProcessConfig) -> Outcome<Stopped> {
    FormatFile::of(Kind::Log).check(&config.directory).map_err(Failure::state)?;
    let mut locks = vec![lock_directory(&config.directory)?];
    for log in &config.logs {
        if let SignerConfig::Embedded(signer) = &log.signer {
            FormatFile::of(Kind::Signer).check(&signer.directory).map_err(Failure::state)?;
            locks.push(lock_signer(config, signer)?);
        }
    }
    Ok(Stopped { _locks: locks })
}

/// Locks the directory of a signer or witness process. Refused if the process runs, or if it is not what `init` created.
pub fn lock_role(kind: Kind, directory: &Path) -> Outcome<DirLock> {
    FormatFile::of(kind).check(directory).map_err(Failure::state)?;
    lock_directory(directory)
}

/// The log's key as its own directory names it, or why that cannot be read.
pub fn vkey(config: &LogConfig) -> Outcome<VKey> {
    read_log_file(config).map(|(_, vkey)| vkey)
}

fn journal_config(segment_bytes: u64) -> Outcome<Config> {
    Config::new(segment_bytes, MAX_FRAME_BYTES).map_err(Failure::usage)
}

fn lock_directory(directory: &Path) -> Outcome<DirLock> {
    DirLock::acquire(directory).map_err(Failure::state)
}

fn lock_signer(process: &ProcessConfig, signer: &EmbeddedConfig) -> Outcome<DirLock> {
    // The configuration was checked by its text, behind which links and `..` can hide.
    let real = |dir: &Path| {
        fs::canonicalize(dir)
            .map_err(|error| Failure::state(format!("cannot find the directory {}: {error}", dir.display())))
    };
    let (real_signer, log) = (real(&signer.directory)?, real(&process.directory)?);
    if real_signer.starts_with(&log) {
        return Err(Failure::usage(signer_inside_log(&signer.directory)));
    }
    if log.starts_with(&real_signer) {
        return Err(Failure::usage(log_inside_signer(&process.directory)));
    }
    lock_directory(&signer.directory)
}

/// Creates a directory and what is missing above it, durably: an entry that is synced in a directory which itself is lost
/// with the power would be lost with it.
fn create_dir(dir: &Path) -> Outcome {
    let create = |dir: &Path| {
        let mut missing: Vec<&Path> =
            dir.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists()).collect();
        while let Some(dir) = missing.pop() {
            fs::create_dir(dir)?;
            let parent =
                dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            fs::File::open(parent)?.sync_all()?;
        }
        Ok::<_, std::io::Error>(())
    };
    create(dir).map_err(|error| Failure::state(format!("cannot create {}: {error}", dir.display())))
}

pub fn open_dir(dir: &Path) -> Outcome<Arc<dyn Dir>> {
    let dir = RealDir::open(dir)
        .map_err(|error| Failure::state(format!("cannot open the directory {}: {error}", dir.display())))?;
    Ok(Arc::new(dir))
}

fn write_durably(path: &Path, text: &str) -> std::io::Result<()> {
    fs::write(path, text)?;
    fs::File::open(path)?.sync_all()?;
    match path.parent() {
        Some(dir) => fs::File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}
