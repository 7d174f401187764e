//! One lie each.

use bytes::Bytes;
use epigraph_client::ClientError;
use epigraph_core::checkpoint::CheckpointError;
use epigraph_core::hash::leaf_hash;
use epigraph_core::note::NoteError;
use epigraph_core::proof::{ProofError, prove_consistency};
use epigraph_core::tlog_proof::VerifyError;
use epigraph_core::{LeafIndex, Policy, TreeHead, TreeSize};
use epigraph_rpc::{CallError, Reason, Refusal, Wait, convert, v1};

use crate::support::*;

fn two() -> Vec<Bytes> {
    vec![Bytes::from_static(b"mine"), Bytes::from_static(b"mine too")]
}

type TwistAppend = fn(&mut v1::AppendResponse);

/// Whether the call failed for exactly this reason.
type Expected = fn(&ClientError) -> bool;

/// The calls that bring a checkpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Call {
    Append,
    Receipt,
    Checkpoint,
}

const CALLS: [Call; 3] = [Call::Append, Call::Receipt, Call::Checkpoint];

async fn call(liar: &Liar, call: Call) -> Result<(), ClientError> {
    let client = liar.client();
    match call {
        Call::Append => client.append(&two(), Wait::Published).await.map(drop),
        Call::Receipt => client.receipt(LeafIndex::new(2).unwrap(), &leaf_hash(&entry(2, 0))).await.map(drop),
        Call::Checkpoint => client.checkpoint().await.map(drop),
    }
}

/// A log of eight entries whose first five the client has pinned, and then a lie in these calls: each fails as expected, the
/// pin stays, and after the lie all is well again and the pin moves.
async fn check(calls: &[Call], what: &str, lie: impl Fn(&Liar), expected: Expected) {
    for asked in calls {
        let liar = Liar::start().await;
        liar.client().checkpoint().await.unwrap();
        let pinned = liar.pinned();
        liar.grow_to(8);
        lie(&liar);
        let error = call(&liar, *asked).await.unwrap_err();
        assert!(expected(&error), "{what}, {asked:?}: {error:?}");
        assert!(liar.pinned() == pinned, "{what}, {asked:?}: the pin moved");
        liar.be_honest();
        call(&liar, *asked).await.unwrap_or_else(|error| panic!("{what}, {asked:?}: {error}"));
        assert!(liar.pinned() != pinned, "{what}, {asked:?}: the pin did not move");
    }
}

fn fork(at: u64) -> TreeHead {
    head(&tree(30, 3, 1), at)
}

/// A consistency proof of the fork's own, between the sizes that the client asks about.
fn fork_proof(old: u64, new: u64) -> v1::GetConsistencyProofResponse {
    let proof = prove_consistency(&tree(30, 3, 1), size(old), size(new)).unwrap().unwrap();
    v1::GetConsistencyProofResponse { hashes: convert::proof_to_wire(&proof.hashes) }
}

/// Serves this note, and to whoever asks for its consistency this answer.
fn serve_with_proof(
    liar: &Liar,
    note: String,
    consistency: Result<v1::GetConsistencyProofResponse, Refusal>,
) {
    let note = Bytes::from(note);
    liar.twist(move |answer| match answer {
        Answer::Consistency(answer) => *answer = consistency.clone(),
        answer => replace_note(answer, &note),
    });
}

#[tokio::test]
async fn honest_growth_moves_the_pin_and_every_receipt_verifies() {
    let liar = Liar::start().await;
    let client = liar.client();
    let policy = client.policy().clone();
    assert_eq!(client.checkpoint().await.unwrap().head().size, size(5));
    for round in 0..3 {
        let sent = two();
        let appended = client.append(&sent, Wait::Published).await.unwrap();
        let receipts = appended.receipts.unwrap();
        assert_eq!((appended.first_index.get(), receipts.len()), (5 + round * 2, 2));
        for (receipt, entry) in receipts.iter().zip(&sent) {
            let checkpoint = receipt.verify(&leaf_hash(entry), &policy).unwrap();
            assert_eq!(checkpoint.note(), liar.pinned());
        }
        let fetched = client.receipt(receipts[0].index, &leaf_hash(&sent[0])).await.unwrap();
        assert_eq!(fetched, receipts[0]);
    }
}

