//! `epigraph quickstart`: the whole house on loopback, with throw-away keys, and a look at why to believe it.
//!
//! Log, signer, witnesses and monitor are child processes from the first day, as they would be in production; this process is the log's
//! client.

mod create;
mod demo;
mod directory;
mod monitor;
mod process;
mod processes;
mod role;

use std::env;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use epigraph_core::hash::leaf_hash;
use epigraph_core::tlog_proof::Receipt;
use epigraph_core::{LeafIndex, Policy, TreeSize};
use epigraph_rpc::Wait;

use crate::cli::append::{Totals, append_lines, open, rate, skipped};
use crate::cli::{DEFAULT_PROFILE, Quickstart};
use crate::failure::{Failure, Outcome};
use crate::input::Lines;
use crate::profile::Profile;
use crate::receipts::ReceiptDir;
use crate::runtime::{self, Stopwatch};
use crate::terminal::{Terminal, shell};
use create::{SAMPLE_FILE, SAMPLE_ID, SAMPLE_QUESTION};
use directory::Directory;
use monitor::{From, Watched};
use processes::Processes;
use role::{Role, THRESHOLD};

/// Audit events to begin with, where no input is given.
const SAMPLE: &[u8] = include_bytes!("quickstart/sample.jsonl");

/// Receipts that are kept as files; the others are verified and can be fetched again at any time.
const KEPT_RECEIPTS: u64 = 100;

/// How long the monitor may take to look: it is told of each head,
const MONITOR: Duration = Duration::from_secs(60);

/// and reads so many entries in a second on any machine.
const MONITOR_ENTRIES_A_SECOND: u64 = 5_000;

/// The entry that the tampering is shown on, counted from the first of this run.
const SHOWN_ENTRY: usize = 3;

pub fn run(args: &Quickstart, terminal: Terminal) -> Outcome {
    if let Some(demo) = args.demo {
        return demo::run(args, demo, terminal);
    }
    let dir = args.dir.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_PROFILE));
    let input: Box<dyn std::io::BufRead> = match &args.input {
        Some(path) => open(path)?,
        None => Box::new(SAMPLE),
    };
    terminal.line(format_args!(
        "{} in {}: throw-away keys and a throw-away CA, not for production",
        terminal.bold("Epigraph quickstart"),
        dir.display()
    ));
    terminal.line("");
    let runtime = runtime::runtime().map_err(Failure::state)?;
    runtime.block_on(show(args, &dir, Lines::new(input), terminal))
}

