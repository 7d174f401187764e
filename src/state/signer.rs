//! The directory of a signer process: `LOCK`, `format`, `heads` for all its logs, and usually the keys. Created by `init` only.

use std::path::Path;
use std::sync::Arc;

use epigraph_core::progress::Held;
use epigraph_core::{Checkpoint, Entropy, KeyName, Policy, SigningKey, UnixMillis, VKey};
use epigraph_store::head::{self, HeadStore};
use epigraph_store::lock::{FormatFile, Kind};

use super::{create_dir, keep, load_key, load_or_create_key, lock_directory, open_dir, open_heads};
use crate::config::signer::{SignedLog, SignerProcessConfig};
use crate::failure::{Failure, Outcome};

/// What a signer starts from.
pub enum Start<'a> {
    /// Logs that are new: the empty tree.
    New,
    /// A log that exists: its newest published checkpoint, and what that must satisfy.
    From {
        checkpoint: &'a [u8],
        /// `None`: whoever runs this vouches for it.
        policy: Option<Policy>,
    },
}

/// A log for which the signer has state now.
pub struct Created {
    pub origin: KeyName,
    pub vkey: VKey,
    /// The size of the head that it starts from.
    pub size: u64,
}

/// Creates the state of those logs that have none yet; of `only`, if that is given. Nothing that is there is changed.
pub fn init(
    config: &SignerProcessConfig,
    only: Option<&KeyName>,
    start: &Start<'_>,
    now: UnixMillis,
    entropy: &Arc<dyn Entropy>,
) -> Outcome<Vec<Created>> {
    let wanted: Vec<&SignedLog> =
        config.logs.iter().filter(|log| only.is_none_or(|only| *only == log.origin)).collect();
    if let (Some(only), true) = (only, wanted.is_empty()) {
        return Err(Failure::usage(format!("the configuration has no [[log]] table with the origin {only}")));
    }
    create_dir(&config.directory)?;
    let _lock = lock_directory(&config.directory)?;
    let format = FormatFile::of(Kind::Signer);
    let made = config.directory.join("format").exists();
    if made {
        format.check(&config.directory).map_err(Failure::state)?;
    }
    let there = if made { held_origins(&config.directory)? } else { Vec::new() };
    let missing: Vec<&SignedLog> =
        wanted.into_iter().filter(|log| !there.contains(&log.origin.to_origin())).collect();
    if missing.is_empty() {
        let message = format!("{} is initialised already; nothing was changed", config.directory.display());
        return Err(Failure::state(message));
    }
    if let (Start::From { .. }, 2..) = (start, missing.len()) {
        return Err(Failure::usage("a checkpoint is of one log: say of which with --log"));
    }
    // Everything is read before anything is written.
    let mut firsts = Vec::new();
    for log in missing {
        let vkey = load_or_create_key(&log.key, &log.origin, entropy)?;
        let first = first_head(log, &vkey, start, now)?;
        firsts.push((log, vkey, first));
    }
    let mut heads = if made {
        open_heads(&config.directory)?
    } else {
        let room = config.logs.len() as u32;
        HeadStore::create(open_dir(&config.directory)?, room, &**entropy).map_err(Failure::state)?
    };
    let mut created = Vec::new();
    for (log, vkey, first) in firsts {
        let size = first.head.size.get();
        heads.init_log(&log.origin.to_origin(), first).map_err(Failure::state)?;
        created.push(Created { origin: log.origin.clone(), vkey, size });
    }
    if !made {
        // Last: a directory without it was not initialised to the end.
        format.create(&config.directory).map_err(Failure::state)?;
    }
    Ok(created)
}

fn held_origins(directory: &Path) -> Outcome<Vec<epigraph_core::Origin>> {
    let found = head::inspect(open_dir(directory)?.as_ref())
        .map_err(|error| Failure::state(format!("{}: {error}", directory.display())))?;
    Ok(found.heads.into_iter().map(|(origin, _)| origin).collect())
}

fn first_head(log: &SignedLog, vkey: &VKey, start: &Start<'_>, now: UnixMillis) -> Outcome<Held> {
    let Start::From { checkpoint, policy } = start else { return Ok(Held::EMPTY) };
    let refused = |why: &dyn std::fmt::Display| {
        Failure::state(format!(
            "the checkpoint cannot be what the signer of {} starts from: {why}",
            log.origin
        ))
    };
    if let Some(policy) = policy {
        if policy.quorum().is_none() {
            return Err(refused(
                &"under this policy the log alone vouches for it. If you know that nothing newer was ever published, say so with \
                  --nothing-newer-was-published instead of --policy",
            ));
        }
        Checkpoint::open(checkpoint, policy).map_err(|error| refused(&error))?;
    }
    // Whatever the policy says, it must be this key that the head binds.
    let own = Policy::of_log(vkey.clone());
    let checkpoint = Checkpoint::open(checkpoint, &own).map_err(|error| refused(&error))?;
    // Terms of the signer that was lost are forgotten with it, and a log process that was paused may still have one. Counted on
    // from the time in milliseconds, no term comes twice: nobody opens a thousand a second.
    Ok(Held { head: checkpoint.head(), time: now, term: now.0, note: Vec::new() })
}

/// Locks and opens what `init` created. A missing piece is a refusal, never a fresh start.
pub fn open(config: &SignerProcessConfig) -> Outcome<(Vec<SigningKey>, HeadStore)> {
    FormatFile::of(Kind::Signer).check(&config.directory).map_err(Failure::state)?;
    keep(lock_directory(&config.directory)?);
    let keys = config.logs.iter().map(|log| load_key(&log.key, &log.origin)).collect::<Outcome<_>>()?;
    let heads = open_heads(&config.directory)?;
    let there = held_origins(&config.directory)?;
    if let Some(log) = config.logs.iter().find(|log| !there.contains(&log.origin.to_origin())) {
        return Err(Failure::state(format!(
            "{} holds no head of {}: if the log is a new one, run `init signer --log {}` first; if it exists, add its newest \
             checkpoint with --checkpoint",
            config.directory.display(),
            log.origin,
            log.origin
        )));
    }
    Ok((keys, heads))
}
