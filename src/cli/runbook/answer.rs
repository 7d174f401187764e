//! An answer as it comes in, what of it can be verified, and how it is shown.

use std::path::Path;

use epigraph_audit::query::digest::AnswerDigest;
use epigraph_core::{Checkpoint, Hash};
use epigraph_event::Bundle;
use epigraph_event::bundle::Proven;
use epigraph_rpc::peer::query::{
    ApprovalNeeded, Part, Planned, QueryCost, QueryEstimate, QueryFinished, QueryRefused, QueryRow, Question,
    Run, SourceWindow,
};
use serde_json::{Value, json};

use super::audit::Audited;
use crate::cli::audit::keep;
use crate::failure::{Failure, Kind, Outcome};
use crate::profile::{self, Profile};
use crate::terminal::{Terminal, plain};

/// Characters of a value in a table: what is longer is in the JSON and in the proofs.
const MAX_WIDTH: usize = 48;

/// Rows that are kept in memory: above what any role may be answered.
const MAX_ROWS: usize = 1 << 20;

/// An answer.
pub struct Answer {
    pub planned: Planned,
    pub rows: Vec<QueryRow>,
    pub finished: QueryFinished,
    /// The size of the published checkpoint that covers every row.
    pub size: u64,
}

/// Asks, and tells what became of it. None if it was to be planned only.
pub async fn fetch(
    profile: &Profile,
    question: &Question,
    run: &Run,
    terminal: Terminal,
) -> Outcome<Option<Answer>> {
    let failed = |error| profile::of_call_to(&error, "audit service");
    let mut parts =
        profile.query()?.run(profile.origin.as_str(), question.clone(), run).await.map_err(failed)?;
    let planned = match parts.next().await.map_err(failed)? {
        Some(Part::Planned(planned)) => planned,
        Some(Part::Refused(refused)) => return Err(refusal(&refused)),
        Some(Part::ApprovalNeeded(needed)) => {
            return Err(approval_needed(&needed, "--approval", terminal));
        }
        _ => return Err(garbled("it began with something else than a plan")),
    };
    let estimate = planned.estimate.unwrap_or_default();
    terminal.line(terminal.dim(format_args!(
        "{} version {}: {}",
        plain(&planned.runbook),
        planned.version,
        estimated(&estimate)
    )));
    if run.plan_only {
        terminal.object(&json!({ "estimate": estimate_object(&estimate), "columns": planned.columns, "masked": planned.masked }));
        return Ok(None);
    }
    let hash = hash(&planned.runbook_hash)?;
    let (mut rows, mut digest) = (Vec::new(), AnswerDigest::new(&hash, &planned.columns));
    loop {
        match parts.next().await.map_err(failed)? {
            Some(Part::Rows(more)) => {
                for row in more {
                    if row.values.len() != planned.columns.len()
                        || row.leaf_indexes.is_empty()
                        || rows.len() == MAX_ROWS
                    {
                        return Err(garbled("a row does not fit the plan"));
                    }
                    digest.row(&row.leaf_indexes, &row.values);
                    rows.push(row);
                }
                terminal.progress(format_args!("{} rows", rows.len()));
            }
            Some(Part::Finished(finished)) => {
                if self::hash(&finished.digest)? != digest.finish() {
                    return Err(Failure::no(
                        "the digest that the service has put on record is not that of the rows it sent: keep this output, and show it to whoever runs the service",
                    ));
                }
                let checkpoint = Checkpoint::open(&finished.checkpoint, &profile.policy);
                let checkpoint = checkpoint.map_err(|error| {
                    Failure::no(format_args!("the checkpoint under which the service answered: {error}"))
                })?;
                let size = checkpoint.head().size.get();
                if rows.iter().flat_map(|row: &QueryRow| &row.leaf_indexes).any(|leaf| *leaf >= size) {
                    return Err(garbled("a row is beyond the checkpoint under which it was answered"));
                }
                return Ok(Some(Answer { planned, rows, finished, size }));
            }
            Some(_) => return Err(garbled("something stands between its rows")),
            None => {
                return Err(Failure::unreachable(
                    "the answer ended before its end: it may have been cancelled",
                ));
            }
        }
    }
}

