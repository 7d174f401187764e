//! docs/reading.md says what the code does.

use epigraph_audit::guard::Role;
use epigraph_audit::guard::limits::Limits;
use epigraph_audit::guard::refusal::Code;

const READING: &str = include_str!("../../../../docs/reading.md");

#[test]
fn every_refusal_has_its_row_and_no_other() {
    let rows: Vec<&str> =
        READING.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert_eq!(rows, Code::ALL.map(Code::as_str));
}

#[test]
fn every_role_has_its_limits() {
    let bytes = |bytes: u64| match bytes >> 30 {
        0 => format!("{} MiB", bytes >> 20),
        gib => format!("{gib} GiB"),
    };
    let days = |seconds: u64| match seconds / 86_400 {
        1 => "1 day".to_owned(),
        days => format!("{days} days"),
    };
    for role in Role::ALL {
        let limits = Limits::shipped(role);
        let approval = if limits.approval_bytes < limits.query_bytes {
            format!(", above {} with approval", bytes(limits.approval_bytes))
        } else {
            String::new()
        };
        let cells = if limits == Limits::NONE {
            ["none"; 7].map(str::to_owned)
        } else {
            [
                days(limits.window_s),
                bytes(limits.query_bytes) + &approval,
                bytes(limits.day_bytes),
                limits.rows.to_string(),
                format!("{} s", limits.timeout_ms / 1_000),
                limits.running.to_string(),
                limits.least_group.to_string(),
            ]
        };
        let row = format!("| {role} | {} |\n", cells.join(" | "));
        assert!(READING.contains(&row), "docs/reading.md lacks\n{row}");
    }
}
