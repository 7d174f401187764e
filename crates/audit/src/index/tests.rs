//! The indexes against a list of the same rows that is searched from end to end, and against themselves: filled in pieces, cut off, added
//! later, made again.

use epigraph_core::{Hash, LeafIndex};
use epigraph_event::v1::{ActorType, Category, Operation, Result as Outcome, Severity};
use tempfile::TempDir;

use super::ids::GATHERED;
use super::*;
use crate::query::row::{Pseudonym, Touched, TraceId, Value};
use crate::query::scan::{Access, Clause, DAY_NS, Estimate, Filter, Meter, Scan, Stopped, Window};
use crate::query::{Column, Row};
use crate::tests::Counting;
use crate::vault::DataKey;

const STORE: [u8; 16] = [7; 16];

/// The day on which everything begins.
const START_NS: i64 = 19_900 * DAY_NS;
const DAYS: i64 = 6;

/// Numbers that look random and are the same in every run (Steele, Lea and Flood, "Fast splittable pseudorandom number generators").
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (bits ^ bits >> 31) % sides
    }

    /// Small numbers much more often than large ones.
    fn skewed(&mut self, sides: u64) -> u64 {
        let below = self.roll(sides) + 1;
        self.roll(below)
    }
}

fn pseudonym(kind: u8, number: u64) -> Pseudonym {
    let mut bytes = [kind; 16];
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    Pseudonym::from_bytes(bytes)
}

fn actor(number: u64) -> Pseudonym {
    pseudonym(1, number)
}

fn thing(number: u64) -> Pseudonym {
    pseudonym(2, number)
}

/// An event of the service's slots; its leaf is not its slot, because other entries are in the log as well.
fn entry(slot: u64) -> Entry {
    let mut dice = Dice(slot);
    let tenant = ["one", "two"][dice.skewed(2) as usize];
    let kind = ["k8s", "cloudtrail"][dice.roll(2) as usize];
    let leaf = slot + slot / 10;
    let spread = dice.roll((DAYS * DAY_NS) as u64) as i64;
    let touched = |dice: &mut Dice| Touched {
        kind: ["pods", "secrets", ""][dice.roll(3) as usize].into(),
        id: (dice.roll(3) > 0).then(|| thing(dice.skewed(200))),
        name: (dice.roll(2) > 0).then(|| thing(dice.skewed(40))),
    };
    let row = Row {
        leaf: LeafIndex::new(leaf).unwrap(),
        slot,
        // Some at one and the same moment, some on the edge of a day.
        occurred_at_ns: START_NS
            + [spread, spread / DAY_NS * DAY_NS, 3 * DAY_NS - 1][dice.skewed(3) as usize],
        ingested_s: ((START_NS / 1_000_000_000) + dice.roll(700_000) as i64) as u64,
        tenant: tenant.into(),
        source: "here".into(),
        source_kind: kind.into(),
        category: Category::Access,
        operation: Operation::Read,
        action: format!("action-{}", dice.skewed(9)).into(),
        result: [Outcome::Success, Outcome::Denied, Outcome::Failure][dice.skewed(3) as usize],
        result_code: ["", "403"][dice.roll(2) as usize].into(),
        severity: Severity::Unspecified,
        actor_type: ActorType::User,
        actor: (dice.roll(20) > 0).then(|| actor(dice.skewed(50))),
        actor_name: (dice.roll(3) == 0).then(|| actor(100 + dice.skewed(50))),
        session: (dice.roll(4) == 0).then(|| thing(1_000 + dice.skewed(9))),
        on_behalf_of: (0..dice.skewed(3)).map(|_| actor(dice.skewed(50))).collect(),
        address: (dice.roll(2) == 0).then(|| pseudonym(3, dice.roll(9))),
        resources: (0..dice.skewed(4)).map(|_| touched(&mut dice)).collect(),
        request_id: match dice.roll(3) {
            0 => "".into(),
            1 => format!("{:08x}-0000-4000-8000-000000000000", slot / 3).into(),
            _ => format!("request {}", slot / 3).into(),
        },
        trace_id: TraceId::of(
            &if slot.is_multiple_of(5) { u128::from(slot / 7 + 1) } else { 0 }.to_be_bytes(),
        ),
        data_classes: dice.roll(8) as u32,
    };
    let name = EventName { source: Hash::from_bytes([slot as u8 % 2; 32]), epoch: 1, sequence: slot / 2 };
    let row = (!slot.is_multiple_of(97)).then_some(row);
    let id = row.as_ref().and_then(|_| IdName::of(&cover(), &id(slot)));
    Entry { row, slot, leaf, name, id }
}

