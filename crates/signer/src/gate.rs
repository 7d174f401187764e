//! The signer's gate: after a start, nothing is signed for a log before enough of those who see its checkpoints have said
//! what they have seen under the log's key, and none of it is newer than what the signer holds.
//!
//! [`judge`] decides and is pure; [`look_around`] asks. Neither knows how the others are reached.

use std::future::Future;

use epigraph_core::{Checkpoint, Origin, Policy, TreeHead, VKey};
use thiserror::Error;

use crate::backoff::Backoff;

/// Somebody who sees checkpoints of the log: the log process itself, a witness.
pub trait Vantage: Send + Sync {
    /// Who it is, for messages.
    fn name(&self) -> &str;

    /// The newest checkpoint that it has, as a note; `None` if it has none yet. An error is no answer: it is asked again.
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
pub fn judge(origin: &Origin, held: TreeHead, seen: &[Seen]) -> Result<(), WentBack> {
    for one in seen {
        if one.head.size > held.size {
            return Err(WentBack::Behind { origin: origin.clone(), held, seen: one.clone() });
        }
        if one.head.size == held.size && one.head.root != held.root {
            return Err(WentBack::OtherHistory { origin: origin.clone(), held, seen: one.clone() });
        }
    }
    Ok(())
}

/// Asks `peers` until `enough` of them have answered, and returns what they have seen under `vkey`. `enough` is given who has
/// answered, in the order of `peers`. Does not end before: it says for whom it waits.
pub async fn look_around<V: Vantage>(
    vkey: &VKey,
    peers: &[V],
    enough: impl Fn(&[bool]) -> bool + Send,
) -> Vec<Seen> {
    let origin = vkey.name().to_origin();
    let own = Policy::of_log(vkey.clone());
    let mut answers: Vec<Option<Option<Seen>>> = peers.iter().map(|_| None).collect();
    let mut backoff = Backoff::new();
    loop {
        let mut missing = Vec::new();
        for (peer, answer) in peers.iter().zip(&mut answers).filter(|(_, answer)| answer.is_none()) {
            match peer.newest(&origin).await.and_then(|note| read(peer.name(), note, &own)) {
                Ok(seen) => *answer = Some(seen),
                Err(why) => missing.push(format!("{}: {why}", peer.name())),
            }
        }
        let answered: Vec<bool> = answers.iter().map(Option::is_some).collect();
        if enough(&answered) {
            return answers.into_iter().flatten().flatten().collect();
        }
        let delay = backoff.pause();
        tracing::warn!(log = %origin, waiting_for = %missing.join("; "), "nothing is signed before the gate; asking again");
        tokio::time::sleep(delay).await;
    }
}

/// Only a note with the log's own signature counts.
fn read(by: &str, note: Option<Vec<u8>>, own: &Policy) -> Result<Option<Seen>, String> {
    let open = |note: Vec<u8>| match Checkpoint::open(&note, own) {
        Ok(checkpoint) => Ok(Seen { by: by.to_owned(), head: checkpoint.head() }),
        Err(error) => Err(format!("its answer does not count: {error}")),
    };
    note.map(open).transpose()
}
