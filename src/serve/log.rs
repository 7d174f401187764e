//! One log of the process: opens its state, passes the gate, wires sequencer, publisher, signer and scrubber together, and
//! runs them.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use epigraph_core::policy::WitnessSet;
use epigraph_core::{Entropy, Origin, TreeHead, TreeSize};
use epigraph_rpc::ClientTls;
use epigraph_rpc::peer::{self, OpenTermAnswer, SignerHead};
use epigraph_sequencer::log::{Hindrance, Log};
use epigraph_sequencer::run::{OnBuilding, OpenLookup, OpenTree, Ready, Setup, start};
use epigraph_signer::gate::{Seen, judge};
use epigraph_signer::handle::SignerHandle;
use epigraph_signer::publish::{AskError, AskSigner, NotPublishing, OnTrouble, Publisher};
use epigraph_signer::remote::RemoteSigner;
use epigraph_signer::signer::{Answer, Request, Signer};
use epigraph_store::file::Dir;
use epigraph_store::lookup::{Lookup, SetAside};
use epigraph_store::scrub::Scrubber;
use epigraph_store::tree::{self, Notice, Place, Tree};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::gate::Gate;
use super::witnesses::{self, RemoteWitness, WitnessGate, Witnessed};
use crate::config::{LogConfig, ProcessConfig, SignerConfig};
use crate::failure::{Failure, Outcome};
use crate::metrics::publication::{self, Publication};
use crate::preflight;
use crate::runtime;
use crate::scrub::{self, Scrubbed};
use crate::state;
use crate::terminal::Terminal;

/// A log that can be read. Nothing is acknowledged or signed before [`Opened::run`] has passed the gate.
pub struct Opened {
    pub log: Arc<Log>,
    /// Entries at the start.
    pub durable: TreeSize,
    pub scrubbed: watch::Receiver<Scrubbed>,
    pub publication: watch::Receiver<Publication>,
    scrubbing_at: watch::Sender<Scrubbed>,
    scrubber: Scrubber,
    publisher: Publisher<AnySigner, RemoteWitness>,
    witnesses: WitnessGate,
    gate: Gate,
    /// `None`: the gate is still to be passed.
    term: Option<u64>,
    ready: Ready,
}

/// The signer of a log. Both are asked in the same way; only the wiring knows which it is.
enum AnySigner {
    Embedded(SignerHandle),
    Remote(Box<RemoteSigner>),
}

impl AnySigner {
    /// Lets an embedded signer pass its gate, by what was seen under the log's key. A signer process looks around by itself.
    async fn show(&self, origin: &Origin, seen: Vec<Seen>) -> Outcome {
        match self {
            AnySigner::Embedded(signer) => signer.pass_gate(origin, seen).await.map_err(Failure::state),
            AnySigner::Remote(_) => Ok(()),
        }
    }
}

/// What the log's own directory shows to its signer.
fn published_here(gate: &Gate) -> Vec<Seen> {
    gate.published.map(|head| Seen { by: "the log's directory".into(), head }).into_iter().collect()
}

impl AskSigner for AnySigner {
    async fn head(&self, origin: &Origin) -> Result<SignerHead, AskError> {
        match self {
            AnySigner::Embedded(signer) => AskSigner::head(signer, origin).await,
            AnySigner::Remote(signer) => signer.head(origin).await,
        }
    }

    async fn open_term(&self, origin: &Origin, expected: SignerHead) -> Result<OpenTermAnswer, AskError> {
        match self {
            AnySigner::Embedded(signer) => AskSigner::open_term(signer, origin, expected).await,
            AnySigner::Remote(signer) => signer.open_term(origin, expected).await,
        }
    }

    async fn sign_checkpoint(&self, request: Request) -> Result<Answer, AskError> {
        match self {
            AnySigner::Embedded(signer) => AskSigner::sign_checkpoint(signer, request).await,
            AnySigner::Remote(signer) => signer.sign_checkpoint(request).await,
        }
    }
}

