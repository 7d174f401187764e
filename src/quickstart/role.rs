//! The processes of a quickstart, and what each is called wherever it has a name.

use std::fmt;

use super::directory::TRUST_DOMAIN;
use crate::cli::{Demo, Lie};

/// How many witnesses there are.
const WITNESSES: u8 = 4;

/// So many of them must cosign: then one may lie without a second history being believed, and one may be down without anything
/// having to wait.
pub const THRESHOLD: usize = 3;

/// So many of them may lie at a start of the log.
pub const FAULTY: usize = 1;

/// The identities under which the monitor reads the log: plain readers, like any other.
pub const READERS: [&str; 2] = ["reader-1", "reader-2"];

/// One process. Its text form names its directory, its files, and its certificates' directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    Log,
    Signer,
    Witness(u8),
    Monitor,
    Audit,
}

/// Who is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cast {
    /// A log with an embedded signer.
    Alone,
    /// Everybody.
    All,
    /// Everybody that a demo needs. A log that lies signs for itself.
    Demo(Demo),
}

impl Cast {
    /// Every process, in the order in which they are stopped: whoever still asks others goes first.
    pub fn roles(self) -> Vec<Role> {
        let others = match self {
            Cast::Alone => return vec![Role::Log],
            Cast::Demo(demo) if demo.lie().is_some() => vec![Role::Monitor, Role::Log],
            Cast::Demo(_) => vec![Role::Monitor, Role::Log, Role::Signer],
            Cast::All => vec![Role::Monitor, Role::Audit, Role::Log, Role::Signer],
        };
        others.into_iter().chain(Role::witnesses()).collect()
    }

    /// Whether the process is one that lies.
    pub fn lies(self, role: Role) -> bool {
        let Cast::Demo(demo) = self else { return false };
        match role {
            Role::Log => demo.lie().is_some(),
            Role::Witness(number) => demo.lying_witnesses().contains(&number),
            Role::Signer | Role::Monitor | Role::Audit => false,
        }
    }
}

impl Demo {
    /// What the log lies about, if it lies.
    pub fn lie(self) -> Option<Lie> {
        match self {
            Demo::SplitView => Some(Lie::SplitView),
            Demo::Rewrite => Some(Lie::Rewrite),
            Demo::Freeze => Some(Lie::Freeze),
            Demo::Drop => Some(Lie::Drop),
            Demo::WitnessLiar | Demo::Honest => None,
        }
    }

    /// The witnesses that lie.
    pub fn lying_witnesses(self) -> &'static [u8] {
        match self {
            Demo::SplitView => &[3, 4],
            Demo::WitnessLiar => &[4],
            Demo::Rewrite | Demo::Freeze | Demo::Drop | Demo::Honest => &[],
        }
    }
}

impl Role {
    /// The witnesses, from 1.
    pub fn witnesses() -> impl Iterator<Item = Role> {
        (1..=WITNESSES).map(Role::Witness)
    }

    /// As `serve` calls it.
    pub fn kind(self) -> &'static str {
        match self {
            Role::Log => "log",
            Role::Signer => "signer",
            Role::Witness(_) => "witness",
            Role::Monitor => "monitor",
            Role::Audit => "audit",
        }
    }

    /// The name in its certificates.
    pub fn spiffe(self) -> String {
        let name = match self {
            Role::Log | Role::Signer | Role::Monitor | Role::Audit => "quickstart".to_owned(),
            Role::Witness(number) => format!("quickstart-{number}"),
        };
        format!("spiffe://{TRUST_DOMAIN}/epigraph/{}/{name}", self.kind())
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Role::Log | Role::Signer | Role::Monitor | Role::Audit => f.write_str(self.kind()),
            Role::Witness(number) => write!(f, "witness-{number}"),
        }
    }
}

/// The name of somebody who reads the log.
pub fn reader_spiffe(name: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/epigraph/reader/{name}")
}

/// The name under which the collector hands events in.
pub fn collector_spiffe() -> String {
    format!("spiffe://{TRUST_DOMAIN}/epigraph/collector/quickstart")
}

/// The name in the client's certificate.
pub fn client_spiffe() -> String {
    format!("spiffe://{TRUST_DOMAIN}/epigraph/appender/quickstart")
}
