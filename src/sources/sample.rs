//! Whether an audit service still gives an event as its leaf commits to it: one question, one answer, put to the proof.
//!
//! Each question goes on the service's record, under the monitor's name. The leaf is taken from the log and the event from the
//! service, and what proves them is judged like a stranger's. An answer that does not come says nothing about the event.

use epigraph_core::{LeafIndex, Origin, Policy};
use epigraph_event::{Bundle, Leaf};
use epigraph_rpc::peer::audit::{Audit, SourceStatus, WhichEvent};
use epigraph_rpc::{CallError, Reason, peer};

/// Why it is asked, for the record.
const PURPOSE: &str = "the monitor compares events with the log";

/// What came of a question.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Sampled {
    /// There is an event, and it is what the log says.
    Good,
    /// The entry is no leaf, or not one of a source of this service.
    NotIts,
    /// The event is another one, or gone.
    Bad(String),
    /// Nobody can tell now.
    NoAnswer(String),
}

/// A log, and the audit service that puts its leaves there.
pub struct Sampler<'a> {
    pub origin: &'a Origin,
    pub policy: &'a Policy,
    pub log: &'a peer::Log,
    pub audit: &'a Audit,
}

impl Sampler<'_> {
    /// Looks at one entry of the log.
    pub async fn look(&self, index: LeafIndex, sources: &[SourceStatus]) -> Sampled {
        let entries = match self.log.entries(self.origin.as_str(), index, 1).await {
            Ok(entries) => entries,
            Err(error) => return Sampled::NoAnswer(format!("the log: {error}")),
        };
        let leaf = entries.first().and_then(|entry| Leaf::parse(entry).ok());
        let Some(leaf) = leaf else { return Sampled::NotIts };
        let Some(source) = sources.iter().find(|source| source.id == leaf.source) else {
            return Sampled::NotIts;
        };
        let which = WhichEvent::Leaf(index);
        let page = match self.audit.event(self.origin.as_str(), &which, PURPOSE, "").await {
            Ok(page) => page,
            Err(CallError::Refused(refusal))
                if matches!(refusal.reason(), Reason::EventNotFound | Reason::DataLoss) =>
            {
                return Sampled::Bad(refusal.to_string());
            }
            Err(error) => return Sampled::NoAnswer(error.to_string()),
        };
        match page.bundles.first().map(|bytes| judge(bytes, index, &leaf, source, self.policy)) {
            Some(Ok(())) => Sampled::Good,
            Some(Err(why)) => Sampled::Bad(why),
            None => Sampled::Bad("it answers without an event".into()),
        }
    }
}

/// Whether a bundle proves the event of this leaf.
fn judge(
    bytes: &[u8],
    index: LeafIndex,
    leaf: &Leaf,
    source: &SourceStatus,
    policy: &Policy,
) -> Result<(), String> {
    let vkey = source.vkey.parse().map_err(|error| format!("the key that it lists: {error}"))?;
    let bundle = Bundle::parse(bytes).map_err(|error| error.to_string())?;
    let proven = bundle.verify(policy, &[vkey]).map_err(|error| error.to_string())?;
    if (proven.index, &proven.leaf) != (index, leaf) {
        return Err(format!("it gives the event of leaf {} in place of leaf {index}", proven.index));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use epigraph_core::checkpoint::encode_text;
    use epigraph_core::key::SigningKey;
    use epigraph_core::tlog_proof::Receipt;
    use epigraph_core::{Entropy, SourceKey, TreeHead, TreeSize, UnixMillis, note};
    use epigraph_event::chain::Tip;
    use epigraph_event::v1::{BodySegment, Format};
    use epigraph_event::{Batch, Event};

    struct Zeros;

    impl Entropy for Zeros {
        fn fill(&self, bytes: &mut [u8]) {
            bytes.fill(0);
        }
    }

    fn log() -> SigningKey {
        SigningKey::from_seed("log.example".parse().unwrap(), &[1; 32].into())
    }

    fn key(seed: u8) -> SourceKey {
        SourceKey::from_seed("a-cluster".parse().unwrap(), &[seed; 32].into())
    }

    /// The event of this record, as the only entry of a log.
    fn bundle(record: &[u8]) -> Bundle {
        let body =
            BodySegment { format: Format::Json.into(), record: record.to_vec(), ..BodySegment::default() };
        let event = Event { core: Default::default(), identity: Default::default(), body };
        let events = vec![event.seal(&Zeros).unwrap()];
        let batch = Batch::sign(&key(7), &Tip::default(), events, UnixMillis(1_700_000_000_000)).unwrap();
        let leaf = batch.leaf(0, 1_700_000_000).unwrap();
        let head = TreeHead { size: TreeSize::new(1).unwrap(), root: leaf.hash() };
        let text = encode_text(&Origin::new("log.example").unwrap(), &head);
        let checkpoint = note::encode(&text, [&log().sign_assertion(&text)]).into_bytes();
        let (extra, index, hashes) = (None, LeafIndex::default(), Vec::new());
        Bundle::of(&batch, 0, leaf, Receipt { extra, index, hashes, checkpoint }).unwrap()
    }

    fn judged(given: &Bundle, asked: &Leaf, listed: &SourceKey) -> Result<(), String> {
        let policy = Policy::of_log(log().vkey().clone());
        judge(&given.encode(), LeafIndex::default(), asked, &listed_as(listed), &policy)
    }

    fn listed_as(key: &SourceKey) -> SourceStatus {
        SourceStatus {
            vkey: key.vkey().to_string(),
            id: key.vkey().id(),
            owner: String::new(),
            collector: String::new(),
            enrolled_at: UnixMillis(1),
            retired_at: None,
            events: 1,
            epoch: 0,
            first_sequence: 0,
            next_sequence: 1,
            last_seen: None,
            lag_ms: 0,
            heartbeat_ms: 0,
            silent: false,
            gaps: Vec::new(),
            gap_count: 0,
            troubles: Vec::new(),
        }
    }

    /// F7 c: a service that answers, and answers wrongly. Broken to see it fail: every bundle taken for proven; the leaf that was asked for not
    /// compared.
    #[test]
    fn an_event_is_held_against_the_leaf_that_was_asked_for() {
        let (right, other) = (bundle(b"{}"), bundle(b"[]"));
        assert_eq!(judged(&right, &right.leaf, &key(7)), Ok(()));
        for segment in 0..right.segments.len() {
            let mut changed = right.clone();
            changed.segments[segment].as_mut().unwrap().1.push(0);
            assert!(judged(&changed, &right.leaf, &key(7)).is_err(), "segment {segment}");
        }
        // Another event, proven, in its place; one of a key that is not listed.
        assert!(judged(&other, &right.leaf, &key(7)).unwrap_err().contains("in place of leaf 0"));
        assert!(judged(&right, &right.leaf, &key(8)).is_err());
    }
}
