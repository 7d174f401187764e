//! JSON of no known shape, one object a line: a mapping says where the fields of an event are.

use serde::Deserialize;
use serde_json::Number;

use super::json::{self, Value};
use super::{Context, Decoded, Reason, Rejected, overwrite, when};
use crate::collected::Event;
use crate::v1::{
    Actor, ActorType, Format, Operation, ResourceKind, ResourceName, Result as Outcome, TimeFrom,
};

/// Where the fields of an event are in a record, each as a JSON pointer (RFC 6901) such as `/user/name`. A field
/// without one is left empty; the record has everything.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mapping {
    /// The event's id.
    pub event_id: Option<String>,
    /// When it happened.
    pub time: Option<String>,
    /// How the time is written.
    pub time_format: TimeFormat,
    /// Whose event it is.
    pub tenant: Option<String>,
    /// Which source wrote it.
    pub source: Option<String>,
    /// What was done. A record without it is refused if a place for it is given.
    pub action: Option<String>,
    /// The outcome: `success`, `failure` or `denied`, or a word that means one of them.
    pub result: Option<String>,
    /// The source's code of the outcome.
    pub result_code: Option<String>,
    /// The id of who did it.
    pub actor_id: Option<String>,
    /// The name of who did it.
    pub actor_name: Option<String>,
    /// From where.
    pub address: Option<String>,
    /// What the client said it is.
    pub user_agent: Option<String>,
    /// The kind of thing that was acted on.
    pub resource_type: Option<String>,
    /// The id of the thing that was acted on.
    pub resource_id: Option<String>,
    /// By which id other records of the same request are found.
    pub request_id: Option<String>,
}

/// How a time is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeFormat {
    /// As `2024-07-30T21:53:13Z`.
    #[default]
    Rfc3339,
    /// Whole seconds since 1970.
    UnixSeconds,
    /// Milliseconds since 1970.
    UnixMillis,
    /// Nanoseconds since 1970.
    UnixNanos,
}

/// Decodes one record.
pub fn decode(bytes: &[u8], mapping: &Mapping, context: &Context) -> Vec<Decoded> {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return vec![Err(Rejected::new(Reason::NotUtf8, Format::Json, 0, bytes))];
    };
    let decode = |record: &str, object: Value<'_>| event(record, object, mapping, context);
    vec![json::record(text, 0, Format::Json, &decode)]
}

fn event(record: &str, object: Value<'_>, mapping: &Mapping, context: &Context) -> Result<Event, Reason> {
    let value = |pointer: &Option<String>| object.pointer(pointer.as_deref()?);
    let text = |pointer: &Option<String>| value(pointer).map(Value::scalar).unwrap_or_default();
    let mut event = Event::of(context, Format::Json, "json", record.as_bytes());
    event.set_time(time(value(&mapping.time), mapping.time_format));
    event.set_source(|source| overwrite(&mut source.id, &text(&mapping.source)));
    let core = &mut event.core;
    core.event_id = text(&mapping.event_id);
    overwrite(&mut core.tenant, &text(&mapping.tenant));
    core.action = text(&mapping.action);
    if mapping.action.is_some() && core.action.is_empty() {
        return Err(Reason::NotAnEvent);
    }
    core.operation = Operation::Unspecified.into();
    core.result = result(&text(&mapping.result)).into();
    core.result_code = text(&mapping.result_code);
    core.request_id = text(&mapping.request_id);
    let (id, name) = (text(&mapping.actor_id), text(&mapping.actor_name));
    if !id.is_empty() || !name.is_empty() {
        let actor = Actor { r#type: ActorType::Unspecified.into(), id, name, ..Actor::default() };
        event.identity.actor = Some(actor);
    }
    event.identity.user_agent = text(&mapping.user_agent);
    event.identity.addresses.extend(Some(text(&mapping.address)).filter(|text| !text.is_empty()));
    let (kind, id) = (text(&mapping.resource_type), text(&mapping.resource_id));
    if !kind.is_empty() || !id.is_empty() {
        let kind = ResourceKind { r#type: kind, ..ResourceKind::default() };
        event.resource(kind, ResourceName { id, ..ResourceName::default() });
    }
    Ok(event)
}

fn time(value: Option<Value<'_>>, format: TimeFormat) -> (i64, TimeFrom) {
    let Some(value) = value.filter(|value| !value.is_null()) else { return (0, TimeFrom::Missing) };
    let per_unit = match format {
        TimeFormat::Rfc3339 => return when::of_text(&value.scalar()),
        TimeFormat::UnixSeconds => 1_000_000_000,
        TimeFormat::UnixMillis => 1_000_000,
        TimeFormat::UnixNanos => 1,
    };
    let number = value.number().and_then(Number::as_i64).or_else(|| value.string()?.parse().ok());
    number.map_or((0, TimeFrom::Unreadable), |number| when::of_number(number, per_unit))
}

fn result(word: &str) -> Outcome {
    match word.to_ascii_lowercase().as_str() {
        "success" | "succeeded" | "ok" | "allowed" | "true" => Outcome::Success,
        "failure" | "failed" | "error" | "false" => Outcome::Failure,
        "denied" | "forbidden" | "unauthorized" => Outcome::Denied,
        "partial" => Outcome::Partial,
        _ => Outcome::Unspecified,
    }
}
