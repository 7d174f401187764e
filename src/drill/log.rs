//! The journal, the stored tree and the lookup of a log.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use epigraph_core::hash::leaf_hash;
use epigraph_core::proof::{Nodes, prove_inclusion};
use epigraph_core::tlog_proof::Receipt;
use epigraph_core::{Checkpoint, Hash, LeafIndex, Origin, Policy, TreeHead, TreeSize};
use epigraph_store::file::Dir;
use epigraph_store::journal::{Inspection, Reader};
use epigraph_store::lookup::Lookup;
use epigraph_store::published;
use epigraph_store::tile::TileId;
use epigraph_store::tree::{self, Notice, Tree};

use super::{Copy, Drilled, about, cannot_read, flip, places_of};
use crate::config::ProcessConfig;
use crate::failure::{Failure, Outcome};
use crate::fsck;
use crate::preflight;
use crate::state;
use crate::terminal::Terminal;

/// Entries that are tried until one is found whose bytes are in the journal once.
const MAX_TRIED: u64 = 4_096;

/// The lengths of a block of a run, of what comes before its records, and of a record's key: docs/formats/lookup.md.
const BLOCK: usize = 4_096;
const BLOCK_HEAD: usize = 16;
const KEY: usize = 12;

/// A copy of a sound log, and what was true of it before anything was changed.
pub(super) struct StoppedLog {
    pub(super) copy: Copy,
    config: ProcessConfig,
    origin: Origin,
    journal: Arc<dyn Dir>,
    /// In memory.
    tree: Arc<Tree>,
    durable: TreeHead,
    /// The log's key alone: a drill is not about witnesses.
    pub(super) policy: Policy,
    note: Vec<u8>,
    pub(super) published: TreeSize,
}

impl StoppedLog {
    /// The first log of log.toml in a directory, which must be sound: damage that is there before is for `fsck`.
    pub(super) fn of(dir: &Path, terminal: Terminal) -> Outcome<StoppedLog> {
        let mut config = ProcessConfig::load(&dir.join("log.toml"))?;
        let copy = {
            let _locked = state::lock_stopped(&config)?;
            Copy::of(&config.directory, "log")?
        };
        config.directory = copy.path();
        for log in &mut config.logs {
            log.directory = copy.of_path(&log.directory);
        }
        let log = config.logs.first().ok_or_else(|| Failure::usage("log.toml has no log"))?;
        let origin = log.origin.to_origin();
        let (inspection, ..) = fsck::inspect(&config, log, terminal)?;
        let Inspection { flaws, head: durable, .. } = inspection;
        if !flaws.is_empty() {
            return Err(Failure::state(format!("{origin} is damaged already: see `epigraph fsck`")));
        }
        let policy = Policy::of_log(state::vkey(log)?);
        let published = state::open_dir(&log.directory.join("checkpoints"))?;
        let (note, _) = published::inspect(published.as_ref()).map_err(Failure::state)?;
        let note =
            note.ok_or_else(|| Failure::usage("the log has published nothing yet: append something"))?;
        let published = Checkpoint::open(&note, &policy).map_err(Failure::state)?.head().size;
        let journal = state::open_dir(&log.directory.join("journal"))?;
        let (tree, mut follower) =
            tree::open_in_memory(Arc::clone(&journal), origin.hash()).map_err(Failure::state)?;
        follower.catch_up(durable.size, &mut |_| ControlFlow::Continue(())).map_err(Failure::state)?;
        Ok(StoppedLog { copy, config, origin, journal, tree, durable, policy, note, published })
    }

    fn directory(&self) -> PathBuf {
        self.config.logs.first().map(|log| log.directory.clone()).unwrap_or_default()
    }

    /// What the check of everything finds below a path.
    fn scrub(&self, path: &Path, terminal: Terminal) -> Outcome<Option<String>> {
        let Some(log) = self.config.logs.first() else { return Ok(None) };
        let (_, _, findings) = fsck::inspect(&self.config, log, terminal)?;
        Ok(about(&findings, path, &self.copy))
    }

    /// The receipt of an entry under the published checkpoint.
    pub(super) fn receipt(&self, index: LeafIndex) -> Outcome<Receipt> {
        let proof = prove_inclusion(&*self.tree, index, self.published).map_err(Failure::state)?;
        let hashes = proof.map_err(Failure::state)?.hashes;
        Ok(Receipt { extra: None, index, hashes, checkpoint: self.note.clone() })
    }

