//! Evidence: every fork of a small tree convicts its signer, and nothing that anybody can make out of honest heads does.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use epigraph_core::checkpoint::encode_text;
use epigraph_core::cosignature::CosignedAt;
use epigraph_core::evidence::{
    Evidence, FileError, MAX_EVIDENCE_BYTES, NoEvidence, NotProven, recognise, verify,
};
use epigraph_core::key::SigningKey;
use epigraph_core::note::{self, NoteError, SignatureLine};
use epigraph_core::proof::{ConsistencyProof, ProofError};
use epigraph_core::{CosigningKey, Hash, TreeHead, VKey};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::reference::{Reference, index, leaf, size};

const ORIGIN: &str = "log.example/evidence";

fn log() -> SigningKey {
    SigningKey::from_seed(ORIGIN.parse().unwrap(), &[1; 32].into())
}

fn witness() -> CosigningKey {
    CosigningKey::from_seed("witness.example".parse().unwrap(), &[2; 32].into())
}

fn text_of(origin: &str, tree: &Reference, leaves: u64) -> String {
    encode_text(&origin.parse().unwrap(), &TreeHead { size: size(leaves), root: tree.root(leaves) })
}

fn cosigned(text: &str, seconds: u64) -> SignatureLine {
    witness().cosign_assertion(text, CosignedAt::new(seconds).unwrap())
}

/// A head as it would be published: signed by the log, cosigned by the witness and by a stranger.
fn head(tree: &Reference, leaves: u64) -> Vec<u8> {
    let text = text_of(ORIGIN, tree, leaves);
    let stranger = SignatureLine { name: "stranger".into(), signature: vec![9; 72], ..cosigned(&text, 5) };
    note::encode(&text, [&log().sign_assertion(&text), &stranger, &cosigned(&text, 1000 + leaves)])
        .into_bytes()
}

fn carried(tree: &Reference, old: u64, new: u64) -> Vec<Hash> {
    let proof = ConsistencyProof { old: size(old), new: size(new), hashes: tree.proof(old, new) };
    proof.carrying(&tree.root(old))
}

fn keys() -> [VKey; 2] {
    [log().vkey().clone(), witness().vkey().clone()]
}

/// One tree and another that departs from it at `fork`.
fn forked(fork: u64, leaves: u64) -> [Reference; 2] {
    let honest = Reference::labelled("honest", leaves);
    let other = honest.forked(fork as usize, &Reference::labelled("other", leaves));
    [honest, other]
}

/// The evidence convicts its key to whoever knows it, to nobody else, and reads back.
fn convicts(evidence: &Evidence) {
    let file = evidence.encode();
    assert!(recognise(&file) && file.len() < MAX_EVIDENCE_BYTES);
    assert_eq!(verify(&file, &keys()).as_ref(), Ok(evidence));
    let others: Vec<_> = keys().into_iter().filter(|key| key != evidence.accused()).collect();
    assert_eq!(verify(&file, &others), Err(NotProven::UnknownKey(Box::new(evidence.accused().clone()))));
}

/// Broken to see it fail: the first hash not carried where the old size is a power of two.
#[test]
fn every_fork_convicts_its_signer() {
    const MAX: u64 = 11;
    let mut convictions = 0;
    for fork in 0..MAX {
        let [honest, other] = forked(fork, MAX);
        for accused in &keys() {
            for old in fork + 1..=MAX {
                let (one, two) = (head(&honest, old), head(&other, old));
                let evidence = Evidence::two_roots(accused, &one, &two).unwrap();
                assert_eq!(Evidence::two_roots(accused, &two, &one), Ok(evidence.clone()), "either order");
                convicts(&evidence);
                for new in old + 1..=MAX {
                    let newer = head(&other, new);
                    let evidence =
                        Evidence::old_root(accused, &one, &newer, carried(&other, old, new)).unwrap();
                    convicts(&evidence);
                    convictions += 1;
                }
                let at = |tree: &Reference, leaves| (tree.leaves()[fork as usize], tree.path(fork, leaves));
                let ((leaf_one, path_one), (leaf_two, path_two)) = (at(&honest, old), at(&other, MAX));
                let newest = head(&other, MAX);
                let (one, two) = ((&*one, leaf_one, path_one), (&*newest, leaf_two, path_two));
                let evidence = Evidence::two_leaves(accused, index(fork), one.clone(), two.clone()).unwrap();
                assert_eq!(Evidence::two_leaves(accused, index(fork), two, one), Ok(evidence.clone()));
                convicts(&evidence);
            }
        }
    }
    let pairs = |fork: u64| (fork + 1..=MAX).map(|old| MAX - old).sum::<u64>();
    assert_eq!(convictions, 2 * (0..MAX).map(pairs).sum::<u64>());
}

