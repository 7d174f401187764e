//! `epigraph serve witness`: opens a witness's state, serves it, takes in new logs while it runs, and asks logs what they
//! have published before it cosigns for them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use epigraph_core::note::SignatureLine;
use epigraph_core::{Hash, Origin, TreeSize};
use epigraph_rpc::{CallError, ClientTls, Reason, Routes, SpiffeId, peer, witness_service};
use epigraph_signer::keys;
use epigraph_witness::dial::{self, DialLog, HandedIn, Heads};
use epigraph_witness::list::{self, Listed};
use epigraph_witness::service::WitnessServer;
use epigraph_witness::witness::{self, ApplyError, AskLog, Notes, Witness};

use tokio::task::AbortHandle;

use super::door::{Door, listen};
use super::{Version, listen_for_watchers, look_inside, observed, told_to_stop, version};
use crate::cli::ServeRole;
use crate::config::witness::{Address, WitnessConfig, load_list};
use crate::failure::{Failure, Outcome};
use crate::metrics::witness::{ListChanges, Witnessing};
use crate::metrics::{Metrics, Spans};
use crate::runtime;
use crate::state;
use crate::terminal::Terminal;

/// How often the list of logs is looked at: soon enough for whoever adds one and waits.
const RELOAD: Duration = Duration::from_secs(1);

/// Checkpoints that the gate looks at besides the newest: those right above the witness's own head, where its lost
/// cosignatures would be.
const LISTED_CHECKPOINTS: u32 = 1_000;

pub fn run(args: &ServeRole, terminal: Terminal) -> Outcome {
    let config = WitnessConfig::load(&args.config.config)?;
    let tracing = config.tracing.clone();
    observed(&tracing, terminal, async |spans| serve(config, args.until_stdin_closes, spans, terminal).await)
}

/// Reads a configuration as [`run`] would, and the files that it names, the list of logs among them; opens no state and listens
/// nowhere.
pub fn check(path: &Path, terminal: Terminal) -> Outcome {
    let config = WitnessConfig::load(path)?;
    Door::new(&config.tls, config.grants.clone(), config.reflection)?;
    let logs = Logs::new(config.tls.calling(runtime::clock())?);
    let key = fs::exists(&config.key).unwrap_or(true);
    if key {
        keys::load_cosigning(&config.key).map_err(Failure::usage)?;
    }
    let list = config.list();
    let listed = match fs::exists(&list).unwrap_or(true) {
        true => load_list(&list, config.tls.client.is_some())?,
        false => Vec::new(),
    };
    let runtime = runtime::runtime().map_err(Failure::state)?;
    let listed = runtime.block_on(async { logs.take(listed) })?;
    list::check(&listed).map_err(|error| Failure::usage(format!("{}: {error}", list.display())))?;
    let note = if key { "" } else { "; its key is not there yet, `init` makes it" };
    let (path, count) = (path.display(), listed.len());
    terminal.line(format_args!(
        "{path} describes the witness {}, on {}, for {count} logs{note}",
        config.name, config.listen
    ));
    terminal.object(&serde_json::json!({
        "valid": true,
        "name": config.name.as_str(),
        "signing_key": key,
        "logs": count,
    }));
    Ok(())
}

