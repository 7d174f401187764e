//! The witnesses' part of the gate: who must have answered, and what they may hold.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use epigraph_core::policy::WitnessSet;
use epigraph_core::progress::Proposal;
use epigraph_core::{Origin, TreeHead};
use epigraph_rpc::SpiffeId;
use epigraph_signer::publish::ask::{AskWitness, Reply};
use epigraph_signer::publish::gate::{Gate, Held, Verdict, WentBack, judge, pass};
use tokio::sync::mpsc;

use crate::support::*;

fn ours(leaves: u64) -> TreeHead {
    head(&tree(20, 20, 1), leaves)
}

fn theirs(leaves: u64) -> TreeHead {
    head(&tree(40, 2, 2), leaves)
}

/// A log of 12 entries with witnesses of which `threshold` must cosign and one may lie.
fn decide(
    count: usize,
    threshold: usize,
    answers: &[(usize, Option<TreeHead>)],
) -> Result<Verdict, Box<WentBack>> {
    let tree = Arc::new(tree(20, 20, 1));
    let answers: Held = answers.iter().copied().collect();
    judge(&origin(), &quorum(count, threshold), 1, ours(12), &answers, &*root_of(&tree))
}

fn waits_for(places: &[usize]) -> Result<Verdict, Box<WentBack>> {
    Ok(Verdict::Wait(places.iter().copied().collect::<WitnessSet>()))
}

/// R6: for k of n with one that may lie, n - k + 2 must have answered. Seen to fail with `faulty` taken as 0.
#[test]
fn enough_is_what_still_meets_every_quorum_without_the_liars() {
    let five = Some(ours(5));
    assert_eq!(decide(4, 3, &[]), waits_for(&[0, 1, 2, 3]));
    assert_eq!(decide(4, 3, &[(0, five), (2, None)]), waits_for(&[1, 3]));
    assert_eq!(decide(4, 3, &[(0, five), (2, None), (3, five)]), Ok(Verdict::Pass));
    assert_eq!(decide(3, 2, &[(0, five), (1, five)]), waits_for(&[2]));
    assert_eq!(decide(3, 2, &[(0, five), (1, five), (2, None)]), Ok(Verdict::Pass));
    assert_eq!(decide(4, 3, &[(0, Some(ours(12))), (1, Some(ours(0))), (2, five)]), Ok(Verdict::Pass));
}

/// R1, R4: one witness that holds more, or something else, under the log's own key is enough to refuse, however few answered.
/// Seen to fail with the roots not compared, and with the sizes not compared.
#[test]
fn what_a_witness_holds_and_the_log_does_not_is_a_refusal() {
    for (held, says) in [
        (ours(13), ["went back", "has 12", "holds 13"]),
        (theirs(40), ["went back", "has 12", "holds 40"]),
        (theirs(12), ["another history", "at size 12", "witness-1.example"]),
        (theirs(5), ["another history", "at size 5", "witness-1.example"]),
    ] {
        let refused = decide(4, 3, &[(1, Some(held))]).unwrap_err().to_string();
        assert!(says.iter().all(|says| refused.contains(says)), "{refused}");
        assert!(refused.contains(&held.root.to_string()), "{refused}");
    }
    // Before the fork it is the same history.
    assert_eq!(decide(4, 3, &[(1, Some(theirs(2)))]), waits_for(&[0, 2, 3]));
}

/// Answers by a script: an error so often, then a note.
struct Scripted {
    errors: AtomicUsize,
    then: Option<Vec<u8>>,
}

impl AskWitness for Scripted {
    async fn add_checkpoint(&self, _: &Origin, _: Proposal) -> Reply {
        panic!("nothing is signed before the gate")
    }

    async fn newest(&self, _: &Origin) -> Result<Option<Vec<u8>>, String> {
        match self.errors.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)) {
            Ok(_) => Err("starting".into()),
            Err(_) => Ok(self.then.clone()),
        }
    }
}

