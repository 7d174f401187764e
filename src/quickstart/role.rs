//! The processes of a quickstart, and what each is called wherever it has a name.

use std::fmt;

use super::directory::TRUST_DOMAIN;

/// How many witnesses there are.
const WITNESSES: u8 = 4;

/// So many of them must cosign: then one may lie without a second history being believed, and one may be down without anything
/// having to wait.
pub const THRESHOLD: usize = 3;

/// So many of them may lie at a start of the log.
pub const FAULTY: usize = 1;

/// One process. Its text form names its directory, its files, and its certificates' directory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Log,
    Signer,
    Witness(u8),
}

impl Role {
    /// The witnesses, from 1.
    pub fn witnesses() -> impl Iterator<Item = Role> {
        (1..=WITNESSES).map(Role::Witness)
    }

    /// Every process, in the order in which they are stopped: whoever still asks others goes first.
    pub fn of(alone: bool) -> Vec<Role> {
        let others = [Role::Signer].into_iter().chain(Role::witnesses());
        [Role::Log].into_iter().chain(others.filter(|_| !alone)).collect()
    }

    /// As `serve` calls it.
    pub fn kind(self) -> &'static str {
        match self {
            Role::Log => "log",
            Role::Signer => "signer",
            Role::Witness(_) => "witness",
        }
    }

    /// The name in its certificates.
    pub fn spiffe(self) -> String {
        let name = match self {
            Role::Log | Role::Signer => "quickstart".to_owned(),
            Role::Witness(number) => format!("quickstart-{number}"),
        };
        format!("spiffe://{TRUST_DOMAIN}/epigraph/{}/{name}", self.kind())
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Role::Log | Role::Signer => f.write_str(self.kind()),
            Role::Witness(number) => write!(f, "witness-{number}"),
        }
    }
}

/// The name in the client's certificate.
pub fn client_spiffe() -> String {
    format!("spiffe://{TRUST_DOMAIN}/epigraph/appender/quickstart")
}
