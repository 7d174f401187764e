//! The witnesses as a pure machine: who is asked for which head next, which cosignatures count, and when a head is
//! published.
//!
//! A signed head is asked of all witnesses at once, each with the size that it holds, and at most one question is open
//! at each. Whatever a witness does costs only itself: the head is published when those that did cosign meet the policy,
//! and a cosignature that comes later is attached to what is published, unless a larger head is signed already. A head that reaches the quorum after a larger
//! one was signed is still published, unless a larger one was published before. A log that does not grow has its published
//! head cosigned again now and then ([`Event::Refresh`]), so that readers who ask for young cosignatures find them. The
//! machine knows no clock: whoever drives it says what time it is, and when a rest is over. Nor has it the log's tree: what a
//! witness holds is judged by whoever drives it ([`Effect::Judge`]), and counts as a conflict only if that proves one.

mod conflict;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use epigraph_core::checkpoint::LogSigned;
use epigraph_core::cosignature::{CosignatureError, claimed_time};
use epigraph_core::gathering::Gathering;
use epigraph_core::hash::leaf_hash;
use epigraph_core::note::SignatureLine;
use epigraph_core::policy::WitnessSet;
use epigraph_core::{Checkpoint, Hash, Policy, TreeHead, TreeSize, UnixMillis, VKey, Verified};
use epigraph_store::witness_sizes::Sizes;
use thiserror::Error;

use super::ask::Reply;
pub use conflict::Judged;
use conflict::{Claim, Otherwise};

/// Signed heads that may still be published. A question is open for at most twice as long as a head stays alone in
/// flight, so that three have answers under way; one more for witnesses that dial in.
pub const MAX_PENDING_HEADS: usize = 4;

/// By so much the time of a cosignature may lie after this log's own: more than two clocks differ that are kept at all. What says
/// that it was made later would count as young with every reader for so much longer, whatever became of its witness.
pub const MAX_AHEAD_SECONDS: u64 = 300;

/// What a witness did that was of no use. Each is counted and told.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Trouble {
    /// No answer.
    #[error("it did not answer: {0}")]
    Unavailable(String),
    /// A refusal.
    #[error("it refused: {0}")]
    Refused(String),
    /// A signature that is not of this witness over this head.
    #[error("its answer was dropped: {0}")]
    BadSignature(String),
    /// A cosignature from the future.
    #[error(
        "its cosignature says that it was made {0} s after the time of this log, and was dropped: set its clock, or this log's"
    )]
    ClockAhead(u64),
    /// It claims a size that no head of this log has, or changes its mind each time.
    #[error("it claims to hold size {0}, which it cannot show: the answer was dropped")]
    BadSize(TreeSize),
    /// It claims a conflict that it cannot show.
    #[error("it claims that the log showed it two histories, and cannot show them: {0}")]
    FalseConflict(String),
    /// It claims a conflict, and the log's own tree cannot be read to judge it. Not the witness's fault.
    #[error("it claims that the log showed it two histories, and this log's own tree cannot tell: {0}")]
    UnjudgedConflict(String),
    /// The log's own signature stands under another history, as the log's own tree proves.
    #[error(
        "it holds a checkpoint of size {} with root {} under this log's own key, and size {} with root {} does not extend \
         it: somebody else signs with the log's key",
        held.size, held.root, ours.size, ours.root
    )]
    Conflict {
        /// What the witness holds.
        held: TreeHead,
        /// The head of this log that does not extend it.
        ours: TreeHead,
    },
}

impl Trouble {
    /// Every [`Trouble::kind`].
    pub const KINDS: [&str; 8] = [
        "unavailable",
        "refused",
        "bad_signature",
        "clock_ahead",
        "bad_size",
        "false_conflict",
        "unjudged_conflict",
        "conflict",
    ];

