//! Questions as time goes by, and at their limits: the test sets the clock and the rules of the service that is asked.
//!
//! An event of 2024-07-31 that names somebody, and four who ask: the house's own client and `second` are auditors, `responder` and
//! `developer` see less.

use std::fs;
use std::path::Path;

use epigraph_event::chain::Tip;
use epigraph_rpc::peer::query::{Part, Query, Question, QuestionParameter};
use serde_json::Value;

use crate::audit::{Audited, NAME, collected};
use crate::clocks::{Clock, HOUR};
use crate::drill::is_documented;
use crate::metrics::{get, sample};
use crate::query::Tail;
use crate::support::{Ended, block_on, epigraph};
use crate::waiting::until;

const PLANTED: &str = "actor=arn:aws:iam::1:user/planted-name";
const ACTION: &str = "action=iam.amazonaws.com:CreateUser";
const DAY: [&str; 4] = ["--from", "2024-07-31", "--to", "2024-08-01"];

struct Asked {
    audited: Audited,
    clock: Clock,
    /// How many seconds it is to noon of the day after this one: no midnight comes in between.
    noon: i64,
    /// The configuration without rules of the test.
    config: String,
    tip: Tip,
}

impl Asked {
    fn new() -> Asked {
        let mut audited = Audited::new();
        let first = audited.batch(&Tip::default(), collected(&audited.entropy));
        let tip = Tip::after(first.signed());
        audited.submit("one", &[first]);
        audited.stop();
        let house = &audited.house;
        let clock = Clock::new(house);
        let made = fs::metadata(house.path("client.toml")).unwrap().modified().unwrap();
        let second = made.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() % 86_400;
        let noon = 36 * HOUR - i64::try_from(second).unwrap();
        clock.set(noon);
        let client = fs::read_to_string(house.path("client.toml")).unwrap();
        let client = client.replace("\"pki/", "\"../pki/").replace("\"sources\"", "\"../sources\"");
        let own = client.lines().find_map(|line| line.strip_prefix("certificate = \"../pki/")).unwrap();
        let own = own.trim_end_matches(".pem\"");
        let mut config = fs::read_to_string(house.path("audit.toml")).unwrap();
        config +=
            &format!("[[authorize]]\nspiffe = \"{NAME}/reader/*\"\nroles = [\"reader\"]\nlogs = [\"*\"]\n");
        for (name, role) in [("second", "auditor"), ("responder", "responder"), ("developer", "developer")] {
            let (ca, spiffe) = (house.path("pki"), format!("{NAME}/reader/{name}"));
            let out = house.path(&format!("pki/{name}"));
            epigraph(&[&"pki", &"issue", &"--ca", &ca, &"--client", &"--spiffe", &spiffe, &"--out", &out])
                .succeeded(&[]);
            config += &format!(
                "[[reader]]\nspiffe = \"{spiffe}\"\nkind = \"human\"\nroles = [\"{role}\"]\ntenants = [\"*\"]\n"
            );
            fs::create_dir(house.path(name)).unwrap();
            fs::copy(house.path("policy"), house.path(&format!("{name}/policy"))).unwrap();
            let client = client.replace(&format!("../pki/{own}."), &format!("../pki/{name}."));
            fs::write(house.path(&format!("{name}/client.toml")), client).unwrap();
        }
        let mut asked = Asked { audited, clock, noon, config, tip };
        asked.start("");
        asked
    }

    fn start(&mut self, rules: &str) {
        let house = &self.audited.house;
        fs::write(house.path("audit.toml"), format!("{}{rules}", self.config)).unwrap();
        let audit = self.clock.start(house, "audit", "audit.toml");
        self.audited.served_by(audit);
    }

    /// The same service under other rules.
    fn rules(&mut self, rules: &str) {
        self.audited.stop();
        self.start(rules);
    }

    fn call(&self, who: &str, args: &[&str]) -> Ended {
        let rest: Vec<&dyn AsRef<std::ffi::OsStr>> = args[1..].iter().map(|arg| arg as _).collect();
        self.audited.house.call_as(who, args[0], &rest)
    }

    /// Asks what the planted name did.
    fn ask(&self, who: &str, more: &[&str]) -> Ended {
        let question = ["runbook", "run", "actor-activity", "--param", PLANTED];
        self.call(who, &[&question[..], &DAY[..], more].concat())
    }

