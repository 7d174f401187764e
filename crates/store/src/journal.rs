//! The journal: every batch of entries in the order of the log, durable before it is acknowledged. The truth.
//!
//! It owns the segment files of one log (docs/formats/journal.md), one frame a batch, one sync a frame. It
//! computes no roots while appending: the sequencer does, and the tree writer re-reads and re-hashes each frame.
//! It does not know signatures, the tree store, or whether anything was published.

mod entries;
mod error;
mod format;
mod inspect;
mod producers;
mod read;
mod recover;
mod segment;
#[cfg(test)]
mod tests;
mod thread;
mod trim;

use std::io;
use std::sync::Arc;

use epigraph_core::{Entropy, Frontier, Hash, TreeHead, TreeSize, UnixMillis};
use thiserror::Error;

pub use entries::{Entries, EntryReader, Run, head_at};
pub use error::{AppendError, BatchError, JournalError};
pub use format::{MAX_FRAME_BYTES, MAX_STATE_BYTES};
pub use inspect::{Flaw, Inspection, MAX_FLAWS, Torn, inspect};
pub use producers::{
    Claim, MARK_BYTES, MAX_PRODUCERS, MAX_RANGES_AHEAD, MAX_RANGES_BEHIND, Objection, Producer, ProducerKey,
    ProducerMark, ProducerTable, SEQUENCE_WINDOW, Standing,
};
pub use read::{OwnedFrame, Reader, verify_all};
pub use recover::{Cut, MAX_CUT_FILES};
pub use segment::{Spare, SpareMaker};
pub use thread::{JournalHandle, QUEUE_BATCHES};
pub use trim::first_kept;

use crate::file::{Dir, File};
use format::{FrameHeader, Previous, SECTOR, SegmentHeader, SegmentId, Sparse, padded};
use recover::Beginning;
use segment::{Cursor, SPARE_NAME};

/// Every crash point of the journal, and what a crash there leaves.
pub const CRASH_POINTS: [(&str, &str); 11] = [
    (
        "journal.spare.ready",
        "A synced file that reads as zeros, under a temporary name. The next open removes it.",
    ),
    ("journal.segment.written", "A segment without frames, still under the temporary name. As before."),
    ("journal.segment.renamed", "Perhaps a last segment without frames. The next open appends to it."),
    (
        "journal.segment.durable",
        "A last segment without frames, the one before not write-protected yet. Open does that.",
    ),
    ("journal.segment.sealed", "A last segment without frames. The next open appends to it."),
    (
        "journal.frame.written",
        "A whole frame, part of one, or none. Open keeps a whole one and cuts a torn one off.",
    ),
    (
        "journal.frame.synced",
        "A durable frame that nobody was told of. Open keeps it; a producer's retry finds it.",
    ),
    ("journal.open.checked", "Nothing was changed yet."),
    (
        "journal.cut.saved",
        "A copy of the torn frame beside it. Open saves it once more, within its limit, and goes on.",
    ),
    (
        "journal.cut.zeroed",
        "The torn frame is zeroed, perhaps in part; its copy stays. Open cuts what is left.",
    ),
    ("journal.tail.rewritten", "The tail frame was written over itself. Open does it again."),
];

/// The smallest segment: a header with a full frontier, and a frame of one sector.
const MIN_SEGMENT_BYTES: u64 = (SECTOR + padded(FRONTIER_BYTES) + 2 * SECTOR) as u64;
/// The largest segment. Opening reads one segment whole, so its size bounds the time a start takes.
pub const MAX_SEGMENT_BYTES: u64 = 1 << 30;
/// The largest frontier: one hash for each bit of the largest tree size.
const FRONTIER_BYTES: usize = 63 * Hash::LEN;

/// Sizes of a journal's files. They may change from one start to the next; existing segments keep theirs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    segment_bytes: u64,
    max_frame_bytes: u32,
    is_reserved: bool,
}

/// Why sizes were not accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error(
    "journal segments of {segment_bytes} bytes with frames of at most {max_frame_bytes} do not work: a segment is a \
     whole number of 512-byte sectors, at most {MAX_SEGMENT_BYTES}, with room for its header and one largest frame; \
     a frame has at most {MAX_FRAME_BYTES}"
)]
pub struct ConfigError {
    segment_bytes: u64,
    max_frame_bytes: u32,
}

impl Config {
    /// 64 MiB segments: few enough files for years, and a start that reads the last one in well under a second.
    pub const PRODUCTION: Config = Config::of(64 << 20, MAX_FRAME_BYTES);
    /// 16 MiB segments, for trying it out.
    pub const QUICKSTART: Config = Config::of(16 << 20, MAX_FRAME_BYTES);

