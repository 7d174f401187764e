//! The lookup against a map of all leaf hashes, through crashes and damage of every kind.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};

use epigraph_core::hash::{leaf_hash, node_hash};
use epigraph_core::{Entropy, Frontier, UnixMillis, bundle};

use super::*;
use crate::file::fault::{Fault, FaultDir, Operation, Outcome};
use crate::file::memory::{MemoryDir, Survival, by_seed};
use crate::follow::Follower;
use crate::journal::{Batch, Config, Journal};
use crate::tree::open_in_memory;

const ORIGIN: Hash = Hash::from_bytes([9; 32]);
/// Runs of 256, 1,024, 4,096, … leaves.
const HEIGHT: u32 = 8;

struct Counting(AtomicU8);

impl Entropy for Counting {
    fn fill(&self, bytes: &mut [u8]) {
        bytes.fill(self.0.fetch_add(1, Ordering::Relaxed));
    }
}

/// A log with its tree, and the first index of every leaf hash in a map to judge by.
struct Log {
    journal: Journal,
    frontier: Frontier,
    tree: Arc<Tree>,
    follower: Follower,
    entry: fn(u64) -> u64,
    leaves: Vec<Hash>,
    oracle: BTreeMap<Hash, u64>,
}

/// Every other entry was there before: near, far, and in the same tile.
fn with_repeats(index: u64) -> u64 {
    match index % 8 {
        1 => index - 1,
        3 => index / 2,
        5 => index / 64,
        7 => 0,
        _ => index,
    }
}

impl Log {
    fn of(entries: u64, entry: fn(u64) -> u64) -> Log {
        let dir = Arc::new(MemoryDir::new());
        let config = Config::new(256 << 10, 128 << 10).unwrap();
        let entropy = Arc::new(Counting(1.into()));
        let journal = Journal::create(dir.clone(), ORIGIN, config, UnixMillis(1), entropy).unwrap();
        let (tree, follower) = open_in_memory(dir, ORIGIN).unwrap();
        let (leaves, oracle, frontier) = (Vec::new(), BTreeMap::new(), Frontier::new());
        let mut log = Log { journal, frontier, tree, follower, entry, leaves, oracle };
        log.grow(entries);
        log
    }

    fn grow(&mut self, entries: u64) {
        let end = self.frontier.size().get() + entries;
        while self.frontier.size().get() < end {
            let before = self.frontier.head();
            let mut bytes = Vec::new();
            for index in before.size.get()..end.min(before.size.get() + 1000) {
                let entry = (self.entry)(index).to_be_bytes();
                bundle::push(&mut bytes, &entry).unwrap();
                let leaf = leaf_hash(&entry);
                self.frontier.push(leaf).unwrap();
                self.leaves.push(leaf);
                self.oracle.entry(leaf).or_insert(index);
            }
            let after = self.frontier.clone();
            self.journal
                .append(&Batch { before, after, time: UnixMillis(2), marks: Vec::new(), entries: bytes })
                .unwrap();
        }
        let head = self.frontier.head();
        assert_eq!(self.follower.catch_up(head.size, &mut |_| ControlFlow::Continue(())).unwrap(), head);
    }

    fn size(&self) -> TreeSize {
        self.frontier.size()
    }

    /// Opens the lookup as a start does, with the names of the runs that were set aside.
    fn try_open(&self, dir: Arc<dyn Dir>) -> Result<(Lookup, Vec<String>), LookupError> {
        let mut aside = Vec::new();
        let mut notice = |notice: SetAside| aside.push(notice.name);
        let lookup =
            Lookup::with_first_height(dir, ORIGIN, self.tree.clone(), self.size(), HEIGHT, &mut notice)?;
        Ok((lookup, aside))
    }

    fn open(&self, dir: Arc<dyn Dir>) -> Lookup {
        let (lookup, aside) = self.try_open(dir).unwrap();
        assert_eq!(aside, [""; 0]);
        lookup
    }

    fn filled(&self, dir: Arc<dyn Dir>) -> Lookup {
        let lookup = self.open(dir);
        assert_eq!(lookup.catch_up(self.size(), &mut go_on).unwrap(), self.size());
        lookup
    }

