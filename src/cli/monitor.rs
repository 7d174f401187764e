//! `epigraph monitor`: asks a running monitor what it sees and what it found, takes note of a finding, and fetches its file.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use epigraph_core::UnixMillis;
use epigraph_rpc::peer::Monitor;
use epigraph_rpc::peer::monitor::{
    Finding, FindingClass, FindingSeverity, MonitorStatus, MonitoredLog, VantageKind, VantageStatus,
};
use epigraph_rpc::{CallError, SpiffeId};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::witness::{age, reachable};
use crate::config::monitor::MonitorConfig;
use crate::failure::{Failure, Outcome};
use crate::profile::{self, Profile};
use crate::runtime;
use crate::terminal::Terminal;

/// Between two looks of `--watch`.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Pages of findings: far more than a monitor keeps.
const MAX_PAGES: usize = 64;

/// So many digits of a root are compared at a glance; `--json` has all of them.
const SHOWN_DIGITS: usize = 12;

/// The fewest digits of an id that name a finding.
const MIN_ID_DIGITS: usize = 4;

#[derive(Subcommand)]
pub enum MonitorCommand {
    /// Show where a monitor looks at its logs, what it sees there, and how far it has read
    Status(Status),
    /// List what a monitor found, what it means, and what to do next
    Findings(Findings),
    /// Take note of a finding in your own name, so that nobody is reminded of it any more
    Ack(Ack),
    /// Fetch the file of a finding, to be judged with `epigraph verify`
    Evidence(Evidence),
}

/// Whom to ask, and who asks: the certificate must have the role operator or auditor at the monitor.
#[derive(Args)]
pub struct Whom {
    /// A client directory, whose certificate is used
    #[arg(long, value_name = "DIR", env = "EPIGRAPH_PROFILE")]
    pub profile: Option<PathBuf>,

    /// The monitor's own configuration, on its own machine: where it listens, and without --profile the certificate of
    /// [tls.client]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Where the monitor listens
    #[arg(long, value_name = "HOST:PORT")]
    pub address: Option<String>,

    /// Who it must prove to be: spiffe://audit.example/epigraph/monitor/NAME
    #[arg(long, value_name = "URI")]
    pub server: Option<SpiffeId>,
}

#[derive(Args)]
pub struct Status {
    #[command(flatten)]
    pub whom: Whom,

    /// Look again every two seconds, until Ctrl-C
    #[arg(long)]
    pub watch: bool,
}

#[derive(Args)]
pub struct Findings {
    #[command(flatten)]
    pub whom: Whom,

    /// Those that are over, too
    #[arg(long)]
    pub all: bool,
}

#[derive(Args)]
pub struct Ack {
    /// The finding's id, or its first digits
    #[arg(value_name = "FINDING")]
    pub finding: String,

    /// What to tell those who look at it later
    #[arg(long, value_name = "TEXT")]
    pub why: String,

    #[command(flatten)]
    pub whom: Whom,
}

#[derive(Args)]
pub struct Evidence {
    /// The finding's id, or its first digits
    #[arg(value_name = "FINDING")]
    pub finding: String,

    /// Where to write the file, which must not exist
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,

    #[command(flatten)]
    pub whom: Whom,
}

pub fn run(command: &MonitorCommand, terminal: Terminal) -> Outcome {
    let runtime = runtime::runtime().map_err(Failure::state)?;
    runtime.block_on(async {
        match command {
            MonitorCommand::Status(args) => status(args, terminal).await,
            MonitorCommand::Findings(args) => findings(args, terminal).await,
            MonitorCommand::Ack(args) => ack(args, terminal).await,
            MonitorCommand::Evidence(args) => evidence(args, terminal).await,
        }
    })
}

