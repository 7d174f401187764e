//! Witnesses that vouch for what the log has not signed.

use bytes::Bytes;
use epigraph_core::checkpoint::encode_text;
use epigraph_core::cosignature::CosignedAt;
use epigraph_core::{TreeHead, UnixMillis, note};
use epigraph_monitor::finding::Code;

use crate::world::*;

/// A head with this witness's cosignature and nobody else's signature.
fn unsigned(head: &TreeHead, number: usize) -> Bytes {
    let text = encode_text(&origin(), head);
    let at = CosignedAt::of(UnixMillis(START)).unwrap();
    note::encode(&text, [&witness_key(number).cosign_assertion(&text, at)]).into()
}

/// W5: a witness cosigns the log's head and shows another of the same size, which the log never signed. It is convicted, whichever
/// comes first, and the log is not. Broken to see it fail: `is_perjury` says false; it is looked at only when it comes.
#[test]
fn a_witness_that_makes_up_a_head_is_convicted_and_the_log_is_not() {
    for first in [false, true] {
        let mut world = World::new(vec![History::new(64, 64, 0), History::new(64, 9, 1)]);
        let forged = unsigned(&world.head(1, 20), 3);
        if first {
            world.show(at_witness(3), forged.clone());
        }
        world.show(at_log(1), note(&world.head(0, 20), &[0, 1, 3], START));
        if !first {
            world.show(at_witness(3), forged);
        }
        world.wait(60_000);
        assert_eq!(world.open(), [(Code::WitnessEquivocation, "w3")], "{first}");
    }
}

/// A10: what an honest witness cosigned, stripped of the log's signature or shown in another place, convicts nobody; and what stays
/// without an answer is a bad signature at that vantage point. Broken to see it fail: any two notes of one size convict.
#[test]
fn an_honest_witness_is_not_convicted_by_what_others_strip() {
    let mut world = World::new(vec![History::new(64, 64, 0), History::new(64, 9, 1)]);
    world.show(at_log(1), note(&world.head(0, 20), &[0, 1, 2], START));
    let stripped = unsigned(&world.head(0, 20), 2);
    world.show(at_witness(2), stripped);
    // Another witness has never cosigned at this size.
    let lonely = unsigned(&world.head(1, 20), 3);
    world.show(at_log(2), lonely);
    assert!(world.open().is_empty(), "it waits");
    world.wait(11_000);
    let name = at_log(2).name;
    let stripped_at = at_witness(2).name;
    assert_eq!(
        world.open().into_iter().collect::<std::collections::BTreeSet<_>>(),
        [(Code::BadSignature, name.as_str()), (Code::BadSignature, stripped_at.as_str())].into()
    );
}

/// However many such heads a witness makes up, one waits: the newest. Broken to see it fail: all of them wait.
#[test]
fn of_made_up_heads_the_newest_waits() {
    let mut world = World::new(vec![History::new(64, 64, 0), History::new(64, 9, 1)]);
    world.show(at_log(1), note(&world.head(0, 10), &[0, 1, 2], START));
    for leaves in [20, 30] {
        world.show(at_witness(3), unsigned(&world.head(1, leaves), 3));
    }
    world.show(at_log(1), note(&world.head(0, 20), &[0, 1, 3], START));
    assert!(world.open().is_empty(), "{:?}", world.open());
    world.show(at_log(1), note(&world.head(0, 30), &[0, 1, 3], START));
    assert_eq!(world.open(), [(Code::WitnessEquivocation, "w3")]);
}
