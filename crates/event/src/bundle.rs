//! The event bundle, `epigraph-event@v1`: one event and everything that proves it, offline.
//! docs/formats/event-bundle.md.
//!
//! The log's half is a receipt of C2SP `tlog-proof`, verbatim: the leaf is in the log, under a published checkpoint.
//! The source's half is the signed batch and the event's path in it. Both halves meet in the leaf, and each segment
//! that is there hangs on its commitment in the leaf. A segment that was erased is said to be erased, and all else
//! still holds.

use std::fmt::Write as _;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use epigraph_core::tlog_proof::{MAX_RECEIPT_BYTES, Receipt, ReceiptError, VerifyError};
use epigraph_core::{Checkpoint, Hash, LeafIndex, Policy, SourceVKey, Verified};
use thiserror::Error;

use crate::batch::{Batch, BatchError, Envelope, MAX_PATH_HASHES, PAYLOAD_TYPE, Signed};
use crate::collected::{EventError, check_record, message};
use crate::leaf::{Leaf, LeafError};
use crate::segment::{MAX_BODY_BYTES, MAX_FIELDS_BYTES, MAX_RECORD_BYTES, Salt, Segment, commitment};
use crate::v1::{BodySegment, CoreSegment, IdentitySegment, SignedBatch};

/// The largest bundle in bytes: everything at its limit, in base64, a receipt, and room for the rest.
pub const MAX_BUNDLE_BYTES: usize =
    MAX_RECEIPT_BYTES + (2 * MAX_FIELDS_BYTES + MAX_BODY_BYTES + MAX_RECORD_BYTES) / 3 * 4 + 8 * 1024;

const HEADER: &str = "epigraph-event@v1";

const ERASED: &str = "erased";

/// One event and its proof. Nothing about it is believed before [`Bundle::verify`].
#[derive(Clone, PartialEq, Debug)]
pub struct Bundle {
    /// The log's entry.
    pub leaf: Leaf,
    /// The segments with their salts, in the order of [`Segment::ALL`]; none where one was erased.
    pub segments: [Option<(Salt, Vec<u8>)>; 3],
    /// The record beside the event, if its body refers to one.
    pub record: Option<Vec<u8>>,
    /// The envelope that the source signed.
    pub signed: SignedBatch,
    /// The event's path in its batch.
    pub path: Vec<Hash>,
    /// The leaf's receipt.
    pub receipt: Receipt,
}

/// What a bundle has proven to somebody who trusts a policy and the source's key.
#[derive(Clone, PartialEq, Debug)]
pub struct Proven {
    /// The log's entry: it holds the commitments and when the event was taken in.
    pub leaf: Leaf,
    /// Where in the log it is.
    pub index: LeafIndex,
    /// Under which checkpoint.
    pub checkpoint: Verified<Checkpoint>,
    /// Who signed it.
    pub source: SourceVKey,
    /// In which batch.
    pub envelope: Envelope,
    /// What happened; none if it was erased.
    pub core: Option<CoreSegment>,
    /// Who did it; none if it was erased.
    pub identity: Option<IdentitySegment>,
    /// The record, in [`BodySegment::record`] wherever it lay; none if it was erased.
    pub body: Option<BodySegment>,
}

/// Why bytes are not a bundle.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum FileError {
    /// More than [`MAX_BUNDLE_BYTES`].
    #[error("an event bundle has at most {MAX_BUNDLE_BYTES} bytes, this one has {0}")]
    TooLong(usize),
    /// The first line is something else.
    #[error("not an event bundle: its first line is not {HEADER}")]
    Header,
    /// It ends before the receipt.
    #[error("the event bundle is cut off: the receipt is missing")]
    CutOff,
    /// A line is not what the format has there; lines count from 1.
    #[error("line {0} of the event bundle is malformed")]
    Line(usize),
    /// The leaf line.
    #[error("the leaf in the event bundle: {0}")]
    Leaf(#[from] LeafError),
    /// The receipt.
    #[error("the receipt in the event bundle: {0}")]
    Receipt(#[from] ReceiptError),
}

/// Why a bundle proves nothing.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum NotProven {
    /// The log's half.
    #[error("the event is not proven to be in the log: {0}")]
    Log(#[from] VerifyError),
    /// The leaf is of a source that the reader did not name.
    #[error(
        "the event is of the source key {0}, which is none of those given: if that key is known from elsewhere to be \
         the source's, name it"
    )]
    UnknownSource(Hash),
    /// The source's half.
    #[error("the event is not proven to be its source's: {0}")]
    Batch(#[from] BatchError),
    /// The two halves are of two events.
    #[error(
        "the leaf names another batch than the one beside it: the bundle was put together from two events"
    )]
    OtherBatch,
    /// A segment is not the one that was committed to.
    #[error("the {0} segment is not the one that was signed: it, its salt or its commitment was changed")]
    OtherSegment(Segment),
    /// A segment that cannot be read, or a record that is not its body's.
    #[error(transparent)]
    Event(#[from] EventError),
}

