//! What the publisher remembers of its witnesses from one start to the next, and what a wrong memory costs.

use std::sync::{Arc, Mutex};

use epigraph_core::checkpoint::encode_text;
use epigraph_core::cosignature::CosignedAt;
use epigraph_core::progress::Proposal;
use epigraph_core::proof::ConsistencyProof;
use epigraph_core::{Checkpoint, Origin, TreeHead};
use epigraph_signer::publish::ask::{AskWitness, Reply};
use epigraph_signer::publish::witnesses::name_of;
use epigraph_signer::publish::{Dialled, Witnessing};
use epigraph_store::file::memory::MemoryDir;
use epigraph_store::published::PublishedStore;
use epigraph_store::witness_sizes::{Sizes, WitnessSizes};

use crate::support::*;

/// Cosigns growth from what it holds, and notes from which sizes it was asked.
struct Model {
    place: usize,
    held: Mutex<TreeHead>,
    asked: Mutex<Vec<u64>>,
}

impl AskWitness for Model {
    async fn add_checkpoint(&self, origin: &Origin, proposal: Proposal) -> Reply {
        let mut held = self.held.lock().unwrap();
        self.asked.lock().unwrap().push(proposal.old_size.get());
        let Proposal { old_size, head, proof, .. } = proposal;
        if old_size != held.size {
            let note = Some(note_of(&key(), origin, &held).into_bytes()).filter(|_| held.size.get() > 0);
            return Reply::Stale { held: *held, note };
        }
        if held.size.get() > 0 {
            let proof = ConsistencyProof { old: held.size, new: head.size, hashes: proof };
            proof.verify(&held.root, &head.root).unwrap();
        }
        *held = head;
        let time = CosignedAt::new(1_000).unwrap();
        Reply::Cosigned(vec![witness_key(self.place).cosign_assertion(&encode_text(origin, &head), time)])
    }

    async fn newest(&self, _: &Origin) -> Result<Option<Vec<u8>>, String> {
        panic!("the gate is over")
    }
}

/// One run of a log with two witnesses that must both cosign, from what lies in `dir` to `leaves` entries. The hint is what is
/// stored, or, where `wrong` says so, something else.
async fn run(dir: &MemoryDir, models: &[Arc<Model>], leaves: u64, wrong: Option<&[u64]>) {
    let (tree, policy) = (Arc::new(tree(20, 20, 1)), quorum(2, 2));
    let store = PublishedStore::open(Arc::new(dir.clone())).unwrap().0;
    let mut sizes = WitnessSizes::open(dir, origin().hash()).unwrap();
    if let Some(wrong) = wrong {
        let name = |place: usize| name_of(&policy.witnesses()[place].vkey);
        sizes
            .store(wrong.iter().enumerate().map(|(place, at)| (name(place), size(*at))).collect::<Sizes>())
            .unwrap();
    }
    let hint = |place: usize| sizes.sizes().get(&name_of(&policy.witnesses()[place].vkey)).copied();
    let dialled = models.iter().enumerate().map(|(place, model)| Dialled {
        place,
        witness: Arc::clone(model),
        held: hint(place).unwrap_or_default(),
    });
    let dialled = dialled.collect();
    let witnesses = Witnessing { sizes: Some(sizes), ..witnessing(&tree, dialled) };
    let mut running = Publishing::start(&tree, policy, store, witnesses, leaves);
    let all = |newest: &Option<Arc<epigraph_core::Verified<Checkpoint>>>| {
        newest.as_ref().is_some_and(|newest| newest.head().size.get() == leaves)
    };
    drop(running.published.wait_for(all).await.unwrap());
    drop(running.offered);
    running.task.await.unwrap().unwrap();
}

/// After a start each witness is asked from the size that it holds, at the first try; with a wrong hint, at the second. Seen to fail
/// with the sizes stored for no witness, and with a first question from the published size.
#[tokio::test(start_paused = true)]
async fn the_sizes_are_remembered_and_a_wrong_one_costs_one_answer() {
    let dir = MemoryDir::new();
    drop(PublishedStore::create(Arc::new(dir.clone())).unwrap());
    let model = |place| {
        let (held, asked) = (Mutex::new(TreeHead::EMPTY), Mutex::default());
        Arc::new(Model { place, held, asked })
    };
    let models = [model(0), model(1)];
    let asked = || models.each_ref().map(|model| std::mem::take(&mut *model.asked.lock().unwrap()));
    run(&dir, &models, 5, None).await;
    assert_eq!(asked(), [[0], [0]]);
    run(&dir, &models, 9, None).await;
    assert_eq!(asked(), [[5], [5]]);
    // One of them was asked by somebody else in between.
    *models[1].held.lock().unwrap() = head(&tree(20, 20, 1), 11);
    run(&dir, &models, 12, None).await;
    assert_eq!(asked(), [vec![9], vec![9, 11]]);
    // Beyond the tree, before it, and for nobody.
    run(&dir, &models, 14, Some(&[u64::MAX >> 1, 3])).await;
    assert_eq!(asked(), [[14, 12], [3, 12]]);
    run(&dir, &models, 15, Some(&[])).await;
    assert_eq!(asked(), [[0, 14], [0, 14]]);
    run(&dir, &models, 20, None).await;
    assert_eq!(asked(), [[15], [15]]);
}
