//! A plan, carried out: rows are read, put together, made into texts and proven, within its budget; and at the end the record says what it
//! cost and what the answer was.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use epigraph_core::{Checkpoint, Hash, LeafIndex, UnixMillis, Verified};
use epigraph_event::v1::{IdentitySegment, Result as Outcome};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{Duration, Sleep, sleep, timeout};

use super::desk::Counting;
use super::entries::{estimate, named};
use super::event::withhold;
use super::record::Entry;
use super::running::Slot;
use super::show::{self, Line};
use super::{AskError, Asker, Planned, blocking, by};
use crate::guard::Principal;
use crate::guard::mask::Mask;
use crate::guard::page::Place;
use crate::guard::plan::{Plan, Request};
use crate::index::View;
use crate::index::complete::{Completeness, completeness};
use crate::query::digest::AnswerDigest;
use crate::query::reduce::merge;
use crate::query::{Column, Cost, Meter, Reduce, Row, Stopped};
use crate::store::Reader;

/// Rows of one answer: they are in memory together, at some 400 bytes each. An answer with more goes on on a next page; what is made of more
/// rows is not made.
pub const MAX_ROWS: u64 = 100_000;

/// How long a part waits for its reader to take it. Whoever takes longer holds a place that others wait for.
const STALL: Duration = Duration::from_secs(60);

/// From how long on a question is named in the messages: ten times what answers are to take.
const SLOW_MS: u64 = 1_000;

/// Rows that are turned into texts, proven and sent at a time.
const CHUNK: usize = 64;

/// A question that may run.
pub struct Run {
    /// What is known of it.
    pub planned: Planned,
    /// Under what everything in the answer is published.
    pub checkpoint: Option<Arc<Verified<Checkpoint>>>,
    /// Events under it that the indexes did not know.
    pub(super) unindexed: u64,
    pub(super) principal: Principal,
    pub(super) request: Request,
    pub(super) plan: Plan,
    /// Until it is read.
    pub(super) view: Mutex<Option<View>>,
    pub(super) meter: Arc<Meter>,
    pub(super) counting: Option<Counting>,
    pub(super) slot: Option<Slot>,
    /// When it was asked.
    pub(super) begun: UnixMillis,
    /// Rows that were answered.
    pub(super) answered: u64,
}

/// A part of an answer.
pub enum Part {
    /// Rows.
    Rows(Vec<AnswerRow>),
    /// The end.
    Finished(Box<Finished>),
}

/// A row of an answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AnswerRow {
    /// The leaves that it stands for.
    pub leaves: Vec<u64>,
    /// A text for each column.
    pub values: Vec<String>,
    /// What proves each leaf, if that was asked for.
    pub bundles: Vec<Bytes>,
}

/// How an answer ended.
pub struct Finished {
    /// What it cost.
    pub cost: Cost,
    /// Since it was begun.
    pub millis: u64,
    /// Why it ended before the end of its window, if it did.
    pub stopped: Option<Stopped>,
    /// Over its rows.
    pub digest: Hash,
    /// Under what they are published.
    pub checkpoint: Option<Arc<Verified<Checkpoint>>>,
    /// What each source has in the window.
    pub sources: Vec<(String, Completeness)>,
    /// Where it goes on.
    pub next: Option<Vec<u8>>,
    /// Events under the checkpoint that the indexes did not know: they cannot be in it.
    pub unindexed: u64,
}

/// Gives a part to whoever reads; whether it was taken, in time.
pub(super) async fn give<P>(parts: &mpsc::Sender<P>, part: P) -> bool {
    matches!(timeout(STALL, parts.send(part)).await, Ok(Ok(())))
}

/// Whether a time is over.
pub(super) async fn is_over(deadline: Pin<&mut Sleep>) -> bool {
    tokio::select! {
        biased;
        () = deadline => true,
        () = std::future::ready(()) => false,
    }
}

/// What was read.
struct Read {
    lines: Vec<Line>,
    stopped: Option<Stopped>,
    last: Option<(i64, LeafIndex)>,
    sources: Vec<Completeness>,
}

