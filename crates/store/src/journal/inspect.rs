//! Looking at a whole journal without changing it: every byte of every segment, past the first flaw to the last.
//!
//! It judges by the rules of opening, so what it calls torn is what the next open cuts off. It does not know the
//! checkpoints that were signed over the journal; it only says which roots its entries give.

use std::collections::BTreeMap;

use epigraph_core::hash::leaf_hash;
use epigraph_core::{Frontier, Hash, TreeHead, TreeSize};

use super::error::JournalError;
use super::format::{FrameHeader, SECTOR};
use super::producers::ProducerTable;
use super::read::{OwnedFrame, not_a_frame};
use super::recover::{self, Debris};
use super::segment::{self, Cursor, Next, NextHeader, Segment};
use crate::file::Dir;

/// Flaws that are listed one by one. A disk that fails has no end of them, and nobody reads more.
pub const MAX_FLAWS: usize = 1_000;

/// What [`inspect`] found.
#[derive(Debug)]
pub struct Inspection {
    /// Everything that is wrong, in the order of the log; beyond [`MAX_FLAWS`] it stopped.
    pub flaws: Vec<Flaw>,
    /// What the next open will cut off.
    pub torn: Option<Torn>,
    /// Where the last frame that could be read ends: the journal's head if there are no flaws.
    pub head: TreeHead,
    /// The roots that the entries gave at the sizes that were asked for, as far as they could be computed.
    pub roots: BTreeMap<TreeSize, Hash>,
    /// Segment files that are there.
    pub segments: u64,
    /// Frames whose header and body check.
    pub frames: u64,
}

/// One flaw.
#[derive(Debug)]
pub struct Flaw {
    /// The index of the first entry that it concerns.
    pub index: TreeSize,
    /// What is wrong, and where.
    pub error: JournalError,
}

/// The remains of a frame that was never completely written, at the end of the last segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Torn {
    /// The segment's file name.
    pub segment: String,
    /// Where in it they begin.
    pub offset: u64,
    /// Up to the last sector that is not zero.
    pub bytes: u64,
}

/// Reads all there is, and after a flaw goes on with the next frame that it recognises, or the next segment. Roots
/// are computed for the sizes in `wanted`. `progress` hears the size after each frame. Nobody may append meanwhile.
pub fn inspect(
    dir: &dyn Dir,
    origin_hash: Hash,
    wanted: &[TreeSize],
    progress: &mut dyn FnMut(TreeSize),
) -> Inspection {
    let found = Inspection {
        flaws: Vec::new(),
        torn: None,
        head: TreeHead::EMPTY,
        roots: BTreeMap::new(),
        segments: 0,
        frames: 0,
    };
    let mut walk = Walk { wanted, progress, found, state: None };
    let firsts = match segment::list(dir) {
        Ok(firsts) => firsts,
        Err(error) => {
            walk.flaw(TreeSize::ZERO, error);
            return walk.found;
        }
    };
    if firsts.is_empty() {
        walk.flaw(TreeSize::ZERO, JournalError::NoJournal);
    }
    walk.found.segments = firsts.len() as u64;
    // The segment before, and whether it was read to its end without a flaw.
    let mut previous: Option<(Segment, bool)> = None;
    for (at, first) in firsts.iter().enumerate() {
        if walk.found.flaws.len() >= MAX_FLAWS {
            break;
        }
        let segment = match Segment::open(dir, *first, origin_hash) {
            Ok(segment) => segment,
            Err(error) => {
                walk.flaw(*first, error);
                previous = None;
                continue;
            }
        };
        let before = at.checked_sub(1).and_then(|before| firsts.get(before)).copied();
        if segment.header.previous.map(|link| link.first) != before || (at == 0 && *first != TreeSize::ZERO) {
            walk.flaw(*first, segment.missing_previous());
        } else if let Some((previous, true)) = &previous {
            // If there were flaws, that its end does not fit is one of them, told twice.
            if let Err(error) = segment.follows(previous) {
                walk.flaw(*first, error);
            }
            if walk.state.take().is_some_and(|(_, producers)| producers != segment.producers) {
                let found = "its table of producers is not what the segments before say".to_owned();
                let segment = segment.name.clone();
                walk.flaw(*first, JournalError::Damaged { segment, offset: SECTOR as u64, found });
            }
        }
        let known = walk.found.flaws.len();
        let is_last = at + 1 == firsts.len();
        walk.segment(&segment, is_last);
        if is_last && let Err(error) = recover::check_unsealed(dir, &segment, walk.found.head.size) {
            walk.flaw(walk.found.head.size, error);
        }
        let sound = walk.found.flaws.len() == known;
        previous = Some((segment, sound));
    }
    walk.found
}

