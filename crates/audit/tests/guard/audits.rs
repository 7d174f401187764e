//! Audits: every event of a window goes through the same planner, at a cost of its own, for those from whom nothing is kept.

use epigraph_audit::guard::plan::{Decision, Request};
use epigraph_audit::guard::refusal::Code;
use epigraph_audit::guard::{Principal, Role, Tenants};
use epigraph_audit::query::Estimate;

use crate::support::{World, plan, planned, reader, run};

fn audit() -> Request {
    Request { audit: true, ..run("actor-activity", &[("actor", "ann")]) }
}

fn of(events: u64) -> World {
    World { numbered: events, estimate: Estimate { rows: 3, bytes: 300, days: 1 }, ..World::default() }
}

/// What is counted is what is read: events, not the rows of the index that the runbook alone would look at.
///
/// Broken to see it fail: the estimate of the scans kept; `audit` left out of `Asking::question`.
#[test]
fn an_audit_costs_its_events_and_is_a_read_of_its_own() {
    let auditor = reader(Role::Auditor);
    let whole = planned(&auditor, &audit(), &of(40));
    assert_eq!(whole.estimate, Estimate { rows: 40, bytes: 40 * 128 * 1024, days: 1 });
    let answer = planned(&auditor, &Request { audit: false, ..audit() }, &of(40));
    assert_eq!(answer.estimate, Estimate { rows: 3, bytes: 300, days: 1 });
    assert_ne!(whole.question, answer.question, "an approval of one would be one of the other");
    // Above 10 GiB another person agrees, and is told to what.
    let Decision::NeedsApproval(pending) = plan(&auditor, &audit(), &of(81_921)) else { panic!() };
    assert!(pending.question.starts_with("every event of the window of actor-activity"), "{pending:?}");
    assert!(matches!(plan(&auditor, &audit(), &of(81_920)), Decision::Run(_)));
}

/// Broken to see it fail: the numbers' limit, the sight of names and the tenants, each taken out in turn.
#[test]
fn an_audit_is_for_those_from_whom_nothing_is_kept() {
    let check = |who: &Principal, request: &Request, events: u64, expected: Option<Code>| {
        let code = match plan(who, request, &of(events)) {
            Decision::Run(_) => None,
            Decision::Refused(refusal) => Some(refusal.code),
            Decision::NeedsApproval(pending) => panic!("{pending:?}"),
        };
        assert_eq!(code, expected, "{who:?}");
    };
    check(&reader(Role::Auditor), &audit(), 1, None);
    check(&reader(Role::Auditor), &audit(), 100_001, Some(Code::OverBudget));
    for role in [Role::Responder, Role::Developer, Role::Viewer, Role::AiAgent, Role::Monitor] {
        let request = Request { audit: true, ..run("resource-activity", &[("resource", "x")]) };
        check(
            &reader(role),
            &request,
            1,
            Some(if role == Role::Monitor { Code::UnknownRunbook } else { Code::Forbidden }),
        );
    }
    check(&reader(Role::Admin), &audit(), 1, Some(Code::Forbidden));
    // With a case a responder sees names, of every tenant.
    let with_case = Request { unmask: true, ticket: "case 7".into(), ..audit() };
    check(&reader(Role::Responder), &with_case, 1, None);
    // The numbers of a source run through all tenants: who sees one of them is given none of the others.
    let of_one = Principal { tenants: Tenants::Only(["acme".to_owned()].into()), ..reader(Role::Auditor) };
    check(&of_one, &audit(), 1, Some(Code::Forbidden));
    check(&of_one, &Request { tenant: Some("acme".into()), ..audit() }, 1, Some(Code::Forbidden));
}
