//! All processes of a quickstart: started together, since they wait for each other by themselves; watched; and stopped in an order
//! that loses nothing.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::Phases;
use super::directory::Directory;
use super::process::{RoleProcess, START};
use super::role::{Role, THRESHOLD};
use crate::failure::{Failure, Outcome};
use crate::runtime::Stopwatch;
use crate::terminal::Terminal;

/// Between two looks at whether the log is ready: shorter than anybody notices.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What `/readyz` answers has a few hundred bytes.
const MAX_ANSWER_BYTES: u64 = 64 * 1024;

/// The processes that run, in the order in which they are stopped.
pub struct Processes {
    running: Vec<RoleProcess>,
    /// The log's address.
    pub address: String,
    /// Of the log's health, readiness and metrics; a directory of an older version has none.
    pub metrics_address: Option<String>,
}

impl Processes {
    /// Starts all, and waits until each serves. A witness that does not is named; it may be missing. Who lies was started before, to
    /// say its public key.
    pub async fn start(
        directory: &Directory,
        liars: Vec<RoleProcess>,
        phases: &mut Phases,
    ) -> Outcome<Processes> {
        let mut processes = Processes { running: Vec::new(), address: String::new(), metrics_address: None };
        let roles = directory.roles();
        let (last, first): (Vec<Role>, Vec<Role>) = roles.iter().partition(|role| **role == Role::Monitor);
        let mut started = Vec::new();
        for mut liar in liars {
            liar.go_on().await?;
            started.push((liar, Stopwatch::start()));
        }
        let lies = |role: &Role| directory.cast.lies(*role);
        for role in first.into_iter().filter(|role| !lies(role)) {
            started.push((RoleProcess::spawn(&directory.path, role)?, Stopwatch::start()));
        }
        // The log last: it asks all others. The audit service, which waits for the log by itself, is there early: a port that is chosen and
        // not listened at can be taken by anybody's connection.
        started.sort_by_key(|(process, _)| match process.role {
            Role::Log => 2,
            Role::Audit => 1,
            _ => 0,
        });
        processes.await_all(directory, started, phases).await?;
        // Nothing is there to be seen before: a monitor is not startled by a log that starts.
        let mut started = Vec::new();
        for role in last {
            started.push((RoleProcess::spawn(&directory.path, role)?, Stopwatch::start()));
        }
        processes.await_all(directory, started, phases).await?;
        let place = |process: &RoleProcess| roles.iter().position(|role| *role == process.role);
        processes.running.sort_by_key(place);
        Ok(processes)
    }

    async fn await_all(
        &mut self,
        directory: &Directory,
        started: Vec<(RoleProcess, Stopwatch)>,
        phases: &mut Phases,
    ) -> Outcome {
        for (mut process, watch) in started {
            let role = process.role;
            match (process.serves(&directory.path).await, role) {
                (Ok(()), _) => {}
                (Err(failure), Role::Witness(_)) => {
                    phases.terminal.note(failure);
                    continue;
                }
                (Err(failure), _) => return Err(failure),
            }
            let entries = process.serving["logs"][0]["entries"].as_u64().unwrap_or_default();
            let detail = match role {
                Role::Log if directory.is_new => "mutual TLS 1.3, new".to_owned(),
                Role::Log => format!("mutual TLS 1.3, continues with {entries} entries"),
                _ => format!("process {}", process.pid),
            };
            let detail = format!("{}, {detail}", process.address());
            phases.done(&format!("{role} is serving"), watch.elapsed(), detail);
            if role == Role::Log {
                self.address = process.address().to_owned();
                self.metrics_address = process.serving["metrics_address"].as_str().map(ToOwned::to_owned);
            }
            self.running.push(process);
        }
        Ok(())
    }

