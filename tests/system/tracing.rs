//! Finding a call again: request ids in answers, refusals and messages; traces at a collector; and a log that does not care
//! whether the collector is there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::sync::mpsc as blocking;
use std::thread;
use std::time::Duration;

use epigraph_rpc::v1;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::metrics::{get, sample};
use crate::support::{House, Serving, block_on, command};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// Nothing that is tested takes so long; a collector that hears nothing fails the test instead of stopping it.
const PATIENCE: Duration = Duration::from_secs(60);

/// An OTLP collector of this process that keeps what it hears.
struct Collector {
    address: String,
    heard: blocking::Receiver<Span>,
}

struct Heard(blocking::Sender<Span>);

#[tonic::async_trait]
impl TraceService for Heard {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for resource in request.into_inner().resource_spans {
            let attributes = resource.resource.unwrap().attributes;
            let names: BTreeSet<_> = attributes.iter().map(|attribute| attribute.key.as_str()).collect();
            assert_eq!(names, ["service.name", "service.version"].into());
            let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            spans.for_each(|span| drop(self.0.send(span)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    fn start() -> Collector {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (tell, heard) = blocking::channel();
        thread::spawn(move || {
            block_on(async {
                let incoming = TcpIncoming::from(tokio::net::TcpListener::from_std(listener).unwrap());
                let service = TraceServiceServer::new(Heard(tell));
                Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
            });
        });
        Collector { address, heard }
    }

    /// What it heard up to and with a span that is looked for.
    fn until(&self, found: impl Fn(&Span) -> bool) -> Vec<Span> {
        let mut spans = Vec::new();
        loop {
            let span = self.heard.recv_timeout(PATIENCE).unwrap();
            let last = found(&span);
            spans.push(span);
            if last {
                return spans;
            }
        }
    }
}

fn attributes(span: &Span) -> BTreeMap<String, String> {
    let text = |value: Option<Value>| match value {
        Some(Value::StringValue(text)) => text,
        other => format!("{other:?}"),
    };
    let pairs = span.attributes.iter();
    pairs.map(|pair| (pair.key.clone(), text(pair.value.clone().and_then(|value| value.value)))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn export_to(house: &House, address: &str) {
    let table = format!("[tracing]\notlp_endpoint = \"http://{address}\"\n\n[[log]]");
    house.edit("log.toml", "[[log]]", &table);
}

/// Appends an entry under a request id and in a trace.
fn append(house: &House, serving: &Serving, id: &str, sampled: bool, entry: &'static [u8]) {
    block_on(async {
        let entries = vec![entry.into()];
        let wait = v1::Wait::Published.into();
        let request = v1::AppendRequest { entries, wait, ..Default::default() };
        let mut request = Request::new(request);
        request.metadata_mut().insert("x-request-id", id.parse().unwrap());
        let traceparent = format!("00-{TRACE}-{PARENT}-0{}", u8::from(sampled));
        request.metadata_mut().insert("traceparent", traceparent.parse().unwrap());
        let answer = house.raw_client(serving).append(request).await.unwrap();
        assert_eq!(answer.metadata().get("x-request-id").unwrap(), id);
    });
}

#[test]
fn a_call_is_found_at_the_collector_by_its_request_id_and_in_its_caller_s_trace() {
    let (house, collector) = (House::new(), Collector::start());
    export_to(&house, &collector.address);
    let serving = house.serve();
    append(&house, &serving, "not-sampled", false, b"kept to ourselves");
    append(&house, &serving, "job-7", true, b"a secret that no span may have");
    let is_call = |span: &Span| attributes(span).get("request_id").is_some_and(|id| id == "job-7");
    let mut spans = collector.until(is_call);

    let call = spans.last().unwrap();
    assert_eq!((hex(&call.trace_id).as_str(), hex(&call.parent_span_id).as_str()), (TRACE, PARENT));
    let told = attributes(call);
    assert_eq!(told["rpc"], "epigraph.v1.LogService/Append");
    assert_eq!(told["peer"], "spiffe://epigraph.quickstart/epigraph/appender/quickstart");
    assert_eq!(told["code"], "OK");
    assert!(told.contains_key("duration_ms"), "{told:?}");
    assert_eq!(call.kind, 2, "a server's span");

    // What is left is sent before the process ends.
    append(&house, &serving, "the-last", true, b"x");
    serving.stop();
    spans.extend(collector.heard.try_iter());
    assert!(spans.iter().any(|span| attributes(span).get("request_id").is_some_and(|id| id == "the-last")));
    for name in ["batch", "tree", "sign", "publish"] {
        let span = spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("no {name}"));
        assert_eq!(attributes(span)["log"], house.origin().as_str());
        assert!(span.parent_span_id.is_empty(), "{span:?}");
    }
    let all = format!("{spans:?}");
    assert!(!all.contains("not-sampled") && !all.contains("secret"), "{all}");
    // Spans, and no messages.
    assert!(spans.iter().all(|span| span.events.is_empty()), "{all}");
}

#[test]
fn a_collector_that_is_not_there_changes_nothing_but_a_counter_and_a_warning() {
    let house = House::new();
    // Nobody listens where somebody has just stopped listening.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    export_to(&house, &nobody);
    let serving = house.serve();
    for id in ["one", "two", "three"] {
        append(&house, &serving, id, true, b"x");
    }
    let lost = || {
        let text = get(&serving, "/metrics", 200);
        assert_eq!(sample(&text, "epigraph_exported_spans_total", ""), 0.0);
        sample(&text, "epigraph_lost_spans_total", "why=\"export_failed\"")
    };
    // It takes the second for which a span waits for company.
    let again = |_| append(&house, &serving, "again", true, b"x");
    assert!((0..100_000).map(again).any(|()| lost() > 0.0), "nothing was counted");
    let ended = serving.stop();
    assert_eq!(ended.err.matches("traces cannot be exported").count(), 1, "{ended}");
}

#[test]
fn a_refusal_and_the_messages_about_it_have_one_id_in_text_and_in_json() {
    let house = House::new();
    house.edit("log.toml", "roles = [\"appender\", \"reader\"]", "roles = [\"reader\"]");
    let check = |format: &str, in_message: &dyn Fn(&str) -> String| {
        house.edit("log.toml", "[[log]]", &format!("[tracing]\nformat = \"{format}\"\n\n[[log]]"));
        let serving = house.serve();
        let refused =
            house.call("prove", &[&"99", &"--leaf-hash", &"0".repeat(64), &"--out", &house.outside("none")]);
        let id = refused.err.split_once(", request ").unwrap_or_else(|| panic!("{refused}")).1;
        let id = id.split_once(')').unwrap().0.to_owned();
        assert!(id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");

        // A call that is refused at the gate is a message.
        let said = block_on(async {
            house.raw_client(&serving).append(v1::AppendRequest::default()).await.unwrap_err()
        });
        let id = said.metadata().get("x-request-id").unwrap().to_str().unwrap().to_owned();
        let ended = serving.stop();
        let line = ended.err.lines().find(|line| line.contains("call refused")).unwrap();
        assert!(line.contains(&in_message(&id)), "{line}");
        house.edit("log.toml", &format!("[tracing]\nformat = \"{format}\"\n\n"), "");
    };
    check("text", &|id| format!("call{{request_id={id} rpc=\"epigraph.v1.LogService/Append\" peer="));
    check("json", &|id| format!("\"request_id\":\"{id}\""));
}

#[test]
fn a_command_joins_the_trace_that_its_environment_names() {
    let (house, collector) = (House::new(), Collector::start());
    export_to(&house, &collector.address);
    let serving = house.serve();
    let profile = house.path("");
    let ended = command(&[&"checkpoint", &"--profile", &profile])
        .env("TRACEPARENT", format!("00-{TRACE}-{PARENT}-01"))
        .output()
        .unwrap();
    assert!(ended.status.success());
    let spans = collector.until(|span| span.name == "call" && hex(&span.trace_id) == TRACE);
    assert_eq!(hex(&spans.last().unwrap().parent_span_id), PARENT);
    serving.stop();
}

#[test]
fn the_table_is_checked_before_anything_is_opened() {
    let check = |table: &str, says: &str| {
        let house = House::new();
        house.edit("log.toml", "[[log]]", &format!("[tracing]\n{table}\n\n[[log]]"));
        house.serve_refused(2, &["[tracing]", says]);
    };
    check("otlp_endpoint = \"https://127.0.0.1:4317\"", "without TLS");
    check("otlp_endpoint = \"127.0.0.1:4317\"", "http://host:port");
    check("otlp_endpoint = \"http://127.0.0.1\"", "a host and a port");
    check("otlp_endpoint = \"http://127.0.0.1:4317/v1/traces\"", "no path");
    check("otlp_endpoint = \"http://127.0.0.1:4317\"\nsample_ratio = 1.5", "0 to 1");
    check("sample_ratio = 0.5", "no otlp_endpoint");
    check("filter = \"=loud=\"", "filter");
}
