//! Looking at a whole journal without changing it: every byte of every segment, past the first flaw to the last.
//!
//! It judges by the rules of opening, so what it calls torn is what the next open cuts off. It does not know the
//! checkpoints that were signed over the journal; it only says which roots its entries give.

use std::collections::{BTreeMap, HashSet};
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

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

/// Segments that are read at the same time, at most. Each reader holds one frame, and each segment its table of producers.
const MAX_READERS: usize = 8;

/// Messages from the readers that wait to be heard.
const MESSAGES: usize = 256;

/// Reads all there is, on as many threads as the machine runs at once, and after a flaw goes on with the next frame that
/// it recognises, or the next segment. Roots are computed for the sizes in `wanted`. `progress` hears how many entries were
/// read so far. Nobody may append meanwhile.
pub fn inspect(
    dir: &dyn Dir,
    origin_hash: Hash,
    wanted: &[TreeSize],
    progress: &mut dyn FnMut(u64),
) -> Inspection {
    let mut found = Inspection {
        flaws: Vec::new(),
        torn: None,
        head: TreeHead::EMPTY,
        roots: BTreeMap::new(),
        segments: 0,
        frames: 0,
    };
    // Looked into for every entry; a log keeps thousands of checkpoints.
    let wanted: HashSet<TreeSize> = wanted.iter().copied().collect();
    let firsts = match segment::list(dir) {
        Ok(firsts) => firsts,
        Err(error) => {
            found.flaw(TreeSize::ZERO, error);
            return found;
        }
    };
    if firsts.is_empty() {
        found.flaw(TreeSize::ZERO, JournalError::NoJournal);
    }
    found.segments = firsts.len() as u64;
    let readers = thread::available_parallelism().map_or(1, NonZero::get).min(MAX_READERS).min(firsts.len());
    let next = AtomicUsize::new(0);
    let (say, heard) = mpsc::sync_channel(MESSAGES);
    thread::scope(|scope| {
        for _ in 0..readers {
            let (say, next, firsts, wanted) = (say.clone(), &next, &firsts, &wanted);
            let reader = move || {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(first) = firsts.get(at) else { return };
                    let mut walk = Walk { wanted, say: &say, part: Part::default() };
                    walk.read(dir, *first, origin_hash, at + 1 == firsts.len());
                    // Nobody hears it any more when there were enough flaws.
                    if say.send(Message::Segment(at, Box::new(walk.part))).is_err() {
                        return;
                    }
                }
            };
            if let Err(error) = thread::Builder::new().name("inspect".into()).spawn_scoped(scope, reader) {
                found.flaw(TreeSize::ZERO, JournalError::io("start a thread to check the journal")(error));
            }
        }
        drop(say);
        found.join(&firsts, heard, progress);
    });
    found
}

/// What a reader has to say.
enum Message {
    /// It has read so many entries more.
    Read(u32),
    /// It has read a segment, the first of all being number 0.
    Segment(usize, Box<Part>),
}

/// What was found in one segment.
#[derive(Default)]
struct Part {
    /// The segment, if its header could be read.
    segment: Option<Segment>,
    flaws: Vec<Flaw>,
    torn: Option<Torn>,
    /// Where the last frame that could be read ends.
    head: Option<TreeHead>,
    roots: BTreeMap<TreeSize, Hash>,
    frames: u64,
    /// The frontier and the table of producers that the frames of a segment have given so far. Without the entries before,
    /// none after can be hashed into the tree until the next segment.
    state: Option<(Frontier, ProducerTable)>,
}

impl Inspection {
    fn flaw(&mut self, index: TreeSize, error: JournalError) {
        self.flaws.push(Flaw { index, error });
    }

    /// Puts together in the order of the log what the readers say in any.
    fn join(&mut self, firsts: &[TreeSize], heard: mpsc::Receiver<Message>, progress: &mut dyn FnMut(u64)) {
        let (mut early, mut wanted, mut entries) = (BTreeMap::new(), 0, 0);
        let mut previous: Option<Part> = None;
        for message in heard {
            match message {
                Message::Read(count) => {
                    entries += u64::from(count);
                    progress(entries);
                }
                Message::Segment(at, part) => drop(early.insert(at, part)),
            }
            while let Some(mut part) = early.remove(&wanted) {
                self.take(firsts, wanted, &mut part, previous.take());
                previous = part.segment.is_some().then_some(*part);
                wanted += 1;
                if self.flaws.len() >= MAX_FLAWS {
                    return;
                }
            }
        }
    }

