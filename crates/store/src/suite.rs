//! What every tile store must do, as a test that each of them runs.
//!
//! It needs no test framework: a promise that is broken comes back as an error that names it.

use std::sync::Arc;
use std::thread;

use epigraph_core::hash::sha256;
use epigraph_core::{Hash, TreeSize};

use crate::tile::{MAX_BATCH_TILES, Row, Tile, TileError, TileId, TileStore, WIDTH};

/// Tiles that the writer stores while others read.
const CONCURRENT_TILES: u64 = 600;
const READERS: u64 = 3;

/// Runs everything. `open` gives the store: an empty one at the first call, then, when every handle of the one
/// before is gone, the same one again.
pub fn run(open: &mut dyn FnMut() -> Result<Arc<dyn TileStore>, TileError>) -> Result<(), String> {
    let again = |open: &mut dyn FnMut() -> Result<Arc<dyn TileStore>, TileError>| said("open", open());
    let store = again(open)?;
    empty(&*store)?;
    contract(&*store)?;
    limits(&*store)?;
    concurrent_readers(&*store)?;
    let size = TreeSize::new(CONCURRENT_TILES * WIDTH as u64).unwrap_or_default();
    said("commit", store.commit(size))?;
    drop(store);
    reopened(&*again(open)?, size)
}

fn empty(store: &dyn TileStore) -> Result<(), String> {
    expect("an empty store is committed at size 0", store.committed(), TreeSize::ZERO)?;
    for id in [id(0, 0), id(7, u64::MAX)] {
        expect("a missing tile is none, not an error", store.get(id), None)?;
    }
    said("commit nothing", store.commit(TreeSize::ZERO))
}

fn contract(store: &dyn TileStore) -> Result<(), String> {
    said("put nothing", store.put(&[]))?;
    // Neighbours in level and index, and names whose bytes are alike.
    let ids = [id(0, 0), id(1, 0), id(0, 1), id(0, 255), id(0, 256), id(1, 1 << 56), id(7, u64::MAX)];
    let tiles: Vec<_> = ids.iter().map(|id| (*id, Arc::new(Tile::expand(row(*id, 0))))).collect();
    said("put", store.put(&tiles))?;
    for id in ids {
        expect("what was put is read at once", store.get(id), Some(row(id, 0)))?;
    }
    expect("a tile beside them is missing", store.get(id(2, 0)), None)?;
    said("put the same again", store.put(&tiles[..2]))?;
    expect("the same tile can be stored again", store.get(ids[0]), Some(row(ids[0], 0)))?;
    // A repair replaces a spoilt tile.
    said("put another", store.put(&[(ids[1], Arc::new(Tile::expand(row(ids[1], 9))))]))?;
    expect("what was stored last is read", store.get(ids[1]), Some(row(ids[1], 9)))?;
    expect("and the others stay", store.get(ids[2]), Some(row(ids[2], 0)))?;
    said("recover a sound store", store.recover())?;
    expect("a sound store keeps its tiles", store.get(ids[6]), Some(row(ids[6], 0)))?;
    said("tell its size", store.bytes().map(drop))
}

fn limits(store: &dyn TileStore) -> Result<(), String> {
    let tile = Arc::new(Tile::expand(row(id(3, 0), 0)));
    let batch: Vec<_> = (0..=MAX_BATCH_TILES as u64).map(|index| (id(3, index), tile.clone())).collect();
    let refused = Err(TileError::BatchTooLarge(MAX_BATCH_TILES + 1));
    match store.put(&batch) {
        result if result == refused => {}
        other => return Err(format!("a batch beyond the limit is refused: {other:?}")),
    }
    expect("nothing of a refused batch is stored", store.get(id(3, 0)), None)?;
    said("put a largest batch", store.put(&batch[1..]))?;
    expect("a largest batch is stored whole", store.get(batch[MAX_BATCH_TILES].0), Some(*tile.row()))
}

/// Readers see each tile whole, and once one is stored it stays.
fn concurrent_readers(store: &dyn TileStore) -> Result<(), String> {
    thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|_| {
                scope.spawn(|| {
                    let mut next = 0;
                    while next < CONCURRENT_TILES {
                        let id = id(5, next);
                        match store.get(id) {
                            Ok(None) => thread::yield_now(),
                            Ok(Some(found)) if found == row(id, 0) => next += 1,
                            other => return Err(format!("tile {id} beside the writer: {:?}", other.is_ok())),
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        let mut written = Ok(());
        for first in (0..CONCURRENT_TILES).step_by(50) {
            let tiles =
                (first..first + 50).map(|index| (id(5, index), Arc::new(Tile::expand(row(id(5, index), 0)))));
            written = written.and(said("put", store.put(&tiles.collect::<Vec<_>>())));
        }
        readers.into_iter().fold(written, |outcome, reader| {
            outcome.and(reader.join().unwrap_or_else(|_| Err("a reader panicked".into())))
        })
    })
}

fn reopened(store: &dyn TileStore, size: TreeSize) -> Result<(), String> {
    expect("the commit survives", store.committed(), size)?;
    for id in [id(0, 0), id(5, 0), id(5, CONCURRENT_TILES - 1)] {
        expect("a committed tile survives", store.get(id), Some(row(id, 0)))?;
    }
    expect("a missing tile is still missing", store.get(id(2, 0)), None)
}

fn id(level: u8, index: u64) -> TileId {
    TileId { level, index }
}

/// 256 hashes that belong to this tile alone.
fn row(id: TileId, version: u8) -> Row {
    let mut row = [Hash::EMPTY_ROOT; WIDTH];
    for (hash, place) in row.iter_mut().zip(0..=u8::MAX) {
        let mut name = [id.level, version, place, 0, 0, 0, 0, 0, 0, 0, 0];
        name[3..].copy_from_slice(&id.index.to_be_bytes());
        *hash = sha256(&name);
    }
    row
}

fn said<T>(what: &str, result: Result<T, TileError>) -> Result<T, String> {
    result.map_err(|error| format!("{what}: {error}"))
}

fn expect<T: PartialEq>(promise: &str, found: Result<T, TileError>, wanted: T) -> Result<(), String> {
    match found {
        Ok(found) if found == wanted => Ok(()),
        Ok(_) => Err(format!("{promise}: found something else")),
        Err(error) => Err(format!("{promise}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sled::SledTiles;
    use crate::tile::MemoryTiles;

    #[test]
    fn memory_keeps_the_contract() {
        let store: Arc<dyn TileStore> = Arc::new(MemoryTiles::default());
        run(&mut || Ok(store.clone())).unwrap();
    }

    #[test]
    fn sled_keeps_the_contract() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("tree");
        run(&mut || Ok(Arc::new(SledTiles::open(&dir)?))).unwrap();
    }
}
