//! The spool: signed batches on disk, from before they are first sent until it is proven that they are in the log.
//!
//! It is a journal of the store, from which what was delivered is trimmed. Each frame is one batch together with the state
//! of the collector after it (where its sources were read up to, and where the chain ends), so that positions, numbers
//! and events are durable at one moment (docs/formats/spool.md). It does not know how batches are made or sent.

pub mod fresh;
pub mod inspect;

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use epigraph_core::bundle::{self, MAX_ENTRY_BYTES};
use epigraph_core::hash::leaf_hashes;
use epigraph_core::{Entropy, Hash, TreeSize, UnixMillis};
use epigraph_event::Batch;
use epigraph_event::chain::Tip;
use epigraph_store::file::Dir;
use epigraph_store::journal::{self, AppendError, Config, Cut, Journal, JournalError, OwnedFrame, Reader};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::position::Positions;
use fresh::Fresh;

/// The epoch of a spool that was made with its key: a new spool has a new key.
pub const FIRST_EPOCH: u64 = 1;

/// Length of the spool's files: room for several of the largest batches, and soon delivered as a whole.
const SEGMENT_BYTES: u64 = 16 << 20;

/// The largest frame: the largest batch in pieces, and the state.
const FRAME_BYTES: u32 = 4 << 20;

/// How large a spool becomes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// How many bytes may wait for delivery. On the disk there may be two files more.
    pub waiting_bytes: u64,
    /// Its files.
    pub files: Config,
}

impl Limits {
    /// Files of the usual sizes.
    pub fn of(waiting_bytes: u64) -> Limits {
        let files = Config::new(SEGMENT_BYTES, FRAME_BYTES).unwrap_or(Config::QUICKSTART);
        Limits { waiting_bytes, files: files.reserved() }
    }

    /// Whether one more batch of the largest size may wait where so many bytes do.
    pub(crate) fn have_room(&self, waiting_bytes: u64) -> bool {
        waiting_bytes.saturating_add(u64::from(self.files.max_frame_bytes())) <= self.waiting_bytes
    }
}

/// Why the spool was refused or stopped.
#[derive(Debug, Error)]
pub enum SpoolError {
    /// The files.
    #[error("the spool of the collector: {0}")]
    Journal(#[from] JournalError),
    /// There are no files.
    #[error(
        "the files of the collector's spool are gone, and with them what was not delivered: put them back from wherever there is a copy. \
         If there is none, make a new collector directory with a new key, and retire this one"
    )]
    Gone,
    /// A write failed.
    #[error("the spool of the collector: {0}")]
    Append(#[from] AppendError),
    /// A frame that checks holds something else than this version writes.
    #[error(
        "the frame at entry {at} of the collector's spool cannot be read ({what}): it was changed, or written by another \
         version. Keep the directory; nothing was changed"
    )]
    Unreadable {
        /// The index of its first entry.
        at: TreeSize,
        /// What is wrong.
        what: &'static str,
    },
    /// Batches that were not delivered are not there.
    #[error(
        "batches {from} to {to} are missing from the collector's spool, and nothing says that they were delivered: put the \
         oldest files of the spool back. Nothing was changed"
    )]
    Lost {
        /// The first that is missing.
        from: u64,
        /// The last that is missing.
        to: u64,
    },
    /// More state than fits into a frame.
    #[error(
        "the positions of the sources do not fit into a frame of the spool: collect fewer files with one collector"
    )]
    TooManySources,
    /// The journal is full.
    #[error("the spool's numbers are used up: make a new collector directory")]
    Exhausted,
}

/// What every frame begins with.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    version: u32,
    epoch: u64,
    next_number: u64,
    next_sequence: u64,
    /// The hash of the last batch, in hex; empty before the first one.
    last_batch: String,
    /// All batches before this one were delivered.
    delivered: u64,
    /// Whether the frame holds the batch before `next_number`.
    has_batch: bool,
    positions: Positions,
}

