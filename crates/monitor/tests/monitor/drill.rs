//! A rehearsed alarm: what it proves, what it leaves behind, and what is found if it does not arrive.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use epigraph_core::{UnixMillis, evidence};
use epigraph_monitor::drill::{Drilled, PATIENCE, drill};
use epigraph_monitor::finding::{Change, Code, FindingId};
use epigraph_monitor::sinks::{Life, Sink, SinkStatus, Sinks};

use crate::pki::Fixed;
use crate::support::{Home, Running, origin};

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
    let open = || {
        let mut findings = running.monitor.findings();
        findings.retain(epigraph_monitor::finding::Finding::is_open);
        findings.into_iter().map(|found| (found.code, found.origin, found.subject)).collect::<Vec<_>>()
    };
    assert_eq!(open(), [(Code::SelfTestFailed, origin(), "deaf".to_owned())]);

    deaf.hears.store(true, Ordering::Relaxed);
    let drilled = rehearse(&running, &sinks).await;
    assert!(drilled.alarms.iter().all(|alarm| alarm.after_ms.is_some()), "{drilled:?}");
    assert_eq!(open(), []);
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
