//! The signer inside the log process: a thread of its own, because it waits for its disk.

use std::io;
use std::sync::Arc;
use std::thread;

use epigraph_core::progress::Proposal;
use epigraph_core::{Clock, Origin};
use tokio::sync::{mpsc, oneshot};

use crate::publish::{AskError, AskSigner};
use crate::signer::{Answer, Signer, SignerError};

/// Questions that wait for the signer; a publisher asks one at a time.
const QUEUE: usize = 64;

/// The sending end of the signer's thread.
#[derive(Clone, Debug)]
pub struct EmbeddedSigner {
    questions: mpsc::Sender<Question>,
}

#[derive(Debug)]
struct Question {
    origin: Origin,
    proposal: Proposal,
    answer: oneshot::Sender<Result<Answer, SignerError>>,
}

impl EmbeddedSigner {
    /// Starts the thread. It ends when the last sending end is dropped.
    pub fn spawn(mut signer: Signer, clock: Arc<dyn Clock>) -> io::Result<EmbeddedSigner> {
        let (questions, mut inbox) = mpsc::channel::<Question>(QUEUE);
        thread::Builder::new().name("signer".into()).spawn(move || {
            while let Some(Question { origin, proposal, answer }) = inbox.blocking_recv() {
                let result = signer.sign_checkpoint(&origin, proposal, clock.now());
                // Whoever asked may have gone; what was decided stands.
                let _ = answer.send(result);
            }
        })?;
        Ok(EmbeddedSigner { questions })
    }
}

impl AskSigner for EmbeddedSigner {
    async fn sign_checkpoint(&self, origin: &Origin, proposal: Proposal) -> Result<Answer, AskError> {
        let (answer, result) = oneshot::channel();
        let question = Question { origin: origin.clone(), proposal, answer };
        let gone = || AskError::Fatal("the signer's thread has ended".into());
        self.questions.send(question).await.map_err(|_| gone())?;
        // The embedded signer's errors are those of its own disk and key: none passes by itself.
        result.await.map_err(|_| gone())?.map_err(|error| AskError::Fatal(error.to_string()))
    }
}
