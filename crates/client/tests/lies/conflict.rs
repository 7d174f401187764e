//! A log that shows its client two histories hands over the evidence: a file that convicts it, offline, by its key alone. Where
//! it convicts itself of nothing, no file accuses it.

use std::fs;
use std::path::PathBuf;

use bytes::Bytes;
use epigraph_client::ClientError;
use epigraph_client::conflict::Kept;
use epigraph_core::checkpoint::CheckpointError;
use epigraph_core::cosignature::{CosignedAt, add_cosignature};
use epigraph_core::evidence::verify;
use epigraph_core::note::Parsed;
use epigraph_core::proof::{prove_consistency, prove_inclusion};
use epigraph_core::{CosigningKey, KeyName, LeafIndex, Policy, VKey};
use epigraph_rpc::{Reason, Refusal, convert, v1};
use zeroize::Zeroizing;

use crate::support::*;

/// The fork's tree: other entries from this index on.
const FORK: u64 = 0;

fn note_at(at: u64, world: u8) -> String {
    note_of(&key(), &head(&tree(16, FORK, world), at))
}

/// Serves the fork's note, and every proof from the history that the larger of the two heads is of.
fn show_fork(liar: &Liar, at: u64, asked: (u64, u64)) {
    let note = Bytes::from(note_at(at, 1));
    let world = u8::from(at == asked.1);
    liar.twist(move |answer| match answer {
        Answer::Consistency(answer) => {
            let proof =
                prove_consistency(&tree(16, FORK, world), size(asked.0), size(asked.1)).unwrap().unwrap();
            *answer = Ok(v1::GetConsistencyProofResponse { hashes: convert::proof_to_wire(&proof.hashes) });
        }
        Answer::Proof(answer) => {
            let index = LeafIndex::new(answer.leaf_index).unwrap();
            let proof = prove_inclusion(&tree(16, FORK, world), index, size(asked.1)).unwrap().unwrap();
            answer.hashes = convert::proof_to_wire(&proof.hashes);
        }
        answer => replace_note(answer, &note),
    });
}

fn evidence_of(error: &ClientError) -> Vec<(VKey, PathBuf)> {
    let ClientError::TwoHistories { kept, .. } = error else { panic!("not proven: {error:?}") };
    let Kept::Evidence(files) = &**kept else { panic!("no evidence: {kept:?}") };
    files.clone()
}

/// The client has pinned one size of the honest history; then it is shown another size of the fork.
async fn check(pinned: u64, shown: u64) {
    let liar = Liar::start().await;
    liar.grow_to(16);
    liar.serve_note(note_at(pinned, 0));
    liar.client().checkpoint().await.unwrap();
    let before = liar.pinned();
    show_fork(&liar, shown, (pinned.min(shown), pinned.max(shown)));
    let error = liar.client().checkpoint().await.unwrap_err();
    let files = evidence_of(&error);
    let [(accused, path)] = files.as_slice() else { panic!("{pinned} to {shown}: {error}") };
    assert_eq!(accused, key().vkey());
    // What a stranger does with the file.
    let evidence = verify(&fs::read(path).unwrap(), &[key().vkey().clone()]).unwrap();
    let mut sizes = evidence.heads().map(|head| head.size.get());
    sizes.sort_unstable();
    assert_eq!(sizes, [pinned.min(shown), pinned.max(shown)]);
    let message = error.to_string();
    let command = format!("epigraph verify '{}' --vkey '{accused}'", path.display());
    assert!(message.contains(&command), "{message}");
    assert!(liar.pinned() == before, "the pin moved");
}

#[tokio::test]
async fn two_histories_become_evidence_at_every_pair_of_sizes() {
    // RELIABILITY A1; seen to fail with the inclusion proof not asked for where the old size is a power of two.
    for pinned in [1, 2, 3, 4, 6, 8, 9] {
        for shown in [1, 2, 3, 4, 6, 8, 9] {
            check(pinned, shown).await;
        }
    }
}

