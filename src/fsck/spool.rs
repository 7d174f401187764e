//! The check of what a collector keeps: its keys and its spool.

use std::path::Path;

use epigraph_collector::spool::inspect::{Content, inspect};
use epigraph_store::lock;
use serde_json::json;

use super::{Finding, Kind, of_flaw, tell};
use crate::config::collector::CollectorConfig;
use crate::failure::{Failure, Outcome};
use crate::state;
use crate::terminal::Terminal;

pub fn run(path: &Path, terminal: Terminal) -> Outcome {
    let config = CollectorConfig::load(path)?;
    let _locked = state::lock_role(lock::Kind::Collector, &config.directory)?;
    let (content, findings) = check(&config.directory)?;
    tell(&findings, terminal);
    let damaged = findings.iter().filter(|finding| finding.kind == Kind::Damaged).count();
    let Content { tip, waiting, kept, .. } = &content;
    if damaged == 0 {
        terminal.line(format_args!(
            "{}: {waiting} batches wait and {kept} delivered ones are still there, each as it was signed; the next is batch {} of epoch {}",
            terminal.good("clean"),
            tip.number,
            tip.epoch
        ));
    }
    terminal.object(&json!({
        "clean": damaged == 0,
        "epoch": tip.epoch,
        "next_number": tip.number,
        "next_sequence": tip.sequence,
        "waiting_batches": waiting,
        "delivered_batches": kept,
        "findings": findings.iter().map(Finding::to_json).collect::<Vec<_>>(),
    }));
    if damaged == 0 {
        return Ok(());
    }
    Err(Failure::state(format_args!(
        "the collector in {} is damaged (findings: {damaged}); nothing was changed. Keep a copy of the directory before you repair anything",
        config.directory.display()
    )))
}

/// Checks the spool in a collector's directory.
pub fn check(directory: &Path) -> Outcome<(Content, Vec<Finding>)> {
    let vkey = state::collector::vkey(directory)?;
    let spool = directory.join(state::collector::SPOOL);
    let inspection = inspect(&state::open_dir(&spool)?, &vkey);
    let mut findings: Vec<Finding> = inspection.flaws.iter().map(|flaw| of_flaw(&spool, flaw)).collect();
    if let Some(torn) = &inspection.torn {
        let message = "the last batch was never completely written: it is cut off at the next start, and its events are read again";
        findings.push(Finding::new(Kind::Unfinished, spool.join(&torn.segment), message).at(torn.offset));
    }
    let content = match inspection.content {
        Some(Ok(content)) => content,
        Some(Err(error)) => {
            findings.push(Finding::new(Kind::Damaged, spool.clone(), error));
            Content::default()
        }
        None => Content::default(),
    };
    for (number, why) in &content.unsigned {
        let message = format_args!("batch {number} is not as it was signed: {why}");
        findings.push(Finding::new(Kind::Damaged, spool.clone(), message));
    }
    Ok((content, findings))
}
