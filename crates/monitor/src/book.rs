//! The book of findings: triggers in groups, so that a thousand of them are one alert and a count.
//!
//! A finding opens, is reminded of at intervals while nobody has taken it on, is resolved when what was found is over, and
//! opens again if it comes back. What is proven is never resolved, only acknowledged. The book is pure: the time is an
//! argument, what it holds is bounded, and its file is docs/formats/findings.md. It does not know who is told.

use std::collections::BTreeMap;

use epigraph_core::{Origin, UnixMillis};
use thiserror::Error;

use crate::finding::{
    Acknowledgement, Change, Class, Clear, Code, EvidenceId, Finding, FindingId, MAX_DETAIL_BYTES,
    MAX_SUBJECT_BYTES, Notice, Severity, State, Trigger, one_line,
};
pub use crate::lines::StateError;
use crate::lines::{Reader, Writer, number};

/// The most findings: many more than a person looks through, few enough to be written anew with every change.
pub const MAX_FINDINGS: usize = 1024;

/// How long nobody is reminded of a finding of each severity: a page comes again within a shift, a warning once a day.
pub const REMIND_PAGE_MS: u64 = 60 * 60 * 1000;
/// See [`REMIND_PAGE_MS`].
pub const REMIND_WARN_MS: u64 = 24 * 60 * 60 * 1000;

/// How long something that came back must stay away until it counts as resolved again: what comes and goes by the second is
/// told of once.
pub const SETTLE_MS: u64 = 10 * 60 * 1000;

/// The longest reason for an acknowledgement, and the longest name of who gives it, in bytes.
pub const MAX_REASON_BYTES: usize = 1024;

const HEADER: &str = "epigraph-findings@v1";

/// All findings of one monitor.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Book {
    pages: BTreeMap<FindingId, Page>,
    lost: u64,
}

/// A finding, and what is kept beside it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Page {
    finding: Finding,
    /// When somebody was last told of it.
    told: UnixMillis,
    /// When it last came back.
    reopened: Option<UnixMillis>,
    /// Since when it is away, while it still has to stay away.
    away: Option<UnixMillis>,
}

/// Why a finding was not acknowledged.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum AcknowledgeError {
    /// There is none of this name.
    #[error("there is no finding {0}: list those that there are")]
    Unknown(FindingId),
    /// It is over.
    #[error("the finding {0} is resolved: there is nothing to take on. It opens anew if it comes back")]
    Resolved(FindingId),
    /// No name or no reason.
    #[error("an acknowledgement says who and why, each in one line of 1 to {MAX_REASON_BYTES} bytes")]
    NoReason,
}

impl Book {
    /// An empty book.
    pub fn new() -> Book {
        Book::default()
    }

    /// Whether the book would keep the evidence or statement of this trigger: it opens its group, or the group has none. Only
    /// then need one be made, and only then is it worth a file.
    pub fn wants_evidence(&self, trigger: &Trigger) -> bool {
        self.pages
            .get(&trigger.id())
            .is_none_or(|page| !page.finding.is_open() || page.finding.evidence.is_none())
    }

    /// Takes a trigger; says what there is to tell.
    pub fn trigger(&mut self, trigger: Trigger) -> Option<Notice> {
        let id = trigger.id();
        let evidence = trigger.evidence.as_ref().map(|file| EvidenceId::of(file));
        let Some(page) = self.pages.get_mut(&id) else { return self.open(trigger, evidence) };
        let finding = &mut page.finding;
        finding.count = finding.count.saturating_add(1);
        finding.detail = trigger.detail;
        finding.last_at = finding.last_at.max(trigger.at);
        page.away = None;
        if finding.is_open() {
            finding.evidence = finding.evidence.or(evidence);
            return page.remind(trigger.at);
        }
        finding.state = State::Open;
        finding.first_at = trigger.at;
        finding.last_at = trigger.at;
        finding.evidence = evidence.or(finding.evidence);
        finding.acknowledged = None;
        page.reopened = Some(trigger.at);
        Some(page.tell(Change::Reopened, trigger.at))
    }

