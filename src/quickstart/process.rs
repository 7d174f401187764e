//! The log as a child process: started, watched, and stopped in order.

use std::env;
use std::fs::{self, File};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use super::directory::Directory;
use crate::failure::{Failure, Kind, Outcome};

/// A log that takes longer to start than this is stuck. Rebuilding the tree of ten million entries takes seconds.
const START: Duration = Duration::from_secs(120);

/// How long the log may take to finish what it took.
const STOP: Duration = Duration::from_secs(40);

/// A running log.
pub struct LogProcess {
    child: Child,
    /// Closing it stops the log. Not left with the child, which closes it as soon as it is waited for.
    stdin: Option<ChildStdin>,
    messages: std::path::PathBuf,
    /// Kept open: a closed pipe would end the child's next line with an error.
    _stdout: BufReader<ChildStdout>,
    pub address: String,
    /// Of its health, readiness and metrics; a directory of an older version has none.
    pub metrics_address: Option<String>,
    pub entries: u64,
}

impl LogProcess {
    /// Starts the log and waits until it serves.
    pub async fn start(directory: &Directory) -> Outcome<LogProcess> {
        let messages = directory.run_file("log");
        let cannot = |what: &str, error: std::io::Error| Failure::state(format!("cannot {what}: {error}"));
        let stderr = File::create(&messages).map_err(|error| cannot("write the log's messages", error))?;
        let program = env::current_exe().map_err(|error| cannot("find this program", error))?;
        let mut child = Command::new(program)
            .args(["serve", "log", "--json", "--until-stdin-closes", "--config"])
            .arg(directory.log_config())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| cannot("start the log", error))?;
        let stdin = child.stdin.take();
        let pid = child.id().unwrap_or_default();
        let stdout = child.stdout.take().ok_or_else(|| Failure::state("the log has no output"))?;
        let mut stdout = BufReader::new(stdout);
        let mut line = String::new();
        let read = timeout(START, stdout.read_line(&mut line)).await;
        let serving = serde_json::from_str::<serde_json::Value>(&line).ok();
        let (Ok(Ok(_)), Some(serving)) = (read, serving) else {
            // It ended, or it will: a child that does not answer is killed when it is dropped.
            let code = timeout(Duration::from_secs(1), child.wait()).await.ok().and_then(Result::ok);
            return Err(ended(&messages, code.and_then(|status| status.code())));
        };
        let address = serving["address"].as_str().unwrap_or_default().to_owned();
        let metrics_address = serving["metrics_address"].as_str().map(ToOwned::to_owned);
        let entries = serving["logs"][0]["entries"].as_u64().unwrap_or_default();
        for (extension, content) in [("addr", &address), ("pid", &pid.to_string())] {
            fs::write(directory.run_file(extension), format!("{content}\n"))
                .map_err(|error| cannot("write to run/", error))?;
        }
        Ok(LogProcess { child, stdin, messages, _stdout: stdout, address, metrics_address, entries })
    }

    /// Completes if the log ends by itself, with what it said.
    pub async fn ended(&mut self) -> Failure {
        let code = self.child.wait().await.ok().and_then(|status| status.code());
        ended(&self.messages, code)
    }

    /// Lets the log finish what it took, then waits for its end.
    pub async fn stop(&mut self) {
        drop(self.stdin.take());
        if timeout(STOP, self.child.wait()).await.is_err() {
            tracing::warn!(
                "the log did not stop in time and is killed; nothing that it acknowledged is lost"
            );
            let _ = self.child.kill().await;
        }
    }
}

/// What the log said last, under the kind of failure that its exit code names.
fn ended(messages: &std::path::Path, code: Option<i32>) -> Failure {
    let text = fs::read_to_string(messages).unwrap_or_default();
    let last = text.lines().last().unwrap_or_default();
    let message = serde_json::from_str::<serde_json::Value>(last)
        .ok()
        .and_then(|line| line["error"]["message"].as_str().map(ToOwned::to_owned))
        .unwrap_or_else(|| format!("it said nothing; see {}", messages.display()));
    let kind = match code {
        Some(2) => Kind::Usage,
        _ => Kind::State,
    };
    Failure::new(kind, format_args!("the log did not start, or stopped: {message}"))
}
