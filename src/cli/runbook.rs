//! `epigraph runbook`: what can be asked about audit events, and asking it. What comes back is verified where it can be.

pub mod answer;
mod audit;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use epigraph_rpc::peer::query::{Question, QuestionParameter, Run, Runbook};
use serde_json::{Value, json};

use super::Profile as ProfileDir;
use super::when::When;
use crate::failure::{Failure, Outcome};
use crate::profile::{self, Profile};
use crate::runtime;
use crate::terminal::Terminal;

#[derive(Subcommand)]
pub enum RunbookCommand {
    /// List the runbooks that you may run
    List(RunbookList),
    /// Show what a runbook is for, its parameters and an example
    Show(RunbookShow),
    /// Run a runbook: an estimate first, then rows, then what it really cost
    Run(Box<RunbookRun>),
}

#[derive(Args)]
pub struct RunbookList {
    #[command(flatten)]
    pub profile: ProfileDir,
}

#[derive(Args)]
pub struct RunbookShow {
    #[command(flatten)]
    pub profile: ProfileDir,

    /// The runbook's id
    #[arg(value_name = "ID")]
    pub id: String,
}

/// Everything that is asked is on the record, with your name and what became of it, and so is every refusal. A question without a
/// time window is refused. What costs more than you may spend is refused before a row is read, or waits for somebody's approval:
/// run the same again with --approval once it is granted.
#[derive(Args)]
pub struct RunbookRun {
    #[command(flatten)]
    pub profile: ProfileDir,

    /// The runbook's id
    #[arg(value_name = "ID")]
    pub id: String,

    /// A parameter of the runbook; may be repeated
    #[arg(long = "param", value_name = "NAME=VALUE", value_parser = parameter)]
    pub parameters: Vec<QuestionParameter>,

    /// From when on: a date (00:00 UTC) or a time such as 2024-07-30T12:00:00Z
    #[arg(long, value_name = "TIME")]
    pub from: Option<When>,

    /// Until when, exclusive
    #[arg(long, value_name = "TIME")]
    pub to: Option<When>,

    /// Only events of this kind of source, such as k8s or cloudtrail
    #[arg(long, value_name = "KIND")]
    pub stream: Option<String>,

    /// Only events of this tenant: an account, a cluster
    #[arg(long, value_name = "NAME")]
    pub tenant: Option<String>,

    /// Why you ask; goes on the record, and some roles must say
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub purpose: String,

    /// The case or ticket that it belongs to: some policies show more to those who have one
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub ticket: String,

    /// Say what it would cost, and run nothing
    #[arg(long, conflicts_with_all = ["proofs", "audit"])]
    pub plan: bool,

    /// Fetch what proves each row, verify it, and keep it in this directory, for `verify`
    #[arg(long, value_name = "DIR")]
    pub proofs: Option<PathBuf>,

    /// Fetch and verify every event of the window, see that none is missing, and find the rows here: only this shows that the
    /// service has left no row out
    #[arg(long)]
    pub audit: bool,

    /// Go on behind an answer that had more rows: the token that it ended with
    #[arg(long, value_name = "TOKEN", conflicts_with = "plan")]
    pub page: Option<String>,

    /// An approval that somebody else granted for exactly this
    #[arg(long, value_name = "ID")]
    pub approval: Option<String>,

    /// The same for what --audit fetches: it is a question of its own, and costs more
    #[arg(long, value_name = "ID", requires = "audit")]
    pub audit_approval: Option<String>,
}

fn parameter(text: &str) -> Result<QuestionParameter, String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => {
            Ok(QuestionParameter { name: name.into(), value: value.into() })
        }
        _ => Err("write it NAME=VALUE".into()),
    }
}

