//! A signer in another process, as the publisher asks it.

use epigraph_core::Origin;
use epigraph_core::progress::Conflict;
use epigraph_rpc::peer::{self, OpenTermAnswer, SignAnswer, SignerHead};
use epigraph_rpc::{CallError, Reason};

use crate::publish::{AskError, AskSigner};
use crate::signer::{Answer, Request};

/// A signer process.
#[derive(Clone, Debug)]
pub struct RemoteSigner {
    signer: peer::Signer,
    address: String,
}

impl RemoteSigner {
    /// The signer behind a connection to `address`, which is for messages.
    pub fn new(signer: peer::Signer, address: String) -> RemoteSigner {
        RemoteSigner { signer, address }
    }

    fn of_call(&self, error: CallError) -> AskError {
        let message = format!("{}: {error}", self.address);
        match error {
            CallError::Refused(refusal) => match refusal.reason() {
                Reason::Fenced | Reason::TermNotOpened => AskError::Fenced(refusal.message().to_owned()),
                // What was sent is not in order, and would not be the next time.
                Reason::Malformed | Reason::BadSize | Reason::BadProof | Reason::BatchTooLarge => {
                    AskError::Fatal(message)
                }
                // It is starting, stopping, being mended or being told who may call: whoever runs it sees to that.
                _ => AskError::Unavailable(message),
            },
            CallError::Garbled(_) => AskError::Fatal(message),
            CallError::Unreachable(_) | CallError::TimedOut => AskError::Unavailable(message),
        }
    }
}

impl AskSigner for RemoteSigner {
    async fn head(&self, origin: &Origin) -> Result<SignerHead, AskError> {
        self.signer.head(origin).await.map_err(|error| self.of_call(error))
    }

    async fn open_term(&self, origin: &Origin, expected: SignerHead) -> Result<OpenTermAnswer, AskError> {
        self.signer.open_term(origin, &expected).await.map_err(|error| self.of_call(error))
    }

    async fn sign_checkpoint(&self, request: Request) -> Result<Answer, AskError> {
        let Request { origin, term, proposal } = request;
        let answer = self.signer.sign_checkpoint(&origin, term, &proposal).await;
        match answer.map_err(|error| self.of_call(error))? {
            SignAnswer::Signed(note) => String::from_utf8(note.into())
                .map(Answer::Signed)
                .map_err(|_| AskError::Fatal(format!("{}: the signed note is not text", self.address))),
            SignAnswer::Stale(held) => Ok(Answer::Stale(held)),
            SignAnswer::Conflict(held) => Ok(Answer::Conflict(Conflict { held, proposed: proposal.head })),
            SignAnswer::Rejected(why) => Ok(Answer::Reject(why)),
        }
    }
}
