//! Questions to the indexes as they are at one moment: what a scan costs at most, from counts alone, and the scan.

use std::cell::RefCell;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use epigraph_core::{Hash, LeafIndex};
use redb::{Range, ReadTransaction};

use super::counts::{Counts, Met, met};
use super::key::{self, Kind};
use super::value::{Symbol, decode};
use super::word::{MAX_NUMBERS, pseudonym_bytes, text_bytes};
use super::{
    COUNTS, IndexError, MAX_RUNS, META, NUMBERS, Progress, ROW, ROWS, SOURCES, SYMBOL, SYMBOLS, TENANTS,
    Table, damaged, disk, last_of, numbers_of, progress_of,
};
use crate::query::scan::{DAY_NS, MAX_SUBJECTS};
use crate::query::{Access, Estimate, Meter, Row, Scan, Stopped, Window};
use crate::vault::Cover;

/// The indexes as they are at one moment.
pub struct View {
    cover: Arc<Cover>,
    next: u64,
    indexes: HashMap<Kind, (Progress, Table, Table)>,
    symbols: Table,
    numbers: Table,
    tenants: Table,
    sources: Table,
    /// Symbols that were met.
    known: RefCell<HashMap<u32, Symbol>>,
}

/// What a source has in some days.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// The id of the source's key.
    pub source: Hash,
    /// The epoch.
    pub epoch: u64,
    /// The lowest sequence number.
    pub first: u64,
    /// The highest.
    pub last: u64,
    /// How many events.
    pub events: u64,
}

/// What is asked of an index, in its own words: rows whose keys have one of these behind day and tenant.
struct Asked {
    kind: Kind,
    by: By,
    /// The tenant; none for everybody's.
    tenant: Option<u32>,
    /// Whether nothing else must hold of a row.
    takes_all: bool,
    /// From the first place on, without the last one.
    from: (i64, u64),
    to: (i64, u64),
}

enum By {
    /// One of these.
    These(Vec<Vec<u8>>),
    /// Anything that begins like this: the actions of an outcome.
    Below([u8; 1]),
}

impl View {
    pub(super) fn new(transaction: &ReadTransaction, cover: Arc<Cover>) -> Result<View, IndexError> {
        let open = |definition| transaction.open_table(definition).map_err(disk("read"));
        let meta = open(META)?;
        let mut indexes = HashMap::new();
        for kind in Kind::ALL {
            if let Some(progress) = progress_of(&meta, kind)? {
                indexes.insert(kind, (progress, open(ROWS[kind.place()])?, open(COUNTS[kind.place()])?));
            }
        }
        Ok(View {
            cover,
            next: last_of(&meta)?.map_or(0, |(slot, _, _)| slot.saturating_add(1)),
            indexes,
            symbols: open(SYMBOLS)?,
            numbers: open(NUMBERS)?,
            tenants: open(TENANTS)?,
            sources: open(SOURCES)?,
            known: RefCell::default(),
        })
    }

    /// The slot of the first event that is not in it: all before it are.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Everybody whose events there are in a window's days, in the order of their names.
    pub fn tenants(&self, window: &Window) -> Result<Vec<Arc<str>>, IndexError> {
        let mut numbers: Vec<_> = self.days(window, None)?.into_values().flatten().collect();
        numbers.sort_unstable();
        numbers.dedup();
        let mut tenants =
            numbers.into_iter().map(|tenant| self.text(tenant)).collect::<Result<Vec<_>, _>>()?;
        tenants.sort_unstable();
        Ok(tenants)
    }

    /// What a scan costs at most. It reads counts, and where nothing is counted whether there is a row; it opens none.
    pub fn estimate(&self, scan: &Scan) -> Result<Estimate, IndexError> {
        let Some(asked) = self.asked(scan)? else { return Ok(Estimate::default()) };
        let index = self.index(asked.kind)?;
        let (mut estimate, mut runs, mut longest) = (Estimate::default(), 0_u64, 0_u64);
        for (day, tenants) in self.days(&scan.window, asked.tenant)? {
            let Some((from, to)) = asked.of_day(day) else { continue };
            let before = estimate.rows;
            for (_, counted) in stems(index, &asked, day, &tenants)? {
                let (rows, bytes) = counted.within(from.0, to.0 + u64::from(to.1 > 0));
                estimate.rows = estimate.rows.saturating_add(rows);
                estimate.bytes = estimate.bytes.saturating_add(bytes);
                longest = longest.max(counted.longest);
                runs = runs.saturating_add(1);
            }
            estimate.days += u32::from(estimate.rows > before);
        }
        if asked.takes_all {
            // A scan stops at the first row beyond its limit. It has met each row at most once for each thing asked for, and has the first
            // row of each run in its hand.
            let times = match &asked.by {
                By::These(these) => these.len() as u64,
                By::Below(_) => 1,
            };
            let most = scan.limit.saturating_add(1).saturating_mul(times).saturating_add(runs);
            estimate.rows = estimate.rows.min(most);
            estimate.bytes = estimate.bytes.min(most.saturating_mul(longest));
        }
        Ok(estimate)
    }

