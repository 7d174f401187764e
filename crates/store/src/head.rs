//! The head store: for each log the one small value that a signer or a witness must never lose or find older,
//! changed only by compare-and-swap and durable before anybody hears of it.
//!
//! One preallocated file, `heads`, holds all logs of a process: four slots each, two generations in two copies.
//! A commit of many logs is one sync. The bytes are described in docs/formats/heads.md; how the state after a
//! crash is judged, in `head/recover.rs`. The store does not know what a head means: whether a new one may
//! follow is decided in `epigraph-core`, whether a suspect one may be trusted is decided by the gate.
//!
//! It is trusted for freshness as far as the disk is: whoever can write the file can put it back to an older
//! state. This shows only against what the log, the signer and the witnesses hold, which is what the gate asks.

mod error;
mod layout;
mod recover;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;

use epigraph_core::progress::{Held, Persist, Recall, Step};
use epigraph_core::{Entropy, Origin};

use crate::file::{Dir, File};
use layout::{BLOCK, HEADERS, Header, LOG, SLOT, SLOTS, StoreId};
use recover::{Recovered, Refusal};

pub use error::{HeadError, Warning};
pub use layout::{Bad, MAX_HELD_NOTE_BYTES, MAX_LOGS};

const FILE: &str = "heads";
const NEW_FILE: &str = "heads.new";
/// By how many logs a full file grows (512 KiB): growth costs a journal commit of the file system.
const GROW_LOGS: u32 = 16;

/// Every crash point of the head store, and what a crash there leaves.
pub const CRASH_POINTS: [(&str, &str); 5] = [
    (
        "heads.copy.written",
        "The old state, the new one, or a suspect old one; nobody was told of the new one.",
    ),
    ("heads.commit.synced", "The new state, durable, that nobody was told of."),
    ("heads.init.slots", "Slots that no header counts. The next `init_log` writes over them."),
    ("heads.init.header", "The log, in one copy of the header or in both. Open takes the newer one."),
    ("heads.settle.synced", "A store whose bad copies are repaired. Open does it again."),
];

/// One change: `new` takes the place of `expected`, if that is what is held.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Update {
    /// Which log.
    pub origin: Origin,
    /// What the decision was based on.
    pub expected: Held,
    /// What it came to.
    pub new: Held,
}

/// The open store. It has one owner; `&mut` is the lock.
pub struct HeadStore {
    dir: Arc<dyn Dir>,
    file: Box<dyn File>,
    header: Header,
    /// In the order of the file.
    logs: Vec<Log>,
    by_origin: HashMap<Origin, usize>,
    failed: bool,
}

struct Log {
    origin: Origin,
    generation: u64,
    held: Held,
    suspect: bool,
}

impl HeadStore {
    /// Creates the file with room for `capacity` logs, none in it, and opens it. A crash leaves either no store
    /// or a whole one.
    pub fn create(dir: Arc<dyn Dir>, capacity: u32, entropy: &dyn Entropy) -> Result<HeadStore, HeadError> {
        if capacity > MAX_LOGS {
            return Err(HeadError::TooManyLogs);
        }
        let mut store = StoreId::default();
        entropy.fill(&mut store);
        let names = dir.list().map_err(|source| HeadError::Io { action: "look for", source })?;
        if names.iter().any(|name| name == FILE) {
            return Err(HeadError::Exists);
        }
        let create = || {
            if names.iter().any(|name| name == NEW_FILE) {
                dir.remove(NEW_FILE)?;
            }
            let file = dir.create(NEW_FILE)?;
            let header = layout::encode_header(&Header { store, revision: 0, capacity, logs: 0 });
            file.write_at(0, &header)?;
            file.write_at(BLOCK as u64, &header)?;
            write_zeros(&*file, 0..capacity)?;
            file.sync()?;
            dir.rename(NEW_FILE, FILE)?;
            dir.sync()
        };
        create().map_err(|source| HeadError::Io { action: "create", source })?;
        Ok(HeadStore::open(dir)?.0)
    }

