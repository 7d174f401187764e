//! Published checkpoints of one log that were kept: what explains an old receipt. Nothing else needs them.
//!
//! So damage here stops nothing: a record that does not check is left out, counted, and kept aside with its file. It knows a note
//! as bytes; whether it is signed is checked by whoever serves it. The bytes of the file `history` and the rule by which
//! checkpoints are thinned are described in docs/formats/history.md.
//!
//! The newest published checkpoint is in [`crate::published`], which is the authority and is written first. After a crash
//! between the two the history lacks that one, and whoever opens both adds it.

mod rule;
#[cfg(test)]
mod tests;

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use epigraph_core::{Clock, TreeSize, UnixMillis};
use thiserror::Error;

use crate::fields::Fields;
use crate::file::{Dir, File};
pub use rule::{DAYS_OF_HOURS, MAX_OLD, RECENT, Stamp, thinned};

const NAME: &str = "history";
const NEW_NAME: &str = "history.new";
const MAGIC: &[u8; 8] = b"EPGHISTR";
/// Of the record's fields but the note.
const FIXED: usize = 32;
/// Where the CRC stands; it covers the record's other bytes.
const CRC: Range<usize> = 8..12;

/// A longer note is not kept: 64 KiB are hundreds of signatures.
pub const MAX_NOTE: usize = 64 << 10;

/// New records before the old ones are thinned again, so that writing the file anew costs little for each.
const THIN_EVERY: usize = 1_024;

/// The longest file. The largest number of records has room for some 6 KiB each; with longer ones the oldest go first.
pub const MAX_BYTES: u64 = 64 << 20;

/// Damaged files that are kept aside. A disk that goes on rotting does not fill itself with copies.
const MAX_ASIDE: usize = 4;

/// Every crash point of the history, and what a crash there leaves.
pub const CRASH_POINTS: [(&str, &str); 2] = [
    ("history.record.written", "A record that is torn or whole. Opening cuts off a torn one."),
    ("history.new.synced", "The old file, and a new one that opening removes."),
];

/// Why a checkpoint is not in the history, or cannot be read from it. The log goes on without.
#[derive(Debug, Error)]
pub enum HistoryError {
    /// The file system.
    #[error(
        "cannot {action} the history of checkpoints: {source}; the log goes on, but old receipts may become harder to explain. \
         Check the disk and its permissions"
    )]
    Io {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Longer than [`MAX_NOTE`], or empty.
    #[error("a note of 1 to {MAX_NOTE} bytes is kept in the history, this one has {0}")]
    NoteLength(usize),
}

/// What opening found wrong and made good.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Found {
    /// Stretches of bytes that are no records.
    pub damaged: usize,
    /// The name under which the damaged file is kept; `None` if nothing but a torn end was cut off, or too many are kept.
    pub kept_aside: Option<String>,
}

/// The history, open. Any number of threads may use it.
pub struct History {
    dir: Arc<dyn Dir>,
    clock: Arc<dyn Clock>,
    inner: Mutex<Inner>,
}

struct Inner {
    file: Box<dyn File>,
    /// In ascending order of their sizes.
    records: Vec<Record>,
    end: u64,
    /// At so many records the old ones are thinned.
    thin_at: usize,
}

#[derive(Clone, Copy)]
struct Record {
    stamp: Stamp,
    offset: u64,
    bytes: usize,
}

/// Some of the history.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Page {
    /// Sizes and notes, in ascending order of the sizes.
    pub notes: Vec<(TreeSize, Vec<u8>)>,
    /// The size from which to go on, if there are more.
    pub next: Option<TreeSize>,
    /// Records that do not check any more; they were left out.
    pub damaged: usize,
}

impl History {
    /// Opens the history in `dir`, which is made if it is not there: logs that are older than it have none.
    pub fn open(dir: Arc<dyn Dir>, clock: Arc<dyn Clock>) -> Result<(History, Found), HistoryError> {
        let io = |action| move |source| HistoryError::Io { action, source };
        let names = dir.list().map_err(io("look for"))?;
        if names.iter().any(|name| name == NEW_NAME) {
            dir.remove(NEW_NAME).map_err(io("tidy"))?;
        }
        if !names.iter().any(|name| name == NAME) {
            dir.create(NAME).and_then(|file| file.sync()).map_err(io("create"))?;
            dir.sync().map_err(io("create"))?;
        }
        let file = dir.open(NAME).map_err(io("open"))?;
        let bytes = whole(&*file).map_err(io("read"))?;
        let (records, holes) = scan(&bytes);
        let end = records.last().map_or(0, |last| last.offset + last.bytes as u64);
        // What follows the last record was never completely written, or is damage that nobody can tell from that.
        let damaged = holes.iter().filter(|hole| (hole.start as u64) < end).count();
        let mut found = Found { damaged, kept_aside: None };
        let inner = Inner { file, thin_at: records.len() + THIN_EVERY, records, end };
        let history = History { dir, clock, inner: Mutex::new(inner) };
        if damaged > 0 {
            found.kept_aside = history.keep_aside(&names).map_err(io("keep a copy of"))?;
            let mut inner = history.inner();
            let records = std::mem::take(&mut inner.records);
            history.rewrite(&mut inner, records)?;
        }
        Ok((history, found))
    }

