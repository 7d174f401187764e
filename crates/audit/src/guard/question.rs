//! What is asked, as it was asked: texts within their limits, a runbook that exists for this reader with its parameters filled in, or the
//! conditions of a tail.

use std::collections::BTreeMap;
use std::sync::Arc;

use epigraph_event::fit::MAX_TEXT_BYTES;

use super::Principal;
use super::plan::{Guard, Question, Request};
use super::refusal::{Code, Refusal};
use crate::query::row::Value;
use crate::query::scan::{Clause, MAX_VALUES};
use crate::query::{Access, Column, Filter, Pseudonym, Reduce, Window};
use crate::runbook::bind::{self, Bound, Given, Wanted};
use crate::runbook::{Parameter, Runbook, Type};

/// The most parameters or conditions of one request.
const MAX_GIVEN: usize = 32;

/// Refuses what is too long to be looked at, and what would garble a record or a terminal.
pub(super) fn check_texts(request: &Request) -> Result<(), Refusal> {
    let no = |what: &str| {
        Err(Refusal::new(
            Code::BadParameter,
            format!("{what} is too long or has control characters"),
            format!("Give at most {MAX_TEXT_BYTES} bytes of plain text, and at most {MAX_GIVEN} parameters."),
        ))
    };
    let is_plain = |text: &str| text.len() <= MAX_TEXT_BYTES && !text.chars().any(char::is_control);
    let optional = |text: &Option<String>| text.as_deref().is_none_or(is_plain);
    if !is_plain(&request.purpose) || !is_plain(&request.ticket) {
        return no("the purpose or the ticket");
    }
    if !optional(&request.stream) || !optional(&request.tenant) {
        return no("the stream or the tenant");
    }
    let given_is_plain = match &request.question {
        Question::Runbook { id, parameters } => {
            is_plain(id)
                && parameters.len() <= MAX_GIVEN
                && parameters.iter().all(|(name, value)| is_plain(name) && is_plain(value))
        }
        Question::Tail { filter } => {
            let plain = |values: &Vec<String>| {
                values.len() <= MAX_VALUES && values.iter().all(|value| is_plain(value))
            };
            filter.len() <= MAX_GIVEN && filter.iter().all(|(name, values)| is_plain(name) && plain(values))
        }
    };
    if given_is_plain { Ok(()) } else { no("a name or a parameter") }
}

/// What is asked, before its parameters are judged.
pub(super) struct Resolved {
    pub(super) runbook: Option<Arc<Runbook>>,
}

/// The runbook that is meant, if it exists for this reader.
pub(super) fn resolve(guard: &Guard, who: &Principal, request: &Request) -> Result<Resolved, Refusal> {
    let Question::Runbook { id, .. } = &request.question else { return Ok(Resolved { runbook: None }) };
    let exists = |runbook: &&Arc<Runbook>| !runbook.roles.is_disjoint(&who.roles);
    match guard.runbooks.get(id).filter(exists) {
        Some(runbook) => Ok(Resolved { runbook: Some(Arc::clone(runbook)) }),
        None => Err(Refusal::new(
            Code::UnknownRunbook,
            format!("there is no runbook `{}` for you", bind::shown(id)),
            "`epigraph runbook list` lists those that you may run.",
        )),
    }
}

/// What is asked.
pub(super) struct Asked {
    pub(super) runbook: Option<Arc<Runbook>>,
    pub(super) reduce: Option<Reduce>,
    /// Parameters, or the conditions of a tail.
    given: BTreeMap<String, String>,
    conditions: Vec<(Column, Vec<Given>)>,
    canonical: Vec<(String, String)>,
}

impl Resolved {
    /// Judges what was given.
    pub(super) fn bind(self, request: &Request, window: &Window) -> Result<Asked, Refusal> {
        let bad = |why: bind::BadParameter| {
            let suggestion = "`epigraph runbook show NAME` says what each parameter takes.";
            Refusal::new(Code::BadParameter, why.to_string(), suggestion)
        };
        let asked = |given, conditions, canonical, reduce| Asked {
            runbook: self.runbook.clone(),
            reduce,
            given,
            conditions,
            canonical,
        };
        match (&request.question, &self.runbook) {
            (Question::Runbook { parameters, .. }, Some(runbook)) => {
                let bound = Bound::new(runbook, parameters).map_err(bad)?;
                let reduce = bound.reduce(window).map_err(bad)?;
                Ok(asked(parameters.clone(), Vec::new(), bound.canonical(), reduce))
            }
            (Question::Tail { filter }, _) => {
                let conditions = conditions(filter)?;
                let canonical = filter
                    .iter()
                    .flat_map(|(name, values)| values.iter().map(|value| (name.clone(), value.clone())));
                Ok(asked(BTreeMap::new(), conditions, canonical.collect(), None))
            }
            (Question::Runbook { .. }, None) => Ok(asked(BTreeMap::new(), Vec::new(), Vec::new(), None)),
        }
    }
}

