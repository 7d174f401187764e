//! How long to wait before asking again somebody who did not answer.

use std::time::Duration;

/// A process that is being restarted is back in less.
const FIRST: Duration = Duration::from_millis(100);

/// So long after somebody is back, at most, things go on.
const LONGEST: Duration = Duration::from_secs(5);

/// Doubles from one failure to the next, up to a bound.
#[derive(Clone, Debug)]
pub struct Backoff {
    next: Duration,
}

impl Backoff {
    /// Before the first failure.
    pub fn new() -> Backoff {
        Backoff { next: FIRST }
    }

    /// The wait after one more failure.
    pub fn pause(&mut self) -> Duration {
        let delay = self.next;
        self.next = (delay * 2).min(LONGEST);
        delay
    }
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff::new()
    }
}
