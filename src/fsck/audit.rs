//! The check of what an audit service keeps: its store by itself, its indexes against that, then each leaf against the log, if that answers.

use std::path::Path;
use std::sync::Arc;
use std::thread;

use epigraph_audit::index::Index;
use epigraph_audit::index::compare::compare;
use epigraph_audit::index::follow::FollowError;
use epigraph_audit::store::inspect::Inspection;
use epigraph_audit::store::{Reader, StoreError};
use epigraph_audit::vault::KeyWrapper;
use epigraph_core::{Hash, LeafIndex, SourceVKey, TreeSize};
use epigraph_store::lock;
use serde_json::json;

use super::{Finding, Kind, tell};
use crate::config::audit::{AuditConfig, load_sources};
use crate::failure::{Failure, Outcome};
use crate::runtime;
use crate::scratch::{Scratch, copy_files};
use crate::serve::audit::client_with;
use crate::state;
use crate::terminal::Terminal;

pub fn run(path: &Path, terminal: Terminal) -> Outcome {
    let config = AuditConfig::load(path)?;
    let _locked = state::lock_role(lock::Kind::Audit, &config.directory)?;
    let Checked { inspection, compared, findings } = check(&config, true, terminal)?;
    tell(&findings, terminal);
    let damaged = findings.iter().filter(|finding| finding.kind == Kind::Damaged).count();
    let Inspection { sources, batches, events, erased, unplaced, .. } = &inspection;
    if damaged == 0 {
        let log = match compared {
            Some(leaves) => format!("{leaves} leaves are in the log as they are here"),
            None => "the log was not asked".to_owned(),
        };
        terminal.line(format_args!(
            "{}: {events} events in {batches} batches of {sources} sources, each what its leaf commits to and its source signed; {log}, \
             {unplaced} are on their way there",
            terminal.good("clean")
        ));
    }
    terminal.object(&json!({
        "clean": damaged == 0,
        "sources": sources,
        "batches": batches,
        "events": events,
        "erased_segments": erased,
        "leaves_compared": compared,
        "leaves_on_their_way": unplaced,
        "findings": findings.iter().map(Finding::to_json).collect::<Vec<_>>(),
    }));
    if damaged == 0 {
        return Ok(());
    }
    Err(Failure::state(format_args!(
        "the audit service in {} is damaged (findings: {damaged}); nothing was changed. Keep a copy of the directory before you repair \
         anything",
        config.directory.display()
    )))
}

/// What was found of a service.
pub struct Checked {
    inspection: Inspection,
    /// Leaves that were compared with the log's entries; none if it was not asked or did not answer.
    compared: Option<u64>,
    pub findings: Vec<Finding>,
}

/// Checks the store in the configuration's directory, and the log if it is to be asked.
pub fn check(config: &AuditConfig, ask: bool, terminal: Terminal) -> Outcome<Checked> {
    let store = state::audit::store(config);
    let mut findings = Vec::new();
    let own = state::audit::load_key(config)?.vkey().clone();
    let mut keys: Vec<SourceVKey> =
        load_sources(&config.list())?.into_iter().map(|source| source.vkey).collect();
    keys.push(own);
    let damaged = |error: StoreError| Finding::new(Kind::Damaged, store.clone(), error);
    let nothing =
        |finding| Checked { inspection: Inspection::default(), compared: None, findings: vec![finding] };
    let (reader, _copy) = match open(config, &store, &mut findings)? {
        Ok(opened) => opened,
        Err(error) => return Ok(nothing(damaged(error))),
    };
    let inspected = {
        let reader = reader.clone();
        let key_of = move |id: &Hash| keys.iter().find(|key| key.id() == *id).cloned();
        let mut progress = move |events: u64| terminal.progress(format_args!("{events} events opened"));
        // The library that reads the file gives up in its own way on what it cannot make sense of.
        thread::spawn(move || reader.inspect(&key_of, &mut progress)).join()
    };
    let inspection = match inspected {
        Ok(Ok(inspection)) => inspection,
        Ok(Err(error)) => return Ok(nothing(damaged(error))),
        Err(_) => {
            let message = "it cannot be read to its end: restore it from a backup";
            return Ok(nothing(Finding::new(Kind::Damaged, store, message)));
        }
    };
    let flaws = inspection.flaws.iter().map(|flaw| Finding {
        index: flaw.index.map(LeafIndex::get),
        ..Finding::new(Kind::Damaged, store.clone(), &flaw.message)
    });
    findings.extend(flaws);
    if inspection.more {
        findings.push(Finding::new(Kind::Warning, store.clone(), "there are more findings than are listed"));
    }
    let indexes = state::audit::index(config);
    if let Some(message) = about_index(&indexes, &reader, inspection.erased) {
        findings.push(Finding::new(Kind::Warning, indexes, message));
    }
    let compared = match ask {
        false => None,
        true => match compare_leaves(config, &reader, &store, &mut findings) {
            Ok(leaves) => Some(leaves),
            Err(why) => {
                let message = format_args!("the leaves were not compared with the log's ({why})");
                findings.push(Finding::new(Kind::Warning, store.clone(), message));
                None
            }
        },
    };
    Ok(Checked { inspection, compared, findings })
}

