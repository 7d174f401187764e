//! What the audit events promise, checked from outside: signed batches against every change, the formats against a
//! second implementation, the decoders against real records and against everything that a hostile source could send.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test that fails must say where"
)]

mod batches;
mod bundles;
mod chains;
mod decoders;
mod detectors;
mod hostile;
mod support;
mod vectors;
