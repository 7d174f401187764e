//! Audit events: in the store of the audit service, and in the spool of a collector.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use epigraph_audit::record::Sealed;
use epigraph_audit::seal::Opened;
use epigraph_audit::store::{EventName, Reader, Store};
use epigraph_audit::vault::KeyWrapper;
use epigraph_collector::spool::{Limits, Spool, SpoolReader};
use epigraph_core::{LeafIndex, SourceVKey};
use epigraph_event::batch::{self, Unverified};
use epigraph_event::{Bundle, Segment};
use epigraph_store::journal;
use epigraph_store::lock;

use super::log::StoppedLog;
use super::{AUDIT, Copy, Drilled, about, files, flip, places_of};
use crate::config::audit::{AuditConfig, load_sources};
use crate::config::collector::{CollectorConfig, DEFAULT_SPOOL_MIB};
use crate::failure::{Failure, Outcome};
use crate::fsck;
use crate::runtime;
use crate::state;
use crate::terminal::Terminal;

/// What a piece of a batch begins with is enough to find it.
const NEEDLE_BYTES: usize = 512;

/// Events that are tried until one is found that can be proven.
const MAX_TRIED: u64 = 4_096;

/// A copy of a stopped audit service and of its log, and an event in both that is proven before anything is changed.
pub(super) struct StoppedService {
    pub(super) copy: Copy,
    /// As if the copy were the service.
    pub(super) config: AuditConfig,
    pub(super) log: StoppedLog,
    pub(super) sources: Vec<SourceVKey>,
    pub(super) file: PathBuf,
    wrapper: Arc<dyn KeyWrapper>,
    pub(super) found: Found,
}

impl StoppedService {
    pub(super) fn of(dir: &Path, terminal: Terminal) -> Outcome<StoppedService> {
        let mut config = AuditConfig::load(&dir.join(AUDIT))?;
        let copy = {
            let _locked = state::lock_role(lock::Kind::Audit, &config.directory)?;
            Copy::of(&config.directory, "audit")?
        };
        let own = state::audit::load_key(&config)?.vkey().clone();
        let mut sources: Vec<SourceVKey> =
            load_sources(&config.list())?.into_iter().map(|source| source.vkey).collect();
        sources.push(own);
        let wrapper: Arc<dyn KeyWrapper> = Arc::new(state::audit::load_wrapper(&config)?);
        config.directory = copy.path();
        let file = state::audit::store(&config);
        // One that was killed puts its file in order first.
        drop(Store::open(&file, Arc::clone(&wrapper), runtime::entropy()).map_err(Failure::state)?);
        let log = StoppedLog::of(dir, terminal)?;
        let reader = Reader::of_stopped(&file, Arc::clone(&wrapper)).map_err(Failure::state)?;
        let found = find(&reader, &log)?;
        found.bundle.verify(&log.policy, &sources).map_err(|error| {
            Failure::state(format!("the event is not proven before anything was changed: {error}"))
        })?;
        Ok(StoppedService { copy, config, log, sources, file, wrapper, found })
    }

    /// For those who read the store.
    pub(super) fn open(&self) -> Outcome<Reader> {
        Reader::of_stopped(&self.file, Arc::clone(&self.wrapper)).map_err(Failure::state)
    }

    /// What the check of everything finds in a file.
    pub(super) fn scrub(&self, file: &Path, terminal: Terminal) -> Outcome<Option<String>> {
        Ok(about(&fsck::audit::check(&self.config, false, terminal)?.findings, file, &self.copy))
    }

    /// What the event is called.
    pub(super) fn what(&self) -> String {
        let EventName { source, epoch, sequence } = self.found.name;
        let source = self.sources.iter().find(|known| known.id() == source);
        let source = source.map_or_else(String::new, |source| format!(" of {}", source.name()));
        format!("event {sequence} of epoch {epoch}{source}")
    }
}

/// A bit of the record of an event, in the store of the audit service.
pub(super) fn payload(dir: &Path, terminal: Terminal) -> Outcome<Drilled> {
    let service = StoppedService::of(dir, terminal)?;
    let StoppedService { copy, log, sources, file, found, .. } = &service;
    let body = Segment::Body.place();
    let seal = &found.sealed.seals[body].1;
    let middle = seal.len() as u64 / 2;
    let (mut offset, mut read) = (0, None);
    for at in places_of(file, seal)? {
        offset = at + middle;
        flip(file, offset)?;
        // The file keeps old pages for a while: the same bytes may lie somewhere where nothing reads them.
        read = service.open()?.event(&found.name).err().map(|error| error.to_string());
        if read.is_some() {
            break;
        }
        flip(file, offset)?;
    }
    // What somebody would hand out who has the keys too, and sealed it again.
    let mut changed = found.bundle.clone();
    if let Some((_, bytes)) = &mut changed.segments[body]
        && let Some(byte) = bytes.last_mut()
    {
        *byte ^= 1;
    }
    Ok(Drilled {
        what: service.what(),
        file: copy.name(file),
        offset,
        read,
        scrub: service.scrub(file, terminal)?,
        verify: changed.verify(&log.policy, sources).err().map(|error| error.to_string()),
    })
}

