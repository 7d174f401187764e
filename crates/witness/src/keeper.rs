//! The keeper of a witness's heads and key: it decides, persists, then cosigns.
//!
//! It is synchronous and has one owner, so that what it checks is still true when it writes. All proposals that wait are
//! decided together and become durable under one sync. It takes notes whose log signature was verified; it does not know
//! keys of logs, callers, or where sightings come from.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use epigraph_core::note::{self, Parsed, SignatureLine};
use epigraph_core::progress::{self, Conflict, CosignError, Decision, Held, Proposal, Reject};
use epigraph_core::{Hash, Origin, TreeHead, UnixMillis, VKey, cosignature::CosigningKey};
use epigraph_store::head::{HeadError, HeadStore, MAX_HELD_NOTE_BYTES};
use thiserror::Error;

use crate::gate::{Passage, RolledBack, Sighting, judge};

/// For so long a cosignature answers a repeat of its proposal: somebody who sends one checkpoint a thousand times gets one
/// signature and one sync. Far below the age at which a reader stops to trust one.
pub const YOUNG_MS: u64 = 5_000;

/// By so much the clock may lie behind what it said before: a small step of a time service. The time in the cosignature
/// stands still meanwhile.
pub const MAX_BEHIND_MS: u64 = 60_000;

/// What a proposal comes to.
#[derive(Clone, Debug)]
pub enum Answer {
    /// It is cosigned.
    Cosigned(Arc<Cosigned>),
    /// The proposer starts from another size than the one that is held.
    Stale(Held),
    /// Two histories.
    Conflict {
        /// Their heads.
        heads: Conflict,
        /// The log-signed note that is held.
        held: Vec<u8>,
        /// The log-signed note that was proposed.
        proposed: Vec<u8>,
        /// The proof that came with it.
        proof: Vec<Hash>,
    },
}

/// A head, as the log signed it, and this witness's signature.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cosigned {
    /// What is held.
    pub held: Held,
    /// The cosignature.
    pub line: SignatureLine,
}

impl Cosigned {
    /// The note with the log's signature and the witness's.
    pub fn note(&self) -> Vec<u8> {
        match Parsed::parse(&self.held.note) {
            Ok(parsed) => {
                note::encode(parsed.text(), parsed.signatures().iter().chain([&self.line])).into_bytes()
            }
            // What was cosigned did parse.
            Err(_) => Vec::new(),
        }
    }

    /// Whether it is newer than another one of the same log.
    pub fn is_after(&self, other: &Cosigned) -> bool {
        (self.held.head.size, self.held.time) > (other.held.head.size, other.held.time)
    }
}

/// Why a proposal was refused. Nothing was changed by it.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Refused {
    /// No such log was ever added.
    #[error("this witness holds nothing for the log {0:?}")]
    UnknownLog(Origin),
    /// The gate has not been passed.
    #[error(
        "this witness has not yet found out whether it holds its newest head of {0}: it asks the log after each start, and \
         cosigns when the log has answered"
    )]
    Gated(Origin),
    /// The gate found a rollback, of this log or another: one file holds them all.
    #[error(transparent)]
    RolledBack(RolledBack),
    /// The proposal itself.
    #[error(transparent)]
    Reject(#[from] Reject),
    /// The witness's own clock.
    #[error(transparent)]
    Clock(#[from] ClockError),
    /// Longer than what can be held.
    #[error(
        "the checkpoint with the log's signature has at most {MAX_HELD_NOTE_BYTES} bytes, this one has {0}"
    )]
    NoteTooLong(usize),
}

/// Why the clock cannot be right.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum ClockError {
    /// It was never set.
    #[error("the witness's clock stands at the beginning of 1970: set it")]
    Unset,
    /// It lies behind what it said before.
    #[error(
        "the witness's clock says {now} (milliseconds since 1970), but it has cosigned at {held}: it was set back, or was ahead \
         before. Nothing is cosigned until it has caught up"
    )]
    Behind {
        /// What it says.
        now: u64,
        /// What it said.
        held: u64,
    },
    /// It lies far ahead of everything that it said before.
    #[error(
        "the witness's clock says {now} (milliseconds since 1970), more than {max_idle} ms after it last cosigned or added a \
         log ({last}). If the clock is right and the witness stood still for so long, raise `max_idle_days`"
    )]
    Ahead {
        /// What it says.
        now: u64,
        /// The last that it said.
        last: u64,
        /// By how much it may lie ahead.
        max_idle: u64,
    },
}

