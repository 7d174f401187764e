//! An audit service, seen by those who ask about its events.

use bytes::Bytes;
use tonic::Streaming;

use super::stream::open;
use super::{at_most, call};
use crate::channel::{Channel, channel};
use crate::convert::ConvertError;
use crate::identity::SpiffeId;
use crate::limits::{
    CALL_DEADLINE, MAX_COLUMNS, MAX_LEAVES_PER_ROW, MAX_LISTED_GAPS, MAX_LISTED_QUERIES, MAX_PARAMETERS,
    MAX_RESPONSE_BYTES, MAX_ROWS_PER_MESSAGE, MAX_RUNBOOKS, MAX_SOURCES_PAGE,
};
use crate::status::CallError;
use crate::tls::{ClientTls, TlsError};
use crate::v1;
use crate::v1::query_service_client::QueryServiceClient;
use crate::v1::{audit_window_response, run_runbook_response, tail_events_response};

pub use crate::v1::{
    Approval, ApprovalNeeded, ApprovalState, Planned, QueryCost, QueryEstimate, QueryFinished, QueryRefused,
    QueryRow, Question, QuestionParameter, Runbook, RunbookParameter, RunningQuery, SourceWindow,
};

/// An audit service that answers questions. Cheap to clone; clones share the connection.
#[derive(Clone, Debug)]
pub struct Query {
    client: QueryServiceClient<Channel>,
}

/// How a runbook is run.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Run {
    /// Only planned.
    pub plan_only: bool,
    /// With what proves each row.
    pub proofs: bool,
    /// Under this approval.
    pub approval: Option<String>,
    /// The page after the one that gave this token.
    pub page: Option<String>,
}

/// A part of an answer. [`Part::Refused`] and [`Part::ApprovalNeeded`] are the only part; else [`Part::Planned`] is the first and
/// [`Part::Finished`] the last.
#[derive(Clone, PartialEq, Debug)]
pub enum Part {
    /// What it will cost at most.
    Planned(Planned),
    /// It may not run.
    Refused(QueryRefused),
    /// Somebody else has to agree.
    ApprovalNeeded(ApprovalNeeded),
    /// Rows. Nothing of them is verified.
    Rows(Vec<QueryRow>),
    /// An encoded event bundle, of an audit. Nothing of it is verified.
    Bundle(Bytes),
    /// All up to but without this leaf was looked at, of a tail.
    Cursor(u64),
    /// What it has cost.
    Finished(QueryFinished),
}

/// The answer to a question as it comes in. Dropping it cancels the question.
#[derive(Debug)]
pub struct Parts(Stream);

#[derive(Debug)]
enum Stream {
    Run(Streaming<v1::RunRunbookResponse>),
    Audit(Streaming<v1::AuditWindowResponse>),
    Tail(Streaming<v1::TailEventsResponse>),
}

impl Query {
    /// Prepares the connection to the service at `address` (`host:port`), which must prove to be `server`; the first call makes
    /// it. Must be called within a tokio runtime.
    pub fn new(address: &str, tls: &ClientTls, server: &SpiffeId) -> Result<Query, TlsError> {
        let client = QueryServiceClient::new(channel(address, tls, server)?)
            .max_decoding_message_size(MAX_RESPONSE_BYTES);
        Ok(Query { client })
    }

    /// The runbooks that the caller may run.
    pub async fn runbooks(&self, origin: &str) -> Result<Vec<Runbook>, CallError> {
        let request = v1::ListRunbooksRequest { origin: origin.into() };
        let mut client = self.client.clone();
        let answer = call(request, CALL_DEADLINE, |request| client.list_runbooks(request)).await?;
        most("runbooks", MAX_RUNBOOKS, &answer.runbooks)?;
        for runbook in &answer.runbooks {
            most("parameters", MAX_PARAMETERS, &runbook.parameters)?;
            most("columns", MAX_COLUMNS, &runbook.columns)?;
        }
        Ok(answer.runbooks)
    }

    /// Runs a runbook.
    pub async fn run(&self, origin: &str, question: Question, run: &Run) -> Result<Parts, CallError> {
        let request = v1::RunRunbookRequest {
            origin: origin.into(),
            question: Some(question),
            plan_only: run.plan_only,
            proofs: run.proofs,
            approval_id: run.approval.clone().unwrap_or_default(),
            page_token: run.page.clone().unwrap_or_default(),
        };
        let mut client = self.client.clone();
        let parts = open(request, CALL_DEADLINE, |request| client.run_runbook(request)).await?;
        Ok(Parts(Stream::Run(parts)))
    }

    /// Every event of a question's window.
    pub async fn audit(
        &self,
        origin: &str,
        question: Question,
        approval: Option<&str>,
    ) -> Result<Parts, CallError> {
        let request = v1::AuditWindowRequest {
            origin: origin.into(),
            question: Some(question),
            approval_id: approval.unwrap_or_default().into(),
        };
        let mut client = self.client.clone();
        let parts = open(request, CALL_DEADLINE, |request| client.audit_window(request)).await?;
        Ok(Parts(Stream::Audit(parts)))
    }

