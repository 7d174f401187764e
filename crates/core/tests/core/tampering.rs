//! A valid proof with anything changed: each bit of each hash, of the positions, hashes dropped, added, swapped.

use epigraph_core::hash::Hash;
use epigraph_core::proof::{ConsistencyProof, InclusionProof};
use epigraph_core::{LeafIndex, TreeSize};

use crate::reference::{Reference, Role, Shape, index, leaf, path, proof, size};

/// Every index and every pair of sizes up to this one; larger trees are sampled.
const MAX: u64 = 40;

const LARGER: [(u64, u64); 8] =
    [(0, 63), (62, 63), (63, 64), (64, 65), (77, 100), (127, 129), (200, 256), (255, 257)];

fn inclusion_cases() -> impl Iterator<Item = (u64, u64)> {
    (1..=MAX).flat_map(|count| (0..count).map(move |at| (at, count))).chain(LARGER)
}

fn consistency_cases() -> impl Iterator<Item = (u64, u64)> {
    (1..=MAX).flat_map(|new| (1..=new).map(move |old| (old, new))).chain(LARGER)
}

fn tree() -> Reference {
    Reference::labelled("leaf", 257)
}

fn included(tree: &Reference, at: u64, count: u64) -> InclusionProof {
    InclusionProof { index: index(at), size: size(count), hashes: tree.path(at, count) }
}

fn consistent(tree: &Reference, old: u64, new: u64) -> ConsistencyProof {
    ConsistencyProof { old: size(old), new: size(new), hashes: tree.proof(old, new) }
}

fn flipped(hash: &Hash, bit: usize) -> Hash {
    let mut bytes = *hash.as_bytes();
    bytes[bit / 8] ^= 1 << (bit % 8);
    Hash::from_bytes(bytes)
}

/// Calls `refused` with the hashes after each change of one bit.
fn each_flipped_bit(hashes: &[Hash], mut refused: impl FnMut(&[Hash]) -> bool) {
    let mut changed = hashes.to_vec();
    for (at, hash) in hashes.iter().enumerate() {
        for bit in 0..8 * Hash::LEN {
            changed[at] = flipped(hash, bit);
            assert!(refused(&changed), "bit {bit} of hash {at}");
        }
        changed[at] = *hash;
    }
}

/// Calls `refused` with the hashes after one is dropped, doubled or added, and after two are swapped.
fn each_other_list(hashes: &[Hash], mut refused: impl FnMut(&[Hash]) -> bool) {
    let mut check = |what: &str, at: usize, change: &dyn Fn(&mut Vec<Hash>)| {
        let mut changed = hashes.to_vec();
        change(&mut changed);
        assert!(refused(&changed), "{what} at {at}");
    };
    for (at, hash) in hashes.iter().enumerate() {
        check("dropped", at, &|list| {
            list.remove(at);
        });
        check("doubled", at, &|list| list.insert(at, *hash));
        for other in 0..at {
            check("swapped", at, &|list| list.swap(at, other));
        }
    }
    for at in 0..=hashes.len() {
        check("added", at, &|list| list.insert(at, leaf(b"added")));
    }
    check("many added", hashes.len(), &|list| list.resize(list.len() + 70, leaf(b"added")));
}

#[test]
fn an_inclusion_proof_with_one_bit_changed_is_refused() {
    let tree = tree();
    for (at, count) in inclusion_cases() {
        let (mut proof, root) = (included(&tree, at, count), tree.root(count));
        let leaf = tree.leaves()[at as usize];
        each_flipped_bit(&proof.hashes.clone(), |hashes| {
            proof.hashes.clear();
            proof.hashes.extend_from_slice(hashes);
            proof.verify(&leaf, &root).is_err()
        });
    }
}

#[test]
fn a_consistency_proof_with_one_bit_changed_is_refused() {
    let tree = tree();
    for (old, new) in consistency_cases() {
        let mut proof = consistent(&tree, old, new);
        let (old_root, new_root) = (tree.root(old), tree.root(new));
        each_flipped_bit(&proof.hashes.clone(), |hashes| {
            proof.hashes.clear();
            proof.hashes.extend_from_slice(hashes);
            proof.verify(&old_root, &new_root).is_err()
        });
    }
}

