//! Three other libraries as judges: `ct-merkle` and `tlog_tiles` for trees and proofs, `signed_note` for notes and
//! keys, `tlog_tiles` for checkpoints. Where they judge otherwise, the case says why.

use std::cell::RefCell;

use ct_merkle::mem_backed_tree::MemoryBackedTree;
use epigraph_core::checkpoint::{decode_text, encode_text};
use epigraph_core::key::{KeyName, SigningKey};
use epigraph_core::note::{self, Parsed};
use epigraph_core::proof::{prove_consistency, prove_inclusion};
use epigraph_core::{Hash, hash};
use sha2::Sha256;
use signed_note::{Note, Signer as _, StandardSigner, StandardVerifier, VerifierList};
use tlog_tiles::tlog;

use crate::reference::{Rows, index, size};

const MAX: u64 = 130;

fn entry(n: u64) -> Vec<u8> {
    format!("entry {n}").into_bytes()
}

fn joined(hashes: &[Hash]) -> Vec<u8> {
    hashes.iter().flat_map(|hash| *hash.as_bytes()).collect()
}

#[test]
fn trees_and_proofs_are_those_of_ct_merkle() {
    let mut oracle: MemoryBackedTree<Sha256, Vec<u8>> = MemoryBackedTree::new();
    let mut rows = Rows::default();
    for count in 1..=MAX {
        oracle.push(entry(count - 1));
        rows.push(hash::leaf_hash(&entry(count - 1)));
        assert_eq!(rows.frontier.root().as_bytes().as_slice(), oracle.root().as_bytes().as_slice());
        for at in 0..count {
            let ours = prove_inclusion(&rows, index(at), size(count)).unwrap().unwrap();
            let theirs = oracle.prove_inclusion(at as usize);
            assert_eq!(joined(&ours.hashes), theirs.as_bytes(), "index {at}, size {count}");
        }
        // ct-merkle makes no proof from the empty tree.
        for old in 1..=count {
            let ours = prove_consistency(&rows, size(old), size(count)).unwrap().unwrap();
            let theirs = oracle.prove_consistency((count - old) as usize);
            assert_eq!(joined(&ours.hashes), theirs.as_bytes(), "from {old} to {count}");
        }
    }
}

/// Hashes in the order in which `tlog_tiles` numbers them.
#[derive(Default)]
struct Stored(RefCell<Vec<tlog::Hash>>);

impl tlog::HashReader for Stored {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<tlog::Hash>, tlog::Error> {
        Ok(indexes.iter().map(|index| self.0.borrow()[*index as usize]).collect())
    }
}

fn theirs(hash: &Hash) -> tlog::Hash {
    tlog::Hash(*hash.as_bytes())
}

#[test]
fn trees_and_proofs_are_those_of_tlog_tiles() {
    let stored = Stored::default();
    let mut rows = Rows::default();
    for count in 1..=MAX {
        let added = tlog::stored_hashes(count - 1, &entry(count - 1), &stored).unwrap();
        stored.0.borrow_mut().extend(added);
        rows.push(hash::leaf_hash(&entry(count - 1)));
        let root = theirs(&rows.frontier.root());
        assert_eq!(root, tlog::tree_hash(count, &stored).unwrap());
        for at in 0..count {
            let ours = prove_inclusion(&rows, index(at), size(count)).unwrap().unwrap();
            let ours: Vec<_> = ours.hashes.iter().map(theirs).collect();
            assert_eq!(ours, tlog::prove_record(count, at, &stored).unwrap(), "index {at}, size {count}");
            tlog::check_record(&ours, count, root, at, tlog::record_hash(&entry(at))).unwrap();
        }
        // tlog_tiles makes no proof from the empty tree.
        for old in 1..=count {
            let ours = prove_consistency(&rows, size(old), size(count)).unwrap().unwrap();
            let ours: Vec<_> = ours.hashes.iter().map(theirs).collect();
            assert_eq!(ours, tlog::prove_tree(count, old, &stored).unwrap(), "from {old} to {count}");
            tlog::check_tree(&ours, count, root, old, tlog::tree_hash(old, &stored).unwrap()).unwrap();
        }
    }
}

fn key() -> SigningKey {
    SigningKey::from_seed(KeyName::new("log.example/oracle").unwrap(), &[9; 32].into())
}

fn signed(key: &SigningKey, text: &str) -> String {
    note::encode(text, [&key.sign_assertion(text)])
}

const TEXT: &str = "log.example/oracle\n3\nTszzRgjTG6xce+z2AG31kAXYKBgQVtCSCE40HmuwBb0=\n";

