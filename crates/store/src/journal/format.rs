//! The bytes of a journal: segment headers, frame headers, frame bodies. docs/formats/journal.md describes them.
//!
//! A sector is valid only if encoding what was read from it gives the same bytes back, so reserved bytes and
//! both copies of the id are checked without a list of checks that could forget one. It does not know files.

use epigraph_core::bundle;
use epigraph_core::hash::sha256;
use epigraph_core::{Frontier, Hash, TreeHead, TreeSize, UnixMillis};

use super::producers::{MARK_BYTES, ProducerMark, ProducerTable};
use crate::fields::Fields;

/// What a disk writes as one piece; every header is one, every body a whole number of them.
pub(super) const SECTOR: usize = 512;

/// The largest body of a frame before padding: the pool's cap (DESIGN section 4). A reader allocates no more.
pub const MAX_FRAME_BYTES: u32 = 8 << 20;

/// The largest body of a segment header before padding: 63 frontier hashes and a producer table. With it and the
/// largest frame a 16 MiB segment is not yet full.
pub const MAX_STATE_BYTES: usize = 4 << 20;

/// The version of both headers.
const VERSION: u32 = 1;
const SEGMENT_MAGIC: [u8; 8] = *b"epigseg\n";
const FRAME_MAGIC: [u8; 8] = *b"epigfrm\n";
/// The id again, then the checksum, end the sector: a write that was torn inside it leaves one end zero.
const ID_COPY_AT: usize = SECTOR - 4 - ID_BYTES;
const CRC_AT: usize = SECTOR - 4;
const ID_AT: usize = 16;
const ID_BYTES: usize = 16;
/// How much of either end of a header must be zero to call it torn. Each end holds the random id, which no
/// flipped bit makes zero.
const TORN_END: usize = 64;

pub(super) type Sector = [u8; SECTOR];
pub(super) type SegmentId = [u8; ID_BYTES];

/// `length` rounded up to whole sectors.
pub(super) const fn padded(length: usize) -> usize {
    length.next_multiple_of(SECTOR)
}

/// The first sector of a segment, but for what its body says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct SegmentHeader {
    pub(super) id: SegmentId,
    pub(super) origin_hash: Hash,
    pub(super) before: TreeHead,
    pub(super) time: UnixMillis,
    pub(super) segment_bytes: u64,
    pub(super) previous: Option<Previous>,
    pub(super) frontier_count: u32,
    pub(super) producer_count: u32,
    pub(super) body_bytes: u32,
    pub(super) body_crc: u32,
}

/// Where the segment before a segment ends. Ties the files together without reading the frames between.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Previous {
    /// The size at which that segment starts: its name.
    pub(super) first: TreeSize,
    /// Where its last frame header is.
    pub(super) last_header_at: u64,
    /// SHA-256 of that sector.
    pub(super) last_header: Hash,
}

/// The first sector of a frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct FrameHeader {
    pub(super) segment_id: SegmentId,
    pub(super) before: TreeHead,
    pub(super) count: u32,
    pub(super) root_after: Hash,
    pub(super) time: UnixMillis,
    /// SHA-256 of the header sector before: a frame's, or the segment's own.
    pub(super) previous_header: Hash,
    pub(super) mark_count: u32,
    pub(super) body_bytes: u32,
    pub(super) body_crc: u32,
    pub(super) sparse: Sparse,
}

/// What the writer counted in a padded body, so that a later reader can tell sectors that never arrived.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Sparse {
    /// Sectors of zeros.
    pub(super) zero: u32,
    /// Sectors with exactly one byte that is not zero: one flipped bit can turn such a sector into zeros.
    pub(super) lone: u32,
}

impl Sparse {
    pub(super) fn count(padded_body: &[u8]) -> Sparse {
        let mut sparse = Sparse::default();
        for sector in padded_body.chunks(SECTOR) {
            match sector.iter().filter(|byte| **byte != 0).take(2).count() {
                0 => sparse.zero += 1,
                1 => sparse.lone += 1,
                _ => {}
            }
        }
        sparse
    }

    /// Whether `now`, counted in a body that does not check, proves that sectors of it were never written.
    pub(super) fn proves_torn(self, now: Sparse) -> bool {
        now.zero > self.zero + u32::from(self.lone > 0)
    }
}

impl SegmentHeader {
    /// Encodes header and body; sets the four fields that describe the body.
    pub(super) fn encode_with(&mut self, frontier: &Frontier, producers: &ProducerTable) -> Vec<u8> {
        let mut body = Vec::new();
        frontier.hashes().iter().for_each(|hash| body.extend_from_slice(hash.as_bytes()));
        self.frontier_count = frontier.size().get().count_ones();
        self.producer_count = producers.count();
        producers.encode(&mut body);
        self.body_bytes = length_u32(body.len());
        body.resize(padded(body.len()), 0);
        self.body_crc = crc32c::crc32c(&body);
        let mut bytes = self.encode().to_vec();
        bytes.append(&mut body);
        bytes
    }

