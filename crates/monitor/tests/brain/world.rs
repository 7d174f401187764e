//! A world for a machine: a log with some histories, its witnesses, and what is served at each vantage point.

use std::collections::BTreeMap;

use bytes::Bytes;
use epigraph_core::checkpoint::encode_text;
use epigraph_core::cosignature::CosignedAt;
use epigraph_core::evidence;
use epigraph_core::hash::leaf_hash;
use epigraph_core::key::SigningKey;
use epigraph_core::note;
use epigraph_core::proof::{ConsistencyProof, Nodes, prove_consistency, prove_inclusion, root_at};
use epigraph_core::{
    CosigningKey, Frontier, Hash, LeafIndex, Origin, Policy, TreeHead, TreeSize, UnixMillis, VKey,
};
use epigraph_monitor::book::Book;
use epigraph_monitor::compare::{Machine, Tuning};
use epigraph_monitor::event::{Effect, Event, Found, Vantage, VantageKind, Why};
use epigraph_monitor::finding::{Class, Code, Trigger};

pub(crate) const ORIGIN: &str = "log.example/brain";

/// When every world begins: 2026-01-01.
pub(crate) const START: u64 = 1_767_225_600_000;

pub(crate) const MINUTE: u64 = 60_000;

/// The leaves of one history, with all perfect subtrees.
pub(crate) struct History {
    rows: Vec<Vec<Hash>>,
}

impl Nodes for History {
    type Error = ();

    fn node(&self, height: u32, index: u64) -> Result<Hash, ()> {
        self.rows.get(height as usize).and_then(|row| row.get(index as usize)).copied().ok_or(())
    }
}

impl History {
    /// `leaves` leaves, from `fork` on those of another label.
    pub(crate) fn new(leaves: u64, fork: u64, label: u8) -> History {
        let (mut frontier, mut rows) = (Frontier::new(), Vec::<Vec<Hash>>::new());
        for index in 0..leaves {
            frontier
                .push_with(leaf(index, if index < fork { 0 } else { label }), |height, _, hash| {
                    rows.resize_with(rows.len().max(height as usize + 1), Vec::new);
                    rows[height as usize].push(hash);
                })
                .unwrap();
        }
        History { rows }
    }

    pub(crate) fn head(&self, leaves: u64) -> TreeHead {
        TreeHead { size: size(leaves), root: root_at(self, size(leaves)).unwrap() }
    }

    fn len(&self) -> u64 {
        self.rows.first().map_or(0, |row| row.len() as u64)
    }

    fn has(&self, head: &TreeHead) -> bool {
        head.size.get() <= self.len() && self.head(head.size.get()) == *head
    }
}

pub(crate) fn leaf(index: u64, label: u8) -> Hash {
    leaf_hash(format!("{label} {index}").as_bytes())
}

pub(crate) fn size(leaves: u64) -> TreeSize {
    TreeSize::new(leaves).unwrap()
}

pub(crate) fn origin() -> Origin {
    Origin::new(ORIGIN).unwrap()
}

pub(crate) fn log_key() -> SigningKey {
    SigningKey::from_seed(ORIGIN.parse().unwrap(), &[1; 32].into())
}

/// The key of witness `w<number>`.
pub(crate) fn witness_key(number: usize) -> CosigningKey {
    CosigningKey::from_seed(format!("w{number}").parse().unwrap(), &[10 + number as u8; 32].into())
}

/// How the log answers questions at a vantage point.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Manners {
    /// From this history, truly.
    Proves(usize),
    /// It gives entries of this history, and no proofs.
    Refuses(usize),
    /// It gives proofs of no meaning, and no entries.
    Garbles,
    /// It does not answer.
    Silent,
}

/// A machine and its world.
pub(crate) struct World {
    pub(crate) machine: Machine,
    pub(crate) book: Book,
    pub(crate) histories: Vec<History>,
    pub(crate) manners: BTreeMap<String, Manners>,
    /// The monitor's clock.
    pub(crate) now: u64,
    /// All that was found, in order.
    pub(crate) found: Vec<Trigger>,
    /// Proofs and entries that were asked for.
    pub(crate) asked: usize,
    pub(crate) rehashed: usize,
    vantages: Vec<Vantage>,
}

pub(crate) fn at_log(number: usize) -> Vantage {
    Vantage { name: format!("log/{number}"), kind: VantageKind::Log }
}

pub(crate) fn at_witness(number: usize) -> Vantage {
    Vantage { name: format!("witness/w{number}"), kind: VantageKind::Witness(format!("w{number}")) }
}

pub(crate) fn at_monitor() -> Vantage {
    Vantage { name: "monitor/other".into(), kind: VantageKind::Monitor }
}

pub(crate) fn at_file() -> Vantage {
    Vantage { name: "files".into(), kind: VantageKind::File }
}

