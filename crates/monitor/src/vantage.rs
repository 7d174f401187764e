//! Where a log is looked at: the log itself as a reader under several identities, witnesses, other monitors, and a directory of
//! files. Each vantage point has tasks of its own, says what it sees, and believes none of it.
//!
//! Whatever is shown here costs bounded memory and time, and one vantage point that is silent, slow or endless holds up no
//! other. What a head is worth, and what is to be asked, is decided by the comparing machine.

pub mod ask;
pub mod feed;
pub mod files;
pub mod monitors;
pub mod reading;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use epigraph_core::backoff::spread_wait;
use epigraph_core::note::MAX_NOTE_BYTES;
use epigraph_core::{Clock, Entropy, Frontier, Origin, TreeSize, UnixMillis};
use epigraph_rpc::{CallError, Reason, Refusal, peer};
use tokio::sync::mpsc;

use crate::event::{Event, Vantage, Why};
use crate::standing::Condition;

/// What the vantage points of all logs have said and the loop has not heard yet. They wait when it is full.
pub const MAX_UNHEARD: usize = 64;

/// The first wait after a vantage point failed.
const FIRST_WAIT: Duration = Duration::from_millis(500);

/// The longest: one that is back is looked at again within it.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// The least time between two heads of one vantage point. One that pushes without end keeps a hundredth of one core busy with
/// signatures, and no other vantage point waiting.
const HEAD_GAP: Duration = Duration::from_millis(5);

/// How much of a note that is too long is passed on, so that it is told as what it is.
const TOO_LONG_EXCERPT: usize = 1024;

/// What a vantage point says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// To the comparing machine.
    Event(Event),
    /// How far an audit has come.
    Audit {
        /// Under which vantage point.
        vantage: String,
        /// How far.
        come: Come,
    },
    /// What the order of the entries up to a head shows. They are proven to be the head's, so whoever read them says the same.
    Order {
        /// The head's size.
        upto: TreeSize,
        /// What is wrong there.
        conditions: Vec<Condition>,
    },
}

/// How far an audit has come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Come {
    /// So far is read and proven; and what the rule about the order of entries remembers of them.
    Read(Frontier, String),
    /// So far is read again and proven; and the same.
    Again(Frontier, String),
    /// Everything from the first entry on was read.
    Full {
        /// When that ended.
        at: UnixMillis,
    },
}

/// The log seen by one of its readers.
#[derive(Clone, Debug)]
pub struct Reader {
    /// The vantage point.
    pub vantage: Vantage,
    /// The log's name.
    pub origin: Origin,
    /// The connection, under this reader's identity.
    pub log: peer::Log,
}

/// How a vantage point of one log speaks to the loop.
#[derive(Clone)]
pub struct Outbox {
    log: usize,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    sender: mpsc::Sender<(usize, Message)>,
}

impl Outbox {
    /// For the log at this place among the monitor's.
    pub fn new(
        log: usize,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
        sender: mpsc::Sender<(usize, Message)>,
    ) -> Outbox {
        Outbox { log, clock, entropy, sender }
    }

    /// The time of what happens now.
    pub fn now(&self) -> UnixMillis {
        self.clock.now()
    }

    /// Waits until there is room. When nobody listens any more the monitor is ending, and so is whoever speaks.
    pub async fn send(&self, message: Message) {
        let _ = self.sender.send((self.log, message)).await;
    }

    /// Tells the comparing machine.
    pub async fn tell(&self, event: Event) {
        self.send(Message::Event(event)).await;
    }

    /// Says that a vantage point showed a note.
    pub async fn head(&self, vantage: &Vantage, note: &Bytes) {
        // A copy: what came off the wire may hold on to a whole message around it.
        let shown = if note.len() > MAX_NOTE_BYTES { &note[..TOO_LONG_EXCERPT] } else { note };
        let note = Bytes::copy_from_slice(shown);
        self.tell(Event::Head { vantage: vantage.clone(), note, at: self.now() }).await;
    }

