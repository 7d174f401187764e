//! `epigraph monitor`: what people see of a monitor that runs, and the rehearsal of an alarm.

use std::fs;
use std::io::{BufRead, BufReader};

use epigraph_core::LeafIndex;
use serde_json::{Value, json};

use crate::monitor::{PATIENCE, SERVER, audited, configure, house, init, monitor, receiver, serve, webhook};
use crate::support::{Ended, House, Serving, block_on, command, epigraph, leaf, signal};

/// A client directory whose certificate is the operator's, and whose `client.toml` says where the monitor is.
fn point_at_monitor(house: &House, serving: &Serving) {
    let table = format!("[monitor]\naddress = \"{}\"\nserver = \"{SERVER}\"\n\n[tls]", serving.address);
    house.edit("client.toml", "[tls]", &table);
    for side in ["pem", "key"] {
        house.edit("client.toml", &format!("pki/client/client.{side}"), &format!("pki/o/client.{side}"));
    }
}

fn call(house: &House, args: &[&str]) -> Ended {
    let profile = house.path("");
    let mut all: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"monitor"];
    all.extend(args.iter().map(|arg| arg as &dyn AsRef<std::ffi::OsStr>));
    all.extend([&"--profile" as &dyn AsRef<std::ffi::OsStr>, &profile]);
    epigraph(&all)
}

/// The keys of an object are in the section of docs/json.md.
#[track_caller]
fn are_documented(object: &Value) {
    let documentation = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/json.md")).unwrap();
    let section = documentation.split("\n## ").find(|part| part.starts_with("monitor\n")).unwrap();
    for (key, value) in object.as_object().unwrap() {
        assert!(section.contains(&format!("`{key}`")), "{key} is not documented");
        for one in value.as_array().into_iter().flatten().chain([value]).filter(|one| one.is_object()) {
            are_documented(one);
        }
    }
}

/// The first thing that is shown to somebody who watches, who then goes.
fn watched(house: &House, what: &str) -> Value {
    let profile = house.path("");
    let mut child =
        command(&[&"monitor", &what, &"--watch", &"--json", &"--profile", &profile]).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    signal("INT", &child.id().to_string());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    serde_json::from_str(&line).unwrap()
}

/// Seen to fail with the exit code of `status` always 0, and with an id asked for in full.
#[test]
fn a_finding_is_seen_taken_note_of_and_its_file_fetched() {
    let house = house();
    let log = house.serve();
    configure(&house, &log, "");
    init(&house).succeeded(&[]);
    let serving = serve(&house);
    call(&house, &["status"]).refused(2, &["does not say where the monitor is", "--address"]);
    point_at_monitor(&house, &serving);
    block_on(async { audited(&monitor(&house, &serving, "pki/o/client"), 3).await });
    let origin = house.origin().to_string();

    let calm = call(&house, &["status"]);
    calm.succeeded(&["monitor.example/m1", &origin, "nothing is found", "one history up to 3"]);
    let row = calm.out.lines().find(|line| line.trim_start().starts_with("two ")).unwrap();
    let cells: Vec<_> = row.split_whitespace().collect();
    assert_eq!(cells[..3], ["two", "log", "3"], "{row}");
    let object = call(&house, &["status", "--json"]).succeeded(&[]).object();
    are_documented(&object);
    let vantages = object["logs"][0]["vantages"].as_array().unwrap();
    let seen = vantages.iter().find(|seen| seen["name"] == "two").unwrap();
    assert_eq!((&seen["lag_entries"], &seen["trouble"]), (&json!(0), &Value::Null), "{object}");
    assert!(seen["root"].as_str().unwrap().starts_with(cells[3]), "{row}: {seen}");
    call(&house, &["findings", "--all"]).succeeded(&["nothing is open"]);

    block_on(async {
        let appender = monitor(&house, &serving, "pki/client/client");
        let index = LeafIndex::new(2).unwrap();
        appender.submit_receipt(&origin, index, leaf(b"never")).await.unwrap();
        let mut watching = monitor(&house, &serving, "pki/o/client").watch_findings("").await.unwrap();
        let found = tokio::time::timeout(PATIENCE, watching.next()).await.expect("nothing is found");
        found.unwrap().unwrap()
    });
    call(&house, &["status"]).refused(1, &["1 finding is open", "monitor findings"]);
    let object = call(&house, &["findings", "--json"]).succeeded(&[]).object();
    are_documented(&object);
    let found = &object["findings"][0];
    assert_eq!(found["code"], "missing-entry");
    let id = found["id"].as_str().unwrap();
    call(&house, &["findings"]).succeeded(&[&id[..8], "missing-entry, page, observation", "next:"]);

    let look = watched(&house, "status");
    are_documented(&look);
    assert_eq!(look["findings"][0]["id"], found["id"]);
    let standing = watched(&house, "findings");
    assert_eq!((&standing["change"], &standing["id"]), (&json!("open"), &found["id"]));

    call(&house, &["ack", "zz", "--why", "x"]).refused(2, &["no finding has an id that begins with"]);
    call(&house, &["ack", "", "--why", "x"]).refused(2, &["no finding has an id"]);
    call(&house, &["ack", id, "--why", ""]).refused(3, &["one line"]);
    call(&house, &["ack", &id[..6], "--why", "seen to"]).succeeded(&["/operator/o: seen to"]);
    call(&house, &["status"]).succeeded(&["1 finding is open", "/operator/o"]);

    let file = house.outside("found");
    call(&house, &["evidence", id, "--out", file.to_str().unwrap()]).succeeded(&["epigraph verify"]);
    let vkey = fs::read_to_string(house.path("m1/keys/monitor.vkey")).unwrap();
    epigraph(&[&"verify", &file, &"--vkey", &vkey.trim()]).succeeded(&["missing-entry"]);

    // Nobody is there any more.
    serving.stop();
    call(&house, &["status"]).refused(4, &["is the monitor running"]);
}

