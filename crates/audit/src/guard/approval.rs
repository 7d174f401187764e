//! Another person's consent to one read: bound to exactly that read, used once, in time.
//!
//! What is bound is a digest of who reads what, with which runbook and parameters, under which policies, and at which cost at most.
//! The states are values: whoever holds them makes a new one durable before anybody learns of it, a used one before the read begins.

use std::fmt;

use epigraph_core::{Hash, UnixMillis};
use sha2::{Digest, Sha256};

use super::policy::{Action, Facts, Object, Policies};
use super::refusal::{Code, Refusal};
use super::{Principal, Stream};
use crate::query::Estimate;

/// How long a request waits for an answer.
pub const ANSWER_WITHIN_MS: u64 = 24 * 3_600_000;

/// How long a granted request may be used. What was right to read yesterday may not be today.
pub const USE_WITHIN_MS: u64 = 4 * 3_600_000;

/// The most requests of one reader that wait or may be used.
pub const MAX_OPEN: usize = 16;

/// Which request.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ApprovalId([u8; ApprovalId::LEN]);

impl ApprovalId {
    /// Its length in bytes: nobody guesses one.
    pub const LEN: usize = 16;

    /// Takes the bytes, which must be random.
    pub const fn from_bytes(bytes: [u8; ApprovalId::LEN]) -> ApprovalId {
        ApprovalId(bytes)
    }

    /// The bytes.
    pub const fn as_bytes(&self) -> &[u8; ApprovalId::LEN] {
        &self.0
    }

    /// From 32 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<ApprovalId> {
        let is_hex = text.len() == 2 * ApprovalId::LEN && text.bytes().all(|digit| digit.is_ascii_hexdigit());
        let bytes = u128::from_str_radix(text, 16).ok().filter(|_| is_hex)?;
        Some(ApprovalId(bytes.to_be_bytes()))
    }
}

impl fmt::Display for ApprovalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for ApprovalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What an approval is bound to: a digest, made field by field, each with its length.
pub struct Binding(Sha256);

impl Default for Binding {
    fn default() -> Binding {
        Binding(Sha256::new_with_prefix(b"epigraph-approval/v1\n"))
    }
}

impl Binding {
    /// Adds a field.
    #[must_use]
    pub fn with(mut self, field: impl AsRef<[u8]>) -> Binding {
        let field = field.as_ref();
        self.0.update((field.len() as u64).to_le_bytes());
        self.0.update(field);
        self
    }

    /// The digest.
    pub fn digest(self) -> Hash {
        Hash::from_bytes(self.0.finalize().into())
    }
}

/// Where a request stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum State {
    /// Nobody has answered.
    Pending,
    /// Somebody agreed.
    Granted {
        /// Who.
        by: String,
        /// When.
        at: UnixMillis,
    },
    /// Somebody did not.
    Denied {
        /// Who.
        by: String,
        /// When.
        at: UnixMillis,
    },
    /// The read was made, or begun.
    Used {
        /// Who had agreed.
        by: String,
        /// When it was used.
        at: UnixMillis,
    },
}

/// A request that another person agrees to a read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Approval {
    /// Which.
    pub id: ApprovalId,
    /// To exactly what.
    pub binding: Hash,
    /// What the read may cost at most.
    pub ceiling: Estimate,
    /// Who wants to read.
    pub requester: String,
    /// What is read. An approver must be allowed to approve for each.
    pub streams: Vec<Stream>,
    /// What is asked, for the one who answers.
    pub question: String,
    /// Why, as the reader says.
    pub purpose: String,
    /// When it was asked.
    pub asked_at: UnixMillis,
    /// Where it stands.
    pub state: State,
}

/// A request to be made: the one who holds approvals gives it an id and a time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pending {
    /// As in [`Approval`].
    pub binding: Hash,
    /// As in [`Approval`].
    pub ceiling: Estimate,
    /// As in [`Approval`].
    pub requester: String,
    /// As in [`Approval`].
    pub streams: Vec<Stream>,
    /// As in [`Approval`].
    pub question: String,
    /// As in [`Approval`].
    pub purpose: String,
    /// Why another person has to agree.
    pub reason: String,
}

impl Pending {
    /// The request.
    pub fn ask(self, id: ApprovalId, now: UnixMillis) -> Approval {
        let Pending { binding, ceiling, requester, streams, question, purpose, .. } = self;
        let state = State::Pending;
        Approval { id, binding, ceiling, requester, streams, question, purpose, asked_at: now, state }
    }
}

impl Approval {
    /// Whether it can still become anything else.
    pub fn is_open(&self, now: UnixMillis) -> bool {
        matches!(self.state, State::Pending | State::Granted { .. }) && !self.is_expired(now)
    }

    /// When its time is over: for an answer, or for its use once it was granted.
    pub fn expires_at(&self) -> UnixMillis {
        let (since, within) = match &self.state {
            State::Granted { at, .. } => (*at, USE_WITHIN_MS),
            State::Pending | State::Denied { .. } | State::Used { .. } => (self.asked_at, ANSWER_WITHIN_MS),
        };
        UnixMillis(since.0.saturating_add(within))
    }

