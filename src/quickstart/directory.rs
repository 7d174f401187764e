//! The quickstart's directory: made once, found again by every later run.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use epigraph_store::lock::DirLock;

use super::create::{COMPLETE, Ports, VALID_DAYS, certificates, create};
use super::role::{Cast, Role};
use crate::failure::{Failure, Kind, Outcome};
use crate::pki::{Authority, Names, with_extension};
use crate::profile::Profile;
use crate::runtime;

pub const TRUST_DOMAIN: &str = "epigraph.quickstart";

/// Only a demo's directory has it.
pub const DEMO: &str = "demo.txt";

/// A certificate is renewed when it is valid for less than this.
const RENEW_DAYS: u32 = 30;

/// A prepared directory, locked against a second quickstart.
pub struct Directory {
    pub path: PathBuf,
    pub origin: String,
    pub vkey: String,
    pub is_new: bool,
    /// Whose processes they are.
    pub cast: Cast,
    _lock: DirLock,
    /// Of a new directory, until it is left: by then everybody has listened there once.
    _ports: Ports,
}

impl Directory {
    /// Finds the directory, or makes it with keys, certificates, configurations and initialised state.
    pub fn prepare(path: &Path, alone: bool) -> Outcome<Directory> {
        let exists = fs::exists(path).map_err(|error| cannot_use(path, &error))?;
        let empty = || fs::read_dir(path).map(|mut entries| entries.next().is_none());
        let is_new = !exists || empty().map_err(|error| cannot_use(path, &error))?;
        let has = |name: &str| fs::exists(path.join(name)).map_err(|error| cannot_use(path, &error));
        if !is_new && !has(COMPLETE)? {
            return Err(Failure::usage(format!(
                "{} is not a quickstart directory, or it was not made to the end: choose another with --dir, or delete it",
                path.display()
            )));
        }
        // A directory stays what it was made as: a log that has witnesses publishes nothing without them.
        let was_alone = if is_new { alone } else { !has("signer.toml")? };
        if !is_new && has(DEMO)? {
            return Err(Failure::usage(format!(
                "{} is of a demo, whose keys ended with it: choose another --dir",
                path.display()
            )));
        }
        let cast = if was_alone { Cast::Alone } else { Cast::All };
        if alone && !was_alone {
            return Err(Failure::usage(format!(
                "the log in {} has a signer and witnesses and publishes nothing without them: leave --alone out, or choose another \
                 --dir",
                path.display()
            )));
        }
        let lock = hold(path)?;
        let mut ports = Ports::new();
        if is_new {
            ports =
                create(path, cast).map_err(|error| Failure::new(Kind::State, format_args!("{error:#}")))?;
        } else {
            renew(path, cast).map_err(|error| {
                Failure::new(Kind::State, format_args!("cannot renew the certificates: {error:#}"))
            })?;
        }
        Directory::of(path, cast, is_new, (lock, ports))
    }

    /// A directory that is complete.
    pub fn of(path: &Path, cast: Cast, is_new: bool, (lock, ports): (DirLock, Ports)) -> Outcome<Directory> {
        let Profile { origin, policy, .. } = Profile::load(path)?;
        let vkey = policy.logs().first().map(ToString::to_string).unwrap_or_default();
        let (path, origin) = (path.to_owned(), origin.as_str().to_owned());
        Ok(Directory { path, origin, vkey, is_new, cast, _lock: lock, _ports: ports })
    }

    /// Whether it is a log with an embedded signer and no witnesses.
    pub fn alone(&self) -> bool {
        self.cast == Cast::Alone
    }

    /// Its processes, in the order in which they are stopped. A directory of an older version has no monitor.
    pub fn roles(&self) -> Vec<Role> {
        roles(&self.path, self.cast)
    }

    /// The configuration of a process.
    pub fn config(&self, role: Role) -> PathBuf {
        config(&self.path, role)
    }

    /// Where the address, process id and messages of a process are kept.
    pub fn run_file(&self, role: Role, extension: &str) -> PathBuf {
        run_file(&self.path, role, extension)
    }
}

/// Makes the directory if need be, and keeps a second quickstart out.
pub fn hold(path: &Path) -> Outcome<DirLock> {
    let create = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    create.map_err(|error| cannot_use(path, &error))?;
    DirLock::acquire(path).map_err(|error| {
        Failure::state(format!(
            "a quickstart is already running here: {error}. Stop it, or choose another --dir"
        ))
    })
}

/// The configuration of a process in a directory.
pub fn config(dir: &Path, role: Role) -> PathBuf {
    dir.join(format!("{role}.toml"))
}

/// Where the address, process id and messages of a process are kept in a directory.
pub fn run_file(dir: &Path, role: Role, extension: &str) -> PathBuf {
    dir.join("run").join(format!("{role}.{extension}"))
}

fn roles(dir: &Path, cast: Cast) -> Vec<Role> {
    let configured = |role: &Role| fs::exists(config(dir, *role)).unwrap_or(true);
    cast.roles().into_iter().filter(configured).collect()
}

fn cannot_use(path: &Path, error: &std::io::Error) -> Failure {
    Failure::usage(format!("cannot use the directory {}: {error}. Choose another with --dir", path.display()))
}

/// Issues what has expired, or will soon, again: somebody came back to an old trial.
fn renew(dir: &Path, cast: Cast) -> anyhow::Result<()> {
    let (pki, now) = (dir.join("pki"), runtime::clock().now());
    for certificate in certificates(&roles(dir, cast)) {
        let stem = pki.join(certificate.stem);
        let names = Names::of(&with_extension(&stem, "pem"))?;
        if names.days_left(now) < i64::from(RENEW_DAYS) {
            Authority::load(&pki, now)?.issue(&stem, &names.subject(VALID_DAYS), true)?;
            tracing::info!(name = %names.spiffe, "the certificate was renewed");
        }
    }
    Ok(())
}
