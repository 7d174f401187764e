//! The signer: it holds the private keys of its logs and, for each log, the newest head it is bound to.
//!
//! It trusts nobody: whatever the sequencer proposes is checked against the head it last signed, the outcome is
//! durable before the signature exists, and a restart changes none of it. After a start it signs nothing for a log, and opens
//! no term, before [`Signer::pass_gate`].

use std::collections::HashMap;

use epigraph_core::progress::{self, Conflict, Decision, Held, Proposal, Step};
use epigraph_core::{Origin, SigningKey, TreeHead, UnixMillis, VKey};
use epigraph_rpc::peer::{OpenTermAnswer, SignerHead};
use epigraph_store::head::{HeadError, HeadStore, Update};
use thiserror::Error;

use crate::gate::{self, Seen, WentBack};
use crate::status::{Gate, Kind, LogStatus, Status};

/// By so much the clock may lie ahead of the newest head that is held: more than a log stands still for, and less than what a
/// clock without a battery or with a wrong century shows. The time of a head never falls, so one that is far ahead must not
/// become durable.
pub const MAX_IDLE_MS: u64 = 5 * 366 * 24 * 60 * 60 * 1_000;

/// The signer of one or several logs.
pub struct Signer {
    keys: HashMap<Origin, SigningKey>,
    heads: HeadStore,
    /// Those that have passed, and those that never will.
    gates: HashMap<Origin, Result<(), Box<WentBack>>>,
    status: Status,
}

/// A head that somebody wants signed in a term.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// The log.
    pub origin: Origin,
    /// The term.
    pub term: u64,
    /// The head, and how it follows from the one that is held.
    pub proposal: Proposal,
}

/// What the signer answers to a proposed head.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The checkpoint, as a signed note. It may have been signed before.
    Signed(String),
    /// It holds another head than the proposer thinks: propose again from there.
    Stale(TreeHead),
    /// The proposed head does not extend what was signed before. Nothing was signed.
    Conflict(Conflict),
    /// The proposal is malformed or its proof does not hold; why. Nothing was signed.
    Reject(String),
}

