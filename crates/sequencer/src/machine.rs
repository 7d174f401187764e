//! The sequencer as a pure machine: `(state, event) -> effects`. A batch goes *pool → staged → committed*; it is
//! published elsewhere.
//!
//! While one batch is being written the next pool fills, so batches grow with the load by themselves and an idle
//! log adds no delay. The machine does not know journals, clocks, tasks or the wire; the ticket `T` is whatever its
//! driver answers a caller with.

use bytes::Bytes;
use epigraph_core::bundle::{self, LENGTH_BYTES};
use epigraph_core::{Frontier, Hash, LeafIndex, TreeHead, TreeSize, UnixMillis};
use epigraph_store::journal::{Batch, MAX_FRAME_BYTES};
use thiserror::Error;

/// Bytes of encoded entries in one batch: what a frame of the journal holds.
pub const MAX_BATCH_BYTES: usize = MAX_FRAME_BYTES as usize;

/// Entries in one batch. Empty entries cost two bytes each, so the bytes alone would allow four million tickets.
pub const MAX_BATCH_ENTRIES: usize = 64 * 1024;

/// How far the log runs ahead of its last published checkpoint before it stops accepting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Durable entries that no published checkpoint covers.
    pub unpublished_max_entries: u64,
    /// Milliseconds for which publication made no progress although there was something to publish.
    pub unpublished_max_age_ms: u64,
}

/// Entries of one call: all or nothing, contiguous, in one batch.
#[derive(Debug)]
pub struct Submission<T> {
    /// The entries, each at most 65,535 bytes; at least one.
    pub entries: Vec<Bytes>,
    /// Their leaf hashes, in the same order.
    pub leaves: Vec<Hash>,
    /// Where the answer goes.
    pub ticket: T,
}

