//! The keys under which segments are sealed, and how the keys themselves are kept.
//!
//! Each segment is sealed with XChaCha20-Poly1305 under a data key of 256 random bits: the core and the body of an event under that
//! of its source and day, its identity under that of whom it is about. A data key is stored wrapped, that is, sealed in its turn by
//! a [`KeyWrapper`]. Whoever destroys a wrapped key has erased everything that was sealed under it, in every copy. The names of
//! keys and of what is looked up are keyed hashes: nobody reads from a stolen disk whom it is about.
//!
//! It knows no disk and no events: where wrapped keys lie is [`crate::store`]'s, which key a segment belongs to [`crate::seal`]'s.

mod cipher;

use std::fmt;
use std::str::FromStr;

use epigraph_core::{Entropy, Hash};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::query::Pseudonym;
use cipher::{NONCE_BYTES, TAG_BYTES};

/// The length of every key.
pub const KEY_BYTES: usize = 32;

/// Nonces that are drawn at once: those of some forty events.
const NONCES: usize = 128;

/// How much longer sealed bytes are: a nonce and the tag of Poly1305.
pub const SEAL_BYTES: usize = NONCE_BYTES + TAG_BYTES;

/// The name of a data key: whoever has the vault's secret can tell that two are the same, and nobody else what they mean.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyName([u8; KeyName::LEN]);

impl KeyName {
    /// Its length in bytes.
    pub const LEN: usize = 17;

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; KeyName::LEN] {
        &self.0
    }

    /// A name that was stored.
    pub fn from_slice(bytes: &[u8]) -> Option<KeyName> {
        Some(KeyName(bytes.try_into().ok()?))
    }
}

impl fmt::Debug for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What a data key says when it is asked for whom it stands, so that it is never the answer to something else.
const PSEUDONYM: &[u8] = b"epigraph-pseudonym/v1\n";

/// Why something could not be opened. The reason is never more than this: what differs between two failures helps an attacker.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum SealError {
    /// Another key, other bytes, or a place that is not theirs.
    #[error("what is stored does not open under its key: it was changed, moved, or sealed under another key")]
    NotOpened,
    /// The library refused to seal.
    #[error("more bytes than one seal covers")]
    TooLong,
}

/// Why a key was not wrapped or unwrapped.
#[derive(Debug, Error)]
pub enum WrapError {
    /// By the key-encryption key that is here.
    #[error(
        "a stored key does not open under the key-encryption key that is configured: it was wrapped by another one, or changed. \
         Configure the key file that it was wrapped by"
    )]
    NotOpened,
    /// By a module outside of this process.
    #[error("the keeper of the key-encryption key does not answer: {0}")]
    Unavailable(String),
}

/// Who holds the key-encryption key. A file now; a hardware module behind the same two calls.
pub trait KeyWrapper: Send + Sync {
    /// Wraps a data key, bound to its name.
    fn wrap(&self, name: &KeyName, key: &DataKey, entropy: &dyn Entropy) -> Result<Vec<u8>, WrapError>;

    /// Unwraps the data key of this name.
    fn unwrap(&self, name: &KeyName, wrapped: &[u8]) -> Result<DataKey, WrapError>;
}

/// A data key. It is not `Clone`, has no bytes to read, and is wiped when it goes.
pub struct DataKey(Zeroizing<[u8; KEY_BYTES]>);

impl DataKey {
    /// A new one.
    pub fn draw(entropy: &dyn Entropy) -> DataKey {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        entropy.fill(&mut *key);
        DataKey(key)
    }

    /// Seals bytes to a place: they open there and nowhere else.
    pub fn seal(&self, place: &[u8], bytes: &[u8], entropy: &dyn Entropy) -> Result<Vec<u8>, SealError> {
        let (mut nonce, mut out) = ([0; NONCE_BYTES], Vec::new());
        entropy.fill(&mut nonce);
        self.seal_onto(&mut out, place, &[bytes], nonce)?;
        Ok(out)
    }

    /// The same with a nonce of [`Nonces`], for parts that lie one behind the other; what is sealed is put behind what is in `out`.
    pub fn seal_onto(
        &self,
        out: &mut Vec<u8>,
        place: &[u8],
        parts: &[&[u8]],
        nonce: [u8; NONCE_BYTES],
    ) -> Result<(), SealError> {
        // At once, so that no plain bytes are left behind where the vector was.
        out.reserve(SEAL_BYTES + parts.iter().map(|part| part.len()).sum::<usize>());
        out.extend_from_slice(&nonce);
        let from = out.len();
        parts.iter().for_each(|part| out.extend_from_slice(part));
        let plain = out.get_mut(from..).unwrap_or_default();
        let tag = cipher::seal(&self.0, &nonce, place, plain)?;
        out.extend_from_slice(&tag);
        Ok(())
    }

