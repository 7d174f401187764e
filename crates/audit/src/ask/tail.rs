//! Events as they are taken and published, for as long as somebody looks: one question on the record, however long it takes.

use std::collections::BTreeMap;
use std::sync::Arc;

use epigraph_core::{LeafIndex, UnixMillis};
use epigraph_event::v1::{IdentitySegment, Result as Outcome};
use epigraph_rpc::SpiffeId;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::desk::Counting;
use super::entries::named;
use super::record::Entry;
use super::run::{AnswerRow, give};
use super::running::{Query, Slot, TAIL};
use super::{AskError, Asker, Rules, blocking, by, known, show, stranger};
use crate::guard::Principal;
use crate::guard::approval::{Approval, ApprovalId};
use crate::guard::limits::Limits;
use crate::guard::mask::Mask;
use crate::guard::plan::{Decision, Known, Plan, Question, Request, Unavailable};
use crate::guard::refusal::{Code, Refusal};
use crate::query::{Column, Estimate, Meter, Pseudonym, Row, Scan, Window};

/// What is shown of each event.
pub const COLUMNS: [Column; 7] = [
    Column::OccurredAt,
    Column::Stream,
    Column::Actor,
    Column::Action,
    Column::ResourceKind,
    Column::Resource,
    Column::Result,
];

/// How far back somebody who is asked for by name must have been seen: whoever was not has no token yet.
const SEEN_WITHIN_NS: i64 = 31 * 86_400 * 1_000_000_000;

/// The longest that one tail goes on; whoever looks longer asks again.
const LONGEST_S: u64 = 86_400;

/// Events that are looked at together.
const STEP: u64 = 256;

/// What a tail counts for before it is known how much comes: of a role's day not much, and seldom enough made durable.
const PORTION_BYTES: u64 = 1 << 20;

/// A tail that may go on.
pub struct Tail {
    /// Under this id it is listed, recorded and cancelled.
    pub id: String,
    principal: Principal,
    request: Request,
    plan: Plan,
    limits: Limits,
    counting: Counting,
    running: Query,
    slot: Slot,
    next: u64,
    /// Columns that this reader sees as tokens.
    pub masked: Vec<String>,
}

/// What a tail begins with: its plan, what counts for it, and its first slot.
type Begun = (Plan, Counting, u64);

/// A part of a tail.
pub enum Part {
    /// An event.
    Row(AnswerRow),
    /// All leaves before this one were looked at.
    Cursor(u64),
}

/// Statistics and keys for a tail: it reads no index.
struct Ahead<'a> {
    of: known::Sight<'a>,
    now_ns: i64,
}

impl Known for Ahead<'_> {
    fn estimate(&self, _: &Scan) -> Result<Option<Estimate>, Unavailable> {
        Ok(Some(Estimate::default()))
    }

    fn pseudonyms(
        &self,
        tenant: Option<&str>,
        window: &Window,
        column: Column,
        id: &str,
    ) -> Result<Vec<Pseudonym>, Unavailable> {
        let seen = Window::new(self.now_ns.saturating_sub(SEEN_WITHIN_NS), window.to_ns());
        self.of.pseudonyms(tenant, &seen.unwrap_or(*window), column, id)
    }

    fn numbered(&self, window: &Window) -> Result<u64, Unavailable> {
        self.of.numbered(window)
    }

    fn approval(&self, id: &ApprovalId) -> Result<Option<Approval>, Unavailable> {
        self.of.approval(id)
    }
}

impl Asker {
    /// Decides a tail and puts it on the record. `filter` is by the names of columns.
    pub async fn ask_tail(
        self: &Arc<Self>,
        who: &SpiffeId,
        filter: BTreeMap<String, Vec<String>>,
        purpose: String,
        from: Option<LeafIndex>,
    ) -> Result<Result<Tail, Refusal>, AskError> {
        let now = self.clock.now();
        let mut request = Request {
            question: Question::Tail { filter },
            stream: None,
            tenant: None,
            from_ns: None,
            to_ns: None,
            rows: None,
            purpose,
            ticket: String::new(),
            unmask: false,
            body: false,
            approval: None,
            page: None,
            audit: false,
        };
        let rules = self.rules();
        let Some(principal) = rules.principal(who) else {
            let refusal = stranger();
            self.refuse(who.as_str(), super::By::Service, &request, &refusal).await?;
            return Ok(Err(refusal));
        };
        self.caught_up().await?;
        let limits = rules.guard.limits.of(&principal);
        let now_ns = nanos(now);
        request.from_ns = Some(now_ns);
        request.to_ns = Some(now_ns.saturating_add(seconds_ns(limits.window_s.min(LONGEST_S))));
        let (asker, of, asked) = (Arc::clone(self), principal.clone(), request.clone());
        let decided =
            blocking(move || asker.decide_tail(&rules, (&of, &limits), &asked, (from, now))).await?;
        let (plan, counting, next) = match decided {
            Ok(decided) => decided,
            Err(refusal) => {
                self.refuse(&principal.name, by(principal.kind), &request, &refusal).await?;
                return Ok(Err(*refusal));
            }
        };
        // From here on it counts, whatever becomes of it.
        let id = self.id();
        self.keep_standing(&principal.name).await?;
        self.audit().put_on_record(self.of_plan("tail.run", &principal, &request, &plan, &id)).await?;
        let masked = plan.mask.masked().into_iter().filter(|column| COLUMNS.contains(column));
        let masked = masked.map(|column| column.as_str().to_owned()).collect();
        let running = Query {
            id: id.clone(),
            principal: principal.name.clone(),
            runbook: TAIL.to_owned(),
            streams: plan.streams.clone(),
            started_at: now,
            estimate: None,
            meter: Arc::clone(counting.meter()),
            ended: Arc::default(),
        };
        let slot = self.running.begin(running.clone());
        Ok(Ok(Tail { id, principal, request, plan, limits, counting, running, slot, next, masked }))
    }

