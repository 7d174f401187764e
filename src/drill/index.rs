//! The index of an audit service, by which questions find events.

use std::path::Path;
use std::sync::Arc;

use epigraph_audit::index::Index;
use epigraph_audit::index::compare::fill_up;
use epigraph_audit::index::follow::{self, FollowError};
use epigraph_audit::query::{Access, Filter, Meter, Scan, Window};
use epigraph_audit::store::Reader;
use epigraph_core::LeafIndex;

use super::events::StoppedService;
use super::{Drilled, flip, places_of};
use crate::failure::{Failure, Outcome};
use crate::state;
use crate::terminal::Terminal;

/// A bit of the row of an event. The index is derived: what has to be shown is that nobody is answered wrongly.
pub(super) fn row(dir: &Path, terminal: Terminal) -> Outcome<Drilled> {
    let service = StoppedService::of(dir, terminal)?;
    let file = state::audit::index(&service.config);
    let reader = service.open()?;
    let (sealed, digest) = {
        let index = made(&file, &reader)?;
        (
            index.sealed_row(service.found.index).map_err(Failure::state)?,
            index.digest().map_err(Failure::state)?,
        )
    };
    let sealed =
        sealed.ok_or_else(|| Failure::state("the index has no row of an event that is in the store"))?;
    let middle = sealed.len() as u64 / 2;
    let (mut offset, mut read) = (0, None);
    for at in places_of(&file, &sealed)? {
        offset = at + middle;
        flip(&file, offset)?;
        // The file keeps old pages for a while, and the row lies in several indexes: this is about the one by time.
        read = answer(&file, &reader).err().map(|error| error.to_string());
        if read.is_some() {
            break;
        }
        flip(&file, offset)?;
    }
    let scrub = service.scrub(&file, terminal)?;
    // The next start.
    let again = made(&file, &reader)?.digest().map_err(Failure::state)?;
    let read = read.filter(|_| again == digest).map(|named| {
        format!("{}; at its next start the service sets the index aside and makes it again, and what it answers is right", service.copy.named(named))
    });
    // Whoever believed the row would be shown the event in another place.
    let mut shown = service.found.bundle.clone();
    let other = LeafIndex::new(service.found.index.get() ^ 1);
    shown.receipt.index = other.ok_or_else(|| Failure::state("the log has no other place"))?;
    Ok(Drilled {
        what: format!("the row of {} in the index", service.what()),
        file: service.copy.name(&file),
        offset,
        read,
        scrub,
        verify: shown.verify(&service.log.policy, &service.sources).err().map(|error| error.to_string()),
    })
}

/// The index as the service opens it, with everything in it that is in the store.
fn made(file: &Path, reader: &Reader) -> Outcome<Index> {
    let index = follow::open(file, false, reader).map_err(Failure::state)?;
    fill_up(&index, reader, u64::MAX).map_err(Failure::state)?;
    Ok(index)
}

/// A question for everything, to the index as a running service has it open.
fn answer(file: &Path, reader: &Reader) -> Result<(), FollowError> {
    let index = Index::open(file, &reader.producer()?, Arc::new(reader.cover()))?;
    let window = Window::new(i64::MIN, i64::MAX).map_err(|_| FollowError::Stopped)?;
    let scan = Scan {
        stream: None,
        tenant: None,
        access: Access::Time,
        window,
        filter: Filter::default(),
        newest_first: false,
        limit: u64::MAX,
        after: None,
    };
    index.view()?.scan(&scan, &Meter::new(u64::MAX, u64::MAX), &mut |_| ())?;
    Ok(())
}