/// Some have none, and some that of others.
fn id(slot: u64) -> String {
    let mut dice = Dice(!slot);
    match dice.roll(10) {
        0 => String::new(),
        1 => format!("id {}", dice.skewed(40)),
        _ => format!("id {slot}"),
    }
}

fn entries(count: u64) -> Vec<Entry> {
    (0..count).map(entry).collect()
}

fn cover() -> Arc<Cover> {
    Arc::new(Cover::new(&DataKey::draw(&Counting::default())))
}

struct Made {
    _dir: TempDir,
    path: PathBuf,
    index: Index,
}

/// Empty indexes.
fn empty() -> Made {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index.redb");
    let index = Index::open(&path, &STORE, cover()).unwrap();
    Made { _dir: dir, path, index }
}

/// Filled in pieces of this size.
fn filled(entries: &[Entry], piece: usize) -> Made {
    let made = empty();
    for piece in entries.chunks(piece) {
        made.index.fill(piece, false).unwrap();
    }
    made
}

/// What is asked at random, about what there is and what there is not.
fn scan(dice: &mut Dice) -> Scan {
    let subjects = |dice: &mut Dice, of: fn(u64) -> Pseudonym, most| {
        (0..=dice.skewed(3)).map(|_| of(dice.skewed(most))).collect()
    };
    let access = match dice.roll(6) {
        0 => Access::Time,
        1 => Access::Actor(subjects(dice, actor, 52)),
        2 => Access::Actor(vec![thing(1_000 + dice.roll(10))]),
        3 => Access::Resource(subjects(dice, thing, 210)),
        4 if dice.roll(2) == 0 => Access::Request(format!("{:032x}", dice.roll(400))),
        4 => Access::Request(format!("request {}", dice.roll(800))),
        _ => Access::Outcome {
            result: [Outcome::Denied, Outcome::Failure, Outcome::Partial][dice.roll(3) as usize],
            action: (dice.roll(2) == 0).then(|| format!("action-{}", dice.roll(10))),
        },
    };
    let from = START_NS - DAY_NS + dice.roll((DAYS * DAY_NS) as u64) as i64;
    let lengths = [3_600 * 1_000_000_000, DAY_NS, 3 * DAY_NS, 30 * DAY_NS, 36_500 * DAY_NS];
    let length = lengths[dice.roll(5) as usize] + dice.roll(DAY_NS as u64) as i64;
    let mut filter = Filter::default();
    if dice.roll(3) == 0 {
        let any_of = vec![Value::Text("success".into()), Value::Text("denied".into())];
        filter.0.push(Clause { column: Column::Result, any_of });
    }
    if dice.roll(6) == 0 {
        let any_of = vec![Value::Text("secrets".into())];
        filter.0.push(Clause { column: Column::ResourceKind, any_of });
    }
    Scan {
        stream: [None, None, Some("k8s".into())][dice.roll(3) as usize].clone(),
        tenant: [None, None, Some("one".into()), Some("nobody".into())][dice.skewed(4) as usize].clone(),
        access,
        window: Window::new(from, from + length).unwrap(),
        filter,
        newest_first: dice.roll(2) == 0,
        limit: [1, 7, 100, 1 << 20][dice.roll(4) as usize],
        after: None,
    }
}

/// The answer, from every row there is.
fn searched(entries: &[Entry], scan: &Scan) -> Vec<Row> {
    let found = |row: &&Row| match &scan.access {
        Access::Time => true,
        Access::Actor(some) => row.actors().iter().any(|actor| some.contains(actor)),
        Access::Resource(some) => row.things().iter().any(|thing| some.contains(thing)),
        Access::Request(id) => {
            *row.request_id == **id || row.trace_id.is_some_and(|of| of.to_string() == *id)
        }
        Access::Outcome { result, action } => {
            row.result == *result && action.as_ref().is_none_or(|action| *row.action == **action)
        }
    };
    let mut rows: Vec<Row> = entries
        .iter()
        .filter_map(|entry| entry.row.as_ref())
        .filter(|row| scan.window.contains(row.occurred_at_ns))
        .filter(|row| scan.tenant.as_ref().is_none_or(|tenant| *row.tenant == **tenant))
        .filter(|row| scan.stream.as_ref().is_none_or(|stream| *row.source_kind == **stream))
        .filter(|row| scan.filter.takes(row))
        .filter(found)
        .cloned()
        .collect();
    rows.sort_by_key(Row::place);
    if scan.newest_first {
        rows.reverse();
    }
    let behind = |row: &Row, after| if scan.newest_first { row.place() < after } else { row.place() > after };
    rows.retain(|row| scan.after.is_none_or(|after| behind(row, after)));
    rows
}

