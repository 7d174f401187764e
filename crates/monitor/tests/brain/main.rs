//! The monitor's brain against whole worlds: logs that lie in every way, witnesses on their side, clocks that jump, networks that
//! lose, and honest logs that must not be accused. All on a virtual clock; messages are counted, not timed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that fails must say where"
)]

mod bounds;
mod convict;
mod freeze;
mod honest;
mod perjury;
mod split;
mod vigil;
mod world;