/// Opens the state of one log and checks it, so that what does not fit is refused before anything is served. Where there is
/// nobody else to ask, the gate is passed here; a signer process and witnesses are waited for in [`Opened::run`], while what is
/// published is served: they may themselves wait for that.
pub async fn open(
    process: &ProcessConfig,
    config: &LogConfig,
    calling: Option<&ClientTls>,
    entropy: &Arc<dyn Entropy>,
    terminal: Terminal,
) -> Outcome<Opened> {
    let state = state::open(process, config, entropy)?;
    let origin = state.origin;
    let durable = state.journal.head();
    let (gate, newest) = Gate::of_directory(
        Arc::clone(&state.journal_dir),
        durable,
        &origin,
        &state.policy,
        state.published.current(),
    )?;
    if let (Some(history), Some(newest)) = (&state.history, &newest) {
        // The one that a crash kept from the history.
        if let Err(error) = history.append(newest.head().size, newest.note()) {
            tracing::warn!(%error, "the newest checkpoint is not in the history");
        }
    }
    let (signer, term) = match (state.signer, &config.signer, calling) {
        (Some((key, heads)), _, _) => {
            let signer = Signer::new(vec![key], heads);
            let held = signer.status().look().get(&origin).map_or(TreeHead::EMPTY, |log| log.held.head);
            let (signer, _) = SignerHandle::spawn(signer, runtime::clock()).map_err(Failure::state)?;
            let seen = published_here(&gate);
            let nobody_else = state.policy.enough_answers(WitnessSet::EMPTY, config.faulty());
            let signer = AnySigner::Embedded(signer);
            if nobody_else {
                signer.show(&origin, seen).await?;
                let term = gate.pass(&signer, |_| ()).await?;
                (signer, Some(term))
            } else {
                judge(&origin, held, &seen).map_err(Failure::state)?;
                (signer, None)
            }
        }
        (None, SignerConfig::Remote(remote), Some(tls)) => {
            let signer = peer::Signer::new(&remote.address, tls, &remote.server).map_err(Failure::usage)?;
            (
                AnySigner::Remote(Box::new(RemoteSigner::new(
                    signer,
                    format!("the signer at {}", remote.address),
                ))),
                None,
            )
        }
        _ => return Err(Failure::usage("the signer is another process, and [tls.client] is missing")),
    };
    let tree = Arc::new(Tree::new(Arc::clone(&state.journal_dir), origin.hash()));
    let lookup_directory = state.tree_directory.with_file_name("lookup");
    let open_lookup = open_lookup(lookup_directory, Arc::clone(&tree), &origin, durable.size);
    let place = Place { directory: state.tree_directory, preflight: preflight::in_a_child() };
    let (published, published_receiver) = watch::channel(newest.map(Arc::new));
    let (pending, signed) = watch::channel(None);
    let dial_in = witnesses::dial_in();
    let ready = start(Setup {
        signed,
        witnessing: dial_in.handles,
        origin: origin.clone(),
        limits: config.limits,
        tree: Arc::clone(&tree),
        open_tree: open_tree(Arc::clone(&tree), place, Arc::clone(&state.journal_dir), &origin, durable),
        on_building: on_building(origin.clone(), terminal),
        journal: state.journal,
        clock: runtime::clock(),
        published: published_receiver,
        history: state.history.clone(),
        policy: state.policy.clone(),
        open_lookup,
    })
    .map_err(Failure::state)?;
    let witnessed = Witnessed {
        policy: &state.policy,
        published: published.borrow().clone(),
        tree: &tree,
        evidence: state.checkpoints,
        pending,
        ends: dial_in.ends,
    };
    let (witnesses, witnessing) = witnesses::open(&gate, config, calling, witnessed, entropy)?;
    let publication =
        publication::observe(runtime::clock(), published.subscribe(), witnessing.status.subscribe());
    let scrubber = Scrubber::new(state.journal_dir, origin.hash(), Arc::clone(&tree));
    let prove = move |old, new| witnesses::prove(&tree, old, new);
    let log = Arc::clone(&ready.log);
    if term.is_none() || !witnesses.is_open() {
        log.hindered(Some(Hindrance::Gated("the signer and the witnesses".into())));
    }
    let publisher = Publisher {
        origin,
        policy: state.policy,
        checkpoint_interval: config.checkpoint_interval,
        refresh_interval: config.refresh_interval,
        signer,
        // No term is opened as 0: before the gate nothing could be signed.
        term: term.unwrap_or(0),
        on_trouble: not_publishing(&log),
        prove: Arc::new(prove),
        store: state.published,
        history: state.history,
        published,
        witnesses: witnessing,
    };
    let (scrubbing_at, scrubbed) = watch::channel(Scrubbed::default());
    Ok(Opened {
        log,
        durable: durable.size,
        scrubbed,
        publication,
        scrubbing_at,
        scrubber,
        publisher,
        witnesses,
        gate,
        term,
        ready,
    })
}

