//! The audit layer of a new directory: a service, a collector that is enrolled there, and events to try it with.

use anyhow::Context as _;
use epigraph_audit::source::Enrolled;

use super::{Plan, failed};
use crate::config::audit::AuditConfig;
use crate::config::collector::CollectorConfig;
use crate::quickstart::role::collector_spiffe;
use crate::{runtime, state};

/// Made-up audit events of a cloud.
pub const SAMPLE_FILE: &str = "cloudtrail-sample.jsonl";

const SAMPLE: &str = include_str!("cloudtrail-sample.jsonl");

/// The id of the event among them that is looked at.
pub const SAMPLE_ID: &str = "3f0c6a52-7d1e-4b8f-9a06-5c2e71d4b903";

/// What is asked about them: everybody who is shown asking may.
pub const SAMPLE_QUESTION: &str = "resource-activity --param resource=bert --from 2026-01-01 --to 2026-01-08";

/// The public keys of those who sign events.
pub const SOURCES: &str = "sources";

impl Plan<'_> {
    /// A service, a collector, and each known to the other. A collector that is run by hand owes nobody a heartbeat.
    pub(super) fn init_audit(&self) -> anyhow::Result<()> {
        self.write("audit.toml", &self.audit()?)?;
        let config = AuditConfig::load(&self.dir.join("audit.toml")).map_err(failed)?;
        let own = state::audit::init(&config, &*runtime::entropy()).map_err(failed)?;
        self.write("collector.toml", &self.collector()?)?;
        let collector = CollectorConfig::load(&self.dir.join("collector.toml")).map_err(failed)?;
        let vkey =
            state::collector::init(&collector.directory, &collector.name, self.now, &runtime::entropy())
                .map_err(failed)?;
        let source = Enrolled {
            vkey: vkey.clone(),
            owner: "whoever made this quickstart".into(),
            collector: collector_spiffe(),
            enrolled_at: self.now,
            retired_at: None,
            heartbeat_ms: 0,
        };
        state::audit::enrol(&config, &source).map_err(failed)?;
        let sources = format!(
            "# Who signs audit events: the collector, and the audit service itself, for what is read of them.\n{vkey}\n{own}\n"
        );
        self.write(SOURCES, &sources)?;
        self.write(SAMPLE_FILE, SAMPLE).context("the sample of audit events")
    }
}