/// The policy of this many witnesses and this threshold; 0 for none.
pub(crate) fn policy(witnesses: usize, threshold: usize) -> Policy {
    if witnesses == 0 {
        return Policy::of_log(log_key().vkey().clone());
    }
    let keys: Vec<VKey> = (0..witnesses).map(|number| witness_key(number).vkey().clone()).collect();
    Policy::of_witnesses(log_key().vkey(), &keys, threshold).unwrap()
}

/// A head as it is shown, cosigned by these witnesses at this time in milliseconds.
pub(crate) fn note(head: &TreeHead, cosigners: &[usize], at: u64) -> Bytes {
    let times: Vec<_> = cosigners.iter().map(|number| (*number, at)).collect();
    note_at(head, &times)
}

/// The same with a time for each.
pub(crate) fn note_at(head: &TreeHead, cosigners: &[(usize, u64)]) -> Bytes {
    let text = encode_text(&origin(), head);
    let mut lines = vec![log_key().sign_assertion(&text)];
    for (number, at) in cosigners {
        let at = CosignedAt::of(UnixMillis(*at)).unwrap();
        lines.push(witness_key(*number).cosign_assertion(&text, at));
    }
    note::encode(&text, &lines).into()
}

impl World {
    /// Two vantage points of the log and one of each of four witnesses, of which three are a quorum.
    pub(crate) fn new(histories: Vec<History>) -> World {
        World::with(histories, policy(4, 3), 2, 4)
    }

    pub(crate) fn with(histories: Vec<History>, policy: Policy, logs: usize, witnesses: usize) -> World {
        let vantages: Vec<_> =
            (1..=logs).map(at_log).chain((0..witnesses).map(at_witness)).chain([at_file()]).collect();
        let manners = (1..=logs).map(|number| (at_log(number).name, Manners::Proves(0))).collect();
        let machine = Machine::new(origin(), policy, &vantages, Tuning::default());
        let mut world = World {
            machine,
            book: Book::new(),
            histories,
            manners,
            now: START,
            found: Vec::new(),
            asked: 0,
            rehashed: 0,
            vantages: vantages.clone(),
        };
        vantages.into_iter().for_each(|vantage| world.reached(vantage));
        world
    }

    /// At log/2 another history is served than at log/1.
    pub(crate) fn split(histories: Vec<History>) -> World {
        let mut world = World::new(histories);
        world.manners.insert(at_log(2).name, Manners::Proves(1));
        world
    }

    pub(crate) fn head(&self, history: usize, leaves: u64) -> TreeHead {
        self.histories[history].head(leaves)
    }

    /// Somebody shows a head, and all that follows from it happens.
    pub(crate) fn show(&mut self, vantage: Vantage, note: Bytes) {
        let at = UnixMillis(self.now);
        self.feed(Event::Head { vantage, note, at });
    }

    /// The log shows a head of a history that all witnesses have just cosigned.
    pub(crate) fn publish(&mut self, history: usize, leaves: u64, vantages: &[Vantage]) {
        let note = note(&self.head(history, leaves), &[0, 1, 2, 3], self.now);
        for vantage in vantages {
            self.show(vantage.clone(), note.clone());
        }
    }

    /// The clock goes on, with a tick every second.
    pub(crate) fn wait(&mut self, millis: u64) {
        for _ in 0..millis / 1000 {
            self.now += 1000;
            self.feed(Event::Tick { at: UnixMillis(self.now) });
        }
    }

    pub(crate) fn reached(&mut self, vantage: Vantage) {
        self.feed(Event::Reached { vantage, at: UnixMillis(self.now) });
    }

    pub(crate) fn unreachable(&mut self, vantage: Vantage) {
        self.feed(Event::Unreachable { vantage, why: "connection refused".into(), at: UnixMillis(self.now) });
    }

