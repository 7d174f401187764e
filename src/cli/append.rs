//! `epigraph append`: lines or one whole file in, indexes and verified receipts out.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use epigraph_client::Client;
use epigraph_core::LeafIndex;
use epigraph_core::bundle::MAX_ENTRY_BYTES;
use epigraph_core::tlog_proof::Receipt;
use epigraph_rpc::Wait;

use crate::cli::explain::shown;
use crate::cli::{Append, WaitFor};
use crate::failure::{Failure, Outcome};
use crate::input::{Line, Lines};
use crate::profile::Profile;
use crate::receipts::ReceiptDir;
use crate::runtime;
use crate::terminal::Terminal;

/// Entries in one call: as many as the log takes.
const BATCH_ENTRIES: usize = 4_096;
/// Bytes in one call: room for the largest entry is left below the log's 4 MiB.
const BATCH_BYTES: usize = 4 * 1024 * 1024 - 65_536;

/// What became of an input.
#[derive(Default)]
pub struct Totals {
    pub entries: u64,
    pub bytes: u64,
    pub first_index: Option<LeafIndex>,
    pub last_index: Option<LeafIndex>,
    /// Entries that are on the log's disk but were not published in time.
    pub unpublished: u64,
    /// Why, in the log's own words.
    pub because: Option<String>,
    /// Lines that are too long for an entry, by number.
    pub skipped: Vec<u64>,
}

pub fn run(args: &Append, terminal: Terminal) -> Outcome {
    let profile = Profile::load(&args.profile.profile)?;
    if args.receipts.is_some() && args.wait == WaitFor::Durable {
        return Err(Failure::usage(
            "with --wait durable there are no receipts to keep: leave one of the two out, and see --help",
        ));
    }
    let receipts = args.receipts.as_deref().map(ReceiptDir::create).transpose()?;
    let wait = Wait::from(args.wait);
    let input = open(&args.file)?;
    let lines = if args.whole { Lines::whole(input) } else { Lines::new(input) };
    let watch = runtime::Stopwatch::start();
    let mut keep = |receipt: &Receipt, entry: &Bytes| match &receipts {
        Some(receipts) => receipts.keep(receipt, entry),
        None => Ok(()),
    };
    let totals = runtime::runtime().map_err(Failure::state)?.block_on(async {
        let client = profile.client()?;
        append_lines(&client, lines, wait, terminal, &mut keep, &mut |totals| {
            terminal.progress(format_args!(
                "{} entries, {}",
                totals.entries,
                rate(totals.entries, watch.elapsed())
            ));
        })
        .await
    })?;
    let (Some(first), Some(last)) = (totals.first_index, totals.last_index) else {
        return Err(match totals.skipped.is_empty() {
            true => Failure::usage("the input has no lines, so nothing was appended"),
            false => skipped(&totals.skipped),
        });
    };
    let state = match (wait, totals.unpublished) {
        (Wait::Durable, _) => "on the log's disk".to_owned(),
        (Wait::Published, 0) => "published, and each receipt is verified".to_owned(),
        (Wait::Published, count) => {
            let because = totals.because.as_deref().map(|why| format!(" (the log says: {})", shown(why)));
            format!(
                "on the log's disk; {count} were not published in time{}, fetch their receipts with `epigraph prove`",
                because.unwrap_or_default()
            )
        }
    };
    terminal.line(format_args!("{} entries appended, indexes {first} to {last}: {state}", totals.entries));
    terminal.object(&serde_json::json!({
        "appended": totals.entries,
        "bytes": totals.bytes,
        "first_index": first.get(),
        "last_index": last.get(),
        "unpublished": totals.unpublished,
        "unpublished_because": totals.because,
        "skipped_lines": totals.skipped,
    }));
    if totals.skipped.is_empty() { Ok(()) } else { Err(skipped(&totals.skipped)) }
}

/// Opens a file, or standard input for `-`.
pub fn open(path: &Path) -> Outcome<Box<dyn BufRead>> {
    if path == Path::new("-") {
        return Ok(Box::new(BufReader::new(io::stdin())));
    }
    let file = File::open(path)
        .map_err(|error| Failure::usage(format!("cannot read {}: {error}", path.display())))?;
    Ok(Box::new(BufReader::with_capacity(256 * 1024, file)))
}

/// Appends every line in calls as large as the log takes; each receipt was verified when `keep` gets it.
pub async fn append_lines(
    client: &Client,
    lines: Lines<Box<dyn BufRead>>,
    wait: Wait,
    terminal: Terminal,
    keep: &mut dyn FnMut(&Receipt, &Bytes) -> Outcome,
    progress: &mut dyn FnMut(&Totals),
) -> Outcome<Totals> {
    let mut totals = Totals::default();
    let mut batch = Vec::new();
    let mut batch_bytes = 0;
    for line in lines {
        match line.map_err(|error| Failure::usage(format!("cannot read the input: {error}")))? {
            (_, Line::Entry(entry)) => {
                batch_bytes += entry.len();
                batch.push(entry);
            }
            (number, Line::TooLong(bytes)) => {
                terminal.note(format_args!(
                    "line {number} has {bytes} bytes, an entry at most {MAX_ENTRY_BYTES}: left out"
                ));
                totals.skipped.push(number);
            }
        }
        if batch.len() == BATCH_ENTRIES || batch_bytes >= BATCH_BYTES {
            append_batch(client, &batch, wait, &mut totals, keep).await?;
            progress(&totals);
            batch.clear();
            batch_bytes = 0;
        }
    }
    if !batch.is_empty() {
        append_batch(client, &batch, wait, &mut totals, keep).await?;
        progress(&totals);
    }
    Ok(totals)
}

async fn append_batch(
    client: &Client,
    batch: &[Bytes],
    wait: Wait,
    totals: &mut Totals,
    keep: &mut dyn FnMut(&Receipt, &Bytes) -> Outcome,
) -> Outcome {
    let appended = client.append(batch, wait).await.map_err(|error| {
        let failure = Failure::from(error);
        match totals.last_index {
            None => failure,
            Some(last) => Failure::new(
                failure.kind(),
                format_args!(
                    "{failure}. The {} entries before, up to index {last}, are in the log",
                    totals.entries
                ),
            ),
        }
    })?;
    let count = batch.len() as u64;
    totals.first_index.get_or_insert(appended.first_index);
    totals.last_index = appended.first_index.checked_add(count - 1);
    totals.entries += count;
    totals.bytes += batch.iter().map(|entry| entry.len() as u64).sum::<u64>();
    match appended.receipts {
        None => {
            totals.unpublished += count;
            totals.because = appended.unpublished_because.or(totals.because.take());
        }
        Some(receipts) => {
            for (receipt, entry) in receipts.iter().zip(batch) {
                keep(receipt, entry)?;
            }
        }
    }
    Ok(())
}

/// Entries per second.
pub fn rate(entries: u64, time: Duration) -> String {
    format!("{:.0} entries/s", entries as f64 / time.as_secs_f64().max(1e-9))
}

/// What to say when lines were left out: the command did not do all that it was asked.
pub fn skipped(lines: &[u64]) -> Failure {
    const SHOWN: usize = 20;
    let shown: Vec<_> = lines.iter().take(SHOWN).map(u64::to_string).collect();
    let more = if lines.len() > SHOWN { ", …" } else { "" };
    Failure::usage(format!(
        "left out, because an entry has at most {MAX_ENTRY_BYTES} bytes: line {}{more}; all others are in the log",
        shown.join(", ")
    ))
}