    /// How many checkpoints it has.
    pub fn count(&self) -> usize {
        self.inner().records.len()
    }

    /// Adds a published checkpoint of this size, durably, unless one of this size or a larger one is there. After an error
    /// it is not there, and the next one may be added.
    pub fn append(&self, size: TreeSize, note: &[u8]) -> Result<(), HistoryError> {
        if !(1..=MAX_NOTE).contains(&note.len()) {
            return Err(HistoryError::NoteLength(note.len()));
        }
        let mut inner = self.inner();
        if inner.records.last().is_some_and(|last| last.stamp.size >= size) {
            return Ok(());
        }
        let stamp = Stamp { time: self.clock.now(), size };
        let bytes = encode(stamp, note);
        if inner.records.len() >= inner.thin_at || inner.end + bytes.len() as u64 > MAX_BYTES {
            self.thin(&mut inner)?;
        }
        let offset = inner.end;
        let write = || {
            inner.file.write_at(offset, &bytes)?;
            self.dir.crash_point("history.record.written");
            inner.file.sync()
        };
        write().map_err(|source| HistoryError::Io { action: "write", source })?;
        inner.end += bytes.len() as u64;
        inner.records.push(Record { stamp, offset, bytes: bytes.len() });
        Ok(())
    }

    /// Checkpoints of at least this size: at most so many, with at most so many bytes of notes, but one if there is any.
    pub fn page(&self, from: TreeSize, most: usize, most_bytes: usize) -> Result<Page, HistoryError> {
        let inner = self.inner();
        let first = inner.records.partition_point(|record| record.stamp.size < from);
        let (mut page, mut bytes) = (Page::default(), 0);
        for record in inner.records.get(first..).unwrap_or_default() {
            bytes += record.bytes - FIXED;
            if page.notes.len() >= most || (bytes > most_bytes && !page.notes.is_empty()) {
                page.next = Some(record.stamp.size);
                break;
            }
            match read(&*inner.file, record)? {
                Some(note) => page.notes.push((record.stamp.size, note)),
                None => page.damaged += 1,
            }
        }
        Ok(page)
    }

    /// Thins the old records by the rule; the newest half of the bytes at most stay.
    fn thin(&self, inner: &mut Inner) -> Result<(), HistoryError> {
        let stamps: Vec<_> = inner.records.iter().map(|record| record.stamp).collect();
        let mut kept: Vec<_> =
            thinned(&stamps).into_iter().filter_map(|at| inner.records.get(at).copied()).collect();
        let mut bytes: u64 = kept.iter().map(|record| record.bytes as u64).sum();
        let oldest = kept.iter().take_while(|record| {
            let goes = bytes > MAX_BYTES / 2;
            bytes -= if goes { record.bytes as u64 } else { 0 };
            goes
        });
        let oldest = oldest.count();
        kept.drain(..oldest);
        self.rewrite(inner, kept)
    }

    /// Writes these records into a new file, which takes the place of the old one.
    fn rewrite(&self, inner: &mut Inner, records: Vec<Record>) -> Result<(), HistoryError> {
        let mut bytes = Vec::new();
        let mut kept = Vec::new();
        for record in records {
            if let Some(note) = read(&*inner.file, &record)? {
                let offset = bytes.len() as u64;
                bytes.extend_from_slice(&encode(record.stamp, &note));
                kept.push(Record { offset, ..record });
            }
        }
        let write = || {
            if self.dir.list()?.iter().any(|name| name == NEW_NAME) {
                self.dir.remove(NEW_NAME)?;
            }
            let file = self.dir.create(NEW_NAME)?;
            file.write_at(0, &bytes)?;
            file.sync()?;
            self.dir.crash_point("history.new.synced");
            self.dir.rename(NEW_NAME, NAME)?;
            self.dir.sync()?;
            Ok(file)
        };
        let file = write().map_err(|source| HistoryError::Io { action: "thin", source })?;
        *inner = Inner { file, end: bytes.len() as u64, thin_at: kept.len() + THIN_EVERY, records: kept };
        Ok(())
    }

