//! A batch is what its source signed, byte for byte, or it is refused.

use bytes::Bytes;
use epigraph_core::hash::{leaf_hash, sha256};
use epigraph_event::batch::{BatchError, MAX_EVENTS, MAX_OVERHEAD_BYTES, MAX_PATH_HASHES, Unverified};
use epigraph_event::chain::Tip;
use epigraph_event::collected::EventError;
use epigraph_event::segment::{MAX_INLINE_BYTES, MAX_RECORD_BYTES};
use epigraph_event::v1::{BatchEnvelope, CollectedBatch};
use epigraph_event::{Batch, Event, Leaf, Segment};
use prost::Message;

use crate::support::{Counting, NOW, batch, event, events, key};

fn verify(batch: &CollectedBatch) -> Result<Batch, BatchError> {
    Unverified::decode(batch.encode_to_vec().into())?.verify(key(7).vkey())
}

#[test]
fn a_batch_reads_back_with_its_paths_and_leaves() {
    for count in [0, 1, 2, 3, 7, 8, 255, 256] {
        let made = batch(&Tip { sequence: 10, ..Tip::default() }, count);
        let read = verify(&made.to_wire()).unwrap();
        assert_eq!(read, made);
        assert_eq!(made.encode(), made.to_wire().encode_to_vec());
        assert_eq!(
            Unverified::decode(made.encode().into()).unwrap().claim().unwrap(),
            *made.signed().envelope()
        );
        let leaves = (0..made.events().len()).filter_map(|place| made.leaf(place, 7)).map(|leaf| leaf.hash());
        assert_eq!(made.roll().leaf_hashes(7), leaves.collect::<Vec<_>>());
        let paths = made.paths();
        assert_eq!(paths.len(), count);
        for (place, path) in paths.iter().enumerate() {
            assert!(path.len() <= MAX_PATH_HASHES);
            let leaf = made.leaf(place, 5).unwrap();
            assert_eq!(leaf.sequence, 10 + place as u64);
            let check = |sequence| {
                made.signed().verify_path(sequence, leaf.reference, &leaf.commitments, path).is_ok()
            };
            assert!(check(leaf.sequence));
            assert!(!check(leaf.sequence + 1) && !check(leaf.sequence - 1), "{place} of {count}");
        }
        assert_eq!(made.leaf(count, 5), None);
    }
}

// Broken to see it fail: `verify` without the comparison of roots; `Signed::open` without the signature.
#[test]
fn every_flipped_byte_is_refused() {
    let good = batch(&Tip::default(), 3).encode();
    let before = Unverified::decode(good.clone().into()).unwrap().verify(key(7).vkey()).unwrap();
    for at in 0..good.len() {
        for bit in [0x01, 0x80] {
            let mut flipped = good.clone();
            flipped[at] ^= bit;
            let read =
                Unverified::decode(flipped.clone().into()).and_then(|batch| batch.verify(key(7).vkey()));
            // A flipped tag can turn a field that is the default into one that is not known. Then nothing that was
            // signed has changed, and the batch is the same.
            if let Ok(read) = read {
                assert_eq!(read, before, "byte {at}");
            }
        }
    }
}

fn edit(bytes: &mut Bytes, change: impl FnOnce(&mut Vec<u8>)) {
    let mut edited = bytes.to_vec();
    change(&mut edited);
    *bytes = edited.into();
}

