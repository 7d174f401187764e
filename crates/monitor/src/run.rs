//! The loop: what the vantage points say goes to the machines, and what the machines ask goes to the vantage points. It decides
//! nothing.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use epigraph_core::evidence::DRILL_ORIGIN;
use epigraph_core::{Clock, Entropy, Frontier, Origin, Policy, SigningKey, TreeHead, TreeSize, UnixMillis};
use epigraph_rpc::peer;
use epigraph_store::file::Dir;
use thiserror::Error;
use tokio::sync::{Semaphore, broadcast, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::audit::{EntryRule, SequenceRule, WellFormed};
use crate::book::Book;
use crate::compare::{Machine, Tuning};
use crate::disk::{Disk, DiskError};
use crate::drill::{Ground, NO_LOG};
use crate::event::{Effect, Event, Vantage, VantageKind, Why};
use crate::finding::{Code, Notice};
use crate::monitor::{Monitor, MonitorError, VantageStatus};
use crate::progress::{MAX_AUDITED, MAX_VANTAGE_BYTES, Progress, StateError};
use crate::standing::{Standing, THE_ENTRIES};
use crate::state::{Ask, LogState, MAX_BEHIND, State};
use crate::vantage::reading::{self, Job, MAX_JOBS, Rules};
use crate::vantage::{MAX_UNHEARD, Message, Outbox, Reader, WitnessSource, ask, feed, files, monitors};

/// How often the machines are told that time passes.
const TICK: Duration = Duration::from_secs(1);

/// Messages that are taken at once: as many as may wait, so that a disk that syncs slowly is asked less often.
const BATCH: usize = MAX_UNHEARD;

/// What the order of entries shows.
const IN_ORDER: &[Code] = &[Code::SourceGap];

/// Questions for proofs that are under way for one log. The others wait.
const MAX_QUESTIONS: usize = 8;

/// Takes a notice, durably, before the book that it comes from is stored.
pub type OnNotice = Box<dyn Fn(&Notice) + Send>;

/// What a monitor is given to run.
pub struct Setup {
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// For waits that are not all of one length.
    pub entropy: Arc<dyn Entropy>,
    /// Its directory, opened.
    pub disk: Disk,
    /// What was found before.
    pub book: Book,
    /// An empty directory of its own for drills.
    pub drill: Arc<dyn Dir>,
    /// The logs, by their places in every other list.
    pub logs: Vec<LogSetup>,
    /// How often each vantage point is asked.
    pub poll: Duration,
    /// How long a log has to publish what it acknowledged, in milliseconds.
    pub published_within_ms: u64,
    /// The key under which it states what it observes.
    pub key: SigningKey,
    /// Takes each notice, durably.
    pub on_notice: OnNotice,
    /// Is told each time the loop has come round, with the number of open findings.
    pub on_round: Box<dyn Fn(UnixMillis, u64) + Send>,
}

/// One log, and where it is looked at.
pub struct LogSetup {
    /// Its name.
    pub origin: Origin,
    /// The monitor's own policy for it.
    pub policy: Policy,
    /// How long things may take.
    pub tuning: Tuning,
    /// How often all entries are read again from the first one on.
    pub full_audit_every_ms: u64,
    /// What entries must be, beside what every entry must be.
    pub rules: Vec<Box<dyn EntryRule>>,
    /// What their order must be, if anything.
    pub sequence: Option<Arc<dyn SequenceRule>>,
    /// Who else reports what stands, and of which codes: see [`Monitor::report`].
    pub reporters: Vec<(String, &'static [Code])>,
    /// The log as a reader, under each identity: a name and a connection.
    pub readers: Vec<(String, peer::Log)>,
    /// Witnesses: a name, the name of the witness's key, and a connection.
    pub witnesses: Vec<(String, String, peer::Witness)>,
    /// Other monitors: a name and a connection.
    pub monitors: Vec<(String, peer::Monitor)>,
    /// Directories into which people put files: a name, and the directory.
    pub files: Vec<(String, Arc<dyn Dir>)>,
}

/// Why a monitor did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// Its directory.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// What it knew of a log.
    #[error("the heads that were seen of {origin} cannot be used: {source}")]
    Heads {
        /// The log.
        origin: Origin,
        /// What is wrong.
        source: StateError,
    },
    /// Vantage points that cannot be told apart, or have no name that can be written down.
    #[error(
        "the vantage points of {origin} need names of 1 to {MAX_VANTAGE_BYTES} bytes in one line each, no two the same; {name:?} is \
         not such a name, or is there twice"
    )]
    Name {
        /// The log.
        origin: Origin,
        /// The name.
        name: String,
    },
    /// What a rule remembered.
    #[error(
        "what the rule about the order of entries remembered of {origin} under {vantage} cannot be used: another version of this \
         program wrote it. Put back that version, or an older copy of the monitor's directory, which does no harm"
    )]
    Rule {
        /// The log.
        origin: Origin,
        /// The vantage point.
        vantage: String,
    },
    /// A log has the name of the log that never was.
    #[error(
        "{DRILL_ORIGIN} is the name of the log that drills are about, which never was: a log has another one"
    )]
    Reserved,
    /// Too many identities.
    #[error("{origin} is read under {readers} identities, at most {MAX_AUDITED} are possible")]
    TooManyReaders {
        /// The log.
        origin: Origin,
        /// How many.
        readers: usize,
    },
}

