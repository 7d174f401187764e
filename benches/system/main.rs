//! `cargo bench --bench system`: the real log, over real sockets and on a real disk, against a yardstick that is
//! measured in the same run. Absolute figures say more about the machine and its load than about Epigraph; the
//! ratios stay. benches/README.md says how to read them.
//!
//! Arguments: `--quick` runs each part just long enough to show that it works.

mod clock;
mod disk;
mod echo;
mod load;
mod log;
mod process;
mod report;

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;
use std::{env, thread};

use disk::FileSystem;
use echo::EchoCall;
use load::drive;
use log::{Log, pki};
use process::Served;
use report::Comparison;

/// The hidden argument with which this program starts itself as the echo's server.
const SERVE_ECHO: &str = "--serve-echo";

/// Set to anything, the run goes on where nothing is ever written to a disk.
const ALLOW_MEMORY: &str = "EPIGRAPH_BENCH_ALLOW_TMPFS";

const CONNECTIONS: usize = 8;
const IN_FLIGHT_PER_CONNECTION: usize = 32;
const ENTRY_BYTES: usize = 256;

/// How long and how often.
struct Plan {
    rounds: usize,
    warm_up: Duration,
    half_round: Duration,
}

const FULL: Plan =
    Plan { rounds: 9, warm_up: Duration::from_millis(1_000), half_round: Duration::from_millis(1_500) };
const QUICK: Plan =
    Plan { rounds: 5, warm_up: Duration::from_millis(50), half_round: Duration::from_millis(100) };

#[expect(clippy::print_stderr, reason = "a bench says on standard error why it failed")]
fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let result = match arguments.as_slice() {
        [role, pki] if role == SERVE_ECHO => echo::serve(Path::new(pki)),
        _ if arguments.iter().any(|argument| argument == "--quick") => bench(&QUICK),
        _ => bench(&FULL),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(plan: &Plan) -> anyhow::Result<()> {
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

    let quickstart = dir.path().join("quickstart");
    let log = Log::start(&quickstart)?;
    let mut command = Command::new(env::current_exe()?);
    let echo = Served::start(command.arg(SERVE_ECHO).arg(pki(&quickstart)))?;
    let runtime = process::runtime()?;
    runtime.block_on(append_against_echo(plan, &log, &echo, &pki(&quickstart)))?.print();

    // The connections end with the runtime: a server that stops waits for those that are open.
    drop(runtime);
    echo.stop()?;
    log.process.stop()?;
    Ok(dir.close()?)
}

/// Unary durable appends of one entry.
async fn append_against_echo(
    plan: &Plan,
    log: &Log,
    echo: &Served,
    pki: &Path,
) -> anyhow::Result<Comparison> {
    let appends = (0..CONNECTIONS).map(|_| log.appender(ENTRY_BYTES)).collect::<Result<Vec<_>, _>>()?;
    let request_bytes = appends.first().map_or(0, log::AppendCall::request_bytes);
    let echoes = (0..CONNECTIONS)
        .map(|_| EchoCall::connect(&echo.said, pki, request_bytes))
        .collect::<Result<Vec<_>, _>>()?;
    drive(echo, &echoes, IN_FLIGHT_PER_CONNECTION, plan.warm_up).await?;
    drive(&log.process, &appends, IN_FLIGHT_PER_CONNECTION, plan.warm_up).await?;
    let mut rounds = Vec::with_capacity(plan.rounds);
    for _ in 0..plan.rounds {
        let echoed = drive(echo, &echoes, IN_FLIGHT_PER_CONNECTION, plan.half_round).await?;
        let appended = drive(&log.process, &appends, IN_FLIGHT_PER_CONNECTION, plan.half_round).await?;
        rounds.push([echoed, appended]);
    }
    let in_flight = CONNECTIONS * IN_FLIGHT_PER_CONNECTION;
    Ok(Comparison {
        title: format!(
            "unary durable appends of {ENTRY_BYTES} B against an mTLS echo of the same sizes: {in_flight} in flight on \
             {CONNECTIONS} connections, {:.1} s each a round",
            plan.half_round.as_secs_f64()
        ),
        names: ["echo", "append"],
        mark: 0.6,
        rounds,
    })
}