#[tokio::test]
async fn a_witness_that_cosigned_both_is_accused_too_and_one_that_did_not_is_not() {
    let witness =
        |name: &str, seed| CosigningKey::from_seed(KeyName::new(name).unwrap(), &Zeroizing::new([seed; 32]));
    let (liar_too, honest) = (witness("w1.example", 1), witness("w2.example", 2));
    let cosigned = |note: String, by: &[&CosigningKey]| {
        by.iter().fold(note, |note, witness| {
            let line = {
                let parsed = Parsed::parse(note.as_bytes()).unwrap();
                witness.cosign_assertion(parsed.text(), CosignedAt::new(1_800_000_000).unwrap())
            };
            add_cosignature(&note, &line, witness.vkey()).unwrap().unwrap()
        })
    };
    let keys = [liar_too.vkey().clone(), honest.vkey().clone()];
    let liar = Liar::start().await;
    let client = liar.client_trusting(Policy::of_witnesses(key().vkey(), &keys, 1).unwrap());
    liar.serve_note(cosigned(note_at(5, 0), &[&liar_too, &honest]));
    client.checkpoint().await.unwrap();
    liar.serve_note(cosigned(note_at(5, 1), &[&liar_too]));
    let files = evidence_of(&client.checkpoint().await.unwrap_err());
    let accused: Vec<_> = files.iter().map(|(accused, _)| accused.clone()).collect();
    assert_eq!(accused, [key().vkey().clone(), liar_too.vkey().clone()]);
    for (accused, path) in files {
        verify(&fs::read(path).unwrap(), &[accused]).unwrap();
    }
}

#[tokio::test]
async fn a_fork_that_no_witness_cosigned_convicts_the_log_alone() {
    // RELIABILITY A6, a stolen log key; seen to fail with a checkpoint below the quorum refused and not looked at.
    let witness = CosigningKey::from_seed(KeyName::new("w.example").unwrap(), &Zeroizing::new([1; 32]));
    let liar = Liar::start().await;
    let keys = [witness.vkey().clone()];
    let client = liar.client_trusting(Policy::of_witnesses(key().vkey(), &keys, 1).unwrap());
    let honest = note_at(5, 0);
    let line = {
        let parsed = Parsed::parse(honest.as_bytes()).unwrap();
        witness.cosign_assertion(parsed.text(), CosignedAt::new(1_800_000_000).unwrap())
    };
    liar.serve_note(add_cosignature(&honest, &line, witness.vkey()).unwrap().unwrap());
    client.checkpoint().await.unwrap();
    let pinned = liar.pinned();
    for below in [note_at(5, 0), note_at(6, 0), note_at(6, 1)] {
        liar.serve_note(below);
        let error = client.checkpoint().await.unwrap_err();
        assert!(matches!(error, ClientError::Checkpoint(CheckpointError::Quorum(_))), "{error:?}");
        check_accuses_nobody(&liar);
    }
    liar.serve_note(note_at(5, 1));
    let files = evidence_of(&client.checkpoint().await.unwrap_err());
    let [(accused, path)] = files.as_slice() else { panic!("{files:?}") };
    verify(&fs::read(path).unwrap(), std::slice::from_ref(accused)).unwrap();
    assert_eq!(accused, key().vkey());
    assert!(liar.pinned() == pinned, "the pin moved");
}

#[tokio::test]
async fn garbage_and_honest_proofs_accuse_nobody_and_it_is_said_what_is_missing() {
    // Anybody can make a proof that fails.
    let garbage = |count: usize| vec![Bytes::from(vec![3; 32]); count];
    let honest = {
        let proof = prove_consistency(&tree(16, FORK, 0), size(5), size(8)).unwrap().unwrap();
        convert::proof_to_wire(&proof.hashes)
    };
    for hashes in [garbage(0), garbage(1), garbage(4), garbage(63), honest] {
        let liar = Liar::start().await;
        liar.client().checkpoint().await.unwrap();
        let note = Bytes::from(note_at(8, 1));
        liar.twist(move |answer| match answer {
            Answer::Consistency(answer) => {
                *answer = Ok(v1::GetConsistencyProofResponse { hashes: hashes.clone() });
            }
            answer => replace_note(answer, &note),
        });
        let error = liar.client().checkpoint().await.unwrap_err();
        let ClientError::NotProven { kept, .. } = &error else { panic!("{error:?}") };
        let Kept::Served(path) = &**kept else { panic!("{kept:?}") };
        assert_eq!(fs::read_to_string(path).unwrap(), note_at(8, 1));
        let says = ["the two lack a consistency proof between their sizes", path.to_str().unwrap()];
        says.iter().for_each(|text| assert!(error.to_string().contains(text), "{error}"));
        check_accuses_nobody(&liar);
    }
}

