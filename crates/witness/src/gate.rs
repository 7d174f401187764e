//! The gate of a witness (DESIGN section 4): a cosignature of its own, found anywhere above what it holds, means that what
//! it holds is an older copy. Pure: it is told what others show, and says what follows.
//!
//! Nobody but the witness can make such a cosignature, so it does not matter who shows it. A larger head without one means
//! only that the witness has lagged behind: it advances by proof.

use std::fmt;

use epigraph_core::checkpoint::decode_text;
use epigraph_core::cosignature::{self, CosignedAt};
use epigraph_core::note::{Parsed, SignatureLine};
use epigraph_core::progress::Held;
use epigraph_core::{Origin, TreeHead, VKey};
use thiserror::Error;

/// Lines in our name that are verified of one note: a note has one, and whoever shows thousands of notes must not buy hours of
/// work with them. What hides behind forged lines could as well not have been shown.
const MAX_OWN_LINES: usize = 2;

/// A cosignature of this witness, found outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sighting {
    /// The head that it is for.
    pub head: TreeHead,
    /// When it was made.
    pub time: CosignedAt,
}

/// What is held is older than what was signed.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error(
    "this witness went back: for {origin} it holds size {} (root {}) of {held_at}, but its own cosignature of {} is on size \
     {} (root {}). An older copy of its directory was put in place, or its key is used elsewhere. Nothing more is cosigned. \
     Stop it and put the newest copy back; if that is lost, retire this key: take the witness out of every policy, and \
     create one with a new key and a new name in an empty directory (`init witness`)",
    held.size, held.root, seen.time, seen.head.size, seen.head.root
)]
pub struct RolledBack {
    /// The log that shows it.
    pub origin: Origin,
    /// The head that is held.
    pub held: TreeHead,
    /// When it was decided, in POSIX seconds.
    pub held_at: u64,
    /// What was found.
    pub seen: Sighting,
}

/// Where a log stands with the gate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Passage {
    /// Nobody was asked yet, or nobody answered: nothing is cosigned.
    Closed,
    /// The log was asked, and shows nothing that is newer.
    Passed,
    /// There is nobody to ask, or asking was given up: an older copy of the state would not be noticed.
    Unchecked,
}

impl fmt::Display for Passage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Passage::Closed => "closed",
            Passage::Passed => "passed",
            Passage::Unchecked => "unchecked",
        })
    }
}

/// The cosignature of `witness` in a note that somebody shows, if the note is of this log and carries a valid one. Whether
/// the log signed it does not matter: the witness did.
pub fn sighting(note: &[u8], origin: &Origin, witness: &VKey) -> Option<Sighting> {
    let parsed = Parsed::parse(note).ok()?;
    let (found, head) = decode_text(parsed.text()).ok()?;
    if found != *origin {
        return None;
    }
    let named = |line: &&SignatureLine| line.key_id == witness.id() && line.name == witness.name().as_str();
    let own = |line| cosignature::verify(parsed.text(), line, witness).ok();
    let time = parsed.signatures().iter().filter(named).take(MAX_OWN_LINES).filter_map(own).max()?;
    Some(Sighting { head, time })
}

/// Decides whether what is held can be the newest that was signed.
pub fn judge(origin: &Origin, held: &Held, sightings: &[Sighting]) -> Result<(), RolledBack> {
    let held_at = held.time.0 / 1_000;
    let is_newer = |seen: &&Sighting| {
        // A head is held before it is signed, and its time with it.
        seen.head.size > held.head.size
            || seen.time.seconds() > held_at
            || (seen.head.size == held.head.size && seen.head.root != held.head.root)
    };
    match sightings.iter().filter(is_newer).max_by_key(|seen| (seen.head.size, seen.time)) {
        None => Ok(()),
        Some(seen) => Err(RolledBack { origin: origin.clone(), held: held.head, held_at, seen: *seen }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use epigraph_core::{Hash, TreeSize, UnixMillis};

    fn head(size: u64, root: u8) -> TreeHead {
        TreeHead { size: TreeSize::new(size).unwrap(), root: Hash::from_bytes([root; 32]) }
    }

    fn seen(size: u64, root: u8, seconds: u64) -> Sighting {
        Sighting { head: head(size, root), time: CosignedAt::new(seconds).unwrap() }
    }

    /// A14, R2. Broken to see it fail: each of the three conditions taken away.
    #[test]
    fn its_own_cosignature_above_what_it_holds_is_a_rollback_and_nothing_else_is() {
        let origin = Origin::new("log.example").unwrap();
        let held = Held { head: head(10, 1), time: UnixMillis(5_999), term: 0, note: Vec::new() };
        let check = |sightings: &[Sighting], expected: Option<Sighting>| {
            let judged = judge(&origin, &held, sightings);
            assert_eq!(judged.err().map(|back| back.seen), expected, "{sightings:?}");
        };
        check(&[], None);
        check(&[seen(10, 1, 5)], None);
        check(&[seen(10, 1, 4)], None);
        check(&[seen(9, 2, 5)], None);
        check(&[seen(0, 2, 1), seen(9, 9, 4)], None);
        // A larger head, whatever its time.
        check(&[seen(11, 2, 5)], Some(seen(11, 2, 5)));
        check(&[seen(11, 2, 1)], Some(seen(11, 2, 1)));
        check(&[seen(10, 1, 5), seen(12, 3, 5), seen(11, 2, 5)], Some(seen(12, 3, 5)));
        // Another tree of the same size.
        check(&[seen(10, 2, 5)], Some(seen(10, 2, 5)));
        // A newer time: the state is older, even if no head was lost.
        check(&[seen(10, 1, 6)], Some(seen(10, 1, 6)));
        check(&[seen(9, 2, 6)], Some(seen(9, 2, 6)));
        // A log that this state never cosigned for.
        let judged = judge(&origin, &Held::EMPTY, &[seen(1, 1, 1)]);
        let message = judged.unwrap_err().to_string();
        for part in ["size 0", "size 1", "log.example", "newest copy", "retire"] {
            assert!(message.contains(part), "{part:?} is missing: {message}");
        }
    }
}