    /// Whatever the lookup has been through: all it claims is found, where it was first, and no answer is
    /// wrong.
    fn check(&self, lookup: &Lookup) {
        let claimed = lookup.size().get();
        assert!(claimed <= self.size().get() && lookup.durable() <= lookup.size());
        for (leaf, first) in &self.oracle {
            let found = lookup.find(leaf).unwrap().map(LeafIndex::get);
            let wanted = (*first < claimed).then_some(*first);
            assert_eq!(found, wanted, "of {claimed}");
        }
        for absent in 0..100u64 {
            let leaf = leaf_hash(&[absent as u8; 3]);
            assert_eq!(lookup.find(&leaf).unwrap(), None);
        }
    }

    /// As [`Log::check`], but where damage was not found yet an error may come instead.
    fn check_damaged(&self, lookup: &Lookup) -> usize {
        let claimed = lookup.size().get();
        let mut refused = 0;
        for (leaf, first) in &self.oracle {
            match lookup.find(leaf) {
                Ok(found) => assert_eq!(found.map(LeafIndex::get), (*first < claimed).then_some(*first)),
                Err(LookupError::Unusable { .. }) => refused += 1,
                Err(other) => panic!("{other}"),
            }
        }
        refused
    }

    /// Catches up over whatever must be set aside on the way, and returns how many runs were.
    fn repair(&self, lookup: &Lookup) -> usize {
        for aside in 0..20 {
            match lookup.catch_up(self.size(), &mut go_on) {
                Ok(size) => {
                    assert_eq!(size, self.size());
                    self.check(lookup);
                    return aside;
                }
                Err(LookupError::Unusable { .. }) => {}
                Err(other) => panic!("{other}"),
            }
        }
        panic!("it finds one damaged run after the other");
    }
}

fn go_on(_: TreeSize) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn runs(dir: &dyn Dir) -> Vec<String> {
    dir.list().unwrap().into_iter().filter(|name| name.ends_with(".run")).collect()
}

/// Replaces a file's content behind the back of everybody.
fn replace(dir: &MemoryDir, name: &str, content: &[u8]) {
    dir.remove(name).unwrap();
    let file = dir.create(name).unwrap();
    file.write_at(0, content).unwrap();
    file.sync().unwrap();
    dir.sync().unwrap();
}

/// Fails if `take_tile` overwrites a key, `merge` keeps the later of two equal keys, or `take_tile` skips too
/// few.
#[test]
fn every_entry_is_found_where_it_was_first_while_the_log_grows() {
    let mut log = Log::of(0, with_repeats);
    let dir = Arc::new(MemoryDir::new());
    let lookup = log.open(dir.clone());
    for step in [1, 0, 254, 1, 1, 255, 256, 100, 5000, 777, 4096, 3] {
        log.grow(step);
        assert_eq!(lookup.catch_up(log.size(), &mut go_on).unwrap(), log.size());
        log.check(&lookup);
        let again = log.open(dir.clone());
        assert_eq!((again.size(), again.bytes()), (lookup.durable(), lookup.bytes()));
        assert!(log.size().get() - again.size().get() < 1 << HEIGHT);
        log.check(&again);
    }
    // 10,744 leaves.
    let heights: Vec<_> = lookup.state().runs.iter().map(|run| run.span.height).collect();
    assert_eq!(heights, [12, 12, 10, 10, 8]);
    let bytes: usize = runs(&*dir).iter().map(|name| dir.content(name).unwrap().len()).sum();
    assert_eq!(lookup.bytes(), bytes as u64);
}

