//! Policies (C2SP `tlog-policy`): which logs a reader trusts, and how many witnesses must agree.
//!
//! This version knows `log` lines and `quorum none`; a policy that names witnesses is refused, never half obeyed.

use std::str::FromStr;

use thiserror::Error;

use crate::key::{KeyError, VKey};

/// The largest policy file in bytes.
pub const MAX_POLICY_BYTES: usize = 64 * 1024;

/// The most logs in a policy; C2SP asks for at least 32.
pub const MAX_LOGS: usize = 64;

/// A checked policy: at least one log, no witnesses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    logs: Vec<VKey>,
}

/// Why a policy file was refused; `line` counts from 1.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum PolicyError {
    /// More than [`MAX_POLICY_BYTES`].
    #[error("a policy has at most {MAX_POLICY_BYTES} bytes, this one has {0}")]
    TooLong(usize),
    /// A byte that the format does not allow.
    #[error("line {line} of the policy has a byte that is not allowed: only tabs, spaces and printable text")]
    Octet {
        /// Where.
        line: usize,
    },
    /// The first word.
    #[error("line {line} of the policy starts with {word:?}: known are log and quorum")]
    Unknown {
        /// Where.
        line: usize,
        /// The first word of the line.
        word: String,
    },
    /// Witnesses are named.
    #[error(
        "line {line} of the policy asks for witnesses, which this version cannot check; it refuses to ignore them"
    )]
    Witnesses {
        /// Where.
        line: usize,
    },
    /// Too few or too many words.
    #[error("line {line} of the policy reads `log <vkey> [<url>]` or `quorum none`")]
    Words {
        /// Where.
        line: usize,
    },
    /// The vkey.
    #[error("the vkey in line {line} of the policy: {source}")]
    Key {
        /// Where.
        line: usize,
        /// What is wrong with it.
        source: KeyError,
    },
    /// A public key stands twice.
    #[error("line {line} of the policy names a key that an earlier line has")]
    Duplicate {
        /// Where.
        line: usize,
    },
    /// More than [`MAX_LOGS`].
    #[error("a policy names at most {MAX_LOGS} logs")]
    TooManyLogs,
    /// No `log` line.
    #[error("the policy names no log: add a line `log <vkey>`")]
    NoLog,
    /// Not exactly one quorum.
    #[error(
        "a policy has exactly one quorum line, this one has {0}: write `quorum none` to trust the log alone"
    )]
    Quorum(usize),
}

impl Policy {
    /// The policy that trusts one log alone.
    pub fn of_log(log: VKey) -> Policy {
        Policy { logs: vec![log] }
    }

    /// The logs, of which any one suffices.
    pub fn logs(&self) -> &[VKey] {
        &self.logs
    }

    /// The policy as a file.
    pub fn to_text(&self) -> String {
        let logs: String = self.logs.iter().map(|log| format!("log {log}\n")).collect();
        logs + "quorum none\n"
    }
}

impl FromStr for Policy {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Policy, PolicyError> {
        if text.len() > MAX_POLICY_BYTES {
            return Err(PolicyError::TooLong(text.len()));
        }
        let mut logs: Vec<VKey> = Vec::new();
        let mut quorums = 0;
        for (number, content) in text.split('\n').enumerate() {
            let line = number + 1;
            if content.bytes().any(|byte| byte != b'\t' && (byte < 0x20 || byte == 0x7f)) {
                return Err(PolicyError::Octet { line });
            }
            let words: Vec<_> = content.split([' ', '\t']).filter(|word| !word.is_empty()).collect();
            match words.as_slice() {
                [] => {}
                [word, ..] if word.starts_with('#') => {}
                ["log", vkey] | ["log", vkey, _] => {
                    let vkey: VKey = vkey.parse().map_err(|source| PolicyError::Key { line, source })?;
                    if logs.iter().any(|log| log.same_public_key(&vkey)) {
                        return Err(PolicyError::Duplicate { line });
                    }
                    if logs.len() == MAX_LOGS {
                        return Err(PolicyError::TooManyLogs);
                    }
                    logs.push(vkey);
                }
                ["quorum", "none"] => quorums += 1,
                ["witness" | "group", ..] | ["quorum", _] => return Err(PolicyError::Witnesses { line }),
                ["log" | "quorum", ..] => return Err(PolicyError::Words { line }),
                [word, ..] => {
                    return Err(PolicyError::Unknown { line, word: word.chars().take(40).collect() });
                }
            }
        }
        match (logs.len(), quorums) {
            (0, _) => Err(PolicyError::NoLog),
            (_, 1) => Ok(Policy { logs }),
            (_, quorums) => Err(PolicyError::Quorum(quorums)),
        }
    }
}
