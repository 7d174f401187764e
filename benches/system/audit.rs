//! The monitor's full audit: every entry of a log re-read over mutual TLS, and its root made again.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use epigraph_core::checkpoint::decode_text;
use epigraph_core::hash::leaf_hash;
use epigraph_core::note::Parsed;
use epigraph_core::{Entropy, Frontier, Hash, Origin, TreeHead};
use epigraph_monitor::audit::{EntryRule, WellFormed};
use epigraph_monitor::event::{Event, Vantage, VantageKind};
use epigraph_monitor::vantage::reading::{Rules, tail};
use epigraph_monitor::vantage::{MAX_UNHEARD, Message, Outbox, Reader};
use tokio::sync::{mpsc, watch};

use crate::echo::{self, Shape, as_echo};
use crate::load::{Load, alternate};
use crate::log::{Log, pki};
use crate::process::Served;
use crate::report::Comparison;
use crate::{ENTRY_BYTES, Plan, clock, process};

/// Entries of one event of `Follow`: 256 KiB of them.
const EVENT_ENTRIES: usize = 1024;

/// One audit after the other, each from the first entry on.
pub(crate) fn audit(plan: &Plan, dir: &Path) -> anyhow::Result<Comparison> {
    let log = Log::start(dir)?;
    let echo = start_echo(dir)?;
    let runtime = process::runtime()?;
    let rounds = runtime.block_on(async {
        log.fill(plan.tree, ENTRY_BYTES).await?;
        let yardstick = async |time| hashed_stream(&log, &echo, dir, Until::Time(time)).await;
        let subject = async |time| audited(&log, time).await;
        alternate(plan, yardstick, subject).await
    })?;
    drop(runtime);
    echo.stop()?;
    log.process.stop()?;
    Ok(Comparison {
        title: format!(
            "audit: the monitor's audit of {} entries of {ENTRY_BYTES} B from the first on, again and again, against a bare \
             stream of the same events with SHA-256 over each entry",
            plan.tree
        ),
        unit: "entries",
        names: ["stream", "audit"],
        mark: Some(0.6),
        rounds,
    })
}

/// The stream of events that an audit is compared with.
pub(crate) fn start_echo(dir: &Path) -> anyhow::Result<Served> {
    echo::start(&pki(dir), Shape { items: EVENT_ENTRIES, bytes: ENTRY_BYTES })
}

/// When to stop.
pub(crate) enum Until {
    /// After this long.
    Time(Duration),
    /// After so many entries.
    Entries(u64),
}

/// Receives a bare stream, and hashes each of its entries.
pub(crate) async fn hashed_stream(
    log: &Log,
    echo: &Served,
    dir: &Path,
    until: Until,
) -> anyhow::Result<Load> {
    let ask: echo::Ask = as_echo(&log.follow_request())?;
    let mut chunks = echo::receive(&echo.said, &pki(dir), ask).await?;
    let (cpu, start) = (echo.cpu()?, clock::now());
    let mut load = Load::default();
    let mut last = Hash::EMPTY_ROOT;
    let goes_on = |load: &Load| match until {
        Until::Time(time) => start.elapsed() < time,
        Until::Entries(entries) => load.done < entries,
    };
    while goes_on(&load) {
        let asked = clock::now();
        let chunk = chunks.message().await?.and_then(|chunk| chunk.inner).context("the stream has ended")?;
        chunk.entries.iter().for_each(|entry| last = leaf_hash(entry));
        load.latencies.push(asked.elapsed());
        load.done += chunk.entries.len() as u64;
    }
    std::hint::black_box(last);
    load.elapsed = start.elapsed();
    load.server_cpu = echo.cpu()? - cpu;
    Ok(load)
}

async fn audited(log: &Log, time: Duration) -> anyhow::Result<Load> {
    let (cpu, start) = (log.process.cpu()?, clock::now());
    let mut load = Load::default();
    while start.elapsed() < time {
        let asked = clock::now();
        load.done += once(log).await?;
        load.latencies.push(asked.elapsed());
    }
    load.elapsed = start.elapsed();
    load.server_cpu = log.process.cpu()? - cpu;
    Ok(load)
}

/// One audit from the first entry on to the newest head; returns how many entries that were.
pub(crate) async fn once(log: &Log) -> anyhow::Result<u64> {
    let connection = log.peer()?;
    let note = connection.checkpoint(&log.origin).await?;
    let (_, head) = decode_text(Parsed::parse(&note)?.text())?;
    let vantage = Vantage { name: "log".to_owned(), kind: VantageKind::Log };
    let reader = Reader { vantage, origin: Origin::new(&log.origin)?, log: connection };
    reach(&reader, head).await?;
    Ok(head.size.get())
}

/// Drives the audit as the monitor does, and hears what it says in the loop's place.
async fn reach(reader: &Reader, head: TreeHead) -> anyhow::Result<()> {
    let (sender, mut inbox) = mpsc::channel(MAX_UNHEARD);
    let outbox = Outbox::new(0, clock::clock(), Arc::new(NotRandom), sender);
    let rule: Box<dyn EntryRule> = Box::new(WellFormed);
    let rules = Rules { each: [rule].into(), sequence: None };
    let (_ask, asked) = watch::channel(Some(head));
    let heard = async {
        while let Some((_, message)) = inbox.recv().await {
            match message {
                Message::Event(Event::Audited { head: reached, .. }) => {
                    anyhow::ensure!(reached == head, "another head was audited");
                    return Ok(());
                }
                Message::Event(event @ (Event::AuditFound { .. } | Event::Unreachable { .. })) => {
                    anyhow::bail!("the audit of an honest log came to this: {event:?}");
                }
                _ => {}
            }
        }
        anyhow::bail!("the audit has ended")
    };
    tokio::select! {
        () = tail(reader, (Frontier::new(), ""), false, asked, &rules, &outbox) => anyhow::bail!("the audit has ended"),
        heard = heard => heard,
    }
}

/// Always the same, which is enough for waiting.
struct NotRandom;

impl Entropy for NotRandom {
    fn fill(&self, bytes: &mut [u8]) {
        bytes.fill(0);
    }
}
