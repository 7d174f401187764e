//! What a policy withstands: how many witnesses may lie, how many may be down, whether it may be replaced by another,
//! and how many must answer before a log knows what was published under it.
//!
//! The questions are put to the tree of groups. No witness stands in two places of it, so the cheapest way to meet a
//! group is the cheapest way to meet enough of its members, and most answers need no enumeration. Two policies together
//! have no such tree: there the smallest quorums of one of them are enumerated, up to [`MAX_QUORUMS`]. Witnesses are
//! told apart by their public keys.

use thiserror::Error;

use super::{Group, Policy, WitnessSet};
use crate::key::VKey;

/// The most quorums that are enumerated: those of every flat policy of up to 20 witnesses, in about a second.
pub const MAX_QUORUMS: usize = 200_000;

/// The quorums cannot be enumerated.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error(
    "the policy has more than {MAX_QUORUMS} smallest quorums, too many to compare one by one: use fewer witnesses, \
     or nest them in groups"
)]
pub struct TooManyQuorums;

/// What one policy withstands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Analysis {
    /// A smallest set of witnesses that, lying together, can make two quorums for two histories. Everybody else is
    /// honest, but may have been shown only one of the two. Empty where no liar is needed.
    pub colluders: WitnessSet,
    /// A smallest set of witnesses without which there is no quorum; `None` for `quorum none`.
    pub blockers: Option<WitnessSet>,
    /// The witnesses without any one of which there is no quorum.
    pub single_points: WitnessSet,
    /// The largest sets of witnesses that may be down together: the rest of each is a smallest quorum.
    pub may_be_down: Result<Vec<WitnessSet>, TooManyQuorums>,
}

impl Analysis {
    /// Whether this many lying witnesses cannot make two quorums.
    pub fn withstands(&self, faulty: usize) -> bool {
        self.colluders.len() > faulty
    }

    /// How many witnesses may be down, whichever they are; `None` where it does not depend on them.
    pub fn may_miss(&self) -> Option<usize> {
        self.blockers.map(|blockers| blockers.len().saturating_sub(1))
    }
}

/// How little a quorum of an old policy and one of a new policy can have in common.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Overlap {
    /// The witnesses that both quorums have, under the old policy's names for their keys.
    pub common: Vec<VKey>,
    /// A quorum of the old policy.
    pub old_quorum: WitnessSet,
    /// A quorum of the new policy that has no more than `common` in common with it.
    pub new_quorum: WitnessSet,
}

impl Overlap {
    /// Whether every old and every new quorum meet in more than `faulty` witnesses, so that a change of policy does
    /// not let them vouch for two histories.
    pub fn withstands(&self, faulty: usize) -> bool {
        self.common.len() > faulty
    }
}

impl Policy {
    /// Whether the witnesses that answered know of everything that may have been published: after any `faulty` of them
    /// are taken away, the rest still meets every quorum. For `k` of `n` that takes `n - k + faulty + 1` answers. With
    /// `quorum none` no witness is asked, and none is missing.
    pub fn enough_answers(&self, answered: WitnessSet, faulty: usize) -> bool {
        // A quorum that avoids the rest consists of those that did not answer and of those that were taken away.
        self.quorum.is_none() || self.cheapest(self.all().without(answered)).len() > faulty
    }

    /// What the policy withstands.
    pub fn analyse(&self) -> Analysis {
        let all = self.all();
        let colluders = |group: &Group, members| {
            // Of m members, m can be split between two histories; the others of the 2k must be met for both.
            cheapest_of((2 * group.threshold).saturating_sub(group.members.len()), members)
        };
        let blockers =
            |group: &Group, members| cheapest_of(group.members.len() + 1 - group.threshold, members);
        let single = |place: &usize| !self.is_met_by(all.without(alone(*place)));
        Analysis {
            colluders: self.fold(alone, colluders).unwrap_or_default(),
            blockers: self.fold(alone, blockers),
            single_points: all.iter().filter(single).collect(),
            may_be_down: self
                .smallest_quorums()
                .map(|quorums| quorums.into_iter().map(|quorum| all.without(quorum)).collect()),
        }
    }

