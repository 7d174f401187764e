//! A monitor in memory that watches one log, and a way to wait for what it is to come to.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use epigraph_core::{Clock, Origin, Policy, SigningKey};
use epigraph_monitor::Monitor;
use epigraph_monitor::audit::SequenceRule;
use epigraph_monitor::compare::Tuning;
use epigraph_monitor::disk::{Disk, add_log, create};
use epigraph_monitor::event::VantageKind;
use epigraph_monitor::finding::{Code, Finding, Notice};
use epigraph_monitor::monitor::{LogStatus, MonitorError, VantageStatus};
use epigraph_monitor::run::{LogSetup, Setup, StartError, start};
use epigraph_monitor::service::{About, MonitorServer};
use epigraph_rpc::peer::{self, Log};
use epigraph_rpc::{Routes, monitor_service};
use epigraph_store::file::Dir;
use epigraph_store::file::memory::MemoryDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::pki::{Fixed, Going, NOW, Serving};
use crate::trees::key;

/// Longer than any test takes, also on a busy machine.
const LONG: Duration = Duration::from_secs(30);

/// How long the log has to publish what it acknowledged.
pub const PUBLISHED_WITHIN_MS: u64 = 60_000;

/// The directory of a monitor that watches the log of [`key`].
#[derive(Clone)]
pub struct Home {
    pub state: MemoryDir,
    pub evidence: MemoryDir,
    pub dropped: MemoryDir,
    pub drill: Arc<dyn Dir>,
    /// The name of the log that it watches.
    pub name: Origin,
    /// How often it looks.
    pub poll: Duration,
    /// What the sinks were told, and whether its evidence was on the disk by then.
    pub told: Arc<Mutex<Vec<(Notice, bool)>>>,
}

/// A monitor that runs.
pub struct Running {
    pub monitor: Monitor,
    rounds: watch::Receiver<u64>,
    task: JoinHandle<Result<(), MonitorError>>,
}

/// The key under which the monitor states what it observes.
pub fn monitor_key() -> SigningKey {
    SigningKey::from_seed("monitor.example".parse().unwrap(), &Zeroizing::new([9; 32]))
}

pub fn origin() -> Origin {
    key().vkey().name().to_origin()
}

impl Home {
    pub fn new() -> Home {
        let home = Home {
            state: MemoryDir::new(),
            evidence: MemoryDir::new(),
            dropped: MemoryDir::new(),
            drill: Arc::new(MemoryDir::new()),
            name: origin(),
            poll: Duration::from_millis(20),
            told: Arc::default(),
        };
        create(Arc::new(home.state.clone())).unwrap();
        add_log(Arc::new(home.state.clone()), &origin()).unwrap();
        home
    }

    /// A copy of everything, as a backup is one.
    pub fn backup(&self) -> Home {
        Home {
            state: self.state.duplicate(),
            evidence: self.evidence.duplicate(),
            dropped: self.dropped.duplicate(),
            drill: Arc::new(MemoryDir::new()),
            name: self.name.clone(),
            poll: self.poll,
            told: Arc::default(),
        }
    }

    /// Starts a monitor on it, which sees the log through these readers.
    pub fn start(&self, readers: Vec<(&str, Log)>) -> Running {
        self.start_over(Arc::new(self.state.clone()), readers, u64::MAX, Going::from(NOW.0)).unwrap()
    }

    /// The same, which another monitor tells what it has seen.
    pub fn start_beside(&self, readers: Vec<(&str, Log)>, other: peer::Monitor) -> Running {
        let state = Arc::new(self.state.clone());
        self.start_with(state, readers, vec![("other".to_owned(), other)], u64::MAX, Going::from(NOW.0))
            .unwrap()
    }

    pub fn start_over(
        &self,
        state: Arc<dyn Dir>,
        readers: Vec<(&str, Log)>,
        full_audit_every_ms: u64,
        clock: Arc<dyn Clock>,
    ) -> Result<Running, StartError> {
        self.start_with(state, readers, Vec::new(), full_audit_every_ms, clock)
    }

    /// Starts a monitor that looks at the order of entries, and is told of gaps by a service too.
    pub fn start_in_order(
        &self,
        readers: Vec<(&str, Log)>,
        sequence: Option<Arc<dyn SequenceRule>>,
    ) -> Result<Running, StartError> {
        let (state, clock) = (Arc::new(self.state.clone()), Going::from(NOW.0));
        self.start_log(state, readers, Vec::new(), (u64::MAX, clock), sequence)
    }

    fn start_with(
        &self,
        state: Arc<dyn Dir>,
        readers: Vec<(&str, Log)>,
        monitors: Vec<(String, peer::Monitor)>,
        full_audit_every_ms: u64,
        clock: Arc<dyn Clock>,
    ) -> Result<Running, StartError> {
        self.start_log(state, readers, monitors, (full_audit_every_ms, clock), None)
    }