    /// Its kind, for counting: one word.
    pub fn kind(&self) -> &'static str {
        match self {
            Trouble::Unavailable(_) => "unavailable",
            Trouble::Refused(_) => "refused",
            Trouble::BadSignature(_) => "bad_signature",
            Trouble::ClockAhead(_) => "clock_ahead",
            Trouble::BadSize(_) => "bad_size",
            Trouble::FalseConflict(_) => "false_conflict",
            Trouble::UnjudgedConflict(_) => "unjudged_conflict",
            Trouble::Conflict { .. } => "conflict",
        }
    }
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The log signed a head: larger than all before it, or the last one again.
    Signed(LogSigned),
    /// The witness at this place of the policy answered [`Effect::Ask`].
    Replied(usize, Reply),
    /// [`Effect::Rest`] of this witness is over.
    Rested(usize),
    /// [`Effect::Judge`] of this witness was carried out.
    Judged(usize, Judged),
    /// The cosignatures under what is published, which is this, are no longer young. Nothing follows while a larger head is on
    /// its way, whose cosignatures will be.
    Refresh(Box<Verified<Checkpoint>>),
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Ask the witness at this place of the policy.
    Ask {
        /// Its place.
        place: usize,
        /// The size to prove growth from.
        old: TreeSize,
        /// The head.
        head: TreeHead,
        /// The log-signed note.
        note: String,
    },
    /// Leave the witness alone for a while; it has failed so often in a row.
    Rest {
        /// Its place.
        place: usize,
        /// 1 for the first failure.
        failures: u32,
    },
    /// Make the checkpoint durable, then serve it: its head meets the policy for the first time, or is published already and this
    /// has one more cosignature.
    Publish(Verified<Checkpoint>),
    /// Tell whoever runs the log.
    Tell {
        /// The witness's place.
        place: usize,
        /// What it did.
        trouble: Trouble,
    },
    /// Judge by the log's own tree whether two notes under its signature are of two histories, keep them as evidence if they
    /// are, and say what came of it: [`Event::Judged`].
    Judge {
        /// The place of the witness that shows it.
        place: usize,
        /// The note that the witness holds.
        held: String,
        /// A note of this log, of the same size or larger.
        ours: String,
    },
    /// Stop for good: somebody else signs with this log's key.
    Stop(String),
}

/// How publication is doing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Status {
    /// The size of the newest signed head, published or not.
    pub pending: TreeSize,
    /// How many witnesses have cosigned it.
    pub cosigned: usize,
    /// How many more must, at least, before it may be published.
    pub missing: usize,
    /// Whether it has waited too long for the quorum, and nothing was published since.
    pub late: bool,
    /// Evidence files in the log's directory.
    pub evidence_files: usize,
    /// The witnesses in the order of the policy, whether they are asked or dial in.
    pub witnesses: Vec<WitnessStatus>,
}

/// How a witness is doing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WitnessStatus {
    /// What the policy calls it.
    pub name: String,
    /// The size that it is known to hold.
    pub held: TreeSize,
    /// Answers of whatever kind, and cosignatures that it handed in.
    pub answers: u64,
    /// Cosignatures of it that were verified and taken.
    pub cosignatures: u64,
    /// Whether it is not asked again for the newest head.
    pub skipped: bool,
    /// What it did that was of no use, by [`Trouble::kind`].
    pub troubles: BTreeMap<&'static str, u64>,
    /// The last of them, if nothing good came after it.
    pub trouble: Option<Trouble>,
}

struct Pending {
    gathering: Gathering,
    /// Those that cosigned since the last [`Event::Refresh`]; all that did before the first.
    fresh: WitnessSet,
    /// Those that are not asked again for this head.
    skipped: WitnessSet,
    /// Whether the note is published as it is.
    shown: bool,
}

