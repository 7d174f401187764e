//! Trees of two worlds, and notes of their heads.

use bytes::Bytes;
use epigraph_core::checkpoint::encode_text;
use epigraph_core::hash::{leaf_hash, node_hash};
use epigraph_core::proof::{Nodes, prove_consistency, root_at};
use epigraph_core::{Hash, KeyName, SigningKey, TreeHead, TreeSize, note};
use zeroize::Zeroizing;

pub fn key() -> SigningKey {
    SigningKey::from_seed(KeyName::new("log.example").unwrap(), &Zeroizing::new([7; 32]))
}

pub fn size(leaves: u64) -> TreeSize {
    TreeSize::new(leaves).unwrap()
}

/// The head as the log signs it.
pub fn note_of(head: &TreeHead) -> String {
    let text = encode_text(&key().vkey().name().to_origin(), head);
    note::encode(&text, [&key().sign_assertion(&text)])
}

pub fn entry(index: u64, world: u8) -> Bytes {
    Bytes::from(format!("entry {index} of world {world}"))
}

/// The entries of a log that has another history from `fork` on.
pub fn entries(leaves: u64, fork: u64, world: u8) -> Vec<Bytes> {
    (0..leaves).map(|index| entry(index, if index < fork { 0 } else { world })).collect()
}

/// All nodes of a tree, level by level.
pub struct Tree(Vec<Vec<Hash>>);

impl Tree {
    pub fn of(entries: &[Bytes]) -> Tree {
        let mut levels = vec![entries.iter().map(|entry| leaf_hash(entry)).collect::<Vec<_>>()];
        while levels.last().unwrap().len() > 1 {
            let below = levels.last().unwrap();
            levels.push(below.chunks_exact(2).map(|pair| node_hash(&pair[0], &pair[1])).collect());
        }
        Tree(levels)
    }

    pub fn leaf(&self, index: u64) -> Hash {
        self.0[0][index as usize]
    }

    pub fn head(&self, at: u64) -> TreeHead {
        TreeHead { size: size(at), root: root_at(self, size(at)).unwrap() }
    }

    pub fn consistency(&self, old: TreeSize, new: TreeSize) -> Vec<Hash> {
        prove_consistency(self, old, new).unwrap().unwrap().hashes
    }
}

impl Nodes for Tree {
    type Error = ();

    fn node(&self, height: u32, index: u64) -> Result<Hash, ()> {
        self.0.get(height as usize).and_then(|level| level.get(index as usize)).copied().ok_or(())
    }
}
