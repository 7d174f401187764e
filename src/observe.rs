//! What the program says while it runs: messages on standard error, and the spans of calls and batches for whoever keeps
//! traces. It does not know what is said; the roles say it.

mod json;
mod otlp;

use std::env;
use std::str::FromStr;
use std::sync::Arc;

use epigraph_core::Entropy;
use epigraph_rpc::TraceParent;
use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, TraceContextExt, TraceFlags, TraceState, TracerProvider};
use serde::Deserialize;
use tracing::{Metadata, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use crate::failure::{Failure, Outcome};
use crate::metrics::Spans;
use json::SpanFields;
use otlp::{Endpoint, Exporting};

/// The filter of messages, above what the configuration says: `debug`, or `epigraph_rpc=trace`.
const FILTER_VARIABLE: &str = "EPIGRAPH_LOG";

const DEFAULT_FILTER: &str = "info";

/// Every target of ours begins so: spans of libraries may carry anything.
const TARGETS: &str = "epigraph";

/// The `[tracing]` table of a configuration.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct RawTracing {
    format: Option<Format>,
    filter: Option<String>,
    otlp_endpoint: Option<String>,
    sample_ratio: Option<f64>,
}

/// How messages are written.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Format {
    Text,
    Json,
}

/// The checked `[tracing]` table.
#[derive(Clone)]
pub struct Tracing {
    format: Option<Format>,
    filter: String,
    otlp: Option<Otlp>,
}

/// Where traces go.
#[derive(Clone)]
struct Otlp {
    endpoint: Endpoint,
    /// Of the calls that come without a trace.
    sample_ratio: f64,
}

impl RawTracing {
    pub fn check(self) -> Result<Tracing, String> {
        let filter = self.filter.unwrap_or_else(|| DEFAULT_FILTER.into());
        EnvFilter::from_str(&filter).map_err(|error| format!("[tracing] filter: {error}"))?;
        let ratio = self.sample_ratio.unwrap_or(1.0);
        if !(0.0..=1.0).contains(&ratio) {
            return Err("[tracing] sample_ratio is 0 to 1".into());
        }
        let otlp = match self.otlp_endpoint {
            Some(endpoint) => Some(Otlp { endpoint: endpoint.parse()?, sample_ratio: ratio }),
            None if self.sample_ratio.is_some() => {
                return Err("[tracing] sample_ratio says how many traces are exported, but there is no otlp_endpoint to export them to".into());
            }
            None => None,
        };
        Ok(Tracing { format: self.format, filter, otlp })
    }
}

/// Messages to standard error, as a command wants them that has no configuration of its own.
pub fn to_stderr(json: bool) {
    subscribe(&filter(DEFAULT_FILTER), json);
}

/// Messages and traces as a configuration wants them.
pub fn start(tracing: &Tracing, json: bool, entropy: Arc<dyn Entropy>) -> Outcome<Observing> {
    let filter = filter(&tracing.filter);
    let json = tracing.format.map_or(json, |format| format == Format::Json);
    let spans = Spans::new();
    let Some(otlp) = &tracing.otlp else {
        subscribe(&filter, json);
        return Ok(Observing { spans, exporting: None });
    };
    let (provider, exporting) = otlp::start(&otlp.endpoint, otlp.sample_ratio, entropy, &spans)
        .map_err(|error| Failure::usage(format!("[tracing] otlp_endpoint: {error}")))?;
    let traces = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("epigraph"))
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_tracked_inactivity(false)
        .with_filter(filter_fn(is_traced).with_max_level_hint(LevelFilter::DEBUG));
    let messages = fmt::layer().with_writer(std::io::stderr).with_target(false);
    let registry = tracing_subscriber::registry().with(traces);
    let filter = EnvFilter::new(filter);
    if json {
        registry.with(messages.json().fmt_fields(SpanFields).with_filter(filter)).init();
    } else {
        registry.with(messages.with_ansi(false).with_filter(filter)).init();
    }
    Ok(Observing { spans, exporting: Some(exporting) })
}

/// Spans of ours, and no messages: those may quote what a stranger sent.
fn is_traced(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && metadata.target().starts_with(TARGETS)
}

/// Nothing but messages: one filter for all is cheaper than one for each layer, and a bare level, which is what most
/// processes have, than a filter that looks at each step of each span.
fn subscribe(filter: &str, json: bool) {
    let messages = fmt::Subscriber::builder().with_writer(std::io::stderr).with_target(false);
    match (filter.parse::<LevelFilter>(), json) {
        (Ok(level), true) => messages.json().fmt_fields(SpanFields).with_max_level(level).init(),
        (Ok(level), false) => messages.with_ansi(false).with_max_level(level).init(),
        (Err(_), true) => messages.json().fmt_fields(SpanFields).with_env_filter(filter).init(),
        (Err(_), false) => messages.with_ansi(false).with_env_filter(filter).init(),
    }
}

/// What the environment says, if that is a filter.
fn filter(configured: &str) -> String {
    let said = env::var(FILTER_VARIABLE).ok().filter(|said| EnvFilter::from_str(said).is_ok());
    said.unwrap_or_else(|| configured.to_owned())
}

/// What is being observed until the process ends.
pub struct Observing {
    /// What became of the spans.
    pub spans: Spans,
    exporting: Option<Exporting>,
}

impl Observing {
    /// Sends what is still to be sent, within a bound. Blocks.
    pub fn finish(self) {
        if let Some(exporting) = self.exporting {
            exporting.finish();
        }
    }
}

/// Lets a call's span be part of its caller's trace. Where no traces are kept there is nothing to join.
pub fn join(span: &Span, trace: TraceParent) {
    let flags = if trace.sampled { TraceFlags::SAMPLED } else { TraceFlags::NOT_SAMPLED };
    let (trace_id, span_id) = (trace.trace_id.into(), trace.span_id.into());
    let caller = SpanContext::new(trace_id, span_id, flags, true, TraceState::NONE);
    let _ = span.set_parent(Context::new().with_remote_span_context(caller));
}

/// The trace that a command is run in, if its environment names one, as the OpenTelemetry specification wants it.
pub fn of_environment() -> Option<TraceParent> {
    TraceParent::parse(&env::var("TRACEPARENT").ok()?)
}
