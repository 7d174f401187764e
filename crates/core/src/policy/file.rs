//! The policy file (C2SP `tlog-policy`), read strictly: what another reader could take to mean something else is
//! refused.
//!
//! URLs are allowed where the format has them and not kept: where a witness is reached is configuration.

use std::str::FromStr;

use thiserror::Error;

use super::{Group, MAX_GROUPS, MAX_LOGS, MAX_POLICY_BYTES, MAX_WITNESSES, Member, Policy, Witness};
use crate::decimal;
use crate::key::{KeyError, KeyType, VKey};

/// The quorum of no witness; nothing else can be called so.
pub(super) const NONE: &str = "none";

/// How much of a word an error repeats.
const SHOWN_CHARACTERS: usize = 40;

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
    #[error("line {line} of the policy starts with {word:?}: known are log, witness, group and quorum")]
    Unknown {
        /// Where.
        line: usize,
        /// The first word of the line.
        word: String,
    },
    /// Too few or too many words.
    #[error(
        "line {line} of the policy does not read `log <vkey> [<url>]`, `witness <name> <vkey> [<url>]`, \
         `group <name> all|any|<k> <member>...` or `quorum <name>|none`"
    )]
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
    #[error(
        "line {line} of the policy names a key that an earlier line has: it would count twice; one key is one \
         log or one witness, whatever the names"
    )]
    Duplicate {
        /// Where.
        line: usize,
    },
    /// Two keys that a signature line cannot tell apart.
    #[error(
        "line {line} of the policy has a key with the name and key id of another one: signature lines could not \
         tell them apart; one of them needs another name"
    )]
    Ambiguous {
        /// Where.
        line: usize,
    },
    /// A name stands for two things, or for `none`.
    #[error(
        "line {line} of the policy defines {name:?}, which an earlier line defines, or which is reserved"
    )]
    NameTaken {
        /// Where.
        line: usize,
        /// The name.
        name: String,
    },
    /// A name stands for nothing yet.
    #[error(
        "line {line} of the policy uses {name:?}, which no earlier line defines: define it before it is used"
    )]
    Undefined {
        /// Where.
        line: usize,
        /// The name.
        name: String,
    },
    /// A name is a member twice.
    #[error(
        "line {line} of the policy makes {name:?} a member again: a name is in at most one group, and once, so \
         that nobody counts twice"
    )]
    MemberAgain {
        /// Where.
        line: usize,
        /// The name.
        name: String,
    },
    /// The threshold of a group.
    #[error(
        "the group in line {line} of the policy asks for all, any, or a number from 1 to its {members} members"
    )]
    Threshold {
        /// Where.
        line: usize,
        /// How many members the group has.
        members: usize,
    },
    /// More than [`MAX_LOGS`].
    #[error("a policy names at most {MAX_LOGS} logs")]
    TooManyLogs,
    /// More than [`MAX_WITNESSES`].
    #[error("a policy names at most {MAX_WITNESSES} witnesses")]
    TooManyWitnesses,
    /// More than [`MAX_GROUPS`].
    #[error("a policy defines at most {MAX_GROUPS} groups")]
    TooManyGroups,
    /// No `log` line.
    #[error("the policy names no log: add a line `log <vkey>`")]
    NoLog,
    /// Not exactly one quorum.
    #[error(
        "a policy has exactly one quorum line, this one has {0}: write `quorum none` to trust the log alone"
    )]
    Quorum(usize),
}

/// What was read so far.
struct Reader {
    policy: Policy,
    /// Which witnesses and groups are members already.
    taken: Vec<Member>,
    quorums: usize,
}

impl FromStr for Policy {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Policy, PolicyError> {
        if text.len() > MAX_POLICY_BYTES {
            return Err(PolicyError::TooLong(text.len()));
        }
        let empty = Policy { logs: Vec::new(), witnesses: Vec::new(), groups: Vec::new(), quorum: None };
        let mut reader = Reader { policy: empty, taken: Vec::new(), quorums: 0 };
        for (line, content) in (1..).zip(text.split('\n')) {
            if content.bytes().any(|byte| byte != b'\t' && (byte < 0x20 || byte == 0x7f)) {
                return Err(PolicyError::Octet { line });
            }
            let words: Vec<_> = content.split([' ', '\t']).filter(|word| !word.is_empty()).collect();
            match words.as_slice() {
                [] => {}
                [word, ..] if word.starts_with('#') => {}
                ["log", vkey] | ["log", vkey, _] => reader.log(line, vkey)?,
                ["witness", name, vkey] | ["witness", name, vkey, _] => reader.witness(line, name, vkey)?,
                ["group", name, threshold, members @ ..] if !members.is_empty() => {
                    reader.group(line, name, threshold, members)?;
                }
                ["quorum", name] => reader.quorum(line, name)?,
                ["log" | "witness" | "group" | "quorum", ..] => return Err(PolicyError::Words { line }),
                [word, ..] => return Err(PolicyError::Unknown { line, word: shown(word) }),
            }
        }
        match (reader.policy.logs.len(), reader.quorums) {
            (0, _) => Err(PolicyError::NoLog),
            (_, 1) => Ok(reader.policy),
            (_, quorums) => Err(PolicyError::Quorum(quorums)),
        }
    }
}

