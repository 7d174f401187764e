//! The audit service: it takes signed batches of events from collectors, keeps what they hold under keys, puts a commitment to each
//! event into a log, and gives each event back with everything that proves it.
//!
//! [`source`] judges batches, [`vault`] has the keys, [`seal`] turns events into what lies on disk and back, [`store`] is that disk and
//! [`keeper`] the thread that writes to it, and [`append`] puts the leaves into the log. To read, [`guard`] decides whether and how far, by
//! policies and [`runbook`]s, and [`index`] finds events, both in the words of [`query`].
//! Nothing here knows what an event means, or what a log does with a leaf.

pub mod append;
pub mod audit;
pub mod guard;
pub mod index;
pub mod keeper;
pub mod query;
pub mod record;
pub mod registry;
pub mod runbook;
pub mod seal;
pub mod service;
pub mod source;
pub mod store;
pub mod vault;

#[cfg(test)]
mod tests;