    /// Any sizes that fit together.
    pub fn new(segment_bytes: u64, max_frame_bytes: u32) -> Result<Config, ConfigError> {
        let needed = (2 * SECTOR + padded(FRONTIER_BYTES) + padded(max_frame_bytes as usize)) as u64;
        let fits = (needed.max(MIN_SEGMENT_BYTES)..=MAX_SEGMENT_BYTES).contains(&segment_bytes);
        if !fits || !segment_bytes.is_multiple_of(SECTOR as u64) || max_frame_bytes > MAX_FRAME_BYTES {
            return Err(ConfigError { segment_bytes, max_frame_bytes });
        }
        Ok(Config::of(segment_bytes, max_frame_bytes))
    }

    const fn of(segment_bytes: u64, max_frame_bytes: u32) -> Config {
        Config { segment_bytes, max_frame_bytes, is_reserved: false }
    }

    /// The same, with segments for which space is taken and no zeros are written, where the file system can do that: for queues, in which
    /// a segment lives so shortly that its zeros would be half of what is written. A sync of a frame has the file system's notes of
    /// what is written now to write as well; of a log, where each frame is waited for, that is the dearer part.
    #[must_use]
    pub const fn reserved(self) -> Config {
        Config { is_reserved: true, ..self }
    }

    /// Length of each new segment file.
    pub fn segment_bytes(&self) -> u64 {
        self.segment_bytes
    }

    /// The largest batch, in bytes of encoded entries.
    pub fn max_frame_bytes(&self) -> u32 {
        self.max_frame_bytes
    }
}

/// Entries to append, with everything that the sequencer computed from them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Batch {
    /// The journal's head; its size is the index of the first entry.
    pub before: TreeHead,
    /// The frontier after the last entry.
    pub after: Frontier,
    /// When the batch was made.
    pub time: UnixMillis,
    /// Whose entries are which, in their order; those of no producer have no mark.
    pub marks: Vec<ProducerMark>,
    /// The entries in the encoding of C2SP bundles.
    pub entries: Vec<u8>,
}

impl Batch {
    /// The body of its frame, before padding.
    fn body_bytes(&self) -> usize {
        self.marks.len() * MARK_BYTES + self.entries.len()
    }
}

/// What [`Journal::open`] found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Opened {
    /// The frontier after the last durable entry; its head was recomputed for the entries of the last segment.
    pub frontier: Frontier,
    /// What the durable frames say of producers.
    pub producers: ProducerTable,
    /// The part of a frame that was cut off, if any.
    pub cut: Option<Cut>,
}

impl Opened {
    /// The durable head.
    pub fn head(&self) -> TreeHead {
        self.frontier.head()
    }
}

/// The journal of one log, open for appending. Synchronous; [`JournalHandle`] gives it a thread.
pub struct Journal {
    maker: SpareMaker,
    origin_hash: Hash,
    active: Active,
    cursor: Cursor,
    frontier: Frontier,
    producers: ProducerTable,
    spare: Option<Spare>,
    /// Reused from frame to frame.
    buffer: Vec<u8>,
    stopped: Option<Arc<str>>,
}

/// The segment that frames go to.
struct Active {
    file: Box<dyn File>,
    id: SegmentId,
    first: TreeSize,
    bytes: u64,
}

