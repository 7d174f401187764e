//! Questions on the wire: finds out who asks, calls [`Asker`], maps answers and errors. Nothing is decided here.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use epigraph_core::{LeafIndex, Origin};
use epigraph_rpc::limits::{
    MAX_LISTED_GAPS, MAX_LISTED_QUERIES, MAX_PARAMETER_BYTES, MAX_PARAMETERS, MAX_PURPOSE_BYTES,
    MAX_RUNBOOKS, MAX_SOURCES_PAGE,
};
use epigraph_rpc::v1::query_service_server::QueryService;
use epigraph_rpc::v1::{audit_window_response, run_runbook_response, tail_events_response};
use epigraph_rpc::{Authorized, Caller, Quota, Reason, Refusal, SpiffeId, convert, v1};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status};

use super::RETRY_SOON;
use crate::ask::run::{AnswerRow, Finished, Part, Run};
use crate::ask::{AskError, Asked, Asker, Planned, tail, window};
use crate::guard::approval::{Approval, ApprovalId, State};
use crate::guard::plan::{Question, Request as Asking};
use crate::guard::refusal;
use crate::query::{Cost, Estimate, Stopped};
use crate::runbook::{Runbook, document};

/// Streams of answers at one time.
pub const MAX_ANSWERS: usize = 256;

/// Of these, those of one caller; the policies' own limit on what runs is lower.
pub const MAX_ANSWERS_PER_IDENTITY: usize = 32;

/// Parts of an answer that wait for its reader.
const PARTS: usize = 4;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The asking side of an audit service.
pub struct QueryServer {
    asker: Arc<Asker>,
    streams: Arc<Quota<SpiffeId>>,
}

impl QueryServer {
    /// Serves this.
    pub fn new(asker: Arc<Asker>) -> QueryServer {
        QueryServer { asker, streams: Quota::new(MAX_ANSWERS, MAX_ANSWERS_PER_IDENTITY) }
    }

    fn authorize(&self, caller: &Caller, origin: &str) -> Result<Authorized<Origin>, Refusal> {
        super::authorize(self.asker.audit(), caller, origin)
    }

    fn share(&self, caller: &Caller) -> Result<epigraph_rpc::Share<SpiffeId>, Refusal> {
        self.streams.take(caller.identity().clone(), 1).map_err(|exceeded| {
            Refusal::new(Reason::Overloaded, format!("too many answers are under way: {exceeded}"))
                .retry_after(RETRY_SOON)
        })
    }
}

#[tonic::async_trait]
impl QueryService for QueryServer {
    type RunRunbookStream = Answers<v1::RunRunbookResponse>;
    type AuditWindowStream = Answers<v1::AuditWindowResponse>;
    type TailEventsStream = Answers<v1::TailEventsResponse>;

    async fn list_runbooks(
        &self,
        request: Request<v1::ListRunbooksRequest>,
    ) -> Result<Response<v1::ListRunbooksResponse>, Status> {
        let caller = Caller::of(&request)?;
        self.authorize(caller, &request.get_ref().origin)?;
        let runbooks = self.asker.runbooks(caller.identity());
        let runbooks = runbooks.iter().take(MAX_RUNBOOKS).map(|runbook| described(runbook)).collect();
        Ok(Response::new(v1::ListRunbooksResponse { runbooks }))
    }

    async fn run_runbook(
        &self,
        request: Request<v1::RunRunbookRequest>,
    ) -> Result<Response<Self::RunRunbookStream>, Status> {
        use run_runbook_response::Answer;

        let caller = Caller::of(&request)?.clone();
        self.authorize(&caller, &request.get_ref().origin)?;
        let share = self.share(&caller)?;
        let v1::RunRunbookRequest { question, plan_only, proofs, approval_id, page_token, .. } =
            request.into_inner();
        let asking =
            Asking { approval: approval(&approval_id)?, page: page(&page_token)?, ..asking(question)? };
        let one = |answer| Ok(v1::RunRunbookResponse { answer: Some(answer) });
        let (asker, answering) = (Arc::clone(&self.asker), Arc::clone(&self.asker));
        let who = caller.identity().clone();
        let begun = begin(
            async move { Ok(to_run(asker.ask(&who, asking, plan_only).await?)) },
            |run| wire_plan(&run.planned),
            move |run, parts| async move { answering.answer(run, proofs, parts).await },
        );
        let (planned, answers) = match begun.await? {
            Ok(begun) => begun,
            Err(instead) => {
                return Ok(only(one(match *instead {
                    Instead::Planned(planned) => Answer::Planned(planned),
                    Instead::Refused(refused) => Answer::Refused(refused),
                    Instead::ApprovalNeeded(needed) => Answer::ApprovalNeeded(needed),
                })));
            }
        };
        let planned = one(Answer::Planned(planned));
        let answers = ReceiverStream::new(answers).map(move |part| {
            // The share is held as long as there is an answer.
            let _share = &share;
            let answer = match part.map_err(failed)? {
                Part::Rows(rows) => {
                    Answer::Rows(v1::QueryRows { rows: rows.into_iter().map(wire_row).collect() })
                }
                Part::Finished(finished) => Answer::Finished(wire_finished(&finished)?),
            };
            one(answer)
        });
        Ok(Response::new(Box::pin(tokio_stream::once(planned).chain(answers))))
    }

