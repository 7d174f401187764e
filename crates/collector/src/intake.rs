//! The thread that reads: sources in turn, their records into batches, which are signed here and handed to the thread that owns the
//! spool. Who sends what is in the spool says here what was delivered, and hears what is durable.
//!
//! When the spool is full nothing is read, so that every source keeps what it has: nothing is dropped here.

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel, sync_channel};
use std::thread;
use std::time::Duration;

use epigraph_core::hash::sha256_of;
use epigraph_core::{Clock, Entropy, Hash, SourceKey, UnixMillis};
use epigraph_event::batch::BatchError;
use epigraph_event::chain::Tip;
use epigraph_event::decode::Decoded;
use epigraph_event::decode::frame::{Frame, Lines};
use epigraph_event::sensitive::Detectors;
use epigraph_event::{Batch, Context};
use thiserror::Error;
use tokio::sync::{oneshot, watch};

use crate::ahead::Ahead;
use crate::pack::{self, Kind, Pending, Replaced, Report};
use crate::position::{Position, Positions};
use crate::spool::fresh::Freshest;
use crate::spool::{Progress, Spool, SpoolError};
use crate::tail::{CHUNK_BYTES, Record, Tail, Turn};
use crate::writer::{DISK_FULL_POLL, Waiting, Writer};

/// How long an idle reader waits before it looks at its files again: what an event waits for at most before it is signed.
const POLL: Duration = Duration::from_millis(200);

/// Where records come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum From {
    /// A file.
    File(PathBuf),
    /// Standard input, which has no position: what was read from it and is not in the spool is gone with its writer.
    Stdin,
}

/// A source of records.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Input {
    /// Where they come from.
    pub from: From,
    /// How they are read.
    pub kind: Kind,
    /// What is said of them where they do not say it themselves.
    pub tenant: String,
}

impl Input {
    /// The name under which its position is kept.
    pub fn name(&self) -> String {
        match &self.from {
            From::File(path) => path.display().to_string(),
            From::Stdin => "-".to_owned(),
        }
    }
}

/// Why nothing is read any more.
#[derive(Debug, Error)]
pub enum IntakeError {
    /// The spool.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// A file.
    #[error(
        "cannot read {name}: {source}; what was read before is in the spool. Put it right and start again"
    )]
    Input {
        /// Which.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// A batch could not be made.
    #[error("cannot make a batch: {0}")]
    Batch(#[from] BatchError),
    /// The thread that writes is not there any more.
    #[error(
        "what writes the collector's spool has ended without a word: this is a fault of the program. What is not in the spool is read again at the next start"
    )]
    Lost,
}

/// Events that came by a network: they are answered once they are durable.
pub struct Pushed {
    /// What was decoded.
    pub events: Vec<Decoded>,
    /// For those that could not be.
    pub context: Context,
    /// Which source they are counted for: its place in [`Setup::pushing`].
    pub door: usize,
    /// Whether a record that came before, byte for byte, is the same event, sent again: its sender names every event by itself.
    pub repeats: bool,
    /// Hears what became of them, once they are durable; dropped if they are not taken.
    pub durable: oneshot::Sender<Taken>,
}

/// What became of events that were pushed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Taken {
    /// Durable now, those of the quarantine too.
    pub events: u64,
    /// Durable before, because they were sent before.
    pub repeated: u64,
}

/// What the thread is told.
pub enum Command {
    /// All batches before this one are proven to be in the log.
    Delivered(u64),
    /// Events of a source that sends by itself.
    Push(Pushed),
    /// Write down what was delivered, and end.
    Stop,
}

/// How the thread works.
pub struct Setup {
    /// With it batches are signed.
    pub key: SourceKey,
    /// What is replaced before that.
    pub detectors: Detectors,
    /// What to read.
    pub inputs: Vec<Input>,
    /// Sources that send by themselves, by name: they are counted behind the inputs.
    pub pushing: Vec<String>,
    /// Whether every input is read to its end, once.
    pub once: bool,
    /// How often it says that it is alive, where nothing else says so.
    pub heartbeat: Option<Duration>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// For references and salts.
    pub entropy: Arc<dyn Entropy>,
}

/// The running thread.
pub struct Intake {
    /// Tells it something.
    pub commands: Sender<Command>,
    /// What is durable.
    pub progress: watch::Receiver<Progress>,
    /// Of that, what need not be read back.
    pub fresh: Freshest,
    /// What was replaced by tokens.
    pub replaced: Arc<Replaced>,
    /// What came of each source, in their order, once it has ended.
    pub ended: oneshot::Receiver<Result<Vec<(String, Report)>, IntakeError>>,
}

