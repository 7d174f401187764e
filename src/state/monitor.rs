//! The directory of a monitor: created by `init`, opened and checked by `serve`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use epigraph_core::{Entropy, SigningKey, VKey};
use epigraph_monitor::book::Book;
use epigraph_monitor::disk::{self, Disk};
use epigraph_monitor::sinks::queue::Queue;
use epigraph_signer::keys;
use epigraph_store::file::Dir;
use epigraph_store::lock::{FormatFile, Kind};
use zeroize::Zeroizing;

use super::{create_dir, keep, lock_directory, open_dir};
use crate::config::monitor::{MonitorConfig, SinkConfig, SinkKind};
use crate::failure::{Failure, Outcome};

/// Heads, progress and the book.
pub const STATE: &str = "state";
/// Evidence and statements.
pub const EVIDENCE: &str = "evidence";
/// A directory for each webhook.
const QUEUES: &str = "queue";
/// What a drill plants. Nothing in it is kept.
pub const DRILL: &str = "drill";

/// What was created.
pub struct Created {
    /// The monitor's public key.
    pub vkey: VKey,
    /// Logs that were not there before.
    pub logs: Vec<String>,
    /// Webhooks that had no queue before.
    pub webhooks: Vec<String>,
}

/// A monitor's directory, locked, checked and open.
pub struct MonitorState {
    /// With it the monitor signs what it observes.
    pub key: SigningKey,
    /// Its files.
    pub disk: Disk,
    /// What was found.
    pub book: Book,
    /// The queues of the webhooks, by their names.
    pub queues: BTreeMap<String, Queue>,
    /// For drills.
    pub drill: Arc<dyn Dir>,
}

/// Creates the state of a monitor and its key; or, if they are there, what they lack for logs and webhooks that the configuration
/// has by now.
pub fn init(config: &MonitorConfig, entropy: &dyn Entropy) -> Outcome<Created> {
    let directory = &config.directory;
    let is_new = !there(&directory.join("format"))?;
    let has_key = there(&config.key)?;
    if is_new && has_key {
        return Err(Failure::state(format!(
            "the key {} is there, but no state that goes with it in {}. Put the directory back, an older copy does no harm; or \
             choose a new name and a new key file. Only if an earlier `init` was cut off, delete the key. Nothing was changed",
            config.key.display(),
            directory.display()
        )));
    }
    if !is_new {
        FormatFile::of(Kind::Monitor).check(directory).map_err(Failure::state)?;
    }
    create_dir(directory)?;
    let _lock = lock_directory(directory)?;
    for part in [STATE, EVIDENCE, QUEUES, DRILL] {
        create_dir(&directory.join(part))?;
    }
    let state = open_dir(&directory.join(STATE))?;
    // After an `init` that was cut off the book may be there.
    if is_new && !there(&directory.join(STATE).join("book"))? {
        disk::create(Arc::clone(&state)).map_err(Failure::state)?;
    }
    let mut created =
        Created { vkey: vkey(config, is_new, entropy)?, logs: Vec::new(), webhooks: Vec::new() };
    for log in &config.logs {
        if !disk::has_log(&*state, &log.origin).map_err(Failure::state)? {
            disk::add_log(Arc::clone(&state), &log.origin).map_err(Failure::state)?;
            created.logs.push(log.origin.to_string());
        }
    }
    for webhook in config.sinks.iter().filter(|sink| matches!(sink.kind, SinkKind::Webhook(_))) {
        let queue = queue_directory(config, webhook);
        if !there(&queue)? {
            create_dir(&queue)?;
            created.webhooks.push(webhook.name.clone());
        }
    }
    if !is_new && created.logs.is_empty() && created.webhooks.is_empty() {
        let message = format!("{} is initialised already; nothing was changed", directory.display());
        return Err(Failure::state(message));
    }
    if is_new {
        // Last: a directory without it was not initialised to the end.
        FormatFile::of(Kind::Monitor).create(directory).map_err(Failure::state)?;
    }
    Ok(created)
}

fn vkey(config: &MonitorConfig, is_new: bool, entropy: &dyn Entropy) -> Outcome<VKey> {
    if !is_new {
        return Ok(load_key(config)?.vkey().clone());
    }
    let mut seed = Zeroizing::new([0; 32]);
    entropy.fill(&mut *seed);
    let key = SigningKey::from_seed(config.name.clone(), &seed);
    if let Some(dir) = config.key.parent() {
        create_dir(dir)?;
    }
    keys::create(&config.key, &key).map_err(Failure::state)?;
    Ok(key.vkey().clone())
}

/// The monitor's key, which carries its name.
pub fn load_key(config: &MonitorConfig) -> Outcome<SigningKey> {
    let key = keys::load(&config.key).map_err(Failure::state)?;
    if *key.vkey().name() != config.name {
        return Err(Failure::state(format!(
            "the key in {} is named {}, but the monitor is {}: a monitor's key carries the monitor's name",
            config.key.display(),
            key.vkey().name(),
            config.name
        )));
    }
    Ok(key)
}

/// Where the messages of a webhook wait.
pub fn queue_directory(config: &MonitorConfig, sink: &SinkConfig) -> PathBuf {
    config.directory.join(QUEUES).join(&sink.name)
}

fn there(path: &Path) -> Outcome<bool> {
    fs::exists(path).map_err(|error| Failure::state(format!("cannot look for {}: {error}", path.display())))
}

/// Opens what `init` created. A missing piece is a refusal, never a fresh start.
pub fn open(config: &MonitorConfig) -> Outcome<MonitorState> {
    let directory = &config.directory;
    FormatFile::of(Kind::Monitor).check(directory).map_err(Failure::state)?;
    keep(lock_directory(directory)?);
    let key = load_key(config)?;
    let state = open_dir(&directory.join(STATE))?;
    for log in &config.logs {
        if !disk::has_log(&*state, &log.origin).map_err(Failure::state)? {
            return Err(Failure::state(format!(
                "{} holds nothing of the log {}: if it is new in the configuration, run `epigraph init monitor` again, which adds it; \
                 if not, put the directory back",
                directory.display(),
                log.origin
            )));
        }
    }
    let (disk, book) = Disk::open(state, open_dir(&directory.join(EVIDENCE))?).map_err(Failure::state)?;
    let mut queues = BTreeMap::new();
    for sink in config.sinks.iter().filter(|sink| matches!(sink.kind, SinkKind::Webhook(_))) {
        let path = queue_directory(config, sink);
        if !there(&path)? {
            return Err(Failure::state(format!(
                "the webhook {} has no queue in {}: if it is new in the configuration, run `epigraph init monitor` again, which \
                 adds it",
                sink.name,
                path.display()
            )));
        }
        let queue = Queue::open(open_dir(&path)?);
        let queue = queue.map_err(|error| Failure::state(format!("{}: {error}", path.display())))?;
        queues.insert(sink.name.clone(), queue);
    }
    // It holds no state, so it may come into being here; one that somebody removed is no reason to refuse.
    let drill = directory.join(DRILL);
    create_dir(&drill)?;
    Ok(MonitorState { key, disk, book, queues, drill: open_dir(&drill)? })
}
