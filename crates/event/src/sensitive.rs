//! Detectors: what a record should not say is replaced by a token before anything is signed.
//!
//! A token is the HMAC of what it replaces, under a key that stays with the collector: the same value has the same
//! token, so that records can still be found by it, and nobody without the key can find out the value by guessing.
//! What is replaced is replaced everywhere, in the record and in the fields that were taken out of it. The report
//! names fields and counts, and never a value. Detectors find what has a form; a secret without one, a password say,
//! they cannot find.

use std::fmt;

use epigraph_core::hash::Hash;
use hmac::{Hmac, KeyInit, Mac};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::logs::v1::LogsData;
use prost::Message;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::collected::Event;
use crate::decode::{KEPT_OF_TOO_LARGE, Reason};
use crate::fit::MAX_REPLACED;
use crate::segment::MAX_RECORD_BYTES;
use crate::v1::{DataClass, Detected, Format, Replaced};

mod json;
mod scan;
mod trace;

/// Letters of a token: 96 bits, so that two values do not meet.
const TOKEN_LETTERS: usize = 24;

/// How far before its end a record that was cut off is looked at for where a word begins.
const MAX_CUT_WORD: usize = 128;

/// The key of the tokens: a secret of the collector, and none of its signing keys.
pub struct TokenKey(Zeroizing<[u8; TokenKey::LEN]>);

impl TokenKey {
    /// Length in bytes.
    pub const LEN: usize = 32;

    /// Takes the bytes, which must be unpredictable.
    pub fn from_bytes(bytes: Zeroizing<[u8; TokenKey::LEN]>) -> TokenKey {
        TokenKey(bytes)
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenKey(..)")
    }
}

/// The detectors of a collector.
#[derive(Debug)]
pub struct Detectors {
    key: TokenKey,
    kinds: Vec<Detected>,
}

/// Everything that can be detected.
pub const ALL: [Detected; 5] = [
    Detected::Email,
    Detected::CardNumber,
    Detected::AwsAccessKey,
    Detected::BearerToken,
    Detected::PrivateKey,
];

/// How much was replaced in a record, for each kind that was found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Found(Vec<(Detected, u32)>);

impl Found {
    /// Each kind that was found, and how often.
    pub fn counts(&self) -> &[(Detected, u32)] {
        &self.0
    }

    fn add(&mut self, kind: Detected) {
        match self.0.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, count)) => *count = count.saturating_add(1),
            None => self.0.push((kind, 1)),
        }
    }
}

impl Detectors {
    /// Those that look for these kinds.
    pub fn new(key: TokenKey, kinds: &[Detected]) -> Detectors {
        Detectors { key, kinds: kinds.to_vec() }
    }

    /// Replaces what is found in an event, a rejected record's included, and says in the event where and how often.
    /// Again, it finds nothing: tokens are none of what is looked for.
    pub fn apply(&self, event: &mut Event) -> Found {
        let mut report = Report::default();
        let mut record = std::mem::take(&mut event.body.record);
        if event.body.truncated {
            drop_cut_word(&mut record);
        }
        let understood = event.body.rejected.is_empty();
        let record = match event.body.format() {
            Format::Cloudtrail | Format::K8sAudit | Format::Cloudevent | Format::Json => {
                // In what is no JSON, texts are where they are; what its escapes hide is looked for too.
                let record = if understood { record } else { self.plain(record, &mut report) };
                self.json(record, &mut report)
            }
            Format::CloudeventBinary => self.cloudevent(record, &mut report),
            Format::OtlpLog if understood => self.logs(record, &mut report),
            Format::OtlpLog | Format::Syslog | Format::Unknown | Format::Unspecified => {
                self.plain(record, &mut report)
            }
        };
        event.body.record = record;
        if event.body.record.len() > MAX_RECORD_BYTES {
            // Tokens are longer than what they stand for, and there were many.
            event.body.record.truncate(KEPT_OF_TOO_LARGE);
            event.body.truncated = true;
            Reason::TooLarge.code().clone_into(&mut event.body.rejected);
        }
        // The record was counted; its fields say the same again.
        event.each_text(&mut |text| {
            if let Some(other) = self.replaced(text.as_bytes(), &mut report.tokens, &mut |_| ()) {
                *text = String::from_utf8_lossy(&other).into_owned();
            }
        });
        for (kind, _) in report.found.counts() {
            event.core.data_classes |= 1 << (class(*kind) as u32 - 1);
        }
        event.body.replaced = report.replaced;
        event.body.replaced_elsewhere = report.elsewhere;
        report.found
    }

