//! The monitor of a quickstart, as its operator sees it: where it looks, how far it has come, what it found. It decides nothing.

use std::fs;
use std::time::Duration;

use epigraph_core::{Hash, LeafIndex};
use epigraph_rpc::peer;
use epigraph_rpc::peer::monitor::{Finding, FindingClass, MonitoredLog, VantageKind, VantageStatus};
use epigraph_rpc::{CallError, peer::monitor::MonitorStatus};
use tokio::time::{sleep, timeout};

use super::directory::Directory;
use super::role::Role;
use crate::failure::{Failure, Outcome};
use crate::profile::{self, Profile};

/// Between two looks at the monitor: shorter than anybody notices.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// From where something has to be seen.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// Everywhere.
    Everywhere,
    /// At the log; a witness may be missing.
    TheLog,
}

/// A monitor, and the one log that it watches here.
pub struct Watched<'a> {
    monitor: peer::Monitor,
    directory: &'a Directory,
}

impl<'a> Watched<'a> {
    /// With the client's certificate. Within a runtime, while the monitor runs.
    pub fn new(directory: &'a Directory) -> Outcome<Watched<'a>> {
        let tls = Profile::load(&directory.path)?.tls()?;
        let path = directory.run_file(Role::Monitor, "addr");
        let address = fs::read_to_string(&path)
            .map_err(|error| Failure::state(format!("cannot read {}: {error}", path.display())))?;
        let server = Role::Monitor.spiffe().parse().map_err(Failure::state)?;
        let monitor = peer::Monitor::new(address.trim(), &tls, &server).map_err(Failure::usage)?;
        Ok(Watched { monitor, directory })
    }

    /// Waits until this size was seen from where it must be, and all entries up to it are audited. Nothing may be found in a new
    /// directory, and nothing that is proven in any: whoever comes back after a week had a log that stood still, and the monitor
    /// says so. Returns from how many places it was seen, and how many findings are open.
    pub async fn calm(&self, size: u64, from: From, patience: Duration) -> Outcome<(usize, u32)> {
        let mut last = String::from("it did not answer");
        let calm = async {
            loop {
                let log = self.log().await?;
                let mut found = if log.open > 0 { self.findings().await? } else { Vec::new() };
                found.retain(|finding| {
                    let counts = self.directory.is_new || finding.class == FindingClass::Proof;
                    counts && finding.resolved.is_none()
                });
                if !found.is_empty() {
                    let found: Vec<_> = found.iter().map(in_words).collect();
                    let message = format!("the monitor found what is not there: {}", found.join("; "));
                    return Err(Failure::no(message));
                }
                let seen = |at: &VantageStatus| at.head.is_some_and(|head| head.size.get() >= size);
                let counts =
                    |at: &&VantageStatus| from == From::Everywhere || at.vantage.kind == VantageKind::Log;
                let behind: Vec<_> =
                    log.vantages.iter().filter(counts).filter(|at| !seen(at)).map(in_trouble).collect();
                let places = log.vantages.iter().filter(|at| seen(at)).count();
                if behind.is_empty() && places > 0 && log.audited.get() >= size {
                    return Ok((places, log.open));
                }
                last = format!("{} entries are audited; not there yet: {}", log.audited, behind.join(", "));
                sleep(LOOK_AGAIN).await;
            }
        };
        timeout(patience, calm).await.unwrap_or_else(|_| {
            Err(Failure::no(format!(
                "the monitor did not see {size} entries within {} s: {last}",
                patience.as_secs()
            )))
        })
    }

    /// Waits until every vantage point has answered after this time, at most this long.
    pub async fn looks_again(&self, since_ms: u64, patience: Duration) -> Outcome {
        let looked = async {
            loop {
                let answered = |at: &VantageStatus| at.reached.is_some_and(|reached| reached.0 > since_ms);
                if self.log().await?.vantages.iter().all(answered) {
                    return Ok(());
                }
                sleep(LOOK_AGAIN).await;
            }
        };
        timeout(patience, looked).await.unwrap_or(Ok(()))
    }

    /// The key under which it signs what it observes.
    pub async fn vkey(&self) -> Outcome<String> {
        Ok(self.status().await?.vkey)
    }

    /// Everything that it has found, whether it lasts or not.
    pub async fn findings(&self) -> Outcome<Vec<Finding>> {
        let (mut found, mut token) = (Vec::new(), String::new());
        loop {
            let page = self.monitor.findings(&self.directory.origin, true, &token).await;
            let (page, next) = page.map_err(|error| refused(&error))?;
            found.extend(page);
            match next {
                Some(next) => token = next,
                None => return Ok(found),
            }
        }
    }

    /// The file that goes with a finding.
    pub async fn evidence(&self, id: &str) -> Outcome<bytes::Bytes> {
        self.monitor.evidence(&self.directory.origin, id).await.map_err(|error| refused(&error))
    }

    /// Hands in what the log promised.
    pub async fn submit(&self, index: LeafIndex, leaf: Hash) -> Outcome {
        let due = self.monitor.submit_receipt(&self.directory.origin, index, leaf).await;
        due.map(drop).map_err(|error| refused(&error))
    }

    async fn log(&self) -> Outcome<MonitoredLog> {
        let logs = self.status().await?.logs.into_iter();
        let unwatched = || Failure::no("the monitor does not watch this log");
        { logs }.next().ok_or_else(unwatched)
    }

    async fn status(&self) -> Outcome<MonitorStatus> {
        self.monitor.status(&self.directory.origin).await.map_err(|error| refused(&error))
    }
}

/// A vantage point, and what is the matter with it.
fn in_trouble(at: &VantageStatus) -> String {
    let (name, size) = (&at.vantage.name, at.head.map_or(0, |head| head.size.get()));
    if at.trouble.is_empty() { format!("{name} (at {size})") } else { format!("{name} ({})", at.trouble) }
}

/// A finding on one line.
pub fn in_words(finding: &Finding) -> String {
    let class = match finding.class {
        FindingClass::Proof => "proof",
        FindingClass::Observation => "observation",
    };
    format!("{} ({class}) about {}: {}", finding.code, finding.subject, finding.detail)
}

fn refused(error: &CallError) -> Failure {
    profile::of_call_to(error, "monitor")
}