struct Peer {
    /// Whether it is asked; else it dials in.
    dialled: bool,
    answers: u64,
    cosignatures: u64,
    /// The size to prove from: what it said last, if that can be.
    held: TreeSize,
    asked: Option<TreeHead>,
    /// It has been asked again from the size that it named.
    corrected: bool,
    resting: bool,
    failures: u32,
    troubles: BTreeMap<&'static str, u64>,
    trouble: Option<Trouble>,
    /// The last conflict that it claimed.
    claim: Option<Claim>,
    /// What it holds was found to be of another history, for certain.
    elsewhere: bool,
}

/// The state of all witnesses.
pub struct Witnesses {
    policy: Arc<Policy>,
    peers: BTreeMap<usize, Peer>,
    /// In ascending order; the published one is the first of them while it is there.
    pending: VecDeque<Pending>,
    published: Option<TreeHead>,
    now: UnixMillis,
    effects: Vec<Effect>,
}

impl Witnesses {
    /// A machine that has published `already`. `peers` are those that are asked, by their places in the policy, and the
    /// sizes that they hold as far as is known.
    pub fn new(
        policy: Policy,
        already: Option<TreeHead>,
        peers: impl IntoIterator<Item = (usize, TreeSize)>,
    ) -> Witnesses {
        let peer = |dialled, held| Peer {
            dialled,
            answers: 0,
            cosignatures: 0,
            held,
            asked: None,
            corrected: false,
            resting: false,
            failures: 0,
            troubles: BTreeMap::new(),
            trouble: None,
            claim: None,
            elsewhere: false,
        };
        let known = policy.witnesses().len();
        let asked = peers.into_iter().filter(|(place, _)| *place < known);
        let mut peers: BTreeMap<_, _> =
            (0..known).map(|place| (place, peer(false, TreeSize::ZERO))).collect();
        peers.extend(asked.map(|(place, held)| (place, peer(true, held))));
        let (policy, pending, now) = (Arc::new(policy), VecDeque::new(), UnixMillis::default());
        Witnesses { peers, policy, pending, published: already, now, effects: Vec::new() }
    }

    /// Tells it the time of what comes next. Before it was told any, every cosignature is from the future.
    pub fn at(&mut self, now: UnixMillis) -> &mut Witnesses {
        self.now = now;
        self
    }

    /// Takes one event, and says what is to be done, in this order.
    pub fn step(&mut self, event: Event) -> Vec<Effect> {
        match event {
            Event::Signed(signed) => self.signed(signed),
            Event::Replied(place, reply) => self.replied(place, reply),
            Event::Rested(place) => {
                if let Some(peer) = self.peers.get_mut(&place) {
                    peer.resting = false;
                }
            }
            Event::Judged(place, judged) => self.judged(place, judged),
            Event::Refresh(published) => self.refresh(&published),
        }
        self.ask_whoever_is_free();
        std::mem::take(&mut self.effects)
    }

    /// Takes cosignatures that came without being asked for, over the pending or published head of this size. Says whether
    /// one of them was of use, or was there already.
    pub fn handed(&mut self, size: TreeSize, lines: &[SignatureLine]) -> (Vec<Effect>, Result<(), NotTaken>) {
        let mut taken = Err(NotTaken::NoSuchHead(size));
        if self.pending.iter().any(|pending| pending.gathering.head().size == size) {
            taken = Err(NotTaken::NotOfAWitness);
            for line in lines {
                let named = |witness: &epigraph_core::policy::Witness| witness.vkey.is_named_by(line);
                let Some(place) = self.policy.witnesses().iter().position(named) else { continue };
                taken = self.attach(place, size, line);
                if let Err(NotTaken::ClockAhead(seconds)) = taken {
                    self.tell(place, Trouble::ClockAhead(seconds));
                }
                if taken.is_err() {
                    break;
                }
            }
        }
        (std::mem::take(&mut self.effects), taken)
    }

