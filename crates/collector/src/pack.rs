//! What becomes of a decoded record on its way into a batch: detectors, sealing, and the count of it all. It does not know
//! where records come from, or what becomes of batches.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use epigraph_core::{Entropy, SourceKey, UnixMillis};
use epigraph_event::batch::{BatchError, Encoded, MAX_BATCH_BYTES, MAX_EVENTS, Packed};
use epigraph_event::chain::Tip;
use epigraph_event::decode::frame::Frame;
use epigraph_event::decode::mapped::Mapping;
use epigraph_event::decode::{self, Decoded, Reason};
use epigraph_event::sensitive::Detectors;
use epigraph_event::v1::{Detected, Format};
use epigraph_event::{Collected, Context, Event, Rejected, Segment};

/// Events of one batch take at most so many bytes, so that with the largest one on top it is still a batch.
pub const TARGET_BYTES: usize = MAX_BATCH_BYTES / 4;

/// What an event takes beyond its segments: reference, salts, and the lengths of its fields.
const EVENT_OVERHEAD: usize = 256;

/// Fields of which is told that something was replaced in them, for each source; the others are told of as one.
const MAX_TOLD_FIELDS: usize = 256;

/// The longest event id that is told: that of every cloud fits.
const MAX_TOLD_ID: usize = 128;

/// What stands for the fields beyond [`MAX_TOLD_FIELDS`].
const OTHER_FIELDS: &str = "(other fields)";

/// How records are read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kind {
    /// AWS CloudTrail records or files of them.
    CloudTrail,
    /// Kubernetes audit events or lists of them.
    K8sAudit,
    /// JSON of any shape.
    Json(Box<Mapping>),
}

impl Kind {
    /// The word for it.
    pub fn name(&self) -> &'static str {
        match self {
            Kind::CloudTrail => "cloudtrail",
            Kind::K8sAudit => "k8s-audit",
            Kind::Json(_) => "jsonl",
        }
    }

    fn format(&self) -> Format {
        match self {
            Kind::CloudTrail => Format::Cloudtrail,
            Kind::K8sAudit => Format::K8sAudit,
            Kind::Json(_) => Format::Json,
        }
    }

    /// The events of a record; at least one.
    pub fn decode(&self, frame: Frame, context: &Context) -> Vec<Decoded> {
        let record = match frame.record(self.format()) {
            Ok(record) => record,
            Err(rejected) => return vec![Err(rejected)],
        };
        match self {
            Kind::CloudTrail => decode::cloudtrail::decode(&record, context),
            Kind::K8sAudit => decode::k8s::decode(&record, context),
            Kind::Json(mapping) => decode::mapped::decode(&record, mapping, context),
        }
    }
}

/// What came of a source: counts and names of fields, never a value.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Records that were read.
    pub records: u64,
    /// Events that were signed and are in the spool, those of the quarantine too.
    pub events: u64,
    /// Records that could not be understood, by the word for why. They are events of the quarantine.
    pub rejected: BTreeMap<&'static str, u64>,
    /// Where and how often something was replaced by a token.
    pub replaced: BTreeMap<(String, &'static str), u64>,
    /// The id of the first event that has one which can be typed.
    pub first_id: Option<String>,
    /// The sequence numbers of the first and the last event.
    pub sequences: Option<(u64, u64)>,
}

impl Report {
    pub(crate) fn took(&mut self, sequence: u64) {
        self.events += 1;
        let first = self.sequences.map_or(sequence, |(first, _)| first);
        self.sequences = Some((first, sequence));
    }

    fn tell_of(&mut self, event: &Event) {
        if self.first_id.is_none() && can_be_typed(&event.core.event_id) {
            self.first_id = Some(event.core.event_id.clone());
        }
        for replaced in &event.body.replaced {
            let kind = word(replaced.kind());
            let known = self.replaced.contains_key(&(replaced.path.clone(), kind));
            let told = known || self.replaced.len() < MAX_TOLD_FIELDS;
            let path = if told { replaced.path.clone() } else { OTHER_FIELDS.to_owned() };
            *self.replaced.entry((path, kind)).or_default() += u64::from(replaced.count);
        }
    }
}

