//! The bytes of the store's larger records: batches, and blocks of events. Little-endian, in the order of docs/formats/audit-store.md.

use epigraph_core::Hash;
use epigraph_event::batch::PAYLOAD_TYPE;
use epigraph_event::leaf::LEAF_BYTES;
use epigraph_event::v1::SignedBatch;

use crate::vault::KeyName;

/// The seals of an event: one for each segment, one for the record that may lie beside it.
pub const SEALS: usize = 4;

/// A block with more than one event has at most so many bytes. A large value has pages of its own, a power of two of them: 64 KiB, less
/// than the library's own few bytes beside it. To read one event is to read its block.
pub const MAX_BLOCK_BYTES: usize = (64 << 10) - 32;

/// How many events a block has, and the number of their batch.
const BLOCK_TAIL_BYTES: usize = size_of::<u32>() + size_of::<u64>();

/// What an event has beside its sealed bytes.
const EVENT_HEAD_BYTES: usize = LEAF_BYTES + SEALS * (KeyName::LEN + size_of::<u32>());

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

/// An event as it is stored: what it holds may be borrowed from the block that it is in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sealed<B = Vec<u8>> {
    /// The log's entry.
    pub leaf: [u8; LEAF_BYTES],
    /// The number of the event's batch in its epoch.
    pub batch: u64,
    /// Which place among all events that this service took: the number under which the log was given its leaf.
    pub slot: u64,
    /// The name of each seal's key, and the sealed bytes; empty for a record that there is not.
    pub seals: [(KeyName, B); SEALS],
}

impl Sealed<&[u8]> {
    /// The same, with bytes of its own.
    pub fn to_owned(&self) -> Sealed {
        let Sealed { leaf, batch, slot, seals } = self.clone();
        Sealed { leaf, batch, slot, seals: seals.map(|(name, bytes)| (name, bytes.to_vec())) }
    }
}

/// Events of one batch that lie one behind the other, and have the slots from one on.
#[derive(Clone, Copy)]
pub struct Block<'b> {
    /// The slot of the first.
    pub first_slot: u64,
    batch: u64,
    /// Where each ends, four bytes for each.
    ends: &'b [u8],
    events: &'b [u8],
}

impl<'b> Block<'b> {
    /// From what was stored under the slot of its first event.
    pub fn decode(first_slot: u64, bytes: &'b [u8]) -> Option<Block<'b>> {
        let (rest, count) = bytes.split_last_chunk()?;
        let (rest, batch) = rest.split_last_chunk()?;
        let (count, batch) = (u32::from_le_bytes(*count), u64::from_le_bytes(*batch));
        let ends = usize::try_from(count).ok()?.checked_mul(size_of::<u32>())?;
        let (events, ends) = rest.split_at_checked(rest.len().checked_sub(ends)?)?;
        let end = u32::from_le_bytes(*ends.last_chunk()?);
        let fits = usize::try_from(end) == Ok(events.len());
        let counted = first_slot.checked_add(u64::from(count)).is_some();
        (fits && counted).then_some(Block { first_slot, batch, ends, events })
    }

    /// The slot behind the last of its events.
    pub fn end(&self) -> u64 {
        self.first_slot.saturating_add((self.ends.len() / size_of::<u32>()) as u64)
    }

    /// The leaf in a slot: what is asked of every event, without its seals. None if the slot is not in this block, or nothing is there that
    /// has a leaf.
    pub fn leaf(&self, slot: u64) -> Option<&'b [u8; LEAF_BYTES]> {
        self.bytes(slot)?.first_chunk()
    }

    /// The event in a slot. None as for [`Block::leaf`].
    pub fn event(&self, slot: u64) -> Option<Sealed<&'b [u8]>> {
        let mut rest = self.bytes(slot)?;
        let leaf = *array(&mut rest)?;
        let mut seal =
            || Some((KeyName::from_slice(array::<{ KeyName::LEN }>(&mut rest)?)?, take(&mut rest)?));
        let seals = [seal()?, seal()?, seal()?, seal()?];
        rest.is_empty().then_some(Sealed { leaf, batch: self.batch, slot, seals })
    }

    fn bytes(&self, slot: u64) -> Option<&'b [u8]> {
        let place = usize::try_from(slot.checked_sub(self.first_slot)?).ok()?;
        let end = |place: usize| {
            let mut rest = self.ends.get(place.checked_mul(size_of::<u32>())?..)?;
            usize::try_from(u32::from_le_bytes(*array(&mut rest)?)).ok()
        };
        let first = if place == 0 { 0 } else { end(place - 1)? };
        self.events.get(first..end(place)?)
    }
}

/// A block that is being made.
#[derive(Default)]
pub struct NewBlock {
    ends: Vec<u8>,
    events: Vec<u8>,
}

