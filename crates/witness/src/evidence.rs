//! What convicts a log that showed two histories, kept on the witness's own disk: whoever forked the log has no reason to keep it.
//! One file for each log, since more would show no more. It does not know how the two heads were found.

use epigraph_core::evidence::NoEvidence;
use epigraph_core::progress::Conflict;
use epigraph_core::proof::ConsistencyProof;
use epigraph_core::{Evidence, Hash, VKey};
use epigraph_store::evidence;
use epigraph_store::file::Dir;

use crate::list::MAX_LOGS;

/// Keeps two notes that the log's key signed, and the proof that leads to the proposed one from another old tree than the held
/// one. Returns the file's name, or why nothing was kept.
pub(crate) fn keep(
    dir: &dyn Dir,
    key: &VKey,
    heads: Conflict,
    held: &[u8],
    proposed: &[u8],
    proof: Vec<Hash>,
) -> Result<String, String> {
    let found = of(key, heads, held, proposed, proof).map_err(|error| error.to_string())?;
    let stem = found.origin().hash().to_string();
    evidence::keep(dir, &stem, &found.encode(), MAX_LOGS).map_err(|error| error.to_string())
}

fn of(
    key: &VKey,
    heads: Conflict,
    held: &[u8],
    proposed: &[u8],
    hashes: Vec<Hash>,
) -> Result<Evidence, NoEvidence> {
    let Conflict { held: old, proposed: new } = heads;
    if old.size == new.size {
        return Evidence::two_roots(key, held, proposed);
    }
    // Where the size is a power of two the proof takes the old root as given, and shows no conflict.
    let carried = ConsistencyProof { old: old.size, new: new.size, hashes }.carrying(&old.root);
    Evidence::old_root(key, held, proposed, carried)
}
