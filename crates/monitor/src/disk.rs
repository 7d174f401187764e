//! The monitor's directory: small files that are replaced as a whole, and evidence that is written once.
//!
//! A replaced file is its old content or its new one whatever happens, carries its own checksum, and comes into being through
//! `create` and `add_log` alone: one that is missing or cannot be read is an error, never a fresh start. What the files say is
//! the business of those who made them; docs/formats/monitor.md describes the bytes.

mod inspect;

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use epigraph_core::hash::sha256;
use epigraph_core::{Hash, Origin};
use epigraph_store::file::Dir;
use thiserror::Error;

use crate::book::Book;
use crate::finding::EvidenceId;
use crate::progress::{Progress, StateError};

pub use inspect::{Badness, Flaw, Inspected, Inspection, Part, inspect};

/// The longest content: a full book of the longest details takes 8 MiB, the heads of one log less.
pub const MAX_STATE_BYTES: usize = 32 << 20;

/// The longest evidence or statement: two notes and two proofs, or some notes.
pub const MAX_EVIDENCE_BYTES: usize = 4 << 20;

/// Evidence files that are kept. The book names at most 1,024; of those that it named once, the rest may go.
pub const MAX_EVIDENCE_FILES: usize = 2_048;

/// Every crash point of the monitor's directory, and what a crash there leaves.
pub const CRASH_POINTS: [(&str, &str); 2] = [
    ("monitor.state.synced", "A new file beside the old one, which is still the one that is read."),
    ("monitor.state.renamed", "The old file or the new one, whole."),
];

const MAGIC: &[u8; 8] = b"EPGMONIT";
const VERSION: u32 = 1;
/// Magic, version, length, and the SHA-256 of the content.
const HEADER: usize = 8 + 4 + 4 + Hash::LEN;

const BOOK: &str = "book";
/// Behind the name of a file that is being written.
const NEW: &str = ".new";

/// Why the directory was refused, or what became of a write. After [`DiskError::Fatal`] the process must end.
#[derive(Debug, Error)]
pub enum DiskError {
    /// A file is not there.
    #[error(
        "the monitor's file {0} is missing; files of a monitor are created by `init` only. Put the directory back from a backup \
         (an older one does no harm), or initialise a new one"
    )]
    Missing(String),
    /// `create` found a file.
    #[error("the monitor's file {0} exists already; to start anew choose an empty directory")]
    Exists(String),
    /// A file is not what was written.
    #[error(
        "the monitor's file {name} is damaged: {why}. Keep it, and put the directory back from a backup; an older one does no harm"
    )]
    Damaged {
        /// Which.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// Another version of the format.
    #[error("the monitor's file {name} has version {version}; use the release of Epigraph that wrote it")]
    Version {
        /// Which.
        name: String,
        /// The version found.
        version: u32,
    },
    /// More than there is room for.
    #[error("the monitor's file {name} would have {length} bytes, more than fit")]
    TooLong {
        /// Which.
        name: String,
        /// How many.
        length: usize,
    },
    /// The file system failed while nothing was promised yet.
    #[error(
        "cannot {action} the monitor's file {name}: {source}; check the disk and its permissions, then start again"
    )]
    Io {
        /// What was tried.
        action: &'static str,
        /// Which.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// A write or sync failed, so nobody knows what is on the disk.
    #[error(
        "writing the monitor's file {name} failed: {source}; the monitor must end, and starting again checks the disk"
    )]
    Fatal {
        /// Which.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// An earlier write failed.
    #[error(
        "an earlier write of the monitor's files failed; the monitor must end, and starting again checks the disk"
    )]
    Failed,
}

/// The open directories. They have one owner; `&mut` is the lock.
pub struct Disk {
    state: Arc<dyn Dir>,
    evidence: Arc<dyn Dir>,
    failed: bool,
}

/// What a monitor knows of one log.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LogState {
    /// The heads that were seen, as the comparing machine wrote them; empty before it did.
    pub heads: Vec<u8>,
    /// How far the audits are.
    pub progress: Progress,
}

/// Makes the files of a monitor without logs.
pub fn create(state: Arc<dyn Dir>) -> Result<(), DiskError> {
    create_file(&*state, BOOK, &Book::new().encode())
}

