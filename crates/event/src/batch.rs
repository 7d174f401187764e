//! Signed batches: a collector's statement that these events, in this order and without a gap, followed that batch.
//!
//! The batch's tree is that of RFC 6962 over one entry of 112 bytes for each event: its reference and its three
//! commitments. The envelope carries the root; the signature is over the envelope's pre-authentication encoding, and
//! the SHA-256 of that encoding is the batch's hash: what the next batch and every leaf name it by. So all of it hangs
//! on salted commitments, and no digest of an event's bytes alone exists anywhere. Byte by byte:
//! docs/formats/event-batch.md.
//!
//! Verifying answers one question, whether this key signed exactly this. Whether the batch is the next one is
//! [`crate::chain`]'s, whether the key is enrolled its caller's.

use std::convert::Infallible;

use bytes::Bytes;
use epigraph_core::hash::{Hash, leaf_hash, leaf_hashes, node_hash, sha256};
use epigraph_core::proof::{self, InclusionProof, Nodes, ProofError};
use epigraph_core::{LeafIndex, SourceKey, SourceVKey, TreeSize, UnixMillis};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use thiserror::Error;

use crate::chain::Tip;
use crate::collected::{Collected, EventError};
use crate::leaf::{LEAF_BYTES, Leaf, Reference};
use crate::v1::{BatchEnvelope, CollectedBatch, SignedBatch};

/// The most events of a batch: the path of one is at most 8 hashes.
pub const MAX_EVENTS: usize = 256;

/// The largest batch in bytes, encoded with its events: half of what a gRPC message carries by default.
pub const MAX_BATCH_BYTES: usize = 2 * 1024 * 1024;

/// The largest envelope in bytes; those of this version have about 160.
pub const MAX_ENVELOPE_BYTES: usize = 1024;

/// The most hashes in the path of an event inside its batch.
pub const MAX_PATH_HASHES: usize = MAX_EVENTS.ilog2() as usize;

/// What the signed bytes are, in the sense of DSSE.
pub const PAYLOAD_TYPE: &str = "application/vnd.epigraph.audit-batch.v1";

/// The bytes that a batch of no events has at most, so that a collector can count what still fits.
pub const MAX_OVERHEAD_BYTES: usize = MAX_ENVELOPE_BYTES + 256;

const VERSION: u32 = 1;

// Field numbers of CollectedBatch.
const SIGNED: u32 = 1;
const EVENTS: u32 = 2;

/// What a batch says of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Envelope {
    /// The key that signs ([`SourceVKey::id`]).
    pub source: Hash,
    /// Grows when the source begins to number anew.
    pub epoch: u64,
    /// The batch's number in its epoch.
    pub number: u64,
    /// The sequence number of its first event, or of the next event to come if it has none.
    pub first_sequence: u64,
    /// How many events it has: 0 to [`MAX_EVENTS`].
    pub count: u32,
    /// The hash of the batch before it, if there is one that the source remembers.
    pub previous: Option<Hash>,
    /// Root over its events.
    pub root: Hash,
    /// When it was signed, by the collector's clock.
    pub made_at: UnixMillis,
}

/// An envelope that its source's key signed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Signed {
    envelope: Envelope,
    bytes: Vec<u8>,
    signature: Vec<u8>,
    hash: Hash,
}

/// A signed batch with its events, all of them checked.
#[derive(Clone, PartialEq, Debug)]
pub struct Batch {
    signed: Signed,
    events: Vec<Collected>,
}

/// What is left of a batch when its events are not needed any more: enough to make their leaves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Roll {
    signed: Signed,
    events: Vec<(Reference, [Hash; 3])>,
}

/// A batch as it came, of which nothing is believed yet.
#[derive(Clone, PartialEq, Debug)]
pub struct Unverified(CollectedBatch);

