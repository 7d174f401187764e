//! What a running process tells about itself in the words of Prometheus: the names, and where each value comes from.
//! `docs/metrics.md` explains every one. The roles know nothing of this; they are asked when somebody looks.

pub mod audit;
pub mod collector;
pub mod listener;
pub mod monitor;
mod process;
pub mod publication;
mod samples;
pub mod signer;
pub mod witness;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use epigraph_core::{Clock, Entropy, Origin, UnixMillis};
use epigraph_rpc::tls::{Reload, TlsError};
use epigraph_rpc::{ConnectionRefused, Hooks, OnRefused, RequestIds, ServerTls, log_refused};
use epigraph_sequencer::log::Log;
use epigraph_sequencer::status::{NotReady, Status};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::watch;

use process::Process;
use publication::{Publication, Publications};

use crate::runtime::Stopwatch;
use crate::scrub::Scrubbed;

/// Seconds: from a proof out of memory, through a sync of the disk, to the longest wait for publication.
const CALL_BUCKETS: [f64; 12] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 5.0, 15.0, 60.0];

/// What comes of reading the files of `[tls]` again.
const RELOADS: [&str; 2] = ["replaced", "failed"];

type Labels<const N: usize> = [(&'static str, &'static str); N];

/// What the server's hooks count.
#[derive(Clone)]
pub struct Calls {
    refused: Family<Labels<1>, Counter>,
    answered: Family<Labels<2>, Counter>,
    duration: Family<Labels<1>, Histogram, fn() -> Histogram>,
    accept_pauses: Counter,
    connections: Gauge,
    reloads: Family<Labels<1>, Counter>,
    tls: Arc<ServerTls>,
}

impl Calls {
    pub fn new(tls: &Arc<ServerTls>) -> Calls {
        let refused = Family::<Labels<1>, Counter>::default();
        // An alert on growth needs the zero before it.
        for kind in ConnectionRefused::KINDS {
            drop(refused.get_or_create(&[("kind", kind)]));
        }
        let histogram: fn() -> Histogram = || Histogram::new(CALL_BUCKETS);
        let reloads = Family::<Labels<1>, Counter>::default();
        for outcome in RELOADS {
            drop(reloads.get_or_create(&[("outcome", outcome)]));
        }
        Calls {
            refused,
            answered: Family::default(),
            duration: Family::new_with_constructor(histogram),
            accept_pauses: Counter::default(),
            connections: Gauge::default(),
            reloads,
            tls: Arc::clone(tls),
        }
    }

    /// Counts a look at the files of `[tls]`, unless nothing came of it.
    pub fn looked(&self, outcome: &Result<Reload, TlsError>) {
        let outcome = match outcome {
            Ok(Reload::Unchanged) => return,
            Ok(Reload::Replaced) => RELOADS[0],
            Err(_) => RELOADS[1],
        };
        self.reloads.get_or_create(&[("outcome", outcome)]).inc();
    }

    fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(Expiries(Arc::clone(&self.tls))));
        let help = "Times that the files of [tls] were read again, or could not be";
        registry.register("tls_reloads", help, self.reloads.clone());
        registry.register("refused_connections", "Connections that were not taken", self.refused.clone());
        let help = "Pauses because no connection could be accepted";
        registry.register("accept_pauses", help, self.accept_pauses.clone());
        registry.register("open_connections", "Connections that are open", self.connections.clone());
        registry.register("calls", "Calls that were answered", self.answered.clone());
        let help = "From a call's header to its answer";
        registry.register_with_unit("call_duration", help, Unit::Seconds, self.duration.clone());
    }

    /// Hooks that count, beside what the server does without.
    pub fn hooks(&self, entropy: &dyn Entropy) -> Hooks {
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
                    let took = watch.elapsed();
                    answered.get_or_create(&[("rpc", rpc), ("code", code)]).inc();
                    duration.get_or_create(&[("rpc", rpc)]).observe(took.as_secs_f64());
                    took
                })
            }),
            on_trace: Arc::new(crate::observe::join),
            request_ids: Arc::new(RequestIds::new(entropy)),
            on_accept_paused: {
                let pauses = self.accept_pauses.clone();
                Arc::new(move |_| {
                    pauses.inc();
                })
            },
            on_connections: {
                let connections = self.connections.clone();
                Arc::new(move |open| {
                    connections.set(i64::try_from(open).unwrap_or(i64::MAX));
                })
            },
            ..Hooks::from(on_refused)
        }
    }
}

/// Until when the certificate and the revocation lists that are in force are good.
struct Expiries(Arc<ServerTls>);

impl fmt::Debug for Expiries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Expiries")
    }
}

impl Collector for Expiries {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let certificate = seconds(self.0.not_after());
        let lists = self.0.revocation_lists_expire().map_or(0.0, seconds);
        for (name, help, value) in [
            ("server_certificate_expiry_timestamp", "When the server certificate expires", certificate),
            (
                "revocation_lists_expiry_timestamp",
                "When the first revocation list expires, 0 without any",
                lists,
            ),
        ] {
            let metric = encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Gauge)?;
            ConstGauge::new(value).encode(metric)?;
        }
        Ok(())
    }
}

