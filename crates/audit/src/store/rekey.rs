//! Wraps every data key of a store under another key, without touching anything that was committed to.
//!
//! All of it is one transaction: after a crash the store opens under the old key or under the new one, never under both or neither.
//! What is sealed stays as it is, because it is sealed under the data keys. Whoever has the old key and an old copy of the store can
//! read that copy for ever: a new key is no remedy for what was copied before.

use std::path::Path;

use epigraph_core::Entropy;
use redb::{Database, ReadableDatabase, ReadableTable};

use super::{KEYS, StoreError, builder, carefully, disk};
use crate::vault::{KeyName, KeyWrapper, Names};

/// Keys that are wrapped at once between two looks at the table.
const PAGE: usize = 1_000;

/// What became of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rekeyed {
    /// How many data keys the store has.
    pub keys: u64,
    /// Whether all of them were wrapped under the new key before.
    pub before: bool,
}

/// Wraps the keys of a store that nobody has open under `new` instead of `old`; or finds that they are, and opens each to be sure.
pub fn rekey(
    path: &Path,
    (old, new): (&dyn KeyWrapper, &dyn KeyWrapper),
    entropy: &dyn Entropy,
) -> Result<Rekeyed, StoreError> {
    in_database(&carefully(|| builder().open(path))?, (old, new), entropy)
}

pub(super) fn in_database(
    database: &Database,
    (old, new): (&dyn KeyWrapper, &dyn KeyWrapper),
    entropy: &dyn Entropy,
) -> Result<Rekeyed, StoreError> {
    let before = is_under(database, new)?;
    let transaction = database.begin_write().map_err(disk("written"))?;
    let mut keys = 0;
    {
        let mut table = transaction.open_table(KEYS).map_err(disk("written"))?;
        let mut after: Option<[u8; KeyName::LEN]> = None;
        loop {
            let page = page(&table, after.as_ref())?;
            let Some((last, _)) = page.last() else { break };
            after = Some(*last);
            for (name, wrapped) in page {
                let damaged = || StoreError::Damaged("the name of a key".into());
                let name = KeyName::from_slice(&name).ok_or_else(damaged)?;
                keys += 1;
                if before {
                    new.unwrap(&name, &wrapped)?;
                    continue;
                }
                let again = new.wrap(&name, &old.unwrap(&name, &wrapped)?, entropy)?;
                // A wrapper that cannot open what it made would take everything with it.
                new.unwrap(&name, &again)?;
                table.insert(name.as_bytes(), again.as_slice()).map_err(disk("written"))?;
            }
        }
    }
    if before {
        transaction.abort().map_err(disk("read"))?;
    } else {
        transaction.commit().map_err(disk("written"))?;
    }
    Ok(Rekeyed { keys, before })
}

/// Whether the store's secret opens under a key.
fn is_under(database: &Database, wrapper: &dyn KeyWrapper) -> Result<bool, StoreError> {
    let transaction = database.begin_read().map_err(disk("read"))?;
    let keys = transaction.open_table(KEYS).map_err(disk("read"))?;
    let secret = keys.get(Names::OWN.as_bytes()).map_err(disk("read"))?.ok_or(StoreError::NoSecret)?;
    Ok(wrapper.unwrap(&Names::OWN, secret.value()).is_ok())
}

type Wrapped = ([u8; KeyName::LEN], Vec<u8>);

/// The keys behind a name.
fn page(
    table: &impl ReadableTable<&'static [u8; KeyName::LEN], &'static [u8]>,
    after: Option<&[u8; KeyName::LEN]>,
) -> Result<Vec<Wrapped>, StoreError> {
    let rows = match after {
        Some(after) => {
            table.range::<&[u8; KeyName::LEN]>((std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded))
        }
        None => table.iter(),
    };
    let rows = rows.map_err(disk("read"))?.take(PAGE);
    rows.map(|row| {
        let (name, wrapped) = row.map_err(disk("read"))?;
        Ok((*name.value(), wrapped.value().to_vec()))
    })
    .collect()
}
