//! The driver: the loop that feeds the [`crate::machine`] and carries out its effects, and the thread that builds the
//! tree behind the journal.

use std::io;
use std::ops::ControlFlow;
use std::sync::mpsc as blocking;
use std::sync::{Arc, OnceLock};
use std::thread;

use epigraph_core::{Clock, Hash, Origin, Policy, TreeHead, TreeSize};
use epigraph_rpc::Quota;
use epigraph_store::follow::Follower;
use epigraph_store::history::History;
use epigraph_store::journal::{AppendError, Journal, JournalHandle};
use epigraph_store::lookup::{Lookup, LookupError};
use epigraph_store::tree::Tree;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::Span;

use crate::growth::Growth;
use crate::log::{Answer, Log, Parts, ProducerState, PublishedReceiver, SignedReceiver, Ticket, Witnessing};
use crate::lookup;
use crate::machine::{Condition, Effect, Event, Limits, Machine, NoSpace};

/// Events that wait for the sequencer's task; more calls than that at once are refused.
pub(crate) const EVENT_QUEUE: usize = 16 * 1024;

/// Events taken at once, so that answers do not starve.
const EVENTS_PER_TURN: usize = 1024;

/// Entries between two words about the tree's rebuilding.
const BUILDING_STEP: u64 = 1 << 16;

/// Why the log cannot go on; the process must end.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Fatal {
    /// The journal failed. Nobody knows what is on the disk until it is opened again.
    #[error("{0}")]
    Journal(String),
    /// The tree does not follow from the journal.
    #[error("{0}")]
    Tree(String),
}

/// Opens the lookup by leaf hash, or says why not.
pub type OpenLookup = Box<dyn FnOnce() -> Result<Lookup, LookupError> + Send>;

/// Opens the store of a tree, or says why not.
pub type OpenTree = Box<dyn FnOnce() -> Result<Follower, String> + Send>;

/// Told how far the tree is with what was durable at the start, and how much that is, while there is much to build.
pub type OnBuilding = Box<dyn Fn(TreeSize, TreeSize) + Send>;

/// What a log is made of.
pub struct Setup {
    /// Its name.
    pub origin: Origin,
    /// How far it runs ahead of publication.
    pub limits: Limits,
    /// Its journal, opened.
    pub journal: Journal,
    /// The tree; it may have no store yet.
    pub tree: Arc<Tree>,
    /// Opens the tree's store. Runs on the tree's thread, so appending does not wait for it.
    pub open_tree: OpenTree,
    /// Told how far the tree is.
    pub on_building: OnBuilding,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Where publication is seen.
    pub published: PublishedReceiver,
    /// Where it is seen what was signed.
    pub signed: SignedReceiver,
    /// Where what witnesses hand in goes.
    pub witnessing: Witnessing,
    /// Earlier published checkpoints; `None` if they cannot be read.
    pub history: Option<Arc<History>>,
    /// What a checkpoint must satisfy to be served from the history.
    pub policy: Policy,
    /// Opens the lookup by leaf hash. Runs on the lookup's thread, so nothing waits for it.
    pub open_lookup: OpenLookup,
}

/// A log that is ready to run.
pub struct Ready {
    /// What callers use. When it is drained, or its last handle dropped, the driver finishes and ends.
    pub log: Arc<Log>,
    /// The newest head whose tree was checked against the journal: what may be signed. It changes for the first time
    /// when the tree has caught up with the journal, and what it holds before that must not be used. Closed when the
    /// log has ended and the last head was offered.
    pub offered: watch::Receiver<TreeHead>,
    /// The size up to which somebody waits for publication.
    pub wanted: watch::Receiver<TreeSize>,
    /// To be run to its end.
    pub driver: Driver,
}

/// The running half of a log.
pub struct Driver {
    origin: Origin,
    machine: Machine<Ticket>,
    events: mpsc::Receiver<Event<Ticket>>,
    journal: JournalHandle,
    /// How the write that is under way ends; there is never a second one.
    writing: Option<oneshot::Receiver<Result<(), AppendError>>>,
    /// From its order to its sync.
    write_span: Span,
    durable: watch::Sender<TreeHead>,
    condition: watch::Sender<Condition>,
    growth: Growth,
    /// Of those who wait for publication, in entries.
    waiters: Arc<Quota<Hash>>,
    tree_ended: oneshot::Receiver<Result<(), String>>,
    published: PublishedReceiver,
    clock: Arc<dyn Clock>,
}

