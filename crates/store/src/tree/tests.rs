//! The stored tree against the tree in memory, and against damage of every kind.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};

use epigraph_core::proof::{prove_consistency, prove_inclusion};
use epigraph_core::{Entropy, UnixMillis, bundle};

use super::*;
use crate::file::memory::MemoryDir;
use crate::follow::Follower;
use crate::journal::{Batch, Config, Journal};
use crate::scrub::{ScrubError, Scrubber};
use crate::sled::SledTiles;
use crate::tile::{MemoryTiles, Row};

const ORIGIN: Hash = Hash::from_bytes([9; 32]);
const TILE: u64 = WIDTH as u64;

struct Counting(AtomicU8);

impl Entropy for Counting {
    fn fill(&self, bytes: &mut [u8]) {
        bytes.fill(self.0.fetch_add(1, Ordering::Relaxed));
    }
}

fn entry(index: u64) -> [u8; 8] {
    index.to_be_bytes()
}

/// A journal of so many entries, in batches of this many and segments of 256 KiB, with its head and the tree in
/// memory to judge by.
struct Log {
    dir: Arc<MemoryDir>,
    journal: Journal,
    frontier: Frontier,
    oracle: MemoryTree,
}

impl Log {
    fn new() -> Log {
        let dir = Arc::new(MemoryDir::new());
        let config = Config::new(256 << 10, 128 << 10).unwrap();
        let entropy = Arc::new(Counting(1.into()));
        let journal = Journal::create(dir.clone(), ORIGIN, config, UnixMillis(1), entropy).unwrap();
        Log { dir, journal, frontier: Frontier::new(), oracle: MemoryTree::new() }
    }

    fn of(entries: u64, batch: u64) -> Log {
        let mut log = Log::new();
        log.grow(entries, batch);
        log
    }

    fn grow(&mut self, entries: u64, batch: u64) {
        let end = self.frontier.size().get() + entries;
        while self.frontier.size().get() < end {
            let before = self.frontier.head();
            let mut bytes = Vec::new();
            let first = before.size.get();
            let indexes = first..end.min(first + batch);
            for index in indexes.clone() {
                bundle::push(&mut bytes, &entry(index)).unwrap();
                self.frontier.push(leaf_hash(&entry(index))).unwrap();
            }
            let staged = self.oracle.stage(indexes.map(|index| leaf_hash(&entry(index)))).unwrap();
            self.oracle.apply(staged).unwrap();
            let after = self.frontier.clone();
            self.journal
                .append(&Batch { before, after, time: UnixMillis(2), marks: Vec::new(), entries: bytes })
                .unwrap();
        }
    }

    fn head(&self) -> TreeHead {
        self.frontier.head()
    }

    /// A tree over this store, brought up to the journal.
    fn tree(&self, store: Arc<dyn TileStore>) -> (Arc<Tree>, Follower) {
        let tree = Arc::new(Tree::with_cache(self.dir.clone(), ORIGIN, 0));
        let edge = Edge::from_store(&*store, store.committed().unwrap()).unwrap();
        let mut follower = attach(&tree, store, edge, self.dir.clone(), ORIGIN).unwrap();
        assert_eq!(follower.catch_up(self.head().size, &mut go_on).unwrap(), self.head());
        (tree, follower)
    }

    /// A store with every complete tile.
    fn stored(&self) -> Arc<MemoryTiles> {
        let store = Arc::new(MemoryTiles::default());
        drop(self.tree(store.clone()));
        assert_eq!(store.committed().unwrap().get(), self.head().size.get() / TILE * TILE);
        store
    }

    /// Opens the tree in a directory as a start does, without a child process.
    fn open(&self, directory: &Path) -> (Arc<Tree>, Follower, Vec<Notice>) {
        let preflight = |dir: &Path| preflight(dir).map(drop).map_err(|error| error.to_string());
        self.open_after(directory, Box::new(preflight))
    }

    fn open_after(&self, directory: &Path, preflight: Preflight) -> (Arc<Tree>, Follower, Vec<Notice>) {
        let tree = Arc::new(Tree::with_cache(self.dir.clone(), ORIGIN, 0));
        let place = Place { directory: directory.to_owned(), preflight };
        let mut notices = Vec::new();
        let follower =
            open(&tree, &place, self.dir.clone(), ORIGIN, self.head(), &mut |notice| notices.push(notice));
        (tree, follower.unwrap(), notices)
    }

