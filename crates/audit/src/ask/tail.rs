//! Events as they are taken and published, for as long as somebody looks: one question on the record, however long it takes.

use std::collections::BTreeMap;
use std::sync::Arc;

use epigraph_core::{LeafIndex, UnixMillis};
use epigraph_event::v1::{IdentitySegment, Result as Outcome};
use epigraph_rpc::SpiffeId;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::entries::named;
use super::record::Entry;
use super::run::{AnswerRow, give};
use super::{AskError, Asker, blocking, by, known, show, stranger};
use crate::guard::Principal;
use crate::guard::approval::{Approval, ApprovalId};
use crate::guard::mask::Mask;
use crate::guard::plan::{Decision, Known, Plan, Question, Request, Unavailable};
use crate::guard::quota::Standing;
use crate::guard::refusal::{Code, Refusal};
use crate::query::{Column, Estimate, Pseudonym, Row, Scan, Window};

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

/// A tail that may go on.
pub struct Tail {
    principal: Principal,
    request: Request,
    plan: Plan,
    next: u64,
    /// Columns that this reader sees as tokens.
    pub masked: Vec<String>,
}

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
        };
        let rules = self.rules();
        let Some(principal) = rules.principal(who) else {
            let refusal = stranger();
            self.refuse(who.as_str(), super::By::Service, &request, &refusal).await?;
            return Ok(Err(refusal));
        };
        let longest = rules.guard.limits.of(&principal).window_s.min(LONGEST_S);
        let now_ns = nanos(now);
        request.from_ns = Some(now_ns);
        request.to_ns =
            Some(now_ns.saturating_add(i64::try_from(longest).unwrap_or(0).saturating_mul(1_000_000_000)));
        let (asker, of, asked) = (Arc::clone(self), principal.clone(), request.clone());
        let decided = blocking(move || {
            let unavailable = |why: String| {
                Ok(Decision::Refused(Box::new(Refusal::new(Code::Unavailable, why, "Ask again."))))
            };
            let Some(index) = asker.following.index() else {
                return unavailable("the indexes are being opened".into());
            };
            let view = index.view()?;
            let vault = asker.store().follow()?;
            let approvals = BTreeMap::new();
            let known = Ahead { of: known::Sight::new(&view, vault, &approvals), now_ns };
            Ok(rules.guard.plan(&of, &asked, &known, &Standing::default(), &asker.pages, now))
        })
        .await?;
        let plan = match decided {
            Decision::Run(plan) => *plan,
            Decision::Refused(refusal) => {
                self.refuse(&principal.name, by(principal.kind), &request, &refusal).await?;
                return Ok(Err(*refusal));
            }
            Decision::NeedsApproval(pending) => {
                let refusal =
                    Refusal::new(Code::Forbidden, pending.reason, "A tail is not approved: run a runbook.");
                self.refuse(&principal.name, by(principal.kind), &request, &refusal).await?;
                return Ok(Err(refusal));
            }
        };
        self.audit().put_on_record(self.of_plan("tail.run", &principal, &request, &plan, "")).await?;
        let next = match from {
            Some(leaf) => {
                let store = self.store().clone();
                blocking(move || Ok(store.slot_from_leaf(leaf)?)).await?
            }
            None => *self.keeper.placed().borrow(),
        };
        let masked = plan.mask.masked().into_iter().filter(|column| COLUMNS.contains(column));
        let masked = masked.map(|column| column.as_str().to_owned()).collect();
        Ok(Ok(Tail { principal, request, plan, next, masked }))
    }

    /// Sends events as they are published, until nobody takes them, its time is over, or the connection is asked to leave.
    pub async fn follow_tail(
        self: &Arc<Self>,
        mut tail: Tail,
        leave_by: Instant,
        parts: mpsc::Sender<Result<Part, AskError>>,
    ) {
        let mut sent = 0_u64;
        let ended = self.send_tail(&mut tail, leave_by, &parts, &mut sent).await;
        let (kind, about) = named(&tail.request);
        let entry = Entry {
            action: "tail.finished",
            who: tail.principal.name.clone(),
            by: by(tail.principal.kind),
            result: if ended.is_ok() { Outcome::Success } else { Outcome::Failure },
            code: String::new(),
            request: String::new(),
            about: (kind, about),
            labels: vec![("rows-returned", sent.to_string())],
            body: json!({ "rows_returned": sent }),
        };
        let recorded = self.audit().put_on_record(entry).await.map_err(AskError::from);
        if let Err(error) = ended.and(recorded) {
            give(&parts, Err(error)).await;
        }
    }

    async fn send_tail(
        self: &Arc<Self>,
        tail: &mut Tail,
        leave_by: Instant,
        parts: &mpsc::Sender<Result<Part, AskError>>,
        sent: &mut u64,
    ) -> Result<(), AskError> {
        let (mut placed, mut published) = (self.keeper.placed(), self.published.clone());
        loop {
            let (end, size) = (*placed.borrow_and_update(), published_size(&mut published));
            while tail.next < end {
                let (store, plan) = (self.store().clone(), tail.plan.clone());
                let (from, to) = (tail.next, end.min(tail.next.saturating_add(STEP)));
                let (rows, next, cursor) = blocking(move || step(&store, &plan, from..to, size)).await?;
                let stands_still = next == tail.next;
                tail.next = next;
                for row in rows {
                    *sent += 1;
                    if !give(parts, Ok(Part::Row(row))).await {
                        return Ok(());
                    }
                }
                if let Some(cursor) = cursor
                    && !give(parts, Ok(Part::Cursor(cursor))).await
                {
                    return Ok(());
                }
                if stands_still {
                    break;
                }
            }
            if nanos(self.clock.now()) >= tail.plan.window.to_ns() {
                return Ok(());
            }
            tokio::select! {
                changed = placed.changed() => changed.map_err(|_| super::Ended)?,
                changed = published.changed() => changed.map_err(|_| super::Ended)?,
                () = parts.closed() => return Ok(()),
                () = tokio::time::sleep_until(leave_by) => return Ok(()),
            }
        }
    }
}

fn published_size(published: &mut crate::audit::Published) -> u64 {
    published.borrow_and_update().as_ref().map_or(0, |newest| newest.head().size.get())
}

/// Looks at some events: the rows that are asked for, the slot that comes next, and the leaf after the last one that was looked at.
fn step(
    store: &crate::store::Reader,
    plan: &Plan,
    slots: std::ops::Range<u64>,
    size: u64,
) -> Result<(Vec<AnswerRow>, u64, Option<u64>), AskError> {
    let mut follow = store.follow()?;
    let (mut rows, mut next, mut cursor) = (Vec::new(), slots.start, None);
    for slot in slots {
        let Some(event) = follow.event(slot)? else { break };
        if event.leaf.get() >= size {
            break;
        }
        (next, cursor) = (slot + 1, Some(event.leaf.get() + 1));
        let Some(core) = &event.core else { continue };
        let place = (event.leaf, slot, event.ingested_s);
        let row = Row::of(place, core, event.identity.as_ref(), &mut follow, |text| text.into())?;
        if plan.scans.iter().any(|scan| is_asked_for(scan, &row)) {
            rows.push(shown(row, &plan.mask, event.identity.as_ref()));
        }
    }
    Ok((rows, next, cursor))
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

fn nanos(at: UnixMillis) -> i64 {
    i64::try_from(at.0).unwrap_or(i64::MAX).saturating_mul(1_000_000)
}
