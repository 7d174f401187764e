//! What the thread that builds the tree is told of the journal's growth, and when: at once if somebody waits for it or much has
//! come together, else after a rest. To wake a thread for a single entry costs about as much as to append it, and with few cores
//! the thread then takes the processor from whoever is just being answered. It does not know frames.

use std::pin::Pin;
use std::sync::mpsc::Sender;
use std::time::Duration;

use epigraph_core::TreeSize;
use tokio::time::{Sleep, sleep};

/// How long the tree's thread is left alone after it was told, at most. Whoever waits for nothing but their disk does not
/// notice it, and what is to be published next is complete long before: intervals are from 10 ms on.
pub(crate) const REST: Duration = Duration::from_millis(5);

/// So many entries are worth waking it for: a tile.
pub(crate) const GATHERED_ENTRIES: u64 = 256;

/// The one who tells. Dropping it ends the tree's thread.
pub(crate) struct Growth {
    tree: Sender<TreeSize>,
    durable: TreeSize,
    told: TreeSize,
    /// Until then it is left alone.
    rest: Option<Pin<Box<Sleep>>>,
}

impl Growth {
    /// For a thread that knows of `durable` entries.
    pub(crate) fn new(tree: Sender<TreeSize>, durable: TreeSize) -> Growth {
        Growth { tree, durable, told: durable, rest: None }
    }

    /// The journal has grown to `durable`. If it is `awaited`, the tree learns that at once.
    pub(crate) fn to(&mut self, durable: TreeSize, awaited: bool) {
        self.durable = durable;
        if awaited || self.rest.is_none() || durable.get().saturating_sub(self.told.get()) >= GATHERED_ENTRIES
        {
            self.tell();
        }
    }

    /// Waits until a rest is over after which there is something to tell; [`Growth::tell`] it. May be dropped and asked anew.
    pub(crate) async fn rested(&mut self) {
        if let Some(rest) = &mut self.rest {
            rest.await;
            self.rest = None;
        }
        if self.told == self.durable {
            std::future::pending().await
        }
    }

    /// Tells what is not told yet.
    pub(crate) fn tell(&mut self) {
        if self.told < self.durable {
            self.told = self.durable;
            self.rest.get_or_insert_with(|| Box::pin(sleep(REST)));
            // If the tree's thread has ended, it says so itself.
            let _ = self.tree.send(self.durable);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use tokio::time::timeout;

    use super::*;

    const MOMENT: Duration = Duration::from_millis(1);

    fn growth() -> (Growth, Receiver<TreeSize>) {
        let (tree, told) = channel();
        (Growth::new(tree, TreeSize::ZERO), told)
    }

    fn told(told: &Receiver<TreeSize>) -> Vec<u64> {
        told.try_iter().map(TreeSize::get).collect()
    }

    fn to(growth: &mut Growth, size: u64, awaited: bool) {
        growth.to(TreeSize::new(size).unwrap(), awaited);
    }

    /// Broken to see it fail: no rest, a word after a rest in which nothing came.
    #[tokio::test(start_paused = true)]
    async fn what_nobody_waits_for_is_told_at_once_and_then_together() {
        let (mut growth, tree) = growth();
        to(&mut growth, 1, false);
        assert_eq!(told(&tree), [1]);
        for rest in 0..3 {
            for size in 2..10 {
                to(&mut growth, 10 * rest + size, false);
            }
            assert!(timeout(MOMENT, growth.rested()).await.is_err());
            assert_eq!(told(&tree), []);
            timeout(REST, growth.rested()).await.unwrap();
            growth.tell();
            assert_eq!(told(&tree), [10 * rest + 9]);
        }
        // Nothing more came: the next is told at once again, and nobody is woken for nothing.
        assert!(timeout(2 * REST, growth.rested()).await.is_err());
        to(&mut growth, 40, false);
        assert_eq!(told(&tree), [40]);
    }

    /// Whoever waits for publication does not wait for a rest. Broken to see it fail: `awaited` not looked at.
    #[tokio::test(start_paused = true)]
    async fn what_is_awaited_is_told_at_once_and_ends_no_rest() {
        let (mut growth, tree) = growth();
        to(&mut growth, 1, false);
        to(&mut growth, 2, false);
        to(&mut growth, 3, true);
        assert_eq!(told(&tree), [1, 3]);
        to(&mut growth, 4, false);
        assert_eq!(told(&tree), []);
        timeout(REST, growth.rested()).await.unwrap();
        growth.tell();
        assert_eq!(told(&tree), [4]);
    }

    /// Under load the tree follows as closely as ever. Broken to see it fail: no bound.
    #[tokio::test(start_paused = true)]
    async fn a_tile_is_told_at_once() {
        let (mut growth, tree) = growth();
        to(&mut growth, 1, false);
        to(&mut growth, GATHERED_ENTRIES, false);
        assert_eq!(told(&tree), [1]);
        to(&mut growth, GATHERED_ENTRIES + 1, false);
        assert_eq!(told(&tree), [GATHERED_ENTRIES + 1]);
        to(&mut growth, GATHERED_ENTRIES + 2, false);
        assert_eq!(told(&tree), []);
        // The end of the log does not wait for a rest.
        growth.tell();
        assert_eq!(told(&tree), [GATHERED_ENTRIES + 2]);
        growth.tell();
        assert_eq!(told(&tree), []);
    }
}
