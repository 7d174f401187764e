//! Every tree, every index and every pair of sizes up to [`MAX`], and the far end of the range, against the plain
//! definition.

use epigraph_core::Frontier;
use epigraph_core::hash::Hash;
use epigraph_core::proof::{Nodes, ProofError, prove_consistency, prove_inclusion, root_at};
use epigraph_core::tile::{Level, MAX_LEVEL, Row, levels, row_shape};

use crate::reference::{Reference, Rows, index, leaf, node, path, proof, size};

/// One more than a full tile.
const MAX: u64 = 257;

#[test]
fn a_frontier_has_the_root_of_the_definition_at_every_size() {
    let tree = Reference::labelled("leaf", MAX);
    let mut frontier = Frontier::new();
    for (count, leaf) in (0..).zip(tree.leaves()) {
        assert_eq!((frontier.size(), frontier.root()), (size(count), tree.root(count)));
        let stored = Frontier::from_parts(frontier.size(), frontier.hashes().to_vec());
        assert_eq!(stored.as_ref(), Ok(&frontier));
        frontier.push(*leaf).unwrap();
    }
    assert_eq!(frontier.head().root, tree.root(MAX));
}

#[test]
fn a_frontier_reports_each_perfect_subtree_once() {
    let tree = Reference::labelled("leaf", MAX);
    let rows = Rows::of(tree.leaves());
    for (height, row) in rows.rows().iter().enumerate() {
        assert_eq!(row.len() as u64, MAX >> height);
        for (at, hash) in (0..).zip(row) {
            assert_eq!(*hash, tree.mth(at << height..(at + 1) << height), "subtree {at} of height {height}");
        }
    }
}

#[test]
fn every_inclusion_proof_is_that_of_the_definition_and_verifies() {
    let tree = Reference::labelled("leaf", MAX + 1);
    let rows = Rows::of(tree.leaves());
    for count in 0..=MAX {
        let root = tree.root(count);
        assert_eq!(root_at(&rows, size(count)), Ok(root));
        for at in 0..count {
            let proof = prove_inclusion(&rows, index(at), size(count)).unwrap().unwrap();
            assert_eq!(proof.hashes, tree.path(at, count), "index {at}, size {count}");
            assert_eq!(proof.verify(&tree.leaves()[at as usize], &root), Ok(()));
            let neighbour = &tree.leaves()[at as usize + 1];
            assert_eq!(proof.verify(neighbour, &root), Err(ProofError::RootMismatch));
        }
        let beyond = ProofError::IndexBeyondTree { index: index(count), size: size(count) };
        assert_eq!(prove_inclusion(&rows, index(count), size(count)), Ok(Err(beyond)));
    }
}

#[test]
fn every_consistency_proof_is_that_of_the_definition_and_verifies() {
    let tree = Reference::labelled("leaf", MAX);
    let rows = Rows::of(tree.leaves());
    for new in 0..=MAX {
        for old in 0..=new {
            let proof = prove_consistency(&rows, size(old), size(new)).unwrap().unwrap();
            assert_eq!(proof.hashes, tree.proof(old, new), "from {old} to {new}");
            let (old_root, new_root) = (tree.root(old), tree.root(new));
            assert_eq!(proof.verify(&old_root, &new_root), Ok(()));
            let other = leaf(b"another root");
            assert_eq!(proof.verify(&other, &new_root), Err(ProofError::RootMismatch), "{old}, {new}");
            // From the empty tree everything grows; between any others the new root counts.
            let grown = proof.verify(&old_root, &other);
            assert_eq!(grown.is_ok(), old == 0 && new > 0, "{old}, {new}");
        }
        let shrinks = ProofError::OldBeyondNew { old: size(new + 1), new: size(new) };
        assert_eq!(prove_consistency(&rows, size(new + 1), size(new)), Ok(Err(shrinks)));
    }
}

#[test]
fn a_node_that_cannot_be_read_is_an_error_and_not_a_proof() {
    let tree = Reference::labelled("leaf", 8);
    let rows = Rows::of(tree.leaves());
    let error = prove_inclusion(&rows, index(0), size(9)).unwrap_err();
    assert_eq!(error, "no perfect subtree 8 of height 0");
    assert!(prove_consistency(&rows, size(8), size(9)).is_err());
}

