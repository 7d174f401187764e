//! An event from the moment of its collection on: three segments as bytes, a salt for each, and a random name. From
//! here on nothing in it changes.

use bytes::Bytes;
use epigraph_core::{Entropy, Hash};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use thiserror::Error;

use crate::leaf::Reference;
use crate::segment::{self, MAX_INLINE_BYTES, MAX_RECORD_BYTES, Salt, Segment};
use crate::v1::{BodySegment, CollectedEvent, CoreSegment, IdentitySegment, RecordReference};

/// An event as decoders make it and readers see it.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Event {
    /// What happened.
    pub core: CoreSegment,
    /// Who did it.
    pub identity: IdentitySegment,
    /// The record.
    pub body: BodySegment,
}

/// A sealed event. Its segments are bytes that were checked for size; they are never encoded again.
#[derive(Clone, PartialEq, Debug)]
pub struct Collected {
    reference: Reference,
    segments: [(Salt, Bytes); 3],
    /// Of the segments. Computed once: leaf, batch and path all need them.
    commitments: [Hash; 3],
    record: Option<Bytes>,
    /// What the first two segments say. Read once: whoever takes a batch in asks for it of every event.
    content: Box<(CoreSegment, IdentitySegment)>,
}

/// Why an event was not taken. Nothing of it is quoted.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum EventError {
    /// The record is beyond [`MAX_RECORD_BYTES`].
    #[error("a record has at most {MAX_RECORD_BYTES} bytes, this one has {0}: split it at its source")]
    RecordTooLarge(usize),
    /// A segment is beyond its limit.
    #[error("the {segment} segment of an event has at most {} bytes, this one has {bytes}", segment.max_bytes())]
    SegmentTooLarge {
        /// Which one.
        segment: Segment,
        /// Its length.
        bytes: usize,
    },
    /// A reference or a salt has another length.
    #[error("the event's {0} does not have the length that it must have: it was changed")]
    Shape(&'static str),
    /// The bytes of a segment are not its message.
    #[error("the {0} segment of the event cannot be read: it was changed, or written by something else")]
    Unreadable(Segment),
    /// The record beside the event is not the one that its body refers to.
    #[error(
        "the record beside the event is not the one that its body refers to: it was changed or exchanged"
    )]
    OtherRecord,
}

impl Event {
    /// Fixes the event's bytes and salts and gives it its name. A record that is too large for the body is put beside
    /// it. The detectors ([`crate::sensitive`]) come before this.
    pub fn seal(mut self, entropy: &dyn Entropy) -> Result<Collected, EventError> {
        self.seal_what_fits(entropy)
    }

    /// The same of an event whose record is needed again if it does not fit: after an error it is where it was. Of an event that was
    /// sealed nothing is left here.
    pub fn seal_what_fits(&mut self, entropy: &dyn Entropy) -> Result<Collected, EventError> {
        let mut drawn = [0; Reference::LEN + 4 * Salt::LEN];
        entropy.fill(&mut drawn);
        let (reference, salts) = drawn.split_at(Reference::LEN);
        let mut salts = salts.chunks_exact(Salt::LEN).filter_map(Salt::from_slice);
        let reference = Reference::from_slice(reference).ok_or(EventError::Shape("reference"))?;
        let mut salt = || salts.next().ok_or(EventError::Shape("salt"));

        let length = self.body.record.len();
        if length > MAX_RECORD_BYTES {
            return Err(EventError::RecordTooLarge(length));
        }
        let mut record = None;
        if length > MAX_INLINE_BYTES {
            let (beside, salt) = (std::mem::take(&mut self.body.record), salt()?);
            self.body.reference = Some(RecordReference {
                salt: salt.as_bytes().to_vec(),
                digest: segment::record_digest(&salt, &beside).as_bytes().to_vec(),
                size: length as u64,
            });
            record = Some(beside);
        }
        self.fit();
        let mut part = |segment, bytes: Vec<u8>| Ok((salt()?, checked(segment, bytes.into())?));
        let mut segments = || {
            Ok([
                part(Segment::Core, self.core.encode_to_vec())?,
                part(Segment::Identity, self.identity.encode_to_vec())?,
                part(Segment::Body, self.body.encode_to_vec())?,
            ])
        };
        match segments() {
            Ok(segments) => {
                let content = (std::mem::take(&mut self.core), std::mem::take(&mut self.identity));
                Ok(Collected::of(reference, segments, record.map(Bytes::from), content))
            }
            Err(error) => {
                if let Some(beside) = record {
                    (self.body.record, self.body.reference) = (beside, None);
                }
                Err(error)
            }
        }
    }
}

fn checked(segment: Segment, bytes: Bytes) -> Result<Bytes, EventError> {
    if bytes.len() > segment.max_bytes() {
        return Err(EventError::SegmentTooLarge { segment, bytes: bytes.len() });
    }
    Ok(bytes)
}

impl Collected {
    fn of(
        reference: Reference,
        segments: [(Salt, Bytes); 3],
        record: Option<Bytes>,
        content: (CoreSegment, IdentitySegment),
    ) -> Collected {
        let commitments = Segment::ALL.map(|segment| {
            let (salt, bytes) = &segments[segment.place()];
            segment::commitment(segment, salt, bytes)
        });
        Collected { reference, segments, commitments, record, content: Box::new(content) }
    }

    /// The event's random name.
    pub fn reference(&self) -> Reference {
        self.reference
    }

