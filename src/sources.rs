//! What a monitor looks at where a log holds the leaves of audit events: their order in the log ([`order`]), and what the audit
//! service says of its sources and gives back of their events ([`watch`]). Both end as conditions that the monitor finds.
//!
//! It owns which codes these are and how a source is called in them. It does not know how findings are kept or told.

pub mod order;
pub mod status;
pub mod watch;

mod sample;

use epigraph_core::Hash;
use epigraph_monitor::finding::Code;
use epigraph_monitor::standing::Condition;

/// Sources that are named for one thing that is wrong; the others are counted. More than a person looks through, and with all codes
/// fewer than one report has room for.
pub const MAX_NAMED: usize = 25;

/// Gaps of one source that are named; the others are counted.
const MAX_GAPS_NAMED: usize = 8;

/// A source as the subject of findings: the beginning of its key's id, which the log shows as well as the service.
pub fn subject(source: &Hash) -> String {
    format!("source {}", source.to_string().get(..16).unwrap_or_default())
}

/// Gaps, each with epoch, first number and the number after the last, in words; and how many more there are.
fn gaps_in_words(gaps: impl IntoIterator<Item = (u64, u64, u64)>, all: u64) -> String {
    let named: Vec<String> = gaps
        .into_iter()
        .take(MAX_GAPS_NAMED)
        .map(|(epoch, first, end)| format!("events {first} to {} of epoch {epoch}", end.saturating_sub(1)))
        .collect();
    let more = all.saturating_sub(named.len() as u64);
    match (named.is_empty(), more) {
        (_, 0) => named.join(", "),
        (true, _) => format!("{more} gaps that are not listed"),
        (false, _) => format!("{}, and {more} more gaps", named.join(", ")),
    }
}

/// At most [`MAX_NAMED`] of one code, and one in the place of all others.
fn named(code: Code, conditions: impl Iterator<Item = Condition>) -> Vec<Condition> {
    let mut named: Vec<Condition> = Vec::new();
    let mut others = 0_usize;
    for condition in conditions {
        if named.len() < MAX_NAMED {
            named.push(condition);
        } else {
            others += 1;
        }
    }
    if others > 0 {
        let detail = format!("{others} sources beside those that have a finding of their own");
        named.push(Condition { code, subject: "other sources".into(), detail });
    }
    named
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_sources_are_one_finding_more_than_have_a_name() {
        let conditions = |count: usize| {
            let all = (0..count).map(|n| Condition {
                code: Code::SourceGap,
                subject: format!("source {n}"),
                detail: String::new(),
            });
            named(Code::SourceGap, all)
        };
        assert_eq!(conditions(MAX_NAMED).len(), MAX_NAMED);
        let more = conditions(MAX_NAMED + 7);
        assert_eq!(more.len(), MAX_NAMED + 1);
        assert_eq!(more.last().unwrap().detail, "7 sources beside those that have a finding of their own");
        assert_eq!(gaps_in_words([(0, 5, 6)], 1), "events 5 to 5 of epoch 0");
        assert_eq!(gaps_in_words([(0, 5, 7)], 3), "events 5 to 6 of epoch 0, and 2 more gaps");
        assert_eq!(gaps_in_words([], 2), "2 gaps that are not listed");
    }
}
