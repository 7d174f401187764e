//! One run: the keys of all leaves below one node of the tree, sorted, in a file that never changes
//! (docs/formats/lookup.md).
//!
//! Every byte of it lies under a checksum that is compared at each read, so damage is an error and never a
//! wrong answer or an absence. It does not know the tree, nor which other runs there are.

use std::cmp::Ordering;
use std::io;

use epigraph_core::{Hash, TreeSize};

use crate::fields::Fields;
use crate::file::{Dir, File};

/// What is kept of a leaf hash. Two leaves of one key cost their maker 2^48 hashes and hide the later one from
/// the lookup alone; to hide a given leaf takes 2^96.
pub(super) const KEY_BYTES: usize = 12;
pub(super) type Key = [u8; KEY_BYTES];

/// Offsets of leaves within a run are 32 bits wide.
pub(super) const MAX_HEIGHT: u32 = 32;
/// A run under construction.
pub(super) const NEW_NAME: &str = "new";

const MAGIC: &[u8; 8] = b"EPGLOOKU";
const VERSION: u32 = 1;
/// The unit of reading: a page of the system.
const BLOCK: usize = 4096;
const RECORD: usize = KEY_BYTES + size_of::<u32>();
/// Bytes of a block before its records: checksum, number of records, number of the block.
const BLOCK_HEADER: usize = 16;
const PER_BLOCK: u64 = ((BLOCK - BLOCK_HEADER) / RECORD) as u64;
/// Where the checksum of the first block stands, after magic and version. In any other block it comes first.
const HEADER_CRC: usize = 12;
/// Written at once.
const WRITE_BYTES: usize = 64 * BLOCK;
/// Leaf hashes are spread evenly, so that two or three guesses find the block. Whoever appends can choose some
/// that are not: after so many it is halving, at most 24 reads.
const GUESSES: u32 = 6;

/// The leaves below one node: `2^height` of them, at this position among those of that height.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Span {
    pub(super) height: u32,
    pub(super) index: u64,
}

impl Span {
    /// `None` unless a log can have all these leaves.
    pub(super) fn starting_at(first: u64, height: u32) -> Option<Span> {
        let leaves = 1u64.checked_shl(height).filter(|_| height <= MAX_HEIGHT)?;
        TreeSize::new(first.checked_add(leaves)?)?;
        first.is_multiple_of(leaves).then_some(Span { height, index: first >> height })
    }

    pub(super) fn leaves(self) -> u64 {
        1 << self.height
    }

    pub(super) fn first(self) -> u64 {
        self.index << self.height
    }

    pub(super) fn end(self) -> u64 {
        self.first() + self.leaves()
    }

    pub(super) fn name(self) -> String {
        format!("{:020}-{:02}.run", self.first(), self.height)
    }

    pub(super) fn of_name(name: &str) -> Option<Span> {
        let (first, height) = name.strip_suffix(".run")?.split_once('-')?;
        let span = Span::starting_at(first.parse().ok()?, height.parse().ok()?)?;
        (span.name() == name).then_some(span)
    }
}

/// Why a run cannot be used.
pub(super) enum Unusable {
    /// The system did not open it; that says nothing about its content.
    NotOpened(io::Error),
    /// It is not whole, or not this log's.
    Bad(String),
}

/// A finished run.
pub(super) struct Run {
    pub(super) span: Span,
    /// The hash of the node above its leaves.
    pub(super) root: Hash,
    records: u64,
    file: Box<dyn File>,
}

impl Run {
    /// Opens the run of these leaves and checks its header and its length.
    pub(super) fn open(dir: &dyn Dir, span: Span, origin_hash: Hash) -> Result<Run, Unusable> {
        let file = dir.open_read_only(&span.name()).map_err(Unusable::NotOpened)?;
        Run::check_header(file, span, origin_hash).map_err(Unusable::Bad)
    }

    fn check_header(file: Box<dyn File>, span: Span, origin_hash: Hash) -> Result<Run, String> {
        let mut block = [0; BLOCK];
        file.read_at(0, &mut block).map_err(unreadable)?;
        let header = Header::decode(&block)?;
        if header.origin_hash != origin_hash {
            return Err("it belongs to another log".to_owned());
        }
        if header.span != span {
            return Err("it was made for other entries than its name says".to_owned());
        }
        if header.records == 0 || header.records > span.leaves() {
            return Err(format!("it counts {} keys of {} entries", header.records, span.leaves()));
        }
        let run = Run { span, root: header.root, records: header.records, file };
        let (length, wanted) = (run.file.length().map_err(unreadable)?, run.bytes());
        if length != wanted {
            return Err(format!("it is {length} bytes long and not {wanted}"));
        }
        Ok(run)
    }

    /// Length of the file.
    pub(super) fn bytes(&self) -> u64 {
        (1 + self.blocks()) * BLOCK as u64
    }

