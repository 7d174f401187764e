//! Receipts: the offline proof of one entry, in the format `c2sp.org/tlog-proof@v1`.

use std::fmt::Write as _;

use thiserror::Error;

use crate::checkpoint::{Checkpoint, CheckpointError, Verified};
use crate::hash::Hash;
use crate::note::MAX_NOTE_BYTES;
use crate::policy::Policy;
use crate::position::LeafIndex;
use crate::proof::{InclusionProof, MAX_PROOF_HASHES, ProofError};
use crate::{base64, decimal};

const HEADER: &str = "c2sp.org/tlog-proof@v1";

const EXTRA: &str = "extra ";

/// The most bytes of extra data, decoded: what a line of 64 KiB, the most that other readers take, carries beside the
/// keyword and the LF.
pub const MAX_EXTRA_BYTES: usize = (64 * 1024 - EXTRA.len() - 1) / 4 * 3;

/// The largest receipt in bytes: header, extra data, hashes and a checkpoint.
pub const MAX_RECEIPT_BYTES: usize = MAX_NOTE_BYTES + 2 * MAX_EXTRA_BYTES;

/// The proof of one entry: its index, the inclusion proof's hashes and the checkpoint it leads to. Nothing about it
/// is trusted before [`Receipt::verify`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Receipt {
    /// Data that travels along; nothing authenticates it.
    pub extra: Option<Vec<u8>>,
    /// The entry's leaf index.
    pub index: LeafIndex,
    /// Inclusion proof, from the leaf to the root.
    pub hashes: Vec<Hash>,
    /// The checkpoint as a signed note, verbatim.
    pub checkpoint: Vec<u8>,
}

/// Why bytes are not a receipt.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ReceiptError {
    /// More than [`MAX_RECEIPT_BYTES`].
    #[error("a receipt has at most {MAX_RECEIPT_BYTES} bytes, this one has {0}")]
    TooLong(usize),
    /// The first line is something else.
    #[error("not a receipt: its first line is not {HEADER}")]
    Header,
    /// It ends before the checkpoint.
    #[error("the receipt is cut off: the checkpoint is missing")]
    CutOff,
    /// A line is not what the format has there; lines count from 1.
    #[error("line {0} of the receipt is malformed")]
    Line(usize),
    /// More than [`MAX_PROOF_HASHES`].
    #[error("the receipt has more than {MAX_PROOF_HASHES} proof hashes")]
    TooManyHashes,
}

/// Why a receipt does not prove the entry.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum VerifyError {
    /// The checkpoint in it is not to be believed.
    #[error("the receipt's checkpoint is not valid: {0}")]
    Checkpoint(#[from] CheckpointError),
    /// The receipt was to be checked under another checkpoint than its own.
    #[error("the receipt of entry {0} is not for the checkpoint that it was checked under")]
    OtherCheckpoint(LeafIndex),
    /// The hashes do not lead from this entry to the checkpoint.
    #[error("entry {index} is not proven: {source}")]
    Proof {
        /// The index that the receipt names.
        index: LeafIndex,
        /// What failed.
        source: ProofError,
    },
}

impl Receipt {
    /// Reads a receipt. Canonical: [`Receipt::encode`] gives the same bytes again.
    pub fn parse(bytes: &[u8]) -> Result<Receipt, ReceiptError> {
        if bytes.len() > MAX_RECEIPT_BYTES {
            return Err(ReceiptError::TooLong(bytes.len()));
        }
        let end = bytes.windows(2).position(|pair| pair == b"\n\n");
        let (head, checkpoint) = match end {
            Some(end) => (&bytes[..end], bytes[end + 2..].to_vec()),
            None => (bytes, Vec::new()),
        };
        let head = std::str::from_utf8(head).map_err(|_| ReceiptError::Header)?;
        let mut lines = (1..).zip(head.split('\n'));
        if lines.next().is_none_or(|(_, line)| line != HEADER) {
            return Err(ReceiptError::Header);
        }
        if checkpoint.is_empty() {
            return Err(ReceiptError::CutOff);
        }
        let (mut number, mut line) = lines.next().ok_or(ReceiptError::CutOff)?;
        let mut extra = None;
        if let Some(data) = line.strip_prefix(EXTRA) {
            let data = base64::decode(data).filter(|data| data.len() <= MAX_EXTRA_BYTES);
            extra = Some(data.ok_or(ReceiptError::Line(number))?);
            (number, line) = lines.next().ok_or(ReceiptError::CutOff)?;
        }
        let index = line.strip_prefix("index ").and_then(decimal::parse).and_then(LeafIndex::new);
        let index = index.ok_or(ReceiptError::Line(number))?;
        let mut hashes = Vec::new();
        for (number, line) in lines {
            if hashes.len() == MAX_PROOF_HASHES {
                return Err(ReceiptError::TooManyHashes);
            }
            hashes.push(base64::decode_hash(line).ok_or(ReceiptError::Line(number))?);
        }
        Ok(Receipt { extra, index, hashes, checkpoint })
    }

    /// Whether bytes look like a receipt, by their first line.
    pub fn recognise(bytes: &[u8]) -> bool {
        bytes.starts_with(HEADER.as_bytes())
    }

    /// The receipt as a file.
    pub fn encode(&self) -> Vec<u8> {
        let mut head = format!("{HEADER}\n");
        // Writing to a String cannot fail.
        if let Some(extra) = &self.extra {
            let _ = writeln!(head, "{EXTRA}{}", base64::encode(extra));
        }
        let _ = writeln!(head, "index {}", self.index);
        for hash in &self.hashes {
            let _ = writeln!(head, "{}", base64::encode(hash.as_bytes()));
        }
        head.push('\n');
        [head.as_bytes(), &self.checkpoint].concat()
    }

    /// Checks that the entry with this leaf hash is in the log at the receipt's index, under a checkpoint that
    /// satisfies the policy; returns that checkpoint.
    pub fn verify(&self, leaf: &Hash, policy: &Policy) -> Result<Verified<Checkpoint>, VerifyError> {
        let checkpoint = Checkpoint::open(&self.checkpoint, policy)?;
        self.verify_under(leaf, &checkpoint)?;
        Ok(checkpoint)
    }

    /// Like [`Receipt::verify`], where the receipt's checkpoint was opened before: many receipts share one.
    pub fn verify_under(&self, leaf: &Hash, checkpoint: &Verified<Checkpoint>) -> Result<(), VerifyError> {
        if self.checkpoint != checkpoint.note() {
            return Err(VerifyError::OtherCheckpoint(self.index));
        }
        let head = checkpoint.head();
        let proof = InclusionProof { index: self.index, size: head.size, hashes: self.hashes.clone() };
        proof.verify(leaf, &head.root).map_err(|source| VerifyError::Proof { index: self.index, source })
    }
}
