//! The sinks: what reaches whom when channels are down, processes are killed and receivers mean harm.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends where its promise is broken"
)]

mod alertmanager;
mod http;
mod queue;
mod support;
mod webhook;
