//! `epigraph serve log`: opens the logs of a process, and serves them behind one door.
//!
//! Each log has its state, its threads and its limits for itself. One that cannot be opened, or cannot go on, is stopped;
//! the others are served. The process ends when none is left.

pub mod audit;
pub mod door;
mod gate;
mod log;
pub mod monitor;
pub mod signer;
pub mod witness;
mod witnesses;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::{fs, io, thread};

use epigraph_core::Origin;
use epigraph_rpc::{Routes, log_service};
use epigraph_sequencer::log::Log;
use epigraph_sequencer::service::LogServer;
use epigraph_signer::keys;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use self::door::{Door, listen};
use crate::cli::ServeRole;
use crate::config::{ProcessConfig, SignerConfig};
use crate::failure::{Failure, Outcome};
use crate::metrics::{self, Metrics, Source, Spans};
use crate::observe::{self, Tracing};
use crate::runtime;
use crate::state;
use crate::terminal::Terminal;

pub fn run(args: &ServeRole, terminal: Terminal) -> Outcome {
    let config = ProcessConfig::load(&args.config.config)?;
    let tracing = config.tracing.clone();
    observed(&tracing, terminal, async |spans| serve(config, args.until_stdin_closes, spans, terminal).await)
}

/// Runs a role to its end, heard as its configuration asks for.
fn observed(tracing: &Tracing, terminal: Terminal, role: impl AsyncFnOnce(&Spans) -> Outcome) -> Outcome {
    let observing = observe::start(tracing, terminal.prints_objects(), runtime::entropy())?;
    let runtime = runtime::runtime().map_err(Failure::state)?;
    let ended = runtime.block_on(role(&observing.spans));
    observing.finish();
    ended
}

/// Reads a configuration as [`run`] would, and the files that it names; opens no state and listens nowhere.
pub fn check(path: &Path, terminal: Terminal) -> Outcome {
    let config = ProcessConfig::load(path)?;
    Door::new(&config.tls, config.grants.clone(), config.reflection)?;
    config.tls.calling(runtime::clock())?;
    let mut logs = Vec::new();
    for log in &config.logs {
        let (key, note) = match &log.signer {
            SignerConfig::Embedded(signer) if fs::exists(&signer.key).unwrap_or(true) => {
                keys::load(&signer.key).map_err(Failure::usage)?;
                (true, String::new())
            }
            SignerConfig::Embedded(_) => {
                (false, "; the signing key is not there yet, `init` makes it".to_owned())
            }
            SignerConfig::Remote(signer) => (false, format!("; it is signed by {}", signer.server)),
        };
        let (path, origin) = (path.display(), &log.origin);
        terminal.line(format_args!("{path} describes the log {origin}, on {}{note}", config.listen));
        logs.push(serde_json::json!({ "origin": origin.as_str(), "signing_key": key }));
    }
    terminal.object(&serde_json::json!({ "valid": true, "logs": logs }));
    Ok(())
}

async fn serve(
    config: ProcessConfig,
    until_stdin_closes: bool,
    spans: &Spans,
    terminal: Terminal,
) -> Outcome {
    let stop = runtime::stop_signal().map_err(Failure::state)?;
    let door = Door::new(&config.tls, config.grants.clone(), config.reflection)?;
    let calling = config.tls.calling(runtime::clock())?;

    state::open_process(&config)?;
    let entropy = runtime::entropy();
    let mut opened = Vec::new();
    let mut sources = BTreeMap::new();
    for log in &config.logs {
        let origin = log.origin.to_origin();
        match log::open(&config, log, calling.as_ref(), &entropy, terminal).await {
            Ok(log) => {
                sources.insert(
                    origin,
                    Source::Running(Arc::clone(&log.log), log.scrubbed.clone(), log.publication.clone()),
                );
                opened.push(log);
            }
            Err(failure) if config.logs.len() == 1 => return Err(failure),
            Err(failure) => {
                tracing::error!(log = %origin, %failure, "a log is refused and stays stopped; the others are served");
                sources.insert(origin, Source::Stopped);
            }
        }
    }
    if opened.is_empty() {
        return Err(Failure::state("none of the logs could be opened; the messages before say why of each"));
    }

    let listener = listen(config.listen, "listen").await?;
    let address = listener.local_addr().map_err(Failure::state)?;
    let (watched, metrics_address) = listen_for_watchers(config.metrics).await?;
    for log in &opened {
        let (origin, entries) = (log.log.origin(), log.durable);
        terminal.line(format_args!("serving {origin} on {address} with {entries} entries"));
    }
    let logs = opened
        .iter()
        .map(|log| serde_json::json!({ "origin": log.log.origin().as_str(), "entries": log.durable.get() }));
    terminal.object(&serde_json::json!({
        "address": address.to_string(),
        "logs": logs.collect::<Vec<_>>(),
        "metrics_address": metrics_address.map(|address| address.to_string()),
    }));

    let draining: Vec<Arc<Log>> = opened.iter().map(|log| Arc::clone(&log.log)).collect();
    let stopped = sources.iter().filter(|(_, source)| matches!(source, Source::Stopped));
    let server = LogServer::new(draining.clone(), stopped.map(|(origin, _)| origin.clone()));
    let looking_inside = look_inside(watched, Metrics::new(sources, runtime::clock(), door.calls(), spans));
    let server = async move {
        let shutdown = async move {
            told_to_stop(stop, until_stdin_closes).await;
            for log in draining {
                log.drain().await;
            }
        };
        door.serve(listener, Routes::new(log_service(server)), shutdown).await
    };
    tokio::select! {
        ended = async { tokio::try_join!(server, run_all(opened)) } => drop(ended?),
        never = looking_inside => match never {},
    }
    Ok(())
}

