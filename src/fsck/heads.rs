//! The check of a signer or witness process by itself: the heads that it is bound to, its keys, and a witness's list.
//!
//! Whether a head is the newest that was signed nobody can tell from the directory: the gate finds that out at each start.

use std::collections::BTreeMap;
use std::path::Path;

use epigraph_core::checkpoint::{LogSigned, decode_text};
use epigraph_core::note::Parsed;
use epigraph_core::progress::Held;
use epigraph_core::{Origin, TreeHead, VKey};
use epigraph_signer::keys;
use epigraph_store::lock;
use epigraph_witness::list;
use serde_json::{Value, json};

use super::{Finding, Kind, inspect_heads, tell};
use crate::config::signer::SignerProcessConfig;
use crate::config::witness::{WitnessConfig, load_list};
use crate::failure::{Failure, Outcome};
use crate::state;
use crate::terminal::Terminal;

pub fn signer(path: &Path, terminal: Terminal) -> Outcome {
    let config = SignerProcessConfig::load(path)?;
    let _locked = state::lock_role(lock::Kind::Signer, &config.directory)?;
    let mut findings = Vec::new();
    let held = inspect_heads(&config.directory, &mut findings);
    for log in &config.logs {
        match keys::load(&log.key) {
            Ok(key) => check_name(key.vkey(), log.origin.as_str(), &log.key, &mut findings),
            Err(error) => findings.push(Finding::new(Kind::Damaged, log.key.clone(), error)),
        }
        let origin = log.origin.to_origin();
        if held.as_ref().is_some_and(|held| !held.iter().any(|(of, _)| *of == origin)) {
            let message = format_args!(
                "it holds no head of {origin}: if the log is a new one, run `init signer`; else put the newest copy of the \
                 directory back"
            );
            findings.push(Finding::new(Kind::Damaged, config.directory.join("heads"), message));
        }
    }
    let held = held.unwrap_or_default();
    let logs = held.iter().map(|(origin, held)| {
        let mut log = of_head(origin, held);
        log["term"] = json!(held.term);
        log
    });
    let logs = logs.collect();
    report("signer", &config.directory, logs, &findings, terminal)
}

pub fn witness(path: &Path, terminal: Terminal) -> Outcome {
    let config = WitnessConfig::load(path)?;
    let _locked = state::lock_role(lock::Kind::Witness, &config.directory)?;
    let mut findings = Vec::new();
    match keys::load_cosigning(&config.key) {
        Ok(key) => check_name(key.vkey(), config.name.as_str(), &config.key, &mut findings),
        Err(error) => findings.push(Finding::new(Kind::Damaged, config.key.clone(), error)),
    }
    let listed = listed(&config).unwrap_or_else(|error| {
        findings.push(Finding::new(Kind::Damaged, config.list(), error));
        BTreeMap::new()
    });
    let held = inspect_heads(&config.directory, &mut findings).unwrap_or_default();
    for (origin, held) in &held {
        if let Err(why) = check_note(origin, held, listed.get(origin)) {
            let message = format_args!("the head of {origin}: {why}");
            findings.push(Finding::new(Kind::Damaged, config.directory.join("heads"), message));
        }
    }
    let logs = held.iter().map(|(origin, held)| {
        let mut log = of_head(origin, held);
        log["cosigned_at_ms"] = json!((!held.note.is_empty()).then_some(held.time.0));
        log["listed"] = json!(listed.contains_key(origin));
        log
    });
    let logs = logs.collect();
    report("witness", &config.directory, logs, &findings, terminal)
}

fn check_name(vkey: &VKey, name: &str, file: &Path, findings: &mut Vec<Finding>) {
    if vkey.name().as_str() != name {
        let message = format_args!("the key is named {}, not {name}: put the right one back", vkey.name());
        findings.push(Finding::new(Kind::Damaged, file.to_owned(), message));
    }
}

fn listed(config: &WitnessConfig) -> Outcome<BTreeMap<Origin, VKey>> {
    let list = load_list(&config.list(), config.tls.client.is_some())?;
    let list: Vec<_> = list.into_iter().map(|(log, _)| log).collect();
    list::check(&list).map_err(Failure::usage)?;
    Ok(list.into_iter().map(|log| (log.origin, log.vkey)).collect())
}

/// The note that was cosigned must say what is held; where the log is listed, under its key.
fn check_note(origin: &Origin, held: &Held, vkey: Option<&VKey>) -> Result<(), String> {
    if held.note.is_empty() {
        return match held.head {
            TreeHead::EMPTY => Ok(()),
            head => Err(format!("size {} is held without the checkpoint that was cosigned", head.size)),
        };
    }
    let parsed = Parsed::parse(&held.note).map_err(|error| error.to_string())?;
    let (of, head) = decode_text(parsed.text()).map_err(|error| error.to_string())?;
    if of != *origin || head != held.head {
        return Err(format!("the checkpoint beside it is of {of}, size {}", head.size));
    }
    match vkey {
        Some(vkey) => LogSigned::open(&held.note, origin, std::slice::from_ref(vkey))
            .map(drop)
            .map_err(|error| format!("under the listed key: {error}")),
        None => Ok(()),
    }
}

fn of_head(origin: &Origin, held: &Held) -> Value {
    json!({
        "origin": origin.as_str(),
        "size": held.head.size.get(),
        "root": held.head.root.to_string(),
    })
}

fn report(
    role: &str,
    directory: &Path,
    logs: Vec<Value>,
    findings: &[Finding],
    terminal: Terminal,
) -> Outcome {
    tell(findings, terminal);
    let damaged = findings.iter().filter(|finding| finding.kind == Kind::Damaged).count();
    if damaged == 0 {
        let (count, clean) = (logs.len(), terminal.good("clean"));
        terminal.line(format_args!("{clean}: the heads of {count} logs, and all that belongs to them"));
        terminal.line("whether they are the newest that were signed, the next start finds out from the logs");
    }
    terminal.object(&json!({
        "clean": damaged == 0,
        "logs": logs,
        "findings": findings.iter().map(Finding::to_json).collect::<Vec<_>>(),
    }));
    if damaged == 0 {
        return Ok(());
    }
    Err(Failure::state(format_args!(
        "the {role} in {} is damaged (findings: {damaged}); nothing was changed. Keep a copy of the directory before you repair \
         anything",
        directory.display()
    )))
}