    async fn audit_window(
        &self,
        request: Request<v1::AuditWindowRequest>,
    ) -> Result<Response<Self::AuditWindowStream>, Status> {
        use audit_window_response::Answer;

        let caller = Caller::of(&request)?.clone();
        self.authorize(&caller, &request.get_ref().origin)?;
        let share = self.share(&caller)?;
        let v1::AuditWindowRequest { question, approval_id, .. } = request.into_inner();
        let asking = Asking { approval: approval(&approval_id)?, audit: true, ..asking(question)? };
        let one = |answer| Ok(v1::AuditWindowResponse { answer: Some(answer) });
        let (asker, answering) = (Arc::clone(&self.asker), Arc::clone(&self.asker));
        let who = caller.identity().clone();
        let begun = begin(
            async move { Ok(to_run(asker.ask(&who, asking, false).await?)) },
            |run| wire_plan(&run.planned),
            move |run, parts| async move { answering.audit_window(run, parts).await },
        );
        let (planned, answers) = match begun.await? {
            Ok(begun) => begun,
            Err(instead) => {
                return Ok(only(one(match *instead {
                    Instead::Planned(planned) => Answer::Planned(planned),
                    Instead::Refused(refused) => Answer::Refused(refused),
                    Instead::ApprovalNeeded(needed) => Answer::ApprovalNeeded(needed),
                })));
            }
        };
        let planned = one(Answer::Planned(planned));
        let answers = ReceiverStream::new(answers).map(move |part| {
            let _share = &share;
            let answer = match part.map_err(failed)? {
                window::Part::Bundle(bundle) => Answer::Bundle(bundle),
                window::Part::Finished(finished) => Answer::Finished(wire_finished(&finished)?),
            };
            one(answer)
        });
        Ok(Response::new(Box::pin(tokio_stream::once(planned).chain(answers))))
    }

    async fn tail_events(
        &self,
        request: Request<v1::TailEventsRequest>,
    ) -> Result<Response<Self::TailEventsStream>, Status> {
        use tail_events_response::Answer;

        let caller = Caller::of(&request)?.clone();
        self.authorize(&caller, &request.get_ref().origin)?;
        let share = self.share(&caller)?;
        let v1::TailEventsRequest { filters, purpose, from_leaf, from_leaf_set, .. } = request.into_inner();
        let purpose = text("purpose", purpose, MAX_PURPOSE_BYTES)?;
        let from = match from_leaf_set {
            true => Some(convert::leaf_index(from_leaf).map_err(Refusal::from)?),
            false => None::<LeafIndex>,
        };
        let one = |answer| Ok(v1::TailEventsResponse { answer: Some(answer) });
        let (asker, following) = (Arc::clone(&self.asker), Arc::clone(&self.asker));
        let (who, filter, leave_by) = (caller.identity().clone(), filter(filters)?, caller.leave_by());
        let begun = begin(
            async move { Ok(asker.ask_tail(&who, filter, purpose, from).await?.map_err(|no| wire_refusal(&no))) },
            |tail| v1::Planned {
                query_id: tail.id.clone(),
                columns: tail::COLUMNS.iter().map(|column| column.as_str().to_owned()).collect(),
                masked: tail.masked.clone(),
                ..v1::Planned::default()
            },
            move |tail, parts| async move { following.follow_tail(tail, leave_by, parts).await },
        );
        let (planned, answers) = match begun.await? {
            Ok(begun) => begun,
            Err(refused) => return Ok(only(one(Answer::Refused(refused)))),
        };
        let planned = one(Answer::Planned(planned));
        let answers = ReceiverStream::new(answers).map(move |part| {
            let _share = &share;
            one(match part {
                Ok(tail::Part::Row(row)) => Answer::Row(wire_row(row)),
                Ok(tail::Part::Cursor(leaf)) => Answer::Cursor(leaf),
                Err(AskError::Refused(refused)) => Answer::Refused(wire_refusal(&refused)),
                Err(error) => return Err(failed(error)),
            })
        });
        Ok(Response::new(Box::pin(tokio_stream::once(planned).chain(answers))))
    }

