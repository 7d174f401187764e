//! CloudEvents 1.0: structured mode, one event or a batch, in JSON; and binary mode, headers and data of an HTTP
//! message.

use std::collections::BTreeMap;

use super::json::{self, Tree, Value};
use super::{Context, Decoded, MAX_DOCUMENT_BYTES, Reason, Rejected, overwrite, when};
use crate::collected::Event;
use crate::segment::MAX_RECORD_BYTES;
use crate::v1::{Actor, ActorType, Category, Format, ResourceKind, ResourceName};

/// The most headers of an event in binary mode; every attribute and extension is one.
pub const MAX_HEADERS: usize = 64;

const PREFIX: &str = "ce-";

/// Decodes a body of structured mode: `application/cloudevents+json` or `application/cloudevents-batch+json`.
pub fn decode(bytes: &[u8], context: &Context) -> Vec<Decoded> {
    let format = Format::Cloudevent;
    let whole = |reason| vec![Err(Rejected::new(reason, format, 0, bytes))];
    if bytes.len() > MAX_DOCUMENT_BYTES {
        return whole(Reason::TooLarge);
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return whole(Reason::NotUtf8) };
    let decode = |record: &str, object: Value<'_>| {
        event(Event::of(context, format, "cloudevents", record.as_bytes()), object)
    };
    if !text.trim_start().starts_with('[') {
        return vec![json::record(text, 0, format, &decode)];
    }
    match serde_json::from_str(text) {
        Ok(listed) => json::records(listed, bytes, format, &decode).unwrap_or_else(whole),
        Err(_) => whole(Reason::NotJson),
    }
}

/// Decodes binary mode: the `ce-` headers and the content type in their order, and the data. The record is these
/// headers as lines, an empty line, and the data.
pub fn decode_binary(headers: &[(&str, &str)], data: &[u8], context: &Context) -> Decoded {
    let mut record = Vec::new();
    let mut attributes = BTreeMap::new();
    let mut twice = false;
    for (name, value) in headers {
        let name = name.to_ascii_lowercase();
        let attribute =
            if name == "content-type" { Some("datacontenttype") } else { name.strip_prefix(PREFIX) };
        let Some(attribute) = attribute else { continue };
        record.extend(format!("{name}: {value}\r\n").as_bytes());
        twice |= attributes.insert(attribute.to_owned(), percent_decoded(value)).is_some();
    }
    record.extend(b"\r\n");
    record.extend(data);
    let rejected = |reason| Err(Rejected::new(reason, Format::CloudeventBinary, 0, &record));
    let is_line = |value: &str| !value.contains(['\r', '\n']);
    if record.len() > MAX_RECORD_BYTES {
        return rejected(Reason::TooLarge);
    }
    if twice {
        return rejected(Reason::DuplicateKey);
    }
    if headers.len() > MAX_HEADERS || !headers.iter().all(|(name, value)| is_line(name) && is_line(value)) {
        return rejected(Reason::NotAnEvent);
    }
    let attributes = Tree::of_texts(&attributes);
    let made =
        event(Event::of(context, Format::CloudeventBinary, "cloudevents", &record), attributes.value());
    made.or_else(rejected)
}

/// What the attributes say; they are the same in every mode.
fn event(mut event: Event, object: Value<'_>) -> Result<Event, Reason> {
    let attribute = |name: &str| object.text(&[name]);
    let required = ["id", "source", "type"].map(attribute);
    if attribute("specversion") != "1.0" || required.iter().any(String::is_empty) {
        return Err(Reason::NotAnEvent);
    }
    let [id, source, kind] = required;
    event.set_source(|of| of.id = source);
    event.set_time(when::of_text(&attribute("time")));
    for label in ["datacontenttype", "dataschema", "sequence"] {
        event.label(label, attribute(label));
    }
    let core = &mut event.core;
    core.event_id = id;
    core.action = kind;
    core.category = Category::Unspecified.into();
    (core.trace_id, core.span_id) = trace(&attribute("traceparent")).unwrap_or_default();
    overwrite(&mut core.request_id, &attribute("correlationid"));
    // The auth context extension: who triggered what the event tells of.
    let actor = Actor {
        r#type: actor_type(&attribute("authtype")).into(),
        id: attribute("authid"),
        ..Actor::default()
    };
    core.actor_type = actor.r#type;
    if actor != Actor::default() {
        event.identity.actor = Some(actor);
    }
    let subject = attribute("subject");
    if !subject.is_empty() {
        event.resource(ResourceKind::default(), ResourceName { name: subject, ..ResourceName::default() });
    }
    Ok(event)
}

fn actor_type(kind: &str) -> ActorType {
    match kind {
        "app_user" | "user" => ActorType::User,
        "service_account" | "api_key" => ActorType::Service,
        "system" => ActorType::System,
        "unauthenticated" => ActorType::Anonymous,
        _ => ActorType::Unspecified,
    }
}

/// Trace and span id of a W3C `traceparent`.
pub(super) fn trace(traceparent: &str) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut parts = traceparent.split('-').skip(1);
    let (trace, span) = (parts.next()?, parts.next()?);
    if (trace.len(), span.len()) != (32, 16)
        || !(trace.bytes().chain(span.bytes())).all(|b| b.is_ascii_hexdigit())
    {
        return None;
    }
    let trace = u128::from_str_radix(trace, 16).ok()?.to_be_bytes();
    let span = u64::from_str_radix(span, 16).ok()?.to_be_bytes();
    Some((trace.to_vec(), span.to_vec()))
}

/// A header's value with its percent-encoding undone (the HTTP binding, section 3.1.3.2); as it is, if that is no text.
fn percent_decoded(value: &str) -> String {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let [first, after @ ..] = rest {
        let digits =
            after.get(..2).filter(|_| *first == b'%').and_then(|digits| std::str::from_utf8(digits).ok());
        let hex = |digits: &&str| digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        match digits.filter(hex).and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_signs_are_undone_where_they_encode() {
        let check = |value: &str, expected: &str| assert_eq!(percent_decoded(value), expected);
        check("Euro%20%E2%82%AC", "Euro €");
        check("100%", "100%");
        check("%4", "%4");
        check("%zz%+1", "%zz%+1");
        check("%ff", "%ff");
        check("%€€", "%€€");
    }

    #[test]
    fn a_traceparent_is_taken_whole_or_not_at_all() {
        let (trace_id, span_id) = trace("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").unwrap();
        assert_eq!((trace_id[0], trace_id.len(), span_id[7], span_id.len()), (0x0a, 16, 0x31, 8));
        for bad in ["", "00", "00-0af7-b7ad-01", &format!("00-+{}-b7ad6b7169203331-01", "0".repeat(31))] {
            assert_eq!(trace(bad), None, "{bad}");
        }
    }
}
