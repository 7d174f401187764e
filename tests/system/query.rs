//! Questions about audit events, as people and scripts ask them: who gets which answer, what is refused, and what of it is on the record.
//!
//! One quickstart with recorded events, asked by three: the quickstart's own client is an auditor; `developer` and `responder` see less.

use std::fs;
use std::io::{BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;
use tempfile::TempDir;

use crate::drill::is_documented;
use crate::first_minute::Quickstart;
use crate::support::{Ended, command, epigraph, signal};
use crate::waiting::{guarded, until};

/// A person of the recorded events who did 35 things on one day.
const SOMEBODY: &str = "actor=arn:aws:iam::309303190113:user/christophe";
const AUGUST: [&str; 4] = ["--from", "2024-07-30", "--to", "2024-08-03"];

/// A quickstart with events in it.
struct Asked {
    _quickstart: Quickstart,
    dir: TempDir,
    outs: AtomicU32,
}

/// Recorded events are in a folder beside the project; where it is not, nothing can be asked about them.
fn recorded(name: &str) -> Option<PathBuf> {
    let shared = PathBuf::from(std::env::var_os("EPIGRAPH_SHARED")?);
    Some(shared.join("data").join(name)).filter(|path| path.exists())
}

impl Asked {
    fn start() -> Option<Asked> {
        let (Some(cloud), Some(cluster)) = (recorded("cloudtrail.jsonl"), recorded("k8s-audit.jsonl")) else {
            println!(
                "skipped: EPIGRAPH_SHARED names no folder with data/cloudtrail.jsonl and data/k8s-audit.jsonl"
            );
            return None;
        };
        let dir = TempDir::new().unwrap();
        let quickstart = Quickstart::start(dir.path(), "home");
        let asked = Asked { _quickstart: quickstart, dir, outs: AtomicU32::new(0) };
        let collect: [&dyn AsRef<std::ffi::OsStr>; 8] = [
            &"collect",
            &"--cloudtrail",
            &cloud,
            &"--k8s-audit",
            &cluster,
            &"--once",
            &"--profile",
            &asked.home(),
        ];
        epigraph(&collect).succeeded(&["everything is proven to be in the log"]);
        // The indexes follow what is published: nobody asks before they have.
        until("answers", || (rows(&asked.answer("", "privilege-grants", &AUGUST)).len() >= 6).then_some(()));
        Some(asked)
    }

    fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    /// The program, as one of the three: `""`, `developer` or `responder`.
    fn call(&self, who: &str, args: &[&str]) -> Ended {
        let profile = self.home().join(who);
        let mut all: Vec<&dyn AsRef<std::ffi::OsStr>> = Vec::new();
        args.iter().for_each(|arg| all.push(arg));
        all.extend([&"--profile" as &dyn AsRef<std::ffi::OsStr>, &profile]);
        epigraph(&all)
    }

    fn run(&self, who: &str, runbook: &str, args: &[&str]) -> Ended {
        self.call(who, &[&["runbook", "run", runbook, "--json"], args].concat())
    }

    fn answer(&self, who: &str, runbook: &str, args: &[&str]) -> Value {
        self.run(who, runbook, args).succeeded(&[]).object()
    }

    #[track_caller]
    fn refused(&self, who: &str, runbook: &str, args: &[&str], says: &[&str]) {
        let ended = self.call(who, &[&["runbook", "run", runbook], args].concat());
        ended.refused(3, says);
        assert_eq!(ended.out, "", "not a row");
    }

    /// A path that nothing is at.
    fn out(&self) -> String {
        let number = self.outs.fetch_add(1, Ordering::Relaxed);
        self.dir.path().join(format!("out-{number}")).display().to_string()
    }

    /// Changes the service's rules, and waits until they are in force.
    fn edit(&self, text: &str, in_force: impl Fn() -> bool) {
        let file = self.home().join("audit.toml");
        let before = fs::read_to_string(&file).unwrap();
        let whole = match before.split_once("\n# limits of the test\n") {
            Some((kept, _)) => kept.to_owned(),
            None => before,
        };
        fs::write(&file, format!("{whole}\n# limits of the test\n{text}")).unwrap();
        until("the rules", || in_force().then_some(()));
    }

    /// What the service has put on the record from a leaf on.
    fn record(&self, from: u64) -> Tail {
        Tail::start(&self.home(), &["--filter", "category=audit", "--from-leaf", &from.to_string()])
    }
}

/// `events tail --json`.
pub struct Tail(Child, BufReader<std::process::ChildStdout>);

impl Tail {
    pub fn start(profile: &Path, args: &[&str]) -> Tail {
        let mut tail = command(&[&"events", &"tail", &"--json", &"--profile", &profile]);
        let mut child = tail.args(args).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Tail(child, out)
    }

    pub fn next(&mut self) -> Value {
        let (mut line, pid) = (String::new(), self.0.id().to_string());
        let read = guarded(move || signal("KILL", &pid), || self.1.read_line(&mut line).unwrap());
        assert_ne!(read, 0, "the tail has ended, or nothing came");
        serde_json::from_str(&line).unwrap()
    }

    /// The next event of this action.
    pub fn says(&mut self, action: &str, resource: &str) -> Value {
        loop {
            let event = self.next();
            let values = &event["values"];
            if values["action"] == action && values["resource"] == resource {
                return event;
            }
        }
    }
}

impl Tail {
    /// Waits for its end.
    pub fn ended(mut self) -> Ended {
        let (mut out, mut err, pid) = (String::new(), String::new(), self.0.id().to_string());
        guarded(move || signal("KILL", &pid), || self.1.read_to_string(&mut out).unwrap());
        self.0.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        Ended { code: self.0.wait().unwrap().code(), out, err }
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn rows(answer: &Value) -> &Vec<Value> {
    answer["rows"].as_array().unwrap()
}

fn leaves(answer: &Value) -> Vec<u64> {
    let of = |row: &Value| {
        row["leaf_indexes"].as_array().unwrap().iter().map(|leaf| leaf.as_u64().unwrap()).collect()
    };
    rows(answer).iter().flat_map(|row| -> Vec<u64> { of(row) }).collect()
}

/// Broken to see it fail: a service that answers without the intent on its record; proofs of other leaves; a mask that shows names.
#[test]
fn questions_are_answered_for_those_who_may_refused_for_others_and_all_of_it_is_on_the_record() {
    let Some(asked) = Asked::start() else { return };
    everything_that_ships_finds_something(&asked);
    what_may_not_be_asked_is_refused(&asked);
    each_sees_what_each_may(&asked);
    an_answer_is_proven_and_audited(&asked);
    a_single_event_is_under_the_same_rules(&asked);
    what_runs_is_listed_and_ended(&asked);
    approvals(&asked);
}

fn everything_that_ships_finds_something(asked: &Asked) {
    let before = 1;
    let listed = asked.call("", &["runbook", "list", "--json"]).succeeded(&[]).object();
    assert_eq!(listed["runbooks"].as_array().unwrap().len(), 10);
    let check = |runbook: &str, from: &str, to: &str, params: &[&str], least: usize| {
        let params: Vec<&str> = params.iter().flat_map(|param| ["--param", param]).collect();
        let answer = asked.answer("", runbook, &[&["--from", from, "--to", to], &params[..]].concat());
        assert!(rows(&answer).len() >= least, "{runbook}: {answer}");
        let (estimate, cost) = (&answer["estimate"], &answer["cost"]);
        assert!(cost["rows_examined"].as_u64() <= estimate["rows"].as_u64(), "{runbook}: {answer}");
        assert!(cost["bytes_read"].as_u64() <= estimate["bytes"].as_u64(), "{runbook}: {answer}");
        answer
    };
    check("access-outside-hours", "2024-07-15", "2024-08-05", &[], 1);
    check("actor-activity", "2024-07-30", "2024-08-02", &[SOMEBODY], 35);
    check("failed-logins", "2024-07-15", "2024-08-10", &[], 2);
    let narrowed = |stream| {
        rows(&asked.answer("", "privilege-grants", &[&AUGUST[..], &["--stream", stream]].concat())).len()
    };
    assert!(narrowed("cloudtrail") > 5 && narrowed("k8s") == 0);
    let grants = check("privilege-grants", "2024-07-01", "2024-09-01", &[], 7);
    // The collector had replaced the key: its token is what the key is called.
    let named = rows(&grants)[0]["values"]["resource"].as_str().unwrap().to_owned();
    let key = &named[named.find("[access-key:").unwrap()..];
    check("key-activity", "2024-07-01", "2024-09-01", &[&format!("key={key}")], 1);
    check("repeated-failures", "2024-07-15", "2024-08-10", &["by=actor"], 10);
    check("request-trace", "2018-10-15", "2018-11-10", &["request=693f4726-2430-450a-83e1-123c050fde98"], 1);
    check("resource-activity", "2018-10-01", "2019-01-01", &["resource=my-config"], 2);
    check("resource-history", "2018-10-01", "2019-01-01", &["resource=some-reader"], 2);
    let secret =
        "resource=arn:aws:ssm:cn-west-3r:933175858973:parameter/credentials/stratus-red-team/credentials-1";
    let answer = check("who-read", "2024-01-01", "2025-01-01", &[secret], 1);

    is_documented("runbook, events tail", &listed);
    for of in [
        &listed["runbooks"][0],
        &answer,
        &answer["estimate"],
        &answer["cost"],
        &answer["rows"][0],
        &answer["sources"][0],
    ] {
        is_documented("runbook, events tail", of);
    }
    let plan = ["--plan", "--from", "2024-07-15", "--to", "2024-08-10"];
    is_documented("runbook, events tail", &asked.answer("", "failed-logins", &plan));

    // Each was on the record before it was read, and what it cost after: found by the id of the question.
    let mut tail = asked.record(before);
    let intent = tail.says("runbook.run", "who-read");
    let outcome = tail.says("runbook.finished", "who-read");
    let leaf = |event: &Value| event["leaf_indexes"][0].as_u64().unwrap().to_string();
    let intent =
        asked.call("", &["events", "get", "--leaf", &leaf(&intent), "--json"]).succeeded(&[]).object();
    let outcome =
        asked.call("", &["events", "get", "--leaf", &leaf(&outcome), "--json"]).succeeded(&[]).object();
    let record = |event: &Value| {
        serde_json::from_str::<Value>(event["events"][0]["record"].as_str().unwrap()).unwrap()
    };
    assert_eq!(record(&intent)["estimate"], answer["estimate"]);
    assert_eq!(record(&outcome)["digest"], answer["digest"]);
    assert_eq!(record(&outcome)["bytes_read"], answer["cost"]["bytes_read"]);
}

fn what_may_not_be_asked_is_refused(asked: &Asked) {
    let size = last_size(asked);
    let check =
        |who: &str, runbook: &str, args: &[&str], says: &[&str]| asked.refused(who, runbook, args, says);
    check("", "actor-activity", &["--param", SOMEBODY], &["NO_WINDOW", "--from"]);
    check(
        "",
        "actor-activity",
        &["--param", SOMEBODY, "--from", "2024-08-02", "--to", "2024-07-30"],
        &["REVERSED_WINDOW", "Exchange"],
    );
    check(
        "",
        "access-outside-hours",
        &["--from", "2024-01-01", "--to", "2025-01-01"],
        &["WINDOW_TOO_LONG", "at most 31 days"],
    );
    check(
        "developer",
        "actor-activity",
        &["--param", "actor=x", "--from", "2024-01-01", "--to", "2025-01-01"],
        &["WINDOW_TOO_LONG", "7 days"],
    );
    let year = ["--from", "2024-01-01", "--to", "2025-01-01"];
    check("", "access-outside-hours", &year, &["(estimate: at most ", "Ask for at most 31 days"]);
    for stream in ["payroll", "*", "K8S"] {
        check(
            "",
            "privilege-grants",
            &[&AUGUST[..], &["--stream", stream]].concat(),
            &["UNKNOWN_STREAM", "cloudtrail"],
        );
    }
    check("", "nothing-like-this", &AUGUST, &["UNKNOWN_RUNBOOK"]);
    check("developer", "privilege-grants", &AUGUST, &["UNKNOWN_RUNBOOK"]);
    check(
        "developer",
        "actor-activity",
        &[&AUGUST[..], &["--param", SOMEBODY]].concat(),
        &["MASKED_COLUMN", "token"],
    );
    check(
        "",
        "repeated-failures",
        &[&AUGUST[..], &["--param", "least=0"]].concat(),
        &["BAD_PARAMETER", "least"],
    );
    let mut tail = asked.record(size);
    let refused = tail.says("runbook.refused", "nothing-like-this");
    let leaf = refused["leaf_indexes"][0].as_u64().unwrap().to_string();
    let event = asked.call("", &["events", "get", "--leaf", &leaf, "--json"]).succeeded(&[]).object();
    assert!(
        event["events"][0]["record"].as_str().unwrap().contains("\"code\":\"UNKNOWN_RUNBOOK\""),
        "{event}"
    );
    assert_eq!(refused["values"]["result"], "denied");
}

fn each_sees_what_each_may(asked: &Asked) {
    let listed = asked.call("developer", &["runbook", "list", "--json"]).succeeded(&[]).object();
    assert!(listed["runbooks"].as_array().unwrap().iter().all(|one| one["id"] != "who-read"), "{listed}");
    let args = [&AUGUST[..], &["--param", "by=actor"]].concat();
    let (auditor, developer) =
        (asked.answer("", "repeated-failures", &args), asked.answer("developer", "repeated-failures", &args));
    assert_eq!(leaves(&auditor), leaves(&developer));
    let actor = |answer: &Value| rows(answer)[0]["values"]["actor"].as_str().unwrap().to_owned();
    assert!(actor(&auditor).starts_with("arn:aws:"), "{auditor}");
    let token = actor(&developer);
    assert!(token.starts_with("token:"), "{developer}");
    assert!(!developer.to_string().contains("christophe"), "{developer}");
    assert!(developer["masked"].as_array().unwrap().contains(&"actor".into()));
    // With the token of one answer the next question is asked, and finds the same person's.
    let by_token = asked.answer(
        "developer",
        "actor-activity",
        &[&AUGUST[..], &["--param", &format!("actor={token}")]].concat(),
    );
    let by_name = asked.answer(
        "",
        "actor-activity",
        &[&AUGUST[..], &["--param", &format!("actor={}", actor(&auditor))]].concat(),
    );
    assert!(!rows(&by_token).is_empty());
    assert_eq!(leaves(&by_token), leaves(&by_name));
    // A responder sees names with a case, and tokens without one.
    assert!(actor(&asked.answer("responder", "repeated-failures", &args)).starts_with("token:"));
    let unmasked =
        asked.answer("responder", "repeated-failures", &[&args[..], &["--ticket", "CASE-7"]].concat());
    assert_eq!(actor(&unmasked), actor(&auditor));
}

fn an_answer_is_proven_and_audited(asked: &Asked) {
    let question = [&AUGUST[..], &["--param", SOMEBODY]].concat();
    let out = asked.out();
    let answer = asked.answer("", "actor-activity", &[&question[..], &["--proofs", &out]].concat());
    assert_eq!(answer["verified_events"], 35);
    asked.call("", &["verify", &out]).succeeded(&["verified: 35 events, offline"]);
    // Who sees tokens is given proofs without names: they hold all the same.
    let out = asked.out();
    let args = [&AUGUST[..], &["--proofs", &out]].concat();
    asked.run("developer", "repeated-failures", &args).succeeded(&[]);
    asked.call("", &["verify", &out]).succeeded(&["offline, with public keys alone"]);
    let kept = fs::read_dir(&out).unwrap().next().unwrap().unwrap().path();
    asked
        .call("", &["verify", &kept.display().to_string()])
        .succeeded(&["its identity segment is not in here"]);
    // Nothing to keep is said, and no directory is left that `verify` finds nothing in.
    let out = asked.out();
    let nobody = [&AUGUST[..], &["--param", "actor=nobody at all", "--proofs", &out]].concat();
    let ended = asked.call("", &[&["runbook", "run", "actor-activity"], &nobody[..]].concat());
    ended.succeeded(&["nothing to keep"]);
    assert!(ended.out.ends_with('\n') && !fs::exists(&out).unwrap(), "{ended}");
    let audited = asked.answer("", "actor-activity", &[&question[..], &["--audit"]].concat());
    assert_eq!(audited["audit"]["complete"], true, "{audited}");
    is_documented("runbook, events tail", &audited["audit"]);
    let audit = [&["runbook", "run", "repeated-failures"], &AUGUST[..], &["--audit"]].concat();
    let size = last_size(asked);
    asked.call("developer", &audit).refused(3, &["FORBIDDEN", "Ask an auditor"]);
    let refused = asked.record(size).says("runbook.refused", "repeated-failures");
    assert_eq!(refused["values"]["result"], "denied");
}

/// Who may not see names and records is given proofs without them, and nobody reads past the record.
fn a_single_event_is_under_the_same_rules(asked: &Asked) {
    let answer = asked.answer("", "actor-activity", &[&AUGUST[..], &["--param", SOMEBODY]].concat());
    let leaf = leaves(&answer)[0].to_string();
    let get = |who: &str| {
        let out = asked.out();
        let got = asked.call(who, &["events", "get", "--leaf", &leaf, "--json", "--proof", &out]);
        let event = got.succeeded(&[]).object()["events"][0].clone();
        asked.call("", &["verify", &out]).succeeded(&["verified: 1 events, offline"]);
        event
    };
    let event = get("");
    assert!(event["record"].as_str().unwrap().contains("christophe"), "{event}");
    for who in ["developer", "responder"] {
        let event = get(who);
        assert_eq!(event["erased"], serde_json::json!(["identity", "body"]), "{who}");
        assert!(event["record"].is_null(), "{who}: {event}");
    }
    // Who has no role that is given events is refused, whatever it may call; readers change while the service runs.
    let size = last_size(asked).to_string();
    let rules = asked.home().join("audit.toml");
    let before = fs::read_to_string(&rules).unwrap();
    let get = || asked.call("developer", &["events", "get", "--leaf", &leaf]);
    fs::write(&rules, before.replace("roles = [\"developer\"]", "roles = [\"admin\"]")).unwrap();
    until("the rules", || (get().code != Some(0)).then_some(()));
    get().refused(3, &["FORBIDDEN"]);
    asked.record(size.parse().unwrap()).says("events.refused", &leaf);
    fs::write(&rules, before).unwrap();
    until("the rules", || (get().code == Some(0)).then_some(()));
}

/// Broken to see it fail: a cancelled question that goes on; one that is not taken out of the list when its reader has gone.
fn what_runs_is_listed_and_ended(asked: &Asked) {
    let running = || {
        let listed = asked.call("", &["query", "running", "--json"]).succeeded(&[]).object();
        listed["queries"].as_array().unwrap().clone()
    };
    let ask = || {
        let mut asking = command(&[&"runbook", &"run", &"access-outside-hours", &"--from", &"2024-07-15"]);
        asking.args(["--to", "2024-08-05", "--proofs", &asked.out(), "--profile"]).arg(asked.home());
        asking.spawn().unwrap()
    };
    let size = last_size(asked);
    // Each row is proven, which takes its time; where it was too quick for us, it is asked again.
    let id = loop {
        let mut asking = ask();
        let id = loop {
            if let Some(query) = running().first() {
                break Some(query["query_id"].as_str().unwrap().to_owned());
            }
            if asking.try_wait().unwrap().is_some() {
                break None;
            }
        };
        let cancelled = id.filter(|id| asked.call("", &["query", "cancel", id]).code == Some(0));
        let ended = asking.wait().unwrap().code();
        if let Some(id) = cancelled {
            assert_eq!(ended, Some(3), "it was cancelled, and went on");
            break id;
        }
    };
    asked.record(size).says("query.cancelled", &id);
    asked.call("", &["query", "cancel", &id]).refused(3, &["QUERY_NOT_FOUND"]);
    // Whoever hangs up has cancelled, too.
    let mut asking = ask();
    while running().is_empty() && asking.try_wait().unwrap().is_none() {}
    asking.kill().unwrap();
    asking.wait().unwrap();
    until("an empty list", || running().is_empty().then_some(()));
}

/// The size of the checkpoint that the newest answer was read at.
fn last_size(asked: &Asked) -> u64 {
    let answer = asked.answer("", "privilege-grants", &AUGUST);
    answer["checkpoint"].as_str().unwrap().lines().nth(1).unwrap().parse().unwrap()
}

fn approvals(asked: &Asked) {
    let question = [&AUGUST[..], &["--param", SOMEBODY]].concat();
    let ask = |more: &[&str]| {
        asked.call("", &[&["runbook", "run", "actor-activity"], &question[..], more].concat())
    };
    asked.edit("[questions.limits.auditor]\napproval_bytes = 100\n", || ask(&["--plan"]).code == Some(3));
    // As it is asked, and by whom it may be answered.
    let id = || {
        ask(&[]).refused(3, &["needs the approval of somebody else"]);
        let ended = ask(&["--json"]);
        ended.object()["approval_needed"].as_str().unwrap().to_owned()
    };
    let first = id();
    asked.call("", &["approval", "list"]).succeeded(&[&first]);
    asked.call("", &["approval", "grant", &first]).refused(3, &["APPROVAL_SELF"]);
    asked.call("developer", &["approval", "grant", &first]).refused(3, &["APPROVAL_NOT_FOUND"]);
    ask(&["--approval", &first]).refused(3, &["APPROVAL_PENDING"]);
    asked.call("responder", &["approval", "grant", &first, "--reason", "CASE-7"]).succeeded(&[]);
    // It is for this question of this reader, once.
    let other = ["--param", SOMEBODY, "--from", "2024-07-30", "--to", "2024-08-02", "--approval", &first];
    asked.refused("", "actor-activity", &other, &["APPROVAL_"]);
    let granted = ask(&["--approval", &first, "--json"]).succeeded(&[]).object();
    assert_eq!(rows(&granted).len(), 35);
    ask(&["--approval", &first]).refused(3, &["APPROVAL_USED"]);
    ask(&["--approval", "00000000000000000000000000000000"]).refused(3, &["APPROVAL_"]);
    let second = id();
    asked.call("responder", &["approval", "deny", &second, "--reason", "no"]).succeeded(&[]);
    ask(&["--approval", &second]).refused(3, &["APPROVAL_"]);
    // What was read today counts, and a budget is one.
    asked.edit("[questions.limits.auditor]\nday_bytes = 1000\n", || ask(&[]).err.contains("QUOTA_SPENT"));
    asked.edit("[questions.limits.auditor]\nquery_bytes = 100\n", || ask(&[]).err.contains("OVER_BUDGET"));
    ask(&[]).refused(3, &["OVER_BUDGET", "estimate: at most 35 rows", "hours"]);
    // Rules that are not in order change nothing.
    asked.edit("[questions.limits.nobody]\n", || true);
    ask(&[]).refused(3, &["OVER_BUDGET"]);
    asked.edit("", || ask(&[]).code == Some(0));
}
