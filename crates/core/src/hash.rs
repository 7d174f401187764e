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
            [Some(one), Some(two), Some(three), Some(four)] => {
                Some(hash_abreast([one, two, three, four]).map(Some))
            }
            fewer => Some(fewer.map(|entry| entry.map(leaf_hash))),
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

/// A leaf on its way, in blocks. Those that are not as they lie in the entry are made beforehand: a processor waits for what it
/// has only just written.
struct Leaf<'a> {
    state: [u32; 8],
    /// The 0x00, which shifts everything by one byte, and the beginning of the entry, if that fills a block.
    first: Option<[u8; BLOCK]>,
    middle: &'a [[u8; BLOCK]],
    /// What is left, a bit, zeros, and the length (FIPS 180-4 section 5.1.1): in one block or in two.
    last: [[u8; BLOCK]; 2],
    last_blocks: usize,
}

impl Leaf<'_> {
    fn new(entry: &[u8]) -> Leaf<'_> {
        let (first, rest) = match entry.split_first_chunk::<{ BLOCK - 1 }>() {
            Some((beginning, rest)) => {
                let mut block = [0; BLOCK];
                block[1..].copy_from_slice(beginning);
                (Some(block), rest)
            }
            None => (None, entry),
        };
        let (middle, rest) = rest.as_chunks::<BLOCK>();
        let mut last = [[0; BLOCK]; 2];
        let bytes = last.as_flattened_mut();
        let start = usize::from(first.is_none());
        let end = start + rest.len();
        bytes[start..end].copy_from_slice(rest);
        bytes[end] = 0x80;
        let last_blocks = (end + 1 + BITS).div_ceil(BLOCK);
        let bits = (1 + entry.len() as u64) * 8;
        bytes[last_blocks * BLOCK - BITS..last_blocks * BLOCK].copy_from_slice(&bits.to_be_bytes());
        Leaf { state: INITIAL, first, middle, last, last_blocks }
    }
}

fn hash_abreast(entries: [&[u8]; 4]) -> [Hash; 4] {
    let mut leaves = entries.map(Leaf::new);
    for leaf in &mut leaves {
        compress256(&mut leaf.state, leaf.first.as_slice());
    }
    let most = leaves.iter().map(|leaf| leaf.middle.len()).max().unwrap_or(0);
    for number in 0..most {
        for leaf in &mut leaves {
            compress256(&mut leaf.state, leaf.middle.get(number).map_or(&[], slice::from_ref));
        }
    }
    for leaf in &mut leaves {
        compress256(&mut leaf.state, &leaf.last[..leaf.last_blocks]);
    }
    leaves.map(|leaf| of_state(leaf.state))
}

fn of_state(state: [u32; 8]) -> Hash {
    let mut hash = [0; Hash::LEN];
    for (bytes, word) in hash.chunks_exact_mut(4).zip(state) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    Hash(hash)
}

/// `SHA-256(0x01 || left || right)`: the hash of an interior node (RFC 6962 section 2.1). Always two blocks, which are put together
/// here: the library's hasher, which is ready for any length, takes a sixth longer.
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    const MESSAGE: usize = 1 + 2 * Hash::LEN;
    let mut blocks = [[0; BLOCK]; 2];
    let bytes = blocks.as_flattened_mut();
    bytes[0] = 0x01;
    bytes[1..=Hash::LEN].copy_from_slice(&left.0);
    bytes[1 + Hash::LEN..MESSAGE].copy_from_slice(&right.0);
    bytes[MESSAGE] = 0x80;
    bytes[2 * BLOCK - BITS..].copy_from_slice(&(8 * MESSAGE as u64).to_be_bytes());
    let mut state = INITIAL;
    compress256(&mut state, &blocks);
    of_state(state)
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

    /// The library's own hasher is the oracle. Broken to see it fail: the bit one byte on, a last block less, the length
    /// without the 0x00, the 0x00 forgotten in short entries, a middle block less.
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

    /// The library's own hasher is the oracle. Broken to see it fail: the sides swapped, the length in bytes.
    #[test]
    fn a_node_is_what_the_library_gives() {
        for n in 0..100u8 {
            let (left, right) = (sha256(&[n]), sha256(&[n, n]));
            let expected = [&[0x01][..], &left.0, &right.0].concat();
            assert_eq!(node_hash(&left, &right), sha256(&expected));
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
