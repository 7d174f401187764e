//! `epigraph policy`: what a policy asks for and what it withstands, in words; no network, no state, no keys of one's own.

use std::path::Path;

use epigraph_core::checkpoint::CheckpointError;
use epigraph_core::evidence::MAX_EVIDENCE_BYTES;
use epigraph_core::policy::analysis::{Analysis, Overlap, overlap};
use epigraph_core::policy::{Member, WitnessSet};
use epigraph_core::tlog_proof::Receipt;
use epigraph_core::{Checkpoint, Policy};
use serde_json::json;

use crate::cli::explain::{age, hint, object, show, shown, strangers};
use crate::cli::verify::{read, read_policy};
use crate::cli::{PolicyCheck, PolicyExplain};
use crate::failure::{Failure, Outcome};
use crate::terminal::Terminal;

/// How many of the sets that may be down together are listed: a policy may have 200,000.
const MAX_SETS_LISTED: usize = 16;

pub fn check(args: &PolicyCheck, terminal: Terminal) -> Outcome {
    let policy = read_policy(&args.policy)?;
    match &args.new {
        Some(new) => check_change(&policy, &read_policy(new)?, args.faulty, terminal),
        None => check_one(&policy, args.faulty, terminal),
    }
}

fn check_one(policy: &Policy, faulty: usize, terminal: Terminal) -> Outcome {
    let analysis = policy.analyse();
    let withstands = analysis.withstands(faulty);
    terminal.line(format_args!(
        "{} and {}; {}",
        count(policy.logs().len(), "log"),
        count(policy.witnesses().len(), "witness"),
        asks_for(policy)
    ));
    terminal.line("");
    terminal.line(format_args!("  lying     {}", lying(policy, &analysis)));
    terminal.line(format_args!("  down      {}", down(&analysis)));
    terminal.line(format_args!("  single points of failure: {}", list(policy, analysis.single_points)));
    let sets = analysis.may_be_down.as_ref().ok();
    let listed: Vec<_> = sets.into_iter().flatten().take(MAX_SETS_LISTED).copied().collect();
    match &analysis.may_be_down {
        Err(error) => {
            terminal.line(format_args!("  may be down together: not listed, {error}"));
        }
        Ok(sets) => {
            let names: Vec<_> = listed.iter().map(|set| format!("({})", list(policy, *set))).collect();
            let more = sets.len().saturating_sub(names.len());
            let more = if more == 0 { String::new() } else { format!(" and {more} other sets") };
            terminal.line(format_args!("  may be down together: {}{more}", names.join(" or ")));
        }
    }
    terminal.line("");
    if withstands {
        let who = count(faulty, "lying witness");
        terminal.line(format_args!("{} the policy withstands {who}", terminal.good("yes:")));
    }
    terminal.object(&json!({
        "withstands": withstands,
        "faulty": faulty,
        "logs": policy.logs().iter().map(|log| log.name().as_str()).collect::<Vec<_>>(),
        "witnesses": policy.witnesses().iter().map(|witness| &witness.name).collect::<Vec<_>>(),
        "quorum": policy.quorum().map(|quorum| policy.name(quorum)),
        "colluders": policy.names(analysis.colluders),
        "may_lie": may_lie(&analysis),
        "blockers": analysis.blockers.map(|blockers| policy.names(blockers)),
        "may_miss": analysis.may_miss(),
        "single_points": policy.names(analysis.single_points),
        "may_be_down": sets.map(|_| listed.iter().map(|set| policy.names(*set)).collect::<Vec<_>>()),
        "may_be_down_count": sets.map(Vec::len),
    }));
    if withstands {
        return Ok(());
    }
    let who = count(faulty, "lying witness");
    Err(Failure::no(match may_lie(&analysis) {
        _ if policy.quorum().is_none() => {
            "the policy asks for no witness: the log alone can show two people two \
            histories, and both would verify. Name witnesses and a quorum"
                .to_owned()
        }
        None => format!(
            "the policy does not withstand {who}: two of its quorums have no witness in common, so that two people can be \
             shown two histories though no witness lies. Ask for more witnesses"
        ),
        Some(_) => format!(
            "the policy does not withstand {who}: {} together suffice for two histories. Ask for more witnesses",
            list(policy, analysis.colluders)
        ),
    }))
}

