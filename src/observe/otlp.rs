//! Traces on their way to a collector: spans that end go into a bounded queue, and a thread of its own sends them by OTLP
//! over gRPC. What finds no place there is counted and gone: nothing that is observed waits for its observer.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, mpsc as blocking};
use std::thread;
use std::time::Duration;

use epigraph_core::Entropy;
use hyper::Uri;
use opentelemetry::trace::{SpanId, SpanKind, TraceId};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter as OtlpExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    IdGenerator, Sampler, SdkTracerProvider, Span, SpanData, SpanExporter, SpanProcessor,
};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::metrics::Spans;
use crate::runtime;

/// Spans that wait to be sent: some seconds of a busy log, in about 4 MiB.
const QUEUE: usize = 8_192;

/// Spans in one request, of about 400 bytes each: far below the 4 MiB that a collector takes.
const BATCH: usize = 512;

/// How long a span waits for company.
const LINGER: Duration = Duration::from_secs(1);

/// How long one request may take, connecting included.
const EXPORT_TIME: Duration = Duration::from_secs(5);

/// How long the end of the process waits for the spans that are left.
const FLUSH_TIME: Duration = Duration::from_secs(3);

/// The name of the span of a call, which the caller's own span waits for.
const CALL: &str = "call";

/// Where a collector listens: `http://host:port`.
#[derive(Clone)]
pub(super) struct Endpoint(String);

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Endpoint, String> {
        let bad = |why: &str| {
            format!(
                "[tracing] otlp_endpoint {text:?}: {why}. Write http://host:port, with a collector on this machine or \
                 a network of your own; it can send traces on with TLS"
            )
        };
        let uri: Uri = text.parse().map_err(|_| bad("this is no URL"))?;
        if uri.scheme_str() != Some("http") {
            return Err(bad("traces are sent as plain gRPC, without TLS"));
        }
        if uri.host().is_none() || uri.port_u16().is_none() || !matches!(uri.path(), "" | "/") {
            return Err(bad("it is a host and a port, and no path"));
        }
        Ok(Endpoint(text.into()))
    }
}

/// The exporting thread.
pub(super) struct Exporting {
    stop: oneshot::Sender<()>,
    ended: blocking::Receiver<()>,
}

impl Exporting {
    /// Sends what is in the queue, for at most [`FLUSH_TIME`].
    pub(super) fn finish(self) {
        drop(self.stop);
        // It is told apart nowhere whether it ended or its time was over: what was lost is lost.
        let _ = self.ended.recv_timeout(FLUSH_TIME);
    }
}

/// Starts the thread. It connects when there is something to send, and as often as it takes.
pub(super) fn start(
    endpoint: &Endpoint,
    sample_ratio: f64,
    entropy: Arc<dyn Entropy>,
    spans: &Spans,
) -> Result<(SdkTracerProvider, Exporting), String> {
    let (queue, queued) = mpsc::channel(QUEUE);
    let (stop, stopped) = oneshot::channel();
    let (end, ended) = blocking::channel();
    let (tell_ready, ready) = blocking::channel();
    let (url, counted) = (endpoint.0.clone(), spans.clone());
    let work = move || {
        let prepared = runtime::runtime().map_err(|error| error.to_string()).and_then(|runtime| {
            // The connection belongs to the runtime that it is made in.
            let entered = runtime.enter();
            let exporter =
                OtlpExporter::builder().with_tonic().with_endpoint(&url).with_timeout(EXPORT_TIME).build();
            drop(entered);
            Ok((runtime, exporter.map_err(|error| error.to_string())?))
        });
        let (runtime, exporter) = match prepared {
            Ok(prepared) => {
                let _ = tell_ready.send(Ok(()));
                prepared
            }
            Err(error) => return drop(tell_ready.send(Err(error))),
        };
        runtime.block_on(export(exporter, &url, queued, stopped, &counted));
        drop(end);
    };
    thread::Builder::new().name("otlp".into()).spawn(work).map_err(|error| error.to_string())?;
    ready.recv().map_err(|_| "its thread has ended".to_owned())??;
    let provider = SdkTracerProvider::builder()
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(sample_ratio))))
        .with_id_generator(Ids(entropy))
        .with_span_processor(Queue { queue, spans: spans.clone() })
        .build();
    Ok((provider, Exporting { stop, ended }))
}

