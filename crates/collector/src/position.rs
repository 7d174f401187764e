//! Where a collector goes on reading: one position for each tailed file, by the name under which it was given.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How much of a file's beginning says that it is the one that was read: a file that was truncated and written anew, or
/// whose inode is used again, begins with something else.
pub const HEAD_BYTES: u64 = 1024;

/// The position of each file.
pub type Positions = BTreeMap<String, Position>;

/// How far one file was read.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// The device it is on.
    pub device: u64,
    /// Its inode there.
    pub inode: u64,
    /// The first byte that is not in the spool.
    pub offset: u64,
    /// Of the record that begins there, so many events are in the spool already.
    pub taken: u64,
    /// How many bytes of its beginning `head` is of: the first [`HEAD_BYTES`], as far as they were read.
    pub head_bytes: u64,
    /// SHA-256 of them, in hex.
    pub head: String,
}