    /// How they are doing. The machine knows nothing of files and of what is late.
    pub fn status(&self) -> Status {
        let newest = self.pending.back();
        let skipped = newest.map_or(WitnessSet::EMPTY, |newest| newest.skipped);
        let cosigned = newest.map_or(WitnessSet::EMPTY, |newest| newest.gathering.cosigned());
        let status = |(place, peer): (&usize, &Peer)| WitnessStatus {
            name: self.name(*place),
            held: peer.held,
            answers: peer.answers,
            cosignatures: peer.cosignatures,
            skipped: skipped.contains(*place),
            troubles: peer.troubles.clone(),
            trouble: peer.trouble.clone(),
        };
        Status {
            pending: newest
                .map(|newest| newest.gathering.head().size)
                .or(self.published.map(|head| head.size))
                .unwrap_or_default(),
            cosigned: cosigned.len(),
            missing: newest.map_or(0, |_| self.policy.fewest_missing(cosigned)),
            late: false,
            evidence_files: 0,
            witnesses: self.peers.iter().map(status).collect(),
        }
    }

    /// The sizes that those who are asked hold, as far as is known, by their keys.
    pub fn sizes(&self) -> Sizes {
        let asked = self.peers.iter().filter(|(_, peer)| peer.dialled);
        let size = |(place, peer): (&usize, &Peer)| {
            Some((name_of(&self.policy.witnesses().get(*place)?.vkey), peer.held))
        };
        asked.filter_map(size).collect()
    }

    /// Whose cosignatures the newest signed head lacks, and why, as far as is known.
    pub fn lacking(&self) -> String {
        let why = |place: usize| match self.peers.get(&place).and_then(|peer| peer.trouble.as_ref()) {
            Some(trouble) => format!("{} ({trouble})", self.name(place)),
            None => self.name(place),
        };
        self.lacks().map(why).collect::<Vec<_>>().join(", ")
    }

    /// The same by names alone.
    pub fn missing(&self) -> String {
        self.lacks().map(|place| self.name(place)).collect::<Vec<_>>().join(", ")
    }

    fn lacks(&self) -> impl Iterator<Item = usize> {
        let cosigned = self.pending.back().map_or(WitnessSet::EMPTY, |newest| newest.gathering.cosigned());
        (0..self.policy.witnesses().len()).filter(move |place| !cosigned.contains(*place))
    }

    fn name(&self, place: usize) -> String {
        self.policy.witnesses().get(place).map(|witness| witness.name.clone()).unwrap_or_default()
    }

    fn signed(&mut self, signed: LogSigned) {
        let size = signed.head().size;
        if self.pending.back().is_some_and(|newest| newest.gathering.head().size >= size) {
            return;
        }
        if self.pending.len() == MAX_PENDING_HEADS {
            self.pending.pop_front();
        }
        match Gathering::new(signed, Arc::clone(&self.policy)) {
            Ok(gathering) => self.pending.push_back(Pending {
                gathering,
                fresh: WitnessSet::EMPTY,
                skipped: WitnessSet::EMPTY,
                shown: false,
            }),
            Err(error) => return self.effects.push(Effect::Stop(error.to_string())),
        }
        self.publish_if_enough(size);
    }

    /// Everybody is asked once more for the published head: a repeat gets the same text signed at a later time. What is under it
    /// stays there until something newer takes its place.
    fn refresh(&mut self, published: &Verified<Checkpoint>) {
        if self.published != Some(published.head()) {
            return;
        }
        match self.pending.back_mut() {
            Some(newest) if newest.gathering.head() == published.head() => {
                newest.fresh = WitnessSet::EMPTY;
                newest.skipped = WitnessSet::EMPTY;
            }
            Some(_) => {}
            // Published before the start.
            None => {
                let Ok(gathering) = Gathering::of_published(published, Arc::clone(&self.policy)) else {
                    return;
                };
                let (fresh, skipped) = (WitnessSet::EMPTY, WitnessSet::EMPTY);
                self.pending.push_back(Pending { gathering, fresh, skipped, shown: true });
            }
        }
    }

