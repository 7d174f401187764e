//! `epigraph query`, `epigraph approval` and `epigraph events tail`: what is being asked, what waits for somebody's word, and events as they
//! come in.

use clap::{Args, Subcommand};
use epigraph_audit::guard::policy::Policies;
use epigraph_core::UnixMillis;
use epigraph_rpc::peer::query::{Approval, ApprovalState, Part};
use serde_json::{Value, json};

use super::Profile as ProfileDir;
use super::audit::ago;
use super::runbook::answer::{cost_object, estimate_object, estimated, refusal};
use crate::config::questions::read_policies;
use crate::failure::{Failure, Outcome};
use crate::profile::{self, Profile};
use crate::runtime;
use crate::terminal::{Terminal, plain};

#[derive(Subcommand)]
pub enum QueryCommand {
    /// List the questions that are being answered: yours, and others' if you may end them
    Running(QueryRunning),
    /// End a question that is being answered
    Cancel(QueryCancel),
}

#[derive(Args)]
pub struct QueryRunning {
    #[command(flatten)]
    pub profile: ProfileDir,
}

#[derive(Args)]
pub struct QueryCancel {
    #[command(flatten)]
    pub profile: ProfileDir,

    /// The question's id, as `query running` lists it
    #[arg(value_name = "ID")]
    pub id: String,
}

#[derive(Subcommand)]
pub enum ApprovalCommand {
    /// List what waits for approval, or was decided: yours, and what you may decide
    List(ApprovalList),
    /// Let somebody run one question once, exactly as it was planned
    Grant(ApprovalDecide),
    /// Refuse it
    Deny(ApprovalDecide),
}

#[derive(Subcommand)]
pub enum PolicySetCommand {
    /// Read a set of Cedar policies as `serve audit` would, and say what is wrong with it
    Check(PolicySetCheck),
}

/// Without a file, the set that ships is shown. Exit code 2 if the set is not in order: it would not be put in force.
#[derive(Args)]
pub struct PolicySetCheck {
    /// The file with the policies
    #[arg(value_name = "FILE")]
    pub file: Option<std::path::PathBuf>,

    /// Print what policies may speak of, too
    #[arg(long)]
    pub schema: bool,
}

#[derive(Args)]
pub struct ApprovalList {
    #[command(flatten)]
    pub profile: ProfileDir,
}

#[derive(Args)]
pub struct ApprovalDecide {
    #[command(flatten)]
    pub profile: ProfileDir,

    /// The approval's id
    #[arg(value_name = "ID")]
    pub id: String,

    /// Why; goes on the record
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub reason: String,
}

/// A question on the record, and its end; every quarter of an hour or so the service asks for a new connection, which is another one. Ctrl-C
/// ends it, and so does `query cancel`.
#[derive(Args)]
pub struct EventsTail {
    #[command(flatten)]
    pub profile: ProfileDir,

    /// Only events where a column has a value; may be repeated, and all must hold: --filter result=denied
    #[arg(long = "filter", value_name = "COLUMN=VALUE")]
    pub filters: Vec<String>,

    /// From this leaf of the log on, instead of the newest
    #[arg(long, value_name = "INDEX")]
    pub from_leaf: Option<u64>,

    /// Why you look; goes on the record
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub purpose: String,
}

pub fn check(args: &PolicySetCheck, terminal: Terminal) -> Outcome {
    let policies = match &args.file {
        Some(file) => read_policies(file)?,
        None => Policies::shipped(),
    };
    let policies = policies.map_err(Failure::usage)?;
    if args.schema {
        terminal.line(Policies::schema_text());
    }
    for rule in policies.rules() {
        terminal.line(format_args!("{}  {}", if rule.forbids { "forbid" } else { "permit" }, rule.id));
    }
    terminal.line(format_args!(
        "{} policies, in order; their hash is {}",
        policies.rules().len(),
        policies.hash()
    ));
    terminal.object(&json!({
        "valid": true,
        "hash": policies.hash().to_string(),
        "policies": policies.rules().iter().map(|rule| json!({ "id": rule.id, "forbids": rule.forbids })).collect::<Vec<_>>(),
    }));
    Ok(())
}

pub fn running(args: &QueryRunning, terminal: Terminal) -> Outcome {
    let profile = Profile::load(&args.profile.profile)?;
    let queries = block(async {
        let answer = profile.query()?.running(profile.origin.as_str()).await;
        answer.map_err(|error| profile::of_call_to(&error, "audit service"))
    })?;
    let now = runtime::clock().now();
    for query in &queries {
        let cost = query.cost.unwrap_or_default();
        terminal.line(format_args!(
            "{}  {}  {}, begun {}: {}; so far {} rows",
            plain(&query.query_id),
            plain(&query.runbook),
            plain(&query.principal),
            ago(now, UnixMillis(query.started_at_ms)),
            query.estimate.as_ref().map_or_else(|| "new events as they come".to_owned(), estimated),
            cost.rows_examined
        ));
    }
    terminal.line(format_args!("{} questions are being answered", queries.len()));
    let object = |query: &epigraph_rpc::peer::query::RunningQuery| {
        json!({
            "query_id": query.query_id,
            "principal": query.principal,
            "runbook": query.runbook,
            "started_at_ms": query.started_at_ms,
            "estimate": query.estimate.as_ref().map(estimate_object),
            "cost": query.cost.as_ref().map(cost_object),
        })
    };
    terminal.object(&json!({ "queries": queries.iter().map(object).collect::<Vec<_>>() }));
    Ok(())
}