async fn show(
    args: &Quickstart,
    dir: &Path,
    lines: Lines<Box<dyn std::io::BufRead>>,
    terminal: Terminal,
) -> Outcome {
    let mut stop = pin!(runtime::stop_signal().map_err(Failure::state)?);
    let whole = Stopwatch::start();
    let mut phases = Phases { terminal, json: Vec::new() };

    let watch = Stopwatch::start();
    let directory = Directory::prepare(dir, args.alone)?;
    let parts = if directory.alone() {
        ""
    } else {
        ", with a signer, four witnesses, a monitor and an audit service"
    };
    phases.done(
        if directory.is_new { "keys and certificates" } else { "directory found" },
        watch.elapsed(),
        format_args!("log {}{parts}", directory.origin),
    );
    if directory.alone() && !args.alone {
        terminal.line(
            "    this log was made without witnesses, and goes on as it was; for one that has four, choose another --dir",
        );
    }

    let stopped =
        || Failure::usage("stopped before everything was appended; the same command goes on with this log");
    let mut processes = tokio::select! {
        biased;
        () = &mut stop => return Err(stopped()),
        started = Processes::start(&directory, Vec::new(), &mut phases) => started?,
    };
    let metrics_address = processes.metrics_address.clone();
    let showing = async {
        if let (false, Some(address)) = (directory.alone(), &metrics_address) {
            let watch = Stopwatch::start();
            processes::ready(address, terminal).await?;
            let detail =
                format!("log, signer and witnesses hold one history; {THRESHOLD} witnesses must cosign");
            phases.done("all agree", watch.elapsed(), detail);
        }
        let shown = append_and_verify(&directory, lines, &mut phases).await?;
        if directory.roles().contains(&Role::Monitor)
            && let Some(last) = shown.totals.last_index
        {
            let watch = Stopwatch::start();
            let monitor = Watched::new(&directory)?;
            let size = last.size_after().get();
            let patience = MONITOR + Duration::from_secs(size / MONITOR_ENTRIES_A_SECOND);
            let (places, open) = monitor.calm(size, From::TheLog, patience).await?;
            let found = match open {
                0 => "nothing found".to_owned(),
                open => format!(
                    "nothing proven, and findings that are open: {open} (`epigraph monitor findings`)"
                ),
            };
            let detail = format!("from {places} places, and read every entry: {found}");
            phases.done("the monitor looked", watch.elapsed(), detail);
        }
        Ok(shown)
    };
    let shown = tokio::select! {
        biased;
        () = &mut stop => Err(stopped()),
        shown = showing => shown,
        failure = processes.ended(&directory, terminal) => Err(failure),
    };
    let shown = match shown {
        Ok(shown) => shown,
        Err(failure) => {
            processes.stop().await;
            return Err(failure);
        }
    };
    let tampering = shown.example.as_ref().map(|example| show_tampering(example, terminal)).transpose()?;
    if let Some(example) = &shown.example {
        show_next(args, &directory, example, terminal);
    }
    terminal.object(&serde_json::json!({
        "directory": dir,
        "continued": !directory.is_new,
        "origin": directory.origin,
        "address": processes.address,
        "metrics_address": processes.metrics_address,
        "processes": processes.list(),
        "phases": phases.json,
        "appended": shown.totals.entries,
        "bytes": shown.totals.bytes,
        "first_index": shown.totals.first_index.map(LeafIndex::get),
        "last_index": shown.totals.last_index.map(LeafIndex::get),
        "skipped_lines": shown.totals.skipped,
        "receipts_verified": shown.verified,
        "receipts_kept": shown.kept,
        "tampering_refused": tampering,
        "total_ms": whole.elapsed().as_millis() as u64,
    }));

    if !args.once {
        terminal.line(format_args!(
            "\nServing on {} until Ctrl-C. Come back with the same command: the log continues where it was.",
            processes.address
        ));
        tokio::select! {
            biased;
            () = stop => {}
            failure = processes.ended(&directory, terminal) => {
                processes.stop().await;
                return Err(failure);
            }
        }
    }
    processes.stop().await;
    if !args.once {
        terminal.line(format_args!(
            "\nStopped. The log is in {}; to go on: {} quickstart --dir {}",
            dir.display(),
            shell(&program()),
            shell(dir)
        ));
    }
    if shown.totals.skipped.is_empty() { Ok(()) } else { Err(skipped(&shown.totals.skipped)) }
}

/// The ticked-off phases, with their times.
struct Phases {
    terminal: Terminal,
    json: Vec<serde_json::Value>,
}

impl Phases {
    fn done(&mut self, name: &str, time: Duration, detail: impl std::fmt::Display) {
        let terminal = self.terminal;
        let millis = time.as_millis() as u64;
        terminal.line(format_args!(
            "  {} {name:<22} {millis:>6} ms   {}",
            terminal.good("✓"),
            terminal.dim(&detail)
        ));
        self.json.push(serde_json::json!({ "name": name, "ms": millis, "detail": detail.to_string() }));
    }
}

/// One entry with its receipt, to show things on.
struct Example {
    entry: Bytes,
    receipt: Receipt,
    path: PathBuf,
    policy: Policy,
    size: TreeSize,
}

struct Shown {
    totals: Totals,
    verified: u64,
    kept: u64,
    example: Option<Example>,
}

