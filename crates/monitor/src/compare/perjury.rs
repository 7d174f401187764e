//! Perjury: a witness that puts its name to a head which the log has not signed.
//!
//! Nobody but the witness can make its cosignature, so such a note says something about the witness, though nothing about the log.
//! Together with its cosignature on another head of the same size it is evidence: the witness vouched for two histories, whoever
//! wrote the second. The newest such note of each witness waits for that other head for a while. This module does not know how
//! notes come here.

use std::collections::BTreeMap;

use bytes::Bytes;
use epigraph_core::checkpoint::decode_text;
use epigraph_core::note::{Parsed, SignatureLine};
use epigraph_core::{Evidence, TreeHead, cosignature};

use super::Machine;
use super::time::Elapsed;
use crate::event::Vantage;
use crate::heads::{Garbage, MAX_KEPT_NOTE_BYTES, Seen};

/// So long a note waits for a head that contradicts it: heads of one size come from all sides within seconds. Then it is what an
/// unsigned note of anybody else's is.
const WAITS_MS: u64 = 10_000;

/// What a witness put its name to, by its place.
pub(super) type Perjuries = BTreeMap<usize, Perjury>;

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Perjury {
    head: TreeHead,
    note: Bytes,
    vantage: Vantage,
    garbage: Garbage,
    since: Elapsed,
}

impl Machine {
    /// Looks whether a witness of the policy has put its name to what the log has not signed. `false`: nobody has, and it is
    /// garbage like any other.
    pub(super) fn is_perjury(&mut self, vantage: &Vantage, note: &Bytes, garbage: &Garbage) -> bool {
        let Some((head, places)) = self.cosigners(note) else { return false };
        let since = self.time.elapsed;
        for place in places {
            if self.is_convicted(place) {
                continue;
            }
            let waiting = self.perjuries.get(&place).filter(|waiting| waiting.head == head);
            let since = waiting.map_or(since, |waiting| waiting.since);
            let (note, vantage, garbage) = (note.clone(), vantage.clone(), garbage.clone());
            self.perjuries.insert(place, Perjury { head, note, vantage, garbage, since });
        }
        true
    }

    /// The head of a note of this log, and the witnesses that cosigned it.
    fn cosigners(&self, note: &[u8]) -> Option<(TreeHead, Vec<usize>)> {
        let parsed = Parsed::parse(note).ok().filter(|_| note.len() <= MAX_KEPT_NOTE_BYTES)?;
        let (origin, head) = decode_text(parsed.text()).ok()?;
        let signed = |place: &usize| {
            let witness = self.policy.witnesses().get(*place);
            let vkey = witness.map(|witness| &witness.vkey);
            let own = |line: &SignatureLine| {
                vkey.is_some_and(|vkey| cosignature::verify(parsed.text(), line, vkey).is_ok())
            };
            parsed.signatures().iter().any(own)
        };
        let places: Vec<usize> = (0..self.policy.witnesses().len()).filter(signed).collect();
        (origin == self.origin && !places.is_empty()).then_some((head, places))
    }

    /// Compares what waits with the heads that are known by now.
    pub(super) fn try_perjuries(&mut self) {
        let now = self.time.elapsed;
        for (place, Perjury { head, note, vantage, garbage, since }) in self.perjuries.clone() {
            let Some(witness) = self.policy.witnesses().get(place) else { continue };
            let two = |seen: &Seen| Evidence::two_roots(&witness.vkey, &note, seen.note().as_bytes()).ok();
            let evidence = self.heads.of_size(head.size).find_map(two);
            if let Some(evidence) = evidence {
                let name = witness.vkey.name().to_string();
                let [one, other] = evidence.heads();
                let detail = format!(
                    "{name} cosigned size {} root {} and root {}, of which the log has not signed root {}: {} showed it",
                    head.size, one.root, other.root, head.root, vantage.name
                );
                self.perjuries.remove(&place);
                self.convict_witness(place, &detail, &evidence);
            } else if now.saturating_sub(since) >= WAITS_MS {
                self.perjuries.remove(&place);
                self.garbage(&vantage, &garbage);
            }
        }
    }
}
