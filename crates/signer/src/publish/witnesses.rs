//! The witnesses as a pure machine: who is asked for which head next, which cosignatures count, and when a head is
//! published.
//!
//! A signed head is asked of all witnesses at once, each with the size that it holds, and at most one question is open
//! at each. Whatever a witness does costs only itself: the head is published when those that did cosign meet the policy,
//! and a cosignature that comes later is attached to what is published, unless a larger head is signed already. A head that reaches the quorum after a larger
//! one was signed is still published, unless a larger one was published before. The machine knows no clock: whoever
//! drives it says what time it is, and when a rest is over.

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
    /// The log's own signature stands under another history.
    #[error(
        "it holds a checkpoint of size {} with root {} under this log's own key, and says that size {} with root {} does \
         not extend it: somebody else may be signing with the log's key",
        held.size, held.root, proposed.size, proposed.root
    )]
    Conflict {
        /// What the witness holds.
        held: TreeHead,
        /// What it was asked to cosign.
        proposed: TreeHead,
    },
}

impl Trouble {
    /// Every [`Trouble::kind`].
    pub const KINDS: [&str; 7] =
        ["unavailable", "refused", "bad_signature", "clock_ahead", "bad_size", "false_conflict", "conflict"];

    /// Its kind, for counting: one word.
    pub fn kind(&self) -> &'static str {
        match self {
            Trouble::Unavailable(_) => "unavailable",
            Trouble::Refused(_) => "refused",
            Trouble::BadSignature(_) => "bad_signature",
            Trouble::ClockAhead(_) => "clock_ahead",
            Trouble::BadSize(_) => "bad_size",
            Trouble::FalseConflict(_) => "false_conflict",
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
    /// Keep two notes under the log's own signature that may show two histories.
    Keep {
        /// The place of the witness that shows it.
        place: usize,
        /// The note that a witness holds.
        held: String,
        /// The note that it was asked to cosign.
        proposed: String,
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
    /// Those that are not asked again for this head.
    skipped: WitnessSet,
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
    /// The head of the last conflict that was kept: it is kept once.
    kept: Option<TreeHead>,
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
            kept: None,
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

    /// Takes the note of a head that the witness at this place holds, and that the pending or published head of this size does
    /// not extend, as the witness says. It counts as if it had been asked.
    pub fn handed_conflict(
        &mut self,
        place: usize,
        size: TreeSize,
        held: &[u8],
    ) -> (Vec<Effect>, Result<(), NotTaken>) {
        let pending = self.pending.iter().find(|pending| pending.gathering.head().size == size);
        let Some(head) = pending.map(|pending| pending.gathering.head()) else {
            return (Vec::new(), Err(NotTaken::NoSuchHead(size)));
        };
        let taken = match self.open(held) {
            Ok(shown) if shown.head() == head => Err(NotTaken::NoConflict("it is the same head".into())),
            // A later head of this log: the witness was shown an older one after it.
            Ok(shown) if shown.head().size > size && !self.is_signed_elsewhere(&shown) => {
                return (Vec::new(), Ok(()));
            }
            Ok(_) => Ok(()),
            Err(why) => Err(NotTaken::NoConflict(why)),
        };
        if let Some(peer) = self.peers.get_mut(&place) {
            peer.answers += 1;
            self.conflict(place, head, held);
        }
        (std::mem::take(&mut self.effects), taken)
    }

    /// The two notes of [`Effect::Keep`] are of two histories, for certain. Says why to stop, if the witnesses that hold the other one
    /// are so many that this one can never be published: this log is the copy that came too late.
    pub fn elsewhere(&mut self, place: usize, [held, here]: [TreeHead; 2]) -> Option<String> {
        self.peers.get_mut(&place)?.elsewhere = true;
        let with_us =
            self.peers.iter().filter(|(_, peer)| !peer.elsewhere).map(|(place, _)| *place).collect();
        if self.policy.is_met_by(with_us) {
            return None;
        }
        Some(format!(
            "too many witnesses hold another history under this log's own key for this one to be published: {} holds size {} \
             (root {}), and this log has signed size {} (root {})",
            self.name(place),
            held.size,
            held.root,
            here.size,
            here.root
        ))
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
        let cosigned = self.pending.back().map_or(WitnessSet::EMPTY, |newest| newest.gathering.cosigned());
        let missing = (0..self.policy.witnesses().len()).filter(|place| !cosigned.contains(*place));
        let why = |place: usize| match self.peers.get(&place).and_then(|peer| peer.trouble.as_ref()) {
            Some(trouble) => format!("{} ({trouble})", self.name(place)),
            None => self.name(place),
        };
        missing.map(why).collect::<Vec<_>>().join(", ")
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
            Ok(gathering) => self.pending.push_back(Pending { gathering, skipped: WitnessSet::EMPTY }),
            Err(error) => return self.effects.push(Effect::Stop(error.to_string())),
        }
        self.publish_if_enough(size);
    }

    fn ask_whoever_is_free(&mut self) {
        let Some(newest) = self.pending.back() else { return };
        let head = newest.gathering.head();
        let done = newest.gathering.cosigned().union(newest.skipped);
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
            Reply::Conflict { held } => self.conflict(place, head, &held),
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
        let Some(Pending { gathering, .. }) = pending else { return Ok(()) };
        let ahead = claimed_time(line).map_or(u64::MAX, |at| at.seconds().saturating_sub(self.now.0 / 1_000));
        let mut with_it = gathering.clone();
        if !with_it.add(place, line)? {
            return Ok(());
        }
        if ahead > MAX_AHEAD_SECONDS {
            return Err(NotTaken::ClockAhead(ahead));
        }
        *gathering = with_it;
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
        let Some(Pending { gathering, .. }) = self.pending.get(at) else { return };
        let head = gathering.head();
        // Never back: a head that reaches the quorum after a larger one is of no use.
        let behind = self.published.is_some_and(|published| head.size < published.size);
        // One more line under what is published is not worth a write while a larger head is on its way, which holds it up.
        let superseded = self.published == Some(head) && at + 1 < self.pending.len();
        if behind || superseded {
            return;
        }
        let Some(checkpoint) = gathering.checkpoint() else { return };
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
                return self.conflict(place, head, &held);
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

    fn conflict(&mut self, place: usize, head: TreeHead, held: &[u8]) {
        self.skip(place, head);
        let shown = match self.open(held) {
            Ok(shown) if shown.head() != head => shown,
            Ok(_) => return self.tell(place, Trouble::FalseConflict("it is the same head".into())),
            Err(why) => return self.tell(place, Trouble::FalseConflict(why)),
        };
        let pending = self.pending.iter().find(|pending| pending.gathering.head() == head);
        let proposed = pending.map(|pending| pending.gathering.signed().note().to_owned());
        let peer = self.peers.get_mut(&place);
        // The same held note beside each new head would fill the disk and show nothing more.
        let first = peer.is_some_and(|peer| peer.kept.replace(shown.head()) != Some(shown.head()));
        if let (Some(proposed), true) = (proposed, first) {
            self.effects.push(Effect::Keep { place, held: shown.note().to_owned(), proposed });
        }
        if self.is_signed_elsewhere(&shown) {
            return self.stop(place, &shown);
        }
        self.tell(place, Trouble::Conflict { held: shown.head(), proposed: head });
    }

    fn open(&self, note: &[u8]) -> Result<LogSigned, String> {
        Checkpoint::open_log_signed(note, &self.policy).map_err(|error| error.to_string())
    }

    /// The log's own signature under a head that is larger than any it was asked for here.
    fn is_signed_elsewhere(&self, shown: &LogSigned) -> bool {
        let newest = self.pending.back().map(|newest| newest.gathering.head().size);
        newest.is_some_and(|newest| shown.head().size > newest)
    }

    fn stop(&mut self, place: usize, shown: &LogSigned) {
        let TreeHead { size, root } = shown.head();
        let newest = self.pending.back().map_or(TreeHead::EMPTY, |newest| newest.gathering.head());
        self.effects.push(Effect::Stop(format!(
            "the witness {} holds size {size} (root {root}) under this log's own key, and the newest head that was signed \
             here has size {} (root {})",
            self.name(place),
            newest.size,
            newest.root
        )));
    }

    fn skip(&mut self, place: usize, head: TreeHead) {
        if let Some(pending) = self.pending.iter_mut().find(|pending| pending.gathering.head() == head) {
            pending.skipped = pending.skipped.union([place].into_iter().collect());
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
