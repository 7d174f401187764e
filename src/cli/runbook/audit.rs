//! The audit of an answer: every event of the window is fetched, verified and counted, and the runbook is applied to them here. What is found
//! here and not in the answer was left out by the service.

use std::collections::{BTreeMap, BTreeSet};

use epigraph_audit::query::reduce::merge;
use epigraph_audit::query::row::Pseudonyms;
use epigraph_audit::query::{Access, Column, Pseudonym, Row, Scan, Window};
use epigraph_audit::runbook::bind::{Bound, Given, Wanted};
use epigraph_audit::runbook::{Runbook, file};
use epigraph_core::Hash;
use epigraph_event::bundle::Proven;
use epigraph_rpc::peer::query::{Part, QueryCost, QueryEstimate, Question};
use serde_json::{Value, json};

use super::answer::{Answer, approval_needed, bytes, cost_object, estimate_object, open, refusal};
use crate::failure::{Failure, Outcome};
use crate::profile::{self, Profile};
use crate::terminal::Terminal;

/// What an audit found.
pub struct Audited {
    events: usize,
    sources: usize,
    /// Numbers of sources of which no event came.
    missing: u64,
    /// Published events that the indexes did not know yet: the audit goes through those that they know.
    unindexed: u64,
    /// Leaves that the runbook finds, and that are not in the answer.
    left_out: Vec<u64>,
    /// Leaves in the answer that the runbook does not find.
    unfounded: Vec<u64>,
    /// What it costs at most, and what it did cost.
    estimate: QueryEstimate,
    cost: QueryCost,
}

impl Audited {
    /// Whether the answer is all that the runbook finds.
    pub fn complete(&self) -> bool {
        self.left_out.is_empty() && self.unfounded.is_empty() && self.missing == 0 && self.unindexed == 0
    }

    pub fn problem(&self) -> String {
        let mut problems = Vec::new();
        if let Some(first) = self.left_out.first() {
            problems.push(format!("{} rows were left out, the first is leaf {first}", self.left_out.len()));
        }
        if let Some(first) = self.unfounded.first() {
            problems.push(format!(
                "{} rows do not belong there, the first is leaf {first}",
                self.unfounded.len()
            ));
        }
        if self.missing > 0 {
            problems.push(format!("{} events are missing in the numbering of their sources", self.missing));
        }
        if self.unindexed > 0 {
            problems.push(format!(
                "{} events are not in the indexes yet, and nobody looked at them: ask again in a moment",
                self.unindexed
            ));
        }
        format!("the answer is not what the events of the window say: {}", problems.join("; "))
    }

    pub fn show(&self, terminal: Terminal) {
        let verdict = match self.complete() {
            true => terminal.good("complete:"),
            false => terminal.bad("not complete:"),
        };
        terminal.line(format_args!(
            "{verdict} {} events of {} sources were verified, and the runbook applied to each here: {} left out, {} too many, {} missing",
            self.events,
            self.sources,
            self.left_out.len(),
            self.unfounded.len(),
            self.missing
        ));
        terminal.line(format_args!(
            "the audit read {} of at most {} events, and {} of at most {} of them",
            self.cost.rows_examined,
            self.estimate.rows,
            bytes(self.cost.bytes_read),
            bytes(self.estimate.bytes)
        ));
    }

    pub fn object(&self) -> Value {
        json!({
            "complete": self.complete(),
            "events": self.events,
            "sources": self.sources,
            "missing": self.missing,
            "unindexed": self.unindexed,
            "left_out": self.left_out,
            "unfounded": self.unfounded,
            "estimate": estimate_object(&self.estimate),
            "cost": cost_object(&self.cost),
        })
    }
}

