//! The rules of ARCHITECTURE.md that no lint enforces: which crate imports which, and what is named where.
//!
//! A rule looks at one line of code, comments taken off, and knows no syntax. That is enough against a slip; it is no
//! defence against somebody who wants to get around it.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test ends where its promise is broken")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use serde_json::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Which of our crates each crate may import. Dev-dependencies are free: a test may wire what the root package wires.
const ARROWS: &[(&str, &[&str])] = &[
    ("core", &[]),
    ("rpc", &["core"]),
    ("store", &["core"]),
    ("sequencer", &["core", "rpc", "store"]),
    ("signer", &["core", "rpc", "store"]),
    ("witness", &["core", "rpc", "store"]),
    ("client", &["core", "rpc"]),
    ("monitor", &["core", "rpc", "store", "client"]),
    ("event", &["core"]),
    ("collector", &["core", "rpc", "store", "event"]),
    ("audit", &["core", "rpc", "store", "client", "event"]),
];

/// A crate has a name below this prefix; the root package has the bare name and may import every crate.
const PREFIX: &str = "epigraph-";

/// Longer than this nobody reads a file as a whole.
const MAX_LINES: usize = 800;

/// One line of a source file.
#[derive(Clone, Copy)]
struct Line<'a> {
    /// The file's path from the root of the workspace.
    path: &'a str,
    number: usize,
    text: &'a str,
    /// Whether it is compiled for tests or benches only.
    is_test: bool,
}

struct Rule {
    /// What must hold.
    says: &'static str,
    is_broken_by: fn(Line) -> bool,
    /// A path, a number and a line that break it, so that a rule which finds nothing is noticed.
    example: (&'static str, usize, &'static str),
    /// The same that do not.
    counter_example: (&'static str, usize, &'static str),
}