/// The offsets are those of docs/formats/lookup.md.
#[test]
fn a_run_is_as_documented() {
    let log = Log::of(1024 + 256, with_repeats);
    let disk = MemoryDir::new();
    log.filled(Arc::new(disk.clone()));
    assert_eq!(disk.list().unwrap(), ["00000000000000000000-10.run", "00000000000000001024-08.run"]);
    let check = |name: &str, first: u64, height: u32, root: Hash| {
        let bytes = disk.content(name).unwrap();
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let mut wanted = BTreeMap::new();
        for offset in 0..1u32 << height {
            let leaf = log.leaves[first as usize + offset as usize];
            wanted.entry(leaf.as_bytes()[..12].to_vec()).or_insert(offset);
        }
        assert_eq!((&bytes[..8], u32_at(8)), (&b"EPGLOOKU"[..], 1));
        let header = [&bytes[..12], &[0; 4], &bytes[16..4096]].concat();
        assert_eq!(u32_at(12), crc32c::crc32c(&header));
        assert_eq!(&bytes[16..48], ORIGIN.as_bytes());
        assert_eq!((u64_at(48), u32_at(56), u64_at(60)), (first, height, wanted.len() as u64));
        assert_eq!(&bytes[68..100], root.as_bytes());
        assert!(bytes[100..4096].iter().all(|byte| *byte == 0));
        let mut records = Vec::new();
        for (number, start) in (4096..bytes.len()).step_by(4096).enumerate() {
            let count = u32_at(start + 4) as usize;
            assert_eq!(u32_at(start), crc32c::crc32c(&bytes[start + 4..start + 4096]));
            assert_eq!((count, u64_at(start + 8)), (255.min(wanted.len() - records.len()), number as u64));
            for i in 0..count {
                let key = bytes[start + 16 + 16 * i..start + 28 + 16 * i].to_vec();
                records.push((key, u32_at(start + 28 + 16 * i)));
            }
            assert!(bytes[start + 16 + 16 * count..start + 4096].iter().all(|byte| *byte == 0));
        }
        assert_eq!(records, wanted.into_iter().collect::<Vec<_>>());
    };
    // RFC 6962 section 2.1, for a number of leaves that is a power of two.
    fn root(leaves: &[Hash]) -> Hash {
        let (left, right) = leaves.split_at(leaves.len() / 2);
        if left.is_empty() { leaves[0] } else { node_hash(&root(left), &root(right)) }
    }
    check("00000000000000000000-10.run", 0, 10, root(&log.leaves[..1024]));
    check("00000000000000001024-08.run", 1024, 8, root(&log.leaves[1024..]));
}

#[test]
fn it_goes_no_further_than_it_is_told_or_the_tree_is_built_and_can_be_stopped() {
    let log = Log::of(3000, |index| index);
    let lookup = log.open(Arc::new(MemoryDir::new()));
    assert_eq!(lookup.catch_up(TreeSize::new(100).unwrap(), &mut go_on).unwrap().get(), 100);
    log.check(&lookup);
    let stopped = lookup.catch_up(log.size(), &mut |_| ControlFlow::Break(())).unwrap();
    assert_eq!(stopped.get(), 256);
    assert_eq!(lookup.catch_up(TreeSize::MAX, &mut go_on).unwrap(), log.size());
    log.check(&lookup);
}

/// A tree that is built anew is behind the lookup for a while.
#[test]
fn a_tree_that_is_behind_gives_no_answer_rather_than_an_unchecked_one() {
    let log = Log::of(2000, |index| index);
    let dir = Arc::new(MemoryDir::new());
    log.filled(dir.clone());
    let tree = Arc::new(Tree::new(Arc::new(MemoryDir::new()), ORIGIN));
    let lookup =
        Lookup::with_first_height(dir, ORIGIN, tree, log.size(), HEIGHT, &mut |aside| panic!("{aside:?}"));
    let lookup = lookup.unwrap();
    assert_eq!(lookup.catch_up(log.size(), &mut go_on).unwrap().get(), 1792);
    let found = lookup.find(&log.leaves[7]);
    assert!(matches!(found, Err(LookupError::Tree(TreeError::NotYet { .. }))), "{found:?}");
}

/// C3, F3: a batch that fails or is cut off at any of its operations, with a power cut after it. Fails if
/// `finish` does not sync the file, or `merge` removes its inputs before it has a name.
#[test]
fn a_crash_at_any_operation_costs_no_more_than_the_work_since() {
    let log = Log::of(1024 + 300, with_repeats);
    let outcomes = [Outcome::NotApplied, Outcome::Applied, Outcome::Torn(5000)];
    let before = MemoryDir::new();
    log.open(Arc::new(before.clone())).catch_up(TreeSize::new(900).unwrap(), &mut go_on).unwrap();
    let mut crashes = 0;
    for outcome in outcomes {
        for nth in 0.. {
            let disk = before.duplicate();
            let dir = Arc::new(FaultDir::new(Arc::new(disk.clone())));
            let lookup = log.open(dir.clone());
            dir.inject(Fault { operation: None, nth, outcome, crash: true });
            let filled = lookup.catch_up(log.size(), &mut go_on);
            if !dir.fired() {
                assert_eq!(filled.unwrap(), log.size());
                break;
            }
            crashes += 1;
            drop(lookup);
            for seed in 0..4 {
                let cut = disk.duplicate();
                cut.power_cut(by_seed(seed));
                let lookup = log.open(Arc::new(cut.clone()));
                assert!(lookup.size().get() >= 768, "what was durable before");
                log.check(&lookup);
                assert_eq!(log.repair(&lookup), 0);
                drop(lookup);
                assert_eq!(log.open(Arc::new(cut.clone())).size().get(), 1280);
                assert_eq!(runs(&cut).len(), 2, "{:?}", cut.list());
            }
        }
    }
    assert!(crashes > 50, "{crashes}");
}

