//! What the shipped runbooks find: in recorded events, and that it is no more.
//!
//! Scans are answered by a list that is searched from end to end: whether an index gives the same is the index's to test.

use std::mem::discriminant;
use std::{env, fs};

use epigraph_audit::guard::Role;
use epigraph_audit::guard::approval::{Approval, ApprovalId};
use epigraph_audit::guard::plan::{Decision, Known, Plan, Request, Unavailable};
use epigraph_audit::guard::quota::Standing;
use epigraph_audit::guard::refusal::Code;
use epigraph_audit::query::row::Pseudonyms;
use epigraph_audit::query::{
    Access, Column, Estimate, Group, Pseudonym, Row, Scan, Standing as There, Window, reduce,
};
use epigraph_core::LeafIndex;
use epigraph_event::decode::{Context, Decoded, cloudevents, cloudtrail, k8s};
use epigraph_event::v1::Result as Outcome;

use crate::support::{NOW, World, guard, pages, plan as plan_of, planned, reader, run, token};

/// Rows in the order of the files: row i has leaf i.
struct List(Vec<Row>);

struct Plain;

impl Pseudonyms for Plain {
    type Error = std::convert::Infallible;

    fn subject(&mut self, _: &str, id: &str) -> Result<Option<Pseudonym>, Self::Error> {
        Ok(Some(token(Column::Actor, id)))
    }

    fn thing(&mut self, _: &str, id: &str) -> Result<Option<Pseudonym>, Self::Error> {
        Ok(Some(token(Column::Resource, id)))
    }

    fn address(&mut self, address: &str) -> Result<Option<Pseudonym>, Self::Error> {
        Ok(Some(token(Column::Address, address)))
    }
}

impl Known for List {
    fn estimate(&self, _: &Scan) -> Result<Option<Estimate>, Unavailable> {
        Ok(Some(Estimate { rows: self.0.len() as u64, bytes: 1_000, days: 1 }))
    }

    fn pseudonyms(
        &self,
        _: Option<&str>,
        _: &Window,
        column: Column,
        id: &str,
    ) -> Result<Vec<Pseudonym>, Unavailable> {
        let found = match column {
            Column::Actor => Plain.subject("", id),
            Column::Address => Plain.address(id),
            _ => Plain.thing("", id),
        };
        Ok(found.unwrap_or_default().into_iter().collect())
    }

    fn numbered(&self, _: &Window) -> Result<u64, Unavailable> {
        Ok(self.0.len() as u64)
    }

    fn approval(&self, _: &ApprovalId) -> Result<Option<Approval>, Unavailable> {
        Ok(None)
    }
}

impl List {
    fn of(lines: &str, decode: fn(&[u8], &Context) -> Vec<Decoded>) -> List {
        let context = Context::default();
        let events = lines.lines().flat_map(|line| decode(line.as_bytes(), &context));
        let row = |(at, decoded): (usize, Decoded)| {
            let event = decoded.unwrap_or_else(|rejected| rejected.into_event(&context));
            let place = (LeafIndex::new(at as u64).unwrap(), at as u64, 0);
            Row::of(place, &event.core, Some(&event.identity), &mut Plain, |text| text.into())
                .unwrap_or_else(|never| match never {})
        };
        List(events.enumerate().map(row).collect())
    }

    fn recorded(name: &str, decode: fn(&[u8], &Context) -> Vec<Decoded>) -> Option<List> {
        let Some(shared) = env::var_os("EPIGRAPH_SHARED") else {
            println!("skipped: EPIGRAPH_SHARED does not say where recorded events are");
            return None;
        };
        let path = std::path::Path::new(&shared).join("data").join(name);
        Some(List::of(&fs::read_to_string(path).unwrap(), decode))
    }