    /// The quorums from which no witness can be left out. With `quorum none` that is the empty one.
    pub fn smallest_quorums(&self) -> Result<Vec<WitnessSet>, TooManyQuorums> {
        if self.count_quorums() > MAX_QUORUMS {
            return Err(TooManyQuorums);
        }
        let quorums = self.fold(
            |place| vec![alone(place)],
            |group, members: Vec<Vec<WitnessSet>>| {
                // By how many members were chosen so far. What cannot reach the threshold any more is not kept, so
                // that every set in memory is the beginning of a different quorum.
                let mut chosen = vec![Vec::new(); group.threshold + 1];
                chosen[0].push(WitnessSet::EMPTY);
                for (left, member) in (0..members.len()).rev().zip(&members) {
                    for count in (1..=group.threshold).rev() {
                        let pairs =
                            |set: &WitnessSet| member.iter().map(|more| set.union(*more)).collect::<Vec<_>>();
                        let grown: Vec<_> = chosen[count - 1].iter().flat_map(pairs).collect();
                        chosen[count].extend(grown);
                    }
                    chosen.iter_mut().take(group.threshold.saturating_sub(left)).for_each(Vec::clear);
                }
                chosen.pop().unwrap_or_default()
            },
        );
        Ok(quorums.unwrap_or_else(|| vec![WitnessSet::EMPTY]))
    }

    /// How many more witnesses than these must cosign, at least, until the policy is met.
    pub fn fewest_missing(&self, cosigned: WitnessSet) -> usize {
        self.cheapest(cosigned).len()
    }

    /// How many smallest quorums there are, at most `usize::MAX`.
    fn count_quorums(&self) -> usize {
        let ways = |group: &Group, members: Vec<usize>| {
            let mut ways = vec![0usize; group.threshold + 1];
            ways[0] = 1;
            for member in members {
                for count in (1..=group.threshold).rev() {
                    ways[count] = ways[count].saturating_add(ways[count - 1].saturating_mul(member));
                }
            }
            ways[group.threshold]
        };
        self.fold(|_| 1, ways).unwrap_or(1)
    }

    /// A smallest set of witnesses that together with those that come `free` meets the quorum.
    fn cheapest(&self, free: WitnessSet) -> WitnessSet {
        let witness = |place| if free.contains(place) { WitnessSet::EMPTY } else { alone(place) };
        self.fold(witness, |group, members| cheapest_of(group.threshold, members)).unwrap_or_default()
    }

    fn all(&self) -> WitnessSet {
        WitnessSet::first(self.witnesses.len())
    }

    /// Which places the witnesses of `set` have in another policy, those that it has.
    fn placed_in(&self, other: &Policy, set: WitnessSet) -> WitnessSet {
        set.iter().filter_map(|place| other.place_of(&self.witnesses.get(place)?.vkey)).collect()
    }
}

/// How little the quorums of two policies have in common, at the worst.
pub fn overlap(old: &Policy, new: &Policy) -> Result<Overlap, TooManyQuorums> {
    if old.count_quorums() > new.count_quorums() {
        let (new_quorum, old_quorum) = apart(new, old)?;
        return Ok(Overlap { common: common(old, old_quorum, new, new_quorum), old_quorum, new_quorum });
    }
    let (old_quorum, new_quorum) = apart(old, new)?;
    Ok(Overlap { common: common(old, old_quorum, new, new_quorum), old_quorum, new_quorum })
}

/// A quorum of each that have the least in common, by trying every smallest one of `first`.
fn apart(first: &Policy, second: &Policy) -> Result<(WitnessSet, WitnessSet), TooManyQuorums> {
    let free = |quorum| second.all().without(first.placed_in(second, quorum));
    let tried = first.smallest_quorums()?.into_iter().map(|quorum| (second.cheapest(free(quorum)), quorum));
    let (shared, quorum) = tried.min_by_key(|(shared, _)| shared.len()).unwrap_or_default();
    // Leave out whom the second quorum does not need.
    let mut other = free(quorum).union(shared);
    for place in other.iter() {
        let fewer = other.without(alone(place));
        if second.is_met_by(fewer) {
            other = fewer;
        }
    }
    Ok((quorum, other))
}

fn common(old: &Policy, old_quorum: WitnessSet, new: &Policy, new_quorum: WitnessSet) -> Vec<VKey> {
    let shared = old_quorum.intersection(new.placed_in(old, new_quorum));
    shared.iter().filter_map(|place| old.witnesses.get(place)).map(|witness| witness.vkey.clone()).collect()
}

fn alone(place: usize) -> WitnessSet {
    [place].into_iter().collect()
}

/// The union of the `count` smallest sets; the first of equal ones.
fn cheapest_of(count: usize, mut sets: Vec<WitnessSet>) -> WitnessSet {
    sets.sort_by_key(|set| set.len());
    sets.into_iter().take(count).fold(WitnessSet::EMPTY, WitnessSet::union)
}
