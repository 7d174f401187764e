//! A file of records that is read as it grows: rotated by rename or by copy and truncate, read again from where the spool
//! says after a restart. What a record means is decided elsewhere.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use epigraph_core::hash::sha256;
use epigraph_event::decode::frame::{Frame, Lines};

use crate::position::{HEAD_BYTES, Position};

/// Bytes that are taken from one file before the next one has its turn.
pub const CHUNK_BYTES: usize = 256 * 1024;

/// Files beside a rotated one that are looked at to find it again.
const MAX_SIBLINGS: usize = 1_024;

/// A record, and where reading goes on once all of it is durable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// The record.
    pub frame: Frame,
    /// Where it begins.
    pub start: Position,
    /// What is behind it.
    pub end: Position,
}

/// What one turn gave.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Turn {
    /// Records, perhaps none: there may be more.
    Records(Vec<Record>),
    /// Nothing more for now.
    Idle,
    /// The end, if it is read only once.
    Ended,
}

/// A tailed file.
pub struct Tail {
    path: PathBuf,
    once: bool,
    open: Option<Open>,
    /// Where reading goes on, before the file is open.
    resume: Option<Position>,
    ended: bool,
}

struct Open {
    file: File,
    device: u64,
    inode: u64,
    /// The next byte to read.
    at: u64,
    lines: Lines,
    /// The beginning of the file, up to [`HEAD_BYTES`].
    head: Vec<u8>,
    /// Whether the end was seen after the name was given to another file: a writer may take a moment to let go of it.
    left: bool,
}

impl Tail {
    /// Reads from `position` if the file is the one that it is of, else from the beginning. With `once` it ends at the
    /// end of the file, where a record without its newline is a record.
    pub fn new(path: PathBuf, once: bool, position: Option<Position>) -> Tail {
        Tail { path, once, open: None, resume: position, ended: false }
    }

    /// Takes the next part of the file.
    pub fn turn(&mut self) -> io::Result<Turn> {
        if self.ended {
            return Ok(Turn::Ended);
        }
        let Some(mut open) = self.open.take() else {
            self.open = self.find()?;
            return Ok(if self.open.is_some() { Turn::Records(Vec::new()) } else { Turn::Idle });
        };
        if let Some(records) = open.truncated()? {
            tracing::warn!(
                file = %self.path.display(),
                "the file was cut short or written anew: it is read from its beginning; what was written and cut between two \
                 looks cannot be known"
            );
            self.open = Some(open);
            return Ok(Turn::Records(records));
        }
        let mut buffer = vec![0; CHUNK_BYTES];
        let count = read_some(&open.file, open.at, &mut buffer)?;
        if count > 0 {
            let records = open.push(&buffer[..count]);
            open.left = false;
            self.open = Some(open);
            return Ok(Turn::Records(records));
        }
        if self.once {
            self.ended = true;
            return Ok(Turn::Records(open.finish()));
        }
        if self.was_renamed(&open)? {
            if open.left {
                return Ok(Turn::Records(open.finish()));
            }
            open.left = true;
        }
        self.open = Some(open);
        Ok(Turn::Idle)
    }

