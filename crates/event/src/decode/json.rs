//! Reading JSON of strangers: records as the slices that they are, and values in which no name stands twice.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::{Decoded, MAX_DOCUMENT_BYTES, MAX_RECORDS, Reason, Rejected};
use crate::collected::Event;
use crate::segment::MAX_RECORD_BYTES;
use crate::v1::Format;

/// Decodes a document that is one record, or that holds a list of them under a name. `decode` sees each record's text
/// and what it says.
pub(super) fn document(
    bytes: &[u8],
    list: &'static str,
    format: Format,
    decode: impl Fn(&str, Map<String, Value>) -> Result<Event, Reason>,
) -> Vec<Decoded> {
    let whole = |reason| vec![Err(Rejected::new(reason, format, 0, bytes))];
    if bytes.len() > MAX_DOCUMENT_BYTES {
        return whole(Reason::TooLarge);
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return whole(Reason::NotUtf8) };
    // What is no object is left to the decoding of a single record to refuse.
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let member =
        deserializer.deserialize_map(Member(list)).and_then(|member| deserializer.end().map(|()| member));
    let listed = match member {
        Ok(listed) => listed,
        Err(error) if error.is_data() && text.trim_start().starts_with('{') => return whole(reason(&error)),
        Err(_) => None,
    };
    match listed {
        None => vec![record(text, 0, format, &decode)],
        Some(listed) => records(listed, bytes, format, &decode).unwrap_or_else(whole),
    }
}

/// Decodes the records of a JSON array, which lies somewhere in `document`.
pub(super) fn records(
    listed: &RawValue,
    document: &[u8],
    format: Format,
    decode: &impl Fn(&str, Map<String, Value>) -> Result<Event, Reason>,
) -> Result<Vec<Decoded>, Reason> {
    let items = match serde_json::Deserializer::from_str(listed.get()).deserialize_seq(Items) {
        Ok(Some(items)) => items,
        Ok(None) => return Err(Reason::TooManyRecords),
        Err(_) => return Err(Reason::NotAnEvent),
    };
    let start = document.as_ptr() as usize;
    let offset = |item: &RawValue| (item.get().as_ptr() as usize).saturating_sub(start);
    Ok(items.into_iter().map(|item| record(item.get(), offset(item), format, decode)).collect())
}

/// Decodes one record.
pub(super) fn record(
    text: &str,
    offset: usize,
    format: Format,
    decode: &impl Fn(&str, Map<String, Value>) -> Result<Event, Reason>,
) -> Decoded {
    let decoded = if text.len() > MAX_RECORD_BYTES {
        Err(Reason::TooLarge)
    } else {
        object(text).and_then(|object| decode(text, object))
    };
    decoded.map_err(|reason| Rejected::new(reason, format, offset, text.as_bytes()))
}

/// Reads one object. No name stands twice in it or in anything below it.
pub(super) fn object(text: &str) -> Result<Map<String, Value>, Reason> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = Strict.deserialize(&mut deserializer).map_err(|error| reason(&error))?;
    deserializer.end().map_err(|error| reason(&error))?;
    match value {
        Value::Object(object) => Ok(object),
        _ => Err(Reason::NotAnEvent),
    }
}

/// The one error of our own visitors is a name that stands twice; everything else is the text's.
fn reason(error: &serde_json::Error) -> Reason {
    if error.classify() == Category::Data { Reason::DuplicateKey } else { Reason::NotJson }
}

/// The text at a path below an object; empty if there is none. Numbers and truth values are texts too.
pub(super) fn text(object: &Map<String, Value>, path: &[&str]) -> String {
    value(object, path).map(scalar).unwrap_or_default()
}

/// The same of a string only, without a copy.
pub(super) fn string<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    object.get(name)?.as_str()
}

/// The value at a path below an object.
pub(super) fn value<'a>(object: &'a Map<String, Value>, path: &[&str]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    rest.iter().try_fold(object.get(*first)?, |value, name| value.get(name))
}

/// A value that is not a list or an object, as a text.
pub(super) fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Bool(truth) => truth.to_string(),
        Value::Null | Value::Array(_) | Value::Object(_) => String::new(),
    }
}

/// The texts of a list of them.
pub(super) fn texts(value: Option<&Value>) -> Vec<String> {
    let items = value.and_then(Value::as_array).into_iter().flatten();
    items.map(scalar).filter(|text| !text.is_empty()).collect()
}

/// Finds one member of an object, as the text that it is. serde_json passes over everything else without recursion.
struct Member(&'static str);

impl<'de> Visitor<'de> for Member {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(name) = map.next_key::<String>()? {
            if name != self.0 {
                map.next_value::<IgnoredAny>()?;
            } else if found.replace(map.next_value()?).is_some() {
                return Err(A::Error::custom("a name stands twice"));
            }
        }
        Ok(found)
    }
}

/// Takes the items of an array as the texts that they are; none if there are more than [`MAX_RECORDS`].
struct Items;

impl<'de> Visitor<'de> for Items {
    type Value = Option<Vec<&'de RawValue>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            if items.len() == MAX_RECORDS {
                // The rest is read, because a deserializer must be, but not kept.
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                return Ok(None);
            }
            items.push(item);
        }
        Ok(Some(items))
    }
}

/// Makes a [`Value`], and refuses a name that stands twice in one object. serde_json limits how deep it goes.
struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, truth: bool) -> Result<Value, E> {
        Ok(truth.into())
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(Strict)? {
            items.push(item);
        }
        Ok(items.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            let value = map.next_value_seed(Strict)?;
            if object.insert(name, value).is_some() {
                return Err(A::Error::custom("a name stands twice"));
            }
        }
        Ok(object.into())
    }
}
