//! A client whose policy was changed on purpose: its pin was accepted under the old policy, and goes on under the new one only by
//! proven growth, like always. Whether the two policies may follow one another is judged by whoever asks for it.

use epigraph_core::{Checkpoint, Policy, TreeHead};

use crate::{Client, ClientError};

/// What the pin was and is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Repinned {
    /// The head that was accepted under the old policy.
    pub before: TreeHead,
    /// The head that is accepted under the new one.
    pub after: TreeHead,
}

impl Client {
    /// Goes on under this client's policy from a pin that was accepted under `old`: the newest published checkpoint must satisfy
    /// this client's policy, must not be smaller than the pinned one, and must be proven to extend it; then it is pinned. Else the
    /// pin stays as it is. `None` if nothing is pinned.
    pub async fn repin(&self, old: &Policy) -> Result<Option<Repinned>, ClientError> {
        if self.pin.lock()?.read(old)?.is_none() {
            return Ok(None);
        }
        let note = self.log.checkpoint(self.origin.as_str()).await?;
        let served = Checkpoint::open(&note, &self.policy).map_err(|error| self.invalid(&note, error))?;
        if *served.origin() != self.origin {
            return Err(ClientError::WrongAnswer("with the checkpoint of another log"));
        }
        loop {
            let Some(pinned) = self.pin.lock()?.read(old)? else { return Ok(None) };
            self.check_consistent(&served, &pinned).await?;
            let (before, after) = (pinned.head(), served.head());
            if after.size < before.size {
                return Err(ClientError::Behind { served: after, pinned: before });
            }
            // As in `accept`: somebody else may have moved the pin meanwhile.
            let pin = self.pin.lock()?;
            if pin.read(old)?.as_ref() == Some(&pinned) {
                pin.replace(&served)?;
                return Ok(Some(Repinned { before, after }));
            }
        }
    }
}
