//! A rehearsed alarm: what it proves, what it leaves behind, and what is found if it does not arrive.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use epigraph_core::evidence::{DRILL_ORIGIN, Fork};
use epigraph_core::{Entropy, Origin, UnixMillis, evidence};
use epigraph_monitor::drill::{DrillError, Drilled, PATIENCE, drill};
use epigraph_monitor::finding::{Change, Code, FindingId};
use epigraph_monitor::monitor::MonitorError;
use epigraph_monitor::run::StartError;
use epigraph_monitor::sinks::{Life, Sink, SinkStatus, Sinks};
use epigraph_store::file::memory::MemoryDir;
use epigraph_store::file::{Dir, File};

use crate::pki::{Fixed, Going, NOW};
use crate::support::{Home, Running, origin};
use crate::trees::{Tree, entries, note_of};

/// A receiver that hears, or does not.
struct Receiver {
    name: &'static str,
    hears: AtomicBool,
}

impl Sink for Receiver {
    fn name(&self) -> &str {
        self.name
    }

    fn notify(&self, _: &epigraph_monitor::finding::Notice) {}

    fn expect(&self, _: FindingId, _: UnixMillis) {}

    fn run(self: Arc<Self>, _: Life) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(std::future::pending())
    }

    fn status(&self) -> SinkStatus {
        let expected_arrived = self.hears.load(Ordering::Relaxed);
        SinkStatus { name: self.name.into(), expected_arrived, ..SinkStatus::default() }
    }
}

async fn rehearse(running: &Running, sinks: &Arc<Sinks>) -> Drilled {
    drill(&running.monitor, sinks, &Fixed, &origin()).await.unwrap()
}

fn receivers<const N: usize>(all: [(&'static str, bool); N]) -> Arc<Sinks> {
    let receiver =
        |(name, hears)| Arc::new(Receiver { name, hears: AtomicBool::new(hears) }) as Arc<dyn Sink>;
    Arc::new(Sinks::new(all.map(receiver).to_vec(), Duration::from_secs(1)))
}

fn open(running: &Running) -> Vec<(Code, Origin, String)> {
    let mut findings = running.monitor.findings();
    findings.retain(epigraph_monitor::finding::Finding::is_open);
    findings.into_iter().map(|found| (found.code, found.origin, found.subject)).collect()
}

fn write(dir: &dyn Dir, name: &str, bytes: &str) {
    dir.create(name).unwrap().write_at(0, bytes.as_bytes()).unwrap();
}

/// Issue 5: an alarm that does not arrive is a finding of its own, until one does. The clock is tokio's, which waits for nobody. Seen
/// to fail with what did not arrive not filed, with the planted fork left open, and with a drill that went well clearing nothing.
#[tokio::test(start_paused = true)]
async fn an_alarm_that_does_not_arrive_is_found_until_one_does() {
    let home = Home::new();
    let running = home.start(Vec::new());
    let receiver = |name, hears| Arc::new(Receiver { name, hears: AtomicBool::new(hears) });
    let (quick, deaf) = (receiver("quick", true), receiver("deaf", false));
    let all: Vec<Arc<dyn Sink>> = vec![Arc::clone(&quick) as _, Arc::clone(&deaf) as _];
    let sinks = Arc::new(Sinks::new(all, Duration::from_secs(1)));

    let began = tokio::time::Instant::now();
    let drilled = rehearse(&running, &sinks).await;
    assert!(began.elapsed() >= PATIENCE);
    let told: Vec<_> = drilled.alarms.iter().map(|alarm| (alarm.sink.as_str(), alarm.after_ms)).collect();
    assert_eq!(told, [("quick", Some(0)), ("deaf", None)]);
    assert!(drilled.alarms[1].trouble.contains("20 s"), "{drilled:?}");
    assert!(evidence::verify(&drilled.evidence.unwrap(), &[drilled.vkey]).is_ok());
    assert_eq!(open(&running), [(Code::SelfTestFailed, origin(), "deaf".to_owned())]);

    deaf.hears.store(true, Ordering::Relaxed);
    let drilled = rehearse(&running, &sinks).await;
    assert!(drilled.alarms.iter().all(|alarm| alarm.after_ms.is_some()), "{drilled:?}");
    assert_eq!(open(&running), []);
    assert_eq!(home.drill.list().unwrap(), Vec::<String>::new());
    let told = home.told.lock().unwrap();
    let changes: Vec<_> = told.iter().map(|(notice, _)| (notice.finding.code, notice.change)).collect();
    let expected = [
        (Code::SplitView, Change::Opened),
        (Code::SplitView, Change::Resolved),
        (Code::SelfTestFailed, Change::Opened),
        (Code::SplitView, Change::Reopened),
        (Code::SplitView, Change::Resolved),
        (Code::SelfTestFailed, Change::Resolved),
    ];
    assert_eq!(changes, expected);
    assert!(told.iter().all(|(_, kept)| *kept), "somebody was told before the evidence was kept");
}

/// A directory in which nothing is seen, or nothing can be written.
struct Broken {
    inner: MemoryDir,
    reads: bool,
}

impl Dir for Broken {
    fn open(&self, name: &str) -> io::Result<Box<dyn File>> {
        self.inner.open(name)
    }
    fn open_read_only(&self, name: &str) -> io::Result<Box<dyn File>> {
        self.inner.open_read_only(name)
    }
    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        if self.reads { Err(io::ErrorKind::PermissionDenied.into()) } else { self.inner.create(name) }
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.inner.remove(name)
    }
    fn protect(&self, name: &str) -> io::Result<()> {
        self.inner.protect(name)
    }
    fn is_protected(&self, name: &str) -> io::Result<bool> {
        self.inner.is_protected(name)
    }
    fn list(&self) -> io::Result<Vec<String>> {
        if self.reads { self.inner.list() } else { Ok(Vec::new()) }
    }
    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }
}