impl Answer {
    /// Verifies what proves each row, and keeps it. Returns how many events that are.
    pub fn verify(&self, profile: &Profile, dir: &Path) -> Outcome<usize> {
        let mut events: Vec<(Bundle, Proven)> = Vec::new();
        for row in &self.rows {
            if row.bundles.len() != row.leaf_indexes.len() {
                return Err(Failure::no(format!(
                    "the row of leaf {} came without what proves it",
                    row.leaf_indexes.first().copied().unwrap_or_default()
                )));
            }
            for (index, bytes) in row.leaf_indexes.iter().zip(&row.bundles) {
                let (bundle, proven) = open(bytes, profile)?;
                if proven.index.get() != *index {
                    return Err(Failure::no(format!(
                        "the proof beside leaf {index} is of leaf {}",
                        proven.index
                    )));
                }
                events.push((bundle, proven));
            }
        }
        events.sort_by_key(|(_, proven)| proven.index);
        events.dedup_by_key(|(_, proven)| proven.index);
        keep(dir, &events)?;
        Ok(events.len())
    }

    pub fn show(
        &self,
        kept: Option<usize>,
        dir: Option<&Path>,
        audited: Option<&Audited>,
        terminal: Terminal,
    ) {
        self.table(terminal);
        let QueryFinished { cost, truncated, sources, .. } = &self.finished;
        let cost = cost.unwrap_or_default();
        let (estimate, more) =
            (self.planned.estimate.unwrap_or_default(), if *truncated { ", and there are more" } else { "" });
        terminal.line(format_args!(
            "{} rows{more}; read {} rows and {} of at most {} and {}, in {} ms",
            self.rows.len(),
            cost.rows_examined,
            bytes(cost.bytes_read),
            estimate.rows,
            bytes(estimate.bytes),
            cost.millis,
        ));
        if !self.finished.next_page_token.is_empty() {
            terminal.line(format_args!("go on with --page {}", plain(&self.finished.next_page_token)));
        }
        if !self.planned.masked.is_empty() {
            terminal.line(format_args!(
                "shown as tokens, because you may not see more: {}",
                plain(&self.planned.masked.join(", "))
            ));
        }
        terminal.line(format_args!("read at the published checkpoint of size {}", self.size));
        if self.finished.unindexed > 0 {
            terminal.line(format_args!(
                "{} the indexes do not know the newest {} events yet, so they are not in this answer; ask again in a moment",
                terminal.bad("behind:"),
                self.finished.unindexed
            ));
        }
        for source in sources {
            let missing = match source.missing.as_slice() {
                [] => terminal.good("no gap"),
                missing => {
                    terminal.bad(format_args!("{} missing, the first is {}", missing.len(), missing[0]))
                }
            };
            terminal.line(format_args!(
                "  {}: {} events in the window, {} to {} of epoch {}, {missing}",
                plain(super::super::audit::name(&source.vkey)),
                source.events,
                source.first_sequence,
                source.last_sequence,
                source.epoch
            ));
        }
        match (kept, dir) {
            (Some(0), _) => terminal.line("no row, so there is nothing to keep and to prove"),
            (Some(kept), Some(dir)) => terminal.line(format_args!(
                "{} {kept} events, each with its proof, are in {}",
                terminal.good("verified:"),
                dir.display()
            )),
            _ => {}
        }
        match audited {
            Some(audited) => audited.show(terminal),
            None => terminal.line(
                "That these rows are in the log can be proven; that none was left out, not by this answer: --audit shows it.",
            ),
        }
        terminal.object(&self.object(kept, audited));
    }

