//! `epigraph fsck`: an offline check of every byte that a log and its signer keep, or another process by itself: signer, witness, monitor,
//! audit service, collector. It goes on behind a finding, so that one run shows all, and writes nothing but the lock. Nobody is asked
//! but a log's signer in another process and an audit service's log, if they answer.
//!
//! What counts as sound is the stores' to say; this module compares what they hold with each other and reports.

pub mod audit;
mod beside;
mod heads;
mod monitor;
pub mod spool;

use std::fmt;
use std::path::{Path, PathBuf};

use epigraph_core::progress::Held;
use epigraph_core::{Checkpoint, Hash, Origin, Policy, TreeHead, TreeSize};
use epigraph_store::head::{self, Bad, HeadError, Warning};
use epigraph_store::journal::{self, Flaw, Inspection, JournalError, MAX_FLAWS};
use epigraph_store::published::{self, BadCopy};
use serde_json::{Value, json};

use crate::cli::{KeptRole, RoleConfig};
use crate::config::{LogConfig, ProcessConfig, SignerConfig};
use crate::failure::{Failure, Outcome};
use crate::preflight;
use crate::scratch::{Scratch, copy_files};
use crate::state;
use crate::terminal::Terminal;

/// How bad a finding is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Something is not as it was once durable.
    Damaged,
    /// What a crash leaves and the next start puts in order.
    Unfinished,
    /// Derived state, or something that could not be checked.
    Warning,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Kind::Damaged => "damaged",
            Kind::Unfinished => "unfinished",
            Kind::Warning => "warning",
        })
    }
}

pub struct Finding {
    kind: Kind,
    pub file: PathBuf,
    /// Where in the file, if it is about one place.
    offset: Option<u64>,
    /// The first entry that it concerns, if it is about entries.
    index: Option<u64>,
    /// What is wrong and what to do.
    message: String,
}

impl Finding {
    fn new(kind: Kind, file: PathBuf, message: impl fmt::Display) -> Finding {
        Finding { kind, file, offset: None, index: None, message: message.to_string() }
    }

    fn at(self, offset: u64) -> Finding {
        Finding { offset: Some(offset), ..self }
    }

    fn to_json(&self) -> Value {
        json!({
            "kind": self.kind.to_string(),
            "file": self.file.display().to_string(),
            "offset": self.offset,
            "index": self.index,
            "message": self.message,
        })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(offset) = self.offset {
            write!(f, ", byte {offset}")?;
        }
        if let Some(index) = self.index {
            write!(f, ", entry {index}")?;
        }
        write!(f, ": {}", self.message)
    }
}

pub fn run(args: &RoleConfig, terminal: Terminal) -> Outcome {
    let config = &args.config.config;
    match args.role {
        KeptRole::Log => logs(config, terminal),
        KeptRole::Signer => heads::signer(config, terminal),
        KeptRole::Witness => heads::witness(config, terminal),
        KeptRole::Monitor => monitor::monitor(config, terminal),
        KeptRole::Audit => audit::run(config, terminal),
        KeptRole::Collector => spool::run(config, terminal),
    }
}

fn logs(config: &Path, terminal: Terminal) -> Outcome {
    let config = ProcessConfig::load(config)?;
    let _locked = state::lock_stopped(&config)?;
    let mut outcome = Ok(());
    let mut reports = Vec::new();
    for log in &config.logs {
        if config.logs.len() > 1 {
            terminal.line(format_args!("{}", terminal.bold(&log.origin)));
        }
        let (report, found) = check(&config, log, terminal)?;
        reports.push(report);
        if let Err(damage) = found {
            if outcome.is_err() {
                terminal.line(format_args!("{damage}"));
            } else {
                outcome = Err(damage);
            }
        }
    }
    let clean = outcome.is_ok();
    terminal.object(&json!({ "clean": clean, "logs": reports }));
    outcome
}

