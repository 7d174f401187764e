//! Findings as messages of the process, one structured event each: what is there when nothing else is configured. It keeps nothing.

use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;

use epigraph_core::UnixMillis;

use super::{Deliveries, Life, Sink, SinkStatus};
use crate::finding::{Change, FindingId, Notice, Severity};

/// The name of the one sink that every monitor has.
pub const NAME: &str = "log";

/// Says each notice once, at the level of its severity.
#[derive(Debug, Default)]
pub struct LogSink(Deliveries);

impl Sink for LogSink {
    fn name(&self) -> &str {
        NAME
    }

    fn notify(&self, Notice { change, finding }: &Notice) {
        // The level is part of an event's type: hence a macro, and not a function.
        macro_rules! say {
            ($level:ident) => {
                tracing::$level!(
                    finding = %finding.id,
                    code = finding.code.as_str(),
                    change = change.as_str(),
                    log = %finding.origin,
                    drill = finding.is_drill(),
                    subject = finding.subject,
                    count = finding.count,
                    detail = finding.detail,
                    evidence = finding.evidence.map(tracing::field::display),
                    next_step = finding.code.next_step(),
                    "{}", finding.code.sentence()
                )
            };
        }
        match (change, finding.code.severity()) {
            (Change::Resolved | Change::Acknowledged, _) => say!(info),
            (_, Severity::Page) => say!(error),
            (_, Severity::Warn) => say!(warn),
        }
        self.0.delivered(finding.last_at);
        if finding.is_open() {
            self.0.arrived(finding.id, finding.first_at);
        }
    }

    fn expect(&self, id: FindingId, since: UnixMillis) {
        self.0.expect(id, since);
    }

    fn run(self: Arc<Self>, _: Life) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(pending())
    }

    fn status(&self) -> SinkStatus {
        SinkStatus { name: NAME.into(), ..self.0.status() }
    }
}
