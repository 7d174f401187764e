//! Who may ask an audit service, and under which rules: `[[reader]]` and `[questions]` of its configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use epigraph_audit::ask::{Reader, Rules};
use epigraph_audit::guard::limits::{LimitTable, Limits, MAX_RUNNING};
use epigraph_audit::guard::plan::Guard;
use epigraph_audit::guard::policy::Policies;
use epigraph_audit::guard::{Kind, Role, Tenants};
use epigraph_audit::runbook::shelf::Shelf;
use serde::Deserialize;

use crate::failure::{Failure, Outcome};

/// Readers in one configuration: each question walks through them. Name paths that end in /*.
const MAX_READERS: usize = 1_024;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawReader {
    spiffe: String,
    kind: String,
    roles: Vec<String>,
    tenants: Vec<String>,
    subject: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct RawQuestions {
    policies: Option<PathBuf>,
    runbooks: Option<PathBuf>,
    #[serde(default)]
    limits: BTreeMap<String, RawLimits>,
}

/// What a role may ask for, in the place of what ships; what is left out stays as it ships.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawLimits {
    window_days: Option<u64>,
    query_bytes: Option<u64>,
    approval_bytes: Option<u64>,
    day_bytes: Option<u64>,
    rows: Option<u64>,
    timeout_ms: Option<u64>,
    running: Option<u32>,
    least_group: Option<u64>,
}

/// Where the rules are, and who may ask.
#[derive(Clone, Debug)]
pub struct Questions {
    readers: Vec<Reader>,
    /// A file with Cedar policies, in the place of those that ship.
    policies: Option<PathBuf>,
    /// A folder with runbooks, beside those that ship.
    runbooks: Option<PathBuf>,
    limits: LimitTable,
}

impl Questions {
    /// Checks what a configuration says.
    pub fn check(raw: RawQuestions, readers: Vec<RawReader>, base: &Path) -> Result<Questions, String> {
        if readers.len() > MAX_READERS {
            return Err(format!("[[reader]]: there are {}, and at most {MAX_READERS} may be", readers.len()));
        }
        let readers = readers.into_iter().map(RawReader::check).collect::<Result<_, _>>();
        Ok(Questions {
            readers: readers.map_err(|error| format!("[[reader]]: {error}"))?,
            policies: raw.policies.map(|path| base.join(path)),
            runbooks: raw.runbooks.map(|path| base.join(path)),
            limits: limits(raw.limits)?,
        })
    }

    /// The files that the rules are read from, as they are now: a folder, and each file in it.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = self.policies.iter().chain(&self.runbooks).cloned().collect();
        let entries = self.runbooks.iter().flat_map(fs::read_dir).flatten().flatten();
        let mut entries: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        entries.sort();
        files.extend(entries);
        files
    }

    /// Reads the policies and the runbooks.
    pub fn rules(&self) -> Outcome<Rules> {
        let policies = match &self.policies {
            None => Policies::shipped(),
            Some(path) => read_policies(path)?,
        };
        let runbooks = Shelf::shipped().and_then(|shelf| match &self.runbooks {
            None => Ok(shelf),
            Some(folder) => shelf.with_folder(folder),
        });
        Ok(Rules {
            guard: Guard {
                policies: policies.map_err(Failure::usage)?,
                runbooks: runbooks.map_err(Failure::usage)?,
                limits: self.limits.clone(),
            },
            readers: self.readers.clone(),
        })
    }
}

fn limits(raw: BTreeMap<String, RawLimits>) -> Result<LimitTable, String> {
    let mut table = LimitTable::default();
    for (name, raw) in raw {
        let bad = |what: String| format!("[questions.limits.{name}]: {what}");
        let role: Role = name.parse().map_err(|error| bad(format!("{error}")))?;
        let ships = Limits::shipped(role);
        let limits = Limits {
            window_s: raw.window_days.map_or(ships.window_s, |days| days.saturating_mul(86_400)),
            query_bytes: raw.query_bytes.unwrap_or(ships.query_bytes),
            approval_bytes: raw.approval_bytes.unwrap_or(ships.approval_bytes),
            day_bytes: raw.day_bytes.unwrap_or(ships.day_bytes),
            rows: raw.rows.unwrap_or(ships.rows),
            timeout_ms: raw.timeout_ms.unwrap_or(ships.timeout_ms),
            running: raw.running.unwrap_or(ships.running),
            least_group: raw.least_group.unwrap_or(ships.least_group),
        };
        if limits.running > MAX_RUNNING {
            return Err(bad(format!("running: {} is more than {MAX_RUNNING}", limits.running)));
        }
        table.set(role, limits);
    }
    Ok(table)
}

/// Reads a set of policies and checks it; the outer failure is of the file.
pub fn read_policies(path: &Path) -> Outcome<Result<Policies, epigraph_audit::guard::policy::PolicyError>> {
    let most = epigraph_audit::guard::policy::MAX_POLICY_BYTES;
    let bytes = crate::cli::verify::read(path, most + 1)?;
    let text =
        String::from_utf8(bytes).map_err(|_| Failure::usage(format!("{} is not text", path.display())))?;
    Ok(Policies::check(&path.display().to_string(), &text))
}

impl RawReader {
    fn check(self) -> Result<Reader, String> {
        let kinds = Kind::ALL.map(Kind::name).join(", ");
        let kind = Kind::ALL.into_iter().find(|kind| kind.name() == self.kind);
        let kind = kind.ok_or_else(|| format!("kind: `{}` is none of {kinds}", self.kind))?;
        let roles = self.roles.iter().map(|role| role.parse::<Role>()).collect::<Result<BTreeSet<_>, _>>();
        let tenants = match self.tenants.as_slice() {
            [] => return Err("tenants: whose events are seen? [\"*\"] means everybody's".into()),
            [all] if all == "*" => Tenants::Every,
            names => Tenants::Only(names.iter().cloned().collect()),
        };
        Ok(Reader {
            spiffe: self.spiffe.parse().map_err(|error| format!("spiffe: {error}"))?,
            kind,
            roles: roles.map_err(|error| format!("roles: {error}"))?,
            tenants,
            subject: self.subject,
        })
    }
}
