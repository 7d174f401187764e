//! Claims: entries that an appender says the log acknowledged. At the deadline the monitor looks for itself.
//!
//! What it says then is its own: that under the newest head the log proves the entry at its index, or does not. That the log
//! ever acknowledged it is the claimant's word. This module does not know who may claim.

use epigraph_core::proof::InclusionProof;
use epigraph_core::{Hash, LeafIndex, TreeHead, TreeSize, UnixMillis};

use super::Machine;
use super::time::Elapsed;
use crate::event::{Claim, Effect, Vantage, VantageKind, Why};
use crate::finding::{Code, MAX_SUBJECT_BYTES, one_line};
use crate::heads::Seen;
use crate::lines::{Writer, number};
use crate::said::rfc3339;

/// The most claims that wait for their deadlines, or for the log to mend what it broke.
pub const MAX_CLAIMS: usize = 1024;

/// The most of one claimant: some for each of its connections.
pub const MAX_CLAIMS_OF_ONE: usize = 64;

/// The latest deadline that is waited for: a claim is no way to fill this memory for good.
const MAX_WAIT_MS: u64 = 24 * 60 * 60 * 1000;

/// After this long an answer does not come.
const ANSWER_MS: u64 = 60_000;

/// How long until a claim is looked at again if nobody answered,
const AGAIN_MS: u64 = 10_000;

/// or if the entry was not there.
const MUCH_LATER_MS: u64 = 10 * 60 * 1000;

/// A claim, and how far the search has come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Awaited {
    claim: Claim,
    /// When it is looked at next; unset until the first tick, from when on the clock may jump.
    due: Option<Elapsed>,
    asked: Option<Asked>,
    told: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Asked {
    head: TreeHead,
    vantage: Vantage,
    left: Vec<Vantage>,
    at: Elapsed,
    refused: Option<String>,
}

impl Awaited {
    pub(super) fn write(&self, file: &mut Writer) {
        let Claim { claimant, index, leaf, deadline } = &self.claim;
        let told = u8::from(self.told);
        file.line("claim", format_args!("{} {index} {leaf} {told} {claimant}", deadline.0));
    }

    pub(super) fn parse(text: &str) -> Option<Awaited> {
        let mut parts = text.splitn(5, ' ');
        let deadline = UnixMillis(number(parts.next()?)?);
        let index = LeafIndex::new(number(parts.next()?)?)?;
        let leaf = Hash::from_hex(parts.next()?)?;
        let told = parts.next()? == "1";
        let claimant = parts.next()?.to_owned();
        let claim = Claim { claimant, index, leaf, deadline };
        Some(Awaited { claim, due: None, asked: None, told })
    }

    fn subject(&self) -> String {
        format!("entry {}", self.claim.index)
    }
}

impl Machine {
    /// Whether there is room for a claim of this claimant.
    pub fn has_room_for_claim(&self, claimant: &str) -> bool {
        let of_one = self.claims.iter().filter(|awaited| awaited.claim.claimant == claimant).count();
        of_one < MAX_CLAIMS_OF_ONE && self.claims.len() < MAX_CLAIMS
    }

    /// By when an entry must be published, where somebody claims that it was acknowledged.
    pub fn claimed_by(&self, index: LeafIndex, leaf: Hash) -> Option<UnixMillis> {
        let same = |held: &&Awaited| held.claim.index == index && held.claim.leaf == leaf;
        self.claims.iter().find(same).map(|held| held.claim.deadline)
    }

    /// A claim beyond the limits is not taken: ask [`Machine::has_room_for_claim`] before.
    pub(super) fn claimed(&mut self, claim: Claim, at: UnixMillis) {
        let claimant = one_line(&claim.claimant, MAX_SUBJECT_BYTES);
        let deadline = claim.deadline.min(UnixMillis(at.0.saturating_add(MAX_WAIT_MS)));
        let claim = Claim { claimant, deadline, ..claim };
        let same = |held: &Awaited| held.claim.index == claim.index && held.claim.leaf == claim.leaf;
        if self.claims.iter().any(same) || !self.has_room_for_claim(&claim.claimant) {
            return;
        }
        let due = self.time.elapsed.saturating_add(claim.deadline.0.saturating_sub(at.0));
        self.claims.push(Awaited { claim, due: Some(due), asked: None, told: false });
        self.changed = true;
    }

    pub(super) fn tick_claims(&mut self) {
        let now = self.time.elapsed;
        for place in 0..self.claims.len() {
            let clock = self.time.now.0;
            let Some(awaited) = self.claims.get_mut(place) else { continue };
            let due = *awaited
                .due
                .get_or_insert_with(|| now.saturating_add(awaited.claim.deadline.0.saturating_sub(clock)));
            if awaited.asked.as_ref().is_some_and(|asked| now.saturating_sub(asked.at) >= ANSWER_MS) {
                self.no_entry(place, None);
            } else if awaited.asked.is_none() && due <= now {
                self.look_for(place);
            }
        }
    }

