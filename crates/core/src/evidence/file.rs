//! The evidence file, `epigraph-evidence@v1`: text lines, then the two notes. docs/formats/evidence.md describes it.
//!
//! What decodes re-encodes to the same bytes, and was checked: there is one file for one piece of evidence.

use std::fmt::Write as _;

use thiserror::Error;

use super::{Contradiction, Evidence, MAX_EVIDENCE_BYTES, NoEvidence};
use crate::hash::Hash;
use crate::key::{KeyError, VKey};
use crate::position::LeafIndex;
use crate::proof::MAX_PROOF_HASHES;
use crate::{base64, decimal};

pub(super) const HEADER: &str = "epigraph-evidence@v1";

const TWO_ROOTS: &str = "two-roots";
const OLD_ROOT: &str = "old-root";
const TWO_LEAVES: &str = "two-leaves";

/// The most lines before the notes: header, key, kind, an index, and two leaves with their proofs.
const MAX_LINES: usize = 4 + 2 * (1 + MAX_PROOF_HASHES);

/// Why bytes are not an evidence file, or one whose content does not hold.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum FileError {
    /// More than [`MAX_EVIDENCE_BYTES`].
    #[error("an evidence file has at most {MAX_EVIDENCE_BYTES} bytes, this one has {0}")]
    TooLong(usize),
    /// The first line is something else.
    #[error("not an evidence file: its first line is not {HEADER}")]
    Header,
    /// It does not fall into lines and two notes.
    #[error("the evidence file is cut off or has too many parts: it has lines, an empty line, and two notes")]
    Parts,
    /// A line is not what the format has there; lines count from 1.
    #[error("line {0} of the evidence file is malformed")]
    Line(usize),
    /// The key line.
    #[error("the vkey in line 2 of the evidence file: {0}")]
    Key(#[from] KeyError),
    /// The content.
    #[error(transparent)]
    Content(#[from] NoEvidence),
    /// It reads, but is not spelt as it would be written.
    #[error("the evidence file is not in its one canonical form: it was edited")]
    NotCanonical,
}

impl Evidence {
    /// Reads an evidence file and checks all that it says.
    pub fn decode(bytes: &[u8]) -> Result<Evidence, FileError> {
        if bytes.len() > MAX_EVIDENCE_BYTES {
            return Err(FileError::TooLong(bytes.len()));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| FileError::Header)?;
        if text.split('\n').next() != Some(HEADER) {
            return Err(FileError::Header);
        }
        // A checkpoint's note has exactly one empty line, so empty lines take the file apart.
        let parts: Vec<_> = text.splitn(6, "\n\n").collect();
        let [lines, text_one, signature_one, text_two, signature_two] = parts.as_slice() else {
            return Err(FileError::Parts);
        };
        let one = format!("{text_one}\n\n{signature_one}\n");
        let two = format!("{text_two}\n\n{signature_two}");
        let evidence = Lines::of(lines)?.read(one.as_bytes(), two.as_bytes())?;
        if evidence.encode() == bytes { Ok(evidence) } else { Err(FileError::NotCanonical) }
    }

    /// The evidence as a file.
    pub fn encode(&self) -> Vec<u8> {
        let mut text = format!("{HEADER}\nkey {}\n", self.accused);
        // Writing to a String cannot fail.
        let mut line = |word: &str, value: &dyn std::fmt::Display| {
            let _ = writeln!(text, "{word} {value}");
        };
        let base64 = |hash: &Hash| base64::encode(hash.as_bytes());
        match &self.contradiction {
            Contradiction::TwoRoots => line("kind", &TWO_ROOTS),
            Contradiction::OldRoot(hashes) => {
                line("kind", &OLD_ROOT);
                hashes.iter().for_each(|hash| line("hash", &base64(hash)));
            }
            Contradiction::TwoLeaves(index, leaves) => {
                line("kind", &TWO_LEAVES);
                line("index", index);
                for (leaf, hashes) in leaves {
                    line("leaf", &base64(leaf));
                    hashes.iter().for_each(|hash| line("hash", &base64(hash)));
                }
            }
        }
        let [one, two] = self.notes();
        format!("{text}\n{one}\n{two}").into_bytes()
    }
}

/// The lines before the notes, read one after the other.
struct Lines<'a> {
    lines: Vec<&'a str>,
    next: usize,
}

impl<'a> Lines<'a> {
    /// Behind the header.
    fn of(text: &'a str) -> Result<Lines<'a>, FileError> {
        let lines: Vec<_> = text.split('\n').take(MAX_LINES + 1).collect();
        if lines.len() > MAX_LINES { Err(FileError::Line(lines.len())) } else { Ok(Lines { lines, next: 1 }) }
    }

    fn read(mut self, one: &[u8], two: &[u8]) -> Result<Evidence, FileError> {
        let accused: VKey = self.value("key ", Some)?.parse()?;
        let evidence = match self.value("kind ", Some)? {
            TWO_ROOTS => {
                self.end()?;
                Evidence::two_roots(&accused, one, two)?
            }
            OLD_ROOT => {
                let carried = self.hashes()?;
                self.end()?;
                Evidence::old_root(&accused, one, two, carried)?
            }
            TWO_LEAVES => {
                let index = self.value("index ", |text| LeafIndex::new(decimal::parse(text)?))?;
                let (first, second) = (self.leaf()?, self.leaf()?);
                self.end()?;
                Evidence::two_leaves(&accused, index, (one, first.0, first.1), (two, second.0, second.1))?
            }
            _ => return Err(FileError::Line(self.next)),
        };
        Ok(evidence)
    }

    /// What the next line says behind this word.
    fn value<T>(&mut self, word: &str, read: impl Fn(&'a str) -> Option<T>) -> Result<T, FileError> {
        let value = self.lines.get(self.next).and_then(|line| line.strip_prefix(word));
        self.next += 1;
        value.and_then(read).ok_or(FileError::Line(self.next))
    }

    fn leaf(&mut self) -> Result<(Hash, Vec<Hash>), FileError> {
        Ok((self.value("leaf ", base64::decode_hash)?, self.hashes()?))
    }

    fn hashes(&mut self) -> Result<Vec<Hash>, FileError> {
        let mut hashes = Vec::new();
        while self.lines.get(self.next).is_some_and(|line| line.starts_with("hash ")) {
            hashes.push(self.value("hash ", base64::decode_hash)?);
        }
        Ok(hashes)
    }

    fn end(&self) -> Result<(), FileError> {
        if self.next == self.lines.len() { Ok(()) } else { Err(FileError::Line(self.next + 1)) }
    }
}
