//! The thread that writes: it owns the spool, and puts batches into it in the order in which they were signed, while the next ones are
//! made. Who waits for a batch hears of it here, once it is durable.
//!
//! A batch hangs on the one before it by its hash, not by whether that is on the disk; so it may be signed early. What may be sent is
//! told only once it is durable, and after a failed write nothing behind it is written. It does not know where events come from.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use epigraph_core::UnixMillis;
use epigraph_event::Batch;
use epigraph_store::journal::AppendError;
use tokio::sync::{oneshot, watch};

use crate::intake::{IntakeError, Taken};
use crate::position::Positions;
use crate::spool::fresh::Freshest;
use crate::spool::{Limits, Progress, Spool, SpoolError};

/// Batches that are signed and not durable: one that is written, and the next, so that the disk never waits for it. More would only
/// be more that is in memory.
const MAX_ON_THE_WAY: usize = 2;

/// How long it waits for space on the disk before it tries again.
pub(crate) const DISK_FULL_POLL: Duration = Duration::from_secs(1);

/// Those who wait for events that they sent, and what they are told once all before them is durable.
pub(crate) type Waiting = Vec<(oneshot::Sender<Taken>, Taken)>;

/// The writer's side of a batch that was signed.
struct Signed {
    batch: Batch,
    positions: Positions,
    at: UnixMillis,
    waiting: Waiting,
}

/// What it is told, in order.
enum Order {
    Append(Box<Signed>),
    /// Everything that these wait for was handed over before.
    Answer(Waiting),
    Delivered(u64, UnixMillis),
    /// Nothing more will come.
    Ended,
    /// Write down what was delivered, and end.
    Stop(UnixMillis),
}

/// What it says.
enum Said {
    /// One more batch is durable.
    Written,
    /// Until the next one is, there is no space on the disk.
    DiskFull,
}

/// The running thread, for its one owner, who knows what waits for delivery, on the disk or on its way there.
pub(crate) struct Writer {
    orders: Option<Sender<Order>>,
    said: Receiver<Said>,
    thread: Option<JoinHandle<Result<(), SpoolError>>>,
    on_the_way: usize,
    disk_is_full: bool,
    limits: Limits,
    /// Numbers and bytes of the batches that were not delivered.
    waiting: VecDeque<(u64, u64)>,
    waiting_bytes: u64,
}

impl Writer {
    pub(crate) fn start(spool: Spool, tell: watch::Sender<Progress>, fresh: Freshest) -> io::Result<Writer> {
        let (orders, told) = channel();
        let (say, said) = channel();
        let (limits, waiting) = (spool.limits(), spool.waiting_batches().collect());
        let (_, waiting_bytes) = spool.waiting();
        let writing = Writing { spool, tell, fresh, told, say, held: VecDeque::new(), ended: false };
        let thread = thread::Builder::new().name("collector-spool".into()).spawn(move || writing.run())?;
        Ok(Writer {
            orders: Some(orders),
            said,
            thread: Some(thread),
            on_the_way: 0,
            disk_is_full: false,
            limits,
            waiting,
            waiting_bytes,
        })
    }

    /// Whether one more batch of the largest size may wait, and there is space on the disk.
    pub(crate) fn has_room(&self) -> bool {
        !self.disk_is_full && self.limits.have_room(self.waiting_bytes)
    }

    /// Whether so many bytes of events may be added. While nothing waits, anything may: what is larger than the whole spool would
    /// be refused for ever.
    pub(crate) fn has_room_for(&self, bytes: u64) -> bool {
        self.waiting.is_empty()
            || (self.has_room() && self.waiting_bytes.saturating_add(bytes) <= self.limits.waiting_bytes)
    }

    /// Whether a batch may be handed over without waiting.
    pub(crate) fn has_place(&self) -> bool {
        self.on_the_way < MAX_ON_THE_WAY
    }

    /// Whether everything that was handed over is durable.
    pub(crate) fn is_idle(&self) -> bool {
        self.on_the_way == 0
    }

    /// Whether it waits for space on the disk.
    pub(crate) fn disk_is_full(&self) -> bool {
        self.disk_is_full
    }

    /// Hands over the next batch, with how far the sources were read by it, and who waits for it.
    pub(crate) fn append(
        &mut self,
        batch: Batch,
        positions: Positions,
        at: UnixMillis,
        waiting: Waiting,
    ) -> Result<(), IntakeError> {
        let bytes = batch.encoded_len() as u64;
        self.waiting.push_back((batch.signed().envelope().number, bytes));
        self.waiting_bytes += bytes;
        self.on_the_way += 1;
        self.order(Order::Append(Box::new(Signed { batch, positions, at, waiting })))
    }

    /// Answers those whose events were all handed over before.
    pub(crate) fn answer(&mut self, waiting: Waiting) -> Result<(), IntakeError> {
        self.order(Order::Answer(waiting))
    }

    /// Passes on that all batches before `next` are proven to be in the log: from now on there is room in their place.
    pub(crate) fn delivered(&mut self, next: u64, now: UnixMillis) -> Result<(), IntakeError> {
        while let Some((_, bytes)) = self.waiting.pop_front_if(|(number, _)| *number < next) {
            self.waiting_bytes -= bytes;
        }
        self.order(Order::Delivered(next, now))
    }

