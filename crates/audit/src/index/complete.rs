//! What can be said about whether the events of a window are all there: what each source has in it by number, and what it is known to lack.
//! That an index found every one of them is not proven by this.

use epigraph_core::Hash;

use super::{IndexError, Span, View};
use crate::query::Window;
use crate::source::{Gap, State};

/// One source in a window.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Completeness {
    /// The id of the source's key.
    pub source: Hash,
    /// What it has in the days of the window, epoch by epoch; empty if it has nothing.
    pub spans: Vec<Span>,
    /// Numbers within these spans or right beside them of which no event came.
    pub gaps: Vec<Gap>,
    /// Gaps that are not known one by one: nobody can tell whether they are of this window.
    pub unlisted_gaps: u64,
    /// When it was last heard of, in milliseconds: with an event, or with a batch that says that there was none.
    pub last_seen_ms: u64,
}

/// What the sources that are given have in a window.
pub fn completeness(
    view: &View,
    window: &Window,
    sources: &[(Hash, State)],
) -> Result<Vec<Completeness>, IndexError> {
    let spans = view.sources(window)?;
    let of_source = |(source, state): &(Hash, State)| {
        let spans: Vec<_> = spans.iter().filter(|span| span.source == *source).copied().collect();
        let touches = |gap: &&Gap| {
            let beside = |span: &Span| {
                gap.epoch == span.epoch && gap.first <= span.last.saturating_add(1) && span.first <= gap.end
            };
            spans.iter().any(beside)
        };
        Completeness {
            source: *source,
            gaps: state.gaps.iter().filter(touches).copied().collect(),
            unlisted_gaps: state.unlisted_gaps,
            last_seen_ms: state.last_seen_ms,
            spans,
        }
    };
    Ok(sources.iter().map(of_source).collect())
}