impl Bundle {
    /// The bundle of one event of a batch, by its place there, from its leaf and the leaf's receipt. None beyond the
    /// last event, or if the leaf is another event's.
    pub fn of(batch: &Batch, place: usize, leaf: Leaf, receipt: Receipt) -> Option<Bundle> {
        let event = batch.events().get(place)?;
        if batch.leaf(place, leaf.ingested).as_ref() != Some(&leaf) {
            return None;
        }
        let segment = |segment| Some((event.salt(segment).clone(), event.bytes(segment).to_vec()));
        Some(Bundle {
            leaf,
            segments: Segment::ALL.map(segment),
            record: event.record().map(<[u8]>::to_vec),
            signed: batch.signed().to_wire(),
            path: batch.paths().into_iter().nth(place)?,
            receipt,
        })
    }

    /// Whether bytes look like a bundle, by their first line.
    pub fn recognise(bytes: &[u8]) -> bool {
        bytes.starts_with(HEADER.as_bytes())
    }

    /// The same bundle without one segment, and without the record beside the event if that segment is the body.
    pub fn without(mut self, segment: Segment) -> Bundle {
        self.segments[segment.place()] = None;
        if segment == Segment::Body {
            self.record = None;
        }
        self
    }

    /// The bundle as a file.
    pub fn encode(&self) -> Vec<u8> {
        let base64 = |bytes: &[u8]| STANDARD.encode(bytes);
        let mut head = format!("{HEADER}\nleaf {}\n", base64(&self.leaf.encode()));
        // Writing to a String cannot fail.
        for (segment, part) in Segment::ALL.into_iter().zip(&self.segments) {
            let _ = match part {
                Some((salt, bytes)) => {
                    writeln!(head, "{segment} {} {}", base64(salt.as_bytes()), base64(bytes))
                }
                None => writeln!(head, "{segment} {ERASED}"),
            };
        }
        if let Some(record) = &self.record {
            let _ = writeln!(head, "record {}", base64(record));
        }
        let _ = writeln!(head, "envelope {}", base64(&self.signed.envelope));
        let _ = writeln!(head, "signature {}", base64(&self.signed.signature));
        for hash in &self.path {
            let _ = writeln!(head, "path {}", base64(hash.as_bytes()));
        }
        head.push('\n');
        [head.as_bytes(), &self.receipt.encode()].concat()
    }

    /// Reads a bundle. Canonical: [`Bundle::encode`] gives the same bytes again, since every part has one spelling.
    pub fn parse(bytes: &[u8]) -> Result<Bundle, FileError> {
        if bytes.len() > MAX_BUNDLE_BYTES {
            return Err(FileError::TooLong(bytes.len()));
        }
        let first_line = bytes.split(|byte| *byte == b'\n').next();
        if first_line != Some(HEADER.as_bytes()) {
            return Err(FileError::Header);
        }
        let end = bytes.windows(2).position(|pair| pair == b"\n\n").ok_or(FileError::CutOff)?;
        let head = std::str::from_utf8(&bytes[..end]).map_err(|_| FileError::Header)?;
        let mut lines = Lines { lines: head.split('\n').skip(1).collect(), next: 0 };
        let leaf = Leaf::parse(&lines.value("leaf ")?)?;
        let mut segment = |segment: Segment| lines.segment(segment);
        let segments = [segment(Segment::Core)?, segment(Segment::Identity)?, segment(Segment::Body)?];
        let record = lines.is_next("record ").then(|| lines.value("record ")).transpose()?;
        let (envelope, signature) = (lines.value("envelope ")?, lines.value("signature ")?);
        let mut path = Vec::new();
        while path.len() < MAX_PATH_HASHES && lines.is_next("path ") {
            let hash = Hash::from_slice(&lines.value("path ")?);
            path.push(hash.ok_or(FileError::Line(lines.number()))?);
        }
        lines.end()?;
        let signed = SignedBatch { payload_type: PAYLOAD_TYPE.to_owned(), envelope, signature };
        let receipt = Receipt::parse(&bytes[end + 2..])?;
        Ok(Bundle { leaf, segments, record, signed, path, receipt })
    }

