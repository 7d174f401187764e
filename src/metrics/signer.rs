//! What a signer process tells of its logs: at most 64, so each has series of its own.

use std::fmt;

use epigraph_signer::status::{Gate, Kind, Status};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Unit;

use super::Role;
use super::samples::{Samples, flag};

/// The signer of this process.
#[derive(Clone, Debug)]
pub struct Signing(pub Status);

impl Role for Signing {
    /// Ready to sign for every log; else for which not, and why.
    fn ready(&self) -> Result<(), String> {
        let logs = self.0.look();
        let alone = logs.len() == 1;
        let reasons = logs.into_iter().filter_map(|(origin, log)| {
            let why = match log.gate {
                Gate::Passed => return None,
                Gate::Waiting(whom) if whom.is_empty() => {
                    "gated: asking what is published and held under the log's key".to_owned()
                }
                Gate::Waiting(whom) => format!("gated: waiting for {whom}"),
                Gate::Shut(why) => format!("refused: {why}"),
            };
            Some(if alone { why } else { format!("{origin}: {why}") })
        });
        let reasons: Vec<String> = reasons.collect();
        if reasons.is_empty() { Ok(()) } else { Err(reasons.join("\n")) }
    }
}

fn gate_name(gate: &Gate) -> &'static str {
    match gate {
        Gate::Waiting(_) => "waiting",
        Gate::Passed => "passed",
        Gate::Shut(_) => "refused",
    }
}

impl Collector for Signing {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let logs = self.0.look();
        let mut out = Samples(encoder);
        let states = logs.iter().flat_map(|(origin, log)| {
            ["waiting", "passed", "refused"].map(|state| {
                let value = flag(gate_name(&log.gate) == state);
                ([("origin", origin.as_str()), ("state", state)], value)
            })
        });
        out.gauge("signer_gate", "1 for where the log stands with the gate of the start", None, states)?;
        let entries = Unit::Other("entries".into());
        let held =
            logs.iter().map(|(origin, log)| ([("origin", origin.as_str())], log.held.head.size.get() as f64));
        out.gauge("signer_held", "Entries of the head that the signer is bound to", Some(&entries), held)?;
        let terms = logs.iter().map(|(origin, log)| ([("origin", origin.as_str())], log.held.term as f64));
        out.gauge("signer_term", "The newest term that was opened", None, terms)?;
        let signed = logs.iter().map(|(origin, log)| ([("origin", origin.as_str())], log.signed));
        out.counter("signer_signatures", "Heads that were signed, repeats included", signed)?;
        let refused = logs.iter().flat_map(|(origin, log)| {
            Kind::ALL.map(|kind| ([("origin", origin.as_str()), ("kind", kind.name())], log.refused(kind)))
        });
        out.counter("signer_refusals", "Heads that were not signed, and terms that were not opened", refused)
    }
}
