//! The journal's thread: batches in over a bounded channel, results out through callbacks.
//!
//! A second, short-lived thread makes each next segment ready while the current one fills, so that no append waits
//! for megabytes of zeros.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use super::segment::Spare;
use super::{AppendError, Batch, Journal};

/// Batches that may wait for the journal: one more fills while one syncs (DESIGN section 5), so two are enough.
pub const QUEUE_BATCHES: usize = 2;

/// Hears how an append ended; runs on the journal's thread, so it must be quick.
type Done = Box<dyn FnOnce(Result<(), AppendError>) + Send>;

/// The one owner of a journal's thread. Dropping it lets the waiting batches finish and joins the thread.
pub struct JournalHandle {
    queue: Option<SyncSender<(Batch, Done)>>,
    thread: Option<JoinHandle<()>>,
}

impl JournalHandle {
    /// Gives `journal` a thread. An error means that the system has no thread to give.
    pub fn spawn(journal: Journal) -> io::Result<JournalHandle> {
        let (queue, batches) = sync_channel(QUEUE_BATCHES);
        let thread = thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || Worker::new(journal).run(&batches))?;
        Ok(JournalHandle { queue: Some(queue), thread: Some(thread) })
    }

    /// Hands a batch over; `done` is called exactly once. Blocks while [`QUEUE_BATCHES`] wait, so a caller that
    /// must not block keeps count of its unanswered batches.
    pub fn append(&self, batch: Batch, done: Done) {
        let unsent = match &self.queue {
            Some(queue) => queue.send((batch, done)).err().map(|unsent| unsent.0.1),
            None => Some(done),
        };
        if let Some(done) = unsent {
            done(Err(AppendError::Fatal("its thread has ended".into())));
        }
    }

    /// Lets the waiting batches finish and joins the thread.
    pub fn close(self) {}
}

impl Drop for JournalHandle {
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported by the panic hook; unanswered callers saw their callback dropped.
            let _ = thread.join();
        }
    }
}

struct Worker {
    journal: Journal,
    making: Option<JoinHandle<io::Result<Spare>>>,
}

impl Worker {
    fn new(journal: Journal) -> Worker {
        Worker { journal, making: None }
    }

    fn run(mut self, batches: &Receiver<(Batch, Done)>) {
        self.make_spare();
        while let Ok((batch, done)) = batches.recv() {
            let rolls_over = self.journal.needs_segment(&batch);
            if rolls_over {
                self.take_spare();
            }
            done(self.journal.append(&batch));
            if rolls_over {
                self.make_spare();
            }
        }
        // The next open removes the spare; its thread must not outlive the lock on the directory.
        self.take_spare();
    }

    /// Starts to make the next segment ready. Where that fails, the append that needs it tries again itself and
    /// tells its caller.
    fn make_spare(&mut self) {
        if self.making.is_none()
            && let Some(maker) = self.journal.spare_wanted()
        {
            let thread = thread::Builder::new().name("journal-spare".to_owned());
            self.making = thread.spawn(move || maker.make()).ok();
        }
    }

    fn take_spare(&mut self) {
        if let Some(Ok(Ok(spare))) = self.making.take().map(JoinHandle::join) {
            self.journal.give_spare(spare);
        }
    }
}
