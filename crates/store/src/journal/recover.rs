//! Opening a journal: check everything without touching anything, then repair what provably never was durable.

use epigraph_core::{Frontier, Hash, TreeSize};

use super::error::JournalError;
use super::format::{self, MAX_FRAME_BYTES, SECTOR};
use super::producers::ProducerTable;
use super::read::not_a_frame;
use super::segment::{self, CHUNK, Cursor, Next, SPARE_NAME, Segment};
use crate::file::{Dir, File};

/// Saved remains of torn frames kept per segment; a crash loop replaces the last one instead of filling the disk.
pub const MAX_CUT_FILES: u32 = 16;

/// What was cut off the end: part of a frame that was never completely written, hence never acknowledged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cut {
    /// The segment's file name.
    pub segment: String,
    /// Where in it the part began.
    pub offset: u64,
    /// Its length, up to its last sector that is not zero.
    pub bytes: u64,
    /// The file in the same directory that holds what was cut.
    pub saved_as: String,
}

/// A journal that was read and found sound, but for a tail that may be cut.
pub(super) struct Checked {
    pub(super) segment: Segment,
    pub(super) cursor: Cursor,
    pub(super) frontier: Frontier,
    /// What all frames say of producers.
    pub(super) producers: ProducerTable,
    sealed: Vec<TreeSize>,
    /// How many bytes from the cursor's end on are the remains of a torn frame.
    torn_bytes: u64,
}

/// Where the first segment of a journal may begin.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Beginning {
    /// With the first entry: nothing is ever removed.
    FirstEntry,
    /// Anywhere: what was before it was trimmed.
    Anywhere,
}

/// Checks the set of segments and every byte of the last one. Changes nothing.
pub(super) fn check(dir: &dyn Dir, origin_hash: Hash, beginning: Beginning) -> Result<Checked, JournalError> {
    let mut sealed = segment::list(dir)?;
    let last = sealed.pop().ok_or(JournalError::NoJournal)?;
    let mut previous: Option<Segment> = None;
    for first in sealed.iter().copied().chain([last]) {
        let segment = Segment::open(dir, first, origin_hash)?;
        match &previous {
            Some(previous) => segment.follows(previous)?,
            None if beginning == Beginning::Anywhere => {}
            None if first != TreeSize::ZERO || segment.header.previous.is_some() => {
                return Err(segment.missing_previous());
            }
            None => {}
        }
        previous = Some(segment);
    }
    let segment = previous.ok_or(JournalError::NoJournal)?;
    let (cursor, frontier, producers, torn_bytes) = scan(&segment)?;
    check_unsealed(dir, &segment, cursor.head.size)?;
    Ok(Checked { segment, cursor, frontier, producers, sealed, torn_bytes })
}

/// A segment is sealed once the next one is durable, so a sealed last segment had a successor.
pub(super) fn check_unsealed(dir: &dyn Dir, last: &Segment, size: TreeSize) -> Result<(), JournalError> {
    let name = &last.name;
    if dir.is_protected(name).map_err(JournalError::io(format!("get the mode of {name}")))? {
        return Err(JournalError::MissingSegment {
            segment: segment::name_of(size),
            because: format!(
                "{name} before it is sealed; if a copy took its write permission away and nothing is missing, give \
                 it back to the owner"
            ),
        });
    }
    Ok(())
}

/// Reads all frames of the last segment, recomputes their roots and the table of producers, and judges what follows them.
fn scan(segment: &Segment) -> Result<(Cursor, Frontier, ProducerTable, u64), JournalError> {
    let mut cursor = segment.start();
    let mut frontier = segment.frontier.clone();
    let mut producers = segment.producers.clone();
    loop {
        match segment.next(&cursor)? {
            Next::Frame(frame, after) => {
                frame
                    .replay(&mut frontier)
                    .and_then(|()| frame.fold_into(&mut producers))
                    .map_err(|found| damaged(segment, cursor.end, found))?;
                cursor = after;
            }
            other => {
                let torn_bytes = tail(segment, &cursor, &other)?;
                return Ok((cursor, frontier, producers, torn_bytes));
            }
        }
    }
}

/// Judges what stands behind the last valid frame of the last segment. `Ok` says how many bytes from there on are
/// the remains of a frame that provably was never completely written.
pub(super) fn tail(segment: &Segment, cursor: &Cursor, next: &Next) -> Result<u64, JournalError> {
    match next {
        Next::Nothing => {}
        Next::BadHeader(sector, _) if format::is_torn_header(sector) => {}
        Next::BadBody(header, now) if header.sparse.proves_torn(*now) => {}
        Next::BadBody(header, now) => {
            let found = format!(
                "the frame's body does not match its checksum, and its zero sectors ({} written, {} now) do not prove \
                 that it was never completely written",
                header.sparse.zero, now.zero
            );
            return Err(damaged(segment, cursor.end, found));
        }
        other => return Err(not_a_frame(segment, cursor, other)),
    }
    let debris = Debris::look(segment, cursor.end)?;
    if let Some(offset) = debris.header_at {
        let found = format!(
            "no valid frame starts here, yet this segment's id is in the header of a later one at byte {offset}"
        );
        return Err(damaged(segment, cursor.end, found));
    }
    if debris.bytes > (SECTOR + format::padded(MAX_FRAME_BYTES as usize)) as u64 {
        let found = "what follows the last valid frame is longer than any frame".to_owned();
        return Err(damaged(segment, cursor.end, found));
    }
    Ok(debris.bytes)
}

