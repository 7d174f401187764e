//! The sequencer as a pure machine: `(state, event) -> effects`. A batch goes *pool → staged → committed*; it is
//! published elsewhere.
//!
//! While one batch is being written the next pool fills, so batches grow with the load by themselves and an idle
//! log adds no delay. The machine does not know journals, clocks, tasks or the wire; the ticket `T` is whatever its
//! driver answers a caller with.
//!
//! An entry's index is known when it is taken: batches are written in order, and when one finds no space everything that
//! was taken behind it is refused with it. So one table says of a producer's number where it is, or will be.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use epigraph_core::bundle::{self, LENGTH_BYTES};
use epigraph_core::{Frontier, Hash, LeafIndex, TreeHead, TreeSize, UnixMillis};
use epigraph_store::journal::{
    Batch, Claim, MARK_BYTES, MAX_FRAME_BYTES, MAX_PRODUCERS, Objection, ProducerKey, ProducerMark,
    ProducerTable, Standing,
};
use thiserror::Error;

mod room;

use room::Room;
pub(crate) use room::share;

/// Bytes of encoded entries and producer marks in one batch: what a frame of the journal holds.
pub const MAX_BATCH_BYTES: usize = MAX_FRAME_BYTES as usize;

/// Entries in one batch. Empty entries cost two bytes each, so the bytes alone would allow four million tickets.
pub const MAX_BATCH_ENTRIES: usize = 64 * 1024;

/// Producers of one identity: a quarter of those that a log keeps, so that nobody's made-up ids keep the others out (A11).
/// Those that a journal has already are kept, however many.
pub const MAX_PRODUCERS_PER_IDENTITY: usize = MAX_PRODUCERS / 4;

/// How far the log runs ahead of its last published checkpoint before it stops accepting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Durable entries that no published checkpoint covers.
    pub unpublished_max_entries: u64,
    /// Milliseconds for which publication made no progress although there was something to publish.
    pub unpublished_max_age_ms: u64,
}

/// Entries of one call, or of calls of one line that came together: each call all or nothing, all of them contiguous and in
/// one batch.
#[derive(Debug)]
pub struct Submission<T> {
    /// The entries, each at most 65,535 bytes; at least one.
    pub entries: Vec<Bytes>,
    /// Their leaf hashes, in the same order.
    pub leaves: Vec<Hash>,
    /// How many entries there are up to the end of each call but the last, ascending; empty for one call.
    pub ends: Vec<usize>,
    /// Under which numbers, if its caller numbers them; they run on from call to call.
    pub numbers: Option<Numbers>,
    /// The calls that it must not overtake.
    pub line: Option<Line>,
    /// SHA-256 of the name of whoever sends them.
    pub identity: Hash,
    /// Where the answer goes.
    pub ticket: T,
}

impl<T> Submission<T> {
    /// What is claimed for these entries.
    fn claim(&self, range: Range<usize>) -> Option<Claim> {
        let Numbers { producer, epoch, first_sequence } = self.numbers?;
        let first_sequence = first_sequence.saturating_add(range.start as u64);
        Some(Claim { producer, epoch, first_sequence, count: u32::try_from(range.len()).unwrap_or(u32::MAX) })
    }
}

/// What a caller says of the numbers of its entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Numbers {
    /// Who.
    pub producer: ProducerKey,
    /// Which of its runs.
    pub epoch: u64,
    /// The number of the first entry.
    pub first_sequence: u64,
}

/// Calls that are sent one behind the other without waiting: when one is refused, all after it are.
#[derive(Clone, Debug, Default)]
pub struct Line(Arc<AtomicBool>);

