//! The attack that witnesses are there to prevent: the operator of a log, with its key, shows two histories to two readers, and
//! wants a quorum under both. The honest witnesses are the keeper itself; the quorums are a reader's policy.

use std::sync::Arc;

use epigraph_core::checkpoint::encode_text;
use epigraph_core::cosignature::CosignedAt;
use epigraph_core::note::{self, SignatureLine};
use epigraph_core::policy::WitnessSet;
use epigraph_core::progress::Proposal;
use epigraph_core::{Checkpoint, CosigningKey, Evidence, KeyName, Policy, TreeHead, VKey};
use epigraph_store::head::HeadStore;
use epigraph_store::tree::MemoryTree;
use epigraph_witness::keeper::{Answer, Keeper};
use zeroize::Zeroizing;

use crate::support::*;

fn witness_key(place: usize) -> CosigningKey {
    let name = KeyName::new(format!("witness-{place}.example")).unwrap();
    CosigningKey::from_seed(name, &Zeroizing::new([100 + place as u8; 32]))
}

fn quorum(of: usize, threshold: usize) -> Policy {
    let vkeys: Vec<VKey> = (0..of).map(|place| witness_key(place).vkey().clone()).collect();
    Policy::of_witnesses(log_key(0).vkey(), &vkeys, threshold).unwrap()
}

/// A new witness, through its gate.
fn witness(place: usize) -> Keeper {
    let heads = HeadStore::open(Arc::new(store(1))).unwrap().0;
    let mut keeper = Keeper::new(heads, witness_key(place), YEAR_MS);
    keeper.pass(&origin(0), &[]).unwrap();
    keeper
}

/// Has a head of this tree cosigned by all means: from what the witness holds, from nothing, and with the proof of either tree.
fn by_all_means(
    keeper: &mut Keeper,
    trees: &[MemoryTree; 2],
    world: usize,
    new: u64,
) -> Option<SignatureLine> {
    let held = keeper.newest(&origin(0)).unwrap().map_or(0, |newest| newest.held.head.size.get());
    for old in [held, 0, new].into_iter().filter(|old| *old <= new) {
        for proof_of in [world, 1 - world] {
            let (origin, honest) = proposal(0, &trees[world], old, new);
            let proof = if old == 0 { Vec::new() } else { proof(&trees[proof_of], old, new) };
            if let Ok(Answer::Cosigned(cosigned)) =
                propose(keeper, (origin, Proposal { proof, ..honest }), NOW)
            {
                check_head(&cosigned.line, keeper.vkey(), &head(&trees[world], new));
                return Some(cosigned.line.clone());
            }
        }
    }
    None
}

fn check_head(line: &SignatureLine, vkey: &VKey, head: &TreeHead) {
    epigraph_core::cosignature::verify(&encode_text(&origin(0), head), line, vkey).unwrap();
}

fn blindly(place: usize, head: &TreeHead) -> SignatureLine {
    let time = CosignedAt::of(NOW).unwrap();
    witness_key(place).cosign_assertion(&encode_text(&origin(0), head), time)
}

/// The checkpoint that a reader is shown.
fn shown(head: &TreeHead, lines: &[SignatureLine]) -> Vec<u8> {
    let text = encode_text(&origin(0), head);
    let log = log_key(0).sign_assertion(&text);
    note::encode(&text, [&log].into_iter().chain(lines)).into_bytes()
}

