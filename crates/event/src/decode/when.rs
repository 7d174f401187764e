//! Times as sources write them. A time without its offset from UTC is no time: it may be hours off, and nobody can
//! tell.

use epigraph_core::UnixMillis;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::v1::TimeFrom;

const NANOS_PER_MILLI: i64 = 1_000_000;

/// Nanoseconds of a clock's milliseconds; the end of time if there are too many.
pub(super) fn of_millis(at: UnixMillis) -> i64 {
    i64::try_from(at.0).unwrap_or(i64::MAX).saturating_mul(NANOS_PER_MILLI)
}

/// Reads RFC 3339. The number means something only with [`TimeFrom::Source`].
pub(super) fn of_text(text: &str) -> (i64, TimeFrom) {
    if text.is_empty() {
        return (0, TimeFrom::Missing);
    }
    let parse = |text: &str| OffsetDateTime::parse(text, &Rfc3339).ok();
    match parse(text) {
        Some(at) => match i64::try_from(at.unix_timestamp_nanos()) {
            Ok(nanos) => (nanos, TimeFrom::Source),
            Err(_) => (0, TimeFrom::Unreadable),
        },
        None if parse(&format!("{text}Z")).is_some() => (0, TimeFrom::WithoutOffset),
        None => (0, TimeFrom::Unreadable),
    }
}

/// A number of units since 1970, of which `per_unit` nanoseconds make one; 0 is no time.
pub(super) fn of_number(units: i64, per_unit: i64) -> (i64, TimeFrom) {
    match units.checked_mul(per_unit) {
        Some(0) => (0, TimeFrom::Missing),
        Some(nanos) => (nanos, TimeFrom::Source),
        None => (0, TimeFrom::Unreadable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_what_its_source_said_or_none() {
        let check = |text: &str, expected| assert_eq!(of_text(text), expected, "{text}");
        check("2024-07-30T21:53:13Z", (1_722_376_393_000_000_000, TimeFrom::Source));
        check("2018-10-25T13:58:49.730588Z", (1_540_475_929_730_588_000, TimeFrom::Source));
        check("2018-10-25T15:58:49.730588+02:00", (1_540_475_929_730_588_000, TimeFrom::Source));
        check("1969-12-31T23:59:59.999999999Z", (-1, TimeFrom::Source));
        check("1016-07-30T21:53:13Z", (0, TimeFrom::Unreadable));
        check("2024-07-30T21:53:13", (0, TimeFrom::WithoutOffset));
        check("", (0, TimeFrom::Missing));
        for bad in
            ["yesterday", "2024-07-30", "2024-13-30T21:53:13Z", "Jul 30, 2024 9:53:13 PM", "1722376393"]
        {
            check(bad, (0, TimeFrom::Unreadable));
        }
        check(&"9".repeat(100_000), (0, TimeFrom::Unreadable));
        assert_eq!(of_number(1_722_376_393, 1_000_000_000), (1_722_376_393_000_000_000, TimeFrom::Source));
        assert_eq!(of_number(i64::MAX, 1000), (0, TimeFrom::Unreadable));
        assert_eq!(of_number(0, 1), (0, TimeFrom::Missing));
    }
}