impl Line {
    fn is_broken(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn break_off(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What happened.
#[derive(Debug)]
pub enum Event<T> {
    /// A caller wants entries appended.
    Submit(Submission<T>),
    /// A caller wants to know with which number a producer goes on.
    Ask(ProducerKey, T),
    /// The staged batch is on disk.
    Written,
    /// The staged batch is not on disk, nothing of it is, and the journal goes on.
    NotWritten(NoSpace),
    /// A checkpoint of this size is published.
    Published(TreeSize),
    /// Take nothing new; finish what was taken.
    Drain,
}

/// The journal could not make room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoSpace;

/// What is to be done, in this order.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect<T> {
    /// Write this batch and report back; there is never more than one.
    Write(Batch),
    /// Tell the caller that its entries are durable.
    Durable {
        /// Whom to tell.
        ticket: T,
        /// The index of its first entry.
        first_index: LeafIndex,
    },
    /// Tell the caller that the calls before the cut are durable, and that none behind it was taken.
    DurableUpTo {
        /// Whom to tell.
        ticket: T,
        /// The index of its first entry.
        first_index: LeafIndex,
        /// Where that is.
        cut: Cut,
    },
    /// The numbers are those of durable entries. If these have the same leaf hashes, it is the same call again: tell the
    /// caller where they are. If not, tell it that.
    Compare {
        /// Whom to tell.
        ticket: T,
        /// The index of the first of them.
        first_index: LeafIndex,
        /// The leaf hashes of the caller's entries.
        leaves: Vec<Hash>,
    },
    /// Tell the caller what is durable of a producer.
    Tell {
        /// Whom to tell.
        ticket: T,
        /// Its highest epoch; `None` if nothing of it is in the log.
        epoch: Option<u64>,
        /// The lowest number that is not in the log.
        next_sequence: u64,
    },
    /// Tell the caller that nothing was appended.
    Refuse {
        /// Whom to tell.
        ticket: T,
        /// Why.
        why: Refused,
    },
    /// The journal has grown to this head.
    Grown(TreeHead),
}

/// Where calls that came together are parted: behind it one was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cut {
    /// Entries before it.
    pub entries: usize,
    /// Why the call behind it was refused, and all after that one with it.
    pub why: Refused,
}

/// Why entries were not taken. In every case this call has appended none of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Refused {
    /// The next batch is full, or this caller's share of it.
    #[error("the log is taking entries as fast as its disk allows; try again shortly")]
    Overloaded,
    /// The journal's disk is full.
    #[error("the log's disk is full: nothing was appended, and appends go on when there is space again")]
    NoSpace,
    /// Publication is too far behind.
    #[error("{0} entries wait to be published, so no more are taken until publication catches up")]
    Backlog(u64),
    /// The log is stopping.
    #[error("the log is shutting down")]
    Draining,
    /// A fault has ended it.
    #[error("a fault has stopped this log: nothing was appended")]
    Stopped,
    /// 2^63 - 1 entries.
    #[error("the log is full: it cannot hold another entry")]
    LogFull,
    /// The numbers are neither new nor those of one earlier call.
    #[error(transparent)]
    Numbers(#[from] Objection),
    /// One caller names too many producers.
    #[error(
        "the log keeps the numbers of at most {MAX_PRODUCERS_PER_IDENTITY} producers of one identity, and has that many of \
         yours: use a producer id that it knows, or leave `producer` out"
    )]
    TooManyProducers,
    /// The numbers stand for other entries.
    #[error(
        "number {0} of this producer stands for an entry with other bytes, and an entry cannot be changed: send what was \
         sent under these numbers, or ask GetProducer for the next free one"
    )]
    Reused(u64),
    /// Some of the numbers are durable and some are just being written.
    #[error("some of these numbers are just being written; try again shortly")]
    BeingWritten,
    /// A call before it in its line was refused.
    #[error("a request before this one was refused")]
    LineBroken,
    /// Whether it is the same call again takes a look at the disk, and those behind it in its line do not wait for that.
    #[error("this request was answered before: connect anew, and send it as the first one")]
    RepeatInLine,
}

/// What of the sequencer's state decides whether it takes entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Condition {
    /// Nothing new is taken any more.
    pub draining: bool,
    /// When the newest batch found no space; `None` if it was written.
    pub no_space_at: Option<UnixMillis>,
    /// Since when something durable has been waiting without publication making progress.
    pub behind_since: Option<UnixMillis>,
}

/// What a submission leaves until it is answered.
#[derive(Debug)]
struct Taken<T> {
    ticket: T,
    line: Option<Line>,
    first_index: LeafIndex,
    /// The size of the log that contains all its entries.
    size_after: TreeSize,
    cut: Option<Cut>,
}

/// A batch that is being written.
#[derive(Debug)]
struct Staged<T> {
    after: Frontier,
    marks: Vec<ProducerMark>,
    taken: Vec<Taken<T>>,
}

