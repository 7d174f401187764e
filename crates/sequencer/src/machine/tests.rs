//! The machine, event by event.

use super::*;
use epigraph_core::hash::leaf_hash;

const LIMITS: Limits = Limits { unpublished_max_entries: 100_000, unpublished_max_age_ms: 1_000 };
const NOW: UnixMillis = UnixMillis(1_000_000);

fn machine() -> Machine<u32> {
    Machine::new(LIMITS, Frontier::new(), ProducerTable::default(), TreeSize::ZERO, NOW)
}

fn submit(ticket: u32, entries: &[&[u8]]) -> Event<u32> {
    let leaves = entries.iter().map(|entry| leaf_hash(entry)).collect();
    let entries = entries.iter().map(|entry| Bytes::copy_from_slice(entry)).collect();
    Event::Submit(Submission {
        entries,
        leaves,
        ends: Vec::new(),
        numbers: None,
        line: None,
        identity: leaf_hash(b""),
        ticket,
    })
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
    let [Effect::Grown(head), Effect::Durable { ticket: 1, .. }, Effect::Write(batch)] = effects.as_slice()
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
    let mut machine = Machine::new(limits, Frontier::new(), ProducerTable::default(), TreeSize::ZERO, NOW);
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
    let full = Frontier::from_parts(size, vec![leaf_hash(b""); size.get().count_ones() as usize]).unwrap();
    let mut machine = Machine::new(LIMITS, full, ProducerTable::default(), size, NOW);
    let effects = run(&mut machine, vec![submit(1, &[b"a", b"b"]), submit(2, &[b"a"])]);
    assert_eq!(refusals(&effects), [(1, Refused::LogFull)]);
}

/// K1: a clock that is set forward, back, or by ten years in the middle of a batch changes no index and no root, and what waits for
/// publication is counted from the earlier of the two times. Seen to fail without the `min` in `step`: after a step back nothing
/// waits too long before the clock has caught up.
#[test]
fn a_clock_that_jumps_moves_no_entry() {
    const HOUR: u64 = 3_600_000;
    let mut machine = machine();
    let entries: Vec<[u8; 1]> = (0..6).map(|number| [number]).collect();
    let clocks = [NOW.0, NOW.0 + HOUR, NOW.0 - HOUR / 4, NOW.0 + 10 * 366 * 24 * HOUR, 0, NOW.0];
    for (number, (entry, clock)) in (0..).zip(entries.iter().zip(clocks)) {
        let (clock, mut effects) = (UnixMillis(clock), Vec::new());
        machine.step(submit(number, &[entry]), clock, &mut effects);
        machine.stage(clock, &mut effects);
        machine.step(Event::Written, UnixMillis(clock.0 / 2), &mut effects);
        let [Effect::Write(batch), Effect::Grown(head), Effect::Durable { ticket, first_index }] =
            effects.as_slice()
        else {
            panic!("{clock:?}: {effects:?}")
        };
        assert_eq!(
            (*ticket, first_index.get(), batch.before.size.get()),
            (number, number.into(), number.into())
        );
        let so_far: Vec<&[u8]> = entries[..=number as usize].iter().map(<[u8; 1]>::as_slice).collect();
        assert_eq!(head.root, root(&so_far));
        machine.step(Event::Published(head.size), clock, &mut Vec::new());
    }
    // Behind from now on; the clock is set back by an hour, and a second later the bound is reached.
    let mut refused = |entry: &[u8], clock: u64| {
        let mut effects = Vec::new();
        machine.step(submit(9, &[entry]), UnixMillis(clock), &mut effects);
        machine.stage(UnixMillis(clock), &mut effects);
        machine.step(Event::Written, UnixMillis(clock), &mut effects);
        refusals(&effects)
    };
    let set_back = 2 * NOW.0;
    assert_eq!(refused(b"a", set_back + HOUR), []);
    assert_eq!(refused(b"b", set_back), []);
    assert_eq!(refused(b"c", set_back + LIMITS.unpublished_max_age_ms), []);
    assert_eq!(refused(b"d", set_back + LIMITS.unpublished_max_age_ms + 1), [(9, Refused::Backlog(3))]);
}
