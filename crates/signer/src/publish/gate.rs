//! The witnesses' part of the gate after a start (DESIGN section 4): a log goes on only when those witnesses that answered
//! know of everything that may have been published, and none of them holds a head that the log does not have.
//!
//! [`judge`] decides and is pure; [`pass`] asks. Only a note with the log's own signature counts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use epigraph_core::checkpoint::LogSigned;
use epigraph_core::policy::WitnessSet;
use epigraph_core::{Checkpoint, Hash, Origin, Policy, TreeHead, TreeSize};
use epigraph_rpc::SpiffeId;
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::ask::AskWitness;
use super::gather::{RootAt, WITNESS_DEADLINE};
use crate::backoff::Backoff;

/// What the witnesses hold, by their places in the policy: a head under the log's own signature, or nothing.
pub type Held = BTreeMap<usize, Option<TreeHead>>;

/// A witness holds what this log does not have.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum WentBack {
    /// More than it has.
    #[error(
        "the journal of {origin} went back: it has {} entries (root {}), but the witness {witness} holds {} (root {}) under \
         this log's own key. An older copy of the log's directory was put in place, with or without the signer's, or files \
         are missing, or somebody else signs with the key. Put the newest copy back; nothing was signed",
        durable.size, durable.root, held.size, held.root
    )]
    Behind {
        /// The log.
        origin: Origin,
        /// The head of its journal.
        durable: TreeHead,
        /// Who shows it.
        witness: String,
        /// What it holds.
        held: TreeHead,
    },
    /// Something else of the same size.
    #[error(
        "the journal of {origin} is of another history: at size {} its root is {root}, but the witness {witness} holds root \
         {} under this log's own key. The directory is not the one that was published from, or somebody else signs with the \
         key. Find out which before anything is started again; nothing was signed",
        held.size, held.root
    )]
    OtherHistory {
        /// The log.
        origin: Origin,
        /// The journal's root at that size.
        root: Hash,
        /// Who shows it.
        witness: String,
        /// What it holds.
        held: TreeHead,
    },
    /// The log's own tree could not be read.
    #[error("the journal of {origin} cannot say its root at size {size}: {why}")]
    Unreadable {
        /// The log.
        origin: Origin,
        /// The size.
        size: TreeSize,
        /// What the journal said.
        why: String,
    },
}

/// A log that may not go on, and the note that shows why.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{why}")]
pub struct Refused {
    /// Why.
    pub why: Box<WentBack>,
    /// What the witness holds, under the log's own signature.
    pub note: String,
}

/// What is decided by what the witnesses hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The log may go on.
    Pass,
    /// Too few have answered; these have not.
    Wait(WitnessSet),
}

/// Whether a log whose journal ends at `durable` may go on after these answers, if up to `faulty` of them may be lies.
/// What contradicts the journal is a refusal, however few have answered.
pub fn judge(
    origin: &Origin,
    policy: &Policy,
    faulty: usize,
    durable: TreeHead,
    answers: &Held,
    root_at: &RootAt,
) -> Result<Verdict, Box<WentBack>> {
    let known = policy.witnesses();
    for (place, held) in answers.iter().filter_map(|(place, held)| Some((*place, (*held)?))) {
        let witness = || known.get(place).map(|witness| witness.name.clone()).unwrap_or_default();
        if held.size > durable.size {
            return Err(Box::new(WentBack::Behind {
                origin: origin.clone(),
                durable,
                witness: witness(),
                held,
            }));
        }
        let root = if held.size == durable.size { Ok(durable.root) } else { root_at(held.size) };
        let root = root
            .map_err(|why| Box::new(WentBack::Unreadable { origin: origin.clone(), size: held.size, why }))?;
        if root != held.root {
            return Err(Box::new(WentBack::OtherHistory {
                origin: origin.clone(),
                root,
                witness: witness(),
                held,
            }));
        }
    }
    let answered: WitnessSet = answers.keys().copied().collect();
    if policy.enough_answers(answered, faulty) {
        Ok(Verdict::Pass)
    } else {
        Ok(Verdict::Wait(WitnessSet::first(known.len()).without(answered)))
    }
}

