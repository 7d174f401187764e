//! What the witnesses of a client's policy hold of its log: fetched from each, verified, and compared with what is published and with
//! each other. Nothing that is said is believed without a signature, and nothing is pinned; two histories are kept as evidence
//! beside the client's pin.

use std::path::PathBuf;

use epigraph_client::conflict::Kept;
use epigraph_client::{Client, ClientError};
use epigraph_core::checkpoint::LogSigned;
use epigraph_core::policy::explain::Answer;
use epigraph_core::{Checkpoint, Origin, Policy, TreeHead};
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
    /// The note of what it holds.
    note: Vec<u8>,
    /// Where what convicts a key by it was kept.
    evidence: Vec<PathBuf>,
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

pub fn status(profile: Profile, terminal: Terminal) -> Outcome {
    let runtime = runtime::runtime().map_err(Failure::state)?;
    let origin = profile.origin.clone();
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
        "origin": origin.as_str(),
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
    let Row { name, address, answer, evidence, .. } = row;
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
        "evidence": evidence.iter().map(|path| path.display().to_string()).collect::<Vec<_>>(),
    })
}

/// The published head, as far as the log shows it, and what each witness answers; all at once. Then they are compared.
async fn ask_all(profile: Profile) -> Outcome<(Result<TreeHead, String>, Vec<Row>)> {
    let (log, tls, origin) = (profile.log()?, profile.tls()?, profile.origin.clone());
    let (policy, witnesses) = (profile.policy.clone(), profile.witnesses.clone());
    let client = profile.client()?;
    let published = published(&log, &origin, &policy).await;
    let mut asking = JoinSet::new();
    for (number, KnownWitness { name, address, server }) in witnesses.into_iter().enumerate() {
        let witness = peer::Witness::new(&address, &tls, &server).map_err(Failure::usage)?;
        let (origin, policy) = (origin.clone(), policy.clone());
        asking.spawn(async move {
            let (answer, note) = ask(&witness, &origin, &policy, &name).await;
            (number, Row { name, address, answer, note, evidence: Vec::new() })
        });
    }
    let mut rows = Vec::new();
    while let Some(asked) = asking.join_next().await {
        rows.push(asked.map_err(Failure::state)?);
    }
    rows.sort_by_key(|(number, _)| *number);
    let mut rows: Vec<Row> = rows.into_iter().map(|(_, row)| row).collect();
    compare(&client, published.as_ref().ok(), &mut rows).await;
    Ok((published.map(|(head, _)| head), rows))
}

async fn published(log: &peer::Log, origin: &Origin, policy: &Policy) -> Result<(TreeHead, Vec<u8>), String> {
    let note = log.checkpoint(origin.as_str()).await.map_err(|error| error.to_string())?;
    let checkpoint = Checkpoint::open(&note, policy).map_err(|error| error.to_string())?;
    match checkpoint.origin() == origin {
        true => Ok((checkpoint.head(), note.into())),
        false => Err("it is the checkpoint of another log".into()),
    }
}

async fn ask(witness: &peer::Witness, origin: &Origin, policy: &Policy, name: &str) -> (Answered, Vec<u8>) {
    let note = match witness.checkpoint(origin.as_str()).await {
        Ok(note) => note,
        Err(CallError::Refused(refusal)) if refusal.reason() == Reason::NotYetPublished => {
            return (Answered::Nothing, Vec::new());
        }
        Err(error) => return (Answered::Silent(error.to_string()), Vec::new()),
    };
    match verify(&note, origin, policy, name) {
        Ok((head, at)) => (Answered::Holds(head, at), note.into()),
        Err(why) => (Answered::Wrong(why), Vec::new()),
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

/// All that is held must be of one history with what is published; where that is not known, with the largest that is held. Two of
/// one size need no log to be compared.
async fn compare(client: &Client, published: Option<&(TreeHead, Vec<u8>)>, rows: &mut [Row]) {
    let held: Vec<(usize, TreeHead, Vec<u8>)> = rows
        .iter()
        .enumerate()
        .filter_map(|(place, row)| match &row.answer {
            Answered::Holds(head, _) => Some((place, *head, row.note.clone())),
            _ => None,
        })
        .collect();
    let largest =
        held.iter().max_by_key(|(_, head, _)| head.size).map(|(_, head, note)| (*head, note.clone()));
    let Some((against, note)) = published.cloned().or(largest) else { return };
    let mut unproven = Vec::new();
    for (place, head, own) in &held {
        // A beginning of what is published, or, if it is larger, what the log can prove when it is published.
        let compared = client.compare(own, &note).await;
        if compared.is_err() || published.is_none() || head.size > against.size {
            unproven.push((*place, head, own));
        }
        match compared {
            Ok(()) => {}
            Err(ClientError::NoProof { .. } | ClientError::Call(CallError::Refused(_)))
                if head.size > against.size => {}
            Err(ClientError::Call(error)) => {
                let why = format!(
                    "the log, which was to prove that this and what is published are of one history ({error})"
                );
                rows[*place].answer = Answered::Silent(why);
            }
            Err(error) => rows[*place].contradicts(&error),
        }
    }
    for (number, (place, head, own)) in unproven.iter().enumerate() {
        for (other, beside, theirs) in &unproven[number + 1..] {
            if beside.size == head.size
                && beside.root != head.root
                && let Err(error) = client.compare(own, theirs).await
            {
                [*place, *other].into_iter().for_each(|place| rows[place].contradicts(&error));
            }
        }
    }
}

impl Row {
    /// What it holds does not fit what others show. The first that was found stays.
    fn contradicts(&mut self, error: &ClientError) {
        if let ClientError::TwoHistories { kept, .. } = error
            && let Kept::Evidence(files) = &**kept
        {
            self.evidence.extend(files.iter().map(|(_, path)| path.clone()));
            self.evidence.sort();
            self.evidence.dedup();
        }
        if !matches!(self.answer, Answered::Wrong(_)) {
            self.answer = Answered::Wrong(error.to_string());
        }
    }
}
