//! Batches of which only the bytes are wanted: whoever makes events one by one need not hold them until there are enough.

use bytes::Bytes;
use epigraph_core::{Hash, SourceKey, UnixMillis};

use super::{BatchError, MAX_BATCH_BYTES, Roll, Signed, encode_event};
use crate::chain::Tip;
use crate::collected::Collected;
use crate::leaf::Reference;

/// The events of a batch to come, encoded, and of each what its leaf needs.
#[derive(Default)]
pub struct Packed {
    bytes: Vec<u8>,
    events: Vec<(Reference, [Hash; 3])>,
}

/// A signed batch as bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Encoded {
    /// Which events it has.
    pub roll: Roll,
    /// The encoding of [`super::Batch::to_wire`].
    pub bytes: Bytes,
}

impl Packed {
    /// Puts an event behind the others.
    pub fn push(&mut self, event: &Collected) {
        encode_event(event, &mut self.bytes);
        self.events.push((event.reference(), *event.commitments()));
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Signs them as [`super::Batch::sign`] does; then there are none any more.
    pub fn sign(&mut self, key: &SourceKey, tip: &Tip, made_at: UnixMillis) -> Result<Encoded, BatchError> {
        let signed = Signed::over(key, tip, self.events.iter().copied(), made_at)?;
        let length = signed.field_len() + self.bytes.len();
        if length > MAX_BATCH_BYTES {
            return Err(BatchError::TooLarge(length));
        }
        let mut bytes = Vec::with_capacity(length);
        signed.encode(&mut bytes);
        bytes.append(&mut self.bytes);
        Ok(Encoded { roll: Roll { signed, events: std::mem::take(&mut self.events) }, bytes: bytes.into() })
    }
}
