//! Which slots are meant by a leaf, a number or an id. The store knows leaves and numbers. Ids are found by the index, which is behind the store:
//! that there is no event of an id is said once the index has all that was taken before the question.

use std::sync::Arc;
use std::time::Duration;

use epigraph_event::decode::k8s;
use tokio::time::timeout;

use super::event::PAGE;
use super::{AskError, Asker, CAUGHT_UP_WITHIN, blocking};
use crate::audit::{ReadError, Which};
use crate::index::follow::Following;
use crate::index::{Index, IndexError};
use crate::store::Placed;

/// Slots that are looked for at a time: a page, and the one with which the next begins.
const MOST: usize = PAGE + 1;

impl Asker {
    /// The slots of the events that are meant, in order, from one on: a page of them and one more at the most, and [`ReadError::NotFound`] if
    /// there are none. `taken` is how many events there were when it was asked.
    pub(super) async fn find(&self, which: &Which, from: u64, taken: u64) -> Result<Vec<u64>, AskError> {
        let (store, meant) = (self.store().clone(), which.clone());
        let slots = match meant {
            Which::Id(id) => with_id(&self.following, &id, (from, taken), CAUGHT_UP_WITHIN).await?,
            Which::Leaf(index) => {
                blocking(move || Ok(store.slot_of_leaf(index)?.into_iter().collect())).await?
            }
            Which::Sequence(name) => {
                blocking(move || Ok(store.event(&name)?.map(|(sealed, _)| sealed.slot).into_iter().collect()))
                    .await?
            }
        };
        if slots.is_empty() { Err(ReadError::NotFound.into()) } else { Ok(slots) }
    }
}

/// The slots of the events that carry an id, and of all stages of the Kubernetes request of which it is the `auditID`.
async fn with_id(
    following: &Following,
    id: &str,
    (from, taken): (u64, u64),
    within: Duration,
) -> Result<Vec<u64>, AskError> {
    let mut behind = 0;
    for waits in [false, true] {
        if waits {
            let _ = timeout(within, following.reached(taken)).await;
        }
        let index = following.index().ok_or_else(|| unindexed(following, "it is being opened".into()))?;
        let id = id.to_owned();
        let looked = blocking(move || Ok((index.next()?, listed(&index, &id, from)?))).await;
        let (next, slots) = match looked {
            Err(AskError::Index(error)) => Err(unindexed(following, error.to_string())),
            looked => looked,
        }?;
        behind = taken.saturating_sub(next);
        if !slots.is_empty() || behind == 0 {
            return Ok(slots);
        }
    }
    Err(unindexed(
        following,
        format!("it lacks {behind} of the events that were taken, and none of the others has this id"),
    ))
}

fn listed(index: &Arc<Index>, id: &str, from: u64) -> Result<Vec<u64>, IndexError> {
    let mut slots = index.with_id(id, from, MOST)?;
    for id in k8s::ids_of_request(id) {
        slots.extend(index.with_id(&id, from, MOST)?);
    }
    slots.sort_unstable();
    slots.truncate(MOST);
    Ok(slots)
}

fn unindexed(following: &Following, why: String) -> AskError {
    ReadError::Unindexed(following.trouble().unwrap_or(why)).into()
}

/// Whether an event is one of those that are meant; none if what it is was erased, its id with it. The index leads to events, and what they are is
/// theirs to say.
pub(super) fn is_meant(which: &Which, placed: &Placed) -> Option<bool> {
    let Which::Id(id) = which else { return Some(true) };
    let core = placed.core.as_ref()?;
    Some(core.event_id == *id || k8s::ids_of_request(id).any(|id| core.event_id == id))
}

#[cfg(test)]
mod tests {
    use epigraph_core::{Hash, LeafIndex};
    use epigraph_event::v1::CoreSegment;

    use super::*;
    use crate::store::EventName;

    /// Broken to see it fail: an index that is not there taken for one without events.
    #[tokio::test]
    async fn without_an_index_nobody_says_that_there_is_no_such_event() {
        let asked = with_id(&Following::default(), "an-id", (0, 0), Duration::ZERO).await;
        let Err(AskError::Read(error @ ReadError::Unindexed(_))) = asked else { panic!("{asked:?}") };
        let says = error.to_string();
        assert!(says.contains("being opened") && says.contains("its leaf index, or by its source"), "{says}");
    }

    /// An index that lies gives nobody another event. Broken to see it fail: every event taken for one that is meant, or the stages for none.
    #[test]
    fn an_event_that_is_found_by_an_id_carries_it() {
        let check = |asked: &str, carries: Option<&str>, expected: Option<bool>| {
            let core = carries.map(|id| CoreSegment { event_id: id.into(), ..CoreSegment::default() });
            let name = EventName { source: Hash::from_bytes([7; 32]), epoch: 0, sequence: 0 };
            let leaf = LeafIndex::new(0).unwrap();
            let placed = Placed { leaf, name, ingested_s: 0, core, identity: None, bytes: 0 };
            assert_eq!(is_meant(&Which::Id(asked.into()), &placed), expected, "{asked}");
            assert_eq!(is_meant(&Which::Leaf(leaf), &placed), Some(true));
        };
        check("an-id", Some("an-id"), Some(true));
        check("an-id", Some("an-id/ResponseComplete"), Some(true));
        check("an-id", Some("another"), Some(false));
        check("an-id", Some(""), Some(false));
        check("an-id/ResponseComplete", Some("an-id"), Some(false));
        check("an-id", None, None);
    }
}
