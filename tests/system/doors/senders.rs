//! What pushes events in these tests: a stock client of OTLP, and HTTP and syslog written out, so that they can also be written wrong.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

use epigraph_rpc::channel::channel;
use epigraph_rpc::v1::collector_service_client::CollectorServiceClient;
use epigraph_rpc::v1::{CollectRequest, CollectResponse};
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_client::LogsServiceClient;
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsPartialSuccess, ExportLogsServiceRequest};
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, LogsData, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message;
use serde_json::Value;
use tonic::codec::CompressionEncoding;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::support::House;

fn attribute(key: &str, value: &str) -> KeyValue {
    let value = AnyValue { value: Some(Any::StringValue(value.into())) };
    KeyValue { key: key.into(), value: Some(value), ..KeyValue::default() }
}

pub fn log_record(id: &str, event_name: &str) -> LogRecord {
    LogRecord {
        time_unix_nano: 1_793_534_400_000_000_000,
        event_name: event_name.into(),
        attributes: vec![attribute("log.record.uid", id), attribute("user.id", "jane")],
        ..LogRecord::default()
    }
}

pub fn request(log_records: Vec<LogRecord>) -> ExportLogsServiceRequest {
    let resource = Resource { attributes: vec![attribute("service.name", "shop")], ..Resource::default() };
    let scope_logs = vec![ScopeLogs { log_records, ..ScopeLogs::default() }];
    ExportLogsServiceRequest {
        resource_logs: vec![ResourceLogs { resource: Some(resource), scope_logs, ..ResourceLogs::default() }],
    }
}

/// The one record in what was kept of an event.
pub fn of_record(kept: &[u8]) -> LogRecord {
    let mut data = LogsData::decode(kept).unwrap();
    data.resource_logs.remove(0).scope_logs.remove(0).log_records.remove(0)
}

async fn send(
    channel: Channel,
    records: Vec<LogRecord>,
) -> Result<Option<ExportLogsPartialSuccess>, tonic::Status> {
    let mut client = LogsServiceClient::new(channel).send_compressed(CompressionEncoding::Gzip);
    client.export(request(records)).await.map(|response| response.into_inner().partial_success)
}

/// Sends without TLS, packed with gzip, and must be answered.
pub async fn export_all(address: &str, records: Vec<LogRecord>) -> Option<ExportLogsPartialSuccess> {
    try_export(address, records).await.unwrap()
}

pub async fn try_export(
    address: &str,
    records: Vec<LogRecord>,
) -> Result<Option<ExportLogsPartialSuccess>, tonic::Status> {
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    send(channel, records).await
}

/// Sends over TLS with a certificate of the house's CA, or with none.
pub async fn export(
    address: &str,
    house: &House,
    name: Option<&str>,
    records: Vec<LogRecord>,
) -> Result<(), Box<dyn std::error::Error>> {
    let read = |file: String| fs::read(house.path(&file)).unwrap();
    let mut tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(read("pki/ca.pem".into())))
        .domain_name("127.0.0.1");
    if let Some(name) = name {
        let identity = Identity::from_pem(read(format!("pki/{name}.pem")), read(format!("pki/{name}.key")));
        tls = tls.identity(identity);
    }
    let channel = Endpoint::from_shared(format!("https://{address}"))?.tls_config(tls)?.connect().await?;
    send(channel, records).await?;
    Ok(())
}

/// Sends these messages over Epigraph's own protocol, and waits for all answers.
pub async fn collect(
    address: &str,
    house: &House,
    name: &str,
    messages: impl Iterator<Item = &[String]>,
) -> Result<Vec<CollectResponse>, tonic::Status> {
    let door = "spiffe://epigraph.quickstart/epigraph/sender/door".parse().unwrap();
    let channel = channel(address, &house.tls_of(&format!("pki/{name}")), &door).unwrap();
    let requests: Vec<_> = (0..)
        .zip(messages)
        .map(|(number, events)| {
            let events = events.iter().map(|event| event.clone().into()).collect();
            CollectRequest { number, events }
        })
        .collect();
    let mut client = CollectorServiceClient::new(channel);
    let mut answers = client.collect(tokio_stream::iter(requests)).await?.into_inner();
    let mut all = Vec::new();
    while let Some(answer) = answers.message().await? {
        all.push(answer);
    }
    Ok(all)
}

/// What an HTTP door answered.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    #[track_caller]
    pub fn is(&self, status: u16, events: usize) {
        assert_eq!(self.status, status, "{}{}", self.head, self.body);
        let said: Value = serde_json::from_str(&self.body).unwrap();
        assert_eq!(said["events"], events, "{said}");
    }

    #[track_caller]
    pub fn refuses(&self, status: u16, why: &str) {
        assert_eq!(self.status, status, "{}{}", self.head, self.body);
        let said: Value = serde_json::from_str(&self.body).unwrap();
        assert_eq!(said["why"], why, "{said}");
    }
}

/// Posts a body with its length.
pub fn post(address: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let mut head = format!(
        "POST /events HTTP/1.1\r\nHost: door\r\nConnection: close\r\nContent-Length: {}\r\n",
        body.len()
    );
    headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    say(address, head + "\r\n", body)
}

/// Asks for a page.
pub fn get(address: &str, path: &str) -> Answer {
    say(address, format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"), b"")
}

/// Says this and hears the answer. A door may answer and hang up before it has read everything.
pub fn say(address: &str, head: String, body: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(address).unwrap();
    let mut sending = stream.try_clone().unwrap();
    let body = body.to_vec();
    let sent = std::thread::spawn(move || {
        let _ = sending.write_all(head.as_bytes()).and_then(|()| sending.write_all(&body));
    });
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    sent.join().unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
}

/// A connection of syslog.
pub struct Lines(TcpStream);

impl Lines {
    pub fn connect(address: &str) -> Lines {
        Lines(TcpStream::connect(address).unwrap())
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    /// Sends what may not be taken to its end.
    pub fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.0.write_all(bytes).is_ok()
    }
}
