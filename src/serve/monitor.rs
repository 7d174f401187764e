//! `epigraph serve monitor`: opens a monitor's state, connects it to where its logs are looked at and to those who are told, and
//! serves what it knows.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use epigraph_core::UnixMillis;
use epigraph_monitor::Monitor;
use epigraph_monitor::book::Book;
use epigraph_monitor::run::{LogSetup, Setup, start};
use epigraph_monitor::service::{About, MonitorServer};
use epigraph_monitor::sinks::alertmanager::{self, Alertmanager};
use epigraph_monitor::sinks::http::Endpoint;
use epigraph_monitor::sinks::log::LogSink;
use epigraph_monitor::sinks::queue::Queue;
use epigraph_monitor::sinks::secret::Secret;
use epigraph_monitor::sinks::webhook::{self, Webhook};
use epigraph_monitor::sinks::{Alive, Sink, Sinks};
use epigraph_rpc::{ClientTls, Routes, monitor_service, peer};
use tokio::sync::watch as channel;
use tokio::task::JoinSet;

use super::door::{Door, listen};
use super::{listen_for_watchers, look_inside, observed, told_to_stop};
use crate::cli::ServeRole;
use crate::config::monitor::{MonitorConfig, MonitoredLog, PeerConfig, SinkConfig, SinkKind};
use crate::failure::{Failure, Outcome};
use crate::metrics::monitor::Monitoring;
use crate::metrics::{Metrics, Spans};
use crate::runtime;
use crate::sources::order::LeavesInOrder;
use crate::sources::{status, watch};
use crate::state;
use crate::state::monitor::MonitorState;
use crate::terminal::Terminal;

/// A bundle of CAs: those of a whole system take a quarter of it.
const MAX_BUNDLE_BYTES: u64 = 1 << 20;

pub fn run(args: &ServeRole, terminal: Terminal) -> Outcome {
    let config = MonitorConfig::load(&args.config.config)?;
    let tracing = config.tracing.clone();
    observed(&tracing, terminal, async |spans| serve(config, args.until_stdin_closes, spans, terminal).await)
}

/// Reads a configuration as [`run`] would, and the files that it names, secrets and CAs among them; opens no state and listens nowhere.
pub fn check(path: &Path, terminal: Terminal) -> Outcome {
    let config = MonitorConfig::load(path)?;
    Door::new(&config.tls, config.grants.clone(), config.reflection)?;
    let runtime = runtime::runtime().map_err(Failure::state)?;
    runtime.block_on(async { config.logs.iter().try_for_each(|log| connect(&config, log).map(drop)) })?;
    for sink in &config.sinks {
        endpoint(sink)?;
        if let SinkKind::Webhook(secret) = &sink.kind {
            Secret::load(secret).map_err(|error| in_sink(sink, &error))?;
        }
    }
    let key = fs::exists(&config.key).unwrap_or(true);
    if key {
        epigraph_signer::keys::load(&config.key).map_err(Failure::usage)?;
    }
    let note = if key { "" } else { "; its key is not there yet, `init` makes it" };
    let (path, logs, sinks) = (path.display(), config.logs.len(), config.sinks.len());
    terminal.line(format_args!(
        "{path} describes the monitor {}, on {}, of {logs} logs, with {sinks} webhooks and Alertmanagers{note}",
        config.name, config.listen
    ));
    terminal.object(&serde_json::json!({
        "valid": true,
        "name": config.name.as_str(),
        "signing_key": key,
        "logs": logs,
        "sinks": sinks,
    }));
    Ok(())
}

