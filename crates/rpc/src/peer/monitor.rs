//! A monitor, seen by those who call it: other monitors, appenders with a promise, and people who look.

use bytes::Bytes;
use epigraph_core::{Hash, LeafIndex, TreeHead, TreeSize, UnixMillis};
use tonic::Streaming;

use super::{at_most, call, present};
use crate::channel::{Channel, channel};
use crate::convert::{ConvertError, hash, tree_size};
use crate::identity::SpiffeId;
use crate::limits::{
    CALL_DEADLINE, DRILL_DEADLINE, MAX_FINDINGS_PAGE, MAX_LIST_CHECKPOINTS, MAX_MONITORED_LOGS,
    MAX_RESPONSE_BYTES, MAX_SINKS, MAX_VANTAGES,
};
use crate::status::CallError;
use crate::tls::{ClientTls, TlsError};
use crate::v1;
use crate::v1::monitor_service_client::MonitorServiceClient;

/// A monitor, seen by those who call it. Cheap to clone; clones share the connection.
#[derive(Clone, Debug)]
pub struct Monitor {
    client: MonitorServiceClient<Channel>,
}

/// What a vantage point is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum VantageKind {
    /// The log itself.
    Log,
    /// A witness.
    Witness,
    /// Another monitor.
    Monitor,
    /// A file in the monitor's directory.
    File,
}

/// Where a head was seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VantageName {
    /// Its name, as the monitor has it.
    pub name: String,
    /// What it is.
    pub kind: VantageKind,
}

/// A head that a monitor says it has seen. Nothing of it is verified.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SeenCheckpoint {
    /// The signed note.
    pub note: Bytes,
    /// Who showed it.
    pub sightings: Vec<Sighting>,
}

/// That a head was seen somewhere.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sighting {
    /// The vantage point's name.
    pub vantage: String,
    /// When it was first seen there.
    pub first_seen: UnixMillis,
    /// When it was last seen there.
    pub last_seen: UnixMillis,
}

/// How a monitor stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MonitorStatus {
    /// The key under which it signs what it observes.
    pub vkey: String,
    /// Its logs, of those that the caller may ask about.
    pub logs: Vec<MonitoredLog>,
    /// Where it sends what it finds.
    pub sinks: Vec<SinkStatus>,
    /// Findings for which it had no room.
    pub lost: u64,
    /// What was found in the drill that is going on, or in the last one.
    pub drill: Option<Finding>,
}

/// How a monitor stands with one log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MonitoredLog {
    /// The log.
    pub origin: String,
    /// Up to here all heads are proven to be of one history.
    pub consistent: TreeSize,
    /// Up to here every entry was read.
    pub audited: TreeSize,
    /// When the last audit from the first entry on ended.
    pub last_full_audit: Option<UnixMillis>,
    /// Where the log was looked at.
    pub vantages: Vec<VantageStatus>,
    /// Findings that are open.
    pub open: u32,
    /// Of these, what nobody has acknowledged.
    pub unacknowledged: u32,
}

/// What was last seen at a vantage point.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VantageStatus {
    /// Which.
    pub vantage: VantageName,
    /// The newest head seen there.
    pub head: Option<TreeHead>,
    /// When that head was made, by its newest cosignature.
    pub head_at: Option<UnixMillis>,
    /// When it last answered.
    pub reached: Option<UnixMillis>,
    /// Why it does not answer; empty if it does.
    pub trouble: String,
    /// Up to here its entries were read.
    pub audited: TreeSize,
    /// When they were last read from the first one on.
    pub last_full_audit: Option<UnixMillis>,
}

/// How a sink does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SinkStatus {
    /// Its name, as the monitor has it.
    pub name: String,
    /// Messages that wait.
    pub queued: u64,
    /// Messages that were given up since the monitor's start.
    pub dropped: u64,
    /// When it last took a message.
    pub delivered: Option<UnixMillis>,
    /// Why the last attempt failed; empty if it did not.
    pub trouble: String,
}

/// What can be shown of a finding, and to whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FindingClass {
    /// Its file convinces anybody who has the public key.
    Proof,
    /// The monitor says so.
    Observation,
}

/// How urgent a finding is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FindingSeverity {
    /// Now.
    Page,
    /// Within days.
    Warn,
}

/// What happened to a finding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FindingChange {
    /// None: it was open when the stream began.
    Standing,
    /// It is new.
    Opened,
    /// It lasts, and is said again.
    Reminded,
    /// It is back.
    Reopened,
    /// It is over.
    Resolved,
    /// Somebody has taken note.
    Acknowledged,
}

/// Who has taken note of a finding.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Acknowledgement {
    /// The name of whoever did.
    pub by: String,
    /// What they said.
    pub why: String,
    /// When.
    pub at: UnixMillis,
}

