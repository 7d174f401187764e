//! How a stream of bytes falls into records: by lines, or by counted octets (RFC 6587 section 3.4.1). Whatever a source
//! sends, no more than one record of the largest size is held; a longer one is passed over and named.

use std::mem;

use memchr::memchr;
use thiserror::Error;

use super::{KEPT_OF_TOO_LARGE, Reason, Rejected};
use crate::segment::MAX_RECORD_BYTES;
use crate::v1::Format;

/// A record of a stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Frame {
    /// Its bytes, without what frames it.
    Record {
        /// Where in the stream it begins, in bytes.
        offset: u64,
        /// The record.
        bytes: Vec<u8>,
    },
    /// A record beyond [`MAX_RECORD_BYTES`].
    TooLarge {
        /// Where in the stream it begins, in bytes.
        offset: u64,
        /// How long it was.
        length: u64,
        /// Its first [`KEPT_OF_TOO_LARGE`] bytes.
        beginning: Vec<u8>,
    },
}

impl Frame {
    /// What is to be kept of a record that was too large; the record itself, if it was not.
    pub fn record(self, format: Format) -> Result<Vec<u8>, Rejected> {
        match self {
            Frame::Record { bytes, .. } => Ok(bytes),
            Frame::TooLarge { length, beginning: record, .. } => {
                Err(Rejected { reason: Reason::TooLarge, format, offset: 0, record, original_size: length })
            }
        }
    }
}

/// Falls into lines at LF; a CR before it is not the record's. Empty lines are none.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    /// Where in the stream the line begins.
    start: u64,
    /// How much of the line was seen.
    length: u64,
    /// What is held of it: all, up to the largest record and a CR.
    held: Vec<u8>,
}

impl Lines {
    /// From a place in the stream: where reading goes on after a restart.
    pub fn from_offset(start: u64) -> Lines {
        Lines { start, ..Lines::default() }
    }

    /// Where the line begins that is not complete yet: from there reading must go on, if it ends here.
    pub fn offset(&self) -> u64 {
        self.start
    }

    /// Takes the next bytes of the stream and calls `each` with every record that they complete.
    pub fn push(&mut self, mut bytes: &[u8], mut each: impl FnMut(Frame)) {
        while let Some(end) = memchr(b'\n', bytes) {
            self.hold(&bytes[..end]);
            bytes = &bytes[end + 1..];
            self.complete(1, &mut each);
        }
        self.hold(bytes);
    }

    /// Ends the stream: what is left is a record without its LF.
    pub fn finish(&mut self, mut each: impl FnMut(Frame)) {
        self.complete(0, &mut each);
    }

    fn hold(&mut self, bytes: &[u8]) {
        self.length += bytes.len() as u64;
        let room = (MAX_RECORD_BYTES + 1).saturating_sub(self.held.len());
        self.held.extend(&bytes[..bytes.len().min(room)]);
    }

    fn complete(&mut self, terminator: u64, each: &mut impl FnMut(Frame)) {
        let (offset, mut length) = (self.start, self.length);
        let mut bytes = mem::take(&mut self.held);
        self.start += length + terminator;
        self.length = 0;
        if length == bytes.len() as u64 && bytes.last() == Some(&b'\r') {
            bytes.pop();
            length -= 1;
        }
        if length > MAX_RECORD_BYTES as u64 {
            bytes.truncate(KEPT_OF_TOO_LARGE);
            each(Frame::TooLarge { offset, length, beginning: bytes });
        } else if length > 0 {
            each(Frame::Record { offset, bytes });
        }
    }
}

/// The stream is not framed by counted octets; where its records begin cannot be known any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error(
    "at byte {0} of the stream there is no length of the next syslog message: send with octet counting (RFC 6587), as \
     syslog over TLS does, and open a new connection"
)]
pub struct NotCounted(pub u64);

/// The most digits of a length.
const MAX_DIGITS: usize = 9;

/// Falls into messages that say before them how many octets they have: `83 <165>1 …`.
#[derive(Clone, Debug, Default)]
pub struct Octets {
    /// Where in the stream the frame begins.
    start: u64,
    /// How much of the stream was seen.
    seen: u64,
    /// The digits of the length, as far as they were seen; empty between frames and inside a message.
    digits: Vec<u8>,
    /// The length of the message and how much of it is missing, once the length is known.
    message: Option<(u64, u64)>,
    held: Vec<u8>,
}

impl Octets {
    /// Takes the next bytes of the stream and calls `each` with every message that they complete. After an error the
    /// stream is of no use.
    pub fn push(&mut self, mut bytes: &[u8], mut each: impl FnMut(Frame)) -> Result<(), NotCounted> {
        while let [first, rest @ ..] = bytes {
            let taken = match self.message {
                None => {
                    self.count(*first)?;
                    bytes = rest;
                    1
                }
                Some((length, missing)) => {
                    let taken = bytes.len().min(usize::try_from(missing).unwrap_or(usize::MAX));
                    let room = MAX_RECORD_BYTES.saturating_sub(self.held.len());
                    self.held.extend(&bytes[..taken.min(room)]);
                    self.message = Some((length, missing - taken as u64));
                    bytes = &bytes[taken..];
                    taken
                }
            };
            self.seen += taken as u64;
            if let Some((length, 0)) = self.message {
                self.message = None;
                let (offset, mut held) = (self.start, mem::take(&mut self.held));
                self.start = self.seen;
                if length > MAX_RECORD_BYTES as u64 {
                    held.truncate(KEPT_OF_TOO_LARGE);
                    each(Frame::TooLarge { offset, length, beginning: held });
                } else {
                    each(Frame::Record { offset, bytes: held });
                }
            }
        }
        Ok(())
    }

    /// Whether the stream may end here: no message is half there.
    pub fn is_complete(&self) -> bool {
        self.message.is_none() && self.digits.is_empty()
    }

    /// Takes one byte of a length or the space behind it.
    fn count(&mut self, byte: u8) -> Result<(), NotCounted> {
        let not_counted = NotCounted(self.start);
        match byte {
            b' ' if !self.digits.is_empty() => {
                let digits = mem::take(&mut self.digits);
                let length = std::str::from_utf8(&digits).ok().and_then(|digits| digits.parse().ok());
                let length = length.ok_or(not_counted)?;
                self.message = Some((length, length));
                Ok(())
            }
            // RFC 6587: the first digit is not 0, so no message is empty.
            b'0' if self.digits.is_empty() => Err(not_counted),
            b'0'..=b'9' if self.digits.len() < MAX_DIGITS => {
                self.digits.push(byte);
                Ok(())
            }
            _ => Err(not_counted),
        }
    }
}
