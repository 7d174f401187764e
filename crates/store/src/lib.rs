//! Durable storage: the journal (the truth), the head store, the published checkpoint, the tree.
//!
//! Everything here is synchronous; one thread owns each file. It knows bytes, files and when they are durable.
//! It does not know signatures, networks, clocks or randomness.

pub mod evidence;
mod fields;
pub mod file;
pub mod follow;
pub mod head;
pub mod history;
pub mod journal;
pub mod lock;
pub mod lookup;
pub mod published;
pub mod scrub;
pub mod sled;
pub mod suite;
pub mod tile;
pub mod tree;
pub mod witness_sizes;
