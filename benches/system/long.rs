//! Ten million entries: what they take of memory and disk, how long a log with them takes to be ready, and how fast
//! they are read and hashed again.
#![expect(clippy::print_stdout, reason = "the report is the bench's output")]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use epigraph_rpc::v1::AppendRequest;
use tokio::task::JoinSet;

use crate::audit::{Until, hashed_stream, once, start_echo};
use crate::log::{Log, PROGRAM};
use crate::{ENTRY_BYTES, clock, process};

/// Disk for one entry: its bytes, the tree, the lookup, and what sled has not given back yet.
const ROOM_PER_ENTRY: u64 = 800;
/// And what takes room in an empty log.
const ROOM: u64 = 256 << 20;

const BATCH_ENTRIES: u64 = 1024;
const IN_FLIGHT: u64 = 4;
/// Lines of the table of memory.
const STEPS: u64 = 10;

pub(crate) const MIB: f64 = (1 << 20) as f64;

/// Whether there are so many bytes free: a run that fills the disk ends in its middle.
pub(crate) fn ensure_room(dir: &Path, room: u64) -> anyhow::Result<()> {
    let free = free_bytes(dir)?;
    anyhow::ensure!(
        free >= room,
        "{} has {:.0} MiB free and {:.0} MiB are needed: set CARGO_TARGET_DIR to a larger disk",
        dir.display(),
        free as f64 / MIB,
        room as f64 / MIB
    );
    Ok(())
}

/// Fills a log with `entries` entries and looks at it.
pub(crate) fn run(entries: u64, dir: &Path) -> anyhow::Result<()> {
    ensure_room(dir, entries * ROOM_PER_ENTRY + ROOM)?;
    let home = dir.join("long");
    let log = Log::start(&home)?;
    println!(
        "\nlong: {entries} entries of {ENTRY_BYTES} B in batches of {BATCH_ENTRIES}, {IN_FLIGHT} in flight"
    );
    let start = clock::now();
    println!("{:>10} {:>10} {:>10} {:>10}", "entries", "entries/s", "RSS MiB", "peak MiB");
    let runtime = process::runtime()?;
    for step in 0..STEPS {
        let began = clock::now();
        let range = entries * step / STEPS..entries * (step + 1) / STEPS;
        let count = range.end - range.start;
        runtime.block_on(append(&log, range))?;
        let rate = count as f64 / began.elapsed().as_secs_f64();
        let id = log.process.id();
        let (rss, peak) = (memory(id, "VmRSS:")?, memory(id, "VmHWM:")?);
        println!(
            "{:>10} {rate:>10.0} {:>10.0} {:>10.0}",
            entries * (step + 1) / STEPS,
            rss / MIB,
            peak / MIB
        );
    }
    println!("appended in {:.1} s", start.elapsed().as_secs_f64());
    drop(runtime);
    let stopping = clock::now();
    log.process.stop()?;
    println!("clean stop: {:.2} s", stopping.elapsed().as_secs_f64());

    disk(&home, entries)?;
    audit(&home, entries)?;
    // The first start after a stop, and one in which nothing was prepared.
    ready(&home, "a clean stop")?.process.kill()?;
    ready(&home, "kill -9")?.process.stop()?;

    let bytes = used(&home.join("log"))?;
    let began = clock::now();
    let mut fsck = Command::new(PROGRAM);
    fsck.args(["fsck", "--config"]).arg(home.join("log.toml")).stdout(Stdio::null());
    anyhow::ensure!(fsck.status()?.success(), "fsck found damage; what it said is above");
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "fsck: {seconds:.1} s, {:.0} entries/s, {:.0} MiB/s of what is on the disk",
        entries as f64 / seconds,
        bytes as f64 / MIB / seconds
    );
    Ok(fs::remove_dir_all(home)?)
}

