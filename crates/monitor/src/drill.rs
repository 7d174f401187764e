//! The rehearsal of an alarm: a fork of a log that never was is shown to a machine like every other, and takes the way of every
//! finding from there: evidence, book, sinks. Who is told, hears it as it would hear a real one, under the name `epigraph.drill`; then it is
//! taken back. What did not arrive is a finding of its own. How heads travel to the monitor is not part of it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use epigraph_core::evidence::{self, Fork};
use epigraph_core::key::NameError;
use epigraph_core::{Entropy, Origin, Policy, UnixMillis, VKey};
use thiserror::Error;
use tokio::time::{sleep, timeout};

use crate::compare::{Machine, THE_LOG, Tuning};
use crate::disk::DiskError;
use crate::event::{Effect, Event, Vantage, VantageKind};
use crate::finding::{Clear, Code, Finding, FindingId, MAX_DETAIL_BYTES, Trigger, one_line};
use crate::monitor::{Monitor, MonitorError};
use crate::sinks::Sinks;
use crate::state::State;

/// How long an alarm may take to whoever is told: some attempts, if the first does not succeed.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Between two looks at who was told.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What everybody who is told reads first.
const THIS_IS_A_DRILL: &str = "THIS IS A DRILL, of a log that never was";

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
    /// A log has the name that drills use.
    #[error("this monitor watches a log that is named {0}, as drills are: give that log another name")]
    Taken(Origin),
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

/// Plants a fork and waits until everybody is told, at most for [`PATIENCE`]. What did not arrive is found about `log`, which is one
/// of the monitor's. To be run once at a time, to its end.
pub async fn drill(
    monitor: &Monitor,
    sinks: &Arc<Sinks>,
    entropy: &dyn Entropy,
    log: &Origin,
) -> Result<Drilled, DrillError> {
    let fork = Fork::plant(entropy)?;
    if monitor.origins().contains(&fork.origin) {
        return Err(DrillError::Taken(fork.origin));
    }
    let id = FindingId::of(&fork.origin, Code::SplitView, THE_LOG);
    let (origin, vkey) = (fork.origin.clone(), fork.vkey.clone());
    let expecting = Arc::clone(sinks);
    let since = monitor
        .blocking(move |state| {
            // What an earlier drill left behind if it was cut off.
            state.end_drill(&fork.origin)?;
            let since = state.clock.now();
            expecting.expect(id, since);
            state.show_fork(&fork, since).map(|()| since)
        })
        .await??;
    let mut alarms: Vec<Alarm> = sinks
        .status()
        .into_iter()
        .map(|sink| Alarm { sink: sink.name, after_ms: None, trouble: String::new() })
        .collect();
    let arriving = async {
        while !look(sinks, &mut alarms, since, monitor) {
            sleep(LOOK_AGAIN).await;
        }
    };
    // Whoever was not told by then is in the list.
    let _ = timeout(PATIENCE, arriving).await;
    for (alarm, sink) in alarms.iter_mut().zip(sinks.status()) {
        if alarm.after_ms.is_none() {
            alarm.trouble = match sink.trouble.as_str() {
                "" => format!("it took nothing within {} s", PATIENCE.as_secs()),
                trouble => trouble.to_owned(),
            };
        }
    }
    let evidence = match monitor.finding(id).filter(Finding::is_open).and_then(|found| found.evidence) {
        Some(file) => monitor.evidence(file).await?,
        None => None,
    };
    let convicts =
        evidence.as_ref().is_some_and(|file| evidence::verify(file, std::slice::from_ref(&vkey)).is_ok());
    let (log, told) = (log.clone(), alarms.clone());
    monitor
        .blocking(move |state| {
            state.end_drill(&origin)?;
            let unseen = "the planted fork was not found, or its evidence does not convict";
            state.self_test(&log, DETECTION, (!convicts).then_some(unseen))?;
            told.iter().try_for_each(|alarm| {
                let trouble = alarm.after_ms.is_none().then_some(alarm.trouble.as_str());
                state.self_test(&log, &alarm.sink, trouble)
            })
        })
        .await??;
    Ok(Drilled { vkey, evidence, alarms })
}

/// Notes who was told by now. Says whether that is everybody.
fn look(sinks: &Sinks, alarms: &mut [Alarm], since: UnixMillis, monitor: &Monitor) -> bool {
    for (alarm, sink) in alarms.iter_mut().zip(sinks.status()) {
        if sink.expected_arrived && alarm.after_ms.is_none() {
            let now = monitor.lock().clock.now();
            alarm.after_ms = Some(now.0.saturating_sub(since.0));
        }
    }
    alarms.iter().all(|alarm| alarm.after_ms.is_some())
}

impl State {
    /// Shows the fork to a machine of its own, and files what it finds as ever. Nothing of it comes among the logs.
    fn show_fork(&mut self, fork: &Fork, at: UnixMillis) -> Result<(), DiskError> {
        let vantages = ["one", "other"].map(|name| Vantage { name: name.into(), kind: VantageKind::Log });
        let policy = Policy::of_log(fork.vkey.clone());
        let mut machine = Machine::new(fork.origin.clone(), policy, &vantages, Tuning::default());
        for (vantage, note) in vantages.into_iter().zip(&fork.notes) {
            let note = Bytes::copy_from_slice(note.as_bytes());
            for effect in machine.step(Event::Head { vantage, note, at }) {
                match effect {
                    Effect::Trigger(mut trigger) if trigger.code == Code::SplitView => {
                        trigger.detail =
                            one_line(&format!("{THIS_IS_A_DRILL}. {}", trigger.detail), MAX_DETAIL_BYTES);
                        self.trigger(trigger)?;
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Takes back what was found in a drill.
    fn end_drill(&mut self, origin: &Origin) -> Result<(), DiskError> {
        let notice = self.book.withdraw(FindingId::of(origin, Code::SplitView, THE_LOG), self.clock.now());
        self.tell(notice.into_iter().collect())
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
