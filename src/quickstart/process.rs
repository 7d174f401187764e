//! A role as a child process: started, watched, and stopped in order. What the roles do with each other is not known here.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use epigraph_core::VKey;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use super::directory;
use super::role::Role;
use crate::failure::{Failure, Kind, Outcome};

/// A process that takes longer to start than this is stuck. Rebuilding the tree of ten million entries takes seconds.
pub const START: Duration = Duration::from_secs(120);

/// How long the log may take to finish what it took.
const STOP: Duration = Duration::from_secs(40);

/// A process that was started.
pub struct RoleProcess {
    pub role: Role,
    pub pid: u32,
    child: Child,
    /// Closing it stops the process. Not left with the child, which closes it as soon as it is waited for.
    stdin: Option<ChildStdin>,
    /// Kept open: a closed pipe would end the child's next line with an error.
    stdout: BufReader<ChildStdout>,
    messages: PathBuf,
    /// What it said when it served: the one object that `serve` prints.
    pub serving: serde_json::Value,
}

impl RoleProcess {
    /// Starts it. Whether it serves is another question.
    pub fn spawn(dir: &Path, role: Role) -> Outcome<RoleProcess> {
        RoleProcess::start(dir, role, |command| {
            command.args(["serve", role.kind(), "--json", "--until-stdin-closes"]);
        })
    }

    /// Starts the one that lies in its place, under this name. It makes its key, and then waits for [`RoleProcess::go_on`].
    pub fn spawn_liar(dir: &Path, role: Role, name: &str, how: &[&str]) -> Outcome<RoleProcess> {
        let named = if role == Role::Log { "--origin" } else { "--name" };
        let vkey = directory::run_file(dir, role, "vkey");
        RoleProcess::start(dir, role, |command| {
            command.args(["adversary", role.kind(), "--json", named, name]).args(how);
            command.arg("--vkey-file").arg(vkey);
        })
    }

    fn start(dir: &Path, role: Role, what: impl FnOnce(&mut Command)) -> Outcome<RoleProcess> {
        let messages = directory::run_file(dir, role, "log");
        let cannot = |what: &str, error: std::io::Error| Failure::state(format!("cannot {what}: {error}"));
        let stderr = File::create(&messages)
            .map_err(|error| cannot(&format!("write the messages of the {role}"), error))?;
        let program = env::current_exe().map_err(|error| cannot("find this program", error))?;
        let mut command = Command::new(program);
        what(&mut command);
        let mut child = command
            .arg("--config")
            .arg(directory::config(dir, role))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            // Ctrl-C in a terminal goes to a whole group. These are stopped in order instead: the log has to publish first what it
            // took, and needs the others for that.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| cannot(&format!("start the {role}"), error))?;
        let stdin = child.stdin.take();
        let pid = child.id().unwrap_or_default();
        let stdout =
            child.stdout.take().ok_or_else(|| Failure::state(format!("the {role} has no output")))?;
        let stdout = BufReader::new(stdout);
        Ok(RoleProcess { role, pid, child, stdin, stdout, messages, serving: serde_json::Value::Null })
    }

    /// Waits until the one that lies has said its public key.
    pub async fn introduces_itself(&mut self) -> Outcome<VKey> {
        let said = self.says().await?;
        let vkey = said["vkey"].as_str().and_then(|vkey| vkey.parse().ok());
        vkey.ok_or_else(|| Failure::state(format!("the {} did not say its public key", self.role)))
    }

    /// Tells the one that lies that its configuration is there.
    pub async fn go_on(&mut self) -> Outcome {
        let Some(stdin) = &mut self.stdin else { return Ok(()) };
        let told = async {
            stdin.write_all(b"\n").await?;
            stdin.flush().await
        };
        told.await.map_err(|error| Failure::state(format!("cannot talk to the {}: {error}", self.role)))
    }

    /// Waits until it serves, and notes where.
    pub async fn serves(&mut self, dir: &Path) -> Outcome {
        self.serving = self.says().await?;
        for (extension, content) in [("addr", self.address()), ("pid", &self.pid.to_string())] {
            fs::write(directory::run_file(dir, self.role, extension), format!("{content}\n"))
                .map_err(|error| Failure::state(format!("cannot write to run/: {error}")))?;
        }
        Ok(())
    }

    /// The next object that it prints.
    async fn says(&mut self) -> Outcome<serde_json::Value> {
        let mut line = String::new();
        let read = timeout(START, self.stdout.read_line(&mut line)).await;
        match (read, serde_json::from_str(&line)) {
            (Ok(Ok(_)), Ok(said)) => Ok(said),
            _ => {
                // It ended, or it will: a child that does not answer is killed when it is dropped.
                let code = timeout(Duration::from_secs(1), self.ended()).await.ok().flatten();
                Err(self.failure(code))
            }
        }
    }

    /// Where it listens.
    pub fn address(&self) -> &str {
        self.serving["address"].as_str().unwrap_or_default()
    }

    /// Completes when it has ended, with its exit code if no signal ended it. May be dropped and asked again.
    pub async fn ended(&mut self) -> Option<i32> {
        self.child.wait().await.ok().and_then(|status| status.code())
    }

    /// What it said last, under the kind of failure that its exit code names.
    pub fn failure(&self, code: Option<i32>) -> Failure {
        let message = match code {
            Some(_) => last_message(&self.messages),
            None => format!(
                "a signal ended it, or it does not answer; its messages are in {}",
                self.messages.display()
            ),
        };
        let kind = match code {
            Some(2) => Kind::Usage,
            _ => Kind::State,
        };
        Failure::new(
            kind,
            format_args!("the process of the {} did not start, or stopped: {message}", self.role),
        )
    }

    /// Asks it to finish what it took, and to end.
    pub fn ask_to_stop(&mut self) {
        drop(self.stdin.take());
    }

    /// Waits for its end, which it was asked for.
    pub async fn stop(&mut self) {
        self.ask_to_stop();
        if timeout(STOP, self.child.wait()).await.is_err() {
            tracing::warn!(
                "the {} did not stop in time and is killed; nothing that it acknowledged is lost",
                self.role
            );
            let _ = self.child.kill().await;
        }
    }
}

fn last_message(messages: &Path) -> String {
    let text = fs::read_to_string(messages).unwrap_or_default();
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str::<serde_json::Value>(last)
        .ok()
        .and_then(|line| line["error"]["message"].as_str().map(ToOwned::to_owned))
        .unwrap_or_else(|| format!("it said nothing; see {}", messages.display()))
}