/// Issue 5: a drill begins where a head is seen, so that a monitor which sees nothing fails it, whoever would be told. Seen to fail with the
/// fork handed to the comparing machine in the place of its directory being polled.
#[tokio::test(start_paused = true)]
async fn a_monitor_that_sees_nothing_fails_its_drill() {
    let sinks = receivers([("quick", true)]);
    let mut home = Home::new();
    home.drill = Arc::new(Broken { inner: MemoryDir::new(), reads: false });
    let running = home.start(Vec::new());
    let drilled = rehearse(&running, &sinks).await;
    assert_eq!(drilled.evidence, None);
    assert_eq!(open(&running), [(Code::SelfTestFailed, origin(), "detection".to_owned())]);

    let mut home = Home::new();
    home.drill = Arc::new(Broken { inner: MemoryDir::new(), reads: true });
    let running = home.start(Vec::new());
    let refused = drill(&running.monitor, &sinks, &Fixed, &origin()).await;
    assert!(matches!(refused, Err(DrillError::NotPlanted(_))), "{refused:?}");
    assert_eq!(open(&running), []);
}

/// The byte of which a key is made.
struct Byte(u8);

impl Entropy for Byte {
    fn fill(&self, bytes: &mut [u8]) {
        bytes.fill(self.0);
    }
}

/// What anybody else puts where a drill is looked for is of no log that is known there: neither a real fork of a log that is watched, nor
/// a fork in the drill's name under another key. Nothing of the drill's name can be handed in, and where people put what they were shown
/// it is of no log either. Seen to fail with every finding of the drill's machine filed.
#[tokio::test(start_paused = true)]
async fn the_way_in_of_drills_is_for_nothing_else() {
    let home = Home::new();
    let mut running = home.start(Vec::new());
    let strange = Fork::plant(&Byte(77)).unwrap();
    let of_log = [Tree::of(&entries(300, 300, 0)), Tree::of(&entries(300, 100, 1))]
        .map(|tree| note_of(&tree.head(300)));
    for (number, note) in (0..).zip(strange.notes().iter().chain(&of_log)) {
        write(&*home.drill, &format!("{number}"), note);
    }
    let sinks = receivers([("deaf", false)]);
    let drilled = rehearse(&running, &sinks).await;
    let file = drilled.evidence.unwrap();
    assert!(evidence::verify(&file, &[drilled.vkey]).is_ok());
    // Of all that lay there, the drill alone was found; and then that nobody heard of it.
    let mut found = running.monitor.findings();
    found.sort_by_key(|found| found.code);
    let found: Vec<_> = found.into_iter().map(|found| (found.code, found.origin)).collect();
    let of_drill: Origin = Origin::new(DRILL_ORIGIN).unwrap();
    assert_eq!(found, [(Code::SplitView, of_drill.clone()), (Code::SelfTestFailed, origin())]);

    // Where people put what they were shown, a drill's heads are of no log either.
    for (number, note) in (0..).zip(strange.notes()) {
        write(&home.dropped, &format!("{number}"), note);
    }
    let note = Bytes::copy_from_slice(strange.notes()[0].as_bytes());
    let reported = running.monitor.report_checkpoint(&of_drill, "somebody", note).await;
    assert!(matches!(reported, Err(MonitorError::UnknownOrigin(_))), "{reported:?}");
    let rounds = running.monitor.findings();
    running.rounds(200).await;
    assert_eq!(running.monitor.findings(), rounds);
}

/// A process that ended in the middle of a drill has told people, and takes it back at its next start. Seen to fail without that.
#[tokio::test(start_paused = true)]
async fn a_drill_that_was_cut_off_is_taken_back_at_the_next_start() {
    let home = Home::new();
    let mut running = home.start(Vec::new());
    let monitor = running.monitor.clone();
    let going = tokio::spawn(async move {
        let sinks = receivers([("deaf", false)]);
        drill(&monitor, &sinks, &Fixed, &origin()).await.map(drop)
    });
    let mark = running.finding(Code::SplitView).await;
    assert!(mark.is_drill() && mark.detail.starts_with("THIS IS A DRILL"), "{mark:?}");
    going.abort();
    assert!(going.await.unwrap_err().is_cancelled());
    running.kill().await;
    let running = home.start(Vec::new());
    let last = running.monitor.last_drill().unwrap();
    assert!(!last.is_open());
    let told = home.told.lock().unwrap();
    assert_eq!(told.last().map(|(notice, _)| notice.change), Some(Change::Resolved));
}

/// What is found of the log of drills is a rehearsal, so no log has that name. Seen to fail without the refusal.
#[tokio::test]
async fn no_log_is_named_as_that_of_drills() {
    let mut home = Home::new();
    home.name = Origin::new(DRILL_ORIGIN).unwrap();
    let state = Arc::new(home.state.clone());
    let refused = home.start_over(state, Vec::new(), u64::MAX, Going::from(NOW.0)).map(drop);
    assert!(matches!(refused, Err(StartError::Reserved)), "{refused:?}");
}