/// Tells the log why nothing is published, so that whoever asks it is told. Holds it by a weak handle: its driver ends when the
/// last strong one is gone.
fn not_publishing(log: &Arc<Log>) -> Box<OnTrouble> {
    let log = Arc::downgrade(log);
    Box::new(move |why| {
        if let Some(log) = log.upgrade() {
            let hindrance = |NotPublishing { waits_for, why }| Hindrance::NotPublishing { waits_for, why };
            log.hindered(why.map(hindrance));
        }
    })
}

impl Opened {
    /// Runs until the log is drained and everything that was taken is published, or until it cannot go on.
    pub async fn run(self) -> Outcome {
        let Opened { log, scrubbing_at, scrubber, mut publisher, mut witnesses, gate, term, ready, .. } =
            self;
        let Ready { offered, wanted, driver, log: same } = ready;
        let gated = Arc::downgrade(&log);
        // The driver ends when the last handle is gone.
        drop((log, same));
        // A task of its own: woken for every batch, and the others are not.
        let mut driving = JoinSet::new();
        driving.spawn(driver.run());
        let driver = async {
            match driving.join_next().await {
                Some(ended) => ended.map_err(Failure::state)?.map_err(Failure::state),
                None => Ok(()),
            }
        };
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
            if term.is_none() || !witnesses.is_open() {
                let hindered = |by: Option<Hindrance>| {
                    if let Some(log) = gated.upgrade() {
                        log.hindered(by);
                    }
                };
                let mut waits = offered.clone();
                let waiting = |why: &str| hindered(Some(Hindrance::Gated(why.to_owned())));
                let passing = async {
                    // The witnesses first: a log that went back must not open a term, which would fence the one that did not.
                    let held = witnesses.pass(&waiting).await?;
                    publisher.witnesses.are_known_to_hold(&held);
                    if term.is_none() {
                        let seen = published_here(&gate).into_iter().chain(witnesses.seen(&held)).collect();
                        publisher.signer.show(&publisher.origin, seen).await?;
                        publisher.term = gate.pass(&publisher.signer, &waiting).await?;
                    }
                    Outcome::Ok(())
                };
                tokio::select! {
                    passed = passing => passed?,
                    // The log was told to stop while it waited.
                    () = async { while waits.changed().await.is_ok() {} } => return Ok(()),
                }
                hindered(None);
            }
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

/// Says how far the tree is: to people at a terminal by a bar, to others a line now and then.
fn on_building(origin: Origin, terminal: Terminal) -> OnBuilding {
    const LINE_EVERY: u64 = 1 << 20;
    let said = AtomicU64::new(0);
    Box::new(move |done, of| {
        let (done, of) = (done.get(), of.get());
        terminal.bar(done, of, format_args!("entries of {origin} built into its tree"));
        if said.fetch_max(done, Ordering::Relaxed) / LINE_EVERY < done / LINE_EVERY {
            tracing::info!(entries = done, of, log = %origin, "building the tree from the journal");
        }
    })
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
