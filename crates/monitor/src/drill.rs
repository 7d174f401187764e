//! The rehearsal of an alarm. A fork of a log that never was is put into a directory, as people put what they were shown into one of
//! the configuration, and is found there as any other: the directory is polled, what is in it goes through the queue to the loop and a
//! comparing machine, and what that finds to evidence, book and sinks. Who is told hears it as it would hear a real one, under
//! the name `epigraph.drill`; then it is taken back. What did not arrive is a finding of its own.
//!
//! The way in is for this alone: the machine behind it is made from a [`Fork`], which only `Fork::plant` makes, so it knows one key that
//! nobody holds and one name that no log has, and nothing but the planted split view of it is filed.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use epigraph_core::evidence::{self, Fork};
use epigraph_core::key::NameError;
use epigraph_core::{Entropy, Origin, Policy, UnixMillis, VKey};
use epigraph_store::file::Dir;
use thiserror::Error;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use crate::compare::{Machine, THE_LOG, Tuning};
use crate::disk::DiskError;
use crate::event::{Effect, Vantage, VantageKind};
use crate::finding::{Clear, Code, FindingId, MAX_DETAIL_BYTES, Trigger, one_line};
use crate::monitor::{Monitor, MonitorError};
use crate::sinks::Sinks;
use crate::state::State;
use crate::vantage::{Message, Outbox, files};

/// How long an alarm may take to whoever is told: some attempts, if the first does not succeed.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Between two looks at who was told.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What everybody who is told reads first.
const THIS_IS_A_DRILL: &str = "THIS IS A DRILL, of a log that never was";

/// The place of the drill's log among the logs of the loop: that of none.
pub(crate) const NO_LOG: usize = usize::MAX;

/// The files in which the fork is put.
const FILES: [&str; 2] = ["what-one-half-was-shown", "what-others-are-shown"];

/// The directory as a vantage point.
const VANTAGE: &str = "the drill's files";

/// What a finding is about if the monitor itself did not see the fork.
const DETECTION: &str = "detection";

/// What came of a drill.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Drilled {
    /// The key that was made for it, and that its evidence accuses.
    pub vkey: VKey,
    /// The evidence, as it was read back from the disk; `None` if nothing was found.
    pub evidence: Option<Bytes>,
    /// Who was to be told, in the order of the configuration.
    pub alarms: Vec<Alarm>,
}

/// Whether somebody was told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Alarm {
    /// The sink's name in the configuration.
    pub sink: String,
    /// When it took the alarm, in milliseconds after the fork was shown; `None` if it did not.
    pub after_ms: Option<u64>,
    /// What went wrong; empty if nothing did.
    pub trouble: String,
}

/// Why there was no drill.
#[derive(Debug, Error)]
pub enum DrillError {
    /// The fork could not be put where it is to be found.
    #[error(
        "the planted fork cannot be written into the directory `drill` of the monitor: {0}; look at the disk and its permissions"
    )]
    NotPlanted(io::Error),
    /// A name that is none.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The monitor.
    #[error(transparent)]
    Monitor(#[from] MonitorError),
}

impl From<DiskError> for DrillError {
    fn from(error: DiskError) -> DrillError {
        DrillError::Monitor(error.into())
    }
}

/// Where drills take place.
#[derive(Clone)]
pub(crate) struct Ground {
    /// Of no use to anything else.
    pub(crate) dir: Arc<dyn Dir>,
    /// How often vantage points are asked.
    pub(crate) poll: Duration,
    /// Of [`NO_LOG`].
    pub(crate) outbox: Outbox,
}

/// Plants a fork and waits until everybody is told, at most for [`PATIENCE`]. What did not arrive is found about `log`, which is one
/// of the monitor's. To be run once at a time, to its end.
pub async fn drill(
    monitor: &Monitor,
    sinks: &Arc<Sinks>,
    entropy: &dyn Entropy,
    log: &Origin,
) -> Result<Drilled, DrillError> {
    let fork = Fork::plant(entropy)?;
    let id = FindingId::of(fork.origin(), Code::SplitView, THE_LOG);
    let (rehearsal, expecting) = (Rehearsal::of(&fork), Arc::clone(sinks));
    let begun = monitor.blocking(move |state| {
        // What an earlier drill left behind if it was cut off.
        state.end_drill()?;
        let since = state.clock.now();
        expecting.expect(id, since);
        state.drill = Some(rehearsal);
        Ok::<_, DiskError>(since)
    });
    let since = begun.await??;
    let rehearsed = rehearse(monitor, sinks, fork.clone(), (id, since)).await;
    // Taken back whatever came of it.
    let taken_back = monitor.blocking(State::end_drill).await;
    let drilled = rehearsed?;
    taken_back??;
    let convicts =
        drilled.evidence.as_ref().is_some_and(|file| evidence::verify(file, &[fork.vkey().clone()]).is_ok());
    let (log, told) = (log.clone(), drilled.alarms.clone());
    let filed = monitor.blocking(move |state| {
        let unseen = "the planted fork was not found, or its evidence does not convict";
        state.self_test(&log, DETECTION, (!convicts).then_some(unseen))?;
        told.iter().try_for_each(|alarm| {
            let trouble = alarm.after_ms.is_none().then_some(alarm.trouble.as_str());
            state.self_test(&log, &alarm.sink, trouble)
        })
    });
    filed.await??;
    Ok(drilled)
}