/// A1: the log forks after every number of entries below 64, every witness is asked for both branches in either order, and whichever
/// of them are asked in which order, no two readers accept two histories. Seen to fail with a policy of 2 of 4, and with a
/// `decide` that takes a proof's old root for the held one.
#[test]
fn of_a_log_that_forks_at_any_size_honest_witnesses_never_make_two_quorums() {
    const WITNESSES: usize = 4;
    let policy = quorum(WITNESSES, 3);
    for fork in 0..64 {
        let trees = [tree(fork + 4, fork, 1), tree(fork + 4, fork, 2)];
        // The first entry that differs, at one size in both; and one branch longer than the other.
        for sizes in [[fork + 1, fork + 1], [fork + 1, fork + 3], [fork + 4, fork + 2]] {
            let heads = [head(&trees[0], sizes[0]), head(&trees[1], sizes[1])];
            // What each witness gives to each branch, by the branch that it is asked for first.
            let ask = |place: usize, first: usize| {
                let mut keeper = witness(place);
                if fork > 0 {
                    assert!(by_all_means(&mut keeper, &trees, 0, fork).is_some());
                }
                let mut lines = [None, None];
                for world in [first, 1 - first] {
                    lines[world] = by_all_means(&mut keeper, &trees, world, sizes[world]);
                }
                assert!(lines[first].is_some() && lines[1 - first].is_none(), "fork at {fork}, {sizes:?}");
                lines
            };
            let given: Vec<_> = (0..WITNESSES).map(|place| [ask(place, 0), ask(place, 1)]).collect();
            let mut quorums = [0, 0];
            for order in 0..1usize << WITNESSES {
                let accepted = [0, 1].map(|world| {
                    let lines: Vec<_> = (0..WITNESSES)
                        .filter_map(|place| given[place][order >> place & 1][world].clone())
                        .collect();
                    Checkpoint::open(&shown(&heads[world], &lines), &policy).is_ok()
                });
                assert!(accepted != [true, true], "fork at {fork}, {sizes:?}, order {order:b}");
                quorums
                    .iter_mut()
                    .zip(accepted)
                    .for_each(|(count, accepted)| *count += usize::from(accepted));
            }
            assert_eq!(
                quorums,
                [5, 5],
                "three or four of four went first to a branch in five of sixteen orders"
            );
        }
    }
}

/// A7: `faulty` witnesses cosign whatever they are asked for, a reader asks for `verifier` cosignatures and a monitor for `monitor`.
/// Two histories are accepted by the two exactly where `verifier + monitor <= witnesses + faulty` (DESIGN section 6), and then the
/// liars' cosignatures are evidence against each of them; so the model attacks as well as it can. Seen to fail with a
/// witness that cosigns both counted as honest, and with the honest ones given to one branch only.
#[test]
fn two_quorums_need_as_many_liars_as_the_arithmetic_says_and_convict_them() {
    let trees = [tree(8, 5, 1), tree(8, 5, 2)];
    let heads = [0, 1].map(|world| head(&trees[world], 8));
    for (witnesses, verifier, monitor) in
        [(1, 1, 1), (3, 2, 2), (4, 3, 3), (4, 2, 4), (5, 3, 4), (5, 3, 3), (6, 4, 4), (7, 5, 5)]
    {
        let policies = [quorum(witnesses, verifier), quorum(witnesses, monitor)];
        let honest: Vec<_> = (0..witnesses)
            .map(|place| [0, 1].map(|world| by_all_means(&mut witness(place), &trees, world, 8).unwrap()))
            .collect();
        for faulty in 0..=witnesses {
            let mut successes = Vec::new();
            // The liars come first; of the honest ones those with a bit go to the second branch.
            for split in 0..1usize << (witnesses - faulty) {
                let lines = [0, 1].map(|world| {
                    let given = |place: usize| match place.checked_sub(faulty) {
                        None => Some(blindly(place, &heads[world])),
                        Some(bit) if split >> bit & 1 == world => Some(honest[place][world].clone()),
                        Some(_) => None,
                    };
                    (0..witnesses).filter_map(given).collect::<Vec<_>>()
                });
                let notes = [0, 1].map(|world| shown(&heads[world], &lines[world]));
                if (0..2).all(|world| Checkpoint::open(&notes[world], &policies[world]).is_ok()) {
                    successes.push(notes);
                }
            }
            let possible = verifier + monitor <= witnesses + faulty;
            let what = format!("{faulty} of {witnesses}, {verifier} and {monitor}");
            assert_eq!(!successes.is_empty(), possible, "{what}");
            if verifier == monitor {
                assert_eq!(possible, !policies[0].analyse().withstands(faulty), "{what}");
            }
            for [one, other] in successes {
                let convicted: WitnessSet = (0..witnesses)
                    .filter(|place| Evidence::two_roots(witness_key(*place).vkey(), &one, &other).is_ok())
                    .collect();
                assert_eq!(convicted, WitnessSet::first(faulty), "{what}");
                assert!(Evidence::two_roots(log_key(0).vkey(), &one, &other).is_ok(), "and against the log");
            }
        }
    }
}
