//! `epigraph audit` and `epigraph events`: enrols sources, tells where each stands, and fetches events with everything that proves them.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use epigraph_audit::source::Enrolled;
use epigraph_core::{Hash, LeafIndex, SourceVKey, UnixMillis};
use epigraph_event::Bundle;
use epigraph_event::bundle::Proven;
use epigraph_event::decode::k8s;
use epigraph_rpc::SpiffeId;
use epigraph_rpc::peer::audit::{Audit, SourceStatus, WhichEvent};
use serde_json::{Value, json};

use super::{ConfigFile, Profile as ProfileDir};
use crate::config::audit::AuditConfig;
use crate::failure::{Failure, Outcome};
use crate::profile::{self, Profile};
use crate::runtime;
use crate::state;
use crate::state::rekey::Done;
use crate::terminal::Terminal;

/// Events of one id that are fetched: whoever has more looks for them by leaf or number.
const MAX_EVENTS: usize = 100;

/// The widest column for names of sources; a longer name moves what follows it.
const MAX_NAME_WIDTH: usize = 48;

/// What the name of a file with an event ends in.
pub const EXTENSION: &str = "epigraph-event";

#[derive(Subcommand)]
pub enum AuditCommand {
    /// Add a source to the list of an audit service, which may be running
    Enrol(Box<AuditEnrol>),
    /// Wrap every key of an audit service, which must be stopped, under a new key; what was committed to stays as it is
    Rekey(ConfigFile),
    /// Ask an audit service where each of its sources stands: events, gaps, last seen, lag
    Status(AuditStatus),
}

#[derive(Args)]
pub struct AuditEnrol {
    #[command(flatten)]
    pub config: ConfigFile,

    /// The public key under which the source signs
    #[arg(long, value_name = "VKEY")]
    pub vkey: SourceVKey,

    /// Who answers for it: a team, and how to reach it
    #[arg(long, value_name = "TEXT")]
    pub owner: String,

    /// The one collector that may send for it: spiffe://audit.example/epigraph/collector/NAME
    #[arg(long, value_name = "URI")]
    pub collector: SpiffeId,

    /// It says at least this often that it is alive, in milliseconds; 0 if it is run by hand or by a timer, and its silence says nothing
    #[arg(long, value_name = "MS", default_value_t = 60_000)]
    pub heartbeat_ms: u64,
}

#[derive(Args)]
pub struct AuditStatus {
    #[command(flatten)]
    pub profile: ProfileDir,
}

#[derive(Subcommand)]
pub enum EventsCommand {
    /// Fetch an event by its id or its leaf, verify it, and show it
    Get(EventsGet),
    /// Show events as the audit service takes them, until Ctrl-C; with --json, one object a line for each
    Tail(super::query::EventsTail),
}

#[derive(Args)]
pub struct EventsGet {
    #[command(flatten)]
    pub profile: ProfileDir,

    /// The event's id, as its source gave it; of a Kubernetes request, its auditID for all stages or auditID/STAGE for one
    #[arg(value_name = "ID", required_unless_present_any = ["leaf", "sequence"])]
    pub id: Option<String>,

    /// The index of its leaf in the log
    #[arg(long, value_name = "INDEX", conflicts_with = "id")]
    pub leaf: Option<u64>,

    /// Its number, as its source gave it; wants --source
    #[arg(long, value_name = "NUMBER", conflicts_with_all = ["id", "leaf"], requires = "source")]
    pub sequence: Option<u64>,

    /// The source whose number that is: its name, or the id of its key
    #[arg(long, value_name = "NAME", requires = "sequence")]
    pub source: Option<String>,

    /// The epoch of that number
    #[arg(long, value_name = "EPOCH", requires = "sequence", default_value = "1")]
    pub epoch: u64,

    /// Keep each event with its proof in a file in this directory, for `verify`
    #[arg(long, value_name = "DIR")]
    pub proof: Option<PathBuf>,

    /// Why it is read: goes on the record with your name
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub purpose: String,
}

pub fn enrol(args: &AuditEnrol, terminal: Terminal) -> Outcome {
    let config = AuditConfig::load(&args.config.config)?;
    let source = Enrolled {
        vkey: args.vkey.clone(),
        owner: args.owner.clone(),
        collector: args.collector.as_str().to_owned(),
        enrolled_at: runtime::clock().now(),
        retired_at: None,
        heartbeat_ms: args.heartbeat_ms,
    };
    state::audit::enrol(&config, &source)?;
    let (name, list) = (source.vkey.name(), config.list());
    terminal
        .line(format_args!("enrolled {name} in {}; a running service takes it in by itself", list.display()));
    terminal.object(&json!({ "enrolled": name.as_str(), "list": list.display().to_string() }));
    Ok(())
}

