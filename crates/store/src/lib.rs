//! Durable storage: the journal (the truth), the head store, the published checkpoint, the tree.
//!
//! Everything here is synchronous; one thread owns each file. It knows bytes, files and when they are durable.
//! It does not know signatures, networks, clocks or randomness.

pub mod file;
