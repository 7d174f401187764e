//! What a reader gives a runbook, judged by the types of its parameters, and the scans that come of it.
//!
//! Nothing that is given is ever part of a language: it is a word of a list, a number, a time, or an exact id that is compared whole.

use std::collections::BTreeMap;
use std::ops::Deref;

use epigraph_event::fit::MAX_TEXT_BYTES;
use thiserror::Error;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Condition, Operand, Parameter, Read, Recipe, Runbook, Type};
use crate::query::row::Value;
use crate::query::scan::Clause;
use crate::query::{Access, Column, Filter, Pseudonym, Reduce, Window};

/// What stands before a token where an id could stand.
pub const TOKEN: &str = "token:";

/// What a parameter is given.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Given {
    /// Somebody or something, by its token.
    Token(Pseudonym),
    /// Likewise, by its exact id. Whose it is says the type.
    Id(String),
    /// A word, or the id of a request.
    Text(String),
    /// A whole number.
    Integer(i64),
    /// A span of time.
    Seconds(u64),
    /// A time, in nanoseconds since 1970-01-01T00:00:00Z; none for the end of the window.
    Time(Option<i64>),
}

impl Given {
    /// In the one spelling that it has here.
    pub fn spelt(&self) -> String {
        match self {
            Given::Token(token) => format!("{TOKEN}{token}"),
            Given::Id(text) | Given::Text(text) => text.clone(),
            Given::Integer(number) => number.to_string(),
            Given::Seconds(seconds) => format!("{seconds}s"),
            Given::Time(None) => "end".into(),
            Given::Time(Some(at_ns)) => at_ns.to_string(),
        }
    }
}

/// Whose pseudonym has to be found before a scan can be made.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Wanted {
    /// The column that it is looked for in: actor, session, resource or address.
    pub column: Column,
    /// The token or the id.
    pub given: Given,
}

/// What is wrong with what was given.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum BadParameter {
    /// The runbook has none of this name.
    #[error("`{0}` has no parameter `{1}`; it has {2}")]
    Unknown(String, String, String),
    /// It was not given.
    #[error("`{0}` is missing: {1}")]
    Missing(String, String),
    /// It is not of its type.
    #[error("`{0}` is not what it has to be: {1}")]
    Type(String, String),
}

/// A runbook, borrowed or shared, with its parameters filled in.
#[derive(Clone, Debug)]
pub struct Bound<R> {
    runbook: R,
    values: BTreeMap<String, Given>,
}

impl<R: Deref<Target = Runbook>> Bound<R> {
    /// Judges what was given.
    pub fn new(runbook: R, given: &BTreeMap<String, String>) -> Result<Bound<R>, BadParameter> {
        if let Some(name) = given.keys().find(|name| runbook.parameter(name).is_none()) {
            let known: Vec<&str> = runbook.parameters.iter().map(|one| one.name.as_str()).collect();
            let known = if known.is_empty() { "none".into() } else { known.join(", ") };
            return Err(BadParameter::Unknown(runbook.id.clone(), shown(name), known));
        }
        let mut values = BTreeMap::new();
        for parameter in &runbook.parameters {
            let text = given.get(&parameter.name).or(parameter.default.as_ref());
            let missing = || BadParameter::Missing(parameter.name.clone(), parameter.description.clone());
            values.insert(parameter.name.clone(), value(parameter, text.ok_or_else(missing)?)?);
        }
        Ok(Bound { runbook, values })
    }

    /// The runbook.
    pub fn runbook(&self) -> &R {
        &self.runbook
    }

    /// What was given, defaults filled in, in one spelling: two runs with the same are the same run.
    pub fn canonical(&self) -> Vec<(String, String)> {
        self.values.iter().map(|(name, given)| (name.clone(), given.spelt())).collect()
    }

    /// Whose pseudonyms are needed.
    pub fn wanted(&self) -> Vec<Wanted> {
        self.runbook.parameters.iter().filter_map(|parameter| self.wanted_of(parameter)).collect()
    }