impl Asked {
    /// What was given, in one spelling.
    pub(super) fn canonical(&self) -> &[(String, String)] {
        &self.canonical
    }

    pub(super) fn newest_first(&self) -> bool {
        self.runbook.as_ref().is_some_and(|runbook| runbook.newest_first)
    }

    /// Whose pseudonyms are needed.
    pub(super) fn wanted(&self) -> Vec<Wanted> {
        let of_tail = self.conditions.iter().filter(|(column, _)| column.is_pseudonym());
        let of_tail = of_tail.flat_map(|(column, values)| values.iter().map(|given| wanted(*column, given)));
        let bound = self.bound();
        bound.iter().flat_map(Bound::wanted).chain(of_tail).collect()
    }

    /// By which indexes it reads, and what must hold of each row; none if nothing can.
    pub(super) fn reads(&self, found: &BTreeMap<Wanted, Vec<Pseudonym>>) -> Option<(Vec<Access>, Filter)> {
        if let Some(bound) = self.bound() {
            return Some((bound.reads(found), bound.filter(found)?));
        }
        let clause = |(column, values): &(Column, Vec<Given>)| {
            let value = |given: &Given| match given {
                Given::Text(text) => vec![Value::Text(text.clone())],
                given => {
                    let tokens = found.get(&wanted(*column, given)).into_iter().flatten();
                    tokens.copied().map(Value::Pseudonym).collect()
                }
            };
            let any_of: Vec<Value> = values.iter().flat_map(value).collect();
            (!any_of.is_empty()).then_some(Clause { column: *column, any_of })
        };
        Some((vec![Access::Time], Filter(self.conditions.iter().map(clause).collect::<Option<_>>()?)))
    }

    /// In words, for the one who is asked to agree.
    pub(super) fn describe(&self, window: &Window) -> String {
        let name = self.runbook.as_ref().map_or_else(
            || "tail".to_owned(),
            |runbook| format!("{} version {}", runbook.id, runbook.version),
        );
        let given: Vec<String> =
            self.canonical.iter().map(|(name, value)| format!("{name}={value}")).collect();
        format!("{name} {} from {} to {}", given.join(" "), window.from_ns(), window.to_ns())
    }

    fn bound(&self) -> Option<Bound<'_>> {
        Bound::new(self.runbook.as_deref()?, &self.given).ok()
    }
}

/// Whom a condition is about: an actor is one in whichever column it stands.
fn wanted(column: Column, given: &Given) -> Wanted {
    let column = match column {
        Column::ActorName | Column::OnBehalfOf => Column::Actor,
        column => column,
    };
    Wanted { column, given: given.clone() }
}

/// The conditions of a tail: exact values of columns.
fn conditions(filter: &BTreeMap<String, Vec<String>>) -> Result<Vec<(Column, Vec<Given>)>, Refusal> {
    let no = |message: String| {
        let columns: Vec<&str> =
            Column::ALL.into_iter().filter(|column| can_be_asked(*column)).map(Column::as_str).collect();
        Refusal::new(
            Code::BadFilter,
            message,
            format!("A condition is COLUMN=VALUE, exactly: {}.", columns.join(", ")),
        )
    };
    let mut conditions = Vec::new();
    for (name, values) in filter {
        let shown = bind::shown(name);
        let column = Column::named(name).filter(|column| can_be_asked(*column));
        let column = column.ok_or_else(|| no(format!("`{shown}` is no column that can be asked for")))?;
        if values.is_empty() {
            return Err(no(format!("`{shown}` is given no value")));
        }
        let kind = match column {
            Column::Actor | Column::ActorName | Column::OnBehalfOf => Type::Actor,
            Column::Session => Type::Session,
            Column::Address => Type::Address,
            Column::Resource => Type::Resource,
            _ => column.words().map_or(Type::Request, Type::Word),
        };
        let (name, description) = (name.clone(), String::new());
        let parameter = Parameter { name, description, kind, default: None };
        let given = values.iter().map(|value| bind::value(&parameter, value)).collect::<Result<_, _>>();
        conditions.push((column, given.map_err(|why| no(why.to_string()))?));
    }
    Ok(conditions)
}

/// Places and times are asked for by the window, tenants and streams by their own.
const fn can_be_asked(column: Column) -> bool {
    !matches!(column, Column::Leaf | Column::OccurredAt | Column::Ingested | Column::Tenant | Column::Stream)
}
