//! What the signer never does, and what the publisher does only in order.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    unreachable_pub,
    reason = "a test ends where its promise is broken"
)]

mod forks;
mod gate;
mod publisher;
mod quorum;
mod refresh;
mod signer;
mod sizes;
mod support;
mod terms;
mod witnesses;
