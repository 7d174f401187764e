//! One segment file: its name, how it is made ready, how it is opened, and what comes next in it.
//!
//! It judges a frame alone and against the header before it. Whether a bad one may be cut off is decided in
//! `recover`.

use std::io;
use std::sync::Arc;

use epigraph_core::{Entropy, Frontier, Hash, TreeHead, TreeSize};

use super::Config;
use super::error::JournalError;
use super::format::{
    self, FrameHeader, MAX_FRAME_BYTES, MAX_STATE_BYTES, SECTOR, Sector, SegmentHeader, SegmentId, Sparse,
    padded,
};
use super::producers::ProducerTable;
use super::read::OwnedFrame;
use crate::file::{Dir, File};

/// The next segment while it is made ready.
pub(super) const SPARE_NAME: &str = "spare.tmp";
const EXTENSION: &str = ".seg";
/// How much is written, zeroed or scanned at once: a few milliseconds of a slow disk.
pub(super) const CHUNK: usize = 1 << 20;

/// `<first index, 20 digits>.seg`.
pub(super) fn name_of(first: TreeSize) -> String {
    format!("{:020}{EXTENSION}", first.get())
}

/// The first indices of all segments, ascending. A name that ends like a segment's but is none is refused.
pub(super) fn list(dir: &dyn Dir) -> Result<Vec<TreeSize>, JournalError> {
    let names = dir.list().map_err(JournalError::io("list the journal's directory"))?;
    let mut firsts = Vec::new();
    for name in names.into_iter().filter(|name| name.ends_with(EXTENSION)) {
        let digits = name.trim_end_matches(EXTENSION);
        match digits.parse().ok().and_then(TreeSize::new).filter(|first| name_of(*first) == name) {
            Some(first) => firsts.push(first),
            None => {
                let found = "its name is not twenty digits and .seg, so nobody knows what it is".to_owned();
                return Err(JournalError::Damaged { segment: name, offset: 0, found });
            }
        }
    }
    firsts.sort();
    Ok(firsts)
}

/// A file that reads as zeros, its space taken and synced under a temporary name, ready to become the next segment.
pub struct Spare {
    pub(super) file: Box<dyn File>,
    pub(super) id: SegmentId,
    pub(super) bytes: u64,
}

/// Everything needed to make a [`Spare`] in another thread.
#[derive(Clone)]
pub struct SpareMaker {
    pub(super) dir: Arc<dyn Dir>,
    pub(super) entropy: Arc<dyn Entropy>,
    pub(super) config: Config,
}

impl SpareMaker {
    /// Takes the space, or writes and syncs the zeros. After an error nothing is left of it, as far as the system lets us.
    pub fn make(&self) -> io::Result<Spare> {
        self.make_in_pieces(|| true)
    }

    /// The same, a piece of [`CHUNK`] bytes at a time: an append that is synced meanwhile waits for one piece at most, and not for
    /// all of a segment. Asks before each piece but the first whether to go on; that may take its time.
    pub(super) fn make_in_pieces(&self, go_on: impl FnMut() -> bool) -> io::Result<Spare> {
        self.try_make(go_on).inspect_err(|_| {
            // Only to give the space back; the next open removes what stays.
            let _ = self.dir.remove(SPARE_NAME);
        })
    }

    fn try_make(&self, mut go_on: impl FnMut() -> bool) -> io::Result<Spare> {
        match self.dir.remove(SPARE_NAME) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = self.dir.create(SPARE_NAME)?;
        let to = self.config.segment_bytes();
        let mut at = if self.reserve(file.as_ref())? { to } else { 0 };
        while at < to {
            if at > 0 && !go_on() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let end = to.min(at + CHUNK as u64);
            write_zeros(file.as_ref(), at, end)?;
            // Now, so that no append waits for megabytes of zeros, and a full volume shows here and not at a frame.
            file.sync()?;
            at = end;
        }
        self.dir.crash_point("journal.spare.ready");
        let mut id = SegmentId::default();
        self.entropy.fill(&mut id);
        Ok(Spare { file, id, bytes: self.config.segment_bytes() })
    }

    /// Takes the space of a segment, durably, if it is to be taken so and can be.
    fn reserve(&self, file: &dyn File) -> io::Result<bool> {
        if !self.config.is_reserved {
            return Ok(false);
        }
        match file.reserve(self.config.segment_bytes()) {
            Ok(()) => file.sync().map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(false),
            Err(error) => Err(error),
        }
    }
}