fn rows(view: &View, scan: &Scan, meter: &Meter) -> (Vec<Row>, Option<Stopped>) {
    let mut rows = Vec::new();
    let stopped = view.scan(scan, meter, &mut |row| rows.push(row)).unwrap();
    (rows, stopped)
}

// Broken to see it fail: the end of a day taken as part of it; a row of two runs given twice; the leaf left out of `after`.
#[test]
fn a_scan_finds_what_a_search_from_end_to_end_finds() {
    let entries = entries(1_000);
    let made = filled(&entries, 100);
    let view = made.index.view().unwrap();
    let mut dice = Dice(1);
    let (mut found, mut paged) = (0, 0);
    for _ in 0..300 {
        let mut scan = scan(&mut dice);
        let expected = searched(&entries, &scan);
        let (mut answer, mut is_whole) = (Vec::new(), false);
        // Some hundred pages of one row each show as much as thousands.
        for _ in 0..200 {
            let (page, stopped) = rows(&view, &scan, &Meter::new(u64::MAX, u64::MAX));
            scan.after = page.last().map(Row::place).or(scan.after);
            answer.extend(page);
            is_whole = stopped.is_none();
            if is_whole {
                break;
            }
            assert_eq!(stopped, Some(Stopped::Limit));
            paged += 1;
        }
        let end = if is_whole { expected.len() } else { answer.len() };
        assert!(answer == expected[..end], "{scan:?}");
        found += answer.len();
    }
    assert!(found > 2_000 && paged > 500, "the questions found {found} rows on {paged} further pages");
}

// Broken to see it fail: only the hours that begin in the window counted; the first rows of runs left out under a limit; the only row of a
// stem not counted when the second comes.
#[test]
fn no_scan_costs_more_than_its_estimate() {
    let entries = entries(1_500);
    let made = filled(&entries, 1_000);
    let view = made.index.view().unwrap();
    let mut dice = Dice(2);
    let mut ratios = Vec::new();
    for _ in 0..1_000 {
        let scan = scan(&mut dice);
        let estimate = view.estimate(&scan).unwrap();
        let meter = Meter::of(&estimate);
        let (_, stopped) = rows(&view, &scan, &meter);
        assert_ne!(stopped, Some(Stopped::Budget), "{estimate:?} for {scan:?}");
        let cost = meter.cost();
        assert!(cost.rows_examined <= estimate.rows && cost.bytes_read <= estimate.bytes, "{scan:?}");
        if cost.bytes_read > 0 {
            ratios.push(estimate.bytes as f64 / cost.bytes_read as f64);
        }
    }
    ratios.sort_by(f64::total_cmp);
    let median = ratios[ratios.len() / 2];
    println!("{} scans read something; median of estimate over actual: {median:.2}", ratios.len());
    assert!(ratios.len() > 300 && median < 4.0, "{} scans, median {median:.2}", ratios.len());
}

// Broken to see it fail: numbers of the dictionary given in the order of keys within a piece.
#[test]
fn indexes_are_the_same_however_they_came_to_be() {
    let entries = entries(700);
    let digest = |made: &Made| made.index.digest().unwrap();
    let whole = filled(&entries, 700);
    for piece in [1, 13, 256] {
        assert_eq!(digest(&filled(&entries, piece)), digest(&whole), "in pieces of {piece}");
    }
    assert_ne!(digest(&filled(&entries[..699], 100)), digest(&whole));

    // Cut off after a piece, opened again, and gone on with.
    let Made { _dir, path, index } = filled(&entries[..300], 50);
    drop(index);
    let index = Index::open(&path, &STORE, cover()).unwrap();
    assert_eq!(index.next().unwrap(), 300);
    index.fill(&entries[300..], true).unwrap();
    assert_eq!(index.digest().unwrap(), digest(&whole));
}

