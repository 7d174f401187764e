//! The full audit of one log as one vantage point shows it: every entry hashed, every signed root reached again.
//!
//! It owns the tree that is made of what was served, and decides what is to be asked next: entries, the proof that what was
//! hashed is a beginning of the signed tree, or the leaf hash that the signed tree has at an index. It knows no network, no
//! disk and no clock; whoever drives it fetches what a [`Step`] names and says what came.
//!
//! Consistency proofs alone miss a log that changes an entry and keeps its tree: the proofs are of the tree, and nobody looks
//! at the entry. So the entries lead here to the root, and where they lead elsewhere the log's own proofs tell at which index.
//!
//! What was hashed is *proven* when it was found to be a beginning of a signed tree. Only the leaf hashes behind it are kept, so
//! that memory does not grow with the log; and only it is worth storing.

mod judge;
mod milestone;
mod rule;

use epigraph_core::hash::leaf_hashes;
use epigraph_core::{Frontier, Hash, LeafIndex, TreeHead, TreeSize};
use thiserror::Error;

pub use judge::{Answer, judge};
use milestone::Milestones;
pub use milestone::{Beginning, MAX_MILESTONES};
pub use rule::{Broken, EntryRule, Sequence, SequenceRule, WellFormed};

/// Leaf hashes that are kept behind the proven tree: 2 MiB. One proof is asked for each so many entries, which costs nothing
/// beside reading them; and as many are lost when the process is killed.
pub const CHUNK: u64 = 65_536;

/// Changed entries that are named one by one in one audit. Each costs the log some twenty answers; a log that changed more is
/// not one whose every change needs a name.
pub const MAX_REWRITTEN: usize = 16;

/// Entries that break a rule and are named in one audit; the others are counted.
pub const MAX_MALFORMED: usize = 64;

/// An audit on its way to a signed head.
#[derive(Clone, Debug)]
pub struct Audit {
    target: TreeHead,
    /// A beginning of the tree of a head that the log signed.
    proven: Frontier,
    /// Of everything that was served, with changed entries put right.
    tree: Frontier,
    /// The leaf hashes of `tree` behind `proven`, unless they were too many.
    leaves: Vec<Hash>,
    /// Whether `leaves` is all of them.
    traceable: bool,
    state: State,
    milestones: Milestones,
    rewritten: Vec<Rewritten>,
    /// Changed entries that were named so far.
    located: usize,
    malformed: Malformed,
}

/// What is to be done next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Read on and [`Audit::take`] the entries from here on, at most so many.
    Read {
        /// The first of them.
        first: LeafIndex,
        /// How many.
        count: u64,
    },
    /// Ask for the consistency proof from `ours` to `target`, let [`judge`] look at it, and give its answer to
    /// [`Audit::answer`].
    Prove {
        /// What was served up to this size, with the root that it leads to.
        ours: TreeHead,
        /// The signed head.
        target: TreeHead,
    },
    /// Ask for the leaf hash at this index, proven in the target's tree, and give it to [`Audit::leaf`].
    Leaf {
        /// Which.
        index: LeafIndex,
        /// The signed head.
        target: TreeHead,
    },
    /// The entries lead to the target's root. [`Audit::aim`] higher.
    Reached,
    /// It cannot go on from here: see [`Audit::stuck`].
    Stuck,
}

/// An entry that is not the one of the signed tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rewritten {
    /// Where.
    pub index: LeafIndex,
    /// The leaf hash of what was served.
    pub served: Hash,
    /// The leaf hash that the log proves to be there.
    pub proven: Hash,
    /// The head under which it does.
    pub under: TreeHead,
}

