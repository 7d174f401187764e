//! Opening the stored tree: what the journal does not confirm is moved aside and built anew.
//!
//! sled panics, hangs or silently forgets on damage, so a directory that exists is first opened by a child process
//! ([`preflight`] is what that child does). Then the edge of the stored tree must lead to the next root that the
//! journal recorded. It does not know how the child is started.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use epigraph_core::hash::leaf_hash;
use epigraph_core::{Hash, TreeHead, TreeSize};
use thiserror::Error;

use super::edge::{Edge, Full};
use super::{TileWriter, Tree};
use crate::file::Dir;
use crate::follow::Follower;
use crate::journal::{JournalError, Reader};
use crate::sled::SledTiles;
use crate::tile::{MemoryTiles, TileError, TileStore, WIDTH};

/// Suspect directories that are kept for whoever wants to know what happened; the oldest goes. Each may be as large
/// as a tree.
pub const MAX_SUSPECTS: usize = 2;

/// Runs [`preflight`] on a directory in a process of its own, within a time limit, and says why it failed.
pub type Preflight = Box<dyn Fn(&Path) -> Result<(), String> + Send>;

/// Where a tree is stored.
pub struct Place {
    /// A directory for nothing else. It is made if it is missing.
    pub directory: PathBuf,
    /// How to try an existing one.
    pub preflight: Preflight,
}

/// What a caller of [`open`] may want to tell somebody.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Notice {
    /// The stored tree goes up to here; the rest is rebuilt from the journal.
    Stored(TreeSize),
    /// The stored tree was not trusted. It is rebuilt from the journal, from the first entry.
    MovedAside {
        /// Where it is now.
        to: PathBuf,
        /// Why.
        why: String,
    },
}

/// Why no tree can be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The journal could not be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Not even an empty store can be made.
    #[error("{error}; the directory is {}: check its volume and its permissions", directory.display())]
    Store {
        /// The directory.
        directory: PathBuf,
        /// What the store said.
        error: TileError,
    },
    /// The system refused an operation.
    #[error("cannot {what} {}: {source}; check the volume, then start again", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl OpenError {
    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
        let path = path.to_owned();
        move |source| OpenError::Io { what, path, source }
    }
}

/// What [`preflight`] found: the tree that the store is said to hold completely.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Report {
    /// Its head.
    pub head: TreeHead,
    /// Bytes that the store takes on the disk.
    pub bytes: u64,
}

/// Opens the tile store in `dir` and reads what a start needs of it: the work of the child process, which may panic
/// or hang over it.
pub fn preflight(dir: &Path) -> Result<Report, TileError> {
    let store = SledTiles::open(dir)?;
    let edge = Edge::from_store(&store, store.committed()?)?;
    Ok(Report { head: edge.head(), bytes: store.bytes()? })
}

/// Compares every tile that the store in `dir` is said to hold with the one that the entries of the journal give, up
/// to its first `durable` entries, and returns how many tiles were compared. The message says what is wrong. sled
/// writes to what it opens, and may panic or hang: for a copy of the directory, in a process of its own.
pub fn compare(
    dir: &Path,
    journal: Arc<dyn Dir>,
    origin_hash: Hash,
    durable: TreeSize,
) -> Result<u64, String> {
    let said = |error: TileError| error.to_string();
    let store = SledTiles::open(dir).map_err(said)?;
    let committed = store.committed().map_err(said)?;
    if committed > durable {
        return Err(format!("it has {committed} entries and the journal {durable}"));
    }
    // What sled forgets on damage looks like what a killed process did not store.
    let whole = durable.get() - durable.get() % WIDTH as u64;
    if committed.get() < whole {
        return Err(format!(
            "it ends at entry {committed} and not at {whole}: the log was killed, or it lost some"
        ));
    }
    let mut reader = Reader::new(journal, origin_hash);
    let (mut edge, mut full, mut compared) = (Edge::default(), Full::new(), 0);
    while let Some(frame) = reader.next_frame(durable).map_err(|error| error.to_string())? {
        for entry in frame.entries() {
            if edge.size() == committed {
                return Ok(compared);
            }
            full.clear();
            edge.push(leaf_hash(entry), &mut full).map_err(|error| error.to_string())?;
            for (id, tile) in &full {
                if store.get(*id).map_err(said)?.as_ref() != Some(tile.row()) {
                    return Err(format!("its tile {id} is missing or is not what the entries give"));
                }
                compared += 1;
            }
        }
    }
    Ok(compared)
}

/// Gives `tree` its store and returns the follower that brings it up to the journal, which is in `dir` and has the
/// head `durable`. Called once a tree. Appending need not wait for it.
pub fn open(
    tree: &Arc<Tree>,
    place: &Place,
    dir: Arc<dyn Dir>,
    origin_hash: Hash,
    durable: TreeHead,
    notice: &mut dyn FnMut(Notice),
) -> Result<Follower, OpenError> {
    let directory = &place.directory;
    let existing = directory.try_exists().map_err(OpenError::io("look for", directory))?;
    let mut admitted = Err("there is none".to_owned());
    if existing {
        admitted = match try_store(place) {
            Ok((store, edge)) => {
                let confirmed = confirm(&edge, dir.clone(), origin_hash, durable)?;
                confirmed.map(|()| (store, edge))
            }
            Err(why) => Err(why),
        };
        if let Err(why) = &admitted {
            let to = move_aside(directory)?;
            notice(Notice::MovedAside { to, why: why.clone() });
        }
    }
    let (store, edge) = match admitted {
        Ok(stored) => stored,
        Err(_) => {
            make_dir(directory)?;
            let store = SledTiles::open(directory)
                .map_err(|error| OpenError::Store { directory: directory.clone(), error })?;
            (store, Edge::default())
        }
    };
    notice(Notice::Stored(edge.size()));
    attach(tree, Arc::new(store), edge, dir, origin_hash)
        .map_err(OpenError::io("start a thread for", directory))
}