    /// The answer, if there is one.
    fn answer(&self, more: &[&str]) -> Value {
        let answer = self.ask("", &[&["--json"], more].concat()).succeeded(&[]).object();
        assert_eq!(answer["rows"].as_array().unwrap().len(), 1, "{answer}");
        answer
    }

    /// That it is refused, and that there is not a row.
    #[track_caller]
    fn refused(&self, who: &str, more: &[&str], says: &[&str]) {
        let ended = self.ask(who, more);
        ended.refused(3, says);
        assert_eq!(ended.out, "", "not a row");
    }

    fn tail(&self, who: &str, args: &[&str]) -> Tail {
        Tail::start(&self.audited.house.path(who), args)
    }

    #[track_caller]
    fn no_tail(&self, who: &str, args: &[&str], says: &[&str]) {
        let ended = self.tail(who, args).ended();
        assert!(ended.code == Some(3) && ended.out.is_empty(), "{ended}");
        says.iter().for_each(|text| assert!(ended.err.contains(text), "{text:?} is missing: {ended}"));
    }

    /// What the service has put on the record.
    fn record(&self) -> Tail {
        self.tail("", &["--filter", "category=audit", "--from-leaf", "0"])
    }

    fn running(&self, who: &str) -> Vec<Value> {
        let listed = self.call(who, &["query", "running", "--json"]).succeeded(&[]).object();
        listed["queries"].as_array().unwrap().clone()
    }

    fn metrics(&self) -> String {
        get(self.audited.serving(), "/metrics", 200)
    }
}

fn bytes(of: &Value) -> u64 {
    of["bytes"].as_u64().or(of["bytes_read"].as_u64()).unwrap()
}

/// Broken to see it fail: no comparison of requester and approver; none of the reader and the requester; `is_expired` that is never true;
/// an approval that is used and not made durable.
#[test]
fn an_approval_is_for_one_read_of_one_reader_and_not_for_ever() {
    let mut asked = Asked::new();
    let rules = "[questions.limits.auditor]\napproval_bytes = 1\n";
    asked.rules(rules);
    let id = || {
        let ended = asked.ask("", &["--json"]);
        assert_eq!(ended.code, Some(3), "{ended}");
        ended.object()["approval_needed"].as_str().unwrap().to_owned()
    };
    let answer = |who: &str, verb: &str, id: &str| asked.call(who, &["approval", verb, id]);
    let first = id();
    let listed = asked.call("", &["approval", "list", "--json"]).object();
    is_documented("query, approval, policy-set", &listed);
    is_documented("query, approval, policy-set", &listed["approvals"][0]);
    asked.refused("", &["--approval", &first], &["APPROVAL_PENDING"]);
    answer("", "grant", &first).refused(3, &["APPROVAL_SELF", "another person"]);
    answer("", "deny", &first).refused(3, &["APPROVAL_SELF"]);
    // Whose requests there are is nobody else's business.
    answer("developer", "grant", &first).refused(3, &["APPROVAL_NOT_FOUND"]);
    answer("responder", "grant", &first).succeeded(&["granted"]);
    asked.refused("second", &["--approval", &first], &["APPROVAL_UNKNOWN"]);
    asked.refused("", &["--approval", &first, "--purpose", "another"], &["APPROVAL_EDITED"]);
    // Used within four hours of the answer, and answered within a day.
    asked.clock.set(asked.noon + 4 * HOUR + 1);
    asked.refused("", &["--approval", &first], &["APPROVAL_EXPIRED", "Ask for a new approval"]);
    let second = id();
    asked.clock.set(asked.noon + 28 * HOUR + 2);
    answer("responder", "grant", &second).refused(3, &["APPROVAL_EXPIRED"]);
    let third = id();
    answer("responder", "grant", &third).succeeded(&[]);
    // A clock that is set back gives it no more time.
    asked.clock.set(asked.noon);
    asked.refused("", &["--approval", &third], &["APPROVAL_EXPIRED"]);
    asked.clock.set(asked.noon + 28 * HOUR + 2);
    asked.answer(&["--approval", &third]);
    asked.refused("", &["--approval", &third], &["APPROVAL_USED"]);
    answer("responder", "deny", &third).refused(3, &["APPROVAL_USED"]);
    let fourth = id();
    answer("responder", "deny", &fourth).succeeded(&["denied"]);
    asked.refused("", &["--approval", &fourth], &["APPROVAL_DENIED"]);
    let mut record = asked.record();
    for (action, of) in [
        ("approval.asked", &first),
        ("approval.refused", &first),
        ("approval.granted", &first),
        ("approval.refused", &second),
        ("approval.granted", &third),
        ("approval.refused", &third),
        ("approval.denied", &fourth),
    ] {
        record.says(action, of);
    }
    drop(record);

    // What was used is used after kill -9.
    asked.audited.kill();
    asked.start(rules);
    asked.refused("", &["--approval", &third], &["APPROVAL_USED"]);
    asked.refused("", &["--approval", &fourth], &["APPROVAL_DENIED"]);
}

