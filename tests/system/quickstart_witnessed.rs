//! What `quickstart` starts: a log, a signer, four witnesses, a monitor and an audit service that are apart, and receipts that need three witnesses.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use epigraph_core::{Policy, VKey};
use tempfile::TempDir;

use crate::first_minute::{Quickstart, proposed, run_in};
use crate::python::Python;
use crate::support::{epigraph, signal};
use crate::waiting::until;

const ROLES: [&str; 8] =
    ["monitor", "audit", "log", "signer", "witness-1", "witness-2", "witness-3", "witness-4"];

/// Runs it to its end within a directory of its own.
fn once(home: &Path) -> serde_json::Value {
    epigraph(&[&"quickstart", &"--once", &"--json", &"--dir", &home]).succeeded(&[]).object()
}

fn policy(home: &Path) -> Policy {
    fs::read_to_string(home.join("policy")).unwrap().parse().unwrap()
}

fn pems(home: &Path) -> Vec<PathBuf> {
    let mut pems = Vec::new();
    for role in ROLES {
        // The monitor reads under the names of two readers.
        let names: &[&str] = match role {
            "monitor" => &["server.pem", "reader-1.pem", "reader-2.pem"],
            _ => &["server.pem", "client.pem"],
        };
        pems.extend(names.iter().map(|name| home.join("pki").join(role).join(name)));
    }
    pems.extend(["client", "collector"].map(|name| home.join("pki").join(name).join("client.pem")));
    pems
}

/// Everybody is a process with a directory, a key, an address and certificates of its own, and the policy is one that withstands
/// one liar. Broken to see it fail: a threshold of two.
#[test]
fn everybody_is_a_process_with_what_it_needs_for_itself() {
    let dir = TempDir::new().unwrap();
    let home = dir.path().join("home");
    let object = once(&home);
    let processes = object["processes"].as_array().unwrap();
    let all = |key: &str| processes.iter().map(|process| process[key].to_string()).collect::<BTreeSet<_>>();
    for key in ["role", "address", "pid"] {
        assert_eq!(all(key).len(), ROLES.len(), "{key}: {object}");
    }
    for role in ROLES {
        assert!(home.join(role).join("format").is_file(), "{role}");
        let pid = fs::read_to_string(home.join(format!("run/{role}.pid"))).unwrap();
        assert!(all("pid").contains(pid.trim()), "{role}");
    }
    let certificates: BTreeSet<_> = pems(&home).iter().map(|pem| fs::read(pem).unwrap()).collect();
    assert_eq!(certificates.len(), pems(&home).len());
    assert_eq!(certificates.len(), 2 * ROLES.len() + 3);
    for role in ["log", "signer", "monitor", "audit"] {
        let config = home.join(format!("{role}.toml"));
        epigraph(&[&"config", &"check", &"--role", &role, &config]).succeeded(&[]);
    }
    let policy = policy(&home);
    let keys: BTreeSet<String> = policy.witnesses().iter().map(|witness| witness.vkey.to_string()).collect();
    assert_eq!(keys.len(), 4);
    epigraph(&[&"policy", &"check", &home.join("policy"), &"--faulty", &"1"]).succeeded(&[]);
    epigraph(&[&"policy", &"check", &home.join("policy"), &"--faulty", &"2"]).refused(1, &[]);
}

/// After everything is stopped, every receipt satisfies three of four, by our verifier and by the one in Python; and none
/// satisfies a policy that asks for another witness. Broken to see it fail: the log's configuration without its policy.
#[test]
fn every_receipt_is_under_three_of_four_offline() {
    let dir = TempDir::new().unwrap();
    let home = dir.path().join("home");
    assert_eq!(once(&home)["receipts_verified"], 48);
    let file = home.join("policy");
    let stranger: VKey = {
        let other = dir.path().join("other");
        once(&other);
        policy(&other).witnesses()[0].vkey.clone()
    };
    // The same quorum, and somebody who did not sign.
    let text = fs::read_to_string(&file).unwrap();
    let strict = dir.path().join("strict");
    fs::write(
        &strict,
        text.replace("group witnesses", &format!("witness stranger {stranger}\ngroup witnesses"))
            .replace("quorum witnesses", "group more all witnesses stranger\nquorum more"),
    )
    .unwrap();
    let python = Python::find();
    for index in 0..48 {
        let receipt = home.join(format!("receipts/{index:06}.tlog-proof"));
        epigraph(&[&"verify", &receipt, &"--policy", &file])
            .succeeded(&[&format!("entry {index} is in the log")]);
        if index % 16 == 3 {
            epigraph(&[&"verify", &receipt, &"--policy", &strict]).refused(1, &["stranger"]);
            if let Some(python) = &python {
                python.verify(&file, &receipt, &receipt.with_extension("entry")).succeeded(&[]);
            }
        }
    }
}

