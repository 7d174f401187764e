//! What a batch is to whoever holds the ones before it.

use epigraph_core::hash::sha256;
use epigraph_event::Batch;
use epigraph_event::chain::{Link, Tip};

use crate::support::batch;

fn after(batch: &Batch) -> Tip {
    Tip::after(batch.signed())
}

// Broken to see it fail: `Tip::link` that does not look at the hash before; one that lets events go back.
#[test]
fn a_chain_is_followed_and_every_departure_has_a_name() {
    let check = |tip: &Tip, next: &Batch, expected| assert_eq!(tip.link(next.signed()), expected);
    let start = Tip::default();
    let first = batch(&start, 3);
    let heartbeat = batch(&after(&first), 0);
    let third = batch(&after(&heartbeat), 2);
    check(&start, &first, Link::Next);
    check(&after(&first), &heartbeat, Link::Next);
    check(&after(&heartbeat), &third, Link::Next);
    assert_eq!(after(&third), Tip { epoch: 0, number: 3, sequence: 5, last: Some(third.signed().hash()) });

    // What came before comes again.
    check(&after(&third), &first, Link::Earlier);
    check(&after(&third), &heartbeat, Link::Earlier);
    check(&after(&third), &third, Link::Earlier);

    // A batch is missing: the first, with its events; the second, which has none.
    check(&start, &third, Link::Gap { epoch: 0, from: 0, to: 3 });
    check(&start, &heartbeat, Link::Gap { epoch: 0, from: 0, to: 3 });
    check(&after(&first), &third, Link::Gap { epoch: 0, from: 3, to: 3 });

    // Another history of the same key.
    let other = batch(&Tip { last: Some(sha256(b"another first batch")), ..after(&first) }, 1);
    check(&after(&first), &other, Link::Fork);
    let skips = batch(&Tip { sequence: 4, ..after(&first) }, 1);
    check(&after(&first), &skips, Link::Fork);
    let goes_back = batch(&Tip { sequence: 2, number: 5, ..after(&first) }, 1);
    check(&after(&first), &goes_back, Link::Fork);

    // A new epoch, with and without memory; and one of which the beginning is missing.
    let last = after(&third).last;
    check(&after(&third), &batch(&Tip::of_epoch(1, last), 1), Link::NewEpoch { follows: true });
    check(&after(&third), &batch(&Tip::of_epoch(9, None), 1), Link::NewEpoch { follows: false });
    let late = batch(&Tip { epoch: 1, number: 1, sequence: 8, last }, 1);
    check(&after(&third), &late, Link::Gap { epoch: 1, from: 0, to: 8 });
    check(&after(&batch(&Tip::of_epoch(1, last), 1)), &third, Link::Earlier);
}
