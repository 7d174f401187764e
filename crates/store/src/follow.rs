//! The follower that builds the tree: it re-reads each frame of the journal, hashes its entries again and must
//! reach the root that the frame carries. Only then is the batch in the tree, and only a head of the tree is
//! offered for signature.
//!
//! So the sequencer's hashing is checked by a second reading of what is on the disk, and a bit that flipped in
//! memory is found before it is signed. A start is the same code: the follower of an empty tree catches up. It
//! does not know what is published or signed.

use std::ops::ControlFlow;
use std::sync::Arc;

use epigraph_core::hash::leaf_hashes;
use epigraph_core::tree::LogFull;
use epigraph_core::{Hash, TreeHead, TreeSize};
use thiserror::Error;

use crate::file::Dir;
use crate::journal::{JournalError, OwnedFrame, Reader};
use crate::tree::{Edge, Full, TileWriter, Tree};

/// Why the tree cannot follow the journal. Nothing of the frame in question is in the tree, and nothing beyond it
/// may be signed.
#[derive(Debug, Error)]
pub enum FollowError {
    /// The journal could not be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The entries do not lead to the frame's root.
    #[error(
        "the batch that starts at index {first} is recorded with size {} and root {}, but its entries give size {} \
         and root {}; nothing from this index on may be signed. Compare the journal with a copy or a mirror",
        recorded.size, recorded.root, computed.size, computed.root
    )]
    WrongRoot {
        /// Index of the batch's first entry.
        first: TreeSize,
        /// What the entries lead to.
        computed: TreeHead,
        /// What the frame says.
        recorded: TreeHead,
    },
    /// The frame starts from another head than the tree's.
    #[error(
        "the next batch starts from size {} with root {}, but the tree has size {} with root {}; start again, and \
         the tree is rebuilt from the journal", frame.size, frame.root, tree.size, tree.root
    )]
    DoesNotFollow {
        /// The tree's head.
        tree: TreeHead,
        /// The head that the frame starts from.
        frame: TreeHead,
    },
    /// The journal has less than was said to be durable.
    #[error("{durable} entries are said to be durable, but the journal's frames lead to {reached} only")]
    Short {
        /// What was said.
        durable: TreeSize,
        /// How far the frames lead.
        reached: TreeSize,
    },
    /// The tile writer's thread has ended.
    #[error(
        "the thread that stores the tree has ended; start again, and the tree is rebuilt from the journal"
    )]
    NoWriter,
    /// The tree cannot grow.
    #[error(transparent)]
    Full(#[from] LogFull),
}

/// Feeds one tree from one journal; the tree's only writer. Dropping it stores what is complete.
pub struct Follower {
    reader: Reader,
    tree: Arc<Tree>,
    /// The tree's edge, ahead of it while a frame is being hashed.
    edge: Edge,
    writer: TileWriter,
}

impl Follower {
    /// Goes on where the tree ends. `dir` and `origin_hash` are the journal's.
    pub(crate) fn new(dir: Arc<dyn Dir>, origin_hash: Hash, tree: Arc<Tree>, writer: TileWriter) -> Follower {
        let edge = tree.edge();
        let reader = Reader::starting_at(dir, origin_hash, edge.size());
        Follower { reader, tree, edge, writer }
    }

    /// The size the tree has.
    pub fn size(&self) -> TreeSize {
        self.edge.size()
    }

    /// Brings the tree to `durable` entries, which must be where a frame ends, and returns its head. `progress`
    /// hears the head after each frame, and may stop there. Waits while too many tiles wait for the store. After an error the tree
    /// stands at the last frame that was right.
    pub fn catch_up(
        &mut self,
        durable: TreeSize,
        progress: &mut dyn FnMut(TreeHead) -> ControlFlow<()>,
    ) -> Result<TreeHead, FollowError> {
        while let Some(frame) = self.reader.next_frame(durable)? {
            let applied = self.apply(&frame);
            if applied.is_err() {
                self.edge = self.tree.edge();
            }
            let head = applied?;
            if progress(head).is_break() {
                return Ok(head);
            }
        }
        let head = self.edge.head();
        if head.size < durable {
            return Err(FollowError::Short { durable, reached: head.size });
        }
        Ok(head)
    }

    fn apply(&mut self, frame: &OwnedFrame) -> Result<TreeHead, FollowError> {
        let (tree, before) = (self.edge.head(), frame.before());
        // A stored tree ends with a tile, which may be within a frame. Then the root after it shows that both fit.
        let Some(skip) =
            tree.size.get().checked_sub(before.size.get()).filter(|_| tree.size < frame.after().size)
        else {
            return Err(FollowError::DoesNotFollow { tree, frame: before });
        };
        if skip == 0 && before != tree {
            return Err(FollowError::DoesNotFollow { tree, frame: before });
        }
        let mut full = Full::new();
        for leaf in leaf_hashes(frame.entries().skip(usize::try_from(skip).unwrap_or(usize::MAX))) {
            self.edge.push(leaf, &mut full)?;
        }
        let (computed, recorded) = (self.edge.head(), frame.after());
        if computed != recorded {
            return Err(FollowError::WrongRoot { first: tree.size, computed, recorded });
        }
        self.tree.advance(&self.edge, &full);
        if self.writer.store(full) { Ok(computed) } else { Err(FollowError::NoWriter) }
    }
}

#[cfg(test)]
mod tests {
    use epigraph_core::hash::leaf_hash;
    use epigraph_core::{Entropy, Frontier, UnixMillis, bundle};

