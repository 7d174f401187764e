//! The audit alone: honest logs, changed entries behind valid proofs, forks, and logs that prove nothing or nonsense.

use bytes::Bytes;
use epigraph_core::hash::sha256;
use epigraph_core::{Evidence, Frontier, Hash, LeafIndex, TreeHead};
use epigraph_monitor::audit::{
    Answer, Audit, Broken, CHUNK, EntryRule, MAX_MALFORMED, MAX_REWRITTEN, Step, Stuck, WellFormed, judge,
};

use crate::trees::{Tree, entries, entry, key, note_of, size};

/// How a log answers when it is asked for proofs.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Proofs {
    /// Those of its tree.
    Real,
    /// None.
    Refused,
    /// Hashes that lead nowhere, and leaf hashes of nothing.
    Garbage,
}

/// A log that signed the heads of one tree and serves these entries.
struct Log<'a> {
    tree: &'a Tree,
    served: &'a [Bytes],
    proofs: Proofs,
}

impl Log<'_> {
    fn prove(&self, ours: TreeHead, target: TreeHead) -> Answer {
        match self.proofs {
            Proofs::Real => {
                let beginning = self.tree.head(ours.size.get()).root;
                judge(ours, target, self.tree.consistency(ours.size, target.size), &[sha256(b"?"), beginning])
            }
            Proofs::Refused => Answer::Nothing("refused".to_owned()),
            Proofs::Garbage => judge(ours, target, vec![sha256(b"garbage"); 63], &[sha256(b"other")]),
        }
    }

    fn leaf(&self, index: LeafIndex) -> Result<Hash, String> {
        match self.proofs {
            Proofs::Real => Ok(self.tree.leaf(index.get())),
            _ => Err("refused".to_owned()),
        }
    }

    /// Goes on with an audit as far as it comes; how many questions that took.
    fn drive(&self, audit: &mut Audit, rules: &[&dyn EntryRule]) -> usize {
        for asked in 0.. {
            match audit.step() {
                Step::Read { first, count } => {
                    let first = first.get() as usize;
                    let end = self.served.len().min(first + count as usize);
                    assert!(
                        audit.take(self.served[first..end].iter().map(AsRef::as_ref), rules) > 0,
                        "nothing was taken at {first}"
                    );
                }
                Step::Prove { ours, target } => audit.answer(self.prove(ours, target)),
                Step::Leaf { index, .. } => audit.leaf(self.leaf(index)),
                Step::Reached | Step::Stuck => return asked,
            }
        }
        unreachable!()
    }

    /// A full audit up to a size.
    fn audit(&self, upto: u64) -> Audit {
        let mut audit = Audit::from(Frontier::new());
        audit.aim(self.tree.head(upto));
        self.drive(&mut audit, &[]);
        audit
    }
}

/// An honest log is audited to each head, in one go and head by head, whether it proves anything or not.
#[test]
fn an_honest_log_is_reached_at_every_size() {
    let served = entries(130, 130, 0);
    let tree = Tree::of(&served);
    for proofs in [Proofs::Real, Proofs::Refused, Proofs::Garbage] {
        let log = Log { tree: &tree, served: &served, proofs };
        let mut step_by_step = Audit::from(Frontier::new());
        for upto in 0..=130 {
            let audit = log.audit(upto);
            assert_eq!((audit.step(), audit.proven().head()), (Step::Reached, tree.head(upto)));
            step_by_step.aim(tree.head(upto));
            log.drive(&mut step_by_step, &[]);
            assert_eq!(step_by_step.proven(), audit.proven(), "{upto} {proofs:?}");
        }
    }
}

/// M5: what was proven when the process was killed is where the next one goes on, at every entry. Fails if `proven` is the tree
/// that was merely read, and if the leaf hashes of the chunk before are kept.
#[test]
fn an_audit_goes_on_from_what_was_proven() {
    let leaves = 2 * CHUNK + 100;
    let served = entries(leaves, leaves, 0);
    let tree = Tree::of(&served);
    let log = Log { tree: &tree, served: &served, proofs: Proofs::Real };
    let mut audit = Audit::from(Frontier::new());
    audit.aim(tree.head(leaves));
    for expected in [0, CHUNK, 2 * CHUNK] {
        assert_eq!(audit.proven().head(), tree.head(expected));
        let Step::Read { first, count } = audit.step() else { panic!("{:?}", audit.step()) };
        assert_eq!(first.get(), expected);
        // Killed in the middle of it: what was read counts for nothing.
        audit.take(served[expected as usize..][..count as usize / 2].iter().map(AsRef::as_ref), &[]);
        let kept = audit.proven().clone();
        audit = Audit::from(Frontier::from_parts(kept.size(), kept.hashes().to_vec()).unwrap());
        audit.aim(tree.head(leaves));
        let Step::Read { count, .. } = audit.step() else { panic!("{:?}", audit.step()) };
        audit.take(served[expected as usize..][..count as usize].iter().map(AsRef::as_ref), &[]);
        if let Step::Prove { ours, target } = audit.step() {
            assert_eq!(ours, tree.head(expected + CHUNK));
            audit.answer(log.prove(ours, target));
        }
    }
    assert_eq!((audit.step(), audit.proven().head()), (Step::Reached, tree.head(leaves)));
}