const RULES: &[Rule] = &[
    Rule {
        says: "sled is named in crates/store/src/sled.rs only",
        is_broken_by: |line| {
            // The module that wraps it has its name.
            let module = ["mod sled;", "crate::sled::"].iter().any(|module| line.text.contains(module));
            let elsewhere = line.path != "crates/store/src/sled.rs" && !module;
            !line.is_test && elsewhere && names(line, |word| word == "sled")
        },
        example: ("crates/store/src/tree.rs", 2, "    let db = sled::open(path)?;"),
        counter_example: ("crates/store/src/sled.rs", 2, "use sled::Db;"),
    },
    Rule {
        says: "Cedar is named in crates/audit/src/guard/policy.rs only",
        is_broken_by: |line| {
            let elsewhere = line.path != "crates/audit/src/guard/policy.rs";
            !line.is_test && elsewhere && names(line, is_of("cedar_policy"))
        },
        example: ("crates/audit/src/guard/plan.rs", 2, "use cedar_policy::Decision;"),
        counter_example: ("crates/audit/src/guard/policy.rs", 2, "use cedar_policy::Decision;"),
    },
    Rule {
        says: "tonic is named in crates/rpc, crates/client and files called service.rs and their folders only",
        is_broken_by: |line| {
            // The messages of OpenTelemetry stand in a module of this name; they are prost's and call nobody.
            let messages = line.path.starts_with("crates/event/")
                && line.text.contains("use opentelemetry_proto::tonic::");
            !line.is_test && !is_wire(line.path) && !messages && names(line, is_of("tonic"))
        },
        example: ("crates/sequencer/src/log.rs", 2, "use tonic_types::StatusExt;"),
        counter_example: ("crates/sequencer/src/service.rs", 2, "use tonic::Status;"),
    },
    Rule {
        says: "prost is named in crates/rpc, crates/client, crates/event and files called service.rs and their folders only",
        is_broken_by: |line| {
            let allowed = line.is_test || is_wire(line.path) || line.path.starts_with("crates/event/");
            !allowed && names(line, is_of("prost"))
        },
        example: ("crates/core/src/note.rs", 2, "use prost::Message;"),
        counter_example: ("crates/event/src/leaf.rs", 2, "use prost::Message;"),
    },
    Rule {
        says: "time is an argument: only src/runtime.rs and the benches name the system's clocks",
        is_broken_by: |line| {
            let reads = names(line, |word| word == "SystemTime") || code(line.text).contains("Instant::now");
            !line.is_test && line.path != "src/runtime.rs" && reads
        },
        example: ("crates/signer/src/signer.rs", 2, "let start = std::time::Instant::now();"),
        counter_example: ("src/runtime.rs", 2, "let now = SystemTime::now();"),
    },
    Rule {
        says: "randomness is an argument: only src/runtime.rs asks the system for it",
        is_broken_by: |line| {
            let asks = names(line, |word| matches!(word, "getrandom" | "OsRng" | "SysRng" | "thread_rng"));
            !line.is_test && line.path != "src/runtime.rs" && asks
        },
        example: ("crates/signer/src/keys.rs", 2, "getrandom::fill(&mut seed)?;"),
        counter_example: ("src/runtime.rs", 2, "getrandom::fill(bytes)"),
    },
    Rule {
        says: "libraries never end the process: a fatal error is returned up to main",
        is_broken_by: |line| {
            let ends = ["process::exit", "process::abort"].iter().any(|end| code(line.text).contains(end));
            !line.is_test && ends
        },
        example: ("crates/store/src/journal.rs", 2, "std::process::exit(5);"),
        counter_example: ("src/main.rs", 2, "fn main() -> std::process::ExitCode {"),
    },
    Rule {
        says: "the way around verification is called assertion, and only core, tests and those who exist to be caught take it",
        is_broken_by: |line| {
            // rustls calls its own door so too: a certificate verifier ends by asserting that it verified.
            let of_rustls = line.path == "crates/rpc/src/tls/client.rs"
                && line.text.contains("ServerCertVerified::assertion()");
            let allowed =
                line.is_test || line.path.starts_with("crates/core/") || is_adversary(line.path) || of_rustls;
            !allowed && names(line, |word| word == "assertion" || word.ends_with("_assertion"))
        },
        example: ("crates/signer/src/signer.rs", 2, "let line = key.sign_assertion(&text);"),
        counter_example: ("crates/core/src/progress.rs", 2, "let line = key.sign_assertion(&text);"),
    },
    Rule {
        says: "the adversary is run as a process: only src/main.rs starts it, and nothing else imports it",
        is_broken_by: |line| {
            let imports =
                code(line.text).contains("adversary::") || code(line.text).contains("mod adversary");
            imports && !line.is_test && line.path != "src/main.rs" && !is_adversary(line.path)
        },
        example: ("src/quickstart/demo.rs", 2, "use crate::adversary::run;"),
        counter_example: ("src/main.rs", 2, "mod adversary;"),
    },
    Rule {
        says: "what is not done is an issue, not a note in the code",
        is_broken_by: |line| {
            let macros = [concat!("to", "do!"), concat!("unimple", "mented!")];
            let notes = [concat!("TO", "DO"), concat!("FIX", "ME")];
            macros.iter().any(|name| code(line.text).contains(name))
                || words(line.text).any(|word| notes.contains(&word))
        },
        example: ("crates/core/src/note.rs", 2, concat!("// TO", "DO: the empty note")),
        counter_example: ("crates/core/src/note.rs", 2, "todos.push(note);"),
    },
    Rule {
        says: "a file begins with //! and what it owns; a tests.rs speaks for the module above it",
        is_broken_by: |line| {
            line.number == 1 && !line.path.ends_with("/tests.rs") && !line.text.starts_with("//!")
        },
        example: ("crates/core/src/note.rs", 1, "use crate::hash::Hash;"),
        counter_example: ("crates/core/src/note.rs", 1, "//! Signed notes."),
    },
    Rule {
        says: "a file has at most 800 lines: split it by idea",
        is_broken_by: |line| line.number == MAX_LINES + 1,
        example: ("crates/core/src/note.rs", 801, "}"),
        counter_example: ("crates/core/src/note.rs", 800, "}"),
    },
];

/// Parties that lie, to be caught in demos.
fn is_adversary(path: &str) -> bool {
    path == "src/adversary.rs" || path.starts_with("src/adversary/")
}

/// Where the types of the gRPC library may be named.
fn is_wire(path: &str) -> bool {
    path.starts_with("crates/rpc/")
        || path.starts_with("crates/client/")
        || path.ends_with("/service.rs")
        || path.contains("/service/")
}

/// Matches a crate and those that belong to it: `tonic` and `tonic_types`.
fn is_of(name: &'static str) -> impl Fn(&str) -> bool {
    move |word| word.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
}

/// The line without its comment. What follows `//` in a text is lost too, unless something stands right before it, as
/// in `https://`.
fn code(text: &str) -> &str {
    let mut slashes = text.match_indices("//").map(|(at, _)| &text[..at]);
    slashes.find(|before| before.chars().next_back().is_none_or(char::is_whitespace)).unwrap_or(text)
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

fn names(line: Line, is_meant: impl Fn(&str) -> bool) -> bool {
    words(code(line.text)).any(is_meant)
}

fn broken(rule: &Rule, line: Line) -> Option<String> {
    let Line { path, number, text, .. } = line;
    (rule.is_broken_by)(line)
        .then(|| format!("{path}:{number}: {} (ARCHITECTURE.md, Rules)\n    {}", rule.says, text.trim()))
}

/// Every Rust file of the workspace, as its path from the root and its text.
fn sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for folder in ["src", "crates", "tests", "benches"] {
        collect(&Path::new(ROOT).join(folder), &mut found);
    }
    found
}

