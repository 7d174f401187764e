//! The journal's thread: batches in over a bounded channel, results out through callbacks.
//!
//! A second thread makes each next segment ready while the current one fills, so that no append waits for megabytes of
//! zeros: neither at the end of a segment nor, since they are written at the pace of the appends, behind them on the disk.

use std::io;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{self, JoinHandle};

use super::segment::{CHUNK, Spare};
use super::{AppendError, Batch, Journal};

/// Batches that may wait for the journal: one more fills while one syncs (DESIGN section 5), so two are enough.
pub const QUEUE_BATCHES: usize = 2;

/// Bytes of appends for which one piece of the next segment is written: it is ready when the current one is half full.
const BYTES_FOR_A_PIECE: u64 = CHUNK as u64 / 2;

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
    making: Option<Making>,
}

/// The next segment while it is made.
struct Making {
    thread: JoinHandle<io::Result<Spare>>,
    /// Dropped, it is made without a pause.
    orders: Sender<Order>,
    /// Pieces that were ordered.
    ordered: u64,
}

/// To the one who makes the next segment.
enum Order {
    /// Another piece.
    Piece,
    /// None any more.
    Stop,
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
            self.order_pieces();
        }
        // What there is of the next segment the next open would remove; its thread must not outlive the lock on the directory.
        if let Some(Making { thread, orders, .. }) = self.making.take() {
            // One that is ready hears nothing.
            let _ = orders.send(Order::Stop);
            let _ = thread.join();
        }
    }

    /// Starts to make the next segment ready. Where that fails, the append that needs it tries again itself and
    /// tells its caller.
    fn make_spare(&mut self) {
        if self.making.is_none()
            && let Some(maker) = self.journal.spare_wanted()
        {
            let (orders, ordered) = channel();
            let make = move || maker.make_in_pieces(|| !matches!(ordered.recv(), Ok(Order::Stop)));
            let thread = thread::Builder::new().name("journal-spare".to_owned()).spawn(make).ok();
            self.making = thread.map(|thread| Making { thread, orders, ordered: 0 });
            self.order_pieces();
        }
    }

    /// Lets the next segment grow twice as fast as the current one fills.
    fn order_pieces(&mut self) {
        let Some(making) = &mut self.making else { return };
        let due = self.journal.filled() / BYTES_FOR_A_PIECE;
        for _ in making.ordered..due {
            // One that is ready, or failed, hears nothing.
            let _ = making.orders.send(Order::Piece);
        }
        making.ordered = due.max(making.ordered);
    }

    /// Takes the next segment; waits for what is missing of it.
    fn take_spare(&mut self) {
        let Some(Making { thread, orders, .. }) = self.making.take() else { return };
        drop(orders);
        if let Ok(Ok(spare)) = thread.join() {
            self.journal.give_spare(spare);
        }
    }
}
