//! What a consistency proof says about a tree that was made from served entries. Pure.

use epigraph_core::proof::ConsistencyProof;
use epigraph_core::{Hash, TreeHead};

use super::OtherRoot;

/// What became of a question for a consistency proof.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The signed tree begins with ours.
    Same,
    /// The signed tree begins with another one, as the proof shows.
    Other(OtherRoot),
    /// The proof leads nowhere, or there is none: it says nothing about anybody.
    Nothing(String),
}

/// Judges the hashes that a log gave as the consistency proof from `ours.size` to the signed `target`. `beginning` is the root
/// that the target's tree has at a size that is a power of two, where the proof leaves it out (RFC 9162 section 2.1.4.1), as
/// far as it is known.
pub fn judge(ours: TreeHead, target: TreeHead, hashes: Vec<Hash>, beginning: Option<Hash>) -> Answer {
    let proof = ConsistencyProof { old: ours.size, new: target.size, hashes };
    if proof.verify(&ours.root, &target.root).is_ok() {
        return Answer::Same;
    }
    let other = match proof.roots(&beginning.unwrap_or(ours.root), &target.root) {
        Ok((old, new)) if new == target.root && old != ours.root => old,
        Ok(_) => return Answer::Nothing("its proof leads to another root than the signed one".to_owned()),
        Err(error) => return Answer::Nothing(error.to_string()),
    };
    Answer::Other(OtherRoot { root: other, carried: proof.carrying(&other) })
}