async fn serve(
    config: WitnessConfig,
    until_stdin_closes: bool,
    spans: &Spans,
    terminal: Terminal,
) -> Outcome {
    let stop = runtime::stop_signal().map_err(Failure::state)?;
    let door = Door::new(&config.tls, config.grants.clone(), config.reflection)?;
    let clock = runtime::clock();
    let logs = Arc::new(Logs::new(config.tls.calling(runtime::clock())?));

    let mut keeper = state::witness::open(&config)?;
    let seen = version(&config.list());
    let list = logs.take(load_list(&config.list(), config.tls.client.is_some())?)?;
    let unasked = list.iter().filter(|log| !log.can_ask).count();
    let count = list.len();
    let prepared = witness::prepare(&mut keeper, list, &*clock).map_err(Failure::state)?;
    if unasked > 0 {
        tracing::warn!(
            logs = unasked,
            "logs without an address cannot be asked what they have published: if this witness's state is put back to an older \
             copy, nobody notices"
        );
    }
    let vkey = keeper.vkey().clone();
    let asking: Arc<dyn AskLog> = Arc::clone(&logs) as Arc<dyn AskLog>;
    let evidence = state::witness::evidence(&config)?;
    let (witness, failure) =
        Witness::start(keeper, prepared, config.settings, clock, asking, evidence).map_err(Failure::state)?;
    let witness = Arc::new(witness);
    logs.follow(&witness);

    let listener = listen(config.listen, "listen").await?;
    let address = listener.local_addr().map_err(Failure::state)?;
    let (watched, metrics_address) = listen_for_watchers(config.metrics).await?;
    terminal.line(format_args!("witnessing as {} on {address} for {count} logs", config.name));
    terminal.object(&serde_json::json!({
        "address": address.to_string(),
        "name": config.name.as_str(),
        "vkey": vkey.to_string(),
        "logs": count,
        "metrics_address": metrics_address.map(|address| address.to_string()),
    }));
    let changes = ListChanges::new();
    let role = Witnessing { witness: Arc::clone(&witness), list: changes.clone(), clock: runtime::clock() };
    let metrics = Metrics::of(role, runtime::clock().now(), door.calls(), spans);

    let draining = Arc::clone(&witness);
    let shutdown = async move {
        told_to_stop(stop, until_stdin_closes).await;
        draining.drain();
    };
    let routes = Routes::new(witness_service(WitnessServer::new(Arc::clone(&witness))));
    let server = door.serve(listener, routes, shutdown);
    tokio::select! {
        ended = server => ended,
        fatal = failure => match fatal {
            Ok(fatal) => Err(Failure::state(fatal)),
            Err(_) => Err(Failure::state("the witness's thread has ended; this is a fault of the program")),
        },
        () = reload(&config, &witness, &logs, &changes, seen) => Ok(()),
        never = look_inside(watched, metrics) => match never {},
    }
}

/// Takes the list of logs in again whenever it changes. A list that is not one is left alone, loudly.
async fn reload(
    config: &WitnessConfig,
    witness: &Arc<Witness>,
    logs: &Logs,
    counted: &ListChanges,
    mut seen: Option<Version>,
) {
    let path = config.list();
    loop {
        tokio::time::sleep(RELOAD).await;
        let now = version(&path);
        if now == seen {
            continue;
        }
        seen = now;
        let taken = match load_list(&path, config.tls.client.is_some()).and_then(|list| logs.take(list)) {
            Ok(list) => witness.apply(list).await.map_err(|error| {
                // Not the file's fault: it is taken when the clock is right.
                if matches!(error, ApplyError::Admit(_)) {
                    seen = None;
                }
                Failure::state(error)
            }),
            Err(failure) => Err(failure),
        };
        match taken {
            Ok(changes) => {
                counted.taken(&changes);
                logs.follow(witness);
                let names = |logs: &[Listed]| {
                    logs.iter().map(|log| log.origin.to_string()).collect::<Vec<_>>().join(", ")
                };
                if !changes.added.is_empty() {
                    tracing::info!(logs = %names(&changes.added), "logs were added to the list");
                }
                for origin in &changes.returned {
                    tracing::info!(log = %origin, "a log is on the list again");
                }
                for origin in &changes.reachable {
                    tracing::info!(log = %origin, "the list now says where a log is: it is asked before it is cosigned for again");
                }
                for origin in &changes.removed {
                    tracing::warn!(log = %origin, "a log is no longer on the list: it is refused, and what is held for it stays");
                }
                for rekeyed in &changes.rekeyed {
                    tracing::error!(why = %rekeyed, "a log is refused");
                }
            }
            Err(failure) => {
                counted.failed();
                tracing::error!(%failure, "the list of logs was not taken in; the one before it holds");
            }
        }
    }
}

/// Connections to the logs that can be asked.
struct Logs {
    tls: Option<ClientTls>,
    known: RwLock<BTreeMap<Origin, (Address, peer::Log)>>,
    /// Those that cannot call, and the tasks that follow them.
    followed: Mutex<BTreeMap<Origin, (Address, AbortHandle)>>,
}

impl Logs {
    fn new(tls: Option<ClientTls>) -> Logs {
        Logs { tls, known: RwLock::default(), followed: Mutex::default() }
    }