    /// Opens the file, checks every slot, and writes the newest heads again in place before it trusts them: the
    /// kernel may show pages that never reached the disk, if the process before this one ended on a failed sync.
    pub fn open(dir: Arc<dyn Dir>) -> Result<(HeadStore, Vec<Warning>), HeadError> {
        let file = dir.open(FILE).map_err(not_opened)?;
        let mut warnings = Vec::new();
        let (header, bad_header) = read_header(&*file, &mut warnings)?;
        let recovered = read_logs(&*file, &header, &mut warnings)?;
        let mut store =
            HeadStore { dir, file, header, logs: Vec::new(), by_origin: HashMap::new(), failed: false };
        let mut repairs = Vec::new();
        for (log, found) in (0..).zip(recovered) {
            let newest = found.newest;
            if store.by_origin.insert(newest.origin.clone(), store.logs.len()).is_some() {
                let why = format!("{:?} is held twice", newest.origin);
                return Err(HeadError::Damaged { offset: layout::offset(log * SLOTS), why });
            }
            repairs.push(found.repair.map_or(1, |(copy, _)| copy));
            store.logs.push(Log {
                origin: newest.origin,
                generation: newest.generation,
                held: newest.held,
                suspect: found.suspect,
            });
        }
        store.settle(bad_header, &repairs).map_err(|source| HeadError::Io { action: "settle", source })?;
        Ok((store, warnings))
    }

    /// Adds a log with its first state: the only way in which state comes into being.
    pub fn init_log(&mut self, origin: &Origin, first: Held) -> Result<(), HeadError> {
        self.init_logs(vec![(origin.clone(), first)])
    }

    /// Adds many logs, all of them or none, with as many syncs as one takes.
    pub fn init_logs(&mut self, logs: Vec<(Origin, Held)>) -> Result<(), HeadError> {
        self.alive()?;
        let mut named = HashSet::new();
        for (origin, first) in &logs {
            check_bounds(first)?;
            if self.by_origin.contains_key(origin) || !named.insert(origin) {
                return Err(HeadError::OriginExists(origin.clone()));
            }
        }
        let Some(count) = u32::try_from(logs.len()).ok().filter(|count| *count > 0) else {
            return if logs.is_empty() { Ok(()) } else { Err(HeadError::TooManyLogs) };
        };
        let header = self.next_header(count)?;
        let written = self.write_first(&header, &logs);
        self.fatal(written)?;
        self.header = header;
        for (origin, held) in logs {
            self.by_origin.insert(origin.clone(), self.logs.len());
            self.logs.push(Log { origin, generation: 1, held, suspect: false });
        }
        Ok(())
    }

    /// Every log and its newest head, suspect ones among them: to be shown, not to be decided on.
    pub fn heads(&self) -> impl Iterator<Item = (&Origin, &Held)> {
        self.logs.iter().map(|log| (&log.origin, &log.held))
    }

    /// What is held for a log. A suspect head is refused here, so that no decision can be based on it.
    pub fn get(&self, origin: &Origin) -> Result<&Held, HeadError> {
        let log = &self.logs[self.index(origin)?];
        if log.suspect { Err(HeadError::Suspect(origin.clone())) } else { Ok(&log.held) }
    }

    /// What is held for a log, also where it is suspect: to be compared by the gate, not to be decided on.
    pub fn look(&self, origin: &Origin) -> Result<&Held, HeadError> {
        Ok(&self.logs[self.index(origin)?].held)
    }

    /// The logs for which a newer head may have been lost, and the head fallen back to. For the gate alone.
    pub fn suspects(&self) -> impl Iterator<Item = (&Origin, &Held)> {
        self.logs.iter().filter(|log| log.suspect).map(|log| (&log.origin, &log.held))
    }

    /// Trusts the head that was fallen back to. For the gate alone, after it found that nobody it has to ask
    /// holds a newer one. Not durable before the next commit: a restart asks again.
    pub fn clear_suspicion(&mut self, origin: &Origin) -> Result<(), HeadError> {
        let index = self.index(origin)?;
        self.logs[index].suspect = false;
        Ok(())
    }

    /// Compares, makes durable, then swaps: several logs under one sync. If any update is refused nothing is
    /// written. After `Ok` all are durable; after [`HeadError::Fatal`] each of them may be, and the store
    /// answers nothing any more.
    pub fn commit(&mut self, updates: &[Update]) -> Result<(), HeadError> {
        self.alive()?;
        let mut indexes = Vec::with_capacity(updates.len());
        let mut named = HashSet::new();
        for update in updates {
            check_bounds(&update.new)?;
            if *self.get(&update.origin)? != update.expected {
                return Err(HeadError::Changed(update.origin.clone()));
            }
            if !named.insert(&update.origin) {
                return Err(HeadError::Twice(update.origin.clone()));
            }
            indexes.push(self.index(&update.origin)?);
        }
        let written = self.write_next(&indexes, updates);
        self.fatal(written)?;
        for (index, update) in indexes.into_iter().zip(updates) {
            let log = &mut self.logs[index];
            log.generation += 1;
            log.held = update.new.clone();
        }
        Ok(())
    }

