//! A fork that is made to be found: two heads of a log that never was, under a key that nobody keeps. It is here because a key can
//! otherwise sign only what was decided and made durable, and it can accuse nobody: the key is made here, signs these two heads for one
//! name that is no log's, and ends here; there is no other way to a [`Fork`]. It does not know who looks for it.

use zeroize::Zeroizing;

use crate::checkpoint::encode_text;
use crate::environment::Entropy;
use crate::hash::leaf_hash;
use crate::key::{KeyName, NameError, Origin, SigningKey, VKey};
use crate::note;
use crate::position::TreeSize;
use crate::tree::TreeHead;

/// The name of the log that never was. No log has it: a configuration with one is refused.
pub const DRILL_ORIGIN: &str = "epigraph.drill";

/// Two signed heads of one size with different roots.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fork {
    origin: Origin,
    vkey: VKey,
    notes: [String; 2],
}

impl Fork {
    /// Makes a key, and signs two trees of one entry each.
    pub fn plant(entropy: &dyn Entropy) -> Result<Fork, NameError> {
        let mut seed = Zeroizing::new([0; 32]);
        entropy.fill(&mut *seed);
        let key = SigningKey::from_seed(KeyName::new(DRILL_ORIGIN)?, &seed);
        let origin = Origin::new(DRILL_ORIGIN)?;
        let size = TreeSize::ZERO.checked_add(1).unwrap_or_default();
        let notes = [b"what one half was shown", b"what others are shown.."].map(|entry| {
            let text = encode_text(&origin, &TreeHead { size, root: leaf_hash(entry) });
            note::encode(&text, [&key.sign_assertion(&text)])
        });
        Ok(Fork { origin, vkey: key.vkey().clone(), notes })
    }

    /// [`DRILL_ORIGIN`].
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The key that signed both. Its private half is gone.
    pub fn vkey(&self) -> &VKey {
        &self.vkey
    }

    /// The notes.
    pub fn notes(&self) -> &[String; 2] {
        &self.notes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Evidence;

    struct Counting(u8);

    impl Entropy for Counting {
        fn fill(&self, bytes: &mut [u8]) {
            bytes.fill(self.0);
        }
    }

    #[test]
    fn a_planted_fork_convicts_its_own_key_and_no_other() {
        let [one, other] = [1, 2].map(|seed| Fork::plant(&Counting(seed)).unwrap());
        let convict =
            |vkey: &VKey| Evidence::two_roots(vkey, one.notes[0].as_bytes(), one.notes[1].as_bytes());
        let evidence = convict(&one.vkey).unwrap();
        assert_eq!(evidence.origin().as_str(), DRILL_ORIGIN);
        assert_ne!(one.vkey, other.vkey);
        assert!(convict(&other.vkey).is_err());
    }
}
