//! The monitor role: it re-reads every published head of a log and tells when two people were shown two histories.

pub mod book;
pub mod compare;
pub mod event;
pub mod finding;
pub mod heads;
pub mod sinks;

mod lines;
