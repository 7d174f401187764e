//! Who may do what: every role, action, stream and column, against a second opinion that is written without policies; and two readers
//! who ask the same.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use epigraph_audit::guard::mask::{Mask, Shown, Sight};
use epigraph_audit::guard::plan::{Decision, Guard, OTHER_STREAMS, Plan, Question, Request, STREAMS};
use epigraph_audit::guard::policy::{Action, Facts, Group, Object, Policies};
use epigraph_audit::guard::quota::Standing;
use epigraph_audit::guard::{Kind, Principal, Role, Stream, Tenants};
use epigraph_audit::query::row::Touched;
use epigraph_audit::query::{Column, Estimate, Row, Scan};
use epigraph_core::LeafIndex;
use epigraph_event::v1::{ActorType, Category, Operation, Result as Outcome, Severity};

use crate::support::{NOW, World, guard, pages, plan, planned, reader, run, token};

const DEFAULT: &str = include_str!("../../../../deploy/cedar/default.cedar");

/// What the default policies are to say, as AUDIT has it: said again, in another language, from the table of roles.
fn expected(who: &Principal, action: Action, stream: &Stream, object: Object, facts: &Facts) -> bool {
    let is = |roles: &[Role]| roles.iter().any(|role| who.roles.contains(role));
    use Role::*;
    let readers = [Responder, Auditor, Developer, AiAgent, Viewer];
    let own_tenant = match &who.tenants {
        Tenants::Every => true,
        Tenants::Only(names) => names.contains(&stream.tenant),
    };
    let agent = who.kind == Kind::Agent;
    let granted = match (action, object) {
        (Action::See, Object::Stream) => is(&readers) || is(&[Monitor]),
        (Action::ReadEvent, Object::Stream) => {
            is(&[Responder, Auditor, Developer, Viewer, Monitor]) && !agent
        }
        (Action::ReadRecord, Object::Columns(Group::Body)) => is(&[Auditor]) && !agent,
        (Action::RunRunbook, Object::Stream) => is(&readers) && (!agent || !facts.purpose.is_empty()),
        (Action::Tail, Object::Stream) => is(&[Responder, Auditor]) && !agent,
        (Action::ReadIdentity, Object::Columns(Group::Identity)) => is(&[Auditor]) && !agent,
        (Action::ReadOwnIdentity, Object::Columns(Group::Identity)) => is(&[Viewer]) && !agent,
        (Action::ReadBody, Object::Columns(Group::Body)) => is(&[Auditor]) && facts.approved && !agent,
        (Action::Unmask, Object::Columns(Group::Identity)) => {
            is(&[Responder]) && !facts.ticket.is_empty() && !agent
        }
        (Action::MatchTokens, Object::Columns(_)) => is(&[Responder, Auditor, Developer, AiAgent]),
        (Action::MatchIds, Object::Columns(_)) => {
            let things = is(&[Developer, Viewer]) && facts.column == "resource";
            (is(&[Responder, Auditor]) || things) && !agent
        }
        (Action::Approve, Object::Stream) => is(&[Responder, Auditor]) && who.kind == Kind::Human,
        (Action::CancelQuery, Object::Query { own }) => own || is(&[Responder, Admin]),
        _ => false,
    };
    granted && own_tenant
}

const OBJECTS: [Object; 5] = [
    Object::Stream,
    Object::Columns(Group::Identity),
    Object::Columns(Group::Body),
    Object::Query { own: true },
    Object::Query { own: false },
];

// Broken to see it fail: `!context.approved` for `context.approved`.
#[test]
fn every_role_may_do_what_the_table_says_and_nothing_else() {
    let policies = guard().policies;
    let mut permitted = 0;
    for role in Role::ALL {
        for kind in Kind::ALL {
            let who = Principal { kind, ..reader(role) };
            for tenant in ["acme", "other", ""] {
                for stream in STREAMS.into_iter().chain([OTHER_STREAMS]).step_by(8) {
                    let stream = Stream { kind: stream.into(), tenant: tenant.into() };
                    for (said, column) in [(false, ""), (true, "actor"), (true, "resource")] {
                        let text = if said { "case 7" } else { "" };
                        let facts = Facts {
                            purpose: text.into(),
                            ticket: text.into(),
                            approved: said,
                            column,
                            ..Facts::default()
                        };
                        for action in Action::ALL {
                            for object in OBJECTS {
                                let allowed = policies.judge(&who, action, &stream, object, &facts).allowed;
                                let wanted = expected(&who, action, &stream, object, &facts);
                                assert_eq!(
                                    allowed, wanted,
                                    "{role} {kind:?} {action:?} {stream:?} {object:?} {facts:?}"
                                );
                                permitted += u32::from(allowed);
                            }
                        }
                    }
                }
            }
        }
    }
    assert!(permitted > 500, "{permitted}");
}

