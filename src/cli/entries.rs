//! `epigraph entries`: a range of entries read back, each verified before it is shown.

use std::io;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use epigraph_core::hash::leaf_hash;
use epigraph_core::{LeafIndex, TreeSize};

use crate::cli::Entries;
use crate::failure::{Failure, Outcome};
use crate::profile::Profile;
use crate::receipts::ReceiptDir;
use crate::runtime;
use crate::terminal::Terminal;

/// What the object of `--json` may hold: it is built in memory before it is printed.
const MAX_OBJECT_BYTES: usize = 64 << 20;

/// What an entry takes in the object beside its bytes.
const OBJECT_ENTRY_BYTES: usize = 512;

pub fn run(args: &Entries, terminal: Terminal) -> Outcome {
    let (first, end) = range(args)?;
    let profile = Profile::load(&args.profile.profile)?;
    let origin = profile.origin.clone();
    let files = args.out.as_deref().map(ReceiptDir::create).transpose()?;
    if args.follow {
        return follow(first, profile, files.as_ref(), terminal);
    }
    let (mut count, mut bytes, mut room) = (0, 0, MAX_OBJECT_BYTES);
    let mut listed = Vec::new();
    runtime::runtime().map_err(Failure::state)?.block_on(async {
        let client = profile.client()?;
        let mut pages = client.entries(first, end).await?;
        while let Some(page) = pages.next_page().await? {
            for (index, entry) in numbered(page.first_index, &page.entries) {
                count += 1;
                bytes += entry.len() as u64;
                match &files {
                    Some(files) => files.keep_entry(index, entry)?,
                    None if terminal.prints_objects() => {
                        let left = room.checked_sub(OBJECT_ENTRY_BYTES + entry.len() * 4 / 3);
                        room = left.ok_or_else(|| Failure::usage(TOO_MANY))?;
                        listed.push(object(index, entry));
                    }
                    None => terminal.entry(entry).map_err(unwritten)?,
                }
            }
        }
        Ok::<_, Failure>(())
    })?;
    let mut object = serde_json::json!({
        "verified": true,
        "origin": origin.as_str(),
        "first_index": first.get(),
        "count": count,
        "bytes": bytes,
    });
    match &args.out {
        Some(directory) => {
            terminal.line(format_args!(
                "{} {count} entries from index {first} on are those of the log; they are in {}",
                terminal.good("verified:"),
                directory.display()
            ));
            object["directory"] = serde_json::json!(directory);
        }
        None => object["entries"] = listed.into(),
    }
    terminal.object(&object);
    Ok(())
}

const TOO_MANY: &str = "these entries are too many for one JSON object: take fewer of them at a time, or write them to files with --out DIR";

/// The first index and, if it was said, the tree size at which to end.
fn range(args: &Entries) -> Outcome<(LeafIndex, Option<TreeSize>)> {
    let index = |index| LeafIndex::new(index).ok_or_else(|| Failure::usage(NO_SUCH_INDEX));
    let first = index(args.first)?;
    let last = match (args.last, args.count) {
        (Some(last), _) if last < args.first => {
            return Err(Failure::usage(format!("LAST is {last}, which is before FIRST, {first}")));
        }
        (Some(last), _) => index(last)?,
        (None, Some(count)) => {
            first.checked_add(count.saturating_sub(1)).ok_or_else(|| Failure::usage(NO_SUCH_INDEX))?
        }
        (None, None) => return Ok((first, None)),
    };
    Ok((first, Some(last.size_after())))
}

const NO_SUCH_INDEX: &str = "no log has an entry with this index";

/// Shows entries as they are published, until the process is told to stop.
fn follow(first: LeafIndex, profile: Profile, files: Option<&ReceiptDir>, terminal: Terminal) -> Outcome {
    runtime::runtime().map_err(Failure::state)?.block_on(async {
        let stop = runtime::stop_signal().map_err(Failure::state)?;
        let client = profile.client()?;
        let showing = async {
            let mut follower = client.follow(first, runtime::entropy()).await?;
            loop {
                let batch = follower.next().await?;
                for (index, entry) in numbered(batch.first_index, &batch.entries) {
                    if let Some(files) = files {
                        files.keep_entry(index, entry)?;
                    }
                    match files {
                        _ if terminal.prints_objects() => terminal.object(&object(index, entry)),
                        Some(_) => terminal.line(format_args!("verified: entry {index}")),
                        None => terminal.entry(entry).map_err(unwritten)?,
                    }
                }
            }
        };
        tokio::select! {
            ended = showing => ended,
            () = stop => Ok(()),
        }
    })
}

fn object(index: LeafIndex, entry: &[u8]) -> serde_json::Value {
    serde_json::json!({
        "index": index.get(),
        "leaf_hash": leaf_hash(entry).to_string(),
        "base64": STANDARD.encode(entry),
    })
}

fn numbered(first: LeafIndex, entries: &[Bytes]) -> impl Iterator<Item = (LeafIndex, &[u8])> {
    (0..).zip(entries).filter_map(move |(offset, entry)| Some((first.checked_add(offset)?, entry.as_ref())))
}

fn unwritten(error: io::Error) -> Failure {
    Failure::usage(format!("cannot write to standard output: {error}"))
}
