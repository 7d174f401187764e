//! Questions: which two heads are compared next, who is asked for the proof, and what an answer shows.
//!
//! A waiting head is compared with its neighbour in the branch of whoever showed it. The log is asked under one vantage point
//! after the other, the one that showed the newer head first. If it answers no, or with a proof that shows nothing, its
//! entries are read instead: under the vantage point that shows the newer head they hash to its root, and then they also tell
//! what root the older tree has there. An answer that does not come is asked for again later and shows nothing.

use std::collections::btree_map::Entry;

use bytes::Bytes;
use epigraph_core::evidence::NoEvidence;
use epigraph_core::key::KeyType;
use epigraph_core::proof::ConsistencyProof;
use epigraph_core::{Evidence, Hash, TreeHead, TreeSize};

use super::time::Elapsed;
use super::{Key, Machine, key};
use crate::event::{Effect, Vantage, VantageKind, Why};
use crate::finding::Code;
use crate::heads::MAX_BRANCHES;

/// The most questions at a time: enough that one slow answer holds up no other head, few enough for one connection.
const MAX_QUESTIONS: usize = 8;

/// The most of them for which entries are read from the first one on. They last, and do not count as questions.
const MAX_REHASHES: usize = 2;

/// After this long a proof that was asked for does not come: several times the deadline of a call.
const ANSWER_MS: u64 = 60_000;

/// The same for entries that are read from the first one on: 10 million of them at a slow reader's pace.
const REHASH_MS: u64 = 6 * 60 * 60 * 1000;

/// How long a head waits after nobody could be reached.
const AGAIN_MS: u64 = 10_000;

/// How long a head waits after the log could not connect it, and not everybody could be reached.
const LATER_MS: u64 = 60_000;

/// How long a head waits after the log could not connect it.
const MUCH_LATER_MS: u64 = 10 * 60 * 1000;

/// How long the log may refuse a proof until that is told, while its entries are still being read for a better one.
const REFUSED_MS: u64 = 60_000;

/// How long a head that is published may wait for a proof, with the log answering other things, until that is told. Witnesses
/// show heads that are not published yet, which may last as long as the quorum is lost.
const UNPROVEN_MS: u64 = 15 * 60 * 1000;

/// Two heads, and how far the search for their proof has come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Question {
    old: TreeHead,
    new: TreeHead,
    /// Their notes: a head may be thinned out before the answer comes.
    notes: [Bytes; 2],
    purpose: Purpose,
    /// Who is being asked.
    asked: Vantage,
    at: Elapsed,
    /// Who can still be asked in this way.
    left: Vec<Vantage>,
    /// Whether entries are read, instead of asking for a proof.
    rehashes: bool,
    /// Whether the log had an answer and it was none.
    refused: Option<String>,
    /// Whether somebody did not answer.
    silent: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Purpose {
    /// Whether the waiting head is of the branch.
    Place(TreeHead, usize),
    /// Whether a witness cosigned two histories.
    Accuse,
}

/// What is not settled about a waiting head.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Doubt {
    /// Since when the log shows its readers this head or a larger one, so that they can ask for its proof.
    provable: Option<Elapsed>,
    rests_until: Elapsed,
    /// Whether it was compared with a head that is no smaller.
    overtaken: bool,
    refused: Option<(Elapsed, String)>,
    /// The subject under which it was told of.
    told: Option<String>,
}

/// What an answer shows.
enum Shown {
    Consistent,
    /// The hashes that convict, the old root first.
    Contradiction(Vec<Hash>),
    Nothing(String),
}

impl Doubt {
    pub(super) fn new() -> Doubt {
        Doubt { provable: None, rests_until: 0, overtaken: false, refused: None, told: None }
    }
}

impl Machine {
    /// Asks all that can be asked now.
    pub(super) fn advance(&mut self) {
        let waiting: Vec<TreeHead> = self.heads.waiting().iter().map(|waiting| waiting.seen.head()).collect();
        for head in waiting {
            // It has just come, or waits since before a restart.
            if let Entry::Vacant(fresh) = self.doubts.entry(key(&head)) {
                fresh.insert(Doubt::new());
                let note = self.note_of(&head).unwrap_or_default();
                self.same_size(&head, &note);
            }
            while self.place(&head) {}
        }
    }

