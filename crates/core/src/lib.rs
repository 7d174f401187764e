//! The pure core of Epigraph: everything that an auditor has to trust, and nothing else.
//!
//! It owns the Merkle tree of RFC 6962, the tiles and entry bundles of C2SP `tlog-tiles`, signed notes, checkpoints,
//! cosignatures, `tlog-proof` receipts, policies, *the signing decision*, evidence and observations. It is sans-IO: it
//! does not know the clock, randomness, disks, networks or logging. Time enters as [`UnixMillis`].

pub mod backoff;
pub mod bundle;
pub mod checkpoint;
pub mod cosignature;
pub mod environment;
pub mod evidence;
pub mod gathering;
pub mod hash;
pub mod key;
pub mod note;
pub mod observation;
pub mod policy;
pub mod position;
pub mod progress;
pub mod proof;
pub mod source;
pub mod tile;
pub mod tlog_proof;
pub mod tree;

mod base64;
mod decimal;

pub use checkpoint::{Checkpoint, Verified};
pub use cosignature::CosigningKey;
pub use environment::{Clock, Entropy, UnixMillis};
pub use evidence::Evidence;
pub use hash::Hash;
pub use key::{KeyName, Origin, SigningKey, VKey};
pub use policy::Policy;
pub use position::{LeafIndex, TreeSize};
pub use source::{SourceKey, SourceVKey};
pub use tree::{Frontier, TreeHead};