    fn scan(&self, scan: &Scan) -> Vec<Row> {
        let finds = |row: &&Row| {
            let by = match &scan.access {
                Access::Time => true,
                Access::Actor(these) => row.actors().iter().any(|actor| these.contains(actor)),
                Access::Resource(these) => row.things().iter().any(|thing| these.contains(thing)),
                Access::Request(id) => {
                    *row.request_id == **id || row.trace_id.is_some_and(|of| of.to_string() == *id)
                }
                Access::Outcome { result, action } => {
                    row.result == *result && action.as_ref().is_none_or(|action| *row.action == **action)
                }
            };
            let stream = scan.stream.as_ref().is_none_or(|stream| *row.source_kind == **stream);
            by && stream && scan.window.contains(row.occurred_at_ns) && scan.filter.takes(row)
        };
        self.0.iter().filter(finds).cloned().collect()
    }

    /// What an auditor is answered: groups of leaves; what is not made into groups is one.
    fn ask(
        &self,
        id: &str,
        given: &[(&str, &str)],
        (from, to): (&str, &str),
    ) -> Vec<(Vec<u64>, Option<There>, Vec<usize>)> {
        let day = |text: &str| Some(epigraph_audit::runbook::bind::time(text).unwrap());
        let request = Request { from_ns: day(from), to_ns: day(to), ..run(id, given) };
        let who = reader(Role::Auditor);
        let decision = guard().plan(&who, &request, self, &Standing::default(), &pages(), NOW);
        let Decision::Run(plan) = decision else { panic!("{id}: {decision:?}") };
        let plan: Plan = *plan;
        let scans = plan.scans.iter().map(|scan| self.scan(scan)).collect();
        let rows = reduce::merge(scans, false, plan.budget.rows);
        let leaves = |rows: &[Row]| rows.iter().map(|row| row.leaf.get()).collect();
        match plan.reduce {
            None => vec![(leaves(&rows), None, Vec::new())],
            Some(reduce) => {
                let group = |group: Group| (leaves(&group.rows), group.standing, group.gaps);
                reduce.apply(rows).groups.into_iter().map(group).collect()
            }
        }
    }

    fn leaves(&self, id: &str, given: &[(&str, &str)], window: (&str, &str)) -> Vec<Vec<u64>> {
        self.ask(id, given, window).into_iter().map(|(leaves, ..)| leaves).collect()
    }
}

const SUMMER: (&str, &str) = ("2024-07-30", "2024-08-03");

// Which lines these are was read off the files with another program.
#[test]
fn the_runbooks_find_the_cases_in_recorded_cloudtrail() {
    let Some(list) = List::recorded("cloudtrail.jsonl", cloudtrail::decode) else { return };
    let check = |id: &str, given: &[(&str, &str)], window, expected: Vec<Vec<u64>>| {
        assert_eq!(list.leaves(id, given, window), expected, "{id} {given:?}");
    };
    let ann = "arn:aws:iam::309303190113:user/christophe";
    check("actor-activity", &[("actor", ann)], SUMMER, vec![(29..64).collect()]);
    check(
        "actor-activity",
        &[("actor", ann)],
        ("2024-08-01T12:04:00Z", "2024-08-01T12:04:04Z"),
        vec![vec![48, 49]],
    );
    check("actor-activity", &[("actor", &ann[1..])], SUMMER, vec![vec![]]);

    // A denied role is assumed at the third try; its credentials try 15 times to read what they may not.
    let address = [("by", "address"), ("least", "10"), ("within", "1m")];
    check("repeated-failures", &address, SUMMER, vec![[10, 11].into_iter().chain(14..29).collect()]);
    check(
        "repeated-failures",
        &[("by", "actor"), ("least", "10"), ("within", "1m")],
        SUMMER,
        vec![(14..29).collect()],
    );
    check("repeated-failures", &[("by", "actor"), ("least", "16"), ("within", "1h")], SUMMER, vec![]);
    check("repeated-failures", &[("by", "actor"), ("least", "15"), ("within", "3s")], SUMMER, vec![]);
    check("failed-logins", &[], SUMMER, vec![vec![10, 11, 12]]);
    check("failed-logins", &[("failures", "3")], SUMMER, vec![]);
    check("failed-logins", &[("within", "1s")], SUMMER, vec![]);
    check("key-activity", &[("key", "ASIA4URVX2JM5MT0ZGK8")], SUMMER, vec![(13..29).collect()]);
    check("key-activity", &[("key", "AKIAXAFZN8JEPF6L682H")], SUMMER, vec![vec![71]]);

    check(
        "privilege-grants",
        &[],
        ("2024-08-01T12:20:00Z", "2024-08-01T13:45:00Z"),
        vec![vec![64, 70, 71, 72, 74]],
    );
    let last = ("2024-07-31", "2024-08-01");
    check("access-outside-hours", &[("offset", "120")], last, vec![(10..29).collect()]);
    check("access-outside-hours", &[], last, vec![vec![]]);
}