async fn serve(
    config: MonitorConfig,
    until_stdin_closes: bool,
    spans: &Spans,
    terminal: Terminal,
) -> Outcome {
    let stop = runtime::stop_signal().map_err(Failure::state)?;
    let door = Door::new(&config.tls, config.grants.clone(), config.reflection)?;
    let logs = config.logs.iter().map(|log| connect(&config, log)).collect::<Outcome<Vec<_>>>()?;
    let MonitorState { key, disk, book, queues, drill } = state::monitor::open(&config)?;
    let watches = watches(&config, &logs)?;
    let sinks = Arc::new(Sinks::new(sinks(&config, &book, queues)?, config.heartbeat));

    let vkey = key.vkey().clone();
    let (rounds, last_round) = channel::channel(UnixMillis(0));
    let (told, lives) = (Arc::clone(&sinks), Arc::clone(&sinks));
    let setup = Setup {
        clock: runtime::clock(),
        entropy: runtime::entropy(),
        disk,
        book,
        drill,
        logs,
        poll: config.poll,
        published_within_ms: config.published_within_ms,
        key,
        on_notice: Box::new(move |notice| told.notify(notice)),
        on_round: Box::new(move |at, open| {
            lives.alive(Alive { at, open });
            rounds.send_replace(at);
        }),
    };
    let (monitor, running) = start(setup).map_err(Failure::state)?;

    let mut watching = JoinSet::new();
    for one in watches {
        let outside = (runtime::clock(), runtime::entropy());
        watching.spawn(watch::run(one, monitor.clone(), outside));
    }

    let listener = listen(config.listen, "listen").await?;
    let address = listener.local_addr().map_err(Failure::state)?;
    let (watched, metrics_address) = listen_for_watchers(config.metrics).await?;
    let origins: Vec<String> = monitor.origins().iter().map(ToString::to_string).collect();
    terminal.line(format_args!("monitoring {} as {} on {address}", origins.join(", "), config.name));
    terminal.object(&serde_json::json!({
        "address": address.to_string(),
        "name": config.name.as_str(),
        "vkey": vkey.to_string(),
        "logs": origins,
        "metrics_address": metrics_address.map(|address| address.to_string()),
    }));
    let role = Monitoring {
        monitor: monitor.clone(),
        sinks: Arc::clone(&sinks),
        last_round,
        clock: runtime::clock(),
    };
    let metrics = Metrics::of(role, runtime::clock().now(), door.calls(), spans);

    let (drain, draining) = channel::channel(false);
    let shutdown = async move {
        told_to_stop(stop, until_stdin_closes).await;
        drain.send_replace(true);
    };
    let server = door.serve(listener, routes(monitor, vkey, &sinks, draining), shutdown);
    tokio::select! {
        ended = server => ended,
        ended = running => match ended {
            Ok(()) => Err(Failure::state("the monitor's loop has ended; this is a fault of the program")),
            Err(error) => Err(Failure::state(error)),
        },
        () = sinks.run() => Ok(()),
        Some(_) = watching.join_next() => {
            Err(Failure::state("watching an audit service has ended; this is a fault of the program"))
        }
        never = look_inside(watched, metrics) => match never {},
    }
}

fn routes(
    monitor: Monitor,
    vkey: epigraph_core::VKey,
    sinks: &Arc<Sinks>,
    draining: channel::Receiver<bool>,
) -> Routes {
    let sinks = Arc::clone(sinks);
    let about = About { vkey, sinks, entropy: runtime::entropy(), clock: runtime::clock(), draining };
    Routes::new(monitor_service(MonitorServer::new(monitor, about)))
}

/// Prepares the connections to the audit services of the logs that have one.
fn watches(config: &MonitorConfig, setups: &[LogSetup]) -> Outcome<Vec<watch::Watch>> {
    let mut watches = Vec::new();
    for (log, setup) in config.logs.iter().zip(setups) {
        let (Some(audit), Some((_, reader))) = (&log.audit, setup.readers.first()) else { continue };
        let tls = process_tls(config)?;
        watches.push(watch::Watch {
            origin: log.origin.clone(),
            policy: log.policy.clone(),
            log: reader.clone(),
            audit: called(&audit.peer, &tls, peer::audit::Audit::new)?,
            poll: config.poll,
            sample_every_ms: audit.sample_every_ms,
            unreachable_after_ms: log.tuning.unreachable_after_ms,
        });
    }
    Ok(watches)
}

/// What the process itself calls with.
fn process_tls(config: &MonitorConfig) -> Outcome<ClientTls> {
    let missing = || Failure::usage("[tls.client] is missing: the monitor has nothing to call with");
    config.tls.calling(runtime::clock())?.ok_or_else(missing)
}

