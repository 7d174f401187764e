//! The publisher as a pure machine: which head is asked for next, and when. One head is in flight at a time.
//!
//! Heads are signed back to back while anybody waits for one, else whenever the interval is over.

use epigraph_core::{TreeHead, TreeSize};

use crate::signer::Answer;

/// How often a head is proposed anew because the signer holds another size than was thought. The second time the
/// size is the signer's own, so a third means that somebody else moves it.
const MAX_STALE: u32 = 3;

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The tree has grown to this head.
    Offered(TreeHead),
    /// Somebody waits until a head of at least this size is published.
    Wanted(TreeSize),
    /// The interval is over: publish what there is.
    Due,
    /// The signer answered [`Effect::Ask`].
    Answered(Answer),
    /// The signer did not answer [`Effect::Ask`]. It is not asked again before [`Event::Rested`].
    NoAnswer,
    /// Time to ask a signer that did not answer again.
    Rested,
    /// [`Effect::Publish`] is done.
    Published,
}

/// What is to be done; its outcome is the next event.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Ask the signer for this head, from the size that it probably holds.
    Ask {
        /// The size to prove growth from.
        old: TreeSize,
        /// The head to be signed.
        head: TreeHead,
    },
    /// Check the note, make it durable, serve it.
    Publish {
        /// The head that was asked for.
        head: TreeHead,
        /// The signed note.
        note: String,
    },
    /// Stop for good: this tree and the signer's history do not fit.
    Stop(String),
}

/// The publisher's state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Machine {
    /// The newest head that was published.
    published: Option<TreeHead>,
    offered: TreeHead,
    wanted: TreeSize,
    /// The size that the signer holds, as far as is known.
    signer: TreeSize,
    in_flight: Option<TreeHead>,
    stale: u32,
    /// The signer did not answer, and is left alone for a while.
    resting: bool,
}

impl Machine {
    /// A machine that has published `already`, or nothing yet.
    pub fn new(already: Option<TreeHead>) -> Machine {
        let signer = already.map_or(TreeSize::ZERO, |head| head.size);
        Machine {
            published: already,
            offered: TreeHead::EMPTY,
            wanted: TreeSize::ZERO,
            signer,
            in_flight: None,
            stale: 0,
            resting: false,
        }
    }

    /// Takes one event; at most one effect follows.
    pub fn step(&mut self, event: Event) -> Option<Effect> {
        match event {
            Event::Offered(head) => self.offered = head,
            Event::Wanted(size) => self.wanted = self.wanted.max(size),
            Event::Due => return self.ask(),
            Event::NoAnswer => {
                self.in_flight = None;
                self.resting = true;
                return None;
            }
            Event::Rested => {
                self.resting = false;
                return self.ask();
            }
            Event::Answered(answer) => return self.answered(answer),
            Event::Published => self.published = self.in_flight.take(),
        }
        // The first checkpoint of a log does not wait for anybody: readers need one to start from.
        let somebody_waits = self.published.is_none_or(|head| head.size < self.wanted);
        if somebody_waits { self.ask() } else { None }
    }

    fn ask(&mut self) -> Option<Effect> {
        let new = self.published.is_none_or(|head| head.size < self.offered.size);
        if !new || self.in_flight.is_some() || self.resting {
            return None;
        }
        self.in_flight = Some(self.offered);
        self.stale = 0;
        // An empty or a just restarted log may find its signer ahead of what was published, never of the tree: then
        // the answer says so.
        Some(Effect::Ask { old: self.signer.min(self.offered.size), head: self.offered })
    }

