//! The heads of one log that were seen: who showed what when, and which of them are known to be of one history.
//!
//! Heads that were proven consistent with each other stand in one *branch*; an honest log has exactly one. A head that is not
//! proven yet *waits*. Only notes with the log's own signature come in, so nobody but the log can fill this memory, and that
//! is bounded too. What is kept of a branch is thinned by one rule: with *d* the distance in entries from the newest head, of
//! the heads with the same number of binary digits in *d* at most [`KEPT_PER_SCALE`] stay, and the one that goes is the one
//! whose neighbours are closest together. The newest head that each witness cosigned and each vantage point showed stays.
//!
//! This module knows no proof and no time of its own. Its file is docs/formats/seen.md.

use std::collections::{BTreeMap, BTreeSet};

use epigraph_core::checkpoint::{CheckpointError, LogSigned};
use epigraph_core::cosignature::{self, CosignedAt};
use epigraph_core::note::{Parsed, SignatureLine};
use epigraph_core::policy::WitnessSet;
use epigraph_core::{Checkpoint, Origin, Policy, TreeHead, TreeSize, UnixMillis};

use crate::finding::Code;
use crate::lines::{Reader, StateError, Writer, number};

/// The most heads of one branch at each distance from the newest: enough to find a fork's place to within a sixteenth.
pub const KEPT_PER_SCALE: usize = 16;

/// The most branches: a log that signs more histories than this is convicted often enough.
pub const MAX_BRANCHES: usize = 8;

/// The most heads that wait for a proof, and of those the most that one vantage point was the first to show: one that replays
/// old heads must not take the place of the others.
pub const MAX_WAITING: usize = 128;
/// See [`MAX_WAITING`].
pub const MAX_WAITING_OF_ONE: usize = 32;

/// The longest note that is kept, in bytes: a head with the cosignatures of [`epigraph_core::policy::MAX_WITNESSES`] witnesses
/// under the longest names fits, and all that may be kept together stays in memory.
pub const MAX_KEPT_NOTE_BYTES: usize = 64 * 1024;

/// The most vantage points of which it is kept that they showed a head.
const MAX_SIGHTINGS: usize = 64;

const HEADER: &str = "epigraph-seen@v1";

/// A head with the log's own signature, and who else signed and showed it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    signed: LogSigned,
    /// By the place of the witness in the policy.
    cosigned: BTreeMap<usize, (CosignedAt, SignatureLine)>,
    sightings: Vec<Sighting>,
}

/// That a vantage point showed a head.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sighting {
    /// The vantage point's name.
    pub vantage: String,
    /// When it did so first.
    pub first: UnixMillis,
    /// When it did so last.
    pub last: UnixMillis,
}

/// Why a note is no head of the log. It says something about who shows it, and nothing about the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Garbage {
    /// [`Code::BadSignature`] or [`Code::UnknownKey`].
    pub code: Code,
    /// What is wrong, in one line.
    pub why: String,
}

impl Seen {
    /// Reads a note that a vantage point showed. Beside the head come complaints about lines in the names of witnesses that
    /// they did not sign: such a line does not take the log's signature away.
    pub fn open(note: &[u8], origin: &Origin, policy: &Policy) -> Result<(Seen, Vec<Garbage>), Garbage> {
        let bad = |why: String| Garbage { code: Code::BadSignature, why };
        let signed = Checkpoint::open_log_signed(note, policy).map_err(|error| {
            let strangers = matches!(error, CheckpointError::NotSigned(_)) && names_the_log(note, origin);
            let code = if strangers { Code::UnknownKey } else { Code::BadSignature };
            Garbage { code, why: error.to_string() }
        })?;
        if signed.origin() != origin {
            return Err(bad(format!("the head is of another log, {}", signed.origin())));
        }
        let parsed = Parsed::parse(note).map_err(|error| bad(error.to_string()))?;
        let (mut cosigned, mut complaints) =
            (BTreeMap::<usize, (CosignedAt, SignatureLine)>::new(), Vec::new());
        for line in parsed.signatures() {
            let place = policy.witnesses().iter().position(|witness| witness.vkey.is_named_by(line));
            let Some((place, witness)) =
                place.and_then(|place| Some((place, policy.witnesses().get(place)?)))
            else {
                continue;
            };
            match cosignature::verify(parsed.text(), line, &witness.vkey) {
                Ok(at) if cosigned.get(&place).is_none_or(|(held, _)| *held < at) => {
                    cosigned.insert(place, (at, line.clone()));
                }
                Ok(_) => {}
                Err(error) => complaints.push(bad(error.to_string())),
            }
        }
        Ok((Seen { signed, cosigned, sightings: Vec::new() }, complaints))
    }