    fn ask_whoever_is_free(&mut self) {
        let Some(newest) = self.pending.back() else { return };
        let head = newest.gathering.head();
        let done = newest.fresh.union(newest.skipped);
        for (place, peer) in &mut self.peers {
            if !peer.dialled || peer.asked.is_some() || peer.resting || done.contains(*place) {
                continue;
            }
            peer.asked = Some(head);
            peer.corrected = false;
            let (old, note) = (peer.held.min(head.size), newest.gathering.signed().note().to_owned());
            self.effects.push(Effect::Ask { place: *place, old, head, note });
        }
    }

    fn replied(&mut self, place: usize, reply: Reply) {
        let Some(peer) = self.peers.get_mut(&place) else { return };
        // An answer that nobody asked for is none.
        let Some(head) = peer.asked.take() else { return };
        peer.answers += u64::from(!matches!(reply, Reply::Unavailable(_)));
        match reply {
            Reply::Cosigned(lines) => self.cosigned(place, head, &lines),
            Reply::Stale { held, note } => self.stale(place, head, held, note),
            Reply::Conflict { held } => self.claimed(place, head, &held, Otherwise::FalseConflict),
            Reply::BadProof { why, held } => match held {
                Some(held) => self.claimed(place, head, &held, Otherwise::Refused(why)),
                None => self.fail(place, Trouble::Refused(why)),
            },
            Reply::Refused(why) => self.fail(place, Trouble::Refused(why)),
            Reply::Unavailable(why) => self.fail(place, Trouble::Unavailable(why)),
        }
    }

    fn cosigned(&mut self, place: usize, head: TreeHead, lines: &[SignatureLine]) {
        let own = self.policy.witnesses().get(place).map(|witness| &witness.vkey);
        let line = lines.iter().find(|line| own.is_some_and(|own| own.is_named_by(line)));
        let Some(line) = line else {
            let why = "it has no signature of this witness".to_owned();
            return self.fail(place, Trouble::BadSignature(why));
        };
        if !self.pending.iter().any(|pending| pending.gathering.head() == head) {
            // Something larger was published in the meantime. Unverified, and used for nothing but the next question.
            return self.fine(place, head.size);
        }
        match self.attach(place, head.size, line) {
            Ok(()) => self.fine(place, head.size),
            Err(NotTaken::ClockAhead(seconds)) => self.fail(place, Trouble::ClockAhead(seconds)),
            Err(error) => self.fail(place, Trouble::BadSignature(error.to_string())),
        }
    }

    /// Verifies the one new signature, and no other.
    fn attach(&mut self, place: usize, size: TreeSize, line: &SignatureLine) -> Result<(), NotTaken> {
        let pending = self.pending.iter_mut().find(|pending| pending.gathering.head().size == size);
        let Some(pending) = pending else { return Ok(()) };
        let ahead = claimed_time(line).map_or(u64::MAX, |at| at.seconds().saturating_sub(self.now.0 / 1_000));
        let mut with_it = pending.gathering.clone();
        if with_it.add(place, line)? {
            if ahead > MAX_AHEAD_SECONDS {
                return Err(NotTaken::ClockAhead(ahead));
            }
            (pending.gathering, pending.shown) = (with_it, false);
        } else if pending.fresh.contains(place) {
            return Ok(());
        }
        // One that repeats itself, because its clock stands still, is not asked again before the next time.
        pending.fresh = pending.fresh.union([place].into_iter().collect());
        if let Some(peer) = self.peers.get_mut(&place) {
            peer.cosignatures += 1;
            if !peer.dialled {
                peer.answers += 1;
                peer.trouble = None;
                peer.held = peer.held.max(size);
            }
        }
        self.publish_if_enough(size);
        Ok(())
    }

