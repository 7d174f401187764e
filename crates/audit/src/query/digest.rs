//! The digest of an answer: it stands in the record of the question, so that a kept answer can be shown to be the one that was given.

use epigraph_core::Hash;
use sha2::{Digest, Sha256};

/// What is hashed first.
const CONTEXT: &[u8] = b"epigraph-answer/v1\n";

/// A digest under way. docs/runbooks.md describes what is hashed.
#[derive(Clone, Debug)]
pub struct AnswerDigest {
    hash: Sha256,
    rows: u64,
}

impl AnswerDigest {
    /// Of an answer of this runbook, with these columns.
    pub fn new(runbook: &Hash, columns: &[String]) -> AnswerDigest {
        let mut digest = AnswerDigest { hash: Sha256::new(), rows: 0 };
        digest.hash.update(CONTEXT);
        digest.hash.update(runbook.as_bytes());
        digest.texts(columns);
        digest
    }

    /// Takes in the next row.
    pub fn row(&mut self, leaves: &[u64], values: &[String]) {
        self.rows += 1;
        self.hash.update((leaves.len() as u64).to_le_bytes());
        for leaf in leaves {
            self.hash.update(leaf.to_le_bytes());
        }
        self.texts(values);
    }

    /// After the last row.
    pub fn finish(mut self) -> Hash {
        self.hash.update(self.rows.to_le_bytes());
        Hash::from_bytes(self.hash.finalize().into())
    }

    fn texts(&mut self, texts: &[String]) {
        self.hash.update((texts.len() as u64).to_le_bytes());
        for text in texts {
            self.hash.update((text.len() as u64).to_le_bytes());
            self.hash.update(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_answers_have_one_digest() {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let digest = |columns: &[&str], rows: &[(&[u64], &[&str])]| {
            let mut digest = AnswerDigest::new(&Hash::from_bytes([7; 32]), &texts(columns));
            for (leaves, values) in rows {
                digest.row(leaves, &texts(values));
            }
            digest.finish()
        };
        let answers = [
            digest(&["a", "b"], &[]),
            digest(&["ab"], &[]),
            digest(&["a"], &[(&[1], &["x"])]),
            digest(&["a"], &[(&[1], &["x"]), (&[1], &["x"])]),
            digest(&["a"], &[(&[2], &["x"])]),
            digest(&["a"], &[(&[1, 2], &["x"])]),
            digest(&["a"], &[(&[1], &["x", ""])]),
            digest(&["a"], &[(&[1], &["y"])]),
        ];
        for (i, one) in answers.iter().enumerate() {
            assert!(answers[i + 1..].iter().all(|other| other != one), "{i}");
        }
        let other = AnswerDigest::new(&Hash::from_bytes([8; 32]), &texts(&["ab"])).finish();
        assert_ne!(other, answers[1], "another runbook");
    }
}
