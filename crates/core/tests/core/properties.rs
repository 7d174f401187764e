//! What is written reads back, and nothing reads that is not written exactly so: for every text and byte format,
//! `parse(encode(x)) == x`, and `encode(parse(bytes)) == bytes` wherever `bytes` parse.

use epigraph_core::checkpoint::{decode_text, encode_text};
use epigraph_core::key::{KeyName, Origin, SigningKey};
use epigraph_core::note::{self, Parsed, SignatureLine};
use epigraph_core::progress::{Decision, Held, Proposal, decide};
use epigraph_core::tile::{Level, Row, TileName};
use epigraph_core::tlog_proof::Receipt;
use epigraph_core::{Hash, LeafIndex, Policy, TreeHead, TreeSize, UnixMillis, VKey, bundle};
use proptest::collection::vec;
use proptest::prelude::*;

fn config() -> ProptestConfig {
    // A failure prints its smallest case, which then becomes a test of its own; no files are written.
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) }
}

fn hash() -> impl Strategy<Value = Hash> {
    any::<[u8; 32]>().prop_map(Hash::from_bytes)
}

fn key_name() -> impl Strategy<Value = KeyName> {
    prop_oneof!["[a-z0-9./_-]{1,40}", "\\PC{1,60}"]
        .prop_filter_map("not a name", |name| KeyName::new(name).ok())
}

fn origin() -> impl Strategy<Value = Origin> {
    "\\PC{1,60}".prop_filter_map("not an origin", |name| Origin::new(name).ok())
}

fn signing_key() -> impl Strategy<Value = SigningKey> {
    (key_name(), any::<[u8; 32]>()).prop_map(|(name, seed)| SigningKey::from_seed(name, &seed.into()))
}

/// Sizes of every magnitude; evenly spread ones would all be near the end.
fn tree_size() -> impl Strategy<Value = TreeSize> {
    (0..64u32, any::<u64>()).prop_map(|(shift, bits)| TreeSize::new(bits >> 1 >> shift.min(63)).unwrap())
}

fn tree_head() -> impl Strategy<Value = TreeHead> {
    (tree_size(), hash()).prop_map(|(size, root)| match size {
        TreeSize::ZERO => TreeHead::EMPTY,
        size => TreeHead { size, root },
    })
}

fn signature_line() -> impl Strategy<Value = SignatureLine> {
    (key_name(), any::<[u8; 4]>(), vec(any::<u8>(), 1..100)).prop_map(|(name, id, signature)| SignatureLine {
        name: name.as_str().to_owned(),
        key_id: epigraph_core::key::KeyId::from_bytes(id),
        signature,
    })
}

fn receipt() -> impl Strategy<Value = Receipt> {
    let index = any::<u64>().prop_filter_map("out of range", |index| LeafIndex::new(index >> 1));
    (proptest::option::of(vec(any::<u8>(), 0..50)), index, vec(hash(), 0..=63), vec(any::<u8>(), 1..200))
        .prop_map(|(extra, index, hashes, checkpoint)| Receipt { extra, index, hashes, checkpoint })
}

