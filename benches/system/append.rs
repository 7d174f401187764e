//! Appends: one by one, many at one time, in batches and in streams, each against the echo of the same messages.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use epigraph_rpc::v1::AppendRequest;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::echo::{PingCall, Shape, as_echo};
use crate::load::{Call, Exchange, Load, alternate, drive, drive_streams};
use crate::log::{AppendCall, Log, pki};
use crate::report::Comparison;
use crate::{ENTRY_BYTES, Plan, echo, process};

const CONNECTIONS: usize = 8;
const IN_FLIGHT_PER_CONNECTION: usize = 32;

const BATCH_ENTRIES: usize = 256;
/// On one connection: a batch is large, and a few keep both sides busy.
const BATCHES_IN_FLIGHT: usize = 8;

const STREAMS: usize = 8;
/// As many as the log reads ahead.
const IN_FLIGHT_PER_STREAM: usize = 64;

/// Many single appends at one time.
pub(crate) fn unary(plan: &Plan, dir: &Path) -> anyhow::Result<Comparison> {
    let rounds = calls(plan, dir, 1, CONNECTIONS, IN_FLIGHT_PER_CONNECTION)?;
    Ok(Comparison {
        title: format!(
            "unary: durable appends of {ENTRY_BYTES} B against the echo of the same message, {} in flight on {CONNECTIONS} \
             connections",
            CONNECTIONS * IN_FLIGHT_PER_CONNECTION
        ),
        unit: "calls",
        names: ["echo", "append"],
        mark: Some(0.6),
        rounds,
    })
}

/// Batches.
pub(crate) fn batch(plan: &Plan, dir: &Path) -> anyhow::Result<Comparison> {
    let mut rounds = calls(plan, dir, BATCH_ENTRIES, 1, BATCHES_IN_FLIGHT)?;
    rounds.iter_mut().flatten().for_each(|load| load.done *= BATCH_ENTRIES as u64);
    Ok(Comparison {
        title: format!(
            "batch: durable appends of {BATCH_ENTRIES} x {ENTRY_BYTES} B against the echo of the same message, \
             {BATCHES_IN_FLIGHT} in flight on one connection"
        ),
        unit: "entries",
        names: ["echo", "append"],
        mark: Some(0.25),
        rounds,
    })
}

fn calls(
    plan: &Plan,
    dir: &Path,
    entries: usize,
    connections: usize,
    in_flight: usize,
) -> anyhow::Result<Vec<[Load; 2]>> {
    let log = Log::start(dir)?;
    let echo = echo::start(&pki(dir), Shape::default())?;
    let runtime = process::runtime()?;
    let rounds = runtime.block_on(async {
        let request = log.request(entries, ENTRY_BYTES);
        let ping: echo::Ping = as_echo(&request)?;
        let pings = (0..connections)
            .map(|_| PingCall::connect(&echo.said, &pki(dir), ping.clone()))
            .collect::<Result<Vec<_>, _>>()?;
        let appends = (0..connections)
            .map(|_| AppendCall::connect(&log, request.clone()))
            .collect::<Result<Vec<_>, _>>()?;
        let yardstick = async |time| drive(&echo, &pings, in_flight, time).await;
        alternate(plan, yardstick, async |time| drive(&log.process, &appends, in_flight, time).await).await
    })?;
    // The connections end with the runtime: a server that stops waits for those that are open.
    drop(runtime);
    echo.stop()?;
    log.process.stop()?;
    Ok(rounds)
}

/// A call, and then one write of the entry's bytes made durable: all that an append on its own cannot do without.
#[derive(Clone)]
struct Synced {
    call: PingCall,
    file: Arc<File>,
    at: Arc<AtomicU64>,
}

/// What the file is written round and round in; written with zeros before, as segments are.
const SYNC_FILE_BYTES: u64 = 16 << 20;
/// Frames of the journal start on such boundaries.
const SYNC_STEP: u64 = 512;