pub fn rekey(args: &ConfigFile, terminal: Terminal) -> Outcome {
    let config = AuditConfig::load(&args.config)?;
    let Done { keys, before, old } = state::rekey::rekey(&config, &*runtime::entropy())?;
    let key = config.wrapping_key.display();
    let how = if before { "were wrapped anew before this was cut off" } else { "are wrapped anew" };
    terminal.line(format_args!(
        "{keys} keys {how}; the store opens with {key} and no other. The key before is in {}: copies of the store that were made until now \
         open with it. Keep it with them, or delete it if there are none",
        old.display()
    ));
    terminal.object(&json!({ "keys": keys, "key": key.to_string(), "old": old.display().to_string() }));
    Ok(())
}

pub fn status(args: &AuditStatus, terminal: Terminal) -> Outcome {
    let profile = Profile::load(&args.profile.profile)?;
    let runtime = runtime::runtime().map_err(Failure::state)?;
    let sources = runtime.block_on(async {
        let audit = profile.audit()?;
        let mut all: Vec<SourceStatus> = Vec::new();
        let mut token = String::new();
        loop {
            let page = audit.sources(profile.origin.as_str(), &token).await;
            let page = page.map_err(|error| profile::of_call_to(&error, "audit service"))?;
            // Each page goes on behind the one before: a service cannot keep us for ever.
            if page.sources.iter().zip(all.last()).any(|(next, last)| next.id <= last.id) {
                return Err(Failure::no("the service's list of sources does not go on where it ended"));
            }
            all.extend(page.sources);
            match page.next {
                Some(next) if next != token => token = next,
                _ => return Ok(all),
            }
        }
    })?;
    let now = runtime::clock().now();
    let width = sources.iter().map(|source| name(&source.vkey).chars().count()).max().unwrap_or_default();
    let width = width.clamp("source".len(), MAX_NAME_WIDTH);
    terminal.line(terminal.bold(format_args!(
        "{:<width$} {:>9} {:>6} {:>10} {:>6}  {:<12} {:<10} {}",
        "source", "events", "epoch", "last", "gaps", "last seen", "lag", "owner"
    )));
    for source in &sources {
        terminal.line(format_args!(
            "{:<width$} {:>9} {:>6} {:>10} {:>6}  {:<12} {:<10} {}",
            name(&source.vkey),
            source.events,
            source.epoch,
            source.next_sequence.checked_sub(1).map_or("-".into(), |last| last.to_string()),
            if source.gap_count == 0 { "none".into() } else { source.gap_count.to_string() },
            source.last_seen.map_or("never".into(), |at| ago(now, at)),
            if source.events == 0 { "-".into() } else { duration(source.lag_ms) },
            source.owner
        ));
        for gap in &source.gaps {
            let missing =
                format_args!("missing: events {} to {} of epoch {}", gap.first, gap.end - 1, gap.epoch);
            terminal.line(format_args!("    {}", terminal.bad(missing)));
        }
        for trouble in &source.troubles {
            let what = format_args!(
                "{}: {} times, the last {}",
                trouble.kind,
                trouble.count,
                ago(now, trouble.last_at)
            );
            terminal.line(format_args!("    {}", terminal.bad(what)));
        }
        if source.silent {
            terminal.line(format_args!(
                "    {}",
                terminal.bad("silent: it has not said in time that it is alive")
            ));
        }
    }
    let gaps: u64 = sources.iter().map(|source| source.gap_count).sum();
    terminal.line(format_args!("{} sources, {gaps} gaps", sources.len()));
    terminal.object(&json!({ "sources": sources.iter().map(object).collect::<Vec<_>>() }));
    Ok(())
}

