//! Reads every byte of the runs in a directory, and changes nothing.

use epigraph_core::{Hash, TreeSize};

use super::LookupError;
use super::run::{NEW_NAME, Run, Span, Unusable};
use crate::file::Dir;

/// A run that was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inspected {
    /// The file's name.
    pub name: String,
    /// Its entries: the first, and the one after the last.
    pub entries: [u64; 2],
    /// The root of the subtree of its entries as the file has it, or how it is damaged.
    pub root: Result<Hash, String>,
}

/// Reads the runs of the log whose origin has this hash, in ascending order of their entries, and says whether one was being
/// written when a crash came. That the keys are the tree's is found out at the next start.
pub fn inspect(dir: &dyn Dir, origin_hash: Hash) -> Result<(Vec<Inspected>, bool), LookupError> {
    let names = dir.list().map_err(LookupError::io("list the runs"))?;
    let mut spans: Vec<Span> = names.iter().filter_map(|name| Span::of_name(name)).collect();
    spans.sort_unstable_by_key(|span| (span.first(), span.height));
    let inspected = spans.into_iter().map(|span| {
        let root = match Run::open(dir, span, origin_hash) {
            Ok(run) => read(&run).map(|()| run.root),
            Err(Unusable::Bad(why)) => Err(why),
            Err(Unusable::NotOpened(error)) => return Err(LookupError::io("open a run")(error)),
        };
        Ok(Inspected { name: span.name(), entries: [span.first(), span.end()], root })
    });
    Ok((inspected.collect::<Result<_, _>>()?, names.iter().any(|name| name == NEW_NAME)))
}

/// Every block, and that the keys ascend and are of entries of the run.
fn read(run: &Run) -> Result<(), String> {
    let (mut records, mut last) = (run.records(), None);
    while let Some((key, offset)) = records.next_record()? {
        if last.is_some_and(|last| last >= key) {
            return Err("its keys do not ascend".to_owned());
        }
        if u64::from(offset) >= run.span.leaves() {
            return Err(format!(
                "it has a key of entry {offset}, counted from its first, and has no such entry"
            ));
        }
        last = Some(key);
    }
    Ok(())
}

impl Inspected {
    /// Whether the run ends within so many entries.
    pub fn is_within(&self, durable: TreeSize) -> bool {
        self.entries[1] <= durable.get()
    }
}
