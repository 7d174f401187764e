//! How far the audits of one log have come, by vantage point, as a file: where to go on after the process was killed. Pure.
//!
//! What is in it was proven under a head that the log signed. An old copy of it makes the monitor read some entries again and
//! nothing else: what is read is compared with the log's heads of today.

use std::collections::BTreeMap;

use epigraph_core::{Frontier, Hash, TreeSize, UnixMillis};

pub use crate::lines::StateError;
use crate::lines::{Reader, Writer, number};

/// Vantage points of one log whose entries are read: identities of one reader.
pub const MAX_AUDITED: usize = 16;

/// The longest name of a vantage point in bytes.
pub const MAX_VANTAGE_BYTES: usize = 255;

const HEADER: &str = "epigraph-audit@v1";

/// The audits of one log.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    vantages: BTreeMap<String, Audited>,
}

/// How far the audit under one vantage point is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Audited {
    /// What was read and proven to be a beginning of a signed tree.
    pub read: Frontier,
    /// What the rule about the order of entries remembers of them, as it wrote it; empty without one.
    pub rules: String,
    /// The same of an audit that began again at the first entry, while one is under way.
    pub again: Option<(Frontier, String)>,
    /// When an audit that began at the first entry last reached a signed root.
    pub full_at: Option<UnixMillis>,
}

impl Progress {
    /// How far it is under a vantage point; nothing, where it never was.
    pub fn of(&self, vantage: &str) -> Audited {
        self.vantages.get(vantage).cloned().unwrap_or_default()
    }

    /// Of all vantage points, by their names.
    pub fn all(&self) -> impl Iterator<Item = (&str, &Audited)> {
        self.vantages.iter().map(|(name, audited)| (name.as_str(), audited))
    }

    /// Replaces it. A vantage point more than [`MAX_AUDITED`] is not remembered, and begins at the first entry each time.
    pub fn set(&mut self, vantage: &str, audited: Audited) {
        if self.vantages.len() < MAX_AUDITED || self.vantages.contains_key(vantage) {
            self.vantages.insert(vantage.to_owned(), audited);
        }
    }

    /// Forgets the vantage points that are not configured any more.
    pub fn retain(&mut self, configured: impl Fn(&str) -> bool) {
        self.vantages.retain(|name, _| configured(name));
    }

    /// The progress as a file.
    pub fn encode(&self) -> Vec<u8> {
        let mut file = Writer::new(HEADER);
        for (name, Audited { read, rules, again, full_at }) in &self.vantages {
            file.line("vantage", name);
            write_frontier(&mut file, "read", read, rules);
            again.iter().for_each(|(again, rules)| write_frontier(&mut file, "again", again, rules));
            full_at.iter().for_each(|at| file.line("full", at.0));
        }
        file.finish()
    }

    /// Reads such a file.
    pub fn decode(bytes: &[u8]) -> Result<Progress, StateError> {
        let mut file = Reader::new(bytes, HEADER)?;
        let mut progress = Progress::default();
        while !file.is_empty() {
            let name = |text: &str| (text.len() <= MAX_VANTAGE_BYTES).then(|| text.to_owned());
            let name = file.value("vantage", name)?;
            let read = file.value("read", size)?;
            let (read, rules) = read_frontier(&mut file, read)?;
            let again = match file.maybe("again", size)? {
                Some(again) => Some(read_frontier(&mut file, again)?),
                None => None,
            };
            let full_at = file.maybe("full", number)?.map(UnixMillis);
            if progress.vantages.len() >= MAX_AUDITED {
                return Err(file.bad());
            }
            progress.vantages.insert(name, Audited { read, rules, again, full_at });
        }
        if progress.encode() == bytes { Ok(progress) } else { Err(StateError::NotCanonical) }
    }
}

fn size(text: &str) -> Option<TreeSize> {
    number(text).and_then(TreeSize::new)
}

fn write_frontier(file: &mut Writer, word: &str, frontier: &Frontier, rules: &str) {
    file.line(word, frontier.size());
    frontier.hashes().iter().for_each(|hash| file.line("hash", hash));
    rules.lines().for_each(|line| file.line("rule", line));
}

/// The hashes of a frontier, as many as its size has set bits; and the lines of the rule behind it.
fn read_frontier(file: &mut Reader<'_>, size: TreeSize) -> Result<(Frontier, String), StateError> {
    let hashes = (0..size.get().count_ones()).map(|_| file.value("hash", Hash::from_hex));
    let hashes = hashes.collect::<Result<Vec<_>, _>>()?;
    let frontier = Frontier::from_parts(size, hashes).map_err(|_| file.bad())?;
    let mut rules = String::new();
    while let Some(line) = file.maybe("rule", |line| (!line.is_empty()).then_some(line))? {
        rules.push_str(line);
        rules.push('\n');
    }
    Ok((frontier, rules))
}

#[cfg(test)]
mod tests {
    use epigraph_core::hash::leaf_hash;

    use super::*;

    fn frontier(leaves: u8) -> Frontier {
        let mut frontier = Frontier::new();
        (0..leaves).for_each(|n| frontier.push(leaf_hash(&[n])).unwrap());
        frontier
    }

    #[test]
    fn it_reads_back_and_nothing_that_was_edited_does() {
        let mut progress = Progress::default();
        progress.set(
            "a",
            Audited {
                read: frontier(7),
                rules: "x 1\ny 2\n".into(),
                again: Some((frontier(2), "x 0\n".into())),
                full_at: Some(UnixMillis(9)),
            },
        );
        progress.set("b", Audited { again: Some((frontier(3), String::new())), ..Audited::default() });
        let file = progress.encode();
        assert_eq!(Progress::decode(&file), Ok(progress));
        for cut in 0..file.len() {
            let whole = Progress::decode(&file[..cut]);
            assert!(whole.is_err() || whole.unwrap().encode() == file[..cut], "cut at {cut}");
        }
        let text = String::from_utf8(file).unwrap();
        for (from, to) in [("read 7", "read 07"), ("read 7", "read 6"), ("full 9", "full  9"), ("@v1", "@v2")]
        {
            assert!(Progress::decode(text.replace(from, to).as_bytes()).is_err(), "{from} -> {to}");
        }
    }

    /// By docs/formats/monitor.md.
    #[test]
    fn the_file_is_as_documented() {
        let mut progress = Progress::default();
        progress.set(
            "b",
            Audited {
                read: frontier(3),
                rules: "of all so far\n".into(),
                again: Some((frontier(1), String::new())),
                full_at: Some(UnixMillis(9)),
            },
        );
        progress.set("a", Audited::default());
        let first = leaf_hash(&[0]);
        let pair = epigraph_core::hash::node_hash(&first, &leaf_hash(&[1]));
        let text = format!(
            "epigraph-audit@v1\nvantage a\nread 0\nvantage b\nread 3\nhash {pair}\nhash {}\nrule of all so far\nagain 1\nhash {first}\nfull 9\n",
            leaf_hash(&[2])
        );
        assert_eq!(String::from_utf8(progress.encode()).unwrap(), text);
    }

    #[test]
    fn the_number_of_vantage_points_is_bounded() {
        let mut progress = Progress::default();
        (0..MAX_AUDITED + 5).for_each(|n| progress.set(&format!("v{n}"), Audited::default()));
        assert_eq!(progress.all().count(), MAX_AUDITED);
        progress.set("v0", Audited { read: frontier(3), ..Audited::default() });
        assert_eq!(progress.of("v0").read, frontier(3));
        progress.retain(|name| name == "v0");
        assert_eq!(Progress::decode(&progress.encode()), Ok(progress));
    }
}