    /// Copies the file as it is. The copy's name, if there is room for one more.
    fn keep_aside(&self, names: &[String]) -> io::Result<Option<String>> {
        let free = (1..=MAX_ASIDE).map(|n| format!("history.damaged-{n}"));
        let Some(name) = free.into_iter().find(|name| !names.contains(name)) else { return Ok(None) };
        let inner = self.inner();
        let mut bytes = vec![0; usize::try_from(inner.file.length()?.min(2 * MAX_BYTES)).unwrap_or(0)];
        inner.file.read_at(0, &mut bytes)?;
        let copy = self.dir.create(&name)?;
        copy.write_at(0, &bytes)?;
        copy.sync()?;
        self.dir.sync()?;
        Ok(Some(name))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Every change under the lock comes last, after all that can fail.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the file holds, read without changing anything.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Inspection {
    /// Sizes and notes, in ascending order of the sizes.
    pub notes: Vec<(TreeSize, Vec<u8>)>,
    /// Where there are bytes before the last record that are no record.
    pub damaged: Vec<Range<u64>>,
    /// Where bytes follow the last record: one that was never completely written, or damage that nobody can tell from that.
    pub torn: Option<u64>,
}

/// Reads the history in `dir`. One that is not there is empty: logs that are older than it have none.
pub fn inspect(dir: &dyn Dir) -> Result<Inspection, HistoryError> {
    let io = |source| HistoryError::Io { action: "read", source };
    let file = match dir.open_read_only(NAME) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Inspection::default()),
        Err(error) => return Err(io(error)),
    };
    let bytes = whole(&*file).map_err(io)?;
    let (records, holes) = scan(&bytes);
    let end = records.last().map_or(0, |last| last.offset + last.bytes as u64);
    let note = |record: &Record| {
        let at = usize::try_from(record.offset).ok()?;
        Some((record.stamp.size, bytes.get(at + FIXED..at + record.bytes)?.to_vec()))
    };
    let mut found = Inspection { notes: records.iter().filter_map(note).collect(), ..Inspection::default() };
    for hole in holes {
        match hole.start as u64 {
            start if start < end => found.damaged.push(start..hole.end as u64),
            start => found.torn = Some(start),
        }
    }
    Ok(found)
}

/// What a file that was written here can have, and no more.
fn whole(file: &dyn File) -> io::Result<Vec<u8>> {
    let length = file.length()?.min(MAX_BYTES + (MAX_NOTE + FIXED) as u64);
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
    file.read_at(0, &mut bytes)?;
    Ok(bytes)
}

/// The records in the bytes, and the holes between them.
fn scan(bytes: &[u8]) -> (Vec<Record>, Vec<Range<usize>>) {
    let (mut records, mut holes): (Vec<Record>, Vec<Range<usize>>) = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < bytes.len() {
        let rest = bytes.get(at..).unwrap_or_default();
        let whole = decode(rest).filter(|(stamp, _)| {
            // Written in order, so whatever is not in order was not written here.
            records.last().is_none_or(|last| last.stamp.size < stamp.size)
        });
        match whole {
            Some((stamp, note)) => {
                let length = FIXED + note.len();
                records.push(Record { stamp, offset: at as u64, bytes: length });
                at += length;
            }
            None => {
                let next = rest.windows(MAGIC.len()).skip(1).position(|window| window == MAGIC);
                let to = next.map_or(bytes.len(), |next| at + 1 + next);
                match holes.last_mut().filter(|hole| hole.end == at) {
                    Some(hole) => hole.end = to,
                    None => holes.push(at..to),
                }
                at = to;
            }
        }
    }
    (records, holes)
}

/// The note of a record; `None` if it does not check any more.
fn read(file: &dyn File, record: &Record) -> Result<Option<Vec<u8>>, HistoryError> {
    let mut bytes = vec![0; record.bytes];
    file.read_at(record.offset, &mut bytes).map_err(|source| HistoryError::Io { action: "read", source })?;
    Ok(decode(&bytes).filter(|(stamp, _)| *stamp == record.stamp).map(|(_, note)| note.to_vec()))
}

fn encode(stamp: Stamp, note: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(FIXED + note.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&(note.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&stamp.time.0.to_le_bytes());
    bytes.extend_from_slice(&stamp.size.get().to_le_bytes());
    bytes.extend_from_slice(note);
    let crc = checksum(&bytes);
    bytes[CRC].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..CRC.start]), &bytes[CRC.end..])
}

/// The record that the bytes begin with, if its checksum is right.
fn decode(bytes: &[u8]) -> Option<(Stamp, &[u8])> {
    let mut fields = Fields(bytes.strip_prefix(MAGIC)?);
    let (crc, length) = (fields.u32()?, usize::try_from(fields.u32()?).ok()?);
    let stamp = Stamp { time: UnixMillis(fields.u64()?), size: TreeSize::new(fields.u64()?)? };
    let note = fields.bytes(length)?;
    let whole = checksum(bytes.get(..FIXED + length)?) == crc;
    (whole && (1..=MAX_NOTE).contains(&length)).then_some((stamp, note))
}
