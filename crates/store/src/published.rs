//! The newest published checkpoint of one log, in two copies: what the log serves after a restart, and what it
//! must not fall behind.
//!
//! It knows a note as bytes; whether it is signed, and by whom, is checked by whoever reads it. The bytes of the
//! two files `current-a` and `current-b` are described in docs/formats/published.md.
//!
//! A store writes one copy, syncs it, then the other and syncs that, and is acknowledged only then. So at every
//! moment one copy is whole, and after the acknowledgement both hold the new note: one rotten copy can never
//! bring back an older one.

use std::sync::Arc;
use std::{fmt, io};

use epigraph_core::note::MAX_NOTE_BYTES;
use thiserror::Error;

use crate::fields::Fields;
use crate::file::{Dir, File};

const NAMES: [&str; 2] = ["current-a", "current-b"];
const NEW_NAMES: [&str; 2] = ["current-a.new", "current-b.new"];
const MAGIC: &[u8; 8] = b"EPGPUBLD";
const VERSION: u32 = 1;
/// Where the CRC stands; it covers the header's other bytes and the note.
const CRC: std::ops::Range<usize> = 12..16;
/// Bytes before the note.
const FIXED: usize = 28;
/// Each file is made so long at once that storing never has to allocate.
const FILE_LENGTH: usize = FIXED + MAX_NOTE_BYTES;

/// Every crash point of the published checkpoint, and what a crash there leaves.
pub const CRASH_POINTS: [(&str, &str); 1] =
    [("published.copy.synced", "The new note in one copy or in both. Open takes the newer one.")];

/// Why a copy was of no use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadCopy {
    /// The file is not there.
    Missing,
    /// The file is shorter than it was made.
    Short,
    /// It does not start as this format does.
    Magic,
    /// The checksum does not match.
    Checksum,
    /// Whole, but older than the other: a crash came between the two writes.
    Behind,
}

impl fmt::Display for BadCopy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BadCopy::Missing => "it is missing",
            BadCopy::Short => "it was cut short",
            BadCopy::Magic => "it does not start with the magic bytes",
            BadCopy::Checksum => "its checksum does not match",
            BadCopy::Behind => "it is older than the other copy",
        })
    }
}

/// A copy that was written again from the other when the store was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Repaired {
    /// The file's name.
    pub name: &'static str,
    /// What was wrong with it.
    pub bad: BadCopy,
}

impl fmt::Display for Repaired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the published checkpoint {} was repaired from its copy: {}", self.name, self.bad)
    }
}

/// Why the published checkpoint was refused. After [`PublishedError::Fatal`] the process must end.
#[derive(Debug, Error)]
pub enum PublishedError {
    /// Neither file is there.
    #[error(
        "both copies of the published checkpoint are missing; they are created by `init` only. If they were \
         there once, take the checkpoint from a witness or a client instead of starting from nothing"
    )]
    Missing,
    /// `create` found a file.
    #[error("{0} exists already; to start anew choose an empty directory")]
    Exists(&'static str),
    /// Neither copy is whole.
    #[error(
        "both copies of the published checkpoint are damaged ({}: {a}; {}: {b}); keep them, and take the \
         checkpoint from a witness or a client", NAMES[0], NAMES[1]
    )]
    Damaged {
        /// What is wrong with the first.
        a: BadCopy,
        /// What is wrong with the second.
        b: BadCopy,
    },
    /// Both are whole and of one sequence number, but not the same.
    #[error(
        "the two copies of the published checkpoint contradict one another; keep them and compare their notes"
    )]
    CopiesDiffer,
    /// Another version of the format.
    #[error("{name} has version {version}; use the release of Epigraph that wrote it")]
    Version {
        /// The file.
        name: &'static str,
        /// The version found.
        version: u32,
    },
    /// The file system failed while the files were created or opened. Nothing was acknowledged.
    #[error(
        "cannot {action} the published checkpoint: {source}; check the disk and its permissions, then start again"
    )]
    Io {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A note has 1 to [`MAX_NOTE_BYTES`] bytes.
    #[error("a published note has 1 to {MAX_NOTE_BYTES} bytes, this one has {0}")]
    NoteLength(usize),
    /// A write or sync failed, so nobody knows what is on the disk.
    #[error(
        "writing the published checkpoint failed: {0}; the process must end, and starting again checks the disk"
    )]
    Fatal(io::Error),
    /// An earlier write failed.
    #[error("an earlier write of the published checkpoint failed; the process must end")]
    Failed,
}