    /// Gives the rows of a scan, in the order of time, and answers why it ended before the end of its window, if it did. The meter
    /// counts each row before it is looked at.
    pub fn scan(
        &self,
        scan: &Scan,
        meter: &Meter,
        each: &mut dyn FnMut(Row),
    ) -> Result<Option<Stopped>, IndexError> {
        let Some(asked) = self.asked(scan)? else { return Ok(None) };
        let index = self.index(asked.kind)?;
        let (_, rows, _) = index;
        let days = self.days(&scan.window, asked.tenant)?;
        let days: Vec<_> =
            if scan.newest_first { days.into_iter().rev().collect() } else { days.into_iter().collect() };
        let mut returned = 0_u64;
        for (day, tenants) in days {
            let Some((from, to)) = asked.of_day(day) else { continue };
            let mut runs =
                Runs { heap: BinaryHeap::new(), ranges: Vec::new(), newest_first: scan.newest_first };
            for (stem, counted) in stems(index, &asked, day, &tenants)? {
                if counted.within(from.0, to.0 + u64::from(to.1 > 0)).0 == 0 {
                    continue;
                }
                let (from, to) = (key::key(&stem, from.0, from.1), key::key(&stem, to.0, to.1));
                let range: (Bound<&[u8]>, Bound<&[u8]>) = (Bound::Included(&from), Bound::Excluded(&to));
                runs.ranges.push(rows.range::<&[u8]>(range).map_err(disk("read"))?);
            }
            for run in 0..runs.ranges.len() {
                if let Err(stopped) = runs.advance(run, meter)? {
                    return Ok(Some(stopped));
                }
            }
            let mut last = None;
            while let Some(Head { place, run, tenant, value, .. }) = runs.heap.pop() {
                if last.replace(place) != Some(place) {
                    let row = self.row(place, tenant, &value)?;
                    if scan.takes(&row) {
                        if returned == scan.limit {
                            return Ok(Some(Stopped::Limit));
                        }
                        returned += 1;
                        meter.answer();
                        each(row);
                    }
                }
                if let Err(stopped) = runs.advance(run, meter)? {
                    return Ok(Some(stopped));
                }
            }
        }
        Ok(None)
    }

    /// What each source has in the days that a window touches, by its events' own times. Whole days: a source's numbers are in the order in
    /// which it sent, not in that of time.
    pub fn sources(&self, window: &Window) -> Result<Vec<Span>, IndexError> {
        let days = window.days();
        let (from, to) = (key::day_bytes(days.start), key::day_bytes(days.end));
        let mut spans = BTreeMap::<(Hash, u64), Span>::new();
        for row in self.sources.range::<&[u8]>(&from[..]..&to[..]).map_err(disk("read"))? {
            let (key, value) = row.map_err(disk("read"))?;
            let name = key.value().get(4..).and_then(|name| name.split_first_chunk::<32>());
            let name =
                name.and_then(|(source, epoch)| Some((Hash::from_bytes(*source), numbers_of::<1>(epoch)?)));
            let (source, [epoch]) = name.ok_or_else(|| damaged("the list of sources"))?;
            let numbers = numbers_of(value.value()).ok_or_else(|| damaged("the list of sources"))?;
            let [first, last, events] = numbers;
            let none = Span { source, epoch, first, last, events: 0 };
            let span = spans.entry((source, epoch)).or_insert(none);
            span.first = span.first.min(first);
            span.last = span.last.max(last);
            span.events = span.events.saturating_add(events);
        }
        Ok(spans.into_values().collect())
    }

    fn row(&self, place: (i64, LeafIndex), tenant: u32, sealed: &[u8]) -> Result<Row, IndexError> {
        let (at, leaf) = place;
        let value = self.cover.open((ROW, leaf.get()), &key::of_row(tenant, at), sealed);
        let value = value.map_err(|_| damaged(format!("the row of leaf {}", leaf.get())))?;
        decode((place, self.text(tenant)?), &value, |number| self.symbol(number))
    }