    /// Size and root.
    pub fn head(&self) -> TreeHead {
        self.signed.head()
    }

    /// The note with the log's signatures and the witnesses', and no other.
    pub fn note(&self) -> String {
        let lines = self.cosigned.values().map(|(_, line)| format!("{line}\n"));
        format!("{}{}", self.signed.note(), lines.collect::<String>())
    }

    /// The witnesses that cosigned it.
    pub fn witnesses(&self) -> WitnessSet {
        self.cosigned.keys().copied().collect()
    }

    /// When a witness cosigned it.
    pub fn cosigned_at(&self, place: usize) -> Option<CosignedAt> {
        self.cosigned.get(&place).map(|(at, _)| *at)
    }

    /// Who showed it.
    pub fn sightings(&self) -> &[Sighting] {
        &self.sightings
    }

    /// Adds that a vantage point showed it.
    pub fn sight(&mut self, vantage: &str, at: UnixMillis) {
        if let Some(sighting) = self.sightings.iter_mut().find(|sighting| sighting.vantage == vantage) {
            sighting.last = sighting.last.max(at);
        } else if self.sightings.len() < MAX_SIGHTINGS {
            self.sightings.push(Sighting { vantage: vantage.to_owned(), first: at, last: at });
        }
    }

    /// Takes over what another note of the same head says. Whether a witness is new to it.
    fn merge(&mut self, other: Seen) -> bool {
        let before = self.witnesses();
        if other.signed.note() == self.signed.note() {
            for (place, (at, line)) in other.cosigned {
                let held = self.cosigned.entry(place).or_insert_with(|| (at, line.clone()));
                if held.0 < at {
                    *held = (at, line);
                }
            }
        } else if other.cosigned.len() > self.cosigned.len() {
            // The log worded or signed it in another way: cosignatures go with the words. The more of them the better.
            (self.signed, self.cosigned) = (other.signed, other.cosigned);
        }
        for sighting in other.sightings {
            self.sight(&sighting.vantage, sighting.first);
            self.sight(&sighting.vantage, sighting.last);
        }
        !self.witnesses().without(before).is_empty()
    }

    fn write(&self, word: &str, file: &mut Writer) {
        file.line(word, self.head().size);
        for line in self.note().trim_end_matches('\n').split('\n') {
            file.line(">", line);
        }
        for Sighting { vantage, first, last } in &self.sightings {
            file.line("seen", format_args!("{} {} {vantage}", first.0, last.0));
        }
    }

    fn read(file: &mut Reader<'_>, origin: &Origin, policy: &Policy) -> Result<Seen, StateError> {
        let mut note = String::new();
        while let Some(line) = file.maybe(">", Some)? {
            note += line;
            note.push('\n');
        }
        let mut sightings = Vec::new();
        while let Some(sighting) = file.maybe("seen", Sighting::parse)? {
            sightings.push(sighting);
        }
        if note.is_empty() || sightings.len() > MAX_SIGHTINGS {
            return Err(file.bad());
        }
        let (seen, _) =
            Seen::open(note.as_bytes(), origin, policy).map_err(|bad| StateError::Head(bad.why))?;
        Ok(Seen { sightings, ..seen })
    }
}

impl Sighting {
    fn parse(text: &str) -> Option<Sighting> {
        let (first, rest) = text.split_once(' ')?;
        let (last, vantage) = rest.split_once(' ')?;
        let time = |text| number(text).map(UnixMillis);
        Some(Sighting { vantage: vantage.to_owned(), first: time(first)?, last: time(last)? })
    }
}

/// Whether a note has a signature line in the log's name.
fn names_the_log(note: &[u8], origin: &Origin) -> bool {
    Parsed::parse(note).is_ok_and(|note| note.signatures().iter().any(|line| line.name == origin.as_str()))
}

/// Heads that are proven to be of one history.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Branch {
    heads: BTreeMap<TreeSize, Seen>,
}

impl Branch {
    /// The newest head.
    pub fn tip(&self) -> Option<&Seen> {
        self.heads.values().next_back()
    }