    /// Opens what was sealed to this place.
    pub fn open(&self, place: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_BYTES>().ok_or(SealError::NotOpened)?;
        cipher::open(&self.0, nonce, place, sealed)
    }

    /// Stands for whom the key is for. When the key is gone nobody can tell any more for whom it stood.
    pub fn pseudonym(&self) -> Pseudonym {
        Pseudonym::from_bytes(self.keyed(&[PSEUDONYM]))
    }

    /// Another key, which says nothing about this one.
    fn derive(&self, purpose: &[u8]) -> DataKey {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        key.copy_from_slice(&*self.mac(&[purpose]));
        DataKey(key)
    }

    /// The first half of an HMAC of the parts under the key.
    fn keyed(&self, parts: &[&[u8]]) -> [u8; Pseudonym::LEN] {
        let mut half = [0; Pseudonym::LEN];
        half.copy_from_slice(&self.mac(parts)[..Pseudonym::LEN]);
        half
    }

    fn mac(&self, parts: &[&[u8]]) -> Zeroizing<[u8; KEY_BYTES]> {
        // Infallible: HMAC takes a key of any length.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&*self.0) else { return Zeroizing::default() };
        parts.iter().for_each(|part| mac.update(part));
        Zeroizing::new(mac.finalize().into_bytes().into())
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(..)")
    }
}

/// Nonces that are drawn for many at a time, because the system takes longer to be asked than to answer. Each is given out once.
pub struct Nonces<'e> {
    entropy: &'e dyn Entropy,
    drawn: [[u8; NONCE_BYTES]; NONCES],
    left: usize,
}

impl Nonces<'_> {
    /// None yet.
    pub fn new(entropy: &dyn Entropy) -> Nonces<'_> {
        Nonces { entropy, drawn: [[0; NONCE_BYTES]; NONCES], left: 0 }
    }

    /// One that was never given out.
    pub fn draw(&mut self) -> [u8; NONCE_BYTES] {
        if self.left == 0 {
            self.entropy.fill(self.drawn.as_flattened_mut());
            self.left = NONCES;
        }
        self.left -= 1;
        self.drawn[self.left]
    }
}

/// A key-encryption key in this process.
pub struct LocalWrapper(DataKey);

/// What a file with a key-encryption key begins with; 64 hexadecimal digits follow.
const KEY_FILE: &str = "epigraph-wrapping-key/v1 ";

/// Not the text of a key-encryption key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error(
    "no key-encryption key: it begins with `epigraph-wrapping-key/v1 `, and 64 hexadecimal digits follow"
)]
pub struct NoWrappingKey;

/// What a wrapped key is bound to beside its name, so that it is never taken for something else.
const WRAPPED: &[u8] = b"epigraph-wrapped-key/v1\n";

impl LocalWrapper {
    /// With the key of a file.
    pub fn new(key: Zeroizing<[u8; KEY_BYTES]>) -> LocalWrapper {
        LocalWrapper(DataKey(key))
    }

    /// Text for a file, with a new key.
    pub fn draw(entropy: &dyn Entropy) -> Zeroizing<String> {
        let key = DataKey::draw(entropy);
        let mut text = Zeroizing::new(String::with_capacity(KEY_FILE.len() + 2 * KEY_BYTES));
        text.push_str(KEY_FILE);
        for byte in &*key.0 {
            for digit in [byte >> 4, byte & 15] {
                text.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
            }
        }
        text
    }

    fn place(name: &KeyName) -> Vec<u8> {
        [WRAPPED, name.as_bytes()].concat()
    }
}

impl FromStr for LocalWrapper {
    type Err = NoWrappingKey;

    fn from_str(text: &str) -> Result<LocalWrapper, NoWrappingKey> {
        let digits = text.strip_prefix(KEY_FILE).filter(|digits| digits.len() == 2 * KEY_BYTES);
        let mut digits = digits.ok_or(NoWrappingKey)?.chars();
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        for byte in &mut *key {
            let mut digit = || digits.next()?.to_digit(16);
            *byte = match (digit(), digit()) {
                (Some(high), Some(low)) => (high << 4 | low) as u8,
                _ => return Err(NoWrappingKey),
            };
        }
        Ok(LocalWrapper::new(key))
    }
}

impl KeyWrapper for LocalWrapper {
    fn wrap(&self, name: &KeyName, key: &DataKey, entropy: &dyn Entropy) -> Result<Vec<u8>, WrapError> {
        self.0.seal(&LocalWrapper::place(name), &*key.0, entropy).map_err(|_| WrapError::NotOpened)
    }