    fn check_node(&self, tree: &Tree, height: u32, index: u64) {
        assert_eq!(
            tree.node(height, index).ok(),
            self.oracle.node(height, index),
            "height {height}, index {index}"
        );
    }

    fn check_proofs(&self, tree: &Tree, index: u64, size: u64) {
        let (at, old) = (TreeSize::new(size).unwrap(), TreeSize::new(index).unwrap());
        let index = LeafIndex::new(index).unwrap();
        let proofs = (prove_inclusion(tree, index, at).unwrap(), prove_consistency(tree, old, at).unwrap());
        let wanted = (
            prove_inclusion(&self.oracle, index, at).unwrap(),
            prove_consistency(&self.oracle, old, at).unwrap(),
        );
        assert_eq!(proofs, wanted, "index {index}, size {at}");
    }

    /// Every hash that a proof can need around each tile's ends, and so every tile.
    fn check_all_tiles(&self, tree: &Tree) {
        let size = self.head().size.get();
        for height in 0..=size.ilog2() {
            for index in (0..size >> height).filter(|index| matches!(index % TILE, 0 | 1 | 130 | 255)) {
                self.check_node(tree, height, index);
            }
        }
    }
}

fn go_on(_: TreeHead) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn samples(count: u64, below: u64) -> impl Iterator<Item = u64> {
    // SplitMix64's increment is odd, so multiples of it are spread over all residues.
    (1..=count).map(move |n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % below)
}

#[test]
fn every_proof_up_to_600_entries_is_that_of_the_tree_in_memory() {
    let log = Log::of(600, 37);
    // From tiles on their way, and from stored ones.
    let (live, _follower) = log.tree(Arc::new(MemoryTiles::default()));
    let (stored, _other) = log.tree(log.stored());
    for size in 1..=600 {
        (0..size).for_each(|index| log.check_proofs(&stored, index, size));
        log.check_proofs(&live, size / 2, size);
    }
    assert_eq!(stored.counters(), Counters::default());
}

#[test]
fn sampled_proofs_of_100_000_entries_are_those_of_the_tree_in_memory() {
    let log = Log::of(100_000, 1000);
    let store = log.stored();
    let (tree, _follower) = log.tree(store);
    for size in samples(300, 100_000).map(|size| size + 1) {
        samples(5, size).for_each(|index| log.check_proofs(&tree, index, size));
    }
    log.check_all_tiles(&tree);
    assert_eq!(tree.counters(), Counters::default());
}

#[test]
fn a_tree_that_is_behind_says_so_and_warm_hashes_need_no_store() {
    let log = Log::of(2000, 100);
    let tree = Tree::new(log.dir.clone(), ORIGIN);
    assert!(matches!(tree.node(0, 0), Err(TreeError::NotYet { size: TreeSize::ZERO, .. })));
    assert_eq!(tree.lag(log.head().size), 2000);
    let (tree, _follower) = log.tree(log.stored());
    assert!(matches!(tree.node(0, 2000), Err(TreeError::NotYet { .. })));
    assert!(matches!(tree.node(63, 0), Err(TreeError::NotYet { .. })));
    assert!(matches!(tree.node(64, u64::MAX), Err(TreeError::NotYet { .. })));
    assert!(matches!(tree.warm().node(0, 0), Err(WarmError::Cold(TileId { level: 0, index: 0 }))));
    tree.node(0, 0).unwrap();
    assert_eq!(tree.warm().node(0, 0).unwrap(), leaf_hash(&entry(0)));
    assert_eq!(tree.warm().node(0, 1999).unwrap(), leaf_hash(&entry(1999)));
}

