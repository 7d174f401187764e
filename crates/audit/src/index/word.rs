//! The words of the dictionary, texts and pseudonyms, and the numbers of those that were met last.

use std::collections::HashMap;
use std::sync::Arc;

use crate::query::row::Pseudonym;

/// Numbers that are kept in memory: the actors, actions and things of a busy day, and those of one step beyond. Those that were not met among
/// the last half of so many are looked up anew.
pub(super) const MAX_NUMBERS: usize = 1 << 17;

/// What a number of the dictionary stands for.
#[derive(Clone, Copy)]
pub(super) enum Word<'a> {
    /// A text that many rows share.
    Text(&'a Arc<str>),
    Pseudonym(&'a Pseudonym),
}

impl Word<'_> {
    /// As it is stored, under a seal.
    pub(super) fn bytes(self) -> Vec<u8> {
        match self {
            Word::Text(text) => text_bytes(text),
            Word::Pseudonym(pseudonym) => pseudonym_bytes(pseudonym),
        }
    }
}

pub(super) fn text_bytes(text: &str) -> Vec<u8> {
    [&[0], text.as_bytes()].concat()
}

pub(super) fn pseudonym_bytes(pseudonym: &Pseudonym) -> Vec<u8> {
    [&[1], &pseudonym.as_bytes()[..]].concat()
}

/// Numbers of words that were met last; what stands here is on the disk.
#[derive(Default)]
pub(super) struct Known {
    young: Numbers,
    /// Forgotten when there are too many young ones, which are the old ones then.
    old: Numbers,
}

#[derive(Default)]
struct Numbers {
    texts: HashMap<Arc<str>, u32>,
    pseudonyms: HashMap<Pseudonym, u32>,
}

impl Known {
    pub(super) fn get(&mut self, word: Word<'_>) -> Option<u32> {
        if let Some(number) = self.young.get(word) {
            return Some(number);
        }
        let number = self.old.get(word)?;
        self.insert(word, number);
        Some(number)
    }

    /// Forgets what was not met for long. What is met from here on is known until the next time.
    pub(super) fn settle(&mut self) {
        if self.young.texts.len() + self.young.pseudonyms.len() >= MAX_NUMBERS / 2 {
            self.old = std::mem::take(&mut self.young);
        }
    }

    pub(super) fn insert(&mut self, word: Word<'_>, number: u32) {
        match word {
            Word::Text(text) => self.young.texts.insert(Arc::clone(text), number),
            Word::Pseudonym(pseudonym) => self.young.pseudonyms.insert(*pseudonym, number),
        };
    }
}

impl Numbers {
    fn get(&self, word: Word<'_>) -> Option<u32> {
        match word {
            Word::Text(text) => self.texts.get(&**text),
            Word::Pseudonym(pseudonym) => self.pseudonyms.get(pseudonym),
        }
        .copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Broken to see it fail: old ones not looked at; all forgotten at once.
    #[test]
    fn what_is_met_again_and_again_is_known_however_many_others_there_are() {
        let pseudonym = |number: u32| {
            let mut bytes = [0; Pseudonym::LEN];
            bytes[..4].copy_from_slice(&number.to_be_bytes());
            Pseudonym::from_bytes(bytes)
        };
        let mut known = Known::default();
        let text = Arc::from("again");
        known.insert(Word::Text(&text), 7);
        for number in 0..3 * MAX_NUMBERS as u32 {
            known.settle();
            known.insert(Word::Pseudonym(&pseudonym(number)), number);
            assert_eq!(known.get(Word::Text(&text)), Some(7));
        }
        let last = 3 * MAX_NUMBERS as u32 - 1;
        assert_eq!(known.get(Word::Pseudonym(&pseudonym(last))), Some(last));
        assert_eq!(known.get(Word::Pseudonym(&pseudonym(0))), None);
    }
}
