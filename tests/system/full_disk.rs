//! A disk that is really full: a small file system in memory, mounted where the tests run as root.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::metrics::get;
use crate::support::{House, Serving};

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