    fn encode(&self) -> Sector {
        let previous = self.previous.unwrap_or(Previous {
            first: TreeSize::ZERO,
            last_header_at: 0,
            last_header: Hash::from_bytes([0; Hash::LEN]),
        });
        let fields: [&[u8]; 16] = [
            &SEGMENT_MAGIC,
            &VERSION.to_le_bytes(),
            &self.body_bytes.to_le_bytes(),
            &self.id,
            self.origin_hash.as_bytes(),
            &self.before.size.get().to_le_bytes(),
            self.before.root.as_bytes(),
            &self.time.0.to_le_bytes(),
            &self.segment_bytes.to_le_bytes(),
            &self.frontier_count.to_le_bytes(),
            &self.producer_count.to_le_bytes(),
            &self.body_crc.to_le_bytes(),
            &u32::from(self.previous.is_some()).to_le_bytes(),
            &previous.first.get().to_le_bytes(),
            &previous.last_header_at.to_le_bytes(),
            previous.last_header.as_bytes(),
        ];
        seal(&fields, &self.id)
    }

    pub(super) fn decode(sector: &Sector) -> Result<SegmentHeader, String> {
        let mut fields = unseal(sector, SEGMENT_MAGIC, "segment header")?;
        let header = SegmentHeader::from_fields(&mut fields)
            .ok_or("the segment header holds a size beyond 2^63 - 1")?;
        if header.encode() != *sector {
            return Err("the segment header has bytes that no segment header has".to_owned());
        }
        Ok(header)
    }

    fn from_fields(fields: &mut Fields<'_>) -> Option<SegmentHeader> {
        let body_bytes = fields.u32()?;
        let id = fields.array()?;
        let origin_hash = hash(fields)?;
        let before = TreeHead { size: TreeSize::new(fields.u64()?)?, root: hash(fields)? };
        let time = UnixMillis(fields.u64()?);
        let segment_bytes = fields.u64()?;
        let (frontier_count, producer_count, body_crc) = (fields.u32()?, fields.u32()?, fields.u32()?);
        let has_previous = fields.u32()? == 1;
        let previous = Previous {
            first: TreeSize::new(fields.u64()?)?,
            last_header_at: fields.u64()?,
            last_header: hash(fields)?,
        };
        Some(SegmentHeader {
            id,
            origin_hash,
            before,
            time,
            segment_bytes,
            previous: has_previous.then_some(previous),
            frontier_count,
            producer_count,
            body_bytes,
            body_crc,
        })
    }

    /// Decodes the padded body that belongs to this header.
    pub(super) fn decode_body(&self, padded_body: &[u8]) -> Result<(Frontier, ProducerTable), String> {
        if crc32c::crc32c(padded_body) != self.body_crc {
            return Err("the frontier and producer table do not match their checksum".to_owned());
        }
        let malformed =
            || "the frontier and producer table have another shape than the header says".to_owned();
        let mut fields = Fields(padded_body.get(..self.body_bytes as usize).ok_or_else(malformed)?);
        if self.frontier_count != self.before.size.get().count_ones() {
            return Err(malformed());
        }
        let hashes = (0..self.frontier_count).map(|_| hash(&mut fields)).collect::<Option<Vec<_>>>();
        let frontier = Frontier::from_parts(self.before.size, hashes.ok_or_else(malformed)?)
            .map_err(|error| error.to_string())?;
        if frontier.root() != self.before.root {
            return Err("the frontier does not give the root hash in the header".to_owned());
        }
        let producers = ProducerTable::decode(&mut fields, self.producer_count, self.before.size)
            .ok_or_else(malformed)?;
        if !fields.0.is_empty() {
            return Err(malformed());
        }
        Ok((frontier, producers))
    }
}

impl FrameHeader {
    /// The size of the tree after this frame; `None` if the header is nonsense.
    pub(super) fn size_after(&self) -> Option<TreeSize> {
        self.before.size.checked_add(u64::from(self.count))
    }

    pub(super) fn encode(&self) -> Sector {
        let fields: [&[u8]; 14] = [
            &FRAME_MAGIC,
            &VERSION.to_le_bytes(),
            &self.body_bytes.to_le_bytes(),
            &self.segment_id,
            &self.before.size.get().to_le_bytes(),
            &self.count.to_le_bytes(),
            &self.mark_count.to_le_bytes(),
            &self.time.0.to_le_bytes(),
            self.before.root.as_bytes(),
            self.root_after.as_bytes(),
            self.previous_header.as_bytes(),
            &self.body_crc.to_le_bytes(),
            &self.sparse.zero.to_le_bytes(),
            &self.sparse.lone.to_le_bytes(),
        ];
        seal(&fields, &self.segment_id)
    }

    pub(super) fn decode(sector: &Sector) -> Result<FrameHeader, String> {
        let mut fields = unseal(sector, FRAME_MAGIC, "frame header")?;
        let header =
            FrameHeader::from_fields(&mut fields).ok_or("the frame header holds a size beyond 2^63 - 1")?;
        if header.encode() != *sector {
            return Err("the frame header has bytes that no frame header has".to_owned());
        }
        Ok(header)
    }