/// An empty tree whose tiles stay in memory, and its follower: for trials and for judging the other kind.
pub fn open_in_memory(dir: Arc<dyn Dir>, origin_hash: Hash) -> io::Result<(Arc<Tree>, Follower)> {
    let tree = Arc::new(Tree::new(dir.clone(), origin_hash));
    let follower = attach(&tree, Arc::new(MemoryTiles::default()), Edge::default(), dir, origin_hash)?;
    Ok((tree, follower))
}

/// Gives a tree a store, whose edge is confirmed.
pub(crate) fn attach(
    tree: &Arc<Tree>,
    store: Arc<dyn TileStore>,
    edge: Edge,
    dir: Arc<dyn Dir>,
    origin_hash: Hash,
) -> io::Result<Follower> {
    let committed = edge.size();
    tree.install(store.clone(), edge);
    let writer = TileWriter::spawn(tree.clone(), store, committed)?;
    Ok(Follower::new(dir, origin_hash, tree.clone(), writer))
}

fn try_store(place: &Place) -> Result<(SledTiles, Edge), String> {
    (place.preflight)(&place.directory)?;
    let store = SledTiles::open(&place.directory).map_err(|error| error.to_string())?;
    let edge = store.committed().and_then(|size| Edge::from_store(&store, size));
    edge.map(|edge| (store, edge)).map_err(|error| error.to_string())
}

/// Whether the journal agrees with a stored tree: from its edge on, the entries must lead to the next recorded root.
/// The inner error says how they do not.
fn confirm(
    edge: &Edge,
    dir: Arc<dyn Dir>,
    origin_hash: Hash,
    durable: TreeHead,
) -> Result<Result<(), String>, JournalError> {
    let stored = edge.head();
    let disagree = |journal: TreeHead, from: TreeHead| {
        let why = format!(
            "from its root {} at size {} one gets to {} at size {}, where the journal has {}",
            stored.root, stored.size, from.root, from.size, journal.root
        );
        Ok(if journal == from { Ok(()) } else { Err(why) })
    };
    if stored.size > durable.size {
        let why = format!("it has {} entries and the journal {}", stored.size, durable.size);
        return Ok(Err(why));
    }
    if stored.size == durable.size {
        return disagree(durable, stored);
    }
    let Some(frame) = Reader::starting_at(dir, origin_hash, stored.size).next_frame(durable.size)? else {
        return disagree(durable, stored);
    };
    let skip = stored.size.get().saturating_sub(frame.before().size.get());
    let (mut edge, mut full) = (edge.clone(), Full::new());
    for entry in frame.entries().skip(usize::try_from(skip).unwrap_or(usize::MAX)) {
        full.clear();
        if let Err(error) = edge.push(leaf_hash(entry), &mut full) {
            return Ok(Err(error.to_string()));
        }
    }
    disagree(frame.after(), edge.head())
}

fn make_dir(directory: &Path) -> Result<(), OpenError> {
    fs::create_dir(directory).map_err(OpenError::io("create", directory))?;
    sync_parent(directory)
}

/// Renames the directory to `<name>.suspect-<n>`, `n` above every one that is there, and deletes the oldest of those
/// beyond [`MAX_SUSPECTS`].
fn move_aside(directory: &Path) -> Result<PathBuf, OpenError> {
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    let prefix = format!("{name}.suspect-");
    let parent = parent_of(directory);
    let mut numbers = Vec::new();
    for item in fs::read_dir(parent).map_err(OpenError::io("list", parent))? {
        let item = item.map_err(OpenError::io("list", parent))?.file_name();
        numbers.extend(
            item.to_string_lossy().strip_prefix(&prefix).and_then(|number| number.parse::<u64>().ok()),
        );
    }
    numbers.sort_unstable();
    let path_of = |number: u64| parent.join(format!("{prefix}{number}"));
    let surplus = (numbers.len() + 1).saturating_sub(MAX_SUSPECTS);
    for number in numbers.iter().take(surplus) {
        let path = path_of(*number);
        fs::remove_dir_all(&path).map_err(OpenError::io("delete", &path))?;
    }
    let to = path_of(numbers.last().map_or(1, |newest| newest.saturating_add(1)));
    fs::rename(directory, &to).map_err(OpenError::io("move aside", directory))?;
    sync_parent(directory)?;
    Ok(to)
}

fn parent_of(directory: &Path) -> &Path {
    directory.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn sync_parent(directory: &Path) -> Result<(), OpenError> {
    let parent = parent_of(directory);
    fs::File::open(parent).and_then(|parent| parent.sync_all()).map_err(OpenError::io("sync", parent))
}
