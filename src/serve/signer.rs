//! `epigraph serve signer`: opens the heads and keys of a signer process, asks the logs what they have published and their
//! witnesses what they hold, and signs.

use std::fs;
use std::path::Path;

use epigraph_core::policy::WitnessSet;
use epigraph_core::{Origin, TreeHead, VKey};
use epigraph_rpc::peer;
use epigraph_rpc::{CallError, ClientTls, Reason, Routes, signer_service};
use epigraph_signer::gate::{Vantage, look_around};
use epigraph_signer::handle::SignerHandle;
use epigraph_signer::keys;
use epigraph_signer::service::SignerServer;
use epigraph_signer::signer::Signer;
use epigraph_signer::status::Status;
use tokio::task::JoinSet;

use super::door::{Door, listen};
use super::{listen_for_watchers, look_inside, observed, told_to_stop};
use crate::cli::ServeRole;
use crate::config::signer::{SignedLog, SignerProcessConfig};
use crate::config::witnessing::WitnessingConfig;
use crate::failure::{Failure, Outcome};
use crate::metrics::signer::Signing;
use crate::metrics::{Metrics, Spans};
use crate::runtime;
use crate::state;
use crate::terminal::Terminal;

pub fn run(args: &ServeRole, terminal: Terminal) -> Outcome {
    let config = SignerProcessConfig::load(&args.config.config)?;
    let tracing = config.tracing.clone();
    observed(&tracing, terminal, async |spans| serve(config, args.until_stdin_closes, spans, terminal).await)
}

/// Reads a configuration as [`run`] would, and the files that it names; opens no state and listens nowhere.
pub fn check(path: &Path, terminal: Terminal) -> Outcome {
    let config = SignerProcessConfig::load(path)?;
    Door::new(&config.tls, config.grants.clone(), config.reflection)?;
    config.tls.calling(runtime::clock())?;
    let mut logs = Vec::new();
    for log in &config.logs {
        let key = fs::exists(&log.key).unwrap_or(true);
        if key {
            log.witnessing(keys::load(&log.key).map_err(Failure::usage)?.vkey())?;
        }
        let note = if key { "" } else { "; the signing key is not there yet, `init` makes it" };
        let (path, origin) = (path.display(), &log.origin);
        terminal.line(format_args!("{path} describes the signer of {origin}, on {}{note}", config.listen));
        logs.push(serde_json::json!({ "origin": origin.as_str(), "signing_key": key }));
    }
    terminal.object(&serde_json::json!({ "valid": true, "logs": logs }));
    Ok(())
}