/// B4: a flip in a stored inner node. Fails if `Tree::stored` does not compare roots.
#[test]
fn missing_and_wrong_tiles_are_rebuilt_and_stored_again() {
    let log = Log::of(70_000, 1000);
    let store = log.stored();
    let truth = |id| store.get(id).unwrap().unwrap();
    let ids = [TileId { level: 0, index: 3 }, TileId { level: 1, index: 0 }, TileId { level: 0, index: 272 }];
    let rows: Vec<Row> = ids.iter().map(|id| truth(*id)).collect();
    // Opened before: two of these are what the edge is made of, and then a start would have moved all of it aside.
    let (tree, follower) = log.tree(store.clone());
    for (id, row) in ids.iter().zip(&rows) {
        let mut wrong = *row;
        wrong[7] = Hash::EMPTY_ROOT;
        store.put(&[(*id, Arc::new(Tile::expand(wrong)))]).unwrap();
    }
    log.check_all_tiles(&tree);
    // One that left the small cache before it was stored again is met twice.
    let Counters { wrong, rebuilt, missing, .. } = tree.counters();
    assert!(wrong >= 3 && wrong == rebuilt && missing == 0, "{wrong} wrong, {rebuilt} rebuilt");
    drop(follower);
    assert!(ids.iter().zip(&rows).all(|(id, row)| store.get(*id).unwrap() == Some(*row)));
}

/// The tile above is lost and a child of it too: only the entries are left.
#[test]
fn an_upper_tile_without_its_children_is_rebuilt_from_entries() {
    let log = Log::of(66_000, 1000);
    let whole = log.stored();
    let store = Arc::new(MemoryTiles::default());
    let keep = (1..257).map(|index| TileId { level: 0, index });
    let tiles: Vec<_> =
        keep.map(|id| (id, Arc::new(Tile::expand(whole.get(id).unwrap().unwrap())))).collect();
    store.put(&tiles).unwrap();
    let edge = Edge::from_store(&*whole, whole.committed().unwrap()).unwrap();
    let tree = Arc::new(Tree::new(log.dir.clone(), ORIGIN));
    let _follower = attach(&tree, store, edge, log.dir.clone(), ORIGIN).unwrap();
    log.check_node(&tree, 0, 5);
    log.check_node(&tree, 9, 3);
    assert_eq!((tree.counters().wrong, tree.counters().rebuilt), (0, 2));
}

/// B5: a flip in an entry. Fails if leaf hashes are not compared, or if what follows the wrong one is given out.
#[test]
fn entries_that_do_not_match_their_leaf_are_never_given_out() {
    let log = Log::of(3000, 100);
    let store = log.stored();
    let (tree, _follower) = log.tree(store.clone());
    let read = |tree: &Tree, first, most, most_bytes| {
        let mut entries: Vec<Vec<u8>> = Vec::new();
        let mut reading = tree.read(LeafIndex::new(first).unwrap(), TreeSize::new(3000).unwrap());
        let full = reading.take(most, most_bytes, |entry| entries.push(entry.to_vec()));
        (entries, full, reading.next_index().get())
    };
    let (entries, full, next) = read(&tree, 250, usize::MAX, usize::MAX);
    assert!(entries.into_iter().eq((250..3000).map(entry)) && !full.unwrap() && next == 3000);
    // Room for so much and not for a byte or an entry more.
    let bytes = (250..400).map(|n| entry(n).len()).sum::<usize>();
    for (most, most_bytes, expected) in
        [(3000, bytes, 150), (3000, bytes - 1, 149), (150, bytes, 150), (149, bytes, 149), (0, 0, 0)]
    {
        let (entries, full, next) = read(&tree, 250, most, most_bytes);
        assert!(entries.into_iter().eq((250..next).map(entry)) && full.unwrap());
        assert_eq!(next, 250 + expected);
    }
    // In steps.
    let mut reading = tree.read(LeafIndex::new(0).unwrap(), TreeSize::new(3000).unwrap());
    let mut entries = Vec::new();
    while reading.take(77, 5000, |entry| entries.push(entry.to_vec())).unwrap() {}
    assert!(entries.into_iter().eq((0..3000).map(entry)));
    // A store that was spoilt together with what is above it would be found by the edge; here one leaf is another.
    let mut edge = Edge::default();
    let mut full = Full::new();
    for index in 0..3000 {
        let bytes = if index == 700 { entry(1) } else { entry(index) };
        edge.push(leaf_hash(&bytes), &mut full).unwrap();
    }
    let store = Arc::new(MemoryTiles::default());
    store.put(&full).unwrap();
    let tree = Arc::new(Tree::new(log.dir.clone(), ORIGIN));
    let _follower = attach(&tree, store, edge, log.dir.clone(), ORIGIN).unwrap();
    let (entries, damaged, _) = read(&tree, 690, usize::MAX, usize::MAX);
    assert!(matches!(damaged, Err(EntryError::DataLoss { index, .. }) if index.get() == 700));
    assert!(entries.into_iter().eq((690..700).map(entry)));
}

