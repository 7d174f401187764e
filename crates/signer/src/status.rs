//! How a signer is doing, for whoever runs it: what it is bound to, what it signed, what it refused and why. It decides nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use epigraph_core::Origin;
use epigraph_rpc::peer::SignerHead;

use crate::signer::{Answer, SignerError};

/// Why a head was not signed, or a term not opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Another head is held than the asker thinks. Ordinary: it asks again.
    Stale,
    /// The head does not extend what was signed before.
    Conflict,
    /// The proposal makes no sense, or its proof does not hold.
    Rejected,
    /// The gate is not passed yet.
    Gated,
    /// The gate will not be passed: the signer's directory is not the newest one.
    WentBack,
    /// Another log process has opened a newer term.
    Fenced,
    /// The term was never opened here.
    TermNotOpened,
    /// The signer's clock cannot be right.
    ClockSkew,
    /// The signer's own disk or keys.
    Failed,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 9] = [
        Kind::Stale,
        Kind::Conflict,
        Kind::Rejected,
        Kind::Gated,
        Kind::WentBack,
        Kind::Fenced,
        Kind::TermNotOpened,
        Kind::ClockSkew,
        Kind::Failed,
    ];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Stale => "stale",
            Kind::Conflict => "conflict",
            Kind::Rejected => "rejected",
            Kind::Gated => "gated",
            Kind::WentBack => "went_back",
            Kind::Fenced => "fenced",
            Kind::TermNotOpened => "term_not_opened",
            Kind::ClockSkew => "clock_skew",
            Kind::Failed => "failed",
        }
    }

    pub(crate) fn of_error(error: &SignerError) -> Kind {
        match error {
            SignerError::Gated(_) => Kind::Gated,
            SignerError::WentBack(_) => Kind::WentBack,
            SignerError::Fenced { .. } => Kind::Fenced,
            SignerError::TermNotOpened { .. } => Kind::TermNotOpened,
            SignerError::ClockAhead { .. } => Kind::ClockSkew,
            SignerError::UnknownLog(_)
            | SignerError::NoTermLeft(_)
            | SignerError::Store(_)
            | SignerError::WrongKey(_)
            | SignerError::Ended => Kind::Failed,
        }
    }

    /// `None` for a signature.
    pub(crate) fn of_answer(answer: &Result<Answer, SignerError>) -> Option<Kind> {
        match answer {
            Ok(Answer::Signed(_)) => None,
            Ok(Answer::Stale(_)) => Some(Kind::Stale),
            Ok(Answer::Conflict(_)) => Some(Kind::Conflict),
            Ok(Answer::Reject(_)) => Some(Kind::Rejected),
            Err(error) => Some(Kind::of_error(error)),
        }
    }
}

/// Where a log stands with the signer's gate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Gate {
    /// Not enough of those who see its checkpoints have answered yet; who has not, and why, if somebody was asked.
    Waiting(String),
    /// Nothing newer is published: it is signed for.
    Passed,
    /// Never before the next start; why.
    Shut(String),
}

impl Default for Gate {
    fn default() -> Gate {
        Gate::Waiting(String::new())
    }
}

/// One log of a signer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogStatus {
    /// What it is bound to, a head that was fallen back to included.
    pub held: SignerHead,
    /// The gate.
    pub gate: Gate,
    /// Signatures since the start, repeated ones included.
    pub signed: u64,
    refused: [u64; Kind::ALL.len()],
}

impl LogStatus {
    pub(crate) fn new(held: SignerHead) -> LogStatus {
        LogStatus { held, gate: Gate::default(), signed: 0, refused: [0; Kind::ALL.len()] }
    }

    /// Refusals of one kind since the start.
    pub fn refused(&self, kind: Kind) -> u64 {
        self.refused[kind as usize]
    }

    pub(crate) fn count(&mut self, refused: Option<Kind>) {
        match refused {
            Some(kind) => self.refused[kind as usize] += 1,
            None => self.signed += 1,
        }
    }
}

/// The logs of a signer, as its thread last left them. Clones look at the same.
#[derive(Clone, Debug, Default)]
pub struct Status(Arc<Mutex<BTreeMap<Origin, LogStatus>>>);

impl Status {
    pub(crate) fn new(logs: BTreeMap<Origin, LogStatus>) -> Status {
        Status(Arc::new(Mutex::new(logs)))
    }

    /// Each log at this moment.
    pub fn look(&self) -> BTreeMap<Origin, LogStatus> {
        self.logs().clone()
    }

    /// Tells for whom the gate waits, while it does.
    pub fn waits_for(&self, origin: &Origin, whom: &str) {
        self.tell(origin, |log| {
            if let Gate::Waiting(shown) = &mut log.gate {
                whom.clone_into(shown);
            }
        });
    }

    /// Changes what is told of a log; one that the signer has no key for is not told of.
    pub(crate) fn tell(&self, origin: &Origin, change: impl FnOnce(&mut LogStatus)) {
        self.logs().get_mut(origin).map(change).unwrap_or_default();
    }

    fn logs(&self) -> MutexGuard<'_, BTreeMap<Origin, LogStatus>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
