//! Entries by their index, from anywhere in the journal, beside the thread that appends to it.
//!
//! A segment is found by its name and a frame by walking headers, from the nearest place where an earlier walk came
//! by. Each body is checked against its checksum. It computes no leaf hashes: whoever serves an entry compares it
//! with the tree.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use epigraph_core::hash::leaf_hash;
use epigraph_core::{Hash, LeafIndex, TreeHead, TreeSize, bundle};

use super::error::JournalError;
use super::producers::ProducerTable;
use super::read::{OwnedFrame, not_a_frame};
use super::segment::{self, Cursor, Next, NextHeader, Segment};
use crate::file::Dir;

/// Open segments that are kept: a few readers far apart, and one file handle each.
const MAX_SEGMENTS: usize = 8;

/// Frames that are kept after they were read, 16 MiB at most: a stream takes a large frame in many small steps, and each would
/// read and check all of it again.
const MAX_FRAMES: usize = 2;

/// Bytes between two remembered places of a segment: a walk between them reads at most 64 headers, and a segment of
/// the largest size has 16,384 of them, 1.5 MB.
const PLACE_EVERY: u64 = 64 << 10;

/// Reads entries of one journal by index. Any number of threads may; each [`Entries`] holds one frame.
pub struct EntryReader {
    dir: Arc<dyn Dir>,
    origin_hash: Hash,
    /// First indices of the segments, as far as they were seen.
    firsts: Mutex<Vec<TreeSize>>,
    /// Those read last, the latest at the end.
    segments: Mutex<VecDeque<Arc<Indexed>>>,
    /// Those read last, the latest at the end.
    frames: Mutex<VecDeque<Arc<OwnedFrame>>>,
}

struct Indexed {
    segment: Segment,
    /// Ascending; the first one is the segment's start.
    places: Mutex<Vec<Cursor>>,
}

impl EntryReader {
    /// For the journal in `dir`. Nothing is read yet.
    pub fn new(dir: Arc<dyn Dir>, origin_hash: Hash) -> EntryReader {
        let (firsts, segments, frames) = (Mutex::default(), Mutex::default(), Mutex::default());
        EntryReader { dir, origin_hash, firsts, segments, frames }
    }

    /// The entries from index `first` on, in order, up to `end` and never beyond `durable`, which the caller knows
    /// to be on the disk.
    pub fn read(&self, first: LeafIndex, end: TreeSize, durable: TreeSize) -> Entries<'_> {
        Entries { reader: self, next: first, end: end.min(durable), place: None, frame: None }
    }

    /// A place at or before the frame that contains the entry.
    fn find(&self, index: LeafIndex) -> Result<(Arc<Indexed>, Cursor), JournalError> {
        let holds = |first: &TreeSize| first.get() <= index.get();
        let mut firsts = lock(&self.firsts);
        if firsts.last().is_none_or(holds) {
            // The newest segment may not be the newest any more.
            *firsts = segment::list(self.dir.as_ref())?;
        }
        let first = firsts.iter().rfind(|first| holds(first)).copied();
        drop(firsts);
        let indexed = self.open(first.ok_or(JournalError::NoJournal)?)?;
        let places = lock(&indexed.places);
        let behind = places.partition_point(|place| place.head.size.get() <= index.get());
        let nearest = behind.checked_sub(1).and_then(|at| places.get(at)).copied();
        drop(places);
        let start = nearest.ok_or(JournalError::NoJournal)?;
        Ok((indexed, start))
    }

    /// A frame that is kept and contains the entry.
    fn kept(&self, index: LeafIndex) -> Option<Arc<OwnedFrame>> {
        let frames = lock(&self.frames);
        let contains = |frame: &&Arc<OwnedFrame>| {
            !frame.before().size.contains(index) && frame.after().size.contains(index)
        };
        frames.iter().find(contains).cloned()
    }

    /// Reads every frame from the disk again: an entry of a kept one was found wrong, and memory may be at fault.
    pub(crate) fn forget(&self) {
        lock(&self.frames).clear();
    }

    fn keep(&self, frame: &Arc<OwnedFrame>) {
        let mut frames = lock(&self.frames);
        if frames.len() >= MAX_FRAMES {
            frames.pop_front();
        }
        frames.push_back(frame.clone());
    }

    fn open(&self, first: TreeSize) -> Result<Arc<Indexed>, JournalError> {
        let mut segments = lock(&self.segments);
        if let Some(at) = segments.iter().position(|open| open.segment.header.before.size == first) {
            let open = segments.remove(at);
            segments.extend(open.clone());
            return open.ok_or(JournalError::NoJournal);
        }
        drop(segments);
        let mut segment = Segment::open(self.dir.as_ref(), first, self.origin_hash)?;
        let start = segment.start();
        // Megabytes that nobody asks for here.
        segment.producers = ProducerTable::default();
        segment.head_bytes = Vec::new();
        let indexed = Arc::new(Indexed { segment, places: Mutex::new(vec![start]) });
        let mut segments = lock(&self.segments);
        if segments.len() >= MAX_SEGMENTS {
            segments.pop_front();
        }
        segments.push_back(indexed.clone());
        Ok(indexed)
    }
}

