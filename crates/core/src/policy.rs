//! Policies (C2SP `tlog-policy`): which logs a reader trusts, and which witnesses must have cosigned.
//!
//! A policy is a set of logs, of which any one suffices, and a tree: witnesses are its leaves, a group is met when `k`
//! of its members are, and the quorum names the root. The format lets a name be a member of one group only, once, so no
//! witness stands in two places; the counting in [`analysis`] rests on that. This module knows what must be signed, not
//! what was: [`explain`] compares a note with it.

use std::fmt;

use crate::key::VKey;

pub mod analysis;
pub mod explain;
mod file;

pub use file::PolicyError;

/// The largest policy file in bytes: 32 logs, witnesses and groups, what C2SP asks for, fit under the longest names.
pub const MAX_POLICY_BYTES: usize = 64 * 1024;

/// The most logs in a policy; C2SP asks for at least 32.
pub const MAX_LOGS: usize = 64;

/// The most witnesses in a policy: a set of them is one `u64`. C2SP asks for at least 32.
pub const MAX_WITNESSES: usize = 64;

/// The most groups in a policy: with as many as witnesses, every useful tree of them fits.
pub const MAX_GROUPS: usize = 64;

/// A checked policy: at least one log, and the quorum of witnesses, if it asks for one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    logs: Vec<VKey>,
    witnesses: Vec<Witness>,
    groups: Vec<Group>,
    quorum: Option<Member>,
}

/// A witness of a policy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Witness {
    /// What the policy calls it; its key has a name of its own.
    pub name: String,
    /// Its key, of type 0x04. The public key is who it is.
    pub vkey: VKey,
}

/// A group of a policy: met when `threshold` of its members are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Group {
    /// What the policy calls it.
    pub name: String,
    /// How many members must be met: 1 to the number of members.
    pub threshold: usize,
    /// Its members, defined before it.
    pub members: Vec<Member>,
}

/// A member of a group: its place among the policy's witnesses or groups.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Member {
    /// A witness.
    Witness(usize),
    /// A group.
    Group(usize),
}

/// Some of the witnesses of one policy, by their places in [`Policy::witnesses`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct WitnessSet(u64);

impl WitnessSet {
    /// No witness.
    pub const EMPTY: WitnessSet = WitnessSet(0);

    /// The first `count` witnesses.
    pub fn first(count: usize) -> WitnessSet {
        (0..count).collect()
    }

    /// Whether the witness at this place is in it.
    pub fn contains(self, place: usize) -> bool {
        place < MAX_WITNESSES && self.0 >> place & 1 == 1
    }

    /// How many there are.
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those in either.
    pub fn union(self, other: WitnessSet) -> WitnessSet {
        WitnessSet(self.0 | other.0)
    }

    /// Those in both.
    pub fn intersection(self, other: WitnessSet) -> WitnessSet {
        WitnessSet(self.0 & other.0)
    }

    /// Those that are not in `other`.
    pub fn without(self, other: WitnessSet) -> WitnessSet {
        WitnessSet(self.0 & !other.0)
    }

    /// Their places, in order.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..MAX_WITNESSES).filter(move |place| self.contains(*place))
    }
}

impl FromIterator<usize> for WitnessSet {
    /// A place that no policy has is nobody's.
    fn from_iter<I: IntoIterator<Item = usize>>(places: I) -> WitnessSet {
        WitnessSet(
            places.into_iter().filter(|place| *place < MAX_WITNESSES).fold(0, |set, place| set | 1 << place),
        )
    }
}

impl fmt::Debug for WitnessSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl Policy {
    /// The policy that trusts one log alone.
    pub fn of_log(log: VKey) -> Policy {
        Policy { logs: vec![log], witnesses: Vec::new(), groups: Vec::new(), quorum: None }
    }

    /// The same policy for this one of its logs alone; `None` if it does not name it.
    pub fn only_for(&self, log: &VKey) -> Option<Policy> {
        self.logs.contains(log).then(|| Policy { logs: vec![log.clone()], ..self.clone() })
    }

