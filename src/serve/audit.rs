//! `epigraph serve audit`: opens an audit service's state, connects it to its log, takes in new sources while it runs, and serves it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use epigraph_audit::append;
use epigraph_audit::ask::Asker;
use epigraph_audit::audit::{Audit, watch_published};
use epigraph_audit::index::follow::{self, Following};
use epigraph_audit::keeper::Keeper;
use epigraph_audit::registry::Registry;
use epigraph_audit::service::AuditServer;
use epigraph_audit::service::query::QueryServer;
use epigraph_audit::source::Enrolled;
use epigraph_client::Client;
use epigraph_client::pin::Pin;
use epigraph_core::{SourceKey, UnixMillis};
use epigraph_rpc::{Routes, audit_service, peer, query_service};
use tokio::sync::watch;
use tokio::time::timeout;

use super::door::{Door, listen};
use super::{Version, listen_for_watchers, look_inside, observed, told_to_stop, version};
use crate::cli::ServeRole;
use crate::config::audit::{AuditConfig, load_sources};
use crate::config::questions::Questions;
use crate::failure::{Failure, Outcome};
use crate::metrics::audit::{Auditing, look};
use crate::metrics::{Metrics, Spans};
use crate::runtime;
use crate::state;
use crate::state::audit::AuditState;
use crate::terminal::Terminal;

/// How long the store may take to be closed, which spares the next start to put it in order.
const CLOSE: Duration = Duration::from_secs(10);

/// How often the list of sources is looked at: soon enough for whoever adds one and waits.
const RELOAD: Duration = Duration::from_secs(1);

pub fn run(args: &ServeRole, terminal: Terminal) -> Outcome {
    let config = AuditConfig::load(&args.config.config)?;
    let tracing = config.tracing.clone();
    observed(&tracing, terminal, async |spans| serve(config, args.until_stdin_closes, spans, terminal).await)
}

/// Reads a configuration as [`run`] would, and the files that it names; opens no state and listens nowhere.
pub fn check(path: &Path, terminal: Terminal) -> Outcome {
    let config = AuditConfig::load(path)?;
    Door::new(&config.tls, config.grants.clone(), config.reflection)?;
    let runtime = runtime::runtime().map_err(Failure::state)?;
    runtime.block_on(async { client(&config).map(drop) })?;
    config.questions.rules()?;
    let keys = fs::exists(&config.key).unwrap_or(true);
    if keys {
        state::audit::load_key(&config)?;
        state::audit::load_wrapper(&config)?;
    }
    let list = config.list();
    let sources = match fs::exists(&list).unwrap_or(true) {
        true => load_sources(&list)?,
        false => Vec::new(),
    };
    let count = sources.len();
    Registry::default()
        .replace(sources)
        .map_err(|error| Failure::usage(format!("{}: {error}", list.display())))?;
    let note = if keys { "" } else { "; its keys are not there yet, `init` makes them" };
    terminal.line(format_args!(
        "{} describes the audit service {}, on {}, of {count} sources, over the log {}{note}",
        path.display(),
        config.name,
        config.listen,
        config.origin
    ));
    terminal.object(&serde_json::json!({
        "valid": true,
        "name": config.name.as_str(),
        "keys": keys,
        "sources": count,
        "log": config.origin.as_str(),
    }));
    Ok(())
}

async fn serve(config: AuditConfig, until_stdin_closes: bool, spans: &Spans, terminal: Terminal) -> Outcome {
    let stop = runtime::stop_signal().map_err(Failure::state)?;
    let door = Door::new(&config.tls, config.grants.clone(), config.reflection)?;
    let (clock, entropy) = (runtime::clock(), runtime::entropy());
    let rules_seen = rules_version(&config.file, &config.questions);
    let rules = config.questions.rules()?;
    let AuditState { store, key } = state::audit::open(&config)?;
    let vkey = key.vkey().clone();
    let client = Arc::new(client(&config)?);

    let registry = Registry::default();
    let seen = version(&config.list());
    let enrolled = take_sources(&registry, &config, &key)?;
    let (keeper, mut failure) =
        Keeper::start(store, Arc::clone(&clock), state::audit::room(&config)).map_err(Failure::state)?;
    let (newest, published) = watch::channel(None);
    // Nobody waits for the indexes: until they are there, and whatever is wrong with them, events are taken in and given back.
    let following = Following::default();
    let indexing =
        follow::run(state::audit::index(&config), keeper.clone(), following.clone(), runtime::stand_back);
    let published_to_askers = published.clone();
    let audit = Audit::new(
        registry.clone(),
        keeper.clone(),
        Arc::clone(&client),
        published,
        key,
        (Arc::clone(&clock), Arc::clone(&entropy)),
    );
    let audit = Arc::new(audit);
    let asker = Asker::new(
        Arc::clone(&audit),
        keeper.clone(),
        following,
        published_to_askers,
        rules,
        (Arc::clone(&clock), Arc::clone(&entropy)),
    );
    let asker = Arc::new(asker.map_err(Failure::state)?);

    let listener = listen(config.listen, "listen").await?;
    let address = listener.local_addr().map_err(Failure::state)?;
    let (watched, metrics_address) = listen_for_watchers(config.metrics).await?;
    terminal.line(format_args!(
        "auditing as {} on {address}: {enrolled} sources, over the log {}",
        config.name, config.origin
    ));
    terminal.object(&serde_json::json!({
        "address": address.to_string(),
        "name": config.name.as_str(),
        "vkey": vkey.to_string(),
        "log": config.origin.as_str(),
        "metrics_address": metrics_address.map(|address| address.to_string()),
    }));
    let trouble = Arc::new(Mutex::new(None::<String>));
    let (looked, sources) = watch::channel(Arc::default());
    let role = Auditing {
        audit: Arc::clone(&audit),
        asker: Arc::clone(&asker),
        trouble: Arc::clone(&trouble),
        sources,
    };
    let metrics = Metrics::of(role, clock.now(), door.calls(), spans);
    let routes = Routes::new(audit_service(AuditServer::new(Arc::clone(&asker))))
        .add_service(query_service(QueryServer::new(Arc::clone(&asker))));
    let waits = |why: Option<&str>| {
        *trouble.lock().unwrap_or_else(PoisonError::into_inner) = why.map(ToOwned::to_owned);
    };
    let server = door.serve(listener, routes, told_to_stop(stop, until_stdin_closes));
    let ended = tokio::select! {
        ended = server => ended,
        failed = &mut failure => return Err(match failed {
            Ok(error) => Failure::state(error),
            Err(_) => Failure::state("the audit store has ended; this is a fault of the program"),
        }),
        ended = append::run(&keeper, &client, Arc::clone(&entropy), waits) => ended.map_err(Failure::state),
        () = watch_published(&client, Arc::clone(&entropy), newest) => Ok(()),
        never = indexing => match never {},
        never = reload(&registry, &config, &vkey, seen) => match never {},
        never = reload_rules(&asker, &config, rules_seen) => match never {},
        never = look(&audit, looked) => match never {},
        never = look_inside(watched, metrics) => match never {},
    };
    drop((keeper, audit, asker));
    // What is acknowledged is durable, closed or not.
    let _ = timeout(CLOSE, failure).await;
    ended
}

