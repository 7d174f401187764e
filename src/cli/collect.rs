//! `epigraph collect`: reads audit events from files, signs and spools them, and delivers them to an audit service until they
//! are proven to be in the log.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use clap::Args;
use epigraph_collector::deliver::{DeliverError, Delivery, Service};
use epigraph_collector::intake::{self, Command, From, Input, Intake, Setup};
use epigraph_collector::pack::{Kind, Report};
use epigraph_collector::spool::Progress;
use epigraph_event::sensitive::{ALL, Detectors};
use epigraph_rpc::peer;
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::cli::DEFAULT_PROFILE;
use crate::config::collector::{CollectorConfig, DEFAULT_SPOOL_MIB};
use crate::config::doors::DoorConfig;
use crate::doors::Doors;
use crate::failure::{Failure, Kind as Ends, Outcome};
use crate::metrics::Metrics;
use crate::metrics::collector::Collecting;
use crate::profile::{self, Profile};
use crate::runtime::{self, Stopwatch};
use crate::serve::{listen_for_watchers, look_inside};
use crate::state::collector::{self, CollectorState};
use crate::terminal::{Terminal, shell};

/// Failures in a row after which `--once` leaves it: the first seconds of a service that is being started.
const PATIENCE: u32 = 6;

/// How long `--once` waits for the spool to take in what is read, after nothing can be delivered: then it is full.
const INTAKE_STALL: Duration = Duration::from_secs(5);

/// Reads audit events, signs them, and delivers them to an audit service, each exactly once, however often it is stopped. What is
/// read is durable in the collector's spool before it is sent, and stays there until it is proven to be in the log.
///
/// Exit codes with --once: 0 everything is in the log; 1 the service did not prove what it said; 3 it refused; 4 it cannot be
/// reached, and the events wait in the spool; 5 the spool was refused.
#[derive(Args)]
pub struct Collect {
    /// A client directory as `quickstart` writes it, with a collector in it
    #[arg(long, value_name = "DIR", env = "EPIGRAPH_PROFILE", required_unless_present = "config")]
    pub profile: Option<PathBuf>,

    /// The configuration of a collector that is a service
    #[arg(long, value_name = "FILE", conflicts_with = "profile")]
    pub config: Option<PathBuf>,

    /// A file of AWS CloudTrail records, one a line; `-` is standard input. Can be given again
    #[arg(long, value_name = "FILE")]
    pub cloudtrail: Vec<PathBuf>,

    /// A file of Kubernetes audit events or lists of them, one a line. Can be given again
    #[arg(long, value_name = "FILE")]
    pub k8s_audit: Vec<PathBuf>,

    /// A file of any JSON, one object a line. Can be given again
    #[arg(long, value_name = "FILE")]
    pub jsonl: Vec<PathBuf>,

    /// Whose events these are, where they do not say so themselves
    #[arg(long, value_name = "NAME", default_value = "")]
    pub tenant: String,

    /// Read every file to its end, deliver everything, and end, instead of following the files as they grow
    #[arg(long)]
    pub once: bool,
}

/// What a run needs, from wherever it is configured.
struct Run {
    place: CollectorPlace,
    inputs: Vec<Input>,
    doors: Vec<DoorConfig>,
    metrics: Option<SocketAddr>,
    heartbeat: Option<Duration>,
    /// How `--profile` is said to the next command, if there is a client directory.
    profile: Option<String>,
}

/// Where a collector's state is, and how it calls.
pub struct CollectorPlace {
    /// Its directory.
    pub directory: PathBuf,
    /// How many bytes may wait.
    pub spool_bytes: u64,
    /// The log.
    pub origin: epigraph_core::Origin,
    /// What is believed.
    pub policy: epigraph_core::Policy,
    /// The service's address.
    pub address: String,
    /// Who must be there.
    pub server: epigraph_rpc::SpiffeId,
    /// With whose certificates.
    pub tls: epigraph_rpc::ClientTls,
}

pub fn run(args: &Collect, terminal: Terminal) -> Outcome {
    let run = configured(args)?;
    let runtime = runtime::runtime().map_err(Failure::state)?;
    runtime.block_on(collect(run, args.once, terminal))
}