/// Checks one log; returns what is to be said about it to a program, and whether it is damaged.
fn check(process: &ProcessConfig, config: &LogConfig, terminal: Terminal) -> Outcome<(Value, Outcome)> {
    let (journal, heads, findings) = inspect(process, config, terminal)?;
    Ok(report(&config.origin.to_origin(), &journal, heads, &findings, terminal))
}

/// The journal of a log, the published head and the one that the signer is bound to, and everything that is wrong.
type Inspected = (Inspection, [Option<TreeHead>; 2], Vec<Finding>);

/// Looks at one log.
pub fn inspect(process: &ProcessConfig, config: &LogConfig, terminal: Terminal) -> Outcome<Inspected> {
    let origin = config.origin.to_origin();
    let mut findings = Vec::new();
    let policy = policy(config, &mut findings);
    let published = published_head(&config.directory.join("checkpoints"), policy.as_ref(), &mut findings);
    let checkpoints = config.directory.join("checkpoints");
    let kept = beside::history_heads(&checkpoints, policy.as_ref(), &mut findings);
    let (held, signer) = match &config.signer {
        SignerConfig::Embedded(signer) => {
            (held_head(&signer.directory, &origin, &mut findings), signer.directory.join("heads"))
        }
        SignerConfig::Remote(remote) => {
            (beside::remote_head(process, remote, &origin, &mut findings), remote.address.clone().into())
        }
    };

    let journal_path = config.directory.join("journal");
    let heads = [published, held].into_iter().flatten().chain(kept.iter().copied());
    let mut wanted: Vec<_> = heads.map(|head| head.size).collect();
    // What the journal must at least have; it may go on behind that.
    let known = wanted.iter().max().map_or(0, |size| size.get());
    wanted.extend(beside::lookup_sizes());
    let mut progress = |entries: u64| terminal.bar(entries, known.max(entries), "entries read");
    let journal_dir = state::open_dir(&journal_path)?;
    let journal = journal::inspect(journal_dir.as_ref(), origin.hash(), &wanted, &mut progress);
    findings.extend(journal.flaws.iter().map(|flaw| of_flaw(&journal_path, flaw)));
    if journal.flaws.len() >= MAX_FLAWS {
        let message = format_args!("the check of the journal ended after {MAX_FLAWS} findings");
        findings.push(Finding::new(Kind::Warning, journal_path.clone(), message));
    }
    if let Some(torn) = &journal.torn {
        let message = format_args!(
            "{} bytes of a frame that was never completely written, hence never acknowledged: unfinished, will be cut \
             off at the next start",
            torn.bytes
        );
        let finding = Finding::new(Kind::Unfinished, journal_path.join(&torn.segment), message);
        findings.push(finding.at(torn.offset));
    }
    for (what, head) in [("the published checkpoint", published), ("the signer's head", held)] {
        findings.extend(head.and_then(|head| compare(&journal_path, &journal, what, head)));
    }
    findings.extend(beside::compare_history(&checkpoints, &journal, &kept));
    if let (Some(published), Some(held)) = (published, held)
        && published.size > held.size
    {
        let message = format_args!(
            "the signer went back: it is bound to size {}, but size {} is published under its key. Put the newest copy \
             of its directory back",
            held.size, published.size
        );
        findings.push(Finding::new(Kind::Damaged, signer, message));
    }
    if journal.flaws.is_empty() {
        findings.extend(beside::lookup(&config.directory, &origin, &journal));
        findings.extend(tree(&config.directory, &origin, journal.head.size));
    }
    Ok((journal, [published, held], findings))
}

fn policy(config: &LogConfig, findings: &mut Vec<Finding>) -> Option<Policy> {
    match state::vkey(config) {
        Ok(vkey) => Some(Policy::of_log(vkey)),
        Err(why) => {
            let message = format_args!("{why}. Without the vkey in it no signature was checked");
            findings.push(Finding::new(Kind::Damaged, config.directory.join("log.toml"), message));
            None
        }
    }
}

