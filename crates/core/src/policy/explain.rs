//! What a policy makes of one checkpoint: who signed it, when, and whether that is enough.
//!
//! [`Checkpoint::open`](crate::Checkpoint::open) decides by the same [`Explanation`], so what a person is told and what
//! a program accepts cannot differ.

use std::fmt;

use super::{Policy, WitnessSet};
use crate::checkpoint::CheckpointError;
use crate::cosignature::{self, CosignedAt};
use crate::environment::UnixMillis;
use crate::key::{KeyType, Origin, VKey};
use crate::note::{NoteError, Parsed, SignatureLine};
use crate::tree::TreeHead;

/// How old a cosignature may be to count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Age {
    /// The present.
    pub now: UnixMillis,
    /// How many seconds a cosignature may lie behind `now`, and ahead of it: one from the far future would otherwise
    /// stay young for ever.
    pub seconds: u64,
}

/// What the log or a witness said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer<T> {
    /// It signed.
    Signed(T),
    /// It signed, at a time outside of the [`Age`] that was asked for: it does not count.
    OutsideAge(T),
    /// No signature of its key is there.
    NotSigned,
    /// A line in its name does not fit the text: the note was changed, or the line was made by somebody else.
    BadSignature,
}

/// What a policy makes of one checkpoint. Plain data: only [`Checkpoint::open`](crate::Checkpoint::open) makes one that
/// can be relied on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Explanation {
    /// The log that the checkpoint says it is of.
    pub origin: Origin,
    /// The head that it claims.
    pub head: TreeHead,
    /// Each key that the policy trusts for this log.
    pub logs: Vec<(VKey, Answer<()>)>,
    /// Each witness of the policy, in its order.
    pub witnesses: Vec<WitnessAnswer>,
    /// Each group of the policy, in its order.
    pub groups: Vec<GroupCount>,
    /// What must be met; `None` if the log's signature is enough.
    pub quorum: Option<String>,
    /// Whether the cosignatures that count meet it.
    pub quorum_met: bool,
}

/// What one witness said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WitnessAnswer {
    /// What the policy calls it.
    pub name: String,
    /// Its key.
    pub vkey: VKey,
    /// What it said, and when.
    pub answer: Answer<CosignedAt>,
}

/// How far one group is met.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupCount {
    /// What the policy calls it.
    pub name: String,
    /// Members that are met.
    pub have: usize,
    /// Members that must be met.
    pub need: usize,
    /// Members in all.
    pub of: usize,
}

impl GroupCount {
    /// Whether enough members are met.
    pub fn is_met(&self) -> bool {
        self.have >= self.need
    }
}

impl Explanation {
    pub(crate) fn new(
        parsed: &Parsed<'_>,
        origin: Origin,
        head: TreeHead,
        policy: &Policy,
        age: Option<Age>,
    ) -> Explanation {
        let of_origin = policy.logs().iter().filter(|log| is_log_of(log, &origin));
        let logs = of_origin.map(|log| (log.clone(), answer(parsed, log, |_| Some(())))).collect();
        let witnesses: Vec<_> = policy
            .witnesses()
            .iter()
            .map(|witness| WitnessAnswer {
                name: witness.name.clone(),
                vkey: witness.vkey.clone(),
                answer: match answer(parsed, &witness.vkey, cosigned_at) {
                    Answer::Signed(at) if age.is_some_and(|age| !age.allows(at)) => Answer::OutsideAge(at),
                    answer => answer,
                },
            })
            .collect();
        let signed = |answer: &WitnessAnswer| matches!(answer.answer, Answer::Signed(_));
        let set: WitnessSet =
            (0..).zip(&witnesses).filter(|(_, answer)| signed(answer)).map(|(place, _)| place).collect();
        let mut groups: Vec<GroupCount> = Vec::new();
        for group in policy.groups() {
            let met = |member: &&super::Member| match member {
                super::Member::Witness(place) => set.contains(*place),
                super::Member::Group(place) => groups.get(*place).is_some_and(GroupCount::is_met),
            };
            groups.push(GroupCount {
                name: group.name.clone(),
                have: group.members.iter().filter(met).count(),
                need: group.threshold,
                of: group.members.len(),
            });
        }
        let quorum = policy.quorum().map(|quorum| policy.name(quorum).to_owned());
        Explanation { origin, head, logs, witnesses, groups, quorum, quorum_met: policy.is_met_by(set) }
    }