struct Walk<'a> {
    wanted: &'a [TreeSize],
    progress: &'a mut dyn FnMut(TreeSize),
    found: Inspection,
    /// The frontier and the table of producers that the frames of a segment have given so far. Without the entries before,
    /// none after can be hashed into the tree until the next segment.
    state: Option<(Frontier, ProducerTable)>,
}

impl Walk<'_> {
    fn flaw(&mut self, index: TreeSize, error: JournalError) {
        self.found.flaws.push(Flaw { index, error });
    }

    fn segment(&mut self, segment: &Segment, is_last: bool) {
        let mut cursor = segment.start();
        self.state = Some((segment.frontier.clone(), segment.producers.clone()));
        self.note_root(&segment.frontier);
        self.found.head = cursor.head;
        while self.found.flaws.len() < MAX_FLAWS {
            let (next, after) = match look(segment, &cursor) {
                Ok(looked) => looked,
                Err(error) => {
                    self.flaw(cursor.head.size, error);
                    return;
                }
            };
            let verdict = match next {
                Next::Frame(frame, after) => {
                    if let Err(found) = self.replay(&frame) {
                        let (segment, offset) = (segment.name.clone(), cursor.end);
                        self.flaw(cursor.head.size, JournalError::Damaged { segment, offset, found });
                        self.state = None;
                    }
                    cursor = after;
                    self.found.frames += 1;
                    self.found.head = cursor.head;
                    (self.progress)(cursor.head.size);
                    continue;
                }
                other if is_last => recover::tail(segment, &cursor, &other),
                other => end_of_sealed(segment, &cursor, &other).map(|()| 0),
            };
            let error = match verdict {
                Ok(0) => return,
                Ok(bytes) => {
                    self.found.torn = Some(Torn { segment: segment.name.clone(), offset: cursor.end, bytes });
                    return;
                }
                Err(error) => error,
            };
            self.flaw(cursor.head.size, error);
            self.state = None;
            let onward = match after {
                Some(after) => Ok(Some(after)),
                None => next_header_behind(segment, cursor.end),
            };
            match onward {
                Ok(Some(onward)) => cursor = onward,
                Ok(None) => return,
                Err(error) => {
                    self.flaw(cursor.head.size, error);
                    return;
                }
            }
        }
    }

    fn replay(&mut self, frame: &OwnedFrame) -> Result<(), String> {
        let Some((frontier, producers)) = &mut self.state else { return Ok(()) };
        for entry in frame.entries() {
            frontier.push(leaf_hash(entry)).map_err(|error| error.to_string())?;
            if self.wanted.contains(&frontier.size()) {
                self.found.roots.insert(frontier.size(), frontier.root());
            }
        }
        frame.compare(frontier)?;
        frame.fold_into(producers)
    }

    fn note_root(&mut self, frontier: &Frontier) {
        if self.wanted.contains(&frontier.size()) {
            self.found.roots.insert(frontier.size(), frontier.root());
        }
    }
}

/// What is at the cursor, and the cursor behind it if its header checks.
fn look(segment: &Segment, cursor: &Cursor) -> Result<(Next, Option<Cursor>), JournalError> {
    Ok(match segment.next_header(cursor)? {
        NextHeader::Frame(header, after) => (segment.frame(*header, after)?, Some(after)),
        NextHeader::Other(other) => (*other, None),
    })
}

/// Nothing but zeros may follow the last frame of a sealed segment.
fn end_of_sealed(segment: &Segment, cursor: &Cursor, next: &Next) -> Result<(), JournalError> {
    if !matches!(next, Next::Nothing) || cursor.header_at == 0 {
        return Err(not_a_frame(segment, cursor, next));
    }
    let debris = Debris::look(segment, cursor.end)?;
    if debris.bytes == 0 {
        return Ok(());
    }
    let found = match debris.header_at {
        Some(offset) => format!("a frame is missing here: a later one starts at byte {offset}"),
        None => format!(
            "behind its last frame there are bytes that are not zero, up to byte {}",
            cursor.end + debris.bytes
        ),
    };
    Err(JournalError::Damaged { segment: segment.name.clone(), offset: cursor.end, found })
}

/// The place before the next sector behind `flaw` that is a whole frame header of this segment. No entry can hold
/// one: the segment's id is random and stands nowhere else.
fn next_header_behind(segment: &Segment, flaw: u64) -> Result<Option<Cursor>, JournalError> {
    let mut at = flaw + SECTOR as u64;
    let mut sector = [0; SECTOR];
    while at + SECTOR as u64 <= segment.header.segment_bytes {
        segment.read(at, &mut sector)?;
        if let Ok(FrameHeader { segment_id, before, previous_header, .. }) = FrameHeader::decode(&sector)
            && segment_id == segment.header.id
        {
            return Ok(Some(Cursor { head: before, header_at: flaw, header_hash: previous_header, end: at }));
        }
        at += SECTOR as u64;
    }
    Ok(None)
}
