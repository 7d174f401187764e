//! The sizes that the witnesses of one log held when they were last heard, as a hint: so that after a restart the first proof for
//! each of them starts from the right size. The bytes of the file `witness-sizes` are described in docs/formats/witness-sizes.md.
//!
//! Nothing depends on it. A wrong size costs one answer that names the right one; so the file is written in place without a
//! sync, and one that is not in order is as good as none. It does not know who the witnesses are, nor who asks them.

use std::collections::BTreeMap;
use std::io;

use epigraph_core::policy::MAX_WITNESSES;
use epigraph_core::{Hash, TreeSize};

use crate::fields::Fields;
use crate::file::{Dir, File};

const NAME: &str = "witness-sizes";
const MAGIC: &[u8; 8] = b"EPGWSIZE";
const VERSION: u32 = 1;
/// Where the CRC stands; it covers everything else.
const CRC: std::ops::Range<usize> = 12..16;
/// Bytes before the first witness.
const FIXED: usize = 52;
/// A hash and a size.
const ENTRY: usize = 40;
/// Room for the witnesses of any policy, written in one piece.
const FILE_LENGTH: usize = FIXED + ENTRY * MAX_WITNESSES;

/// Sizes by the hashes of the witnesses' vkeys.
pub type Sizes = BTreeMap<Hash, TreeSize>;

/// The open file. It has one owner; `&mut` is the lock.
pub struct WitnessSizes {
    file: Box<dyn File>,
    origin: Hash,
    written: Sizes,
}

impl WitnessSizes {
    /// Opens the file of the log whose origin has this hash, and makes it if it is not there. What is not in order, or is
    /// another log's, is no hint.
    pub fn open(dir: &dyn Dir, origin: Hash) -> io::Result<WitnessSizes> {
        let file = match dir.list()?.iter().any(|name| name == NAME) {
            true => dir.open(NAME)?,
            false => dir.create(NAME)?,
        };
        let written = read(&*file, origin).unwrap_or_default();
        Ok(WitnessSizes { file, origin, written })
    }

    /// What was stored last, as far as it is still there.
    pub fn sizes(&self) -> &Sizes {
        &self.written
    }

    /// Stores the sizes of at most [`MAX_WITNESSES`] witnesses, not durably.
    pub fn store(&mut self, sizes: Sizes) -> io::Result<()> {
        if sizes != self.written {
            self.file.write_at(0, &encode(self.origin, &sizes))?;
            self.written = sizes;
        }
        Ok(())
    }
}

fn read(file: &dyn File, origin: Hash) -> Option<Sizes> {
    let mut bytes = vec![0; FILE_LENGTH];
    file.read_at(0, &mut bytes).ok()?;
    decode(&bytes, origin)
}

fn encode(origin: Hash, sizes: &Sizes) -> Vec<u8> {
    let count = sizes.len().min(MAX_WITNESSES);
    let mut bytes = Vec::with_capacity(FILE_LENGTH);
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(origin.as_bytes());
    bytes.extend((count as u32).to_le_bytes());
    for (witness, size) in sizes.iter().take(count) {
        bytes.extend(witness.as_bytes());
        bytes.extend(size.get().to_le_bytes());
    }
    bytes.resize(FILE_LENGTH, 0);
    let crc = checksum(&bytes);
    bytes[CRC].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8], origin: Hash) -> Option<Sizes> {
    let mut fields = Fields(bytes);
    let (magic, version, crc) = (fields.array::<8>()?, fields.u32()?, fields.u32()?);
    if magic != *MAGIC || version != VERSION || crc != checksum(bytes) {
        return None;
    }
    if Hash::from_bytes(fields.array()?) != origin {
        return None;
    }
    let count = fields.u32()? as usize;
    let mut sizes = Sizes::new();
    for _ in 0..count.min(MAX_WITNESSES) {
        let witness = Hash::from_bytes(fields.array()?);
        sizes.insert(witness, TreeSize::new(fields.u64()?)?);
    }
    Some(sizes)
}

