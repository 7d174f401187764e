//! Whether a read is made, and how far: everything that is decided before a row is read.
//!
//! [`plan`] is the one door: from who asks and what is asked to a plan, a request for approval, or a refusal. [`policy`] asks the
//! Cedar policies, [`limits`] and [`quota`] say how much, [`approval`] when another person has to agree, [`mask`] what is shown,
//! [`page`] how an answer goes on, and [`refusal`] what a reader is told. All of it is pure: no disk, no clock, no key of an event, and no
//! row: what a refusal says was found out from statistics.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

pub mod approval;
mod bounds;
pub mod limits;
pub mod mask;
pub mod page;
pub mod plan;
pub mod policy;
mod question;
pub mod quota;
pub mod refusal;

/// What a reader was given the right to be. Roles add up: each permits what it permits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Role {
    /// Answers an incident.
    Responder,
    /// Examines what happened, for others.
    Auditor,
    /// Looks after a system.
    Developer,
    /// A program that decides by itself what to ask.
    AiAgent,
    /// A customer, who sees what is its own.
    Viewer,
    /// Looks after the audit service. Reads nothing.
    Admin,
    /// Compares events with the log: is given what proves them, without names and records.
    Monitor,
}

impl Role {
    /// Every role.
    pub const ALL: [Role; 7] = [
        Role::Responder,
        Role::Auditor,
        Role::Developer,
        Role::AiAgent,
        Role::Viewer,
        Role::Admin,
        Role::Monitor,
    ];

    /// Its name in policies, runbooks and configurations.
    pub const fn name(self) -> &'static str {
        match self {
            Role::Responder => "responder",
            Role::Auditor => "auditor",
            Role::Developer => "developer",
            Role::AiAgent => "ai-agent",
            Role::Viewer => "viewer",
            Role::Admin => "admin",
            Role::Monitor => "monitor",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A word that is no role.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "`{0}` is no role of a reader: responder, auditor, developer, ai-agent, viewer, admin and monitor are"
)]
pub struct NotARole(String);

impl FromStr for Role {
    type Err = NotARole;

    fn from_str(word: &str) -> Result<Role, NotARole> {
        Role::ALL.into_iter().find(|role| role.name() == word).ok_or_else(|| NotARole(word.to_owned()))
    }
}

/// What a reader is by nature.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// A person.
    Human,
    /// A program that asks what it was written to ask.
    Service,
    /// A program that decides by itself what to ask.
    Agent,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 3] = [Kind::Human, Kind::Service, Kind::Agent];

    /// Its name in policies and configurations.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Human => "human",
            Kind::Service => "service",
            Kind::Agent => "agent",
        }
    }
}

/// Whose events a reader may see at all.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Tenants {
    /// Everybody's.
    Every,
    /// Those of these.
    Only(BTreeSet<String>),
}

impl Tenants {
    /// Whether this tenant is among them.
    pub fn contains(&self, tenant: &str) -> bool {
        match self {
            Tenants::Every => true,
            Tenants::Only(names) => names.contains(tenant),
        }
    }
}

/// Somebody who reads: authenticated, and configured.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Principal {
    /// The SPIFFE name of its certificate.
    pub name: String,
    /// What it is by nature.
    pub kind: Kind,
    /// What it may be.
    pub roles: BTreeSet<Role>,
    /// Whose events it may see.
    pub tenants: Tenants,
    /// The id under which it stands in events itself, if it does.
    pub subject: Option<String>,
}

/// What a read is about: the events of one kind of source.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Stream {
    /// The kind: `k8s`, `cloudtrail`.
    pub kind: String,
    /// Whose; empty if everybody's are meant.
    pub tenant: String,
}