fn verifiers(key: &SigningKey) -> VerifierList {
    VerifierList::new(vec![Box::new(StandardVerifier::new(&key.vkey().to_string()).unwrap())])
}

#[test]
fn our_keys_and_notes_are_those_of_signed_note() {
    let key = key();
    let signer = StandardSigner::new(&key.to_text()).unwrap();
    assert_eq!(signer.key_id().to_be_bytes(), *key.vkey().id().as_bytes());
    assert_eq!(signer.sign(TEXT.as_bytes()).unwrap(), key.sign_assertion(TEXT).signature);
    let (verified, unverified) =
        Note::from_bytes(signed(&key, TEXT).as_bytes()).unwrap().verify(&verifiers(&key)).unwrap();
    assert_eq!((verified.len(), unverified.len()), (1, 0));
}

/// Whether each accepts the form, and what each takes the text to be.
fn forms(bytes: &[u8]) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
    let ours = Parsed::parse(bytes).ok().map(|note| note.text().as_bytes().to_vec());
    (ours, Note::from_bytes(bytes).ok().map(|note| note.text().to_vec()))
}

/// Every change of one byte to a note, and a table of others: the same are notes, with the same text, and the same
/// verify.
#[test]
fn the_same_bytes_are_notes_and_the_same_notes_verify() {
    let key = key();
    let other = SigningKey::from_seed(KeyName::new("other.example").unwrap(), &[8; 32].into());
    let note = format!("{}{}", signed(&key, TEXT), signed(&other, TEXT).rsplit_once("\n\n").unwrap().1);
    let verifiers = verifiers(&key);
    let check = |bytes: &[u8]| {
        let (ours, theirs) = forms(bytes);
        assert_eq!(ours, theirs, "{:?}", String::from_utf8_lossy(bytes));
        let Ok(parsed) = Parsed::parse(bytes) else { return };
        let known = |name: &str, id| {
            let vkey = key.vkey();
            (vkey.name().as_str() == name && vkey.id() == id).then_some(vkey)
        };
        let ours = parsed.verify(known).is_ok_and(|signers| !signers.is_empty());
        let theirs = Note::from_bytes(bytes).unwrap().verify(&verifiers).is_ok();
        assert_eq!(ours, theirs, "{:?}", String::from_utf8_lossy(bytes));
    };
    check(note.as_bytes());
    for at in 0..note.len() {
        let mut changed = note.clone().into_bytes();
        for byte in *b"\0\n\r +=/A0a~\x1f\x80\xe2\xff" {
            changed[at] = byte;
            check(&changed);
            changed.insert(at, byte);
            check(&changed);
            changed.remove(at);
        }
        changed.remove(at);
        check(&changed);
    }
    let (text, lines) = note.rsplit_once("\n\n").unwrap();
    let line = lines.lines().next().unwrap();
    for changed in [
        String::new(),
        "\n".into(),
        "\n\n".into(),
        "\n\n\n".into(),
        format!("\n\n{lines}"),
        format!("\n{lines}"),
        format!("{text}\n\n\n{lines}"),
        format!("{text}\n\n{text}\n\n{lines}"),
        format!("{text}\n\n{lines}\n"),
        format!("{text}\n\n{lines}\n{lines}"),
        format!("{text}\n\n{lines}{lines}"),
        format!("{text}\n\n{line}\n{line}\n"),
        format!("{text}\n\n{}", format!("{line}\n").repeat(100)),
        format!("{text}\n\n{}", format!("{line}\n").repeat(101)),
        format!("{text}\n\n{line} \n"),
        format!("{text}\n\n{line} x\n"),
        format!("{text}\n\n{line}=\n"),
        format!("{text}\n\n- log.example AAAAAAA=\n"),
        format!("{text}\n\n\u{2014} log.example \n"),
        format!("{text}\n\n\u{2014} log.example AAAAAA==\n"),
        format!("{text}\n\n\u{2014} log.example AAAAAAA=\n"),
        format!("{text}\n\n\u{2014} log.example AAAAAAB=\n"),
        format!("{text}\n\n\u{2014}  AAAAAAA=\n"),
        format!("{text}\n\n\u{2014} log+example AAAAAAA=\n"),
        format!("{text}\n\n\u{2014} log\u{a0}example AAAAAAA=\n"),
        format!("{text}\n\n\u{2014} log\u{2028}example AAAAAAA=\n"),
        format!("{text}\n\n\u{2014} \u{fc}ber.example AAAAAAA=\n"),
        format!("{text}\r\n\r\n{lines}"),
    ] {
        check(changed.as_bytes());
    }
}

