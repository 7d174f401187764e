//! The first minute: what `quickstart` prints, that its commands work as they stand, and how it ends.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use tempfile::TempDir;

use crate::support::{Ended, command, epigraph, signal};

/// A quickstart that serves until it is told to stop, as a terminal runs it: in a process group of its own.
pub struct Quickstart {
    child: Child,
    stdout: BufReader<ChildStdout>,
    _stdin: ChildStdin,
    /// What it printed until it served.
    pub text: String,
}

impl Quickstart {
    /// Runs it within `dir` on the directory `home` there.
    pub fn start(dir: &Path, home: &str) -> Quickstart {
        Quickstart::start_with(dir, &["--dir", home])
    }

    fn start_with(dir: &Path, args: &[&str]) -> Quickstart {
        let mut child = command(&[&"quickstart"])
            .args(args)
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

    /// The next line that has this text.
    pub fn says(&mut self, text: &str) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.stdout.read_line(&mut line).unwrap(), 0, "it ended and never said {text:?}");
            if line.contains(text) {
                return line;
            }
        }
    }

    /// Ctrl-C, as a terminal sends it: to the whole group.
    pub fn stop(self) -> Ended {
        signal("INT", &format!("-{}", self.child.id()));
        self.end()
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
        // Its processes end when it does not hold their standard input any more. After a test that went well there is nobody left
        // to be found.
        let group = format!("-{}", self.child.id());
        let _ = Command::new("kill").args(["-s", "KILL", "--", &group]).stderr(Stdio::null()).status();
        let _ = self.child.wait();
    }
}

/// The commands below a line of the text, as they stand.
pub fn proposed(text: &str, below: &str) -> Vec<String> {
    let (_, after) = text.split_once(&format!("\n{below}\n")).unwrap_or_else(|| panic!("{below:?}: {text}"));
    after.lines().map_while(|line| line.strip_prefix("  ")).map(ToOwned::to_owned).collect()
}

/// Runs a command where it was printed.
pub fn run_in(dir: &Path, command: &str) -> Ended {
    let ended: Ended = Command::new("sh").args(["-c", command]).current_dir(dir).output().unwrap().into();
    assert_eq!(ended.code, Some(0), "{command}\n{ended}");
    ended
}

/// Runs the commands that the text proposes, as they stand, where the text was printed.
fn run_proposed(text: &str, dir: &Path) -> Vec<Ended> {
    let commands = proposed(text, "Try it yourself:");
    assert_eq!(commands.len(), 3, "{text}");
    commands.iter().map(|command| run_in(dir, command)).collect()
}

const APPENDED: &str = "1 entries appended, indexes 48 to 48: published, and each receipt is verified";

#[test]
fn the_proposed_commands_work_as_they_stand_while_it_serves() {
    let dir = TempDir::new().unwrap();
    let check = |args: &[&str], checkpoint: &str| {
        let quickstart = Quickstart::start_with(dir.path(), args);
        let ended = run_proposed(&quickstart.text, dir.path());
        ended[0].succeeded(&["verified: entry 3 is in the log"]);
        ended[1].succeeded(&[APPENDED]);
        ended[2].succeeded(&["49", checkpoint]);
    };
    for home in ["home", "a directory, isn't it"] {
        check(&["--dir", home], "enough: the quorum witnesses is met");
        check(&["--alone", "--dir", &format!("alone {home}")], "verified: signed by the log");
    }
}

#[test]
fn the_proposed_commands_work_as_they_stand_after_a_single_run() {
    let dir = TempDir::new().unwrap();
    let check = |args: &[&str], second: &str| {
        let mut command = command(&[&"quickstart", &"--once"]);
        let ended: Ended = command.args(args).current_dir(dir.path()).output().unwrap().into();
        let ended = run_proposed(&ended.succeeded(&[]).out, dir.path());
        ended[0].succeeded(&["verified: entry 3 is in the log"]);
        ended[1].succeeded(&[second]);
        ended[2].succeeded(&["continues with 48 entries"]);
    };
    check(&["--dir", "it's here"], "enough: the quorum witnesses is met");
    check(&["--alone", "--dir", "it's there"], "verified: entry 3 is in the log");
}

#[test]
fn it_says_what_is_thrown_away_shows_what_is_refused_and_names_what_is_not_proven() {
    let dir = TempDir::new().unwrap();
    let check = |name: &str, mode: &[&str], phases: &[&str], not_proven: &str| {
        let home = dir.path().join(name);
        let mut command = command(&[&"quickstart", &"--once", &"--dir", &home]);
        let ended: Ended = command.args(mode).output().unwrap().into();
        let first = ended.succeeded(&[]).out.lines().next().unwrap();
        assert!(first.contains(home.to_str().unwrap()) && first.contains("throw-away"), "{first}");
        let always = ["keys and certificates", "log is serving", "entries appended", "receipts verified"];
        for phase in always.iter().chain(phases) {
            let line = ended.out.lines().find(|line| line.contains(phase)).unwrap();
            assert!(line.contains('✓') && line.contains(" ms "), "{line}");
        }
        ended.succeeded(&[
            "refused: entry 3 is not proven",
            "verified at index 3, under a checkpoint of size 48",
            "entries/s",
            "Not proven yet",
            not_proven,
        ]);
        assert!(fs::read_to_string(home.join("README.txt")).unwrap().contains("THROW-AWAY"));
    };
    check("alone", &["--alone"], &[], "independent witnesses make that impossible, and this log has none");
    let others = ["signer is", "witness-1 is", "witness-2 is", "witness-3 is", "witness-4 is", "all agree"];
    check("home", &[], &others, "that the witnesses are independent. All of them run on this machine");
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