    /// The policy that trusts one log once `threshold` of the witnesses cosigned, each named like its key.
    pub fn of_witnesses(log: &VKey, witnesses: &[VKey], threshold: usize) -> Result<Policy, PolicyError> {
        let lines: String = witnesses.iter().map(|key| format!("witness {} {key}\n", key.name())).collect();
        let names: String = witnesses.iter().map(|key| format!(" {}", key.name())).collect();
        format!("log {log}\n{lines}group witnesses {threshold}{names}\nquorum witnesses\n").parse()
    }

    /// The logs, of which any one suffices.
    pub fn logs(&self) -> &[VKey] {
        &self.logs
    }

    /// The witnesses, in the order of the file.
    pub fn witnesses(&self) -> &[Witness] {
        &self.witnesses
    }

    /// The groups, in the order of the file: members before the group they are in.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// What must be met; `None` if the log's signature is enough (`quorum none`).
    pub fn quorum(&self) -> Option<Member> {
        self.quorum
    }

    /// What the policy calls a member.
    pub fn name(&self, member: Member) -> &str {
        let name = match member {
            Member::Witness(place) => self.witnesses.get(place).map(|witness| &witness.name),
            Member::Group(place) => self.groups.get(place).map(|group| &group.name),
        };
        name.map_or("", String::as_str)
    }

    /// The names of some witnesses, in the order of the file.
    pub fn names(&self, set: WitnessSet) -> Vec<&str> {
        set.iter()
            .filter_map(|place| self.witnesses.get(place))
            .map(|witness| witness.name.as_str())
            .collect()
    }

    /// The witness with this public key, by its place.
    pub fn place_of(&self, vkey: &VKey) -> Option<usize> {
        self.witnesses.iter().position(|witness| witness.vkey.same_public_key(vkey))
    }

    /// Whether cosignatures of these witnesses are enough.
    pub fn is_met_by(&self, set: WitnessSet) -> bool {
        let met = |group: &Group, members: Vec<bool>| {
            members.into_iter().filter(|met| *met).count() >= group.threshold
        };
        self.fold(|place| set.contains(place), met).unwrap_or(true)
    }

    /// Computes a value for each witness and group below the quorum, members first, and returns the quorum's; `None`
    /// for `quorum none`. No recursion: a nested policy costs no stack.
    fn fold<T: Clone>(&self, witness: impl Fn(usize) -> T, group: impl Fn(&Group, Vec<T>) -> T) -> Option<T> {
        let mut below = vec![false; self.groups.len()];
        if let Some(Member::Group(root)) = self.quorum {
            below[root] = true;
        }
        // Members are defined before their group, so that going backwards meets every group before its members.
        for (place, group) in self.groups.iter().enumerate().rev() {
            let inherited = below[place];
            for member in &group.members {
                if let Member::Group(inner) = member {
                    below[*inner] |= inherited;
                }
            }
        }
        let mut values: Vec<Option<T>> = Vec::new();
        let value = |member: Member, values: &[Option<T>]| match member {
            Member::Witness(place) => Some(witness(place)),
            Member::Group(place) => values.get(place)?.clone(),
        };
        for (place, definition) in self.groups.iter().enumerate() {
            let members = || definition.members.iter().filter_map(|member| value(*member, &values)).collect();
            let computed = below[place].then(|| group(definition, members()));
            values.push(computed);
        }
        value(self.quorum?, &values)
    }

    /// The policy as a file.
    pub fn to_text(&self) -> String {
        let mut text: String = self.logs.iter().map(|log| format!("log {log}\n")).collect();
        for Witness { name, vkey } in &self.witnesses {
            text += &format!("witness {name} {vkey}\n");
        }
        for Group { name, threshold, members } in &self.groups {
            let members: String = members.iter().map(|member| format!(" {}", self.name(*member))).collect();
            text += &format!("group {name} {threshold}{members}\n");
        }
        text + &format!("quorum {}\n", self.quorum.map_or(file::NONE, |quorum| self.name(quorum)))
    }
}