fn configured(args: &Collect) -> Outcome<Run> {
    let mut inputs = given(args)?;
    if let Some(path) = &args.config {
        let config = CollectorConfig::load(path)?;
        inputs.extend(config.inputs);
        let place = CollectorPlace {
            directory: config.directory,
            spool_bytes: config.spool_bytes,
            origin: config.origin,
            policy: config.policy,
            address: config.audit_address,
            server: config.audit_server,
            tls: profile::client_tls(&config.tls)?,
        };
        // Whoever pushes does not end: a run that does leaves the doors shut.
        let (doors, metrics) = if args.once { (Vec::new(), None) } else { (config.doors, config.metrics) };
        return Ok(Run { place, inputs, doors, metrics, heartbeat: Some(config.heartbeat), profile: None });
    }
    let Some(profile) = &args.profile else {
        return Err(Failure::usage("say which collector: --profile DIR or --config FILE"));
    };
    if inputs.is_empty() {
        return Err(Failure::usage(
            "nothing to collect: give a file with --cloudtrail, --k8s-audit or --jsonl; `-` is standard input",
        ));
    }
    let said = match profile == Path::new(DEFAULT_PROFILE) {
        true => String::new(),
        false => format!(" --profile {}", shell(profile)),
    };
    let place = Profile::load(profile)?.collector(DEFAULT_SPOOL_MIB << 20)?;
    Ok(Run { place, inputs, doors: Vec::new(), metrics: None, heartbeat: None, profile: Some(said) })
}

fn given(args: &Collect) -> Outcome<Vec<Input>> {
    let kinds = [
        (&args.cloudtrail, Kind::CloudTrail),
        (&args.k8s_audit, Kind::K8sAudit),
        (&args.jsonl, Kind::Json(Box::default())),
    ];
    let mut inputs: Vec<Input> = Vec::new();
    for (files, kind) in kinds {
        for file in files {
            // A position is known by its file, from wherever it is collected.
            let from = if file.as_os_str() == "-" {
                From::Stdin
            } else {
                From::File(std::path::absolute(file).map_err(Failure::usage)?)
            };
            if inputs.iter().any(|input| input.from == from) {
                return Err(Failure::usage(format!("{} is given twice", file.display())));
            }
            inputs.push(Input { from, kind: kind.clone(), tenant: args.tenant.clone() });
        }
    }
    Ok(inputs)
}

async fn collect(run: Run, once: bool, terminal: Terminal) -> Outcome {
    let watch = Stopwatch::start();
    let stop = runtime::stop_signal().map_err(Failure::state)?;
    let Run { place, inputs, doors, metrics, heartbeat, profile } = run;
    let CollectorState { key, token_key, spool, spool_dir } =
        collector::open(&place.directory, place.spool_bytes)?;
    let audit = peer::Audit::new(&place.address, &place.tls, &place.server).map_err(Failure::usage)?;
    let vkey = key.vkey().clone();
    let (before, _) = spool.waiting();
    let setup = Setup {
        key,
        detectors: Detectors::new(token_key, &ALL),
        inputs,
        pushing: doors.iter().map(|door| door.name.clone()).collect(),
        once,
        heartbeat,
        clock: runtime::clock(),
        entropy: runtime::entropy(),
    };
    let Intake { commands, progress, fresh, replaced, mut ended } =
        intake::start(setup, spool).map_err(Failure::state)?;
    let clock = runtime::clock();
    let doors = Doors::open(&doors, &commands, &clock).await?;
    let (watched, metrics_address) = listen_for_watchers(metrics).await?;
    let counting = Collecting { doors: doors.counts(), progress: progress.clone(), replaced };
    let looking_inside = look_inside(watched, Metrics::without_calls(counting, clock.now()));
    if !once {
        terminal.line(format_args!("collecting as {}; {before} batches wait in the spool", vkey.name()));
        let mut addresses = Map::new();
        for (name, address) in doors.addresses() {
            terminal.line(format_args!("events may be sent to {name} on {address}"));
            addresses.insert(name.to_owned(), address.to_string().into());
        }
        terminal.object(&json!({
            "collecting": vkey.to_string(),
            "waiting_batches": before,
            "doors": addresses,
            "metrics_address": metrics_address.map(|address| address.to_string()),
        }));
    }
    let (close, closing) = watch::channel(false);
    let mut doors = pin!(doors.serve(closing));
    let delivery = Delivery {
        sink: Service { audit, origin: place.origin.clone() },
        source: vkey.clone(),
        policy: place.policy,
        origin: place.origin,
        spool: spool_dir,
        fresh,
        progress: progress.clone(),
        commands: commands.clone(),
        entropy: runtime::entropy(),
    };
    let mut early = None;
    let delivered = tokio::select! {
        delivered = delivery.run(once.then_some(PATIENCE)) => delivered,
        ended = &mut ended => { early = Some(ended); Ok(()) }
        () = stop => Ok(()),
        () = &mut doors => Ok(()),
        never = looking_inside => match never {},
    };
    if early.is_none() {
        // Whoever is sending still hears that it was taken.
        close.send_replace(true);
        doors.await;
    }
    if once && delivered.is_err() {
        read_to_the_end(progress.clone()).await;
    }
    // It has ended already if this is not heard.
    let _ = commands.send(Command::Stop);
    let ended = match early {
        Some(ended) => ended,
        None => ended.await,
    };
    let reports = ended
        .map_err(|_| Failure::state("the intake has ended without a word; this is a fault of the program"))?
        .map_err(of_intake)?;
    show(&reports, &vkey, *progress.borrow(), watch, terminal);
    delivered.map_err(|error| of_delivery(&error, &progress.borrow()))?;
    let left = progress.borrow().tip.number.saturating_sub(progress.borrow().delivered);
    if let (Some(profile), Some(id)) =
        (profile, reports.iter().find_map(|(_, report)| report.first_id.as_ref()))
        && left == 0
    {
        terminal.line(format_args!(
            "Look at the first of them, with everything that proves it:\n  epigraph events get {id} --proof out/{profile}"
        ));
    }
    if once && left > 0 {
        let message =
            format!("stopped before the end: {left} batches wait in the spool, and the next run sends them");
        return Err(Failure::unreachable(message));
    }
    Ok(())
}