    fn blocks(&self) -> u64 {
        self.records.div_ceil(PER_BLOCK)
    }

    /// The index of the first leaf with this key. The error says how the run is damaged.
    pub(super) fn find(&self, key: &Key) -> Result<Option<u64>, String> {
        // The block is one of these, and its keys are between those.
        let (mut low, mut high) = (0, self.blocks());
        let (mut low_key, mut high_key) = (0, u64::MAX);
        let wanted = leading(key);
        let mut guesses = 0;
        while low < high {
            let at = if guesses < GUESSES {
                guesses += 1;
                low + share(wanted.saturating_sub(low_key), high_key.saturating_sub(low_key), high - low)
            } else {
                low + (high - low) / 2
            };
            let block = self.block(at)?;
            let (Some((first, _)), Some((last, _))) = (block.record(0), block.last()) else { break };
            if *key < first {
                (high, high_key) = (at, leading(&first));
            } else if *key > last {
                (low, low_key) = (at + 1, leading(&last));
            } else {
                let Some(offset) = block.search(key) else { return Ok(None) };
                if u64::from(offset) >= self.span.leaves() {
                    return Err(format!("it names entry {offset} of {}", self.span.leaves()));
                }
                return Ok(Some(self.span.first() + u64::from(offset)));
            }
        }
        Ok(None)
    }

    fn block(&self, number: u64) -> Result<Block, String> {
        let mut block = Block { bytes: Box::new([0; BLOCK]), records: 0 };
        let offset = (1 + number) * BLOCK as u64;
        self.file.read_at(offset, &mut block.bytes[..]).map_err(unreadable)?;
        let mut fields = Fields(&block.bytes[..]);
        let (crc, records, found) = (fields.u32(), fields.u32(), fields.u64());
        if crc != Some(crc32c::crc32c(&block.bytes[4..])) {
            return Err(format!("the checksum at offset {offset} does not match"));
        }
        let wanted = PER_BLOCK.min(self.records.saturating_sub(number.saturating_mul(PER_BLOCK)));
        if found != Some(number) || records.map(u64::from) != Some(wanted) {
            return Err(format!("another block is at offset {offset}"));
        }
        block.records = wanted as usize;
        Ok(block)
    }

    /// All of its keys in order.
    pub(super) fn records(&self) -> Records<'_> {
        Records { run: self, block: None, next_block: 0, next: 0 }
    }
}

/// A block that was checked.
struct Block {
    bytes: Box<[u8; BLOCK]>,
    records: usize,
}

impl Block {
    fn record(&self, number: usize) -> Option<(Key, u32)> {
        let at = BLOCK_HEADER + number.min(self.records) * RECORD;
        let mut fields = Fields(self.bytes.get(at..BLOCK_HEADER + self.records * RECORD)?);
        Some((fields.array()?, fields.u32()?))
    }

    fn last(&self) -> Option<(Key, u32)> {
        self.record(self.records.checked_sub(1)?)
    }

    fn search(&self, wanted: &Key) -> Option<u32> {
        let (mut low, mut high) = (0, self.records);
        while low < high {
            let middle = low + (high - low) / 2;
            let (key, offset) = self.record(middle)?;
            match key.cmp(wanted) {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                Ordering::Equal => return Some(offset),
            }
        }
        None
    }
}

/// The keys of a run, ascending, each with the offset of its leaf.
pub(super) struct Records<'a> {
    run: &'a Run,
    block: Option<Block>,
    next_block: u64,
    next: usize,
}

impl Records<'_> {
    /// The error says how the run is damaged.
    pub(super) fn next_record(&mut self) -> Result<Option<(Key, u32)>, String> {
        loop {
            if let Some(record) = self.block.as_ref().and_then(|block| block.record(self.next)) {
                self.next += 1;
                return Ok(Some(record));
            }
            if self.next_block == self.run.blocks() {
                return Ok(None);
            }
            self.block = Some(self.run.block(self.next_block)?);
            self.next_block += 1;
            self.next = 0;
        }
    }
}

/// Writes one run. It is nothing before it has its name and the directory is synced.
pub(super) struct RunWriter {
    file: Box<dyn File>,
    /// Whole blocks.
    buffer: Vec<u8>,
    /// Records of the block that is not whole.
    block: Vec<u8>,
    blocks: u64,
    records: u64,
    length: u64,
}

impl RunWriter {
    /// Starts under [`NEW_NAME`], in the place of what an interrupted one left.
    pub(super) fn create(dir: &dyn Dir) -> io::Result<RunWriter> {
        match dir.remove(NEW_NAME) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        Ok(RunWriter {
            file: dir.create(NEW_NAME)?,
            buffer: Vec::with_capacity(WRITE_BYTES),
            block: Vec::with_capacity(BLOCK),
            blocks: 0,
            records: 0,
            length: BLOCK as u64,
        })
    }