/// Makes the files of one log, of which nothing is known yet.
pub fn add_log(state: Arc<dyn Dir>, origin: &Origin) -> Result<(), DiskError> {
    // The second one is looked for first: after a crash between the two the first may be made again.
    let (heads, progress) = (heads_name(origin), progress_name(origin));
    let names = list(&*state)?;
    if names.contains(&progress) {
        return Err(DiskError::Exists(progress));
    }
    if !names.contains(&heads) {
        create_file(&*state, &heads, &[])?;
    }
    create_file(&*state, &progress, &Progress::default().encode())
}

/// Whether the log was added.
pub fn has_log(state: &dyn Dir, origin: &Origin) -> Result<bool, DiskError> {
    Ok(list(state)?.contains(&progress_name(origin)))
}

impl Disk {
    /// Opens the directory of the state and that of the evidence, and reads the book.
    pub fn open(state: Arc<dyn Dir>, evidence: Arc<dyn Dir>) -> Result<(Disk, Book), DiskError> {
        let book = read(&*state, BOOK)?;
        let book = Book::decode(&book).map_err(|error| damaged(BOOK, &error))?;
        let mut disk = Disk { state, evidence, failed: false };
        disk.remove_unfinished()?;
        disk.forget_evidence(&book)?;
        Ok((disk, book))
    }

    /// Reads what is known of a log.
    pub fn log(&self, origin: &Origin) -> Result<LogState, DiskError> {
        let heads = read(&*self.state, &heads_name(origin))?;
        let name = progress_name(origin);
        let progress =
            Progress::decode(&read(&*self.state, &name)?).map_err(|error| damaged(&name, &error))?;
        Ok(LogState { heads, progress })
    }

    /// Replaces the book, durably.
    pub fn keep_book(&mut self, book: &Book) -> Result<(), DiskError> {
        self.replace(BOOK, &book.encode())
    }

    /// Replaces the heads of a log, durably.
    pub fn keep_heads(&mut self, origin: &Origin, heads: &[u8]) -> Result<(), DiskError> {
        self.replace(&heads_name(origin), heads)
    }

    /// Replaces the progress of a log's audits, durably.
    pub fn keep_progress(&mut self, origin: &Origin, progress: &Progress) -> Result<(), DiskError> {
        self.replace(&progress_name(origin), &progress.encode())
    }

    /// Writes evidence or a statement, durably; its name is what it is. The book that names it is kept after it.
    pub fn keep_evidence(&mut self, file: &[u8]) -> Result<EvidenceId, DiskError> {
        let id = EvidenceId::of(file);
        let name = id.to_string();
        if file.len() > MAX_EVIDENCE_BYTES {
            return Err(DiskError::TooLong { name, length: file.len() });
        }
        if self.failed {
            return Err(DiskError::Failed);
        }
        // One that is there and damaged is written again.
        if matches!(self.evidence(id), Ok(Some(_))) {
            return Ok(id);
        }
        let written = write(&*self.evidence, &name, file);
        self.failed = written.is_err();
        written.map_err(|source| DiskError::Fatal { name, source })?;
        Ok(id)
    }

    /// The evidence or statement of this name; `None` if there is none. One that is not what its name says is an error.
    pub fn evidence(&self, id: EvidenceId) -> Result<Option<Bytes>, DiskError> {
        let name = id.to_string();
        let Some(bytes) = read_raw(&*self.evidence, &name, MAX_EVIDENCE_BYTES)? else { return Ok(None) };
        if EvidenceId::of(&bytes) != id {
            let why = "its SHA-256 is not its name".to_owned();
            return Err(DiskError::Damaged { name, why });
        }
        Ok(Some(bytes.into()))
    }

    /// Removes evidence that no finding names any more, if there is much of it.
    pub fn forget_evidence(&mut self, book: &Book) -> Result<(), DiskError> {
        let io = |name: &str, source| DiskError::Io { action: "remove", name: name.to_owned(), source };
        let names = list(&*self.evidence)?;
        if names.len() <= MAX_EVIDENCE_FILES {
            return Ok(());
        }
        let named: BTreeSet<String> =
            book.findings().filter_map(|finding| finding.evidence).map(|id| id.to_string()).collect();
        for name in names.iter().filter(|name| EvidenceId::from_hex(name).is_some() && !named.contains(*name))
        {
            self.evidence.remove(name).map_err(|source| io(name, source))?;
        }
        Ok(())
    }

