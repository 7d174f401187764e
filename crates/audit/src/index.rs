//! Indexes over the events of the store: found by time, by who acted, by what was acted on, by request, by outcome, by id, without opening one.
//!
//! All of it is derived. One file of redb holds five tables of rows in the order of their keys (`key`), the counts that estimates are
//! made of, the dictionary of texts and pseudonyms, the ids of events (`ids`), and how far each of these has come. [`follow`] fills it behind everything else; deleted,
//! it is made again, to the same [`Index::digest`]. Rows and texts are sealed under a key of the vault ([`Cover`]): whoever has the file alone
//! sees numbers, and a row that was changed does not open. An index may be added and dropped while others are asked. It knows nothing of who
//! may ask, and no key: pseudonyms are given to it.

pub mod compare;
pub mod complete;
mod counts;
pub mod follow;
mod ids;
mod key;
mod read;
mod value;
mod word;
mod worker;
mod write;

#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use epigraph_core::Hash;
use redb::{
    Builder, Database, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition,
    TableError,
};
use sha2::{Digest, Sha256};
use thiserror::Error;

pub use complete::{Completeness, completeness};
pub use ids::{IdName, Repeat};
pub use key::Kind;
pub use read::{Span, View};
use word::Known;
pub use write::Entry;

use crate::query::scan::MAX_SUBJECTS;
use crate::store::EventName;
use crate::vault::Cover;

type Definition = TableDefinition<'static, &'static [u8], &'static [u8]>;
type Table = ReadOnlyTable<&'static [u8], &'static [u8]>;

/// The kind of the record that a symbol is, for [`Cover::seal`]; its number is the symbol's.
const SYMBOL: u8 = 1;
/// The kind of the record that a row is; its number is that of its leaf.
const ROW: u8 = 2;

/// Texts and pseudonyms, sealed, by number.
const SYMBOLS: Definition = TableDefinition::new("symbols");
/// Their numbers, by their keyed names.
const NUMBERS: Definition = TableDefinition::new("numbers");
/// Which tenants have events on a day, and how many.
const TENANTS: Definition = TableDefinition::new("tenants");
/// Which sources have events on a day: the first and the last sequence number of an epoch, and how many.
const SOURCES: Definition = TableDefinition::new("sources");
/// The ids of events: keyed name and slot.
const IDS: Definition = TableDefinition::new("ids");
/// Those of the newest events, until they are enough to be put among the others.
const NEW_IDS: Definition = TableDefinition::new("new-ids");
/// The format, whose store it is made of, and how far each index has come.
const META: Definition = TableDefinition::new("meta");

/// In the order of [`Kind::ALL`].
const ROWS: [Definition; 5] = [
    TableDefinition::new("time"),
    TableDefinition::new("actor"),
    TableDefinition::new("resource"),
    TableDefinition::new("request"),
    TableDefinition::new("outcome"),
];

/// In the order of [`Kind::ALL`].
const COUNTS: [Definition; 5] = [
    TableDefinition::new("time-counts"),
    TableDefinition::new("actor-counts"),
    TableDefinition::new("resource-counts"),
    TableDefinition::new("request-counts"),
    TableDefinition::new("outcome-counts"),
];

const FORMAT: &[u8] = b"epigraph-audit-index/v5";

/// The cache of the file's pages, in bytes: the pages of the day that is being filled.
const CACHE_BYTES: usize = 64 << 20;

/// Runs of keys that one day of a scan is merged from: people in tenants, or the actions of an outcome.
pub const MAX_RUNS: usize = 16 * MAX_SUBJECTS;

