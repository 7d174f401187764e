//! The vectors in `tests/golden`, every one of them; its README says where they come from.

use std::collections::BTreeSet;
use std::path::PathBuf;

use epigraph_core::checkpoint::{CheckpointError, decode_text, encode_text};
use epigraph_core::hash::{leaf_hash, sha256};
use epigraph_core::key::{KeyError, KeyId};
use epigraph_core::note::{self, NoteError, Parsed};
use epigraph_core::proof::{ConsistencyProof, InclusionProof};
use epigraph_core::tile::{Level, Row, TileName, levels, row_shape};
use epigraph_core::{Checkpoint, Frontier, Hash, LeafIndex, Policy, SigningKey, TreeSize, VKey};
use serde_json::Value;

const FILES: [&str; 8] = [
    "merkle_consistency.jsonl",
    "merkle_inclusion.jsonl",
    "mldsa44_checkpoint.json",
    "policy_cases.json",
    "rfc6962_roots.json",
    "signed_notes.json",
    "tile_paths.json",
    "vkey_mldsa44_formats.txt",
];

/// The source refuses every proof from the empty tree; here it is the beginning of every tree.
const EMPTY_OLD_TREE: [&str; 3] = [
    "testdata/consistency/additional/size1-is-zero-and-does-not-equal-size2.json",
    "testdata/consistency/additional/size1-is-zero-and-size2-is-not-zero.json",
    "testdata/consistency/additional/sizes-are-equal-zero-and-proof-is-empty.json",
];

fn folder() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "golden"].iter().collect()
}

fn read(file: &str) -> String {
    std::fs::read_to_string(folder().join(file)).unwrap()
}

fn json(file: &str) -> Value {
    serde_json::from_str(&read(file)).unwrap()
}

fn json_lines(file: &str) -> Vec<Value> {
    read(file).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("{field} in {value}"))
}

fn texts<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a str> {
    value[field].as_array().unwrap().iter().map(|text| text.as_str().unwrap())
}

/// Base64 by other means than the core's.
fn base64(text: &str) -> Vec<u8> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).unwrap()
}

fn hash(value: &Value, field: &str) -> Option<Hash> {
    Hash::from_slice(&base64(text(value, field)))
}

/// The proof's hashes; `None` if one of them is not a hash. A missing list is an empty one.
fn hashes(value: &Value) -> Option<Vec<Hash>> {
    let list = value["proof"].as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().map(|hash| Hash::from_slice(&base64(hash.as_str().unwrap()))).collect()
}

#[test]
fn the_copies_are_those_of_the_shared_folder() {
    let files: BTreeSet<_> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(files, FILES.into_iter().chain(["README.md"]).map(str::to_owned).collect());
    let readme = read("README.md");
    assert!(FILES.iter().all(|file| readme.contains(&format!("`{file}`"))), "the README names each file");

    let Some(shared) = std::env::var_os("EPIGRAPH_SHARED") else {
        println!("skipped: EPIGRAPH_SHARED is not set, so the golden copies were not compared with it");
        return;
    };
    let vectors = PathBuf::from(shared).join("vectors");
    for file in FILES {
        let original = std::fs::read(vectors.join(file)).unwrap_or_else(|error| {
            panic!(
                "{} cannot be read ({error}): EPIGRAPH_SHARED must name the shared folder",
                vectors.join(file).display()
            )
        });
        assert!(original == read(file).into_bytes(), "{file} is not the same as in {}", vectors.display());
    }
}

/// `None` where the case cannot even be put into types: a position out of range, a hash of another length.
fn inclusion(case: &Value) -> Option<bool> {
    let proof = InclusionProof {
        index: LeafIndex::new(case["leafIdx"].as_u64()?)?,
        size: TreeSize::new(case["treeSize"].as_u64()?)?,
        hashes: hashes(case)?,
    };
    Some(proof.verify(&hash(case, "leafHash")?, &hash(case, "root")?).is_ok())
}

#[test]
fn inclusion_vectors() {
    let cases = json_lines("merkle_inclusion.jsonl");
    for case in &cases {
        let accepted = inclusion(case).unwrap_or(false);
        assert_eq!(accepted, !case["wantErr"].as_bool().unwrap(), "{}", case["_src"]);
    }
    assert_eq!(cases.len(), 98);
    assert_eq!(cases.iter().filter_map(inclusion).count(), 70, "verified rather than unfit for the types");
}

fn consistency(case: &Value) -> Option<bool> {
    let proof = ConsistencyProof {
        old: TreeSize::new(case["size1"].as_u64()?)?,
        new: TreeSize::new(case["size2"].as_u64()?)?,
        hashes: hashes(case)?,
    };
    Some(proof.verify(&root(case, "root1"), &root(case, "root2")).is_ok())
}