    fn unwrap(&self, name: &KeyName, wrapped: &[u8]) -> Result<DataKey, WrapError> {
        let opened = self.0.open(&LocalWrapper::place(name), wrapped).map_err(|_| WrapError::NotOpened)?;
        let key: &[u8; KEY_BYTES] = opened.as_slice().try_into().map_err(|_| WrapError::NotOpened)?;
        Ok(DataKey(Zeroizing::new(*key)))
    }
}

/// The secret behind names: without it nobody can tell from a name what it stands for, not even by guessing.
pub struct Names(DataKey);

impl Names {
    /// The name under which the secret itself is kept.
    pub const OWN: KeyName = KeyName([0; KeyName::LEN]);

    /// With the secret that lies under [`Names::OWN`].
    pub fn new(secret: DataKey) -> Names {
        Names(secret)
    }

    /// The key for the cores and bodies of a source's events of one day, counted from 1970-01-01.
    pub fn of_day(&self, source: &Hash, day: u64) -> KeyName {
        self.name(1, &[source.as_bytes(), &day.to_be_bytes()])
    }

    /// The key for what says who somebody is: one for each tenant and person or account in it.
    pub fn of_subject(&self, tenant: &str, subject: &str) -> KeyName {
        self.name(2, &[&(tenant.len() as u64).to_be_bytes(), tenant.as_bytes(), subject.as_bytes()])
    }

    /// Stands for a thing or a credential of a tenant.
    pub fn thing(&self, tenant: &str, id: &str) -> Pseudonym {
        self.pseudonym(4, &[&(tenant.len() as u64).to_be_bytes(), tenant.as_bytes(), id.as_bytes()])
    }

    /// Stands for an address.
    pub fn address(&self, address: &str) -> Pseudonym {
        self.pseudonym(5, &[address.as_bytes()])
    }

    /// What covers the indexes.
    pub fn cover(&self) -> Cover {
        Cover::new(&self.0.derive(&[6]))
    }

    fn name(&self, kind: u8, parts: &[&[u8]]) -> KeyName {
        let mut name = [kind; KeyName::LEN];
        name[1..].copy_from_slice(self.pseudonym(kind, parts).as_bytes());
        KeyName(name)
    }

    fn pseudonym(&self, kind: u8, parts: &[&[u8]]) -> Pseudonym {
        Pseudonym::from_bytes(self.0.keyed(&[&[&[kind][..]], parts].concat()))
    }
}

/// What covers records that are made of events and can be made again: the same bytes from the same events. So a nonce is not drawn. It is the
/// number of the record and a keyed mark of its text, because a number may stand for another text when what it is about was erased in between:
/// two texts under one nonce would show, to whoever has both, in what they differ.
pub struct Cover {
    seals: DataKey,
    names: DataKey,
    marks: DataKey,
}

/// The length of a mark. A number stands for a few texts in its life, not for so many that two of them would have one of 2^64 marks.
const MARK_BYTES: usize = 8;

impl Cover {
    /// The length of what a cover adds: the mark and the tag of Poly1305.
    pub const BYTES: usize = MARK_BYTES + TAG_BYTES;

    /// Made of a key that is used for nothing else.
    pub fn new(key: &DataKey) -> Cover {
        Cover {
            seals: key.derive(b"epigraph-index-seal/v1\n"),
            names: key.derive(b"epigraph-index-name/v1\n"),
            marks: key.derive(b"epigraph-index-mark/v1\n"),
        }
    }

    /// Under which a text is found. Nobody can tell from it what it stands for.
    pub fn name(&self, text: &[u8]) -> [u8; Pseudonym::LEN] {
        self.names.keyed(&[text])
    }

    /// Seals the record of this kind and number to a place.
    pub fn seal(&self, record: (u8, u64), place: &[u8], bytes: &[u8]) -> Result<Vec<u8>, SealError> {
        let length = (place.len() as u64).to_be_bytes();
        let mut mark = [0; MARK_BYTES];
        mark.copy_from_slice(&self.marks.mac(&[&length, place, bytes])[..MARK_BYTES]);
        let mut sealed = Vec::with_capacity(bytes.len() + Cover::BYTES);
        sealed.extend_from_slice(&mark);
        sealed.extend_from_slice(bytes);
        let tag =
            cipher::seal(&self.seals.0, &Cover::nonce(record, &mark), place, &mut sealed[MARK_BYTES..])?;
        sealed.extend_from_slice(&tag);
        Ok(sealed)
    }

