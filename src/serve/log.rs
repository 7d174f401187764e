//! One log of the process: opens its state, passes the gate, wires sequencer, publisher, signer and scrubber together, and
//! runs them.

use std::path::PathBuf;
use std::sync::Arc;

use epigraph_core::proof::prove_consistency;
use epigraph_core::{Entropy, Origin, TreeHead, TreeSize};
use epigraph_sequencer::log::Log;
use epigraph_sequencer::run::{OpenLookup, OpenTree, Ready, Setup, start};
use epigraph_signer::embedded::EmbeddedSigner;
use epigraph_signer::publish::Publisher;
use epigraph_signer::signer::Signer;
use epigraph_store::file::Dir;
use epigraph_store::lookup::{Lookup, SetAside};
use epigraph_store::scrub::Scrubber;
use epigraph_store::tree::{self, Notice, Place, Tree};
use tokio::sync::watch;

use super::gate::{self, JournalView};
use crate::config::{LogConfig, ProcessConfig};
use crate::failure::{Failure, Outcome};
use crate::preflight;
use crate::runtime;
use crate::scrub::{self, Scrubbed};
use crate::state;

/// A log that has passed the gate. Nothing is acknowledged or signed before [`Opened::run`].
pub struct Opened {
    pub log: Arc<Log>,
    /// Entries at the start.
    pub durable: TreeSize,
    pub scrubbed: watch::Receiver<Scrubbed>,
    scrubbing_at: watch::Sender<Scrubbed>,
    scrubber: Scrubber,
    publisher: Publisher<EmbeddedSigner>,
    ready: Ready,
}

/// Opens the state of one log and checks it.
pub fn open(process: &ProcessConfig, config: &LogConfig, entropy: &Arc<dyn Entropy>) -> Outcome<Opened> {
    let mut state = state::open(process, config, entropy)?;
    let origin = state.origin;
    let durable = state.journal.head();
    let journal = JournalView { dir: &state.journal_dir, origin: &origin, head: durable };
    let newest = gate::pass(&journal, &state.policy, state.published.current(), &mut state.heads)?;
    if let (Some(history), Some(newest)) = (&state.history, &newest) {
        // The one that a crash kept from the history.
        if let Err(error) = history.append(newest.head().size, newest.note()) {
            tracing::warn!(log = %origin, %error, "the newest checkpoint is not in the history");
        }
    }
    let tree = Arc::new(Tree::new(Arc::clone(&state.journal_dir), origin.hash()));
    let lookup_directory = state.tree_directory.with_file_name("lookup");
    let open_lookup = open_lookup(lookup_directory, Arc::clone(&tree), &origin, durable.size);
    let place = Place { directory: state.tree_directory, preflight: preflight::in_a_child() };
    let (published, published_receiver) = watch::channel(newest.map(Arc::new));
    let ready = start(Setup {
        origin: origin.clone(),
        limits: config.limits,
        tree: Arc::clone(&tree),
        open_tree: open_tree(Arc::clone(&tree), place, Arc::clone(&state.journal_dir), &origin, durable),
        journal: state.journal,
        clock: runtime::clock(),
        published: published_receiver,
        history: state.history.clone(),
        policy: state.policy.clone(),
        open_lookup,
    })
    .map_err(Failure::state)?;
    let scrubber = Scrubber::new(state.journal_dir, origin.hash(), Arc::clone(&tree));
    let prove = move |old, new| match prove_consistency(&*tree, old, new) {
        Ok(Ok(proof)) => Ok(proof.hashes),
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let signer = Signer::new(vec![state.key], state.heads);
    let publisher = Publisher {
        origin,
        policy: state.policy,
        checkpoint_interval: config.checkpoint_interval,
        signer: EmbeddedSigner::spawn(signer, runtime::clock()).map_err(Failure::state)?,
        prove: Arc::new(prove),
        store: state.published,
        history: state.history,
        published,
    };
    let (scrubbing_at, scrubbed) = watch::channel(Scrubbed::default());
    let log = Arc::clone(&ready.log);
    Ok(Opened { log, durable: durable.size, scrubbed, scrubbing_at, scrubber, publisher, ready })
}

impl Opened {
    /// Runs until the log is drained and everything that was taken is published, or until it cannot go on.
    pub async fn run(self) -> Outcome {
        let Opened { log, scrubbing_at, scrubber, publisher, ready, .. } = self;
        let Ready { offered, wanted, driver, log: same } = ready;
        // The driver ends when the last handle is gone.
        drop((log, same));
        let driver = async { driver.run().await.map_err(Failure::state) };
        let mut caught_up = offered.clone();
        let clock = runtime::clock();
        let scrubbing = async move {
            if caught_up.changed().await.is_err() {
                return Ok(());
            }
            tokio::select! {
                damage = scrub::run(scrubber, &*clock, &scrubbing_at) => Err(damage),
                // The log has ended, in order.
                () = async { while caught_up.changed().await.is_ok() {} } => Ok(()),
            }
        };
        let publisher = async {
            let mut offered = offered;
            // Nothing may be signed before the tree has caught up with the journal; a log that ends before has nothing.
            match offered.changed().await {
                Ok(()) => {
                    offered.mark_changed();
                    publisher.run(offered, wanted).await.map_err(Failure::state)
                }
                Err(_) => Ok(()),
            }
        };
        tokio::try_join!(driver, publisher, scrubbing).map(drop)
    }
}

/// How the tree's store is opened, on the tree's own thread.
fn open_tree(
    tree: Arc<Tree>,
    place: Place,
    dir: Arc<dyn Dir>,
    origin: &Origin,
    durable: TreeHead,
) -> OpenTree {
    let (name, origin_hash) = (origin.clone(), origin.hash());
    Box::new(move || {
        let mut tell = |notice| match notice {
            Notice::Stored(size) => {
                tracing::info!(entries = size.get(), of = durable.size.get(), log = %name, "the stored tree is open");
            }
            Notice::MovedAside { to, why } => {
                tracing::warn!(log = %name, to = %to.display(), %why, "the stored tree was moved aside; it is rebuilt from the journal");
            }
        };
        tree::open(&tree, &place, dir, origin_hash, durable, &mut tell).map_err(|error| error.to_string())
    })
}

/// How the lookup is opened, on its own thread.
fn open_lookup(directory: PathBuf, tree: Arc<Tree>, origin: &Origin, durable: TreeSize) -> OpenLookup {
    let name = origin.clone();
    Box::new(move || {
        let mut tell = |aside: SetAside| {
            tracing::warn!(log = %name, file = %aside.name, why = %aside.why, "a file of the lookup was set aside; it is made again");
        };
        Lookup::open_at(&directory, name.hash(), tree, durable, &mut tell)
    })
}