    fn json(&self, record: Vec<u8>, report: &mut Report) -> Vec<u8> {
        json::rewrite(&record, |text, path| self.at(text, report, path)).unwrap_or(record)
    }

    fn plain(&self, record: Vec<u8>, report: &mut Report) -> Vec<u8> {
        self.at(&record, report, &String::new).unwrap_or(record)
    }

    /// Header lines, an empty line, and data that may be JSON.
    fn cloudevent(&self, record: Vec<u8>, report: &mut Report) -> Vec<u8> {
        let end =
            record.windows(4).position(|window| window == b"\r\n\r\n").map_or(record.len(), |end| end + 4);
        let data = record[end..].to_vec();
        let mut head = self.plain(record[..end].to_vec(), report);
        let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(&data).is_ok();
        head.extend(if is_json { self.json(data, report) } else { self.plain(data, report) });
        head
    }

    /// The texts of a document of one record. It stays as it is if nothing is found in it; otherwise it is encoded
    /// anew, without fields that are not known: nobody could have looked into them.
    fn logs(&self, record: Vec<u8>, report: &mut Report) -> Vec<u8> {
        let Ok(mut data) = LogsData::decode(record.as_slice()) else { return self.plain(record, report) };
        let before = report.found.clone();
        for resource_logs in &mut data.resource_logs {
            let attributes = resource_logs.resource.iter_mut().map(|resource| &mut resource.attributes);
            attributes.for_each(|attributes| self.attributes(attributes, "/resource", report));
            self.text(&mut resource_logs.schema_url, "/resource/schema_url", report);
            for scope_logs in &mut resource_logs.scope_logs {
                if let Some(scope) = &mut scope_logs.scope {
                    self.attributes(&mut scope.attributes, "/scope", report);
                    self.text(&mut scope.name, "/scope/name", report);
                    self.text(&mut scope.version, "/scope/version", report);
                }
                self.text(&mut scope_logs.schema_url, "/scope/schema_url", report);
                for record in &mut scope_logs.log_records {
                    self.attributes(&mut record.attributes, "/attributes", report);
                    record.body.iter_mut().for_each(|body| self.value(body, "/body", report));
                    self.text(&mut record.event_name, "/event_name", report);
                    self.text(&mut record.severity_text, "/severity_text", report);
                }
            }
        }
        // What is found in the bytes alone stands in a field that is not known, or two fields side by side look like
        // it.
        let tokens = &mut report.tokens;
        let mut is_clean = |bytes: &[u8]| self.replaced(bytes, tokens, &mut |_| ()).is_none();
        if report.found == before && is_clean(&record) {
            return record;
        }
        let encoded = data.encode_to_vec();
        if report.found == before && is_clean(&encoded) {
            self.at(&record, report, &String::new);
        }
        encoded
    }

    fn attributes(&self, attributes: &mut [KeyValue], path: &str, report: &mut Report) {
        for KeyValue { key, value, .. } in attributes {
            self.text(key, path, report);
            let path = format!("{path}/{key}");
            value.iter_mut().for_each(|value| self.value(value, &path, report));
        }
    }