    /// Reads nothing but the time at which the first event was taken.
    fn decide_tail(
        &self,
        rules: &Rules,
        (who, limits): (&Principal, &Limits),
        request: &Request,
        (from, now): (Option<LeafIndex>, UnixMillis),
    ) -> Result<Result<Begun, Box<Refusal>>, AskError> {
        let refused =
            |code, message: String, suggestion| Ok(Err(Box::new(Refusal::new(code, message, suggestion))));
        let Some(index) = self.following.index() else {
            return refused(Code::Unavailable, "the indexes are being opened".into(), "Ask again.");
        };
        let view = index.view()?;
        let approvals = BTreeMap::new();
        let known = known::Sight::new(&view, self.store().follow()?, &approvals);
        let known = Ahead { of: known, now_ns: nanos(now) };
        // Held until it is counted: two that are decided at once must not both find the last place.
        let mut desk = self.desk();
        let standing = desk.ledger.standing(&who.name, now);
        let plan = match rules.guard.plan(who, request, &known, &standing, &self.pages, now) {
            Decision::Run(plan) => *plan,
            Decision::Refused(refusal) => return Ok(Err(refusal)),
            Decision::NeedsApproval(pending) => {
                return refused(Code::Forbidden, pending.reason, "A tail is not approved: run a runbook.");
            }
        };
        let next = match from {
            Some(leaf) => self.store().slot_from_leaf(leaf)?,
            None => *self.keeper.placed().borrow(),
        };
        if let Some(first) = self.store().follow()?.event(next)?
            && first.ingested_s < (now.0 / 1_000).saturating_sub(limits.window_s)
        {
            let days = limits.window_s as f64 / 86_400.0;
            let message =
                format!("the first event was taken more than {days} days ago, and you may look back so far");
            return refused(Code::WindowTooLong, message, "Begin at a later leaf, or run a runbook.");
        }
        Ok(match desk.ledger.count(&who.name, PORTION_BYTES, limits, now) {
            Ok(counted) => {
                let meter = Arc::new(Meter::new(u64::MAX, u64::MAX));
                Ok((plan, self.counting(counted, meter).without_end(PORTION_BYTES), next))
            }
            Err(refusal) => Err(Box::new(refusal)),
        })
    }

    /// Sends events as they are published, until nobody takes them, somebody ends it, its time or its quota is over, or the connection is
    /// asked to leave.
    pub async fn follow_tail(
        self: &Arc<Self>,
        mut tail: Tail,
        leave_by: Instant,
        parts: mpsc::Sender<Result<Part, AskError>>,
    ) {
        let mut ended = self.send_tail(&mut tail, leave_by, &parts).await;
        let Tail { id, principal, request, counting, running, slot, .. } = tail;
        // Whoever ends it from here on is told that it is over; whoever did before is believed.
        drop(slot);
        if running.meter.is_cancelled() {
            ended = ended.and(Err(AskError::Cancelled));
        }
        let cost = running.meter.cost();
        drop(counting);
        let settled = self.keep_standing(&principal.name).await;
        let (result, code) = match &ended {
            Ok(()) => (Outcome::Success, ""),
            Err(AskError::Cancelled) => (Outcome::Partial, "CANCELLED"),
            Err(AskError::Refused(refusal)) => (Outcome::Partial, refusal.code.as_str()),
            Err(_) => (Outcome::Failure, "FAILED"),
        };
        let (kind, about) = named(&request);
        let entry = Entry {
            action: "tail.finished",
            who: principal.name.clone(),
            by: by(principal.kind),
            result,
            code: code.to_owned(),
            request: id,
            about: (kind, about),
            labels: vec![
                ("bytes-read", cost.bytes_read.to_string()),
                ("rows-examined", cost.rows_examined.to_string()),
                ("rows-returned", cost.rows_returned.to_string()),
            ],
            body: json!({
                "rows_examined": cost.rows_examined,
                "rows_returned": cost.rows_returned,
                "bytes_read": cost.bytes_read,
            }),
        };
        let recorded = self.audit().put_on_record(entry).await.map_err(AskError::from);
        let refused = match &ended {
            Err(AskError::Refused(refusal)) => {
                self.refuse(&principal.name, by(principal.kind), &request, refusal).await
            }
            _ => Ok(()),
        };
        if let Err(error) = ended.and(settled).and(recorded).and(refused) {
            give(&parts, Err(error)).await;
        }
    }