#[test]
fn the_runbooks_find_the_cases_in_recorded_kubernetes() {
    let Some(list) = List::recorded("k8s-audit.jsonl", k8s::decode) else { return };
    let autumn = ("2018-10-25", "2018-10-27");
    assert_eq!(
        list.leaves("resource-activity", &[("resource", "my-config")], autumn),
        [(9..16).collect::<Vec<u64>>()]
    );
    let request = [("request", "693f4726-2430-450a-83e1-123c050fde98")];
    assert_eq!(list.leaves("request-trace", &request, autumn), [[16]]);
    let pod = [("resource", "nginx-deployment-6dfd8b84dc-6dkjc")];
    assert_eq!(list.leaves("who-read", &pod, autumn), [[4]]);
    assert_eq!(list.leaves("privilege-grants", &[], autumn), [[21, 22, 23, 24, 31, 32, 33]]);

    let history = |name, at| list.ask("resource-history", &[("resource", name), ("at", at)], autumn);
    assert_eq!(history("nginx", "end"), [(vec![8, 18, 19], Some(There::There), vec![])]);
    assert_eq!(history("nginx", "2018-10-26T13:12:04Z"), [(vec![8, 18], Some(There::Gone), vec![])]);
    assert_eq!(history("nginx", "2018-10-26T09:31:36Z"), [(vec![], Some(There::Unknown), vec![])]);
    // Made, deleted, made, and made again without having been deleted.
    assert_eq!(history("some-reader", "end"), [(vec![21, 23, 31, 32], Some(There::There), vec![3])]);
}

/// What services say of one trace is found by it, and no other trace's; by the request each finds its own.
#[test]
fn a_trace_is_found_through_the_services_that_it_went_through() {
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let call = |at: u32, of: &str, request: &str| {
        format!(
            r#"{{"specversion":"1.0","id":"e{at}","source":"shop","type":"order","time":"2024-08-01T03:00:0{at}Z","traceparent":"00-{of}-b7ad6b7169203331-01","correlationid":"{request}"}}"#
        )
    };
    let lines = [
        call(0, trace, "one"),
        call(1, &trace.replace('0', "1"), "one"),
        call(2, trace, "two"),
        r#"{"specversion":"1.0","id":"e3","source":"shop","type":"order","time":"2024-08-01T03:00:03Z"}"#
            .into(),
    ];
    let list = List::of(&lines.join("\n"), cloudevents::decode);
    let find = |id| list.leaves("request-trace", &[("request", id)], ("2024-08-01", "2024-08-02"));
    assert_eq!(find(trace), [[0, 2]]);
    assert_eq!(find("one"), [[0, 1]]);
    assert_eq!(find(&trace[..31]), [[0_u64; 0]]);
}

fn planted(time: &str, verb: &str, code: u16, user: &str, address: &str, name: &str) -> String {
    let id = format!("{time}-{user}-{name}-{code}");
    format!(
        r#"{{"auditID":"{id}","verb":"{verb}","stageTimestamp":"{time}","user":{{"username":"{user}"}},"sourceIPs":["{address}"],"#
    ) + &format!(
        r#""objectRef":{{"resource":"secrets","name":"{name}"}},"responseStatus":{{"code":{code}}}}}"#
    )
}