#[test]
fn what_was_signed_cannot_be_changed() {
    let good = batch(&Tip::default(), 3).to_wire();
    let check = |change: &dyn Fn(&mut CollectedBatch), expected: &str| {
        let mut changed = good.clone();
        change(&mut changed);
        let error = verify(&changed).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    let others = "not those that were signed";
    let flip = |bytes: &mut Bytes, at: usize| edit(bytes, |bytes| bytes[at] ^= 1);
    check(&|batch| flip(&mut batch.events[1].core, 0), "core segment of the event cannot be read");
    check(&|batch| edit(&mut batch.events[1].core, |core| core.extend([0xf8, 0x01, 9])), others);
    check(&|batch| flip(&mut batch.events[1].core_salt, 0), others);
    check(&|batch| batch.events[1].identity.clear(), others);
    check(&|batch| flip(&mut batch.events[1].identity_salt, 31), others);
    check(&|batch| edit(&mut batch.events[1].body, |body| body.extend([0x20, 9])), others);
    check(&|batch| flip(&mut batch.events[1].body_salt, 7), others);
    check(&|batch| flip(&mut batch.events[1].reference, 0), others);
    check(&|batch| batch.events.swap(0, 2), others);
    check(&|batch| batch.events[2] = batch.events[1].clone(), others);
    check(&|batch| drop(batch.events.pop()), "signed with 3 events and has 2");
    check(&|batch| batch.events.push(batch.events[0].clone()), "signed with 3 events and has 4");
    check(&|batch| batch.events[0].record = "x".into(), "not the one that its body refers to");
    check(&|batch| batch.events[0].body_salt.clear(), "the event's salt");
    check(
        &|batch| edit(&mut batch.events[0].reference, |reference| reference.push(0)),
        "the event's reference",
    );
    check(&|batch| batch.signed.as_mut().unwrap().payload_type.push('x'), "their type is not");
    check(&|batch| batch.signed.as_mut().unwrap().signature.truncate(63), "signature does not match");
    check(&|batch| batch.signed = None, "no envelope");
    let envelope = |change: &dyn Fn(&mut BatchEnvelope), expected: &str| {
        check(
            &|batch| {
                let signed = batch.signed.as_mut().unwrap();
                let mut envelope = BatchEnvelope::decode(signed.envelope.as_slice()).unwrap();
                change(&mut envelope);
                signed.envelope = envelope.encode_to_vec();
            },
            expected,
        );
    };
    envelope(&|envelope| envelope.version = 2, "version 2");
    envelope(&|envelope| envelope.source_key_id[0] ^= 1, "it is of the source key");
    envelope(&|envelope| envelope.epoch = 1, "signature does not match");
    envelope(&|envelope| envelope.number = 1, "signature does not match");
    envelope(&|envelope| envelope.first_sequence = 1, "signature does not match");
    envelope(&|envelope| envelope.count = 4, "signature does not match");
    envelope(&|envelope| envelope.count = 257, "its count of events");
    envelope(&|envelope| envelope.previous = vec![0; 32], "signature does not match");
    envelope(&|envelope| envelope.previous = vec![0; 31], "batch before it");
    envelope(&|envelope| envelope.root[0] ^= 1, "signature does not match");
    envelope(&|envelope| envelope.root.clear(), "its root");
    envelope(&|envelope| envelope.made_at_ms += 1, "signature does not match");
    envelope(&|envelope| envelope.number = u64::MAX, "used up");
    envelope(&|envelope| envelope.first_sequence = u64::MAX - 2, "used up");
}

#[test]
fn another_key_is_refused_whatever_the_batch_says() {
    let made = Unverified::decode(batch(&Tip::default(), 2).encode().into()).unwrap();
    let error = made.clone().verify(key(8).vkey()).unwrap_err();
    assert!(matches!(error, BatchError::OtherKey { .. }), "{error}");
    let mut claims = batch(&Tip::default(), 2).to_wire();
    let signed = claims.signed.as_mut().unwrap();
    let mut envelope = BatchEnvelope::decode(signed.envelope.as_slice()).unwrap();
    envelope.source_key_id = key(8).vkey().id().as_bytes().to_vec();
    signed.envelope = envelope.encode_to_vec();
    let error = Unverified::decode(claims.encode_to_vec().into()).unwrap().verify(key(8).vkey()).unwrap_err();
    assert!(matches!(error, BatchError::BadSignature(_)), "{error}");
}

#[test]
fn a_path_cannot_be_changed() {
    let made = batch(&Tip::default(), 5);
    let (leaf, path) = (made.leaf(2, 0).unwrap(), &made.paths()[2]);
    let check = |leaf: &Leaf, path: &[epigraph_core::Hash]| {
        made.signed().verify_path(leaf.sequence, leaf.reference, &leaf.commitments, path)
    };
    assert_eq!(check(&leaf, path), Ok(()));
    for place in 0..path.len() {
        let mut other = path.clone();
        other[place] = sha256(b"x");
        assert!(check(&leaf, &other).is_err());
    }
    assert!(check(&leaf, &path[1..]).is_err());
    assert!(check(&leaf, &[path.as_slice(), &[sha256(b"x")]].concat()).is_err());
    for segment in Segment::ALL {
        let mut other = leaf.clone();
        other.commitments[segment.place()] = sha256(b"x");
        assert!(check(&other, path).is_err());
    }
    let beyond = Leaf { sequence: u64::MAX, ..leaf };
    assert!(matches!(check(&beyond, path), Err(BatchError::NotInIt { .. })));
}

#[test]
fn limits_have_names() {
    let sign = |events| Batch::sign(&key(7), &Tip::default(), events, NOW);
    assert_eq!(sign(events(MAX_EVENTS + 1)), Err(BatchError::TooManyEvents(257)));
    assert!(sign(vec![]).unwrap().encode().len() <= MAX_OVERHEAD_BYTES);
    let with_record = |length: usize| -> Event {
        let mut event = event(0);
        event.body.record = vec![b'x'; length];
        event
    };
    let seal = |length| with_record(length).seal(&Counting::default());
    let inline = seal(MAX_INLINE_BYTES).unwrap();
    assert_eq!(inline.record(), None);
    let beside = seal(MAX_INLINE_BYTES + 1).unwrap();
    assert_eq!(beside.record().unwrap().len(), MAX_INLINE_BYTES + 1);
    assert!(beside.bytes(Segment::Body).len() < 200);
    assert_eq!(beside.event().unwrap().body.record.len(), MAX_INLINE_BYTES + 1);
    assert_eq!(seal(MAX_RECORD_BYTES + 1), Err(EventError::RecordTooLarge(MAX_RECORD_BYTES + 1)));
    let two = vec![seal(MAX_RECORD_BYTES).unwrap(), seal(MAX_RECORD_BYTES).unwrap()];
    assert!(matches!(sign(two), Err(BatchError::TooLarge(_))));
    let exhausted = Tip { sequence: u64::MAX, ..Tip::default() };
    assert_eq!(Batch::sign(&key(7), &exhausted, events(1), NOW), Err(BatchError::Exhausted));
}

// Broken to see it fail: `check_record` without the digest.
#[test]
fn a_record_beside_its_event_is_bound_to_it() {
    let mut large = event(0);
    large.body.record = vec![b'x'; 300 * 1024];
    let made = Batch::sign(&key(7), &Tip::default(), vec![large.seal(&Counting::default()).unwrap()], NOW);
    let good = made.unwrap().to_wire();
    verify(&good).unwrap();
    let check = |record: &[u8]| {
        let mut changed = good.clone();
        changed.events[0].record = Bytes::copy_from_slice(record);
        let error = verify(&changed).unwrap_err();
        assert_eq!(error, BatchError::Event { place: 0, source: EventError::OtherRecord });
    };
    let record = good.events[0].record.clone();
    check(b"");
    check(&record[1..]);
    check(&[&record[1..], b"y"].concat());
}

// The house rule: leaf, envelope, path and signature hold no digest of an event's bytes that somebody without the salt
// could compute. Broken to see it fail: `commitment` without the salt.
#[test]
fn nothing_public_can_be_computed_without_a_salt() {
    let made = batch(&Tip::default(), 4);
    let mut public = made.signed().to_wire().encode_to_vec();
    for (place, path) in made.paths().into_iter().enumerate() {
        public.extend(made.leaf(place, 1).unwrap().encode());
        path.iter().for_each(|hash| public.extend(hash.as_bytes()));
    }
    let holds = |needle: &[u8]| public.windows(needle.len()).any(|window| window == needle);
    for event in made.events() {
        for segment in Segment::ALL {
            let bytes = event.bytes(segment);
            let tagged = [b"epigraph-segment/v1\n", &[segment.byte()][..], bytes].concat();
            for digest in [sha256(bytes), leaf_hash(bytes), sha256(&tagged), leaf_hash(&tagged)] {
                assert!(!holds(digest.as_bytes()), "{segment}");
            }
            assert!(!holds(event.salt(segment).as_bytes()) && !holds(bytes), "{segment}");
        }
    }
}