/// One of each kind against each key.
fn samples() -> Vec<Evidence> {
    let [honest, other] = forked(2, 7);
    let at = |tree: &Reference| (tree.leaves()[3], tree.path(3, 5));
    let ((leaf_one, path_one), (leaf_two, path_two)) = (at(&honest), at(&other));
    let (one, two, newer) = (head(&honest, 5), head(&other, 5), head(&other, 7));
    let of = |accused: &VKey| {
        let leaves = [(&*one, leaf_one, path_one.clone()), (&*two, leaf_two, path_two.clone())];
        let [first, second] = leaves;
        [
            Evidence::two_roots(accused, &one, &two).unwrap(),
            Evidence::old_root(accused, &one, &newer, carried(&other, 5, 7)).unwrap(),
            // From a power of two, where the RFC leaves the old root out.
            Evidence::old_root(accused, &head(&honest, 4), &newer, carried(&other, 4, 7)).unwrap(),
            Evidence::two_leaves(accused, index(3), first, second).unwrap(),
        ]
    };
    keys().iter().flat_map(of).collect()
}

/// Broken to see it fail: `NotCanonical` left out, with a stranger's line in the note.
#[test]
fn a_file_with_one_bit_changed_proves_nothing() {
    for evidence in samples() {
        let file = evidence.encode();
        for at in 0..file.len() {
            for bit in 0..8 {
                let mut changed = file.clone();
                changed[at] ^= 1 << bit;
                let verdict = verify(&changed, &keys());
                assert!(verdict.is_err(), "bit {bit} of byte {at}: {:?}", String::from_utf8_lossy(&changed));
            }
            assert!(verify(&file[..at], &keys()).is_err(), "cut at {at}");
        }
        for more in ["\n", " ", "x\n", "\n\n"] {
            assert!(verify(&[&file, more.as_bytes()].concat(), &keys()).is_err(), "{more:?} added");
        }
        let text = String::from_utf8(file).unwrap();
        let accused = evidence.accused().name();
        let with_line = text.replacen(&format!("\n— {accused}"), &format!("\n— x AAAAAAA=\n— {accused}"), 1);
        assert_eq!(verify(with_line.as_bytes(), &keys()), Err(NotProven::File(FileError::NotCanonical)));
        let doubled = text.replacen("key ", "key  ", 1);
        assert!(verify(doubled.as_bytes(), &keys()).is_err());
    }
}

/// `docs/formats/evidence.md`, written out with the plain recursive tree.
#[test]
fn the_file_is_as_documented() {
    let [honest, other] = forked(2, 7);
    let base64 = |hash: &Hash| STANDARD.encode(hash.as_bytes());
    let hashes = |hashes: &[Hash]| -> String {
        hashes.iter().map(|hash| format!("hash {}\n", base64(hash))).collect()
    };
    let signed = |tree: &Reference, leaves| {
        let text = text_of(ORIGIN, tree, leaves);
        format!("{text}\n{}\n", log().sign_assertion(&text))
    };
    let key = log().vkey().clone();
    let check = |evidence: Evidence, kind: &str, first: String, second: String| {
        let want = format!("epigraph-evidence@v1\nkey {key}\nkind {kind}\n{first}\n{second}");
        assert_eq!(String::from_utf8(evidence.encode()).unwrap(), want);
        assert_eq!(verify(want.as_bytes(), std::slice::from_ref(&key)), Ok(evidence));
    };
    let (mut one, mut two) = (signed(&honest, 5), signed(&other, 5));
    let evidence = Evidence::two_roots(&key, one.as_bytes(), two.as_bytes()).unwrap();
    if honest.root(5) > other.root(5) {
        std::mem::swap(&mut one, &mut two);
    }
    check(evidence, "two-roots", format!("\n{one}"), two);
    for old in [4, 5] {
        let (one, two) = (signed(&honest, old), signed(&other, 7));
        let evidence =
            Evidence::old_root(&key, one.as_bytes(), two.as_bytes(), carried(&other, old, 7)).unwrap();
        let mut proof = other.proof(old, 7);
        if old == 4 {
            proof.insert(0, other.root(4));
        }
        check(evidence, &format!("old-root\n{}", hashes(&proof).trim_end()), format!("\n{one}"), two);
    }
    let leaf_of = |tree: &Reference| {
        let (leaf, path) = (tree.leaves()[3], tree.path(3, 5));
        (leaf, path.clone(), format!("leaf {}\n{}", base64(&leaf), hashes(&path)), signed(tree, 5))
    };
    let mut both = [leaf_of(&honest), leaf_of(&other)];
    both.sort_by_key(|(leaf, ..)| *leaf);
    let [(leaf_one, path_one, lines_one, one), (leaf_two, path_two, lines_two, two)] = both;
    let first = (two.as_bytes(), leaf_two, path_two);
    let second = (one.as_bytes(), leaf_one, path_one);
    let evidence = Evidence::two_leaves(&key, index(3), first, second).unwrap();
    check(
        evidence,
        &format!("two-leaves\nindex 3\n{lines_one}{}", lines_two.trim_end()),
        format!("\n{one}"),
        two,
    );
}

