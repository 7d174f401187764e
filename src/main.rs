//! The `epigraph` program: one binary for every role and every command. Wiring only; what a role does is in its crate.
#![expect(unreachable_pub, reason = "a binary has no outside; `pub` says what another module may use")]

mod adversary;
mod cli;
mod config;
mod doors;
mod drill;
mod failure;
mod fsck;
mod hammer;
mod input;
mod metrics;
mod observe;
mod pki;
mod preflight;
mod profile;
mod quickstart;
mod receipts;
mod runtime;
mod scratch;
mod scrub;
mod serve;
mod sources;
mod state;
mod terminal;

use std::process::ExitCode;

use clap::Parser;
use cli::monitor::args::MonitorCommand;
use cli::{
    Cli, Command, ConfigCommand, ConfigFile, Init, InitSigner, PolicyCommand, Serve, ServedRole,
    WitnessCommand,
};
use epigraph_core::note::MAX_NOTE_BYTES;
use failure::Outcome;
use terminal::Terminal;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let terminal = Terminal::new(cli.color, cli.json);
    // A role says in its configuration how it wants to be heard.
    if !matches!(cli.command, Command::Serve(_)) {
        observe::to_stderr(cli.json);
    }
    match run(cli.command, terminal) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            terminal.failure(failure.kind(), &failure);
            failure.exit_code()
        }
    }
}

fn run(command: Command, terminal: Terminal) -> Outcome {
    match command {
        Command::Quickstart(args) => quickstart::run(&args, terminal),
        Command::Init(Init::Log(args)) => init_log(&args, terminal),
        Command::Init(Init::Signer(args)) => init_signer(&args, terminal),
        Command::Serve(Serve::Log(args)) => serve::run(&args, terminal),
        Command::Serve(Serve::Signer(args)) => serve::signer::run(&args, terminal),
        Command::Init(Init::Witness(args)) => init_witness(&args, terminal),
        Command::Serve(Serve::Witness(args)) => serve::witness::run(&args, terminal),
        Command::Init(Init::Monitor(args)) => init_monitor(&args, terminal),
        Command::Serve(Serve::Monitor(args)) => serve::monitor::run(&args, terminal),
        Command::Init(Init::Collector(args)) => init_collector(&args, terminal),
        Command::Init(Init::Audit(args)) => init_audit(&args, terminal),
        Command::Serve(Serve::Audit(args)) => serve::audit::run(&args, terminal),
        Command::Audit(cli::audit::AuditCommand::Enrol(args)) => cli::audit::enrol(&args, terminal),
        Command::Audit(cli::audit::AuditCommand::Rekey(args)) => cli::audit::rekey(&args, terminal),
        Command::Audit(cli::audit::AuditCommand::Status(args)) => cli::audit::status(&args, terminal),
        Command::Events(cli::audit::EventsCommand::Get(args)) => cli::audit::get(&args, terminal),
        Command::Collect(args) => cli::collect::run(&args, terminal),
        Command::Append(args) => cli::append::run(&args, terminal),
        Command::Prove(args) => cli::prove::run(&args, terminal),
        Command::Entries(args) => cli::entries::run(&args, terminal),
        Command::Checkpoint(args) => cli::checkpoint::run(&args, terminal),
        Command::Verify(args) => cli::verify::run(&args, terminal),
        Command::Policy(PolicyCommand::Check(args)) => cli::policy::check(&args, terminal),
        Command::Policy(PolicyCommand::Explain(args)) => cli::policy::explain(&args, terminal),
        Command::Policy(PolicyCommand::Repin(args)) => cli::repin::run(&args, terminal),
        Command::Keygen(args) => cli::keys::keygen(&args, terminal),
        Command::Pki(args) => cli::keys::pki(&args, terminal),
        Command::Config(ConfigCommand::Check(args)) => match args.role {
            ServedRole::Log => serve::check(&args.config, terminal),
            ServedRole::Signer => serve::signer::check(&args.config, terminal),
            ServedRole::Witness => serve::witness::check(&args.config, terminal),
            ServedRole::Monitor => serve::monitor::check(&args.config, terminal),
            ServedRole::Audit => serve::audit::check(&args.config, terminal),
            ServedRole::Collector => state::collector::check(&args.config, terminal),
        },
        Command::Completions(args) => cli::manual::completions(&args, terminal),
        Command::Man(args) => cli::manual::pages(&args, terminal),
        Command::Hammer(args) => hammer::run(&args, terminal),
        Command::Witness(WitnessCommand::Status(args)) => cli::witness::status(&args, terminal),
        Command::Witness(WitnessCommand::AddLog(args)) => cli::witness::add_log(&args, terminal),
        Command::Monitor(MonitorCommand::Status(args)) => cli::monitor::status(&args, terminal),
        Command::Monitor(MonitorCommand::Findings(args)) => cli::monitor::findings(&args, terminal),
        Command::Monitor(MonitorCommand::Ack(args)) => cli::monitor::acknowledge(&args, terminal),
        Command::Monitor(MonitorCommand::Evidence(args)) => cli::monitor::evidence(&args, terminal),
        Command::Monitor(MonitorCommand::Drill(args)) => cli::monitor::drill(&args, terminal),
        Command::Drill(cli::drill::DrillCommand::Tamper(args)) => drill::run(&args, terminal),
        Command::Fsck(args) => fsck::run(&args, terminal),
        Command::TreePreflight(args) => preflight::run(&args, terminal),
        Command::Adversary(args) => adversary::run(&args, terminal),
    }
}

