//! `epigraph verify`: a receipt, a checkpoint, a piece of evidence or a monitor's observation, and public keys; no network, no
//! state.

use std::fmt::Display;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use epigraph_core::bundle::MAX_ENTRY_BYTES;
use epigraph_core::checkpoint::CheckpointError;
use epigraph_core::evidence::{self, DRILL_ORIGIN, MAX_EVIDENCE_BYTES};
use epigraph_core::hash::leaf_hash;
use epigraph_core::key::KeyType;
use epigraph_core::note::{MAX_NOTE_BYTES, Parsed};
use epigraph_core::observation::{self, BadObservation};
use epigraph_core::policy::MAX_POLICY_BYTES;
use epigraph_core::policy::explain::{Age, Explanation};
use epigraph_core::tlog_proof::{MAX_RECEIPT_BYTES, Receipt};
use epigraph_core::{Checkpoint, Hash, Policy, VKey, Verified};
use epigraph_event::Bundle;
use epigraph_event::bundle::MAX_BUNDLE_BYTES;
use serde_json::{Value, json};

use crate::cli::audit::EXTENSION;
use crate::cli::explain::{age, hint, object, strangers};
use crate::cli::{Leaf, Trust, Verify};
use crate::failure::{Failure, Outcome};
use crate::profile;
use crate::terminal::Terminal;

/// What a file says it is, by its first line; the version behind the `@` is looked at when it is read.
enum Kind {
    Receipt,
    Evidence,
    Observation,
    Event,
    Checkpoint,
}

/// Whom the person trusts.
enum Trusted {
    Key(VKey),
    Policy(Policy),
}

pub fn run(args: &Verify, terminal: Terminal) -> Outcome {
    let trusted = trusted(&args.trust)?;
    if args.file.is_dir() {
        return events(args, &files_of(&args.file)?, trusted.policy()?, terminal);
    }
    let longest = MAX_RECEIPT_BYTES.max(MAX_EVIDENCE_BYTES).max(MAX_NOTE_BYTES).max(MAX_BUNDLE_BYTES);
    let bytes = read(&args.file, longest)?;
    let kind = Kind::of(&bytes);
    let for_a_receipt = args.leaf.entry.is_some() || args.leaf.leaf_hash.is_some();
    match kind {
        Some(Kind::Receipt) => receipt(args, &bytes, trusted.policy()?, terminal),
        None => Err(Failure::no(format!(
            "{} is not a receipt, not a checkpoint, not an event, not an evidence file and not a monitor's observation, or was cut off or \
             edited",
            args.file.display()
        ))),
        Some(Kind::Event) => events(args, std::slice::from_ref(&args.file), trusted.policy()?, terminal),
        Some(_) if for_a_receipt => Err(Failure::usage(format!(
            "--entry and --leaf-hash go with a receipt, and {} is none",
            args.file.display()
        ))),
        Some(Kind::Checkpoint) => checkpoint(args, &bytes, trusted.policy()?, terminal),
        Some(Kind::Evidence) if args.max_age.is_some() => Err(Failure::usage(
            "--max-age does not go with evidence: what was signed twice stays signed twice",
        )),
        Some(Kind::Evidence) => evidence(args, &bytes, &trusted.keys(), terminal),
        Some(Kind::Observation) if args.max_age.is_some() => {
            Err(Failure::usage("--max-age does not go with an observation: it says itself when it was made"))
        }
        Some(Kind::Observation) => observation(args, &bytes, &trusted.keys(), terminal),
    }
}

impl Kind {
    fn of(bytes: &[u8]) -> Option<Kind> {
        if bytes.starts_with(b"c2sp.org/tlog-proof@") {
            Some(Kind::Receipt)
        } else if bytes.starts_with(b"epigraph-evidence@") {
            Some(Kind::Evidence)
        } else if Bundle::recognise(bytes) {
            Some(Kind::Event)
        } else if bytes.starts_with(b"epigraph-observation@") {
            Some(Kind::Observation)
        } else {
            Parsed::parse(bytes).is_ok().then_some(Kind::Checkpoint)
        }
    }
}

