//! The runbooks that can be run: those that ship, and those of a folder, which stand in place of shipped ones of the same name.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use super::Runbook;
use super::file::{self, BadRunbook, MAX_FILE_BYTES};

/// The most runbooks: a list that people read.
pub const MAX_RUNBOOKS: usize = 256;

const SHIPPED: [(&str, &str); 10] = [
    ("access-outside-hours.toml", include_str!("../../../../deploy/runbooks/access-outside-hours.toml")),
    ("actor-activity.toml", include_str!("../../../../deploy/runbooks/actor-activity.toml")),
    ("failed-logins.toml", include_str!("../../../../deploy/runbooks/failed-logins.toml")),
    ("key-activity.toml", include_str!("../../../../deploy/runbooks/key-activity.toml")),
    ("privilege-grants.toml", include_str!("../../../../deploy/runbooks/privilege-grants.toml")),
    ("repeated-failures.toml", include_str!("../../../../deploy/runbooks/repeated-failures.toml")),
    ("request-trace.toml", include_str!("../../../../deploy/runbooks/request-trace.toml")),
    ("resource-activity.toml", include_str!("../../../../deploy/runbooks/resource-activity.toml")),
    ("resource-history.toml", include_str!("../../../../deploy/runbooks/resource-history.toml")),
    ("who-read.toml", include_str!("../../../../deploy/runbooks/who-read.toml")),
];

/// Runbooks, by name.
#[derive(Clone, Debug)]
pub struct Shelf(BTreeMap<String, Arc<Runbook>>);

impl Shelf {
    /// Those that ship.
    pub fn shipped() -> Result<Shelf, BadRunbook> {
        Shelf(BTreeMap::new()).with(SHIPPED)
    }

    /// Adds runbooks from the names and texts of their files. One of a name that is there already stands in its place; two of one name
    /// among `files` are refused.
    pub fn with<'a>(
        mut self,
        files: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Shelf, BadRunbook> {
        let mut new: BTreeMap<String, &str> = BTreeMap::new();
        for (name, text) in files {
            let runbook = file::read(name, text)?;
            let bad = |why: String| BadRunbook { file: name.into(), key: "id".into(), why };
            if let Some(other) = new.insert(runbook.id.clone(), name) {
                return Err(bad(format!("{other} has the same: rename one of them")));
            }
            self.0.insert(runbook.id.clone(), Arc::new(runbook));
            if self.0.len() > MAX_RUNBOOKS {
                return Err(bad(format!("there are more than {MAX_RUNBOOKS} runbooks")));
            }
        }
        Ok(self)
    }

    /// Adds those of a folder: its files that end in `.toml`, in the order of their names.
    pub fn with_folder(self, folder: &Path) -> Result<Shelf, BadRunbook> {
        let bad = |path: &Path, why: String| BadRunbook {
            file: path.display().to_string(),
            key: "file".into(),
            why,
        };
        let mut texts = BTreeMap::new();
        for entry in fs::read_dir(folder).map_err(|why| bad(folder, why.to_string()))? {
            let path = entry.map_err(|why| bad(folder, why.to_string()))?.path();
            if path.extension().is_none_or(|extension| extension != "toml") {
                continue;
            }
            let mut text = String::new();
            let file = fs::File::open(&path).map_err(|why| bad(&path, why.to_string()))?;
            // One byte more than allowed, so that what is too long is told from what is cut.
            let read = file.take(MAX_FILE_BYTES as u64 + 1).read_to_string(&mut text);
            read.map_err(|why| bad(&path, why.to_string()))?;
            texts.insert(path.display().to_string(), text);
            if texts.len() > MAX_RUNBOOKS {
                return Err(bad(folder, format!("there are more than {MAX_RUNBOOKS} runbooks")));
            }
        }
        self.with(texts.iter().map(|(name, text)| (name.as_str(), text.as_str())))
    }

    /// The runbook of this name.
    pub fn get(&self, id: &str) -> Option<&Arc<Runbook>> {
        self.0.get(id)
    }

    /// All, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Runbook>> {
        self.0.values()
    }
}
