//! A signer on a thread of its own, because it waits for its disk: inside the log process, or behind the door of a signer
//! process. Proposals for several logs that wait at the same time share one sync.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::thread;

use epigraph_core::{Clock, Origin};
use epigraph_rpc::peer::{OpenTermAnswer, SignerHead};
use tokio::sync::{mpsc, oneshot};

use crate::gate::Seen;
use crate::publish::{AskError, AskSigner};
use crate::signer::{Answer, Request, Signer, SignerError};

/// Questions that wait for the thread: as many logs as a process may have, each with one proposal, and as many onlookers.
const QUEUE: usize = 128;

/// The sending end of the signer's thread.
#[derive(Clone, Debug)]
pub struct SignerHandle {
    questions: mpsc::Sender<Question>,
}

type Reply<T> = oneshot::Sender<Result<T, SignerError>>;

#[derive(Debug)]
enum Question {
    Head(Origin, Reply<SignerHead>),
    PassGate(Origin, Vec<Seen>, Reply<()>),
    OpenTerm(Origin, SignerHead, Reply<OpenTermAnswer>),
    Sign(Box<Request>, Reply<Answer>),
}

impl SignerHandle {
    /// Starts the thread. It ends when the last sending end is dropped, or when the disk fails: then the receiver says why.
    pub fn spawn(
        signer: Signer,
        clock: Arc<dyn Clock>,
    ) -> io::Result<(SignerHandle, oneshot::Receiver<String>)> {
        let (questions, inbox) = mpsc::channel::<Question>(QUEUE);
        let (failed, failure) = oneshot::channel();
        thread::Builder::new().name("signer".into()).spawn(move || {
            if let Err(why) = run(signer, &*clock, inbox) {
                let _ = failed.send(why);
            }
        })?;
        Ok((SignerHandle { questions }, failure))
    }

    /// What the signer is bound to.
    pub async fn head(&self, origin: &Origin) -> Result<SignerHead, SignerError> {
        self.ask(|reply| Question::Head(origin.clone(), reply)).await
    }

    /// See [`Signer::pass_gate`].
    pub async fn pass_gate(&self, origin: &Origin, seen: Vec<Seen>) -> Result<(), SignerError> {
        self.ask(|reply| Question::PassGate(origin.clone(), seen, reply)).await
    }

    /// See [`Signer::open_term`].
    pub async fn open_term(
        &self,
        origin: &Origin,
        expected: SignerHead,
    ) -> Result<OpenTermAnswer, SignerError> {
        self.ask(|reply| Question::OpenTerm(origin.clone(), expected, reply)).await
    }

    /// See [`Signer::sign_checkpoints`].
    pub async fn sign_checkpoint(&self, request: Request) -> Result<Answer, SignerError> {
        self.ask(|reply| Question::Sign(Box::new(request), reply)).await
    }

    async fn ask<T>(&self, question: impl FnOnce(Reply<T>) -> Question) -> Result<T, SignerError> {
        let (reply, answer) = oneshot::channel();
        self.questions.send(question(reply)).await.map_err(|_| SignerError::Ended)?;
        answer.await.map_err(|_| SignerError::Ended)?
    }
}

/// Answers until nobody is left who could ask, or until the disk fails.
fn run(mut signer: Signer, clock: &dyn Clock, mut inbox: mpsc::Receiver<Question>) -> Result<(), String> {
    let mut taken = Vec::new();
    while let Some(first) = inbox.blocking_recv() {
        taken.push(first);
        while taken.len() < QUEUE
            && let Ok(more) = inbox.try_recv()
        {
            taken.push(more);
        }
        let (mut together, mut named) = (Vec::new(), HashSet::new());
        for question in taken.drain(..) {
            if let Question::Sign(request, reply) = question {
                // Two of one log: the second is decided on what the first left.
                if !named.insert(request.origin.clone()) {
                    sign(&mut signer, clock, &mut together)?;
                    named = HashSet::from([request.origin.clone()]);
                }
                together.push((*request, reply));
            } else {
                sign(&mut signer, clock, &mut together)?;
                named.clear();
                answer(&mut signer, question)?;
            }
        }
        sign(&mut signer, clock, &mut together)?;
    }
    Ok(())
}

fn sign(
    signer: &mut Signer,
    clock: &dyn Clock,
    together: &mut Vec<(Request, Reply<Answer>)>,
) -> Result<(), String> {
    let (requests, replies): (Vec<_>, Vec<_>) = together.drain(..).unzip();
    let answers = signer.sign_checkpoints(requests, clock.now());
    let answered: Vec<_> =
        replies.into_iter().zip(answers).map(|(reply, answer)| tell(reply, answer)).collect();
    answered.into_iter().collect()
}

fn answer(signer: &mut Signer, question: Question) -> Result<(), String> {
    match question {
        Question::Head(origin, reply) => tell(reply, signer.head(&origin)),
        Question::PassGate(origin, seen, reply) => tell(reply, signer.pass_gate(&origin, &seen)),
        Question::OpenTerm(origin, expected, reply) => tell(reply, signer.open_term(&origin, &expected)),
        Question::Sign(..) => Ok(()),
    }
}

/// Whoever asked may have gone; what was decided stands. Fails if the disk did.
fn tell<T>(reply: Reply<T>, answer: Result<T, SignerError>) -> Result<(), String> {
    let fatal = answer.as_ref().err().filter(|error| error.is_fatal()).map(ToString::to_string);
    let _ = reply.send(answer);
    fatal.map_or(Ok(()), Err)
}

impl AskSigner for SignerHandle {
    async fn head(&self, origin: &Origin) -> Result<SignerHead, AskError> {
        Ok(SignerHandle::head(self, origin).await?)
    }

    async fn open_term(&self, origin: &Origin, expected: SignerHead) -> Result<OpenTermAnswer, AskError> {
        Ok(SignerHandle::open_term(self, origin, expected).await?)
    }

    async fn sign_checkpoint(&self, request: Request) -> Result<Answer, AskError> {
        Ok(SignerHandle::sign_checkpoint(self, request).await?)
    }
}

/// What a signer in this process says against it: only the term and the clock are not of its own disk, key or configuration, and
/// only a clock that is set is over by itself.
impl From<SignerError> for AskError {
    fn from(error: SignerError) -> AskError {
        match error {
            SignerError::Fenced { .. } | SignerError::TermNotOpened { .. } => {
                AskError::Fenced(error.to_string())
            }
            SignerError::ClockAhead { .. } => AskError::Unavailable(error.to_string()),
            _ => AskError::Fatal(error.to_string()),
        }
    }
}
