//! Complete tiles: 256 hashes of one level of the tree (C2SP `tlog-tiles`), with every hash between them and their
//! root, and the contract of a store of them.
//!
//! A tile never changes once it is complete. It does not know trees, proofs or the journal.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use epigraph_core::hash::node_hash;
use epigraph_core::tile::TILE_WIDTH;
use epigraph_core::{Hash, TreeSize};
use thiserror::Error;

/// Hashes of a complete tile.
pub const WIDTH: usize = TILE_WIDTH as usize;

/// Heights within a tile: its hashes are at height 0, its root at this one.
pub const TILE_HEIGHT: u32 = WIDTH.ilog2();

/// Levels that a tree of at most 2^63 - 1 leaves has. The highest never gets a complete tile.
pub const LEVELS: u32 = 8;

/// Tiles in one call of [`TileStore::put`]. At two values a tile it is the largest batch that sled takes in good time
/// (RELIABILITY H17).
pub const MAX_BATCH_TILES: usize = 1024;

/// The hashes of a complete tile, in order.
pub type Row = [Hash; WIDTH];

const ZERO: Hash = Hash::from_bytes([0; Hash::LEN]);

/// Which tile of a tree.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TileId {
    /// 0 for the tiles of leaf hashes; below [`LEVELS`].
    pub level: u8,
    /// The position among the tiles of that level.
    pub index: u64,
}

impl fmt::Display for TileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of level {}", self.index, self.level)
    }
}

/// A tile with all of its inner hashes: 511 of them, so that a proof looks them up and computes none. While it is
/// the right edge of a tree, what is not there yet is zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tile {
    row: Row,
    /// The 128 hashes of height 1, the 64 of height 2, …, the root.
    upper: [Hash; WIDTH - 1],
}

impl Tile {
    /// Bytes of memory that a tile takes.
    pub const BYTES: usize = size_of::<Tile>();

    pub(crate) const EMPTY: Tile = Tile { row: [ZERO; WIDTH], upper: [ZERO; WIDTH - 1] };

    /// Computes the inner hashes of a complete tile: 255 of them.
    pub fn expand(row: Row) -> Tile {
        let mut tile = Tile { row, upper: [ZERO; WIDTH - 1] };
        for height in 1..=TILE_HEIGHT {
            for index in 0..WIDTH >> height {
                let children = (tile.node(height - 1, 2 * index), tile.node(height - 1, 2 * index + 1));
                if let (Some(left), Some(right)) = children {
                    tile.set(height, index, node_hash(&left, &right));
                }
            }
        }
        tile
    }

    /// The 256 hashes.
    pub fn row(&self) -> &Row {
        &self.row
    }

    /// The hash over all of them.
    pub fn root(&self) -> Hash {
        self.upper[WIDTH - 2]
    }

    /// The root of the subtree of `2^height` of the tile's hashes at position `index`; `None` beyond the tile.
    pub fn node(&self, height: u32, index: usize) -> Option<Hash> {
        match height {
            0 => self.row.get(index).copied(),
            1..=TILE_HEIGHT if index < WIDTH >> height => self.upper.get(upper_at(height) + index).copied(),
            _ => None,
        }
    }

    /// Puts a hash where [`Tile::node`] finds it.
    pub(crate) fn set(&mut self, height: u32, index: usize, hash: Hash) {
        let place = match height {
            0 => self.row.get_mut(index),
            1..=TILE_HEIGHT => self.upper.get_mut(upper_at(height) + index),
            _ => None,
        };
        if let Some(place) = place {
            *place = hash;
        }
    }
}

/// Where the hashes of a height from 1 on start among the upper ones.
const fn upper_at(height: u32) -> usize {
    WIDTH - (WIDTH >> (height - 1))
}

/// Where the root of the perfect subtree of `2^height` leaves at position `index` is: the tile, and the height and
/// the position within it.
pub(crate) fn locate(height: u32, index: u64) -> (TileId, u32, usize) {
    let (level, within) = (height / TILE_HEIGHT, height % TILE_HEIGHT);
    let per_tile = (WIDTH as u64) >> within;
    let id = TileId { level: u8::try_from(level).unwrap_or(u8::MAX), index: index / per_tile };
    (id, within, (index % per_tile) as usize)
}

/// Why a tile store did not do what it was asked to.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum TileError {
    /// More tiles in one call than a store takes.
    #[error("{0} tiles in one batch, and a batch has at most {MAX_BATCH_TILES}")]
    BatchTooLarge(usize),
    /// What is stored under a tile's name is not a tile.
    #[error("tile {tile} is stored as {found}; it is rebuilt from the journal when it is read")]
    Malformed {
        /// The tile.
        tile: TileId,
        /// What is there instead.
        found: String,
    },
    /// The store failed or is damaged.
    #[error("the tile store cannot {what}: {why}; nothing is lost, it can be rebuilt from the journal")]
    Failed {
        /// What was tried.
        what: &'static str,
        /// What the store said.
        why: String,
    },
}

/// A store of complete tiles. It has one writer and any number of readers. It is derived from the journal, so a
/// store may forget or spoil what it holds: whoever reads compares with the tree's upper levels.
pub trait TileStore: Send + Sync {
    /// Stores complete tiles, at most [`MAX_BATCH_TILES`]; all of them can be read when this returns. A tile may be
    /// stored again. Not durable before [`TileStore::commit`].
    fn put(&self, tiles: &[(TileId, Arc<Tile>)]) -> Result<(), TileError>;

    /// One tile; `None` if the store does not have it.
    fn get(&self, id: TileId) -> Result<Option<Row>, TileError>;

    /// Makes everything durable that was put, then remembers that every complete tile of a tree of `size` leaves is
    /// here.
    fn commit(&self, size: TreeSize) -> Result<(), TileError>;

    /// The size given to the newest [`TileStore::commit`] that reached the disk; 0 before the first.
    fn committed(&self) -> Result<TreeSize, TileError>;

    /// Tries to become usable again after a failed [`TileStore::put`] or [`TileStore::commit`].
    fn recover(&self) -> Result<(), TileError>;

    /// Bytes that it takes on the disk.
    fn bytes(&self) -> Result<u64, TileError>;
}

/// A tile store in memory.
#[derive(Debug, Default)]
pub struct MemoryTiles {
    state: RwLock<(HashMap<TileId, Arc<Tile>>, TreeSize)>,
}

impl TileStore for MemoryTiles {
    fn put(&self, tiles: &[(TileId, Arc<Tile>)]) -> Result<(), TileError> {
        if tiles.len() > MAX_BATCH_TILES {
            return Err(TileError::BatchTooLarge(tiles.len()));
        }
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.0.extend(tiles.iter().cloned());
        Ok(())
    }

    fn get(&self, id: TileId) -> Result<Option<Row>, TileError> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        Ok(state.0.get(&id).map(|tile| *tile.row()))
    }

    fn commit(&self, size: TreeSize) -> Result<(), TileError> {
        self.state.write().unwrap_or_else(PoisonError::into_inner).1 = size;
        Ok(())
    }

    fn committed(&self) -> Result<TreeSize, TileError> {
        Ok(self.state.read().unwrap_or_else(PoisonError::into_inner).1)
    }

    fn recover(&self) -> Result<(), TileError> {
        Ok(())
    }

    fn bytes(&self) -> Result<u64, TileError> {
        let tiles = self.state.read().unwrap_or_else(PoisonError::into_inner).0.len();
        Ok((tiles * Tile::BYTES) as u64)
    }
}
