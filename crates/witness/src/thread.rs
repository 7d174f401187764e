//! The thread that owns the keeper, because it waits for its disk. While one sync is under way the next proposals gather;
//! all that wait then share the next one.

use std::io;
use std::sync::Arc;
use std::thread;

use epigraph_core::progress::{Held, Proposal};
use epigraph_core::{Clock, Origin};
use epigraph_store::head::HeadError;
use tokio::sync::{mpsc, oneshot};

use crate::gate::{Passage, Sighting};
use crate::keeper::{AdmitError, Answer, Cosigned, Fatal, Keeper, Refused};

/// Messages that wait for the thread; beyond them a witness says that it is overloaded. Each holds a note and a proof, some
/// 3 KiB.
pub(crate) const QUEUE: usize = 4_096;

/// Messages that are answered together, and with that proposals under one sync: 512 slots of two copies are 4 MiB to write.
const MAX_BATCH: usize = 512;

pub(crate) enum Message {
    Propose(Origin, Proposal, oneshot::Sender<Result<Answer, Refused>>),
    /// With what the log shows; `None`: there is nobody to ask.
    Pass(Origin, Option<Vec<Sighting>>, oneshot::Sender<Result<Passage, Refused>>),
    Newest(Origin, oneshot::Sender<Result<Option<Arc<Cosigned>>, Refused>>),
    Admit(Vec<Origin>, oneshot::Sender<Result<Vec<Held>, AdmitError>>),
}

/// Starts the thread. It ends when the last sending end is dropped, or with [`Fatal`].
pub(crate) fn spawn(
    mut keeper: Keeper,
    clock: Arc<dyn Clock>,
) -> io::Result<(mpsc::Sender<Message>, oneshot::Receiver<Fatal>)> {
    let (messages, mut inbox) = mpsc::channel(QUEUE);
    let (failed, failure) = oneshot::channel();
    thread::Builder::new().name("witness".into()).spawn(move || {
        while let Some(first) = inbox.blocking_recv() {
            if let Err(fatal) = attend(&mut keeper, &*clock, first, &mut inbox) {
                // Whoever waits for an answer learns that there is none: the ends of their channels go with the inbox.
                let _ = failed.send(fatal);
                return;
            }
        }
    })?;
    Ok((messages, failure))
}

/// Answers what is waiting. Whoever asked may have gone; what was decided stands.
fn attend(
    keeper: &mut Keeper,
    clock: &dyn Clock,
    first: Message,
    inbox: &mut mpsc::Receiver<Message>,
) -> Result<(), Fatal> {
    let (mut proposals, mut answers) = (Vec::new(), Vec::new());
    let mut next = Some(first);
    let mut taken = 0;
    while let Some(message) = next {
        taken += 1;
        match message {
            Message::Propose(origin, proposal, answer) => {
                proposals.push((origin, proposal));
                answers.push(answer);
            }
            Message::Pass(origin, Some(sightings), answer) => {
                let _ = answer.send(keeper.pass(&origin, &sightings));
            }
            Message::Pass(origin, None, answer) => {
                let _ = answer.send(keeper.pass_unchecked(&origin));
            }
            Message::Newest(origin, answer) => {
                let _ = answer.send(keeper.newest(&origin));
            }
            Message::Admit(origins, answer) => {
                let admitted = keeper.admit(&origins, clock.now());
                if let Err(AdmitError::Store(error @ (HeadError::Fatal { .. } | HeadError::Failed))) =
                    admitted
                {
                    return Err(error.into());
                }
                let _ = answer.send(admitted);
            }
        }
        next = if taken < MAX_BATCH { inbox.try_recv().ok() } else { None };
    }
    let results = keeper.propose(proposals, clock.now())?;
    for (answer, result) in answers.into_iter().zip(results) {
        let _ = answer.send(result);
    }
    Ok(())
}
