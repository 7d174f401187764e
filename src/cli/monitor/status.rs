//! How a monitor stands with its logs, as a table.

use epigraph_core::UnixMillis;
use epigraph_rpc::peer::monitor::{
    Finding, MonitorStatus, MonitoredLog, SinkStatus, VantageKind, VantageStatus,
};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{Asked, LOOK_AGAIN, ago, columns, count, findings, plain, refused};
use crate::cli::witness::age;
use crate::failure::{Failure, Outcome};
use crate::runtime;
use crate::terminal::Terminal;

/// So much of a root tells two of them apart.
const ROOT_PREFIX: usize = 12;

/// What is shown at once.
struct Look {
    status: MonitorStatus,
    findings: Vec<Finding>,
    at: UnixMillis,
}

pub(super) async fn once(asked: &Asked, terminal: Terminal) -> Outcome {
    let look = Look::take(asked).await?;
    look.lines(asked, terminal).iter().for_each(|line| terminal.line(line));
    terminal.object(&look.object(asked));
    match look.findings.iter().filter(|finding| finding.acknowledged.is_none()).count() {
        0 => Ok(()),
        open => Err(Failure::no(format!(
            "{} that nobody has taken note of; `epigraph monitor findings` says what to do",
            count(open as u64, "finding is open", "findings are open")
        ))),
    }
}

/// A monitor that does not answer for a while is shown as such: whoever watches wants to see it come back.
pub(super) async fn watch(asked: &Asked, terminal: Terminal) -> Outcome {
    let mut look = Look::take(asked).await?;
    loop {
        terminal.screen(&look.lines(asked, terminal));
        terminal.object(&look.object(asked));
        look = loop {
            sleep(LOOK_AGAIN).await;
            match Look::take(asked).await {
                Ok(look) => break look,
                Err(failure) => terminal.note(failure),
            }
        };
    }
}

impl Look {
    async fn take(asked: &Asked) -> Outcome<Look> {
        let status = asked.monitor.status(&asked.origin).await.map_err(|error| refused(&error))?;
        let findings = asked.findings(false).await?;
        Ok(Look { status, findings, at: runtime::clock().now() })
    }

    fn lines(&self, asked: &Asked, terminal: Terminal) -> Vec<String> {
        let name = self.status.vkey.split('+').next().unwrap_or_default();
        let mut lines =
            vec![format!("{} at {}", terminal.bold(format_args!("monitor {}", plain(name))), asked.address)];
        lines.push(terminal.dim(format_args!("  signs as {}", plain(&self.status.vkey))));
        for log in &self.status.logs {
            lines.push(String::new());
            self.log(log, terminal, &mut lines);
        }
        if self.status.logs.is_empty() {
            lines.push("it watches no log that this certificate may see".to_owned());
        }
        if !self.status.sinks.is_empty() {
            lines.push(String::new());
            lines.push(terminal.bold("who is told"));
            lines.extend(table(
                ["name", "waiting", "given up", "last told", ""],
                self.status.sinks.iter().map(|sink| (self.sink(sink), sink.trouble.is_empty())),
                terminal,
            ));
        }
        if let Some(drill) = &self.status.drill {
            lines.push(match drill.resolved {
                Some(ended) => terminal.dim(format_args!("  last drill {}", ago(Some(ended), self.at))),
                None => format!(
                    "  {}",
                    terminal.bold("a drill is going on: whoever is told hears of epigraph.drill")
                ),
            });
        }
        if self.status.lost > 0 {
            let lost = count(self.status.lost, "finding", "findings");
            lines.push(String::new());
            lines.push(terminal.bad(format_args!("for {lost} there was no room in the monitor's book")));
        }
        lines
    }

    fn log(&self, log: &MonitoredLog, terminal: Terminal, lines: &mut Vec<String>) {
        lines.push(terminal.bold(plain(&log.origin)));
        let newest = newest(log);
        lines.extend(table(
            ["seen at", "", "size", "root", "age", "lag", "read to", "last full audit", "answered"],
            log.vantages.iter().map(|seen| (self.vantage(seen, newest), seen.trouble.is_empty())),
            terminal,
        ));
        lines.push(format!(
            "  one history up to {}; every entry read up to {}; last full audit {}",
            log.consistent,
            log.audited,
            ago(log.last_full_audit, self.at)
        ));
        if log.open == 0 {
            lines.push(format!("  {}", terminal.good("nothing is found")));
            return;
        }
        let open = count(log.open, "finding is open", "findings are open");
        lines.push(format!(
            "  {}, {} of them not taken note of",
            terminal.bad(open),
            terminal.bold(log.unacknowledged)
        ));
        let of_this = self.findings.iter().filter(|finding| finding.origin == log.origin);
        lines.extend(table(
            ["", "what", "about", "times", "first", "last", "taken note of by"],
            of_this.map(|finding| (self.finding(finding), finding.acknowledged.is_some())),
            terminal,
        ));
    }

