//! The gate at the start of a log (DESIGN section 4): before anything is acknowledged or signed, the journal, the published
//! checkpoint and what the signer is bound to must be of one history, and the journal the longest of them. Then a term is opened
//! at the signer, on exactly the head that was compared.

use std::sync::Arc;

use epigraph_core::checkpoint::CheckpointError;
use epigraph_core::{Checkpoint, Origin, Policy, TreeHead, Verified};
use epigraph_rpc::peer::{OpenTermAnswer, SignerHead};
use epigraph_signer::backoff::Backoff;
use epigraph_signer::publish::{AskError, AskSigner};
use epigraph_store::file::Dir;
use epigraph_store::journal::head_at;

use crate::failure::{Failure, Outcome};

/// A log as the gate sees it: nothing is appended before it is passed.
#[derive(Clone)]
pub struct Gate {
    pub journal: Arc<dyn Dir>,
    pub origin: Origin,
    /// The head of the journal.
    pub durable: TreeHead,
    /// The head of the published checkpoint, if there is one.
    pub published: Option<TreeHead>,
}

impl Gate {
    /// Compares what lies in the log's own directory, or says what does not fit. Returns the published checkpoint.
    pub fn of_directory(
        journal: Arc<dyn Dir>,
        durable: TreeHead,
        origin: &Origin,
        policy: &Policy,
        published: Option<&[u8]>,
    ) -> Outcome<(Gate, Option<Verified<Checkpoint>>)> {
        let invalid =
            |error| Failure::state(format!("the published checkpoint on disk is not valid: {error}"));
        let (head, published) = match published.map(|note| (note, Checkpoint::open(note, policy))) {
            None => (None, None),
            Some((_, Ok(checkpoint))) => (Some(checkpoint.head()), Some(checkpoint)),
            // It was published under an earlier policy. It is not served, but the log may not fall behind it.
            Some((note, Err(CheckpointError::Quorum(why)))) => {
                tracing::warn!(log = %origin, %why, "the published checkpoint does not satisfy the policy, and is not served");
                (Some(Checkpoint::open_log_signed(note, policy).map_err(invalid)?.head()), None)
            }
            Some((_, Err(error))) => return Err(invalid(error)),
        };
        let gate = Gate { journal, origin: origin.clone(), durable, published: head };
        if let Some(head) = head {
            gate.contains("the published checkpoint", head)?;
        }
        Ok((gate, published))
    }

    /// Compares what the signer holds, and opens a term. Returns the term; waits as long as the signer cannot answer, and says
    /// so to `waiting`.
    pub async fn pass<S: AskSigner>(&self, signer: &S, waiting: impl Fn(&str)) -> Outcome<u64> {
        let mut backoff = Backoff::new();
        loop {
            match self.try_to_pass(signer).await? {
                Ok(term) => return Ok(term),
                Err(AskError::Unavailable(why)) => {
                    let pause = backoff.pause();
                    tracing::warn!(log = %self.origin, waiting_for = %why, again_in = ?pause, "nothing is acknowledged before the gate");
                    waiting(&why);
                    tokio::time::sleep(pause).await;
                }
                Err(error) => return Err(Failure::state(error)),
            }
        }
    }

    async fn try_to_pass<S: AskSigner>(&self, signer: &S) -> Outcome<Result<u64, AskError>> {
        let mut held: SignerHead = match signer.head(&self.origin).await {
            Ok(held) => held,
            Err(error) => return Ok(Err(error)),
        };
        loop {
            let gate = self.clone();
            let compared = tokio::task::spawn_blocking(move || gate.compare(held.head)).await;
            compared.map_err(Failure::state)??;
            match signer.open_term(&self.origin, held).await {
                Ok(OpenTermAnswer::Opened(term)) => return Ok(Ok(term)),
                // Another log process was faster, or an answer was lost: what it holds now is compared anew.
                Ok(OpenTermAnswer::Changed(now)) => held = now,
                Err(error) => return Ok(Err(error)),
            }
        }
    }

    fn compare(&self, held: TreeHead) -> Outcome {
        self.contains("the head that the signer is bound to", held)?;
        match self.published {
            Some(published) if published.size > held.size => Err(Failure::state(format!(
                "the signer of {} went back: it is bound to size {} (root {}), but size {} (root {}) is published under its \
                 key. An older copy of the signer's directory was put in place. Put the newest copy back; nothing was signed",
                self.origin, held.size, held.root, published.size, published.root
            ))),
            _ => Ok(()),
        }
    }

    fn contains(&self, what: &str, head: TreeHead) -> Outcome {
        let Gate { journal, origin, durable, .. } = self;
        if head.size > durable.size {
            return Err(Failure::state(format!(
                "the journal of {origin} went back: it has {} entries (root {}), but {what} has {} (root {}). An older copy of \
                 the log's directory was put in place, or files are missing. Put the newest copy back; nothing was signed",
                durable.size, durable.root, head.size, head.root
            )));
        }
        let root = head_at(journal, origin.hash(), head.size, durable.size).map_err(Failure::state)?.root;
        if root != head.root {
            return Err(Failure::state(format!(
                "the journal of {origin} is of another history: at size {} its root is {root}, but {what} has root {}. The \
                 directories do not belong together. Put back those that do; nothing was signed",
                head.size, head.root
            )));
        }
        Ok(())
    }
}