/// How many witnesses may lie, whichever they are; `None` if not even honest ones prevent two histories.
fn may_lie(analysis: &Analysis) -> Option<usize> {
    analysis.colluders.len().checked_sub(1)
}

fn lying(policy: &Policy, analysis: &Analysis) -> String {
    let who = list(policy, analysis.colluders);
    match may_lie(analysis) {
        _ if policy.quorum().is_none() => {
            "no witness is asked: the log alone can show two histories".to_owned()
        }
        None => {
            "two quorums have nobody in common: two histories can be shown though no witness lies".to_owned()
        }
        Some(0) => format!("{who} alone can let a lying log show two histories: nobody may lie"),
        Some(most) => format!(
            "it takes {} to let a lying log show two histories, for instance {who}: any {most} may lie",
            analysis.colluders.len()
        ),
    }
}

fn down(analysis: &Analysis) -> String {
    match analysis.may_miss() {
        None => "no witness is asked: it does not matter which are down".to_owned(),
        Some(0) => "some must never be down: see the single points of failure".to_owned(),
        Some(most) => format!("any {most} may be down, and checkpoints are still published"),
    }
}

fn check_change(old: &Policy, new: &Policy, faulty: usize, terminal: Terminal) -> Outcome {
    let overlap = overlap(old, new).map_err(Failure::usage)?;
    let Overlap { common, old_quorum, new_quorum } = &overlap;
    let withstands = overlap.withstands(faulty);
    let pair = least_common(old, new, &overlap);
    let who = count(faulty, "lying witness");
    if withstands {
        terminal.line(format_args!(
            "{} the change withstands {who}: every old and every new quorum have {} or more in common; the least it can \
             be: {pair}",
            terminal.good("yes:"),
            count(common.len(), "witness")
        ));
    }
    terminal.object(&json!({
        "withstands": withstands,
        "faulty": faulty,
        "common": common.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "old_quorum": old.names(*old_quorum),
        "new_quorum": new.names(*new_quorum),
    }));
    if withstands {
        return Ok(());
    }
    Err(Failure::no(format!(
        "the change of policy does not withstand {who}: {pair}, so that people with the old policy and people with the \
         new one could be shown two histories. Change fewer witnesses at a time"
    )))
}

/// The two quorums that have the least in common, in words.
pub fn least_common(old: &Policy, new: &Policy, overlap: &Overlap) -> String {
    let Overlap { common, old_quorum, new_quorum } = overlap;
    let shared: WitnessSet = common.iter().filter_map(|vkey| old.place_of(vkey)).collect();
    let shared = if shared.is_empty() { "nobody".to_owned() } else { list(old, shared) };
    format!(
        "the old quorum ({}) and the new quorum ({}) have {shared} in common",
        list(old, *old_quorum),
        list(new, *new_quorum)
    )
}

pub fn explain(args: &PolicyExplain, terminal: Terminal) -> Outcome {
    let policy = read_policy(&args.policy)?;
    match &args.on {
        Some(file) => explain_on(&policy, file, args.max_age, terminal),
        None => {
            in_words(&policy, terminal);
            Ok(())
        }
    }
}