    fn answered(&mut self, answer: Answer) -> Option<Effect> {
        let head = self.in_flight?;
        match answer {
            Answer::Signed(note) => {
                self.signer = head.size;
                Some(Effect::Publish { head, note })
            }
            Answer::Stale(held) if self.published.is_some_and(|published| held.size < published.size) => {
                let published = self.published.map_or(TreeSize::ZERO, |published| published.size);
                Some(Effect::Stop(format!(
                    "it went back: it holds a head of size {}, and size {published} is published under its key",
                    held.size
                )))
            }
            Answer::Stale(held) if held.size <= head.size && self.stale < MAX_STALE => {
                self.stale += 1;
                self.signer = held.size;
                Some(Effect::Ask { old: held.size, head })
            }
            Answer::Stale(held) => Some(Effect::Stop(format!(
                "it holds a head of size {}, this log has {}",
                held.size, head.size
            ))),
            Answer::Conflict(conflict) => Some(Effect::Stop(conflict.to_string())),
            Answer::Reject(why) => Some(Effect::Stop(why)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use epigraph_core::Hash;
    use epigraph_core::hash::leaf_hash;
    use epigraph_core::progress::Conflict;

    fn size(leaves: u64) -> TreeSize {
        TreeSize::new(leaves).unwrap()
    }

    fn head(leaves: u64) -> TreeHead {
        let root = if leaves == 0 { Hash::EMPTY_ROOT } else { leaf_hash(&leaves.to_le_bytes()) };
        TreeHead { size: size(leaves), root }
    }

    fn ask(old: u64, new: u64) -> Option<Effect> {
        Some(Effect::Ask { old: size(old), head: head(new) })
    }

    fn signed() -> Event {
        Event::Answered(Answer::Signed("note".into()))
    }

    fn publish(leaves: u64) -> Option<Effect> {
        Some(Effect::Publish { head: head(leaves), note: "note".into() })
    }

    fn check(already: Option<u64>, script: &[(Event, Option<Effect>)]) {
        let mut machine = Machine::new(already.map(head));
        for (number, (event, effect)) in script.iter().enumerate() {
            assert_eq!(machine.step(event.clone()), *effect, "step {number}: {event:?}");
        }
    }

    #[test]
    fn a_new_log_publishes_its_empty_tree_at_once() {
        check(
            None,
            &[
                (Event::Offered(head(0)), ask(0, 0)),
                (signed(), publish(0)),
                (Event::Published, None),
                (Event::Due, None),
            ],
        );
    }

    #[test]
    fn growth_waits_for_the_interval_unless_somebody_waits_for_it() {
        check(
            Some(5),
            &[
                (Event::Offered(head(7)), None),
                (Event::Due, ask(5, 7)),
                (signed(), publish(7)),
                (Event::Published, None),
                (Event::Offered(head(9)), None),
                (Event::Wanted(size(8)), ask(7, 9)),
            ],
        );
    }

    #[test]
    fn one_head_is_in_flight_and_the_next_follows_at_once_while_somebody_waits() {
        check(
            Some(0),
            &[
                (Event::Wanted(size(3)), None),
                (Event::Offered(head(2)), ask(0, 2)),
                (Event::Offered(head(4)), None),
                (Event::Due, None),
                (signed(), publish(2)),
                (Event::Published, ask(2, 4)),
            ],
        );
    }

    #[test]
    fn a_signer_that_is_ahead_of_what_was_published_is_asked_again_from_its_own_size() {
        check(
            Some(5),
            &[
                (Event::Offered(head(8)), None),
                (Event::Due, ask(5, 8)),
                (Event::Answered(Answer::Stale(head(8))), ask(8, 8)),
                (signed(), publish(8)),
            ],
        );
    }

    #[test]
    fn a_signer_that_does_not_answer_is_left_alone_and_then_asked_for_the_newest_head() {
        check(
            Some(5),
            &[
                (Event::Offered(head(8)), None),
                (Event::Due, ask(5, 8)),
                (Event::NoAnswer, None),
                (Event::Wanted(size(9)), None),
                (Event::Offered(head(9)), None),
                (Event::Due, None),
                (Event::Rested, ask(5, 9)),
                (signed(), publish(9)),
            ],
        );
    }

    /// R5, before every signature: the signer was put back while the log ran. Seen to fail without the comparison with what is
    /// published.
    #[test]
    fn a_signer_that_holds_less_than_was_published_stops_the_log() {
        let mut machine = Machine::new(Some(head(5)));
        machine.step(Event::Offered(head(8)));
        machine.step(Event::Due);
        let effect = machine.step(Event::Answered(Answer::Stale(head(3))));
        assert!(
            matches!(effect, Some(Effect::Stop(why)) if why.contains("size 3") && why.contains("size 5"))
        );
    }

    #[test]
    fn another_history_stops_the_log_for_good() {
        let conflict = Conflict { held: head(5), proposed: head(8) };
        for answer in [Answer::Stale(head(9)), Answer::Conflict(conflict)] {
            let mut machine = Machine::new(Some(head(5)));
            machine.step(Event::Offered(head(8)));
            machine.step(Event::Due);
            let effect = machine.step(Event::Answered(answer));
            assert!(matches!(effect, Some(Effect::Stop(_))), "{effect:?}");
        }
    }
}