/// The open store. It has one owner; `&mut` is the lock.
pub struct PublishedStore {
    dir: Arc<dyn Dir>,
    files: [Box<dyn File>; 2],
    newest: Content,
    failed: bool,
}

/// What one file holds. An empty note says that nothing was published yet.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Content {
    sequence: u64,
    note: Vec<u8>,
}

impl PublishedStore {
    /// Creates both files, which say that nothing was published, and opens them. A crash leaves none, one or
    /// both; one alone opens, because its name is given only after both are whole.
    pub fn create(dir: Arc<dyn Dir>) -> Result<PublishedStore, PublishedError> {
        let names = dir.list().map_err(|source| PublishedError::Io { action: "look for", source })?;
        if let Some(name) = NAMES.into_iter().find(|name| names.iter().any(|found| found == name)) {
            return Err(PublishedError::Exists(name));
        }
        let nothing = Content { sequence: 0, note: Vec::new() };
        let create = || {
            for new in NEW_NAMES {
                write_new(&*dir, new, &names, &nothing)?;
            }
            for (new, name) in NEW_NAMES.into_iter().zip(NAMES) {
                dir.rename(new, name)?;
            }
            dir.sync()
        };
        create().map_err(|source| PublishedError::Io { action: "create", source })?;
        Ok(PublishedStore::open(dir)?.0)
    }

    /// Opens the two files, and writes the newest note again in place before it trusts it: the kernel may show
    /// pages that never reached the disk, if the process before this one ended on a failed sync.
    pub fn open(dir: Arc<dyn Dir>) -> Result<(PublishedStore, Option<Repaired>), PublishedError> {
        let (newest, bad) = read_both(&*dir)?;
        let settle = || {
            if let Some((copy, BadCopy::Missing)) = bad {
                write_new(&*dir, NEW_NAMES[copy], &dir.list()?, &newest)?;
                dir.rename(NEW_NAMES[copy], NAMES[copy])?;
                dir.sync()?;
            }
            let files = [dir.open(NAMES[0])?, dir.open(NAMES[1])?];
            let first = bad.map_or(0, |(copy, _)| copy);
            for copy in [first, 1 - first] {
                // In full, so that a file that was cut short has its length again.
                let mut bytes = encode(&newest);
                bytes.resize(FILE_LENGTH, 0);
                files[copy].write_at(0, &bytes)?;
                files[copy].sync()?;
            }
            Ok(files)
        };
        let files = settle().map_err(|source| PublishedError::Io { action: "settle", source })?;
        let repaired = bad.map(|(copy, bad)| Repaired { name: NAMES[copy], bad });
        Ok((PublishedStore { dir, files, newest, failed: false }, repaired))
    }

    /// The newest note, verbatim; `None` if nothing was published yet.
    pub fn current(&self) -> Option<&[u8]> {
        Some(self.newest.note.as_slice()).filter(|note| !note.is_empty())
    }

    /// Replaces the note. After `Ok` it is durable in both copies; after [`PublishedError::Fatal`] a restart
    /// finds it or the one before.
    pub fn store(&mut self, note: &[u8]) -> Result<(), PublishedError> {
        if self.failed {
            return Err(PublishedError::Failed);
        }
        if !(1..=MAX_NOTE_BYTES).contains(&note.len()) {
            return Err(PublishedError::NoteLength(note.len()));
        }
        let next = Content { sequence: self.newest.sequence + 1, note: note.to_vec() };
        let bytes = encode(&next);
        // A crash during the first write leaves the second copy as it was, one during the second write leaves
        // the first with the new note. Opening brings them together.
        let written = self.files.iter().try_for_each(|file| {
            file.write_at(0, &bytes)?;
            file.sync()?;
            self.dir.crash_point("published.copy.synced");
            Ok(())
        });
        self.failed = written.is_err();
        written.map_err(PublishedError::Fatal)?;
        self.newest = next;
        Ok(())
    }
}