/// Something that a monitor found, as it says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// By which it is asked for again.
    pub id: String,
    /// What was found, as a word that does not change.
    pub code: String,
    /// How it can be shown.
    pub class: FindingClass,
    /// How urgent it is.
    pub severity: FindingSeverity,
    /// The log.
    pub origin: String,
    /// The vantage point, witness or entry that it is about.
    pub subject: String,
    /// When it was first seen.
    pub first_at: UnixMillis,
    /// When it was last seen.
    pub last_at: UnixMillis,
    /// How often.
    pub count: u64,
    /// What was seen, the last time.
    pub detail: String,
    /// What the code means, in a sentence.
    pub meaning: String,
    /// What to do next.
    pub next_step: String,
    /// What [`Monitor::evidence`] takes, if there is a file.
    pub evidence: Option<String>,
    /// When it ended; `None` if it lasts.
    pub resolved: Option<UnixMillis>,
    /// Who has taken note.
    pub acknowledged: Option<Acknowledgement>,
}

/// What came of a drill, as the monitor says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Drilled {
    /// The key that was made for it.
    pub vkey: String,
    /// The evidence against that key, if the fork was seen.
    pub evidence: Option<Bytes>,
    /// Who was to be told.
    pub alarms: Vec<DrillAlarm>,
}

/// Whether somebody was told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DrillAlarm {
    /// Its name, as the monitor has it.
    pub sink: String,
    /// When it took the alarm, in milliseconds after the fork was planted; `None` if it did not.
    pub after_ms: Option<u64>,
    /// Why it did not; empty if it did.
    pub trouble: String,
}

/// Findings, as a monitor pushes them.
#[derive(Debug)]
pub struct WatchedFindings(Streaming<v1::WatchFindingsResponse>);

impl WatchedFindings {
    /// The next change; `None` when the monitor wants to be asked anew.
    pub async fn next(&mut self) -> Result<Option<(FindingChange, Finding)>, CallError> {
        let Some(v1::WatchFindingsResponse { change, finding: found }) = self.0.message().await? else {
            return Ok(None);
        };
        let change = match v1::FindingChange::try_from(change) {
            Ok(v1::FindingChange::Unspecified) => FindingChange::Standing,
            Ok(v1::FindingChange::Opened) => FindingChange::Opened,
            Ok(v1::FindingChange::Reminded) => FindingChange::Reminded,
            Ok(v1::FindingChange::Reopened) => FindingChange::Reopened,
            Ok(v1::FindingChange::Resolved) => FindingChange::Resolved,
            Ok(v1::FindingChange::Acknowledged) => FindingChange::Acknowledged,
            Err(_) => return Err(ConvertError::UnknownValue { field: "change", got: change }.into()),
        };
        Ok(Some((change, finding(found.ok_or(ConvertError::Missing("finding"))?)?)))
    }
}

impl Monitor {
    /// Prepares the connection to the monitor at `address` (`host:port`), which must prove to be `server`; the first call
    /// makes it. Must be called within a tokio runtime.
    pub fn new(address: &str, tls: &ClientTls, server: &SpiffeId) -> Result<Monitor, TlsError> {
        let client = MonitorServiceClient::new(channel(address, tls, server)?)
            .max_decoding_message_size(MAX_RESPONSE_BYTES);
        Ok(Monitor { client })
    }

    /// Hands in a head that the caller was shown.
    pub async fn report(&self, origin: &str, note: Bytes) -> Result<(), CallError> {
        let request = v1::ReportCheckpointRequest { origin: origin.into(), checkpoint: note };
        let mut client = self.client.clone();
        call(request, CALL_DEADLINE, |request| client.report_checkpoint(request)).await?;
        Ok(())
    }

    /// Asks for one page of the heads that it has seen, and for the token of the next page; `None` after the last one.
    pub async fn checkpoints(
        &self,
        origin: &str,
        page_token: &str,
    ) -> Result<(Vec<SeenCheckpoint>, Option<String>), CallError> {
        let request = v1::ListSeenCheckpointsRequest {
            origin: origin.into(),
            page_size: MAX_LIST_CHECKPOINTS,
            page_token: page_token.into(),
        };
        let mut client = self.client.clone();
        let answer = call(request, CALL_DEADLINE, |request| client.list_checkpoints(request)).await?;
        at_most("checkpoints", MAX_LIST_CHECKPOINTS.into(), answer.checkpoints.len() as u64)?;
        let seen = answer.checkpoints.into_iter().map(|seen| {
            at_most("sightings", MAX_VANTAGES as u64, seen.sightings.len() as u64)?;
            let sightings = seen.sightings.into_iter().map(|sighting| Sighting {
                vantage: sighting.vantage,
                first_seen: UnixMillis(sighting.first_seen_ms),
                last_seen: UnixMillis(sighting.last_seen_ms),
            });
            Ok(SeenCheckpoint {
                note: present("checkpoint", seen.checkpoint)?,
                sightings: sightings.collect(),
            })
        });
        Ok((seen.collect::<Result<_, ConvertError>>()?, next_page(answer.next_page_token)))
    }

