//! What the monitor knows, as it stands on the wire.

use bytes::Bytes;
use epigraph_core::UnixMillis;
use epigraph_rpc::v1;

use crate::drill::Drilled;
use crate::event::{Vantage, VantageKind};
use crate::finding::{Change, Class, Finding, Severity, State};
use crate::monitor::{LogStatus, SeenHead, VantageStatus};
use crate::sinks::SinkStatus;

pub(super) fn seen(seen: SeenHead) -> v1::SeenCheckpoint {
    let sightings = seen.sightings.into_iter().map(|sighting| v1::Sighting {
        vantage: sighting.vantage,
        first_seen_ms: sighting.first.0,
        last_seen_ms: sighting.last.0,
    });
    v1::SeenCheckpoint { checkpoint: seen.note, sightings: sightings.collect() }
}

pub(super) fn log(log: LogStatus) -> v1::MonitoredLog {
    v1::MonitoredLog {
        origin: log.origin.to_string(),
        consistent_size: log.consistent.get(),
        audited_size: log.audited.get(),
        last_full_audit_ms: time(log.last_full_audit),
        vantages: log.vantages.into_iter().map(point).collect(),
        open_findings: count(log.open),
        unacknowledged_findings: count(log.unacknowledged),
    }
}

fn point(point: VantageStatus) -> v1::VantageStatus {
    let root = point.head.map(|head| Bytes::copy_from_slice(head.root.as_bytes()));
    v1::VantageStatus {
        vantage: Some(vantage(point.vantage)),
        size: point.head.map_or(0, |head| head.size.get()),
        root: root.unwrap_or_default(),
        head_at_ms: time(point.head_at),
        reached_at_ms: time(point.reached),
        trouble: point.trouble,
        audited_size: point.audited.get(),
        last_full_audit_ms: time(point.full_at),
    }
}

fn vantage(vantage: Vantage) -> v1::Vantage {
    let kind = match vantage.kind {
        VantageKind::Log => v1::VantageKind::Log,
        VantageKind::Witness(_) => v1::VantageKind::Witness,
        VantageKind::Monitor => v1::VantageKind::Monitor,
        VantageKind::File => v1::VantageKind::File,
    };
    v1::Vantage { name: vantage.name, kind: kind.into() }
}

pub(super) fn sink(sink: SinkStatus) -> v1::SinkStatus {
    v1::SinkStatus {
        name: sink.name,
        queued: sink.queued,
        dropped: sink.dropped,
        delivered_at_ms: time(sink.delivered_at),
        trouble: sink.trouble,
    }
}

pub(super) fn finding(finding: Finding) -> v1::Finding {
    let class = match finding.code.class() {
        Class::Proof => v1::FindingClass::Proof,
        Class::Observation => v1::FindingClass::Observation,
    };
    let severity = match finding.code.severity() {
        Severity::Page => v1::FindingSeverity::Page,
        Severity::Warn => v1::FindingSeverity::Warn,
    };
    let (state, resolved_at) = match finding.state {
        State::Open => (v1::FindingState::Open, None),
        State::Resolved { at } => (v1::FindingState::Resolved, Some(at)),
    };
    let acknowledged = finding.acknowledged.map(|acknowledged| v1::Acknowledgement {
        by: acknowledged.by,
        why: acknowledged.why,
        at_ms: acknowledged.at.0,
    });
    v1::Finding {
        id: finding.id.to_string(),
        code: finding.code.as_str().into(),
        class: class.into(),
        severity: severity.into(),
        origin: finding.origin.to_string(),
        subject: finding.subject,
        first_at_ms: finding.first_at.0,
        last_at_ms: finding.last_at.0,
        count: finding.count,
        detail: finding.detail,
        meaning: finding.code.sentence().into(),
        next_step: finding.code.next_step().into(),
        evidence_id: finding.evidence.map(|id| id.to_string()).unwrap_or_default(),
        state: state.into(),
        resolved_at_ms: time(resolved_at),
        acknowledged,
    }
}

pub(super) fn change(change: Change) -> v1::FindingChange {
    match change {
        Change::Opened => v1::FindingChange::Opened,
        Change::Reminded => v1::FindingChange::Reminded,
        Change::Reopened => v1::FindingChange::Reopened,
        Change::Resolved => v1::FindingChange::Resolved,
        Change::Acknowledged => v1::FindingChange::Acknowledged,
    }
}

pub(super) fn drilled(drilled: Drilled) -> v1::RunDrillResponse {
    let alarms = drilled.alarms.into_iter().map(|alarm| v1::DrillAlarm {
        sink: alarm.sink,
        arrived: alarm.after_ms.is_some(),
        after_ms: alarm.after_ms.unwrap_or_default(),
        trouble: alarm.trouble,
    });
    v1::RunDrillResponse {
        vkey: drilled.vkey.to_string(),
        file: drilled.evidence.unwrap_or_default(),
        alarms: alarms.collect(),
    }
}

/// 0 is never.
fn time(at: Option<UnixMillis>) -> u64 {
    at.map_or(0, |at| at.0)
}

fn count(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
