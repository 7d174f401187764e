//! `cargo bench --bench runbook`: what the indexes of an audit service cost and what questions to them take, on records that are made up
//! from a seed. Prints, and asserts nothing. benches/README.md says how to read it.
//!
//! Arguments: `--quick` takes 10^5 events, `--long` 10^7; without one it is 10^6.
#![expect(clippy::print_stdout, reason = "the report is the bench's output")]

#[path = "../system/clock.rs"]
mod clock;
mod records;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs};

use anyhow::Context;
use epigraph_audit::index::follow::{self, Filler, STEP, SYNC};
use epigraph_audit::index::{Entry, Index};
use epigraph_audit::query::row::Pseudonyms;
use epigraph_audit::query::{Access, Estimate, Filter, Meter, Pseudonym, Row, Scan, Window};
use epigraph_audit::store::{EventName, Store};
use epigraph_audit::vault::{Cover, DataKey, LocalWrapper, Names};
use epigraph_core::{Entropy, Hash, LeafIndex, SourceKey};
use epigraph_event::chain::Tip;
use epigraph_event::decode::{Context as Source, cloudtrail, k8s};
use epigraph_event::v1::Result as Outcome;
use epigraph_event::{Batch, Event};
use records::{Kind, Records};
use zeroize::Zeroizing;

/// Of the records; another one makes others.
const SEED: u64 = 20_260_302;

/// Events that are sealed, kept and followed.
const FOLLOWED: u64 = 20_000;
const BATCH: u64 = 256;

/// Questions of each kind, warm and cold.
const WARM: u64 = 400;
const COLD: u64 = 50;

/// Rows that each wants.
const ROWS: u64 = 100;

const DAY_NS: i64 = 86_400 * 1_000_000_000;

