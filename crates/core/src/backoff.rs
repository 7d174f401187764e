//! How long to wait before trying again, as one rule for everybody who does. It knows no clock, and not what is tried.

use std::time::Duration;

use crate::Entropy;

/// The wait after the `failures`-th failure in a row, from 1: `first`, then twice as long each time, at most `longest`; and of
/// that between half and all, so that those who lost the same server together do not come back together.
pub fn spread_wait(first: Duration, longest: Duration, failures: u32, entropy: &dyn Entropy) -> Duration {
    // More doublings than any two durations in use are apart.
    let due = first.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(longest);
    let mut drawn = [0; 2];
    entropy.fill(&mut drawn);
    due / 2 + due / 2 * u32::from(u16::from_le_bytes(drawn)) / u32::from(u16::MAX)
}