/// Broken to see it fail: what was read today kept in memory alone; a day that never turns; a clock that goes back starting a new one.
#[test]
fn what_was_read_today_outlives_the_process_and_ends_with_the_day() {
    let mut asked = Asked::new();
    let noon = asked.noon;
    let answer = asked.answer(&[]);
    let (estimate, cost) = (bytes(&answer["estimate"]), bytes(&answer["cost"]));
    assert!(cost > 0 && cost <= estimate, "{answer}");
    let one_less = format!("[questions.limits.auditor]\nday_bytes = {}\n", cost + estimate - 1);
    let is_spent = |asked: &Asked| asked.refused("", &[], &["QUOTA_SPENT", "00:00 UTC"]);
    asked.rules(&one_less);
    is_spent(&asked);
    asked.audited.kill();
    asked.start(&one_less);
    is_spent(&asked);
    // It is this reader's, and no other's.
    asked.ask("second", &[]).succeeded(&[]);
    asked.clock.set(noon + 24 * HOUR);
    asked.answer(&[]);
    is_spent(&asked);
    asked.clock.set(noon);
    is_spent(&asked);
    asked.audited.kill();
    asked.start(&one_less);
    is_spent(&asked);
}

/// Broken to see it fail: no place counted for a tail; a tail that is not told when it is ended; one that is not taken out of the list;
/// the look at the first event left out; what it reads not counted.
#[test]
fn a_tail_takes_a_place_is_listed_and_is_ended() {
    let mut asked = Asked::new();
    asked.rules("[questions.limits.auditor]\nrunning = 2\n");
    let mut first = asked.tail("", &["--from-leaf", "0", "--filter", ACTION]);
    let shown = first.next();
    assert_eq!(format!("action={}", shown["values"]["action"].as_str().unwrap()), ACTION);
    let second = asked.tail("", &["--filter", "result=denied", "--purpose", "to look"]);
    until("two tails", || (asked.running("").len() == 2).then_some(()));
    let listed = asked.running("responder");
    assert!(
        listed.iter().all(|query| query["runbook"] == "(tail)" && query["estimate"].is_null()),
        "{listed:?}"
    );
    let read = listed.iter().filter(|query| query["cost"]["rows_returned"] == 1).collect::<Vec<_>>();
    assert!(read.len() == 1 && bytes(&read[0]["cost"]) > 0, "{listed:?}");
    is_documented("query, approval, policy-set", &listed[0]);
    is_documented("runbook, events tail", &shown);
    asked.call("responder", &["query", "running"]).succeeded(&["new events as they come"]);
    assert_eq!(asked.running("developer").len(), 0, "others' questions are not for everybody");
    assert_eq!(sample(&asked.metrics(), "epigraph_audit_running_queries", ""), 2.0);
    asked.refused("", &[], &["TOO_MANY_RUNNING"]);
    asked.no_tail("", &[], &["TOO_MANY_RUNNING", "query running"]);
    asked.ask("second", &[]).succeeded(&[]);

    let id = read[0]["query_id"].as_str().unwrap();
    asked.call("developer", &["query", "cancel", id]).refused(3, &["QUERY_NOT_FOUND"]);
    asked.call("responder", &["query", "cancel", id]).succeeded(&["cancelled"]);
    let ended = first.ended();
    assert!(ended.code != Some(0) && ended.err.contains("cancelled"), "{ended}");
    asked.call("responder", &["query", "cancel", id]).refused(3, &["QUERY_NOT_FOUND"]);
    asked.answer(&[]);
    // Whoever hangs up has made room, too.
    drop(second);
    until("no tail", || asked.running("").is_empty().then_some(()));
    let mut record = asked.record();
    record.says("tail.run", "events");
    record.says("query.cancelled", id);
    assert_eq!(record.says("tail.finished", "events")["values"]["result"], "partial");
    assert_eq!(record.says("tail.finished", "events")["values"]["result"], "success");
    drop(record);

    // What it read is gone from the day, and the rest of what it was counted for is not.
    let mut tail = asked.tail("responder", &["--from-leaf", "0", "--filter", ACTION]);
    tail.next();
    drop(tail);
    let mut record = asked.record();
    (0..3).for_each(|_| drop(record.says("tail.finished", "events")));
    drop(record);
    asked.rules("[questions.limits.responder]\nday_bytes = 272\n");
    asked.refused("responder", &[], &["QUOTA_SPENT"]);
    asked.rules("[questions.limits.responder]\nday_bytes = 1000000\n");
    asked.ask("responder", &[]).succeeded(&[]);
    // A tail counts before it begins, and begins no further back than its reader may look.
    asked.no_tail("responder", &[], &["QUOTA_SPENT"]);
    asked.rules("");
    asked.clock.set(asked.noon + 32 * 24 * HOUR);
    asked.no_tail("responder", &["--from-leaf", "0"], &["WINDOW_TOO_LONG", "31 days"]);
}