    async fn reached(&self, vantage: &Vantage) {
        self.tell(Event::Reached { vantage: vantage.clone(), at: self.now() }).await;
    }

    async fn unreachable(&self, vantage: &Vantage, why: &str) {
        self.tell(Event::Unreachable { vantage: vantage.clone(), why: why.to_owned(), at: self.now() }).await;
    }

    /// How long to wait after so many failures in a row.
    fn wait(&self, failures: u32) -> Duration {
        spread_wait(FIRST_WAIT, LONGEST_WAIT, failures, &*self.entropy)
    }
}

/// Whether an answer says something about the moment or about who asks, and nothing about the log: it is busy, starting or
/// ending, or the reader may not ask this.
fn is_passing(refusal: &Refusal) -> bool {
    use Reason::{
        DeadlineExceeded, Draining, Gated, LogStopped, NoSpace, NotYetPublished, Overloaded,
        PermissionDenied, RateLimited, Unauthenticated, UnpublishedBacklog,
    };
    matches!(
        refusal.reason(),
        Draining
            | Overloaded
            | Gated
            | NotYetPublished
            | DeadlineExceeded
            | RateLimited
            | LogStopped
            | NoSpace
            | UnpublishedBacklog
            | PermissionDenied
            | Unauthenticated
    )
}

/// Why a question was not answered.
fn why(error: &CallError) -> Why {
    match error {
        CallError::Refused(refusal) if !is_passing(refusal) => Why::Refused(refusal.to_string()),
        // An answer of another shape is one: the log was reached, and did not give what was asked for.
        CallError::Garbled(error) => Why::Refused(error.to_string()),
        error => Why::Unreachable(error.to_string()),
    }
}

/// Whether a vantage point has nothing to show yet, which is an answer.
fn shows_nothing(error: &CallError) -> bool {
    matches!(error, CallError::Refused(refusal) if refusal.reason() == Reason::NotYetPublished)
}

/// Where the newest head is asked for, and pushed from.
pub trait HeadSource: Send + Sync {
    /// Heads as they are pushed.
    type Pushed: Pushed;

    /// Asks for the newest head.
    fn newest(&self) -> impl Future<Output = Result<Bytes, CallError>> + Send;

    /// Asks to be told of heads.
    fn watch(&self) -> impl Future<Output = Result<Self::Pushed, CallError>> + Send;
}

/// Heads as they are pushed.
pub trait Pushed: Send {
    /// The next one; `None` when the server wants to be asked anew. May be dropped and asked again.
    fn next(&mut self) -> impl Future<Output = Result<Option<Bytes>, CallError>> + Send;
}

impl HeadSource for Reader {
    type Pushed = peer::Watch;

    async fn newest(&self) -> Result<Bytes, CallError> {
        self.log.checkpoint(self.origin.as_str()).await
    }

    async fn watch(&self) -> Result<peer::Watch, CallError> {
        self.log.watch_checkpoints(self.origin.as_str(), None).await
    }
}

impl Pushed for peer::Watch {
    async fn next(&mut self) -> Result<Option<Bytes>, CallError> {
        peer::Watch::next(self).await
    }
}

/// One log as one witness has it.
#[derive(Clone, Debug)]
pub struct WitnessSource {
    /// The log's name.
    pub origin: Origin,
    /// The connection.
    pub witness: peer::Witness,
}

impl HeadSource for WitnessSource {
    type Pushed = peer::Watched;

    async fn newest(&self) -> Result<Bytes, CallError> {
        self.witness.checkpoint(self.origin.as_str()).await
    }

    async fn watch(&self) -> Result<peer::Watched, CallError> {
        self.witness.watch(self.origin.as_str()).await
    }
}

impl Pushed for peer::Watched {
    async fn next(&mut self) -> Result<Option<Bytes>, CallError> {
        peer::Watched::next(self).await
    }
}
