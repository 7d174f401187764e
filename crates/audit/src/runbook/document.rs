//! Runbooks described for people, as Markdown. docs/runbooks.md is this of those that ship.

use std::fmt::Write as _;

use super::shelf::Shelf;
use super::{Parameter, Runbook, Type};

/// All runbooks of a shelf.
pub fn shelf(shelf: &Shelf) -> String {
    let mut out = "# Runbooks\n\nEach answers one question, with typed parameters, from the index of the audit service. `epigraph runbook list` \
                   lists those that you may\nrun, `epigraph runbook run NAME --param KEY=VALUE --from T --to T` runs one. This page is made from \
                   [deploy/runbooks](../deploy/runbooks).\n\n| runbook | who may run it | longest window |\n|---|---|---|\n"
        .to_owned();
    for book in shelf.iter() {
        let _ =
            writeln!(out, "| [{0}](#{0}) | {1} | {2} days |", book.id, roles(book), book.window_s / 86_400);
    }
    for book in shelf.iter() {
        let _ = write!(out, "\n## {}\n\n{}", book.id, runbook(book));
    }
    out
}

/// One runbook.
pub fn runbook(book: &Runbook) -> String {
    let mut out = format!("{}\n\n", book.description);
    if !book.parameters.is_empty() {
        out.push_str("| parameter | type | unless given | what it is |\n|---|---|---|---|\n");
        for parameter in &book.parameters {
            let Parameter { name, description, default, kind } = parameter;
            let default = default.as_ref().map_or("must be given".into(), |default| format!("`{default}`"));
            let _ = writeln!(out, "| `{name}` | {} | {default} | {description} |", type_of(kind));
        }
        out.push('\n');
    }
    let _ = writeln!(
        out,
        "Version {}, owner {}. Run by {}; window up to {} days; reads at most {} MiB of the index.\n",
        book.version,
        book.owner,
        roles(book),
        book.window_s / 86_400,
        book.max_bytes >> 20
    );
    let columns: Vec<&str> = book.columns.iter().map(|column| column.as_str()).collect();
    let _ = writeln!(out, "Columns: {}.\n", columns.join(", "));
    let _ = writeln!(out, "    {}", example(book));
    out
}

fn example(book: &Runbook) -> String {
    let mut out = format!("epigraph runbook run {}", book.id);
    for (name, value) in &book.example {
        let _ = write!(out, " --param {name}={value}");
    }
    out.push_str(" --from 2024-08-01 --to 2024-08-02");
    out
}

fn roles(book: &Runbook) -> String {
    book.roles.iter().map(|role| role.name()).collect::<Vec<_>>().join(", ")
}

fn type_of(kind: &Type) -> String {
    match kind {
        Type::Actor => "actor: exact id or token".into(),
        Type::Session => "session or key: exact id or token".into(),
        Type::Resource => "thing: exact id, name or token".into(),
        Type::Address => "address, or token".into(),
        Type::Request => "exact id".into(),
        Type::Word(words) => words.join(", "),
        Type::Integer { min, max } => format!("{min} to {max}"),
        Type::Duration { min_s, max_s } => format!("duration, {min_s} to {max_s} seconds"),
        Type::Time => "time, or `end` of the window".into(),
    }
}