    fn open(&mut self, trigger: Trigger, evidence: Option<EvidenceId>) -> Option<Notice> {
        let id = trigger.id();
        let mut page = Page {
            finding: Finding {
                id,
                code: trigger.code,
                origin: trigger.origin,
                subject: trigger.subject,
                first_at: trigger.at,
                last_at: trigger.at,
                count: 1,
                detail: trigger.detail,
                evidence,
                state: State::Open,
                acknowledged: None,
            },
            told: trigger.at,
            reopened: None,
            away: None,
        };
        if self.pages.len() >= MAX_FINDINGS {
            // Somebody who can cause findings must not be able to wash a worse one out with them.
            let least = self.pages.values().min_by_key(|page| page.worth()).map(Page::worth)?;
            self.lost = self.lost.saturating_add(1);
            if least.0 > page.worth().0 {
                return None;
            }
            self.pages.remove(&least.2);
        }
        let notice = page.tell(Change::Opened, trigger.at);
        self.pages.insert(id, page);
        Some(notice)
    }

    /// Takes it that something is over; says what there is to tell. What is proven stays proven.
    pub fn clear(&mut self, clear: &Clear) -> Option<Notice> {
        let id = FindingId::of(&clear.origin, clear.code, &clear.subject);
        let page = self.pages.get_mut(&id).filter(|page| page.finding.is_open())?;
        if clear.code.class() == Class::Proof {
            return None;
        }
        if page.reopened.is_some_and(|at| clear.at.0.saturating_sub(at.0) < SETTLE_MS) {
            page.away = page.away.or(Some(clear.at));
            return None;
        }
        Some(page.resolve(clear.at))
    }

    /// Takes back what a drill had somebody find, also if it is proven: it was never so.
    pub(crate) fn withdraw(&mut self, id: FindingId, at: UnixMillis) -> Option<Notice> {
        let page = self.pages.get_mut(&id).filter(|page| page.finding.is_open())?;
        Some(page.resolve(at))
    }

    /// Lets time pass: reminders that are due, and findings that have stayed away long enough. To be called every minute or so.
    pub fn tick(&mut self, at: UnixMillis) -> Vec<Notice> {
        let mut notices = Vec::new();
        for page in self.pages.values_mut().filter(|page| page.finding.is_open()) {
            let notice = match page.away {
                Some(since) if at.0.saturating_sub(since.0) >= SETTLE_MS => Some(page.resolve(since)),
                Some(_) => None,
                None => page.remind(at),
            };
            notices.extend(notice);
        }
        notices
    }

    /// Somebody takes a finding on: nobody is reminded of it any more, unless it is resolved and comes back.
    pub fn acknowledge(
        &mut self,
        id: FindingId,
        by: &str,
        why: &str,
        at: UnixMillis,
    ) -> Result<Notice, AcknowledgeError> {
        for text in [by, why] {
            if text.trim().is_empty() || one_line(text, MAX_REASON_BYTES) != text {
                return Err(AcknowledgeError::NoReason);
            }
        }
        let page = self.pages.get_mut(&id).ok_or(AcknowledgeError::Unknown(id))?;
        if !page.finding.is_open() {
            return Err(AcknowledgeError::Resolved(id));
        }
        page.finding.acknowledged = Some(Acknowledgement { by: by.to_owned(), why: why.to_owned(), at });
        Ok(page.tell(Change::Acknowledged, at))
    }

