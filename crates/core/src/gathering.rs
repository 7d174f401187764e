//! A checkpoint on its way to its quorum: a head that the log signed, and what witnesses said to it so far.
//!
//! Each signature is verified once, when it comes; so the checkpoint that comes of it is the one that
//! [`Checkpoint::open`] would give, without verifying all of them again. It does not know who is asked, or when.

use std::sync::Arc;

use crate::checkpoint::{Checkpoint, CheckpointError, LogSigned, Verified};
use crate::cosignature::{CosignatureError, add_cosignature};
use crate::note::{Parsed, SignatureLine};
use crate::policy::explain::is_log_of;
use crate::policy::{Policy, WitnessSet};
use crate::tree::TreeHead;

/// A log-signed head under one policy, with verified cosignatures of that policy's witnesses and no other line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gathering {
    policy: Arc<Policy>,
    signed: LogSigned,
    note: String,
    cosigned: WitnessSet,
}

impl Gathering {
    /// Without a cosignature yet. Fails if the head was not signed by a log that the policy trusts for it.
    pub fn new(signed: LogSigned, policy: Arc<Policy>) -> Result<Gathering, CheckpointError> {
        let trusted = |key| policy.logs().contains(key) && is_log_of(key, signed.origin());
        if !signed.signers().iter().all(trusted) {
            return Err(CheckpointError::NotSigned(signed.origin().clone()));
        }
        let note = signed.note().to_owned();
        Ok(Gathering { policy, signed, note, cosigned: WitnessSet::EMPTY })
    }

    /// With the cosignatures that are under a published checkpoint, each verified once more; lines that are no witness's are left out.
    pub fn of_published(
        published: &Verified<Checkpoint>,
        policy: Arc<Policy>,
    ) -> Result<Gathering, CheckpointError> {
        let signed = Checkpoint::open_log_signed(published.note(), &policy)?;
        let mut gathering = Gathering::new(signed, policy)?;
        let lines =
            Parsed::parse(published.note()).map(|note| note.signatures().to_vec()).unwrap_or_default();
        for line in &lines {
            for place in 0..gathering.policy.witnesses().len() {
                // What does not verify, or is there already, adds nothing.
                let _ = gathering.add(place, line);
            }
        }
        Ok(gathering)
    }

    /// Verifies a cosignature of the witness at this place of the policy and attaches it, as [`add_cosignature`] does. Says whether
    /// it was not there yet; a place that the policy does not have has nothing to say.
    pub fn add(&mut self, place: usize, line: &SignatureLine) -> Result<bool, CosignatureError> {
        let Some(witness) = self.policy.witnesses().get(place) else { return Ok(false) };
        let Some(note) = add_cosignature(&self.note, line, &witness.vkey)? else { return Ok(false) };
        self.note = note;
        self.cosigned = self.cosigned.union([place].into_iter().collect());
        Ok(true)
    }

    /// The head with the log's signature alone.
    pub fn signed(&self) -> &LogSigned {
        &self.signed
    }

    /// Its size and root.
    pub fn head(&self) -> TreeHead {
        self.signed.head()
    }

    /// Whose cosignatures are there.
    pub fn cosigned(&self) -> WitnessSet {
        self.cosigned
    }

    /// The checkpoint, if they meet the policy's quorum.
    pub fn checkpoint(&self) -> Option<Verified<Checkpoint>> {
        let met = self.policy.is_met_by(self.cosigned);
        met.then(|| Verified(Checkpoint::of_parts(&self.signed, self.note.as_bytes())))
    }
}
