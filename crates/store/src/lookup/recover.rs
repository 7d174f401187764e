//! Which of the runs in a directory are used after a start, and what becomes of the others.
//!
//! A run is used if it begins where the one before ends, is whole, is this log's, and ends within the
//! journal. What a crash left beside it is removed; the newest file that should have been good and is not, is
//! kept as `suspect`.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use epigraph_core::{Hash, TreeSize};

use super::run::{MAX_HEIGHT, NEW_NAME, Run, Span, Unusable};
use super::{FAN_IN_HEIGHT, LookupError, SetAside};
use crate::file::Dir;
use crate::file::real::RealDir;

/// The one file that is kept for whoever wants to know what happened; it may be as large as the lookup.
const SUSPECT: &str = "suspect";

/// Opens the directory, or makes it.
pub(super) fn directory(path: &Path) -> io::Result<RealDir> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Err(_) => {}
        Ok(()) => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            fs::File::open(parent.unwrap_or(Path::new(".")))?.sync_all()?;
        }
    }
    RealDir::open(path)
}

/// The runs from the first entry on, without a gap.
pub(super) fn runs(
    dir: &dyn Dir,
    origin_hash: Hash,
    first_height: u32,
    durable: TreeSize,
    notice: &mut dyn FnMut(SetAside),
) -> Result<Vec<Arc<Run>>, LookupError> {
    let names = dir.list().map_err(LookupError::io("list the runs"))?;
    let mut found: Vec<Span> = names.iter().filter_map(|name| Span::of_name(name)).collect();
    // Of runs that begin together the largest comes first: the others went into it.
    found.sort_unstable_by_key(|span| (span.first(), std::cmp::Reverse(span.height)));
    let (mut runs, mut end, mut useless) = (Vec::new(), 0, Vec::new());
    for span in found {
        let sized =
            (first_height..=MAX_HEIGHT).step_by(1 << (FAN_IN_HEIGHT - 1)).any(|height| height == span.height);
        if span.first() != end || !sized {
            useless.push(span.name());
            continue;
        }
        let run = if span.end() > durable.get() {
            Err(Unusable::Bad(format!("it ends at entry {}, and the journal at {durable}", span.end())))
        } else {
            Run::open(dir, span, origin_hash)
        };
        match run {
            Ok(run) => {
                end = span.end();
                runs.push(Arc::new(run));
            }
            Err(Unusable::NotOpened(error)) => return Err(LookupError::io("open a run")(error)),
            Err(Unusable::Bad(why)) => {
                set_aside(dir, &span.name())?;
                notice(SetAside { name: span.name(), why });
            }
        }
    }
    useless.extend(names.into_iter().filter(|name| name == NEW_NAME));
    remove(dir, useless)?;
    Ok(runs)
}

/// Keeps a file under another name, in the place of an older one.
pub(super) fn set_aside(dir: &dyn Dir, name: &str) -> Result<(), LookupError> {
    match dir.rename(name, SUSPECT) {
        // Somebody deleted it, which is as good.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        renamed => renamed.and_then(|()| dir.sync()).map_err(LookupError::io("set a run aside")),
    }
}

/// Removes files. Should they be back after a crash, the next start removes them.
pub(super) fn remove(dir: &dyn Dir, names: impl IntoIterator<Item = String>) -> Result<(), LookupError> {
    for name in names {
        match dir.remove(&name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(LookupError::io("remove a useless run")(error));
            }
            _ => {}
        }
    }
    Ok(())
}
