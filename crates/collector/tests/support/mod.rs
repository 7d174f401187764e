//! What tests of the intake share: whose events they are, and when.

use epigraph_core::{Clock, KeyName, SourceKey, UnixMillis};
use zeroize::Zeroizing;

/// A clock that stands.
pub(crate) struct Still;

impl Clock for Still {
    fn now(&self) -> UnixMillis {
        UnixMillis(2)
    }
}

/// The key of the source.
pub(crate) fn key() -> SourceKey {
    SourceKey::from_seed(KeyName::new("source.example").unwrap(), &Zeroizing::new([7; 32]))
}
