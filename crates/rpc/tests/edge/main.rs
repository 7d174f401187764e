//! The edge from outside: real sockets, real TLS, certificates made in memory.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test ends where its promise is broken")]

mod calls;
mod handshake;
mod revocation;
mod support;