/// Why the signer could not answer. Nothing was signed.
#[derive(Debug, Error)]
pub enum SignerError {
    /// It has no key for this log.
    #[error("the signer has no key for the log {0}")]
    UnknownLog(Origin),
    /// The gate is not passed yet.
    #[error(
        "the signer of {0} has not yet found out whether something newer is published than it holds; its messages say for \
         whom it waits"
    )]
    Gated(Origin),
    /// The gate will not be passed.
    #[error(transparent)]
    WentBack(#[from] Box<WentBack>),
    /// An older sequencer.
    #[error(
        "term {asked} of {origin} is over: another log process has opened term {open} at the signer, and only it may go on \
         (or the signer came back from a crash in which a term may have been lost: then start the log again)"
    )]
    Fenced {
        /// The log.
        origin: Origin,
        /// The term of the request.
        asked: u64,
        /// The newest one.
        open: u64,
    },
    /// A term that does not exist.
    #[error(
        "the signer of {origin} has opened term {open} and never term {asked}: its state is older than the log's, or another \
         signer's"
    )]
    TermNotOpened {
        /// The log.
        origin: Origin,
        /// The term of the request.
        asked: u64,
        /// The newest one.
        open: u64,
    },
    /// Its clock cannot be right.
    #[error(
        "the clock of the signer of {origin} says {now} (milliseconds since 1970), years after the newest head that it signed \
         ({held}): nothing is signed until it is set. If the clock is right and the log stood still for so long, initialise a new \
         signer directory from the published checkpoint with `init signer --checkpoint`"
    )]
    ClockAhead {
        /// The log.
        origin: Origin,
        /// What the clock says.
        now: u64,
        /// The time of the held head.
        held: u64,
    },
    /// 2^64 terms.
    #[error("the signer of {0} has no terms left; initialise a new log")]
    NoTermLeft(Origin),
    /// The head store.
    #[error(transparent)]
    Store(#[from] HeadError),
    /// The key cannot sign for the log.
    #[error(transparent)]
    WrongKey(#[from] progress::WrongKey),
    /// The thread is gone.
    #[error("the signer's thread has ended; its last message says why")]
    Ended,
}

impl SignerError {
    /// Whether the disk failed, so that the process must end.
    pub fn is_fatal(&self) -> bool {
        matches!(self, SignerError::Store(HeadError::Fatal { .. } | HeadError::Failed) | SignerError::Ended)
    }
}

impl Signer {
    /// A signer over an open head store. Each key signs for the log that is named like it.
    pub fn new(keys: Vec<SigningKey>, heads: HeadStore) -> Signer {
        let keys: HashMap<Origin, SigningKey> =
            keys.into_iter().map(|key| (key.vkey().name().to_origin(), key)).collect();
        let signed_for = heads.heads().filter(|(origin, _)| keys.contains_key(origin));
        let logs = signed_for.map(|(origin, held)| (origin.clone(), LogStatus::new(bound(held)))).collect();
        Signer { keys, heads, gates: HashMap::new(), status: Status::new(logs) }
    }

    /// How it is doing, now and from now on, wherever it is moved to.
    pub fn status(&self) -> Status {
        self.status.clone()
    }

    /// The public halves of its keys.
    pub fn vkeys(&self) -> impl Iterator<Item = &VKey> {
        self.keys.values().map(SigningKey::vkey)
    }

    /// What it is bound to.
    pub fn head(&self, origin: &Origin) -> Result<SignerHead, SignerError> {
        self.key(origin)?;
        match self.heads.get(origin) {
            Ok(held) => Ok(bound(held)),
            Err(HeadError::Suspect(origin)) => Err(SignerError::Gated(origin)),
            Err(error) => Err(error.into()),
        }
    }

    /// Passes the gate, or shuts it until the next start: decides by what was seen under the log's key. A head that was fallen
    /// back to after a crash is trusted from then on.
    pub fn pass_gate(&mut self, origin: &Origin, seen: &[Seen]) -> Result<(), SignerError> {
        let passed = self.try_pass_gate(origin, seen);
        self.status.tell(origin, |log| match &passed {
            Ok(()) => log.gate = Gate::Passed,
            Err(error) => log.gate = Gate::Shut(error.to_string()),
        });
        self.tell_held(origin);
        passed
    }

    fn try_pass_gate(&mut self, origin: &Origin, seen: &[Seen]) -> Result<(), SignerError> {
        self.key(origin)?;
        let suspect = self.heads.suspects().find(|(log, _)| *log == origin).map(|(_, held)| held.head);
        let held = match suspect {
            Some(head) => head,
            None => self.heads.get(origin)?.head,
        };
        if let Err(went_back) = gate::judge(origin, held, seen) {
            self.gates.insert(origin.clone(), Err(went_back.clone()));
            return Err(went_back.into());
        }
        if suspect.is_some() {
            tracing::warn!(log = %origin, size = held.size.get(), "the signer fell back to an older head, and nothing newer is published");
            self.heads.clear_suspicion(origin)?;
            self.skip_a_term(origin)?;
        }
        self.gates.insert(origin.clone(), Ok(()));
        Ok(())
    }

    /// What was lost in a crash may have been a term that a log process was told of: the one after the term that is held. From now
    /// on neither is open.
    fn skip_a_term(&mut self, origin: &Origin) -> Result<(), SignerError> {
        let held = self.heads.get(origin)?.clone();
        let term = held.term.checked_add(2).ok_or_else(|| SignerError::NoTermLeft(origin.clone()))?;
        let new = Held { term, ..held.clone() };
        Ok(self.heads.commit(&[Update { origin: origin.clone(), expected: held, new }])?)
    }

    /// Opens the next term, if it still holds what the caller expects; durable before it returns.
    pub fn open_term(
        &mut self,
        origin: &Origin,
        expected: &SignerHead,
    ) -> Result<OpenTermAnswer, SignerError> {
        let answer = self.try_open_term(origin, expected);
        match &answer {
            Ok(OpenTermAnswer::Opened(_)) => self.tell_held(origin),
            Ok(OpenTermAnswer::Changed(_)) => {
                self.status.tell(origin, |log| log.count(Some(Kind::Stale)));
            }
            Err(error) => self.status.tell(origin, |log| log.count(Some(Kind::of_error(error)))),
        }
        answer
    }

    fn try_open_term(
        &mut self,
        origin: &Origin,
        expected: &SignerHead,
    ) -> Result<OpenTermAnswer, SignerError> {
        let held = self.passed(origin)?.clone();
        if bound(&held) != *expected {
            return Ok(OpenTermAnswer::Changed(bound(&held)));
        }
        let term = held.term.checked_add(1).ok_or_else(|| SignerError::NoTermLeft(origin.clone()))?;
        let new = Held { term, ..held.clone() };
        // A crash before the commit: nothing happened. After it: a term that nobody knows of is open, and fences the older
        // ones; the caller asks again and gets the one after it.
        self.heads.commit(&[Update { origin: origin.clone(), expected: held, new }])?;
        Ok(OpenTermAnswer::Opened(term))
    }

    /// Signs each proposed head that extends the one held, after making all of them durable under one sync. No two of them are
    /// of one log; the answers are in their order.
    pub fn sign_checkpoints(
        &mut self,
        requests: Vec<Request>,
        now: UnixMillis,
    ) -> Vec<Result<Answer, SignerError>> {
        let mut answers: Vec<Option<Result<Answer, SignerError>>> = Vec::with_capacity(requests.len());
        let origins: Vec<Origin> = requests.iter().map(|request| request.origin.clone()).collect();
        let (mut places, mut steps) = (Vec::new(), Vec::new());
        for (place, request) in requests.into_iter().enumerate() {
            answers.push(match self.decide(request, now) {
                Ok(Decision::Step(step)) => {
                    places.push(place);
                    steps.push(step);
                    None
                }
                Ok(Decision::Stale(held)) => Some(Ok(Answer::Stale(held))),
                Ok(Decision::Conflict(conflict)) => Some(Ok(Answer::Conflict(conflict))),
                Ok(Decision::Reject(reject)) => Some(Ok(Answer::Reject(reject.to_string()))),
                Err(error) => Some(Err(error)),
            });
        }
        for (place, answer) in places.into_iter().zip(self.commit_and_sign(steps)) {
            answers[place] = Some(answer);
        }
        let answers: Vec<_> =
            answers.into_iter().map(|answer| answer.unwrap_or(Err(SignerError::Ended))).collect();
        for (origin, answer) in origins.iter().zip(&answers) {
            self.status.tell(origin, |log| log.count(Kind::of_answer(answer)));
            if matches!(answer, Ok(Answer::Signed(_))) {
                self.tell_held(origin);
            }
        }
        answers
    }

    fn tell_held(&self, origin: &Origin) {
        if let Ok(held) = self.heads.look(origin) {
            self.status.tell(origin, |log| log.held = bound(held));
        }
    }

    /// Signs one proposed head, as [`Signer::sign_checkpoints`] does.
    pub fn sign_checkpoint(&mut self, request: Request, now: UnixMillis) -> Result<Answer, SignerError> {
        self.sign_checkpoints(vec![request], now).pop().unwrap_or(Err(SignerError::Ended))
    }

    fn decide(&self, request: Request, now: UnixMillis) -> Result<Decision, SignerError> {
        let Request { origin, term: asked, proposal } = request;
        let held = self.passed(&origin)?;
        let open = held.term;
        if asked < open {
            return Err(SignerError::Fenced { origin, asked, open });
        }
        // No term is opened as 0: a signer that was just made has none yet.
        if asked > open || asked == 0 {
            return Err(SignerError::TermNotOpened { origin, asked, open });
        }
        // A head that was never signed has no time. A clock that was set back does no harm: the time of the head stands still, and
        // no signature of a log carries it.
        let (now_ms, held_ms) = (now.0, held.time.0);
        if held_ms > 0 && now_ms > held_ms.saturating_add(MAX_IDLE_MS) {
            return Err(SignerError::ClockAhead { origin, now: now_ms, held: held_ms });
        }
        Ok(progress::decide(&origin, held, proposal, now))
    }

    /// One answer for each step.
    fn commit_and_sign(&mut self, steps: Vec<Step>) -> Vec<Result<Answer, SignerError>> {
        if steps.is_empty() {
            return Vec::new();
        }
        let origins: Vec<Origin> = steps.iter().map(|step| step.origin().clone()).collect();
        // A crash before the commit: nothing happened. After it, before the signature left: the head is held, the
        // proposer asks again and gets the same text signed.
        match progress::commit(steps, &mut self.heads) {
            Ok(committed) => {
                let sign = |(committed, origin): (progress::Committed, &Origin)| {
                    Ok(Answer::Signed(committed.sign(self.key(origin)?)?))
                };
                committed.into_iter().zip(&origins).map(sign).collect()
            }
            Err(error) => {
                // Whoever else was in it has to know no more than that the store has failed.
                let others = origins.iter().skip(1).map(|_| Err(SignerError::Store(HeadError::Failed)));
                [Err(SignerError::Store(error))].into_iter().chain(others).collect()
            }
        }
    }

    fn key(&self, origin: &Origin) -> Result<&SigningKey, SignerError> {
        self.keys.get(origin).ok_or_else(|| SignerError::UnknownLog(origin.clone()))
    }

    fn passed(&self, origin: &Origin) -> Result<&Held, SignerError> {
        self.key(origin)?;
        match self.gates.get(origin) {
            None => Err(SignerError::Gated(origin.clone())),
            Some(Err(went_back)) => Err(went_back.clone().into()),
            Some(Ok(())) => Ok(self.heads.get(origin)?),
        }
    }
}

fn bound(held: &Held) -> SignerHead {
    SignerHead { head: held.head, term: held.term }
}
