//! The tree writer on its own: frames of a journal, re-read and re-hashed into the tree, against nothing but SHA-256 of
//! the same leaves and nodes.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use epigraph_core::hash::leaf_hash;
use epigraph_core::{Entropy, Frontier, Hash, TreeSize, UnixMillis, bundle};
use epigraph_store::file::real::RealDir;
use epigraph_store::journal::{Batch, Config, Journal};
use epigraph_store::tree::open_in_memory;
use sha2::{Digest, Sha256};

use crate::load::Load;
use crate::report::Comparison;
use crate::{ENTRY_BYTES, Plan, clock};

const ORIGIN: Hash = Hash::from_bytes([9; 32]);
const FRAME_ENTRIES: usize = 2048;

/// Segments need different names, and no secrets.
struct Counting(AtomicU8);

impl Entropy for Counting {
    fn fill(&self, bytes: &mut [u8]) {
        bytes.fill(self.0.fetch_add(1, Ordering::Relaxed));
    }
}

/// The entries of every frame; that they are the same ones costs neither side anything.
fn entries() -> Vec<[u8; ENTRY_BYTES]> {
    (0..FRAME_ENTRIES).map(|number| [number as u8; ENTRY_BYTES]).collect()
}

pub(crate) fn integrate(plan: &Plan, dir: &Path) -> anyhow::Result<Comparison> {
    std::fs::create_dir(dir)?;
    let dir = Arc::new(RealDir::open(dir)?);
    let frames = plan.tree as usize / FRAME_ENTRIES;
    let entropy = Arc::new(Counting(AtomicU8::new(1)));
    let mut journal = Journal::create(dir.clone(), ORIGIN, Config::PRODUCTION, UnixMillis(1), entropy)?;
    let mut frontier = Frontier::new();
    let mut encoded = Vec::new();
    for entry in entries() {
        bundle::push(&mut encoded, &entry)?;
    }
    for _ in 0..frames {
        let before = frontier.head();
        for entry in entries() {
            frontier.push(leaf_hash(&entry))?;
        }
        let (after, entries) = (frontier.clone(), encoded.clone());
        journal.append(&Batch { before, after, time: UnixMillis(2), marks: Vec::new(), entries })?;
    }
    drop(journal);

    // Once each to warm up: the pages of the journal are in memory then.
    hash(frames)?;
    follow(&dir, frontier.size())?;
    let mut rounds = Vec::new();
    for _ in 0..plan.rounds {
        rounds.push([hash(frames)?, follow(&dir, frontier.size())?]);
    }
    Ok(Comparison {
        title: format!(
            "integrate: a journal of {} entries of {ENTRY_BYTES} B in frames of {FRAME_ENTRIES} followed into a tree in \
             memory, against SHA-256 of the same leaves and nodes; percentiles for a frame",
            plan.tree
        ),
        unit: "entries",
        names: ["sha256", "tree"],
        mark: Some(0.8),
        rounds,
    })
}

/// Hashes what the tree hashes.
fn hash(frames: usize) -> anyhow::Result<Load> {
    let entries = entries();
    let mut load = Load::default();
    let start = clock::now();
    let mut roots = Vec::with_capacity(frames);
    for _ in 0..frames {
        let began = clock::now();
        let leaves =
            entries.iter().map(|entry| Sha256::new().chain_update([0]).chain_update(entry).finalize().into());
        roots.push(root(leaves.collect()));
        load.latencies.push(began.elapsed());
    }
    std::hint::black_box(root(roots));
    load.elapsed = start.elapsed();
    load.done = (frames * FRAME_ENTRIES) as u64;
    Ok(load)
}

/// The root over a number of hashes that is a power of two (RFC 6962, section 2.1).
fn root(mut row: Vec<[u8; 32]>) -> [u8; 32] {
    while row.len() > 1 {
        for at in 0..row.len() / 2 {
            let node =
                Sha256::new().chain_update([1]).chain_update(row[2 * at]).chain_update(row[2 * at + 1]);
            row[at] = node.finalize().into();
        }
        row.truncate(row.len() / 2);
    }
    row[0]
}

/// Builds the tree.
fn follow(dir: &Arc<RealDir>, size: TreeSize) -> anyhow::Result<Load> {
    let (_tree, mut follower) = open_in_memory(dir.clone(), ORIGIN)?;
    let mut load = Load::default();
    let start = clock::now();
    let mut last = Duration::ZERO;
    follower.catch_up(size, &mut |_| {
        let now = start.elapsed();
        load.latencies.push(now - last);
        last = now;
        ControlFlow::Continue(())
    })?;
    load.elapsed = start.elapsed();
    load.done = size.get();
    Ok(load)
}
