//! The check of a monitor's directory while it does not run: every file is read, what it says is compared with the others, and nothing is
//! changed. It goes on behind a flaw, so that one run shows all.
//!
//! Whether the directory is the newest copy nobody can tell from it, and it need not be: an older one reads again what it forgot.

use std::collections::BTreeSet;
use std::sync::Arc;

use epigraph_core::{Evidence, Frontier, Origin, Policy, TreeHead, TreeSize, VKey, observation};
use epigraph_store::file::Dir;

use super::{BOOK, Disk, DiskError, NEW, damaged, heads_name, list, progress_name, read};
use crate::book::Book;
use crate::compare::{Machine, Tuning};
use crate::finding::{Class, EvidenceId, Finding};
use crate::progress::Progress;

/// Where a file is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// In `state/`.
    State,
    /// In `evidence/`.
    Evidence,
}

/// How bad something is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Badness {
    /// The next start refuses, or a finding cannot be shown any more.
    Damaged,
    /// A crash left it; the next start removes it.
    Unfinished,
    /// It is of nothing that is known, and passed over.
    Foreign,
}

/// Something that is not as it should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Flaw {
    /// Where the file is.
    pub part: Part,
    /// Its name.
    pub file: String,
    /// How bad it is.
    pub badness: Badness,
    /// What is wrong and what to do.
    pub why: String,
}

/// What a directory says of one log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inspected {
    /// The log.
    pub origin: Origin,
    /// Heads that are kept.
    pub heads: usize,
    /// The size of the newest that is proven to be of one history with those before.
    pub consistent: TreeSize,
    /// As far as entries were read under the vantage point that is farthest.
    pub audited: TreeSize,
}

/// What is in a directory.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Inspection {
    /// Findings in the book, open and resolved; `None` if it cannot be read.
    pub findings: Option<usize>,
    /// The logs whose files can be read.
    pub logs: Vec<Inspected>,
    /// Evidence files and statements that are what their names say.
    pub evidence: usize,
    /// All that is wrong.
    pub flaws: Vec<Flaw>,
}

/// Reads everything in `state/` and `evidence/`. `logs` are those of the configuration; `key` is the monitor's own, under which its statements
/// verify, if it is known.
pub fn inspect(
    state: Arc<dyn Dir>,
    evidence: Arc<dyn Dir>,
    logs: &[(Origin, Policy)],
    key: Option<&VKey>,
) -> Result<Inspection, DiskError> {
    let mut found = Inspection::default();
    let book = read(&*state, BOOK)
        .and_then(|book| Book::decode(&book).map_err(|error| damaged(BOOK, &error)))
        .map_err(|error| found.add(Part::State, BOOK, Badness::Damaged, error.to_string()))
        .ok();
    found.findings = book.as_ref().map(|book| book.findings().count());
    let disk = Disk { state: Arc::clone(&state), evidence, failed: false };
    let mut known = BTreeSet::from([BOOK.to_owned()]);
    for (origin, policy) in logs {
        known.extend([heads_name(origin), progress_name(origin)]);
        found.log(&*state, origin, policy);
    }
    for name in list(&*state)?.iter().filter(|name| !known.contains(*name)) {
        found.strange(&*state, name);
    }
    found.files(&disk, book.as_ref(), key)?;
    Ok(found)
}

impl Inspection {
    fn add(&mut self, part: Part, file: &str, badness: Badness, why: impl Into<String>) {
        self.flaws.push(Flaw { part, file: file.to_owned(), badness, why: why.into() });
    }