/// F1, F3: an operation fails and the process goes on. Fails if `finish` does not sync, as what it wrote is
/// forgotten then.
#[test]
fn after_any_failed_operation_it_answers_and_goes_on() {
    let log = Log::of(1024 + 300, with_repeats);
    for outcome in [Outcome::NotApplied, Outcome::Applied, Outcome::Torn(5000), Outcome::NoSpace] {
        for nth in 0.. {
            let disk = MemoryDir::new();
            let dir = Arc::new(FaultDir::new(Arc::new(disk.clone())));
            let lookup = log.open(dir.clone());
            lookup.catch_up(TreeSize::new(900).unwrap(), &mut go_on).unwrap();
            dir.inject(Fault { operation: None, nth, outcome, crash: false });
            let filled = lookup.catch_up(log.size(), &mut go_on);
            if !dir.fired() {
                break;
            }
            // A sync that failed takes what it should have written along.
            disk.forget_unsynced();
            match filled {
                Err(LookupError::Io { .. } | LookupError::Unusable { .. }) => {}
                // What failed was to remove a file that was not there.
                Ok(_) if outcome == Outcome::Applied => {}
                other => panic!("operation {nth}, {outcome:?}: {other:?}"),
            }
            dir.heal();
            log.check(&lookup);
            log.repair(&lookup);
            let durable = lookup.durable();
            drop(lookup);
            disk.power_cut(|_| Survival::Lost);
            let lookup = log.open(Arc::new(disk));
            assert!(lookup.size() <= durable);
            log.check(&lookup);
        }
    }
}

/// C10 for the lookup: every crash point leaves what the list says. Fails if `recover` does not remove the inputs of a merge.
#[test]
fn every_crash_point_is_passed_and_survived() {
    let log = Log::of(1500, with_repeats);
    let dir = Arc::new(FaultDir::new(Arc::new(MemoryDir::new())));
    log.filled(dir.clone());
    let (mut passed, mut listed) = (dir.points(), CRASH_POINTS.map(|(name, _)| name));
    passed.sort_unstable();
    passed.dedup();
    listed.sort_unstable();
    assert_eq!(passed, listed);
    for (point, _) in CRASH_POINTS {
        let disk = MemoryDir::new();
        let dir = Arc::new(FaultDir::new(Arc::new(disk.clone())));
        dir.crash_at(point, 0);
        log.open(dir.clone()).catch_up(log.size(), &mut go_on).unwrap_err();
        let lookup = log.open(Arc::new(disk.clone()));
        assert_eq!(log.repair(&lookup), 0);
        assert_eq!(runs(&disk), ["00000000000000000000-10.run", "00000000000000001024-08.run"]);
        assert!(!disk.list().unwrap().contains(&NEW_NAME.to_owned()));
    }
}

/// B5 for the lookup: a bit flips anywhere in a file. Fails if `Run::block` does not compare its checksum, or
/// the header's does not cover all of it.
#[test]
fn a_flipped_bit_is_never_an_answer_nor_an_absence() {
    let log = Log::of(1700, with_repeats);
    let disk = MemoryDir::new();
    log.filled(Arc::new(disk.clone()));
    let (mut at_open, mut at_find) = (0, 0);
    for name in runs(&disk) {
        let content = disk.content(&name).unwrap();
        for at in (0..120).chain((120..content.len()).step_by(419)) {
            let damaged = disk.duplicate();
            damaged.damage(&name, at, &[content[at] ^ 1 << (at % 8)]).unwrap();
            let (lookup, aside) = log.try_open(Arc::new(damaged.clone())).unwrap();
            assert_eq!(aside, if at < 4096 { vec![name.clone()] } else { vec![] }, "byte {at}");
            at_open += aside.len();
            let refused = log.check_damaged(&lookup);
            assert_eq!(refused > 0, aside.is_empty(), "byte {at}");
            at_find += usize::from(refused > 0);
            assert_eq!(log.repair(&lookup), usize::from(refused > 0));
            let mut kept = content.clone();
            kept[at] ^= 1 << (at % 8);
            assert_eq!(damaged.content("suspect").unwrap(), kept);
            assert_eq!(runs(&damaged), runs(&disk));
        }
    }
    assert!(at_open > 100 && at_find > 20, "{at_open}, {at_find}");
}

