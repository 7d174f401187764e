//! A bundle proves its event to whoever trusts the log and knows the source, and nothing else does.

use epigraph_core::checkpoint::encode_text;
use epigraph_core::key::{KeyName, Origin, SigningKey};
use epigraph_core::proof::{Nodes, prove_inclusion, root_at};
use epigraph_core::tlog_proof::Receipt;
use epigraph_core::{Hash, LeafIndex, Policy, TreeHead, TreeSize, hash, note};
use epigraph_event::bundle::{FileError, NotProven};
use epigraph_event::chain::Tip;
use epigraph_event::collected::EventError;
use epigraph_event::{Batch, Bundle, Segment};

use crate::support::{Counting, NOW, batch, event, key};

/// A log of these entries, whose size is a power of two, so that every node is there.
struct Log(Vec<Hash>);

impl Nodes for Log {
    type Error = ();

    fn node(&self, height: u32, index: u64) -> Result<Hash, ()> {
        match height {
            0 => self.0.get(index as usize).copied().ok_or(()),
            _ => Ok(hash::node_hash(
                &self.node(height - 1, 2 * index)?,
                &self.node(height - 1, 2 * index + 1)?,
            )),
        }
    }
}

fn log_key(seed: u8) -> SigningKey {
    SigningKey::from_seed(KeyName::new("log.example").unwrap(), &[seed; 32].into())
}

fn policy(seed: u8) -> Policy {
    Policy::of_log(log_key(seed).vkey().clone())
}

fn bundle_of(batch: &Batch, place: usize) -> Bundle {
    let leaf = batch.leaf(place, 1_700_000_002).unwrap();
    let entries = [b"another entry".as_slice(), &leaf.encode(), b"one more"].map(hash::leaf_hash);
    let log = Log(entries.to_vec());
    let (index, size) = (LeafIndex::new(1).unwrap(), TreeSize::new(3).unwrap());
    let head = TreeHead { size, root: root_at(&log, size).unwrap() };
    let text = encode_text(&Origin::new("log.example").unwrap(), &head);
    let line = log_key(1).sign_assertion(&text);
    let receipt = Receipt {
        extra: None,
        index,
        hashes: prove_inclusion(&log, index, size).unwrap().unwrap().hashes,
        checkpoint: note::encode(&text, [&line]).into_bytes(),
    };
    Bundle::of(batch, place, leaf, receipt).unwrap()
}

fn bundle() -> Bundle {
    bundle_of(&batch(&Tip { sequence: 7, ..Tip::default() }, 5), 3)
}

fn sources() -> [epigraph_core::SourceVKey; 2] {
    [key(9).vkey().clone(), key(7).vkey().clone()]
}