/// Runs the logs until the last one has ended. One that fails is stopped for itself, unless it is the last.
async fn run_all(opened: Vec<log::Opened>) -> Outcome {
    let mut running = JoinSet::new();
    for log in opened {
        running.spawn(async move {
            let log_itself = Arc::downgrade(&log.log);
            let origin = log.log.origin().clone();
            let ended = log.run().await;
            if ended.is_err()
                && let Some(log) = log_itself.upgrade()
            {
                log.stopped();
            }
            (origin, ended)
        });
    }
    let mut first_failure = None;
    while let Some(ended) = running.join_next().await {
        let (origin, outcome): (Origin, Outcome) = ended.map_err(Failure::state)?;
        let Err(failure) = outcome else { continue };
        if running.is_empty() {
            return Err(first_failure.unwrap_or(failure));
        }
        tracing::error!(log = %origin, %failure, "a log cannot go on and is stopped; the others are served");
        first_failure.get_or_insert(failure);
    }
    first_failure.map_or(Ok(()), Err)
}

/// The listener for whoever watches the process, and where it is.
pub async fn listen_for_watchers(
    address: Option<SocketAddr>,
) -> Outcome<(Option<TcpListener>, Option<SocketAddr>)> {
    let Some(address) = address else { return Ok((None, None)) };
    let listener = listen(address, "metrics").await?;
    let address = listener.local_addr().map_err(Failure::state)?;
    tracing::info!(%address, "health, readiness and metrics are served");
    Ok((Some(listener), Some(address)))
}

/// Health, readiness and metrics, also while the role is stopping.
pub async fn look_inside(listener: Option<TcpListener>, metrics: Metrics) -> Infallible {
    match listener {
        Some(listener) => metrics::listener::serve(listener, Arc::new(metrics)).await,
        None => std::future::pending().await,
    }
}

/// Completes when the process is asked to stop, in whatever way.
pub async fn told_to_stop(stop: impl Future<Output = ()>, until_stdin_closes: bool) {
    tokio::select! {
        () = stop => {}
        () = closed_stdin(until_stdin_closes) => {}
    }
    tracing::info!("stopping: finishing what was taken");
}

/// Completes when standard input ends, if that is asked for: how a parent process takes its children with it.
async fn closed_stdin(asked: bool) {
    if !asked {
        return std::future::pending().await;
    }
    let (closed, is_closed) = oneshot::channel::<()>();
    // Not the runtime's own standard input: at its end the runtime waits for a read that never returns, and a log that
    // failed, or was told to stop otherwise, would stay.
    let watch = move || {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        drop(closed);
    };
    match thread::Builder::new().name("stdin".into()).spawn(watch) {
        Ok(_) => drop(is_closed.await),
        Err(error) => tracing::error!(%error, "cannot watch standard input; stopping"),
    }
}

/// What changes with a file's content: its number, when it was written (seconds and nanoseconds), its length.
pub type Version = (u64, i64, i64, u64);

pub fn version(path: &Path) -> Option<Version> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.len()))
}
