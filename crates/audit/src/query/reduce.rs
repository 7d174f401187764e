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
    /// How many they are.
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
        Column::ActorName => one(row.actor_name),
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
    let mut of_value: BTreeMap<Value, Vec<Row>> = BTreeMap::new();
    for row in rows {
        for value in values(row, by) {
            of_value.entry(value).or_default().push(row.clone());
        }
    }
    let all = of_value.len() as u64;
    let groups = of_value.into_iter().map(|(value, rows)| Group::of(Some(value), rows));
    let groups: Vec<Group> = groups.filter(|group| group.count >= least).collect();
    Reduced { withheld: all - groups.len() as u64, groups }
}

#[cfg(test)]
mod tests {
    use epigraph_core::LeafIndex;
    use epigraph_event::v1::{ActorType, Category, Severity};

    use super::*;
    use crate::query::Pseudonym;

    const SECOND: i64 = 1_000_000_000;

    fn row(leaf: u64, at_s: i64, actor: u8, result: Outcome) -> Row {
        Row {
            leaf: LeafIndex::new(leaf).unwrap(),
            slot: leaf,
            occurred_at_ns: at_s * SECOND,
            ingested_s: 0,
            tenant: "".into(),
            source: "".into(),
            source_kind: "k8s".into(),
            category: Category::Access,
            operation: Operation::Update,
            action: "".into(),
            result,
            result_code: "".into(),
            severity: Severity::Unspecified,
            actor_type: ActorType::User,
            actor: (actor > 0).then(|| Pseudonym::from_bytes([actor; 16])),
            actor_name: None,
            session: None,
            on_behalf_of: Vec::new(),
            address: None,
            resources: Vec::new(),
            request_id: "".into(),
            trace_id: None,
            data_classes: 0,
        }
    }

    fn leaves(reduced: &Reduced) -> Vec<Vec<u64>> {
        let of = |group: &Group| group.rows.iter().map(|row| row.leaf.get()).collect();
        reduced.groups.iter().map(of).collect()
    }

    /// Rows of one actor at these seconds; leaves count from 0.
    fn at(seconds: &[i64]) -> Vec<Row> {
        seconds.iter().zip(0..).map(|(at, leaf)| row(leaf, *at, 1, Outcome::Denied)).collect()
    }

    /// Broken to see it fail: `first < to` as `first <= to` joins runs that share no row.
    #[test]
    fn a_run_is_as_long_as_each_row_is_one_of_enough_within_the_span() {
        let check = |seconds: &[i64], least, expected: &[&[u64]]| {
            let repeated = Reduce::Repeated { least, within_ns: 10 * SECOND as u64, by: Column::Actor };
            assert_eq!(leaves(&repeated.apply(at(seconds))), expected, "{seconds:?}");
        };
        check(&[], 2, &[]);
        check(&[0], 2, &[]);
        check(&[0, 11], 2, &[]);
        check(&[0, 10], 2, &[&[0, 1]]);
        check(&[0, 10, 20, 30], 2, &[&[0, 1, 2, 3]]);
        check(&[0, 5, 10, 11, 40, 45, 50], 3, &[&[0, 1, 2, 3], &[4, 5, 6]]);
        check(&[0, 5, 20, 25], 3, &[]);
        // Two runs that touch and share no row stay two.
        check(&[0, 1, 12, 13], 2, &[&[0, 1], &[2, 3]]);
    }

    #[test]
    fn runs_are_those_that_every_pair_of_rows_says() {
        // A row is in a run if some `least` rows within the span have it among them: said by looking at all of them.
        let mut seed = 7_u64;
        for _ in 0..500 {
            let mut seconds: Vec<i64> = (0..12)
                .map(|_| {
                    seed =
                        seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    (seed >> 33) as i64 % 60
                })
                .collect();
            seconds.sort_unstable();
            let least = 3;
            let repeated = Reduce::Repeated { least, within_ns: 10 * SECOND as u64, by: Column::Actor };
            let found: Vec<u64> = leaves(&repeated.apply(at(&seconds))).concat();
            let in_some = |place: usize| {
                (0..seconds.len().saturating_sub(least as usize - 1)).any(|from| {
                    let to = from + least as usize;
                    (from..to).contains(&place) && seconds[to - 1] - seconds[from] <= 10
                })
            };
            let expected: Vec<u64> =
                (0..seconds.len()).filter(|place| in_some(*place)).map(|place| place as u64).collect();
            assert_eq!(found, expected, "{seconds:?}");
        }
    }