fn collect(dir: &Path, found: &mut Vec<(String, String)>) {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let relative = path.strip_prefix(ROOT).unwrap().to_str().unwrap().to_owned();
            found.push((relative, fs::read_to_string(&path).unwrap()));
        }
    }
}

/// The lines of a file. In a file of the program the tests stand last, below `#[cfg(test)]`.
fn lines<'a>(path: &'a str, text: &'a str) -> impl Iterator<Item = Line<'a>> {
    let in_folder = |name: &str| path.split('/').any(|part| part == name);
    let mut is_test = in_folder("tests") || in_folder("benches") || path.ends_with("/tests.rs");
    (1..).zip(text.lines()).map(move |(number, text)| {
        is_test |= text == "#[cfg(test)]";
        Line { path, number, text, is_test }
    })
}

/// What a package imports of ours, without those of its tests.
fn imports(package: &Value) -> impl Iterator<Item = &str> {
    let dependencies = package["dependencies"].as_array().into_iter().flatten();
    let real = dependencies.filter(|dependency| dependency["kind"] != "dev");
    real.filter_map(|dependency| dependency["name"].as_str()?.strip_prefix(PREFIX))
}

fn forbidden_arrows(metadata: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for package in metadata["packages"].as_array().unwrap() {
        let Some(name) = package["name"].as_str().unwrap().strip_prefix(PREFIX) else { continue };
        let Some((_, allowed)) = ARROWS.iter().find(|(of, _)| *of == name) else {
            found.push(format!("{name} is not in the table of arrows: say what it may import"));
            continue;
        };
        let forbidden = imports(package).filter(|import| !allowed.contains(import));
        found.extend(forbidden.map(|import| {
            format!("{name} imports {import}, it may import {allowed:?} (ARCHITECTURE.md, Rules: arrows)")
        }));
    }
    found
}

#[test]
fn crates_import_only_what_they_may() {
    let cargo = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(ROOT)
        .output()
        .unwrap();
    assert!(cargo.status.success(), "{}", String::from_utf8_lossy(&cargo.stderr));
    let metadata: Value = serde_json::from_slice(&cargo.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let seen = |name: &str| packages.iter().any(|package| package["name"] == format!("{PREFIX}{name}"));
    for (name, _) in ARROWS {
        assert!(seen(name), "{name} is in the table of arrows, but there is no such crate");
    }
    let found = forbidden_arrows(&metadata);
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn a_forbidden_arrow_is_found() {
    let check = |name: &str, import: &str, kind: Value, expected: bool| {
        let dependency = serde_json::json!({ "name": import, "kind": kind });
        let metadata = serde_json::json!({ "packages": [{ "name": name, "dependencies": [dependency] }] });
        assert_eq!(forbidden_arrows(&metadata).len(), usize::from(expected), "{name} -> {import} {kind}");
    };
    check("epigraph-core", "epigraph-store", Value::Null, true);
    check("epigraph-sequencer", "epigraph-signer", Value::Null, true);
    check("epigraph-sequencer", "epigraph-signer", "build".into(), true);
    check("epigraph-sequencer", "epigraph-signer", "dev".into(), false);
    check("epigraph-sequencer", "epigraph-store", Value::Null, false);
    check("epigraph-sequencer", "tonic", Value::Null, false);
    check("epigraph-utils", "tonic", Value::Null, true);
    check("epigraph", "epigraph-signer", Value::Null, false);
}

#[test]
fn sources_keep_the_rules() {
    let sources = sources();
    for known in ["src/main.rs", "crates/core/src/lib.rs", "tests/layering.rs", "benches/system/main.rs"] {
        assert!(sources.iter().any(|(path, _)| path == known), "{known} was not looked at");
    }
    let all = sources.iter().flat_map(|(path, text)| lines(path, text));
    let found: Vec<String> =
        all.flat_map(|line| RULES.iter().filter_map(move |rule| broken(rule, line))).collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn each_rule_finds_what_breaks_it_and_nothing_else() {
    for rule in RULES {
        let of = |(path, number, text)| Line { path, number, text, is_test: false };
        let line = of(rule.example);
        let message = broken(rule, line).unwrap_or_else(|| panic!("not found: {}: {}", rule.says, line.text));
        assert!(message.contains(line.path) && message.contains("ARCHITECTURE.md"), "{message}");
        assert_eq!(broken(rule, of(rule.counter_example)), None);
    }
}

#[test]
fn comments_and_tests_may_name_anything() {
    let text =
        "//! x\n// tonic\nlet a = 1; // sled\nlet b = \"https://tonic\";\n#[cfg(test)]\nuse tonic::Status;\n";
    let found: Vec<usize> = lines("src/x.rs", text)
        .filter(|line| RULES.iter().any(|rule| broken(rule, *line).is_some()))
        .map(|line| line.number)
        .collect();
    assert_eq!(found, [4], "a text is code");
}
