//! A disk that is really full: a small file system in memory, mounted where the tests run as root.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use epigraph_event::chain::Tip;
use epigraph_rpc::{CallError, Reason};

use crate::audit::{Audited, collected};
use crate::metrics::get;
use crate::support::{House, Serving, block_on};

/// A mounted tmpfs, gone with its holder.
pub struct Disk(pub PathBuf);

impl Disk {
    /// `None`, and a line that says so, if this process may not mount.
    pub fn mount(at: PathBuf, mib: u32) -> Option<Disk> {
        fs::create_dir(&at).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "none"])
            .arg(&at)
            .output()
            .is_ok_and(|output| output.status.success());
        if !mounted {
            println!("SKIPPED: mounting a small file system takes root");
        }
        mounted.then_some(Disk(at))
    }

    pub fn grow(&self, mib: u32) {
        let option = format!("remount,size={mib}m");
        assert!(Command::new("mount").args(["-o", &option]).arg(&self.0).status().unwrap().success());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// F1, F2: journal and tree on a volume that fills up. Seen to fail with a journal that takes every failure to make a segment
/// for a fatal one.
#[test]
fn a_full_disk_refuses_appends_and_nothing_else_until_there_is_room() {
    let house = House::new();
    let Some(disk) = Disk::mount(house.outside("disk"), 56) else { return };
    let copied = Command::new("cp").arg("-a").args([house.path("log"), disk.0.join("log")]).status().unwrap();
    assert!(copied.success());
    house.edit(
        "log.toml",
        "directory = \"log\"",
        &format!("directory = \"{}\"", disk.0.join("log").display()),
    );
    let serving = house.serve();
    let lines = house.outside("lines");
    fs::write(&lines, crate::damage::large_lines(100)).unwrap();
    let append = || house.call("append", &[&"--wait", &"durable", &lines]);

    let (mut taken, refused) = fill(append);
    refused.refused(3, &["disk is full", "nothing was appended", "NO_SPACE"]);
    assert!(taken > 100, "{taken}");
    // What was taken is read, proven and published; the process runs and says what it lacks.
    house.call("entries", &[&"0", &"2"]).succeeded(&["one", "three"]);
    assert_eq!(get(&serving, "/healthz", 200), "alive\n");
    assert!(get(&serving, "/readyz", 503).contains("no space"));
    let published = published(&house, &serving);
    assert!(published >= taken, "{published} < {taken}");

    disk.grow(200);
    append().succeeded(&["100 entries"]);
    taken = published + 100;
    get(&serving, "/readyz", 200);
    serving.stop();
    let serving = house.serve();
    assert_eq!(serving.entries, taken);
    house.call("entries", &[&(taken - 1).to_string()]).succeeded(&["00099"]);
}

/// Appends a hundred entries at a time until that is refused.
fn fill(append: impl Fn() -> crate::support::Ended) -> (u64, crate::support::Ended) {
    let mut taken = 3;
    loop {
        let ended = append();
        if ended.code != Some(0) {
            return (taken, ended);
        }
        taken += 100;
    }
}

/// How many entries are published once nothing waits any more.
fn published(house: &House, serving: &Serving) -> u64 {
    while crate::metrics::sample(
        &get(serving, "/metrics", 200),
        "epigraph_log_publication_behind_seconds",
        "",
    ) > 0.0
    {}
    house.call("checkpoint", &[&"--json"]).succeeded(&[]).object()["size"].as_u64().unwrap()
}

/// The audit service on a volume that fills up: what comes is refused by name, what is there is read on, and it goes on when there is room.
/// Seen to fail with the question for room left out.
#[test]
fn a_disk_that_fills_up_takes_no_more_events_until_there_is_room() {
    let mut audited = Audited::new();
    let Some(disk) = Disk::mount(audited.house.outside("disk"), 300) else { return };
    let first = audited.batch(&Tip::default(), collected(&audited.entropy));
    let second = audited.batch(&Tip::after(first.signed()), collected(&audited.entropy));
    audited.stop();
    let (from, to) = (audited.house.path("audit"), disk.0.join("audit"));
    assert!(Command::new("cp").arg("-a").args([&from, &to]).status().unwrap().success());
    audited.house.edit("audit.toml", "directory = \"audit\"", &format!("directory = \"{}\"", to.display()));
    audited.start();
    audited.submit("one", &[first]);

    let ballast = disk.0.join("ballast");
    fs::write(&ballast, vec![1; 100 << 20]).unwrap();
    let refused = block_on(async {
        let (mut sender, mut answers) = audited.peer("one").submit("").await.unwrap();
        sender.send(second.encode().into()).await;
        answers.next().await
    });
    let Err(CallError::Refused(refused)) = refused else { panic!("{refused:?}") };
    assert_eq!(refused.reason(), Reason::NoSpace);
    assert!(refused.retry_delay().is_some() && refused.to_string().contains("256 MiB"), "{refused}");
    get(audited.serving(), "/readyz", 503);
    audited.house.call("audit", &[&"status"]).succeeded(&["2 sources, 0 gaps"]);
    fs::remove_file(&ballast).unwrap();
    audited.submit("one", &[second]);
    get(audited.serving(), "/readyz", 200);
}
