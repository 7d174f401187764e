//! Messages that wait for their receiver, one file each, so that they outlive the process. It does not know what they say, or when
//! they are delivered; a message leaves when its receiver has it, or when the queue is full.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use epigraph_core::Hash;
use epigraph_core::hash::sha256;
use epigraph_store::file::Dir;
use thiserror::Error;

use crate::finding::Severity;

/// Messages of one receiver that wait at most. Findings are grouped before they get here, so that this is days of trouble at a
/// thousand places; with [`MAX_MESSAGE_BYTES`] it bounds the disk to 32 MB.
pub const MAX_MESSAGES: usize = 1_000;

/// The longest message: the longest detail, subject and reason of a finding, each byte escaped, take 32 KiB.
pub const MAX_MESSAGE_BYTES: usize = 32 * 1024;

/// First line of each file.
const MAGIC: &[u8] = b"epigraph-message@v1\n";

/// A file on its way in.
const NEW: &str = "new";

/// How many messages were given up, and nobody was told yet.
const DROPPED: &str = "dropped";

/// Why a queue cannot be used.
#[derive(Debug, Error)]
pub enum QueueError {
    /// The file system.
    #[error("cannot {action} in the queue of messages: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A file that does not belong there.
    #[error("the queue of messages holds {0:?}, which the monitor did not put there: move it away")]
    Foreign(String),
    /// Above [`MAX_MESSAGE_BYTES`].
    #[error("a message has at most {MAX_MESSAGE_BYTES} bytes, this one has {0}")]
    TooLong(usize),
    /// The bytes are not those that were written.
    #[error("{0} is damaged: the disk gives other bytes than were written")]
    Damaged(String),
}

/// One message, from first to last.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Queued {
    /// Its place: larger is newer.
    pub number: u64,
    /// What it says.
    pub body: Bytes,
}

/// The messages of one receiver.
pub struct Queue {
    dir: Arc<dyn Dir>,
    waiting: BTreeMap<u64, Waiting>,
    next: u64,
    dropped: u64,
}

struct Waiting {
    severity: Severity,
    /// What could not be written to the disk is held here: a full disk must not silence an alarm.
    unwritten: Option<Bytes>,
}

/// Reads every message of a queue that nobody uses, and changes nothing: how many are whole, and the files that are not or do not belong
/// there, each with what is wrong.
pub fn inspect(dir: Arc<dyn Dir>) -> Result<(usize, Vec<(String, QueueError)>), QueueError> {
    let queue = Queue { dir, waiting: BTreeMap::new(), next: 0, dropped: 0 };
    let (mut whole, mut bad) = (0, Vec::new());
    for name in queue.dir.list().map_err(io_error("look"))? {
        let read = match (name.as_str(), number(&name)) {
            (NEW, _) => continue,
            (DROPPED, _) => queue.read_dropped().map(drop),
            (_, Some(_)) => queue.read(&name).map(|_| whole += 1),
            (_, None) => Err(QueueError::Foreign(name.chars().take(64).collect())),
        };
        if let Err(error) = read {
            bad.push((name, error));
        }
    }
    Ok((whole, bad))
}