/// How many texts were replaced by tokens since the start, by what they looked like: counts alone.
#[derive(Default, Debug)]
pub struct Replaced([AtomicU64; KINDS.len()]);

const KINDS: [Detected; 6] = [
    Detected::Unspecified,
    Detected::Email,
    Detected::CardNumber,
    Detected::AwsAccessKey,
    Detected::BearerToken,
    Detected::PrivateKey,
];

impl Replaced {
    fn count(&self, event: &Event) {
        for replaced in &event.body.replaced {
            let place = KINDS.iter().position(|kind| *kind == replaced.kind());
            if let Some(count) = place.and_then(|place| self.0.get(place)) {
                count.fetch_add(replaced.count.into(), Ordering::Relaxed);
            }
        }
    }

    /// By the word for the kind.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.0.iter().map(|count| count.load(Ordering::Relaxed));
        KINDS.iter().map(|kind| word(*kind)).zip(counts).skip(1)
    }
}

/// Ids are chosen by whoever caused the event: nothing of them that a terminal or a shell would take for more than an id.
fn can_be_typed(id: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
    (1..=MAX_TOLD_ID).contains(&id.len())
        && id.starts_with(|c: char| c.is_ascii_alphanumeric())
        && id.chars().all(plain)
}

const fn word(kind: Detected) -> &'static str {
    match kind {
        Detected::Unspecified => "unknown",
        Detected::Email => "email",
        Detected::CardNumber => "card-number",
        Detected::AwsAccessKey => "access-key",
        Detected::BearerToken => "token",
        Detected::PrivateKey => "private-key",
    }
}

/// Makes of what a decoder said an event that can be signed. Whatever it is, an event comes of it.
pub(crate) fn seal(
    decoded: Decoded,
    context: &Context,
    (detectors, entropy): (&Detectors, &dyn Entropy),
    (report, replaced): (&mut Report, &Replaced),
) -> Option<Collected> {
    let mut event = decoded.unwrap_or_else(|rejected| quarantine(rejected, context, report));
    detectors.apply(&mut event);
    report.tell_of(&event);
    replaced.count(&event);
    match event.seal_what_fits(entropy) {
        Ok(collected) => Some(collected),
        // Too large in a segment: what is known of it beyond its record goes, and the record is kept as far as it may be.
        Err(error) => {
            tracing::warn!(%error, "an event does not fit: it is kept in the quarantine");
            let mut rejected = Rejected::new(Reason::TooLarge, event.body.format(), 0, &event.body.record);
            rejected.record.truncate(decode::KEPT_OF_TOO_LARGE);
            let mut event = quarantine(rejected, context, report);
            detectors.apply(&mut event);
            let sealed = event.seal(entropy);
            if let Err(error) = &sealed {
                tracing::error!(%error, "an event cannot be kept; this is a fault of the program");
            }
            sealed.ok()
        }
    }
}

fn quarantine(rejected: Rejected, context: &Context, report: &mut Report) -> Event {
    *report.rejected.entry(rejected.reason.code()).or_default() += 1;
    rejected.into_event(context)
}

/// Events that wait to be signed together.
#[derive(Default)]
pub(crate) struct Pending {
    events: Packed,
    bytes: usize,
}

impl Pending {
    pub(crate) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.events.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether it has to be signed before one more comes.
    pub(crate) fn is_full(&self) -> bool {
        self.events.len() >= MAX_EVENTS || self.bytes >= TARGET_BYTES
    }

    pub(crate) fn push(&mut self, event: &Collected) {
        let segments: usize = Segment::ALL.iter().map(|segment| event.bytes(*segment).len()).sum();
        self.bytes += segments + event.record().map_or(0, <[u8]>::len) + EVENT_OVERHEAD;
        self.events.push(event);
    }

    pub(crate) fn sign(
        &mut self,
        key: &SourceKey,
        tip: &Tip,
        now: UnixMillis,
    ) -> Result<Encoded, BatchError> {
        self.bytes = 0;
        self.events.sign(key, tip, now)
    }
}