// Broken to see it fail: the oldest event of an id taken for the newest one before; what a step has twice left out; an id that is a neighbour's in
// the table taken for the same; the first slot of a page left out; the newest looked for in one table only; what gathered forgotten; what comes after
// that put into the large table as well.
#[test]
fn events_are_found_by_their_ids_and_whoever_repeats_one_is_told() {
    const COUNT: u64 = 900;
    // Most are before that slot, and some behind it.
    const START: u64 = GATHERED - 700;
    let bare = |slot: u64| Entry { row: None, ..entry(slot) };
    let entries: Vec<_> = (START..START + COUNT).map(bare).collect();
    let before: Vec<_> =
        (0..START).map(|slot| Entry { id: None, slot, leaf: slot, ..entries[0].clone() }).collect();
    let has_id = |slot: &u64| !slot.is_multiple_of(97) && !id(*slot).is_empty();
    let with = |wanted: &str, end: u64| -> Vec<u64> {
        (START..end).filter(|slot| has_id(slot) && id(*slot) == wanted).collect()
    };
    let mut digest = None;
    for piece in [1, 7, 900] {
        let made = empty();
        made.index.fill(&before, false).unwrap();
        let mut repeats = Vec::new();
        for piece in entries.chunks(piece) {
            let met = made.index.repeats(piece).unwrap();
            repeats.extend(met.iter().map(|repeat| (repeat.entry.slot, repeat.before)));
            made.index.fill(piece, false).unwrap();
        }
        let newest = |slot: u64| with(&id(slot), slot).last().map(|before| (slot, *before));
        let expected: Vec<_> = (START..START + COUNT).filter(has_id).filter_map(newest).collect();
        assert_eq!(repeats, expected, "in pieces of {piece}");
        assert!(repeats.len() > 50, "{}", repeats.len());
        for id in (START..START + COUNT).map(id).chain((0..50).map(|number| format!("id {number}"))) {
            let all = if id.is_empty() { Vec::new() } else { with(&id, START + COUNT) };
            assert_eq!(made.index.with_id(&id, 0, 1_000).unwrap(), all);
            let page = all.into_iter().filter(|at| *at >= START + 450).take(2);
            assert_eq!(made.index.with_id(&id, START + 450, 2).unwrap(), Vec::from_iter(page));
        }
        let made = made.index.digest().unwrap();
        assert_eq!(*digest.get_or_insert(made), made, "in pieces of {piece}");
    }
}

// Broken to see it fail: an index that is being filled answering; one that was added later filled from where the others stood.
#[test]
fn an_index_is_dropped_and_added_while_the_others_answer() {
    let entries = entries(500);
    let made = filled(&entries, 500);
    let before = made.index.digest().unwrap();
    let asked = Scan { access: Access::Resource(vec![thing(1)]), ..everything() };
    let meter = || Meter::new(u64::MAX, u64::MAX);

    let view = made.index.view().unwrap();
    made.index.drop_index(Kind::Resource).unwrap();
    assert_eq!(rows(&view, &asked, &meter()).0, searched(&entries, &asked), "who asks already is answered");
    drop(view);
    let view = made.index.view().unwrap();
    assert!(matches!(view.estimate(&asked), Err(IndexError::Dropped(Kind::Resource))));
    assert_eq!(rows(&view, &everything(), &meter()).0.len(), searched(&entries, &everything()).len());
    drop(view);

    made.index.add(Kind::Resource).unwrap();
    made.index.fill(&entries[..200], false).unwrap();
    let view = made.index.view().unwrap();
    let not_ready = view.scan(&asked, &meter(), &mut |_| ());
    assert!(matches!(not_ready, Err(IndexError::NotReady { kind: Kind::Resource, has: 200, of: 500 })));
    made.index.fill(&entries[200..], false).unwrap();
    let view = made.index.view().unwrap();
    assert_eq!(rows(&view, &asked, &meter()).0, searched(&entries, &asked));
    assert_eq!(made.index.digest().unwrap(), before);
    // Taken in again, out of order, or with a hole: refused.
    assert!(made.index.fill(&[entry(501)], false).is_err());
    assert!(made.index.fill(&[entry(500), entry(502)], false).is_err());
    assert_eq!(made.index.digest().unwrap(), before);
}