/// Why the indexes did not answer. The store is not touched by any of it.
#[derive(Debug, Error)]
pub enum IndexError {
    /// The file.
    #[error(
        "the audit index cannot be {action}: {source}. Nothing is lost with it: stop the service, delete it, and it is made again"
    )]
    Disk {
        /// What was tried.
        action: &'static str,
        /// What the library said.
        source: Box<redb::Error>,
    },
    /// A record in it.
    #[error(
        "the audit index is damaged: {0} cannot be read. Stop the service and delete it: it is made again"
    )]
    Damaged(String),
    /// Another kind of file, another version, or made from another store.
    #[error("this file is no audit index of this store and version")]
    Other,
    /// It is being made.
    #[error("the index by {} has {has} of {of} events: ask again when it has all", .kind.as_str())]
    NotReady {
        /// Which one.
        kind: Kind,
        /// How many it has.
        has: u64,
        /// How many there are.
        of: u64,
    },
    /// It was dropped.
    #[error("there is no index by {}: add it, or ask by another one", .0.as_str())]
    Dropped(Kind),
    /// Too many things at once.
    #[error(
        "the question is about more than {MAX_RUNS} people, things or actions of one day: name a tenant, or an action"
    )]
    TooMany,
}

impl IndexError {
    /// Whether the file is no good, so that only a new one helps. A disk that does not answer now may answer later.
    pub fn is_damage(&self) -> bool {
        match self {
            IndexError::Other | IndexError::Damaged(_) => true,
            IndexError::Disk { source, .. } => match &**source {
                redb::Error::Corrupted(_) | redb::Error::UpgradeRequired(_) => true,
                redb::Error::Io(error) => {
                    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
                }
                _ => false,
            },
            IndexError::NotReady { .. } | IndexError::Dropped(_) | IndexError::TooMany => false,
        }
    }
}

fn disk<E: Into<redb::Error>>(action: &'static str) -> impl Fn(E) -> IndexError {
    move |error| IndexError::Disk { action, source: Box::new(error.into()) }
}

/// How far an index has come.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Progress {
    /// The slot of the first event that it does not have.
    pub next: u64,
    /// Rows in it: an event has one for everybody and everything that it is found by.
    pub rows: u64,
    /// Bytes of its keys, rows and counts, before the file's own pages.
    pub bytes: u64,
}

/// The indexes of one store. Writes are one at a time; who reads does not wait for them.
pub struct Index {
    database: Database,
    path: PathBuf,
    cover: Arc<Cover>,
    numbers: Mutex<Known>,
}

impl Index {
    /// Opens the indexes of the store with this id ([`crate::store::Reader::producer`]), or makes empty ones.
    pub fn open(path: &Path, store: &[u8; 16], cover: Arc<Cover>) -> Result<Index, IndexError> {
        Index::over(&mut Database::builder(), path, store, cover)
    }

    /// The same, after every page was compared with its checksum. A key or a count that was changed on the disk is not under a seal: rows
    /// would be left out of answers without a word.
    pub fn open_checked(path: &Path, store: &[u8; 16], cover: Arc<Cover>) -> Result<Index, IndexError> {
        let mut builder = Database::builder();
        builder.set_check_integrity_on_open(true);
        let opened = catch_unwind(AssertUnwindSafe(|| Index::over(&mut builder, path, store, cover)));
        opened.unwrap_or_else(|_| Err(damaged("its own table of pages")))
    }

    fn over(
        builder: &mut Builder,
        path: &Path,
        store: &[u8; 16],
        cover: Arc<Cover>,
    ) -> Result<Index, IndexError> {
        builder.set_cache_size(CACHE_BYTES);
        let database = builder.create(path).map_err(disk("opened"))?;
        let index = Index { database, path: path.to_owned(), cover, numbers: Mutex::default() };
        let transaction = index.begin()?;
        match transaction.open_table(META) {
            Ok(meta) => {
                let is = |name: &str, expected: &[u8]| {
                    let value = meta.get(name.as_bytes()).map_err(disk("read"))?;
                    Ok::<_, IndexError>(value.is_some_and(|value| value.value() == expected))
                };
                if !(is("format", FORMAT)? && is("store", store)?) {
                    return Err(IndexError::Other);
                }
            }
            Err(TableError::TableDoesNotExist(_)) => index.create(store)?,
            Err(error) => return Err(disk("opened")(error)),
        }
        Ok(index)
    }