    /// Events as they are taken, from a leaf on or from the newest one on.
    pub async fn tail(
        &self,
        origin: &str,
        filters: Vec<String>,
        purpose: &str,
        from_leaf: Option<u64>,
    ) -> Result<Parts, CallError> {
        let request = v1::TailEventsRequest {
            origin: origin.into(),
            filters,
            purpose: purpose.into(),
            from_leaf: from_leaf.unwrap_or_default(),
            from_leaf_set: from_leaf.is_some(),
        };
        let mut client = self.client.clone();
        let parts = open(request, CALL_DEADLINE, |request| client.tail_events(request)).await?;
        Ok(Parts(Stream::Tail(parts)))
    }

    /// The questions that are being answered.
    pub async fn running(&self, origin: &str) -> Result<Vec<RunningQuery>, CallError> {
        let request = v1::ListQueriesRequest { origin: origin.into() };
        let mut client = self.client.clone();
        let answer = call(request, CALL_DEADLINE, |request| client.list_queries(request)).await?;
        most("queries", MAX_LISTED_QUERIES, &answer.queries)?;
        Ok(answer.queries)
    }

    /// Ends a question.
    pub async fn cancel(&self, origin: &str, query_id: &str) -> Result<(), CallError> {
        let request = v1::CancelQueryRequest { origin: origin.into(), query_id: query_id.into() };
        let mut client = self.client.clone();
        call(request, CALL_DEADLINE, |request| client.cancel_query(request)).await?;
        Ok(())
    }

    /// Plans that wait for approval, or were decided.
    pub async fn approvals(&self, origin: &str) -> Result<Vec<Approval>, CallError> {
        let request = v1::ListApprovalsRequest { origin: origin.into() };
        let mut client = self.client.clone();
        let answer = call(request, CALL_DEADLINE, |request| client.list_approvals(request)).await?;
        most("approvals", MAX_LISTED_QUERIES, &answer.approvals)?;
        Ok(answer.approvals)
    }

    /// Grants or denies a plan.
    pub async fn decide(
        &self,
        origin: &str,
        approval_id: &str,
        grant: bool,
        reason: &str,
    ) -> Result<Approval, CallError> {
        let request = v1::DecideApprovalRequest {
            origin: origin.into(),
            approval_id: approval_id.into(),
            grant,
            reason: reason.into(),
        };
        let mut client = self.client.clone();
        let answer = call(request, CALL_DEADLINE, |request| client.decide_approval(request)).await?;
        Ok(answer.approval.ok_or(ConvertError::Missing("approval"))?)
    }
}

impl Parts {
    /// The next part; `None` after the last one.
    pub async fn next(&mut self) -> Result<Option<Part>, CallError> {
        use audit_window_response::Answer as Audit;
        use run_runbook_response::Answer as Run;
        use tail_events_response::Answer as Tail;

        let missing = || CallError::from(ConvertError::Missing("answer"));
        let part = match &mut self.0 {
            Stream::Run(parts) => {
                let Some(part) = parts.message().await? else { return Ok(None) };
                match part.answer.ok_or_else(missing)? {
                    Run::Planned(planned) => Part::Planned(planned),
                    Run::Refused(refused) => Part::Refused(refused),
                    Run::ApprovalNeeded(needed) => Part::ApprovalNeeded(needed),
                    Run::Rows(rows) => Part::Rows(rows.rows),
                    Run::Finished(finished) => Part::Finished(finished),
                }
            }
            Stream::Audit(parts) => {
                let Some(part) = parts.message().await? else { return Ok(None) };
                match part.answer.ok_or_else(missing)? {
                    Audit::Planned(planned) => Part::Planned(planned),
                    Audit::Refused(refused) => Part::Refused(refused),
                    Audit::ApprovalNeeded(needed) => Part::ApprovalNeeded(needed),
                    Audit::Bundle(bundle) => Part::Bundle(bundle),
                    Audit::Finished(finished) => Part::Finished(finished),
                }
            }
            Stream::Tail(parts) => {
                let Some(part) = parts.message().await? else { return Ok(None) };
                match part.answer.ok_or_else(missing)? {
                    Tail::Planned(planned) => Part::Planned(planned),
                    Tail::Refused(refused) => Part::Refused(refused),
                    Tail::Row(row) => Part::Rows(vec![row]),
                    Tail::Cursor(leaf) => Part::Cursor(leaf),
                }
            }
        };
        check(&part)?;
        Ok(Some(part))
    }
}

/// Whether a part keeps to the limits of the wire.
fn check(part: &Part) -> Result<(), ConvertError> {
    match part {
        Part::Planned(planned) => {
            most("columns", MAX_COLUMNS, &planned.columns)?;
            most("masked", MAX_COLUMNS, &planned.masked)
        }
        Part::Rows(rows) => {
            most("rows", MAX_ROWS_PER_MESSAGE, rows)?;
            rows.iter().try_for_each(|row| {
                most("leaf_indexes", MAX_LEAVES_PER_ROW, &row.leaf_indexes)?;
                most("bundles", MAX_LEAVES_PER_ROW, &row.bundles)?;
                most("values", MAX_COLUMNS, &row.values)
            })
        }
        Part::Finished(finished) => {
            at_most("sources", u64::from(MAX_SOURCES_PAGE), finished.sources.len() as u64)?;
            finished.sources.iter().try_for_each(|source| most("missing", MAX_LISTED_GAPS, &source.missing))
        }
        Part::Refused(_) | Part::ApprovalNeeded(_) | Part::Bundle(_) | Part::Cursor(_) => Ok(()),
    }
}

fn most<T>(field: &'static str, most: usize, got: &[T]) -> Result<(), ConvertError> {
    at_most(field, most as u64, got.len() as u64)
}
