//! OpenTelemetry logs: an encoded `LogsData` or `ExportLogsServiceRequest`, which are the same bytes.
//!
//! The record of an event is a `LogsData` of its own: one `LogRecord` with its scope and its resource, each part
//! verbatim, fields that nobody here knows included. Field names are those of OpenTelemetry's semantic conventions.

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, LogsData};
use prost::Message;
use prost::encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint};

use super::{Context, Decoded, MAX_DOCUMENT_BYTES, MAX_RECORDS, Reason, Rejected, overwrite, when};
use crate::collected::Event;
use crate::segment::MAX_RECORD_BYTES;
use crate::v1::{
    Actor, ActorType, Category, Format, ResourceKind, ResourceName, Result as Outcome, Severity,
};

/// The most bytes that the records of one document have together once each carries its own resource and scope. Without
/// it a document of one large resource and many small records would grow without measure.
pub const MAX_UNFOLDED_BYTES: usize = 4 * MAX_DOCUMENT_BYTES;

// Field numbers of opentelemetry/proto/logs/v1/logs.proto. Lists of records, scopes and resources have these alike.
const RESOURCE_LOGS: u32 = 1;
const SHARED: u32 = 1;
const LIST: u32 = 2;
const SCHEMA_URL: u32 = 3;

/// Decodes a document.
pub fn decode(bytes: &[u8], context: &Context) -> Vec<Decoded> {
    let whole = |reason| vec![Err(Rejected::new(reason, Format::OtlpLog, 0, bytes))];
    if bytes.len() > MAX_DOCUMENT_BYTES {
        return whole(Reason::TooLarge);
    }
    let records = match unfold(bytes) {
        Ok(records) => records,
        Err(reason) => return whole(reason),
    };
    let rejected = |reason, offset, record: &[u8]| Rejected::new(reason, Format::OtlpLog, offset, record);
    let decode = |(offset, record): (usize, Vec<u8>)| {
        if record.len() > MAX_RECORD_BYTES {
            return Err(rejected(Reason::TooLarge, offset, &record));
        }
        event(&record, context).map_err(|reason| rejected(reason, offset, &record))
    };
    records.into_iter().map(decode).collect()
}

/// Takes a document apart into one for each of its records, with the record's place in it.
fn unfold(document: &[u8]) -> Result<Vec<(usize, Vec<u8>)>, Reason> {
    let start = document.as_ptr() as usize;
    let (mut records, mut total) = (Vec::new(), 0);
    for resource_logs in of(RESOURCE_LOGS, document)? {
        let resource = shared(resource_logs)?;
        for scope_logs in of(LIST, resource_logs)? {
            let scope = shared(scope_logs)?;
            for record in of(LIST, scope_logs)? {
                let mut inner = scope.clone();
                put(LIST, record, &mut inner);
                let mut outer = resource.clone();
                put(LIST, &inner, &mut outer);
                let mut unfolded = Vec::new();
                put(RESOURCE_LOGS, &outer, &mut unfolded);
                total += unfolded.len();
                if total > MAX_UNFOLDED_BYTES {
                    return Err(Reason::TooLarge);
                }
                if records.len() == MAX_RECORDS {
                    return Err(Reason::TooManyRecords);
                }
                records.push(((record.as_ptr() as usize).saturating_sub(start), unfolded));
            }
        }
    }
    Ok(records)
}

/// What the records of a list have in common, verbatim: the resource or scope, and the URL of its schema.
fn shared(message: &[u8]) -> Result<Vec<u8>, Reason> {
    let mut bytes = Vec::new();
    for number in [SHARED, SCHEMA_URL] {
        of(number, message)?.into_iter().for_each(|field| put(number, field, &mut bytes));
    }
    Ok(bytes)
}

/// The fields of this number in a message, each a message or text itself; at most [`MAX_RECORDS`].
fn of(number: u32, mut message: &[u8]) -> Result<Vec<&[u8]>, Reason> {
    let rest = &mut message;
    let mut found = Vec::new();
    while !rest.is_empty() {
        let (tag, wire_type) = decode_key(rest).map_err(|_| Reason::NotProtobuf)?;
        let length = match wire_type {
            WireType::Varint => {
                decode_varint(rest).map_err(|_| Reason::NotProtobuf)?;
                0
            }
            WireType::ThirtyTwoBit => 4,
            WireType::SixtyFourBit => 8,
            WireType::LengthDelimited => decode_varint(rest).map_err(|_| Reason::NotProtobuf)?,
            WireType::StartGroup | WireType::EndGroup => return Err(Reason::NotProtobuf),
        };
        let length = usize::try_from(length).map_err(|_| Reason::NotProtobuf)?;
        let (field, after) = rest.split_at_checked(length).ok_or(Reason::NotProtobuf)?;
        *rest = after;
        if tag == number && wire_type == WireType::LengthDelimited {
            if found.len() == MAX_RECORDS {
                return Err(Reason::TooManyRecords);
            }
            found.push(field);
        }
    }
    Ok(found)
}

fn put(number: u32, field: &[u8], message: &mut Vec<u8>) {
    encode_key(number, WireType::LengthDelimited, message);
    encode_varint(field.len() as u64, message);
    message.extend(field);
}