    fn publish_if_enough(&mut self, size: TreeSize) {
        let is_meant = |pending: &Pending| pending.gathering.head().size == size;
        let Some(at) = self.pending.iter().position(is_meant) else { return };
        let is_newest = at + 1 == self.pending.len();
        let Some(pending) = self.pending.get_mut(at) else { return };
        let head = pending.gathering.head();
        // Never back: a head that reaches the quorum after a larger one is of no use.
        let behind = self.published.is_some_and(|published| head.size < published.size);
        // One more line under what is published is not worth a write while a larger head is on its way, which holds it up.
        let superseded = self.published == Some(head) && !is_newest;
        if behind || superseded || pending.shown || !self.policy.is_met_by(pending.fresh) {
            return;
        }
        let Some(checkpoint) = pending.gathering.checkpoint() else { return };
        pending.shown = true;
        self.effects.push(Effect::Publish(checkpoint));
        self.published = Some(head);
        self.pending.drain(..at);
    }

    fn stale(&mut self, place: usize, head: TreeHead, held: TreeHead, note: Option<Vec<u8>>) {
        let shown = note.and_then(|note| self.open(&note).ok()).filter(|shown| shown.head() == held);
        if let Some(shown) = &shown {
            if self.is_signed_elsewhere(shown) {
                return self.stop(place, shown);
            }
            if held.size == head.size && held.root != head.root {
                let held = shown.note().as_bytes().to_vec();
                return self.claimed(place, head, &held, Otherwise::FalseConflict);
            }
        }
        // A size that is ours to prove from is tried once, whoever claims it; a larger one is believed only under the
        // log's own signature, and moves nothing but this witness's next question.
        let corrected = self.peers.get(&place).is_some_and(|peer| peer.corrected);
        if held.size > head.size && shown.is_some() {
            self.skip(place, head);
            self.fine(place, held.size);
        } else if held.size > head.size || corrected {
            self.fail(place, Trouble::BadSize(held.size));
        } else if let Some(peer) = self.peers.get_mut(&place) {
            peer.held = held.size;
            peer.corrected = true;
            peer.asked = Some(head);
            let pending = self.pending.iter().find(|pending| pending.gathering.head() == head);
            match pending.map(|pending| pending.gathering.signed().note().to_owned()) {
                Some(note) => self.effects.push(Effect::Ask { place, old: held.size, head, note }),
                // It is no longer asked for; the newest head is next.
                None => peer.asked = None,
            }
        }
    }

    fn fine(&mut self, place: usize, held: TreeSize) {
        if let Some(peer) = self.peers.get_mut(&place) {
            peer.held = held;
            peer.elsewhere = false;
            peer.failures = 0;
            peer.trouble = None;
        }
    }

    fn fail(&mut self, place: usize, trouble: Trouble) {
        if let Some(peer) = self.peers.get_mut(&place) {
            peer.failures = peer.failures.saturating_add(1);
            peer.resting = true;
            self.effects.push(Effect::Rest { place, failures: peer.failures });
        }
        self.tell(place, trouble);
    }

    fn tell(&mut self, place: usize, trouble: Trouble) {
        if let Some(peer) = self.peers.get_mut(&place) {
            *peer.troubles.entry(trouble.kind()).or_default() += 1;
            peer.trouble = Some(trouble.clone());
        }
        self.effects.push(Effect::Tell { place, trouble });
    }
}

/// Under which hash a witness's size is kept: keys stay where places in a policy change.
pub fn name_of(witness: &VKey) -> Hash {
    leaf_hash(witness.to_string().as_bytes())
}

/// Why a cosignature that was handed in was not taken.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum NotTaken {
    /// No such head.
    #[error("no head of size {0} is pending or just published: cosign the newest pending head")]
    NoSuchHead(TreeSize),
    /// No line is of a witness of the policy.
    #[error("no signature is of a witness that this log's policy names")]
    NotOfAWitness,
    /// The signature.
    #[error(transparent)]
    Signature(#[from] CosignatureError),
    /// Its time.
    #[error(
        "the cosignature says that it was made {0} s after the time of this log: set the witness's clock, or the log's"
    )]
    ClockAhead(u64),
    /// A conflict that is none.
    #[error("the note that is held shows no other history: {0}")]
    NoConflict(String),
}