/// Why a batch was not made or not taken.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum BatchError {
    /// More than [`MAX_BATCH_BYTES`].
    #[error("a batch has at most {MAX_BATCH_BYTES} bytes, this one has {0}: put fewer events into it")]
    TooLarge(usize),
    /// More than [`MAX_EVENTS`].
    #[error("a batch has at most {MAX_EVENTS} events, this one has {0}")]
    TooManyEvents(usize),
    /// The encoding, or a field that this version of it has no room for.
    #[error("the batch cannot be read ({0}): it was changed, or written by something else")]
    Unreadable(&'static str),
    /// Signed as something else.
    #[error("the signed bytes are not said to be a batch of audit events: their type is not {PAYLOAD_TYPE}")]
    OtherType,
    /// Written by a later version.
    #[error("the batch has version {0}, and only version {VERSION} is known here: use a newer epigraph")]
    Version(u32),
    /// It names another key than the one it is checked with.
    #[error("the batch says it is of the source key {found}, and it is checked with the key {expected}")]
    OtherKey {
        /// The key that it names.
        found: Hash,
        /// The key that was given.
        expected: Hash,
    },
    /// Changed after signing, or signed by another key.
    #[error("the signature does not match the batch: it was changed after signing, or {0} did not sign it")]
    BadSignature(Box<SourceVKey>),
    /// Events were taken out or put in.
    #[error("the batch was signed with {signed} events and has {found}: events were taken out or put in")]
    Count {
        /// What the envelope says.
        signed: u32,
        /// What is there.
        found: usize,
    },
    /// An event, a salt or a reference was changed, or their order.
    #[error("the events are not those that were signed: one was changed, exchanged or moved")]
    OtherEvents,
    /// One of the events.
    #[error("event {place} of the batch: {source}")]
    Event {
        /// Its place, from 0.
        place: usize,
        /// What is wrong.
        source: EventError,
    },
    /// The event is not one of the batch's.
    #[error("event {sequence} is not in the batch of {count} events from {first_sequence}")]
    NotInIt {
        /// The event's sequence number.
        sequence: u64,
        /// The sequence number of the batch's first event.
        first_sequence: u64,
        /// How many events the batch has.
        count: u32,
    },
    /// The path does not lead from the event to the batch's root.
    #[error("the event is not shown to be one of the signed batch: {0}")]
    Path(ProofError),
    /// The numbers would not fit into 64 bits.
    #[error("the source's numbers are used up: begin a new epoch")]
    Exhausted,
}

impl Signed {
    /// Believes an envelope only if this key signed it.
    pub fn open(batch: &SignedBatch, key: &SourceVKey) -> Result<Signed, BatchError> {
        let envelope = read(batch)?;
        if envelope.source != key.id() {
            return Err(BatchError::OtherKey { found: envelope.source, expected: key.id() });
        }
        let message = pre_authentication(&batch.envelope);
        if !key.verify(&message, &batch.signature) {
            return Err(BatchError::BadSignature(Box::new(key.clone())));
        }
        let (bytes, signature) = (batch.envelope.clone(), batch.signature.clone());
        Ok(Signed { envelope, bytes, signature, hash: sha256(&message) })
    }

    /// What it says.
    pub fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    /// SHA-256 of what was signed: the batch's name in leaves and in the chain.
    pub fn hash(&self) -> Hash {
        self.hash
    }

    fn leaf(
        &self,
        place: usize,
        (reference, commitments): (Reference, [Hash; 3]),
        ingested: u64,
    ) -> Option<Leaf> {
        let Envelope { source, epoch, first_sequence, .. } = self.envelope;
        let sequence = first_sequence.checked_add(u64::try_from(place).ok()?)?;
        Some(Leaf { reference, source, epoch, sequence, ingested, commitments, batch: self.hash })
    }

    /// As it travels.
    pub fn to_wire(&self) -> SignedBatch {
        SignedBatch {
            payload_type: PAYLOAD_TYPE.to_owned(),
            envelope: self.bytes.clone(),
            signature: self.signature.clone(),
        }
    }