fn connect(whom: &Whom) -> Outcome<Monitor> {
    let config = whom.config.as_deref().map(MonitorConfig::load).transpose()?;
    let (address, server) = match (&whom.address, &whom.server, &config) {
        (Some(address), Some(server), _) => (address.clone(), server.clone()),
        (address, server, Some(config)) => {
            let address = match address {
                Some(address) => address.clone(),
                None => reachable(config.listen, "monitor")?.to_string(),
            };
            let server = match server {
                Some(server) => server.clone(),
                None => config.tls.server_name(&*runtime::clock())?,
            };
            (address, server)
        }
        _ => {
            return Err(Failure::usage(
                "say where the monitor is with --address, and who it must prove to be with --server; or on its own machine give \
                 its configuration with --config",
            ));
        }
    };
    let tls = match (&whom.profile, &config) {
        (Some(directory), _) => Some(Profile::load(directory)?.tls()?),
        (None, Some(config)) => config.tls.calling(runtime::clock())?,
        (None, None) => None,
    };
    let tls = tls.ok_or_else(|| {
        Failure::usage("say with which certificate to ask: --profile DIR, a client directory")
    })?;
    Monitor::new(&address, &tls, &server).map_err(Failure::usage)
}

fn failed(error: CallError) -> Failure {
    profile::of_call_to(&error, "monitor")
}

async fn status(args: &Status, terminal: Terminal) -> Outcome {
    let monitor = connect(&args.whom)?;
    let mut stop = std::pin::pin!(runtime::stop_signal().map_err(Failure::state)?);
    loop {
        let status = monitor.status("").await.map_err(failed)?;
        let now = runtime::clock().now();
        print_status(&status, now, terminal);
        terminal.object(&status_json(&status));
        if !args.watch {
            return Ok(());
        }
        tokio::select! {
            () = &mut stop => return Ok(()),
            () = sleep(LOOK_AGAIN) => terminal.line(""),
        }
    }
}

fn print_status(status: &MonitorStatus, now: UnixMillis, terminal: Terminal) {
    for log in &status.logs {
        terminal.line(terminal.bold(&log.origin));
        let width =
            log.vantages.iter().map(|seen| seen.vantage.name.chars().count()).max().unwrap_or(0).max(7);
        terminal.line(terminal.dim(format_args!(
            "  {:<width$}  {:<7}  {:>12}  {:<SHOWN_DIGITS$}  {:>8}  {:>8}  {:>12}  {:>10}  {:>8}",
            "vantage", "kind", "size", "root", "head age", "lag", "audited", "full audit", "answered"
        )));
        let largest = log.vantages.iter().filter_map(|seen| seen.head).map(|head| head.size.get()).max();
        for seen in &log.vantages {
            terminal.line(vantage_line(seen, largest.unwrap_or(0), width, now));
            if !seen.trouble.is_empty() {
                terminal.line(format_args!("  {:<width$}  {}", "", terminal.bad(&seen.trouble)));
            }
        }
        let findings = match (log.open, log.unacknowledged) {
            (0, _) => terminal.good("no open findings"),
            (open, new) => terminal.bad(format_args!("{open} open findings, {new} of them new")),
        };
        terminal.line(format_args!(
            "  one history up to {}, every entry read up to {}, last full audit {}; {findings}",
            log.consistent,
            log.audited,
            ago(log.last_full_audit, now),
        ));
    }
    for sink in &status.sinks {
        if !sink.trouble.is_empty() || sink.dropped > 0 {
            let (name, queued, dropped) = (&sink.name, sink.queued, sink.dropped);
            terminal.line(terminal.bad(format_args!(
                "{name} is told late: {queued} messages wait, {dropped} were given up; {}",
                sink.trouble
            )));
        }
    }
    if status.lost > 0 {
        terminal.line(terminal.bad(format_args!("there was no room for {} findings", status.lost)));
    }
}

fn vantage_line(seen: &VantageStatus, largest: u64, width: usize, now: UnixMillis) -> String {
    let size = seen.head.map(|head| head.size.get());
    let shown = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
    let root: String = seen.head.map_or_else(|| "-".to_owned(), |head| head.root.to_string());
    let reads = seen.vantage.kind == VantageKind::Log;
    format!(
        "  {:<width$}  {:<7}  {:>12}  {:<SHOWN_DIGITS$}  {:>8}  {:>8}  {:>12}  {:>10}  {:>8}",
        seen.vantage.name,
        kind(seen.vantage.kind),
        shown(size),
        root.chars().take(SHOWN_DIGITS).collect::<String>(),
        short(seen.head_at, now),
        shown(size.map(|size| largest.saturating_sub(size))),
        shown(reads.then_some(seen.audited.get())),
        short(seen.last_full_audit, now),
        short(seen.reached, now),
    )
}

fn kind(kind: VantageKind) -> &'static str {
    match kind {
        VantageKind::Log => "log",
        VantageKind::Witness => "witness",
        VantageKind::Monitor => "monitor",
        VantageKind::File => "files",
    }
}