    /// Overwrites the generation before the one held, so a crash leaves the one held untouched.
    fn write_next(&self, indexes: &[usize], updates: &[Update]) -> io::Result<()> {
        for copy in [0, 1] {
            for (index, update) in indexes.iter().zip(updates) {
                let generation = self.logs[*index].generation + 1;
                self.write_slot(*index, copy, &update.origin, generation, &update.new)?;
            }
            self.dir.crash_point("heads.copy.written");
        }
        self.file.sync()?;
        self.dir.crash_point("heads.commit.synced");
        Ok(())
    }

    /// The header as it is with `count` logs more.
    fn next_header(&self, count: u32) -> Result<Header, HeadError> {
        let mut header = self.header.clone();
        header.logs = header.logs.saturating_add(count);
        if header.logs > header.capacity {
            header.capacity = header.logs.max(header.capacity.saturating_add(GROW_LOGS)).min(MAX_LOGS);
        }
        if header.logs > header.capacity {
            return Err(HeadError::TooManyLogs);
        }
        header.revision += 1;
        Ok(header)
    }

    /// The slots first, then the header that counts them: a log exists once both copies of the header say so,
    /// and from then on its zeroed slots are damage, not absence.
    fn write_first(&self, header: &Header, logs: &[(Origin, Held)]) -> io::Result<()> {
        write_zeros(&*self.file, self.header.capacity..header.capacity)?;
        for (index, (origin, first)) in (self.logs.len()..).zip(logs) {
            for (generation, copy) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                self.write_slot(index, copy, origin, generation, first)?;
            }
        }
        self.file.sync()?;
        self.dir.crash_point("heads.init.slots");
        for copy in [0, 1] {
            self.file.write_at(copy * BLOCK as u64, &layout::encode_header(header))?;
            self.file.sync()?;
            self.dir.crash_point("heads.init.header");
        }
        Ok(())
    }

    /// Writes the newest state in place, first the copies that are bad, and when those are durable the others:
    /// at no time are both copies of anything in flight.
    fn settle(&self, bad_header: u64, repairs: &[u32]) -> io::Result<()> {
        for round in [0, 1] {
            let header = layout::encode_header(&self.header);
            self.file.write_at((bad_header ^ round) * BLOCK as u64, &header)?;
            for (index, (log, copy)) in self.logs.iter().zip(repairs).enumerate() {
                self.write_slot(index, copy ^ round as u32, &log.origin, log.generation, &log.held)?;
            }
            self.file.sync()?;
            self.dir.crash_point("heads.settle.synced");
        }
        Ok(())
    }

    fn write_slot(
        &self,
        index: usize,
        copy: u32,
        origin: &Origin,
        generation: u64,
        held: &Held,
    ) -> io::Result<()> {
        let place = layout::place(index as u32, copy, generation);
        let bytes = layout::encode_slot(&self.header.store, place, origin, generation, held);
        self.file.write_at(layout::offset(place), &bytes)
    }

    fn index(&self, origin: &Origin) -> Result<usize, HeadError> {
        self.alive()?;
        self.by_origin.get(origin).copied().ok_or_else(|| HeadError::UnknownOrigin(origin.clone()))
    }

    fn alive(&self) -> Result<(), HeadError> {
        if self.failed { Err(HeadError::Failed) } else { Ok(()) }
    }

    fn fatal(&mut self, result: io::Result<()>) -> Result<(), HeadError> {
        self.failed |= result.is_err();
        result.map_err(|source| HeadError::Fatal { source })
    }
}

impl Persist for HeadStore {
    type Error = HeadError;

    fn persist(&mut self, steps: &[Step]) -> Result<(), HeadError> {
        let update = |step: &Step| Update {
            origin: step.origin().clone(),
            expected: step.held().clone(),
            new: step.next().clone(),
        };
        self.commit(&steps.iter().map(update).collect::<Vec<_>>())
    }
}

impl Recall for HeadStore {
    type Error = HeadError;

    fn durable(&self, origin: &Origin) -> Result<&Held, HeadError> {
        self.get(origin)
    }
}

/// What [`inspect`] found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inspection {
    /// The newest head of each log, suspect ones among them.
    pub heads: Vec<(Origin, Held)>,
    /// What opening would warn of, and repair.
    pub warnings: Vec<Warning>,
}

/// Reads the newest heads as opening would. Changes nothing.
pub fn inspect(dir: &dyn Dir) -> Result<Inspection, HeadError> {
    let file = dir.open_read_only(FILE).map_err(not_opened)?;
    let mut warnings = Vec::new();
    let (header, _) = read_header(&*file, &mut warnings)?;
    let recovered = read_logs(&*file, &header, &mut warnings)?;
    let heads = recovered.into_iter().map(|found| (found.newest.origin, found.newest.held));
    Ok(Inspection { heads: heads.collect(), warnings })
}

