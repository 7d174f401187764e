//! How the publisher reaches a witness, and what a witness can say. Nothing of an answer is believed here.

use epigraph_core::note::SignatureLine;
use epigraph_core::progress::Proposal;
use epigraph_core::{Origin, TreeHead};

/// How one witness is reached.
pub trait AskWitness: Send + Sync + 'static {
    /// Asks it to cosign; [`Proposal::note`] is the log-signed note. Ends by itself: a witness that does not answer is
    /// [`Reply::Unavailable`].
    fn add_checkpoint(&self, origin: &Origin, proposal: Proposal) -> impl Future<Output = Reply> + Send;

    /// The newest checkpoint that it holds, as a note; `None` if it has none of this log. An error is no answer.
    fn newest(&self, origin: &Origin) -> impl Future<Output = Result<Option<Vec<u8>>, String>> + Send;
}

/// What a witness says to a proposed checkpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    /// It says that it cosigned.
    Cosigned(Vec<SignatureLine>),
    /// It says that it holds another size than it was asked from.
    Stale {
        /// What it claims to hold.
        held: TreeHead,
        /// The log-signed note of it, if it has one.
        note: Option<Vec<u8>>,
    },
    /// It says that the log showed it another history.
    Conflict {
        /// The log-signed note that it holds.
        held: Vec<u8>,
    },
    /// It says that the proof does not lead from what it holds to the proposed head. Where the held size is a power of two that is
    /// all that it can say of another history: the RFC's proof leaves out the one hash that would show it.
    BadProof {
        /// What it says.
        why: String,
        /// The note that it holds, if it shows one: whoever asked has the tree that tells.
        held: Option<Vec<u8>>,
    },
    /// It refused, and says why.
    Refused(String),
    /// It did not answer, or not in a way that can be read.
    Unavailable(String),
}
