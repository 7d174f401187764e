//! The monitor role: it re-reads every published head of a log and tells when two people were shown two histories.

pub mod audit;
pub mod book;
pub mod compare;
pub mod disk;
pub mod drill;
pub mod event;
pub mod finding;
pub mod heads;
pub mod monitor;
pub mod progress;
pub mod run;
pub mod service;
pub mod sinks;
pub mod standing;
pub mod statement;
pub mod vantage;

mod lines;
mod said;
mod state;

pub use monitor::Monitor;
