//! What the lying log does, and what it shows to whom. Pure: entries in, views out.
//!
//! It is honest for the first [`HONEST_ENTRIES`]; then each lie is one idea:
//! - **split-view**: two histories, which differ in one entry, for two halves of its clients, told apart by their names;
//! - **rewrite**: an old entry is served with other bytes; every hash, proof and signature stays as it was;
//! - **freeze**: who does not append is shown one old head for ever, while appends go on;
//! - **drop**: what is only promised to be durable is never put into the log.

use bytes::Bytes;
use epigraph_core::hash::sha256;
use epigraph_core::{TreeHead, TreeSize};
use epigraph_rpc::{SpiffeId, Wait};

use super::HONEST_ENTRIES;
use super::history::{History, MAX_ENTRIES, Published};
use crate::cli::Lie;

/// The entry that a rewriting log changes.
const REWRITTEN: u64 = 7;

/// Which of the histories; 1 only where there are two.
pub type Side = usize;

/// Everything that the lying log holds.
pub struct World {
    lie: Lie,
    /// One until it splits.
    sides: Vec<History>,
    /// From here on nothing newer is shown to readers.
    frozen: Option<Published>,
    /// The witnesses, in the order of its policy.
    witnesses: Vec<SpiffeId>,
}

/// It takes no more.
pub struct Full;

/// What one caller is shown.
pub struct View<'a> {
    pub history: &'a History,
    /// The newest published head, for this caller.
    pub newest: Option<&'a Published>,
    rewritten: bool,
}

impl World {
    /// An empty log with these witnesses.
    pub fn new(lie: Lie, witnesses: Vec<SpiffeId>) -> World {
        World { lie, sides: vec![History::default()], frozen: None, witnesses }
    }

    /// Takes entries, and says at which index it put the first: or would have.
    pub fn append(&mut self, entries: Vec<Bytes>, wait: Wait) -> Result<u64, Full> {
        let first = self.sides[0].size();
        if self.sides[0].size() as usize + entries.len() > MAX_ENTRIES {
            return Err(Full);
        }
        let turned = first >= HONEST_ENTRIES;
        let splits = turned && self.lie == Lie::SplitView && self.sides.len() == 1;
        match self.lie {
            Lie::Drop if turned && wait == Wait::Durable => return Ok(first),
            Lie::SplitView if splits => self.sides.push(self.sides[0].clone()),
            Lie::Freeze if turned && self.frozen.is_none() => self.frozen = self.sides[0].newest().cloned(),
            _ => {}
        }
        for (number, entry) in entries.into_iter().enumerate() {
            if let Some(other) = self.sides.get_mut(1) {
                other.push(if splits && number == 0 { changed(&entry) } else { entry.clone() });
            }
            self.sides[0].push(entry);
        }
        Ok(first)
    }

    /// The history that a caller is shown. Who appends must find its own entries again.
    pub fn side(&self, caller: &SpiffeId) -> Side {
        let place = self.witnesses.iter().position(|witness| witness == caller);
        let side = match place {
            Some(place) => Side::from(place == 1),
            None if appends(caller) => 0,
            None => usize::from(sha256(caller.as_str().as_bytes()).as_bytes()[0] & 1),
        };
        side.min(self.sides.len() - 1)
    }

    /// Whether the witness in this place is asked to cosign this history. An honest one would refuse the other; so the second
    /// witness is kept for the second history, and all further ones but the first are asked for both.
    pub fn asks(&self, side: Side, place: usize) -> bool {
        self.sides.len() == 1 || place != 1 - side
    }

    /// What a caller is shown.
    pub fn view(&self, caller: &SpiffeId) -> View<'_> {
        let history = &self.sides[self.side(caller)];
        let frozen = self.frozen.as_ref().filter(|_| !appends(caller));
        let rewritten = self.lie == Lie::Rewrite && history.size() > HONEST_ENTRIES;
        View { history, newest: frozen.or(history.newest()), rewritten }
    }

    /// The heads that are to be published.
    pub fn unpublished(&self) -> Vec<(Side, TreeHead)> {
        let head = |(side, history): (Side, &History)| Some((side, history.unpublished()?));
        self.sides.iter().enumerate().filter_map(head).collect()
    }

    pub fn history(&self, side: Side) -> Option<&History> {
        self.sides.get(side)
    }

    pub fn publish(&mut self, side: Side, size: TreeSize, note: Bytes) {
        if let Some(history) = self.sides.get_mut(side) {
            history.publish(size, note);
        }
    }
}

impl View<'_> {
    /// The size of the newest published head.
    pub fn size(&self) -> u64 {
        self.newest.map_or(0, |newest| newest.size.get())
    }

    /// An entry as it is served.
    pub fn entry(&self, index: u64) -> Option<Bytes> {
        let entry = self.history.entry(index)?;
        Some(if self.rewritten && index == REWRITTEN { changed(entry) } else { entry.clone() })
    }
}

