//! The tile writer: the one thread that writes to the tile store.
//!
//! It gathers tiles into batches that sled likes and makes each durable before it commits. A store that fails keeps
//! its batch waiting: the queue fills, the follower waits, and so does everything that waits for the follower;
//! nothing that is durable in the journal is touched. It does not know entries.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use epigraph_core::TreeSize;

use super::Tree;
use super::edge::Full;
use crate::tile::{MAX_BATCH_TILES, Tile, TileId, TileStore, WIDTH};

/// Complete tiles that may wait for the store, with those in the batch being written: the bound of what the tree
/// holds in memory beside its cache, 32 MiB, and 260,000 entries.
const QUEUE_TILES: usize = 1024;

/// Fewer are left to gather, as sled's batches are best from 256 values on. They are rebuilt should the process end.
const MIN_BATCH_TILES: usize = 128;

/// How long the thread waits for tiles before it looks for repairs, and before it tries a failed batch again.
const PAUSE: Duration = Duration::from_millis(500);

/// The thread's one owner. Dropping it writes what is queued, if the store can, and joins the thread.
pub(crate) struct TileWriter {
    queue: Option<SyncSender<(TileId, Arc<Tile>)>>,
    closing: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl TileWriter {
    /// Writes to a store whose tiles are complete up to `committed`.
    pub(crate) fn spawn(
        tree: Arc<Tree>,
        store: Arc<dyn TileStore>,
        committed: TreeSize,
    ) -> io::Result<TileWriter> {
        let (queue, tiles) = sync_channel(QUEUE_TILES);
        let closing = Arc::new(AtomicBool::new(false));
        let mut worker = Worker { tree, store, committed, closing: closing.clone() };
        let thread = thread::Builder::new().name("tiles".to_owned()).spawn(move || worker.run(&tiles))?;
        Ok(TileWriter { queue: Some(queue), closing, thread: Some(thread) })
    }

    /// Hands complete tiles over, in the order in which they got complete; waits while the queue is full. False if
    /// the thread is gone.
    pub(crate) fn store(&self, tiles: Full) -> bool {
        self.queue.as_ref().is_some_and(|queue| tiles.into_iter().all(|tile| queue.send(tile).is_ok()))
    }
}

impl Drop for TileWriter {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::Relaxed);
        drop(self.queue.take());
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic of the thread was reported by the panic hook; its tiles are rebuilt at the next start.
            let _ = thread.join();
        }
    }
}

struct Worker {
    tree: Arc<Tree>,
    store: Arc<dyn TileStore>,
    committed: TreeSize,
    closing: Arc<AtomicBool>,
}

impl Worker {
    fn run(&mut self, tiles: &Receiver<(TileId, Arc<Tile>)>) {
        let mut batch = Full::new();
        let mut open = true;
        while open {
            match tiles.recv_timeout(PAUSE) {
                Ok(tile) => batch.push(tile),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => open = false,
            }
            batch.extend(tiles.try_iter().take(MAX_BATCH_TILES.saturating_sub(batch.len())));
            let repairs = self.tree.take_repairs();
            if !self.write(&repairs, self.committed) {
                return;
            }
            if batch.len() >= MIN_BATCH_TILES || (!open && !batch.is_empty()) {
                let committed = covered(&batch).max(self.committed);
                if !self.write(&batch, committed) {
                    return;
                }
                self.committed = committed;
                self.tree.settle(&batch);
                batch.clear();
            }
        }
        // A commit hands the mark before it to the kernel. Without this the last one would be lost with a process that ends
        // while others still hold the store, and the next start would build the tree anew.
        let _ = self.store.commit(self.committed);
    }

    /// Tries until the store has the tiles; false if the thread is to end before that.
    fn write(&self, tiles: &Full, committed: TreeSize) -> bool {
        if tiles.is_empty() {
            return true;
        }
        loop {
            // A crash before the commit leaves tiles above the mark: the next start computes them again and stores
            // them over themselves.
            let written = tiles
                .chunks(MAX_BATCH_TILES)
                .try_for_each(|batch| self.store.put(batch))
                .and_then(|()| self.store.commit(committed));
            if written.is_ok() {
                return true;
            }
            self.tree.write_failed();
            if self.closing.load(Ordering::Relaxed) {
                return false;
            }
            thread::park_timeout(PAUSE);
            // If it does not recover, the next attempt to write says so again.
            let _ = self.store.recover();
        }
    }
}

/// The size up to which a batch completes the store: a tile of level 0 comes after the tiles above it.
fn covered(batch: &Full) -> TreeSize {
    let last = batch.iter().rev().find(|(id, _)| id.level == 0);
    last.and_then(|(id, _)| TreeSize::new((id.index + 1) * WIDTH as u64)).unwrap_or_default()
}
