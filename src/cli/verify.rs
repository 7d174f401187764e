//! `epigraph verify`: a receipt, an entry and public keys; no network, no state.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use epigraph_core::bundle::MAX_ENTRY_BYTES;
use epigraph_core::hash::leaf_hash;
use epigraph_core::policy::MAX_POLICY_BYTES;
use epigraph_core::tlog_proof::{MAX_RECEIPT_BYTES, Receipt};
use epigraph_core::{Hash, Policy, VKey};

use crate::cli::{Leaf, Trust, Verify};
use crate::failure::{Failure, Outcome};
use crate::profile;
use crate::terminal::Terminal;

pub fn run(args: &Verify, terminal: Terminal) -> Outcome {
    let policy = policy(&args.trust)?;
    let bytes = read(&args.receipt, MAX_RECEIPT_BYTES)?;
    let leaf = leaf(&args.leaf, &args.receipt)?;
    let receipt = Receipt::parse(&bytes)
        .map_err(|error| Failure::no(format!("{}: {error}", args.receipt.display())))?;
    let checkpoint = receipt.verify(&leaf, &policy).map_err(Failure::no)?;
    let (index, size) = (receipt.index, checkpoint.head().size);
    terminal.line(format_args!(
        "{} entry {index} is in the log {}, under its signed checkpoint of size {size}",
        terminal.good("verified:"),
        checkpoint.origin()
    ));
    terminal.object(&serde_json::json!({
        "verified": true,
        "origin": checkpoint.origin().as_str(),
        "index": index.get(),
        "leaf_hash": leaf.to_string(),
        "checkpoint": { "size": size.get(), "root": checkpoint.head().root.to_string() },
    }));
    Ok(())
}

fn policy(trust: &Trust) -> Outcome<Policy> {
    match trust {
        Trust { vkey: Some(vkey), .. } => {
            let vkey: VKey = vkey.parse().map_err(|error| Failure::usage(format!("--vkey: {error}")))?;
            Ok(Policy::of_log(vkey))
        }
        Trust { policy: Some(path), .. } => read_policy(path),
        Trust { profile: Some(dir), .. } => profile::Profile::load(dir).map(|profile| profile.policy),
        _ => Err(Failure::usage("say whom to trust: --policy FILE, --vkey VKEY or --profile DIR")),
    }
}

/// Reads a policy file.
pub fn read_policy(path: &Path) -> Outcome<Policy> {
    let bytes = read(path, MAX_POLICY_BYTES)?;
    let bad = |why: &dyn std::fmt::Display| Failure::usage(format!("{}: {why}", path.display()));
    let text = std::str::from_utf8(&bytes).map_err(|error| bad(&error))?;
    text.parse().map_err(|error| bad(&error))
}

/// The leaf hash that is asked about: given, of a given file, or of the file beside the receipt.
pub fn leaf(leaf: &Leaf, receipt: &Path) -> Outcome<Hash> {
    if let Some(hex) = &leaf.leaf_hash {
        return Hash::from_hex(hex).ok_or_else(|| Failure::usage("--leaf-hash takes 64 hexadecimal digits"));
    }
    let path = leaf.entry.clone().unwrap_or_else(|| receipt.with_extension("entry"));
    let entry = read(&path, MAX_ENTRY_BYTES).map_err(|error| match leaf.entry {
        Some(_) => error,
        None => Failure::usage(format!("{error}. Name the entry with --entry FILE or --leaf-hash HEX")),
    })?;
    Ok(leaf_hash(&entry))
}

/// Reads a file that must not be longer than `limit` bytes.
pub fn read(path: &Path, limit: usize) -> Outcome<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = |bytes: &mut Vec<u8>| File::open(path)?.take(limit as u64 + 1).read_to_end(bytes);
    match read(&mut bytes) {
        Ok(_) if bytes.len() <= limit => Ok(bytes),
        Ok(_) => Err(Failure::usage(format!("{} is longer than {limit} bytes", path.display()))),
        Err(error) => Err(Failure::usage(format!("cannot read {}: {error}", path.display()))),
    }
}