/// The version of [`State`].
const VERSION: u32 = 1;

/// A batch that was not delivered yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Waiting {
    number: u64,
    at: TreeSize,
    bytes: u64,
}

/// How far the spool is, for whoever sends what is in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Entries of the journal that may be read.
    pub durable: TreeSize,
    /// The number of the first batch that was not delivered.
    pub delivered: u64,
    /// The frame of that batch, or the end.
    pub first_waiting: TreeSize,
    /// Where the next batch belongs.
    pub tip: Tip,
    /// Whether one more batch of the largest size may wait.
    pub has_room: bool,
    /// Whether nothing more will come.
    pub ended: bool,
}

/// The open spool. It has one owner.
pub struct Spool {
    journal: Journal,
    tip: Tip,
    positions: Positions,
    delivered: u64,
    /// What the newest frame says was delivered.
    delivered_on_disk: u64,
    waiting: VecDeque<Waiting>,
    waiting_bytes: u64,
    newest: TreeSize,
    limits: Limits,
}

impl Spool {
    /// Makes the spool of a new collector, whose key has this id.
    pub fn create(
        dir: Arc<dyn Dir>,
        key: Hash,
        files: Config,
        now: UnixMillis,
        entropy: Arc<dyn Entropy>,
    ) -> Result<(), SpoolError> {
        Journal::create(dir, key, files, now, entropy)?;
        Ok(())
    }

    /// Opens it: checks every frame, and finds what was not delivered. Says what was cut off because it was provably never complete.
    pub fn open(
        dir: Arc<dyn Dir>,
        key: Hash,
        limits: Limits,
        entropy: Arc<dyn Entropy>,
    ) -> Result<(Spool, Option<Cut>), SpoolError> {
        let (journal, opened) = Journal::open_trimmed(Arc::clone(&dir), key, limits.files, entropy).map_err(
            |error| match error {
                JournalError::NoJournal => SpoolError::Gone,
                error => SpoolError::Journal(error),
            },
        )?;
        let (start, durable) = (journal.first_kept()?, journal.head().size);
        let scan = Scan::of(Reader::starting_at(dir, key, start), start, durable, &mut |_, _| Ok(()))?;
        let Scan { tip, positions, delivered, waiting, newest, .. } = scan;
        let waiting: VecDeque<_> = waiting.into_iter().filter(|batch| batch.number >= delivered).collect();
        let waiting_bytes = waiting.iter().map(|batch| batch.bytes).sum();
        let delivered_on_disk = delivered;
        let spool = Spool {
            journal,
            tip,
            positions,
            delivered,
            delivered_on_disk,
            waiting,
            waiting_bytes,
            newest,
            limits,
        };
        Ok((spool, opened.cut))
    }

    /// Where the next batch belongs.
    pub fn tip(&self) -> &Tip {
        &self.tip
    }

    /// How far the sources were read, as of the newest batch.
    pub fn positions(&self) -> &Positions {
        &self.positions
    }

    /// Whether one more batch of the largest size may wait.
    pub fn has_room(&self) -> bool {
        self.limits.have_room(self.waiting_bytes)
    }

    /// How large it may become.
    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    /// Numbers and bytes of the batches that wait.
    pub(crate) fn waiting_batches(&self) -> impl Iterator<Item = (u64, u64)> {
        self.waiting.iter().map(|batch| (batch.number, batch.bytes))
    }

    /// Batches and bytes that wait.
    pub fn waiting(&self) -> (usize, u64) {
        (self.waiting.len(), self.waiting_bytes)
    }

    /// For whoever sends.
    pub fn progress(&self) -> Progress {
        let durable = self.journal.head().size;
        Progress {
            durable,
            delivered: self.delivered,
            first_waiting: self.waiting.front().map_or(durable, |batch| batch.at),
            tip: self.tip,
            has_room: self.has_room(),
            ended: false,
        }
    }

