//! How publication is doing under its witnesses: what the publisher shows of itself, with the times at which it changed. Labels
//! are names of the policy, so that there are never more than it has.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use epigraph_core::{Checkpoint, Clock, Origin, UnixMillis, Verified};
use epigraph_signer::publish::witnesses::{Status, Trouble, WitnessStatus};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use tokio::sync::watch;

use super::{Source, seconds};

/// What the publisher of one log shows.
#[derive(Clone, Debug)]
pub struct Publication {
    status: Status,
    /// When something was last published; at first, when that began to be watched.
    published_at: UnixMillis,
    /// When each witness answered last, in the order of the status.
    answered_at: Vec<Option<UnixMillis>>,
}

impl Publication {
    fn take(&mut self, status: Status, now: UnixMillis) {
        self.answered_at.resize(status.witnesses.len(), None);
        for (place, witness) in status.witnesses.iter().enumerate() {
            let before = self.status.witnesses.get(place).map_or(0, |before| before.answers);
            if let (true, Some(at)) = (witness.answers > before, self.answered_at.get_mut(place)) {
                *at = Some(now);
            }
        }
        self.status = status;
    }
}

/// Watches the publisher of a log until that is gone. Within a runtime.
pub fn observe(
    clock: Arc<dyn Clock>,
    mut published: watch::Receiver<Option<Arc<Verified<Checkpoint>>>>,
    mut status: watch::Receiver<Status>,
) -> watch::Receiver<Publication> {
    let begun = Publication { status: Status::default(), published_at: clock.now(), answered_at: Vec::new() };
    let (shown, seen) = watch::channel(begun);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                Ok(()) = published.changed() => {
                    shown.send_modify(|shown| shown.published_at = clock.now());
                }
                Ok(()) = status.changed() => {
                    let status = status.borrow_and_update().clone();
                    shown.send_modify(|shown| shown.take(status, clock.now()));
                }
                else => return,
            }
        }
    });
    seen
}

/// The logs of this process.
pub struct Publications(pub Arc<BTreeMap<Origin, Source>>);

impl fmt::Debug for Publications {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Collector for Publications {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let running = |(origin, source): (&Origin, &Source)| match source {
            Source::Running(_, _, publication) => Some((origin.to_string(), publication.borrow().clone())),
            Source::Stopped => None,
        };
        let logs: Vec<(String, Publication)> = self.0.iter().filter_map(running).collect();
        let (entries, witnesses) = (Unit::Other("entries".into()), Unit::Other("witnesses".into()));
        let mut out = Samples { encoder, logs: &logs };

        let help = "When something was last published, or when the process started if nothing was since";
        out.gauge("log_last_publication_timestamp", help, &Unit::Seconds, |log| seconds(log.published_at))?;
        let help = "Entries that the newest signed head covers, published or not";
        out.gauge("log_pending", help, &entries, |log| log.status.pending.get() as f64)?;
        let help = "1 unless a signed head has waited too long for its witnesses";
        out.gauge_of("log_quorum_met", help, None, |log| f64::from(u8::from(!log.status.late)))?;
        let help = "Witnesses that have cosigned the newest signed head";
        out.gauge("log_cosigned", help, &witnesses, |log| log.status.cosigned as f64)?;
        let help = "Witnesses that must cosign it yet, at least, before it is published";
        out.gauge("log_missing", help, &witnesses, |log| log.status.missing as f64)?;
        let files = Unit::Other("files".into());
        let help = "Evidence of two histories under the log's key that a witness showed";
        out.gauge("log_evidence", help, &files, |log| log.status.evidence_files as f64)?;

        let help = "Entries between what a witness is known to hold and the newest signed head";
        out.witness_gauge("log_witness_lag", help, Some(&entries), |log, _, witness| {
            log.status.pending.get().saturating_sub(witness.held.get()) as f64
        })?;
        let help = "When a witness last answered, 0 before the first time";
        out.witness_gauge(
            "log_witness_last_answer_timestamp",
            help,
            Some(&Unit::Seconds),
            |log, place, _| log.answered_at.get(place).copied().flatten().map_or(0.0, seconds),
        )?;
        let help = "1 if a witness is not asked again for the newest signed head";
        out.witness_gauge("log_witness_skipped", help, None, |_, _, witness| {
            f64::from(u8::from(witness.skipped))
        })?;
        let help = "Cosignatures of a witness that were verified and taken";
        out.witness_counter("log_witness_cosignatures", help, &[None], |witness, _| witness.cosignatures)?;
        let help = "What a witness did that was of no use";
        let kinds = Trouble::KINDS.map(Some);
        out.witness_counter("log_witness_troubles", help, &kinds, |witness, kind| {
            kind.and_then(|kind| witness.troubles.get(kind)).copied().unwrap_or(0)
        })
    }
}

/// One metric after another, each with a sample for every log, or for every witness of every log.
struct Samples<'a, 'l> {
    encoder: DescriptorEncoder<'a>,
    logs: &'l [(String, Publication)],
}

impl Samples<'_, '_> {
    fn gauge(&mut self, name: &str, help: &str, unit: &Unit, value: fn(&Publication) -> f64) -> fmt::Result {
        self.gauge_of(name, help, Some(unit), value)
    }

    fn gauge_of(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        value: fn(&Publication) -> f64,
    ) -> fmt::Result {
        let mut metric = self.encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        for (origin, log) in self.logs {
            ConstGauge::new(value(log)).encode(metric.encode_family(&[("origin", origin.as_str())])?)?;
        }
        Ok(())
    }

    fn witness_gauge(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        value: fn(&Publication, usize, &WitnessStatus) -> f64,
    ) -> fmt::Result {
        let mut metric = self.encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        for (origin, log) in self.logs {
            for (place, witness) in log.status.witnesses.iter().enumerate() {
                let labels = [("origin", origin.as_str()), ("witness", witness.name.as_str())];
                ConstGauge::new(value(log, place, witness)).encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn witness_counter(
        &mut self,
        name: &str,
        help: &str,
        kinds: &[Option<&str>],
        value: fn(&WitnessStatus, Option<&str>) -> u64,
    ) -> fmt::Result {
        let mut metric = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (origin, log) in self.logs {
            for witness in &log.status.witnesses {
                for kind in kinds {
                    let mut labels = vec![("origin", origin.as_str()), ("witness", witness.name.as_str())];
                    labels.extend(kind.map(|kind| ("kind", kind)));
                    ConstCounter::new(value(witness, *kind)).encode(metric.encode_family(&labels)?)?;
                }
            }
        }
        Ok(())
    }
}
