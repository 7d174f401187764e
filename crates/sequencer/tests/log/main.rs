//! What a running log promises its callers, over disks that fail and readers that hang up.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    unreachable_pub,
    reason = "a test ends where its promise is broken"
)]

mod append_streams;
mod appends;
mod entries;
mod faults;
mod groups;
mod limits;
mod lists;
mod lookups;
mod machine;
mod producers;
mod proofs;
mod streams;
mod support;