/// The verifying client of the log.
fn client(config: &AuditConfig) -> Outcome<Client> {
    client_with(config, &state::audit::pin(config))
}

/// The same, with its newest checkpoint in another directory.
pub fn client_with(config: &AuditConfig, pin: &Path) -> Outcome<Client> {
    let missing = || Failure::usage("[tls.client] is missing: the service has nothing to call its log with");
    let tls = config.tls.calling(runtime::clock())?.ok_or_else(missing)?;
    let log = peer::Log::new(&config.log_address, &tls, &config.log_server).map_err(Failure::usage)?;
    let pin = Pin::new(pin, &config.origin).map_err(Failure::state)?;
    Ok(Client::new(log, config.origin.clone(), config.policy.clone(), pin))
}

/// Puts the list of sources in force, the service's own among them. Returns how many others there are.
fn take_sources(registry: &Registry, config: &AuditConfig, key: &SourceKey) -> Outcome<usize> {
    let list = with_own(load_sources(&config.list())?, key.vkey());
    let others = list.len() - 1;
    let path = config.list();
    registry.replace(list).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
    Ok(others)
}

/// The service signs what is read under a key of its own, for which no collector may send and which owes nobody a heartbeat.
fn with_own(mut list: Vec<Enrolled>, vkey: &epigraph_core::SourceVKey) -> Vec<Enrolled> {
    list.push(Enrolled {
        vkey: vkey.clone(),
        owner: "this audit service: what was read, by whom".into(),
        collector: String::new(),
        enrolled_at: UnixMillis(0),
        retired_at: None,
        heartbeat_ms: 0,
    });
    list
}

/// Takes the list of sources in whenever it has changed. One that is not in order changes nothing.
async fn reload(
    registry: &Registry,
    config: &AuditConfig,
    vkey: &epigraph_core::SourceVKey,
    mut seen: Option<Version>,
) -> std::convert::Infallible {
    let path = config.list();
    loop {
        tokio::time::sleep(RELOAD).await;
        let now = version(&path);
        if now == seen {
            continue;
        }
        seen = now;
        let list = load_sources(&path).map(|list| with_own(list, vkey));
        match list.and_then(|list| registry.replace(list).map_err(Failure::usage)) {
            Ok(0) => {}
            Ok(new) => tracing::info!(new, "sources were added"),
            Err(error) => {
                tracing::error!(%error, "the list of sources is not in order: the one before stays in force")
            }
        }
    }
}

/// What the rules of questions are read from: the configuration, and what it names.
fn rules_version(file: &Path, questions: &Questions) -> Vec<(PathBuf, Option<Version>)> {
    let files = std::iter::once(file.to_owned()).chain(questions.files());
    files.map(|path| (path.clone(), version(&path))).collect()
}

/// Puts readers, limits, policies and runbooks in force whenever one of their files has changed, for questions that are asked from then
/// on. If one is not in order, all of them stay as they were. Everything else in the configuration counts from the next start.
async fn reload_rules(
    asker: &Asker,
    config: &AuditConfig,
    mut seen: Vec<(PathBuf, Option<Version>)>,
) -> std::convert::Infallible {
    let mut questions = config.questions.clone();
    loop {
        tokio::time::sleep(RELOAD).await;
        let now = rules_version(&config.file, &questions);
        if now == seen {
            continue;
        }
        seen = now;
        let rules = AuditConfig::load(&config.file).and_then(|config| {
            let rules = config.questions.rules()?;
            Ok((config.questions, rules))
        });
        match rules {
            Ok((changed, rules)) => {
                tracing::info!(policies = %rules.guard.policies.hash(), "who may ask, and under which rules, has changed");
                asker.replace(rules);
                // It may name other files now.
                if changed.files() != questions.files() {
                    seen = rules_version(&config.file, &changed);
                }
                questions = changed;
            }
            Err(error) => {
                tracing::error!(%error, "the rules of questions are not in order: those before stay in force");
            }
        }
    }
}