#[tokio::test]
async fn a_checkpoint_that_the_policy_does_not_trust_is_named() {
    let next = head(&tree(8, 8, 0), 8);
    let good = note_of(&key(), &next);
    let unsigned = format!("{}\n\n", good.split_once("\n\n").unwrap().0);
    let changed = good.replacen("\n8\n", "\n9\n", 1);
    check(
        &CALLS,
        "another log",
        |liar| liar.serve_note(note_of(&key_of("other.example", 7), &next)),
        |error| matches!(error, ClientError::Checkpoint(CheckpointError::UnknownOrigin { .. })),
    )
    .await;
    check(
        &CALLS,
        "unsigned",
        |liar| liar.serve_note(unsigned.clone()),
        |error| matches!(error, ClientError::Checkpoint(CheckpointError::Note(NoteError::NoSignatures))),
    )
    .await;
    check(
        &CALLS,
        "another key of this name",
        |liar| liar.serve_note(note_of(&key_of("log.example", 8), &next)),
        |error| matches!(error, ClientError::Checkpoint(CheckpointError::NotSigned(_))),
    )
    .await;
    check(
        &CALLS,
        "changed after signing",
        |liar| liar.serve_note(changed.clone()),
        |error| {
            matches!(error, ClientError::Checkpoint(CheckpointError::Note(NoteError::BadSignature { .. })))
        },
    )
    .await;
    check(
        &CALLS,
        "garbage",
        |liar| liar.serve_note(vec![0xff; 100]),
        |error| matches!(error, ClientError::Checkpoint(CheckpointError::Note(NoteError::NotText))),
    )
    .await;
}

#[tokio::test]
async fn the_checkpoint_of_another_log_is_no_answer_even_if_that_log_is_trusted_too() {
    let other = key_of("other.example", 7);
    let text = format!("log {}\nlog {}\nquorum none\n", key().vkey(), key_of("other.example", 9).vkey());
    let policy: Policy = text.parse().unwrap();
    let liar = Liar::start().await;
    let client = liar.client_trusting(policy);
    client.checkpoint().await.unwrap();
    let pinned = liar.pinned();
    liar.serve_note(note_of(&key_of("other.example", 9), &head(&tree(8, 8, 0), 8)));
    let error = client.checkpoint().await.unwrap_err();
    assert!(matches!(error, ClientError::WrongAnswer(_)), "{error:?}");
    liar.serve_note(note_of(&other, &head(&tree(8, 8, 0), 8)));
    let error = client.checkpoint().await.unwrap_err();
    assert!(matches!(error, ClientError::Checkpoint(CheckpointError::NotSigned(_))), "{error:?}");
    assert!(liar.pinned() == pinned);
}

#[tokio::test]
async fn an_older_checkpoint_than_the_pinned_one_is_a_rollback() {
    let older = || note_of(&key(), &head(&tree(8, 8, 0), 4));
    check(
        &[Call::Checkpoint],
        "older, and proven to be a beginning",
        |liar| liar.serve_note(older()),
        |error| {
            matches!(error, ClientError::RolledBack { served, pinned }
            if (served.size, pinned.size) == (size(4), size(5)))
        },
    )
    .await;
    for reason in [Reason::BeyondTree, Reason::NotYetPublished] {
        check(
            &CALLS,
            "older, and the log does not know its larger size any more",
            |liar| serve_with_proof(liar, older(), Err(Refusal::new(reason, "no"))),
            |error| matches!(error, ClientError::RolledBack { .. }),
        )
        .await;
    }
    check(
        &CALLS,
        "empty again",
        |liar| liar.serve_note(note_of(&key(), &TreeHead::EMPTY)),
        |error| {
            matches!(
                error,
                ClientError::RolledBack { .. }
                    | ClientError::Receipt(VerifyError::Proof {
                        source: ProofError::IndexBeyondTree { .. },
                        ..
                    })
            )
        },
    )
    .await;
}

#[tokio::test]
async fn two_roots_of_one_size_are_two_histories() {
    check(
        &CALLS,
        "a fork of the pinned size",
        |liar| liar.serve_note(note_of(&key(), &fork(5))),
        |error| {
            matches!(error, ClientError::TwoHistories { served, pinned, .. }
            if served.size == pinned.size && served.root != pinned.root)
        },
    )
    .await;
}