    /// The log shows a head that somebody else had shown before: it can prove now what it could not when it was asked, since it
    /// proves nothing to readers that is not published.
    pub(super) fn published_now(&mut self, head: &TreeHead) {
        if let Some(doubt) = self.doubts.get_mut(&key(head)).filter(|doubt| doubt.refused.is_none()) {
            doubt.rests_until = 0;
        }
    }

    /// Takes one step towards placing a waiting head. Whether there may be another.
    fn place(&mut self, head: &TreeHead) -> bool {
        if self.questions.iter().any(|question| question.places(head)) {
            return false;
        }
        let Some(waiting) = self.heads.waiting().iter().find(|waiting| waiting.seen.head() == *head) else {
            return false;
        };
        let branches = self.heads.branches().len();
        let possible = |branch: &usize| *branch < branches && !waiting.not_in.contains(branch);
        let of_shower = waiting
            .seen
            .sightings()
            .iter()
            .filter_map(|sighting| self.points.get(&sighting.vantage)?.branch)
            .find(|branch| possible(branch));
        let Some(branch) = of_shower.or_else(|| (0..branches).find(|branch| possible(branch))) else {
            // It contradicts all that is known: another history.
            self.heads.join(head, branches.min(MAX_BRANCHES));
            self.joined(head, branches.min(MAX_BRANCHES - 1));
            return false;
        };
        let neighbour = self.heads.branches().get(branch).and_then(|branch| branch.neighbour(head.size));
        let Some(neighbour) = neighbour.map(|seen| seen.head()) else { return false };
        let Some(doubt) = self.doubts.get_mut(&key(head)) else { return false };
        // A history that has grown past the head has its own proof about it, whoever refuses others.
        let overtaken = neighbour.size >= head.size;
        if doubt.rests_until > self.time.elapsed && overtaken == doubt.overtaken {
            return false;
        }
        doubt.overtaken = overtaken;
        if neighbour.size == head.size {
            self.two_roots(&neighbour, head);
            self.heads.exclude(head, branch);
            return true;
        }
        let (old, new) = if neighbour.size < head.size { (neighbour, *head) } else { (*head, neighbour) };
        self.ask(old, new, Purpose::Place(*head, branch));
        false
    }

    /// Asks whether a witness's two heads contradict each other. Whether there was room to ask.
    pub(super) fn ask_to_accuse(&mut self, old: TreeHead, new: TreeHead) -> bool {
        self.ask(old, new, Purpose::Accuse)
    }

    fn ask(&mut self, old: TreeHead, new: TreeHead, purpose: Purpose) -> bool {
        let mut left = self.sources(&new);
        if self.questions.len() - self.rehashes() >= MAX_QUESTIONS || left.is_empty() {
            return false;
        }
        let asked = left.remove(0);
        let notes = [old, new].map(|head| self.note_of(&head).unwrap_or_default());
        let at = self.time.elapsed;
        let question = Question {
            old,
            new,
            notes,
            purpose,
            asked,
            at,
            left,
            rehashes: false,
            refused: None,
            silent: false,
        };
        self.out.push(question.effect());
        self.questions.push(question);
        true
    }

    pub(super) fn proof(
        &mut self,
        (old, new): (TreeSize, TreeSize),
        hashes: &[Hash],
        candidates: &[Hash],
        vantage: &Vantage,
    ) {
        // An answer may serve several questions, of heads with the same sizes and other roots.
        for question in self.take_questions(|question| question.sizes() == (old, new)) {
            match self.judge(&question, hashes, candidates) {
                Shown::Consistent => self.consistent(&question),
                Shown::Contradiction(carried) => {
                    self.contradict([question.old, question.new], question.notes, Some(carried));
                    if let Purpose::Place(head, branch) = question.purpose {
                        self.heads.exclude(&head, branch);
                        self.changed = true;
                    }
                }
                // Anybody may volunteer a proof; that it fails counts only if this one was asked.
                Shown::Nothing(_) if question.asked != *vantage => self.questions.push(question),
                Shown::Nothing(why) => self.no_answer(question, Some(why)),
            }
        }
    }

