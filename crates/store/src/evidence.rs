//! Evidence files of one directory: written whole or not at all, kept once under a name, and never so many that they fill a disk.
//!
//! It knows bytes and names; what they prove, and about whom, is checked by whoever made them.

use std::io;

use thiserror::Error;

use crate::file::Dir;

/// The end of an evidence file's name.
pub const SUFFIX: &str = ".evidence";

/// Why evidence was not kept.
#[derive(Debug, Error)]
pub enum EvidenceError {
    /// As many as there may be.
    #[error("{0} evidence files are there already: look at them, and move them elsewhere")]
    TooMany(usize),
    /// The file system.
    #[error("cannot write {name}: {source}; check the disk and its permissions")]
    Io {
        /// The file.
        name: String,
        /// What the system said.
        source: io::Error,
    },
}

/// Keeps evidence durably as `<stem>.evidence`, unless a file of this name is there or `most` evidence files are. Returns the
/// file's name.
pub fn keep(dir: &dyn Dir, stem: &str, bytes: &[u8], most: usize) -> Result<String, EvidenceError> {
    let name = format!("{stem}{SUFFIX}");
    let failed = |source| EvidenceError::Io { name: name.clone(), source };
    let present = dir.list().map_err(failed)?;
    if present.contains(&name) {
        return Ok(name);
    }
    if count(&present) >= most {
        return Err(EvidenceError::TooMany(most));
    }
    let write = || {
        // A crash leaves a file that does not decode, under another name than the whole one.
        let new = format!("{name}.new");
        if present.contains(&new) {
            dir.remove(&new)?;
        }
        let file = dir.create(&new)?;
        file.write_at(0, bytes)?;
        file.sync()?;
        dir.rename(&new, &name)?;
        dir.sync()
    };
    write().map_err(failed)?;
    Ok(name)
}

/// How many of these names are of evidence files.
pub fn count<'a>(names: impl IntoIterator<Item = &'a String>) -> usize {
    names.into_iter().filter(|name| name.ends_with(SUFFIX)).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::fault::{Fault, FaultDir, Outcome};
    use crate::file::memory::MemoryDir;
    use std::sync::Arc;

    /// Broken to see it fail: a file that is there is written again; no limit.
    #[test]
    fn it_is_kept_once_and_never_too_many() {
        let dir = MemoryDir::new();
        assert_eq!(keep(&dir, "a", b"one", 2).unwrap(), "a.evidence");
        assert_eq!(keep(&dir, "a", b"another", 2).unwrap(), "a.evidence");
        keep(&dir, "b", b"two", 2).unwrap();
        assert!(matches!(keep(&dir, "c", b"three", 2), Err(EvidenceError::TooMany(2))));
        assert_eq!(keep(&dir, "b", b"", 2).unwrap(), "b.evidence");
        assert_eq!(dir.content("a.evidence").unwrap(), b"one");
        assert_eq!(count(&dir.list().unwrap()), 2);
    }

    /// A fault or crash at any step leaves no half file under the whole one's name, and trying again succeeds. Broken to see it
    /// fail: written under its own name.
    #[test]
    fn a_fault_leaves_no_half_file() {
        for nth in 0..6 {
            let memory = MemoryDir::new();
            let dir = FaultDir::new(Arc::new(memory.clone()));
            dir.inject(Fault { operation: None, nth, outcome: Outcome::Torn(1), crash: false });
            let _ = keep(&dir, "a", b"evidence", 9);
            if let Ok(bytes) = memory.content("a.evidence") {
                assert_eq!(bytes, b"evidence", "step {nth}");
            }
            keep(&memory, "a", b"evidence", 9).unwrap();
            assert_eq!(memory.content("a.evidence").unwrap(), b"evidence");
        }
    }
}