/// Broken to see it fail: the bytes of an audit not counted; the audit allowed to every reader; the outcome of an audit left out.
#[test]
fn an_audit_of_a_window_is_planned_counted_and_on_the_record() {
    let mut asked = Asked::new();
    let audited = asked.answer(&["--audit"]);
    let (answer, audit) = (&audited["cost"], &audited["audit"]);
    assert_eq!((&audit["complete"], &audit["estimate"]["rows"]), (&true.into(), &1.into()), "{audited}");
    let (estimate, cost) = (bytes(&audit["estimate"]), bytes(&audit["cost"]));
    assert!(0 < cost && cost <= estimate, "{audited}");
    assert_eq!(audit["cost"]["rows_returned"], 1, "{audited}");

    // What it read is gone from the day: one byte less, and the next question is refused.
    let spent = bytes(answer) + cost;
    let day = |bytes: u64| format!("[questions.limits.auditor]\nday_bytes = {bytes}\n");
    let next = bytes(&audited["estimate"]);
    asked.rules(&day(spent + next - 1));
    asked.refused("", &[], &["QUOTA_SPENT"]);
    asked.rules(&day(spent + bytes(answer) + estimate - 1));
    asked.ask("", &["--audit"]).refused(3, &["QUOTA_SPENT"]);
    // Another person agrees to the audit, by itself.
    asked.rules(&format!("[questions.limits.auditor]\napproval_bytes = {}\n", estimate - 1));
    let ended = asked.ask("", &["--audit", "--json"]);
    is_documented("runbook, events tail", &ended.object());
    let id = ended.object()["approval_needed"].as_str().unwrap().to_owned();
    assert!(ended.code == Some(3) && ended.err.contains("--audit-approval"), "{ended}");
    asked
        .call("responder", &["approval", "list"])
        .succeeded(&["every event of the window of actor-activity"]);
    asked.call("responder", &["approval", "grant", &id]).succeeded(&[]);
    asked.refused("", &["--approval", &id], &["APPROVAL_EDITED"]);
    asked.answer(&["--audit", "--audit-approval", &id]);
    asked.ask("", &["--audit", "--audit-approval", &id]).refused(3, &["APPROVAL_USED"]);

    // Who sees tokens is refused by the rules, on the record, and nothing was begun.
    asked.rules("");
    let trace = ["runbook", "run", "failed-logins"];
    asked
        .call("developer", &[&trace[..], &DAY[..], &["--audit"]].concat())
        .refused(3, &["FORBIDDEN", "tokens"]);
    let mut record = asked.record();
    let said = record.says("runbook.refused", "failed-logins");
    assert!(said["values"]["actor"].as_str().unwrap().ends_with("/reader/developer"), "{said}");
    drop(record);
    let metrics = asked.metrics();
    let refused = "runbook=\"failed-logins\",code=\"FORBIDDEN\"";
    assert_eq!(sample(&metrics, "epigraph_audit_runbook_refused_queries_total", refused), 1.0);

    // One that nobody waits for ends on the record all the same.
    let (house, server) = (&asked.audited.house, format!("{NAME}/audit/quickstart").parse().unwrap());
    block_on(async {
        let query = Query::new(&asked.audited.to_audit.address, &house.tls(), &server).unwrap();
        let (name, value) = PLANTED.split_once('=').unwrap();
        let question = Question {
            runbook: "actor-activity".into(),
            parameters: vec![QuestionParameter { name: name.into(), value: value.into() }],
            from_ns: 1_722_384_000_000_000_000,
            to_ns: 1_722_470_400_000_000_000,
            purpose: "to hang up".into(),
            ..Question::default()
        };
        let mut parts = query.audit(house.origin().as_str(), question, None).await.unwrap();
        assert!(matches!(parts.next().await.unwrap(), Some(Part::Planned(_))));
    });
    until("its end", || asked.running("").is_empty().then_some(()));
    let ends = |action: &str, record: &mut Tail| record.says(action, "actor-activity");
    let mut record = asked.record();
    // Each of the eight that were begun has its end: answers and audits.
    for action in ["runbook.run", "runbook.finished"].repeat(8) {
        ends(action, &mut record);
    }
}

