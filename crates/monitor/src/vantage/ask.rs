//! Questions to the log that have one answer: proofs. The answers are handed on as they are.

use epigraph_core::proof::ConsistencyProof;
use epigraph_core::proof::InclusionProof;
use epigraph_core::tile::TILE_WIDTH;
use epigraph_core::{Hash, LeafIndex, TreeHead, TreeSize};
use epigraph_rpc::CallError;
use epigraph_rpc::peer::{Tree, Which};

use super::{Outbox, Reader, why};
use crate::audit::{Answer, judge};
use crate::event::{Event, Why};

/// The hashes of a consistency proof, and candidates for the one that it may leave out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proof {
    /// As the log gave them.
    pub hashes: Vec<Hash>,
    /// Where the old size is a power of two and the proof does not verify: the hashes of an inclusion proof of the next leaf, of
    /// which one is the root of the old subtree as the new tree has it.
    pub candidates: Vec<Hash>,
}

impl Reader {
    /// Asks for the proof that the new head extends the old one, and for what tells a fork from a bad proof.
    pub async fn consistency(&self, old: TreeHead, new: TreeHead) -> Result<Proof, CallError> {
        let origin = self.origin.as_str();
        if old.size == TreeSize::ZERO || old.size == new.size {
            return Ok(Proof { hashes: Vec::new(), candidates: Vec::new() });
        }
        let hashes = self.log.consistency_proof(origin, old.size, new.size).await?;
        let proof = ConsistencyProof { old: old.size, new: new.size, hashes };
        let left_out = old.size.get().is_power_of_two() && proof.verify(&old.root, &new.root).is_err();
        // RFC 9162 section 2.1.3.1: the old tree is a subtree of the new one there, and the sibling of the one that the next
        // leaf is in.
        let candidates = match LeafIndex::new(old.size.get()).filter(|_| left_out) {
            Some(next) => {
                let tree = Tree { size: Some(new.size), consistent_from: None };
                self.log.proof(origin, Which::Index(next), tree).await?.hashes
            }
            None => Vec::new(),
        };
        Ok(Proof { hashes: proof.hashes, candidates })
    }

    /// Asks whether what was read is a beginning of a signed tree. An error says nothing about the log.
    pub(super) async fn judged(&self, ours: TreeHead, target: TreeHead) -> Result<Answer, String> {
        match self.consistency(ours, target).await {
            Ok(proof) => Ok(judge(ours, target, proof.hashes, &proof.candidates)),
            Err(error) => match why(&error) {
                Why::Refused(why) => Ok(Answer::Nothing(why)),
                Why::Unreachable(why) => Err(why),
            },
        }
    }

    /// Asks for the leaf hash at an index, and believes it only with its proof under the signed head. The outer error says
    /// nothing about the log.
    pub(super) async fn leaf(
        &self,
        index: LeafIndex,
        target: TreeHead,
    ) -> Result<Result<Hash, String>, String> {
        match self.proven_leaf(index, target).await {
            Ok(leaf) => Ok(leaf),
            Err(error) => match why(&error) {
                Why::Refused(why) => Ok(Err(why)),
                Why::Unreachable(why) => Err(why),
            },
        }
    }

    async fn proven_leaf(
        &self,
        index: LeafIndex,
        target: TreeHead,
    ) -> Result<Result<Hash, String>, CallError> {
        let origin = self.origin.as_str();
        let tree = Tree { size: Some(target.size), consistent_from: None };
        let hashes = self.log.proof(origin, Which::Index(index), tree).await?.hashes;
        let width = u64::from(TILE_WIDTH);
        let (tile, place) = (index.get() / width, index.get() % width);
        // No more than the signed tree has, which the log must have.
        let whole = (tile + 1).saturating_mul(width) <= target.size.get();
        let asked = if whole { 0 } else { u32::try_from(target.size.get() % width).unwrap_or(0) };
        let leaves = self.log.tile(origin, 0, tile, asked).await?;
        let leaf = usize::try_from(place).ok().and_then(|place| leaves.get(place));
        let proof = InclusionProof { index, size: target.size, hashes };
        Ok(match leaf {
            Some(leaf) if proof.verify(leaf, &target.root).is_ok() => Ok(*leaf),
            _ => Err("it does not prove which leaf hash is there".to_owned()),
        })
    }
}

/// Asks for a consistency proof and tells the machine what came.
pub async fn consistency(reader: &Reader, old: TreeHead, new: TreeHead, outbox: &Outbox) {
    let asked = reader.consistency(old, new).await;
    let (old, new, vantage, at) = (old.size, new.size, reader.vantage.clone(), outbox.now());
    outbox
        .tell(match asked {
            Ok(Proof { hashes, candidates }) => Event::Proof { old, new, hashes, candidates, vantage, at },
            Err(error) => Event::NoProof { old, new, vantage, why: why(&error), at },
        })
        .await;
}

/// Asks for the inclusion proof of a claimed entry and tells the machine what came.
pub async fn entry(reader: &Reader, index: LeafIndex, head: TreeHead, outbox: &Outbox) {
    let tree = Tree { size: Some(head.size), consistent_from: None };
    let asked = reader.log.proof(reader.origin.as_str(), Which::Index(index), tree).await;
    let (size, vantage, at) = (head.size, reader.vantage.clone(), outbox.now());
    outbox
        .tell(match asked {
            Ok(answer) => Event::Inclusion { index, size, hashes: answer.hashes, vantage, at },
            Err(error) => Event::NoInclusion { index, size, vantage, why: why(&error), at },
        })
        .await;
}