    /// The index, if it is there and has everything.
    fn index(&self, kind: Kind) -> Result<&(Progress, Table, Table), IndexError> {
        let index = self.indexes.get(&kind).ok_or(IndexError::Dropped(kind))?;
        if index.0.next < self.next {
            return Err(IndexError::NotReady { kind, has: index.0.next, of: self.next });
        }
        Ok(index)
    }

    /// What is asked, in the index's own words; none if nobody and nothing in the indexes is called so.
    fn asked(&self, scan: &Scan) -> Result<Option<Asked>, IndexError> {
        let kind = match scan.access {
            Access::Time => Kind::Time,
            Access::Actor(_) => Kind::Actor,
            Access::Resource(_) => Kind::Resource,
            Access::Request(_) => Kind::Request,
            Access::Outcome { .. } => Kind::Outcome,
        };
        self.index(kind)?;
        let these =
            |number: Option<u32>| By::These(number.map(|it| it.to_be_bytes().to_vec()).into_iter().collect());
        let by = match &scan.access {
            Access::Time => By::These(vec![Vec::new()]),
            Access::Actor(pseudonyms) | Access::Resource(pseudonyms) => {
                if pseudonyms.len() > MAX_SUBJECTS {
                    return Err(IndexError::TooMany);
                }
                let mut all = Vec::new();
                for pseudonym in pseudonyms {
                    all.extend(self.number(&pseudonym_bytes(pseudonym))?.map(|it| it.to_be_bytes().to_vec()));
                }
                all.sort_unstable();
                all.dedup();
                By::These(all)
            }
            Access::Request(id) => By::These(vec![key::of_request(&self.cover, id).to_vec()]),
            Access::Outcome { result, action: None } => By::Below(key::of_result(*result)),
            Access::Outcome { result, action: Some(action) } => match self.number(&text_bytes(action))? {
                Some(action) => By::These(vec![key::of_outcome(*result, action).to_vec()]),
                None => these(None),
            },
        };
        let mut tenant = None;
        if let Some(name) = &scan.tenant {
            tenant = self.number(&text_bytes(name))?;
            if tenant.is_none() {
                return Ok(None);
            }
        }
        let (mut from, mut to) = ((scan.window.from_ns(), 0), (scan.window.to_ns(), 0));
        match scan.after {
            Some((at, leaf)) if scan.newest_first => to = to.min((at, leaf.get())),
            Some((at, leaf)) => from = from.max((at, leaf.get().saturating_add(1))),
            None => {}
        }
        let takes_all =
            scan.stream.is_none() && scan.filter.0.is_empty() && !matches!(scan.access, Access::Request(_));
        let asks = !matches!(&by, By::These(these) if these.is_empty());
        Ok((asks && from < to).then_some(Asked { kind, by, tenant, takes_all, from, to }))
    }

    /// The days of a window on which somebody has events, and who.
    fn days(&self, window: &Window, tenant: Option<u32>) -> Result<BTreeMap<i32, Vec<u32>>, IndexError> {
        let days = window.days();
        let (from, to) = (key::day_bytes(days.start), key::day_bytes(days.end));
        let mut found = BTreeMap::<i32, Vec<u32>>::new();
        for row in self.tenants.range::<&[u8]>(&from[..]..&to[..]).map_err(disk("read"))? {
            let (key, _) = row.map_err(disk("read"))?;
            let (chunks, rest) = key.value().as_chunks::<4>();
            let ([day, of], []) = (chunks, rest) else { return Err(damaged("the list of tenants")) };
            let of = u32::from_be_bytes(*of);
            if tenant.is_none_or(|tenant| tenant == of) {
                found.entry(key::day_of(*day)).or_default().push(of);
            }
        }
        Ok(found)
    }

    fn number(&self, symbol: &[u8]) -> Result<Option<u32>, IndexError> {
        let number = self.numbers.get(&self.cover.name(symbol)[..]).map_err(disk("read"))?;
        let number = number.map(|number| number.value().try_into().map(u32::from_be_bytes));
        number.transpose().map_err(|_| damaged("the dictionary"))
    }

    fn symbol(&self, number: u32) -> Result<Symbol, IndexError> {
        if let Some(known) = self.known.borrow().get(&number) {
            return Ok(known.clone());
        }
        let symbol = self.symbols.get(&number.to_be_bytes()[..]).map_err(disk("read"))?;
        let symbol =
            symbol.and_then(|sealed| self.cover.open((SYMBOL, number.into()), &[], sealed.value()).ok());
        let symbol = symbol.and_then(|symbol| Symbol::from_bytes(&symbol));
        let symbol = symbol.ok_or_else(|| damaged("the dictionary"))?;
        let mut known = self.known.borrow_mut();
        if known.len() > MAX_NUMBERS {
            known.clear();
        }
        known.insert(number, symbol.clone());
        Ok(symbol)
    }