    async fn list_queries(
        &self,
        request: Request<v1::ListQueriesRequest>,
    ) -> Result<Response<v1::ListQueriesResponse>, Status> {
        let caller = Caller::of(&request)?;
        self.authorize(caller, &request.get_ref().origin)?;
        let query = |query: crate::ask::running::Query| v1::RunningQuery {
            cost: Some(wire_cost(&query.meter.cost(), 0)),
            query_id: query.id,
            principal: query.principal,
            runbook: query.runbook,
            started_at_ms: query.started_at.0,
            estimate: query.estimate.as_ref().map(wire_estimate),
        };
        let queries = self.asker.queries(caller.identity()).into_iter().take(MAX_LISTED_QUERIES).map(query);
        Ok(Response::new(v1::ListQueriesResponse { queries: queries.collect() }))
    }

    async fn cancel_query(
        &self,
        request: Request<v1::CancelQueryRequest>,
    ) -> Result<Response<v1::CancelQueryResponse>, Status> {
        let caller = Caller::of(&request)?;
        self.authorize(caller, &request.get_ref().origin)?;
        let cancelled = {
            let (asker, who) = (Arc::clone(&self.asker), caller.identity().clone());
            let id = request.get_ref().query_id.clone();
            to_its_end(async move { asker.cancel(&who, &id).await }).await
        };
        cancelled.map_err(|error| not_found(error, Reason::QueryNotFound, "query_id"))?;
        Ok(Response::new(v1::CancelQueryResponse {}))
    }

    async fn list_approvals(
        &self,
        request: Request<v1::ListApprovalsRequest>,
    ) -> Result<Response<v1::ListApprovalsResponse>, Status> {
        let caller = Caller::of(&request)?;
        self.authorize(caller, &request.get_ref().origin)?;
        let approvals = self.asker.approvals(caller.identity());
        let approvals = approvals.iter().take(MAX_LISTED_QUERIES).map(|one| wire_approval(one, ""));
        Ok(Response::new(v1::ListApprovalsResponse { approvals: approvals.collect() }))
    }

    async fn decide_approval(
        &self,
        request: Request<v1::DecideApprovalRequest>,
    ) -> Result<Response<v1::DecideApprovalResponse>, Status> {
        let caller = Caller::of(&request)?.clone();
        self.authorize(&caller, &request.get_ref().origin)?;
        let v1::DecideApprovalRequest { approval_id, grant, reason, .. } = request.into_inner();
        let reason = text("reason", reason, MAX_PURPOSE_BYTES)?;
        let id = approval(&approval_id)?
            .ok_or_else(|| Refusal::new(Reason::Malformed, "say which request").at("approval_id"))?;
        let (asker, said) = (Arc::clone(&self.asker), reason.clone());
        let answered =
            to_its_end(async move { asker.answer_request(caller.identity(), &id, grant, &said).await });
        let answered = answered.await;
        let answered = answered.map_err(|error| not_found(error, Reason::ApprovalNotFound, "approval_id"))?;
        let answered =
            answered.map_err(|refused| Refusal::new(Reason::PermissionDenied, refused.to_string()))?;
        Ok(Response::new(v1::DecideApprovalResponse { approval: Some(wire_approval(&answered, &reason)) }))
    }
}

/// Carries something out although its caller may hang up: what goes on the record and what is done are not torn apart.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, AskError>> + Send + 'static,
) -> Result<T, AskError> {
    tokio::spawn(work).await.map_err(|_| crate::keeper::Ended)?
}

