//! Page tokens: how an answer goes on where it ended. A token is for one reader and one question; it is authenticated, not secret.

use epigraph_core::{Hash, LeafIndex, UnixMillis};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::refusal::{Code, Refusal};

/// How long an answer may go on: longer than anybody turns pages, shorter than rights change.
pub const PAGE_WITHIN_MS: u64 = 3_600_000;

const VERSION: u8 = 1;

/// The key of the tokens: random, of one process. A service that starts again begins its answers again.
pub struct PageKey(Zeroizing<[u8; 32]>);

/// Where an answer ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// The place of its last row: [`crate::query::Row::place`].
    pub row: (i64, LeafIndex),
    /// Whether it was begun under an approval: its further pages are the same read.
    pub approved: bool,
}

/// What a token says: the version, whether it was approved, when it was made, the place, for whom, and of which question. Its tag follows.
struct Fields([u8; Fields::LEN]);

impl Fields {
    const NUMBERS: usize = 2;
    const READER: usize = Fields::NUMBERS + 3 * 8;
    const QUESTION: usize = Fields::READER + Hash::LEN;
    const LEN: usize = Fields::QUESTION + Hash::LEN;

    fn new(reader: &str, question: &Hash, place: Place, now: UnixMillis) -> Fields {
        let Place { row: (at_ns, leaf), approved } = place;
        let numbers = [now.0.to_le_bytes(), at_ns.to_le_bytes(), leaf.get().to_le_bytes()];
        let reader: [u8; Hash::LEN] = Sha256::digest(reader).into();
        let fields = [VERSION, u8::from(approved)].into_iter().chain(numbers.into_iter().flatten());
        let fields = fields.chain(reader).chain(*question.as_bytes());
        let mut bytes = [0; Fields::LEN];
        bytes.iter_mut().zip(fields).for_each(|(byte, field)| *byte = field);
        Fields(bytes)
    }

    fn number(&self, place: usize) -> [u8; 8] {
        let mut number = [0; 8];
        number.copy_from_slice(&self.0[Fields::NUMBERS + 8 * place..][..8]);
        number
    }

    fn made_at(&self) -> UnixMillis {
        UnixMillis(u64::from_le_bytes(self.number(0)))
    }

    fn place(&self) -> Option<Place> {
        let row = (i64::from_le_bytes(self.number(1)), LeafIndex::new(u64::from_le_bytes(self.number(2)))?);
        Some(Place { row, approved: self.0[1] == 1 })
    }
}

impl PageKey {
    /// Takes the bytes, which must be random.
    pub fn from_bytes(bytes: Zeroizing<[u8; 32]>) -> PageKey {
        PageKey(bytes)
    }

    /// A token for the next page of an answer.
    pub fn seal(&self, reader: &str, question: &Hash, place: Place, now: UnixMillis) -> Vec<u8> {
        let fields = Fields::new(reader, question, place, now);
        let mut token = fields.0.to_vec();
        if let Some(mac) = self.mac(&fields.0) {
            token.extend_from_slice(&mac.finalize().into_bytes());
        }
        token
    }

    /// Where the answer goes on.
    pub fn open(
        &self,
        token: &[u8],
        reader: &str,
        question: &Hash,
        now: UnixMillis,
    ) -> Result<Place, Refusal> {
        let no = |code, message: &str| {
            Refusal::new(
                code,
                format!("the page token is no use: {message}"),
                "Begin with the first page again.",
            )
        };
        let edited = || no(Code::PageEdited, "it is not as it was given out, or is of another question");
        let (fields, tag) = token.split_first_chunk().ok_or_else(edited)?;
        let mac = self.mac(fields).ok_or_else(edited)?;
        mac.verify_slice(tag).map_err(|_| edited())?;
        let fields = Fields(*fields);
        let place = fields.place().ok_or_else(edited)?;
        let expected = |of| Fields::new(of, question, place, fields.made_at()).0;
        if expected(reader) != fields.0 {
            let before_question = ..Fields::QUESTION;
            let is_of_another = expected(reader)[before_question] != fields.0[before_question];
            let others = || no(Code::PageOfOthers, "it was given to another reader");
            return Err(if is_of_another { others() } else { edited() });
        }
        if now < fields.made_at() || now.0 - fields.made_at().0 >= PAGE_WITHIN_MS {
            return Err(no(Code::PageExpired, "it is older than an hour"));
        }
        Ok(place)
    }

    fn mac(&self, fields: &[u8; Fields::LEN]) -> Option<Hmac<Sha256>> {
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(self.0.as_slice()).ok()?;
        mac.update(b"epigraph-page/v1\n");
        mac.update(fields);
        Some(mac)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_000_000);
    const QUESTION: Hash = Hash::from_bytes([7; 32]);

    fn key(byte: u8) -> PageKey {
        PageKey::from_bytes(Zeroizing::new([byte; 32]))
    }

    fn place() -> Place {
        Place { row: (-5, LeafIndex::new(9).unwrap()), approved: true }
    }

    fn check(opened: Result<Place, Refusal>, expected: Result<Place, Code>) {
        assert_eq!(opened.map_err(|refusal| refusal.code), expected);
    }

    #[test]
    fn a_token_is_for_one_reader_and_one_question_and_an_hour() {
        let token = key(1).seal("ann", &QUESTION, place(), NOW);
        let last = UnixMillis(NOW.0 + PAGE_WITHIN_MS - 1);
        check(key(1).open(&token, "ann", &QUESTION, last), Ok(place()));
        check(key(1).open(&token, "bob", &QUESTION, NOW), Err(Code::PageOfOthers));
        check(key(1).open(&token, "ann", &Hash::from_bytes([8; 32]), NOW), Err(Code::PageEdited));
        check(key(1).open(&token, "ann", &QUESTION, UnixMillis(last.0 + 1)), Err(Code::PageExpired));
        check(key(1).open(&token, "ann", &QUESTION, UnixMillis(NOW.0 - 1)), Err(Code::PageExpired));
        check(key(2).open(&token, "ann", &QUESTION, NOW), Err(Code::PageEdited));
    }

    #[test]
    fn a_token_with_any_bit_flipped_or_cut_off_is_none() {
        let token = key(1).seal("ann", &QUESTION, place(), NOW);
        for bit in 0..token.len() * 8 {
            let mut edited = token.clone();
            edited[bit / 8] ^= 1 << (bit % 8);
            check(key(1).open(&edited, "ann", &QUESTION, NOW), Err(Code::PageEdited));
        }
        for length in 0..token.len() {
            check(key(1).open(&token[..length], "ann", &QUESTION, NOW), Err(Code::PageEdited));
        }
        check(key(1).open(&[&token[..], &[0]].concat(), "ann", &QUESTION, NOW), Err(Code::PageEdited));
    }
}