    /// The next key, larger than the one before, and where its leaf is in the run.
    pub(super) fn push(&mut self, key: &Key, offset: u32) -> io::Result<()> {
        self.block.extend_from_slice(key);
        self.block.extend_from_slice(&offset.to_le_bytes());
        self.records += 1;
        if self.records.is_multiple_of(PER_BLOCK) { self.end_block() } else { Ok(()) }
    }

    fn end_block(&mut self) -> io::Result<()> {
        let start = self.buffer.len();
        let count = (self.block.len() / RECORD) as u32;
        self.buffer.extend_from_slice(&[0; 4]);
        self.buffer.extend_from_slice(&count.to_le_bytes());
        self.buffer.extend_from_slice(&self.blocks.to_le_bytes());
        self.buffer.append(&mut self.block);
        self.buffer.resize(start + BLOCK, 0);
        self.blocks += 1;
        let crc = crc32c::crc32c(self.buffer.get(start + 4..).unwrap_or_default());
        if let Some(place) = self.buffer.get_mut(start..start + 4) {
            place.copy_from_slice(&crc.to_le_bytes());
        }
        if self.buffer.len() < WRITE_BYTES { Ok(()) } else { self.write_out() }
    }

    fn write_out(&mut self) -> io::Result<()> {
        self.file.write_at(self.length, &self.buffer)?;
        self.length += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Makes it durable and gives it its name.
    pub(super) fn finish(
        mut self,
        dir: &dyn Dir,
        span: Span,
        root: Hash,
        origin_hash: Hash,
    ) -> io::Result<Run> {
        if !self.block.is_empty() {
            self.end_block()?;
        }
        self.write_out()?;
        let header = Header { origin_hash, span, records: self.records, root };
        self.file.write_at(0, &header.encode())?;
        self.file.sync()?;
        dir.crash_point("lookup.run.synced");
        dir.rename(NEW_NAME, &span.name())?;
        dir.crash_point("lookup.run.renamed");
        dir.sync()?;
        Ok(Run { span, root, records: self.records, file: self.file })
    }
}

struct Header {
    origin_hash: Hash,
    span: Span,
    records: u64,
    root: Hash,
}

impl Header {
    fn encode(&self) -> [u8; BLOCK] {
        let mut bytes = Vec::with_capacity(BLOCK);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(self.origin_hash.as_bytes());
        bytes.extend_from_slice(&self.span.first().to_le_bytes());
        bytes.extend_from_slice(&self.span.height.to_le_bytes());
        bytes.extend_from_slice(&self.records.to_le_bytes());
        bytes.extend_from_slice(self.root.as_bytes());
        let mut block = [0; BLOCK];
        block.iter_mut().zip(&bytes).for_each(|(place, byte)| *place = *byte);
        let crc = crc32c::crc32c(&block);
        block[HEADER_CRC..HEADER_CRC + 4].copy_from_slice(&crc.to_le_bytes());
        block
    }

    fn decode(block: &[u8; BLOCK]) -> Result<Header, String> {
        let mut fields = Fields(block);
        let mut take = || {
            let (magic, version, crc) = (fields.array::<8>()?, fields.u32()?, fields.u32()?);
            let origin_hash = Hash::from_bytes(fields.array()?);
            let (first, height, records) = (fields.u64()?, fields.u32()?, fields.u64()?);
            Some((
                magic,
                version,
                crc,
                origin_hash,
                first,
                height,
                records,
                Hash::from_bytes(fields.array()?),
            ))
        };
        let Some((magic, version, crc, origin_hash, first, height, records, root)) = take() else {
            return Err("it has no header".to_owned());
        };
        if magic != *MAGIC {
            return Err("it does not start with the magic bytes".to_owned());
        }
        let mut unsigned = *block;
        unsigned[HEADER_CRC..HEADER_CRC + 4].fill(0);
        if crc32c::crc32c(&unsigned) != crc {
            return Err("the checksum of its header does not match".to_owned());
        }
        if version != VERSION {
            return Err(format!("it has version {version}, and this release knows {VERSION} only"));
        }
        let span = Span::starting_at(first, height);
        let span = span.ok_or_else(|| format!("no run starts at {first} with height {height}"))?;
        Ok(Header { origin_hash, span, records, root })
    }
}

/// The first 64 bits of a key, as a number that orders as keys do.
fn leading(key: &Key) -> u64 {
    key.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

/// The same share of `count` as `part` is of `whole`, below `count`.
fn share(part: u64, whole: u64, count: u64) -> u64 {
    let of = u128::from(part.min(whole)) * u128::from(count) / (u128::from(whole) + 1);
    u64::try_from(of).unwrap_or(0)
}

fn unreadable(error: io::Error) -> String {
    format!("it cannot be read: {error}")
}