fn event(bytes: &[u8], context: &Context) -> Result<Event, Reason> {
    let mut data = LogsData::decode(bytes).map_err(|_| Reason::NotProtobuf)?;
    let mut resource_logs = data.resource_logs.pop().unwrap_or_default();
    let mut scope_logs = resource_logs.scope_logs.pop().unwrap_or_default();
    let record = scope_logs.log_records.pop().unwrap_or_default();
    let resource = resource_logs.resource.unwrap_or_default().attributes;
    if has_twice(&record.attributes) || has_twice(&resource) {
        return Err(Reason::DuplicateKey);
    }
    let attribute = |names: &[&str]| find(&record.attributes, names);
    let about = |names: &[&str]| find(&resource, names);

    let mut event = Event::of(context, Format::OtlpLog, "otlp", bytes);
    event.set_source(|source| {
        overwrite(&mut source.id, &about(&["service.name"]));
        overwrite(&mut source.instance, &about(&["service.instance.id", "host.name"]));
        source.region = about(&["cloud.region"]);
    });
    event.set_time(time(&record));
    event.label("scope", scope_logs.scope.unwrap_or_default().name);
    event.label("severity", record.severity_text.clone());
    let core = &mut event.core;
    core.event_id = attribute(&["log.record.uid", "event.id"]);
    overwrite(&mut core.tenant, &about(&["tenant.id", "cloud.account.id"]));
    core.action.clone_from(&record.event_name);
    if core.action.is_empty() {
        core.action = attribute(&["event.name", "event.action"]);
    }
    core.category = Category::Unspecified.into();
    core.severity = severity(record.severity_number).into();
    core.result = match attribute(&["event.outcome", "outcome"]).as_str() {
        "success" => Outcome::Success,
        "failure" => Outcome::Failure,
        "denied" => Outcome::Denied,
        _ => Outcome::Unspecified,
    }
    .into();
    core.result_code = attribute(&["http.response.status_code", "error.type"]);
    core.request_id = attribute(&["request.id", "http.request.id"]);
    // Ids of other lengths are invalid by the protocol and count as none.
    core.trace_id = Some(record.trace_id).filter(|id| id.len() == 16).unwrap_or_default();
    core.span_id = Some(record.span_id).filter(|id| id.len() == 8).unwrap_or_default();

    let find = |names: &[&str]| find(&record.attributes, names);
    let (id, name) = (find(&["user.id", "enduser.id"]), find(&["user.name", "user.full_name"]));
    let session = find(&["session.id"]);
    if [&id, &name, &session].into_iter().any(|text| !text.is_empty()) {
        let groups = record.attributes.iter().find(|attribute| attribute.key == "user.roles");
        let groups = groups.and_then(|groups| groups.value.as_ref()).map(texts).unwrap_or_default();
        let r#type = ActorType::Unspecified.into();
        event.identity.actor = Some(Actor { r#type, id, name, groups, session, ..Actor::default() });
    }
    event.identity.user_agent = find(&["user_agent.original"]);
    let address = find(&["client.address", "source.address"]);
    event.identity.addresses.extend(Some(address).filter(|address| !address.is_empty()));
    let (kind, id) = (find(&["resource.type"]), find(&["resource.id"]));
    if !kind.is_empty() || !id.is_empty() {
        let kind = ResourceKind { r#type: kind, ..ResourceKind::default() };
        event.resource(kind, ResourceName { id, ..ResourceName::default() });
    }
    Ok(event)
}

fn time(record: &LogRecord) -> (i64, crate::v1::TimeFrom) {
    let nanos = match record.time_unix_nano {
        0 => record.observed_time_unix_nano,
        nanos => nanos,
    };
    i64::try_from(nanos).map_or((0, crate::v1::TimeFrom::Unreadable), |nanos| when::of_number(nanos, 1))
}

fn severity(number: i32) -> Severity {
    match number {
        1..=12 => Severity::Informational,
        13..=16 => Severity::Medium,
        17..=20 => Severity::High,
        21..=24 => Severity::Fatal,
        _ => Severity::Unspecified,
    }
}

fn has_twice(attributes: &[KeyValue]) -> bool {
    let mut keys: Vec<_> = attributes.iter().map(|attribute| attribute.key.as_str()).collect();
    keys.sort_unstable();
    keys.windows(2).any(|pair| pair[0] == pair[1])
}

/// The first of these attributes that is there, as a text.
fn find(attributes: &[KeyValue], names: &[&str]) -> String {
    let find = |name: &&str| attributes.iter().find(|attribute| attribute.key == *name);
    let mut texts = names.iter().filter_map(find).filter_map(|attribute| attribute.value.as_ref()).map(text);
    texts.find(|text| !text.is_empty()).unwrap_or_default()
}

fn text(value: &AnyValue) -> String {
    match &value.value {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(truth)) => truth.to_string(),
        _ => String::new(),
    }
}

fn texts(value: &AnyValue) -> Vec<String> {
    match &value.value {
        Some(Value::ArrayValue(array)) => {
            array.values.iter().map(text).filter(|text| !text.is_empty()).collect()
        }
        _ => Some(text(value)).filter(|text| !text.is_empty()).into_iter().collect(),
    }
}