/// Broken to see it fail: the reader left out of what a page token is compared with; the age; the question.
#[test]
fn an_answer_goes_on_page_by_page_for_its_reader_alone() {
    let mut asked = Asked::new();
    let more = asked.audited.batch(&asked.tip, collected(&asked.audited.entropy));
    asked.audited.submit("one", &[more]);
    asked.rules("[questions.limits.auditor]\nrows = 1\n");
    let first = asked.answer(&[]);
    let token = first["next_page_token"].as_str().unwrap();
    assert_eq!((&first["truncated"], token.is_empty()), (&true.into(), false), "{first}");
    let second = asked.answer(&["--page", token]);
    assert_ne!(first["rows"], second["rows"]);
    let after = second["next_page_token"].as_str().unwrap();
    let rest = asked.ask("", &["--json", "--page", after]);
    assert!(after.is_empty() || rest.object()["rows"].as_array().unwrap().is_empty(), "{rest}");
    asked.refused("second", &["--page", token], &["PAGE_OF_OTHERS"]);
    asked.refused("", &["--page", token, "--purpose", "another"], &["PAGE_EDITED"]);
    let last = if token.ends_with('0') { "1" } else { "0" };
    asked.refused("", &["--page", &format!("{}{last}", &token[..token.len() - 1])], &["PAGE_EDITED"]);
    asked.clock.set(asked.noon + HOUR + 1);
    asked.refused("", &["--page", token], &["PAGE_EXPIRED"]);
}

/// Broken to see it fail: the time looked at only while the index is read.
#[test]
fn a_question_takes_no_longer_than_it_may_however_it_is_asked() {
    let mut asked = Asked::new();
    let events = (0..100).flat_map(|_| collected(&asked.audited.entropy)).collect();
    let more = asked.audited.batch(&asked.tip, events);
    asked.audited.submit("one", &[more]);
    // More than it takes to find the rows, and less than it takes to prove a hundred.
    asked.rules("[questions.limits.auditor]\ntimeout_ms = 60\n");
    let ended = until("too late", || {
        let out = asked.audited.house.outside("out");
        let _ = fs::remove_dir_all(&out);
        let ended = asked.ask("", &["--proofs", &out.display().to_string()]);
        ended.err.contains("took longer than it may").then_some(ended)
    });
    ended.refused(3, &["DEADLINE_EXCEEDED", "shorter window"]);
    let mut record = asked.record();
    while record.says("runbook.finished", "actor-activity")["values"]["result"] != "partial" {}
}