    pub(super) fn no_proof(&mut self, sizes: (TreeSize, TreeSize), vantage: &Vantage, why: &Why) {
        let why = match why {
            Why::Refused(why) => Some(why.clone()),
            Why::Unreachable(_) => None,
        };
        for question in
            self.take_questions(|question| question.sizes() == sizes && question.asked == *vantage)
        {
            self.no_answer(question, why.clone());
        }
    }

    fn rehashes(&self) -> usize {
        self.questions.iter().filter(|question| question.rehashes).count()
    }

    fn take_questions(&mut self, wanted: impl Fn(&Question) -> bool) -> Vec<Question> {
        let (taken, left) = self.questions.drain(..).partition(wanted);
        self.questions = left;
        taken
    }

    fn judge(&self, question: &Question, hashes: &[Hash], candidates: &[Hash]) -> Shown {
        let (old, new) = (&question.old, &question.new);
        let proof =
            |hashes: &[Hash]| ConsistencyProof { old: old.size, new: new.size, hashes: hashes.to_vec() };
        if proof(hashes).verify(&old.root, &new.root).is_ok() {
            return Shown::Consistent;
        }
        let mut carried = Vec::new();
        if old.size.get().is_power_of_two() {
            let first =
                hashes.split_first().filter(|(first, rest)| proof(rest).verify(first, &new.root).is_ok());
            match first {
                Some((first, _)) if *first == old.root => return Shown::Consistent,
                Some(_) => carried.push(hashes.to_vec()),
                None => {}
            }
            let as_newer_has_it =
                candidates.iter().find(|root| proof(hashes).verify(root, &new.root).is_ok());
            carried.extend(as_newer_has_it.map(|root| proof(hashes).carrying(root)));
        } else {
            carried.push(hashes.to_vec());
        }
        let mut why = "the proof does not lead to the newer head".to_owned();
        let [older, newer] = &question.notes;
        let logs =
            self.policy.logs().iter().filter(|log| {
                log.key_type() == KeyType::Ed25519 && log.name().as_str() == self.origin.as_str()
            });
        for log in logs {
            for carried in &carried {
                match Evidence::old_root(log, older, newer, carried.clone()) {
                    Ok(_) => return Shown::Contradiction(carried.clone()),
                    Err(NoEvidence::Consistent) => return Shown::Consistent,
                    Err(error) => why = error.to_string(),
                }
            }
        }
        Shown::Nothing(why)
    }

    fn consistent(&mut self, question: &Question) {
        let Purpose::Place(head, branch) = &question.purpose else { return };
        let other = if *head == question.old { question.new } else { question.old };
        let tip =
            self.heads.branches().get(*branch).and_then(|branch| branch.tip()).map(|tip| tip.head().size);
        // Before a head of the branch, or behind its newest: nothing of it is left to compare with. Else the branch has grown
        // meanwhile, and the next question is about its new neighbour.
        if head.size < other.size || tip.is_some_and(|tip| tip <= other.size) {
            self.heads.join(head, *branch);
            self.joined(head, *branch);
        }
    }

    /// Goes on to the next source, or the next way of asking, or leaves it for a while. `refused` says what was wrong with the
    /// answer; `None` that there was none.
    fn no_answer(&mut self, mut question: Question, refused: Option<String>) {
        question.silent |= refused.is_none();
        question.refused = refused.or(question.refused);
        let now = self.time.elapsed;
        if let (Some(why), Purpose::Place(head, _)) = (&question.refused, &question.purpose)
            && let Some(doubt) = self.doubts.get_mut(&key(head))
        {
            doubt.refused.get_or_insert_with(|| (now, why.clone()));
        }
        let may_rehash = !question.rehashes && self.rehashes() < MAX_REHASHES;
        if question.left.is_empty() && question.refused.is_some() && may_rehash {
            question.rehashes = true;
            question.left = self.sources(&question.new);
        }
        if !question.left.is_empty() {
            question.asked = question.left.remove(0);
            question.at = now;
            self.out.push(question.effect());
            self.questions.push(question);
            return;
        }
        let Purpose::Place(head, _) = question.purpose else {
            // What the log refused once it will refuse again.
            if question.silent || question.refused.is_none() {
                self.confront_later(&question.old, &question.new);
            }
            return;
        };
        if question.refused.is_some() && !question.rehashes {
            // Its turn comes when the others are done.
            if let Some(doubt) = self.doubts.get_mut(&key(&head)) {
                doubt.rests_until = now.saturating_add(AGAIN_MS);
            }
            return;
        }
        let wait = match (&question.refused, question.silent) {
            (None, _) => AGAIN_MS,
            (Some(_), true) => LATER_MS,
            (Some(_), false) => MUCH_LATER_MS,
        };
        if let Some(doubt) = self.doubts.get_mut(&key(&head)) {
            doubt.rests_until = now.saturating_add(wait);
        }
        if question.refused.is_some() {
            self.tell_doubt(&head);
        }
    }