#[test]
fn a_tile_whose_entries_are_lost_is_data_loss() {
    let log = Log::of(3000, 100);
    let mut edge = Edge::default();
    for index in 0..3000 {
        edge.push(leaf_hash(&entry(index ^ 1)), &mut Full::new()).unwrap();
    }
    let tree = Arc::new(Tree::new(log.dir.clone(), ORIGIN));
    let _other = attach(&tree, Arc::new(MemoryTiles::default()), edge, log.dir.clone(), ORIGIN).unwrap();
    let result = tree.node(0, 0);
    assert!(
        matches!(result, Err(TreeError::DataLoss { tile: TileId { level: 0, index: 0 }, .. })),
        "{result:?}"
    );
}

#[test]
fn tiles_on_their_way_and_expanded_tiles_stay_within_their_bounds() {
    let log = Log::of(100_000, 1000);
    let tree = Arc::new(Tree::with_cache(log.dir.clone(), ORIGIN, 64 * Tile::BYTES));
    let store = log.stored();
    let edge = Edge::from_store(&*store, store.committed().unwrap()).unwrap();
    let _follower = attach(&tree, store, edge, log.dir.clone(), ORIGIN).unwrap();
    for index in samples(2000, 99_000) {
        log.check_node(&tree, 0, index);
        assert!(tree.tile_bytes() <= 64 * Tile::BYTES);
    }
}

/// A store that refuses to write until it is told otherwise: a full volume (F1).
#[derive(Default)]
struct FullVolume(MemoryTiles, std::sync::atomic::AtomicBool);

impl TileStore for FullVolume {
    fn put(&self, tiles: &[(TileId, Arc<Tile>)]) -> Result<(), crate::tile::TileError> {
        if !self.1.load(Ordering::Relaxed) {
            return Err(crate::tile::TileError::Failed { what: "write tiles", why: "no space".into() });
        }
        self.0.put(tiles)
    }
    fn get(&self, id: TileId) -> Result<Option<Row>, crate::tile::TileError> {
        self.0.get(id)
    }
    fn commit(&self, size: TreeSize) -> Result<(), crate::tile::TileError> {
        self.0.commit(size)
    }
    fn committed(&self) -> Result<TreeSize, crate::tile::TileError> {
        self.0.committed()
    }
    fn recover(&self) -> Result<(), crate::tile::TileError> {
        Ok(())
    }
    fn bytes(&self) -> Result<u64, crate::tile::TileError> {
        self.0.bytes()
    }
}

#[test]
fn while_the_store_is_full_the_tree_is_readable_and_afterwards_everything_is_stored() {
    let log = Log::of(100_000, 1000);
    let store = Arc::new(FullVolume::default());
    let (tree, follower) = log.tree(store.clone());
    log.check_all_tiles(&tree);
    store.1.store(true, Ordering::Relaxed);
    drop(follower);
    assert_eq!(store.committed().unwrap().get(), 100_000 / TILE * TILE);
    log.check_all_tiles(&tree);
}

#[test]
fn a_full_store_holds_the_follower_back_within_its_bound() {
    let log = Log::of(600_000, 8000);
    let store = Arc::new(FullVolume::default());
    let tree = Arc::new(Tree::with_cache(log.dir.clone(), ORIGIN, 0));
    let mut follower = attach(&tree, store.clone(), Edge::default(), log.dir.clone(), ORIGIN).unwrap();
    std::thread::scope(|scope| {
        let size = log.head().size;
        let following = scope.spawn(move || follower.catch_up(size, &mut go_on).unwrap());
        // The queue, the batch that is tried and one frame.
        let bound = (2048 + 8000 / TILE + 2) as usize;
        while tree.counters().write_failures < 3 {
            assert!(tree.tile_bytes() <= (bound + 16) * Tile::BYTES);
            std::thread::yield_now();
        }
        assert!(tree.lag(size) > 0, "the follower waits");
        store.1.store(true, Ordering::Relaxed);
        assert_eq!(following.join().unwrap(), log.head());
    });
}