/// A4, M3, SIM-YETI: an entry that was changed while all proofs stay valid is found, and named by its index, at every index. Fails
/// if the root is not compared, and if the search looks at one size less or more.
#[test]
fn a_changed_entry_behind_valid_proofs_is_named() {
    for leaves in 1..=33 {
        let honest = entries(leaves, leaves, 0);
        let tree = Tree::of(&honest);
        for changed in 0..leaves {
            let mut served = honest.clone();
            served[changed as usize] = entry(changed, 1);
            let log = Log { tree: &tree, served: &served, proofs: Proofs::Real };
            for from in [0, changed / 2, changed] {
                let mut audit = Audit::from(log.audit_honest(&honest, from));
                audit.aim(tree.head(leaves));
                log.drive(&mut audit, &[]);
                let found = audit.take_rewritten();
                assert_eq!(found.len(), 1, "{changed} of {leaves} from {from}: {:?}", audit.stuck());
                assert_eq!((found[0].index.get(), found[0].proven), (changed, tree.leaf(changed)));
                assert_eq!(found[0].served, Tree::of(&served).leaf(changed));
                // The rest was audited all the same.
                assert_eq!((audit.step(), audit.proven().head()), (Step::Reached, tree.head(leaves)));
            }
        }
    }
}

impl Log<'_> {
    fn audit_honest(&self, honest: &[Bytes], upto: u64) -> Frontier {
        let log = Log { tree: self.tree, served: honest, proofs: Proofs::Real };
        log.audit(upto).proven().clone()
    }
}

/// The cost of a log that changed everything is bounded. Fails without the limit.
#[test]
fn many_changed_entries_are_named_up_to_a_limit() {
    let tree = Tree::of(&entries(200, 200, 0));
    for changed in [2, MAX_REWRITTEN as u64, MAX_REWRITTEN as u64 + 1, 100] {
        let served = entries(200, 200 - changed, 1);
        let log = Log { tree: &tree, served: &served, proofs: Proofs::Real };
        let mut audit = Audit::from(Frontier::new());
        audit.aim(tree.head(200));
        let asked = log.drive(&mut audit, &[]);
        let all = changed <= MAX_REWRITTEN as u64;
        let found: Vec<u64> = audit.take_rewritten().iter().map(|found| found.index.get()).collect();
        let named = 200 - changed..200 - changed + changed.min(MAX_REWRITTEN as u64);
        assert_eq!(found, named.collect::<Vec<_>>());
        assert_eq!(audit.step(), if all { Step::Reached } else { Step::Stuck });
        assert!(asked < 20 * (MAX_REWRITTEN + 1), "{asked} questions");
    }
}

/// A change is named in the chunk where it is, at its edges too, before the rest of the log is read.
#[test]
fn a_changed_entry_is_named_in_each_chunk() {
    let leaves = 2 * CHUNK + 7;
    let honest = entries(leaves, leaves, 0);
    let tree = Tree::of(&honest);
    for changed in [0, CHUNK - 1, CHUNK, 2 * CHUNK - 1, 2 * CHUNK, leaves - 1] {
        let mut served = honest.clone();
        served[changed as usize] = entry(changed, 1);
        let mut audit = Log { tree: &tree, served: &served, proofs: Proofs::Real }.audit(leaves);
        let found = audit.take_rewritten();
        assert_eq!(found.iter().map(|found| found.index.get()).collect::<Vec<_>>(), [changed]);
        assert_eq!(audit.step(), Step::Reached);
    }
}

/// A log that proves nothing cannot hide a changed entry: only its index stays unknown.
#[test]
fn a_changed_entry_without_proofs_is_found_but_not_named() {
    let honest = entries(CHUNK + 5, CHUNK + 5, 0);
    let tree = Tree::of(&honest);
    for (proofs, changed) in [(Proofs::Refused, 3), (Proofs::Garbage, 3), (Proofs::Refused, CHUNK + 4)] {
        let mut served = honest.clone();
        served[changed as usize] = entry(changed, 1);
        let mut audit = Log { tree: &tree, served: &served, proofs }.audit(CHUNK + 5);
        assert!(matches!(audit.stuck(), Some(Stuck::Unlocated { .. })), "{:?}", audit.stuck());
        assert!(audit.take_rewritten().is_empty());
        assert_eq!(audit.proven().size().get(), 0);
    }
}

/// A head that does not extend what was proven, and a log that proves it: the proof is what evidence takes.
#[test]
fn a_fork_that_the_log_proves_is_evidence() {
    for fork in 1..40 {
        let leaves = 41;
        let first = Tree::of(&entries(fork, fork, 0));
        let served = entries(leaves, fork - 1, 1);
        let tree = Tree::of(&served);
        let log = Log { tree: &tree, served: &served, proofs: Proofs::Real };
        let before = Log { tree: &first, served: &entries(fork, fork, 0), proofs: Proofs::Real };
        let mut audit = Audit::from(before.audit(fork).proven().clone());
        audit.aim(tree.head(leaves));
        log.drive(&mut audit, &[]);
        let Some(Stuck::Forked { ours, under, other }) = audit.stuck().cloned() else {
            panic!("{fork}: {:?}", audit.stuck())
        };
        assert_eq!((ours, under), (first.head(fork), tree.head(leaves)));
        evidence(&first.head(fork), &tree.head(leaves), other.carried);
    }
}