/// Asks, and carries out what may run, although its caller may hang up: what was begun on the record is ended there. Gives back what is
/// known before, and the parts as they come; or what is answered instead.
async fn begin<Q: Send + 'static, N: Send + 'static, P: Send + 'static, C: Future<Output = ()> + Send>(
    ask: impl Future<Output = Result<Result<Q, N>, AskError>> + Send + 'static,
    planned: fn(&Q) -> v1::Planned,
    carry_out: impl FnOnce(Q, mpsc::Sender<P>) -> C + Send + 'static,
) -> Result<Result<(v1::Planned, mpsc::Receiver<P>), N>, Status> {
    let (told, telling) = oneshot::channel();
    tokio::spawn(async move {
        let question = match ask.await {
            Ok(Ok(question)) => question,
            Ok(Err(instead)) => return drop(told.send(Ok(Err(instead)))),
            Err(error) => return drop(told.send(Err(error))),
        };
        let (parts, answers) = mpsc::channel(PARTS);
        // If nobody is there to be told, nobody takes the parts.
        drop(told.send(Ok(Ok((planned(&question), answers)))));
        carry_out(question, parts).await;
    });
    telling.await.map_err(|_| failed(crate::keeper::Ended.into()))?.map_err(failed)
}

/// What is answered in the place of rows.
enum Instead {
    Planned(v1::Planned),
    Refused(v1::QueryRefused),
    ApprovalNeeded(v1::ApprovalNeeded),
}

/// What is to be carried out, or what is answered instead.
fn to_run(asked: Asked) -> Result<Run, Box<Instead>> {
    Err(Box::new(match asked {
        Asked::Runs(run) => return Ok(*run),
        Asked::Planned(planned) => Instead::Planned(wire_plan(&planned)),
        Asked::Refused(refused) => Instead::Refused(wire_refusal(&refused)),
        Asked::NeedsApproval { approval, reason } => Instead::ApprovalNeeded(needed(&approval, reason)),
    }))
}

/// An answer of one part.
fn only<T: Send + 'static>(part: Result<T, Status>) -> Response<Answers<T>> {
    Response::new(Box::pin(tokio_stream::once(part)))
}

fn asking(question: Option<v1::Question>) -> Result<Asking, Refusal> {
    let missing = || Refusal::new(Reason::Malformed, "say what is asked").at("question");
    let v1::Question { runbook, parameters, from_ns, to_ns, tenant, purpose, ticket, stream } =
        question.ok_or_else(missing)?;
    if parameters.len() > MAX_PARAMETERS {
        let message = format!("a question has at most {MAX_PARAMETERS} parameters");
        return Err(Refusal::new(Reason::Malformed, message).at("parameters"));
    }
    let mut given = BTreeMap::new();
    for v1::QuestionParameter { name, value } in parameters {
        let value = text("value", value, MAX_PARAMETER_BYTES)?;
        if let Some(_twice) = given.insert(text("name", name.clone(), MAX_PARAMETER_BYTES)?, value) {
            return Err(Refusal::new(Reason::Malformed, format!("`{name}` is given twice")).at("parameters"));
        }
    }
    // In proto3 a number that was not set is 0, which is no time that anything happened at.
    let time = |at_ns: i64| (at_ns != 0).then_some(at_ns);
    Ok(Asking {
        question: Question::Runbook { id: text("runbook", runbook, MAX_PARAMETER_BYTES)?, parameters: given },
        stream: (!stream.is_empty()).then_some(stream),
        tenant: (!tenant.is_empty()).then_some(tenant),
        from_ns: time(from_ns),
        to_ns: time(to_ns),
        rows: None,
        purpose: text("purpose", purpose, MAX_PURPOSE_BYTES)?,
        unmask: !ticket.is_empty(),
        ticket: text("ticket", ticket, MAX_PURPOSE_BYTES)?,
        body: false,
        approval: None,
        page: None,
        audit: false,
    })
}

fn text(field: &'static str, text: String, most: usize) -> Result<String, Refusal> {
    if text.len() > most {
        return Err(Refusal::new(Reason::Malformed, format!("it has at most {most} bytes")).at(field));
    }
    Ok(text)
}

fn filter(filters: Vec<String>) -> Result<BTreeMap<String, Vec<String>>, Refusal> {
    let bad = |message: String| Refusal::new(Reason::Malformed, message).at("filters");
    if filters.len() > MAX_PARAMETERS {
        return Err(bad(format!("a tail has at most {MAX_PARAMETERS} filters")));
    }
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for one in filters {
        let one = text("filters", one, MAX_PARAMETER_BYTES)?;
        let (column, value) = one.split_once('=').ok_or_else(|| bad("a filter is COLUMN=VALUE".into()))?;
        all.entry(column.to_owned()).or_default().push(value.to_owned());
    }
    Ok(all)
}

