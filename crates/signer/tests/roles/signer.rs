//! Nothing is signed that is not durable, nothing is signed twice in two ways, and no start changes that.

use std::sync::Arc;

use epigraph_core::progress::Proposal;
use epigraph_core::{Checkpoint, Hash, Origin, TreeHead, UnixMillis};
use epigraph_signer::handle::SignerHandle;
use epigraph_signer::publish::{AskError, AskSigner};
use epigraph_signer::signer::{Answer, MAX_IDLE_MS, Request, Signer, SignerError};
use epigraph_signer::status::Kind;
use epigraph_store::file::fault::{Fault, FaultDir, Outcome};
use epigraph_store::file::memory::{MemoryDir, Survival, by_seed};
use epigraph_store::head::{HeadError, HeadStore};
use epigraph_store::tree::MemoryTree;

use crate::support::*;

fn ask(signer: &mut Signer, proposal: Proposal) -> Result<Answer, SignerError> {
    signer.sign_checkpoint(in_term(proposal), NOW)
}

/// Signs the head at `new` or fails the test.
fn sign(signer: &mut Signer, tree: &MemoryTree, new: u64) -> String {
    let held = signer.head(&origin()).unwrap().head.size.get();
    match ask(signer, proposal(tree, held, new)).unwrap() {
        Answer::Signed(note) => note,
        other => panic!("{other:?}"),
    }
}

/// What a power cut, or the end of the process alone, leaves of the directory.
fn crashes(memory: &MemoryDir) -> impl Iterator<Item = MemoryDir> {
    (0..7).map(|number| {
        let cut = memory.duplicate();
        match number {
            0 => cut.power_cut(|_| Survival::Lost),
            1 => cut.power_cut(|_| Survival::Kept),
            2 => {}
            seed => cut.power_cut(by_seed(seed)),
        }
        cut
    })
}

#[test]
fn what_it_signs_is_the_checkpoint_that_was_proposed() {
    let tree = tree(20, 20, 1);
    let mut signer = open(Arc::new(store())).unwrap();
    for at in [0, 1, 1, 7, 20, 20] {
        let note = sign(&mut signer, &tree, at);
        let checkpoint = Checkpoint::open(note.as_bytes(), &policy()).unwrap();
        assert_eq!((checkpoint.head(), checkpoint.origin()), (head(&tree, at), &origin()));
        assert_eq!(signer.head(&origin()).unwrap().head, head(&tree, at));
    }
}

/// C6. Seen to fail with the sync left out of the head store's commit.
#[test]
fn no_signature_leaves_before_its_head_is_durable_whatever_fails() {
    const SIZES: [u64; 4] = [0, 3, 7, 7];
    let outcomes =
        [Outcome::NotApplied, Outcome::Applied, Outcome::Torn(64), Outcome::Torn(4_096), Outcome::NoSpace];
    let tree = tree(7, 7, 1);
    let operations = {
        let dir = FaultDir::new(Arc::new(store()));
        let mut signer = open(Arc::new(dir.clone())).unwrap();
        SIZES.iter().for_each(|at| drop(sign(&mut signer, &tree, *at)));
        dir.operations().len()
    };
    for nth in 0..operations {
        for (outcome, crash) in outcomes.into_iter().flat_map(|outcome| [(outcome, false), (outcome, true)]) {
            let what = format!("operation {nth}, {outcome:?}, crash {crash}");
            let memory = store();
            let dir = FaultDir::new(Arc::new(memory.clone()));
            dir.inject(Fault { operation: None, nth, outcome, crash });
            let (mut signed, mut tried) = (head(&tree, 0), head(&tree, 0));
            let mut notes = Vec::new();
            if let Ok(mut signer) = open(Arc::new(dir.clone())) {
                for at in SIZES {
                    tried = head(&tree, at);
                    match ask(&mut signer, proposal(&tree, signed.size.get(), at)) {
                        Ok(Answer::Signed(note)) => notes.push((at, note)),
                        Ok(other) => panic!("{what}: {other:?}"),
                        Err(SignerError::Store(HeadError::Fatal { .. })) => {
                            let again = ask(&mut signer, proposal(&tree, signed.size.get(), at));
                            assert!(matches!(again, Err(SignerError::Store(HeadError::Failed))), "{what}");
                            break;
                        }
                        Err(error) => panic!("{what}: {error}"),
                    }
                    signed = tried;
                    // Whatever happens from here on, the head whose signature has left is held.
                    for crashed in crashes(&memory) {
                        let signer = open(Arc::new(crashed)).unwrap();
                        assert_eq!(
                            signer.head(&origin()).unwrap().head,
                            signed,
                            "{what}: after signing {at}"
                        );
                    }
                }
            }
            assert!(dir.fired(), "{what}");
            for crashed in crashes(&memory) {
                let mut signer = open(Arc::new(crashed)).unwrap_or_else(|error| panic!("{what}: {error}"));
                let held = signer.head(&origin()).unwrap().head;
                assert!(held == signed || held == tried, "{what}: {held:?}");
                // Asked again, it signs the same text for the same size.
                let again = sign(&mut signer, &tree, tried.size.get());
                assert_eq!(again, note_of(&key(), &origin(), &tried), "{what}");
                assert!(
                    notes.iter().all(|(at, note)| *note == note_of(&key(), &origin(), &head(&tree, *at)))
                );
            }
        }
    }
}

