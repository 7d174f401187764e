//! What a running log tells about itself in the words of Prometheus: the names, and where each value comes from.
//! `docs/metrics.md` explains every one. The roles know nothing of this; they are asked when somebody looks.

pub mod listener;

use std::fmt;
use std::sync::Arc;

use epigraph_core::{Clock, UnixMillis};
use epigraph_rpc::{ConnectionRefused, Hooks, OnRefused, log_refused};
use epigraph_sequencer::log::Log;
use epigraph_sequencer::status::{NotReady, Status};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::watch;

use crate::runtime::Stopwatch;
use crate::scrub::Scrubbed;

/// Seconds: from a proof out of memory, through a sync of the disk, to the longest wait for publication.
const CALL_BUCKETS: [f64; 12] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 5.0, 15.0, 60.0];

type Labels<const N: usize> = [(&'static str, &'static str); N];

/// What the server's hooks count.
#[derive(Clone)]
pub struct Calls {
    refused: Family<Labels<1>, Counter>,
    answered: Family<Labels<2>, Counter>,
    duration: Family<Labels<1>, Histogram, fn() -> Histogram>,
}

impl Calls {
    pub fn new() -> Calls {
        let refused = Family::<Labels<1>, Counter>::default();
        // An alert on growth needs the zero before it.
        for kind in ConnectionRefused::KINDS {
            drop(refused.get_or_create(&[("kind", kind)]));
        }
        let histogram: fn() -> Histogram = || Histogram::new(CALL_BUCKETS);
        Calls { refused, answered: Family::default(), duration: Family::new_with_constructor(histogram) }
    }

    /// Hooks that count, beside what the server does without.
    pub fn hooks(&self) -> Hooks {
        let (log, refused) = (log_refused(), self.refused.clone());
        let (answered, duration) = (self.answered.clone(), self.duration.clone());
        let on_refused: OnRefused = Arc::new(move |address, reason| {
            refused.get_or_create(&[("kind", reason.kind())]).inc();
            log(address, reason);
        });
        Hooks {
            on_call: Arc::new(move |rpc| {
                let (answered, duration) = (answered.clone(), duration.clone());
                let watch = Stopwatch::start();
                Box::new(move |code| {
                    answered.get_or_create(&[("rpc", rpc), ("code", code)]).inc();
                    duration.get_or_create(&[("rpc", rpc)]).observe(watch.elapsed().as_secs_f64());
                })
            }),
            ..Hooks::from(on_refused)
        }
    }
}

/// What can be looked at.
pub struct Metrics {
    source: Source,
    registry: Registry,
}

impl Metrics {
    /// Of the one log of this process, whose certificate is valid until `certificate_expiry`.
    pub fn new(source: Source, calls: &Calls, certificate_expiry: UnixMillis) -> Metrics {
        let mut registry = Registry::with_prefix("epigraph");
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "What runs", build);
        let started = ConstGauge::new(seconds(source.clock.now()));
        registry.register_with_unit("start_timestamp", "When the process started", Unit::Seconds, started);
        let expiry = ConstGauge::new(seconds(certificate_expiry));
        let help = "When the server certificate expires";
        registry.register_with_unit("server_certificate_expiry_timestamp", help, Unit::Seconds, expiry);
        registry.register("refused_connections", "Connections that were not taken", calls.refused.clone());
        registry.register("calls", "Calls that were answered", calls.answered.clone());
        let help = "From a call's header to its answer";
        registry.register_with_unit("call_duration", help, Unit::Seconds, calls.duration.clone());
        let origin = ("origin".into(), source.log.origin().as_str().to_owned().into());
        registry.sub_registry_with_label(origin).register_collector(Box::new(source.clone()));
        Metrics { source, registry }
    }

    /// Whether an entry would be acknowledged and published now.
    fn ready(&self) -> Result<(), NotReady> {
        self.source.status().ready
    }

    /// OpenMetrics 1.0.
    fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// Where the values of a log are read when somebody looks.