    /// Hands in a log's promise that an entry is at an index. Returns when the monitor looks at the latest.
    pub async fn submit_receipt(
        &self,
        origin: &str,
        index: LeafIndex,
        leaf: Hash,
    ) -> Result<UnixMillis, CallError> {
        let request = v1::SubmitReceiptRequest {
            origin: origin.into(),
            leaf_index: index.get(),
            leaf_hash: Bytes::copy_from_slice(leaf.as_bytes()),
        };
        let mut client = self.client.clone();
        let answer = call(request, CALL_DEADLINE, |request| client.submit_receipt(request)).await?;
        Ok(UnixMillis(answer.due_at_ms))
    }

    /// Asks how it stands with one log, or with an empty name with all.
    pub async fn status(&self, origin: &str) -> Result<MonitorStatus, CallError> {
        let request = v1::GetStatusRequest { origin: origin.into() };
        let mut client = self.client.clone();
        let answer = call(request, CALL_DEADLINE, |request| client.get_status(request)).await?;
        at_most("logs", MAX_MONITORED_LOGS as u64, answer.logs.len() as u64)?;
        let sinks = answer.sinks.into_iter().map(|sink| SinkStatus {
            name: sink.name,
            queued: sink.queued,
            dropped: sink.dropped,
            delivered: time(sink.delivered_at_ms),
            trouble: sink.trouble,
        });
        Ok(MonitorStatus {
            vkey: answer.vkey,
            logs: answer.logs.into_iter().map(monitored).collect::<Result<_, _>>()?,
            sinks: sinks.collect(),
            lost: answer.lost_findings,
            drill: answer.drill.map(finding).transpose()?,
        })
    }

    /// Asks for one page of what it found, of one log or with an empty name of all, and for the token of the next page; `None` after
    /// the last one.
    pub async fn findings(
        &self,
        origin: &str,
        include_resolved: bool,
        page_token: &str,
    ) -> Result<(Vec<Finding>, Option<String>), CallError> {
        let request = v1::ListFindingsRequest {
            origin: origin.into(),
            include_resolved,
            page_size: MAX_FINDINGS_PAGE,
            page_token: page_token.into(),
        };
        let mut client = self.client.clone();
        let answer = call(request, CALL_DEADLINE, |request| client.list_findings(request)).await?;
        at_most("findings", MAX_FINDINGS_PAGE.into(), answer.findings.len() as u64)?;
        let findings = answer.findings.into_iter().map(finding).collect::<Result<_, _>>()?;
        Ok((findings, next_page(answer.next_page_token)))
    }

    /// Asks to be told of what it finds, of one log or with an empty name of all: first what is open.
    pub async fn watch_findings(&self, origin: &str) -> Result<WatchedFindings, CallError> {
        let request = v1::WatchFindingsRequest { origin: origin.into() };
        let mut client = self.client.clone();
        // The deadline of `call` would end the stream with it.
        let watching = tokio::time::timeout(CALL_DEADLINE, client.watch_findings(request));
        Ok(WatchedFindings(watching.await.map_err(|_| CallError::TimedOut)??.into_inner()))
    }

    /// Asks for the file of a finding.
    pub async fn evidence(&self, origin: &str, evidence: &str) -> Result<Bytes, CallError> {
        let request = v1::GetEvidenceRequest { origin: origin.into(), evidence_id: evidence.into() };
        let mut client = self.client.clone();
        let answer = call(request, CALL_DEADLINE, |request| client.get_evidence(request)).await?;
        Ok(present("file", answer.file)?)
    }

    /// Has it rehearse an alarm. What does not arrive, it finds about this log.
    pub async fn drill(&self, origin: &str) -> Result<Drilled, CallError> {
        let request = v1::RunDrillRequest { origin: origin.into() };
        let mut client = self.client.clone();
        let answer = call(request, DRILL_DEADLINE, |request| client.run_drill(request)).await?;
        at_most("alarms", MAX_SINKS as u64, answer.alarms.len() as u64)?;
        let alarms = answer.alarms.into_iter().map(|alarm| DrillAlarm {
            sink: alarm.sink,
            after_ms: alarm.arrived.then_some(alarm.after_ms),
            trouble: alarm.trouble,
        });
        Ok(Drilled {
            vkey: answer.vkey,
            evidence: Some(answer.file).filter(|file| !file.is_empty()),
            alarms: alarms.collect(),
        })
    }

