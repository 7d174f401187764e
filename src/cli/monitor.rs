//! `epigraph monitor`: asks a running monitor what it sees and what it found, and takes note of it. What a monitor says here is its word; what
//! it can show is in the files that it hands out, and judged by `verify`.

pub mod args;

mod findings;
mod status;

use std::fmt::Display;
use std::time::Duration;

use epigraph_core::evidence::{self, DRILL_ORIGIN};
use epigraph_core::{UnixMillis, VKey};
use epigraph_monitor::book::MAX_FINDINGS;
use epigraph_monitor::finding::EvidenceId;
use epigraph_rpc::CallError;
use epigraph_rpc::peer;
use epigraph_rpc::peer::monitor::Finding;
use serde_json::json;

use super::witness::age;
use crate::failure::{Failure, Outcome};
use crate::profile::{self, KnownMonitor, Profile};
use crate::receipts;
use crate::runtime;
use crate::terminal::{Terminal, plain};
use args::{AskedMonitor, MonitorAck, MonitorDrill, MonitorEvidence, MonitorFindings, MonitorStatus};

/// Between two looks, and before a stream that ended is asked for again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A monitor, and which of its logs are of interest.
struct Asked {
    monitor: peer::Monitor,
    address: String,
    /// Empty for all.
    origin: String,
}

pub fn status(args: &MonitorStatus, terminal: Terminal) -> Outcome {
    let runtime = runtime::runtime().map_err(Failure::state)?;
    runtime.block_on(async {
        let asked = Asked::new(&args.asked)?;
        if !args.watch {
            return status::once(&asked, terminal).await;
        }
        let stop = runtime::stop_signal().map_err(Failure::state)?;
        tokio::select! {
            ended = status::watch(&asked, terminal) => ended,
            () = stop => Ok(()),
        }
    })
}

pub fn findings(args: &MonitorFindings, terminal: Terminal) -> Outcome {
    let runtime = runtime::runtime().map_err(Failure::state)?;
    runtime.block_on(async {
        let asked = Asked::new(&args.asked)?;
        if !args.watch {
            return findings::list(&asked, args.all, terminal).await;
        }
        let stop = runtime::stop_signal().map_err(Failure::state)?;
        tokio::select! {
            ended = findings::watch(&asked, terminal) => ended,
            () = stop => Ok(()),
        }
    })
}

pub fn acknowledge(args: &MonitorAck, terminal: Terminal) -> Outcome {
    let runtime = runtime::runtime().map_err(Failure::state)?;
    let taken = runtime.block_on(async {
        let asked = Asked::new(&args.asked)?;
        let found = asked.finding(&args.finding).await?;
        let taken = asked.monitor.acknowledge(&found.origin, &found.id, &args.why).await;
        taken.map_err(|error| refused(&error))
    })?;
    findings::show(&taken, terminal);
    terminal.object(&findings::object(&taken));
    Ok(())
}

pub fn evidence(args: &MonitorEvidence, terminal: Terminal) -> Outcome {
    let runtime = runtime::runtime().map_err(Failure::state)?;
    let (found, id, file) = runtime.block_on(async {
        let asked = Asked::new(&args.asked)?;
        let found = asked.finding(&args.finding).await?;
        let Some(id) = found.evidence.clone() else {
            return Err(Failure::no(format!("no file goes with the finding {}", plain(&found.id))));
        };
        let file = asked.monitor.evidence(&found.origin, &id).await.map_err(|error| refused(&error))?;
        Ok((found, id, file))
    })?;
    if EvidenceId::from_hex(&id) != Some(EvidenceId::of(&file)) {
        return Err(Failure::no(
            "the monitor sent another file than the finding names: it, or what is between, is broken or lies. Nothing was written",
        ));
    }
    let path = args.out.display();
    receipts::write(&args.out, &file)
        .map_err(|error| Failure::usage(format!("cannot write {path}: {error}")))?;
    terminal.line(format_args!("wrote {path}, {} bytes", file.len()));
    let key = match findings::is_proof(&found) {
        true => "the vkey of the log or witness that it accuses",
        false => "the vkey of the monitor, which `monitor status` shows",
    };
    terminal.line(format_args!("judge it anywhere, offline: epigraph verify {path} --vkey KEY ({key})"));
    terminal.object(&json!({
        "finding": found.id,
        "origin": found.origin,
        "code": found.code,
        "class": findings::class(&found),
        "evidence": id,
        "file": path.to_string(),
    }));
    Ok(())
}

