//! Runbooks as files: TOML, read once and checked whole, so that a runbook that is on the shelf can be run. Errors name the file, the key
//! and the reason.

use std::collections::{BTreeMap, BTreeSet};

use epigraph_event::v1::Result as Outcome;
use serde::Deserialize;
use thiserror::Error;

use super::bind::{self, Bound};
use super::{Condition, Operand, Parameter, Read, Recipe, Runbook, Type};
use crate::guard::Role;
use crate::query::row::word;
use crate::query::{Column, Window, scan};

/// The longest file: a page of text.
pub const MAX_FILE_BYTES: usize = 16 * 1024;

/// The longest name of a runbook or a parameter.
pub const MAX_NAME_BYTES: usize = 64;

/// The longest description.
pub const MAX_DESCRIPTION_BYTES: usize = 2_000;

/// The most parameters: what a person fills in.
pub const MAX_PARAMETERS: usize = 12;

/// The most reads of one runbook: each is a scan.
pub const MAX_READS: usize = 4;

/// The longest window of any runbook, in days: a year and the month of its report.
pub const MAX_WINDOW_DAYS: u64 = 400;

/// The longest duration of a parameter: 31 days.
const MAX_DURATION_S: u64 = 31 * 86_400;

/// What is wrong with a runbook's file.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{file}: {key}: {why}")]
pub struct BadRunbook {
    /// The file, as it was called.
    pub file: String,
    /// The key, `toml` if it cannot be read at all.
    pub key: String,
    /// The reason, and what to do.
    pub why: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    id: String,
    version: u32,
    owner: String,
    description: String,
    roles: Vec<String>,
    max_window_days: u64,
    max_bytes: u64,
    #[serde(default)]
    newest_first: bool,
    columns: Vec<String>,
    #[serde(default)]
    parameter: Vec<RawParameter>,
    read: Vec<RawRead>,
    #[serde(default)]
    filter: BTreeMap<String, Vec<String>>,
    reduce: Option<RawReduce>,
    #[serde(default)]
    example: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawParameter {
    name: String,
    r#type: String,
    description: String,
    default: Option<String>,
    one_of: Option<Vec<String>>,
    min: Option<toml::Value>,
    max: Option<toml::Value>,
}

#[derive(Deserialize)]
#[serde(tag = "by", rename_all = "lowercase", deny_unknown_fields)]
enum RawRead {
    Time,
    Actor { of: String },
    Resource { of: String },
    Request { of: String },
    Outcome { result: String, action: Option<String> },
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
enum RawReduce {
    Repeated { least: String, within: String, by: String },
    Sequence { failures: String, within: String },
    State { at: String },
    OutsideHours { from: String, to: String, offset: String },
    Count { by: String },
}

/// Reads a runbook from the text of its file.
pub fn read(file: &str, text: &str) -> Result<Runbook, BadRunbook> {
    let bad = |key: &str, why: String| BadRunbook { file: file.into(), key: key.into(), why };
    if text.len() > MAX_FILE_BYTES {
        return Err(bad("toml", format!("the file has {} bytes, and at most {MAX_FILE_BYTES}", text.len())));
    }
    let raw: Raw = toml::from_str(text).map_err(|why| bad("toml", why.to_string().trim_end().to_owned()))?;
    checked(raw, text).map_err(|(key, why)| bad(&key, why))
}

/// A key, and what is wrong with it.
type Wrong = (String, String);

fn wrong<T>(key: impl Into<String>, why: impl Into<String>) -> Result<T, Wrong> {
    Err((key.into(), why.into()))
}

fn checked(raw: Raw, text: &str) -> Result<Runbook, Wrong> {
    name("id", &raw.id)?;
    if raw.version == 0 {
        return wrong("version", "versions begin at 1");
    }
    sentence("owner", &raw.owner, 256)?;
    sentence("description", &raw.description, MAX_DESCRIPTION_BYTES)?;
    let mut roles = BTreeSet::new();
    for role in &raw.roles {
        roles.insert(role.parse::<Role>().map_err(|why| ("roles".to_owned(), why.to_string()))?);
    }
    if roles.is_empty() {
        return wrong("roles", "nobody may run it: name the roles that may");
    }
    if raw.max_window_days == 0 || raw.max_window_days > MAX_WINDOW_DAYS {
        return wrong("max_window_days", format!("1 to {MAX_WINDOW_DAYS} days are possible"));
    }
    if raw.max_bytes == 0 {
        return wrong("max_bytes", "a run reads something: say how much at most");
    }
    if raw.parameter.len() > MAX_PARAMETERS {
        return wrong("parameter", format!("at most {MAX_PARAMETERS} are possible"));
    }
    let columns = list_of("columns", &raw.columns)?;
    let mut parameters: Vec<Parameter> = Vec::new();
    for raw in raw.parameter {
        let parameter = parameter(raw)?;
        if parameters.iter().any(|other| other.name == parameter.name) {
            return wrong(format!("parameter.{}", parameter.name), "there are two of this name");
        }
        parameters.push(parameter);
    }
    if raw.read.is_empty() || raw.read.len() > MAX_READS {
        return wrong("read", format!("1 to {MAX_READS} are possible"));
    }
    let runbook = Runbook {
        id: raw.id,
        version: raw.version,
        owner: raw.owner,
        description: raw.description.trim().to_owned(),
        roles,
        parameters,
        reads: raw.read.into_iter().map(read_of).collect::<Result<_, _>>()?,
        filter: raw.filter.into_iter().map(condition).collect::<Result<_, _>>()?,
        reduce: raw.reduce.map(recipe),
        newest_first: raw.newest_first,
        window_s: raw.max_window_days * 86_400,
        max_bytes: raw.max_bytes,
        columns,
        example: raw.example,
        hash: Runbook::hash_of(text),
    };
    whole(&runbook)?;
    Ok(runbook)
}

/// What only shows when everything is there.
fn whole(runbook: &Runbook) -> Result<(), Wrong> {
    if runbook.reduce.is_some() && runbook.newest_first {
        return wrong("newest_first", "what is made of rows is made of them in order: leave it out");
    }
    let type_of = |key: &str, operand: &Operand| match operand {
        Operand::Is(_) => Ok(None),
        Operand::Of(name) => match runbook.parameter(name) {
            Some(parameter) => Ok(Some(&parameter.kind)),
            None => wrong(key, format!("there is no parameter `{name}`")),
        },
    };
    let fits =
        |key: &str, operand: &Operand, wanted: &str, fits: fn(&Type) -> bool| match type_of(key, operand)? {
            Some(kind) if !fits(kind) => wrong(key, format!("the parameter is not {wanted}")),
            _ => Ok(()),
        };
    for read in &runbook.reads {
        match read {
            Read::Time | Read::Outcome { action: None, .. } => {}
            Read::Actor(of) => {
                named("read.of", of)?;
                fits("read.of", of, "an actor or a session", |kind| {
                    matches!(kind, Type::Actor | Type::Session)
                })?;
            }
            Read::Resource(of) => {
                named("read.of", of)?;
                let is_thing = |kind: &Type| matches!(kind, Type::Resource | Type::Session);
                fits("read.of", of, "a resource or a session", is_thing)?;
            }
            Read::Request(of) => {
                named("read.of", of)?;
                fits("read.of", of, "a request", |kind| matches!(kind, Type::Request))?;
            }
            Read::Outcome { action: Some(of), .. } => {
                fits("read.action", of, "a word", |kind| matches!(kind, Type::Word(_)))?;
            }
        }
    }
    for condition in &runbook.filter {
        filter(condition, type_of)?;
    }
    let span = |kind: &Type| matches!(kind, Type::Duration { .. });
    let number = |kind: &Type| matches!(kind, Type::Integer { .. });
    let one_word = |kind: &Type| matches!(kind, Type::Word(_));
    match &runbook.reduce {
        None => {}
        Some(Recipe::Repeated { least, within, by }) => {
            fits("reduce.least", least, "an integer", number)?;
            fits("reduce.within", within, "a duration", span)?;
            fits("reduce.by", by, "a word", one_word)?;
        }
        Some(Recipe::Sequence { failures, within }) => {
            fits("reduce.failures", failures, "an integer", number)?;
            fits("reduce.within", within, "a duration", span)?;
        }
        Some(Recipe::State { at }) => fits("reduce.at", at, "a time", |kind| matches!(kind, Type::Time))?,
        Some(Recipe::OutsideHours { from, to, offset }) => {
            fits("reduce.from", from, "an integer", number)?;
            fits("reduce.to", to, "an integer", number)?;
            fits("reduce.offset", offset, "an integer", number)?;
        }
        Some(Recipe::Count { by }) => fits("reduce.by", by, "a word", one_word)?,
    }
    let operands = runbook.operands();
    for parameter in &runbook.parameters {
        if !operands.contains(&&Operand::Of(parameter.name.clone())) {
            return wrong(
                format!("parameter.{}", parameter.name),
                "nothing in the plan uses it: take it out",
            );
        }
    }
    // The example is a run: so is every value that stands in the plan, and the least and the most of each parameter.
    let window = Window::new(0, scan::DAY_NS).map_err(|why| ("example".to_owned(), why.to_string()))?;
    let try_with = |given: &BTreeMap<String, String>| {
        let bound = Bound::new(runbook, given).map_err(|why| ("example".to_owned(), why.to_string()))?;
        bound.reduce(&window).map_err(|why| ("reduce".to_owned(), why.to_string()))
    };
    try_with(&runbook.example)?;
    for parameter in &runbook.parameters {
        for value in bind::extremes(&parameter.kind) {
            let mut given = runbook.example.clone();
            given.insert(parameter.name.clone(), value);
            try_with(&given)?;
        }
    }
    Ok(())
}

fn filter<'a>(
    condition: &Condition,
    type_of: impl Fn(&str, &Operand) -> Result<Option<&'a Type>, Wrong>,
) -> Result<(), Wrong> {
    let Condition { column, any_of } = condition;
    let key = format!("filter.{column}");
    if any_of.is_empty() || any_of.len() > scan::MAX_VALUES {
        return wrong(key, format!("1 to {} values are possible", scan::MAX_VALUES));
    }
    let words = column.words();
    let knows = |value: &str| words.as_ref().is_none_or(|words| words.iter().any(|word| word == value));
    for operand in any_of {
        let fits = match (type_of(&key, operand)?, operand) {
            (None, Operand::Is(value)) => !column.is_pseudonym() && knows(value),
            (None, Operand::Of(_)) => false,
            (Some(Type::Actor), _) => {
                matches!(column, Column::Actor | Column::ActorName | Column::OnBehalfOf)
            }
            (Some(Type::Session), _) => *column == Column::Session,
            (Some(Type::Resource), _) => *column == Column::Resource,
            (Some(Type::Address), _) => *column == Column::Address,
            (Some(Type::Request), _) => *column == Column::RequestId,
            (Some(Type::Word(one_of)), _) => !column.is_pseudonym() && one_of.iter().all(|word| knows(word)),
            (Some(Type::Integer { .. } | Type::Duration { .. } | Type::Time), _) => false,
        };
        if !fits {
            return wrong(key, "a value is not one that the column can have");
        }
    }
    Ok(())
}

fn parameter(raw: RawParameter) -> Result<Parameter, Wrong> {
    let key = format!("parameter.{}", raw.name);
    name(&key, &raw.name)?;
    sentence(&key, &raw.description, MAX_DESCRIPTION_BYTES)?;
    let bounds = (&raw.min, &raw.max);
    let kind = match (raw.r#type.as_str(), &raw.one_of, bounds) {
        ("actor", None, (None, None)) => Type::Actor,
        ("session", None, (None, None)) => Type::Session,
        ("resource", None, (None, None)) => Type::Resource,
        ("address", None, (None, None)) => Type::Address,
        ("request", None, (None, None)) => Type::Request,
        ("time", None, (None, None)) => Type::Time,
        ("word", Some(words), (None, None)) if !words.is_empty() && words.len() <= scan::MAX_VALUES => {
            Type::Word(words.clone())
        }
        ("integer", None, (Some(min), Some(max))) => match (min.as_integer(), max.as_integer()) {
            (Some(min), Some(max)) if min <= max => Type::Integer { min, max },
            _ => return wrong(key, "`min` and `max` are whole numbers, and `min` is not above `max`"),
        },
        ("duration", None, (Some(min), Some(max))) => {
            let seconds = |value: &toml::Value| value.as_str().and_then(bind::seconds);
            match (seconds(min), seconds(max)) {
                (Some(min_s), Some(max_s)) if min_s <= max_s && max_s <= MAX_DURATION_S => {
                    Type::Duration { min_s, max_s }
                }
                _ => return wrong(key, "`min` and `max` are durations such as \"10m\", of at most 31 days"),
            }
        }
        _ => {
            return wrong(
                key,
                "a type is `actor`, `session`, `resource`, `address`, `request` or `time`, `word` with `one_of`, or `integer` or \
                 `duration` with `min` and `max`",
            );
        }
    };
    let parameter = Parameter { name: raw.name, description: raw.description, kind, default: raw.default };
    if let Some(default) = &parameter.default {
        bind::value(&parameter, default).map_err(|why| (format!("{key}.default"), why.to_string()))?;
    }
    Ok(parameter)
}

fn read_of(raw: RawRead) -> Result<Read, Wrong> {
    Ok(match raw {
        RawRead::Time => Read::Time,
        RawRead::Actor { of } => Read::Actor(operand(of)),
        RawRead::Resource { of } => Read::Resource(operand(of)),
        RawRead::Request { of } => Read::Request(operand(of)),
        RawRead::Outcome { result, action } => {
            let all = [Outcome::Success, Outcome::Failure, Outcome::Denied, Outcome::Partial];
            let Some(result) = all.into_iter().find(|one| word(*one) == result) else {
                return wrong(
                    "read.result",
                    format!("`{result}` is no result: success, failure, denied and partial are"),
                );
            };
            Read::Outcome { result, action: action.map(operand) }
        }
    })
}

fn recipe(raw: RawReduce) -> Recipe {
    match raw {
        RawReduce::Repeated { least, within, by } => {
            Recipe::Repeated { least: operand(least), within: operand(within), by: operand(by) }
        }
        RawReduce::Sequence { failures, within } => {
            Recipe::Sequence { failures: operand(failures), within: operand(within) }
        }
        RawReduce::State { at } => Recipe::State { at: operand(at) },
        RawReduce::OutsideHours { from, to, offset } => {
            Recipe::OutsideHours { from: operand(from), to: operand(to), offset: operand(offset) }
        }
        RawReduce::Count { by } => Recipe::Count { by: operand(by) },
    }
}

fn condition((column, any_of): (String, Vec<String>)) -> Result<Condition, Wrong> {
    match Column::named(&column) {
        Some(column) => Ok(Condition { column, any_of: any_of.into_iter().map(operand).collect() }),
        None => wrong(format!("filter.{column}"), "there is no such column"),
    }
}

fn operand(text: String) -> Operand {
    match text.strip_prefix('$') {
        Some(name) => Operand::Of(name.to_owned()),
        None => Operand::Is(text),
    }
}

/// Whom or what a runbook is about is never written into it: it would name somebody in a file that everybody reads.
fn named(key: &str, of: &Operand) -> Result<(), Wrong> {
    match of {
        Operand::Of(_) => Ok(()),
        Operand::Is(_) => wrong(key, "name a parameter, as `$actor`: a runbook names nobody itself"),
    }
}

fn list_of(key: &str, names: &[String]) -> Result<Vec<Column>, Wrong> {
    if names.is_empty() {
        return wrong(key, "an answer has at least one column");
    }
    let column = |name: &String| {
        Column::named(name).ok_or_else(|| (key.to_owned(), format!("there is no column `{name}`")))
    };
    names.iter().map(column).collect()
}

fn name(key: &str, name: &str) -> Result<(), Wrong> {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let begins = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
    if begins && name.len() <= MAX_NAME_BYTES && name.bytes().all(is_plain) {
        return Ok(());
    }
    wrong(
        key,
        format!("a name has 1 to {MAX_NAME_BYTES} lower-case letters, digits and dashes, a letter first"),
    )
}

fn sentence(key: &str, text: &str, most: usize) -> Result<(), Wrong> {
    let is_odd = |letter: char| letter.is_control() && letter != '\n';
    if text.trim().is_empty() || text.len() > most || text.chars().any(is_odd) {
        return wrong(key, format!("a text of 1 to {most} bytes is needed, without control characters"));
    }
    Ok(())
}
