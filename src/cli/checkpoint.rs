//! `epigraph checkpoint`: the newest published checkpoint, those that follow, or those before, each checked against everything
//! seen before.

use epigraph_client::{Client, ClientError};
use epigraph_core::checkpoint::{Checkpoint as Signed, CheckpointError};
use epigraph_core::{Policy, TreeSize, Verified};

use crate::cli::Checkpoint;
use crate::cli::explain;
use crate::failure::{Failure, Outcome};
use crate::profile::Profile;
use crate::runtime;
use crate::terminal::Terminal;

pub fn run(args: &Checkpoint, terminal: Terminal) -> Outcome {
    let profile = Profile::load(&args.profile.profile)?;
    let policy = profile.policy.clone();
    let min_size = args.min_size.unwrap_or(0);
    let min_size = TreeSize::new(min_size)
        .ok_or_else(|| Failure::usage(format!("a log has at most {} entries", TreeSize::MAX)))?;
    runtime::runtime().map_err(Failure::state)?.block_on(async {
        let client = profile.client()?;
        if args.watch {
            let stop = runtime::stop_signal().map_err(Failure::state)?;
            tokio::select! {
                ended = watch(&client, terminal) => ended,
                () = stop => Ok(()),
            }
        } else if args.list {
            list(&client, min_size, terminal).await
        } else {
            newest(&client, &policy, args.explain, terminal).await
        }
    })
}

async fn newest(client: &Client, policy: &Policy, explained: bool, terminal: Terminal) -> Outcome {
    let checkpoint = client.checkpoint().await.map_err(|error| {
        if let (true, ClientError::Checkpoint(CheckpointError::Quorum(explanation))) = (explained, &error) {
            explain::show(explanation, &[], terminal);
        }
        Failure::from(error)
    })?;
    let mut report = object(&checkpoint);
    if explained {
        let explanation = Signed::explain(checkpoint.note(), policy, None).map_err(Failure::no)?;
        let strangers = explain::strangers(checkpoint.note(), policy);
        explain::show(&explanation, &strangers, terminal);
        report["policy"] = explain::object(&explanation, &strangers);
    } else {
        terminal.line(String::from_utf8_lossy(checkpoint.note()).trim_end());
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

async fn watch(client: &Client, terminal: Terminal) -> Outcome {
    let mut watch = client.watch(runtime::entropy()).await?;
    loop {
        tell(&watch.next().await?, terminal);
    }
}

async fn list(client: &Client, min_size: TreeSize, terminal: Terminal) -> Outcome {
    let mut pages = client.checkpoints(min_size);
    let mut count = 0;
    while let Some(page) = pages.next_page().await? {
        page.iter().for_each(|checkpoint| tell(checkpoint, terminal));
        count += page.len();
    }
    terminal.line(format_args!(
        "{} {count} kept checkpoints, all of one history with every checkpoint that this client has accepted",
        terminal.good("verified:")
    ));
    Ok(())
}

fn tell(checkpoint: &Verified<Signed>, terminal: Terminal) {
    let head = checkpoint.head();
    terminal.line(format_args!("size {} root {}", head.size, head.root));
    terminal.object(&object(checkpoint));
}

fn object(checkpoint: &Verified<Signed>) -> serde_json::Value {
    serde_json::json!({
        "verified": true,
        "origin": checkpoint.origin().as_str(),
        "size": checkpoint.head().size.get(),
        "root": checkpoint.head().root.to_string(),
        "note": String::from_utf8_lossy(checkpoint.note()),
    })
}