#[derive(Clone)]
pub struct Source {
    pub log: Arc<Log>,
    pub scrubbed: watch::Receiver<Scrubbed>,
    pub clock: Arc<dyn Clock>,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("origin", self.log.origin()).finish_non_exhaustive()
    }
}

impl Source {
    fn status(&self) -> Status {
        self.log.status(self.clock.now())
    }
}

impl Collector for Source {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let Status {
            durable,
            published,
            tree_lag,
            publication_behind_ms,
            in_flight_bytes,
            tile_bytes,
            tiles,
            ready,
        } = self.status();
        let Scrubbed { progress, last_full_pass_at } = *self.scrubbed.borrow();
        let (entries, bytes) = (Unit::Other("entries".into()), Unit::Bytes);
        let mut out = Samples(encoder);
        out.gauge(
            "log_ready",
            "1 if it acknowledges and publishes",
            None,
            f64::from(u8::from(ready.is_ok())),
        )?;
        out.gauge("log_durable", "Entries in the journal", Some(&entries), durable.get())?;
        out.gauge(
            "log_published",
            "Entries that a published checkpoint covers",
            Some(&entries),
            published.get(),
        )?;
        let behind = publication_behind_ms as f64 / 1000.0;
        let help = "How long nothing was published although something waits";
        out.gauge("log_publication_behind", help, Some(&Unit::Seconds), behind)?;
        out.gauge("log_tree_lag", "Durable entries that are not in the tree", Some(&entries), tree_lag)?;
        out.gauge("log_in_flight", "Entries on their way to the disk", Some(&bytes), in_flight_bytes as u64)?;
        out.gauge("log_tile_memory", "Tiles in memory", Some(&bytes), tile_bytes as u64)?;
        let kinds = [("missing", tiles.missing), ("unreadable", tiles.unreadable), ("wrong", tiles.wrong)];
        out.counters("log_bad_tiles", "Stored tiles that were not as they should be", &kinds)?;
        out.counter("log_rebuilt_tiles", "Tiles that were rebuilt from the journal", tiles.rebuilt)?;
        let help = "Batches of tiles that could not be stored at first";
        out.counter("log_tile_write_failures", help, tiles.write_failures)?;

        let help = "Entries that the present pass has read again";
        out.gauge("scrub_checked", help, Some(&entries), progress.checked.get())?;
        out.counter("scrub_passes", "Full passes since the start", progress.passes)?;
        out.counter(
            "scrub_repaired_tiles",
            "Stored tiles that a pass had to store again",
            progress.repaired,
        )?;
        let covered = progress.last_full_pass.map_or(0, |size| size.get());
        out.gauge("scrub_last_full_pass", "Entries that the last full pass read", Some(&entries), covered)?;
        let at = last_full_pass_at.map_or(0.0, seconds);
        let help = "When the last full pass ended, 0 before the first";
        out.gauge("scrub_last_full_pass_timestamp", help, Some(&Unit::Seconds), at)
    }
}

/// One sample after another.
struct Samples<'a>(DescriptorEncoder<'a>);

impl Samples<'_> {
    fn gauge<N>(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: N) -> fmt::Result
    where
        ConstGauge<N>: EncodeMetric,
    {
        let gauge = ConstGauge::new(value);
        gauge.encode(self.0.encode_descriptor(name, help, unit, MetricType::Gauge)?)
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        ConstCounter::new(value).encode(self.0.encode_descriptor(name, help, None, MetricType::Counter)?)
    }

    fn counters(&mut self, name: &str, help: &str, kinds: &[(&'static str, u64)]) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (kind, value) in kinds {
            ConstCounter::new(*value).encode(metric.encode_family(&[("kind", *kind)])?)?;
        }
        Ok(())
    }
}

fn seconds(time: UnixMillis) -> f64 {
    time.0 as f64 / 1000.0
}
