//! The time, for what is measured and for the certificates. Nothing else in the benches asks the system for it.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use epigraph_core::{Clock, UnixMillis};

/// The start of a measurement.
#[expect(clippy::disallowed_methods, reason = "a bench measures")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "certificates are checked against the real time")]
    fn now(&self) -> UnixMillis {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}

/// The clock as clients take it.
pub(crate) fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock)
}