/// Seen to fail with what was planted not taken back.
#[test]
fn a_drill_reaches_the_webhook_and_leaves_nothing_open() {
    let house = house();
    let log = house.serve();
    let (port, received) = receiver();
    configure(&house, &log, &webhook(&house, port));
    init(&house).succeeded(&[]);
    let serving = serve(&house);
    point_at_monitor(&house, &serving);
    for round in 1..=2 {
        let object = call(&house, &["drill", "--json"]).succeeded(&[]).object();
        are_documented(&object);
        assert_eq!((&object["found"], &object["verified"]), (&json!(true), &json!(true)), "{object}");
        let alarms = object["alarms"].as_array().unwrap();
        let told: Vec<_> = alarms.iter().map(|alarm| (&alarm["sink"], &alarm["arrived"])).collect();
        let yes = json!(true);
        assert_eq!(told, [(&json!("log"), &yes), (&json!("hook"), &yes)], "{object}");
        // What the receiver was sent: the alarm, and its end.
        let mut changes = Vec::new();
        while changes.len() < 2 {
            let (_, body) = received.recv_timeout(PATIENCE).expect("nobody is told");
            if body["kind"] == "finding" {
                assert_eq!(body["finding"]["origin"], "epigraph.drill");
                assert!(body["finding"]["detail"].as_str().unwrap().starts_with("THIS IS A DRILL"));
                assert_eq!(body["finding"]["drill"], true);
                changes.push(body["change"].as_str().unwrap().to_owned());
            }
        }
        let opened = if round == 1 { "opened" } else { "reopened" };
        assert_eq!(changes, [opened, "resolved"]);
    }
    call(&house, &["findings"]).succeeded(&["nothing is open"]);
    let status = call(&house, &["status"]);
    status.succeeded(&["last drill"]);
    assert!(!status.out.contains("epigraph.drill"), "{}", status.out);
    let object = call(&house, &["status", "--json"]).succeeded(&[]).object();
    are_documented(&object);
    assert_eq!(object["drill"]["origin"], "epigraph.drill");
    assert!(object["drill"]["resolved_at_ms"].is_u64(), "{object}");
    // Whoever only reads may not have people called.
    house.edit("client.toml", "pki/o/client.pem", "pki/m2/client.pem");
    house.edit("client.toml", "pki/o/client.key", "pki/m2/client.key");
    call(&house, &["drill"]).refused(3, &[]);
    serving.stop();
}