fn short(at: Option<UnixMillis>, now: UnixMillis) -> String {
    at.map_or_else(|| "-".to_owned(), |at| age(now.0.saturating_sub(at.0) / 1_000))
}

fn ago(at: Option<UnixMillis>, now: UnixMillis) -> String {
    at.map_or_else(
        || "not ended yet".to_owned(),
        |at| format!("{} ago", age(now.0.saturating_sub(at.0) / 1_000)),
    )
}

fn milliseconds(at: Option<UnixMillis>) -> Option<u64> {
    at.map(|at| at.0)
}

fn status_json(status: &MonitorStatus) -> Value {
    let vantage = |seen: &VantageStatus| {
        json!({
            "name": seen.vantage.name,
            "kind": kind(seen.vantage.kind),
            "size": seen.head.map(|head| head.size.get()),
            "root": seen.head.map(|head| head.root.to_string()),
            "head_at_ms": milliseconds(seen.head_at),
            "reached_at_ms": milliseconds(seen.reached),
            "trouble": seen.trouble,
            "audited": seen.audited.get(),
            "last_full_audit_ms": milliseconds(seen.last_full_audit),
        })
    };
    let log = |log: &MonitoredLog| {
        json!({
            "origin": log.origin,
            "consistent": log.consistent.get(),
            "audited": log.audited.get(),
            "last_full_audit_ms": milliseconds(log.last_full_audit),
            "open_findings": log.open,
            "unacknowledged_findings": log.unacknowledged,
            "vantages": log.vantages.iter().map(vantage).collect::<Vec<_>>(),
        })
    };
    let sinks = status.sinks.iter().map(|sink| {
        json!({
            "name": sink.name,
            "queued": sink.queued,
            "dropped": sink.dropped,
            "delivered_at_ms": milliseconds(sink.delivered),
            "trouble": sink.trouble,
        })
    });
    json!({
        "vkey": status.vkey,
        "logs": status.logs.iter().map(log).collect::<Vec<_>>(),
        "sinks": sinks.collect::<Vec<_>>(),
        "lost_findings": status.lost,
    })
}

/// All pages, each of which must go on behind the one before: a monitor cannot keep us for ever.
async fn list(monitor: &Monitor, resolved: bool) -> Outcome<Vec<Finding>> {
    let (mut all, mut token) = (Vec::<Finding>::new(), String::new());
    for _ in 0..MAX_PAGES {
        let (page, next) = monitor.findings("", resolved, &token).await.map_err(failed)?;
        all.extend(page);
        match next {
            None => return Ok(all),
            Some(next) if next > token => token = next,
            Some(_) => break,
        }
    }
    Err(Failure::no("the monitor's list of findings does not end"))
}

async fn findings(args: &Findings, terminal: Terminal) -> Outcome {
    let monitor = connect(&args.whom)?;
    let mut found = list(&monitor, args.all).await?;
    found.sort_by_key(|finding| {
        (finding.resolved.is_some(), finding.severity == FindingSeverity::Warn, finding.first_at)
    });
    let now = runtime::clock().now();
    for finding in &found {
        print_finding(finding, now, terminal);
    }
    let open = found.iter().filter(|finding| finding.resolved.is_none()).count();
    terminal.line(match open {
        0 => terminal.good("nothing that lasts was found"),
        open => terminal.bad(format_args!("{open} findings last")),
    });
    terminal.object(&json!({ "findings": found.iter().map(finding_json).collect::<Vec<_>>() }));
    Ok(())
}