#[test]
fn a_bundle_proves_its_event() {
    let file = bundle().encode();
    let read = Bundle::parse(&file).unwrap();
    assert_eq!(read, bundle());
    let proven = read.verify(&policy(1), &sources()).unwrap();
    assert_eq!((proven.index.get(), proven.leaf.sequence, proven.envelope.made_at), (1, 10, NOW));
    assert_eq!(proven.source, *key(7).vkey());
    assert_eq!(proven.core.as_ref().unwrap().action, "act 3");
    assert_eq!(proven.body.as_ref().unwrap().record, br#"{"n":3,"user":"mallory"}"#);
    assert_eq!(proven.erased().count(), 0);
}

#[test]
fn what_was_erased_is_visible_and_the_rest_is_proven() {
    let without = bundle().without(Segment::Identity).without(Segment::Body);
    let file = without.encode();
    assert!(!String::from_utf8(file.clone()).unwrap().contains("mallory"));
    let proven = Bundle::parse(&file).unwrap().verify(&policy(1), &sources()).unwrap();
    assert_eq!(proven.erased().collect::<Vec<_>>(), [Segment::Identity, Segment::Body]);
    assert_eq!((proven.core.unwrap().action.as_str(), proven.identity, proven.body), ("act 3", None, None));
    let nothing = without.without(Segment::Core).verify(&policy(1), &sources()).unwrap();
    assert_eq!(nothing.erased().count(), 3);
}

#[test]
fn a_record_beside_its_event_travels_along() {
    let mut large = event(0);
    large.body.record = vec![b'x'; 300 * 1024];
    let event = large.seal(&Counting::default()).unwrap();
    let bundle = bundle_of(&Batch::sign(&key(7), &Tip::default(), vec![event], NOW).unwrap(), 0);
    let proven = Bundle::parse(&bundle.encode()).unwrap().verify(&policy(1), &sources()).unwrap();
    assert_eq!(proven.body.unwrap().record.len(), 300 * 1024);
    let refused = |bundle: Bundle| {
        assert_eq!(bundle.verify(&policy(1), &sources()), Err(EventError::OtherRecord.into()));
    };
    refused(Bundle { record: None, ..bundle.clone() });
    refused(Bundle { record: Some(vec![b'y'; 300 * 1024]), ..bundle.clone() });
    let record = bundle.record.clone();
    refused(Bundle { record, ..bundle.without(Segment::Body) });
}

#[test]
fn whom_the_reader_does_not_trust_proves_nothing() {
    assert!(matches!(bundle().verify(&policy(2), &sources()), Err(NotProven::Log(_))));
    let unknown = bundle().verify(&policy(1), &sources()[..1]);
    assert_eq!(unknown, Err(NotProven::UnknownSource(key(7).vkey().id())));
}

#[test]
fn halves_of_two_events_are_no_proof() {
    let check = |bundle: Bundle, expected: &str| {
        let error = bundle.verify(&policy(1), &sources()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    let made = batch(&Tip { sequence: 7, ..Tip::default() }, 5);
    let other_batch = batch(&Tip { sequence: 8, ..Tip::default() }, 5);
    check(Bundle { signed: other_batch.signed().to_wire(), ..bundle() }, "names another batch");
    check(Bundle { path: made.paths()[2].clone(), ..bundle() }, "one of the signed batch");
    check(Bundle { leaf: made.leaf(2, 0).unwrap(), ..bundle() }, "not proven to be in the log");
    check(Bundle { segments: bundle_of(&made, 2).segments, ..bundle() }, "core segment is not the one");
    let [core, identity, body] = bundle().segments;
    check(Bundle { segments: [core, body, identity], ..bundle() }, "identity segment is not the one");
    let leaf = made.leaf(2, 0).unwrap();
    assert_eq!(Bundle::of(&made, 3, leaf, bundle().receipt), None, "the leaf is another event's");
}

// Broken to see it fail: `Bundle::segment` without the comparison; `Bundle::verify` without the path; `Signed::open`
// without the signature.
#[test]
fn every_flipped_byte_is_refused() {
    let file = bundle().encode();
    for at in 0..file.len() {
        for bit in [0x01, 0x20] {
            let mut flipped = file.clone();
            flipped[at] ^= bit;
            let Ok(bundle) = Bundle::parse(&flipped) else { continue };
            assert_eq!(bundle.encode(), flipped, "what reads is written the same way");
            assert!(bundle.verify(&policy(1), &sources()).is_err(), "byte {at}: {:?}", file[at] as char);
        }
    }
}

#[test]
fn a_file_has_one_spelling() {
    let file = String::from_utf8(bundle().encode()).unwrap();
    let check = |text: &str, expected| assert_eq!(Bundle::parse(text.as_bytes()), Err(expected));
    check("", FileError::Header);
    check("epigraph-event@v2\n\n", FileError::Header);
    check("epigraph-event@v1\n", FileError::CutOff);
    check("epigraph-event@v1\n\n", FileError::Line(2));
    check(&file.replacen("leaf ", "leaf  ", 1), FileError::Line(2));
    check(&file.replacen("==\ncore", "\ncore", 1), FileError::Line(2));
    check(&file.replacen('\n', "\r\n", 1), FileError::Header);
    check(&file.replacen("identity ", "identity erased", 1), FileError::Line(4));
    check(&file.replacen("\npath ", "\npath A", 1), FileError::Line(8));
    check(&file.replacen("\n\nc2sp", "\nx\n\nc2sp", 1), FileError::Line(11));
    let many = format!("\npath {}=", "A".repeat(43)).repeat(9) + "\n\nc2sp";
    check(&file.replacen("\n\nc2sp", &many, 1), FileError::Line(16));
    let long = "x".repeat(epigraph_event::bundle::MAX_BUNDLE_BYTES);
    check(&format!("{file}{long}"), FileError::TooLong(file.len() + long.len()));
}