/// The loop of a monitor, and the handle on it. Dropping the future stops the monitor; what was not stored is seen again.
pub fn start(
    setup: Setup,
) -> Result<(Monitor, impl Future<Output = Result<(), MonitorError>> + Send), StartError> {
    let Setup { clock, entropy, disk, book, logs, poll, .. } = setup;
    let mut states = Vec::new();
    let mut lanes = Vec::new();
    let (sender, inbox) = mpsc::channel(MAX_UNHEARD);
    for (place, log) in logs.into_iter().enumerate() {
        let state = open(&disk, &log)?;
        let outbox = Outbox::new(place, Arc::clone(&clock), Arc::clone(&entropy), sender.clone());
        lanes.push((log, outbox, state.progress.clone()));
        states.push(state);
    }
    let mut state = State {
        tidied: clock.now(),
        clock: Arc::clone(&clock),
        book,
        disk,
        logs: states,
        key: setup.key,
        on_notice: setup.on_notice,
        notices: broadcast::channel(MAX_BEHIND).0,
        counted: false,
        drill: None,
        asks: Vec::new(),
    };
    // A process that ended in the middle of a drill took nothing back.
    state.end_drill()?;
    let outbox = Outbox::new(NO_LOG, Arc::clone(&clock), Arc::clone(&entropy), sender.clone());
    let monitor = Monitor {
        state: Arc::new(Mutex::new(state)),
        inbox: sender,
        published_within_ms: setup.published_within_ms,
        ground: Ground { dir: setup.drill, poll, outbox },
    };
    let on_round = setup.on_round;
    let looping = monitor.clone();
    let run = async move {
        let mut tasks = JoinSet::new();
        let lanes: Vec<Lane> = lanes
            .into_iter()
            .map(|(log, outbox, progress)| Lane::start(log, outbox, &progress, poll, &mut tasks))
            .collect();
        turn(looping, inbox, lanes, tasks, on_round).await
    };
    Ok((monitor, run))
}

fn open(disk: &Disk, log: &LogSetup) -> Result<LogState, StartError> {
    let origin = &log.origin;
    if origin.as_str() == DRILL_ORIGIN {
        return Err(StartError::Reserved);
    }
    let vantages = log.vantages();
    let mut points = BTreeMap::new();
    for vantage in &vantages {
        let name = &vantage.name;
        let writable = (1..=MAX_VANTAGE_BYTES).contains(&name.len()) && !name.chars().any(char::is_control);
        let point = VantageStatus::new(vantage.clone());
        if !writable || points.insert(name.clone(), point).is_some() {
            return Err(StartError::Name { origin: origin.clone(), name: name.clone() });
        }
    }
    if log.readers.len() > MAX_AUDITED {
        return Err(StartError::TooManyReaders { origin: origin.clone(), readers: log.readers.len() });
    }
    let crate::disk::LogState { heads, mut progress } = disk.log(origin)?;
    progress.retain(|name| log.readers.iter().any(|(reader, _)| reader == name));
    check_rules(log, &mut progress)?;
    let mut standing = Standing::default();
    if log.sequence.is_some() {
        standing.expect(THE_ENTRIES, IN_ORDER);
    }
    log.reporters.iter().for_each(|(reporter, codes)| standing.expect(reporter, codes));
    let (policy, tuning) = (log.policy.clone(), log.tuning);
    let machine = if heads.is_empty() {
        Machine::new(origin.clone(), policy, &vantages, tuning)
    } else {
        Machine::decode(&heads, origin.clone(), policy, &vantages, tuning)
            .map_err(|source| StartError::Heads { origin: origin.clone(), source })?
    };
    Ok(LogState {
        machine,
        policy: log.policy.clone(),
        progress,
        full_audit_every_ms: log.full_audit_every_ms,
        points,
        again: BTreeMap::new(),
        standing,
        ordered: TreeSize::ZERO,
    })
}