    /// Opens the record of this kind and number in its place.
    pub fn open(&self, record: (u8, u64), place: &[u8], sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let (mark, sealed) = sealed.split_first_chunk().ok_or(SealError::NotOpened)?;
        let mut opened = cipher::open(&self.seals.0, &Cover::nonce(record, mark), place, sealed)?;
        Ok(std::mem::take(&mut *opened))
    }

    fn nonce((kind, number): (u8, u64), mark: &[u8; MARK_BYTES]) -> [u8; NONCE_BYTES] {
        let mut nonce = [0; NONCE_BYTES];
        nonce[0] = kind;
        nonce[1..9].copy_from_slice(&number.to_be_bytes());
        nonce[9..9 + MARK_BYTES].copy_from_slice(mark);
        nonce
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::Counting;

    fn key(byte: u8) -> DataKey {
        DataKey(Zeroizing::new([byte; KEY_BYTES]))
    }

    #[test]
    fn what_was_sealed_opens_in_its_place_and_under_its_key_alone() {
        let entropy = Counting::default();
        let sealed = key(1).seal(b"here", b"a secret", &entropy).unwrap();
        assert_eq!(sealed.len(), b"a secret".len() + SEAL_BYTES);
        assert_eq!(&**key(1).open(b"here", &sealed).unwrap(), b"a secret");
        assert_eq!(key(1).open(b"there", &sealed).err(), Some(SealError::NotOpened));
        assert_eq!(key(2).open(b"here", &sealed).err(), Some(SealError::NotOpened));
        for at in 0..sealed.len() {
            let mut flipped = sealed.clone();
            flipped[at] ^= 1;
            assert_eq!(key(1).open(b"here", &flipped).err(), Some(SealError::NotOpened), "byte {at}");
            assert_eq!(key(1).open(b"here", &sealed[..at]).err(), Some(SealError::NotOpened), "cut at {at}");
        }
        // No two seals are alike, and none shows what is in it.
        assert_ne!(key(1).seal(b"here", b"a secret", &entropy).unwrap(), sealed);
        assert!(!sealed.windows(8).any(|window| window == b"a secret"));
    }

    /// Broken to see it fail: a nonce given out again, and the last of what was drawn given out twice.
    #[test]
    fn no_nonce_is_given_out_twice() {
        let entropy = Counting::default();
        let mut nonces = Nonces::new(&entropy);
        let drawn = Vec::from_iter((0..3 * NONCES).map(|_| nonces.draw()));
        let unlike: std::collections::HashSet<_> = drawn.iter().collect();
        assert_eq!(unlike.len(), drawn.len());
        assert!(!drawn.contains(&[0; NONCE_BYTES]));
    }

    #[test]
    fn the_cipher_is_that_of_the_draft() {
        // draft-irtf-cfrg-xchacha-03, appendix A.3.1.
        let bytes = |hex: &str| {
            (0..hex.len() / 2)
                .map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap())
                .collect::<Vec<_>>()
        };
        let plain = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would be it.";
        let key: [u8; 32] = std::array::from_fn(|i| 0x80 + i as u8);
        let nonce: [u8; 24] = std::array::from_fn(|i| 0x40 + i as u8);
        let sealed = "bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb731c7f1b0b4aa6440bf3a82f4eda7e39\
                      ae64c6708c54c216cb96b72e1213b4522f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369488f76b2383565d3fff9\
                      21f9664c97637da9768812f615c68b13b52ec0875924c1c7987947deafd8780acf49";
        let sealed = [&nonce[..], &bytes(sealed)].concat();
        let opened = DataKey(Zeroizing::new(key)).open(&bytes("50515253c0c1c2c3c4c5c6c7"), &sealed).unwrap();
        assert_eq!(&**opened, plain);
    }

    #[test]
    fn a_wrapped_key_is_bound_to_its_name_and_wrapper() {
        let entropy = Counting::default();
        let names = Names::new(key(9));
        let wrapper = |byte| LocalWrapper::new(Zeroizing::new([byte; KEY_BYTES]));
        let (ann, bob) = (names.of_subject("t", "ann"), names.of_subject("t", "bob"));
        let wrapped = wrapper(3).wrap(&ann, &key(5), &entropy).unwrap();
        assert_eq!(*wrapper(3).unwrap(&ann, &wrapped).unwrap().0, [5; KEY_BYTES]);
        assert!(wrapper(3).unwrap(&bob, &wrapped).is_err());
        assert!(wrapper(4).unwrap(&ann, &wrapped).is_err());
        assert_eq!(format!("{:?}", key(5)), "DataKey(..)");
    }

