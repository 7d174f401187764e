//! `epigraph prove`: the receipt of one entry, fetched, verified, written to a file.

use epigraph_client::Client;
use epigraph_core::{Checkpoint, LeafIndex, TreeSize, Verified};

use crate::cli::Prove;
use crate::cli::verify::leaf;
use crate::failure::{Failure, Kind, Outcome};
use crate::profile::Profile;
use crate::receipts;
use crate::runtime;
use crate::terminal::Terminal;

pub fn run(args: &Prove, terminal: Terminal) -> Outcome {
    let profile = Profile::load(&args.profile.profile)?;
    let index = args.index.map(|index| LeafIndex::new(index).ok_or_else(|| Failure::usage(NO_SUCH_INDEX)));
    let index = index.transpose()?;
    let size =
        args.size.map(|size| TreeSize::new(size).ok_or_else(|| no_such_checkpoint(size))).transpose()?;
    let leaf = leaf(&args.leaf, &args.out)?;
    let receipt = runtime::runtime().map_err(Failure::state)?.block_on(async {
        let client = profile.client()?;
        let index = match (index, size) {
            (Some(index), Some(_)) => index,
            (Some(index), None) => return Ok(client.receipt(index, &leaf).await?),
            (None, None) => return Ok(client.receipt_of(&leaf).await?),
            (None, Some(_)) => client.receipt_of(&leaf).await?.index,
        };
        let checkpoint = kept(&client, size.unwrap_or_default()).await?;
        Ok::<_, Failure>(client.receipt_under(index, &leaf, &checkpoint).await?)
    })?;
    let index = receipt.index;
    receipts::write(&args.out, &receipt.encode())
        .map_err(|error| Failure::usage(format!("cannot write {}: {error}", args.out.display())))?;
    terminal.line(format_args!(
        "{} entry {index} is in the log; its receipt is {}",
        terminal.good("verified:"),
        args.out.display()
    ));
    terminal.object(&serde_json::json!({
        "verified": true,
        "index": index.get(),
        "leaf_hash": leaf.to_string(),
        "receipt": args.out,
    }));
    Ok(())
}

const NO_SUCH_INDEX: &str = "no log has an entry with this index";

/// The published checkpoint of exactly this size.
async fn kept(client: &Client, size: TreeSize) -> Outcome<Verified<Checkpoint>> {
    let mut pages = client.checkpoints(size);
    while let Some(page) = pages.next_page().await? {
        if let Some(first) = page.into_iter().next() {
            return if first.head().size == size { Ok(first) } else { Err(no_such_checkpoint(size.get())) };
        }
    }
    Err(no_such_checkpoint(size.get()))
}

fn no_such_checkpoint(size: u64) -> Failure {
    Failure::new(
        Kind::Refused,
        format!(
            "the log has kept no checkpoint of size {size}: `epigraph checkpoint --list` shows those that it has"
        ),
    )
}