/// Stricter than C2SP asks for, each fails closed: what such a line names could not be shown, stored or signed.
#[test]
fn names_that_only_signed_note_takes() {
    for name in ["a\u{7f}b", "a\u{9b}b", &"n".repeat(256)] {
        let (ours, theirs) = forms(format!("text\n\n\u{2014} {name} AAAAAAA=\n").as_bytes());
        assert_eq!((ours.is_some(), theirs.is_some()), (false, true), "{name:?}");
    }
}

#[test]
fn checkpoint_texts() {
    const ROOT: &str = "TszzRgjTG6xce+z2AG31kAXYKBgQVtCSCE40HmuwBb0=";
    const EMPTY: &str = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
    let check = |text: &str, ours: bool, theirs: bool, why: &str| {
        let read = decode_text(text);
        assert_eq!(read.is_ok(), ours, "{why}: {text:?}");
        let judged = tlog_tiles::Checkpoint::from_bytes(text.as_bytes());
        assert_eq!(judged.is_ok(), theirs, "{why}: {text:?}");
        let (Ok((origin, head)), Ok(judged)) = (read, judged) else { return };
        assert_eq!((origin.as_str(), head.size.get()), (judged.origin(), judged.size()), "{text:?}");
        assert_eq!(head.root.as_bytes(), &judged.hash().0, "{text:?}");
        assert_eq!(encode_text(&origin, &head) + judged.extension(), text, "{text:?}");
    };
    let good = |text: &str| check(text, true, true, "good");
    let bad = |text: &str| check(text, false, false, "bad");
    let stricter = |text: &str, why: &str| check(text, false, true, why);

    good(&format!("log.example\n1\n{ROOT}\n"));
    good(&format!("log.example\n0\n{EMPTY}\n"));
    good(&format!("go.sum database tree\n123456789012\n{ROOT}\n"));
    good(&format!("log.example\n9223372036854775807\n{ROOT}\n"));
    good(&format!("log.example\n1\n{ROOT}\nextension\n"));
    good(&format!("log.example\n1\n{ROOT}\n{}", "x\n".repeat(16)));
    good(&format!("{}\n1\n{ROOT}\n", "o".repeat(255)));

    bad("");
    bad("\n");
    bad("log.example");
    bad("log.example\n");
    bad("log.example\n1\n");
    bad(&format!("log.example\n1\n{ROOT}"));
    bad(&format!("\n1\n{ROOT}\n"));
    bad(&format!("log.example\n\n{ROOT}\n"));
    bad(&format!("log.example\n1\n{ROOT}\n\n"));
    bad(&format!("log.example\n1\n{ROOT}\nextension"));
    bad(&format!("log.example\n1\n{ROOT}\nextension\n\n"));
    bad(&format!("log.example\n1\n{ROOT}\n\nextension\n"));
    for size in
        ["01", "00", "+1", "-1", " 1", "1 ", "1\r", "0x1", "1e3", "1.0", "\u{661}", "18446744073709551616"]
    {
        bad(&format!("log.example\n{size}\n{ROOT}\n"));
    }
    for root in [
        "",
        "TszzRgjTG6xce+z2AG31kAXYKBgQVtCSCE40HmuwBQ==",
        &ROOT[..43],
        &format!("{ROOT}\r"),
        &format!("{ROOT} "),
    ] {
        bad(&format!("log.example\n1\n{root}\n"));
    }
    bad(&format!("log.example\n1\n{}1=\n", &ROOT[..42]));
    bad(&format!("log.example\n1\n{}\n", ROOT.replace('+', "-")));

    stricter(&format!("log.example\n9223372036854775808\n{ROOT}\n"), "sizes stay within 63 bits");
    stricter(&format!("log.example\n18446744073709551615\n{ROOT}\n"), "sizes stay within 63 bits");
    stricter(&format!("log.example\n0\n{ROOT}\n"), "the empty tree has one root");
    stricter(&format!("log.example\n1\n{ROOT}\n{}", "x\n".repeat(17)), "extension lines are limited");
    stricter(
        &format!("{}\n1\n{ROOT}\n", "o".repeat(256)),
        "origins are limited to what a cosignature can carry",
    );
    stricter(&format!("log\u{7f}example\n1\n{ROOT}\n"), "an origin can be shown on a terminal");
    stricter(&format!("log.example\r\n1\n{ROOT}\n"), "an origin can be shown on a terminal");
}