    /// All findings, open and resolved, in the order of their names.
    pub fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.pages.values().map(|page| &page.finding)
    }

    /// One finding.
    pub fn get(&self, id: FindingId) -> Option<&Finding> {
        self.pages.get(&id).map(|page| &page.finding)
    }

    /// How many findings had no room, and pushed a lesser one out or were not taken.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// The book as a file.
    pub fn encode(&self) -> Vec<u8> {
        let mut file = Writer::new(HEADER);
        file.line("lost", self.lost);
        for Page { finding, told, reopened, away } in self.pages.values() {
            file.line("finding", finding.id);
            file.line("code", finding.code);
            file.line("origin", &finding.origin);
            file.line("subject", &finding.subject);
            file.line("first", finding.first_at.0);
            file.line("last", finding.last_at.0);
            file.line("count", finding.count);
            file.line("detail", &finding.detail);
            finding.evidence.iter().for_each(|id| file.line("evidence", id));
            file.line("told", told.0);
            reopened.iter().for_each(|at| file.line("reopened", at.0));
            away.iter().for_each(|at| file.line("away", at.0));
            if let State::Resolved { at } = finding.state {
                file.line("resolved", at.0);
            }
            if let Some(Acknowledgement { by, why, at }) = &finding.acknowledged {
                file.line("acknowledged", at.0);
                file.line("by", by);
                file.line("why", why);
            }
        }
        file.finish()
    }

    /// Reads such a file.
    pub fn decode(bytes: &[u8]) -> Result<Book, StateError> {
        let mut file = Reader::new(bytes, HEADER)?;
        let mut book = Book { lost: file.value("lost", number)?, ..Book::default() };
        while !file.is_empty() {
            let page = Page::read(&mut file)?;
            if book.pages.len() >= MAX_FINDINGS {
                return Err(file.bad());
            }
            book.pages.insert(page.finding.id, page);
        }
        if book.encode() == bytes { Ok(book) } else { Err(StateError::NotCanonical) }
    }
}

impl Page {
    fn read(file: &mut Reader<'_>) -> Result<Page, StateError> {
        let time = |text: &str| number(text).map(UnixMillis);
        let line = |most| move |text: &str| (one_line(text, most) == text).then(|| text.to_owned());
        let id = file.value("finding", FindingId::from_hex)?;
        let code: Code = file.value("code", |text| text.parse().ok())?;
        let origin = file.value("origin", |text| Origin::new(text).ok())?;
        let subject = file.value("subject", line(MAX_SUBJECT_BYTES))?;
        if FindingId::of(&origin, code, &subject) != id {
            return Err(file.bad());
        }
        let (first_at, last_at) = (file.value("first", time)?, file.value("last", time)?);
        let count = file.value("count", number)?;
        let detail = file.value("detail", line(MAX_DETAIL_BYTES))?;
        let evidence = file.maybe("evidence", EvidenceId::from_hex)?;
        let told = file.value("told", time)?;
        let (reopened, away) = (file.maybe("reopened", time)?, file.maybe("away", time)?);
        let state = file.maybe("resolved", time)?.map_or(State::Open, |at| State::Resolved { at });
        let acknowledged = match file.maybe("acknowledged", time)? {
            Some(at) => Some(Acknowledgement {
                by: file.value("by", line(MAX_REASON_BYTES))?,
                why: file.value("why", line(MAX_REASON_BYTES))?,
                at,
            }),
            None => None,
        };
        let finding = Finding {
            id,
            code,
            origin,
            subject,
            first_at,
            last_at,
            count,
            detail,
            evidence,
            state,
            acknowledged,
        };
        Ok(Page { finding, told, reopened, away })
    }

    fn tell(&mut self, change: Change, at: UnixMillis) -> Notice {
        self.told = at;
        Notice { change, finding: self.finding.clone() }
    }

    fn resolve(&mut self, at: UnixMillis) -> Notice {
        self.finding.state = State::Resolved { at };
        self.away = None;
        self.tell(Change::Resolved, at)
    }

    fn remind(&mut self, at: UnixMillis) -> Option<Notice> {
        let wait = match self.finding.code.severity() {
            Severity::Page => REMIND_PAGE_MS,
            Severity::Warn => REMIND_WARN_MS,
        };
        // A clock that ran ahead and was set back must not put the next reminder off until it is there again.
        self.told = self.told.min(at);
        let due = self.finding.acknowledged.is_none() && at.0.saturating_sub(self.told.0) >= wait;
        due.then(|| self.tell(Change::Reminded, at))
    }

    /// What there is least reason to keep comes first: what is resolved, then by weight, then by age.
    fn worth(&self) -> ((bool, bool, Severity), UnixMillis, FindingId) {
        let Finding { code, last_at, id, .. } = self.finding;
        ((self.finding.is_open(), code.class() == Class::Proof, code.severity()), last_at, id)
    }
}

#[cfg(test)]
mod tests;
