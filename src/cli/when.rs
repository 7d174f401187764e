//! Times on the command line: a date, which begins at 00:00 UTC, or RFC 3339 with its offset.

use epigraph_audit::runbook::bind::time;

/// A point in time, in nanoseconds since 1970.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct When(pub i64);

impl std::str::FromStr for When {
    type Err = String;

    fn from_str(text: &str) -> Result<When, String> {
        match time(text) {
            Some(nanos) if nanos > 0 => Ok(When(nanos)),
            _ => Err("a date from 1970 on such as 2024-07-30, which begins at 00:00 UTC, or a time such as 2024-07-30T12:00:00Z".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_date_or_has_an_offset() {
        let check = |text: &str, expected: Option<i64>| {
            assert_eq!(
                text.parse::<When>().ok(),
                expected.map(|seconds| When(seconds * 1_000_000_000)),
                "{text}"
            );
        };
        check("2024-07-30", Some(1_722_297_600));
        check("2024-07-30T21:53:13Z", Some(1_722_376_393));
        check("2024-07-30T23:53:13+02:00", Some(1_722_376_393));
        for bad in
            ["", "yesterday", "2024-07-30T21:53:13", "2024-13-01", "1969-12-31", "2263-01-01", "30.7.2024"]
        {
            check(bad, None);
        }
    }
}
