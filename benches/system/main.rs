//! `cargo bench --bench system`: the real log, over real sockets and on a real disk, against a yardstick that is
//! measured in the same run. Absolute figures say more about the machine and its load than about Epigraph; the
//! ratios stay. benches/README.md says how to read them.
//!
//! Arguments: names of measures, all without one; `--quick` runs each just long enough to show that it works; `--long`
//! fills a log with 10^7 entries instead, `--long collect` lets 5 * 10^6 audit events through.

mod append;
mod audit;
mod clock;
mod collect;
mod cosign;
mod decode;
mod disk;
mod echo;
mod integrate;
mod load;
mod log;
mod long;
mod postgres;
mod process;
mod publish;
mod read;
#[path = "../runbook/records.rs"]
#[expect(dead_code, reason = "what is planted among them is another bench's")]
mod records;
mod report;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use std::{env, thread};

use anyhow::Context;
use disk::FileSystem;
use report::Report;

/// Set to anything, the run goes on where nothing is ever written to a disk.
const ALLOW_MEMORY: &str = "EPIGRAPH_BENCH_ALLOW_TMPFS";

const ENTRY_BYTES: usize = 256;

/// How long and how often.
struct Plan {
    rounds: usize,
    warm_up: Duration,
    half_round: Duration,
    /// Entries of a log that is read, a power of two.
    tree: u64,
    /// Entries of the long run.
    long: u64,
    /// Events of the first round of `collect`, which says how many the others have.
    collected_first: u64,
    /// Events of its long run.
    long_collected: u64,
}

const FULL: Plan = Plan {
    rounds: 9,
    warm_up: Duration::from_millis(1_000),
    half_round: Duration::from_millis(1_500),
    tree: 1 << 20,
    long: 10_000_000,
    collected_first: 16_384,
    long_collected: 5_000_000,
};
const QUICK: Plan = Plan {
    rounds: 3,
    warm_up: Duration::from_millis(50),
    half_round: Duration::from_millis(100),
    tree: 1 << 16,
    long: 100_000,
    collected_first: 1_024,
    long_collected: 200_000,
};

/// A measure makes what it needs in a directory that is not there yet.
type Measure = fn(&Plan, &Path) -> anyhow::Result<Box<dyn Report>>;

const MEASURES: [(&str, Measure); 12] = [
    ("unary", |plan, dir| boxed(append::unary(plan, dir))),
    ("single", |plan, dir| boxed(append::single(plan, dir))),
    ("batch", |plan, dir| boxed(append::batch(plan, dir))),
    ("stream", |plan, dir| boxed(append::stream(plan, dir))),
    ("proof", |plan, dir| boxed(read::proof(plan, dir))),
    ("follow", |plan, dir| boxed(read::follow(plan, dir))),
    ("audit", |plan, dir| boxed(audit::audit(plan, dir))),
    ("integrate", |plan, dir| boxed(integrate::integrate(plan, dir))),
    ("cosign", |plan, dir| boxed(cosign::cosign(plan, dir))),
    ("publish", |plan, dir| boxed(publish::publish(plan, dir))),
    ("collect", |plan, dir| boxed(collect::collect(plan, dir))),
    ("decode", |plan, dir| boxed(decode::decode(plan, dir))),
];

fn boxed<R: Report + 'static>(measured: anyhow::Result<R>) -> anyhow::Result<Box<dyn Report>> {
    Ok(Box::new(measured?))
}

#[expect(clippy::print_stderr, reason = "a bench says on standard error why it failed")]
fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> anyhow::Result<()> {
    if let [role, pki, items, bytes] = arguments
        && role == echo::SERVE_ECHO
    {
        return echo::serve(Path::new(pki), echo::Shape { items: items.parse()?, bytes: bytes.parse()? });
    }
    if let [role, pki, log, file, logs] = arguments
        && role == echo::cosign::SERVE_COSIGNING
    {
        return echo::cosign::serve(Path::new(pki), log, Path::new(file), logs.parse()?);
    }
    let (mut plan, mut long, mut names) = (&FULL, false, Vec::new());
    for argument in arguments {
        match argument.as_str() {
            "--quick" => plan = &QUICK,
            "--long" => long = true,
            // What cargo adds.
            "--bench" => {}
            name => {
                let known = MEASURES.map(|(name, _)| name).join(", ");
                let measure = MEASURES.into_iter().find(|(known, _)| *known == name);
                names.push(
                    measure.with_context(|| format!("no measure is called {name:?}; there are {known}"))?,
                );
            }
        }
    }
    // Below the target folder: beside the build, and so hardly ever in memory.
    let dir = tempfile::Builder::new().prefix("bench-").tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let file_system = FileSystem::of(dir.path())?;
    anyhow::ensure!(
        !file_system.is_memory() || env::var_os(ALLOW_MEMORY).is_some(),
        "{} is on {}, where a sync costs nothing: set CARGO_TARGET_DIR to a folder on a disk, or {ALLOW_MEMORY}=1",
        dir.path().display(),
        file_system.kind
    );
    report::machine(thread::available_parallelism()?.get());
    report::disk(&file_system, disk::bare_syncs(dir.path())?);
    if long {
        match names.as_slice() {
            [] => long::run(plan.long, dir.path())?,
            [("collect", _)] => collect::long(plan.long_collected, dir.path())?,
            _ => anyhow::bail!("of the measures only collect has a long run"),
        }
        return Ok(dir.close()?);
    }
    if names.is_empty() {
        names.extend(MEASURES);
    }
    for (name, measure) in names {
        let own = dir.path().join(name);
        measure(plan, &own).with_context(|| format!("the measure {name} failed"))?.print();
        std::fs::remove_dir_all(own)?;
    }
    Ok(dir.close()?)
}