/// Appends the entries with these numbers, each with its own bytes.
async fn append(log: &Log, range: std::ops::Range<u64>) -> anyhow::Result<()> {
    let mut callers = JoinSet::new();
    for caller in 0..IN_FLIGHT {
        let (mut client, empty) = (log.client()?, log.request(0, 0));
        let range = range.clone();
        callers.spawn(async move {
            let firsts = range.clone().step_by(BATCH_ENTRIES as usize).skip(caller as usize);
            for first in firsts.step_by(IN_FLIGHT as usize) {
                let batch = first..(first + BATCH_ENTRIES).min(range.end);
                let request = AppendRequest { entries: batch.map(entry).collect(), ..empty.clone() };
                client.append(request).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = callers.join_next().await {
        ended??;
    }
    Ok(())
}

/// Its number, over and over.
fn entry(number: u64) -> Bytes {
    number.to_be_bytes().repeat(ENTRY_BYTES / size_of::<u64>()).into()
}

/// Starts the log and appends to it. Prints how long that took from nothing to the first durable answer.
fn ready(home: &Path, after: &str) -> anyhow::Result<Log> {
    let start = clock::now();
    let log = Log::start_again(home)?;
    let serving = start.elapsed();
    process::runtime()?.block_on(async {
        let mut client = log.client()?;
        // Until its checks at the start are over it refuses.
        while let Err(refused) = client.append(log.request(1, ENTRY_BYTES)).await {
            anyhow::ensure!(start.elapsed() < GIVE_UP, "the log still refuses: {refused}");
            tokio::time::sleep(AGAIN).await;
        }
        Ok(())
    })?;
    let ready = start.elapsed();
    println!(
        "start after {after}: serves after {:.2} s, first durable append after {:.2} s",
        serving.as_secs_f64(),
        ready.as_secs_f64()
    );
    Ok(log)
}

const AGAIN: Duration = Duration::from_millis(5);
const GIVE_UP: Duration = Duration::from_secs(120);

/// Prints what the parts of the log take on the disk.
fn disk(home: &Path, entries: u64) -> anyhow::Result<()> {
    let payload = (entries * ENTRY_BYTES as u64) as f64;
    let log = fs::read_dir(home.join("log"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.join("journal").is_dir())
        .context("the log's directory has no journal")?;
    let (all, mut parts) = (used(&log)?, Vec::new());
    for part in ["journal", "tree", "lookup"] {
        let bytes = used(&log.join(part))?;
        parts.push(format!("{part} {:.3}", bytes as f64 / payload));
    }
    let lookup = used(&log.join("lookup"))?;
    println!(
        "disk per byte of entries: {:.3} without the lookup, {:.3} with it ({})",
        (all - lookup) as f64 / payload,
        all as f64 / payload,
        parts.join(", ")
    );
    Ok(())
}

/// Prints how fast the monitor's audit of everything is beside a bare stream with SHA-256, and what memory this process, in
/// which it runs, came to take.
fn audit(home: &Path, entries: u64) -> anyhow::Result<()> {
    let log = Log::start_again(home)?;
    let echo = start_echo(home)?;
    process::runtime()?.block_on(async {
        let bare = hashed_stream(&log, &echo, home, Until::Entries(entries)).await?.rate();
        let start = clock::now();
        let audited = once(&log).await? as f64 / start.elapsed().as_secs_f64();
        let peak = memory(std::process::id(), "VmHWM:")?;
        println!(
            "audit: {audited:.0} entries/s, {:.2} of a bare stream with SHA-256 ({bare:.0} entries/s); peak memory of the process \
             {:.0} MiB",
            audited / bare,
            peak / MIB
        );
        anyhow::Ok(())
    })?;
    echo.stop()?;
    log.process.stop()
}

/// Bytes that the files of a directory take; 0 if it is not there.
fn used(dir: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    if dir.is_dir() {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            // stat(2) counts in blocks of 512 bytes whatever the file system's are.
            bytes += if metadata.is_dir() { used(&entry.path())? } else { metadata.blocks() * 512 };
        }
    }
    Ok(bytes)
}

/// A line of /proc/.../status, which says KiB, in bytes.
pub(crate) fn memory(process: u32, name: &str) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).context("no such line in status")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024.0)
}

/// Bytes that may be written below a directory, as df(1) says.
pub(crate) fn free_bytes(dir: &Path) -> anyhow::Result<u64> {
    let output = Command::new("df").args(["--output=avail", "-B1"]).arg(dir).output()?;
    anyhow::ensure!(output.status.success(), "df failed");
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().nth(1).context("df says nothing")?.trim().parse()?)
}