    fn start_log(
        &self,
        state: Arc<dyn Dir>,
        readers: Vec<(&str, Log)>,
        monitors: Vec<(String, peer::Monitor)>,
        (full_audit_every_ms, clock): (u64, Arc<dyn Clock>),
        sequence: Option<Arc<dyn SequenceRule>>,
    ) -> Result<Running, StartError> {
        let (disk, book) = Disk::open(state, Arc::new(self.evidence.clone()))?;
        let log = LogSetup {
            origin: self.name.clone(),
            policy: Policy::of_log(key().vkey().clone()),
            tuning: Tuning::default(),
            full_audit_every_ms,
            rules: Vec::new(),
            sequence,
            reporters: vec![("service".to_owned(), &[Code::SourceGap])],
            readers: readers.into_iter().map(|(name, log)| (name.to_owned(), log)).collect(),
            witnesses: Vec::new(),
            monitors,
            files: vec![("files".to_owned(), Arc::new(self.dropped.clone()) as Arc<dyn Dir>)],
        };
        let (round, rounds) = watch::channel(0);
        let (told, evidence) = (Arc::clone(&self.told), self.evidence.clone());
        let on_notice = move |notice: &Notice| {
            let names = evidence.list().unwrap();
            let kept = notice.finding.evidence.is_none_or(|id| names.contains(&id.to_string()));
            told.lock().unwrap().push((notice.clone(), kept));
        };
        let setup = Setup {
            clock,
            entropy: Arc::new(Fixed),
            disk,
            book,
            drill: Arc::clone(&self.drill),
            logs: vec![log],
            poll: self.poll,
            published_within_ms: PUBLISHED_WITHIN_MS,
            key: monitor_key(),
            on_notice: Box::new(on_notice),
            on_round: Box::new(move |_, _| round.send_modify(|count| *count += 1)),
        };
        let (monitor, run) = start(setup)?;
        Ok(Running { monitor, rounds, task: tokio::spawn(run) })
    }
}

impl Running {
    /// Waits until something is so of the log.
    pub async fn until(&mut self, what: &str, so: impl Fn(&LogStatus, &[Finding]) -> bool) {
        let waiting = async {
            loop {
                let (status, findings) = (self.status(), self.monitor.findings());
                if so(&status, &findings) {
                    return;
                }
                if self.rounds.changed().await.is_err() {
                    panic!("the monitor has ended while it should be that {what}: {status:?} {findings:?}");
                }
            }
        };
        if timeout(LONG, waiting).await.is_err() {
            panic!("it never was that {what}: {:?} {:?}", self.status(), self.monitor.findings());
        }
    }

    /// Waits until the entries were read up to a size under each identity.
    pub async fn read_under_all(&mut self, leaves: u64) {
        let read =
            |point: &VantageStatus| point.vantage.kind != VantageKind::Log || point.audited.get() >= leaves;
        self.until("all have read it", |status, _| status.vantages.iter().all(read)).await;
    }

    /// Waits until the entries were read up to a size under some identity.
    pub async fn audited(&mut self, leaves: u64) {
        self.until("it is audited", |status, _| status.audited.get() >= leaves).await;
    }

    /// Waits for a finding, and returns it.
    pub async fn finding(&mut self, code: Code) -> Finding {
        let of = move |finding: &&Finding| finding.code == code && finding.is_open();
        self.until(code.as_str(), |_, findings| findings.iter().any(|finding| of(&finding))).await;
        self.monitor.findings().iter().find(of).cloned().unwrap()
    }

    /// Waits until its loop has come round so often.
    pub async fn rounds(&mut self, count: u64) {
        let until = *self.rounds.borrow() + count;
        self.rounds.wait_for(|rounds| *rounds >= until).await.unwrap();
    }

    /// Serves what it has seen to other monitors.
    pub async fn serve(&self) -> Serving {
        let (vkey, draining) = (monitor_key().vkey().clone(), watch::channel(false).1);
        let sinks = Arc::new(epigraph_monitor::sinks::Sinks::new(Vec::new(), Duration::from_secs(1)));
        let (clock, entropy) = (Arc::new(Fixed), Arc::new(Fixed));
        let about = About { vkey, sinks, entropy, clock, draining };
        Serving::start(Routes::new(monitor_service(MonitorServer::new(self.monitor.clone(), about)))).await
    }

    pub fn status(&self) -> LogStatus {
        self.monitor.status(&origin()).unwrap()
    }

    /// Waits until it ends by itself.
    pub async fn ended(self) -> Result<(), MonitorError> {
        timeout(LONG, self.task).await.unwrap().unwrap()
    }

    /// Kills it.
    pub async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}