/// Nothing can be delivered: at least everything comes into the spool, as far as there is room.
async fn read_to_the_end(mut progress: watch::Receiver<Progress>) {
    let ended = progress.wait_for(|progress| progress.ended);
    let _ = timeout(INTAKE_STALL, ended).await;
}

fn of_intake(error: intake::IntakeError) -> Failure {
    match error {
        intake::IntakeError::Input { .. } => Failure::usage(error),
        _ => Failure::state(error),
    }
}

fn of_delivery(error: &DeliverError, progress: &Progress) -> Failure {
    let waiting = progress.tip.number.saturating_sub(progress.delivered);
    let and = format!("{waiting} batches wait in the spool, and the next run sends them");
    match error {
        DeliverError::Call(call) => {
            let failure = profile::of_call_to(call, "audit service");
            Failure::new(failure.kind(), format_args!("{failure}. {and}"))
        }
        DeliverError::Refused { .. } => Failure::new(Ends::Refused, format_args!("{error}. {and}")),
        DeliverError::Checkpoint { .. } | DeliverError::NotProven { .. } | DeliverError::OutOfTurn(_) => {
            Failure::no(format_args!("{error}. Nothing leaves the spool"))
        }
        _ => Failure::state(error),
    }
}

fn show(
    reports: &[(String, Report)],
    vkey: &epigraph_core::SourceVKey,
    progress: Progress,
    watch: Stopwatch,
    terminal: Terminal,
) {
    let took = watch.elapsed();
    terminal.line(terminal.bold(format_args!(
        "{:>8} {:>8} {:>9} {:>10} {:>17}  {}",
        "read", "events", "rejected", "tokenised", "sequence", "input"
    )));
    for (name, report) in reports {
        let rejected: u64 = report.rejected.values().sum();
        let replaced: u64 = report.replaced.values().sum();
        let sequences =
            report.sequences.map_or_else(|| "-".into(), |(first, last)| format!("{first} to {last}"));
        terminal.line(format_args!(
            "{:>8} {:>8} {rejected:>9} {replaced:>10} {sequences:>17}  {name}",
            report.records, report.events
        ));
        for (why, count) in &report.rejected {
            terminal.line(format_args!("    {count} kept in the quarantine: {why}"));
        }
        for ((path, kind), count) in &report.replaced {
            let path = if path.is_empty() { "(text)" } else { path };
            terminal.line(format_args!("    {count} replaced by tokens: {kind} in {path}"));
        }
    }
    let waiting = progress.tip.number.saturating_sub(progress.delivered);
    let state = if waiting == 0 {
        terminal.good("everything is proven to be in the log")
    } else {
        terminal.bad(format_args!("{waiting} batches wait in the spool"))
    };
    terminal.line(format_args!(
        "{state}: {} of epoch {}, {} batches, after {:.1} s",
        vkey.name(),
        progress.tip.epoch,
        progress.tip.number,
        took.as_secs_f64()
    ));
    terminal.object(&json!({
        "source": vkey.to_string(),
        "epoch": progress.tip.epoch,
        "next_sequence": progress.tip.sequence,
        "batches": progress.tip.number,
        "delivered_batches": progress.delivered,
        "waiting_batches": waiting,
        "took_ms": u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        "inputs": reports.iter().map(object).collect::<Vec<_>>(),
    }));
}

fn object((name, report): &(String, Report)) -> Value {
    json!({
        "input": name,
        "records": report.records,
        "events": report.events,
        "rejected": report.rejected,
        "tokenised": report.replaced.iter().map(|((path, kind), count)| {
            json!({ "path": path, "kind": kind, "count": count })
        }).collect::<Vec<_>>(),
        "first_event_id": report.first_id,
        "first_sequence": report.sequences.map(|(first, _)| first),
        "last_sequence": report.sequences.map(|(_, last)| last),
    })
}