    fn remove_unfinished(&self) -> Result<(), DiskError> {
        for dir in [&self.state, &self.evidence] {
            for name in list(&**dir)?.iter().filter(|name| name.ends_with(NEW)) {
                let removed = dir.remove(name);
                removed.map_err(|source| DiskError::Io { action: "remove", name: name.clone(), source })?;
            }
        }
        Ok(())
    }

    fn replace(&mut self, name: &str, content: &[u8]) -> Result<(), DiskError> {
        if content.len() > MAX_STATE_BYTES {
            return Err(DiskError::TooLong { name: name.to_owned(), length: content.len() });
        }
        if self.failed {
            return Err(DiskError::Failed);
        }
        let written = write(&*self.state, name, &with_header(content));
        self.failed = written.is_err();
        written.map_err(|source| DiskError::Fatal { name: name.to_owned(), source })
    }
}

fn heads_name(origin: &Origin) -> String {
    format!("{}.heads", origin.hash())
}

fn progress_name(origin: &Origin) -> String {
    format!("{}.audit", origin.hash())
}

fn damaged(name: &str, error: &StateError) -> DiskError {
    DiskError::Damaged { name: name.to_owned(), why: error.to_string() }
}

fn list(dir: &dyn Dir) -> Result<Vec<String>, DiskError> {
    dir.list().map_err(|source| DiskError::Io { action: "look for", name: BOOK.to_owned(), source })
}

fn create_file(dir: &dyn Dir, name: &str, content: &[u8]) -> Result<(), DiskError> {
    if list(dir)?.iter().any(|found| found == name) {
        return Err(DiskError::Exists(name.to_owned()));
    }
    write(dir, name, &with_header(content)).map_err(|source| DiskError::Io {
        action: "create",
        name: name.to_owned(),
        source,
    })
}

fn with_header(content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + content.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    // No longer than `MAX_STATE_BYTES`.
    bytes.extend_from_slice(&(content.len() as u32).to_le_bytes());
    bytes.extend_from_slice(sha256(content).as_bytes());
    bytes.extend_from_slice(content);
    bytes
}

/// Puts a file in place of another one: a crash leaves the one or the other.
fn write(dir: &dyn Dir, name: &str, bytes: &[u8]) -> io::Result<()> {
    let new = format!("{name}{NEW}");
    match dir.remove(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = dir.create(&new)?;
    file.write_at(0, bytes)?;
    file.sync()?;
    dir.crash_point("monitor.state.synced");
    dir.rename(&new, name)?;
    dir.crash_point("monitor.state.renamed");
    dir.sync()
}

fn read(dir: &dyn Dir, name: &str) -> Result<Vec<u8>, DiskError> {
    let bytes = read_raw(dir, name, HEADER + MAX_STATE_BYTES)?;
    let bytes = bytes.ok_or_else(|| DiskError::Missing(name.to_owned()))?;
    let bad = |why: &str| DiskError::Damaged { name: name.to_owned(), why: why.to_owned() };
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| bad("it does not start with the magic bytes"))?;
    let (version, rest) = rest.split_first_chunk().ok_or_else(|| bad("it was cut short"))?;
    let version = u32::from_le_bytes(*version);
    if version != VERSION {
        return Err(DiskError::Version { name: name.to_owned(), version });
    }
    let (length, rest) = rest.split_first_chunk().ok_or_else(|| bad("it was cut short"))?;
    let (digest, content) =
        rest.split_first_chunk::<{ Hash::LEN }>().ok_or_else(|| bad("it was cut short"))?;
    if u32::from_le_bytes(*length) as usize != content.len() {
        return Err(bad("its length is not the one that it says"));
    }
    if sha256(content).as_bytes() != digest {
        return Err(bad("its checksum does not match"));
    }
    Ok(content.to_vec())
}

/// All bytes of a file; `None` if it is not there.
fn read_raw(dir: &dyn Dir, name: &str, most: usize) -> Result<Option<Vec<u8>>, DiskError> {
    let io = |source| DiskError::Io { action: "read", name: name.to_owned(), source };
    let file = match dir.open_read_only(name) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    let length = file.length().map_err(io)?;
    let length = usize::try_from(length).ok().filter(|length| *length <= most).ok_or_else(|| {
        let why = format!("it has {length} bytes, more than were ever written");
        DiskError::Damaged { name: name.to_owned(), why }
    })?;
    let mut bytes = vec![0; length];
    file.read_at(0, &mut bytes).map_err(io)?;
    Ok(Some(bytes))
}
