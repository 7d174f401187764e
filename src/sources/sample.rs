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