    pub(crate) fn feed(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for effect in self.machine.step(event) {
                events.extend(self.serve(effect));
            }
        }
    }

    /// What becomes of an effect: at most one answer.
    pub(crate) fn serve(&mut self, effect: Effect) -> Option<Event> {
        let at = UnixMillis(self.now);
        let refused = || Why::Refused("no such size".into());
        let manners = |vantage: &Vantage| self.manners.get(&vantage.name).copied().unwrap_or(Manners::Silent);
        match effect {
            Effect::AskProof { old, new, vantage } => {
                self.asked += 1;
                let (old, new) = (old.size, new.size);
                Some(match manners(&vantage) {
                    Manners::Proves(history) if new.get() <= self.histories[history].len() => {
                        let history = &self.histories[history];
                        let hashes = prove_consistency(history, old, new).unwrap().unwrap().hashes;
                        let next = LeafIndex::new(old.get()).unwrap();
                        let pow2 = old.get().is_power_of_two();
                        let candidates =
                            pow2.then(|| prove_inclusion(history, next, new).unwrap().unwrap().hashes);
                        let candidates = candidates.unwrap_or_default();
                        Event::Proof { old, new, hashes, candidates, vantage, at }
                    }
                    Manners::Garbles => {
                        let hashes = vec![leaf(7, 7); 64];
                        Event::Proof { old, new, candidates: hashes.clone(), hashes, vantage, at }
                    }
                    Manners::Silent => {
                        let why = Why::Unreachable("timed out".into());
                        Event::NoProof { old, new, vantage, why, at }
                    }
                    _ => Event::NoProof { old, new, vantage, why: refused(), at },
                })
            }
            Effect::Rehash { old, new, vantage } => {
                self.rehashed += 1;
                Some(match manners(&vantage) {
                    Manners::Proves(history) | Manners::Refuses(history)
                        if self.histories[history].has(&new) =>
                    {
                        let history = &self.histories[history];
                        let hashes = prove_consistency(history, old.size, new.size).unwrap().unwrap().hashes;
                        let proof = ConsistencyProof { old: old.size, new: new.size, hashes };
                        let hashes = proof.carrying(&history.head(old.size.get()).root);
                        let (old, new) = (old.size, new.size);
                        Event::Proof { old, new, hashes, candidates: Vec::new(), vantage, at }
                    }
                    Manners::Silent => {
                        let why = Why::Unreachable("timed out".into());
                        Event::NoProof { old: old.size, new: new.size, vantage, why, at }
                    }
                    _ => Event::NoProof { old: old.size, new: new.size, vantage, why: refused(), at },
                })
            }
            Effect::Audit { upto, vantage } => match manners(&vantage) {
                Manners::Proves(history) | Manners::Refuses(history)
                    if self.histories[history].has(&upto) =>
                {
                    Some(Event::Audited { head: upto, vantage, at })
                }
                // Whoever is served another history finds other entries.
                Manners::Proves(_) | Manners::Refuses(_) => {
                    let detail = "another root".to_owned();
                    let found = Found::Rewritten { head: upto, index: None, detail };
                    Some(Event::AuditFound { found, vantage, at })
                }
                _ => None,
            },
            Effect::AskEntry { index, head, vantage } => Some(match manners(&vantage) {
                Manners::Proves(history) if head.size.get() <= self.histories[history].len() => {
                    let proof = prove_inclusion(&self.histories[history], index, head.size);
                    let hashes = proof.unwrap().unwrap().hashes;
                    Event::Inclusion { index, size: head.size, hashes, vantage, at }
                }
                Manners::Silent => {
                    let why = Why::Unreachable("timed out".into());
                    Event::NoInclusion { index, size: head.size, vantage, why, at }
                }
                _ => Event::NoInclusion { index, size: head.size, vantage, why: refused(), at },
            }),
            Effect::Trigger(trigger) => {
                judge(&trigger);
                self.book.trigger(trigger.clone());
                self.found.push(trigger);
                None
            }
            Effect::Clear(clear) => {
                self.book.clear(&clear);
                None
            }
            Effect::KeepHeads => None,
        }
    }

    /// The monitor is started anew with this state, and reaches everybody.
    pub(crate) fn restart(&mut self, state: &[u8]) {
        self.machine = self.decode(state);
        self.vantages.clone().into_iter().for_each(|vantage| self.reached(vantage));
    }

    /// The machine's state as it would be after a restart.
    pub(crate) fn decode(&self, state: &[u8]) -> Machine {
        self.decode_under(state, policy(4, 3))
    }

    pub(crate) fn decode_under(&self, state: &[u8], policy: Policy) -> Machine {
        Machine::decode(state, origin(), policy, &self.vantages, Tuning::default()).unwrap()
    }

    /// The findings that are open, by code and subject.
    pub(crate) fn open(&self) -> Vec<(Code, &str)> {
        let open = self.book.findings().filter(|finding| finding.is_open());
        let mut open: Vec<_> = open.map(|finding| (finding.code, finding.subject.as_str())).collect();
        open.sort_unstable();
        open
    }

    pub(crate) fn count(&self, code: Code) -> usize {
        self.found.iter().filter(|trigger| trigger.code == code).count()
    }
}

/// Proofs convince a stranger who has the accused's key and nothing else; observations carry no evidence about anybody.
fn judge(trigger: &Trigger) {
    match (trigger.code.class(), &trigger.evidence) {
        (Class::Proof, Some(file)) => {
            let key = match trigger.code {
                Code::SplitView => log_key().vkey().clone(),
                _ => {
                    let number = trigger.subject.strip_prefix('w').and_then(|number| number.parse().ok());
                    witness_key(number.unwrap()).vkey().clone()
                }
            };
            let evidence = evidence::verify(file, &[key]).unwrap();
            assert_eq!(evidence.origin().as_str(), ORIGIN);
        }
        // A further sign of what is proven already.
        (Class::Proof, None) => assert_eq!(trigger.code, Code::SplitView),
        (Class::Observation, file) => assert_eq!(*file, None),
    }
}