pub fn cancel(args: &QueryCancel, terminal: Terminal) -> Outcome {
    let profile = Profile::load(&args.profile.profile)?;
    block(async {
        let answer = profile.query()?.cancel(profile.origin.as_str(), &args.id).await;
        answer.map_err(|error| profile::of_call_to(&error, "audit service"))
    })?;
    terminal.line(format_args!("{} is cancelled; that it was is on the record", args.id));
    terminal.object(&json!({ "cancelled": args.id }));
    Ok(())
}

pub fn approvals(args: &ApprovalList, terminal: Terminal) -> Outcome {
    let profile = Profile::load(&args.profile.profile)?;
    let approvals = block(async {
        let answer = profile.query()?.approvals(profile.origin.as_str()).await;
        answer.map_err(|error| profile::of_call_to(&error, "audit service"))
    })?;
    for approval in &approvals {
        show(approval, terminal);
    }
    terminal.line(format_args!("{} approvals", approvals.len()));
    terminal.object(&json!({ "approvals": approvals.iter().map(object).collect::<Vec<_>>() }));
    Ok(())
}

pub fn decide(args: &ApprovalDecide, grant: bool, terminal: Terminal) -> Outcome {
    let profile = Profile::load(&args.profile.profile)?;
    let approval = block(async {
        let answer = profile.query()?.decide(profile.origin.as_str(), &args.id, grant, &args.reason).await;
        answer.map_err(|error| profile::of_call_to(&error, "audit service"))
    })?;
    show(&approval, terminal);
    terminal.object(&object(&approval));
    Ok(())
}

pub fn tail(args: &EventsTail, terminal: Terminal) -> Outcome {
    let profile = Profile::load(&args.profile.profile)?;
    let failed = |error| profile::of_call_to(&error, "audit service");
    block(async {
        let (query, origin) = (profile.query()?, profile.origin.as_str());
        let mut from = args.from_leaf;
        let mut columns = Vec::new();
        loop {
            let mut parts =
                query.tail(origin, args.filters.clone(), &args.purpose, from).await.map_err(failed)?;
            while let Some(part) = parts.next().await.map_err(failed)? {
                match part {
                    Part::Planned(planned) if columns.is_empty() => {
                        columns = planned.columns;
                        terminal.line(terminal.bold(columns.join("  ")));
                    }
                    Part::Planned(_) => {}
                    Part::Refused(refused) => return Err(refusal(&refused)),
                    Part::Rows(rows) => {
                        for row in rows {
                            terminal.line(plain(&row.values.join("  ")));
                            let values = columns.iter().cloned().zip(row.values.into_iter().map(Value::from));
                            terminal.object(&json!({
                                "leaf_indexes": row.leaf_indexes,
                                "values": values.collect::<serde_json::Map<_, _>>(),
                            }));
                        }
                    }
                    Part::Cursor(leaf) => from = Some(leaf),
                    _ => return Err(Failure::no("the service sent something that is no part of a tail")),
                }
            }
            // The service wants its caller to connect anew.
        }
    })
}

fn block<T>(work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    runtime::runtime().map_err(Failure::state)?.block_on(work)
}

fn state(approval: &Approval) -> &'static str {
    let is_over = approval.expires_at_ms <= runtime::clock().now().0;
    match approval.state() {
        ApprovalState::Waiting | ApprovalState::Granted if is_over => "expired",
        ApprovalState::Waiting => "waiting",
        ApprovalState::Granted => "granted",
        ApprovalState::Denied => "denied",
        ApprovalState::Used => "used",
        ApprovalState::Unspecified => "unknown",
    }
}

fn show(approval: &Approval, terminal: Terminal) {
    terminal.line(format_args!(
        "{}  {}  {}: {}; {}",
        plain(&approval.approval_id),
        terminal.bold(state(approval)),
        plain(&approval.principal),
        plain(&approval.asked),
        estimated(&approval.estimate.unwrap_or_default()),
    ));
    if !approval.purpose.is_empty() {
        terminal.line(format_args!("    asked because: {}", plain(&approval.purpose)));
    }
    if !approval.decided_by.is_empty() {
        terminal.line(format_args!(
            "    decided by {}: {}",
            plain(&approval.decided_by),
            plain(&approval.reason)
        ));
    }
}

fn object(approval: &Approval) -> Value {
    json!({
        "approval_id": approval.approval_id,
        "principal": approval.principal,
        "state": state(approval),
        "asked": approval.asked,
        "purpose": approval.purpose,
        "estimate": approval.estimate.as_ref().map(estimate_object),
        "expires_at_ms": approval.expires_at_ms,
        "decided_by": approval.decided_by,
        "reason": approval.reason,
    })
}
