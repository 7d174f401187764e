//! Audit events: what happened, said by its source, in a form that can be committed to, signed and proven. Pure.
//!
//! It owns the messages of `proto/epigraph/v1/event.proto` ([`v1`]), the commitments to an event's segments
//! ([`segment`]), the record of an event in the log ([`leaf`]), signed batches ([`batch`]) and their chain
//! ([`chain`]), and the proof of one event ([`bundle`]). It does not know the clock, randomness, disks or networks:
//! time and random bytes are arguments. It decides nothing about who may sign: whoever verifies brings the keys.

pub mod batch;
pub mod bundle;
pub mod chain;
pub mod collected;
pub mod decode;
pub mod fit;
pub mod leaf;
pub mod segment;
pub mod sensitive;
pub mod succession;

/// The generated messages of `proto/epigraph/v1/event.proto`.
#[allow(missing_docs, reason = "generated: the documentation is in the .proto file")]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/epigraph.v1.rs"));
}

pub use batch::Batch;
pub use bundle::Bundle;
pub use collected::{Collected, Event};
pub use decode::{Context, Decoded, Rejected};
pub use leaf::{Leaf, Reference};
pub use segment::{Salt, Segment};