/// Why logs were not added.
#[derive(Debug, Error)]
pub enum AdmitError {
    /// They would start with a time that cannot be right.
    #[error(transparent)]
    Clock(#[from] ClockError),
    /// The store.
    #[error(transparent)]
    Store(#[from] HeadError),
}

/// After this the process must end: nobody knows what is on the disk, or a decided head could not be signed.
#[derive(Debug, Error)]
pub enum Fatal {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] HeadError),
    /// What was made durable cannot be signed.
    #[error("a head that was made durable cannot be cosigned: {0}; this is a fault of the program")]
    Cosign(#[from] CosignError),
}

/// Heads, key, and what this run of the process knows about them.
pub struct Keeper {
    heads: HeadStore,
    key: CosigningKey,
    /// The newest time in any head: what the clock said last, as far as the disk knows.
    last: UnixMillis,
    max_idle_ms: u64,
    /// Logs that have passed the gate since the start.
    passed: HashMap<Origin, Passage>,
    rolled_back: Option<RolledBack>,
    /// The newest cosignature of each log, made or made again since the start.
    cosigned: HashMap<Origin, Arc<Cosigned>>,
}

impl Keeper {
    /// `max_idle_ms` bounds by how much the clock may lie ahead of what it said last.
    pub fn new(heads: HeadStore, key: CosigningKey, max_idle_ms: u64) -> Keeper {
        let last = heads.heads().map(|(_, held)| held.time).max().unwrap_or_default();
        let (passed, cosigned) = (HashMap::new(), HashMap::new());
        Keeper { heads, key, last, max_idle_ms, passed, rolled_back: None, cosigned }
    }

    /// The public key.
    pub fn vkey(&self) -> &VKey {
        self.key.vkey()
    }

    /// Adds those of the logs for which nothing was ever held, all or none of them. Says what is held for each log, also
    /// where a newer head may have been lost.
    pub fn admit(&mut self, origins: &[Origin], now: UnixMillis) -> Result<Vec<Held>, AdmitError> {
        let is_new = |origin: &&Origin| matches!(self.heads.look(origin), Err(HeadError::UnknownOrigin(_)));
        let new: Vec<Origin> = origins.iter().filter(is_new).cloned().collect();
        if !new.is_empty() {
            let first = Held { time: now, ..Held::EMPTY };
            self.check_clock(&first, now)?;
            self.heads.init_logs(new.into_iter().map(|origin| (origin, first.clone())).collect())?;
            self.last = self.last.max(now);
        }
        Ok(origins.iter().map(|origin| self.heads.look(origin).cloned()).collect::<Result<_, _>>()?)
    }

    /// Lets a log pass the gate, if nothing of what the log shows is newer than what is held. Where a newer head may have
    /// been lost, this is what clears the suspicion.
    pub fn pass(&mut self, origin: &Origin, sightings: &[Sighting]) -> Result<Passage, Refused> {
        self.healthy()?;
        let held = self.heads.look(origin).map_err(|_| Refused::UnknownLog(origin.clone()))?;
        if let Err(rolled_back) = judge(origin, held, sightings) {
            tracing::error!(%rolled_back, "refused");
            self.rolled_back = Some(rolled_back.clone());
            return Err(Refused::RolledBack(rolled_back));
        }
        self.heads.clear_suspicion(origin).map_err(|_| Refused::UnknownLog(origin.clone()))?;
        self.passed.insert(origin.clone(), Passage::Passed);
        Ok(Passage::Passed)
    }

    /// Lets a log pass about which nobody can be asked. Not where a newer head may have been lost.
    pub fn pass_unchecked(&mut self, origin: &Origin) -> Result<Passage, Refused> {
        self.healthy()?;
        self.held(origin)?;
        self.passed.insert(origin.clone(), Passage::Unchecked);
        Ok(Passage::Unchecked)
    }

    /// Decides proposals, makes those that are growth durable under one sync, and cosigns them. Two for one log are decided
    /// one after the other. The answers are in the order of the proposals.
    pub fn propose(
        &mut self,
        proposals: Vec<(Origin, Proposal)>,
        now: UnixMillis,
    ) -> Result<Vec<Result<Answer, Refused>>, Fatal> {
        let mut answers: Vec<Option<Result<Answer, Refused>>> = proposals.iter().map(|_| None).collect();
        let mut waiting: Vec<_> = answers.iter_mut().zip(proposals).collect();
        while !waiting.is_empty() {
            let (mut steps, mut asked, mut later) = (Vec::new(), Vec::new(), Vec::new());
            let mut named = HashSet::new();
            for (answer, (origin, proposal)) in waiting {
                if named.contains(&origin) {
                    later.push((answer, (origin, proposal)));
                    continue;
                }
                match self.decide(&origin, proposal, now) {
                    Decided::Now(result) => *answer = Some(result),
                    Decided::Step(step) => {
                        steps.push(step);
                        asked.push(answer);
                        named.insert(origin);
                    }
                }
            }
            let nexts: Vec<_> =
                steps.iter().map(|step| (step.origin().clone(), step.next().clone())).collect();
            // A crash before this: nothing happened. After it, before the cosignature left: the head is held, the log is told so
            // when it asks again, and gets its cosignature.
            let committed = match steps.is_empty() {
                true => Vec::new(),
                false => progress::commit(steps, &mut self.heads)?,
            };
            for ((answer, committed), (origin, held)) in asked.into_iter().zip(committed).zip(nexts) {
                self.last = self.last.max(held.time);
                let cosigned = Arc::new(Cosigned { held, line: committed.cosign(&self.key)? });
                self.cosigned.insert(origin, Arc::clone(&cosigned));
                *answer = Some(Ok(Answer::Cosigned(cosigned)));
            }
            waiting = later;
        }
        Ok(answers.into_iter().flatten().collect())
    }

