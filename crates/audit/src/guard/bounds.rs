//! How far a read may go: whose events, from when to when, how many rows, how many bytes, and how small a group may be told of.

use epigraph_event::segment::MAX_FIELDS_BYTES;

use super::limits::Limits;
use super::mask::Sight;
use super::plan::{Budget, Request, unknown_stream};
use super::refusal::{Code, Refusal};
use super::{Principal, Tenants};
use crate::query::{Estimate, Reduce, Window, scan};
use crate::runbook::Runbook;

/// The most events of one audit: each is opened, proven and sent, so this is minutes of work.
const MAX_AUDITED_EVENTS: u64 = 100_000;

/// The most bytes that are read of one of them: what happened and who it was, without its record and what proves it.
const MAX_AUDITED_BYTES: u64 = 2 * MAX_FIELDS_BYTES as u64;

/// Whose events are read: none if everybody's.
pub(super) fn tenant_of(who: &Principal, request: &Request) -> Result<Option<String>, Refusal> {
    match (&request.tenant, &who.tenants) {
        (Some(tenant), tenants) if tenants.contains(tenant) => Ok(Some(tenant.clone())),
        (Some(_), _) => Err(unknown_stream()),
        (None, Tenants::Every) => Ok(None),
        (None, Tenants::Only(names)) => match (names.first(), names.len()) {
            (None, _) => Err(unknown_stream()),
            (Some(one), 1) => Ok(Some(one.clone())),
            (Some(_), count) => Err(Refusal::new(
                Code::BadParameter,
                format!("you see {count} tenants, and one read is about one of them"),
                "Say which tenant.",
            )),
        },
    }
}

pub(super) fn window_of(
    request: &Request,
    limits: &Limits,
    runbook: Option<&Runbook>,
    bounded: bool,
) -> Result<Window, Refusal> {
    if limits.window_s == 0 {
        let suggestion = "Ask whoever gives out roles.";
        return Err(Refusal::new(Code::Forbidden, "no role of yours may read events", suggestion));
    }
    let (Some(from_ns), Some(to_ns)) = (request.from_ns, request.to_ns) else {
        return Err(Refusal::new(
            Code::NoWindow,
            "a read says from when and to when",
            "Give both `--from` and `--to`, as 2024-07-30 or 2024-07-30T21:53:13Z.",
        ));
    };
    let window = Window::new(from_ns, to_ns).map_err(|_| {
        Refusal::new(
            Code::ReversedWindow,
            "the window ends before it begins",
            "Exchange `--from` and `--to`.",
        )
    })?;
    let most = runbook.map_or(limits.window_s, |runbook| limits.window_s.min(runbook.window_s));
    if bounded && window.length_ns() > most.saturating_mul(1_000_000_000) {
        let days = window.length_ns().div_ceil(scan::DAY_NS.unsigned_abs());
        let most = most as f64 / 86_400.0;
        return Err(Refusal::new(
            Code::WindowTooLong,
            format!("the window is {days} days long, and you may look at {most} at once"),
            format!("Ask for at most {most} days at a time."),
        ));
    }
    Ok(window)
}

pub(super) fn rows_of(request: &Request, limits: &Limits, whole: bool) -> Result<u64, Refusal> {
    match request.rows {
        Some(0) => {
            let suggestion = "Ask for at least one row, or leave the number out.";
            Err(Refusal::new(Code::BadParameter, "an answer of no rows is none", suggestion))
        }
        // What is made of rows is made of all of them.
        Some(rows) if !whole => Ok(rows.min(limits.rows)),
        _ => Ok(limits.rows),
    }
}

/// What an audit costs at most.
pub(super) fn audited(events: u64, window: &Window) -> Result<Estimate, Refusal> {
    let days = u32::try_from(window.days().len()).unwrap_or(u32::MAX);
    let estimate = Estimate { rows: events, bytes: events.saturating_mul(MAX_AUDITED_BYTES), days };
    if events > MAX_AUDITED_EVENTS {
        let message = format!(
            "the sources have {events} events in the days of the window, and an audit goes through at most {MAX_AUDITED_EVENTS}"
        );
        let suggestion = "Audit a shorter window at a time.";
        return Err(Refusal::new(Code::OverBudget, message, suggestion).costing(estimate));
    }
    Ok(estimate)
}

pub(super) fn within_budget(
    limits: &Limits,
    runbook: Option<&Runbook>,
    window: &Window,
    estimate: &Estimate,
) -> Result<Budget, Refusal> {
    let most = runbook.map_or(limits.query_bytes, |runbook| limits.query_bytes.min(runbook.max_bytes));
    if estimate.bytes > most {
        // How long a window would be that costs as much as is allowed, if events came evenly.
        let seconds = window.length_ns() as f64 / 1e9 * (most as f64 / estimate.bytes as f64);
        let suggestion = format!(
            "Ask for a window of about {} hours, or for something more exact.",
            (seconds / 3_600.0).floor()
        );
        let message = format!(
            "it may read {} bytes in {} days, and you may read {most} at once",
            estimate.bytes, estimate.days
        );
        return Err(Refusal::new(Code::OverBudget, message, suggestion).costing(*estimate));
    }
    Ok(Budget { rows: limits.rows, bytes: estimate.bytes, timeout_ms: limits.timeout_ms })
}

/// A count for somebody who sees tokens tells only of groups in which nobody stands out.
pub(super) fn big_enough(
    reduce: Option<Reduce>,
    identity: &Sight,
    limits: &Limits,
    estimate: &Estimate,
) -> Result<Option<Reduce>, Refusal> {
    let Some(Reduce::Count { by, .. }) = reduce else { return Ok(reduce) };
    let least = if *identity == Sight::Clear { 1 } else { limits.least_group };
    if estimate.rows < least {
        let message =
            format!("it would count {} events at most, and no group below {least} is told", estimate.rows);
        let suggestion = "Ask for a longer window, or for the rows themselves.";
        return Err(Refusal::new(Code::SmallGroup, message, suggestion).costing(*estimate));
    }
    Ok(Some(Reduce::Count { by, least }))
}
