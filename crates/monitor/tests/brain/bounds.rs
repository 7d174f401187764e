//! What a log shows costs bounded memory, whatever it shows; and what is kept of an honest log is enough.

use bytes::Bytes;
use epigraph_core::checkpoint::encode_text;
use epigraph_core::key::SigningKey;
use epigraph_core::{LeafIndex, Policy, TreeHead, UnixMillis, note};
use epigraph_monitor::book::StateError;
use epigraph_monitor::compare::{MAX_VANTAGES, Machine, Tuning};
use epigraph_monitor::event::{Claim, Event, Vantage, VantageKind};
use epigraph_monitor::finding::Code;
use epigraph_monitor::heads::{
    KEPT_PER_SCALE, MAX_BRANCHES, MAX_KEPT_NOTE_BYTES, MAX_WAITING, MAX_WAITING_OF_ONE,
};

use crate::world::*;

/// Ten thousand heads of an honest log: those that are kept are few, the newest is there, and at every distance some are.
/// Broken to see it fail: `thin` left out; the newest of a witness not kept.
#[test]
fn heads_of_an_honest_log_are_thinned() {
    let mut world = World::with(vec![History::new(10_000, 10_000, 0)], policy(0, 0), 1, 0);
    for leaves in 1..=10_000 {
        world.show(at_log(1), note(&world.head(0, leaves), &[], START));
    }
    assert_eq!(world.found, []);
    let branch = &world.machine.heads().branches()[0];
    let sizes: Vec<u64> = branch.heads().map(|seen| seen.head().size.get()).collect();
    assert!(sizes.len() <= 14 * KEPT_PER_SCALE + 2, "{}", sizes.len());
    assert_eq!(sizes.last(), Some(&10_000));
    for distance in [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096] {
        let near = |size: &&u64| (10_000 - **size) / 2 <= distance && 10_000 - **size >= distance / 2;
        assert!(sizes.iter().any(|size| near(&size)), "{distance}: {sizes:?}");
    }
    assert!(world.machine.encode().len() < 100_000);
}

/// The newest head of each witness stays, however old: it convicts a witness that comes back with another history.
#[test]
fn the_newest_head_of_a_witness_stays() {
    let mut world = World::split(vec![History::new(3000, 3000, 0), History::new(3000, 9, 1)]);
    for leaves in 500..2500 {
        let cosigners: &[usize] = if leaves == 777 { &[3] } else { &[0, 1, 2] };
        world.show(at_log(1), note(&world.head(0, leaves), cosigners, START));
    }
    world.show(at_log(2), note(&world.head(1, 2600), &[3], START));
    assert!(world.open().contains(&(Code::WitnessEquivocation, "w3")), "{:?}", world.open());
}

/// A log signs a new history with every head, at one size and at many, and proves nothing, or garbage of 64 hashes. Memory stays
/// bounded, the log is convicted, and the book has one finding for it. Broken to see it fail: `NoRoom` never answered.
#[test]
fn a_log_that_signs_without_end_is_bounded() {
    for manners in [Manners::Silent, Manners::Garbles, Manners::Refuses(0)] {
        let mut world = World::new(vec![History::new(1000, 1000, 0)]);
        world.publish(0, 500, &[at_log(1)]);
        for number in [1, 2] {
            world.manners.insert(at_log(number).name, manners);
        }
        for round in 0..3000 {
            let head = TreeHead { size: size(100 + round % 900), root: leaf(round, 5) };
            world.show(at_log(1 + (round % 2) as usize), note(&head, &[], START));
            if round % 50 == 0 {
                world.wait(1000);
            }
        }
        let heads = world.machine.heads();
        assert!(heads.waiting().len() <= MAX_WAITING.min(2 * MAX_WAITING_OF_ONE));
        assert!(heads.branches().len() <= MAX_BRANCHES);
        assert!(world.machine.encode().len() < 1 << 20);
        assert!(world.open().contains(&(Code::SplitView, "log")), "{manners:?}: {:?}", world.open());
        assert!(world.book.findings().count() < 20);
    }
}

/// Garbage from one vantage point a thousand times is one finding, told of once a minute at most, and over when it stops.
#[test]
fn garbage_is_told_of_seldom() {
    let mut world = World::new(vec![History::new(10, 10, 0)]);
    world.publish(0, 10, &[at_log(1)]);
    for _ in 0..1000 {
        world.show(at_file(), Bytes::from_static(b"garbage"));
    }
    assert_eq!(world.found.len(), 1);
    assert_eq!(world.open(), [(Code::BadSignature, "files")]);
    world.wait(11 * MINUTE);
    assert_eq!(world.open(), []);
}