/// What the rule about the order of entries remembered must be what it goes on from. A log that has such a rule for the first time
/// is read from its first entry on.
fn check_rules(log: &LogSetup, progress: &mut Progress) -> Result<(), StartError> {
    let names: Vec<String> = progress.all().map(|(name, _)| name.to_owned()).collect();
    for vantage in names {
        let mut audited = progress.of(&vantage);
        let Some(rule) = &log.sequence else {
            audited.rules.clear();
            audited.again.iter_mut().for_each(|(_, rules)| rules.clear());
            progress.set(&vantage, audited);
            continue;
        };
        if audited.rules.is_empty() {
            (audited.read, audited.full_at) = (Frontier::new(), None);
        }
        audited.again = audited.again.filter(|(_, rules)| !rules.is_empty());
        let again = audited.again.iter().map(|(_, rules)| rules);
        let mut kept = std::iter::once(&audited.rules).chain(again).filter(|rules| !rules.is_empty());
        if kept.any(|rules| rule.resume(rules).is_none()) {
            return Err(StartError::Rule { origin: log.origin.clone(), vantage });
        }
        progress.set(&vantage, audited);
    }
    Ok(())
}

impl LogSetup {
    /// The vantage points.
    fn vantages(&self) -> Vec<Vantage> {
        let logs = self.readers.iter().map(|(name, _)| (name, VantageKind::Log));
        let witnesses = self.witnesses.iter().map(|(name, key, _)| (name, VantageKind::Witness(key.clone())));
        let monitors = self.monitors.iter().map(|(name, _)| (name, VantageKind::Monitor));
        let files = self.files.iter().map(|(name, _)| (name, VantageKind::File));
        let all = logs.chain(witnesses).chain(monitors).chain(files);
        all.map(|(name, kind)| Vantage { name: name.clone(), kind }).collect()
    }
}

/// The tasks of one log, as the loop speaks to them.
struct Lane {
    outbox: Outbox,
    readers: BTreeMap<String, Line>,
    questions: Arc<Semaphore>,
}

/// One reader of it.
struct Line {
    reader: Reader,
    upto: watch::Sender<Option<TreeHead>>,
    jobs: mpsc::Sender<Job>,
}

impl Lane {
    fn start(
        log: LogSetup,
        outbox: Outbox,
        progress: &Progress,
        poll: Duration,
        tasks: &mut JoinSet<()>,
    ) -> Lane {
        let LogSetup { origin, rules, sequence, readers, witnesses, monitors, files, .. } = log;
        let always: Box<dyn EntryRule> = Box::new(WellFormed);
        let rules = Rules { each: std::iter::once(always).chain(rules).collect(), sequence };
        let mut lines = BTreeMap::new();
        for (name, log) in readers {
            let vantage = Vantage { name: name.clone(), kind: VantageKind::Log };
            let reader = Reader { vantage, origin: origin.clone(), log };
            let (upto, asked) = watch::channel(None);
            let (jobs, queue) = mpsc::channel(MAX_JOBS);
            let audited = progress.of(&name);
            let (one, out) = (reader.clone(), outbox.clone());
            tasks.spawn(async move { feed::follow(&one, &one.vantage, poll, &out).await });
            let (one, out, its_rules) = (reader.clone(), outbox.clone(), rules.clone());
            tasks.spawn(async move {
                let full = audited.full_at.is_some();
                reading::tail(&one, (audited.read, &audited.rules), full, asked, &its_rules, &out).await;
            });
            let (one, out, its_rules) = (reader.clone(), outbox.clone(), rules.clone());
            tasks.spawn(async move { reading::jobs(&one, queue, &its_rules, &out).await });
            lines.insert(name, Line { reader, upto, jobs });
        }
        for (name, key, witness) in witnesses {
            let vantage = Vantage { name, kind: VantageKind::Witness(key) };
            let (source, out) = (WitnessSource { origin: origin.clone(), witness }, outbox.clone());
            tasks.spawn(async move { feed::follow(&source, &vantage, poll, &out).await });
        }
        for (name, monitor) in monitors {
            let vantage = Vantage { name, kind: VantageKind::Monitor };
            let (origin, out) = (origin.clone(), outbox.clone());
            tasks.spawn(async move { monitors::follow(&monitor, &origin, &vantage, poll, &out).await });
        }
        for (name, dir) in files {
            let vantage = Vantage { name, kind: VantageKind::File };
            let (origin, out) = (origin.clone(), outbox.clone());
            tasks.spawn(async move { files::follow(dir, &origin, &vantage, poll, &out).await });
        }
        Lane { outbox, readers: lines, questions: Arc::new(Semaphore::new(MAX_QUESTIONS)) }
    }