fn init_log(args: &ConfigFile, terminal: Terminal) -> Outcome {
    let config = config::ProcessConfig::load(&args.config)?;
    let created = state::init(&config, runtime::clock().now(), &runtime::entropy())?;
    for state::Created { origin, directory, vkey } in &created {
        terminal.line(format_args!("initialised the log {origin} in {}", directory.display()));
        terminal.line(format_args!("its vkey, for everybody who verifies: {vkey}"));
    }
    let logs = created
        .iter()
        .map(|log| serde_json::json!({ "origin": log.origin.as_str(), "vkey": log.vkey.to_string() }));
    terminal.object(&serde_json::json!({ "initialised": logs.collect::<Vec<_>>() }));
    Ok(())
}

fn init_signer(args: &InitSigner, terminal: Terminal) -> Outcome {
    let config = config::signer::SignerProcessConfig::load(&args.config.config)?;
    let checkpoint = match &args.checkpoint {
        Some(path) => Some(cli::verify::read(path, MAX_NOTE_BYTES)?),
        None => None,
    };
    let start = match (&checkpoint, &args.trust.policy) {
        (Some(checkpoint), Some(policy)) => {
            state::signer::Start::From { checkpoint, policy: Some(cli::verify::read_policy(policy)?) }
        }
        (Some(checkpoint), None) => state::signer::Start::From { checkpoint, policy: None },
        (None, _) => state::signer::Start::New,
    };
    let (now, entropy) = (runtime::clock().now(), runtime::entropy());
    let created = state::signer::init(&config, args.log.as_ref(), &start, now, &entropy)?;
    for state::signer::Created { origin, vkey, size } in &created {
        let directory = config.directory.display();
        terminal.line(format_args!("initialised the signer of {origin} in {directory}, from size {size}"));
        terminal.line(format_args!("its vkey, for the log and everybody who verifies: {vkey}"));
    }
    let logs = created.iter().map(|log| {
        serde_json::json!({ "origin": log.origin.as_str(), "vkey": log.vkey.to_string(), "size": log.size })
    });
    terminal.object(&serde_json::json!({ "initialised": logs.collect::<Vec<_>>() }));
    Ok(())
}

fn init_witness(args: &ConfigFile, terminal: Terminal) -> Outcome {
    let config = config::witness::WitnessConfig::load(&args.config)?;
    let vkey = state::witness::init(&config, &*runtime::entropy())?;
    terminal.line(format_args!("initialised the witness {} in {}", config.name, config.directory.display()));
    terminal.line(format_args!("its vkey, for every policy that counts on it: {vkey}"));
    terminal.line(format_args!("list the logs that it is to cosign for in {}", config.list().display()));
    terminal.object(&serde_json::json!({ "initialised": config.name.as_str(), "vkey": vkey.to_string() }));
    Ok(())
}

fn init_audit(args: &ConfigFile, terminal: Terminal) -> Outcome {
    let config = config::audit::AuditConfig::load(&args.config)?;
    let vkey = state::audit::init(&config, &*runtime::entropy())?;
    terminal.line(format_args!(
        "initialised the audit service {} in {}",
        config.name,
        config.directory.display()
    ));
    terminal.line(format_args!("its vkey, under which it records what is read: {vkey}"));
    terminal.line(format_args!(
        "the key that wraps all others is in {}: without it nothing can be read any more. Keep a copy where no copy of the events is",
        config.wrapping_key.display()
    ));
    terminal.object(&serde_json::json!({ "initialised": config.name.as_str(), "vkey": vkey.to_string() }));
    Ok(())
}

fn init_collector(args: &ConfigFile, terminal: Terminal) -> Outcome {
    let config = config::collector::CollectorConfig::load(&args.config)?;
    let now = runtime::clock().now();
    let vkey = state::collector::init(&config.directory, &config.name, now, &runtime::entropy())?;
    let (name, directory) = (&config.name, config.directory.display());
    terminal.line(format_args!("initialised the collector {name} in {directory}"));
    terminal.line(format_args!("its vkey, to be enrolled at the audit service: {vkey}"));
    terminal.object(&serde_json::json!({ "initialised": name.as_str(), "vkey": vkey.to_string() }));
    Ok(())
}

fn init_monitor(args: &ConfigFile, terminal: Terminal) -> Outcome {
    let config = config::monitor::MonitorConfig::load(&args.config)?;
    let created = state::monitor::init(&config, &*runtime::entropy())?;
    let (name, directory) = (&config.name, config.directory.display());
    terminal.line(format_args!(
        "initialised the monitor {name} in {directory}, for {} more logs",
        created.logs.len()
    ));
    terminal.line(format_args!("its vkey, for everybody who judges what it says: {}", created.vkey));
    terminal.object(&serde_json::json!({
        "initialised": config.name.as_str(),
        "vkey": created.vkey.to_string(),
        "logs": created.logs,
        "webhooks": created.webhooks,
    }));
    Ok(())
}