fn damaged(segment: &Segment, offset: u64, found: String) -> JournalError {
    JournalError::Damaged { segment: segment.name.clone(), offset, found }
}

/// What lies behind the last valid frame.
pub(super) struct Debris {
    /// From there to the end of the last sector that is not zero.
    pub(super) bytes: u64,
    /// The first sector, but for the very first, that carries the segment's id.
    pub(super) header_at: Option<u64>,
}

impl Debris {
    pub(super) fn look(segment: &Segment, from: u64) -> Result<Debris, JournalError> {
        let mut debris = Debris { bytes: 0, header_at: None };
        let mut buffer = vec![0; CHUNK];
        let mut at = from;
        while at < segment.header.segment_bytes {
            let left = usize::try_from(segment.header.segment_bytes - at).unwrap_or(CHUNK);
            let chunk = &mut buffer[..left.min(CHUNK)];
            segment.read(at, chunk)?;
            for sector in chunk.chunks(SECTOR) {
                if !format::is_zero(sector) {
                    if debris.header_at.is_none()
                        && at > from
                        && format::carries_id(sector, &segment.header.id)
                    {
                        debris.header_at = Some(at);
                    }
                    debris.bytes = at + sector.len() as u64 - from;
                }
                at += sector.len() as u64;
            }
        }
        Ok(debris)
    }
}

/// Brings the directory and the last segment into the state that [`check`] found, durably. Every step can be
/// repeated: a crash after any of them leaves a journal that the next open checks and repairs the same way.
pub(super) fn repair(dir: &dyn Dir, checked: &Checked) -> Result<(Box<dyn File>, Option<Cut>), JournalError> {
    let Checked { segment, cursor, sealed, torn_bytes, .. } = checked;
    let name = &segment.name;
    // A crash here leaves all as it was.
    dir.crash_point("journal.open.checked");
    let names = dir.list().map_err(JournalError::io("list the journal's directory"))?;
    if names.iter().any(|name| name == SPARE_NAME) {
        dir.remove(SPARE_NAME).map_err(JournalError::io(format!("remove the left-over {SPARE_NAME}")))?;
    }
    for name in sealed.iter().map(|first| segment::name_of(*first)) {
        if !dir.is_protected(&name).map_err(JournalError::io(format!("get the mode of {name}")))? {
            dir.protect(&name).map_err(JournalError::io(format!("write-protect {name}")))?;
        }
    }
    let file = dir.open(name).map_err(JournalError::io(format!("open {name} for writing")))?;
    let cut = match torn_bytes {
        0 => None,
        _ => Some(save(dir, checked, &names)?),
    };
    if cut.is_some() {
        // Zeros only add to the zero sectors and never make a header, so a cut that was half done stays provable.
        // They are synced with the tail below.
        segment::write_zeros(file.as_ref(), cursor.end, segment.header.segment_bytes)
            .map_err(JournalError::io(format!("zero the torn end of {name}")))?;
        dir.crash_point("journal.cut.zeroed");
    }
    // The kernel may show pages that never reached the disk: after a failed sync it marks them clean. Writing the
    // tail again makes them dirty again, and the sync then tells the truth about them. All before the tail was
    // followed by a sync that succeeded.
    let mut tail = segment.head_bytes.clone();
    if cursor.header_at > 0 {
        tail.resize(usize::try_from(cursor.end - cursor.header_at).unwrap_or(0), 0);
        segment.read(cursor.header_at, &mut tail)?;
    }
    file.write_at(cursor.header_at, &tail)
        .and_then(|()| file.sync())
        .map_err(JournalError::io(format!("write the last frame of {name} again")))?;
    dir.crash_point("journal.tail.rewritten");
    // The last segment may have been renamed by a process that ended before it synced the directory.
    dir.sync().map_err(JournalError::io("sync the journal's directory"))?;
    Ok((file, cut))
}

/// Copies the torn remains to a file of their own, for whoever wants to look at them.
fn save(dir: &dyn Dir, checked: &Checked, names: &[String]) -> Result<Cut, JournalError> {
    let Checked { segment, cursor, torn_bytes, .. } = checked;
    let name_of = |number: u32| format!("{}.cut-{number}", segment.name);
    let free = (1..=MAX_CUT_FILES).map(name_of).find(|name| !names.contains(name));
    let saved_as = match free {
        Some(name) => name,
        None => {
            let last = name_of(MAX_CUT_FILES);
            dir.remove(&last).map_err(JournalError::io(format!("remove {last} to make room")))?;
            last
        }
    };
    let mut bytes = vec![0; usize::try_from(*torn_bytes).unwrap_or(0)];
    segment.read(cursor.end, &mut bytes)?;
    dir.create(&saved_as)
        .and_then(|file| file.write_at(0, &bytes).and_then(|()| file.sync()))
        .and_then(|()| dir.sync())
        .map_err(JournalError::io(format!("save the torn end of {} as {saved_as}", segment.name)))?;
    dir.crash_point("journal.cut.saved");
    Ok(Cut { segment: segment.name.clone(), offset: cursor.end, bytes: *torn_bytes, saved_as })
}
