//! The process of the lying log: it makes its key, reads the configuration that an honest log would have, and serves.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use epigraph_core::{Origin, SigningKey};
use epigraph_rpc::{Routes, log_service};
use tokio::sync::watch;

use super::lie::World;
use super::publish::Publisher;
use super::service::Service;
use super::{introduce, seed};
use crate::cli::AdversaryLog;
use crate::config::ProcessConfig;
use crate::failure::{Failure, Outcome};
use crate::runtime;
use crate::serve::door::{Door, listen};
use crate::serve::told_to_stop;
use crate::terminal::Terminal;

/// The lying log, as its calls and its publisher share it.
pub struct LyingLog {
    pub origin: Origin,
    world: Mutex<World>,
    changes: watch::Sender<()>,
}

impl LyingLog {
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something was appended or published.
    pub fn changed(&self) {
        self.changes.send_replace(());
    }

    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }
}

pub async fn run(args: &AdversaryLog, terminal: Terminal) -> Outcome {
    let stop = runtime::stop_signal().map_err(Failure::state)?;
    let key = SigningKey::from_seed(args.origin.clone(), &seed());
    introduce(key.vkey(), &args.vkey_file, terminal)?;

    let config = ProcessConfig::load(&args.config)?;
    let own = config.logs.iter().find(|log| log.origin == args.origin);
    let Some(witnessing) = own.and_then(|log| log.witnessing.as_ref()) else {
        let message = format!("{}: no [[log]] {} with a policy", args.config.display(), args.origin);
        return Err(Failure::usage(message));
    };
    let calling = config.tls.calling(runtime::clock())?;
    let calling = calling.ok_or_else(|| Failure::usage("[tls.client] is missing: it calls its witnesses"))?;
    let mut witnesses: Vec<_> = witnessing.witnesses.iter().collect();
    witnesses.sort_by_key(|witness| witness.place);
    let names = witnesses.iter().map(|witness| witness.server.clone()).collect();
    let log = Arc::new(LyingLog {
        origin: args.origin.to_origin(),
        world: Mutex::new(World::new(args.lie, names)),
        changes: watch::Sender::new(()),
    });
    let publisher = Publisher::new(Arc::clone(&log), key, witnessing.policy.clone(), &witnesses, &calling)?;

    let door = Door::new(&config.tls, config.grants.clone(), config.reflection)?;
    let listener = listen(config.listen, "listen").await?;
    let address = listener.local_addr().map_err(Failure::state)?;
    terminal.line(format_args!("serving {} on {address} with 0 entries", args.origin));
    terminal.object(&serde_json::json!({ "address": address.to_string() }));
    let server = door.serve(listener, Routes::new(log_service(Service(log))), told_to_stop(stop, true));
    let never: Infallible = tokio::select! {
        ended = server => return ended,
        never = publisher.run() => never,
    };
    match never {}
}
