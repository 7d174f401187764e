//! The log role: it puts entries in order, makes them durable, and answers with proofs.
//!
//! It owns the journal and the tree of one log. It does not know the log's private key, who signs, or who
//! witnesses: it offers each grown tree head on a channel and is told on another what has been published.

mod growth;
pub mod log;
mod lookup;
pub mod machine;
pub mod run;
pub mod service;
pub mod status;