    /// Proves the event to somebody who trusts the log of `policy` and knows its source's key to be one of `sources`.
    /// Needs nothing else: no network, no state.
    pub fn verify(&self, policy: &Policy, sources: &[SourceVKey]) -> Result<Proven, NotProven> {
        let leaf = &self.leaf;
        let checkpoint = self.receipt.verify(&leaf.hash(), policy)?;
        let source = sources.iter().find(|source| source.id() == leaf.source);
        let source = source.ok_or(NotProven::UnknownSource(leaf.source))?;
        let signed = Signed::open(&self.signed, source)?;
        if signed.hash() != leaf.batch || signed.envelope().epoch != leaf.epoch {
            return Err(NotProven::OtherBatch);
        }
        signed.verify_path(leaf.sequence, leaf.reference, &leaf.commitments, &self.path)?;
        let [core, identity, body] = Segment::ALL.map(|segment| self.segment(segment));
        let (core, identity, body) = (core?, identity?, body?);
        let read_body = |bytes| message::<BodySegment>(Segment::Body, bytes);
        let mut body = body.map(read_body).transpose()?;
        match &mut body {
            Some(body) => {
                check_record(body, self.record.as_deref())?;
                body.record.extend(self.record.iter().flatten());
            }
            None if self.record.is_some() => return Err(EventError::OtherRecord.into()),
            None => {}
        }
        Ok(Proven {
            leaf: leaf.clone(),
            index: self.receipt.index,
            checkpoint,
            source: source.clone(),
            envelope: signed.envelope().clone(),
            core: core.map(|bytes| message(Segment::Core, bytes)).transpose()?,
            identity: identity.map(|bytes| message(Segment::Identity, bytes)).transpose()?,
            body,
        })
    }

    /// A segment's bytes, if they are there and those that the leaf commits to.
    fn segment(&self, segment: Segment) -> Result<Option<&[u8]>, NotProven> {
        let Some((salt, bytes)) = &self.segments[segment.place()] else { return Ok(None) };
        if commitment(segment, salt, bytes) == self.leaf.commitment(segment) {
            Ok(Some(bytes))
        } else {
            Err(NotProven::OtherSegment(segment))
        }
    }
}

impl Proven {
    /// The segments that were erased: it is proven that they were there, and not what they said.
    pub fn erased(&self) -> impl Iterator<Item = Segment> {
        let there = [self.core.is_some(), self.identity.is_some(), self.body.is_some()];
        Segment::ALL.into_iter().zip(there).filter(|(_, there)| !there).map(|(segment, _)| segment)
    }
}

/// The lines behind the first one, read one after the other.
struct Lines<'a> {
    lines: Vec<&'a str>,
    next: usize,
}

impl<'a> Lines<'a> {
    fn is_next(&self, word: &str) -> bool {
        self.lines.get(self.next).is_some_and(|line| line.starts_with(word))
    }

    /// The number of the line that was read last, in the file.
    fn number(&self) -> usize {
        self.next + 1
    }

    fn text(&mut self, word: &str) -> Result<&'a str, FileError> {
        let value = self.lines.get(self.next).and_then(|line| line.strip_prefix(word));
        self.next += 1;
        value.ok_or(FileError::Line(self.number()))
    }

    fn value(&mut self, word: &str) -> Result<Vec<u8>, FileError> {
        let text = self.text(word)?;
        STANDARD.decode(text).map_err(|_| FileError::Line(self.number()))
    }

    fn segment(&mut self, segment: Segment) -> Result<Option<(Salt, Vec<u8>)>, FileError> {
        let text = self.text(&format!("{segment} "))?;
        if text == ERASED {
            return Ok(None);
        }
        let part = text.split_once(' ').and_then(|(salt, bytes)| {
            let salt = Salt::from_slice(&STANDARD.decode(salt).ok()?)?;
            Some((salt, STANDARD.decode(bytes).ok().filter(|bytes| bytes.len() <= segment.max_bytes())?))
        });
        part.map(Some).ok_or(FileError::Line(self.number()))
    }

    fn end(&self) -> Result<(), FileError> {
        if self.next == self.lines.len() { Ok(()) } else { Err(FileError::Line(self.next + 2)) }
    }
}
