//! The tile store in sled 0.34, behind every rule that its hazards call for (docs/formats/tree.md). The one place
//! that names sled.
//!
//! Values of at most 4 KiB, so that no page becomes a blob file, which sled never syncs; plain batches by one
//! writer; no transactions, subscribers or `flush_async`. sled's `flush` does not reach the disk, so
//! [`TileStore::commit`] syncs the file itself, through a handle that stays open. sled panics on some damage, so
//! every call is caught; a damaged directory is first opened by a child process (`preflight`). It does not know
//! the tree that the tiles belong to.

use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::Duration;

use epigraph_core::{Hash, TreeSize};

use crate::tile::{MAX_BATCH_TILES, Row, Tile, TileError, TileId, TileStore, WIDTH};

/// What sled may keep in memory by its own count; under uniform reads it takes six times as much (H13). Tiles that
/// are read often are kept by the tree, with their inner hashes.
const CACHE_BYTES: u64 = 24 << 20;
/// The background flusher alone frees the space of overwritten pages (RELIABILITY H10).
const FLUSH_EVERY_MS: u64 = 500;
/// A tile is stored as so many values of 4 KiB: sixteen of them still make no page of blob size (H3).
const PARTS: usize = 2;
const PART_HASHES: usize = WIDTH / PARTS;
const PART_BYTES: usize = PART_HASHES * Hash::LEN;
/// sled gives its lock back a little after the last handle is dropped (H18).
const LOCK_ATTEMPTS: u32 = 40;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

const TILES: &str = "tiles-1";
const META: &str = "meta-1";
const COMMITTED: &str = "committed";

/// A tile store in a directory of its own.
pub struct SledTiles {
    dir: PathBuf,
    open: RwLock<Option<Open>>,
}

struct Open {
    db: sled::Db,
    tiles: sled::Tree,
    meta: sled::Tree,
    /// A second handle of sled's file, for `fdatasync` (H1).
    file: fs::File,
}

impl SledTiles {
    /// Opens the store in `dir`, or makes an empty one there. A directory that was not closed by this program should
    /// have passed `preflight`.
    pub fn open(dir: &Path) -> Result<SledTiles, TileError> {
        let open = guarded("open", || Open::new(dir))?;
        Ok(SledTiles { dir: dir.to_owned(), open: RwLock::new(Some(open)) })
    }

    /// Runs `action` on the open database; a panic of sled becomes an error.
    fn with<T>(
        &self,
        what: &'static str,
        action: impl FnOnce(&Open) -> Result<T, TileError>,
    ) -> Result<T, TileError> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        match open.as_ref() {
            Some(open) => guarded(what, || action(open)),
            None => Err(TileError::Failed { what, why: "it could not be opened again".into() }),
        }
    }
}

impl Open {
    fn new(dir: &Path) -> Result<Open, TileError> {
        let failed = io_failed("open");
        remove_half_snapshots(dir).map_err(&failed)?;
        refuse_blobs(dir)?;
        let config = sled::Config::new()
            .path(dir)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(Some(FLUSH_EVERY_MS))
            .use_compression(false);
        let mut attempt = 1;
        let db = loop {
            match config.open() {
                Ok(db) => break db,
                Err(error) if attempt < LOCK_ATTEMPTS && is_locked(&error) => {
                    attempt += 1;
                    thread::sleep(LOCK_PAUSE);
                }
                Err(error) => return Err(sled_failed("open")(error)),
            }
        };
        let tiles = db.open_tree(TILES).map_err(sled_failed("open"))?;
        let meta = db.open_tree(META).map_err(sled_failed("open"))?;
        let file = fs::File::open(dir.join("db")).map_err(&failed)?;
        file.sync_all().and_then(|()| fs::File::open(dir)?.sync_all()).map_err(&failed)?;
        Ok(Open { db, tiles, meta, file })
    }

    fn part(&self, id: TileId, part: usize) -> Result<Option<sled::IVec>, TileError> {
        self.tiles.get(key(id, part)).map_err(sled_failed("read a tile"))
    }
}

impl TileStore for SledTiles {
    fn put(&self, tiles: &[(TileId, Arc<Tile>)]) -> Result<(), TileError> {
        if tiles.len() > MAX_BATCH_TILES {
            return Err(TileError::BatchTooLarge(tiles.len()));
        }
        let mut batch = sled::Batch::default();
        for (id, tile) in tiles {
            for (part, hashes) in tile.row().chunks(PART_HASHES).enumerate() {
                let mut value = Vec::with_capacity(PART_BYTES);
                hashes.iter().for_each(|hash| value.extend_from_slice(hash.as_bytes()));
                batch.insert(&key(*id, part)[..], value);
            }
        }
        self.with("write tiles", |open| open.tiles.apply_batch(batch).map_err(sled_failed("write tiles")))?;
        refuse_blobs(&self.dir)
    }