    /// Opens the indexes of a store, and sets aside what is no index of it: a damaged file, or that of another store.
    pub fn open_or_renew(path: &Path, store: &[u8; 16], cover: Arc<Cover>) -> Result<Index, IndexError> {
        match Index::open_checked(path, store, Arc::clone(&cover)) {
            Err(error) if error.is_damage() => {
                tracing::warn!(%error, "the audit index is set aside and made again");
                Index::renew(path, store, cover)
            }
            opened => opened,
        }
    }

    /// Sets aside what is there, in the place of what was set aside before, and makes empty indexes.
    pub fn renew(path: &Path, store: &[u8; 16], cover: Arc<Cover>) -> Result<Index, IndexError> {
        let mut aside = path.as_os_str().to_owned();
        aside.push(".suspect");
        fs::rename(path, aside).map_err(|error| disk("set aside")(redb::Error::Io(error)))?;
        Index::open(path, store, cover)
    }

    fn create(&self, store: &[u8; 16]) -> Result<(), IndexError> {
        let transaction = self.database.begin_write().map_err(disk("written"))?;
        {
            for table in
                [SYMBOLS, NUMBERS, TENANTS, SOURCES, IDS, NEW_IDS].into_iter().chain(ROWS).chain(COUNTS)
            {
                transaction.open_table(table).map_err(disk("written"))?;
            }
            let mut meta = transaction.open_table(META).map_err(disk("written"))?;
            meta.insert(&b"format"[..], FORMAT).map_err(disk("written"))?;
            meta.insert(&b"store"[..], &store[..]).map_err(disk("written"))?;
            for kind in Kind::ALL {
                let none = Progress::default().encode();
                meta.insert(kind.as_str().as_bytes(), &none[..]).map_err(disk("written"))?;
            }
        }
        transaction.commit().map_err(disk("written"))
    }

    /// The indexes as they are now: an estimate and the scan after it on one view count the same rows.
    pub fn view(&self) -> Result<View, IndexError> {
        View::new(self.begin()?, Arc::clone(&self.cover))
    }

    /// How far each index has come that there is, in the order of [`Kind::ALL`].
    pub fn progress(&self) -> Result<Vec<(Kind, Progress)>, IndexError> {
        let meta = self.begin()?.open_table(META).map_err(disk("read"))?;
        let mut all = Vec::new();
        for kind in Kind::ALL {
            if let Some(progress) = progress_of(&meta, kind)? {
                all.push((kind, progress));
            }
        }
        Ok(all)
    }

    /// The slot of the first event that the indexes do not know.
    pub fn next(&self) -> Result<u64, IndexError> {
        Ok(self.last()?.map_or(0, |(slot, _, _)| slot.saturating_add(1)))
    }

    /// The newest event that the indexes know: its slot, its name, where its leaf is.
    pub fn last(&self) -> Result<Option<(u64, EventName, u64)>, IndexError> {
        last_of(&self.begin()?.open_table(META).map_err(disk("read"))?)
    }

    /// What the file takes on the disk, in bytes. It may be longer: the library makes room ahead.
    pub fn file_bytes(&self) -> io::Result<u64> {
        Ok(fs::metadata(&self.path)?.blocks() * 512)
    }

    /// Adds an index. The follower fills it from the first event on; it answers when it has all. Nothing happens if it is there.
    pub fn add(&self, kind: Kind) -> Result<(), IndexError> {
        let transaction = self.database.begin_write().map_err(disk("written"))?;
        {
            let mut meta = transaction.open_table(META).map_err(disk("written"))?;
            if meta.get(kind.as_str().as_bytes()).map_err(disk("read"))?.is_some() {
                return Ok(());
            }
            transaction.open_table(ROWS[kind.place()]).map_err(disk("written"))?;
            transaction.open_table(COUNTS[kind.place()]).map_err(disk("written"))?;
            let none = Progress::default().encode();
            meta.insert(kind.as_str().as_bytes(), &none[..]).map_err(disk("written"))?;
        }
        transaction.commit().map_err(disk("written"))
    }