/// Sends batch after batch until it is told to stop and the queue is empty.
async fn export(
    mut exporter: OtlpExporter,
    url: &str,
    mut queued: mpsc::Receiver<SpanData>,
    stopped: oneshot::Receiver<()>,
    spans: &Spans,
) {
    let name = KeyValue::new("service.name", "epigraph");
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    exporter.set_resource(&Resource::builder_empty().with_attributes([name, version]).build());
    let mut failing = false;
    let sending = async |batch: Vec<SpanData>, failing: &mut bool| {
        let count = batch.len() as u64;
        match timeout(EXPORT_TIME, exporter.export(batch)).await {
            Ok(Ok(())) => {
                spans.exported.inc_by(count);
                if std::mem::take(failing) {
                    tracing::info!(endpoint = url, "traces are exported again");
                }
            }
            failed => {
                spans.export_failed.inc_by(count);
                if !std::mem::replace(failing, true) {
                    let why = match failed {
                        Ok(Err(error)) => error.to_string(),
                        _ => format!("no answer in {} s", EXPORT_TIME.as_secs()),
                    };
                    tracing::warn!(endpoint = url, %why, "traces cannot be exported and are lost; is a collector there?");
                }
            }
        }
    };
    let mut stopped = std::pin::pin!(stopped);
    loop {
        let mut batch = Vec::new();
        let filling = async {
            queued.recv_many(&mut batch, BATCH).await;
            let _ = timeout(LINGER, fill(&mut queued, &mut batch)).await;
        };
        let stopping = tokio::select! {
            biased;
            _ = &mut stopped => true,
            () = filling => false,
        };
        if !stopping {
            sending(batch, &mut failing).await;
            continue;
        }
        queued.close();
        while !batch.is_empty() || !queued.is_empty() {
            fill(&mut queued, &mut batch).await;
            sending(std::mem::take(&mut batch), &mut failing).await;
        }
        return;
    }
}

/// Takes from the queue until the batch is full or the queue has ended.
async fn fill(queued: &mut mpsc::Receiver<SpanData>, batch: &mut Vec<SpanData>) {
    let mut missing = BATCH.saturating_sub(batch.len());
    while missing > 0 && queued.recv_many(batch, missing).await > 0 {
        missing = BATCH.saturating_sub(batch.len());
    }
}

/// Where spans go when they end.
#[derive(Debug)]
struct Queue {
    queue: mpsc::Sender<SpanData>,
    spans: Spans,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _span: &mut Span, _context: &Context) {}

    fn on_end(&self, mut span: SpanData) {
        if span.name == CALL {
            span.span_kind = SpanKind::Server;
        }
        if self.queue.try_send(span).is_err() {
            self.spans.queue_full.inc();
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// Ids of traces and spans from the one source of randomness.
struct Ids(Arc<dyn Entropy>);

impl Ids {
    fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.fill(&mut bytes);
        bytes
    }
}

impl IdGenerator for Ids {
    fn new_trace_id(&self) -> TraceId {
        TraceId::from_bytes(self.bytes())
    }

    fn new_span_id(&self) -> SpanId {
        SpanId::from_bytes(self.bytes())
    }
}

impl fmt::Debug for Ids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ids")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry::trace::{Span as _, Tracer, TracerProvider};

    #[test]
    fn a_span_that_finds_the_queue_full_is_counted_and_waits_for_nobody() {
        let (queue, mut queued) = mpsc::channel(2);
        let spans = Spans::new();
        let provider =
            SdkTracerProvider::builder().with_span_processor(Queue { queue, spans: spans.clone() }).build();
        let tracer = provider.tracer("test");
        for name in ["call", "batch", "tree", "sign"] {
            tracer.start(name).end();
        }
        assert_eq!(spans.queue_full.get(), 2);
        let kept = [queued.try_recv().unwrap(), queued.try_recv().unwrap()];
        assert_eq!(kept.each_ref().map(|span| &*span.name), ["call", "batch"]);
        assert_eq!(kept.each_ref().map(|span| &span.span_kind), [&SpanKind::Server, &SpanKind::Internal]);
    }

    #[test]
    fn an_endpoint_is_a_host_and_a_port_without_tls() {
        let check = |text: &str, fine: bool| assert_eq!(text.parse::<Endpoint>().is_ok(), fine, "{text}");
        for text in ["http://127.0.0.1:4317", "http://collector.internal:4317/", "http://[::1]:4317"] {
            check(text, true);
        }
        for text in [
            "",
            "http://",
            "collector:4317",
            "https://c:4317",
            "http://c",
            "http://c:4317/v1/traces",
            "http://c:99999",
        ] {
            check(text, false);
        }
    }
}