impl Indexed {
    fn remember(&self, place: Cursor) {
        let mut places = lock(&self.places);
        if places.last().is_none_or(|last| last.end + PLACE_EVERY <= place.end) {
            places.push(place);
        }
    }
}

/// Entries in order, of one frame.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// The index of the first.
    pub first: LeafIndex,
    /// How many.
    pub count: usize,
    bundle: &'a [u8],
}

impl<'a> Run<'a> {
    /// The bytes of each.
    pub fn entries(&self) -> impl Iterator<Item = &'a [u8]> {
        bundle::entries(self.bundle).map_while(Result::ok)
    }
}

/// Entries in order. After an error it ends.
pub struct Entries<'a> {
    reader: &'a EntryReader,
    next: LeafIndex,
    end: TreeSize,
    place: Option<(Arc<Indexed>, Cursor)>,
    frame: Option<(Arc<OwnedFrame>, usize)>,
}

impl Entries<'_> {
    /// The index of the next entry.
    pub fn next_index(&self) -> LeafIndex {
        self.next
    }

    /// The next entry, without copying it.
    pub fn next_entry(&mut self) -> Result<Option<(LeafIndex, &[u8])>, JournalError> {
        let Some(run) = self.next_run(1, usize::MAX)? else { return Ok(None) };
        Ok(run.entries().next().map(|entry| (run.first, entry)))
    }

    /// The next entries, at most so many of them and so many bytes together, without copying them: none if the first has more
    /// bytes than that. It may end before there is no room.
    pub fn next_run(&mut self, most: usize, most_bytes: usize) -> Result<Option<Run<'_>>, JournalError> {
        let first = self.next;
        if !self.end.contains(first) {
            return Ok(None);
        }
        let (mut frame, mut at) = match self.frame.take() {
            Some(place) => place,
            None => self.frame_of(first)?,
        };
        if frame.after().size < first.size_after() {
            (frame, at) = self.frame_of(first)?;
        }
        let left = frame.after().size.min(self.end).get() - first.get();
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(most);
        let (frame, at) = self.frame.insert((frame, at));
        let rest = frame.bundle().get(*at..).unwrap_or_default();
        let (mut count, mut bytes) = (0, 0);
        // The encoding and the count were checked when the frame was read, so no error ends this.
        for entry in bundle::entries(rest).map_while(Result::ok).take(most) {
            if bytes + entry.len() > most_bytes {
                break;
            }
            (count, bytes) = (count + 1, bytes + entry.len());
        }
        let bundle = rest.get(..bytes + count * bundle::LENGTH_BYTES).unwrap_or_default();
        let Some(next) = first.checked_add(count as u64) else { return Ok(None) };
        self.next = next;
        *at += bundle.len();
        Ok(Some(Run { first, count, bundle }))
    }

    /// The frame that contains the entry; with it, where in its bundle the entry starts.
    fn frame_of(&mut self, index: LeafIndex) -> Result<(Arc<OwnedFrame>, usize), JournalError> {
        let frame = match self.reader.kept(index) {
            Some(frame) => frame,
            None => {
                let frame = Arc::new(self.read_frame(index)?);
                self.reader.keep(&frame);
                frame
            }
        };
        let skipped = index.get().saturating_sub(frame.before().size.get());
        let bytes = frame.entries().take(usize::try_from(skipped).unwrap_or(usize::MAX));
        let at = bytes.map(|entry| bundle::LENGTH_BYTES + entry.len()).sum();
        Ok((frame, at))
    }

    fn read_frame(&mut self, index: LeafIndex) -> Result<OwnedFrame, JournalError> {
        let (mut indexed, mut cursor) = match self.place.take() {
            Some(place) => place,
            None => self.reader.find(index)?,
        };
        loop {
            match indexed.segment.next_header(&cursor)? {
                NextHeader::Frame(header, after) => {
                    indexed.remember(cursor);
                    if after.head.size.contains(index) {
                        let frame = match indexed.segment.frame(*header, after)? {
                            Next::Frame(frame, _) => frame,
                            other => return Err(not_a_frame(&indexed.segment, &cursor, &other)),
                        };
                        self.place = Some((indexed, after));
                        return Ok(frame);
                    }
                    cursor = after;
                }
                // The entry is durable, so if it is not here, the next segment has it.
                NextHeader::Other(other) if matches!(*other, Next::Nothing) && cursor.header_at > 0 => {
                    let next = self.reader.open(cursor.head.size)?;
                    next.segment.follows(&indexed.segment)?;
                    cursor = lock(&next.places).first().copied().ok_or(JournalError::NoJournal)?;
                    indexed = next;
                }
                NextHeader::Other(other) => return Err(not_a_frame(&indexed.segment, &cursor, &other)),
            }
        }
    }
}

