//! Recently read tiles with all of their hashes, so that a proof from warm tiles computes none.
//!
//! Bounded in bytes; several shards, so that readers rarely wait for each other. Within a shard a tile that was
//! read since the hand passed gets a second chance (Corbató's clock). Whatever is in it was checked.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use crate::tile::{Tile, TileId};

/// A power of two, well above the threads that read at one time.
const SHARDS: usize = 16;

pub(crate) struct Cache {
    shards: [Mutex<Shard>; SHARDS],
    tiles_per_shard: usize,
}

#[derive(Default)]
struct Shard {
    slots: HashMap<TileId, Slot>,
    /// Every tile of `slots`, in the order in which the hand meets them.
    clock: VecDeque<TileId>,
}

struct Slot {
    tile: Arc<Tile>,
    used: bool,
}

impl Cache {
    /// Keeps at least one tile a shard.
    pub(crate) fn new(bytes: usize) -> Cache {
        Cache { shards: Default::default(), tiles_per_shard: (bytes / Tile::BYTES / SHARDS).max(1) }
    }

    /// Applies `read` to a tile that is here.
    pub(crate) fn read<T>(&self, id: TileId, read: impl FnOnce(&Arc<Tile>) -> T) -> Option<T> {
        let mut shard = self.shard(id).lock().unwrap_or_else(PoisonError::into_inner);
        let slot = shard.slots.get_mut(&id)?;
        slot.used = true;
        Some(read(&slot.tile))
    }

    pub(crate) fn insert(&self, id: TileId, tile: Arc<Tile>) {
        let mut shard = self.shard(id).lock().unwrap_or_else(PoisonError::into_inner);
        let Shard { slots, clock } = &mut *shard;
        if slots.insert(id, Slot { tile, used: false }).is_none() {
            clock.push_back(id);
        }
        while slots.len() > self.tiles_per_shard {
            let Some(oldest) = clock.pop_front() else { return };
            match slots.get_mut(&oldest) {
                Some(slot) if slot.used => {
                    slot.used = false;
                    clock.push_back(oldest);
                }
                _ => drop(slots.remove(&oldest)),
            }
        }
    }

    /// Bytes of the tiles that are here.
    pub(crate) fn bytes(&self) -> usize {
        let tiles = |shard: &Mutex<Shard>| shard.lock().unwrap_or_else(PoisonError::into_inner).slots.len();
        self.shards.iter().map(tiles).sum::<usize>() * Tile::BYTES
    }

    fn shard(&self, id: TileId) -> &Mutex<Shard> {
        &self.shards[(id.index as usize).wrapping_add(usize::from(id.level)) % SHARDS]
    }
}
