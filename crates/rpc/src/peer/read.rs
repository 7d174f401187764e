//! Questions with one answer: proofs, entries, tiles, checkpoints.

use bytes::Bytes;
use epigraph_core::{Hash, LeafIndex, TreeSize};

use super::{Log, at_most, call, check_entries, expect, present};
use crate::convert::{ConvertError, hash, leaf_index, list_page, proof, read_entries, tile_width};
use crate::limits::CALL_DEADLINE;
use crate::status::CallError;
use crate::v1::{self, get_proof_request::Target};

/// Which entry is meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Which {
    /// The one at this index.
    Index(LeafIndex),
    /// The first with this leaf hash.
    LeafHash(Hash),
}

/// The tree that an entry is to be proven in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tree {
    /// Its size; `None`: that of the newest published checkpoint.
    pub size: Option<TreeSize>,
    /// Ask for the proof that it extends the tree of this size, too.
    pub consistent_from: Option<TreeSize>,
}

/// An inclusion proof and what it is a proof for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProofAnswer {
    /// The index of the entry.
    pub leaf_index: LeafIndex,
    /// The sibling hashes, the leaf's own first.
    pub hashes: Vec<Hash>,
    /// The signed note of the newest published checkpoint, if the proof leads to it: always, unless a size was named.
    pub checkpoint: Option<Bytes>,
    /// The consistency proof, if one was asked for.
    pub consistency: Vec<Hash>,
}

/// Some of the published checkpoints that a log kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CheckpointPage {
    /// Signed notes, said to be in ascending order of their sizes.
    pub checkpoints: Vec<Bytes>,
    /// What to ask with for the next page; empty after the last one.
    pub next_page_token: String,
}

impl Log {
    /// Asks for the proof that an entry is in the log.
    pub async fn proof(&self, origin: &str, which: Which, tree: Tree) -> Result<ProofAnswer, CallError> {
        let target = Some(match which {
            Which::Index(index) => Target::LeafIndex(index.get()),
            Which::LeafHash(leaf) => Target::LeafHash(Bytes::copy_from_slice(leaf.as_bytes())),
        });
        let request = v1::GetProofRequest {
            origin: origin.into(),
            target,
            tree_size: tree.size.map_or(0, TreeSize::get),
            consistent_from: tree.consistent_from.map_or(0, TreeSize::get),
        };
        let mut client = self.client.clone();
        let answer = call(request, CALL_DEADLINE, |request| client.get_proof(request)).await?;
        if let Which::Index(index) = which {
            expect("leaf_index", index.get(), answer.leaf_index)?;
        }
        let checkpoint = match tree.size {
            Some(_) => Some(answer.checkpoint).filter(|note| !note.is_empty()),
            None => Some(present("checkpoint", answer.checkpoint)?),
        };
        let consistency = proof(&answer.consistency)?;
        if tree.consistent_from.is_none() {
            expect("consistency", 0, consistency.len() as u64)?;
        }
        let leaf_index = leaf_index(answer.leaf_index)?;
        Ok(ProofAnswer { leaf_index, hashes: proof(&answer.hashes)?, checkpoint, consistency })
    }

    /// Asks for the entries from `first` on, at most `max` of them; 0 leaves that to the server. At least one comes, and
    /// none of them is proven.
    pub async fn entries(&self, origin: &str, first: LeafIndex, max: u32) -> Result<Vec<Bytes>, CallError> {
        let first_index = first.get();
        let request = v1::GetEntriesRequest { origin: origin.into(), first_index, max_entries: max };
        let mut client = self.client.clone();
        let answer = call(request, CALL_DEADLINE, |request| client.get_entries(request)).await?;
        expect("first_index", first_index, answer.first_index)?;
        let count = check_entries(first, answer.entries.iter().map(AsRef::as_ref))?;
        at_most("entries", u64::from(read_entries(max)), count)?;
        Ok(answer.entries)
    }

    /// Asks for the first `width` hashes of a tile; 0 for a full one.
    pub async fn tile(
        &self,
        origin: &str,
        level: u32,
        index: u64,
        width: u32,
    ) -> Result<Vec<Hash>, CallError> {
        let request = v1::GetTileRequest { origin: origin.into(), level, index, width };
        let mut client = self.client.clone();
        let answer = call(request, CALL_DEADLINE, |request| client.get_tile(request)).await?;
        let want = tile_width(width) as usize * Hash::LEN;
        if answer.hashes.len() != want {
            return Err(ConvertError::Length { field: "hashes", want, got: answer.hashes.len() }.into());
        }
        let hashes = answer.hashes.chunks_exact(Hash::LEN).map(|bytes| hash("hashes", bytes));
        Ok(hashes.collect::<Result<_, _>>()?)
    }

    /// Asks for the proof that the tree of size `old` is the beginning of the tree of size `new`.
    pub async fn consistency_proof(
        &self,
        origin: &str,
        old: TreeSize,
        new: TreeSize,
    ) -> Result<Vec<Hash>, CallError> {
        let request = v1::GetConsistencyProofRequest {
            origin: origin.into(),
            old_size: old.get(),
            new_size: new.get(),
        };
        let mut client = self.client.clone();
        let answer = call(request, CALL_DEADLINE, |request| client.get_consistency_proof(request)).await?;
        Ok(proof(&answer.hashes)?)
    }

    /// Asks for the newest published checkpoint: a signed note.
    pub async fn checkpoint(&self, origin: &str) -> Result<Bytes, CallError> {
        let request = v1::GetCheckpointRequest { origin: origin.into() };
        let mut client = self.client.clone();
        let answer = call(request, CALL_DEADLINE, |request| client.get_checkpoint(request)).await?;
        Ok(present("checkpoint", answer.checkpoint)?)
    }

    /// Asks for published checkpoints of at least `min_size` that the log kept: the first page without a token, the
    /// others with that of the page before. `page_size` 0 leaves it to the server how many.
    pub async fn checkpoints(
        &self,
        origin: &str,
        min_size: TreeSize,
        page_size: u32,
        page_token: &str,
    ) -> Result<CheckpointPage, CallError> {
        let request = v1::ListCheckpointsRequest {
            origin: origin.into(),
            min_size: min_size.get(),
            page_size,
            page_token: page_token.into(),
        };
        let mut client = self.client.clone();
        let answer = call(request, CALL_DEADLINE, |request| client.list_checkpoints(request)).await?;
        let v1::ListCheckpointsResponse { checkpoints, next_page_token } = answer;
        at_most("checkpoints", u64::from(list_page(page_size)), checkpoints.len() as u64)?;
        Ok(CheckpointPage { checkpoints, next_page_token })
    }
}
