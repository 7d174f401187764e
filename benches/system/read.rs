//! Reads: proofs from a tree of 2^20 entries, and a stream of all of its entries.

use std::path::Path;
use std::time::Duration;

use epigraph_rpc::channel::Channel;
use epigraph_rpc::v1::follow_event::Event;
use epigraph_rpc::v1::log_service_client::LogServiceClient;

use crate::echo::{AskCall, Shape, as_echo};
use crate::load::{Load, alternate, drive};
use crate::log::{Log, ProofCall, pki};
use crate::report::Comparison;
use crate::{ENTRY_BYTES, Plan, clock, echo, process};

const CONNECTIONS: usize = 8;
const IN_FLIGHT_PER_CONNECTION: usize = 32;

/// Entries of one event of `Follow`: 256 KiB of them.
const EVENT_ENTRIES: usize = 1024;

/// Proofs of single entries, all over the tree.
pub(crate) fn proof(plan: &Plan, dir: &Path) -> anyhow::Result<Comparison> {
    let log = Log::start(dir)?;
    let runtime = process::runtime()?;
    let (echo, rounds) = runtime.block_on(async {
        log.fill(plan.tree, ENTRY_BYTES).await?;
        let request = log.proof_request(plan.tree - 1);
        let answer = log.client()?.get_proof(request.clone()).await?.into_inner();
        let shape = Shape { items: answer.hashes.len(), bytes: answer.checkpoint.len() };
        let echo = echo::start(&pki(dir), shape)?;
        let ask: echo::Ask = as_echo(&request)?;
        let asks = (0..CONNECTIONS)
            .map(|_| AskCall::connect(&echo.said, &pki(dir), ask.clone(), shape.items))
            .collect::<Result<Vec<_>, _>>()?;
        let proofs =
            (0..CONNECTIONS).map(|_| ProofCall::connect(&log, plan.tree)).collect::<Result<Vec<_>, _>>()?;
        let yardstick = async |time| drive(&echo, &asks, IN_FLIGHT_PER_CONNECTION, time).await;
        let subject = async |time| drive(&log.process, &proofs, IN_FLIGHT_PER_CONNECTION, time).await;
        let rounds = alternate(plan, yardstick, subject).await?;
        anyhow::Ok((echo, rounds))
    })?;
    drop(runtime);
    echo.stop()?;
    log.process.stop()?;
    Ok(Comparison {
        title: format!(
            "proof: GetProof by index, uniform in a tree of {} entries, against an echo with answers of the same size, {} \
             in flight on {CONNECTIONS} connections",
            plan.tree,
            CONNECTIONS * IN_FLIGHT_PER_CONNECTION
        ),
        unit: "calls",
        names: ["echo", "proof"],
        mark: Some(0.5),
        rounds,
    })
}

/// One follower.
pub(crate) fn follow(plan: &Plan, dir: &Path) -> anyhow::Result<Comparison> {
    let log = Log::start(dir)?;
    let echo = echo::start(&pki(dir), Shape { items: EVENT_ENTRIES, bytes: ENTRY_BYTES })?;
    let runtime = process::runtime()?;
    let rounds = runtime.block_on(async {
        log.fill(plan.tree, ENTRY_BYTES).await?;
        let ask: echo::Ask = as_echo(&log.follow_request())?;
        let client = log.client()?;
        let yardstick = async |time| {
            let mut chunks = echo::receive(&echo.said, &pki(dir), ask.clone()).await?;
            let (cpu, start) = (echo.cpu()?, clock::now());
            let mut load = Load::default();
            while start.elapsed() < time {
                let asked = clock::now();
                let chunk = chunks.message().await?;
                load.latencies.push(asked.elapsed());
                load.done +=
                    chunk.and_then(|chunk| chunk.inner).map_or(0, |inner| inner.entries.len()) as u64;
            }
            load.elapsed = start.elapsed();
            load.server_cpu = echo.cpu()? - cpu;
            Ok(load)
        };
        alternate(plan, yardstick, async |time| follow_for(&log, client.clone(), plan.tree, time).await).await
    })?;
    drop(runtime);
    echo.stop()?;
    log.process.stop()?;
    Ok(Comparison {
        title: format!(
            "follow: Follow over {} entries of {ENTRY_BYTES} B, again and again, against a bare stream of the same events, \
             one stream",
            plan.tree
        ),
        unit: "entries",
        names: ["stream", "follow"],
        mark: Some(0.5),
        rounds,
    })
}

/// Reads the log's `size` entries from the first one on, and over again, for `time`.
async fn follow_for(
    log: &Log,
    mut client: LogServiceClient<Channel>,
    size: u64,
    time: Duration,
) -> anyhow::Result<Load> {
    let (cpu, start) = (log.process.cpu()?, clock::now());
    let mut load = Load::default();
    while start.elapsed() < time {
        let mut events = client.follow(log.follow_request()).await?.into_inner();
        let mut next = 0;
        while next < size && start.elapsed() < time {
            let asked = clock::now();
            let event = events.message().await?.and_then(|event| event.event);
            if let Some(Event::Entries(entries)) = event {
                anyhow::ensure!(entries.first_index == next, "entries {next} and on are missing");
                load.latencies.push(asked.elapsed());
                next += entries.entries.len() as u64;
            }
        }
        load.done += next;
    }
    load.elapsed = start.elapsed();
    load.server_cpu = log.process.cpu()? - cpu;
    Ok(load)
}