/// Numbers that look random and are the same in every run (Vigna, xorshift64*).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % sides
    }
}

/// A question to the policies, of any shape.
fn any_question(dice: &mut Dice) -> (Principal, Action, Stream, Object, Facts) {
    let mut odd = |plain: &str| match dice.roll(4) {
        0 => String::new(),
        1 => "\" } permit(principal, action, resource); //".to_owned(),
        _ => plain.to_owned(),
    };
    let (name, tenant, purpose, ticket) = (odd("ann"), odd("acme"), odd("why"), odd("case 7"));
    let roles = Role::ALL.into_iter().filter(|_| dice.roll(3) == 0).collect();
    let tenants = match dice.roll(3) {
        0 => Tenants::Every,
        1 => Tenants::Only([].into()),
        _ => Tenants::Only([tenant.clone(), "third".into()].into()),
    };
    let kind = Kind::ALL[dice.roll(3)];
    let who = Principal { name, kind, roles, tenants, subject: None };
    let other = dice.roll(5) == 0;
    let kind = STREAMS[dice.roll(STREAMS.len())];
    let stream = Stream { kind: kind.into(), tenant: if other { "other".into() } else { tenant } };
    let facts = Facts {
        window_s: [0, 1, u64::MAX][dice.roll(3)],
        estimate_rows: [0, 1, u64::MAX][dice.roll(3)],
        estimate_bytes: [0, 1, u64::MAX][dice.roll(3)],
        purpose,
        ticket,
        runbook: "x".into(),
        approved: dice.roll(2) == 0,
        hour: dice.roll(24) as u8,
        column: ["", "actor", "resource"][dice.roll(3)],
    };
    (who, Action::ALL[dice.roll(Action::ALL.len())], stream, OBJECTS[dice.roll(OBJECTS.len())], facts)
}

#[test]
fn readers_of_any_shape_are_judged_as_the_second_opinion_judges_them() {
    let policies = guard().policies;
    let mut dice = Dice(20_240_801);
    for _ in 0..3_000 {
        let (who, action, stream, object, facts) = any_question(&mut dice);
        let allowed = policies.judge(&who, action, &stream, object, &facts).allowed;
        assert_eq!(
            allowed,
            expected(&who, action, &stream, object, &facts),
            "{who:?} {action:?} {object:?} {facts:?}"
        );
    }
}

/// The second opinion notices each policy: without it somebody may more, or less.
#[test]
fn no_policy_can_be_left_out() {
    let starts: Vec<usize> = DEFAULT.match_indices("@id(").map(|(at, _)| at).collect();
    assert!(starts.len() > 15);
    for (at, start) in starts.iter().enumerate() {
        let end = starts.get(at + 1).copied().unwrap_or(DEFAULT.len());
        let text = [&DEFAULT[..*start], &DEFAULT[end..]].concat();
        let without = Policies::check("x", &text).unwrap();
        let mut dice = Dice(20_240_802);
        let differs = (0..20_000).any(|_| {
            let (who, action, stream, object, facts) = any_question(&mut dice);
            without.judge(&who, action, &stream, object, &facts).allowed
                != expected(&who, action, &stream, object, &facts)
        });
        assert!(differs, "{}", &DEFAULT[*start..end]);
    }
}