/// Appends everything, and verifies each receipt from its bytes and the public keys alone.
async fn append_and_verify(
    directory: &Directory,
    lines: Lines<Box<dyn std::io::BufRead>>,
    phases: &mut Phases,
) -> Outcome<Shown> {
    let terminal = phases.terminal;
    let profile = Profile::load(&directory.path)?;
    let policy = profile.policy.clone();
    let client = profile.client()?;
    let receipts = ReceiptDir::create(&directory.path.join("receipts"))?;
    let (mut verified, mut kept) = (0, 0);
    let mut verifying = Duration::ZERO;
    let mut example = None;
    let watch = Stopwatch::start();
    let mut check = |receipt: &Receipt, entry: &Bytes| {
        let watch = Stopwatch::start();
        let receipt = Receipt::parse(&receipt.encode()).map_err(Failure::no)?;
        let checkpoint = receipt.verify(&leaf_hash(entry), &policy).map_err(Failure::no)?;
        verifying += watch.elapsed();
        verified += 1;
        if kept < KEPT_RECEIPTS {
            receipts.keep(&receipt, entry)?;
            kept += 1;
        }
        if example.is_none() || verified == SHOWN_ENTRY as u64 + 1 {
            example = Some(Example {
                entry: entry.clone(),
                path: receipts.receipt_path(receipt.index),
                size: checkpoint.head().size,
                policy: policy.clone(),
                receipt,
            });
        }
        Ok(())
    };
    let mut progress = |totals: &Totals| {
        terminal.progress(format_args!(
            "{} entries, {}",
            totals.entries,
            rate(totals.entries, watch.elapsed())
        ));
    };
    let totals = append_lines(&client, lines, Wait::Published, terminal, &mut check, &mut progress).await?;
    let (Some(first), Some(last)) = (totals.first_index, totals.last_index) else {
        return Err(Failure::usage("the input has no lines, so there is nothing to show"));
    };
    if totals.unpublished > 0 {
        let message = format!("{} entries are on disk but were not published in time", totals.unpublished);
        return Err(Failure::unreachable(message));
    }
    let appending = watch.elapsed().saturating_sub(verifying);
    phases.done(
        "entries appended",
        appending,
        format_args!(
            "{} entries, indexes {first} to {last}, {}",
            totals.entries,
            rate(totals.entries, appending)
        ),
    );
    let quorum =
        if directory.alone() { String::new() } else { format!(", each cosigned by {THRESHOLD} witnesses") };
    phases.done(
        "receipts verified",
        verifying,
        format_args!(
            "{verified} of {}, offline, with public keys alone{quorum}; {kept} kept as files",
            totals.entries
        ),
    );
    Ok(Shown { totals, verified, kept, example })
}

/// Changes one byte of a copy, shows that the receipt refuses it, and that it accepts the original. Returns the refusal.
fn show_tampering(example: &Example, terminal: Terminal) -> Outcome<String> {
    let mut changed = example.entry.to_vec();
    match changed.last_mut() {
        Some(byte) => *byte ^= 1,
        None => changed.push(0),
    }
    let index = example.receipt.index;
    let refusal = match example.receipt.verify(&leaf_hash(&changed), &example.policy) {
        Err(refusal) => refusal.to_string(),
        Ok(_) => {
            return Err(Failure::no("a changed entry was accepted: this program is broken, do not use it"));
        }
    };
    example.receipt.verify(&leaf_hash(&example.entry), &example.policy).map_err(Failure::no)?;
    terminal.line("\nA proof is worth what it refuses:");
    terminal.line(format_args!(
        "  a copy of entry {index} with one byte changed   {} {refusal}",
        terminal.bad("refused:")
    ));
    terminal.line(format_args!(
        "  entry {index} as it was appended                {} at index {index}, under a checkpoint of size {}",
        terminal.good("verified"),
        example.size
    ));
    Ok(refusal)
}

