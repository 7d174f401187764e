//! Times as people and APIs read them.

use epigraph_core::UnixMillis;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// RFC 3339. What lies beyond the year 9999, which no clock says, is that year's end.
pub(crate) fn rfc3339(at: UnixMillis) -> String {
    let parsed = OffsetDateTime::from_unix_timestamp_nanos(i128::from(at.0) * 1_000_000).ok();
    parsed.and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_else(|| "9999-12-31T23:59:59Z".into())
}

/// The same of POSIX seconds.
pub(crate) fn of_seconds(seconds: u64) -> String {
    rfc3339(UnixMillis(seconds.saturating_mul(1000)))
}