#[test]
fn a_restart_signs_the_same_note_again() {
    let tree = tree(9, 9, 1);
    let memory = store();
    for at in [0, 4, 9] {
        let first = sign(&mut open(Arc::new(memory.clone())).unwrap(), &tree, at);
        for crashed in crashes(&memory) {
            let mut signer = open(Arc::new(crashed)).unwrap();
            assert_eq!(signer.head(&origin()).unwrap().head, head(&tree, at));
            assert_eq!(sign(&mut signer, &tree, at), first);
        }
    }
}

#[test]
fn what_is_not_growth_signs_nothing_and_changes_nothing() {
    let (ours, other) = (tree(20, 20, 1), tree(20, 5, 2));
    let memory = store();
    let mut signer = open(Arc::new(memory.clone())).unwrap();
    sign(&mut signer, &ours, 8);
    let before = memory.content("heads").unwrap();
    let garbage = |length| vec![Hash::from_bytes([3; 32]); length];
    let with_proof = |proof, old, new| Proposal { proof, ..proposal(&ours, old, new) };
    let empty = TreeHead { size: size(0), root: Hash::from_bytes([1; 32]) };

    let check = |signer: &mut Signer, proposal: Proposal, kind: &str| {
        let asked = format!("{proposal:?}");
        let got = match ask(signer, proposal).unwrap() {
            Answer::Signed(_) => "signed",
            Answer::Stale(held) => {
                assert_eq!(held, head(&ours, 8));
                "stale"
            }
            Answer::Conflict(_) => "conflict",
            Answer::Reject(_) => "reject",
        };
        assert_eq!(got, kind, "{asked}");
        assert_eq!(signer.head(&origin()).unwrap().head, head(&ours, 8));
        assert!(memory.content("heads").unwrap() == before, "{asked}: the file changed");
    };
    check(&mut signer, proposal(&ours, 5, 12), "stale");
    check(&mut signer, proposal(&ours, 0, 12), "stale");
    check(&mut signer, proposal(&ours, 9, 12), "stale");
    check(&mut signer, proposal(&ours, 3, 5), "stale");
    check(&mut signer, proposal(&ours, 0, 0), "stale");
    check(&mut signer, proposal(&other, 8, 8), "conflict");
    check(&mut signer, proposal(&other, 0, 8), "conflict");
    check(&mut signer, with_proof(garbage(3), 8, 12), "reject");
    check(&mut signer, with_proof(garbage(63), 8, 12), "reject");
    check(&mut signer, with_proof(vec![], 8, 12), "reject");
    check(&mut signer, with_proof(garbage(1), 8, 8), "reject");
    check(&mut signer, Proposal { head: head(&other, 12), ..proposal(&ours, 8, 12) }, "reject");
    check(&mut signer, Proposal { old_size: size(13), ..proposal(&ours, 8, 12) }, "reject");
    check(&mut signer, Proposal { head: empty, ..proposal(&ours, 0, 0) }, "reject");
    sign(&mut signer, &ours, 12);
}

#[test]
fn a_log_without_a_key_or_without_a_head_is_refused() {
    let tree = tree(4, 4, 1);
    let stranger = Origin::new("other.example").unwrap();
    let memory = store();
    let before = memory.content("heads").unwrap();
    let (heads, _) = HeadStore::open(Arc::new(memory.clone())).unwrap();
    let mut wrong_key = Signer::new(vec![key_of("other.example", 7)], heads);
    // The store knows the log, but the key carries another name.
    let no_key = ask(&mut wrong_key, proposal(&tree, 0, 4));
    assert!(matches!(no_key, Err(SignerError::UnknownLog(_))), "{no_key:?}");
    // The key is there, but nobody initialised a head for it: that is no fresh start.
    let no_head = wrong_key.pass_gate(&stranger, &[]);
    assert!(matches!(no_head, Err(SignerError::Store(HeadError::UnknownOrigin(_)))), "{no_head:?}");
    let request = Request { origin: stranger, ..in_term(proposal(&tree, 0, 4)) };
    let gated = wrong_key.sign_checkpoint(request, NOW);
    assert!(matches!(gated, Err(SignerError::Gated(_))), "{gated:?}");
    assert!(memory.content("heads").unwrap() == before);
}

