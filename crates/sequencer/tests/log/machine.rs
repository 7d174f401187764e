//! The machine under any sequence of events, against a list of what it took.

use std::collections::VecDeque;

use bytes::Bytes;
use epigraph_core::hash::leaf_hash;
use epigraph_core::{Frontier, Hash, TreeSize, UnixMillis, bundle};
use epigraph_sequencer::machine::{
    Effect, Event, Limits, MAX_BATCH_BYTES, MAX_BATCH_ENTRIES, Machine, NoSpace, Refused, Submission,
};
use epigraph_store::journal::ProducerTable;
use proptest::prelude::*;

/// So few that a pool alone can exceed them, and so many that a pool is full before.
const UNPUBLISHED_MAX_ENTRIES: [u64; 2] = [12, 300];

#[derive(Clone, Debug)]
enum Op {
    Submit {
        count: usize,
        bytes: usize,
    },
    Written,
    NotWritten,
    /// This many hundredths of what is durable.
    Published(u64),
    Later(u64),
    /// The end of a turn.
    Stage,
    Drain,
}

fn op() -> impl Strategy<Value = Op> {
    let bytes = prop_oneof![Just(0), Just(1), Just(100), Just(65_535)];
    prop_oneof![
        8 => (1..5usize, bytes).prop_map(|(count, bytes)| Op::Submit { count, bytes }),
        1 => Just(Op::Submit { count: 64, bytes: 65_535 }),
        4 => Just(Op::Written),
        1 => Just(Op::NotWritten),
        2 => (0..=100u64).prop_map(Op::Published),
        2 => (0..900u64).prop_map(Op::Later),
        6 => Just(Op::Stage),
        1 => prop_oneof![9 => Just(Op::Stage), 1 => Just(Op::Drain)],
    ]
}

/// Several callers, so that the whole batch is theirs.
fn of(ticket: usize) -> Hash {
    Hash::from_bytes([(ticket % 3) as u8; 32])
}

/// A machine, and what it must come to.
struct Model {
    machine: Machine<usize>,
    unpublished_max_entries: u64,
    now: UnixMillis,
    /// The leaf and bytes of each entry of a submission, by ticket.
    sent: Vec<Vec<Bytes>>,
    answered: Vec<bool>,
    /// Tickets that are in the pool.
    pooled: VecDeque<usize>,
    /// Tickets of the batch that is being written.
    writing: Option<(Vec<usize>, Frontier)>,
    durable: Frontier,
    published: TreeSize,
    drained: bool,
}

impl Model {
    fn new(unpublished_max_entries: u64) -> Model {
        let now = UnixMillis(1_000_000);
        let limits = Limits { unpublished_max_entries, unpublished_max_age_ms: 1_000 };
        Model {
            unpublished_max_entries,
            machine: Machine::new(limits, Frontier::new(), ProducerTable::default(), TreeSize::ZERO, now),
            now,
            sent: Vec::new(),
            answered: Vec::new(),
            pooled: VecDeque::new(),
            writing: None,
            durable: Frontier::new(),
            published: TreeSize::ZERO,
            drained: false,
        }
    }

    fn apply(&mut self, op: &Op) {
        let mut effects = Vec::new();
        let event = match op {
            Op::Submit { count, bytes } => {
                let ticket = self.sent.len();
                let entries = vec![Bytes::from(vec![ticket as u8; *bytes]); *count];
                // The machine believes its caller's hashes; these cost less than those of the bytes.
                let leaves = vec![leaf_hash(&ticket.to_le_bytes()); *count];
                self.sent.push(entries.clone());
                self.answered.push(false);
                self.pooled.push_back(ticket);
                Some(Event::Submit(Submission {
                    entries,
                    leaves,
                    ends: Vec::new(),
                    numbers: None,
                    line: None,
                    identity: of(ticket),
                    ticket,
                }))
            }
            Op::Written => Some(Event::Written),
            Op::NotWritten => Some(Event::NotWritten(NoSpace)),
            Op::Published(hundredths) => {
                let size = TreeSize::new(self.durable.size().get() * hundredths / 100).unwrap();
                self.published = self.published.max(size);
                Some(Event::Published(size))
            }
            Op::Later(millis) => {
                self.now.0 += millis;
                None
            }
            Op::Stage => None,
            Op::Drain => {
                self.drained = true;
                Some(Event::Drain)
            }
        };
        match event {
            Some(event) => self.machine.step(event, self.now, &mut effects),
            None => self.machine.stage(self.now, &mut effects),
        }
        let submitted = matches!(op, Op::Submit { .. });
        self.check(op, &effects);
        if submitted {
            self.check_admission(&effects);
        }
    }

    fn answer(&mut self, ticket: usize) {
        assert!(!std::mem::replace(&mut self.answered[ticket], true), "ticket {ticket} was answered twice");
    }