fn receipt(args: &Verify, bytes: &[u8], policy: Policy, terminal: Terminal) -> Outcome {
    let age = age(args.max_age, &policy)?;
    let leaf = leaf(&args.leaf, &args.file)?;
    let receipt =
        Receipt::parse(bytes).map_err(|error| Failure::no(format!("{}: {error}", args.file.display())))?;
    let (checkpoint, explanation) = open(&receipt.checkpoint, &policy, age)
        .map_err(|why| Failure::no(format!("the receipt's checkpoint is not valid: {why}")))?;
    receipt.verify_under(&leaf, &checkpoint).map_err(Failure::no)?;
    let (index, head) = (receipt.index, checkpoint.head());
    terminal.line(format_args!(
        "{} entry {index} is in the log {}, under its signed checkpoint of size {}",
        terminal.good("verified:"),
        checkpoint.origin(),
        head.size
    ));
    vouched(&explanation, terminal);
    let mut report = report("receipt", &checkpoint);
    report["index"] = json!(index.get());
    report["leaf_hash"] = json!(leaf.to_string());
    report["policy"] = object(&explanation, &strangers(&receipt.checkpoint, &policy));
    terminal.object(&report);
    Ok(())
}

/// The files with events in a directory, in the order of their names.
fn files_of(dir: &Path) -> Outcome<Vec<PathBuf>> {
    let cannot = |error: &dyn Display| Failure::usage(format!("cannot read {}: {error}", dir.display()));
    let entries = fs::read_dir(dir).map_err(|error| cannot(&error))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| cannot(&error))?.path();
        if path.extension().is_some_and(|extension| extension == EXTENSION) {
            files.push(path);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(Failure::usage(format!("{} has no file that ends in .{EXTENSION}", dir.display())));
    }
    Ok(files)
}

/// Every file must hold an event that is proven: one that does not is the answer no, and is named.
fn events(args: &Verify, files: &[PathBuf], policy: Policy, terminal: Terminal) -> Outcome {
    let mut sources = args.source.clone();
    if let Some(profile) = &args.trust.profile {
        sources.extend(profile::Profile::load(profile)?.sources);
    }
    if sources.is_empty() {
        return Err(Failure::usage(
            "an event is signed by its source: say whom you believe with --source VKEY, or --profile with a client directory that \
             names sources",
        ));
    }
    let mut objects = Vec::new();
    for file in files {
        let bytes = read(file, MAX_BUNDLE_BYTES)?;
        let no = |error: &dyn Display| Failure::no(format!("{}: {error}", file.display()));
        let bundle = Bundle::parse(&bytes).map_err(|error| no(&error))?;
        let proven = bundle.verify(&policy, &sources).map_err(|error| no(&error))?;
        crate::cli::audit::show(&proven, terminal);
        objects.push(crate::cli::audit::event_object(&proven));
    }
    terminal.line(format_args!(
        "{} {} events, offline, with public keys alone",
        terminal.good("verified:"),
        files.len()
    ));
    terminal.object(&json!({ "verified": true, "kind": "events", "events": objects }));
    Ok(())
}

fn checkpoint(args: &Verify, note: &[u8], policy: Policy, terminal: Terminal) -> Outcome {
    let age = age(args.max_age, &policy)?;
    let (checkpoint, explanation) = open(note, &policy, age)
        .map_err(|why| Failure::no(format!("{}: the checkpoint is not valid: {why}", args.file.display())))?;
    terminal.line(format_args!(
        "{} this is a checkpoint of the log {}, of size {} with root {}",
        terminal.good("verified:"),
        checkpoint.origin(),
        checkpoint.head().size,
        checkpoint.head().root
    ));
    vouched(&explanation, terminal);
    let mut report = report("checkpoint", &checkpoint);
    report["policy"] = object(&explanation, &strangers(note, &policy));
    terminal.object(&report);
    Ok(())
}

fn evidence(args: &Verify, bytes: &[u8], keys: &[VKey], terminal: Terminal) -> Outcome {
    let evidence = evidence::verify(bytes, keys)
        .map_err(|error| Failure::no(format!("{}: {error}", args.file.display())))?;
    let is_drill = evidence.origin().as_str() == DRILL_ORIGIN;
    if is_drill {
        terminal
            .line(terminal.bold("a drill: this log never was, and its key was made and thrown away for it"));
    }
    terminal.line(format_args!("{} {evidence}", terminal.bad("proven:")));
    for (note, which) in evidence.notes().iter().zip(["one", "the other"]) {
        terminal.line("");
        terminal.line(terminal.bold(format_args!("{which}, as it was signed:")));
        terminal.line(note.trim_end());
    }
    let heads =
        evidence.heads().map(|head| json!({ "size": head.size.get(), "root": head.root.to_string() }));
    terminal.object(&json!({
        "verified": true,
        "kind": "evidence",
        "origin": evidence.origin().as_str(),
        "accused": evidence.accused().to_string(),
        "heads": heads,
        "notes": evidence.notes(),
        "statement": evidence.to_string(),
        "drill": is_drill,
    }));
    Ok(())
}

