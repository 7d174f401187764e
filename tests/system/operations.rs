//! What operators run as it stands: the units, the compose file, and the commands of docs/operations.md. The program understands
//! each, and they agree with the commented configurations about where things are.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use epigraph_core::SourceKey;
use epigraph_monitor::finding::{Class, Code, Severity};
use tempfile::TempDir;
use yaml_rust2::{Yaml, YamlLoader};
use zeroize::Zeroizing;

use crate::support::{Ended, command, epigraph};

const ROLES: [&str; 6] = ["log", "signer", "witness", "monitor", "audit", "collector"];

/// What starts a role: a collector calls and is not served.
fn runs(role: &'static str) -> Vec<&'static str> {
    match role {
        "collector" => vec!["collect"],
        role => vec!["serve", role],
    }
}

fn file(path: &str) -> String {
    fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR")))
        .unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The commented configuration of a role.
fn commented(role: &str) -> toml::Table {
    file(&format!("deploy/{role}.toml")).parse().unwrap()
}

/// Runs the arguments in an empty directory, where no path of theirs leads anywhere.
fn run(arguments: &[String]) -> Ended {
    let dir = TempDir::new().unwrap();
    let arguments: Vec<_> =
        arguments.iter().map(|argument| argument.replace("/etc/epigraph/", "none/")).collect();
    let arguments: Vec<_> =
        arguments.iter().map(|argument| argument as &dyn AsRef<std::ffi::OsStr>).collect();
    command(&arguments).current_dir(dir.path()).output().unwrap().into()
}

/// The arguments start what they are meant to start: all that stands in their way is that its configuration is not there.
#[track_caller]
fn check_reads_its_configuration(arguments: &[String], role: &str) {
    assert!(arguments.contains(&format!("/etc/epigraph/{role}.toml")), "{arguments:?}");
    run(arguments).refused(2, &[&format!("cannot read none/{role}.toml")]);
}

fn words(line: &str) -> Vec<String> {
    // What stands between quotation marks is one word to a shell.
    let parts = line.split('"').enumerate().flat_map(|(number, part)| match number % 2 {
        0 => part.split_whitespace().map(ToOwned::to_owned).collect(),
        _ => vec![part.to_owned()],
    });
    parts.collect()
}

/// The value of a key that stands once in a unit.
fn value<'a>(unit: &'a str, key: &str) -> &'a str {
    let mut values = unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let value = values.next().unwrap_or_else(|| panic!("no {key}"));
    assert!(values.next().is_none(), "{key} stands twice");
    value
}

#[test]
fn every_unit_starts_its_role_and_may_write_to_its_directory_alone() {
    for role in ROLES {
        let unit = file(&format!("deploy/systemd/epigraph-{role}.service"));
        for key in ["ExecStartPre", "ExecStart"] {
            let run = words(value(&unit, key).strip_prefix("/usr/bin/epigraph ").unwrap());
            check_reads_its_configuration(&run, role);
        }
        assert_eq!(words(value(&unit, "ExecStart"))[1..][..runs(role).len()], runs(role));
        assert_eq!(words(value(&unit, "ExecStartPre"))[1..5], ["config", "check", "--role", role]);
        let directory = commented(role)["directory"].as_str().unwrap().to_owned();
        assert_eq!(format!("/var/lib/{}", value(&unit, "StateDirectory")), directory);
        assert_eq!(value(&unit, "StateDirectoryMode"), "0700");
        assert_eq!(value(&unit, "ProtectSystem"), "strict");
        assert_eq!(value(&unit, "User"), format!("epigraph-{role}"));
        // Refused state and refused configurations are not started again in a loop.
        assert_eq!(value(&unit, "RestartPreventExitStatus"), "2 5");
    }
}

#[test]
fn the_compose_file_runs_each_role_alone_where_its_configuration_says() {
    let compose = &YamlLoader::load_from_str(&file("deploy/compose.yaml")).unwrap()[0];
    let services = compose["services"].as_hash().unwrap();
    let names: Vec<_> = services.keys().map(|name| name.as_str().unwrap()).collect();
    assert_eq!(names, ROLES);
    let list = |yaml: &Yaml| {
        yaml.as_vec().unwrap().iter().map(|item| item.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let mut ports = BTreeSet::new();
    for role in ROLES {
        let service = &compose["services"][role];
        // One role a host: nothing starts unless it is named.
        assert_eq!(list(&service["profiles"]), [role]);
        check_reads_its_configuration(&list(&service["command"]), role);
        let configuration = commented(role);
        let directory = configuration["directory"].as_str().unwrap();
        let volumes = list(&service["volumes"]);
        assert_eq!(
            volumes[..2],
            ["/etc/epigraph:/etc/epigraph:ro".into(), format!("{directory}:{directory}")]
        );
        // A collector reads what others write.
        assert!(
            volumes[2..].iter().all(|volume| role == "collector" && volume.ends_with(":ro")),
            "{volumes:?}"
        );
        if role == "collector" {
            continue;
        }
        let (_, port) = configuration["listen"]["address"].as_str().unwrap().rsplit_once(':').unwrap();
        assert_eq!(list(&service["ports"]), [format!("{port}:{port}")]);
        assert!(ports.insert(port.to_owned()), "{port} is two roles'");
    }
}

#[test]
fn the_program_understands_every_command_of_the_procedures() {
    check_commands(&file("docs/operations.md"), 25);
    check_commands(&file("docs/monitor.md"), 9);
    run(&words("checkpoint --out x --profile y")).refused_by_usage("unexpected argument '--out'");
}

#[test]
fn the_table_of_findings_says_what_the_monitor_says() {
    let rows = Code::ALL.map(|code| {
        let class = match code.class() {
            Class::Proof => "proof",
            Class::Observation => "observation",
        };
        let urgency = match code.severity() {
            Severity::Page => "page",
            Severity::Warn => "ticket",
        };
        format!("| `{code}` | {class}, {urgency} | {} | {} |", code.sentence(), code.next_step())
    });
    let text = file("docs/monitor.md");
    let documented: Vec<_> = text.lines().filter(|line| line.starts_with("| `")).collect();
    assert_eq!(documented, rows);
}

#[track_caller]
fn check_commands(text: &str, least: usize) {
    let commands: Vec<_> =
        text.lines().filter_map(|line| line.trim_start().strip_prefix("epigraph ")).collect();
    assert!(commands.len() >= least, "{}", commands.len());
    // What `init` and `keygen` print, for the one place where the reader puts it in.
    let keys = TempDir::new().unwrap();
    epigraph(&[&"keygen", &"audit.example/production", &"--out", &keys.path().join("log")]).succeeded(&[]);
    let vkey = fs::read_to_string(keys.path().join("log.vkey")).unwrap();
    for line in commands {
        let source =
            &SourceKey::from_seed("a-source".parse().unwrap(), &Zeroizing::new([7; 32])).vkey().to_string();
        let line = line.replace("\"$LOG_VKEY\"", vkey.trim()).replace("\"$SOURCE_VKEY\"", source);
        let arguments = words(&line);
        let ended = run(&arguments);
        // What the command line's parser refuses begins so; what a command refuses begins with the program's name.
        assert!(!ended.err.starts_with("error:"), "{line}\n{ended}");
    }
    // Its files exist.
    for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
        assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(link).exists(), "{link}");
    }
}