    /// Drops an index. Nothing happens if it is not there. Who is asking it at the moment gets the whole answer.
    pub fn drop_index(&self, kind: Kind) -> Result<(), IndexError> {
        let transaction = self.database.begin_write().map_err(disk("written"))?;
        {
            let mut meta = transaction.open_table(META).map_err(disk("written"))?;
            meta.remove(kind.as_str().as_bytes()).map_err(disk("written"))?;
            transaction.delete_table(ROWS[kind.place()]).map_err(disk("written"))?;
            transaction.delete_table(COUNTS[kind.place()]).map_err(disk("written"))?;
        }
        transaction.commit().map_err(disk("written"))
    }

    /// SHA-256 over everything that is in the indexes. It does not depend on how they came to be: in one piece or in many, at once or one
    /// after the other.
    pub fn digest(&self) -> Result<Hash, IndexError> {
        let transaction = self.begin()?;
        let mut hasher = Sha256::new();
        let mut take = |part: &[u8]| {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part);
        };
        let dictionary = [SYMBOLS, NUMBERS, TENANTS, SOURCES, IDS, NEW_IDS, META];
        for definition in dictionary.into_iter().chain(ROWS).chain(COUNTS) {
            let table = match transaction.open_table(definition) {
                Ok(table) => table,
                Err(TableError::TableDoesNotExist(_)) => continue,
                Err(error) => return Err(disk("read")(error)),
            };
            take(redb::TableHandle::name(&definition).as_bytes());
            for row in table.range::<&[u8]>(..).map_err(disk("read"))? {
                let (key, value) = row.map_err(disk("read"))?;
                take(key.value());
                take(value.value());
            }
        }
        Ok(Hash::from_bytes(hasher.finalize().into()))
    }

    fn begin(&self) -> Result<ReadTransaction, IndexError> {
        self.database.begin_read().map_err(disk("read"))
    }
}

impl Progress {
    fn encode(self) -> [u8; 24] {
        let mut out = [0; 24];
        for (to, from) in out.chunks_exact_mut(8).zip([self.next, self.rows, self.bytes]) {
            to.copy_from_slice(&from.to_be_bytes());
        }
        out
    }
}

/// How far an index has come; none if it was dropped.
fn progress_of(meta: &impl Bytes, kind: Kind) -> Result<Option<Progress>, IndexError> {
    let Some(value) = meta.get(kind.as_str().as_bytes()).map_err(disk("read"))? else { return Ok(None) };
    let [next, rows, bytes] =
        numbers_of(value.value()).ok_or_else(|| damaged("how far an index has come"))?;
    Ok(Some(Progress { next, rows, bytes }))
}

/// The newest event that the indexes know.
fn last_of(meta: &impl Bytes) -> Result<Option<(u64, EventName, u64)>, IndexError> {
    let Some(value) = meta.get(&LAST[..]).map_err(disk("read"))? else { return Ok(None) };
    let parts = value.value().split_first_chunk::<32>();
    let parts = parts.and_then(|(source, rest)| Some((source, numbers_of::<4>(rest)?)));
    let (source, [epoch, sequence, slot, leaf]) = parts.ok_or_else(|| damaged("the newest event"))?;
    Ok(Some((slot, EventName { source: Hash::from_bytes(*source), epoch, sequence }, leaf)))
}

/// The key of the newest event that the indexes know.
const LAST: &[u8; 4] = b"last";

/// A table that can be read, in a transaction of either kind.
trait Bytes: ReadableTable<&'static [u8], &'static [u8]> {}
impl<T: ReadableTable<&'static [u8], &'static [u8]>> Bytes for T {}

/// Numbers of 8 bytes each, and nothing else.
fn numbers_of<const N: usize>(bytes: &[u8]) -> Option<[u64; N]> {
    let (chunks, rest) = bytes.as_chunks::<8>();
    let chunks: &[[u8; 8]; N] = chunks.try_into().ok()?;
    rest.is_empty().then(|| chunks.map(u64::from_be_bytes))
}

fn damaged(what: impl Into<String>) -> IndexError {
    IndexError::Damaged(what.into())
}