/// F1 on a real full volume: sled fails for good until it is opened again. Never ends if `SledTiles::recover` does nothing.
#[test]
fn on_a_full_volume_the_tree_is_readable_and_with_space_everything_is_stored() {
    let home = tempfile::tempdir().unwrap();
    let mount = |options: &str| {
        let arguments = ["-t", "tmpfs", "-o", options, "tmpfs"];
        let status = std::process::Command::new("mount").args(arguments).arg(home.path()).status();
        status.is_ok_and(|status| status.success())
    };
    if !mount("size=8m") {
        println!("skipped: mounting a small volume takes root");
        return;
    }
    let log = Log::of(400_000, 8000);
    let store = Arc::new(SledTiles::open(&home.path().join("tree")).unwrap());
    let tree = Arc::new(Tree::with_cache(log.dir.clone(), ORIGIN, 0));
    let mut follower = attach(&tree, store.clone(), Edge::default(), log.dir.clone(), ORIGIN).unwrap();
    let size = log.head().size;
    std::thread::scope(|scope| {
        // The follower ends with its thread, and so stores what is complete.
        let following = scope.spawn(move || follower.catch_up(size, &mut go_on).unwrap());
        while tree.counters().write_failures == 0 {
            std::thread::yield_now();
        }
        let reached = tree.size().get();
        samples(50, reached).for_each(|index| log.check_node(&tree, 0, index));
        assert!(mount("remount,size=256m"));
        assert_eq!(following.join().unwrap(), log.head());
    });
    log.check_all_tiles(&tree);
    assert_eq!(store.committed().unwrap().get(), size.get() / TILE * TILE);
    drop((tree, store));
    assert!(std::process::Command::new("umount").arg(home.path()).status().unwrap().success());
}

#[test]
fn a_start_goes_on_where_the_stored_tree_ends() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("tree");
    let mut log = Log::of(70_000, 999);
    let (tree, mut follower, notices) = log.open(&directory);
    assert_eq!(notices, [Notice::Stored(TreeSize::ZERO)]);
    assert_eq!(follower.catch_up(log.head().size, &mut go_on).unwrap(), log.head());
    log.check_all_tiles(&tree);
    drop((tree, follower));
    for (more, stored) in [(1000, 70_000), (560, 71_000), (0, 71_560)] {
        log.grow(more, 77);
        let (tree, mut follower, notices) = log.open(&directory);
        assert_eq!(notices, [Notice::Stored(TreeSize::new(stored / TILE * TILE).unwrap())]);
        assert_eq!(follower.catch_up(log.head().size, &mut go_on).unwrap(), log.head());
        log.check_all_tiles(&tree);
        assert_eq!(tree.counters(), Counters::default());
    }
}

/// A whole number of tiles, so that no frame follows the stored ones and the journal's head alone must do.
#[test]
fn a_stored_tree_that_the_journal_does_not_confirm_is_moved_aside_and_rebuilt() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("tree");
    let build = |log: &Log| {
        let (_tree, mut follower, notices) = log.open(&directory);
        assert_eq!(follower.catch_up(log.head().size, &mut go_on).unwrap(), log.head());
        notices
    };
    let moved = |notices: &[Notice]| match notices {
        [Notice::MovedAside { to, .. }, Notice::Stored(TreeSize::ZERO)] => to.clone(),
        other => panic!("{other:?}"),
    };
    build(&Log::of(80 * TILE, 1000));
    // The journal of yesterday: shorter than the tree.
    let first = moved(&build(&Log::of(60 * TILE, 1000)));
    assert!(first.ends_with("tree.suspect-1"));
    // The same size, another history.
    let mut other = Log::new();
    other.frontier.push(leaf_hash(b"another")).unwrap();
    let mut bytes = Vec::new();
    bundle::push(&mut bytes, b"another").unwrap();
    let batch = Batch {
        before: TreeHead::EMPTY,
        after: other.frontier.clone(),
        time: UnixMillis(1),
        marks: Vec::new(),
        entries: bytes,
    };
    other.journal.append(&batch).unwrap();
    let staged = other.oracle.stage([leaf_hash(b"another")]).unwrap();
    other.oracle.apply(staged).unwrap();
    other.grow(60 * TILE - 1, 1000);
    moved(&build(&other));
    // And one that goes on behind the stored tree.
    let mut longer = Log::of(60 * TILE, 1000);
    longer.grow(3, 1);
    let third = moved(&build(&longer));
    assert!(third.ends_with("tree.suspect-3"));
    let mut names: Vec<_> =
        std::fs::read_dir(home.path()).unwrap().map(|item| item.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["tree", "tree.suspect-2", "tree.suspect-3"]);
}

