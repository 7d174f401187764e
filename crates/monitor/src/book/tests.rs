use bytes::Bytes;
use proptest::prelude::*;

use super::*;

fn origin() -> Origin {
    Origin::new("log.example").unwrap()
}

fn found(code: Code, subject: &str, at: u64) -> Trigger {
    Trigger::new(code, &origin(), subject, UnixMillis(at), "it was seen")
}

fn over(code: Code, subject: &str, at: u64) -> Clear {
    Clear { code, origin: origin(), subject: subject.to_owned(), at: UnixMillis(at) }
}

fn change(notice: Option<Notice>) -> Option<Change> {
    notice.map(|notice| notice.change)
}

/// Seen to fail with `remind` telling every time.
#[test]
fn a_thousand_triggers_are_one_alert_and_a_count() {
    let mut book = Book::new();
    let notices = (0..1000).filter_map(|at| book.trigger(found(Code::BadSignature, "log/1", at))).count();
    assert_eq!(notices, 1);
    let finding = book.findings().next().unwrap();
    assert_eq!((finding.count, finding.first_at, finding.last_at), (1000, UnixMillis(0), UnixMillis(999)));
}

#[test]
fn it_is_reminded_of_at_intervals_until_somebody_takes_it_on() {
    let mut book = Book::new();
    let opened = book.trigger(found(Code::SplitView, "log", 0)).unwrap();
    assert_eq!(opened.change, Change::Opened);
    assert!(book.tick(UnixMillis(REMIND_PAGE_MS - 1)).is_empty());
    assert_eq!(book.tick(UnixMillis(REMIND_PAGE_MS)).len(), 1);
    assert!(book.tick(UnixMillis(REMIND_PAGE_MS + 1)).is_empty());
    let acknowledged =
        book.acknowledge(opened.finding.id, "operator/ada", "the log is stopped", UnixMillis(9));
    assert_eq!(acknowledged.unwrap().finding.acknowledged.unwrap().by, "operator/ada");
    assert!(book.tick(UnixMillis(100 * REMIND_PAGE_MS)).is_empty());
    // A clock that was set back does not make anything due.
    assert!(book.tick(UnixMillis(0)).is_empty());
}

#[test]
fn who_and_why_must_be_said() {
    let mut book = Book::new();
    let id = book.trigger(found(Code::Rollback, "log/1", 0)).unwrap().finding.id;
    let long = "x".repeat(MAX_REASON_BYTES + 1);
    for (by, why) in [("", "why"), ("who", " "), ("who", "a\nb"), ("who", long.as_str())] {
        assert_eq!(book.acknowledge(id, by, why, UnixMillis(1)), Err(AcknowledgeError::NoReason));
    }
    let other = FindingId::of(&origin(), Code::Rollback, "log/2");
    assert_eq!(book.acknowledge(other, "who", "why", UnixMillis(1)), Err(AcknowledgeError::Unknown(other)));
    book.clear(&over(Code::Rollback, "log/1", 2)).unwrap();
    assert_eq!(book.acknowledge(id, "who", "why", UnixMillis(3)), Err(AcknowledgeError::Resolved(id)));
}

/// Seen to fail with `clear` resolving at once whatever came before.
#[test]
fn what_comes_and_goes_by_the_second_is_told_of_once() {
    let mut book = Book::new();
    let code = Code::VantageUnreachable;
    assert_eq!(change(book.trigger(found(code, "log/1", 0))), Some(Change::Opened));
    assert_eq!(change(book.clear(&over(code, "log/1", 1))), Some(Change::Resolved));
    assert_eq!(change(book.clear(&over(code, "log/1", 2))), None);
    assert_eq!(change(book.trigger(found(code, "log/1", 3))), Some(Change::Reopened));
    let flaps = (2..250).filter(|second| {
        let told = book.clear(&over(code, "log/1", second * 1000));
        let again = book.trigger(found(code, "log/1", second * 1000 + 500));
        told.is_some() || again.is_some()
    });
    assert_eq!(flaps.count(), 0);
    assert_eq!(change(book.clear(&over(code, "log/1", 300_000))), None);
    assert!(book.tick(UnixMillis(300_000 + SETTLE_MS - 1)).is_empty());
    let resolved = book.tick(UnixMillis(300_000 + SETTLE_MS)).pop().unwrap();
    assert_eq!(resolved.finding.state, State::Resolved { at: UnixMillis(300_000) });
}

#[test]
fn what_is_proven_is_never_resolved() {
    let mut book = Book::new();
    for code in Code::ALL {
        book.trigger(found(code, "x", 0)).unwrap();
        let resolved = book.clear(&over(code, "x", 1)).is_some();
        assert_eq!(resolved, code.class() == Class::Observation, "{code}");
    }
}