    fn check(&mut self, op: &Op, effects: &[Effect<usize>]) {
        let writing = self.writing.take();
        match (op, writing) {
            (Op::Written, Some((tickets, after))) => {
                let mut next = self.durable.size().get();
                self.durable = after;
                assert_eq!(
                    effects[0],
                    Effect::Grown(self.durable.head()),
                    "the head is known before the answers"
                );
                assert_eq!(effects.len(), tickets.len() + 1);
                for (effect, want) in effects[1..].iter().zip(tickets) {
                    let Effect::Durable { ticket, first_index } = effect else { panic!("{effect:?}") };
                    assert_eq!((*ticket, first_index.get()), (want, next));
                    next += self.sent[want].len() as u64;
                    self.answer(want);
                }
                assert_eq!(next, self.durable.size().get());
            }
            (Op::NotWritten, Some((tickets, _))) => {
                let refused: Vec<_> = tickets.into_iter().chain(self.pooled.drain(..)).collect();
                assert_eq!(effects.len(), refused.len(), "what was taken behind it is refused as well");
                for (effect, ticket) in effects.iter().zip(refused) {
                    assert_eq!(*effect, Effect::Refuse { ticket, why: Refused::NoSpace });
                    self.answer(ticket);
                }
            }
            (Op::Written | Op::NotWritten, None) => assert_eq!(effects, [], "nothing was being written"),
            (_, writing) => {
                self.writing = writing;
                for effect in effects {
                    self.check_other(op, effect);
                }
            }
        }
    }

    fn check_other(&mut self, op: &Op, effect: &Effect<usize>) {
        match effect {
            Effect::Refuse { ticket, .. } => {
                assert!(matches!(op, Op::Submit { .. }));
                assert_eq!(self.pooled.pop_back(), Some(*ticket), "the newest is refused, and no other");
                self.answer(*ticket);
            }
            Effect::Write(batch) => {
                assert!(self.writing.is_none(), "two writes in flight");
                assert_eq!(batch.before, self.durable.head());
                assert!(batch.entries.len() <= MAX_BATCH_BYTES);
                let tickets: Vec<_> = self.pooled.drain(..).collect();
                let (mut after, mut body) = (self.durable.clone(), Vec::new());
                for ticket in &tickets {
                    for entry in &self.sent[*ticket] {
                        after.push(leaf_hash(&ticket.to_le_bytes())).unwrap();
                        bundle::push(&mut body, entry).unwrap();
                    }
                }
                assert!(after.size().get() - batch.before.size.get() <= MAX_BATCH_ENTRIES as u64);
                assert!(batch.entries == body && batch.after == after && batch.time == self.now);
                self.writing = Some((tickets, after));
            }
            effect => panic!("{op:?} led to {effect:?}"),
        }
    }

    fn check_admission(&self, effects: &[Effect<usize>]) {
        let taken = effects.is_empty();
        let count = |ticket: &usize| self.sent[*ticket].len() as u64;
        let pooled: u64 = self.pooled.iter().map(count).sum();
        let durable = self.writing.as_ref().map_or(self.durable.size(), |(_, after)| after.size());
        let ahead = durable.get() + pooled - self.published.get();
        assert!(!taken || ahead <= self.unpublished_max_entries, "{ahead} entries ahead");
        assert!(!(taken && self.drained), "it takes nothing while draining");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_events_leave_indexes_without_gaps_and_no_ticket_without_its_one_answer(
        limit in proptest::sample::select(&UNPUBLISHED_MAX_ENTRIES),
        ops in proptest::collection::vec(op(), 1..120),
    ) {
        let mut model = Model::new(limit);
        ops.iter().for_each(|op| model.apply(op));
        for op in [Op::Stage, Op::Written, Op::Stage, Op::Written] {
            model.apply(&op);
        }
        prop_assert!(model.machine.is_idle());
        prop_assert!(model.answered.iter().all(|answered| *answered));
    }
}

#[test]
fn a_batch_has_no_more_entries_than_its_limit_however_small_they_are() {
    let limits = Limits { unpublished_max_entries: u64::MAX, unpublished_max_age_ms: u64::MAX };
    let mut machine =
        Machine::new(limits, Frontier::new(), ProducerTable::default(), TreeSize::ZERO, UnixMillis(0));
    let mut effects = Vec::new();
    let call = MAX_BATCH_ENTRIES / 16;
    let submit = |ticket| {
        let (entries, leaves) = (vec![Bytes::new(); call], vec![leaf_hash(b""); call]);
        Event::Submit(Submission {
            entries,
            leaves,
            ends: Vec::new(),
            numbers: None,
            line: None,
            identity: Hash::from_bytes([ticket as u8; 32]),
            ticket,
        })
    };
    (0..17).for_each(|ticket| machine.step(submit(ticket), UnixMillis(0), &mut effects));
    assert_eq!(effects, [Effect::Refuse { ticket: 16, why: Refused::Overloaded }]);
    machine.stage(UnixMillis(0), &mut effects);
    let Some(Effect::Write(batch)) = effects.pop() else { panic!("nothing is written") };
    assert_eq!(batch.after.size().get(), MAX_BATCH_ENTRIES as u64);
}
