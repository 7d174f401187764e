//! What stands on somebody's word: each who reports says all that is wrong as it is now, and what nobody says any more is over.
//!
//! Pure. Several may say the same, the log's entries and the audit service among them: it is found when the first one says it, and
//! over when the last one no longer does. What was found before a restart is over only after everybody who could say it has
//! reported. It does not know how anything is found out.

use std::collections::{BTreeMap, BTreeSet};

use epigraph_core::{Origin, UnixMillis};

use crate::book::Book;
use crate::finding::{Clear, Code, MAX_SUBJECT_BYTES, Trigger, one_line};

/// Conditions of one report that are taken: as many sources as a person looks through. The last one should say how many more there are.
pub const MAX_CONDITIONS: usize = 256;

/// Who reports what the order of entries shows, whichever identity read them.
pub(crate) const THE_ENTRIES: &str = "entries";

/// Something that is wrong as long as it is reported.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Condition {
    /// What.
    pub code: Code,
    /// What it is about.
    pub subject: String,
    /// The particulars, in one line.
    pub detail: String,
}

/// Who reports on one log, and what they last said.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standing {
    /// Which codes each speaks of.
    reporters: BTreeMap<String, &'static [Code]>,
    reports: BTreeMap<String, BTreeSet<Condition>>,
}

impl Standing {
    /// Expects somebody who speaks of these codes.
    pub(crate) fn expect(&mut self, reporter: &str, codes: &'static [Code]) {
        self.reporters.insert(reporter.to_owned(), codes);
    }

    /// Takes a report, which is all that its reporter has to say now; what begins with it, and what ends. A code that is not
    /// the reporter's counts for nothing.
    pub(crate) fn report(
        &mut self,
        reporter: &str,
        conditions: Vec<Condition>,
        (book, origin, at): (&Book, &Origin, UnixMillis),
    ) -> (Vec<Trigger>, Vec<Clear>) {
        let Some(codes) = self.reporters.get(reporter) else { return (Vec::new(), Vec::new()) };
        let clean = |condition: Condition| Condition {
            subject: one_line(&condition.subject, MAX_SUBJECT_BYTES),
            ..condition
        };
        let taken = conditions.into_iter().filter(|condition| codes.contains(&condition.code));
        let now: BTreeSet<Condition> = taken.take(MAX_CONDITIONS).map(clean).collect();
        let before = self.reports.insert(reporter.to_owned(), now.clone()).unwrap_or_default();
        let triggers = now
            .difference(&before)
            .map(|Condition { code, subject, detail }| Trigger::new(*code, origin, subject, at, detail));
        let triggers = triggers.collect();
        let over = book.findings().filter(|finding| {
            finding.is_open() && finding.origin == *origin && self.is_over(finding.code, &finding.subject)
        });
        let clears = over.map(|finding| Clear {
            code: finding.code,
            origin: origin.clone(),
            subject: finding.subject.clone(),
            at,
        });
        (triggers, clears.collect())
    }

    /// Whether everybody who speaks of this code has reported, and nobody said this.
    fn is_over(&self, code: Code, subject: &str) -> bool {
        let mut who = self.reporters.iter().filter(|(_, codes)| codes.contains(&code)).peekable();
        who.peek().is_some()
            && who.all(|(name, _)| {
                let report = self.reports.get(name);
                report.is_some_and(|report| {
                    !report.iter().any(|said| said.code == code && said.subject == subject)
                })
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GAPS: &[Code] = &[Code::SourceGap];
    const BOTH: &[Code] = &[Code::SourceGap, Code::SourceSilent];

    fn condition(code: Code, subject: &str, detail: &str) -> Condition {
        Condition { code, subject: subject.into(), detail: detail.into() }
    }

    /// A log's standing with its book.
    struct Told(Standing, Book, Origin);

    impl Told {
        fn new(book: Book) -> Told {
            let mut standing = Standing::default();
            standing.expect("reader", GAPS);
            standing.expect("service", BOTH);
            Told(standing, book, Origin::new("a.log").unwrap())
        }

        /// How many triggers and clears came of it.
        fn report(&mut self, who: &str, conditions: &[Condition]) -> (usize, usize) {
            let at = UnixMillis(1);
            let (triggers, clears) = self.0.report(who, conditions.to_vec(), (&self.1, &self.2, at));
            let counts = (triggers.len(), clears.len());
            for trigger in triggers {
                self.1.trigger(trigger);
            }
            clears.iter().for_each(|clear| drop(self.1.clear(clear)));
            counts
        }
    }

    /// Broken to see it fail: `all` made `any`.
    #[test]
    fn what_two_say_is_over_when_neither_says_it() {
        let mut told = Told::new(Book::new());
        let gap = condition(Code::SourceGap, "a", "5 to 7");
        assert_eq!(told.report("reader", std::slice::from_ref(&gap)), (1, 0));
        assert_eq!(told.report("service", std::slice::from_ref(&gap)), (1, 0));
        assert_eq!(told.report("service", std::slice::from_ref(&gap)), (0, 0));
        assert_eq!(told.report("reader", &[]), (0, 0));
        assert_eq!(told.report("reader", &[]), (0, 0));
        assert_eq!(told.report("service", &[condition(Code::SourceGap, "a", "6 to 7")]), (1, 0));
        assert_eq!(told.report("service", &[]), (0, 1));
        assert_eq!(told.1.findings().count(), 1);
        // What is not its business, and who is nobody.
        assert_eq!(told.report("reader", &[condition(Code::SourceSilent, "a", "")]), (0, 0));
        assert_eq!(told.report("stranger", &[gap]), (0, 0));
    }

    /// Broken to see it fail: `is_some_and` made `is_none_or`.
    #[test]
    fn what_was_found_before_a_restart_is_over_only_when_all_have_spoken() {
        let mut told = Told::new(Book::new());
        told.report(
            "service",
            &[condition(Code::SourceGap, "a", ""), condition(Code::SourceSilent, "a", "")],
        );
        let mut told = Told::new(told.1);
        assert_eq!(told.report("reader", &[]), (0, 0));
        assert_eq!(told.report("service", &[]), (0, 2));
    }

    #[test]
    fn a_report_is_bounded() {
        let mut told = Told::new(Book::new());
        let many: Vec<_> =
            (0..MAX_CONDITIONS + 9).map(|n| condition(Code::SourceGap, &format!("{n}"), "")).collect();
        assert_eq!(told.report("service", &many), (MAX_CONDITIONS, 0));
    }
}