    /// A segment's bytes, verbatim.
    pub fn bytes(&self, segment: Segment) -> &[u8] {
        &self.segments[segment.place()].1
    }

    /// A segment's salt.
    pub fn salt(&self, segment: Segment) -> &Salt {
        &self.segments[segment.place()].0
    }

    /// The record beside the event, if it is too large to stand in it.
    pub fn record(&self) -> Option<&[u8]> {
        self.record.as_deref()
    }

    /// The commitments to the segments, in the order of [`Segment::ALL`].
    pub fn commitments(&self) -> &[Hash; 3] {
        &self.commitments
    }

    /// Reads the segments. The record is in the body again, wherever it lay.
    pub fn event(&self) -> Result<Event, EventError> {
        let mut body = self.body()?;
        if let Some(record) = &self.record {
            body.record = record.to_vec();
        }
        let (core, identity) = (*self.content).clone();
        Ok(Event { core, identity, body })
    }

    /// What happened.
    pub fn core(&self) -> &CoreSegment {
        &self.content.0
    }

    /// Who did it.
    pub fn identity(&self) -> &IdentitySegment {
        &self.content.1
    }

    fn body(&self) -> Result<BodySegment, EventError> {
        message(Segment::Body, self.bytes(Segment::Body))
    }

    /// The fields of [`Collected::to_wire`] in their order, from 1 on.
    fn fields(&self) -> [&[u8]; 8] {
        [
            self.reference.as_bytes(),
            self.bytes(Segment::Core),
            self.salt(Segment::Core).as_bytes(),
            self.bytes(Segment::Identity),
            self.salt(Segment::Identity).as_bytes(),
            self.bytes(Segment::Body),
            self.salt(Segment::Body).as_bytes(),
            self.record().unwrap_or_default(),
        ]
    }

    /// The length of [`Collected::encode`].
    pub(crate) fn encoded_len(&self) -> usize {
        let fields = (1..).zip(self.fields()).filter(|(_, field)| !field.is_empty());
        fields.map(|(tag, field)| key_len(tag) + encoded_len_varint(field.len() as u64) + field.len()).sum()
    }

    /// The encoding of [`Collected::to_wire`], without copying the segments twice.
    pub(crate) fn encode(&self, bytes: &mut Vec<u8>) {
        for (tag, field) in (1..).zip(self.fields()).filter(|(_, field)| !field.is_empty()) {
            encode_key(tag, WireType::LengthDelimited, bytes);
            encode_varint(field.len() as u64, bytes);
            bytes.extend_from_slice(field);
        }
    }

    /// The event as it travels.
    pub fn to_wire(&self) -> CollectedEvent {
        let bytes = |segment: Segment| self.segments[segment.place()].1.clone();
        let salt = |segment| Bytes::copy_from_slice(self.salt(segment).as_bytes());
        CollectedEvent {
            reference: Bytes::copy_from_slice(self.reference.as_bytes()),
            core: bytes(Segment::Core),
            core_salt: salt(Segment::Core),
            identity: bytes(Segment::Identity),
            identity_salt: salt(Segment::Identity),
            body: bytes(Segment::Body),
            body_salt: salt(Segment::Body),
            record: self.record.clone().unwrap_or_default(),
        }
    }

    /// Checks lengths, that the segments can be read, and that a record beside the event is the one that the body
    /// refers to. Whether anybody signed it is [`crate::batch`]'s to say.
    pub fn from_wire(wire: CollectedEvent) -> Result<Collected, EventError> {
        let reference = Reference::from_slice(&wire.reference).ok_or(EventError::Shape("reference"))?;
        let part = |segment, salt: &[u8], bytes| {
            let salt = Salt::from_slice(salt).ok_or(EventError::Shape("salt"))?;
            Ok::<_, EventError>((salt, checked(segment, bytes)?))
        };
        let segments = [
            part(Segment::Core, &wire.core_salt, wire.core)?,
            part(Segment::Identity, &wire.identity_salt, wire.identity)?,
            part(Segment::Body, &wire.body_salt, wire.body)?,
        ];
        let record = Some(wire.record).filter(|record| !record.is_empty());
        let [core, identity, _] = &segments;
        let content = (message(Segment::Core, &core.1)?, message(Segment::Identity, &identity.1)?);
        let collected = Collected::of(reference, segments, record, content);
        check_record(&collected.body()?, collected.record())?;
        Ok(collected)
    }
}

/// Whether a body and the record beside it belong together.
pub(crate) fn check_record(body: &BodySegment, record: Option<&[u8]>) -> Result<(), EventError> {
    let is_the_one = match (&body.reference, record) {
        (None, None) => true,
        (Some(reference), Some(record)) => {
            if record.len() > MAX_RECORD_BYTES {
                return Err(EventError::RecordTooLarge(record.len()));
            }
            let digest = |salt| segment::record_digest(&salt, record).as_bytes().to_vec();
            body.record.is_empty()
                && reference.size == record.len() as u64
                && Salt::from_slice(&reference.salt).map(digest).as_ref() == Some(&reference.digest)
        }
        _ => false,
    };
    if is_the_one { Ok(()) } else { Err(EventError::OtherRecord) }
}

/// Reads a segment's message.
pub fn message<M: Message + Default>(segment: Segment, bytes: &[u8]) -> Result<M, EventError> {
    M::decode(bytes).map_err(|_| EventError::Unreadable(segment))
}