/// An event that is in the log, with everything that proves it.
pub(super) struct Found {
    name: EventName,
    /// Where its leaf is.
    pub(super) index: LeafIndex,
    sealed: Sealed,
    pub(super) bundle: Bundle,
}

fn find(reader: &Reader, log: &StoppedLog) -> Outcome<Found> {
    let none = || {
        Failure::usage(
            "the audit service has no event that is published: collect some (`epigraph collect`), stop it, and try again",
        )
    };
    for slot in 0..MAX_TRIED {
        let name = reader.in_slot(slot).map_err(Failure::state)?.ok_or_else(none)?;
        let index = reader.leaf_of_slot(slot).map_err(Failure::state)?;
        let index = index.filter(|index| log.published.contains(*index)).ok_or_else(none)?;
        let event = reader.event(&name).map_err(Failure::state)?;
        if let Some((sealed, opened)) = event
            && opened.segments[Segment::Body.place()].is_some()
        {
            let bundle = bundle(reader, log, (slot, index), &sealed, opened)?;
            return Ok(Found { name, index, sealed, bundle });
        }
    }
    Err(none())
}

fn bundle(
    reader: &Reader,
    log: &StoppedLog,
    (slot, index): (u64, LeafIndex),
    sealed: &Sealed,
    opened: Opened,
) -> Outcome<Bundle> {
    let missing =
        || Failure::state("the batch of the event is not in the store: see `epigraph fsck --role audit`");
    let Opened { leaf, segments, record } = opened;
    let of =
        reader.batch(&leaf.source, leaf.epoch, sealed.batch).map_err(Failure::state)?.ok_or_else(missing)?;
    let leaves = reader.leaves_of(of.first_slot, of.count).map_err(Failure::state)?;
    let place = slot.checked_sub(of.first_slot).and_then(|place| usize::try_from(place).ok());
    let path = place.and_then(|place| batch::path(&leaves, place)).ok_or_else(missing)?;
    Ok(Bundle { leaf, segments, record, signed: of.signed, path, receipt: log.receipt(index)? })
}

/// A bit of a signed batch, in the spool of a collector.
pub(super) fn spool(dir: &Path, terminal: Terminal) -> Outcome<Drilled> {
    let config = CollectorConfig::load(&dir.join("collector.toml"))?;
    let copy = {
        let _locked = state::lock_role(lock::Kind::Collector, &config.directory)?;
        Copy::of(&config.directory, "collector")?
    };
    let vkey = state::collector::vkey(&copy.path())?;
    let directory = copy.path().join(state::collector::SPOOL);
    let (_, before) = fsck::spool::check(&copy.path())?;
    if let Some(finding) = before.first() {
        return Err(Failure::state(format!("the spool is damaged already: {}", copy.named(finding))));
    }
    let files_of_spool = state::open_dir(&directory)?;
    let first = journal::first_kept(files_of_spool.as_ref()).map_err(Failure::state)?;
    let durable = journal::inspect(files_of_spool.as_ref(), vkey.id(), &[], &mut |_| {}).head.size;
    let mut reader = SpoolReader::starting_at(Arc::clone(&files_of_spool), vkey.id(), first);
    let batch = reader.next(durable).map_err(Failure::state)?.ok_or_else(|| {
        Failure::usage("the spool has no batch in it: collect something (`epigraph collect`), and try again")
    })?;
    let piece = &batch[..batch.len().min(epigraph_core::bundle::MAX_ENTRY_BYTES)];
    let needle = &piece[..piece.len().min(NEEDLE_BYTES)];
    let mut place = None;
    for segment in files(&directory, "seg")? {
        place = place.or(places_of(&segment, needle)?.first().map(|at| (segment, *at)));
    }
    let (file, at) = place.ok_or_else(|| Failure::state("the batch is not where it was read from"))?;
    let within = piece.len() - 1;
    let offset = at + within as u64;
    flip(&file, offset)?;
    let read =
        Spool::open(files_of_spool, vkey.id(), Limits::of(DEFAULT_SPOOL_MIB << 20), runtime::entropy());
    let (_, findings) = fsck::spool::check(&copy.path())?;
    let mut changed = batch.to_vec();
    changed[within] ^= 1;
    let verified = Unverified::decode(changed.into()).and_then(|batch| batch.verify(&vkey));
    terminal.progress("");
    Ok(Drilled {
        what: format!("a signed batch of {}", vkey.name()),
        file: copy.name(&file),
        offset,
        read: read.err().map(|error| error.to_string()),
        scrub: about(&findings, &directory, &copy),
        verify: verified.err().map(|error| error.to_string()),
    })
}
