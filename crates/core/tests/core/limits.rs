//! Each limit at its edge and one beyond, and keys that are weak or written in a second way.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use epigraph_core::bundle::{self, MAX_ENTRY_BYTES};
use epigraph_core::checkpoint::CheckpointError;
use epigraph_core::hash::sha256;
use epigraph_core::key::{KeyError, KeyName, MAX_NAME_BYTES, NameError, Origin, SigningKey};
use epigraph_core::note::{self, MAX_NOTE_BYTES, MAX_SIGNATURES, NoteError, Parsed};
use epigraph_core::policy::{MAX_LOGS, MAX_POLICY_BYTES, PolicyError};
use epigraph_core::proof::{ConsistencyProof, InclusionProof, MAX_PROOF_HASHES};
use epigraph_core::tlog_proof::{MAX_EXTRA_BYTES, MAX_RECEIPT_BYTES, Receipt, ReceiptError};
use epigraph_core::{Checkpoint, LeafIndex, Policy, TreeSize, VKey};

use crate::reference::{leaf, path, proof, size};

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(KeyName::new("log.example").unwrap(), &[seed; 32].into())
}

#[test]
fn notes_are_limited_in_bytes_and_lines() {
    let line = "\u{2014} log.example AAAAAAA=\n";
    let tail = format!("\n\n{line}");
    let note = |bytes: usize| format!("{}{tail}", "x".repeat(bytes - tail.len()));
    assert!(Parsed::parse(note(MAX_NOTE_BYTES).as_bytes()).is_ok());
    let error = Parsed::parse(note(MAX_NOTE_BYTES + 1).as_bytes()).unwrap_err();
    assert_eq!(error, NoteError::TooLong(MAX_NOTE_BYTES + 1));

    let note = |lines: usize| format!("x\n\n{}", line.repeat(lines));
    assert_eq!(Parsed::parse(note(MAX_SIGNATURES).as_bytes()).unwrap().signatures().len(), MAX_SIGNATURES);
    let error = Parsed::parse(note(MAX_SIGNATURES + 1).as_bytes()).unwrap_err();
    assert_eq!(error, NoteError::TooManySignatures);
}

#[test]
fn a_note_full_of_post_quantum_signatures_fits() {
    let line = note::SignatureLine {
        name: "n".repeat(MAX_NAME_BYTES),
        signature: vec![7; 8 + 2420],
        ..key(1).sign_assertion("")
    };
    let text = "x\n".repeat(4096);
    let note = note::encode(&text, vec![&line; MAX_SIGNATURES]);
    assert_eq!(Parsed::parse(note.as_bytes()).unwrap().signatures().len(), MAX_SIGNATURES);
}

#[test]
fn names_are_limited_and_printable() {
    let check = |name: &str, key: Result<(), NameError>, origin: Result<(), NameError>| {
        assert_eq!(KeyName::new(name).map(drop), key, "{name:?}");
        assert_eq!(Origin::new(name).map(drop), origin, "{name:?}");
    };
    let forbidden = |c| Err(NameError::Forbidden(c));
    check(&"n".repeat(MAX_NAME_BYTES), Ok(()), Ok(()));
    check(&"n".repeat(256), Err(NameError::TooLong(256)), Err(NameError::TooLong(256)));
    check(&"\u{fc}".repeat(128), Err(NameError::TooLong(256)), Err(NameError::TooLong(256)));
    check("", Err(NameError::Empty), Err(NameError::Empty));
    check("go.sum database tree", forbidden(' '), Ok(()));
    check("a+b", forbidden('+'), Ok(()));
    check("a\u{a0}b", forbidden('\u{a0}'), Ok(()));
    for control in ['\0', '\n', '\r', '\t', '\u{1b}', '\u{7f}', '\u{85}', '\u{9b}'] {
        check(&format!("a{control}b"), forbidden(control), forbidden(control));
    }
}

