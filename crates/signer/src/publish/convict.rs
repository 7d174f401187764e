//! Evidence that a log makes of a note under its own signature that it did not sign: by its own tree, which knows the other root.
//! It does not know who showed the note.

use epigraph_core::hash::leaf_hash;
use epigraph_core::proof::ConsistencyProof;
use epigraph_core::{Checkpoint, Evidence, Policy, VKey};
use epigraph_store::evidence;
use epigraph_store::file::Dir;

use super::{Prove, RootAt};

/// Evidence files that one log keeps: a witness under a stolen log key could make more, and they would show no more.
const MAX_EVIDENCE_FILES: usize = 64;

/// What two notes under the log's signature prove about its key, if its own tree shows that they are of two histories; `None` if it
/// shows that they are of one. `ours` is of this tree, and not smaller than `held`. An error where the tree cannot tell.
pub fn convict(
    policy: &Policy,
    held: &str,
    ours: &str,
    prove: &Prove,
    root_at: &RootAt,
) -> Result<Option<Evidence>, String> {
    let open = |note: &str| Checkpoint::open_log_signed(note.as_bytes(), policy).map_err(|e| e.to_string());
    let (one, other) = (open(held)?.head(), open(ours)?.head());
    let root = root_at(one.size)?;
    if root == one.root {
        return Ok(None);
    }
    let (held, ours) = (held.as_bytes(), ours.as_bytes());
    let carried = match one.size == other.size {
        true => Vec::new(),
        false => {
            let hashes = prove(one.size, other.size)?;
            ConsistencyProof { old: one.size, new: other.size, hashes }.carrying(&root)
        }
    };
    let convict = |key: &VKey| match one.size == other.size {
        true => Evidence::two_roots(key, held, ours),
        false => Evidence::old_root(key, held, ours, carried.clone()),
    };
    match policy.logs().iter().map(convict).reduce(|first, next| first.or(next)) {
        Some(Ok(evidence)) => Ok(Some(evidence)),
        Some(Err(why)) => Err(why.to_string()),
        None => Err("the policy names no log".into()),
    }
}

/// Keeps evidence durably, and returns the name of its file, or why there is none. The name follows from what the file says: the same
/// evidence is kept once.
pub fn keep(dir: &dyn Dir, evidence: &Evidence) -> Result<String, String> {
    let bytes = evidence.encode();
    let stem = leaf_hash(&bytes).to_string();
    evidence::keep(dir, &stem, &bytes, MAX_EVIDENCE_FILES).map_err(|error| error.to_string())
}
