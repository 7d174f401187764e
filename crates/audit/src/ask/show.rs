//! Rows as texts: what a reader may see as it is, the rest as tokens.

use epigraph_event::v1::{Actor, IdentitySegment};

use crate::guard::mask::{Mask, Shown};
use crate::query::reduce::values;
use crate::query::row::Value;
use crate::query::{Column, Group, Reduce, Reduced, Row, Standing};
use crate::runbook::bind::{TOKEN, instant};

/// What stands between several values of one column.
const BETWEEN: &str = " ";

/// A row of an answer before it is shown: the rows that it stands for, and what the runbook made of them.
#[derive(Clone, Debug)]
pub struct Line {
    /// The rows; the first is the one that is shown.
    pub rows: Vec<Row>,
    /// Texts before the columns of the row.
    pub before: Vec<String>,
    /// Texts behind them.
    pub behind: Vec<String>,
    /// Whether the row's own columns are shown.
    pub columns: bool,
    /// A value that stands in the place of a column.
    of: Option<Value>,
}

/// The names of an answer's columns.
pub fn columns(runbook: &[Column], reduce: Option<&Reduce>) -> Vec<String> {
    let own = runbook.iter().map(|column| column.as_str().to_owned());
    match reduce {
        None | Some(Reduce::OutsideHours { .. }) => own.collect(),
        Some(Reduce::Repeated { .. } | Reduce::Sequence { .. }) => {
            std::iter::once("group".to_owned()).chain(own).collect()
        }
        Some(Reduce::State { .. }) => own.chain(["note".to_owned()]).collect(),
        Some(Reduce::Count { by, .. }) => vec![by.as_str().to_owned(), "count".to_owned()],
    }
}

/// The lines of what a runbook made of its rows.
pub fn lines(reduce: Option<&Reduce>, reduced: Reduced) -> Vec<Line> {
    let mut lines = Vec::new();
    for (number, group) in (1..).zip(reduced.groups) {
        match reduce {
            Some(Reduce::Count { .. }) => lines.push(count(group)),
            Some(Reduce::Repeated { .. } | Reduce::Sequence { .. }) => {
                let count = group.count;
                let line = |row| Line { before: vec![format!("{number} of {count}")], ..plain(row) };
                lines.extend(group.rows.into_iter().map(line));
            }
            Some(Reduce::State { .. }) => lines.extend(history(group)),
            None | Some(Reduce::OutsideHours { .. }) => lines.extend(group.rows.into_iter().map(plain)),
        }
    }
    lines
}

/// A row that stands for itself.
pub fn plain(row: Row) -> Line {
    Line { rows: vec![row], before: Vec::new(), behind: Vec::new(), columns: true, of: None }
}

fn count(group: Group) -> Line {
    let behind = vec![group.count.to_string()];
    Line { rows: group.rows, before: Vec::new(), behind, columns: false, of: group.of }
}

fn history(group: Group) -> Vec<Line> {
    let Group { rows, standing, gaps, .. } = group;
    let last = rows.len().saturating_sub(1);
    let note = |place: usize| {
        let gap = gaps.contains(&place).then_some("does not follow from the one before");
        let end = (place == last).then_some(match standing {
            Some(Standing::There) => "there at the end",
            Some(Standing::Gone) => "gone at the end",
            Some(Standing::Unknown) | None => "unknown at the end",
        });
        gap.into_iter().chain(end).collect::<Vec<_>>().join("; ")
    };
    rows.into_iter()
        .enumerate()
        .map(|(place, row)| Line { behind: vec![note(place)], ..plain(row) })
        .collect()
}

impl Line {
    /// Its texts. `identity` is that of its first row, where the reader may see it.
    pub fn texts(
        &self,
        columns: &[Column],
        mask: &Mask,
        by: Option<Column>,
        identity: Option<&IdentitySegment>,
    ) -> Vec<String> {
        let mut texts = self.before.clone();
        if let Some(row) = self.rows.first() {
            if self.columns {
                texts.extend(columns.iter().map(|column| text(row, *column, mask, identity)));
            } else if let (Some(column), Some(of)) = (by, &self.of) {
                texts.push(match (mask.shows(column, row), identity) {
                    (Shown::Clear, Some(identity)) => clear(column, identity, of, row),
                    _ => shown(column, of),
                });
            } else {
                texts.push(String::new());
            }
        }
        texts.extend(self.behind.iter().cloned());
        texts
    }
}

fn text(row: &Row, column: Column, mask: &Mask, identity: Option<&IdentitySegment>) -> String {
    match (mask.shows(column, row), identity) {
        (Shown::Clear, Some(identity)) => names(column, identity).join(BETWEEN),
        _ => values(row, column).iter().map(|value| shown(column, value)).collect::<Vec<_>>().join(BETWEEN),
    }
}

fn shown(column: Column, value: &Value) -> String {
    match value {
        Value::Pseudonym(token) => format!("{TOKEN}{token}"),
        Value::Text(text) => match (column, text.parse::<i64>()) {
            (Column::OccurredAt, Ok(at_ns)) => instant(at_ns),
            (Column::Ingested, Ok(at_s)) => instant(at_s.saturating_mul(1_000_000_000)),
            _ => text.clone(),
        },
    }
}

/// The names that stand behind a column's tokens, as the source wrote them.
fn names(column: Column, identity: &IdentitySegment) -> Vec<String> {
    let of = |actor: &Actor| if actor.id.is_empty() { actor.name.clone() } else { actor.id.clone() };
    let some = |text: &str| if text.is_empty() { Vec::new() } else { vec![text.to_owned()] };
    match column {
        Column::Actor => identity.actor.iter().flat_map(|actor| some(&of(actor))).collect(),
        Column::Session => identity.actor.iter().flat_map(|actor| some(&actor.session)).collect(),
        Column::OnBehalfOf => identity.on_behalf_of.iter().flat_map(|actor| some(&of(actor))).collect(),
        Column::Address => identity.addresses.last().map(|address| some(address)).unwrap_or_default(),
        Column::Resource => identity
            .resources
            .iter()
            .flat_map(|thing| some(if thing.id.is_empty() { &thing.name } else { &thing.id }))
            .collect(),
        _ => Vec::new(),
    }
}

/// The name of a group: that of its first row, if the row has one value in the column.
fn clear(column: Column, identity: &IdentitySegment, of: &Value, row: &Row) -> String {
    let names = names(column, identity);
    match (names.as_slice(), values(row, column).as_slice()) {
        ([name], [value]) if value == of => name.clone(),
        _ => shown(column, of),
    }
}