fn approval(id: &str) -> Result<Option<ApprovalId>, Refusal> {
    if id.is_empty() {
        return Ok(None);
    }
    let bad = || Refusal::new(Reason::ApprovalNotFound, "no request has this id").at("approval_id");
    ApprovalId::from_hex(id).map(Some).ok_or_else(bad)
}

fn page(token: &str) -> Result<Option<Vec<u8>>, Refusal> {
    if token.is_empty() {
        return Ok(None);
    }
    let bad = || Refusal::new(Reason::Malformed, "no page has this token").at("page_token");
    // Every two digits a byte; anything else is no token of ours.
    if token.len() % 2 == 1 || !token.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(bad());
    }
    let byte = |at: usize| token.get(at..at + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
    (0..token.len()).step_by(2).map(byte).collect::<Option<Vec<u8>>>().map(Some).ok_or_else(bad)
}

fn described(runbook: &Runbook) -> v1::Runbook {
    let words = runbook.description.split_whitespace().collect::<Vec<_>>().join(" ");
    let title = words.split_inclusive(". ").next().unwrap_or_default();
    let parameter = |one: &crate::runbook::Parameter| v1::RunbookParameter {
        name: one.name.clone(),
        kind: document::type_of(&one.kind),
        required: one.default.is_none(),
        default: one.default.clone().unwrap_or_default(),
        description: one.description.clone(),
    };
    v1::Runbook {
        id: runbook.id.clone(),
        version: runbook.version,
        title: title.trim_end().trim_end_matches('.').to_owned(),
        owner: runbook.owner.clone(),
        hash: Bytes::copy_from_slice(runbook.hash.as_bytes()),
        parameters: runbook.parameters.iter().map(parameter).collect(),
        columns: runbook.columns.iter().map(|column| column.as_str().to_owned()).collect(),
        documentation: document::runbook(runbook),
        file: Bytes::copy_from_slice(runbook.text.as_bytes()),
    }
}

fn wire_plan(planned: &Planned) -> v1::Planned {
    v1::Planned {
        query_id: planned.id.clone(),
        runbook: planned.runbook.id.clone(),
        version: planned.runbook.version,
        runbook_hash: Bytes::copy_from_slice(planned.runbook.hash.as_bytes()),
        estimate: Some(wire_estimate(&planned.estimate)),
        columns: planned.columns.clone(),
        masked: planned.masked.clone(),
    }
}

fn wire_estimate(estimate: &Estimate) -> v1::QueryEstimate {
    v1::QueryEstimate { rows: estimate.rows, bytes: estimate.bytes, days: estimate.days }
}

fn wire_cost(cost: &Cost, millis: u64) -> v1::QueryCost {
    v1::QueryCost {
        rows_examined: cost.rows_examined,
        rows_returned: cost.rows_returned,
        bytes_read: cost.bytes_read,
        millis,
    }
}

fn wire_refusal(refused: &refusal::Refusal) -> v1::QueryRefused {
    v1::QueryRefused {
        code: refused.code.as_str().into(),
        message: refused.message.clone(),
        suggestion: refused.suggestion.clone(),
        estimate: refused.estimate.as_ref().map(wire_estimate),
    }
}

fn needed(approval: &Approval, reason: String) -> v1::ApprovalNeeded {
    v1::ApprovalNeeded {
        approval_id: approval.id.to_string(),
        reason,
        estimate: Some(wire_estimate(&approval.ceiling)),
        expires_at_ms: approval.expires_at().0,
    }
}

fn wire_row(row: AnswerRow) -> v1::QueryRow {
    v1::QueryRow { leaf_indexes: row.leaves, values: row.values, bundles: row.bundles }
}

