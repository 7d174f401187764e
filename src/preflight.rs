//! Trying a stored tree in a child process, because sled panics, hangs and forgets on damage.

use std::env;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use epigraph_store::tree::{self, Preflight};

use crate::failure::{Failure, Outcome};
use crate::terminal::Terminal;

/// The hidden subcommand, as `cli` names it.
const SUBCOMMAND: &str = "tree-preflight";

/// How long the child may take. Opening reads what was written since the last start; appending does not wait for it.
const TIME_LIMIT: Duration = Duration::from_secs(300);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Of what the child complains, so much is passed on.
const MAX_COMPLAINT_BYTES: u64 = 2048;

/// What the child does.
pub fn run(directory: &Path, terminal: Terminal) -> Outcome {
    let report = tree::preflight(directory).map_err(Failure::state)?;
    terminal.line(format_args!("{} entries, {} bytes", report.head.size, report.bytes));
    Ok(())
}

/// How the parent has it done.
pub fn in_a_child() -> Preflight {
    Box::new(|directory| {
        let mut child = env::current_exe()
            .and_then(|program| {
                Command::new(program)
                    .arg(SUBCOMMAND)
                    .arg(directory)
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::piped())
                    .spawn()
            })
            .map_err(|error| format!("it could not be tried: {error}"))?;
        let outcome = wait(&mut child);
        if outcome.is_err() {
            // It may have ended meanwhile; then there is nothing to kill.
            let _ = child.kill();
            let _ = child.wait();
        }
        outcome
    })
}

fn wait(child: &mut Child) -> Result<(), String> {
    let mut waited = Duration::ZERO;
    while waited < TIME_LIMIT {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => {
                let mut complaint = Vec::new();
                if let Some(stderr) = child.stderr.take() {
                    // Only to say more.
                    let _ = stderr.take(MAX_COMPLAINT_BYTES).read_to_end(&mut complaint);
                }
                let complaint = String::from_utf8_lossy(&complaint);
                return Err(format!("trying to open it ended with {status}: {}", complaint.trim()));
            }
            Ok(None) => thread::sleep(LOOK_EVERY),
            Err(error) => return Err(format!("it could not be tried: {error}")),
        }
        waited += LOOK_EVERY;
    }
    Err(format!("trying to open it took more than {} seconds", TIME_LIMIT.as_secs()))
}
