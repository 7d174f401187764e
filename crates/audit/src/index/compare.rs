//! Indexes that are there against the store that they are made of: they are made again beside, and each record is compared. A seal shows
//! which row was changed; that one is missing, or lies under another key, shows only here.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use epigraph_core::LeafIndex;
use redb::TableHandle;

use super::follow::{FollowError, STEP, fill};
use super::{
    COUNTS, IDS, Index, IndexError, Kind, META, NEW_IDS, NUMBERS, ROWS, SOURCES, SYMBOLS, TENANTS, disk, key,
    last_of,
};
use crate::store::Reader;

/// The first record that is not what the store makes of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// The table that it is in.
    pub table: String,
    /// The leaf of the event that it is about, if it is about one.
    pub leaf: Option<LeafIndex>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Difference { table, leaf } = self;
        match leaf {
            Some(leaf) => write!(
                f,
                "the row of leaf {leaf} in the table `{table}` is not what the store makes of its event"
            ),
            None => write!(f, "the table `{table}` is not what the store makes of its events"),
        }
    }
}

/// Compares indexes with what their store gives, as far as they have come. `beside` is a file that is not there yet, for the others.
pub fn compare(index: &Index, reader: &Reader, beside: &Path) -> Result<Option<Difference>, FollowError> {
    let again = Index::open(beside, &reader.producer()?, Arc::new(reader.cover()))?;
    fill_up(&again, reader, index.next()?)?;
    Ok(index.differs(&again)?)
}

/// Takes in what is in the store and not in the indexes, up to a slot.
pub fn fill_up(index: &Index, reader: &Reader, end: u64) -> Result<(), FollowError> {
    loop {
        let next = index.next()?;
        if fill(index, reader, next..next.saturating_add(STEP).min(end), true)? == 0 {
            return Ok(());
        }
    }
}

impl Index {
    /// The row of a leaf in the index by time, as it lies on the disk.
    pub fn sealed_row(&self, leaf: LeafIndex) -> Result<Option<Vec<u8>>, IndexError> {
        let table = self.begin()?.open_table(ROWS[Kind::Time.place()]).map_err(disk("read"))?;
        for row in table.range::<&[u8]>(..).map_err(disk("read"))? {
            let (key, value) = row.map_err(disk("read"))?;
            if key::place(key.value())?.1 == leaf {
                return Ok(Some(value.value().to_vec()));
            }
        }
        Ok(None)
    }

    fn differs(&self, other: &Index) -> Result<Option<Difference>, IndexError> {
        let (mine, theirs) = (self.begin()?, other.begin()?);
        let last = |transaction: &redb::ReadTransaction| {
            last_of(&transaction.open_table(META).map_err(disk("read"))?)
        };
        if last(&mine)? != last(&theirs)? {
            return Ok(Some(Difference { table: META.name().to_owned(), leaf: None }));
        }
        let next = self.next()?;
        let whole = self.progress()?.into_iter().filter(|(_, progress)| progress.next == next);
        let kinds: Vec<Kind> = whole.map(|(kind, _)| kind).collect();
        // Rows first: of them it can be said which event they are about.
        let rows = kinds.iter().map(|kind| (ROWS[kind.place()], true));
        let others = [SYMBOLS, NUMBERS, TENANTS, SOURCES, IDS, NEW_IDS].into_iter();
        let others = others.chain(kinds.iter().map(|kind| COUNTS[kind.place()])).map(|table| (table, false));
        for (table, are_rows) in rows.chain(others) {
            let open =
                |transaction: &redb::ReadTransaction| transaction.open_table(table).map_err(disk("read"));
            let (mine, theirs) = (open(&mine)?, open(&theirs)?);
            let range = |table: &super::Table| table.range::<&[u8]>(..).map_err(disk("read"));
            let (mut mine, mut theirs) = (range(&mine)?, range(&theirs)?);
            loop {
                let pair = (
                    mine.next().transpose().map_err(disk("read"))?,
                    theirs.next().transpose().map_err(disk("read"))?,
                );
                let key = match &pair {
                    (None, None) => break,
                    (Some(mine), Some(theirs)) => {
                        if mine.0.value() == theirs.0.value() && mine.1.value() == theirs.1.value() {
                            continue;
                        }
                        // The one that the other lacks comes first in order.
                        mine.0.value().min(theirs.0.value())
                    }
                    (Some(one), None) | (None, Some(one)) => one.0.value(),
                };
                let leaf = if are_rows { key::place(key).ok().map(|(_, leaf)| leaf) } else { None };
                return Ok(Some(Difference { table: table.name().to_owned(), leaf }));
            }
        }
        Ok(None)
    }
}
