//! The monitor role: it re-reads every published head of a log and tells when two people were shown two histories.

pub mod event;
pub mod finding;