/// B6 for the lookup: files cut, emptied, exchanged, gone, of other names. Fails if `check_header` does not
/// compare length and span, or `recover` leaves what it does not use.
#[test]
fn files_that_are_not_what_they_were_are_set_aside_or_made_again() {
    let log = Log::of(1700, with_repeats);
    let disk = MemoryDir::new();
    log.filled(Arc::new(disk.clone()));
    let names = runs(&disk);
    assert_eq!(names.len(), 3);
    let check = |change: &dyn Fn(&MemoryDir), want_aside: &[&String], want_size: u64| {
        let changed = disk.duplicate();
        change(&changed);
        let (lookup, aside) = log.try_open(Arc::new(changed.clone())).unwrap();
        let aside: Vec<_> = aside.iter().collect();
        assert_eq!((&aside[..], lookup.size().get()), (want_aside, want_size));
        assert!(runs(&changed).len() <= names.len());
        assert!(!changed.list().unwrap().contains(&NEW_NAME.to_owned()));
        log.check(&lookup);
        assert_eq!(log.repair(&lookup), 0);
        assert_eq!(runs(&changed), names);
    };
    let content = |name: &str| disk.content(name).unwrap();
    let ends = [0, 1024, 1280, 1536];
    for (name, end) in names.iter().zip(ends) {
        check(&|dir| dir.remove(name).unwrap(), &[], end);
        for length in [0, 1, 4095, 4096, 5000, content(name).len() - 1] {
            check(&|dir| replace(dir, name, &content(name)[..length]), &[name], end);
        }
        check(&|dir| replace(dir, name, &[&content(name)[..], &[0]].concat()), &[name], end);
        check(&|dir| replace(dir, name, &vec![0; content(name).len()]), &[name], end);
    }
    check(&|dir| replace(dir, &names[1], &content(&names[2])), &[&names[1]], 1024);
    // Of other sizes, beyond a gap, within another, half made.
    for strange in
        ["00000000000000001536-09.run", "00000000000000008192-08.run", "00000000000000000256-08.run", "new"]
    {
        check(&|dir| drop(dir.create(strange).unwrap()), &[], 1536);
    }
}

/// R1 for the lookup. Fails if the end of a run and the length of the journal are not compared.
#[test]
fn runs_ahead_of_the_journal_are_set_aside() {
    let (long, short) = (Log::of(1700, |index| index), Log::of(1300, |index| index));
    let dir = Arc::new(MemoryDir::new());
    long.filled(dir.clone());
    let (lookup, aside) = short.try_open(dir).unwrap();
    assert_eq!(aside, ["00000000000000001280-08.run"]);
    assert_eq!(lookup.size().get(), 1280);
    assert_eq!(short.repair(&lookup), 0);
}

/// R1 for the lookup: the journal was restored and went on with other entries. Fails without `confirm`: nothing
/// wrong is answered, but the new entries are never found.
#[test]
fn runs_of_another_history_are_set_aside_once_the_tree_shows_it() {
    fn other(index: u64) -> u64 {
        if index < 1100 { index } else { index + 1_000_000 }
    }
    let (old, new) = (Log::of(1700, |index| index), Log::of(1700, other));
    let dir = Arc::new(MemoryDir::new());
    old.filled(dir.clone());
    let lookup = new.open(dir.clone());
    for (leaf, first) in &old.oracle {
        assert_eq!(lookup.find(leaf).unwrap().map(LeafIndex::get), (*first < 1100).then_some(*first));
    }
    let refused = lookup.catch_up(new.size(), &mut go_on);
    assert!(matches!(refused, Err(LookupError::Unusable { .. })), "{refused:?}");
    assert_eq!(lookup.size().get(), 1024);
    assert_eq!(runs(&*dir), ["00000000000000000000-10.run"]);
    assert_eq!(new.repair(&lookup), 0);
}