    /// Passes on what the machine asks for.
    fn pass_on(&self, ask: Ask, tasks: &mut JoinSet<()>) {
        match ask {
            Ask::Effect(Effect::AskProof { old, new, vantage }) => {
                if let Some(line) = self.readers.get(&vantage.name) {
                    let (reader, outbox) = (line.reader.clone(), self.outbox.clone());
                    let questions = Arc::clone(&self.questions);
                    tasks.spawn(async move {
                        // Closed never.
                        let _turn = questions.acquire().await;
                        ask::consistency(&reader, old, new, &outbox).await;
                    });
                }
            }
            Ask::Effect(Effect::AskEntry { index, head, vantage }) => {
                if let Some(line) = self.readers.get(&vantage.name) {
                    let (reader, outbox) = (line.reader.clone(), self.outbox.clone());
                    let questions = Arc::clone(&self.questions);
                    tasks.spawn(async move {
                        let _turn = questions.acquire().await;
                        ask::entry(&reader, index, head, &outbox).await;
                    });
                }
            }
            Ask::Effect(Effect::Audit { upto, vantage }) => {
                if let Some(line) = self.readers.get(&vantage.name) {
                    line.upto.send_replace(Some(upto));
                }
            }
            Ask::Effect(Effect::Rehash { old, new, vantage }) => {
                let line = self.readers.get(&vantage.name);
                if line.is_some_and(|line| line.jobs.try_send(Job::Rehash { old, new }).is_err()) {
                    let outbox = self.outbox.clone();
                    let why = Why::Unreachable("too many of its histories are being read".to_owned());
                    let (old, new, at) = (old.size, new.size, outbox.now());
                    tasks.spawn(async move {
                        outbox.tell(Event::NoProof { old, new, vantage, why, at }).await;
                    });
                }
            }
            Ask::Again { vantage, upto, heads, from } => self.again(&vantage, upto, heads, from),
            // Carried out before.
            Ask::Effect(Effect::Trigger(_) | Effect::Clear(_) | Effect::KeepHeads) => {}
        }
    }

    fn again(&self, vantage: &str, upto: TreeHead, heads: Vec<TreeHead>, from: (Frontier, String)) {
        let Some(line) = self.readers.get(vantage) else { return };
        if line.jobs.try_send(Job::Again { upto, heads, from }).is_err() {
            tracing::warn!(vantage, "its entries are not read again now: its histories are being read");
        }
    }
}

async fn turn(
    monitor: Monitor,
    mut inbox: mpsc::Receiver<(usize, Message)>,
    lanes: Vec<Lane>,
    mut tasks: JoinSet<()>,
    on_round: Box<dyn Fn(UnixMillis, u64) + Send>,
) -> Result<(), MonitorError> {
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut messages = Vec::with_capacity(BATCH);
    loop {
        let batch = tokio::select! {
            biased;
            _ = tick.tick() => None,
            _ = inbox.recv_many(&mut messages, BATCH) => Some(std::mem::take(&mut messages)),
            Some(ended) = tasks.join_next(), if !tasks.is_empty() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a task of a vantage point has ended; this is a fault of the program");
                }
                continue;
            }
        };
        let (asks, at, open) = monitor.blocking(|state| round(state, batch)).await??;
        on_round(at, open);
        for (log, ask) in asks {
            if let Some(lane) = lanes.get(log) {
                lane.pass_on(ask, &mut tasks);
            }
        }
    }
}

/// What is to be done, the time, and how many findings are open.
type Round = (Vec<(usize, Ask)>, UnixMillis, u64);

/// Takes what was said, or lets time pass.
fn round(state: &mut State, batch: Option<Vec<(usize, Message)>>) -> Result<Round, DiskError> {
    let mut asks = std::mem::take(&mut state.asks);
    match batch {
        None => asks.extend(state.tick()?),
        Some(batch) => {
            for (log, message) in batch {
                asks.extend(state.heard(log, message)?.into_iter().map(|ask| (log, ask)));
            }
        }
    }
    let open = state.book.findings().filter(|finding| finding.is_open()).count();
    Ok((asks, state.clock.now(), open as u64))
}

impl VantageStatus {
    fn new(vantage: Vantage) -> VantageStatus {
        VantageStatus {
            vantage,
            head: None,
            head_at: None,
            reached: None,
            trouble: String::new(),
            audited: Default::default(),
            full_at: None,
        }
    }
}
