//! A log that lies, over real connections: the client believes nothing that is not proven, says what was wrong, and its pin
//! moves by proven growth alone.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    unreachable_pub,
    reason = "a test ends where its promise is broken"
)]

mod conflict;
mod entries;
mod follow;
mod lies;
mod pin;
mod support;