    /// The newest head that was cosigned; `None` if none ever was. After a start its cosignature is made again: the same one,
    /// since it is over the same text and time.
    pub fn newest(&mut self, origin: &Origin) -> Result<Option<Arc<Cosigned>>, Refused> {
        let held = self.held(origin)?;
        if held.note.is_empty() {
            return Ok(None);
        }
        if let Some(cosigned) = self.cosigned.get(origin) {
            return Ok(Some(Arc::clone(cosigned)));
        }
        let held = held.clone();
        let unknown = || Refused::UnknownLog(origin.clone());
        let durable = progress::recall(origin, &self.heads).map_err(|_| unknown())?;
        let line = durable.cosign(&self.key).map_err(|_| unknown())?;
        let cosigned = Arc::new(Cosigned { held, line });
        self.cosigned.insert(origin.clone(), Arc::clone(&cosigned));
        Ok(Some(cosigned))
    }

    fn decide(&self, origin: &Origin, proposal: Proposal, now: UnixMillis) -> Decided {
        match self.try_decide(origin, proposal, now) {
            Ok(decided) => decided,
            Err(refused) => Decided::Now(Err(refused)),
        }
    }

    fn try_decide(&self, origin: &Origin, proposal: Proposal, now: UnixMillis) -> Result<Decided, Refused> {
        self.healthy()?;
        let held = self.held(origin)?;
        if !self.passed.contains_key(origin) {
            return Err(Refused::Gated(origin.clone()));
        }
        if proposal.note.len() > MAX_HELD_NOTE_BYTES {
            return Err(Refused::NoteTooLong(proposal.note.len()));
        }
        let (note, proof) = (proposal.note.clone(), proposal.proof.clone());
        let answer = match progress::decide(origin, held, proposal, now) {
            Decision::Stale(_) => Answer::Stale(held.clone()),
            Decision::Conflict(heads) => {
                Answer::Conflict { heads, held: held.note.clone(), proposed: note, proof }
            }
            Decision::Reject(reject) => return Err(reject.into()),
            Decision::Step(step) => {
                if let Some(young) = self.young(origin, step.next().head, now) {
                    return Ok(Decided::Now(Ok(Answer::Cosigned(young))));
                }
                self.check_clock(held, now)?;
                return Ok(Decided::Step(step));
            }
        };
        Ok(Decided::Now(Ok(answer)))
    }

    fn young(&self, origin: &Origin, head: TreeHead, now: UnixMillis) -> Option<Arc<Cosigned>> {
        let cosigned = self.cosigned.get(origin)?;
        let young = now.0 < cosigned.held.time.0.saturating_add(YOUNG_MS);
        (cosigned.held.head == head && young).then(|| Arc::clone(cosigned))
    }

    fn check_clock(&self, held: &Held, now: UnixMillis) -> Result<(), ClockError> {
        let (now, held, last) = (now.0, held.time.0, self.last.0);
        if now < 1_000 {
            Err(ClockError::Unset)
        } else if held > now.saturating_add(MAX_BEHIND_MS) {
            Err(ClockError::Behind { now, held })
        } else if last > 0 && now > last.saturating_add(self.max_idle_ms) {
            Err(ClockError::Ahead { now, last, max_idle: self.max_idle_ms })
        } else {
            Ok(())
        }
    }

    fn healthy(&self) -> Result<(), Refused> {
        self.rolled_back.clone().map_or(Ok(()), |rolled_back| Err(Refused::RolledBack(rolled_back)))
    }

    /// What is held, unless a newer head may have been lost.
    fn held(&self, origin: &Origin) -> Result<&Held, Refused> {
        self.heads.get(origin).map_err(|error| match error {
            HeadError::Suspect(origin) => Refused::Gated(origin),
            _ => Refused::UnknownLog(origin.clone()),
        })
    }
}

enum Decided {
    Now(Result<Answer, Refused>),
    Step(progress::Step),
}
