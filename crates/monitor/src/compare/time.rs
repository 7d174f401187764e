//! The monitor's own sense of time: how long something has lasted, whatever its clock does meanwhile.
//!
//! The clock that the machine is told may jump. Durations are therefore counted in small steps, and a step that is too long
//! or backwards makes the clock suspect until the times in fresh cosignatures agree with it again. It knows no finding.

use epigraph_core::{TreeSize, UnixMillis};

/// The longest step that counts in full. Ticks come every second or so; a longer one means that the clock was set, or that the
/// machine slept, and nobody knows which.
const MAX_STEP_MS: u64 = 60_000;

/// How far back the clock may step without being suspect: events of several tasks come a little out of order.
const MAX_BACK_MS: u64 = 5_000;

/// Milliseconds since the machine was started, as counted here.
pub(super) type Elapsed = u64;

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Time {
    /// The newest reading of the clock.
    pub(super) now: UnixMillis,
    /// What has passed.
    pub(super) elapsed: Elapsed,
    /// How the clock jumped, until it is known to be right again.
    pub(super) jumped: Option<String>,
    started: bool,
}

impl Time {
    /// Takes a reading of the clock.
    pub(super) fn read(&mut self, at: UnixMillis) {
        if !self.started {
            (self.started, self.now) = (true, at);
            return;
        }
        let (forward, back) = (at.0.saturating_sub(self.now.0), self.now.0.saturating_sub(at.0));
        if forward > MAX_STEP_MS {
            self.jumped =
                Some(format!("it went forward by {} s at once, or the machine slept", forward / 1000));
        } else if back > MAX_BACK_MS {
            self.jumped = Some(format!("it went back by {} s", back / 1000));
        }
        self.elapsed = self.elapsed.saturating_add(forward.min(MAX_STEP_MS));
        if back == 0 || back > MAX_BACK_MS {
            self.now = at;
        }
    }

    /// How long ago something was.
    pub(super) fn since(&self, then: Elapsed) -> u64 {
        self.elapsed.saturating_sub(then)
    }
}

/// Since when something that should follow a growing log does not. It is measured against the size that it should have had
/// then: who keeps up is never behind, however fast the log grows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Lag {
    mark: Option<(TreeSize, Elapsed)>,
}

impl Lag {
    /// Notes how far it has come, and how far it should.
    pub(super) fn update(&mut self, has: TreeSize, should: TreeSize, now: Elapsed) {
        if self.mark.is_some_and(|(mark, _)| has >= mark) {
            self.mark = None;
        }
        if self.mark.is_none() && has < should {
            self.mark = Some((should, now));
        }
    }

    /// For how long it has been behind, in milliseconds.
    pub(super) fn lasted(&self, now: Elapsed) -> u64 {
        self.mark.map_or(0, |(_, since)| now.saturating_sub(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(leaves: u64) -> TreeSize {
        TreeSize::new(leaves).unwrap()
    }

    /// SIM-CLOCK: what the clock does by itself makes nothing last longer. Broken to see it fail: `forward` counted in full.
    #[test]
    fn a_clock_that_jumps_makes_nothing_last_longer() {
        let mut time = Time::default();
        for at in [1_000_000, 1_001_000, 1_001_000 + 3_600_000, 1_002_000, 1_003_000] {
            time.read(UnixMillis(at));
        }
        assert_eq!(time.elapsed, 1_000 + MAX_STEP_MS + 1_000);
        assert_eq!(time.now, UnixMillis(1_003_000));
        assert!(time.jumped.is_some());
    }

    #[test]
    fn a_little_disorder_is_no_jump() {
        let mut time = Time::default();
        for at in [10_000, 11_000, 10_500, 12_000] {
            time.read(UnixMillis(at));
        }
        assert_eq!((time.elapsed, time.jumped), (2_000, None));
    }

    #[test]
    fn who_follows_a_growing_log_is_never_behind() {
        let mut lag = Lag::default();
        for now in 0..100 {
            lag.update(size(now), size(now + 5), now);
            assert!(lag.lasted(now) <= 5);
        }
        let mut lag = Lag::default();
        for now in 0..100 {
            lag.update(size(0), size(now + 5), now);
            assert_eq!(lag.lasted(now), now);
        }
    }
}