#[expect(clippy::print_stderr, reason = "a bench says on standard error why it failed")]
fn main() -> ExitCode {
    let mut count = 1_000_000;
    for argument in env::args().skip(1) {
        match argument.as_str() {
            "--quick" => count = 100_000,
            "--long" => count = 10_000_000,
            // What cargo adds.
            "--bench" => {}
            other => {
                eprintln!("error: {other:?} is no argument; there are --quick and --long");
                return ExitCode::FAILURE;
            }
        }
    }
    match run(Records { seed: SEED, count }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(records: Records) -> anyhow::Result<()> {
    // Below the target folder: beside the build, and so hardly ever in memory.
    let dir = tempfile::Builder::new().prefix("bench-").tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    println!("{} events from seed {}, over {} days", records.count, records.seed, records::SPAN_NS / DAY_NS);
    let indexes = Indexes { path: dir.path().join("index.redb") };
    let index = indexes.open()?;
    plain_parse(&records)?;
    follow(&records, &dir.path().join("store"))?;
    fill(&records, &index)?;
    sizes(&records, &index)?;
    planted(&records, &index)?;
    drop(index);
    questions(&records, &indexes)?;
    Ok(dir.close()?)
}

/// Bytes that are the same in every run.
struct Fixed;

impl Entropy for Fixed {
    fn fill(&self, bytes: &mut [u8]) {
        bytes.fill(7);
    }
}

/// Bytes that differ from call to call, for what must not be the same twice.
#[derive(Default)]
struct Counting(AtomicU64);

impl Entropy for Counting {
    fn fill(&self, bytes: &mut [u8]) {
        let call = self.0.fetch_add(1, Ordering::Relaxed).to_le_bytes();
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = call[at % call.len()].wrapping_add((at / call.len()) as u8);
        }
    }
}

struct Indexes {
    path: PathBuf,
}

impl Indexes {
    fn open(&self) -> anyhow::Result<Index> {
        Ok(Index::open(&self.path, &[7; 16], Arc::new(Cover::new(&DataKey::draw(&Fixed))))?)
    }
}

/// Pseudonyms as the vault makes them, but that all people have one key.
struct Vault(Names);

impl Pseudonyms for Vault {
    type Error = std::convert::Infallible;

    fn subject(&mut self, tenant: &str, id: &str) -> Result<Option<Pseudonym>, Self::Error> {
        self.thing(tenant, id)
    }

    fn thing(&mut self, tenant: &str, id: &str) -> Result<Option<Pseudonym>, Self::Error> {
        Ok(Some(self.0.thing(tenant, id)))
    }

    fn address(&mut self, address: &str) -> Result<Option<Pseudonym>, Self::Error> {
        Ok(Some(self.0.address(address)))
    }
}

fn vault() -> Vault {
    Vault(Names::new(DataKey::draw(&Fixed)))
}

/// A record, as a collector decodes it.
fn decoded(number: u64, (kind, record): &(Kind, String)) -> anyhow::Result<Event> {
    let tenant = match kind {
        Kind::CloudTrail => String::new(),
        Kind::Kubernetes => "cluster-one".into(),
    };
    let context = Source { tenant, ..Source::default() };
    let decoded = match kind {
        Kind::CloudTrail => cloudtrail::decode(record.as_bytes(), &context),
        Kind::Kubernetes => k8s::decode(record.as_bytes(), &context),
    };
    let event = decoded.into_iter().next().and_then(Result::ok);
    event.with_context(|| format!("record {number} was not understood: {record}"))
}

/// A record, as the indexes take it in.
fn entry(
    index: &Index,
    number: u64,
    record: &(Kind, String),
    (vault, texts): (&mut Vault, &mut HashSet<Arc<str>>),
) -> anyhow::Result<Entry> {
    let (row, id) = row(number, record, vault, texts)?;
    Ok(Entry {
        row: Some(row),
        slot: number,
        leaf: number,
        name: EventName { source: Hash::from_bytes([record.0 as u8; 32]), epoch: 0, sequence: number },
        id: index.name_of_id(&id),
    })
}

/// What is held of a record, and its id.
fn row(
    number: u64,
    record: &(Kind, String),
    vault: &mut Vault,
    texts: &mut HashSet<Arc<str>>,
) -> anyhow::Result<(Row, String)> {
    let event = decoded(number, record)?;
    let leaf = LeafIndex::new(number).context("too many records")?;
    let intern = |text: &str| match texts.get(text) {
        Some(text) => Arc::clone(text),
        None => {
            let new: Arc<str> = text.into();
            texts.insert(Arc::clone(&new));
            new
        }
    };
    let ingested_s = (event.core.occurred_at_ns / 1_000_000_000 + 20) as u64;
    let Ok(row) = Row::of((leaf, number, ingested_s), &event.core, Some(&event.identity), vault, intern);
    Ok((row, event.core.event_id))
}

/// What this thread has used of its core.
fn cpu() -> anyhow::Result<Duration> {
    // Nanoseconds on the core, nanoseconds of waiting for it, slices.
    let text = fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanos = text.split(' ').next().context("/proc/thread-self/schedstat is empty")?;
    Ok(Duration::from_nanos(nanos.parse()?))
}

fn rate(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / 1e6 / time.as_secs_f64()
}

fn plain_parse(records: &Records) -> anyhow::Result<()> {
    let sample: Vec<_> = (0..records.count.min(20_000)).map(|number| records.record(number).1).collect();
    let bytes: u64 = sample.iter().map(|record| record.len() as u64).sum();
    let began = cpu()?;
    for record in &sample {
        std::hint::black_box(serde_json::from_str::<serde_json::Value>(record)?);
    }
    let took = cpu()?.saturating_sub(began);
    println!(
        "a record has {} B; serde_json parses {:.0} MB/s on a core",
        bytes / sample.len() as u64,
        rate(bytes, took)
    );
    Ok(())
}

/// The whole way from the store: events opened, compared with their leaves, and taken into indexes.
fn follow(records: &Records, dir: &Path) -> anyhow::Result<()> {
    fs::create_dir(dir)?;
    let (path, entropy) = (dir.join("events.redb"), Arc::new(Counting::default()));
    let wrapper = LocalWrapper::new(Zeroizing::new([7; 32]));
    Store::create(&path, &wrapper, &*entropy)?;
    let mut store = Store::open(&path, Arc::new(wrapper), entropy.clone())?;
    let key = SourceKey::from_seed("bench".parse()?, &Zeroizing::new([7; 32]));
    let (count, now) = (records.count.min(FOLLOWED), clock::clock().now());
    let (mut tip, mut bytes) = (Tip::default(), 0);
    for first in (0..count).step_by(BATCH as usize) {
        let mut events = Vec::new();
        for number in first..(first + BATCH).min(count) {
            let record = records.record(number);
            bytes += record.1.len() as u64;
            events.push(decoded(number, &record)?.seal(&*entropy)?);
        }
        let batch = Batch::sign(&key, &tip, events, now)?;
        tip = Tip::after(batch.signed());
        store.take(&[batch], now)?.remove(0)?;
    }
    let first = LeafIndex::new(0).context("the first leaf")?;
    store.placed(0, count, first)?;
    let reader = store.reader();
    let index = follow::open(&dir.join("index.redb"), false, &reader)?;
    let mut filler = Filler::new(Arc::new(index), reader, |_| Ok(()));
    let (began, start) = (cpu()?, clock::now());
    while filler.step()? > 0 {}
    let (cpu, wall) = (cpu()?.saturating_sub(began), start.elapsed());
    println!(
        "{count} events followed, each opened and compared with its leaf: {:.1} MB/s of raw JSON on a core, {:.1} MB/s by the clock",
        rate(bytes, cpu),
        rate(bytes, wall)
    );
    Ok(())
}

fn fill(records: &Records, index: &Index) -> anyhow::Result<()> {
    let (mut vault, start) = (vault(), clock::now());
    let (mut bytes, mut decoding, mut filling, mut waited) =
        (0_u64, Duration::ZERO, Duration::ZERO, Duration::ZERO);
    for first in (0..records.count).step_by(STEP as usize) {
        let raw: Vec<_> = (first..(first + STEP).min(records.count))
            .map(|number| (number, records.record(number)))
            .collect();
        bytes += raw.iter().map(|(_, (_, record))| record.len() as u64).sum::<u64>();
        let began = cpu()?;
        let mut texts = HashSet::new();
        let entries: Vec<_> = raw
            .iter()
            .map(|(number, record)| entry(index, *number, record, (&mut vault, &mut texts)))
            .collect::<Result<_, _>>()?;
        let (decoded, asked) = (cpu()?, clock::now());
        index.fill(&entries, (first + STEP).is_multiple_of(SYNC))?;
        waited += asked.elapsed();
        decoding += decoded.saturating_sub(began);
        filling += cpu()?.saturating_sub(decoded);
    }
    println!(
        "filled in {:.1} s, making the records included; of raw JSON on a core: {:.1} MB/s decoded into rows, {:.1} MB/s of these into the \
         indexes, {:.1} MB/s both; {:.1} MB/s into the indexes by the clock, {:.0} events/s",
        start.elapsed().as_secs_f64(),
        rate(bytes, decoding),
        rate(bytes, filling),
        rate(bytes, decoding + filling),
        rate(bytes, waited),
        records.count as f64 / waited.as_secs_f64()
    );
    Ok(())
}

fn sizes(records: &Records, index: &Index) -> anyhow::Result<()> {
    let per_event = |number: u64| number as f64 / records.count as f64;
    for (kind, progress) in index.progress()? {
        println!(
            "{:>9}: {:.2} rows and {:.0} B an event, {:.0} B a row with its counts",
            kind.as_str(),
            per_event(progress.rows),
            per_event(progress.bytes),
            progress.bytes as f64 / progress.rows.max(1) as f64
        );
    }
    println!("the file: {:.0} B an event", per_event(index.file_bytes()?));
    Ok(())
}

/// A scan over all the records.
fn everything(access: Access) -> anyhow::Result<Scan> {
    Ok(Scan {
        stream: None,
        tenant: None,
        access,
        window: Window::new(records::START_NS - DAY_NS, records::START_NS + records::SPAN_NS + DAY_NS)?,
        filter: Filter::default(),
        newest_first: true,
        limit: u64::MAX,
        after: None,
    })
}

/// What was planted is found, to the last one.
fn planted(records: &Records, index: &Index) -> anyhow::Result<()> {
    let vault = vault();
    let subject = |name: &str| vault.0.thing(records::ACCOUNT, name);
    let count = |access| {
        let mut found = 0_u64;
        let scan = everything(access)?;
        index.view()?.scan(&scan, &Meter::new(u64::MAX, u64::MAX), &mut |_| found += 1)?;
        anyhow::Ok(found)
    };
    let burst = count(Access::Actor(vec![subject(records::BURST_ACTOR)]))?;
    let logins = count(Access::Actor(vec![subject(records::LOGIN_ACTOR)]))?;
    let life = count(Access::Resource(vec![subject(records::PLANTED_BUCKET)]))?;
    let person = count(Access::Actor(vec![subject(records::PLANTED_ACTOR)]))?;
    println!(
        "planted and found: burst of failures {}/{burst}, log-ins {}/{logins}, life of a thing {}/{life}, actions of one person {}/{person}",
        records::BURST,
        records::LOGINS + 1,
        records::LIFE.len(),
        records.of_planted_actor()
    );
    Ok(())
}

/// One kind of question: its name, the days that it asks for, and by which index, given a row that is in the answer.
type Question = (&'static str, i64, fn(&Row) -> Option<Access>);

const QUESTIONS: [Question; 4] = [
    ("actor", 7, |row| Some(Access::Actor(vec![row.actor?]))),
    ("resource", 7, |row| Some(Access::Resource(vec![*row.things().first()?]))),
    ("request", 7, |row| Some(Access::Request(row.request_id.to_string()))),
    ("failures", 1, |_| Some(Access::Outcome { result: Outcome::Denied, action: None })),
];

fn questions(records: &Records, indexes: &Indexes) -> anyhow::Result<()> {
    let mut vault = vault();
    let mut scans = |question: &Question, count: u64| -> anyhow::Result<Vec<Scan>> {
        let (_, days, access) = question;
        let mut scans = Vec::new();
        // Spread over the records: whoever acts often is asked about often.
        for number in (0..).map(|at: u64| at.wrapping_mul(0x9e37_79b9_7f4a_7c15) % records.count) {
            let (row, _) = row(number, &records.record(number), &mut vault, &mut HashSet::new())?;
            let Some(access) = access(&row) else { continue };
            let from = row.occurred_at_ns - days * DAY_NS / 2;
            let window = Window::new(from, from + days * DAY_NS)?;
            scans.push(Scan { window, limit: ROWS, ..everything(access)? });
            if scans.len() as u64 == count {
                break;
            }
        }
        Ok(scans)
    };
    println!(
        "{:>9} {:>5} {:>7} {:>10} {:>10} {:>12} {:>12} {:>7}",
        "", "rows", "", "p50", "p99", "estimate p50", "p99", "est/act"
    );
    for question in &QUESTIONS {
        let index = indexes.open()?;
        let mut warm = Vec::new();
        // Once to warm up.
        for scan in scans(question, WARM)?.iter().chain(&scans(question, WARM)?) {
            warm.push(Asked::ask(&index, scan)?);
        }
        Asked::print(question.0, "warm", &mut warm[WARM as usize..]);
        drop(index);
        let mut cold = Vec::new();
        for scan in scans(question, COLD)? {
            forget(&indexes.path)?;
            cold.push(Asked::ask(&indexes.open()?, &scan)?);
        }
        Asked::print(question.0, "cold", &mut cold);
    }
    Ok(())
}

/// Makes the system forget the pages of a file.
fn forget(path: &Path) -> anyhow::Result<()> {
    let input = format!("if={}", path.display());
    let done =
        Command::new("dd").args([input.as_str(), "iflag=nocache", "count=0", "status=none"]).status()?;
    anyhow::ensure!(done.success(), "dd did not drop the pages of {}", path.display());
    Ok(())
}

/// What one question took.
struct Asked {
    estimated_in: Duration,
    answered_in: Duration,
    rows: u64,
    estimate: Estimate,
    bytes: u64,
}

impl Asked {
    fn ask(index: &Index, scan: &Scan) -> anyhow::Result<Asked> {
        let start: Instant = clock::now();
        let view = index.view()?;
        let estimate = view.estimate(scan)?;
        let estimated_in = start.elapsed();
        let meter = Meter::of(&estimate);
        let start = clock::now();
        view.scan(scan, &meter, &mut |row| {
            std::hint::black_box(row);
        })?;
        let cost = meter.cost();
        Ok(Asked {
            estimated_in,
            answered_in: start.elapsed(),
            rows: cost.rows_returned,
            estimate,
            bytes: cost.bytes_read,
        })
    }

    fn print(name: &str, how: &str, asked: &mut [Asked]) {
        let quantile = |of: fn(&Asked) -> Duration, part: f64| {
            let mut times: Vec<_> = asked.iter().map(of).collect();
            times.sort();
            let rank = (times.len() as f64 * part).ceil() as usize;
            let time = times.get(rank.saturating_sub(1)).copied().unwrap_or_default();
            format!("{:.3} ms", time.as_secs_f64() * 1e3)
        };
        let mut ratios: Vec<_> =
            asked.iter().map(|asked| asked.estimate.bytes as f64 / asked.bytes.max(1) as f64).collect();
        ratios.sort_by(f64::total_cmp);
        let rows = asked.iter().map(|asked| asked.rows).sum::<u64>() as f64 / asked.len().max(1) as f64;
        println!(
            "{name:>9} {rows:>5.1} {how:>7} {:>10} {:>10} {:>12} {:>12} {:>7.2}",
            quantile(|asked| asked.answered_in, 0.5),
            quantile(|asked| asked.answered_in, 0.99),
            quantile(|asked| asked.estimated_in, 0.5),
            quantile(|asked| asked.estimated_in, 0.99),
            ratios.get(ratios.len() / 2).copied().unwrap_or_default()
        );
    }
}