    fn wanted_of(&self, parameter: &Parameter) -> Option<Wanted> {
        let column = match parameter.kind {
            Type::Actor => Column::Actor,
            Type::Session => Column::Session,
            Type::Resource => Column::Resource,
            Type::Address => Column::Address,
            _ => return None,
        };
        Some(Wanted { column, given: self.values.get(&parameter.name)?.clone() })
    }

    /// By which indexes it reads; `found` has what [`Bound::wanted`] asked for. A read of somebody who is not known finds nothing, and
    /// is left out.
    pub fn reads(&self, found: &BTreeMap<Wanted, Vec<Pseudonym>>) -> Vec<Access> {
        let tokens = |operand: &Operand| self.tokens(operand, found);
        let read = |read: &Read| {
            Some(match read {
                Read::Time => Access::Time,
                Read::Actor(of) => Access::Actor(Some(tokens(of)).filter(|all| !all.is_empty())?),
                Read::Resource(of) => Access::Resource(Some(tokens(of)).filter(|all| !all.is_empty())?),
                Read::Request(of) => Access::Request(self.text(of)),
                Read::Outcome { result, action } => {
                    Access::Outcome { result: *result, action: action.as_ref().map(|of| self.text(of)) }
                }
            })
        };
        self.runbook.reads.iter().filter_map(read).collect()
    }

    /// What must hold of each row; none if nothing can, because it asks for somebody who is not known.
    pub fn filter(&self, found: &BTreeMap<Wanted, Vec<Pseudonym>>) -> Option<Filter> {
        let clause = |Condition { column, any_of }: &Condition| {
            let values = |operand: &Operand| {
                if column.is_pseudonym() {
                    self.tokens(operand, found).into_iter().map(Value::Pseudonym).collect()
                } else {
                    vec![Value::Text(self.text(operand))]
                }
            };
            let any_of: Vec<Value> = any_of.iter().flat_map(values).collect();
            (!any_of.is_empty()).then_some(Clause { column: *column, any_of })
        };
        Some(Filter(self.runbook.filter.iter().map(clause).collect::<Option<_>>()?))
    }

    /// What is made of the rows of this window. A count withholds nothing yet.
    pub fn reduce(&self, window: &Window) -> Result<Option<Reduce>, BadParameter> {
        let Some(recipe) = &self.runbook.reduce else { return Ok(None) };
        let no = |name: &str, why: &str| Err(BadParameter::Type(name.into(), why.into()));
        Ok(Some(match recipe {
            Recipe::Repeated { least, within, by } => {
                let least = self.number("least", least)?;
                if least < 2 {
                    return no("least", "once is not repeated: at least 2");
                }
                let Some(by) = Column::named(&self.text(by)) else {
                    return no("by", "there is no such column");
                };
                Reduce::Repeated { least: least.unsigned_abs(), within_ns: self.span("within", within)?, by }
            }
            Recipe::Sequence { failures, within } => {
                let failures = self.number("failures", failures)?;
                if failures < 1 {
                    return no("failures", "at least 1");
                }
                Reduce::Sequence {
                    failures: failures.unsigned_abs(),
                    within_ns: self.span("within", within)?,
                }
            }
            Recipe::State { at } => match self.get("at", at, &Type::Time)? {
                Given::Time(at) => Reduce::State { at_ns: at.unwrap_or(window.to_ns()).min(window.to_ns()) },
                _ => return no("at", "a time is needed"),
            },
            Recipe::OutsideHours { from, to, offset } => {
                let hour = |name, operand| self.number(name, operand);
                let (from, to, offset) = (hour("from", from)?, hour("to", to)?, hour("offset", offset)?);
                let in_day = (0..24).contains(&from) && from < to && to <= 24;
                match (u8::try_from(from), u8::try_from(to), i32::try_from(offset)) {
                    (Ok(from_hour), Ok(to_hour), Ok(offset_minutes)) if in_day && offset.abs() <= 14 * 60 => {
                        Reduce::OutsideHours { from_hour, to_hour, offset_minutes }
                    }
                    _ => {
                        return no(
                            "hours",
                            "a day begins at 0 to 23, ends after that, at most at 24, and no clock is 14 hours off",
                        );
                    }
                }
            }
            Recipe::Count { by } => {
                let Some(by) = Column::named(&self.text(by)) else {
                    return no("by", "there is no such column");
                };
                Reduce::Count { by, least: 1 }
            }
        }))
    }