pub fn drill(args: &MonitorDrill, terminal: Terminal) -> Outcome {
    let of_client = Profile::load(&args.asked.profile)?.origin;
    let log = args.asked.log.clone().unwrap_or(of_client);
    terminal.note(
        "this is a drill: everybody whom the monitor tells hears of a log epigraph.drill, which never was",
    );
    let runtime = runtime::runtime().map_err(Failure::state)?;
    let drilled = runtime.block_on(async {
        let asked = Asked::new(&args.asked)?;
        asked.monitor.drill(log.as_str()).await.map_err(|error| refused(&error))
    })?;
    let convicts = drilled.evidence.as_ref().is_some_and(|file| is_of_drill(file, &drilled.vkey));
    terminal.line(match (&drilled.evidence, convicts) {
        (_, true) => format!("{} the planted fork, and the evidence verifies here", terminal.good("found:")),
        (Some(_), false) => {
            format!("{} the evidence of the planted fork convicts nobody", terminal.bad("broken:"))
        }
        (None, false) => format!("{} the planted fork", terminal.bad("not found:")),
    });
    for alarm in &drilled.alarms {
        let sink = plain(&alarm.sink);
        match alarm.after_ms {
            Some(after) => terminal.line(format_args!("{} {sink}, after {after} ms", terminal.good("told:"))),
            None => {
                terminal.line(format_args!("{} {sink}: {}", terminal.bad("not told:"), plain(&alarm.trouble)))
            }
        }
    }
    let alarms = drilled.alarms.iter().map(|alarm| {
        json!({
            "sink": alarm.sink,
            "arrived": alarm.after_ms.is_some(),
            "after_ms": alarm.after_ms,
            "trouble": Some(&alarm.trouble).filter(|trouble| !trouble.is_empty()),
        })
    });
    terminal.object(&json!({
        "origin": log.as_str(),
        "vkey": drilled.vkey,
        "found": drilled.evidence.is_some(),
        "verified": convicts,
        "alarms": alarms.collect::<Vec<_>>(),
    }));
    let missing = drilled.alarms.iter().filter(|alarm| alarm.after_ms.is_none()).count();
    match (convicts, missing) {
        (true, 0) => Ok(()),
        (true, missing) => Err(Failure::no(format!(
            "{} not arrive: a real one would not either. Mend that before anything else, and drill again",
            count(missing as u64, "alarm did", "alarms did")
        ))),
        (false, _) => Err(Failure::no(
            "the monitor did not show that it can convict a log: trust it with nothing before it does",
        )),
    }
}

/// Whether it convicts the key of the drill, of the name that is no log's.
fn is_of_drill(file: &[u8], vkey: &str) -> bool {
    let Ok(vkey) = vkey.parse::<VKey>() else { return false };
    vkey.name().as_str() == DRILL_ORIGIN && evidence::verify(file, &[vkey]).is_ok()
}

impl Asked {
    /// Within a runtime.
    fn new(args: &AskedMonitor) -> Outcome<Asked> {
        let profile = Profile::load(&args.profile)?;
        let known = match (&args.address, &args.server) {
            (Some(address), Some(server)) => {
                Some(KnownMonitor { address: address.clone(), server: server.clone() })
            }
            // The command line takes them together only.
            _ => None,
        };
        let tls = profile.tls()?;
        let Some(KnownMonitor { address, server }) = known.or(profile.monitor) else {
            return Err(Failure::usage(format!(
                "{} does not say where the monitor is (a table [monitor] with address and server): say it with --address, and who it \
                 must prove to be with --server",
                args.profile.join("client.toml").display()
            )));
        };
        let monitor = peer::Monitor::new(&address, &tls, &server).map_err(Failure::usage)?;
        let origin = args.log.as_ref().map(ToString::to_string).unwrap_or_default();
        Ok(Asked { monitor, address, origin })
    }

    /// All pages: at most as many findings as a monitor has, which therefore cannot keep us for ever.
    async fn findings(&self, resolved: bool) -> Outcome<Vec<Finding>> {
        let (mut all, mut token) = (Vec::new(), String::new());
        loop {
            let page = self.monitor.findings(&self.origin, resolved, &token).await;
            let (page, next) = page.map_err(|error| refused(&error))?;
            let goes_on = !page.is_empty();
            all.extend(page);
            match next {
                Some(next) if goes_on && all.len() <= MAX_FINDINGS => token = next,
                Some(_) => return Err(Failure::no("the monitor's list of findings does not end")),
                None => return Ok(all),
            }
        }
    }

    /// The one whose id begins so.
    async fn finding(&self, id: &str) -> Outcome<Finding> {
        let mut found = self.findings(true).await?;
        found.retain(|finding| !id.is_empty() && finding.id.starts_with(id));
        match (found.pop(), found.len()) {
            (Some(found), 0) => Ok(found),
            (Some(_), more) => Err(Failure::usage(format!(
                "the ids of {} findings begin with {id:?}: give more of it",
                more + 1
            ))),
            (None, _) => Err(Failure::usage(format!(
                "no finding has an id that begins with {id:?}: `epigraph monitor findings --all` lists those that there are"
            ))),
        }
    }
}

fn refused(error: &CallError) -> Failure {
    profile::of_call_to(error, "monitor")
}

/// How long ago, by this machine's clock.
fn ago(at: Option<UnixMillis>, now: UnixMillis) -> String {
    at.map_or_else(|| "never".to_owned(), |at| format!("{} ago", age(now.0.saturating_sub(at.0) / 1_000)))
}

/// Rows of cells in columns, each as wide as its widest cell. Numbers are no wider than names, so all stand to the left.
fn columns<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// The thing, counted.
fn count(number: impl Into<u64>, one: &str, more: &str) -> String {
    let number = number.into();
    let word: &dyn Display = if number == 1 { &one } else { &more };
    format!("{number} {word}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned);
        let lines = columns(&[row(["a", "x"]), row(["größer", ""]), row(["", "yz"])]);
        assert_eq!(lines, ["a       x", "größer", "        yz"]);
    }

    #[test]
    fn what_is_quoted_cannot_steer_a_terminal() {
        assert_eq!(plain("a\u{1b}[2Jb\nc\u{9b}d"), "a\u{fffd}[2Jb\u{fffd}c\u{fffd}d");
    }

    #[test]
    fn what_never_was_is_no_age() {
        let check = |at: Option<u64>, expected: &str| {
            assert_eq!(ago(at.map(UnixMillis), UnixMillis(200_000)), expected);
        };
        check(None, "never");
        check(Some(199_001), "0 s ago");
        check(Some(0), "3 min ago");
        // Its clock is ahead of ours.
        check(Some(300_000), "0 s ago");
    }
}