#[test]
fn what_is_no_evidence_says_why() {
    let [honest, other] = forked(2, 7);
    let key = log().vkey().clone();
    let roots = |one: &[u8], two: &[u8]| Evidence::two_roots(&key, one, two).unwrap_err();
    let old = |one: &[u8], two: &[u8], proof| Evidence::old_root(&key, one, two, proof).unwrap_err();
    assert_eq!(roots(&head(&honest, 5), &head(&honest, 5)), NoEvidence::SameHead);
    assert_eq!(roots(&head(&honest, 5), &head(&other, 6)), NoEvidence::NoProof);
    // Before the fork both histories are one.
    assert_eq!(old(&head(&honest, 2), &head(&other, 7), carried(&other, 2, 7)), NoEvidence::Consistent);
    assert_eq!(old(&head(&honest, 3), &head(&honest, 7), carried(&honest, 3, 7)), NoEvidence::Consistent);
    let mismatch = NoEvidence::Proof(ProofError::RootMismatch);
    assert_eq!(old(&head(&honest, 3), &head(&honest, 7), carried(&other, 3, 7)), mismatch);
    assert_eq!(old(&head(&honest, 5), &head(&honest, 5), Vec::new()), NoEvidence::NotGrowing);
    assert_eq!(old(&head(&honest, 6), &head(&honest, 5), Vec::new()), NoEvidence::NotGrowing);
    assert_eq!(old(&head(&honest, 0), &head(&other, 5), Vec::new()), NoEvidence::NotGrowing);
    let length = NoEvidence::Proof(ProofError::WrongLength);
    for hashes in [0, 1, 2, 4, 64, 65, 100] {
        assert_eq!(
            old(&head(&honest, 4), &head(&other, 7), vec![leaf(b"x"); hashes]),
            if hashes == 2 { mismatch.clone() } else { length.clone() }
        );
    }
    let at = |tree: &Reference, leaves| (tree.leaves()[1], tree.path(1, leaves));
    let ((leaf_one, path_one), (leaf_two, path_two)) = (at(&honest, 5), at(&other, 5));
    let (one, two) = (head(&honest, 5), head(&other, 5));
    let same = Evidence::two_leaves(
        &key,
        index(1),
        (&one, leaf_one, path_one.clone()),
        (&two, leaf_two, path_two.clone()),
    );
    assert_eq!(same, Err(NoEvidence::SameLeaf));
    let forged =
        Evidence::two_leaves(&key, index(1), (&one, leaf(b"forged"), path_one), (&two, leaf_two, path_two));
    assert_eq!(forged, Err(mismatch));

    // Whose statements they are.
    let text = text_of("other.example", &honest, 5);
    let namesake = SigningKey::from_seed("other.example".parse().unwrap(), &[1; 32].into());
    let elsewhere = note::encode(&text, [&namesake.sign_assertion(&text), &cosigned(&text, 5)]);
    let error = Evidence::two_roots(&key, elsewhere.as_bytes(), &two).unwrap_err();
    assert!(matches!(error, NoEvidence::OtherLog { .. }), "{error}");
    let error = Evidence::two_roots(witness().vkey(), elsewhere.as_bytes(), &two).unwrap_err();
    assert!(matches!(error, NoEvidence::TwoLogs(..)), "{error}");
    let text = text_of(ORIGIN, &honest, 5);
    let unsigned = note::encode(&text, [&cosigned(&text, 5)]);
    assert_eq!(roots(unsigned.as_bytes(), &two), NoEvidence::NotSigned(key.to_string()));
    let forged = SignatureLine { signature: vec![7; 64], ..log().sign_assertion(&text) };
    let forged = note::encode(&text, [&forged]);
    assert!(matches!(roots(forged.as_bytes(), &two), NoEvidence::Note(NoteError::BadSignature { .. })));
    // A log key's signature is no cosignature of the witness with the same bytes, and the other way round.
    let twin = CosigningKey::from_seed(ORIGIN.parse().unwrap(), &[1; 32].into());
    let error = Evidence::two_roots(twin.vkey(), &one, &two).unwrap_err();
    assert_eq!(error, NoEvidence::NotSigned(twin.vkey().to_string()));
}

