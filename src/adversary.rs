//! A log and a witness that lie. They exist to be caught: `quickstart --demo` runs them against monitors, witnesses and clients
//! that are told nothing about them.
//!
//! Each is a process of its own, behind the same door as the real roles: the same mutual TLS, the same authorization. Its key is
//! made when it starts, lives in its memory alone and ends with it; no key can be given to it, so nobody's real log can be
//! made to lie. Nothing else in this program may use this module.

mod history;
mod lie;
mod log;
mod publish;
mod service;
mod witness;

use std::fs;
use std::io;
use std::path::Path;

use epigraph_core::VKey;
use zeroize::Zeroizing;

use crate::cli::Adversary;
use crate::failure::{Failure, Outcome};
use crate::runtime;
use crate::terminal::Terminal;

/// So many entries it is honest; what it does with the first one after them is its lie.
const HONEST_ENTRIES: u64 = 24;

pub fn run(args: &Adversary, terminal: Terminal) -> Outcome {
    let runtime = runtime::runtime().map_err(Failure::state)?;
    match args {
        Adversary::Log(args) => runtime.block_on(log::run(args, terminal)),
        Adversary::Witness(args) => runtime.block_on(witness::run(args, terminal)),
    }
}

/// 32 bytes that nobody else knows.
fn seed() -> Zeroizing<[u8; 32]> {
    let mut seed = Zeroizing::new([0; 32]);
    runtime::entropy().fill(&mut *seed);
    seed
}

/// Says its public key, as any operator would, and waits for a line on standard input: by then whoever started it has written
/// the configurations that name it.
fn introduce(vkey: &VKey, file: &Path, terminal: Terminal) -> Outcome {
    let cannot = |error: io::Error| Failure::state(format!("cannot write {}: {error}", file.display()));
    if let Some(parent) = file.parent() {
        fs::create_dir_all(parent).map_err(cannot)?;
    }
    fs::write(file, format!("{vkey}\n")).map_err(cannot)?;
    terminal.line(vkey);
    terminal.object(&serde_json::json!({ "vkey": vkey.to_string() }));
    match io::stdin().read_line(&mut String::new()) {
        Ok(1..) => Ok(()),
        _ => Err(Failure::usage("standard input ended before the line that says that everybody is ready")),
    }
}