fn object(source: &SourceStatus) -> Value {
    json!({
        "name": name(&source.vkey),
        "vkey": source.vkey,
        "owner": source.owner,
        "collector": source.collector,
        "events": source.events,
        "epoch": source.epoch,
        "first_sequence": source.first_sequence,
        "next_sequence": source.next_sequence,
        "last_seen_ms": source.last_seen.map(|at| at.0),
        "lag_ms": source.lag_ms,
        "silent": source.silent,
        "gap_count": source.gap_count,
        "gaps": source.gaps.iter().map(|gap| json!({ "epoch": gap.epoch, "first": gap.first, "end": gap.end })).collect::<Vec<_>>(),
        "troubles": source.troubles.iter().map(|trouble| json!({
            "kind": trouble.kind, "count": trouble.count, "last_at_ms": trouble.last_at.0,
        })).collect::<Vec<_>>(),
    })
}

pub fn name(vkey: &str) -> &str {
    vkey.split_once('+').map_or(vkey, |(name, _)| name)
}

pub fn ago(now: UnixMillis, at: UnixMillis) -> String {
    format!("{} ago", duration(i64::try_from(now.0.saturating_sub(at.0)).unwrap_or(i64::MAX)))
}

/// In the largest unit of which there are two.
fn duration(ms: i64) -> String {
    let units = [(86_400_000, "days"), (3_600_000, "h"), (60_000, "min"), (1_000, "s")];
    let unit = units.iter().find(|(unit, _)| ms.abs() >= 2 * unit);
    unit.map_or_else(|| format!("{ms} ms"), |(unit, name)| format!("{} {name}", ms / unit))
}

pub fn get(args: &EventsGet, terminal: Terminal) -> Outcome {
    let profile = Profile::load(&args.profile.profile)?;
    let which = match (&args.id, args.leaf, args.sequence, &args.source) {
        (Some(id), None, None, None) => WhichEvent::Id(id.clone()),
        (None, Some(index), None, None) => WhichEvent::Leaf(
            LeafIndex::new(index).ok_or_else(|| Failure::usage("no tree has a leaf of this index"))?,
        ),
        (None, None, Some(sequence), Some(name)) => WhichEvent::Sequence {
            source: source_called(name, &profile.sources)?,
            epoch: args.epoch,
            sequence,
        },
        _ => {
            return Err(Failure::usage(
                "say which event: its id, --leaf with its index in the log, or --source and --sequence",
            ));
        }
    };
    let runtime = runtime::runtime().map_err(Failure::state)?;
    let encoded = runtime
        .block_on(async { fetch(&profile.audit()?, profile.origin.as_str(), &which, &args.purpose).await })?;
    let mut events = Vec::new();
    for bytes in &encoded {
        let garbled = |error: &dyn std::fmt::Display| {
            Failure::no(format!("the service gave something that is no proof: {error}"))
        };
        let bundle = Bundle::parse(bytes).map_err(|error| garbled(&error))?;
        let proven = bundle.verify(&profile.policy, &profile.sources).map_err(|error| garbled(&error))?;
        if !is_meant(&which, &proven) {
            return Err(Failure::no("the service gave another event than the one that was asked for"));
        }
        events.push((bundle, proven));
    }
    if let Some(dir) = &args.proof {
        keep(dir, &events)?;
    }
    for (_, proven) in &events {
        show(proven, terminal);
    }
    if let Some(dir) = &args.proof {
        terminal.line(format_args!("kept {} events with their proofs in {}", events.len(), dir.display()));
    }
    let objects: Vec<_> = events.iter().map(|(_, proven)| event_object(proven)).collect();
    terminal.object(&json!({ "events": objects }));
    Ok(())
}

/// The key that is meant by the name of a source or the id of its key.
fn source_called(called: &str, sources: &[SourceVKey]) -> Outcome<Hash> {
    let is_it = |key: &&SourceVKey| key.name().as_str() == called || key.id().to_string() == called;
    let mut meant = sources.iter().filter(is_it);
    match (meant.next(), meant.next()) {
        (Some(key), None) => Ok(key.id()),
        (Some(_), Some(_)) => Err(Failure::usage(format!(
            "several keys in the file of `sources` are called {called}: give the id of the one that is meant"
        ))),
        _ => Err(Failure::usage(format!(
            "no key in the file that client.toml names in `sources` is called {called}; `epigraph audit status` has the names"
        ))),
    }
}

async fn fetch(audit: &Audit, origin: &str, which: &WhichEvent, purpose: &str) -> Outcome<Vec<bytes::Bytes>> {
    let (mut all, mut token) = (Vec::new(), String::new());
    loop {
        let page = audit.event(origin, which, purpose, &token).await;
        let page = page.map_err(|error| profile::of_call_to(&error, "audit service"))?;
        all.extend(page.bundles);
        match page.next {
            Some(next) if next != token && all.len() < MAX_EVENTS => token = next,
            _ => return Ok(all),
        }
    }
}