/// The source writes a text where it takes no root to matter; its digest stands in for it.
fn root(case: &Value, field: &str) -> Hash {
    hash(case, field).unwrap_or_else(|| sha256(text(case, field).as_bytes()))
}

#[test]
fn consistency_vectors() {
    let cases = json_lines("merkle_consistency.jsonl");
    let excepted = |case: &&Value| EMPTY_OLD_TREE.contains(&text(case, "_src"));
    assert_eq!(cases.iter().filter(excepted).count(), EMPTY_OLD_TREE.len());
    for case in cases.iter().filter(|case| !excepted(case)) {
        let accepted = consistency(case).unwrap_or(false);
        assert_eq!(accepted, !case["wantErr"].as_bool().unwrap(), "{}", case["_src"]);
    }
    assert_eq!(cases.len(), 98);
    assert_eq!(cases.iter().filter_map(consistency).count(), 90, "verified rather than unfit for the types");
}

#[test]
fn the_empty_tree_is_the_beginning_of_every_tree() {
    let cases = json_lines("merkle_consistency.jsonl");
    for source in EMPTY_OLD_TREE {
        let case = cases.iter().find(|case| case["_src"] == source).unwrap();
        assert_eq!((&case["size1"], &case["proof"]), (&0.into(), &Value::Array(Vec::new())), "{source}");
        // From the empty tree, and from nothing else that calls itself empty.
        let from_empty = root(case, "root1") == Hash::EMPTY_ROOT;
        assert_eq!(consistency(case), Some(from_empty), "{source}");
        let new = TreeSize::new(case["size2"].as_u64().unwrap()).unwrap();
        let proof = ConsistencyProof { old: TreeSize::ZERO, new, hashes: Vec::new() };
        let root = if new == TreeSize::ZERO { Hash::EMPTY_ROOT } else { leaf_hash(b"") };
        assert_eq!(proof.verify(&Hash::EMPTY_ROOT, &root), Ok(()), "{source}");
    }
}

#[test]
fn roots_of_rfc_6962() {
    let case = json("rfc6962_roots.json");
    let entries = texts(&case, "leaves_hex").map(|hex| {
        let digits = hex.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
        digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect::<Vec<u8>>()
    });
    let mut frontier = Frontier::new();
    let mut roots = vec![frontier.root().to_string()];
    for entry in entries {
        frontier.push(leaf_hash(&entry)).unwrap();
        roots.push(frontier.root().to_string());
    }
    assert_eq!(roots, texts(&case, "root_by_size").collect::<Vec<_>>());
    assert_eq!(roots.len(), 9);
}

/// The keys of `keys` that signed, by name.
fn signers(note: &str, keys: &[VKey]) -> Result<Vec<String>, NoteError> {
    let parsed = Parsed::parse(note.as_bytes())?;
    assert_eq!(note::encode(parsed.text(), parsed.signatures()), note, "what parses is canonical");
    let find = |name: &str, id| keys.iter().find(|key| key.name().as_str() == name && key.id() == id);
    Ok(parsed.verify(find)?.into_iter().map(|(key, _)| key.name().to_string()).collect())
}

#[test]
fn notes_and_keys_of_the_go_implementation() {
    let case = &json("signed_notes.json")["golang_mod_note"];
    let keys: Vec<VKey> = texts(case, "vkeys_ok").map(|vkey| vkey.parse().unwrap()).collect();
    assert_eq!(
        keys.iter().map(VKey::to_string).collect::<Vec<_>>(),
        texts(case, "vkeys_ok").collect::<Vec<_>>()
    );
    for bad in texts(case, "vkeys_bad") {
        bad.parse::<VKey>().unwrap_err();
    }
    let (text_signed, peter, enoch) = (text(case, "text"), text(case, "sig_peter"), text(case, "sig_enoch"));
    let check = |lines: &str, want: &[&str]| {
        assert_eq!(signers(&format!("{text_signed}\n{lines}"), &keys).unwrap(), want);
    };
    check(peter, &["PeterNeumann"]);
    check(enoch, &["EnochRoot"]);
    check(&format!("{peter}{enoch}"), &["PeterNeumann", "EnochRoot"]);
    // A key that signs twice is one signer.
    check(&format!("{peter}{enoch}{peter}"), &["PeterNeumann", "EnochRoot"]);
    assert_eq!(
        signers(&format!("{text_signed}\n{peter}"), &keys[1..]),
        Ok(Vec::new()),
        "an unknown key is passed over"
    );
    let error =
        signers(&format!("{text_signed}\n{peter}").replacen("cryptography", "Cryptography", 1), &keys)
            .unwrap_err();
    assert!(matches!(error, NoteError::BadSignature { name, .. } if name == "PeterNeumann"));

    for bad in texts(case, "bad_messages") {
        Parsed::parse(bad.as_bytes()).unwrap_err();
    }
    let not_utf8 = [b"\xff", text_signed.as_bytes(), b"\n", peter.as_bytes()].concat();
    assert_eq!(Parsed::parse(&not_utf8), Err(NoteError::NotText));

    let signer: SigningKey = text(case, "published_test_skey").parse().unwrap();
    assert_eq!(*signer.to_text(), text(case, "published_test_skey"));
    assert_eq!(*signer.vkey(), keys[0]);
    let line = signer.sign_assertion(text_signed);
    assert_eq!(
        note::encode(text_signed, [&line]),
        format!("{text_signed}\n{peter}"),
        "Ed25519 is deterministic"
    );
    assert_eq!(format!("{signer:?}"), format!("SigningKey({})", keys[0]), "the seed is not printed");
}