#[tokio::test]
async fn a_proof_that_is_refused_is_named_and_the_head_is_kept() {
    let liar = Liar::start().await;
    liar.client().checkpoint().await.unwrap();
    let note = Bytes::from(note_at(8, 1));
    liar.twist(move |answer| match answer {
        Answer::Consistency(answer) => *answer = Err(Refusal::new(Reason::BeyondTree, "not so far")),
        answer => replace_note(answer, &note),
    });
    let error = liar.client().checkpoint().await.unwrap_err();
    let ClientError::NoProof { kept, .. } = &error else { panic!("{error:?}") };
    let Kept::Served(path) = &**kept else { panic!("{kept:?}") };
    assert_eq!(fs::read_to_string(path).unwrap(), note_at(8, 1));
    assert!(error.to_string().contains("not so far"), "{error}");
    check_accuses_nobody(&liar);
}

#[tokio::test]
async fn the_first_evidence_stays_and_damaged_evidence_is_replaced() {
    let liar = Liar::start().await;
    liar.client().checkpoint().await.unwrap();
    let show = async |world| {
        liar.serve_note(note_at(5, world));
        evidence_of(&liar.client().checkpoint().await.unwrap_err()).remove(0).1
    };
    let path = show(1).await;
    let first = fs::read(&path).unwrap();
    assert_eq!(show(2).await, path);
    assert!(fs::read(&path).unwrap() == first, "evidence was overwritten");
    fs::write(&path, &first[..first.len() - 1]).unwrap();
    assert_eq!(show(2).await, path);
    verify(&fs::read(&path).unwrap(), &[key().vkey().clone()]).unwrap();
}

fn check_accuses_nobody(liar: &Liar) {
    for entry in fs::read_dir(liar.state.path()).unwrap() {
        let path = entry.unwrap().path();
        assert!(path.extension().unwrap() != "evidence", "{}", path.display());
    }
}

/// Issue 4, A1: two heads that somebody else shows are compared like a served one with the pin, at powers of two too, and nothing is
/// pinned. Where nothing convicts anybody both notes are kept. Seen to fail with the inclusion proof not asked for.
#[tokio::test]
async fn two_shown_heads_become_evidence_at_every_pair_of_sizes() {
    for one in [1, 2, 3, 4, 6, 8, 9] {
        for other in [1, 2, 3, 4, 6, 8, 9] {
            let liar = Liar::start().await;
            liar.grow_to(16);
            let (client, ours) = (liar.client(), note_at(one, 0));
            client.compare(ours.as_bytes(), note_at(other, 0).as_bytes()).await.unwrap();
            show_fork(&liar, other, (one.min(other), one.max(other)));
            let error = client.compare(ours.as_bytes(), note_at(other, 1).as_bytes()).await.unwrap_err();
            let files = evidence_of(&error);
            let [(accused, path)] = files.as_slice() else { panic!("{one}, {other}: {error}") };
            let evidence = verify(&fs::read(path).unwrap(), std::slice::from_ref(accused)).unwrap();
            let mut sizes = evidence.heads().map(|head| head.size.get());
            sizes.sort_unstable();
            assert_eq!(sizes, [one.min(other), one.max(other)]);
            assert!(!liar.pin_file().exists());
        }
    }
    let liar = Liar::start().await;
    liar.twist(|answer| {
        if let Answer::Consistency(answer) = answer {
            *answer = Err(Refusal::new(Reason::Internal, "no"));
        }
    });
    let notes = [note_at(3, 0), note_at(9, 1)];
    let error = liar.client().compare(notes[1].as_bytes(), notes[0].as_bytes()).await.unwrap_err();
    let ClientError::NoProof { kept, .. } = &error else { panic!("{error:?}") };
    let Kept::Shown(paths) = &**kept else { panic!("{kept:?}") };
    let kept = paths.iter().map(|path| fs::read_to_string(path).unwrap());
    assert_eq!(kept.collect::<Vec<_>>(), notes);
    assert!(paths.iter().all(|path| error.to_string().contains(&*path.to_string_lossy())), "{error}");
}
