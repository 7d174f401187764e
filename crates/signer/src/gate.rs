//! The signer's gate: after a start, nothing is signed for a log before enough of those who see its checkpoints have said
//! what they have seen under the log's key, and none of it is newer than what the signer holds.
//!
//! [`judge`] decides and is pure; [`look_around`] asks. Neither knows how the others are reached.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use epigraph_core::{Checkpoint, Origin, Policy, TreeHead, VKey};
use thiserror::Error;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::backoff::Backoff;

/// Somebody who sees checkpoints of the log: the log process itself, a witness.
pub trait Vantage: Send + Sync {
    /// Who it is, for messages.
    fn name(&self) -> &str;

    /// The newest checkpoint that it has, as a note; `None` if it has none yet. An error is no answer: it is asked again. Ends by
    /// itself.
    fn newest(&self, origin: &Origin) -> impl Future<Output = Result<Option<Vec<u8>>, String>> + Send;
}

/// A head under the log's own signature, and where it was seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    /// Who showed it.
    pub by: String,
    /// The head.
    pub head: TreeHead,
}

/// The signer's state is not the newest one.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum WentBack {
    /// A larger head was signed.
    #[error(
        "the signer of {origin} went back: it is bound to size {} (root {}), but size {} (root {}) is published under its \
         key, as {} shows. An older copy of the signer's directory was put in place. Put the newest copy back, or \
         initialise a new signer directory from that checkpoint with `init signer --checkpoint`; nothing was signed",
        held.size, held.root, seen.head.size, seen.head.root, seen.by
    )]
    Behind {
        /// The log.
        origin: Origin,
        /// What the signer holds.
        held: TreeHead,
        /// What was seen.
        seen: Seen,
    },
    /// Another head of the same size was signed.
    #[error(
        "the signer of {origin} is of another history: it is bound to size {} with root {}, but {} shows root {} for that \
         size, signed with its key. Somebody else signs with this key, or the signer's directory is not this log's. Find \
         out which before anything is started again; nothing was signed",
        held.size, held.root, seen.by, seen.head.root
    )]
    OtherHistory {
        /// The log.
        origin: Origin,
        /// What the signer holds.
        held: TreeHead,
        /// What was seen.
        seen: Seen,
    },
}

/// Whether a signer that holds `held` may go on, after this was seen under its key. A smaller head is what a log that has not
/// yet published shows; whether it is of the same history is for the log's own gate, which has the tree.
pub fn judge(origin: &Origin, held: TreeHead, seen: &[Seen]) -> Result<(), Box<WentBack>> {
    for one in seen {
        if one.head.size > held.size {
            return Err(Box::new(WentBack::Behind { origin: origin.clone(), held, seen: one.clone() }));
        }
        if one.head.size == held.size && one.head.root != held.root {
            return Err(Box::new(WentBack::OtherHistory { origin: origin.clone(), held, seen: one.clone() }));
        }
    }
    Ok(())
}

/// Asks `peers`, all at once, until `enough` of them have answered, and returns what they have seen under `vkey`. `enough` is
/// given who has answered, in the order of `peers`. What shows that `held` is not the newest head ends it earlier, however few
/// have answered. Does not end before: it says to `waiting` for whom it waits.
pub async fn look_around<V: Vantage + 'static>(
    vkey: &VKey,
    held: TreeHead,
    peers: Vec<V>,
    enough: impl Fn(&[bool]) -> bool + Send,
    waiting: impl Fn(&str) + Send,
) -> Vec<Seen> {
    let origin = vkey.name().to_origin();
    let own = Policy::of_log(vkey.clone());
    let names: Vec<String> = peers.iter().map(|peer| peer.name().to_owned()).collect();
    let mut answers: Vec<Result<Option<Seen>, String>> = peers.iter().map(|_| Err(String::new())).collect();
    let mut asking = JoinSet::new();
    for (place, peer) in peers.into_iter().enumerate() {
        ask(&mut asking, &origin, place, Arc::new(peer), Duration::ZERO, Backoff::new());
    }
    loop {
        let seen: Vec<Seen> = answers.iter().flatten().flatten().cloned().collect();
        let answered: Vec<bool> = answers.iter().map(Result::is_ok).collect();
        if enough(&answered) || judge(&origin, held, &seen).is_err() {
            return seen;
        }
        let (place, peer, mut backoff, note) = match asking.join_next().await {
            Some(Ok(asked)) => asked,
            // A task that was lost is somebody who never answers.
            Some(Err(_)) => continue,
            None => return std::future::pending().await,
        };
        answers[place] = note.and_then(|note| read(peer.name(), note, &own));
        if answers[place].is_err() {
            let pause = backoff.pause();
            ask(&mut asking, &origin, place, peer, pause, backoff);
            let missing = names.iter().zip(&answers).filter_map(|(name, answer)| match answer {
                Ok(_) => None,
                Err(why) if why.is_empty() => Some(name.clone()),
                Err(why) => Some(format!("{name}: {why}")),
            });
            let missing = missing.collect::<Vec<_>>().join("; ");
            tracing::warn!(log = %origin, waiting_for = %missing, "nothing is signed before the gate; asking again");
            waiting(&missing);
        }
    }
}

type Asked<V> = (usize, Arc<V>, Backoff, Result<Option<Vec<u8>>, String>);

fn ask<V: Vantage + 'static>(
    asking: &mut JoinSet<Asked<V>>,
    origin: &Origin,
    place: usize,
    peer: Arc<V>,
    pause: Duration,
    backoff: Backoff,
) {
    let origin = origin.clone();
    asking.spawn(async move {
        sleep(pause).await;
        let note = peer.newest(&origin).await;
        (place, peer, backoff, note)
    });
}

/// Only a note with the log's own signature counts.
fn read(by: &str, note: Option<Vec<u8>>, own: &Policy) -> Result<Option<Seen>, String> {
    let open = |note: Vec<u8>| match Checkpoint::open(&note, own) {
        Ok(checkpoint) => Ok(Seen { by: by.to_owned(), head: checkpoint.head() }),
        Err(error) => Err(format!("its answer does not count: {error}")),
    };
    note.map(open).transpose()
}