    fn tokens(&self, operand: &Operand, found: &BTreeMap<Wanted, Vec<Pseudonym>>) -> Vec<Pseudonym> {
        let Operand::Of(name) = operand else { return Vec::new() };
        let wanted = self.runbook.parameter(name).and_then(|parameter| self.wanted_of(parameter));
        wanted.and_then(|wanted| found.get(&wanted)).cloned().unwrap_or_default()
    }

    fn text(&self, operand: &Operand) -> String {
        match operand {
            Operand::Is(text) => text.clone(),
            Operand::Of(name) => match self.values.get(name) {
                Some(Given::Text(text)) => text.clone(),
                _ => String::new(),
            },
        }
    }

    fn get(&self, name: &str, operand: &Operand, kind: &Type) -> Result<Given, BadParameter> {
        match operand {
            Operand::Of(of) => Ok(self.values.get(of).cloned().unwrap_or(Given::Text(String::new()))),
            Operand::Is(text) => {
                let (name, description) = (name.to_owned(), String::new());
                value(&Parameter { name, description, kind: kind.clone(), default: None }, text)
            }
        }
    }

    fn number(&self, name: &str, operand: &Operand) -> Result<i64, BadParameter> {
        match self.get(name, operand, &Type::Integer { min: i64::MIN, max: i64::MAX })? {
            Given::Integer(number) => Ok(number),
            _ => Err(BadParameter::Type(name.into(), "a whole number is needed".into())),
        }
    }

    fn span(&self, name: &str, operand: &Operand) -> Result<u64, BadParameter> {
        match self.get(name, operand, &Type::Duration { min_s: 0, max_s: u64::MAX / 1_000_000_000 })? {
            Given::Seconds(seconds) => Ok(seconds.saturating_mul(1_000_000_000)),
            _ => Err(BadParameter::Type(name.into(), "a duration such as 10m is needed".into())),
        }
    }
}

/// A parameter's value from its text.
pub fn value(parameter: &Parameter, text: &str) -> Result<Given, BadParameter> {
    let no = |why: String| BadParameter::Type(parameter.name.clone(), why);
    match &parameter.kind {
        Type::Actor | Type::Session | Type::Resource | Type::Address => match text.strip_prefix(TOKEN) {
            Some(digits) => token(digits)
                .map(Given::Token)
                .ok_or_else(|| no(format!("a token is `{TOKEN}` and 32 lower-case hexadecimal digits"))),
            None => exact(text).map(|text| Given::Id(text.into())).map_err(no),
        },
        Type::Request => exact(text).map(|text| Given::Text(text.into())).map_err(no),
        Type::Word(words) if words.iter().any(|word| word == text) => Ok(Given::Text(text.into())),
        Type::Word(words) => Err(no(format!("one of {}", words.join(", ")))),
        Type::Integer { min, max } => match text.parse::<i64>() {
            Ok(number) if (*min..=*max).contains(&number) && number.to_string() == text => {
                Ok(Given::Integer(number))
            }
            _ => Err(no(format!("a whole number from {min} to {max}"))),
        },
        Type::Duration { min_s, max_s } => match seconds(text) {
            Some(seconds) if (*min_s..=*max_s).contains(&seconds) => Ok(Given::Seconds(seconds)),
            _ => Err(no(format!("a duration such as 90s, 10m, 2h or 7d, from {min_s} to {max_s} seconds"))),
        },
        Type::Time if text == "end" => Ok(Given::Time(None)),
        Type::Time => time(text)
            .map(|at| Given::Time(Some(at)))
            .ok_or_else(|| no("a time such as 2024-07-30T21:53:13Z, a date, or `end`".into())),
    }
}

