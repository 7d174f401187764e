//! A log that shows its readers an old head for ever.

use epigraph_monitor::finding::Code;

use crate::world::*;

/// SIM-FREEZE (A3): readers are shown one old head with its quorum, while the witnesses, asked one by one, hold newer ones. Both
/// vantage points of the log are held back; the log goes on, and no quorum is lost. Broken to see it fail: the quorum counted within
/// what one vantage point shows.
#[test]
fn readers_who_are_held_back_are_told_apart_from_a_log_that_stands_still() {
    let mut world = World::new(vec![History::new(64, 64, 0)]);
    for minute in 0..70 {
        world.now = START + minute * MINUTE;
        for number in 1..=2 {
            world.show(at_log(number), note(&world.head(0, 20), &[0, 1, 2], START));
        }
        for number in 0..4 {
            let now = world.now;
            world.show(at_witness(number), note(&world.head(0, 20 + minute.min(40)), &[number], now));
        }
        world.wait(1_000);
    }
    assert_eq!(world.open(), [(Code::StaleHead, "log/1"), (Code::StaleHead, "log/2")]);
}