/// C10, B3, B6 and a preflight that fails or never gets to say anything.
#[test]
fn left_overs_of_sled_are_removed_or_moved_aside() {
    let log = Log::of(100 * TILE + 5, 1000);
    let check = |spoil: &dyn Fn(&Path), preflight_fails: bool, kept: Option<bool>| {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("tree");
        let (_, mut follower, _) = log.open(&directory);
        follower.catch_up(log.head().size, &mut go_on).unwrap();
        drop(follower);
        spoil(&directory);
        let (tree, mut follower, notices) = if preflight_fails {
            log.open_after(&directory, Box::new(|_| Err("the child panicked".into())))
        } else {
            log.open(&directory)
        };
        assert!(kept.is_none_or(|kept| notices.len() == if kept { 1 } else { 2 }), "{notices:?}");
        assert_eq!(follower.catch_up(log.head().size, &mut go_on).unwrap(), log.head());
        log.check_all_tiles(&tree);
    };
    check(&|_| {}, false, Some(true));
    check(&|_| {}, true, Some(false));
    check(
        &|dir| std::fs::write(dir.join("snap.0000000000100000.generating"), b"half").unwrap(),
        false,
        Some(true),
    );
    check(&|dir| std::fs::write(dir.join("blobs").join("1"), b"").unwrap(), false, Some(false));
    check(
        &|dir| {
            let db = std::fs::OpenOptions::new().write(true).open(dir.join("db")).unwrap();
            db.set_len(db.metadata().unwrap().len() / 2).unwrap();
        },
        false,
        // Where it is cut decides whether sled fails or forgets.
        None,
    );
    check(&|dir| std::fs::remove_dir_all(dir).unwrap(), false, Some(true));
}

/// B1, B2, B4, P3: one flipped bit anywhere in sled's files. Whatever sled makes of it, every hash is right and the
/// tree gets to the journal's head. Fails (wrong nodes) if `Tree::stored` does not compare roots and `confirm` is
/// left out.
#[test]
fn a_flipped_bit_in_the_stored_tree_never_gives_a_wrong_hash() {
    let log = Log::of(40 * TILE + 5, 1000);
    let home = tempfile::tempdir().unwrap();
    let sound = home.path().join("sound");
    let (_, mut follower, _) = log.open(&sound);
    follower.catch_up(log.head().size, &mut go_on).unwrap();
    drop(follower);
    let files = ["db", "conf"];
    let sizes = files.map(|file| std::fs::metadata(sound.join(file)).unwrap().len());
    let (mut kept, mut moved, mut repaired) = (0, 0, 0);
    for sample in 0..FLIPS {
        let trial = home.path().join("trial");
        let directory = trial.join("tree");
        std::fs::create_dir_all(directory.join("blobs")).unwrap();
        for item in std::fs::read_dir(&sound).unwrap().map(|item| item.unwrap()) {
            if item.file_type().unwrap().is_file() {
                std::fs::copy(item.path(), directory.join(item.file_name())).unwrap();
            }
        }
        let file = usize::from(sample % 20 == 0);
        let at = samples(sample + 1, sizes[file]).last().unwrap();
        let path = directory.join(files[file]);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[at as usize] ^= 1 << (sample % 8);
        std::fs::write(&path, bytes).unwrap();
        let (tree, mut follower, notices) = log.open(&directory);
        assert_eq!(follower.catch_up(log.head().size, &mut go_on).unwrap(), log.head(), "byte {at}");
        log.check_all_tiles(&tree);
        if notices.len() == 2 {
            moved += 1
        } else {
            kept += 1
        }
        repaired += u64::from(tree.counters() != Counters::default());
        drop((tree, follower));
        std::fs::remove_dir_all(&trial).unwrap();
    }
    println!("{FLIPS} flips: {kept} opened, of them {repaired} with tiles repaired; {moved} moved aside");
    assert!(kept > 0 && moved > 0, "the flips missed what they are for");
}

