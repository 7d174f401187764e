//! The collector: reads audit events where they happen, tokenises, numbers and signs them, keeps them on disk, and delivers
//! them to an audit service exactly once.
//!
//! [`intake`] is a thread that owns the sources ([`tail`], [`pack`]) and signs; another one owns the [`spool`] and writes;
//! [`deliver`] sends what is in the spool and gives it back only once it is proven to be in the log. None knows configuration,
//! certificates or the system's clock.

mod ahead;
pub mod deliver;
pub mod intake;
pub mod pack;
pub mod position;
pub mod spool;
pub mod tail;
mod writer;
