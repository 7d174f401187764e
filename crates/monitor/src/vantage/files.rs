//! A directory into which people put what they were shown: checkpoints, receipts, evidence. Anybody who can write there can make
//! the monitor compare heads that the log signed, and nothing else.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use epigraph_core::Evidence;
use epigraph_core::evidence::MAX_EVIDENCE_BYTES;
use epigraph_core::hash::sha256;
use epigraph_core::note::MAX_NOTE_BYTES;
use epigraph_core::tlog_proof::Receipt;
use epigraph_core::{Hash, Origin};
use epigraph_store::file::Dir;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};

use super::Outbox;
use crate::event::Vantage;

/// Files that are looked at. Whoever puts more there is told, and takes some away.
pub const MAX_FILES: usize = 1_024;

/// The longest file that is read.
const MAX_FILE_BYTES: usize =
    if MAX_EVIDENCE_BYTES > MAX_NOTE_BYTES { MAX_EVIDENCE_BYTES } else { MAX_NOTE_BYTES };

/// What was read of each file, so that only what is new is shown again.
type Known = BTreeMap<String, Hash>;

/// Shows the heads in the files of a directory, for as long as it is polled. They are those of one log: others are passed over.
pub async fn follow(dir: Arc<dyn Dir>, origin: &Origin, vantage: &Vantage, poll: Duration, outbox: &Outbox) {
    let mut known = Known::new();
    let mut due = interval(poll);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        due.tick().await;
        let (from, before) = (Arc::clone(&dir), std::mem::take(&mut known));
        match spawn_blocking(move || scan(&*from, before)).await {
            Ok(Ok((files, now))) => {
                known = now;
                outbox.reached(vantage).await;
                for (name, file) in files {
                    let notes = notes(&file);
                    let of_log = |note: &Bytes| {
                        let first = note.split(|byte| *byte == b'\n').next();
                        first == Some(origin.as_str().as_bytes())
                    };
                    let count = notes.len();
                    for note in notes.iter().filter(|note| of_log(note)) {
                        outbox.head(vantage, note).await;
                    }
                    tracing::debug!(name, count, "a file was looked at");
                }
            }
            Ok(Err(error)) => outbox.unreachable(vantage, &error.to_string()).await,
            Err(error) => outbox.unreachable(vantage, &error.to_string()).await,
        }
    }
}

/// The files that are new or changed, and what is known afterwards.
fn scan(dir: &dyn Dir, before: Known) -> io::Result<(Vec<(String, Bytes)>, Known)> {
    let (mut files, mut known) = (Vec::new(), Known::new());
    let names = dir.list()?;
    if names.len() > MAX_FILES {
        tracing::warn!(
            files = names.len(),
            "there are more files than {MAX_FILES}: the others are not looked at"
        );
    }
    for name in names.into_iter().take(MAX_FILES) {
        // One that is gone or cannot be read stops none of the others.
        let Ok(Some(file)) = read(dir, &name) else { continue };
        let digest = sha256(&file);
        if before.get(&name) != Some(&digest) {
            files.push((name.clone(), file));
        }
        known.insert(name, digest);
    }
    Ok((files, known))
}

fn read(dir: &dyn Dir, name: &str) -> io::Result<Option<Bytes>> {
    let file = dir.open_read_only(name)?;
    let Some(length) = usize::try_from(file.length()?).ok().filter(|length| *length <= MAX_FILE_BYTES) else {
        return Ok(None);
    };
    let mut bytes = vec![0; length];
    file.read_at(0, &mut bytes)?;
    Ok(Some(bytes.into()))
}

/// The notes in a file: it is one, or a receipt with one, or evidence with two.
fn notes(file: &Bytes) -> Vec<Bytes> {
    if let Ok(evidence) = Evidence::decode(file) {
        return evidence.notes().map(|note| Bytes::copy_from_slice(note.as_bytes())).to_vec();
    }
    match Receipt::parse(file) {
        Ok(receipt) => vec![receipt.checkpoint.into()],
        Err(_) => vec![file.clone()],
    }
}