/// What became of the spans of traces.
#[derive(Clone, Debug)]
pub struct Spans {
    /// A collector took them.
    pub exported: Counter,
    /// No collector took them.
    pub export_failed: Counter,
    /// Too many waited.
    pub queue_full: Counter,
    lost: Family<Labels<1>, Counter>,
}

impl Spans {
    pub fn new() -> Spans {
        let lost = Family::<Labels<1>, Counter>::default();
        Spans {
            exported: Counter::default(),
            export_failed: lost.get_or_create_owned(&[("why", "export_failed")]),
            queue_full: lost.get_or_create_owned(&[("why", "queue_full")]),
            lost,
        }
    }
}

/// What can be looked at.
pub struct Metrics {
    role: Box<dyn Role + Send + Sync>,
    registry: Registry,
}

/// A role as its process shows it.
pub trait Role {
    /// Whether it does all that it is there for; else what it does not, and why.
    fn ready(&self) -> Result<(), String>;

    /// Registers what the role does not collect itself.
    fn register(&self, _registry: &mut Registry) {}
}

/// Where the values of a log are read when somebody looks.
#[derive(Clone)]
pub enum Source {
    /// It was opened.
    Running(Arc<Log>, watch::Receiver<Scrubbed>, watch::Receiver<Publication>),
    /// It could not be opened.
    Stopped,
}

impl Metrics {
    /// Of the logs of this process.
    pub fn new(
        sources: BTreeMap<Origin, Source>,
        clock: Arc<dyn Clock>,
        calls: &Calls,
        spans: &Spans,
    ) -> Metrics {
        let started = clock.now();
        Metrics::of(Logs { sources: Arc::new(sources), clock }, started, calls, spans)
    }

    /// Of whatever role this process has, which started then.
    pub fn of<R>(role: R, started: UnixMillis, calls: &Calls, spans: &Spans) -> Metrics
    where
        R: Role + Collector + Clone + Send + Sync,
    {
        let mut metrics = Metrics::without_calls(role, started);
        calls.register(&mut metrics.registry);
        let registry = &mut metrics.registry;
        registry.register("exported_spans", "Spans that a collector took", spans.exported.clone());
        registry.register("lost_spans", "Spans that no collector took", spans.lost.clone());
        metrics
    }

    /// Of a role that serves no calls of ours.
    pub fn without_calls<R>(role: R, started: UnixMillis) -> Metrics
    where
        R: Role + Collector + Clone + Send + Sync,
    {
        let mut registry = Registry::with_prefix("epigraph");
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "What runs", build);
        let started = ConstGauge::new(seconds(started));
        registry.register_with_unit("start_timestamp", "When the process started", Unit::Seconds, started);
        registry.register_collector(Box::new(Process));
        role.register(&mut registry);
        registry.register_collector(Box::new(role.clone()));
        Metrics { role: Box::new(role), registry }
    }

    /// What `/readyz` says.
    fn ready(&self) -> Result<(), String> {
        self.role.ready()
    }

    /// OpenMetrics 1.0.
    fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

#[derive(Clone)]
struct Logs {
    sources: Arc<BTreeMap<Origin, Source>>,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for Logs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.sources.keys()).finish()
    }
}

impl Logs {
    /// How each log is doing at this moment; `None` of one that could not be opened.
    fn look(&self) -> impl Iterator<Item = (&Origin, Option<(Status, Scrubbed)>)> {
        let now = self.clock.now();
        self.sources.iter().map(move |(origin, source)| match source {
            Source::Running(log, scrubbed, _) => (origin, Some((log.status(now), *scrubbed.borrow()))),
            Source::Stopped => (origin, None),
        })
    }
}

impl Role for Logs {
    /// Whether every log would acknowledge and publish an entry now; else which would not, and why.
    fn ready(&self) -> Result<(), String> {
        let alone = self.sources.len() == 1;
        let reasons = self.look().filter_map(|(origin, seen)| {
            let why = seen.map_or(Err(NotReady::Stopped), |(status, _)| status.ready).err()?;
            Some(if alone { why.to_string() } else { format!("{origin}: {why}") })
        });
        let reasons: Vec<String> = reasons.collect();
        if reasons.is_empty() { Ok(()) } else { Err(reasons.join("\n")) }
    }

    fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(Publications(Arc::clone(&self.sources))));
    }
}

impl Collector for Logs {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let looked: Vec<_> = self.look().collect();
        let ready = looked.iter().map(|(origin, seen)| {
            (origin.as_str(), seen.as_ref().is_some_and(|(status, _)| status.ready.is_ok()))
        });
        let ready: Vec<(&str, f64)> =
            ready.map(|(origin, ready)| (origin, f64::from(u8::from(ready)))).collect();
        let logs: Vec<Seen<'_>> = looked
            .iter()
            .filter_map(|(origin, seen)| {
                seen.as_ref().map(|(status, scrubbed)| (origin.as_str(), status, scrubbed))
            })
            .collect();
        let (entries, bytes) = (Unit::Other("entries".into()), Unit::Bytes);
        let mut out = Samples { encoder, logs: &logs };