/// Starts it.
pub fn start(setup: Setup, spool: Spool) -> io::Result<Intake> {
    let (commands, told) = channel();
    let (tell, progress) = watch::channel(spool.progress());
    let (end, ended) = oneshot::channel();
    let fresh = Freshest::default();
    let (tip, positions) = (*spool.tip(), spool.positions().clone());
    let writer = Writer::start(spool, tell, fresh.clone())?;
    let mut reader = Reading::new(setup, writer, tip, positions);
    let replaced = Arc::clone(&reader.replaced);
    thread::Builder::new().name("collector-intake".into()).spawn(move || {
        let result = reader.run(&told);
        // Whatever it was that ended it: what is on its way is durable, and the spool has no owner, when this is heard.
        let written = reader.writer.close();
        let _ = end.send(result.and(written).map(|()| reader.reports()));
    })?;
    Ok(Intake { commands, progress, fresh, replaced, ended })
}

/// Records that a sender may send again because it did not hear that they were taken, as long as this process lives.
const MAX_SEEN: usize = 65_536;

/// The records that were pushed lately, by their digests: a repeat is known only if all of its bytes are the same.
#[derive(Default)]
struct Seen {
    known: BTreeSet<Hash>,
    order: VecDeque<Hash>,
}

impl Seen {
    /// Whether this record of this door was not seen; from now on it was.
    fn is_new(&mut self, door: usize, record: &[u8]) -> bool {
        let digest = sha256_of(&[&door.to_le_bytes(), record]);
        if !self.known.insert(digest) {
            return false;
        }
        self.order.push_back(digest);
        if self.order.len() > MAX_SEEN
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }
}

/// An input while it is read.
enum Reader {
    File(Tail),
    Stdin(Lines, Receiver<io::Result<Vec<u8>>>),
    Done,
}

/// Reads standard input on a thread of its own, one chunk ahead: a read of it may wait for ever, and then it must not hold up
/// anything else.
fn stdin() -> Receiver<io::Result<Vec<u8>>> {
    let (give, chunks) = sync_channel(1);
    let read = move || {
        loop {
            let mut chunk = vec![0; CHUNK_BYTES];
            let read = match io::stdin().lock().read(&mut chunk) {
                Ok(0) => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(count) => {
                    chunk.truncate(count);
                    Ok(chunk)
                }
                Err(error) => Err(error),
            };
            let failed = read.is_err();
            if give.send(read).is_err() || failed {
                return;
            }
        }
    };
    // A thread that does not start hangs up, which reads as an empty input; its starter would fail for the same reason.
    if let Err(error) = thread::Builder::new().name("collector-stdin".into()).spawn(read) {
        tracing::error!(%error, "standard input cannot be read");
    }
    chunks
}

struct Reading {
    setup: Setup,
    entropy: Ahead,
    writer: Writer,
    /// Where the next batch belongs, once all that are on their way are in the spool.
    tip: Tip,
    readers: Vec<Reader>,
    reports: Vec<Report>,
    replaced: Arc<Replaced>,
    pending: Pending,
    /// How far the inputs are read with everything that is pending.
    positions: Positions,
    /// Who waits for what is pending.
    waiting: Waiting,
    seen: Seen,
    last_batch_at: UnixMillis,
    ended: bool,
    stopped: bool,
}

impl Reading {
    fn new(setup: Setup, writer: Writer, tip: Tip, positions: Positions) -> Reading {
        let reader = |input: &Input| match &input.from {
            From::File(path) => {
                Reader::File(Tail::new(path.clone(), setup.once, positions.get(&input.name()).cloned()))
            }
            From::Stdin => Reader::Stdin(Lines::default(), stdin()),
        };
        Reading {
            readers: setup.inputs.iter().map(reader).collect(),
            reports: vec![Report::default(); setup.inputs.len() + setup.pushing.len()],
            replaced: Arc::default(),
            pending: Pending::default(),
            waiting: Vec::new(),
            seen: Seen::default(),
            last_batch_at: setup.clock.now(),
            ended: false,
            stopped: false,
            entropy: Ahead::of(Arc::clone(&setup.entropy)),
            setup,
            writer,
            tip,
            positions,
        }
    }

    fn reports(&mut self) -> Vec<(String, Report)> {
        let inputs = self.setup.inputs.iter().map(Input::name);
        let names = inputs.chain(self.setup.pushing.iter().cloned());
        names.zip(std::mem::take(&mut self.reports)).collect()
    }