/// Reads the newest note as opening would, and says which copy opening would repair. Changes nothing. `None` if
/// nothing was published yet.
pub fn inspect(dir: &dyn Dir) -> Result<(Option<Vec<u8>>, Option<Repaired>), PublishedError> {
    let (newest, bad) = read_both(dir)?;
    let repaired = bad.map(|(copy, bad)| Repaired { name: NAMES[copy], bad });
    Ok((Some(newest.note).filter(|note| !note.is_empty()), repaired))
}

/// The newest content, and the copy that does not hold it.
fn read_both(dir: &dyn Dir) -> Result<(Content, Option<(usize, BadCopy)>), PublishedError> {
    Ok(match (read_copy(dir, NAMES[0])?, read_copy(dir, NAMES[1])?) {
        (Err(BadCopy::Missing), Err(BadCopy::Missing)) => return Err(PublishedError::Missing),
        (Err(a), Err(b)) => return Err(PublishedError::Damaged { a, b }),
        (Err(bad), Ok(b)) => (b, Some((0, bad))),
        (Ok(a), Err(bad)) => (a, Some((1, bad))),
        (Ok(a), Ok(b)) if a == b => (a, None),
        (Ok(a), Ok(b)) if a.sequence == b.sequence => return Err(PublishedError::CopiesDiffer),
        (Ok(a), Ok(b)) if a.sequence < b.sequence => (b, Some((0, BadCopy::Behind))),
        (Ok(a), Ok(_)) => (a, Some((1, BadCopy::Behind))),
    })
}

fn write_new(dir: &dyn Dir, name: &str, present: &[String], content: &Content) -> io::Result<()> {
    if present.iter().any(|found| found == name) {
        dir.remove(name)?;
    }
    let file = dir.create(name)?;
    let mut bytes = encode(content);
    bytes.resize(FILE_LENGTH, 0);
    file.write_at(0, &bytes)?;
    file.sync()
}

fn encode(content: &Content) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(FILE_LENGTH);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&content.sequence.to_le_bytes());
    bytes.extend_from_slice(&(content.note.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&content.note);
    let crc = checksum(&bytes);
    bytes[CRC].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..CRC.start]), &bytes[CRC.end..])
}

/// A failed read is the outer error; the inner one says what a copy that could be read lacks.
fn read_copy(dir: &dyn Dir, name: &'static str) -> Result<Result<Content, BadCopy>, PublishedError> {
    let io = |source| PublishedError::Io { action: "read", source };
    let file = match dir.open_read_only(name) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Err(BadCopy::Missing)),
        Err(error) => return Err(io(error)),
    };
    if file.length().map_err(io)? < FILE_LENGTH as u64 {
        return Ok(Err(BadCopy::Short));
    }
    let mut bytes = vec![0; FILE_LENGTH];
    file.read_at(0, &mut bytes).map_err(io)?;
    match decode(&bytes) {
        Some((version, _)) if version != VERSION => Err(PublishedError::Version { name, version }),
        Some((_, copy)) => Ok(Ok(copy)),
        None if bytes.starts_with(MAGIC) => Ok(Err(BadCopy::Checksum)),
        None => Ok(Err(BadCopy::Magic)),
    }
}

/// Version and content, if the checksum is right.
fn decode(bytes: &[u8]) -> Option<(u32, Content)> {
    let mut fields = Fields(bytes.strip_prefix(MAGIC)?);
    let (version, crc) = (fields.u32()?, fields.u32()?);
    let (sequence, length) = (fields.u64()?, usize::try_from(fields.u32()?).ok()?);
    let note = fields.bytes(length)?.to_vec();
    // Half the range leaves every sequence number a successor.
    let whole = checksum(&bytes[..FIXED + length]) == crc && sequence <= u64::MAX / 2;
    whole.then_some((version, Content { sequence, note }))
}

#[cfg(test)]
mod tests;
