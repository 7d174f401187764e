//! What a monitor process tells of its logs, its findings and those who are told.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use epigraph_core::{Clock, UnixMillis};
use epigraph_monitor::Monitor;
use epigraph_monitor::finding::{Code, Severity};
use epigraph_monitor::monitor::{LogStatus, VantageStatus};
use epigraph_monitor::sinks::{SinkStatus, Sinks};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Unit;
use tokio::sync::watch;

use super::samples::{Samples, flag};
use super::{Role, seconds};

/// The loop comes round every second; a disk that takes so long for a sync is as good as gone.
const MAX_ROUND_MS: u64 = 30_000;

/// The monitor of this process.
#[derive(Clone)]
pub struct Monitoring {
    pub monitor: Monitor,
    pub sinks: Arc<Sinks>,
    /// When the loop last came round; 0 before the first time.
    pub last_round: watch::Receiver<UnixMillis>,
    pub clock: Arc<dyn Clock>,
}

impl fmt::Debug for Monitoring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Monitoring")
    }
}

impl Role for Monitoring {
    /// Whether it looks. What it sees is no reason.
    fn ready(&self) -> Result<(), String> {
        let last = self.last_round.borrow().0;
        match self.clock.now().0.saturating_sub(last) {
            _ if last == 0 => Err("starting: it has not looked at anything yet".into()),
            0..=MAX_ROUND_MS => Ok(()),
            ms => Err(format!("stuck: its loop has not come round for {} s; look at its disk", ms / 1_000)),
        }
    }
}

impl Collector for Monitoring {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut out = Samples(encoder);
        let logs: Vec<LogStatus> =
            self.monitor.origins().iter().filter_map(|origin| self.monitor.status(origin)).collect();
        out.value("monitor_ready", "1 if it looks", None, flag(self.ready().is_ok()))?;
        let round = seconds(*self.last_round.borrow());
        let help = "When its loop last came round, 0 before the first time";
        out.value("monitor_last_round_timestamp", help, Some(&Unit::Seconds), round)?;
        logs_of(&mut out, &logs)?;
        vantages_of(&mut out, &logs)?;
        self.findings(&mut out, &logs)?;
        sinks_of(&mut out, &self.sinks.status())
    }
}

impl Monitoring {
    fn findings(&self, out: &mut Samples<'_>, logs: &[LogStatus]) -> fmt::Result {
        // An alert on a code needs the zero before it.
        let mut open: BTreeMap<(&str, Code), u64> =
            logs.iter().flat_map(|log| Code::ALL.map(|code| ((log.origin.as_str(), code), 0))).collect();
        let findings = self.monitor.findings();
        for finding in findings.iter().filter(|finding| finding.is_open()) {
            *open.entry((finding.origin.as_str(), finding.code)).or_default() += 1;
        }
        let open = open.into_iter().map(|((origin, code), count)| {
            let severity = match code.severity() {
                Severity::Page => "page",
                Severity::Warn => "ticket",
            };
            ([("origin", origin), ("code", code.as_str()), ("severity", severity)], count as f64)
        });
        out.gauge("monitor_open_findings", "Findings that last", None, open)?;
        let help = "Of these, what nobody has taken note of";
        let unacknowledged =
            logs.iter().map(|log| ([("origin", log.origin.as_str())], log.unacknowledged as f64));
        out.gauge("monitor_unacknowledged_findings", help, None, unacknowledged)?;
        let help = "Findings for which there was no room";
        out.count("monitor_lost_findings", help, self.monitor.lost_findings())
    }
}

fn logs_of(out: &mut Samples<'_>, logs: &[LogStatus]) -> fmt::Result {
    let entries = Unit::Other("entries".into());
    let of = |value: fn(&LogStatus) -> f64| {
        logs.iter().map(move |log| ([("origin", log.origin.as_str())], value(log)))
    };
    let help = "Entries up to which all heads are proven to be of one history";
    out.gauge("monitor_consistent", help, Some(&entries), of(|log| log.consistent.get() as f64))?;
    let help = "Entries that were read, with the root that was signed";
    out.gauge("monitor_audited", help, Some(&entries), of(|log| log.audited.get() as f64))?;
    let help = "When the last audit from the first entry on ended, 0 before the first";
    let last = of(|log| log.last_full_audit.map_or(0.0, seconds));
    out.gauge("monitor_last_full_audit_timestamp", help, Some(&Unit::Seconds), last)
}

fn vantages_of(out: &mut Samples<'_>, logs: &[LogStatus]) -> fmt::Result {
    let entries = Unit::Other("entries".into());
    let of = |value: fn(&VantageStatus) -> f64| {
        logs.iter().flat_map(move |log| {
            log.vantages.iter().map(move |point| {
                ([("origin", log.origin.as_str()), ("vantage", point.vantage.name.as_str())], value(point))
            })
        })
    };
    let help = "Entries of the newest head that a vantage point showed";
    let size = of(|point| point.head.map_or(0.0, |head| head.size.get() as f64));
    out.gauge("monitor_vantage", help, Some(&entries), size)?;
    let help = "When that head was made by its newest cosignature, 0 without any";
    let made = of(|point| point.head_at.map_or(0.0, seconds));
    out.gauge("monitor_vantage_head_timestamp", help, Some(&Unit::Seconds), made)?;
    let help = "When a vantage point last answered, 0 if never";
    let reached = of(|point| point.reached.map_or(0.0, seconds));
    out.gauge("monitor_vantage_reached_timestamp", help, Some(&Unit::Seconds), reached)
}

fn sinks_of(out: &mut Samples<'_>, sinks: &[SinkStatus]) -> fmt::Result {
    fn of<V>(
        sinks: &[SinkStatus],
        value: fn(&SinkStatus) -> V,
    ) -> impl Iterator<Item = ([(&'static str, &str); 1], V)> {
        sinks.iter().map(move |sink| ([("sink", sink.name.as_str())], value(sink)))
    }
    let help = "Messages that wait for delivery";
    out.gauge("monitor_sink_queued_messages", help, None, of(sinks, |sink| sink.queued as f64))?;
    let help = "Messages that were delivered";
    out.counter("monitor_sink_delivered_messages", help, of(sinks, |sink| sink.delivered))?;
    let help = "Deliveries that failed, to be tried again";
    out.counter("monitor_sink_failures", help, of(sinks, |sink| sink.failed))?;
    let help = "Messages that were given up";
    out.counter("monitor_sink_dropped_messages", help, of(sinks, |sink| sink.dropped))?;
    let help = "When a sink last took something, 0 if never";
    let taken = of(sinks, |sink| sink.delivered_at.map_or(0.0, seconds));
    out.gauge("monitor_sink_delivery_timestamp", help, Some(&Unit::Seconds), taken)?;
    let help = "When a sink last took a sign of life, 0 if never";
    let beat = of(sinks, |sink| sink.beat_at.map_or(0.0, seconds));
    out.gauge("monitor_sink_heartbeat_timestamp", help, Some(&Unit::Seconds), beat)
}
