//! The check of a monitor: its key, what it has seen and found, the files of its findings, and the messages that wait.

use std::path::Path;

use epigraph_core::VKey;
use epigraph_monitor::disk::{self, Badness, Inspection, Part};
use epigraph_monitor::sinks::queue;
use epigraph_store::lock;
use serde_json::{Value, json};

use super::{Finding, Kind, tell};
use crate::config::monitor::{MonitorConfig, SinkKind};
use crate::failure::{Failure, Outcome};
use crate::state::{self, monitor as layout};
use crate::terminal::Terminal;

pub fn monitor(path: &Path, terminal: Terminal) -> Outcome {
    let config = MonitorConfig::load(path)?;
    let directory = &config.directory;
    let _locked = state::lock_role(lock::Kind::Monitor, directory)?;
    let mut findings = Vec::new();
    let key = key(&config, &mut findings);
    let logs: Vec<_> = config.logs.iter().map(|log| (log.origin.clone(), log.policy.clone())).collect();
    let (known, evidence) = (directory.join(layout::STATE), directory.join(layout::EVIDENCE));
    let inspected = state::open_dir(&known)
        .and_then(|known| Ok((known, state::open_dir(&evidence)?)))
        .and_then(|(known, evidence)| {
            disk::inspect(known, evidence, &logs, key.as_ref()).map_err(Failure::state)
        })
        .unwrap_or_else(|why| {
            findings.push(Finding::new(Kind::Damaged, directory.clone(), why));
            Inspection::default()
        });
    for flaw in &inspected.flaws {
        let kind = match flaw.badness {
            Badness::Damaged => Kind::Damaged,
            Badness::Unfinished => Kind::Unfinished,
            Badness::Foreign => Kind::Warning,
        };
        let part = match flaw.part {
            Part::State => &known,
            Part::Evidence => &evidence,
        };
        findings.push(Finding::new(kind, part.join(&flaw.file), &flaw.why));
    }
    let waiting = queues(&config, &mut findings);
    rehearsal(&directory.join(layout::DRILL), &mut findings);
    report(directory, &inspected, waiting, &findings, terminal)
}

fn key(config: &MonitorConfig, findings: &mut Vec<Finding>) -> Option<VKey> {
    let loaded = layout::load_key(config).map(|key| key.vkey().clone());
    loaded
        .map_err(|why| {
            let message = format_args!("{why}. Without it no statement of the monitor was verified");
            findings.push(Finding::new(Kind::Damaged, config.key.clone(), message));
        })
        .ok()
}

/// How many messages wait.
fn queues(config: &MonitorConfig, findings: &mut Vec<Finding>) -> usize {
    let mut waiting = 0;
    for sink in config.sinks.iter().filter(|sink| matches!(sink.kind, SinkKind::Webhook(_))) {
        let path = layout::queue_directory(config, sink);
        if !path.exists() {
            let message = "the webhook has no queue: if it is new in the configuration, `epigraph init monitor` adds it";
            findings.push(Finding::new(Kind::Damaged, path, message));
            continue;
        }
        match state::open_dir(&path).and_then(|dir| queue::inspect(dir).map_err(Failure::state)) {
            Ok((whole, bad)) => {
                waiting += whole;
                let bad = bad.into_iter();
                findings.extend(bad.map(|(name, why)| Finding::new(Kind::Damaged, path.join(name), why)));
            }
            Err(why) => findings.push(Finding::new(Kind::Damaged, path, why)),
        }
    }
    waiting
}

fn rehearsal(path: &Path, findings: &mut Vec<Finding>) {
    let names = state::open_dir(path).ok().and_then(|dir| dir.list().ok()).unwrap_or_default();
    for name in names {
        let message = "a drill that was cut off left it; it is of no log, and may be deleted";
        findings.push(Finding::new(Kind::Unfinished, path.join(name), message));
    }
}

fn report(
    directory: &Path,
    inspected: &Inspection,
    waiting: usize,
    findings: &[Finding],
    terminal: Terminal,
) -> Outcome {
    tell(findings, terminal);
    let damaged = findings.iter().filter(|finding| finding.kind == Kind::Damaged).count();
    let Inspection { findings: in_book, logs, evidence, .. } = inspected;
    if damaged == 0 {
        terminal.line(format_args!(
            "{}: logs {}, findings {}, files of evidence {evidence}, messages that wait {waiting}",
            terminal.good("clean"),
            logs.len(),
            in_book.unwrap_or_default()
        ));
        terminal.line("an older copy would look the same, and does no harm: it reads again what it forgot");
    }
    let logs = logs.iter().map(|log| {
        json!({
            "origin": log.origin.as_str(),
            "size": log.consistent.get(),
            "heads": log.heads,
            "audited_size": log.audited.get(),
        })
    });
    terminal.object(&json!({
        "clean": damaged == 0,
        "logs": logs.collect::<Vec<Value>>(),
        "in_book": in_book,
        "evidence": evidence,
        "queued": waiting,
        "findings": findings.iter().map(Finding::to_json).collect::<Vec<_>>(),
    }));
    if damaged == 0 {
        return Ok(());
    }
    Err(Failure::state(format_args!(
        "the monitor in {} is damaged (findings: {damaged}); nothing was changed. Keep a copy of the directory, then put the newest clean \
         one in its place: an older one does no harm",
        directory.display()
    )))
}