/// The sequencer's state.
#[derive(Debug)]
pub struct Machine<T> {
    limits: Limits,
    durable: Frontier,
    /// Of `durable`: a root is a hash for every bit of the size.
    head: TreeHead,
    pool: Vec<(Vec<Bytes>, Option<Claim>, Taken<T>)>,
    room: Room,
    staged: Option<Staged<T>>,
    /// The leaf hashes of everything that was taken and is not durable: of two batches at most.
    leaves: VecDeque<Hash>,
    /// What is durable of every producer.
    committed: ProducerTable,
    /// What is durable or was taken.
    expected: ProducerTable,
    /// Repeats of calls that are not durable yet.
    repeats: Vec<Taken<T>>,
    /// Who asked for a producer of which something was taken that is not durable yet.
    asked: Vec<(ProducerKey, T)>,
    published: TreeSize,
    condition: Condition,
}

impl<T> Machine<T> {
    /// A machine over a journal that ends in `durable` and says this of producers, of which `published` entries are published.
    pub fn new(
        limits: Limits,
        durable: Frontier,
        producers: ProducerTable,
        published: TreeSize,
        now: UnixMillis,
    ) -> Machine<T> {
        let behind_since = (durable.size() > published).then_some(now);
        Machine {
            limits,
            head: durable.head(),
            durable,
            pool: Vec::new(),
            room: Room::default(),
            staged: None,
            leaves: VecDeque::new(),
            expected: producers.clone(),
            committed: producers,
            repeats: Vec::new(),
            asked: Vec::new(),
            published,
            condition: Condition { behind_since, ..Condition::default() },
        }
    }

    /// Whether everything that was taken has been answered.
    pub fn is_idle(&self) -> bool {
        self.pool.is_empty() && self.staged.is_none()
    }

    /// Whether nothing new is taken any more.
    pub fn is_draining(&self) -> bool {
        self.condition.draining
    }

    /// What decides whether it takes entries.
    pub fn condition(&self) -> Condition {
        self.condition
    }

    /// Takes one event and appends what it calls for to `effects`.
    pub fn step(&mut self, event: Event<T>, now: UnixMillis, effects: &mut Vec<Effect<T>>) {
        // A clock that was set back must not stop what is counted from it.
        self.condition.behind_since = self.condition.behind_since.map(|since| since.min(now));
        match event {
            Event::Submit(submission) => self.submit(submission, now, effects),
            Event::Ask(producer, ticket) => {
                self.asked.push((producer, ticket));
                self.tell(effects);
            }
            Event::Written => self.written(now, effects),
            Event::NotWritten(NoSpace) => {
                if self.staged.is_some() {
                    self.not_written(now, effects);
                }
            }
            Event::Published(size) => {
                self.published = self.published.max(size);
                self.condition.behind_since = (self.durable.size() > self.published).then_some(now);
            }
            Event::Drain => self.condition.draining = true,
        }
    }

    /// Stages the pool if nothing is being written. The driver calls it after it has taken all events there are,
    /// so that calls which arrive together share a batch.
    pub fn stage(&mut self, now: UnixMillis, effects: &mut Vec<Effect<T>>) {
        if self.staged.is_some() || self.pool.is_empty() {
            return;
        }
        let mut after = self.durable.clone();
        let mut body = Vec::with_capacity(self.room.bytes());
        let (mut marks, mut taken) = (Vec::new(), Vec::with_capacity(self.pool.len()));
        // `submit` checked both: the entry's length and that the log is not full.
        for (entries, claim, call) in self.pool.drain(..) {
            let offset = call.first_index.get() - self.durable.size().get();
            let offset = u32::try_from(offset).unwrap_or(u32::MAX);
            marks.extend(claim.map(|claim| ProducerMark { claim, offset }));
            for entry in &entries {
                let pushed = bundle::push(&mut body, entry).is_ok();
                debug_assert!(pushed);
            }
            taken.push(call);
        }
        for leaf in &self.leaves {
            let pushed = after.push(*leaf).is_ok();
            debug_assert!(pushed);
        }
        self.room.clear();
        let batch =
            Batch { before: self.head, after: after.clone(), time: now, marks: marks.clone(), entries: body };
        effects.push(Effect::Write(batch));
        self.staged = Some(Staged { after, marks, taken });
    }