    /// Takes note of a finding, in the caller's name.
    pub async fn acknowledge(&self, origin: &str, id: &str, why: &str) -> Result<Finding, CallError> {
        let request =
            v1::AcknowledgeFindingRequest { origin: origin.into(), finding_id: id.into(), why: why.into() };
        let mut client = self.client.clone();
        let answer = call(request, CALL_DEADLINE, |request| client.acknowledge_finding(request)).await?;
        Ok(finding(answer.finding.ok_or(ConvertError::Missing("finding"))?)?)
    }
}

/// A time of which 0 is never.
fn time(milliseconds: u64) -> Option<UnixMillis> {
    Some(UnixMillis(milliseconds)).filter(|at| at.0 > 0)
}

fn next_page(token: String) -> Option<String> {
    Some(token).filter(|token| !token.is_empty())
}

fn vantage(wire: Option<v1::Vantage>) -> Result<VantageName, ConvertError> {
    let v1::Vantage { name, kind } = wire.ok_or(ConvertError::Missing("vantage"))?;
    let kind = match v1::VantageKind::try_from(kind) {
        Ok(v1::VantageKind::Log) => VantageKind::Log,
        Ok(v1::VantageKind::Witness) => VantageKind::Witness,
        Ok(v1::VantageKind::Monitor) => VantageKind::Monitor,
        Ok(v1::VantageKind::File) => VantageKind::File,
        Ok(v1::VantageKind::Unspecified) => return Err(ConvertError::Missing("kind")),
        Err(_) => return Err(ConvertError::UnknownValue { field: "kind", got: kind }),
    };
    Ok(VantageName { name, kind })
}

fn monitored(wire: v1::MonitoredLog) -> Result<MonitoredLog, ConvertError> {
    at_most("vantages", MAX_VANTAGES as u64, wire.vantages.len() as u64)?;
    let vantages = wire.vantages.into_iter().map(|seen| {
        let head = match seen.root.is_empty() {
            true => None,
            false => Some(TreeHead { size: tree_size("size", seen.size)?, root: hash("root", &seen.root)? }),
        };
        Ok(VantageStatus {
            vantage: vantage(seen.vantage)?,
            head,
            head_at: time(seen.head_at_ms),
            reached: time(seen.reached_at_ms),
            trouble: seen.trouble,
            audited: tree_size("audited_size", seen.audited_size)?,
            last_full_audit: time(seen.last_full_audit_ms),
        })
    });
    Ok(MonitoredLog {
        vantages: vantages.collect::<Result<_, ConvertError>>()?,
        origin: wire.origin,
        consistent: tree_size("consistent_size", wire.consistent_size)?,
        audited: tree_size("audited_size", wire.audited_size)?,
        last_full_audit: time(wire.last_full_audit_ms),
        open: wire.open_findings,
        unacknowledged: wire.unacknowledged_findings,
    })
}

fn finding(wire: v1::Finding) -> Result<Finding, ConvertError> {
    let class = match wire.class() {
        v1::FindingClass::Proof => FindingClass::Proof,
        v1::FindingClass::Observation => FindingClass::Observation,
        v1::FindingClass::Unspecified => {
            return Err(ConvertError::UnknownValue { field: "class", got: wire.class });
        }
    };
    let severity = match wire.severity() {
        v1::FindingSeverity::Page => FindingSeverity::Page,
        v1::FindingSeverity::Warn => FindingSeverity::Warn,
        v1::FindingSeverity::Unspecified => {
            return Err(ConvertError::UnknownValue { field: "severity", got: wire.severity });
        }
    };
    let resolved = match wire.state() {
        v1::FindingState::Open => None,
        v1::FindingState::Resolved => Some(UnixMillis(wire.resolved_at_ms)),
        v1::FindingState::Unspecified => {
            return Err(ConvertError::UnknownValue { field: "state", got: wire.state });
        }
    };
    Ok(Finding {
        class,
        severity,
        resolved,
        id: wire.id,
        code: wire.code,
        origin: wire.origin,
        subject: wire.subject,
        first_at: UnixMillis(wire.first_at_ms),
        last_at: UnixMillis(wire.last_at_ms),
        count: wire.count,
        detail: wire.detail,
        meaning: wire.meaning,
        next_step: wire.next_step,
        evidence: Some(wire.evidence_id).filter(|id| !id.is_empty()),
        acknowledged: wire.acknowledged.map(|acknowledged| Acknowledgement {
            by: acknowledged.by,
            why: acknowledged.why,
            at: UnixMillis(acknowledged.at_ms),
        }),
    })
}