fn is_meant(which: &WhichEvent, proven: &Proven) -> bool {
    match which {
        // Where the core was erased nobody can tell any more.
        WhichEvent::Id(id) => proven
            .core
            .as_ref()
            .is_none_or(|core| core.event_id == *id || k8s::ids_of_request(id).any(|id| core.event_id == id)),
        WhichEvent::Leaf(index) => proven.index == *index,
        WhichEvent::Sequence { source, epoch, sequence } => {
            let leaf = &proven.leaf;
            (leaf.source, leaf.epoch, leaf.sequence) == (*source, *epoch, *sequence)
        }
    }
}

/// Each into a file of its own, never over another one.
pub fn keep(dir: &Path, events: &[(Bundle, Proven)]) -> Outcome {
    let cannot = |path: &Path, error: &dyn std::fmt::Display| {
        Failure::usage(format!("cannot write {}: {error}", path.display()))
    };
    fs::create_dir_all(dir).map_err(|error| cannot(dir, &error))?;
    for (bundle, proven) in events {
        let path = dir.join(format!("{:020}.{EXTENSION}", proven.index.get()));
        let bytes = bundle.encode();
        match fs::File::create_new(&path).and_then(|mut file| file.write_all(&bytes)) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                // The same event under a later checkpoint proves the same.
                let same = fs::read(&path).ok().and_then(|known| Bundle::parse(&known).ok());
                if same.is_none_or(|known| known.leaf != bundle.leaf) {
                    return Err(cannot(&path, &"it is there, and has another event in it"));
                }
            }
            Err(error) => return Err(cannot(&path, &error)),
        }
    }
    Ok(())
}

/// What was proven, and the record as its source wrote it.
pub fn show(proven: &Proven, terminal: Terminal) {
    let (leaf, head) = (&proven.leaf, proven.checkpoint.head());
    terminal.line(format_args!(
        "{} event {} of epoch {} of {}: leaf {} of {}, under its signed checkpoint of size {}",
        terminal.good("verified:"),
        leaf.sequence,
        leaf.epoch,
        proven.source.name(),
        proven.index,
        proven.checkpoint.origin(),
        head.size
    ));
    if let Some(core) = &proven.core {
        let by = proven.identity.as_ref().and_then(|identity| identity.actor.as_ref());
        let by = by.map_or_else(String::new, |actor| {
            format!(", by {}", if actor.id.is_empty() { &actor.name } else { &actor.id })
        });
        terminal.line(format_args!("  {}{by}", core.action));
    }
    for erased in proven.erased() {
        terminal.line(format_args!("  its {erased} segment is not in here: it was erased, or withheld from whoever asked; all else still holds"));
    }
    if let Some(body) = &proven.body {
        terminal.line(String::from_utf8_lossy(&body.record));
    }
}

/// The same as an object.
pub fn event_object(proven: &Proven) -> Value {
    let hex = |hash: &Hash| hash.to_string();
    json!({
        "verified": true,
        "kind": "event",
        "origin": proven.checkpoint.origin().as_str(),
        "index": proven.index.get(),
        "size": proven.checkpoint.head().size.get(),
        "leaf_hash": hex(&proven.leaf.hash()),
        "reference": proven.leaf.reference.to_string(),
        "source": proven.source.to_string(),
        "epoch": proven.leaf.epoch,
        "sequence": proven.leaf.sequence,
        "ingested_s": proven.leaf.ingested,
        "event_id": proven.core.as_ref().map(|core| core.event_id.clone()),
        "action": proven.core.as_ref().map(|core| core.action.clone()),
        "erased": proven.erased().map(|segment| segment.to_string()).collect::<Vec<_>>(),
        "record": proven.body.as_ref().map(|body| String::from_utf8_lossy(&body.record).into_owned()),
    })
}

/// The public keys of sources in a file, a line each; lines that begin with `#` say something to people.
pub fn read_sources(path: &Path) -> Outcome<Vec<SourceVKey>> {
    let bytes = super::verify::read(path, 1 << 20)?;
    let text =
        String::from_utf8(bytes).map_err(|_| Failure::usage(format!("{} is not text", path.display())))?;
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let keys: Result<Vec<SourceVKey>, _> = lines.map(str::parse).collect();
    keys.map_err(|error| Failure::usage(format!("{}: {error}", path.display())))
}