/// Broken to see it fail: series under names that were asked for; an answer that is not counted.
#[test]
fn what_runbooks_took_and_read_is_told_by_their_names_alone() {
    let asked = Asked::new();
    for _ in 0..3 {
        asked.answer(&[]);
    }
    let reversed = ["runbook", "run", "who-read", "--from", "2024-07-31", "--to", "2024-07-30"];
    asked.call("", &reversed).refused(3, &["REVERSED_WINDOW"]);
    let made_up = ["runbook", "run", "made-up", "--from", "2024-07-31", "--to", "2024-08-01"];
    asked.call("", &made_up).refused(3, &["UNKNOWN_RUNBOOK"]);
    asked
        .call("developer", &["runbook", "run", "who-read", "--from", "2024-07-31", "--to", "2024-08-01"])
        .refused(3, &[]);
    let text = asked.metrics();
    let of = |name: &str, label: &str| sample(&text, &format!("epigraph_audit_runbook_{name}"), label);
    let planted = "runbook=\"actor-activity\"";
    assert_eq!(of("duration_seconds_count", planted), 3.0);
    assert_eq!(of("duration_seconds_bucket", &format!("le=\"+Inf\",{planted}")), 3.0);
    assert_eq!((of("examined_rows_total", planted), of("answered_rows_total", planted)), (3.0, 3.0));
    assert_eq!(of("duration_seconds_count", "runbook=\"who-read\""), 0.0);
    for code in ["REVERSED_WINDOW", "UNKNOWN_RUNBOOK"] {
        let label = format!("runbook=\"who-read\",code=\"{code}\"");
        assert_eq!(of("refused_queries_total", &label), 1.0);
    }
    assert!(!text.contains("made-up"), "{text}");
    let refused = sample(&text, "epigraph_audit_refused_queries_total", "code=\"UNKNOWN_RUNBOOK\"");
    assert_eq!(refused, 2.0);
}

/// Broken to see it fail: the validation against the schema left out.
#[test]
fn a_set_of_policies_is_checked_before_it_is_in_force() {
    let mut asked = Asked::new();
    let file = asked.audited.house.path("policies.cedar");
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/cedar/default.cedar");
    let check = |text: &str| {
        fs::write(&file, text).unwrap();
        epigraph(&[&"policy-set", &"check", &file])
    };
    let good = fs::read_to_string(shipped).unwrap();
    let checked = epigraph(&[&"policy-set", &"check", &"--json"]).object();
    is_documented("query, approval, policy-set", &checked);
    is_documented("query, approval, policy-set", &checked["policies"][0]);
    check(&good).succeeded(&["forbid  ", "permit  runbooks", "21 policies, in order", "hash"]);
    epigraph(&[&"policy-set", &"check", &"--schema"]).succeeded(&["entity Role", "21 policies"]);
    let bad = |text: &str, says: &[&str]| {
        let ended = check(text);
        ended.refused(2, says);
        assert_eq!(ended.out, "", "{ended}");
    };
    let name = file.file_name().unwrap().to_str().unwrap();
    let policy = |rest: &str| format!("{good}\n@id(\"mine\") permit (principal, {rest};\n");
    let last = good.lines().count() + 2;
    bad(
        &policy("action == Action::\"Export\", resource)"),
        &[name, "does not fit the schema", "policy `mine`", "Action::\"Export\"", "--schema"],
    );
    bad(
        &policy("action == Action::\"Tail\", resource) when { context.window_s == \"long\" }"),
        &["policy `mine`", "Long and String"],
    );
    bad(&policy("action, resource) when { principal in Role::\"root\" }"), &["policy `mine`", "root"]);
    bad(&policy("action resource)"), &["cannot be read", &format!("line {last}")]);
    bad(&good.replace("@id(\"runbooks\")\n", ""), &["no @id of its own"]);
    bad("", &["0 policies", "nobody could read anything"]);
    epigraph(&[&"policy-set", &"check", &file.with_extension("gone")]).refused(2, &["policies.gone"]);

    // A service that runs keeps what it has, and one that starts says why it does not.
    bad(&policy("action resource)"), &[]);
    asked.audited.stop();
    let rules = format!("{}[questions]\npolicies = \"policies.cedar\"\n", asked.config);
    fs::write(asked.audited.house.path("audit.toml"), rules).unwrap();
    let refused = asked.audited.house.start("audit", "audit.toml").err().unwrap();
    refused.refused(2, &["policies.cedar", &format!("line {last}")]);
    asked.start("");
    asked.answer(&[]);
}
