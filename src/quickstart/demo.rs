//! `epigraph quickstart --demo`: somebody cheats, and a monitor that is told nothing about it finds out.
//!
//! The house is that of quickstart, from the same configurations; in the place of the log, or of some witnesses, stand processes
//! that lie. This process is their client and their audience: it appends, looks at what two readers are shown, and takes the
//! monitor's webhook. What it knows of those who lie is their public keys. Whether all went as it must is decided here.

mod audience;
mod judge;
mod script;
mod stage;
pub mod webhook;

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use epigraph_core::LeafIndex;
use epigraph_core::hash::leaf_hash;
use epigraph_rpc::Wait;
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use super::create::STALE_AFTER_MS;
use super::{Phases, program, shell};
use crate::cli::{Demo, Quickstart};
use crate::failure::{Failure, Outcome};
use crate::profile::Profile;
use crate::runtime::{self, Stopwatch};
use crate::terminal::Terminal;
use audience::Audience;
use judge::{Alarm, Judge};
use script::Script;
use stage::Stage;
use webhook::Webhook;

/// Events before anybody cheats, and after.
const FIRST_EVENTS: usize = 24;

/// While the monitor is waited for, the log is in use.
const EVENT_EVERY: Duration = Duration::from_millis(250);

/// How long nobody cheats in the demo in which nobody does: longer than the slowest of the others takes, which is to notice that
/// nothing new is shown.
const AS_LONG_AS_OTHERS: Duration = Duration::from_millis(STALE_AFTER_MS + 3_000);

pub fn run(args: &Quickstart, demo: Demo, terminal: Terminal) -> Outcome {
    let dir = match &args.dir {
        Some(dir) => dir.clone(),
        None => free_directory(script::name(demo))?,
    };
    let runtime = runtime::runtime().map_err(Failure::state)?;
    runtime.block_on(show(args, demo, &dir, terminal))
}

/// A directory of this name that is not there yet: the keys of an earlier demo ended with it.
fn free_directory(name: &str) -> Outcome<PathBuf> {
    /// Whoever has seen it more often has seen it.
    const MOST: u32 = 1_000;
    let numbered = |number: u32| match number {
        1 => PathBuf::from(format!("epigraph-demo-{name}")),
        _ => PathBuf::from(format!("epigraph-demo-{name}-{number}")),
    };
    let free = (1..=MOST).map(numbered).find(|path| !path.exists());
    free.ok_or_else(|| Failure::usage("there are too many epigraph-demo directories here; delete them"))
}

async fn show(args: &Quickstart, demo: Demo, dir: &Path, terminal: Terminal) -> Outcome {
    let mut stop = pin!(runtime::stop_signal().map_err(Failure::state)?);
    let script = Script::of(demo);
    terminal.line(format_args!(
        "{} in {}: throw-away keys, everybody on this machine",
        terminal.bold(format_args!("Epigraph demo {}", script::name(demo))),
        dir.display()
    ));
    terminal.line(format_args!("{}\n", script.plot));
    let whole = Stopwatch::start();
    let mut phases = Phases { terminal, json: Vec::new() };
    let stopped = || Failure::usage("stopped before the end");
    let mut stage = tokio::select! {
        biased;
        () = &mut stop => return Err(stopped()),
        stage = Stage::set(demo, dir, args.blind, &mut phases) => stage?,
    };
    let Stage { directory, processes, webhook } = &mut stage;
    let play = Play { demo, script: &script, dir: &directory.path, origin: &directory.origin, terminal };
    let judge = Judge::new(demo, &script, directory, Duration::from_secs(args.patience))?;
    let played = tokio::select! {
        biased;
        () = &mut stop => Err(stopped()),
        played = play.play(judge, webhook) => played,
        failure = processes.ended(directory, terminal) => Err(failure),
    };
    if let (Ok(verdict), false) = (&played, args.once) {
        terminal.line(format_args!("\n{}", verdict["says"].as_str().unwrap_or_default()));
        terminal.line("\nEverybody goes on until Ctrl-C; look around in another terminal.");
        tokio::select! {
            biased;
            () = stop => {}
            failure = processes.ended(directory, terminal) => terminal.note(failure),
        }
    }
    processes.stop().await;
    let verdict = played?;
    if args.once {
        terminal.line(format_args!("\n{}", verdict["says"].as_str().unwrap_or_default()));
    }
    terminal.object(&serde_json::json!({
        "demo": script::name(demo),
        "directory": dir,
        "origin": directory.origin,
        "verdict": verdict,
        "phases": phases.json,
        "total_ms": whole.elapsed().as_millis() as u64,
    }));
    Ok(())
}

/// One performance.
struct Play<'a> {
    demo: Demo,
    script: &'a Script,
    dir: &'a Path,
    origin: &'a str,
    terminal: Terminal,
}

