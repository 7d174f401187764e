//! What is made of the rows of an answer: pure folds over rows in the order of time. What they give back are the rows themselves, so that
//! each can still be proven, in groups.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use epigraph_event::v1::{Operation, Result as Outcome};

use super::row::{Column, Row, Value, word};

/// The length of an hour in nanoseconds.
const HOUR_NS: i64 = 3_600_000_000_000;

/// What to make of the rows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reduce {
    /// Runs of at least `least` rows within `within_ns` nanoseconds that have `by` in common.
    Repeated {
        /// How many: at least 2.
        least: u64,
        /// From the first to the last of them.
        within_ns: u64,
        /// What they have in common.
        by: Column,
    },
    /// At least `failures` that failed and then one that succeeded, of one actor, within `within_ns`.
    Sequence {
        /// How many before it: at least 1.
        failures: u64,
        /// From the first of them to the success.
        within_ns: u64,
    },
    /// Successful changes in order, and what they leave at `at_ns`.
    State {
        /// Without anything from here on.
        at_ns: i64,
    },
    /// Rows whose local time is not between two hours of a day from Monday to Friday.
    OutsideHours {
        /// The hour at which the day begins: 0 to 23.
        from_hour: u8,
        /// The hour at which it ends: above `from_hour`, at most 24.
        to_hour: u8,
        /// How far local time is ahead of UTC, in minutes.
        offset_minutes: i32,
    },
    /// How many rows have each value of a column.
    Count {
        /// The column.
        by: Column,
        /// Groups of fewer rows are withheld.
        least: u64,
    },
}

/// What there is of a thing at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// No row says it.
    Unknown,
    /// It is there.
    There,
    /// It was deleted.
    Gone,
}

/// Rows that belong together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Group {
    /// What they have in common; none if that is only that they are in the answer.
    pub of: Option<Value>,
    /// How many they are; there may be fewer in `rows`.
    pub count: u64,
    /// In the order of time.
    pub rows: Vec<Row>,
    /// What they leave behind, where that was asked.
    pub standing: Option<Standing>,
    /// Which of the rows do not follow from the one before: something is missing there. Places in `rows`.
    pub gaps: Vec<usize>,
}

impl Group {
    fn of(of: Option<Value>, rows: Vec<Row>) -> Group {
        Group { of, count: rows.len() as u64, rows, standing: None, gaps: Vec::new() }
    }
}

/// What was made of the rows.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Reduced {
    /// In the order of their first rows.
    pub groups: Vec<Group>,
    /// How many groups were too small to be told.
    pub withheld: u64,
}

impl Reduce {
    /// Makes it. `rows` are in the order of time, the oldest first.
    pub fn apply(&self, rows: Vec<Row>) -> Reduced {
        let groups = match *self {
            Reduce::Repeated { least, within_ns, by } => repeated(&rows, least, within_ns, by),
            Reduce::Sequence { failures, within_ns } => sequence(&rows, failures, within_ns),
            Reduce::State { at_ns } => vec![state(rows, at_ns)],
            Reduce::OutsideHours { from_hour, to_hour, offset_minutes } => {
                let hours = i64::from(from_hour)..i64::from(to_hour);
                let is_outside = |row: &Row| {
                    let local = row.occurred_at_ns.saturating_add(i64::from(offset_minutes) * (HOUR_NS / 60));
                    // 1970-01-01 was a Thursday: day 3 of weeks that begin on a Monday.
                    let weekday = (local.div_euclid(24 * HOUR_NS) + 3).rem_euclid(7);
                    weekday >= 5 || !hours.contains(&local.div_euclid(HOUR_NS).rem_euclid(24))
                };
                vec![Group::of(None, rows.into_iter().filter(is_outside).collect())]
            }
            Reduce::Count { by, least } => return count(&rows, by, least),
        };
        Reduced { groups, withheld: 0 }
    }
}

/// Puts together what several scans found: in the order of time, each row once, at most `limit`.
pub fn merge(scans: Vec<Vec<Row>>, newest_first: bool, limit: u64) -> Vec<Row> {
    let mut places = BTreeMap::new();
    for row in scans.into_iter().flatten() {
        places.insert(row.place(), row);
    }
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    if newest_first {
        places.into_values().rev().take(limit).collect()
    } else {
        places.into_values().take(limit).collect()
    }
}

