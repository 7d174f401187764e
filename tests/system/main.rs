//! The program as people and scripts see it: real processes, real files, what is printed, and the exit code.
//!
//! Every test makes its own log through `epigraph quickstart`, on ports that the system chooses, and waits for lines of
//! output and for processes to end, never for time to pass.
#![expect(unreachable_pub, reason = "a test binary has no outside; `pub` says what another module may use")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "whatever does not work here is a failed test")]
#![expect(
    clippy::print_stdout,
    reason = "a test says what it skipped, and from which seed it can be played again"
)]

mod asking;
mod audit;
mod authority;
mod bad_input;
mod by_hand;
mod certificates;
mod clocks;
mod cold_start;
mod collect;
mod damage;
mod demo;
mod deploy;
mod doors;
mod drill;
mod entries;
mod first_minute;
mod follow;
mod fsck;
mod full_disk;
mod gate;
mod hammer;
mod inside;
mod kill;
mod metrics;
mod monitor;
mod monitor_cli;
mod monitor_fsck;
mod operations;
mod paper;
mod policy;
mod producers;
mod python;
mod query;
mod quickstart;
mod quickstart_audit;
mod quickstart_witnessed;
mod receipts;
mod reflection;
mod reload;
mod repin;
mod several;
mod signer;
mod sources;
mod support;
mod tracing;
mod tree;
mod verify;
mod waiting;
mod witness;
mod witness_bad_input;
mod witness_cli;
mod witnesses;