    fn run(&mut self, told: &Receiver<Command>) -> Result<(), IntakeError> {
        loop {
            self.writer.listen()?;
            while let Ok(command) = told.try_recv() {
                self.hear(command, told)?;
            }
            // All that waited are made durable together: those who came while something was written, with the next that is.
            if !self.waiting.is_empty() && self.writer.is_idle() {
                self.flush(told)?;
            }
            if self.stopped {
                return self.writer.stop(self.setup.clock.now());
            }
            let mut read = false;
            if self.writer.has_room() && !self.ended {
                for place in 0..self.readers.len() {
                    read |= self.turn(place, told)?;
                }
            }
            if read {
                continue;
            }
            if !self.writer.disk_is_full() {
                if !self.writer.is_idle() {
                    self.writer.wait()?;
                    continue;
                }
                self.flush(told)?;
                self.beat(told)?;
                let done = self.readers.iter().all(|reader| matches!(reader, Reader::Done));
                if self.setup.once && done && !self.ended {
                    self.ended = true;
                    self.writer.ended()?;
                }
            }
            match told.recv_timeout(POLL) {
                Ok(command) => self.hear(command, told)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => self.stopped = true,
            }
        }
    }

    fn hear(&mut self, command: Command, told: &Receiver<Command>) -> Result<(), IntakeError> {
        match command {
            Command::Delivered(next) => self.writer.delivered(next, self.setup.clock.now())?,
            Command::Push(pushed) => self.push(pushed, told)?,
            Command::Stop => self.stopped = true,
        }
        Ok(())
    }

    /// Takes what was pushed, or nothing of it: then its sender hears nothing, and keeps it.
    fn push(&mut self, pushed: Pushed, told: &Receiver<Command>) -> Result<(), IntakeError> {
        let Pushed { events, context, door, repeats, durable } = pushed;
        let record = |decoded: &Decoded| match decoded {
            Ok(event) => event.body.record.len(),
            Err(rejected) => rejected.record.len(),
        };
        self.writer.listen()?;
        let bytes: usize = self.pending.bytes() + events.iter().map(record).sum::<usize>();
        if self.stopped || !self.writer.has_room_for(bytes as u64) {
            return Ok(());
        }
        let place = self.setup.inputs.len() + door;
        let mut taken = Taken::default();
        for decoded in events {
            self.reports[place].records += 1;
            let whole = match &decoded {
                Ok(event) => Some(&event.body.record),
                Err(rejected) if rejected.original_size > rejected.record.len() as u64 => None,
                Err(rejected) => Some(&rejected.record),
            };
            if let Some(record) = whole.filter(|_| repeats)
                && !self.seen.is_new(door, record)
            {
                taken.repeated += 1;
                continue;
            }
            taken.events += 1;
            self.take(place, decoded, &context, told)?;
        }
        self.waiting.push((durable, taken));
        Ok(())
    }

    /// One input's turn; whether there may be more of it.
    fn turn(&mut self, place: usize, told: &Receiver<Command>) -> Result<bool, IntakeError> {
        let Some(reader) = self.readers.get_mut(place) else { return Ok(false) };
        let name = self.setup.inputs[place].name();
        let cannot = |source| IntakeError::Input { name: name.clone(), source };
        match reader {
            Reader::Done => Ok(false),
            Reader::File(tail) => match tail.turn() {
                Ok(Turn::Idle) => Ok(false),
                Ok(Turn::Ended) => {
                    self.readers[place] = Reader::Done;
                    Ok(false)
                }
                Ok(Turn::Records(records)) => {
                    for record in records {
                        self.record(place, &name, record, told)?;
                    }
                    Ok(true)
                }
                Err(error) if self.setup.once => Err(cannot(error)),
                Err(error) => {
                    tracing::error!(%error, name, "an input cannot be read; it is tried again");
                    Ok(false)
                }
            },
            Reader::Stdin(lines, chunks) => {
                let mut frames = Vec::new();
                let more = match chunks.try_recv() {
                    Err(TryRecvError::Empty) => return Ok(false),
                    Ok(chunk) => {
                        lines.push(&chunk.map_err(cannot)?, |frame| frames.push(frame));
                        true
                    }
                    Err(TryRecvError::Disconnected) => {
                        lines.finish(|frame| frames.push(frame));
                        self.readers[place] = Reader::Done;
                        false
                    }
                };
                for frame in frames {
                    self.frame(place, frame, 0, None, told)?;
                }
                Ok(more)
            }
        }
    }