/// A page of the log's listener for health and metrics.
fn readyz(home: &Path) -> String {
    let config = fs::read_to_string(home.join("log.toml")).unwrap();
    let (_, metrics) = config.split_once("[metrics]\naddress = \"").unwrap();
    let mut stream = TcpStream::connect(metrics.split_once('"').unwrap().0).unwrap();
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// A command in a process group of its own, which ends with this.
struct Background(Child);

impl Background {
    fn start(dir: &Path, command: &str) -> Background {
        let mut shell = Command::new("sh");
        shell.args(["-c", command]).current_dir(dir).process_group(0);
        Background(shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        signal("KILL", &format!("-{}", self.0.id()));
        let _ = self.0.wait();
    }
}

/// W6, with the commands that quickstart prints: one witness is killed and nothing changes, which is said in a line; a second,
/// and entries are taken and not published; one starts again, by hand, and what waited is published. Broken to see it fail:
/// a threshold of two in the policy; a witness that ends ends quickstart.
#[test]
fn the_invitation_to_kill_witnesses_works_as_it_stands() {
    let dir = TempDir::new().unwrap();
    let home = dir.path().join("it's home");
    let mut quickstart = Quickstart::start(dir.path(), "it's home");
    let text = quickstart.text.clone();
    let size = || {
        let out = epigraph(&[&"checkpoint", &"--profile", &home]).succeeded(&[]).out.clone();
        out.lines().nth(1).unwrap().parse::<u64>().unwrap()
    };

    let one = proposed(&text, "Kill a witness, and nothing changes:");
    run_in(dir.path(), &one[0]);
    let said = quickstart.says("witness-4 has ended");
    assert!(said.contains("3 witnesses of this quickstart are left: nothing changes"), "{said}");
    run_in(dir.path(), &one[1]).succeeded(&["1 entries appended, indexes 48 to 48: published"]);
    assert_eq!((one.len(), size()), (2, 49));

    let two =
        proposed(&text, "Kill a second one: entries are still taken, and nothing is published any more:");
    run_in(dir.path(), &two[0]);
    let said = quickstart.says("witness-3 has ended");
    assert!(
        said.contains("2 witnesses of this quickstart are left: entries are taken, and nothing"),
        "{said}"
    );
    run_in(dir.path(), &two[1]).succeeded(&["1 entries appended, indexes 49 to 49"]);
    while !readyz(&home).contains("too few witnesses") {
        assert_eq!(size(), 49);
    }
    assert_eq!((two.len(), size()), (2, 49));

    let again = proposed(&text, "Start one again, in another terminal, and what waits is published:");
    let back = Background::start(dir.path(), &again[0]);
    until("publication", || (size() >= 50).then_some(()));
    assert_eq!(again.len(), 1);
    let ended = quickstart.stop();
    ended.succeeded(&["Stopped. The log is in it's home"]);
    assert_eq!(ended.err, "");
    drop(back);
    assert_eq!(once(&home)["first_index"], 50);
}

/// Nobody appended for longer than the monitor allows: whoever comes back is told that it says so, and the log goes on. Broken to see it fail:
/// any finding ends quickstart.
#[test]
fn a_directory_to_which_somebody_comes_back_goes_on_whatever_was_late() {
    let dir = TempDir::new().unwrap();
    let home = dir.path().join("home");
    once(&home);
    let config = home.join("monitor.toml");
    let text = fs::read_to_string(&config).unwrap();
    assert!(!text.contains("stale_ms"), "the monitor has its default");
    fs::write(&config, text.replacen("[[log.reader]]", "[log.after]\nstale_ms = 1000\n\n[[log.reader]]", 1))
        .unwrap();
    for round in 1..3 {
        assert_eq!(once(&home)["first_index"], 48 * round);
    }
}

/// A monitor that ends is named, and the log goes on. Broken to see it fail: its end is quickstart's.
#[test]
fn the_log_goes_on_when_nobody_reads_along() {
    let dir = TempDir::new().unwrap();
    let home = dir.path().join("home");
    let mut quickstart = Quickstart::start(dir.path(), "home");
    signal("KILL", fs::read_to_string(home.join("run/monitor.pid")).unwrap().trim());
    quickstart.says("nobody reads along any more");
    let input = dir.path().join("input");
    fs::write(&input, "one\n").unwrap();
    epigraph(&[&"append", &input, &"--profile", &home]).succeeded(&["published"]);
    quickstart.stop().succeeded(&["Stopped."]);
}

/// Ctrl-C ends all of them, in order: what was taken is published, and nobody is left. Broken to see it fail: the children are in the
/// terminal's process group; all are asked to stop at once.
#[test]
fn nobody_is_left_when_it_ends() {
    let dir = TempDir::new().unwrap();
    let home = dir.path().join("home");
    let quickstart = Quickstart::start(dir.path(), "home");
    let input = dir.path().join("input");
    fs::write(&input, "one\ntwo\n").unwrap();
    epigraph(&[&"append", &input, &"--wait", &"durable", &"--profile", &home]).succeeded(&[]);
    quickstart.stop().succeeded(&["Stopped."]);
    for role in ROLES {
        let pid = fs::read_to_string(home.join(format!("run/{role}.pid"))).unwrap();
        assert!(!Path::new("/proc").join(pid.trim()).exists(), "{role}");
    }
    // Published before the end: one of the two copies of the newest checkpoint is of all entries.
    let origin = policy(&home).logs()[0].name().to_origin();
    let head = format!("{origin}\n50\n");
    let published = ["current-a", "current-b"].map(|copy| {
        let path = home.join(format!("log/{}/checkpoints/{copy}", origin.hash()));
        String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned()
    });
    assert!(published.iter().any(|copy| copy.contains(&head)), "{published:?}");
}

/// A witness that cannot start is named, and may be missing. Broken to see it fail: its failure is quickstart's.
#[test]
fn a_witness_that_cannot_start_is_named_and_missed_by_nobody() {
    let dir = TempDir::new().unwrap();
    let home = dir.path().join("home");
    once(&home);
    let address = fs::read_to_string(home.join("run/witness-2.addr")).unwrap();
    let _taken = TcpListener::bind(address.trim()).unwrap();
    let ended = epigraph(&[&"quickstart", &"--once", &"--dir", &home]);
    ended.succeeded(&["continues with 48 entries", "48 of 48, offline"]);
    assert!(ended.err.contains("witness-2 did not start") && ended.err.contains("cannot listen"), "{ended}");
    assert!(!ended.out.contains("witness-2 is serving"), "{ended}");
}

/// What the signer says when it refuses is what quickstart says. Broken to see it fail: its messages are not read.
#[test]
fn a_signer_that_ends_ends_it() {
    let dir = TempDir::new().unwrap();
    let home = dir.path().join("home");
    once(&home);
    fs::remove_file(home.join("signer/heads")).unwrap();
    epigraph(&[&"quickstart", &"--once", &"--dir", &home]).refused(5, &["the signer did not start", "heads"]);
}

#[test]
fn a_directory_with_witnesses_is_not_alone() {
    let dir = TempDir::new().unwrap();
    let home = dir.path().join("home");
    once(&home);
    epigraph(&[&"quickstart", &"--once", &"--alone", &"--dir", &home])
        .refused(2, &["publishes nothing without them", "leave --alone out, or choose another --dir"]);
}

/// Certificates that soon expire are renewed for everybody. Broken to see it fail: only the log's are looked at.
#[test]
fn certificates_of_every_role_are_renewed() {
    let dir = TempDir::new().unwrap();
    let home = dir.path().join("home");
    once(&home);
    let ca = home.join("pki");
    for pem in pems(&home) {
        epigraph(&[&"pki", &"renew", &"--ca", &ca, &pem, &"--days", &"5"]).succeeded(&[]);
    }
    let read = || pems(&home).iter().map(|pem| fs::read(pem).unwrap()).collect::<Vec<_>>();
    let old = read();
    once(&home);
    for ((pem, old), new) in pems(&home).iter().zip(old).zip(read()) {
        assert_ne!(old, new, "{}", pem.display());
    }
}