    /// Learns where the logs of a list are. Logs of one process share a connection.
    fn take(&self, list: Vec<(Listed, Option<Address>)>) -> Outcome<Vec<Listed>> {
        let mut processes: BTreeMap<(&str, &SpiffeId), peer::Log> = BTreeMap::new();
        let mut known = BTreeMap::new();
        for (log, address) in &list {
            let (Some(address), Some(tls)) = (address, &self.tls) else { continue };
            let process = (address.address.as_str(), &address.server);
            let peer = match processes.get(&process) {
                Some(peer) => peer.clone(),
                None => peer::Log::new(&address.address, tls, &address.server).map_err(Failure::usage)?,
            };
            processes.insert(process, peer.clone());
            known.insert(log.origin.clone(), (address.clone(), peer));
        }
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = known;
        Ok(list.into_iter().map(|(log, _)| log).collect())
    }

    /// Follows the logs of the list that cannot call, and no others any longer.
    fn follow(&self, witness: &Arc<Witness>) {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        followed.retain(|origin, (address, task)| {
            let stays = known.get(origin).is_some_and(|(listed, _)| listed == address);
            if !stays {
                task.abort();
            }
            stays
        });
        for (origin, (address, peer)) in known.iter().filter(|(_, (address, _))| address.dial) {
            followed.entry(origin.clone()).or_insert_with(|| {
                let (witness, log, of) = (Arc::clone(witness), CalledLog(peer.clone()), origin.clone());
                let following = async move { dial::follow(&witness, &of, &log, &*runtime::entropy()).await };
                (address.clone(), tokio::spawn(following).abort_handle())
            });
        }
    }
}

/// A log that is followed.
struct CalledLog(peer::Log);

impl DialLog for CalledLog {
    type Heads = PendingHeads;

    async fn follow(&self, origin: &Origin, held: Option<Bytes>) -> Result<PendingHeads, String> {
        let heads = self.0.watch_pending(origin.as_str(), held).await;
        heads.map(PendingHeads).map_err(|error| error.to_string())
    }

    async fn prove(&self, origin: &Origin, old: TreeSize, new: TreeSize) -> Result<Vec<Hash>, String> {
        self.0.consistency_proof(origin.as_str(), old, new).await.map_err(|error| error.to_string())
    }

    async fn hand_in(
        &self,
        origin: &Origin,
        size: TreeSize,
        line: &SignatureLine,
    ) -> Result<HandedIn, String> {
        match self.0.add_cosignature(origin.as_str(), size, std::slice::from_ref(line)).await {
            Ok(()) => Ok(HandedIn::Taken),
            Err(error) if is_refused(&error, Reason::NotYetPublished) => Ok(HandedIn::TooLate),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn report(&self, origin: &Origin, size: TreeSize, held: Bytes) -> Result<HandedIn, String> {
        match self.0.report_conflict(origin.as_str(), size, held).await {
            Ok(()) => Ok(HandedIn::Taken),
            Err(error) if is_refused(&error, Reason::NotYetPublished) => Ok(HandedIn::TooLate),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// What a log that is followed has signed.
struct PendingHeads(peer::Watch);

impl Heads for PendingHeads {
    async fn next(&mut self) -> Result<Option<Bytes>, String> {
        self.0.next().await.map_err(|error| error.to_string())
    }
}

fn is_refused(error: &CallError, reason: Reason) -> bool {
    matches!(error, CallError::Refused(refusal) if refusal.reason() == reason)
}

impl AskLog for Logs {
    fn notes<'a>(&'a self, origin: &'a Origin, above: TreeSize) -> Notes<'a> {
        Box::pin(async move {
            let log = self
                .known
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .get(origin)
                .map(|(_, log)| log.clone());
            let log = log.ok_or("the list does not say where it is")?;
            ask(&log, origin, above).await.map_err(|error| error.to_string())
        })
    }
}

/// The newest published checkpoint, and those that the log lists from the held size on.
async fn ask(log: &peer::Log, origin: &Origin, above: TreeSize) -> Result<Vec<Bytes>, CallError> {
    let mut notes = match log.checkpoint(origin.as_str()).await {
        Ok(note) => vec![note],
        // Nothing is published, so nothing of ours is either.
        Err(error) if is_refused(&error, Reason::NotYetPublished) => Vec::new(),
        Err(error) => return Err(error),
    };
    match log.checkpoints(origin.as_str(), above, LISTED_CHECKPOINTS, "").await {
        Ok(page) => notes.extend(page.checkpoints),
        Err(error)
            if is_refused(&error, Reason::UnknownRpc) || is_refused(&error, Reason::NotYetPublished) => {}
        Err(error) => return Err(error),
    }
    Ok(notes)
}