#[test]
fn runs_of_another_log_are_set_aside() {
    let log = Log::of(1700, |index| index);
    let dir = Arc::new(MemoryDir::new());
    log.filled(dir.clone());
    let mut aside = Vec::new();
    let other = Hash::from_bytes([8; 32]);
    let lookup = Lookup::with_first_height(dir, other, log.tree.clone(), log.size(), HEIGHT, &mut |notice| {
        aside.push(notice.why);
    });
    let lookup = lookup.unwrap();
    assert_eq!((lookup.size(), &aside[..]), (TreeSize::ZERO, &["it belongs to another log".to_owned()][..]));
    assert_eq!(log.repair(&lookup), 0);
}

/// B2 for the lookup: damage that came after the start, found by a reader and by a merge. Fails if `find`
/// does not leave word of it, or `distrust` keeps the tail.
#[test]
fn damage_in_use_is_an_error_until_the_run_is_made_again() {
    let mut log = Log::of(1024 + 512 + 100, |index| index);
    for found_by_reader in [true, false] {
        let disk = MemoryDir::new();
        let lookup = log.filled(Arc::new(disk.clone()));
        let names = runs(&disk);
        assert_eq!(names.len(), if found_by_reader { 3 } else { 2 });
        let last = names.last().unwrap();
        disk.damage(last, 5000, &[1, 2, 3]).unwrap();
        if found_by_reader {
            assert!(log.check_damaged(&lookup) > 0);
            assert_eq!(log.repair(&lookup), 1);
            log.check(&log.open(Arc::new(disk)));
            log.grow(512);
        } else {
            log.grow(6 * 1024);
            assert_eq!(log.repair(&lookup), 1);
            log.check(&log.open(Arc::new(disk)));
        }
    }
}

/// F6: a file that the system does not open now is no reason to throw a good run away. Fails if `recover`
/// takes it for damage.
#[test]
fn a_run_that_cannot_be_opened_stays_where_it_is() {
    let log = Log::of(1700, |index| index);
    let disk = MemoryDir::new();
    log.filled(Arc::new(disk.clone()));
    let names = disk.list().unwrap();
    let dir = Arc::new(FaultDir::new(Arc::new(disk.clone())));
    let outcome = Outcome::NotApplied;
    dir.inject(Fault { operation: Some(Operation::Open), nth: 1, outcome, crash: false });
    assert!(matches!(log.try_open(dir).map(drop), Err(LookupError::Io { .. })));
    assert_eq!(disk.list().unwrap(), names);
}

#[test]
fn a_merge_that_is_stopped_is_begun_again() {
    let log = Log::of(1024, |index| index);
    let disk = Arc::new(MemoryDir::new());
    let lookup = log.open(disk.clone());
    let mut heard = Vec::new();
    let mut stop_in_merge = |size: TreeSize| {
        heard.push(size.get());
        if heard.ends_with(&[1024, 1024]) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    assert_eq!(lookup.catch_up(log.size(), &mut stop_in_merge).unwrap(), log.size());
    assert_eq!(
        (&heard[..], runs(&*disk).len(), disk.list().unwrap().len()),
        (&[256, 512, 768, 1024, 1024][..], 4, 4)
    );
    log.check(&lookup);
    assert_eq!(log.repair(&lookup), 0);
    assert_eq!(runs(&*disk), ["00000000000000000000-10.run"]);
}

/// Fails if `write_tail` clears the tail under another lock than the one that shows the run.
#[test]
fn readers_miss_nothing_while_runs_are_made_and_merged() {
    let log = Log::of(9000, |index| index);
    for _ in 0..20 {
        let lookup = log.open(Arc::new(MemoryDir::new()));
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                for n in 0u64.. {
                    let claimed = lookup.size();
                    // Mostly the newest: these move from tail to run to run.
                    let Some(last) = claimed.last_index() else { continue };
                    let index = last.get().saturating_sub(n * n % 600);
                    let leaf = &log.leaves[index as usize];
                    assert_eq!(lookup.find(leaf).unwrap().map(LeafIndex::get), Some(index));
                    if claimed == log.size() {
                        break;
                    }
                }
            });
            assert_eq!(lookup.catch_up(log.size(), &mut go_on).unwrap(), log.size());
            reader.join().unwrap();
        });
    }
}

