//! `epigraph serve signer`: opens the heads and keys of a signer process, asks the logs what they have published, and signs.

use epigraph_core::{Origin, VKey};
use epigraph_rpc::peer;
use epigraph_rpc::{Authorizer, CallError, ClientTls, Reason, Routes, log_refused, signer_service};
use epigraph_signer::gate::{Vantage, look_around};
use epigraph_signer::handle::SignerHandle;
use epigraph_signer::service::SignerServer;
use epigraph_signer::signer::Signer;
use tokio::task::JoinSet;

use super::{client_tls, closed_stdin, listen, server_tls};
use crate::cli::ServeRole;
use crate::config::signer::{SignedLog, SignerProcessConfig};
use crate::failure::{Failure, Outcome};
use crate::runtime;
use crate::state;
use crate::terminal::Terminal;

pub fn run(args: &ServeRole, terminal: Terminal) -> Outcome {
    let config = SignerProcessConfig::load(&args.config.config)?;
    let runtime = runtime::runtime().map_err(Failure::state)?;
    runtime.block_on(serve(config, args.until_stdin_closes, terminal))
}

async fn serve(config: SignerProcessConfig, until_stdin_closes: bool, terminal: Terminal) -> Outcome {
    let stop = runtime::stop_signal().map_err(Failure::state)?;
    let (tls, _) = server_tls(&config.tls)?;
    let calling = client_tls(&config.tls)?.ok_or_else(|| Failure::usage("[tls.client] is missing"))?;
    let authorizer = Authorizer::new(config.grants.clone()).map_err(Failure::usage)?;

    let (keys, heads) = state::signer::open(&config)?;
    let vkeys: Vec<VKey> = keys.iter().map(|key| key.vkey().clone()).collect();
    let (signer, failure) =
        SignerHandle::spawn(Signer::new(keys, heads), runtime::clock()).map_err(Failure::state)?;

    let listener = listen(config.listen, "listen").await?;
    let address = listener.local_addr().map_err(Failure::state)?;
    for log in &config.logs {
        terminal.line(format_args!("signing for {} on {address}", log.origin));
    }
    let origins = config.logs.iter().map(|log| log.origin.as_str()).collect::<Vec<_>>();
    terminal.object(&serde_json::json!({ "address": address.to_string(), "logs": origins }));

    let mut gates = JoinSet::new();
    for (log, vkey) in config.logs.iter().zip(vkeys) {
        let passing = pass_gate(PublishedBy::new(log, &calling)?, vkey, signer.clone());
        let origin = log.origin.to_origin();
        gates.spawn(async move { (origin, passing.await) });
    }
    let door = SignerServer::new(signer, config.logs.iter().map(|log| log.origin.to_origin()));
    let server = async move {
        let shutdown = async move {
            tokio::select! {
                () = stop => {}
                () = closed_stdin(until_stdin_closes) => {}
            }
            tracing::info!("stopping: finishing what was taken");
        };
        let routes = Routes::new(signer_service(door));
        let entropy = runtime::entropy();
        epigraph_rpc::serve(listener, tls, authorizer, routes, log_refused(), entropy, shutdown).await;
    };
    let failed = async move {
        match failure.await {
            Ok(why) => Failure::state(why),
            // The thread has ended in order, with its last handle: the server is stopping.
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = server => Ok(()),
        failure = failed => Err(failure),
        failure = all_refused(gates) => Err(failure),
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

async fn pass_gate(log: PublishedBy, vkey: VKey, signer: SignerHandle) -> Outcome {
    let everybody = |answered: &[bool]| answered.iter().all(|answered| *answered);
    let seen = look_around(&vkey, &[log], everybody).await;
    signer.pass_gate(&vkey.name().to_origin(), seen).await.map_err(Failure::state)
}

/// The log process, as somebody who shows what is published.
struct PublishedBy {
    log: peer::Log,
    name: String,
}

impl PublishedBy {
    fn new(config: &SignedLog, calling: &ClientTls) -> Outcome<PublishedBy> {
        let log = peer::Log::new(&config.address, calling, &config.server).map_err(Failure::usage)?;
        Ok(PublishedBy { log, name: format!("the log at {}", config.address) })
    }
}

impl Vantage for PublishedBy {
    fn name(&self) -> &str {
        &self.name
    }

    async fn newest(&self, origin: &Origin) -> Result<Option<Vec<u8>>, String> {
        match self.log.checkpoint(origin.as_str()).await {
            Ok(note) => Ok(Some(note.into())),
            Err(CallError::Refused(refusal)) if refusal.reason() == Reason::NotYetPublished => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }
}