    /// Whether the policy is satisfied: a log that it trusts signed, the quorum is met, and no signature in a known
    /// name is bad.
    pub fn satisfied(&self) -> bool {
        self.verdict().is_ok()
    }

    /// Whether a line of the note is one that the log was found to have signed with.
    pub(crate) fn is_log_signature(&self, line: &SignatureLine) -> bool {
        self.logs.iter().any(|(key, answer)| *answer == Answer::Signed(()) && key.is_named_by(line))
    }

    /// Why the policy is not satisfied.
    pub fn verdict(&self) -> Result<(), CheckpointError> {
        let log = self.logs.iter().find(|(_, answer)| *answer == Answer::BadSignature).map(|(vkey, _)| vkey);
        let witness = self.witnesses.iter().find(|witness| witness.answer == Answer::BadSignature);
        if let Some(vkey) = log.or(witness.map(|witness| &witness.vkey)) {
            // C2SP signed-note: a known key whose signature fails condemns the whole note.
            return Err(NoteError::BadSignature { name: vkey.name().to_string(), key_id: vkey.id() }.into());
        }
        if !self.logs.iter().any(|(_, answer)| matches!(answer, Answer::Signed(()))) {
            return Err(CheckpointError::NotSigned(self.origin.clone()));
        }
        if self.quorum_met { Ok(()) } else { Err(CheckpointError::Quorum(Box::new(self.clone()))) }
    }
}

impl fmt::Display for Explanation {
    /// Who signed, who did not, and which groups lack how many: one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let escaped = |name: &str| name.escape_debug().to_string();
        let signed = self.witnesses.iter().filter_map(|witness| match witness.answer {
            Answer::Signed(at) => Some(format!("{} (at {at})", escaped(&witness.name))),
            _ => None,
        });
        let missing = self.witnesses.iter().filter_map(|witness| match witness.answer {
            Answer::Signed(_) => None,
            Answer::OutsideAge(at) => {
                Some(format!("{} (outside the age bound: at {at})", escaped(&witness.name)))
            }
            Answer::NotSigned => Some(escaped(&witness.name)),
            Answer::BadSignature => Some(format!("{} (bad signature)", escaped(&witness.name))),
        });
        let lacking = self.groups.iter().filter(|group| !group.is_met()).map(|group| {
            format!("group {} has {} of the {} it needs", escaped(&group.name), group.have, group.need)
        });
        let list = |items: Vec<String>| if items.is_empty() { "nobody".to_owned() } else { items.join(", ") };
        let (origin, size) = (&self.origin, self.head.size);
        let quorum = self.quorum.as_deref().map_or_else(|| "none".to_owned(), escaped);
        let met = if self.quorum_met { "met" } else { "not met" };
        write!(f, "the checkpoint of {origin} at size {size}: the policy's quorum {quorum} is {met}")?;
        if !self.witnesses.is_empty() {
            write!(f, "; cosigned by {}; missing: {}", list(signed.collect()), list(missing.collect()))?;
        }
        lacking.into_iter().try_for_each(|group| write!(f, "; {group}"))
    }
}

impl Age {
    fn allows(self, at: CosignedAt) -> bool {
        (self.now.0 / 1000).abs_diff(at.seconds()) <= self.seconds
    }
}

/// Whether a key is one that a log of this origin signs with (C2SP `tlog-policy`: the key's name is the origin).
pub(crate) fn is_log_of(vkey: &VKey, origin: &Origin) -> bool {
    vkey.key_type() == KeyType::Ed25519 && vkey.name().as_str() == origin.as_str()
}

fn cosigned_at(line: &SignatureLine) -> Option<CosignedAt> {
    cosignature::split(&line.signature).map(|(at, _)| at)
}

/// What a key says in a note: the newest of its lines, and bad if any one of them is.
fn answer<T: Ord>(parsed: &Parsed<'_>, key: &VKey, read: impl Fn(&SignatureLine) -> Option<T>) -> Answer<T> {
    let mut newest = None;
    for line in parsed.signatures().iter().filter(|line| key.is_named_by(line)) {
        match read(line).filter(|_| key.verify(parsed.text(), &line.signature)) {
            Some(value) => newest = newest.max(Some(value)),
            None => return Answer::BadSignature,
        }
    }
    newest.map_or(Answer::NotSigned, Answer::Signed)
}