    use super::*;
    use crate::file::memory::MemoryDir;
    use crate::journal::{Batch, Config, Journal};
    use crate::tile::MemoryTiles;
    use crate::tree::{attach, open_in_memory};

    const ORIGIN: Hash = Hash::from_bytes([9; 32]);

    /// Fills with the same byte, another one each time.
    struct Counting(std::sync::atomic::AtomicU8);

    impl Entropy for Counting {
        fn fill(&self, bytes: &mut [u8]) {
            bytes.fill(self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        }
    }

    struct Log {
        dir: Arc<MemoryDir>,
        journal: Journal,
        frontier: Frontier,
    }

    fn go_on(_: TreeHead) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    /// A journal with segments so small that a few batches fill one.
    fn log() -> Log {
        let dir = Arc::new(MemoryDir::new());
        let config = Config::new(32 << 10, 8 << 10).unwrap();
        let entropy = Arc::new(Counting(1.into()));
        let journal = Journal::create(dir.clone(), ORIGIN, config, UnixMillis(1), entropy).unwrap();
        Log { dir, journal, frontier: Frontier::new() }
    }

    impl Log {
        /// Appends a batch of entries, whose leaf hashes the sequencer takes for those of `hashed`.
        fn append(&mut self, entries: &[&[u8]], hashed: &[&[u8]]) {
            let before = self.frontier.head();
            hashed.iter().for_each(|entry| self.frontier.push(leaf_hash(entry)).unwrap());
            let mut bytes = Vec::new();
            entries.iter().for_each(|entry| bundle::push(&mut bytes, entry).unwrap());
            let after = self.frontier.clone();
            self.journal
                .append(&Batch { before, after, time: UnixMillis(2), marks: Vec::new(), entries: bytes })
                .unwrap();
        }

        fn follower(&self) -> (Arc<Tree>, Follower) {
            open_in_memory(self.dir.clone(), ORIGIN).unwrap()
        }
    }

    #[test]
    fn the_tree_reaches_each_durable_head_live_and_at_a_start() {
        let mut log = log();
        let (tree, mut live) = log.follower();
        assert_eq!(live.catch_up(TreeSize::ZERO, &mut go_on).unwrap(), TreeHead::EMPTY);
        for n in 0..40u8 {
            let entries: [&[u8]; 3] = [&[n; 900], b"", &[n; 100]];
            log.append(&entries, &entries);
            let head = log.frontier.head();
            assert_eq!(live.catch_up(head.size, &mut go_on).unwrap(), head);
            assert_eq!(tree.head(), head);
        }
        let (restarted, mut follower) = log.follower();
        let mut heard = Vec::new();
        follower
            .catch_up(log.frontier.size(), &mut |head| {
                heard.push(head.size.get());
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(heard, (1..=40).map(|n| n * 3).collect::<Vec<_>>());
        assert_eq!(restarted.frontier(), log.frontier);
        // One that was stopped goes on where it was.
        let (_, mut stopped) = log.follower();
        let head = stopped.catch_up(log.frontier.size(), &mut |_| ControlFlow::Break(())).unwrap();
        assert_eq!(head.size.get(), 3);
        assert_eq!(stopped.catch_up(log.frontier.size(), &mut go_on).unwrap(), log.frontier.head());
    }

    #[test]
    fn a_wrong_root_is_named_and_never_enters_the_tree() {
        let mut log = log();
        log.append(&[b"a", b"b"], &[b"a", b"b"]);
        let right = log.frontier.head();
        log.append(&[b"c", b"d"], &[b"c", b"e"]);
        let (tree, mut follower) = log.follower();
        match follower.catch_up(log.frontier.size(), &mut go_on) {
            Err(FollowError::WrongRoot { first, computed, recorded }) => {
                assert_eq!((first, recorded), (right.size, log.frontier.head()));
                assert_ne!(computed.root, recorded.root);
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(tree.head(), right);
        assert!(follower.catch_up(log.frontier.size(), &mut go_on).is_err(), "it does not skip the frame");
        assert_eq!(tree.head(), right);
    }

    #[test]
    fn a_size_that_the_frames_do_not_reach_is_refused() {
        let mut log = log();
        log.append(&[b"a", b"b"], &[b"a", b"b"]);
        log.append(&[b"c", b"d"], &[b"c", b"d"]);
        for (durable, reached) in [(3, 2), (5, 4)] {
            let (_, mut follower) = log.follower();
            let result = follower.catch_up(TreeSize::new(durable).unwrap(), &mut go_on);
            match result {
                Err(FollowError::Short { reached: got, .. }) => assert_eq!(got.get(), reached),
                Err(FollowError::Journal(_)) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_frame_of_another_history_does_not_follow() {
        let mut log = log();
        log.append(&[b"a"], &[b"a"]);
        log.append(&[b"b"], &[b"b"]);
        let mut edge = Edge::default();
        edge.push(leaf_hash(b"other"), &mut Full::new()).unwrap();
        let tree = Arc::new(Tree::new(log.dir.clone(), ORIGIN));
        let store = Arc::new(MemoryTiles::default());
        let mut follower = attach(&tree, store, edge, log.dir.clone(), ORIGIN).unwrap();
        let result = follower.catch_up(log.frontier.size(), &mut go_on);
        assert!(matches!(result, Err(FollowError::DoesNotFollow { .. })), "{result:?}");
    }
}
