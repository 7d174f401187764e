//! What a witness process tells of its logs: each by itself while they are few, all together always.

use std::fmt;
use std::sync::Arc;

use epigraph_core::{Clock, UnixMillis};
use epigraph_witness::gate::Passage;
use epigraph_witness::list::Changes;
use epigraph_witness::status::{HeldLog, Kind};
use epigraph_witness::witness::Witness;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::{Registry, Unit};

use super::samples::{Samples, flag};
use super::{Labels, Role, seconds};

/// Up to so many logs each has series of its own; beyond, none has, and `witness_logs` and `witness_silent_logs` say how many are
/// in which state. A witness of 10,000 logs would else have tens of thousands of series, in which nobody finds anything.
pub const MAX_LOGS_WITH_SERIES: usize = 100;

/// How long a log must have been silent to be counted: the names of the bounds, and milliseconds.
const SILENCES: [(&str, u64); 3] = [("10m", 600_000), ("1h", 3_600_000), ("1d", 86_400_000)];

/// What became of the list of logs while the witness runs.
#[derive(Clone, Debug)]
pub struct ListChanges {
    reloads: Family<Labels<1>, Counter>,
    changes: Family<Labels<1>, Counter>,
}

impl ListChanges {
    pub fn new() -> ListChanges {
        let (reloads, changes) =
            (Family::<Labels<1>, Counter>::default(), Family::<Labels<1>, Counter>::default());
        // An alert on growth needs the zero before it.
        for outcome in ["taken", "failed"] {
            drop(reloads.get_or_create(&[("outcome", outcome)]));
        }
        for change in ["added", "returned", "removed", "rekeyed"] {
            drop(changes.get_or_create(&[("change", change)]));
        }
        ListChanges { reloads, changes }
    }

    /// A list was taken in.
    pub fn taken(&self, changes: &Changes) {
        self.reloads.get_or_create(&[("outcome", "taken")]).inc();
        for (change, logs) in [
            ("added", changes.added.len()),
            ("returned", changes.returned.len()),
            ("removed", changes.removed.len()),
            ("rekeyed", changes.rekeyed.len()),
        ] {
            self.changes.get_or_create(&[("change", change)]).inc_by(logs as u64);
        }
    }

    /// A list was not taken in; the one before it holds.
    pub fn failed(&self) {
        self.reloads.get_or_create(&[("outcome", "failed")]).inc();
    }
}

/// The witness of this process.
#[derive(Clone)]
pub struct Witnessing {
    pub witness: Arc<Witness>,
    pub list: ListChanges,
    pub clock: Arc<dyn Clock>,
}

impl fmt::Debug for Witnessing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Witnessing").field(self.witness.vkey()).finish()
    }
}

impl Role for Witnessing {
    /// Ready to cosign. A log that waits for its gate is asked when it proposes something, so none is no reason.
    fn ready(&self) -> Result<(), String> {
        let status = self.witness.status();
        let why = if status.stopped {
            "stopped: a fault has ended this witness; its messages say which"
        } else if status.rolled_back {
            "rolled back: its directory is an older copy; nothing is cosigned, its messages say for which log this showed"
        } else if status.draining {
            "draining: the witness is shutting down"
        } else {
            return Ok(());
        };
        Err(why.into())
    }

    fn register(&self, registry: &mut Registry) {
        let help = "Times that the list of logs was read again because it had changed";
        registry.register("witness_list_reloads", help, self.list.reloads.clone());
        registry.register("witness_list_changes", "Changes to the list of logs", self.list.changes.clone());
    }
}

impl Collector for Witnessing {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let (status, held, now) = (self.witness.status(), self.witness.held(), self.clock.now());
        let mut out = Samples(encoder);
        out.value("witness_ready", "1 if it cosigns", None, flag(self.ready().is_ok()))?;
        let help = "1 if its state is older than what it signed: it cosigns nothing more";
        out.value("witness_rolled_back", help, None, flag(status.rolled_back))?;
        let in_state = |passage| held.iter().filter(|log| log.passage == passage).count();
        let states = [
            ("passed", in_state(Passage::Passed)),
            ("unchecked", in_state(Passage::Unchecked)),
            ("waiting", in_state(Passage::Closed)),
            ("refused", status.refused_logs),
        ];
        let states = states.map(|(state, logs)| ([("state", state)], logs as f64));
        out.gauge("witness_logs", "Logs by where they stand with the list and the gate", None, states)?;
        out.count("witness_cosignatures", "Cosignatures given out, repeats included", status.cosigned)?;
        let refused = Kind::ALL.map(|kind| ([("kind", kind.name())], status.refusals.of(kind)));
        out.counter("witness_refusals", "Proposals that got no cosignature", refused)?;

        let silent = SILENCES.map(|(name, ms)| ([("longer_than", name)], silent(&held, ms, now) as f64));
        let help = "Logs that were cosigned before, but not for so long";
        out.gauge("witness_silent_logs", help, None, silent)?;
        let newest = held.iter().filter_map(|log| log.cosigned_at).max();
        let help = "When any log was last cosigned, 0 if none ever was";
        let newest = newest.map_or(0.0, seconds);
        out.value("witness_newest_cosignature_timestamp", help, Some(&Unit::Seconds), newest)?;

        let shown = if held.len() <= MAX_LOGS_WITH_SERIES { held.as_slice() } else { &[] };
        let entries = Unit::Other("entries".into());
        let sizes = shown.iter().map(|log| ([("origin", log.origin.as_str())], log.size.get() as f64));
        out.gauge("witness_held", "Entries of the head that is held", Some(&entries), sizes)?;
        let times =
            shown.iter().map(|log| ([("origin", log.origin.as_str())], log.cosigned_at.map_or(0.0, seconds)));
        let help = "When the log was last cosigned, 0 if never";
        out.gauge("witness_last_cosignature_timestamp", help, Some(&Unit::Seconds), times)
    }
}

fn silent(held: &[HeldLog], longer_than_ms: u64, now: UnixMillis) -> usize {
    let is_silent = |at: UnixMillis| now.0.saturating_sub(at.0) > longer_than_ms;
    held.iter().filter(|log| log.cosigned_at.is_some_and(is_silent)).count()
}