/// From the directory to whoever is told.
async fn rehearse(
    monitor: &Monitor,
    sinks: &Arc<Sinks>,
    fork: Fork,
    (id, since): (FindingId, UnixMillis),
) -> Result<Drilled, DrillError> {
    let Ground { dir, poll, outbox } = monitor.ground.clone();
    let (vkey, origin) = (fork.vkey().clone(), fork.origin().clone());
    on_disk(&dir, move |dir| plant(dir, &fork)).await.map_err(DrillError::NotPlanted)?;
    let mut alarms: Vec<Alarm> = sinks
        .status()
        .into_iter()
        .map(|sink| Alarm { sink: sink.name, after_ms: None, trouble: String::new() })
        .collect();
    let found = || monitor.finding(id).filter(|found| found.is_open() && found.first_at >= since);
    let arriving = async {
        while !(look(sinks, &mut alarms, since, &outbox) && found().is_some()) {
            sleep(LOOK_AGAIN).await;
        }
    };
    let vantage = Vantage { name: VANTAGE.into(), kind: VantageKind::File };
    tokio::select! {
        // Never ends.
        () = files::follow(Arc::clone(&dir), &origin, &vantage, poll, &outbox) => {}
        // Whoever was not told by then is in the list.
        _ = timeout(PATIENCE, arriving) => {}
    }
    for (alarm, sink) in alarms.iter_mut().zip(sinks.status()) {
        if alarm.after_ms.is_none() {
            alarm.trouble = match sink.trouble.as_str() {
                "" => format!("it took nothing within {} s", PATIENCE.as_secs()),
                trouble => trouble.to_owned(),
            };
        }
    }
    if let Err(error) = on_disk(&dir, clear).await {
        tracing::warn!(%error, "the files of a drill stay where they are until the next one");
    }
    let evidence = match found().and_then(|found| found.evidence) {
        Some(file) => monitor.evidence(file).await?,
        None => None,
    };
    Ok(Drilled { vkey, evidence, alarms })
}

/// Notes who was told by now. Says whether that is everybody.
fn look(sinks: &Sinks, alarms: &mut [Alarm], since: UnixMillis, outbox: &Outbox) -> bool {
    for (alarm, sink) in alarms.iter_mut().zip(sinks.status()) {
        if sink.expected_arrived && alarm.after_ms.is_none() {
            alarm.after_ms = Some(outbox.now().0.saturating_sub(since.0));
        }
    }
    alarms.iter().all(|alarm| alarm.after_ms.is_some())
}

async fn on_disk(
    dir: &Arc<dyn Dir>,
    work: impl FnOnce(&dyn Dir) -> io::Result<()> + Send + 'static,
) -> io::Result<()> {
    let dir = Arc::clone(dir);
    spawn_blocking(move || work(&*dir)).await?
}

fn plant(dir: &dyn Dir, fork: &Fork) -> io::Result<()> {
    clear(dir)?;
    for (name, note) in FILES.iter().zip(fork.notes()) {
        let file = dir.create(name)?;
        file.write_at(0, note.as_bytes())?;
        file.sync()?;
    }
    dir.sync()
}

fn clear(dir: &dyn Dir) -> io::Result<()> {
    FILES.iter().try_for_each(|name| match dir.remove(name) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    })
}

/// The machine of a drill.
pub(crate) struct Rehearsal(Machine);

impl Rehearsal {
    /// It knows the fork's key and name, and one directory.
    fn of(fork: &Fork) -> Rehearsal {
        let vantage = Vantage { name: VANTAGE.into(), kind: VantageKind::File };
        let policy = Policy::of_log(fork.vkey().clone());
        Rehearsal(Machine::new(fork.origin().clone(), policy, &[vantage], Tuning::default()))
    }

    /// What it finds. Whatever else it asks for is nobody's to do: nothing of a drill comes among the logs.
    fn found(&mut self, message: Message) -> Vec<Trigger> {
        let Message::Event(event) = message else { return Vec::new() };
        let found = self.0.step(event).into_iter().filter_map(|effect| match effect {
            Effect::Trigger(trigger) if trigger.code == Code::SplitView => Some(trigger),
            _ => None,
        });
        let marked = found.map(|trigger| {
            let detail = one_line(&format!("{THIS_IS_A_DRILL}. {}", trigger.detail), MAX_DETAIL_BYTES);
            Trigger { detail, ..trigger }
        });
        marked.collect()
    }
}

impl State {
    /// Takes what was said of the drill's log, if a drill is going on.
    pub(crate) fn rehearsed(&mut self, message: Message) -> Result<(), DiskError> {
        let found = self.drill.as_mut().map(|drill| drill.found(message)).unwrap_or_default();
        found.into_iter().try_for_each(|trigger| self.trigger(trigger))
    }

    /// Takes back what was found in a drill, and lets nothing more be found in it.
    pub(crate) fn end_drill(&mut self) -> Result<(), DiskError> {
        self.drill = None;
        let open = self.book.findings().filter(|finding| finding.is_drill() && finding.is_open());
        let open: Vec<FindingId> = open.map(|finding| finding.id).collect();
        let now = self.clock.now();
        let notices = open.into_iter().filter_map(|id| self.book.withdraw(id, now)).collect();
        self.tell(notices)
    }

    /// Files how a part of the drill went.
    fn self_test(&mut self, log: &Origin, subject: &str, trouble: Option<&str>) -> Result<(), DiskError> {
        let (code, at) = (Code::SelfTestFailed, self.clock.now());
        match trouble {
            Some(trouble) => self.trigger(Trigger::new(code, log, subject, at, trouble)),
            None => {
                let clear = Clear { code, origin: log.clone(), subject: subject.to_owned(), at };
                let notice = self.book.clear(&clear);
                self.tell(notice.into_iter().collect())
            }
        }
    }
}
