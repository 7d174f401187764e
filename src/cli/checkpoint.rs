//! `epigraph checkpoint`: the newest published checkpoint, checked against everything seen before.

use crate::cli::Checkpoint;
use crate::failure::{Failure, Outcome};
use crate::profile::Profile;
use crate::runtime;
use crate::terminal::Terminal;

pub fn run(args: &Checkpoint, terminal: Terminal) -> Outcome {
    let profile = Profile::load(&args.profile.profile)?;
    let checkpoint = runtime::runtime()
        .map_err(Failure::state)?
        .block_on(async { profile.client()?.checkpoint().await.map_err(Failure::from) })?;
    let note = String::from_utf8_lossy(checkpoint.note());
    terminal.line(note.trim_end());
    terminal.line("");
    terminal.line(format_args!(
        "{} signed by the log, and it extends every checkpoint that this client has accepted",
        terminal.good("verified:")
    ));
    terminal.object(&serde_json::json!({
        "verified": true,
        "origin": checkpoint.origin().as_str(),
        "size": checkpoint.head().size.get(),
        "root": checkpoint.head().root.to_string(),
        "note": note,
    }));
    Ok(())
}