fn wire_finished(finished: &Finished) -> Result<v1::QueryFinished, Status> {
    match finished.stopped {
        Some(Stopped::Cancelled) => {
            return Err(Refusal::new(Reason::Draining, "the question was cancelled").into());
        }
        Some(Stopped::Deadline) => {
            return Err(Refusal::new(Reason::DeadlineExceeded, Stopped::Deadline.to_string()).into());
        }
        Some(Stopped::Budget) => {
            return Err(Refusal::new(Reason::Overloaded, Stopped::Budget.to_string()).into());
        }
        Some(Stopped::Limit) | None => {}
    }
    let most = usize::try_from(MAX_SOURCES_PAGE).unwrap_or(usize::MAX);
    let source = |(vkey, complete): &(String, crate::index::complete::Completeness)| {
        let missing =
            complete.gaps.iter().flat_map(|gap| (gap.first..gap.end).map(move |number| (gap.epoch, number)));
        let missing: Vec<(u64, u64)> = missing.take(MAX_LISTED_GAPS).collect();
        let (vkey, last_seen_ms) = (vkey.clone(), complete.last_seen_ms);
        complete
            .spans
            .iter()
            .map(move |span| v1::SourceWindow {
                vkey: vkey.clone(),
                epoch: span.epoch,
                first_sequence: span.first,
                last_sequence: span.last,
                events: span.events,
                missing: missing
                    .iter()
                    .filter(|(epoch, _)| *epoch == span.epoch)
                    .map(|(_, number)| *number)
                    .collect(),
                last_seen_ms,
            })
            .collect::<Vec<_>>()
    };
    let hex = |token: &Vec<u8>| token.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(v1::QueryFinished {
        cost: Some(wire_cost(&finished.cost, finished.millis)),
        truncated: finished.stopped == Some(Stopped::Limit),
        digest: Bytes::copy_from_slice(finished.digest.as_bytes()),
        checkpoint: finished
            .checkpoint
            .as_ref()
            .map(|it| Bytes::copy_from_slice(it.note()))
            .unwrap_or_default(),
        sources: finished.sources.iter().flat_map(source).take(most).collect(),
        next_page_token: finished.next.as_ref().map(hex).unwrap_or_default(),
        unindexed: finished.unindexed,
    })
}

fn wire_approval(approval: &Approval, reason: &str) -> v1::Approval {
    let (state, by) = match &approval.state {
        State::Pending => (v1::ApprovalState::Waiting, String::new()),
        State::Granted { by, .. } => (v1::ApprovalState::Granted, by.clone()),
        State::Denied { by, .. } => (v1::ApprovalState::Denied, by.clone()),
        State::Used { by, .. } => (v1::ApprovalState::Used, by.clone()),
    };
    v1::Approval {
        approval_id: approval.id.to_string(),
        principal: approval.requester.clone(),
        asked: approval.question.clone(),
        purpose: approval.purpose.clone(),
        estimate: Some(wire_estimate(&approval.ceiling)),
        state: state.into(),
        expires_at_ms: approval.expires_at().0,
        decided_by: by,
        reason: reason.to_owned(),
    }
}

fn not_found(error: AskError, reason: Reason, field: &'static str) -> Refusal {
    match error {
        AskError::NotFound => Refusal::new(reason, error.to_string()).at(field),
        error => failed_as(error),
    }
}

/// A single event that is not given, and why not.
pub(super) fn not_given(refused: refusal::Refusal) -> Refusal {
    let message = format!("{}: {}. {}", refused.code, refused.message, refused.suggestion);
    Refusal::new(Reason::PermissionDenied, message)
}

pub(super) fn failed(error: AskError) -> Status {
    failed_as(error).into()
}

fn failed_as(error: AskError) -> Refusal {
    let message = error.to_string();
    match error {
        AskError::Read(error) => super::refusal(error),
        AskError::Store(_) | AskError::Index(_) => Refusal::new(Reason::DataLoss, message),
        AskError::Cancelled => Refusal::new(Reason::Draining, message),
        AskError::Refused(refused) => not_given(*refused),
        AskError::Ended(_) | AskError::NotFound => Refusal::new(Reason::Internal, message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Broken to see it fail: the question carried out by whoever waits for what is known before.
    #[tokio::test]
    async fn what_was_begun_is_carried_out_although_nobody_waits() {
        let (go, may_go) = oneshot::channel::<()>();
        let (done, seen) = oneshot::channel();
        let begun = begin(
            async move { Ok(Ok::<_, ()>(may_go.await.is_ok())) },
            |_| v1::Planned::default(),
            move |went, parts: mpsc::Sender<()>| async move {
                parts.closed().await;
                let _ = done.send(went);
            },
        );
        tokio::select! {
            biased;
            _ = begun => panic!("it was told what nobody knew yet"),
            () = std::future::ready(()) => {}
        }
        go.send(()).unwrap();
        assert!(seen.await.unwrap());
    }
}