pub async fn run(
    profile: &Profile,
    question: &Question,
    approval: Option<&str>,
    answer: &Answer,
    terminal: Terminal,
) -> Outcome<Audited> {
    let failed = |error| profile::of_call_to(&error, "audit service");
    let (query, origin) = (profile.query()?, profile.origin.as_str());
    let runbooks = query.runbooks(origin).await.map_err(failed)?;
    let runbook = runbooks.iter().find(|runbook| runbook.id == question.runbook);
    let text = runbook.map(|runbook| runbook.file.clone()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let runbook = file::read(&question.runbook, &text).map_err(Failure::no)?;
    if runbook.hash.as_bytes()[..] != answer.planned.runbook_hash[..] {
        return Err(Failure::no("the service shows another runbook than the one that it says it ran"));
    }
    if !answer.finished.next_page_token.is_empty() || answer.finished.truncated {
        return Err(Failure::usage(
            "only a whole answer can be audited: this one goes on on a next page, ask for a shorter window",
        ));
    }

    let mut parts = query.audit(origin, question.clone(), approval).await.map_err(failed)?;
    let (mut rows, mut estimate) = (Vec::new(), QueryEstimate::default());
    let mut numbers: BTreeMap<(Hash, u64), BTreeSet<u64>> = BTreeMap::new();
    let mut keys = Keys::default();
    let finished = loop {
        match parts.next().await.map_err(failed)? {
            Some(Part::Planned(planned)) => estimate = planned.estimate.unwrap_or_default(),
            Some(Part::Refused(refused)) => return Err(refusal(&refused)),
            Some(Part::ApprovalNeeded(needed)) => {
                return Err(approval_needed(&needed, "--audit-approval", terminal));
            }
            Some(Part::Bundle(bytes)) => {
                let (_, proven) = open(&bytes, profile)?;
                let Proven { leaf, .. } = &proven;
                numbers.entry((leaf.source, leaf.epoch)).or_default().insert(leaf.sequence);
                let core = proven.core.as_ref();
                let core = core.ok_or_else(|| {
                    Failure::no(format!("leaf {} came without what happened", proven.index))
                })?;
                let place = (proven.index, 0, leaf.ingested);
                let Ok(row) = Row::of(place, core, proven.identity.as_ref(), &mut keys, |text| text.into());
                rows.push(row);
                terminal.progress(format_args!("{} events verified", rows.len()));
            }
            Some(Part::Finished(finished)) => break finished,
            Some(_) => return Err(Failure::no("the service sent something that is no part of an audit")),
            None => return Err(Failure::unreachable("the audit ended before its end")),
        }
    };
    let missing = numbers.values().map(|of| {
        let (first, last) = (of.first().copied().unwrap_or(0), of.last().copied().unwrap_or(0));
        (last - first + 1).saturating_sub(of.len() as u64)
    });
    let (missing, sources, events) = (missing.sum(), numbers.len(), rows.len());
    let found = apply(&runbook, question, rows, &mut keys)?;
    let answered: BTreeSet<u64> =
        answer.rows.iter().flat_map(|row| row.leaf_indexes.iter().copied()).collect();
    Ok(Audited {
        events,
        sources,
        missing,
        // What was published after the answer was begun could not be in it.
        left_out: found.difference(&answered).copied().filter(|leaf| *leaf < answer.size).collect(),
        unfounded: answered.difference(&found).copied().collect(),
        unindexed: finished.unindexed,
        estimate,
        cost: finished.cost.unwrap_or_default(),
    })
}

/// The leaves that a runbook finds among rows.
fn apply(runbook: &Runbook, question: &Question, rows: Vec<Row>, keys: &mut Keys) -> Outcome<BTreeSet<u64>> {
    let given = question.parameters.iter().map(|one| (one.name.clone(), one.value.clone())).collect();
    let bound = Bound::new(runbook, &given).map_err(Failure::usage)?;
    let window = Window::new(question.from_ns, question.to_ns).map_err(Failure::usage)?;
    let tenants: BTreeSet<&str> = rows.iter().map(|row| &*row.tenant).collect();
    let mut found = BTreeMap::new();
    for wanted in bound.wanted() {
        let tokens = match &wanted.given {
            Given::Token(_) => {
                return Err(Failure::usage("an audit makes its own tokens: ask by the id, not by a token"));
            }
            Given::Id(id) => tokens(keys, wanted.column, &tenants, id),
            _ => Vec::new(),
        };
        found.insert(Wanted { column: wanted.column, given: wanted.given.clone() }, tokens);
    }
    let tenant = (!question.tenant.is_empty()).then(|| question.tenant.clone());
    let scan = |access: Access| {
        Some(Scan {
            stream: (!question.stream.is_empty()).then(|| question.stream.clone()),
            tenant: tenant.clone(),
            access,
            window,
            filter: bound.filter(&found)?,
            newest_first: false,
            limit: u64::MAX,
            after: None,
        })
    };
    let scans: Vec<Scan> = bound.reads(&found).into_iter().filter_map(scan).collect();
    let rows: Vec<Row> = rows.into_iter().filter(|row| scans.iter().any(|scan| scan.takes(row))).collect();
    let rows = merge(vec![rows], false, u64::MAX);
    let rows = match bound.reduce(&window).map_err(Failure::usage)? {
        None => rows,
        Some(reduce) => reduce.apply(rows).groups.into_iter().flat_map(|group| group.rows).collect(),
    };
    Ok(rows.iter().map(|row| row.leaf.get()).collect())
}

fn tokens(keys: &mut Keys, column: Column, tenants: &BTreeSet<&str>, id: &str) -> Vec<Pseudonym> {
    let all = tenants.iter().filter_map(|tenant| match column {
        Column::Address => keys.address(id).ok().flatten(),
        Column::Actor | Column::OnBehalfOf => keys.subject(tenant, id).ok().flatten(),
        _ => keys.thing(tenant, id).ok().flatten(),
    });
    all.collect::<BTreeSet<_>>().into_iter().collect()
}

/// Tokens that mean something in this process alone: who comes first is the first.
#[derive(Default)]
struct Keys(BTreeMap<(u8, String, String), u128>);

impl Keys {
    fn token(&mut self, kind: u8, tenant: &str, id: &str) -> Pseudonym {
        let next = self.0.len() as u128;
        let number = *self.0.entry((kind, tenant.to_owned(), id.to_owned())).or_insert(next);
        Pseudonym::from_bytes(number.to_be_bytes())
    }
}

impl Pseudonyms for Keys {
    type Error = std::convert::Infallible;

    fn subject(&mut self, tenant: &str, id: &str) -> Result<Option<Pseudonym>, Self::Error> {
        Ok(Some(self.token(1, tenant, id)))
    }

    fn thing(&mut self, tenant: &str, id: &str) -> Result<Option<Pseudonym>, Self::Error> {
        Ok(Some(self.token(2, tenant, id)))
    }

    fn address(&mut self, address: &str) -> Result<Option<Pseudonym>, Self::Error> {
        Ok(Some(self.token(3, "", address)))
    }
}