/// Why an audit did not reach its head.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Stuck {
    /// The log proves that its tree begins otherwise than the one that was proven before.
    #[error(
        "the signed head of size {} does not extend the {} entries which were proven before: its tree begins with the root \
         {}, theirs is {}", under.size, ours.size, other.root, ours.root
    )]
    Forked {
        /// What was proven before.
        ours: TreeHead,
        /// The head of the log that does not extend it.
        under: TreeHead,
        /// The root that it has in its place, and the proof.
        other: Beginning,
    },
    /// The entries do not lead to the signed root, and the log does not prove which of them are others.
    #[error(
        "entries {} to {} as they were served do not lead to the root of the signed head of size {}, and the log does not \
         prove which of them differ ({why})", first, under.size.get().saturating_sub(1), under.size
    )]
    Unlocated {
        /// The first that may differ.
        first: LeafIndex,
        /// The head that is not reached.
        under: TreeHead,
        /// What came of the question.
        why: String,
    },
    /// So many entries are others that they are not named any more.
    #[error(
        "more than {MAX_REWRITTEN} entries are not those of the signed tree; those from {next} on were not looked at"
    )]
    TooMany {
        /// The first that was not looked at.
        next: LeafIndex,
    },
    /// A head below what was read already, or of the same size with another root.
    #[error(
        "the head of size {} with root {} was shown after {} entries with root {} were proven", shown.size, shown.root,
        read.size, read.root
    )]
    Backwards {
        /// What was shown.
        shown: TreeHead,
        /// What was read and proven before.
        read: TreeHead,
    },
}

/// Entries that break a rule: some by name, all by number.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Malformed {
    /// How many there are.
    pub count: u64,
    /// The first [`MAX_MALFORMED`] of them.
    pub named: Vec<(LeafIndex, Broken)>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum State {
    Reading,
    /// Enough was read to have it proven, though the target is still far.
    Checking,
    /// The tree is not the target's, and it is still open whether what was proven before is.
    Doubting,
    /// The trees agree as far as `same` and do not at `other`; `asked` is between them.
    Searching {
        same: Frontier,
        other: u64,
        asked: Frontier,
    },
    /// This entry differs.
    Found(LeafIndex),
    Reached,
    Stuck(Stuck),
}

impl Audit {
    /// Goes on from what is a beginning of a signed tree: a frontier that [`Audit::proven`] gave, or the empty one.
    pub fn from(proven: Frontier) -> Audit {
        let target = proven.head();
        Audit {
            target,
            tree: proven.clone(),
            proven,
            leaves: Vec::new(),
            traceable: true,
            state: State::Reached,
            milestones: Milestones::default(),
            rewritten: Vec::new(),
            located: 0,
            malformed: Malformed::default(),
        }
    }

    /// Signed heads that are to be passed through on the way. The entries may lead to the target and not through them: then they
    /// are of two histories, and [`Audit::beginnings`] proves it with no help from the log.
    pub fn pass_through(&mut self, heads: impl IntoIterator<Item = TreeHead>) {
        self.milestones = Milestones::new(heads, self.tree.size(), false);
    }

    /// Has the consistency proof from this head's size made from the entries, whatever root they have there.
    pub fn prove_from(&mut self, head: TreeHead) {
        self.milestones = Milestones::new([head], self.tree.size(), true);
    }

    /// Sets the signed head that is to be reached next. Only where the one before was reached.
    pub fn aim(&mut self, target: TreeHead) {
        let read = self.tree.head();
        self.state = match &self.state {
            State::Stuck(stuck) => State::Stuck(stuck.clone()),
            _ if target == read => State::Reached,
            _ if target.size <= read.size => State::Stuck(Stuck::Backwards { shown: target, read }),
            _ => State::Reading,
        };
        self.target = target;
    }

    /// What is to be done next.
    pub fn step(&self) -> Step {
        let (target, read) = (self.target, self.tree.size());
        match &self.state {
            State::Reading => match read.next_index() {
                Some(first) => Step::Read { first, count: self.check_at() - read.get() },
                None => Step::Reached,
            },
            State::Checking => Step::Prove { ours: self.tree.head(), target },
            State::Doubting => Step::Prove { ours: self.proven.head(), target },
            State::Searching { asked, .. } => Step::Prove { ours: asked.head(), target },
            State::Found(index) => Step::Leaf { index: *index, target },
            State::Reached => Step::Reached,
            State::Stuck(_) => Step::Stuck,
        }
    }

