//! W5 cannot happen to ours: whatever is proposed, whatever the disk does, no two of its cosignatures are of two histories.

use std::sync::Arc;

use epigraph_core::TreeHead;
use epigraph_core::cosignature::CosignedAt;
use epigraph_core::progress::Proposal;
use epigraph_store::file::fault::{Fault, FaultDir, Outcome};
use epigraph_store::file::memory::by_seed;
use epigraph_store::tree::MemoryTree;
use epigraph_witness::gate::Sighting;
use epigraph_witness::keeper::{Answer, Keeper};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::support::*;

const LEAVES: u64 = 16;
const LOGS: usize = 2;
const WORLDS: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    /// A batch of proposals.
    Propose(Vec<Proposed>),
    /// The n-th operation of the disk fails, and the process ends with it.
    Break(usize, Outcome),
    /// The power goes, and what was not synced survives by this seed; then a start.
    PowerCut(u64),
    /// The process ends by itself; then a start.
    Restart,
}

#[derive(Clone, Debug)]
struct Proposed {
    log: usize,
    world: usize,
    /// Whose proof comes along.
    proof_of: usize,
    /// `None`: what the witness holds, as a log would learn it.
    old: Option<u64>,
    new: u64,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let proposed = (0..LOGS, 0..WORLDS, 0..WORLDS, proptest::option::weighted(0.3, 0..=LEAVES), 0..=LEAVES)
        .prop_map(|(log, world, proof_of, old, new)| Proposed { log, world, proof_of, old, new });
    let outcome = prop_oneof![
        Just(Outcome::NotApplied),
        Just(Outcome::Applied),
        Just(Outcome::Torn(512)),
        Just(Outcome::NoSpace)
    ];
    let step = prop_oneof![
        8 => vec(proposed, 1..5).prop_map(Step::Propose),
        1 => (0..8_usize, outcome).prop_map(|(nth, outcome)| Step::Break(nth, outcome)),
        1 => any::<u64>().prop_map(Step::PowerCut),
        1 => Just(Step::Restart),
    ];
    vec(step, 1..40)
}

/// Whether one of the heads is the beginning of the other, by the trees themselves and not by a proof.
fn consistent(a: &(usize, TreeHead), b: &(usize, TreeHead), worlds: &[MemoryTree]) -> bool {
    let (small, large) = if a.1.size <= b.1.size { (a, b) } else { (b, a) };
    head(&worlds[large.0], small.1.size.get()) == small.1
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// W5. Broken to see it fail: `decide` takes the proof's old root for the held one.
    #[test]
    fn no_two_cosignatures_are_of_two_histories(steps in steps()) {
        // Three histories that part after 0 and 5 leaves.
        let worlds = [tree(LEAVES, 5, 1), tree(LEAVES, 5, 2), tree(LEAVES, 0, 3)];
        let memory = store(LOGS);
        let mut dir = FaultDir::new(Arc::new(memory.clone()));
        let mut keeper: Option<Keeper> = open(Arc::new(dir.clone()), LOGS).ok();
        // What left the witness, for each log: the world and the head.
        let mut given: Vec<Vec<(usize, TreeHead)>> = vec![Vec::new(); LOGS];
        let mut shown: Vec<Vec<Sighting>> = vec![Vec::new(); LOGS];
        let mut now = NOW;
        for step in steps {
            now.0 += 3_000;
            let restart = match step {
                Step::Restart => true,
                Step::PowerCut(seed) => {
                    memory.power_cut(by_seed(seed));
                    true
                }
                Step::Break(nth, outcome) => {
                    dir.inject(Fault { operation: None, nth, outcome, crash: true });
                    false
                }
                Step::Propose(proposals) => {
                    let Some(running) = keeper.as_mut() else { continue };
                    let asked: Vec<_> = proposals
                        .iter()
                        .map(|proposed| {
                            let newest = running.newest(&origin(proposed.log)).unwrap();
                            let held = newest.map_or(0, |newest| newest.held.head.size.get());
                            let old = proposed.old.unwrap_or(held).min(proposed.new);
                            let (origin, honest) = proposal(proposed.log, &worlds[proposed.world], old, proposed.new);
                            let proof = proof(&worlds[proposed.proof_of], old, proposed.new);
                            (origin, Proposal { proof, ..honest })
                        })
                        .collect();
                    match running.propose(asked, now) {
                        Err(_) => true,
                        Ok(answers) => {
                            for (proposed, answer) in proposals.iter().zip(answers) {
                                if let Ok(Answer::Cosigned(cosigned)) = answer {
                                    let at = head(&worlds[proposed.world], proposed.new);
                                    let time = check_line(&cosigned.line, proposed.log, &at);
                                    let time = CosignedAt::new(time).unwrap();
                                    shown[proposed.log].push(Sighting { head: at, time });
                                    given[proposed.log].push((proposed.world, at));
                                }
                            }
                            false
                        }
                    }
                }
            };
            if restart {
                dir = FaultDir::new(Arc::new(memory.clone()));
                let mut opened = open_gated(Arc::new(dir.clone())).unwrap();
                for (log, shown) in shown.iter().enumerate() {
                    // All that ever left it is shown to it, and is never taken for a rollback.
                    opened.pass(&origin(log), shown).unwrap();
                }
                keeper = Some(opened);
            }
            for (log, given) in given.iter().enumerate() {
                for pair in given.windows(2) {
                    prop_assert!(consistent(&pair[0], &pair[1], &worlds), "{log}: {pair:?}");
                }
                if let (Some(first), Some(last)) = (given.first(), given.last()) {
                    prop_assert!(consistent(first, last, &worlds), "{log}");
                }
            }
        }
        for given in &given {
            for a in given {
                prop_assert!(given.iter().all(|b| consistent(a, b, &worlds)), "{:?}", given);
            }
        }
    }
}