fn appends(caller: &SpiffeId) -> bool {
    caller.as_str().contains("/appender/")
}

/// The same event, with another outcome where it has one.
fn changed(entry: &Bytes) -> Bytes {
    let text = String::from_utf8_lossy(entry);
    let other = match (text.contains("\"granted\""), text.contains("\"denied\"")) {
        (true, _) => text.replacen("\"granted\"", "\"denied\"", 1),
        (_, true) => text.replacen("\"denied\"", "\"granted\"", 1),
        _ => format!("{text}, or so it is said"),
    };
    Bytes::from(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spiffe(role: &str, name: &str) -> SpiffeId {
        format!("spiffe://epigraph.quickstart/epigraph/{role}/{name}").parse().unwrap()
    }

    /// A log that was honest for a while, and got some more entries.
    fn after(lie: Lie) -> World {
        let witnesses = (1..=4).map(|number| spiffe("witness", &format!("quickstart-{number}"))).collect();
        let mut world = World::new(lie, witnesses);
        for from in [0, HONEST_ENTRIES] {
            let entries = (from..from + HONEST_ENTRIES).map(|index| Bytes::from(format!("entry {index}")));
            assert!(matches!(world.append(entries.collect(), Wait::Published), Ok(first) if first == from));
            for (side, head) in world.unpublished() {
                world.publish(side, head.size, Bytes::from_static(b"note"));
            }
        }
        world
    }

    /// What this caller is shown otherwise than it was appended, and how much it is shown.
    fn shown(world: &World, caller: &SpiffeId) -> (Vec<u64>, u64) {
        let view = world.view(caller);
        let differs = |index: &u64| view.entry(*index) != Some(Bytes::from(format!("entry {index}")));
        ((0..view.size()).filter(differs).collect(), view.size())
    }

    /// Each lie is told to those that it is for, and everybody else is shown the truth.
    #[test]
    fn each_lie_is_one_lie() {
        let all = 2 * HONEST_ENTRIES;
        let [alice, bob] = ["alice", "bob"].map(|name| spiffe("reader", name));
        let appender = spiffe("appender", "quickstart");
        let check = |lie, [to_alice, to_bob, to_appender]: [(&[u64], u64); 3]| {
            let world = after(lie);
            for (caller, (differ, size)) in [(&alice, to_alice), (&bob, to_bob), (&appender, to_appender)] {
                assert_eq!(shown(&world, caller), (differ.to_vec(), size), "{lie:?} {caller}");
            }
        };
        check(Lie::SplitView, [(&[], all), (&[HONEST_ENTRIES], all), (&[], all)]);
        check(Lie::Rewrite, [(&[REWRITTEN], all); 3]);
        check(Lie::Freeze, [(&[], HONEST_ENTRIES), (&[], HONEST_ENTRIES), (&[], all)]);
        check(Lie::Drop, [(&[], all); 3]);
    }

    /// A rewritten entry lies behind valid proofs: the tree is as it was. Two histories are two trees.
    #[test]
    fn a_rewriting_log_keeps_its_tree_and_a_splitting_one_has_two() {
        let root = |lie, side| {
            let world = after(lie);
            world.history(side).and_then(|history| history.consistency(TreeSize::new(1)?, TreeSize::new(48)?))
        };
        assert_eq!(root(Lie::Rewrite, 0), root(Lie::Drop, 0));
        assert_eq!(root(Lie::SplitView, 0), root(Lie::Drop, 0));
        assert_ne!(root(Lie::SplitView, 1), root(Lie::Drop, 0));
        assert_eq!(root(Lie::Rewrite, 1), None);
    }

    #[test]
    fn a_dropping_log_drops_what_it_only_promises() {
        let mut world = after(Lie::Drop);
        let promised = world.append(vec![Bytes::from_static(b"promised")], Wait::Durable);
        assert!(matches!(promised, Ok(48)));
        assert!(world.unpublished().is_empty());
    }

    /// Honest witnesses are kept apart, and three are asked under each history.
    #[test]
    fn no_honest_witness_is_asked_about_both_histories() {
        let world = after(Lie::SplitView);
        let asked = |side| (0..4).filter(|place| world.asks(side, *place)).collect::<Vec<_>>();
        assert_eq!([asked(0), asked(1)], [vec![0, 2, 3], vec![1, 2, 3]]);
        let [first, second] = [1, 2].map(|number| spiffe("witness", &format!("quickstart-{number}")));
        assert_eq!([world.side(&first), world.side(&second)], [0, 1]);
    }
}