/// The published head, if both copies and its signature let it be known.
fn published_head(dir: &Path, policy: Option<&Policy>, findings: &mut Vec<Finding>) -> Option<TreeHead> {
    let opened = match state::open_dir(dir) {
        Ok(opened) => opened,
        Err(why) => {
            findings.push(Finding::new(Kind::Damaged, dir.to_owned(), why));
            return None;
        }
    };
    let (note, repaired) = match published::inspect(opened.as_ref()) {
        Ok(found) => found,
        Err(error) => {
            findings.push(Finding::new(Kind::Damaged, dir.to_owned(), error));
            return None;
        }
    };
    if let Some(repaired) = repaired {
        let kind = if repaired.bad == BadCopy::Behind { Kind::Unfinished } else { Kind::Damaged };
        let message = format_args!("{}; the next start writes it again from the other copy", repaired.bad);
        findings.push(Finding::new(kind, dir.join(repaired.name), message));
    }
    match Checkpoint::open(&note?, policy?) {
        Ok(checkpoint) => Some(checkpoint.head()),
        Err(error) => {
            let message = format_args!(
                "the published checkpoint is not valid: {error}; take it from a witness or a client"
            );
            findings.push(Finding::new(Kind::Damaged, dir.to_owned(), message));
            None
        }
    }
}

/// The head that the signer is bound to.
fn held_head(dir: &Path, origin: &Origin, findings: &mut Vec<Finding>) -> Option<TreeHead> {
    let held = inspect_heads(dir, findings)?;
    let held = held.into_iter().find(|(of, _)| of == origin).map(|(_, held)| held.head);
    if held.is_none() {
        let message = format_args!("it holds no head of {origin}; put the newest copy of the directory back");
        findings.push(Finding::new(Kind::Damaged, dir.join("heads"), message));
    }
    held
}

/// What the store of heads in a directory holds.
fn inspect_heads(dir: &Path, findings: &mut Vec<Finding>) -> Option<Vec<(Origin, Held)>> {
    let file = dir.join("heads");
    let inspected = state::open_dir(dir).map(|dir| head::inspect(dir.as_ref()));
    let head::Inspection { heads, warnings } = match inspected {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => {
            let finding = Finding::new(Kind::Damaged, file, &error);
            findings.push(match error {
                HeadError::Damaged { offset, .. } | HeadError::Version { offset, .. } => finding.at(offset),
                _ => finding,
            });
            return None;
        }
        Err(why) => {
            findings.push(Finding::new(Kind::Damaged, file, why));
            return None;
        }
    };
    findings.extend(warnings.into_iter().map(|warning| of_warning(&file, &warning)));
    Some(heads)
}

fn of_warning(file: &Path, warning: &Warning) -> Finding {
    let (offset, bad, message) = match warning {
        Warning::HeaderRepaired { offset, bad } => {
            (*offset, *bad, format!("a copy of the header: {bad}; the next start writes it again"))
        }
        Warning::CopyRepaired { offset, bad, .. } => {
            (*offset, *bad, format!("a copy of the newest head: {bad}; the next start writes it again"))
        }
        Warning::Torn { offset, bad, .. } => {
            let message = format!(
                "a slot beside the newest head: {bad}; the next commit writes it anew, a crash during one leaves this, too"
            );
            (*offset, *bad, message)
        }
        Warning::Suspect { .. } => return Finding::new(Kind::Damaged, file.to_owned(), warning),
    };
    let kind = if matches!(bad, Bad::Behind(_)) { Kind::Unfinished } else { Kind::Damaged };
    Finding::new(kind, file.to_owned(), message).at(offset)
}

fn of_flaw(dir: &Path, flaw: &Flaw) -> Finding {
    let finding = match &flaw.error {
        JournalError::Damaged { segment, offset, found } => {
            let message = format_args!("{found}; restore this segment from a backup or a mirror");
            Finding::new(Kind::Damaged, dir.join(segment), message).at(*offset)
        }
        JournalError::MissingSegment { segment, because } => {
            let message = format_args!("it is missing ({because}); restore it from a backup or a mirror");
            Finding::new(Kind::Damaged, dir.join(segment), message)
        }
        JournalError::OtherLog { segment, .. } => Finding::new(Kind::Damaged, dir.join(segment), &flaw.error),
        error => Finding::new(Kind::Damaged, dir.to_owned(), error),
    };
    Finding { index: Some(flaw.index.get()), ..finding }
}

