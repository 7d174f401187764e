//! What the entries of a log must be, whatever they say: the door for rules about content. An [`EntryRule`] sees one entry and keeps
//! nothing; a [`SequenceRule`] sees them in their order and remembers what it needs, in bounded memory.

use epigraph_core::bundle::MAX_ENTRY_BYTES;
use epigraph_core::{LeafIndex, UnixMillis};

use crate::standing::Condition;

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

/// A rule about entries in the light of those before them.
pub trait SequenceRule: Send + Sync {
    /// Before the first entry.
    fn begin(&self) -> Box<dyn Sequence>;

    /// Where [`Sequence::write`] left it; none if it did not write this.
    fn resume(&self, text: &str) -> Option<Box<dyn Sequence>>;
}

/// What a [`SequenceRule`] remembers of the entries so far. As careful as an [`EntryRule`], and its memory is bounded.
pub trait Sequence: Send + Sync {
    /// Looks at the next entry, read at `now`.
    fn check(&mut self, index: LeafIndex, entry: &[u8], now: UnixMillis) -> Result<(), Broken>;

    /// What is wrong as of the last entry and may be mended by a later one, each with a code of [`SequenceRule`]s.
    fn stands(&self) -> Vec<Condition>;

    /// Itself as lines of text, at least one, each ending in LF and none of them empty.
    fn write(&self) -> String;

    /// Another one that goes on from here.
    fn duplicate(&self) -> Box<dyn Sequence>;
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
