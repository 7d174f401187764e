//! What the witnesses of a client's policy hold of its log: fetched from each, and verified. Nothing that is said is believed without a
//! signature, and nothing is pinned.

use epigraph_core::checkpoint::LogSigned;
use epigraph_core::policy::explain::Answer;
use epigraph_core::proof::ConsistencyProof;
use epigraph_core::{Checkpoint, Origin, Policy, TreeHead, TreeSize};
use epigraph_rpc::{CallError, Reason, peer};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::age;
use crate::failure::{Failure, Outcome};
use crate::profile::{KnownWitness, Profile};
use crate::runtime;
use crate::terminal::Terminal;

/// A witness, and what became of asking it.
struct Row {
    name: String,
    address: String,
    answer: Answered,
}

enum Answered {
    /// A head of this log under the log's signature and the witness's own, and when it cosigned, in POSIX seconds.
    Holds(TreeHead, u64),
    /// It has cosigned nothing of this log.
    Nothing,
    /// It did not answer, or refused.
    Silent(String),
    /// What it answered is not what a witness of this policy holds of this log.
    Wrong(String),
}

pub fn status(profile: &Profile, terminal: Terminal) -> Outcome {
    let runtime = runtime::runtime().map_err(Failure::state)?;
    let (published, rows) = runtime.block_on(ask_all(profile))?;
    let now = runtime::clock().now().0 / 1_000;
    match &published {
        Ok(head) => terminal.line(format_args!(
            "the log has published size {}, root {}",
            terminal.bold(head.size),
            head.root
        )),
        Err(why) => terminal.line(format_args!("the log does not show what it has published: {why}")),
    }
    let published = published.ok();
    for Row { name, answer, .. } in &rows {
        let says = match answer {
            Answered::Holds(head, at) => {
                let cosigned = age(now.saturating_sub(*at));
                format!("holds size {}, cosigned {cosigned} ago{}", head.size, distance(*head, published))
            }
            Answered::Nothing => "has cosigned nothing of this log".to_owned(),
            Answered::Silent(why) => format!("{} {why}", terminal.bad("no answer:")),
            Answered::Wrong(why) => format!("{} {why}", terminal.bad("not believed:")),
        };
        terminal.line(format_args!("  {name:<28} {says}"));
    }
    let objects: Vec<Value> = rows.iter().map(|row| object(row, published)).collect();
    terminal.object(&json!({
        "origin": profile.origin.as_str(),
        "published": published.map(|head| head.size.get()),
        "witnesses": objects,
    }));
    let named = |is: fn(&Answered) -> bool| {
        let names = rows.iter().filter(|row| is(&row.answer)).map(|row| row.name.as_str());
        names.collect::<Vec<_>>().join(", ")
    };
    let wrong = named(|answer| matches!(answer, Answered::Wrong(_)));
    let silent = named(|answer| matches!(answer, Answered::Silent(_)));
    match (wrong.is_empty(), silent.is_empty()) {
        (false, _) => Err(Failure::no(format!("what these answered is not believed: {wrong}"))),
        (true, false) => Err(Failure::unreachable(format!("these did not answer: {silent}"))),
        (true, true) => Ok(()),
    }
}

/// How far a head is from the published one.
fn distance(held: TreeHead, published: Option<TreeHead>) -> String {
    let Some(published) = published else { return String::new() };
    match (published.size.get().checked_sub(held.size.get()), held.size.get()) {
        (Some(0), _) => ", which is the published one".to_owned(),
        (Some(lag), _) => format!(", {lag} entries behind the published one"),
        (None, _) => ", more than is published yet".to_owned(),
    }
}

fn object(row: &Row, published: Option<TreeHead>) -> Value {
    let Row { name, address, answer } = row;
    let (held, error) = match answer {
        Answered::Holds(head, at) => (Some((head, at)), None),
        Answered::Nothing => (None, None),
        Answered::Silent(why) | Answered::Wrong(why) => (None, Some(why)),
    };
    json!({
        "name": name,
        "address": address,
        "verified": held.is_some(),
        "size": held.map(|(head, _)| head.size.get()),
        "root": held.map(|(head, _)| head.root.to_string()),
        "cosigned_at_ms": held.map(|(_, at)| at.saturating_mul(1_000)),
        "lag_entries": held.zip(published).map(|((head, _), newest)| newest.size.get().saturating_sub(head.size.get())),
        "error": error,
    })
}