#[test]
fn of_two_forks_at_any_two_sizes_never_both_are_signed_also_across_restarts_and_power_cuts() {
    const LEAVES: u64 = 20;
    for fork in 0..LEAVES {
        let (ours, theirs) = (tree(LEAVES, fork, 1), tree(LEAVES, fork, 2));
        for signed in fork + 1..=LEAVES {
            let memory = store();
            sign(&mut open(Arc::new(memory.clone())).unwrap(), &ours, signed);
            for crashed in crashes(&memory).take(4) {
                let mut signer = open(Arc::new(crashed)).unwrap();
                for wanted in fork + 1..=LEAVES {
                    for old in [0, fork, signed, wanted].into_iter().filter(|old| *old <= wanted) {
                        for witness in [&ours, &theirs] {
                            let head = head(&theirs, wanted);
                            let forged = Proposal { head, ..proposal(witness, old, wanted) };
                            let answer = ask(&mut signer, forged).unwrap();
                            assert!(
                                !matches!(answer, Answer::Signed(_)),
                                "fork at {fork}: {signed} was signed, then {wanted} from {old}"
                            );
                        }
                    }
                }
                assert_eq!(signer.head(&origin()).unwrap().head, head(&ours, signed));
            }
        }
    }
}

/// K1: the time of a head never falls, whatever the clock does in between; and one that cannot be right signs nothing, and leaves
/// nothing on the disk. Seen to fail with `now` for the larger of the two in `decide`, without the comparison, and with `>=` for `>`.
#[test]
fn the_time_of_a_head_never_falls_and_an_impossible_clock_signs_nothing() {
    const HOUR: u64 = 3_600_000;
    let tree = tree(20, 20, 1);
    let memory = store();
    let held = |memory: &MemoryDir| {
        let (heads, _) = HeadStore::open(Arc::new(memory.duplicate())).unwrap();
        heads.get(&origin()).unwrap().clone()
    };
    for now in [1_700_000_000_000, 1_800_000_000_000] {
        let mut signer = open(Arc::new(memory.clone())).unwrap();
        let mut at = |clock: u64, time: Result<u64, ()>| {
            let before = memory.content("heads").unwrap();
            let from = signer.head(&origin()).unwrap().head.size.get();
            let request = in_term(proposal(&tree, from, from + 1));
            match (signer.sign_checkpoint(request, UnixMillis(clock)), time) {
                (Ok(Answer::Signed(_)), Ok(time)) => {
                    assert_eq!((held(&memory).head.size.get(), held(&memory).time.0), (from + 1, time));
                }
                (Err(error @ SignerError::ClockAhead { .. }), Err(())) => {
                    assert!(memory.content("heads").unwrap() == before, "the file changed");
                    assert!(error.to_string().contains(&clock.to_string()), "{error}");
                }
                other => panic!("{clock}: {other:?}"),
            }
        };
        at(now, Ok(now));
        at(now + HOUR, Ok(now + HOUR));
        at(now - HOUR, Ok(now + HOUR));
        at(0, Ok(now + HOUR));
        at(now + HOUR + MAX_IDLE_MS + 1, Err(()));
        at(now + 10 * 366 * 24 * HOUR, Err(()));
        at(u64::MAX, Err(()));
        // Right again.
        at(now + HOUR + 1, Ok(now + HOUR + 1));
        let status = signer.status().look().remove(&origin()).unwrap();
        assert_eq!((status.refused(Kind::ClockSkew), status.refused(Kind::Failed)), (3, 0));
    }
    let last = held(&memory).time.0;
    let mut signer = open(Arc::new(memory.clone())).unwrap();
    let size = signer.head(&origin()).unwrap().head.size.get();
    let latest = UnixMillis(last + MAX_IDLE_MS);
    let signed = signer.sign_checkpoint(in_term(proposal(&tree, size, size + 1)), latest);
    assert!(matches!(signed, Ok(Answer::Signed(_))), "{signed:?}");
}

/// The log waits for a signer whose clock is wrong, as for one that is being started. Seen to fail with the refusal taken as fatal.
#[tokio::test]
async fn a_signer_with_an_impossible_clock_is_waited_for() {
    let tree = tree(9, 9, 1);
    let mut signer = open(Arc::new(store())).unwrap();
    sign(&mut signer, &tree, 4);
    let (handle, _failure) = SignerHandle::spawn(signer, Arc::new(Always(UnixMillis(u64::MAX)))).unwrap();
    let answer = AskSigner::sign_checkpoint(&handle, in_term(proposal(&tree, 4, 9))).await;
    assert!(matches!(&answer, Err(AskError::Unavailable(why)) if why.contains("clock")), "{answer:?}");
}
