//! Forks that a witness shows, and what the log keeps of them: evidence that convicts its key offline, at whatever size the two
//! histories part; and nothing where the witness lies.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use epigraph_core::progress::{Decision, Held, Proposal, decide};
use epigraph_core::{Evidence, Origin, TreeHead, UnixMillis, evidence};
use epigraph_signer::publish::ask::{AskWitness, Reply};
use epigraph_signer::publish::{Dialled, Witnessing};
use epigraph_store::file::Dir;
use epigraph_store::file::memory::MemoryDir;
use epigraph_store::published::PublishedStore;

use crate::support::*;

/// The sizes at which the witness holds something else.
const SIZES: std::ops::RangeInclusive<u64> = 1..=64;

/// Decides as every witness does, and holds what another log with this key showed it. Never cosigns.
struct Elsewhere {
    held: TreeHead,
    asked: Mutex<Vec<&'static str>>,
}

impl AskWitness for Elsewhere {
    async fn add_checkpoint(&self, origin: &Origin, proposal: Proposal) -> Reply {
        let note = note_of(&key(), origin, &self.held).into_bytes();
        let held = Held { head: self.held, time: NOW, term: 0, note: note.clone() };
        let (said, reply) = match decide(origin, &held, proposal, UnixMillis(NOW.0)) {
            Decision::Step(_) => ("cosigned", Reply::Cosigned(Vec::new())),
            Decision::Stale(held) => ("stale", Reply::Stale { held, note: Some(note) }),
            Decision::Conflict(_) => ("conflict", Reply::Conflict { held: note }),
            Decision::Reject(why) => ("bad proof", Reply::BadProof { why: why.to_string(), held: None }),
        };
        self.asked.lock().unwrap().push(said);
        reply
    }

    async fn newest(&self, origin: &Origin) -> Result<Option<Vec<u8>>, String> {
        Ok(Some(note_of(&key(), origin, &self.held).into_bytes()))
    }
}

/// A log with 70 entries and one witness of two, which holds `held`. Returns what the witness said, what is counted of it, and the
/// evidence.
async fn asked(
    held: TreeHead,
    believed: u64,
) -> (Vec<&'static str>, Vec<(&'static str, u64)>, Vec<Evidence>) {
    let tree = Arc::new(tree(70, 70, 1));
    let (dir, kept) = (MemoryDir::new(), MemoryDir::new());
    let store = PublishedStore::create(Arc::new(dir)).unwrap();
    let witness = Arc::new(Elsewhere { held, asked: Mutex::default() });
    let dialled = Dialled { place: 0, witness: Arc::clone(&witness), held: size(believed) };
    let witnesses = Witnessing { evidence: Arc::new(kept.clone()), ..witnessing(&tree, vec![dialled]) };
    let mut running = Publishing::start(&tree, quorum(2, 1), store, witnesses, 70);
    let judged = |status: &epigraph_signer::publish::witnesses::Status| {
        status.witnesses.first().is_some_and(|witness| !witness.troubles.is_empty())
    };
    let status = tokio::time::timeout(Duration::from_secs(60), running.status.wait_for(judged));
    let troubles = status.await.unwrap().unwrap().witnesses[0].troubles.clone();
    running.task.abort();
    let read = |name: &String| {
        let bytes = kept.content(name).unwrap();
        evidence::verify(&bytes, &[key().vkey().clone()]).unwrap()
    };
    let evidence = kept.list().unwrap().iter().map(read).collect();
    (std::mem::take(&mut *witness.asked.lock().unwrap()), troubles.into_iter().collect(), evidence)
}

/// A6, D2, W7: a fork before each size from 1 to 64, where the size is a power of two too: there the witness can say only that the
/// proof fails, and the log, which has the other root, makes the evidence. Both when the log knows what the witness holds and when it has to
/// be told. Seen to fail with a bad proof taken for any other refusal.
#[tokio::test(start_paused = true)]
async fn a_fork_at_any_size_is_kept_as_evidence() {
    for leaves in SIZES {
        let theirs = head(&tree(leaves, leaves - 1, 2), leaves);
        for believed in [leaves, 0] {
            let (said, troubles, evidence) = asked(theirs, believed).await;
            let expected = if leaves.is_power_of_two() { "bad proof" } else { "conflict" };
            assert_eq!(said.last(), Some(&expected), "{leaves}, {believed}: {said:?}");
            assert_eq!(troubles, [("conflict", 1)], "{leaves}, {believed}");
            let [evidence] = evidence.as_slice() else { panic!("{leaves}, {believed}: {evidence:?}") };
            assert_eq!(evidence.heads(), [theirs, head(&tree(70, 70, 1), 70)], "{leaves}, {believed}");
        }
    }
}

/// Turns down every proof, and shows a note that the log did sign.
struct Liar(TreeHead, bool);

impl AskWitness for Liar {
    async fn add_checkpoint(&self, origin: &Origin, _: Proposal) -> Reply {
        let held = note_of(&key(), origin, &self.0).into_bytes();
        if self.1 { Reply::Conflict { held } } else { Reply::BadProof { why: "no".into(), held: None } }
    }

    async fn newest(&self, origin: &Origin) -> Result<Option<Vec<u8>>, String> {
        Ok(Some(note_of(&key(), origin, &self.0).into_bytes()))
    }
}

/// W4: a witness that lies with an old note of this log: no evidence, no conflict, and its fault. Seen to fail with the conflict
/// counted before it is judged.
#[tokio::test(start_paused = true)]
async fn a_conflict_that_is_none_is_never_counted_as_one() {
    let tree = Arc::new(tree(70, 70, 1));
    for leaves in SIZES {
        for (claims, kind) in [(true, "false_conflict"), (false, "refused")] {
            let kept = MemoryDir::new();
            let store = PublishedStore::create(Arc::new(MemoryDir::new())).unwrap();
            let witness = Arc::new(Liar(head(&tree, leaves), claims));
            let dialled = Dialled { place: 0, witness, held: size(leaves) };
            let witnesses =
                Witnessing { evidence: Arc::new(kept.clone()), ..witnessing(&tree, vec![dialled]) };
            let mut running = Publishing::start(&tree, quorum(2, 1), store, witnesses, 70);
            let judged = |status: &epigraph_signer::publish::witnesses::Status| {
                status.witnesses.first().is_some_and(|witness| !witness.troubles.is_empty())
            };
            let troubles = running.status.wait_for(judged).await.unwrap().witnesses[0].troubles.clone();
            running.task.abort();
            assert_eq!(troubles.into_keys().collect::<Vec<_>>(), [kind], "{leaves}");
            assert_eq!(kept.list().unwrap(), Vec::<String>::new());
        }
    }
}