impl NewBlock {
    /// Whether an event is in it.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Whether an event with so many sealed bytes still fits. One fits into an empty block, however large it is.
    pub fn fits(&self, sealed: usize) -> bool {
        let more = EVENT_HEAD_BYTES + sealed + size_of::<u32>();
        self.is_empty() || self.events.len() + self.ends.len() + BLOCK_TAIL_BYTES + more <= MAX_BLOCK_BYTES
    }

    /// Begins an event. What [`NewBlock::put_seal`] puts behind it is its seals, and [`NewBlock::end_event`] ends it.
    pub fn begin_event(&mut self, leaf: &[u8; LEAF_BYTES], sealed: usize) {
        self.events.reserve(EVENT_HEAD_BYTES + sealed);
        self.events.extend_from_slice(leaf);
    }

    /// Puts a seal behind what is there, whose bytes `seal` puts there.
    pub fn put_seal<E>(
        &mut self,
        name: &KeyName,
        seal: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.events.extend_from_slice(name.as_bytes());
        let at = self.events.len();
        self.events.extend_from_slice(&[0; size_of::<u32>()]);
        let from = self.events.len();
        seal(&mut self.events)?;
        // Below 4 GiB: what is sealed was bounded when it was taken.
        let length = (self.events.len() - from) as u32;
        if let Some(place) = self.events.get_mut(at..from) {
            place.copy_from_slice(&length.to_le_bytes());
        }
        Ok(())
    }

    /// Ends an event.
    pub fn end_event(&mut self) {
        self.ends.extend_from_slice(&(self.events.len() as u32).to_le_bytes());
    }

    /// How many events are in it.
    pub fn count(&self) -> u32 {
        (self.ends.len() / size_of::<u32>()) as u32
    }

    /// The bytes of a block of a batch, as they are stored. Nothing is put behind them before they are cleared.
    pub fn encode(&mut self, batch: u64) -> &[u8] {
        self.events.extend_from_slice(&self.ends);
        self.events.extend_from_slice(&batch.to_le_bytes());
        self.events.extend_from_slice(&self.count().to_le_bytes());
        &self.events
    }

    /// Begins another one.
    pub fn clear(&mut self) {
        self.ends.clear();
        self.events.clear();
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A block of three events, as it is stored, and the sealed bytes that are in it.
    fn block() -> (Vec<u8>, Vec<[Vec<u8>; SEALS]>) {
        let mut block = NewBlock::default();
        let sealed = |event: u8| [vec![event; 3], vec![], vec![event; 200], vec![event]];
        let events: Vec<_> = (1..=3).map(sealed).collect();
        for (event, number) in events.iter().zip(1..) {
            block.begin_event(&[number; LEAF_BYTES], event.concat().len());
            for (seal, kind) in event.iter().zip(0..) {
                let name = KeyName::from_slice(&[kind; KeyName::LEN]).unwrap();
                let put = |out: &mut Vec<u8>| {
                    out.extend_from_slice(seal);
                    Ok::<_, ()>(())
                };
                block.put_seal(&name, put).unwrap();
            }
            block.end_event();
        }
        (block.encode(9).to_vec(), events)
    }

    /// Broken to see it fail: where an event begins taken for where it ends.
    #[test]
    fn a_block_gives_back_what_was_put_into_it_and_nothing_else() {
        let (bytes, events) = block();
        let block = Block::decode(70, &bytes).unwrap();
        assert_eq!((block.first_slot, block.end()), (70, 73));
        for (event, slot) in events.iter().zip(70..) {
            let sealed = block.event(slot).unwrap();
            assert_eq!((sealed.batch, sealed.slot, sealed.leaf[0]), (9, slot, slot as u8 - 69));
            assert_eq!(block.leaf(slot), Some(&sealed.leaf));
            for (place, (name, seal)) in sealed.seals.iter().enumerate() {
                assert_eq!((name.as_bytes()[0] as usize, *seal), (place, event[place].as_slice()));
            }
            assert_eq!(Block::decode(70, &bytes).unwrap().event(slot).unwrap().to_owned().slot, slot);
        }
        for slot in [0, 69, 73, u64::MAX] {
            assert!(block.event(slot).is_none() && block.leaf(slot).is_none(), "{slot}");
        }
        assert!(Block::decode(u64::MAX - 2, &bytes).is_none(), "slots have an end");
    }

    /// Whatever a disk makes of a block, no other bytes than its own are read: cut anywhere, and each bit of its tail. Broken to see it fail:
    /// the length of the events not compared with their last end.
    #[test]
    fn a_block_that_was_changed_is_none_or_has_its_own_bytes() {
        let (bytes, _) = block();
        let look = |bytes: &[u8]| {
            let Some(block) = Block::decode(70, bytes) else { return false };
            (60..90)
                .filter_map(|slot| block.event(slot))
                .for_each(|event| assert!(event.leaf.len() < bytes.len()));
            true
        };
        (0..bytes.len()).for_each(|at| assert!(!look(&bytes[..at]), "cut at {at}"));
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            look(&changed);
        }
        assert!(!look(&[]) && !look(&[0; 12]), "a block has events");
        assert!(!look(&[0xFF; 40]));
    }
}