    fn text(&self, number: u32) -> Result<Arc<str>, IndexError> {
        match self.symbol(number)? {
            Symbol::Text(text) => Ok(text),
            Symbol::Pseudonym(_) => Err(damaged("the dictionary")),
        }
    }
}

impl Asked {
    /// Which part of a day is asked for: from the first place on, without the last one, as nanoseconds in the day and leaf.
    fn of_day(&self, day: i32) -> Option<((u64, u64), (u64, u64))> {
        const DAY: u64 = DAY_NS as u64;
        let (first, from) = key::day_and_rest(self.from.0);
        let (last, to) = key::day_and_rest(self.to.0);
        let from = if first < day { (0, 0) } else { (from, self.from.1) };
        let to = if day < last { (DAY, 0) } else { (to, self.to.1) };
        (first <= day && day <= last && from < to).then_some((from, to))
    }
}

/// The stems of a day that are asked for and have rows, with their counts.
fn stems(
    (_, rows, counts): &(Progress, Table, Table),
    asked: &Asked,
    day: i32,
    tenants: &[u32],
) -> Result<Vec<(Vec<u8>, Counts)>, IndexError> {
    let counted = |bytes: &[u8]| Counts::decode(bytes).ok_or_else(|| damaged("the counts"));
    let mut found = Vec::new();
    for tenant in tenants {
        match &asked.by {
            By::These(these) => {
                for by in these {
                    let stem = key::stem(day, *tenant, by);
                    let met = if asked.kind.counts_one() { Met::More } else { met(rows, &stem)? };
                    let count = match met {
                        Met::None => None,
                        Met::One(rest_ns, bytes) => {
                            let mut one = Counts::default();
                            one.add(rest_ns, bytes);
                            Some(one)
                        }
                        Met::More => match counts.get(stem.as_slice()).map_err(disk("read"))? {
                            Some(count) => Some(counted(count.value())?),
                            None if asked.kind.counts_one() => None,
                            None => return Err(damaged("the counts")),
                        },
                    };
                    found.extend(count.map(|count| (stem, count)));
                }
            }
            By::Below([by]) => {
                let (from, to) = (key::stem(day, *tenant, &[*by]), key::stem(day, *tenant, &[*by + 1]));
                for row in counts.range::<&[u8]>(&from[..]..&to[..]).map_err(disk("read"))? {
                    let (stem, count) = row.map_err(disk("read"))?;
                    found.push((stem.value().to_vec(), counted(count.value())?));
                }
            }
        }
        if found.len() > MAX_RUNS {
            return Err(IndexError::TooMany);
        }
    }
    Ok(found)
}

/// Runs of keys of one day, merged into one in the order of time.
struct Runs {
    heap: BinaryHeap<Head>,
    ranges: Vec<Range<'static, &'static [u8], &'static [u8]>>,
    newest_first: bool,
}

/// The next row of a run. The one that comes first in the answer is the greatest.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Head {
    order: (i64, i64),
    place: (i64, LeafIndex),
    run: usize,
    tenant: u32,
    value: Vec<u8>,
}

impl Runs {
    /// Puts the next row of a run on the heap, after the meter has counted it.
    fn advance(&mut self, run: usize, meter: &Meter) -> Result<Result<(), Stopped>, IndexError> {
        let Some(range) = self.ranges.get_mut(run) else { return Ok(Ok(())) };
        let next = if self.newest_first { range.next_back() } else { range.next() };
        let Some(row) = next else { return Ok(Ok(())) };
        let (key, value) = row.map_err(disk("read"))?;
        let (key, value) = (key.value(), value.value());
        if let Err(stopped) = meter.examine(key.len() + value.len()) {
            return Ok(Err(stopped));
        }
        let place = key::place(key)?;
        let (chunks, _) = key.as_chunks::<4>();
        let [_, tenant, ..] = chunks else { return Err(damaged("a key")) };
        // The order of the complement is the reverse one. A leaf index is below 2^63.
        let (at, leaf) = (place.0, place.1.get() as i64);
        let order = if self.newest_first { (at, leaf) } else { (!at, !leaf) };
        let tenant = u32::from_be_bytes(*tenant);
        self.heap.push(Head { order, place, run, tenant, value: value.to_vec() });
        Ok(Ok(()))
    }
}