fn checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..CRC.start]), &bytes[CRC.end..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::memory::MemoryDir;

    fn hash(byte: u8) -> Hash {
        Hash::from_bytes([byte; 32])
    }

    fn sizes(sizes: &[(u8, u64)]) -> Sizes {
        sizes.iter().map(|(witness, size)| (hash(*witness), TreeSize::new(*size).unwrap())).collect()
    }

    fn opened(dir: &MemoryDir) -> Sizes {
        WitnessSizes::open(dir, hash(9)).unwrap().sizes().clone()
    }

    #[test]
    fn what_was_stored_is_there_again_and_another_log_s_is_not() {
        let dir = MemoryDir::new();
        let mut store = WitnessSizes::open(&dir, hash(9)).unwrap();
        assert!(store.sizes().is_empty());
        for stored in [sizes(&[(1, 7), (2, u64::MAX >> 1)]), sizes(&[(3, 0)]), Sizes::new()] {
            store.store(stored.clone()).unwrap();
            assert_eq!(opened(&dir), stored);
        }
        let all: Sizes = (0..MAX_WITNESSES as u8).map(|n| (hash(n), TreeSize::ZERO)).collect();
        store.store(all.clone()).unwrap();
        assert_eq!(opened(&dir), all);
        assert!(WitnessSizes::open(&dir, hash(8)).unwrap().sizes().is_empty());
    }

    /// P2, for a hint: whatever bit is wrong, there is no hint, and the next one is stored. Broken to see it fail: the CRC covers
    /// the header alone.
    #[test]
    fn a_file_that_is_not_in_order_is_no_hint_and_no_error() {
        let dir = MemoryDir::new();
        let stored = sizes(&[(1, 7), (2, 8)]);
        WitnessSizes::open(&dir, hash(9)).unwrap().store(stored.clone()).unwrap();
        dir.open(NAME).unwrap().sync().unwrap();
        let whole = dir.content(NAME).unwrap();
        for (offset, byte) in whole.iter().enumerate() {
            dir.damage(NAME, offset, &[byte ^ 0x10]).unwrap();
            assert_eq!(opened(&dir), Sizes::new(), "offset {offset}");
            dir.damage(NAME, offset, &[*byte]).unwrap();
        }
        assert_eq!(opened(&dir), stored);
        dir.remove(NAME).unwrap();
        dir.create(NAME).unwrap().write_at(0, &whole[..100]).unwrap();
        assert_eq!(opened(&dir), Sizes::new(), "cut short");
        WitnessSizes::open(&dir, hash(9)).unwrap().store(stored.clone()).unwrap();
        assert_eq!(opened(&dir), stored);
    }

    /// By the offsets of docs/formats/witness-sizes.md.
    #[test]
    fn the_file_is_as_documented() {
        let dir = MemoryDir::new();
        WitnessSizes::open(&dir, hash(9)).unwrap().store(sizes(&[(1, 7), (2, 8)])).unwrap();
        let bytes = dir.content(NAME).unwrap();
        assert_eq!(bytes.len(), 2_612);
        assert_eq!((&bytes[..8], &bytes[8..12]), (&b"EPGWSIZE"[..], &[1, 0, 0, 0][..]));
        let covered = [&bytes[..12], &bytes[16..]].concat();
        assert_eq!(bytes[12..16], crc32c::crc32c(&covered).to_le_bytes());
        assert_eq!((&bytes[16..48], &bytes[48..52]), (&[9; 32][..], &[2, 0, 0, 0][..]));
        assert_eq!((&bytes[52..84], &bytes[84..92]), (&[1; 32][..], &[7, 0, 0, 0, 0, 0, 0, 0][..]));
        assert_eq!((&bytes[92..124], bytes[124]), (&[2; 32][..], 8));
    }
}
