//! The first minute: what `quickstart` prints, that its commands work as they stand, and how it ends.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use tempfile::TempDir;

use crate::support::{Ended, command, epigraph, signal};

/// A quickstart that serves until it is told to stop, as a terminal runs it: in a process group of its own.
struct Quickstart {
    child: Child,
    stdout: BufReader<ChildStdout>,
    _stdin: ChildStdin,
    /// What it printed until it served.
    text: String,
}

impl Quickstart {
    /// Runs it within `dir` on the directory `home` there.
    fn start(dir: &Path, home: &str) -> Quickstart {
        let mut child = command(&[&"quickstart", &"--dir", &home])
            .current_dir(dir)
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut text = String::new();
        while !text.contains("\nServing on ") {
            assert_ne!(stdout.read_line(&mut text).unwrap(), 0, "{text}");
        }
        Quickstart { _stdin: child.stdin.take().unwrap(), child, stdout, text }
    }

    fn end(mut self) -> Ended {
        let (mut out, mut err) = (String::new(), String::new());
        self.stdout.read_to_string(&mut out).unwrap();
        self.child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        Ended { code: self.child.wait().unwrap().code(), out, err }
    }
}

impl Drop for Quickstart {
    fn drop(&mut self) {
        // With its log, which is in the same group. After a test that went well there is nobody left to be found.
        let group = format!("-{}", self.child.id());
        let _ = Command::new("kill").args(["-s", "KILL", "--", &group]).stderr(Stdio::null()).status();
        let _ = self.child.wait();
    }
}

/// Runs the commands that the text proposes, as they stand, where the text was printed.
fn run_proposed(text: &str, dir: &Path) -> Vec<Ended> {
    let (_, after) = text.split_once("\nTry it yourself:\n").unwrap();
    let commands: Vec<_> = after.lines().map_while(|line| line.strip_prefix("  ")).collect();
    assert_eq!(commands.len(), 3, "{text}");
    let run = |command: &&str| {
        let ended: Ended = Command::new("sh").args(["-c", command]).current_dir(dir).output().unwrap().into();
        assert_eq!(ended.code, Some(0), "{command}\n{ended}");
        ended
    };
    commands.iter().map(run).collect()
}

#[test]
fn the_proposed_commands_work_as_they_stand_while_it_serves() {
    let dir = TempDir::new().unwrap();
    for home in ["home", "a directory, isn't it"] {
        let quickstart = Quickstart::start(dir.path(), home);
        let ended = run_proposed(&quickstart.text, dir.path());
        ended[0].succeeded(&["verified: entry 3 is in the log"]);
        ended[1]
            .succeeded(&["1 entries appended, indexes 48 to 48: published, and each receipt is verified"]);
        ended[2].succeeded(&["\n49\n", "verified: signed by the log"]);
    }
}

#[test]
fn the_proposed_commands_work_as_they_stand_after_a_single_run() {
    let dir = TempDir::new().unwrap();
    let home = "it's here";
    let ended: Ended = command(&[&"quickstart", &"--once", &"--dir", &home])
        .current_dir(dir.path())
        .output()
        .unwrap()
        .into();
    let ended = run_proposed(&ended.succeeded(&[]).out, dir.path());
    ended[0].succeeded(&["verified: entry 3 is in the log"]);
    ended[1].succeeded(&["verified: entry 3 is in the log"]);
    ended[2].succeeded(&["continues with 48 entries"]);
}

#[test]
fn it_says_what_is_thrown_away_shows_what_is_refused_and_names_what_is_not_proven() {
    let dir = TempDir::new().unwrap();
    let home = dir.path().join("home");
    let ended = epigraph(&[&"quickstart", &"--once", &"--dir", &home]);
    let first = ended.succeeded(&[]).out.lines().next().unwrap();
    assert!(first.contains(home.to_str().unwrap()) && first.contains("throw-away"), "{first}");
    for phase in ["keys and certificates", "log is serving", "entries appended", "receipts verified"] {
        let line = ended.out.lines().find(|line| line.contains(phase)).unwrap();
        assert!(line.contains('✓') && line.contains(" ms "), "{line}");
    }
    ended.succeeded(&[
        "refused: entry 3 is not proven",
        "verified at index 3, under a checkpoint of size 48",
        "entries/s",
        "Not proven yet",
        "witnesses",
    ]);
    assert!(fs::read_to_string(home.join("README.txt")).unwrap().contains("THROW-AWAY"));
}

#[test]
fn without_a_terminal_or_with_no_color_nothing_is_coloured() {
    let dir = TempDir::new().unwrap();
    let run = |no_color: Option<&str>, color: &str| {
        let home = dir.path().join("home");
        let mut command = command(&[&"quickstart", &"--once", &"--dir", &home, &"--color", &color]);
        if let Some(value) = no_color {
            command.env("NO_COLOR", value);
        }
        let ended: Ended = command.output().unwrap().into();
        let escapes = ended.succeeded(&[]).out.matches('\x1b').count();
        assert!(!ended.err.contains('\x1b') && !ended.out.contains('\r'), "{ended}");
        escapes
    };
    assert_eq!(run(None, "auto"), 0);
    assert_eq!(run(Some("1"), "auto"), 0);
    assert_eq!(run(None, "never"), 0);
    assert_ne!(run(None, "always"), 0);
}

#[test]
fn ctrl_c_ends_it_well_and_says_how_to_come_back() {
    let dir = TempDir::new().unwrap();
    for (name, whole_group) in [("INT", true), ("INT", false), ("TERM", false)] {
        let quickstart = Quickstart::start(dir.path(), "home");
        let pid = quickstart.child.id();
        signal(name, &if whole_group { format!("-{pid}") } else { pid.to_string() });
        let ended = quickstart.end();
        ended.succeeded(&["Stopped. The log is in home; to go on: ", "quickstart --dir home"]);
        assert_eq!(ended.err, "");
    }
    let quickstart = Quickstart::start(dir.path(), "home");
    assert!(quickstart.text.contains("continues with 144 entries"), "{}", quickstart.text);
}

#[test]
fn a_second_quickstart_on_the_same_directory_is_refused_and_the_first_goes_on() {
    let dir = TempDir::new().unwrap();
    let quickstart = Quickstart::start(dir.path(), "home");
    let home = dir.path().join("home");
    epigraph(&[&"quickstart", &"--once", &"--dir", &home]).refused(
        5,
        &[
            "already running here",
            &format!("process {}", quickstart.child.id()),
            "Stop it, or choose another --dir",
        ],
    );
    epigraph(&[&"checkpoint", &"--profile", &home]).succeeded(&["verified: signed by the log"]);
}

#[test]
fn a_log_that_ends_under_quickstart_ends_it_too_and_the_next_run_goes_on() {
    let dir = TempDir::new().unwrap();
    let quickstart = Quickstart::start(dir.path(), "home");
    let pid = fs::read_to_string(dir.path().join("home/run/log.pid")).unwrap();
    signal("KILL", pid.trim());
    let ended = quickstart.end();
    ended.refused(5, &["the log", "stopped"]);
    assert!(Quickstart::start(dir.path(), "home").text.contains("continues with 48 entries"));
}
