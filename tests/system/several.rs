//! Several logs behind one door: each has its name, its state and its faults for itself.

use std::fs;

use epigraph_rpc::{Reason, Refusal, v1};

use crate::damage::{FRAME, SECTOR, large_lines};
use crate::metrics::{get, sample};
use crate::support::{House, Serving, block_on, epigraph, find, flip};

const TWO: &str = "two.example/log";

/// A house whose log has a sealed segment, with a second log that `init` added, and a profile `two` for it.
fn house() -> House {
    let house = House::with_lines(&large_lines(300));
    let table = format!(
        "[[log]]\norigin = \"{TWO}\"\nsegment_mib = 16\nsigner = {{ directory = \"signer-two\", key = \"signer-two/keys/log.key\" }}\n\n[[authorize]]"
    );
    house.edit("log.toml", "[[authorize]]", &table);
    house.edit("log.toml", &format!("logs = [\"{}\"]", house.origin()), "logs = [\"*\"]");
    let init = epigraph(&[&"init", &"log", &"--config", &house.path("log.toml")]);
    init.succeeded(&[&format!("initialised the log {TWO}")]);
    assert!(!init.out.contains(house.origin().as_str()), "a log that was there was made anew: {init}");

    let vkey = init.out.lines().last().unwrap().rsplit_once(' ').unwrap().1;
    fs::create_dir(house.path("two")).unwrap();
    fs::write(house.path("two/policy"), format!("log {vkey}\nquorum none\n")).unwrap();
    house
}

/// Serves, and writes the profile of the second log.
fn serve(house: &House) -> Serving {
    let serving = house.serve();
    let client = fs::read_to_string(house.path("client.toml")).unwrap();
    let client = client.replace("\"pki/", "\"../pki/").replace(house.origin().as_str(), TWO);
    fs::write(house.path("two/client.toml"), client).unwrap();
    serving
}

#[test]
fn each_log_has_its_own_entries_under_its_own_name_and_key() {
    let house = house();
    let serving = serve(&house);
    let entry = house.path("policy");
    house.call("append", &[&entry]).succeeded(&["300"]);
    house.call_as("two", "append", &[&entry]).succeeded(&["published"]);
    let object = house.call_as("two", "checkpoint", &[&"--json"]).succeeded(&[]).object();
    assert_eq!(object["origin"], TWO);

    // An empty name means the only log, and here are two.
    block_on(async {
        let mut client = house.raw_client(&serving);
        let ask = |origin: &str| v1::GetCheckpointRequest { origin: origin.into() };
        for (origin, reason) in [("", Reason::PermissionDenied), ("three.example", Reason::UnknownOrigin)] {
            let status = client.get_checkpoint(ask(origin)).await.unwrap_err();
            let refusal = Refusal::from_status(&status).unwrap();
            assert!([reason, Reason::UnknownOrigin].contains(&refusal.reason()), "{origin:?}: {refusal}");
        }
        assert!(client.get_checkpoint(ask(TWO)).await.is_ok());
    });
    let text = get(&serving, "/metrics", 200);
    assert_eq!(sample(&text, "epigraph_log_ready", TWO), 1.0);
    assert_eq!(sample(&text, "epigraph_log_ready", house.origin().as_str()), 1.0);
    serving.stop();
    epigraph(&[&"fsck", &"--config", &house.path("log.toml")]).succeeded(&["clean: 302", TWO]);
}

#[test]
fn a_log_that_cannot_be_opened_stops_itself_alone() {
    let house = house();
    let header = find(&house.segments()[1], FRAME) + 40;
    flip(&house.segments()[1], header);
    let serving = serve(&house);
    assert!(serving.messages().contains("a log is refused and stays stopped"), "{}", serving.messages());
    house.call("checkpoint", &[]).refused(3, &["a fault has stopped this log", "LOG_STOPPED"]);
    house.call_as("two", "append", &[&house.path("policy")]).succeeded(&["published"]);
    let why = get(&serving, "/readyz", 503);
    assert!(why.contains(house.origin().as_str()) && why.contains("stopped") && !why.contains(TWO), "{why}");
    let text = get(&serving, "/metrics", 200);
    assert_eq!(sample(&text, "epigraph_log_ready", house.origin().as_str()), 0.0);
    assert_eq!(sample(&text, "epigraph_log_ready", TWO), 1.0);
    serving.stop();
    epigraph(&[&"fsck", &"--config", &house.path("log.toml")]).refused(5, &["is damaged"]);
}

/// The scrubber finds what the start does not read.
#[test]
fn a_log_that_cannot_go_on_stops_itself_alone() {
    let house = house();
    let sealed = house.segments().remove(0);
    flip(&sealed, find(&sealed, FRAME) + SECTOR + 5);
    let serving = serve(&house);
    while !serving.messages().contains("a log cannot go on and is stopped") {
        house.call_as("two", "append", &[&house.path("policy")]).succeeded(&["published"]);
    }
    house.call("append", &[&house.path("policy")]).refused(3, &["LOG_STOPPED"]);
    house.call_as("two", "append", &[&house.path("policy")]).succeeded(&["published"]);
    serving.stop_and_fail();
}