    fn table(&self, terminal: Terminal) {
        let columns = &self.planned.columns;
        let shown = |value: &str| -> String {
            let value = plain(value);
            match value.char_indices().nth(MAX_WIDTH) {
                Some((end, _)) => format!("{}…", &value[..end]),
                None => value,
            }
        };
        let rows: Vec<Vec<String>> =
            self.rows.iter().map(|row| row.values.iter().map(|value| shown(value)).collect()).collect();
        let width = |at: usize| {
            let values = rows.iter().filter_map(|row| row.get(at)).map(|value| value.chars().count());
            values.chain([columns[at].chars().count()]).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..columns.len()).map(width).collect();
        let line = |values: &[String]| {
            let cells = values.iter().zip(&widths).map(|(value, width)| format!("{value:<width$}"));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        terminal.line(terminal.bold(line(&columns.iter().map(|name| plain(name)).collect::<Vec<_>>())));
        for row in &rows {
            terminal.line(line(row));
        }
    }

    fn object(&self, kept: Option<usize>, audited: Option<&Audited>) -> Value {
        let QueryFinished { cost, truncated, digest, checkpoint, sources, next_page_token, unindexed } =
            &self.finished;
        let row = |row: &QueryRow| {
            let values =
                self.planned.columns.iter().cloned().zip(row.values.iter().map(|value| json!(value)));
            json!({ "leaf_indexes": row.leaf_indexes, "values": values.collect::<serde_json::Map<_, _>>() })
        };
        json!({
            "query_id": self.planned.query_id,
            "runbook": self.planned.runbook,
            "version": self.planned.version,
            "runbook_hash": hex(&self.planned.runbook_hash),
            "estimate": self.planned.estimate.as_ref().map(estimate_object),
            "columns": self.planned.columns,
            "masked": self.planned.masked,
            "rows": self.rows.iter().map(row).collect::<Vec<_>>(),
            "cost": cost.as_ref().map(cost_object),
            "truncated": truncated,
            "next_page_token": next_page_token,
            "unindexed": unindexed,
            "digest": hex(digest),
            "checkpoint": String::from_utf8_lossy(checkpoint),
            "sources": sources.iter().map(source_object).collect::<Vec<_>>(),
            "verified_events": kept,
            "audit": audited.map(Audited::object),
        })
    }
}

/// A bundle that was verified with what a client directory trusts.
pub fn open(bytes: &[u8], profile: &Profile) -> Outcome<(Bundle, Proven)> {
    let bundle = Bundle::parse(bytes).map_err(garbled)?;
    let proven = bundle.verify(&profile.policy, &profile.sources).map_err(Failure::no)?;
    Ok((bundle, proven))
}

/// Says that somebody else has to agree, and with which option to come back.
pub fn approval_needed(needed: &ApprovalNeeded, option: &str, terminal: Terminal) -> Failure {
    let estimate = needed.estimate.as_ref();
    terminal.object(&json!({
        "approval_needed": needed.approval_id,
        "reason": needed.reason,
        "estimate": estimate.map(estimate_object),
        "expires_at_ms": needed.expires_at_ms,
    }));
    Failure::new(
        Kind::Refused,
        format_args!(
            "{}: this needs the approval of somebody else. Ask for {id}: `epigraph approval grant {id}`; once it is granted, run \
             the same again with {option} {id}{}",
            plain(&needed.reason),
            estimate.map_or_else(String::new, |estimate| format!(" (estimate: {})", estimated(estimate))),
            id = plain(&needed.approval_id),
        ),
    )
}

pub fn refusal(refused: &QueryRefused) -> Failure {
    let estimate = refused.estimate.as_ref();
    let estimate =
        estimate.map_or_else(String::new, |estimate| format!(" (estimate: {})", estimated(estimate)));
    let suggestion = match refused.suggestion.as_str() {
        "" => String::new(),
        suggestion => format!(". {}", plain(suggestion)),
    };
    Failure::new(
        Kind::Refused,
        format_args!("{}: {}{estimate}{suggestion}", plain(&refused.code), plain(&refused.message)),
    )
}

fn garbled(why: impl std::fmt::Display) -> Failure {
    Failure::no(format_args!("the service's answer cannot be used: {why}"))
}

fn hash(bytes: &[u8]) -> Outcome<Hash> {
    bytes.try_into().map(Hash::from_bytes).map_err(|_| garbled("a hash of it has not 32 bytes"))
}

pub fn estimated(estimate: &QueryEstimate) -> String {
    let days = match estimate.days {
        1 => "1 day".to_owned(),
        days => format!("{days} days"),
    };
    format!("at most {} rows and {} of {days}", estimate.rows, bytes(estimate.bytes))
}

pub fn bytes(count: u64) -> String {
    match count {
        0..10_000 => format!("{count} bytes"),
        10_000..10_240_000 => format!("{} KiB", count >> 10),
        _ => format!("{} MiB", count >> 20),
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn estimate_object(estimate: &QueryEstimate) -> Value {
    json!({ "rows": estimate.rows, "bytes": estimate.bytes, "days": estimate.days })
}

pub fn cost_object(cost: &QueryCost) -> Value {
    json!({
        "rows_examined": cost.rows_examined,
        "rows_returned": cost.rows_returned,
        "bytes_read": cost.bytes_read,
        "millis": cost.millis,
    })
}

fn source_object(source: &SourceWindow) -> Value {
    json!({
        "vkey": source.vkey,
        "epoch": source.epoch,
        "first_sequence": source.first_sequence,
        "last_sequence": source.last_sequence,
        "events": source.events,
        "missing": source.missing,
        "last_seen_ms": source.last_seen_ms,
    })
}