#[test]
fn an_origin_that_nobody_trusts_cannot_write_to_the_terminal() {
    let text = "\u{9b}31m\u{7f}\u{202e}\n1\nTszzRgjTG6xce+z2AG31kAXYKBgQVtCSCE40HmuwBb0=\n";
    let note = note::encode(text, [&key(1).sign_assertion(text)]);
    let error = Checkpoint::open(note.as_bytes(), &Policy::of_log(key(1).vkey().clone())).unwrap_err();
    assert!(matches!(error, CheckpointError::UnknownOrigin { .. }));
    assert!(error.to_string().is_ascii(), "{:?}", error.to_string());
}

#[test]
fn policies_are_limited_in_bytes_and_logs() {
    let logs = |count: usize| -> String {
        (0..count).map(|seed| format!("log {}\n", key(seed as u8).vkey())).collect()
    };
    let parse = |text: String| text.parse::<Policy>();
    assert_eq!(parse(logs(MAX_LOGS) + "quorum none\n").unwrap().logs().len(), MAX_LOGS);
    assert_eq!(parse(logs(MAX_LOGS + 1) + "quorum none\n"), Err(PolicyError::TooManyLogs));
    let padded = |bytes: usize| {
        let policy = logs(1) + "quorum none\n#";
        let comment = "x".repeat(bytes - policy.len());
        policy + &comment
    };
    assert!(parse(padded(MAX_POLICY_BYTES)).is_ok());
    assert_eq!(parse(padded(MAX_POLICY_BYTES + 1)), Err(PolicyError::TooLong(MAX_POLICY_BYTES + 1)));
}

#[test]
fn policies_are_refused_by_line() {
    let log = format!("log {}", key(1).vkey());
    let renamed = SigningKey::from_seed(KeyName::new("another.example").unwrap(), &[1; 32].into());
    let check = |text: &str, want: Result<(), PolicyError>| {
        assert_eq!(text.parse::<Policy>().map(drop), want, "{text:?}");
    };
    let quorums = |count| Err(PolicyError::Quorum(count));
    check(&format!("# c\n\n\t{log}\thttps://log.example/\n  quorum   none"), Ok(()));
    check(&log, quorums(0));
    check(&format!("{log}\nquorum none\nquorum none\n"), quorums(2));
    check("quorum none\n", Err(PolicyError::NoLog));
    check(&format!("{log}\n{log}\nquorum none\n"), Err(PolicyError::Duplicate { line: 2 }));
    let twice = format!("{log}\nlog {}\nquorum none\n", renamed.vkey());
    check(&twice, Err(PolicyError::Duplicate { line: 2 }));
    check(&format!("{log}\nquorum none # c\n"), Err(PolicyError::Words { line: 2 }));
    check(&format!("{log} url more\nquorum none\n"), Err(PolicyError::Words { line: 1 }));
    check(&format!("{log}\r\nquorum none\n"), Err(PolicyError::Octet { line: 1 }));
    check(&format!("{log}\nquorum none\n\u{7f}"), Err(PolicyError::Octet { line: 3 }));
    let words = |line| Err(PolicyError::Words { line });
    check(&format!("{log}\nquorum\n"), words(2));
    check(&format!("{log}\nwitness\nquorum none\n"), words(2));
    check(&format!("{log}\ngroup g 1\nquorum none\n"), words(2));
    check(&format!("{log}\nLOG x\n"), Err(PolicyError::Unknown { line: 2, word: "LOG".into() }));
    check(
        &format!("{log}\nquorum\u{a0}none\n"),
        Err(PolicyError::Unknown { line: 2, word: "quorum\u{a0}none".into() }),
    );
}

