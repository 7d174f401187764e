//! What the analysis of policies says, against brute force over every set of witnesses.

use epigraph_core::policy::analysis::{Analysis, MAX_QUORUMS, TooManyQuorums, overlap};
use epigraph_core::policy::{Policy, WitnessSet};

use crate::policies::{lines, witness};

fn policy(witnesses: usize, rest: &str) -> Policy {
    (lines(witnesses) + rest).parse().unwrap()
}

fn flat(threshold: usize, of: usize) -> Policy {
    let names: String = (0..of).map(|at| format!(" w{at}")).collect();
    policy(of, &format!("group g {threshold}{names}\nquorum g\n"))
}

/// Every set of the first `count` witnesses.
fn sets(count: usize) -> impl Iterator<Item = WitnessSet> + Clone {
    (0..1u32 << count).map(move |bits| (0..count).filter(|at| bits >> at & 1 == 1).collect())
}

/// The sets that meet a policy, by asking it about each.
fn quorums(policy: &Policy) -> Vec<WitnessSet> {
    sets(policy.witnesses().len()).filter(|set| policy.is_met_by(*set)).collect()
}

const NESTED: [&str; 6] = [
    "quorum w3\n",
    "group a 2 w0 w1 w2\ngroup b any w3 w4\ngroup q all a b\nquorum q\n",
    "group a any w0 w1\ngroup b any w2 w3\ngroup c any w4 w5\ngroup q 2 a b c\nquorum q\n",
    "group a all w0 w1\ngroup b 2 w2 w3 w4\ngroup q any a b\nquorum q\n",
    "group a 2 w0 w1 w2\ngroup b 2 a w3 w4\ngroup q 2 b w5\nquorum q\n",
    "group a 2 w0 w1 w2\ngroup aside any w3 a\nquorum a\n",
];

/// Flat policies up to seven witnesses, and nested ones.
fn policies() -> impl Iterator<Item = Policy> {
    let nested = NESTED.into_iter().map(|rest| policy(6, rest));
    (1..=7).flat_map(|of| (1..=of).map(move |threshold| flat(threshold, of))).chain(nested)
}

/// DESIGN: `k1 + k2 > n + f`. Broken to see it fail: `2 * threshold` as `threshold`, `len() > faulty` as `>=`.
#[test]
fn liars_that_can_make_two_quorums() {
    for policy in policies() {
        let quorums = quorums(&policy);
        // Whoever is in both quorums signed twice.
        let pairs = quorums.iter().flat_map(|one| quorums.iter().map(|other| one.intersection(*other)));
        let fewest = pairs.map(WitnessSet::len).min().unwrap();
        let Analysis { colluders, .. } = policy.analyse();
        assert_eq!(colluders.len(), fewest, "{}", policy.to_text());
        assert!(quorums.iter().any(|one| {
            quorums.iter().any(|other| one.intersection(*other).without(colluders).is_empty())
        }));
        for faulty in 0..8 {
            assert_eq!(policy.analyse().withstands(faulty), fewest > faulty);
        }
    }
    for of in 1..=7usize {
        for threshold in 1..=of {
            for faulty in 0..of {
                let analysis = flat(threshold, of).analyse();
                assert_eq!(
                    analysis.withstands(faulty),
                    2 * threshold > of + faulty,
                    "{threshold} of {of}, {faulty}"
                );
            }
        }
    }
    assert!(flat(3, 4).analyse().withstands(1) && !flat(3, 4).analyse().withstands(2));
    assert!(flat(2, 3).analyse().withstands(0) && !flat(2, 3).analyse().withstands(1));
}

/// Broken to see it fail: the `+ 1` of the blockers left out.
#[test]
fn witnesses_that_may_be_down() {
    for policy in policies() {
        let count = policy.witnesses().len();
        let all = WitnessSet::first(count);
        let up = |down: WitnessSet| policy.is_met_by(all.without(down));
        let analysis = policy.analyse();
        let blocking = sets(count).filter(|down| !up(*down)).map(WitnessSet::len).min().unwrap();
        assert_eq!(analysis.may_miss(), Some(blocking - 1), "{}", policy.to_text());
        assert!(!up(analysis.blockers.unwrap()), "{}", policy.to_text());
        let single: WitnessSet = (0..count).filter(|at| !up([*at].into_iter().collect())).collect();
        assert_eq!(analysis.single_points, single, "{}", policy.to_text());
        let largest = |down: &WitnessSet| {
            let more = |at: usize| down.contains(at) || !up(down.union([at].into_iter().collect()));
            up(*down) && (0..count).all(more)
        };
        let mut want: Vec<_> = sets(count).filter(largest).collect();
        let mut got = analysis.may_be_down.unwrap();
        want.sort();
        got.sort();
        assert_eq!(got, want, "{}", policy.to_text());
    }
}

