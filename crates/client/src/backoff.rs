//! How long to wait before trying again: longer each time, and never all clients at the same moment. It knows no clock.

use std::time::Duration;

use epigraph_core::Entropy;
use epigraph_core::backoff::spread_wait;

/// The longest first wait.
const FIRST: Duration = Duration::from_millis(200);

/// The longest wait: a log that is back is noticed within it.
const LONGEST: Duration = Duration::from_secs(30);

/// Failures to begin in a row, then it is for a person to look: about three minutes after the first.
const MAX_FAILURES: u32 = 12;

/// What failed since something came of it.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    waits: u32,
    failures: u32,
}

impl Backoff {
    /// Something came of it.
    pub(crate) fn succeeded(&mut self) {
        *self = Backoff::default();
    }

    /// It began; what comes of it is still open.
    pub(crate) fn began(&mut self) {
        self.failures = 0;
    }

    /// How long to wait after a failure; `None` when it is time to give up.
    pub(crate) fn after_failure(&mut self, entropy: &dyn Entropy) -> Option<Duration> {
        self.failures += 1;
        if self.failures > MAX_FAILURES {
            *self = Backoff::default();
            return None;
        }
        self.waits = self.waits.saturating_add(1);
        Some(spread_wait(FIRST, LONGEST, self.waits, entropy))
    }

    /// How long to wait after an end that is in order.
    pub(crate) fn after_end(&self, entropy: &dyn Entropy) -> Duration {
        spread_wait(FIRST, LONGEST, 1, entropy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Drawn(u8);

    impl Entropy for Drawn {
        fn fill(&self, bytes: &mut [u8]) {
            bytes.fill(self.0);
        }
    }

    #[test]
    fn waits_double_up_to_half_a_minute_and_end() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = std::iter::from_fn(|| backoff.after_failure(&Drawn(0xff))).collect();
        let millis: Vec<_> = waits.iter().map(Duration::as_millis).collect();
        let doubled = [200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600];
        assert_eq!((&millis[..8], &millis[8..]), (&doubled[..], &[30_000; 4][..]));
        // Whoever goes on after that begins anew.
        assert_eq!(backoff.after_failure(&Drawn(0)), Some(Duration::from_millis(100)));
    }

    #[test]
    fn what_began_is_not_given_up_and_what_succeeded_is_tried_at_once() {
        let mut backoff = Backoff::default();
        for _ in 0..100 {
            assert!(backoff.after_failure(&Drawn(0)).is_some());
            backoff.began();
        }
        assert_eq!(backoff.after_failure(&Drawn(0)), Some(Duration::from_secs(15)));
        backoff.succeeded();
        assert_eq!(backoff.after_failure(&Drawn(0)), Some(Duration::from_millis(100)));
    }
}