    fn look_for(&mut self, place: usize) {
        let Some(head) = self.published().filter(|_| self.log_answers()) else { return };
        let mut left = self.sources(&head);
        let now = self.time.elapsed;
        let Some(awaited) = self.claims.get_mut(place) else { return };
        let index = awaited.claim.index;
        if !head.size.contains(index) {
            return self.missing(place, &head, "the log does not reach up to it");
        }
        if left.is_empty() {
            return;
        }
        let vantage = left.remove(0);
        awaited.asked = Some(Asked { head, vantage: vantage.clone(), left, at: now, refused: None });
        self.out.push(Effect::AskEntry { index, head, vantage });
    }

    /// The largest head that the log shows, of those whose place is known.
    pub(super) fn published(&self) -> Option<TreeHead> {
        let of_log = |name: &str| self.points.get(name).is_some_and(|point| point.kind == VantageKind::Log);
        let shown = |seen: &&Seen| seen.sightings().iter().any(|sighting| of_log(&sighting.vantage));
        let branch = self.heads.branches().first()?;
        branch.heads().rev().find(shown).map(Seen::head)
    }

    pub(super) fn inclusion(
        &mut self,
        index: LeafIndex,
        size: TreeSize,
        hashes: Vec<Hash>,
        vantage: &Vantage,
    ) {
        let proof = InclusionProof { index, size, hashes };
        // One index may be claimed for two entries.
        for place in self.asked_about(index, size, vantage).into_iter().rev() {
            let Some(Awaited { claim, asked: Some(asked), .. }) = self.claims.get(place) else { continue };
            match proof.verify(&claim.leaf, &asked.head.root) {
                Ok(()) => {
                    let found = self.claims.remove(place);
                    self.changed = true;
                    let subject = found.subject();
                    let another = self.claims.iter().any(|other| other.told && other.subject() == subject);
                    if found.told && !another {
                        self.clear(Code::MissingEntry, &subject);
                    }
                }
                Err(error) => {
                    self.no_entry(place, Some(format!("{} does not prove it: {error}", vantage.name)))
                }
            }
        }
    }

    pub(super) fn no_inclusion(&mut self, index: LeafIndex, size: TreeSize, vantage: &Vantage, why: &Why) {
        for place in self.asked_about(index, size, vantage) {
            let refused = match why {
                Why::Refused(why) => Some(format!("{} refuses the proof: {why}", vantage.name)),
                Why::Unreachable(_) => None,
            };
            self.no_entry(place, refused);
        }
    }

    fn asked_about(&self, index: LeafIndex, size: TreeSize, vantage: &Vantage) -> Vec<usize> {
        let asked = |awaited: &Awaited| {
            let asked = awaited.asked.as_ref();
            awaited.claim.index == index
                && asked.is_some_and(|asked| asked.head.size == size && asked.vantage == *vantage)
        };
        (0..).zip(&self.claims).filter(|(_, awaited)| asked(awaited)).map(|(place, _)| place).collect()
    }

    /// Asks the next vantage point, or says that the entry is missing, or leaves it for a while.
    fn no_entry(&mut self, place: usize, refused: Option<String>) {
        let now = self.time.elapsed;
        let Some(awaited) = self.claims.get_mut(place) else { return };
        let Some(mut asked) = awaited.asked.take() else { return };
        asked.refused = refused.or(asked.refused);
        if !asked.left.is_empty() {
            asked.vantage = asked.left.remove(0);
            asked.at = now;
            let (index, head, vantage) = (awaited.claim.index, asked.head, asked.vantage.clone());
            awaited.asked = Some(asked);
            return self.out.push(Effect::AskEntry { index, head, vantage });
        }
        match asked.refused {
            Some(why) => self.missing(place, &asked.head, &why),
            None => awaited.due = Some(now.saturating_add(AGAIN_MS)),
        }
    }

    fn missing(&mut self, place: usize, head: &TreeHead, why: &str) {
        let now = self.time.elapsed;
        let Some(awaited) = self.claims.get_mut(place) else { return };
        awaited.due = Some(now.saturating_add(MUCH_LATER_MS));
        awaited.told = true;
        let Claim { claimant, index, leaf, deadline } = &awaited.claim;
        let detail = format!(
            "{claimant} says that the log acknowledged entry {index} with leaf hash {leaf}, due at {}; under the newest head of \
             size {} root {} it is not there: {why}",
            rfc3339(*deadline),
            head.size,
            head.root
        );
        let subject = awaited.subject();
        let notes = self.note_of(head).into_iter().collect();
        self.changed = true;
        self.trigger(Code::MissingEntry, &subject, &detail, notes);
    }
}
