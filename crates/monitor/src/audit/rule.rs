//! What every entry of a log must be, whatever it says: the door for rules about content. A rule sees one entry and keeps nothing.

use epigraph_core::LeafIndex;
use epigraph_core::bundle::MAX_ENTRY_BYTES;

/// A rule that each entry must keep.
///
/// It is given bytes that anybody with an appender's certificate may have chosen: it must be quick, take bounded memory, and
/// answer rather than panic.
pub trait EntryRule: Send + Sync {
    /// Looks at one entry as it was served.
    fn check(&self, index: LeafIndex, entry: &[u8]) -> Result<(), Broken>;
}

/// A rule that an entry does not keep.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Broken {
    /// Which rule: a stable name in kebab case.
    pub rule: &'static str,
    /// In what way, in a few words that quote nothing of the entry.
    pub why: String,
}

/// An entry has at most 65,535 bytes: a longer one has no place in an entry bundle (C2SP `tlog-tiles`).
#[derive(Clone, Copy, Debug)]
pub struct WellFormed;

impl EntryRule for WellFormed {
    fn check(&self, _: LeafIndex, entry: &[u8]) -> Result<(), Broken> {
        if entry.len() <= MAX_ENTRY_BYTES {
            return Ok(());
        }
        Err(Broken {
            rule: "well-formed",
            why: format!("it has {} bytes, more than {MAX_ENTRY_BYTES}", entry.len()),
        })
    }
}