fn print_finding(finding: &Finding, now: UnixMillis, terminal: Terminal) {
    let code = match (finding.resolved, finding.severity) {
        (Some(_), _) => terminal.dim(&finding.code),
        (None, FindingSeverity::Page) => terminal.bad(&finding.code),
        (None, FindingSeverity::Warn) => terminal.bold(&finding.code),
    };
    let (origin, subject, id) = (&finding.origin, &finding.subject, &finding.id);
    terminal.line(format_args!("{code}  {origin}, {subject}  {}", terminal.dim(id)));
    let times = if finding.count == 1 { "once".to_owned() } else { format!("{} times", finding.count) };
    let first = ago(Some(finding.first_at), now);
    let state = match finding.resolved {
        Some(at) => format!("over since {}", ago(Some(at), now)),
        None => format!("last {}", ago(Some(finding.last_at), now)),
    };
    terminal.line(format_args!("  first seen {first}, {times}, {state}"));
    for text in [&finding.detail, &finding.meaning, &finding.next_step] {
        terminal.line(format_args!("  {text}"));
    }
    match (&finding.evidence, finding.class) {
        (Some(_), FindingClass::Proof) => {
            terminal.line("  proven: `epigraph monitor evidence` has a file that convinces anybody")
        }
        (Some(_), FindingClass::Observation) => {
            terminal.line("  observed: `epigraph monitor evidence` has the monitor's signed word")
        }
        (None, _) => {}
    }
    if let Some(taken) = &finding.acknowledged {
        terminal.line(format_args!("  {} took note {}: {}", taken.by, ago(Some(taken.at), now), taken.why));
    }
}

fn finding_json(finding: &Finding) -> Value {
    let acknowledged = finding
        .acknowledged
        .as_ref()
        .map(|taken| json!({ "by": taken.by, "why": taken.why, "at_ms": taken.at.0 }));
    json!({
        "id": finding.id,
        "code": finding.code,
        "class": match finding.class {
            FindingClass::Proof => "proof",
            FindingClass::Observation => "observation",
        },
        "severity": match finding.severity {
            FindingSeverity::Page => "page",
            FindingSeverity::Warn => "ticket",
        },
        "origin": finding.origin,
        "subject": finding.subject,
        "first_at_ms": finding.first_at.0,
        "last_at_ms": finding.last_at.0,
        "count": finding.count,
        "detail": finding.detail,
        "meaning": finding.meaning,
        "next_step": finding.next_step,
        "evidence_id": finding.evidence,
        "resolved_at_ms": milliseconds(finding.resolved),
        "acknowledged": acknowledged,
    })
}

/// The one finding whose id begins so.
async fn named(monitor: &Monitor, digits: &str) -> Outcome<Finding> {
    if digits.len() < MIN_ID_DIGITS {
        return Err(Failure::usage(format!("give at least {MIN_ID_DIGITS} digits of the finding's id")));
    }
    let mut found = list(monitor, true).await?;
    found.retain(|finding| finding.id.starts_with(digits));
    match found.len() {
        1 => found.pop().ok_or_else(|| Failure::usage("no such finding")),
        0 => Err(Failure::usage(format!(
            "the monitor has no finding {digits}: `epigraph monitor findings --all` lists those that there are"
        ))),
        several => Err(Failure::usage(format!("{several} findings begin with {digits}: give more digits"))),
    }
}

async fn ack(args: &Ack, terminal: Terminal) -> Outcome {
    let monitor = connect(&args.whom)?;
    let finding = named(&monitor, &args.finding).await?;
    let taken = monitor.acknowledge(&finding.origin, &finding.id, &args.why).await.map_err(failed)?;
    let by = taken.acknowledged.as_ref().map_or("", |taken| taken.by.as_str());
    terminal.line(format_args!("{} of {} is taken note of by {by}", taken.code, taken.origin));
    terminal.object(&finding_json(&taken));
    Ok(())
}

async fn evidence(args: &Evidence, terminal: Terminal) -> Outcome {
    let monitor = connect(&args.whom)?;
    let finding = named(&monitor, &args.finding).await?;
    let Some(id) = &finding.evidence else {
        return Err(Failure::no(format!("the finding {} has no file", finding.id)));
    };
    let file = monitor.evidence(&finding.origin, id).await.map_err(failed)?;
    write_new(&args.out, &file)?;
    let out = args.out.display();
    terminal.line(format_args!("{} bytes written to {out}", file.len()));
    let whose = match finding.class {
        FindingClass::Proof => "the accused's vkey",
        FindingClass::Observation => "the monitor's vkey",
    };
    terminal
        .line(format_args!("judge it, here or anywhere, with {whose}: epigraph verify {out} --vkey VKEY"));
    terminal.object(
        &json!({ "finding": finding.id, "code": finding.code, "out": args.out, "bytes": file.len() }),
    );
    Ok(())
}

fn write_new(path: &Path, bytes: &[u8]) -> Outcome {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write()
        .map_err(|error: std::io::Error| Failure::state(format!("cannot write {}: {error}", path.display())))
}
