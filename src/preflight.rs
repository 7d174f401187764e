//! Trying a stored tree in a child process, because sled panics, hangs and forgets on damage.

use std::env;
use std::ffi::OsStr;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use epigraph_core::{Origin, TreeSize};
use epigraph_store::tree::{self, Preflight};

use crate::cli::TreePreflight;
use crate::failure::{Failure, Outcome};
use crate::state;
use crate::terminal::Terminal;

/// The hidden subcommand, as `cli` names it.
const SUBCOMMAND: &str = "tree-preflight";

/// How long the child may take. Opening reads what was written since the last start; appending does not wait for it.
const TIME_LIMIT: Duration = Duration::from_secs(300);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Of what the child complains, so much is passed on.
const MAX_COMPLAINT_BYTES: u64 = 2048;

/// How long comparing a whole tree may take: as long as reading the largest log does.
const COMPARE_TIME_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);

/// What the child does.
pub fn run(args: &TreePreflight, terminal: Terminal) -> Outcome {
    let (Some(journal), Some(origin), Some(entries)) = (&args.journal, &args.origin, args.entries) else {
        let report = tree::preflight(&args.directory).map_err(Failure::state)?;
        terminal.line(format_args!("{} entries, {} bytes", report.head.size, report.bytes));
        return Ok(());
    };
    let origin = Origin::new(origin.clone()).map_err(Failure::usage)?;
    let entries = TreeSize::new(entries).ok_or_else(|| Failure::usage("no log has so many entries"))?;
    let journal = state::open_dir(journal)?;
    let tiles = tree::compare(&args.directory, journal, origin.hash(), entries).map_err(Failure::state)?;
    terminal.line(format_args!("{tiles} tiles"));
    Ok(())
}

/// How the parent has it done.
pub fn in_a_child() -> Preflight {
    Box::new(|directory| child(&[directory.as_os_str()], TIME_LIMIT))
}

/// Has a child compare the tree in `copy`, which it may change, with the first `entries` entries of the journal.
pub fn compare_in_a_child(
    copy: &Path,
    journal: &Path,
    origin: &Origin,
    entries: TreeSize,
) -> Result<(), String> {
    let entries = entries.to_string();
    let args: [&OsStr; 7] = [
        copy.as_os_str(),
        "--journal".as_ref(),
        journal.as_os_str(),
        "--origin".as_ref(),
        origin.as_str().as_ref(),
        "--entries".as_ref(),
        entries.as_ref(),
    ];
    child(&args, COMPARE_TIME_LIMIT)
}

fn child(args: &[&OsStr], limit: Duration) -> Result<(), String> {
    let mut child = env::current_exe()
        .and_then(|program| {
            Command::new(program)
                .arg(SUBCOMMAND)
                .args(args)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
        })
        .map_err(|error| format!("it could not be tried: {error}"))?;
    let outcome = wait(&mut child, limit);
    if outcome.is_err() {
        // It may have ended meanwhile; then there is nothing to kill.
        let _ = child.kill();
        let _ = child.wait();
    }
    outcome
}

fn wait(child: &mut Child, limit: Duration) -> Result<(), String> {
    let mut waited = Duration::ZERO;
    while waited < limit {
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
    Err(format!("trying to open it took more than {} seconds", limit.as_secs()))
}
