//! Audit events from files into a log: read, decoded, tokenised, signed and spooled by `epigraph collect`, verified, sealed and kept by
//! `serve audit`, their leaves put into the log. Against appending the leaves alone, and against PostgreSQL taking the same events.
#![expect(clippy::print_stdout, reason = "the report is the bench's output")]

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use epigraph_event::leaf::LEAF_BYTES;

use crate::disk::{self, FileSystem};
use crate::load::{Load, drive};
use crate::log::{AppendCall, Log, PROGRAM, serve, set_up};
use crate::long::{MIB, ensure_room, memory};
use crate::postgres::{Answered, Postgres};
use crate::process::Served;
use crate::publish;
use crate::records::{Kind, Records};
use crate::report::{self, Comparison, Report};
use crate::{Plan, clock, process};

/// More than any run has.
const RECORDS: Records = Records { seed: 20_260_302, count: 100_000_000 };

/// As a collector signs them.
pub(crate) const BATCH: u64 = 256;

/// Of the yardstick: as in `batch`.
const BATCHES_IN_FLIGHT: usize = 8;

/// A process that used no processor time for so long does nothing any more.
const AT_REST: Duration = Duration::from_millis(300);

/// Lines of the table of memory.
const STEPS: u64 = 10;
/// Disk for one event: sealed, indexed, its leaf, and pages that were not used again yet.
const ROOM_PER_EVENT: u64 = 8_000;
/// And what takes room however few there are: the spool too.
const ROOM: u64 = 2 << 30;

/// The processes of an audited log, but for the collector.
struct Audited {
    dir: PathBuf,
    log: Log,
    audit: Served,
    others: Vec<Served>,
}

impl Audited {
    fn start(dir: &Path) -> anyhow::Result<Audited> {
        set_up(dir, &[])?;
        let others = publish::others(dir)?;
        let log = Log::start_again(dir)?;
        let audit = serve(dir, "audit", "audit")?.0;
        process::runtime()?.block_on(publish::ready(&log))?;
        Ok(Audited { dir: dir.to_owned(), log, audit, others })
    }

    /// What starts a collector, but for what it reads.
    fn collect(&self) -> Command {
        let mut collect = Command::new(PROGRAM);
        collect.args(["collect", "--once", "--json", "--profile"]).arg(&self.dir);
        collect
    }

    /// Waits until the indexes have followed, which nobody else waits for.
    fn rest(&self) -> anyhow::Result<()> {
        loop {
            let before = self.audit.cpu()? + self.log.process.cpu()?;
            std::thread::sleep(AT_REST);
            if self.audit.cpu()? + self.log.process.cpu()? <= before + process::TICK {
                return Ok(());
            }
        }
    }

    fn stop(self) -> anyhow::Result<()> {
        // Who still asks others goes before them.
        self.audit.stop()?;
        self.log.process.stop()?;
        self.others.into_iter().try_for_each(Served::stop)
    }
}