/// Enough to meet every outcome that RELIABILITY section 6 lists.
const FLIPS: u64 = 120;

#[test]
fn the_scrubber_goes_round_mends_tiles_and_names_damage_of_the_journal() {
    let log = Log::of(30_000, 500);
    let store = log.stored();
    let (tree, follower) = log.tree(store.clone());
    let mut scrubber = Scrubber::new(log.dir.clone(), ORIGIN, tree.clone());
    let pass = |scrubber: &mut Scrubber| {
        let before = scrubber.step(1).unwrap();
        let mut steps = 1;
        loop {
            let now = scrubber.step(20_000).unwrap();
            steps += 1;
            if now.passes > before.passes {
                assert_eq!((now.last_full_pass, now.checked), (Some(log.head().size), TreeSize::ZERO));
                assert!(steps > 20, "a budget is kept");
                return now;
            }
            assert!(now.checked > before.checked);
        }
    };
    assert_eq!(pass(&mut scrubber).repaired, 0);
    let id = TileId { level: 0, index: 9 };
    let right = store.get(id).unwrap();
    store.put(&[(id, Arc::new(Tile::EMPTY))]).unwrap();
    assert_eq!(pass(&mut scrubber).repaired, 1);
    drop(follower);
    assert_eq!(store.get(id).unwrap(), right);
    assert_eq!(pass(&mut scrubber).repaired, 1);
    // A flip that the checksum shows; the next pass meets it again.
    let name = log.dir.list().unwrap().into_iter().find(|name| name.ends_with(".seg")).unwrap();
    let at = log.dir.content(&name).unwrap().windows(8).position(|bytes| bytes == entry(77)).unwrap();
    log.dir.damage(&name, at, &[0xff]).unwrap();
    for _ in 0..2 {
        let damage = scrubber.step(u64::MAX).unwrap_err();
        assert!(matches!(damage, ScrubError::Journal(JournalError::Damaged { .. })), "{damage}");
    }
}

/// Fails if a tile is not compared, or what sled forgot is taken for sound.
#[test]
fn comparing_finds_a_wrong_a_missing_and_a_forgotten_tile() {
    let log = Log::of(3 * TILE + 5, 100);
    let home = tempfile::tempdir().unwrap();
    let stored = log.stored();
    let id = |index| TileId { level: 0, index };
    let tiles = |indexes: &[u64]| -> Full {
        let tile = |index: &u64| Arc::new(Tile::expand(stored.get(id(*index)).unwrap().unwrap()));
        indexes.iter().map(|index| (id(*index), tile(index))).collect()
    };
    let wrong: Full = vec![(id(1), tiles(&[2])[0].1.clone())];
    let check = |name: &str, put: &[Full], committed: u64, expected: Result<u64, &str>| {
        let directory = home.path().join(name);
        let store = SledTiles::open(&directory).unwrap();
        put.iter().for_each(|tiles| store.put(tiles).unwrap());
        store.commit(TreeSize::new(committed * TILE).unwrap()).unwrap();
        drop(store);
        match (compare(&directory, log.dir.clone(), ORIGIN, log.head().size), expected) {
            (Ok(got), Ok(wanted)) => assert_eq!(got, wanted, "{name}"),
            (Err(got), Err(wanted)) => assert!(got.contains(wanted), "{name}: {got}"),
            (got, _) => panic!("{name}: {got:?}"),
        }
    };
    check("sound", &[tiles(&[0, 1, 2])], 3, Ok(3));
    check("wrong", &[tiles(&[0, 1, 2]), wrong], 3, Err("its tile"));
    check("missing", &[tiles(&[0, 2])], 3, Err("its tile"));
    check("forgotten", &[tiles(&[0, 1])], 2, Err("it ends at entry 512 and not at 768"));
    check("ahead", &[tiles(&[0, 1, 2])], 4, Err("it has 1024 entries and the journal 773"));
}