pub(super) fn write_zeros(file: &dyn File, from: u64, to: u64) -> io::Result<()> {
    let zeros = vec![0; CHUNK.min(usize::try_from(to.saturating_sub(from)).unwrap_or(CHUNK))];
    let mut at = from;
    while at < to {
        let length = zeros.len().min(usize::try_from(to - at).unwrap_or(zeros.len()));
        file.write_at(at, &zeros[..length])?;
        at += length as u64;
    }
    Ok(())
}

/// An open segment.
pub(super) struct Segment {
    pub(super) name: String,
    pub(super) file: Box<dyn File>,
    pub(super) header: SegmentHeader,
    /// Header sector and padded body, as they are on the disk.
    pub(super) head_bytes: Vec<u8>,
    pub(super) frontier: Frontier,
    pub(super) producers: ProducerTable,
}

/// The last header that was read or written, and where the next one goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Cursor {
    pub(super) head: TreeHead,
    pub(super) header_at: u64,
    pub(super) header_hash: Hash,
    pub(super) end: u64,
}

/// What is at a cursor's end.
pub(super) enum Next {
    /// A frame that checks and follows.
    Frame(OwnedFrame, Cursor),
    /// A sector of zeros, or no room for one.
    Nothing,
    /// A sector that is no header of this segment.
    BadHeader(Box<Sector>, String),
    /// A header that checks and follows, and a body that does not match its checksum.
    BadBody(FrameHeader, Sparse),
    /// Header and body check, and contradict what came before or each other.
    Contradiction(String),
}

/// What is at a cursor's end, as far as its header says.
pub(super) enum NextHeader {
    /// A header that checks and follows, and the cursor behind its frame.
    Frame(Box<FrameHeader>, Cursor),
    /// Anything else; never a frame.
    Other(Box<Next>),
}