impl Journal {
    /// Makes the journal of a new log: one empty segment, durable when this returns. For `init` alone; refused
    /// if any segment is there.
    pub fn create(
        dir: Arc<dyn Dir>,
        origin_hash: Hash,
        config: Config,
        now: UnixMillis,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Journal, JournalError> {
        if let Some(first) = segment::list(dir.as_ref())?.first() {
            return Err(JournalError::AlreadyThere { segment: segment::name_of(*first) });
        }
        let maker = SpareMaker { dir, entropy, config };
        let spare = maker.make().map_err(JournalError::io("make the first segment"))?;
        let (frontier, producers) = (Frontier::new(), ProducerTable::default());
        let mut header = new_header(&spare, origin_hash, frontier.head(), now, None);
        let bytes = header.encode_with(&frontier, &producers);
        let (active, cursor) = install(maker.dir.as_ref(), spare, &header, &bytes)
            .map_err(|(Step::Before | Step::After, error)| error)
            .map_err(JournalError::io("make the first segment"))?;
        Ok(Journal {
            maker,
            origin_hash,
            active,
            cursor,
            frontier,
            producers,
            spare: None,
            buffer: Vec::new(),
            stopped: None,
        })
    }

    /// Opens an existing journal: checks that all segments are there and follow each other, reads the last one
    /// whole, and cuts off a frame that provably was never completely written. Any other flaw is refused, and
    /// then nothing was changed.
    pub fn open(
        dir: Arc<dyn Dir>,
        origin_hash: Hash,
        config: Config,
        entropy: Arc<dyn Entropy>,
    ) -> Result<(Journal, Opened), JournalError> {
        let checked = recover::check(dir.as_ref(), origin_hash, Beginning::FirstEntry)?;
        Journal::open_checked(dir, origin_hash, config, entropy, checked)
    }

    fn open_checked(
        dir: Arc<dyn Dir>,
        origin_hash: Hash,
        config: Config,
        entropy: Arc<dyn Entropy>,
        checked: recover::Checked,
    ) -> Result<(Journal, Opened), JournalError> {
        let (file, cut) = recover::repair(dir.as_ref(), &checked)?;
        let recover::Checked { segment, cursor, frontier, producers, .. } = checked;
        let opened = Opened { frontier: frontier.clone(), producers: producers.clone(), cut };
        let header = &segment.header;
        let active = Active { file, id: header.id, first: header.before.size, bytes: header.segment_bytes };
        let journal = Journal {
            maker: SpareMaker { dir, entropy, config },
            origin_hash,
            active,
            cursor,
            frontier,
            producers,
            spare: None,
            buffer: Vec::new(),
            stopped: None,
        };
        Ok((journal, opened))
    }

    /// The head of the durable entries.
    pub fn head(&self) -> TreeHead {
        self.cursor.head
    }

    /// The frontier of the durable entries.
    pub fn frontier(&self) -> &Frontier {
        &self.frontier
    }

    /// What the durable entries say of producers.
    pub fn producers(&self) -> &ProducerTable {
        &self.producers
    }

    /// Appends one batch; it is durable when this returns `Ok`.
    pub fn append(&mut self, batch: &Batch) -> Result<(), AppendError> {
        if let Some(cause) = &self.stopped {
            return Err(AppendError::Fatal(cause.clone()));
        }
        let count = self.check(batch)?;
        if self.needs_segment(batch) {
            self.roll_over(batch.time)?;
        }
        // The next segment starts with the table as it is before this frame. Numbers that do not follow would make a journal
        // that nobody can open: nothing is written, and the table, changed in part, is not used again.
        self.producers
            .fold(batch.before.size, count, &batch.marks)
            .map_err(|found| self.stop("a batch was refused", &io::Error::other(found)))?;
        let after = batch.after.head();
        let mut header = FrameHeader {
            segment_id: self.active.id,
            before: self.cursor.head,
            count,
            root_after: after.root,
            time: batch.time,
            previous_header: self.cursor.header_hash,
            mark_count: 0,
            body_bytes: 0,
            body_crc: 0,
            sparse: Sparse::default(),
        };
        format::encode_frame(&mut self.buffer, &mut header, &batch.marks, &batch.entries);
        // A crash during the write leaves nothing, a part or the whole of the frame, and nobody was told: `open`
        // keeps the whole and cuts a part off.
        let at = self.cursor.end;
        self.active
            .file
            .write_at(at, &self.buffer)
            .map_err(|error| self.stop("writing a frame failed", &error))?;
        self.maker.dir.crash_point("journal.frame.written");
        self.active.file.sync().map_err(|error| self.stop("syncing a frame failed", &error))?;
        // A crash from here on leaves a durable frame.
        self.maker.dir.crash_point("journal.frame.synced");
        self.cursor = Cursor {
            head: after,
            header_at: at,
            header_hash: format::header_hash(&self.buffer),
            end: at + self.buffer.len() as u64,
        };
        self.frontier.clone_from(&batch.after);
        Ok(())
    }

    /// Whether appending `batch` starts a new segment.
    pub fn needs_segment(&self, batch: &Batch) -> bool {
        let frame = (SECTOR + padded(batch.body_bytes())) as u64;
        self.cursor.end + frame > self.active.bytes
    }

    /// Bytes of the current segment that are in use.
    pub(crate) fn filled(&self) -> u64 {
        self.cursor.end
    }

    /// How to make the next segment ready, if that was not done yet.
    pub fn spare_wanted(&self) -> Option<SpareMaker> {
        self.spare.is_none().then(|| self.maker.clone())
    }

    /// Takes the next segment. Without it, the append that needs it makes it.
    pub fn give_spare(&mut self, spare: Spare) {
        self.spare = Some(spare);
    }

    fn check(&self, batch: &Batch) -> Result<u32, BatchError> {
        let limit = self.maker.config.max_frame_bytes;
        if batch.before != self.head() {
            return Err(BatchError::DoesNotFollow { batch: batch.before.size, journal: self.head().size });
        }
        if batch.body_bytes() > limit as usize {
            return Err(BatchError::TooLarge { bytes: batch.body_bytes(), limit });
        }
        let wanted = batch.after.size().get().saturating_sub(batch.before.size.get());
        let found = format::count_entries(&batch.entries);
        match found {
            Some(count) if count > 0 && u64::from(count) == wanted => Ok(count),
            _ => Err(BatchError::WrongCount { found, wanted }),
        }
    }

    /// Starts the next segment and seals this one. Nothing of the journal changes before the rename; from there
    /// on only a success can be told from a failure, so anything else stops the journal.
    fn roll_over(&mut self, now: UnixMillis) -> Result<(), AppendError> {
        let spare = match self.spare.take() {
            Some(spare) => spare,
            None => self.maker.make().map_err(|error| self.no_segment(error))?,
        };
        let previous = Previous {
            first: self.active.first,
            last_header_at: self.cursor.header_at,
            last_header: self.cursor.header_hash,
        };
        let mut header = new_header(&spare, self.origin_hash, self.cursor.head, now, Some(previous));
        let bytes = header.encode_with(&self.frontier, &self.producers);
        if (bytes.len() + SECTOR + padded(self.maker.config.max_frame_bytes as usize)) as u64 > spare.bytes {
            let error =
                io::Error::other("the producer table leaves no room for a frame: raise the segment size");
            return Err(self.stop("starting a segment failed", &error));
        }
        let dir = self.maker.dir.clone();
        let (active, cursor) =
            install(dir.as_ref(), spare, &header, &bytes).map_err(|(step, error)| match step {
                Step::Before => self.no_segment(error),
                Step::After => self.stop("putting the next segment in place failed", &error),
            })?;
        let sealed = std::mem::replace(&mut self.active, active);
        self.cursor = cursor;
        let name = segment::name_of(sealed.first);
        dir.protect(&name).map_err(|error| self.stop("sealing a full segment failed", &error))?;
        dir.crash_point("journal.segment.sealed");
        Ok(())
    }

    fn no_segment(&mut self, error: io::Error) -> AppendError {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                AppendError::NoSpace(Arc::new(error))
            }
            _ => self.stop("making the next segment failed", &error),
        }
    }

    fn stop(&mut self, what: &str, error: &io::Error) -> AppendError {
        let cause: Arc<str> = format!("{what}: {error}").into();
        self.stopped = Some(cause.clone());
        AppendError::Fatal(cause)
    }
}

fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether an operation failed before or after the new segment may have got its name.
enum Step {
    Before,
    After,
}

/// Writes a segment's header into the spare and gives it its name, durably.
fn install(
    dir: &dyn Dir,
    spare: Spare,
    header: &SegmentHeader,
    bytes: &[u8],
) -> Result<(Active, Cursor), (Step, io::Error)> {
    let first = header.before.size;
    let give_up = |error| {
        // Only to give the space back; making the next spare or opening removes what stays.
        let _ = dir.remove(SPARE_NAME);
        (Step::Before, error)
    };
    spare.file.write_at(0, bytes).and_then(|()| spare.file.sync()).map_err(give_up)?;
    dir.crash_point("journal.segment.written");
    let name = segment::name_of(first);
    dir.rename(SPARE_NAME, &name).map_err(|error| match dir.list() {
        // A directory without room for the longer name: provably not renamed, so a later append can try again.
        Ok(names) if is_no_space(&error) && !names.contains(&name) => give_up(error),
        _ => (Step::After, error),
    })?;
    dir.crash_point("journal.segment.renamed");
    dir.sync().map_err(|error| (Step::After, error))?;
    dir.crash_point("journal.segment.durable");
    let active = Active { file: spare.file, id: header.id, first, bytes: header.segment_bytes };
    let header_hash = format::header_hash(bytes);
    Ok((active, Cursor { head: header.before, header_at: 0, header_hash, end: bytes.len() as u64 }))
}

fn new_header(
    spare: &Spare,
    origin_hash: Hash,
    before: TreeHead,
    time: UnixMillis,
    previous: Option<Previous>,
) -> SegmentHeader {
    SegmentHeader {
        id: spare.id,
        origin_hash,
        before,
        time,
        segment_bytes: spare.bytes,
        previous,
        frontier_count: 0,
        producer_count: 0,
        body_bytes: 0,
        body_crc: 0,
    }
}
