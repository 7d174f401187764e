//! What lies beside a log's journal: the history of its checkpoints, the lookup by leaf hash, and a signer in another process.

use std::path::{Path, PathBuf};

use epigraph_core::{Checkpoint, Origin, Policy, TreeHead, TreeSize};
use epigraph_rpc::peer;
use epigraph_store::journal::Inspection;
use epigraph_store::{history, lookup};

use super::{Finding, Kind, compare};
use crate::config::{ProcessConfig, RemoteConfig};
use crate::failure::Failure;
use crate::runtime;
use crate::state;

/// The heads of the kept checkpoints that the log signed. What is wrong with the file explains old receipts less well, and stops
/// nothing.
pub fn history_heads(
    checkpoints: &Path,
    policy: Option<&Policy>,
    findings: &mut Vec<Finding>,
) -> Vec<TreeHead> {
    let file = checkpoints.join("history");
    let found = match state::open_dir(checkpoints).map(|dir| history::inspect(dir.as_ref())) {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => {
            findings.push(Finding::new(Kind::Damaged, file, error));
            return Vec::new();
        }
        // Said where the published checkpoint is looked for.
        Err(_) => return Vec::new(),
    };
    for hole in &found.damaged {
        let message = format_args!(
            "{} bytes are no checkpoint that was kept; the next start goes on without, and keeps the file aside. The log does \
             not need them; old receipts may be harder to explain",
            hole.end - hole.start
        );
        findings.push(Finding::new(Kind::Damaged, file.clone(), message).at(hole.start));
    }
    if let Some(torn) = found.torn {
        let message =
            "what follows the last kept checkpoint is none, as a crash leaves it; it is written over";
        findings.push(Finding::new(Kind::Unfinished, file.clone(), message).at(torn));
    }
    let Some(policy) = policy else { return Vec::new() };
    let mut heads = Vec::new();
    for (size, note) in &found.notes {
        match Checkpoint::open(note, policy) {
            Ok(checkpoint) if checkpoint.head().size == *size => heads.push(checkpoint.head()),
            Ok(_) => {
                let message = format_args!("what was kept as the checkpoint of size {size} is another one");
                findings.push(Finding::new(Kind::Damaged, file.clone(), message));
            }
            Err(error) => {
                let message = format_args!(
                    "the kept checkpoint of size {size} is not valid: {error}; it is not served"
                );
                findings.push(Finding::new(Kind::Damaged, file.clone(), message));
            }
        }
    }
    heads
}

/// Whether the kept checkpoints are of the journal's history.
pub fn compare_history(checkpoints: &Path, journal: &Inspection, heads: &[TreeHead]) -> Vec<Finding> {
    let of_journal = |head: &TreeHead| compare(checkpoints, journal, "a kept checkpoint", *head);
    // One is enough: those behind it say the same.
    let first = heads.iter().find_map(of_journal);
    first.into_iter().map(|finding| Finding { file: checkpoints.join("history"), ..finding }).collect()
}

/// Every byte of the lookup's runs. The root of the one that begins with the first entry is compared with the journal; those of the
/// others at the next start, with the tree.
pub fn lookup(log: &Path, origin: &Origin, journal: &Inspection) -> Vec<Finding> {
    let directory = log.join("lookup");
    if !directory.exists() {
        return Vec::new();
    }
    let derived = "it is derived: deleted, it is made again from the tree";
    let inspected = state::open_dir(&directory)
        .and_then(|dir| lookup::inspect(dir.as_ref(), origin.hash()).map_err(Failure::state));
    let (runs, unfinished) = match inspected {
        Ok(inspected) => inspected,
        Err(why) => return vec![Finding::new(Kind::Warning, directory, format_args!("{why}"))],
    };
    let mut findings = Vec::new();
    if unfinished {
        let message = "a run that was never finished; the next start removes it";
        findings.push(Finding::new(Kind::Unfinished, directory.join("new"), message));
    }
    for run in runs {
        let [first, end] = run.entries;
        let of_journal = TreeSize::new(end).filter(|_| first == 0).and_then(|end| journal.roots.get(&end));
        let why = match &run.root {
            Err(why) => why.clone(),
            Ok(_) if !run.is_within(journal.head.size) => {
                format!("it ends at entry {end}, and the journal at {}", journal.head.size)
            }
            Ok(root) if of_journal.is_some_and(|of_journal| of_journal != root) => {
                "it was made of other entries than the journal's".to_owned()
            }
            Ok(_) => continue,
        };
        let message = format_args!("{why}; {derived}");
        let finding = Finding::new(Kind::Warning, directory.join(run.name), message);
        findings.push(Finding { index: Some(first), ..finding });
    }
    findings
}

/// The sizes at which runs begin with the first entry and end, for [`lookup()`].
pub fn lookup_sizes() -> impl Iterator<Item = TreeSize> {
    (16..=32).step_by(2).filter_map(|height| TreeSize::new(1 << height))
}

/// The head that a signer in another process is bound to, if it can be asked.
pub fn remote_head(
    process: &ProcessConfig,
    remote: &RemoteConfig,
    origin: &Origin,
    findings: &mut Vec<Finding>,
) -> Option<TreeHead> {
    match ask(process, remote, origin) {
        Ok(head) => Some(head),
        Err(why) => {
            let message = format_args!(
                "what this signer is bound to was not compared ({why}); the log compares it at each start"
            );
            findings.push(Finding::new(Kind::Warning, PathBuf::from(&remote.address), message));
            None
        }
    }
}

fn ask(process: &ProcessConfig, remote: &RemoteConfig, origin: &Origin) -> Result<TreeHead, Failure> {
    let tls = process.tls.calling(runtime::clock())?;
    let tls = tls.ok_or_else(|| Failure::usage("[tls.client] is missing"))?;
    runtime::runtime().map_err(Failure::state)?.block_on(async {
        let signer = peer::Signer::new(&remote.address, &tls, &remote.server).map_err(Failure::usage)?;
        Ok(signer.head(origin).await.map_err(Failure::unreachable)?.head)
    })
}