impl Queue {
    /// Opens the directory of one receiver; it may be empty. What cannot be read is an error, never an empty queue.
    pub fn open(dir: Arc<dyn Dir>) -> Result<Queue, QueueError> {
        let mut queue = Queue { dir, waiting: BTreeMap::new(), next: 0, dropped: 0 };
        for name in queue.dir.list().map_err(io_error("look"))? {
            match (name.as_str(), number(&name)) {
                // Not finished, so not promised to anybody; the next write replaces it.
                (NEW, _) => {}
                (DROPPED, _) => queue.dropped = queue.read_dropped()?,
                (_, Some((number, severity))) => {
                    queue.waiting.insert(number, Waiting { severity, unwritten: None });
                    queue.next = number.saturating_add(1);
                }
                (_, None) => return Err(QueueError::Foreign(name.chars().take(64).collect())),
            }
        }
        queue.make_room()?;
        Ok(queue)
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// How many were given up since the receiver was last told.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Puts a message at the end, durably. If the disk does not take it, it waits in memory: the error says so. When the queue is full,
    /// the oldest message of the lowest severity goes, and is counted.
    pub fn put(&mut self, severity: Severity, body: Bytes) -> Result<(), QueueError> {
        if body.len() > MAX_MESSAGE_BYTES {
            return Err(QueueError::TooLong(body.len()));
        }
        let number = self.next;
        self.next = number.saturating_add(1);
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(format!("{}\n", sha256(&body)).as_bytes());
        bytes.extend_from_slice(&body);
        let written = self.write(&file_name(number, severity), &bytes);
        let unwritten = written.is_err().then_some(body);
        self.waiting.insert(number, Waiting { severity, unwritten });
        written.and(self.make_room())
    }

    /// The oldest message from `number` on, or if there is none the oldest of all. One that cannot be read any more is left out,
    /// counted as given up, and named by the error.
    pub fn next_from(&mut self, number: u64) -> Result<Option<Queued>, QueueError> {
        let found = self.waiting.range(number..).next().or_else(|| self.waiting.first_key_value());
        let Some((&number, waiting)) = found else { return Ok(None) };
        if let Some(body) = &waiting.unwritten {
            return Ok(Some(Queued { number, body: body.clone() }));
        }
        let name = file_name(number, waiting.severity);
        match self.read(&name) {
            Ok(body) => Ok(Some(Queued { number, body })),
            Err(error) => {
                self.count_dropped()?;
                self.remove(number)?;
                Err(error)
            }
        }
    }

    /// Forgets a message: its receiver has it. After a power cut it may be there once more.
    pub fn remove(&mut self, number: u64) -> Result<(), QueueError> {
        match self.waiting.remove(&number) {
            Some(Waiting { severity, unwritten: None }) => {
                self.dir.remove(&file_name(number, severity)).map_err(io_error("remove a message"))
            }
            _ => Ok(()),
        }
    }

    /// The receiver was told that so many were given up.
    pub fn told_dropped(&mut self, count: u64) -> Result<(), QueueError> {
        self.dropped = self.dropped.saturating_sub(count);
        self.write(DROPPED, self.dropped.to_string().as_bytes())
    }

    fn make_room(&mut self) -> Result<(), QueueError> {
        while self.waiting.len() > MAX_MESSAGES {
            let victim = self.waiting.iter().min_by_key(|(number, waiting)| (waiting.severity, **number));
            let Some((&number, _)) = victim else { return Ok(()) };
            // Counted first: a crash in between counts one too many, and loses none in silence.
            self.count_dropped()?;
            self.remove(number)?;
        }
        Ok(())
    }

    fn count_dropped(&mut self) -> Result<(), QueueError> {
        self.dropped = self.dropped.saturating_add(1);
        self.write(DROPPED, self.dropped.to_string().as_bytes())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), QueueError> {
        let write = || {
            match self.dir.remove(NEW) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let file = self.dir.create(NEW)?;
            file.write_at(0, bytes)?;
            file.sync()?;
            self.dir.rename(NEW, name)?;
            self.dir.sync()
        };
        write().map_err(io_error("write"))
    }

    fn read(&self, name: &str) -> Result<Bytes, QueueError> {
        let bytes = self.read_bytes(name, MAX_MESSAGE_BYTES + MAGIC.len() + 2 * Hash::LEN + 1)?;
        let damaged = || QueueError::Damaged(name.into());
        let rest = bytes.strip_prefix(MAGIC).ok_or_else(damaged)?;
        let (digest, body) = rest.split_at_checked(2 * Hash::LEN).ok_or_else(damaged)?;
        let body = body.strip_prefix(b"\n").ok_or_else(damaged)?;
        if digest != sha256(body).to_string().as_bytes() {
            return Err(damaged());
        }
        Ok(Bytes::copy_from_slice(body))
    }

    fn read_dropped(&self) -> Result<u64, QueueError> {
        let bytes = self.read_bytes(DROPPED, 20)?;
        let count = std::str::from_utf8(&bytes).ok().and_then(|text| text.parse().ok());
        count.ok_or_else(|| QueueError::Damaged(DROPPED.into()))
    }

    fn read_bytes(&self, name: &str, most: usize) -> Result<Vec<u8>, QueueError> {
        let file = self.dir.open_read_only(name).map_err(io_error("open a message"))?;
        let length = file.length().map_err(io_error("read"))?;
        let length = usize::try_from(length).ok().filter(|length| *length <= most);
        let mut bytes = vec![0; length.ok_or_else(|| QueueError::Damaged(name.into()))?];
        file.read_at(0, &mut bytes).map_err(io_error("read"))?;
        Ok(bytes)
    }
}

fn io_error(action: &'static str) -> impl Fn(io::Error) -> QueueError {
    move |source| QueueError::Io { action, source }
}

fn file_name(number: u64, severity: Severity) -> String {
    let severity = match severity {
        Severity::Page => "page",
        Severity::Warn => "warn",
    };
    format!("{number:020}.{severity}")
}

fn number(name: &str) -> Option<(u64, Severity)> {
    let (number, severity) = name.split_once('.')?;
    let severity = match severity {
        "page" => Severity::Page,
        "warn" => Severity::Warn,
        _ => return None,
    };
    let number = number.parse().ok().filter(|parsed: &u64| format!("{parsed:020}") == number)?;
    Some((number, severity))
}
