//! The independent verifier, which shares nothing with the Rust code.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::Ended;

pub struct Python;

impl Python {
    pub fn find() -> Option<Python> {
        let found = Command::new("python3").arg("--version").stdout(Stdio::null()).status();
        if found.is_ok_and(|status| status.success()) {
            return Some(Python);
        }
        println!("skipped: there is no python3, so the independent verifier was not asked");
        None
    }

    /// Asks whether a receipt proves the entry, for somebody who trusts a vkey or a policy file.
    pub fn verify(&self, trusted: impl AsRef<OsStr>, receipt: &Path, entry: &Path) -> Ended {
        run(&[trusted.as_ref(), receipt.as_ref(), entry.as_ref()])
    }

    /// Asks whether evidence convicts the holder of a key.
    pub fn judge(&self, vkey: &str, evidence: &Path) -> Ended {
        run(&[vkey.as_ref(), evidence.as_ref()])
    }
}

fn run(arguments: &[&OsStr]) -> Ended {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/verify_receipt.py");
    Command::new("python3").arg(script).args(arguments).output().unwrap().into()
}