fn tile_name() -> impl Strategy<Value = TileName> {
    let row =
        prop_oneof![Just(Row::Entries), (0..=63u8).prop_map(|level| Row::Hashes(Level::new(level).unwrap()))];
    (row, any::<u64>(), 0..64u32, 1..=256u16)
        .prop_map(|(row, index, shift, width)| TileName::new(row, index >> shift, width).unwrap())
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn keys_read_back(key in signing_key()) {
        let vkey: VKey = key.vkey().to_string().parse().unwrap();
        prop_assert_eq!(&vkey, key.vkey());
        let again: SigningKey = key.to_text().parse().unwrap();
        prop_assert_eq!(&*again.to_text(), &*key.to_text());
        prop_assert_eq!(again.vkey(), key.vkey());
    }

    #[test]
    fn checkpoint_texts_read_back(origin in origin(), head in tree_head()) {
        prop_assert_eq!(decode_text(&encode_text(&origin, &head)), Ok((origin, head)));
    }

    #[test]
    fn notes_read_back(text in "(\\PC{0,40}\n){1,4}", lines in vec(signature_line(), 1..5)) {
        let note = note::encode(&text, &lines);
        let parsed = Parsed::parse(note.as_bytes()).unwrap();
        prop_assert_eq!((parsed.text(), parsed.signatures()), (text.as_str(), lines.as_slice()));
    }

    #[test]
    fn receipts_read_back(receipt in receipt()) {
        prop_assert!(Receipt::recognise(&receipt.encode()));
        prop_assert_eq!(Receipt::parse(&receipt.encode()), Ok(receipt));
    }

    #[test]
    fn tile_names_read_back(tile in tile_name()) {
        prop_assert_eq!(tile.to_string().parse(), Ok(tile));
    }

    #[test]
    fn policies_read_back(keys in vec(signing_key(), 1..6)) {
        let lines: String = keys.iter().map(|key| format!("log {}\n", key.vkey())).collect();
        let policy: Policy = (lines.clone() + "quorum none\n").parse().unwrap();
        prop_assert_eq!(policy.to_text(), lines + "quorum none\n");
        prop_assert_eq!(policy.to_text().parse(), Ok(policy));
    }

    #[test]
    fn bundles_read_back(entries in vec(vec(any::<u8>(), 0..300), 0..20)) {
        let mut bytes = Vec::new();
        entries.iter().for_each(|entry| bundle::push(&mut bytes, entry).unwrap());
        let read: Result<Vec<_>, _> = bundle::entries(&bytes).collect();
        prop_assert_eq!(read.unwrap(), entries);
    }

    #[test]
    fn bundles_are_canonical(bytes in vec(0..4u8, 0..60)) {
        if let Some(again) = encoded_bundle(&bytes) {
            prop_assert_eq!(again, bytes);
        }
    }

    /// Nothing that any reader is handed may panic it.
    #[test]
    fn any_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..300), text in "\\PC{0,200}") {
        for bytes in [&bytes, text.as_bytes()] {
            for (_, encode_again) in READERS {
                if let Some(again) = encode_again(bytes) {
                    prop_assert_eq!(&again, bytes);
                }
            }
        }
    }

    /// Whatever is held, believed and proposed: an answer, and a step only to what was proposed.
    #[test]
    fn any_proposal_is_decided(
        held in tree_head(), head in tree_head(), old in tree_size(), same in any::<bool>(),
        proof in vec(hash(), 0..70), now in any::<u64>(), time in any::<u64>(),
    ) {
        let held = Held { head: held, time: UnixMillis(time), term: 1, note: Vec::new() };
        let old_size = if same { held.head.size } else { old };
        let proposal = Proposal { old_size, head, proof, note: Vec::new() };
        let origin = Origin::new("log.example").unwrap();
        match decide(&origin, &held, proposal, UnixMillis(now)) {
            Decision::Step(step) => {
                prop_assert_eq!(step.next().head, head);
                prop_assert_eq!(step.next().time.0, now.max(time));
                // No one finds a proof by chance: only the empty tree grows without one.
                prop_assert!(held.head == head || held.head.size == TreeSize::ZERO);
            }
            Decision::Conflict(_) => prop_assert_eq!(held.head.size, head.size),
            Decision::Stale(_) | Decision::Reject(_) => {}
        }
    }
}

/// Reads bytes and writes again what was read; `None` if they are refused.
type EncodeAgain = fn(&[u8]) -> Option<Vec<u8>>;