/// With runs as large as a log's.
#[test]
fn on_a_real_disk_it_is_there_again_after_a_drop() {
    let log = Log::of(66_000, with_repeats);
    let folder = tempfile::tempdir().unwrap();
    let open = || {
        let directory = folder.path().join("lookup");
        let mut notice = |aside| panic!("{aside:?}");
        Lookup::open_at(&directory, ORIGIN, log.tree.clone(), log.size(), &mut notice).unwrap()
    };
    assert_eq!(open().catch_up(log.size(), &mut go_on).unwrap(), log.size());
    let lookup = open();
    assert_eq!(lookup.size().get(), 65_536);
    log.check(&lookup);
    assert_eq!(log.repair(&lookup), 0);
}

/// Whoever appends chooses entries, and with some work how their hashes begin. Fails if `Run::find` only
/// guesses.
#[test]
fn keys_that_were_chosen_to_mislead_take_few_reads() {
    let check = |keys: Vec<Key>| {
        let disk = Arc::new(MemoryDir::new());
        let span = Span::starting_at(0, 16).unwrap();
        let mut writer = RunWriter::create(&*disk).unwrap();
        for (key, offset) in keys.iter().zip(0..) {
            writer.push(key, offset).unwrap();
        }
        writer.finish(&*disk, span, ORIGIN, ORIGIN).unwrap();
        let dir = FaultDir::new(disk);
        let Ok(run) = Run::open(&dir, span, ORIGIN) else { panic!("it does not open") };
        for (key, offset) in keys.iter().zip(0..).step_by(101) {
            let before = dir.operations().len();
            assert_eq!(run.find(key), Ok(Some(offset)));
            let mut beside = *key;
            beside[11] ^= 1;
            assert_eq!(run.find(&beside), Ok(None));
            // 257 blocks.
            assert!(dir.operations().len() - before <= 2 * (6 + 9), "{}", dir.operations().len() - before);
        }
    };
    let key = |leading: u64, rest: u32| {
        let mut key = [0; KEY_BYTES];
        key[..8].copy_from_slice(&leading.to_be_bytes());
        key[8..].copy_from_slice(&(2 * rest).to_be_bytes());
        key
    };
    check((0..65_536).map(|n| key(7, n)).collect());
    check((0..65_536).map(|n| key(u64::MAX, n)).collect());
    check((0..65_536u64).map(|n| key(n.pow(4), 0)).collect());
    check((0..65_536u64).map(|n| key(if n < 60_000 { n } else { n << 47 }, 0)).collect());
    check(vec![key(5, 5)]);
}

/// Every byte is read: whichever is flipped, its run is named and no other. Broken to see it fail: the header alone is read.
#[test]
fn inspecting_reads_every_byte_and_changes_nothing() {
    let log = Log::of(1_500, with_repeats);
    let dir = MemoryDir::new();
    drop(log.filled(Arc::new(dir.clone())));
    let (runs, unfinished) = inspect(&dir, ORIGIN).unwrap();
    assert!(runs.len() >= 2 && runs.iter().all(|run| run.root.is_ok()) && !unfinished, "{runs:?}");
    assert_eq!(runs[0].entries[0], 0);
    assert!(runs.windows(2).all(|pair| pair[0].entries[1] == pair[1].entries[0]), "{runs:?}");
    let sound = |size| TreeSize::new(size).unwrap();
    assert!(runs[0].is_within(sound(1_500)) && !runs[0].is_within(sound(runs[0].entries[1] - 1)));
    for run in &runs {
        let bytes = dir.content(&run.name).unwrap();
        for (offset, byte) in bytes.iter().enumerate().step_by(97) {
            dir.damage(&run.name, offset, &[byte ^ 4]).unwrap();
            let (found, _) = inspect(&dir, ORIGIN).unwrap();
            let bad: Vec<_> = found.iter().filter(|run| run.root.is_err()).map(|run| &run.name).collect();
            assert_eq!(bad, [&run.name], "byte {offset}");
            dir.damage(&run.name, offset, &[*byte]).unwrap();
        }
        assert_eq!(dir.content(&run.name).unwrap(), bytes);
    }
    let (other, _) = inspect(&dir, Hash::from_bytes([8; 32])).unwrap();
    assert!(other.iter().all(|run| run.root.is_err()));
    dir.create(NEW_NAME).unwrap();
    assert!(inspect(&dir, ORIGIN).unwrap().1);
}