#[test]
fn an_acknowledgement_ends_when_it_comes_back() {
    let mut book = Book::new();
    let id = book.trigger(found(Code::StaleHead, "log", 0)).unwrap().finding.id;
    book.acknowledge(id, "who", "why", UnixMillis(1)).unwrap();
    book.clear(&over(Code::StaleHead, "log", 2)).unwrap();
    let reopened = book.trigger(found(Code::StaleHead, "log", 3)).unwrap();
    assert_eq!(reopened.change, Change::Reopened);
    assert_eq!((reopened.finding.acknowledged, reopened.finding.first_at), (None, UnixMillis(3)));
}

#[test]
fn evidence_is_kept_of_the_time_that_it_opened() {
    let mut book = Book::new();
    let with = |file: &'static str, at| Trigger {
        evidence: Some(Bytes::from_static(file.as_bytes())),
        ..found(Code::Rollback, "log/1", at)
    };
    let of = |book: &Book| book.findings().next().and_then(|finding| finding.evidence);
    assert!(book.wants_evidence(&with("one", 0)));
    book.trigger(found(Code::Rollback, "log/1", 0));
    assert!(book.wants_evidence(&with("one", 0)));
    book.trigger(with("one", 1));
    assert!(!book.wants_evidence(&with("two", 2)));
    book.trigger(with("two", 2));
    assert_eq!(of(&book), Some(EvidenceId::of(b"one")));
    book.clear(&over(Code::Rollback, "log/1", 3));
    assert!(book.wants_evidence(&with("two", 4)));
    book.trigger(with("two", 4));
    assert_eq!(of(&book), Some(EvidenceId::of(b"two")));
}

/// Seen to fail with the least page removed whatever the new one is worth.
#[test]
fn a_full_book_keeps_the_worst() {
    let mut book = Book::new();
    book.trigger(found(Code::SplitView, "log", 0)).unwrap();
    for place in 0..MAX_FINDINGS - 1 {
        book.trigger(found(Code::Rollback, &format!("log/{place}"), 1)).unwrap();
    }
    assert_eq!(book.trigger(found(Code::BadSignature, "anybody", 2)), None);
    assert!(book.trigger(found(Code::WitnessEquivocation, "w", 2)).is_some());
    for at in 0..3 * MAX_FINDINGS as u64 {
        book.trigger(found(Code::StaleHead, &format!("other/{at}"), 3 + at));
    }
    assert_eq!(book.findings().count(), MAX_FINDINGS);
    assert_eq!(book.findings().filter(|finding| finding.code.class() == Class::Proof).count(), 2);
    assert_eq!(book.lost(), 2 + 3 * MAX_FINDINGS as u64);
}

#[test]
fn the_file_is_as_documented() {
    let mut book = Book::new();
    let id = book.trigger(found(Code::StaleHead, "log/1", 5)).unwrap().finding.id;
    book.acknowledge(id, "operator/ada", "the link is down", UnixMillis(7)).unwrap();
    let want = format!(
        "epigraph-findings@v1\nlost 0\nfinding {id}\ncode stale-head\norigin log.example\nsubject log/1\nfirst 5\nlast 5\n\
         count 1\ndetail it was seen\ntold 7\nacknowledged 7\nby operator/ada\nwhy the link is down\n"
    );
    assert_eq!(String::from_utf8(book.encode()).unwrap(), want);
    let changed = want.replacen("log/1", "log/2", 1);
    assert_eq!(Book::decode(changed.as_bytes()), Err(StateError::Line(6)));
    assert_eq!(
        Book::decode(want.replacen("first 5", "first 05", 1).as_bytes()),
        Err(StateError::NotCanonical)
    );
    assert_eq!(Book::decode(b"epigraph-findings@v2\n"), Err(StateError::Header(HEADER)));
    assert_eq!(Book::decode(want.trim_end().as_bytes()), Err(StateError::NotCanonical));
    assert_eq!(Book::decode(b"epigraph-findings@v1\n"), Err(StateError::Line(2)));
}

proptest! {
    /// Whatever happens to a book, its file reads back, and a file with a bit changed is refused or another book.
    #[test]
    fn a_book_survives_its_file(
        steps in prop::collection::vec((0..6u8, 0..17usize, 0..3u8, any::<u32>()), 0..60),
        flip in any::<prop::sample::Index>(),
    ) {
        let mut book = Book::new();
        for (kind, code, subject, at) in steps {
            let (code, subject) = (Code::ALL[code], format!("s{subject}"));
            match kind {
                0 | 1 => drop(book.clear(&over(code, &subject, at.into()))),
                2 => drop(book.tick(UnixMillis(at.into()))),
                3 => drop(book.acknowledge(FindingId::of(&origin(), code, &subject), "a", "b", UnixMillis(at.into()))),
                _ => drop(book.trigger(found(code, &subject, at.into()))),
            }
        }
        let mut file = book.encode();
        prop_assert_eq!(Book::decode(&file), Ok(book.clone()));
        let at = flip.index(file.len());
        file[at] ^= 1;
        if let Ok(other) = Book::decode(&file) {
            prop_assert_ne!(other, book);
        }
    }
}
