//! The signing decision over every small tree and every fork of it: what is held, what the proposer believes, what it
//! proposes and with which proof.

use epigraph_core::hash::Hash;
use epigraph_core::key::{KeyName, Origin, SigningKey};
use epigraph_core::progress::{Conflict, Decision, Held, Persist, Proposal, Reject, Step, commit, decide};
use epigraph_core::proof::ProofError;
use epigraph_core::{Checkpoint, Policy, TreeHead, UnixMillis};

use crate::reference::{Reference, leaf, size};

const MAX: u64 = 10;

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

fn origin() -> Origin {
    Origin::new("log.example/decide").unwrap()
}

fn key() -> SigningKey {
    SigningKey::from_seed(KeyName::new("log.example/decide").unwrap(), &[7; 32].into())
}

fn head(tree: &Reference, leaves: u64) -> TreeHead {
    TreeHead { size: size(leaves), root: tree.root(leaves) }
}

fn held(head: TreeHead) -> Held {
    Held { head, time: NOW, term: 3, note: b"held".to_vec() }
}

fn propose(held: &Held, old: u64, head: TreeHead, proof: Vec<Hash>, now: UnixMillis) -> Decision {
    let proposal = Proposal { old_size: size(old), head, proof, note: b"proposed".to_vec() };
    decide(&origin(), held, proposal, now)
}

/// What must come out, from full knowledge of both trees, `None` for a step; `right` says whether the proof is the
/// proposed tree's own.
fn expected(held: TreeHead, old: u64, proposed: TreeHead, grown: bool, right: bool) -> Option<Decision> {
    let reject = |reject: Reject| Some(Decision::Reject(reject));
    if proposed.size == held.size && proposed.root != held.root {
        return Some(Decision::Conflict(Conflict { held, proposed }));
    }
    if old > proposed.size.get() {
        return reject(Reject::OldBeyondNew { old: size(old), new: proposed.size });
    }
    if old != held.size.get() {
        return Some(Decision::Stale(held));
    }
    match (right, grown) {
        (true, true) => None,
        // Where the old size is a power of two the proof leaves the old root out, so a fork and garbage look alike.
        (true, false) if !old.is_power_of_two() => Some(Decision::Conflict(Conflict { held, proposed })),
        (true, false) => reject(Reject::Proof(ProofError::RootMismatch)),
        // The proof error depends on how it is wrong; that it is rejected does not.
        (false, _) => reject(Reject::Proof(ProofError::WrongLength)),
    }
}

fn check(held_head: TreeHead, old: u64, proposed: TreeHead, proof: Vec<Hash>, want: Option<Decision>) {
    let shown = format!("held {held_head:?}, old {old}, proposed {proposed:?}, {} hashes", proof.len());
    let held = held(held_head);
    let got = propose(&held, old, proposed, proof, NOW);
    match (got, want) {
        (Decision::Step(step), None) => {
            assert_eq!((step.origin(), step.held()), (&origin(), &held), "{shown}");
            let next = Held { head: proposed, time: NOW, term: 3, note: b"proposed".to_vec() };
            assert_eq!(*step.next(), next, "{shown}");
        }
        (Decision::Reject(Reject::Proof(_)), Some(Decision::Reject(Reject::Proof(_)))) => {}
        (got, Some(want)) => assert_eq!(got, want, "{shown}"),
        (got, None) => panic!("{shown}: {got:?}"),
    }
}

/// Proofs that are not the one called for: of the wrong length, of another tree, and with any hash changed.
fn wrong_proofs(right: &[Hash], others: [Vec<Hash>; 2]) -> Vec<Vec<Hash>> {
    let garbage = leaf(b"garbage");
    let mut wrong = vec![Vec::new(), vec![garbage], vec![garbage; right.len()], vec![garbage; 63]];
    wrong.push([right, &[garbage]].concat());
    wrong.push([&[garbage], right].concat());
    wrong.extend(others);
    for at in 0..right.len() {
        let mut changed = right.to_vec();
        changed[at] = garbage;
        wrong.push(changed);
    }
    wrong.retain(|proof| proof != right);
    wrong
}

#[test]
fn only_proven_growth_is_a_step_and_only_two_trees_are_a_conflict() {
    let honest = Reference::labelled("honest", MAX);
    let other = Reference::labelled("other", MAX);
    let mut steps = 0;
    for fork in 0..=MAX {
        let forked = honest.forked(fork as usize, &other);
        for held_size in 0..=MAX {
            let held = head(&honest, held_size);
            for new in 0..=MAX {
                let proposed = head(&forked, new);
                // With full knowledge: the proposed tree begins with all that is held.
                let grown = new >= held_size && fork >= held_size;
                for old in 0..=MAX {
                    let right = if old <= new { forked.proof(old, new) } else { Vec::new() };
                    check(held, old, proposed, right.clone(), expected(held, old, proposed, grown, true));
                    let others = [honest.proof(old.min(new), new), forked.proof(old.min(new), MAX)];
                    for proof in wrong_proofs(&right, others) {
                        check(held, old, proposed, proof, expected(held, old, proposed, grown, false));
                    }
                    steps += u64::from(grown && old == held_size);
                }
            }
        }
    }
    // For each fork, the pairs held <= new with held <= fork: the sum would be wrong if the loops were.
    let pairs = (0..=MAX).flat_map(|fork| (0..=fork).map(|held| MAX + 1 - held));
    assert_eq!(steps, pairs.sum::<u64>());
}