    /// Nothing more will come.
    pub(crate) fn ended(&mut self) -> Result<(), IntakeError> {
        self.order(Order::Ended)
    }

    /// Hears what it said, without waiting for it.
    pub(crate) fn listen(&mut self) -> Result<(), IntakeError> {
        loop {
            match self.said.try_recv() {
                Ok(said) => self.hear(&said),
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(self.why()),
            }
        }
    }

    /// Waits until it says something; only for who has handed something over.
    pub(crate) fn wait(&mut self) -> Result<(), IntakeError> {
        match self.said.recv() {
            Ok(said) => self.hear(&said),
            Err(_) => return Err(self.why()),
        }
        Ok(())
    }

    /// Lets it write what was handed over, and down what was delivered, and end. What there is no space for is not durable, and nobody
    /// hears that it was.
    pub(crate) fn stop(&mut self, now: UnixMillis) -> Result<(), IntakeError> {
        self.order(Order::Stop(now))?;
        self.close()
    }

    /// Lets it write what was handed over, and end.
    pub(crate) fn close(&mut self) -> Result<(), IntakeError> {
        drop(self.orders.take());
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(ended)) => Ok(ended?),
            Some(Err(_)) => Err(IntakeError::Lost),
            None => Ok(()),
        }
    }

    fn order(&mut self, order: Order) -> Result<(), IntakeError> {
        let sent = self.orders.as_ref().is_some_and(|orders| orders.send(order).is_ok());
        if sent { Ok(()) } else { Err(self.why()) }
    }

    fn hear(&mut self, said: &Said) {
        match said {
            Said::Written => {
                self.on_the_way = self.on_the_way.saturating_sub(1);
                self.disk_is_full = false;
            }
            Said::DiskFull => self.disk_is_full = true,
        }
    }

    /// Why it has ended, though nobody told it to.
    fn why(&mut self) -> IntakeError {
        self.close().err().unwrap_or(IntakeError::Lost)
    }
}

/// The thread.
struct Writing {
    spool: Spool,
    tell: watch::Sender<Progress>,
    fresh: Freshest,
    told: Receiver<Order>,
    say: Sender<Said>,
    /// Orders that were heard while the disk was full, to be followed when it is not.
    held: VecDeque<Order>,
    ended: bool,
}

/// What becomes of a batch.
enum Became {
    Durable,
    /// It was told to stop while there was no space for it, at this time; none if its owner is gone.
    Dropped(Option<UnixMillis>),
}

impl Writing {
    fn run(mut self) -> Result<(), SpoolError> {
        loop {
            let order = self.held.pop_front().map_or_else(|| self.told.recv(), Ok);
            let stopped_at = match order {
                Ok(Order::Append(signed)) => match self.append(*signed)? {
                    Became::Durable => continue,
                    Became::Dropped(stopped_at) => stopped_at,
                },
                Ok(Order::Answer(waiting)) => {
                    answer(waiting);
                    continue;
                }
                Ok(Order::Delivered(next, now)) => {
                    self.delivered(next, now)?;
                    continue;
                }
                Ok(Order::Ended) => {
                    self.ended = true;
                    self.publish();
                    continue;
                }
                Ok(Order::Stop(now)) => Some(now),
                Err(_) => None,
            };
            return stopped_at.map_or(Ok(()), |now| self.spool.settle(now));
        }
    }

    /// Makes a batch durable, however long there is no space for it.
    fn append(&mut self, signed: Signed) -> Result<Became, SpoolError> {
        let Signed { batch, positions, at, waiting } = signed;
        let fresh = loop {
            let error = match self.spool.append(&batch, &positions, at) {
                Ok(fresh) => break fresh,
                Err(error @ SpoolError::Append(AppendError::NoSpace(_))) => error,
                Err(error) => return Err(error),
            };
            tracing::error!(%error, "the disk of the spool is full: nothing is read until there is space");
            let _ = self.say.send(Said::DiskFull);
            match self.told.recv_timeout(DISK_FULL_POLL) {
                // That may give space; what was signed behind the batch has to wait for it.
                Ok(Order::Delivered(next, now)) => self.delivered(next, now)?,
                Ok(Order::Stop(now)) => return Ok(Became::Dropped(Some(now))),
                Ok(other) => self.held.push_back(other),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(Became::Dropped(None)),
            }
        };
        self.fresh.keep(fresh);
        self.publish();
        answer(waiting);
        // Its owner may be on the way out.
        let _ = self.say.send(Said::Written);
        Ok(Became::Durable)
    }

    fn delivered(&mut self, next: u64, now: UnixMillis) -> Result<(), SpoolError> {
        self.spool.delivered(next, now)?;
        self.publish();
        Ok(())
    }

    fn publish(&self) {
        self.tell.send_replace(Progress { ended: self.ended, ..self.spool.progress() });
    }
}

fn answer(waiting: Waiting) {
    for (waiting, taken) in waiting {
        // Who hung up sends it again; it is here twice then, unless its door knows repeats.
        let _ = waiting.send(taken);
    }
}