impl Play<'_> {
    async fn play(&self, mut judge: Judge<'_>, webhook: &mut Webhook) -> Outcome<serde_json::Value> {
        let terminal = self.terminal;
        let audience = Audience::seated(self.dir)?;
        let client = Profile::load(self.dir)?.client()?;
        let events = script::events();
        let (first, second) = events.split_at(FIRST_EVENTS.min(events.len()));

        terminal.line(format_args!("\n{}", terminal.bold("1. Nobody cheats")));
        self.append(&client, first).await?;
        audience.look(self, first).await?;
        let places = judge.calm(first.len() as u64).await?;
        terminal.line(format_args!(
            "  the monitor looks from {places} places and has read all {} events: nothing found",
            first.len()
        ));

        terminal.line(format_args!("\n{}", terminal.bold(format_args!("2. {}", self.script.act))));
        if self.demo == Demo::Drop {
            let event = Bytes::from_static(script::INCRIMINATING);
            let index = client.append(std::slice::from_ref(&event), Wait::Durable).await?.first_index;
            terminal.line(format_args!("  an appender sends {}", script::brief(&event)));
            terminal.line(format_args!(
                "  the log: it is on disk, as entry {index}. That is a promise, not yet a proof"
            ));
            judge.monitor.submit(index, leaf_hash(&event)).await?;
            terminal.line("  the appender hands the promise to the monitor, which will look for itself");
        }
        self.append(&client, second).await?;
        audience.look(self, &events).await?;

        let Some(code) = self.script.code else {
            terminal.line(format_args!(
                "  for {} s an event every {} ms",
                AS_LONG_AS_OTHERS.as_secs(),
                EVENT_EVERY.as_millis()
            ));
            if let Ok(failure) = timeout(AS_LONG_AS_OTHERS, self.go_on(&client)).await {
                return Err(failure);
            }
            let places = judge.calm(events.len() as u64).await?;
            terminal.line(format_args!(
                "  the monitor looks from {places} places and has read all events: nothing found"
            ));
            return judge.verdict(None).await;
        };
        terminal.line(format_args!("\n{}", terminal.bold("3. The monitor, which was told nothing")));
        let watch = Stopwatch::start();
        let alarm = tokio::select! {
            alarm = judge.alarm(webhook) => alarm?,
            failure = self.go_on(&client) => return Err(failure),
        };
        terminal.line(format_args!(
            "  {} {code}, {:.1} s after it was looked for: {}",
            terminal.bad("ALARM"),
            watch.elapsed().as_secs_f64(),
            alarm.meaning
        ));
        terminal.line(format_args!("  about {}: {}", alarm.subject, alarm.detail));
        terminal.line(format_args!("  next: {}", alarm.next_step));
        terminal.line(format_args!("  the webhook was called: POST {}, {}", alarm.target, alarm.signature));
        self.verify(&mut judge, &alarm).await?;
        judge.verdict(Some(&alarm)).await
    }

    async fn append(&self, client: &epigraph_client::Client, events: &[Bytes]) -> Outcome {
        let appended = client.append(events, Wait::Published).await?;
        let first = appended.first_index;
        let last = first.checked_add(events.len().saturating_sub(1) as u64).map_or(0, LeafIndex::get);
        match appended.receipts {
            Some(receipts) => self.terminal.line(format_args!(
                "  an appender sends {} events: indexes {first} to {last}, {} receipts verified, 3 of 4 witnesses under each",
                events.len(),
                receipts.len()
            )),
            None => return Err(Failure::unreachable("the events are on disk but were not published in time")),
        }
        Ok(())
    }

    /// Appends an event now and then, as anybody does whose log is in use. Ends only if that fails.
    async fn go_on(&self, client: &epigraph_client::Client) -> Failure {
        for event in script::events().iter().cycle() {
            sleep(EVENT_EVERY).await;
            if let Err(error) = client.append(std::slice::from_ref(event), Wait::Published).await {
                return Failure::from(error);
            }
        }
        Failure::state("there are no events")
    }

    /// Shows the evidence, and has another process judge it, which knows one public key and nothing else.
    async fn verify(&self, judge: &mut Judge<'_>, alarm: &Alarm) -> Outcome {
        let terminal = self.terminal;
        let file = judge.evidence(alarm).await?;
        let vkey = judge.key_for(alarm).await?;
        terminal.line(format_args!("  the evidence: {}", file.display()));
        terminal.line(format_args!(
            "\n{}",
            terminal.bold("4. A stranger, who has one public key and no network")
        ));
        terminal.line(format_args!("  {} verify {} --vkey {vkey}", shell(&program()), shell(&file)));
        let program = std::env::current_exe()
            .map_err(|error| Failure::state(format!("cannot find this program: {error}")))?;
        let answer = Command::new(program)
            .arg("verify")
            .arg(&file)
            .args(["--vkey", &vkey])
            .stdin(Stdio::null())
            .output()
            .await
            .map_err(|error| Failure::state(format!("cannot run `epigraph verify`: {error}")))?;
        for line in String::from_utf8_lossy(&answer.stdout).lines() {
            terminal.line(format_args!("  | {line}"));
        }
        if !answer.status.success() {
            let said = String::from_utf8_lossy(&answer.stderr);
            return Err(Failure::no(format!("the evidence does not verify: {}", said.trim())));
        }
        judge.verified();
        Ok(())
    }
}