/// Whether the journal reaches a head that was signed, and with its root.
fn compare(path: &Path, journal: &Inspection, what: &str, head: TreeHead) -> Option<Finding> {
    let finding = |kind, message: fmt::Arguments<'_>| {
        Some(Finding { index: Some(head.size.get()), ..Finding::new(kind, path.to_owned(), message) })
    };
    match journal.roots.get(&head.size) {
        Some(root) if *root == head.root => None,
        Some(root) => finding(
            Kind::Damaged,
            format_args!(
                "the journal is of another history: its root is {root} where {what} has {}. Put directories back that \
                 belong together",
                head.root
            ),
        ),
        None if journal.flaws.is_empty() => finding(
            Kind::Damaged,
            format_args!(
                "the journal went back: it has {} entries, but {what} has {}. Put the newest copy of the log's \
                 directory back",
                journal.head.size, head.size
            ),
        ),
        None => finding(
            Kind::Warning,
            format_args!("because of the damage, the root was not compared with that of {what}"),
        ),
    }
}

/// Compares the stored tree with the journal, in a copy: the store that keeps it writes to what it opens.
fn tree(log: &Path, origin: &Origin, entries: TreeSize) -> Option<Finding> {
    let tree = log.join("tree");
    if !tree.exists() {
        return None;
    }
    let copied = Scratch::new("fsck").and_then(|scratch| {
        let copy = scratch.path().join("tree");
        copy_files(&tree, &copy).map(|()| (scratch, copy))
    });
    let compared = match copied {
        Ok((_scratch, copy)) => preflight::compare_in_a_child(&copy, &log.join("journal"), origin, entries),
        Err(error) => Err(format!("it was not checked, because it cannot be copied: {error}")),
    };
    compared.err().map(|why| {
        let message = format_args!("{why}. It is derived: deleted, it is built again from the journal");
        Finding::new(Kind::Warning, tree, message)
    })
}

fn tell(findings: &[Finding], terminal: Terminal) {
    for finding in findings {
        let kind = match finding.kind {
            Kind::Damaged => terminal.bad(finding.kind),
            _ => terminal.bold(finding.kind),
        };
        terminal.line(format_args!("{kind}  {finding}"));
    }
}

fn report(
    origin: &Origin,
    journal: &Inspection,
    [published, held]: [Option<TreeHead>; 2],
    findings: &[Finding],
    terminal: Terminal,
) -> (Value, Outcome) {
    let damaged = findings.iter().filter(|finding| finding.kind == Kind::Damaged).count();
    tell(findings, terminal);
    let size = |head: Option<TreeHead>| head.map(|head| head.size.get());
    let root: &Hash = &journal.head.root;
    let value = json!({
        "clean": damaged == 0,
        "origin": origin.as_str(),
        "entries": journal.head.size.get(),
        "root": root.to_string(),
        "segments": journal.segments,
        "frames": journal.frames,
        "published": size(published),
        "signer": size(held),
        "findings": findings.iter().map(Finding::to_json).collect::<Vec<_>>(),
    });
    if damaged > 0 {
        let failure = Failure::state(format_args!(
            "{origin} is damaged (findings: {damaged}); nothing was changed. Keep a copy of both directories before you \
             repair anything"
        ));
        return (value, Err(failure));
    }
    let agree = match held {
        Some(_) => "journal, published checkpoint and signer agree",
        None => "journal and published checkpoint agree; the signer's head is not known",
    };
    terminal.line(format_args!(
        "{}: {} entries in {} segments, root {}; {agree}",
        terminal.good("clean"),
        journal.head.size,
        journal.segments,
        root
    ));
    (value, Ok(()))
}