/// Everything there is.
fn everything() -> Scan {
    Scan {
        stream: None,
        tenant: None,
        access: Access::Time,
        window: Window::new(i64::MIN, i64::MAX).unwrap(),
        filter: Filter::default(),
        newest_first: false,
        limit: u64::MAX,
        after: None,
    }
}

#[test]
fn a_scan_stops_when_it_is_told_to() {
    let entries = entries(300);
    let made = filled(&entries, 300);
    let view = made.index.view().unwrap();
    let stopped = |meter: &Meter| rows(&view, &everything(), meter).1;
    for (rows, bytes) in [(10, u64::MAX), (u64::MAX, 1_000)] {
        let meter = Meter::new(rows, bytes);
        assert_eq!(stopped(&meter), Some(Stopped::Budget));
        assert!(meter.cost().rows_examined <= rows && meter.cost().bytes_read <= bytes);
    }
    let meter = Meter::new(u64::MAX, u64::MAX);
    meter.expire();
    assert_eq!(stopped(&meter), Some(Stopped::Deadline));
    meter.cancel();
    assert_eq!(stopped(&meter), Some(Stopped::Cancelled));
    assert_eq!(meter.cost(), Default::default());
    // In the middle: after the tenth row.
    let meter = Meter::new(u64::MAX, u64::MAX);
    let mut seen = 0;
    let stopped = view.scan(&everything(), &meter, &mut |_| {
        seen += 1;
        if seen == 10 {
            meter.cancel();
        }
    });
    assert_eq!((stopped.unwrap(), seen, meter.cost().rows_returned), (Some(Stopped::Cancelled), 10, 10));
}

#[test]
fn the_times_at_both_ends_are_found() {
    let mut entries = entries(4);
    let times = [i64::MIN, i64::MIN + 1, -1, i64::MAX - 1];
    for (entry, at) in entries.iter_mut().zip(times) {
        let row = self::entry(1).row.unwrap();
        let leaf = LeafIndex::new(entry.leaf).unwrap();
        entry.row = Some(Row { occurred_at_ns: at, leaf, slot: entry.slot, ..row });
    }
    let made = filled(&entries, 4);
    let view = made.index.view().unwrap();
    let (found, _) = rows(&view, &everything(), &Meter::of(&view.estimate(&everything()).unwrap()));
    assert_eq!(found, searched(&entries, &everything()));
    assert_eq!(found.iter().map(|row| row.occurred_at_ns).collect::<Vec<_>>(), times);
}

#[test]
fn what_each_source_has_in_a_window_is_said_by_the_day() {
    let entries = entries(1_000);
    let made = filled(&entries, 10);
    let view = made.index.view().unwrap();
    let day = START_NS + 2 * DAY_NS;
    let spans = view.sources(&Window::new(day + 5, day + 6).unwrap()).unwrap();
    for byte in [0, 1] {
        let source = Hash::from_bytes([byte; 32]);
        let of_day = |entry: &&Entry| {
            let at = entry.row.as_ref().map(|row| row.occurred_at_ns);
            entry.name.source == source && at.is_some_and(|at| day <= at && at < day + DAY_NS)
        };
        let numbers: Vec<_> = entries.iter().filter(of_day).map(|entry| entry.name.sequence).collect();
        let (first, last) = (*numbers.iter().min().unwrap(), *numbers.iter().max().unwrap());
        let expected = Span { source, epoch: 1, first, last, events: numbers.len() as u64 };
        assert!(spans.contains(&expected), "{spans:?} lacks {expected:?}");
    }
    assert_eq!(spans.len(), 2);
    let names: Vec<_> = view.tenants(&everything().window).unwrap();
    assert_eq!(names, ["one".into(), "two".into()]);
}

#[test]
fn a_file_that_is_no_index_of_the_store_is_set_aside() {
    let entries = entries(50);
    let made = filled(&entries, 50);
    let (path, digest) = (made.path.clone(), made.index.digest().unwrap());
    drop(made.index);
    assert!(matches!(Index::open(&path, &[8; 16], cover()), Err(IndexError::Other)));
    let index = Index::open_or_renew(&path, &[8; 16], cover()).unwrap();
    assert_eq!((index.next().unwrap(), index.view().unwrap().next()), (0, 0));
    drop(index);

    fs::write(&path, b"no index").unwrap();
    let index = Index::open_or_renew(&path, &STORE, cover()).unwrap();
    index.fill(&entries, true).unwrap();
    assert_eq!(index.digest().unwrap(), digest);
    // One that is in use is nobody's to set aside.
    assert!(matches!(Index::open_or_renew(&path, &STORE, cover()), Err(IndexError::Disk { .. })));
}