    /// Takes entries as they were served, up to where a proof is due; says how many it took. A broken rule is noted and stops
    /// nothing.
    pub fn take<'a>(
        &mut self,
        entries: impl Iterator<Item = &'a [u8]> + Clone,
        rules: &[&dyn EntryRule],
    ) -> usize {
        let Step::Read { first, count } = self.step() else { return 0 };
        let entries = entries.take(usize::try_from(count).unwrap_or(usize::MAX));
        for (offset, entry) in (0..).zip(entries.clone()).filter(|_| !rules.is_empty()) {
            if let Some(index) = first.checked_add(offset) {
                self.malformed.check(index, entry, rules);
            }
        }
        let mut count = 0;
        for leaf in leaf_hashes(entries) {
            count += 1;
            self.push(leaf);
            if self.traceable {
                self.leaves.push(leaf);
            }
        }
        if self.tree.size().get() == self.check_at() {
            self.state = self.at_check();
        }
        count
    }

    /// Takes what [`judge`] made of the proof that [`Step::Prove`] named.
    pub fn answer(&mut self, answer: Answer) {
        let read = self.tree.size().get();
        self.state = match (std::mem::replace(&mut self.state, State::Reading), answer) {
            (State::Checking, Answer::Same) => self.settle(State::Reading),
            // Not an alarm: where the entries lead to is still open, and the end of them decides.
            (State::Checking, Answer::Nothing(_)) => {
                self.forget_leaves();
                State::Reading
            }
            (State::Checking, Answer::Other(_)) => self.doubt(),
            (State::Doubting, Answer::Same) => self.search(self.proven.clone(), read),
            (State::Doubting, Answer::Other(other)) => {
                State::Stuck(Stuck::Forked { ours: self.proven.head(), under: self.target, other })
            }
            (State::Searching { other, asked, .. }, Answer::Same) => self.search(asked, other),
            (State::Searching { same, asked, .. }, Answer::Other(_)) => self.search(same, asked.size().get()),
            (State::Doubting | State::Searching { .. }, Answer::Nothing(why)) => self.unlocated(why),
            (state, _) => state,
        };
    }

    /// Takes the leaf hash that [`Step::Leaf`] asked for, proven by the caller; or why there is none.
    pub fn leaf(&mut self, proven: Result<Hash, String>) {
        let State::Found(index) = self.state else { return };
        let place = usize::try_from(index.get() - self.proven.size().get()).ok();
        let served = place.and_then(|place| self.leaves.get_mut(place));
        self.state = match (proven, served) {
            (Ok(proven), Some(leaf)) if proven != *leaf => {
                let served = std::mem::replace(leaf, proven);
                if self.located == MAX_REWRITTEN {
                    State::Stuck(Stuck::TooMany { next: index })
                } else {
                    self.located += 1;
                    self.rewritten.push(Rewritten { index, served, proven, under: self.target });
                    self.replay();
                    self.at_check()
                }
            }
            (Ok(_), _) => self.unlocated("its proofs contradict one another".to_owned()),
            (Err(why), _) => self.unlocated(why),
        };
    }

    /// What was found to be a beginning of a signed tree: where to go on from after a restart.
    pub fn proven(&self) -> &Frontier {
        &self.proven
    }

    /// The signed head that it is on its way to, or has reached.
    pub fn target(&self) -> TreeHead {
        self.target
    }

    /// Why it cannot go on, if it cannot.
    pub fn stuck(&self) -> Option<&Stuck> {
        match &self.state {
            State::Stuck(stuck) => Some(stuck),
            _ => None,
        }
    }

    /// The entries that are not those of the signed tree, since the last call.
    pub fn take_rewritten(&mut self) -> Vec<Rewritten> {
        std::mem::take(&mut self.rewritten)
    }

    /// The entries that break a rule, since the last call.
    pub fn take_malformed(&mut self) -> Malformed {
        std::mem::take(&mut self.malformed)
    }

    /// Heads that were to be passed through and were not, or that a proof was asked for, each with the root that the target's
    /// tree has there and its proof. Empty before the target is reached: only then the entries are proven to be its.
    pub fn beginnings(&self) -> Vec<(TreeHead, Beginning)> {
        if self.state == State::Reached { self.milestones.beginnings(self.target.size) } else { Vec::new() }
    }

    /// The size at which what was read is to be proven: the target's, or less if that is far.
    fn check_at(&self) -> u64 {
        let chunk = if self.traceable { self.proven.size().get() } else { self.tree.size().get() };
        self.target.size.get().min(chunk.saturating_add(CHUNK))
    }

    /// Where it stands once enough was read.
    fn at_check(&mut self) -> State {
        match (self.tree.size() == self.target.size, self.tree.root() == self.target.root) {
            (true, true) => self.settle(State::Reached),
            (true, false) => self.doubt(),
            // Leaf hashes that were given up cannot come back before the target; a proof would say nothing new.
            (false, _) if !self.traceable => State::Reading,
            (false, _) => State::Checking,
        }
    }

    fn settle(&mut self, next: State) -> State {
        self.proven = self.tree.clone();
        self.leaves.clear();
        self.traceable = true;
        self.milestones.settle();
        next
    }

    fn forget_leaves(&mut self) {
        self.leaves = Vec::new();
        self.traceable = false;
    }

    /// The tree that was read is not the target's.
    fn doubt(&mut self) -> State {
        match (self.traceable, self.proven.size()) {
            (false, _) => self.unlocated("it proved none of what was read".to_owned()),
            (true, TreeSize::ZERO) => self.search(Frontier::new(), self.tree.size().get()),
            (true, _) => State::Doubting,
        }
    }

    /// Between a size at which the trees agree and one at which they do not there is an entry that differs.
    fn search(&self, same: Frontier, other: u64) -> State {
        let from = same.size().get();
        if let Some(index) = LeafIndex::new(from).filter(|_| other <= from + 1) {
            return State::Found(index);
        }
        let middle = from + (other - from) / 2;
        let proven = self.proven.size().get();
        let mut asked = same.clone();
        // What was read fits into memory and into a tree.
        let place = |size: u64| usize::try_from(size.saturating_sub(proven)).unwrap_or(usize::MAX);
        for leaf in self.leaves.iter().take(place(middle)).skip(place(from)) {
            let _ = asked.push(*leaf);
        }
        State::Searching { same, other, asked }
    }

    fn unlocated(&self, why: String) -> State {
        let first = self.proven.size().next_index().unwrap_or_default();
        State::Stuck(Stuck::Unlocated { first, under: self.target, why })
    }

    fn push(&mut self, leaf: Hash) {
        // The target's size is a tree's, and nothing is read beyond it.
        let milestones = &mut self.milestones;
        let _ =
            self.tree.push_with(leaf, |height, position, hash| milestones.completed(height, position, hash));
        if milestones.is_due(self.tree.size()) {
            milestones.pass(&self.tree, self.target.size);
        }
    }

    /// Makes the tree again after a leaf hash was put right.
    fn replay(&mut self) {
        self.tree = self.proven.clone();
        self.milestones.rewind(self.tree.size());
        for leaf in std::mem::take(&mut self.leaves) {
            self.push(leaf);
            self.leaves.push(leaf);
        }
    }
}

impl Malformed {
    /// Notes one.
    pub(crate) fn note(&mut self, index: LeafIndex, broken: Broken) {
        self.count += 1;
        if self.named.len() < MAX_MALFORMED {
            self.named.push((index, broken));
        }
    }

    fn check(&mut self, index: LeafIndex, entry: &[u8], rules: &[&dyn EntryRule]) {
        let Some(broken) = rules.iter().find_map(|rule| rule.check(index, entry).err()) else { return };
        self.note(index, broken);
    }
}