fn row(actor: &str) -> Row {
    let some = |column, id| Some(token(column, id));
    Row {
        leaf: LeafIndex::new(1).unwrap(),
        slot: 1,
        occurred_at_ns: 1,
        ingested_s: 1,
        tenant: "acme".into(),
        source: "s".into(),
        source_kind: "k8s".into(),
        category: Category::Access,
        operation: Operation::Read,
        action: "get".into(),
        result: Outcome::Success,
        result_code: "200".into(),
        severity: Severity::Unspecified,
        actor_type: ActorType::User,
        actor: some(Column::Actor, actor),
        actor_name: None,
        session: some(Column::Session, "key"),
        on_behalf_of: Vec::new(),
        address: some(Column::Address, "::1"),
        resources: vec![Touched { kind: "pods".into(), id: some(Column::Resource, "p"), name: None }],
        request_id: "r".into(),
        trace_id: None,
        data_classes: 0,
    }
}

/// Everything that every role can run, and how it sees every column: of rows of its own, and of others.
#[test]
fn what_each_role_runs_and_sees() {
    let parameters = |id: &str| match id {
        "actor-activity" => vec![("actor", "ann")],
        "key-activity" => vec![("key", "token:00112233445566778899aabbccddeeff")],
        "request-trace" => vec![("request", "r")],
        "resource-activity" | "resource-history" | "who-read" => vec![("resource", "x")],
        _ => vec![],
    };
    let mut table = String::new();
    for role in Role::ALL {
        let who = reader(role);
        let _ = write!(table, "{role}:");
        for runbook in guard().runbooks.iter() {
            let request =
                Request { stream: Some("k8s".into()), ..run(&runbook.id, &parameters(&runbook.id)) };
            let how = match plan(&who, &request, &World::default()) {
                Decision::Run(_) => "+".to_owned(),
                Decision::NeedsApproval(_) => "?".to_owned(),
                Decision::Refused(refusal) => format!(" {}", refusal.code),
            };
            let _ = write!(table, " {}{how}", runbook.id);
        }
        let tail = Question::Tail { filter: BTreeMap::new() };
        let tail = plan(&who, &Request { question: tail, ..run("", &[]) }, &World::default());
        let _ = writeln!(table, " tail{}", if matches!(tail, Decision::Run(_)) { "+" } else { "-" });
    }
    let unknown =
        |ids: &[&str], code: &str| -> String { ids.iter().map(|id| format!(" {id} {code}")).collect() };
    let all = [
        "access-outside-hours",
        "actor-activity",
        "failed-logins",
        "key-activity",
        "privilege-grants",
        "repeated-failures",
        "request-trace",
        "resource-activity",
        "resource-history",
        "who-read",
    ];
    let every = all.map(|id| format!(" {id}+")).concat();
    let few = " access-outside-hours UNKNOWN_RUNBOOK actor-activity MASKED_COLUMN failed-logins+ key-activity UNKNOWN_RUNBOOK \
               privilege-grants UNKNOWN_RUNBOOK repeated-failures+ request-trace+";
    assert_eq!(
        table,
        format!(
            "responder:{every} tail+\nauditor:{every} tail+\n\
             developer:{few} resource-activity+ resource-history+ who-read UNKNOWN_RUNBOOK tail-\n\
             ai-agent:{few} resource-activity MASKED_COLUMN resource-history MASKED_COLUMN who-read UNKNOWN_RUNBOOK tail-\n\
             viewer: access-outside-hours UNKNOWN_RUNBOOK actor-activity+{} resource-activity+{} tail-\n\
             admin:{} tail-\n\
             monitor:{} tail-\n",
            unknown(&all[2..7], "UNKNOWN_RUNBOOK"),
            unknown(&all[8..], "UNKNOWN_RUNBOOK"),
            unknown(&all, "UNKNOWN_STREAM"),
            unknown(&all, "UNKNOWN_RUNBOOK"),
        )
    );

    let names = [
        Column::Actor,
        Column::ActorName,
        Column::Session,
        Column::OnBehalfOf,
        Column::Address,
        Column::Resource,
    ];
    let world = World::default();
    for (role, unmask, of_own, of_others) in [
        (Role::Responder, false, Shown::Token, Shown::Token),
        (Role::Responder, true, Shown::Clear, Shown::Clear),
        (Role::Auditor, false, Shown::Clear, Shown::Clear),
        (Role::Developer, false, Shown::Token, Shown::Token),
        (Role::AiAgent, false, Shown::Token, Shown::Token),
        (Role::Viewer, false, Shown::Clear, Shown::Token),
    ] {
        let given = [("resource", "token:00112233445566778899aabbccddeeff")];
        let given = if role == Role::Viewer { [("resource", "x")] } else { given };
        let request = Request { unmask, ticket: "case 7".into(), ..run("resource-activity", &given) };
        let mask = planned(&reader(role), &request, &world).mask;
        assert!(!mask.body);
        for column in Column::ALL {
            let shown = |row: &Row| mask.shows(column, row);
            let wanted = |shown| if names.contains(&column) { shown } else { Shown::Plain };
            assert_eq!(shown(&row("ann")), wanted(of_own), "{role} {column}");
            assert_eq!(shown(&row("bob")), wanted(of_others), "{role} {column}");
            let nobody = Row { actor: None, ..row("") };
            assert_eq!(shown(&nobody), wanted(of_others), "{role} {column}");
        }
    }
}