    fn take(&mut self, firsts: &[TreeSize], at: usize, part: &mut Part, previous: Option<Part>) {
        let first = firsts.get(at).copied().unwrap_or(TreeSize::ZERO);
        if let Some(segment) = &part.segment {
            let before = at.checked_sub(1).and_then(|before| firsts.get(before)).copied();
            let sound = previous.filter(|previous| previous.flaws.is_empty());
            if segment.header.previous.map(|link| link.first) != before
                || (at == 0 && first != TreeSize::ZERO)
            {
                self.flaw(first, segment.missing_previous());
            } else if let Some(Part { segment: Some(previous), state, .. }) = &sound {
                // If there were flaws, that its end does not fit is one of them, told twice.
                if let Err(error) = segment.follows(previous) {
                    self.flaw(first, error);
                }
                if state.as_ref().is_some_and(|(_, producers)| *producers != segment.producers) {
                    let found = "its table of producers is not what the segments before say".to_owned();
                    let segment = segment.name.clone();
                    self.flaw(first, JournalError::Damaged { segment, offset: SECTOR as u64, found });
                }
            }
        }
        // What is taken is told; that there was something is kept for the next segment.
        let told = part.flaws.len();
        self.flaws.append(&mut part.flaws);
        if told > 0 {
            part.state = None;
            part.segment = None;
        }
        self.torn = part.torn.take().or(self.torn.take());
        self.head = part.head.unwrap_or(self.head);
        self.roots.append(&mut part.roots);
        self.frames += part.frames;
    }
}

struct Walk<'a> {
    wanted: &'a HashSet<TreeSize>,
    say: &'a mpsc::SyncSender<Message>,
    part: Part,
}

impl Walk<'_> {
    fn flaw(&mut self, index: TreeSize, error: JournalError) {
        self.part.flaws.push(Flaw { index, error });
    }

    fn read(&mut self, dir: &dyn Dir, first: TreeSize, origin_hash: Hash, is_last: bool) {
        let segment = match Segment::open(dir, first, origin_hash) {
            Ok(segment) => segment,
            Err(error) => return self.flaw(first, error),
        };
        let head = self.frames(&segment, is_last);
        if is_last && let Err(error) = recover::check_unsealed(dir, &segment, head.size) {
            self.flaw(head.size, error);
        }
        self.part.segment = Some(segment);
    }

    /// Returns where the last frame that could be read ends.
    fn frames(&mut self, segment: &Segment, is_last: bool) -> TreeHead {
        let mut cursor = segment.start();
        self.part.state = Some((segment.frontier.clone(), segment.producers.clone()));
        if self.wanted.contains(&segment.frontier.size()) {
            self.part.roots.insert(segment.frontier.size(), segment.frontier.root());
        }
        self.part.head = Some(cursor.head);
        while self.part.flaws.len() < MAX_FLAWS {
            let (next, after) = match look(segment, &cursor) {
                Ok(looked) => looked,
                Err(error) => {
                    self.flaw(cursor.head.size, error);
                    break;
                }
            };
            let verdict = match next {
                Next::Frame(frame, after) => {
                    if let Err(found) = self.replay(&frame) {
                        let (segment, offset) = (segment.name.clone(), cursor.end);
                        self.flaw(cursor.head.size, JournalError::Damaged { segment, offset, found });
                        self.part.state = None;
                    }
                    cursor = after;
                    self.part.frames += 1;
                    self.part.head = Some(cursor.head);
                    if self.say.send(Message::Read(frame.count())).is_err() {
                        break;
                    }
                    continue;
                }
                other if is_last => recover::tail(segment, &cursor, &other),
                other => end_of_sealed(segment, &cursor, &other).map(|()| 0),
            };
            let error = match verdict {
                Ok(0) => break,
                Ok(bytes) => {
                    self.part.torn = Some(Torn { segment: segment.name.clone(), offset: cursor.end, bytes });
                    break;
                }
                Err(error) => error,
            };
            self.flaw(cursor.head.size, error);
            self.part.state = None;
            let onward = match after {
                Some(after) => Ok(Some(after)),
                None => next_header_behind(segment, cursor.end),
            };
            match onward {
                Ok(Some(onward)) => cursor = onward,
                Ok(None) => break,
                Err(error) => {
                    self.flaw(cursor.head.size, error);
                    break;
                }
            }
        }
        self.part.head.unwrap_or(cursor.head)
    }

    fn replay(&mut self, frame: &OwnedFrame) -> Result<(), String> {
        let Some((frontier, producers)) = &mut self.part.state else { return Ok(()) };
        for entry in frame.entries() {
            frontier.push(leaf_hash(entry)).map_err(|error| error.to_string())?;
            if self.wanted.contains(&frontier.size()) {
                self.part.roots.insert(frontier.size(), frontier.root());
            }
        }
        frame.compare(frontier)?;
        frame.fold_into(producers)
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
