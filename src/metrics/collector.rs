//! What a collector tells of its doors and its spool.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use epigraph_collector::pack::Replaced;
use epigraph_collector::spool::Progress;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Unit;
use tokio::sync::watch;

use super::Role;
use super::samples::{Samples, flag};
use crate::doors::desk::Counts;

/// The collector of this process.
#[derive(Clone)]
pub struct Collecting {
    /// Its doors, by name.
    pub doors: Vec<(String, Arc<Counts>)>,
    /// Its spool.
    pub progress: watch::Receiver<Progress>,
    /// What it replaced by tokens.
    pub replaced: Arc<Replaced>,
}

impl fmt::Debug for Collecting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Collecting")
    }
}

impl Role for Collecting {
    fn ready(&self) -> Result<(), String> {
        match self.progress.borrow().has_room {
            true => Ok(()),
            false => Err("the spool is full: nothing is taken until something was delivered".into()),
        }
    }
}

impl Collecting {
    fn each(&self, of: fn(&Counts) -> &AtomicU64) -> impl Iterator<Item = ([(&'static str, &str); 1], u64)> {
        let count = move |counts: &Counts| of(counts).load(Ordering::Relaxed);
        self.doors.iter().map(move |(name, counts)| ([("door", name.as_str())], count(counts)))
    }
}

impl Collector for Collecting {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut out = Samples(encoder);
        let progress = *self.progress.borrow();
        let waiting = progress.tip.number.saturating_sub(progress.delivered);
        out.value("collector_ready", "1 if there is room in the spool", None, flag(self.ready().is_ok()))?;
        out.value(
            "collector_waiting",
            "Batches in the spool that are not proven to be in the log",
            Some(&Unit::Other("batches".into())),
            waiting as f64,
        )?;
        let replaced = self.replaced.counts().map(|(kind, count)| ([("kind", kind)], count));
        out.counter("collector_replaced", "Texts that were replaced by tokens before signing", replaced)?;
        out.counter(
            "door_events",
            "Events that came in at a door and are durable",
            self.each(|counts| &counts.events),
        )?;
        out.counter("door_repeats", "Events that were sent again", self.each(|counts| &counts.repeated))?;
        let help = "Requests and reads that were pushed back";
        out.counter("door_pushed_back", help, self.each(|counts| &counts.pushed_back))?;
        let tables: Vec<_> =
            self.doors.iter().map(|(name, counts)| (name, counts.rejected(), counts.refusals())).collect();
        let rejected = tables.iter().flat_map(|(name, rejected, _)| {
            rejected.iter().map(|(why, count)| ([("door", name.as_str()), ("why", *why)], *count))
        });
        out.counter("door_rejected", "Records and requests that could not be understood", rejected)?;
        let refused = tables.iter().flat_map(|(name, _, refused)| {
            refused.iter().map(|(kind, count)| ([("door", name.as_str()), ("kind", *kind)], *count))
        });
        out.counter("door_refused_connections", "Connections that were not let in at a door", refused)
    }
}