/// What the gate needs.
pub struct Gate<W> {
    /// The log.
    pub origin: Origin,
    /// Its policy.
    pub policy: Policy,
    /// How many witnesses may lie.
    pub faulty: usize,
    /// The head of its journal.
    pub durable: TreeHead,
    /// The journal's roots.
    pub root_at: Arc<RootAt>,
    /// The witnesses that can be asked, by their places.
    pub dialled: Vec<(usize, Arc<W>)>,
    /// The names under which witnesses dial in, and their places. What somebody else says about one of them is not heard: an old
    /// cosigned note, shown again, would pass for what it holds.
    pub names: BTreeMap<SpiffeId, usize>,
}

/// What somebody who dialled in says to hold: who it is, as its certificate proves, and the note, if it ever cosigned one.
pub type Told = (SpiffeId, Option<Vec<u8>>);

/// Asks until the gate is passed, and returns what the witnesses hold. `waiting` hears for whom it waits. Witnesses that
/// dial in say through `told` what they hold.
pub async fn pass<W: AskWitness>(
    gate: &Gate<W>,
    told: &mut mpsc::Receiver<Told>,
    waiting: impl Fn(&str),
) -> Result<Held, Refused> {
    let mut answers = Held::new();
    let mut newest = String::new();
    let mut why: BTreeMap<usize, String> = BTreeMap::new();
    let mut asking = JoinSet::new();
    for (place, witness) in &gate.dialled {
        ask(&mut asking, gate, *place, witness, Duration::ZERO, Backoff::new());
    }
    loop {
        let Gate { origin, policy, faulty, durable, root_at, .. } = gate;
        match judge(origin, policy, *faulty, *durable, &answers, &**root_at) {
            // The answers before it were judged before it came.
            Err(why) => return Err(Refused { why, note: newest }),
            Ok(Verdict::Pass) => return Ok(answers),
            Ok(Verdict::Wait(missing)) => waiting(&describe(policy, missing, &why)),
        }
        tokio::select! {
            Some(asked) = asking.join_next() => {
                // A task that was lost is a witness that never answers.
                let Ok((place, witness, mut backoff, answer)) = asked else { continue };
                match answer.and_then(|note| read(note, policy)) {
                    Ok(held) => {
                        answers.insert(place, held.as_ref().map(LogSigned::head));
                        newest = held.map(|held| held.note().to_owned()).unwrap_or_default();
                    }
                    Err(error) => {
                        why.insert(place, error);
                        let pause = backoff.pause();
                        ask(&mut asking, gate, place, &witness, pause, backoff);
                    }
                }
            }
            Some((who, note)) = told.recv() => {
                let Some(place) = gate.names.get(&who) else { continue };
                match read(note, policy) {
                    Ok(held) => {
                        answers.insert(*place, held.as_ref().map(LogSigned::head));
                        newest = held.map(|held| held.note().to_owned()).unwrap_or_default();
                    }
                    Err(error) => drop(why.insert(*place, error)),
                }
            }
            else => std::future::pending().await,
        }
    }
}

type Asked<W> = (usize, Arc<W>, Backoff, Result<Option<Vec<u8>>, String>);

fn ask<W: AskWitness>(
    asking: &mut JoinSet<Asked<W>>,
    gate: &Gate<W>,
    place: usize,
    witness: &Arc<W>,
    pause: Duration,
    backoff: Backoff,
) {
    let (witness, origin) = (Arc::clone(witness), gate.origin.clone());
    asking.spawn(async move {
        sleep(pause).await;
        let late = || Err(format!("nothing came within {} s", WITNESS_DEADLINE.as_secs()));
        let answer = timeout(WITNESS_DEADLINE, witness.newest(&origin)).await.unwrap_or_else(|_| late());
        (place, witness, backoff, answer)
    });
}

/// Only the log's own signature counts.
fn read(note: Option<Vec<u8>>, policy: &Policy) -> Result<Option<LogSigned>, String> {
    let open = |note: Vec<u8>| Checkpoint::open_log_signed(&note, policy);
    note.map(open).transpose().map_err(|error| format!("its answer does not count: {error}"))
}

fn describe(policy: &Policy, missing: WitnessSet, why: &BTreeMap<usize, String>) -> String {
    let one = |place: usize| {
        let name = policy.witnesses().get(place).map_or("", |witness| &witness.name);
        match why.get(&place) {
            Some(why) => format!("{name} ({why})"),
            None => name.to_owned(),
        }
    };
    let names: Vec<String> = missing.iter().map(one).collect();
    format!("what enough witnesses hold, still to answer: {}", names.join(", "))
}
