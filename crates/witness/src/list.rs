//! The list of logs that a witness cosigns for, and what may change about it while the witness lives: logs are added. One
//! that is taken off the list keeps its slot for ever and is refused; one whose key differs is refused, not re-keyed.

use std::collections::BTreeMap;

use epigraph_core::checkpoint::LogSigned;
use epigraph_core::progress::Held;
use epigraph_core::{Origin, VKey};
use thiserror::Error;

/// The most logs on one list: what the head store has room for.
pub const MAX_LOGS: usize = epigraph_store::head::MAX_LOGS as usize;

/// A log on the list. Its origin and its key's name may differ: those of foreign logs do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// The first line of its checkpoints.
    pub origin: Origin,
    /// Its key.
    pub vkey: VKey,
    /// Whether there is somebody to ask about it at the gate.
    pub can_ask: bool,
}

/// What a new list comes to.
#[derive(PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// Logs that were not there.
    pub added: Vec<Listed>,
    /// Logs that are there again, unchanged.
    pub returned: Vec<Origin>,
    /// Logs that are gone from the list.
    pub removed: Vec<Origin>,
    /// Logs that have another key now, which is not taken.
    pub rekeyed: Vec<Rekeyed>,
    /// Logs that can be asked now what they show, and could not before: they pass the gate again.
    pub reachable: Vec<Origin>,
}

/// A log's key is never changed.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error(
    "the list has another key for {origin} than before: {listed} instead of {known}. A log's key does not change under one \
     origin: somebody who can write the list could otherwise have a second history cosigned. Put the old key back; a log \
     with a new key takes a new origin"
)]
pub struct Rekeyed {
    /// The log.
    pub origin: Origin,
    /// The key that it has.
    pub known: String,
    /// The key that the list has.
    pub listed: String,
}

/// Why a list is not one.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ListError {
    /// An origin stands twice.
    #[error("the log {0:?} is listed twice")]
    Twice(Origin),
    /// Above [`MAX_LOGS`].
    #[error("a witness has at most {MAX_LOGS} logs, this list has {0}")]
    TooMany(usize),
    /// The key of another role.
    #[error("the vkey of {0:?} is not a log's key")]
    NotALog(Origin),
}

/// Refuses a list that contradicts itself.
pub fn check(list: &[Listed]) -> Result<(), ListError> {
    if list.len() > MAX_LOGS {
        return Err(ListError::TooMany(list.len()));
    }
    let mut seen = BTreeMap::new();
    for log in list {
        if log.vkey.key_type() != epigraph_core::key::KeyType::Ed25519 {
            return Err(ListError::NotALog(log.origin.clone()));
        }
        if seen.insert(&log.origin, ()).is_some() {
            return Err(ListError::Twice(log.origin.clone()));
        }
    }
    Ok(())
}

/// Compares a list with the logs that are known: their keys, and whether they were on the list before.
pub fn compare(known: &BTreeMap<Origin, (VKey, bool)>, list: Vec<Listed>) -> Changes {
    let mut changes = Changes::default();
    let mut listed = BTreeMap::new();
    for log in list {
        listed.insert(log.origin.clone(), ());
        match known.get(&log.origin) {
            None => changes.added.push(log),
            Some((vkey, _)) if *vkey != log.vkey => changes.rekeyed.push(Rekeyed {
                origin: log.origin,
                known: vkey.to_string(),
                listed: log.vkey.to_string(),
            }),
            Some((_, true)) => {}
            Some((_, false)) => changes.returned.push(log.origin),
        }
    }
    let gone = known.iter().filter(|(origin, (_, on_list))| *on_list && !listed.contains_key(origin));
    changes.removed = gone.map(|(origin, _)| origin.clone()).collect();
    changes
}

/// Whether a log whose head is held still has the key that signed it. The list is a file that people edit; the head is what
/// was cosigned.
pub fn check_key(log: &Listed, held: &Held) -> Result<(), Rekeyed> {
    if held.note.is_empty()
        || LogSigned::open(&held.note, &log.origin, std::slice::from_ref(&log.vkey)).is_ok()
    {
        return Ok(());
    }
    let known = "the key that signed the checkpoint it holds".to_string();
    Err(Rekeyed { origin: log.origin.clone(), known, listed: log.vkey.to_string() })
}
