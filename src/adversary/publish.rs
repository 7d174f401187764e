//! Signs whatever head there is, asks witnesses to cosign it, and publishes it when enough did. It holds the key, and does what
//! no honest signer does: it does not look at what it signed before.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use epigraph_core::checkpoint::encode_text;
use epigraph_core::cosignature::add_cosignature;
use epigraph_core::note::SignatureLine;
use epigraph_core::progress::Proposal;
use epigraph_core::{Checkpoint, Policy, SigningKey, TreeHead, TreeSize, VKey, note};
use epigraph_rpc::ClientTls;
use epigraph_rpc::peer::{self, Proposed};
use tokio::time::sleep;

use super::lie::Side;
use super::log::LyingLog;
use crate::config::witnessing::WitnessAddress;
use crate::failure::{Failure, Outcome};

/// Between two attempts to reach the quorum: a witness first looks at what the log shows it.
const AGAIN: Duration = Duration::from_millis(50);

/// So often a witness may answer that it holds another size before it is left out this time.
const STALE_ANSWERS: usize = 3;

pub struct Publisher {
    log: Arc<LyingLog>,
    key: SigningKey,
    policy: Policy,
    /// In the order of the policy.
    witnesses: Vec<Asked>,
}

struct Asked {
    vkey: VKey,
    peer: peer::Witness,
}

impl Publisher {
    pub fn new(
        log: Arc<LyingLog>,
        key: SigningKey,
        policy: Policy,
        witnesses: &[&WitnessAddress],
        tls: &ClientTls,
    ) -> Outcome<Publisher> {
        let asked = |witness: &&WitnessAddress| {
            let vkey = policy.witnesses().get(witness.place).map(|witness| witness.vkey.clone());
            let vkey = vkey.ok_or_else(|| Failure::usage("a witness is not in the policy"))?;
            let address =
                witness.address.as_deref().ok_or_else(|| Failure::usage("a witness has no address"))?;
            let peer = peer::Witness::new(address, tls, &witness.server).map_err(Failure::usage)?;
            Ok(Asked { vkey, peer })
        };
        let witnesses = witnesses.iter().map(asked).collect::<Outcome<_>>()?;
        Ok(Publisher { log, key, policy, witnesses })
    }

    /// Publishes whenever there is something to publish.
    pub async fn run(&self) -> Infallible {
        let mut changes = self.log.changes();
        loop {
            changes.mark_unchanged();
            let heads = self.log.world().unpublished();
            let mut notes = Vec::new();
            for (side, head) in &heads {
                notes.push(self.collect(*side, *head).await);
            }
            // At one moment: its histories never differ in length, which would be noticed by accident.
            if let Some(notes) = notes.into_iter().collect::<Option<Vec<_>>>() {
                let mut world = self.log.world();
                heads
                    .iter()
                    .zip(notes)
                    .for_each(|((side, head), note)| world.publish(*side, head.size, note));
                drop(world);
                if !heads.is_empty() {
                    self.log.changed();
                }
            }
            let left = !self.log.world().unpublished().is_empty();
            tokio::select! {
                _ = changes.changed() => {}
                () = sleep(AGAIN), if left => {}
            }
        }
    }

    /// The head as a note that satisfies the policy, if enough witnesses of this side cosign it.
    async fn collect(&self, side: Side, head: TreeHead) -> Option<Bytes> {
        let text = encode_text(&self.log.origin, &head);
        let signed = note::encode(&text, [&self.key.sign_assertion(&text)]);
        let mut collected = signed.clone();
        for (place, witness) in self.witnesses.iter().enumerate() {
            if !self.log.world().asks(side, place) {
                continue;
            }
            for line in self.ask(witness, side, head, &signed).await.unwrap_or_default() {
                if let Ok(Some(merged)) = add_cosignature(&collected, &line, &witness.vkey) {
                    collected = merged;
                }
            }
        }
        Checkpoint::open(collected.as_bytes(), &self.policy).ok()?;
        Some(collected.into())
    }

    async fn ask(
        &self,
        witness: &Asked,
        side: Side,
        head: TreeHead,
        signed: &str,
    ) -> Option<Vec<SignatureLine>> {
        let mut old_size = TreeSize::ZERO;
        for _ in 0..STALE_ANSWERS {
            let proof = match old_size {
                TreeSize::ZERO => Vec::new(),
                old => self.log.world().history(side)?.consistency(old, head.size)?.hashes,
            };
            let proposal = Proposal { old_size, head, proof, note: signed.as_bytes().to_vec() };
            match witness.peer.add_checkpoint(self.log.origin.as_str(), proposal).await {
                Ok(Proposed::Cosigned(lines)) => return Some(lines),
                Ok(Proposed::Stale { held, .. }) => old_size = held.size,
                Ok(Proposed::Conflict { .. }) => return None,
                Err(error) => {
                    tracing::info!(witness = %witness.vkey.name(), %error, "a witness did not cosign");
                    return None;
                }
            }
        }
        None
    }
}