    /// Whether its time is over, for an answer or for its use.
    pub fn is_expired(&self, now: UnixMillis) -> bool {
        let since = match &self.state {
            State::Pending => self.asked_at,
            State::Granted { at, .. } => *at,
            State::Denied { .. } | State::Used { .. } => return false,
        };
        // A clock that went back must not give a request more time than it had.
        now < since || now >= self.expires_at()
    }

    /// Somebody answers. The answer is in force when the returned request is durable.
    pub fn answer(
        &self,
        who: &Principal,
        agrees: bool,
        policies: &Policies,
        now: UnixMillis,
    ) -> Result<Approval, Refusal> {
        if who.name == self.requester {
            return Err(refusal(
                Code::ApprovalSelf,
                "it is your own request",
                "Ask another person to answer it.",
            ));
        }
        let facts = Facts {
            estimate_rows: self.ceiling.rows,
            estimate_bytes: self.ceiling.bytes,
            purpose: self.purpose.clone(),
            hour: hour(now),
            ..Facts::default()
        };
        for stream in &self.streams {
            let verdict = policies.judge(who, Action::Approve, stream, Object::Stream, &facts);
            if !verdict.allowed {
                let suggestion = "Ask somebody who may: by default auditors and responders, and people only.";
                let mut refusal = refusal(Code::ApprovalForbidden, "you may not answer it", suggestion);
                refusal.policies = verdict.policies;
                return Err(refusal);
            }
        }
        match &self.state {
            State::Pending if self.is_expired(now) => Err(expired()),
            State::Pending => {
                let (by, at) = (who.name.clone(), now);
                let state = if agrees { State::Granted { by, at } } else { State::Denied { by, at } };
                Ok(Approval { state, ..self.clone() })
            }
            State::Granted { by, .. } | State::Denied { by, .. } | State::Used { by, .. } => {
                let message = format!("{by} has answered it already");
                Err(refusal(Code::ApprovalUsed, &message, "An answer is final: ask for a new approval."))
            }
        }
    }

    /// Uses it for a read of this digest that costs at most so much. The returned request must be durable before the read begins.
    pub fn spend(
        &self,
        reader: &Principal,
        binding: &Hash,
        cost: &Estimate,
        now: UnixMillis,
    ) -> Result<Approval, Refusal> {
        if self.requester != reader.name {
            // Whose requests there are is nobody else's business.
            return Err(unknown());
        }
        let by = match &self.state {
            State::Used { .. } => {
                let message = "it was used before";
                return Err(refusal(
                    Code::ApprovalUsed,
                    message,
                    "An approval is for one read: ask for a new one.",
                ));
            }
            State::Denied { by, .. } => {
                let message = format!("{by} did not agree");
                return Err(refusal(
                    Code::ApprovalDenied,
                    &message,
                    "Ask for less, or say why it is needed.",
                ));
            }
            State::Pending if self.is_expired(now) => return Err(expired()),
            State::Pending => {
                let message = "nobody has answered it yet";
                return Err(refusal(
                    Code::ApprovalPending,
                    message,
                    "`epigraph approval list` says where it stands.",
                ));
            }
            State::Granted { .. } if self.is_expired(now) => return Err(expired()),
            State::Granted { by, .. } => by.clone(),
        };
        let grown = cost.rows > self.ceiling.rows || cost.bytes > self.ceiling.bytes;
        if self.binding != *binding || grown {
            let message = if grown {
                "the read would cost more than was approved"
            } else {
                "it was given for another read: another runbook, parameter, window, stream or policy, or other columns"
            };
            let suggestion = "Run exactly what was approved, or ask for a new approval.";
            return Err(refusal(Code::ApprovalEdited, message, suggestion).costing(*cost));
        }
        Ok(Approval { state: State::Used { by, at: now }, ..self.clone() })
    }
}

/// An approval that is not there.
pub fn unknown() -> Refusal {
    refusal(
        Code::ApprovalUnknown,
        "you have no request of this id",
        "`epigraph approval list` lists your requests.",
    )
}

fn expired() -> Refusal {
    let message = format!(
        "its time is over: it is answered within {} hours and used within {} of the answer",
        ANSWER_WITHIN_MS / 3_600_000,
        USE_WITHIN_MS / 3_600_000
    );
    refusal(Code::ApprovalExpired, &message, "Ask for a new approval.")
}

fn refusal(code: Code, message: &str, suggestion: &str) -> Refusal {
    Refusal::new(code, format!("the approval is no use: {message}"), suggestion)
}

/// The hour of the day, UTC.
pub(crate) fn hour(now: UnixMillis) -> u8 {
    // Below 24.
    u8::try_from(now.0 / 3_600_000 % 24).unwrap_or_default()
}
