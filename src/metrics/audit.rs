//! What an audit service tells of its sources.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use epigraph_audit::audit::Audit;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Unit;

use super::Role;
use super::samples::{Samples, flag};

/// The audit service of this process.
#[derive(Clone)]
pub struct Auditing {
    pub audit: Arc<Audit>,
    /// Why leaves wait for the log; none if they do not.
    pub trouble: Arc<Mutex<Option<String>>>,
}

impl fmt::Debug for Auditing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Auditing")
    }
}

impl Role for Auditing {
    fn ready(&self) -> Result<(), String> {
        match &*self.trouble.lock().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some(why) => Err(format!("events are kept, and their leaves wait for the log: {why}")),
        }
    }
}

impl Collector for Auditing {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut out = Samples(encoder);
        let (durable, placed) = self.audit.slots();
        out.value("audit_ready", "1 if leaves go into the log", None, flag(self.ready().is_ok()))?;
        let events = Unit::Other("events".into());
        out.value("audit", "Events that are durable", Some(&events), durable as f64)?;
        out.value(
            "audit_unplaced",
            "Events whose leaf is not in the log yet",
            Some(&events),
            (durable - placed) as f64,
        )
    }
}
