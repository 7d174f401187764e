//! The pure core of Epigraph: everything that an auditor has to trust, and nothing else.
//!
//! It owns the Merkle tree of RFC 6962, the tiles and entry bundles of C2SP `tlog-tiles`, signed notes,
//! checkpoints, `tlog-proof` receipts, witness policies, and *the signing decision*. It is sans-IO: it does not
//! know the clock, randomness, disks, networks or logging. Time enters as [`UnixMillis`].

pub mod bundle;
pub mod environment;
pub mod hash;
pub mod position;
pub mod tree;

pub use hash::Hash;
pub use environment::{Clock, Entropy, UnixMillis};
pub use position::{LeafIndex, TreeSize};
pub use tree::{Frontier, TreeHead};
