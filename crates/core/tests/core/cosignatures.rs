//! Cosignatures: made, verified and attached to notes, byte for byte as an independent program makes them.

use epigraph_core::checkpoint::encode_text;
use epigraph_core::cosignature::{CosignatureError, CosignedAt, add_cosignature, verify};
use epigraph_core::key::{KeyError, KeyType, SigningKey};
use epigraph_core::note::{self, MAX_SIGNATURES, Parsed, SignatureLine, parse_signatures};
use epigraph_core::progress::{
    Committed, CosignError, Decision, Held, Persist, Proposal, Step, commit, decide,
};
use epigraph_core::{CosigningKey, Origin, TreeHead, UnixMillis, VKey};

use crate::reference::{Reference, size};

/// Made with Python (hashlib, cryptography) from the text of C2SP `tlog-cosignature`: the key of 32 bytes 0x04, `TEXT`
/// at time 1700000000.
const VKEY: &str = "witness.example/w1+141f260a+BMqTrBcFGHBx1nuDx/8O/oEI6OxFMFdddyaHkzPb2r58";
const LINE: &str = "— witness.example/w1 FB8mCgAAAABlU/EAi/hbFUh0mWmqVPoGmxH5+dnYqpba2GkjXqWnWQ0EgS9LoMLeuSBkPitdIWd0Nd5o8U1wTdEzS8Ox4LgKQcrVDw==";
const TEXT: &str = "log.example/cosigned\n3\nTszzRgjTG6xce+z2AG31kAXYKBgQVtCSCE40HmuwBb0=\n";

fn at(seconds: u64) -> CosignedAt {
    CosignedAt::new(seconds).unwrap()
}

fn witness(seed: u8) -> CosigningKey {
    CosigningKey::from_seed(format!("witness.example/w{}", seed % 4 + 1).parse().unwrap(), &[seed; 32].into())
}

fn log() -> SigningKey {
    SigningKey::from_seed("log.example/cosigned".parse().unwrap(), &[1; 32].into())
}

fn signed() -> String {
    note::encode(TEXT, [&log().sign_assertion(TEXT)])
}

fn line(text: &str) -> SignatureLine {
    parse_signatures(format!("{text}\n").as_bytes()).unwrap().remove(0)
}

#[test]
fn a_cosignature_is_that_of_the_specification() {
    let key = witness(4);
    assert_eq!(key.vkey().to_string(), VKEY);
    assert_eq!(VKEY.parse::<VKey>().as_ref(), Ok(key.vkey()));
    let made = key.cosign_assertion(TEXT, at(1_700_000_000));
    assert_eq!(made.to_string(), LINE);
    assert_eq!(made.signature.len(), 8 + 64);
    assert_eq!(verify(TEXT, &line(LINE), key.vkey()), Ok(at(1_700_000_000)));
}

#[test]
fn keys_of_one_role_do_not_serve_another() {
    let (key, log) = (witness(4), log());
    let read: CosigningKey = key.to_text().parse().unwrap();
    assert_eq!(read.vkey(), key.vkey());
    let (as_log, as_witness) = (key.to_text().parse::<SigningKey>(), log.to_text().parse::<CosigningKey>());
    let (found, expected) = (KeyType::CosignatureV1, KeyType::Ed25519);
    assert_eq!(as_log.unwrap_err(), KeyError::WrongType { found, expected });
    assert_eq!(as_witness.unwrap_err(), KeyError::WrongType { found: expected, expected: found });
    assert_eq!(format!("{key:?}"), format!("CosigningKey({VKEY})"), "the seed is not printed");
    // The same 32 bytes under the other type are another key with another id, and neither verifies for the other.
    let twin = SigningKey::from_seed(key.vkey().name().clone(), &[4; 32].into());
    assert!(twin.vkey().same_public_key(key.vkey()) && twin.vkey() != key.vkey());
    assert_ne!(twin.vkey().id(), key.vkey().id());
    let mut forged = twin.sign_assertion(TEXT);
    forged.key_id = key.vkey().id();
    assert_eq!(verify(TEXT, &forged, key.vkey()), Err(CosignatureError::Bad(key.vkey().name().clone())));
    let not_a_witness = Err(CosignatureError::NotAWitness(KeyType::Ed25519));
    assert_eq!(verify(TEXT, &twin.sign_assertion(TEXT), twin.vkey()), not_a_witness);
}