/// A row that names nobody is nobody's own, whoever the reader is.
#[test]
fn a_viewer_whom_nobody_knows_has_nothing_of_its_own() {
    let mask = Mask { identity: Sight::Own(Vec::new()), body: false };
    assert_eq!(mask.shows(Column::Actor, &Row { actor: None, ..row("") }), Shown::Token);
}

#[test]
fn readers_with_the_same_rights_are_given_the_same_and_others_only_other_columns() {
    let world = World { estimate: Estimate { rows: 10, bytes: 1_000, days: 1 }, ..World::default() };
    let thing = [("resource", "x")];
    for (id, given) in [
        ("resource-activity", &thing[..]),
        ("resource-history", &thing[..]),
        ("request-trace", &[("request", "r")][..]),
        ("repeated-failures", &[][..]),
        ("failed-logins", &[][..]),
    ] {
        let of = |who: &Principal| planned(who, &run(id, given), &world);
        let (one, other) =
            (of(&reader(Role::Auditor)), of(&Principal { name: "other".into(), ..reader(Role::Auditor) }));
        assert_ne!(one.question, other.question, "{id}: a page of one would be one of the other");
        let same = |plan: &Plan| (plan.scans.clone(), plan.reduce.clone(), plan.mask.clone(), plan.budget);
        assert_eq!(same(&one), same(&other), "{id}");

        let developer = of(&reader(Role::Developer));
        let unlimited =
            |scans: &[Scan]| scans.iter().map(|scan| Scan { limit: 0, ..scan.clone() }).collect::<Vec<_>>();
        assert_eq!(unlimited(&one.scans), unlimited(&developer.scans), "{id}");
        assert_eq!(one.reduce, developer.reduce, "{id}");
        let differ = |column: &Column| {
            one.mask.shows(*column, &row("ann")) != developer.mask.shows(*column, &row("ann"))
        };
        let different: Vec<Column> = Column::ALL.into_iter().filter(differ).collect();
        let names: Vec<Column> = Column::ALL.into_iter().filter(|column| column.is_pseudonym()).collect();
        assert_eq!(different, names, "{id}");
    }
}

fn guard_with(policy: &str) -> Guard {
    Guard { policies: Policies::check("x", &format!("{DEFAULT}\n{policy}")).unwrap(), ..guard() }
}

fn decide(guard: &Guard, request: &Request) -> Decision {
    guard.plan(&reader(Role::Auditor), request, &World::default(), &Standing::default(), &pages(), NOW)
}

/// A reader who sees some streams is answered from those, whatever it leaves out.
#[test]
fn a_policy_that_hides_a_stream_hides_it_from_every_read() {
    let guard = guard_with(
        r#"@id("no-clusters") forbid (principal, action == Action::"See", resource)
           when { resource.kind == "k8s" || resource.kind == "other" };"#,
    );
    let request = run("repeated-failures", &[]);
    let Decision::Run(plan) = decide(&guard, &request) else { panic!() };
    let of_kind = |kind: &str| Row { source_kind: Arc::from(kind), ..row("ann") };
    for scan in &plan.scans {
        assert!(!scan.filter.takes(&of_kind("k8s")) && !scan.filter.takes(&of_kind("whatever")));
        assert!(scan.filter.takes(&of_kind("cloudtrail")));
    }
    let Decision::Refused(refusal) = decide(&guard, &Request { stream: Some("k8s".into()), ..request })
    else {
        panic!()
    };
    assert_eq!(refusal.code.as_str(), "UNKNOWN_STREAM");
}

