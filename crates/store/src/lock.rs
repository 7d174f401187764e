//! Who may use a directory: the `LOCK` file keeps a second process out, the `format` file keeps out the wrong
//! program and the wrong version.
//!
//! This is about processes and real directories, so it uses the operating system's files directly.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::{fmt, fs, process};

use thiserror::Error;

const LOCK: &str = "LOCK";
const FORMAT: &str = "format";
const NEW_FORMAT: &str = "format.new";
/// Only the owner reads and writes state.
const MODE: u32 = 0o600;
/// What is read of either file: longer than anything written into it.
const READ_LIMIT: u64 = 128;

/// An exclusive hold on a directory, for as long as the value lives; the system gives it up when the process
/// ends, however it ends.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
}

/// Why a directory was not locked.
#[derive(Debug, Error)]
pub enum LockError {
    /// Another process has it.
    #[error("{} is in use by {holder}; two processes on one directory would write two histories. Stop the other one, \
             or use another directory", dir.display())]
    Held {
        /// The directory.
        dir: PathBuf,
        /// The other process, as far as the file says.
        holder: String,
    },
    /// The file could not be opened, locked or written.
    #[error("cannot lock {}: {source}; the directory must exist (`init` creates it) and be writable, on a file \
             system with locks", dir.display())]
    Io {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl DirLock {
    /// Locks the directory without waiting. The file stays when the lock goes: removing it would let two
    /// processes lock two files of the same name.
    pub fn acquire(dir: &Path) -> Result<DirLock, LockError> {
        let error = |source| LockError::Io { dir: dir.to_owned(), source };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(MODE);
        let mut file = options.open(dir.join(LOCK)).map_err(error)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(LockError::Held { dir: dir.to_owned(), holder: holder(&mut file) });
            }
            Err(TryLockError::Error(source)) => return Err(error(source)),
        }
        // For the message above alone; nothing relies on it.
        let pid = format!("{}\n", process::id());
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(pid.as_bytes()))
            .map_err(error)?;
        Ok(DirLock { _file: file })
    }
}

fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.take(READ_LIMIT).read_to_string(&mut text);
    match (read, text.trim().parse::<u32>()) {
        (Ok(_), Ok(pid)) => format!("process {pid}"),
        _ => "another process".to_owned(),
    }
}

/// What a directory is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Journals, trees and published checkpoints.
    Log,
    /// The log's key and its heads.
    Signer,
    /// A witness's key and heads.
    Witness,
    /// What a monitor has seen and found, and its key.
    Monitor,
    /// Events, the keys that they are sealed under, and where each source stands.
    Audit,
    /// What a collector has read and not yet delivered.
    Collector,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Log => "log",
            Kind::Signer => "signer",
            Kind::Witness => "witness",
            Kind::Monitor => "monitor",
            Kind::Audit => "audit",
            Kind::Collector => "collector",
        })
    }
}

/// The `format` file: one line that says what the directory is and in which version, `epigraph <kind> v1`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FormatFile {
    kind: Kind,
}