#[test]
fn receipts_are_limited_in_bytes_hashes_and_extra_data() {
    let receipt = |extra: usize, hashes: usize| {
        let extra = (extra > 0).then(|| vec![1; extra]);
        let hashes = vec![leaf(b""); hashes];
        Receipt { extra, index: LeafIndex::new(0).unwrap(), hashes, checkpoint: vec![b'x'; MAX_NOTE_BYTES] }
    };
    let largest = receipt(MAX_EXTRA_BYTES, MAX_PROOF_HASHES);
    assert_eq!(Receipt::parse(&largest.encode()), Ok(largest.clone()), "the largest note fits");
    let longest = largest.encode().split(|byte| *byte == b'\n').take(3).map(|line| line.len() + 1).max();
    assert!(longest <= Some(64 * 1024) && longest > Some(64 * 1024 - 8), "{longest:?}");
    let error = |receipt: Receipt| Receipt::parse(&receipt.encode()).unwrap_err();
    assert_eq!(error(receipt(MAX_EXTRA_BYTES + 1, 0)), ReceiptError::Line(2));
    assert_eq!(error(receipt(0, MAX_PROOF_HASHES + 1)), ReceiptError::TooManyHashes);
    let too_long = [largest.encode(), vec![b'x'; MAX_RECEIPT_BYTES]].concat();
    assert_eq!(Receipt::parse(&too_long), Err(ReceiptError::TooLong(too_long.len())));
}

#[test]
fn receipts_are_refused_by_line() {
    let hash = "TszzRgjTG6xce+z2AG31kAXYKBgQVtCSCE40HmuwBb0=";
    let check = |text: &str, want: Result<(), ReceiptError>| {
        assert_eq!(Receipt::parse(text.as_bytes()).map(drop), want, "{text:?}");
    };
    let v1 = "c2sp.org/tlog-proof@v1\n";
    let line = |number| Err(ReceiptError::Line(number));
    check(&format!("{v1}index 0\n\nnote"), Ok(()));
    check(&format!("{v1}index 0\n\n\nnote"), Ok(()));
    check(&format!("{v1}extra \nindex 0\n{hash}\n\nnote"), Ok(()));
    check("", Err(ReceiptError::Header));
    check("c2sp.org/tlog-proof@v10\nindex 0\n\nnote", Err(ReceiptError::Header));
    check("c2sp.org/tlog-proof@v1", Err(ReceiptError::CutOff));
    check(v1, Err(ReceiptError::CutOff));
    check(&format!("{v1}\nnote"), Err(ReceiptError::CutOff));
    check(&format!("{v1}index 0\n"), Err(ReceiptError::CutOff));
    check(&format!("{v1}index 0\n\n"), Err(ReceiptError::CutOff));
    check(&format!("{v1}extra AAAA\n\nnote"), Err(ReceiptError::CutOff));
    check(&format!("{v1}index 00\n\nnote"), line(2));
    check(&format!("{v1}index -1\n\nnote"), line(2));
    check(&format!("{v1}index 9223372036854775807\n\nnote"), line(2));
    check(&format!("{v1}extra AAAB==\nindex 0\n\nnote"), line(2));
    check(&format!("{v1}extra AAAA\nextra AAAA\nindex 0\n\nnote"), line(3));
    check(&format!("{v1}index 0\nextra AAAA\n\nnote"), line(3));
    check(&format!("{v1}index 0\n{}\n\nnote", &hash[..40]), line(3));
    check(&format!("{v1}index 0\n{hash}\r\n\nnote"), line(3));
}

#[test]
fn an_entry_fits_its_length_prefix() {
    let mut bytes = Vec::new();
    bundle::push(&mut bytes, &vec![0; MAX_ENTRY_BYTES]).unwrap();
    bundle::push(&mut bytes, &vec![0; MAX_ENTRY_BYTES + 1]).unwrap_err();
    assert_eq!(bytes.len(), 2 + MAX_ENTRY_BYTES, "what is refused leaves nothing behind");
}