    async fn send_tail(
        self: &Arc<Self>,
        tail: &mut Tail,
        leave_by: Instant,
        parts: &mpsc::Sender<Result<Part, AskError>>,
    ) -> Result<(), AskError> {
        let (mut placed, mut published) = (self.keeper.placed(), self.published.clone());
        let meter = Arc::clone(&tail.running.meter);
        loop {
            let (end, size) = (*placed.borrow_and_update(), published_size(&mut published));
            while tail.next < end && !meter.is_cancelled() {
                let (store, plan, of) = (self.store().clone(), tail.plan.clone(), Arc::clone(&meter));
                let (from, to) = (tail.next, end.min(tail.next.saturating_add(STEP)));
                let before = meter.cost().bytes_read;
                let step = blocking(move || step(&store, (&plan, &of), from..to, size)).await?;
                let read = meter.cost().bytes_read.saturating_sub(before);
                // Nobody is shown what does not count.
                if tail.counting.read_on(read, PORTION_BYTES, &tail.limits).map_err(Box::new)? {
                    self.keep_standing(&tail.principal.name).await?;
                }
                let stands_still = step.next == tail.next;
                tail.next = step.next;
                for row in step.rows {
                    meter.answer();
                    if !give(parts, Ok(Part::Row(row))).await {
                        return Ok(());
                    }
                }
                if let Some(cursor) = step.cursor
                    && !give(parts, Ok(Part::Cursor(cursor))).await
                {
                    return Ok(());
                }
                if stands_still {
                    break;
                }
            }
            if meter.is_cancelled() || nanos(self.clock.now()) >= tail.plan.window.to_ns() {
                return Ok(());
            }
            tokio::select! {
                changed = placed.changed() => changed.map_err(|_| super::Ended)?,
                changed = published.changed() => changed.map_err(|_| super::Ended)?,
                () = tail.running.ended.notified() => {}
                () = parts.closed() => return Ok(()),
                () = tokio::time::sleep_until(leave_by) => return Ok(()),
            }
        }
    }
}

/// What came of looking at some events.
struct Step {
    /// Those that are asked for.
    rows: Vec<AnswerRow>,
    /// The slot that comes next.
    next: u64,
    /// The leaf after the last one that was looked at.
    cursor: Option<u64>,
}

fn published_size(published: &mut crate::audit::Published) -> u64 {
    published.borrow_and_update().as_ref().map_or(0, |newest| newest.head().size.get())
}

/// Looks at some events.
fn step(
    store: &crate::store::Reader,
    (plan, meter): (&Plan, &Meter),
    slots: std::ops::Range<u64>,
    size: u64,
) -> Result<Step, AskError> {
    let mut follow = store.follow()?;
    let mut step = Step { rows: Vec::new(), next: slots.start, cursor: None };
    for slot in slots {
        let Some(event) = follow.event(slot)? else { break };
        if event.leaf.get() >= size || meter.examine(event.bytes).is_err() {
            break;
        }
        (step.next, step.cursor) = (slot + 1, Some(event.leaf.get() + 1));
        let Some(core) = &event.core else { continue };
        let place = (event.leaf, slot, event.ingested_s);
        let row = Row::of(place, core, event.identity.as_ref(), &mut follow, |text| text.into())?;
        if plan.scans.iter().any(|scan| is_asked_for(scan, &row)) {
            step.rows.push(shown(row, &plan.mask, event.identity.as_ref()));
        }
    }
    Ok(step)
}

/// A tail is about when events come, whenever they happened.
fn is_asked_for(scan: &Scan, row: &Row) -> bool {
    scan.tenant.as_ref().is_none_or(|tenant| *row.tenant == **tenant)
        && scan.stream.as_ref().is_none_or(|stream| *row.source_kind == **stream)
        && scan.filter.takes(row)
}

fn shown(row: Row, mask: &Mask, identity: Option<&IdentitySegment>) -> AnswerRow {
    let identity = identity.filter(|_| mask.opens(&row));
    let leaves = vec![row.leaf.get()];
    let values = show::plain(row).texts(&COLUMNS, mask, None, identity);
    AnswerRow { leaves, values, bundles: Vec::new() }
}

fn seconds_ns(seconds: u64) -> i64 {
    i64::try_from(seconds).unwrap_or(0).saturating_mul(1_000_000_000)
}

fn nanos(at: UnixMillis) -> i64 {
    i64::try_from(at.0).unwrap_or(i64::MAX).saturating_mul(1_000_000)
}