    /// Checks that the event with this name and these commitments is the batch's event of this sequence number.
    pub fn verify_path(
        &self,
        sequence: u64,
        reference: Reference,
        commitments: &[Hash; 3],
        path: &[Hash],
    ) -> Result<(), BatchError> {
        let Envelope { first_sequence, count, root, .. } = self.envelope;
        let place = sequence.checked_sub(first_sequence).filter(|place| *place < u64::from(count));
        let not_in_it = BatchError::NotInIt { sequence, first_sequence, count };
        let index = place.and_then(LeafIndex::new).ok_or(not_in_it.clone())?;
        let size = TreeSize::new(u64::from(count)).ok_or(not_in_it)?;
        let path = InclusionProof { index, size, hashes: path.to_vec() };
        path.verify(&leaf_hash(&entry(reference, commitments)), &root).map_err(BatchError::Path)
    }
}

impl Batch {
    /// Signs the next batch of a source. The events are sealed; persist the batch before it is sent, and the tip after
    /// it ([`Tip::after`]) with it, so that no number is ever given twice.
    pub fn sign(
        key: &SourceKey,
        tip: &Tip,
        events: Vec<Collected>,
        made_at: UnixMillis,
    ) -> Result<Batch, BatchError> {
        if events.len() > MAX_EVENTS {
            return Err(BatchError::TooManyEvents(events.len()));
        }
        let count = events.len() as u32;
        let last = tip.sequence.checked_add(u64::from(count));
        last.and(tip.number.checked_add(1)).ok_or(BatchError::Exhausted)?;
        let envelope = Envelope {
            source: key.vkey().id(),
            epoch: tip.epoch,
            number: tip.number,
            first_sequence: tip.sequence,
            count,
            previous: tip.last,
            root: Tree::of(&events).root(),
            made_at,
        };
        let bytes = envelope.to_wire().encode_to_vec();
        let message = pre_authentication(&bytes);
        let signed = Signed { envelope, bytes, signature: key.sign(&message), hash: sha256(&message) };
        let batch = Batch { signed, events };
        let length = batch.encoded_len();
        if length > MAX_BATCH_BYTES { Err(BatchError::TooLarge(length)) } else { Ok(batch) }
    }

    /// The signed envelope.
    pub fn signed(&self) -> &Signed {
        &self.signed
    }

    /// The events, in the order of their sequence numbers.
    pub fn events(&self) -> &[Collected] {
        &self.events
    }

    /// The leaf of one of the events, by its place in the batch; `ingested` in seconds. None beyond the last.
    pub fn leaf(&self, place: usize, ingested: u64) -> Option<Leaf> {
        let event = self.events.get(place)?;
        self.signed.leaf(place, (event.reference(), *event.commitments()), ingested)
    }

    /// Without the events themselves.
    pub fn roll(&self) -> Roll {
        let events = self.events.iter().map(|event| (event.reference(), *event.commitments()));
        Roll { signed: self.signed.clone(), events: events.collect() }
    }

    /// The path of each event inside the batch, for [`Signed::verify_path`]: at most [`MAX_PATH_HASHES`] hashes.
    pub fn paths(&self) -> Vec<Vec<Hash>> {
        let tree = Tree::of(&self.events);
        (0..self.events.len()).filter_map(|place| tree.path(place)).collect()
    }

    /// As it travels.
    pub fn to_wire(&self) -> CollectedBatch {
        let events = self.events.iter().map(Collected::to_wire).collect();
        CollectedBatch { signed: Some(self.signed.to_wire()), events }
    }

    /// As bytes, for the spool and the wire: the encoding of [`Batch::to_wire`].
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.encoded_len());
        let signed = self.signed.to_wire();
        encode_key(SIGNED, WireType::LengthDelimited, &mut bytes);
        encode_varint(signed.encoded_len() as u64, &mut bytes);
        bytes.extend(signed.encode_to_vec());
        for event in &self.events {
            encode_key(EVENTS, WireType::LengthDelimited, &mut bytes);
            encode_varint(event.encoded_len() as u64, &mut bytes);
            event.encode(&mut bytes);
        }
        bytes
    }

    /// The length of [`Batch::encode`].
    pub fn encoded_len(&self) -> usize {
        let field = |tag, length: usize| key_len(tag) + encoded_len_varint(length as u64) + length;
        let events = self.events.iter().map(|event| field(EVENTS, event.encoded_len()));
        field(SIGNED, self.signed.to_wire().encoded_len()) + events.sum::<usize>()
    }
}