    fn record(
        &mut self,
        place: usize,
        name: &str,
        record: Record,
        told: &Receiver<Command>,
    ) -> Result<(), IntakeError> {
        // After a restart the first record may be in the spool in part: as far as it is, it is passed over.
        let known = self.positions.get(name).filter(|known| {
            (known.device, known.inode, known.offset)
                == (record.start.device, record.start.inode, record.start.offset)
        });
        let taken = known.map_or(0, |known| known.taken);
        self.frame(place, record.frame, taken, Some((name, &record.start)), told)?;
        self.read_to(name, record.end);
        Ok(())
    }

    /// An input was read so far, with everything that is pending.
    fn read_to(&mut self, name: &str, position: Position) {
        match self.positions.get_mut(name) {
            Some(known) => *known = position,
            None => drop(self.positions.insert(name.to_owned(), position)),
        }
    }

    fn frame(
        &mut self,
        place: usize,
        frame: Frame,
        taken: u64,
        at: Option<(&str, &Position)>,
        told: &Receiver<Command>,
    ) -> Result<(), IntakeError> {
        let input = &self.setup.inputs[place];
        let context = Context {
            observed_at: self.setup.clock.now(),
            tenant: input.tenant.clone(),
            ..Context::default()
        };
        self.reports[place].records += 1;
        let events = input.kind.decode(frame, &context);
        let last = events.len() as u64;
        for (nth, decoded) in (1..).zip(events) {
            if nth <= taken {
                continue;
            }
            self.take(place, decoded, &context, told)?;
            // With its last event all of the record was taken, and its end is the position.
            if let Some((name, start)) = at.filter(|_| nth < last) {
                self.read_to(name, Position { taken: nth, ..start.clone() });
            }
        }
        Ok(())
    }

    fn take(
        &mut self,
        place: usize,
        decoded: Decoded,
        context: &Context,
        told: &Receiver<Command>,
    ) -> Result<(), IntakeError> {
        if self.pending.is_full() {
            self.flush(told)?;
        }
        let means = (&self.setup.detectors, &self.entropy as &dyn Entropy);
        let report = &mut self.reports[place];
        if let Some(event) = pack::seal(decoded, context, means, (report, &self.replaced)) {
            report.took(self.tip.sequence + self.pending.len() as u64);
            self.pending.push(event);
        }
        Ok(())
    }

    /// Signs what is pending, and hands it over. Who waits hears when it is durable.
    fn flush(&mut self, told: &Receiver<Command>) -> Result<(), IntakeError> {
        if !self.pending.is_empty() {
            return self.sign(told);
        }
        // Where only empty lines were read, nothing is lost if they are read again.
        match std::mem::take(&mut self.waiting) {
            nobody if nobody.is_empty() => Ok(()),
            waiting => self.writer.answer(waiting),
        }
    }

    fn sign(&mut self, told: &Receiver<Command>) -> Result<(), IntakeError> {
        self.wait_for_place(told)?;
        // What was to be signed when it was stopped is not durable: nothing behind it may become so, and who sent it hears nothing.
        if self.stopped {
            return Ok(());
        }
        let now = self.setup.clock.now();
        let batch = Batch::sign(&self.setup.key, &self.tip, self.pending.take(), now)?;
        self.tip = Tip::after(batch.signed());
        self.last_batch_at = now;
        self.writer.append(batch, self.positions.clone(), now, std::mem::take(&mut self.waiting))
    }

    /// Waits until a batch may be handed over. While the disk is full that takes as long as it takes, and what is said here is heard.
    fn wait_for_place(&mut self, told: &Receiver<Command>) -> Result<(), IntakeError> {
        while !self.stopped && !self.writer.has_place() {
            if !self.writer.disk_is_full() {
                self.writer.wait()?;
                continue;
            }
            match told.recv_timeout(DISK_FULL_POLL) {
                Ok(Command::Delivered(next)) => self.writer.delivered(next, self.setup.clock.now())?,
                // It is said to be too busy.
                Ok(Command::Push(_)) | Err(RecvTimeoutError::Timeout) => {}
                // What is not durable is read again by whoever is started next.
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => self.stopped = true,
            }
            self.writer.listen()?;
        }
        Ok(())
    }

    fn beat(&mut self, told: &Receiver<Command>) -> Result<(), IntakeError> {
        let now = self.setup.clock.now();
        let silent = now.0.saturating_sub(self.last_batch_at.0);
        // A clock that went back says nothing about silence: it is waited for anew.
        if now < self.last_batch_at {
            self.last_batch_at = now;
        }
        match self.setup.heartbeat {
            Some(heartbeat) if u128::from(silent) >= heartbeat.as_millis() && self.writer.has_room() => {
                self.sign(told)
            }
            _ => Ok(()),
        }
    }
}
