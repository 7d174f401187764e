//! Convictions: two heads that contradict each other become evidence against the log, and against every witness that cosigned
//! both.
//!
//! A witness is also convicted by two heads that nobody compared yet, one in each of two histories: that pair is asked about
//! in its turn. This module does not know how a contradiction was found.

use std::collections::BTreeSet;

use bytes::Bytes;
use epigraph_core::evidence::NoEvidence;
use epigraph_core::{Evidence, Hash, TreeHead, VKey};

use super::time::Elapsed;
use super::{Key, Machine, THE_LOG, key};
use crate::event::Effect;
use crate::finding::{Code, Trigger};
use crate::heads::Seen;

/// The most contradictions that are kept for witnesses that turn out later to have cosigned both heads.
const MAX_CONTRADICTIONS: usize = 32;

/// The most pairs of heads that are looked at for the sake of a witness: some for each witness of a large policy.
const MAX_PAIRS: usize = 256;

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Convictions {
    contradictions: Vec<Contradiction>,
    /// Pairs that were asked about for the sake of a witness.
    pairs: BTreeSet<(Key, Key)>,
    /// The witnesses that are convicted, by their places.
    witnesses: BTreeSet<usize>,
    /// Pairs of branches that were shown to part, since the machine was started.
    parted: BTreeSet<(usize, usize)>,
    rests_until: Elapsed,
}

/// How long a pair waits that nobody could be asked about.
const AGAIN_MS: u64 = 60_000;

/// Two heads of which at most one can be true. Two roots of one size, or the hashes that show it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Contradiction {
    old: TreeHead,
    new: TreeHead,
    /// Their notes, as they were then.
    notes: [Bytes; 2],
    carried: Option<Vec<Hash>>,
}

impl Machine {
    /// Looks for another root at the size of a head that was just shown.
    pub(super) fn same_size(&mut self, head: &TreeHead, note: &Bytes) {
        let others: Vec<TreeHead> = self.heads.of_size(head.size).map(Seen::head).collect();
        for other in others.into_iter().filter(|other| other.root != head.root) {
            let notes = [self.note_of(&other).unwrap_or_default(), note.clone()];
            self.contradict([other, *head], notes, None);
        }
    }

    /// Two heads of one size have two roots.
    pub(super) fn two_roots(&mut self, one: &TreeHead, other: &TreeHead) {
        let notes = [one, other].map(|head| self.note_of(head).unwrap_or_default());
        self.contradict([*one, *other], notes, None);
    }

    /// Two heads contradict each other: `carried` are the hashes that show it, unless they are of one size.
    pub(super) fn contradict(
        &mut self,
        [old, new]: [TreeHead; 2],
        notes: [Bytes; 2],
        carried: Option<Vec<Hash>>,
    ) {
        let contradiction = Contradiction { old, new, notes, carried };
        let known = |held: &Contradiction| [[old, new], [new, old]].contains(&[held.old, held.new]);
        if self.convictions.contradictions.iter().any(known) {
            return;
        }
        self.accuse_log(&contradiction);
        self.accuse_witnesses(&contradiction);
        if self.convictions.contradictions.len() < MAX_CONTRADICTIONS {
            self.convictions.contradictions.push(contradiction);
        }
    }

    fn accuse_log(&mut self, contradiction: &Contradiction) {
        let Contradiction { old, new, .. } = contradiction;
        let detail = format!("{}; but {}", self.describe(old), self.describe(new));
        let logs = self.policy.logs().iter();
        match logs.filter_map(|log| self.evidence(log, contradiction).ok()).next() {
            Some(evidence) => self.convict(Code::SplitView, THE_LOG, &detail, &evidence),
            None => {
                // Two keys of the log signed one head each: certain, but no single key can be accused of it.
                let notes = [old, new].into_iter().filter_map(|head| self.note_of(head)).collect();
                self.trigger(Code::InconsistentHead, THE_LOG, &detail, notes);
            }
        }
    }

    fn accuse_witnesses(&mut self, contradiction: &Contradiction) {
        for place in 0..self.policy.witnesses().len() {
            let Some(witness) = self.policy.witnesses().get(place) else { continue };
            let Ok(evidence) = self.evidence(&witness.vkey, contradiction) else { continue };
            let name = witness.vkey.name().to_string();
            let Contradiction { old, new, .. } = contradiction;
            let detail = format!("{name} cosigned {}; and {}", self.describe(old), self.describe(new));
            self.convict_witness(place, &detail, &evidence);
        }
    }