impl Roll {
    /// The signed envelope.
    pub fn signed(&self) -> &Signed {
        &self.signed
    }

    /// The hashes of the events' leaves, in their order; `ingested` in seconds.
    pub fn leaf_hashes(&self, ingested: u64) -> Vec<Hash> {
        let leaf =
            |(place, event): (usize, &(Reference, [Hash; 3]))| self.signed.leaf(place, *event, ingested);
        let leaves: Vec<_> =
            self.events.iter().enumerate().filter_map(leaf).map(|leaf| leaf.encode()).collect();
        leaf_hashes(leaves.iter().map(<[u8; LEAF_BYTES]>::as_slice)).collect()
    }
}

impl Unverified {
    /// Reads the bytes of a batch; believes nothing. Its events stay in these bytes.
    pub fn decode(bytes: Bytes) -> Result<Unverified, BatchError> {
        if bytes.len() > MAX_BATCH_BYTES {
            return Err(BatchError::TooLarge(bytes.len()));
        }
        let batch = CollectedBatch::decode(bytes).map_err(|_| BatchError::Unreadable("its encoding"))?;
        match batch.events.len() {
            0..=MAX_EVENTS => Ok(Unverified(batch)),
            more => Err(BatchError::TooManyEvents(more)),
        }
    }

    /// What it says of itself, in order to find the key to check it with, and no more.
    pub fn claim(&self) -> Result<Envelope, BatchError> {
        read(self.signed()?)
    }

    /// Believes it only if this key signed exactly these events.
    pub fn verify(self, key: &SourceVKey) -> Result<Batch, BatchError> {
        let signed = Signed::open(self.signed()?, key)?;
        let (count, found) = (signed.envelope.count, self.0.events.len());
        if usize::try_from(count) != Ok(found) {
            return Err(BatchError::Count { signed: count, found });
        }
        let mut events = Vec::with_capacity(found);
        for (place, event) in self.0.events.into_iter().enumerate() {
            let event = Collected::from_wire(event);
            events.push(event.map_err(|source| BatchError::Event { place, source })?);
        }
        if Tree::of(&events).root() == signed.envelope.root {
            Ok(Batch { signed, events })
        } else {
            Err(BatchError::OtherEvents)
        }
    }

    fn signed(&self) -> Result<&SignedBatch, BatchError> {
        self.0.signed.as_ref().ok_or(BatchError::Unreadable("it has no envelope"))
    }
}

impl Envelope {
    fn to_wire(&self) -> BatchEnvelope {
        BatchEnvelope {
            version: VERSION,
            source_key_id: self.source.as_bytes().to_vec(),
            epoch: self.epoch,
            number: self.number,
            first_sequence: self.first_sequence,
            count: self.count,
            previous: self.previous.map(|hash| hash.as_bytes().to_vec()).unwrap_or_default(),
            root: self.root.as_bytes().to_vec(),
            made_at_ms: self.made_at.0,
        }
    }
}

/// Reads an envelope; believes nothing.
fn read(batch: &SignedBatch) -> Result<Envelope, BatchError> {
    if batch.payload_type != PAYLOAD_TYPE {
        return Err(BatchError::OtherType);
    }
    if batch.envelope.len() > MAX_ENVELOPE_BYTES {
        return Err(BatchError::Unreadable("its envelope is too long"));
    }
    let wire = BatchEnvelope::decode(batch.envelope.as_slice())
        .map_err(|_| BatchError::Unreadable("its envelope"))?;
    if wire.version != VERSION {
        return Err(BatchError::Version(wire.version));
    }
    let hash = |bytes: &[u8], what| Hash::from_slice(bytes).ok_or(BatchError::Unreadable(what));
    let previous = match wire.previous.as_slice() {
        [] => None,
        bytes => Some(hash(bytes, "its hash of the batch before it")?),
    };
    if usize::try_from(wire.count).map_or(true, |count| count > MAX_EVENTS) {
        return Err(BatchError::Unreadable("its count of events"));
    }
    let ends = wire.first_sequence.checked_add(u64::from(wire.count)).and(wire.number.checked_add(1));
    ends.ok_or(BatchError::Exhausted)?;
    Ok(Envelope {
        source: hash(&wire.source_key_id, "its source key")?,
        epoch: wire.epoch,
        number: wire.number,
        first_sequence: wire.first_sequence,
        count: wire.count,
        previous,
        root: hash(&wire.root, "its root")?,
        made_at: UnixMillis(wire.made_at_ms),
    })
}