#[test]
fn an_estimate_of_nothing_is_nothing() {
    let made = filled(&entries(100), 100);
    let view = made.index.view().unwrap();
    for scan in [
        Scan { tenant: Some("nobody".into()), ..everything() },
        Scan { access: Access::Actor(Vec::new()), ..everything() },
        Scan { access: Access::Actor(vec![actor(1 << 40)]), ..everything() },
        Scan { access: Access::Request("unheard of".into()), ..everything() },
        Scan { window: Window::new(0, 1).unwrap(), ..everything() },
    ] {
        assert_eq!(view.estimate(&scan).unwrap(), Estimate::default(), "{scan:?}");
        assert_eq!(rows(&view, &scan, &Meter::new(0, 0)), (Vec::new(), None));
    }
}

// Broken to see it fail: the filter left out of the scan by time; no bound on the runs of a day.
#[test]
fn more_actions_than_are_put_together_are_found_by_time() {
    let at_once = |slot: u64| {
        let row = self::entry(1).row.unwrap();
        let result = [Outcome::Denied, Outcome::Success][usize::from(slot.is_multiple_of(3))];
        let (leaf, action) = (LeafIndex::new(slot).unwrap(), format!("action {slot}").into());
        let row = Row { leaf, slot, action, result, occurred_at_ns: START_NS + slot as i64, ..row };
        Entry { row: Some(row), slot, leaf: slot, ..self::entry(slot) }
    };
    let entries: Vec<_> = (0..MAX_RUNS as u64 * 3 / 2 + 3).map(at_once).collect();
    let made = filled(&entries, 4_000);
    let view = made.index.view().unwrap();
    let scan = |result, window| Scan {
        access: Access::Outcome { result, action: None },
        window: Window::new(START_NS, window).unwrap(),
        ..everything()
    };
    let few = scan(Outcome::Success, START_NS + DAY_NS);
    assert_eq!(rows(&view, &few, &Meter::of(&view.estimate(&few).unwrap())).0, searched(&entries, &few));
    let many = scan(Outcome::Denied, START_NS + DAY_NS);
    assert!(matches!(view.estimate(&many), Err(IndexError::TooMany)));
    let by_time = many.by_time().unwrap();
    let (found, stopped) = rows(&view, &by_time, &Meter::of(&view.estimate(&by_time).unwrap()));
    assert_eq!((found.len(), stopped), (MAX_RUNS + 2, None));
    assert_eq!(found, searched(&entries, &many));
}

// Broken to see it fail: rows stored as they are, without a seal.
#[test]
fn a_row_that_was_changed_on_the_disk_is_named_and_not_answered() {
    let entries = entries(60);
    let made = filled(&entries, 60);
    let mut sealed = Vec::new();
    let table = made.index.begin().unwrap().open_table(ROWS[Kind::Time.place()]).unwrap();
    for row in table.range::<&[u8]>(..).unwrap() {
        sealed.push(row.unwrap().1.value().to_vec());
    }
    drop(table);
    let (cover, path) = (Arc::clone(&made.index.cover), made.path.clone());
    drop(made.index);
    let file = fs::read(&path).unwrap();
    let mut dice = Dice(3);
    for row in sealed.iter().step_by(3) {
        let mut changed = file.clone();
        let places = (0..file.len() - row.len()).filter(|at| file[*at..].starts_with(row));
        let (at, bit) = (dice.roll(row.len() as u64) as usize, 1 << dice.roll(8));
        places.for_each(|place| changed[place + at] ^= bit);
        fs::write(&path, &changed).unwrap();
        let index = Index::open(&path, &STORE, Arc::clone(&cover)).unwrap();
        let meter = Meter::new(u64::MAX, u64::MAX);
        let mut before = Vec::new();
        let answer = index.view().unwrap().scan(&everything(), &meter, &mut |row| before.push(row));
        assert!(matches!(answer, Err(error @ IndexError::Damaged(_)) if error.is_damage()));
        assert_eq!(before, searched(&entries, &everything())[..before.len()]);
    }
}