    fn leaf(&self, index: LeafIndex) -> Outcome<Hash> {
        self.tree.node(0, index.get()).map_err(Failure::state)
    }

    /// What a reader says who has the log's public key.
    fn verify(&self, receipt: &Receipt, leaf: &Hash) -> Option<String> {
        receipt.verify(leaf, &self.policy).err().map(|error| error.to_string())
    }

    fn needs(&self, entries: u64, what: &str) -> Failure {
        Failure::usage(format!(
            "{what} from {entries} entries on, and the log has {}: while it runs add some that are for trying out (`epigraph hammer \
             --count {entries} --batch 1024`), stop it, and try again",
            self.durable.size
        ))
    }
}

/// A bit of an entry.
pub(super) fn journal(dir: &Path, terminal: Terminal) -> Outcome<Drilled> {
    let log = StoppedLog::of(dir, terminal)?;
    let directory = log.directory().join("journal");
    let (index, entry, file, offset) = entry_in_journal(&log, &directory)?;
    let receipt = log.receipt(index)?;
    // The last byte of the entry.
    let offset = offset + entry.len() as u64 - 1;
    flip(&file, offset)?;
    let mut reader = Reader::new(Arc::clone(&log.journal), log.origin.hash());
    let read = loop {
        match reader.next_frame(log.durable.size) {
            Ok(Some(_)) => {}
            Ok(None) => break None,
            Err(error) => break Some(error.to_string()),
        }
    };
    let mut changed = entry;
    if let Some(last) = changed.last_mut() {
        *last ^= 1;
    }
    Ok(Drilled {
        what: format!("entry {index} of {}", log.origin),
        file: log.copy.name(&file),
        offset,
        read,
        scrub: log.scrub(&directory, terminal)?,
        verify: log.verify(&receipt, &leaf_hash(&changed)),
    })
}

/// An entry whose bytes are in the journal once, and where.
fn entry_in_journal(log: &StoppedLog, directory: &Path) -> Outcome<(LeafIndex, Vec<u8>, PathBuf, u64)> {
    let segments = super::files(directory, "seg")?;
    let middle = log.published.get() / 2;
    for index in (middle..log.published.get()).take(MAX_TRIED as usize).filter_map(LeafIndex::new) {
        let mut entry = Vec::new();
        let taken =
            log.tree.read(index, index.size_after()).take(1, usize::MAX, |bytes| entry = bytes.to_vec());
        taken.map_err(Failure::state)?;
        if entry.is_empty() {
            continue;
        }
        // As a bundle has it (C2SP tlog-tiles): its length, and its bytes.
        let length = u16::try_from(entry.len()).map_err(Failure::state)?;
        let wanted = [&length.to_be_bytes()[..], &entry].concat();
        let mut found = Vec::new();
        for segment in &segments {
            found.extend(places_of(segment, &wanted)?.into_iter().map(|at| (segment.clone(), at)));
        }
        if let [(segment, at)] = &found[..] {
            return Ok((index, entry, segment.clone(), at + 2));
        }
    }
    Err(Failure::usage("no entry of the log has bytes that are in its journal once: append another one"))
}

/// A bit of a tile of leaf hashes.
pub(super) fn tile(dir: &Path, terminal: Terminal) -> Outcome<Drilled> {
    const ID: TileId = TileId { level: 0, index: 0 };
    let log = StoppedLog::of(dir, terminal)?;
    let (directory, size) = (log.directory().join("tree"), log.durable.size);
    if size.get() < 256 || log.published.get() < 2 {
        return Err(log.needs(256, "a tile is stored"));
    }
    let hashes = log.tree.tile(ID, size).map_err(Failure::state)?.unwrap_or_default();
    let wanted: Vec<u8> = hashes.iter().take(2).flat_map(|hash| hash.as_bytes().to_vec()).collect();
    let file = directory.join("db");
    let mut changed = None;
    for at in places_of(&file, &wanted)? {
        flip(&file, at)?;
        // The database appends: the same bytes may lie somewhere as they once were, and are not read any more.
        if let Some(named) = log.scrub(&directory, terminal)? {
            changed = Some((at, named));
            break;
        }
        flip(&file, at)?;
    }
    let (offset, scrub) =
        changed.ok_or_else(|| Failure::state("no tile was found in the stored tree that is read"))?;
    let read = read_tile(&log, ID, &directory, &hashes)?;
    // What the tile would have shown of entry 0 to whoever asks for entry 1.
    let index = LeafIndex::new(1).ok_or_else(|| Failure::state("no entry 1"))?;
    let mut receipt = log.receipt(index)?;
    if let Some(sibling) = receipt.hashes.first_mut() {
        let mut bytes = *sibling.as_bytes();
        bytes[0] ^= 1;
        *sibling = Hash::from_bytes(bytes);
    }
    Ok(Drilled {
        what: format!("tile {ID} of {}", log.origin),
        file: log.copy.name(&file),
        offset,
        read,
        scrub: Some(scrub),
        verify: log.verify(&receipt, &log.leaf(index)?),
    })
}

