//! Receipts from end to end: made from a tree and a signed checkpoint, verified offline, refused when anything that
//! they rest on is changed.

use epigraph_core::checkpoint::{CheckpointError, encode_text};
use epigraph_core::key::{KeyName, SigningKey};
use epigraph_core::proof::{ProofError, prove_inclusion};
use epigraph_core::tlog_proof::{Receipt, VerifyError};
use epigraph_core::{Checkpoint, Policy, note};

use crate::reference::{Reference, Rows, index, leaf, size};

const SIZE: u64 = 13;

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(KeyName::new("log.example/receipts").unwrap(), &[seed; 32].into())
}

fn policy(key: &SigningKey) -> Policy {
    Policy::of_log(key.vkey().clone())
}

fn receipt(rows: &Rows, at: u64, extra: Option<Vec<u8>>) -> Receipt {
    let key = key(1);
    let text = encode_text(&key.vkey().name().to_origin(), &rows.frontier.head());
    let proof = prove_inclusion(rows, index(at), rows.frontier.size()).unwrap().unwrap();
    let checkpoint = note::encode(&text, [&key.sign_assertion(&text)]).into_bytes();
    Receipt { extra, index: index(at), hashes: proof.hashes, checkpoint }
}

#[test]
fn a_receipt_proves_its_entry_and_no_other() {
    let tree = Reference::labelled("leaf", SIZE);
    let rows = Rows::of(tree.leaves());
    for at in 0..SIZE {
        let receipt = Receipt::parse(&receipt(&rows, at, None).encode()).unwrap();
        for (other, hash) in (0..).zip(tree.leaves()) {
            match receipt.verify(hash, &policy(&key(1))) {
                Ok(checkpoint) => assert_eq!((other, checkpoint.head()), (at, rows.frontier.head())),
                Err(error) => {
                    let source = ProofError::RootMismatch;
                    assert_eq!(error, VerifyError::Proof { index: index(at), source });
                    assert_ne!(other, at);
                }
            }
        }
        let error = receipt.verify(&tree.leaves()[at as usize], &policy(&key(2))).unwrap_err();
        assert!(matches!(error, VerifyError::Checkpoint(CheckpointError::NotSigned(_))), "{error}");
    }
}

#[test]
fn a_receipt_with_one_bit_changed_proves_nothing() {
    let tree = Reference::labelled("leaf", SIZE);
    let receipt = receipt(&Rows::of(tree.leaves()), 6, None).encode();
    for at in 0..receipt.len() {
        for bit in 0..8 {
            let mut changed = receipt.clone();
            changed[at] ^= 1 << bit;
            let verdict = Receipt::parse(&changed)
                .is_ok_and(|receipt| receipt.verify(&tree.leaves()[6], &policy(&key(1))).is_ok());
            assert!(!verdict, "bit {bit} of byte {at}: {:?}", String::from_utf8_lossy(&changed));
        }
        let cut = Receipt::parse(&receipt[..at]);
        assert!(!cut.is_ok_and(|receipt| receipt.verify(&tree.leaves()[6], &policy(&key(1))).is_ok()));
    }
}

#[test]
fn extra_data_is_carried_and_not_vouched_for() {
    let tree = Reference::labelled("leaf", SIZE);
    let rows = Rows::of(tree.leaves());
    for extra in [None, Some(Vec::new()), Some(b"anything".to_vec())] {
        let receipt = Receipt::parse(&receipt(&rows, 3, extra.clone()).encode()).unwrap();
        assert_eq!(receipt.extra, extra);
        receipt.verify(&tree.leaves()[3], &policy(&key(1))).unwrap();
    }
}

#[test]
fn many_receipts_are_verified_under_one_checkpoint() {
    let tree = Reference::labelled("leaf", SIZE);
    let rows = Rows::of(tree.leaves());
    let opened = Checkpoint::open(&receipt(&rows, 0, None).checkpoint, &policy(&key(1))).unwrap();
    for at in 0..SIZE {
        let receipt = receipt(&rows, at, None);
        assert_eq!(receipt.verify_under(&tree.leaves()[at as usize], &opened), Ok(()));
        assert!(receipt.verify_under(&leaf(b"another"), &opened).is_err());
    }
    let smaller = Rows::of(&tree.leaves()[..5]);
    let opened = Checkpoint::open(&receipt(&smaller, 0, None).checkpoint, &policy(&key(1))).unwrap();
    let error = receipt(&rows, 5, None).verify_under(&tree.leaves()[5], &opened).unwrap_err();
    assert_eq!(error, VerifyError::OtherCheckpoint(index(5)), "its checkpoint would have been ignored");
    let moved = Receipt { checkpoint: opened.note().to_vec(), ..receipt(&rows, 5, None) };
    let error = moved.verify_under(&tree.leaves()[5], &opened).unwrap_err();
    let source = ProofError::IndexBeyondTree { index: index(5), size: size(5) };
    assert_eq!(error, VerifyError::Proof { index: index(5), source });
}