    fn log(&mut self, state: &dyn Dir, origin: &Origin, policy: &Policy) {
        let (heads_file, progress_file) = (heads_name(origin), progress_name(origin));
        let machine = read(state, &heads_file).and_then(|bytes| {
            let (origin, policy, tuning) = (origin.clone(), policy.clone(), Tuning::default());
            match bytes.is_empty() {
                true => Ok(Machine::new(origin, policy, &[], tuning)),
                false => Machine::decode(&bytes, origin, policy, &[], tuning)
                    .map_err(|error| damaged(&heads_file, &error)),
            }
        });
        let audits = read(state, &progress_file)
            .and_then(|bytes| Progress::decode(&bytes).map_err(|error| damaged(&progress_file, &error)));
        let (machine, audits) = match (machine, audits) {
            (Ok(machine), Ok(audits)) => (machine, audits),
            (machine, audits) => {
                for (file, error) in [(&heads_file, machine.err()), (&progress_file, audits.err())] {
                    if let Some(error) = error {
                        self.add(Part::State, file, Badness::Damaged, error.to_string());
                    }
                }
                return;
            }
        };
        let heads = machine.heads();
        for (vantage, audited) in audits.all() {
            let again = audited.again.iter().map(|(again, _)| again);
            for frontier in std::iter::once(&audited.read).chain(again) {
                let signed: Vec<_> = heads.of_size(frontier.size()).map(|seen| seen.head()).collect();
                if let Some(signed) = other_root(frontier, &signed) {
                    let why = format!(
                        "under {vantage} {} entries were read that lead to the root {}, and the head of that size beside it has {}: the \
                         files are of two histories. Put files back that belong together",
                        signed.size,
                        frontier.head().root,
                        signed.root
                    );
                    self.add(Part::State, &progress_file, Badness::Damaged, why);
                }
            }
        }
        let placed = heads.branches().iter().flat_map(|branch| branch.heads()).count();
        let tip = heads.branches().first().and_then(|branch| branch.tip());
        self.logs.push(Inspected {
            origin: origin.clone(),
            heads: placed + heads.waiting().len(),
            consistent: tip.map(|seen| seen.head().size).unwrap_or_default(),
            audited: audits.all().map(|(_, audited)| audited.read.size()).max().unwrap_or_default(),
        });
    }

    /// A file in `state/` that is of no log of the configuration.
    fn strange(&mut self, state: &dyn Dir, name: &str) {
        let (badness, why) = if name.ends_with(NEW) {
            (Badness::Unfinished, "it was never finished; the next start removes it".to_owned())
        } else if !name.ends_with(".heads") && !name.ends_with(".audit") {
            (Badness::Foreign, "the monitor did not put it there; it is passed over".to_owned())
        } else {
            match read(state, name) {
                Ok(_) => {
                    (Badness::Foreign, "its log is not in the configuration; it is passed over".to_owned())
                }
                Err(error) => (Badness::Damaged, error.to_string()),
            }
        };
        self.add(Part::State, name, badness, why);
    }

    fn files(&mut self, disk: &Disk, book: Option<&Book>, key: Option<&VKey>) -> Result<(), DiskError> {
        for name in &list(&*disk.evidence)? {
            let flaw = match EvidenceId::from_hex(name).map(|id| disk.evidence(id)) {
                Some(Ok(_)) => {
                    self.evidence += 1;
                    continue;
                }
                Some(Err(error)) => (Badness::Damaged, error.to_string()),
                None if name.ends_with(NEW) => {
                    (Badness::Unfinished, "it was never finished; the next start removes it".to_owned())
                }
                None => (Badness::Foreign, "the monitor did not put it there; it is passed over".to_owned()),
            };
            self.add(Part::Evidence, name, flaw.0, flaw.1);
        }
        let named =
            book.into_iter().flat_map(Book::findings).filter_map(|found| Some((found, found.evidence?)));
        for (finding, id) in named {
            let why = match disk.evidence(id) {
                Ok(Some(file)) => {
                    judge(finding, &file, key).map_err(|why| format!("does not show it: {why}"))
                }
                Ok(None) => Err("is missing: put it back from a copy".to_owned()),
                // Told of above.
                Err(_) => Ok(()),
            };
            if let Err(why) = why {
                let why = format!("the file of the finding {} ({}) {why}", finding.id, finding.code);
                self.add(Part::Evidence, &id.to_string(), Badness::Damaged, why);
            }
        }
        Ok(())
    }
}

/// The signed head of the frontier's size, if all of those have another root.
fn other_root(frontier: &Frontier, signed: &[TreeHead]) -> Option<TreeHead> {
    let ours = frontier.head();
    signed.first().copied().filter(|_| !signed.contains(&ours))
}

/// Whether a file shows what the finding says, to whoever has the key.
fn judge(finding: &Finding, file: &[u8], key: Option<&VKey>) -> Result<(), String> {
    let (code, origin) = match (finding.code.class(), key) {
        (Class::Proof, _) => {
            let evidence = Evidence::decode(file).map_err(|error| error.to_string())?;
            (finding.code.to_string(), evidence.origin().clone())
        }
        (Class::Observation, Some(key)) => {
            let (said, _) =
                observation::verify(file, std::slice::from_ref(key)).map_err(|error| error.to_string())?;
            (said.code().to_owned(), said.origin().clone())
        }
        (Class::Observation, None) => return Ok(()),
    };
    match code == finding.code.as_str() && origin == finding.origin {
        true => Ok(()),
        false => Err(format!("it is about {code} of {origin}")),
    }
}