impl Asker {
    /// Carries a question out. Parts go to `parts`; when nobody takes them any more the question is cancelled. What it cost is on the
    /// record before the last part is sent.
    pub async fn answer(
        self: &Arc<Self>,
        mut run: Run,
        proofs: bool,
        parts: mpsc::Sender<Result<Part, AskError>>,
    ) {
        let ended = self.carry_out(&mut run, proofs, &parts).await;
        let (id, reader) = (run.planned.id.clone(), run.principal.name.clone());
        let (runbook, begun, answered) = (Arc::clone(&run.planned.runbook), run.begun, run.answered);
        let ended = self.end(run, ended).await;
        if let Ok(finished) = &ended
            && finished.stopped != Some(Stopped::Cancelled)
        {
            let took_ms = self.clock.now().0.saturating_sub(begun.0);
            let cost = &finished.cost;
            self.tallies().answered(&runbook.id, took_ms, cost, answered);
            if took_ms >= SLOW_MS {
                let (runbook, bytes) = (runbook.id.as_str(), cost.bytes_read);
                tracing::warn!(query = id, runbook, reader, took_ms, bytes, "a question was slow");
            }
        }
        give(&parts, ended.map(|finished| Part::Finished(Box::new(finished)))).await;
    }

    /// Whatever became of a question is on the record when this returns, and it counts no more.
    pub(super) async fn end(
        &self,
        mut run: Run,
        ended: Result<Finished, AskError>,
    ) -> Result<Finished, AskError> {
        let settled = self.settle(&mut run).await;
        match ended.and_then(|finished| settled.map(|()| finished)) {
            Ok(finished) => {
                let entry = self.outcome(&run, finished.stopped, Some(&finished.digest));
                Ok(self.audit().put_on_record(entry).await.map(|()| finished)?)
            }
            Err(error) => {
                // That it failed is told even where the record of it fails, too.
                let _ = self.audit().put_on_record(self.outcome(&run, None, None)).await;
                Err(error)
            }
        }
    }

    async fn carry_out(
        self: &Arc<Self>,
        run: &mut Run,
        proofs: bool,
        parts: &mpsc::Sender<Result<Part, AskError>>,
    ) -> Result<Finished, AskError> {
        let begun = self.clock.now();
        // Of all of it: whoever takes what is sent slowly, or wants much of it proven, has no more time than others.
        let mut deadline = std::pin::pin!(sleep(Duration::from_millis(run.plan.budget.timeout_ms)));
        let read = self.read(run, parts, deadline.as_mut()).await?;
        let mut digest = AnswerDigest::new(&run.planned.runbook.hash, &run.planned.columns);
        let by = match run.plan.reduce {
            Some(Reduce::Count { by, .. }) => Some(by),
            _ => None,
        };
        let mut stopped = read.stopped;
        for chunk in read.lines.chunks(CHUNK) {
            if run.meter.is_cancelled() || stopped == Some(Stopped::Deadline) {
                break;
            }
            let texts = self.texts(chunk.to_vec(), run, by).await?;
            let mut rows = Vec::with_capacity(chunk.len());
            for (line, values) in chunk.iter().zip(texts) {
                if is_over(deadline.as_mut()).await {
                    stopped = Some(Stopped::Deadline);
                }
                if run.meter.is_cancelled() || stopped == Some(Stopped::Deadline) {
                    break;
                }
                let leaves: Vec<u64> = line.rows.iter().map(|row| row.leaf.get()).collect();
                let bundles = match proofs {
                    true => self.prove(run, &line.rows).await?,
                    false => Vec::new(),
                };
                digest.row(&leaves, &values);
                rows.push(AnswerRow { leaves, values, bundles });
            }
            run.answered = run.answered.saturating_add(rows.len() as u64);
            if !give(parts, Ok(Part::Rows(rows))).await {
                run.meter.cancel();
            }
        }
        // Whoever ends it from here on is told that it is over; whoever did before is believed.
        drop(run.slot.take());
        if run.meter.is_cancelled() {
            stopped = Some(Stopped::Cancelled);
        }
        let now = self.clock.now();
        let goes_on = stopped == Some(Stopped::Limit) && run.plan.reduce.is_none();
        let next = read.last.filter(|_| goes_on).map(|row| {
            let place = Place { row, approved: run.plan.approved };
            self.pages.seal(&run.principal.name, &run.plan.question, place, now)
        });
        let named = |of: Completeness| {
            let source = self.audit().registry().get(&of.source);
            (source.map_or_else(|| of.source.to_string(), |source| source.vkey.to_string()), of)
        };
        Ok(Finished {
            cost: run.meter.cost(),
            millis: now.0.saturating_sub(begun.0),
            stopped,
            digest: digest.finish(),
            checkpoint: run.checkpoint.clone(),
            sources: read.sources.into_iter().map(named).collect(),
            next,
            unindexed: run.unindexed,
        })
    }