    fn submit(&mut self, submission: Submission<T>, now: UnixMillis, effects: &mut Vec<Effect<T>>) {
        let mut count = submission.entries.len();
        let mut place = self.place(&submission, 0..count, now);
        if let (Err(_), Some(first)) = (&place, submission.ends.first()) {
            // As many calls as can be taken; where there is none, the first one's refusal counts.
            let fits = |end: &usize| self.place(&submission, 0..*end, now).is_ok();
            count = submission.ends.iter().copied().take_while(fits).last().unwrap_or(*first);
            place = self.place(&submission, 0..count, now);
        }
        let (first_index, size_after, new_bytes) = match place {
            Ok(Place::New { first_index, size_after, bytes }) => (first_index, size_after, Some(bytes)),
            Ok(Place::Expected(first_index, size_after)) => (first_index, size_after, None),
            Ok(Place::Durable(first_index)) => {
                let Submission { ticket, leaves, .. } = submission;
                return effects.push(Effect::Compare { ticket, first_index, leaves });
            }
            Err(why) => {
                submission.line.inspect(Line::break_off);
                return effects.push(Effect::Refuse { ticket: submission.ticket, why });
            }
        };
        let claim = submission.claim(0..count);
        if let Some(bytes) = new_bytes {
            if let Some(claim) = &claim {
                let taken = self.expected.take(claim, first_index);
                debug_assert_eq!(taken, Ok(Standing::New));
            }
            self.room.take(submission.identity, count, bytes);
            self.leaves.extend(submission.leaves.iter().take(count));
        }
        let cut = self.cut(&submission, count, now);
        let Submission { mut entries, line, ticket, .. } = submission;
        let taken = Taken { ticket, line, first_index, size_after, cut };
        if new_bytes.is_some() {
            entries.truncate(count);
            self.pool.push((entries, claim, taken));
        } else {
            self.repeats.push(taken);
        }
    }

    /// Why the call behind the first `entries`, which were taken, is not taken as well.
    fn cut(&self, submission: &Submission<T>, entries: usize, now: UnixMillis) -> Option<Cut> {
        let mut ends = submission.ends.iter().copied().chain([submission.entries.len()]);
        let end = ends.find(|end| *end > entries)?;
        // Whoever is fine by itself is another thing than those before it, new or a repeat: it can be sent as the first one.
        let why = self.place(submission, entries..end, now).err().unwrap_or(Refused::RepeatInLine);
        submission.line.as_ref().inspect(|line| line.break_off());
        Some(Cut { entries, why })
    }

    fn written(&mut self, now: UnixMillis, effects: &mut Vec<Effect<T>>) {
        let Some(Staged { after, marks, taken }) = self.staged.take() else { return };
        let before = std::mem::replace(&mut self.durable, after);
        let count = self.durable.size().get() - before.size().get();
        // The journal folded the same marks into the same table before it wrote them.
        let folded = self.committed.fold(before.size(), u32::try_from(count).unwrap_or(u32::MAX), &marks);
        debug_assert_eq!(folded, Ok(()));
        self.leaves.drain(..usize::try_from(count).unwrap_or(usize::MAX).min(self.leaves.len()));
        self.condition.no_space_at = None;
        self.condition.behind_since.get_or_insert(now);
        self.head = self.durable.head();
        effects.push(Effect::Grown(self.head));
        let size = self.durable.size();
        let repeats = self.repeats.extract_if(.., |call| call.size_after <= size);
        effects.extend(taken.into_iter().chain(repeats).map(
            |Taken { ticket, first_index, cut, .. }| match cut {
                None => Effect::Durable { ticket, first_index },
                Some(cut) => Effect::DurableUpTo { ticket, first_index, cut },
            },
        ));
        self.tell(effects);
    }

    fn not_written(&mut self, now: UnixMillis, effects: &mut Vec<Effect<T>>) {
        self.condition.no_space_at = Some(now);
        let staged = self.staged.take().map(|staged| staged.taken).unwrap_or_default();
        let pool = self.pool.drain(..).map(|(_, _, call)| call);
        for call in staged.into_iter().chain(pool).chain(self.repeats.drain(..)) {
            call.line.inspect(Line::break_off);
            effects.push(Effect::Refuse { ticket: call.ticket, why: Refused::NoSpace });
        }
        self.room.clear();
        self.leaves.clear();
        self.expected.clone_from(&self.committed);
        self.tell(effects);
    }

    /// Answers those who asked for a producer of which nothing is on its way to the disk.
    fn tell(&mut self, effects: &mut Vec<Effect<T>>) {
        let settled = |producer: &ProducerKey| self.committed.get(producer) == self.expected.get(producer);
        effects.extend(self.asked.extract_if(.., |(producer, _)| settled(producer)).map(
            |(producer, ticket)| {
                let known = self.committed.get(&producer);
                Effect::Tell {
                    ticket,
                    epoch: known.map(|known| known.epoch()),
                    next_sequence: known.map_or(0, |known| known.next_sequence()),
                }
            },
        ));
    }