impl Iterator for Entries<'_> {
    type Item = Result<(LeafIndex, Vec<u8>), JournalError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.next_entry().map(|entry| entry.map(|(index, entry)| (index, entry.to_vec())));
        if next.is_err() {
            self.end = TreeSize::ZERO;
        }
        next.transpose()
    }
}

/// The head that the first `size` entries have by the journal alone, hashed anew from the start of their segment:
/// what a start compares published and signed heads with before any tree is there. `size` is at most `durable`.
pub fn head_at(
    dir: &Arc<dyn Dir>,
    origin_hash: Hash,
    size: TreeSize,
    durable: TreeSize,
) -> Result<TreeHead, JournalError> {
    let firsts = segment::list(dir.as_ref())?;
    let first = firsts.into_iter().rfind(|first| *first <= size).ok_or(JournalError::NoJournal)?;
    let segment = Segment::open(dir.as_ref(), first, origin_hash)?;
    let mut frontier = segment.frontier;
    let reader = EntryReader::new(dir.clone(), origin_hash);
    if let Some(start) = first.next_index() {
        let mut entries = reader.read(start, size, durable);
        while let Some((_, entry)) = entries.next_entry()? {
            frontier.push(leaf_hash(entry)).map_err(|error| JournalError::Damaged {
                segment: segment.name.clone(),
                offset: 0,
                found: error.to_string(),
            })?;
        }
    }
    Ok(frontier.head())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

    use epigraph_core::{Entropy, Frontier, UnixMillis};

    use super::*;
    use crate::file::memory::MemoryDir;
    use crate::journal::{Batch, Config, Journal};

    const ORIGIN: Hash = Hash::from_bytes([9; 32]);

    struct Counting(AtomicU8);

    impl Entropy for Counting {
        fn fill(&self, bytes: &mut [u8]) {
            bytes.fill(self.0.fetch_add(1, Ordering::Relaxed));
        }
    }

    /// Of very different lengths, so that frames of all sizes come about.
    fn entry(index: u64) -> Vec<u8> {
        let mut bytes = index.to_be_bytes().to_vec();
        bytes.resize(8 + (index as usize * 37) % 600, index as u8);
        bytes
    }

    struct Log {
        dir: Arc<MemoryDir>,
        journal: Journal,
        frontier: Frontier,
    }

    impl Log {
        fn new() -> Log {
            let dir = Arc::new(MemoryDir::new());
            let config = Config::new(256 << 10, 64 << 10).unwrap();
            let entropy = Arc::new(Counting(AtomicU8::new(1)));
            let journal = Journal::create(dir.clone(), ORIGIN, config, UnixMillis(1), entropy).unwrap();
            Log { dir, journal, frontier: Frontier::new() }
        }

        fn append(&mut self, count: u64) {
            let before = self.frontier.head();
            let mut entries = Vec::new();
            for index in before.size.get()..before.size.get() + count {
                bundle::push(&mut entries, &entry(index)).unwrap();
                self.frontier.push(leaf_hash(&entry(index))).unwrap();
            }
            let after = self.frontier.clone();
            self.journal
                .append(&Batch { before, after, time: UnixMillis(2), marks: Vec::new(), entries })
                .unwrap();
        }

        fn of_batches(batches: u64) -> Log {
            let mut log = Log::new();
            (0..batches).for_each(|n| log.append(1 + n % 23));
            log
        }

        fn reader(&self) -> EntryReader {
            EntryReader::new(self.dir.clone(), ORIGIN)
        }
    }

    fn index(n: u64) -> LeafIndex {
        LeafIndex::new(n).unwrap()
    }

    fn size(n: u64) -> TreeSize {
        TreeSize::new(n).unwrap()
    }

    fn check(reader: &EntryReader, first: u64, end: u64, durable: u64) {
        let read: Vec<_> = reader.read(index(first), size(end), size(durable)).map(Result::unwrap).collect();
        let wanted: Vec<_> = (first..end.min(durable)).map(|n| (index(n), entry(n))).collect();
        assert_eq!(read, wanted, "{first}..{end} of {durable}");
    }

    #[test]
    fn any_range_over_segments_in_any_order() {
        let log = Log::of_batches(500);
        let durable = log.frontier.size().get();
        assert!(segment::list(log.dir.as_ref()).unwrap().len() > 5);
        let reader = log.reader();
        check(&reader, 0, durable, durable);
        for first in (0..durable).rev().step_by(61) {
            check(&reader, first, first + 90, durable);
        }
        check(&log.reader(), durable - 1, u64::MAX >> 1, durable);
        check(&reader, durable, durable + 5, durable);
        check(&reader, 7, 3, durable);
        assert!(lock(&reader.segments).len() <= MAX_SEGMENTS);
    }

    #[test]
    fn a_frame_is_read_once_for_all_of_its_steps_and_again_when_it_was_forgotten() {
        let mut log = Log::new();
        (0..6).for_each(|_| log.append(40));
        let reader = log.reader();
        let at = |n| reader.read(index(n), size(n + 1), size(240)).next().unwrap();
        let read = |n| at(n).map(|(_, bytes)| bytes).ok();
        for n in 0..40 {
            assert_eq!(read(n), Some(entry(n)));
        }
        // For the rest of the frame nobody looks at the disk.
        let name = segment::name_of(TreeSize::ZERO);
        let length = log.dir.content(&name).unwrap().len();
        log.dir.damage(&name, 0, &vec![0xff; length]).unwrap();
        assert_eq!(read(7), Some(entry(7)));
        assert_eq!(lock(&reader.frames).len(), 1);
        reader.forget();
        assert_eq!(read(7), None);
    }

    #[test]
    fn no_more_frames_are_kept_than_said() {
        let log = Log::of_batches(50);
        let durable = log.frontier.size().get();
        let reader = log.reader();
        check(&reader, 0, durable, durable);
        assert_eq!(lock(&reader.frames).len(), MAX_FRAMES);
    }

    #[test]
    fn the_head_at_any_size_comes_from_the_journal_alone() {
        let log = Log::of_batches(200);
        let durable = log.frontier.size();
        let mut frontier = Frontier::new();
        let dir: Arc<dyn Dir> = log.dir.clone();
        for n in 0..=durable.get() {
            if n % 97 == 0 || n == durable.get() {
                assert_eq!(head_at(&dir, ORIGIN, size(n), durable).unwrap(), frontier.head());
            }
            frontier.push(leaf_hash(&entry(n))).unwrap();
        }
    }

    #[test]
    fn readers_beside_the_appending_thread_see_whole_entries_and_nothing_beyond_durable() {
        let mut log = Log::new();
        log.append(1);
        let reader = log.reader();
        let durable = AtomicU64::new(1);
        std::thread::scope(|scope| {
            for start in 0..3 {
                let (reader, durable) = (&reader, &durable);
                scope.spawn(move || {
                    let mut first = start;
                    while durable.load(Ordering::Acquire) < 4000 {
                        let now = durable.load(Ordering::Acquire);
                        check(reader, first % now, now, now);
                        first += 701;
                    }
                });
            }
            while log.frontier.size().get() < 4000 {
                log.append(1 + log.frontier.size().get() % 40);
                durable.store(log.frontier.size().get(), Ordering::Release);
            }
        });
    }

    /// B5. Fails if `Segment::frame` leaves its checksum out.
    #[test]
    fn a_flipped_bit_anywhere_is_an_error_or_changes_nothing() {
        let log = Log::of_batches(100);
        let durable = log.frontier.size();
        let names: Vec<_> =
            segment::list(log.dir.as_ref()).unwrap().into_iter().map(segment::name_of).collect();
        let mut errors = 0;
        for name in names {
            let length = log.dir.content(&name).unwrap().len();
            for at in (0..length).step_by(3001) {
                let dir = Arc::new(log.dir.duplicate());
                let flipped = dir.content(&name).unwrap()[at] ^ 4;
                dir.damage(&name, at, &[flipped]).unwrap();
                let reader = EntryReader::new(dir, ORIGIN);
                for read in reader.read(index(0), durable, durable) {
                    match read {
                        Ok((index, bytes)) => assert_eq!(bytes, entry(index.get()), "{name} byte {at}"),
                        Err(_) => errors += 1,
                    }
                }
            }
        }
        assert!(errors > 20, "only {errors} flips were met");
    }
}
