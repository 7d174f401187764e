//! An event as it lies on disk: its leaf in the clear, each segment with its salt sealed under the key that erases it.
//!
//! The salt lies under the same key as the bytes that it hides: with the key both are gone, and the commitment in the leaf can no
//! longer be tested by guessing. What is opened is compared with the leaf's commitments, so that no other bytes than those that the source
//! signed ever leave. It knows keys by their names and no disk.

use std::borrow::Borrow;

use epigraph_core::Hash;
use epigraph_event::segment::commitment;
use epigraph_event::{Batch, Collected, Leaf, Salt, Segment};
use thiserror::Error;

use crate::query::row::subject_of;
use crate::record::{NewBlock, SEALS, Sealed};
use crate::vault::{DataKey, KeyName, Names, Nonces, SEAL_BYTES, SealError};

/// The seal of the record that lies beside an event.
const RECORD: usize = 3;

/// What a seal is bound to beside its event: the segment and the purpose.
const PLACE: &[u8] = b"epigraph-payload/v1\n";

/// What happened on a day is erased with its day.
const DAY_SECONDS: u64 = 86_400;

/// Why a stored event was not given back.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum OpenError {
    /// It does not open.
    #[error("the {0} of the event: {1}")]
    Seal(&'static str, SealError),
    /// It opens, and is something else than what is in the log.
    #[error("the {0} of the event is not what its leaf commits to: it was changed before it was sealed")]
    Other(&'static str),
    /// The leaf.
    #[error("the stored leaf of the event cannot be read: it was changed")]
    Leaf,
}

/// What a reader gets: segments with their salts, none where the key is gone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Opened {
    /// The log's entry.
    pub leaf: Leaf,
    /// In the order of [`Segment::ALL`].
    pub segments: [Option<(Salt, Vec<u8>)>; 3],
    /// The record that lies beside the event.
    pub record: Option<Vec<u8>>,
}

/// The names of the keys under which an event of a batch is sealed, in the order of its seals; and of those that seal nothing of it, because
/// it only calls somebody so: the name of who did it, and those on whose behalf it was done. Their pseudonyms are made of them. `day` is that
/// of its source and day; `of_subject` knows that of a tenant and person ([`Names::of_subject`]).
pub fn key_names<'e>(
    event: &'e Collected,
    day: KeyName,
    mut of_subject: impl FnMut(&'e str, &'e str) -> KeyName,
) -> ([KeyName; SEALS], Vec<KeyName>) {
    let (core, identity) = (event.core(), event.identity());
    let mut name = |id: &'e str| (!id.is_empty()).then(|| of_subject(&core.tenant, id));
    // Events that say of nobody who it was are erased with their day.
    let subject = identity.actor.as_ref().and_then(|actor| name(subject_of(actor))).unwrap_or(day);
    let called = identity.actor.iter().map(|actor| actor.name.as_str());
    let behind = identity.on_behalf_of.iter().map(subject_of);
    ([day, subject, day, day], called.chain(behind).filter_map(name).collect())
}

/// The name of the key of a batch's day.
pub fn day_name(names: &Names, batch: &Batch, ingested: u64) -> KeyName {
    names.of_day(&batch.signed().envelope().source, ingested / DAY_SECONDS)
}

/// How many sealed bytes an event has.
pub fn sealed_bytes(event: &Collected) -> usize {
    let segments =
        Segment::ALL.into_iter().map(|segment| SEAL_BYTES + Salt::LEN + event.bytes(segment).len());
    segments.sum::<usize>() + event.record().map_or(0, |record| SEAL_BYTES + record.len())
}