    /// The head with which another one of this size must be compared to know whether it belongs here: that of the same size,
    /// else the next larger one, else the newest.
    pub fn neighbour(&self, size: TreeSize) -> Option<&Seen> {
        self.heads.range(size..).map(|(_, seen)| seen).next().or_else(|| self.tip())
    }

    /// The newest head that a witness cosigned.
    pub fn newest_of(&self, place: usize) -> Option<&Seen> {
        self.heads.values().rev().find(|seen| seen.cosigned.contains_key(&place))
    }

    /// All heads that are kept, the smallest first.
    pub fn heads(&self) -> impl DoubleEndedIterator<Item = &Seen> {
        self.heads.values()
    }

    fn pinned(&self) -> BTreeSet<TreeSize> {
        let (mut witnesses, mut vantages) = (WitnessSet::EMPTY, BTreeSet::new());
        let mut pinned = BTreeSet::new();
        for (size, seen) in self.heads.iter().rev() {
            let of_witness = !seen.witnesses().without(witnesses).is_empty();
            let of_vantage =
                seen.sightings.iter().filter(|sighting| vantages.insert(&sighting.vantage)).count() > 0;
            witnesses = witnesses.union(seen.witnesses());
            if of_witness || of_vantage || pinned.is_empty() {
                pinned.insert(*size);
            }
        }
        pinned
    }

    fn thin(&mut self) {
        let Some(tip) = self.tip().map(|seen| seen.head().size.get()) else { return };
        let pinned = self.pinned();
        loop {
            let sizes: Vec<_> = self.heads.keys().copied().collect();
            let scale = |size: &TreeSize| (tip - size.get()).checked_ilog2();
            let mut scales = BTreeMap::<_, usize>::new();
            sizes.iter().for_each(|size| *scales.entry(scale(size)).or_default() += 1);
            let crowded = (0..sizes.len()).filter(|place| {
                let size = &sizes[*place];
                !pinned.contains(size)
                    && scales.get(&scale(size)).is_some_and(|count| *count > KEPT_PER_SCALE)
            });
            // The oldest head has no older neighbour: the beginning stands in.
            let gap = |place: &usize| {
                let below =
                    place.checked_sub(1).and_then(|below| sizes.get(below)).map_or(0, |size| size.get());
                sizes.get(place + 1).map_or(u64::MAX, |size| size.get()) - below
            };
            let Some(goes) = crowded.min_by_key(gap).and_then(|place| sizes.get(place)) else { return };
            self.heads.remove(goes);
        }
    }
}

/// A head that is not proven yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Waiting {
    /// The head.
    pub seen: Seen,
    /// The branches that it is proven not to be of.
    pub not_in: BTreeSet<usize>,
}

/// What became of a head that was shown.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Noted {
    /// It is known. Whether it has a witness that it had not before.
    Known {
        /// The branch, unless it waits.
        branch: Option<usize>,
        /// Whether one more witness cosigned it.
        grew: bool,
    },
    /// It is the first head of all, or the first of another history.
    First(usize),
    /// It waits for a proof.
    Waits,
    /// There is no room for it.
    NoRoom,
}

/// All heads of one log.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Heads {
    branches: Vec<Branch>,
    waiting: Vec<Waiting>,
}

impl Heads {
    /// The branches, in the order in which they were found. The first is the one that was seen first, not the true one: there
    /// is no such thing.
    pub fn branches(&self) -> &[Branch] {
        &self.branches
    }

    /// The heads that wait, in the order in which they came.
    pub fn waiting(&self) -> &[Waiting] {
        &self.waiting
    }

    /// The head, wherever it stands.
    pub fn get(&self, head: &TreeHead) -> Option<&Seen> {
        let placed = self.branches.iter().filter_map(|branch| branch.heads.get(&head.size));
        placed.chain(self.waiting.iter().map(|waiting| &waiting.seen)).find(|seen| seen.head() == *head)
    }

    /// All heads of this size, wherever they stand.
    pub fn of_size(&self, size: TreeSize) -> impl Iterator<Item = &Seen> {
        let placed = self.branches.iter().filter_map(move |branch| branch.heads.get(&size));
        let waiting = self.waiting.iter().map(|waiting| &waiting.seen);
        placed.chain(waiting.filter(move |seen| seen.head().size == size))
    }

