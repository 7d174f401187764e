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

/// The runbook that is meant, if it exists for this reader; none for a tail.
pub(super) fn resolve(
    guard: &Guard,
    who: &Principal,
    request: &Request,
) -> Result<Option<Arc<Runbook>>, Refusal> {
    let Question::Runbook { id, .. } = &request.question else { return Ok(None) };
    let exists = |runbook: &&Arc<Runbook>| !runbook.roles.is_disjoint(&who.roles);
    match guard.runbooks.get(id).filter(exists) {
        Some(runbook) => Ok(Some(Arc::clone(runbook))),
        None => Err(unknown_runbook(id)),
    }
}

fn unknown_runbook(id: &str) -> Refusal {
    Refusal::new(
        Code::UnknownRunbook,
        format!("there is no runbook `{}` for you", bind::shown(id)),
        "`epigraph runbook list` lists those that you may run.",
    )
}

/// What is asked, with everything filled in.
pub(super) enum Asked {
    /// A runbook.
    Runbook(Bound<Arc<Runbook>>),
    /// New events that meet conditions.
    Tail(Vec<(Column, Vec<Given>)>),
}

impl Asked {
    /// Judges what was given.
    pub(super) fn new(request: &Request, runbook: Option<Arc<Runbook>>) -> Result<Asked, Refusal> {
        match (&request.question, runbook) {
            (Question::Runbook { parameters, .. }, Some(runbook)) => {
                Ok(Asked::Runbook(Bound::new(runbook, parameters).map_err(bad_parameter)?))
            }
            (Question::Runbook { id, .. }, None) => Err(unknown_runbook(id)),
            (Question::Tail { filter }, _) => Ok(Asked::Tail(conditions(filter)?)),
        }
    }

    /// The runbook; none for a tail.
    pub(super) fn runbook(&self) -> Option<&Arc<Runbook>> {
        match self {
            Asked::Runbook(bound) => Some(bound.runbook()),
            Asked::Tail(_) => None,
        }
    }

    /// What is made of the rows.
    pub(super) fn reduce(&self, window: &Window) -> Result<Option<Reduce>, Refusal> {
        match self {
            Asked::Runbook(bound) => bound.reduce(window).map_err(bad_parameter),
            Asked::Tail(_) => Ok(None),
        }
    }

    /// What was given, in one spelling.
    pub(super) fn canonical(&self) -> Vec<(String, String)> {
        match self {
            Asked::Runbook(bound) => bound.canonical(),
            Asked::Tail(conditions) => {
                let pairs = |(column, values): &(Column, Vec<Given>)| {
                    let column = column.as_str();
                    values.iter().map(|given| (column.to_owned(), given.spelt())).collect::<Vec<_>>()
                };
                conditions.iter().flat_map(pairs).collect()
            }
        }
    }

    /// Whether the newest row comes first.
    pub(super) fn newest_first(&self) -> bool {
        self.runbook().is_some_and(|runbook| runbook.newest_first)
    }

    /// Whose pseudonyms are needed.
    pub(super) fn wanted(&self) -> Vec<Wanted> {
        match self {
            Asked::Runbook(bound) => bound.wanted(),
            Asked::Tail(conditions) => {
                let of_names = conditions.iter().filter(|(column, _)| column.is_pseudonym());
                of_names
                    .flat_map(|(column, values)| values.iter().map(|given| wanted(*column, given)))
                    .collect()
            }
        }
    }

    /// By which indexes it reads, and what must hold of each row; none if nothing can.
    pub(super) fn reads(&self, found: &BTreeMap<Wanted, Vec<Pseudonym>>) -> Option<(Vec<Access>, Filter)> {
        let conditions = match self {
            Asked::Runbook(bound) => return Some((bound.reads(found), bound.filter(found)?)),
            Asked::Tail(conditions) => conditions,
        };
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
        Some((vec![Access::Time], Filter(conditions.iter().map(clause).collect::<Option<_>>()?)))
    }

    /// In words, for the one who is asked to agree.
    pub(super) fn describe(&self, window: &Window, audit: bool) -> String {
        let name = self.runbook().map_or_else(
            || "tail".to_owned(),
            |runbook| format!("{} version {}", runbook.id, runbook.version),
        );
        let given: Vec<String> =
            self.canonical().iter().map(|(name, value)| format!("{name}={value}")).collect();
        let [from, to] = [window.from_ns(), window.to_ns()].map(bind::instant);
        let what = if audit { "every event of the window of " } else { "" };
        format!("{what}{name} {} from {from} to {to}", given.join(" "))
    }
}

fn bad_parameter(why: bind::BadParameter) -> Refusal {
    let suggestion = "`epigraph runbook show NAME` says what each parameter takes.";
    Refusal::new(Code::BadParameter, why.to_string(), suggestion)
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
