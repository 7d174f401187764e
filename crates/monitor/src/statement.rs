//! Statements: an observation becomes a file under the monitor's key. What is proven is never stated: it has evidence.

use bytes::Bytes;
use epigraph_core::SigningKey;
use epigraph_core::observation::{BadObservation, MAX_NOTES, Observation};
use thiserror::Error;

use crate::finding::{Class, Code, Trigger};

/// Why something that was found is not stated.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum NotStated {
    /// It is proven, or a further sign of what is.
    #[error("{0} is proven by evidence: the word of a monitor would only weaken it")]
    Proven(Code),
    /// It does not fit the format.
    #[error(transparent)]
    Observation(#[from] BadObservation),
}

/// States an observation: the file, `epigraph-observation@v1`, signed by the monitor's key.
pub fn state(trigger: &Trigger, key: &SigningKey) -> Result<Bytes, NotStated> {
    let Trigger { code, origin, subject, at, detail, notes, .. } = trigger;
    if code.class() == Class::Proof {
        return Err(NotStated::Proven(*code));
    }
    let notes: Vec<&str> =
        notes.iter().filter_map(|note| std::str::from_utf8(note).ok()).take(MAX_NOTES).collect();
    let observation = Observation::new(code.as_str(), origin.clone(), subject, *at, detail, &notes)?;
    Ok(observation.sign(key).into())
}

#[cfg(test)]
mod tests {
    use epigraph_core::observation::{MAX_OBSERVATION_BYTES, verify};
    use epigraph_core::{Origin, UnixMillis};

    use super::*;
    use crate::finding::{MAX_DETAIL_BYTES, MAX_SUBJECT_BYTES};
    use crate::heads::MAX_KEPT_NOTE_BYTES;

    fn key() -> SigningKey {
        SigningKey::from_seed("monitor.example".parse().unwrap(), &[3; 32].into())
    }

    fn trigger(code: Code) -> Trigger {
        let origin = Origin::new("log.example").unwrap();
        Trigger::new(code, &origin, "log/1", UnixMillis(5), "it was seen")
    }

    #[test]
    fn observations_are_stated_and_proofs_are_not() {
        for code in Code::ALL {
            match (code.class(), state(&trigger(code), &key())) {
                (Class::Proof, stated) => assert_eq!(stated, Err(NotStated::Proven(code))),
                (Class::Observation, stated) => {
                    let (observation, by) = verify(&stated.unwrap(), &[key().vkey().clone()]).unwrap();
                    assert_eq!((observation.code(), by), (code.as_str(), key().vkey().clone()));
                }
            }
        }
    }

    /// The largest of everything fits.
    #[test]
    fn whatever_is_found_can_be_stated() {
        let origin = Origin::new("o".repeat(255)).unwrap();
        let (subject, detail) = ("s".repeat(MAX_SUBJECT_BYTES), "d".repeat(MAX_DETAIL_BYTES));
        // A checkpoint has at most 19 lines of text, and a note 100 signatures.
        let line = "x".repeat(MAX_KEPT_NOTE_BYTES / 120 - 1) + "\n";
        let note = Bytes::from(line.repeat(120));
        let trigger = Trigger::new(Code::Rollback, &origin, &subject, UnixMillis(u64::MAX), &detail);
        let file = state(&Trigger { notes: vec![note.clone(), note], ..trigger }, &key()).unwrap();
        assert!(file.len() < MAX_OBSERVATION_BYTES);
        assert_eq!(verify(&file, &[key().vkey().clone()]).unwrap().0.notes().len(), 2);
    }
}