/// Starts the log's threads. Nothing is appended before [`Driver::run`].
pub fn start(setup: Setup) -> io::Result<Ready> {
    let Setup {
        origin,
        limits,
        journal,
        tree,
        open_tree,
        on_building,
        clock,
        published,
        signed,
        witnessing,
        history,
        policy,
        open_lookup,
    } = setup;
    let published_size =
        published.borrow().as_ref().map_or(TreeSize::ZERO, |checkpoint| checkpoint.head().size);
    let machine = Machine::new(
        limits,
        journal.frontier().clone(),
        journal.producers().clone(),
        published_size,
        clock.now(),
    );
    let head = journal.head();
    let (submit, events) = mpsc::channel(EVENT_QUEUE);
    let (wanted, wanted_receiver) = watch::channel(TreeSize::ZERO);
    let (durable, durable_receiver) = watch::channel(head);
    let (condition, condition_receiver) = watch::channel(machine.condition());
    let (offer, offered) = watch::channel(TreeHead::EMPTY);
    let (tell, growth) = blocking::channel();
    let (end, tree_ended) = oneshot::channel();
    let (built, built_to) = blocking::channel();
    let of_tree = origin.clone();
    let lookup = Arc::new(OnceLock::new());
    thread::Builder::new().name("tree".into()).spawn(move || {
        drop(end.send(build_tree(&of_tree, (open_tree, on_building), head.size, &growth, &offer, &built)))
    })?;
    let filled = Arc::clone(&lookup);
    let name = origin.clone();
    thread::Builder::new()
        .name("lookup".into())
        .spawn(move || lookup::fill(&name, open_lookup, &filled, &built_to))?;
    let log = Arc::new(Log::new(Parts {
        origin: origin.clone(),
        limits,
        events: submit,
        wanted,
        durable: durable_receiver,
        condition: condition_receiver,
        published: published.clone(),
        signed,
        witnessing,
        built: offered.clone(),
        tree,
        history,
        policy,
        lookup,
    }));
    let driver = Driver {
        origin,
        machine,
        events,
        journal: JournalHandle::spawn(journal)?,
        writing: None,
        write_span: Span::none(),
        durable,
        condition,
        growth: Growth::new(tell, head.size),
        waiters: log.waiters(),
        tree_ended,
        published,
        clock,
    };
    Ok(Ready { log, offered, wanted: wanted_receiver, driver })
}

/// Opens the tree's store, catches up with what was `durable` at the start, then follows the journal until the driver
/// ends. Only what was read back from disk and hashed again is offered.
fn build_tree(
    origin: &Origin,
    (open_tree, on_building): (OpenTree, OnBuilding),
    durable: TreeSize,
    growth: &blocking::Receiver<TreeSize>,
    offer: &watch::Sender<TreeHead>,
    built: &blocking::Sender<TreeSize>,
) -> Result<(), String> {
    let mut follower = open_tree()?;
    let mut reported = follower.size().get();
    let mut newest = durable;
    // A log that is told to stop does not build its tree to the end first.
    let mut stopped = false;
    let mut progress = |head: TreeHead| {
        if head.size.get() - reported >= BUILDING_STEP {
            reported = head.size.get();
            on_building(head.size, durable);
        }
        match growth.try_recv() {
            Err(blocking::TryRecvError::Empty) => return ControlFlow::Continue(()),
            Err(blocking::TryRecvError::Disconnected) => stopped = true,
            Ok(size) => {
                newest = size;
                return ControlFlow::Continue(());
            }
        }
        ControlFlow::Break(())
    };
    let head = follower.catch_up(durable, &mut progress).map_err(|error| error.to_string())?;
    if stopped && head.size < durable {
        return Ok(());
    }
    offer.send_replace(head);
    loop {
        let (from, to) = (follower.size().get(), newest.get());
        let span = tracing::debug_span!("tree", log = %origin, from, to).entered();
        let head = follower
            .catch_up(newest, &mut |_| ControlFlow::Continue(()))
            .map_err(|error| error.to_string())?;
        drop(span);
        offer.send_replace(head);
        // A lookup that could not be opened is no reason to stop.
        let _ = built.send(head.size);
        let Ok(size) = growth.recv() else { return Ok(()) };
        newest = growth.try_iter().last().unwrap_or(size);
    }
}