#[test]
fn what_is_planted_is_found_and_noise_is_not() {
    let mut lines = Vec::new();
    let mut add = |time: String, verb, code, user, address, name| {
        lines.push(planted(&time, verb, code, user, address, name))
    };
    // Six denials of many users from one address in 50 seconds, on different secrets.
    let names = ["a", "b", "c", "d", "e", "f"];
    for (at, name) in names.into_iter().enumerate() {
        add(format!("2024-08-01T03:00:{}0Z", at), "get", 403, name, "10.0.0.1", name);
    }
    // Four of one user: too few. One an hour later: too late.
    for at in 0..4 {
        add(format!("2024-08-01T10:00:0{at}Z"), "get", 403, "noise", "10.0.0.2", "n");
    }
    add("2024-08-01T11:00:00Z".into(), "get", 403, "noise", "10.0.0.2", "n");
    // Successes in between are no failures.
    add("2024-08-01T10:00:05Z".into(), "get", 200, "noise", "10.0.0.2", "n");
    let list = List::of(&lines.join("\n"), k8s::decode);
    let day = ("2024-08-01", "2024-08-02");
    let run = |by| list.leaves("repeated-failures", &[("by", by), ("least", "5"), ("within", "1m")], day);
    assert_eq!(run("address"), [[0, 1, 2, 3, 4, 5]]);
    assert_eq!(run("actor"), [[0; 0]; 0]);
    assert_eq!(list.leaves("access-outside-hours", &[], day), [[0, 1, 2, 3, 4, 5]]);
    let who_read = |name| list.leaves("who-read", &[("resource", name)], day);
    assert_eq!((who_read("c"), who_read("z")), (vec![vec![2]], vec![vec![]]));
}

// Broken to see it fail: the scan kept as it was, without its estimate; the filter left out.
#[test]
fn what_is_too_much_for_an_index_is_found_by_time() {
    let by_outcome = discriminant(&Access::Outcome { result: Outcome::Failure, action: None });
    let by_time = discriminant(&Access::Time);
    let (who, request) = (reader(Role::Auditor), run("repeated-failures", &[]));
    let usual = planned(&who, &request, &World::default());
    let world = World {
        estimate: Estimate { rows: 7, bytes: 70, days: 1 },
        too_much: vec![by_outcome],
        ..World::default()
    };
    let plan = planned(&who, &request, &world);
    assert_eq!((plan.scans.len(), plan.estimate.rows), (2, 14));
    let line = |code: &str| {
        format!(
            r#"{{"eventName":"GetUser","eventSource":"iam.amazonaws.com","eventTime":"2024-07-31T21:53:13Z"{code}}}"#
        )
    };
    let lines = [line(""), line(r#","errorCode":"AccessDenied""#), line(r#","errorCode":"NoSuchEntity""#)];
    let List(rows) = List::of(&lines.join("\n"), cloudtrail::decode);
    for (scan, usual) in plan.scans.iter().zip(&usual.scans) {
        assert_eq!(scan.access, Access::Time);
        let taken = |scan: &Scan| {
            let anywhen = Window::new(0, i64::MAX).unwrap();
            let scan = Scan { window: anywhen, ..scan.clone() };
            rows.iter().map(|row| scan.takes(row)).collect::<Vec<_>>()
        };
        assert_eq!(taken(scan), taken(usual));
        assert_eq!(taken(scan).iter().filter(|taken| **taken).count(), 1);
    }

    let world = World { too_much: vec![by_outcome, by_time], ..World::default() };
    let Decision::Refused(refusal) = plan_of(&who, &request, &world) else { panic!() };
    assert_eq!(refusal.code, Code::BadParameter);
}
