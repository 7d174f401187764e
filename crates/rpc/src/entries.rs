//! The entries of a stream, in one piece of memory and as they travel: a piece for each costs whoever sends or reads them more than
//! moving it does. It does not know what an entry says.

use std::{fmt, iter};

use ::bytes::{Buf, BufMut, Bytes};
use prost::encoding::{DecodeContext, WireType, bytes, decode_varint, encode_varint, skip_field, uint64};
use prost::{DecodeError, Message};

/// The fields of `FollowEntries` in log.proto.
const FIRST_INDEX: u32 = 1;
const ENTRIES: u32 = 2;

/// What goes before each entry and its length: the number of its field, and that a length follows.
const KEY: u8 = (ENTRIES as u8) << 3 | WireType::LengthDelimited as u8;

/// Entries, one behind the other.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Entries {
    /// Of each the key, the length and the bytes, as [`Entries::push`] puts them.
    wire: Vec<u8>,
    count: usize,
}

impl Entries {
    /// With room for so many bytes.
    pub fn with_capacity(bytes: usize) -> Entries {
        Entries { wire: Vec::with_capacity(bytes), count: 0 }
    }

    /// Adds one at the end.
    pub fn push(&mut self, entry: &[u8]) {
        self.wire.push(KEY);
        encode_varint(entry.len() as u64, &mut self.wire);
        self.wire.extend_from_slice(entry);
        self.count += 1;
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The bytes of each.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> + Clone {
        each(&self.wire)
    }

    /// The bytes of each, as parts of the one piece of memory.
    pub fn into_bytes(self) -> Vec<Bytes> {
        let wire = Bytes::from(self.wire);
        each(&wire).map(|entry| wire.slice_ref(entry)).collect()
    }
}

fn each(mut wire: &[u8]) -> impl Iterator<Item = &[u8]> + Clone {
    iter::from_fn(move || {
        wire.split_off_first()?;
        let length = decode_varint(&mut wire).ok()?;
        wire.split_off(..usize::try_from(length).ok()?)
    })
}

impl<T: AsRef<[u8]>> FromIterator<T> for Entries {
    fn from_iter<I: IntoIterator<Item = T>>(entries: I) -> Entries {
        let mut all = Entries::default();
        entries.into_iter().for_each(|entry| all.push(entry.as_ref()));
        all
    }
}

impl fmt::Debug for Entries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} entries", self.count)
    }
}

/// The message of this name in log.proto.
#[derive(Clone, PartialEq, Eq, Hash, Default, Debug)]
pub struct FollowEntries {
    /// The index of the first of them.
    pub first_index: u64,
    /// One at least, if it is well made.
    pub entries: Entries,
}

impl Message for FollowEntries {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        if self.first_index != 0 {
            uint64::encode(FIRST_INDEX, &self.first_index, buf);
        }
        buf.put_slice(&self.entries.wire);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        match (tag, wire_type) {
            (FIRST_INDEX, _) => uint64::merge(wire_type, &mut self.first_index, buf, ctx),
            (ENTRIES, WireType::LengthDelimited) => {
                let mut ahead = buf.chunk();
                let length = decode_varint(&mut ahead).ok().and_then(|length| usize::try_from(length).ok());
                if let Some(entry) = length.and_then(|length| ahead.get(..length)) {
                    let taken = buf.chunk().len() - ahead.len() + entry.len();
                    self.entries.push(entry);
                    buf.advance(taken);
                    return Ok(());
                }
                // In several pieces, or not whole.
                let mut entry = Vec::new();
                bytes::merge(wire_type, &mut entry, buf, ctx)?;
                self.entries.push(&entry);
                Ok(())
            }
            (ENTRIES, _) => bytes::merge(wire_type, &mut Vec::new(), buf, ctx),
            _ => skip_field(wire_type, tag, buf, ctx),
        }
    }

    fn encoded_len(&self) -> usize {
        let first_index = match self.first_index {
            0 => 0,
            first_index => uint64::encoded_len(FIRST_INDEX, &first_index),
        };
        first_index + self.entries.wire.len()
    }

    fn clear(&mut self) {
        *self = FollowEntries::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The message as the library's own macro makes it: the oracle.
    #[derive(Clone, PartialEq, prost::Message)]
    struct Plain {
        #[prost(uint64, tag = "1")]
        first_index: u64,
        #[prost(bytes = "bytes", repeated, tag = "2")]
        entries: Vec<Bytes>,
    }

    fn of_lengths(lengths: &[usize]) -> Vec<Bytes> {
        (0..).zip(lengths).map(|(n, length)| vec![n; *length].into()).collect()
    }

    /// Broken to see it fail: the index 0 encoded, a key of another field, the index not counted in the length, an entry that is
    /// not counted, one that is cut off taken for whole, one in two pieces left out.
    #[test]
    fn what_it_says_is_what_the_library_would_say_and_hear() {
        for first_index in [0, 1, 300, u64::MAX] {
            for lengths in [&[][..], &[0], &[1, 0, 127, 128, 300], &[65_535, 0, 0, 16_384, 2]] {
                let plain = Plain { first_index, entries: of_lengths(lengths) };
                let ours = FollowEntries { first_index, entries: plain.entries.iter().collect() };
                assert_eq!(ours.entries.len(), lengths.len());
                assert!(ours.entries.iter().eq(plain.entries.iter()));
                assert_eq!(ours.entries.clone().into_bytes(), plain.entries);
                let wire = plain.encode_to_vec();
                assert_eq!((ours.encode_to_vec(), ours.encoded_len()), (wire.clone(), wire.len()));
                assert_eq!(FollowEntries::decode(&*wire), Ok(ours.clone()));
                // In two pieces, cut anywhere; and cut off, it is what the library makes of that.
                for at in (0..wire.len()).step_by(1 + wire.len() / 500) {
                    let (one, two) = wire.split_at(at);
                    assert_eq!(FollowEntries::decode(one.chain(two)), Ok(ours.clone()), "{at}");
                    let cut =
                        FollowEntries::decode(one).map(|ours| (ours.first_index, ours.entries.into_bytes()));
                    assert_eq!(
                        cut.ok(),
                        Plain::decode(one).map(|plain| (plain.first_index, plain.entries)).ok()
                    );
                }
            }
        }
    }

    /// Broken to see it fail: an entry of another wire type skipped like a field that nobody knows.
    #[test]
    fn other_fields_are_skipped_and_wrong_ones_refused() {
        let mut wire = Plain { first_index: 7, entries: of_lengths(&[3]) }.encode_to_vec();
        uint64::encode(9, &5, &mut wire);
        bytes::encode(10, &vec![1, 2, 3], &mut wire);
        wire.extend(Plain { first_index: 8, entries: of_lengths(&[2]) }.encode_to_vec());
        let read = FollowEntries::decode(&*wire).unwrap();
        assert_eq!(
            (read.first_index, read.entries.into_bytes()),
            (8, vec![vec![0; 3].into(), vec![0; 2].into()])
        );
        for garbled in [
            &[0x0a, 1, 7][..],
            &[0x10, 1],
            &[0x12],
            &[0x12, 0xff],
            &[0x12, 2, 7],
            &[0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
        ] {
            assert!(
                FollowEntries::decode(garbled).is_err() && Plain::decode(garbled).is_err(),
                "{garbled:?}"
            );
        }
    }
}
