//! The right edge of a tree: its frontier, and on each level the tile that is not complete yet.
//!
//! It appends leaves, hands out each tile that gets complete, and knows every hash of the incomplete ones. It does
//! not know stores.

use std::sync::Arc;

use epigraph_core::hash::node_hash;
use epigraph_core::tree::LogFull;
use epigraph_core::{Frontier, Hash, TreeHead, TreeSize};

use crate::tile::{LEVELS, Row, TILE_HEIGHT, Tile, TileError, TileId, TileStore, WIDTH, locate};

/// Complete tiles in the order in which they are to be stored.
pub(crate) type Full = Vec<(TileId, Arc<Tile>)>;

#[derive(Clone, Default, Debug)]
pub(crate) struct Edge {
    frontier: Frontier,
    /// The incomplete tile of each level; only what the frontier's size says is there is valid.
    levels: Vec<Tile>,
}

impl Edge {
    pub(crate) fn size(&self) -> TreeSize {
        self.frontier.size()
    }

    pub(crate) fn head(&self) -> TreeHead {
        self.frontier.head()
    }

    pub(crate) fn frontier(&self) -> &Frontier {
        &self.frontier
    }

    /// Appends a leaf. Each tile that it completes goes to `full`, a parent before its child: so once a tile of
    /// level 0 is stored, so is every tile that was complete at the end of its leaves.
    pub(crate) fn push(&mut self, leaf: Hash, full: &mut Full) -> Result<(), LogFull> {
        let Edge { frontier, levels } = self;
        let group = full.len();
        frontier.push_with(leaf, |height, index, hash| {
            let (id, within, place) = locate(height, index);
            if within == 0
                && let Some(below) = id.level.checked_sub(1)
                && let Some(tile) = levels.get_mut(usize::from(below))
            {
                tile.set(TILE_HEIGHT, 0, hash);
                full.insert(group, (TileId { level: below, index }, Arc::new(*tile)));
            }
            if levels.len() <= usize::from(id.level) {
                levels.push(Tile::EMPTY);
            }
            if let Some(tile) = levels.get_mut(usize::from(id.level)) {
                tile.set(within, place, hash);
            }
        })
    }

    /// A hash of an incomplete tile that lies within the tree; `None` for one of a complete tile.
    pub(crate) fn node(&self, height: u32, index: u64) -> Option<Hash> {
        let (id, within, place) = locate(height, index);
        let incomplete = hashes_at(self.size(), u32::from(id.level)) / WIDTH as u64;
        if id.index != incomplete {
            return None;
        }
        self.levels.get(usize::from(id.level))?.node(within, place)
    }

    /// Rebuilds the edge of a tree of `size` leaves, a whole number of tiles, from the roots of at most 255 stored
    /// tiles a level. What the store gives is not checked: compare [`Edge::head`] with a head that is trusted.
    pub(crate) fn from_store(store: &dyn TileStore, size: TreeSize) -> Result<Edge, TileError> {
        let mut edge = Edge::default();
        for level in 0..LEVELS {
            let hashes = hashes_at(size, level);
            if hashes == 0 {
                break;
            }
            let mut tile = Tile::EMPTY;
            let first = hashes - hashes % WIDTH as u64;
            for index in first..hashes {
                let below = u8::try_from(level).ok().and_then(|level| level.checked_sub(1));
                let Some(below) = below else {
                    let what = "be trusted";
                    return Err(TileError::Failed { what, why: format!("its mark {size} is within a tile") });
                };
                let id = TileId { level: below, index };
                let row: Row = store.get(id)?.ok_or_else(|| TileError::Failed {
                    what: "be trusted",
                    why: format!("tile {id} is missing below its mark {size}"),
                })?;
                push_hash(&mut tile, (index - first) as usize, Tile::expand(row).root());
            }
            edge.levels.push(tile);
        }
        let heights = (0..u64::BITS).rev().filter(|height| size.get() >> height & 1 == 1);
        let hashes = heights.filter_map(|height| {
            let (id, within, place) = locate(height, (size.get() >> height) - 1);
            edge.levels.get(usize::from(id.level))?.node(within, place)
        });
        edge.frontier = Frontier::from_parts(size, hashes.collect())
            .map_err(|error| TileError::Failed { what: "be trusted", why: error.to_string() })?;
        Ok(edge)
    }
}

/// Puts the next hash into an incomplete tile, with the inner hashes that it completes.
fn push_hash(tile: &mut Tile, mut place: usize, mut hash: Hash) {
    tile.set(0, place, hash);
    for height in 1..TILE_HEIGHT {
        let Some(left) = tile.node(height - 1, place.wrapping_sub(1)).filter(|_| place % 2 == 1) else {
            return;
        };
        hash = node_hash(&left, &hash);
        place /= 2;
        tile.set(height, place, hash);
    }
}

/// How many hashes a level of a tree of `size` leaves has.
fn hashes_at(size: TreeSize, level: u32) -> u64 {
    size.get() >> (TILE_HEIGHT * level)
}
