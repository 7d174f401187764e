//! A checkpoint that was gathered is the one that [`Checkpoint::open`] gives, and below the quorum there is none.

use std::sync::Arc;

use epigraph_core::checkpoint::{CheckpointError, LogSigned, encode_text};
use epigraph_core::cosignature::{CosignatureError, CosignedAt};
use epigraph_core::gathering::Gathering;
use epigraph_core::note::{self, SignatureLine};
use epigraph_core::policy::WitnessSet;
use epigraph_core::{Checkpoint, Policy, SigningKey, TreeHead};

use crate::policies::{lines, log, witness};
use crate::reference::{leaf, size};

const WITNESSES: usize = 4;

fn policy(rest: &str) -> Arc<Policy> {
    Arc::new((lines(WITNESSES) + rest).parse().unwrap())
}

fn text() -> String {
    encode_text(&log().vkey().name().to_origin(), &TreeHead { size: size(5), root: leaf(b"root") })
}

fn line(number: usize, time: u64) -> SignatureLine {
    witness(number).cosign_assertion(&text(), CosignedAt::new(time).unwrap())
}

fn signed_by(key: &SigningKey) -> LogSigned {
    let note = note::encode(&text(), [&key.sign_assertion(&text())]);
    LogSigned::open(note.as_bytes(), &key.vkey().name().to_origin(), std::slice::from_ref(key.vkey()))
        .unwrap()
}

fn gathering(policy: &Arc<Policy>) -> Gathering {
    Gathering::new(signed_by(&log()), Arc::clone(policy)).unwrap()
}

/// The oracle is the door from bytes. Broken to see it fail: the quorum left out; the place not remembered; the note without the new
/// line.
#[test]
fn it_is_what_opening_the_note_gives() {
    let rests = [
        "quorum none\n",
        "quorum w2\n",
        "group g any w0 w1 w2 w3\nquorum g\n",
        "group g 3 w0 w1 w2 w3\nquorum g\n",
        "group a all w0 w1\ngroup b any w2 a\nquorum b\n",
    ];
    for policy in rests.map(policy) {
        for first in 0..WITNESSES {
            let mut gathered = gathering(&policy);
            let mut lines = vec![log().sign_assertion(&text())];
            let check = |gathered: &Gathering, lines: &[SignatureLine]| {
                let opened = Checkpoint::open(note::encode(&text(), lines).as_bytes(), &policy).ok();
                assert_eq!(gathered.checkpoint(), opened, "{}{lines:?}", policy.to_text());
                opened.is_some()
            };
            let mut met = usize::from(check(&gathered, &lines));
            for place in (0..WITNESSES).map(|at| (first + 3 * at) % WITNESSES) {
                assert_eq!(gathered.add(place, &line(place, 7)), Ok(true));
                lines.push(line(place, 7));
                met += usize::from(check(&gathered, &lines));
                // The same again and an older one change nothing; a newer one takes its place.
                assert_eq!(gathered.add(place, &line(place, 7)), Ok(false));
                assert_eq!(gathered.add(place, &line(place, 6)), Ok(false));
                assert_eq!(gathered.add(place, &line(place, 8)), Ok(true));
                lines.pop();
                lines.push(line(place, 8));
                check(&gathered, &lines);
            }
            assert!(met > 0 && gathered.cosigned() == WitnessSet::first(WITNESSES));
        }
    }
}

/// Broken to see it fail: whoever the line names taken for the witness at the place.
#[test]
fn what_does_not_verify_for_its_place_counts_for_nothing() {
    let policy = policy("group g any w0 w1 w2 w3\nquorum g\n");
    let mut gathered = gathering(&policy);
    let other_text = text().replace("\n5\n", "\n6\n");
    let other_head = witness(1).cosign_assertion(&other_text, CosignedAt::new(7).unwrap());
    let mut edited = line(1, 7);
    edited.signature[20] ^= 1;
    let mut other_time = line(1, 7);
    other_time.signature[7] = 8;
    for bad in [other_head, edited, other_time] {
        assert!(matches!(gathered.add(1, &bad), Err(CosignatureError::Bad(_))));
    }
    assert!(matches!(gathered.add(1, &line(1, 0)), Err(CosignatureError::NoTime(_))));
    assert!(matches!(gathered.add(0, &line(1, 7)), Err(CosignatureError::OtherKey { .. })));
    assert_eq!(gathered.add(WITNESSES, &line(1, 7)), Ok(false));
    assert_eq!(gathered.add(WITNESSES, &line(WITNESSES, 7)), Ok(false));
    assert_eq!((gathered.checkpoint(), gathered), (None, gathering(&policy)));
}

/// A head that other keys verified is not this policy's, whatever its origin line says. Broken to see it fail: the signers not looked
/// at.
#[test]
fn a_head_that_the_policys_log_did_not_sign_is_not_gathered() {
    let impostor = SigningKey::from_seed("log.example/policy".parse().unwrap(), &[2; 32].into());
    let refused = Gathering::new(signed_by(&impostor), policy("quorum none\n"));
    assert_eq!(refused.unwrap_err(), CheckpointError::NotSigned(log().vkey().name().to_origin()));
}
