//! A run of neighbouring leaves, proven at once: by the inclusion proofs of its first and its last leaf, which carry everything that
//! lies left and right of the run. Two standard proofs instead of one for each leaf.

use super::{InclusionProof, ProofError, split};
use crate::hash::{Hash, node_hash};
use crate::position::{LeafIndex, TreeSize};

/// Leaves at consecutive indexes in a tree of some size, with what stands beside them.
struct Run<'a> {
    start: u64,
    leaves: &'a [Hash],
    first: &'a [Hash],
    last: &'a [Hash],
}

/// Checks that the leaves with these hashes are at `index` and the indexes after it in the tree of `size` leaves with this root.
/// `first` and `last` are the hashes of the inclusion proofs (RFC 9162 section 2.1.3.1) of the first and of the last of them. A run
/// without leaves is in every tree.
pub fn verify_run(
    index: LeafIndex,
    leaves: &[Hash],
    size: TreeSize,
    (first, last): (&[Hash], &[Hash]),
    root: &Hash,
) -> Result<(), ProofError> {
    let (Some(left), Some(right)) = (leaves.first(), leaves.last()) else { return Ok(()) };
    let end = index.checked_add(leaves.len() as u64 - 1).filter(|end| size.contains(*end));
    let end = end.ok_or(ProofError::IndexBeyondTree { index, size })?;
    InclusionProof { index, size, hashes: first.to_vec() }.verify(left, root)?;
    InclusionProof { index: end, size, hashes: last.to_vec() }.verify(right, root)?;
    let mut run = Run { start: index.get(), leaves, first, last };
    if run.root(0, size.get())? == *root { Ok(()) } else { Err(ProofError::RootMismatch) }
}

impl Run<'_> {
    fn end(&self) -> u64 {
        self.start + self.leaves.len() as u64
    }

    /// The root over leaves `start..end`, which overlap the run or are all of it.
    fn root(&mut self, start: u64, end: u64) -> Result<Hash, ProofError> {
        if end - start == 1 {
            return Ok(self.leaves[(start - self.start) as usize]);
        }
        let middle = start + split(end - start);
        // A proof's hashes come from the leaf up, and this walk goes from the root down: each step that keeps an end of the run in one
        // half takes the other half's hash off the back of that end's proof.
        let holds = |index: u64| start <= index && index < end;
        let (holds_first, holds_last) = (holds(self.start), holds(self.end() - 1));
        let beside_first = holds_first.then(|| self.first.split_last()).flatten();
        let beside_last = holds_last.then(|| self.last.split_last()).flatten();
        if let Some((_, rest)) = beside_first {
            self.first = rest;
        }
        if let Some((_, rest)) = beside_last {
            self.last = rest;
        }
        let left = if middle <= self.start {
            *beside_first.ok_or(ProofError::WrongLength)?.0
        } else {
            self.root(start, middle)?
        };
        let right = if self.end() <= middle {
            *beside_last.ok_or(ProofError::WrongLength)?.0
        } else {
            self.root(middle, end)?
        };
        Ok(node_hash(&left, &right))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Nodes, prove_inclusion, range_root};
    use super::*;
    use crate::hash::leaf_hash;

    struct Leaves(Vec<Hash>);

    impl Nodes for Leaves {
        type Error = std::convert::Infallible;

        fn node(&self, height: u32, index: u64) -> Result<Hash, Self::Error> {
            let (start, end) = (index << height, (index + 1) << height);
            if height == 0 {
                return Ok(self.0[start as usize]);
            }
            let middle = (start + end) / 2;
            let [Ok(left), Ok(right)] = [range_root(self, start, middle), range_root(self, middle, end)];
            Ok(node_hash(&left, &right))
        }
    }

    fn index(at: u64) -> LeafIndex {
        LeafIndex::new(at).unwrap()
    }

    fn path(leaves: &Leaves, at: u64, size: TreeSize) -> Vec<Hash> {
        let Ok(proof) = prove_inclusion(leaves, index(at), size);
        proof.unwrap().hashes
    }

    /// Every run of every tree of up to 20 leaves is accepted, and with any one hash exchanged it is not.
    #[test]
    fn every_run_is_proven_by_its_ends_and_nothing_else_is() {
        for count in 1..=20_u64 {
            let leaves = Leaves((0..count).map(|at| leaf_hash(&at.to_be_bytes())).collect());
            let size = TreeSize::new(count).unwrap();
            let Ok(root) = range_root(&leaves, 0, count);
            for start in 0..count {
                for end in start + 1..=count {
                    let run = &leaves.0[start as usize..end as usize];
                    let (first, last) = (path(&leaves, start, size), path(&leaves, end - 1, size));
                    let check = |run: &[Hash], first: &[Hash], last: &[Hash]| {
                        verify_run(index(start), run, size, (first, last), &root)
                    };
                    assert_eq!(check(run, &first, &last), Ok(()), "{start}..{end} of {count}");
                    let other = leaf_hash(b"other");
                    for at in 0..run.len() {
                        let mut run = run.to_vec();
                        run[at] = other;
                        assert!(
                            check(&run, &first, &last).is_err(),
                            "leaf {at} of {start}..{end} of {count}"
                        );
                    }
                    for at in 0..first.len() {
                        let mut first = first.clone();
                        first[at] = other;
                        assert!(check(run, &first, &last).is_err());
                    }
                    for at in 0..last.len() {
                        let mut last = last.clone();
                        last[at] = other;
                        assert!(check(run, &first, &last).is_err());
                    }
                    assert!(check(&run[1..], &first, &last).is_err() || run.len() == 1);
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_the_tree_is_refused_without_a_panic() {
        let leaves = Leaves((0..5_u64).map(|at| leaf_hash(&at.to_be_bytes())).collect());
        let (size, run) = (TreeSize::new(5).unwrap(), &leaves.0[..]);
        let root = Hash::EMPTY_ROOT;
        let beyond = |at| ProofError::IndexBeyondTree { index: index(at), size };
        assert_eq!(verify_run(index(1), run, size, (&[], &[]), &root), Err(beyond(1)));
        assert_eq!(verify_run(index(1 << 62), run, size, (&[], &[]), &root), Err(beyond(1 << 62)));
        assert_eq!(verify_run(index(0), run, size, (&[], &[]), &root), Err(ProofError::WrongLength));
        assert_eq!(verify_run(index(7), &[], size, (&[], &[]), &root), Ok(()));
    }
}