/// A tree of 2^63 - 1 equal leaves: the perfect subtrees of one height are all the same.
struct Endless(Vec<Hash>);

impl Endless {
    fn new() -> Endless {
        let mut heights = vec![leaf(b"")];
        for height in 0..62 {
            heights.push(node(&heights[height], &heights[height]));
        }
        Endless(heights)
    }

    fn mth(&self, leaves: u64) -> Hash {
        let height = leaves.ilog2();
        let rest = leaves - (1 << height);
        let left = self.0[height as usize];
        if rest == 0 { left } else { node(&left, &self.mth(rest)) }
    }
}

impl Nodes for Endless {
    type Error = String;

    fn node(&self, height: u32, index: u64) -> Result<Hash, String> {
        let end = index.checked_add(1).and_then(|end| end.checked_mul(1 << height));
        let inside = end.is_some_and(|end| end < 1 << 63);
        if inside { Ok(self.0[height as usize]) } else { Err(format!("{index} at {height}")) }
    }
}

/// Positions around every power of two that matters, up to the last one.
fn far_positions() -> Vec<u64> {
    let powers = [3, 8, 31, 32, 33, 47, 61, 62].map(|height| 1u64 << height);
    let around = powers.into_iter().flat_map(|power| [power - 1, power, power + 1]);
    around.chain([(1 << 63) - 2, (1 << 63) - 1, 0x5555_5555_5555_5555, 0x2aaa_aaaa_aaaa_aaab]).collect()
}

#[test]
fn proofs_work_to_the_end_of_the_range() {
    let endless = Endless::new();
    for count in far_positions() {
        let root = endless.mth(count);
        let subtrees = (0..63).rev().filter(|height| count >> height & 1 == 1);
        let frontier = subtrees.map(|height| endless.0[height as usize]).collect();
        assert_eq!(Frontier::from_parts(size(count), frontier).unwrap().root(), root);
        assert_eq!(root_at(&endless, size(count)), Ok(root));
        for position in far_positions().into_iter().chain([0]).filter(|position| *position <= count) {
            if position < count {
                let made = prove_inclusion(&endless, index(position), size(count)).unwrap().unwrap();
                let ranges = path(position, 0..count).into_iter();
                let hashes: Vec<_> = ranges.map(|(_, range)| endless.mth(range.end - range.start)).collect();
                assert_eq!(made.hashes, hashes, "index {position}, size {count}");
                assert_eq!(made.verify(&leaf(b""), &root), Ok(()));
            }
            let made = prove_consistency(&endless, size(position), size(count)).unwrap().unwrap();
            let ranges = proof(position, count).into_iter();
            let hashes: Vec<_> = ranges.map(|(_, range)| endless.mth(range.end - range.start)).collect();
            assert_eq!(made.hashes, hashes, "from {position} to {count}");
            let old_root = if position == 0 { Hash::EMPTY_ROOT } else { endless.mth(position) };
            assert_eq!(made.verify(&old_root, &root), Ok(()));
        }
    }
}

#[test]
fn every_row_has_the_tiles_of_the_definition() {
    for leaves in far_positions().into_iter().chain(0..=MAX) {
        let mut want = Vec::new();
        for level in (0..=MAX_LEVEL).filter_map(Level::new) {
            // Level l has a hash for each 256^l leaves; beyond 16 bytes of them there is none.
            let below = 256u128.checked_pow(level.get().into()).unwrap_or(u128::MAX);
            let hashes = u128::from(leaves) / below;
            let shape = ((hashes / 256) as u64, (hashes % 256) as u16);
            assert_eq!(row_shape(Row::Hashes(level), size(leaves)), shape, "level {level:?}, size {leaves}");
            want.extend((hashes > 0).then_some(level));
        }
        assert_eq!(levels(size(leaves)).collect::<Vec<_>>(), want, "size {leaves}");
        let leaf_row = Row::Hashes(want.first().copied().unwrap_or(Level::new(0).unwrap()));
        assert_eq!(row_shape(Row::Entries, size(leaves)), row_shape(leaf_row, size(leaves)));
    }
}
