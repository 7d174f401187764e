//! What the monitor promises, on trees and logs made for the purpose.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    unreachable_pub,
    reason = "a test ends where its promise is broken"
)]

mod audit;
mod disk;
mod drill;
mod failures;
mod inspect;
mod liar;
mod lies;
mod order;
mod pki;
mod real;
mod support;
mod trees;
