//! Two signed checkpoints that do not fit: what they prove about whom, and what is kept of them beside the pin.
//!
//! Two histories become evidence files, one for each key that signed both, which convince a stranger offline. Where the
//! log gives no proof that convicts it, the served checkpoint is kept, and it is said what is missing. This module does not
//! know how a conflict was found.

use std::fmt;
use std::path::PathBuf;

use epigraph_core::checkpoint::CheckpointError;
use epigraph_core::evidence::NoEvidence;
use epigraph_core::proof::{ConsistencyProof, ProofError};
use epigraph_core::{Checkpoint, Evidence, Hash, LeafIndex, TreeHead, TreeSize, VKey, Verified};
use epigraph_rpc::peer::{Tree, Which};
use epigraph_rpc::{CallError, Refusal};

use crate::pin::PinError;
use crate::{Client, ClientError, is_passing};

/// What was kept of a served checkpoint that does not fit the pinned one.
#[derive(Debug)]
pub enum Kept {
    /// Evidence about each of these keys; one of them at least.
    Evidence(Vec<(VKey, PathBuf)>),
    /// The served checkpoint alone.
    Served(PathBuf),
    /// Both, where neither is the pinned one.
    Shown(Vec<PathBuf>),
    /// Nothing could be written.
    Nothing(Box<PinError>),
}

impl fmt::Display for Kept {
    /// Where it is and what to do with it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kept::Evidence(files) => {
                write!(
                    f,
                    "The evidence convinces whoever knows the key, also offline; send it to all who rely on it"
                )?;
                files.iter().try_for_each(|(accused, path)| {
                    let path = path.display();
                    write!(f, ": {path}, judged by `epigraph verify '{path}' --vkey '{accused}'`")
                })
            }
            Kept::Served(path) => {
                write!(f, "The served checkpoint is kept beside the pinned one: {}", path.display())
            }
            Kept::Shown(paths) => {
                let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
                write!(f, "Both are kept: {}", paths.join(" and "))
            }
            Kept::Nothing(error) => write!(f, "Nothing of it could be kept: {error}"),
        }
    }
}

impl Client {
    /// The error for two checkpoints of one size with two roots.
    pub(crate) fn two_roots(
        &self,
        served: &Verified<Checkpoint>,
        pinned: &Verified<Checkpoint>,
    ) -> ClientError {
        let evidence = self.accuse(|key| Evidence::two_roots(key, pinned.note(), served.note()));
        ClientError::TwoHistories {
            served: served.head(),
            pinned: pinned.head(),
            kept: self.keep(&evidence, served),
        }
    }

    /// The error for a checkpoint that is not valid under the policy. One that the log signed and no quorum cosigned is not
    /// believed, but at the pinned size with another root it convicts the log all the same.
    pub(crate) fn invalid(&self, note: &[u8], error: CheckpointError) -> ClientError {
        let CheckpointError::Quorum(explanation) = &error else { return error.into() };
        let Ok(Some(pinned)) = self.pin.lock().and_then(|pin| pin.read(&self.policy)) else {
            return error.into();
        };
        let evidence = self.accuse(|key| Evidence::two_roots(key, pinned.note(), note));
        if evidence.is_empty() {
            return error.into();
        }
        let kept = self.keep_evidence(&evidence);
        ClientError::TwoHistories { served: explanation.head, pinned: pinned.head(), kept }
    }

    /// The error for two checkpoints of two sizes and a proof that does not connect them: two histories if it shows another
    /// old tree under the newer root, else nothing that is proven.
    pub(crate) async fn not_connected(
        &self,
        served: &Verified<Checkpoint>,
        pinned: &Verified<Checkpoint>,
        proof: &ConsistencyProof,
        why: ProofError,
    ) -> ClientError {
        let (older, newer) =
            if served.head().size < pinned.head().size { (served, pinned) } else { (pinned, served) };
        let evidence = self.convict((older.note(), older.head()), (newer.note(), newer.head()), proof).await;
        let kept = self.keep(&evidence, served);
        let (served, pinned) = (served.head(), pinned.head());
        if evidence.is_empty() {
            ClientError::NotProven { served, pinned, why, kept }
        } else {
            ClientError::TwoHistories { served, pinned, kept }
        }
    }

    /// The error for a proof that the log refuses to give.
    pub(crate) fn refused_proof(
        &self,
        served: &Verified<Checkpoint>,
        pinned: &Verified<Checkpoint>,
        refusal: Refusal,
    ) -> ClientError {
        let kept = self.keep(&[], served);
        ClientError::NoProof {
            served: served.head(),
            pinned: pinned.head(),
            refusal: Box::new(refusal),
            kept,
        }
    }

    /// What a proof that does not connect two heads shows all the same: that under the newer one the old tree is another.
    async fn convict(
        &self,
        (older, old): (&[u8], TreeHead),
        (newer, new): (&[u8], TreeHead),
        proof: &ConsistencyProof,
    ) -> Vec<Evidence> {
        let old_root = match proof.old.get().is_power_of_two() {
            true => self.old_root(proof, new.root).await,
            false => Some(old.root),
        };
        let Some(old_root) = old_root else { return Vec::new() };
        let carried = proof.carrying(&old_root);
        self.accuse(|key| Evidence::old_root(key, older, newer, carried.clone()))
    }

