//! Decoders: from what a source wrote to [`Event`]s. Pure functions of bytes and a [`Context`]; each answers for every
//! record with an event or with a [`Rejected`], and neither loses the record.
//!
//! A decoder never changes a record: its bytes stand in the body as they came. What it takes out of it are fields to
//! search by; a field that it does not know is not lost, it is in the record. Hostile input is the normal case: nothing
//! here panics, recurses without a limit, or grows beyond a constant times its input.

use epigraph_core::UnixMillis;

use crate::collected::Event;
use crate::segment::MAX_RECORD_BYTES;
use crate::v1::{BodySegment, Category, CoreSegment, Format, Source, TimeFrom};

pub mod cloudevents;
pub mod cloudtrail;
pub mod frame;
mod json;
pub mod k8s;
pub mod mapped;
pub mod otlp;
pub mod syslog;
mod when;

/// The largest document in bytes: a file of many records, or a list of them. Larger ones are for a source that frames
/// them.
pub const MAX_DOCUMENT_BYTES: usize = 16 * 1024 * 1024;

/// The most records in one document: far more than an API server's webhook or CloudTrail puts into one.
pub const MAX_RECORDS: usize = 16_384;

/// How much is kept of a record that is too large: enough to see which one it was.
pub const KEPT_OF_TOO_LARGE: usize = 4 * 1024;

/// What is known of a record before it is read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Context {
    /// The collector's clock.
    pub observed_at: UnixMillis,
    /// Whose events these are, where the record does not say so.
    pub tenant: String,
    /// Which source wrote it, where the record does not say so.
    pub source: String,
    /// Which instance of it, where the record does not say so.
    pub instance: String,
}

/// What became of a record.
pub type Decoded = Result<Event, Rejected>;

/// Why a record could not be understood.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// It is not UTF-8.
    NotUtf8,
    /// It is not JSON, not all of it, nested deeper than 128 levels, or it has a number that is none.
    NotJson,
    /// A name stands twice in one object, so that two readers may see two records.
    DuplicateKey,
    /// It is beyond [`MAX_RECORD_BYTES`], or its document beyond [`MAX_DOCUMENT_BYTES`].
    TooLarge,
    /// Its document has more than [`MAX_RECORDS`].
    TooManyRecords,
    /// It can be read, and lacks what makes it an event of its kind.
    NotAnEvent,
    /// It is not an encoded message of OTLP logs.
    NotProtobuf,
    /// It is not an RFC 5424 message.
    NotSyslog,
}

impl Reason {
    /// The word that stands in [`BodySegment::rejected`]. It never changes.
    pub const fn code(self) -> &'static str {
        match self {
            Reason::NotUtf8 => "NOT_UTF8",
            Reason::NotJson => "NOT_JSON",
            Reason::DuplicateKey => "DUPLICATE_KEY",
            Reason::TooLarge => "TOO_LARGE",
            Reason::TooManyRecords => "TOO_MANY_RECORDS",
            Reason::NotAnEvent => "NOT_AN_EVENT",
            Reason::NotProtobuf => "NOT_PROTOBUF",
            Reason::NotSyslog => "NOT_SYSLOG",
        }
    }
}

/// A record that could not be understood. It is kept, signed and logged like any other, under [`Rejected::into_event`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rejected {
    /// Why.
    pub reason: Reason,
    /// The format that it was read as.
    pub format: Format,
    /// Where in the document it begins, in bytes.
    pub offset: usize,
    /// The record as it came, or its first [`KEPT_OF_TOO_LARGE`] bytes if it is beyond [`MAX_RECORD_BYTES`].
    pub record: Vec<u8>,
    /// How long it was.
    pub original_size: u64,
}

impl Rejected {
    /// Keeps what may be kept of a record.
    pub fn new(reason: Reason, format: Format, offset: usize, record: &[u8]) -> Rejected {
        let kept = if record.len() > MAX_RECORD_BYTES { KEPT_OF_TOO_LARGE } else { record.len() };
        Rejected {
            reason,
            format,
            offset,
            record: record[..kept].to_vec(),
            original_size: record.len() as u64,
        }
    }

    /// The event of the quarantine: it says that there was a record that could not be understood, and holds it.
    pub fn into_event(self, context: &Context) -> Event {
        let mut event = Event::of(context, self.format, "quarantine", &self.record);
        event.core.action = "epigraph:quarantine".to_owned();
        event.core.category = Category::Audit.into();
        event.core.occurred_from = TimeFrom::Missing.into();
        event.core.occurred_at_ns = event.core.observed_at_ns;
        event.body.rejected = self.reason.code().to_owned();
        event.body.truncated = self.original_size > self.record.len() as u64;
        event.body.original_size = self.original_size;
        event
    }
}

impl Event {
    /// An event of which nothing is known but its record and its context.
    fn of(context: &Context, format: Format, kind: &str, record: &[u8]) -> Event {
        let source = Source {
            id: context.source.clone(),
            kind: kind.to_owned(),
            instance: context.instance.clone(),
            ..Source::default()
        };
        let core = CoreSegment {
            schema_version: 1,
            tenant: context.tenant.clone(),
            source: Some(source),
            observed_at_ns: when::of_millis(context.observed_at),
            ..CoreSegment::default()
        };
        let body = BodySegment {
            format: format.into(),
            record: record.to_vec(),
            original_size: record.len() as u64,
            ..BodySegment::default()
        };
        Event { core, body, ..Event::default() }
    }

    /// Puts the source's own words where it has some.
    fn set_source(&mut self, set: impl FnOnce(&mut Source)) {
        set(self.core.source.get_or_insert_default());
    }

    fn set_time(&mut self, (at, from): (i64, TimeFrom)) {
        self.core.occurred_from = from.into();
        self.core.occurred_at_ns = if from == TimeFrom::Source { at } else { self.core.observed_at_ns };
    }

    fn label(&mut self, key: &str, value: String) {
        if !value.is_empty() {
            self.core.labels.push(crate::v1::Label { key: key.to_owned(), value });
        }
    }

    /// Adds a thing that was acted on, in the core and in the identity segment.
    fn resource(&mut self, kind: crate::v1::ResourceKind, name: crate::v1::ResourceName) {
        self.core.resources.push(kind);
        self.identity.resources.push(name);
    }
}

/// Puts a text in place of another one unless it is empty.
fn overwrite(field: &mut String, text: &str) {
    if !text.is_empty() {
        text.clone_into(field);
    }
}