/// Opens the tree as a start of the log does, and reads the tile.
fn read_tile(log: &StoppedLog, id: TileId, directory: &Path, right: &[Hash]) -> Outcome<Option<String>> {
    let tree = Arc::new(Tree::new(Arc::clone(&log.journal), log.origin.hash()));
    let place = tree::Place { directory: directory.to_owned(), preflight: preflight::in_a_child() };
    let (mut aside, mut stored) = (None, TreeSize::ZERO);
    let mut notice = |notice| match notice {
        Notice::MovedAside { why, .. } => aside = Some(why),
        Notice::Stored(size) => stored = size,
    };
    let (journal, hash) = (Arc::clone(&log.journal), log.origin.hash());
    let mut follower =
        tree::open(&tree, &place, journal, hash, log.durable, &mut notice).map_err(Failure::state)?;
    follower.catch_up(log.durable.size, &mut |_| ControlFlow::Continue(())).map_err(Failure::state)?;
    let served = tree.tile(id, log.durable.size).map_err(Failure::state)?;
    if served.as_deref() != Some(right) {
        return Ok(None);
    }
    let counters = tree.counters();
    Ok(match aside {
        Some(why) => Some(log.copy.named(format_args!(
            "the stored tree was set aside ({}) and built again from the journal; what is served is right",
            why.trim()
        ))),
        // A log that was stopped has stored every tile that is complete.
        None if stored.get() < log.durable.size.get() / 256 * 256 => Some(format!(
            "the stored tree ends at entry {stored}, and was built again from the journal from there on; what is served is right"
        )),
        None if counters.missing + counters.unreadable + counters.wrong > 0 => Some(format!(
            "tile {id} was not what its parent says, and was made again from the entries; what is served is right"
        )),
        None => None,
    })
}

/// A bit of the place that the lookup says of an entry.
pub(super) fn lookup(dir: &Path, terminal: Terminal) -> Outcome<Drilled> {
    let log = StoppedLog::of(dir, terminal)?;
    let directory = log.directory().join("lookup");
    let run = super::files(&directory, "run").unwrap_or_default().into_iter().next();
    let file = run.ok_or_else(|| log.needs(65_536, "the lookup is on disk"))?;
    let bytes = fs::read(&file).map_err(|error| cannot_read(&file, &error))?;
    let first: u64 = file
        .file_name()
        .and_then(|name| name.to_str()?.split('-').next()?.parse().ok())
        .ok_or_else(|| Failure::state("a run of the lookup has no number"))?;
    // The first record: its key, and its entry counted from the run's first.
    let at = BLOCK + BLOCK_HEAD + KEY;
    let record = bytes.get(at..at + 4).and_then(|place| place.try_into().ok()).map(u32::from_le_bytes);
    let place = record.ok_or_else(|| Failure::state("a run of the lookup is cut off"))?;
    let of =
        |place: u32| LeafIndex::new(first + u64::from(place)).filter(|index| log.published.contains(*index));
    let (Some(index), Some(other)) = (of(place), of(place ^ 1)) else {
        return Err(log.needs(65_536, "the lookup is on disk, and published,"));
    };
    let leaf = log.leaf(index)?;
    flip(&file, at as u64)?;
    let dir = state::open_dir(&directory)?;
    let mut aside = None;
    let lookup =
        Lookup::open(dir, log.origin.hash(), Arc::clone(&log.tree), log.durable.size, &mut |set_aside| {
            aside = Some(format!("{set_aside:?}"));
        });
    let found = lookup.map_err(Failure::state)?.find(&leaf);
    let read = match found {
        Err(error) => Some(error.to_string()),
        Ok(_) => aside,
    };
    Ok(Drilled {
        what: format!("the place of entry {index} in the lookup of {}", log.origin),
        file: log.copy.name(&file),
        offset: at as u64,
        read,
        scrub: log.scrub(&file, terminal)?,
        // Whoever believed it would be handed another entry's proof.
        verify: log.verify(&log.receipt(other)?, &leaf),
    })
}