    /// Compares two heads that this log signed, whoever showed them: one must be the beginning of the other, by a proof that the log
    /// is asked for. What convicts a key is kept beside the pin, and else the two notes. Nothing is pinned.
    pub async fn compare(&self, one: &[u8], other: &[u8]) -> Result<(), ClientError> {
        let open = |note: &[u8]| match Checkpoint::open_log_signed(note, &self.policy) {
            Ok(signed) if *signed.origin() == self.origin => Ok(signed.head()),
            Ok(_) => Err(ClientError::WrongAnswer("with the checkpoint of another log")),
            Err(error) => Err(error.into()),
        };
        let (first, second) = (open(one)?, open(other)?);
        let (older, newer) = if first.size <= second.size { (one, other) } else { (other, one) };
        let (old, new) = if first.size <= second.size { (first, second) } else { (second, first) };
        if old == new || old.size == TreeSize::ZERO {
            return Ok(());
        }
        let keep = |evidence: &[Evidence]| match evidence {
            [] => self.keep_both([(&old, older), (&new, newer)]),
            evidence => self.keep_evidence(evidence),
        };
        let (served, pinned) = (new, old);
        if old.size == new.size {
            let evidence = self.accuse(|key| Evidence::two_roots(key, older, newer));
            return Err(ClientError::TwoHistories { served, pinned, kept: keep(&evidence) });
        }
        let hashes = match self.log.consistency_proof(self.origin.as_str(), old.size, new.size).await {
            Ok(hashes) => hashes,
            Err(CallError::Refused(refusal)) if !is_passing(&refusal) => {
                let (refusal, kept) = (Box::new(refusal), keep(&[]));
                return Err(ClientError::NoProof { served, pinned, refusal, kept });
            }
            Err(error) => return Err(error.into()),
        };
        let proof = ConsistencyProof { old: old.size, new: new.size, hashes };
        let Err(why) = proof.verify(&old.root, &new.root) else { return Ok(()) };
        let evidence = self.convict((older, old), (newer, new), &proof).await;
        let kept = keep(&evidence);
        Err(match evidence.is_empty() {
            true => ClientError::NotProven { served, pinned, why, kept },
            false => ClientError::TwoHistories { served, pinned, kept },
        })
    }

    /// The root of the old tree as the newer one has it, where its size is a power of two and the consistency proof leaves it
    /// out. There the old tree is a subtree of the newer one, and the sibling of the subtree that the next leaf is in: so it
    /// is in that leaf's inclusion proof (RFC 9162 section 2.1.3.1). Which of the hashes it is, the consistency proof tells.
    async fn old_root(&self, proof: &ConsistencyProof, new_root: Hash) -> Option<Hash> {
        let next = LeafIndex::new(proof.old.get())?;
        let tree = Tree { size: Some(proof.new), consistent_from: None };
        let answer = self.log.proof(self.origin.as_str(), Which::Index(next), tree).await.ok()?;
        answer.hashes.into_iter().find(|hash| proof.verify(hash, &new_root).is_ok())
    }

    /// What is proven about the log, and about each witness of the policy.
    fn accuse(&self, make: impl Fn(&VKey) -> Result<Evidence, NoEvidence>) -> Vec<Evidence> {
        let witnesses = self.policy.witnesses().iter().map(|witness| &witness.vkey);
        self.policy.logs().iter().chain(witnesses).filter_map(|key| make(key).ok()).collect()
    }

    /// Keeps the evidence, or the served checkpoint if there is none.
    fn keep(&self, evidence: &[Evidence], served: &Verified<Checkpoint>) -> Box<Kept> {
        if !evidence.is_empty() {
            return self.keep_evidence(evidence);
        }
        let kept = self.pin.lock().and_then(|pin| pin.keep_served(served));
        Box::new(kept.map_or_else(|error| Kept::Nothing(Box::new(error)), Kept::Served))
    }

    fn keep_both(&self, notes: [(&TreeHead, &[u8]); 2]) -> Box<Kept> {
        let keep = || {
            let pin = self.pin.lock()?;
            notes.into_iter().map(|(head, note)| pin.keep_shown(head, note)).collect::<Result<_, PinError>>()
        };
        Box::new(keep().map_or_else(|error| Kept::Nothing(Box::new(error)), Kept::Shown))
    }

    fn keep_evidence(&self, evidence: &[Evidence]) -> Box<Kept> {
        let keep = || {
            let pin = self.pin.lock()?;
            let keep = |evidence: &Evidence| Ok((evidence.accused().clone(), pin.keep_evidence(evidence)?));
            evidence.iter().map(keep).collect::<Result<_, PinError>>()
        };
        Box::new(keep().map_or_else(|error| Kept::Nothing(Box::new(error)), Kept::Evidence))
    }

    /// Keeps a checkpoint that is older than one which was seen: it proves nothing about anybody, but is worth looking at.
    pub(crate) fn keep_older(&self, served: &Verified<Checkpoint>) {
        match *self.keep(&[], served) {
            Kept::Nothing(error) => tracing::error!(%error, "the served checkpoint cannot be kept"),
            kept => tracing::warn!("{kept}"),
        }
    }
}
