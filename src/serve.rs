//! `epigraph serve log`: opens the state, passes the gate, wires sequencer, publisher and signer together, and serves.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::{fs, io, thread};

use epigraph_core::proof::prove_consistency;
use epigraph_core::{Checkpoint, Origin, Policy, TreeHead, UnixMillis, Verified};
use epigraph_rpc::{Authorizer, Credentials, Routes, ServerTls, TrustBundle, Usage, log_service};
use epigraph_sequencer::run::{OpenTree, Setup, start};
use epigraph_sequencer::service::LogServer;
use epigraph_signer::embedded::EmbeddedSigner;
use epigraph_signer::keys;
use epigraph_signer::publish::Publisher;
use epigraph_signer::signer::Signer;
use epigraph_store::file::Dir;
use epigraph_store::head::HeadStore;
use epigraph_store::journal::head_at;
use epigraph_store::scrub::Scrubber;
use epigraph_store::tree::{self, Notice, Place, Tree};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};

use crate::cli::ServeLog;
use crate::config::{LogConfig, RawTls};
use crate::failure::{Failure, Outcome};
use crate::metrics::{self, Calls, Metrics};
use crate::preflight;
use crate::runtime;
use crate::scrub::{self, Scrubbed};
use crate::state;
use crate::terminal::Terminal;

pub fn run(args: &ServeLog, terminal: Terminal) -> Outcome {
    let config = LogConfig::load(&args.config.config)?;
    let runtime = runtime::runtime().map_err(Failure::state)?;
    runtime.block_on(serve(config, args.until_stdin_closes, terminal))
}

/// Reads a configuration as [`run`] would, and the files that it names; opens no state and listens nowhere.
pub fn check(path: &Path, terminal: Terminal) -> Outcome {
    let config = LogConfig::load(path)?;
    server_tls(&config.tls)?;
    Authorizer::new(config.grants.clone()).map_err(Failure::usage)?;
    let key = fs::exists(&config.signer_key).unwrap_or(true);
    if key {
        keys::load(&config.signer_key).map_err(Failure::usage)?;
    }
    let note = if key { "" } else { "; the signing key is not there yet, `init` makes it" };
    terminal.line(format_args!(
        "{} describes the log {}, on {}{note}",
        path.display(),
        config.origin,
        config.listen
    ));
    terminal
        .object(&serde_json::json!({ "valid": true, "origin": config.origin.as_str(), "signing_key": key }));
    Ok(())
}

