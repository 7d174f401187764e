//! Runbooks: questions that were thought through once, reviewed, and are asked by name. Each is a versioned file with typed parameters,
//! what it reads, what it makes of it, what it may cost, and who may run it.
//!
//! [`mod@file`] turns a file into a [`Runbook`] or says what is wrong with it, [`bind`] a runbook and what a reader gave into scans,
//! [`shelf`] has those that ship and those of a folder, [`document`] describes them for people. None of them decides who runs one.

use std::collections::{BTreeMap, BTreeSet};

use epigraph_core::Hash;
use epigraph_event::v1::Result as Outcome;
use sha2::{Digest, Sha256};

use crate::guard::Role;
use crate::query::Column;

pub mod bind;
pub mod document;
pub mod file;
pub mod shelf;

#[cfg(test)]
mod tests;

/// A question with holes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Runbook {
    /// Its name: `actor-activity`.
    pub id: String,
    /// Counts up with each change of what it asks.
    pub version: u32,
    /// Who answers for it.
    pub owner: String,
    /// What it answers, and what it does not.
    pub description: String,
    /// Who may run it.
    pub roles: BTreeSet<Role>,
    /// What a reader gives it, in the order of the file.
    pub parameters: Vec<Parameter>,
    /// What it reads: the rows of all of them, each once.
    pub reads: Vec<Read>,
    /// What must hold of each row.
    pub filter: Vec<Condition>,
    /// What it makes of the rows; none if they are the answer.
    pub reduce: Option<Recipe>,
    /// Whether the newest row comes first.
    pub newest_first: bool,
    /// The longest window, in seconds.
    pub window_s: u64,
    /// The most bytes of the index that a run may read.
    pub max_bytes: u64,
    /// The columns of its table.
    pub columns: Vec<Column>,
    /// What one gives it, for instance.
    pub example: BTreeMap<String, String>,
    /// SHA-256 of its file: it stands in the record of every run.
    pub hash: Hash,
}

/// What a reader gives a runbook.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// What it means.
    pub description: String,
    /// Of which type it is.
    pub kind: Type,
    /// What it is if it is not given; without one it must be given.
    pub default: Option<String>,
}

/// The type of a parameter.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Type {
    /// A person or an account, by its exact id or its token.
    Actor,
    /// A session or a credential, likewise.
    Session,
    /// A thing, by its exact id or name, or its token.
    Resource,
    /// An address, likewise.
    Address,
    /// The id of a request.
    Request,
    /// One of these words.
    Word(Vec<String>),
    /// A whole number.
    Integer {
        /// The least.
        min: i64,
        /// The most.
        max: i64,
    },
    /// A span of time, in seconds: `10m`.
    Duration {
        /// The shortest.
        min_s: u64,
        /// The longest.
        max_s: u64,
    },
    /// A time, or `end` for the end of the window.
    Time,
}

/// A value in a plan: as it stands, or that of a parameter, written `$name`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Operand {
    /// As it stands.
    Is(String),
    /// That of the parameter of this name.
    Of(String),
}

/// By which index rows are found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Read {
    /// All in the window.
    Time,
    /// Of an actor, or of a session.
    Actor(Operand),
    /// Of a thing.
    Resource(Operand),
    /// Of a request.
    Request(Operand),
    /// Of an outcome.
    Outcome {
        /// Which.
        result: Outcome,
        /// And of this action only.
        action: Option<Operand>,
    },
}

/// That a column has one of these values.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Condition {
    /// The column.
    pub column: Column,
    /// The values.
    pub any_of: Vec<Operand>,
}

/// What is made of the rows, with holes. See [`crate::query::Reduce`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Recipe {
    /// Runs of rows that have something in common.
    Repeated {
        /// How many.
        least: Operand,
        /// Within which span.
        within: Operand,
        /// What they have in common: a column.
        by: Operand,
    },
    /// Failures and then a success.
    Sequence {
        /// How many failures.
        failures: Operand,
        /// Within which span.
        within: Operand,
    },
    /// Changes in order, and what they leave.
    State {
        /// When.
        at: Operand,
    },
    /// What lies outside hours.
    OutsideHours {
        /// The first hour of the day.
        from: Operand,
        /// The hour after the last.
        to: Operand,
        /// How far local time is ahead of UTC, in minutes.
        offset: Operand,
    },
    /// How many rows have each value.
    Count {
        /// Of a column.
        by: Operand,
    },
}

impl Runbook {
    /// The hash of a runbook's file.
    pub fn hash_of(text: &str) -> Hash {
        let hasher = Sha256::new_with_prefix(b"epigraph-runbook/v1\n").chain_update(text);
        Hash::from_bytes(hasher.finalize().into())
    }

    /// The parameter of this name.
    pub fn parameter(&self, name: &str) -> Option<&Parameter> {
        self.parameters.iter().find(|parameter| parameter.name == name)
    }

    /// Every value of its plan that may be one of a parameter.
    fn operands(&self) -> Vec<&Operand> {
        let reads = self.reads.iter().filter_map(|read| match read {
            Read::Time | Read::Outcome { action: None, .. } => None,
            Read::Actor(operand)
            | Read::Resource(operand)
            | Read::Request(operand)
            | Read::Outcome { action: Some(operand), .. } => Some(operand),
        });
        let filter = self.filter.iter().flat_map(|condition| &condition.any_of);
        let reduce = match &self.reduce {
            None => Vec::new(),
            Some(Recipe::Repeated { least, within, by }) => vec![least, within, by],
            Some(Recipe::Sequence { failures, within }) => vec![failures, within],
            Some(Recipe::State { at }) => vec![at],
            Some(Recipe::OutsideHours { from, to, offset }) => vec![from, to, offset],
            Some(Recipe::Count { by }) => vec![by],
        };
        reads.chain(filter).chain(reduce).collect()
    }
}