pub fn list(args: &RunbookList, terminal: Terminal) -> Outcome {
    let runbooks = fetch(&Profile::load(&args.profile.profile)?)?;
    terminal.line(
        terminal.bold(format_args!("{:<28} {:>3}  {:<34} {}", "runbook", "v", "parameters", "what it tells")),
    );
    for runbook in &runbooks {
        let parameters: Vec<_> =
            runbook
                .parameters
                .iter()
                .map(|parameter| {
                    if parameter.required { parameter.name.clone() } else { format!("[{}]", parameter.name) }
                })
                .collect();
        terminal.line(format_args!(
            "{:<28} {:>3}  {:<34} {}",
            runbook.id,
            runbook.version,
            parameters.join(" "),
            runbook.title
        ));
    }
    terminal.line(format_args!("{} runbooks; `epigraph runbook show ID` says more", runbooks.len()));
    terminal.object(&json!({ "runbooks": runbooks.iter().map(object).collect::<Vec<_>>() }));
    Ok(())
}

pub fn show(args: &RunbookShow, terminal: Terminal) -> Outcome {
    let runbooks = fetch(&Profile::load(&args.profile.profile)?)?;
    let runbook = runbooks.iter().find(|runbook| runbook.id == args.id).ok_or_else(|| {
        Failure::usage(format!(
            "there is no runbook {} that you may run; `epigraph runbook list` lists them",
            args.id
        ))
    })?;
    terminal.line(&runbook.documentation);
    terminal.object(&object(runbook));
    Ok(())
}

fn fetch(profile: &Profile) -> Outcome<Vec<Runbook>> {
    let runtime = runtime::runtime().map_err(Failure::state)?;
    runtime.block_on(async {
        let answer = profile.query()?.runbooks(profile.origin.as_str()).await;
        answer.map_err(|error| profile::of_call_to(&error, "audit service"))
    })
}

fn object(runbook: &Runbook) -> Value {
    json!({
        "id": runbook.id,
        "version": runbook.version,
        "title": runbook.title,
        "owner": runbook.owner,
        "hash": answer::hex(&runbook.hash),
        "columns": runbook.columns,
        "parameters": runbook.parameters.iter().map(|parameter| json!({
            "name": parameter.name,
            "kind": parameter.kind,
            "required": parameter.required,
            "default": parameter.default,
            "description": parameter.description,
        })).collect::<Vec<_>>(),
        "documentation": runbook.documentation,
    })
}

pub fn run(args: &RunbookRun, terminal: Terminal) -> Outcome {
    let profile = Profile::load(&args.profile.profile)?;
    let question = Question {
        runbook: args.id.clone(),
        parameters: args.parameters.clone(),
        from_ns: args.from.map_or(0, |When(at)| at),
        to_ns: args.to.map_or(0, |When(at)| at),
        tenant: args.tenant.clone().unwrap_or_default(),
        stream: args.stream.clone().unwrap_or_default(),
        purpose: args.purpose.clone(),
        ticket: args.ticket.clone(),
    };
    let runtime = runtime::runtime().map_err(Failure::state)?;
    let run = Run {
        plan_only: args.plan,
        proofs: args.proofs.is_some(),
        approval: args.approval.clone(),
        page: args.page.clone(),
    };
    runtime.block_on(async {
        let answer = answer::fetch(&profile, &question, &run, terminal).await?;
        let Some(answer) = answer else { return Ok(()) };
        let kept = match &args.proofs {
            // An empty directory would prove nothing, and `verify` says so.
            Some(dir) if !answer.rows.is_empty() => Some(answer.verify(&profile, dir)?),
            Some(_) => Some(0),
            None => None,
        };
        let audited = match args.audit {
            true => Some(
                audit::run(&profile, &question, args.audit_approval.as_deref(), &answer, terminal).await?,
            ),
            false => None,
        };
        answer.show(kept, args.proofs.as_deref(), audited.as_ref(), terminal);
        match audited {
            Some(audited) if !audited.complete() => Err(Failure::no(audited.problem())),
            _ => Ok(()),
        }
    })
}
