//! `epigraph checkpoint`: the newest published checkpoint, checked against everything seen before.

use epigraph_client::ClientError;
use epigraph_core::checkpoint::{Checkpoint as Signed, CheckpointError};

use crate::cli::Checkpoint;
use crate::cli::explain::{object, show, strangers};
use crate::failure::{Failure, Outcome};
use crate::profile::Profile;
use crate::runtime;
use crate::terminal::Terminal;

pub fn run(args: &Checkpoint, terminal: Terminal) -> Outcome {
    let profile = Profile::load(&args.profile.profile)?;
    let policy = profile.policy.clone();
    let fetched = runtime::runtime()
        .map_err(Failure::state)?
        .block_on(async { Ok::<_, Failure>(profile.client()?.checkpoint().await) })?;
    let checkpoint = fetched.map_err(|error| {
        if let (true, ClientError::Checkpoint(CheckpointError::Quorum(explanation))) = (args.explain, &error)
        {
            show(explanation, &[], terminal);
        }
        Failure::from(error)
    })?;
    let note = String::from_utf8_lossy(checkpoint.note());
    let mut report = serde_json::json!({
        "verified": true,
        "origin": checkpoint.origin().as_str(),
        "size": checkpoint.head().size.get(),
        "root": checkpoint.head().root.to_string(),
        "note": note,
    });
    if args.explain {
        let explanation = Signed::explain(checkpoint.note(), &policy, None).map_err(Failure::no)?;
        let strangers = strangers(checkpoint.note(), &policy);
        show(&explanation, &strangers, terminal);
        report["policy"] = object(&explanation, &strangers);
    } else {
        terminal.line(note.trim_end());
    }
    let signed = if policy.quorum().is_some() { "the log and a quorum of witnesses" } else { "the log" };
    terminal.line("");
    terminal.line(format_args!(
        "{} signed by {signed}, and it extends every checkpoint that this client has accepted",
        terminal.good("verified:")
    ));
    terminal.object(&report);
    Ok(())
}
