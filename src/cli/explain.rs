//! What a policy makes of a checkpoint, as a table for people and as JSON: who signed it, when, and whether that is enough.
//!
//! It decides nothing; `epigraph_core::policy::explain` does. Names come from files that strangers may have written, so they
//! are escaped before a terminal sees them.

use epigraph_core::cosignature::CosignedAt;
use epigraph_core::note::Parsed;
use epigraph_core::policy::explain::{Age, Answer, Explanation};
use epigraph_core::{Clock, Policy};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::failure::{Failure, Outcome};
use crate::runtime::SystemClock;
use crate::terminal::Terminal;

/// How many strangers' names a message repeats: what a person reads.
const MAX_STRANGERS: usize = 8;

/// The age that was asked for, counted from now. Without witnesses there is nothing that could be too old: a bound that
/// nothing is held against would only look like one.
pub fn age(seconds: Option<u64>, policy: &Policy) -> Outcome<Option<Age>> {
    match seconds {
        Some(_) if policy.quorum().is_none() => Err(Failure::usage(
            "--max-age bounds the age of cosignatures, and this policy asks for none (quorum none): a log's own \
             signature carries no time",
        )),
        Some(seconds) => Ok(Some(Age { now: SystemClock.now(), seconds })),
        None => Ok(None),
    }
}

/// A table: the head, the log, each witness, each group, and the verdict.
pub fn show(explanation: &Explanation, strangers: &[String], terminal: Terminal) {
    let Explanation { origin, head, .. } = explanation;
    terminal.line(format_args!("the checkpoint of {origin} at size {}, root {}", head.size, head.root));
    let row = |kind: &str, name: &str, says: &str| {
        terminal.line(format_args!("  {kind:<9}{:<28} {says}", shown(name)));
    };
    for (vkey, answer) in &explanation.logs {
        row("log", vkey.name().as_str(), &words(answer, |()| "signed".to_owned()));
    }
    for witness in &explanation.witnesses {
        let at = |at: &CosignedAt| format!("cosigned at {}", date(*at));
        row("witness", &witness.name, &words(&witness.answer, at));
    }
    for group in &explanation.groups {
        let met = if group.is_met() { "met" } else { "not met" };
        row("group", &group.name, &format!("{met}: {} of {}, needs {}", group.have, group.of, group.need));
    }
    for stranger in strangers {
        row("unknown", stranger, "signed, with a key that the policy does not name: it does not count");
    }
    terminal.line("");
    let verdict = match (explanation.verdict(), &explanation.quorum) {
        (Ok(()), Some(quorum)) => {
            format!("{} the quorum {} is met", terminal.good("enough:"), shown(quorum))
        }
        (Ok(()), None) => {
            format!("{} the log signed, and the policy asks for no witness", terminal.good("enough:"))
        }
        (Err(_), _) => terminal.bad("not enough"),
    };
    terminal.line(verdict);
}

/// The same for programs.
pub fn object(explanation: &Explanation, strangers: &[String]) -> Value {
    let logs = explanation.logs.iter().map(|(vkey, answer)| {
        json!({ "name": vkey.name().as_str(), "vkey": vkey.to_string(), "answer": code(answer) })
    });
    let witnesses = explanation.witnesses.iter().map(|witness| {
        let at = match witness.answer {
            Answer::Signed(at) | Answer::OutsideAge(at) => Some(at.seconds().saturating_mul(1000)),
            Answer::NotSigned | Answer::BadSignature => None,
        };
        json!({
            "name": witness.name,
            "vkey": witness.vkey.to_string(),
            "answer": code(&witness.answer),
            "cosigned_at_ms": at,
        })
    });
    let groups = explanation
        .groups
        .iter()
        .map(|group| json!({ "name": group.name, "have": group.have, "need": group.need, "of": group.of }));
    json!({
        "logs": logs.collect::<Vec<_>>(),
        "witnesses": witnesses.collect::<Vec<_>>(),
        "groups": groups.collect::<Vec<_>>(),
        "unknown_signers": strangers,
        "quorum": explanation.quorum,
        "satisfied": explanation.satisfied(),
    })
}

/// Who else signed: the names in signature lines of keys that the policy does not have.
pub fn strangers(note: &[u8], policy: &Policy) -> Vec<String> {
    let Ok(parsed) = Parsed::parse(note) else { return Vec::new() };
    let mut strangers: Vec<String> = Vec::new();
    for line in parsed.signatures() {
        let mut known = policy.logs().iter().chain(policy.witnesses().iter().map(|witness| &witness.vkey));
        let known = known.any(|key| key.name().as_str() == line.name && key.id() == line.key_id);
        if !known && !strangers.contains(&line.name) {
            strangers.push(line.name.clone());
        }
    }
    strangers
}

/// What may have gone wrong if others signed than those who were asked for.
pub fn hint(strangers: &[String]) -> String {
    if strangers.is_empty() {
        return String::new();
    }
    let names: Vec<_> = strangers.iter().take(MAX_STRANGERS).map(|name| shown(name)).collect();
    let more = if strangers.len() > MAX_STRANGERS { " and others" } else { "" };
    format!(
        ". It also has signatures in the name of {}{more}, with keys that this policy does not have: it may have been \
         made for another policy",
        names.join(", ")
    )
}

/// A name, with whatever a terminal might obey escaped.
pub fn shown(name: &str) -> String {
    name.escape_debug().to_string()
}

fn words<T>(answer: &Answer<T>, signed: impl Fn(&T) -> String) -> String {
    match answer {
        Answer::Signed(value) => signed(value),
        Answer::OutsideAge(value) => format!("{}: outside the age that was asked for", signed(value)),
        Answer::NotSigned => "no signature".to_owned(),
        Answer::BadSignature => {
            "bad signature: the note was changed, or somebody else made the line".to_owned()
        }
    }
}

fn code<T>(answer: &Answer<T>) -> &'static str {
    match answer {
        Answer::Signed(_) => "signed",
        Answer::OutsideAge(_) => "outside_age",
        Answer::NotSigned => "not_signed",
        Answer::BadSignature => "bad_signature",
    }
}

/// The date; plain seconds where no calendar has one.
fn date(at: CosignedAt) -> String {
    let date = i64::try_from(at.seconds()).ok().and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok());
    date.and_then(|date| date.format(&Rfc3339).ok()).unwrap_or_else(|| format!("second {at}"))
}
