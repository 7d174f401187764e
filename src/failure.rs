//! How the program ends when it does not end well: one sentence for people, one exit code for scripts.

use std::fmt;
use std::process::ExitCode;

/// What kind of "no" it is. The numbers are the exit codes, and stable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// Verified, and the answer is no.
    No = 1,
    /// The command line or a configuration file.
    Usage = 2,
    /// The server refused.
    Refused = 3,
    /// The server could not be reached or did not answer in time.
    Unreachable = 4,
    /// Local state was refused: rollback, damage, lock.
    State = 5,
}

/// A failed command.
#[derive(Debug)]
pub struct Failure {
    kind: Kind,
    message: String,
}

impl Failure {
    pub fn new(kind: Kind, message: impl fmt::Display) -> Failure {
        Failure { kind, message: message.to_string() }
    }

    pub fn no(message: impl fmt::Display) -> Failure {
        Failure::new(Kind::No, message)
    }

    pub fn usage(message: impl fmt::Display) -> Failure {
        Failure::new(Kind::Usage, message)
    }

    pub fn unreachable(message: impl fmt::Display) -> Failure {
        Failure::new(Kind::Unreachable, message)
    }

    pub fn state(message: impl fmt::Display) -> Failure {
        Failure::new(Kind::State, message)
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.kind as u8)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// What every command returns.
pub type Outcome<T = ()> = Result<T, Failure>;