#[test]
fn the_note_of_the_specification() {
    let case = &json("signed_notes.json")["c2sp_signed_note"];
    let key: VKey = text(case, "vkey").parse().unwrap();
    assert_eq!(signers(text(case, "note"), &[key]).unwrap(), ["example.com/foo"]);
}

#[test]
fn a_checkpoint_of_the_go_checksum_database() {
    let case = &json("signed_notes.json")["sumdb_checkpoint"];
    let note = text(case, "note");
    let key: VKey = text(case, "vkey").parse().unwrap();
    assert_eq!(signers(note, std::slice::from_ref(&key)).unwrap(), ["sum.golang.org"]);
    let parsed = Parsed::parse(note.as_bytes()).unwrap();
    let (origin, head) = decode_text(parsed.text()).unwrap();
    assert_eq!((origin.as_str(), head.size.get()), ("go.sum database tree", 35_225_469));
    assert_eq!(encode_text(&origin, &head), parsed.text());
    // Its origin is not its key's name, which C2SP tlog-policy asks for.
    let error = Checkpoint::open(note.as_bytes(), &Policy::of_log(key)).unwrap_err();
    assert!(matches!(error, CheckpointError::UnknownOrigin { found, .. } if found == "go.sum database tree"));

    let case = &json("signed_notes.json")["sumdb_tree_format"];
    let (origin, head) = decode_text(text(case, "text")).unwrap();
    assert_eq!(Some(head.size.get()), case["size"].as_u64());
    assert_eq!(head.root, leaf_hash(text(case, "root_is_leaf_hash_of").as_bytes()));
    assert_eq!(encode_text(&origin, &head), text(case, "text"));
}

#[test]
fn a_cosigned_checkpoint_of_the_specification() {
    let case = &json("signed_notes.json")["c2sp_cosigned_checkpoint"];
    let note = text(case, "note");
    let parsed = Parsed::parse(note.as_bytes()).unwrap();
    assert_eq!(note::encode(parsed.text(), parsed.signatures()), note);
    let (origin, head) = decode_text(parsed.text()).unwrap();
    assert_eq!((origin.as_str(), head.size.get()), ("example.com/behind-the-sofa", 20_852_163));
    let [log, witness] = parsed.signatures() else { panic!("two lines") };
    assert_eq!((log.name.as_str(), log.signature.len()), (origin.as_str(), 64));
    assert_eq!((witness.name.as_str(), witness.signature.len()), ("witness.example.com/w1", 8 + 64));
    let (timestamp, _) = witness.signature.split_first_chunk().unwrap();
    assert_eq!(Some(u64::from_be_bytes(*timestamp)), case["timestamp_expected"].as_u64());
}

#[test]
fn post_quantum_keys_are_refused_and_their_notes_parse() {
    let case = json("mldsa44_checkpoint.json");
    assert_eq!(text(&case, "log_vkey").parse::<VKey>(), Err(KeyError::Unsupported(0x06)));
    let note = text(&case, "checkpoint_note");
    let parsed = Parsed::parse(note.as_bytes()).unwrap();
    assert_eq!(note::encode(parsed.text(), parsed.signatures()), note);
    let [line] = parsed.signatures() else { panic!("one line") };
    assert_eq!(line.key_id, KeyId::from_bytes([0xb5, 0xdf, 0x45, 0xc5]));
    assert_eq!(line.signature.len(), 8 + 2420);
    let (_, head) = decode_text(parsed.text()).unwrap();
    assert_eq!(head.size.get(), case["tree_size"].as_u64().unwrap());
    assert_eq!(head.root, leaf_hash(text(&case, "leaf_data").as_bytes()));

    // Its key id is not that of its name and key.
    let error = read("vkey_mldsa44_formats.txt").trim_end().parse::<VKey>().unwrap_err();
    assert!(matches!(error, KeyError::Unsupported(0x06) | KeyError::IdMismatch { .. }), "{error}");
}

