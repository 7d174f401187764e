//! Random bytes that are asked for before they are needed: the system is asked once for many events.

use std::sync::{Arc, Mutex, PoisonError};

use epigraph_core::Entropy;
use zeroize::{Zeroize, Zeroizing};

/// Bytes that are asked for at once: what some sixty events need for their names and salts.
const AHEAD_BYTES: usize = 8 * 1024;

/// Gives every byte once.
pub(crate) struct Ahead {
    from: Arc<dyn Entropy>,
    /// Those at the end were not given yet; the others were, and are wiped.
    drawn: Mutex<(Zeroizing<Vec<u8>>, usize)>,
}

impl Ahead {
    pub(crate) fn of(from: Arc<dyn Entropy>) -> Ahead {
        Ahead { from, drawn: Mutex::new((Zeroizing::new(vec![0; AHEAD_BYTES]), AHEAD_BYTES)) }
    }
}

impl Entropy for Ahead {
    fn fill(&self, bytes: &mut [u8]) {
        if bytes.len() > AHEAD_BYTES {
            return self.from.fill(bytes);
        }
        let mut drawn = self.drawn.lock().unwrap_or_else(PoisonError::into_inner);
        let (drawn, given) = &mut *drawn;
        if drawn.len() - *given < bytes.len() {
            self.from.fill(drawn);
            *given = 0;
        }
        let next = &mut drawn[*given..*given + bytes.len()];
        bytes.copy_from_slice(next);
        next.zeroize();
        *given += bytes.len();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// Four bytes that nobody got before, again and again.
    struct Counting(AtomicU32);

    impl Entropy for Counting {
        fn fill(&self, bytes: &mut [u8]) {
            for four in bytes.chunks_mut(4) {
                four.copy_from_slice(&self.0.fetch_add(1, Ordering::Relaxed).to_be_bytes()[..four.len()]);
            }
        }
    }

    // Broken to see it fail: `given` that stays where it was; a rest that is too short given all the same.
    #[test]
    fn nobody_gets_what_another_got() {
        let ahead = Ahead::of(Arc::new(Counting(AtomicU32::new(1))));
        let mut seen = BTreeSet::new();
        for _ in 0..10 {
            for length in [144, 16, AHEAD_BYTES, 4, AHEAD_BYTES + 4, AHEAD_BYTES - 4] {
                let mut bytes = vec![0; length];
                ahead.fill(&mut bytes);
                assert!(bytes.chunks(4).all(|four| four != [0; 4] && seen.insert(four.to_vec())), "{length}");
            }
        }
    }
}