async fn serve(
    config: SignerProcessConfig,
    until_stdin_closes: bool,
    spans: &Spans,
    terminal: Terminal,
) -> Outcome {
    let stop = runtime::stop_signal().map_err(Failure::state)?;
    let door = Door::new(&config.tls, config.grants.clone(), config.reflection)?;
    let calling =
        config.tls.calling(runtime::clock())?.ok_or_else(|| Failure::usage("[tls.client] is missing"))?;

    let (keys, heads) = state::signer::open(&config)?;
    let vkeys: Vec<VKey> = keys.iter().map(|key| key.vkey().clone()).collect();
    let signer = Signer::new(keys, heads);
    let status = signer.status();
    let metrics = Metrics::of(Signing(status.clone()), runtime::clock().now(), door.calls(), spans);
    let (signer, failure) = SignerHandle::spawn(signer, runtime::clock()).map_err(Failure::state)?;

    let listener = listen(config.listen, "listen").await?;
    let address = listener.local_addr().map_err(Failure::state)?;
    let (watched, metrics_address) = listen_for_watchers(config.metrics).await?;
    for log in &config.logs {
        terminal.line(format_args!("signing for {} on {address}", log.origin));
    }
    let origins = config.logs.iter().map(|log| log.origin.as_str()).collect::<Vec<_>>();
    terminal.object(&serde_json::json!({
        "address": address.to_string(),
        "logs": origins,
        "metrics_address": metrics_address.map(|address| address.to_string()),
    }));

    let mut gates = JoinSet::new();
    for (log, vkey) in config.logs.iter().zip(vkeys) {
        let passing = pass_gate(Around::of(log, &vkey, &calling)?, vkey, signer.clone(), status.clone());
        let origin = log.origin.to_origin();
        gates.spawn(async move { (origin, passing.await) });
    }
    let server = SignerServer::new(signer, config.logs.iter().map(|log| log.origin.to_origin()));
    let routes = Routes::new(signer_service(server));
    let server = door.serve(listener, routes, told_to_stop(stop, until_stdin_closes));
    let failed = async move {
        match failure.await {
            Ok(why) => Failure::state(why),
            // The thread has ended in order, with its last handle: the server is stopping.
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        ended = server => ended,
        failure = failed => Err(failure),
        failure = all_refused(gates) => Err(failure),
        never = look_inside(watched, metrics) => match never {},
    }
}

/// Ends when no log is left that can be signed for: each was refused at its gate.
async fn all_refused(mut gates: JoinSet<(Origin, Outcome)>) -> Failure {
    let mut last = None;
    let mut passed = false;
    while let Some(ended) = gates.join_next().await {
        match ended {
            Ok((origin, Ok(()))) => {
                passed = true;
                tracing::info!(log = %origin, "nothing newer is published than the signer holds; it signs");
            }
            Ok((origin, Err(failure))) => {
                tracing::error!(log = %origin, %failure, "nothing is signed for a log that was refused");
                last = Some(failure);
            }
            Err(error) => last = Some(Failure::state(error)),
        }
    }
    match last {
        Some(failure) if !passed => failure,
        _ => std::future::pending().await,
    }
}

async fn pass_gate(around: Around, vkey: VKey, signer: SignerHandle, status: Status) -> Outcome {
    let origin = vkey.name().to_origin();
    // A head that was fallen back to is not served, but compared.
    let held = status.look().get(&origin).map_or(TreeHead::EMPTY, |log| log.held.head);
    let Around { peers, places, witnessing } = around;
    let enough = |answered: &[bool]| {
        let Some((log, witnesses)) = answered.split_first() else { return false };
        let places: WitnessSet = places
            .iter()
            .zip(witnesses)
            .filter(|(_, answered)| **answered)
            .map(|(place, _)| *place)
            .collect();
        *log && witnessing.as_ref().is_none_or(|config| config.policy.enough_answers(places, config.faulty))
    };
    let waiting = |whom: &str| status.waits_for(&origin, whom);
    let seen = look_around(&vkey, held, peers, enough, waiting).await;
    signer.pass_gate(&origin, seen).await.map_err(Failure::state)
}

/// Everybody who is asked about one log: its process, then its witnesses.
struct Around {
    peers: Vec<Peer>,
    /// Of the witnesses, in the policy.
    places: Vec<usize>,
    witnessing: Option<WitnessingConfig>,
}

impl Around {
    fn of(log: &SignedLog, vkey: &VKey, calling: &ClientTls) -> Outcome<Around> {
        let witnessing = log.witnessing(vkey)?;
        let asked = peer::Log::new(&log.address, calling, &log.server).map_err(Failure::usage)?;
        let mut peers = vec![Peer { asked: Asked::Log(asked), name: format!("the log at {}", log.address) }];
        let mut places = Vec::new();
        for witness in witnessing.iter().flat_map(|config| &config.witnesses) {
            let Some(address) = &witness.address else { continue };
            let asked = peer::Witness::new(address, calling, &witness.server).map_err(Failure::usage)?;
            let name = format!("the witness {} at {address}", witness.name);
            peers.push(Peer { asked: Asked::Witness(asked), name });
            places.push(witness.place);
        }
        Ok(Around { peers, places, witnessing })
    }
}

/// Somebody who shows what is published or held.
struct Peer {
    asked: Asked,
    name: String,
}

enum Asked {
    Log(peer::Log),
    Witness(peer::Witness),
}

impl Vantage for Peer {
    fn name(&self) -> &str {
        &self.name
    }

    async fn newest(&self, origin: &Origin) -> Result<Option<Vec<u8>>, String> {
        let note = match &self.asked {
            Asked::Log(log) => log.checkpoint(origin.as_str()).await,
            Asked::Witness(witness) => witness.checkpoint(origin.as_str()).await,
        };
        match note {
            Ok(note) => Ok(Some(note.into())),
            Err(CallError::Refused(refusal)) if refusal.reason() == Reason::NotYetPublished => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }
}