/// Whoever makes up vantage points fills no memory.
#[test]
fn vantage_points_are_bounded() {
    let mut world = World::new(vec![History::new(10, 10, 0)]);
    for number in 0..10 * MAX_VANTAGES {
        let vantage = Vantage { name: format!("monitor/{number}"), kind: VantageKind::Monitor };
        world.publish(0, 10, &[vantage]);
    }
    let sightings = world.machine.heads().branches()[0].tip().unwrap().sightings().len();
    assert!(sightings <= 64);
    let state = String::from_utf8(world.machine.encode()).unwrap();
    assert!(state.lines().filter(|line| line.starts_with("largest ")).count() <= MAX_VANTAGES);
}

/// A head in a note that is too long to keep is told of: a log does not get out of being compared by being wordy. What strangers
/// add to a note does not count.
#[test]
fn a_wordy_head_is_told_of() {
    let mut world = World::new(vec![History::new(10, 10, 0)]);
    let text = encode_text(&origin(), &world.head(0, 5)) + &"x".repeat(MAX_KEPT_NOTE_BYTES) + "\n";
    let wordy = note::encode(&text, [&log_key().sign_assertion(&text)]);
    world.show(at_log(2), wordy.into());
    assert_eq!(world.open(), [(Code::InconsistentHead, "log/2")]);
}

/// `docs/formats/seen.md`, written out; and it reads back.
#[test]
fn the_state_is_as_documented() {
    let mut world = World::split(vec![History::new(100, 100, 0), History::new(100, 9, 1)]);
    world.manners.insert(at_log(1).name, Manners::Silent);
    world.manners.insert(at_log(2).name, Manners::Silent);
    let notes =
        [(0, 20), (1, 20), (0, 30)].map(|(history, leaves)| note(&world.head(history, leaves), &[0], START));
    world.show(at_log(1), notes[0].clone());
    world.show(at_file(), notes[0].clone());
    world.show(at_log(2), notes[1].clone());
    world.now += 1;
    world.show(at_log(1), notes[2].clone());
    let claim = Claim {
        claimant: "appender/billing".into(),
        index: LeafIndex::new(7).unwrap(),
        leaf: leaf(7, 0),
        deadline: UnixMillis(START + 5000),
    };
    world.feed(Event::Receipt { claim, at: UnixMillis(world.now) });
    let quoted = |note: &Bytes| -> String {
        let note = std::str::from_utf8(note).unwrap();
        note.strip_suffix('\n').unwrap().split('\n').map(|line| format!("> {line}\n")).collect()
    };
    let largest = |name: &str, history: usize, leaves: u64| {
        format!("largest {leaves} {} {name}\n", world.head(history, leaves).root)
    };
    let want = [
        "epigraph-seen@v1\nbranch 1\nhead 20\n".to_owned(),
        quoted(&notes[0]),
        format!("seen {START} {START} log/1\nseen {START} {START} files\nbranch 1\nhead 20\n"),
        quoted(&notes[1]),
        format!("seen {START} {START} log/2\nwaits 30\n"),
        quoted(&notes[2]),
        format!("seen {0} {0} log/1\n", START + 1),
        largest("files", 0, 20),
        largest("log/1", 0, 30),
        largest("log/2", 1, 20),
        format!("claim {} 7 {} 0 appender/billing\n", START + 5000, leaf(7, 0)),
    ]
    .concat();
    assert_eq!(String::from_utf8(world.machine.encode()).unwrap(), want);
    let again = world.decode(want.as_bytes());
    assert_eq!(again.encode(), want.as_bytes());
    assert_eq!(again.heads(), world.machine.heads());
}

/// State that was damaged is refused; a key that the policy let go of is called by its name. Broken to see it fail: a head
/// that does not verify skipped.
#[test]
fn damaged_state_is_refused() {
    let mut world = World::new(vec![History::new(100, 100, 0)]);
    for leaves in [10, 20, 30] {
        world.publish(0, leaves, &[at_log(1)]);
    }
    let state = world.machine.encode();
    let decode =
        |state: &[u8], policy| Machine::decode(state, origin(), policy, &[], Tuning::default()).map(drop);
    assert_eq!(decode(&state, policy(4, 3)), Ok(()));
    assert_eq!(
        decode(b"epigraph-seen@v2\n", policy(4, 3)).unwrap_err(),
        StateError::Header("epigraph-seen@v1")
    );
    let other = SigningKey::from_seed(ORIGIN.parse().unwrap(), &[9; 32].into());
    let error = decode(&state, Policy::of_log(other.vkey().clone())).unwrap_err();
    assert!(
        error.to_string().ends_with("Keep a replaced key of the log in the policy beside the new one"),
        "{error}"
    );
    let text = String::from_utf8(state).unwrap();
    for (old, new) in
        [("head 20", "head 21"), ("branch 3", "branch 4"), ("> 10\n", "> 11\n"), ("largest", "largesse")]
    {
        assert!(decode(text.replacen(old, new, 1).as_bytes(), policy(4, 3)).is_err(), "{new}");
    }
}