        out.gauge_of("log_ready", "1 if it acknowledges and publishes", None, &ready)?;
        out.gauge("log_durable", "Entries in the journal", Some(&entries), |log, _| {
            log.durable.get() as f64
        })?;
        let help = "Entries that a published checkpoint covers";
        out.gauge("log_published", help, Some(&entries), |log, _| log.published.get() as f64)?;
        let help = "How long nothing was published although something waits";
        out.gauge("log_publication_behind", help, Some(&Unit::Seconds), |log, _| {
            log.publication_behind_ms as f64 / 1000.0
        })?;
        let help = "Durable entries that are not in the tree";
        out.gauge("log_tree_lag", help, Some(&entries), |log, _| log.tree_lag as f64)?;
        let help = "Entries on their way to the disk";
        out.gauge("log_in_flight", help, Some(&bytes), |log, _| log.in_flight_bytes as f64)?;
        out.gauge("log_tile_memory", "Tiles in memory", Some(&bytes), |log, _| log.tile_bytes as f64)?;
        let help = "Stored tiles that were not as they should be";
        out.counter(
            "log_bad_tiles",
            help,
            &[
                (&[("kind", "missing")], |log, _| log.tiles.missing),
                (&[("kind", "unreadable")], |log, _| log.tiles.unreadable),
                (&[("kind", "wrong")], |log, _| log.tiles.wrong),
            ],
        )?;
        let help = "Tiles that were rebuilt from the journal";
        out.counter("log_rebuilt_tiles", help, &[(&[], |log, _| log.tiles.rebuilt)])?;
        let help = "Batches of tiles that could not be stored at first";
        out.counter("log_tile_write_failures", help, &[(&[], |log, _| log.tiles.write_failures)])?;

        let lag = |log: &Status, _: &Scrubbed| {
            log.lookup.as_ref().map_or(log.durable.get(), |lookup| lookup.lag) as f64
        };
        out.gauge(
            "log_lookup_lag",
            "Entries that the lookup by leaf hash does not have",
            Some(&entries),
            lag,
        )?;
        out.gauge("log_lookup", "The lookup by leaf hash on the disk", Some(&bytes), |log, _| {
            log.lookup.as_ref().map_or(0, |lookup| lookup.bytes) as f64
        })?;

        let help = "Entries that the present pass has read again";
        out.gauge("scrub_checked", help, Some(&entries), |_, scrubbed| {
            scrubbed.progress.checked.get() as f64
        })?;
        let help = "Full passes since the start";
        out.counter("scrub_passes", help, &[(&[], |_, scrubbed| scrubbed.progress.passes)])?;
        let help = "Stored tiles that a pass had to store again";
        out.counter("scrub_repaired_tiles", help, &[(&[], |_, scrubbed| scrubbed.progress.repaired)])?;
        let help = "Entries that the last full pass read";
        out.gauge("scrub_last_full_pass", help, Some(&entries), |_, scrubbed| {
            scrubbed.progress.last_full_pass.map_or(0.0, |size| size.get() as f64)
        })?;
        let help = "When the last full pass ended, 0 before the first";
        out.gauge("scrub_last_full_pass_timestamp", help, Some(&Unit::Seconds), |_, scrubbed| {
            scrubbed.last_full_pass_at.map_or(0.0, seconds)
        })
    }
}

/// A log's name and what was seen of it.
type Seen<'a> = (&'a str, &'a Status, &'a Scrubbed);

/// One metric after another, each with a sample for every log.
struct Samples<'a, 'l> {
    encoder: DescriptorEncoder<'a>,
    logs: &'l [Seen<'l>],
}

/// Counters of one metric: what their samples' labels say beside the log's origin, and their values.
type Counters<'a> = [(&'a [(&'static str, &'static str)], fn(&Status, &Scrubbed) -> u64)];

impl Samples<'_, '_> {
    fn gauge(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        value: fn(&Status, &Scrubbed) -> f64,
    ) -> fmt::Result {
        let samples = self.logs.iter().map(|(origin, status, scrubbed)| (*origin, value(status, scrubbed)));
        let samples: Vec<_> = samples.collect();
        self.gauge_of(name, help, unit, &samples)
    }

    fn gauge_of(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        samples: &[(&str, f64)],
    ) -> fmt::Result {
        let mut metric = self.encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        for (origin, value) in samples {
            ConstGauge::new(*value).encode(metric.encode_family(&[("origin", *origin)])?)?;
        }
        Ok(())
    }

    fn counter(&mut self, name: &str, help: &str, counters: &Counters<'_>) -> fmt::Result {
        let mut metric = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (origin, status, scrubbed) in self.logs {
            for (labels, value) in counters {
                let labels: Vec<(&str, &str)> =
                    [("origin", *origin)].iter().chain(*labels).copied().collect();
                ConstCounter::new(value(status, scrubbed)).encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

fn seconds(time: UnixMillis) -> f64 {
    time.0 as f64 / 1000.0
}