fn evidence(older: &TreeHead, newer: &TreeHead, carried: Vec<Hash>) {
    let (older, newer) = (note_of(older), note_of(newer));
    let evidence = Evidence::old_root(key().vkey(), older.as_bytes(), newer.as_bytes(), carried).unwrap();
    assert_eq!(Evidence::decode(&evidence.encode()).unwrap(), evidence);
}

/// SIM-SPLIT: a log that signed two histories, forked at every size, and answers no question for a proof. Whoever reads the
/// entries of the one makes the proof against the other. Fails if a head at the very fork is compared with the tree after it.
#[test]
fn a_fork_is_proven_from_the_entries_alone() {
    for leaves in [2u64, 3, 8, 33, 64, 65] {
        for seen in 1..leaves {
            for fork in 0..seen {
                let other = Tree::of(&entries(seen, fork, 1));
                let served = entries(leaves, leaves, 0);
                let tree = Tree::of(&served);
                let mut audit = Audit::from(Frontier::new());
                audit.pass_through([other.head(seen), tree.head(seen), tree.head(seen.div_ceil(2))]);
                audit.aim(tree.head(leaves));
                assert!(audit.beginnings().is_empty());
                Log { tree: &tree, served: &served, proofs: Proofs::Refused }.drive(&mut audit, &[]);
                let found = audit.beginnings();
                assert_eq!(found.len(), 1, "fork at {fork}, seen at {seen} of {leaves}");
                assert_eq!(found[0].0, other.head(seen));
                evidence(&other.head(seen), &tree.head(leaves), found[0].1.carried.clone());
            }
        }
    }
}

/// A changed entry is not a fork: the heads on the way are compared with the tree that was put right.
#[test]
fn a_changed_entry_is_no_fork() {
    let honest = entries(40, 40, 0);
    let tree = Tree::of(&honest);
    for changed in 0..40 {
        let mut served = honest.clone();
        served[changed as usize] = entry(changed, 1);
        let mut audit = Audit::from(Frontier::new());
        audit.pass_through((1..40).map(|at| tree.head(at)));
        audit.aim(tree.head(40));
        Log { tree: &tree, served: &served, proofs: Proofs::Real }.drive(&mut audit, &[]);
        assert_eq!((audit.step(), audit.beginnings()), (Step::Reached, Vec::new()));
        assert_eq!(audit.take_rewritten().len(), 1);
    }
}

struct NoSevens;

impl EntryRule for NoSevens {
    fn check(&self, _: LeafIndex, entry: &[u8]) -> Result<(), Broken> {
        match entry.contains(&b'7') {
            true => Err(Broken { rule: "no-sevens", why: "it has a seven".to_owned() }),
            false => Ok(()),
        }
    }
}

/// A12: entries that break a rule are named and counted, and stop nothing.
#[test]
fn a_malformed_entry_stops_nothing() {
    let mut served: Vec<Bytes> = entries(1000, 1000, 0);
    let sevens = served.iter().filter(|entry| entry.contains(&b'7')).count();
    served[500] = vec![0; 65_536].into();
    let tree = Tree::of(&served);
    let mut audit = Audit::from(Frontier::new());
    audit.aim(tree.head(1000));
    let log = Log { tree: &tree, served: &served, proofs: Proofs::Real };
    log.drive(&mut audit, &[&WellFormed, &NoSevens]);
    assert_eq!(audit.step(), Step::Reached);
    let malformed = audit.take_malformed();
    assert_eq!((malformed.count, malformed.named.len()), (sevens as u64 + 1, MAX_MALFORMED));
    assert_eq!((malformed.named[0].0.get(), malformed.named[0].1.rule), (7, "no-sevens"));
    assert_eq!(WellFormed.check(LeafIndex::default(), &served[500]).unwrap_err().rule, "well-formed");
    assert_eq!(WellFormed.check(LeafIndex::default(), &served[500][1..]), Ok(()));
    assert_eq!(audit.take_malformed(), Default::default());
}

/// A head that is below what was proven, or of the same size with another root, is not read towards.
#[test]
fn an_audit_does_not_go_back() {
    let tree = Tree::of(&entries(9, 9, 0));
    let served = entries(9, 9, 0);
    let other = Tree::of(&entries(9, 8, 1));
    for shown in [tree.head(8), other.head(9)] {
        let mut audit = Log { tree: &tree, served: &served, proofs: Proofs::Real }.audit(9);
        audit.aim(shown);
        assert_eq!(audit.stuck(), Some(&Stuck::Backwards { shown, read: tree.head(9) }));
        assert_eq!(audit.take(served.iter().map(AsRef::as_ref), &[]), 0);
        assert_eq!(audit.proven().size(), size(9));
    }
}
