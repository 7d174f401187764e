//! The stage of a demo: a new directory as quickstart makes it, those who lie in their places, and everybody started.

use std::fs;
use std::path::Path;

use epigraph_core::{SigningKey, VKey};
use epigraph_monitor::sinks::secret::Secret;
use zeroize::Zeroizing;

use super::audience::PEOPLE;
use super::webhook::{Bound, Webhook};
use crate::cli::Demo;
use crate::failure::{Failure, Kind, Outcome};
use crate::pki::write_new;
use crate::quickstart::Phases;
use crate::quickstart::create::{COMPLETE, MONITOR_POLICY, Plan, README, WEBHOOK_SECRET};
use crate::quickstart::directory::{DEMO, Directory, hold};
use crate::quickstart::process::RoleProcess;
use crate::quickstart::processes::{self, Processes};
use crate::quickstart::role::{Cast, Role};
use crate::runtime::{self, Stopwatch};

/// What stands in every directory of a demo.
const ABOUT: &str = "\
  alice/ bob/                 the directories of two readers
  monitor.toml monitor/       the monitor's: its key, what it was shown, what it found, and the evidence

It is of a demo in which somebody cheats; the keys of whoever did ended with it, so it cannot be gone on with.
";

/// Everybody in their places.
pub struct Stage {
    pub directory: Directory,
    pub processes: Processes,
    pub webhook: Webhook,
}

impl Stage {
    /// Sets it up in a directory that is not there or empty. With `blind` the monitor is given another key than the log's.
    pub async fn set(demo: Demo, dir: &Path, blind: bool, phases: &mut Phases) -> Outcome<Stage> {
        let watch = Stopwatch::start();
        let failed = |error: anyhow::Error| Failure::new(Kind::State, format_args!("{error:#}"));
        let is_empty = fs::read_dir(dir).map(|mut entries| entries.next().is_none());
        if fs::exists(dir).unwrap_or(true) && !is_empty.unwrap_or(false) {
            let message = format!("{} is not empty: a demo takes a new directory with --dir", dir.display());
            return Err(Failure::usage(message));
        }
        let lock = hold(dir)?;
        let cast = Cast::Demo(demo);
        let bound = Bound::new().await?;
        let plan = Plan::begin(dir, cast, Some(bound.address), &PEOPLE).map_err(failed)?;
        let mut liars = Vec::new();
        for role in cast.roles().into_iter().filter(|role| cast.lies(*role)) {
            let witness = plan.witness_name(role);
            let liar = match (role, demo.lie()) {
                (Role::Log, Some(lie)) => {
                    RoleProcess::spawn_liar(dir, role, plan.origin(), &["--lie", lie.as_str()])
                }
                _ if demo == Demo::WitnessLiar => RoleProcess::spawn_liar(dir, role, &witness, &["--forges"]),
                _ => RoleProcess::spawn_liar(dir, role, &witness, &[]),
            };
            liars.push(liar?);
        }
        let mut keys = Vec::new();
        for liar in &mut liars {
            keys.push((liar.role, liar.introduces_itself().await?));
        }
        plan.finish(&keys).map_err(failed)?;
        PEOPLE.iter().try_for_each(|person| plan.person(person)).map_err(failed)?;
        for name in [DEMO, COMPLETE] {
            write_new(&dir.join(name), 0o644, &[README, ABOUT].concat()).map_err(failed)?;
        }
        let secret = Secret::load(&dir.join(WEBHOOK_SECRET)).map_err(Failure::state)?;
        let directory = Directory::of(dir, cast, true, (lock, plan.into_ports()))?;
        if blind {
            blinded(&dir.join(MONITOR_POLICY), &directory.vkey)?;
        }
        let detail = match keys.is_empty() {
            true => format!("log {}", directory.origin),
            false => format!("log {}; who lies has made a key of its own", directory.origin),
        };
        phases.done("keys and certificates", watch.elapsed(), detail);
        let processes = Processes::start(&directory, liars, phases).await?;
        if let Some(address) = processes.metrics_address.clone() {
            processes::ready(&address, phases.terminal).await?;
        }
        Ok(Stage { directory, processes, webhook: bound.serve(secret) })
    }
}

/// Puts another key of the same name in the place of the log's.
fn blinded(policy: &Path, vkey: &str) -> Outcome {
    let cannot =
        |error: std::io::Error| Failure::state(format!("cannot change {}: {error}", policy.display()));
    let text = fs::read_to_string(policy).map_err(cannot)?;
    let log: VKey = vkey.parse().map_err(Failure::state)?;
    let mut seed = Zeroizing::new([0; 32]);
    runtime::entropy().fill(&mut *seed);
    let other = SigningKey::from_seed(log.name().clone(), &seed);
    fs::write(policy, text.replace(vkey, &other.vkey().to_string())).map_err(cannot)
}