fn observation(args: &Verify, bytes: &[u8], keys: &[VKey], terminal: Terminal) -> Outcome {
    let (observation, by) = observation::verify(bytes, keys).map_err(|error| {
        let hint = match error {
            BadObservation::UnknownKey(_) if args.trust.vkey.is_none() => {
                ". A policy names logs and witnesses, and no monitors: give the monitor's own key with --vkey"
            }
            _ => "",
        };
        Failure::no(format!("{}: {error}{hint}", args.file.display()))
    })?;
    terminal.line(format_args!("{} the monitor {} saw {observation}", terminal.good("signed:"), by.name()));
    terminal.line(
        "this is that monitor's word, and proves nothing about the log to those who do not trust the monitor",
    );
    for (note, number) in observation.notes().iter().zip(1..) {
        terminal.line("");
        terminal.line(terminal.bold(format_args!("quoted note {number}, not verified here:")));
        terminal.line(note.trim_end());
    }
    terminal.object(&json!({
        "verified": true,
        "kind": "observation",
        "origin": observation.origin().as_str(),
        "monitor": by.to_string(),
        "code": observation.code(),
        "subject": observation.subject(),
        "at_ms": observation.at().0,
        "detail": observation.detail(),
        "notes": observation.notes(),
    }));
    Ok(())
}

/// The checkpoint under the policy, with what the policy found; or why not.
fn open(
    note: &[u8],
    policy: &Policy,
    age: Option<Age>,
) -> Result<(Verified<Checkpoint>, Explanation), String> {
    let opened = match age {
        Some(age) => Checkpoint::open_within(note, policy, age),
        None => Checkpoint::open(note, policy),
    };
    let explained = opened.and_then(|opened| Ok((opened, Checkpoint::explain(note, policy, age)?)));
    explained.map_err(|error| match error {
        CheckpointError::Quorum(_) | CheckpointError::NotSigned(_) => {
            format!("{error}{}", hint(&strangers(note, policy)))
        }
        error => error.to_string(),
    })
}

/// Who stands behind a checkpoint besides its log.
fn vouched(explanation: &Explanation, terminal: Terminal) {
    match &explanation.quorum {
        Some(_) => terminal.line(explanation),
        None => terminal.line(
            "no witness was asked: this shows what the log signed, not that others are shown the same. A policy with \
             witnesses asks for both",
        ),
    }
}

fn report(kind: &str, checkpoint: &Verified<Checkpoint>) -> Value {
    let head = checkpoint.head();
    json!({
        "verified": true,
        "kind": kind,
        "origin": checkpoint.origin().as_str(),
        "checkpoint": { "size": head.size.get(), "root": head.root.to_string() },
    })
}

impl Trusted {
    /// What receipts and checkpoints are opened with.
    fn policy(self) -> Outcome<Policy> {
        match self {
            Trusted::Key(vkey) if vkey.key_type() != KeyType::Ed25519 => Err(Failure::usage(format!(
                "--vkey: this is the key of the witness {}, and a witness alone vouches for no receipt or checkpoint: \
                 give the log's key, or a policy that names both",
                vkey.name()
            ))),
            Trusted::Key(vkey) => Ok(Policy::of_log(vkey)),
            Trusted::Policy(policy) => Ok(policy),
        }
    }

    /// About whom evidence is accepted.
    fn keys(self) -> Vec<VKey> {
        match self {
            Trusted::Key(vkey) => vec![vkey],
            Trusted::Policy(policy) => {
                let witnesses = policy.witnesses().iter().map(|witness| &witness.vkey);
                policy.logs().iter().chain(witnesses).cloned().collect()
            }
        }
    }
}

fn trusted(trust: &Trust) -> Outcome<Trusted> {
    match trust {
        Trust { vkey: Some(vkey), .. } => {
            vkey.parse().map(Trusted::Key).map_err(|error| Failure::usage(format!("--vkey: {error}")))
        }
        Trust { policy: Some(path), .. } => read_policy(path).map(Trusted::Policy),
        Trust { profile: Some(dir), .. } => {
            profile::Profile::load(dir).map(|profile| Trusted::Policy(profile.policy))
        }
        _ => Err(Failure::usage("say whom to trust: --policy FILE, --vkey VKEY or --profile DIR")),
    }
}

/// Reads a policy file.
pub fn read_policy(path: &Path) -> Outcome<Policy> {
    let bytes = read(path, MAX_POLICY_BYTES)?;
    let bad = |why: &dyn Display| Failure::usage(format!("{}: {why}", path.display()));
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