    /// Role, address and process id of each that runs.
    pub fn list(&self) -> Vec<serde_json::Value> {
        let object = |process: &RoleProcess| {
            serde_json::json!({
                "role": process.role.to_string(),
                "address": process.address(),
                "metrics_address": process.serving["metrics_address"],
                "pid": process.pid,
            })
        };
        self.running.iter().map(object).collect()
    }

    /// How many witnesses run.
    fn witnesses(&self) -> usize {
        self.running.iter().filter(|process| matches!(process.role, Role::Witness(_))).count()
    }

    /// Completes if a process ends without which nothing goes on, with what it said. Others that end are only
    /// named.
    pub async fn ended(&mut self, directory: &Directory, terminal: Terminal) -> Failure {
        loop {
            let (index, code) = self.next_ended().await;
            let process = self.running.remove(index);
            match process.role {
                Role::Witness(_) => {}
                Role::Monitor => {
                    let failure = process.failure(code);
                    terminal
                        .line(format_args!("the log goes on, and nobody reads along any more: {failure}"));
                    continue;
                }
                Role::Audit => {
                    let (failure, config) =
                        (process.failure(code), super::shell(&directory.config(Role::Audit)));
                    terminal.line(format_args!(
                        "the log goes on, and takes no audit events any more: {failure}. Start it again: {} serve audit --config {config}",
                        super::shell(&super::program()),
                    ));
                    continue;
                }
                Role::Log | Role::Signer => return process.failure(code),
            }
            let left = self.witnesses();
            let meaning = if left >= THRESHOLD {
                "nothing changes".to_owned()
            } else {
                format!("entries are taken, and nothing is published until {THRESHOLD} run")
            };
            let config = super::shell(&directory.config(process.role));
            terminal.line(format_args!(
                "{} has ended. {left} witnesses of this quickstart are left: {meaning}. Start it again: {} serve witness --config {config}",
                process.role,
                super::shell(&super::program()),
            ));
        }
    }

    /// The place of a process that has ended, and its exit code.
    async fn next_ended(&mut self) -> (usize, Option<i32>) {
        let mut ends: Vec<_> = self.running.iter_mut().map(|process| Box::pin(process.ended())).collect();
        poll_fn(|context| {
            for (index, ended) in ends.iter_mut().enumerate() {
                if let Poll::Ready(code) = ended.as_mut().poll(context) {
                    return Poll::Ready((index, code));
                }
            }
            Poll::Pending
        })
        .await
    }

    /// The monitor goes first, so that nothing that now ends alarms it, then the audit service while its log is there. The log finishes what it took, with the signer and the
    /// witnesses still there; then these end.
    pub async fn stop(&mut self) {
        for process in &mut self.running {
            if matches!(process.role, Role::Monitor | Role::Audit | Role::Log) {
                process.stop().await;
            }
        }
        self.running.iter_mut().for_each(RoleProcess::ask_to_stop);
        for process in &mut self.running {
            process.stop().await;
        }
    }
}

/// Waits until the log acknowledges and publishes: it has compared what it has with what the signer and enough witnesses hold.
pub async fn ready(metrics_address: &str, terminal: Terminal) -> Outcome {
    let mut why = String::new();
    let asking = async {
        loop {
            match ask(metrics_address).await {
                Ok(answer) if answer.starts_with("HTTP/1.1 200") => return,
                Ok(answer) => {
                    why = answer
                        .split_once("\r\n\r\n")
                        .map_or(answer.as_str(), |(_, why)| why)
                        .trim()
                        .to_owned();
                }
                Err(error) => why = error.to_string(),
            }
            terminal.progress(format_args!("waiting: {why}"));
            sleep(LOOK_AGAIN).await;
        }
    };
    if timeout(START, pin!(asking)).await.is_ok() {
        return Ok(());
    }
    Err(Failure::unreachable(format_args!("the log does not get ready: {why}")))
}

async fn ask(address: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n").await?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER_BYTES).read_to_string(&mut answer).await?;
    Ok(answer)
}