/// Broken to see it fail: the time left out of the signed bytes, and the text.
#[test]
fn a_cosignature_with_one_bit_changed_is_refused() {
    let vkey = witness(4).vkey().clone();
    let good = witness(4).cosign_assertion(TEXT, at(1_700_000_000));
    verify(TEXT, &good, &vkey).unwrap();
    for bit in 0..8 * good.signature.len() {
        let mut changed = good.clone();
        changed.signature[bit / 8] ^= 1 << (bit % 8);
        assert!(verify(TEXT, &changed, &vkey).is_err(), "bit {bit}");
    }
    for cut in 0..good.signature.len() {
        let signature = good.signature[..cut].to_vec();
        assert!(verify(TEXT, &SignatureLine { signature, ..good.clone() }, &vkey).is_err(), "{cut} bytes");
    }
    for byte in 0..TEXT.len() {
        let mut changed = TEXT.as_bytes().to_vec();
        changed[byte] ^= 1;
        assert!(verify(std::str::from_utf8(&changed).unwrap(), &good, &vkey).is_err(), "byte {byte}");
    }
}

struct Durable;

impl Persist for Durable {
    type Error = ();

    fn persist(&mut self, _: &[Step]) -> Result<(), ()> {
        Ok(())
    }
}

fn committed(head: TreeHead, note: String, now: UnixMillis) -> Committed {
    let proposal = Proposal { old_size: size(0), head, proof: Vec::new(), note: note.into_bytes() };
    let origin = Origin::new("log.example/cosigned").unwrap();
    let Decision::Step(step) = decide(&origin, &Held::EMPTY, proposal, now) else { panic!("refused") };
    commit(vec![step], &mut Durable).unwrap().remove(0)
}

#[test]
fn a_witness_cosigns_the_note_it_holds_and_no_other() {
    let tree = Reference::labelled("leaf", 5);
    let head = |leaves| TreeHead { size: size(leaves), root: tree.root(leaves) };
    let origin: Origin = "log.example/cosigned".parse().unwrap();
    let note = |text: &str| note::encode(text, [&log().sign_assertion(text)]);
    let text = encode_text(&origin, &head(5));
    let key = witness(1);
    let now = UnixMillis(1_700_000_000_999);

    let line = committed(head(5), note(&text), now).cosign(&key).unwrap();
    assert_eq!(verify(&text, &line, key.vkey()), Ok(at(1_700_000_000)));
    // Extension lines belong to what the log signed, so to what is cosigned.
    let extended = format!("{text}extension\n");
    let line = committed(head(5), note(&extended), now).cosign(&key).unwrap();
    assert_eq!(verify(&extended, &line, key.vkey()), Ok(at(1_700_000_000)));

    let refused = |note: String| committed(head(5), note, now).cosign(&key).unwrap_err();
    let other = CosignError::OtherNote { origin: origin.clone() };
    assert_eq!(refused(note(&encode_text(&origin, &head(4)))), other, "another size");
    let root = TreeHead { root: tree.root(4), ..head(5) };
    assert_eq!(refused(note(&encode_text(&origin, &root))), other, "another root");
    assert_eq!(refused(note(&encode_text(&"log.example".parse().unwrap(), &head(5)))), other, "another log");
    assert_eq!(refused(String::new()), other, "nothing");
    let early = committed(head(5), note(&text), UnixMillis(999)).cosign(&key).unwrap_err();
    assert_eq!(early, CosignError::NoTime { origin });
}

fn names(note: &str) -> Vec<String> {
    Parsed::parse(note.as_bytes()).unwrap().signatures().iter().map(|line| line.name.clone()).collect()
}