impl Synced {
    fn new(call: PingCall, dir: &Path) -> anyhow::Result<Synced> {
        let file = OpenOptions::new().write(true).create_new(true).open(dir.join("bare-sync"))?;
        file.write_all_at(&vec![0; SYNC_FILE_BYTES as usize], 0)?;
        file.sync_all()?;
        Ok(Synced { call, file: Arc::new(file), at: Arc::default() })
    }
}

impl Call for Synced {
    async fn call(&mut self) -> Result<(), Status> {
        self.call.call().await?;
        let at = self.at.fetch_add(SYNC_STEP, Ordering::Relaxed) % SYNC_FILE_BYTES;
        self.file.write_all_at(&[0x5a; ENTRY_BYTES], at)?;
        self.file.sync_data()?;
        Ok(())
    }
}

/// One append at one time.
pub(crate) fn single(plan: &Plan, dir: &Path) -> anyhow::Result<Comparison> {
    let log = Log::start(dir)?;
    let echo = echo::start(&pki(dir), Shape::default())?;
    let runtime = process::runtime()?;
    let rounds = runtime.block_on(async {
        let request = log.request(1, ENTRY_BYTES);
        let synced = [Synced::new(PingCall::connect(&echo.said, &pki(dir), as_echo(&request)?)?, dir)?];
        let append = [AppendCall::connect(&log, request)?];
        let yardstick = async |time| drive(&echo, &synced, 1, time).await;
        alternate(plan, yardstick, async |time| drive(&log.process, &append, 1, time).await).await
    })?;
    drop(runtime);
    echo.stop()?;
    log.process.stop()?;
    Ok(Comparison {
        title: format!(
            "single: durable appends of {ENTRY_BYTES} B against the echo of the same message and then one bare fdatasync \
             of the same bytes, 1 in flight"
        ),
        unit: "calls",
        names: ["limit", "append"],
        mark: Some(0.6),
        rounds,
    })
}

/// Streams of appends.
pub(crate) fn stream(plan: &Plan, dir: &Path) -> anyhow::Result<Comparison> {
    let log = Log::start(dir)?;
    let echo = echo::start(&pki(dir), Shape::default())?;
    let runtime = process::runtime()?;
    let rounds = runtime.block_on(async {
        let first = log.request(1, ENTRY_BYTES);
        // Only the first request of a stream names the log.
        let rest = AppendRequest { entries: first.entries.clone(), ..AppendRequest::default() };
        let (first_ping, rest_ping): (echo::Ping, echo::Ping) = (as_echo(&first)?, as_echo(&rest)?);
        let (mut pings, mut appends) = (Vec::new(), Vec::new());
        for _ in 0..STREAMS {
            let (requests, receiver) = mpsc::channel(IN_FLIGHT_PER_STREAM);
            requests.send(first_ping.clone()).await?;
            let mut answers = echo::exchange(&echo.said, &pki(dir), ReceiverStream::new(receiver)).await?;
            answers.message().await?;
            pings.push(Exchange { requests, answers });
            let (requests, receiver) = mpsc::channel(IN_FLIGHT_PER_STREAM);
            requests.send(first.clone()).await?;
            let mut answers = log.client()?.append_stream(ReceiverStream::new(receiver)).await?.into_inner();
            answers.message().await?;
            appends.push(Exchange { requests, answers });
        }
        let yardstick =
            async |time| drive_streams(&echo, &mut pings, &rest_ping, IN_FLIGHT_PER_STREAM, time).await;
        let subject =
            async |time| drive_streams(&log.process, &mut appends, &rest, IN_FLIGHT_PER_STREAM, time).await;
        alternate(plan, yardstick, subject).await
    })?;
    drop(runtime);
    echo.stop()?;
    log.process.stop()?;
    Ok(Comparison {
        title: format!(
            "stream: AppendStream of {ENTRY_BYTES} B against a bidirectional echo of the same messages, {STREAMS} streams \
             with {IN_FLIGHT_PER_STREAM} in flight on each, every one on its own connection"
        ),
        unit: "entries",
        names: ["echo", "append"],
        mark: Some(0.25),
        rounds,
    })
}