/// The published head, as far as the log shows it, and what each witness answers; all at once.
async fn ask_all(profile: &Profile) -> Outcome<(Result<TreeHead, String>, Vec<Row>)> {
    let Profile { origin, policy, witnesses, .. } = profile;
    let (log, tls) = (profile.log()?, profile.tls()?);
    let published = published(&log, origin, policy).await;
    let mut asking = JoinSet::new();
    for (number, KnownWitness { name, address, server }) in witnesses.iter().enumerate() {
        let witness = peer::Witness::new(address, &tls, server).map_err(Failure::usage)?;
        let (origin, policy, log) = (origin.clone(), policy.clone(), log.clone());
        let (name, address, newest) = (name.clone(), address.clone(), published.clone().ok());
        asking.spawn(async move {
            let answer = match ask(&witness, &origin, &policy, &name).await {
                Answered::Holds(held, at) => match of_one_history(&log, &origin, held, newest).await {
                    Ok(()) => Answered::Holds(held, at),
                    Err(otherwise) => otherwise,
                },
                answer => answer,
            };
            (number, Row { name, address, answer })
        });
    }
    let mut rows = Vec::new();
    while let Some(asked) = asking.join_next().await {
        rows.push(asked.map_err(Failure::state)?);
    }
    rows.sort_by_key(|(number, _)| *number);
    Ok((published, rows.into_iter().map(|(_, row)| row).collect()))
}

async fn published(log: &peer::Log, origin: &Origin, policy: &Policy) -> Result<TreeHead, String> {
    let note = log.checkpoint(origin.as_str()).await.map_err(|error| error.to_string())?;
    let checkpoint = Checkpoint::open(&note, policy).map_err(|error| error.to_string())?;
    match checkpoint.origin() == origin {
        true => Ok(checkpoint.head()),
        false => Err("it is the checkpoint of another log".into()),
    }
}

async fn ask(witness: &peer::Witness, origin: &Origin, policy: &Policy, name: &str) -> Answered {
    let note = match witness.checkpoint(origin.as_str()).await {
        Ok(note) => note,
        Err(CallError::Refused(refusal)) if refusal.reason() == Reason::NotYetPublished => {
            return Answered::Nothing;
        }
        Err(error) => return Answered::Silent(error.to_string()),
    };
    match verify(&note, origin, policy, name) {
        Ok((head, at)) => Answered::Holds(head, at),
        Err(why) => Answered::Wrong(why),
    }
}

/// The log's own signature and this witness's, both under the policy.
fn verify(note: &[u8], origin: &Origin, policy: &Policy, name: &str) -> Result<(TreeHead, u64), String> {
    let signed: LogSigned = Checkpoint::open_log_signed(note, policy).map_err(|error| error.to_string())?;
    let explained = Checkpoint::explain(note, policy, None).map_err(|error| error.to_string())?;
    if explained.origin != *origin {
        return Err(format!("it is a checkpoint of {}", explained.origin));
    }
    let own = explained.witnesses.iter().find(|witness| witness.vkey.name().as_str() == name);
    match own.map(|witness| &witness.answer) {
        None => Err("the policy has no witness whose vkey has this name".into()),
        Some(Answer::Signed(at)) => Ok((signed.head(), at.seconds())),
        Some(_) => Err("its own cosignature is not under what it shows".into()),
    }
}

/// What is held must be a beginning of what is published, or the same. A larger one can be compared when it is published.
async fn of_one_history(
    log: &peer::Log,
    origin: &Origin,
    held: TreeHead,
    published: Option<TreeHead>,
) -> Result<(), Answered> {
    let Some(published) = published.filter(|newest| newest.size >= held.size) else { return Ok(()) };
    let two = |why: &str| {
        Answered::Wrong(format!(
            "it holds size {} with root {}, and the log has published size {} with root {}, {why}: two histories may be \
             signed with the log's key. Keep both (`epigraph checkpoint` keeps evidence where the log convicts itself)",
            held.size, held.root, published.size, published.root
        ))
    };
    if held.size == published.size {
        return if held.root == published.root { Ok(()) } else { Err(two("another tree of the same size")) };
    }
    if held.size == TreeSize::ZERO {
        return Ok(());
    }
    let hashes = log.consistency_proof(origin.as_str(), held.size, published.size).await;
    let hashes = hashes.map_err(|error| match error {
        CallError::Refused(refusal) => {
            two(&format!("and refuses to prove that this extends that ({refusal})"))
        }
        error => Answered::Silent(format!("the log, which was to prove that it extends this ({error})")),
    })?;
    let proof = ConsistencyProof { old: held.size, new: published.size, hashes };
    proof
        .verify(&held.root, &published.root)
        .map_err(|error| two(&format!("which does not extend it ({error})")))
}