#[test]
fn cosignatures_are_attached_in_the_order_they_come_and_the_text_stays() {
    let mut note = signed();
    for seed in [2, 0, 1] {
        let line = witness(seed).cosign_assertion(TEXT, at(100 + u64::from(seed)));
        note = add_cosignature(&note, &line, witness(seed).vkey()).unwrap().unwrap();
        assert!(note.starts_with(signed().as_str()), "what was there stays where it was");
        assert_eq!(add_cosignature(&note, &line, witness(seed).vkey()), Ok(None), "a repeat changes nothing");
    }
    let order = ["log.example/cosigned", "witness.example/w3", "witness.example/w1", "witness.example/w2"];
    assert_eq!(names(&note), order);
    let first = witness(0);
    let older = first.cosign_assertion(TEXT, at(99));
    assert_eq!(
        add_cosignature(&note, &older, first.vkey()),
        Ok(None),
        "an older one does not replace a newer"
    );
    let newer = first.cosign_assertion(TEXT, at(101));
    let renewed = add_cosignature(&note, &newer, first.vkey()).unwrap().unwrap();
    assert_eq!(names(&renewed), order, "a newer one takes its place");
    assert_eq!(Parsed::parse(renewed.as_bytes()).unwrap().signatures()[2], newer);

    // A line in the witness's name that anybody can write does not keep the true one out.
    let forged = SignatureLine { signature: vec![0xff; 72], ..newer.clone() };
    let spoiled = note::encode(TEXT, [&log().sign_assertion(TEXT), &forged, &forged]);
    let repaired = add_cosignature(&spoiled, &newer, first.vkey()).unwrap().unwrap();
    assert_eq!(repaired, note::encode(TEXT, [&log().sign_assertion(TEXT), &newer]));
}

/// Row W3: what a witness answers is attached only if it is its own cosignature over this text. Broken to see it fail:
/// the answer attached without `verify`.
#[test]
fn what_is_not_this_witness_s_cosignature_of_this_text_is_not_attached() {
    let key = witness(0);
    let check = |line: SignatureLine, want: CosignatureError| {
        assert_eq!(add_cosignature(&signed(), &line, key.vkey()), Err(want));
    };
    let bad = || CosignatureError::Bad(key.vkey().name().clone());
    check(key.cosign_assertion("log.example/cosigned\n2\nold\n", at(100)), bad());
    check(SignatureLine { signature: vec![1], ..key.cosign_assertion(TEXT, at(1)) }, bad());
    check(SignatureLine { signature: vec![1; 2428], ..key.cosign_assertion(TEXT, at(1)) }, bad());
    check(key.cosign_assertion(TEXT, at(0)), CosignatureError::NoTime(key.vkey().name().clone()));
    let other = witness(1).cosign_assertion(TEXT, at(100));
    let found = format!("{:?} (key {})", other.name, other.key_id);
    check(other, CosignatureError::OtherKey { found, expected: key.vkey().name().clone() });
    assert_eq!((CosignedAt::new(u64::MAX), CosignedAt::new(1 << 63)), (None, None));
}

#[test]
fn a_note_takes_so_many_cosignatures_and_no_more() {
    let mut note = signed();
    for seed in 1..=MAX_SIGNATURES as u8 {
        let name = format!("witness.example/{seed}");
        let key = CosigningKey::from_seed(name.parse().unwrap(), &[seed; 32].into());
        let added = add_cosignature(&note, &key.cosign_assertion(TEXT, at(5)), key.vkey());
        if usize::from(seed) == MAX_SIGNATURES {
            assert_eq!(added, Err(CosignatureError::Full));
        } else {
            note = added.unwrap().unwrap();
        }
    }
    // The size is the other limit: one post-quantum line beside a long text.
    let long = format!("{TEXT}{}\n", "x".repeat(note::MAX_NOTE_BYTES - 250));
    let full = note::encode(&long, [&log().sign_assertion(&long)]);
    let key = witness(0);
    let added = add_cosignature(&full, &key.cosign_assertion(&long, at(5)), key.vkey());
    assert_eq!(added, Err(CosignatureError::Full));
}

#[test]
fn signature_lines_travel_alone_and_of_any_size() {
    let lines = [
        witness(0).cosign_assertion(TEXT, at(7)),
        log().sign_assertion(TEXT),
        SignatureLine { signature: vec![6; 8 + 2420], ..witness(1).cosign_assertion(TEXT, at(7)) },
    ];
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    assert_eq!(parse_signatures(text.as_bytes()).unwrap(), lines);
    assert_eq!(parse_signatures(format!("{TEXT}\n{text}").as_bytes()).ok(), None, "a whole note is no reply");
    for bad in ["", "\n", "x", text.trim_end(), &format!("{text}\n"), &text.repeat(34)] {
        assert!(parse_signatures(bad.as_bytes()).is_err(), "{} bytes", bad.len());
    }
    // A key that nobody here knows, with a signature of any size beside known ones, is passed over.
    let note = note::encode(TEXT, &lines);
    let known = log().vkey().clone();
    let parsed = Parsed::parse(note.as_bytes()).unwrap();
    let signers =
        parsed.verify(|name, id| (name == known.name().as_str() && id == known.id()).then_some(&known));
    assert_eq!(signers.unwrap().len(), 1);
}
