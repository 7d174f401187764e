//! How a witness is doing, for whoever runs it: its logs, what it cosigned, and what it refused and why. It decides nothing.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use epigraph_core::checkpoint::CheckpointError;
use epigraph_core::note::NoteError;
use epigraph_core::progress::Reject;
use epigraph_core::{Origin, TreeSize, UnixMillis};

use crate::gate::Passage;
use crate::keeper::{Answer, Refused};
use crate::witness::AddError;

/// Why a proposal got no cosignature.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The proposer started from another size than the one that is held. Ordinary: it asks again.
    Stale,
    /// Two histories under one key.
    Conflict,
    /// Not on the list, or taken off it.
    UnknownLog,
    /// The list has another key than the one that signed what is held.
    Rekeyed,
    /// Not signed by the log.
    BadSignature,
    /// The proof does not lead from the one head to the other.
    BadProof,
    /// No plain checkpoint, or one that cannot be held.
    Malformed,
    /// Too many proposals of one caller or for one log.
    RateLimited,
    /// The log has not answered the gate.
    Gated,
    /// The witness's clock cannot be right.
    ClockSkew,
    /// The witness's state is older than what it signed.
    RolledBack,
    /// Too many wait for the disk, or a fault has stopped the witness.
    Unavailable,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 12] = [
        Kind::Stale,
        Kind::Conflict,
        Kind::UnknownLog,
        Kind::Rekeyed,
        Kind::BadSignature,
        Kind::BadProof,
        Kind::Malformed,
        Kind::RateLimited,
        Kind::Gated,
        Kind::ClockSkew,
        Kind::RolledBack,
        Kind::Unavailable,
    ];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Stale => "stale",
            Kind::Conflict => "conflict",
            Kind::UnknownLog => "unknown_log",
            Kind::Rekeyed => "rekeyed",
            Kind::BadSignature => "bad_signature",
            Kind::BadProof => "bad_proof",
            Kind::Malformed => "malformed",
            Kind::RateLimited => "rate_limited",
            Kind::Gated => "gated",
            Kind::ClockSkew => "clock_skew",
            Kind::RolledBack => "rolled_back",
            Kind::Unavailable => "unavailable",
        }
    }

    /// What an answer counts as; `None` for a cosignature.
    fn of_answer(answer: &Answer) -> Option<Kind> {
        match answer {
            Answer::Cosigned(_) => None,
            Answer::Stale(_) => Some(Kind::Stale),
            Answer::Conflict { .. } => Some(Kind::Conflict),
        }
    }

    fn of_error(error: &AddError) -> Kind {
        match error {
            AddError::UnknownLog(_) | AddError::Removed(_) => Kind::UnknownLog,
            AddError::Rekeyed(_) => Kind::Rekeyed,
            AddError::Checkpoint(
                CheckpointError::NotSigned(_) | CheckpointError::Note(NoteError::BadSignature { .. }),
            ) => Kind::BadSignature,
            AddError::Checkpoint(_) | AddError::NotPlain | AddError::Repeated => Kind::Malformed,
            AddError::CallerQuota(_) | AddError::LogQuota(_) => Kind::RateLimited,
            AddError::LogSilent { .. } | AddError::Asking(_) => Kind::Gated,
            AddError::Overloaded | AddError::Stopped => Kind::Unavailable,
            AddError::Refused(refused) => match refused {
                Refused::UnknownLog(_) => Kind::UnknownLog,
                Refused::Gated(_) => Kind::Gated,
                Refused::RolledBack(_) => Kind::RolledBack,
                Refused::Clock(_) => Kind::ClockSkew,
                Refused::Reject(Reject::Proof(_)) => Kind::BadProof,
                Refused::Reject(_) | Refused::NoteTooLong(_) => Kind::Malformed,
            },
        }
    }
}

/// How a witness is doing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Status {
    /// Logs that it has had since the start.
    pub logs: usize,
    /// Of these, the ones that it no longer serves: taken off the list, or listed with another key.
    pub refused_logs: usize,
    /// Of the others, the ones that have not passed the gate since the start; nobody has proposed anything, or the log is silent.
    pub waiting_logs: usize,
    /// Of the others, the ones that passed without anybody having been asked.
    pub unchecked_logs: usize,
    /// Cosignatures given out since the start, repeats included.
    pub cosigned: u64,
    /// Proposals without one.
    pub refusals: Refusals,
    /// Whether its state is older than what it signed: it cosigns nothing more.
    pub rolled_back: bool,
    /// Whether it is about to stop.
    pub draining: bool,
    /// Whether a fault has ended it.
    pub stopped: bool,
}

/// How many proposals got no cosignature since the start, by why.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Refusals([u64; Kind::ALL.len()]);

impl Refusals {
    /// Those of one kind.
    pub fn of(&self, kind: Kind) -> u64 {
        self.0[kind as usize]
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

/// What a witness holds for a log that it serves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HeldLog {
    /// The log.
    pub origin: Origin,
    /// The size that is held.
    pub size: TreeSize,
    /// When it was last cosigned; `None` if never.
    pub cosigned_at: Option<UnixMillis>,
    /// Where it stands with the gate.
    pub passage: Passage,
}

/// What is counted while the witness runs.
#[derive(Default)]
pub(crate) struct Counters {
    cosigned: AtomicU64,
    refusals: [AtomicU64; Kind::ALL.len()],
    rolled_back: AtomicBool,
}

impl Counters {
    pub(crate) fn count(&self, result: &Result<Answer, AddError>) {
        match result {
            Ok(answer) => match Kind::of_answer(answer) {
                Some(kind) => self.refused(kind),
                None => drop(self.cosigned.fetch_add(1, Ordering::Relaxed)),
            },
            Err(error) => self.count_error(error),
        }
    }

    pub(crate) fn count_error(&self, error: &AddError) {
        let kind = Kind::of_error(error);
        if kind == Kind::RolledBack {
            self.rolled_back.store(true, Ordering::Relaxed);
        }
        self.refused(kind);
    }

    fn refused(&self, kind: Kind) {
        self.refusals[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// What was counted; the rest is left as it is by default.
    pub(crate) fn status(&self) -> Status {
        Status {
            cosigned: self.cosigned.load(Ordering::Relaxed),
            refusals: Refusals(self.refusals.each_ref().map(|counter| counter.load(Ordering::Relaxed))),
            rolled_back: self.rolled_back.load(Ordering::Relaxed),
            ..Status::default()
        }
    }
}
