//! What a monitor found, one finding after the other.

use std::collections::BTreeMap;

use epigraph_monitor::book::MAX_FINDINGS;
use epigraph_rpc::CallError;
use epigraph_rpc::peer::monitor::{Finding, FindingChange, FindingClass, FindingSeverity};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{Asked, LOOK_AGAIN, ago, count, plain, refused};
use crate::failure::Outcome;
use crate::runtime;
use crate::terminal::Terminal;

/// So much of an id is shown: no two of a monitor's findings have it in common, but by design of whoever names the logs.
const ID_PREFIX: usize = 8;

pub(super) async fn list(asked: &Asked, resolved: bool, terminal: Terminal) -> Outcome {
    let mut found = asked.findings(resolved).await?;
    found.sort_by_key(|finding| (finding.resolved.is_some(), finding.first_at));
    for finding in &found {
        show(finding, terminal);
        terminal.line("");
    }
    let open = found.iter().filter(|finding| finding.resolved.is_none()).count();
    match open {
        0 => terminal.line(terminal.good("nothing is open")),
        open => terminal.line(count(open as u64, "finding is open", "findings are open")),
    }
    terminal.object(&json!({ "findings": found.iter().map(object).collect::<Vec<_>>() }));
    Ok(())
}

/// What is open, then every change. When the monitor wants to be asked anew, only what is new is shown.
pub(super) async fn watch(asked: &Asked, terminal: Terminal) -> Outcome {
    let mut shown: BTreeMap<String, Finding> = BTreeMap::new();
    let mut watching = asked.monitor.watch_findings(&asked.origin).await.map_err(|error| refused(&error))?;
    loop {
        match watching.next().await {
            Ok(Some((change, finding))) => {
                if shown.get(&finding.id) == Some(&finding) {
                    continue;
                }
                terminal.line(terminal.bold(word(change)));
                show(&finding, terminal);
                let mut said = object(&finding);
                said["change"] = word(change).into();
                terminal.object(&said);
                if shown.len() >= MAX_FINDINGS {
                    shown.clear();
                }
                shown.insert(finding.id.clone(), finding);
            }
            Ok(None) => watching = again(asked, terminal).await?,
            Err(error @ CallError::Refused(_)) => return Err(refused(&error)),
            Err(error) => {
                terminal.note(refused(&error));
                watching = again(asked, terminal).await?;
            }
        }
    }
}

async fn again(asked: &Asked, terminal: Terminal) -> Outcome<epigraph_rpc::peer::monitor::WatchedFindings> {
    loop {
        sleep(LOOK_AGAIN).await;
        match asked.monitor.watch_findings(&asked.origin).await {
            Ok(watching) => return Ok(watching),
            Err(error @ CallError::Refused(_)) => return Err(refused(&error)),
            Err(error) => terminal.note(refused(&error)),
        }
    }
}

/// For the person on call: what, about what, what it means, what to do.
pub(super) fn show(finding: &Finding, terminal: Terminal) {
    let now = runtime::clock().now();
    let code = plain(&finding.code);
    let code = if finding.resolved.is_some() { code } else { terminal.bad(code) };
    terminal.line(format_args!(
        "{} {code}, {}, {}: {} of {}",
        terminal.bold(short(finding)),
        severity(finding),
        class(finding),
        plain(&finding.subject),
        plain(&finding.origin)
    ));
    terminal.line(format_args!("  {}", plain(&finding.meaning)));
    terminal.line(format_args!("  {}", plain(&finding.detail)));
    terminal.line(format_args!(
        "  seen {}, first {}, last {}",
        count(finding.count, "time", "times"),
        ago(Some(finding.first_at), now),
        ago(Some(finding.last_at), now)
    ));
    if let Some(taken) = &finding.acknowledged {
        terminal.line(format_args!(
            "  taken note of {} by {}: {}",
            ago(Some(taken.at), now),
            plain(&taken.by),
            plain(&taken.why)
        ));
    }
    match finding.resolved {
        Some(at) => terminal.line(format_args!("  {} {}", terminal.good("resolved"), ago(Some(at), now))),
        None => terminal.line(format_args!("  {} {}", terminal.bold("next:"), plain(&finding.next_step))),
    }
    if finding.evidence.is_some() {
        let id = short(finding);
        terminal.line(terminal.dim(format_args!("  epigraph monitor evidence {id} --out FILE")));
    }
}

pub(super) fn object(finding: &Finding) -> Value {
    let taken = finding.acknowledged.as_ref();
    json!({
        "id": finding.id,
        "code": finding.code,
        "class": class(finding),
        "severity": severity(finding),
        "origin": finding.origin,
        "subject": finding.subject,
        "first_at_ms": finding.first_at.0,
        "last_at_ms": finding.last_at.0,
        "count": finding.count,
        "detail": finding.detail,
        "meaning": finding.meaning,
        "next_step": finding.next_step,
        "evidence": finding.evidence,
        "resolved_at_ms": finding.resolved.map(|at| at.0),
        "acknowledged": taken.map(|taken| json!({ "by": taken.by, "why": taken.why, "at_ms": taken.at.0 })),
    })
}

/// The beginning of its id.
pub(super) fn short(finding: &Finding) -> String {
    plain(&finding.id).chars().take(ID_PREFIX).collect()
}

pub(super) fn is_proof(finding: &Finding) -> bool {
    finding.class == FindingClass::Proof
}

pub(super) fn class(finding: &Finding) -> &'static str {
    if is_proof(finding) { "proof" } else { "observation" }
}

/// The words of deploy/alerts.yml.
fn severity(finding: &Finding) -> &'static str {
    match finding.severity {
        FindingSeverity::Page => "page",
        FindingSeverity::Warn => "ticket",
    }
}

fn word(change: FindingChange) -> &'static str {
    match change {
        FindingChange::Standing => "open",
        FindingChange::Opened => "opened",
        FindingChange::Reminded => "reminded",
        FindingChange::Reopened => "reopened",
        FindingChange::Resolved => "resolved",
        FindingChange::Acknowledged => "acknowledged",
    }
}