    /// Opens the file that the position is of, under whatever name it has now; without one, the named file.
    fn find(&mut self) -> io::Result<Option<Open>> {
        let file = match File::open(&self.path) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.once => None,
            Err(error) => return Err(error),
        };
        let Some(position) = self.resume.take() else {
            return file.map(Open::fresh).transpose();
        };
        if let Some(open) = file.as_ref().map(File::try_clone).transpose()?
            && let Some(open) = Open::resumed(open, &position)?
        {
            return Ok(Some(open));
        }
        if let Some(open) = self.rotated(&position)? {
            return Ok(Some(open));
        }
        if position.offset > 0 {
            tracing::warn!(
                file = %self.path.display(),
                "the file that was being read is not there any more: what was appended to it since cannot be known"
            );
        }
        file.map(Open::fresh).transpose()
    }

    /// Looks among the files beside it for the one that was being read.
    fn rotated(&self, position: &Position) -> io::Result<Option<Open>> {
        let Some(dir) = self.path.parent() else { return Ok(None) };
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        for entry in fs::read_dir(dir)?.take(MAX_SIBLINGS) {
            let entry = entry?;
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_file() && (metadata.dev(), metadata.ino()) == (position.device, position.inode) {
                let file = File::open(entry.path())?;
                if let Some(open) = Open::resumed(file, position)? {
                    return Ok(Some(open));
                }
            }
        }
        Ok(None)
    }

    fn was_renamed(&self, open: &Open) -> io::Result<bool> {
        match fs::metadata(&self.path) {
            Ok(now) => Ok((now.dev(), now.ino()) != (open.device, open.inode)),
            // Between the two steps of a rotation: what comes then is another file.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Open {
    fn fresh(file: File) -> io::Result<Open> {
        let metadata = file.metadata()?;
        Ok(Open {
            device: metadata.dev(),
            inode: metadata.ino(),
            file,
            at: 0,
            lines: Lines::from_offset(0),
            head: Vec::new(),
            left: false,
        })
    }

    /// The file from the position on, if it is the one.
    fn resumed(file: File, position: &Position) -> io::Result<Option<Open>> {
        let mut open = Open::fresh(file)?;
        let same = (open.device, open.inode) == (position.device, position.inode);
        if !same || open.file.metadata()?.len() < position.offset || position.head_bytes > HEAD_BYTES {
            return Ok(None);
        }
        let mut head = vec![0; usize::try_from(position.head_bytes).unwrap_or(0)];
        match open.file.read_exact_at(&mut head, 0) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        if sha256(&head).to_string() != position.head {
            return Ok(None);
        }
        (open.at, open.lines, open.head) = (position.offset, Lines::from_offset(position.offset), head);
        Ok(Some(open))
    }

    /// Whether the file is not any more what was read; then what is held of it is its last record, and reading begins anew.
    fn truncated(&mut self) -> io::Result<Option<Vec<Record>>> {
        let mut now = vec![0; self.head.len()];
        let same = self.file.metadata()?.len() >= self.at
            && match self.file.read_exact_at(&mut now, 0) {
                Ok(()) => now == self.head,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => false,
                Err(error) => return Err(error),
            };
        if same {
            return Ok(None);
        }
        let records = self.finish();
        (self.at, self.lines) = (0, Lines::from_offset(0));
        self.head.clear();
        Ok(Some(records))
    }

    fn push(&mut self, bytes: &[u8]) -> Vec<Record> {
        // From a position on, the head may be shorter than what is known of the file; it is still the file's.
        if self.head.len() as u64 == self.at {
            let room = (HEAD_BYTES as usize).saturating_sub(self.head.len());
            self.head.extend(&bytes[..bytes.len().min(room)]);
        }
        self.at += bytes.len() as u64;
        let mut frames = Vec::new();
        self.lines.push(bytes, |frame| frames.push(frame));
        self.records(frames)
    }

    fn finish(&mut self) -> Vec<Record> {
        let mut frames = Vec::new();
        self.lines.finish(|frame| frames.push(frame));
        self.records(frames)
    }

    fn records(&self, frames: Vec<Frame>) -> Vec<Record> {
        let head = sha256(&self.head).to_string();
        let position = |offset| Position {
            device: self.device,
            inode: self.inode,
            offset,
            taken: 0,
            head_bytes: self.head.len() as u64,
            head: head.clone(),
        };
        let start = |frame: &Frame| match frame {
            Frame::Record { offset, .. } | Frame::TooLarge { offset, .. } => *offset,
        };
        let mut ends: Vec<u64> = frames.iter().skip(1).map(start).collect();
        ends.push(self.lines.offset());
        let frames = frames.into_iter().zip(ends);
        frames
            .map(|(frame, end)| Record { start: position(start(&frame)), end: position(end), frame })
            .collect()
    }
}

fn read_some(file: &File, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match file.read_at(buffer, at) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
