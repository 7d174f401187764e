//! What is wrong with the sources that an audit service lists, as conditions. Pure.
//!
//! The service counts what it refused and when last; a trouble that was counted stands for a day after the last time, so that somebody
//! who wakes up to it can still look. All words here are the service's: it may lie, and the order of leaves in the log is what it
//! is held against.

use std::collections::BTreeMap;

use epigraph_core::UnixMillis;
use epigraph_monitor::finding::Code;
use epigraph_monitor::standing::Condition;
use epigraph_rpc::peer::audit::SourceStatus;

use super::{gaps_in_words, named, subject};

/// How long after it was last counted a trouble stands.
const TROUBLE_LASTS_MS: u64 = 24 * 60 * 60 * 1_000;

/// What the service speaks of.
pub const CODES: &[Code] = &[
    Code::SourceGap,
    Code::SourceSilent,
    Code::SourceConflict,
    Code::SourceForged,
    Code::SourceRetired,
    Code::SourceSkew,
    Code::EventIdReused,
    Code::PayloadMismatch,
    Code::AuditUnreachable,
];

/// The finding that a trouble of the service is; a word that is not known here is a conflict: it is never passed over.
fn code_of(trouble: &str) -> Code {
    match trouble {
        "bad-signature" => Code::SourceForged,
        "retired-key" => Code::SourceRetired,
        "clock-skew" => Code::SourceSkew,
        "id-collision" => Code::EventIdReused,
        _ => Code::SourceConflict,
    }
}

/// What stands by what the service says at `now`.
pub fn conditions(sources: &[SourceStatus], now: UnixMillis) -> Vec<Condition> {
    let mut found: BTreeMap<Code, Vec<Condition>> = BTreeMap::new();
    let mut add = |source: &SourceStatus, code: Code, detail: String| {
        let condition = Condition { code, subject: subject(&source.id), detail };
        found.entry(code).or_default().push(condition);
    };
    for source in sources {
        let name = source.vkey.split('+').next().unwrap_or_default();
        let owner = &source.owner;
        if source.gap_count > 0 {
            let gaps = source.gaps.iter().map(|gap| (gap.epoch, gap.first, gap.end));
            let gaps = gaps_in_words(gaps, source.gap_count);
            add(source, Code::SourceGap, format!("{name} of {owner}: the audit service has no {gaps}"));
        }
        if source.silent && source.retired_at.is_none() {
            let seen = source.last_seen.map_or(0, |at| at.0);
            let every = source.heartbeat_ms;
            let detail =
                format!("{name} of {owner} was last heard of at {seen} and should be every {every} ms");
            add(source, Code::SourceSilent, detail);
        }
        let lasts = |at: UnixMillis| now.0.saturating_sub(at.0) < TROUBLE_LASTS_MS;
        let mut troubles: BTreeMap<Code, Vec<String>> = BTreeMap::new();
        for trouble in source.troubles.iter().filter(|trouble| lasts(trouble.last_at)) {
            let words = format!("{} times {}, last at {}", trouble.count, trouble.kind, trouble.last_at.0);
            troubles.entry(code_of(&trouble.kind)).or_default().push(words);
        }
        for (code, words) in troubles {
            let collector = &source.collector;
            add(source, code, format!("{name} of {owner}, through {collector}: {}", words.join("; ")));
        }
    }
    found.into_iter().flat_map(|(code, conditions)| named(code, conditions.into_iter())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use epigraph_audit::source::Kind;
    use epigraph_core::Hash;
    use epigraph_rpc::peer::audit::{Gap, Trouble};

    fn source() -> SourceStatus {
        SourceStatus {
            vkey: "a-cluster+01234567+AAAA".into(),
            id: Hash::from_bytes([0xab; 32]),
            owner: "a team".into(),
            collector: "spiffe://a/b".into(),
            enrolled_at: UnixMillis(1),
            retired_at: None,
            events: 9,
            epoch: 0,
            first_sequence: 0,
            next_sequence: 9,
            last_seen: Some(UnixMillis(5)),
            lag_ms: 0,
            heartbeat_ms: 60_000,
            silent: false,
            gaps: Vec::new(),
            gap_count: 0,
            troubles: Vec::new(),
        }
    }

    fn trouble(kind: &str, count: u64, at: u64) -> Trouble {
        Trouble { kind: kind.into(), count, last_at: UnixMillis(at) }
    }

    fn check(source: SourceStatus, now: u64, expected: &[(Code, &str)]) {
        let found = conditions(&[source], UnixMillis(now));
        let found: Vec<_> =
            found.iter().map(|condition| (condition.code, condition.detail.as_str())).collect();
        assert_eq!(found, expected);
    }

    /// F2, F56: by source, epoch and number; and a source that is retired owes nobody a word.
    #[test]
    fn gaps_and_silences_are_named() {
        check(source(), 9, &[]);
        let gaps = vec![Gap { epoch: 0, first: 5, end: 7 }];
        let gap = SourceStatus { gaps, gap_count: 2, ..source() };
        let says = "a-cluster of a team: the audit service has no events 5 to 6 of epoch 0, and 1 more gaps";
        check(gap, 9, &[(Code::SourceGap, says)]);
        let silent = SourceStatus { silent: true, ..source() };
        let says = "a-cluster of a team was last heard of at 5 and should be every 60000 ms";
        check(silent.clone(), 9, &[(Code::SourceSilent, says)]);
        check(SourceStatus { retired_at: Some(UnixMillis(8)), ..silent }, 9, &[]);
    }

    /// F5, F8, F11: each trouble is a finding of its own class, and over a day after it was last counted.
    #[test]
    fn troubles_are_told_of_for_a_day() {
        let of = |kind: &str| SourceStatus { troubles: vec![trouble(kind, 2, 1_000)], ..source() };
        let codes = Kind::ALL.map(|kind| conditions(&[of(kind.as_str())], UnixMillis(1_001))[0].code);
        assert_eq!(
            codes,
            [
                Code::SourceForged,
                Code::SourceConflict,
                Code::SourceSkew,
                Code::EventIdReused,
                Code::SourceRetired,
                Code::SourceConflict,
                Code::SourceConflict,
            ]
        );
        let two = SourceStatus {
            troubles: vec![trouble("broken-chain", 2, 1_000), trouble("stale-epoch", 1, 2_000)],
            ..source()
        };
        let says = "a-cluster of a team, through spiffe://a/b: 2 times broken-chain, last at 1000; 1 times stale-epoch, last at \
                    2000";
        check(two.clone(), 3_000, &[(Code::SourceConflict, says)]);
        let says = "a-cluster of a team, through spiffe://a/b: 1 times stale-epoch, last at 2000";
        check(two.clone(), TROUBLE_LASTS_MS + 1_000, &[(Code::SourceConflict, says)]);
        check(two, TROUBLE_LASTS_MS + 2_000, &[]);
        check(
            of("something-new"),
            1_001,
            &[(
                Code::SourceConflict,
                "a-cluster of a team, through spiffe://a/b: 2 times something-new, last at 1000",
            )],
        );
    }
}