impl Driver {
    /// Runs until the log is drained or every [`Log`] is gone, and everything that was taken is answered and in the
    /// tree. Whatever it returns, its threads write nothing any more.
    pub async fn run(mut self) -> Result<(), Fatal> {
        let mut turn = Vec::with_capacity(EVENTS_PER_TURN);
        let mut effects = Vec::new();
        let mut open = true;
        while open || !self.machine.is_idle() {
            tokio::select! {
                biased;
                // While it is told of growth, it ends only by failing.
                ended = &mut self.tree_ended => return tree_outcome(ended),
                () = self.growth.rested() => self.growth.tell(),
                result = written(&mut self.writing) => {
                    self.writing = None;
                    self.write_span = Span::none();
                    turn.push(match result {
                        Ok(()) => Event::Written,
                        Err(AppendError::NoSpace(error)) => {
                            tracing::error!(%error, "no space for the next journal segment; appends are refused");
                            Event::NotWritten(NoSpace)
                        }
                        Err(error) => return Err(Fatal::Journal(error.to_string())),
                    });
                }
                Ok(()) = self.published.changed() => {
                    let newest = self.published.borrow_and_update().as_ref().map(|checkpoint| checkpoint.head().size);
                    turn.extend(newest.map(Event::Published));
                }
                taken = self.events.recv_many(&mut turn, EVENTS_PER_TURN), if open => open = taken > 0,
            }
            let now = self.clock.now();
            for event in turn.drain(..) {
                self.machine.step(event, now, &mut effects);
            }
            self.machine.stage(now, &mut effects);
            // Before the answers: whoever has one may ask how the log is doing.
            let condition = self.machine.condition();
            self.condition.send_if_modified(|told| std::mem::replace(told, condition) != condition);
            for effect in effects.drain(..) {
                self.carry_out(effect);
            }
            if self.machine.is_draining() {
                // Who is in the queue is still refused in order; a caller that never leaves cannot hold up the end.
                self.events.close();
            }
        }
        let Driver { journal, mut growth, tree_ended, .. } = self;
        growth.tell();
        drop(growth);
        // It waits for the next segment that is being made ready, so not on a thread that serves.
        let closed = tokio::task::spawn_blocking(move || journal.close()).await;
        closed.map_err(|error| Fatal::Journal(error.to_string()))?;
        tree_outcome(tree_ended.await)
    }

    fn carry_out(&mut self, effect: Effect<Ticket>) {
        match effect {
            Effect::Write(batch) => {
                let (report, writing) = oneshot::channel();
                let (first, size) = (batch.before.size.get(), batch.after.size().get());
                let bytes = batch.entries.len();
                self.write_span = tracing::debug_span!("batch", log = %self.origin, first, size, bytes);
                self.writing = Some(writing);
                // Does not block: no other batch waits.
                self.journal.append(batch, Box::new(move |result| drop(report.send(result))));
            }
            Effect::Durable { ticket, first_index } => {
                ticket.answer(Ok(Answer::Durable { first_index, cut: None }));
            }
            Effect::DurableUpTo { ticket, first_index, cut } => {
                ticket.answer(Ok(Answer::Durable { first_index, cut: Some(cut) }));
            }
            Effect::Compare { ticket, first_index, leaves } => {
                ticket.answer(Ok(Answer::Compare { first_index, leaves }));
            }
            Effect::Tell { ticket, epoch, next_sequence } => {
                ticket.answer(Ok(Answer::Producer(ProducerState { epoch, next_sequence })));
            }
            Effect::Refuse { ticket, why } => ticket.answer(Err(why)),
            Effect::Grown(head) => {
                self.durable.send_replace(head);
                self.growth.to(head.size, self.waiters.in_use() > 0);
            }
        }
    }
}

/// How the write that is under way ended; pends if there is none.
async fn written(
    writing: &mut Option<oneshot::Receiver<Result<(), AppendError>>>,
) -> Result<(), AppendError> {
    match writing {
        Some(result) => {
            result.await.unwrap_or_else(|_| Err(AppendError::Fatal("its thread has ended".into())))
        }
        None => std::future::pending().await,
    }
}

/// A thread that panicked has said nothing.
fn tree_outcome(ended: Result<Result<(), String>, oneshot::error::RecvError>) -> Result<(), Fatal> {
    ended.unwrap_or_else(|_| Err("the thread that builds the tree has ended".into())).map_err(Fatal::Tree)
}