#[test]
fn a_root_that_no_proof_leads_to_is_rejected_except_from_the_empty_tree() {
    let tree = Reference::labelled("leaf", MAX);
    for held_size in 0..=MAX {
        for new in held_size + 1..=MAX {
            let proposed = TreeHead { size: size(new), root: leaf(b"made up") };
            let proof = tree.proof(held_size, new);
            let got = propose(&held(head(&tree, held_size)), held_size, proposed, proof, NOW);
            if held_size == 0 {
                assert!(matches!(got, Decision::Step(_)), "everything grows from the empty tree");
            } else {
                assert_eq!(got, Decision::Reject(Reject::Proof(ProofError::RootMismatch)));
            }
        }
    }
}

#[test]
fn an_empty_tree_with_another_root_is_rejected_whatever_is_held() {
    let tree = Reference::labelled("leaf", 3);
    let proposed = TreeHead { size: size(0), root: leaf(b"") };
    for held_size in 0..=3 {
        for old in 0..=3 {
            let got = propose(&held(head(&tree, held_size)), old, proposed, Vec::new(), NOW);
            assert_eq!(got, Decision::Reject(Reject::EmptyRoot));
        }
    }
}

#[test]
fn a_proof_from_size_0_must_be_empty() {
    let tree = Reference::labelled("leaf", 3);
    for new in 0..=3 {
        let got = propose(&Held::EMPTY, 0, head(&tree, new), vec![leaf(b"x")], NOW);
        assert_eq!(got, Decision::Reject(Reject::Proof(ProofError::WrongLength)));
    }
}

fn step(held: &Held, proposed: TreeHead, proof: Vec<Hash>, now: UnixMillis) -> Step {
    match propose(held, held.head.size.get(), proposed, proof, now) {
        Decision::Step(step) => step,
        other => panic!("{other:?}"),
    }
}

#[test]
fn time_never_falls_also_when_a_head_is_issued_again() {
    let tree = Reference::labelled("leaf", 7);
    let held = held(head(&tree, 5));
    for (now, want) in
        [(0, NOW.0), (NOW.0 - 1, NOW.0), (NOW.0, NOW.0), (NOW.0 + 1, NOW.0 + 1), (u64::MAX, u64::MAX)]
    {
        for new in [5, 7] {
            let step = step(&held, head(&tree, new), tree.proof(5, new), UnixMillis(now));
            assert_eq!(step.next().time, UnixMillis(want), "now {now}, size {new}");
            assert_eq!(step.next().term, held.term);
        }
    }
}

#[derive(Default)]
struct Store {
    full: bool,
    calls: Vec<usize>,
}

impl Persist for Store {
    type Error = &'static str;

    fn persist(&mut self, steps: &[Step]) -> Result<(), &'static str> {
        self.calls.push(steps.len());
        if self.full { Err("the disk is full") } else { Ok(()) }
    }
}

/// The other half of the promise, that nothing but `commit` makes a `Committed`, is a doc-test that must not compile.
#[test]
fn what_could_not_be_persisted_cannot_be_signed() {
    let tree = Reference::labelled("leaf", 2);
    let steps = || {
        vec![
            step(&Held::EMPTY, head(&tree, 1), Vec::new(), NOW),
            step(&Held::EMPTY, head(&tree, 2), Vec::new(), NOW),
        ]
    };
    let mut store = Store { full: true, ..Store::default() };
    assert_eq!(commit(steps(), &mut store).unwrap_err(), "the disk is full");
    store.full = false;
    let committed = commit(steps(), &mut store).unwrap();
    assert_eq!(store.calls, [2, 2], "one call, so one sync, for all of them");

    let policy = Policy::of_log(key().vkey().clone());
    for (committed, leaves) in committed.into_iter().zip([1, 2]) {
        assert_eq!(committed.head(), head(&tree, leaves));
        let note = committed.sign(&key()).unwrap();
        let opened = Checkpoint::open(note.as_bytes(), &policy).unwrap();
        assert_eq!((opened.head(), opened.origin()), (head(&tree, leaves), &origin()));
        assert_eq!(opened.log_signed(), note);
    }
}

#[test]
fn a_key_of_another_name_signs_nothing() {
    let tree = Reference::labelled("leaf", 1);
    let steps = vec![step(&Held::EMPTY, head(&tree, 1), Vec::new(), NOW)];
    let committed = commit(steps, &mut Store::default()).unwrap().remove(0);
    let other = SigningKey::from_seed(KeyName::new("other.example").unwrap(), &[7; 32].into());
    let error = committed.sign(&other).unwrap_err();
    let want = "the signing key is named other.example, but the head is of the log log.example/decide";
    assert_eq!(error.to_string(), want);
}
