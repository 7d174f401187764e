//! The bytes of `heads` (docs/formats/heads.md): two copies of a file header, then four slots for each log. Pure.

use std::fmt;

use epigraph_core::key::MAX_NAME_BYTES;
use epigraph_core::{Hash, Origin, TreeHead, TreeSize, UnixMillis};

use super::Held;
use crate::fields::Fields;

/// The unit of writing: a page of the kernel, and a sector or a whole number of them on every disk.
pub(super) const BLOCK: usize = 4096;
/// One slot. Two blocks hold the largest origin and a note with an Ed25519 and an ML-DSA-44 signature.
pub(super) const SLOT: usize = 2 * BLOCK;
/// Slots of one log: two generations in two copies.
pub(super) const SLOTS: u32 = 4;
/// The four slots of one log.
pub(super) const LOG: usize = SLOT * SLOTS as usize;
/// The two copies of the file header.
pub(super) const HEADERS: usize = 2 * BLOCK;

/// The longest log-signed note that a slot holds beside the longest origin.
pub const MAX_HELD_NOTE_BYTES: usize = SLOT - SLOT_FIXED - MAX_NAME_BYTES;
/// The most logs in one store: bounds the file (512 MiB) and what opening it reads and keeps in memory.
pub const MAX_LOGS: u32 = 16_384;

const VERSION: u32 = 1;
const HEADER_MAGIC: &[u8; 8] = b"EPGHEADS";
const SLOT_MAGIC: &[u8; 8] = b"EPGSLOT\0";
/// Where the CRC stands, in header and slot alike; it covers every other byte of the blocks in use.
const CRC: std::ops::Range<usize> = 12..16;
/// Bytes of a slot before the origin text.
const SLOT_FIXED: usize = 140;

/// The random name of one store, drawn at its creation.
pub(super) type StoreId = [u8; 16];

/// The file header: which store this is, and how many logs it has room for and holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Header {
    pub(super) store: StoreId,
    /// Grows with each change of the header; the copy with the larger one is the newer.
    pub(super) revision: u64,
    pub(super) capacity: u32,
    pub(super) logs: u32,
}

/// One valid slot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Slot {
    pub(super) origin: Origin,
    pub(super) generation: u64,
    pub(super) held: Held,
}

/// What is wrong with a header or a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bad {
    /// Only zeros, where something was written once.
    Blank,
    /// The bytes do not start as this format does.
    Magic,
    /// The checksum does not match.
    Checksum,
    /// The checksum matches, but another version of Epigraph wrote this.
    Version(u32),
    /// Written for another store.
    OtherStore,
    /// Written for the slot of this number: the disk put it in the wrong place.
    Misplaced(u32),
    /// The checksum matches, but the fields contradict one another.
    Malformed,
    /// Whole, but of this older generation: its last write never arrived.
    Behind(u64),
}

impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bad::Blank => f.write_str("it holds only zeros"),
            Bad::Magic => f.write_str("it does not start with the magic bytes"),
            Bad::Checksum => f.write_str("its checksum does not match"),
            Bad::Version(version) => write!(f, "it has version {version}, this program knows {VERSION}"),
            Bad::OtherStore => f.write_str("it belongs to another store"),
            Bad::Misplaced(place) => write!(f, "it was written for slot {place}"),
            Bad::Malformed => f.write_str("its fields contradict one another"),
            Bad::Behind(generation) => write!(f, "it is still at generation {generation}"),
        }
    }
}

/// The number of a slot in the file. The copies of one generation lie two slots apart, so that one bad stretch
/// of the disk is less likely to take both.
pub(super) fn place(log: u32, copy: u32, generation: u64) -> u32 {
    log * SLOTS + copy * 2 + u32::from(generation % 2 == 1)
}

/// Where a slot starts in the file.
pub(super) fn offset(place: u32) -> u64 {
    HEADERS as u64 + u64::from(place) * SLOT as u64
}

/// The length that a file with room for so many logs has at least.
pub(super) fn file_length(capacity: u32) -> u64 {
    offset(capacity * SLOTS)
}

pub(super) fn encode_header(header: &Header) -> Vec<u8> {
    let mut bytes = start(HEADER_MAGIC, BLOCK);
    bytes.extend_from_slice(&header.store);
    bytes.extend_from_slice(&header.revision.to_le_bytes());
    bytes.extend_from_slice(&header.capacity.to_le_bytes());
    bytes.extend_from_slice(&header.logs.to_le_bytes());
    finish(bytes, 1)
}

pub(super) fn decode_header(block: &[u8]) -> Result<Header, Bad> {
    let mut fields = check(block, HEADER_MAGIC, 1)?;
    let mut header = || {
        Some(Header {
            store: fields.array()?,
            revision: fields.u64()?,
            capacity: fields.u32()?,
            logs: fields.u32()?,
        })
    };
    header()
        .filter(|header| header.logs <= header.capacity && header.capacity <= MAX_LOGS)
        .ok_or(Bad::Malformed)
}

