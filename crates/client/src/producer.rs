//! Appending each entry once, however often the log, the network or this process fails on the way.
//!
//! A producer gives its entries consecutive numbers and repeats a call under the same numbers until it is answered; the log
//! gives a repeat the first answer. It keeps nothing on disk: what was not acknowledged when the process ended is for
//! its caller to send again.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use epigraph_core::Entropy;
use epigraph_core::backoff::spread_wait;
use epigraph_rpc::{CallError, Reason, Wait, convert};
use tokio::time::{sleep, timeout};

use crate::{Appended, Client, ClientError};

/// Calls that one append makes at most.
pub const MAX_ATTEMPTS: u32 = 16;

/// How long one append takes at most, all its calls together: a log that restarts, checks its journal and publishes is back by
/// then.
pub const MAX_TIME: Duration = Duration::from_secs(180);

/// The first pause between two calls. Each one after it is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A sender of numbered entries. There is one at a time under an id: a second one takes over, and the first is refused
/// with STALE_EPOCH from its next call on.
pub struct Producer<'a> {
    client: &'a Client,
    id: [u8; convert::PRODUCER_ID_BYTES],
    epoch: u64,
    next_sequence: u64,
    entropy: Arc<dyn Entropy>,
}

impl Client {
    /// A new producer, under an id that nobody has used.
    pub async fn new_producer(&self, entropy: Arc<dyn Entropy>) -> Result<Producer<'_>, ClientError> {
        let mut id = [0; convert::PRODUCER_ID_BYTES];
        entropy.fill(&mut id);
        self.producer(id, entropy).await
    }

    /// Goes on as the producer of this id, where the log knows it to be. Whoever used the id before is fenced off with
    /// the first append.
    pub async fn producer(
        &self,
        id: [u8; convert::PRODUCER_ID_BYTES],
        entropy: Arc<dyn Entropy>,
    ) -> Result<Producer<'_>, ClientError> {
        let mut pause = Pause::default();
        let known = loop {
            match self.log.producer(self.origin.as_str(), id).await {
                Err(error) if pause.is_worth_it(&error, &*entropy).await => {}
                known => break known?,
            }
        };
        let epoch = match known.epoch {
            None => 0,
            Some(epoch) => epoch.checked_add(1).ok_or(ClientError::WrongAnswer("with the largest epoch"))?,
        };
        Ok(Producer { client: self, id, epoch, next_sequence: known.next_sequence, entropy })
    }
}

impl Producer<'_> {
    /// What to keep in order to go on after a restart.
    pub fn id(&self) -> [u8; convert::PRODUCER_ID_BYTES] {
        self.id
    }

    /// The number of the next entry.
    pub fn next_sequence(&self) -> u64 {
        self.next_sequence
    }

    /// Goes back to a number whose answer this caller does not have: the same entries under the same numbers get the first answer
    /// again. A number beyond the next one changes nothing.
    pub fn repeat_from(&mut self, sequence: u64) {
        self.next_sequence = self.next_sequence.min(sequence);
    }

    /// Appends entries as [`Client::append`] does, all or none, and once. Where that makes sense it tries again, at most
    /// [`MAX_ATTEMPTS`] times and for [`MAX_TIME`]. After an error the entries may be in the log or not: the next call
    /// must bring the same ones, and goes on with their numbers.
    pub async fn append(&mut self, entries: &[Bytes], wait: Wait) -> Result<Appended, ClientError> {
        let appended = timeout(MAX_TIME, self.try_append(entries, wait)).await;
        let appended = appended.unwrap_or(Err(CallError::TimedOut.into()))?;
        self.next_sequence = self.next_sequence.saturating_add(entries.len() as u64);
        Ok(appended)
    }

    /// Waits until the entry before the next one, which is this, is published or cannot be in time: a log publishes at once what
    /// somebody waits for. The entry is appended again under its number, and the log answers where it is.
    pub async fn wait_for_last(&self, entry: Bytes) -> Result<Appended, ClientError> {
        let none = ClientError::WrongAnswer("of an entry that was not appended");
        let first_sequence = self.next_sequence.checked_sub(1).ok_or(none)?;
        let producer = convert::Producer { id: self.id, epoch: self.epoch, first_sequence };
        self.client.append_as(Some(producer), &[entry], Wait::Published).await
    }

    async fn try_append(&self, entries: &[Bytes], wait: Wait) -> Result<Appended, ClientError> {
        let (id, epoch, first_sequence) = (self.id, self.epoch, self.next_sequence);
        let producer = convert::Producer { id, epoch, first_sequence };
        let mut pause = Pause::default();
        loop {
            match self.client.append_as(Some(producer), entries, wait).await {
                Err(ClientError::Call(error)) if pause.is_worth_it(&error, &*self.entropy).await => {}
                result => return result,
            }
        }
    }
}

