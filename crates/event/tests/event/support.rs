//! Events, keys and entropy to try things with.

use std::sync::Mutex;

use epigraph_core::key::KeyName;
use epigraph_core::{Entropy, SourceKey, UnixMillis};
use epigraph_event::chain::Tip;
use epigraph_event::v1::{Actor, BodySegment, CoreSegment, Format, IdentitySegment};
use epigraph_event::{Batch, Collected, Event};

/// Every byte is one more than the one before it.
#[derive(Default)]
pub(crate) struct Counting(Mutex<u8>);

impl Entropy for Counting {
    fn fill(&self, bytes: &mut [u8]) {
        let mut next = self.0.lock().unwrap();
        for byte in bytes {
            *byte = *next;
            *next = next.wrapping_add(1);
        }
    }
}

pub(crate) fn key(seed: u8) -> SourceKey {
    SourceKey::from_seed(KeyName::new("api-server.example").unwrap(), &[seed; 32].into())
}

pub(crate) fn event(number: usize) -> Event {
    let record = format!("{{\"n\":{number},\"user\":\"mallory\"}}").into_bytes();
    Event {
        core: CoreSegment { schema_version: 1, action: format!("act {number}"), ..CoreSegment::default() },
        identity: IdentitySegment {
            actor: Some(Actor { name: "mallory".to_owned(), ..Actor::default() }),
            ..IdentitySegment::default()
        },
        body: BodySegment {
            format: Format::Json.into(),
            original_size: record.len() as u64,
            record,
            ..BodySegment::default()
        },
    }
}

pub(crate) fn events(count: usize) -> Vec<Collected> {
    let entropy = Counting::default();
    (0..count).map(|number| event(number).seal(&entropy).unwrap()).collect()
}

pub(crate) const NOW: UnixMillis = UnixMillis(1_700_000_000_123);

pub(crate) fn batch(tip: &Tip, count: usize) -> Batch {
    Batch::sign(&key(7), tip, events(count), NOW).unwrap()
}