/// The blocks to write for one slot. Origin and note are within their bounds.
pub(super) fn encode_slot(
    store: &StoreId,
    place: u32,
    origin: &Origin,
    generation: u64,
    held: &Held,
) -> Vec<u8> {
    let name = origin.as_str().as_bytes();
    let blocks = (SLOT_FIXED + name.len() + held.note.len()).div_ceil(BLOCK);
    let mut bytes = start(SLOT_MAGIC, SLOT);
    bytes.extend_from_slice(&place.to_le_bytes());
    bytes.extend_from_slice(&(blocks as u32).to_le_bytes());
    bytes.extend_from_slice(store);
    bytes.extend_from_slice(origin.hash().as_bytes());
    bytes.extend_from_slice(&generation.to_le_bytes());
    bytes.extend_from_slice(&held.head.size.get().to_le_bytes());
    bytes.extend_from_slice(held.head.root.as_bytes());
    bytes.extend_from_slice(&held.time.0.to_le_bytes());
    bytes.extend_from_slice(&held.term.to_le_bytes());
    bytes.extend_from_slice(&(name.len() as u16).to_le_bytes());
    bytes.extend_from_slice(&(held.note.len() as u16).to_le_bytes());
    bytes.extend_from_slice(name);
    bytes.extend_from_slice(&held.note);
    finish(bytes, blocks)
}

/// Reads the slot that lies at `place`. Nothing that was written for another place or store passes.
pub(super) fn decode_slot(store: &StoreId, place: u32, slot: &[u8]) -> Result<Slot, Bad> {
    // The count of blocks is read before the checksum that covers it; a wrong one only makes that fail.
    let blocks = slot.get(20..24).and_then(|bytes| Fields(bytes).u32()).unwrap_or_default();
    let mut fields = check(slot, SLOT_MAGIC, blocks as usize)?;
    let written_for = fields.u32().ok_or(Bad::Malformed)?;
    let _blocks = fields.u32();
    if fields.array().as_ref() != Some(store) {
        return Err(Bad::OtherStore);
    }
    if written_for != place {
        return Err(Bad::Misplaced(written_for));
    }
    decode_fields(fields, place).ok_or(Bad::Malformed)
}

fn decode_fields(mut fields: Fields<'_>, place: u32) -> Option<Slot> {
    let origin_hash = Hash::from_bytes(fields.array()?);
    // Half the range leaves every generation a successor.
    let generation = fields.u64().filter(|n| *n <= u64::MAX / 2 && *n % 2 == u64::from(place % 2))?;
    let head = TreeHead { size: TreeSize::new(fields.u64()?)?, root: Hash::from_bytes(fields.array()?) };
    let time = UnixMillis(fields.u64()?);
    let term = fields.u64()?;
    let origin_length = usize::from(fields.u16()?);
    let note_length = usize::from(fields.u16()?);
    let origin = Origin::new(str::from_utf8(fields.bytes(origin_length)?).ok()?).ok()?;
    let note = fields.bytes(note_length)?.to_vec();
    (origin.hash() == origin_hash).then_some(Slot {
        origin,
        generation,
        held: Held { head, time, term, note },
    })
}

fn start(magic: &[u8; 8], capacity: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(capacity);
    bytes.extend_from_slice(magic);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes
}

fn finish(mut bytes: Vec<u8>, blocks: usize) -> Vec<u8> {
    bytes.resize(blocks * BLOCK, 0);
    let crc = checksum(&bytes);
    bytes[CRC].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// CRC32C of the blocks without the field that holds it.
fn checksum(blocks: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&blocks[..CRC.start]), &blocks[CRC.end..])
}

/// Checks magic, checksum and version, in this order: a flipped bit in the version is damage, not a version.
fn check<'a>(bytes: &'a [u8], magic: &[u8; 8], blocks: usize) -> Result<Fields<'a>, Bad> {
    if bytes.iter().all(|byte| *byte == 0) {
        return Err(Bad::Blank);
    }
    if !bytes.starts_with(magic) {
        return Err(Bad::Magic);
    }
    let used =
        bytes.get(..blocks.saturating_mul(BLOCK)).filter(|used| !used.is_empty()).ok_or(Bad::Checksum)?;
    let mut fields = Fields(&used[magic.len()..]);
    let (version, crc) = (fields.u32().ok_or(Bad::Malformed)?, fields.u32());
    if crc != Some(checksum(used)) {
        return Err(Bad::Checksum);
    }
    if version != VERSION {
        return Err(Bad::Version(version));
    }
    Ok(fields)
}
