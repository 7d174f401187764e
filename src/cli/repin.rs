//! `epigraph policy repin`: a client goes on under a new policy from what it accepted under the old one.

use epigraph_core::Policy;
use epigraph_core::policy::analysis::overlap;
use serde_json::json;

use crate::cli::PolicyRepin;
use crate::cli::policy::{count, least_common};
use crate::cli::verify::read_policy;
use crate::failure::{Failure, Outcome};
use crate::profile::Profile;
use crate::runtime;
use crate::terminal::Terminal;

pub fn run(args: &PolicyRepin, terminal: Terminal) -> Outcome {
    let profile = Profile::load(&args.profile.profile)?;
    let (old, new) = (read_policy(&args.old)?, profile.policy.clone());
    let origin = profile.origin.clone();
    let keys = |policy: &Policy| {
        let own = policy.logs().iter().filter(|log| log.name().as_str() == origin.as_str());
        own.cloned().collect::<Vec<_>>()
    };
    let before = keys(&old);
    if !keys(&new).iter().any(|key| before.contains(key)) {
        return Err(Failure::no(format!(
            "the old and the new policy know {origin} by different keys: a log with another key is another log, and nothing is \
             carried over. Nothing was changed; make a new client directory for it"
        )));
    }
    let given_up = not_meeting(&old, &new, args.faulty);
    if let (Some(why), false) = (&given_up, args.give_up_overlap) {
        return Err(Failure::no(format!(
            "{why}. Nothing was changed. Change fewer witnesses at a time; or, if you know from elsewhere that both see one log, \
             say --give-up-overlap"
        )));
    }
    let runtime = runtime::runtime().map_err(Failure::state)?;
    let repinned = runtime.block_on(async { Ok::<_, Failure>(profile.client()?.repin(&old).await?) })?;
    let Some(repinned) = repinned else {
        terminal
            .line("nothing was accepted under the old policy yet: the next command starts under the new one");
        terminal.object(&json!({ "repinned": false, "origin": origin.as_str() }));
        return Ok(());
    };
    let (before, after) = (repinned.before, repinned.after);
    terminal.line(format_args!(
        "{} the checkpoint of size {} satisfies the new policy and extends the one of size {} that was accepted under the old \
         one; every command starts from it now",
        terminal.good("yes:"),
        after.size,
        before.size
    ));
    if let Some(why) = &given_up {
        terminal.note(format_args!("given up: {why}"));
    }
    terminal.object(&json!({
        "repinned": true,
        "origin": origin.as_str(),
        "old_size": before.size.get(),
        "size": after.size.get(),
        "root": after.root.to_string(),
        "given_up": given_up,
    }));
    Ok(())
}

/// What is not vouched for, where the quorums of the two need not meet in more than `faulty` witnesses.
fn not_meeting(old: &Policy, new: &Policy, faulty: usize) -> Option<String> {
    let pair = match overlap(old, new) {
        Ok(overlap) if overlap.withstands(faulty) => return None,
        Ok(overlap) => least_common(old, new, &overlap),
        Err(error) => error.to_string(),
    };
    Some(format!(
        "the change of policy does not withstand {}: {pair}, so that whoever still has the old policy and whoever has the new one \
         could be shown two histories",
        count(faulty, "lying witness")
    ))
}
