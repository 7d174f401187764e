//! What a log and its witnesses sign, on paper: throw-away keys, a tree of two entries, policies, receipts; no process.

use std::fs;
use std::path::PathBuf;
use std::time::UNIX_EPOCH;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use epigraph_core::checkpoint::encode_text;
use epigraph_core::cosignature::CosignedAt;
use epigraph_core::hash::node_hash;
use epigraph_core::{CosigningKey, Hash, KeyName, Origin, SigningKey, TreeHead, TreeSize, note};
use tempfile::TempDir;
use zeroize::Zeroizing;

use crate::support::leaf;

/// 2026-01-01T00:00:00Z, in seconds.
pub const THEN: u64 = 1_767_225_600;

pub const ORIGIN: &str = "log.example";

/// The entry whose receipt is written; the other one of the tree is "two".
pub const ENTRY: &[u8] = b"one";

pub struct Paper {
    dir: TempDir,
    pub log: SigningKey,
    /// w1 to w9; the key of wN is called wN.example.
    pub witnesses: Vec<CosigningKey>,
}

impl Paper {
    pub fn new() -> Paper {
        let name = |name: &str| KeyName::new(name).unwrap();
        let witness = |number: u8| {
            CosigningKey::from_seed(name(&format!("w{number}.example")), &Zeroizing::new([number; 32]))
        };
        let log = SigningKey::from_seed(name(ORIGIN), &Zeroizing::new([100; 32]));
        Paper { dir: TempDir::new().unwrap(), log, witnesses: (1..=9).map(witness).collect() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    /// A policy of the log, all nine witnesses, and these lines for the rest.
    pub fn policy(&self, name: &str, rest: &str) -> PathBuf {
        let mut text = format!("log {}\n", self.log.vkey());
        for (number, witness) in (1..).zip(&self.witnesses) {
            text += &format!("witness w{number} {}\n", witness.vkey());
        }
        self.write(name, text + rest)
    }

    /// The policy that asks for three of w1 to w4.
    pub fn three_of_four(&self) -> PathBuf {
        self.policy("three-of-four", "group four 3 w1 w2 w3 w4\nquorum four\n")
    }

    /// A note with the log's signature and cosignatures of these witnesses, by their numbers, at these times.
    pub fn note(&self, head: &TreeHead, cosigned: &[(usize, u64)]) -> String {
        let text = encode_text(&Origin::new(ORIGIN).unwrap(), head);
        let mut lines = vec![self.log.sign_assertion(&text)];
        lines.extend(cosigned.iter().map(|(number, at)| {
            self.witnesses[number - 1].cosign_assertion(&text, CosignedAt::new(*at).unwrap())
        }));
        note::encode(&text, &lines)
    }

    /// The receipt of [`ENTRY`] with its entry beside it, under a checkpoint with these cosignatures.
    pub fn receipt(&self, name: &str, cosigned: &[(usize, u64)]) -> PathBuf {
        self.write(&format!("{name}.entry"), ENTRY);
        let (sibling, note) = (base64(leaf(b"two")), self.note(&two_entries(b"two"), cosigned));
        self.write(
            &format!("{name}.tlog-proof"),
            format!("c2sp.org/tlog-proof@v1\nindex 0\n{sibling}\n\n{note}"),
        )
    }

    /// The system's time in seconds, as it stamps a file.
    pub fn now(&self) -> u64 {
        let stamped = fs::metadata(self.write("now", "")).unwrap().modified().unwrap();
        stamped.duration_since(UNIX_EPOCH).unwrap().as_secs()
    }
}

/// The head of the tree of [`ENTRY`] and another entry.
pub fn two_entries(second: &[u8]) -> TreeHead {
    head(2, node_hash(&leaf(ENTRY), &leaf(second)))
}

pub fn head(size: u64, root: Hash) -> TreeHead {
    TreeHead { size: TreeSize::new(size).unwrap(), root }
}

pub fn base64(hash: Hash) -> String {
    BASE64_STANDARD.encode(hash.as_bytes())
}