/// Prepares the connections to where a log is looked at; the first call makes each.
fn connect(config: &MonitorConfig, log: &MonitoredLog) -> Outcome<LogSetup> {
    let mut readers = Vec::new();
    for reader in &log.readers {
        let PeerConfig { name, address, server } = &reader.peer;
        let connection = match &reader.client {
            Some(client) => {
                peer::Log::new(address, &config.tls.calling_as(client, runtime::clock())?, server)
            }
            None => peer::Log::new(address, &process_tls(config)?, server),
        };
        readers.push((name.clone(), connection.map_err(Failure::usage)?));
    }
    let mut witnesses = Vec::new();
    for witness in &log.witnesses {
        let connection = called(witness, &process_tls(config)?, peer::Witness::new)?;
        witnesses.push((witness.name.clone(), witness.name.clone(), connection));
    }
    let mut monitors = Vec::new();
    for monitor in &log.monitors {
        monitors.push((monitor.name.clone(), called(monitor, &process_tls(config)?, peer::Monitor::new)?));
    }
    let order = LeavesInOrder { nothing_else: log.only_audit, skew_ms: log.tuning.skew_ms };
    let audits = log.audit.iter().map(|_| (watch::REPORTER.to_owned(), status::CODES));
    let reporters = audits.collect();
    let files = match &log.inbox {
        Some(inbox) => vec![("inbox".to_owned(), state::open_dir(inbox)?)],
        None => Vec::new(),
    };
    Ok(LogSetup {
        origin: log.origin.clone(),
        policy: log.policy.clone(),
        tuning: log.tuning,
        full_audit_every_ms: log.full_audit_every_ms,
        rules: Vec::new(),
        sequence: Some(Arc::new(order)),
        reporters,
        readers,
        witnesses,
        monitors,
        files,
    })
}

fn called<T>(
    peer: &PeerConfig,
    tls: &ClientTls,
    connect: impl Fn(&str, &ClientTls, &epigraph_rpc::SpiffeId) -> Result<T, epigraph_rpc::TlsError>,
) -> Outcome<T> {
    connect(&peer.address, tls, &peer.server).map_err(Failure::usage)
}

/// The process's messages first, then those of the configuration.
fn sinks(
    config: &MonitorConfig,
    book: &Book,
    mut queues: std::collections::BTreeMap<String, Queue>,
) -> Outcome<Vec<Arc<dyn Sink>>> {
    let mut sinks: Vec<Arc<dyn Sink>> = vec![Arc::new(LogSink::default())];
    for sink in &config.sinks {
        let (name, monitor, least) = (sink.name.clone(), config.name.to_string(), sink.least);
        let transport = Box::new(endpoint(sink)?);
        let (clock, entropy) = (runtime::clock(), runtime::entropy());
        match &sink.kind {
            SinkKind::Webhook(secret) => {
                let secret = Secret::load(secret).map_err(|error| in_sink(sink, &error))?;
                let settings = webhook::Settings { name, monitor, least, secret };
                let queue = queues.remove(&sink.name);
                let queue = queue.ok_or_else(|| {
                    Failure::state("a webhook has no queue; this is a fault of the program")
                })?;
                sinks.push(Arc::new(Webhook::new(settings, transport, queue, clock, entropy)));
            }
            SinkKind::Alertmanager => {
                let settings = alertmanager::Settings { name, monitor, least };
                let open = book.findings().cloned();
                sinks.push(Arc::new(Alertmanager::new(settings, transport, open, clock, entropy)));
            }
        }
    }
    Ok(sinks)
}

fn endpoint(sink: &SinkConfig) -> Outcome<Endpoint> {
    let cas = sink.trust_bundle.as_deref().map(read_bundle).transpose()?;
    Endpoint::new(&sink.url, cas.as_deref(), sink.allowed.clone(), runtime::clock())
        .map_err(|error| in_sink(sink, &error))
}

fn read_bundle(path: &Path) -> Outcome<Vec<u8>> {
    let cannot =
        |why: String| Failure::usage(format!("cannot read the trust bundle {}: {why}", path.display()));
    let length = fs::metadata(path).map_err(|error| cannot(error.to_string()))?.len();
    if length > MAX_BUNDLE_BYTES {
        return Err(cannot(format!("it has more than {MAX_BUNDLE_BYTES} bytes")));
    }
    fs::read(path).map_err(|error| cannot(error.to_string()))
}

fn in_sink(sink: &SinkConfig, error: &dyn std::fmt::Display) -> Failure {
    let table = match sink.kind {
        SinkKind::Webhook(_) => "webhook",
        SinkKind::Alertmanager => "alertmanager",
    };
    Failure::usage(format!("[[{table}]] {}: {error}", sink.name))
}