/// DESIGN section 4, the gate: after any f of those that answered are taken away, the rest meets every quorum.
/// Broken to see it fail: the quorum counted among those that answered instead of among the others.
#[test]
fn answers_that_are_enough() {
    for policy in policies() {
        let (count, quorums) = (policy.witnesses().len(), quorums(&policy));
        let meets_all = |rest: WitnessSet| quorums.iter().all(|quorum| !quorum.intersection(rest).is_empty());
        for answered in sets(count) {
            for faulty in 0..=3 {
                let mut taken =
                    sets(count).filter(|taken| taken.len() <= faulty && taken.without(answered).is_empty());
                let want = taken.all(|taken| meets_all(answered.without(taken)));
                assert_eq!(
                    policy.enough_answers(answered, faulty),
                    want,
                    "{answered:?} {faulty} {}",
                    policy.to_text()
                );
            }
        }
    }
    for of in 1..=7usize {
        for threshold in 1..=of {
            for faulty in 0..of {
                for answered in 0..=of {
                    let enough = flat(threshold, of).enough_answers(WitnessSet::first(answered), faulty);
                    assert_eq!(
                        enough,
                        answered > of - threshold + faulty,
                        "{answered} of {threshold}/{of}, {faulty}"
                    );
                }
            }
        }
    }
    assert!(!flat(1, 1).enough_answers(WitnessSet::first(1), usize::MAX));
    assert!(policy(2, "quorum none\n").enough_answers(WitnessSet::EMPTY, 1), "no witness is asked");
}

/// The least that a quorum of each have in common, by trying all pairs; `w3` of one is `w3` of the other.
fn least_common(old: &Policy, new: &Policy) -> usize {
    let pairs =
        quorums(old).into_iter().flat_map(|one| quorums(new).into_iter().map(move |other| (one, other)));
    pairs.map(|(one, other)| one.intersection(other).len()).min().unwrap()
}

/// Broken to see it fail: witnesses compared by their place.
#[test]
fn a_change_of_policy_keeps_old_and_new_quorums_meeting() {
    let some = || policies().filter(|policy| policy.witnesses().len() >= 4);
    for old in some() {
        for new in some() {
            let found = overlap(&old, &new).unwrap();
            let least = least_common(&old, &new);
            assert_eq!(found.common.len(), least, "{}{}", old.to_text(), new.to_text());
            assert!(old.is_met_by(found.old_quorum) && new.is_met_by(found.new_quorum));
            let common = found.old_quorum.intersection(found.new_quorum);
            assert_eq!(common.iter().map(|at| witness(at).vkey().clone()).collect::<Vec<_>>(), found.common);
            assert!((0..4).all(|faulty| found.withstands(faulty) == (least > faulty)));
        }
        assert_eq!(overlap(&old, &old).unwrap().common.len(), old.analyse().colluders.len());
    }
}

#[test]
fn a_witness_is_its_key_not_its_name_or_place() {
    // w1, w2 and w3 of the old policy, in another order and under each other's names.
    let key = |number: usize| witness(number).vkey().to_string();
    let new = format!("witness w3 {}\nwitness w2 {}\nwitness w1 {}\n", key(1), key(2), key(3));
    let new: Policy = format!("{}{new}group g all w1 w2 w3\nquorum g\n", lines(0)).parse().unwrap();
    let found = overlap(&flat(3, 4), &new).unwrap();
    assert_eq!(found.common.len(), 2);
    let keys: Vec<_> = found.new_quorum.iter().map(|at| new.witnesses()[at].vkey.clone()).collect();
    assert!(found.common.iter().all(|key| keys.contains(key)));
    // The same names and places with other keys have nothing in common.
    let strangers: String = (0..4).map(|at| format!("witness w{at} {}\n", witness(at + 10).vkey())).collect();
    let strangers = format!("{}{strangers}group g 3 w0 w1 w2 w3\nquorum g\n", lines(0)).parse().unwrap();
    assert!(overlap(&flat(3, 4), &strangers).unwrap().common.is_empty());
    assert!(overlap(&strangers, &policy(4, "quorum none\n")).unwrap().common.is_empty());
}

#[test]
fn what_cannot_be_enumerated_is_refused() {
    assert_eq!(flat(10, 20).smallest_quorums().map(|quorums| quorums.len()), Ok(184_756));
    const { assert!(184_756 <= MAX_QUORUMS) };
    for (threshold, of) in [(11, 22), (32, 64), (2, 64)] {
        let policy = flat(threshold, of);
        let small = threshold == 2;
        assert_eq!(policy.smallest_quorums().is_err(), !small, "{threshold} of {of}");
        let analysis = policy.analyse();
        assert_eq!(analysis.colluders.len(), (2 * threshold).saturating_sub(of));
        assert_eq!(analysis.may_be_down.is_err(), !small);
        // One side that can be enumerated is enough.
        assert_eq!(overlap(&policy, &flat(64, 64)).unwrap().common.len(), threshold);
        assert_eq!(overlap(&flat(64, 64), &policy).unwrap().common.len(), threshold);
    }
    assert_eq!(overlap(&flat(32, 64), &flat(31, 64)), Err(TooManyQuorums));
    // All of many: one quorum, although most halves of it are many.
    assert_eq!(flat(64, 64).smallest_quorums(), Ok(vec![WitnessSet::first(64)]));
}

#[test]
fn without_a_quorum_nobody_is_needed() {
    let analysis = policy(3, "quorum none\n").analyse();
    assert_eq!((analysis.colluders, analysis.blockers), (WitnessSet::EMPTY, None));
    assert_eq!((analysis.may_miss(), analysis.single_points), (None, WitnessSet::EMPTY));
    assert_eq!(analysis.may_be_down, Ok(vec![WitnessSet::first(3)]));
    assert!(!analysis.withstands(0), "the log alone can fork");
}