/// The least and the most of a type, and each of its words: all that have to work if anything does.
pub(super) fn extremes(kind: &Type) -> Vec<String> {
    match kind {
        Type::Word(words) => words.clone(),
        Type::Integer { min, max } => vec![min.to_string(), max.to_string()],
        Type::Duration { min_s, max_s } => vec![format!("{min_s}s"), format!("{max_s}s")],
        Type::Time => vec!["end".into()],
        Type::Actor | Type::Session | Type::Resource | Type::Address | Type::Request => Vec::new(),
    }
}

/// A span in seconds from `90s`, `10m`, `2h` or `7d`.
pub(super) fn seconds(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return None,
    };
    let is_plain = !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit());
    number.parse::<u64>().ok().filter(|_| is_plain)?.checked_mul(unit)
}

/// A time in nanoseconds since 1970-01-01T00:00:00Z as people write it.
pub fn instant(at_ns: i64) -> String {
    let at = OffsetDateTime::from_unix_timestamp_nanos(at_ns.into());
    at.ok().and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_else(|| at_ns.to_string())
}

/// A time from `2024-07-30T21:53:13Z`, or from a date: its midnight, UTC. In nanoseconds since 1970-01-01T00:00:00Z.
pub fn time(text: &str) -> Option<i64> {
    let parse = |text: &str| OffsetDateTime::parse(text, &Rfc3339).ok();
    let at = parse(text).or_else(|| parse(&format!("{text}T00:00:00Z")))?;
    i64::try_from(at.unix_timestamp_nanos()).ok()
}

fn token(digits: &str) -> Option<Pseudonym> {
    let is_plain = |digit: u8| matches!(digit, b'0'..=b'9' | b'a'..=b'f');
    let is_token = digits.len() == 2 * Pseudonym::LEN && digits.bytes().all(is_plain);
    let bytes = u128::from_str_radix(digits, 16).ok().filter(|_| is_token)?;
    Some(Pseudonym::from_bytes(bytes.to_be_bytes()))
}

/// An exact id. It is compared whole and is part of no language; what looks like a pattern or a quote is refused all the same, so that
/// nobody takes the empty answer for one about many. Who really means such an id gives its token.
pub(crate) fn exact(text: &str) -> Result<&str, String> {
    if text.is_empty() || text.len() > MAX_TEXT_BYTES {
        return Err(format!("an exact id has 1 to {MAX_TEXT_BYTES} bytes"));
    }
    if text.trim() != text || text.chars().any(|letter| letter.is_control() || is_unseen(letter)) {
        return Err("an exact id has no control or invisible characters, and no blanks around it".into());
    }
    if text.contains(['*', '?', '%', '"', '\'', '`', ';', '\\', '<', '>', '{', '}', '|']) {
        return Err(format!(
            "ids are compared exactly: there are no patterns and no quotes. For an id that has such a character give its token, `{TOKEN}…`"
        ));
    }
    Ok(text)
}

/// Letters that nobody sees, and those that turn the direction of reading: two ids that look alike must be alike.
fn is_unseen(letter: char) -> bool {
    matches!(letter, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff0}'..='\u{ffff}' | '\u{e0000}'..='\u{e0fff}')
}

/// A text of a reader, for an error: short, and without anything that moves a cursor.
pub(crate) fn shown(text: &str) -> String {
    let letters = text
        .chars()
        .take(40)
        .map(|letter| if letter.is_control() || is_unseen(letter) { '?' } else { letter });
    letters.collect()
}