    fn get(&self, id: TileId) -> Result<Option<Row>, TileError> {
        self.with("read a tile", |open| {
            let mut row = *Tile::EMPTY.row();
            for (part, hashes) in row.chunks_mut(PART_HASHES).enumerate() {
                let Some(value) = open.part(id, part)? else { return Ok(None) };
                if value.len() != PART_BYTES {
                    let found = format!("{} bytes where {PART_BYTES} belong", value.len());
                    return Err(TileError::Malformed { tile: id, found });
                }
                for (hash, bytes) in hashes.iter_mut().zip(value.chunks_exact(Hash::LEN)) {
                    *hash = Hash::from_slice(bytes).unwrap_or(*hash);
                }
            }
            Ok(Some(row))
        })
    }

    fn commit(&self, size: TreeSize) -> Result<(), TileError> {
        self.with("commit", |open| {
            // sled's own flush hands the bytes to the kernel and may return before they are on the disk, so the
            // mark must not be written before our sync: a mark without its tiles would be believed.
            open.db.flush().map_err(sled_failed("flush"))?;
            open.file.sync_data().map_err(io_failed("sync"))?;
            let mark = size.get().to_be_bytes();
            open.meta.insert(COMMITTED, &mark).map_err(sled_failed("commit"))?;
            Ok(())
        })
    }

    fn committed(&self) -> Result<TreeSize, TileError> {
        self.with("read its mark", |open| {
            let Some(mark) = open.meta.get(COMMITTED).map_err(sled_failed("read its mark"))? else {
                return Ok(TreeSize::ZERO);
            };
            let size =
                <[u8; 8]>::try_from(&mark[..]).ok().and_then(|mark| TreeSize::new(u64::from_be_bytes(mark)));
            size.ok_or_else(|| TileError::Failed {
                what: "read its mark",
                why: "it is not a tree size".into(),
            })
        })
    }

    fn recover(&self) -> Result<(), TileError> {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        // After a failed write sled refuses everything; only opening it again helps. Its lock goes with the handle.
        drop(open.take());
        *open = Some(guarded("open", || Open::new(&self.dir))?);
        Ok(())
    }

    fn bytes(&self) -> Result<u64, TileError> {
        self.with("tell its size", |open| open.db.size_on_disk().map_err(sled_failed("tell its size")))
    }
}

/// Level, index, part: ascending as the tree grows.
fn key(id: TileId, part: usize) -> [u8; 10] {
    let mut key = [0; 10];
    key[0] = id.level;
    key[1..9].copy_from_slice(&id.index.to_be_bytes());
    key[9] = part as u8;
    key
}

/// A snapshot that a killed process left half-written makes sled refuse to open (H7).
fn remove_half_snapshots(dir: &Path) -> io::Result<()> {
    let items = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        items => items?,
    };
    for item in items {
        let name = item?.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            fs::remove_file(dir.join(&*name))?;
        }
    }
    Ok(())
}

/// sled never syncs a blob file, and one damaged blob takes the records after it along (H2). Nothing here is large
/// enough for one.
fn refuse_blobs(dir: &Path) -> Result<(), TileError> {
    let first = match fs::read_dir(dir.join("blobs")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        items => {
            items.and_then(|mut items| items.next().transpose()).map_err(io_failed("look for blob files"))?
        }
    };
    match first {
        None => Ok(()),
        Some(blob) => Err(TileError::Failed {
            what: "be trusted",
            why: format!("it has the blob file {}, and no tile makes one", blob.path().display()),
        }),
    }
}

fn is_locked(error: &sled::Error) -> bool {
    // sled reports the refused lock with another kind from one platform to the next, but always in these words.
    matches!(error, sled::Error::Io(error) if error.kind() == io::ErrorKind::WouldBlock
        || error.to_string().contains("could not acquire lock"))
}

fn guarded<T>(what: &'static str, action: impl FnOnce() -> Result<T, TileError>) -> Result<T, TileError> {
    catch_unwind(AssertUnwindSafe(action)).unwrap_or_else(|_| {
        Err(TileError::Failed { what, why: "sled panicked, as it does on damage".into() })
    })
}

fn sled_failed(what: &'static str) -> impl Fn(sled::Error) -> TileError {
    move |error| TileError::Failed { what, why: error.to_string() }
}

fn io_failed(what: &'static str) -> impl Fn(io::Error) -> TileError {
    move |error| TileError::Failed { what, why: error.to_string() }
}
