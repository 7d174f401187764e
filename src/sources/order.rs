//! The order of leaves as a rule of the monitor's audit. What is in order is the business of [`epigraph_event::succession`].

use epigraph_core::{LeafIndex, UnixMillis};
use epigraph_event::Leaf;
use epigraph_event::leaf::LeafError;
use epigraph_event::succession::{Succession, Wrong};
use epigraph_monitor::audit::{Broken, Sequence, SequenceRule};
use epigraph_monitor::finding::Code;
use epigraph_monitor::standing::Condition;

use super::{gaps_in_words, named, subject};

/// The leaves of events are in order, and in a log that has nothing else every entry is one.
#[derive(Clone, Copy, Debug)]
pub struct LeavesInOrder {
    /// Whether the log has nothing else.
    pub nothing_else: bool,
    /// How far times may be off.
    pub skew_ms: u64,
}

struct InOrder {
    succession: Succession,
    nothing_else: bool,
}

impl SequenceRule for LeavesInOrder {
    fn begin(&self) -> Box<dyn Sequence> {
        Box::new(InOrder { succession: Succession::new(self.skew_ms), nothing_else: self.nothing_else })
    }

    fn resume(&self, text: &str) -> Option<Box<dyn Sequence>> {
        let succession = Succession::read(self.skew_ms, text)?;
        Some(Box::new(InOrder { succession, nothing_else: self.nothing_else }))
    }
}

impl Sequence for InOrder {
    fn check(&mut self, index: LeafIndex, entry: &[u8], now: UnixMillis) -> Result<(), Broken> {
        let taken = match Leaf::parse(entry) {
            Err(LeafError::NotALeaf) if !self.nothing_else => return Ok(()),
            Err(error) => Err(Wrong::Leaf(error)),
            Ok(leaf) => self.succession.take(index, &leaf, now),
        };
        taken.map_err(|wrong| Broken { rule: wrong.rule(), why: wrong.to_string() })
    }

    fn stands(&self) -> Vec<Condition> {
        let gaps = self.succession.gaps().map(|(source, gaps, unlisted)| {
            let all = (gaps.len() as u64).saturating_add(unlisted);
            let listed = gaps.iter().map(|gap| (gap.epoch, gap.first, gap.end));
            let detail = format!("the log has no leaf for {}", gaps_in_words(listed, all));
            Condition { code: Code::SourceGap, subject: subject(source), detail }
        });
        named(Code::SourceGap, gaps)
    }

    fn write(&self) -> String {
        self.succession.write()
    }

    fn duplicate(&self) -> Box<dyn Sequence> {
        Box::new(InOrder { succession: self.succession.clone(), nothing_else: self.nothing_else })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use epigraph_core::Hash;
    use epigraph_event::leaf::Reference;

    const NOW: UnixMillis = UnixMillis(1_790_000_000_000);

    fn leaf(sequence: u64) -> [u8; 208] {
        let hash = |byte| Hash::from_bytes([byte; 32]);
        let (source, commitments) = (hash(0xab), [hash(6), hash(7), hash(8)]);
        let (reference, batch) = (Reference::from_bytes([1; 16]), hash(sequence as u8));
        let ingested = NOW.0 / 1_000;
        Leaf { reference, source, epoch: 3, sequence, ingested, commitments, batch }.encode()
    }

    #[test]
    fn other_entries_are_wrong_only_where_nothing_else_belongs() {
        let check = |nothing_else: bool, entry: &[u8], expected: Option<&str>| {
            let mut order = LeavesInOrder { nothing_else, skew_ms: 1_000 }.begin();
            let broken = order.check(LeafIndex::default(), entry, NOW).err();
            assert_eq!(broken.map(|broken| broken.rule), expected, "{nothing_else} {entry:?}");
        };
        for nothing_else in [true, false] {
            check(nothing_else, &leaf(0), None);
            check(nothing_else, &leaf(0)[..207], Some("audit-leaf"));
            check(nothing_else, b"EPGLEAF\x02", Some("audit-leaf"));
        }
        check(true, b"something else", Some("audit-leaf"));
        check(false, b"something else", None);
    }

    #[test]
    fn a_gap_is_named_by_source_epoch_and_number() {
        let rule = LeavesInOrder { nothing_else: true, skew_ms: 1_000 };
        let mut order = rule.begin();
        for (index, sequence) in (0..).zip([7, 9, 10, 14]) {
            order.check(LeafIndex::new(index).unwrap(), &leaf(sequence), NOW).unwrap();
        }
        let order = rule.resume(&order.write()).unwrap();
        let condition = Condition {
            code: Code::SourceGap,
            subject: "source abababababababab".into(),
            detail: "the log has no leaf for events 8 to 8 of epoch 3, events 11 to 13 of epoch 3".into(),
        };
        assert_eq!(order.duplicate().stands(), [condition]);
        assert!(rule.resume("").is_none());
    }
}