fn utf8(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

fn encoded_bundle(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut again = Vec::new();
    for entry in bundle::entries(bytes) {
        bundle::push(&mut again, entry.ok()?).ok()?;
    }
    Some(again)
}

const READERS: [(&str, EncodeAgain); 7] = [
    ("vkey", |bytes| Some(utf8(bytes)?.parse::<VKey>().ok()?.to_string().into_bytes())),
    ("signing key", |bytes| Some(utf8(bytes)?.parse::<SigningKey>().ok()?.to_text().as_bytes().to_vec())),
    ("tile path", |bytes| Some(utf8(bytes)?.parse::<TileName>().ok()?.to_string().into_bytes())),
    ("note", |bytes| {
        let note = Parsed::parse(bytes).ok()?;
        Some(note::encode(note.text(), note.signatures()).into_bytes())
    }),
    ("receipt", |bytes| Some(Receipt::parse(bytes).ok()?.encode())),
    ("checkpoint text", |bytes| {
        let (origin, head) = decode_text(utf8(bytes)?).ok()?;
        // Extension lines are read over and never written.
        let extensions: String = utf8(bytes)?.split_inclusive('\n').skip(3).collect();
        Some((encode_text(&origin, &head) + &extensions).into_bytes())
    }),
    ("bundle", encoded_bundle),
];

/// A valid document of each kind.
fn documents() -> [(&'static str, Vec<u8>); 12] {
    let key = SigningKey::from_seed(KeyName::new("log.example/a").unwrap(), &[5; 32].into());
    let head = TreeHead { size: TreeSize::new(107).unwrap(), root: epigraph_core::hash::leaf_hash(b"root") };
    let text = encode_text(&key.vkey().name().to_origin(), &head);
    let line = key.sign_assertion(&text);
    let receipt = Receipt {
        extra: Some(b"extra!".to_vec()),
        index: LeafIndex::new(10).unwrap(),
        hashes: vec![head.root; 2],
        checkpoint: note::encode(&text, [&line]).into_bytes(),
    };
    let mut bundle = Vec::new();
    [&b"one"[..], b"", b"three"].iter().for_each(|entry| bundle::push(&mut bundle, entry).unwrap());
    [
        ("vkey", key.vkey().to_string().into_bytes()),
        ("signing key", key.to_text().as_bytes().to_vec()),
        ("tile path", b"tile/0/000".to_vec()),
        ("tile path", b"tile/10/x001/x234/067.p/20".to_vec()),
        ("tile path", b"tile/entries/x001/000.p/255".to_vec()),
        ("tile path", b"tile/63/x018/x446/x744/x073/x709/x551/615".to_vec()),
        ("note", note::encode(&text, [&line, &line]).into_bytes()),
        ("receipt", receipt.encode()),
        ("receipt", Receipt { extra: None, hashes: Vec::new(), ..receipt }.encode()),
        ("checkpoint text", text.clone().into_bytes()),
        ("checkpoint text", (text + "extension\n").into_bytes()),
        ("bundle", bundle),
    ]
}

#[test]
fn a_document_with_any_byte_changed_is_refused_or_reads_as_itself() {
    for (kind, document) in documents() {
        let (_, encode_again) = READERS.iter().find(|(reader, _)| *reader == kind).unwrap();
        let check = |bytes: &[u8]| {
            if let Some(again) = encode_again(bytes) {
                assert_eq!(again, bytes, "{kind}: {:?}", String::from_utf8_lossy(bytes));
            }
        };
        assert_eq!(encode_again(&document), Some(document.clone()), "{kind}");
        let mut changed = document.clone();
        for at in 0..document.len() {
            for byte in 0..=255 {
                changed[at] = byte;
                check(&changed);
            }
            changed[at] = document[at];
            for byte in 0..=255 {
                changed.insert(at, byte);
                check(&changed);
                changed.remove(at);
            }
            let byte = changed.remove(at);
            check(&changed);
            changed.insert(at, byte);
            check(&document[..at]);
            check(&[&document[..at], &document[at..], &document[..at]].concat());
        }
    }
}