    pub(super) fn tick_questions(&mut self) {
        let now = self.time.elapsed;
        let late = |question: &Question| {
            now.saturating_sub(question.at) >= if question.rehashes { REHASH_MS } else { ANSWER_MS }
        };
        for question in self.take_questions(late) {
            self.no_answer(question, None);
        }
        let log_answers = self.log_answers();
        let of_log = self.points.values().filter(|point| point.kind == VantageKind::Log);
        let shown = of_log.filter_map(|point| point.largest).map(|head| head.size).max().unwrap_or_default();
        for ((size, _), doubt) in &mut self.doubts {
            doubt.provable = if *size <= shown { doubt.provable.or(Some(now)) } else { None };
        }
        let due = |doubt: &Doubt| {
            let refused = doubt.refused.as_ref().is_some_and(|(at, _)| now.saturating_sub(*at) >= REFUSED_MS);
            let unproven = doubt.provable.is_some_and(|since| now.saturating_sub(since) >= UNPROVEN_MS);
            doubt.told.is_none() && (refused || log_answers && unproven)
        };
        let due: Vec<Key> = self.doubts.iter().filter(|(_, doubt)| due(doubt)).map(|(key, _)| *key).collect();
        for (size, root) in due {
            self.tell_doubt(&TreeHead { size, root });
        }
    }

    /// Tells that nobody connects this head to the others.
    fn tell_doubt(&mut self, head: &TreeHead) {
        let subject = self
            .heads
            .get(head)
            .and_then(|seen| seen.sightings().first())
            .map_or_else(|| super::THE_LOG.to_owned(), |sighting| sighting.vantage.clone());
        let Some(doubt) = self.doubts.get_mut(&key(head)) else { return };
        doubt.told = Some(subject.clone());
        let why = doubt.refused.as_ref().map_or("no proof came", |(_, why)| why.as_str()).to_owned();
        let neighbour = self.heads.branches().first().and_then(|branch| branch.neighbour(head.size));
        let neighbour = neighbour.map(|seen| seen.head());
        let other = neighbour.map_or_else(String::new, |other| self.describe(&other));
        let detail = format!("{} is not connected to {other}: {why}", self.describe(head));
        let notes = [Some(*head), neighbour].into_iter().flatten().filter_map(|head| self.note_of(&head));
        let notes = notes.collect();
        self.trigger(Code::InconsistentHead, &subject, &detail, notes);
    }

    /// A head no longer waits.
    pub(super) fn no_doubt(&mut self, head: &TreeHead) {
        let Some(Doubt { told: Some(subject), .. }) = self.doubts.remove(&key(head)) else { return };
        if !self.doubts.values().any(|doubt| doubt.told.as_ref() == Some(&subject)) {
            self.clear(Code::InconsistentHead, &subject);
        }
    }
}

impl Question {
    fn sizes(&self) -> (TreeSize, TreeSize) {
        (self.old.size, self.new.size)
    }

    fn places(&self, head: &TreeHead) -> bool {
        matches!(&self.purpose, Purpose::Place(placed, _) if placed == head)
    }

    fn effect(&self) -> Effect {
        let (old, new, vantage) = (self.old, self.new, self.asked.clone());
        debug_assert_eq!(vantage.kind, VantageKind::Log);
        if self.rehashes {
            Effect::Rehash { old, new, vantage }
        } else {
            Effect::AskProof { old, new, vantage }
        }
    }
}