    #[test]
    fn a_key_encryption_key_reads_back_from_its_file() {
        let entropy = Counting::default();
        let text = LocalWrapper::draw(&entropy);
        let (one, again): (LocalWrapper, LocalWrapper) = (text.parse().unwrap(), text.parse().unwrap());
        let wrapped = one.wrap(&Names::OWN, &key(5), &entropy).unwrap();
        assert!(again.unwrap(&Names::OWN, &wrapped).is_ok());
        for bad in [
            "",
            &text[1..],
            &text[..text.len() - 1],
            &text.replace("v1 ", "v2 "),
            &format!("{}é", &text[..text.len() - 2]),
        ] {
            assert!(bad.parse::<LocalWrapper>().is_err(), "{}", bad.len());
        }
    }

    #[test]
    fn names_differ_in_whatever_they_are_made_of() {
        let (one, other) = (Names::new(key(1)), Names::new(key(2)));
        let source = Hash::from_bytes([7; 32]);
        let all = [
            one.of_subject("ab", "c"),
            one.of_subject("a", "bc"),
            one.of_subject("abc", ""),
            one.of_day(&source, 1),
            one.of_day(&source, 2),
            other.of_subject("ab", "c"),
            Names::OWN,
        ];
        for (place, name) in all.iter().enumerate() {
            assert!(!all[..place].contains(name), "{place}");
            assert_eq!(KeyName::from_slice(name.as_bytes()), Some(*name));
        }
        assert_eq!(one.of_subject("ab", "c"), all[0]);
    }

    #[test]
    fn pseudonyms_are_the_same_for_the_same_one_and_for_nobody_else() {
        let (one, other) = (Names::new(key(1)), Names::new(key(2)));
        let all = [
            one.thing("ab", "c"),
            one.thing("a", "bc"),
            one.address("c"),
            other.thing("ab", "c"),
            other.address("c"),
            key(1).pseudonym(),
            key(2).pseudonym(),
        ];
        for (place, pseudonym) in all.iter().enumerate() {
            assert!(!all[..place].contains(pseudonym), "{place}");
        }
        assert_eq!([one.thing("ab", "c"), one.address("c"), key(1).pseudonym()], [all[0], all[2], all[5]]);
    }

    #[test]
    fn a_record_opens_under_its_number_in_its_place_and_under_its_cover_alone() {
        let (cover, other) = (Names::new(key(1)).cover(), Names::new(key(2)).cover());
        let sealed = cover.seal((1, 7), b"here", b"a word").unwrap();
        assert_eq!(sealed.len(), b"a word".len() + Cover::BYTES);
        assert_eq!(cover.open((1, 7), b"here", &sealed).as_deref(), Ok(&b"a word"[..]));
        assert_eq!(cover.seal((1, 7), b"here", b"a word").unwrap(), sealed, "made again, it is the same");
        for (cover, record, place) in [
            (&cover, (1, 8), &b"here"[..]),
            (&cover, (2, 7), b"here"),
            (&cover, (1, 7), b"there"),
            (&other, (1, 7), b"here"),
        ] {
            assert_eq!(cover.open(record, place, &sealed), Err(SealError::NotOpened), "{record:?}");
        }
        assert_eq!(Names::new(key(1)).cover().name(b"x"), cover.name(b"x"));
        assert_ne!(cover.name(b"x"), cover.name(b"y"));
        assert_ne!(cover.name(b"x"), other.name(b"x"));
    }

    /// Broken to see it fail: the mark left out of the nonce.
    #[test]
    fn two_texts_under_one_number_do_not_show_in_what_they_differ() {
        let cover = Names::new(key(1)).cover();
        let differ = |one: &[u8], other: &[u8]| -> Vec<u8> {
            one.iter().zip(other).map(|(one, other)| one ^ other).collect()
        };
        let (before, erased) = (b"it was anna who did", b"it was ---- who did");
        let sealed = |text: &[u8], place: &[u8]| cover.seal((2, 7), place, text).unwrap();
        let bodies = differ(&sealed(before, b"here")[MARK_BYTES..], &sealed(erased, b"here")[MARK_BYTES..]);
        assert!(bodies[..before.len()] != differ(before, erased));
        let moved = differ(&sealed(before, b"here"), &sealed(before, b"there"));
        assert!(moved[MARK_BYTES..][..before.len()] != [0; 19]);
        assert_eq!(cover.open((2, 7), b"here", &sealed(erased, b"here")).as_deref(), Ok(&erased[..]));
        assert_eq!(cover.open((2, 7), b"here", b"short"), Err(SealError::NotOpened));
    }
}