    fn from_fields(fields: &mut Fields<'_>) -> Option<FrameHeader> {
        let body_bytes = fields.u32()?;
        let segment_id = fields.array()?;
        let size = TreeSize::new(fields.u64()?)?;
        let (count, mark_count) = (fields.u32()?, fields.u32()?);
        let time = UnixMillis(fields.u64()?);
        Some(FrameHeader {
            segment_id,
            before: TreeHead { size, root: hash(fields)? },
            count,
            root_after: hash(fields)?,
            time,
            previous_header: hash(fields)?,
            mark_count,
            body_bytes,
            body_crc: fields.u32()?,
            sparse: Sparse { zero: fields.u32()?, lone: fields.u32()? },
        })
    }
}

/// Writes header, marks and entries of one frame into `buffer`, padded; sets the fields of `header` that
/// describe the body.
pub(super) fn encode_frame(
    buffer: &mut Vec<u8>,
    header: &mut FrameHeader,
    marks: &[ProducerMark],
    entries: &[u8],
) {
    buffer.clear();
    buffer.resize(SECTOR, 0);
    marks.iter().for_each(|mark| mark.encode(buffer));
    buffer.extend_from_slice(entries);
    header.mark_count = length_u32(marks.len());
    header.body_bytes = length_u32(buffer.len() - SECTOR);
    buffer.resize(padded(buffer.len()), 0);
    let (sector, body) = buffer.split_at_mut(SECTOR);
    header.body_crc = crc32c::crc32c(body);
    header.sparse = Sparse::count(body);
    sector.copy_from_slice(&header.encode());
}

/// Takes a body whose checksum is right apart: its marks, and where its entries start. Checks the counts.
pub(super) fn decode_body(header: &FrameHeader, body: &[u8]) -> Result<(Vec<ProducerMark>, usize), String> {
    let malformed = || "the frame's body has another shape than its header says".to_owned();
    let entries_at = (header.mark_count as usize).checked_mul(MARK_BYTES).ok_or_else(malformed)?;
    let mut fields = Fields(body.get(..entries_at).ok_or_else(malformed)?);
    let marks = (0..header.mark_count).map(|_| ProducerMark::decode(&mut fields)).collect::<Option<Vec<_>>>();
    let entries = body.get(entries_at..header.body_bytes as usize).ok_or_else(malformed)?;
    if count_entries(entries) != Some(header.count)
        || body[header.body_bytes as usize..].iter().any(|byte| *byte != 0)
    {
        return Err(malformed());
    }
    Ok((marks.ok_or_else(malformed)?, entries_at))
}

/// How many entries are in `entries`; `None` if they do not end where the last one ends.
pub(super) fn count_entries(entries: &[u8]) -> Option<u32> {
    bundle::entries(entries).try_fold(0u32, |count, entry| entry.ok().and_then(|_| count.checked_add(1)))
}

/// Whether a header that does not check can be the remains of one that was torn within its sector.
pub(super) fn is_torn_header(sector: &Sector) -> bool {
    is_zero(&sector[..TORN_END]) || is_zero(&sector[SECTOR - TORN_END..])
}

/// Whether either copy of a segment's id is where a frame header holds it. True of every valid header, and still
/// true when one bit of it is wrong: then it must not be taken for the debris of a torn body.
pub(super) fn carries_id(sector: &[u8], id: &SegmentId) -> bool {
    sector.get(ID_AT..ID_AT + ID_BYTES) == Some(id) || sector.get(ID_COPY_AT..CRC_AT) == Some(id)
}

pub(super) fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// The hash that the next header carries of this one.
pub(super) fn header_hash(sector: &[u8]) -> Hash {
    sha256(sector.get(..SECTOR).unwrap_or(sector))
}

fn seal(fields: &[&[u8]], id: &SegmentId) -> Sector {
    let mut sector = [0; SECTOR];
    let mut at = 0;
    for field in fields {
        sector[at..at + field.len()].copy_from_slice(field);
        at += field.len();
    }
    sector[ID_COPY_AT..CRC_AT].copy_from_slice(id);
    let crc = crc32c::crc32c(&sector[..CRC_AT]);
    sector[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    sector
}

fn unseal<'a>(sector: &'a Sector, magic: [u8; 8], what: &str) -> Result<Fields<'a>, String> {
    let mut fields = Fields(sector);
    if fields.array() != Some(magic) {
        return Err(format!("there is no {what}"));
    }
    if crc32c::crc32c(&sector[..CRC_AT]).to_le_bytes() != sector[CRC_AT..] {
        return Err(format!("the {what} does not match its checksum"));
    }
    match fields.u32() {
        Some(VERSION) => Ok(fields),
        other => Err(format!(
            "the {what} has version {}, and this program knows only version {VERSION}",
            other.unwrap_or_default()
        )),
    }
}

fn hash(fields: &mut Fields<'_>) -> Option<Hash> {
    fields.array().map(Hash::from_bytes)
}

/// Lengths here are limited far below 2^32; should one not be, the checks of the reader refuse it.
fn length_u32(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
