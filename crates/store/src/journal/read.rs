//! Reading a journal from one end to the other: by the tree writer behind a live journal, and by checks offline.
//!
//! It checks checksums and the chain of headers, not the roots: whoever reads re-hashes the entries and must
//! reach [`OwnedFrame::after`], as [`verify_all`] does.

use std::sync::Arc;

use epigraph_core::hash::leaf_hashes;
use epigraph_core::{Frontier, Hash, TreeHead, TreeSize, UnixMillis, bundle};

use super::error::JournalError;
use super::format::{self, FrameHeader};
use super::producers::{ProducerMark, ProducerTable};
use super::segment::{self, Cursor, Next, Segment};
use crate::file::Dir;

/// One batch as it is in the journal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OwnedFrame {
    header: FrameHeader,
    after: TreeHead,
    marks: Vec<ProducerMark>,
    body: Vec<u8>,
    entries_at: usize,
}

impl OwnedFrame {
    /// Takes a padded body whose checksum is right; checks that it holds what the header says.
    pub(super) fn new(header: FrameHeader, body: Vec<u8>) -> Result<OwnedFrame, String> {
        let size = header.size_after().ok_or("the frame ends beyond the largest size")?;
        let (marks, entries_at) = format::decode_body(&header, &body)?;
        let after = TreeHead { size, root: header.root_after };
        Ok(OwnedFrame { header, after, marks, body, entries_at })
    }

    /// The head before this batch: its size is the index of the first entry.
    pub fn before(&self) -> TreeHead {
        self.header.before
    }

    /// The head after it.
    pub fn after(&self) -> TreeHead {
        self.after
    }

    /// How many entries it holds; at least 1.
    pub fn count(&self) -> u32 {
        self.header.count
    }

    /// When the sequencer made it.
    pub fn time(&self) -> UnixMillis {
        self.header.time
    }

    /// Which producers sent which of its entries.
    pub fn marks(&self) -> &[ProducerMark] {
        &self.marks
    }

    /// The entries in the encoding of C2SP bundles.
    pub fn bundle(&self) -> &[u8] {
        self.body.get(self.entries_at..self.header.body_bytes as usize).unwrap_or_default()
    }

    /// The entries, in order; exactly [`OwnedFrame::count`] of them.
    pub fn entries(&self) -> impl Iterator<Item = &[u8]> {
        // The encoding was checked when the frame was read, so no error is skipped here.
        bundle::entries(self.bundle()).map_while(Result::ok)
    }

    /// Appends the entries to `frontier` and compares the root. The message says what differs.
    pub fn replay(&self, frontier: &mut Frontier) -> Result<(), String> {
        for leaf in leaf_hashes(self.entries()) {
            frontier.push(leaf).map_err(|error| error.to_string())?;
        }
        self.compare(frontier)
    }

    /// Adds its marks to the table of producers as it was before this frame. The message says what does not follow.
    pub(super) fn fold_into(&self, producers: &mut ProducerTable) -> Result<(), String> {
        producers.fold(self.before().size, self.count(), &self.marks)
    }

    /// Compares the head of the entries up to here with what the frame says.
    pub(super) fn compare(&self, frontier: &Frontier) -> Result<(), String> {
        let got = frontier.head();
        if got != self.after {
            return Err(format!(
                "the entries give size {} with root {}, the frame says size {} with root {}",
                got.size, got.root, self.after.size, self.after.root
            ));
        }
        Ok(())
    }
}

/// Reads frames in order across segments, holding one frame at a time. It may run while a `Journal` appends in
/// another thread: it never looks beyond the size that its caller knows to be durable.
pub struct Reader {
    dir: Arc<dyn Dir>,
    origin_hash: Hash,
    from: TreeSize,
    place: Option<(Segment, Cursor)>,
}

impl Reader {
    /// Starts with the first entry.
    pub fn new(dir: Arc<dyn Dir>, origin_hash: Hash) -> Reader {
        Reader::starting_at(dir, origin_hash, TreeSize::ZERO)
    }

    /// Starts with the frame that contains the entry with index `from`; that frame may start before it.
    pub fn starting_at(dir: Arc<dyn Dir>, origin_hash: Hash, from: TreeSize) -> Reader {
        Reader { dir, origin_hash, from, place: None }
    }

    /// The next frame; `None` if it is not within the first `durable` entries yet. After an error the reader
    /// stays where it is.
    pub fn next_frame(&mut self, durable: TreeSize) -> Result<Option<OwnedFrame>, JournalError> {
        if durable <= self.from {
            return Ok(None);
        }
        loop {
            let (segment, cursor) = match self.place.take() {
                Some(place) => place,
                None => self.first_place()?,
            };
            let (segment, cursor) = self.place.insert((segment, cursor));
            if cursor.head.size >= durable {
                return Ok(None);
            }
            match segment.next(cursor)? {
                Next::Frame(_, after) if after.head.size > durable => return Ok(None),
                Next::Frame(frame, after) => {
                    *cursor = after;
                    if after.head.size > self.from {
                        return Ok(Some(frame));
                    }
                }
                // The frame is durable, so if it is not here, it starts the next segment.
                Next::Nothing if cursor.header_at > 0 => {
                    let next = Segment::open(self.dir.as_ref(), cursor.head.size, self.origin_hash)?;
                    next.follows(segment)?;
                    let start = next.start();
                    self.place = Some((next, start));
                }
                other => return Err(not_a_frame(segment, cursor, &other)),
            }
        }
    }

    fn first_place(&self) -> Result<(Segment, Cursor), JournalError> {
        let firsts = segment::list(self.dir.as_ref())?;
        if firsts.is_empty() {
            return Err(JournalError::NoJournal);
        }
        let first = firsts.into_iter().rfind(|first| *first <= self.from).unwrap_or(TreeSize::ZERO);
        let segment = Segment::open(self.dir.as_ref(), first, self.origin_hash)?;
        let start = segment.start();
        Ok((segment, start))
    }
}

/// The error for what stands where a durable frame must be.
pub(super) fn not_a_frame(segment: &Segment, cursor: &Cursor, what: &Next) -> JournalError {
    let found = match what {
        Next::Nothing => "its first frame is missing",
        Next::BadHeader(_, found) | Next::Contradiction(found) => found,
        Next::BadBody(..) => "the frame's body does not match its checksum",
        Next::Frame(..) => "the frame is not the one that was looked for",
    };
    JournalError::Damaged { segment: segment.name.clone(), offset: cursor.end, found: found.to_owned() }
}

/// Reads and re-hashes the whole journal up to `durable` and returns the frontier it ends with. `progress` hears
/// the size after each frame.
pub fn verify_all(
    dir: Arc<dyn Dir>,
    origin_hash: Hash,
    durable: TreeSize,
    mut progress: impl FnMut(TreeSize),
) -> Result<Frontier, JournalError> {
    let mut reader = Reader::new(dir, origin_hash);
    let mut frontier = Frontier::new();
    while let Some(frame) = reader.next_frame(durable)? {
        let at = segment::name_of(
            reader.place.as_ref().map_or(TreeSize::ZERO, |(segment, _)| segment.header.before.size),
        );
        let offset = reader.place.as_ref().map_or(0, |(_, cursor)| cursor.header_at);
        frame.replay(&mut frontier).map_err(|found| JournalError::Damaged { segment: at, offset, found })?;
        progress(frontier.size());
    }
    Ok(frontier)
}
