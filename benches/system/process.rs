//! The servers under measurement, each a process of its own.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use anyhow::Context;

/// The runtime of every process here, of the log's own program too: one thread.
pub(crate) fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// Linux counts processor time for its users in hundredths of a second.
pub(crate) const TICK: Duration = Duration::from_millis(10);

/// A server that says where it serves in its first line and stops when its standard input ends.
pub(crate) struct Served {
    child: Child,
    stdin: Option<ChildStdin>,
    /// Its first line.
    pub(crate) said: String,
}

impl Served {
    /// Starts it and waits for its first line.
    pub(crate) fn start(command: &mut Command) -> anyhow::Result<Served> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take();
        let mut said = String::new();
        let stdout = child.stdout.take().context("a piped output")?;
        BufReader::new(stdout).read_line(&mut said)?;
        let served = Served { child, stdin, said: said.trim_end().to_owned() };
        anyhow::ensure!(!served.said.is_empty(), "a server did not start; what it said is above");
        Ok(served)
    }

    /// The processor time that it has used, of all its threads and in the kernel (proc_pid_stat(5), fields 14 and 15).
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The second field is the name in brackets, which may hold anything.
        let (_, fields) = stat.rsplit_once(") ").context("no name in /proc/.../stat")?;
        let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<u32>).sum::<Result<u32, _>>()?;
        Ok(TICK * ticks)
    }

    /// The name of its folder in /proc.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it at once, as a crash would.
    pub(crate) fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Lets it finish; whoever is connected must have gone.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        drop(self.stdin.take());
        let status = self.child.wait()?;
        anyhow::ensure!(status.success(), "a server ended with {status}");
        Ok(())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // After `stop` both find nothing to do. Without it the run has failed, and nothing is worth waiting for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