/// What happened.
#[derive(Debug)]
pub enum Event<T> {
    /// A caller wants entries appended.
    Submit(Submission<T>),
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

/// Why entries were not taken. In every case none of them was appended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Refused {
    /// The next batch is full.
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
    /// 2^63 - 1 entries.
    #[error("the log is full: it cannot hold another entry")]
    LogFull,
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

/// The sequencer's state.
#[derive(Debug)]
pub struct Machine<T> {
    limits: Limits,
    durable: Frontier,
    pool: Vec<Submission<T>>,
    pool_entries: usize,
    pool_bytes: usize,
    staged: Option<(Frontier, Vec<(T, LeafIndex)>)>,
    published: TreeSize,
    condition: Condition,
}

impl<T> Machine<T> {
    /// A machine over a journal that ends in `durable`, of which `published` entries are published.
    pub fn new(limits: Limits, durable: Frontier, published: TreeSize, now: UnixMillis) -> Machine<T> {
        let behind_since = (durable.size() > published).then_some(now);
        Machine {
            limits,
            durable,
            pool: Vec::new(),
            pool_entries: 0,
            pool_bytes: 0,
            staged: None,
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
        match event {
            Event::Submit(submission) => match self.admit(&submission, now) {
                Ok(bytes) => {
                    self.pool_entries += submission.entries.len();
                    self.pool_bytes += bytes;
                    self.pool.push(submission);
                }
                Err(why) => effects.push(Effect::Refuse { ticket: submission.ticket, why }),
            },
            Event::Written => {
                if let Some((frontier, tickets)) = self.staged.take() {
                    self.durable = frontier;
                    self.condition.no_space_at = None;
                    self.condition.behind_since.get_or_insert(now);
                    effects.push(Effect::Grown(self.durable.head()));
                    effects.extend(
                        tickets
                            .into_iter()
                            .map(|(ticket, first_index)| Effect::Durable { ticket, first_index }),
                    );
                }
            }
            Event::NotWritten(NoSpace) => {
                self.condition.no_space_at = Some(now);
                if let Some((_, tickets)) = self.staged.take() {
                    let why = Refused::NoSpace;
                    effects.extend(tickets.into_iter().map(|(ticket, _)| Effect::Refuse { ticket, why }));
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
        let Some(first_index) = self.durable.size().next_index() else { return };
        let mut after = self.durable.clone();
        let mut body = Vec::with_capacity(self.pool_bytes);
        let mut tickets = Vec::with_capacity(self.pool.len());
        let mut next_index = first_index;
        for submission in self.pool.drain(..) {
            tickets.push((submission.ticket, next_index));
            for (entry, leaf) in submission.entries.iter().zip(submission.leaves) {
                // `admit` checked both: the entry's length and that the log is not full.
                let pushed = bundle::push(&mut body, entry).is_ok() && after.push(leaf).is_ok();
                debug_assert!(pushed);
            }
            next_index = after.size().next_index().unwrap_or(next_index);
        }
        (self.pool_entries, self.pool_bytes) = (0, 0);
        let before = self.durable.head();
        effects.push(Effect::Write(Batch {
            before,
            after: after.clone(),
            time: now,
            marks: Vec::new(),
            entries: body,
        }));
        self.staged = Some((after, tickets));
    }

    /// Whether the next batch has room, and how many bytes the entries take in it.
    fn admit(&self, submission: &Submission<T>, now: UnixMillis) -> Result<usize, Refused> {
        if self.condition.draining {
            return Err(Refused::Draining);
        }
        let entries = submission.entries.len();
        let bytes: usize = submission.entries.iter().map(|entry| LENGTH_BYTES + entry.len()).sum();
        if self.pool_bytes + bytes > MAX_BATCH_BYTES || self.pool_entries + entries > MAX_BATCH_ENTRIES {
            return Err(Refused::Overloaded);
        }
        let taken = self.staged.as_ref().map_or(self.durable.size(), |(after, _)| after.size()).get();
        let ahead = (self.pool_entries + entries) as u64;
        // One short of the largest size, so that there is always a next index.
        if taken.checked_add(ahead).is_none_or(|size| size >= TreeSize::MAX.get()) {
            return Err(Refused::LogFull);
        }
        let unpublished = taken.saturating_sub(self.published.get());
        let waited = self.condition.behind_since.map_or(0, |since| now.0.saturating_sub(since.0));
        let too_old = waited > self.limits.unpublished_max_age_ms;
        if too_old || unpublished.saturating_add(ahead) > self.limits.unpublished_max_entries {
            return Err(Refused::Backlog(unpublished));
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use epigraph_core::hash::leaf_hash;

    const LIMITS: Limits = Limits { unpublished_max_entries: 100_000, unpublished_max_age_ms: 1_000 };
    const NOW: UnixMillis = UnixMillis(1_000_000);

    fn machine() -> Machine<u32> {
        Machine::new(LIMITS, Frontier::new(), TreeSize::ZERO, NOW)
    }

    fn submit(ticket: u32, entries: &[&[u8]]) -> Event<u32> {
        let leaves = entries.iter().map(|entry| leaf_hash(entry)).collect();
        let entries = entries.iter().map(|entry| Bytes::copy_from_slice(entry)).collect();
        Event::Submit(Submission { entries, leaves, ticket })
    }

    fn run(machine: &mut Machine<u32>, events: Vec<Event<u32>>) -> Vec<Effect<u32>> {
        let mut effects = Vec::new();
        events.into_iter().for_each(|event| machine.step(event, NOW, &mut effects));
        machine.stage(NOW, &mut effects);
        effects
    }

    fn root(entries: &[&[u8]]) -> Hash {
        let mut frontier = Frontier::new();
        entries.iter().for_each(|entry| frontier.push(leaf_hash(entry)).unwrap());
        frontier.root()
    }

    fn refusals(effects: &[Effect<u32>]) -> Vec<(u32, Refused)> {
        let refusal = |effect: &Effect<u32>| match effect {
            Effect::Refuse { ticket, why } => Some((*ticket, *why)),
            _ => None,
        };
        effects.iter().filter_map(refusal).collect()
    }

    #[test]
    fn calls_that_arrive_together_share_a_batch_and_keep_their_order() {
        let mut machine = machine();
        let effects = run(&mut machine, vec![submit(1, &[b"a", b"b"]), submit(2, &[b""])]);
        let [Effect::Write(batch)] = effects.as_slice() else { panic!("{effects:?}") };
        assert_eq!((batch.before.size.get(), batch.after.size().get()), (0, 3));
        assert_eq!(batch.entries, b"\0\x01a\0\x01b\0\0");
        assert_eq!(batch.after.root(), root(&[b"a", b"b", b""]));

        let effects = run(&mut machine, vec![Event::Written]);
        let answered: Vec<_> = effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::Durable { ticket, first_index } => Some((*ticket, first_index.get())),
                _ => None,
            })
            .collect();
        assert_eq!(answered, [(1, 0), (2, 2)]);
        assert!(machine.is_idle());
    }

    #[test]
    fn nothing_is_acknowledged_and_no_second_batch_is_staged_while_one_is_written() {
        let mut machine = machine();
        run(&mut machine, vec![submit(1, &[b"a"])]);
        assert_eq!(run(&mut machine, vec![submit(2, &[b"b"])]), []);
        let effects = run(&mut machine, vec![Event::Written]);
        let [Effect::Grown(head), Effect::Durable { ticket: 1, .. }, Effect::Write(batch)] =
            effects.as_slice()
        else {
            panic!("{effects:?}")
        };
        assert_eq!(*head, batch.before);
        assert_eq!(batch.after.root(), root(&[b"a", b"b"]));
    }

    #[test]
    fn a_batch_that_found_no_space_leaves_no_trace() {
        let mut machine = machine();
        run(&mut machine, vec![submit(1, &[b"lost"])]);
        let effects = run(&mut machine, vec![Event::NotWritten(NoSpace)]);
        assert_eq!(refusals(&effects), [(1, Refused::NoSpace)]);
        assert_eq!(machine.condition().no_space_at, Some(NOW));
        let effects = run(&mut machine, vec![submit(2, &[b"kept"])]);
        let [Effect::Write(batch)] = effects.as_slice() else { panic!("{effects:?}") };
        assert_eq!((batch.before.size.get(), batch.after.root()), (0, root(&[b"kept"])));
        run(&mut machine, vec![Event::Written]);
        assert_eq!(machine.condition().no_space_at, None);
    }

    #[test]
    fn a_full_pool_refuses_the_call_that_does_not_fit_and_no_other() {
        let mut machine = machine();
        let entry = vec![0; 65_535];
        let big: Vec<&[u8]> = vec![&entry; 64];
        let effects = run(&mut machine, vec![submit(1, &big), submit(2, &big), submit(3, &[b"fits"])]);
        assert_eq!(refusals(&effects), [(2, Refused::Overloaded)]);
        let Some(Effect::Write(batch)) = effects.last() else { panic!("{effects:?}") };
        assert_eq!(batch.after.size().get(), 65);
        assert!(batch.entries.len() <= MAX_BATCH_BYTES);
    }

    #[test]
    fn it_runs_ahead_of_publication_so_far_and_no_further() {
        let limits = Limits { unpublished_max_entries: 3, ..LIMITS };
        let mut machine = Machine::new(limits, Frontier::new(), TreeSize::ZERO, NOW);
        run(&mut machine, vec![submit(1, &[b"a", b"b"]), submit(2, &[b"c"])]);
        let effects = run(&mut machine, vec![Event::Written, submit(3, &[b"d"])]);
        assert_eq!(refusals(&effects), [(3, Refused::Backlog(3))]);
        let two = TreeSize::new(2).unwrap();
        assert_eq!(refusals(&run(&mut machine, vec![Event::Published(two), submit(4, &[b"d"])])), []);
    }

    #[test]
    fn publication_without_progress_stops_it_and_progress_lets_it_go_on() {
        let mut machine = machine();
        run(&mut machine, vec![submit(1, &[b"a"])]);
        run(&mut machine, vec![Event::Written]);
        let late = UnixMillis(NOW.0 + LIMITS.unpublished_max_age_ms + 1);
        let mut effects = Vec::new();
        machine.step(submit(2, &[b"b"]), late, &mut effects);
        assert_eq!(refusals(&effects), [(2, Refused::Backlog(1))]);
        machine.step(Event::Published(TreeSize::new(1).unwrap()), late, &mut effects);
        machine.step(submit(3, &[b"b"]), late, &mut effects);
        assert_eq!(effects.len(), 1);
    }

    #[test]
    fn draining_finishes_what_was_taken_and_takes_nothing_new() {
        let mut machine = machine();
        let effects = run(&mut machine, vec![submit(1, &[b"a"]), Event::Drain, submit(2, &[b"b"])]);
        assert_eq!(refusals(&effects), [(2, Refused::Draining)]);
        assert!(!machine.is_idle());
        run(&mut machine, vec![Event::Written]);
        assert!(machine.is_idle());
    }

    #[test]
    fn a_full_log_refuses() {
        let size = TreeSize::new(TreeSize::MAX.get() - 2).unwrap();
        let full =
            Frontier::from_parts(size, vec![leaf_hash(b""); size.get().count_ones() as usize]).unwrap();
        let mut machine = Machine::new(LIMITS, full, size, NOW);
        let effects = run(&mut machine, vec![submit(1, &[b"a", b"b"]), submit(2, &[b"a"])]);
        assert_eq!(refusals(&effects), [(1, Refused::LogFull)]);
    }
}
