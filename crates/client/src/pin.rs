//! The client's pin: the newest checkpoint that it accepted, kept on disk, replaced only by proven growth.
//!
//! It is what makes a client notice that a log was put back. Whoever can write the file can make the client forget;
//! a file that cannot be read or does not verify is an error, never a fresh start.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use epigraph_core::checkpoint::CheckpointError;
use epigraph_core::evidence::MAX_EVIDENCE_BYTES;
use epigraph_core::note::MAX_NOTE_BYTES;
use epigraph_core::{Checkpoint, Evidence, Origin, Policy, TreeHead, Verified};
use thiserror::Error;

/// Of a root in a file's name: enough to tell two apart.
const SHOWN_ROOT_DIGITS: usize = 16;

/// Why the pin could not be read or replaced.
#[derive(Debug, Error)]
pub enum PinError {
    /// The file system.
    #[error("cannot {action} the pinned checkpoint {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What does not fit the pinned checkpoint could not be kept.
    #[error("cannot write {}: {source}", path.display())]
    Keep {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The checkpoint of another log.
    #[error(
        "the pinned checkpoint {} is of the log {found}, not of {wanted}: somebody changed it. Put the right one back from a \
         backup", path.display()
    )]
    OtherLog {
        /// Which file.
        path: PathBuf,
        /// The log that it is of.
        found: Origin,
        /// The log that it should be of.
        wanted: Origin,
    },
    /// The content does not verify any more.
    #[error(
        "the pinned checkpoint {} is not valid under this policy: {source}. If you changed the policy on purpose, `epigraph \
         policy repin` with the old one goes on from it; if not, somebody changed the file or the policy", path.display()
    )]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        source: CheckpointError,
    },
}

/// The pin of one log, in a directory of the client's own.
#[derive(Clone, Debug)]
pub struct Pin {
    origin: Origin,
    path: PathBuf,
}

/// The pin, held under its lock: no other process replaces it meanwhile.
pub struct LockedPin<'a> {
    pin: &'a Pin,
    _lock: File,
}

impl Pin {
    /// The pin of the log `origin` in the directory `state`, which is created if need be.
    pub fn new(state: &Path, origin: &Origin) -> Result<Pin, PinError> {
        let path = state.join(format!("{}.checkpoint", origin.hash()));
        fs::create_dir_all(state).map_err(|source| PinError::Io {
            action: "create",
            path: path.clone(),
            source,
        })?;
        Ok(Pin { origin: origin.clone(), path })
    }

    /// Waits for the lock, which is held for the time of a read and a rename.
    pub fn lock(&self) -> Result<LockedPin<'_>, PinError> {
        let lock = || {
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(self.path.with_extension("lock"))?;
            file.lock()?;
            Ok(file)
        };
        let file = lock().map_err(|source| self.error("lock", source))?;
        Ok(LockedPin { pin: self, _lock: file })
    }

    fn error(&self, action: &'static str, source: io::Error) -> PinError {
        PinError::Io { action, path: self.path.clone(), source }
    }
}

impl LockedPin<'_> {
    /// The pinned checkpoint; `None` only if there never was one.
    pub fn read(&self, policy: &Policy) -> Result<Option<Verified<Checkpoint>>, PinError> {
        let file = match File::open(&self.pin.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.pin.error("read", error)),
        };
        let mut note = Vec::new();
        file.take(MAX_NOTE_BYTES as u64 + 1)
            .read_to_end(&mut note)
            .map_err(|error| self.pin.error("read", error))?;
        let path = || self.pin.path.clone();
        let pinned =
            Checkpoint::open(&note, policy).map_err(|source| PinError::Invalid { path: path(), source })?;
        if *pinned.origin() != self.pin.origin {
            let (found, wanted) = (pinned.origin().clone(), self.pin.origin.clone());
            return Err(PinError::OtherLog { path: path(), found, wanted });
        }
        Ok(Some(pinned))
    }

    /// Replaces the pin, durably. The caller has proven that the checkpoint extends the one that was read.
    pub fn replace(&self, checkpoint: &Verified<Checkpoint>) -> Result<(), PinError> {
        let written = write(&self.pin.path, "new", checkpoint.note());
        written.map_err(|error| self.pin.error("replace", error))
    }

    /// Keeps a served checkpoint that does not fit the pinned one beside it; says where.
    pub(crate) fn keep_served(&self, served: &Verified<Checkpoint>) -> Result<PathBuf, PinError> {
        let path = self.pin.path.with_extension(format!("served-{}", served.head().size));
        write(&path, "served-new", served.note())
            .map_err(|source| PinError::Keep { path: path.clone(), source })?;
        Ok(path)
    }

    /// Keeps a note that somebody else showed beside the pin; says where. Two of one size have two names.
    pub(crate) fn keep_shown(&self, head: &TreeHead, note: &[u8]) -> Result<PathBuf, PinError> {
        let root: String = head.root.to_string().chars().take(SHOWN_ROOT_DIGITS).collect();
        let path = self.pin.path.with_extension(format!("shown-{}-{root}", head.size));
        write(&path, "shown-new", note).map_err(|source| PinError::Keep { path: path.clone(), source })?;
        Ok(path)
    }

    /// Keeps evidence about one key beside the pin; says where. What is there about that key stays: it proves as much, and a
    /// log that shows ever new heads fills no disk.
    pub(crate) fn keep_evidence(&self, evidence: &Evidence) -> Result<PathBuf, PinError> {
        let path = self.pin.path.with_extension(format!("{}.evidence", evidence.accused().id()));
        let held = File::open(&path).and_then(|file| {
            let mut bytes = Vec::new();
            file.take(MAX_EVIDENCE_BYTES as u64 + 1).read_to_end(&mut bytes)?;
            Ok(bytes)
        });
        let held = held.ok().and_then(|bytes| Evidence::decode(&bytes).ok());
        if held.is_none_or(|held| held.accused() != evidence.accused()) {
            let written = write(&path, "evidence-new", &evidence.encode());
            written.map_err(|source| PinError::Keep { path: path.clone(), source })?;
        }
        Ok(path)
    }
}

/// Puts a file in place of another one, durably: a crash leaves the old content or the new one.
fn write(path: &Path, temporary: &str, content: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension(temporary);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}
