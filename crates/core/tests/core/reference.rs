//! The Merkle tree as RFC 9162 section 2.1 defines it: MTH, PATH and SUBPROOF, recursive and in its words. It shares
//! no code with the core, and it knows where in the tree each hash of a proof comes from.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;

use epigraph_core::hash::Hash;
use epigraph_core::proof::Nodes;
use epigraph_core::{Frontier, LeafIndex, TreeSize};
use sha2::{Digest, Sha256};

/// A tree of known leaves.
pub(crate) struct Reference {
    leaves: Vec<Hash>,
    known: RefCell<HashMap<Range<u64>, Hash>>,
}

/// What a hash of a proof is good for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    /// It goes to the left of what is known so far; in a consistency proof, in the old and the new tree.
    Left,
    /// It goes to the right; in a consistency proof, in the new tree only.
    Right,
    /// A consistency proof starts from it.
    Seed,
}

/// Where the hashes of a proof come from, in the proof's order: role and leaves below.
pub(crate) type Shape = Vec<(Role, Range<u64>)>;

fn sha256(parts: &[&[u8]]) -> Hash {
    Hash::from_bytes(Sha256::digest(parts.concat()).into())
}

/// The hash of one entry.
pub(crate) fn leaf(entry: &[u8]) -> Hash {
    sha256(&[&[0x00], entry])
}

/// The hash of two subtrees.
pub(crate) fn node(left: &Hash, right: &Hash) -> Hash {
    sha256(&[&[0x01], left.as_bytes(), right.as_bytes()])
}

/// "Let k be the largest power of two smaller than n."
fn split(n: u64) -> u64 {
    let mut k = 1;
    while k < n - k {
        k *= 2;
    }
    k
}

impl Reference {
    /// The tree of these leaf hashes and of every beginning of them.
    pub(crate) fn new(leaves: Vec<Hash>) -> Reference {
        Reference { leaves, known: RefCell::default() }
    }

    /// `size` leaves, all different, and different from those of another label.
    pub(crate) fn labelled(label: &str, size: u64) -> Reference {
        Reference::new((0..size).map(|n| leaf(format!("{label} {n}").as_bytes())).collect())
    }

    /// The leaves of `self` up to `fork`, then those of `other`.
    pub(crate) fn forked(&self, fork: usize, other: &Reference) -> Reference {
        Reference::new([&self.leaves[..fork], &other.leaves[fork..]].concat())
    }

    pub(crate) fn leaves(&self) -> &[Hash] {
        &self.leaves
    }

    /// `MTH(D[range])`, section 2.1.1.
    pub(crate) fn mth(&self, range: Range<u64>) -> Hash {
        match range.end - range.start {
            0 => sha256(&[]),
            1 => self.leaves[range.start as usize],
            n => {
                if let Some(hash) = self.known.borrow().get(&range) {
                    return *hash;
                }
                let middle = range.start + split(n);
                let hash = node(&self.mth(range.start..middle), &self.mth(middle..range.end));
                self.known.borrow_mut().insert(range, hash);
                hash
            }
        }
    }

    /// The root of the first `size` leaves.
    pub(crate) fn root(&self, size: u64) -> Hash {
        self.mth(0..size)
    }

    pub(crate) fn path(&self, index: u64, size: u64) -> Vec<Hash> {
        path(index, 0..size).into_iter().map(|(_, range)| self.mth(range)).collect()
    }

    /// The consistency proof; from size 0, which the RFC leaves out, it is empty.
    pub(crate) fn proof(&self, old: u64, new: u64) -> Vec<Hash> {
        proof(old, new).into_iter().map(|(_, range)| self.mth(range)).collect()
    }
}

/// `PATH(m, D[range])`, section 2.1.3.1.
pub(crate) fn path(m: u64, range: Range<u64>) -> Shape {
    let n = range.end - range.start;
    if n == 1 {
        return Vec::new();
    }
    let middle = range.start + split(n);
    if m < split(n) {
        let mut below = path(m, range.start..middle);
        below.push((Role::Right, middle..range.end));
        below
    } else {
        let mut below = path(m - split(n), middle..range.end);
        below.push((Role::Left, range.start..middle));
        below
    }
}

/// `PROOF(m, D[0:n])`, section 2.1.4.1.
pub(crate) fn proof(m: u64, n: u64) -> Shape {
    if m == 0 { Vec::new() } else { subproof(m, 0..n, true) }
}

fn subproof(m: u64, range: Range<u64>, whole: bool) -> Shape {
    let n = range.end - range.start;
    if m == n {
        return if whole { Vec::new() } else { vec![(Role::Seed, range)] };
    }
    let middle = range.start + split(n);
    if m <= split(n) {
        let mut below = subproof(m, range.start..middle, whole);
        below.push((Role::Right, middle..range.end));
        below
    } else {
        let mut below = subproof(m - split(n), middle..range.end, false);
        below.push((Role::Left, range.start..middle));
        below
    }
}

/// The perfect subtrees that a frontier reports, kept by height: what a tree store would hold.
#[derive(Default)]
pub(crate) struct Rows {
    pub(crate) frontier: Frontier,
    rows: Vec<Vec<Hash>>,
}

impl Rows {
    pub(crate) fn of(leaves: &[Hash]) -> Rows {
        let mut rows = Rows::default();
        leaves.iter().for_each(|leaf| rows.push(*leaf));
        rows
    }

    pub(crate) fn push(&mut self, leaf: Hash) {
        let Rows { frontier, rows } = self;
        let keep = |height: u32, index: u64, hash| {
            let height = height as usize;
            rows.resize_with(rows.len().max(height + 1), Vec::new);
            assert_eq!(rows[height].len() as u64, index, "subtrees come in order, none twice");
            rows[height].push(hash);
        };
        frontier.push_with(leaf, keep).unwrap();
    }

    pub(crate) fn rows(&self) -> &[Vec<Hash>] {
        &self.rows
    }
}

impl Nodes for Rows {
    type Error = String;

    fn node(&self, height: u32, index: u64) -> Result<Hash, String> {
        let row = self.rows.get(height as usize).and_then(|row| row.get(index as usize));
        row.copied().ok_or_else(|| format!("no perfect subtree {index} of height {height}"))
    }
}

pub(crate) fn size(leaves: u64) -> TreeSize {
    TreeSize::new(leaves).unwrap()
}

pub(crate) fn index(index: u64) -> LeafIndex {
    LeafIndex::new(index).unwrap()
}
