//! The bytes of the store's larger records: events and batches. Little-endian, in the order of docs/formats/audit-store.md.

use epigraph_core::Hash;
use epigraph_event::batch::PAYLOAD_TYPE;
use epigraph_event::leaf::LEAF_BYTES;
use epigraph_event::v1::SignedBatch;

use crate::seal::{SEALS, Sealed};
use crate::vault::KeyName;

/// A batch that was taken.
#[derive(Clone, PartialEq, Debug)]
pub struct BatchRecord {
    /// Its hash.
    pub hash: Hash,
    /// The time in its leaves, in seconds.
    pub ingested: u64,
    /// The slot of its first event.
    pub first_slot: u64,
    /// How many events it has.
    pub count: u32,
    /// What its source signed.
    pub signed: SignedBatch,
}

impl BatchRecord {
    /// As it is stored.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.hash.as_bytes().to_vec();
        out.extend_from_slice(&self.ingested.to_le_bytes());
        out.extend_from_slice(&self.first_slot.to_le_bytes());
        out.extend_from_slice(&self.count.to_le_bytes());
        put(&mut out, &self.signed.envelope);
        put(&mut out, &self.signed.signature);
        out
    }

    /// From what was stored.
    pub fn decode(bytes: &[u8]) -> Option<BatchRecord> {
        let mut rest = bytes;
        let record = BatchRecord {
            hash: Hash::from_bytes(*array(&mut rest)?),
            ingested: u64::from_le_bytes(*array(&mut rest)?),
            first_slot: u64::from_le_bytes(*array(&mut rest)?),
            count: u32::from_le_bytes(*array(&mut rest)?),
            signed: SignedBatch {
                payload_type: PAYLOAD_TYPE.into(),
                envelope: take(&mut rest)?.to_vec(),
                signature: take(&mut rest)?.to_vec(),
            },
        };
        rest.is_empty().then_some(record)
    }
}

/// An event as it is stored.
pub fn encode_sealed(sealed: &Sealed) -> Vec<u8> {
    let bytes: usize = sealed.seals.iter().map(|(_, sealed)| sealed.len()).sum();
    let mut out = Vec::with_capacity(LEAF_BYTES + 16 + SEALS * (KeyName::LEN + 4) + bytes);
    out.extend_from_slice(&sealed.leaf);
    out.extend_from_slice(&sealed.batch.to_le_bytes());
    out.extend_from_slice(&sealed.slot.to_le_bytes());
    for (name, sealed) in &sealed.seals {
        out.extend_from_slice(name.as_bytes());
        put(&mut out, sealed);
    }
    out
}

/// The leaf of an event as it is stored, the number of its batch and its slot: what is asked of every event, without its seals.
pub fn decode_leaf(bytes: &[u8]) -> Option<([u8; LEAF_BYTES], u64, u64)> {
    let mut rest = bytes;
    let leaf = *array(&mut rest)?;
    let batch = u64::from_le_bytes(*array(&mut rest)?);
    Some((leaf, batch, u64::from_le_bytes(*array(&mut rest)?)))
}

/// From what was stored.
pub fn decode_sealed(bytes: &[u8]) -> Option<Sealed> {
    let (leaf, batch, slot) = decode_leaf(bytes)?;
    let mut rest = bytes.get(LEAF_BYTES + 2 * size_of::<u64>()..)?;
    let mut seal =
        || Some((KeyName::from_slice(array::<{ KeyName::LEN }>(&mut rest)?)?, take(&mut rest)?.to_vec()));
    let seals = [seal()?, seal()?, seal()?, seal()?];
    rest.is_empty().then_some(Sealed { leaf, batch, slot, seals })
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    // Below 4 GiB: what is stored was bounded when it was taken.
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(u32::from_le_bytes(*array(rest)?)).ok()?;
    let (bytes, left) = rest.split_at_checked(length)?;
    *rest = left;
    Some(bytes)
}

fn array<'a, const N: usize>(rest: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (bytes, left) = rest.split_first_chunk()?;
    *rest = left;
    Some(bytes)
}
