//! SHA-256 as RFC 6962 section 2.1 uses it: leaf and node hashes with domain separation.

use std::{array, fmt, iter, slice};

use sha2::block_api::compress256;
use sha2::{Digest, Sha256};

/// A SHA-256 value: a leaf hash, a node hash or a root hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash([u8; Hash::LEN]);

impl Hash {
    /// Length in bytes.
    pub const LEN: usize = 32;

    /// The root of the tree with no leaves: SHA-256 of nothing (RFC 6962 section 2.1).
    pub const EMPTY_ROOT: Hash = Hash([
        0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24, 0x27,
        0xae, 0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
    ]);

    /// Takes the 32 bytes as they are.
    pub const fn from_bytes(bytes: [u8; Hash::LEN]) -> Hash {
        Hash(bytes)
    }

    /// Takes a slice that must be exactly 32 bytes long.
    pub fn from_slice(bytes: &[u8]) -> Option<Hash> {
        Some(Hash(bytes.try_into().ok()?))
    }

    /// Parses 64 hexadecimal digits, of either case.
    pub fn from_hex(text: &str) -> Option<Hash> {
        let digits = text.as_bytes();
        if digits.len() != 2 * Hash::LEN {
            return None;
        }
        let mut bytes = [0; Hash::LEN];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let high = char::from(pair[0]).to_digit(16)?;
            let low = char::from(pair[1]).to_digit(16)?;
            *byte = u8::try_from(high << 4 | low).ok()?;
        }
        Some(Hash(bytes))
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; Hash::LEN] {
        &self.0
    }
}

impl fmt::Display for Hash {
    /// Lower-case hexadecimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// `SHA-256(0x00 || entry)`: the hash of a leaf (RFC 6962 section 2.1).
pub fn leaf_hash(entry: &[u8]) -> Hash {
    let mut hasher = Sha256::new();
    hasher.update([0x00]);
    hasher.update(entry);
    Hash(hasher.finalize().into())
}

/// The [`leaf_hash`] of each entry, in order. Four are hashed abreast, a block of each in turn: a block has to wait for the
/// one before it in its own entry, and a processor with SHA instructions is busy with the others meanwhile. That takes two
/// thirds of the time.
pub fn leaf_hashes<'a>(entries: impl IntoIterator<Item = &'a [u8]>) -> impl Iterator<Item = Hash> {
    let mut entries = entries.into_iter().fuse();
    let next_four = move || {
        let four: [_; 4] = array::from_fn(|_| entries.next());
        match four {
            [None, ..] => None,
            [Some(alone), None, ..] => Some([Some(leaf_hash(alone)), None, None, None]),
            _ => Some(hash_abreast(four)),
        }
    };
    iter::from_fn(next_four).flatten().flatten()
}

/// The initial value of SHA-256 (FIPS 180-4 section 5.3.3).
const INITIAL: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// Bytes of a block of SHA-256.
const BLOCK: usize = 64;

/// Bytes of the last block that say how long the message is.
const BITS: usize = 8;

fn hash_abreast(entries: [Option<&[u8]>; 4]) -> [Option<Hash>; 4] {
    let mut leaves = entries.map(|entry| entry.map(|entry| (entry, blocks_of(entry), INITIAL)));
    let most = leaves.iter().flatten().map(|(_, blocks, _)| *blocks).max().unwrap_or(0);
    for number in 0..most {
        for (entry, blocks, state) in leaves.iter_mut().flatten() {
            if number < *blocks {
                hash_block(state, entry, number);
            }
        }
    }
    leaves.map(|leaf| {
        let (_, _, state) = leaf?;
        let mut hash = [0; Hash::LEN];
        for (bytes, word) in hash.chunks_exact_mut(4).zip(state) {
            bytes.copy_from_slice(&word.to_be_bytes());
        }
        Some(Hash(hash))
    })
}

/// Blocks of a leaf: the 0x00, the entry, a bit, zeros, and the length (FIPS 180-4 section 5.1.1).
fn blocks_of(entry: &[u8]) -> usize {
    (1 + entry.len() + 1 + BITS).div_ceil(BLOCK)
}

fn hash_block(state: &mut [u32; 8], entry: &[u8], number: usize) {
    // The 0x00 shifts everything by one byte.
    let start = (number * BLOCK).checked_sub(1);
    let rest = entry.get(start.unwrap_or(0)..).unwrap_or_default();
    if let (Some(_), Some(block)) = (start, rest.first_chunk::<BLOCK>()) {
        return compress256(state, slice::from_ref(block));
    }
    let mut block = [0; BLOCK];
    let at = usize::from(start.is_none());
    let here = rest.len().min(BLOCK - at);
    block[at..at + here].copy_from_slice(&rest[..here]);
    let end = (1 + entry.len()).checked_sub(number * BLOCK);
    if let Some(bit) = end.and_then(|end| block.get_mut(end)) {
        *bit = 0x80;
    }
    if number + 1 == blocks_of(entry) {
        let bits = (1 + entry.len() as u64) * 8;
        block[BLOCK - BITS..].copy_from_slice(&bits.to_be_bytes());
    }
    compress256(state, slice::from_ref(&block));
}

/// `SHA-256(0x01 || left || right)`: the hash of an interior node (RFC 6962 section 2.1).
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    let mut hasher = Sha256::new();
    hasher.update([0x01]);
    hasher.update(left.0);
    hasher.update(right.0);
    Hash(hasher.finalize().into())
}

/// Plain SHA-256, for key ids and for hash chains on disk.
pub fn sha256(bytes: &[u8]) -> Hash {
    Hash(Sha256::digest(bytes).into())
}

/// Plain SHA-256 over the parts one after the other. Where they end must follow from what they are.
pub fn sha256_of(parts: &[&[u8]]) -> Hash {
    let mut hasher = Sha256::new();
    parts.iter().for_each(|part| hasher.update(part));
    Hash(hasher.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_root_is_the_hash_of_nothing() {
        assert_eq!(sha256(b""), Hash::EMPTY_ROOT);
        assert_eq!(sha256_of(&[b"a", b"", b"bc"]), sha256(b"abc"));
    }

    /// The library's own hasher is the oracle. Broken to see it fail: the bit one byte on, a block less, the length without the
    /// 0x00, no block copied that is not whole.
    #[test]
    fn hashes_abreast_are_those_of_the_library_for_every_length_and_company() {
        let bytes: Vec<u8> = (0..70_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let check = |lengths: &[usize]| {
            let entries: Vec<&[u8]> =
                lengths.iter().enumerate().map(|(at, length)| &bytes[at * 97..][..*length]).collect();
            let expected = entries.iter().map(|entry| {
                let mut hasher = Sha256::new_with_prefix([0x00]);
                hasher.update(entry);
                Hash(hasher.finalize().into())
            });
            assert!(leaf_hashes(entries.iter().copied()).eq(expected), "{lengths:?}");
        };
        for length in 0..=400 {
            check(&[length, (length * 7) % 401, 400 - length, length / 2, length]);
        }
        check(&[65_535, 0, 65_534, 64]);
        for count in 0..=9 {
            check(&vec![256; count]);
        }
    }

    #[test]
    fn hex_round_trips_and_refuses_other_shapes() {
        let hash = sha256(b"x");
        assert_eq!(Hash::from_hex(&hash.to_string()), Some(hash));
        for bad in ["", "00", &"g".repeat(64), &"0".repeat(63), &format!("+{}", "0".repeat(63))] {
            assert_eq!(Hash::from_hex(bad), None, "{bad}");
        }
    }
}
