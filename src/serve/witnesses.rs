//! The witnesses of one log, wired: how they are called, and the gate that waits for them.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use epigraph_core::checkpoint::LogSigned;
use epigraph_core::progress::Proposal;
use epigraph_core::proof::{prove_consistency, root_at};
use epigraph_core::{Checkpoint, Entropy, Hash, Origin, Policy, TreeHead, TreeSize, Verified};
use epigraph_rpc::peer::{self, Proposed};
use epigraph_rpc::{CallError, ClientTls, Reason, SpiffeId};
use epigraph_sequencer::log::{CosignError, HandedIn, Said, Witnessing as DialInHandles};
use epigraph_signer::gate::Seen;
use epigraph_signer::publish::ask::{AskWitness, Reply};
use epigraph_signer::publish::convict;
use epigraph_signer::publish::gate::{self, Held, Refused, Told, WentBack};
use epigraph_signer::publish::witnesses::{NotTaken, name_of};
use epigraph_signer::publish::{self, Dialled, Handed, Pending, RootAt, Witnessing};
use epigraph_store::file::Dir;
use epigraph_store::journal::head_at;
use epigraph_store::tree::Tree;
use epigraph_store::witness_sizes::WitnessSizes;
use tokio::sync::{mpsc, oneshot, watch};

use super::gate::Gate;
use crate::config::LogConfig;
use crate::failure::{Failure, Outcome};
use crate::runtime;

/// For so long a log that is refused waits for its tree, to make evidence with.
const TREE_WAIT: Duration = Duration::from_secs(60);

const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Cosignatures that wait for the publisher; whoever hands in one waits with it.
const HANDED_QUEUE: usize = 64;

/// A witness in another process.
pub struct RemoteWitness(peer::Witness);

impl AskWitness for RemoteWitness {
    async fn add_checkpoint(&self, origin: &Origin, proposal: Proposal) -> Reply {
        match self.0.add_checkpoint(origin.as_str(), proposal).await {
            Ok(Proposed::Cosigned(lines)) => Reply::Cosigned(lines),
            Ok(Proposed::Stale { held, note }) => Reply::Stale { held, note: note.map(Vec::from) },
            Ok(Proposed::Conflict { held, .. }) => Reply::Conflict { held: held.into() },
            Err(CallError::Refused(refusal)) => {
                let why = format!("{}: {}", refusal.reason(), refusal.message());
                match refusal.reason() {
                    Reason::BadProof => Reply::BadProof { why, held: None },
                    _ => Reply::Refused(why),
                }
            }
            Err(error) => Reply::Unavailable(error.to_string()),
        }
    }