#[test]
fn a_key_id_that_is_not_that_of_name_and_key_is_refused() {
    let case = &json("signed_notes.json")["golang_mod_note"];
    let mismatch = |text: &str| match text.strip_prefix("PRIVATE") {
        Some(_) => matches!(text.parse::<SigningKey>(), Err(KeyError::IdMismatch { .. })),
        None => matches!(text.parse::<VKey>(), Err(KeyError::IdMismatch { .. })),
    };
    for key in texts(case, "vkeys_ok").chain([text(case, "published_test_skey")]) {
        assert!(!mismatch(key));
        let id = key.trim_start_matches("PRIVATE+KEY+").split('+').nth(1).unwrap();
        assert!(mismatch(&key.replacen(id, "5893dc2c", 1)), "another id");
        assert!(mismatch(&key.replacen("Peter", "Retep", 1).replacen("Enoch", "Hcone", 1)), "another name");
    }
}

#[test]
fn tile_paths() {
    let case = json("tile_paths.json");
    let entries = case["entries_ok"].as_array().unwrap().iter().map(|case| (Row::Entries, case));
    let hashes = case["ok"].as_array().unwrap().iter().map(|case| {
        let level = u8::try_from(case["level"].as_u64().unwrap()).unwrap();
        (Row::Hashes(Level::new(level).unwrap()), case)
    });
    for (row, case) in hashes.chain(entries) {
        // The vectors write 0 for a full tile.
        let width = match case["w"].as_u64().unwrap() {
            0 => 256,
            partial => u16::try_from(partial).unwrap(),
        };
        let tile = TileName::new(row, case["index"].as_u64().unwrap(), width).unwrap();
        assert_eq!(tile.to_string(), text(case, "path"));
        assert_eq!(text(case, "path").parse(), Ok(tile));
    }
    for bad in texts(&case, "bad") {
        bad.parse::<TileName>().unwrap_err();
    }
}

#[test]
fn tile_geometry() {
    for case in json("tile_paths.json")["geometry"].as_array().unwrap() {
        let size = TreeSize::new(case["size"].as_u64().unwrap()).unwrap();
        let want = case["levels"].as_array().unwrap().iter().map(|row| {
            let number = |field: &str| row[field].as_u64().unwrap();
            (number("l"), (number("full"), number("partial")))
        });
        let got = levels(size).map(|level| {
            let (full, partial) = row_shape(Row::Hashes(level), size);
            (u64::from(level.get()), (full, u64::from(partial)))
        });
        assert_eq!(got.collect::<Vec<_>>(), want.collect::<Vec<_>>(), "size {size}");
    }
}

#[test]
fn policies() {
    const LOG: &str = "log PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW\n";
    let cases = json("policy_cases.json");
    let parse = |case: &Value| format!("{LOG}{}", text(case, "policy")).parse::<Policy>();
    for case in cases["reject"].as_array().unwrap() {
        assert!(parse(case).is_err(), "{}", case["why"]);
        // Without a log it is no policy either.
        assert!(text(case, "policy").parse::<Policy>().is_err(), "{}", case["why"]);
    }
    for case in cases["accept"].as_array().unwrap() {
        let policy = parse(case).unwrap_or_else(|error| panic!("{}: {error}", case["why"]));
        let witnesses = text(case, "policy").matches("witness").count();
        assert_eq!(policy.witnesses().len(), witnesses, "{}", case["why"]);
        assert_eq!(policy.quorum().is_some(), witnesses > 0, "{}", case["why"]);
        assert_eq!(policy.to_text().parse(), Ok(policy), "{}", case["why"]);
    }
    let [either] = cases["semantics"].as_array().unwrap().as_slice() else { panic!("one case") };
    assert!(text(either, "why").starts_with("two log lines mean EITHER"));
    either_of_two_logs_suffices();
}

fn either_of_two_logs_suffices() {
    let log = |name: &str, seed: u8| SigningKey::from_seed(name.parse().unwrap(), &[seed; 32].into());
    let logs = [log("one.example", 1), log("two.example", 2)];
    let policy: Policy =
        format!("log {}\nlog {}\nquorum none\n", logs[0].vkey(), logs[1].vkey()).parse().unwrap();
    for (signer, other) in [(&logs[0], &logs[1]), (&logs[1], &logs[0])] {
        let text = encode_text(&signer.vkey().name().to_origin(), &Frontier::new().head());
        let open = |key: &SigningKey| {
            Checkpoint::open(note::encode(&text, [&key.sign_assertion(&text)]).as_bytes(), &policy)
        };
        assert_eq!(open(signer).unwrap().origin().as_str(), signer.vkey().name().as_str());
        // Each log vouches for itself, never for the other.
        assert_eq!(open(other), Err(CheckpointError::NotSigned(signer.vkey().name().to_origin())));
    }
}