    /// Where these entries of a submission are, or go.
    fn place(
        &self,
        submission: &Submission<T>,
        range: Range<usize>,
        now: UnixMillis,
    ) -> Result<Place, Refused> {
        let Submission { line, identity, .. } = submission;
        let (line, claim) = (line.as_ref(), submission.claim(range.clone()));
        let entries = submission.entries.get(range.clone()).unwrap_or_default();
        if line.is_some_and(Line::is_broken) {
            return Err(Refused::LineBroken);
        }
        if self.condition.draining {
            return Err(Refused::Draining);
        }
        match claim.map(|claim| (claim, self.expected.judge(&claim))) {
            Some((_, Err(objection))) => Err(objection.into()),
            Some((claim, Ok(Standing::Repeat(first_index)))) => {
                let leaves = submission.leaves.get(range).unwrap_or_default();
                self.repeat(&claim, first_index, leaves, line)
            }
            Some((claim, Ok(Standing::New))) => {
                if self.expected.get(&claim.producer).is_none()
                    && self.expected.count_of(&claim.producer.identity) >= MAX_PRODUCERS_PER_IDENTITY
                {
                    return Err(Refused::TooManyProducers);
                }
                self.admit(entries, MARK_BYTES, identity, now)
            }
            None => self.admit(entries, 0, identity, now),
        }
    }

    /// What to do with a call whose numbers were all taken before, at `first_index` and behind it.
    fn repeat(
        &self,
        claim: &Claim,
        first_index: LeafIndex,
        leaves: &[Hash],
        line: Option<&Line>,
    ) -> Result<Place, Refused> {
        let durable = self.durable.size();
        let last = first_index.checked_add(u64::from(claim.count).saturating_sub(1));
        let size_after = last.map_or(TreeSize::MAX, LeafIndex::size_after);
        if size_after <= durable {
            return if line.is_some() { Err(Refused::RepeatInLine) } else { Ok(Place::Durable(first_index)) };
        }
        if durable.contains(first_index) {
            return Err(Refused::BeingWritten);
        }
        let from = usize::try_from(first_index.get() - durable.get()).unwrap_or(usize::MAX);
        let expected = self.leaves.iter().skip(from);
        match leaves.iter().zip(expected).position(|(sent, expected)| sent != expected) {
            Some(position) => Err(Refused::Reused(claim.first_sequence.saturating_add(position as u64))),
            None => Ok(Place::Expected(first_index, size_after)),
        }
    }

    /// Whether the next batch has room, and for what.
    fn admit(
        &self,
        entries: &[Bytes],
        mark: usize,
        identity: &Hash,
        now: UnixMillis,
    ) -> Result<Place, Refused> {
        let bytes = mark + entries.iter().map(|entry| LENGTH_BYTES + entry.len()).sum::<usize>();
        if !self.room.has(identity, entries.len(), bytes) {
            return Err(Refused::Overloaded);
        }
        let staged = self.staged.as_ref().map_or(self.durable.size(), |staged| staged.after.size());
        let taken = staged.checked_add(self.room.entries() as u64).ok_or(Refused::LogFull)?;
        // One short of the largest size, so that there is always a next index.
        let size_after = taken.checked_add(entries.len() as u64).filter(|size| *size < TreeSize::MAX);
        let (Some(first_index), Some(size_after)) = (taken.next_index(), size_after) else {
            return Err(Refused::LogFull);
        };
        let unpublished = staged.get().saturating_sub(self.published.get());
        let ahead = size_after.get().saturating_sub(self.published.get());
        let waited = self.condition.behind_since.map_or(0, |since| now.0.saturating_sub(since.0));
        let too_old = waited > self.limits.unpublished_max_age_ms;
        if too_old || ahead > self.limits.unpublished_max_entries {
            return Err(Refused::Backlog(unpublished));
        }
        Ok(Place::New { first_index, size_after, bytes })
    }
}

/// Where the entries of a call are, or go.
enum Place {
    /// Behind all that was taken.
    New { first_index: LeafIndex, size_after: TreeSize, bytes: usize },
    /// They were taken before, and the log that contains them all has this size.
    Expected(LeafIndex, TreeSize),
    /// They have been durable for some time.
    Durable(LeafIndex),
}

#[cfg(test)]
mod tests;