    async fn newest(&self, origin: &Origin) -> Result<Option<Vec<u8>>, String> {
        match self.0.checkpoint(origin.as_str()).await {
            Ok(note) => Ok(Some(note.into())),
            Err(CallError::Refused(refusal)) if refusal.reason() == Reason::NotYetPublished => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// The witnesses' part of the gate at the start of a log.
pub struct WitnessGate {
    gate: gate::Gate<RemoteWitness>,
    told: mpsc::Receiver<Told>,
    own: Own,
}

/// What the log itself has against a witness's note.
struct Own {
    /// The note of the published checkpoint.
    published: Option<LogSigned>,
    tree: Arc<Tree>,
    evidence: Arc<dyn Dir>,
    /// Where that is.
    directory: PathBuf,
}

impl WitnessGate {
    /// Whether no witness has to be waited for.
    pub fn is_open(&self) -> bool {
        self.gate.policy.enough_answers(epigraph_core::policy::WitnessSet::EMPTY, self.gate.faulty)
    }

    /// Waits until enough witnesses have said what they hold, and compares it with the journal.
    pub async fn pass(&mut self, waiting: impl Fn(&str)) -> Outcome<Held> {
        let origin = self.gate.origin.clone();
        // A gate may wait for hours, and asks every few seconds: what it waits for is said when it changes.
        let said = Mutex::new(String::new());
        let tell = |why: &str| {
            let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
            if *said != why {
                tracing::warn!(log = %origin, waiting_for = why, "nothing is acknowledged before the gate");
                why.clone_into(&mut said);
            }
            waiting(why);
        };
        match gate::pass(&self.gate, &mut self.told, tell).await {
            Ok(held) => Ok(held),
            Err(refused) => {
                let kept = self.own.convict(&self.gate.policy, &refused).await;
                Err(Failure::state(format!("{refused}{kept}")))
            }
        }
    }

    /// What they hold, as it is shown to a signer.
    pub fn seen(&self, held: &Held) -> Vec<Seen> {
        let known = self.gate.policy.witnesses();
        let seen = |(place, head): (&usize, &Option<TreeHead>)| {
            let name = known.get(*place).map_or("", |witness| &witness.name);
            Some(Seen { by: format!("the witness {name}"), head: (*head)? })
        };
        held.iter().filter_map(seen).collect()
    }
}

impl Own {
    /// Keeps evidence, where the witness's note and the published one are of two histories; says where, or why there is none.
    async fn convict(&self, policy: &Policy, refused: &Refused) -> String {
        // One that is only behind has nothing to prove another history with.
        let WentBack::OtherHistory { held, .. } = &*refused.why else { return String::new() };
        let Some(published) = self.published.clone().filter(|published| published.head().size >= held.size)
        else {
            return ". No evidence can be made of it here: nothing so large is published by this log".into();
        };
        let size = published.head().size;
        // It is being read from the journal while the gate waits; it need not be there yet.
        let built = async {
            while self.tree.size() < size {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        if tokio::time::timeout(TREE_WAIT, built).await.is_err() {
            return ". No evidence was made of it: the tree is not built yet".into();
        }
        let (policy, note, tree, dir) =
            (policy.clone(), refused.note.clone(), Arc::clone(&self.tree), Arc::clone(&self.evidence));
        let convicting = tokio::task::spawn_blocking(move || {
            let proving = Arc::clone(&tree);
            let prove = move |old, new| prove(&proving, old, new);
            let root_at = move |size| root_at(&*tree, size).map_err(|error| error.to_string());
            let found = convict::convict(&policy, &note, published.note(), &prove, &root_at)?;
            let found = found.ok_or("the tree shows one history")?;
            Ok((convict::keep(&*dir, &found)?, found.accused().clone()))
        });
        match convicting.await.map_err(|error| error.to_string()).and_then(|convicted| convicted) {
            Ok((file, accused)) => {
                let path = self.directory.join(file);
                let path = path.display();
                format!(
                    ". The evidence is kept: {path}, judged by `epigraph verify '{path}' --vkey '{accused}'`"
                )
            }
            Err(why) => format!(". No evidence was kept: {why}"),
        }
    }
}

/// A consistency proof of the log's own tree.
pub fn prove(tree: &Tree, old: TreeSize, new: TreeSize) -> Result<Vec<Hash>, String> {
    match prove_consistency(tree, old, new) {
        Ok(Ok(proof)) => Ok(proof.hashes),
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// What of a log its witnesses have to do with.
pub struct Witnessed<'a> {
    pub policy: &'a Policy,
    /// Of the start.
    pub published: Option<Arc<Verified<Checkpoint>>>,
    pub tree: &'a Arc<Tree>,
    /// Where evidence is kept.
    pub evidence: Arc<dyn Dir>,
    pub pending: Pending,
    /// What comes from witnesses that dial in.
    pub ends: (mpsc::Receiver<HandedIn>, mpsc::Receiver<Told>),
}

/// Prepares the connections to the witnesses, and their part of the gate.
pub fn open(
    gate: &Gate,
    config: &LogConfig,
    calling: Option<&ClientTls>,
    witnessed: Witnessed<'_>,
    entropy: &Arc<dyn Entropy>,
) -> Outcome<(WitnessGate, Witnessing<RemoteWitness>)> {
    let Witnessed { policy, published, tree, evidence, pending, ends: (handed_in, told) } = witnessed;
    let own = Own {
        published: published.and_then(|newest| Checkpoint::open_log_signed(newest.note(), policy).ok()),
        tree: Arc::clone(tree),
        evidence: Arc::clone(&evidence),
        directory: config.directory.join("checkpoints"),
    };
    let mut witnesses = Vec::new();
    let listed = config.witnessing.iter().flat_map(|witnessing| &witnessing.witnesses);
    let mut names = BTreeMap::new();
    for listed in listed {
        names.insert(listed.server.clone(), listed.place);
        let Some(address) = &listed.address else { continue };
        let missing = || Failure::usage("the witnesses are other processes, and [tls.client] is missing");
        let tls = calling.ok_or_else(missing)?;
        let peer = peer::Witness::new(address, tls, &listed.server).map_err(Failure::usage)?;
        witnesses.push((listed.place, Arc::new(RemoteWitness(peer))));
    }
    let sizes = (!witnesses.is_empty()).then(|| {
        WitnessSizes::open(&*evidence, gate.origin.hash()).inspect_err(|error| {
            tracing::warn!(log = %gate.origin, %error, "the sizes that the witnesses held are not known: each may be asked twice");
        })
    });
    let sizes = sizes.transpose().ok().flatten();
    let published = gate.published.map_or(TreeSize::ZERO, |head| head.size);
    let dialled = witnesses.iter().map(|(place, witness)| {
        let key = policy.witnesses().get(*place).map(|known| name_of(&known.vkey));
        let hint = sizes.as_ref().zip(key).and_then(|(sizes, key)| sizes.sizes().get(&key).copied());
        Dialled { place: *place, witness: Arc::clone(witness), held: hint.unwrap_or(published) }
    });
    let tree = Arc::clone(tree);
    let witnessing = Witnessing {
        dialled: dialled.collect(),
        sizes,
        handed: pass_on(handed_in, names.clone()),
        pending,
        status: watch::Sender::default(),
        evidence,
        root_at: Arc::new(move |size| root_at(&*tree, size).map_err(|error| error.to_string())),
        entropy: Arc::clone(entropy),
        clock: runtime::clock(),
    };
    let gate = gate::Gate {
        origin: gate.origin.clone(),
        policy: policy.clone(),
        faulty: config.faulty(),
        durable: gate.durable,
        root_at: journal_roots(gate),
        dialled: witnesses,
        names,
    };
    Ok((WitnessGate { gate, told, own }, witnessing))
}

/// What witnesses that dial in use, and its other ends.
pub struct DialIn {
    pub handles: DialInHandles,
    pub ends: (mpsc::Receiver<HandedIn>, mpsc::Receiver<Told>),
}

pub fn dial_in() -> DialIn {
    let (handed_in, taken) = mpsc::channel(HANDED_QUEUE);
    let (held, told) = mpsc::channel(HANDED_QUEUE);
    DialIn { handles: DialInHandles { handed_in, held }, ends: (taken, told) }
}

/// From the log's door to its publisher, in the types of either. Ends with the first of them.
fn pass_on(
    mut handed_in: mpsc::Receiver<HandedIn>,
    names: BTreeMap<SpiffeId, usize>,
) -> mpsc::Receiver<Handed> {
    let (hand, handed) = mpsc::channel(1);
    tokio::spawn(async move {
        while let Some(HandedIn { size, what, answer }) = handed_in.recv().await {
            let what = match what {
                Said::Cosignatures(lines) => publish::HandedIn::Cosignatures(lines),
                // Whose word it is decides whether a quorum is left; so it is heard under its own name alone.
                Said::Conflict(who, held) => match names.get(&who) {
                    Some(place) => publish::HandedIn::Conflict(*place, held),
                    None => {
                        let _ = answer.send(Err(CosignError::Unknown(who)));
                        continue;
                    }
                },
            };
            let (taken, looked_at) = oneshot::channel();
            if hand.send(Handed { size, what, answer: taken }).await.is_err() {
                return;
            }
            let Ok(result) = looked_at.await else { return };
            // Whoever handed it in may have gone.
            let _ = answer.send(result.map_err(|why| match why {
                NotTaken::NoSuchHead(_) => CosignError::NoSuchHead(why.to_string()),
                NotTaken::NotOfAWitness | NotTaken::Signature(_) | NotTaken::ClockAhead(_) => {
                    CosignError::Bad(why.to_string())
                }
                NotTaken::NoConflict(_) => CosignError::NoConflict(why.to_string()),
            }));
        }
    });
    handed
}

/// Roots by the journal itself. Each is computed once: witnesses mostly hold the same.
fn journal_roots(gate: &Gate) -> Arc<RootAt> {
    let (journal, origin, durable) = (Arc::clone(&gate.journal), gate.origin.hash(), gate.durable.size);
    let known = Mutex::new(HashMap::new());
    Arc::new(move |size| {
        let known = || known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(root) = known().get(&size) {
            return Ok(*root);
        }
        let root = head_at(&journal, origin, size, durable).map_err(|error| error.to_string())?.root;
        known().insert(size, root);
        Ok(root)
    })
}
