//! How runbooks were answered since the start: how long it took, how much was read for how much, and why others were refused. By the
//! names of runbooks that there are, never by what somebody asked for.

use std::collections::BTreeMap;

use crate::guard::plan::Question;
use crate::guard::refusal::{Code, Refusal};
use crate::query::Cost;
use crate::runbook::shelf::Shelf;

/// Up to how many milliseconds each class of answers took: from a row of a warm index to the longest that a role may wait.
pub const CLASSES_MS: [u64; 14] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 5_000, 15_000, 60_000, 600_000];

/// The answers of one runbook.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// How many took no longer than each of [`CLASSES_MS`] and longer than the one before; at last those that took longer than all.
    pub took: [u64; CLASSES_MS.len() + 1],
    /// How long all took together, in milliseconds.
    pub took_ms: u64,
    /// Rows of the indexes that were looked at.
    pub rows_examined: u64,
    /// Bytes of the indexes that were read.
    pub bytes_read: u64,
    /// Rows that were answered.
    pub rows_answered: u64,
    /// Refusals, by reason; those that there were.
    pub refused: BTreeMap<Code, u64>,
}

/// Of every runbook that was asked for.
#[derive(Debug, Default)]
pub(super) struct Tallies(BTreeMap<String, Tally>);

impl Tallies {
    /// Counts an answer that came to its end, from the question to its end.
    pub(super) fn answered(&mut self, runbook: &str, took_ms: u64, cost: &Cost, rows_answered: u64) {
        let tally = self.of(runbook);
        let class = CLASSES_MS.iter().position(|most| took_ms <= *most).unwrap_or(CLASSES_MS.len());
        tally.took[class] += 1;
        tally.took_ms = tally.took_ms.saturating_add(took_ms);
        tally.rows_examined = tally.rows_examined.saturating_add(cost.rows_examined);
        tally.bytes_read = tally.bytes_read.saturating_add(cost.bytes_read);
        tally.rows_answered = tally.rows_answered.saturating_add(rows_answered);
    }

    /// Counts a refusal, if it is of a runbook that there is.
    pub(super) fn refused(&mut self, question: &Question, shelf: &Shelf, refusal: &Refusal) {
        let Question::Runbook { id, .. } = question else { return };
        if let Some(runbook) = shelf.get(id) {
            *self.of(&runbook.id).refused.entry(refusal.code).or_default() += 1;
        }
    }

    /// Forgets runbooks that there are no more.
    pub(super) fn keep(&mut self, shelf: &Shelf) {
        self.0.retain(|id, _| shelf.get(id).is_some());
    }

    /// Of each runbook that there is.
    pub(super) fn of_all(&self, shelf: &Shelf) -> Vec<(String, Tally)> {
        let one = |id: &String| (id.clone(), self.0.get(id).cloned().unwrap_or_default());
        shelf.iter().map(|runbook| one(&runbook.id)).collect()
    }

    fn of(&mut self, runbook: &str) -> &mut Tally {
        self.0.entry(runbook.to_owned()).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Broken to see it fail: `<` for `<=`; the check of the shelf.
    #[test]
    fn answers_fall_into_classes_and_only_runbooks_that_there_are_have_series() {
        let shelf = Shelf::shipped().unwrap();
        let mut tallies = Tallies::default();
        for took_ms in [0, 1, 2, 600_000, 600_001] {
            let cost = Cost { rows_examined: 10, rows_returned: 3, bytes_read: 100 };
            tallies.answered("who-read", took_ms, &cost, 2);
        }
        let refusal = Refusal::new(Code::NoWindow, "no", "Say when.");
        for id in ["who-read", "x\"} 1\nepigraph_forged 1"] {
            let question = Question::Runbook { id: id.into(), parameters: BTreeMap::new() };
            tallies.refused(&question, &shelf, &refusal);
        }
        let all = tallies.of_all(&shelf);
        assert_eq!((all.len(), tallies.0.len()), (10, 1));
        let (_, tally) = all.iter().find(|(id, _)| id == "who-read").unwrap();
        assert_eq!((tally.took[0], tally.took[1], tally.took[13], tally.took[14]), (2, 1, 1, 1));
        assert_eq!((tally.took_ms, tally.rows_examined, tally.rows_answered), (1_200_004, 50, 10));
        assert_eq!(tally.bytes_read, 500);
        assert_eq!(tally.refused, [(Code::NoWindow, 1)].into());
        assert_eq!(all.iter().map(|(_, tally)| tally.refused.len()).sum::<usize>(), 1);
    }
}