#[test]
fn the_verdict_is_in_plain_words() {
    let [roots, old, _, leaves, by_witness, ..] =
        samples().try_into().map(|samples: [Evidence; 8]| samples).unwrap();
    let check = |evidence: &Evidence, start: &str, inside: &str| {
        let verdict = evidence.to_string();
        assert!(verdict.starts_with(start) && verdict.contains(inside), "{verdict}");
        assert!(verdict.ends_with(&format!(
            "Only the holder of the private key of {} can have made both.",
            evidence.accused()
        )));
    };
    let log = "the log log.example/evidence signed two histories: ";
    check(&roots, &format!("{log}at size 5 both the root "), " and the root ");
    check(
        &old,
        &format!("{log}the head of size 5 with root "),
        " is not the beginning of the head of size 7 with root ",
    );
    check(&leaves, &format!("{log}entry 3 has the leaf hash "), " under the head of size 5 ");
    check(
        &by_witness,
        "the witness witness.example cosigned two histories of the log log.example/evidence: ",
        "size 5",
    );
}

#[test]
fn files_are_limited_and_refused_by_line() {
    let file = String::from_utf8(samples()[3].encode()).unwrap();
    let check = |text: &str, want: FileError| {
        assert_eq!(Evidence::decode(text.as_bytes()), Err(want), "{:.200}", text)
    };
    check("", FileError::Header);
    check("epigraph-evidence@v10\n", FileError::Header);
    check("epigraph-evidence@v1\n", FileError::Parts);
    check(&file.replacen("kind two-leaves", "kind nothing", 1), FileError::Line(3));
    check(&file.replacen("kind ", "sort ", 1), FileError::Line(3));
    check(&file.replacen("index 3", "index 03", 1), FileError::Line(4));
    check(&file.replacen("index 3", "index 9223372036854775807", 1), FileError::Line(4));
    check(&file.replacen("leaf ", "leaf =", 1), FileError::Line(5));
    check(&file.replacen("hash ", "hash =", 1), FileError::Line(6));
    check(&file.replacen("\n\n", "\nmore\n\n", 1), FileError::Line(13));
    let hash = file.lines().nth(5).unwrap();
    check(&file.replacen(hash, format!("{hash}\n").repeat(200).trim_end(), 1), FileError::Line(133));
    let long = format!("{file}{}", " ".repeat(MAX_EVIDENCE_BYTES));
    check(&long, FileError::TooLong(long.len()));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    /// Nobody can frame an honest log: whatever proof is put together from the nodes of its tree and from made-up
    /// hashes, for whichever two of its heads, is no evidence. Broken to see it fail: the new root not compared.
    #[test]
    fn honest_heads_never_make_evidence(
        leaves in 1..40u64, old in 0..40u64, new in 0..40u64, at in 0..40u64, seed in any::<u8>(),
        mut picks in vec(any::<prop::sample::Index>(), 0..9), mutate in any::<Option<prop::sample::Index>>(),
    ) {
        let (old, new) = (old.min(leaves), new.min(leaves));
        let tree = Reference::labelled(&format!("honest {seed}"), leaves);
        let mut nodes = vec![leaf(b"made up"), Hash::EMPTY_ROOT];
        for start in 0..leaves {
            nodes.extend((start + 1..=leaves).filter(|end| (end - start).is_power_of_two()).map(|end| tree.mth(start..end)));
        }
        nodes.extend((0..=leaves).map(|leaves| tree.root(leaves)));
        let (one, two) = (head(&tree, old), head(&tree, new));
        let mut proofs: Vec<Vec<Hash>> = vec![picks.iter().map(|pick| *pick.get(&nodes)).collect()];
        if 0 < old && old < new {
            let mut proof = carried(&tree, old, new);
            proofs.push(proof.clone());
            if let (Some(mutate), Some(pick)) = (mutate, picks.pop()) {
                let place = mutate.index(proof.len());
                proof[place] = *pick.get(&nodes);
                proofs.push(proof);
            }
        }
        for accused in &keys() {
            prop_assert!(Evidence::two_roots(accused, &one, &two).is_err());
            for proof in &proofs {
                prop_assert!(Evidence::old_root(accused, &one, &two, proof.clone()).is_err());
                let picked = picks.first().map_or(leaf(b"made up"), |pick| *pick.get(&nodes));
                for (one, two) in [(&one, &two), (&two, &one)] {
                    let claimed = (&**two, picked, proof.clone());
                    let shown = at.min(old.saturating_sub(1));
                    let genuine = (shown < old).then(|| (tree.leaves()[shown as usize], tree.path(shown, old)));
                    let (leaf, path) = genuine.unwrap_or((picked, proof.clone()));
                    let evidence = Evidence::two_leaves(accused, index(shown), (&**one, leaf, path), claimed);
                    prop_assert!(evidence.is_err());
                }
            }
        }
    }

    #[test]
    fn any_bytes_are_read_as_evidence_or_refused(bytes in vec(any::<u8>(), 0..200), text in "\\PC{0,80}\n\n\\PC{0,40}\n\n") {
        let _ = Evidence::decode(&bytes);
        let _ = Evidence::decode(format!("epigraph-evidence@v1\n{text}{text}").as_bytes());
    }
}
