//! What the four slots of one log say after a stop, whether by order, by crash or by power cut. Pure.
//!
//! A commit of generation g + 1 overwrites the two copies of generation g - 1, both under one sync, and is
//! acknowledged after it. So after a crash each of those two copies is the old one, the new one, or torn; the
//! copies of generation g are untouched. What follows:
//!
//! - a whole copy of g + 1: it is the head, acknowledged or not;
//! - a whole copy of g - 1: the sync of g + 1 never ended, nobody was told of it, g is the head;
//! - neither: both copies were torn before an acknowledgement, or both rotted after it. The bytes cannot tell.
//!   Generation g is *suspect*: only somebody who asked the outside world may take it for the head.
//!
//! A log starts with generations 0 and 1 alike, so the rule needs no exception for a young log, and zeros are
//! never right.

use super::layout::{Bad, SLOTS, Slot, place};

/// What to go on with.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Recovered {
    pub(super) newest: Slot,
    /// Both copies of what may have been a newer generation are unreadable.
    pub(super) suspect: bool,
    /// The copy of the newest generation that has to be written again from the other.
    pub(super) repair: Option<(u32, Bad)>,
    /// A copy beside the newest generation that does not check.
    pub(super) torn: Vec<(u32, Bad)>,
}

/// Why the log is refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Refusal {
    NoneValid(Bad),
    Version { place: u32, version: u32 },
    CopiesDiffer { generation: u64 },
    OriginsDiffer,
}

/// Judges the slots of log number `log`, given in the order in which they lie in the file.
pub(super) fn recover(log: u32, slots: &[Result<Slot, Bad>; SLOTS as usize]) -> Result<Recovered, Refusal> {
    let at = |copy: u32, generation: u64| &slots[(place(0, copy, generation)) as usize];
    for (place, slot) in (log * SLOTS..).zip(slots) {
        if let Err(Bad::Version(version)) = slot {
            return Err(Refusal::Version { place, version: *version });
        }
    }
    let valid = || slots.iter().flatten();
    let Some(newest) = valid().max_by_key(|slot| slot.generation) else {
        let first = slots.iter().find_map(|slot| slot.as_ref().err());
        return Err(Refusal::NoneValid(*first.unwrap_or(&Bad::Malformed)));
    };
    if valid().any(|slot| slot.origin != newest.origin) {
        return Err(Refusal::OriginsDiffer);
    }
    for generation in [0, 1] {
        if let (Ok(a), Ok(b)) = (at(0, generation), at(1, generation))
            && a.generation == b.generation
            && a != b
        {
            return Err(Refusal::CopiesDiffer { generation: a.generation });
        }
    }
    let repair = [0, 1].into_iter().find_map(|copy| match at(copy, newest.generation) {
        Ok(slot) if slot.generation == newest.generation => None,
        Ok(slot) => Some((copy, Bad::Behind(slot.generation))),
        Err(bad) => Some((copy, *bad)),
    });
    let beside = newest.generation + 1;
    let torn = [0, 1]
        .into_iter()
        .filter_map(|copy| Some((place(log, copy, beside), *at(copy, beside).as_ref().err()?)));
    let predecessor = |copy| matches!(at(copy, beside), Ok(slot) if slot.generation + 1 == newest.generation);
    Ok(Recovered {
        newest: newest.clone(),
        suspect: !predecessor(0) && !predecessor(1),
        repair,
        torn: torn.collect(),
    })
}