/// The pauses between the calls of one append.
#[derive(Default)]
struct Pause {
    attempts: u32,
}

impl Pause {
    /// Whether another call can have another answer; waits until it should be made.
    async fn is_worth_it(&mut self, error: &CallError, entropy: &dyn Entropy) -> bool {
        self.attempts = self.attempts.saturating_add(1);
        if self.attempts >= MAX_ATTEMPTS || !passes(error) {
            return false;
        }
        let asked = match error {
            CallError::Refused(refusal) => refusal.retry_delay().unwrap_or_default(),
            _ => Duration::ZERO,
        };
        sleep(asked.min(LONGEST_PAUSE) + self.length(entropy)).await;
        true
    }

    fn length(&self, entropy: &dyn Entropy) -> Duration {
        spread_wait(FIRST_PAUSE, LONGEST_PAUSE, self.attempts, entropy)
    }
}

/// Whether time alone may help. In none of these cases is it known that the entries are not in the log, which is what the
/// numbers are for.
fn passes(error: &CallError) -> bool {
    match error {
        CallError::Unreachable(_) | CallError::TimedOut => true,
        CallError::Refused(refusal) => matches!(
            refusal.reason(),
            Reason::Overloaded
                | Reason::Draining
                | Reason::Gated
                | Reason::UnpublishedBacklog
                | Reason::NoSpace
                | Reason::DeadlineExceeded
                | Reason::Internal
        ),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use epigraph_rpc::Refusal;

    /// Fills with the same byte.
    struct Same(u8);

    impl Entropy for Same {
        fn fill(&self, bytes: &mut [u8]) {
            bytes.fill(self.0);
        }
    }

    #[test]
    fn pauses_double_up_to_a_bound_and_are_spread() {
        let check = |attempts: u32, random: u8, expected: u64| {
            let length = Pause { attempts }.length(&Same(random));
            assert_eq!(length.as_millis() as u64, expected, "{attempts} {random}");
        };
        check(1, 0, 25);
        check(1, 255, 50);
        check(2, 0, 50);
        check(8, 0, 3_200);
        check(9, 0, 5_000);
        check(MAX_ATTEMPTS, 255, 10_000);
        check(u32::MAX, 0, 5_000);
    }

    #[tokio::test(start_paused = true)]
    async fn it_gives_up_after_so_many_calls_and_at_once_where_time_does_not_help() {
        let mut pause = Pause::default();
        let mut calls = 1;
        while pause.is_worth_it(&CallError::TimedOut, &Same(0)).await {
            calls += 1;
        }
        assert_eq!(calls, MAX_ATTEMPTS);
        for reason in
            [Reason::SequenceReused, Reason::StaleEpoch, Reason::AlreadyCommitted, Reason::BatchTooLarge]
        {
            let refused = CallError::Refused(Refusal::new(reason, "no"));
            assert!(!Pause::default().is_worth_it(&refused, &Same(0)).await, "{reason}");
        }
    }
}