/// The values that a row has in a column.
pub fn values(row: &Row, column: Column) -> Vec<Value> {
    let text = |text: &str| vec![Value::Text(text.to_owned())];
    let one = |pseudonym: Option<_>| pseudonym.map(Value::Pseudonym).into_iter().collect();
    match column {
        Column::Leaf => text(&row.leaf.get().to_string()),
        Column::OccurredAt => text(&row.occurred_at_ns.to_string()),
        Column::Ingested => text(&row.ingested_s.to_string()),
        Column::Tenant => text(&row.tenant),
        Column::Source => text(&row.source),
        Column::Stream => text(&row.source_kind),
        Column::Category => text(&word(row.category)),
        Column::Operation => text(&word(row.operation)),
        Column::Action => text(&row.action),
        Column::Result => text(&word(row.result)),
        Column::ResultCode => text(&row.result_code),
        Column::Severity => text(&word(row.severity)),
        Column::ActorType => text(&word(row.actor_type)),
        Column::Actor => one(row.actor),
        Column::Session => one(row.session),
        Column::OnBehalfOf => row.on_behalf_of.iter().copied().map(Value::Pseudonym).collect(),
        Column::Address => one(row.address),
        Column::ResourceKind => {
            let kinds: BTreeSet<&str> = row.resources.iter().map(|touched| &*touched.kind).collect();
            kinds.into_iter().flat_map(text).collect()
        }
        // By its id, or its name where it has none: not twice where it has both.
        Column::Resource => {
            let things = row.resources.iter().filter_map(|touched| touched.id.or(touched.name));
            things.collect::<BTreeSet<_>>().into_iter().map(Value::Pseudonym).collect()
        }
        Column::RequestId => text(&row.request_id),
        Column::DataClass => row.classes().flat_map(|class| text(&word(class))).collect(),
    }
}

/// Of each value the longest runs in which every row is part of `least` within the span.
fn repeated(rows: &[Row], least: u64, within_ns: u64, by: Column) -> Vec<Group> {
    let mut of_value: BTreeMap<Value, Vec<&Row>> = BTreeMap::new();
    for row in rows {
        for value in values(row, by) {
            of_value.entry(value).or_default().push(row);
        }
    }
    let least = usize::try_from(least).unwrap_or(usize::MAX).max(1);
    let mut groups = Vec::new();
    for (value, rows) in of_value {
        // How far the run that is being made reaches: from where, up to before where.
        let mut run: Option<(usize, usize)> = None;
        let mut close = |run: (usize, usize)| {
            let rows = rows[run.0..run.1].iter().map(|row| (*row).clone()).collect();
            groups.push(Group::of(Some(value.clone()), rows));
        };
        for end in least..=rows.len() {
            let first = end - least;
            if rows[end - 1].occurred_at_ns.abs_diff(rows[first].occurred_at_ns) > within_ns {
                continue;
            }
            run = Some(match run {
                Some((from, to)) if first < to => (from, end),
                Some(done) => {
                    close(done);
                    (first, end)
                }
                None => (first, end),
            });
        }
        if let Some(run) = run {
            close(run);
        }
    }
    groups.sort_by_key(|group| group.rows.first().map(Row::place));
    groups
}

fn sequence(rows: &[Row], failures: u64, within_ns: u64) -> Vec<Group> {
    let failures = usize::try_from(failures).unwrap_or(usize::MAX).max(1);
    let mut before: BTreeMap<_, VecDeque<&Row>> = BTreeMap::new();
    let mut groups = Vec::new();
    for row in rows {
        let Some(actor) = row.actor else { continue };
        let failed = before.entry(actor).or_default();
        while failed
            .front()
            .is_some_and(|first| row.occurred_at_ns.abs_diff(first.occurred_at_ns) > within_ns)
        {
            failed.pop_front();
        }
        match row.result {
            Outcome::Failure | Outcome::Denied => failed.push_back(row),
            Outcome::Success => {
                if failed.len() >= failures {
                    let rows = failed.iter().copied().chain([row]).cloned().collect();
                    groups.push(Group::of(Some(Value::Pseudonym(actor)), rows));
                }
                failed.clear();
            }
            Outcome::Unspecified | Outcome::Partial => {}
        }
    }
    groups.sort_by_key(|group| group.rows.first().map(Row::place));
    groups
}

fn state(rows: Vec<Row>, at_ns: i64) -> Group {
    let is_change = |row: &Row| {
        let changed = !matches!(
            row.operation,
            Operation::Unspecified | Operation::Read | Operation::Login | Operation::Logout
        );
        changed && matches!(row.result, Outcome::Success | Outcome::Partial) && row.occurred_at_ns < at_ns
    };
    let mut group = Group::of(None, rows.into_iter().filter(is_change).collect());
    let mut standing = Standing::Unknown;
    for (at, row) in group.rows.iter().enumerate() {
        let follows = match (standing, row.operation) {
            (Standing::Unknown, _) => true,
            (Standing::There, operation) => operation != Operation::Create,
            (Standing::Gone, operation) => operation == Operation::Create,
        };
        if !follows {
            group.gaps.push(at);
        }
        standing = if row.operation == Operation::Delete { Standing::Gone } else { Standing::There };
    }
    group.standing = Some(standing);
    group
}

fn count(rows: &[Row], by: Column, least: u64) -> Reduced {
    let mut of_value: BTreeMap<Value, Group> = BTreeMap::new();
    for row in rows {
        for value in values(row, by) {
            let empty = || Group::of(Some(value.clone()), Vec::new());
            of_value.entry(value.clone()).or_insert_with(empty).count += 1;
        }
    }
    let all = of_value.len() as u64;
    let groups: Vec<Group> = of_value.into_values().filter(|group| group.count >= least).collect();
    Reduced { withheld: all - groups.len() as u64, groups }
}