fn not_opened(source: io::Error) -> HeadError {
    match source.kind() {
        io::ErrorKind::NotFound => HeadError::Missing,
        _ => HeadError::Io { action: "open", source },
    }
}

fn check_bounds(held: &Held) -> Result<(), HeadError> {
    if held.note.len() > MAX_HELD_NOTE_BYTES {
        return Err(HeadError::NoteTooLong(held.note.len()));
    }
    Ok(())
}

/// Zeros, not a hole: a commit must never have to allocate.
fn write_zeros(file: &dyn File, logs: std::ops::Range<u32>) -> io::Result<()> {
    for log in logs {
        file.write_at(layout::offset(log * SLOTS), &[0; LOG])?;
    }
    Ok(())
}

/// The newer of the two headers, and which copy is to be written first because it is bad or older.
fn read_header(file: &dyn File, warnings: &mut Vec<Warning>) -> Result<(Header, u64), HeadError> {
    let length = file.length().map_err(|source| HeadError::Io { action: "measure", source })?;
    let damaged = |offset, why: String| HeadError::Damaged { offset, why };
    if length < HEADERS as u64 {
        return Err(damaged(length, "the file ends inside its header".into()));
    }
    let mut block = [0; BLOCK];
    let mut copy = |copy: u64| {
        let read = file.read_at(copy * BLOCK as u64, &mut block);
        read.map_err(|source| HeadError::Io { action: "read", source })?;
        match layout::decode_header(&block) {
            Err(Bad::Version(version)) => Err(HeadError::Version { offset: copy * BLOCK as u64, version }),
            decoded => Ok(decoded),
        }
    };
    let copies = (copy(0)?, copy(1)?);
    let (header, bad) = match copies {
        (Ok(a), Ok(b)) if a == b => (a, None),
        (Ok(a), Ok(b)) if a.store != b.store || a.revision == b.revision => {
            return Err(damaged(0, "its two headers contradict one another".into()));
        }
        (Ok(a), Ok(b)) if a.revision > b.revision => (a, Some((1, Bad::Behind(b.revision)))),
        (Ok(a), Ok(b)) => (b, Some((0, Bad::Behind(a.revision)))),
        (Ok(a), Err(bad)) => (a, Some((1, bad))),
        (Err(bad), Ok(b)) => (b, Some((0, bad))),
        (Err(bad), Err(_)) => return Err(damaged(0, format!("neither header is whole: {bad}"))),
    };
    if length < layout::file_length(header.capacity) {
        return Err(damaged(length, format!("the file ends before its {} logs do", header.capacity)));
    }
    warnings.extend(bad.map(|(copy, bad)| Warning::HeaderRepaired { offset: copy * BLOCK as u64, bad }));
    Ok((header, bad.map_or(1, |(copy, _)| copy)))
}

fn read_logs(
    file: &dyn File,
    header: &Header,
    warnings: &mut Vec<Warning>,
) -> Result<Vec<Recovered>, HeadError> {
    let mut recovered = Vec::new();
    let mut bytes = [0; LOG];
    for log in 0..header.logs {
        let first = log * SLOTS;
        let offset = layout::offset(first);
        file.read_at(offset, &mut bytes).map_err(|source| HeadError::Io { action: "read", source })?;
        let slots = std::array::from_fn(|slot| {
            layout::decode_slot(&header.store, first + slot as u32, &bytes[slot * SLOT..][..SLOT])
        });
        let damaged = |why| Err(HeadError::Damaged { offset, why });
        let found = match recover::recover(log, &slots) {
            Ok(found) => found,
            Err(Refusal::NoneValid(bad)) => {
                return damaged(format!("none of a log's four slots is whole: {bad}"));
            }
            Err(Refusal::OriginsDiffer) => return damaged("one log's slots name several origins".into()),
            Err(Refusal::CopiesDiffer { generation }) => {
                return damaged(format!("the two copies of generation {generation} differ"));
            }
            Err(Refusal::Version { place, version }) => {
                return Err(HeadError::Version { offset: layout::offset(place), version });
            }
        };
        let origin = || found.newest.origin.clone();
        let place = |copy| layout::place(log, copy, found.newest.generation);
        warnings.extend(found.repair.map(|(copy, bad)| Warning::CopyRepaired {
            origin: origin(),
            offset: layout::offset(place(copy)),
            bad,
        }));
        warnings.extend(found.torn.iter().map(|(place, bad)| Warning::Torn {
            origin: origin(),
            offset: layout::offset(*place),
            bad: *bad,
        }));
        if found.suspect {
            warnings.push(Warning::Suspect { origin: origin(), head: found.newest.held.head });
        }
        recovered.push(found);
    }
    Ok(recovered)
}