    /// Values nest no deeper than prost has decoded them.
    fn value(&self, value: &mut AnyValue, path: &str, report: &mut Report) {
        match &mut value.value {
            Some(Value::StringValue(text)) => self.text(text, path, report),
            Some(Value::BytesValue(bytes)) => {
                if let Some(other) = self.at(bytes, report, &|| path.to_owned()) {
                    *bytes = other;
                }
            }
            Some(Value::IntValue(number)) => {
                let digits = number.to_string();
                if let Some(other) = self.at(digits.as_bytes(), report, &|| path.to_owned()) {
                    let text = String::from_utf8_lossy(&other).into_owned();
                    value.value = Some(Value::StringValue(text));
                }
            }
            Some(Value::ArrayValue(array)) => {
                array.values.iter_mut().for_each(|value| self.value(value, path, report));
            }
            Some(Value::KvlistValue(list)) => self.attributes(&mut list.values, path, report),
            _ => {}
        }
    }

    fn text(&self, text: &mut String, path: &str, report: &mut Report) {
        if let Some(other) = self.at(text.as_bytes(), report, &|| path.to_owned()) {
            *text = String::from_utf8_lossy(&other).into_owned();
        }
    }

    /// Replaces what is found in one text, and reports it. The path may hold a name that should not be said: it is
    /// looked at too.
    fn at(&self, text: &[u8], report: &mut Report, path: &dyn Fn() -> String) -> Option<Vec<u8>> {
        let mut kinds = Vec::new();
        let replaced = self.replaced(text, &mut report.tokens, &mut |kind| kinds.push(kind))?;
        let path = path();
        let path = match self.replaced(path.as_bytes(), &mut report.tokens, &mut |_| ()) {
            Some(other) => String::from_utf8_lossy(&other).into_owned(),
            None => path,
        };
        kinds.into_iter().for_each(|kind| report.add(&path, kind));
        Some(replaced)
    }

    /// The text with a token in place of everything that was found; none if nothing was.
    fn replaced(&self, text: &[u8], tokens: &mut Tokens, found: &mut dyn FnMut(Detected)) -> Option<Vec<u8>> {
        if !trace::may_hold(text) {
            return None;
        }
        let mut replaced = Vec::new();
        let mut at = 0;
        for one in scan::matches(text).into_iter().filter(|one| self.kinds.contains(&one.kind)) {
            replaced.extend(&text[at..one.range.start]);
            let value = &text[one.range.clone()];
            replaced.extend(tokens.of(one.kind, value, || self.token(one.kind, value)));
            at = one.range.end;
            found(one.kind);
        }
        if at == 0 {
            return None;
        }
        replaced.extend(&text[at..]);
        Some(replaced)
    }

    /// `[email:…]`. Letters only: no detector finds anything in them, and no format has to escape them.
    fn token(&self, kind: Detected, value: &[u8]) -> String {
        let Ok(mut mac) = <Hmac<Sha256> as KeyInit>::new_from_slice(self.key.0.as_slice()) else {
            // HMAC takes keys of every length.
            return format!("[{}]", name(kind));
        };
        mac.update(name(kind).as_bytes());
        mac.update(&[0]);
        mac.update(&normal(kind, value));
        let digest = Hash::from_bytes(mac.finalize().into_bytes().into());
        let nibbles = digest.as_bytes().iter().flat_map(|byte| [byte >> 4, byte & 15]);
        let letters: String = nibbles.take(TOKEN_LETTERS).map(|nibble| char::from(b'a' + nibble)).collect();
        format!("[{}:{letters}]", name(kind))
    }
}

/// Tokens of a record, by what they stand for: its fields say again what it says.
#[derive(Default)]
struct Tokens(Vec<(Detected, Zeroizing<Vec<u8>>, String)>);

/// The most that are kept: a record of many values has few of them in its fields.
const MAX_TOKENS: usize = 8;

impl Tokens {
    fn of(&mut self, kind: Detected, value: &[u8], make: impl FnOnce() -> String) -> Vec<u8> {
        let mut known = self.0.iter().filter(|(of, known, _)| *of == kind && known.as_slice() == value);
        if let Some((_, _, token)) = known.next() {
            return token.clone().into_bytes();
        }
        let token = make();
        if self.0.len() < MAX_TOKENS {
            self.0.push((kind, Zeroizing::new(value.to_vec()), token.clone()));
        }
        token.into_bytes()
    }
}

