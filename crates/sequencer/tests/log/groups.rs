//! Calls of a line that are submitted together: what is taken of them, and how they are answered.

use bytes::Bytes;
use epigraph_core::hash::{leaf_hash, sha256};
use epigraph_core::{Frontier, Hash, LeafIndex, TreeSize, UnixMillis};
use epigraph_sequencer::machine::{
    Cut, Effect, Event, Limits, Line, Machine, NoSpace, Numbers, Refused, Submission,
};
use epigraph_store::journal::{ProducerKey, ProducerTable};
use proptest::prelude::*;

const NOW: UnixMillis = UnixMillis(1_000_000);

/// So few that some of a group may be beyond them.
const LIMITS: Limits = Limits { unpublished_max_entries: 20, unpublished_max_age_ms: 1 << 40 };

/// Three quarters of a batch hold 95 of them.
const LARGE: usize = 65_535;

fn identity() -> Hash {
    sha256(b"somebody")
}

fn machine() -> Machine<usize> {
    Machine::new(LIMITS, Frontier::new(), ProducerTable::default(), TreeSize::ZERO, NOW)
}

/// Calls of a line: entries of each, under these numbers. `other` says what they are.
fn submission(calls: &[usize], numbers: Option<u64>, other: bool, line: Option<&Line>) -> Submission<usize> {
    let first = numbers.unwrap_or_default();
    let count = calls.iter().sum::<usize>();
    let entries = (first..).take(count).map(|number| Bytes::from(format!("{number} {other}")));
    let entries: Vec<Bytes> = entries.collect();
    let leaves = entries.iter().map(|entry| leaf_hash(entry)).collect();
    let producer = ProducerKey { identity: identity(), id: [1; 16] };
    let numbers = numbers.map(|first_sequence| Numbers { producer, epoch: 1, first_sequence });
    let mut ends: Vec<usize> = calls.iter().scan(0, |end, call| Some((*end += call, *end).1)).collect();
    ends.pop();
    Submission { entries, leaves, ends, numbers, line: line.cloned(), identity: identity(), ticket: 0 }
}

/// What happened before the line: calls of the same producer, and what became of their batches.
#[derive(Clone, Debug)]
enum Before {
    Call { first: u64, count: usize, other: bool },
    Large(usize),
    Written,
    NotWritten,
}

fn before() -> impl Strategy<Value = Before> {
    let call = (0..12u64, 1..4usize, any::<bool>());
    prop_oneof![
        4 => call.prop_map(|(first, count, other)| Before::Call { first, count, other }),
        1 => (1..97usize).prop_map(Before::Large),
        3 => Just(Before::Written),
        1 => Just(Before::NotWritten),
    ]
}

fn step(machine: &mut Machine<usize>, event: Event<usize>) -> Vec<Effect<usize>> {
    let mut effects = Vec::new();
    machine.step(event, NOW, &mut effects);
    machine.stage(NOW, &mut effects);
    effects
}

/// A machine after all of that.
fn after(before: &[Before]) -> Machine<usize> {
    let mut machine = machine();
    for before in before {
        let event = match before {
            Before::Call { first, count, other } => {
                Event::Submit(submission(&[*count], Some(*first), *other, None))
            }
            Before::Large(count) => {
                let entries = vec![Bytes::from(vec![0; LARGE]); *count];
                let leaves = vec![leaf_hash(b"large"); *count];
                Event::Submit(Submission { entries, leaves, ..submission(&[*count], None, false, None) })
            }
            Before::Written => Event::Written,
            Before::NotWritten => Event::NotWritten(NoSpace),
        };
        step(&mut machine, event);
    }
    machine
}

/// Where the entries of the calls are, and why there are no more, once everything is on disk.
fn outcome(mut machine: Machine<usize>, submissions: Vec<Submission<usize>>, calls: &[usize]) -> Outcome {
    let groups = submissions.len();
    let mut effects = Vec::new();
    // All in one turn.
    for (ticket, submission) in (1..).zip(submissions) {
        machine.step(Event::Submit(Submission { ticket, ..submission }), NOW, &mut effects);
    }
    machine.stage(NOW, &mut effects);
    while !machine.is_idle() {
        effects.extend(step(&mut machine, Event::Written));
    }
    let (mut indexes, mut refused) = (Vec::new(), None);
    let mut told = 0;
    let mut take = |first: LeafIndex, entries: usize| indexes.extend((first.get()..).take(entries));
    for wanted in 1..=groups {
        for effect in &effects {
            match effect {
                Effect::Durable { ticket, first_index } if *ticket == wanted => {
                    let entries = if groups == 1 { calls.iter().sum() } else { calls[wanted - 1] };
                    take(*first_index, entries);
                    told += 1;
                }
                Effect::DurableUpTo { ticket, first_index, cut } if *ticket == wanted => {
                    take(*first_index, cut.entries);
                    refused = refused.or(Some(cut.why));
                    told += 1;
                }
                Effect::Refuse { ticket, why } if *ticket == wanted => {
                    refused = refused.or(Some(*why));
                    told += 1;
                }
                _ => {}
            }
        }
    }
    assert_eq!(told, groups, "everybody is answered once");
    (indexes, refused)
}

type Outcome = (Vec<u64>, Option<Refused>);

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// The calls one by one are the oracle. Broken to see it fail: all or nothing of the whole group, a refusal that is not that
    /// of the call behind the cut, a line that goes on behind the cut.
    #[test]
    fn calls_that_come_together_are_taken_as_if_they_had_come_one_by_one(
        before in proptest::collection::vec(before(), 0..12),
        calls in proptest::collection::vec(1..4usize, 1..8),
        numbers in proptest::option::weighted(0.8, 0..14u64),
    ) {
        let line = Line::default();
        let together = submission(&calls, numbers, false, Some(&line));
        let together = outcome(after(&before), vec![together], &calls);
        let singles = {
            let line = Line::default();
            let mut number = numbers;
            let single = |call: &usize| {
                let single = submission(&[*call], number, false, Some(&line));
                number = number.map(|number| number + *call as u64);
                single
            };
            calls.iter().map(single).collect()
        };
        let singles = outcome(after(&before), singles, &calls);
        let (told, why) = &together;
        if *why == Some(Refused::RepeatInLine) && together != singles {
            // A call that repeats what is on its way, and one behind it that is new: they have no one answer.
            prop_assert!(singles.0.starts_with(told) && !told.is_empty(), "{together:?} {singles:?}");
        } else {
            prop_assert_eq!(&together, &singles);
        }
        let behind = submission(&[1], None, false, Some(&line));
        let behind = outcome(after(&[]), vec![behind], &[1]);
        prop_assert_eq!(behind.1, why.and(Some(Refused::LineBroken)));
    }
}

#[test]
fn of_calls_that_come_together_those_before_the_refused_one_are_durable() {
    let mut machine = machine();
    let calls = submission(&[7, 7, 7, 1], None, false, Some(&Line::default()));
    let effects = step(&mut machine, Event::Submit(calls));
    let [Effect::Write(batch)] = effects.as_slice() else { panic!("{effects:?}") };
    assert_eq!(batch.after.size().get(), 14);
    let effects = step(&mut machine, Event::Written);
    let first_index = LeafIndex::new(0).unwrap();
    let cut = Cut { entries: 14, why: Refused::Backlog(0) };
    assert!(effects.contains(&Effect::DurableUpTo { ticket: 0, first_index, cut }), "{effects:?}");
}