    /// Reads the rows of a plan and makes of them what its runbook makes, for as long as it may take and somebody waits.
    async fn read(
        self: &Arc<Self>,
        run: &mut Run,
        parts: &mpsc::Sender<Result<Part, AskError>>,
        mut deadline: Pin<&mut Sleep>,
    ) -> Result<Read, AskError> {
        let view = run.view.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let Some(view) = view else { return Err(AskError::NotFound) };
        let (plan, meter) = (run.plan.clone(), Arc::clone(&run.meter));
        let size = run.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.head().size.get());
        let (asker, store) = (Arc::clone(self), self.store().clone());
        let reading = blocking(move || read(&view, &plan, &meter, size, &asker, &store));
        tokio::pin!(reading);
        let mut gone = std::pin::pin!(parts.closed());
        let (mut late, mut left) = (false, false);
        loop {
            tokio::select! {
                read = &mut reading => return read,
                () = &mut deadline, if !late => {
                    late = true;
                    run.meter.expire();
                }
                () = &mut gone, if !left => {
                    left = true;
                    run.meter.cancel();
                }
            }
        }
    }

    /// The texts of lines; events are opened where the reader may see who it was.
    async fn texts(
        &self,
        lines: Vec<Line>,
        run: &Run,
        by: Option<Column>,
    ) -> Result<Vec<Vec<String>>, AskError> {
        let (mask, columns) = (run.plan.mask.clone(), run.planned.runbook.columns.clone());
        let store = self.store().clone();
        blocking(move || {
            let shows_names =
                by.into_iter().chain(columns.iter().copied()).any(|column| Mask::group(column).is_some());
            let mut texts = Vec::with_capacity(lines.len());
            for line in &lines {
                let identity = match line.rows.first().filter(|row| shows_names && mask.opens(row)) {
                    Some(row) => identity_of(&store, row)?,
                    None => None,
                };
                texts.push(line.texts(&columns, &mask, by, identity.as_ref()));
            }
            Ok(texts)
        })
        .await
    }

    /// What proves each row, without what the reader may not see.
    async fn prove(&self, run: &Run, rows: &[Row]) -> Result<Vec<Bytes>, AskError> {
        let Some(checkpoint) = &run.checkpoint else { return Ok(Vec::new()) };
        let mut bundles = Vec::with_capacity(rows.len());
        for row in rows {
            let mut bundle = self.audit().bundle_under(row.slot, checkpoint).await?;
            withhold(&mut bundle, run.plan.mask.opens(row), run.plan.mask.body);
            bundles.push(bundle.encode().into());
        }
        Ok(bundles)
    }

    fn outcome(&self, run: &Run, stopped: Option<Stopped>, digest: Option<&Hash>) -> Entry {
        let cost = run.meter.cost();
        let (result, code) = match (digest, stopped) {
            (None, _) => (Outcome::Failure, "FAILED"),
            (Some(_), Some(Stopped::Cancelled)) => (Outcome::Partial, "CANCELLED"),
            (Some(_), Some(Stopped::Deadline)) => (Outcome::Partial, "DEADLINE"),
            (Some(_), Some(Stopped::Budget)) => (Outcome::Partial, "BUDGET"),
            (Some(_), Some(Stopped::Limit)) => (Outcome::Success, "MORE"),
            (Some(_), None) => (Outcome::Success, ""),
        };
        let (kind, about) = named(&run.request);
        Entry {
            action: "runbook.finished",
            who: run.principal.name.clone(),
            by: by(run.principal.kind),
            result,
            code: code.to_owned(),
            request: run.planned.id.clone(),
            about: (kind, about),
            labels: vec![
                ("bytes-read", cost.bytes_read.to_string()),
                ("digest", digest.map(ToString::to_string).unwrap_or_default()),
                ("rows-examined", cost.rows_examined.to_string()),
                ("rows-returned", cost.rows_returned.to_string()),
            ],
            body: json!({
                "estimate": estimate(&run.plan.estimate),
                "rows_examined": cost.rows_examined,
                "rows_returned": cost.rows_returned,
                "bytes_read": cost.bytes_read,
                "digest": digest.map(ToString::to_string),
                "checkpoint_size": run.checkpoint.as_ref().map(|checkpoint| checkpoint.head().size.get()),
            }),
        }
    }
}

