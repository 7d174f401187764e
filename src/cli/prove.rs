//! `epigraph prove`: the receipt of one entry, fetched, verified, written to a file.

use epigraph_core::LeafIndex;

use crate::cli::Prove;
use crate::cli::verify::leaf;
use crate::failure::{Failure, Outcome};
use crate::profile::Profile;
use crate::receipts;
use crate::runtime;
use crate::terminal::Terminal;

pub fn run(args: &Prove, terminal: Terminal) -> Outcome {
    let profile = Profile::load(&args.profile.profile)?;
    let index =
        LeafIndex::new(args.index).ok_or_else(|| Failure::usage("no log has an entry with this index"))?;
    let leaf = leaf(&args.leaf, &args.out)?;
    let receipt = runtime::runtime()
        .map_err(Failure::state)?
        .block_on(async { profile.client()?.receipt(index, &leaf).await.map_err(Failure::from) })?;
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