/// What was found in a record.
#[derive(Default)]
struct Report {
    tokens: Tokens,
    found: Found,
    replaced: Vec<Replaced>,
    elsewhere: bool,
}

impl Report {
    fn add(&mut self, path: &str, kind: Detected) {
        self.found.add(kind);
        let listed = self.replaced.len();
        let known = self.replaced.iter_mut().find(|known| known.path == path && known.kind() == kind);
        match known {
            Some(known) => known.count = known.count.saturating_add(1),
            None if listed == MAX_REPLACED => self.elsewhere = true,
            None => self.replaced.push(Replaced { path: path.to_owned(), kind: kind.into(), count: 1 }),
        }
    }
}

/// One value in all its spellings has one token.
fn normal(kind: Detected, value: &[u8]) -> Vec<u8> {
    match kind {
        Detected::Email => {
            let text = String::from_utf8_lossy(value).to_lowercase();
            text.replace("%40", "@").replace("\\u0040", "@").into_bytes()
        }
        Detected::CardNumber => value.iter().copied().filter(u8::is_ascii_digit).collect(),
        _ => value.to_vec(),
    }
}

const fn name(kind: Detected) -> &'static str {
    match kind {
        Detected::Unspecified => "unknown",
        Detected::Email => "email",
        Detected::CardNumber => "card-number",
        Detected::AwsAccessKey => "access-key",
        Detected::BearerToken => "token",
        Detected::PrivateKey => "private-key",
    }
}

const fn class(kind: Detected) -> DataClass {
    match kind {
        Detected::Email => DataClass::Personal,
        Detected::CardNumber => DataClass::Cardholder,
        _ => DataClass::Secret,
    }
}

/// A record that was cut off may end inside of what would be found if it were whole: its last word goes, and the
/// groups of digits before it.
fn drop_cut_word(record: &mut Vec<u8>) {
    let from = record.len().saturating_sub(MAX_CUT_WORD);
    let is_end = |byte: &u8| byte.is_ascii_whitespace() || b"\"',;<>()".contains(byte);
    let keep = record[from..].iter().rposition(is_end).map_or(from, |end| from + end);
    let digits = record[from..keep].iter().rev().take_while(|byte| b"0123456789 -".contains(byte)).count();
    record.truncate(keep - digits);
}

impl Event {
    /// Every text of the core and the identity segment.
    fn each_text(&mut self, visit: &mut dyn FnMut(&mut String)) {
        let core = &mut self.core;
        let texts = [
            &mut core.event_id,
            &mut core.tenant,
            &mut core.action,
            &mut core.result_code,
            &mut core.request_id,
        ];
        texts.into_iter().for_each(&mut *visit);
        if let Some(source) = &mut core.source {
            [&mut source.id, &mut source.kind, &mut source.instance, &mut source.region]
                .into_iter()
                .for_each(&mut *visit);
        }
        for resource in &mut core.resources {
            visit(&mut resource.r#type);
            visit(&mut resource.parent);
        }
        for label in &mut core.labels {
            visit(&mut label.key);
            visit(&mut label.value);
        }
        let identity = &mut self.identity;
        for actor in identity.actor.iter_mut().chain(&mut identity.on_behalf_of) {
            [&mut actor.id, &mut actor.name, &mut actor.session, &mut actor.auth_method]
                .into_iter()
                .chain(&mut actor.groups)
                .for_each(&mut *visit);
        }
        for resource in &mut identity.resources {
            [&mut resource.id, &mut resource.name, &mut resource.version].into_iter().for_each(&mut *visit);
        }
        identity.addresses.iter_mut().for_each(&mut *visit);
        [&mut identity.user_agent, &mut identity.result_message, &mut identity.decision_reason]
            .into_iter()
            .for_each(visit);
    }
}
