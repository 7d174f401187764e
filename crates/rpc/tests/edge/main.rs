//! The edge from outside: real sockets, real TLS, certificates made in memory.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test ends where its promise is broken")]

mod calls;
mod floods;
mod handshake;
mod reload;
mod revocation;
mod support;