/// Any number of hashes against any position, to the end of the range: accepted by length exactly where the
/// definition has that many, and no panic.
#[test]
fn proofs_of_any_length_at_any_position() {
    let positions = [
        1,
        2,
        3,
        7,
        8,
        9,
        1 << 31,
        (1 << 32) - 1,
        (1 << 62) - 1,
        1 << 62,
        (1 << 62) + 1,
        (1 << 63) - 2,
        (1 << 63) - 1,
    ];
    let lengths = [0, 1, 2, 3, 30, 31, 32, 33, 60, 61, 62, 63, 64, 65, 200];
    let garbage = leaf(b"garbage");
    for new in positions {
        for old in positions {
            let index = LeafIndex::new(old - 1).unwrap();
            for length in lengths.into_iter().chain((old <= new).then(|| proof(old, new).len())) {
                let hashes = vec![garbage; length];
                let fits = old <= new && path(old - 1, 0..new).len() == length;
                let proof = InclusionProof { index, size: size(new), hashes: hashes.clone() };
                assert_eq!(proof.root(&garbage).is_ok(), fits, "leaf {index} in {new} by {length}");
                let fitting = ConsistencyProof { old: size(old), new: size(new), hashes };
                let root_or_length = fitting.verify(&garbage, &garbage);
                assert!(old == new && length == 0 || root_or_length.is_err(), "{old} to {new} by {length}");
            }
        }
    }
    assert_eq!(TreeSize::MAX.get(), (1 << 63) - 1);
}

fn vkey_text(name: &str, typed_key: &[u8]) -> String {
    let id = sha256(&[name.as_bytes(), b"\n", typed_key].concat()).to_string();
    format!("{name}+{}+{}", &id[..8], STANDARD.encode(typed_key))
}

#[test]
fn keys_of_other_types_lengths_and_spellings_are_refused() {
    let good = key(1).vkey().to_string();
    let public = STANDARD.decode(good.rsplit_once('+').unwrap().1).unwrap();
    let check = |typed_key: &[u8], want: Result<(), KeyError>| {
        assert_eq!(vkey_text("log.example", typed_key).parse::<VKey>().map(drop), want, "{typed_key:?}");
    };
    check(&public, Ok(()));
    check(&public[..32], Err(KeyError::Malformed));
    check(&[&public[..], &[0]].concat(), Err(KeyError::Malformed));
    for kind in (0..=255).filter(|kind| ![1, 4].contains(kind)) {
        check(&[&[kind], &public[1..]].concat(), Err(KeyError::Unsupported(kind)));
    }
    let shape = |text: &str| assert!(matches!(text.parse::<VKey>(), Err(KeyError::Shape { .. })), "{text:?}");
    for bad in ["", "+", "++", "log.example", "log.example+00000000", "log.example+00000000+"] {
        shape(bad);
    }
    shape(&format!("{good}\n"));
    let (name, base64) = ("log.example", &good[good.len() - 44..]);
    for id in ["ABCDEF01", "+1234567", "123456789", "1234567", "12 45678"] {
        shape(&format!("{name}+{id}+{base64}"));
    }
    shape(&good.replacen(base64, &base64[..43], 1));
}

/// RFC 8032 section 5.1.3 refuses y >= p; a library that takes it gives one public key two texts, and a policy two
/// logs with one key.
#[test]
fn a_public_key_has_one_text_and_no_weak_ones_are_taken() {
    let p = {
        let mut p = [0xff; 32];
        (p[0], p[31]) = (0xed, 0x7f);
        p
    };
    let mut strong_ones = 0;
    for y in 0..19 {
        for sign in [0, 0x80] {
            let mut bytes = p;
            bytes[0] += y;
            bytes[31] |= sign;
            let taken = ed25519_dalek::VerifyingKey::from_bytes(&bytes);
            strong_ones += u32::from(taken.is_ok_and(|key| !key.is_weak()));
            let vkey = vkey_text("log.example", &[&[1], &bytes[..]].concat()).parse::<VKey>();
            assert_eq!(vkey, Err(KeyError::Malformed), "y = p + {y}, sign {sign:#x}");
        }
    }
    assert!(strong_ones > 0, "the library takes some of them, so the check is ours");
    // The identity, and a point of order 4.
    for weak in [1, 0] {
        let mut bytes = [0; 32];
        bytes[0] = weak;
        let vkey = vkey_text("log.example", &[&[1], &bytes[..]].concat()).parse::<VKey>();
        assert_eq!(vkey, Err(KeyError::Malformed));
    }
}