fn read(
    view: &View,
    plan: &Plan,
    meter: &Meter,
    size: u64,
    asker: &Asker,
    store: &Reader,
) -> Result<Read, AskError> {
    let limit = plan.budget.rows.min(MAX_ROWS);
    let (mut found, mut stopped, mut newest_first) = (Vec::new(), None, false);
    // How far each scan came that did not come to its end: beyond that another scan's rows would leave some of its own out.
    let mut reach = Vec::new();
    for scan in &plan.scans {
        newest_first = scan.newest_first;
        let mut scan = scan.clone();
        scan.limit = scan.limit.min(limit);
        let (mut rows, mut last) = (Vec::new(), None);
        // What is not published yet cannot be proven, and is not answered.
        let mut each = |row: Row| {
            last = Some(row.place());
            if row.leaf.get() < size {
                rows.push(row);
            }
        };
        if let Some(why) = view.scan(&scan, meter, &mut each).map_err(AskError::from)? {
            stopped = Some(why);
            reach.extend(last);
        }
        found.push(rows);
        let held: usize = found.iter().map(Vec::len).sum();
        if held as u64 > limit.saturating_mul(2) {
            // What is beyond the first of them all is in no answer: it is not kept while the other scans are made.
            let first = merge(std::mem::take(&mut found), newest_first, limit);
            if first.len() as u64 == limit {
                stopped = Some(Stopped::Limit);
                reach.extend(first.last().map(Row::place));
            }
            found.push(first);
        }
    }
    let reach = if newest_first { reach.into_iter().max() } else { reach.into_iter().min() };
    if let Some(reach) = reach {
        let within = |row: &Row| if newest_first { row.place() >= reach } else { row.place() <= reach };
        found.iter_mut().for_each(|rows| rows.retain(within));
    }
    let total: usize = found.iter().map(Vec::len).sum();
    // What is made of rows is made of them in the order of time.
    let rows = merge(found, newest_first && plan.reduce.is_none(), limit);
    if stopped.is_none() && rows.len() < total && rows.len() as u64 == limit {
        stopped = Some(Stopped::Limit);
    }
    let last = rows.last().map(Row::place);
    let lines = match &plan.reduce {
        None => rows.into_iter().map(show::plain).collect(),
        // What is made of rows is made of all of them, or not at all.
        Some(_) if stopped.is_some() => Vec::new(),
        Some(reduce) => show::lines(Some(reduce), reduce.apply(rows)),
    };
    let sources = sources_in(view, plan, asker, store)?;
    Ok(Read { lines, stopped, last, sources })
}

/// What each source has in the window, of those that have anything.
fn sources_in(
    view: &View,
    plan: &Plan,
    asker: &Asker,
    store: &Reader,
) -> Result<Vec<Completeness>, AskError> {
    let mut states = Vec::new();
    for source in asker.audit().registry().page(None, usize::MAX) {
        let id = source.vkey.id();
        if let Some(state) = store.state(&id)? {
            states.push((id, state));
        }
    }
    let all = completeness(view, &plan.window, &states).map_err(AskError::from)?;
    Ok(all.into_iter().filter(|source| !source.spans.is_empty()).collect())
}

fn identity_of(store: &Reader, row: &Row) -> Result<Option<IdentitySegment>, AskError> {
    Ok(store.follow()?.event(row.slot)?.and_then(|event| event.identity))
}