    /// Makes a batch durable, and with it how far the sources were read; it is what is read back from its place. After an error other
    /// than [`AppendError::NoSpace`] the process must end.
    pub fn append(
        &mut self,
        batch: &Batch,
        positions: &Positions,
        now: UnixMillis,
    ) -> Result<Fresh, SpoolError> {
        let tip = Tip::after(batch.signed());
        let encoded = Bytes::from(batch.encode());
        let at = self.journal.head().size;
        self.write(&tip, positions, Some(&encoded), now)?;
        let number = batch.signed().envelope().number;
        self.waiting.push_back(Waiting { number, at, bytes: encoded.len() as u64 });
        self.waiting_bytes += encoded.len() as u64;
        (self.tip, self.positions) = (tip, positions.clone());
        Ok(Fresh { at, end: self.journal.head().size, encoded, roll: batch.roll() })
    }

    /// Takes note that all batches before `next` are proven to be in the log, and gives their files back.
    pub fn delivered(&mut self, next: u64, now: UnixMillis) -> Result<(), SpoolError> {
        if next <= self.delivered {
            return Ok(());
        }
        self.delivered = next.min(self.tip.number);
        while let Some(batch) = self.waiting.pop_front_if(|batch| batch.number < self.delivered) {
            self.waiting_bytes -= batch.bytes;
        }
        // A crash between the two leaves files that are not needed; the other way around it would seem that batches were lost.
        if self.journal.can_trim(self.keep())? {
            self.settle(now)?;
            self.journal.trim(self.keep())?;
        }
        Ok(())
    }

    /// Writes down what was delivered, so that nothing of it is sent again after a restart.
    pub fn settle(&mut self, now: UnixMillis) -> Result<(), SpoolError> {
        if self.delivered == self.delivered_on_disk {
            return Ok(());
        }
        let (tip, positions) = (self.tip, self.positions.clone());
        self.write(&tip, &positions, None, now)
    }

    fn keep(&self) -> TreeSize {
        self.waiting.front().map_or(self.newest, |batch| batch.at.min(self.newest))
    }

    fn write(
        &mut self,
        tip: &Tip,
        positions: &Positions,
        batch: Option<&[u8]>,
        now: UnixMillis,
    ) -> Result<(), SpoolError> {
        let state = State {
            version: VERSION,
            epoch: tip.epoch,
            next_number: tip.number,
            next_sequence: tip.sequence,
            last_batch: tip.last.map_or_else(String::new, |last| last.to_string()),
            delivered: self.delivered,
            has_batch: batch.is_some(),
            positions: positions.clone(),
        };
        let state = serde_json::to_vec(&state).map_err(|_| SpoolError::TooManySources)?;
        let before = self.journal.head();
        let mut after = self.journal.frontier().clone();
        let pieces =
            || [state.as_slice()].into_iter().chain(batch.unwrap_or_default().chunks(MAX_ENTRY_BYTES));
        let mut entries = Vec::with_capacity(pieces().map(|piece| piece.len() + 2).sum());
        for entry in pieces() {
            bundle::push(&mut entries, entry).map_err(|_| SpoolError::TooManySources)?;
        }
        for leaf in leaf_hashes(pieces()) {
            after.push(leaf).map_err(|_| SpoolError::Exhausted)?;
        }
        self.journal.append(&journal::Batch { before, after, time: now, marks: Vec::new(), entries })?;
        (self.newest, self.delivered_on_disk) = (before.size, self.delivered);
        Ok(())
    }
}

/// What the frames say, one after the other.
struct Scan {
    tip: Tip,
    positions: Positions,
    delivered: u64,
    /// All batches that are there, delivered or not.
    waiting: Vec<Waiting>,
    newest: TreeSize,
}

