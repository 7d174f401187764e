//! The gate at the start of a log (DESIGN section 4): before anything is acknowledged or signed, the journal, the published
//! checkpoint and what the signer is bound to must be of one history, and the journal the longest of them.

use std::sync::Arc;

use epigraph_core::{Checkpoint, Origin, Policy, TreeHead, Verified};
use epigraph_store::file::Dir;
use epigraph_store::head::HeadStore;
use epigraph_store::journal::head_at;

use crate::failure::{Failure, Outcome};

/// The journal as the gate sees it.
pub struct JournalView<'a> {
    pub dir: &'a Arc<dyn Dir>,
    pub origin: &'a Origin,
    pub head: TreeHead,
}

/// Passes the gate, or says what does not fit. Returns the published checkpoint.
pub fn pass(
    journal: &JournalView<'_>,
    policy: &Policy,
    published: Option<&[u8]>,
    heads: &mut HeadStore,
) -> Outcome<Option<Verified<Checkpoint>>> {
    let origin = journal.origin;
    let published = published
        .map(|note| Checkpoint::open(note, policy))
        .transpose()
        .map_err(|error| Failure::state(format!("the published checkpoint on disk is not valid: {error}")))?;
    let published_head = published.as_ref().map(|checkpoint| checkpoint.head());
    if let Some(head) = published_head {
        check_contained(journal, "the published checkpoint", head)?;
    }

    let suspect = heads.suspects().find(|(log, _)| *log == origin).map(|(_, held)| held.head);
    if let Some(held) = suspect {
        if published_head.is_some_and(|published| published.size > held.size) {
            return Err(signer_behind(origin, held, published_head));
        }
        tracing::warn!(
            size = held.size.get(),
            "the signer fell back to an older head, and nothing newer is published"
        );
        heads.clear_suspicion(origin).map_err(Failure::state)?;
    }
    let held = heads.get(origin).map_err(Failure::state)?.head;
    check_contained(journal, "the head that the signer is bound to", held)?;
    if published_head.is_some_and(|published| published.size > held.size) {
        return Err(signer_behind(origin, held, published_head));
    }
    Ok(published)
}

fn check_contained(journal: &JournalView<'_>, what: &str, head: TreeHead) -> Outcome {
    let JournalView { dir, origin, head: durable } = *journal;
    if head.size > durable.size {
        return Err(Failure::state(format!(
            "the journal of {origin} went back: it has {} entries (root {}), but {what} has {} (root {}). An older copy of the \
             log's directory was put in place, or files are missing. Put the newest copy back; nothing was signed",
            durable.size, durable.root, head.size, head.root
        )));
    }
    let root = head_at(dir, origin.hash(), head.size, durable.size).map_err(Failure::state)?.root;
    if root != head.root {
        return Err(Failure::state(format!(
            "the journal of {origin} is of another history: at size {} its root is {root}, but {what} has root {}. The \
             directories do not belong together. Put back those that do; nothing was signed",
            head.size, head.root
        )));
    }
    Ok(())
}

fn signer_behind(origin: &Origin, held: TreeHead, published: Option<TreeHead>) -> Failure {
    let published = published.unwrap_or(TreeHead::EMPTY);
    Failure::state(format!(
        "the signer of {origin} went back: it is bound to size {} (root {}), but size {} (root {}) is published under its key. An \
         older copy of the signer's directory was put in place. Put the newest copy back; nothing was signed",
        held.size, held.root, published.size, published.root
    ))
}