/// A file of records of each kind.
struct Files([(Kind, &'static str, PathBuf); 2]);

impl Files {
    /// Writes the records of these numbers.
    fn write(dir: &Path, numbers: std::ops::Range<u64>) -> anyhow::Result<Files> {
        let path = |name: &str| dir.join(format!("{name}-{}.jsonl", numbers.start));
        let files = [
            (Kind::CloudTrail, "--cloudtrail", path("cloudtrail")),
            (Kind::Kubernetes, "--k8s-audit", path("k8s")),
        ];
        let mut open = Vec::new();
        for (_, _, path) in &files {
            open.push(BufWriter::new(File::create_new(path)?));
        }
        for number in numbers {
            let (kind, record) = RECORDS.record(number);
            let place = files.iter().position(|(of, ..)| *of == kind).unwrap_or_default();
            writeln!(open[place], "{record}")?;
        }
        open.iter_mut().try_for_each(BufWriter::flush)?;
        Ok(Files(files))
    }

    fn remove(self) -> anyhow::Result<()> {
        Ok(self.0.into_iter().try_for_each(|(_, _, path)| fs::remove_file(path))?)
    }
}

/// What it takes besides time, over the events of all rounds.
#[derive(Default)]
struct Shares {
    events: u64,
    /// Processor time of each process.
    collector: Duration,
    audit: Duration,
    log: Duration,
    others: Duration,
    /// After everything was in the log: the indexes.
    indexing: Duration,
    indexing_audit: Duration,
    /// Bytes written to the disk until both were at rest, if the system counts them.
    collected_bytes: Option<u64>,
    inserted_bytes: Option<u64>,
}

/// What was written to the disk while this was done, and until nothing was left to write.
fn written_by<T>(
    file_system: &FileSystem,
    bytes: &mut Option<u64>,
    work: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    disk::settle()?;
    let before = file_system.written();
    let done = work()?;
    disk::settle()?;
    let written = file_system.written().zip(before).map(|(after, before)| after.saturating_sub(before));
    *bytes = bytes.zip(written).map(|(sum, more)| sum + more);
    Ok(done)
}

/// Collects these files in a process of its own, to the end, where everything is proven to be in the log.
fn collected(audited: &Audited, files: &Files, shares: &mut Shares) -> anyhow::Result<Load> {
    let before = (audited.audit.cpu()?, audited.log.process.cpu()?, cpu_of(&audited.others)?);
    let mut collect = audited.collect();
    for (_, flag, path) in &files.0 {
        collect.arg(flag).arg(path);
    }
    let start = clock::now();
    // The one line that it says is what it did.
    let collector = Served::start(collect.stderr(Stdio::null()))?;
    let elapsed = start.elapsed();
    let report: serde_json::Value = serde_json::from_str(&collector.said)?;
    let cpu = collector.cpu()?;
    collector.stop()?;
    let inputs = report["inputs"].as_array().context("no inputs")?;
    let events = inputs.iter().filter_map(|input| input["events"].as_u64()).sum();
    anyhow::ensure!(report["waiting_batches"] == 0, "not everything was delivered: {report}");
    let audit = audited.audit.cpu()? - before.0;
    shares.events += events;
    shares.collector += cpu;
    shares.audit += audit;
    shares.log += audited.log.process.cpu()? - before.1;
    shares.others += cpu_of(&audited.others)? - before.2;
    Ok(Load { elapsed, done: events, latencies: vec![elapsed], server_cpu: audit })
}

fn cpu_of(processes: &[Served]) -> anyhow::Result<Duration> {
    processes.iter().map(Served::cpu).sum()
}

pub(crate) fn collect(plan: &Plan, dir: &Path) -> anyhow::Result<Collected> {
    let audited = Audited::start(dir)?;
    let postgres = Postgres::start(dir)?;
    let runtime = process::runtime()?;
    let append = [AppendCall::connect_within(
        &runtime,
        &audited.log,
        audited.log.request(BATCH as usize, LEAF_BYTES),
    )?];
    let append_for = |time| runtime.block_on(drive(&audited.log.process, &append, BATCHES_IN_FLIGHT, time));
    append_for(plan.warm_up)?;
    // The warm-up says how many events a round has.
    let (warm_up, mut per_round) = (plan.collected_first, plan.collected_first);
    let (mut next, mut against_log, mut against_postgres) = (0, Vec::new(), Vec::new());
    let fresh = || Shares { collected_bytes: Some(0), inserted_bytes: Some(0), ..Shares::default() };
    let (file_system, mut shares) = (FileSystem::of(dir)?, fresh());
    for round in 0..=plan.rounds {
        let numbers = next..next + per_round;
        next = numbers.end;
        let files = Files::write(dir, numbers.clone())?;
        disk::settle()?;
        let mut append = append_for(plan.half_round)?;
        append.done *= BATCH;
        let insert = |postgres: &Postgres| {
            let inserted = postgres.insert(RECORDS, numbers)?;
            postgres.rest()?;
            Ok(inserted)
        };
        let inserted = match &postgres {
            Answered::Serves(postgres) => {
                Some(written_by(&file_system, &mut shares.inserted_bytes, || insert(postgres))?)
            }
            Answered::Not(_) => None,
        };
        audited.rest()?;
        let mut bytes = shares.collected_bytes;
        let subject = written_by(&file_system, &mut bytes, || {
            let collected = collected(&audited, &files, &mut shares)?;
            let (settling, audit) = (clock::now(), audited.audit.cpu()?);
            audited.rest()?;
            shares.indexing += settling.elapsed().saturating_sub(AT_REST);
            shares.indexing_audit += audited.audit.cpu()? - audit;
            Ok(collected)
        })?;
        shares.collected_bytes = bytes;
        files.remove()?;
        if round == 0 {
            per_round =
                (warm_up as f64 * plan.half_round.as_secs_f64() / subject.elapsed.as_secs_f64()) as u64;
            per_round = per_round.max(BATCH);
            shares = fresh();
            continue;
        }
        if let Some(inserted) = inserted {
            against_postgres.push([inserted, subject.clone()]);
        }
        against_log.push([append, subject]);
    }
    drop(append);
    drop(runtime);
    audited.stop()?;
    let why_not = match postgres {
        Answered::Serves(postgres) => postgres.stop().map(|()| None)?,
        Answered::Not(why) => Some(why),
    };
    Ok(Collected {
        against_log: Comparison {
            title: format!(
                "collect: audit events of some 1 kB from files until each is proven to be in the log, in batches of {BATCH}, against \
                 durable appends of leaves of {LEAF_BYTES} B in batches of {BATCH}, {BATCHES_IN_FLIGHT} in flight on one connection"
            ),
            unit: "events",
            names: ["append", "collect"],
            mark: Some(0.4),
            rounds: against_log,
        },
        against_postgres: why_not.map_or_else(
            || {
                Ok(Comparison {
                    title: format!(
                        "collect: the same against {}, which takes the same events in {BATCH}-row statements",
                        crate::postgres::WHAT
                    ),
                    unit: "events",
                    names: ["insert", "collect"],
                    mark: Some(1.0),
                    rounds: against_postgres,
                })
            },
            Err,
        ),
        shares,
    })
}

/// What `collect` gave.
pub(crate) struct Collected {
    against_log: Comparison,
    /// Or why there is no such comparison.
    against_postgres: Result<Comparison, String>,
    shares: Shares,
}

impl Report for Collected {
    fn print(&self) {
        self.against_log.print();
        let Shares { events, collector, audit, log, others, indexing, indexing_audit, .. } = &self.shares;
        let each = |time: &Duration| time.as_secs_f64() * 1e6 / *events as f64;
        println!(
            "cpu us/event: collector {:.1}, audit service {:.1} (and {:.1} for indexes, once all was in the log, in {:.1} us of the \
             clock), log {:.1}, signer and witnesses {:.1}",
            each(collector),
            each(audit),
            each(indexing_audit),
            each(indexing),
            each(log),
            each(others)
        );
        let bytes = |bytes: Option<u64>| {
            bytes.map_or_else(|| "?".to_owned(), |bytes| format!("{:.0}", bytes as f64 / *events as f64))
        };
        println!(
            "bytes written to the disk for each event, in the end: {}",
            bytes(self.shares.collected_bytes)
        );
        match &self.against_postgres {
            Ok(comparison) => {
                comparison.print();
                println!(
                    "bytes written to the disk for each event, in the end: {} by {}",
                    bytes(self.shares.inserted_bytes),
                    comparison.names[0]
                );
                let indexed = |[inserted, collected]: &[Load; 2]| {
                    let indexing = indexing.as_secs_f64() * collected.done as f64 / *events as f64;
                    collected.done as f64 / (collected.elapsed.as_secs_f64() + indexing) / inserted.rate()
                };
                let ratio = report::median(comparison.rounds.iter().map(indexed));
                println!("until the indexes have everything too: {ratio:.3}, the median of the rounds");
            }
            Err(why) => println!("no comparison with PostgreSQL: {why}"),
        }
    }
}

/// Lets many events through, and prints what memory the collector and the audit service take on the way.
pub(crate) fn long(events: u64, dir: &Path) -> anyhow::Result<()> {
    ensure_room(dir, events * ROOM_PER_EVENT + ROOM)?;
    let home = dir.join("long-collect");
    let audited = Audited::start(&home)?;
    println!("\nlong: {events} CloudTrail events through collector and audit service");
    println!(
        "{:>10} {:>10} {:>22} {:>22}",
        "events", "events/s", "collector RSS / peak", "audit RSS / peak, MiB"
    );
    let mut collect = audited.collect();
    collect.args(["--cloudtrail", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut collector = collect.spawn()?;
    let mut stdin = BufWriter::new(collector.stdin.take().context("a piped input")?);
    let start = clock::now();
    let (mut began, mut fed) = (start, 0);
    for (kind, record) in (0..).map(|number| RECORDS.record(number)) {
        // Standard input has one kind.
        if kind != Kind::CloudTrail {
            continue;
        }
        writeln!(stdin, "{record}")?;
        fed += 1;
        if fed % (events / STEPS).max(1) == 0 {
            let rate = (events / STEPS) as f64 / began.elapsed().as_secs_f64();
            began = clock::now();
            let of = |id| anyhow::Ok([memory(id, "VmRSS:")? / MIB, memory(id, "VmHWM:")? / MIB]);
            let ([own, own_peak], [audit, audit_peak]) = (of(collector.id())?, of(audited.audit.id())?);
            println!(
                "{fed:>10} {rate:>10.0} {own:>13.0} / {own_peak:>6.0} {audit:>13.0} / {audit_peak:>6.0}"
            );
        }
        if fed >= events {
            break;
        }
    }
    stdin.flush()?;
    drop(stdin);
    let output = collector.wait_with_output()?;
    anyhow::ensure!(output.status.success(), "the collector ended with {}", output.status);
    println!("all proven to be in the log after {:.1} s", start.elapsed().as_secs_f64());
    audited.rest()?;
    println!("all in the indexes after {:.1} s", start.elapsed().as_secs_f64());
    let store = fs::metadata(home.join("audit/events.redb"))?.len() as f64;
    let index = fs::metadata(home.join("audit/index.redb"))?.len() as f64;
    println!(
        "disk: {:.0} B an event in the store, {:.0} in the indexes",
        store / events as f64,
        index / events as f64
    );
    // As a crash would: the next start reads and checks everything.
    let Audited { dir, audit, log, others } = audited;
    audit.stop()?;
    for after in ["a clean stop", "kill -9"] {
        let start = clock::now();
        let audit = serve(&dir, "audit", "audit")?.0;
        println!(
            "start after {after}: serves after {:.2} s, {:.2} s for each GB of the store",
            start.elapsed().as_secs_f64(),
            start.elapsed().as_secs_f64() / (store / 1e9)
        );
        audit.kill()?;
    }
    log.process.stop()?;
    others.into_iter().try_for_each(Served::stop)?;
    Ok(fs::remove_dir_all(home)?)
}
