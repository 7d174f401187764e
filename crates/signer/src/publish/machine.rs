//! The publisher as a pure machine: which head is signed next, and when. One head is in flight at a time, until it is
//! published or late; who cosigns it is for [`super::witnesses`].
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
    /// A head was published: the one in flight, or one from before it.
    Published(TreeHead),
    /// The head in flight was not published in time. It may still be.
    Late,
    /// No more heads will be offered: the last one is published without waiting.
    Ending,
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
    /// Check the note, and gather the witnesses' cosignatures until it can be published.
    Gather {
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
    /// The newest head that was signed, published or not.
    signed: Option<TreeHead>,
    offered: TreeHead,
    wanted: TreeSize,
    /// The size that the signer holds, as far as is known.
    signer: TreeSize,
    in_flight: Option<TreeHead>,
    stale: u32,
    /// The signer did not answer, and is left alone for a while.
    resting: bool,
    ending: bool,
}

impl Machine {
    /// A machine that has published `already`, or nothing yet.
    pub fn new(already: Option<TreeHead>) -> Machine {
        let signer = already.map_or(TreeSize::ZERO, |head| head.size);
        Machine {
            published: already,
            signed: already,
            offered: TreeHead::EMPTY,
            wanted: TreeSize::ZERO,
            signer,
            in_flight: None,
            stale: 0,
            resting: false,
            ending: false,
        }
    }

    /// Whether nothing is in flight.
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_none()
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
            Event::Published(head) => {
                self.published = Some(head);
                if self.in_flight.is_some_and(|in_flight| in_flight.size <= head.size) {
                    self.in_flight = None;
                }
            }
            Event::Late => self.in_flight = None,
            Event::Ending => {
                self.ending = true;
                self.resting = false;
            }
        }
        // The first checkpoint of a log does not wait for anybody: readers need one to start from.
        let somebody_waits = self.published.is_none_or(|head| head.size < self.wanted);
        if somebody_waits || self.ending { self.ask() } else { None }
    }

    fn ask(&mut self) -> Option<Effect> {
        let new = self.signed.is_none_or(|head| head.size < self.offered.size);
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
                self.signed = Some(head);
                Some(Effect::Gather { head, note })
            }
            Answer::Stale(held) if self.signed.is_some_and(|signed| held.size < signed.size) => {
                let signed = self.signed.map_or(TreeSize::ZERO, |signed| signed.size);
                Some(Effect::Stop(format!(
                    "it went back: it holds a head of size {}, and size {signed} is signed with its key",
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

    fn published(leaves: u64) -> Event {
        Event::Published(head(leaves))
    }

    fn gather(leaves: u64) -> Option<Effect> {
        Some(Effect::Gather { head: head(leaves), note: "note".into() })
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
                (signed(), gather(0)),
                (published(0), None),
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
                (signed(), gather(7)),
                (published(7), None),
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
                (signed(), gather(2)),
                (published(2), ask(2, 4)),
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
                (signed(), gather(8)),
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
                (signed(), gather(9)),
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