    fn vantage(&self, seen: &VantageStatus, newest: u64) -> [String; 9] {
        let none = || "-".to_owned();
        let head = seen.head;
        let reads = seen.vantage.kind == VantageKind::Log;
        let answered = match seen.trouble.is_empty() {
            true => ago(seen.reached, self.at),
            false => format!("{}: {}", ago(seen.reached, self.at), plain(&seen.trouble)),
        };
        [
            plain(&seen.vantage.name),
            kind(seen.vantage.kind).to_owned(),
            head.map_or_else(none, |head| head.size.to_string()),
            head.map_or_else(none, |head| head.root.to_string().chars().take(ROOT_PREFIX).collect()),
            seen.head_at.map_or_else(none, |at| age(self.at.0.saturating_sub(at.0) / 1_000)),
            head.map_or_else(none, |head| newest.saturating_sub(head.size.get()).to_string()),
            if reads { seen.audited.to_string() } else { none() },
            if reads { ago(seen.last_full_audit, self.at) } else { none() },
            answered,
        ]
    }

    fn finding(&self, finding: &Finding) -> [String; 7] {
        let by = finding.acknowledged.as_ref().map(|taken| plain(&taken.by)).unwrap_or_default();
        [
            findings::short(finding),
            plain(&finding.code),
            plain(&finding.subject),
            finding.count.to_string(),
            ago(Some(finding.first_at), self.at),
            ago(Some(finding.last_at), self.at),
            by,
        ]
    }

    fn sink(&self, sink: &SinkStatus) -> [String; 5] {
        [
            plain(&sink.name),
            sink.queued.to_string(),
            sink.dropped.to_string(),
            ago(sink.delivered, self.at),
            plain(&sink.trouble),
        ]
    }

    fn object(&self, asked: &Asked) -> Value {
        let MonitorStatus { vkey, logs, sinks, lost, drill } = &self.status;
        json!({
            "address": asked.address,
            "vkey": vkey,
            "logs": logs.iter().map(log_object).collect::<Vec<_>>(),
            "findings": self.findings.iter().map(findings::object).collect::<Vec<_>>(),
            "sinks": sinks.iter().map(sink_object).collect::<Vec<_>>(),
            "lost_findings": lost,
            "drill": drill.as_ref().map(findings::object),
        })
    }
}

/// The size of the newest head that was seen anywhere.
fn newest(log: &MonitoredLog) -> u64 {
    log.vantages.iter().filter_map(|seen| seen.head).map(|head| head.size.get()).max().unwrap_or(0)
}

/// With a heading; a row that is not well stands out.
fn table<const N: usize>(
    heading: [&str; N],
    rows: impl Iterator<Item = ([String; N], bool)>,
    terminal: Terminal,
) -> Vec<String> {
    let (mut cells, mut well) = (vec![heading.map(str::to_owned)], Vec::new());
    for (row, is_well) in rows {
        cells.push(row);
        well.push(is_well);
    }
    let styled = columns(&cells).into_iter().enumerate().map(|(number, line)| {
        match number.checked_sub(1).and_then(|row| well.get(row)) {
            None => format!("  {}", terminal.dim(line)),
            Some(true) => format!("  {line}"),
            Some(false) => format!("  {}", terminal.bad(line)),
        }
    });
    styled.collect()
}

fn kind(kind: VantageKind) -> &'static str {
    match kind {
        VantageKind::Log => "log",
        VantageKind::Witness => "witness",
        VantageKind::Monitor => "monitor",
        VantageKind::File => "files",
    }
}

fn log_object(log: &MonitoredLog) -> Value {
    let newest = newest(log);
    let vantages = log.vantages.iter().map(|seen| {
        json!({
            "name": seen.vantage.name,
            "kind": kind(seen.vantage.kind),
            "size": seen.head.map(|head| head.size.get()),
            "root": seen.head.map(|head| head.root.to_string()),
            "head_at_ms": seen.head_at.map(|at| at.0),
            "lag_entries": seen.head.map(|head| newest.saturating_sub(head.size.get())),
            "reached_at_ms": seen.reached.map(|at| at.0),
            "trouble": Some(&seen.trouble).filter(|trouble| !trouble.is_empty()),
            "audited_size": seen.audited.get(),
            "last_full_audit_ms": seen.last_full_audit.map(|at| at.0),
        })
    });
    json!({
        "origin": log.origin,
        "consistent_size": log.consistent.get(),
        "audited_size": log.audited.get(),
        "last_full_audit_ms": log.last_full_audit.map(|at| at.0),
        "open_findings": log.open,
        "unacknowledged_findings": log.unacknowledged,
        "vantages": vantages.collect::<Vec<_>>(),
    })
}

fn sink_object(sink: &SinkStatus) -> Value {
    json!({
        "name": sink.name,
        "queued": sink.queued,
        "dropped": sink.dropped,
        "delivered_at_ms": sink.delivered.map(|at| at.0),
        "trouble": Some(&sink.trouble).filter(|trouble| !trouble.is_empty()),
    })
}