/// Seals an event and puts it into a block. `key` gives the key of each name.
pub fn seal<'k, E>(
    block: &mut NewBlock,
    (leaf, event): (&Leaf, &Collected),
    keys: &[KeyName; SEALS],
    mut key: impl FnMut(&KeyName) -> Result<&'k DataKey, E>,
    nonces: &mut Nonces,
) -> Result<(), E>
where
    E: From<SealError>,
{
    let hash = leaf.hash();
    block.begin_event(&leaf.encode(), sealed_bytes(event));
    for (at, name) in keys.iter().enumerate() {
        let parts = match Segment::ALL.get(at) {
            Some(&segment) => [event.salt(segment).as_bytes().as_slice(), event.bytes(segment)],
            None => [&[], event.record().unwrap_or_default()],
        };
        let there = at != RECORD || event.record().is_some();
        block.put_seal(name, |out| -> Result<(), E> {
            if !there {
                return Ok(());
            }
            key(name)?.seal_onto(out, &place(&hash, at), &parts, nonces.draw()).map_err(E::from)
        })?;
    }
    block.end_event();
    Ok(())
}

/// Opens a stored event and compares it with what its leaf commits to. `key` gives the key of each name, or nothing where it was destroyed.
pub fn open<E, K, B>(
    sealed: &Sealed<B>,
    mut key: impl FnMut(&KeyName) -> Result<Option<K>, E>,
) -> Result<Opened, E>
where
    B: AsRef<[u8]>,
    E: From<OpenError>,
    K: Borrow<DataKey>,
{
    let mut opened = open_segments(sealed, &Segment::ALL, &mut key)?;
    let (key_name, bytes) = &sealed.seals[RECORD];
    let bytes = bytes.as_ref();
    if !bytes.is_empty()
        && let Some(key) = key(key_name)?
    {
        // Whether it is the record that the body refers to is for the bundle to say: the body has its salted digest.
        let plain = key.borrow().open(&place(&opened.leaf.hash(), RECORD), bytes);
        opened.record = Some(plain.map_err(|error| OpenError::Seal("record", error))?.to_vec());
    }
    Ok(opened)
}

/// Opens these segments of a stored event, each compared with what its leaf commits to, and nothing else of it.
pub fn open_segments<E, K, B>(
    sealed: &Sealed<B>,
    wanted: &[Segment],
    mut key: impl FnMut(&KeyName) -> Result<Option<K>, E>,
) -> Result<Opened, E>
where
    B: AsRef<[u8]>,
    E: From<OpenError>,
    K: Borrow<DataKey>,
{
    let leaf = Leaf::parse(&sealed.leaf).map_err(|_| OpenError::Leaf)?;
    let hash = leaf.hash();
    let mut segments = [None, None, None];
    for segment in wanted.iter().copied() {
        let what = name(segment);
        let (key_name, bytes) = &sealed.seals[segment.place()];
        let Some(key) = key(key_name)? else { continue };
        let plain = key.borrow().open(&place(&hash, segment.place()), bytes.as_ref());
        let plain = plain.map_err(|error| OpenError::Seal(what, error))?;
        let (salt, bytes) = plain.split_first_chunk::<{ Salt::LEN }>().ok_or(OpenError::Other(what))?;
        let salt = Salt::from_bytes(*salt);
        if commitment(segment, &salt, bytes) != leaf.commitment(segment) {
            return Err(OpenError::Other(what).into());
        }
        segments[segment.place()] = Some((salt, bytes.to_vec()));
    }
    Ok(Opened { leaf, segments, record: None })
}

fn name(segment: Segment) -> &'static str {
    match segment {
        Segment::Core => "core",
        Segment::Identity => "identity",
        Segment::Body => "body",
    }
}

/// Where a seal belongs, by its leaf's hash: nowhere else does it open.
fn place(leaf: &Hash, seal: usize) -> [u8; PLACE.len() + Hash::LEN + 1] {
    let mut place = [seal as u8; PLACE.len() + Hash::LEN + 1];
    let (purpose, rest) = place.split_at_mut(PLACE.len());
    purpose.copy_from_slice(PLACE);
    rest[..Hash::LEN].copy_from_slice(leaf.as_bytes());
    place
}
