//! Looking at a whole spool without changing it: every frame, what it says of the one before it, and every batch under the key that must
//! have signed it. What it calls torn is what the next start cuts off.

use std::sync::Arc;

use bytes::Bytes;
use epigraph_core::{SourceVKey, TreeSize};
use epigraph_event::batch::Unverified;
use epigraph_event::chain::Tip;
use epigraph_store::file::Dir;
use epigraph_store::journal::{self, Flaw, JournalError, Reader, Torn};

use super::{Scan, SpoolError};

/// What was found.
#[derive(Debug)]
pub struct Inspection {
    /// What is wrong with the files.
    pub flaws: Vec<Flaw>,
    /// What the next start cuts off.
    pub torn: Option<Torn>,
    /// What the frames hold, if the files are sound: or why they were refused.
    pub content: Option<Result<Content, SpoolError>>,
}

/// What a sound spool holds.
#[derive(Clone, Debug, Default)]
pub struct Content {
    /// Where the next batch belongs.
    pub tip: Tip,
    /// Batches that wait for delivery.
    pub waiting: u64,
    /// Batches that were delivered, whose files are not needed any more.
    pub kept: u64,
    /// Batches that are not what was signed: number, and why.
    pub unsigned: Vec<(u64, String)>,
}

/// Looks at the spool in `dir`, whose batches this key signed. Nobody may append meanwhile.
pub fn inspect(dir: &Arc<dyn Dir>, key: &SourceVKey) -> Inspection {
    let journal = journal::inspect(dir.as_ref(), key.id(), &[], &mut |_| {});
    let first = match journal::first_kept(dir.as_ref()) {
        Ok(first) => first,
        Err(error) => {
            return Inspection {
                flaws: vec![Flaw { index: TreeSize::ZERO, error }],
                torn: None,
                content: None,
            };
        }
    };
    // Of what was trimmed nothing is missing; whether it was delivered the frames say.
    let trimmed = |flaw: &Flaw| {
        flaw.index == first
            && first != TreeSize::ZERO
            && matches!(flaw.error, JournalError::MissingSegment { .. })
    };
    let flaws: Vec<Flaw> = journal.flaws.into_iter().filter(|flaw| !trimmed(flaw)).collect();
    let content = flaws.is_empty().then(|| content(dir, key, (first, journal.head.size)));
    Inspection { flaws, torn: journal.torn, content }
}

fn content(
    dir: &Arc<dyn Dir>,
    key: &SourceVKey,
    (first, durable): (TreeSize, TreeSize),
) -> Result<Content, SpoolError> {
    let mut unsigned = Vec::new();
    let mut show = |_: TreeSize, batch: &Bytes| {
        let claim = Unverified::decode(batch.clone()).and_then(|batch| Ok((batch.claim()?.number, batch)));
        match claim.map(|(number, batch)| (number, batch.verify(key))) {
            Ok((_, Ok(_))) => {}
            Ok((number, Err(error))) => unsigned.push((number, error.to_string())),
            Err(error) => unsigned.push((0, error.to_string())),
        }
        Ok(())
    };
    let reader = Reader::starting_at(Arc::clone(dir), key.id(), first);
    let scan = Scan::of(reader, first, durable, &mut show)?;
    let waiting = scan.waiting.iter().filter(|batch| batch.number >= scan.delivered).count() as u64;
    Ok(Content { tip: scan.tip, waiting, kept: scan.waiting.len() as u64 - waiting, unsigned })
}