/// Opens the store; one that was not closed as a copy, because the library puts that in order in the file.
fn open(
    config: &AuditConfig,
    store: &Path,
    findings: &mut Vec<Finding>,
) -> Outcome<Result<(Reader, Option<Scratch>), StoreError>> {
    let wrapper: Arc<dyn KeyWrapper> = Arc::new(state::audit::load_wrapper(config)?);
    match Reader::of_stopped(store, Arc::clone(&wrapper)) {
        Err(error @ StoreError::NotClosed) => {
            findings.push(Finding::new(Kind::Unfinished, store.to_owned(), error));
            let cannot = |error| Failure::state(format!("cannot make a copy to look at: {error}"));
            let scratch = Scratch::new("fsck").map_err(cannot)?;
            let copy = scratch.path().join("events");
            std::fs::copy(store, &copy).map_err(cannot)?;
            let opened = epigraph_audit::store::Store::open(&copy, wrapper, runtime::entropy());
            Ok(opened.map(|store| (store.reader(), Some(scratch))))
        }
        opened => Ok(opened.map(|reader| (reader, None))),
    }
}

/// What is wrong with the indexes, if there are any: they are opened as a copy, made again beside it, and compared.
fn about_index(file: &Path, reader: &Reader, erased: u64) -> Option<String> {
    if !file.exists() {
        return None;
    }
    if erased > 0 {
        return Some("it was not compared with the events: some were erased since, so that it cannot be made again as it was".to_owned());
    }
    let compared = || {
        let scratch = Scratch::new("fsck-index").map_err(|error| format!("it was not looked at: {error}"))?;
        let (copy, beside) = (scratch.path().join("index"), scratch.path().join("again"));
        std::fs::copy(file, &copy)
            .map_err(|error| format!("it was not looked at: it cannot be copied: {error}"))?;
        let reader = reader.clone();
        // The library that reads the file gives up in its own way on what it cannot make sense of.
        let compared = thread::spawn(move || {
            let (id, cover) = (reader.producer()?, Arc::new(reader.cover()));
            let index = Index::open(&copy, &id, Arc::clone(&cover))?;
            let difference = compare(&index, &reader, &beside)?;
            drop(index);
            if difference.is_none() {
                // In some pages there is nothing to compare.
                Index::open_checked(&copy, &id, cover)?;
            }
            Ok::<_, FollowError>(difference)
        });
        match compared.join() {
            Ok(Ok(None)) => Ok(()),
            Ok(Ok(Some(difference))) => Err(difference.to_string()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("it cannot be read to its end".to_owned()),
        }
    };
    let wrong = compared().err()?;
    Some(format!(
        "{wrong}; it is derived: deleted while the service is stopped, it is made again from the events"
    ))
}

/// Compares every leaf that the log confirmed with the entry that it has there, which the client verifies.
fn compare_leaves(
    config: &AuditConfig,
    reader: &Reader,
    store: &Path,
    findings: &mut Vec<Finding>,
) -> Result<u64, Failure> {
    // What the client remembers of the log is the service's to change.
    let scratch = Scratch::new("fsck-pin").map_err(Failure::state)?;
    let pin = scratch.path().join("pin");
    copy_files(&state::audit::pin(config), &pin).map_err(Failure::state)?;
    let mut compared = 0;
    runtime::runtime().map_err(Failure::state)?.block_on(async {
        let client = client_with(config, &pin)?;
        for (first, count, first_slot) in reader.runs().map_err(Failure::state)? {
            let end = first.get().checked_add(count).and_then(TreeSize::new);
            let mut entries = client.entries(first, end).await?;
            let mut slot = first_slot;
            while let Some(page) = entries.next_page().await? {
                for (entry, index) in page.entries.iter().zip(page.first_index.get()..) {
                    let leaf = reader.stored_leaf(slot).map_err(Failure::state)?;
                    if leaf.is_none_or(|leaf| leaf != **entry) {
                        let message = "the log has another leaf in this place than the service";
                        let finding = Finding::new(Kind::Damaged, store.to_owned(), message);
                        findings.push(Finding { index: Some(index), ..finding });
                    }
                    (slot, compared) = (slot + 1, compared + 1);
                }
            }
        }
        Ok(compared)
    })
}