/// Commands that can be pasted as they stand, and what is not proven yet.
fn show_next(args: &Quickstart, directory: &Directory, example: &Example, terminal: Terminal) {
    let (program, dir, receipt) = (shell(&program()), shell(&directory.path), shell(&example.path));
    let policy = shell(&directory.path.join("policy"));
    let commands = match (args.once, directory.alone()) {
        (false, true) => [
            format!("{program} verify {receipt} --vkey {}", directory.vkey),
            format!("echo 'it was me' | {program} append --profile {dir}"),
            format!("{program} checkpoint --profile {dir}"),
        ],
        (false, false) => [
            format!("{program} verify {receipt} --policy {policy}"),
            format!("echo 'it was me' | {program} append --profile {dir}"),
            format!("{program} checkpoint --explain --profile {dir}"),
        ],
        (true, true) => [
            format!("{program} verify {receipt} --vkey {}", directory.vkey),
            format!("{program} verify {receipt} --profile {dir} --leaf-hash {}", leaf_hash(&example.entry)),
            format!("{program} quickstart --once --dir {dir}"),
        ],
        (true, false) => [
            format!("{program} verify {receipt} --policy {policy}"),
            format!("{program} policy explain {policy} --on {receipt}"),
            format!("{program} quickstart --once --dir {dir}"),
        ],
    };
    terminal.line("\nTry it yourself:");
    commands.iter().for_each(|command| terminal.line(format_args!("  {command}")));
    if directory.alone() {
        terminal.line(
            "\nNot proven yet: that everybody sees this same history. One operator with the log's key could still show two\n\
             histories to two people; independent witnesses make that impossible, and this log has none.",
        );
        return;
    }
    if !args.once {
        if directory.roles().contains(&Role::Audit) {
            show_collecting(directory, terminal);
        }
        let pid = |role| shell(&directory.run_file(role, "pid"));
        let (first, second) = (Role::Witness(4), Role::Witness(3));
        terminal.line("\nKill a witness, and nothing changes:");
        terminal.line(format_args!("  kill $(cat {})", pid(first)));
        terminal.line(format_args!("  echo 'three saw it' | {program} append --profile {dir}"));
        terminal.line("\nKill a second one: entries are still taken, and nothing is published any more:");
        terminal.line(format_args!("  kill $(cat {})", pid(second)));
        terminal.line(format_args!("  echo 'two saw it' | {program} append --wait durable --profile {dir}"));
        terminal.line("\nStart one again, in another terminal, and what waits is published:");
        terminal
            .line(format_args!("  {program} serve witness --config {}", shell(&directory.config(second))));
    }
    terminal.line(
        "\nNot proven yet: that the witnesses are independent. All of them run on this machine, and whoever runs it has all their\n\
         keys; witnesses count for as much as those who run them are apart, and so does the monitor. What it sees:",
    );
    terminal.line(format_args!("  {program} monitor status --profile {dir}"));
    terminal.line("\nWatch a log cheat, and the monitor find out:");
    terminal.line(format_args!("  {program} quickstart --demo split-view"));
}

/// Audit events from where they happen to a proof, in commands that can be pasted as they stand.
fn show_collecting(directory: &Directory, terminal: Terminal) {
    let (program, dir) = (shell(&program()), shell(&directory.path));
    let (sample, proofs) =
        (shell(&directory.path.join(SAMPLE_FILE)), shell(&directory.path.join("event-proofs")));
    terminal.line(
        "\nCollect audit events, signed before they go anywhere; find one again, and prove it offline:",
    );
    terminal.line(format_args!("  {program} collect --cloudtrail {sample} --once --profile {dir}"));
    terminal.line(format_args!("  {program} events get {SAMPLE_ID} --proof {proofs} --profile {dir}"));
    terminal.line(format_args!("  {program} verify --profile {dir} {proofs}"));
    terminal.line(format_args!("  {program} audit status --profile {dir}"));
    terminal.line("\nAsk about them: what may be asked, what was done with an account, and the same as somebody who may see less:");
    let (question, developer) =
        (format!("runbook run {SAMPLE_QUESTION}"), shell(&directory.path.join("developer")));
    terminal.line(format_args!("  {program} runbook list --profile {dir}"));
    terminal.line(format_args!("  {program} {question} --profile {dir}"));
    terminal.line(format_args!("  {program} {question} --profile {developer}"));
}

/// How to call this program again from the current directory.
fn program() -> PathBuf {
    let program = env::current_exe().unwrap_or_else(|_| PathBuf::from("epigraph"));
    let here = env::current_dir().unwrap_or_default();
    match program.strip_prefix(&here) {
        Ok(relative) if relative.components().count() > 1 => relative.to_owned(),
        Ok(relative) => Path::new(".").join(relative),
        Err(_) => program,
    }
}