/// What is signed: type and bytes, each behind its length, so that nothing signed can be taken for something else
/// (DSSE, "PAE").
fn pre_authentication(envelope: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {PAYLOAD_TYPE} {} ", PAYLOAD_TYPE.len(), envelope.len());
    [head.as_bytes(), envelope].concat()
}

/// The path of one event, by its place, inside the batch whose leaves these are, all of them in order: for whoever no longer has the
/// segments. Whether they are is for [`Signed::verify_path`] to say.
pub fn path(leaves: &[Leaf], place: usize) -> Option<Vec<Hash>> {
    Tree::over(leaves.iter().map(|leaf| entry(leaf.reference, &leaf.commitments))).path(place)
}

/// Bytes of an event's entry in its batch's tree.
const ENTRY_BYTES: usize = Reference::LEN + 3 * Hash::LEN;

/// An event's entry in its batch's tree.
fn entry(reference: Reference, commitments: &[Hash; 3]) -> [u8; ENTRY_BYTES] {
    let mut entry = [0; ENTRY_BYTES];
    let (of_reference, of_commitments) = entry.split_at_mut(Reference::LEN);
    of_reference.copy_from_slice(reference.as_bytes());
    for (bytes, commitment) in of_commitments.chunks_exact_mut(Hash::LEN).zip(commitments) {
        bytes.copy_from_slice(commitment.as_bytes());
    }
    entry
}

/// The tree of a batch: the roots of its perfect subtrees, by height.
struct Tree(Vec<Vec<Hash>>);

impl Tree {
    fn of(events: &[Collected]) -> Tree {
        Tree::over(events.iter().map(|event| entry(event.reference(), event.commitments())))
    }

    fn over(entries: impl Iterator<Item = [u8; ENTRY_BYTES]>) -> Tree {
        let entries: Vec<_> = entries.collect();
        let mut heights =
            vec![leaf_hashes(entries.iter().map(<[u8; ENTRY_BYTES]>::as_slice)).collect::<Vec<_>>()];
        while let Some(below) = heights.last().filter(|below| below.len() > 1) {
            let above = below.chunks_exact(2).map(|pair| node_hash(&pair[0], &pair[1])).collect();
            heights.push(above);
        }
        Tree(heights)
    }

    fn path(&self, place: usize) -> Option<Vec<Hash>> {
        let size = TreeSize::new(self.0.first().map_or(0, Vec::len) as u64)?;
        let Ok(proof) = proof::prove_inclusion(self, LeafIndex::new(u64::try_from(place).ok()?)?, size);
        Some(proof.ok()?.hashes)
    }

    fn root(&self) -> Hash {
        let size = self.0.first().map_or(0, Vec::len) as u64;
        let Ok(root) = proof::root_at(self, TreeSize::new(size).unwrap_or_default());
        root
    }
}

impl Nodes for Tree {
    type Error = Infallible;

    /// Every perfect subtree of a tree is there; the core asks for no others.
    fn node(&self, height: u32, index: u64) -> Result<Hash, Infallible> {
        let height = usize::try_from(height).ok().and_then(|height| self.0.get(height));
        let node = usize::try_from(index).ok().and_then(|index| height?.get(index));
        Ok(node.copied().unwrap_or(Hash::EMPTY_ROOT))
    }
}