    #[test]
    fn a_success_after_enough_failures_of_the_same_actor() {
        use Outcome::{Denied, Failure, Success};
        let check = |rows: &[(i64, u8, Outcome)], expected: &[&[u64]]| {
            let sequence = Reduce::Sequence { failures: 2, within_ns: 10 * SECOND as u64 };
            let rows =
                rows.iter().zip(0..).map(|((at, actor, result), leaf)| row(leaf, *at, *actor, *result));
            assert_eq!(leaves(&sequence.apply(rows.collect())), expected, "{expected:?}");
        };
        check(&[(0, 1, Failure), (1, 1, Denied), (2, 1, Success)], &[&[0, 1, 2]]);
        check(&[(0, 1, Failure), (1, 2, Failure), (2, 1, Success)], &[]);
        check(&[(0, 1, Failure), (1, 1, Failure), (11, 1, Success)], &[]);
        check(&[(0, 1, Failure), (1, 1, Failure), (10, 1, Success)], &[&[0, 1, 2]]);
        check(&[(0, 1, Failure), (1, 1, Success), (2, 1, Failure), (3, 1, Success)], &[]);
        check(&[(0, 1, Failure), (1, 1, Failure), (2, 1, Success), (3, 1, Success)], &[&[0, 1, 2]]);
        check(&[(0, 0, Failure), (1, 0, Failure), (2, 0, Success)], &[]);
    }

    #[test]
    fn hours_are_those_of_a_clock_and_days_those_of_a_week() {
        let check = |at_s: i64, offset_minutes, expected: bool| {
            let outside = Reduce::OutsideHours { from_hour: 7, to_hour: 20, offset_minutes };
            let rows = vec![row(0, at_s, 1, Outcome::Success)];
            assert_eq!(!leaves(&outside.apply(rows))[0].is_empty(), expected, "{at_s} {offset_minutes}");
        };
        // 2024-08-01 is a Thursday: `date -d 2024-08-01 +%s`.
        let (thursday, hour) = (1_722_470_400, 3_600);
        check(thursday + 7 * hour - 1, 0, true);
        check(thursday + 7 * hour, 0, false);
        check(thursday + 20 * hour - 1, 0, false);
        check(thursday + 20 * hour, 0, true);
        check(thursday + 19 * hour, 120, true);
        check(thursday + 6 * hour, 120, false);
        check(thursday + 48 * hour + 12 * hour, 0, true);
        check(thursday + 72 * hour + 12 * hour, 0, true);
        check(thursday + 96 * hour + 12 * hour, 0, false);
        check(thursday + 24 * hour + 23 * hour, 840, true);
        check(-11 * hour, 0, false);
        check(-25 * hour, 0, true);
    }

    #[test]
    fn small_groups_are_counted_and_not_told() {
        let rows =
            (0..7).map(|leaf| row(leaf, 0, [1, 1, 1, 2, 2, 3, 0][leaf as usize], Outcome::Success)).collect();
        let counted = Reduce::Count { by: Column::Actor, least: 2 }.apply(rows);
        let counts: Vec<u64> = counted.groups.iter().map(|group| group.count).collect();
        assert_eq!((counts, counted.withheld), (vec![3, 2], 1));
        assert_eq!(leaves(&counted), [vec![0, 1, 2], vec![3, 4]]);
    }

    #[test]
    fn what_several_scans_found_is_there_once_and_in_order() {
        let rows = at(&[0, 1, 2, 3]);
        let check = |newest_first, limit, expected: &[u64]| {
            let scans = vec![vec![rows[3].clone(), rows[0].clone()], vec![rows[1].clone(), rows[3].clone()]];
            let merged = merge(scans, newest_first, limit);
            assert_eq!(merged.iter().map(|row| row.leaf.get()).collect::<Vec<_>>(), expected);
        };
        check(false, 9, &[0, 1, 3]);
        check(true, 2, &[3, 1]);
        check(false, 0, &[]);
    }
}