impl Reader {
    fn log(&mut self, line: usize, vkey: &str) -> Result<(), PolicyError> {
        let vkey = self.new_key(line, vkey, KeyType::Ed25519)?;
        if self.policy.logs.len() == MAX_LOGS {
            return Err(PolicyError::TooManyLogs);
        }
        self.policy.logs.push(vkey);
        Ok(())
    }

    fn witness(&mut self, line: usize, name: &str, vkey: &str) -> Result<(), PolicyError> {
        let vkey = self.new_key(line, vkey, KeyType::CosignatureV1)?;
        let name = self.new_name(line, name)?;
        if self.policy.witnesses.len() == MAX_WITNESSES {
            return Err(PolicyError::TooManyWitnesses);
        }
        self.policy.witnesses.push(Witness { name, vkey });
        Ok(())
    }

    fn group(&mut self, line: usize, name: &str, threshold: &str, names: &[&str]) -> Result<(), PolicyError> {
        let name = self.new_name(line, name)?;
        if self.policy.groups.len() == MAX_GROUPS {
            return Err(PolicyError::TooManyGroups);
        }
        let mut members = Vec::new();
        for name in names {
            let member = self.find(name).ok_or_else(|| PolicyError::Undefined { line, name: shown(name) })?;
            if self.taken.contains(&member) {
                return Err(PolicyError::MemberAgain { line, name: shown(name) });
            }
            self.taken.push(member);
            members.push(member);
        }
        let threshold = match threshold {
            "all" => Some(members.len()),
            "any" => Some(1),
            number => decimal::parse(number).and_then(|number| usize::try_from(number).ok()),
        };
        let threshold = threshold.filter(|threshold| (1..=members.len()).contains(threshold));
        let threshold = threshold.ok_or(PolicyError::Threshold { line, members: members.len() })?;
        self.policy.groups.push(Group { name, threshold, members });
        Ok(())
    }

    fn quorum(&mut self, line: usize, name: &str) -> Result<(), PolicyError> {
        self.quorums += 1;
        if name != NONE {
            let found = self.find(name).ok_or_else(|| PolicyError::Undefined { line, name: shown(name) })?;
            self.policy.quorum = Some(found);
        }
        Ok(())
    }

    fn find(&self, name: &str) -> Option<Member> {
        let witness = self.policy.witnesses.iter().position(|witness| witness.name == name);
        let group = self.policy.groups.iter().position(|group| group.name == name);
        witness.map(Member::Witness).or(group.map(Member::Group))
    }

    fn new_name(&self, line: usize, name: &str) -> Result<String, PolicyError> {
        if name == NONE || self.find(name).is_some() {
            return Err(PolicyError::NameTaken { line, name: shown(name) });
        }
        Ok(name.to_owned())
    }

    /// A key of the type that the line asks for, and of nobody else.
    fn new_key(&self, line: usize, vkey: &str, expected: KeyType) -> Result<VKey, PolicyError> {
        let vkey: VKey = vkey.parse().map_err(|source| PolicyError::Key { line, source })?;
        let found = vkey.key_type();
        if found != expected {
            return Err(PolicyError::Key { line, source: KeyError::WrongType { found, expected } });
        }
        let known =
            || self.policy.logs.iter().chain(self.policy.witnesses.iter().map(|witness| &witness.vkey));
        if known().any(|other| other.same_public_key(&vkey)) {
            return Err(PolicyError::Duplicate { line });
        }
        if known().any(|other| other.name() == vkey.name() && other.id() == vkey.id()) {
            return Err(PolicyError::Ambiguous { line });
        }
        Ok(vkey)
    }
}

fn shown(word: &str) -> String {
    word.chars().take(SHOWN_CHARACTERS).collect()
}
