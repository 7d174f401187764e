//! What the core promises, checked from outside: against vectors of other implementations, a plain recursive
//! definition of the tree, three other libraries, and everything that a hostile writer could send.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that fails must say where"
)]

mod cosignatures;
mod decide;
mod evidence;
mod exhaustive;
mod gatherings;
mod golden;
mod limits;
mod observations;
mod oracles;
mod policies;
mod properties;
mod quorums;
mod receipts;
mod reference;
mod tampering;
