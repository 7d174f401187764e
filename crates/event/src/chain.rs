//! The chain of a source's batches: how they are numbered, and what a batch is to whoever holds the ones before it.
//!
//! Nothing is judged here: a gap, a fork and an old batch are answers, and what follows from them is the caller's.

use epigraph_core::Hash;

use crate::batch::Signed;

/// The end of a source's chain: where its next batch belongs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tip {
    /// The epoch.
    pub epoch: u64,
    /// The number of the next batch in the epoch.
    pub number: u64,
    /// The sequence number of the next event in the epoch.
    pub sequence: u64,
    /// The hash of the last batch, if any is known.
    pub last: Option<Hash>,
}

/// What a batch is to somebody who holds a chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Link {
    /// The next batch: it names the last one and goes on where that ended.
    Next,
    /// The first batch of a later epoch. `follows` says whether it names the last batch of the chain: if it does not,
    /// the source has forgotten what it sent, and events may have been lost with its memory.
    NewEpoch {
        /// Whether it names the last batch.
        follows: bool,
    },
    /// A later batch: some are missing before it.
    Gap {
        /// The epoch.
        epoch: u64,
        /// The first event that is missing; no event, if it is that of the batch: then batches without events are
        /// missing.
        from: u64,
        /// The batch's first event, which is not missing.
        to: u64,
    },
    /// An earlier batch, which is known already if it is what it was. Compare it with the one of its number.
    Earlier,
    /// A batch in the next one's place that does not follow the last one: it names another batch before it, or other
    /// numbers. The source has two histories, or two collectors have one key.
    Fork,
}

impl Tip {
    /// Where the first batch of an epoch belongs; `last` is the last batch of an epoch before it.
    pub fn of_epoch(epoch: u64, last: Option<Hash>) -> Tip {
        Tip { epoch, number: 0, sequence: 0, last }
    }

    /// The end of the chain once this batch is part of it.
    pub fn after(batch: &Signed) -> Tip {
        let envelope = batch.envelope();
        Tip {
            epoch: envelope.epoch,
            // Neither saturates: an envelope that would is not read.
            number: envelope.number.saturating_add(1),
            sequence: envelope.first_sequence.saturating_add(u64::from(envelope.count)),
            last: Some(batch.hash()),
        }
    }

    /// What this batch is to the chain that ends here.
    pub fn link(&self, batch: &Signed) -> Link {
        let envelope = batch.envelope();
        let names_last = envelope.previous == self.last;
        if envelope.epoch < self.epoch || (envelope.epoch == self.epoch && envelope.number < self.number) {
            return Link::Earlier;
        }
        let (number, sequence) =
            if envelope.epoch == self.epoch { (self.number, self.sequence) } else { (0, 0) };
        if envelope.number > number {
            // A batch that goes back in events while it goes on in batches contradicts the ones in between.
            if envelope.first_sequence < sequence {
                return Link::Fork;
            }
            return Link::Gap { epoch: envelope.epoch, from: sequence, to: envelope.first_sequence };
        }
        match envelope.first_sequence == sequence {
            false => Link::Fork,
            true if envelope.epoch > self.epoch => Link::NewEpoch { follows: names_last },
            true if names_last => Link::Next,
            true => Link::Fork,
        }
    }
}
