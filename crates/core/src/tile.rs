//! Tiles (C2SP `tlog-tiles`): their names and paths, and which of them a tree has.
//!
//! A tile of level `l` holds up to 256 hashes; hash `i` of tile `n` is the root of the perfect subtree of `256^l`
//! leaves that starts at leaf `(256 n + i) * 256^l`.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::decimal;
use crate::position::TreeSize;

/// Hashes in a full tile, and entries in a full bundle.
pub const TILE_WIDTH: u16 = 256;

/// Levels above this do not exist (C2SP `tlog-tiles`).
pub const MAX_LEVEL: u8 = 63;

/// A tree of at most 2^63 - 1 leaves has tiles on this many levels.
const TREE_LEVELS: u8 = 8;

/// What a path of `tlog-tiles` names.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Row {
    /// Hashes, of this level.
    Hashes(Level),
    /// Entry bundles.
    Entries,
}

/// The level of a tile, 0 to [`MAX_LEVEL`]; level 0 holds leaf hashes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Level(u8);

impl Level {
    /// `None` above [`MAX_LEVEL`].
    pub const fn new(level: u8) -> Option<Level> {
        if level <= MAX_LEVEL { Some(Level(level)) } else { None }
    }

    /// The number, 0 for leaf hashes.
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// The name of a tile or an entry bundle: row, index and width.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TileName {
    row: Row,
    index: u64,
    width: u16,
}

/// The text is not the canonical path of a tile or an entry bundle.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("not a tile path: it reads tile/<level 0-63 or entries>/<index>[.p/<width 1-255>]")]
pub struct NotATilePath;

impl TileName {
    /// `None` unless `width` is 1 to 256 (256 is a full tile).
    pub const fn new(row: Row, index: u64, width: u16) -> Option<TileName> {
        if width >= 1 && width <= TILE_WIDTH { Some(TileName { row, index, width }) } else { None }
    }

    /// Level or entries.
    pub const fn row(self) -> Row {
        self.row
    }

    /// The position in its row, counted in full tiles from 0.
    pub const fn index(self) -> u64 {
        self.index
    }

    /// How many hashes or entries it has: 256 when full.
    pub const fn width(self) -> u16 {
        self.width
    }

    /// Whether it will never change again.
    pub const fn is_full(self) -> bool {
        self.width == TILE_WIDTH
    }
}

/// The number of full tiles of a row in a tree of `size`, and the width of the partial one behind them, 0 if there
/// is none.
pub fn row_shape(row: Row, size: TreeSize) -> (u64, u16) {
    let level = match row {
        Row::Hashes(level) => level.get(),
        Row::Entries => 0,
    };
    let hashes = if level < TREE_LEVELS { size.get() >> (8 * u32::from(level)) } else { 0 };
    let width = (hashes % u64::from(TILE_WIDTH)) as u16;
    (hashes / u64::from(TILE_WIDTH), width)
}

/// The levels of a tree of `size` that have tiles, the lowest first.
pub fn levels(size: TreeSize) -> impl Iterator<Item = Level> {
    (0..TREE_LEVELS).map(Level).filter(move |level| row_shape(Row::Hashes(*level), size) != (0, 0))
}

impl fmt::Display for TileName {
    /// The path below a log's prefix: `tile/0/x001/x234/067`, `tile/entries/000.p/255`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.row {
            Row::Hashes(level) => write!(f, "tile/{}/", level.get())?,
            Row::Entries => f.write_str("tile/entries/")?,
        }
        let mut groups = vec![self.index % 1000];
        let mut rest = self.index / 1000;
        while rest > 0 {
            groups.push(rest % 1000);
            rest /= 1000;
        }
        for group in groups[1..].iter().rev() {
            write!(f, "x{group:03}/")?;
        }
        write!(f, "{:03}", groups[0])?;
        if self.is_full() { Ok(()) } else { write!(f, ".p/{}", self.width) }
    }
}

impl FromStr for TileName {
    type Err = NotATilePath;

    fn from_str(path: &str) -> Result<TileName, NotATilePath> {
        let parse = || {
            let (row, rest) = path.strip_prefix("tile/")?.split_once('/')?;
            let row = match row {
                "entries" => Row::Entries,
                level => Row::Hashes(Level::new(u8::try_from(decimal::parse(level)?).ok()?)?),
            };
            let (groups, width) = match rest.split_once(".p/") {
                Some((groups, width)) => (groups, u16::try_from(decimal::parse(width)?).ok()?),
                None => (rest, TILE_WIDTH),
            };
            let mut index: u64 = 0;
            for group in groups.split('/') {
                let digits: u64 = group.strip_prefix('x').unwrap_or(group).parse().ok()?;
                index = index.checked_mul(1000)?.checked_add(digits)?;
            }
            TileName::new(row, index, width)
        };
        // Whatever was read leniently above must be spelled exactly as it is written.
        parse().filter(|tile| tile.to_string() == path).ok_or(NotATilePath)
    }
}
