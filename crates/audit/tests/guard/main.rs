//! What the guard of the audit service promises: bad requests are refused with their reason, each role sees what it may, and the shipped
//! runbooks find what they are for.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test that fails must say where"
)]

mod answers;
mod audits;
mod bad_queries;
mod documented;
mod matrix;
mod support;