/// Why a directory is not the right one.
#[derive(Debug, Error)]
pub enum FormatError {
    /// Nobody initialised the directory.
    #[error("{} has no `{FORMAT}` file: it was never initialised, or it is not the directory you mean. Run `init`, \
             or correct the path", dir.display())]
    Missing {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory was initialised before.
    #[error("{} is initialised already; to start anew choose an empty directory", dir.display())]
    Exists {
        /// The directory.
        dir: PathBuf,
    },
    /// It is for something else.
    #[error("{} says `{found}`, but `{wanted}` is needed; correct the path, or use the release of Epigraph that \
             wrote it", dir.display())]
    Other {
        /// The directory.
        dir: PathBuf,
        /// What the file says.
        found: String,
        /// What it should say.
        wanted: String,
    },
    /// The file could not be read or written.
    #[error("cannot use the `{FORMAT}` file of {}: {source}; check the disk and its permissions", dir.display())]
    Io {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl FormatFile {
    /// The file of a directory of this kind.
    pub fn of(kind: Kind) -> FormatFile {
        FormatFile { kind }
    }

    /// Writes the file, durably. To be done last when a directory is initialised: what has it is whole.
    pub fn create(self, dir: &Path) -> Result<(), FormatError> {
        let error = |source| FormatError::Io { dir: dir.to_owned(), source };
        if fs::exists(dir.join(FORMAT)).map_err(error)? {
            return Err(FormatError::Exists { dir: dir.to_owned() });
        }
        let write = || {
            let new = dir.join(NEW_FORMAT);
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(MODE).open(&new)?;
            file.write_all(self.text().as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, dir.join(FORMAT))?;
            File::open(dir)?.sync_all()
        };
        write().map_err(error)
    }

    /// Refuses a directory that does not say exactly this.
    pub fn check(self, dir: &Path) -> Result<(), FormatError> {
        let mut found = Vec::new();
        match File::open(dir.join(FORMAT)).and_then(|file| file.take(READ_LIMIT).read_to_end(&mut found)) {
            Ok(_) if found == self.text().as_bytes() => Ok(()),
            Ok(_) => Err(FormatError::Other {
                dir: dir.to_owned(),
                found: String::from_utf8_lossy(&found).trim().escape_debug().to_string(),
                wanted: self.text().trim().to_owned(),
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(FormatError::Missing { dir: dir.to_owned() })
            }
            Err(source) => Err(FormatError::Io { dir: dir.to_owned(), source }),
        }
    }

    fn text(self) -> String {
        format!("epigraph {} v1\n", self.kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_refused_and_told_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let lock = DirLock::acquire(dir.path()).unwrap();
        // Locks belong to the open file, so this process stands for another one.
        let message = DirLock::acquire(dir.path()).unwrap_err().to_string();
        assert!(message.contains(&format!("is in use by process {}; ", process::id())), "{message}");
        fs::write(dir.path().join(LOCK), "not a number").unwrap();
        let message = DirLock::acquire(dir.path()).unwrap_err().to_string();
        assert!(message.contains("is in use by another process; "), "{message}");
        drop(lock);
        fs::write(dir.path().join(LOCK), "4294967295 and more").unwrap();
        drop(DirLock::acquire(dir.path()).unwrap());
        assert_eq!(fs::read_to_string(dir.path().join(LOCK)).unwrap(), format!("{}\n", process::id()));
    }

    #[test]
    fn a_directory_that_is_not_there_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        assert!(matches!(DirLock::acquire(&missing), Err(LockError::Io { .. })));
        assert!(matches!(FormatFile::of(Kind::Log).check(&missing), Err(FormatError::Missing { .. })));
        assert!(!missing.exists());
    }

    #[test]
    fn only_the_right_kind_and_version_is_accepted() {
        let dir = tempfile::tempdir().unwrap();
        let signer = FormatFile::of(Kind::Signer);
        assert!(matches!(signer.check(dir.path()), Err(FormatError::Missing { .. })));
        signer.create(dir.path()).unwrap();
        assert_eq!(fs::read(dir.path().join(FORMAT)).unwrap(), b"epigraph signer v1\n");
        signer.check(dir.path()).unwrap();
        assert!(matches!(signer.create(dir.path()), Err(FormatError::Exists { .. })));
        let refused = [
            (Kind::Log, "epigraph signer v1\n"),
            (Kind::Signer, "epigraph signer v2\n"),
            (Kind::Signer, "epigraph signer v1"),
            (Kind::Signer, "epigraph signer v1\n\n"),
            (Kind::Signer, ""),
        ];
        for (kind, text) in refused {
            fs::write(dir.path().join(FORMAT), text).unwrap();
            let error = FormatFile::of(kind).check(dir.path()).unwrap_err();
            assert!(matches!(error, FormatError::Other { .. }), "{text:?}: {error}");
        }
    }
}