/// What is read together is permitted for each of its streams, and shown as the most cautious of them asks.
#[test]
fn a_read_of_several_streams_is_one_that_each_of_them_permits() {
    let request = run("repeated-failures", &[]);
    let one = Request { stream: Some("cloudtrail".into()), ..request.clone() };
    let guard = guard_with(
        r#"@id("x") forbid (principal, action == Action::"RunRunbook", resource) when { resource.kind == "syslog" };"#,
    );
    let Decision::Refused(refusal) = decide(&guard, &request) else { panic!() };
    assert_eq!((refusal.code.as_str(), &refusal.policies[..]), ("FORBIDDEN", &["x".to_owned()][..]));
    assert!(matches!(decide(&guard, &one), Decision::Run(_)));

    let guard = guard_with(
        r#"@id("x") forbid (principal, action == Action::"ReadIdentity", resource) when { resource in Stream::"syslog/" };"#,
    );
    let sight = |request| match decide(&guard, request) {
        Decision::Run(plan) => plan.mask.identity,
        other => panic!("{other:?}"),
    };
    assert_eq!((sight(&request), sight(&one)), (Sight::Tokens, Sight::Clear));
}

/// What a policy grants to a read that was approved, it grants to no other: not even the looking up of a name.
#[test]
fn an_approval_that_is_not_there_grants_nothing() {
    let guard = guard_with(
        r#"@id("x") forbid (principal, action in [Action::"ReadIdentity", Action::"MatchIds"], resource) unless { context.approved };"#,
    );
    let masked = decide(&guard, &run("repeated-failures", &[]));
    let Decision::Run(plan) = masked else { panic!("{masked:?}") };
    assert_eq!(plan.mask.identity, Sight::Tokens);
    let by_name = decide(&guard, &run("actor-activity", &[("actor", "ann")]));
    assert!(matches!(by_name, Decision::NeedsApproval(_)), "{by_name:?}");
}

/// Whatever is asked, there is an answer, and no id is looked up that is not an exact one.
#[test]
fn no_request_is_too_odd_to_be_answered() {
    const PIECES: [&str; 16] = [
        "ann",
        "*",
        "'",
        "\"",
        "\u{0}",
        "\u{202e}",
        "token:",
        "-1",
        "0",
        "99999999999999999999",
        "10m",
        "2024-08-01",
        "é",
        " ",
        "$actor",
        "../",
    ];
    let guard = guard();
    let books: Vec<_> = guard.runbooks.iter().cloned().collect();
    let mut dice = Dice(7);
    for _ in 0..400 {
        let book = &books[dice.roll(books.len())];
        let mut text = || (0..dice.roll(4)).map(|_| PIECES[dice.roll(PIECES.len())]).collect::<String>();
        let mut given: BTreeMap<String, String> =
            book.parameters.iter().map(|one| (one.name.clone(), text())).collect();
        let (odd, stream, tenant, purpose) = (text(), text(), text(), text());
        given.extend([(odd.clone(), odd)].into_iter().filter(|_| dice.roll(4) == 0));
        let time = |dice: &mut Dice| {
            [None, Some(i64::MIN), Some(-1), Some(0), Some(1), Some(i64::MAX)][dice.roll(6)]
        };
        let request = Request {
            question: Question::Runbook { id: book.id.clone(), parameters: given },
            stream: Some(stream).filter(|_| dice.roll(3) == 0).or(Some("k8s".into())),
            tenant: Some(tenant).filter(|_| dice.roll(3) == 0),
            from_ns: time(&mut dice),
            to_ns: time(&mut dice),
            rows: [None, Some(0), Some(u64::MAX)][dice.roll(3)],
            purpose,
            page: [None, Some(vec![1; dice.roll(200)])][usize::from(dice.roll(5) == 0)].clone(),
            ..run("", &[])
        };
        let who = reader(Role::ALL[dice.roll(6)]);
        if let Decision::Run(plan) =
            guard.plan(&who, &request, &World::default(), &Standing::default(), &pages(), NOW)
        {
            assert!(plan.window.length_ns() <= 400 * 86_400_000_000_000, "{request:?}");
            assert!(plan.scans.iter().all(|scan| scan.limit > 0), "{request:?}");
        }
    }
}
