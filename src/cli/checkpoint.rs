//! `epigraph checkpoint`: the newest published checkpoint, those that follow, or those before, each checked against everything
//! seen before.

use epigraph_client::Client;
use epigraph_core::{TreeSize, Verified};

use crate::cli::Checkpoint;
use crate::failure::{Failure, Outcome};
use crate::profile::Profile;
use crate::runtime;
use crate::terminal::Terminal;

pub fn run(args: &Checkpoint, terminal: Terminal) -> Outcome {
    let profile = Profile::load(&args.profile.profile)?;
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
            let checkpoint = client.checkpoint().await?;
            show(&checkpoint, terminal);
            Ok(())
        }
    })
}

fn show(checkpoint: &Verified<epigraph_core::Checkpoint>, terminal: Terminal) {
    terminal.line(String::from_utf8_lossy(checkpoint.note()).trim_end());
    terminal.line("");
    terminal.line(format_args!(
        "{} signed by the log, and it extends every checkpoint that this client has accepted",
        terminal.good("verified:")
    ));
    terminal.object(&object(checkpoint));
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

fn tell(checkpoint: &Verified<epigraph_core::Checkpoint>, terminal: Terminal) {
    let head = checkpoint.head();
    terminal.line(format_args!("size {} root {}", head.size, head.root));
    terminal.object(&object(checkpoint));
}

fn object(checkpoint: &Verified<epigraph_core::Checkpoint>) -> serde_json::Value {
    serde_json::json!({
        "verified": true,
        "origin": checkpoint.origin().as_str(),
        "size": checkpoint.head().size.get(),
        "root": checkpoint.head().root.to_string(),
        "note": String::from_utf8_lossy(checkpoint.note()),
    })
}