    /// The branch that a head stands in.
    pub fn branch_of(&self, head: &TreeHead) -> Option<usize> {
        self.branches
            .iter()
            .position(|branch| branch.heads.get(&head.size).is_some_and(|seen| seen.head() == *head))
    }

    /// Takes a head that `vantage` showed.
    pub fn note(&mut self, mut seen: Seen, vantage: &str, at: UnixMillis) -> Noted {
        let head = seen.head();
        seen.sight(vantage, at);
        if let Some(branch) = self.branch_of(&head) {
            let held = self.branches.get_mut(branch).and_then(|branch| branch.heads.get_mut(&head.size));
            let grew = held.is_some_and(|held| held.merge(seen));
            return Noted::Known { branch: Some(branch), grew };
        }
        if let Some(waiting) = self.waiting.iter_mut().find(|waiting| waiting.seen.head() == head) {
            return Noted::Known { branch: None, grew: waiting.seen.merge(seen) };
        }
        if self.branches.is_empty() {
            self.branches.push(Branch { heads: BTreeMap::from([(head.size, seen)]) });
            return Noted::First(0);
        }
        let first_shown = |waiting: &&Waiting| {
            waiting.seen.sightings.first().is_some_and(|sighting| sighting.vantage == vantage)
        };
        if self.waiting.len() >= MAX_WAITING
            || self.waiting.iter().filter(first_shown).count() >= MAX_WAITING_OF_ONE
        {
            return Noted::NoRoom;
        }
        self.waiting.push(Waiting { seen, not_in: BTreeSet::new() });
        Noted::Waits
    }

    /// Remembers that a waiting head is not of a branch.
    pub fn exclude(&mut self, head: &TreeHead, branch: usize) {
        if let Some(waiting) = self.waiting.iter_mut().find(|waiting| waiting.seen.head() == *head) {
            waiting.not_in.insert(branch);
        }
    }

    /// Puts a waiting head into a branch that it was proven to be of; or, past the last one, into a branch of its own. What
    /// finds no room is let go.
    pub fn join(&mut self, head: &TreeHead, branch: usize) {
        let Some(place) = self.waiting.iter().position(|waiting| waiting.seen.head() == *head) else {
            return;
        };
        let Waiting { seen, .. } = self.waiting.remove(place);
        if branch == self.branches.len() && branch < MAX_BRANCHES {
            self.branches.push(Branch::default());
        }
        if let Some(branch) = self.branches.get_mut(branch) {
            branch.heads.insert(head.size, seen);
            branch.thin();
        }
    }

    pub(crate) fn write(&self, file: &mut Writer) {
        for branch in &self.branches {
            file.line("branch", branch.heads.len());
            branch.heads.values().for_each(|seen| seen.write("head", file));
        }
        for Waiting { seen, not_in } in &self.waiting {
            seen.write("waits", file);
            not_in.iter().for_each(|branch| file.line("not-in", branch));
        }
    }

    pub(crate) fn read(file: &mut Reader<'_>, origin: &Origin, policy: &Policy) -> Result<Heads, StateError> {
        let mut heads = Heads::default();
        while let Some(count) = file.maybe("branch", number)? {
            let mut branch = Branch::default();
            for _ in 0..count {
                let size = file.value("head", |text| number(text).and_then(TreeSize::new))?;
                let seen = Seen::read(file, origin, policy)?;
                if seen.head().size != size {
                    return Err(file.bad());
                }
                branch.heads.insert(size, seen);
            }
            heads.branches.push(branch);
        }
        while file.maybe("waits", number)?.is_some() {
            let seen = Seen::read(file, origin, policy)?;
            let mut not_in = BTreeSet::new();
            while let Some(branch) = file.maybe("not-in", |text| text.parse().ok())? {
                not_in.insert(branch);
            }
            heads.waiting.push(Waiting { seen, not_in });
        }
        let empty = heads.branches.iter().any(|branch| branch.heads.is_empty());
        if empty || heads.branches.len() > MAX_BRANCHES || heads.waiting.len() > MAX_WAITING {
            return Err(file.bad());
        }
        Ok(heads)
    }
}

/// Begins the file in which heads stand first.
pub(crate) fn writer() -> Writer {
    Writer::new(HEADER)
}

/// Begins to read such a file.
pub(crate) fn reader(bytes: &[u8]) -> Result<Reader<'_>, StateError> {
    Reader::new(bytes, HEADER)
}