/// The name in the certificate of a witness that dials in.
fn named(place: usize) -> SpiffeId {
    format!("spiffe://td/epigraph/witness/{place}").parse().unwrap()
}

fn gate(witnesses: Vec<Scripted>) -> Gate<Scripted> {
    let tree = Arc::new(tree(20, 20, 1));
    Gate {
        origin: origin(),
        policy: quorum(4, 3),
        faulty: 1,
        durable: ours(12),
        root_at: root_of(&tree),
        dialled: (0..).zip(witnesses.into_iter().map(Arc::new)).collect(),
        names: [2, 3].map(|place| (named(place), place)).into(),
    }
}

fn shows(errors: usize, note: Option<String>) -> Scripted {
    Scripted { errors: AtomicUsize::new(errors), then: note.map(String::into_bytes) }
}

fn log_note(head: TreeHead) -> Option<String> {
    Some(note_of(&key(), &origin(), &head))
}

/// R6: it says for whom it waits and why, and asks again; a note under another key is no answer.
#[tokio::test(start_paused = true)]
async fn it_asks_until_enough_have_answered() {
    let forged = note_of(&key_of("log.example", 8), &origin(), &theirs(40));
    let gate = gate(vec![
        shows(3, log_note(ours(5))),
        shows(0, None),
        shows(0, Some(forged)),
        shows(9, log_note(ours(9))),
    ]);
    let said = std::sync::Mutex::new(Vec::new());
    let (_told, mut told) = mpsc::channel(1);
    let held = pass(&gate, &mut told, |why| said.lock().unwrap().push(why.to_owned())).await.unwrap();
    assert_eq!(held, [(0, Some(ours(5))), (1, None), (3, Some(ours(9)))].into_iter().collect());
    let said = said.into_inner().unwrap();
    let last = said.last().unwrap();
    assert!(last.contains("witness-2.example (its answer does not count"), "{last}");
    assert!(last.contains("witness-3.example (starting)") && !last.contains("witness-0"), "{last}");
}

#[tokio::test(start_paused = true)]
async fn one_newer_head_ends_the_waiting() {
    let never = || shows(usize::MAX, None);
    let gate = gate(vec![never(), never(), shows(2, log_note(ours(13))), never()]);
    let (_told, mut told) = mpsc::channel(1);
    let refused = pass(&gate, &mut told, |_| ()).await.unwrap_err();
    assert!(matches!(*refused.why, WentBack::Behind { .. }), "{refused}");
}

/// R6: a witness that nobody can call says what it holds when it dials in, or that it holds nothing; only under the name that the
/// log's configuration has for it, and only with the log's own signature. Seen to fail with a note counting for whoever cosigned it,
/// whoever shows it; with "nothing" not counting.
#[tokio::test(start_paused = true)]
async fn what_is_said_by_who_dials_in_counts_under_its_own_name() {
    let gate = gate(vec![shows(0, log_note(ours(5)))]);
    let (tell, mut told) = mpsc::channel(8);
    let note = |head| log_note(head).map(String::into_bytes);
    for (who, note) in [
        (9, note(theirs(12))),
        (2, Some(b"garbage".to_vec())),
        (2, None),
        (1, note(ours(5))),
        (3, note(ours(9))),
    ] {
        tell.send((named(who), note)).await.unwrap();
    }
    let said = std::sync::Mutex::new(Vec::new());
    let held = pass(&gate, &mut told, |why| said.lock().unwrap().push(why.to_owned())).await.unwrap();
    assert_eq!(held, [(0, Some(ours(5))), (2, None), (3, Some(ours(9)))].into_iter().collect());
    let said = said.into_inner().unwrap().join("\n");
    assert!(said.contains("witness-2.example (its answer does not count"), "{said}");

    tell.send((named(3), note(theirs(12)))).await.unwrap();
    let refused = pass(&gate, &mut told, |_| ()).await.unwrap_err();
    assert!(matches!(*refused.why, WentBack::OtherHistory { .. }), "{refused}");
    assert_eq!(Some(refused.note), log_note(theirs(12)), "what shows it goes along");
}