#[test]
fn roots_and_leaves_with_one_bit_changed_are_refused() {
    let tree = tree();
    for (at, count) in inclusion_cases() {
        let (proof, root) = (included(&tree, at, count), tree.root(count));
        let leaf = tree.leaves()[at as usize];
        for bit in 0..8 * Hash::LEN {
            assert!(proof.verify(&flipped(&leaf, bit), &root).is_err(), "leaf {at} of {count}");
            assert!(proof.verify(&leaf, &flipped(&root, bit)).is_err(), "leaf {at} of {count}");
        }
    }
    for (old, new) in consistency_cases().filter(|(old, _)| *old > 0) {
        let proof = consistent(&tree, old, new);
        let (old_root, new_root) = (tree.root(old), tree.root(new));
        for bit in 0..8 * Hash::LEN {
            assert!(proof.verify(&flipped(&old_root, bit), &new_root).is_err(), "{old} to {new}");
            assert!(proof.verify(&old_root, &flipped(&new_root, bit)).is_err(), "{old} to {new}");
        }
    }
}

#[test]
fn a_proof_with_hashes_dropped_added_or_swapped_is_refused() {
    let tree = tree();
    for (at, count) in inclusion_cases() {
        let (proof, root) = (included(&tree, at, count), tree.root(count));
        each_other_list(&proof.hashes, |hashes| {
            let changed = InclusionProof { hashes: hashes.to_vec(), ..proof };
            changed.verify(&tree.leaves()[at as usize], &root).is_err()
        });
    }
    for (old, new) in consistency_cases().chain((0..=MAX).map(|new| (0, new))) {
        let proof = consistent(&tree, old, new);
        each_other_list(&proof.hashes, |hashes| {
            let changed = ConsistencyProof { hashes: hashes.to_vec(), ..proof };
            changed.verify(&tree.root(old), &tree.root(new)).is_err()
        });
    }
}

fn roles(shape: Shape) -> Vec<Role> {
    shape.into_iter().map(|(role, _)| role).collect()
}

fn flipped_bits(number: u64) -> impl Iterator<Item = u64> {
    (0..64).map(move |bit| number ^ 1 << bit)
}

#[test]
fn an_index_with_one_bit_changed_is_refused() {
    let tree = tree();
    for (at, count) in inclusion_cases() {
        let proof = included(&tree, at, count);
        for index in flipped_bits(at).filter_map(LeafIndex::new) {
            let changed = InclusionProof { index, ..proof.clone() };
            let verdict = changed.verify(&tree.leaves()[at as usize], &tree.root(count));
            assert!(verdict.is_err(), "index {at} as {index} in {count}");
        }
    }
}

/// An inclusion proof does not bind the size (RFC 9162 section 2.1.3.2): leaf 0 is below the same siblings in a tree
/// of 5 and of 7. The signed checkpoint binds it. So a proof may pass with another size only where the definition
/// puts the hashes on the same sides.
#[test]
fn a_changed_size_is_refused_wherever_it_means_another_path() {
    let tree = tree();
    let (mut passed, mut refused) = (0, 0);
    for (at, count) in inclusion_cases() {
        let proof = included(&tree, at, count);
        for size in flipped_bits(count).filter_map(TreeSize::new) {
            let changed = InclusionProof { size, ..proof.clone() };
            let verdict = changed.verify(&tree.leaves()[at as usize], &tree.root(count));
            let same_path = at < size.get() && roles(path(at, 0..size.get())) == roles(path(at, 0..count));
            assert_eq!(verdict.is_ok(), same_path, "size {count} as {size}, index {at}");
            *(if same_path { &mut passed } else { &mut refused }) += 1;
        }
    }
    assert!(passed > 0 && refused > 10 * passed, "{passed} passed, {refused} refused");
}

/// As with inclusion, sizes that call for the same computation cannot be told apart by the hashes alone.
#[test]
fn changed_sizes_of_a_consistency_proof_are_refused_wherever_they_mean_another_proof() {
    let tree = tree();
    let mut refused = 0;
    for (old, new) in consistency_cases().filter(|(old, _)| *old > 0) {
        let right = consistent(&tree, old, new);
        let wanted = roles(proof(old, new));
        let other_olds = flipped_bits(old).map(|changed| (changed, new));
        let other_news = flipped_bits(new).map(|changed| (old, changed));
        for (other_old, other_new) in other_olds.chain(other_news) {
            let (Some(old_size), Some(new_size)) = (TreeSize::new(other_old), TreeSize::new(other_new))
            else {
                continue;
            };
            let changed = ConsistencyProof { old: old_size, new: new_size, hashes: right.hashes.clone() };
            let verdict = changed.verify(&tree.root(old), &tree.root(new));
            // Equal sizes mean equal roots, and nothing grows from an empty tree that has leaves.
            let same_proof = (1..=other_new).contains(&other_old)
                && roles(proof(other_old, other_new)) == wanted
                && (old == new) == (other_old == other_new);
            assert_eq!(verdict.is_ok(), same_proof, "{old} to {new} as {other_old} to {other_new}");
            refused += u32::from(!same_proof);
        }
    }
    assert!(refused > 10_000, "{refused}");
}