impl Segment {
    /// Opens the segment that starts at `first` for reading and checks its header and its body.
    pub(super) fn open(dir: &dyn Dir, first: TreeSize, origin_hash: Hash) -> Result<Segment, JournalError> {
        let name = name_of(first);
        let file = match dir.open_read_only(&name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let because = format!("entries from {first} on must be in it");
                return Err(JournalError::MissingSegment { segment: name, because });
            }
            other => other.map_err(JournalError::io(format!("open {name}")))?,
        };
        let damaged = |found: String| JournalError::Damaged { segment: name.clone(), offset: 0, found };
        let length = file.length().map_err(JournalError::io(format!("get the length of {name}")))?;
        if length < SECTOR as u64 {
            return Err(damaged(format!("the file has {length} bytes, less than its header")));
        }
        let mut sector = [0; SECTOR];
        file.read_at(0, &mut sector).map_err(JournalError::io(format!("read {name}")))?;
        let header = SegmentHeader::decode(&sector).map_err(damaged)?;
        if header.origin_hash != origin_hash {
            return Err(JournalError::OtherLog {
                segment: name,
                found: header.origin_hash,
                wanted: origin_hash,
            });
        }
        let body_bytes = padded(header.body_bytes as usize);
        if header.before.size != first {
            return Err(damaged(format!("its header says that it starts at {}", header.before.size)));
        }
        if header.segment_bytes != length {
            return Err(damaged(format!(
                "the file has {length} bytes, its header says {}",
                header.segment_bytes
            )));
        }
        if header.body_bytes as usize > MAX_STATE_BYTES || (SECTOR + body_bytes) as u64 > length {
            return Err(damaged(format!(
                "its header has a body of {} bytes, which no header has",
                header.body_bytes
            )));
        }
        let mut head_bytes = sector.to_vec();
        head_bytes.resize(SECTOR + body_bytes, 0);
        file.read_at(SECTOR as u64, &mut head_bytes[SECTOR..])
            .map_err(JournalError::io(format!("read {name}")))?;
        let (frontier, producers) = header
            .decode_body(&head_bytes[SECTOR..])
            .map_err(|found| JournalError::Damaged { segment: name.clone(), offset: SECTOR as u64, found })?;
        Ok(Segment { name, file, header, head_bytes, frontier, producers })
    }

    /// The cursor before the first frame.
    pub(super) fn start(&self) -> Cursor {
        Cursor {
            head: self.header.before,
            header_at: 0,
            header_hash: format::header_hash(&self.head_bytes),
            end: self.head_bytes.len() as u64,
        }
    }

    /// Reads what is at `cursor.end`. Leaf hashes and roots are not computed here.
    pub(super) fn next(&self, cursor: &Cursor) -> Result<Next, JournalError> {
        Ok(match self.next_header(cursor)? {
            NextHeader::Frame(header, after) => self.frame(*header, after)?,
            NextHeader::Other(other) => *other,
        })
    }

    /// Reads the header at `cursor.end` and leaves its body alone.
    pub(super) fn next_header(&self, cursor: &Cursor) -> Result<NextHeader, JournalError> {
        let other = |next| Ok(NextHeader::Other(Box::new(next)));
        let room = self.header.segment_bytes.saturating_sub(cursor.end);
        if room < SECTOR as u64 {
            return other(Next::Nothing);
        }
        let sector = self.sector_at(cursor.end)?;
        if format::is_zero(&sector) {
            return other(Next::Nothing);
        }
        let header = match FrameHeader::decode(&sector) {
            Ok(header) => header,
            Err(found) => return other(Next::BadHeader(Box::new(sector), found)),
        };
        if let Some(found) = self.contradiction(cursor, &header) {
            return other(Next::Contradiction(found));
        }
        let body_bytes = padded(header.body_bytes as usize);
        let (Some(size), true) =
            (header.size_after(), header.body_bytes <= MAX_FRAME_BYTES && header.count > 0)
        else {
            return other(Next::Contradiction("the frame header has counts that no frame has".to_owned()));
        };
        if (SECTOR + body_bytes) as u64 > room {
            return other(Next::Contradiction("the frame reaches beyond the end of its segment".to_owned()));
        }
        let after = Cursor {
            head: TreeHead { size, root: header.root_after },
            header_at: cursor.end,
            header_hash: format::header_hash(&sector),
            end: cursor.end + (SECTOR + body_bytes) as u64,
        };
        Ok(NextHeader::Frame(Box::new(header), after))
    }

    /// Reads the body behind a header that [`Segment::next_header`] gave, with the cursor behind it.
    pub(super) fn frame(&self, header: FrameHeader, after: Cursor) -> Result<Next, JournalError> {
        let mut body = vec![0; padded(header.body_bytes as usize)];
        self.read(after.header_at + SECTOR as u64, &mut body)?;
        if crc32c::crc32c(&body) != header.body_crc {
            return Ok(Next::BadBody(header, Sparse::count(&body)));
        }
        Ok(match OwnedFrame::new(header, body) {
            Ok(frame) => Next::Frame(frame, after),
            Err(found) => Next::Contradiction(found),
        })
    }

    fn contradiction(&self, cursor: &Cursor, header: &FrameHeader) -> Option<String> {
        if header.segment_id != self.header.id {
            Some("the frame belongs to another segment".to_owned())
        } else if header.previous_header != cursor.header_hash {
            Some("the frame does not carry the hash of the header before it".to_owned())
        } else if header.before != cursor.head {
            Some(format!(
                "the frame starts at size {} with root {}, the one before ends at size {} with root {}",
                header.before.size, header.before.root, cursor.head.size, cursor.head.root
            ))
        } else {
            None
        }
    }

    /// Checks that `self` begins where `previous` ends, by its last frame header alone.
    pub(super) fn follows(&self, previous: &Segment) -> Result<(), JournalError> {
        let Some(link) = self.header.previous.filter(|link| link.first == previous.header.before.size) else {
            return Err(self.missing_previous());
        };
        let damaged = |found: &str| JournalError::Damaged {
            segment: previous.name.clone(),
            offset: link.last_header_at,
            found: format!("{found} {}", self.name),
        };
        if link.last_header_at.saturating_add(SECTOR as u64) > previous.header.segment_bytes {
            return Err(damaged("the file ends before the last frame header known to"));
        }
        let sector = previous.sector_at(link.last_header_at)?;
        if format::header_hash(&sector) != link.last_header {
            return Err(damaged("the last frame header is not the one known to"));
        }
        match FrameHeader::decode(&sector) {
            Ok(header)
                if header.segment_id == previous.header.id
                    && header.size_after() == Some(self.header.before.size)
                    && header.root_after == self.header.before.root =>
            {
                Ok(())
            }
            _ => Err(damaged("the last frame does not end where the next segment starts:")),
        }
    }

    /// The error for a segment before which one is missing.
    pub(super) fn missing_previous(&self) -> JournalError {
        match self.header.previous {
            Some(previous) => JournalError::MissingSegment {
                segment: name_of(previous.first),
                because: format!("{} follows it", self.name),
            },
            None => JournalError::Damaged {
                segment: self.name.clone(),
                offset: 0,
                found: "its header says that it is the first segment, and it is not".to_owned(),
            },
        }
    }

    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), JournalError> {
        self.file
            .read_at(offset, buffer)
            .map_err(JournalError::io(format!("read {} at byte {offset}", self.name)))
    }

    fn sector_at(&self, offset: u64) -> Result<Sector, JournalError> {
        let mut sector = [0; SECTOR];
        self.read(offset, &mut sector)?;
        Ok(sector)
    }
}