impl Scan {
    /// Reads all frames up to `durable`, and shows each batch.
    fn of(
        mut reader: Reader,
        start: TreeSize,
        durable: TreeSize,
        show: &mut dyn FnMut(TreeSize, &Bytes) -> Result<(), SpoolError>,
    ) -> Result<Scan, SpoolError> {
        let mut scan = Scan {
            tip: Tip::of_epoch(FIRST_EPOCH, None),
            positions: Positions::default(),
            delivered: 0,
            waiting: Vec::new(),
            newest: start,
        };
        let mut first_number = None;
        let mut found = false;
        while let Some(frame) = reader.next_frame(durable)? {
            let at = frame.before().size;
            let (state, batch) = read(&frame)?;
            let tip = state.tip(at)?;
            if let Some(batch) = batch {
                let number = tip.number.checked_sub(1).ok_or(Unread(at, "it has no number"))?;
                if found && number != scan.tip.number {
                    return Err(Unread(at, "its number is not the next one").into());
                }
                first_number.get_or_insert(number);
                show(at, &batch)?;
                scan.waiting.push(Waiting { number, at, bytes: batch.len() as u64 });
            } else if found && tip != scan.tip {
                return Err(Unread(at, "it has no batch, and the chain goes on").into());
            }
            found = true;
            (scan.tip, scan.positions, scan.newest) = (tip, state.positions, at);
            scan.delivered = state.delivered;
        }
        // The frame of the newest state is never trimmed.
        if !found && start != TreeSize::ZERO {
            return Err(Unread(start, "nothing follows what was trimmed").into());
        }
        let first = first_number.unwrap_or(scan.tip.number);
        if first > scan.delivered {
            return Err(SpoolError::Lost { from: scan.delivered, to: first - 1 });
        }
        Ok(scan)
    }
}

/// Why a frame could not be read.
struct Unread(TreeSize, &'static str);

impl From<Unread> for SpoolError {
    fn from(Unread(at, what): Unread) -> SpoolError {
        SpoolError::Unreadable { at, what }
    }
}

impl State {
    fn tip(&self, at: TreeSize) -> Result<Tip, Unread> {
        let last = match self.last_batch.as_str() {
            "" => None,
            hex => Some(Hash::from_hex(hex).ok_or(Unread(at, "the hash of its last batch"))?),
        };
        Ok(Tip { epoch: self.epoch, number: self.next_number, sequence: self.next_sequence, last })
    }
}

/// A frame's state, and the batch in it, if there is one.
fn read(frame: &OwnedFrame) -> Result<(State, Option<Bytes>), Unread> {
    let at = frame.before().size;
    let mut entries = frame.entries();
    let state = entries.next().and_then(|state| serde_json::from_slice::<State>(state).ok());
    let state = state.filter(|state| state.version == VERSION).ok_or(Unread(at, "its state"))?;
    let pieces: Vec<&[u8]> = entries.collect();
    match (state.has_batch, pieces.is_empty()) {
        (true, false) => Ok((state, Some(Bytes::from(pieces.concat())))),
        (false, true) => Ok((state, None)),
        _ => Err(Unread(at, "its state and its batch contradict one another")),
    }
}

/// Reads batches back in their order, while others are appended.
pub struct SpoolReader(Reader, TreeSize);

impl SpoolReader {
    /// Starts with the frame at this place.
    pub fn starting_at(dir: Arc<dyn Dir>, key: Hash, at: TreeSize) -> SpoolReader {
        SpoolReader(Reader::starting_at(dir, key, at), at)
    }

    /// The next batch; none while there is none within `durable`.
    pub fn next(&mut self, durable: TreeSize) -> Result<Option<Bytes>, SpoolError> {
        while let Some(frame) = self.0.next_frame(durable)? {
            self.1 = frame.after().size;
            if let (_, Some(batch)) = read(&frame)? {
                return Ok(Some(batch));
            }
        }
        Ok(None)
    }

    /// What is behind everything that was read.
    pub fn place(&self) -> TreeSize {
        self.1
    }
}