fn in_words(policy: &Policy, terminal: Terminal) {
    match policy.logs() {
        [log] => terminal.line(format_args!("It trusts one log, by its key: {log}")),
        logs => {
            terminal.line("It trusts each of these logs, by their keys:");
            logs.iter().for_each(|log| terminal.line(format_args!("  {log}")));
        }
    }
    let mut asked = WitnessSet::EMPTY;
    match policy.quorum() {
        None => terminal.line(
            "A checkpoint counts once its log signed it. No witness is asked, so that it does not show that others see \
             the same log.",
        ),
        Some(quorum) => {
            terminal.line(format_args!(
                "A checkpoint counts once its log signed it and this is met, by witnesses who cosign only what extends \
                 what they saw:"
            ));
            let mut left = vec![(quorum, 1)];
            while let Some((member, depth)) = left.pop() {
                let (indent, name) = ("  ".repeat(depth), shown(policy.name(member)));
                match member {
                    Member::Witness(place) => {
                        asked = asked.union([place].into_iter().collect());
                        let vkey = policy.witnesses().get(place).map(|witness| witness.vkey.to_string());
                        terminal.line(format_args!(
                            "{indent}{name}: a witness, by its key {}",
                            vkey.unwrap_or_default()
                        ));
                    }
                    Member::Group(place) => {
                        let Some(group) = policy.groups().get(place) else { continue };
                        let (need, of) = (group.threshold, group.members.len());
                        terminal.line(format_args!("{indent}{name}: {need} of these {of}"));
                        left.extend(group.members.iter().rev().map(|member| (*member, depth + 1)));
                    }
                }
            }
        }
    }
    let unused = WitnessSet::first(policy.witnesses().len()).without(asked);
    if !unused.is_empty() {
        terminal.line(format_args!("Named, but of no consequence: {}", list(policy, unused)));
    }
    let groups = policy.groups().iter().map(|group| {
        let members: Vec<_> = group.members.iter().map(|member| policy.name(*member)).collect();
        json!({ "name": group.name, "need": group.threshold, "members": members })
    });
    let witnesses = policy
        .witnesses()
        .iter()
        .map(|witness| json!({ "name": witness.name, "vkey": witness.vkey.to_string() }));
    terminal.object(&json!({
        "logs": policy.logs().iter().map(ToString::to_string).collect::<Vec<_>>(),
        "witnesses": witnesses.collect::<Vec<_>>(),
        "groups": groups.collect::<Vec<_>>(),
        "quorum": policy.quorum().map(|quorum| policy.name(quorum)),
        "not_asked": policy.names(unused),
    }));
}

fn explain_on(policy: &Policy, file: &Path, max_age: Option<u64>, terminal: Terminal) -> Outcome {
    let age = age(max_age, policy)?;
    let bytes = read(file, MAX_EVIDENCE_BYTES)?;
    let no = |error: &dyn std::fmt::Display| Failure::no(format!("{}: {error}", file.display()));
    let receipt = if Receipt::recognise(&bytes) {
        Some(Receipt::parse(&bytes).map_err(|error| no(&error))?)
    } else {
        None
    };
    let note = receipt.as_ref().map_or(bytes.as_slice(), |receipt| &receipt.checkpoint);
    let explanation = Checkpoint::explain(note, policy, age).map_err(|error| no(&error))?;
    let strangers = strangers(note, policy);
    show(&explanation, &strangers, terminal);
    if receipt.is_some() {
        terminal
            .line("This is about the checkpoint in the receipt; whether it proves the entry, `verify` says.");
    }
    let mut report = object(&explanation, &strangers);
    report["origin"] = json!(explanation.origin.as_str());
    report["size"] = json!(explanation.head.size.get());
    report["root"] = json!(explanation.head.root.to_string());
    terminal.object(&report);
    explanation.verdict().map_err(|error| match error {
        CheckpointError::Quorum(_) => no(&format_args!("{error}{}", hint(&strangers))),
        error => no(&error),
    })
}

fn asks_for(policy: &Policy) -> String {
    match policy.quorum() {
        None => "a checkpoint counts once the log signed it, and no witness is asked".to_owned(),
        Some(Member::Witness(place)) => {
            format!("a checkpoint counts once {} cosigned it", list(policy, [place].into_iter().collect()))
        }
        Some(Member::Group(place)) => match policy.groups().get(place) {
            Some(group) if group.members.iter().all(|member| matches!(member, Member::Witness(_))) => {
                format!(
                    "a checkpoint counts once {} of {} cosigned it",
                    group.threshold,
                    count(group.members.len(), "witness")
                )
            }
            _ => format!(
                "a checkpoint counts once the quorum {} is met: `policy explain` says how",
                shown(policy.name(Member::Group(place)))
            ),
        },
    }
}

fn list(policy: &Policy, set: WitnessSet) -> String {
    let names: Vec<_> = policy.names(set).into_iter().map(shown).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

pub fn count(number: usize, what: &str) -> String {
    let plural = if what.ends_with('s') { "es" } else { "s" };
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}{plural}") }
}