#[tokio::test]
async fn a_fork_of_another_size_cannot_be_proven() {
    let garbage =
        |hashes: usize| v1::GetConsistencyProofResponse { hashes: vec![Bytes::from(vec![3; 32]); hashes] };
    let not_proven: Expected = |error| matches!(error, ClientError::NotProven { .. });
    let larger = || note_of(&key(), &fork(8));
    for hashes in [0, 1, 4, 63] {
        let lie = |liar: &Liar| serve_with_proof(liar, larger(), Ok(garbage(hashes)));
        check(&CALLS, "larger, with garbage for a proof", lie, not_proven).await;
    }
    let lie = |liar: &Liar| serve_with_proof(liar, larger(), Ok(fork_proof(5, 8)));
    let proven: Expected = |error| matches!(error, ClientError::TwoHistories { .. });
    check(&CALLS, "larger, with the fork's own proof", lie, proven).await;
    check(&CALLS, "larger, with the log's honest proof", |liar| liar.serve_note(larger()), not_proven).await;
    let smaller = || note_of(&key(), &fork(4));
    let lie = |liar: &Liar| serve_with_proof(liar, smaller(), Ok(fork_proof(4, 5)));
    check(&CALLS, "smaller, with the fork's own proof", lie, not_proven).await;

    let huge = || note_of(&key(), &TreeHead { size: TreeSize::MAX, root: fork(8).root });
    let lie = |liar: &Liar| serve_with_proof(liar, huge(), Ok(garbage(63)));
    check(&CALLS, "of the largest size", lie, not_proven).await;
    let lie = |liar: &Liar| serve_with_proof(liar, larger(), Ok(garbage(64)));
    let garbled: Expected = |error| matches!(error, ClientError::Call(CallError::Garbled(_)));
    check(&CALLS, "with more hashes than any proof has", lie, garbled).await;
}

#[tokio::test]
async fn growth_that_the_log_will_not_prove_is_not_believed() {
    let honest = || note_of(&key(), &head(&tree(8, 8, 0), 8));
    for reason in [Reason::BeyondTree, Reason::DataLoss, Reason::Internal] {
        check(
            &CALLS,
            "no proof of growth",
            |liar| serve_with_proof(liar, honest(), Err(Refusal::new(reason, "no"))),
            |error| matches!(error, ClientError::NoProof { .. }),
        )
        .await;
    }
}

#[tokio::test]
async fn an_answer_of_another_shape_is_not_used() {
    let twists: [(&str, TwistAppend); 8] = [
        ("one proof less", |answer| drop(answer.proofs.pop())),
        ("one proof more", |answer| answer.proofs.push(answer.proofs[0].clone())),
        ("no proofs", |answer| answer.proofs.clear()),
        ("no checkpoint", |answer| answer.checkpoint.clear()),
        ("another count", |answer| answer.count = 3),
        ("half a hash", |answer| answer.proofs[1].hashes[0].truncate(16)),
        ("an index beyond the largest", |answer| answer.first_index = u64::MAX),
        ("a last index beyond the largest", |answer| answer.first_index = TreeSize::MAX.get() - 1),
    ];
    for (what, twist) in twists {
        let lie = |liar: &Liar| {
            liar.twist(move |answer| {
                if let Answer::Append(answer) = answer {
                    twist(answer);
                }
            });
        };
        check(&[Call::Append], what, lie, |error| matches!(error, ClientError::Call(CallError::Garbled(_))))
            .await;
    }
}

/// The checkpoint is proven growth here, so the pin may remember it; the receipt is what must not come out.
#[tokio::test]
async fn a_proof_that_does_not_lead_to_the_entry_gives_no_receipt() {
    let twists: [(&str, TwistAppend); 5] = [
        ("a changed hash", |answer| answer.proofs[1].hashes[0] = Bytes::from(vec![3; 32])),
        ("proofs swapped", |answer| answer.proofs.swap(0, 1)),
        ("another index", |answer| answer.first_index = 3),
        ("the largest indexes", |answer| answer.first_index = TreeSize::MAX.get() - 2),
        ("a proof cut short", |answer| drop(answer.proofs[0].hashes.pop())),
    ];
    for (what, twist) in twists {
        let liar = Liar::start().await;
        liar.twist(move |answer| {
            if let Answer::Append(answer) = answer {
                twist(answer);
            }
        });
        let error = call(&liar, Call::Append).await.unwrap_err();
        assert!(matches!(error, ClientError::Receipt(VerifyError::Proof { .. })), "{what}: {error:?}");
    }
    // The log proves an entry that is not the one which was asked about.
    let liar = Liar::start().await;
    let index = LeafIndex::new(2).unwrap();
    let error = liar.client().receipt(index, &leaf_hash(&entry(2, 1))).await.unwrap_err();
    assert!(matches!(error, ClientError::Receipt(VerifyError::Proof { .. })), "{error:?}");
    // It answers about another index.
    liar.twist(|answer| {
        if let Answer::Proof(answer) = answer {
            answer.leaf_index = 3;
        }
    });
    let error = call(&liar, Call::Receipt).await.unwrap_err();
    assert!(matches!(error, ClientError::Call(CallError::Garbled(_))), "{error:?}");
}
