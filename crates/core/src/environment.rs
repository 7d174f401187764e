//! What a role is handed from outside instead of reaching for it: the time and randomness.

/// Milliseconds since 1970-01-01T00:00:00Z, leap seconds not counted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct UnixMillis(pub u64);

/// Where a role gets the time from. The one real clock lives in the root package.
pub trait Clock: Send + Sync {
    /// The wall-clock time. It may jump, also backwards.
    fn now(&self) -> UnixMillis;
}

/// Where a role gets unpredictable bytes from. The one real source lives in the root package.
pub trait Entropy: Send + Sync {
    /// Fills `bytes`.
    fn fill(&self, bytes: &mut [u8]);
}