    pub(super) fn convict_witness(&mut self, place: usize, detail: &str, evidence: &Evidence) {
        self.convictions.witnesses.insert(place);
        self.convict(Code::WitnessEquivocation, evidence.accused().name().as_str(), detail, evidence);
    }

    /// Whether this witness was convicted before.
    pub(super) fn is_convicted(&self, place: usize) -> bool {
        self.convictions.witnesses.contains(&place)
    }

    fn evidence(&self, accused: &VKey, contradiction: &Contradiction) -> Result<Evidence, NoEvidence> {
        let Contradiction { old, new, notes: [older, newer], carried } = contradiction;
        // By now a head may have more cosignatures than it had, or be thinned out.
        let (older, newer) =
            (self.note_of(old).unwrap_or(older.clone()), self.note_of(new).unwrap_or(newer.clone()));
        match carried {
            Some(carried) => Evidence::old_root(accused, &older, &newer, carried.clone()),
            None => Evidence::two_roots(accused, &older, &newer),
        }
    }

    fn convict(&mut self, code: Code, subject: &str, detail: &str, evidence: &Evidence) {
        let trigger = Trigger::new(code, &self.origin, subject, self.time.now, detail);
        let evidence = Some(Bytes::from(evidence.encode()));
        self.out.push(Effect::Trigger(Trigger { evidence, ..trigger }));
    }

    /// A witness's cosignature on a head came to be known after the head.
    pub(super) fn cosigned_later(&mut self, head: &TreeHead) {
        let about = |held: &&Contradiction| held.old == *head || held.new == *head;
        let held: Vec<_> = self.convictions.contradictions.iter().filter(about).cloned().collect();
        for contradiction in held {
            self.accuse_witnesses(&contradiction);
        }
        self.cross_examine();
    }

    /// Compares histories with each other: once for the log, in case that it was killed between keeping a head and keeping what
    /// the head convicts of; and for every witness that cosigned heads of both, the newest of each.
    pub(super) fn cross_examine(&mut self) {
        if self.convictions.rests_until > self.time.elapsed {
            return;
        }
        let branches = self.heads.branches().len();
        for pair in (0..branches).flat_map(|one| (one + 1..branches).map(move |other| (one, other))) {
            self.part(pair);
            for place in 0..self.policy.witnesses().len() {
                let newest =
                    |branch: usize| Some(self.heads.branches().get(branch)?.newest_of(place)?.head());
                let (Some(one), Some(other)) = (newest(pair.0), newest(pair.1)) else { continue };
                if !self.convictions.witnesses.contains(&place) {
                    self.confront(one, other);
                }
            }
        }
    }

    /// Nobody could be asked about a pair: it is asked about again, after a while.
    pub(super) fn confront_later(&mut self, old: &TreeHead, new: &TreeHead) {
        self.convictions.pairs.remove(&(key(old), key(new)));
        self.convictions.parted.clear();
        self.convictions.rests_until = self.time.elapsed.saturating_add(AGAIN_MS);
    }

    fn part(&mut self, pair: (usize, usize)) {
        if self.convictions.parted.contains(&pair) {
            return;
        }
        let branch = |head: &TreeHead| self.heads.branch_of(head);
        let parts = |held: &Contradiction| match (branch(&held.old), branch(&held.new)) {
            (Some(one), Some(other)) => (one.min(other), one.max(other)) == pair,
            _ => false,
        };
        let tip = |branch: usize| Some(self.heads.branches().get(branch)?.tip()?.head());
        let (Some(one), Some(other)) = (tip(pair.0), tip(pair.1)) else { return };
        if self.convictions.contradictions.iter().any(parts) || self.confront(one, other) {
            self.convictions.parted.insert(pair);
        }
    }

    /// Compares two heads of two histories, unless that was done. Whether there was room to ask.
    fn confront(&mut self, one: TreeHead, other: TreeHead) -> bool {
        let (old, new) = if one.size <= other.size { (one, other) } else { (other, one) };
        let pair = (key(&old), key(&new));
        if old.size == new.size {
            self.two_roots(&old, &new);
            return true;
        }
        if self.convictions.pairs.contains(&pair) {
            return true;
        }
        let asked = self.convictions.pairs.len() < MAX_PAIRS && self.ask_to_accuse(old, new);
        if asked {
            self.convictions.pairs.insert(pair);
        }
        asked
    }
}