async fn serve(config: LogConfig, until_stdin_closes: bool, terminal: Terminal) -> Outcome {
    let stop = runtime::stop_signal().map_err(Failure::state)?;
    let (tls, certificate_expiry) = server_tls(&config.tls)?;
    let authorizer = Authorizer::new(config.grants.clone()).map_err(Failure::usage)?;

    let entropy = runtime::entropy();
    let mut state = state::open(&config, &entropy)?;
    let durable = state.journal.head();
    let journal = JournalView { dir: &state.journal_dir, origin: &state.origin, head: durable };
    let newest = pass_gate(&journal, &state.policy, state.published.current(), &mut state.heads)?;
    if let (Some(history), Some(newest)) = (&state.history, &newest) {
        // The one that a crash kept from the history.
        if let Err(error) = history.append(newest.head().size, newest.note()) {
            tracing::warn!(%error, "the newest checkpoint is not in the history");
        }
    }
    let tree = Arc::new(Tree::new(Arc::clone(&state.journal_dir), state.origin.hash()));

    let listener = listen(config.listen, "listen").await?;
    let address = listener.local_addr().map_err(Failure::state)?;
    let watched = match config.metrics {
        Some(address) => Some(listen(address, "metrics").await?),
        None => None,
    };
    let metrics_address =
        watched.as_ref().map(TcpListener::local_addr).transpose().map_err(Failure::state)?;
    let (published, published_receiver) = watch::channel(newest.map(Arc::new));
    let ready = start(Setup {
        origin: state.origin.clone(),
        limits: config.limits,
        tree: Arc::clone(&tree),
        open_tree: open_tree(Arc::clone(&tree), &state, durable),
        journal: state.journal,
        clock: runtime::clock(),
        published: published_receiver,
        history: state.history.clone(),
        policy: state.policy.clone(),
    })
    .map_err(Failure::state)?;
    let scrubbed = Arc::clone(&tree);
    let prove = move |old, new| match prove_consistency(&*tree, old, new) {
        Ok(Ok(proof)) => Ok(proof.hashes),
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let signer = Signer::new(vec![state.key], state.heads);
    let publisher = Publisher {
        origin: state.origin.clone(),
        policy: state.policy,
        checkpoint_interval: config.checkpoint_interval,
        signer: EmbeddedSigner::spawn(signer, runtime::clock()).map_err(Failure::state)?,
        prove: Arc::new(prove),
        store: state.published,
        history: state.history,
        published,
    };

    if let Some(address) = metrics_address {
        tracing::info!(%address, "health, readiness and metrics are served");
    }
    terminal.line(format_args!("serving {} on {address} with {} entries", state.origin, durable.size));
    terminal.object(&serde_json::json!({
        "serving": state.origin.as_str(),
        "address": address.to_string(),
        "entries": durable.size.get(),
        "metrics_address": metrics_address.map(|address| address.to_string()),
    }));

    let log = ready.log;
    let calls = Calls::new();
    let (scrubbing_at, scrubbed_to) = watch::channel(Scrubbed::default());
    let source = metrics::Source { log: Arc::clone(&log), scrubbed: scrubbed_to, clock: runtime::clock() };
    let looking_inside = look_inside(watched, Metrics::new(source, &calls, certificate_expiry));
    let server = async move {
        let draining = Arc::clone(&log);
        let shutdown = async move {
            tokio::select! {
                () = stop => {}
                () = closed_stdin(until_stdin_closes) => {}
            }
            tracing::info!("stopping: finishing what was taken");
            draining.drain().await;
        };
        let routes = Routes::new(log_service(LogServer::new([log])));
        let hooks = calls.hooks();
        epigraph_rpc::serve(listener, tls, authorizer, routes, hooks, runtime::entropy(), shutdown).await;
        Ok(())
    };
    let driver = async { ready.driver.run().await.map_err(Failure::state) };
    let scrubber = Scrubber::new(Arc::clone(&state.journal_dir), state.origin.hash(), scrubbed);
    let mut caught_up = ready.offered.clone();
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
        let mut offered = ready.offered;
        // Nothing may be signed before the tree has caught up with the journal; a log that ends before has nothing.
        match offered.changed().await {
            Ok(()) => {
                offered.mark_changed();
                publisher.run(offered, ready.wanted).await.map_err(Failure::state)
            }
            Err(_) => Ok(()),
        }
    };
    tokio::select! {
        ended = async { tokio::try_join!(server, driver, publisher, scrubbing) } => drop(ended?),
        never = looking_inside => match never {},
    }
    Ok(())
}

/// Health, readiness and metrics, also while the log is stopping.
async fn look_inside(listener: Option<TcpListener>, metrics: Metrics) -> Infallible {
    match listener {
        Some(listener) => metrics::listener::serve(listener, Arc::new(metrics)).await,
        None => std::future::pending().await,
    }
}

/// How the tree's store is opened, on the tree's own thread.
fn open_tree(tree: Arc<Tree>, state: &state::LogState, durable: TreeHead) -> OpenTree {
    let place = Place { directory: state.tree_directory.clone(), preflight: preflight::in_a_child() };
    let (dir, origin_hash) = (Arc::clone(&state.journal_dir), state.origin.hash());
    Box::new(move || {
        let mut tell = |notice| match notice {
            Notice::Stored(size) => {
                tracing::info!(entries = size.get(), of = durable.size.get(), "the stored tree is open");
            }
            Notice::MovedAside { to, why } => {
                tracing::warn!(to = %to.display(), %why, "the stored tree was moved aside; it is rebuilt from the journal");
            }
        };
        tree::open(&tree, &place, dir, origin_hash, durable, &mut tell).map_err(|error| error.to_string())
    })
}

/// The journal as the gate sees it.
struct JournalView<'a> {
    dir: &'a Arc<dyn Dir>,
    origin: &'a Origin,
    head: TreeHead,
}

/// The gate: before anything is acknowledged or signed, the journal, the published checkpoint and what the signer is bound
/// to must be of one history, and the journal the longest of them. Returns the published checkpoint.
fn pass_gate(
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

/// With when the certificate expires.
fn server_tls(tls: &RawTls) -> Outcome<(Arc<ServerTls>, UnixMillis)> {
    let clock = runtime::clock();
    let own = Credentials::from_files(&tls.certificate, &tls.key, Usage::Server, clock.now());
    let own = own.map_err(Failure::usage)?;
    let trust = TrustBundle::from_file(&tls.trust_domain, &tls.trust_bundle).map_err(Failure::usage)?;
    Ok((Arc::new(ServerTls::new(&own, &trust, clock).map_err(Failure::usage)?), own.not_after()))
}

/// `table` is where the configuration says so.
async fn listen(address: SocketAddr, table: &str) -> Outcome<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        Failure::usage(format!(
            "cannot listen on {address}: {error}. Stop the program that uses it, or set another [{table}] address and tell \
             whoever uses it"
        ))
    })
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
