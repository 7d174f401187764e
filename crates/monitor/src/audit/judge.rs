//! What a consistency proof says about a tree that was made from served entries. Pure.

use epigraph_core::proof::ConsistencyProof;
use epigraph_core::{Hash, TreeHead};

use super::Beginning;

/// What became of a question for a consistency proof.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The signed tree begins with ours.
    Same,
    /// The signed tree begins with another one, as the proof shows.
    Other(Beginning),
    /// The proof leads nowhere, or there is none: it says nothing about anybody.
    Nothing(String),
}

/// Judges the hashes that a log gave as the consistency proof from `ours.size` to the signed `target`. Among the `candidates` may
/// be the root that the target's tree has at a size that is a power of two, where the proof leaves it out (RFC 9162 section
/// 2.1.4.1).
pub fn judge(ours: TreeHead, target: TreeHead, hashes: Vec<Hash>, candidates: &[Hash]) -> Answer {
    let proof = ConsistencyProof { old: ours.size, new: target.size, hashes };
    let mut candidates = std::iter::once(&ours.root).chain(candidates);
    let root = candidates.find_map(|candidate| match proof.roots(candidate, &target.root) {
        Ok((old, new)) if new == target.root => Some(old),
        _ => None,
    });
    match root {
        Some(root) if root == ours.root => Answer::Same,
        Some(root) => Answer::Other(Beginning { root, carried: proof.carrying(&root) }),
        None => Answer::Nothing("its proof does not lead to the signed root".to_owned()),
    }
}
